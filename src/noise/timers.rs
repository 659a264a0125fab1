//! The timers of the paper's section 6 and the kernel's `timers.c`, as a pure state machine a peer.
//!
//! Workers leave time stamps in atomics (see `dataplane::PeerShared`) instead of arming timers. The slow path hands
//! them in as [`Activity`] and asks what is due. So a data packet costs a store, not a timer.
//!
//! | kernel timer | armed by | disarmed by | due |
//! | --- | --- | --- | --- |
//! | `retransmit_handshake` | [`Timers::initiation_sent`] | [`Timers::handshake_complete`] | initiate, give up |
//! | `send_keepalive` | `unacknowledged_since` | its going away | keepalive |
//! | `new_handshake` | `unanswered_since` | its going away | initiate |
//! | `zero_key_material` | [`Timers::session_derived`], giving up | – | zero keys |
//! | `persistent_keepalive` | `last_authenticated` | interval 0 | keepalive |

mod record;

pub use record::TimersRecord;

use crate::crypto::random::Entropy;
use crate::noise::{KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT};
use crate::time::Instant;
use std::time::Duration;

/// Retries counted before giving up is due at the next (kernel MAX_TIMER_HANDSHAKES: 90 s / 5 s = 18).
const MAX_ATTEMPTS: u32 = (REKEY_ATTEMPT_TIME.as_secs() / REKEY_TIMEOUT.as_secs()) as u32;
/// Upper end of the random time that is added to handshake timers, so that two peers do not go on colliding.
const MAX_JITTER: Duration = Duration::from_millis(333);
/// Age of the last session at which all keys are zeroed.
const ZERO_KEYS_AFTER: Duration = Duration::from_secs(3 * REJECT_AFTER_TIME.as_secs());
/// Time within which a keepalive that was asked for has left, and has set a `last_authenticated` stamp of its own.
const KEEPALIVE_DISPATCH: Duration = Duration::from_secs(1);

/// What the workers saw of a peer. A stamp is `None` where it never happened.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Activity {
    /// When the first data packet was sent since the last authenticated packet was received.
    pub unanswered_since: Option<Instant>,
    /// When the first data packet was received since the last authenticated packet (of any kind) was sent.
    pub unacknowledged_since: Option<Instant>,
    /// When the last data packet was received.
    pub last_data_received: Option<Instant>,
    /// When the last authenticated packet of any kind was sent or received: handshake, keepalive or data.
    pub last_authenticated: Option<Instant>,
}

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// A keepalive is to be sent, passive or persistent.
    Keepalive,
    /// An initiation is to be sent: of a new handshake, or as a retry of the one under way.
    Initiate,
    /// 90 s passed without an answer: staged packets are to be dropped, and retrying ends.
    GiveUp,
    /// Three times REJECT_AFTER_TIME passed since the last session: all keys of the peer are to be zeroed.
    ZeroKeys,
}

/// One peer's timers. They are running when new.
#[derive(Default, Debug)]
pub struct Timers {
    stopped: bool,
    /// When the interface came up. Earlier stamps are of an earlier life of the interface.
    running_since: Instant,
    retry: Option<Instant>,
    attempts: u32,
    last_initiation: Option<Instant>,
    silence: Silence,
    /// The `unacknowledged_since` for which a keepalive was already due.
    acknowledged: Option<Instant>,
    /// When a keepalive was due before which further data had been received. Another keepalive follows it.
    another: Option<Instant>,
    zero_keys: Option<Instant>,
    persistent: Persistent,
}

/// The timer that wants a new handshake after data went unanswered.
#[derive(Clone, Copy, Default, Debug)]
struct Silence {
    /// The `unanswered_since` for which it was armed.
    stamp: Option<Instant>,
    /// When it runs out; `None` where it did.
    due: Option<Instant>,
    /// The stamp for which it ran out last, for [`Timers::take_handled`].
    handled: Option<Instant>,
}

#[derive(Default, Debug)]
struct Persistent {
    /// The interval in seconds; 0 where it is off.
    interval: u16,
    /// Whether one is due at once, since it was just switched on, or the interface just came up.
    at_once: bool,
    /// The last time at which any keepalive was due.
    last: Option<Instant>,
}

impl Timers {
    /// Sets the interval of the persistent keepalive in seconds; 0 switches it off. Switching it on makes one due at
    /// once (kernel `set_peer`).
    pub fn set_persistent_keepalive(&mut self, seconds: u16) {
        self.persistent.at_once = seconds > 0 && (self.persistent.at_once || self.persistent.interval == 0);
        self.persistent.interval = seconds;
    }

