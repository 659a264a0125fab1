//! What a `reload` that failed had added is removed again. Whether a signal came or not, all of it is tried; what fails is told.

use super::apply::{in_order, is_default};
use super::journal::Trace;
use super::reload::{Reload, add_missing, remove_address, remove_route_from};
use super::{Failure, Result, Session, down, firewall, policy};
use crate::device::uapi::SetRequest;
use crate::routing::Prefix;

/// With less, an interface has no IPv6 addresses (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

impl Reload<'_> {
    /// `added`: routes, and their tables.
    pub(super) fn put_back(&self, session: &mut Session<'_>, added: &[(Prefix, u32)]) {
        session.console.remark("that failed: what was changed is put back");
        let done = [
            self.put_back_mtu(session),
            self.put_back_rules(session),
            self.put_back_routes(session, added),
            self.put_back_mark(session),
            self.put_back_addresses(session),
            self.put_back_guard(session),
            session.journal.rewrite(&self.before.traces),
        ];
        for one in done {
            session.told(one);
        }
    }

    fn put_back_mtu(&self, session: &mut Session<'_>) -> Result<()> {
        let (name, mtu) = (session.name.clone(), self.before.mtu);
        let link = session.host.link(&name).map_err(Failure::of(&name))?;
        if link.is_none_or(|link| link.mtu == mtu) {
            return Ok(());
        }
        let command = format!("ip link set mtu {mtu} dev {name}");
        session.regardless(&command, |host| host.set_mtu(self.index, mtu, false));
        match self.before.traces.contains(&Trace::Clamp) {
            true => firewall::clamp(&name, mtu, &mut session.console),
            false => Ok(()),
        }
    }

    /// Rules, and the sysctl: they were noted before they were made.
    fn put_back_rules(&self, session: &mut Session<'_>) -> Result<()> {
        let mut traces = session.journal.traces();
        traces.retain(|trace| matches!(trace, Trace::Rules { .. } | Trace::ValidMark));
        for trace in traces.iter().rev().filter(|trace| !self.before.traces.contains(trace)) {
            let done = down::undo(session, trace);
            session.told(done);
        }
        Ok(())
    }

    fn put_back_routes(&self, session: &mut Session<'_>, added: &[(Prefix, u32)]) -> Result<()> {
        let (mark, was) = (self.mark_now()?, &self.before);
        // A default route may be there, and what follows it have failed: then `added` lacks it.
        let is_begun = |prefix: &Prefix| {
            let was_there = was.prefixes.contains(prefix) && mark == was.device.fwmark;
            is_default(self.table, *prefix) && !was_there
        };
        let begun = self.prefixes.iter().filter(|prefix| is_begun(prefix)).map(|&prefix| (prefix, mark));
        for (prefix, table) in begun.chain(added.iter().copied()) {
            if session.host.has_route(self.index, prefix, table).map_err(Failure::of(prefix))? {
                remove_route_from(session, self.index, prefix, table);
            }
        }
        Ok(())
    }

    fn put_back_mark(&self, session: &mut Session<'_>) -> Result<()> {
        let mark = self.before.device.fwmark;
        if self.mark_now()? != mark {
            let request = SetRequest { fwmark: Some(mark), ..SetRequest::default() };
            let command = format!("wg set {} fwmark {mark}", session.name);
            session.regardless(&command, |_| self.control.set(&request));
        }
        Ok(())
    }

    fn put_back_addresses(&self, session: &mut Session<'_>) -> Result<()> {
        if !self.moves() && self.mtu >= IPV6_MIN_MTU {
            return Ok(());
        }
        let was = &self.before;
        let has = session.host.addresses(self.index).map_err(Failure::of(&session.name))?;
        for address in has.into_iter().filter(|address| !was.addresses.contains(address)) {
            remove_address(session, self.index, address);
        }
        add_missing(session, self.index, &was.addresses)?;
        self.restore_routes(session, &in_order(was.prefixes.clone()), was.device.fwmark).map(drop)
    }

    /// The rules against spoofing are those of the addresses, which are as they were.
    fn put_back_guard(&self, session: &mut Session<'_>) -> Result<()> {
        let name = session.name.clone();
        for prefix in self.prefixes.iter().filter(|prefix| is_default(self.table, **prefix)) {
            let v6 = prefix.addr().is_ipv6();
            if !self.before.prefixes.contains(prefix) {
                firewall::remove_spoof(&name, Some(v6), &mut session.console)?;
            } else if self.moves() || self.mark.is_some() {
                policy::guard(session, self.index, v6, self.before.device.fwmark)?;
            }
        }
        Ok(())
    }

    fn mark_now(&self) -> Result<u32> {
        let device = self.control.get().map_err(Failure::of(self.control.path().display()))?;
        Ok(device.fwmark)
    }
}
