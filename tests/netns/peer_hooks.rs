//! The hooks `PeerUp` and `PeerDown`: who runs them, when, with what, and that nothing waits for them.

use crate::implementation::{Device, RINGTUN};
use crate::lab::{eventually, wait_for};
use crate::pair::key_pair;
use crate::updown::{SOON, Site};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A client of the site's tunnel, in the neighbour's namespace.
struct Client {
    device: Device,
    private: String,
    public: String,
    number: usize,
}

impl Client {
    fn new(site: &Site, number: usize) -> Client {
        let (private, public) = key_pair();
        let device = Device::start(&site.neighbour, RINGTUN);
        let name = &device.name;
        site.neighbour
            .run(&format!("ip addr add 192.168.96.{}/32 dev {name} && ip link set {name} up", 10 + number));
        Client { device, private, public, number }
    }

    fn section(&self, more: &str) -> String {
        let (public, number) = (&self.public, self.number);
        let host = 10 + number;
        format!(
            "[Peer]\n# Name = client {number}\n{more}\nPublicKey = {public}\nAllowedIPs = 192.168.96.{host}/32\n"
        )
    }

    /// Has it connect, and stay connected.
    fn connect(&self, site: &Site) {
        let text = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {}\n[Peer]\nPublicKey = {}\nEndpoint = 10.99.0.1:4500\n\
             AllowedIPs = 192.168.96.1/32\nPersistentKeepalive = 5\n",
            self.private,
            51830 + self.number,
            site.public_key
        );
        let script = format!("wg setconf {} $FILE", self.device.name);
        site.neighbour.try_run_with_file(&text, &script).unwrap();
    }
}

const INTERFACE: &str = "Address = 192.168.96.1/24\nListenPort = 4500";

impl Site {
    fn told(&self) -> PathBuf {
        self.directory.join("told")
    }

    fn lines(&self) -> Vec<String> {
        std::fs::read_to_string(self.told()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn tells(&self, line: &str) {
        eventually(&format!("`{line}` is told: {:?}", self.lines()), SOON, || {
            self.lines().iter().any(|told| told == line)
        });
    }

    /// How many processes of this kind run on the host.
    fn running(&self, program: &str) -> usize {
        let pids = self.host.run(&format!("ip netns pids {}", self.host.name()));
        let is_it = |pid: &&str| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(program))
        };
        pids.split_whitespace().filter(is_it).count()
    }
}

#[test]
fn hooks_run_as_peers_connect_and_disconnect_with_what_they_need_to_know() {
    let Some(site) = Site::new() else { return };
    let (one, two) = (Client::new(&site, 0), Client::new(&site, 1));
    let told = site.told().display().to_string();
    let hook = |word: &str| {
        format!(
            "# {word} = echo \"%i $INTERFACE {word} $PEER_EVENT $PEER $PEER_NAME $PEER_ENDPOINT $PEER_ALLOWED_IPS #\" >>{told}"
        )
    };
    site.write(
        &format!("{INTERFACE}\n{}\n{}", hook("PeerUp"), hook("PeerDown")),
        &(one.section(&format!("# PeerUp = echo own $RINGTUN_TURN$RINGTUN_BACKGROUND_CHILD. >>{told}"))
            + &two.section("")),
    );
    let said = site.done("up");
    assert!(said.contains(&format!("[#] ringtun peer-hooks {}", site.name)), "{said}");
    one.connect(&site);
    let line = |client: &Client, word: &str, event: &str| {
        let (name, number, key) = (&site.name, client.number, &client.public);
        format!(
            "{name} {name} {word} {event} {key} client {number} 10.99.0.2:{} 192.168.96.{}/32 #",
            51830 + number,
            10 + number
        )
    };
    site.tells(&line(&one, "PeerUp", "up"));
    site.tells("own .");
    assert!(!site.lines().iter().any(|told| told.contains("PeerDown") || told.contains("client 1")));
    two.connect(&site);
    site.tells(&line(&two, "PeerUp", "up"));
    site.host.run(&format!("wg set {} peer {} remove", site.name, two.public));
    site.tells(&line(&two, "PeerDown", "down"));
    site.done("down");
    let lines = site.lines();
    assert_eq!(lines.last(), Some(&line(&one, "PeerDown", "down")), "`down` waits for it: {lines:?}");
    assert_eq!((lines.len(), site.running("peer-hooks")), (5, 0), "{lines:?}");
    assert!(site.is_gone());
}

#[test]
fn hooks_that_hang_are_few_and_nothing_waits_for_them() {
    let Some(site) = Site::new() else { return };
    let clients: Vec<Client> = (0..6).map(|number| Client::new(&site, number)).collect();
    let sections: String = clients.iter().map(|client| client.section("")).collect();
    site.write(&format!("{INTERFACE}\n# PeerUp = exec sleep 4242"), &sections);
    site.done("up");
    clients.iter().for_each(|client| client.connect(&site));
    eventually("four hang", SOON, || site.running("4242") == 4);
    for client in &clients {
        let host = 10 + client.number;
        let heard = format!("wg show {} transfer | grep {} | cut -f 2", site.name, client.public);
        let before: u64 = site.host.run(&heard).trim().parse().unwrap();
        eventually(&format!("client {host} is heard"), SOON, || {
            site.host.run(&heard).trim().parse::<u64>().unwrap() > before
        });
    }
    assert_eq!(site.running("4242"), 4);
    let begun = Instant::now();
    site.done("down");
    assert!(begun.elapsed() < Duration::from_secs(30), "it waits for hooks no longer than it says");
    assert!(
        wait_for(SOON, || (site.running("4242") == 0).then_some(())).is_some(),
        "they end with the tunnel"
    );
}

#[test]
fn hooks_are_read_again_and_a_reload_starts_what_runs_them() {
    let Some(site) = Site::new() else { return };
    let client = Client::new(&site, 0);
    site.write(INTERFACE, &client.section(""));
    site.done("up");
    assert_eq!(site.running("peer-hooks"), 0);
    client.connect(&site);
    eventually("it is connected", SOON, || {
        site.host
            .run(&format!("wg show {} transfer", site.name))
            .split('\t')
            .nth(1)
            .is_some_and(|heard| heard != "0")
    });
    let hook = |number: u8| {
        let told = site.told();
        let told = told.display();
        format!("{INTERFACE}\n# PeerUp = echo up{number} >>{told}\n# PeerDown = echo down{number} >>{told}")
    };
    site.write(&hook(1), &client.section(""));
    site.done("reload");
    site.tells("up1");
    site.write(&hook(2), &client.section(""));
    site.done("reload");
    assert_eq!(site.running("peer-hooks"), 1);
    // A crash of the tunnel is the end of its connections, too.
    let pids = site.host.run(&format!("ip netns pids {}", site.host.name()));
    for pid in pids.split_whitespace() {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.contains("--config") {
            site.host.run(&format!("kill -KILL {pid}"));
        }
    }
    site.tells("down2");
    eventually("it ends", SOON, || site.running("peer-hooks") == 0);
    site.done("down");
}
