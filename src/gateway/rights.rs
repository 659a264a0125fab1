//! Which of root's rights this process has.

/// CAP_NET_ADMIN's bit (linux/capability.h).
const NET_ADMIN: u64 = 1 << 12;

/// Whether interfaces may be made and changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetAdmin {
    /// By this process.
    Held,
    /// Not by this process; by one of root's.
    ForRoot,
    /// Neither by this process nor by any that it starts, whoever runs it: a container's or a service's bounds.
    Withheld,
}

/// What the kernel says of this process. Where that cannot be read, the right is taken to be there: what needs it will tell.
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
