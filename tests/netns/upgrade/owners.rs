//! Those around a tunnel that goes on in another process: who brought it up, who looks after it, who follows it, and programs that embed
//! it.

use super::{SOON, exists, process, try_upgrade};
use crate::implementation::{Device, RINGTUN, ringtun, ringtun_itself};
use crate::lab::{Host, Process, eventually, ready, serial, wait_for};
use crate::pair::{A, Pair, key_pair};
use crate::updown::Site;
use ringtun::{Belongings, Change, PeerChange, Predecessor, PrivateKey, Tunnel};
use std::os::unix::net::UnixDatagram;

const INTERFACE: &str = "Address = 192.168.96.1/24\nListenPort = 4500";

/// A client of the site's tunnel, connected.
fn client(site: &Site, private: &str) -> Device {
    let device = Device::start(&site.neighbour, RINGTUN);
    let name = &device.name;
    let text = format!(
        "[Interface]\nPrivateKey = {private}\n[Peer]\nPublicKey = {}\nEndpoint = 10.99.0.1:4500\nAllowedIPs = 192.168.96.1/32\n\
         PersistentKeepalive = 5\n",
        site.public_key
    );
    site.neighbour.run(&format!("ip addr add 192.168.96.2/32 dev {name} && ip link set {name} up"));
    site.neighbour.run(&format!("ip route add 192.168.96.1 dev {name}"));
    site.neighbour.try_run_with_file(&text, &format!("wg setconf {name} $FILE")).unwrap();
    eventually("it is connected", SOON, || site.neighbour.try_run("ping -c 1 -W 1 192.168.96.1").is_ok());
    device
}

#[test]
fn what_up_brought_up_goes_on_whole_and_comes_down_whole() {
    let Some(site) = Site::new() else { return };
    let (private, public) = key_pair();
    let told = site.directory.join("told");
    let hook = format!("# PeerUp = echo up >>{0}\n# PeerDown = echo down >>{0}\n", told.display());
    site.write(
        &format!("{INTERFACE}\n{hook}"),
        &format!("[Peer]\nPublicKey = {public}\nAllowedIPs = 192.168.96.2/32\n"),
    );
    let before = site.look();
    let up =
        format!("RINGTUN_HTTP=9586 LOG_LEVEL=info {} up {} 2>&1", ringtun().display(), site.file().display());
    site.host.run(&up);
    let client = client(&site, &private);
    let hooks = || std::fs::read_to_string(&told).unwrap_or_default();
    eventually("the hook has run", SOON, || hooks() == "up\n");
    let monitor = site.host.start(&ringtun().display().to_string(), &["monitor", &site.name]);
    let events = site.host.start(&ringtun().display().to_string(), &["monitor", "--json", &site.name]);
    let metrics = || {
        site.host.try_run("python3 -c \"import urllib.request as r; print(r.urlopen('http://127.0.0.1:9586/metrics').read().decode())\"")
    };
    eventually("the listener answers", SOON, || metrics().is_ok());
    // It tells only once somebody asked.
    eventually("the monitor follows", SOON, || {
        site.host.run(&format!("wg set {0} peer {1} && wg set {0} peer {1} remove", site.name, key_pair().1));
        monitor.said().contains("removed") && events.said().contains("removed")
    });
    for _ in 0..2 {
        let old = process(&site.host, &site.name);
        try_upgrade(&site.host, &site.name, "").unwrap();
        let new = process(&site.host, &site.name);
        eventually("it is told who goes on", SOON, || {
            monitor.said().contains(&format!("process {new} goes on with the tunnel"))
        });
        let process = format!("\"process\":{new}");
        eventually("and so are programs", SOON, || {
            events
                .said()
                .lines()
                .any(|line| line.contains("\"event\":\"handed_over\"") && line.contains(&process))
        });
        eventually("the process before is gone", SOON, || !exists(old));
        eventually("the listener answers", SOON, || {
            metrics().is_ok_and(|said| said.contains(&format!("peer=\"{public}\"")) || said.contains(&public))
        });
        let key = key_pair().1;
        site.host.run(&format!("wg set {0} peer {key} && wg set {0} peer {key} remove", site.name));
        eventually("and what happens there", SOON, || monitor.said().contains(&format!("{key}: removed")));
        site.neighbour.run("ping -c 1 -W 2 192.168.96.1");
    }
    assert_eq!(hooks(), "up\n", "it has been connected all the time");
    site.neighbour.run(&format!("wg set {} peer {} remove", client.name, site.public_key));
    site.host.run(&format!("wg set {} peer {public} remove", site.name));
    eventually("hooks run for what happens afterwards", SOON, || hooks() == "up\ndown\n");
    site.done("reload");
    site.done("down");
    eventually("all is gone", SOON, || site.is_gone());
    assert_eq!(site.look(), before);
}

