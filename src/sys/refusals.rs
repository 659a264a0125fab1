//! System calls that a seccomp filter refuses with SECCOMP_RET_TRAP: they fail with EPERM, and are counted.
//!
//! The kernel sends SIGSYS to the thread that made the call (kernel `__seccomp_filter`). The handler puts the error where the
//! call would have put it, so that the thread goes on as after any other refused call.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Above all numbers of system calls that Linux has. What is beyond, as those of x86's other tables are, counts as the last.
const CALLS: usize = 1024;

/// How often which was refused. A signal handler has nothing but statics.
static REFUSED: [AtomicU64; CALLS] = [const { AtomicU64::new(0) }; CALLS];
static ALL: AtomicU64 = AtomicU64::new(0);

/// How many system calls of this process were refused in all.
pub fn count() -> u64 {
    ALL.load(Relaxed)
}

/// The numbers of the system calls that were refused, each with how often it was.
pub fn list() -> Vec<(usize, u64)> {
    let all = REFUSED.iter().map(|refused| refused.load(Relaxed)).enumerate();
    all.filter(|&(_, times)| times > 0).collect()
}

/// Has refused calls counted from now on. Returns false where this is not known for the architecture: then a filter must refuse by
/// itself (SECCOMP_RET_ERRNO).
///
/// # Errors
///
/// What sigaction(2) says.
#[cfg(feature = "cli")]
pub fn follow() -> std::io::Result<bool> {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        trap::install().map(|()| true)
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Ok(false)
    }
}

#[cfg(all(feature = "cli", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod trap {
    use super::{ALL, CALLS, REFUSED, Relaxed};
    use libc::{c_int, c_void, siginfo_t, ucontext_t};

    /// SYS_SECCOMP of asm-generic/siginfo.h: the signal is a filter's, and nobody's who called kill(2).
    const SYS_SECCOMP: c_int = 1;

    pub(super) fn install() -> std::io::Result<()> {
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = refuse;
        // SAFETY: sigaction is plain data for which all zeros is a valid value, an empty mask among it.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: the action is valid for the call, and its handler does only what a signal handler may.
        match unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// Answers a refused call. It touches nothing but atomics and the registers that the kernel restores after it.
    extern "C" fn refuse(_: c_int, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: with SA_SIGINFO the kernel gives a handler both, for as long as it runs.
        let (info, context) = unsafe { (&*info, &mut *context.cast::<ucontext_t>()) };
        if info.si_code != SYS_SECCOMP {
            return;
        }
        let (number, result) = registers(context);
        let call = usize::try_from(number).map_or(CALLS - 1, |number| number.min(CALLS - 1));
        *result = -i64::from(libc::EPERM) as _;
        REFUSED[call].fetch_add(1, Relaxed);
        ALL.fetch_add(1, Relaxed);
    }

    /// The number of the call, which the kernel has put back (`syscall_rollback`), and the register of its result.
    #[cfg(target_arch = "x86_64")]
    fn registers(context: &mut ucontext_t) -> (i64, &mut i64) {
        let result = &mut context.uc_mcontext.gregs[libc::REG_RAX as usize];
        (*result, result)
    }

    /// The number of the call, and the register of its result.
    #[cfg(target_arch = "aarch64")]
    fn registers(context: &mut ucontext_t) -> (i64, &mut u64) {
        let registers = &mut context.uc_mcontext.regs;
        (registers[8] as i64, &mut registers[0])
    }
}
