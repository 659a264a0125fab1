//! ringtun: a userspace WireGuard gateway for Linux.
//!
//! One pinned worker per core batch-reads its queue of a multi-queue TUN device and its UDP GSO/GRO socket
//! through io_uring; a slow path on one more thread does handshakes, timers and configuration.
//!
//! The rooms, from the ground floor up; a room imports only rooms above it in this list:
//!
//! | room | its job |
//! | --- | --- |
//! | [`time`] | the virtual or real monotonic clock's instant |
//! | [`wire`] | message and IP/TCP/UDP/virtio-net header layouts, checked parsing, checksums |
//! | [`crypto`] | AEAD over trains, X25519, BLAKE2s, randomness |
//! | [`noise`] | handshake, cookies, sessions, replay window, timers |
//! | [`routing`] | AllowedIPs: longest-prefix match |
//! | [`index`] | receiver index to worker |
//! | [`offload`] | split a super-packet, coalesce a run, build trains |
//! | [`sys`] | thin safe wrappers of the kernel: ioctl, bpf(2), control messages, eventfd, clock |
//! | [`io`] | the I/O trait and its backends, TUN, UDP sockets, steering |
//! | [`dataplane`] | the worker, its mailboxes and statistics |
//! | [`device`] | peers, handshakes, timers, UAPI: what the slow path decides, sans-IO |
//! | [`slowpath`] | the thread that drives a device: runtime, netlink, control socket |
//! | [`tunnel`] | a tunnel as a value: device, workers, slow path, end |
//! | `gateway` | what stands around a tunnel: configuration files, up and down, services, peers' configurations |
//! | `cli` | arguments, output, exit codes |
//! | [`sim`] | whole devices in one thread from one seed |

#[cfg(feature = "cli")]
pub mod cli;
pub mod crypto;
pub mod dataplane;
pub mod device;
#[cfg(feature = "cli")]
pub mod gateway;
pub mod index;
pub mod io;
pub mod noise;
pub mod offload;
pub mod routing;
pub mod sim;
pub mod slowpath;
pub mod sys;
pub mod time;
pub mod tunnel;
pub mod wire;
