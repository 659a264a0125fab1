//! `show`, `showconf` and `status` of a device with traffic.

use crate::implementation::{Device, Implementation, Io, RINGTUN_TWO, ringtun, ringtun_itself};
use crate::lab::{Host, eventually, join, ready, serial, sh, skip};
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(15);
/// Attempts before two outputs must agree: the second may turn between them, or a timer send a keepalive.
const ATTEMPTS: usize = 10;
const DEBIAN_12: &str = "v1.0.20210914";
const FIELDS: [&str; 12] = [
    "public-key",
    "private-key",
    "listen-port",
    "fwmark",
    "peers",
    "preshared-keys",
    "endpoints",
    "allowed-ips",
    "latest-handshakes",
    "persistent-keepalive",
    "transfer",
    "dump",
];

/// Runs `ringtun WORDS` and `wg WORDS`, each as `wrap` has it, until they agree; what they agree on.
#[track_caller]
fn agree_as(host: &Host, words: &str, wrap: impl Fn(&str) -> String) -> String {
    let both = || {
        let run = |program: &str| host.run(&wrap(&format!("{program} {words}")));
        (run(&ringtun().display().to_string()), run("wg"))
    };
    for _ in 1..ATTEMPTS {
        let (ours, theirs) = both();
        if ours == theirs {
            return ours;
        }
    }
    let (ours, theirs) = both();
    assert_eq!(ours, theirs, "{words}");
    ours
}

#[track_caller]
fn agree(host: &Host, environment: &str, words: &str) -> String {
    agree_as(host, words, |command| format!("{environment} {command}"))
}

/// A command that sees these devices' sockets and no others: the directory is one for all namespaces and tests.
fn seeing(names: &[&str], command: &str) -> String {
    let links = names.iter().map(|name| {
        format!("touch /mnt/{name}.sock; mount --bind /run/wireguard/{name}.sock /mnt/{name}.sock; ")
    });
    let links: String = links.collect();
    format!(
        "unshare -m sh -ec 'mount -t tmpfs none /mnt; {links}mount --rbind /mnt /run/wireguard; {command}'"
    )
}

fn key() -> (String, String) {
    let private = sh("wg genkey").expect("wg genkey").trim().to_owned();
    let public = sh(&format!("echo {private} | wg pubkey")).expect("wg pubkey").trim().to_owned();
    (private, public)
}

/// Two hosts with a device each that have shaken hands, and the first one's configuration is a rich one.
struct Busy {
    a: Arc<Host>,
    device: Device,
    peer: String,
    _b: (Arc<Host>, Device),
}

fn busy() -> Option<Busy> {
    if !ready() || !ringtun_itself() {
        return None;
    }
    let (a, b) = (Arc::new(Host::namespace()), Arc::new(Host::namespace()));
    join(&a, &b);
    a.run(&format!("ip addr add 192.0.2.1/24 dev {}", a.link));
    b.run(&format!("ip addr add 192.0.2.2/24 dev {}", b.link));
    let (near, far) = (
        Device::start(&a, RINGTUN_TWO),
        Device::start(&b, Implementation::Ringtun { workers: 1, io: Io::Syscalls }),
    );
    let ((near_private, near_public), (far_private, far_public)) = (key(), key());
    let psk = sh("wg genpsk").expect("wg genpsk").trim().to_owned();
    let silent = [key().1, key().1];
    let near_text = format!(
        "[Interface]\nPrivateKey = {near_private}\nListenPort = 4500\nFwMark = 0xca6c\n\
         [Peer]\nPublicKey = {}\n\
         [Peer]\nPublicKey = {}\nEndpoint = [fe80::2%{}]:7\nAllowedIPs = 10.9.0.0/16, fd00:9::/32, ::1:0/112, ::ffff:0:0/96\n\
         PersistentKeepalive = 3661\n\
         [Peer]\nPublicKey = {far_public}\nPresharedKey = {psk}\nEndpoint = 192.0.2.2:4501\n\
         AllowedIPs = 10.0.0.2/32, fd00::2/128\nPersistentKeepalive = 25\n",
        silent[0], silent[1], a.link
    );
    let far_text = format!(
        "[Interface]\nPrivateKey = {far_private}\nListenPort = 4501\n\
         [Peer]\nPublicKey = {near_public}\nPresharedKey = {psk}\nAllowedIPs = 10.0.0.1/32\n"
    );
    for (host, device, text, address) in
        [(&b, &far, far_text, "10.0.0.2"), (&a, &near, near_text, "10.0.0.1")]
    {
        host.run(&format!("ip addr add {address}/24 dev {0}; ip link set {0} up", device.name));
        host.try_run_with_file(&text, &format!("wg setconf {} $FILE", device.name))
            .expect("a good configuration");
    }
    eventually("the tunnel carries", PATIENCE, || a.try_run("ping -c 1 -W 1 10.0.0.2").is_ok());
    a.run("ping -q -c 20 -i 0.01 -s 1300 10.0.0.2");
    Some(Busy { a, device: near, peer: far_public, _b: (b, far) })
}

