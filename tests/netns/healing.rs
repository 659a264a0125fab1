//! Tunnels whose file was broken or removed while they were up: they can be taken down all the same.

use crate::implementation::ringtun;
use crate::lab::eventually;
use crate::updown::{DEFAULT, SOON, Site, peer};

/// A tunnel with a default route and hooks that leave a word in `log`; and how the host was before.
fn up_with_hooks() -> Option<(Site, String)> {
    let site = Site::new()?;
    let before = site.look();
    let log = site.directory.join("log");
    let hook = |key: &str| format!("\n{key} = echo {key} >>{}", log.display());
    let hooks = ["PreDown", "PostDown"].map(hook).concat();
    site.write(&format!("Address = 192.168.96.1/24, fd96::1/64\nSaveConfig = true{hooks}"), &peer(DEFAULT));
    Some((site, before))
}

fn log(site: &Site) -> String {
    std::fs::read_to_string(site.directory.join("log")).unwrap_or_default()
}

#[test]
fn a_file_that_became_invalid_keeps_no_tunnel_up_and_what_can_be_read_of_it_counts() {
    let breaks: [fn(&str) -> String; 4] = [
        |text| format!("{text}AllowedIPs = 10.0.0.0/8,\n"),
        |text| format!("{text}garbage\n"),
        |text| text.replace("PrivateKey = ", "PrivateKey = x"),
        |text| text.replace("Address = ", "Adress = "),
    ];
    for broken in breaks {
        let Some((site, before)) = up_with_hooks() else { return };
        site.done("up");
        site.write_whole(&broken(&site.read()));
        let text = site.read();
        assert!(site.refused("reload").contains(".conf:"));
        let said = site.done("down");
        assert!(said.contains(&format!("{}:", site.file().display())), "{said}");
        assert!(said.contains("1 PreDown and 1 PostDown hook"), "{said}");
        assert_eq!(log(&site), "PreDown\nPostDown\n");
        assert_eq!(site.look(), before, "{text}");
        assert!(site.is_gone());
        assert_eq!(site.read(), text, "a file that was not understood was written");
        assert!(site.refused("down").contains(".conf:"));
    }
}

#[test]
fn a_hook_that_cannot_be_read_is_named_and_keeps_no_tunnel_up() {
    let Some((site, before)) = up_with_hooks() else { return };
    site.done("up");
    site.write_whole(&site.read().replace("PreDown =", "PreDown"));
    let said = site.done("down");
    assert!(said.contains(&format!("{}:5: this hook cannot be read", site.file().display())), "{said}");
    assert!(said.contains("0 PreDown and 1 PostDown hook"), "{said}");
    assert_eq!(log(&site), "PostDown\n");
    assert_eq!(site.look(), before);
    assert!(site.is_gone());
}

#[test]
fn a_file_that_was_removed_keeps_no_tunnel_up() {
    let Some((site, before)) = up_with_hooks() else { return };
    site.done("up");
    std::fs::remove_file(site.file()).expect("the file");
    let said = site.done("down");
    assert!(said.contains("PreDown and PostDown hooks cannot be read"), "{said}");
    assert_eq!(site.look(), before);
    assert!(site.is_gone() && log(&site).is_empty());
    assert!(!site.file().exists(), "the file was written anew");
    // Nothing is up any more: what is wrong is the name.
    assert!(site.refused("down").contains("No such file"));
}

#[test]
fn a_service_whose_file_became_invalid_takes_its_tunnel_down_when_it_is_stopped() {
    let Some((site, before)) = up_with_hooks() else { return };
    let file = site.file().display().to_string();
    let mut service = site.host.start(&ringtun().display().to_string(), &["service", &file]);
    eventually("the tunnel is up", SOON, || {
        std::fs::read_to_string(format!("/run/ringtun/{}", site.name))
            .is_ok_and(|notes| notes.contains("finished"))
    });
    site.write_whole(&format!("{}garbage\n", site.read()));
    service.signal("TERM");
    let status = service.wait(SOON).expect("it ends");
    assert!(status.success(), "{status}: {}", service.said());
    assert_eq!(log(&site), "PreDown\nPostDown\n");
    assert_eq!(site.look(), before);
    assert!(site.is_gone());
}
