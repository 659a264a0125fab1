//! Whether interfaces of this host can have IPv6.

use std::path::Path;

/// Why an interface cannot have IPv6, and the remedy. `None` where it can. The name `default` stands for an interface
/// that is yet to be made.
pub fn why_not(interface: &str) -> Option<String> {
    why_not_in(Path::new("/proc/sys/net/ipv6"), interface)
}

fn why_not_in(sysctls: &Path, interface: &str) -> Option<String> {
    if !sysctls.exists() {
        return Some("this kernel has no IPv6: remove IPv6 from the file".to_owned());
    }
    let value = std::fs::read_to_string(sysctls.join("conf").join(interface).join("disable_ipv6"));
    let on = if interface == "default" { "new interfaces" } else { interface };
    value.is_ok_and(|value| value.trim() == "1").then(|| {
        // In sysctl(8)'s keys a slash stands for the dot of an interface's name.
        let key = interface.replace('.', "/");
        format!(
            "IPv6 is disabled on {on}: enable it with `sysctl -w net.ipv6.conf.{key}.disable_ipv6=0`, or remove IPv6 from the file"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disabled_interface_is_told_with_its_sysctl() {
        let directory = std::env::temp_dir().join(format!("rt-ipv6-{}", std::process::id()));
        assert!(why_not_in(&directory, "wg0").is_some_and(|why| why.contains("no IPv6")));
        for (interface, value, key) in
            [("wg.0", "1\n", "conf.wg/0.disable"), ("default", "1\n", "new interfaces")]
        {
            let place = directory.join("conf").join(interface);
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join("disable_ipv6"), value).unwrap();
            assert!(why_not_in(&directory, interface).is_some_and(|why| why.contains(key)), "{interface}");
            std::fs::write(place.join("disable_ipv6"), "0\n").unwrap();
            assert_eq!(why_not_in(&directory, interface), None);
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
