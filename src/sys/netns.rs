//! A network namespace for one test: its own thread, its own loopback, gone with the thread.

use std::process::Command;
use std::thread;
use std::time::Duration;

/// How often [`eventually`] tries, a millisecond apart.
const LOOKS: usize = 5000;

/// Returns the first result of `look` that is not `None`. What was sent takes a moment to arrive. What was closed takes a
/// moment to be gone, as a command that another test is just starting holds duplicates of all files until it is executed.
pub(crate) fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..LOOKS {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("it did not come")
}

/// Runs `test` on a thread in a fresh network namespace whose loopback is up. Commands that it starts run there, too. Without
/// the right to make namespaces it says so and runs nothing: such tests need root.
pub(crate) fn in_netns(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        // SAFETY: unshare takes no pointers; CLONE_NEWNET changes the calling thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "unshare: {error}");
            eprintln!("not run: a network namespace needs root");
            return;
        }
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs ip(8) with these words and returns what it printed.
pub(crate) fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("ip(8) is installed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("ip(8) prints UTF-8")
}
