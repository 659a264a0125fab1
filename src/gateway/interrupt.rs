//! Signals in the middle of a command: the step at hand ends, and what was done is undone.

use crate::gateway::Failure;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A flag that says whether SIGINT, SIGTERM or SIGHUP arrived.
#[derive(Clone)]
pub(in crate::gateway) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches these signals. From now on they do not end the process.
    pub(in crate::gateway) fn catch() -> Result<Interrupt, Failure> {
        let failed = |error: std::io::Error| Failure::of("cannot catch signals")(error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let mut signals = Vec::new();
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let _inside = runtime.enter();
            signals.push(signal(kind).map_err(failed)?);
        }
        let requested = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&requested);
        let wait = move || {
            runtime.block_on(any(signals));
            flag.store(true, Relaxed);
        };
        std::thread::Builder::new().name("ringtun-signals".into()).spawn(wait).map_err(failed)?;
        Ok(Interrupt(requested))
    }

    /// Whether a signal arrived.
    pub(in crate::gateway) fn requested(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Fails once a signal arrived.
    pub(in crate::gateway) fn check(&self) -> Result<(), Failure> {
        if self.requested() { Err(Failure::new("interrupted")) } else { Ok(()) }
    }
}

async fn any(mut signals: Vec<Signal>) {
    std::future::poll_fn(|context| {
        let arrived = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if arrived { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
