//! The rule that lets hosts answer whoever comes out of a tunnel.

use crate::routing::Prefix;

/// The commands that translate the source addresses of what comes from `network` and leaves by the interface `by`: nft's, or
/// iptables'. `interface` is the tunnel's, after which nft's table is called.
pub fn commands(interface: &str, network: Prefix, by: &str, nft: bool) -> Vec<String> {
    let v4 = network.addr().is_ipv4();
    let network = format!("{}/{}", network.addr(), network.len());
    if !nft {
        let program = if v4 { "iptables" } else { "ip6tables" };
        return vec![format!("{program} -t nat -A POSTROUTING -s {network} -o {by} -j MASQUERADE")];
    }
    let (family, table) = (if v4 { "ip" } else { "ip6" }, table(interface));
    vec![
        format!("nft add table {family} {table}"),
        format!(
            "nft 'add chain {family} {table} postrouting {{ type nat hook postrouting priority srcnat; }}'"
        ),
        format!("nft add rule {family} {table} postrouting {family} saddr {network} oifname {by} masquerade"),
    ]
}

/// The command that takes the rule back.
pub fn undoing(interface: &str, network: Prefix, by: &str, nft: bool) -> String {
    let v4 = network.addr().is_ipv4();
    match nft {
        true => format!("nft delete table {} {}", if v4 { "ip" } else { "ip6" }, table(interface)),
        false => commands(interface, network, by, nft).concat().replace(" -A ", " -D "),
    }
}

/// The name of nft's table. Interfaces may have signs in their names that nft does not take.
fn table(interface: &str) -> String {
    format!("ringtun-nat-{}", interface.replace(['=', '+'], "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_undone_with_either_tool() {
        let network = "fd96::/64".parse().unwrap();
        assert_eq!(undoing("a+b", network, "eth0", true), "nft delete table ip6 ringtun-nat-a_b");
        assert!(commands("a+b", network, "eth0", true)[0].ends_with("add table ip6 ringtun-nat-a_b"));
        let undone = undoing("wg0", "10.0.0.0/24".parse().unwrap(), "eth0", false);
        assert_eq!(undone, "iptables -t nat -D POSTROUTING -s 10.0.0.0/24 -o eth0 -j MASQUERADE");
    }
}
