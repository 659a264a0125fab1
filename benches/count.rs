//! Counts instructions: of a worker's turn without the AEAD, of the functions of the offload, and of the AEAD, for each
//! packet. `benches/count.txt` holds the counts of before, and what is more than [`MARGIN`] above them fails.
//!
//! `scripts/count [--renew]` runs this; `--renew` writes the file anew. Counts do not depend on what else the machine
//! does, but on the compiler, the C library's copying and the CPU that valgrind imitates: where one of them is not what
//! the file names, the comparison is skipped, and it says so.
//!
//! The program runs itself under valgrind's callgrind, which counts between entry and exit of [`counted`] and writes
//! one file for each. That needs no crate, and no second program but Debian's valgrind. Valgrind knows no AVX-512, so
//! the AEAD is the AVX2 kernel's. In turns it would hide all the rest: there, its functions turn the counting off.

#[path = "common/frames.rs"]
mod frames;
#[path = "common/rig.rs"]
mod rig;

use frames::{ROOM, Received, frame, split};
use rig::{FAR, Rig, SEGMENTS, SMALL, lone_rig, segments, small_datagrams, small_frame, super_frame};
use ringtun::crypto::aead::{AeadKey, HEADER_LEN, TAG_LEN};
use ringtun::wire::checksum;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Percent by which a count may grow. What a change elsewhere makes the compiler do otherwise stays below it.
const MARGIN: f64 = 2.0;
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/count.txt");
/// Times that each case runs uncounted: the first turns take in sessions and routes, and fill what is kept.
const WARM_UPS: usize = 3;
/// What turns are counted without: `AeadKey::seal_train` and `open_train`.
const AEAD: &str = "*AeadKey*_train";

/// Counts by name, instructions a packet.
type Counts = BTreeMap<String, f64>;
type Run<'a> = &'a mut dyn FnMut();
/// Runs what it is given, counted or not.
type Measure = fn(Run);

/// What callgrind counts: one call is one file.
#[inline(never)]
fn counted(run: Run) {
    run();
    black_box(());
}

/// Something to count: its name, how many packets it is of, and how it prepares itself and is run.
struct Case {
    name: &'static str,
    packets: usize,
    once: Box<dyn FnMut(Measure)>,
}

impl Case {
    fn new(name: &'static str, packets: usize, once: impl FnMut(Measure) + 'static) -> Case {
        Case { name, packets, once: Box::new(once) }
    }

    fn turn(name: &'static str, packets: usize, mut feed: impl FnMut(&mut Rig) + 'static) -> Case {
        let mut rig = lone_rig();
        Case::new(name, packets, move |measure| {
            feed(&mut rig);
            rig.turn(measure);
        })
    }

    fn split(name: &'static str, packets: usize, frame: Vec<u8>) -> Case {
        let mut out = vec![0; ROOM];
        Case::new(name, packets, move |measure| {
            measure(&mut || {
                black_box(split(black_box(&frame), &mut out));
            });
        })
    }

    fn coalesce(name: &'static str, frames: &[Vec<u8>]) -> Case {
        let mut received = Received::new(frames);
        Case::new(name, received.size().0, move |measure| measure(&mut || received.coalesce()))
    }

    /// Seals a train of so many texts, or opens it.
    fn aead(name: &'static str, seals: bool, packets: usize, text: usize) -> Case {
        let key = AeadKey::new(&[0x42; 32]);
        let stride = HEADER_LEN + text + TAG_LEN;
        let mut sealed = vec![0x5a; stride * packets];
        key.seal_train(7, &mut sealed, stride);
        Case::new(name, packets, move |measure| {
            let mut train = sealed.clone();
            measure(&mut || match seals {
                true => key.seal_train(7, &mut train, stride),
                false => assert_eq!(key.open_train(&mut train, stride).0.count_ones() as usize, packets),
            });
        })
    }
}

/// What is counted without the AEAD.
fn gateway() -> Vec<Case> {
    let (large, small) = (super_frame(FAR), small_frame());
    let (train, datagrams) = (segments(FAR), small_datagrams());
    let flows: Vec<_> = (0..4).map(|flow| frame(false, 5201 + flow, 11, 1368)).collect();
    let data: Vec<u8> = (0..1420u32).map(|i| i as u8).collect();
    vec![
        Case::turn("turn/tx/tso-45x1420", SEGMENTS, move |rig| rig.feed(&large, 1)),
        Case::turn("turn/tx/udp-64x16", SMALL, move |rig| rig.feed(&small, SMALL)),
        Case::turn("turn/rx/train-45x1420", SEGMENTS, move |rig| rig.push(&train)),
        Case::turn("turn/rx/udp-64x16", SMALL, move |rig| rig.push(&datagrams)),
        Case::split("split/tso-45x1420", 45, frame(false, 5201, 45, 1368)),
        Case::split("split/uso-64x16", 64, frame(true, 5201, 64, 16)),
        Case::coalesce("coalesce/tcp-45x1420", &[frame(false, 5201, 45, 1368)]),
        Case::coalesce("coalesce/tcp-4-flows-of-11x1420", &flows),
        Case::coalesce("coalesce/udp-64x16", &[frame(true, 5201, 64, 16)]),
        Case::new("checksum/1420", 1, move |measure| {
            measure(&mut || {
                black_box(checksum::sum(black_box(&data), 0));
            });
        }),
    ]
}

/// The AEAD itself: full-size packets, and 16 bytes of UDP padded to 48.
fn aead() -> Vec<Case> {
    vec![
        Case::aead("seal/avx2-45x1420", true, 45, 1420),
        Case::aead("seal/avx2-64x48", true, 64, 48),
        Case::aead("open/avx2-45x1420", false, 45, 1420),
        Case::aead("open/avx2-64x48", false, 64, 48),
    ]
}

