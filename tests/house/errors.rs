//! That errors are types: a text tells no program what happened, and has no source.

use crate::source::{is_for_tests, sources};
use std::fmt::Write as _;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// The lines outside tests on which a type `Result<…, String>` stands.
#[derive(Default)]
struct TextErrors {
    lines: Vec<usize>,
}

impl<'ast> Visit<'ast> for TextErrors {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_path_segment(&mut self, segment: &'ast syn::PathSegment) {
        if let syn::PathArguments::AngleBracketed(list) = &segment.arguments
            && segment.ident == "Result"
            && list.args.iter().nth(1).is_some_and(is_string)
        {
            self.lines.push(segment.span().start().line);
        }
        visit::visit_path_segment(self, segment);
    }
}

fn is_string(argument: &syn::GenericArgument) -> bool {
    let syn::GenericArgument::Type(syn::Type::Path(path)) = argument else { return false };
    path.path.segments.last().is_some_and(|segment| segment.ident == "String")
}

fn text_errors(file: &syn::File) -> Vec<usize> {
    let mut found = TextErrors::default();
    found.visit_file(file);
    found.lines
}

#[test]
fn an_error_is_a_type_and_no_text() {
    let mut wrong = String::new();
    // The simulator's errors end a test, whose message they are.
    for source in sources().iter().filter(|source| source.code > 0 && source.room() != "sim") {
        for line in text_errors(&source.syntax) {
            let _ = writeln!(wrong, "{}:{line}: an error that is a String", source.path);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn the_finder_of_errors_that_are_texts_finds() {
    let file = "fn f() -> Result<(), String> { g() }\n\
        fn g() -> std::io::Result<String> { let h = |_: Result<u8, std::string::String>| (); h(); loop {} }\n\
        type Result<T> = std::result::Result<T, String>;\n\
        fn ok() -> Result<String, Error> {}\n\
        #[cfg(test)] mod tests { fn f() -> Result<(), String> {} }";
    assert_eq!(text_errors(&syn::parse_file(file).unwrap()), [1, 2, 3]);
}
