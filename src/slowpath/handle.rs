//! The handle by which the owner of a tunnel, on any thread of this process, speaks to its slow path.

use crate::device::uapi::SetRequest;
use crate::device::{ConfigureError, Device};
use crate::sys::waker::Waker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

/// Most commands that may wait; a thread that has another one waits with it. Each is a few words, and what it points to.
const COMMANDS: usize = 64;

/// A closure that reads the device, between two transactions. It must take no longer than a slice.
pub(super) type Query = Box<dyn FnOnce(&Device, Running) + Send>;

/// What the slow path knows of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Running {
    /// Whether workers speak to the kernel through io_uring.
    pub uring: bool,
    /// Whether an eBPF program brings a peer's packets to its owner's TUN queue.
    pub tun_steering: bool,
    /// Whether a BPF program brings a peer's datagrams to its owner's socket. `None` while there are no sockets.
    pub udp_steering: Option<bool>,
    /// Whether sockets ask for UDP_GRO.
    pub gro: bool,
}

/// What the owner asks for.
pub(super) enum OwnerCommand {
    /// Change the configuration.
    Configure(Box<SetRequest>, SyncSender<Result<(), ConfigureError>>),
    /// Read the device.
    Query(Query),
}

/// The owner's end of the channel.
#[derive(Debug)]
pub struct Handle {
    commands: SyncSender<OwnerCommand>,
    stop: Arc<AtomicBool>,
    waker: Waker,
}

/// The slow path's end of the channel.
pub struct Commands {
    commands: Receiver<OwnerCommand>,
    stop: Arc<AtomicBool>,
}

/// The error of a slow path that has ended, and answers nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gone;

/// Makes both ends of the channel. `waker` is the slow path's.
pub fn channel(waker: Waker) -> (Handle, Commands) {
    let (sender, receiver) = sync_channel(COMMANDS);
    let stop = Arc::new(AtomicBool::new(false));
    (Handle { commands: sender, stop: Arc::clone(&stop), waker }, Commands { commands: receiver, stop })
}

impl Handle {
    /// Changes the configuration, whole or not at all, and returns when it is done.
    ///
    /// # Errors
    ///
    /// [`Gone`] where the slow path has ended; within that, why the change was refused.
    pub fn configure(&self, request: SetRequest) -> Result<Result<(), ConfigureError>, Gone> {
        self.ask(|answer| OwnerCommand::Configure(Box::new(request), answer))
    }

    /// Returns what `query` reads from the device, between two transactions. It keeps the slow path from its other work, so it
    /// must be short.
    ///
    /// # Errors
    ///
    /// [`Gone`] where the slow path has ended.
    pub fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Device, Running) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        self.ask(|answer| {
            // An asker that waits no more needs no answer.
            OwnerCommand::Query(Box::new(move |device, running| {
                drop(answer.try_send(query(device, running)))
            }))
        })
    }

    /// Tells the slow path to end, without waiting for it.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> OwnerCommand) -> Result<T, Gone> {
        let (answer, answers) = sync_channel(1);
        self.commands.send(command(answer)).map_err(|_| Gone)?;
        self.waker.wake();
        answers.recv().map_err(|_| Gone)
    }
}

impl Commands {
    /// The next command.
    pub(super) fn next(&self) -> Result<OwnerCommand, TryRecvError> {
        self.commands.try_recv()
    }

    /// Whether the end was asked for.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
