//! The program that picks the TUN queue of a packet (Linux `drivers/net/tun.c`, `tun_ebpf_select_queue`): offset 0 is the IP
//! header, and the kernel takes the result modulo the number of queues.
//!
//! ```text
//! load the IP header                   too short, or neither IPv4 nor IPv6: queue 0
//! look the destination up              in its family's map
//! a worker's number: return it         nothing, or SPREAD: go on
//! hash addresses, protocol and ports   ports of unfragmented TCP and UDP only, so that
//! return the hash                      all fragments of a datagram take one way
//! ```

use crate::index::MAX_WORKERS;
use crate::sys::bpf::{Assembler, Helper, If, Insn, Label, Op, Reg, Width};
use crate::wire::ip;
use std::os::fd::BorrowedFd;

/// The map's value that asks for the flow's hash. It is the least number that no worker has.
pub(super) const SPREAD: u32 = MAX_WORKERS as u32;

/// 2^64 divided by the golden ratio, an odd number. Multiplying by it carries every bit upwards, and the upper half of the
/// result is used.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

// The stack, downwards from the frame pointer. IPv6's addresses lie at multiples of eight.
const HEADER: i16 = -40;
const KEY4: i16 = -48;
const KEY6: i16 = -64;
const PORTS: i16 = -72;

const IPV4_HEADER_LEN: i32 = 20;
const IPV6_HEADER_LEN: i32 = 40;

// Registers that outlive calls.
const SKB: Reg = Reg::R6;
const HASH: Reg = Reg::R7;
const FACTOR: Reg = Reg::R8;
const PROTOCOL: Reg = Reg::R9;

/// The labels to which both families jump.
struct Exits {
    /// Return queue 0.
    zero: Label,
    /// Return r0.
    done: Label,
    /// Hash the protocol, and return.
    no_ports: Label,
    /// Hash the ports, whose offset in the packet is in r2, then the protocol, and return.
    ports: Label,
}

/// Assembles the program over these two maps.
pub(super) fn assemble(v4: BorrowedFd<'_>, v6: BorrowedFd<'_>) -> Vec<Insn> {
    let mut asm = Assembler::default();
    let not_v4 = asm.label();
    let exits = Exits { zero: asm.label(), done: asm.label(), no_ports: asm.label(), ports: asm.label() };

    asm.op(Op::Mov, SKB, Reg::R1);
    asm.load_imm64(FACTOR, MULTIPLIER);
    load_header(&mut asm, IPV4_HEADER_LEN, &exits);
    asm.load(Width::Byte, HASH, Reg::Fp, HEADER);
    asm.op_imm(Op::Rsh, HASH, 4);

    asm.jump_if(HASH, If::NotEqual, 4, not_v4);
    ipv4(&mut asm, v4, &exits);

    asm.place(not_v4);
    asm.jump_if(HASH, If::NotEqual, 6, exits.zero);
    load_header(&mut asm, IPV6_HEADER_LEN, &exits);
    ipv6(&mut asm, v6, &exits);

    finish_hash(&mut asm, &exits);
    asm.place(exits.zero);
    asm.op_imm(Op::Mov, Reg::R0, 0);
    asm.place(exits.done);
    asm.exit();
    asm.finish()
}

/// Loads the packet's first `len` bytes to the stack.
fn load_header(asm: &mut Assembler, len: i32, exits: &Exits) {
    asm.op(Op::Mov, Reg::R1, SKB);
    asm.op_imm(Op::Mov, Reg::R2, 0);
    asm.address(Reg::R3, Reg::Fp, HEADER);
    asm.op_imm(Op::Mov, Reg::R4, len);
    asm.call(Helper::LoadBytes);
    asm.jump_if(Reg::R0, If::NotEqual, 0, exits.zero);
}

/// Looks the key at `key` up, and returns its value, unless there is none or it is [`SPREAD`].
fn look_up(asm: &mut Assembler, map: BorrowedFd<'_>, key: i16, exits: &Exits) {
    let miss = asm.label();
    asm.load_map(Reg::R1, map);
    asm.address(Reg::R2, Reg::Fp, key);
    asm.call(Helper::MapLookup);
    asm.jump_if(Reg::R0, If::Equal, 0, miss);
    asm.load(Width::Word, Reg::R0, Reg::R0, 0);
    asm.jump_if(Reg::R0, If::NotEqual, SPREAD as i32, exits.done);
    asm.place(miss);
}

