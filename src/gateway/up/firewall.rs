//! Rules of nft(8), or else of iptables(8). Some guard against spoofing where a default route leads into the tunnel;
//! others clamp the MSS of TCP connections.

use super::{Console, Failure, Result, hooks, iptables, program};
use crate::gateway::config::Address;
use crate::gateway::mtu::mss;
use crate::wire::family::Family;
use std::path::Path;
use std::process::Command;

/// The name of wg-quick(8)'s table for an interface, by which both programs can remove it.
fn spoof_table(interface: &str) -> String {
    format!("wg-quick-{interface}")
}

fn clamp_table(interface: &str) -> String {
    format!("ringtun-clamp-{interface}")
}

/// The commands for an empty table in the place of one that may be there. nft runs them whole or not at all.
fn fresh_table(family: &str, name: &str) -> String {
    format!("add table {family} {name}\ndelete table {family} {name}\nadd table {family} {name}\n")
}

/// The commands for the rules of wg-quick(8) against spoofing. Packets from elsewhere to the tunnel's addresses are
/// dropped. The mark of the tunnel's own UDP is restored on the answers, so that the reverse path filter accepts them.
pub(super) fn spoof_rules(interface: &str, v6: bool, table: u32, addresses: &[Address]) -> String {
    let (family, name) = (if v6 { "ip6" } else { "ip" }, spoof_table(interface));
    let chain = |chain: &str, hook: &str, priority: i32| {
        format!("add chain {family} {name} {chain} {{ type filter hook {hook} priority {priority}; }}\n")
    };
    let mut text = fresh_table(family, &name);
    text += &chain("preraw", "prerouting", -300);
    text += &chain("premangle", "prerouting", -150);
    text += &chain("postmangle", "postrouting", -150);
    for address in addresses.iter().filter(|address| address.addr.is_ipv6() == v6) {
        let addr = address.addr;
        text += &format!(
            "add rule {family} {name} preraw iifname != \"{interface}\" {family} daddr {addr} fib saddr type != local drop\n"
        );
    }
    text += &format!("add rule {family} {name} postmangle meta l4proto udp mark {table} ct mark set mark\n");
    text += &format!("add rule {family} {name} premangle meta l4proto udp meta mark set ct mark\n");
    text
}

/// The commands for the rules that clamp the MSS of forwarded TCP connections. Into the tunnel the route's MTU decides,
/// which follows the interface's. Out of it `mtu`, in bytes, decides, since the route there knows nothing of the
/// tunnel.
fn clamp_rules(interface: &str, mtu: u32) -> String {
    let name = clamp_table(interface);
    let syn = "tcp flags & (syn | rst) == syn tcp option maxseg size set";
    let (mss4, mss6) = (mss(mtu, Family::Ipv4), mss(mtu, Family::Ipv6));
    fresh_table("inet", &name)
        + &format!(
            "add chain inet {name} forward {{ type filter hook forward priority -150; }}\n\
         add rule inet {name} forward oifname \"{interface}\" {syn} rt mtu\n\
         add rule inet {name} forward iifname \"{interface}\" meta nfproto ipv4 {syn} {mss4}\n\
         add rule inet {name} forward iifname \"{interface}\" meta nfproto ipv6 {syn} {mss6}\n"
        )
}

/// Checks that there is a program that [`add_spoof_rules`] can run.
pub(super) fn check_spoof_tools(v6: bool) -> Result<()> {
    if hooks::find("nft").is_some() || iptables::is_installed(v6) {
        return Ok(());
    }
    Err(Failure::new(
        "a default route needs nft(8) or iptables(8) to guard the tunnel's addresses: install nftables, or set `Table = off`",
    ))
}

/// Checks that there is a program that [`clamp`] can run.
pub(super) fn check_clamp_tools() -> Result<()> {
    if hooks::find("nft").is_some() || iptables::is_installed(false) {
        return Ok(());
    }
    Err(Failure::new("clamping the MSS needs nft(8) or iptables(8): install nftables"))
}

