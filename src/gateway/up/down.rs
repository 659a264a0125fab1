//! `down`, which removes a tunnel and what `up` made for it, and `save`.

use super::dns::Manager;
use super::journal::Trace;
use super::{
    Console, Failure, HooksLock, Result, Session, dns, firewall, load, policy, read, rights, snapshot,
    what_is_there,
};
use crate::gateway::config::{
    Config, FileLock, Interface, LoadError, Loaded, Mtu, Permissions, Place, Runtime, Table, write_private,
};
use crate::gateway::control::{ControlSocket, DeviceState};
use crate::sys::link;
use crate::tunnel::socket;
use std::time::{Duration, Instant};

/// How long the background process may take to end once its interface is gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a process that serves no interface here may take to show that it is ending.
const NAMESPACE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two checks whether the process or the interface is gone.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Takes the tunnel `given`, a name or a file, down: runs its hooks, saves the file where that says so, and removes
/// everything that `up` made.
///
/// # Errors
///
/// Where the tunnel is not up here, a hook fails, or the interface cannot be deleted. Failures of other steps are
/// reported on the console.
pub fn down(given: &str, console: Console<'_>) -> Result<()> {
    rights::check("down", given)?;
    let mut session = Session::new(&Place::named(given)?, console)?;
    let (interface, loaded) = read_for_down(given, &mut session)?;
    let Some(control) = ControlSocket::find(&session.name) else { return remove_remains(&mut session) };
    match whereabouts(&session)? {
        Whereabouts::Here => {}
        Whereabouts::Gone => return remove_remains(&mut session),
        Whereabouts::Elsewhere => {
            return Err(Failure::new(format!(
                "the interface of `{}' is in another network namespace, or was renamed: run this there, as by ip netns exec",
                session.name
            )));
        }
    }
    session.hooks(&interface.pre_down)?;
    if let Some(loaded) = loaded.filter(|_| interface.save_config) {
        let saved = save_to(&mut session, &control, loaded);
        if saved.is_err() {
            session.console.remark(
                "nothing is taken down, since SaveConfig= wants saved what the tunnel is now: mend what is told below, or take \
                 SaveConfig= out of the file, and run `down' again",
            );
        }
        saved?;
    }
    // The prefixes of the peers tell what wg-quick did. Where `up` brought the tunnel up, it noted that.
    let device = if session.journal.is_of_up() { control.get_interface() } else { control.get() };
    let device = device.map_err(Failure::of(control.path().display()))?;
    for trace in remains(&session, &device, interface.table) {
        match trace {
            // Without the interface there is no tunnel any more. No other failure is a reason to keep it.
            Trace::Interface => undo(&mut session, &trace)?,
            _ => {
                let undone = undo(&mut session, &trace);
                session.report(undone);
            }
        }
    }
    session.journal.forget();
    if !HooksLock::wait_for_end(&session.name) {
        session.console.remark("hooks of peers that were connected still run");
    }
    session.hooks(&interface.post_down)
}

/// Reads the file. Where it cannot be read, or only in part, what can be read counts: a bad file is no reason for a
/// tunnel to stay.
fn read_for_down(given: &str, session: &mut Session<'_>) -> Result<(Interface, Option<Loaded>)> {
    let place = Place::named(given)?;
    let error = match read(given, Permissions::Warn, &mut session.console) {
        Ok(loaded) => return Ok((loaded.config.interface.clone(), Some(loaded))),
        Err(error) => error,
    };
    if ControlSocket::find(&session.name).is_none() && !session.journal.has_remains() {
        return Err(error.into());
    }
    session.console.remark(&error.to_string());
    let LoadError::Content(_) = error else {
        session
            .console
            .remark("its PreDown and PostDown hooks cannot be read, and do not run; nothing is saved");
        return Ok((Interface::default(), None));
    };
    let salvage = place.salvage();
    let interface = salvage.interface;
    for line in salvage.lost {
        session.console.remark(&format!("{}:{line}: this hook cannot be read", place.file.display()));
    }
    session.console.remark(&format!(
        "of a file with mistakes {} PreDown and {} PostDown hooks run, and nothing is saved",
        interface.pre_down.len(),
        interface.post_down.len()
    ));
    Ok((interface, None))
}

/// Where the interface is that a process serves.
enum Whereabouts {
    Here,
    /// Nowhere: the process has ended, too.
    Gone,
    /// In another namespace, or under another name.
    Elsewhere,
}

