//! Lines of the form `!route add …`, and where their routes lead.

use crate::gateway::config::value;
use crate::routing::Prefix;
use std::net::{IpAddr, Ipv4Addr};

/// The destination of `route [options] add [modifiers] DESTINATION GATEWAY`. `None` where this is another command, or
/// one that is not understood.
pub(super) fn destination(command: &str) -> Option<Prefix> {
    let code = command.split('#').next()?;
    if code.contains([';', '&', '|', '`']) {
        return None;
    }
    let mut words = code.split_whitespace().skip_while(|word| *word == "command");
    if words.next()?.rsplit('/').next()? != "route" {
        return None;
    }
    let mut words = words.skip_while(|word| *word != "add").skip(1).peekable();
    let mut v6 = false;
    let mut len = None;
    let mut to = None;
    while let Some(word) = words.next() {
        match word {
            "-inet6" => v6 = true,
            "-prefixlen" => len = Some(words.next()?.parse().ok()?),
            "-netmask" => len = Some(value::netmask(words.next()?)?),
            "-priority" | "-label" | "-mtu" | "-ifa" | "-ifp" | "-expire" | "-gateway" => drop(words.next()?),
            _ if word.starts_with('-') => {}
            _ if to.is_none() => to = Some(word),
            // This is the gateway, and perhaps an old-style mask behind it.
            _ => {
                len = len.or_else(|| words.peek().and_then(|mask| value::netmask(mask)));
                break;
            }
        }
    }
    let to = to?;
    if to == "default" {
        let any = if v6 { IpAddr::from([0_u16; 8]) } else { Ipv4Addr::UNSPECIFIED.into() };
        return Prefix::new(any, 0);
    }
    let address = value::address(to).ok()?;
    Prefix::new(address.addr, len.unwrap_or(address.len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_of_a_route_is_read_in_its_forms() {
        let forms = [
            ("route add 198.51.100.0/24 10.0.0.9", Some("198.51.100.0/24")),
            ("/sbin/route -qn add -inet 10.0.0.0/8 -iface 10.1.0.1", Some("10.0.0.0/8")),
            ("route -T 2 -n add -inet default -iface 10.1.0.1", Some("0.0.0.0/0")),
            ("route add -inet6 default fd00::1", Some("::/0")),
            ("route add -inet6 fd01:: -prefixlen 32 fd00::1", Some("fd01::/32")),
            ("route add -net 10.0.0.0 -netmask 255.0.0.0 10.1.0.1", Some("10.0.0.0/8")),
            ("route add -net 10.0.0.0 10.1.0.1 255.0.0.0", Some("10.0.0.0/8")),
            ("route add -priority 2 -host 192.0.2.1 192.0.2.254 # pin", Some("192.0.2.1/32")),
            ("route delete 10.0.0.0/8", None),
            ("route add vpn.example.org 192.0.2.254", None),
            ("route add 10.0.0.0/8 10.1.0.1; echo", None),
            ("echo route add 10.0.0.0/8", None),
            ("", None),
        ];
        for (command, to) in forms {
            assert_eq!(destination(command).map(|prefix| prefix.to_string()).as_deref(), to, "{command}");
        }
    }
}
