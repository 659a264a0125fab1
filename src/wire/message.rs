//! WireGuard's four messages (WireGuard paper, section 5.4; Linux `drivers/net/wireguard/messages.h`).
//! All integers are little-endian.

/// Length in bytes of a handshake initiation.
pub const INITIATION_LEN: usize = 148;
/// Length in bytes of a handshake response.
pub const RESPONSE_LEN: usize = 92;
/// Length in bytes of a cookie reply.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Length in bytes of a data message's header: type, reserved bytes, receiver index, counter.
pub const DATA_HEADER_LEN: usize = 16;
/// Length in bytes of a Poly1305 tag.
pub const TAG_LEN: usize = 16;
/// Bytes a data message adds to its (padded) content; also the shortest data message: a keepalive.
pub const DATA_OVERHEAD: usize = DATA_HEADER_LEN + TAG_LEN;
/// Length in bytes of the longest inner packet: what a data message in one UDP datagram over IPv4 holds (65,535 - 20
/// - 8 - 32). IPv6 would hold 20 bytes more.
pub const MAX_INNER_LEN: usize = 65_535 - 20 - 8 - DATA_OVERHEAD;
/// Largest of the handshake messages (types 1 to 3).
pub const MAX_HANDSHAKE_LEN: usize = INITIATION_LEN;

/// What a datagram claims to be, once its type word and its length agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageKind {
    /// A handshake initiation, type 1.
    Initiation,
    /// A handshake response, type 2.
    Response,
    /// A cookie reply, type 3.
    CookieReply,
    /// A data message, type 4.
    Data,
}

/// Classifies `datagram` by its type word and its length, which must agree: the length is exact for types 1 to 3 and
/// at least [`DATA_OVERHEAD`] for type 4, and the reserved bytes are zero. `None` where they do not agree: the
/// datagram is to be dropped and counted.
#[inline]
pub fn classify(datagram: &[u8]) -> Option<MessageKind> {
    let word = u32::from_le_bytes(*datagram.first_chunk()?);
    match (word, datagram.len()) {
        (4, DATA_OVERHEAD..) => Some(MessageKind::Data),
        (1, INITIATION_LEN) => Some(MessageKind::Initiation),
        (2, RESPONSE_LEN) => Some(MessageKind::Response),
        (3, COOKIE_REPLY_LEN) => Some(MessageKind::CookieReply),
        _ => None,
    }
}

/// The index behind the type word: the receiver's in data messages and cookie replies, the sender's in initiations
/// and responses. `None` where the message is truncated.
#[inline]
pub fn index(message: &[u8]) -> Option<u32> {
    message.get(4..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The header of a data message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataHeader {
    /// The receiver's index for the session.
    pub receiver: u32,
    /// Nonce of the AEAD, and what the replay window checks.
    pub counter: u64,
}

impl DataHeader {
    /// Reads the header of a datagram that [`classify`] called [`MessageKind::Data`]; `None` where it is truncated.
    #[inline]
    pub fn parse(datagram: &[u8]) -> Option<DataHeader> {
        let (_, rest) = datagram.split_first_chunk::<4>()?;
        let (receiver, rest) = rest.split_first_chunk()?;
        let counter = rest.first_chunk()?;
        Some(DataHeader { receiver: u32::from_le_bytes(*receiver), counter: u64::from_le_bytes(*counter) })
    }

    /// Writes type, reserved bytes, receiver and counter.
    #[inline]
    pub fn write(self, out: &mut [u8; DATA_HEADER_LEN]) {
        // One number, one store: type and reserved bytes lowest, the counter highest.
        let header = u128::from(self.counter) << 64 | u128::from(self.receiver) << 32 | 4;
        *out = header.to_le_bytes();
    }
}

/// A handshake initiation (type 1), parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Initiation {
    /// The initiator's index.
    pub sender: u32,
    /// Ephemeral public key, in the clear.
    pub ephemeral: [u8; 32],
    /// Static public key, sealed.
    pub static_sealed: [u8; 48],
    /// TAI64N timestamp, sealed.
    pub timestamp_sealed: [u8; 28],
    /// MAC over all before it, keyed by the responder's public key.
    pub mac1: [u8; 16],
    /// MAC over all before it, keyed by the cookie; zero without one.
    pub mac2: [u8; 16],
}

/// A handshake response (type 2), parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// The responder's index.
    pub sender: u32,
    /// The initiator's index.
    pub receiver: u32,
    /// Ephemeral public key, in the clear.
    pub ephemeral: [u8; 32],
    /// AEAD tag over an empty text.
    pub empty_sealed: [u8; 16],
    /// MAC over all before it, keyed by the initiator's public key.
    pub mac1: [u8; 16],
    /// MAC over all before it, keyed by the cookie; zero without one.
    pub mac2: [u8; 16],
}

