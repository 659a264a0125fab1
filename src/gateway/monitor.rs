//! The events of running devices, as they happen, for people and for programs.

use super::{Failure, client};
use crate::device::events::{EventKind, EventReport};
use crate::device::uapi::{EBUSY, EINVAL};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;

/// Shortest time between two readings of the file for the name of a peer that it had not.
const NAMES_PAUSE: Duration = Duration::from_secs(5);
/// How long a device may take to accept a follower.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The events of one device from now on.
#[derive(Debug)]
pub struct EventStream {
    interface: String,
    lines: Lines<BufReader<UnixStream>>,
    /// The report that another process has the device, until this follows that one.
    moving: Option<EventReport>,
}

impl EventStream {
    /// Follows the device called `interface`.
    ///
    /// # Errors
    ///
    /// Where it does not run, may not be asked, or has no such events to tell.
    pub async fn open(interface: &str) -> Result<EventStream, Failure> {
        let control = client::open(interface)?;
        let begin = async {
            let mut stream = UnixStream::connect(control.path()).await?;
            stream.write_all(b"monitor=1\n\n").await?;
            let mut lines = BufReader::new(stream).lines();
            let answer = lines.next_line().await?.unwrap_or_default();
            match answer.strip_prefix("errno=").and_then(|number| number.parse().ok()) {
                Some(0) => Ok(lines),
                Some(number) => Err(Error::from_raw_os_error(i32::saturating_abs(number))),
                None => Err(Error::from_raw_os_error(EINVAL)),
            }
        };
        let begun = tokio::time::timeout(ANSWER_TIMEOUT, begin).await;
        match begun.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
            Ok(lines) => Ok(EventStream { interface: interface.to_owned(), lines, moving: None }),
            Err(error) if error.raw_os_error() == Some(EINVAL) => Err(Failure::new(format!(
                "{interface} tells no events: it is another implementation, or was started by an earlier version of ringtun"
            ))),
            Err(error) if error.raw_os_error() == Some(EBUSY) => Err(Failure::new(format!(
                "{interface} is followed by as many as it tells events: end one of them"
            ))),
            Err(error) => Err(Failure::of(interface)(error)),
        }
    }

    /// The device's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Waits for the next event. `None` where the device is gone. An event of a later version of the program, which this one does
    /// not know, is left out. Where another process goes on with the device, that one is followed once this is reported: what happened
    /// in between was told to nobody.
    pub async fn next(&mut self) -> Option<EventReport> {
        loop {
            // A caller may give up waiting in between, and come back.
            if self.moving.is_some() {
                if let Ok(next) = EventStream::open(&self.interface).await {
                    self.lines = next.lines;
                }
                return self.moving.take();
            }
            // A connection that fails is one to a device that ended.
            let line = self.lines.next_line().await.ok()??;
            let report = line.strip_prefix("event=").map(serde_json::from_str::<EventReport>);
            match report {
                Some(Ok(report)) if matches!(report.kind, EventKind::HandedOver { .. }) => {
                    self.moving = Some(report);
                }
                Some(Ok(report)) => return Some(report),
                _ => {}
            }
        }
    }
}

/// The names of a device's peers, as its file has them.
#[derive(Debug)]
pub struct PeerNames {
    interface: String,
    names: HashMap<String, String>,
    read: Instant,
}

impl PeerNames {
    /// The names that the file of `interface` has now.
    pub fn read(interface: &str) -> PeerNames {
        let names = client::peer_names(interface);
        PeerNames { interface: interface.to_owned(), names, read: Instant::now() }
    }

    /// The name of the peer with this key in Base64. For a key that it has not the file is read again, now and then.
    pub fn of(&mut self, key: &str) -> Option<&str> {
        if !self.names.contains_key(key) && self.read.elapsed() >= NAMES_PAUSE {
            *self = PeerNames::read(&self.interface);
        }
        self.names.get(key).map(String::as_str)
    }
}

/// The event as a line for people.
pub fn text(interface: &str, name: Option<&str>, report: &EventReport) -> String {
    let peer = match (name, &report.peer) {
        (Some(name), _) => format!(" {name}:"),
        (None, Some(key)) => format!(" {key}:"),
        (None, None) => String::new(),
    };
    format!("{} {interface}{peer} {}\n", utc(report.time_ms), report.kind)
}

/// The event as a line of JSON.
pub fn json(interface: &str, name: Option<&str>, report: &EventReport) -> String {
    let mut line = Map::new();
    line.insert("time".into(), utc(report.time_ms).into());
    line.insert("interface".into(), interface.into());
    line.extend(name.map(|name| ("name".into(), name.into())));
    // A report is an object, whose words these are in any case.
    if let Ok(Value::Object(rest)) = serde_json::to_value(report) {
        line.extend(rest.into_iter().filter(|(key, _)| key != "time_ms"));
    }
    line.insert("text".into(), report.kind.to_string().into());
    format!("{}\n", Value::Object(line))
}

/// A time in milliseconds since the Unix epoch as RFC 3339 has it, in UTC. One beyond the year 9999 is that year's last.
pub fn utc(millis: u64) -> String {
    const LAST: u64 = 253_402_300_799_999;
    let time = UNIX_EPOCH + Duration::from_millis(millis.min(LAST));
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::events::RefusalReason;

    #[test]
    fn times_are_written_as_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(seconds * 1000), text);
        }
        assert_eq!(utc(1_767_225_599_042), "2025-12-31T23:59:59.042Z");
        assert_eq!(utc(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_line_names_time_tunnel_and_peer() {
        let from = "192.0.2.1:51820".parse().unwrap();
        let kind =
            EventKind::InitiationRefused { from, why: RefusalReason::Replayed, key: None, left_out: 0 };
        let report = EventReport { time_ms: 0, peer: Some("KEY=".into()), kind };
        let line = text("wg0", Some("laptop"), &report);
        assert!(
            line.starts_with(
                "1970-01-01T00:00:00.000Z wg0 laptop: initiation from 192.0.2.1:51820 refused: "
            )
        );
        assert!(text("wg0", None, &report).contains(" wg0 KEY=: initiation"));
        let line = json("wg0", Some("laptop"), &report);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        for (key, expected) in [
            ("time", "1970-01-01T00:00:00.000Z"),
            ("interface", "wg0"),
            ("name", "laptop"),
            ("peer", "KEY="),
            ("event", "initiation_refused"),
            ("from", "192.0.2.1:51820"),
            ("why", "replayed"),
        ] {
            assert_eq!(value[key], expected, "{line}");
        }
        let up = EventReport { time_ms: 0, peer: None, kind: EventKind::Up { port: 7 } };
        assert_eq!(
            text("wg0", None, &up),
            "1970-01-01T00:00:00.000Z wg0 the interface is up, at UDP port 7\n"
        );
    }
}
