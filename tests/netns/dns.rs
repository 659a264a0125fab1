//! Resolvers while a tunnel is up. What manages them is a stand-in that notes how it is called.

use crate::implementation::ringtun;
use crate::lab::find_program;
use crate::updown::Site;
use std::path::Path;

/// A program of this name that notes its arguments, and what it is given with `-a`.
fn stand_in(site: &Site, name: &str) {
    use std::os::unix::fs::PermissionsExt;
    let (program, log) = (site.directory.join(name), log_of(site));
    let script = format!("#!/bin/sh\n{{ echo \"$*\"; [ \"$1\" != -a ] || cat; }} >>{log}\n");
    std::fs::write(&program, script).expect("a program");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("its mode");
}

fn log_of(site: &Site) -> String {
    site.directory.join("log").display().to_string()
}

/// Whether the commands end well where the stand-ins come first, and what these noted.
fn noted(site: &Site, commands: &str) -> (bool, String) {
    let log = log_of(site);
    let _ = std::fs::remove_file(&log);
    let done =
        site.host.try_run(&format!("PATH={}:$PATH; export PATH; {commands}", site.directory.display()));
    (done.is_ok(), std::fs::read_to_string(&log).unwrap_or_default())
}

const DNS: &str = "DNS = 9.9.9.9, 2620:fe::fe, example.org\nDNS = lan";

#[test]
fn resolvers_are_set_through_resolvconf_as_wg_quick_does_and_unset_when_a_later_step_fails() {
    let Some(site) = Site::new() else { return };
    stand_in(&site, "resolvconf");
    let (binary, file) = (ringtun(), site.file());
    site.write(DNS, "");
    let (binary, file) = (binary.display(), file.display());
    let (_, ours) = noted(&site, &format!("{binary} up {file} && {binary} down {file}"));
    let name = &site.name;
    let set =
        format!("-a {name} -m 0 -x\nnameserver 9.9.9.9\nnameserver 2620:fe::fe\nsearch example.org lan\n");
    assert_eq!(ours, format!("{set}-d {name} -f\n"));
    if find_program("wg-quick").is_some() {
        let quick = format!("WG_QUICK_USERSPACE_IMPLEMENTATION={binary} wg-quick");
        let (_, theirs) = noted(&site, &format!("{quick} up {file} && {quick} down {file}"));
        assert_eq!(ours, theirs);
    }
    site.write(&format!("{DNS}\nPostUp = false"), "");
    let (up, said) = noted(&site, &format!("{binary} up {file}"));
    assert!(!up);
    assert_eq!(said, ours, "a failed up does not take its resolvers back");
}

/// Debian's package systemd-resolved makes resolvconf(8) a name of resolvectl(1). `~.`: the tunnel's servers alone are asked.
#[test]
fn systemd_resolved_is_called_by_its_own_name_and_forgets_a_dead_tunnel_by_itself() {
    let Some(site) = Site::new() else { return };
    stand_in(&site, "resolvectl");
    std::os::unix::fs::symlink("resolvectl", site.directory.join("resolvconf")).expect("a link");
    let (binary, file) = (ringtun(), site.file());
    let (binary, file, name) = (binary.display(), file.display(), &site.name);
    let set = format!("dns {name} 9.9.9.9 2620:fe::fe\ndomain {name} ~. example.org lan\n");
    for interface in [DNS.to_owned(), format!("{DNS}\nPostUp = false")] {
        site.write(&interface, "");
        let (up, said) = noted(&site, &format!("{binary} up {file}"));
        let down = if up { noted(&site, &format!("{binary} down {file}")).1 } else { String::new() };
        assert_eq!(said + &down, format!("{set}revert {name}\n"));
        assert!(site.is_gone());
    }
    site.write(&format!("{DNS}\nPostUp = ip link delete %i"), "");
    let gone = format!("while [ -e /sys/class/net/{name} ]; do sleep 0.1; done");
    let (_, said) = noted(&site, &format!("{binary} up {file} && {gone} && {binary} down {file}"));
    assert_eq!(said, set, "resolvectl was asked about an interface that is gone");
    assert!(!Path::new(&format!("/run/ringtun/{name}")).exists());
}
