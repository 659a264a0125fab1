//! Default routes that spare the tunnel's own packets by mark, table and rule, as wg-quick(8) makes them.
//!
//! The tunnel's sockets mark what they send. A packet without the mark is looked up in a table of its own, where the
//! default route leads into the tunnel. A rule before that takes any better route of the main table.

use super::host::{Rule, proto};
use super::journal::Trace;
use super::lock::CommandLock;
use super::routes::Routes;
use super::{Failure, Result, Session, firewall};
use crate::device::uapi::SetRequest;
use crate::gateway::control::ControlSocket;
use crate::routing::Prefix;
use std::net::IpAddr;

/// The first table that is tried, and the mark that goes with it.
const FIRST_TABLE: u32 = 51820;
/// How many tables are tried until one is empty.
const TABLES: u32 = 10_000;
const VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

/// Adds `0.0.0.0/0` or `::/0` through the interface; what of it is there already stays. The rules come first: while
/// the table is empty they change nothing. A route in it without the main table's rule would take packets for which
/// the main table has better routes.
pub(super) fn add_default(
    session: &mut Session<'_>,
    control: &ControlSocket,
    routes: &mut Routes,
    index: u32,
    prefix: Prefix,
) -> Result<()> {
    // Until the route is there, another tunnel would choose the same table.
    let lock = CommandLock::take("", &mut session.console, &session.interrupt)?;
    let table = table(session, control)?;
    let v6 = prefix.addr().is_ipv6();
    add_rules(session, v6, table)?;
    if !routes.has(prefix, table) {
        routes.add(session, index, prefix, table)?;
    }
    drop(lock);
    if !v6 {
        accept_marked_answers(session)?;
    }
    session.interrupt.check()?;
    guard(session, index, v6, table)
}

/// Adds both rules, as far as they are lacking. A new rule goes before the others, and so the main table's, which is
/// to stand first, is added last.
fn add_rules(session: &mut Session<'_>, v6: bool, table: u32) -> Result<()> {
    session.journal.note(Trace::Rules { v6, table })?;
    let (has_mark, has_main) = session.host.has_rules(v6, table).map_err(Failure::of("ip rule show"))?;
    for (rule, is_there) in [(Rule::NotMarked(table), has_mark), (Rule::MainWithoutDefault, has_main)] {
        if is_there {
            continue;
        }
        let command = match rule {
            Rule::NotMarked(table) => format!("ip {} rule add not fwmark {table} table {table}", proto(v6)),
            Rule::MainWithoutDefault => {
                format!("ip {} rule add table main suppress_prefixlength 0", proto(v6))
            }
        };
        session.step(&command, |host| host.add_rule(v6, rule))?;
    }
    Ok(())
}

/// Undoes [`add_rules`], and reports the rules that were there.
pub(super) fn remove_rules(session: &mut Session<'_>, v6: bool, table: u32) -> Result<()> {
    let removed = session.host.remove_rules(v6, table).map_err(Failure::of("ip rule delete"))?;
    for rule in removed {
        session.console.command(&match rule {
            Rule::NotMarked(table) => format!("ip {} rule delete table {table}", proto(v6)),
            Rule::MainWithoutDefault => {
                format!("ip {} rule delete table main suppress_prefixlength 0", proto(v6))
            }
        });
    }
    Ok(())
}

/// Adds the rules against spoofing for the addresses that the interface has now.
pub(super) fn guard(session: &mut Session<'_>, index: u32, v6: bool, table: u32) -> Result<()> {
    let addresses = session.host.addresses(index).map_err(Failure::of(&session.name))?;
    session.journal.note(Trace::Spoof)?;
    firewall::add_spoof_rules(&session.name, v6, table, &addresses, &mut session.console)
}

/// The routing table: the number of the device's mark. A device without one is given the first number whose table is
/// empty.
fn table(session: &mut Session<'_>, control: &ControlSocket) -> Result<u32> {
    let failed = || Failure::of("looking for a routing table");
    let mark = control.get_interface().map_err(failed())?.fwmark;
    if mark != 0 {
        return Ok(mark);
    }
    let used = session.host.tables().map_err(failed())?;
    for table in FIRST_TABLE..FIRST_TABLE + TABLES {
        if !used.contains(&table) {
            let request = SetRequest { fwmark: Some(table), ..SetRequest::default() };
            session.step(&format!("wg set {} fwmark {table}", session.name.clone()), |_| {
                control.set(&request)
            })?;
            return Ok(table);
        }
    }
    Err(Failure::new(format!(
        "no routing table from {FIRST_TABLE} on is empty: expected `Table = NUMBER` or `Table = off`"
    )))
}

fn is_valid_mark_set() -> bool {
    std::fs::read_to_string(VALID_MARK).is_ok_and(|text| text.trim() == "1")
}

/// Checks, before anything is done, that a default route can be made here.
pub(super) fn check_default_route(prefix: Prefix) -> Result<()> {
    let v6 = prefix.addr().is_ipv6();
    firewall::check_spoof_tools(v6)?;
    if v6 || is_valid_mark_set() {
        return Ok(());
    }
    match rustix::fs::access(VALID_MARK, rustix::fs::Access::WRITE_OK) {
        Err(rustix::io::Errno::ROFS) => Err(Failure::new(
            "a default route needs net.ipv4.conf.all.src_valid_mark=1, and /proc/sys is read-only: set it from outside \
             (docker run --sysctl net.ipv4.conf.all.src_valid_mark=1; a pod's securityContext.sysctls), or set `Table = off`",
        )),
        _ => Ok(()),
    }
}

/// Makes the reverse path filter use the mark that connection tracking restored. The sysctl is not written where it is
/// set already: in a container it cannot be.
fn accept_marked_answers(session: &mut Session<'_>) -> Result<()> {
    if is_valid_mark_set() {
        return Ok(());
    }
    session.journal.note(Trace::ValidMark)?;
    session.step("sysctl -q net.ipv4.conf.all.src_valid_mark=1", |_| std::fs::write(VALID_MARK, "1"))
}

/// Undoes [`accept_marked_answers`].
pub(super) fn forget_marked_answers(session: &mut Session<'_>) -> Result<()> {
    let command = "sysctl -q net.ipv4.conf.all.src_valid_mark=0";
    session.console.command(command);
    std::fs::write(VALID_MARK, "0").map_err(Failure::of(command))
}

/// Addresses that only a default route reaches: those of documentation (RFC 5737, RFC 3849).
pub(super) const FAR: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
