//! This very program, to be run again.

use serde::{Deserialize, Serialize};
use std::io::Result;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The link by which this process's program is found even where its file is gone. The kernel then calls the process
/// `exe`.
const LINK: &str = "/proc/self/exe";

/// The environment variable by which a process that goes to the background tells its child so. Nobody else is to inherit it.
pub const BACKGROUND_CHILD: &str = "RINGTUN_BACKGROUND_CHILD";

/// The word by which such a child says on its standard output that all is there.
pub const READY: &[u8] = b"ready\n";

/// What the kernel puts behind the path of a file that is gone, or was replaced.
const GONE: &str = " (deleted)";

/// The file of a program, as the kernel knows files: a replaced one is another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProgramFile {
    device: u64,
    inode: u64,
}

impl ProgramFile {
    /// That of the program at `path`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn at(path: &Path) -> Result<ProgramFile> {
        let file = path.metadata()?;
        Ok(ProgramFile { device: file.dev(), inode: file.ino() })
    }

    /// That of this process.
    pub fn own() -> Option<ProgramFile> {
        ProgramFile::at(Path::new(LINK)).ok()
    }
}

/// The program that stands where this one stood when it was started, if that is another: a later one, as a rule.
pub fn replacement() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?;
    let place = path.to_str()?.strip_suffix(GONE).map(PathBuf::from)?;
    (!path.exists() && place.exists()).then_some(place)
}

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
