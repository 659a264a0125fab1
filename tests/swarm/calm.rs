//! What must hold in a calm: who can be reached is reached within the protocol's own time, nothing is lost or overtaken after
//! that, and nothing is left behind.

use crate::account::Arrivals;
use crate::plan::{Round, millis, secs};
use crate::stage::{PORT, ROUGH_DELAY, Stage};
use ringtun::noise::{KEEPALIVE_TIMEOUT, REKEY_TIMEOUT};
use ringtun::sim::Flow;
use std::net::SocketAddr;
use std::time::Duration;

/// The longest jitter of a handshake's timer, and a little.
const JITTER: Duration = millis(400);
/// How long everything that is sent must arrive.
const WINDOW: Duration = secs(4);
/// How long after the last packet everything is at rest, but for keepalives: a passive one comes after ten seconds.
pub(crate) const REST: Duration = secs(1);
/// The age at which all keys of a peer are gone (three times REJECT_AFTER_TIME), and as long as attempts may go on before.
const KEYS_GONE: Duration = secs(540 + 100);

/// How long a handshake takes at most, once somebody wants one, as one may have been tried in vain just before.
const fn one_attempt(delay: Duration) -> Duration {
    REKEY_TIMEOUT.saturating_add(JITTER).saturating_add(delay.saturating_mul(4))
}

/// How long it takes at most to reach whoever can be reached, with a packet every `pace`: the silence is noticed, and then a
/// handshake made.
fn reach(pace: Duration, delay: Duration) -> Duration {
    KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + JITTER + pace + one_attempt(delay) + pace
}

impl Stage {
    /// Checks a calm, and the idle time after it.
    pub(crate) fn check_calm(&mut self, round: &Round) -> Result<(), String> {
        self.calm_down(round.delay);
        let flows = self.choose_flows();
        let pace = millis(150 + self.rng.below(1_200));
        let limit = reach(pace, round.delay);
        for &flow in &flows {
            self.talk(flow, pace, limit, 24);
        }
        let begin = self.world.now();
        self.run(limit)?;
        for &flow in &flows {
            let Arrivals { sent, arrived } = self.account.since(flow, begin);
            if arrived == 0 && sent > 0 {
                return Err(format!("unreached: {flow:?} within {limit:?}: {sent} sent since {begin:?}"));
            }
        }
        self.check_window(&flows, round.delay)?;
        if let Some(time) = round.flood {
            self.check_flood(&flows, time, round.delay)?;
        }
        if self.rng.chance(500) {
            self.check_bounce(round.delay)?;
        }
        self.check_leaks()?;
        self.grow_rough();
        self.idle(round.idle)?;
        let now = self.world.now();
        self.account.forget(now);
        Ok(())
    }

    /// Flows between all that can reach each other, some of which only one end speaks in.
    fn choose_flows(&mut self) -> Vec<Flow> {
        let mut flows = Vec::new();
        for client in self.gateways..self.sites.len() {
            let home = self.sites[client].plan.home;
            let ways = match self.rng.below(3) {
                0 if self.is_known(home, client) => [Some((home, client)), None],
                1 => [Some((home, client)), Some((client, home))],
                _ => [Some((client, home)), None],
            };
            for (from, to) in ways.into_iter().flatten() {
                // What only one end says is not answered, or both would speak.
                let echo = ways[1].is_some();
                flows.push(self.flow(from, to, 24, echo));
            }
        }
        for (one, other) in (0..self.gateways).flat_map(|one| (0..one).map(move |other| (one, other))) {
            let (from, to) = if self.rng.chance(500) { (one, other) } else { (other, one) };
            flows.push(self.flow(from, to, 24, false));
        }
        flows
    }

    /// Whether a gateway knows where a client is, and reaches it there from whatever address.
    fn is_known(&self, gateway: usize, client: usize) -> bool {
        let (inside, public) = (self.sites[client].inside, self.public(client));
        let outside = self.world.network.public(inside);
        let state = self.look(gateway).state();
        let peer = state.peer_infos().find(|peer| *peer.public_key == public);
        let endpoint = peer.and_then(|peer| peer.endpoint);
        let mut sources = self.look(gateway).addresses.iter().map(|&ip| SocketAddr::new(ip, PORT));
        // The source that it had may be let go, and any of its addresses be the next.
        endpoint.is_some_and(|endpoint| endpoint.addr == outside)
            && sources
                .all(|from| from.is_ipv4() != inside.is_ipv4() || self.world.network.lets_in(inside, from))
    }

