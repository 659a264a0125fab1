//! The laboratory: two network namespaces, a veth pair between them, and this program as a tunnel at both ends.
//!
//! ```text
//!   near  198.18.0.1 --- veth pair "wire" --- 198.18.0.2  far
//!         10.99.0.1  ---      tunnel      --- 10.99.0.2
//! ```
//!
//! Nothing of it has a name on the host but the tunnels' control sockets, which the tunnels remove when they end. Namespaces end
//! with the threads in them, and so do the processes, also where this one is killed.

use super::child::{LabChild, cpu_seconds};
use crate::crypto::x25519::{PrivateKey, PublicKey};
use crate::device::status::Status;
use crate::device::uapi::{AllowedIp, PeerRequest, SetRequest};
use crate::gateway::config::Address;
use crate::gateway::control::ControlSocket;
use crate::gateway::interrupt::Interrupt;
use crate::gateway::up::host::Host;
use crate::gateway::{Failure, executable};
use crate::routing::Prefix;
use crate::sys::link;
use crate::sys::namespace::PrivateNetwork;
use crate::tunnel::socket;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

/// The near and the far end: which is which in arrays of two.
pub(super) const NEAR: usize = 0;
pub(super) const FAR: usize = 1;

/// Outside: RFC 2544's network for benchmarks.
const OUTER: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)];
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
const NETWORK_LEN: u8 = 24;
/// The UDP port of both tunnels, each in its own namespace.
const PORT: u16 = 51_820;
/// The name of both ends of the cable.
const WIRE: &str = "wire";
/// Bytes of an Ethernet header, which the counters of the cable include.
const ETHERNET_HEADER: u64 = 14;
/// How long a tunnel may take to be there.
const READY_LIMIT: Duration = Duration::from_secs(15);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Variables of the environment that set options of a tunnel.
pub(crate) const OPTIONS: [&str; 10] = [
    "RINGTUN_BUFFERS",
    "RINGTUN_IO",
    "RINGTUN_MTU",
    "RINGTUN_NO_GRO",
    "RINGTUN_NO_GSO",
    "RINGTUN_NO_PIN",
    "RINGTUN_NO_STEERING",
    "RINGTUN_NO_TUN_OFFLOAD",
    "RINGTUN_SOCKET_BUFFER",
    "RINGTUN_UNCONFINED",
];
/// Variables that are for another tunnel than these.
pub(crate) const WITHHELD: [&str; 8] = [
    "RINGTUN_HTTP",
    "RINGTUN_TURN",
    executable::BACKGROUND_CHILD,
    "RINGTUN_WORKERS",
    "WG_TUN_FD",
    "WG_UAPI_FD",
    "WG_PROCESS_FOREGROUND",
    "NOTIFY_SOCKET",
];

/// The two namespaces, with all that is in them.
pub(super) struct BenchLab {
    // In this order, as what runs in a namespace ends before it.
    ends: Vec<LabEnd>,
    networks: [PrivateNetwork; 2],
}

/// A tunnel of the laboratory.
struct LabEnd {
    daemon: LabChild,
    name: String,
}

impl Drop for LabEnd {
    fn drop(&mut self) {
        self.daemon.end();
        let _ = std::fs::remove_file(socket::path(&self.name)); // it removed that itself, unless it had to be killed
    }
}

/// A way between the two namespaces, through the tunnel or beside it.
pub(super) struct Way<'a> {
    networks: &'a [PrivateNetwork; 2],
    /// The addresses of both ends.
    pub(super) addresses: [Ipv4Addr; 2],
    /// The interface by which packets come to the far end, and the bytes of a header below IP that it counts.
    pub(super) device: String,
    pub(super) link_header: u64,
    /// The numbers of the tunnels' processes; none where the way leads through none.
    daemons: Vec<u32>,
}

