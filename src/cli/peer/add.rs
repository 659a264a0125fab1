//! `peer add`: both ends of a new peer in one step.

use super::{running, unanswered};
use crate::cli::candidates;
use crate::cli::config::load;
use crate::cli::output::print_secret;
use crate::crypto::random::{Entropy, SystemEntropy};
use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::device::uapi::SetRequest;
use crate::gateway::Failure;
use crate::gateway::config::{
    Config, DnsServer, FileLock, HostPort, Loaded, Mtu, PeerConfig, Place, write_private,
};
use crate::gateway::control::{ControlSocket, DeviceState};
use crate::gateway::doctor;
use crate::gateway::peering::{
    EgressNeed, Introduction, Invitation, egress_needs, introduce, openbsd, takes_everything,
};
use crate::gateway::route::route_to;
use crate::gateway::up::{Console, add_routes_of, run_commands};
use crate::routing::Prefix;
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use std::net::IpAddr;
use zeroize::Zeroizing;

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun peer add laptop --endpoint vpn.example.org
  ringtun peer add puffy --for openbsd --endpoint vpn.example.org:4500 --keepalive 25
  ringtun peer add phone --for mobile --endpoint vpn.example.org --allowed-ips 0.0.0.0/0,::/0 --nat --dns 192.168.96.1
  ringtun peer add office --interface wg1 --behind 10.7.0.0/16 --psk

