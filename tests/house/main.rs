//! The house stays as drawn: who may import whom, where `unsafe` may stand, how long a file and a function may be, that every
//! file is part of the program, that errors are types, that tests cause every counter and event, and that the documentation
//! says what is there.

#![allow(clippy::unwrap_used)] // all of it is test code

mod causes;
mod documents;
mod errors;
mod functions;
mod modules;
mod names;
mod source;

use source::sources;
use std::fmt::Write as _;

/// The rooms that a room may import, besides itself and `time`.
enum Imports {
    /// Every room that stands before it.
    AllBefore,
    Only(&'static [&'static str]),
}
use Imports::{AllBefore, Only};

/// The rooms, from the ground floor up, and what each may import.
const ROOMS: &[(&str, Imports)] = &[
    ("time", Only(&[])),
    ("wire", Only(&[])),
    ("crypto", Only(&[])),
    ("noise", Only(&["wire", "crypto"])),
    ("routing", Only(&["wire"])),
    ("index", Only(&[])),
    ("offload", Only(&["wire"])),
    ("sys", Only(&["wire"])),
    ("io", Only(&["sys", "offload", "index", "wire", "routing"])),
    ("dataplane", AllBefore),
    ("device", AllBefore),
    ("slowpath", AllBefore),
    ("tunnel", AllBefore),
    ("gateway", AllBefore),
    ("cli", AllBefore),
    (
        "sim",
        Only(&["device", "dataplane", "io", "sys", "offload", "index", "routing", "noise", "crypto", "wire"]),
    ),
];

/// Where `unsafe` may stand besides `sys`: memory that the kernel reads and writes (slab, rings, batches of messages), calls of
/// functions that are compiled for a CPU feature, after asking for it, assembly, and the wiping of memory that another library's key lies in.
const UNSAFE_OUTSIDE_SYS: &[&str] = &[
    "crypto/lanes/mod.rs",
    "crypto/lanes/avx2_long/rounds.rs",
    "crypto/lanes/avx512/rounds.rs",
    "crypto/wiped.rs",
    "io/mmsg.rs",
    "io/send.rs",
    "io/slab.rs",
    "io/tunqueue.rs",
    "io/uring/buffers.rs",
    "io/uring/mod.rs",
    "io/uring/ring.rs",
    "wire/checksum/wide.rs",
];
/// Lines a file may have.
const MAX_LINES: usize = 600;
/// Lines above an `unsafe` within which its SAFETY comment stands.
const SAFETY_LINES: usize = 3;

fn is_ident(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The byte offsets at which `word` stands as a word of its own.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| !text[..at].ends_with(is_ident) && !text[at + word.len()..].starts_with(is_ident))
}

/// The rooms that follow each `crate::` in `code`: one, or the top level of a braced list.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for at in words(code, "crate") {
        let Some(rest) = code[at..].strip_prefix("crate::") else { continue };
        let Some(list) = rest.strip_prefix('{') else {
            found.push(rest.chars().take_while(|&c| is_ident(c)).collect());
            continue;
        };
        let (mut depth, mut name, mut names) = (0, String::new(), Vec::new());
        for c in list.chars() {
            match c {
                '}' if depth == 0 => break,
                ',' if depth == 0 => names.push(std::mem::take(&mut name)),
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 && c != ',' {
                name.push(c);
            }
        }
        names.push(name);
        let first = |name: &String| name.trim().chars().take_while(|&c| is_ident(c)).collect::<String>();
        found.extend(names.iter().map(first).filter(|name| !name.is_empty()));
    }
    found
}

#[test]
fn no_room_imports_a_higher_one() {
    let mut wrong = String::new();
    for source in sources() {
        if source.path == "lib.rs" || source.path == "main.rs" {
            continue;
        }
        let room = source.room();
        let Some(floor) = ROOMS.iter().position(|(name, _)| *name == room) else {
            let _ = writeln!(wrong, "{}: no such room", source.path);
            continue;
        };
        let may = |import: &str| match ROOMS[floor].1 {
            AllBefore => ROOMS[..floor].iter().any(|(name, _)| *name == import),
            Only(rooms) => rooms.contains(&import),
        };
        let code: String = source.code().flat_map(|(_, line)| [line, "\n"]).collect();
        for import in imports(&code) {
            if import != room && import != "time" && !may(&import) {
                let _ = writeln!(wrong, "{}: imports {import}", source.path);
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn floors_are_in_order() {
    for (i, (room, may)) in ROOMS.iter().enumerate() {
        let Only(lower_rooms) = may else { continue };
        for lower in *lower_rooms {
            assert!(
                ROOMS[..i].iter().any(|(name, _)| name == lower),
                "{room} may import {lower}, which is above it"
            );
        }
    }
}

#[test]
fn unsafe_stands_only_where_it_may_and_says_why() {
    let mut wrong = String::new();
    for source in sources() {
        for (number, line) in source.code() {
            let line = line.split('"').step_by(2).collect::<String>();
            if words(&line, "unsafe").next().is_none() {
                continue;
            }
            if source.room() != "sys" && !UNSAFE_OUTSIDE_SYS.contains(&source.path.as_str()) {
                let _ = writeln!(wrong, "{}:{number}: unsafe outside sys", source.path);
            }
            let above = &source.lines[number.saturating_sub(1 + SAFETY_LINES)..number];
            if !above.iter().any(|line| line.contains("SAFETY") || line.contains("# Safety")) {
                let _ = writeln!(wrong, "{}:{number}: unsafe without SAFETY", source.path);
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn files_are_short() {
    let long = sources().into_iter().filter(|source| source.lines.len() > MAX_LINES);
    let long: Vec<_> = long.map(|source| (source.path, source.lines.len())).collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn nothing_is_left_over_from_writing_it() {
    let mut wrong = String::new();
    for source in sources() {
        let talks = source.room() == "cli" || source.path == "main.rs";
        for (number, line) in source.code() {
            let left = ["todo", "unimplemented", "dbg", "println", "print"].into_iter().find(|name| {
                let calls = words(line, name).any(|at| line[at + name.len()..].starts_with('!'));
                calls && !(talks && name.starts_with("print"))
            });
            if let Some(name) = left {
                let _ = writeln!(wrong, "{}:{number}: {name}!", source.path);
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn the_reader_of_imports_reads() {
    assert_eq!(imports("use crate::wire::ip;"), ["wire"]);
    assert_eq!(
        imports("use crate::{io::{self, Io}, noise, time::Instant};\nlet x = crate::device::f();"),
        ["io", "noise", "time", "device"]
    );
    assert!(imports("pub(crate) fn f() {}").is_empty());
}
