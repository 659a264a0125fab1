//! Names for numbers that wg(8) and ip(8) look up: UDP services and routing tables.

use std::fs;
use std::path::{Path, PathBuf};

/// The port of a UDP service by name, from /etc/services.
pub(super) fn service_port(name: &str) -> Option<u16> {
    service_in(&fs::read_to_string("/etc/services").ok()?, name)
}

/// The number of a routing table by name: of a built-in one, or from iproute2's files, the administrator's first.
pub(super) fn table_number(name: &str) -> Option<u32> {
    let built_in = match name {
        "local" => Some(255),
        "main" => Some(254),
        "default" => Some(253),
        _ => None,
    };
    let files =
        || ["/etc/iproute2", "/usr/share/iproute2", "/usr/lib/iproute2"].into_iter().flat_map(files_of);
    built_in.or_else(|| files().find_map(|file| table_in(&fs::read_to_string(file).ok()?, name)))
}

fn files_of(directory: &str) -> Vec<PathBuf> {
    let mut files = vec![Path::new(directory).join("rt_tables")];
    if let Ok(entries) = fs::read_dir(Path::new(directory).join("rt_tables.d")) {
        let more = entries.flatten().map(|entry| entry.path());
        files.extend(more.filter(|path| path.extension().is_some_and(|extension| extension == "conf")));
    }
    files
}

/// Finds the port in lines of the form `name port/udp alias…  # comment`.
fn service_in(text: &str, name: &str) -> Option<u16> {
    text.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let first = words.next()?;
        let port = words.next()?.strip_suffix("/udp")?;
        std::iter::once(first).chain(words).any(|word| word == name).then(|| port.parse().ok())?
    })
}

/// Finds the number in lines of the form `number name`.
fn table_in(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let number = words.next()?;
        (words.next()? == name).then(|| number.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_by_name_and_alias_for_udp_only() {
        let text =
            "# x\nhttp 80/tcp www\ndomain 53/tcp\ndomain\t53/udp\t# names\nhttps 443/udp alias1 alias2\n";
        assert_eq!(service_in(text, "domain"), Some(53));
        assert_eq!(service_in(text, "alias2"), Some(443));
        assert_eq!(service_in(text, "http"), None);
        assert_eq!(service_in(text, "names"), None);
    }

    #[test]
    fn tables_are_found_by_name() {
        let text = "#\n255\tlocal\n#1 inr.ruhep\n200 vpn # mine\n";
        assert_eq!(table_in(text, "vpn"), Some(200));
        assert_eq!(table_in(text, "inr.ruhep"), None);
        assert_eq!(table_number("main"), Some(254));
    }
}
