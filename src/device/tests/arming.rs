//! Whether a stamp can be missed as the slow path stops watching a peer: every interleaving of a worker and the slow path, in a
//! model in which each store stays in its thread's buffer for as long as it likes, and leaves it in any order.

/// What is shared: the flag that the slow path watches, and whether the worker's stamp is there.
#[derive(Clone, Copy)]
struct Memory {
    armed: bool,
    stamped: bool,
}

/// A thread: its next step, and its stores that are not in memory yet.
#[derive(Clone, Copy, Default)]
struct Thread {
    step: u8,
    armed: Option<bool>,
    stamped: Option<bool>,
}

#[derive(Clone, Copy)]
struct World {
    memory: Memory,
    worker: Thread,
    slow: Thread,
    /// The worker sent an event, or the slow path saw the stamp.
    noticed: bool,
    worker_fences: bool,
    slow_fences: bool,
}

/// Past the last step.
const END: u8 = 4;

impl Thread {
    fn is_drained(&self) -> bool {
        self.armed.is_none() && self.stamped.is_none()
    }

    /// Every way in which one store of this thread reaches memory.
    fn drains(self, memory: Memory) -> impl Iterator<Item = (Thread, Memory)> {
        let armed = self.armed.map(|armed| (Thread { armed: None, ..self }, Memory { armed, ..memory }));
        let stamped =
            self.stamped.map(|stamped| (Thread { stamped: None, ..self }, Memory { stamped, ..memory }));
        armed.into_iter().chain(stamped)
    }
}

impl World {
    fn new(worker_fences: bool, slow_fences: bool) -> World {
        let memory = Memory { armed: true, stamped: false };
        let (worker, slow) = (Thread::default(), Thread::default());
        World { memory, worker, slow, noticed: false, worker_fences, slow_fences }
    }

    /// `PeerShared::data_received`, then `PeerShared::arm`.
    fn step_worker(mut self) -> Option<World> {
        let worker = &mut self.worker;
        let next = match worker.step {
            0 => {
                worker.stamped = Some(true);
                1
            }
            1 if self.worker_fences && !worker.is_drained() => return None,
            1 => 2,
            2 if self.memory.armed => END,
            2 => 3,
            3 => {
                self.noticed |= !std::mem::replace(&mut self.memory.armed, true);
                END
            }
            _ => return None,
        };
        worker.step = next;
        Some(self)
    }

    /// `Device::next_timer_check` of a peer that was quiet.
    fn step_slow(mut self) -> Option<World> {
        let slow = &mut self.slow;
        let next = match slow.step {
            0 => {
                slow.armed = Some(false);
                1
            }
            1 if self.slow_fences && !slow.is_drained() => return None,
            1 => 2,
            2 if self.memory.stamped => 3,
            2 => END,
            3 => {
                slow.armed = Some(true);
                self.noticed = true;
                END
            }
            _ => return None,
        };
        slow.step = next;
        Some(self)
    }

    /// How many ways lead to an end, and how many of them to one where nobody noticed the stamp.
    fn explore(self) -> (u64, u64) {
        let worker = self.worker.drains(self.memory).map(|(worker, memory)| World { worker, memory, ..self });
        let slow = self.slow.drains(self.memory).map(|(slow, memory)| World { slow, memory, ..self });
        let ways: Vec<World> = worker.chain(slow).chain(self.step_worker()).chain(self.step_slow()).collect();
        if ways.is_empty() {
            return (1, u64::from(!self.noticed));
        }
        ways.into_iter().map(World::explore).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

#[test]
fn with_both_fences_no_stamp_is_missed_and_no_later_look_is_needed() {
    let (ways, missed) = World::new(true, true).explore();
    assert!(ways > 50, "{ways}");
    assert_eq!(missed, 0);
}

#[test]
fn without_either_fence_a_stamp_can_be_missed() {
    for (worker, slow) in [(false, true), (true, false), (false, false)] {
        let (_, missed) = World::new(worker, slow).explore();
        assert!(missed > 0, "fences: worker {worker}, slow path {slow}");
    }
}
