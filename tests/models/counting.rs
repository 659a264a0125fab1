//! The counter of a session (`src/noise/counter.rs`, which is explored itself): no counter is handed out twice, none at or beyond
//! the limit, and whoever is refused leaves no trace.

use crate::counter::SendCounter;
use loom::sync::Arc;
use loom::thread;

/// Threads that each reserve the counters of some trains, of `limit` in all.
fn explore(trains: &'static [&'static [u64]], limit: u64) {
    loom::model(move || {
        let counter = Arc::new(SendCounter::default());
        let reserve = move |counter: &SendCounter, lens: &[u64]| {
            let ranges = lens.iter().filter_map(|&len| Some((counter.reserve(len, limit)?, len)));
            ranges.flat_map(|(first, len)| first..first + len).collect::<Vec<_>>()
        };
        let others: Vec<_> = trains[1..]
            .iter()
            .map(|lens| {
                let counter = Arc::clone(&counter);
                thread::spawn(move || reserve(&counter, lens))
            })
            .collect();
        let mut all = reserve(&counter, trains[0]);
        for other in others {
            all.extend(other.join().expect("it ends"));
        }
        all.sort_unstable();
        let expected: Vec<u64> = (0..counter.next()).collect();
        assert_eq!(all, expected, "each once, and none left out");
        assert!(counter.next() <= limit);
        // What is left can be had.
        let left = limit - counter.next();
        assert_eq!(counter.reserve(left + 1, limit), None);
        assert_eq!(counter.reserve(left, limit), Some(limit - left));
    });
}

#[test]
fn no_counter_is_handed_out_twice() {
    explore(&[&[2, 1], &[1, 3]], 100);
    explore(&[&[2], &[3], &[1]], 100);
}

#[test]
fn none_is_handed_out_at_the_limit_and_the_refused_leave_no_trace() {
    explore(&[&[3, 1], &[2, 2]], 5);
    explore(&[&[3], &[2], &[4]], 5);
}

#[test]
fn a_counter_that_would_go_around_is_refused() {
    loom::model(|| {
        // One that another process counted so far.
        let counter = SendCounter::from(u64::MAX - 1);
        assert_eq!(counter.reserve(2, u64::MAX), None);
        assert_eq!(counter.reserve(1, u64::MAX), Some(u64::MAX - 1));
    });
}