Adds the peer's section to the interface's file and, where the tunnel is up, the peer to the running device, with routes to it. \
The new peer's own configuration goes to standard output. Its private key is shown this once and stored nowhere.")]
pub(in crate::cli) struct AddArgs {
    /// The new peer's name, kept in the file as `# Name = NAME`
    #[arg(value_name = "NAME")]
    name: String,
    /// What the new peer runs
    #[arg(long = "for", value_name = "SYSTEM", default_value = "linux")]
    system: System,
    /// This end's endpoint, as the new peer reaches it: HOST or HOST:PORT [default: the address of the default route, and ListenPort]
    #[arg(long, value_name = "HOST[:PORT]")]
    endpoint: Option<String>,
    /// Interface's name, or a file NAME.conf
    #[arg(long, value_name = "NAME|FILE", default_value = "wg0", add = ArgValueCompleter::new(candidates::configurations))]
    interface: String,
    /// Make a preshared key as well
    #[arg(long)]
    psk: bool,
    /// Interval of the new peer's keepalives in seconds, which keep a NAT or firewall open [default: none]
    #[arg(long, value_name = "SECONDS")]
    keepalive: Option<u16>,
    /// Networks to which the new peer sends through the tunnel [default: the tunnel's networks]
    #[arg(long, value_name = "PREFIX,…", value_delimiter = ',')]
    allowed_ips: Vec<Prefix>,
    /// Have this host forward what the new peer sends, and translate its address, now and whenever the tunnel comes up
    #[arg(long)]
    nat: bool,
    /// Networks behind the new peer, to be reached through it
    #[arg(long, value_name = "PREFIX,…", value_delimiter = ',')]
    behind: Vec<Prefix>,
    /// The new peer's address in the tunnel [default: the next free one of each network]
    #[arg(long, value_name = "ADDRESS,…", value_delimiter = ',')]
    address: Vec<IpAddr>,
    /// Resolvers and search domains for the new peer
    #[arg(long, value_name = "ADDRESS|DOMAIN,…", value_delimiter = ',')]
    dns: Vec<String>,
    /// MTU of the new peer's interface, in bytes [default: as in the interface's file]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..))]
    mtu: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum System {
    /// A wg-quick file
    Linux,
    /// ifconfig commands and hostname.if(5)
    Openbsd,
    /// A QR code on this terminal
    Mobile,
}

pub(super) fn run(args: AddArgs) -> Result<(), Failure> {
    let place = Place::find(&args.interface)?;
    let file = place.file.clone();
    let lock = FileLock::take(&file)
        .map_err(Failure::of(format!("{}: cannot lock its directory", file.display())))?;
    let mut loaded = load(&args.interface)?;
    let running = running(&loaded)?;
    let device = running.as_ref().map(|(_, device)| device);
    let public_key = own_key(&loaded, device)?;
    let (system, nat) = (args.system, args.nat);
    let invitation = invitation(args, &loaded.config, device)?;
    // A peer that is out of use keeps its name and its addresses.
    let mut known = loaded.config.clone();
    known.peers.extend(loaded.document.disabled_peers());
    let ends = introduce(&known, public_key, invitation)?;
    let needs = egress(&ends, &loaded, nat)?;
    // The text is rendered first, since a peer that cannot be shown must not be added.
    let text = render(system, &ends.there, &loaded.place.interface)?;
    loaded.document.add_peer(&ends.here);
    for need in &needs {
        need.commands.iter().for_each(|command| loaded.document.add_hook("PostUp", command));
        need.undoing.iter().for_each(|command| loaded.document.add_hook("PostDown", command));
    }
    write_private(&file, &loaded.document.bytes()).map_err(Failure::of(file.display()))?;
    eprintln!("added {} to {}", ends.here.name.as_deref().unwrap_or_default(), file.display());
    drop(lock);
    let joined = running.as_ref().map_or(Ok(()), |(control, _)| {
        join(control, &ends.here, &loaded).and_then(|()| open_way(&needs, &loaded))
    });
    // The text is printed whatever came of that, since the key is nowhere else.
    print_secret(text.as_bytes())?;
    joined
}

/// What this host lacks for a new peer that sends everything here, where that is to be mended. Else it is told.
fn egress(ends: &Introduction, loaded: &Loaded, nat: bool) -> Result<Vec<EgressNeed>, Failure> {
    let allowed = ends.there.peers.first().map_or(&[][..], |peer| &peer.allowed_ips);
    if !takes_everything(allowed) {
        return match nat {
            true => Err(Failure::new(
                "--nat is for a peer that sends everything here: expected --allowed-ips 0.0.0.0/0, ::/0 or both",
            )),
            false => Ok(Vec::new()),
        };
    }
    let name = &loaded.place.interface;
    let needs = egress_needs(name, &loaded.config, allowed);
    if let (_, Some(blocked)) = doctor::blocking(name, loaded.config.interface.listen_port) {
        eprintln!("note: {}; {}", blocked.found, blocked.remedy.unwrap_or_default());
    }
    if nat {
        return Ok(needs);
    }
    for EgressNeed { lacking, commands, .. } in &needs {
        eprintln!("note: {lacking}; --nat mends it, or:");
        commands.iter().for_each(|command| eprintln!("  {command}"));
    }
    Ok(Vec::new())
}

/// Does now what the file has done whenever the tunnel comes up.
fn open_way(needs: &[EgressNeed], loaded: &Loaded) -> Result<(), Failure> {
    let commands: Vec<String> = needs.iter().flat_map(|need| need.commands.clone()).collect();
    let mut say = |line: &str| eprintln!("{line}");
    run_commands(&commands, loaded, Console::new(&mut say)).map_err(|failure| Failure::Halfway {
        source: Box::new(failure),
        rest: "the new peer is in place, and this host does not let it out yet".to_owned(),
    })
}

/// Adds a peer to the running tunnel, and the routes to what it is allowed.
pub(super) fn join(control: &ControlSocket, peer: &PeerConfig, loaded: &Loaded) -> Result<(), Failure> {
    let name = &loaded.place.interface;
    let again = format!("`ringtun reload {name}` tries again");
    apply(control, peer).map_err(unanswered(loaded)).map_err(|failure| Failure::Halfway {
        source: Box::new(failure),
        rest: format!("the file has the new peer already: {again}"),
    })?;
    eprintln!("added it to the running {name}");
    let mut say = |line: &str| eprintln!("{line}");
    add_routes_of(peer, loaded, Console::new(&mut say)).map_err(|failure| Failure::Halfway {
        source: Box::new(failure),
        rest: format!("the tunnel has the new peer already, but not all of its routes: {again}"),
    })
}

fn apply(control: &ControlSocket, peer: &PeerConfig) -> std::io::Result<()> {
    let peer = peer.request(&mut |_, endpoint| match endpoint.resolve() {
        Ok(address) => Some(address),
        Err(error) => {
            eprintln!("warning: Endpoint {endpoint}: {error}");
            None
        }
    });
    control.set(&SetRequest { peers: vec![peer], ..SetRequest::default() })
}

/// This end's public key, from the file, or from the device where a hook sets it.
fn own_key(loaded: &Loaded, device: Option<&DeviceState>) -> Result<PublicKey, Failure> {
    let file = loaded.config.interface.private_key.as_ref();
    let key = file.or(device.and_then(|device| device.private_key.as_ref()));
    key.map(PrivateKey::public).ok_or_else(|| {
        Failure::new(format!(
            "{}: there is no PrivateKey: expected one in [Interface], or the tunnel up",
            loaded.place.file.display()
        ))
    })
}

fn invitation(args: AddArgs, config: &Config, device: Option<&DeviceState>) -> Result<Invitation, Failure> {
    let port = config.interface.listen_port.filter(|&port| port != 0);
    let port = port.or(device.map(|device| device.listen_port).filter(|&port| port != 0));
    let mut bytes = Zeroizing::new([0; 32]);
    SystemEntropy.fill(&mut *bytes);
    let private_key = PrivateKey::from_bytes(*bytes);
    let preshared_key = args.psk.then(|| {
        SystemEntropy.fill(&mut *bytes);
        SharedSecret(*bytes)
    });
    let (dns, dns_search) = resolvers(&args.dns);
    Ok(Invitation {
        name: args.name,
        private_key,
        preshared_key,
        endpoint: own_endpoint(args.endpoint.as_deref(), port)?,
        keepalive: args.keepalive,
        allowed_ips: args.allowed_ips,
        behind: args.behind,
        addresses: args.address,
        dns,
        dns_search,
        mtu: args.mtu.map(Mtu::Bytes),
    })
}

fn resolvers(given: &[String]) -> (Vec<DnsServer>, Vec<String>) {
    let mut split = (Vec::new(), Vec::new());
    for word in given {
        match word.parse() {
            Ok(addr) => split.0.push(DnsServer { addr, scope: None }),
            Err(_) => split.1.push(word.clone()),
        }
    }
    split
}

/// This end's endpoint, as the new peer is to know it.
fn own_endpoint(given: Option<&str>, port: Option<u16>) -> Result<Option<HostPort>, Failure> {
    let no_port = "the tunnel has no fixed port: expected ListenPort in [Interface], or --endpoint HOST:PORT";
    let Some(given) = given else {
        let (Some(port), Some(addr)) = (port, default_source()) else {
            eprintln!(
                "warning: no --endpoint: the new peer can only answer, until this end sends to it first"
            );
            return Ok(None);
        };
        eprintln!(
            "note: the new peer is configured to reach this end at {addr}; --endpoint HOST changes that"
        );
        return Ok(Some(HostPort { host: addr.to_string(), port }));
    };
    let bare = given.trim_matches(['[', ']']);
    let bare_address = bare.parse::<IpAddr>().is_ok();
    let text = match !bare_address && given.contains(':') {
        true => given.to_owned(),
        false => {
            let port = port.ok_or_else(|| Failure::new(no_port))?;
            HostPort { host: bare.to_owned(), port }.to_string()
        }
    };
    HostPort::parse(&text).map(Some).map_err(Failure::of("--endpoint"))
}

/// The address that this host uses towards the Internet: the source of a route to a documentation address. Nothing is
/// sent there.
fn default_source() -> Option<IpAddr> {
    let outside = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])];
    outside.into_iter().find_map(|addr| route_to(addr).ok()?.source)
}

