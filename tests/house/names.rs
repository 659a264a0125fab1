//! That a name of a type stands for one idea: each is declared once.

use crate::source::{is_for_tests, sources};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use syn::visit::{self, Visit};

/// Names that several files may declare, and why.
const SHARED: &[(&str, &str)] = &[
    // Rust's own idiom: a file's functions fail in one way, and the name says no more than `std::result::Result` does.
    ("Result", "a file's alias with its error type"),
];

/// The types that a file declares outside tests, whoever can see them.
#[derive(Default)]
struct Types {
    found: Vec<String>,
}

impl<'ast> Visit<'ast> for Types {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let (attributes, name) = match item {
            syn::Item::Struct(item) => (&item.attrs, &item.ident),
            syn::Item::Enum(item) => (&item.attrs, &item.ident),
            syn::Item::Union(item) => (&item.attrs, &item.ident),
            syn::Item::Trait(item) => (&item.attrs, &item.ident),
            syn::Item::Type(item) => (&item.attrs, &item.ident),
            syn::Item::Mod(module) if is_for_tests(&module.attrs) => return,
            other => return visit::visit_item(self, other),
        };
        if !is_for_tests(attributes) {
            self.found.push(name.to_string());
        }
        visit::visit_item(self, item);
    }
}

fn types(file: &syn::File) -> Vec<String> {
    let mut types = Types::default();
    types.visit_file(file);
    types.found
}

#[test]
fn a_name_of_a_type_is_declared_once() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources().iter().filter(|source| source.code > 0) {
        for name in types(&source.syntax) {
            places.entry(name).or_default().push(source.path.clone());
        }
    }
    let mut wrong = String::new();
    for (name, places) in places.iter().filter(|(_, places)| places.len() > 1) {
        if !SHARED.iter().any(|(shared, _)| shared == name) {
            let _ = writeln!(wrong, "{name}: {}", places.join(", "));
        }
    }
    assert!(wrong.is_empty(), "one name for several types\n{wrong}");
}

#[test]
fn the_finder_of_types_finds() {
    let file =
        "struct A; fn f() { enum B {} } mod m { trait C { type D; } } #[cfg(test)] mod tests { struct E; }";
    assert_eq!(types(&syn::parse_file(file).unwrap()), ["A", "B", "C"]);
}
