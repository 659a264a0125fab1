//! The static tracepoints of the program's file, and that the scripts of `perf/` name what there is.

use crate::implementation::{ringtun, ringtun_itself};
use crate::lab::{find_program, serial, skip};
use ringtun::sys::trace::TRACEPOINTS;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// The type of a note that describes a tracepoint (NT_STAPSDT).
const STAPSDT: u32 = 3;
/// What stands in the program where a tracepoint is, by the ELF number of the architecture: `nop`.
const NOPS: [(u16, &[u8]); 2] = [(62, &[0x90]), (183, &[0x1f, 0x20, 0x03, 0xd5])];

/// A tracepoint in a file.
#[derive(Debug)]
struct Place {
    provider: String,
    name: String,
    arguments: usize,
    address: u64,
}

/// A 64-bit little-endian ELF file.
struct Elf(Vec<u8>);

impl Elf {
    fn read(path: &Path) -> Elf {
        let bytes = std::fs::read(path).expect("the program");
        assert_eq!(&bytes[..6], b"\x7fELF\x02\x01", "{}", path.display());
        Elf(bytes)
    }

    fn number<const N: usize>(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.0[at..at + N]);
        u64::from_le_bytes(bytes)
    }

    /// Name, address, offset and size of each section.
    fn sections(&self) -> Vec<(String, u64, usize, usize)> {
        let (table, size) = (self.number::<8>(0x28) as usize, self.number::<2>(0x3a) as usize);
        let (count, names) = (self.number::<2>(0x3c) as usize, self.number::<2>(0x3e) as usize);
        let header = |index: usize| table + index * size;
        let names = self.number::<8>(header(names) + 0x18) as usize;
        let section = |index| {
            let at = header(index);
            let name = text(&self.0[names + self.number::<4>(at) as usize..]);
            let numbers = [0x10, 0x18, 0x20].map(|offset| self.number::<8>(at + offset));
            (name, numbers[0], numbers[1] as usize, numbers[2] as usize)
        };
        (0..count).map(section).collect()
    }

    /// All tracepoints.
    fn places(&self) -> Vec<Place> {
        let sections = self.sections();
        let find = |name: &str| sections.iter().find(|section| section.0 == name);
        let Some((_, _, offset, size)) = find(".note.stapsdt") else { return Vec::new() };
        let base = find(".stapsdt.base").expect("what addresses are relative to").1;
        let (mut at, end, mut places) = (*offset, offset + size, Vec::new());
        while at < end {
            let [name_len, len, kind] = [0, 4, 8].map(|offset| self.number::<4>(at + offset) as usize);
            let owner = at + 12;
            let body = owner + name_len.next_multiple_of(4);
            if kind as u32 == STAPSDT && text(&self.0[owner..]) == "stapsdt" {
                let words: Vec<String> =
                    self.0[body + 24..body + len].split(|&byte| byte == 0).map(text).collect();
                let moved = base.wrapping_sub(self.number::<8>(body + 8));
                places.push(Place {
                    provider: words[0].clone(),
                    name: words[1].clone(),
                    arguments: words[2].split_whitespace().count(),
                    address: self.number::<8>(body).wrapping_add(moved),
                });
            }
            at = body + len.next_multiple_of(4);
        }
        places
    }

    /// The program's bytes from an address on. `None` where that is not in its code.
    fn code(&self, address: u64) -> Option<&[u8]> {
        let (_, start, offset, size) = self.sections().into_iter().find(|section| section.0 == ".text")?;
        let at = usize::try_from(address.checked_sub(start)?).ok().filter(|at| *at < size)?;
        self.0.get(offset + at..)
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// That a file has every tracepoint, with its arguments, where a `nop` is.
#[track_caller]
fn expect_all(path: &Path) {
    let elf = Elf::read(path);
    let machine = elf.number::<2>(0x12) as u16;
    let (_, nop) = NOPS.iter().find(|(number, _)| *number == machine).expect("x86-64 or aarch64");
    let mut found: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for place in elf.places().iter().filter(|place| place.provider == "ringtun") {
        // The note stays of a function that the linker left out: it names no place in the code.
        let Some(code) = elf.code(place.address) else { continue };
        assert!(code.starts_with(nop), "{place:?} is no nop");
        found.entry(place.name.clone()).or_default().insert(place.arguments);
    }
    let expected: BTreeMap<String, BTreeSet<usize>> = TRACEPOINTS
        .iter()
        .map(|(name, arguments)| ((*name).to_owned(), BTreeSet::from([*arguments])))
        .collect();
    assert_eq!(found, expected, "{}", path.display());
}

#[test]
fn the_program_has_every_tracepoint_also_as_it_is_packaged() {
    if !ringtun_itself() {
        return;
    }
    expect_all(&ringtun());
    if find_program("strip").is_none() {
        return skip("strip (binutils) is not installed");
    }
    let stripped = std::env::temp_dir().join(format!("rt-trace-{}-{}", std::process::id(), serial()));
    let done = Command::new("strip").arg("-o").arg(&stripped).arg(ringtun()).status().unwrap();
    assert!(done.success());
    expect_all(&stripped);
    std::fs::remove_file(stripped).unwrap();
}

/// The tracepoints that a script names, and the greatest argument that it takes of each: `usdt:…:NAME { … arg1 … }`.
fn used(script: &str) -> BTreeMap<String, usize> {
    let mut used = BTreeMap::new();
    let code = script.split_once("*/").expect("a header").1;
    for clause in code.split("\n\n").flat_map(|part| part.split("\n}\n")).flat_map(|part| part.split("; }\n"))
    {
        let names = clause.split("usdt:$1:ringtun:").skip(1);
        let end = |text: &str| text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        let arguments = (0..10).filter(|number| clause.contains(&format!("arg{number}"))).max();
        for name in names.map(|text| text[..end(text)].to_owned()) {
            let most = used.entry(name).or_insert(0);
            *most = (*most).max(arguments.map_or(0, |last| last + 1));
        }
    }
    used
}

#[test]
fn scripts_name_tracepoints_that_there_are_and_each_is_named() {
    let known: BTreeMap<&str, usize> = TRACEPOINTS.iter().copied().collect();
    let mut named = BTreeSet::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("perf")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "bt") {
            continue;
        }
        let script = std::fs::read_to_string(&path).unwrap();
        let header = script.split_once("*/").unwrap_or_default().0;
        for part in ["#!/usr/bin/env bpftrace", "?", "sudo bpftrace perf/", " * Example: "] {
            assert!(header.contains(part), "{}: the header has no {part:?}", path.display());
        }
        for (name, arguments) in used(&script) {
            let has = known.get(name.as_str());
            assert!(
                has.is_some_and(|&has| arguments <= has),
                "{}: {name} with {arguments}: {has:?}",
                path.display()
            );
            named.insert(name);
        }
    }
    let all: BTreeSet<String> = known.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(named, all);
}

#[test]
fn the_reader_of_scripts_reads() {
    let script = "/* ? */\nusdt:$1:ringtun:a_b { @x = hist(arg1); }\nusdt:$1:ringtun:c { f(arg0); }\n\n\
        usdt:$1:ringtun:d, usdt:$1:ringtun:e /@x[tid]/ {\n    g(arg0);\n    h(arg3);\n}\nusdt:$1:ringtun:f { i(); }\n";
    let expected = [("a_b", 2), ("c", 1), ("d", 4), ("e", 4), ("f", 0)];
    let expected: BTreeMap<String, usize> = expected.map(|(name, count)| (name.to_owned(), count)).into();
    assert_eq!(used(script), expected);
}