impl BenchLab {
    /// Makes the namespaces and starts the tunnels, with so many workers each.
    pub(super) fn new(workers: Option<u16>, interrupt: &Interrupt) -> Result<BenchLab, Failure> {
        let make = |name: &str| PrivateNetwork::new(name).map_err(no_namespaces);
        let networks = [make("ringtun-near")?, make("ringtun-far")?];
        lay_wire(&networks)?;
        let mut lab = BenchLab { ends: Vec::new(), networks };
        let keys = [PrivateKey::generate(), PrivateKey::generate()];
        let public = keys.each_ref().map(PrivateKey::public);
        // Both are started before either is waited for.
        for side in [NEAR, FAR] {
            let name = format!("rtb{}{}", std::process::id(), ["a", "b"][side]);
            let daemon = LabChild::start(&lab.networks[side], tunnel_command(&name, workers)?)?;
            lab.ends.push(LabEnd { daemon, name });
        }
        for (side, key) in keys.into_iter().enumerate() {
            let control = lab.await_tunnel(side, interrupt)?;
            let name = lab.ends[side].name.clone();
            let request = configuration(key, public[1 - side], 1 - side);
            control.set(&request).map_err(Failure::of(format!("cannot configure {name}")))?;
            let up = move || bring_up(&name, INNER[side]);
            lab.networks[side]
                .run(up)
                .and_then(|done| done)
                .map_err(Failure::of("cannot bring a tunnel up"))?;
        }
        Ok(lab)
    }

    fn await_tunnel(&mut self, side: usize, interrupt: &Interrupt) -> Result<ControlSocket, Failure> {
        let LabEnd { daemon, name } = &mut self.ends[side];
        let until = Instant::now() + READY_LIMIT;
        loop {
            interrupt.check()?;
            if let Some(status) = daemon.ended() {
                return Err(Failure::new(format!(
                    "the tunnel {name} ended ({status}): {}",
                    daemon.complaint()
                )));
            }
            if let Some(control) = ControlSocket::find(name) {
                return Ok(control);
            }
            if Instant::now() > until {
                let limit = READY_LIMIT.as_secs();
                return Err(Failure::new(format!(
                    "the tunnel {name} is not there after {limit} s: {}",
                    daemon.complaint()
                )));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// The way through the tunnel.
    pub(super) fn tunnel(&self) -> Way<'_> {
        Way {
            networks: &self.networks,
            addresses: INNER,
            device: self.ends[FAR].name.clone(),
            link_header: 0,
            daemons: self.ends.iter().map(|end| end.daemon.id()).collect(),
        }
    }

    /// The way beside it, through the cable alone.
    pub(super) fn veth(&self) -> Way<'_> {
        Way {
            networks: &self.networks,
            addresses: OUTER,
            device: WIRE.to_owned(),
            link_header: ETHERNET_HEADER,
            daemons: Vec::new(),
        }
    }

    /// What the near tunnel says of itself.
    pub(super) fn status(&self) -> Result<Status, Failure> {
        let name = &self.ends[NEAR].name;
        let control = ControlSocket::find(name);
        let status = control.map_or(Ok(None), |control| control.status()).map_err(Failure::of(name))?;
        status.ok_or_else(|| Failure::new(format!("{name} does not answer")))
    }

    /// What the tunnels wrote to their logs, on one line. They are told to write errors alone.
    pub(super) fn complaints(&self) -> String {
        let all = self.ends.iter().map(|end| end.daemon.complaint());
        all.filter(|complaint| !complaint.is_empty()).collect::<Vec<_>>().join("; ")
    }
}

impl Way<'_> {
    /// What `work` yields in the namespace of an end.
    pub(super) fn at<T: Send + 'static>(
        &self,
        side: usize,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        self.networks[side].run(work)?
    }

    /// Starts a program at an end.
    pub(super) fn start(&self, side: usize, command: Command) -> Result<LabChild, Failure> {
        LabChild::start(&self.networks[side], command)
    }

    /// Whether it leads through the tunnel.
    pub(super) fn is_tunnel(&self) -> bool {
        !self.daemons.is_empty()
    }

    /// The processor time in seconds that the tunnels used so far.
    pub(super) fn cpu_seconds(&self) -> std::io::Result<f64> {
        self.daemons.iter().map(|&pid| cpu_seconds(pid)).sum()
    }
}

