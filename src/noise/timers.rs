//! The timers of the paper's section 6 and the kernel's `timers.c`, as a pure state machine a peer.
//!
//! Workers leave time stamps in atomics (see `dataplane::PeerShared`) instead of arming timers; the slow path hands them in
//! as [`Activity`] and asks what is due. So a data packet costs a store, not a timer.
//!
//! | kernel timer | armed by | disarmed by | due |
//! | --- | --- | --- | --- |
//! | `retransmit_handshake` | [`Timers::initiation_sent`] | [`Timers::handshake_complete`] | initiate, give up |
//! | `send_keepalive` | `unacknowledged_since` | its going away | keepalive |
//! | `new_handshake` | `unanswered_since` | its going away | initiate |
//! | `zero_key_material` | [`Timers::session_derived`], giving up | – | zero keys |
//! | `persistent_keepalive` | `last_authenticated` | interval 0 | keepalive |

use crate::crypto::random::Entropy;
use crate::noise::{KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT};
use crate::time::Instant;
use std::time::Duration;

/// Retries counted before giving up is due at the next (kernel MAX_TIMER_HANDSHAKES: 90 s / 5 s = 18).
const MAX_ATTEMPTS: u32 = (REKEY_ATTEMPT_TIME.as_secs() / REKEY_TIMEOUT.as_secs()) as u32;
/// Upper end of what is added to handshake timers, so that two peers do not go on colliding.
const MAX_JITTER: Duration = Duration::from_millis(333);
/// Age of the last session at which all keys are zeroed.
const ZERO_KEYS_AFTER: Duration = Duration::from_secs(3 * REJECT_AFTER_TIME.as_secs());
/// Within this time a keepalive that was asked for has left, and with it its own stamp in `last_authenticated`.
const KEEPALIVE_DISPATCH: Duration = Duration::from_secs(1);

/// What the workers saw, `None` for never.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Activity {
    /// First data packet sent since the last authenticated packet was received.
    pub unanswered_since: Option<Instant>,
    /// First data packet received since the last authenticated packet (of any kind) was sent.
    pub unacknowledged_since: Option<Instant>,
    /// Last data packet received.
    pub last_data_received: Option<Instant>,
    /// Last authenticated packet of any kind, sent or received (handshakes, keepalives, data).
    pub last_authenticated: Option<Instant>,
}

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Send a keepalive (passive or persistent).
    Keepalive,
    /// Send an initiation: a new handshake, or a retry of the one under way.
    Initiate,
    /// 90 s without an answer: drop staged packets, stop retrying.
    GiveUp,
    /// Three times REJECT_AFTER_TIME after the last session: zero all keys of the peer.
    ZeroKeys,
}

/// One peer's timers. New ones are running.
#[derive(Default, Debug)]
pub struct Timers {
    stopped: bool,
    /// Stamps before this are of an earlier life of the interface.
    running_since: Instant,
    retry: Option<Instant>,
    attempts: u32,
    last_initiation: Option<Instant>,
    silence: Silence,
    /// The `unacknowledged_since` that a keepalive was already due for.
    acknowledged: Option<Instant>,
    /// When a keepalive was due that further data had come before: another follows it.
    another: Option<Instant>,
    zero_keys: Option<Instant>,
    persistent: Persistent,
}

/// New handshake after data went unanswered.
#[derive(Clone, Copy, Default, Debug)]
struct Silence {
    /// The `unanswered_since` this was armed for.
    stamp: Option<Instant>,
    /// `None`: it ran out.
    due: Option<Instant>,
    /// The stamp that ran out last, for [`Timers::take_handled`].
    handled: Option<Instant>,
}

#[derive(Default, Debug)]
struct Persistent {
    /// Seconds; 0: off.
    interval: u16,
    /// Just switched on, or the interface just came up: one is due at once.
    at_once: bool,
    /// The last time any keepalive was due.
    last: Option<Instant>,
}

impl Timers {
    /// Sets the persistent keepalive in seconds; 0: off. Switching it on makes one due at once (kernel `set_peer`).
    pub fn set_persistent_keepalive(&mut self, seconds: u16) {
        self.persistent.at_once = seconds > 0 && (self.persistent.at_once || self.persistent.interval == 0);
        self.persistent.interval = seconds;
    }

