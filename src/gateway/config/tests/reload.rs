//! The difference between a device and a file, judged by a device that takes it.

use super::properties::configs;
use super::*;
use crate::crypto::random::SystemEntropy;
use crate::device::uapi::SetRequest;
use crate::device::{Device, Now};
use crate::gateway::control::DeviceState;
use crate::index::WorkerCount;
use crate::time::Instant;
use proptest::prelude::*;
use std::time::Duration;

fn resolve(_: &PeerConfig, endpoint: &HostPort) -> Option<SocketAddr> {
    endpoint.address().map(|addr| (addr, endpoint.port).into())
}

fn device() -> Device {
    Device::new(WorkerCount::nearest(1), Box::new(SystemEntropy))
}

/// Applies a request by way of its text, as a socket would carry it.
fn apply(device: &mut Device, request: &SetRequest) {
    let text = set_text(request);
    let request = SetRequest::parse(text.strip_suffix('\n').unwrap().as_bytes()).unwrap();
    device.apply(Now { mono: Instant::default(), wall: Duration::ZERO }, &request, &mut |_| Ok(0)).unwrap();
}

fn state(device: &Device) -> DeviceState {
    let answer = device.uapi_get();
    let mut state = DeviceState::parse(answer.split("errno=").next().unwrap()).unwrap();
    state.peers.sort_by_key(|peer| peer.public_key);
    for peer in &mut state.peers {
        peer.allowed_ips.sort();
    }
    state
}

#[test]
fn an_unchanged_peer_is_not_mentioned() {
    let text = format!(
        "[Interface]\nPrivateKey={PRIVATE}\nListenPort=4500\n[Peer]\nPublicKey={PUBLIC}\nAllowedIPs=10.0.0.2/32\nEndpoint=192.0.2.1:1\n[Peer]\nPublicKey={OTHER}\nAllowedIPs=10.0.0.3/32\n"
    );
    let mut running = device();
    apply(&mut running, &config(&text).request(&mut resolve));
    let changed = text.replace("10.0.0.3/32", "10.0.0.4/32");
    let request = difference(&state(&running), &config(&changed), &mut resolve);
    assert_eq!(request.peers.len(), 1);
    assert_eq!(request.peers[0].public_key.to_base64(), OTHER);
    assert!(request.private_key.is_none() && request.listen_port.is_none() && !request.replace_peers);
}

#[test]
fn what_the_file_leaves_open_stays_as_it_is() {
    let mut running = device();
    apply(
        &mut running,
        &config(&format!("[Interface]\nPrivateKey={PRIVATE}\nListenPort=4500\nFwMark=7\n"))
            .request(&mut resolve),
    );
    let before = state(&running);
    let request = difference(&before, &config("[Interface]\n"), &mut resolve);
    apply(&mut running, &request);
    assert_eq!(state(&running), before);
}

#[test]
fn a_peer_that_the_file_lacks_is_removed() {
    let mut running = device();
    apply(&mut running, &config(&format!("[Peer]\nPublicKey={PUBLIC}\n")).request(&mut resolve));
    let request = difference(&state(&running), &config(""), &mut resolve);
    assert!(request.peers.len() == 1 && request.peers[0].remove);
}

#[test]
fn an_allowed_ip_that_moves_ends_with_its_new_owner() {
    let file = |first: &str, second: &str| {
        format!(
            "[Peer]\nPublicKey={PUBLIC}\nAllowedIPs={first}\n[Peer]\nPublicKey={OTHER}\nAllowedIPs={second}\n"
        )
    };
    for (before, after) in [
        (("10.0.0.1,10.0.0.2", "10.0.0.3"), ("10.0.0.1", "10.0.0.3,10.0.0.2")),
        (("10.0.0.1", "10.0.0.2,10.0.0.3"), ("10.0.0.1,10.0.0.2", "10.0.0.3")),
    ] {
        let mut running = device();
        apply(&mut running, &config(&file(before.0, before.1)).request(&mut resolve));
        let wanted = config(&file(after.0, after.1));
        let change = difference(&state(&running), &wanted, &mut resolve);
        apply(&mut running, &change);
        let mut fresh = device();
        apply(&mut fresh, &wanted.request(&mut resolve));
        assert_eq!(state(&running), state(&fresh));
    }
}

proptest! {
    #[test]
    fn the_difference_leads_where_the_whole_leads_and_then_is_nothing(from in configs(), to in configs(), shared in any::<u8>()) {
        // Some peers are in both configurations, whatever else these say.
        let mut to = to;
        for (at, peer) in to.peers.iter_mut().enumerate() {
            if let Some(other) = from.peers.get(at).filter(|_| shared >> at & 1 == 1) {
                peer.public_key = other.public_key;
            }
        }
        // The running device keeps what a file leaves open, and an endpoint that it once learnt.
        to.interface.private_key.get_or_insert(PrivateKey::from_bytes([3; 32]));
        to.interface.listen_port = Some(to.interface.listen_port.unwrap_or(0).max(1));
        to.interface.fwmark.get_or_insert(0);
        for peer in to.peers.iter_mut().filter(|peer| peer.endpoint.as_ref().is_none_or(|at| at.address().is_none())) {
            peer.endpoint = Some(HostPort { host: "192.0.2.1".into(), port: 1 });
        }
        let mut running = device();
        apply(&mut running, &from.request(&mut resolve));
        let change = difference(&state(&running), &to, &mut resolve);
        apply(&mut running, &change);
        let mut fresh = device();
        apply(&mut fresh, &to.request(&mut resolve));
        prop_assert_eq!(state(&running), state(&fresh));
        let rest = difference(&state(&running), &to, &mut resolve);
        prop_assert_eq!(&*set_text(&rest), "set=1\n\n");
    }
}
