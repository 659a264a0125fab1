//! What this host lacks for a peer that sends everything through the tunnel: forwarding, and a rule that translates the peer's
//! address, so that answers find their way back.

use crate::gateway::config::{Address, Config};
use crate::gateway::doctor;
use crate::gateway::route::route_to;
use crate::gateway::up::find_program;
use crate::gateway::why::nat;
use crate::routing::Prefix;
use std::net::IpAddr;

/// Something that is missing, and how to have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EgressNeed {
    /// What is missing.
    pub lacking: String,
    /// The commands that mend it until the next start of the host.
    pub commands: Vec<String>,
    /// The command that takes that back.
    pub undoing: Option<String>,
}

/// What matters of a host, for one address family.
#[derive(Clone, Debug, Default)]
struct EgressFacts {
    forwards: bool,
    translates: bool,
    /// The interface of the default route.
    by: Option<String>,
    has_nft: bool,
}

/// Whether these AllowedIPs send everything of a family through the tunnel.
pub fn takes_everything(allowed: &[Prefix]) -> bool {
    allowed.iter().any(|prefix| prefix.len() == 0)
}

/// What is missing here for a peer of `interface` that sends `allowed` through the tunnel. Nothing is, unless that is everything.
pub fn egress_needs(interface: &str, config: &Config, allowed: &[Prefix]) -> Vec<EgressNeed> {
    let families = allowed.iter().filter(|prefix| prefix.len() == 0).map(|prefix| prefix.addr().is_ipv4());
    families.flat_map(|v4| needs_of(interface, config, v4, &facts(v4))).collect()
}

fn facts(v4: bool) -> EgressFacts {
    // Documentation addresses, to which nothing is sent.
    let outside = match v4 {
        true => IpAddr::from([192, 0, 2, 1]),
        false => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    };
    EgressFacts {
        forwards: doctor::forwards(v4),
        translates: doctor::translates(),
        by: route_to(outside).ok().map(|route| route.interface),
        has_nft: find_program("nft").is_some(),
    }
}

fn needs_of(interface: &str, config: &Config, v4: bool, facts: &EgressFacts) -> Vec<EgressNeed> {
    let (family, sysctl) = match v4 {
        true => ("IPv4", "net.ipv4.ip_forward"),
        false => ("IPv6", "net.ipv6.conf.all.forwarding"),
    };
    let mut needs = Vec::new();
    if !facts.forwards {
        needs.push(EgressNeed {
            lacking: format!("this host forwards no {family} packets: {sysctl} is 0"),
            commands: vec![format!("sysctl -w {sysctl}=1")],
            undoing: None,
        });
    }
    let networks = config.interface.addresses.iter().map(Address::network);
    let network =
        networks.into_iter().find(|network| network.addr().is_ipv4() == v4 && is_local(network.addr()));
    if let (false, Some(network), Some(by)) = (facts.translates, network, &facts.by)
        && by != interface
    {
        needs.push(EgressNeed {
            lacking: format!(
                "nothing translates the addresses of {network} as they leave by {by}, and answers find no way back"
            ),
            commands: nat::commands(interface, network, by, facts.has_nft),
            undoing: Some(nat::undoing(interface, network, by, facts.has_nft)),
        });
    }
    needs
}

/// Whether the address is known to nobody outside.
fn is_local(addr: IpAddr) -> bool {
    const SHARED: u32 = 0x6440_0000; // 100.64.0.0/10, RFC 6598
    match addr {
        IpAddr::V4(v4) => v4.is_private() || v4.to_bits() & 0xffc0_0000 == SHARED,
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::config::Document;

    fn config(addresses: &str) -> Config {
        Document::new(format!("[Interface]\nAddress = {addresses}\n").as_bytes()).parse().unwrap().0
    }

    fn bare() -> EgressFacts {
        EgressFacts { by: Some("eth0".into()), has_nft: true, ..EgressFacts::default() }
    }

    #[test]
    fn a_bare_host_needs_forwarding_and_translation_for_local_addresses() {
        let config = config("10.0.0.1/24, fd96::1/64");
        let v4 = needs_of("wg0", &config, true, &bare());
        assert_eq!(v4.len(), 2);
        assert_eq!(v4[0].commands, ["sysctl -w net.ipv4.ip_forward=1"]);
        assert!(v4[1].commands[2].contains("saddr 10.0.0.0/24 oifname eth0 masquerade"), "{v4:?}");
        assert_eq!(v4[1].undoing.as_deref(), Some("nft delete table ip ringtun-nat-wg0"));
        let v6 = needs_of("wg0", &config, false, &bare());
        assert!(v6[1].commands[2].contains("saddr fd96::/64"), "{v6:?}");
    }

    #[test]
    fn nothing_is_translated_that_need_not_be() {
        let forwards = EgressFacts { forwards: true, ..bare() };
        let translates = EgressFacts { translates: true, ..forwards.clone() };
        let by_tunnel = EgressFacts { by: Some("wg0".into()), ..forwards.clone() };
        let cases = [
            ("10.0.0.1/24", &translates),
            ("10.0.0.1/24", &by_tunnel),
            ("198.51.100.1/24", &forwards),
            ("fd96::1/64", &forwards),
        ];
        for (addresses, facts) in cases {
            assert!(needs_of("wg0", &config(addresses), true, facts).is_empty(), "{addresses} {facts:?}");
        }
        assert!(needs_of("wg0", &config("2001:db8::1/64"), false, &forwards).is_empty());
        assert!(!takes_everything(&["10.0.0.0/8".parse().unwrap()]));
        assert!(takes_everything(&["::/0".parse().unwrap()]));
    }
}
