//! A state that is handed to this process. What is taken in can be handed on, and is then the same again, however many workers there
//! are.

use ringtun::dataplane::Control;
use ringtun::dataplane::record::{ReceivingRecord, RestoredSession, WorkerRecord};
use ringtun::device::handover::{StateError, StateParts};
use ringtun::device::{Device, Now, Output};
use ringtun::index::WorkerCount;
use ringtun::sim::SimRng;
use ringtun::time::Instant;
use std::time::Duration;

const THEN: Instant = Instant::from_nanos(1_000_000_000_000);

/// Takes a state in, lets nothing happen, and hands it on.
fn pass(state: &[u8], workers: usize) -> Result<Vec<u8>, StateError> {
    let mut device = Device::new(WorkerCount::nearest(workers), Box::new(SimRng::new(1)));
    let imported = device.import(state, Some(THEN))?;
    let mut records: Vec<WorkerRecord> = (0..workers as u8)
        .zip(imported.frames)
        .map(|(worker, frames)| WorkerRecord { worker, frames, ..WorkerRecord::default() })
        .collect();
    while let Some(output) = device.poll_output() {
        let Output::Control(worker, Control::Restore(sessions)) = output else { continue };
        let record = |session: &RestoredSession| ReceivingRecord {
            peer: session.peer.id,
            index: session.receive.local_index(),
            role: session.receive.role(),
            receive: session.receive.record(),
            effective: session.effective,
        };
        records[usize::from(worker)].sessions = sessions.iter().map(record).collect();
    }
    let parts = StateParts { workers: records, handshakes: imported.handshakes, sockets: imported.sockets };
    let now = Now { mono: THEN, wall: Duration::from_secs(1) };
    let state = device.export(now, parts)?.to_vec();
    // It goes on without any harm.
    device.handle_timeout(now);
    while device.poll_output().is_some() {}
    assert!(device.uapi_get().ends_with("errno=0\n\n"));
    Ok(state)
}

/// A state.
pub(crate) fn run(data: &[u8]) {
    let Ok(once) = pass(data, 4) else { return };
    let again = pass(&once, 4).expect("what is handed on can be taken in");
    assert!(once == again, "it is the same again");
    for fewer in [1, 3] {
        pass(&once, fewer).expect("fewer workers take it in");
    }
}
