//! What a tunnel does at the moment: rates and shares, from two looks at its counters.

use crate::device::status::{Counters, Status};
use crate::gateway::Failure;
use crate::gateway::control::DeviceState;
use crate::gateway::metrics::Measured;
use crate::gateway::standing::{PeerStanding, Standings};
use serde::Serialize;
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The counters of a tunnel at one time, without its secrets.
#[derive(Clone, Debug)]
pub struct Look {
    at: Instant,
    /// Since the Unix epoch.
    wall: Duration,
    interface: String,
    status: Status,
    device: DeviceState,
    names: HashMap<String, String>,
}

/// What a tunnel did between two looks.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TunnelActivity {
    /// The interface's name.
    pub interface: String,
    /// Whether the interface is up and its sockets are bound.
    pub up: bool,
    /// The UDP port; 0 where there is none.
    pub listen_port: u16,
    /// The workers' backend: `io_uring` or `syscalls`.
    pub io: String,
    /// The time between the looks, in seconds.
    pub seconds: f64,
    /// Bits received a second, of all peers.
    pub rx_bits_per_second: f64,
    /// Bits sent a second, of all peers.
    pub tx_bits_per_second: f64,
    /// How many peers are connected.
    pub connected: usize,
    /// The workers, by number.
    pub workers: Vec<WorkerActivity>,
    /// The peers, in the device's order.
    pub peers: Vec<PeerActivity>,
}

/// What a worker did between two looks.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct WorkerActivity {
    /// Share of the time in which it was awake, from 0 to 1.
    pub busy: f64,
    /// Packets a second, both ways together.
    pub packets_per_second: f64,
    /// Packets in a turn that moved any. `None` where there was no such turn.
    pub packets_per_turn: Option<f64>,
    /// Share of the received data that belonged to another worker, from 0 to 1. `None` where nothing was received.
    pub misdirected: Option<f64>,
}

/// What a peer did between two looks.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct PeerActivity {
    /// The peer's public key in base64.
    pub public_key: String,
    /// The peer's name, from the interface's file.
    pub name: Option<String>,
    /// The peer's endpoint.
    pub endpoint: Option<String>,
    /// Whether it has a session, had one, or never had.
    pub state: PeerStanding,
    /// How old the last handshake is, in seconds.
    pub handshake_seconds: Option<u64>,
    /// Bits received a second.
    pub rx_bits_per_second: f64,
    /// Bits sent a second.
    pub tx_bits_per_second: f64,
    /// Bytes received in all.
    pub rx_bytes: u64,
    /// Bytes sent in all.
    pub tx_bytes: u64,
    /// The worker that owns the peer.
    pub worker: Option<u8>,
}

impl PeerActivity {
    /// Bits a second, both ways together.
    pub fn rate(&self) -> f64 {
        self.rx_bits_per_second + self.tx_bits_per_second
    }

    /// The name, else the key.
    pub fn title(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.public_key)
    }
}

impl Look {
    /// Looks at the running tunnel `interface`.
    ///
    /// # Errors
    ///
    /// Where it does not run or answer, or is another implementation.
    pub fn at(interface: &str) -> Result<Look, Failure> {
        let measured = Measured::of(interface)?;
        let (at, wall) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        Look::of(measured, at, wall).ok_or_else(|| {
            Failure::new(format!(
                "{interface} is served by another implementation than ringtun, which tells no more than `ringtun show`"
            ))
        })
    }

    /// What was measured at a time, which is `wall` since the Unix epoch. `None` where another implementation was, which reports no
    /// counters.
    pub fn of(measured: Measured, at: Instant, wall: Duration) -> Option<Look> {
        let Measured { name, status, device, names } = measured.without_secrets();
        Some(Look { at, wall, interface: name, status: status?, device, names })
    }

