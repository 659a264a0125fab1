//! Makes of a captured super-packet the packets that it stands for, as the kernel does when it segments.
//!
//! What a capture shows of a host's own or joined traffic is unfinished: the kernel leaves lengths, identifications and checksums
//! to whoever segments. On the wire of a real network only finished packets are seen, so those are compared.

use super::packet::{CWR, FIN, PSH, UDP, Unfinished, fold, mend_v4, pseudo, sum};

/// The bit of `flags` that a checksum is to be completed, and that of `gso` for ECN.
const NEEDS_CHECKSUM: u8 = 1;
const ECN: u8 = 0x80;
const UDP_L4: u8 = 5;

/// The packets that `packet` stands for.
pub(super) fn finished(packet: &[u8], unfinished: &Unfinished) -> Vec<Vec<u8>> {
    let &Unfinished { flags, gso, gso_size, start, field, .. } = unfinished;
    let (start, field) = (usize::from(start), usize::from(field));
    if gso & !ECN == 0 {
        let mut packet = packet.to_vec();
        if flags & NEEDS_CHECKSUM != 0 {
            // The field holds the pseudo-header's sum.
            let sum = never_zero(!fold(sum(&packet[start..])), field);
            packet[start + field..][..2].copy_from_slice(&sum.to_be_bytes());
        }
        return vec![packet];
    }
    assert_ne!(flags & NEEDS_CHECKSUM, 0, "a super-packet whose checksums are not the kernel's to make");
    let is_udp = gso & !ECN == UDP_L4;
    let header_len = start + if is_udp { 8 } else { usize::from(packet[start + 12] >> 4) * 4 };
    let (header, payload) = packet.split_at(header_len);
    let parts: Vec<&[u8]> = payload.chunks(usize::from(gso_size)).collect();
    let last = parts.len() - 1;
    let segment = |(i, part): (usize, &&[u8])| {
        let mut segment = [header, part].concat();
        set_lengths(&mut segment, i);
        if is_udp {
            let len = (segment.len() - start) as u16;
            segment[start + 4..start + 6].copy_from_slice(&len.to_be_bytes());
        } else {
            let sequence = u32::from_be_bytes(header[start + 4..start + 8].try_into().expect("four bytes"));
            let sequence = sequence.wrapping_add((i * usize::from(gso_size)) as u32);
            segment[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
            segment[start + 13] &= !(if i > 0 { CWR } else { 0 } | if i < last { FIN | PSH } else { 0 });
        }
        set_checksum(&mut segment, start, field);
        segment
    };
    parts.iter().enumerate().map(segment).collect()
}

/// Sets what the IP header says of the packet's length, and counts the identification up by `index`.
fn set_lengths(segment: &mut [u8], index: usize) {
    let len = segment.len();
    if segment[0] >> 4 == 6 {
        segment[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        return;
    }
    let id = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add(index as u16);
    segment[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    segment[4..6].copy_from_slice(&id.to_be_bytes());
    mend_v4(segment);
}

/// Sets the whole checksum of the transport part at `start`.
fn set_checksum(segment: &mut [u8], start: usize, field: usize) {
    segment[start + field..][..2].fill(0);
    let protocol = if field == 6 { UDP } else { super::packet::TCP };
    let pseudo = pseudo(segment, protocol, segment.len() - start);
    let sum = never_zero(!fold(pseudo + sum(&segment[start..])), field);
    segment[start + field..][..2].copy_from_slice(&sum.to_be_bytes());
}

/// In UDP, zero means that there is no checksum.
fn never_zero(checksum: u16, field: usize) -> u16 {
    if checksum == 0 && field == 6 { 0xffff } else { checksum }
}
