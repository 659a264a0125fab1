//! `peer list`, `show`, `rename`, `disable`, `enable`, `remove`, and `add --nat`: the file, the running tunnel and its routes together.

use crate::implementation::ringtun;
use crate::updown::Site;

/// `ringtun peer WORDS --interface FILE`; all it said.
fn said(site: &Site, words: &str) -> Result<String, String> {
    let (program, file) = (ringtun(), site.file());
    site.host.try_run(&format!("{} peer {words} --interface {} 2>&1", program.display(), file.display()))
}

#[track_caller]
fn done(site: &Site, words: &str) -> String {
    said(site, words).unwrap_or_else(|error| panic!("{words}: {error}"))
}

/// What `peer list --json` says.
fn listed(site: &Site) -> Vec<serde_json::Value> {
    serde_json::from_str(&done(site, "list --json")).expect("JSON")
}

fn states(site: &Site) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    listed(site).iter().map(|peer| (text(&peer["name"]), text(&peer["state"]))).collect()
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs.map(|(name, state)| (name.to_owned(), state.to_owned())).into()
}

#[test]
fn a_peer_goes_out_of_use_and_comes_back_in_file_tunnel_and_routes() {
    let Some(site) = Site::new() else { return };
    site.write("Address = 192.168.96.1/24\nListenPort = 4500", "");
    done(&site, "add laptop --endpoint 10.99.0.1 --behind 10.7.0.0/16 --psk");
    done(&site, "add exit --endpoint 10.99.0.1 --behind 0.0.0.0/0");
    assert_eq!(states(&site), pairs([("laptop", "down"), ("exit", "down")]));
    site.done("up");
    let up = (site.look(), site.read(), site.host.run(&format!("wg showconf {}", site.name)));
    assert_eq!(states(&site), pairs([("laptop", "never"), ("exit", "never")]));

    for name in ["laptop", "exit"] {
        done(&site, &format!("disable {name}"));
        assert!(done(&site, &format!("disable {name}")).contains("already"));
    }
    assert_eq!(states(&site), pairs([("laptop", "disabled"), ("exit", "disabled")]));
    assert!(site.host.run(&format!("wg show {} peers", site.name)).trim().is_empty());
    let routes = site.host.run("ip route show table all; ip rule; nft list ruleset");
    assert!(!routes.contains("10.7.0.0/16") && !routes.contains("suppress_prefixlength"), "{routes}");
    // A reload agrees, and a new peer takes neither name nor address of one that is out of use.
    let before = site.look();
    site.done("reload");
    assert_eq!(site.look(), before);
    assert!(said(&site, "add laptop --endpoint 10.99.0.1").is_err());
    let third = done(&site, "add third --endpoint 10.99.0.1");
    assert!(third.contains("Address = 192.168.96.4/24"), "{third}");
    done(&site, "remove third");

    for name in ["laptop", "exit"] {
        done(&site, &format!("enable {name}"));
    }
    assert_eq!((site.look(), site.read()), (up.0.clone(), up.1));
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&site.host.run(&format!("wg showconf {}", site.name))), sorted(&up.2));
    site.done("down");
    assert!(site.is_gone());
}

#[test]
fn a_peer_is_renamed_shown_and_removed() {
    let Some(site) = Site::new() else { return };
    let interface = "Address = 192.168.96.1/24\nListenPort = 4500";
    site.write(interface, "");
    let before = site.read();
    site.done("up");
    let up = site.look();
    done(&site, "add laptop --endpoint 10.99.0.1 --behind 10.7.0.0/16");
    let key = listed(&site)[0]["public_key"].as_str().expect("a key").to_owned();
    done(&site, "rename laptop \"Anna's notebook\"");
    assert_eq!(states(&site), pairs([("Anna's notebook", "never")]));
    let shown = done(&site, &format!("show {}", &key[..6]));
    for fact in
        ["Anna's notebook", key.as_str(), "192.168.96.2/32, 10.7.0.0/16", &site.file().display().to_string()]
    {
        assert!(shown.contains(fact), "{fact}: {shown}");
    }
    let error = said(&site, "show nobody").expect_err("there is no such peer");
    assert!(error.contains("Anna's notebook"), "{error}");
    done(&site, "remove \"anna's notebook\"");
    assert!(listed(&site).is_empty());
    assert_eq!((site.read().trim_end(), site.look()), (before.trim_end(), up), "nothing is left behind");
    // What only the device has is no file's to change.
    site.host.run(&format!("wg set {} peer {key} allowed-ips 10.8.0.0/16", site.name));
    let error = said(&site, &format!("disable {key}")).expect_err("it is in no file");
    assert!(error.contains("ringtun save"), "{error}");
    site.done("down");
}

#[test]
fn a_peer_that_sends_everything_here_is_let_out() {
    let Some(site) = Site::new() else { return };
    site.write("Address = 192.168.96.1/24\nListenPort = 4500", "");
    site.host.run("sysctl -qw net.ipv4.ip_forward=0");
    site.done("up");
    let told = done(&site, "add one --endpoint 10.99.0.1 --allowed-ips 0.0.0.0/0");
    for word in ["net.ipv4.ip_forward=1", "masquerade", "192.168.96.0/24", "oifname wire"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert!(!site.read().contains("PostUp"), "{}", site.read());
    assert!(
        said(&site, "add two --endpoint 10.99.0.1 --nat").expect_err("it sends little").contains("0.0.0.0/0")
    );
    done(&site, "add three --endpoint 10.99.0.1 --allowed-ips 0.0.0.0/0 --nat");
    let is_open = || {
        site.host.run("sysctl -n net.ipv4.ip_forward").trim() == "1"
            && site
                .host
                .run("nft list ruleset")
                .contains("ip saddr 192.168.96.0/24 oifname \"wire\" masquerade")
    };
    assert!(is_open());
    assert!(
        !done(&site, "add four --endpoint 10.99.0.1 --allowed-ips 0.0.0.0/0").contains("note: this host")
    );
    site.done("down");
    assert!(!site.host.run("nft list ruleset").contains("masquerade"));
    site.host.run("sysctl -qw net.ipv4.ip_forward=0");
    site.done("up");
    assert!(is_open(), "after a new start: {}", site.read());
    site.done("down");
}