    /// The counters.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// What was done since `before`.
    pub fn since(&self, before: &Look) -> TunnelActivity {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let old: HashMap<_, _> = before
            .device
            .peers
            .iter()
            .map(|peer| (peer.public_key, (peer.rx_bytes, peer.tx_bytes)))
            .collect();
        let standings = Standings::of(Some(&self.status));
        // A counter that fell is a new peer's of the same key.
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 * 8.0 / seconds;
        let peers: Vec<PeerActivity> = self
            .device
            .peers
            .iter()
            .map(|peer| {
                let public_key = peer.public_key.to_base64();
                let &(rx, tx) = old.get(&peer.public_key).unwrap_or(&(peer.rx_bytes, peer.tx_bytes));
                let age =
                    (!peer.last_handshake.is_zero()).then(|| self.wall.saturating_sub(peer.last_handshake));
                PeerActivity {
                    name: self.names.get(&public_key).cloned(),
                    endpoint: peer.endpoint.map(|endpoint| endpoint.to_string()),
                    state: standings.standing(&public_key, peer, self.wall),
                    handshake_seconds: age.map(|age| age.as_secs()),
                    rx_bits_per_second: rate(peer.rx_bytes, rx),
                    tx_bits_per_second: rate(peer.tx_bytes, tx),
                    rx_bytes: peer.rx_bytes,
                    tx_bytes: peer.tx_bytes,
                    worker: standings.worker(&public_key),
                    public_key,
                }
            })
            .collect();
        TunnelActivity {
            interface: self.interface.clone(),
            up: self.status.up,
            listen_port: self.device.listen_port,
            io: self.status.io.clone(),
            seconds,
            rx_bits_per_second: peers.iter().map(|peer| peer.rx_bits_per_second).sum(),
            tx_bits_per_second: peers.iter().map(|peer| peer.tx_bits_per_second).sum(),
            connected: peers.iter().filter(|peer| peer.state == PeerStanding::Connected).count(),
            workers: (0..self.status.workers.len()).map(|id| self.worker(before, id, seconds)).collect(),
            peers,
        }
    }

    fn worker(&self, before: &Look, id: usize, seconds: f64) -> WorkerActivity {
        let (now, then) = (self.status.workers.get(id), before.status.workers.get(id));
        let moved = |name: &str| {
            let of = |counters: Option<&Counters>| counters.and_then(|of| of.get(name)).copied().unwrap_or(0);
            of(now).saturating_sub(of(then)) as f64
        };
        let share = |part: f64, rest: f64| (part + rest > 0.0).then(|| part / (part + rest));
        let turns = |look: &Look| {
            let packets = look.status.histograms.get(id).and_then(|of| of.get("turn_packets"));
            packets.map_or((0, 0), |counts| (counts.buckets.iter().sum::<u64>(), counts.sum))
        };
        let ((count, sum), (count_before, sum_before)) = (turns(self), turns(before));
        let count = count.saturating_sub(count_before);
        WorkerActivity {
            busy: share(moved("io_awake_nanos"), moved("io_slept_nanos")).unwrap_or(0.0),
            packets_per_second: (moved("rx_packets") + moved("tx_packets")) / seconds,
            packets_per_turn: (count > 0).then(|| sum.saturating_sub(sum_before) as f64 / count as f64),
            misdirected: share(moved("misdirected_out"), moved("rx_owned")),
        }
    }
}

/// A rate as people read it: `1.23 Gb/s`.
pub fn rate_text(bits_per_second: f64) -> String {
    scaled(bits_per_second, "b/s")
}

