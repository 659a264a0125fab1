//! Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (paper, section 5.4.2 and 5.4.3; kernel `noise.c`).
//!
//! Messages leave here with both MACs zero; [`crate::noise::cookie`] fills them in and checks them first.
//!
//! An initiation costs one Diffie-Hellman until its sender is known by its static key, and no further one until its
//! timestamp is known to be new. For the result of the two static keys is worked out once, when it is first needed,
//! and kept.
//!
//! Answering an initiation gives up an outstanding one of our own, as in the kernel, where a peer has one handshake
//! at a time. Where both ends start at once, that would end both handshakes, and the next attempt would follow five
//! seconds later. So the end with the smaller public key keeps its own initiation where both may have started at
//! once, and one session comes of it.
//!
//! Most of the time goes into Diffie-Hellman. So answering and completing take three steps: a [`Handshake`] begins them, which
//! yields a value that any thread can [work out](Answering::work), and the handshake takes the result in. Only the first and
//! the last step change its state, and the last checks once more what may have changed meanwhile.

mod agreement;
mod record;
mod transcript;

pub use agreement::{Answered, Answering, Completing};
pub use record::HandshakeRecord;

use crate::crypto::random::Entropy;
use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
#[cfg(feature = "internals")]
use crate::noise::session::SessionKeys;
use crate::noise::tai64n::Tai64N;
use crate::noise::{INITIATION_INTERVAL, REKEY_TIMEOUT};
use crate::time::Instant;
#[cfg(feature = "internals")]
use crate::wire::message::RESPONSE_LEN;
use crate::wire::message::{INITIATION_LEN, Initiation, Response, TAG_LEN};
use std::sync::Arc;
use transcript::Transcript;
use zeroize::Zeroizing;

/// The local static key pair.
#[derive(Clone)]
pub struct Identity {
    private: PrivateKey,
    public: PublicKey,
}

impl Identity {
    /// The identity of `private`. Derives the public key once.
    pub fn new(private: PrivateKey) -> Identity {
        let public = private.public();
        Identity { private, public }
    }
    /// The private key.
    pub fn private(&self) -> &PrivateKey {
        &self.private
    }
    /// The public key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }
}

/// Why a handshake message was refused. Nothing is sent in answer, whatever the reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandshakeError {
    /// A tag did not verify.
    Decrypt,
    /// A Diffie-Hellman result was zero: a key was of low order.
    LowOrder,
    /// The timestamp is not greater than the last one accepted from this peer.
    Replay,
    /// This peer's initiations come faster than [`crate::noise::INITIATION_INTERVAL`].
    Flood,
    /// There is no outstanding initiation that this response answers, or the initiation is another peer's or for
    /// another identity.
    Unexpected,
}

/// An initiation whose static key was opened. Whether its sender holds that key's private half, only the peer's
/// [`Handshake`] can tell.
pub struct IncomingInitiation {
    /// The static key that it names, by which the peer is found.
    pub remote: PublicKey,
    timestamp_sealed: [u8; 12 + TAG_LEN],
    transcript: Transcript,
    ephemeral: PublicKey,
    sender: u32,
    /// The identity whose private key opened the initiation.
    opener: PublicKey,
}

impl IncomingInitiation {
    /// Opens `message` with the local static key.
    pub fn open(local: &Identity, message: &Initiation) -> Result<IncomingInitiation, HandshakeError> {
        let mut transcript = Transcript::new(&local.public);
        let ephemeral = PublicKey(message.ephemeral);
        transcript.mix_ephemeral(&ephemeral);
        let key = transcript.mix_agreement_for_key(local.private.agree(&ephemeral))?;
        let remote = PublicKey(transcript.open(&key, &message.static_sealed)?);
        let (timestamp_sealed, sender) = (message.timestamp_sealed, message.sender);
        let opener = local.public;
        Ok(IncomingInitiation { remote, timestamp_sealed, transcript, ephemeral, sender, opener })
    }
}

/// One peer's handshake state.
pub struct Handshake {
    remote: PublicKey,
    static_static: StaticStatic,
    psk: SharedSecret,
    last_accepted: Option<Accepted>,
    /// On the heap, since an idle peer has none.
    outstanding: Option<Arc<Outstanding>>,
}

/// What the two static keys agree on. It is worked out when it is first needed, so that a thousand peers can be added
/// at once.
enum StaticStatic {
    Unknown,
    /// The agreement; `None` where the remote key is of low order.
    Known(Option<SharedSecret>),
}

