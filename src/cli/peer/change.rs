//! `peer rename`, `disable`, `enable`, `remove`: a peer's life in the file, and with it in the running tunnel.

use super::{KnownPeers, Meant, add, running, unanswered};
use crate::crypto::x25519::PublicKey;
use crate::device::uapi::{PeerRequest, SetRequest};
use crate::gateway::Failure;
use crate::gateway::config::{
    ConfigErrors, Document, FileLock, LIMIT_KEYS, Loaded, set_limit, write_private,
};
use crate::gateway::peering::{RosterEntry, RosterState};
use crate::gateway::up::{Console, remove_peer};
use clap::Args;

#[derive(Args)]
#[command(after_help = "Example:
  ringtun peer rename laptop \"Anna's laptop\"

Only the file's comment changes; the running tunnel does not notice.")]
pub(in crate::cli) struct RenameArgs {
    #[command(flatten)]
    meant: Meant,
    /// The peer's new name, kept in the file as `# Name = NAME`
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args)]
#[command(after_help = "Example:
  ringtun peer disable laptop        and `ringtun peer enable laptop` takes it back

The peer's section stays in the file as comments, which wg and wg-quick skip. Where the tunnel is up, the peer and the routes to it \
are removed from it at once.")]
pub(in crate::cli) struct DisableArgs {
    #[command(flatten)]
    meant: Meant,
}

#[derive(Args)]
#[command(after_help = "Example:
  ringtun peer enable laptop

Takes back `peer disable`. A section that somebody made comments of by hand is understood as well.")]
pub(in crate::cli) struct EnableArgs {
    #[command(flatten)]
    meant: Meant,
}

#[derive(Args)]
#[command(after_help = "Example:
  ringtun peer remove laptop

Removes the peer's section from the file with its comments, and where the tunnel is up, the peer and the routes to it. Its preshared key is \
gone then. `ringtun peer disable` keeps the section.")]
pub(in crate::cli) struct RemoveArgs {
    #[command(flatten)]
    meant: Meant,
}

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun peer limit laptop --in 20M --out 100M
  ringtun peer limit laptop --out \"50 Mbit/s burst 1 MB\"
  ringtun peer limit laptop --quota \"100 GB per 30 days, then 1 Mbit/s\"
  ringtun peer limit laptop --in none --out none --quota none

Rates are of packets in the tunnel, their IP headers included. What is over a limit is dropped before it costs an encryption or a decryption. A \
quota counts both ways together, and begins anew at multiples of its period since 1970 (days: at midnight UTC); once it is used up, nothing \
passes, or as much as `then` says. The limits are kept in the file as comments, and count in the running tunnel at once: no session ends.")]
pub(in crate::cli) struct LimitArgs {
    #[command(flatten)]
    meant: Meant,
    /// Rate of what is received from the peer, or `none`
    #[arg(long = "in", value_name = "RATE")]
    inbound: Option<String>,
    /// Rate of what is sent to the peer, or `none`
    #[arg(long = "out", value_name = "RATE")]
    outbound: Option<String>,
    /// Bytes in a period, both ways together, or `none`
    #[arg(long, value_name = "QUOTA")]
    quota: Option<String>,
}

/// A change of a file under way: nobody else changes the file meanwhile.
struct PeerEdit {
    peers: KnownPeers,
    entry: RosterEntry,
    key: PublicKey,
    lock: Option<FileLock>,
}

impl PeerEdit {
    fn begin(meant: &Meant) -> Result<PeerEdit, Failure> {
        let before = KnownPeers::read(&meant.on.interface)?;
        let lock = before.loaded.as_ref().map(|loaded| {
            let file = &loaded.place.file;
            FileLock::take(file)
                .map_err(Failure::of(format!("{}: cannot lock its directory", file.display())))
        });
        let lock = lock.transpose()?;
        // What another command wrote meanwhile is to stay.
        let peers = KnownPeers::read(&meant.on.interface)?;
        let entry = peers.meant(&meant.peer)?;
        let key = entry.public_key.parse().map_err(Failure::of(&entry.public_key))?;
        Ok(PeerEdit { peers, entry, key, lock })
    }

    /// What the peer is called.
    fn title(&self) -> &str {
        self.entry.name.as_deref().unwrap_or(&self.entry.public_key)
    }

    /// The file, with which the peer must be.
    fn file(&mut self) -> Result<&mut Loaded, Failure> {
        let title = self.title().to_owned();
        let has_section = self.entry.line.is_some();
        let name = self.peers.interface.clone();
        self.peers.loaded.as_mut().filter(|_| has_section).ok_or_else(|| {
            Failure::new(format!(
                "{title} is in the running {name} alone, and in no file: `ringtun save {name}` writes it to one"
            ))
        })
    }

