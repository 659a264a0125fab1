use super::*;
use crate::io::LocalAddr;
use crate::io::slab::Pool;

fn queue_of(trains: &[(usize, usize, Endpoint)]) -> (SendQueue, IoStats) {
    let (pool, mut stats) = (Pool::new(SEND_QUEUE + 8).unwrap(), IoStats::default());
    let mut queue = SendQueue::new();
    for &(len, stride, to) in trains {
        let train = SendTrain { buf: pool.take().unwrap(), len, stride, to, peer: Some(0), tos: 0 };
        queue.push(train, &UdpSockets::default(), &mut stats);
    }
    (queue, stats)
}

fn peer(n: u8) -> Endpoint {
    Endpoint { addr: SocketAddr::from(([10, 0, 0, n], 51820)), from: None }
}

fn sticky(n: u8) -> Endpoint {
    Endpoint { from: Some(LocalAddr { ip: [10, 0, 0, 99].into(), interface: 0 }), ..peer(n) }
}

#[test]
fn eio_switches_trains_off_for_all_from_the_first_unsent() {
    let (mut queue, mut stats) =
        queue_of(&[(100, 100, peer(1)), (3000, 1000, peer(1)), (4000, 1000, peer(2))]);
    queue.sent(1, Family::Ipv4, &mut stats);
    assert!(queue.refused(libc::EIO, Family::Ipv4, &mut stats).is_continue());
    assert!(!queue.gso());
    assert_eq!(queue.fill(Family::Ipv4), 7);
    assert_eq!((stats.offload_fallbacks, stats.udp_send_errors), (1, 0));
    assert_eq!(queue.take_notice(), Some(Notice::SendOffloadOff { errno: libc::EIO }));
}

#[test]
fn emsgsize_concerns_one_path_only() {
    let (mut queue, mut stats) =
        queue_of(&[(2904, 1452, peer(1)), (2904, 1452, peer(2)), (2400, 1200, peer(1))]);
    assert!(queue.refused(libc::EMSGSIZE, Family::Ipv4, &mut stats).is_continue());
    assert!(queue.gso());
    assert_eq!(queue.fill(Family::Ipv4), 2 + 1 + 1);
    queue.sent(1, Family::Ipv4, &mut stats);
    assert_eq!(queue.fill(Family::Ipv4), 1 + 1 + 1);
    // The second half is refused for its own sake: it alone is lost.
    assert!(queue.refused(libc::EMSGSIZE, Family::Ipv4, &mut stats).is_continue());
    assert_eq!((queue.fill(Family::Ipv4), stats.udp_send_errors), (2, 1));
}

#[test]
fn einval_is_the_path_unless_the_segments_fit_every_path() {
    for (len, stride, goes_on) in [(2904, 1452, true), (2000, 1000, false)] {
        let (mut queue, mut stats) = queue_of(&[(len, stride, peer(1))]);
        assert!(queue.refused(libc::EINVAL, Family::Ipv4, &mut stats).is_continue());
        assert!(queue.gso(), "until its segments go");
        assert_eq!(queue.fill(Family::Ipv4), 2);
        queue.sent(1, Family::Ipv4, &mut stats);
        assert_eq!((queue.gso(), stats.offload_fallbacks), (goes_on, 1));
    }
}

#[test]
fn einval_of_a_single_datagram_too_is_no_matter_of_trains() {
    for to in [peer(1), sticky(1)] {
        let all = [(2000, 1000, to), (2904, 1452, to), (2000, 1000, peer(2))];
        let (mut queue, mut stats) = queue_of(&all);
        while queue.lanes[0].queue.len() > 1 {
            assert!(queue.refused(libc::EINVAL, Family::Ipv4, &mut stats).is_continue());
        }
        assert_eq!((stats.udp_send_errors, stats.offload_fallbacks, queue.narrow.len()), (4, 0, 0));
        assert!(queue.gso() && queue.fill(Family::Ipv4) == 1, "the other path's goes as a train");
        let refused = Notice::SendRefused { to: to.addr, errno: libc::EINVAL, datagrams: 2 };
        assert_eq!(
            (queue.take_notice(), queue.take_notice(), queue.take_gone()),
            (Some(refused), None, None)
        );
    }
}

#[test]
fn einval_everywhere_and_never_a_train_that_went_is_no_matter_of_paths() {
    let all: Vec<_> = (1..=4).map(|n| (2904, 1452, peer(n))).collect();
    let (mut queue, mut stats) = queue_of(&all);
    for n in 1..=4 {
        assert!(queue.refused(libc::EINVAL, Family::Ipv4, &mut stats).is_continue());
        queue.sent(2, Family::Ipv4, &mut stats);
        assert_eq!(queue.gso(), n < 4);
    }
    assert_eq!(stats.udp_sent_datagrams, 8);
}

#[test]
fn a_refused_source_is_tried_once_without_and_reported_only_if_that_helps() {
    let (mut queue, mut stats) =
        queue_of(&[(100, 100, sticky(1)), (100, 100, sticky(1)), (100, 100, sticky(2))]);
    assert!(queue.refused(libc::ENETUNREACH, Family::Ipv4, &mut stats).is_continue());
    assert_eq!(queue.take_gone(), None);
    queue.sent(1, Family::Ipv4, &mut stats);
    assert_eq!(queue.take_gone(), Some(SourceGone { peer: 0, endpoint: sticky(1) }));
    assert_eq!(queue.lanes[0].queue.iter().map(|out| out.train.to).collect::<Vec<_>>(), [peer(1), sticky(2)]);
    queue.sent(1, Family::Ipv4, &mut stats);
    // The other destination is unreachable from anywhere.
    assert!(queue.refused(libc::ENETUNREACH, Family::Ipv4, &mut stats).is_continue());
    assert!(queue.refused(libc::ENETUNREACH, Family::Ipv4, &mut stats).is_continue());
    assert_eq!((queue.take_gone(), stats.udp_send_errors, queue.lanes[0].queue.len()), (None, 1, 0));
}

