//! The rule that lets hosts answer whoever comes out of a tunnel.

use crate::routing::Prefix;

/// The commands that translate the source addresses of what comes from `network` and leaves by the interface `by`: nft's, or
/// iptables'.
pub fn commands(network: Prefix, by: &str, nft: bool) -> Vec<String> {
    let v4 = network.addr().is_ipv4();
    let network = format!("{}/{}", network.addr(), network.len());
    if !nft {
        let program = if v4 { "iptables" } else { "ip6tables" };
        return vec![format!("{program} -t nat -A POSTROUTING -s {network} -o {by} -j MASQUERADE")];
    }
    let family = if v4 { "ip" } else { "ip6" };
    vec![
        format!("nft add table {family} ringtun-nat"),
        format!(
            "nft 'add chain {family} ringtun-nat postrouting {{ type nat hook postrouting priority srcnat; }}'"
        ),
        format!(
            "nft add rule {family} ringtun-nat postrouting {family} saddr {network} oifname {by} masquerade"
        ),
    ]
}
