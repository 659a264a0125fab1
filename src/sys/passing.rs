//! Text and files from one process to another, through a UNIX stream socket (unix(7), SCM_RIGHTS).
//!
//! A text is made of lines, none of them empty, and ends with an empty one. If there are files, the first line says how many. Each
//! process waits for the other no longer than it wants to, whether the socket is blocking or not.

use crate::sys::error::{MORE_FILES, explain, invalid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Most bytes of a text.
const MAX_TEXT: usize = 256 << 10;
/// Most files that come with a text: what 256 workers have, and some.
const MAX_FILES: usize = 2048;
/// Files of one message. The kernel takes 253 (SCM_MAX_FD).
const BATCH: usize = 64;
/// What the first line begins with, if there are files.
const COUNT: &str = "files=";

/// A text, and the files that came with it.
#[derive(Debug, Default)]
pub(crate) struct Parcel {
    /// The lines, each with its end.
    pub(crate) text: String,
    /// The files, in the order in which they were sent. Each is closed upon exec.
    pub(crate) files: Vec<OwnedFd>,
}

impl Parcel {
    /// What follows `key` and `=` in the first line that begins so.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }
}

/// Sends the lines of `text`, each with its end, and the files.
///
/// # Errors
///
/// EPIPE where the other end is gone, `TimedOut` where it does not read.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    text: &str,
    files: &[BorrowedFd<'_>],
    until: Instant,
) -> Result<()> {
    let count = if files.is_empty() { String::new() } else { format!("{COUNT}{}\n", files.len()) };
    let whole = format!("{count}{text}\n");
    let (first, others) = files.split_at(files.len().min(BATCH));
    let mut left = whole.as_bytes();
    let mut with = first;
    while !left.is_empty() {
        let sent = send_some(socket, left, with, until)?;
        left = left.get(sent..).unwrap_or_default();
        with = &[];
    }
    for batch in others.chunks(BATCH) {
        // Files go along with a byte at least.
        send_some(socket, b"\n", batch, until)?;
    }
    Ok(())
}

fn send_some(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    files: &[BorrowedFd<'_>],
    until: Instant,
) -> Result<usize> {
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(invalid("too many files for a message"));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(socket, PollFlags::OUT, until)?,
            sent => return Ok(sent?),
        }
    }
}

/// Receives a text, and the files that come with it.
///
/// # Errors
///
/// `UnexpectedEof` where the other end closed before, `TimedOut` where it does not speak, `InvalidData` where what it says is no such
/// text, and EMFILE where this process may not have so many files.
pub(crate) fn receive(socket: BorrowedFd<'_>, until: Instant) -> Result<Parcel> {
    let mut bytes = Vec::new();
    let mut files = Vec::new();
    loop {
        if let Some(end) = end(&bytes) {
            let text = str::from_utf8(&bytes[..end]).map_err(|_| malformed())?;
            let (count, text) = counted(text)?;
            if files.len() >= count {
                // A file more than were announced is as good as none.
                files.truncate(count);
                return Ok(Parcel { text: text.to_owned(), files });
            }
        }
        if bytes.len() > MAX_TEXT || files.len() > MAX_FILES {
            return Err(malformed());
        }
        receive_some(socket, &mut bytes, &mut files, until)?;
    }
}

fn receive_some(
    socket: BorrowedFd<'_>,
    bytes: &mut Vec<u8>,
    files: &mut Vec<OwnedFd>,
    until: Instant,
) -> Result<()> {
    let mut piece = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = match recvmsg(socket, &mut [IoSliceMut::new(&mut piece)], &mut control, flags) {
        Err(Errno::INTR) => return Ok(()),
        Err(Errno::AGAIN) => return wait(socket, PollFlags::IN, until),
        received => received?,
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            files.extend(some);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        let error = Error::from_raw_os_error(libc::EMFILE);
        return Err(explain(error, format!("not all files that were handed over can be had ({MORE_FILES})")));
    }
    if received.bytes == 0 {
        return Err(Error::new(ErrorKind::UnexpectedEof, "the other process closed the connection"));
    }
    bytes.extend_from_slice(&piece[..received.bytes]);
    Ok(())
}

/// The length of the text, once its empty line has come.
fn end(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        b'\n' => Some(0),
        _ => bytes.windows(2).position(|pair| pair == b"\n\n").map(|at| at + 1),
    }
}

/// The number of files, and the text behind it.
fn counted(text: &str) -> Result<(usize, &str)> {
    let Some(rest) = text.strip_prefix(COUNT) else { return Ok((0, text)) };
    let (count, text) = rest.split_once('\n').ok_or_else(malformed)?;
    let count = count.parse().ok().filter(|&count| count <= MAX_FILES).ok_or_else(malformed)?;
    Ok((count, text))
}