/// The last initiation that was answered.
#[derive(Clone, Copy)]
struct Accepted {
    timestamp: Tai64N,
    at: Instant,
}

/// An initiation that waits for its response. Its secrets are zeroized on drop.
struct Outstanding {
    transcript: Transcript,
    ephemeral: PrivateKey,
    index: u32,
    sent: Instant,
}

impl Outstanding {
    /// Whether an initiation that arrives now may have been sent before ours was received at the other end. No
    /// implementation sends one within REKEY_TIMEOUT of its own response (kernel: `last_sent_handshake`). So one that
    /// comes later may be of an end that has answered ours, and gone on to another session since.
    fn may_cross(&self, now: Instant) -> bool {
        now.since(self.sent) < REKEY_TIMEOUT
    }
}

impl Handshake {
    /// A peer without any history.
    pub fn new(remote: PublicKey, psk: SharedSecret) -> Handshake {
        let static_static = StaticStatic::Unknown;
        Handshake { remote, static_static, psk, last_accepted: None, outstanding: None }
    }

    /// Takes another local private key, or none. Forgets everything that came of the old one, and with it the
    /// outstanding initiation.
    pub fn identity_changed(&mut self) {
        self.static_static = StaticStatic::Unknown;
        self.clear();
    }

    fn static_static(&mut self, local: &Identity) -> Option<SharedSecret> {
        if let StaticStatic::Unknown = self.static_static {
            self.static_static = StaticStatic::Known(local.private.agree(&self.remote));
        }
        match &self.static_static {
            StaticStatic::Known(agreed) => agreed.clone(),
            StaticStatic::Unknown => None,
        }
    }

    /// Sets the preshared key, which takes effect with the next handshake message.
    pub fn set_psk(&mut self, psk: SharedSecret) {
        self.psk = psk;
    }

    /// The preshared key; all zero where there is none.
    pub fn psk(&self) -> &SharedSecret {
        &self.psk
    }

    /// The local index of the outstanding initiation, if there is one.
    pub fn pending_index(&self) -> Option<u32> {
        self.outstanding.as_ref().map(|outstanding| outstanding.index)
    }

    /// When the outstanding initiation was sent, if there is one.
    pub fn pending_since(&self) -> Option<Instant> {
        self.outstanding.as_ref().map(|outstanding| outstanding.sent)
    }

    /// Forgets and zeroizes the outstanding initiation.
    pub fn clear(&mut self) {
        self.outstanding = None;
    }