#[test]
fn every_form_of_show_is_wgs_to_the_byte() {
    let Some(Busy { a, device, peer, .. }) = busy() else { return };
    let name = &device.name;
    let shown = agree(&a, "", &format!("show {name}"));
    assert!(shown.contains(" KiB received, "), "{shown}");
    assert!(shown.contains("every 1 hour, 1 minute, 1 second"), "{shown}");
    let first = shown.lines().find(|line| line.starts_with("peer: ")).expect("peers");
    assert_eq!(first, format!("peer: {peer}"), "the latest handshake stands first");
    agree(&a, "WG_COLOR_MODE=always", &format!("show {name}"));
    agree(&a, "WG_HIDE_KEYS=never", &format!("show {name}"));
    for field in FIELDS {
        assert!(!agree(&a, "", &format!("show {name} {field}")).is_empty());
    }
    let conf = agree(&a, "", &format!("showconf {name}"));
    assert!(conf.contains("::0.1.0.0/112"), "{conf}");
}

#[test]
fn a_device_without_key_or_peers_is_shown_as_wg_does() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Arc::new(Host::namespace());
    let device = Device::start(&host, RINGTUN_TWO);
    let name = &device.name;
    agree(&host, "", &format!("show {name}"));
    agree(&host, "", &format!("showconf {name}"));
    for field in FIELDS {
        agree(&host, "", &format!("show {name} {field}"));
    }
}

/// Devices without key, without peers, with one and with three, one after the other.
#[test]
fn all_devices_are_shown_as_wg_shows_them() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Arc::new(Host::namespace());
    let mut devices: Vec<Device> = Vec::new();
    let rich = |number: usize| {
        let psk = sh("wg genpsk").expect("wg genpsk");
        format!(
            "[Peer]\nPublicKey = {}\nPresharedKey = {psk}Endpoint = 192.0.2.{number}:4500\n\
             AllowedIPs = 10.{number}.0.0/16, fd00:{number}::/32\nPersistentKeepalive = {number}\n",
            key().1
        )
    };
    let plain = || format!("[Peer]\nPublicKey = {}\n", key().1);
    let interface = || format!("[Interface]\nPrivateKey = {}\n", key().0);
    let texts = [
        None,
        Some(interface()),
        Some(interface() + &plain()),
        Some(interface() + "ListenPort = 4500\nFwMark = 0x10\n" + &rich(1) + &plain() + &rich(2)),
    ];
    for text in texts {
        let device = Device::start(&host, RINGTUN_TWO);
        if let Some(text) = text {
            host.try_run_with_file(&text, &format!("wg setconf {} $FILE", device.name))
                .expect("a good configuration");
        }
        devices.push(device);
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        all_agree(&host, &names);
    }
    all_agree(&host, &[]);
}

/// `show`, `show all` and `show all FIELD` of the devices of these names.
#[track_caller]
fn all_agree(host: &Host, names: &[&str]) {
    let agree_on = |words: &str| agree_as(host, words, |command| seeing(names, command));
    assert_eq!(agree_on("show").matches("interface: ").count(), names.len());
    assert_eq!(agree_on("show all"), agree_on("show"));
    assert_eq!(agree_on("show interfaces").split_whitespace().count(), names.len());
    for field in FIELDS {
        if field == "endpoints" && !sh("wg --version").expect("wg").contains(DEBIAN_12) {
            skip("wg is another one than Debian 12's, and names the interface in each line of all endpoints");
            continue;
        }
        let shown = agree_on(&format!("show all {field}"));
        assert!(names.iter().all(|name| per_peer(field) || shown.contains(name)), "{field}: {shown}");
    }
}