    /// The persistent keepalive in seconds.
    pub fn persistent_keepalive(&self) -> u16 {
        self.persistent.interval
    }

    /// Something asks for a handshake (data without a session, rekey, persistent keepalive). True: send an initiation now.
    /// False: one is under way, or went out less than REKEY_TIMEOUT ago. A user's request resets the attempts.
    pub fn want_handshake(&mut self, now: Instant) -> bool {
        self.resume(now);
        self.attempts = 0;
        self.retry.is_none() && self.last_initiation.is_none_or(|last| now.since(last) >= REKEY_TIMEOUT)
    }

    /// An initiation was sent: arms the retry with jitter. To be called also when sending failed (no endpoint, no
    /// route), or nothing tries again.
    pub fn initiation_sent(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        self.resume(now);
        self.last_initiation = Some(now);
        self.retry = Some(now + REKEY_TIMEOUT + jitter(entropy));
    }

    /// A handshake finished, in either role: arms the zeroing. The retry of an own initiation goes on until
    /// [`Self::handshake_complete`]: the session that we answered may never be confirmed.
    pub fn session_derived(&mut self, now: Instant) {
        self.resume(now);
        self.zero_keys = Some(now + ZERO_KEYS_AFTER);
    }

    /// When the last handshake completed (response consumed, or session confirmed): clears the retry.
    pub fn handshake_complete(&mut self, now: Instant) {
        self.resume(now);
        self.retry = None;
        self.attempts = 0;
    }

    /// Interface down or peer removed: everything disarmed, and stamps left so far are forgotten. Only the persistent
    /// keepalive's interval stays. [`Self::start`] or any call that reports activity makes the timers run again.
    pub fn stop(&mut self) {
        let interval = self.persistent.interval;
        *self = Timers {
            stopped: true,
            persistent: Persistent { interval, ..Default::default() },
            ..Default::default()
        };
    }

    /// Interface up: a persistent keepalive is due at once (kernel `wg_open`). Nothing where the timers run already.
    pub fn start(&mut self, now: Instant) {
        self.resume(now);
    }

    /// Interface up again with a peer that was spoken to: as [`Self::start`], and an initiation is due at once.
    pub fn start_with_handshake(&mut self, now: Instant) {
        self.resume(now);
        self.retry.get_or_insert(now);
    }

    /// What is due now; call until `None`. An action is returned once.
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

    /// The `unanswered_since` whose timer ran out in [`Self::poll`], once. The caller forgets that stamp where the workers keep
    /// it, so that the next data sent arms the timer again: attempts go on for as long as data goes unanswered.
    pub fn take_handled(&mut self) -> Option<Instant> {
        self.silence.handled.take()
    }

    /// When to poll next at the latest; `None`: only after new activity.
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

    /// `activity` without what the interface's earlier life left.
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

    /// Kernel `wg_expired_retransmit_handshake`.
    fn poll_retry(&mut self, now: Instant, activity: &Activity) -> Option<Due> {
        self.retry.take_if(|due| *due <= now)?;
        if self.attempts <= MAX_ATTEMPTS {
            self.attempts += 1;
            return Some(Due::Initiate);
        }
        // No keepalive is worth sending, and what is left of a partial exchange goes in time.
        (self.acknowledged, self.another) = (activity.unacknowledged_since, None);
        self.zero_keys.get_or_insert(now + ZERO_KEYS_AFTER);
        Some(Due::GiveUp)
    }

    /// Kernel `wg_expired_new_handshake`, armed here for a stamp seen for the first time.
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

    /// Kernel `wg_expired_send_keepalive` and `wg_expired_send_persistent_keepalive`: one keepalive serves both.
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

    /// Traffic after the keepalive itself makes another needless: what we sent acknowledges, and what we received
    /// left a stamp of its own.
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

/// Uniform below [`MAX_JITTER`].
fn jitter(entropy: &mut dyn Entropy) -> Duration {
    let nanos = (MAX_JITTER.as_nanos() as u64 * u64::from(entropy.next_u32())) >> 32;
    Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests;
