//! Sockets of another process, which this one goes on with: as many pairs of them as there are workers, whatever their number was.

use super::{Bound, UdpConfig, UdpGroup, UdpSockets, explain_bind, explain_open, open, wildcard};
use crate::index::WorkerCount;
use crate::io::steer;
use crate::sys::error::invalid;
use crate::wire::family::Family;
use socket2::SockRef;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The sockets of another process, and some more where there are more workers now.
#[derive(Debug)]
pub struct InheritedSockets {
    /// The group, without what is surplus.
    pub group: UdpGroup,
    /// The sockets of each worker.
    pub pairs: Vec<UdpSockets>,
    /// Pairs for which there is no worker any more, in the order in which they were bound. What waits in them is to be taken out after
    /// [`UdpGroup::settle`], and then they are to be closed from the last on.
    pub surplus: Vec<UdpSockets>,
}

impl UdpGroup {
    /// How many sockets there are of IPv4, and of IPv6.
    pub fn count(&self) -> (usize, usize) {
        (self.v4, self.sockets.len() - self.v4)
    }

    /// All sockets: those of IPv4 in the order in which they were bound, then those of IPv6.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    /// Takes over the sockets that [`Self::all`] of another process gave, of which the first so many (`v4`) are of IPv4. Where there
    /// are more workers than pairs, further sockets are bound to the port with the options of `config`. `steered` says whether the
    /// program is attached to them. What datagrams go where does not change before [`Self::settle`].
    ///
    /// # Errors
    ///
    /// Where they are no such sockets, or the kernel refuses to bind one more.
    pub fn inherit(
        sockets: Vec<OwnedFd>,
        v4: usize,
        steered: bool,
        config: &UdpConfig,
    ) -> io::Result<InheritedSockets> {
        let mut first = sockets;
        let second = first.split_off(v4.min(first.len()));
        let pairs = first.len().max(second.len());
        if [first.len(), second.len()].into_iter().any(|count| count != 0 && count != pairs) || pairs == 0 {
            return Err(invalid("sockets that do not make pairs"));
        }
        let v4 = inherit_family(Family::Ipv4, first, config)?;
        let v6 = inherit_family(Family::Ipv6, second, config)?;
        let families: Vec<&Bound> = v4.iter().chain(&v6).collect();
        let Some(port) = families.last().map(|bound| bound.port) else {
            return Err(invalid("no sockets"));
        };
        let kept = families.iter().flat_map(|bound| bound.sockets.iter().take(config.workers.get()));
        let kept = kept.map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>().map_err(explain_open)?;
        let of_v4 = v4.as_ref().map_or(0, |_| config.workers.get());
        let group = UdpGroup { port, steered, v4: of_v4, sockets: Arc::new(kept) };
        let count = pairs.max(config.workers.get());
        let mut v4 = v4.into_iter().flat_map(|bound| bound.sockets);
        let mut v6 = v6.into_iter().flat_map(|bound| bound.sockets);
        let mut pairs: Vec<_> =
            (0..count).map(|_| UdpSockets { v4: v4.next(), v6: v6.next(), port }).collect();
        let surplus = pairs.split_off(config.workers.get());
        Ok(InheritedSockets { group, pairs, surplus })
    }

    /// Has the kernel choose among the sockets of this group alone, `surplus` saying that it has others, too.
    pub fn settle(&mut self, surplus: bool) {
        let (v4, v6) = self.count();
        let workers = WorkerCount::nearest(v4.max(v6));
        let families = [(v4, 0), (v6, v4)].into_iter().filter(|(count, _)| *count > 0);
        let firsts = families.filter_map(|(_, first)| self.sockets.get(first));
        let mut steer = firsts.map(|first| match surplus {
            true => steer::attach_udp_to_some(first.as_fd(), workers).is_ok(),
            false => workers == WorkerCount::ONE || steer::attach_udp(first.as_fd(), workers).is_ok(),
        });
        let is_steered = steer.all(|done| done);
        self.steered = is_steered && workers != WorkerCount::ONE;
    }
}

/// Takes over the sockets of a family, if there are some, and binds as many more as there are workers for.
fn inherit_family(
    family: Family,
    mut sockets: Vec<OwnedFd>,
    config: &UdpConfig,
) -> io::Result<Option<Bound>> {
    let Some(first) = sockets.first() else { return Ok(None) };
    let port = port_of(family, first)?;
    for other in &sockets {
        if port_of(family, other)? != port {
            return Err(invalid("UDP sockets of different ports were handed over"));
        }
    }
    if sockets.len() < config.workers.get() {
        // One that was alone is in no group yet.
        SockRef::from(first).set_reuse_port(true)?;
    }
    while sockets.len() < config.workers.get() {
        let socket = open(family, config)?;
        socket.set_reuse_port(true)?;
        socket.bind(&wildcard(family, port)).map_err(|error| explain_bind(error, port))?;
        sockets.push(socket.into());
    }
    Ok(Some(Bound { port, steered: false, sockets }))
}

