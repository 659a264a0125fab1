//! Devices in Prometheus' text exposition format, version 0.0.4, or in that of OpenMetrics 1.0. `promtool check metrics` finds nothing to say about it: every
//! metric has its help and type, in that order, units are base units, and only counters end in `_total`.

use super::Measured;
use crate::dataplane::histograms::HistogramCounts;
use crate::dataplane::stats::WorkerStats;
use crate::device::DeviceStats;
use crate::device::status::Status;
use crate::gateway::control::{LimitState, PeerState};
use crate::gateway::standing::{PeerStanding, Standings};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// A form of text for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TextFormat {
    /// Prometheus' own, version 0.0.4.
    Classic,
    /// OpenMetrics 1.0: a counter's family has no `_total` in its name, and the text has an end.
    Open,
}

/// What kind of metric a sample is of.
#[derive(Clone, Copy)]
enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// The samples by metric, since all samples of a metric must stand together after its type.
#[derive(Default)]
struct Samples(BTreeMap<String, (MetricKind, String, String)>);

impl Samples {
    fn add(&mut self, metric: &str, kind: MetricKind, help: &str, labels: &[(&str, &str)], value: &str) {
        let labels = written(labels);
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.of(metric, kind, help), "{metric}{{{labels}}} {value}");
    }

    /// Adds a histogram, whose values are `unit` of the metric's unit each.
    fn add_histogram(
        &mut self,
        metric: &str,
        help: &str,
        labels: &[(&str, &str)],
        counts: &HistogramCounts,
        unit: f64,
    ) {
        let labels = written(labels);
        let text = self.of(metric, MetricKind::Histogram, help);
        let (mut bound, mut sum) = (counts.first as f64 * unit, 0u64);
        for (at, count) in counts.buckets.iter().enumerate() {
            sum = sum.wrapping_add(*count);
            let le = if at + 1 == counts.buckets.len() { "+Inf".to_owned() } else { bound.to_string() };
            let _ = writeln!(text, "{metric}_bucket{{{labels},le=\"{le}\"}} {sum}");
            bound *= 2.0;
        }
        let _ = writeln!(text, "{metric}_sum{{{labels}}} {}", counts.sum as f64 * unit);
        let _ = writeln!(text, "{metric}_count{{{labels}}} {sum}");
    }

    /// The samples of a metric, to be added to.
    fn of(&mut self, metric: &str, kind: MetricKind, help: &str) -> &mut String {
        let (.., samples) =
            self.0.entry(metric.to_owned()).or_insert_with(|| (kind, plain(help), String::new()));
        samples
    }
}

fn written(labels: &[(&str, &str)]) -> String {
    let labels = labels.iter().map(|(name, text)| format!("{name}=\"{}\"", escaped(text)));
    labels.collect::<Vec<_>>().join(",")
}

/// A label's value, with backslashes, quotes and newlines escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A doc comment as a line of text.
fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace(['[', ']', '`', '\\'], "")
}

/// All devices. The metrics of peers have the names and labels that the usual exporter gives them.
pub fn prometheus(devices: &[Measured], wall: Duration, format: TextFormat) -> String {
    let mut samples = Samples::default();
    for measured in devices {
        let name = measured.name.as_str();
        let standings = Standings::of(measured.status.as_ref());
        for peer in &measured.device.peers {
            let key = peer.public_key.to_base64();
            let friendly = measured.names.get(&key).map_or("", String::as_str);
            let allowed: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
            let labels = [
                ("interface", name),
                ("public_key", key.as_str()),
                ("allowed_ips", &allowed.join(",")),
                ("friendly_name", friendly),
            ];
            add_peer(&mut samples, &labels, peer, standings.standing(&key, peer, wall));
        }
        if let Some(status) = &measured.status {
            add_device(&mut samples, name, status);
        }
    }
    let mut text = String::new();
    for (metric, (kind, help, samples)) in samples.0 {
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let family = match format {
            TextFormat::Open => metric.strip_suffix("_total").unwrap_or(&metric),
            TextFormat::Classic => &metric,
        };
        let _ = write!(text, "# HELP {family} {help}\n# TYPE {family} {kind}\n{samples}");
    }
    if format == TextFormat::Open {
        text.push_str("# EOF\n");
    }
    text
}

