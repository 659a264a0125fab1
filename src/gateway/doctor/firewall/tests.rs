//! Rules in nft's and iptables' words, and what they do with a tunnel's packets.

use super::*;

/// nft's own output for a table `inet f` with these rules in a chain of `hook`, and those of a chain `more`.
fn ruleset(hook: &str, policy: &str, rules: &[&str], more: &[&str]) -> Vec<Chain> {
    let rule = |chain: &str, rule: &str| {
        format!(r#",{{"rule":{{"family":"inet","table":"f","chain":"{chain}","expr":[{rule}]}}}}"#)
    };
    let mut text = format!(
        r#"{{"nftables":[{{"metainfo":{{"version":"1.0.6"}}}},
        {{"chain":{{"family":"inet","table":"f","name":"c","type":"filter","hook":"{hook}","prio":0,"policy":"{policy}"}}}},
        {{"chain":{{"family":"inet","table":"f","name":"more"}}}},
        {{"set":{{"family":"inet","name":"ports","table":"f","type":"inet_service","elem":[4500,{{"range":[6000,6010]}}]}}}},
        {{"map":{{"family":"inet","name":"m","table":"f","type":"inet_service","map":"verdict","elem":[[7,{{"accept":null}}]]}}}}"#
    );
    text.extend(rules.iter().map(|one| rule("c", one)));
    text.extend(more.iter().map(|one| rule("more", one)));
    nft(&(text + "]}")).expect("what nft prints")
}

const DROP: &str = r#"{"counter":{"packets":0,"bytes":0}},{"drop":null}"#;
const REJECT: &str = r#"{"reject":{"type":"icmpx","expr":"port-unreachable"}}"#;

fn equals(left: &str, right: &str) -> String {
    format!(r#"{{"match":{{"op":"==","left":{left},"right":{right}}}}}"#)
}

const PORT: &str = r#"{"payload":{"protocol":"udp","field":"dport"}}"#;
const BY: &str = r#"{"meta":{"key":"iifname"}}"#;
const BEHIND: &str = r#"{"meta":{"key":"oifname"}}"#;
const ACCEPT: &str = r#",{"accept":null}"#;

#[track_caller]
fn assert_lets_in(rules: &[&str], more: &[&str], port: u16, expected: bool) {
    for (policy, end) in [("drop", None), ("accept", Some(DROP)), ("accept", Some(REJECT))] {
        let rules: Vec<&str> = rules.iter().copied().chain(end).collect();
        let chains = ruleset("input", policy, &rules, more);
        let found = blocking_chain(&chains, Hook::Input, &[FirstPacket::ToPort(port)]);
        assert_eq!(found.is_none(), expected, "{rules:?} {found:?}");
        let by_policy = end.is_none() && !rules.iter().chain(more).any(|rule| *rule == DROP);
        assert!(found.is_none_or(|blocking| blocking.by_policy == by_policy), "{rules:?}");
    }
}

#[test]
fn a_port_that_no_rule_opens_is_shut_by_a_policy_as_by_a_last_rule() {
    let state = |right: &str| equals(r#"{"ct":{"key":"state"}}"#, right) + ACCEPT;
    let tcp = equals(r#"{"payload":{"protocol":"tcp","field":"dport"}}"#, "51820") + ACCEPT;
    let sender = equals(r#"{"payload":{"protocol":"ip","field":"saddr"}}"#, "\"@lan\"") + ACCEPT;
    let rules = [
        state(r#"["established","related"]"#),
        equals(BY, "\"lo\"") + ACCEPT,
        equals(r#"{"meta":{"key":"l4proto"}}"#, r#"{"set":["icmp","ipv6-icmp"]}"#) + ACCEPT,
        tcp,
        sender,
        equals(PORT, "53") + ACCEPT,
        r#"{"vmap":{"key":{"ct":{"key":"state"}},"data":{"set":[["established",{"accept":null}],["invalid",{"drop":null}]]}}}"#.into(),
        r#"{"limit":{"rate":5,"per":"second"}},{"log":{"prefix":"no "}}"#.into(),
        format!(r#"{{"match":{{"op":"!=","left":{PORT},"right":51820}}}}{ACCEPT}"#),
    ];
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    assert_lets_in(&[], &[], 51820, false);
    assert_lets_in(&rules, &[], 51820, false);
}

#[test]
fn a_port_is_open_however_a_rule_names_it() {
    for right in [
        "51820",
        r#"{"set":[53,51820]}"#,
        r#"{"range":[51000,52000]}"#,
        r#"{"set":[{"elem":{"val":51820,"comment":"x"}}]}"#,
    ] {
        assert_lets_in(&[&(equals(PORT, right) + ACCEPT)], &[], 51820, true);
    }
    for (port, expected) in [(4500, true), (6005, true), (51820, false)] {
        assert_lets_in(&[&(equals(PORT, "\"@ports\"") + ACCEPT)], &[], port, expected);
    }
    let map = format!(r#"{{"vmap":{{"key":{PORT},"data":"@m"}}}}"#);
    assert_lets_in(&[&map], &[], 7, true);
    assert_lets_in(&[&map], &[], 8, false);
    let pair = r#"{"concat":[{"meta":{"key":"l4proto"}},{"payload":{"protocol":"th","field":"dport"}}]}"#;
    let pairs = r#"{"set":[{"concat":["tcp",22]},{"concat":["udp",51820]}]}"#;
    assert_lets_in(&[&(equals(pair, pairs) + ACCEPT)], &[], 51820, true);
    // For whom the port is open is for the rule's author to know.
    let from = equals(BY, "\"eth0\"") + "," + &equals(PORT, "51820") + ACCEPT;
    assert_lets_in(&[&from], &[], 51820, true);
    let udp = equals(r#"{"payload":{"protocol":"ip","field":"protocol"}}"#, "\"udp\"") + ACCEPT;
    assert_lets_in(&[&udp], &[], 51820, true);
    // A rule behind one that drops everything opens nothing.
    assert_lets_in(&[DROP, &(equals(PORT, "51820") + ACCEPT)], &[], 51820, false);
}

#[test]
fn chains_within_chains_are_followed() {
    let open = equals(PORT, "51820") + ACCEPT;
    let jump = r#"{"jump":{"target":"more"}}"#;
    assert_lets_in(&[jump], &[&open], 51820, true);
    assert_lets_in(&[jump], &[&open], 51821, false);
    assert_lets_in(&[jump], &[DROP, &open], 51820, false);
    assert_lets_in(&[jump], &[r#"{"return":null}"#, &open], 51820, false);
    // The rule stands behind a condition that may hold, as in firewalld's zones.
    let zone = equals(BY, "\"eth0\"") + r#",{"goto":{"target":"more"}}"#;
    assert_lets_in(&[&zone], &[&open], 51820, true);
    assert_lets_in(&[&zone], &[r#"{"accept":null}"#], 51820, false);
    let chosen = equals(PORT, "51820") + r#",{"jump":{"target":"more"}}"#;
    assert_lets_in(&[&chosen], &[r#"{"accept":null}"#], 51820, true);
    // The kernel would refuse such a chain. Here it must not lead into an endless loop.
    assert_lets_in(&[jump], &[jump], 51820, false);
    let chains = ruleset("input", "accept", &[r#"{"goto":{"target":"more"}}"#, DROP], &[]);
    assert!(
        blocking_chain(&chains, Hook::Input, &[FirstPacket::ToPort(1)]).is_none(),
        "what follows goto is not asked"
    );
}

#[test]
fn a_tunnel_forwards_where_one_of_its_directions_is_let_through() {
    let both = [FirstPacket::OutOf("wg0"), FirstPacket::Into("wg0")];
    let is_open = |rules: &[&str]| {
        blocking_chain(&ruleset("forward", "drop", rules, &[]), Hook::Forward, &both).is_none()
    };
    assert!(!is_open(&[]));
    for (rule, expected) in [
        (equals(BY, "\"wg0\"") + ACCEPT, true),
        (equals(BY, "\"wg*\"") + ACCEPT, true),
        (equals(BY, "\"wg1\"") + ACCEPT, false),
        (equals(BY, "\"docker0\"") + ACCEPT, false),
        (equals(BEHIND, r#"{"set":["eth0","wg0"]}"#) + ACCEPT, true),
        (equals(BY, "\"eth0\"") + "," + &equals(BEHIND, "\"wg0\"") + ACCEPT, true),
        (equals(r#"{"ct":{"key":"state"}}"#, r#"["established"]"#) + ACCEPT, false),
        (r#"{"accept":null}"#.into(), true),
    ] {
        assert_eq!(is_open(&[&rule]), expected, "{rule}");
    }
    // A forward chain decides nothing about input, and a family without IP decides nothing at all.
    assert!(
        blocking_chain(&ruleset("forward", "drop", &[], &[]), Hook::Input, &[FirstPacket::ToPort(1)])
            .is_none()
    );
    assert!(nft(r#"{"nftables":[{"chain":{"family":"bridge","table":"f","name":"c","hook":"forward","policy":"drop"}}]}"#).unwrap().is_empty());
    assert!(nft("Error: no JSON").is_none());
}

#[test]
fn iptables_words_mean_the_same() {
    let text = |policy: &str, rules: &str| {
        format!(
            "# Generated\n*nat\n:INPUT DROP [0:0]\nCOMMIT\n*filter\n:INPUT {policy} [0:0]\n:FORWARD DROP [0:0]\n:more - [0:0]\n{rules}\nCOMMIT\n"
        )
    };
    let is_open = |policy: &str, rules: &str| {
        let chains = iptables(&text(policy, rules), "iptables");
        blocking_chain(&chains, Hook::Input, &[FirstPacket::ToPort(51820)]).is_none()
    };
    assert!(is_open("ACCEPT", "") && !is_open("DROP", ""));
    let end = "\n-A INPUT -j REJECT --reject-with icmp-port-unreachable";
    for (rule, expected) in [
        ("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", false),
        ("-A INPUT -i lo -j ACCEPT", false),
        ("-A INPUT ! -i lo -j ACCEPT", true),
        ("-A INPUT -p tcp -m tcp --dport 51820 -j ACCEPT", false),
        ("-A INPUT -p udp -m udp --dport 51820 -m comment --comment \"a -j DROP \\\"b\" -j ACCEPT", true),
        ("-A INPUT -p udp -m multiport --dports 53,51000:52000 -j ACCEPT", true),
        ("-A INPUT -s 10.0.0.0/8 -j ACCEPT", false),
        ("-A INPUT -s 10.0.0.0/8 -p udp -m udp --dport 51820 -j ACCEPT", true),
        ("-A INPUT -p udp -m udp ! --dport 51820 -j ACCEPT", false),
        ("-A INPUT -m limit --limit 5/min -j LOG --log-prefix \"no \"", false),
        ("-A INPUT -j more\n-A more -p udp -m udp --dport 51820 -j ACCEPT", true),
        ("-A INPUT -g more", false),
    ] {
        assert_eq!(is_open("DROP", rule), expected, "{rule}");
        assert_eq!(is_open("ACCEPT", &format!("{rule}{end}")), expected || rule.contains("-g"), "{rule}");
    }
    let chains = iptables(&text("ACCEPT", "-A FORWARD -i wg+ -j ACCEPT"), "ip6tables");
    assert!(blocking_chain(&chains, Hook::Forward, &[FirstPacket::OutOf("wg0")]).is_none());
    assert!(
        blocking_chain(&chains, Hook::Forward, &[FirstPacket::OutOf("tun0")])
            .is_some_and(|blocking| blocking.by_policy)
    );
}

#[test]
fn chains_that_many_ways_lead_to_are_gone_through_once() {
    // Twenty ways from each chain to the next would make 20^14 ways to the last.
    let (chains, ways) = (14, 20);
    let mut text = "*filter\n:INPUT ACCEPT [0:0]\n".to_owned();
    (0..chains).for_each(|at| text += &format!(":c{at} - [0:0]\n"));
    text += "-A INPUT -j c0\n";
    for at in 0..chains - 1 {
        text += &format!("-A c{at} -s 10.0.0.0/8 -j c{}\n", at + 1).repeat(ways);
        text += &format!("-A c{at} -j c{}\n", at + 1);
    }
    text += &format!("-A c{} -p udp -j DROP\nCOMMIT\n", chains - 1);
    let chains = iptables(&text, "iptables");
    let blocking = blocking_chain(&chains, Hook::Input, &[FirstPacket::ToPort(51820)]);
    assert!(blocking.is_some_and(|blocking| !blocking.by_policy && blocking.chain.name == "INPUT"));
}
