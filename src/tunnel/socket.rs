//! The UAPI socket's place in the file system: `/var/run/wireguard/NAME.sock`, open to its owner alone, as wg(8) expects it.

use crate::sys::error::explain;
use rustix::fs::Mode;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{Error, ErrorKind, Result};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc::Sender;

/// The directory of the sockets of all implementations.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// Pause between two checks for the socket's file where inotify is refused.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Most connections that may wait to be accepted, as in the standard library.
const BACKLOG: i32 = 128;

/// The path of the socket of interface `name`.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.sock"))
}

/// A listening socket, whose file is removed on drop, unless it is another process's.
#[derive(Debug)]
pub struct UapiSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Whether another process goes on with the file.
    is_left: bool,
}

/// Makes the directory of the sockets, where it is not there yet.
///
/// # Errors
///
/// Where the process has no right to do so, or a file is in its place.
pub fn make_directory() -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY).map_err(|error| {
        let what = "the directory of the sockets, cannot be made (is a file in its place?)";
        explain(error, format_args!("{DIRECTORY}, {what}"))
    })
}

impl UapiSocket {
    /// Listens for interface `name`, or adopts `inherited`. A file on which nobody listens any more is replaced.
    ///
    /// # Errors
    ///
    /// Where another process listens on the file, or it cannot be made.
    pub fn listen(name: &str, inherited: Option<OwnedFd>) -> Result<UapiSocket> {
        let path = path(name);
        if let Some(fd) = inherited {
            return Ok(UapiSocket { listener: UnixListener::from(fd), path, is_left: false });
        }
        make_directory()?;
        remove_stale(&path)?;
        let listener = bind(&path).map_err(|error| explain(error, path.display()))?;
        Ok(UapiSocket { listener, path, is_left: false })
    }

    /// Takes the listening socket of another process over, which still has the file. It stays until [`Self::remove`].
    pub fn shared(name: &str, inherited: OwnedFd) -> UapiSocket {
        UapiSocket { listener: UnixListener::from(inherited), path: path(name), is_left: true }
    }

    /// Leaves the file to another process.
    pub fn leave(mut self) {
        self.is_left = true;
    }

    /// Removes the file.
    pub fn remove(mut self) {
        self.is_left = false;
    }

    /// Starts a thread that sends on `removed` once, when the socket's file is removed. That is the way to end a userspace
    /// tunnel where `ip link del` does not exist, and wireguard-go follows it, too. An inherited socket has no file to follow.
    ///
    /// # Errors
    ///
    /// Where the thread cannot be started.
    pub fn follow_removal(&self, removed: Sender<()>) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let path = self.path.clone();
        let watch = watch(&path);
        if let Err(error) = &watch {
            log::info!(
                "no inotify ({error}): checking once a second whether {} is still there",
                path.display()
            );
        }
        std::thread::Builder::new().name("ringtun-sock".into()).spawn(move || {
            wait_for_removal(&path, watch.ok());
            let _ = removed.blocking_send(()); // the slow path may have ended meanwhile
        })?;
        Ok(())
    }

    /// Another handle on the listening socket.
    ///
    /// # Errors
    ///
    /// Where the process may have no more files.
    pub fn listener(&self) -> Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for UapiSocket {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        let _ = std::fs::remove_file(&self.path); // gone already where the interface was removed by hand
    }
}

/// Listens where nobody but the owner may connect. The mode is set on the socket before it has a name, and the kernel makes
/// the file with it (`unix_bind_bsd`), so that there is no moment at which others may connect. A narrower umask would do the
/// same, but the umask is the whole process's.
fn bind(path: &Path) -> Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    rustix::fs::fchmod(&socket, Mode::RWXU)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(OwnedFd::from(socket).into())
}

/// Makes an inotify that reports when the file goes. A filter of system calls may refuse it, or the user has too many of them.
fn watch(path: &Path) -> Result<OwnedFd> {
    let watch = inotify::init(CreateFlags::CLOEXEC)?;
    // When the last link of the file goes, IN_ATTRIB (link count) comes, while the listener keeps the inode alive.
    inotify::add_watch(&watch, path, WatchFlags::ATTRIB | WatchFlags::DELETE_SELF)?;
    Ok(watch)
}

/// Waits until the file is gone.
fn wait_for_removal(path: &Path, watch: Option<OwnedFd>) {
    let mut buffer = [MaybeUninit::uninit(); 512];
    let mut events = watch.map(|watch| inotify::Reader::new(watch, &mut buffer));
    while path.exists() {
        if events.as_mut().is_none_or(|events| events.next().is_err()) {
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

/// Whether a process serves an interface of this name.
pub fn is_served(name: &str) -> bool {
    UnixStream::connect(path(name)).is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_is_its_owners_alone_from_the_first_moment() {
        let path = std::env::temp_dir().join(format!("rt-socket-{}.sock", std::process::id()));
        let listener = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        assert!(UnixStream::connect(&path).is_ok() && listener.accept().is_ok());
        std::fs::remove_file(path).unwrap();
    }
}
