//! The control socket's connections: who may stay, and what all of them together may hold.
//!
//! A connection that does nothing gives way when another waits for its place. One that left an operation unfinished gives
//! way when another needs its place or its memory. The end of the stream says so to it.

use super::followers::WAITING_LINES;
use super::jobs::Request;
use super::stream::{READ_SIZE, Stream};
use crate::device::uapi::{self, ENOMEM, Framer, MAX_OPERATION, Operation};
use crate::sys::error::MORE_FILES;
use std::cell::{Cell, RefCell};
use std::io::{Error, ErrorKind, Result};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};
use zeroize::{Zeroize, Zeroizing};

/// Most connections that are served at once; further ones wait until one ends or gives way.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// Pause before looking again for a connection that may be ended.
const RECHECK: Duration = Duration::from_millis(50);
/// Pause before another connection is accepted after one could not be: a want of file descriptors does not pass at once.
const RETRY: Duration = Duration::from_millis(100);
/// Most pieces of an answer that wait for the client to read.
const PIECES: usize = 2;
/// Bytes that are read of what a follower says.
const LAST_WORDS: usize = 16;

/// What all connections together may do, and for how long one may be silent while others wait.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    connections: usize,
    /// Most bytes that unfinished and unanswered operations may hold.
    held: usize,
    /// Time for which a connection that has said nothing yet, or nothing more, keeps its place.
    idle: Duration,
    /// Time for which a connection in the middle of an operation or of an answer keeps its place without progress.
    stalled: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: MAX_CONNECTIONS,
            // Room for two of the longest.
            held: 2 * (MAX_OPERATION + READ_SIZE),
            idle: Duration::from_millis(250),
            stalled: Duration::from_secs(2),
        }
    }
}

/// What a connection is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It is between two operations.
    Idle,
    /// Some bytes of an operation came, or the client is to read an answer.
    Midway,
    /// The slow path has its operation, and the client waits.
    Ours,
}

struct Connection {
    state: Cell<State>,
    since: Cell<Instant>,
    held: Cell<usize>,
    /// A handle to the socket beside the stream's, to end it while somebody reads or writes there.
    socket: UnixStream,
}

impl Connection {
    fn is(&self, state: State) {
        self.state.set(state);
        self.since.set(Instant::now());
    }

    /// For how long it has been such that another may take its place. `None` where none may.
    fn overdue(&self, limits: &Limits, now: Instant) -> Option<Duration> {
        let grace = match self.state.get() {
            State::Idle => limits.idle,
            State::Midway => limits.stalled,
            State::Ours => return None,
        };
        (now - self.since.get()).checked_sub(grace)
    }
}

/// All connections.
#[derive(Default)]
pub(super) struct Connections {
    limits: Limits,
    open: RefCell<Vec<Rc<Connection>>>,
    /// Notified when a place or some bytes were given back.
    freed: Notify,
}

/// A place in use, given back on drop.
struct Permit(Rc<Connections>, Rc<Connection>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.open.borrow_mut().retain(|connection| !Rc::ptr_eq(connection, &self.1));
        self.0.freed.notify_waiters();
    }
}

impl Connections {
    async fn acquire(self: &Rc<Self>, stream: &tokio::net::UnixStream) -> Result<Permit> {
        let socket = UnixStream::from(stream.as_fd().try_clone_to_owned()?);
        while self.open.borrow().len() >= self.limits.connections {
            self.evict(|_| true);
            self.wait().await;
        }
        let connection = Connection {
            state: Cell::new(State::Idle),
            since: Cell::new(Instant::now()),
            held: Cell::new(0),
            socket,
        };
        let connection = Rc::new(connection);
        self.open.borrow_mut().push(Rc::clone(&connection));
        Ok(Permit(Rc::clone(self), connection))
    }

    async fn wait(&self) {
        let _ = tokio::time::timeout(RECHECK, self.freed.notified()).await;
    }

