//! Carries out what the device of a host decides, as the driver of the slow path does.

use super::{SimHost, VirtualWorker, pick_port, random_time};
use crate::dataplane::Control;
use crate::device::{BindRequest, Output};
use crate::index::{ReceiverIndex, WorkerCount};
use crate::io::udp::UdpSockets;
use crate::time::Instant;

impl VirtualWorker {
    /// Leaves a control that arrives when it is `due`, behind all earlier ones.
    pub(super) fn queue(&mut self, due: Instant, control: Control) {
        let after = self.backlog.back().map_or(due, |(last, _)| due.max(*last));
        self.backlog.push_back((after, control));
    }
}

impl SimHost {
    pub(super) fn drain_outputs(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.device.poll_output() {
            any = true;
            match output {
                Output::Control(worker, control) => self.control(worker, control),
                Output::Bind(request) => self.bind(request),
                Output::Steer(prefix, Some(target)) => {
                    self.steering.insert(prefix, target);
                }
                Output::Steer(prefix, None) => {
                    self.steering.remove(&prefix);
                }
            }
        }
        any
    }

    fn control(&mut self, worker: u8, control: Control) {
        self.controls += 1;
        self.disturb_hand_over();
        match self.lanes.get_mut(usize::from(worker)) {
            Some(lane) => {
                match &control {
                    Control::Install(peer, session, send) => {
                        let index = session.local_index();
                        if ReceiverIndex(index).owner(WorkerCount::nearest(self.config.workers.into()))
                            != worker
                        {
                            self.violations.push(format!("session {index:#x} given to worker {worker}"));
                        }
                        if self.indices.insert(index, peer.id).is_some() {
                            self.violations.push(format!("index {index:#x} given to a second session"));
                        }
                        self.wiretap.installed(self.at, peer.id, send);
                    }
                    Control::Restore(sessions) => {
                        for session in sessions {
                            let index = session.receive.local_index();
                            if self.indices.insert(index, session.peer.id).is_some() {
                                self.violations.push(format!("index {index:#x} taken over twice"));
                            }
                            session.send.iter().for_each(|send| self.wiretap.restored(index, send));
                        }
                    }
                    Control::Drop(_, index) => drop(self.indices.remove(index)),
                    Control::Send(slot, _, message) => self.wiretap.decided(self.at, *slot, message.bytes()),
                    _ => {}
                }
                let due = self.at + random_time(&mut self.rng, self.faults.late_controls);
                lane.queue(due, control);
            }
            None => self.violations.push(format!("control for worker {worker}, which does not exist")),
        }
    }

    /// Binds or closes the port. A refused binding leaves the interface without sockets, as in the kernel (`wg_socket_init`).
    fn bind(&mut self, request: Option<BindRequest>) {
        let result = request.map(|request| pick_port(request, self.bind_error.take(), &mut self.rng));
        self.rebind(result.as_ref().and_then(|result| result.as_ref().ok()).copied());
        if let Some(result) = result {
            self.device.bound(result);
        }
    }

    pub(super) fn rebind(&mut self, port: Option<u16>) {
        self.port = port;
        for lane in &mut self.lanes {
            let sockets = port.map(|port| UdpSockets { v4: None, v6: None, port });
            lane.queue(self.at, Control::Rebind(sockets));
        }
    }
}