/// Whether a device without peers has no line of it.
fn per_peer(field: &str) -> bool {
    !["public-key", "private-key", "listen-port", "fwmark", "endpoints", "dump"].contains(&field)
}

#[test]
fn names_and_owners_are_told_to_those_who_ask() {
    let Some(Busy { a, device, peer, .. }) = busy() else { return };
    let (program, name) = (ringtun().display().to_string(), &device.name);
    let json: serde_json::Value =
        serde_json::from_str(&a.run(&format!("{program} show {name} --json"))).expect("JSON");
    let json = &json[0];
    let peers = json["peers"].as_array().expect("peers");
    let found = peers.iter().find(|one| one["public_key"] == peer.as_str()).expect("the peer");
    assert!(found["owner"].as_u64().is_some_and(|worker| worker < 2), "{found}");
    assert!(found["latest_handshake"].as_u64().is_some() && found["has_preshared_key"] == true, "{found}");
    assert!(json.get("private_key").is_none() && found.get("preshared_key").is_none(), "{json}");
    let verbose = a.run(&format!("{program} show {name} --verbose"));
    assert_eq!(verbose.matches("\n  owner: worker ").count(), 3, "{verbose}");
}

/// What bash offers for the last of these words, by the script that the package installs.
fn offered(host: &Host, words: &[&str], prelude: &str) -> Vec<String> {
    let program = ringtun().display().to_string();
    let (last, all) =
        (words.len() - 1, words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "));
    let script = format!(
        "PATH={}:$PATH; {prelude} . <(COMPLETE=bash ringtun); COMP_WORDS=({all}); COMP_CWORD={last}; COMP_TYPE=9; \
         _clap_complete_ringtun ringtun '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        program.trim_end_matches("/ringtun"),
        words[last],
        words[last - 1]
    );
    let script_file = std::env::temp_dir().join(format!("rt-{}-{}", std::process::id(), serial()));
    std::fs::write(&script_file, script).expect("a script");
    let said = host.run(&format!("unshare -m bash {}", script_file.display()));
    let _ = std::fs::remove_file(script_file);
    said.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_shell_offers_interfaces_configurations_and_peers() {
    let Some(Busy { a, device, peer, .. }) = busy() else { return };
    let name = device.name.as_str();
    assert!(offered(&a, &["ringtun", "show", ""], "").iter().any(|word| word == name));
    assert!(offered(&a, &["ringtun", "show", name, "end"], "").iter().any(|word| word == "endpoints"));
    let files = format!(
        "mkdir -p /etc/wireguard; mount -t tmpfs none /etc/wireguard; \
         printf '[Interface]\\n[Peer]\\n# Name = laptop\\nPublicKey = {peer}\\n' >/etc/wireguard/office.conf;"
    );
    for words in [&["ringtun", "up", "off"][..], &["ringtun", "peer", "list", "--interface", "off"]] {
        assert_eq!(offered(&a, words, &files), ["office"], "{words:?}");
    }
    for words in [&["ringtun", "why", "office", "l"][..], &["ringtun", "peer", "show", "l"]] {
        assert_eq!(offered(&a, words, &files), ["laptop"], "{words:?}");
    }
}

#[test]
fn a_peers_name_is_the_comment_in_its_section() {
    let Some(Busy { a, device, peer, .. }) = busy() else { return };
    let (program, name) = (ringtun().display().to_string(), &device.name);
    let text = format!("[Interface]\n[Peer]\n# Name = laptop\nPublicKey = {peer}\n");
    // A file of /etc/wireguard that only this command sees.
    let script = format!(
        "unshare -m sh -c 'mkdir -p /etc/wireguard && mount -t tmpfs none /etc/wireguard && \
         cp '$FILE' /etc/wireguard/{name}.conf && {program} show {name} -v'"
    );
    let verbose = a.try_run_with_file(&text, &script).unwrap_or_else(|error| panic!("{error}"));
    assert!(verbose.contains(&format!("peer: {peer}\n  name: laptop\n  owner: worker ")), "{verbose}");
}

#[test]
fn the_workers_counters_are_told_as_table_json_and_metrics() {
    let Some(Busy { a, device, peer, .. }) = busy() else { return };
    let (program, name) = (ringtun().display().to_string(), &device.name);
    let json: serde_json::Value =
        serde_json::from_str(&a.run(&format!("{program} status {name} --json"))).expect("JSON");
    let status = &json[0]["status"];
    assert_eq!(status["workers"].as_array().map(Vec::len), Some(2), "{status}");
    let sum = |counter: &str| -> u64 {
        status["workers"].as_array().into_iter().flatten().filter_map(|one| one[counter].as_u64()).sum()
    };
    assert!(sum("rx_packets") >= 20 && sum("tx_packets") >= 20, "{status}");
    assert!(status["up"] == true && status["handshakes"]["initiations_sent"].as_u64() >= Some(1), "{status}");
    let told = a.run(&format!("{program} status {name}"));
    for line in [format!("{name}: up, UDP port "), "  in all       ".into(), "  handshakes   ".into()] {
        assert!(told.contains(&line), "{line}: {told}");
    }
    assert!(told.lines().all(|line| line.chars().count() <= 90), "{told}");
    let table = a.run(&format!("{program} status {name} --all"));
    assert!(table.contains("data that arrived on its owner's core"), "{table}");
    let metrics = a.run(&format!("{program} status {name} --prometheus"));
    let line =
        format!("wireguard_received_bytes_total{{interface=\"{name}\",public_key=\"{peer}\",allowed_ips=");
    assert!(metrics.contains(&line), "{metrics}");
    assert!(
        metrics.contains(&format!("ringtun_worker_rx_packets_total{{interface=\"{name}\",worker=\"1\"}} "))
    );
}

#[test]
fn an_interface_that_does_not_run_is_an_error_that_names_those_that_do() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Arc::new(Host::namespace());
    let device = Device::start(&host, RINGTUN_TWO);
    let program = ringtun().display().to_string();
    for command in ["show", "showconf", "status"] {
        let error = host.try_run(&format!("{program} {command} rt-none")).expect_err("no such interface");
        assert!(error.contains("no tunnel rt-none runs here") && error.contains(&device.name), "{error}");
    }
    assert!(host.try_run(&format!("{program} show {} nonsense", device.name)).is_err());
}

#[test]
fn without_privileges_each_tunnel_is_named_as_not_to_be_asked() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Arc::new(Host::namespace());
    let device = Device::start(&host, RINGTUN_TWO);
    // A copy where anybody may read it.
    let copy = std::env::temp_dir().join(format!("{}-bin", device.name));
    std::fs::copy(ringtun(), &copy).expect("a copy");
    let nobody = format!("setpriv --reuid 65534 --regid 65534 --clear-groups {}", copy.display());
    for command in ["show", "show all dump", "show --json", "status", "status --prometheus"] {
        let error = host.try_run(&format!("{nobody} {command}")).expect_err("it is not root's");
        let told = format!("unable to access interface {}: Operation not permitted", device.name);
        assert!(error.contains(&told) && error.contains("exit status: 1"), "{command}: {error}");
    }
    for command in ["show", "showconf", "status"] {
        let error =
            host.try_run(&format!("{nobody} {command} {}", device.name)).expect_err("it is not root's");
        assert!(error.contains("Operation not permitted"), "{command}: {error}");
    }
    let listed = host.run(&format!("{nobody} show interfaces"));
    assert!(listed.split_whitespace().any(|name| name == device.name), "{listed}");
    // A directory of sockets that may not be read is no empty one.
    let script = format!("mount -t tmpfs -o mode=0700 none /run/wireguard && exec {nobody} show");
    let error = host.try_run(&format!("unshare -m sh -c '{script}'")).expect_err("it is closed");
    assert!(error.contains("/wireguard: Permission denied"), "{error}");
    let _ = std::fs::remove_file(copy);
}