fn add_peer(samples: &mut Samples, labels: &[(&str, &str)], peer: &PeerState, standing: PeerStanding) {
    let PeerState { rx_bytes, tx_bytes, last_handshake, .. } = peer;
    let mut add = |metric, kind, help, value: u64| {
        samples.add(metric, kind, help, labels, &value.to_string());
    };
    add(
        "wireguard_received_bytes_total",
        MetricKind::Counter,
        "Bytes received from the peer in authenticated messages.",
        *rx_bytes,
    );
    add("wireguard_sent_bytes_total", MetricKind::Counter, "Bytes sent to the peer.", *tx_bytes);
    add(
        "wireguard_latest_handshake_seconds",
        MetricKind::Gauge,
        "Time of the last handshake since the Unix epoch. 0 is never.",
        last_handshake.as_secs(),
    );
    add(
        "wireguard_peer_connected",
        MetricKind::Gauge,
        "Whether there is a session with the peer that both ends have.",
        (standing == PeerStanding::Connected).into(),
    );
    add_limits(samples, labels, &peer.limits);
}

/// What the peer is limited to, where it is.
fn add_limits(samples: &mut Samples, labels: &[(&str, &str)], limits: &LimitState) {
    let settings = limits.settings;
    let mut add = |metric, kind, help, way: &str, value: u64| {
        let way = Some(("direction", way)).filter(|(_, way)| !way.is_empty());
        let labels: Vec<(&str, &str)> = labels.iter().copied().chain(way).collect();
        samples.add(metric, kind, help, &labels, &value.to_string());
    };
    let ways = [("in", settings.inbound, limits.limited.0), ("out", settings.outbound, limits.limited.1)];
    for (way, rate, limited) in ways.into_iter().filter(|_| !settings.is_none()) {
        let help = "Rate to which the peer is limited, in bits a second.";
        if let Some(rate) = rate {
            add("ringtun_peer_limit_bits_per_second", MetricKind::Gauge, help, way, rate.bits_per_second);
        }
        let help = "Packets of the peer that were dropped, its rate or quota being used up.";
        add("ringtun_peer_limited_packets_total", MetricKind::Counter, help, way, limited);
    }
    if let Some((quota, so_far)) = settings.quota.zip(limits.quota) {
        let help = "Quota of the peer, both ways together.";
        add("ringtun_peer_quota_bytes", MetricKind::Gauge, help, "", quota.bytes);
        let help = "Bytes of the peer's quota that are used.";
        add("ringtun_peer_quota_used_bytes", MetricKind::Gauge, help, "", so_far.used);
        let help = "Time at which the peer's quota begins anew, since the Unix epoch.";
        add("ringtun_peer_quota_ends_seconds", MetricKind::Gauge, help, "", so_far.ends);
    }
}

