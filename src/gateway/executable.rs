//! This very program, to be run again.

use std::io::Result;
use std::path::PathBuf;

/// The link by which this process's program is found even where its file is gone. The kernel then calls the process
/// `exe`.
const LINK: &str = "/proc/self/exe";

/// The environment variable by which a process that goes to the background tells its child so. Nobody else is to inherit it.
pub const BACKGROUND_CHILD: &str = "RINGTUN_BACKGROUND_CHILD";

/// The path of this program, to run it again. An upgrade replaces the file under a tunnel that runs; the tunnel still
/// goes down by the program that brought it up.
///
/// # Errors
///
/// Where the kernel does not give the path.
pub fn path() -> Result<PathBuf> {
    let path = std::env::current_exe()?;
    Ok(if path.exists() { path } else { PathBuf::from(LINK) })
}
