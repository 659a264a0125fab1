//! Reads what the kernel and the tools print.

/// The major and minor number in a kernel's release such as `6.1.0-18-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether `feature` is on in the output of `ethtool -k`.
pub(super) fn ethtool_feature(output: &str, feature: &str) -> Option<bool> {
    output.lines().find_map(|line| {
        let (name, state) = line.trim().split_once(':')?;
        (name == feature).then(|| state.split_whitespace().next() == Some("on"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15-rc1+"), Some((5, 15)));
        assert_eq!(version("x"), None);
        assert!(version("5.15") < version("6.2"));
    }

    #[test]
    fn features_are_found_by_their_whole_name() {
        let text =
            "Features for eth0:\ngeneric-receive-offload: on\n\trx-gro-list: off [fixed]\nrx-gro-hw: on\n";
        assert_eq!(ethtool_feature(text, "generic-receive-offload"), Some(true));
        assert_eq!(ethtool_feature(text, "rx-gro-list"), Some(false));
        assert_eq!(ethtool_feature(text, "rx-gro"), None);
    }
}