/// The port of a socket, which must be of this family.
fn port_of(family: Family, socket: &OwnedFd) -> io::Result<u16> {
    let address = SockRef::from(socket).local_addr()?.as_socket();
    let of_family = address.filter(|address| address.is_ipv4() == (family == Family::Ipv4));
    of_family.map(|address| address.port()).ok_or_else(|| invalid("what was handed over is no UDP socket"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::udp::{SocketOptions, bind};
    use crate::sys::netns::{eventually, in_netns};
    use std::io::ErrorKind;
    use std::net::UdpSocket;

    fn config(workers: usize) -> UdpConfig {
        let workers = WorkerCount::nearest(workers);
        UdpConfig { port: 0, mark: 0, workers, options: SocketOptions::default() }
    }

    /// A data message with this receiver index.
    fn message(index: u8) -> [u8; 32] {
        let mut bytes = [0; 32];
        (bytes[0], bytes[4]) = (4, index);
        bytes
    }

    /// The workers at whose sockets the messages to indices 0 to 11 arrive, over IPv4 and IPv6.
    fn receivers(inherited: &InheritedSockets) -> Vec<[usize; 2]> {
        let port = inherited.group.port;
        let all = inherited.pairs.iter().chain(&inherited.surplus);
        let again = |fd: &Option<OwnedFd>| UdpSocket::from(fd.as_ref().unwrap().try_clone().unwrap());
        let sockets: Vec<_> = all.map(|pair| [again(&pair.v4), again(&pair.v6)]).collect();
        let target = |family: usize| if family == 0 { "127.0.0.1" } else { "::1" };
        let receiver = |index: u8, family: usize| {
            let sender = UdpSocket::bind((target(family), 0)).unwrap();
            sender.send_to(&message(index), (target(family), port)).unwrap();
            let got = |(_, pair): &(usize, &[UdpSocket; 2])| pair[family].recv(&mut [0; 64]).is_ok();
            eventually(|| sockets.iter().enumerate().find(got).map(|(worker, _)| worker))
        };
        (0..12).map(|index| [receiver(index, 0), receiver(index, 1)]).collect()
    }

    #[test]
    fn as_many_sockets_as_there_are_workers_get_what_their_index_says() {
        in_netns(|| {
            for (before, now) in [(1, 1), (1, 3), (4, 2), (4, 1), (2, 3), (3, 3)] {
                let (old, _) = bind(&config(before)).unwrap();
                assert_eq!(old.count(), (before, before));
                let handed = old.all().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
                let mut inherited = UdpGroup::inherit(handed, before, old.steered, &config(now)).unwrap();
                assert_eq!((inherited.group.port, inherited.group.count()), (old.port, (now, now)));
                assert_eq!(inherited.surplus.len(), before.saturating_sub(now));
                if before != now {
                    inherited.group.settle(before > now);
                }
                assert_eq!(inherited.group.steered, now > 1);
                let owners: Vec<_> = (0..12).map(|index| [index % now; 2]).collect();
                assert_eq!(receivers(&inherited), owners, "{before} to {now}");
                while inherited.surplus.pop().is_some() {}
                drop(old);
                inherited.group.settle(false);
                assert_eq!(
                    receivers(&inherited),
                    owners,
                    "{before} to {now}, after the end of the other process"
                );
            }
        });
    }

    #[test]
    fn what_makes_no_pairs_is_refused() {
        in_netns(|| {
            let (group, _) = bind(&config(2)).unwrap();
            let some = |count| group.all().take(count).map(|fd| fd.try_clone_to_owned().unwrap()).collect();
            let refused = |count, v4| UdpGroup::inherit(some(count), v4, true, &config(2)).unwrap_err();
            for (count, v4) in [(0, 0), (3, 2), (4, 1), (4, 4)] {
                assert_eq!(refused(count, v4).kind(), ErrorKind::InvalidInput, "{count} of which {v4}");
            }
            assert!(UdpGroup::inherit(some(2), 2, true, &config(2)).unwrap().pairs[0].v6.is_none());
        });
    }
}
