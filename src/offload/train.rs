//! A train: data messages of equal size, back to back in one buffer, to go out in one UDP_SEGMENT send.

use crate::wire::message::DATA_OVERHEAD;

/// Content of a data message is padded to a multiple of this (`MESSAGE_PADDING_MULTIPLE`).
const PADDING: usize = 16;

/// Most segments in a train (UDP_MAX_SEGMENTS of Linux before 6.9).
pub const MAX_SEGMENTS: usize = 64;
/// Most bytes in a train. Above this the kernel's UDP, or the wire's GSO, splits it again.
pub const MAX_BYTES: usize = 65_340;

/// The limits of a train on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainLimits {
    /// Most segments; 1 where UDP_SEGMENT does not work.
    pub segments: usize,
    /// Most bytes.
    pub bytes: usize,
}

impl Default for TrainLimits {
    fn default() -> Self {
        TrainLimits { segments: MAX_SEGMENTS, bytes: MAX_BYTES }
    }
}

/// The shape of the train under construction at the start of a buffer. Only the last segment may be shorter than the
/// others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Train {
    len: usize,
    stride: usize,
    count: usize,
}

impl Train {
    /// Length in bytes so far.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether it has no segment yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
    /// Size in bytes of all segments but perhaps the last.
    pub fn stride(&self) -> usize {
        self.stride
    }
    /// Number of segments.
    pub fn count(&self) -> usize {
        self.count
    }
    /// Whether a segment of `size` bytes, header and tag included, may follow within `limits`: it is no larger than
    /// the stride, and none follows a shorter one. The first segment is bound by no limit, since alone it is no train
    /// but a plain datagram.
    #[inline]
    pub fn fits(&self, size: usize, limits: &TrainLimits) -> bool {
        if self.is_empty() {
            return size > 0;
        }
        (1..=self.stride).contains(&size)
            && self.len == self.stride * self.count
            && self.count < limits.segments
            && self.len + size <= limits.bytes
    }
    /// Appends a segment of `size` bytes, which [`Self::fits`] allowed, and returns its offset in the buffer.
    #[inline]
    pub fn push(&mut self, size: usize) -> usize {
        let at = self.len;
        if self.is_empty() {
            self.stride = size;
        }
        self.len += size;
        self.count += 1;
        at
    }
}

/// Length in bytes of a data message around `inner_len` bytes: padded to a multiple of 16, but never beyond `mtu` (0
/// is no limit), plus 32. An inner packet longer than the MTU is padded by its remainder over the MTU (kernel
/// `calculate_skb_padding`).
#[inline]
pub fn message_len(inner_len: usize, mtu: usize) -> usize {
    let padding = if mtu == 0 {
        inner_len.next_multiple_of(PADDING) - inner_len
    } else {
        let last = if inner_len > mtu { inner_len % mtu } else { inner_len };
        last.next_multiple_of(PADDING).min(mtu) - last
    };
    inner_len + padding + DATA_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rule_12_padding_never_exceeds_the_mtu() {
        assert_eq!(message_len(1, 1420), 16 + 32);
        assert_eq!(message_len(16, 1420), 16 + 32);
        assert_eq!(message_len(1409, 1420), 1420 + 32);
        assert_eq!(message_len(1420, 1420), 1420 + 32);
        assert_eq!(message_len(1403, 1407), 1407 + 32, "odd MTU");
    }

    #[test]
    fn rule_12_an_mtu_of_zero_is_no_limit() {
        assert_eq!(message_len(1409, 0), 1424 + 32);
        assert_eq!(message_len(65_535, 0), 65_536 + 32);
        assert_eq!(message_len(0, 0), 32, "a keepalive");
    }

    #[test]
    fn rule_12_a_packet_beyond_the_mtu_is_padded_by_its_remainder() {
        assert_eq!(message_len(1421, 1420), 1421 + 15 + 32);
        assert_eq!(message_len(2840, 1420), 2840 + 32);
        assert_eq!(message_len(2839, 1420), 2840 + 32, "1419 is padded to the MTU only");
        assert_eq!(message_len(5, 3), 5 + 1 + 32);
    }

    #[test]
    fn nothing_follows_a_shorter_segment() {
        let limits = TrainLimits::default();
        let mut train = Train::default();
        assert!(train.is_empty() && train.fits(100, &limits));
        assert_eq!(train.push(100), 0);
        assert!(!train.fits(101, &limits) && !train.fits(0, &limits));
        assert_eq!(train.push(100), 100);
        assert_eq!(train.push(60), 200);
        assert!(!train.fits(60, &limits) && !train.fits(100, &limits));
        assert_eq!((train.len(), train.stride(), train.count()), (260, 100, 3));
    }

    #[test]
    fn a_train_stays_within_its_limits() {
        let mut train = Train::default();
        while train.fits(1452, &TrainLimits::default()) {
            train.push(1452);
        }
        assert_eq!((train.count(), train.len()), (45, 65_340));
        let mut train = Train::default();
        while train.fits(48, &TrainLimits::default()) {
            train.push(48);
        }
        assert_eq!(train.count(), 64);
    }

    #[test]
    fn a_lone_segment_fits_whatever_the_limits() {
        let limits = TrainLimits { segments: 1, bytes: 1000 };
        let mut train = Train::default();
        assert!(train.fits(65_507, &limits));
        train.push(900);
        assert!(!train.fits(50, &limits), "no UDP_SEGMENT: one segment a train");
    }

    proptest! {
        #[test]
        fn padding_is_what_the_kernel_calculates(inner in 0usize..70_000, mtu in 0usize..3000) {
            let last = if mtu != 0 && inner > mtu { inner % mtu } else { inner };
            let padding = message_len(inner, mtu) - 32 - inner;
            prop_assert!(padding < 16);
            prop_assert!((last + padding).is_multiple_of(16) || last + padding == mtu);
            prop_assert!(mtu == 0 || last + padding <= mtu);
        }
    }
}
