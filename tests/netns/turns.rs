//! Commands at the same time, two on one name or on one host, and what they say where a step cannot be done.

use crate::implementation::ringtun;
use crate::lab::{Host, eventually};
use crate::updown::{DEFAULT, SOON, Site, peer};

const ADDRESS: &str = "Address = 192.168.96.1/24, fd96::1/64";

#[test]
fn of_two_ups_of_one_name_at_once_one_is_refused_and_the_other_stays_whole() {
    let Some(site) = Site::new() else { return };
    let before = site.look();
    site.write(ADDRESS, &peer(DEFAULT));
    site.done("up");
    let alone = site.look();
    site.done("down");
    let up = format!("{{ {} up {} 2>&1; echo ended $?; }}", ringtun().display(), site.file().display());
    for _ in 0..4 {
        let said = site.host.run(&format!("{up} & {up} & wait"));
        assert_eq!(said.matches("ended 0").count(), 1, "{said}");
        assert_eq!(said.matches("already exists: ringtun reload").count(), 1, "{said}");
        assert_eq!(site.look(), alone, "{said}");
        site.done("down");
        assert_eq!(site.look(), before);
        assert!(site.is_gone());
    }
}

#[test]
fn two_tunnels_that_come_up_at_once_get_a_table_each() {
    let (Some(one), Some(two)) = (Site::new(), Site::new()) else { return };
    let before = one.look();
    one.write("Address = 192.168.96.1/24", &peer("AllowedIPs = 0.0.0.0/0, ::/0"));
    two.write("Address = 192.168.97.1/24", &peer("AllowedIPs = 0.0.0.0/0, ::/0"));
    let verb = |verb: &str, site: &Site| {
        format!("{{ {} {verb} {} 2>&1; echo ended $?; }}", ringtun().display(), site.file().display())
    };
    for _ in 0..4 {
        let said = one.host.run(&format!("{} & {} & wait", verb("up", &one), verb("up", &two)));
        assert_eq!(said.matches("ended 0").count(), 2, "{said}");
        let rules = one.host.run("ip rule; ip -6 rule");
        for table in ["lookup 51820", "lookup 51821"] {
            assert_eq!(rules.matches(table).count(), 2, "{rules}{said}");
        }
        let said = one.host.run(&format!("{} & {} & wait", verb("down", &one), verb("down", &two)));
        assert_eq!(said.matches("ended 0").count(), 2, "{said}");
        assert_eq!(one.look(), before);
    }
}

#[test]
fn down_waits_for_an_up_that_is_at_work() {
    let Some(site) = Site::new() else { return };
    let before = site.look();
    site.write(&format!("{ADDRESS}\nPostUp = sleep 2"), &peer(DEFAULT));
    let file = site.file().display().to_string();
    let mut up = site.host.start(&ringtun().display().to_string(), &["up", &file]);
    eventually("it is in its last hook", SOON, || up.said().contains("sleep 2"));
    let said = site.done("down");
    assert!(said.contains("another ringtun"), "{said}");
    assert!(up.wait(SOON).expect("it ends").success(), "{}", up.said());
    assert_eq!(site.look(), before);
    assert!(site.is_gone());
}

#[test]
fn a_hook_may_use_ringtun_on_its_own_tunnel() {
    let Some(site) = Site::new() else { return };
    let (program, file) = (ringtun(), site.file());
    let hook = format!("{} reload {} && {0} save {1}", program.display(), file.display());
    site.write(&format!("{ADDRESS}\nPostUp = {hook}"), &peer(DEFAULT));
    let said = site.done("up");
    assert!(!said.contains("another ringtun"), "{said}");
    site.done("down");
}

#[test]
fn down_in_another_network_namespace_than_the_interfaces_says_so_and_does_nothing() {
    let Some(site) = Site::new() else { return };
    let other = Host::namespace();
    let log = site.directory.join("log");
    site.write(&format!("{ADDRESS}\nPreDown = echo hook >{}", log.display()), "");
    site.done("up");
    site.host.run(&format!("ip link set {} netns {}", site.name, other.name()));
    let said = site.refused("down");
    assert!(said.contains("another network namespace"), "{said}");
    assert!(!log.exists(), "the hook ran");
    other.run(&format!("{} down {} 2>&1", ringtun().display(), site.file().display()));
    assert!(log.exists() && site.is_gone());
}

#[test]
fn a_route_that_another_interface_has_is_told_with_that_interface() {
    let Some(site) = Site::new() else { return };
    site.host.run("ip route add 10.7.0.0/16 dev wire; ip route add 10.8.0.0/16 dev wire table 1234");
    site.write(ADDRESS, &peer("AllowedIPs = 10.7.0.0/16"));
    let said = site.refused("up");
    assert!(said.contains("wire has this route") && said.contains("Table = off"), "{said}");
    site.write(&format!("{ADDRESS}\nTable = 1234"), &peer("AllowedIPs = 10.8.0.0/16"));
    assert!(site.refused("up").contains("wire has this route"), "{said}");
}

#[test]
fn an_address_that_is_there_already_is_told_with_the_reason() {
    let Some(site) = Site::new() else { return };
    for address in ["192.168.96.1/24", "fd96::1/64"] {
        site.write(&format!("Address = {address}\nAddress = {address}"), "");
        let said = site.refused("up");
        assert!(said.contains("stands twice in the file"), "{said}");
        assert!(site.refused("check").contains("stands twice"), "{said}");
        site.write(&format!("Address = {address}\nPreUp = ip address add {address} dev %i"), "");
        let said = site.refused("up");
        assert!(said.contains("has this address already") && said.contains("PreUp"), "{said}");
        assert!(site.is_gone());
    }
}

#[test]
fn without_privileges_the_remedy_is_told_first() {
    let Some(site) = Site::new() else { return };
    site.write(ADDRESS, "");
    let (program, file) = (ringtun(), site.file());
    for verb in ["up", "down", "reload", "save"] {
        let said = site.host.try_run(&format!(
            "cp {} /tmp/rt-$$ && chmod 755 /tmp/rt-$$ && setpriv --reuid 65534 --regid 65534 --clear-groups /tmp/rt-$$ {verb} {} 2>&1; \
             code=$?; rm /tmp/rt-$$; exit $code",
            program.display(),
            file.display()
        ));
        let said = said.expect_err("nobody may");
        assert!(said.contains(&format!("`ringtun {verb}' needs root")), "{said}");
    }
}

#[test]
fn peers_of_a_tunnel_from_a_path_are_shown_by_name() {
    let Some(site) = Site::new() else { return };
    site.write(ADDRESS, &peer("# Name = laptop"));
    site.done("up");
    let shown = site.host.run(&format!("{} show {} --verbose", ringtun().display(), site.name));
    assert!(shown.contains("laptop"), "{shown}");
}
