//! A tunnel over files that were handed in: a process with rights makes the TUN device and the socket by which wg(8) is to
//! configure the tunnel, and passes both on (SCM_RIGHTS) over the Unix socket that is named. This process needs no rights at all,
//! as far as the tunnel's own traffic goes.
//!
//! The device must be opened with IFF_TUN, IFF_NO_PI and IFF_VNET_HDR.

use ringtun::{PrivateKey, Tunnel};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Between two lines of what the tunnel does.
const LINE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("expected the socket to take the files from")?;
    let [device, control] = receive(&UnixStream::connect(path)?)?;
    let change = ringtun::Change::new().private_key(PrivateKey::generate());
    // The name is the device's own.
    let tunnel = Tunnel::builder("").tun_fd(device).control_socket_fd(control).configure(change).start()?;
    loop {
        let status = tunnel.status()?;
        let key = status.public_key.map(|key| key.to_string()).unwrap_or_default();
        println!("{}: public key {key}, {} bytes received", tunnel.name(), status.rx_bytes);
        if let Some(ended) = tunnel.wait_timeout(LINE) {
            return Ok(ended?);
        }
    }
}

/// The two files that come with one message.
fn receive(from: &UnixStream) -> Result<[OwnedFd; 2], Box<dyn std::error::Error>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    files.try_into().map_err(|_| "expected two files: the device and the socket".into())
}
