//! Reads `nft -j list ruleset` (libnftables-json(5)).

use super::{Chain, Condition, FirewallRule, Hook, RuleVerdict, Tool};
use serde_json::Value;
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// Sets and maps, by the name of their table and their own.
type Sets<'a> = HashMap<(String, &'a str), &'a Value>;

/// All chains of the families that carry IP. `None` where the text is not what nft prints.
pub(in super::super) fn read(text: &str) -> Option<Vec<Chain>> {
    let root: Value = serde_json::from_str(text).ok()?;
    let objects = root.get("nftables")?.as_array()?;
    let of_kind = |kind: &'static str| {
        objects.iter().filter_map(move |object| {
            let object = object.get(kind)?;
            Some((table_of(object)?, object))
        })
    };
    let named = of_kind("set").chain(of_kind("map"));
    let sets: Sets<'_> =
        named.filter_map(|(table, set)| Some(((table, str_of(set, "name")?), set.get("elem")?))).collect();
    let mut chains: Vec<Chain> =
        of_kind("chain").filter_map(|(table, chain)| read_chain(table, chain)).collect();
    for (table, rule) in of_kind("rule") {
        let name = str_of(rule, "chain");
        let chain = chains.iter_mut().find(|chain| chain.table == table && Some(chain.name.as_str()) == name);
        let (Some(chain), Some(statements)) = (chain, rule.get("expr").and_then(Value::as_array)) else {
            continue;
        };
        chain.rules.extend(read_rule(statements, &table, &sets));
    }
    Some(chains)
}

/// Whether a family's table holds what only iptables can read.
pub(in super::super) fn has_foreign(text: &str, table: &str) -> bool {
    let root: Value = serde_json::from_str(text).unwrap_or_default();
    let objects = root.get("nftables").and_then(Value::as_array).into_iter().flatten();
    let rules = objects.filter_map(|object| object.get("rule"));
    let mut statements = rules
        .filter(|rule| table_of(rule).is_some_and(|one| one == table))
        .filter_map(|rule| rule.get("expr")?.as_array())
        .flatten();
    statements.any(|statement| statement.get("xt").is_some())
}

fn str_of<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

fn table_of(object: &Value) -> Option<String> {
    let family = str_of(object, "family")?;
    let table = str_of(object, "table")?;
    matches!(family, "ip" | "ip6" | "inet").then(|| format!("{family} {table}"))
}

fn read_chain(table: String, chain: &Value) -> Option<Chain> {
    let hook = match str_of(chain, "hook") {
        Some("input") => Some(Hook::Input),
        Some("forward") => Some(Hook::Forward),
        _ => None,
    };
    let base = hook.map(|hook| (hook, str_of(chain, "policy") == Some("drop")));
    Some(Chain { tool: Tool::Nft, table, name: str_of(chain, "name")?.into(), base, rules: Vec::new() })
}

/// Reads one rule. A rule with a map of verdicts becomes several.
fn read_rule(statements: &[Value], table: &str, sets: &Sets<'_>) -> Vec<FirewallRule> {
    let mut rule = FirewallRule::default();
    for statement in statements {
        let Some((kind, body)) = statement.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        if kind == "match" {
            rule.conditions.push(read_match(body, table, sets));
        } else if kind == "vmap" {
            return read_map(&rule, body, table, sets);
        } else if let Some(verdict) = read_verdict(kind, body) {
            rule.verdict = Some(verdict);
        } else if matches!(kind.as_str(), "limit" | "xt" | "quota" | "ct count") {
            rule.conditions.push(Condition::Unknown);
        }
    }
    vec![rule]
}

fn read_verdict(kind: &str, body: &Value) -> Option<RuleVerdict> {
    let target = || str_of(body, "target").map(str::to_owned);
    match kind {
        "accept" => Some(RuleVerdict::Accept),
        "drop" | "reject" => Some(RuleVerdict::Drop),
        "return" => Some(RuleVerdict::Return),
        "jump" => target().map(RuleVerdict::Jump),
        "goto" => target().map(RuleVerdict::Goto),
        _ => None,
    }
}

