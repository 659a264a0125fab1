//! libFuzzer over every target: `RINGTUN_FUZZ_TARGET` names one; see `scripts/fuzz`.

#![no_main]

#[path = "../../targets/mod.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("RINGTUN_FUZZ_TARGET").unwrap_or_default();
    let found = targets::TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("RINGTUN_FUZZ_TARGET={name} names no target")).run
});

fuzz_target!(|data: &[u8]| TARGET(data));