#[test]
fn the_service_looks_after_the_process_that_goes_on() {
    let Some(site) = Site::new() else { return };
    let (private, public) = key_pair();
    site.write(INTERFACE, &format!("[Peer]\nPublicKey = {public}\nAllowedIPs = 192.168.96.2/32\n"));
    let before = site.look();
    let file = site.file().display().to_string();
    let mut service = site.host.start(&ringtun().display().to_string(), &["service", &file]);
    let _client = client(&site, &private);
    let old = process(&site.host, &site.name);
    for _ in 0..2 {
        try_upgrade(&site.host, &site.name, "").unwrap();
        site.neighbour.run("ping -c 1 -W 2 192.168.96.1");
    }
    // The service asks every few seconds how it does.
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert!(service.ended().is_none() && !exists(old), "{}", service.said());
    service.signal("HUP");
    site.neighbour.run("ping -c 1 -W 2 192.168.96.1");
    let crashed = process(&site.host, &site.name);
    site.host.run(&format!("kill -9 {crashed}"));
    let anew = || site.host.try_run(&format!("wg show {}", site.name)).is_ok();
    let is_anew = wait_for(SOON, || (anew() && process(&site.host, &site.name) != crashed).then_some(()));
    assert!(is_anew.is_some(), "{}", service.said());
    let said = service.said();
    // Which of both depends on the kernel.
    assert!(said.contains("was killed by signal 9") || said.contains("ended without a word"), "{said}");
    eventually("and reached", SOON, || site.neighbour.try_run("ping -c 1 -W 1 192.168.96.1").is_ok());
    service.signal("TERM");
    assert!(service.wait(SOON).is_some_and(|status| status.success()), "{}", service.said());
    eventually("all is gone", SOON, || site.is_gone());
    assert_eq!(site.look(), before);
}

#[test]
fn a_service_that_reloads_goes_on_in_the_program_that_took_its_own_ones_place() {
    let Some(site) = Site::new() else { return };
    let (private, public) = key_pair();
    site.write(INTERFACE, &format!("[Peer]\nPublicKey = {public}\nAllowedIPs = 192.168.96.2/32\n"));
    let program = site.directory.join("ringtun").display().to_string();
    let install = || {
        // As a package manager does it: the file that runs stays what it is, without a name.
        site.host.run(&format!("cp {} {program}.new && mv {program}.new {program}", ringtun().display()));
    };
    install();
    let mut service = site.host.start(&program, &["service", &site.file().display().to_string()]);
    let _client = client(&site, &private);
    let first = process(&site.host, &site.name);
    let reload = |times: usize| {
        service.signal("HUP");
        eventually("it is reloaded", SOON, || service.said().matches("wg syncconf").count() == times);
        site.neighbour.run("ping -c 1 -W 2 192.168.96.1");
        process(&site.host, &site.name)
    };
    assert_eq!(reload(1), first, "nothing was replaced");
    install();
    let second = reload(2);
    assert_ne!(second, first, "{}", service.said());
    let runs = std::fs::read_link(format!("/proc/{second}/exe")).unwrap();
    assert_eq!(runs.to_str(), Some(program.as_str()));
    assert_eq!(reload(3), second);
    service.signal("TERM");
    assert!(service.wait(SOON).is_some_and(|status| status.success()), "{}", service.said());
    eventually("all is gone", SOON, || site.is_gone());
}