/// Whether a counter's name may be part of a metric's. Another version may have any counters, but not any names.
fn is_name(counter: &str) -> bool {
    counter.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn add_device(samples: &mut Samples, name: &str, status: &Status) {
    let interface = ("interface", name);
    let labels = [interface, ("version", status.version.as_str()), ("io", status.io.as_str())];
    samples.add(
        "ringtun_build_info",
        MetricKind::Gauge,
        "The program that serves the interface.",
        &labels,
        "1",
    );
    let mut state = |metric, help, is_so: bool| {
        samples.add(metric, MetricKind::Gauge, help, &[interface], if is_so { "1" } else { "0" });
    };
    state("ringtun_up", "Whether the interface is up and its sockets are bound.", status.up);
    state("ringtun_tun_steered", "Whether eBPF chooses the TUN queue of a packet.", status.tun_steering);
    let udp = status.udp_steering.unwrap_or(false);
    state("ringtun_udp_steered", "Whether BPF chooses the socket of a datagram.", udp);
    samples.add(
        "ringtun_refused_system_calls_total",
        MetricKind::Counter,
        "System calls of the program that its own filter refused.",
        &[interface],
        &status.refused_calls.to_string(),
    );
    for (counter, value) in status.handshakes.iter().filter(|(counter, _)| is_name(counter)) {
        // What may fall again has a name that says so. All other counters only rise.
        let (suffix, kind) =
            if counter.ends_with("_now") { ("", MetricKind::Gauge) } else { ("_total", MetricKind::Counter) };
        let help = DeviceStats::describe(counter).unwrap_or("A counter of another version.");
        let metric = format!("ringtun_slow_path_{counter}{suffix}");
        samples.add(&metric, kind, help, &[interface], &value.to_string());
    }
    for (queue, waiting) in &status.slow_waiting {
        let help = "Entries that wait for the slow path, by queue.";
        let labels = [interface, ("queue", queue.as_str())];
        samples.add("ringtun_slow_path_waiting", MetricKind::Gauge, help, &labels, &waiting.to_string());
    }
    add_turns(samples, name, status);
    for (id, worker) in status.workers.iter().enumerate() {
        let id = id.to_string();
        for (counter, value) in worker.iter().filter(|(counter, _)| is_name(counter)) {
            let help = WorkerStats::describe(counter).unwrap_or("A counter of another version.");
            let (counter, value) = match counter.strip_suffix("_nanos") {
                Some(counter) => (format!("{counter}_seconds"), format!("{}", *value as f64 / 1e9)),
                None => (counter.clone(), value.to_string()),
            };
            let metric = format!("ringtun_worker_{counter}_total");
            samples.add(&metric, MetricKind::Counter, help, &[interface, ("worker", &id)], &value);
        }
    }
}

/// What waits for each worker, and what its turns are like.
fn add_turns(samples: &mut Samples, name: &str, status: &Status) {
    let interface = ("interface", name);
    for (id, queues) in status.waiting.iter().enumerate() {
        for (queue, waiting) in queues {
            let labels = [interface, ("worker", &id.to_string()), ("queue", queue.as_str())];
            let help = "Entries that wait for the worker, by queue.";
            samples.add("ringtun_worker_waiting", MetricKind::Gauge, help, &labels, &waiting.to_string());
        }
    }
    for (id, histograms) in status.histograms.iter().enumerate() {
        let id = id.to_string();
        let labels = [interface, ("worker", id.as_str())];
        if let Some(packets) = histograms.get("turn_packets") {
            let help = "Packets that a turn of the worker moved, both ways together.";
            samples.add_histogram("ringtun_worker_turn_packets", help, &labels, packets, 1.0);
        }
        if let Some(nanos) = histograms.get("turn_nanos") {
            let help = "Time that a turn of the worker took in which it moved packets.";
            samples.add_histogram("ringtun_worker_turn_seconds", help, &labels, nanos, 1e-9);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::measured;
    use super::*;
    use crate::device::status::Owner;
    use std::collections::HashSet;

    #[test]
    fn buckets_are_cumulative_and_in_base_units() {
        let mut samples = Samples::default();
        let counts = HistogramCounts { first: 1024, buckets: vec![2, 1, 4], sum: 9000 };
        samples.add_histogram("turn_seconds", "Time.", &[("worker", "0")], &counts, 1e-9);
        let (_, _, text) = &samples.0["turn_seconds"];
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(
            lines[1].starts_with("turn_seconds_bucket{worker=\"0\",le=\"0.000002048")
                && lines[1].ends_with(" 3")
        );
        assert_eq!(lines[2], "turn_seconds_bucket{worker=\"0\",le=\"+Inf\"} 7");
        assert!(lines[3].starts_with("turn_seconds_sum{worker=\"0\"} 0.000009"), "{text}");
        assert_eq!(lines[4], "turn_seconds_count{worker=\"0\"} 7");
    }

    #[test]
    fn what_is_so_now_is_a_gauge_and_what_ever_happened_a_counter() {
        let text = prometheus(&[measured("wg0")], Duration::ZERO, TextFormat::Classic);
        for metric in ["peers_spread_total counter", "peers_spread_now gauge"] {
            assert!(text.contains(&format!("# TYPE ringtun_slow_path_{metric}\n")), "{metric}: {text}");
        }
    }

    #[test]
    fn samples_of_one_metric_stand_together_after_its_help_and_type() {
        let text = prometheus(&[measured("wg0"), measured("w\"1")], Duration::ZERO, TextFormat::Classic);
        let from = text.find("# HELP ringtun_worker_rx_owned_total ").unwrap();
        let block: Vec<&str> = text[from..].lines().take(6).collect();
        assert_eq!(
            block,
            [
                "# HELP ringtun_worker_rx_owned_total Data messages that arrived at the worker that owns them.",
                "# TYPE ringtun_worker_rx_owned_total counter",
                "ringtun_worker_rx_owned_total{interface=\"wg0\",worker=\"0\"} 60",
                "ringtun_worker_rx_owned_total{interface=\"wg0\",worker=\"1\"} 30",
                "ringtun_worker_rx_owned_total{interface=\"w\\\"1\",worker=\"0\"} 60",
                "ringtun_worker_rx_owned_total{interface=\"w\\\"1\",worker=\"1\"} 30",
            ]
        );
    }

    #[test]
    fn peers_have_their_names_and_prefixes_and_whether_they_are_connected() {
        let mut one = measured("wg0");
        let key = one.device.peers[0].public_key.to_base64();
        one.names.insert(key.clone(), "anna's laptop".into());
        one.device.peers[0].allowed_ips =
            ["10.0.0.2/32", "fd00::2/128"].map(|text| text.parse().unwrap()).into();
        let labels = format!(
            "{{interface=\"wg0\",public_key=\"{key}\",allowed_ips=\"10.0.0.2/32,fd00::2/128\",friendly_name=\"anna's laptop\"}}"
        );
        for (connected_ms, connected) in [(Some(7), 1), (None, 0)] {
            let owner =
                Owner { public_key: key.clone(), worker: 0, connected_ms, endpoint: None, memory: None };
            one.status.as_mut().unwrap().peers = vec![owner];
            let text = prometheus(std::slice::from_ref(&one), Duration::ZERO, TextFormat::Classic);
            assert!(text.contains(&format!("\nwireguard_received_bytes_total{labels} 5\n")), "{text}");
            assert!(text.contains(&format!("\nwireguard_peer_connected{labels} {connected}\n")), "{text}");
        }
    }

    #[test]
    fn a_counter_whose_name_is_none_for_a_metric_is_left_out() {
        let mut odd = measured("wg0");
        odd.status.as_mut().unwrap().handshakes.insert("fl\now".into(), 1);
        odd.status.as_mut().unwrap().workers[0].insert("x{y".into(), 1);
        let text = prometheus(&[odd], Duration::ZERO, TextFormat::Classic);
        assert!(text.lines().all(|line| line.starts_with('#') || line.contains('{')), "{text}");
        assert!(!text.contains("x{y"), "{text}");
    }

    /// What `promtool check metrics` looks at, for every counter that there is.
    #[test]
    fn every_metric_has_its_help_and_type_and_a_name_that_says_what_it_is() {
        let named =
            |names: Vec<(&str, u64)>| names.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
        let mut all = measured("wg0");
        let status = all.status.as_mut().unwrap();
        status.workers = vec![named(WorkerStats::default().snapshot())];
        status.handshakes = named(DeviceStats::default().snapshot());
        let text = prometheus(&[all], Duration::ZERO, TextFormat::Classic);
        let mut seen = HashSet::new();
        let mut lines = text.lines().peekable();
        while let Some(help) = lines.next() {
            let (metric, help) = help.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
            assert!(help.ends_with('.') && !help.contains(['[', '`']), "{metric}: {help}");
            assert!(seen.insert(metric.to_owned()), "{metric} twice");
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {metric} ")).unwrap();
            assert_eq!(kind == "counter", metric.ends_with("_total"), "{metric} is a {kind}");
            assert!(!metric.contains("nanos"), "{metric}: seconds are the base unit");
            while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
                assert!(sample.starts_with(&format!("{metric}{{")), "{sample}");
                assert!(sample.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(), "{sample}");
            }
        }
    }
}