/// A cookie reply (type 3), parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CookieReply {
    /// Index of the handshake's sender that this answers.
    pub receiver: u32,
    /// XChaCha20-Poly1305 nonce.
    pub nonce: [u8; 24],
    /// The cookie, sealed.
    pub cookie_sealed: [u8; 32],
}

/// A field of a handshake message. It is taken from the front of the rest of a datagram, and put at the front of the
/// rest of a buffer.
trait WireField: Sized {
    fn take(from: &mut &[u8]) -> Option<Self>;
    fn put(&self, into: &mut &mut [u8]);
}

impl<const N: usize> WireField for [u8; N] {
    fn take(from: &mut &[u8]) -> Option<Self> {
        let (head, tail) = from.split_first_chunk::<N>()?;
        *from = tail;
        Some(*head)
    }

    fn put(&self, into: &mut &mut [u8]) {
        // Always there: the assertion in `codec!` adds the fields up to the length of the message.
        if let Some((head, tail)) = std::mem::take(into).split_first_chunk_mut::<N>() {
            *head = *self;
            *into = tail;
        }
    }
}

impl WireField for u32 {
    fn take(from: &mut &[u8]) -> Option<Self> {
        <[u8; 4]>::take(from).map(u32::from_le_bytes)
    }

    fn put(&self, into: &mut &mut [u8]) {
        self.to_le_bytes().put(into);
    }
}

