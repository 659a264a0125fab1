//! What is said of files that are not in wg-quick's language, and of files that no tunnel works with.

use super::*;
use crate::crypto::x25519::PrivateKey;
use crate::gateway::config::lint;

/// Line and message of each error.
fn errors(bytes: &[u8]) -> Vec<(usize, String)> {
    let errors = Document::new(bytes).parse().expect_err("an error");
    errors.into_iter().map(|error| (error.line, error.message)).collect()
}

/// The one error of a text, at this line and with this part.
fn one_error(bytes: &[u8], line: usize, part: &str) {
    let errors = errors(bytes);
    let shown = String::from_utf8_lossy(bytes);
    assert!(
        matches!(&errors[..], [(at, message)] if *at == line && message.contains(part)),
        "{shown}: {errors:?}"
    );
}

fn good() -> String {
    format!(
        "[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.1/24\n[Peer]\nPublicKey = {OTHER}\nAllowedIPs = 10.0.0.2/32\n"
    )
}

#[test]
fn another_encoding_is_named_in_one_line() {
    let good = good();
    one_error(format!("\u{feff}{good}").as_bytes(), 1, "byte order mark");
    let wide = |bytes: fn(u16) -> [u8; 2]| good.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let (little, big) = (wide(u16::to_le_bytes), wide(u16::to_be_bytes));
    for text in
        [little.clone(), big.clone(), [b"\xff\xfe", &little[..]].concat(), [b"\xfe\xff", &big[..]].concat()]
    {
        one_error(&text, 1, "UTF-16");
    }
    assert!(Document::new(good.as_bytes()).parse().is_ok());
    assert!(Document::new("[Interface]\n# ä 漢字\n".as_bytes()).parse().is_ok());
}

#[test]
fn another_comment_mark_is_named() {
    for mark in [";", "//"] {
        one_error(
            good().replace("Address", &format!("{mark} here\nAddress")).as_bytes(),
            3,
            "begins no comment",
        );
        one_error(format!("{mark} here\n{}", good()).as_bytes(), 1, "begins no comment");
        let behind = |value: &str| good().replace(value, &format!("{value} {mark} here"));
        for (value, line) in [("10.0.0.2/32", 6), ("10.0.0.1/24", 3), (PRIVATE, 2), (OTHER, 5)] {
            one_error(behind(value).as_bytes(), line, "a comment begins with `#`");
        }
    }
}

#[test]
fn another_separator_is_named() {
    for (line, number) in [("Address = ", 3), ("PrivateKey = ", 2), ("PublicKey = ", 5), ("AllowedIPs = ", 6)]
    {
        let key = line.trim_end_matches(" = ");
        let colon = good().replace(line, &format!("{key}: "));
        let found = errors(colon.as_bytes());
        assert!(
            found.iter().any(|(at, message)| *at == number && message.contains("instead of `:`")),
            "{found:?}"
        );
        assert!(!format!("{found:?}").contains(&PRIVATE[..8]), "{found:?}");
        let blank = good().replace(line, &format!("{key} "));
        let found = errors(blank.as_bytes());
        let told = |message: &str| {
            message.contains("the `=` is missing") || message.contains(&format!("expected `{key} = VALUE`"))
        };
        assert!(found.iter().any(|(at, message)| *at == number && told(message)), "{found:?}");
        assert!(!format!("{found:?}").contains(&PRIVATE[..8]), "{found:?}");
    }
}

#[test]
fn a_missing_comma_is_named() {
    one_error(good().replace("/32", "/32 10.0.0.3/32").as_bytes(), 6, "a comma is missing");
    one_error(good().replace("/32", "/32, 10.0.0.3/32 fd00::/8").as_bytes(), 6, "a comma is missing");
    let no_comma = errors(good().replace("10.0.0.2/32", "10.0.0.2/33 , fd00::/8").as_bytes());
    assert!(!no_comma[0].1.contains("comma"), "{no_comma:?}");
}

#[test]
fn a_relatives_keys_are_named_once() {
    let text = good().replace("Address", "Jc = 4\nJmin = 40\nJmax = 70\nS1 = 0\nH1 = 1\nAddress");
    one_error(text.as_bytes(), 3, "AmneziaWG");
}

/// What `check` says of a text that can be read.
fn broken(text: &str) -> Vec<String> {
    let document = Document::new(text.as_bytes());
    let config = document.parse().unwrap_or_else(|errors| panic!("{text}: {errors:?}")).0;
    lint::broken(&document, &config)
        .iter()
        .map(|warning| format!("{}: {warning}", warning.line().unwrap_or(0)))
        .collect()
}

fn one_broken(text: &str, part: &str) {
    let found = broken(text);
    assert!(matches!(&found[..], [message] if message.contains(part)), "{text}: {found:?}");
}

#[test]
fn what_no_tunnel_works_with_is_told_although_the_language_has_nothing_against_it() {
    let good = good();
    let own = PrivateKey::from_base64(PRIVATE).unwrap().public().to_base64();
    assert_eq!(broken(&good), [""; 0]);
    one_broken("", "1: there is nothing in it");
    one_broken("# a comment\n\n", "1: there is nothing in it");
    one_broken(&good[good.find("[Peer]").unwrap()..], "1: there is no [Interface]");
    one_broken(&good.replace("PrivateKey", "# PrivateKey"), "1: there is no PrivateKey");
    one_broken(&good.replace(OTHER, &own), "4: the peer's PublicKey is this interface's own");
    one_broken(
        &good.replace("10.0.0.2/32", "10.0.0.1/32"),
        "4: AllowedIPs 10.0.0.1/32 is this interface's own",
    );
    one_broken(
        &good.replace("10.0.0.2/32", "192.0.2.0/24\nEndpoint = 192.0.2.7:1"),
        "4: AllowedIPs 192.0.2.0/24 holds",
    );
    one_broken(&good.replace("Address", "DNS = 9.9.9.9 ; quad\nAddress"), "1: DNS");
}

#[test]
fn what_may_work_is_not_called_broken() {
    let good = good();
    let keyless = good.replace("PrivateKey", "# PrivateKey");
    for hook in [
        "PreUp = wg set %i private-key /k",
        "PostUp = wg setconf %i /etc/x",
        "PostUp = /etc/wireguard/keys.sh %i",
    ] {
        assert_eq!(broken(&keyless.replace("Address", &format!("{hook}\nAddress"))), [""; 0], "{hook}");
    }
    let hook = keyless.replace("Address", "PostUp = iptables -A FORWARD -i %i -j ACCEPT\nAddress");
    one_broken(&hook, "there is no PrivateKey");
    let within = good.replace("10.0.0.2/32", "192.0.2.0/24\nEndpoint = 192.0.2.7:1");
    for interface in ["Table = off", "Table = 7", "PreUp = ip route add 192.0.2.7 via 10.1.1.1"] {
        assert_eq!(
            broken(&within.replace("Address", &format!("{interface}\nAddress"))),
            [""; 0],
            "{interface}"
        );
    }
    assert_eq!(broken(&within.replace("192.0.2.0/24", "0.0.0.0/0, ::/0")), [""; 0]);
    assert_eq!(
        broken(&good.replace("10.0.0.2/32", "10.0.0.0/24")),
        [""; 0],
        "a client sends to the whole network"
    );
}
