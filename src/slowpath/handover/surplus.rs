//! Queues and sockets for which there is no worker any more, as there are fewer than in the process before.

use crate::dataplane::misdirected::Misdirected;
use crate::io::mmsg::Mmsg;
use crate::io::slab::Pool;
use crate::io::udp::UdpSockets;
use crate::io::{Io, tun};
use crate::sys::waker::Waker;
use crate::time::Instant;
use std::io::Result;
use std::os::fd::{AsFd, OwnedFd};

/// Buffers with which they are emptied.
const BUFFERS: usize = 64;

/// What waited.
#[derive(Debug, Default)]
pub(super) struct Strays {
    pub(super) frames: Vec<Box<[u8]>>,
    pub(super) datagrams: Vec<Misdirected>,
}

/// Takes out what waits in a queue and its worker's sockets. The device uses the queue no more from then on. Packets that come to the
/// queue between its last look and its end are lost.
///
/// # Errors
///
/// What the kernel says.
pub(super) fn drain(queue: OwnedFd, sockets: UdpSockets) -> Result<Strays> {
    let again = queue.try_clone()?;
    let mut io = Mmsg::new(again, Pool::new(BUFFERS)?, Waker::new()?)?;
    io.rebind(Some(sockets));
    let mut strays = Strays::default();
    loop {
        io.wait(Some(Instant::START))?;
        let before = strays.frames.len() + strays.datagrams.len();
        while let Some(train) = io.recv_udp() {
            strays.datagrams.push(Misdirected {
                bytes: train.buf[train.start..train.start + train.len].into(),
                stride: train.stride,
                from: train.from,
                to: train.to,
                ecn: train.ecn,
            });
        }
        while let Some(frame) = io.recv_tun() {
            strays.frames.push(frame.buf[..frame.len].into());
        }
        if strays.frames.len() + strays.datagrams.len() == before {
            break;
        }
    }
    tun::disable(queue.as_fd())?;
    Ok(strays)
}
