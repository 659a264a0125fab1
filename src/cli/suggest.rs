//! A word that stands where an interface's name would, and is meant as a verb. `ringtun staus` makes no interface.

use std::path::Path;

/// The verbs of other tools, and the command that does the same here.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (&["list", "ls", "info", "interfaces", "dump", "peers"], "ringtun show"),
    (&["start", "enable", "connect"], "ringtun up"),
    (&["stop", "disable", "disconnect", "delete", "del", "remove", "rm", "kill"], "ringtun down"),
    (&["restart", "refresh", "sync", "update"], "ringtun reload"),
    (&["add", "invite", "add-peer", "addpeer"], "ringtun peer add"),
    (&["keygen"], "ringtun genkey"),
    (&["config"], "ringtun showconf"),
    (&["verify", "validate", "test", "lint"], "ringtun check"),
    (&["install", "uninstall"], "scripts/install"),
    (&["version"], "ringtun --version"),
    (&["set"], "wg set"),
    (&["setconf"], "wg setconf"),
    (&["addconf"], "wg addconf"),
    (&["syncconf"], "wg syncconf"),
];

/// How many letters of a verb are enough to mean it.
const ABBREVIATION: usize = 4;

/// The command that `word` is probably meant to be. A word with a digit is a name, as most interfaces' names have one.
/// So is a word that has a configuration.
pub(super) fn command<'a>(word: &str, verbs: impl Iterator<Item = &'a str>) -> Option<String> {
    if word.bytes().any(|byte| byte.is_ascii_digit()) || has_configuration(word) {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let distance = |verb: &str| strsim::damerau_levenshtein(&word, verb);
    let close = |verb: &&str| distance(verb) <= slips(verb, &word) || abbreviates(&word, verb);
    let near = verbs.filter(close).min_by_key(|verb| distance(verb)).map(|verb| format!("ringtun {verb}"));
    near.or_else(|| {
        let (_, meant) = ELSEWHERE.iter().find(|(words, _)| words.contains(&word.as_str()))?;
        Some((*meant).to_owned())
    })
}

fn has_configuration(name: &str) -> bool {
    Path::new("/etc/wireguard").join(format!("{name}.conf")).exists()
}

/// How many slips of a finger may lie between a verb and a word that is meant as that verb.
fn slips(verb: &str, word: &str) -> usize {
    match verb.len() {
        // `us` and `uk` may be names of interfaces; `pu` and `upp` are `up` mistyped.
        ..=2 => usize::from(word.len() > verb.len() || word.bytes().rev().eq(verb.bytes())),
        3..=5 => 1,
        _ => 2,
    }
}

fn abbreviates(word: &str, verb: &str) -> bool {
    word.len() >= ABBREVIATION && verb.starts_with(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBS: [&str; 18] = [
        "genkey", "genpsk", "pubkey", "service", "show", "showconf", "status", "doctor", "up", "down",
        "save", "reload", "check", "strip", "mtu", "peer", "import", "export",
    ];

    #[test]
    fn a_mistyped_verb_is_known_by_its_neighbour() {
        let pairs = [
            ("staus", "status"),
            ("stauts", "status"),
            ("stat", "status"),
            ("dwon", "down"),
            ("dowm", "down"),
            ("Down", "down"),
            ("pubky", "pubkey"),
            ("gen-key", "genkey"),
            ("sohw", "show"),
            ("show-conf", "showconf"),
            ("pu", "up"),
            ("upp", "up"),
            ("relaod", "reload"),
            ("chekc", "check"),
            ("docter", "doctor"),
            ("imprt", "import"),
        ];
        for (word, verb) in pairs {
            assert_eq!(command(word, VERBS.into_iter()), Some(format!("ringtun {verb}")), "{word}");
        }
        for (word, meant) in [("list", "ringtun show"), ("stop", "ringtun down"), ("set", "wg set")] {
            assert_eq!(command(word, VERBS.into_iter()).as_deref(), Some(meant), "{word}");
        }
    }

    #[test]
    fn an_interfaces_name_is_no_verb() {
        for name in ["wg0", "home", "office", "us", "uk", "tun", "vpn", "server", "show1", "mullvad-se", "x"]
        {
            assert_eq!(command(name, VERBS.into_iter()), None, "{name}");
        }
    }

    #[test]
    fn words_of_other_tools_are_no_verbs_of_ours() {
        for (words, _) in ELSEWHERE {
            for word in *words {
                assert!(!VERBS.contains(word), "{word}");
            }
        }
    }
}
