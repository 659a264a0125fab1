//! A worker at rest.

use super::*;
use crossbeam::queue::ArrayQueue;

const ME: &str = "192.168.0.1";

fn events(rig: &Rig) -> Vec<Event> {
    let events = std::iter::from_fn(|| rig.links.slow.events.pop());
    events.filter(|event| matches!(event, Event::Rested(..))).collect()
}

#[test]
fn a_worker_at_rest_takes_nothing_in_reports_it_once_a_round_and_goes_on_where_it_was() {
    let mut rig = Rig::with_peers(1);
    let mut remote = rig.connect(0);
    rig.control(Control::Rest(1));
    rig.push_frame(&frame(ME, "10.0.0.1", 1, 16, 0));
    rig.push_train(remote.seal(&[&packet("10.0.0.1", ME, 2, 16)]), outer(0));
    rig.turn();
    rig.turn();
    assert_eq!(events(&rig), [Event::Rested(0, 1)]);
    assert!(rig.sent().is_empty() && rig.written().is_empty());
    rig.control(Control::Rest(2));
    rig.turn();
    assert_eq!(events(&rig), [Event::Rested(0, 2)]);
    rig.control(Control::Resume);
    rig.turn();
    let sent = rig.sent();
    assert_eq!((sent.len(), rig.written().len()), (1, 1));
    assert_eq!(tag(&remote.open(&sent[0])[0]), 1);
    assert!(events(&rig).is_empty());
}

#[test]
fn what_another_worker_passes_on_is_done_at_rest_and_before_the_next_report() {
    let links = Links::new(2).unwrap();
    let mut rigs = [0, 1].map(|me| Rig::of(&links, me));
    rigs[1].add_peers(1);
    let remote = rigs[1].connect(0);
    rigs[1].control(Control::Rest(1));
    rigs[1].turn();
    rigs[0].push_train(remote.seal(&[&packet("10.0.0.1", ME, 3, 16)]), outer(0));
    rigs[0].turn();
    rigs[1].control(Control::Rest(2));
    rigs[1].turn();
    assert_eq!(rigs[1].written().len(), 1);
    assert_eq!(events(&rigs[1]), [Event::Rested(1, 1), Event::Rested(1, 2)]);
}

#[test]
fn a_record_has_sessions_and_staged_frames_and_from_it_another_worker_goes_on() {
    let mut rig = Rig::with_peers(2);
    let remote = rig.connect(0);
    let waiting = frame(ME, "10.1.0.1", 5, 16, 0);
    rig.push_frame(&waiting);
    rig.push_train(remote.seal(&[&packet("10.0.0.1", ME, 1, 16)]), outer(0));
    rig.turn();
    rig.written();
    rig.control(Control::Rest(1));
    let records = Arc::new(ArrayQueue::new(1));
    rig.control(Control::Record(Arc::clone(&records)));
    rig.turn();
    let record = records.pop().unwrap();
    assert_eq!((record.worker, record.frames), (0, vec![waiting.into_boxed_slice()]));
    let [session] = &record.sessions[..] else { panic!("{:?}", record.sessions) };
    assert_eq!((session.peer, session.effective), (rig.peers[0].id, true));
    assert_eq!(rig.worker.sessions(), 1, "it may go on itself");
}
