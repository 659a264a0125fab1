//! A whole device, and another at the end of its tunnel: datagrams, frames, configuration and time as the input has them.
//!
//! What must hold whatever happens: nobody panics or spins; no counter is used twice under a key, no key too long; nothing comes
//! out of the tunnel but what went in at the other end, no more often, and from where the configuration lets it come; what is not
//! authentic moves no endpoint and is answered by nothing but cookies; the configuration that is read is one that can be set. In the
//! end nothing is left behind, and two ends that are configured anew speak to each other.

mod account;
mod script;
mod stage;

use super::settings;
use account::ends;
use ringtun::device::uapi::SetRequest;
use ringtun::device::{Device, Now};
use ringtun::index::WorkerCount;
use ringtun::sim::{SimHost, SimRng};
use ringtun::time::Instant;
use ringtun::wire::message::MessageKind;
use ringtun::wire::vnet::VNET_HDR_LEN;
use script::{Script, Side, Step, Talk};
use stage::{Stage, is_strange};
use std::net::IpAddr;
use std::time::Duration;

/// How often both ends speak in the end until they hear each other: more than a handshake takes that has to be tried again
/// with a cookie.
const CALLS: usize = 14;

/// The steps so far, which a failed run prints.
struct Told<'a>(Vec<Step<'a>>);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.iter().enumerate().for_each(|(number, step)| eprintln!("step {number}: {step:?}"));
        }
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let kind = script.byte();
    let mut stage = Stage::new(kind);
    let mut checks = Checks::default();
    let mut told = Told(Vec::new());
    while let Some(step) = script.step() {
        told.0.push(step.clone());
        stage.take(&step);
        checks.after(&mut stage, &step);
    }
    checks.end(&mut stage, kind & 0x20 != 0);
}

/// What is checked, and what of it does not hold any more since the input's configuration says otherwise.
#[derive(Default)]
struct Checks {
    /// Endpoints that the configuration set to a stranger's address.
    given: Vec<IpAddr>,
}

impl Checks {
    fn after(&mut self, stage: &mut Stage, step: &Step<'_>) {
        let configures = matches!(step, Step::Set(..) | Step::Text(..) | Step::Restart(_));
        if configures {
            self.given.extend(strange_endpoints(stage));
        }
        self.always(stage, !configures && !stage.late);
        if let Step::Text(side, _) = step {
            check_configuration(stage.look(*side));
        }
    }

    /// What holds after every step. Returns how many packets came out at each end.
    fn always(&self, stage: &mut Stage, routes_are_known: bool) -> [usize; 2] {
        assert_eq!(stage.world.violations(), Vec::<String>::new());
        let delivered = Side::BOTH.map(|side| check_delivered(stage, side, routes_are_known));
        let moved = strange_endpoints(stage).into_iter().find(|ip| !self.given.contains(ip));
        assert_eq!(moved, None, "what is not authentic moved an endpoint");
        let answers = std::mem::take(&mut stage.wire.borrow_mut().to_strangers);
        let answered = answers.iter().any(|kind| *kind != MessageKind::CookieReply);
        assert!(!answered || !self.given.is_empty(), "a stranger was answered: {answers:?}");
        delivered
    }

    /// Everything that was done to the ends is over.
    fn end(&self, stage: &mut Stage, speaks: bool) {
        for side in Side::BOTH {
            check_configuration(stage.look(side));
            stage.host(side).relieve();
            stage.host(side).set_steering(true);
        }
        stage.wire.borrow_mut().mend();
        // What was under way arrives.
        stage.world.run_for(Duration::from_secs(1));
        self.always(stage, !stage.late);
        if speaks {
            self.speak(stage);
        }
        for side in Side::BOTH {
            stage.up(side, false);
        }
        stage.world.run_for(Duration::from_secs(1));
        self.always(stage, true);
        for side in Side::BOTH {
            let host = stage.look(side);
            check_leaks(host);
            let [_, indices, deadlines] = host.state().held();
            assert_eq!([indices, deadlines], [0, 0], "left behind by {side:?}");
        }
    }

