//! Why a peer does not connect, or why packets do not pass although it is connected.
//!
//! ```text
//!   gather ── Facts ──> causes (pure) ──> Diagnosis ──> text, JSON
//! ```

mod diagnosis;
mod facts;
mod gather;
pub mod nat;
mod observe;
mod probe;

pub use diagnosis::{Cause, causes};
pub use facts::Facts;
pub use gather::{Asked, gather};

use crate::device::facts::PeerFacts;
use crate::gateway::live::age_text;
use serde::Serialize;
use std::fmt::Write;

/// A diagnosis, with what it is made of.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// Whether the peer is connected.
    pub connected: bool,
    /// What was tried, and what came back, in words.
    pub tried: Vec<String>,
    /// What stands in the way, the most certain first.
    pub causes: Vec<Cause>,
    /// All that is known.
    pub facts: Facts,
}

impl Diagnosis {
    /// Makes the diagnosis that follows from facts.
    pub fn of(facts: Facts) -> Diagnosis {
        let peer = facts.device.peer.as_ref();
        Diagnosis {
            connected: peer.is_some_and(|peer| peer.connected_ms.is_some()),
            tried: peer.map(|peer| tried(facts.device.now_ms, peer)).unwrap_or_default(),
            causes: causes(&facts),
            facts,
        }
    }

    /// The diagnosis as lines for people.
    pub fn text(&self) -> String {
        let Facts { interface, key, name, device, .. } = &self.facts;
        let who = name.as_ref().map_or_else(|| key.clone(), |name| format!("{name} ({key})"));
        let state = match device.peer.as_ref().and_then(|peer| peer.connected_ms) {
            Some(since) => format!("connected, since {}", span(device.now_ms, since)),
            None => "not connected".to_owned(),
        };
        let mut text = format!("{who} on {interface}: {state}\n");
        // Writing to a string cannot fail, here and below.
        for line in &self.tried {
            let _ = writeln!(text, "{:<8} {line}", "");
        }
        for (at, cause) in self.causes.iter().enumerate() {
            let word = match (at, cause.certain) {
                (0, true) => "cause",
                (0, false) => "likely",
                _ => "or",
            };
            let _ = writeln!(text, "{word:<8} {}", cause.found);
            let _ = writeln!(text, "{:<8} -> {}", "", cause.remedy);
        }
        text
    }
}

/// How long ago `then` was, both in milliseconds since the Unix epoch.
fn span(now_ms: u64, then_ms: u64) -> String {
    age_text(now_ms.saturating_sub(then_ms) / 1000)
}

/// What was tried with a peer, and what came back.
fn tried(now_ms: u64, peer: &PeerFacts) -> Vec<String> {
    let (history, ago) = (&peer.history, |then_ms| format!("{} ago", span(now_ms, then_ms)));
    let mut lines = Vec::new();
    lines.push(match (peer.endpoint, peer.last_handshake_ms) {
        (Some(endpoint), Some(at)) => format!("at {endpoint}; last handshake {}", ago(at)),
        (Some(endpoint), None) => format!("at {endpoint}; no handshake yet"),
        (None, _) => "no endpoint is known".to_owned(),
    });
    if let Some(end) = history.disconnected {
        lines.push(format!("disconnected {}: {}", ago(end.at_ms), end.why));
    }
    if let Some(sent) = history.sent {
        let count = history.unanswered;
        let plural = if count == 1 { "initiation" } else { "initiations" };
        lines.push(format!("{count} {plural} sent, the last to {} {}", sent.address, ago(sent.at_ms)));
    }
    if let Some(at) = history.cookie_asked_ms {
        lines.push(format!("it asked for a cookie {}", ago(at)));
    }
    if let Some(at) = history.given_up_ms {
        lines.push(format!("given up {}, until there is something to send", ago(at)));
    }
    if let Some(refused) = history.refused_response {
        lines.push(format!("its response from {} was refused {}", refused.from, ago(refused.at_ms)));
    }
    if let Some(answered) = history.answered {
        let count = history.unused_answers;
        lines.push(format!(
            "its initiation from {} was answered {}, and the session not used ({count} in a row)",
            answered.address,
            ago(answered.at_ms)
        ));
    }
    if let Some(refused) = history.refused_initiation {
        lines.push(format!("its initiation from {} was refused {}", refused.from, ago(refused.at_ms)));
    }
    lines.push(format!("{} bytes received, {} sent", peer.rx_bytes, peer.tx_bytes));
    lines
}