/// The words for a refusal of namespaces, with the remedy.
fn no_namespaces(error: Error) -> Failure {
    let remedy = match (error.kind(), error.raw_os_error()) {
        (ErrorKind::PermissionDenied, _) => {
            "it needs root with CAP_SYS_ADMIN (sudo ringtun bench; for a container --cap-add SYS_ADMIN --cap-add NET_ADMIN)"
        }
        (_, Some(libc::ENOSPC)) => "sysctl user.max_net_namespaces allows no more",
        (_, Some(libc::EINVAL)) => "this kernel was built without CONFIG_NET_NS",
        _ => "mount /proc, where it is missing",
    };
    Failure::of(format!("cannot make a network namespace: {remedy}"))(error)
}

fn lay_wire(networks: &[PrivateNetwork; 2]) -> Result<(), Failure> {
    let far = networks[FAR].file().try_clone().map_err(Failure::of("cannot open a network namespace"))?;
    let laid = networks[NEAR].run(move || link::add_veth_pair(WIRE, WIRE, far.as_fd()));
    laid.and_then(|done| done).map_err(Failure::of(
        "cannot make a veth pair (modprobe veth; a kernel without CONFIG_VETH has none)",
    ))?;
    for (network, address) in networks.iter().zip(OUTER) {
        let up = move || {
            link::set_up(link::index("lo")?)?;
            bring_up(WIRE, address)
        };
        network.run(up).and_then(|done| done).map_err(Failure::of("cannot bring the veth pair up"))?;
    }
    Ok(())
}

/// Gives an interface of this thread's namespace an address and brings it up.
fn bring_up(name: &str, address: Ipv4Addr) -> std::io::Result<()> {
    let index = link::index(name)?;
    Host::new()?.add_address(index, Address { addr: address.into(), len: NETWORK_LEN })?;
    link::set_up(index)
}

fn tunnel_command(name: &str, workers: Option<u16>) -> Result<Command, Failure> {
    let program = executable::path().map_err(Failure::of("cannot find this program"))?;
    let mut command = Command::new(program);
    command.arg("-f");
    if let Some(workers) = workers {
        command.arg("--workers").arg(workers.to_string());
    }
    for variable in WITHHELD {
        command.env_remove(variable);
    }
    command.args(["--", name]).env("LOG_LEVEL", "error");
    Ok(command)
}

/// What an end is told: its own key, and the other end as its only peer.
fn configuration(key: PrivateKey, peer: PublicKey, other: usize) -> SetRequest {
    let all = Prefix::new(IpAddr::V4(INNER[other]), 32);
    let peer = PeerRequest {
        endpoint: Some(SocketAddr::from((OUTER[other], PORT))),
        allowed_ips: all.map(|prefix| AllowedIp { prefix, remove: false }).into_iter().collect(),
        ..PeerRequest::new(peer)
    };
    SetRequest {
        private_key: Some(Some(key)),
        listen_port: Some(PORT),
        peers: vec![peer],
        ..SetRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_namespaces_comes_with_its_remedy() {
        let said = |errno| format!("{:#}", no_namespaces(Error::from_raw_os_error(errno)));
        assert!(said(libc::EPERM).contains("--cap-add SYS_ADMIN"));
        assert!(said(libc::ENOSPC).contains("user.max_net_namespaces"));
        assert!(said(libc::EINVAL).contains("CONFIG_NET_NS"));
    }

    #[test]
    fn an_end_is_told_of_the_other_alone() {
        let (key, other) = (PrivateKey::generate(), PrivateKey::generate().public());
        let request = configuration(key, other, FAR);
        assert_eq!(request.peers.len(), 1);
        assert_eq!(request.peers[0].endpoint, Some("198.18.0.2:51820".parse().unwrap()));
        let allowed: Vec<String> =
            request.peers[0].allowed_ips.iter().map(|ip| ip.prefix.to_string()).collect();
        assert_eq!(allowed, ["10.99.0.2/32"]);
    }

    #[test]
    fn what_is_for_another_tunnel_is_kept_from_these() {
        let command = tunnel_command("rtb1a", Some(3)).unwrap();
        let arguments: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        assert_eq!(arguments, ["-f", "--workers", "3", "--", "rtb1a"]);
        let removed: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).collect();
        assert_eq!(removed.len(), WITHHELD.len());
        assert!(OPTIONS.iter().all(|option| !WITHHELD.contains(option)));
    }
}
