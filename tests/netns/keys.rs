//! `ringtun genkey`, `genpsk` and `pubkey` against `wg`'s.

use crate::implementation::{ringtun, ringtun_itself};
use crate::lab::{find_program, sh, skip};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

fn ready() -> bool {
    if find_program("wg").is_none() {
        skip("wg is not installed");
        return false;
    }
    ringtun_itself()
}

fn run(arguments: &str) -> String {
    sh(&format!("{} {arguments}", ringtun().display())).unwrap_or_else(|error| panic!("{error}"))
}

/// A key as it is printed: one line, 32 bytes.
fn bytes(line: &str) -> Vec<u8> {
    let key = STANDARD.decode(line.strip_suffix('\n').expect("a whole line")).expect("base64");
    assert_eq!(key.len(), 32, "{line}");
    key
}

#[test]
fn genkey_makes_clamped_keys_that_differ() {
    if !ready() {
        return;
    }
    let (first, second) = (run("genkey"), run("genkey"));
    assert_ne!(first, second);
    for key in [bytes(&first), bytes(&second)] {
        // RFC 7748, section 5: what wg genkey does.
        assert_eq!((key[0] & 7, key[31] & 0xc0), (0, 0x40));
    }
}

#[test]
fn genpsk_makes_keys_that_differ() {
    if !ready() {
        return;
    }
    let keys: Vec<String> = (0..16).map(|_| run("genpsk")).collect();
    assert!(keys.iter().enumerate().all(|(at, key)| bytes(key).len() == 32 && !keys[..at].contains(key)));
    assert!(keys.iter().any(|key| bytes(key)[0] & 7 != 0), "preshared keys are not clamped");
}

#[test]
fn pubkey_agrees_with_wg() {
    if !ready() {
        return;
    }
    for make in ["wg genkey", "wg genpsk"] {
        for _ in 0..8 {
            let private = sh(make).expect("wg").trim().to_owned();
            let theirs = sh(&format!("echo {private} | wg pubkey")).expect("wg pubkey");
            assert_eq!(
                sh(&format!("echo {private} | {} pubkey", ringtun().display())).as_ref(),
                Ok(&theirs),
                "{private}"
            );
        }
    }
}

#[test]
fn pubkey_refuses_what_is_no_key() {
    if !ready() {
        return;
    }
    let private = sh("wg genkey").expect("wg").trim().to_owned();
    let long = format!("{private}{private}");
    for input in ["", "short", &private[1..], &long, &private.replace('=', "A"), "\u{fffd}"] {
        let done = sh(&format!("printf '%s\\n' '{input}' | {} pubkey", ringtun().display()));
        let error = done.expect_err(input);
        assert!(error.contains("exit status: 1") && !error.contains("panicked"), "{input}: {error}");
    }
}
