use super::*;
use crate::crypto::testing::Seeded;
use proptest::prelude::*;

const MILLI: Duration = Duration::from_millis(1);

fn at(millis: u64) -> Instant {
    Instant::START + Duration::from_millis(millis)
}

/// Largest possible jitter, so that "not before" and "not after" are exact.
struct Highest;

impl Entropy for Highest {
    fn fill(&mut self, out: &mut [u8]) {
        out.fill(0xff);
    }
}

/// Timers with what workers and slow path would have stamped, driven from wake-up to wake-up.
#[derive(Default)]
struct World {
    timers: Timers,
    activity: Activity,
    /// Every action with its time in milliseconds.
    log: Vec<(u64, Due)>,
    /// Keepalives and initiations do not leave: nothing is stamped for them.
    mute: bool,
}

impl World {
    fn data_sent(&mut self, millis: u64) {
        self.run_until(millis);
        self.activity.unanswered_since.get_or_insert(at(millis));
        self.sent(millis);
    }

    fn sent(&mut self, millis: u64) {
        self.run_until(millis);
        self.activity.unacknowledged_since = None;
        self.activity.last_authenticated = Some(at(millis));
    }

    fn data_received(&mut self, millis: u64) {
        self.run_until(millis);
        self.activity.unacknowledged_since.get_or_insert(at(millis));
        self.activity.last_data_received = Some(at(millis));
        self.received(millis);
    }

    fn received(&mut self, millis: u64) {
        self.run_until(millis);
        self.activity.unanswered_since = None;
        self.activity.last_authenticated = Some(at(millis));
    }

    fn initiate(&mut self, millis: u64) {
        self.run_until(millis);
        self.timers.initiation_sent(at(millis), &mut Highest);
        if !self.mute {
            self.activity.unacknowledged_since = None;
            self.activity.last_authenticated = Some(at(millis));
        }
    }

    /// What is due, and what the device does beside it.
    fn poll(&mut self, now: Instant) -> Option<Due> {
        let due = self.timers.poll(now, &self.activity, &mut Highest);
        if let Some(stamp) = self.timers.take_handled() {
            self.activity.unanswered_since.take_if(|since| *since == stamp);
        }
        due
    }

    /// Sleeps from `next` to `next` up to `millis`, and does what is due as the slow path would.
    fn run_until(&mut self, millis: u64) {
        while let Some(wake) = self.timers.next(&self.activity).filter(|wake| *wake <= at(millis)) {
            let before = self.log.len();
            let now = wake.max(at(self.log.last().map_or(0, |(last, _)| *last)));
            while let Some(due) = self.poll(now) {
                let now_millis = (now.as_nanos() - 1).div_ceil(1_000_000);
                self.log.push((now_millis, due));
                match due {
                    Due::Initiate => {
                        self.timers.initiation_sent(now, &mut Highest);
                        if !self.mute {
                            self.activity.unacknowledged_since = None;
                            self.activity.last_authenticated = Some(now);
                        }
                    }
                    Due::Keepalive if !self.mute => {
                        self.activity.unacknowledged_since = None;
                        self.activity.last_authenticated = Some(now);
                    }
                    _ => {}
                }
            }
            let next = self.timers.next(&self.activity);
            assert!(self.log.len() > before || next > Some(wake), "woken for nothing, and again at once");
        }
    }

    fn after(mut self, millis: u64) -> Vec<(u64, Due)> {
        self.run_until(millis);
        self.log
    }
}

#[test]
fn nothing_is_due_without_activity() {
    let mut world = World::default();
    assert_eq!(world.timers.next(&world.activity), None);
    world.run_until(10_000_000);
    assert_eq!(world.log, []);
}

#[test]
fn unanswered_data_starts_one_handshake_after_15_seconds_and_jitter() {
    let mut world = World::default();
    world.data_sent(1000);
    world.data_sent(9000);
    assert_eq!(world.after(16_333 + 5000), [(16_333, Due::Initiate)]);
}

#[test]
fn anything_authenticated_received_stops_that() {
    let mut world = World::default();
    world.data_sent(1000);
    world.received(16_000);
    world.run_until(100_000);
    assert_eq!(world.log, []);
    world.data_sent(100_000);
    assert_eq!(world.after(116_000), [(115_333, Due::Initiate)]);
}

