//! Echo requests through the tunnel, to find which sizes of packets arrive and come back.

use super::facts::SizeFacts;
use crate::wire::checksum::{fold, sum};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Read, Result};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The size in bytes of a packet that passes anywhere.
const SMALL: u32 = 96;
/// The length in bytes of an ICMP header for echo.
const HEADER_LEN: usize = 8;
/// How long a first answer may take.
const FIRST_ANSWER: Duration = Duration::from_secs(1);
/// The least time that is waited for an answer.
const LEAST_WAIT: Duration = Duration::from_millis(150);
/// How often a size is tried before it counts as lost.
const TRIES: u32 = 3;

/// A socket for echo to one address.
struct Echo {
    socket: Socket,
    to: IpAddr,
    id: u16,
    sequence: u16,
}

/// Which sizes up to `mtu` bytes `to` answers. `None` where it answers none, so that nothing can be said.
pub(super) fn sizes(to: IpAddr, mtu: u32) -> Option<SizeFacts> {
    let mut echo = Echo::open(to).ok()?;
    let time = (0..TRIES).find_map(|_| echo.ask(SMALL, FIRST_ANSWER))?;
    let wait = (4 * time).max(LEAST_WAIT);
    let mut passes = |size: u32| (0..TRIES).any(|_| echo.ask(size, wait).is_some());
    let largest = if mtu <= SMALL || passes(mtu) {
        mtu
    } else {
        let largest = search(SMALL, mtu, &mut passes);
        // Where small ones pass no more, size was not the reason.
        passes(SMALL).then_some(largest)?
    };
    Some(SizeFacts { address: to, small: SMALL, largest, mtu })
}

/// The largest size that passes, where `passes` does and `fails` does not.
fn search(mut passes: u32, mut fails: u32, test: &mut impl FnMut(u32) -> bool) -> u32 {
    while fails - passes > 1 {
        let middle = passes + (fails - passes) / 2;
        if test(middle) {
            passes = middle;
        } else {
            fails = middle;
        }
    }
    passes
}

impl Echo {
    fn open(to: IpAddr) -> Result<Echo> {
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        Ok(Echo { socket, to, id: std::process::id() as u16, sequence: 0 })
    }

    /// Sends a packet of this size, and waits for its answer. Returns how long that took, if there was one.
    fn ask(&mut self, size: u32, wait: Duration) -> Option<Duration> {
        self.sequence = self.sequence.wrapping_add(1);
        let begun = Instant::now();
        self.socket.send_to(&self.request(size), &SocketAddr::new(self.to, 0).into()).ok()?;
        let mut packet = vec![0; 65_536];
        while let Some(left) = wait.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left)).ok()?;
            match self.socket.read(&mut packet) {
                Ok(len) if self.is_answer(packet.get(..len)?) => return Some(begun.elapsed()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        None
    }

    fn request(&self, size: u32) -> Vec<u8> {
        let (header, kind) = if self.to.is_ipv4() { (20, 8) } else { (40, 128) };
        let mut request = vec![0; (size as usize).saturating_sub(header).max(HEADER_LEN)];
        request[0] = kind;
        request[4..6].copy_from_slice(&self.id.to_be_bytes());
        request[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        if self.to.is_ipv4() {
            // The kernel fills in ICMPv6's own.
            let checksum = !fold(sum(&request, 0));
            request[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        request
    }

    /// Whether a packet that was received answers the last request. An IPv4 one has its header.
    fn is_answer(&self, packet: &[u8]) -> bool {
        let (message, kind) = match self.to {
            IpAddr::V4(_) => {
                let header_len = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
                (packet.get(header_len..), 0)
            }
            IpAddr::V6(_) => (Some(packet), 129),
        };
        let head = message.and_then(|message| message.get(..HEADER_LEN));
        head.is_some_and(|head| {
            head[0] == kind
                && head[4..6] == self.id.to_be_bytes()
                && head[6..8] == self.sequence.to_be_bytes()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::{in_netns, ip};
    use proptest::prelude::*;

    #[test]
    fn an_address_that_answers_all_sizes_is_told_from_one_that_answers_none() {
        in_netns(|| {
            ip("addr add fd01::1/128 dev lo nodad");
            for to in ["127.0.0.1", "fd01::1"] {
                let to: IpAddr = to.parse().unwrap();
                let found = sizes(to, 1420).unwrap();
                assert_eq!(found, SizeFacts { address: to, small: SMALL, largest: 1420, mtu: 1420 });
            }
            assert_eq!(sizes("192.0.2.1".parse().unwrap(), 1420), None);
        });
    }

    #[test]
    fn a_request_has_its_size_and_a_checksum_that_verifies() {
        let Ok(echo) = Echo::open(IpAddr::from([127, 0, 0, 1])) else {
            eprintln!("not run: a raw socket needs root");
            return;
        };
        for size in [28, 29, 96, 1420] {
            let request = echo.request(size);
            assert_eq!(request.len() + 20, size as usize);
            assert_eq!(fold(sum(&request, 0)), 0xffff);
        }
        assert!(!echo.is_answer(&[]) && !echo.is_answer(&[0x4f; 20]));
    }

    proptest! {
        #[test]
        fn the_limit_is_found_exactly(limit in SMALL..9000_u32, mtu in 0..9000_u32) {
            prop_assume!(mtu > limit);
            prop_assert_eq!(search(SMALL, mtu, &mut |size| size <= limit), limit);
        }
    }
}
