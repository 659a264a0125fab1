//! The layout of one segment of a train: `header (16 bytes) | text | tag (16 bytes)`.

/// Length in bytes of the header before the text of each segment.
pub const HEADER_LEN: usize = 16;
/// Length in bytes of the tag after the text of each segment.
pub const TAG_LEN: usize = 16;

/// The counter in the header of one segment.
pub(crate) fn counter(segment: &[u8]) -> Option<u64> {
    let (_, counter) = segment.first_chunk::<HEADER_LEN>()?.split_last_chunk()?;
    Some(u64::from_le_bytes(*counter))
}
