//! Extended BPF: a small assembler, and the few commands of bpf(2) that steering needs.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A register. R0 holds results. R1 to R5 hold arguments and are lost in a call. R6 to R9 are kept. FP is the end of the
/// 512-byte stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R6 = 6,
    R7,
    R8,
    R9,
    Fp,
}

/// The width of a memory access: the size bits of its opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Width {
    /// 4 bytes.
    Word = 0x00,
    /// 2 bytes.
    Half = 0x08,
    /// 1 byte.
    Byte = 0x10,
    /// 8 bytes.
    Double = 0x18,
}

/// A 64-bit arithmetic operation: the operation bits of its opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Op {
    Add = 0x00,
    Mul = 0x20,
    And = 0x50,
    Lsh = 0x60,
    Rsh = 0x70,
    Xor = 0xa0,
    Mov = 0xb0,
}

/// The condition of a jump, which compares 64 bits: the operation bits of the opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum If {
    Equal = 0x10,
    /// The two have any bit in common.
    Set = 0x40,
    NotEqual = 0x50,
}

/// Kernel functions that a program may call (`enum bpf_func_id`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub(crate) enum Helper {
    /// `(map, key)`: a pointer to the value, or null.
    MapLookup = 1,
    /// `(skb, offset, to, len)`: 0, or a negative number with `to` zeroed.
    LoadBytes = 26,
}

/// An instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () = assert!(size_of::<Insn>() == 8);

#[cfg(feature = "internals")]
impl Insn {
    /// The instruction as the kernel reads it.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        let ([o0, o1], [i0, i1, i2, i3]) = (self.offset.to_ne_bytes(), self.immediate.to_ne_bytes());
        [self.code, self.registers, o0, o1, i0, i1, i2, i3]
    }
}

const CLASS_LD: u8 = 0x00;
const CLASS_LDX: u8 = 0x01;
const CLASS_ST: u8 = 0x02;
const CLASS_STX: u8 = 0x03;
const CLASS_JMP: u8 = 0x05;
const CLASS_ALU64: u8 = 0x07;
const MODE_MEM: u8 = 0x60;
const SOURCE_REG: u8 = 0x08;
const JUMP_ALWAYS: u8 = 0x00;
const JUMP_CALL: u8 = 0x80;
const JUMP_EXIT: u8 = 0x90;
/// In the field of the source register of a 64-bit immediate load, this says that the immediate is a map's file descriptor.
const PSEUDO_MAP_FD: u8 = 1;

/// A place to jump to, which may become known after the jump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Label(usize);

/// A collector of instructions, with one method for each.
#[derive(Default, Debug)]
pub(crate) struct Assembler {
    code: Vec<Insn>,
    /// Where each label stands, once placed.
    labels: Vec<Option<usize>>,
    /// The jumps, and the labels to which they lead.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// Makes a label that is placed later.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places the label before the next instruction.
    pub(crate) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// Emits `to = to op from`.
    pub(crate) fn op(&mut self, op: Op, to: Reg, from: Reg) {
        self.push(CLASS_ALU64 | SOURCE_REG | op as u8, to as u8, from as u8, 0, 0);
    }

    /// Emits `to = to op value`, with the value's sign extended.
    pub(crate) fn op_imm(&mut self, op: Op, to: Reg, value: i32) {
        self.push(CLASS_ALU64 | op as u8, to as u8, 0, 0, value);
    }

    /// Emits `to = base + offset`.
    pub(crate) fn address(&mut self, to: Reg, base: Reg, offset: i16) {
        self.op(Op::Mov, to, base);
        self.op_imm(Op::Add, to, i32::from(offset));
    }

    /// Emits `to = value`, of 64 bits.
    pub(crate) fn load_imm64(&mut self, to: Reg, value: u64) {
        self.wide(to, 0, value);
    }

    /// Emits `to = map`.
    pub(crate) fn load_map(&mut self, to: Reg, map: BorrowedFd<'_>) {
        self.wide(to, PSEUDO_MAP_FD, map.as_raw_fd() as u64);
    }

