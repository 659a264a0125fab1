use super::*;
use crate::sys::refusals;
use crate::sys::sealed::SealedFile;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

/// Runs `test` on a thread of its own, to which everything applies that is a thread's own.
fn apart(test: impl FnOnce() + Send + 'static) {
    if let Err(panic) = std::thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn nothing_is_written_or_run_any_more_but_everything_is_read() {
    apart(|| {
        let scratch = std::env::temp_dir().join(format!("ringtun-confine-{}", std::process::id()));
        std::fs::write(&scratch, "before").unwrap();
        set_no_new_privs(true).unwrap();
        if confine_files().unwrap() == RulesetStatus::NotEnforced {
            return eprintln!("not run: the kernel has no Landlock");
        }
        let refused =
            |outcome: io::Result<()>| outcome.unwrap_err().kind() == io::ErrorKind::PermissionDenied;
        assert!(refused(std::fs::write(&scratch, "after")));
        assert!(refused(std::fs::remove_file(&scratch)));
        assert!(refused(Command::new("/bin/true").status().map(drop)));
        assert_eq!(std::fs::read_to_string(&scratch).unwrap(), "before");
        std::fs::write("/dev/null", "this goes").unwrap();
    });
}

#[test]
fn capabilities_are_given_up_but_those_that_are_needed() {
    apart(|| {
        let had = capabilities(None).unwrap().permitted;
        drop_capabilities(Some(Path::new("/dev/null"))).unwrap();
        let CapabilitySets { effective, permitted, inheritable } = capabilities(None).unwrap();
        assert_eq!((effective, permitted), (had & KEPT, had & KEPT));
        assert!(inheritable.is_empty());
        assert!(drop_capabilities(None).is_ok(), "less is possible, more is not");
        assert_eq!(capabilities(None).unwrap().permitted, had & KEPT);
    });
}

/// What the test program does when it runs itself.
const TASK: &str = "RINGTUN_CONFINED_TASK";

/// Runs this test program with nothing but [`a_task_for_the_filtered`].
fn filtered(task: &str) -> ExitStatus {
    let program = std::env::current_exe().unwrap();
    let name = "gateway::confine::tests::a_task_for_the_filtered";
    Command::new(program).args(["--exact", name, "--test-threads=1"]).env(TASK, task).status().unwrap()
}

#[test]
fn a_task_for_the_filtered() {
    let Ok(task) = std::env::var(TASK) else { return };
    if task == "hear a stranger's signal" {
        refusals::follow().unwrap();
        kill_process(getpid(), Signal::SYS).unwrap();
        return assert_eq!(refusals::count(), 0);
    }
    set_no_new_privs(true).unwrap();
    after_start();
    match &task[..] {
        "run a program" => drop(Command::new("/bin/true").exec()),
        "link a file" => {
            let error = std::fs::hard_link("/proc/self/exe", "/tmp/ringtun-link").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            let number = libc::SYS_linkat as usize;
            assert_eq!((refusals::count(), refusals::list()), (1, vec![(number, 1)]));
        }
        "make a ring" => {
            let refused = io_uring::IoUring::new(8).map(drop).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        }
        "make a file in memory" => {
            assert!(SealedFile::new(b"a state").is_ok(), "of the kind in which a state is handed over");
            let flags = [MemfdFlags::empty(), MemfdFlags::CLOEXEC, MemfdFlags::EXEC | MemfdFlags::CLOEXEC];
            for refused in flags.map(|flags| memfd_create("program", flags)) {
                assert_eq!(refused.unwrap_err(), Errno::PERM);
            }
        }
        _ => {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"datagram", socket.local_addr().unwrap()).unwrap();
            let thread = std::thread::spawn(|| std::fs::read("/proc/self/status").unwrap());
            let status = String::from_utf8(thread.join().unwrap()).unwrap();
            assert!(status.contains("Seccomp:\t2"), "{status}");
        }
    }
}

#[test]
fn what_only_an_intruder_calls_ends_the_process_and_what_nobody_needs_is_refused() {
    assert_eq!(filtered("run a program").signal(), Some(libc::SIGSYS));
    for task in ["link a file", "make a ring", "make a file in memory", "hear a stranger's signal"] {
        assert!(filtered(task).success(), "{task}");
    }
    assert!(filtered("go on").success());
}
