//! The UAPI socket's place in the file system: /var/run/wireguard/NAME.sock, its owner's alone, as wg(8) expects it.

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

/// Where the sockets of all implementations are.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// Between two looks for the socket's file where inotify is refused.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Connections that may wait to be accepted, as in the standard library.
const BACKLOG: i32 = 128;

/// Where the socket of interface `name` is.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.sock"))
}

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
        let path = path(name);
        if let Some(fd) = inherited {
            return Ok(UapiSocket { listener: UnixListener::from(fd), path });
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY).map_err(|error| {
            explain(
                error,
                format_args!(
                    "{DIRECTORY}, the directory of the sockets, cannot be made (is a file in its place?)"
                ),
            )
        })?;
        remove_stale(&path)?;
        let listener = bind(&path).map_err(|error| explain(error, path.display()))?;
        Ok(UapiSocket { listener, path })
    }

    /// Starts a thread that says so once when the socket's file is removed: the way to end a userspace tunnel where `ip link del`
    /// does not exist, which wireguard-go follows, too. An inherited socket has no file to follow.
    pub fn follow_removal(&self, removed: Sender<()>) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let path = self.path.clone();
        let watch = watch(&path);
        if let Err(error) = &watch {
            log::info!("no inotify ({error}): looking for {} every second instead", path.display());
        }
        std::thread::Builder::new().name("ringtun-sock".into()).spawn(move || {
            wait_for_removal(&path, watch.ok());
            let _ = removed.blocking_send(()); // the slow path may have ended meanwhile
        })?;
        Ok(())
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

/// Listens where nobody but the owner may connect. The mode is set on the socket before it has a name: the kernel makes the
/// file with it (`unix_bind_bsd`), so that there is no moment at which others may connect. To narrow the umask meanwhile would
/// do the same, but the umask is the whole process's.
fn bind(path: &Path) -> Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    rustix::fs::fchmod(&socket, Mode::RWXU)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(OwnedFd::from(socket).into())
}

/// An inotify that speaks when the file goes. Refused by a filter of system calls, or where the user has too many of them.
fn watch(path: &Path) -> Result<OwnedFd> {
    let watch = inotify::init(CreateFlags::CLOEXEC)?;
    // The last link of the file goes: IN_ATTRIB (link count) comes while the listener keeps the inode alive.
    inotify::add_watch(&watch, path, WatchFlags::ATTRIB | WatchFlags::DELETE_SELF)?;
    Ok(watch)
}

/// Returns once the file is not there any more.
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
