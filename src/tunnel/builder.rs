//! The builder of a tunnel: what it is to be, said before it starts.

use super::Tunnel;
use crate::io::udp::SocketOptions;
use crate::slowpath::handover::Belongings;
use crate::tunnel::change::Change;
use crate::tunnel::error::Error;
use crate::tunnel::start::{self, Settings, SocketChoice};
use crate::tunnel::workers::{BUFFERS, Backend};
use std::os::fd::OwnedFd;

/// MTU in bytes of a new interface: what a path of 1,500 bytes leaves after IPv6's and WireGuard's headers.
pub(super) const MTU: u32 = 1420;

/// A tunnel that is to be made. [`Tunnel::builder`] begins one, [`Builder::start`] makes it.
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
                buffers: BUFFERS,
                backend: Backend::Auto,
                mtu: MTU,
                tun_offloads: true,
                gso: true,
                sockets: SocketOptions::default(),
                steering: true,
                pin: true,
                share_all: false,
                tun_fd: None,
                control: SocketChoice::None,
                belongings: None,
            },
            change: None,
        }
    }

    /// Gives the tunnel its keys and peers before it starts. A second call replaces the change of the first.
    pub fn configure(mut self, change: Change) -> Builder {
        self.change = Some(change);
        self
    }

    /// Sets how many workers there are, 1 to 256. Each is a thread with a queue of the device and sockets of its own. By
    /// default there is one for each core that affinity and CPU quota allow.
    pub fn workers(mut self, workers: usize) -> Builder {
        self.settings.workers = Some(workers);
        self
    }

    /// Sets how many packet buffers of 68 KiB each worker has, 16 to 32,768. They are what a worker's memory is made of, as far as
    /// it uses them. The default is 192, which is 12.75 MiB.
    pub fn buffers(mut self, buffers: usize) -> Builder {
        self.settings.buffers = buffers;
        self
    }

    /// Sets how many bytes the send buffer of each UDP socket has, and its receive buffer: 256 KiB to 1 GiB. A worker has a
    /// socket for IPv4 and one for IPv6, and the kernel may use twice as much. The default is 7 MiB. Without CAP_NET_ADMIN
    /// `net.core.rmem_max` and `net.core.wmem_max` bound it.
    pub fn socket_buffer(mut self, bytes: usize) -> Builder {
        self.settings.sockets.buffer = bytes;
        self
    }

    /// Chooses how workers speak to the kernel. The default is [`Backend::Auto`].
    pub fn backend(mut self, backend: Backend) -> Builder {
        self.settings.backend = backend;
        self
    }

    /// Sets the MTU of the new interface, in bytes. The default is 1420.
    pub fn mtu(mut self, mtu: u32) -> Builder {
        self.settings.mtu = mtu;
        self
    }

    /// Says whether each worker is pinned to one of the cores that the calling thread may use. By default they are, unless the
    /// CPU quota of the control group is below the number of these cores. They stay pinned when the cores change that may be
    /// used.
    pub fn pin(mut self, pin: bool) -> Builder {
        self.settings.pin = pin;
        self
    }

    /// Says whether the TUN device is asked for segmentation offloads. By default it is.
    pub fn tun_offloads(mut self, offloads: bool) -> Builder {
        self.settings.tun_offloads = offloads;
        self
    }

    /// Says whether many datagrams are sent at once (UDP_SEGMENT). By default they are, where the kernel can.
    pub fn gso(mut self, gso: bool) -> Builder {
        self.settings.gso = gso;
        self
    }

    /// Says whether many datagrams are received at once (UDP_GRO). By default they are, where the kernel can.
    pub fn gro(mut self, gro: bool) -> Builder {
        self.settings.sockets.gro = gro;
        self
    }

    /// Says whether an eBPF program chooses the queue of the device for each packet; otherwise the kernel does. By default the
    /// program does, where the process may load one.
    pub fn steering(mut self, steering: bool) -> Builder {
        self.settings.steering = steering;
        self
    }

    /// Says whether workers share the trains of every peer, whatever the load.
    #[cfg(feature = "cli")]
    pub(crate) fn share_all(mut self, share: bool) -> Builder {
        self.settings.share_all = share;
        self
    }

    /// Takes over an open queue of a TUN device instead of making an interface. It must have been opened with IFF_TUN,
    /// IFF_NO_PI and IFF_VNET_HDR, and be attached. The tunnel then has the device's name and one worker. The interface's
    /// addresses and MTU are left as they are.
    pub fn tun_fd(mut self, fd: OwnedFd) -> Builder {
        self.settings.tun_fd = Some(fd);
        self
    }

    /// Listens on `/var/run/wireguard/NAME.sock`, so that wg(8) and `ringtun show` can ask the tunnel and change it. The
    /// tunnel ends when the file is removed. By default there is no such socket, and nobody but this process configures the
    /// tunnel.
    pub fn control_socket(mut self) -> Builder {
        self.settings.control = SocketChoice::Own;
        self
    }

    /// Listens for the same operations as [`Self::control_socket`], on a Unix stream socket that listens already.
    pub fn control_socket_fd(mut self, fd: OwnedFd) -> Builder {
        self.settings.control = SocketChoice::Given(fd);
        self
    }

    /// Lets another process of the same user, or of root, take the tunnel over while it runs ([`Predecessor`](crate::Predecessor)): with its
    /// sessions, and without a packet lost. It asks for that at the control socket, which there must be, and gets what belongs to the
    /// tunnel's owner here along with the tunnel. By default a tunnel stays with its process.
    pub fn belongings(mut self, belongings: Belongings) -> Builder {
        self.settings.belongings = Some(belongings);
        self
    }

    /// Makes the interface, down and without addresses, in the network namespace of the calling thread, and starts the
    /// tunnel's threads. Its UDP sockets are bound in the same namespace, once the interface is set up.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses something, or the change cannot be carried out. Then nothing is left behind.
    pub fn start(self) -> Result<Tunnel, Error> {
        let tunnel = Tunnel::running(start::start(self.settings)?);
        if let Some(change) = self.change
            && let Err(error) = tunnel.configure(change)
        {
            tunnel.stop();
            // However it ended, it is this error that the caller can do something about.
            let _ = tunnel.wait();
            return Err(error);
        }
        Ok(tunnel)
    }
}