#[test]
fn a_stamp_starts_a_handshake_only_once() {
    let mut world = World::default();
    world.data_sent(1000);
    world.run_until(17_000);
    // A response came, but nobody reset the stamp.
    world.timers.handshake_complete(at(17_000));
    assert_eq!(world.after(1_000_000), [(16_333, Due::Initiate)]);
}

#[test]
fn data_that_stays_unanswered_resets_the_attempts() {
    let mut world = World::default();
    world.initiate(0);
    for second in 1..300 {
        world.data_sent(second * 1000);
    }
    assert!(!world.log.iter().any(|(_, due)| *due == Due::GiveUp), "{:?}", world.log);
    assert_eq!(world.log.iter().filter(|(_, due)| *due == Due::Initiate).count(), 299_000 / 5333);
}

#[test]
fn data_sent_after_the_timer_ran_out_arms_it_again() {
    let mut world = World::default();
    world.data_sent(1000);
    world.run_until(17_000);
    world.timers.handshake_complete(at(17_000));
    world.data_sent(20_000);
    world.data_sent(30_000);
    assert_eq!(world.after(1_000_000)[..2], [(16_333, Due::Initiate), (35_333, Due::Initiate)]);
}

#[test]
fn unanswered_data_does_not_hurry_a_handshake_under_way() {
    let mut world = World::default();
    world.data_sent(1000);
    world.initiate(15_000);
    world.run_until(20_000);
    assert_eq!(world.log, []);
    assert_eq!(world.after(20_400), [(20_333, Due::Initiate)]);
}

#[test]
fn received_data_is_acknowledged_by_a_keepalive_after_10_seconds() {
    let mut world = World::default();
    world.data_received(1000);
    assert_eq!(world.after(1_000_000), [(11_000, Due::Keepalive)]);
}

#[test]
fn anything_sent_makes_the_keepalive_needless() {
    let mut world = World::default();
    world.data_received(1000);
    world.sent(10_999);
    assert_eq!(world.after(1_000_000), []);
}

#[test]
fn a_received_keepalive_is_never_answered_with_one() {
    let mut world = World::default();
    for second in 1..100 {
        world.received(second * 1000);
    }
    assert_eq!(world.after(1_000_000), []);
}

#[test]
fn data_that_came_while_the_keepalive_waited_makes_another_follow() {
    let mut world = World::default();
    world.data_received(1000);
    world.data_received(6000);
    assert_eq!(world.after(1_000_000), [(11_000, Due::Keepalive), (21_000, Due::Keepalive)]);
}

#[test]
fn traffic_cancels_the_other_keepalive() {
    for received in [false, true] {
        let mut world = World::default();
        world.data_received(1000);
        world.data_received(6000);
        world.run_until(14_000);
        if received {
            world.received(14_000)
        } else {
            world.sent(14_000)
        }
        assert_eq!(world.after(1_000_000), [(11_000, Due::Keepalive)]);
    }
}

#[test]
fn a_keepalive_that_cannot_leave_is_not_asked_for_again() {
    let mut world = World { mute: true, ..World::default() };
    world.data_received(1000);
    assert_eq!(world.after(1_000_000), [(11_000, Due::Keepalive)]);
}

#[test]
fn an_initiation_is_retried_every_5_seconds_and_jitter_and_given_up_after_20() {
    let mut world = World::default();
    world.initiate(1000);
    let mut log = world.after(2_000_000);
    let zero = log.pop();
    let retries: Vec<_> = (1..=19).map(|n| (1000 + n * 5333, Due::Initiate)).collect();
    assert_eq!(log[..19], retries);
    assert_eq!(log[19..], [(1000 + 20 * 5333, Due::GiveUp)]);
    assert_eq!(zero, Some((1000 + 20 * 5333 + 540_000, Due::ZeroKeys)), "what is left of a partial exchange");
}

#[test]
fn jitter_is_drawn_anew_and_stays_below_a_third_of_a_second() {
    let mut entropy = Seeded(3);
    let drawn: Vec<_> = (0..1000).map(|_| jitter(&mut entropy)).collect();
    assert!(drawn.iter().all(|jitter| *jitter < MAX_JITTER));
    assert!(
        drawn.iter().any(|jitter| *jitter < 20 * MILLI) && drawn.iter().any(|jitter| *jitter > 313 * MILLI)
    );
}

#[test]
fn a_completed_handshake_ends_the_retries() {
    let mut world = World::default();
    world.initiate(1000);
    world.run_until(3000);
    world.timers.handshake_complete(at(3000));
    assert_eq!(world.after(1_000_000), []);
}

