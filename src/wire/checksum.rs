//! The Internet checksum (RFC 1071), whole and incremental.
//!
//! # Byte order
//!
//! A *partial sum* is a `u64` in the native domain: the bytes are read as native-endian words and added up, which RFC
//! 1071 section 2 (B) allows because a one's-complement sum commutes with swapping the bytes of all its words. Two
//! partial sums of pieces of even length may be added in any order; a number that stands in a packet as big-endian
//! enters a sum through [`word`] or [`dword`]. [`fold`] leaves the native domain: it yields the 16-bit value whose
//! `to_be_bytes()` go into (or are compared with) the packet. A checksum field holds the complement, `!fold(sum)`;
//! the partial checksum that a virtio-net header hands to the kernel is `fold(sum)` of the pseudo-header, not
//! complemented.

#[cfg(target_arch = "x86_64")]
mod wide;

/// Partial sum of `data` on top of `initial`. An odd last byte counts as padded with zero.
#[inline]
pub fn sum(data: &[u8], initial: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if data.len() >= wide::WORTHWHILE
        && let Some((sum, done)) = wide::sum(data)
    {
        return narrow(&data[done..], add(sum, initial));
    }
    narrow(data, initial)
}

/// One's-complement addition of two partial sums. The carry comes around, as 65,535 divides 2^64 - 1.
#[inline]
fn add(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// The same as [`sum`], without wide registers.
///
/// Each 64-bit word costs one shift and two additions: one of the whole word, modulo 2^64, and one of its upper half
/// apart. The sum of the upper halves is subtracted in the end, which leaves the sum of the lower halves, below 2^64.
/// Summing while copying gains nothing over `memcpy` and a second pass over bytes that are warm in the cache.
#[inline]
fn narrow(data: &[u8], initial: u64) -> u64 {
    let (words, mut rest) = data.as_chunks::<8>();
    let (mut all, mut high) = (0u64, 0u64);
    for word in words {
        let word = u64::from_ne_bytes(*word);
        all = all.wrapping_add(word);
        high += word >> 32;
    }
    let mut sum = all.wrapping_sub(high << 32) + high;
    if let Some((head, tail)) = rest.split_first_chunk::<4>() {
        sum += u64::from(u32::from_ne_bytes(*head));
        rest = tail;
    }
    if let Some((head, tail)) = rest.split_first_chunk::<2>() {
        sum += u64::from(u16::from_ne_bytes(*head));
        rest = tail;
    }
    if let [last] = rest {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    add(sum, initial)
}

/// Folds a partial sum to 16 bits, without complementing.
#[inline]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::from_be(sum as u16)
}

/// Partial sum of the TCP/UDP pseudo-header of an IPv4 or IPv6 `packet` whose transport part is `transport_len` bytes
/// (RFC 9293 section 3.1; RFC 8200 section 8.1 without a routing header). A truncated header contributes no
/// addresses.
#[inline]
pub fn pseudo_header(packet: &[u8], protocol: u8, transport_len: usize) -> u64 {
    let addresses = match packet.first() {
        Some(first) if first >> 4 == 6 => packet.get(8..40),
        _ => packet.get(12..20),
    };
    sum(addresses.unwrap_or_default(), word(u16::from(protocol)) + dword(transport_len as u32))
}

/// Partial sum of eight bytes that were read as a native-endian word.
#[inline]
pub fn eight_bytes(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// Partial sum of a 16-bit number that the packet holds as big-endian.
#[inline]
pub fn word(value: u16) -> u64 {
    u64::from(value.to_be())
}

/// Partial sum of a 32-bit number that the packet holds as big-endian.
#[inline]
pub fn dword(value: u32) -> u64 {
    u64::from(value.to_be())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071's definition, word by word, in big-endian.
    fn naive(data: &[u8], initial: u16) -> u16 {
        let mut sum = u32::from(initial);
        for pair in data.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_section_3_sums_to_ddf2() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0)), 0xddf2);
    }

    #[test]
    fn a_full_super_packet_of_ones_does_not_overflow() {
        let data = [0xff; 65_536];
        assert_eq!(fold(sum(&data, u64::MAX)), 0xffff);
        assert_eq!(fold(sum(&[], u64::MAX)), 0xffff);
        assert_eq!(fold(0), 0);
    }

    #[test]
    fn pseudo_headers_match_their_layout() {
        let mut v4 = [0; 20];
        v4[0] = 0x45;
        v4[12..20].copy_from_slice(&[10, 0, 0, 1, 192, 168, 255, 254]);
        let layout = [10, 0, 0, 1, 192, 168, 255, 254, 0, 17, 0x12, 0x34];
        assert_eq!(fold(pseudo_header(&v4, 17, 0x1234)), naive(&layout, 0));

        let mut v6 = [0; 40];
        v6[0] = 0x60;
        (8..40).for_each(|i| v6[i] = (7 * i) as u8);
        let mut layout = v6[8..40].to_vec();
        layout.extend([0, 1, 0x02, 0x03, 0, 0, 0, 6]);
        assert_eq!(fold(pseudo_header(&v6, 6, 0x1_0203)), naive(&layout, 0));
        assert_eq!(fold(pseudo_header(&[0x60; 39], 6, 1)), 7);
    }

    /// Every length up to several of the widest registers, from every alignment within one, of the bytes that carry most and least,
    /// and of each bit alone at each place.
    #[test]
    fn sum_equals_the_naive_sum_at_every_length_and_alignment() {
        for byte in [0, 1, 0x80, 0xff] {
            let data = [byte; 400];
            for (at, len) in (0..64).flat_map(|at| (0..=300).map(move |len| (at, len))) {
                assert_eq!(
                    fold(sum(&data[at..at + len], 0)),
                    naive(&data[at..at + len], 0),
                    "{byte} {at} {len}"
                );
            }
        }
        let mut data = [0; 300];
        for (place, bit) in (0..data.len()).flat_map(|place| (0..8).map(move |bit| (place, bit))) {
            data[place] = 1 << bit;
            assert_eq!(fold(sum(&data, 0)), naive(&data, 0), "bit {bit} of byte {place}");
            data[place] = 0;
        }
    }

    proptest! {
        #[test]
        fn sum_equals_the_naive_sum(data in prop::collection::vec(any::<u8>(), 0..2100), initial: u16) {
            prop_assert_eq!(fold(sum(&data, word(initial))), naive(&data, initial));
        }

        #[test]
        fn sums_of_even_pieces_add_up(data in prop::collection::vec(any::<u8>(), 0..700), at in 0usize..350) {
            let at = (2 * at).min(data.len() & !1);
            let pieces = sum(&data[at..], 0) + sum(&data[..at], 0);
            prop_assert_eq!(fold(pieces), naive(&data, 0));
        }

        #[test]
        fn numbers_enter_a_sum_as_their_big_endian_bytes(a: u16, b: u32) {
            prop_assert_eq!(fold(word(a)), naive(&a.to_be_bytes(), 0));
            prop_assert_eq!(fold(dword(b)), naive(&b.to_be_bytes(), 0));
        }
    }
}
