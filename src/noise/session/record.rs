//! Both halves of a session as plain data, for another process that goes on with it.

use super::{RecvSession, Role, SendSession};
use crate::crypto::aead::AeadKey;
use crate::crypto::secret::SecretBytes;
use crate::crypto::stack;
use crate::noise::REJECT_AFTER_MESSAGES;
use crate::noise::counter::SendCounter;
use crate::noise::replay::{ReplayWindow, WindowRecord};
use crate::time::Instant;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The sealing half of a session. Whoever restores it seals with it from then on, and nobody else may.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendRecord {
    key: SecretBytes<32>,
    /// The counter of the next message.
    counter: u64,
    remote_index: u32,
}

/// The opening half of a session.
#[derive(Debug, Serialize, Deserialize)]
pub struct RecvRecord {
    key: SecretBytes<32>,
    window: WindowRecord,
}

impl SendSession {
    /// The session as plain data. From now on nobody may reserve a counter of it, unless the record is not used.
    pub fn record(&self) -> SendRecord {
        SendRecord {
            key: SecretBytes::copy_of(self.key.bytes()),
            counter: self.counter.next(),
            remote_index: self.remote_index,
        }
    }

    /// The session that a record is of. `None` where its counter is none.
    pub fn restore(
        record: &SendRecord,
        local_index: u32,
        born: Instant,
        role: Role,
    ) -> Option<Arc<SendSession>> {
        let make = || {
            Arc::new(SendSession {
                key: AeadKey::new(record.key.bytes()),
                counter: SendCounter::from(record.counter),
                remote_index: record.remote_index,
                local_index,
                born,
                role,
            })
        };
        (record.counter <= REJECT_AFTER_MESSAGES).then(|| stack::clean(make))
    }
}

impl RecvSession {
    /// The session as plain data.
    pub fn record(&self) -> RecvRecord {
        RecvRecord { key: SecretBytes::copy_of(self.key.bytes()), window: self.window.record() }
    }

    /// The session that a record is of. `None` where its window is none.
    pub fn restore(
        record: &RecvRecord,
        local_index: u32,
        born: Instant,
        role: Role,
    ) -> Option<Box<RecvSession>> {
        let window = ReplayWindow::restore(&record.window)?;
        Some(stack::clean(|| {
            let key = Arc::new(AeadKey::new(record.key.bytes()));
            Box::new(RecvSession { key, window, local_index, born, role })
        }))
    }
}
