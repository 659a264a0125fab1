use super::*;

const EADDRINUSE: i32 = 98;

fn error(errno: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno)
}

fn key(seed: u8) -> SetRequest {
    SetRequest { private_key: Some(Some(private(seed))), ..SetRequest::default() }
}

fn port(port: u16) -> SetRequest {
    SetRequest { listen_port: Some(port), ..SetRequest::default() }
}

#[test]
fn going_down_drops_sessions_and_handshakes_and_closes_the_sockets() {
    let mut pair = Pair::connected();
    pair.a.device.set_up(at(pair.now), false);
    pair.a.drain();
    assert_eq!((pair.a.send.len(), pair.a.receive.len(), pair.a.device.indices.len()), (0, 0, 0));
    assert_eq!((pair.a.binds.last(), pair.a.purged.len()), (Some(&None), 1));
    assert_eq!(pair.a.device.poll_timeout(), None);
    pair.handshake();
    assert!(pair.a.sends.is_empty(), "down, nothing is initiated");
    pair.b.now_initiates(pair.now);
    pair.exchange();
    assert_eq!(pair.a.device.stats().dropped_not_ready, 1);

    pair.a.device.set_up(at(pair.now), true);
    pair.a.drain();
    assert_eq!(pair.a.binds.last(), Some(&Some(BindRequest { port: 51820, mark: 0 })), "the same port again");
    pair.now = pair.now + Duration::from_secs(10);
    pair.handshake();
    assert_eq!(pair.talks(), (true, true));
}

impl Side {
    fn now_initiates(&mut self, now: Instant) {
        let id = self.peer();
        self.device.drop_sessions(at(now), id.slot, DisconnectReason::Expired);
        self.drain();
        self.device.initiate(at(now), id.slot);
        self.drain();
    }
}

#[test]
fn a_port_in_use_keeps_the_device_down_until_another_is_given() {
    let mut side = Side::new(1);
    side.bind_answer = Err(EADDRINUSE);
    side.apply(Instant::START, &key(1));
    side.device.set_up(at(Instant::START), true);
    side.drain();
    assert!(!side.device.is_up());
    let failed = side.device.apply(at(Instant::START), &port(7), &mut |_| Err(error(EADDRINUSE)));
    assert_eq!((failed.unwrap_err().errno(), side.device.listen_port()), (EADDRINUSE, 0));
    side.device.apply(at(Instant::START), &port(7), &mut |request| Ok(request.port)).unwrap();
    assert_eq!((side.device.is_up(), side.device.listen_port()), (true, 7));
}

#[test]
fn a_port_in_use_is_tried_again_ever_more_seldom_and_not_shown_until_it_is_bound() {
    let mut side = Side::new(1);
    side.bind_answer = Err(EADDRINUSE);
    side.apply(Instant::START, &port(7));
    assert_eq!(side.device.listen_port(), 7, "down: what is configured");
    side.device.set_up(at(Instant::START), true);
    side.drain();
    let mut now = Instant::START;
    let mut pauses = Vec::new();
    while side.binds.len() < 40 {
        let due = side.device.poll_timeout().unwrap();
        pauses.push(due.since(now));
        now = due;
        side.device.handle_timeout(at(now));
        side.drain();
        assert_eq!((side.device.is_up(), side.device.listen_port()), (false, 0));
        assert_eq!(side.device.unbound().map(|unbound| unbound.port), Some(7));
        side.device.set_up(at(now), true); // as at every change of the MTU
        side.drain();
    }
    assert!(pauses.is_sorted() && pauses[0] <= Duration::from_millis(1), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&Duration::from_secs(1)));
    side.bind_answer = Ok(7);
    now = now + Duration::from_secs(1);
    side.device.handle_timeout(at(now));
    side.drain();
    assert_eq!((side.device.is_up(), side.device.listen_port(), side.device.unbound()), (true, 7, None));
    assert_eq!(side.device.poll_timeout(), None);
}

#[test]
fn a_device_that_went_down_asks_for_no_port() {
    let mut side = Side::new(1);
    side.bind_answer = Err(EADDRINUSE);
    side.device.set_up(at(Instant::START), true);
    side.drain();
    side.device.set_up(at(Instant::START), false);
    assert_eq!((side.device.poll_timeout(), side.device.unbound()), (None, None));
}

#[test]
fn a_port_in_use_fails_the_transaction_and_changes_nothing() {
    let mut pair = Pair::connected();
    let mut request = port(7);
    request.replace_peers = true;
    request.fwmark = Some(9);
    let before = pair.a.device.uapi_get();
    pair.a.log.clear();
    let failed = pair.a.device.apply(at(pair.now), &request, &mut |_| Err(error(EADDRINUSE)));
    assert_eq!(failed.unwrap_err().errno(), EADDRINUSE);
    pair.a.drain();
    assert_eq!((pair.a.device.uapi_get(), pair.a.log.len()), (before, 0));
    assert_eq!(pair.talks(), (true, true));
}