fn read_map(before: &FirewallRule, map: &Value, table: &str, sets: &Sets<'_>) -> Vec<FirewallRule> {
    let Some(data) = map.get("data").and_then(|data| elements(data, table, sets)) else { return Vec::new() };
    let read = |pair: &&Value| {
        let [key, verdict] = pair.as_array()?.as_slice() else { return None };
        let (kind, body) = verdict.as_object()?.iter().next()?;
        let mut rule = before.clone();
        rule.conditions.push(condition(map.get("key")?, &[key]));
        rule.verdict = read_verdict(kind, body);
        Some(rule)
    };
    data.iter().filter_map(read).collect()
}

fn read_match(body: &Value, table: &str, sets: &Sets<'_>) -> Condition {
    let values = body.get("right").and_then(|right| elements(right, table, sets));
    let (Some(left), Some(values)) = (body.get("left"), values) else { return Condition::Unknown };
    match str_of(body, "op") {
        Some("==" | "in") => condition(left, &values),
        Some("!=") => Condition::Not(Box::new(condition(left, &values))),
        _ => Condition::Unknown,
    }
}

/// The values on a match's right side, one by one. `None` where that is a set that is not there.
fn elements<'a>(right: &'a Value, table: &str, sets: &Sets<'a>) -> Option<Vec<&'a Value>> {
    let listed = match right {
        Value::String(name) if name.starts_with('@') => sets.get(&(table.to_owned(), &name[1..]))?,
        other => other.get("set").unwrap_or(other),
    };
    let one = |value: &'a Value| value.get("elem").and_then(|element| element.get("val")).unwrap_or(value);
    Some(listed.as_array().map_or_else(|| vec![one(listed)], |values| values.iter().map(one).collect()))
}

/// The condition that a match's left side is one of the values.
fn condition(left: &Value, values: &[&Value]) -> Condition {
    let names = || values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect();
    if let Some(parts) = left.get("concat").and_then(Value::as_array) {
        return concatenated(parts, values);
    }
    let meta = left.get("meta").and_then(|meta| str_of(meta, "key"));
    let payload = left
        .get("payload")
        .and_then(|payload| Some((str_of(payload, "protocol")?, str_of(payload, "field")?)));
    let tracked = left.get("ct").and_then(|tracked| str_of(tracked, "key"));
    match (meta, payload, tracked) {
        (Some("iif" | "iifname"), ..) => Condition::From(names()),
        (Some("oif" | "oifname"), ..) => Condition::To(names()),
        (Some("l4proto"), ..) | (_, Some(("ip", "protocol") | ("ip6", "nexthdr")), _) => {
            Condition::Protocol(names())
        }
        (_, Some(("udp" | "th", "dport")), _) => {
            Condition::Ports(values.iter().filter_map(|value| ports(value)).collect())
        }
        (_, Some(("udp" | "th" | "ip" | "ip6" | "ether", _)), _) => Condition::Unknown,
        (_, Some((protocol, _)), _) => Condition::Protocol(vec![protocol.to_owned()]),
        (_, _, Some("state")) => Condition::States(names()),
        _ => Condition::Unknown,
    }
}

/// The condition of several things side by side: the one among them that names a tunnel.
fn concatenated(parts: &[Value], values: &[&Value]) -> Condition {
    let conditions = parts.iter().enumerate().map(|(at, part)| {
        let of_part = values.iter().filter_map(|value| value.get("concat")?.get(at));
        condition(part, &of_part.collect::<Vec<_>>())
    });
    let mut telling = conditions
        .filter(|one| matches!(one, Condition::Ports(_) | Condition::From(_) | Condition::To(_)))
        .collect::<Vec<_>>();
    telling.sort_by_key(|one| !matches!(one, Condition::Ports(_)));
    telling.into_iter().next().unwrap_or(Condition::Unknown)
}

fn ports(value: &Value) -> Option<RangeInclusive<u16>> {
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
    match value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        Some([first, last]) => Some(number(first)?..=number(last)?),
        _ => number(value).map(|port| port..=port),
    }
}