#[test]
fn answering_the_peers_initiation_does_not_end_the_retries_of_our_own() {
    let mut world = World::default();
    world.initiate(1000);
    world.timers.session_derived(at(2000));
    assert_eq!(world.after(7000), [(6333, Due::Initiate)]);
}

#[test]
fn giving_up_does_not_forget_when_a_session_s_keys_go() {
    let mut world = World::default();
    world.timers.session_derived(at(0));
    world.initiate(100_000);
    let log = world.after(2_000_000);
    let zeroings: Vec<_> = log.iter().filter(|(_, due)| *due == Due::ZeroKeys).collect();
    assert_eq!(zeroings, [&(540_000, Due::ZeroKeys)]);
}

#[test]
fn keys_are_zeroed_three_times_180_seconds_after_the_last_session() {
    let mut world = World::default();
    world.timers.session_derived(at(0));
    world.timers.session_derived(at(120_000));
    assert_eq!(world.after(2_000_000), [(660_000, Due::ZeroKeys)]);
}

#[test]
fn a_handshake_is_wanted_not_more_often_than_every_5_seconds() {
    let mut timers = Timers::default();
    assert!(timers.want_handshake(at(0)));
    timers.initiation_sent(at(0), &mut Highest);
    timers.handshake_complete(at(100));
    assert!(!timers.want_handshake(at(4999)));
    assert!(timers.want_handshake(at(5000)));
}

#[test]
fn a_handshake_under_way_keeps_its_jitter() {
    let mut timers = Timers::default();
    timers.initiation_sent(at(0), &mut Highest);
    assert!(!timers.want_handshake(at(5100)), "the retry comes by itself");
    assert_eq!(timers.poll(at(5333), &Activity::default(), &mut Highest), Some(Due::Initiate));
    assert!(!timers.want_handshake(at(5333)), "returned already");
    assert_eq!(timers.poll(at(5333), &Activity::default(), &mut Highest), None);
}

#[test]
fn data_that_waits_resets_the_attempts() {
    let mut world = World::default();
    world.initiate(0);
    world.run_until(100_000);
    world.timers.want_handshake(at(100_000));
    world.run_until(200_000);
    assert!(world.log.iter().all(|(_, due)| *due == Due::Initiate));
    world.run_until(300_000);
    assert_eq!(world.log.last().map(|(_, due)| *due), Some(Due::GiveUp));
    assert!(world.timers.want_handshake(at(300_000)), "and starts again after giving up");
}

#[test]
fn a_persistent_keepalive_goes_out_at_once_when_switched_on_and_then_each_interval() {
    let mut world = World::default();
    world.sent(1000);
    world.timers.set_persistent_keepalive(25);
    assert_eq!(world.timers.persistent_keepalive(), 25);
    world.run_until(80_000);
    let millis: Vec<_> = world.log.iter().map(|(millis, _)| *millis).collect();
    assert_eq!(millis, [0, 25_000, 50_000, 75_000]);
    world.timers.set_persistent_keepalive(0);
    assert_eq!(world.after(1_000_000).len(), 4);
}

#[test]
fn changing_the_interval_sends_nothing_at_once() {
    let mut world = World::default();
    world.timers.set_persistent_keepalive(25);
    world.run_until(0);
    world.sent(1000);
    world.timers.set_persistent_keepalive(10);
    world.run_until(10_999);
    assert_eq!(world.log, [(0, Due::Keepalive)]);
    assert_eq!(world.after(11_000), [(0, Due::Keepalive), (11_000, Due::Keepalive)]);
}

#[test]
fn no_persistent_keepalive_while_traffic_flows() {
    let mut world = World::default();
    world.timers.set_persistent_keepalive(10);
    world.run_until(0);
    for second in 1..100 {
        if second % 2 == 0 { world.data_sent(second * 1000) } else { world.received(second * 1000) }
    }
    assert_eq!(world.log, [(0, Due::Keepalive)]);
}

#[test]
fn a_persistent_keepalive_without_a_session_asks_again_each_interval() {
    let mut world = World { mute: true, ..World::default() };
    world.timers.set_persistent_keepalive(10);
    assert_eq!(world.after(35_000).len(), 4);
}

#[test]
fn passive_and_persistent_keepalive_at_the_same_time_are_one() {
    let mut world = World::default();
    world.timers.set_persistent_keepalive(10);
    world.run_until(0);
    world.data_received(1000);
    assert_eq!(world.after(11_500), [(0, Due::Keepalive), (11_000, Due::Keepalive)]);
}

