//! The UAPI socket's place in the file system: /var/run/wireguard/NAME.sock, umask 077, as wg(8) expects it.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

const DIRECTORY: &str = "/var/run/wireguard";

/// A listening socket; its file is removed on drop.
#[derive(Debug)]
pub struct UapiSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl UapiSocket {
    /// Listens for interface `name`, or adopts `inherited`. A file that nobody listens on any more is replaced; one that is
    /// in use is an error.
    pub fn listen(name: &str, inherited: Option<OwnedFd>) -> Result<UapiSocket> {
        let path = Path::new(DIRECTORY).join(format!("{name}.sock"));
        if let Some(fd) = inherited {
            return Ok(UapiSocket { listener: UnixListener::from(fd), path });
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
        remove_stale(&path)?;
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let listener = UnixListener::bind(&path);
        rustix::process::umask(before);
        Ok(UapiSocket { listener: listener?, path })
    }

    /// Another handle on the listener.
    pub fn listener(&self) -> Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for UapiSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // gone already where the interface was removed by hand
    }
}

fn remove_stale(path: &Path) -> Result<()> {
    if UnixStream::connect(path).is_ok() {
        return Err(Error::new(
            ErrorKind::AddrInUse,
            format!("{} is in use: another process serves an interface of this name", path.display()),
        ));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