fn render(system: System, there: &Config, interface: &str) -> Result<Zeroizing<String>, Failure> {
    match system {
        System::Linux => Ok(there.print()),
        System::Mobile => qr(&there.print()),
        System::Openbsd => Ok(for_openbsd(there, interface)),
    }
}

fn for_openbsd(there: &Config, interface: &str) -> Zeroizing<String> {
    // On OpenBSD wg(4) interfaces are called wg and a number.
    let unit = interface
        .strip_prefix("wg")
        .filter(|unit| !unit.is_empty() && unit.bytes().all(|byte| byte.is_ascii_digit()));
    let interface = format!("wg{}", unit.unwrap_or("0"));
    let (file, left_out) = openbsd::print(there);
    for what in left_out {
        eprintln!("not carried over: {what}");
    }
    Zeroizing::new(
        [
            "# now, as root:\n",
            &openbsd::commands(there, &interface),
            &format!("\n# at every start, in /etc/hostname.{interface} (chmod 640):\n"),
            &file,
            &format!(
                "\n# in /etc/pf.conf, to let all of the tunnel's traffic pass:\nset skip on {interface}\n"
            ),
        ]
        .concat(),
    )
}

fn qr(text: &str) -> Result<Zeroizing<String>, Failure> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).map_err(|error| {
        Failure::new(format!(
            "the configuration does not fit a QR code ({error}): expected fewer --allowed-ips"
        ))
    })?;
    // Scanners want dark on light, and the terminal is dark.
    let image = code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
    Ok(Zeroizing::new(image + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_port_takes_listen_port() {
        let at = |text, port| own_endpoint(Some(text), port).map(|endpoint| endpoint.unwrap().to_string());
        assert_eq!(at("vpn.example.org", Some(4500)).unwrap(), "vpn.example.org:4500");
        assert_eq!(at("vpn.example.org:443", Some(4500)).unwrap(), "vpn.example.org:443");
        assert_eq!(at("2001:db8::1", Some(4500)).unwrap(), "[2001:db8::1]:4500");
        assert_eq!(at("[2001:db8::1]:443", None).unwrap(), "[2001:db8::1]:443");
        assert!(at("vpn.example.org", None).unwrap_err().to_string().contains("ListenPort"));
        assert!(at("no such host", Some(1)).is_err());
    }

    #[test]
    fn resolvers_and_search_domains_are_told_apart() {
        let (servers, domains) = resolvers(&["192.0.2.53".into(), "fd00::53".into(), "example.org".into()]);
        assert_eq!((servers.len(), domains), (2, vec!["example.org".to_owned()]));
    }

    #[test]
    fn a_phones_configuration_fits_a_terminal() {
        let config = "[Interface]\n".to_owned()
            + &"PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n".repeat(6);
        let code = qr(&config).unwrap();
        let width = code.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(width <= 80, "{width} columns");
        assert!(qr(&"x".repeat(4000)).is_err());
    }

    #[test]
    fn openbsd_is_told_commands_file_and_filter() {
        let text = "[Interface]\nPrivateKey=yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\nAddress=192.168.96.2/24\n\
            [Peer]\nPublicKey=xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nEndpoint=vpn.example.org:4500\nAllowedIPs=192.168.96.0/24\n";
        let config = crate::gateway::config::Document::new(text.as_bytes()).parse().unwrap().0;
        let shown = for_openbsd(&config, "office");
        assert!(
            shown.contains("ifconfig wg0 create wgkey yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n"),
            "{}",
            *shown
        );
        assert!(shown.contains("wgendpoint vpn.example.org 4500 wgaip 192.168.96.0/24\n"), "{}", *shown);
        assert!(shown.contains("ifconfig wg0 inet 192.168.96.2/24\n"), "{}", *shown);
        assert!(shown.contains("\ninet 192.168.96.2 255.255.255.0\n"), "{}", *shown);
        assert!(shown.contains("/etc/hostname.wg0") && shown.ends_with("set skip on wg0\n"));
    }
}
