//! The fuzz targets over their corpus, and over random damage to it. What libFuzzer found once never comes back, and every
//! run tries a little more. `RINGTUN_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::expect_used)] // the helpers of a test are tests

mod targets;

use ringtun::crypto::random::Entropy;
use ringtun::sim::rng::SimRng;
use std::path::Path;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// A few bytes changed, cut out, doubled, or the end lost.
fn damage(entry: &[u8], rng: &mut SimRng) -> Vec<u8> {
    let mut bytes = entry.to_vec();
    for _ in 0..=rng.next_u32() % 4 {
        if bytes.is_empty() {
            return bytes;
        }
        let at = rng.next_u32() as usize % bytes.len();
        match rng.next_u32() % 4 {
            0 => bytes[at] = rng.next_u32() as u8,
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..(at + 1 + rng.next_u32() as usize % 8).min(bytes.len()))),
            _ => bytes.insert(at, [0, 1, 0x7f, 0x80, 0xff, b'\n', b'='][rng.next_u32() as usize % 7]),
        }
    }
    bytes
}

fn seed() -> u64 {
    let given = std::env::var("RINGTUN_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        u64::from(std::process::id()) ^ std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
    });
    eprintln!("RINGTUN_SEED={seed}");
    seed
}

fn run(name: &str) {
    let target = targets::TARGETS.iter().find(|target| target.name == name).expect("a target");
    let entries = corpus(name);
    assert!(!entries.is_empty(), "tests/fuzz/corpus/{name} is empty");
    entries.iter().for_each(|entry| (target.run)(entry));
    // What the corpus reaches is asked, and nothing that chance adds to it.
    if std::env::var_os("RINGTUN_FUZZ_CORPUS_ONLY").is_some() {
        return;
    }
    let mut rng = SimRng::new(seed());
    for _ in 0..target.tries {
        let entry = rng.pick(&entries).expect("an entry");
        (target.run)(&damage(entry, &mut rng));
    }
    for _ in 0..target.tries / 4 {
        let mut bytes = vec![0; rng.next_u32() as usize % 300];
        rng.fill(&mut bytes);
        (target.run)(&bytes);
    }
}

macro_rules! replay {
    ($($name:ident),+) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })+

        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),+];
            assert!(targets::TARGETS.iter().all(|target| run.contains(&target.name)) && run.len() == targets::TARGETS.len());
        }
    };
}

replay!(
    message,
    handshake,
    session,
    ip,
    tun_frame,
    coalesce,
    uapi,
    device,
    steering,
    config,
    openbsd,
    answer,
    firewall,
    control_data,
    state
);

#[test]
fn every_target_has_a_floor() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/coverage.txt");
    let table = std::fs::read_to_string(table).unwrap();
    let named: Vec<&str> =
        table.lines().filter_map(|line| line.split(' ').next()).filter(|name| *name != "#").collect();
    let targets: Vec<&str> = targets::TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(named, targets);
}