macro_rules! codec {
    ($kind:ident, $type_word:literal, $len:ident, { $($field:ident: $width:literal),* }) => {
        const _: () = assert!(4 $(+ $width)* == $len);

        impl $kind {
            /// Parses a datagram of the exact length and type. `None` for any other.
            pub fn parse(datagram: &[u8]) -> Option<Self> {
                if classify(datagram)? != MessageKind::$kind {
                    return None;
                }
                let (_, mut rest) = datagram.split_first_chunk::<4>()?;
                Some($kind { $($field: WireField::take(&mut rest)?),* })
            }
            /// The message as it goes on the wire.
            pub fn to_bytes(&self) -> [u8; $len] {
                let mut bytes = [0; $len];
                let mut rest = bytes.as_mut_slice();
                $type_word.put(&mut rest);
                $(self.$field.put(&mut rest);)*
                bytes
            }
        }
    };
}
codec!(Initiation, 1u32, INITIATION_LEN, {
    sender: 4, ephemeral: 32, static_sealed: 48, timestamp_sealed: 28, mac1: 16, mac2: 16
});
codec!(Response, 2u32, RESPONSE_LEN, {
    sender: 4, receiver: 4, ephemeral: 32, empty_sealed: 16, mac1: 16, mac2: 16
});
codec!(CookieReply, 3u32, COOKIE_REPLY_LEN, { receiver: 4, nonce: 24, cookie_sealed: 32 });

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn datagram(kind: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes.iter_mut().take(1).for_each(|byte| *byte = kind);
        bytes
    }

    #[test]
    fn handshake_messages_have_exact_lengths() {
        for (kind, len, expected) in [
            (1, 148, MessageKind::Initiation),
            (2, 92, MessageKind::Response),
            (3, 64, MessageKind::CookieReply),
        ] {
            assert_eq!(classify(&datagram(kind, len)), Some(expected));
            assert_eq!(classify(&datagram(kind, len - 1)), None);
            assert_eq!(classify(&datagram(kind, len + 1)), None);
        }
    }

    #[test]
    fn rule_5_truncated_and_empty_datagrams_are_nothing() {
        assert_eq!(classify(&[]), None);
        (0..32).for_each(|len| assert_eq!(classify(&datagram(4, len)), None));
        assert_eq!(classify(&datagram(4, 32)), Some(MessageKind::Data));
        assert_eq!(classify(&datagram(4, 65_507)), Some(MessageKind::Data));
        (0..16).for_each(|len| assert_eq!(DataHeader::parse(&datagram(4, len)), None));
    }

    #[test]
    fn unknown_types_and_reserved_bytes_are_nothing() {
        for kind in [0, 5, 255] {
            assert!([32, 64, 92, 148].iter().all(|len| classify(&datagram(kind, *len)).is_none()));
        }
        for reserved in 1..4 {
            let mut bytes = datagram(4, 64);
            bytes[reserved] = 1;
            assert_eq!(classify(&bytes), None);
        }
    }

    #[test]
    fn integers_are_little_endian_at_their_places() {
        let mut header = [0xff; 16];
        DataHeader { receiver: 0x0403_0201, counter: 0x0c0b_0a09_0807_0605 }.write(&mut header);
        assert_eq!(header, [4, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);

        let reply = CookieReply { receiver: 0x0403_0201, nonce: [7; 24], cookie_sealed: [8; 32] }.to_bytes();
        assert_eq!(reply[..8], [3, 0, 0, 0, 1, 2, 3, 4]);
        assert!(reply[8..32].iter().all(|byte| *byte == 7) && reply[32..].iter().all(|byte| *byte == 8));
    }

    #[test]
    fn the_macs_close_the_message() {
        let response = Response {
            sender: 1,
            receiver: 2,
            ephemeral: [3; 32],
            empty_sealed: [4; 16],
            mac1: [5; 16],
            mac2: [6; 16],
        };
        let bytes = response.to_bytes();
        assert_eq!((bytes[4], bytes[8], bytes[12], bytes[44]), (1, 2, 3, 4));
        assert_eq!((&bytes[60..76], &bytes[76..]), (&[5; 16][..], &[6; 16][..]));
    }

    proptest! {
        #[test]
        fn messages_parse_back_to_their_bytes(kind in 1u8..4, content in prop::collection::vec(any::<u8>(), 148)) {
            let len = [0, INITIATION_LEN, RESPONSE_LEN, COOKIE_REPLY_LEN][usize::from(kind)];
            let mut bytes = content[..len].to_vec();
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            let initiation = Initiation::parse(&bytes).map(|message| message.to_bytes().to_vec());
            let response = Response::parse(&bytes).map(|message| message.to_bytes().to_vec());
            let reply = CookieReply::parse(&bytes).map(|message| message.to_bytes().to_vec());
            let mut expected = [None, None, None];
            expected[usize::from(kind) - 1] = Some(bytes);
            prop_assert_eq!([initiation, response, reply], expected);
        }

        #[test]
        fn a_data_header_parses_back(receiver: u32, counter: u64) {
            let mut bytes = [0; DATA_OVERHEAD];
            let header = DataHeader { receiver, counter };
            header.write(bytes.first_chunk_mut().unwrap());
            prop_assert_eq!(classify(&bytes), Some(MessageKind::Data));
            prop_assert_eq!(DataHeader::parse(&bytes), Some(header));
        }

        #[test]
        fn garbage_never_panics(kind in 0u8..6, mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            bytes.iter_mut().zip([kind, 0, 0, 0]).for_each(|(byte, start)| *byte = start);
            let _ = (classify(&bytes), DataHeader::parse(&bytes), Initiation::parse(&bytes));
            let _ = (Response::parse(&bytes), CookieReply::parse(&bytes));
        }
    }
}
