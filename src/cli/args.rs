//! What may stand on the command line, and how it becomes a [`Builder`].

use super::bench::BenchArgs;
use super::config::{CheckArgs, StripArgs};
use super::doctor::DoctorArgs;
use super::exchange::{ExportArgs, ImportArgs};
use super::generate::GenerateCommand;
use super::monitor::MonitorArgs;
use super::mtu::MtuArgs;
use super::peer::PeerCommand;
use super::peer_hooks::PeerHooksArgs;
use super::service::ServiceArgs;
use super::show::{ShowArgs, ShowconfArgs, StatusArgs};
use super::top::TopArgs;
use super::updown::{DownArgs, ReloadArgs, SaveArgs, UpArgs};
use super::upgrade::{TakeOverArgs, UpgradeArgs};
use super::why::WhyArgs;
use crate::gateway::{Failure, http};
use crate::io::slab::MAX_BUFFERS;
use crate::io::tun;
use crate::io::udp::{MAX_SOCKET_BUFFER, MIN_SOCKET_BUFFER, SOCKET_BUFFER};
use crate::sys::inherit;
use crate::tunnel::{BUFFERS, Backend, Builder, MIN_BUFFERS, Tunnel};
use crate::wire::message::MAX_INNER_LEN;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  ringtun up wg0                     from /etc/wireguard/wg0.conf; down, reload and save alike
  ringtun wg0                        create wg0 and go to the background once it is ready
  ringtun -f wg0                     the same in the foreground; Ctrl-C removes wg0
  wg setconf wg0 <(ringtun strip wg0) && ip link set wg0 up
  WG_QUICK_USERSPACE_IMPLEMENTATION=ringtun wg-quick up wg0
  ringtun check wg0 && ringtun peer add laptop --endpoint vpn.example.org
  ringtun show wg0 --verbose && ringtun status wg0 && sudo ringtun doctor
  ringtun monitor wg0                what happens to its peers, until Ctrl-C; `ringtun why wg0 PEER` for one of them
  (umask 077; ringtun genkey | tee private.key | ringtun pubkey > public.key)
  LOG_LEVEL=verbose ringtun -f --workers 4 --io syscalls wg0
  ringtun --http 9586 wg0            and http://127.0.0.1:9586/ shows what it does; /metrics for Prometheus

Environment:
  LOG_LEVEL              silent, error (default), info, verbose
  WG_PROCESS_FOREGROUND  1: stay in the foreground, as -f
  WG_TUN_FD, WG_UAPI_FD  take over an open TUN file (IFF_VNET_HDR) or a listening UAPI socket

Exit status: 0 done, 1 failed, 2 wrong usage.
WireGuard is a registered trademark of Jason A. Donenfeld.";

/// The environment variable that holds the number of an open TUN file.
const TUN_FD: &str = "WG_TUN_FD";

/// A userspace WireGuard gateway for Linux.
///
/// Creates the WireGuard interface NAME and its configuration socket /var/run/wireguard/NAME.sock, which wg(8) and
/// wg-quick(8) use, and carries its traffic with one pinned worker per core.
#[derive(Parser)]
#[command(name = "ringtun", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) tunnel: TunnelArgs,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print a new private key, as `wg genkey` does
    #[command(after_help = "Example:\n  (umask 077; ringtun genkey > private.key)")]
    Genkey,
    /// Print a new preshared key, as `wg genpsk` does
    #[command(after_help = "Example:\n  (umask 077; ringtun genpsk > preshared.key)")]
    Genpsk,
    /// Read a private key on standard input and print its public key, as `wg pubkey` does
    #[command(after_help = "Example:\n  ringtun pubkey < private.key")]
    Pubkey,
    /// Bring a tunnel up, look after it in the foreground, and take it down at SIGTERM: for service managers
    Service(ServiceArgs),
    /// Show running tunnels, as `wg show` does
    Show(ShowArgs),
    /// Print a running tunnel's configuration, as `wg showconf` does
    Showconf(ShowconfArgs),
    /// Show how running tunnels do: rates, shares, what was dropped and why
    Status(StatusArgs),
    /// Tell what happens to the peers of running tunnels, as it happens
    Monitor(MonitorArgs),
    /// Watch what a tunnel does: throughput, workers, peers
    Top(TopArgs),
    /// Tell why a peer does not connect, or why packets do not pass, and what to do
    Why(WhyArgs),
    /// Report what this host offers a tunnel, and how to get what is missing
    Doctor(DoctorArgs),
    /// Measure what this host does with this program, in network namespaces of its own
    Bench(BenchArgs),
    /// Write man pages and completions
    #[command(subcommand, hide = true)]
    Generate(GenerateCommand),
    /// Bring a tunnel up from its configuration file
    Up(UpArgs),
    /// Take a tunnel down
    Down(DownArgs),
    /// Write the present state of a running tunnel to its configuration file
    Save(SaveArgs),
    /// Apply a changed configuration file to its running tunnel
    Reload(ReloadArgs),
    /// Go on with a running tunnel in another program, without losing a session or a packet
    Upgrade(UpgradeArgs),
    /// Take a tunnel over from the process that has it, in the background: `upgrade` starts this
    #[command(hide = true)]
    TakeOver(TakeOverArgs),
    /// Report what is wrong with a configuration file, without changing anything
    Check(CheckArgs),
    /// Print a configuration file for wg(8), without what only wg-quick(8) knows
    Strip(StripArgs),
    /// Explain how large the packets in a tunnel can be
    Mtu(MtuArgs),
    /// Add, list, rename, disable, enable, remove peers
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Run the hooks PeerUp and PeerDown of a running tunnel, in the background: `up` and `reload` start this
    #[command(hide = true)]
    PeerHooks(PeerHooksArgs),
    /// Convert a hostname.if(5) file of OpenBSD to a wg-quick file
    Import(ImportArgs),
    /// Convert a wg-quick file to another system's format
    Export(ExportArgs),
}

