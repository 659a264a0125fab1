//! The counters of running devices, as a table and in Prometheus' text form.

mod overview;
mod prometheus;

pub use overview::{drop_reasons, overview};
pub use prometheus::{TextFormat, prometheus};

use crate::device::status::{Counters, Status};
use crate::gateway::control::DeviceState;
use crate::gateway::{Failure, client};
use crate::tunnel::plural::counted;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

/// A running device with its counters.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The interface's name.
    pub name: String,
    /// The device's counters. `None` where it is another implementation, which does not report them.
    pub status: Option<Status>,
    /// The device's configuration and its peers.
    pub device: DeviceState,
    /// The names of peers, by public key in base64.
    pub names: HashMap<String, String>,
}

impl Measured {
    /// Asks a running device for everything, its secrets among it.
    ///
    /// # Errors
    ///
    /// Where the device does not run or does not answer.
    pub fn of(name: &str) -> Result<Measured, Failure> {
        Ok(Measured {
            status: client::status(name)?,
            device: client::get(name)?,
            names: client::peer_names(name),
            name: name.to_owned(),
        })
    }

    /// Asks a running device for its counters alone.
    ///
    /// # Errors
    ///
    /// As for [`Self::of`].
    pub fn counters_of(name: &str) -> Result<Measured, Failure> {
        let status = client::status(name)?;
        Ok(Measured { status, device: DeviceState::default(), names: HashMap::new(), name: name.to_owned() })
    }

    /// The same without the private key and the preshared keys.
    pub fn without_secrets(mut self) -> Measured {
        self.device.private_key = None;
        self.device.peers.iter_mut().for_each(|peer| peer.preshared_key = None);
        self
    }
}

/// The shares that are printed first: a text, the counter that is the part, and the counters that make up the whole.
const SHARES: [(&str, &str, &[&str]); 4] = [
    (
        "data that arrived on its owner's core",
        "rx_owned",
        &["rx_owned", "misdirected_out", "misdirected_dropped"],
    ),
    ("data handed to its owner", "misdirected_out", &["rx_owned", "misdirected_out", "misdirected_dropped"]),
    (
        "data dropped, its owner's mailbox being full",
        "misdirected_dropped",
        &["rx_owned", "misdirected_out", "misdirected_dropped"],
    ),
    ("frames read from their owner's TUN queue", "tx_frames_own", &["tx_frames_own", "tx_frames_other"]),
];

/// The table of one device's counters. Counters that are zero everywhere are left out.
pub fn table(measured: &Measured) -> String {
    let mut text = format!("interface: {}\n", measured.name);
    let Some(status) = &measured.status else {
        text.push_str("  another implementation than ringtun, which tells no more than `ringtun show`\n");
        return text;
    };
    let steered = |by: Option<bool>| match by {
        None => "not bound",
        Some(true) => "by BPF",
        Some(false) => "by the kernel's hash",
    };
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(text, "  program: ringtun {}, process {}, {}", status.version, status.pid, status.io);
    let _ = writeln!(
        text,
        "  steering: TUN {}, UDP {}",
        steered(Some(status.tun_steering)),
        steered(status.udp_steering)
    );
    if let Some(unbound) = &status.unbound {
        let _ = writeln!(text, "  listening port: {unbound}");
    }
    if status.refused_calls > 0 {
        let _ = writeln!(text, "  refused system calls: {}, see the log", status.refused_calls);
    }
    let _ =
        writeln!(text, "  peers: {}, on {}\n", status.peers.len(), counted(status.workers.len(), "worker"));
    for (what, part, whole) in SHARES {
        let sum = |names: &[&str]| total(status.workers.iter(), names);
        let (part, whole) = (sum(&[part]), sum(whole));
        let share =
            if whole == 0 { "-".to_owned() } else { format!("{:.2} %", part as f64 * 100.0 / whole as f64) };
        let _ = writeln!(text, "  {what:<46} {part:>14} {share:>10}");
    }
    text.push('\n');
    put_workers(&mut text, &status.workers);
    text.push_str("\n  slow path\n");
    for (name, value) in status.handshakes.iter().filter(|(_, value)| **value > 0) {
        let _ = writeln!(text, "    {name:<22} {value:>14}");
    }
    text
}

/// The sum of these counters. What a device counted may be anything, and more than all numbers is the largest.
fn total<'a>(workers: impl Iterator<Item = &'a Counters>, names: &[&str]) -> u64 {
    let values = workers.flat_map(|worker| names.iter().filter_map(|name| worker.get(*name)));
    values.fold(0, |sum, value| sum.saturating_add(*value))
}

fn put_workers(text: &mut String, workers: &[Counters]) {
    let names: BTreeSet<&String> = workers.iter().flat_map(|worker| worker.keys()).collect();
    let _ = write!(text, "  {:<24} {:>14}", "worker", "all");
    let row = |values: &mut dyn Iterator<Item = u64>| {
        values.map(|value| format!(" {value:>14}")).collect::<String>()
    };
    let _ = writeln!(text, "{}", row(&mut (0..workers.len() as u64)));
    for name in names {
        let values: Vec<u64> = workers.iter().map(|worker| worker.get(name).copied().unwrap_or(0)).collect();
        let sum = values.iter().fold(0u64, |sum, value| sum.saturating_add(*value));
        if sum > 0 {
            let _ = writeln!(text, "    {name:<22} {sum:>14}{}", row(&mut values.into_iter()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::x25519::PublicKey;
    use crate::device::status::Unbound;
    use crate::gateway::control::PeerState;

    pub(super) fn measured(name: &str) -> Measured {
        let worker = |owned, misdirected| {
            let counters = [("rx_owned", owned), ("misdirected_out", misdirected), ("rx_replayed", 0)];
            counters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
        };
        let slow = [("peers_spread", 3), ("peers_spread_now", 1)];
        let handshakes = slow.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let workers = vec![worker(60, 10), worker(30, 0)];
        let status = Status { workers, handshakes, up: true, ..Status::default() };
        let peer = PeerState { rx_bytes: 5, ..PeerState::new(PublicKey([1; 32])) };
        let device = DeviceState { peers: vec![peer], ..DeviceState::default() };
        Measured { name: name.to_owned(), status: Some(status), device, names: HashMap::new() }
    }

    #[test]
    fn the_table_gives_shares_of_the_whole_and_leaves_out_what_never_happened() {
        let text = table(&measured("wg0"));
        let line = text.lines().find(|line| line.contains("owner's core")).unwrap();
        assert!(line.ends_with("90    90.00 %"), "{line}");
        assert!(
            text.lines().any(|line| line.split_whitespace().eq(["rx_owned", "90", "60", "30"])),
            "{text}"
        );
        assert!(!text.contains("rx_replayed"), "{text}");
        assert!(table(&Measured { status: None, ..measured("wg0") }).contains("another implementation"));
    }

    #[test]
    fn a_port_that_is_waited_for_is_told_with_the_reason() {
        let mut waiting = measured("wg0");
        let unbound = Some(Unbound { port: 7, error: "in use".into() });
        waiting.status = waiting.status.map(|status| Status { unbound, ..status });
        assert!(table(&waiting).contains("listening port: none: UDP port 7: in use"), "{}", table(&waiting));
        assert!(!table(&measured("wg0")).contains("listening port"));
    }
}
