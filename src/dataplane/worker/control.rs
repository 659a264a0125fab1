//! How a worker carries out what the slow path asks for.

use super::Worker;
use crate::dataplane::stats::add;
use crate::dataplane::{Control, PeerShared};
use crate::io::Io;
use crate::noise::cookie::Gate;
use crate::noise::session::{RecvSession, Role, SendSession};
use crate::time::Instant;
use std::sync::Arc;

impl Worker {
    /// Carries out one control. False: it was [`Control::Stop`].
    pub(super) fn control<I: Io>(&mut self, io: &mut I, now: Instant, control: Control) -> bool {
        add(&self.outbox.stats.controls, 1);
        match control {
            Control::Identity(key) => self.rx.gate = key.map(|keys| Gate::new(*keys, self.id)),
            Control::Routes(routes, directory) => {
                let dropped = self.peers.staged.keep_only(&directory);
                add(&self.outbox.stats.tx_staged_dropped, dropped);
                (self.peers.routes, self.peers.directory) = (routes, directory);
            }
            Control::Install(peer, receive, send) => self.install(io, now, &peer, receive, send),
            Control::Drop(id, index) => {
                // What came before is still of the session, and so is what it sealed.
                self.receiver(io, now).finish_all();
                self.sender(io, now).finish_all();
                self.rx.remove(index, id);
            }
            Control::SendStaged(id) => self.sender(io, now).flush_staged(id.slot),
            Control::PurgeStaged(id) => self.sender(io, now).purge(id.slot),
            Control::Keepalive(peer) => self.sender(io, now).keepalive(&peer),
            Control::Confirm(peer) => self.sender(io, now).confirm(&peer),
            Control::Send(slot, to, datagram) => self.sender(io, now).handshake(slot, to, &datagram),
            Control::Mtu(mtu) => self.padding.set_interface(mtu),
            Control::RouteMtus(routes) => self.padding.routes = routes,
            Control::Broadcasts(addresses) => self.unreachable.broadcasts = addresses,
            Control::Tunnels(ports) => self.rx.set_tunnels(ports),
            Control::Icmp(sockets) => io.set_icmp(sockets),
            Control::Rebind(sockets) => io.rebind(sockets),
            Control::Rest(round) => self.rest(io, now, round),
            Control::Record(records) => self.leave_record(&records),
            Control::Restore(sessions) => self.restore(sessions),
            Control::Frames(frames) => self.take_over_frames(io, now, &frames),
            Control::Datagrams(datagrams) => self.take_over_datagrams(io, now, &datagrams),
            Control::Resume => self.resume(io),
            Control::Stop => return false,
        }
        true
    }

    /// Installs both halves of a session. One that this device began is sent with at once.
    fn install<I: Io>(
        &mut self,
        io: &mut I,
        now: Instant,
        peer: &Arc<PeerShared>,
        receive: Box<RecvSession>,
        send: Arc<SendSession>,
    ) {
        let role = receive.role();
        let receiving = self.rx.install(peer, receive, send);
        if role == Role::Initiator {
            receiving.take_effect(&mut self.outbox);
            peer.forget_asked();
            self.sender(io, now).flush_staged(peer.id.slot);
        }
    }
}
