//! A peer's timers as plain data, for another process in which they go on.

use super::{Persistent, Silence, Timers};
use crate::time::{Instant, Offset};
use serde::{Deserialize, Serialize};

/// One peer's timers. Each time is told from the moment of the record on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimersRecord {
    stopped: bool,
    running_since: Offset,
    retry: Option<Offset>,
    attempts: u32,
    last_initiation: Option<Offset>,
    /// The stamp for which the silence was armed, when it runs out, and the stamp for which it ran out last.
    silence: [Option<Offset>; 3],
    acknowledged: Option<Offset>,
    another: Option<Offset>,
    zero_keys: Option<Offset>,
    keepalive_seconds: u16,
    keepalive_at_once: bool,
    last_keepalive: Option<Offset>,
}

impl Timers {
    /// The timers as plain data, at `now`.
    pub fn record(&self, now: Instant) -> TimersRecord {
        let of = |instant: Option<Instant>| instant.map(|instant| Offset::of(instant, now));
        let Silence { stamp, due, handled } = self.silence;
        TimersRecord {
            stopped: self.stopped,
            running_since: Offset::of(self.running_since, now),
            retry: of(self.retry),
            attempts: self.attempts,
            last_initiation: of(self.last_initiation),
            silence: [stamp, due, handled].map(of),
            acknowledged: of(self.acknowledged),
            another: of(self.another),
            zero_keys: of(self.zero_keys),
            keepalive_seconds: self.persistent.interval,
            keepalive_at_once: self.persistent.at_once,
            last_keepalive: of(self.persistent.last),
        }
    }

    /// The timers of which a record was made at `then`.
    pub fn restore(record: &TimersRecord, then: Instant) -> Timers {
        let from = |offset: Option<Offset>| offset.map(|offset| offset.from(then));
        let [stamp, due, handled] = record.silence.map(from);
        Timers {
            stopped: record.stopped,
            running_since: record.running_since.from(then),
            retry: from(record.retry),
            attempts: record.attempts,
            last_initiation: from(record.last_initiation),
            silence: Silence { stamp, due, handled },
            acknowledged: from(record.acknowledged),
            another: from(record.another),
            zero_keys: from(record.zero_keys),
            persistent: Persistent {
                interval: record.keepalive_seconds,
                at_once: record.keepalive_at_once,
                last: from(record.last_keepalive),
            },
        }
    }
}
