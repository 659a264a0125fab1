//! A load of handshakes for a device whose peers it is: `scripts/handshakes` measures with it how many a second a device answers.
//!
//! ```sh
//! cargo run --release --example initiations -- keys 1000                       # the public keys of the peers, one a line
//! cargo run --release --example initiations -- send 192.0.2.1:51820 "$KEY" 1000 20000
//! ```
//!
//! The second makes 20,000 initiations of 1,000 peers beforehand, then keeps [`WINDOW`] of them unanswered, and prints how many
//! responses came a second.

use ringtun::crypto::random::SystemEntropy;
use ringtun::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use ringtun::noise::cookie::CookieJar;
use ringtun::noise::handshake::{Handshake, Identity};
use ringtun::noise::tai64n::Tai64NClock;
use ringtun::time::Instant;
use ringtun::wire::message::{INITIATION_LEN, MessageKind, classify};
use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant as Clock, SystemTime, UNIX_EPOCH};

/// Initiations under way: far fewer than let a device ask for cookies.
const WINDOW: usize = 64;
/// How long an answer may take; then what is under way is lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// The static key of peer `number`, which is not in the first byte: clamping clears some of that.
fn identity(number: u32) -> Identity {
    let mut bytes = [0x5a; 32];
    bytes[8..12].copy_from_slice(&number.to_le_bytes());
    Identity::new(PrivateKey::from_bytes(bytes))
}

/// `count` initiations, of one peer after the other.
fn initiations(
    responder: PublicKey,
    peers: u32,
    count: u32,
) -> Result<Vec<[u8; INITIATION_LEN]>, Box<dyn Error>> {
    let mut clock = Tai64NClock::default();
    let mut made = Vec::new();
    let mut ends: Vec<_> = (0..peers)
        .map(|number| (identity(number), Handshake::new(responder, SharedSecret([0; 32]))))
        .collect();
    for number in 0..count {
        let (local, handshake) = &mut ends[(number % peers) as usize];
        // The time stamps of a peer's must rise, also from one run to the next.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH)? + Duration::from_millis(number.into());
        let (stamp, now) = (clock.stamp(wall), Instant::from_nanos(1));
        let message = handshake.initiate(local, number, stamp, now, &mut SystemEntropy);
        let mut message = message.map_err(|error| format!("{error:?}"))?;
        CookieJar::new(&responder).seal(&mut message, now);
        made.push(message);
    }
    Ok(made)
}

fn send(to: SocketAddr, responder: PublicKey, peers: u32, count: u32) -> Result<(), Box<dyn Error>> {
    let initiations = initiations(responder, peers, count)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (began, mut waiting, mut answered, mut lost) = (Clock::now(), 0, 0_u32, 0);
    let mut next = initiations.iter();
    loop {
        while waiting < WINDOW
            && let Some(message) = next.next()
        {
            socket.send(message)?;
            waiting += 1;
        }
        if waiting == 0 {
            break;
        }
        let mut bytes = [0; 256];
        match socket.recv(&mut bytes) {
            Ok(len) if classify(&bytes[..len]) == Some(MessageKind::Response) => {
                answered += 1;
                waiting -= 1;
            }
            Ok(_) => {}
            Err(_) => {
                lost += waiting;
                waiting = 0;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64() - if lost > 0 { PATIENCE.as_secs_f64() } else { 0.0 };
    println!("{:.0} handshakes a second, {answered} answered, {lost} lost", f64::from(answered) / seconds);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["keys", peers] => {
            for number in 0..peers.parse()? {
                println!("{}", identity(number).public());
            }
            Ok(())
        }
        ["send", to, key, peers, count] => send(
            to.parse()?,
            key.parse().map_err(|error| format!("{key}: {error}"))?,
            peers.parse()?,
            count.parse()?,
        ),
        _ => Err("expected keys PEERS, or send ADDRESS:PORT KEY PEERS COUNT".into()),
    }
}
