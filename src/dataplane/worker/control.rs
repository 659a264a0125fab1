//! How a worker carries out what the slow path asks for.

use super::Worker;
use super::peers::Removed;
use crate::dataplane::stats::add;
use crate::dataplane::{Control, PeerId};
use crate::io::{Endpoint, Io};
use crate::noise::cookie::Gate;
use crate::noise::session::{RecvSession, Role, SendSession};
use crate::time::Instant;
use std::sync::Arc;

impl Worker {
    /// Carries out one control. False: it was [`Control::Stop`].
    pub(super) fn control<I: Io>(&mut self, io: &mut I, now: Instant, control: Control) -> bool {
        add(&self.outbox.stats.controls, 1);
        match control {
            Control::Identity(key) => {
                self.rx.gate = key.map(|keys| Gate::new(*keys, self.id));
                // Packets that waited for a key may now ask for a handshake again at once.
                self.peers.iter_mut().for_each(|peer| peer.asked = None);
            }
            Control::Routes(routes) => self.peers.routes = routes,
            Control::AddPeer(shared) => {
                let before = self.peers.add(shared);
                self.finish_removal(before);
            }
            Control::RemovePeer(id) => {
                let removed = self.peers.remove(id);
                self.finish_removal(removed);
            }
            Control::Endpoint(id, endpoint) => self.set_endpoint(io, now, id, endpoint),
            Control::Install(id, receive, send) => self.install(io, now, id, receive, send),
            Control::Drop(id, index) => self.drop_session(id, index),
            Control::SendStaged(id) => self.send_staged(io, now, id),
            Control::Keepalive(id) => self.sender(io, now).keepalive(id),
            Control::Confirm(id) => self.sender(io, now).confirm(id),
            Control::PurgeStaged(id) => self.sender(io, now).purge(id),
            Control::Send(to, datagram) => self.sender(io, now).handshake(to, &datagram),
            Control::Mtu(mtu) => self.padding.set_interface(mtu),
            Control::RouteMtus(routes) => self.padding.routes = routes,
            Control::Broadcasts(addresses) => self.unreachable.broadcasts = addresses,
            Control::Icmp(sockets) => io.set_icmp(sockets),
            Control::Rebind(sockets) => io.rebind(sockets),
            Control::Stop => return false,
        }
        true
    }

    fn set_endpoint<I: Io>(&mut self, io: &mut I, now: Instant, id: PeerId, endpoint: Option<Endpoint>) {
        let Some(peer) = self.peers.find(id) else { return };
        peer.endpoint = endpoint;
        peer.heard = None;
        peer.asked = None;
        self.sender(io, now).flush_staged(id.slot);
    }

    /// Installs both halves of a session. One that this device began is sent with at once.
    fn install<I: Io>(
        &mut self,
        io: &mut I,
        now: Instant,
        id: PeerId,
        receive: Box<RecvSession>,
        send: Arc<SendSession>,
    ) {
        let Some(peer) = self.peers.find(id) else { return };
        let role = receive.role();
        let receiving = self.rx.install(peer, receive, send);
        if role == Role::Initiator {
            receiving.take_effect(&peer.shared, &mut self.outbox);
            self.send_staged(io, now, id);
        }
    }

    fn send_staged<I: Io>(&mut self, io: &mut I, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.find(id) else { return };
        peer.asked = None;
        self.sender(io, now).flush_staged(id.slot);
    }

    fn drop_session(&mut self, id: PeerId, index: u32) {
        if let Some(peer) = self.peers.find(id) {
            peer.shared.sending.withdraw(index);
            peer.receiving.retain(|&other| other != index);
        }
        self.rx.remove(index, id);
    }

    /// Counts the staged frames of a removed peer, and removes its receiving sessions.
    fn finish_removal(&mut self, removed: Option<Removed>) {
        let Some(removed) = removed else { return };
        add(&self.outbox.stats.tx_staged_dropped, removed.staged);
        for index in removed.receiving {
            self.rx.remove(index, removed.id);
        }
    }
}