    /// Everything that is sent arrives now, in order, also through gateways to other clients.
    fn check_window(&mut self, flows: &[Flow], delay: Duration) -> Result<(), String> {
        let begin = self.world.now();
        let mut checked = flows.to_vec();
        let count = self.sites.len();
        for len in [24, 700, 6_000] {
            let from = self.gateways + self.rng.below((count - self.gateways) as u64) as usize;
            let to = self.rng.below(count as u64) as usize;
            if from != to {
                checked.push(self.flow(from, to, len, false));
            }
        }
        for (i, &flow) in checked.iter().enumerate() {
            // Flows of their own: others may have packets under way that were staged.
            let len = if flow.tcp { 6_000 } else { 24 + 100 * (i % 7) };
            let pace = millis(20 + self.rng.below(400));
            if i >= flows.len() {
                self.account.keep_order(flow);
            }
            self.talk(flow, pace, WINDOW, len);
        }
        self.run(WINDOW)?;
        self.run(REST + delay * 6)?;
        for &flow in &checked {
            let Arrivals { sent, arrived } = self.account.since(flow, begin);
            if sent != arrived {
                return Err(format!("lost: {} of {sent} of {flow:?} since {begin:?}", sent - arrived));
            }
        }
        Ok(())
    }

    /// A host's link goes down and comes up: whoever speaks to it reaches it with the next attempt, and need not first notice a
    /// silence. What it says itself is answered from the first packet on.
    fn check_bounce(&mut self, delay: Duration) -> Result<(), String> {
        let host = self.rng.below(self.sites.len() as u64) as usize;
        let others =
            if self.is_gateway(host) { self.clients_of(host) } else { vec![self.sites[host].plan.home] };
        let knows = |stage: &Stage, other: usize| match stage.is_gateway(host) {
            true => stage.is_known(host, other),
            false => stage.is_known(other, host),
        };
        let others: Vec<usize> = others.into_iter().filter(|&other| knows(self, other)).collect();
        self.up(host, false);
        let away = millis(200 + self.rng.below(3_000));
        let flows: Vec<Flow> = others.into_iter().map(|other| self.flow(other, host, 24, false)).collect();
        let limit = one_attempt(delay) + secs(1);
        for &flow in &flows {
            self.talk(flow, millis(500), away + limit + secs(2), 24);
        }
        self.run(away)?;
        self.up(host, true);
        let begin = self.world.now();
        let to = if self.is_gateway(host) { (host + 1) % self.gateways } else { self.sites[host].plan.home };
        let asked = (to != host).then(|| self.flow(host, to, 24, true));
        if let Some(flow) = asked {
            self.talk(flow, millis(300), limit, 24);
        }
        self.run(limit)?;
        for &flow in &flows {
            if self.account.since(flow, begin).arrived == 0 {
                return Err(format!(
                    "link: {flow:?} not reached within {limit:?} after it came up at {begin:?}"
                ));
            }
        }
        self.run(secs(2) + REST + delay * 6)?;
        let Some(asked) = asked else { return Ok(()) };
        let answer = Flow { source: asked.destination, destination: asked.source, ..asked };
        for flow in [asked, answer] {
            let Arrivals { sent, arrived } = self.account.since(flow, begin);
            if sent != arrived || sent == 0 {
                return Err(format!(
                    "answers: {arrived} of {sent} of {flow:?} arrived since its link came up at {begin:?}"
                ));
            }
        }
        Ok(())
    }

    /// Nobody speaks. In the end no host has a key, unless keepalives keep it.
    fn idle(&mut self, idle: Duration) -> Result<(), String> {
        let begin = self.world.now();
        self.run(idle)?;
        self.check_keepalives(begin, ROUGH_DELAY)?;
        if idle < KEYS_GONE {
            return Ok(());
        }
        for host in 0..self.sites.len() {
            let peers = if self.is_gateway(host) { self.clients_of(host) } else { vec![host] };
            let kept = peers.iter().filter(|&&client| self.sites[client].plan.keepalive > 0).count();
            let [_, indices, _] = self.look(host).state().held();
            // Before a rekey one session is current, after it two receive.
            if indices > kept * 3 {
                return Err(format!(
                    "leak: host {host} has {indices} indices after {idle:?}, {kept} peers kept"
                ));
            }
        }
        Ok(())
    }

    fn check_leaks(&mut self) -> Result<(), String> {
        for host in 0..self.sites.len() {
            let look = self.look(host);
            let mut leaks = look.leaks();
            if look.staged() > 0 {
                leaks.push(format!("leak: {} bytes staged", look.staged()));
            }
            if let Some(leak) = leaks.first() {
                return Err(format!("{leak} (host {host})"));
            }
        }
        Ok(())
    }

    /// All hosts go down: nothing at all may be left.
    pub(crate) fn check_end(&mut self) -> Result<(), String> {
        self.calm_down(Duration::ZERO);
        for host in 0..self.sites.len() {
            self.up(host, false);
        }
        self.run(secs(1))?;
        self.check_leaks()?;
        for host in 0..self.sites.len() {
            let [_, indices, deadlines] = self.look(host).state().held();
            if indices + deadlines > 0 {
                return Err(format!(
                    "leak: host {host} is down with {indices} indices, {deadlines} deadlines"
                ));
            }
        }
        Ok(())
    }
}
