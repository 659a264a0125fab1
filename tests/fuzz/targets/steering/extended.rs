//! Runs an extended-BPF program as the kernel does (`kernel/bpf/core.c`), as far as its instructions are used, and as strictly as
//! its verifier: what was not written is not read, and a pointer goes nowhere but where it may.

use std::cmp::Reverse;

const STACK: usize = 512;
/// More instructions than any way through the program has.
const MOST: usize = 1_000;

const CLASS_LD: u8 = 0x00;
const CLASS_LDX: u8 = 0x01;
const CLASS_ST: u8 = 0x02;
const CLASS_STX: u8 = 0x03;
const CLASS_JMP: u8 = 0x05;
const CLASS_ALU64: u8 = 0x07;
const MODE_MEM: u8 = 0x60;
const WIDE: u8 = 0x18;
const FROM_REGISTER: u8 = 0x08;
const MAP_BY_FD: u8 = 1;
const HELPER_LOOKUP: i32 = 1;
const HELPER_LOAD_BYTES: i32 = 26;

/// What a register holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Value {
    /// Nothing that may be read.
    Nothing,
    Number(u64),
    /// The packet's `struct __sk_buff`.
    Packet,
    /// This many bytes into the stack, whose end is at 512.
    Stack(i64),
    /// A map, by its file descriptor.
    Map(i32),
    /// A map's value.
    Found(u32),
}

/// A longest-prefix map (`kernel/bpf/lpm_trie.c`): prefix length in bits and address, and the value.
pub(super) struct Map {
    pub(super) fd: i32,
    /// Bytes of an address.
    pub(super) width: usize,
    pub(super) entries: Vec<(u32, Vec<u8>, u32)>,
}

impl Map {
    fn look_up(&self, key: &[u8]) -> Option<u32> {
        let (len, address) = key.split_first_chunk().expect("a key begins with its length");
        let len = u32::from_ne_bytes(*len);
        let matches = |entry: &&(u32, Vec<u8>, u32)| {
            entry.0 <= len && (0..entry.0 as usize).all(|bit| bit_of(&entry.1, bit) == bit_of(address, bit))
        };
        let found = self.entries.iter().filter(matches).min_by_key(|entry| Reverse(entry.0));
        found.map(|entry| entry.2)
    }
}

fn bit_of(address: &[u8], bit: usize) -> bool {
    address[bit / 8] & 0x80 >> (bit % 8) != 0
}

struct Machine<'a> {
    packet: &'a [u8],
    maps: &'a [Map],
    registers: [Value; 11],
    stack: [Option<u8>; STACK],
}

/// An instruction, taken apart.
#[derive(Clone, Copy)]
struct Insn {
    code: u8,
    to: usize,
    from: usize,
    offset: i16,
    immediate: i32,
}

impl Insn {
    fn new(bytes: [u8; 8]) -> Insn {
        let [code, registers, o0, o1, immediate @ ..] = bytes;
        let (low, high) = (usize::from(registers & 15), usize::from(registers >> 4));
        let (to, from) = if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
        let offset = i16::from_ne_bytes([o0, o1]);
        Insn { code, to, from, offset, immediate: i32::from_ne_bytes(immediate) }
    }
}

/// What the program returns for a packet, of which 32 bits count.
///
/// # Panics
///
/// Where the program does what the kernel's verifier would not let it do.
pub(super) fn run(program: &[[u8; 8]], packet: &[u8], maps: &[Map]) -> u32 {
    let program: Vec<Insn> = program.iter().map(|bytes| Insn::new(*bytes)).collect();
    let mut machine = Machine { packet, maps, registers: [Value::Nothing; 11], stack: [None; STACK] };
    machine.registers[1] = Value::Packet;
    machine.registers[10] = Value::Stack(STACK as i64);
    let mut at = 0_i64;
    for _ in 0..MOST {
        let insn = program[usize::try_from(at).expect("a jump stays within the program")];
        at += 1;
        match (insn.code & 7, insn.code & !7) {
            (CLASS_LD, WIDE) => {
                let high = program[at as usize];
                assert_eq!((high.code, high.to, high.from, high.offset), (0, 0, 0, 0), "the upper half");
                at += 1;
                let number = u64::from(high.immediate as u32) << 32 | u64::from(insn.immediate as u32);
                let is_map = insn.from == usize::from(MAP_BY_FD);
                let value = if is_map { Value::Map(insn.immediate) } else { Value::Number(number) };
                machine.set(insn.to, value);
            }
            (CLASS_ALU64, operation) => machine.calculate(insn, operation),
            (CLASS_LDX, mode) => machine.load(insn, width(mode)),
            (CLASS_ST, mode) => machine.store(insn, width(mode), Value::Number(insn.immediate as i64 as u64)),
            (CLASS_STX, mode) => machine.store(insn, width(mode), machine.get(insn.from)),
            (CLASS_JMP, 0x90) => return machine.number(0) as u32,
            (CLASS_JMP, 0x80) => machine.call(insn.immediate),
            (CLASS_JMP, 0x00) => at += i64::from(insn.offset),
            (CLASS_JMP, condition) => {
                at += if machine.holds(insn, condition) { i64::from(insn.offset) } else { 0 };
            }
            _ => panic!("an instruction of code {:#x}", insn.code),
        }
    }
    panic!("a loop");
}

