//! How a tunnel does, for people: rates, shares and units, and only what is not zero.

use crate::dataplane::stats::WorkerStats;
use crate::device::DeviceStats;
use crate::device::status::{Counters, Status};
use crate::gateway::live::{TunnelActivity, WorkerActivity, rate_text, scaled};
use crate::gateway::show::{Align, Paint, amount, columns, wrapped};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What was dropped for one reason.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DropReason {
    /// The counter's name.
    pub counter: String,
    /// What it counts, in a sentence.
    pub reason: &'static str,
    /// How often that happened, on all workers.
    pub count: u64,
}

/// What was dropped since the start, the most frequent first.
pub fn drop_reasons(status: &Status) -> Vec<DropReason> {
    let mut sums: BTreeMap<&String, u64> = BTreeMap::new();
    for (counter, value) in status.workers.iter().flatten() {
        let sum = sums.entry(counter).or_default();
        *sum = sum.saturating_add(*value);
    }
    let of_workers = sums.iter().map(|(counter, count)| (*counter, WorkerStats::describe(counter), *count));
    let handshakes = status.handshakes.iter();
    let of_device = handshakes.map(|(counter, count)| (counter, DeviceStats::describe(counter), *count));
    let mut drops: Vec<DropReason> = of_workers
        .chain(of_device)
        .filter_map(|(counter, reason, count)| {
            let reason = reason.map(str::trim).filter(|reason| is_drop(reason) && count > 0)?;
            Some(DropReason { counter: counter.clone(), reason, count })
        })
        .collect();
    drops.sort_by(|one, other| other.count.cmp(&one.count).then(one.counter.cmp(&other.counter)));
    drops
}

/// Whether a counter's description is of something lost.
fn is_drop(description: &str) -> bool {
    ["dropped", "Dropped", " refused"].iter().any(|word| description.contains(word))
}

/// What the tunnel does, and what it did since its start.
pub fn overview(activity: &TunnelActivity, status: &Status, paint: Paint) -> String {
    let state = match (&status.unbound, activity.up) {
        (Some(unbound), _) => paint.red(&format!("listening port: {unbound}")),
        (None, true) => format!("{}, UDP port {}", paint.green("up"), activity.listen_port),
        (None, false) => paint.red("down"),
    };
    let mut text = format!("{}: {state}\n", activity.interface);
    let mut put = |what: &str, value: String| {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(text, "  {what:<12} {value}");
    };
    put("program", format!("ringtun {}, process {}, {}", status.version, status.pid, status.io));
    put("peers", format!("{} of {} connected", activity.connected, activity.peers.len()));
    let rates = (activity.rx_bits_per_second, activity.tx_bits_per_second);
    put("now", both(rates.0, rates.1, rate_text));
    let sum = |of: fn(&crate::gateway::live::PeerActivity) -> u64| activity.peers.iter().map(of).sum::<u64>();
    put(
        "in all",
        both(sum(|peer| peer.rx_bytes) as f64, sum(|peer| peer.tx_bytes) as f64, |n| amount(n as u64)),
    );
    let handshakes = handshakes(&status.handshakes);
    if !handshakes.is_empty() {
        put("handshakes", handshakes);
    }
    put("steering", steering(status));
    if status.refused_calls > 0 {
        put("refused", paint.red(&format!("{} system calls, see the log", status.refused_calls)));
    }
    text.push_str(&workers(&activity.workers));
    let drops = drop_reasons(status);
    if !drops.is_empty() {
        text.push_str("\n  dropped since the start\n");
        let rows: Vec<[String; 3]> = drops.iter().flat_map(drop_rows).collect();
        text.push_str(&columns([Align::Left, Align::Right, Align::Left], &rows));
    }
    text
}

/// The lines about one reason: how often, and the first sentence about it, without the full stop.
fn drop_rows(drops: &DropReason) -> Vec<[String; 3]> {
    const ROOM: usize = 66;
    let first = drops.reason.split(". ").next().unwrap_or_default().trim_end_matches('.');
    let mut count = scaled(drops.count as f64, "");
    wrapped(first, ROOM).into_iter().map(|line| [String::new(), std::mem::take(&mut count), line]).collect()
}

fn both(received: f64, sent: f64, written: impl Fn(f64) -> String) -> String {
    match (received > 0.0, sent > 0.0) {
        (false, false) => "nothing".to_owned(),
        _ => format!("{} received, {} sent", written(received), written(sent)),
    }
}

