//! TCP by iperf3, where that is installed: a generator that others know, whose figures can be compared with theirs.

use super::super::child::LabChild;
use super::super::lab::{FAR, NEAR, Way};
use super::super::report::BenchFigures;
use super::tcp::Streams;
use super::{costs, pause};
use crate::gateway::Failure;
use crate::gateway::interrupt::Interrupt;
use crate::gateway::up::find_program;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The port of its server, which is alone in its namespace.
const PORT: u16 = 5201;
/// How long its server may take to listen, and its client to end after its time.
const GRACE: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The path of iperf3. `None` where it is not installed.
pub(in crate::gateway::bench) fn find() -> Option<PathBuf> {
    find_program("iperf3")
}

/// Measures the payload that arrives, and says which version did.
pub(in crate::gateway::bench) fn run(
    program: &Path,
    way: &Way<'_>,
    streams: Streams,
    length: Duration,
    interrupt: &Interrupt,
) -> Result<(BenchFigures, String), Failure> {
    let mut server = Command::new(program);
    server.args(["-s", "-1", "-4", "-p", &PORT.to_string()]);
    let mut server = way.start(FAR, server)?;
    await_listening(way, &mut server, interrupt)?;
    let mut client = Command::new(program);
    client.args(["-J", "-i", "0", "-p", &PORT.to_string(), "-c", &way.addresses[FAR].to_string()]);
    client.args(["-t", &length.as_secs().max(1).to_string(), "-P", &streams.count.to_string()]);
    if streams.from_far {
        client.arg("-R");
    }
    let cpu = || way.cpu_seconds().map_err(Failure::of("cannot count"));
    let (begun, before) = (Instant::now(), cpu()?);
    let mut client = way.start(NEAR, client)?;
    while client.ended().is_none() {
        if begun.elapsed() > length + GRACE {
            return Err(Failure::new(format!("iperf3 does not end: {}", server.complaint())));
        }
        pause(LOOK_INTERVAL, interrupt)?;
    }
    let (cpu_seconds, elapsed) = (cpu()? - before, begun.elapsed().as_secs_f64());
    let measured = Measurement::parse(&client.output())?;
    let mut figures = costs(way, cpu_seconds, elapsed);
    figures.gbps = Some(measured.gbps);
    figures.cores_per_gbps = figures.cores.map(|_| cpu_seconds / measured.gigabits);
    Ok((figures, measured.version))
}

/// Waits until the server listens. To connect would be its only client.
fn await_listening(way: &Way<'_>, server: &mut LabChild, interrupt: &Interrupt) -> Result<(), Failure> {
    let until = Instant::now() + GRACE;
    loop {
        let sockets = way.at(FAR, || std::fs::read_to_string("/proc/thread-self/net/tcp"));
        if listens(&sockets.map_err(Failure::of("cannot read /proc/thread-self/net/tcp"))?, PORT) {
            return Ok(());
        }
        if server.ended().is_some() || Instant::now() > until {
            let said = [server.complaint(), server.output().trim().to_owned()].join(" ");
            return Err(Failure::new(format!(
                "iperf3's server does not listen: {said}; --no-iperf3 does without it"
            )));
        }
        pause(LOOK_INTERVAL, interrupt)?;
    }
}

/// Whether a socket listens on a port, by the text of `/proc/net/tcp`: its second and fourth column (kernel: `tcp4_seq_show`).
fn listens(text: &str, port: u16) -> bool {
    let is_it = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        local.is_some_and(|local| local.ends_with(&format!(":{port:04X}"))) && state == Some("0A")
    };
    text.lines().any(is_it)
}

/// What its client reported.
#[derive(Debug, PartialEq)]
struct Measurement {
    version: String,
    gbps: f64,
    gigabits: f64,
}

/// The part of its JSON that is read.
#[derive(Deserialize)]
struct ClientOutput {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    start: Option<ClientStart>,
    #[serde(default)]
    end: Option<ClientEnd>,
}

#[derive(Deserialize)]
struct ClientStart {
    version: String,
}

#[derive(Deserialize)]
struct ClientEnd {
    sum_received: Option<ClientSum>,
}

#[derive(Deserialize)]
struct ClientSum {
    bytes: f64,
    bits_per_second: f64,
}

impl Measurement {
    fn parse(output: &str) -> Result<Measurement, Failure> {
        let parsed: ClientOutput = serde_json::from_str(output)
            .map_err(Failure::of("iperf3 printed no JSON (--no-iperf3 does without it)"))?;
        if let Some(error) = parsed.error {
            return Err(Failure::new(format!("iperf3: {error}; --no-iperf3 does without it")));
        }
        let sum = parsed.end.and_then(|end| end.sum_received).filter(|sum| sum.bytes > 0.0);
        let sum = sum.ok_or_else(|| Failure::new("iperf3 received nothing; --no-iperf3 does without it"))?;
        let version =
            parsed.start.map(|start| start.version.trim().to_owned()).unwrap_or_else(|| "iperf3".into());
        Ok(Measurement { version, gbps: sum.bits_per_second / 1e9, gigabits: sum.bytes * 8.0 / 1e9 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_listened_on_only_in_that_state() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
            0: 00000000:1451 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
            1: 0100007F:1452 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0\n";
        assert!(listens(text, 5201));
        assert!(!listens(text, 5202) && !listens(text, 40_000) && !listens("", 5201));
    }

    #[test]
    fn iperf3s_figures_are_those_of_the_receiver_and_its_errors_are_told() {
        let output = r#"{"start":{"version":"iperf 3.18"},"intervals":[],"end":{"streams":[],
            "sum_sent":{"bytes":9,"bits_per_second":9},"sum_received":{"start":0,"bytes":250000000,"bits_per_second":2e9}}}"#;
        let expected = Measurement { version: "iperf 3.18".into(), gbps: 2.0, gigabits: 2.0 };
        assert_eq!(Measurement::parse(output).unwrap(), expected);
        let said = |output| Measurement::parse(output).unwrap_err().to_string();
        assert!(
            said(r#"{"start":{"version":"iperf 3.18"},"error":"unable to connect"}"#)
                .contains("unable to connect")
        );
        assert!(said(r#"{"end":{}}"#).contains("received nothing"));
        assert!(said("iperf3: error").contains("no JSON"));
    }
}