/// Adds the rules of [`spoof_rules`] in the place of earlier ones.
pub(super) fn add_spoof_rules(
    interface: &str,
    v6: bool,
    table: u32,
    addresses: &[Address],
    console: &mut Console<'_>,
) -> Result<()> {
    if hooks::find("nft").is_some() {
        return program(console, "nft", &["-f", "-"], &spoof_rules(interface, v6, table, addresses));
    }
    check_spoof_tools(v6)?;
    iptables::add_spoof_rules(interface, v6, table, addresses, console)
}

/// Adds the rules of [`clamp_rules`] in the place of earlier ones.
pub(super) fn clamp(interface: &str, mtu: u32, console: &mut Console<'_>) -> Result<()> {
    if hooks::find("nft").is_some() {
        return program(console, "nft", &["-f", "-"], &clamp_rules(interface, mtu));
    }
    check_clamp_tools()?;
    // Without IPv6 in the kernel ip6tables fails, and there is nothing to clamp.
    let has_v6 = Path::new("/proc/net/if_inet6").exists() && iptables::is_installed(true);
    iptables::clamp(interface, false, mtu, console)?;
    if has_v6 { iptables::clamp(interface, true, mtu, console) } else { Ok(()) }
}

/// Removes the rules against spoofing of one family, or of both for `None`.
pub(super) fn remove_spoof(interface: &str, only_v6: Option<bool>, console: &mut Console<'_>) -> Result<()> {
    let name = spoof_table(interface);
    remove(console, |family, table| table == name && only_v6.is_none_or(|v6| (family == "ip6") == v6))?;
    let mut families = [false, true].into_iter().filter(|v6| only_v6.is_none_or(|only| only == *v6));
    families.try_for_each(|v6| iptables::remove_spoof(interface, v6, console))
}

/// Removes the clamping rules.
pub(super) fn remove_clamp(interface: &str, console: &mut Console<'_>) -> Result<()> {
    let name = clamp_table(interface);
    remove(console, |_, table| table == name)?;
    [false, true].into_iter().try_for_each(|v6| iptables::remove_clamp(interface, v6, console))
}

/// Deletes the tables that `chosen` accepts by family and name, if there are some.
fn remove(console: &mut Console<'_>, chosen: impl Fn(&str, &str) -> bool) -> Result<()> {
    let Some(nft) = hooks::find("nft") else { return Ok(()) };
    let Ok(listed) = Command::new(nft).args(["list", "tables"]).output() else { return Ok(()) };
    let text: String = tables(&String::from_utf8_lossy(&listed.stdout))
        .filter(|(family, table)| chosen(family, table))
        .map(|(family, table)| format!("delete table {family} {table}\n"))
        .collect();
    if text.is_empty() {
        return Ok(());
    }
    program(console, "nft", &["-f", "-"], &text)
}

/// The family and the name in each line `table FAMILY NAME`.
fn tables(listed: &str) -> impl Iterator<Item = (&str, &str)> {
    listed.lines().filter_map(|line| line.strip_prefix("table ")?.split_once(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_of_the_family_is_guarded() {
        let address = |text: &str, len| Address { addr: text.parse().unwrap(), len };
        let all = [address("192.168.96.1", 24), address("fd00::1", 64)];
        let (four, six) = (spoof_rules("wg0", false, 51820, &all), spoof_rules("wg0", true, 51820, &all));
        assert!(
            four.contains("ip daddr 192.168.96.1 fib saddr type != local drop") && !four.contains("fd00")
        );
        assert!(six.contains("ip6 daddr fd00::1 fib saddr type != local drop") && !six.contains("192.168"));
        assert!(four.contains("mark 51820 ct mark set mark"));
    }

    #[test]
    fn a_listing_is_read() {
        let listed = "table inet filter\ntable ip wg-quick-wg0\ntable ip6 wg-quick-wg0\nrubbish\n";
        assert_eq!(
            tables(listed).collect::<Vec<_>>()[1..],
            [("ip", "wg-quick-wg0"), ("ip6", "wg-quick-wg0")]
        );
    }
}
