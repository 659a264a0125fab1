//! Runs a classic-BPF program as the kernel does (`net/core/filter.c`), as far as its instructions are used.

/// Bits of an opcode (`linux/bpf_common.h`).
const CLASS: u16 = 0x07;
const LD: u16 = 0x00;
const ALU: u16 = 0x04;
const JMP: u16 = 0x05;
const RET: u16 = 0x06;
const LD_LENGTH: u16 = 0x80;
const LD_BYTE: u16 = 0x30;
const MODULO: u16 = 0x90;
const JUMP: u16 = 0x00;
const JUMP_EQUAL: u16 = 0x10;
const JUMP_AT_LEAST: u16 = 0x30;
const RET_CONSTANT: u16 = 0x00;
const RET_ACCUMULATOR: u16 = 0x10;

/// What the program returns for a packet.
///
/// # Panics
///
/// Where an instruction is none of those that are used, or a jump leaves the program.
pub(super) fn run(program: &[[u8; 8]], packet: &[u8]) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let [c0, c1, then, or, k @ ..] = *program.get(at).expect("the program ends with a return");
        let (code, k) = (u16::from_ne_bytes([c0, c1]), u32::from_ne_bytes(k));
        let branch = |holds: bool| usize::from(if holds { then } else { or });
        at += 1;
        match (code & CLASS, code & !CLASS) {
            (LD, LD_LENGTH) => accumulator = packet.len() as u32,
            // A load beyond the packet ends the program.
            (LD, LD_BYTE) => match packet.get(k as usize) {
                Some(&byte) => accumulator = u32::from(byte),
                None => return 0,
            },
            // The kernel takes no program that divides by zero.
            (ALU, MODULO) => accumulator %= k,
            (JMP, JUMP) => at += k as usize,
            (JMP, JUMP_EQUAL) => at += branch(accumulator == k),
            (JMP, JUMP_AT_LEAST) => at += branch(accumulator >= k),
            (RET, RET_CONSTANT) => return k,
            (RET, RET_ACCUMULATOR) => return accumulator,
            _ => panic!("an instruction of code {code:#x}"),
        }
    }
}
