//! A swarm of simulated worlds: gateways and roaming clients, each world from one seed, under every fault of the network and of the
//! edge. `scripts/simulate` runs it for as long as you like; `--seed` and `--keep` repeat what failed.

#![allow(clippy::unwrap_used)] // all of it is test code

mod account;
mod bounds;
mod calm;
mod plan;
mod run;
mod stage;

use plan::Plan;
use run::{Report, explain, hush, run, shrink};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Worlds of the test command.
const WORLDS: u64 = 60;
/// How long the test command goes on beginning further worlds.
const BUDGET: Duration = Duration::from_secs(50);

/// What a swarm came to.
#[derive(Default)]
struct Swarm {
    worlds: u64,
    total: Report,
    faults: Vec<String>,
}

/// Runs worlds on all cores, from `first` on, until `budget` is used up, `worlds` have been run, or one failed.
fn swarm(first: u64, worlds: u64, budget: Duration) -> Swarm {
    hush();
    let (next, begun, outcome) = (AtomicU64::new(first), Instant::now(), Mutex::new(Swarm::default()));
    let work = || {
        while begun.elapsed() < budget && outcome.lock().unwrap().faults.is_empty() {
            let seed = next.fetch_add(1, Relaxed);
            if seed - first >= worlds {
                return;
            }
            let plan = Plan::new(seed);
            let all = (0..plan.events.len()).collect();
            let fault = run(&plan, &all, None).map(|report| add(&mut outcome.lock().unwrap(), &report));
            if let Err(fault) = fault {
                let text = explain(&plan, &all, &fault);
                outcome.lock().unwrap().faults.push(text);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    let swarm = outcome.into_inner().unwrap();
    let hours = swarm.total.time.as_secs_f64() / 3600.0;
    println!(
        "{} worlds, {hours:.1} hours ({:.2} a second), {} packets delivered, {} handshakes",
        swarm.worlds,
        hours / begun.elapsed().as_secs_f64(),
        swarm.total.arrived,
        swarm.total.handshakes
    );
    swarm
}

fn add(swarm: &mut Swarm, report: &Report) {
    swarm.worlds += 1;
    swarm.total.time += report.time;
    swarm.total.arrived += report.arrived;
    swarm.total.handshakes += report.handshakes;
}

/// A number of the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// The events that `RINGTUN_KEEP` names, or all.
fn kept(plan: &Plan) -> BTreeSet<usize> {
    match std::env::var("RINGTUN_KEEP") {
        Err(_) => (0..plan.events.len()).collect(),
        Ok(list) if list == "none" => BTreeSet::new(),
        Ok(list) => {
            list.split(',').map(|number| number.parse().expect("RINGTUN_KEEP lists numbers")).collect()
        }
    }
}

#[test]
fn every_world_stays_within_the_rules() {
    if let Some(seed) = number("RINGTUN_SEED") {
        let plan = Plan::new(seed);
        let keep = kept(&plan);
        hush();
        let trace = number("RINGTUN_TRACE").map(|lines| lines as usize);
        match run(&plan, &keep, trace) {
            Ok(report) => println!("{report:?}"),
            // What was asked for in part is not shrunk.
            Err(fault) if keep.len() < plan.events.len() => panic!("{fault:?}"),
            Err(fault) => panic!("{}", explain(&plan, &keep, &fault)),
        }
        return;
    }
    let swarm = match number("RINGTUN_SECONDS") {
        Some(seconds) => {
            let first = number("RINGTUN_FIRST").unwrap_or_else(|| u64::from(std::process::id()) << 32);
            println!("seeds from {first} on");
            swarm(first, u64::MAX, Duration::from_secs(seconds))
        }
        None => swarm(1, WORLDS, BUDGET),
    };
    assert!(swarm.faults.is_empty(), "{}", swarm.faults.join("\n"));
    assert!(swarm.worlds > 0 && swarm.total.arrived > 0 && swarm.total.handshakes > 0);
}

#[test]
fn a_seed_repeats_its_world() {
    let plan = Plan::new(3);
    let all = (0..plan.events.len()).collect();
    let outcomes = [run(&plan, &all, None), run(&plan, &all, None)].map(|outcome| format!("{outcome:?}"));
    assert_eq!(outcomes[0], outcomes[1]);
}

#[test]
fn shrinking_leaves_what_is_needed_and_no_more() {
    let all: BTreeSet<usize> = (0..100).collect();
    let needed = BTreeSet::from([17, 18, 93]);
    assert_eq!(shrink(&all, |keep| needed.is_subset(keep)), needed);
    assert_eq!(shrink(&all, |_| true), BTreeSet::new());
    assert_eq!(shrink(&all, |keep| keep.len() == 100), all);
}