/// Where the interface of a tunnel is, whose control socket is there. A process whose interface just went ends in a moment,
/// and is waited for.
fn whereabouts(session: &Session<'_>) -> Result<Whereabouts> {
    let begun = Instant::now();
    while session.index()?.is_none() {
        if ControlSocket::find(&session.name).is_none() {
            return Ok(Whereabouts::Gone);
        }
        if begun.elapsed() > NAMESPACE_TIMEOUT {
            return Ok(Whereabouts::Elsewhere);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(Whereabouts::Here)
}

/// Removes what a killed process left behind. Its interface is gone with it.
fn remove_remains(session: &mut Session<'_>) -> Result<()> {
    let name = session.name.clone();
    // That of a process that was killed a moment ago is given time to go.
    if what_is_there(session)?.0 {
        // It may go between two looks, so the last one is whether it is there.
        if !link::is_tunnel(&name) && session.index()?.is_some() {
            return Err(Failure::new(format!(
                "`{name}' is an interface, but no tunnel: there is nothing to take down"
            )));
        }
        return Err(Failure::new(format!(
            "`{name}' is an interface, but no process of it answers here: ip link delete dev {name} removes it"
        )));
    }
    if !session.journal.has_remains() {
        return Err(Failure::new(format!("`{name}' is not up")));
    }
    session.console.remark(&format!("the process of {name} was killed; what it left behind is removed"));
    session.undo_all();
    Ok(())
}

/// What is to be undone, in wg-quick's order: what was noted, and what wg-quick would have made of the same file.
fn remains(session: &Session<'_>, device: &DeviceState, table: Table) -> Vec<Trace> {
    let noted = session.journal.traces();
    let of_wg_quick = !session.journal.is_of_up() && table == Table::Auto && device.fwmark != 0;
    let mut traces = noted;
    // Other tunnels may rely on the sysctl by now.
    traces.retain(|trace| !matches!(trace, Trace::ValidMark) && !trace.goes_with_interface());
    let default = |v6: bool| {
        let zero = |prefix: &crate::routing::Prefix| prefix.len() == 0 && prefix.addr().is_ipv6() == v6;
        device.peers.iter().flat_map(|peer| &peer.allowed_ips).any(zero)
    };
    for v6 in [false, true] {
        // Where `up` noted nothing, wg-quick brought the tunnel up.
        if of_wg_quick && default(v6) {
            traces.push(Trace::Rules { v6, table: device.fwmark });
        }
    }
    traces.extend([Trace::Spoof, Trace::Interface]);
    let rank = |trace: &Trace| match trace {
        Trace::Dns(_) => 0,
        Trace::Clamp => 1,
        Trace::Spoof => 2,
        Trace::Rules { v6, .. } => 3 + u8::from(*v6),
        _ => 9,
    };
    traces.sort_by_key(rank);
    traces.dedup();
    traces
}

/// Undoes one step. A step that was noted and never taken needs nothing.
pub(super) fn undo(session: &mut Session<'_>, trace: &Trace) -> Result<()> {
    let name = session.name.clone();
    match trace {
        Trace::Interface => remove_interface(session),
        Trace::ValidMark => policy::forget_marked_answers(session),
        Trace::Rules { v6, table } => policy::remove_rules(session, *v6, *table),
        Trace::Spoof => firewall::remove_spoof(&name, None, &mut session.console),
        Trace::Clamp => firewall::remove_clamp(&name, &mut session.console),
        // systemd-resolved forgot the link when it went, and knows no such name any more.
        Trace::Dns(Manager::Resolved) if session.index()?.is_none() => Ok(()),
        Trace::Dns(manager) => dns::unset(manager, &name, &mut session.console),
        Trace::Address(_) | Trace::Route { .. } | Trace::Mtu(_) => Ok(()),
        Trace::File(_) | Trace::Preshared(_) | Trace::Keepalive(_) | Trace::Finished => Ok(()),
    }
}

/// Deletes the interface, and waits for its process, which then ends by itself.
fn remove_interface(session: &mut Session<'_>) -> Result<()> {
    let name = session.name.clone();
    if let Some(index) = session.index()? {
        let command = format!("ip link delete dev {name}");
        session.console.command(&command);
        session.host.delete_link(index).map_err(Failure::of(&command))?;
    }
    let begun = Instant::now();
    while ControlSocket::find(&name).is_some() || session.index()?.is_some() {
        if begun.elapsed() > EXIT_TIMEOUT {
            return Err(Failure::new(format!("the process of {name} does not end: see its log")));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    // A process that was killed could not remove its socket, and nobody listens on it any more.
    let _ = std::fs::remove_file(socket::path(&name));
    Ok(())
}

/// Writes what the tunnel is now to its file. What is the same keeps its bytes, comments included.
///
/// # Errors
///
/// Where the tunnel is not up, or its file cannot be read or replaced.
pub fn save(given: &str, mut console: Console<'_>) -> Result<()> {
    // Root needs no capability to speak to a device and to write a file.
    if !rustix::process::geteuid().is_root() {
        rights::check("save", given)?;
    }
    let loaded = load(given, Permissions::Warn, &mut console)?;
    let mut session = Session::new(&loaded.place, console)?;
    let control = session.control()?;
    save_to(&mut session, &control, loaded)
}

fn save_to(session: &mut Session<'_>, control: &ControlSocket, loaded: Loaded) -> Result<()> {
    let name = session.name.clone();
    let file = loaded.place.file.clone();
    let _lock = FileLock::take(&file).map_err(Failure::of(file.display()))?;
    // Another process may have changed the file since it was read.
    let mut loaded = loaded.place.load(Permissions::Warn)?;
    session.console.command(&format!("wg showconf {name}"));
    let device = control.configured().map_err(Failure::of(control.path().display()))?;
    let link = session.host.link(&name).map_err(Failure::of(&name))?;
    let addresses = match link {
        Some(link) => Some(session.host.addresses(link.index).map_err(Failure::of(&name))?),
        None => None,
    };
    let mtu = link.and_then(|link| u16::try_from(link.mtu).ok());
    let runtime = Runtime { device: &device, addresses: addresses.as_deref(), mtu };
    if let Err(errors) = loaded.document.save(&runtime) {
        return Err(LoadError::Content(loaded.place.errors(errors)).into());
    }
    write_private(&file, &loaded.document.bytes()).map_err(Failure::of(file.display()))?;
    take_over(session, &loaded.document.parse().map(|(config, _)| config).unwrap_or_default())
}

/// Notes that what the file has now is the tunnel's own, whoever added it.
fn take_over(session: &mut Session<'_>, config: &Config) -> Result<()> {
    if session.journal.traces().is_empty() {
        return Ok(());
    }
    session.journal.note_all(snapshot::of_peers(&config.peers))?;
    session.journal.note_all(config.interface.addresses.iter().copied().map(Trace::Address).collect())?;
    match config.interface.mtu {
        Some(Mtu::Bytes(mtu)) => session.journal.note_mtu(mtu.into()),
        _ => Ok(()),
    }
}