    /// Both ends are configured anew, and reach each other.
    fn speak(&self, stage: &mut Stage) {
        for side in Side::BOTH {
            (stage.host(side).wall_ahead, stage.host(side).wall_behind) = Default::default();
            stage.begin_anew(side);
        }
        let talk = Talk { tcp: false, is_ipv6: false, port: 3, len: 64, count: 1, ecn: 0 };
        let mut heard = [0; 2];
        for _ in 0..CALLS {
            for side in Side::BOTH {
                stage.take(&Step::Say(side, talk));
            }
            let arrived = self.always(stage, true);
            heard = [heard[0] + arrived[0], heard[1] + arrived[1]];
            if !heard.contains(&0) {
                break;
            }
            stage.world.run_for(Duration::from_secs(1));
        }
        assert!(!heard.contains(&0), "the ends do not reach each other: {heard:?} packets arrived");
        stage.world.run_for(Duration::from_secs(1));
        self.always(stage, true);
        Side::BOTH.iter().for_each(|side| check_leaks(stage.look(*side)));
    }
}

fn strange_endpoints(stage: &Stage) -> Vec<IpAddr> {
    let peers = Side::BOTH.into_iter().flat_map(|side| stage.look(side).state().peer_infos());
    peers.filter_map(|peer| Some(peer.endpoint?.addr.ip())).filter(|ip| is_strange(*ip)).collect()
}

fn check_leaks(host: &SimHost) {
    assert_eq!(host.leaks(), Vec::<String>::new());
    assert_eq!(host.staged(), 0, "staged");
}

/// Everything that came out at one end went in at the other, and came from where the configuration lets it come. Returns how many
/// packets of flows came out.
fn check_delivered(stage: &mut Stage, side: Side, routes_are_known: bool) -> usize {
    let host = stage.host(side);
    let (delivered, others) = (host.take_delivered(), host.take_others());
    let (refused, count) = (host.take_refused(), delivered.len());
    for inner in delivered {
        let account = &mut stage.sites[side.other().number()].account;
        assert!(account.take(&inner), "came out at {side:?} and was not sent, or before: {inner:?}");
        if routes_are_known {
            check_source(stage, side, inner.flow.source.ip());
        }
    }
    let refused = refused.iter().map(|frame| (true, &frame[VNET_HDR_LEN..]));
    for (refused, packet) in refused.chain(others.iter().map(|packet| (false, packet.as_slice()))) {
        let account = &mut stage.sites[side.other().number()].account;
        let sent = if refused { account.is_wild(packet) } else { account.take_other(packet) };
        if sent {
            let source = ends(packet).expect("an IP packet comes out").0;
            if routes_are_known {
                check_source(stage, side, source);
            }
        } else {
            let about_ours = stage.sites[side.number()].account.is_error_about_ours(packet);
            assert!(about_ours, "came out at {side:?} and was not sent (refused: {refused}): {packet:02x?}");
        }
    }
    count
}

/// The longest prefix that contains a source is one of the other end's.
fn check_source(stage: &Stage, side: Side, source: IpAddr) {
    let publics = &stage.sites[side.other().number()].publics;
    let peers = stage.look(side).state().peer_infos();
    let routes =
        peers.flat_map(|peer| peer.allowed_ips.iter().map(move |prefix| (*prefix, *peer.public_key)));
    let route = routes.filter(|(prefix, _)| prefix.contains(source)).max_by_key(|(prefix, _)| prefix.len());
    assert!(route.is_some_and(|(_, public)| publics.contains(&public)), "{source} came out at {side:?}");
}

/// What a device says of its configuration can be set, and is the same then.
fn check_configuration(host: &SimHost) {
    let said = host.state().uapi_get();
    assert!(said.ends_with("errno=0\n\n"));
    let said = settings(&said);
    let request = SetRequest::parse(format!("set=1\n{said}").as_bytes()).expect("what get says can be set");
    let mut copy = Device::new(WorkerCount::ONE, Box::new(SimRng::new(1)));
    let now = Now { mono: Instant::START, wall: Duration::from_secs(1) };
    assert!(copy.apply(now, &request, &mut |wanted| Ok(wanted.port)).is_ok(), "what get says can be set");
    assert_eq!(settings(&copy.uapi_get()), said);
}
