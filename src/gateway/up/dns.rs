//! The host's resolvers while the tunnel is up, set through resolvconf(8) as wg-quick does, or through
//! systemd-resolved.

use super::{Console, Failure, Result, hooks, program};
use crate::gateway::config::Interface;
use std::path::Path;

/// The program that manages resolvers on this host.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Manager {
    /// resolvconf(8), with the name of the tunnel's record.
    Resolvconf(String),
    /// systemd-resolved.
    Resolved,
}

/// Finds the manager of resolvers. resolvconf comes first, unless it is systemd-resolved's front end by another name.
pub(super) fn manager(interface: &str) -> Result<Manager> {
    match hooks::find("resolvconf") {
        // That front end takes a record's name for the interface's, and so knows no prefix.
        Some(program) if is_resolvectl(&program) => Ok(Manager::Resolved),
        Some(_) => {
            let order = std::fs::read_to_string("/etc/resolvconf/interface-order").unwrap_or_default();
            Ok(Manager::Resolvconf(prefix(&order) + interface))
        }
        None if hooks::find("resolvectl").is_some() && Path::new("/run/systemd/resolve").exists() => {
            Ok(Manager::Resolved)
        }
        None => Err(Failure::new(
            "DNS: neither resolvconf(8) nor systemd-resolved is here: install one of them, or remove DNS from the file",
        )),
    }
}

fn is_resolvectl(program: &Path) -> bool {
    std::fs::canonicalize(program).is_ok_and(|target| target.ends_with("resolvectl"))
}

/// The first pattern `PREFIX*` in resolvconf's order, with a dot in the place of the star. A record with such a name
/// comes first.
fn prefix(order: &str) -> String {
    let good = |word: &&str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let word = order.lines().find_map(|line| line.strip_suffix('*').filter(good));
    word.map(|word| format!("{word}.")).unwrap_or_default()
}

/// Makes the interface's resolvers the only ones.
pub(super) fn set(
    manager: &Manager,
    name: &str,
    interface: &Interface,
    console: &mut Console<'_>,
) -> Result<()> {
    let servers: Vec<String> = interface.dns.iter().map(ToString::to_string).collect();
    match manager {
        Manager::Resolvconf(record) => {
            let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
            if !interface.dns_search.is_empty() {
                text += &format!("search {}\n", interface.dns_search.join(" "));
            }
            program(console, "resolvconf", &["-a", record, "-m", "0", "-x"], &text)
        }
        Manager::Resolved => {
            let words = |first: &[&str], rest: &[String]| -> Vec<String> {
                first.iter().map(ToString::to_string).chain(rest.iter().cloned()).collect()
            };
            // `~.` sends the look-ups of all names to these servers.
            for words in
                [words(&["dns", name], &servers), words(&["domain", name, "~."], &interface.dns_search)]
            {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                program(console, "resolvectl", &words, "")?;
            }
            Ok(())
        }
    }
}

/// Undoes [`set`].
pub(super) fn unset(manager: &Manager, name: &str, console: &mut Console<'_>) -> Result<()> {
    match manager {
        Manager::Resolvconf(record) => program(console, "resolvconf", &["-d", record, "-f"], ""),
        Manager::Resolved => program(console, "resolvectl", &["revert", name], ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_named_after_the_first_pattern_of_the_order() {
        assert_eq!(prefix("# comment\nlo.inet6\nlo.inet\ntun*\ntap*\n"), "tun.");
        assert_eq!(prefix("lo\n@(br)*([^.]).inet6\n"), "");
        assert_eq!(prefix(""), "");
    }
}
