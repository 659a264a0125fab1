//! Rules of iptables(8), where there is no nft(8). Their effect is that of the rules in [`super::firewall`], and those
//! against spoofing are worded as wg-quick(8)'s. A comment in each rule says to which tunnel it belongs.

use super::{Console, Result, hooks, program};
use crate::gateway::config::Address;
use crate::gateway::mtu::mss;
use crate::wire::family::Family;
use std::process::Command;

/// Whether iptables is installed for a family.
pub(super) fn is_installed(v6: bool) -> bool {
    hooks::find(tool(v6).1).is_some()
}

/// The programs that print the rules of a family and that take them.
fn tool(v6: bool) -> (&'static str, &'static str) {
    match v6 {
        false => ("iptables-save", "iptables-restore"),
        true => ("ip6tables-save", "ip6tables-restore"),
    }
}

/// wg-quick's comment for an interface, by which both programs can remove the rules.
fn spoof_comment(interface: &str) -> String {
    format!("-m comment --comment \"wg-quick(8) rule for {interface}\"")
}

fn clamp_comment(interface: &str) -> String {
    format!("-m comment --comment \"ringtun clamps MSS for {interface}\"")
}

fn spoof_rules(interface: &str, v6: bool, table: u32, addresses: &[Address]) -> String {
    let comment = spoof_comment(interface);
    let mut text = "*raw\n".to_owned();
    for address in addresses.iter().filter(|address| address.addr.is_ipv6() == v6) {
        let addr = address.addr;
        text += &format!(
            "-I PREROUTING ! -i {interface} -d {addr} -m addrtype ! --src-type LOCAL -j DROP {comment}\n"
        );
    }
    text + &format!(
        "COMMIT\n*mangle\n\
         -I POSTROUTING -m mark --mark {table} -p udp -j CONNMARK --save-mark {comment}\n\
         -I PREROUTING -p udp -j CONNMARK --restore-mark {comment}\nCOMMIT\n"
    )
}

fn clamp_rules(interface: &str, v6: bool, mtu: u32) -> String {
    let mss = mss(mtu, if v6 { Family::Ipv6 } else { Family::Ipv4 });
    let (syn, comment) = ("-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS", clamp_comment(interface));
    format!(
        "*mangle\n-I FORWARD -o {interface} {syn} --clamp-mss-to-pmtu {comment}\n\
         -I FORWARD -i {interface} {syn} --set-mss {mss} {comment}\nCOMMIT\n"
    )
}

/// Adds the rules of [`spoof_rules`] in the place of earlier ones.
pub(super) fn add_spoof_rules(
    interface: &str,
    v6: bool,
    table: u32,
    addresses: &[Address],
    console: &mut Console<'_>,
) -> Result<()> {
    remove_spoof(interface, v6, console)?;
    program(console, tool(v6).1, &["-w", "-n"], &spoof_rules(interface, v6, table, addresses))
}

/// Adds the rules of [`clamp_rules`] in the place of earlier ones.
pub(super) fn clamp(interface: &str, v6: bool, mtu: u32, console: &mut Console<'_>) -> Result<()> {
    remove_clamp(interface, v6, console)?;
    program(console, tool(v6).1, &["-w", "-n"], &clamp_rules(interface, v6, mtu))
}

/// Removes the rules against spoofing, if there are some.
pub(super) fn remove_spoof(interface: &str, v6: bool, console: &mut Console<'_>) -> Result<()> {
    remove(v6, &spoof_comment(interface), console)
}

/// Removes the clamping rules, if there are some.
pub(super) fn remove_clamp(interface: &str, v6: bool, console: &mut Console<'_>) -> Result<()> {
    remove(v6, &clamp_comment(interface), console)
}

fn remove(v6: bool, comment: &str, console: &mut Console<'_>) -> Result<()> {
    let (save, restore) = tool(v6);
    let Some(save) = hooks::find(save) else { return Ok(()) };
    let Ok(saved) = Command::new(save).output() else { return Ok(()) };
    match deletion(&String::from_utf8_lossy(&saved.stdout), comment) {
        Some(text) => program(console, restore, &["-w", "-n"], &text),
        None => Ok(()),
    }
}

/// The commands that delete the rules with this comment. `None` where there are none.
fn deletion(saved: &str, comment: &str) -> Option<String> {
    let mut text = String::new();
    for line in saved.lines() {
        match line.strip_prefix("-A ") {
            Some(rule) if rule.contains(comment) => text += &format!("-D {rule}\n"),
            None if line.starts_with('*') || line == "COMMIT" => text += &format!("{line}\n"),
            _ => {}
        }
    }
    text.contains("-D ").then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_a_comment_are_deleted_and_no_others() {
        let (ours, other) = (spoof_comment("wg0"), spoof_comment("wg01"));
        let saved = format!(
            "# by iptables-save\n*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 10.0.0.1/32 {ours} -j DROP\n\
             -A PREROUTING -d 10.0.0.2/32 {other} -j DROP\nCOMMIT\n*filter\n-A INPUT -j ACCEPT\nCOMMIT\n"
        );
        let deleted = format!("*raw\n-D PREROUTING -d 10.0.0.1/32 {ours} -j DROP\nCOMMIT\n*filter\nCOMMIT\n");
        assert_eq!(deletion(&saved, &ours), Some(deleted));
        assert_eq!(deletion(&saved, &clamp_comment("wg0")), None);
    }

    #[test]
    fn each_address_of_the_family_is_guarded() {
        let address = |text: &str, len| Address { addr: text.parse().unwrap(), len };
        let all = [address("192.168.96.1", 24), address("fd00::1", 64)];
        let (four, six) = (spoof_rules("wg0", false, 51820, &all), spoof_rules("wg0", true, 51820, &all));
        assert!(four.contains("-d 192.168.96.1 ") && !four.contains("fd00"), "{four}");
        assert!(six.contains("-d fd00::1 ") && !six.contains("192.168"), "{six}");
    }
}
