//! What a host says of itself on the wire.

use super::SimHost;
use crate::index::ReceiverIndex;
use crate::sim::net::Datagram;
use crate::wire::message::MessageKind;

impl SimHost {
    /// Checks that the low byte of a receiver index that this host announces names a worker.
    pub(crate) fn check_index(&mut self, datagram: &Datagram) {
        let index = match datagram.kind() {
            Some(MessageKind::Initiation | MessageKind::Response) => {
                datagram.bytes.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
            }
            _ => None,
        };
        let Some(index) = index else { return };
        if ReceiverIndex(index).worker() >= self.config.workers {
            self.violations.push(format!("index {index:#x} names no worker"));
        }
    }
}