    /// Starts a handshake. An outstanding one is replaced.
    pub fn initiate(
        &mut self,
        local: &Identity,
        index: u32,
        timestamp: Tai64N,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<[u8; INITIATION_LEN], HandshakeError> {
        let mut transcript = Transcript::new(&self.remote);
        let ephemeral = PrivateKey::from_bytes(*random(entropy));
        let public = ephemeral.public();
        transcript.mix_ephemeral(&public);
        let key = transcript.mix_agreement_for_key(ephemeral.agree(&self.remote))?;
        let static_sealed = transcript.seal(&key, local.public.0);
        let key = transcript.mix_agreement_for_key(self.static_static(local))?;
        let timestamp_sealed = transcript.seal(&key, timestamp.0);
        self.outstanding = Some(Arc::new(Outstanding { transcript, ephemeral, index, sent: now }));
        let message = Initiation {
            sender: index,
            ephemeral: public.0,
            static_sealed,
            timestamp_sealed,
            mac1: [0; 16],
            mac2: [0; 16],
        };
        Ok(message.to_bytes())
    }

    /// Checks an opened initiation (static key, timestamp, rate), and begins to answer it with the local index `index`. Give
    /// the result of the work to [`Self::answered`].
    ///
    /// # Errors
    ///
    /// Why the initiation was refused.
    pub fn begin_answer(
        &mut self,
        local: &Identity,
        incoming: &IncomingInitiation,
        index: u32,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<Answering, HandshakeError> {
        if incoming.remote != self.remote || incoming.opener != local.public {
            return Err(HandshakeError::Unexpected);
        }
        let mut transcript = incoming.transcript.clone();
        let key = transcript.mix_agreement_for_key(self.static_static(local))?;
        let timestamp = Tai64N(transcript.open(&key, &incoming.timestamp_sealed)?);
        self.check(timestamp, now)?;
        Ok(Answering {
            transcript,
            ephemeral: random(entropy),
            psk: self.psk.clone(),
            local: local.public,
            remote: self.remote,
            remote_ephemeral: incoming.ephemeral,
            timestamp,
            index,
            sender: incoming.sender,
        })
    }

    /// Takes in that an initiation was answered, before the response is sent and the session used. An outstanding initiation
    /// is then given up, unless it crossed this one and takes precedence.
    ///
    /// # Errors
    ///
    /// Why the answer is worth nothing: meanwhile the local identity changed, or a later initiation was answered.
    pub fn answered(
        &mut self,
        local: &Identity,
        answered: &Answered,
        now: Instant,
    ) -> Result<(), HandshakeError> {
        if answered.local != local.public {
            return Err(HandshakeError::Unexpected);
        }
        self.check(answered.timestamp, now)?;
        self.last_accepted = Some(Accepted { timestamp: answered.timestamp, at: now });
        if self.outstanding.as_ref().is_some_and(|own| local.public.0 > self.remote.0 || !own.may_cross(now))
        {
            // Taken out of its place instead, it would leave a copy there.
            self.clear();
        }
        Ok(())
    }

    /// The timestamp of the last initiation that was answered.
    pub fn last_initiation(&self) -> Option<Tai64N> {
        self.last_accepted.map(|last| last.timestamp)
    }

    /// Takes over the timestamp of an initiation that another process answered, unless a later one was answered here.
    pub fn recall_initiation(&mut self, timestamp: Tai64N, now: Instant) {
        if self.last_initiation().is_none_or(|last| last < timestamp) {
            self.last_accepted = Some(Accepted { timestamp, at: now });
        }
    }

    /// Replay and flood checks of the kernel's `wg_noise_handshake_consume_initiation`.
    fn check(&self, timestamp: Tai64N, now: Instant) -> Result<(), HandshakeError> {
        match self.last_accepted {
            Some(last) if timestamp <= last.timestamp => Err(HandshakeError::Replay),
            Some(last) if now.since(last.at) < INITIATION_INTERVAL => Err(HandshakeError::Flood),
            _ => Ok(()),
        }
    }

    /// Begins to complete the outstanding initiation. Give the result of the work to [`Self::completed`].
    ///
    /// # Errors
    ///
    /// Where the response answers no outstanding initiation.
    pub fn begin_completion(
        &self,
        local: &Arc<Identity>,
        message: &Response,
    ) -> Result<Completing, HandshakeError> {
        let outstanding = Arc::clone(self.outstanding_of(message.receiver)?);
        let (local, psk) = (Arc::clone(local), self.psk.clone());
        Ok(Completing { outstanding, local, psk, message: message.clone() })
    }

    /// Takes in that the outstanding initiation with this index is complete. Where the response was refused instead, it
    /// stays outstanding.
    ///
    /// # Errors
    ///
    /// Where it is no longer outstanding.
    pub fn completed(&mut self, index: u32) -> Result<(), HandshakeError> {
        self.outstanding_of(index)?;
        self.clear();
        Ok(())
    }

    /// Answers an opened initiation, in all three steps.
    ///
    /// # Errors
    ///
    /// Why the initiation was refused.
    #[cfg(feature = "internals")]
    pub fn respond(
        &mut self,
        local: &Identity,
        incoming: IncomingInitiation,
        index: u32,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<([u8; RESPONSE_LEN], SessionKeys), HandshakeError> {
        let answered = self.begin_answer(local, &incoming, index, now, entropy)?.work()?;
        self.answered(local, &answered, now)?;
        Ok((answered.response, answered.keys))
    }

    /// Completes the outstanding initiation, in all three steps.
    ///
    /// # Errors
    ///
    /// Why the response was refused. The initiation then stays outstanding.
    #[cfg(feature = "internals")]
    pub fn complete(
        &mut self,
        local: &Arc<Identity>,
        message: &Response,
    ) -> Result<SessionKeys, HandshakeError> {
        let keys = self.begin_completion(local, message)?.work()?;
        self.completed(message.receiver)?;
        Ok(keys)
    }

    fn outstanding_of(&self, index: u32) -> Result<&Arc<Outstanding>, HandshakeError> {
        let outstanding = self.outstanding.as_ref().filter(|outstanding| outstanding.index == index);
        outstanding.ok_or(HandshakeError::Unexpected)
    }
}

/// Bytes of a fresh ephemeral key.
fn random(entropy: &mut dyn Entropy) -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    entropy.fill(&mut *bytes);
    bytes
}

#[cfg(test)]
mod tests;