#[test]
fn a_service_manager_is_told_which_process_is_the_main_one() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Host::namespace();
    let name = format!("rt{}m{}", std::process::id() % 10_000_000, serial());
    let path = std::env::temp_dir().join(format!("rt-manager-{name}.sock"));
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let hear = || {
        let mut buffer = [0; 512];
        let len = manager.recv(&mut buffer).expect("word from the tunnel");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let program = ringtun();
    let mut command = host.command(program.to_str().unwrap(), &["-f", &name]);
    command.env("NOTIFY_SOCKET", &path);
    let mut first = Process::start(command);
    assert!(hear().starts_with(&format!("READY=1\nMAINPID={}\n", first.pid())));
    for _ in 0..2 {
        try_upgrade(&host, &name, "").unwrap();
        let main = process(&host, &name);
        let word = std::iter::repeat_with(hear).find(|word| !word.starts_with("STATUS=0 peers"));
        assert!(word.unwrap().starts_with(&format!("MAINPID={main}\n")));
    }
    assert!(first.wait(SOON).is_some_and(|status| status.success()));
    assert!(hear().starts_with("STATUS=0 peers"), "the new one reports");
    let last = process(&host, &name);
    host.run(&format!("kill {last}"));
    let word = std::iter::repeat_with(hear).find(|word| !word.starts_with("STATUS=0 peers"));
    assert!(word.unwrap().starts_with("STOPPING=1\n"));
    eventually("the interface is gone", SOON, || host.try_run(&format!("ip link show {name}")).is_err());
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_program_with_the_library_hands_its_tunnel_over_if_it_says_so() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Host::namespace();
    host.within(|| {
        let name = format!("rt{}l{}", std::process::id() % 10_000_000, serial());
        let peer = PeerChange::new(PrivateKey::generate().public()).allow("10.0.0.0/8".parse().unwrap());
        let change = Change::new().private_key(PrivateKey::generate()).listen_port(51820).peer(peer);
        let builder = || Tunnel::builder(&name).workers(2).configure(change.clone()).control_socket();
        let kept = builder().start().unwrap();
        let refused = Predecessor::ask(&name).unwrap_err();
        assert!(format!("{:?}", refused).contains("hands its tunnel to no other"), "{refused:?}");
        kept.stop();
        kept.wait().unwrap();

        let file = std::fs::File::open("/proc/version").unwrap();
        let belongings = Belongings { note: "for you".to_owned(), files: vec![file.into()] };
        let first = builder().belongings(belongings).start().unwrap();
        let mut predecessor = Predecessor::ask(&name).unwrap();
        assert_eq!(predecessor.process(), std::process::id());
        assert_eq!(predecessor.version(), env!("CARGO_PKG_VERSION"));
        let Belongings { note, files } = predecessor.belongings();
        assert_eq!((note.as_str(), files.len()), ("for you", 1));
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::fs::File::from(files.into_iter().next().unwrap()), &mut text)
            .unwrap();
        assert!(text.starts_with("Linux"));
        predecessor.enter_network().unwrap();
        assert_eq!(first.successor(), None);
        let peers = first.peers().unwrap();
        let second = predecessor.take_over(Some(3), Belongings::default()).unwrap();
        first.wait().unwrap();
        assert_eq!(first.successor(), Some(std::process::id()));
        assert!(first.status().is_err());
        assert_eq!((second.name(), second.workers()), (first.name(), 3));
        assert_eq!(second.peers().unwrap(), peers);
        assert_eq!(second.status().unwrap().listen_port, 51820);
        drop(first);
        // The second is handed over, too, and its end is the end of the tunnel.
        let third = Predecessor::ask(&name).unwrap().take_over(None, Belongings::default()).unwrap();
        second.wait().unwrap();
        third.stop();
        third.wait().unwrap();
        assert!(Predecessor::ask(&name).is_err());
        assert!(!std::path::Path::new(&crate::implementation::uapi_socket(&name)).exists());
    });
    eventually("the interfaces are gone", SOON, || host.run("ip -o link").lines().count() == 1);
}

#[test]
fn a_tunnel_whose_interface_was_moved_to_another_namespace_goes_on_there_and_here() {
    if !ringtun_itself() {
        return;
    }
    let Some(pair) = Pair::connected(RINGTUN, RINGTUN) else { return };
    let inner = Host::namespace();
    let name = pair[A].name();
    pair[A].host.run(&format!("ip link set {name} netns {}", inner.name()));
    inner.run(&format!("ip addr add 10.99.0.1/24 dev {name} && ip link set {name} mtu 1420 up"));
    let ping = || inner.try_run("ping -c 1 -W 1 10.99.0.2").is_ok();
    eventually("it is reached from there", SOON, ping);
    for workers in ["", "--workers 2", "--workers 1"] {
        try_upgrade(&pair[A].host, name, workers).unwrap();
        inner.run("ping -c 3 -i 0.1 -W 1 10.99.0.2");
    }
}