#[derive(Args)]
pub(super) struct TunnelArgs {
    /// Interface to create
    #[arg(value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Stay in the foreground
    #[arg(short, long)]
    pub(super) foreground: bool,
    /// Number of workers, each with its TUN queue, UDP sockets and core [default: one for each core that affinity and CPU quota allow]
    #[arg(long, value_name = "N", env = "RINGTUN_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Packet buffers of each worker, 68 KiB each: fewer need less memory, more take longer bursts
    #[arg(long, value_name = "N", env = "RINGTUN_BUFFERS", default_value_t = BUFFERS as u32, value_parser = clap::value_parser!(u32).range(MIN_BUFFERS as i64..=MAX_BUFFERS as i64))]
    buffers: u32,
    /// Send buffer and receive buffer of each UDP socket, in bytes
    #[arg(long, value_name = "BYTES", env = "RINGTUN_SOCKET_BUFFER", default_value_t = SOCKET_BUFFER as u32, value_parser = clap::value_parser!(u32).range(MIN_SOCKET_BUFFER as i64..=MAX_SOCKET_BUFFER as i64))]
    socket_buffer: u32,
    /// How workers exchange packets with the kernel
    #[arg(long, value_name = "BACKEND", env = "RINGTUN_IO", default_value = "auto")]
    io: IoArg,
    /// MTU of the new interface, in bytes
    #[arg(long, value_name = "BYTES", env = "RINGTUN_MTU", default_value_t = 1420, value_parser = clap::value_parser!(u32).range(68..=MAX_INNER_LEN as i64))]
    mtu: u32,
    /// Do without the segmentation offloads of the TUN device
    #[arg(long, env = "RINGTUN_NO_TUN_OFFLOAD", value_parser = clap::builder::FalseyValueParser::new())]
    no_tun_offload: bool,
    /// Send one datagram at a time, without UDP_SEGMENT
    #[arg(long, env = "RINGTUN_NO_GSO", value_parser = clap::builder::FalseyValueParser::new())]
    no_gso: bool,
    /// Receive one datagram at a time, without UDP_GRO
    #[arg(long, env = "RINGTUN_NO_GRO", value_parser = clap::builder::FalseyValueParser::new())]
    no_gro: bool,
    /// Leave the choice of TUN queue to the kernel's flow hash instead of the eBPF program
    #[arg(long, env = "RINGTUN_NO_STEERING", value_parser = clap::builder::FalseyValueParser::new())]
    no_steering: bool,
    /// Configuration whose endpoints' names and paths are looked after while the tunnel runs
    #[arg(long, value_name = "FILE", hide = true)]
    pub(super) config: Option<PathBuf>,
    /// Have workers share the trains of every peer, whatever the load: for tests
    #[arg(long, hide = true)]
    share_all: bool,
    /// Do not pin workers to cores [default: pinned, unless the CPU quota is below the number of cores]
    #[arg(long, env = "RINGTUN_NO_PIN", value_parser = clap::builder::FalseyValueParser::new())]
    no_pin: bool,
    /// Serve metrics, status and a page over HTTP, read-only: a port of 127.0.0.1, ADDRESS:PORT, or unix:PATH
    #[arg(long, value_name = "WHERE", env = "RINGTUN_HTTP")]
    pub(super) http: Option<http::HttpAddress>,
    /// Keep all capabilities, system calls and files within reach [default: only what a running tunnel needs]
    #[arg(long, env = "RINGTUN_UNCONFINED", value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) unconfined: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum IoArg {
    /// io_uring where the kernel and the container allow it, else plain syscalls
    Auto,
    /// io_uring, or fail
    Uring,
    /// epoll, recvmmsg, sendmmsg
    Syscalls,
}

impl TunnelArgs {
    /// Whether `ringtun up` starts this process, and goes on with the interface.
    pub(super) fn is_started_by_up(&self) -> bool {
        self.config.is_some()
    }

    /// Whether another process made the device.
    pub(super) fn is_handed_a_device() -> bool {
        std::env::var_os(TUN_FD).is_some()
    }

    /// Checks what clap cannot, which is the name and the inherited files, and makes the builder.
    pub(super) fn into_builder(self) -> Result<Builder, Failure> {
        let name = self.name.ok_or_else(|| Failure::new("an interface name is needed"))?;
        tun::check_name(&name).map_err(Failure::Invalid)?;
        let mut builder = Tunnel::builder(name)
            .backend(match self.io {
                IoArg::Auto => Backend::Auto,
                IoArg::Uring => Backend::Uring,
                IoArg::Syscalls => Backend::Syscalls,
            })
            .buffers(self.buffers as usize)
            .socket_buffer(self.socket_buffer as usize)
            .mtu(self.mtu)
            .tun_offloads(!self.no_tun_offload)
            .gso(!self.no_gso)
            .gro(!self.no_gro)
            .steering(!self.no_steering)
            .pin(!self.no_pin)
            .share_all(self.share_all)
            .control_socket();
        if let Some(workers) = self.workers {
            builder = builder.workers(workers.into());
        }
        if let Some(fd) = inherit::from_env(TUN_FD).map_err(Failure::Invalid)? {
            builder = builder.tun_fd(fd);
        }
        if let Some(fd) = inherit::from_env("WG_UAPI_FD").map_err(Failure::Invalid)? {
            builder = builder.control_socket_fd(fd);
        }
        Ok(builder)
    }
}
