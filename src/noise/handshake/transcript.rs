//! The chaining key and the hash that both ends compute over a handshake (paper, section 5.4).

use crate::crypto::aead;
use crate::crypto::hash::{hash, kdf};
use crate::crypto::x25519::{PublicKey, SharedSecret};
use crate::noise::handshake::HandshakeError;
use crate::noise::session::{Role, SessionKeys};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// A key for exactly one sealing.
pub(super) type OnceKey = Zeroizing<[u8; 32]>;

/// C and H of the paper.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct Transcript {
    chaining_key: [u8; 32],
    hash: [u8; 32],
}

impl Transcript {
    /// C = HASH(CONSTRUCTION), H = HASH(HASH(C ‖ IDENTIFIER) ‖ responder's static key).
    pub(super) fn new(responder: &PublicKey) -> Transcript {
        let chaining_key = hash(&[CONSTRUCTION]);
        let identified = hash(&[&chaining_key, IDENTIFIER]);
        Transcript { chaining_key, hash: hash(&[&identified, &responder.0]) }
    }

    /// The transcript of which these are the [parts](Self::parts).
    pub(super) fn of(chaining_key: &[u8; 32], hash: &[u8; 32]) -> Transcript {
        Transcript { chaining_key: *chaining_key, hash: *hash }
    }

    /// The chaining key and the hash.
    pub(super) fn parts(&self) -> (&[u8; 32], &[u8; 32]) {
        (&self.chaining_key, &self.hash)
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    /// Takes in an ephemeral public key that is sent in the clear: into the hash, and, as the "psk" modifier demands,
    /// into the chaining key.
    pub(super) fn mix_ephemeral(&mut self, ephemeral: &PublicKey) {
        self.mix_hash(&ephemeral.0);
        self.chaining_key = kdf::<1>(&self.chaining_key, &ephemeral.0)[0];
    }

    /// Takes in a Diffie-Hellman result that no message key follows.
    pub(super) fn mix_agreement(&mut self, agreed: Option<SharedSecret>) -> Result<(), HandshakeError> {
        let agreed = agreed.ok_or(HandshakeError::LowOrder)?;
        self.chaining_key = kdf::<1>(&self.chaining_key, &agreed.0)[0];
        Ok(())
    }

    /// Takes in a Diffie-Hellman result, and returns the message key that follows.
    pub(super) fn mix_agreement_for_key(
        &mut self,
        agreed: Option<SharedSecret>,
    ) -> Result<OnceKey, HandshakeError> {
        let agreed = agreed.ok_or(HandshakeError::LowOrder)?;
        let outputs = kdf::<2>(&self.chaining_key, &agreed.0);
        self.chaining_key = outputs[0];
        Ok(Zeroizing::new(outputs[1]))
    }

    /// Takes in the preshared key, and returns the message key that follows.
    pub(super) fn mix_psk(&mut self, psk: &SharedSecret) -> OnceKey {
        let outputs = kdf::<3>(&self.chaining_key, &psk.0);
        self.chaining_key = outputs[0];
        self.mix_hash(&outputs[1]);
        Zeroizing::new(outputs[2])
    }

    /// Seals `text`, bound to all that went before. `SEALED` is the length of text and tag in bytes.
    pub(super) fn seal<const TEXT: usize, const SEALED: usize>(
        &mut self,
        key: &OnceKey,
        text: [u8; TEXT],
    ) -> [u8; SEALED] {
        const { assert!(SEALED == TEXT + aead::TAG_LEN) };
        let mut sealed = [0; SEALED];
        let (body, tag) = sealed.split_at_mut(TEXT);
        body.copy_from_slice(&text);
        tag.copy_from_slice(&aead::seal(key, &self.hash, body));
        self.mix_hash(&sealed);
        sealed
    }

    /// Opens what [`Self::seal`] sealed at the other end.
    pub(super) fn open<const TEXT: usize, const SEALED: usize>(
        &mut self,
        key: &OnceKey,
        sealed: &[u8; SEALED],
    ) -> Result<[u8; TEXT], HandshakeError> {
        const { assert!(SEALED == TEXT + aead::TAG_LEN) };
        let (body, tag) = sealed.split_last_chunk().ok_or(HandshakeError::Decrypt)?;
        let mut text = [0; TEXT];
        text.copy_from_slice(body);
        if !aead::open(key, &self.hash, &mut text, tag) {
            return Err(HandshakeError::Decrypt);
        }
        self.mix_hash(sealed);
        Ok(text)
    }

    /// The transport keys (paper, section 5.4.5): the initiator sends with the first and receives with the second.
    pub(super) fn into_keys(self, role: Role, local_index: u32, remote_index: u32) -> SessionKeys {
        let outputs = kdf::<2>(&self.chaining_key, &[]);
        let (send, receive) = match role {
            Role::Initiator => (outputs[0], outputs[1]),
            Role::Responder => (outputs[1], outputs[0]),
        };
        SessionKeys { send, receive, local_index, remote_index, role }
    }
}