    /// Emits `to = *(base + offset)`, zero-extended.
    pub(crate) fn load(&mut self, width: Width, to: Reg, base: Reg, offset: i16) {
        self.push(CLASS_LDX | MODE_MEM | width as u8, to as u8, base as u8, offset, 0);
    }

    /// Emits `*(base + offset) = from`.
    pub(crate) fn store(&mut self, width: Width, base: Reg, offset: i16, from: Reg) {
        self.push(CLASS_STX | MODE_MEM | width as u8, base as u8, from as u8, offset, 0);
    }

    /// Emits `*(base + offset) = value`.
    pub(crate) fn store_imm(&mut self, width: Width, base: Reg, offset: i16, value: i32) {
        self.push(CLASS_ST | MODE_MEM | width as u8, base as u8, 0, offset, value);
    }

    /// Emits a jump that is taken where `reg` compares so with `value`, whose sign is extended.
    pub(crate) fn jump_if(&mut self, reg: Reg, condition: If, value: i32, target: Label) {
        self.jumps.push((self.code.len(), target));
        self.push(CLASS_JMP | condition as u8, reg as u8, 0, 0, value);
    }

    /// Emits a jump.
    pub(crate) fn jump(&mut self, target: Label) {
        self.jumps.push((self.code.len(), target));
        self.push(CLASS_JMP | JUMP_ALWAYS, 0, 0, 0, 0);
    }

    /// Emits `r0 = helper(r1, …)`.
    pub(crate) fn call(&mut self, helper: Helper) {
        self.push(CLASS_JMP | JUMP_CALL, 0, 0, 0, helper as i32);
    }

    /// Emits the return of r0.
    pub(crate) fn exit(&mut self) {
        self.push(CLASS_JMP | JUMP_EXIT, 0, 0, 0, 0);
    }

    /// The program, with its jumps resolved. Every label that is jumped to must have been placed.
    pub(crate) fn finish(mut self) -> Vec<Insn> {
        for (at, target) in self.jumps {
            let to = self.labels[target.0].expect("a jump goes to a label that was placed");
            self.code[at].offset = (to as i64 - at as i64 - 1) as i16;
        }
        self.code
    }

    /// Emits the only instruction that takes two slots. The second holds the upper half.
    fn wide(&mut self, to: Reg, kind: u8, value: u64) {
        self.push(CLASS_LD | Width::Double as u8, to as u8, kind, 0, value as i32);
        self.push(0, 0, 0, 0, (value >> 32) as i32);
    }

    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        // The two are four-bit fields of a C struct, whose order is the machine's.
        let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
        self.code.push(Insn { code, registers, offset, immediate });
    }
}

/// How often a command is tried before EAGAIN is believed.
const TRIES: usize = 10;

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const MAP_TYPE_LPM_TRIE: u32 = 11;
const F_NO_PREALLOC: u32 = 1;
const PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// The members of `union bpf_attr` that are used. The kernel takes the rest for zero.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct MapElement {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    insn_count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

const _: () = assert!(size_of::<MapCreate>() == 20);
const _: () = assert!(size_of::<MapElement>() == 32);
const _: () = assert!(size_of::<ProgramLoad>() == 40);

/// Creates a longest-prefix map with keys `K` (a `u32` prefix length, then the address) and values `V`. The kernel refuses to
/// preallocate LPM tries.
pub(crate) fn create_lpm_map<K, V>(max_entries: u32) -> io::Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: MAP_TYPE_LPM_TRIE,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        max_entries,
        map_flags: F_NO_PREALLOC,
    };
    // SAFETY: BPF_MAP_CREATE reads the attributes, which hold no pointers, and returns a new descriptor that no one else owns.
    unsafe { bpf(MAP_CREATE, &attributes).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Adds or changes an entry. `K` and `V` must be those of the map's creation.
pub(crate) fn update<K: Copy, V: Copy>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let attributes = MapElement {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: address(key),
        value: address(value),
        flags: 0,
    };
    // SAFETY: the kernel reads a key and a value of the sizes that the map was created with, both borrowed for the call.
    unsafe { bpf(MAP_UPDATE_ELEM, &attributes).map(drop) }
}