/// The sets of cases by name, and which functions turn counting off in them.
const SETS: [(&str, Option<&str>); 2] = [("gateway", Some(AEAD)), ("aead", None)];

fn cases(set: &str) -> Vec<Case> {
    if set == "aead" { aead() } else { gateway() }
}

/// Runs the cases of a set, as valgrind's child.
fn run(set: &str) {
    for mut case in cases(set) {
        (0..WARM_UPS).for_each(|_| (case.once)(|run| run()));
        (case.once)(counted);
    }
}

/// Counts all cases of a set, in files of `directory`.
fn count(set: &str, without: Option<&str>, directory: &Path) -> Counts {
    let files = directory.join(set);
    let program = std::env::current_exe().expect("this program's path");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--quiet"]);
    // What the AEAD did before is in no file: outside the function, its toggle turns the counting on.
    valgrind.args(
        ["zero-before", "toggle-collect", "dump-after"].map(|option| format!("--{option}=count::counted")),
    );
    valgrind.args(without.map(|name| format!("--toggle-collect={name}")));
    valgrind.arg(format!("--callgrind-out-file={}", files.display())).arg(program).args(["--set", set]);
    let status = valgrind.status().expect("valgrind runs");
    assert!(status.success(), "valgrind: {status}");
    let counts = (1..).zip(cases(set)).map(|(number, case)| {
        let file = PathBuf::from(format!("{}.{number}", files.display()));
        (case.name.to_owned(), total(&file) as f64 / case.packets as f64)
    });
    counts.collect()
}

/// Instructions that a file of callgrind's holds.
fn total(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total.and_then(|total| total.parse().ok()).expect("callgrind writes totals")
}

/// What counts depend on besides the program, or what is missing here.
fn circumstances() -> Result<String, String> {
    let said = |program: &str, argument| {
        let output = Command::new(program)
            .arg(argument)
            .output()
            .map_err(|_| format!("{program} is not installed"))?;
        Ok::<_, String>(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    #[cfg(target_arch = "x86_64")]
    let avx2 = std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    let avx2 = false;
    if !avx2 {
        return Err("the counts are for an x86-64 CPU with AVX2".to_owned());
    }
    let parts =
        [said("valgrind", "--version")?, said("rustc", "--version")?, said("getconf", "GNU_LIBC_VERSION")?];
    let flags = std::env::var("RUSTFLAGS").map(|flags| format!(", RUSTFLAGS={flags}")).unwrap_or_default();
    Ok(parts.join(", ") + &flags)
}

/// Prints old and new counts; whether none is above the margin, and the same are counted.
fn compare(old: &Counts, new: &Counts) -> bool {
    println!("{:34} {:>10} {:>10} {:>8}", "instructions a packet", "before", "now", "percent");
    let mut fine = true;
    let names: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for name in names {
        let shown = |count: Option<&f64>| count.map_or("-".to_owned(), |count| format!("{count:.1}"));
        let (before, now) = (old.get(name), new.get(name));
        let percent = before.zip(now).map(|(before, now)| (now / before - 1.0) * 100.0);
        let verdict = match percent {
            Some(percent) if percent <= -MARGIN => "fewer: worth a renewal",
            Some(percent) if percent <= MARGIN => "",
            Some(_) => "MORE",
            None => "NOT IN BOTH",
        };
        fine &= verdict.is_empty() || verdict.starts_with("fewer");
        let percent = percent.map_or(String::new(), |percent| format!("{percent:+.1}"));
        println!("{name:34} {:>10} {:>10} {percent:>8}  {verdict}", shown(before), shown(now));
    }
    fine
}

/// The file's line of circumstances, and its counts.
fn read(text: &str) -> (&str, Counts) {
    let (head, lines) = text.split_once('\n').unwrap_or_default();
    let count = |line: &str| {
        let (name, count) = line.split_once(' ')?;
        Some((name.to_owned(), count.trim().parse().ok()?))
    };
    (head.trim_start_matches("# "), lines.lines().map(|line| count(line).expect("NAME COUNT")).collect())
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [option, set] = &arguments[..]
        && option == "--set"
    {
        run(set);
        return ExitCode::SUCCESS;
    }
    let renew = arguments.iter().any(|argument| argument == "--renew");
    let text = std::fs::read_to_string(BASELINE).unwrap_or_default();
    let (head, old) = read(&text);
    let here = match circumstances() {
        Ok(here) if here == head || renew => here,
        Ok(here) => {
            return skipped(&format!("the counts of benches/count.txt are of {head}, and this is {here}"));
        }
        Err(missing) => return skipped(&missing),
    };
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("count-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory in target");
    let new: Counts = SETS.into_iter().flat_map(|(set, without)| count(set, without, &directory)).collect();
    std::fs::remove_dir_all(&directory).expect("the directory goes");
    let fine = compare(&old, &new);
    if renew {
        let lines: String = new.iter().map(|(name, count)| format!("{name} {count:.1}\n")).collect();
        std::fs::write(BASELINE, format!("# {here}\n{lines}")).expect("the tree is writable");
        println!("benches/count.txt is written");
    } else if !fine {
        println!(
            "counts differ by more than {MARGIN} %. Where that is meant, scripts/count --renew writes them anew"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Says that nothing was compared, as a skipped test does.
fn skipped(because: &str) -> ExitCode {
    println!("SKIPPED: count because {because}");
    ExitCode::SUCCESS
}
