//! Removes what a `reload` that failed had added. All of it is tried, whether a signal arrived or not; failures are
//! reported.

use super::journal::Trace;
use super::reload::{Reload, add_missing, remove_address, remove_route_from};
use super::routes::{Routes, in_order, is_default, table_of};
use super::{Failure, Result, Session, down, firewall, policy};
use crate::device::uapi::SetRequest;
use crate::gateway::mtu::IPV6_MINIMUM;

impl Reload<'_> {
    /// Undoes what [`Reload::add`] did before it failed.
    pub(super) fn roll_back(&self, session: &mut Session<'_>) {
        session.console.remark("that failed: what was changed is put back");
        let done = [
            self.roll_back_mtu(session),
            self.roll_back_rules(session),
            self.roll_back_routes(session),
            self.roll_back_mark(session),
            self.roll_back_addresses(session),
            self.roll_back_guard(session),
            session.journal.rewrite(self.before.traces.clone()),
        ];
        for one in done {
            session.report(one);
        }
    }

    fn roll_back_mtu(&self, session: &mut Session<'_>) -> Result<()> {
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

    /// Undoes the rules and the sysctl. They were noted before they were made.
    fn roll_back_rules(&self, session: &mut Session<'_>) -> Result<()> {
        let mut traces = session.journal.traces();
        traces.retain(|trace| matches!(trace, Trace::Rules { .. } | Trace::ValidMark));
        for trace in traces.iter().rev().filter(|trace| !self.before.traces.contains(trace)) {
            let done = down::undo(session, trace);
            session.report(done);
        }
        Ok(())
    }

    /// Removes the routes that the reload added, in whatever table.
    fn roll_back_routes(&self, session: &mut Session<'_>) -> Result<()> {
        let mark = self.mark_now()?;
        let now = Routes::read(&session.host, self.index, &session.journal)?;
        for &prefix in &self.prefixes {
            let Some(table) = table_of(self.table, prefix, mark) else { continue };
            if now.has(prefix, table) && !self.before.routes.has(prefix, table) {
                remove_route_from(session, self.index, prefix, table);
            }
        }
        Ok(())
    }

    fn roll_back_mark(&self, session: &mut Session<'_>) -> Result<()> {
        let mark = self.before.device.fwmark;
        if self.mark_now()? != mark {
            let request = SetRequest { fwmark: Some(mark), ..SetRequest::default() };
            let command = format!("wg set {} fwmark {mark}", session.name);
            session.regardless(&command, |_| self.control.set(&request));
        }
        Ok(())
    }

    fn roll_back_addresses(&self, session: &mut Session<'_>) -> Result<()> {
        if !self.changes_addresses() && self.mtu >= IPV6_MINIMUM {
            return Ok(());
        }
        let was = &self.before;
        let has = session.host.plain_addresses(self.index).map_err(Failure::of(&session.name))?;
        for address in has.into_iter().filter(|address| !was.addresses.contains(address)) {
            remove_address(session, self.index, address);
        }
        add_missing(session, self.index, &was.addresses)?;
        self.restore_routes(session, &in_order(was.prefixes.clone()), was.device.fwmark).map(drop)
    }

    /// Restores the rules against spoofing, which name the interface's addresses. Those are as they were by now.
    fn roll_back_guard(&self, session: &mut Session<'_>) -> Result<()> {
        let name = session.name.clone();
        for prefix in self.prefixes.iter().filter(|prefix| is_default(self.table, **prefix)) {
            let v6 = prefix.addr().is_ipv6();
            if !self.before.prefixes.contains(prefix) {
                firewall::remove_spoof(&name, Some(v6), &mut session.console)?;
            } else if self.changes_addresses() || self.mark.is_some() {
                policy::guard(session, self.index, v6, self.before.device.fwmark)?;
            }
        }
        Ok(())
    }
}