/// Removes an entry. The error is ENOENT where there is none. `K` must be that of the map's creation.
pub(crate) fn delete<K: Copy>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let attributes =
        MapElement { map: map.as_raw_fd() as u32, pad: 0, key: address(key), value: 0, flags: 0 };
    // SAFETY: the kernel reads a key of the size that the map was created with, borrowed for the call.
    unsafe { bpf(MAP_DELETE_ELEM, &attributes).map(drop) }
}

/// Loads a program of type SOCKET_FILTER. It calls no function that is reserved for the GPL.
pub(crate) fn load_socket_filter(program: &[Insn], license: &CStr) -> io::Result<OwnedFd> {
    let attributes = ProgramLoad {
        program_type: PROG_TYPE_SOCKET_FILTER,
        insn_count: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the kernel reads `insn_count` instructions and the NUL-terminated license, both borrowed for the call, and
    // returns a new descriptor that no one else owns.
    unsafe { bpf(PROG_LOAD, &attributes).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

/// Calls bpf(2).
///
/// # Safety
///
/// `attributes` must be the leading members of `union bpf_attr` for `command`, with pointers valid for what the command does.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    persist(|| {
        // SAFETY: the size passed is that of `attributes`; what it points to is the caller's promise.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, address(attributes), size_of::<T>()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
    })
}

/// Tries a command again while the kernel answers EAGAIN, at most [`TRIES`] times in all. The verifier answers so where a
/// signal or a task's work (that of an io_uring that is closing, say) is pending for the thread. Both are over at the next
/// system call.
fn persist<T>(mut command: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 1;
    loop {
        match command() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < TRIES => tries += 1,
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of `bpf_insn` in memory are opcode, registers, offset, immediate (kernel `filter.h`'s BPF_* macros).
    #[test]
    #[cfg(target_endian = "little")]
    fn instructions_are_encoded_as_the_kernel_reads_them() {
        let mut asm = Assembler::default();
        let end = asm.label();
        asm.op(Op::Mov, Reg::R6, Reg::R1);
        asm.op_imm(Op::Add, Reg::R2, -8);
        asm.load_imm64(Reg::R8, 0x1122_3344_5566_7788);
        asm.load(Width::Byte, Reg::R0, Reg::Fp, -40);
        asm.store(Width::Word, Reg::Fp, -4, Reg::R7);
        asm.jump_if(Reg::R0, If::NotEqual, 4, end);
        asm.call(Helper::LoadBytes);
        asm.jump(end);
        asm.place(end);
        asm.exit();
        let insn = |code, registers, offset, immediate| Insn { code, registers, offset, immediate };
        let expected = [
            insn(0xbf, 0x16, 0, 0),
            insn(0x07, 0x02, 0, -8),
            insn(0x18, 0x08, 0, 0x5566_7788),
            insn(0x00, 0x00, 0, 0x1122_3344),
            insn(0x71, 0xa0, -40, 0),
            insn(0x63, 0x7a, -4, 0),
            insn(0x55, 0x00, 2, 4),
            insn(0x85, 0x00, 0, 26),
            insn(0x05, 0x00, 0, 0),
            insn(0x95, 0x00, 0, 0),
        ];
        assert_eq!(asm.finish(), expected);
    }

    #[test]
    fn a_command_is_tried_again_on_eagain_alone_and_not_for_ever() {
        let failing = |errno: i32, times: usize| {
            let mut calls = 0;
            let outcome = persist(|| {
                calls += 1;
                if calls <= times { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
            });
            (calls, outcome.err().and_then(|error| error.raw_os_error()))
        };
        assert_eq!(failing(libc::EAGAIN, 0), (1, None));
        assert_eq!(failing(libc::EAGAIN, TRIES - 1), (TRIES, None));
        assert_eq!(failing(libc::EAGAIN, usize::MAX), (TRIES, Some(libc::EAGAIN)));
        assert_eq!(failing(libc::EPERM, 1), (1, Some(libc::EPERM)));
    }

    #[test]
    #[should_panic(expected = "label that was placed")]
    fn a_jump_to_nowhere_is_a_bug() {
        let mut asm = Assembler::default();
        let nowhere = asm.label();
        asm.jump(nowhere);
        asm.finish();
    }
}
