//! What a run is measured on: the host, and what the program got from it.

use super::lab::OPTIONS;
use super::report::{BenchHost, BenchProgram};
use crate::crypto::lanes::Kernel;
use crate::device::status::Status;
use crate::io::probe::tun_features;
use crate::io::udp::UdpFeatures;
use crate::sys::group;
use crate::tunnel::cores::core_count;
use std::fs::read_to_string;

/// The host.
pub(super) fn host() -> BenchHost {
    let cores = core_count();
    BenchHost {
        cpu: cpu_model(&read_to_string("/proc/cpuinfo").unwrap_or_default()),
        architecture: std::env::consts::ARCH.to_owned(),
        cores,
        cpu_quota: group::cpu_quota().filter(|quota| quota.is_below(cores)).map(|quota| quota.to_string()),
        kernel: read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
    }
}

/// The model that the text of `/proc/cpuinfo` names. On aarch64 it names but numbers.
fn cpu_model(cpuinfo: &str) -> String {
    let value = |key: &str| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.find_map(|(name, value)| (name.trim() == key).then(|| value.trim().to_owned()))
    };
    let numbers = || {
        let (implementer, part) = (value("CPU implementer")?, value("CPU part")?);
        Some(format!("implementer {implementer}, part {part}"))
    };
    value("model name").or_else(numbers).or_else(|| value("Model")).unwrap_or_else(|| "unknown".into())
}

/// What the program got, of which a running tunnel tells a part.
pub(super) fn program(running: &Status) -> BenchProgram {
    // A running tunnel shows that there are such devices: what cannot be probed is left out.
    let offloads = tun_features().map(|features| features.offloads).unwrap_or_default();
    let tun = [
        ("checksums", offloads.csum),
        ("TSO", offloads.tso),
        ("USO", offloads.uso),
        ("UDP tunnels", offloads.tunnels),
    ];
    let UdpFeatures { gso, gro } = UdpFeatures::probe();
    let steering = [("tun", running.tun_steering), ("udp", running.udp_steering == Some(true))];
    let set = OPTIONS.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
    BenchProgram {
        version: running.version.clone(),
        build: if cfg!(debug_assertions) { "unoptimized" } else { "optimized" }.to_owned(),
        aead: aead().to_owned(),
        io: running.io.clone(),
        workers: running.workers.len(),
        tun_offloads: those(&tun),
        udp_offloads: those(&[("GSO", gso), ("GRO", gro)]),
        steering: those(&steering),
        environment: set.collect(),
    }
}

fn those(all: &[(&str, bool)]) -> Vec<String> {
    all.iter().filter(|(_, there)| *there).map(|(name, _)| (*name).to_owned()).collect()
}

fn aead() -> &'static str {
    match Kernel::available().next() {
        Some(Kernel::Avx512) => "avx512",
        Some(Kernel::Avx2) => "avx2",
        None => "ring",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_the_name_or_the_numbers_that_the_kernel_gives() {
        let x86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n";
        assert_eq!(cpu_model(x86), "AMD EPYC");
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n";
        assert_eq!(cpu_model(arm), "implementer 0x41, part 0xd0c");
        assert_eq!(cpu_model("Model\t\t: Raspberry Pi 4\n"), "Raspberry Pi 4");
        assert_eq!(cpu_model(""), "unknown");
    }

    #[test]
    fn the_host_is_described() {
        let host = host();
        assert!(host.cores >= 1 && !host.kernel.is_empty() && !host.cpu.is_empty(), "{host:?}");
    }
}