/// A number with a decimal prefix and at most four digits: `12.3 k`.
pub fn scaled(mut value: f64, unit: &str) -> String {
    let mut prefixes = ["", "k", "M", "G", "T"].into_iter();
    let mut prefix = prefixes.next().unwrap_or_default();
    while value >= 999.5 {
        let Some(next) = prefixes.next() else { break };
        (value, prefix) = (value / 1000.0, next);
    }
    let digits = match value {
        _ if value >= 99.95 || prefix.is_empty() => 0,
        _ if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {prefix}{unit}").trim_end().to_owned()
}

/// A time as people read it, in one unit: `42 s`, `3 min`.
pub fn age_text(seconds: u64) -> String {
    match seconds {
        0..100 => format!("{seconds} s"),
        100..5940 => format!("{} min", seconds / 60),
        5940..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::crypto::x25519::PublicKey;
    use crate::dataplane::histograms::HistogramCounts;
    use crate::device::status::Owner;
    use crate::gateway::control::PeerState;

    /// A look at a tunnel with two workers and three peers, so many seconds after the first.
    pub(crate) fn look(first: Instant, after: u64) -> Look {
        let counters = |pairs: &[(&str, u64)]| -> Counters {
            pairs.iter().map(|(name, n)| ((*name).to_owned(), n * after)).collect()
        };
        let worker = counters(&[
            ("io_awake_nanos", 3),
            ("io_slept_nanos", 1),
            ("rx_packets", 900),
            ("tx_packets", 100),
            ("rx_owned", 95),
            ("misdirected_out", 5),
        ]);
        let turns = HistogramCounts { first: 1, buckets: vec![50 * after, 50 * after], sum: 1000 * after };
        let peer = |n: u8, handshake, bytes: u64| PeerState {
            last_handshake: Duration::from_secs(handshake),
            rx_bytes: bytes * after,
            tx_bytes: 2 * bytes * after,
            endpoint: Some(([192, 0, 2, n], 51820).into()),
            ..PeerState::new(PublicKey([n; 32]))
        };
        Look {
            at: first + Duration::from_secs(after),
            wall: Duration::from_secs(10_000 + after),
            interface: "wg0".into(),
            status: Status {
                up: true,
                io: "io_uring".into(),
                workers: vec![worker, counters(&[("io_slept_nanos", 4)])],
                histograms: vec![[("turn_packets".to_owned(), turns)].into()],
                peers: vec![Owner {
                    public_key: PublicKey([2; 32]).to_base64(),
                    worker: 1,
                    connected_ms: Some(9_990_000),
                    endpoint: None,
                    memory: None,
                }],
                ..Status::default()
            },
            device: DeviceState {
                listen_port: 51820,
                peers: vec![peer(1, 0, 0), peer(2, 9990, 125_000_000), peer(3, 9000, 0)],
                ..DeviceState::default()
            },
            names: [(PublicKey([2; 32]).to_base64(), "anna's laptop".to_owned())].into(),
        }
    }

    #[test]
    fn rates_and_shares_are_those_of_the_time_between() {
        let first = Instant::now();
        let activity = look(first, 4).since(&look(first, 2));
        assert_eq!((activity.seconds, activity.connected), (2.0, 1));
        assert_eq!((activity.rx_bits_per_second, activity.tx_bits_per_second), (1e9, 2e9));
        let [busy, idle] = activity.workers[..] else { panic!("{activity:?}") };
        assert_eq!((busy.busy, busy.packets_per_second), (0.75, 1000.0));
        assert_eq!((busy.packets_per_turn, busy.misdirected), (Some(10.0), Some(0.05)));
        assert_eq!((idle.busy, idle.packets_per_turn, idle.misdirected), (0.0, None, None));
        let states: Vec<PeerStanding> = activity.peers.iter().map(|peer| peer.state).collect();
        assert_eq!(states, [PeerStanding::Never, PeerStanding::Connected, PeerStanding::Silent]);
        assert_eq!(activity.peers[1].title(), "anna's laptop");
    }

    #[test]
    fn a_peer_that_came_or_was_made_anew_has_no_rate_yet() {
        let first = Instant::now();
        let mut before = look(first, 2);
        before.device.peers.clear();
        assert_eq!(look(first, 4).since(&before).rx_bits_per_second, 0.0);
        let fell = look(first, 1).since(&look(first, 2));
        assert_eq!(fell.tx_bits_per_second, 0.0);
    }

    #[test]
    fn amounts_have_at_most_four_digits() {
        let texts = [0.0, 999.0, 999.6, 1234.0, 99_960.0, 1.5e9, 3e15].map(rate_text);
        assert_eq!(
            texts,
            ["0 b/s", "999 b/s", "1.00 kb/s", "1.23 kb/s", "100 kb/s", "1.50 Gb/s", "3000 Tb/s"]
        );
        assert_eq!(scaled(12_345.0, ""), "12.3 k");
        assert_eq!([99, 100, 7200, 200_000].map(age_text), ["99 s", "1 min", "2 h", "2 d"]);
    }
}
