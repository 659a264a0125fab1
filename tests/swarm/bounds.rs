//! Bounds of time that hold in a calm whatever strangers do, and also while nobody speaks: what connected peers say goes on arriving
//! beside a flood, and persistent keepalives come as often as they are asked for.

use crate::account::Arrivals;
use crate::calm::REST;
use crate::plan::{millis, secs};
use crate::stage::{PORT, Stage};
use ringtun::crypto::random::Entropy;
use ringtun::noise::cookie::CookieJar;
use ringtun::sim::Flow;
use ringtun::time::Instant;
use ringtun::wire::message::INITIATION_LEN;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Time between two bursts of a flood.
pub(crate) const BURST_PAUSE: Duration = millis(500);
/// Initiations of the first burst, which finds a slow path that has no time for it: more than wait before cookies are asked for.
const FIRST_BURST: u32 = 600;
/// Initiations of each later burst. They are asked for cookies, like everybody else.
const BURST: u32 = 40;
/// For how long the first burst keeps the slow path from all else.
const BUSY: Duration = secs(2);
/// How much later than its time a keepalive may be on the wire.
const LATENESS: Duration = millis(50);

impl Stage {
    /// A stranger floods a gateway with initiations whose MAC1 is right. Meanwhile sessions grow too old, and new ones take a cookie.
    pub(crate) fn check_flood(
        &mut self,
        flows: &[Flow],
        time: Duration,
        delay: Duration,
    ) -> Result<(), String> {
        let gateway = self.rng.below(self.gateways as u64) as usize;
        let cookies = |stage: &Stage| {
            let host = stage.look(gateway);
            host.counter("tx_cookies") + host.counter("tx_cookies_withheld")
        };
        let (begin, before) = (self.world.now(), cookies(self));
        self.host(gateway).slow_path_stalled_until = begin + BUSY;
        self.burst(gateway, FIRST_BURST);
        self.keep_flooding(gateway, begin + time);
        for &flow in flows {
            let pace = millis(300 + self.rng.below(1_500));
            self.account.keep_order(flow);
            self.talk(flow, pace, time, 24);
        }
        self.run(time)?;
        self.run(REST + delay * 6)?;
        for &flow in flows {
            let Arrivals { sent, arrived } = self.account.since(flow, begin);
            if sent != arrived || sent == 0 {
                return Err(format!(
                    "flood: {arrived} of {sent} of {flow:?} arrived beside it since {begin:?}"
                ));
            }
        }
        let asked = cookies(self) - before;
        let least = u64::from(BURST) * (time.as_millis() / BURST_PAUSE.as_millis()) as u64 / 2;
        if asked < least {
            return Err(format!("unfelt: {asked} messages of a flood were asked for cookies, not {least}"));
        }
        Ok(())
    }

    /// Sends one burst of a flood that goes on.
    pub(crate) fn flood_on(&mut self, gateway: usize) {
        // What proves nothing costs it little, so that a real one has to be much larger to keep it loaded.
        self.host(gateway).overload();
        self.burst(gateway, BURST);
        self.world.settle();
    }

    fn burst(&mut self, gateway: usize, count: u32) {
        let mut jar = CookieJar::new(&self.public(gateway));
        let to = SocketAddr::new(self.look(gateway).addresses[0], PORT);
        let now = self.world.now();
        for _ in 0..count {
            let mut message = [0; INITIATION_LEN];
            self.world.rng().fill(&mut message);
            message[..4].copy_from_slice(&[1, 0, 0, 0]);
            jar.seal(&mut message, now);
            let host = 0x0b00_0000 + self.rng.below(1 << 16) as u32;
            self.world.inject(SocketAddr::from((Ipv4Addr::from_bits(host), 5000)), to, &message);
        }
    }

    /// Checks that since `begin` something passed between each client with a persistent keepalive and its gateway as often as that
    /// says. Either way counts, as in the kernel.
    pub(crate) fn check_keepalives(&self, begin: Instant, delay: Duration) -> Result<(), String> {
        let oldest = self.world.network.tap().next().map_or(begin, |tapped| tapped.at);
        for client in self.gateways..self.sites.len() {
            let interval = self.sites[client].plan.keepalive;
            if interval == 0 {
                continue;
            }
            let inside = self.sites[client].inside;
            let its = [inside, self.world.network.public(inside)];
            let tapped = self.world.network.tap().filter(|tapped| tapped.at >= begin);
            let of_it = tapped
                .filter(|tapped| its.contains(&tapped.datagram.from) || its.contains(&tapped.datagram.to));
            let limit = secs(interval.into()) + delay + LATENESS;
            // What the wiretap has forgotten may have been something.
            let mut last = begin.max(oldest);
            for at in of_it.map(|tapped| tapped.at).chain([self.world.now()]) {
                if at.since(last) > limit {
                    return Err(format!(
                        "keepalive: nothing from or to host {client} from {last:?} to {at:?}"
                    ));
                }
                last = at;
            }
        }
        Ok(())
    }
}
