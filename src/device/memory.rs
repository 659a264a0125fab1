//! What is worth remembering of a peer when the process ends, none of it secret: with it a new process knows an old initiation from a
//! new one, goes on with the quota, and begins a handshake at once instead of waiting for the peer's time-outs.

use super::peer::Peer;
use super::{Device, Now};
use crate::dataplane::limits::QuotaUse;
use crate::noise::tai64n::Tai64N;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// What is remembered of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PeerMemory {
    /// The timestamp of the last initiation that was answered.
    pub last_initiation: Option<Tai64N>,
    /// Whether the peer was connected.
    pub was_connected: bool,
    /// How far its quota was used.
    pub quota: Option<QuotaUse>,
}

/// The form of the configuration socket: timestamp in hexadecimal or `-`, 1 or 0, used bytes and end of the quota, both 0 without one.
impl Display for PeerMemory {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.last_initiation {
            Some(timestamp) => timestamp.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?,
            None => f.write_str("-")?,
        }
        let QuotaUse { used, ends } = self.quota.unwrap_or_default();
        write!(f, " {} {used} {ends}", u8::from(self.was_connected))
    }
}

/// The text is no [`PeerMemory`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

impl FromStr for PeerMemory {
    type Err = NoMemory;

    fn from_str(text: &str) -> Result<PeerMemory, NoMemory> {
        let words: Vec<&str> = text.split(' ').collect();
        let [timestamp, connected, used, ends] = words[..] else { return Err(NoMemory) };
        let last_initiation = match timestamp {
            "-" => None,
            digits => Some(Tai64N(bytes(digits).ok_or(NoMemory)?)),
        };
        let number = |word: &str| -> Result<u64, NoMemory> {
            let word = Some(word).filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
            word.and_then(|word| word.parse().ok()).ok_or(NoMemory)
        };
        let (used, ends) = (number(used)?, number(ends)?);
        Ok(PeerMemory {
            last_initiation,
            was_connected: match connected {
                "0" => false,
                "1" => true,
                _ => return Err(NoMemory),
            },
            quota: (ends != 0).then_some(QuotaUse { used, ends }),
        })
    }
}

/// Reads twelve bytes in hexadecimal.
fn bytes(digits: &str) -> Option<[u8; 12]> {
    let digits =
        Some(digits).filter(|text| text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let mut bytes = [0; 12];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

impl Peer {
    /// What is to be remembered of the peer; nothing of one that was never heard.
    pub(super) fn memory(&self) -> Option<PeerMemory> {
        let memory = PeerMemory {
            last_initiation: self.handshake.last_initiation(),
            was_connected: self.shared.connected_since().is_some(),
            quota: self.shared.limits().and_then(|limits| limits.quota_use()).filter(|quota| quota.used > 0),
        };
        (memory != PeerMemory::default()).then_some(memory)
    }
}

impl Device {
    /// Has a peer go on from what is remembered of it. A peer that was connected gets a handshake at once, or as soon as the interface
    /// is up.
    pub(super) fn recall_peer(&mut self, now: Now, slot: u32, memory: &PeerMemory) {
        let is_up = self.is_up();
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if let Some(timestamp) = memory.last_initiation {
            peer.handshake.recall_initiation(timestamp, now.mono);
        }
        if let (Some(limits), Some(quota)) = (peer.shared.limits(), memory.quota) {
            limits.recall(quota);
        }
        if memory.was_connected && peer.sessions.current().is_none() {
            match is_up {
                true => self.want_handshake(now, slot),
                false => peer.interrupted = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(timestamp in prop::option::of(any::<[u8; 12]>()), was_connected in any::<bool>(), quota in prop::option::of((any::<u64>(), 1_u64..))) {
            let quota = quota.map(|(used, ends)| QuotaUse { used, ends });
            let memory = PeerMemory { last_initiation: timestamp.map(Tai64N), was_connected, quota };
            prop_assert_eq!(memory.to_string().parse(), Ok(memory));
        }

        #[test]
        fn garbage_is_refused_or_a_memory(text in "(-|[0-9a-fx]{0,26})( [0-9-]{0,3}){0,4}") {
            if let Ok(memory) = text.parse::<PeerMemory>() {
                prop_assert_eq!(memory.to_string().parse(), Ok(memory));
            }
        }
    }
}
