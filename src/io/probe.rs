//! The abilities of TUN devices on this host, probed where nobody is disturbed.

use crate::index::WorkerCount;
use crate::io::steer::TunSteering;
use crate::io::tun::{Tun, TunConfig, TunOffloads};
use crate::sys::namespace::in_new_network;
use std::io::Result;
use std::os::fd::AsFd;

/// The abilities that the kernel showed.
#[derive(Debug)]
pub struct TunFeatures {
    /// Offloads of the device.
    pub offloads: TunOffloads,
    /// Whether the queues can be steered by an eBPF program. The error says why not.
    pub steering: Result<()>,
}

/// Makes a TUN device, asks it, and removes it again, in a network namespace of a thread of its own. Interfaces, addresses
/// and routes of this host stay as they are, and nobody gets a notification.
///
/// # Errors
///
/// Where the process lacks CAP_SYS_ADMIN or CAP_NET_ADMIN, or there can be no such device.
pub fn tun_features() -> Result<TunFeatures> {
    in_new_network("ringtun-probe", || {
        let config =
            TunConfig { name: "ringtun-probe".into(), queues: WorkerCount::ONE, mtu: 1420, offloads: true };
        let tun = Tun::create(&config)?;
        let steering = TunSteering::attach(tun.queues[0].as_fd(), WorkerCount::ONE).map(drop);
        Ok(TunFeatures { offloads: tun.offloads, steering })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_leaves_no_interface_behind_in_this_namespace() {
        match tun_features() {
            Ok(features) => assert!(features.offloads.csum || !features.offloads.tso),
            Err(error) => eprintln!("not run: {error}"),
        }
        assert!(!std::path::Path::new("/sys/class/net/ringtun-probe").exists());
    }
}
