//! What a request is answered with.

use super::history::{ByteHistory, INTERVAL};
use super::is_own_host;
use super::report::{TunnelReport, TunnelReports};
use crate::gateway::metrics::{self, TextFormat};
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};

/// The page for people: one file, which asks for nothing but [`STATUS`].
const PAGE: &str = include_str!("page.html");
const STATUS: &str = "/status.json";
const TEXT: &str = "text/plain; charset=utf-8";

/// The parts of a request that matter.
#[derive(Clone, Debug, Default)]
pub(super) struct HttpRequest {
    pub(super) is_read: bool,
    pub(super) path: String,
    pub(super) query: String,
    /// The host that it names, where it came by TCP.
    pub(super) host: Option<String>,
    pub(super) accept: String,
}

/// An answer: status, media type, body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HttpAnswer {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) body: String,
}

impl HttpAnswer {
    fn of(status: u16, kind: &'static str, body: impl Into<String>) -> HttpAnswer {
        HttpAnswer { status, kind, body: body.into() }
    }

    /// The answer where none could be made.
    pub(super) fn broken() -> HttpAnswer {
        HttpAnswer::of(500, TEXT, "no answer could be made\n")
    }
}

pub(super) fn answer(request: &HttpRequest, reports: &TunnelReports, history: &ByteHistory) -> HttpAnswer {
    if request.host.as_deref().is_some_and(|host| !is_own_host(host)) {
        let why = "This listener answers to its address, not to a name. A proxy before it must set the header Host to the address.\n";
        return HttpAnswer::of(421, TEXT, why);
    }
    if !request.is_read {
        return HttpAnswer::of(405, TEXT, "This listener is read-only.\n");
    }
    let told = |make: &dyn Fn(&TunnelReport) -> HttpAnswer| match reports.get() {
        Ok(report) => make(&report),
        Err(failure) => HttpAnswer::of(503, TEXT, format!("{failure:#}\n")),
    };
    match request.path.as_str() {
        "/" => HttpAnswer::of(200, "text/html; charset=utf-8", PAGE),
        "/metrics" => told(&|report| metrics_of(report, &request.accept)),
        STATUS => told(&|report| {
            HttpAnswer::of(200, "application/json", status_of(report, history, wanted_peers(&request.query)))
        }),
        _ => HttpAnswer::of(404, TEXT, "There are /, /metrics and /status.json.\n"),
    }
}

fn metrics_of(report: &TunnelReport, accept: &str) -> HttpAnswer {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (format, kind) = match accept.contains("application/openmetrics-text") {
        true => (TextFormat::Open, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        false => (TextFormat::Classic, "text/plain; version=0.0.4; charset=utf-8"),
    };
    HttpAnswer::of(200, kind, metrics::prometheus(std::slice::from_ref(&report.measured), wall, format))
}

/// The number after `peers=` in a query; all where there is none.
fn wanted_peers(query: &str) -> usize {
    let value = query.split('&').find_map(|part| part.strip_prefix("peers="));
    value.and_then(|value| value.parse().ok()).unwrap_or(usize::MAX)
}

/// The state as JSON: what `status --json` and `show --json` tell, and the bytes of the last minutes. Of more peers than wanted come
/// those with the latest handshakes.
fn status_of(report: &TunnelReport, history: &ByteHistory, wanted: usize) -> String {
    let mut device = report.device.clone();
    let all = device.peers.len();
    if all > wanted {
        device.peers.sort_by_key(|peer| std::cmp::Reverse(peer.latest_handshake));
        device.peers.truncate(wanted);
    }
    let status = report.measured.status.as_ref().map(|status| {
        // Each peer has its owner.
        crate::device::status::Status { peers: Vec::new(), ..status.clone() }
    });
    json!({
        "interface": report.measured.name,
        "time_ms": report.time_ms,
        "status": status,
        "device": device,
        "peers": all,
        "drops": report.measured.status.as_ref().map(metrics::drop_reasons),
        "history": { "interval_ms": INTERVAL.as_millis() as u64, "samples": history.samples() },
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Failure;

    fn ask(path: &str, change: impl Fn(&mut HttpRequest)) -> HttpAnswer {
        let mut request = HttpRequest { is_read: true, path: path.into(), ..HttpRequest::default() };
        change(&mut request);
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        (request.path, request.query) = (path.to_owned(), query.to_owned());
        answer(&request, &TunnelReports::of(TunnelReport::example()), &ByteHistory::default())
    }

    fn plainly(path: &str) -> HttpAnswer {
        ask(path, |_| {})
    }

    #[test]
    fn each_page_has_its_kind_and_others_are_named() {
        assert!(plainly("/").body.starts_with("<!doctype html>"));
        let metrics = plainly("/metrics");
        assert!(
            metrics.kind.starts_with("text/plain; version=0.0.4")
                && metrics.body.contains("# TYPE wireguard_")
        );
        let missing = plainly("/nothing");
        assert_eq!(missing.status, 404);
        assert!(missing.body.contains("/metrics"));
    }

    #[test]
    fn open_metrics_are_given_to_who_asks() {
        let open =
            ask("/metrics", |request| request.accept = "application/openmetrics-text;version=1.0.0".into());
        assert!(open.kind.starts_with("application/openmetrics-text"));
        assert!(open.body.ends_with("# EOF\n"), "{}", open.body);
        assert!(
            open.body.contains("# TYPE wireguard_sent_bytes counter\nwireguard_sent_bytes_total{"),
            "{}",
            open.body
        );
    }

    #[test]
    fn no_key_but_public_ones_is_told() {
        let private = crate::crypto::x25519::PrivateKey::from_bytes([7; 32]).to_base64();
        let preshared = crate::crypto::x25519::SharedSecret([9; 32]).to_base64();
        for path in ["/", "/metrics", "/status.json"] {
            let body = plainly(path).body;
            assert!(!body.contains(&*private) && !body.contains(&*preshared), "{path}");
        }
        assert!(plainly("/status.json").body.contains("\"has_preshared_key\":true"));
    }

    #[test]
    fn of_many_peers_the_last_heard_come_first() {
        let told = |path: &str| serde_json::from_str::<serde_json::Value>(&plainly(path).body).unwrap();
        let few = told("/status.json?peers=1");
        assert_eq!(few["peers"], 2);
        let peers = few["device"]["peers"].as_array().unwrap();
        assert_eq!((peers.len(), &peers[0]["latest_handshake"]), (1, &serde_json::json!(90)));
        assert_eq!(told("/status.json")["device"]["peers"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn nothing_is_changed_and_no_name_is_served() {
        let written = ask("/", |request| request.is_read = false);
        assert_eq!(written.status, 405);
        let led_astray = ask("/", |request| request.host = Some("evil.example".into()));
        assert_eq!(led_astray.status, 421);
        assert_eq!(ask("/", |request| request.host = Some("127.0.0.1:80".into())).status, 200);
    }

    #[test]
    fn a_device_that_does_not_answer_is_told_with_the_reason() {
        let gone = TunnelReports::failing(|| Failure::new("no tunnel wg0 runs here"));
        let request = HttpRequest { is_read: true, path: "/metrics".into(), ..HttpRequest::default() };
        let answer = answer(&request, &gone, &ByteHistory::default());
        assert_eq!((answer.status, answer.body.as_str()), (503, "no tunnel wg0 runs here\n"));
    }
}
