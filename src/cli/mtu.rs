//! `mtu`: how the MTU of a tunnel comes about, term by term.

use super::output::{print_bytes, print_json};
use crate::gateway::Failure;
use crate::gateway::config::HostPort;
use crate::gateway::mtu::{ETHERNET, IPV6_MINIMUM, Path, Sum, choose};
use crate::gateway::route::{KernelRoute, route_to};
use crate::wire::family::Family;
use clap::Args;
use serde::Serialize;
use std::fmt::Write;
use std::net::{IpAddr, ToSocketAddrs};

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun mtu                        over Ethernet (1500 bytes)
  ringtun mtu vpn.example.org        over the route to that host
  ringtun mtu 192.0.2.1:51820
  ringtun mtu --link-mtu 1454        over a PPPoE link of 1454 bytes")]
pub(super) struct MtuArgs {
    /// Where the tunnel's other end is: HOST or HOST:PORT; the MTU is that of the route to it
    #[arg(value_name = "ENDPOINT")]
    endpoint: Option<String>,
    /// MTU of the link, in bytes
    #[arg(long, value_name = "BYTES", conflicts_with = "endpoint", value_parser = clap::value_parser!(u32).range(68..=65_536))]
    link_mtu: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct MtuReport {
    link_mtu: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    /// The sums over IPv4 and over IPv6.
    sums: [Sum; 2],
    /// The MTU in bytes where the file sets none.
    default_mtu: u32,
    /// The MTU in bytes with `MTU = exact`, where the endpoint's family is known.
    exact_mtu: Option<u32>,
}

pub(super) fn mtu(args: &MtuArgs) -> Result<(), Failure> {
    let (endpoint, route) = match &args.endpoint {
        Some(text) => {
            let addr = resolve(text)?;
            let route = route_to(addr).map_err(Failure::of(format!("no route to {addr}")))?;
            (Some(addr), Some(route))
        }
        None => (None, None),
    };
    let report = report(args.link_mtu, endpoint, route);
    if args.json { print_json(&report) } else { print_bytes(table(&report).as_bytes()) }
}

fn report(given: Option<u32>, endpoint: Option<IpAddr>, route: Option<KernelRoute>) -> MtuReport {
    let link_mtu = route.as_ref().map(|route| route.mtu).or(given).unwrap_or(ETHERNET);
    let sums = [Family::Ipv4, Family::Ipv6].map(|outer| Sum::new(outer, link_mtu));
    let exact = endpoint.map(|addr| Sum::new(Family::of(addr), link_mtu).inner_mtu);
    MtuReport {
        link_mtu,
        endpoint,
        interface: route.map(|route| route.interface),
        sums,
        default_mtu: choose(None, &[Path { outer: Family::Ipv6, mtu: link_mtu }], None),
        exact_mtu: exact,
    }
}

/// Resolves an address or a name, either of which may have a port.
fn resolve(text: &str) -> Result<IpAddr, Failure> {
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    let host = HostPort::parse(text)
        .map_or_else(|_| text.trim_matches(['[', ']']).to_owned(), |endpoint| endpoint.host);
    let found = (host.as_str(), 0).to_socket_addrs();
    let mut found = found.map_err(Failure::of(format!("cannot resolve {host}")))?;
    found.next().map(|addr| addr.ip()).ok_or_else(|| Failure::new(format!("{host} has no address")))
}

fn table(report: &MtuReport) -> String {
    let mut text = String::new();
    if let (Some(endpoint), Some(interface)) = (report.endpoint, &report.interface) {
        let _ = writeln!(text, "to {endpoint} by {interface}\n");
    }
    let [four, six] = &report.sums;
    let _ = writeln!(text, "{:<36}{:>10}{:>11}", "bytes", "over IPv4", "over IPv6");
    let mut row = |name: &str, sign: &str, term: fn(&Sum) -> u32| {
        let cell = |sum| format!("{sign}{}", term(sum));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<36}{:>10}{:>11}", cell(four), cell(six));
    };
    row("link MTU (Ethernet's payload)", "", |sum| sum.link_mtu);
    row("outer IP header", "-", |sum| sum.ip_header);
    row("UDP header", "-", |sum| sum.udp_header);
    row("WireGuard header", "-", |sum| sum.wireguard_header);
    row("authentication tag", "-", |sum| sum.tag);
    row("inner MTU", "= ", |sum| sum.inner_mtu);
    row("inner TCP MSS over IPv4 (-40)", "", |sum| sum.inner_mss_ipv4);
    row("inner TCP MSS over IPv6 (-60)", "", |sum| sum.inner_mss_ipv6);
    let _ = writeln!(text, "\nMTU unset: {}, which leaves room for outer IPv6", report.default_mtu);
    let exact = match report.exact_mtu {
        Some(exact) => exact.to_string(),
        None => format!("{} over IPv4, {} over IPv6", four.inner_mtu, six.inner_mtu),
    };
    let _ = writeln!(text, "MTU = exact: {exact}");
    if report.default_mtu < IPV6_MINIMUM {
        let _ = writeln!(
            text,
            "IPv6 inside the tunnel needs {IPV6_MINIMUM}: on this link, outer packets must be fragmented for it"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_a_pppoe_link_says_1394_and_1374() {
        let text = table(&report(Some(1454), None, None));
        assert!(text.contains("= 1394     = 1374"), "{text}");
        assert!(text.contains("MTU unset: 1374"), "{text}");
        assert!(text.contains("exact: 1394 over IPv4, 1374 over IPv6"), "{text}");
    }

    #[test]
    fn a_narrow_link_is_warned_of() {
        assert!(table(&report(Some(1300), None, None)).contains("1280"));
        assert!(!table(&report(None, None, None)).contains("1280"));
    }

    #[test]
    fn an_endpoints_family_decides_the_exact_figure() {
        let route = || Some(KernelRoute { interface: "eth0".into(), mtu: 1500, source: None });
        assert_eq!(report(None, Some(IpAddr::from([192, 0, 2, 1])), route()).exact_mtu, Some(1440));
        assert_eq!(report(None, "2001:db8::1".parse().ok(), route()).exact_mtu, Some(1420));
    }

    #[test]
    fn an_endpoint_is_read_with_and_without_a_port() {
        for text in ["192.0.2.1", "192.0.2.1:51820"] {
            assert_eq!(resolve(text).unwrap(), IpAddr::from([192, 0, 2, 1]));
        }
        for text in ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:51820"] {
            assert_eq!(resolve(text).unwrap(), "2001:db8::1".parse::<IpAddr>().unwrap());
        }
    }
}
