//! A secret on its way to another process: it has one place of its own, which is wiped, also while it is read and written.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use zeroize::Zeroizing;

/// `N` secret bytes on the heap, so that no copy stays behind wherever the value is moved. Its `Debug` hides them.
pub struct SecretBytes<const N: usize>(Box<Zeroizing<[u8; N]>>);

impl<const N: usize> SecretBytes<N> {
    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8; N]) -> SecretBytes<N> {
        let mut place = Box::new(Zeroizing::new([0; N]));
        place.copy_from_slice(bytes);
        SecretBytes(place)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> fmt::Debug for SecretBytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes<{N}>(…)")
    }
}

impl<const N: usize> Serialize for SecretBytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0[..])
    }
}

impl<'de, const N: usize> Deserialize<'de> for SecretBytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SecretBytes<N>, D::Error> {
        deserializer.deserialize_bytes(SecretVisitor::<N>)
    }
}

/// Copies what is read from where it lies to its own place, and to no other.
struct SecretVisitor<const N: usize>;

impl<const N: usize> Visitor<'_> for SecretVisitor<N> {
    type Value = SecretBytes<N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{N} bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<SecretBytes<N>, E> {
        let bytes = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
        Ok(SecretBytes::copy_of(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_back_and_one_of_another_length_is_not() {
        let secret = SecretBytes::copy_of(&[7; 16]);
        let mut room = [0; 20];
        let written = postcard::to_slice(&secret, &mut room).unwrap();
        assert_eq!(postcard::from_bytes::<SecretBytes<16>>(written).unwrap().bytes(), &[7; 16]);
        assert!(postcard::from_bytes::<SecretBytes<32>>(written).is_err());
        assert!(!format!("{secret:?}").contains('7'));
    }
}
