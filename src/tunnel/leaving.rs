//! Interfaces whose process is gone, which are about to go, too.

use crate::tunnel::socket;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the interface of a process that is gone may take to go.
const LEAVING: Duration = Duration::from_secs(3);
/// How long it may take while its socket still accepts connections: then it is probably there to stay.
const LEAVING_SERVED: Duration = Duration::from_millis(300);
/// Pause between two checks whether the interface is gone.
pub const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Whether the interface `name`, waited for since `begun`, may still go by itself. One that is no TUN device does not, and
/// one that a process serves hardly does.
pub fn may_go(name: &str, begun: Instant) -> bool {
    let interface = Path::new("/sys/class/net").join(name);
    // In this order: one that goes in between is not taken for another kind of interface.
    if !interface.join("tun_flags").exists() && interface.exists() {
        return false;
    }
    begun.elapsed() < if socket::is_served(name) { LEAVING_SERVED } else { LEAVING }
}
