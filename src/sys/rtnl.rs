//! A question to the kernel's rtnetlink and its answer, without a runtime.
//!
//! It is asked in the network namespace of the thread that opened the socket.

use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

/// Most bytes of an answer that are read: a route, or an error, which echoes the request.
const ANSWER_LEN: usize = 4096;

/// A socket that asks one question at a time.
pub(super) struct Asker {
    socket: Socket,
    sequence: u32,
}

impl Asker {
    pub(super) fn open() -> io::Result<Asker> {
        Ok(Asker { socket: Socket::new(NETLINK_ROUTE)?, sequence: 0 })
    }

    /// Has the kernel do one thing.
    pub(super) fn command(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK).map(|_| ())
    }

    /// Has the kernel make what is not there yet.
    #[cfg(feature = "cli")]
    pub(super) fn create(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(|_| ())
    }

    /// Asks the kernel one question.
    pub(super) fn query(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        self.exchange(message, NLM_F_REQUEST)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Sends a message and reads the answer. `None` where the kernel did what was wanted and has nothing to return. It
    /// works on the request while it is sent, so the answer never has to be waited for.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        loop {
            let mut answer = Vec::with_capacity(ANSWER_LEN);
            let (_, from) = self.socket.recv_from(&mut answer, libc::MSG_DONTWAIT)?;
            if from.port_number() != 0 {
                continue; // another process may write to our socket; only port 0 is the kernel
            }
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        None => Ok(None),
                        Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
                    };
                }
                _ => {}
            }
        }
    }
}
