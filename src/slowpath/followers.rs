//! Those who follow on the control socket what happens.
//!
//! Each follower has a bounded queue of lines. One that reads more slowly than they come loses some, and is told how many, as
//! soon as there is room again; nobody waits for it.

use crate::device::events::{DeviceEvent, EventKind, EventReport};
use crate::device::uapi::{self, EBUSY};
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use zeroize::Zeroizing;

/// Most followers at a time. They leave most of the control socket's connections to others.
const MAX_FOLLOWERS: usize = 16;
/// Most lines that wait for a follower: 1,024 × ~200 bytes.
pub(super) const WAITING_LINES: usize = 1024;

/// Those who follow.
#[derive(Default)]
pub(super) struct Followers {
    all: Vec<Follower>,
}

struct Follower {
    to: Sender<Zeroizing<String>>,
    /// Number of events that found no room since the follower was last told of that.
    lost: u64,
}

impl Followers {
    /// Adds a follower, which gets every event from now on, or hears that there are too many.
    pub(super) fn add(&mut self, to: Sender<Zeroizing<String>>) {
        self.forget_gone();
        let room = self.all.len() < MAX_FOLLOWERS;
        // The queue is new, and has room. One who is gone already needs no answer.
        let answered = to.try_send(Zeroizing::new(uapi::answer(if room { Ok(()) } else { Err(EBUSY) })));
        if room && answered.is_ok() {
            self.all.push(Follower { to, lost: 0 });
        }
    }

    fn forget_gone(&mut self) {
        self.all.retain(|follower| !follower.to.is_closed());
    }

    /// Whether somebody follows.
    pub(super) fn any(&mut self) -> bool {
        self.forget_gone();
        !self.all.is_empty()
    }

    /// Tells all of them what happened at `wall`, the time since the Unix epoch.
    pub(super) fn tell(&mut self, event: &DeviceEvent, wall: Duration) {
        if !self.any() {
            return;
        }
        let line = line(event.clone(), wall);
        for follower in &mut self.all {
            follower.tell(&line, wall);
        }
    }
}

impl Follower {
    fn tell(&mut self, line: &str, wall: Duration) {
        if self.lost > 0 {
            let lost = DeviceEvent { peer: None, kind: EventKind::Lost { count: self.lost } };
            if let Err(TrySendError::Full(_)) = self.to.try_send(Zeroizing::new(self::line(lost, wall))) {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if let Err(TrySendError::Full(_)) = self.to.try_send(Zeroizing::new(line.to_owned())) {
            self.lost += 1;
        }
    }
}

fn line(event: DeviceEvent, wall: Duration) -> String {
    // There are only numbers, text and addresses in a report, none of which can fail.
    let report = serde_json::to_string(&EventReport::new(event, wall)).unwrap_or_default();
    format!("event={report}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{Receiver, channel};

    fn follower(followers: &mut Followers, room: usize) -> Receiver<Zeroizing<String>> {
        let (to, lines) = channel(room);
        followers.add(to);
        lines
    }

    fn happened(port: u16) -> DeviceEvent {
        DeviceEvent { peer: None, kind: EventKind::Up { port } }
    }

    fn read(lines: &mut Receiver<Zeroizing<String>>) -> Vec<String> {
        std::iter::from_fn(|| lines.try_recv().ok()).map(|line| line.to_string()).collect()
    }

    fn up(port: u16) -> String {
        format!("event={{\"time_ms\":5,\"event\":\"up\",\"port\":{port}}}\n")
    }

    #[test]
    fn a_follower_that_does_not_read_loses_events_and_is_told_how_many() {
        let mut followers = Followers::default();
        let (mut slow, mut fast) = (follower(&mut followers, 4), follower(&mut followers, 100));
        let wall = Duration::from_millis(5);
        (0..10).for_each(|port| followers.tell(&happened(port), wall));
        let mut told = vec!["errno=0\n\n".to_owned()];
        told.extend((0..3).map(up));
        assert_eq!(read(&mut slow), told);
        followers.tell(&happened(10), wall);
        let lost = "event={\"time_ms\":5,\"event\":\"lost\",\"count\":7}\n".to_owned();
        assert_eq!(read(&mut slow), [lost, up(10)]);
        assert_eq!(read(&mut fast).len(), 12, "nobody else loses any");
    }

    #[test]
    fn followers_that_are_gone_make_room() {
        let mut followers = Followers::default();
        let mut all: Vec<_> = (0..MAX_FOLLOWERS).map(|_| follower(&mut followers, 4)).collect();
        let mut refused = follower(&mut followers, 4);
        assert_eq!(read(&mut refused), ["errno=-16\n\n"]);
        assert!(refused.is_closed(), "it is told no more");
        all.pop();
        assert_eq!(read(&mut follower(&mut followers, 4)), ["errno=0\n\n"]);
        all.clear();
        assert!(!followers.any());
    }
}