    /// Ends the connection that has been overdue for longest, the idle first.
    fn evict(&self, which: impl Fn(&Connection) -> bool) {
        let (now, open) = (Instant::now(), self.open.borrow());
        let overdue = open.iter().filter(|connection| which(connection)).filter_map(|connection| {
            let idle = connection.state.get() == State::Idle;
            Some((idle, connection.overdue(&self.limits, now)?, connection))
        });
        if let Some((_, _, connection)) = overdue.max_by_key(|&(idle, overdue, _)| (idle, overdue)) {
            log::info!("a control connection that is idle or stalled is ended to make room for another");
            // Whoever reads or writes there notices. An error means that it ended by itself.
            let _ = connection.socket.shutdown(Shutdown::Both);
        }
    }

    fn held(&self) -> usize {
        self.open.borrow().iter().map(|connection| connection.held.get()).sum()
    }

    /// Reserves `bytes` in all for `connection`. False where others hold too much and go on using it.
    async fn hold(&self, connection: &Connection, bytes: usize) -> bool {
        let begun = Instant::now();
        while self.held() - connection.held.get() + bytes > self.limits.held {
            if begun.elapsed() > 2 * self.limits.stalled {
                return false;
            }
            self.evict(|other| other.held.get() > 0);
            self.wait().await;
        }
        let before = connection.held.replace(bytes);
        if bytes < before {
            self.freed.notify_waiters();
        }
        true
    }
}