#[test]
fn a_train_that_its_path_refuses_keeps_its_source() {
    let (mut queue, mut stats) = queue_of(&[(2904, 1452, sticky(1))]);
    assert!(queue.refused(libc::EINVAL, Family::Ipv4, &mut stats).is_continue());
    assert!(queue.refused(libc::EINVAL, Family::Ipv4, &mut stats).is_continue());
    assert_eq!(queue.lanes[0].queue[0].train.to, sticky(1));
    assert!(queue.lanes[0].queue[0].singly);
    queue.sent(2, Family::Ipv4, &mut stats);
    assert_eq!((queue.take_gone(), queue.lanes[0].queue.len()), (None, 0));
}

#[test]
fn no_buffer_space_is_waited_for_a_few_times_only() {
    let (mut queue, mut stats) = queue_of(&[(100, 100, peer(1))]);
    for _ in 0..NOBUFS_RETRIES {
        assert!(queue.refused(libc::ENOBUFS, Family::Ipv4, &mut stats).is_break());
        assert_eq!([queue.blocked(Family::Ipv4), queue.blocked(Family::Ipv6)], [true, false]);
    }
    assert!(queue.refused(libc::ENOBUFS, Family::Ipv4, &mut stats).is_continue());
    assert_eq!((stats.udp_send_errors, queue.lanes[0].queue.len()), (1, 0));
}

#[test]
fn a_full_queue_drops_the_newest_and_counts_its_datagrams() {
    let (mut queue, mut stats) = queue_of(&[(100, 100, peer(1))]);
    assert!(queue.refused(libc::EAGAIN, Family::Ipv4, &mut stats).is_break());
    let pool = Pool::new(SEND_QUEUE).unwrap();
    for _ in 0..SEND_QUEUE {
        let train = SendTrain {
            buf: pool.take().unwrap(),
            len: 300,
            stride: 100,
            to: peer(1),
            peer: Some(0),
            tos: 0,
        };
        queue.push(train, &UdpSockets::default(), &mut stats);
    }
    assert_eq!((queue.lanes[0].queue.len(), stats.udp_send_errors), (SEND_QUEUE, 3));
}

#[test]
fn refusals_are_told_once_a_minute_with_all_that_they_cost() {
    let trains: Vec<_> = (1..=4).map(|n| (2000, 1000, peer(n))).collect();
    let (mut queue, mut stats) = queue_of(&trains);
    let refused = |n, errno, datagrams| Some(Notice::SendRefused { to: peer(n).addr, errno, datagrams });
    let begin = Instant::from_nanos(1);
    queue.set_now(begin);
    for _ in 0..3 {
        assert!(queue.refused(libc::EPERM, Family::Ipv4, &mut stats).is_continue());
    }
    assert_eq!(queue.take_notice(), refused(1, libc::EPERM, 2));
    assert_eq!(queue.take_notice(), None);
    queue.set_now(begin + NOTICE_INTERVAL);
    assert!(queue.refused(libc::EHOSTUNREACH, Family::Ipv4, &mut stats).is_continue());
    assert_eq!(queue.take_notice(), refused(4, libc::EHOSTUNREACH, 6));
    assert_eq!(stats.udp_send_errors, 8);
}

#[test]
fn a_full_socket_holds_up_the_other_family_for_a_moment_and_only_if_that_is_in_use() {
    let v6 = Endpoint { addr: "[fd00::1]:9".parse().unwrap(), from: None };
    let (mut queue, mut stats) = queue_of(&[(100, 100, peer(1)), (100, 100, v6), (100, 100, v6)]);
    let mut now = Instant::from_nanos(1_000_000_000);
    queue.set_now(now);
    assert!(queue.refused(libc::EAGAIN, Family::Ipv6, &mut stats).is_break());
    assert_eq!((queue.holds_up(now), queue.held_until(now)), (true, None), "nobody else is there");
    assert_eq!(queue.fill(Family::Ipv4), 1, "what is queued goes all the same");
    queue.sent(1, Family::Ipv4, &mut stats);
    assert_eq!((queue.holds_up(now), queue.held_until(now)), (true, Some(now + PATIENCE)));
    now = now + PATIENCE;
    queue.set_now(now);
    assert_eq!((queue.holds_up(now), queue.held_until(now)), (false, None));
    // It stays so while it moves on a little and is full again.
    queue.sent(1, Family::Ipv6, &mut stats);
    assert!(queue.refused(libc::EAGAIN, Family::Ipv6, &mut stats).is_break());
    assert!(!queue.holds_up(now));
    let pool = Pool::new(SEND_QUEUE).unwrap();
    let mut push = |queue: &mut SendQueue, to| {
        let train = SendTrain { buf: pool.take().unwrap(), len: 100, stride: 100, to, peer: Some(0), tos: 0 };
        queue.push(train, &UdpSockets::default(), &mut stats);
    };
    for _ in 0..2 * STUCK_QUEUE {
        push(&mut queue, v6);
        push(&mut queue, peer(1));
    }
    assert_eq!([0, 1].map(|lane: usize| queue.lanes[lane].queue.len()), [2 * STUCK_QUEUE, STUCK_QUEUE]);
    // Where both are full, or the other has long been idle, there is nothing to go on with.
    assert!(queue.refused(libc::EAGAIN, Family::Ipv4, &mut stats).is_break());
    assert!(queue.holds_up(now));
    queue.lanes[0].blocked = false;
    assert!(!queue.holds_up(now) && queue.holds_up(now + IN_USE));
}
