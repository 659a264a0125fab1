//! Bytes received and sent over the last minutes, so that the page has a graph as soon as it is opened.

use super::Shared;
use crate::device::status::Summary;
use crate::gateway::client;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::MissedTickBehavior;

/// The time between two samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);
/// How many samples are kept: ten minutes.
const KEPT: usize = 300;

/// The totals at one time: milliseconds since the Unix epoch, bytes received, bytes sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Sample(pub(super) u64, pub(super) u64, pub(super) u64);

/// The last samples.
#[derive(Debug, Default)]
pub(super) struct ByteHistory(Mutex<VecDeque<Sample>>);

impl ByteHistory {
    fn add(&self, sample: Sample) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == KEPT {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    pub(super) fn samples(&self) -> Vec<Sample> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// Takes samples for as long as the runtime lives. One that the device does not answer is left out.
pub(super) async fn follow(interface: String, shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let name = interface.clone();
        let asked = tokio::task::spawn_blocking(move || client::summary(&name));
        if let Ok(Ok(Summary { rx_bytes, tx_bytes, .. })) = asked.await {
            shared.history.add(Sample(now_ms(), rx_bytes, tx_bytes));
        }
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minutes_are_kept_and_no_more() {
        let history = ByteHistory::default();
        (0..1000).for_each(|at| history.add(Sample(at, at, 0)));
        let samples = history.samples();
        assert_eq!((samples.len(), samples[0].0, samples[KEPT - 1].0), (KEPT, 1000 - KEPT as u64, 999));
    }
}
