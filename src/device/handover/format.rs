//! The bytes of a state: a word that says what they are, the version of their format, and the records in postcard's encoding, the
//! device first and then each peer.

use crate::crypto::stack;
use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::Zeroizing;

/// The version of the format. It changes with any change of a record.
pub const FORMAT: u16 = 1;
/// Most bytes of a state: that of 2^20 peers with a session each, or of 100,000 whose replay windows are all full.
pub const MAX_STATE: usize = 1 << 30;

/// What a state begins with.
const MAGIC: [u8; 8] = *b"ringtun\0";
/// Bytes of the buffer at first.
const ROOM: usize = 64 * 1024;

/// Why a state cannot be taken over, or not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum StateError {
    /// The bytes are no state.
    Foreign,
    /// The state has a format of this version, which is another than [`FORMAT`].
    Version(u16),
    /// The bytes end too soon, or go on too long, or are no record where there should be one.
    Malformed,
    /// The state contradicts itself, or the protocol.
    Invalid(&'static str),
    /// The state takes more than [`MAX_STATE`] bytes.
    TooLarge,
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateError::Foreign => f.write_str("what was handed over is no state of a tunnel"),
            StateError::Version(found) => write!(
                f,
                "the state has format {found}, and this program knows format {FORMAT}: use a program of the same format"
            ),
            StateError::Malformed => f.write_str("the state that was handed over is damaged"),
            StateError::Invalid(what) => write!(f, "the state that was handed over cannot be: {what}"),
            StateError::TooLarge => write!(f, "the state takes more than {} MiB", MAX_STATE >> 20),
        }
    }
}

impl std::error::Error for StateError {}

/// Writes a state into memory that is wiped.
pub(super) struct StateWriter {
    bytes: Zeroizing<Vec<u8>>,
    /// Most bytes that there may be.
    most: usize,
}

impl StateWriter {
    pub(super) fn new(most: usize) -> StateWriter {
        let mut bytes = Zeroizing::new(Vec::with_capacity(ROOM));
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        StateWriter { bytes, most }
    }

    /// Appends a record.
    pub(super) fn push(&mut self, record: &impl Serialize) -> Result<(), StateError> {
        let written = postcard::serialize_with_flavor(record, Appending(&mut self.bytes, self.most));
        written.map_err(|_| StateError::TooLarge)
    }

    pub(super) fn finish(self) -> Zeroizing<Vec<u8>> {
        self.bytes
    }
}

/// Appends to a buffer that is not left to grow by itself, as it would free the old copy without wiping it.
struct Appending<'a>(&'a mut Zeroizing<Vec<u8>>, usize);

impl Flavor for Appending<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        let needed = self.0.len() + bytes.len();
        if needed > self.1 {
            return Err(postcard::Error::SerializeBufferFull);
        }
        if needed > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two()));
            larger.extend_from_slice(self.0);
            *self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Reads a state, record by record.
pub(super) struct StateReader<'a> {
    rest: &'a [u8],
}

impl<'a> StateReader<'a> {
    /// Begins to read, if this is a state whose format is known.
    pub(super) fn new(state: &'a [u8]) -> Result<StateReader<'a>, StateError> {
        if state.len() > MAX_STATE {
            return Err(StateError::TooLarge);
        }
        let rest = state.strip_prefix(&MAGIC).ok_or(StateError::Foreign)?;
        let (version, rest) = rest.split_first_chunk().ok_or(StateError::Malformed)?;
        match u16::from_le_bytes(*version) {
            FORMAT => Ok(StateReader { rest }),
            other => Err(StateError::Version(other)),
        }
    }

    /// The next record. Its secrets are on the heap, and leave nothing on the stack.
    pub(super) fn next<T: Deserialize<'a>>(&mut self) -> Result<T, StateError> {
        let (record, rest) = stack::apart(|| postcard::take_from_bytes(self.rest))
            .map_err(|_: postcard::Error| StateError::Malformed)?;
        self.rest = rest;
        Ok(record)
    }

    /// Checks that nothing is left.
    pub(super) fn end(self) -> Result<(), StateError> {
        if self.rest.is_empty() { Ok(()) } else { Err(StateError::Malformed) }
    }
}
