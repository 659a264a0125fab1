//! Which of root's rights this process has.

/// CAP_NET_ADMIN's bit (linux/capability.h).
const NET_ADMIN: u64 = 1 << 12;

/// Whether interfaces may be made and changed, which takes CAP_NET_ADMIN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetAdmin {
    /// This process may.
    Held,
    /// This process may not, but one of root's may.
    ForRoot,
    /// Neither this process nor any that it starts may, whoever runs it. A container or a service is bounded like this.
    Withheld,
}

/// What the kernel says of this process. Where that cannot be read, the right is taken to be there: what needs it
/// reports its lack.
pub fn net_admin() -> NetAdmin {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    net_admin_by(&status)
}

fn net_admin_by(status: &str) -> NetAdmin {
    let lacks = |set: &str| capabilities(status, set).is_some_and(|held| held & NET_ADMIN == 0);
    match (lacks("CapEff:"), lacks("CapBnd:")) {
        (false, _) => NetAdmin::Held,
        (true, false) => NetAdmin::ForRoot,
        (true, true) => NetAdmin::Withheld,
    }
}

fn capabilities(status: &str, set: &str) -> Option<u64> {
    let held = status.lines().find_map(|line| line.strip_prefix(set))?;
    u64::from_str_radix(held.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_kernels_words() {
        assert_eq!(net_admin_by("CapEff:\t0000000000001000\nCapBnd:\t0000000000001000\n"), NetAdmin::Held);
        assert_eq!(net_admin_by("CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n"), NetAdmin::ForRoot);
        assert_eq!(
            net_admin_by("CapEff:\t0000000000000400\nCapBnd:\t0000000000000400\n"),
            NetAdmin::Withheld
        );
        assert_eq!(net_admin_by("Name:\tx\n"), NetAdmin::Held);
    }
}
