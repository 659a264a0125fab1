//! The Diffie-Hellman of a handshake, apart from any peer's state, so that any thread can do it.

use super::{HandshakeError, Identity, Outstanding, Transcript};
use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::noise::session::{Role, SessionKeys};
use crate::noise::tai64n::Tai64N;
use crate::wire::message::{RESPONSE_LEN, Response};
use std::sync::Arc;
use zeroize::Zeroizing;

/// An answer to an initiation, before its two Diffie-Hellmans. It holds secrets; they are zeroized on drop.
pub struct Answering {
    pub(super) transcript: Transcript,
    /// The bytes of a fresh private key.
    pub(super) ephemeral: Zeroizing<[u8; 32]>,
    pub(super) psk: SharedSecret,
    pub(super) local: PublicKey,
    pub(super) remote: PublicKey,
    pub(super) remote_ephemeral: PublicKey,
    pub(super) timestamp: Tai64N,
    pub(super) index: u32,
    pub(super) sender: u32,
}

/// An answer that was worked out.
pub struct Answered {
    /// The local identity that answers.
    pub(super) local: PublicKey,
    pub(super) timestamp: Tai64N,
    /// The response, with both MACs zero.
    pub response: [u8; RESPONSE_LEN],
    /// The keys of the session that comes of it.
    pub keys: SessionKeys,
}

impl Answering {
    /// The local index of the session.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Works the answer out.
    ///
    /// # Errors
    ///
    /// Where a key of the remote is of low order.
    pub fn work(&self) -> Result<Answered, HandshakeError> {
        let mut transcript = self.transcript.clone();
        let ephemeral = PrivateKey::from_bytes(*self.ephemeral);
        let public = ephemeral.public();
        transcript.mix_ephemeral(&public);
        transcript.mix_agreement(ephemeral.agree(&self.remote_ephemeral))?;
        transcript.mix_agreement(ephemeral.agree(&self.remote))?;
        let key = transcript.mix_psk(&self.psk);
        let empty_sealed = transcript.seal(&key, []);
        let message = Response {
            sender: self.index,
            receiver: self.sender,
            ephemeral: public.0,
            empty_sealed,
            mac1: [0; 16],
            mac2: [0; 16],
        };
        let keys = transcript.into_keys(Role::Responder, self.index, self.sender);
        let (local, timestamp) = (self.local, self.timestamp);
        Ok(Answered { local, timestamp, response: message.to_bytes(), keys })
    }
}

/// The completion of an initiation, before its two Diffie-Hellmans. It holds secrets; they are zeroized on drop.
pub struct Completing {
    pub(super) outstanding: Arc<Outstanding>,
    pub(super) local: Arc<Identity>,
    pub(super) psk: SharedSecret,
    pub(super) message: Response,
}

impl Completing {
    /// The local index of the session.
    pub fn index(&self) -> u32 {
        self.message.receiver
    }

    /// Works out the session's keys.
    ///
    /// # Errors
    ///
    /// Why the response was refused.
    pub fn work(&self) -> Result<SessionKeys, HandshakeError> {
        let Completing { outstanding, local, psk, message } = self;
        let mut transcript = outstanding.transcript.clone();
        let ephemeral = PublicKey(message.ephemeral);
        transcript.mix_ephemeral(&ephemeral);
        transcript.mix_agreement(outstanding.ephemeral.agree(&ephemeral))?;
        transcript.mix_agreement(local.private.agree(&ephemeral))?;
        let key = transcript.mix_psk(psk);
        let [] = transcript.open(&key, &message.empty_sealed)?;
        Ok(transcript.into_keys(Role::Initiator, message.receiver, message.sender))
    }
}
