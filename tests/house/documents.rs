//! That the documentation says what is there: doc comments are sentences, and the rules that code cites are written down and tested.

use crate::source::{files, sources, top};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use syn::visit::{self, Visit};

/// Words that a sentence has at least.
const WORDS: usize = 2;

/// Public items whose documentation does not begin with a sentence.
struct Undocumented {
    found: Vec<String>,
}

impl Undocumented {
    fn check(&mut self, visibility: &syn::Visibility, attributes: &[syn::Attribute], name: &str) {
        if matches!(visibility, syn::Visibility::Public(_)) && !begins_with_a_sentence(&doc(attributes)) {
            self.found.push(name.to_owned());
        }
    }
}

fn doc(attributes: &[syn::Attribute]) -> String {
    let mut text = String::new();
    for attribute in attributes {
        let syn::Meta::NameValue(pair) = &attribute.meta else { continue };
        if let (true, syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(line), .. })) =
            (pair.path.is_ident("doc"), &pair.value)
        {
            text.push_str(line.value().trim());
            text.push('\n');
        }
    }
    text
}

/// Whether the first paragraph of `text` is whole: words, and a mark that ends a sentence.
fn begins_with_a_sentence(text: &str) -> bool {
    let first = text.split("\n\n").next().unwrap_or_default().trim();
    first.split_whitespace().count() >= WORDS && first.ends_with(['.', ':', '?', '!', ')'])
}

impl<'ast> Visit<'ast> for Undocumented {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check(&item.vis, &item.attrs, &item.sig.ident.to_string());
    }
    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check(&item.vis, &item.attrs, &item.sig.ident.to_string());
    }
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.check(&item.vis, &item.attrs, &item.ident.to_string());
        visit::visit_item_struct(self, item);
    }
    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.check(&item.vis, &item.attrs, &item.ident.to_string());
    }
    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.check(&item.vis, &item.attrs, &item.ident.to_string());
    }
    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.check(&item.vis, &item.attrs, &item.ident.to_string());
    }
    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.check(&item.vis, &item.attrs, &item.ident.to_string());
    }
}

#[test]
fn documentation_of_public_items_is_made_of_sentences() {
    let mut wrong = String::new();
    for source in sources() {
        let mut undocumented = Undocumented { found: Vec::new() };
        undocumented.visit_file(&source.syntax);
        for name in undocumented.found {
            let _ = writeln!(wrong, "{}: {name}", source.path);
        }
    }
    assert!(wrong.is_empty(), "no sentence documents\n{wrong}");
}

#[test]
fn the_judge_of_sentences_judges() {
    assert!(begins_with_a_sentence("The peer's public key.\n"));
    assert!(!begins_with_a_sentence("the key"));
    assert!(!begins_with_a_sentence("Bytes.\n"));
    assert!(!begins_with_a_sentence(""));
}

/// The numbers that follow "rule" or "rules" in `text`.
fn cited(text: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let words: Vec<&str> = text.split_whitespace().collect();
    for pair in words.windows(2) {
        let word = pair[0].trim_start_matches(['(', '[', '`']).to_ascii_lowercase();
        let number = pair[1].trim_matches(|c: char| !c.is_ascii_digit());
        if (word == "rule" || word == "rules") && pair[1].starts_with(|c: char| c.is_ascii_digit()) {
            found.extend(number.parse::<u32>());
        }
    }
    found
}

/// Each `### Rule N` of the architecture page with its text.
fn rules() -> BTreeMap<u32, String> {
    let text = std::fs::read_to_string(top().join("docs/architecture.md")).unwrap();
    let mut rules = BTreeMap::new();
    for section in text.split("\n### Rule ").skip(1) {
        let section = section.split("\n## ").next().unwrap_or_default();
        let (number, rest) = section.split_once(':').unwrap();
        rules.insert(number.parse().unwrap(), rest.to_owned());
    }
    rules
}

#[test]
fn rules_that_code_cites_are_written_down() {
    let rules = rules();
    let mut wrong = String::new();
    for source in sources() {
        let comments =
            source.lines.iter().filter_map(|line| line.split_once("//")).map(|(_, comment)| comment);
        let text: String =
            comments.flat_map(|comment| [comment.trim_start_matches(['/', '!']), " "]).collect();
        // The wire's numbers of netfilter's and routing's own rules are no rules of ours.
        for number in cited(&text).into_iter().filter(|number| !rules.contains_key(number)) {
            let _ = writeln!(wrong, "{}: rule {number}", source.path);
        }
    }
    assert!(wrong.is_empty(), "docs/architecture.md has no\n{wrong}");
}

#[test]
fn every_rule_names_tests_that_exist() {
    let mut code = String::new();
    for folder in ["tests", "src"] {
        for path in files(&top().join(folder)) {
            code.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
    let mut wrong = String::new();
    for (number, text) in rules() {
        let tests = text.split_once("Tests:").map(|(_, tests)| tests).unwrap_or_default();
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            let _ = writeln!(wrong, "rule {number} names no test");
        }
        for name in names.iter().filter(|name| !code.contains(&format!("fn {name}("))) {
            let _ = writeln!(wrong, "rule {number}: there is no test {name}");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn the_finder_of_citations_finds() {
    assert_eq!(cited("Order (rule 3 of the design); Rules 7 and so on"), BTreeSet::from([3, 7]));
    assert!(cited("a rule of thumb, rules").is_empty());
}
