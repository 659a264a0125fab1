//! What a tunnel is to be.

use super::Tunnel;
use crate::tunnel::change::Change;
use crate::tunnel::error::Error;
use crate::tunnel::start::{self, Settings, SocketChoice};
use crate::tunnel::workers::Backend;
use std::os::fd::OwnedFd;

/// MTU of a new interface: what a path of 1,500 bytes leaves behind IPv6's and WireGuard's headers.
const MTU: u32 = 1420;

/// A tunnel to be: [`Tunnel::builder`] begins one, [`Builder::start`] makes it.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    settings: Settings,
    change: Option<Change>,
}

impl Builder {
    pub(super) fn new(name: String) -> Builder {
        Builder {
            settings: Settings {
                name,
                workers: None,
                backend: Backend::Auto,
                mtu: MTU,
                tun_offloads: true,
                gso: true,
                gro: true,
                steering: true,
                pin: true,
                tun_fd: None,
                control: SocketChoice::None,
            },
            change: None,
        }
    }

    /// Gives the tunnel its keys and peers before it starts. Called again, it takes the place of what was given before.
    pub fn configure(mut self, change: Change) -> Builder {
        self.change = Some(change);
        self
    }

    /// How many workers there are, 1 to 256: each is a thread with a queue of the device and sockets of its own. Without it
    /// there is one for each core.
    pub fn workers(mut self, workers: usize) -> Builder {
        self.settings.workers = Some(workers);
        self
    }

    /// How workers speak to the kernel.
    pub fn backend(mut self, backend: Backend) -> Builder {
        self.settings.backend = backend;
        self
    }

    /// The MTU of the new interface, in bytes. Without it, 1420.
    pub fn mtu(mut self, mtu: u32) -> Builder {
        self.settings.mtu = mtu;
        self
    }

    /// Whether workers are pinned, each to one core of those that the calling thread may use. They are, without it.
    pub fn pin(mut self, pin: bool) -> Builder {
        self.settings.pin = pin;
        self
    }

    /// Whether the TUN device is asked for segmentation offloads. It is, without it.
    pub fn tun_offloads(mut self, offloads: bool) -> Builder {
        self.settings.tun_offloads = offloads;
        self
    }

    /// Whether many datagrams are sent at once (UDP_SEGMENT). They are, without it.
    pub fn gso(mut self, gso: bool) -> Builder {
        self.settings.gso = gso;
        self
    }

    /// Whether many datagrams are received at once (UDP_GRO). They are, without it.
    pub fn gro(mut self, gro: bool) -> Builder {
        self.settings.gro = gro;
        self
    }

    /// Whether an eBPF program chooses the queue of the device for each packet, else the kernel does. It does, without it,
    /// where the process may load one.
    pub fn steering(mut self, steering: bool) -> Builder {
        self.settings.steering = steering;
        self
    }

    /// Takes over an open queue of a TUN device instead of making an interface: one that was opened with IFF_TUN, IFF_NO_PI
    /// and IFF_VNET_HDR and is attached. The interface's name is then the device's, and there is one worker. Its addresses and its
    /// MTU are left as they are.
    pub fn tun_fd(mut self, fd: OwnedFd) -> Builder {
        self.settings.tun_fd = Some(fd);
        self
    }

    /// Listens on `/var/run/wireguard/NAME.sock`, so that wg(8) and `ringtun show` can ask the tunnel and change it. The
    /// tunnel ends when the file is removed. Without it, nobody but this process configures the tunnel.
    pub fn control_socket(mut self) -> Builder {
        self.settings.control = SocketChoice::Own;
        self
    }

    /// As [`Self::control_socket`], on a Unix stream socket that listens already.
    pub fn control_socket_fd(mut self, fd: OwnedFd) -> Builder {
        self.settings.control = SocketChoice::Given(fd);
        self
    }

    /// Makes the interface, down and without addresses, in the network namespace of the calling thread, and starts the tunnel's
    /// threads. Its sockets are bound there, too, once the interface is set up.
    ///
    /// # Errors
    /// Where something cannot be had; then nothing is left behind.
    pub fn start(self) -> Result<Tunnel, Error> {
        let tunnel = Tunnel::running(start::start(self.settings)?);
        if let Some(change) = self.change
            && let Err(error) = tunnel.configure(change)
        {
            tunnel.stop();
            // Whatever it ended with, it is this error that the caller can do something about.
            let _ = tunnel.wait();
            return Err(error);
        }
        Ok(tunnel)
    }
}