#[test]
fn another_port_or_mark_keeps_sessions_and_frees_sources() {
    let mut pair = Pair::connected();
    assert!(pair.b.endpoint().unwrap().from.is_some());
    let mut asked = Vec::new();
    let mut request = port(0);
    request.fwmark = Some(3);
    let mut bind = |request| {
        asked.push(request);
        Ok(4242)
    };
    pair.b.device.apply(at(pair.now), &request, &mut bind).unwrap();
    pair.b.drain();
    assert_eq!(asked, [BindRequest { port: 0, mark: 3 }]);
    assert_eq!(pair.b.device.listen_port(), 4242);
    assert_eq!(pair.b.endpoint().unwrap().from, None);
    pair.b.apply(pair.now, &port(4242));
    let mut marked = Vec::new();
    let mut mark = |request: BindRequest| {
        marked.push(request);
        Ok(request.port)
    };
    let request = SetRequest { fwmark: Some(0), ..SetRequest::default() };
    pair.b.device.apply(at(pair.now), &request, &mut mark).unwrap();
    pair.b.drain();
    assert_eq!(marked, [BindRequest { port: 4242, mark: 0 }], "the bound sockets get the mark");
    assert_eq!(pair.talks(), (true, true));
}

#[test]
fn a_mark_that_may_not_be_set_fails_the_transaction_and_is_not_shown() {
    const EPERM: i32 = 1;
    let mut pair = Pair::connected();
    let before = pair.a.device.uapi_get();
    let request = SetRequest { fwmark: Some(9), replace_peers: true, ..SetRequest::default() };
    let failed = pair.a.device.apply(at(pair.now), &request, &mut |_| Err(error(EPERM)));
    assert_eq!(failed.unwrap_err().errno(), EPERM);
    pair.a.drain();
    assert_eq!(pair.a.device.uapi_get(), before);
    assert_eq!(pair.talks(), (true, true));
}

#[test]
fn while_down_a_port_is_only_remembered() {
    let mut side = Side::new(1);
    side.apply(Instant::START, &port(7));
    side.apply(Instant::START, &SetRequest { fwmark: Some(8), ..SetRequest::default() });
    side.device.set_up(at(Instant::START), true);
    side.drain();
    assert_eq!(side.binds, [Some(BindRequest { port: 7, mark: 8 })]);
}

#[test]
fn a_new_private_key_drops_sessions_and_the_same_one_does_not() {
    let mut pair = Pair::connected();
    pair.a.apply(pair.now, &key(1));
    assert_eq!((pair.talks(), pair.a.identities), ((true, true), 1));
    pair.a.apply(pair.now, &key(9));
    assert_eq!((pair.a.send.len(), pair.a.receive.len(), pair.a.device.indices.len()), (0, 0, 0));
    assert_eq!(pair.a.identities, 2);

    let peer = PeerRequest { endpoint: Some(pair.a.addr), ..PeerRequest::new(public(9)) };
    pair.b.apply(pair.now, &SetRequest { replace_peers: true, peers: vec![peer], ..SetRequest::default() });
    pair.now = pair.now + Duration::from_secs(1);
    pair.handshake();
    assert_eq!(pair.talks(), (true, true), "at once: the old handshake does not hold up the new one");
}

#[test]
fn without_a_private_key_nothing_is_sent_or_answered() {
    let mut pair = Pair::connected();
    pair.b.apply(pair.now, &SetRequest { private_key: Some(None), ..SetRequest::default() });
    assert_eq!((pair.b.send.len(), pair.b.receive.len()), (0, 0));
    pair.now = pair.now + Duration::from_secs(125);
    pair.handshake();
    assert_eq!(pair.b.device.stats().dropped_not_ready, 1);
    pair.b.event(pair.now, Event::NeedHandshake(pair.b.peer()));
    assert_eq!(pair.b.purged.len(), 1);
}

#[test]
fn our_own_key_is_never_a_peer() {
    let mut side = Side::new(1);
    let mut request = key(1);
    request.peers = vec![PeerRequest::new(public(1)), PeerRequest::new(public(2))];
    side.apply(Instant::START, &request);
    assert_eq!(side.device.peer_infos().map(|peer| *peer.public_key).collect::<Vec<_>>(), [public(2)]);
    side.apply(Instant::START, &key(2));
    assert_eq!(side.device.peers().len(), 0);
}

#[test]
fn the_mtu_is_announced_when_it_changes() {
    let mut side = Side::new(1);
    for mtu in [1420, 1420, 0] {
        side.device.set_mtu(mtu);
        side.drain();
    }
    assert_eq!(side.log, ["Mtu", "Mtu"]);
}
