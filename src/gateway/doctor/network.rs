//! Findings about sockets, network cards and forwarding.

use super::Finding;
use super::Level::{Missing, Unknown, Warn};
use super::parse::ethtool_feature;
use crate::gateway::rights::NetAdmin;
use crate::io::udp::SOCKET_BUFFER;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many network cards are looked at.
const MAX_CARDS: usize = 16;

fn sysctl(name: &str) -> Option<u64> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The path of a tool, if it is installed.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

/// What a tool printed, if it is there and succeeded.
pub(super) fn output(name: &str, arguments: &[&str]) -> Option<String> {
    let done = Command::new(program(name)?)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Findings about the limits on socket buffers. They bind a program without CAP_NET_ADMIN; with it, SO_RCVBUFFORCE
/// passes them.
pub(super) fn socket_buffers(net_admin: NetAdmin) -> Vec<Finding> {
    let wanted = SOCKET_BUFFER as u64;
    let one = |name: &str| {
        let what = format!("net.core.{name}");
        match sysctl(&what) {
            Some(limit) if limit >= wanted => Finding::ok(what, format!("{} KiB", limit >> 10)),
            Some(limit) if net_admin == NetAdmin::Held => Finding::ok(
                what,
                format!(
                    "{} KiB (with CAP_NET_ADMIN sockets take {} KiB all the same)",
                    limit >> 10,
                    wanted >> 10
                ),
            ),
            Some(limit) => Finding::new(
                what.clone(),
                Warn,
                format!("{} KiB", limit >> 10),
                &format!("sysctl -w {what}={wanted}"),
            ),
            None => Finding::new(what, Unknown, "cannot be read", "mount /proc/sys"),
        }
    };
    vec![one("rmem_max"), one("wmem_max")]
}

/// Findings about network cards, which are the interfaces with a device behind them.
pub(super) fn cards() -> Vec<Finding> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let cards = entries.filter(|entry| entry.path().join("device").exists()).take(MAX_CARDS);
    let mut names: Vec<String> = cards.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    if !names.is_empty() && program("ethtool").is_none() {
        return vec![Finding::new(
            "NIC GRO",
            Unknown,
            "ethtool is not installed",
            "apt-get install ethtool, then look again",
        )];
    }
    names.iter().map(|name| card(name)).collect()
}

fn card(name: &str) -> Finding {
    let what = format!("NIC {name}");
    let Some(features) = output("ethtool", &["-k", name]) else {
        return Finding::new(what, Unknown, "ethtool -k failed", "");
    };
    let has = |feature| ethtool_feature(&features, feature);
    let word = |feature: &str, state: Option<bool>| match state {
        Some(true) => format!("{feature} on"),
        Some(false) => format!("{feature} off"),
        None => format!("{feature} unknown"),
    };
    let (gro, udp_gso) = (has("generic-receive-offload"), has("tx-udp-segmentation"));
    let found = [word("GRO", gro), word("UDP segmentation", udp_gso)].join(", ");
    match gro {
        Some(false) => Finding::new(
            what,
            Warn,
            found,
            &format!("ethtool -K {name} gro on: datagrams come one by one until then"),
        ),
        _ => Finding::ok(what, found),
    }
}

/// Whether this host forwards packets of a family. Where that cannot be read, it is taken to.
pub fn forwards(v4: bool) -> bool {
    sysctl(if v4 { "net.ipv4.ip_forward" } else { "net.ipv6.conf.all.forwarding" }) != Some(0)
}

pub(super) fn forwarding() -> Vec<Finding> {
    let one = |what: &str, name: &str| match sysctl(name) {
        Some(0) => Finding::new(
            what,
            Warn,
            "off",
            &format!("to route for others (not for a client alone): sysctl -w {name}=1"),
        ),
        Some(_) => Finding::ok(what, "on"),
        None => Finding::new(what, Missing, format!("there is no {name}"), ""),
    };
    vec![
        one("IPv4 forwarding", "net.ipv4.ip_forward"),
        one("IPv6 forwarding", "net.ipv6.conf.all.forwarding"),
    ]
}