fn handshakes(counters: &Counters) -> String {
    let words = [
        ("initiations_sent", "begun here"),
        ("responses_accepted", "answered there"),
        ("initiations_accepted", "answered here"),
        ("given_up", "given up"),
    ];
    let told = words.iter().filter_map(|(counter, word)| {
        let count = counters.get(*counter).copied().filter(|&count| count > 0)?;
        Some(format!("{} {word}", scaled(count as f64, "")))
    });
    told.collect::<Vec<_>>().join(", ")
}

fn steering(status: &Status) -> String {
    let tun = if status.tun_steering { "TUN by eBPF" } else { "TUN by the kernel's hash" };
    let udp = match status.udp_steering {
        None => "UDP not bound",
        Some(true) => "UDP by BPF",
        Some(false) => "UDP by the kernel's hash",
    };
    format!("{tun}, {udp}")
}

/// A line for each worker that has something to do.
fn workers(workers: &[WorkerActivity]) -> String {
    let active = |(_, worker): &(usize, &WorkerActivity)| worker.packets_per_second > 0.0;
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let row = |(id, worker): (usize, &WorkerActivity)| {
        [
            format!("  {id}"),
            percent(worker.busy),
            scaled(worker.packets_per_second, ""),
            worker.packets_per_turn.map_or_else(|| "-".to_owned(), |packets| format!("{packets:.1}")),
            worker.misdirected.map_or_else(|| "-".to_owned(), percent),
        ]
    };
    let rows: Vec<[String; 5]> = workers.iter().enumerate().filter(active).map(row).collect();
    let idle = workers.len() - rows.len();
    let count = crate::tunnel::plural::counted(idle, "worker");
    match (rows.is_empty(), idle) {
        (true, _) => format!("  {:<12} {count}, idle\n", "workers"),
        (false, 0) => worker_table(rows),
        (false, _) => format!("{}  and {count}, idle\n", worker_table(rows)),
    }
}

fn worker_table(mut rows: Vec<[String; 5]>) -> String {
    rows.insert(0, ["  worker", "busy", "packets/s", "packets a turn", "misdirected"].map(str::to_owned));
    let aligns = [Align::Left, Align::Right, Align::Right, Align::Right, Align::Right];
    format!("\n{}", columns(aligns, &rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::live::tests::look;
    use std::time::Instant;

    const PLAIN: Paint = Paint { colours: false };

    fn told(change: impl FnOnce(&mut Status)) -> String {
        let first = Instant::now();
        let now = look(first, 4);
        let mut status = now.status().clone();
        change(&mut status);
        overview(&now.since(&look(first, 2)), &status, PLAIN)
    }

    #[test]
    fn people_are_told_rates_shares_and_units() {
        let text = told(|_| {});
        for line in [
            "wg0: up, UDP port 51820",
            "  peers        1 of 3 connected",
            "  now          1.00 Gb/s received, 2.00 Gb/s sent",
            "  in all       476.84 MiB received, 953.67 MiB sent",
            "  0       75 %     1.00 k            10.0          5 %",
            "  and 1 worker, idle",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
        assert!(!text.contains("dropped") && !text.contains("handshakes"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn what_was_dropped_is_told_in_words_the_most_frequent_first() {
        let text = told(|status| {
            for worker in &mut status.workers {
                worker.insert("rx_bad_source".into(), 3);
                worker.insert("rx_no_identity".into(), 0);
                worker.insert("refused_size".into(), 9);
            }
            status.handshakes =
                [("dropped_flood".to_owned(), 1234), ("initiations_sent".to_owned(), 2)].into();
        });
        let drops: Vec<&str> =
            text.lines().skip_while(|line| !line.contains("dropped since")).skip(1).collect();
        assert_eq!(drops.len(), 3, "{text}");
        assert_eq!(drops[0], "  1.23 k  Dropped: initiations of one peer too close to each other");
        assert!(drops[1].starts_with("       6  Inner packets dropped: the longest prefix"), "{text}");
        assert!(drops[2].starts_with("          "), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("  handshakes   2 begun here\n"), "{text}");
    }

    /// Whoever adds a counter decides by its words whether it is one of something lost.
    #[test]
    fn the_counters_of_losses_are_those_whose_words_say_so() {
        let drops = |name: &str| {
            let words = WorkerStats::describe(name).or(DeviceStats::describe(name));
            is_drop(words.unwrap_or_else(|| panic!("{name}")))
        };
        for name in [
            "tx_no_peer",
            "tx_looped",
            "rx_replayed",
            "io_udp_send_errors",
            "io_tun_write_errors",
            "dropped_unexpected",
        ] {
            assert!(drops(name), "{name}");
        }
        for name in [
            "tx_packets",
            "refused_size",
            "rx_assist_stalls",
            "icmp_limited",
            "initiations_sent",
            "io_offload_fallbacks",
        ] {
            assert!(!drops(name), "{name}");
        }
    }
}
