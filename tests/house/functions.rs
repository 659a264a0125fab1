//! How long a function may be.

use crate::source::{is_for_tests, sources};
use std::fmt::Write as _;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Lines that a function may have, from its signature to its closing brace.
const MAX_LINES: usize = 60;

struct Functions {
    /// Name, and lines, of each function outside tests.
    found: Vec<(String, usize)>,
}

impl Functions {
    fn note(&mut self, name: &syn::Ident, span: proc_macro2::Span) {
        self.found.push((name.to_string(), span.end().line + 1 - span.start().line));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        let span = function.sig.span().join(function.block.span()).unwrap_or_else(|| function.block.span());
        self.note(&function.sig.ident, span);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        let span = function.sig.span().join(function.block.span()).unwrap_or_else(|| function.block.span());
        self.note(&function.sig.ident, span);
        visit::visit_impl_item_fn(self, function);
    }
}

#[test]
fn functions_are_short() {
    let mut wrong = String::new();
    for source in sources().iter().filter(|source| source.code > 0) {
        let mut functions = Functions { found: Vec::new() };
        functions.visit_file(&source.syntax);
        for (name, lines) in functions.found.into_iter().filter(|(_, lines)| *lines > MAX_LINES) {
            let _ = writeln!(wrong, "{}: {name} has {lines} lines: more than {MAX_LINES}", source.path);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}