fn malformed() -> Error {
    Error::new(ErrorKind::InvalidData, "the other process says what cannot be understood")
}

/// Waits until the socket can be read or written, or nobody is at the other end.
fn wait(socket: BorrowedFd<'_>, what: PollFlags, until: Instant) -> Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    if !poll_for(socket, what, left)? && left.is_zero() {
        return Err(Error::new(ErrorKind::TimedOut, "the other process does not answer in time"));
    }
    Ok(())
}

/// Waits for no longer than `limit` until the file can be read or written. True where it can.
///
/// # Errors
///
/// What poll(2) says. A signal only ends the waiting.
pub(crate) fn poll_for(file: BorrowedFd<'_>, what: PollFlags, limit: Duration) -> Result<bool> {
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    match poll(&mut [PollFd::from_borrowed_fd(file, what)], Some(&limit)) {
        Err(Errno::INTR) => Ok(false),
        ready => Ok(ready? > 0),
    }
}

/// The process at the other end of a connection, as it was when it connected (SO_PEERCRED).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OtherEnd {
    /// The process. 0 where it cannot be seen from here.
    pub(crate) pid: u32,
    /// Its user, in the way of thinking of this user namespace.
    pub(crate) uid: u32,
}

impl OtherEnd {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// Where `connection` is no connection of a UNIX socket.
    pub(crate) fn of(connection: BorrowedFd<'_>) -> Result<OtherEnd> {
        let mut asker = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        let (socket, out) = (connection.as_raw_fd(), (&raw mut asker).cast());
        // SAFETY: `out` is valid for `len` bytes of writing, and both outlive the call.
        let status =
            unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, out, &raw mut len) };
        match status {
            0 => Ok(OtherEnd { pid: asker.pid.cast_unsigned(), uid: asker.uid }),
            _ => Err(Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    /// A file with a number in it.
    fn numbered(number: usize) -> File {
        let file = rustix::fs::memfd_create("rt-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(file);
        write!(file, "{number}").unwrap();
        file.rewind().unwrap();
        file
    }

    fn number(file: OwnedFd) -> usize {
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).unwrap();
        text.parse().unwrap()
    }

    #[test]
    fn text_and_files_arrive_in_order_however_many_there_are() {
        let (here, there) = UnixStream::pair().unwrap();
        for count in [0, 1, BATCH, BATCH + 1, 3 * BATCH + 5] {
            let files: Vec<File> = (0..count).map(numbered).collect();
            let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
            let text = format!("offer={}\nerrno=0\n", "x".repeat(count * 100));
            std::thread::scope(|scope| {
                scope.spawn(|| send(here.as_fd(), &text, &borrowed, soon()).unwrap());
                let parcel = receive(there.as_fd(), soon()).unwrap();
                assert!(parcel.text == text && parcel.value("errno") == Some("0"), "{count}");
                let flags = parcel.files.iter().map(|file| rustix::io::fcntl_getfd(file).unwrap());
                assert!(flags.into_iter().all(|flags| flags.contains(rustix::io::FdFlags::CLOEXEC)));
                let numbers: Vec<usize> = parcel.files.into_iter().map(number).collect();
                assert_eq!(numbers, (0..count).collect::<Vec<_>>());
            });
        }
        send(here.as_fd(), "", &[], soon()).unwrap();
        assert_eq!(receive(there.as_fd(), soon()).unwrap().text, "");
    }

    #[test]
    fn whoever_is_silent_or_gone_or_talks_nonsense_is_noticed() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let kind = |outcome: Result<Parcel>| outcome.unwrap_err().kind();
        let moment = Instant::now() + Duration::from_millis(20);
        assert_eq!(kind(receive(here.as_fd(), moment)), ErrorKind::TimedOut);
        for nonsense in ["files=x\n\n", "files=9999\n\n", "\u{e9}files=1\n\n"] {
            there.write_all(nonsense.as_bytes()).unwrap();
        }
        assert_eq!(kind(receive(here.as_fd(), soon())), ErrorKind::InvalidData);
        let (here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"half").unwrap();
        drop(there);
        assert_eq!(kind(receive(here.as_fd(), soon())), ErrorKind::UnexpectedEof);
        assert_eq!(send(here.as_fd(), "x\n", &[], soon()).unwrap_err().raw_os_error(), Some(libc::EPIPE));
        let (here, _there) = UnixStream::pair().unwrap();
        let long = "x".repeat(8 << 20);
        assert_eq!(send(here.as_fd(), &long, &[], moment).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn the_asker_is_this_process() {
        let (here, _there) = UnixStream::pair().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(OtherEnd::of(here.as_fd()).unwrap(), OtherEnd { pid: std::process::id(), uid });
        assert!(OtherEnd::of(File::open("/dev/null").unwrap().as_fd()).is_err());
    }
}