fn ipv4(asm: &mut Assembler, map: BorrowedFd<'_>, exits: &Exits) {
    const FRAGMENT: i16 = HEADER + 6;
    const NEXT: i16 = HEADER + 9;
    const SOURCE: i16 = HEADER + 12;
    const DESTINATION: i16 = HEADER + 16;
    // More-fragments flag and fragment offset, as the two bytes read on this machine.
    const FRAGMENTED: i32 = 0x3fff_u16.to_be() as i32;

    asm.store_imm(Width::Word, Reg::Fp, KEY4, 32);
    asm.load(Width::Word, Reg::R1, Reg::Fp, DESTINATION);
    asm.store(Width::Word, Reg::Fp, KEY4 + 4, Reg::R1);
    look_up(asm, map, KEY4, exits);

    asm.op_imm(Op::Mov, HASH, 0);
    mix(asm, Width::Word, SOURCE);
    mix(asm, Width::Word, DESTINATION);
    asm.load(Width::Byte, PROTOCOL, Reg::Fp, NEXT);
    asm.load(Width::Half, Reg::R1, Reg::Fp, FRAGMENT);
    asm.jump_if(Reg::R1, If::Set, FRAGMENTED, exits.no_ports);
    // The header's length in words is the lower half of its first byte.
    asm.load(Width::Byte, Reg::R2, Reg::Fp, HEADER);
    asm.op_imm(Op::And, Reg::R2, 0x0f);
    asm.op_imm(Op::Lsh, Reg::R2, 2);
    asm.jump(exits.ports);
}

/// Looks an IPv6 destination up, or hashes the packet. Extension headers, the fragment header among them, are not followed:
/// then the addresses alone make the flow.
fn ipv6(asm: &mut Assembler, map: BorrowedFd<'_>, exits: &Exits) {
    const NEXT: i16 = HEADER + 6;
    const SOURCE: i16 = HEADER + 8;
    const DESTINATION: i16 = HEADER + 24;

    asm.store_imm(Width::Word, Reg::Fp, KEY6, 128);
    for word in [0, 4, 8, 12] {
        asm.load(Width::Word, Reg::R1, Reg::Fp, DESTINATION + word);
        asm.store(Width::Word, Reg::Fp, KEY6 + 4 + word, Reg::R1);
    }
    look_up(asm, map, KEY6, exits);

    asm.op_imm(Op::Mov, HASH, 0);
    for half in [SOURCE, SOURCE + 8, DESTINATION, DESTINATION + 8] {
        mix(asm, Width::Double, half);
    }
    asm.load(Width::Byte, PROTOCOL, Reg::Fp, NEXT);
    asm.op_imm(Op::Mov, Reg::R2, IPV6_HEADER_LEN);
}

/// The end of the hash for both families. IPv6 falls into it with r2 set.
fn finish_hash(asm: &mut Assembler, exits: &Exits) {
    let has_ports = asm.label();
    asm.place(exits.ports);
    asm.jump_if(PROTOCOL, If::Equal, i32::from(ip::TCP), has_ports);
    asm.jump_if(PROTOCOL, If::NotEqual, i32::from(ip::UDP), exits.no_ports);
    asm.place(has_ports);
    asm.op(Op::Mov, Reg::R1, SKB);
    asm.address(Reg::R3, Reg::Fp, PORTS);
    asm.op_imm(Op::Mov, Reg::R4, 4);
    asm.call(Helper::LoadBytes); // zeroes the ports where the packet ends before them
    mix(asm, Width::Word, PORTS);

    asm.place(exits.no_ports);
    asm.op(Op::Add, HASH, PROTOCOL);
    asm.op(Op::Mul, HASH, FACTOR);
    asm.op(Op::Mov, Reg::R0, HASH);
    asm.op_imm(Op::Rsh, Reg::R0, 32);
    asm.jump(exits.done);
}

/// hash = (hash + what lies at `offset` on the stack) × factor. Its upper half is then folded into the lower, from where the
/// next multiplication carries it up again. Otherwise the last bytes of an address would never reach the bits that pick the
/// queue.
fn mix(asm: &mut Assembler, width: Width, offset: i16) {
    asm.load(width, Reg::R1, Reg::Fp, offset);
    asm.op(Op::Add, HASH, Reg::R1);
    asm.op(Op::Mul, HASH, FACTOR);
    asm.op(Op::Mov, Reg::R1, HASH);
    asm.op_imm(Op::Rsh, Reg::R1, 32);
    asm.op(Op::Xor, HASH, Reg::R1);
}
