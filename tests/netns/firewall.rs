//! Hosts without nft(8): iptables(8) in its place.

use crate::implementation::ringtun;
use crate::lab::{find_program, skip};
use crate::updown::{DEFAULT, Site, peer};
use std::path::PathBuf;

/// Commands that do not find nft, and find stand-ins of the site's first.
fn without_nft(site: &Site, commands: &str) -> Result<String, String> {
    without(site, &["nft"], commands)
}

fn without(site: &Site, programs: &[&str], commands: &str) -> Result<String, String> {
    // The programs' directory is replaced by one with links to all else that is there.
    let hide = |program: PathBuf| {
        let place = program.parent().expect("a directory").display();
        format!(
            "mount -t tmpfs none /mnt; mkdir /mnt/all /mnt/most; mount --bind {place} /mnt/all; \
             cp -as /mnt/all/. /mnt/most/; rm /mnt/most/{}; mount --bind /mnt/most {place}; ",
            program.file_name().expect("a name").display()
        )
    };
    let hide: String = programs.iter().filter_map(|program| find_program(program)).map(hide).collect();
    let path = site.directory.display();
    site.host.try_run(&format!("unshare -m sh -ec '{hide}PATH={path}:$PATH; export PATH; {commands}' 2>&1"))
}

/// iptables for both families that note what they are given, and print rules that were inserted and not deleted.
fn stand_ins(site: &Site) {
    use std::os::unix::fs::PermissionsExt;
    let directory = site.directory.display();
    for family in ["iptables", "ip6tables"] {
        let rules = format!("{directory}/{family}.rules");
        let restore = format!(
            "{{ echo {family}; cat; }} >{rules}.new; cat {rules}.new >>{directory}/log\n\
             if grep -q ^-D {rules}.new; then rm -f {rules}; else sed s/^-I/-A/ {rules}.new >>{rules}; fi"
        );
        let save = format!("! [ -e {rules} ] || cat {rules}");
        let programs = [
            (family.to_owned(), "exit 1"),
            (format!("{family}-restore"), restore.as_str()),
            (format!("{family}-save"), save.as_str()),
        ];
        for (name, script) in programs {
            let program = site.directory.join(name);
            std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("a program");
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("its mode");
        }
    }
}

fn noted(site: &Site, commands: &str) -> String {
    let log = site.directory.join("log");
    let _ = std::fs::remove_file(&log);
    without_nft(site, commands).unwrap_or_else(|error| panic!("{error}"));
    std::fs::read_to_string(&log).unwrap_or_default()
}

#[test]
fn without_nft_iptables_is_given_what_wg_quick_gives_it() {
    let Some(site) = Site::new() else { return };
    stand_ins(&site);
    let (binary, file, name) = (ringtun(), site.file(), &site.name);
    let (binary, file) = (binary.display(), file.display());
    site.write("Address = 192.168.96.1/24, fd96::1/64, 192.168.97.1/24", &peer(DEFAULT));
    let before = site.look();
    let ours = noted(&site, &format!("{binary} up {file}; {binary} down {file}"));
    for family in ["iptables", "ip6tables"] {
        assert_eq!(ours.lines().filter(|line| line == &family).count(), 2, "{ours}");
    }
    assert!(ours.contains(&format!("-I PREROUTING ! -i {name} -d 192.168.97.1 ")), "{ours}");
    assert_eq!(ours.matches("\n-I ").count(), ours.matches("\n-D ").count(), "{ours}");
    assert_eq!(site.look(), before);
    if find_program("wg-quick").is_none() || site.host.try_run("ip link add probe type wireguard").is_ok() {
        skip("wg-quick is not installed, or would take the kernel's own WireGuard");
        return;
    }
    let quick = format!("WG_QUICK_USERSPACE_IMPLEMENTATION={binary} wg-quick");
    let theirs = noted(&site, &format!("{quick} up {file}; {quick} down {file}"));
    assert_eq!(ours, theirs);
}

#[test]
fn without_nft_iptables_clamps_and_a_reload_clamps_anew() {
    let Some(site) = Site::new() else { return };
    stand_ins(&site);
    let (binary, file) = (ringtun(), site.file());
    let (binary, file) = (binary.display(), file.display());
    site.write("# ClampMSS = true\nMTU = 1380", "");
    let up = noted(&site, &format!("{binary} up {file}"));
    for mss in ["--set-mss 1340 ", "--set-mss 1320 "] {
        assert!(up.contains(mss), "{mss}: {up}");
    }
    site.write("# ClampMSS = true\nMTU = 1300", "");
    let reload = noted(&site, &format!("{binary} reload {file}"));
    let old = reload.lines().filter(|line| line.starts_with("-D ") && line.contains("--set-mss 13")).count();
    assert!(old == 2 && reload.contains("--set-mss 1260 "), "{reload}");
    let down = noted(&site, &format!("{binary} down {file}"));
    assert_eq!(down.matches("\n-D ").count(), 4, "{down}");
}

#[test]
fn a_missing_packet_filter_is_noticed_before_anything_is_done() {
    let Some(site) = Site::new() else { return };
    let up = format!("{} up {}", ringtun().display(), site.file().display());
    let hidden = ["nft", "iptables-restore", "ip6tables-restore"];
    for (more, peers) in [("", DEFAULT), ("\n# ClampMSS = true", "AllowedIPs = 10.7.0.0/16")] {
        site.write(&format!("Address = 192.168.96.1/24\nPreUp = echo the hook runs{more}"), &peer(peers));
        let said = without(&site, &hidden, &up).expect_err("no firewall");
        assert!(said.contains("install nftables"), "{said}");
        assert!(!said.contains("the hook runs") && !said.contains("[#] ringtun"), "{said}");
        assert!(site.is_gone());
    }
    // Where IPv4's is there alone, IPv4's default route can be guarded.
    if find_program("iptables-restore").is_some() {
        site.write("Address = 192.168.96.1/24", &peer("AllowedIPs = ::/0"));
        let said = without(&site, &["nft", "ip6tables-restore"], &up).expect_err("no firewall");
        assert!(said.contains("install nftables") && !said.contains("[#] ringtun"), "{said}");
    }
}

#[test]
fn the_rules_of_real_iptables_come_and_go() {
    let Some(site) = Site::new() else { return };
    if find_program("iptables-restore").is_none() {
        skip("iptables is not installed");
        return;
    }
    let (binary, file, name) = (ringtun(), site.file(), &site.name);
    let (binary, file) = (binary.display(), file.display());
    let ours = |site: &Site| {
        let saved = without_nft(site, "iptables-save; ip6tables-save").expect("rules");
        saved.lines().filter(|line| line.contains(name.as_str())).count()
    };
    site.write("# ClampMSS = true\nAddress = 192.168.96.1/24, fd96::1/64", &peer(DEFAULT));
    without_nft(&site, &format!("{binary} up {file}")).unwrap_or_else(|error| panic!("{error}"));
    // Each family: an address, two rules for the mark, two for the segments.
    assert_eq!(ours(&site), 10);
    site.write("# ClampMSS = true\nAddress = 192.168.97.1/24, fd96::1/64\nMTU = 1300", &peer(DEFAULT));
    without_nft(&site, &format!("{binary} reload {file}")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(ours(&site), 10);
    without_nft(&site, &format!("{binary} down {file}")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(ours(&site), 0);
}
