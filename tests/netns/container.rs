//! What containers forbid: a read-only `/proc/sys`, `/run` or secret, a missing program.

use crate::implementation::ringtun;
use crate::updown::{DEFAULT, Site, peer};

const ADDRESS: &str = "Address = 192.168.96.1/24";

/// `ringtun up FILE` in a mount namespace of its own, after `mounts`; all it said.
fn up_after(site: &Site, mounts: &str, file: &str) -> Result<String, String> {
    let binary = ringtun();
    site.host.try_run(&format!("unshare -m sh -ec '{mounts}; {} up {file}' 2>&1", binary.display()))
}

fn with_read_only_sysctls(site: &Site) -> Result<String, String> {
    let mounts = "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys";
    up_after(site, mounts, &site.file().display().to_string())
}

#[test]
fn a_sysctl_that_is_right_already_is_not_written() {
    let Some(site) = Site::new() else { return };
    site.write(ADDRESS, &peer(DEFAULT));
    site.host.run("sysctl -qw net.ipv4.conf.all.src_valid_mark=1");
    with_read_only_sysctls(&site).unwrap_or_else(|error| panic!("{error}"));
    assert!(site.host.run("ip rule").contains("lookup 51820"));
    site.done("down");
    assert_eq!(site.valid_mark().trim(), "1");
}

#[test]
fn a_sysctl_that_cannot_be_set_is_refused_with_the_remedy_before_anything_is_done() {
    let Some(site) = Site::new() else { return };
    let before = site.look();
    site.write(&format!("{ADDRESS}\nPreUp = echo the hook runs"), &peer(DEFAULT));
    let said = with_read_only_sysctls(&site).expect_err("it is read-only");
    assert!(said.contains("/proc/sys is read-only") && said.contains("src_valid_mark=1"), "{said}");
    assert!(!said.contains("the hook runs"), "{said}");
    assert_eq!(site.look(), before);
    assert!(site.is_gone());
    // Who asks for no default route needs no sysctl.
    site.write(ADDRESS, &peer("AllowedIPs = 10.7.0.0/16"));
    with_read_only_sysctls(&site).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_secret_that_everyone_may_read_is_used_with_a_warning_where_its_mount_is_read_only() {
    let Some(site) = Site::new() else { return };
    site.write(ADDRESS, &peer("AllowedIPs = 10.7.0.0/16"));
    let (file, name) = (site.file(), &site.name);
    let mount = |option: &str| {
        format!(
            "mount -t tmpfs -o mode=1777 none /mnt; cp {} /mnt; chmod 644 /mnt/{name}.conf; mount -o remount,{option} /mnt",
            file.display()
        )
    };
    let secret = format!("/mnt/{name}.conf");
    let said = up_after(&site, &mount("rw"), &secret).expect_err("it can be mended");
    assert!(said.contains(&format!("chmod 600 {secret}")), "{said}");
    let said = up_after(&site, &mount("ro"), &secret).unwrap_or_else(|error| panic!("{error}"));
    assert!(said.contains("readable by everyone") && said.contains("defaultMode: 0400"), "{said}");
    assert!(!said.contains("chmod"), "{said}");
}

#[test]
fn a_read_only_run_is_told_with_the_remedy() {
    let Some(site) = Site::new() else { return };
    site.write(ADDRESS, "");
    let mounts = "mount -t tmpfs -o ro none /run";
    let said = up_after(&site, mounts, &site.file().display().to_string()).expect_err("it is read-only");
    assert!(said.contains("/run is read-only: mount a tmpfs there"), "{said}");
}
