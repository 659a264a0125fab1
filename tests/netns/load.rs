//! What must not grow under load.

use crate::implementation::{RINGTUN_TWO, ringtun_itself};
use crate::lab::eventually;
use crate::pair::{A, B, Pair};
use std::time::Duration;

const WARM_UP: Duration = Duration::from_secs(10);
const LOAD: Duration = Duration::from_secs(60);
/// Pages that the allocator takes late, and the kernel's batching of its own counts; far below a leaked packet in ten.
const TOLERANCE_KIB: u64 = 8 * 1024;

#[test]
fn a_minute_of_load_grows_no_memory_and_spawns_no_kernel_workers() {
    if !ringtun_itself() {
        return;
    }
    let Some(pair) = Pair::connected(RINGTUN_TWO, RINGTUN_TWO) else { return };
    let _server = pair[B].host.iperf3_server();
    let target = pair[B].inner(crate::pair::V4);
    eventually("the server listens", Duration::from_secs(5), || {
        pair[A].host.try_run(&format!("iperf3 -c {target} -n 1K")).is_ok()
    });
    let seconds = (WARM_UP + LOAD).as_secs().to_string();
    let mut client = pair[A].host.start("iperf3", &["-c", target, "-P", "4", "--bidir", "-t", &seconds]);
    let processes = [A, B].map(|side| pair[side].device.as_ref().and_then(|device| device.process.as_ref()));
    let processes = processes.map(|process| process.expect("a userspace implementation"));
    std::thread::sleep(WARM_UP);
    let warm = processes.map(|process| process.status_kib("VmRSS:"));
    let threads = processes.map(|process| process.threads().len());
    while client.ended().is_none() {
        for process in processes {
            let names = process.threads();
            assert!(!names.iter().any(|name| name.starts_with("iou-wrk")), "{names:?}");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let said = client.said();
    assert!(
        client.ended().is_some_and(|status| status.success()) && said.contains("receiver"),
        "{said}{}",
        pair.tell()
    );
    for (at, process) in processes.into_iter().enumerate() {
        let end = process.status_kib("VmRSS:");
        assert!(end <= warm[at] + TOLERANCE_KIB, "{} KiB after the warm-up, {end} KiB at the end", warm[at]);
        assert_eq!(process.threads().len(), threads[at], "{:?}", process.threads());
    }
}
