//! That every counter, and every event with its reasons, is caused by a test: whoever adds one shows what moves it.

use crate::source::{files, sources, top};
use crate::words;
use std::fmt::Write as _;

/// Files that declare counters. The first are one worker's, the others the slow path's.
const COUNTERS: &[&str] = &["dataplane/stats.rs", "device/stats.rs"];
/// The file that declares the events, and its types whose variants are to be caused.
const EVENTS: &str = "device/events.rs";
const EVENT_TYPES: &[&str] = &["EventKind", "RefusalReason", "DisconnectReason"];
/// What the counters of a backend begin with. They mirror those that the tests of the backends name without it.
const OF_BACKEND: &str = "io_";
/// Where tests stand that cause things. Others make up counters and events, to see how they are shown.
const CAUSING: &[&str] = &["dataplane/worker/", "device/tests/", "device/events/watching.rs", "io/"];
/// Folders below `tests` in which nothing is caused, or where names are read and not written.
const NOT_CAUSING: &[&str] = &["house", "fuzz", "common"];

/// The text of all tests that cause something: that of the whole program, and that of the backends alone.
struct Tests {
    all: String,
    of_backends: String,
}

impl Tests {
    fn read() -> Tests {
        let mut tests = Tests { all: String::new(), of_backends: String::new() };
        for source in sources() {
            if !CAUSING.iter().any(|place| source.path.starts_with(place)) {
                continue;
            }
            let text = source.lines[source.code..].join("\n");
            if source.path.starts_with("io/") {
                tests.of_backends.push_str(&text);
            }
            tests.all.push_str(&text);
        }
        let root = top().join("tests");
        for path in files(&root) {
            let folder = path.strip_prefix(&root).unwrap().components().next().unwrap();
            if !NOT_CAUSING.iter().any(|name| folder.as_os_str() == *name) {
                tests.all.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
        tests
    }

    fn count(&self, name: &str) -> bool {
        let mirrored =
            name.strip_prefix(OF_BACKEND).is_some_and(|name| names_counter(&self.of_backends, name));
        mirrored || names_counter(&self.all, name)
    }

    fn cause(&self, of: &str, variant: &str) -> bool {
        let path = format!("{of}::{variant}");
        // Tests of the whole program see events as JSON.
        let json = format!("\\\"event\\\":\\\"{}\\\"", snake(variant));
        words(&self.all, &path).next().is_some() || self.all.contains(&json)
    }
}

/// Whether `text` names a counter, as a field of counters or by its name. That it is 0 says nothing of what moves it.
fn names_counter(text: &str, name: &str) -> bool {
    words(text, name).any(|at| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        let is_field =
            before.ends_with("stats.") || before.ends_with("stats().") || before.ends_with("counted.");
        let is_name = before.ends_with('"') && after.starts_with('"');
        let rest = after.lines().next().unwrap_or_default();
        let is_zero = rest.trim_start_matches(['"', ')']).starts_with(", 0)");
        (is_field || is_name) && !is_zero
    })
}

/// A variant's name in the JSON of events.
fn snake(variant: &str) -> String {
    let mut name = String::new();
    for (i, c) in variant.char_indices() {
        if i > 0 && c.is_uppercase() {
            name.push('_');
        }
        name.extend(c.to_lowercase());
    }
    name
}

/// The fields that a call of `counters!` declares: the names behind its head, which ends with a semicolon.
fn counters(syntax: &syn::File) -> Vec<String> {
    use proc_macro2::TokenTree::{Ident, Punct};
    let found = syntax.items.iter().find_map(|item| match item {
        syn::Item::Macro(item) if item.mac.path.is_ident("counters") => Some(item.mac.tokens.clone()),
        _ => None,
    });
    let is_end = |token: &proc_macro2::TokenTree| matches!(token, Punct(sign) if sign.as_char() == ';');
    let fields = found.into_iter().flatten().skip_while(|token| !is_end(token));
    let names = fields.filter_map(|token| match token {
        Ident(name) => Some(name.to_string()),
        _ => None,
    });
    names.collect()
}

fn variants(syntax: &syn::File, of: &str) -> Vec<String> {
    let found = syntax.items.iter().find_map(|item| match item {
        syn::Item::Enum(item) if item.ident == of => Some(&item.variants),
        _ => None,
    });
    found.into_iter().flatten().map(|variant| variant.ident.to_string()).collect()
}

#[test]
fn every_counter_and_every_event_is_caused_by_a_test() {
    let (tests, sources) = (Tests::read(), sources());
    let syntax = |path: &str| &sources.iter().find(|source| source.path == path).unwrap().syntax;
    let mut wrong = String::new();
    for path in COUNTERS {
        let declared = counters(syntax(path));
        assert!(declared.len() > 10, "{path}: {declared:?}");
        for name in declared.iter().filter(|name| !tests.count(name)) {
            let _ = writeln!(wrong, "{path}: no test moves the counter {name}");
        }
    }
    for of in EVENT_TYPES {
        let declared = variants(syntax(EVENTS), of);
        assert!(declared.len() > 3, "{of}: {declared:?}");
        for variant in declared.iter().filter(|variant| !tests.cause(of, variant)) {
            let _ = writeln!(wrong, "{EVENTS}: no test causes {of}::{variant}");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn the_finders_of_counters_and_variants_find() {
    let file = "counters! { /// Head.\n Stats of u64, read |x| *x; /// One; of two.\n one, /// Two.\n two_more, }\n\
        enum Kind { A, B { c: u8 }, C(u8) }";
    let syntax = syn::parse_file(file).unwrap();
    assert_eq!(counters(&syntax), ["one", "two_more"]);
    assert_eq!(variants(&syntax, "Kind"), ["A", "B", "C"]);
    assert_eq!(snake("WorkerNotice"), "worker_notice");
}

#[test]
fn a_counter_is_named_as_a_field_or_by_its_name_and_not_as_zero() {
    assert!(names_counter("rig.count(|stats| &stats.one) > 0", "one"));
    assert!(names_counter("device.stats().one", "one") && names_counter("lab.counter(0, \"one\")", "one"));
    assert!(!names_counter("stats.one_more", "one") && !names_counter("one", "one"));
    assert!(!names_counter("assert_eq!(rig.count(|stats| &stats.one), 0);", "one"));
    assert!(!names_counter("assert_eq!(lab.counter(0, \"one\"), 0);", "one"));
}
