//! Reads what iptables-save(8) and ip6tables-save(8) print of the table `filter`.

use super::{Chain, Condition, FirewallRule, Hook, RuleVerdict, Tool};
use std::ops::RangeInclusive;

/// Reads the chains. `program` is the program that changes them.
pub(in super::super) fn read(text: &str, program: &'static str) -> Vec<Chain> {
    let family = if program.starts_with("ip6") { "ip6 filter" } else { "ip filter" };
    let mut chains: Vec<Chain> = Vec::new();
    let mut in_filter = false;
    for line in text.lines() {
        if let Some(table) = line.strip_prefix('*') {
            in_filter = table == "filter";
        } else if let (true, Some(chain)) = (in_filter, line.strip_prefix(':')) {
            let mut words = chain.split_whitespace();
            let name = words.next().unwrap_or_default().to_owned();
            let hook = match name.as_str() {
                "INPUT" => Some(Hook::Input),
                "FORWARD" => Some(Hook::Forward),
                _ => None,
            };
            let drops = words.next() == Some("DROP");
            let base = hook.map(|hook| (hook, drops));
            chains.push(Chain {
                tool: Tool::Iptables(program),
                table: family.into(),
                name,
                base,
                rules: Vec::new(),
            });
        } else if let (true, Some(rule)) = (in_filter, line.strip_prefix("-A ")) {
            let words = words(rule);
            let Some((name, words)) = words.split_first() else { continue };
            let rule = read_rule(words, |target| chains.iter().any(|chain| chain.name == target));
            if let Some(chain) = chains.iter_mut().find(|chain| chain.name == *name) {
                chain.rules.push(rule);
            }
        }
    }
    chains
}

/// Splits a line into words. Quotes hold a word with blanks together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

fn read_rule(words: &[String], is_chain: impl Fn(&str) -> bool) -> FirewallRule {
    let mut rule = FirewallRule::default();
    let mut words = words.iter().map(String::as_str).peekable();
    let mut negated = false;
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        let mut value = || words.next_if(|next| !next.starts_with('-') && *next != "!").unwrap_or_default();
        let condition = match word {
            "-j" | "-g" => {
                rule.verdict = verdict(word, value(), &is_chain);
                // What follows is about the rule's target.
                break;
            }
            // A module asks nothing by itself, and a comment never does.
            "-m" | "--comment" => {
                value();
                continue;
            }
            "-p" => Condition::Protocol(list(value())),
            "-i" => Condition::From(interfaces(value())),
            "-o" => Condition::To(interfaces(value())),
            "--dport" | "--dports" => Condition::Ports(value().split(',').filter_map(ports).collect()),
            "--ctstate" | "--state" => Condition::States(list(&value().to_ascii_lowercase())),
            _ => {
                // Some options take several values.
                while !value().is_empty() {}
                Condition::Unknown
            }
        };
        rule.conditions.push(if std::mem::take(&mut negated) {
            Condition::Not(Box::new(condition))
        } else {
            condition
        });
    }
    rule
}

fn verdict(option: &str, target: &str, is_chain: impl Fn(&str) -> bool) -> Option<RuleVerdict> {
    match target {
        "ACCEPT" => Some(RuleVerdict::Accept),
        "DROP" | "REJECT" => Some(RuleVerdict::Drop),
        "RETURN" => Some(RuleVerdict::Return),
        name if is_chain(name) && option == "-g" => Some(RuleVerdict::Goto(name.into())),
        name if is_chain(name) => Some(RuleVerdict::Jump(name.into())),
        _ => None,
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

/// The names of interfaces as nft writes them. `wg+` is every interface whose name begins with `wg`.
fn interfaces(text: &str) -> Vec<String> {
    vec![text.strip_suffix('+').map_or_else(|| text.to_owned(), |beginning| format!("{beginning}*"))]
}

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}