/// Bytes of a memory access.
fn width(mode: u8) -> usize {
    assert_eq!(mode & 0xe0, MODE_MEM, "a memory access");
    match mode & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

impl Machine<'_> {
    fn get(&self, register: usize) -> Value {
        let value = self.registers[register];
        assert_ne!(value, Value::Nothing, "r{register} holds nothing");
        value
    }

    fn set(&mut self, register: usize, value: Value) {
        assert!(register < 10, "the frame pointer is not written");
        self.registers[register] = value;
    }

    fn number(&self, register: usize) -> u64 {
        match self.get(register) {
            Value::Number(number) => number,
            other => panic!("r{register} holds {other:?} and no number"),
        }
    }

    fn calculate(&mut self, insn: Insn, operation: u8) {
        let by = match operation & FROM_REGISTER {
            0 => Value::Number(insn.immediate as i64 as u64),
            _ => self.get(insn.from),
        };
        let operation = operation & !FROM_REGISTER;
        let value = match (operation, self.registers[insn.to], by) {
            (0xb0, _, by) => by,
            (0x00, Value::Stack(at), Value::Number(by)) => Value::Stack(at + by as i64),
            (_, Value::Number(a), Value::Number(b)) => Value::Number(match operation {
                0x00 => a.wrapping_add(b),
                0x20 => a.wrapping_mul(b),
                0x50 => a & b,
                0x60 => a << (b & 63),
                0x70 => a >> (b & 63),
                0xa0 => a ^ b,
                _ => panic!("operation {operation:#x}"),
            }),
            (_, a, b) => panic!("operation {operation:#x} of {a:?} and {b:?}"),
        };
        self.set(insn.to, value);
    }

    /// The bytes of the stack at a pointer, which are aligned as the verifier wants them.
    fn place(&mut self, pointer: Value, offset: i64, len: usize) -> &mut [Option<u8>] {
        let Value::Stack(base) = pointer else { panic!("{pointer:?} is no pointer to the stack") };
        let start = usize::try_from(base + offset).expect("within the stack");
        self.stack.get_mut(start..start + len).expect("within the stack")
    }

    fn load(&mut self, insn: Insn, width: usize) {
        let (base, offset) = (self.get(insn.from), i64::from(insn.offset));
        let value = match base {
            Value::Found(value) => {
                assert_eq!((offset, width), (0, 4), "a map's value is read whole");
                u64::from(value)
            }
            base => {
                self.assert_aligned(base, offset, width);
                let mut bytes = [0; 8];
                for (to, from) in bytes.iter_mut().zip(self.place(base, offset, width)) {
                    *to = from.expect("what is read was written before");
                }
                u64::from_ne_bytes(bytes) // little-endian: the test command's machines are
            }
        };
        self.set(insn.to, Value::Number(value));
    }

    fn store(&mut self, insn: Insn, width: usize, value: Value) {
        let Value::Number(number) = value else { panic!("{value:?} is stored") };
        let base = self.get(insn.to);
        self.assert_aligned(base, insn.offset.into(), width);
        for (to, from) in self.place(base, insn.offset.into(), width).iter_mut().zip(number.to_ne_bytes()) {
            *to = Some(from);
        }
    }

    fn assert_aligned(&self, pointer: Value, offset: i64, width: usize) {
        let Value::Stack(base) = pointer else { panic!("{pointer:?} is no pointer to the stack") };
        assert_eq!((base + offset) % width as i64, 0, "an access of {width} bytes at {offset}");
    }

    fn call(&mut self, helper: i32) {
        let result = match helper {
            HELPER_LOAD_BYTES => {
                assert_eq!(self.get(1), Value::Packet);
                let (from, len) = (self.number(2) as u32 as usize, self.number(4) as u32 as usize);
                let bytes = self.packet.get(from..from + len).map(<[u8]>::to_vec);
                let failed = bytes.is_none();
                let bytes = bytes.unwrap_or(vec![0; len]);
                let to = self.get(3);
                for (to, from) in self.place(to, 0, len).iter_mut().zip(bytes) {
                    *to = Some(from);
                }
                Value::Number(if failed { -14_i64 as u64 } else { 0 })
            }
            HELPER_LOOKUP => {
                let Value::Map(fd) = self.get(1) else { panic!("no map in r1") };
                let maps = self.maps;
                let map = maps.iter().find(|map| map.fd == fd).expect("a map of this number");
                let key = self.get(2);
                let key = self.place(key, 0, 4 + map.width).iter().map(|byte| byte.expect("a whole key"));
                let key: Vec<u8> = key.collect();
                map.look_up(&key).map_or(Value::Number(0), Value::Found)
            }
            _ => panic!("helper {helper}"),
        };
        self.registers[1..6].fill(Value::Nothing);
        self.registers[0] = result;
    }

    fn holds(&self, insn: Insn, condition: u8) -> bool {
        assert_eq!(condition & FROM_REGISTER, 0, "a comparison with a number");
        let with = insn.immediate as i64 as u64;
        let number = match self.get(insn.to) {
            Value::Number(number) => number,
            // A pointer may be compared with null alone.
            Value::Found(_) if with == 0 => 1 << 63,
            other => panic!("{other:?} is compared with {with}"),
        };
        match condition {
            0x10 => number == with,
            0x40 => number & with != 0,
            0x50 => number != with,
            _ => panic!("condition {condition:#x}"),
        }
    }
}
