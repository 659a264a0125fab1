//! That every file is part of the program, and that files of a room do not import each other in a circle.

use crate::source::{Source, is_for_tests, sources};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use syn::visit::{self, Visit};

type Module = Vec<String>;

/// Paths of a file's code outside tests, as far as they name modules of this crate.
struct Paths {
    /// The module that the path stands in.
    module: Module,
    found: BTreeSet<Module>,
}

impl Paths {
    /// `segments` as a path from the crate's root; `None`: it is another crate's, or relative in a way that names no file.
    fn absolute(&self, segments: &[String]) -> Option<Module> {
        let up = segments.iter().take_while(|segment| *segment == "super").count();
        match segments.first()?.as_str() {
            "crate" => Some(segments[1..].to_vec()),
            "super" => {
                let kept = self.module.len().checked_sub(up)?;
                Some(self.module[..kept].iter().chain(&segments[up..]).cloned().collect())
            }
            _ => Some(self.module.iter().chain(segments).cloned().collect()),
        }
    }

    fn note(&mut self, segments: &[String]) {
        self.found.extend(self.absolute(segments));
    }

    fn use_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| before.iter().cloned().chain([name.to_string()]).collect::<Vec<_>>();
        match tree {
            syn::UseTree::Path(path) => self.use_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.note(&with(&name.ident)),
            syn::UseTree::Rename(name) => self.note(&with(&name.ident)),
            syn::UseTree::Glob(_) => self.note(before),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(before, tree)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_for_tests(&item.attrs) {
            self.use_tree(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            let segments: Vec<String> =
                path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.note(&segments);
        }
        visit::visit_path(self, path);
    }
}

/// Which files of a room each file imports, parents and children left out: a room's `mod.rs` draws its files together.
fn imports(sources: &[Source]) -> BTreeMap<Module, BTreeSet<Module>> {
    let files: BTreeSet<Module> = sources.iter().map(Source::module).collect();
    let mut imports = BTreeMap::new();
    for source in sources.iter().filter(|source| source.code > 0) {
        let module = source.module();
        let mut paths = Paths { module: module.clone(), found: BTreeSet::new() };
        paths.visit_file(&source.syntax);
        let file = |path: &Module| {
            (1..=path.len()).rev().map(|len| path[..len].to_vec()).find(|path| files.contains(path))
        };
        let apart = |other: &Module| !other.starts_with(&module) && !module.starts_with(other);
        let same_room = |other: &Module| other.first() == module.first();
        let others = paths.found.iter().filter_map(file).filter(|other| same_room(other) && apart(other));
        imports.insert(module.clone(), others.collect());
    }
    imports
}

/// A way from `from` back to itself.
fn circle(imports: &BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> Option<Vec<Module>> {
    let mut ways = vec![vec![from.clone()]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for next in imports.get(way.last()?).into_iter().flatten() {
            let longer: Vec<Module> = way.iter().chain([next]).cloned().collect();
            if next == from {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                ways.push(longer);
            }
        }
    }
    None
}

#[test]
fn no_files_of_a_room_import_each_other_in_a_circle() {
    let imports = imports(&sources());
    let mut wrong = String::new();
    for from in imports.keys() {
        // Each circle once: by the first of its files.
        if let Some(way) = circle(&imports, from).filter(|way| way.iter().min() == Some(from)) {
            let way: Vec<String> = way.iter().map(|module| module.join("/")).collect();
            let _ = writeln!(wrong, "{}", way.join(" -> "));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn every_file_is_part_of_the_program() {
    let sources = sources();
    let mut declared: BTreeSet<Module> = BTreeSet::new();
    for source in &sources {
        let module = if source.path == "lib.rs" { Vec::new() } else { source.module() };
        for item in &source.syntax.items {
            if let syn::Item::Mod(child) = item {
                declared.insert(module.iter().cloned().chain([child.ident.to_string()]).collect());
            }
        }
    }
    let roots = ["lib.rs", "main.rs"];
    let dead: Vec<&str> = sources
        .iter()
        .filter(|source| !roots.contains(&source.path.as_str()) && !declared.contains(&source.module()))
        .map(|source| source.path.as_str())
        .collect();
    assert!(dead.is_empty(), "no module declares {dead:?}");
}

#[test]
fn the_finder_of_circles_finds() {
    let module = |name: &str| vec!["room".to_owned(), name.to_owned()];
    let of = |list: &[(&str, &[&str])]| -> BTreeMap<Module, BTreeSet<Module>> {
        list.iter().map(|(from, to)| (module(from), to.iter().map(|name| module(name)).collect())).collect()
    };
    let straight = of(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])]);
    assert!(straight.keys().all(|from| circle(&straight, from).is_none()));
    let round = of(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"])]);
    assert_eq!(circle(&round, &module("a")).unwrap().len(), 4);
}