    /// Changes the file, unless it could not be understood afterwards.
    fn write(&mut self, edit: impl FnOnce(&mut Document) -> bool) -> Result<(), Failure> {
        let title = self.title().to_owned();
        let loaded = self.file()?;
        let file = loaded.place.file.clone();
        if !edit(&mut loaded.document) {
            return Err(Failure::new(format!("{}: no section of {title} can be changed", file.display())));
        }
        let parsed = loaded.document.parse();
        loaded.config = parsed
            .map_err(|errors| ConfigErrors { file: file.clone(), errors })
            .map_err(Failure::of(format!(
                "{title} is left as it is, since {} would be wrong then",
                file.display()
            )))?
            .0;
        write_private(&file, &loaded.document.bytes()).map_err(Failure::of(file.display()))?;
        self.lock = None;
        Ok(())
    }

    /// Removes the peer from the running tunnel, where there is one and has it.
    fn leave(&self) -> Result<(), Failure> {
        let Some(loaded) = self.peers.loaded.as_ref() else { return Ok(()) };
        if !matches!(self.entry.state, RosterState::Running(_)) || running(loaded)?.is_none() {
            return Ok(());
        }
        let (name, title) = (&self.peers.interface, self.title());
        let mut say = |line: &str| eprintln!("{line}");
        remove_peer(&self.key, loaded, Console::new(&mut say)).map_err(|failure| Failure::Halfway {
            source: Box::new(failure),
            rest: format!("the file lacks {title} already: `ringtun reload {name}` tries again"),
        })?;
        eprintln!("removed it from the running {name}");
        Ok(())
    }
}

pub(super) fn rename(args: &RenameArgs) -> Result<(), Failure> {
    let mut change = PeerEdit::begin(&args.meant)?;
    let name = args.name.trim();
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Failure::new("a peer's name is one line of text"));
    }
    let mut others =
        change.peers.roster().into_iter().filter(|other| other.public_key != change.entry.public_key);
    if others.any(|other| other.name.as_deref() == Some(name)) {
        return Err(Failure::new(format!("there is a peer called {name} already: expected another name")));
    }
    let (key, before) = (change.key, change.title().to_owned());
    change.write(|document| document.rename_peer(&key, name))?;
    eprintln!("{before} is called {name} now");
    Ok(())
}

pub(super) fn limit(args: &LimitArgs) -> Result<(), Failure> {
    let mut change = PeerEdit::begin(&args.meant)?;
    let (key, title) = (change.key, change.title().to_owned());
    let mut limits =
        change.file()?.config.peers.iter().rev().find(|peer| peer.public_key == key).map_or(
            Err(Failure::new(format!("{title} is disabled: `ringtun peer enable` first"))),
            |peer| Ok(peer.limits),
        )?;
    let given = [&args.inbound, &args.outbound, &args.quota];
    if given.iter().all(|text| text.is_none()) {
        return Err(Failure::new("nothing to change: expected --in, --out or --quota"));
    }
    for (text, what) in given.into_iter().zip(LIMIT_KEYS) {
        match text.as_deref() {
            None => {}
            Some("none") => match what {
                "LimitIn" => limits.inbound = None,
                "LimitOut" => limits.outbound = None,
                _ => limits.quota = None,
            },
            Some(text) => set_limit(&mut limits, what, text).map_err(Failure::of(format!("`{text}`")))?,
        }
    }
    change.write(|document| document.limit_peer(&key, &limits))?;
    let loaded = change.file()?;
    eprintln!("limited {title} in {}", loaded.place.file.display());
    let Some((control, _)) = running(loaded)? else { return Ok(()) };
    let peer = PeerRequest { update_only: true, limits: Some(Box::new(limits)), ..PeerRequest::new(key) };
    control.set(&SetRequest { peers: vec![peer], ..SetRequest::default() }).map_err(unanswered(loaded))?;
    eprintln!("limited it in the running {}", loaded.place.interface);
    Ok(())
}

pub(super) fn disable(args: &DisableArgs) -> Result<(), Failure> {
    let mut change = PeerEdit::begin(&args.meant)?;
    let (key, title) = (change.key, change.title().to_owned());
    if change.entry.state == RosterState::Disabled {
        eprintln!("{title} is disabled already");
        return Ok(());
    }
    change.write(|document| document.disable_peer(&key))?;
    eprintln!("disabled {title} in {}", change.file()?.place.file.display());
    change.leave()
}

pub(super) fn enable(args: &EnableArgs) -> Result<(), Failure> {
    let mut change = PeerEdit::begin(&args.meant)?;
    let (key, title) = (change.key, change.title().to_owned());
    if change.entry.state != RosterState::Disabled {
        eprintln!("{title} is not disabled");
        return Ok(());
    }
    change.write(|document| document.enable_peer(&key))?;
    let loaded = change.file()?;
    eprintln!("enabled {title} in {}", loaded.place.file.display());
    match running(loaded)? {
        Some((control, _)) => {
            let peer = loaded.config.peers.iter().rev().find(|peer| peer.public_key == key);
            peer.map_or(Ok(()), |peer| add::join(&control, peer, loaded))
        }
        None => Ok(()),
    }
}

pub(super) fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    let mut change = PeerEdit::begin(&args.meant)?;
    let (key, title) = (change.key, change.title().to_owned());
    change.write(|document| document.remove_peer(&key))?;
    eprintln!("removed {title} from {}", change.file()?.place.file.display());
    change.leave()
}
