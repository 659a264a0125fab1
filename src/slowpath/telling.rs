//! What happens, told to the log and to those who follow.

use super::driver::{Driver, wall};
use crate::dataplane::LOAD_MEMORY;
use crate::device::events::{DeviceEvent, EventKind};
use crate::time::Instant;
use std::sync::atomic::Ordering::Relaxed;

impl Driver {
    /// Tells what happened since the last call, and has the device note what happens next only where somebody follows.
    pub(super) fn tell_events(&mut self) {
        while let Some(event) = self.device.next_event() {
            self.tell(&event);
        }
        let followed = log::log_enabled!(log::Level::Debug) || self.followers.any();
        self.device.follow_events(followed);
    }

    fn tell(&mut self, event: &DeviceEvent) {
        log::debug!("{event}");
        self.followers.tell(event, wall());
    }

    /// Logs what the workers noticed, and tells it.
    pub(super) fn take_notices(&mut self) {
        while let Some((worker, notice)) = self.links.slow.notices.pop() {
            log::warn!("worker {worker}: {notice}");
            let kind = EventKind::WorkerNotice { worker, notice: notice.to_string() };
            self.followers.tell(&DeviceEvent { peer: None, kind }, wall());
        }
    }

    /// Notes whether cookies are asked for now, where that is news.
    pub(super) fn look_for_flood(&mut self, now: Instant) {
        let flooded = self.loaded_until().is_some_and(|until| now < until);
        if std::mem::replace(&mut self.flooded, flooded) != flooded {
            let kind = if flooded { EventKind::FloodBegan } else { EventKind::FloodEnded };
            self.tell(&DeviceEvent { peer: None, kind });
        }
    }

    /// When to look again whether a flood is over.
    pub(super) fn flood_ends(&self) -> Option<Instant> {
        self.loaded_until().filter(|_| self.flooded)
    }

    fn loaded_until(&self) -> Option<Instant> {
        match self.links.slow.loaded_at.load(Relaxed) {
            0 => None,
            at => Some(Instant::from_nanos(at) + LOAD_MEMORY),
        }
    }
}
