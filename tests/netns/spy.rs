//! Searches the memory of another process.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, read_to_string};
use std::os::unix::fs::FileExt;

/// What is read at once.
const PAGE: usize = 4096;
/// Bytes of a secret that count as the secret: half of one is too much, and a whole one may lie in two places.
const PART: usize = 16;

/// What should not be found.
#[derive(Clone)]
pub(crate) struct Secret {
    /// What it is, for a failure's message.
    pub(crate) name: &'static str,
    spellings: Vec<Vec<u8>>,
}

impl Secret {
    /// A secret that is nowhere spelled out.
    pub(crate) fn raw(name: &'static str, bytes: [u8; 32]) -> Secret {
        Secret { name, spellings: vec![bytes.to_vec()] }
    }

    /// A secret that is told to the program, as bytes, in hexadecimal and in base64.
    pub(crate) fn told(name: &'static str, bytes: [u8; 32]) -> Secret {
        let hexadecimal: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let spellings = vec![bytes.to_vec(), hexadecimal.into_bytes(), STANDARD.encode(bytes).into_bytes()];
        Secret { name, spellings }
    }
}

/// A view of one process's memory.
pub(crate) struct Spy {
    pid: u32,
}

impl Spy {
    /// On the process `pid`, which must be ours.
    pub(crate) fn on(pid: u32) -> Spy {
        Spy { pid }
    }

    /// Where parts of the secrets are in memory that was ever written: a line each.
    pub(crate) fn find(&self, secrets: &[Secret]) -> Vec<String> {
        // By their first two bytes, so that nearly every place is passed over at once.
        let mut parts: HashMap<[u8; 2], Vec<(&str, &[u8])>> = HashMap::new();
        for secret in secrets {
            for part in secret.spellings.iter().flat_map(|spelling| spelling.chunks_exact(PART)) {
                parts.entry([part[0], part[1]]).or_default().push((secret.name, part));
            }
        }
        let mut known = vec![false; 1 << 16];
        parts.keys().for_each(|&start| known[usize::from(u16::from_ne_bytes(start))] = true);
        let maps = read_to_string(format!("/proc/{}/maps", self.pid)).expect("a running process");
        let memory = File::open(format!("/proc/{}/mem", self.pid)).expect("a process of ours");
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (Some(range), Some(mode)) = (fields.next(), fields.next()) else { continue };
            let Some((start, end)) = range.split_once('-').filter(|_| mode.starts_with("rw")) else {
                continue;
            };
            let address = |digits| u64::from_str_radix(digits, 16).expect("an address");
            let mut look = |at: u64, bytes: &[u8]| {
                for (offset, window) in bytes.windows(PART).enumerate() {
                    if known[usize::from(u16::from_ne_bytes([window[0], window[1]]))] {
                        let here = parts.get(&window[..2]).into_iter().flatten();
                        for (name, _) in here.filter(|(_, part)| *part == window) {
                            let place = fields.clone().nth(3).unwrap_or("a mapping of its own");
                            let at = format!("{:#x}", at + offset as u64);
                            found.entry(format!("{name} in {place} from {start}")).or_default().push(at);
                        }
                    }
                }
            };
            read(&memory, address(start), address(end), &mut look);
        }
        found
            .into_iter()
            .map(|(what, places)| format!("{} parts of {what}: {}", places.len(), places.join(" ")))
            .collect()
    }
}

/// Reads what is written between two addresses, page by page, each with the last bytes of the one before.
fn read(memory: &File, start: u64, end: u64, look: &mut impl FnMut(u64, &[u8])) {
    let mut bytes = [0; PART - 1 + PAGE];
    for at in (start..end).step_by(PAGE) {
        bytes.copy_within(PAGE.., 0);
        // Devices' memory, and what is unmapped meanwhile, cannot be read.
        if memory.read_exact_at(&mut bytes[PART - 1..], at).is_err() {
            return;
        }
        // Most pages were never written to; whole arrays compare much faster than bytes do.
        if bytes != [0; PART - 1 + PAGE] {
            look(at + 1 - PART as u64, &bytes);
        }
    }
}