/// Accepts connections for ever. `read` is notified whenever a client took a piece of an answer.
pub(super) async fn accept(
    connections: Rc<Connections>,
    listener: UnixListener,
    requests: mpsc::Sender<Request>,
    read: Rc<Notify>,
    uring: bool,
) {
    let mut failing = false;
    loop {
        let seated = match listener.accept().await {
            Ok((stream, _)) => connections.acquire(&stream).await.map(|permit| (stream, permit)),
            Err(error) => Err(error),
        };
        match seated {
            Ok((stream, permit)) => {
                if std::mem::take(&mut failing) {
                    log::info!("control connections are accepted again");
                }
                let (requests, read) = (requests.clone(), Rc::clone(&read));
                tokio::task::spawn_local(async move {
                    let served = match Stream::new(stream, uring) {
                        Ok(stream) => serve(stream, &permit, requests, &read).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = served {
                        log::debug!("a control connection ended: {error}");
                    }
                });
            }
            Err(error) => {
                // A client that waits is tried again for as long as it waits. Once is enough to tell.
                if !std::mem::replace(&mut failing, true) {
                    log::warn!(
                        "cannot accept control connections, and goes on trying: {error}{}",
                        remedy(&error)
                    );
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// What to do about an error of accepting, to be said behind it.
fn remedy(error: &Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE) => format!(" ({MORE_FILES})"),
        _ => String::new(),
    }
}

/// Serves one connection: operations one after the other until the client closes.
async fn serve(
    stream: Stream,
    permit: &Permit,
    requests: mpsc::Sender<Request>,
    read: &Notify,
) -> Result<()> {
    let Permit(connections, connection) = permit;
    let mut framer = Framer::default();
    let mut buffer = Vec::with_capacity(READ_SIZE);
    loop {
        connection.is(if framer.is_midway() { State::Midway } else { State::Idle });
        let (count, filled) = stream.read(buffer).await;
        let count = count?;
        if count == 0 {
            return Ok(());
        }
        buffer = filled;
        connection.is(State::Ours);
        if !connections.hold(connection, framer.room_after(count)).await {
            buffer.zeroize();
            log::error!(
                "unfinished control operations hold {} bytes of memory: another is refused",
                connections.held()
            );
            return stream.write_all(uapi::answer(Err(ENOMEM)).into_bytes()).await;
        }
        framer.push(&buffer[..count]);
        buffer.zeroize();
        while let Some(next) = framer.next_operation() {
            let operation = match next {
                Ok(operation) => operation,
                Err(error) => {
                    log::error!("a control operation is refused: {error}");
                    return stream.write_all(uapi::answer(Err(error.errno)).into_bytes()).await;
                }
            };
            let follows = operation == Operation::Monitor;
            let passes = matches!(operation, Operation::Offer | Operation::HandOver);
            let own = || connection.socket.try_clone();
            let passing = passes.then(own).transpose()?;
            let room = if follows { WAITING_LINES } else { PIECES };
            let (answer, mut pieces) = mpsc::channel::<Zeroizing<String>>(room);
            requests
                .send(Request { operation, answer, connection: passing })
                .await
                .map_err(|_| Error::from(ErrorKind::BrokenPipe))?;
            if follows {
                return follow(&stream, pieces).await;
            }
            while let Some(piece) = pieces.recv().await {
                read.notify_one();
                connection.is(State::Midway);
                stream.write_all(piece.as_bytes().to_vec()).await?;
                connection.is(State::Ours);
            }
        }
        connections.hold(connection, framer.room_after(0)).await;
    }
}

/// Sends a follower what happens, until its end or the device's. Whatever it says ends it, too: there is no more to ask.
async fn follow(stream: &Stream, mut lines: mpsc::Receiver<Zeroizing<String>>) -> Result<()> {
    let mut said = std::pin::pin!(stream.read(Vec::with_capacity(LAST_WORDS)));
    loop {
        tokio::select! {
            _ = &mut said => return Ok(()),
            line = lines.recv() => match line {
                Some(line) => stream.write_all(line.as_bytes().to_vec()).await?,
                None => return Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::thread::{sleep, spawn};

    /// Serves connections to a socket of its own on another thread, each operation answered with its length, until dropped.
    struct Server {
        path: std::path::PathBuf,
        end: Option<tokio::sync::oneshot::Sender<()>>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Server {
        fn start(name: &str, limits: Limits) -> Server {
            let path = std::env::temp_dir().join(format!("ringtun-{name}-{}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            listener.set_nonblocking(true).unwrap();
            let (end, ended) = tokio::sync::oneshot::channel();
            let thread = spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                tokio::task::LocalSet::new().block_on(&runtime, async {
                    let connections = Rc::new(Connections { limits, ..Connections::default() });
                    let (requests, mut requested) = mpsc::channel::<Request>(4);
                    let listener = UnixListener::from_std(listener).unwrap();
                    tokio::task::spawn_local(accept(connections, listener, requests, Rc::default(), false));
                    tokio::task::spawn_local(async move {
                        while let Some(request) = requested.recv().await {
                            let length = match request.operation {
                                uapi::Operation::Set(body) => body.len(),
                                _ => 0,
                            };
                            let answer = Zeroizing::new(format!("length={length}\nerrno=0\n\n"));
                            let _ = request.answer.try_send(answer);
                        }
                    });
                    let _ = ended.await;
                });
            });
            Server { path, end: Some(end), thread: Some(thread) }
        }

        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(&self.path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            drop(self.end.take());
            self.thread.take().unwrap().join().unwrap();
            std::fs::remove_file(&self.path).unwrap();
        }
    }

    fn limits() -> Limits {
        let idle = Duration::from_millis(100);
        Limits { connections: 4, held: 256 << 10, idle, stalled: Duration::from_millis(500) }
    }

    fn answer(stream: &mut UnixStream) -> String {
        let mut text = String::new();
        while !text.ends_with("\n\n") {
            let mut bytes = [0; 256];
            match stream.read(&mut bytes) {
                Ok(0) => return text,
                Ok(count) => text += std::str::from_utf8(&bytes[..count]).unwrap(),
                // A signal of another test in this process.
                Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted),
            }
        }
        text
    }

    fn ask(stream: &mut UnixStream) -> String {
        match stream.write_all(b"get=1\n\n") {
            Ok(()) => answer(stream),
            Err(_) => String::new(),
        }
    }

    /// How many of these connections the server has ended.
    fn ended(streams: &[UnixStream]) -> usize {
        let is_ended = |mut stream: &UnixStream| {
            stream.set_nonblocking(true).unwrap();
            match stream.read(&mut [0]) {
                Ok(count) => count == 0,
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            }
        };
        streams.iter().filter(|stream| is_ended(stream)).count()
    }

    const ANSWERED: &str = "length=0\nerrno=0\n\n";

    #[test]
    fn an_idle_connection_gives_way_to_one_that_waits_and_the_longest_idle_first() {
        let server = Server::start("idle", limits());
        let mut idle: Vec<UnixStream> = (0..4).map(|_| server.connect()).collect();
        idle.iter_mut().rev().for_each(|stream| assert_eq!(ask(stream), ANSWERED));
        assert_eq!(ask(&mut server.connect()), ANSWERED);
        assert_eq!(ask(&mut idle[3]), "", "it was asked first, and made room");
        idle[..3].iter_mut().for_each(|stream| assert_eq!(ask(stream), ANSWERED));
    }

    #[test]
    fn idle_connections_stay_while_nobody_waits() {
        let server = Server::start("stay", limits());
        let mut idle: Vec<UnixStream> = (0..4).map(|_| server.connect()).collect();
        sleep(3 * limits().stalled);
        idle.iter_mut().for_each(|stream| assert_eq!(ask(stream), ANSWERED));
    }

    #[test]
    fn an_operation_that_goes_on_is_not_cut_short_by_those_who_wait() {
        let server = Server::start("busy", limits());
        let mut busy: Vec<UnixStream> = (0..4).map(|_| server.connect()).collect();
        busy.iter_mut().for_each(|stream| stream.write_all(b"set=1\n").unwrap());
        let mut late = server.connect();
        let late = spawn(move || ask(&mut late));
        for _ in 0..20 {
            sleep(limits().stalled / 10);
            busy.iter_mut().for_each(|stream| stream.write_all(b"fwmark=1\n").unwrap());
        }
        for stream in &mut busy {
            stream.write_all(b"\n").unwrap();
            assert_eq!(answer(stream), format!("length={}\nerrno=0\n\n", 6 + 20 * 9));
        }
        assert_eq!(late.join().unwrap(), ANSWERED);
    }

    #[test]
    fn one_that_left_an_operation_half_said_gives_way() {
        let server = Server::start("half", limits());
        let mut half: Vec<UnixStream> = (0..4).map(|_| server.connect()).collect();
        half.iter_mut().for_each(|stream| stream.write_all(b"set=1\n").unwrap());
        assert_eq!(ask(&mut server.connect()), ANSWERED);
        assert_eq!(ended(&half), 1);
    }

    #[test]
    fn unfinished_operations_together_hold_no_more_than_the_limit_and_those_that_stall_give_way() {
        let server = Server::start("bytes", limits());
        let half = vec![b'x'; 100 << 10];
        let mut stalled: Vec<UnixStream> = (0..2).map(|_| server.connect()).collect();
        for stream in &mut stalled {
            stream.write_all(b"set=1\n").unwrap();
            stream.write_all(&half).unwrap();
        }
        // Room for one of this length only once a stalled one is gone.
        let mut whole = server.connect();
        whole.write_all(b"set=1\n").unwrap();
        whole.write_all(&half).unwrap();
        whole.write_all(b"\n\n").unwrap();
        assert_eq!(answer(&mut whole), format!("length={}\nerrno=0\n\n", 6 + half.len() + 1));
        assert_eq!(ended(&stalled), 1);
    }

    #[test]
    fn one_that_finds_no_room_is_told_so() {
        let server = Server::start("room", Limits { held: 64 << 10, ..limits() });
        let mut greedy = server.connect();
        greedy.write_all(b"set=1\n").unwrap();
        let _ = greedy.write_all(&vec![b'x'; 128 << 10]); // it may be refused while we write
        assert_eq!(answer(&mut greedy), "errno=-12\n\n");
        assert_eq!(ask(&mut server.connect()), ANSWERED, "what it held was given back");
    }
}
