//! The state of the tunnel as its own process tells it, asked for at most once a second.

use super::history::now_ms;
use crate::gateway::Failure;
use crate::gateway::metrics::Measured;
use crate::gateway::show::{self, InterfaceJson, View};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a report is told again instead of asking anew.
const FRESH: Duration = Duration::from_secs(1);

/// The state of a tunnel at one time, without its secrets.
#[derive(Clone, Debug)]
pub(super) struct TunnelReport {
    pub(super) measured: Measured,
    pub(super) device: InterfaceJson,
    /// When it was made, in milliseconds since the Unix epoch.
    pub(super) time_ms: u64,
}

impl TunnelReport {
    /// Tells what was measured, and then lets go of its keys.
    fn of(measured: Measured) -> TunnelReport {
        let device = show::json(&View::of(&measured));
        TunnelReport { measured: measured.without_secrets(), device, time_ms: now_ms() }
    }
}

/// Makes reports, and keeps the last for a moment.
pub(super) struct TunnelReports {
    ask: Box<dyn Fn() -> Result<TunnelReport, Failure> + Send + Sync>,
    last: Mutex<Option<(Instant, Arc<TunnelReport>)>>,
}

impl TunnelReports {
    pub(super) fn new(interface: String) -> TunnelReports {
        TunnelReports {
            ask: Box::new(move || Ok(TunnelReport::of(Measured::of(&interface)?))),
            last: Mutex::default(),
        }
    }

    /// A fresh report. Whoever asks while it is made waits for it.
    pub(super) fn get(&self) -> Result<Arc<TunnelReport>, Failure> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, report)) = &*last
            && made.elapsed() < FRESH
        {
            return Ok(Arc::clone(report));
        }
        // The old one may be large, and goes before the new one comes.
        *last = None;
        let report = Arc::new((self.ask)()?);
        *last = Some((Instant::now(), Arc::clone(&report)));
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
    use crate::gateway::control::{DeviceState, PeerState};
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    impl TunnelReport {
        /// A device with a private key and two peers, one with a preshared key.
        pub(in crate::gateway::http) fn example() -> TunnelReport {
            let peer = |n, seconds| PeerState {
                last_handshake: Duration::from_secs(seconds),
                preshared_key: (n == 1).then_some(SharedSecret([9; 32])),
                ..PeerState::new(PublicKey([n; 32]))
            };
            let device = DeviceState {
                private_key: Some(PrivateKey::from_bytes([7; 32])),
                peers: vec![peer(1, 0), peer(2, 90)],
                ..DeviceState::default()
            };
            let status = Some(crate::device::status::Status::default());
            TunnelReport::of(Measured { name: "wg0".into(), status, device, names: HashMap::new() })
        }
    }

    impl TunnelReports {
        pub(in crate::gateway::http) fn of(report: TunnelReport) -> TunnelReports {
            TunnelReports { ask: Box::new(move || Ok(report.clone())), last: Mutex::default() }
        }

        pub(in crate::gateway::http) fn failing(
            why: impl Fn() -> Failure + Send + Sync + 'static,
        ) -> TunnelReports {
            TunnelReports { ask: Box::new(move || Err(why())), last: Mutex::default() }
        }
    }

    #[test]
    fn the_device_is_asked_once_for_requests_that_come_together() {
        let asked = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&asked);
        let ask = move || {
            counted.fetch_add(1, Relaxed);
            Ok(TunnelReport::example())
        };
        let reports = TunnelReports { ask: Box::new(ask), last: Mutex::default() };
        (0..5).for_each(|_| drop(reports.get().unwrap()));
        assert_eq!(asked.load(Relaxed), 1);
    }

    #[test]
    fn a_report_has_no_secret() {
        let report = TunnelReport::example();
        assert!(report.measured.device.private_key.is_none());
        assert!(report.measured.device.peers.iter().all(|peer| peer.preshared_key.is_none()));
        assert!(report.device.private_key.is_none() && report.device.peers[0].has_preshared_key);
    }
}