    /// The interval of the persistent keepalive in seconds; 0 where it is off.
    pub fn persistent_keepalive(&self) -> u16 {
        self.persistent.interval
    }

    /// Asks for a handshake: there is data without a session, a rekey is due, or the user or a persistent keepalive
    /// wants one. True where an initiation is to be sent now. False where one is under way, or went out less than
    /// REKEY_TIMEOUT ago. Resets the number of attempts.
    pub fn want_handshake(&mut self, now: Instant) -> bool {
        self.resume(now);
        self.attempts = 0;
        self.retry.is_none() && self.last_initiation.is_none_or(|last| now.since(last) >= REKEY_TIMEOUT)
    }

    /// Notes that an initiation was sent, and arms the retry with jitter. To be called also where sending failed for
    /// want of an endpoint or a route, or nothing would try again.
    pub fn initiation_sent(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        self.resume(now);
        self.last_initiation = Some(now);
        self.retry = Some(now + REKEY_TIMEOUT + jitter(entropy));
    }

    /// Notes that a handshake finished, in either role, and arms the zeroing of keys. The retry of an own initiation
    /// goes on until [`Self::handshake_complete`], since the session that we answered may never be confirmed.
    pub fn session_derived(&mut self, now: Instant) {
        self.resume(now);
        self.zero_keys = Some(now + ZERO_KEYS_AFTER);
    }

    /// Notes that the last handshake completed: its response was consumed, or its session confirmed. Disarms the
    /// retry.
    pub fn handshake_complete(&mut self, now: Instant) {
        self.resume(now);
        self.retry = None;
        self.attempts = 0;
    }

    /// Disarms everything and forgets all stamps left so far, as the interface went down or the peer was removed.
    /// Only the interval of the persistent keepalive stays. [`Self::start`] or any call that reports activity makes
    /// the timers run again.
    pub fn stop(&mut self) {
        let interval = self.persistent.interval;
        *self = Timers {
            stopped: true,
            persistent: Persistent { interval, ..Default::default() },
            ..Default::default()
        };
    }

    /// Makes the timers run, as the interface came up: a persistent keepalive is due at once (kernel `wg_open`). Does
    /// nothing where they run already.
    pub fn start(&mut self, now: Instant) {
        self.resume(now);
    }

    /// Does what [`Self::start`] does for a peer that was spoken to before: an initiation is due at once, too.
    pub fn start_with_handshake(&mut self, now: Instant) {
        self.resume(now);
        self.retry.get_or_insert(now);
    }

    /// What is due now. To be called until it returns `None`; each action is returned once.
    pub fn poll(&mut self, now: Instant, activity: &Activity, entropy: &mut dyn Entropy) -> Option<Due> {
        if self.stopped {
            return None;
        }
        let activity = &self.current(activity);
        let due = self
            .poll_zero_keys(now)
            .or_else(|| self.poll_retry(now, activity))
            .or_else(|| self.poll_silence(now, activity, entropy))
            .or_else(|| self.poll_keepalive(now, activity));
        if due == Some(Due::Initiate) {
            // Counts as sent at once, so that one poll does not yield two.
            self.last_initiation = Some(now);
        }
        due
    }

    /// The `unanswered_since` whose timer ran out in [`Self::poll`], returned once. The caller clears that stamp
    /// where the workers keep it, so that the next data sent arms the timer again. So attempts go on for as long as
    /// data goes unanswered.
    pub fn take_handled(&mut self) -> Option<Instant> {
        self.silence.handled.take()
    }

    /// When to call [`Self::poll`] next at the latest. `None`: only after new activity.
    pub fn next(&self, activity: &Activity) -> Option<Instant> {
        if self.stopped {
            return None;
        }
        let activity = &self.current(activity);
        let keepalive =
            [self.passive_due(activity), self.another_due(activity), self.persistent_due(activity)];
        [self.zero_keys, self.retry, self.silence_due(activity)].into_iter().chain(keepalive).flatten().min()
    }

    fn resume(&mut self, now: Instant) {
        if self.stopped {
            self.stopped = false;
            self.running_since = now;
            self.persistent.at_once = self.persistent.interval > 0;
        }
    }

