//! The tree's source files, as text and as syntax.

use std::path::{Path, PathBuf};
use syn::spanned::Spanned;

/// One file below `src`.
pub(crate) struct Source {
    /// Path below `src`.
    pub(crate) path: String,
    pub(crate) lines: Vec<String>,
    /// Lines before the tests at the end of the file; 0 for a file of tests.
    pub(crate) code: usize,
    pub(crate) syntax: syn::File,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Source {
        let text = std::fs::read_to_string(path).unwrap();
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let of_tests = path.ends_with("tests.rs") || path.contains("/tests/");
        let code = if of_tests { 0 } else { end_of_code(&syntax, lines.len()) };
        Source { path, lines, code, syntax }
    }

    /// The room: the first part of the path.
    pub(crate) fn room(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// The module that the file is: `io::uring::ring` for `io/uring/ring.rs`.
    pub(crate) fn module(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        path.split('/').map(str::to_owned).collect()
    }

    /// Lines of code outside tests: number and text without comments.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.lines.iter().take(self.code).enumerate();
        lines.map(|(i, line)| (i + 1, without_comment(line)))
    }
}

fn without_comment(line: &str) -> &str {
    match line.trim_start().starts_with("//") {
        true => "",
        false => line.split(" // ").next().unwrap_or(line),
    }
}

/// Where `#[cfg(test)] mod … {` begins, which stands last in a file.
fn end_of_code(syntax: &syn::File, lines: usize) -> usize {
    let tests = syntax.items.iter().find_map(|item| match item {
        syn::Item::Mod(module) if module.content.is_some() && is_for_tests(&module.attrs) => Some(module),
        _ => None,
    });
    tests.map_or(lines, |module| module.span().start().line - 1)
}

/// Whether `attributes` say `#[cfg(test)]`, alone or among other conditions.
pub(crate) fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        list.path.is_ident("cfg")
            && list.tokens.to_string().split(['(', ')', ',', ' ']).any(|word| word == "test")
    })
}

/// The paths of all files below `folder` whose names end in `.rs`, sorted.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

/// The top of the tree.
pub(crate) fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `src`.
pub(crate) fn sources() -> Vec<Source> {
    let root = top().join("src");
    files(&root).iter().map(|path| Source::read(&root, path)).collect()
}
