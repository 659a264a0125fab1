//! `genkey`, `genpsk`, `pubkey`: byte for byte what wg(8) prints.

use crate::crypto::random::{Entropy, SystemEntropy};
use crate::crypto::x25519::PrivateKey;
use crate::gateway::Failure;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use zeroize::Zeroizing;

/// Longest input in bytes that `pubkey` reads: a 44-character key and a little white space.
const MAX_KEY_INPUT: u64 = 256;

pub(super) fn genkey() -> Result<(), Failure> {
    let mut bytes = Zeroizing::new([0; 32]);
    SystemEntropy.fill(&mut *bytes);
    print_secret(&Zeroizing::new(PrivateKey::from_bytes(*bytes).to_bytes()))
}

pub(super) fn genpsk() -> Result<(), Failure> {
    let mut bytes = Zeroizing::new([0; 32]);
    SystemEntropy.fill(&mut *bytes);
    print_secret(&bytes)
}

pub(super) fn pubkey() -> Result<(), Failure> {
    let mut text = Zeroizing::new(String::new());
    std::io::stdin()
        .take(MAX_KEY_INPUT)
        .read_to_string(&mut text)
        .map_err(Failure::of("cannot read a private key from standard input"))?;
    let key = PrivateKey::from_base64(text.trim_end()).ok_or_else(|| {
        Failure::new(
            "standard input is not a private key: expected 44 characters of base64, as `ringtun genkey` prints",
        )
    })?;
    println!("{}", STANDARD.encode(key.public().0));
    Ok(())
}

/// Prints a key, after the warning wg(8) gives where standard output is a file that everyone may read.
fn print_secret(key: &[u8; 32]) -> Result<(), Failure> {
    warn_if_world_readable();
    let text = Zeroizing::new(STANDARD.encode(key) + "\n");
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(Failure::of("cannot write the key"))
}

/// Prints wg(8)'s warning where a secret is about to go to a file that everyone may read.
pub(super) fn warn_if_world_readable() {
    let world_readable = rustix::fs::fstat(std::io::stdout().as_fd()).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_mode & 0o007 != 0
    });
    if world_readable {
        eprintln!(
            "Warning: writing to world accessible file.\n\
             Consider setting the umask to 077 and trying again."
        );
    }
}