#[test]
fn a_stopped_peer_is_silent_and_keeps_its_interval() {
    let mut world = World::default();
    world.timers.set_persistent_keepalive(10);
    world.timers.session_derived(at(0));
    world.initiate(1000);
    world.data_sent(2000);
    world.data_received(3000);
    world.timers.stop();
    assert_eq!(world.timers.next(&world.activity), None);
    assert_eq!(world.timers.poll(at(900_000), &world.activity, &mut Highest), None);
    assert_eq!(world.timers.persistent_keepalive(), 10);
}

#[test]
fn a_started_peer_sends_its_persistent_keepalive_and_forgets_old_stamps() {
    let mut world = World { mute: true, ..World::default() };
    world.data_sent(1000);
    world.data_received(2000);
    world.data_sent(3000);
    world.timers.stop();
    world.timers.start(at(50_000));
    assert_eq!(world.timers.next(&world.activity), None, "stamps from before do not count");
    world.timers.stop();
    world.timers.set_persistent_keepalive(100);
    world.timers.start(at(60_000));
    world.timers.start(at(61_000));
    assert_eq!(world.after(70_000), [(60_000, Due::Keepalive)]);
}

#[test]
fn a_stopped_peer_may_initiate_again_at_once() {
    let mut timers = Timers::default();
    timers.initiation_sent(at(0), &mut Highest);
    timers.stop();
    assert!(timers.want_handshake(at(1)));
}

fn stamp() -> impl Strategy<Value = Option<Instant>> {
    prop::option::of((0..2_000_000u64).prop_map(at))
}

proptest! {
    /// Whatever the workers stamped: polling at `next` makes progress, nothing is due before it, and all comes to rest.
    #[test]
    fn next_is_when_something_is_due(
        stamps in (stamp(), stamp(), stamp(), stamp()),
        interval in 0u16..100,
        initiated in prop::option::of(0..1_000_000u64),
        derived in prop::option::of(0..1_000_000u64),
    ) {
        let (unanswered_since, unacknowledged_since, last_data_received, last_authenticated) = stamps;
        let activity = Activity { unanswered_since, unacknowledged_since, last_data_received, last_authenticated };
        let mut timers = Timers::default();
        timers.set_persistent_keepalive(interval);
        if let Some(millis) = initiated {
            timers.initiation_sent(at(millis), &mut Highest);
        }
        if let Some(millis) = derived {
            timers.session_derived(at(millis));
        }
        let mut now = Instant::START;
        // A stamp that lies ahead of the polls, up to 2000 s, draws a keepalive every ten seconds until then.
        for _ in 0..300 {
            let Some(next) = timers.next(&activity) else { return Ok(()) };
            if next > now {
                prop_assert_eq!(timers.poll(next - Duration::from_nanos(1), &activity, &mut Highest), None);
            }
            now = now.max(timers.next(&activity).unwrap_or(next));
            if timers.poll(now, &activity, &mut Highest) == Some(Due::Initiate) {
                timers.initiation_sent(now, &mut Highest);
            }
        }
        prop_assert!(interval > 0, "without a persistent keepalive all of it ends");
    }
}

/// A time within an hour of the hand-over, or none.
fn some_offset() -> impl Strategy<Value = Option<Instant>> {
    prop::option::of((1..7_200_000u64).prop_map(at))
}

proptest! {
    #[test]
    fn timers_go_on_elsewhere_as_they_were(
        stamps in prop::array::uniform9(some_offset()), flags: [bool; 2], attempts: u32, interval: u16
    ) {
        let [running, retry, last_initiation, stamp, due, handled, acknowledged, another, zero_keys] = stamps;
        let timers = Timers {
            stopped: flags[0],
            running_since: running.unwrap_or(Instant::START),
            retry,
            attempts,
            last_initiation,
            silence: Silence { stamp, due, handled },
            acknowledged,
            another,
            zero_keys,
            persistent: Persistent { interval, at_once: flags[1], last: retry },
        };
        let (then, there) = (at(3_600_000), at(90_000_000));
        let restored = Timers::restore(&timers.record(then), there);
        prop_assert_eq!(restored.record(there), timers.record(then));
        let shifted = |next: Option<Instant>| next.map(|next| next + there.since(then));
        let activity = Activity::default();
        prop_assert_eq!(restored.next(&activity), shifted(timers.next(&activity)));
    }
}