    /// `activity` without the stamps of an earlier life of the interface.
    fn current(&self, activity: &Activity) -> Activity {
        let current = |stamp: Option<Instant>| stamp.filter(|stamp| *stamp >= self.running_since);
        Activity {
            unanswered_since: current(activity.unanswered_since),
            unacknowledged_since: current(activity.unacknowledged_since),
            last_data_received: current(activity.last_data_received),
            last_authenticated: current(activity.last_authenticated),
        }
    }

    fn poll_zero_keys(&mut self, now: Instant) -> Option<Due> {
        self.zero_keys.take_if(|due| *due <= now).map(|_| Due::ZeroKeys)
    }

    /// What is due by the retry timer (kernel `wg_expired_retransmit_handshake`).
    fn poll_retry(&mut self, now: Instant, activity: &Activity) -> Option<Due> {
        self.retry.take_if(|due| *due <= now)?;
        if self.attempts <= MAX_ATTEMPTS {
            self.attempts += 1;
            return Some(Due::Initiate);
        }
        // A keepalive is not worth sending, and what is left of a partial exchange goes in time.
        (self.acknowledged, self.another) = (activity.unacknowledged_since, None);
        self.zero_keys.get_or_insert(now + ZERO_KEYS_AFTER);
        Some(Due::GiveUp)
    }

    /// What is due as data went unanswered (kernel `wg_expired_new_handshake`). The timer is armed here for a stamp
    /// that is seen for the first time.
    fn poll_silence(&mut self, now: Instant, activity: &Activity, entropy: &mut dyn Entropy) -> Option<Due> {
        let stamp = activity.unanswered_since;
        if self.silence.stamp != stamp {
            let due = stamp.map(|stamp| stamp + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + jitter(entropy));
            self.silence = Silence { stamp, due, ..self.silence };
        }
        self.silence.due.take_if(|due| *due <= now)?;
        self.silence.handled = stamp;
        self.want_handshake(now).then_some(Due::Initiate)
    }

    fn silence_due(&self, activity: &Activity) -> Option<Instant> {
        match activity.unanswered_since {
            stamp if stamp == self.silence.stamp => self.silence.due,
            // Not armed yet: the jitter is drawn when it is polled.
            stamp => stamp.map(|stamp| stamp + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT),
        }
    }

    /// What is due by the keepalive timers (kernel `wg_expired_send_keepalive` and
    /// `wg_expired_send_persistent_keepalive`). One keepalive serves both.
    fn poll_keepalive(&mut self, now: Instant, activity: &Activity) -> Option<Due> {
        let passive = self.passive_due(activity).filter(|due| *due <= now);
        let another = self.another_due(activity).filter(|due| *due <= now);
        let persistent = self.persistent_due(activity).filter(|due| *due <= now);
        let due = passive.or(another).or(persistent)?;
        if passive.or(another).is_some() {
            let armed = due - KEEPALIVE_TIMEOUT;
            self.another = activity.last_data_received.filter(|last| *last > armed).map(|_| now);
            self.acknowledged = activity.unacknowledged_since;
        }
        self.persistent.at_once = false;
        self.persistent.last = Some(now);
        Some(Due::Keepalive)
    }

    fn passive_due(&self, activity: &Activity) -> Option<Instant> {
        let stamp = activity.unacknowledged_since.filter(|stamp| self.acknowledged != Some(*stamp))?;
        Some(stamp + KEEPALIVE_TIMEOUT)
    }

    /// When another keepalive is due after one before which further data had been received. Traffic after the
    /// keepalive makes it needless: what was sent acknowledges the data, and what was received left a stamp of its
    /// own.
    fn another_due(&self, activity: &Activity) -> Option<Instant> {
        let sent = self.another?;
        let traffic = activity.last_authenticated.is_some_and(|last| last > sent + KEEPALIVE_DISPATCH);
        (!traffic).then_some(sent + KEEPALIVE_TIMEOUT)
    }

    fn persistent_due(&self, activity: &Activity) -> Option<Instant> {
        match (self.persistent.interval, self.persistent.at_once) {
            (0, _) => None,
            (_, true) => Some(self.running_since),
            (seconds, false) => {
                let last = activity.last_authenticated.max(self.persistent.last)?;
                Some(last + Duration::from_secs(seconds.into()))
            }
        }
    }
}

/// A random duration, uniform below [`MAX_JITTER`].
fn jitter(entropy: &mut dyn Entropy) -> Duration {
    let nanos = (MAX_JITTER.as_nanos() as u64 * u64::from(entropy.next_u32())) >> 32;
    Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests;
