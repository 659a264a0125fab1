//! Whether UDP_SEGMENT delivers what it is given, tried over loopback.
//!
//! Some kernels (reported of Linux 7.0 to 7.1.4) take trains whose last segment is full and deliver something else.

use crate::sys::calls::Batch;
use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

/// Bytes a segment: one that fits every path.
const SEGMENT: usize = 1200;
/// Bytes of the trains that are tried: a full last segment, a short one, and more segments than a page holds.
const TRAINS: [usize; 3] = [2 * SEGMENT, 3 * SEGMENT - 7, 16 * SEGMENT];
/// Loopback delivers before the send returns; this much later nothing comes any more.
const PATIENCE: Duration = Duration::from_millis(50);

/// Sends trains over loopback to a socket of its own. True where each datagram arrived as it was sent.
///
/// # Errors
///
/// Where it could not be tried, since loopback is down or filtered, or there is no UDP_SEGMENT.
pub fn delivers_whole() -> Result<bool> {
    let attempt = tries_whole(Ipv4Addr::LOCALHOST.into());
    match attempt {
        Err(_) => tries_whole(Ipv6Addr::LOCALHOST.into()),
        tried => tried,
    }
}

fn tries_whole(loopback: IpAddr) -> Result<bool> {
    let receiver = UdpSocket::bind((loopback, 0))?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    let sender = UdpSocket::bind((loopback, 0))?;
    receiver.connect(sender.local_addr()?)?;
    for len in TRAINS {
        let train: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let mut batch = Batch::new(1);
        batch.set_send(0, &train, &receiver.local_addr()?, |control| control.push_segment(SEGMENT as u16));
        // SAFETY: `train` lives until the call returns.
        unsafe { batch.send(sender.as_fd(), 1) }.map_err(Error::from_raw_os_error)?;
        if !is_whole(&train, &received(&receiver, train.len().div_ceil(SEGMENT))?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The datagrams that arrive, up to one more than `expected`. An error where none does.
fn received(receiver: &UdpSocket, expected: usize) -> Result<Vec<Vec<u8>>> {
    let mut datagrams = Vec::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    while datagrams.len() <= expected {
        match receiver.recv(&mut buffer) {
            Ok(len) => datagrams.push(buffer[..len].to_vec()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if datagrams.is_empty() => return Err(error),
            Err(_) => break,
        }
        if datagrams.len() == expected {
            // A surplus one is there already, if there is any.
            receiver.set_nonblocking(true)?;
        }
    }
    receiver.set_nonblocking(false)?;
    Ok(datagrams)
}

/// Whether the datagrams are the train's segments, in order, all of them and no others.
fn is_whole(train: &[u8], datagrams: &[Vec<u8>]) -> bool {
    datagrams.iter().map(Vec::as_slice).eq(train.chunks(SEGMENT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::{in_netns, ip};
    use std::process::Command;

    #[test]
    fn a_train_is_whole_only_where_each_segment_comes_once_and_unaltered() {
        let train: Vec<u8> = (0..3 * SEGMENT).map(|at| (at % 251) as u8).collect();
        let segments: Vec<Vec<u8>> = train.chunks(SEGMENT).map(<[u8]>::to_vec).collect();
        assert!(is_whole(&train, &segments));
        assert!(!is_whole(&train, &segments[..2]), "one is missing");
        let mut more = segments.clone();
        more.push(vec![0]);
        assert!(!is_whole(&train, &more), "one too many");
        for at in [0, 1, 2] {
            let mut altered = segments.clone();
            altered[at][SEGMENT / 2] ^= 1;
            assert!(!is_whole(&train, &altered), "segment {at} altered");
            let mut short = segments.clone();
            short[at].pop();
            assert!(!is_whole(&train, &short), "segment {at} too short");
        }
        let merged = vec![train[..2 * SEGMENT].to_vec(), train[2 * SEGMENT..].to_vec()];
        assert!(!is_whole(&train, &merged));
    }

    #[test]
    fn a_loopback_that_alters_trains_is_told_from_a_whole_one_and_from_none() {
        in_netns(|| {
            assert!(delivers_whole().unwrap(), "this kernel mangles UDP_SEGMENT");
            ip("link set lo down");
            assert!(delivers_whole().is_err(), "loopback is down");
            ip("link set lo up");
            let rules = "add table inet t; add chain inet t c { type filter hook output priority 0; }; \
                         add rule inet t c oifname lo udp length > 2000 @th,160,8 set 0xee";
            let done = Command::new("nft").arg(rules).status();
            if done.is_ok_and(|status| status.success()) {
                assert!(!delivers_whole().unwrap(), "an altered byte passed for whole");
            } else {
                eprintln!("the altering loopback was not tried: no nft");
            }
        });
    }
}
