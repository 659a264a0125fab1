//! `ringtun up`, `down`, `save`, `reload`: what they do to a host, and that it is as before afterwards.

use crate::implementation::{ringtun, ringtun_itself, uapi_socket};
use crate::lab::{Host, Process, eventually, find_program, ready, serial, skip, wait_for};
use crate::pair::key_pair;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const SOON: Duration = Duration::from_secs(15);

/// A host with a way out, a configuration of a name of its own in a directory of its own.
pub(crate) struct Site {
    pub(crate) host: Host,
    pub(crate) neighbour: Arc<Host>,
    pub(crate) directory: PathBuf,
    pub(crate) name: String,
    pub(crate) private_key: String,
    pub(crate) public_key: String,
}

impl Site {
    pub(crate) fn new() -> Option<Site> {
        if !ready() || !ringtun_itself() {
            return None;
        }
        let (host, neighbour) = (Host::namespace(), Host::namespace());
        crate::lab::join(&host, &neighbour);
        neighbour.run("ip addr add 10.99.0.2/24 dev wire && ip addr add fd99::2/64 dev wire nodad");
        host.run("ip addr add 10.99.0.1/24 dev wire && ip addr add fd99::1/64 dev wire nodad");
        host.run("ip route add default via 10.99.0.2 && ip route add default via fd99::2");
        // The kernel's own link-local addresses come when they like.
        host.run("ip -6 addr flush dev wire scope link");
        let directory = std::env::temp_dir().join(format!("rt-{}-{}", std::process::id(), serial()));
        std::fs::create_dir(&directory).expect("a directory");
        let name = format!("rt{}n{}", std::process::id() % 10_000_000, serial());
        let (private_key, public_key) = key_pair();
        let site = Site { host, neighbour: Arc::new(neighbour), directory, name, private_key, public_key };
        Some(site)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.directory.join(format!("{}.conf", self.name))
    }

    /// Writes the file: an interface with a key and these lines, and then these.
    pub(crate) fn write(&self, interface: &str, peers: &str) {
        let key = &self.private_key;
        self.write_whole(&format!("[Interface]\nPrivateKey = {key}\n{interface}\n{peers}"));
    }

    pub(crate) fn write_whole(&self, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(self.file(), text).expect("a file");
        std::fs::set_permissions(self.file(), PermissionsExt::from_mode(0o600)).expect("its mode");
    }

    pub(crate) fn read(&self) -> String {
        std::fs::read_to_string(self.file()).expect("the file")
    }

    /// `ringtun VERB FILE`; all it said.
    pub(crate) fn ringtun(&self, verb: &str) -> Result<String, String> {
        let (program, file) = (ringtun(), self.file());
        self.host.try_run(&format!(
            "WG_ENDPOINT_RESOLUTION_RETRIES=1 timeout 60 {} {verb} {} 2>&1",
            program.display(),
            file.display()
        ))
    }

    #[track_caller]
    pub(crate) fn done(&self, verb: &str) -> String {
        self.ringtun(verb).unwrap_or_else(|error| panic!("{error}"))
    }

    #[track_caller]
    pub(crate) fn refused(&self, verb: &str) -> String {
        self.ringtun(verb).expect_err("it should fail")
    }

    /// All that the tunnel might change: addresses, routes, rules, filters, and whether answers by mark are good.
    pub(crate) fn look(&self) -> String {
        let look = self.host.run(
            "ip -o addr; ip -o link; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; \
             nft list ruleset",
        );
        // Indices and lifetimes are each interface's own.
        let same = |line: &str| {
            let line = line
                .split_once(": ")
                .filter(|(index, _)| index.parse::<u32>().is_ok())
                .map_or(line, |(_, rest)| rest);
            line.split(" valid_lft").next().unwrap_or_default().to_owned()
        };
        look.lines().map(same).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn valid_mark(&self) -> String {
        self.host.run("cat /proc/sys/net/ipv4/conf/all/src_valid_mark")
    }

    pub(crate) fn is_gone(&self) -> bool {
        let name = &self.name;
        !Path::new(&uapi_socket(name)).exists()
            && self.host.try_run(&format!("ip link show {name}")).is_err()
            && !Path::new(&format!("/run/ringtun/{name}")).exists()
    }

    /// The id of the process in the background.
    fn daemon(&self) -> String {
        let pids = self.host.run(&format!("ip netns pids {}", self.host.name()));
        let is_ringtun = |pid: &&str| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "ringtun")
        };
        pids.split_whitespace().find(is_ringtun).expect("a background process").to_owned()
    }

    pub(crate) fn mtu(&self) -> String {
        self.host.run(&format!("cat /sys/class/net/{}/mtu", self.name)).trim().to_owned()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.host.try_run(&format!("ip link del {}", self.name));
        let _ = wait_for(SOON, || (!Path::new(&uapi_socket(&self.name)).exists()).then_some(()));
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_file(format!("/run/ringtun/{}", self.name));
    }
}

/// A peer's section.
pub(crate) fn peer(more: &str) -> String {
    format!("[Peer]\nPublicKey = {}\n{more}\n", key_pair().1)
}

pub(crate) const DEFAULT: &str = "AllowedIPs = 0.0.0.0/0, ::/0, 10.7.0.0/16\nEndpoint = 10.99.0.2:51820";

#[test]
fn up_shows_the_interface_as_the_kernels_and_down_leaves_nothing_behind() {
    let Some(site) = Site::new() else { return };
    site.write("Address = 192.168.96.1/24, fd96::1/64\nListenPort = 4500", &peer(DEFAULT));
    let before = site.look();
    let said = site.done("up");
    let shown = site.host.run(&format!("ip a show {}", site.name));
    assert!(shown.contains("<POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1420"), "{shown}");
    assert!(shown.contains("inet 192.168.96.1/24 scope global"), "{shown}");
    assert!(shown.contains("inet6 fd96::1/64 scope global"), "{shown}");
    assert!(said.contains(&format!("[#] ip -4 address add 192.168.96.1/24 dev {}\n", site.name)), "{said}");
    assert!(!said.contains(&site.private_key), "{said}");
    assert_eq!(site.host.run(&format!("wg show {} listen-port", site.name)).trim(), "4500");
    assert!(site.refused("up").contains("already exists"));
    site.done("down");
    assert_eq!(site.look(), before);
    assert!(site.is_gone());
    assert!(site.refused("down").contains("is not up"));
}

#[test]
fn a_host_looks_the_same_after_ringtun_up_and_after_wg_quick_up() {
    let Some(site) = Site::new() else { return };
    if find_program("wg-quick").is_none() || site.host.try_run("ip link add probe type wireguard").is_ok() {
        skip("wg-quick is not installed, or would take the kernel's own WireGuard");
        return;
    }
    let address = "Address = 192.168.96.1/24, fd96::1/64";
    let table: [(&str, &str, &str); 9] = [
        ("default routes", address, DEFAULT),
        ("IPv4's alone", "Address = 192.168.96.1/24", "AllowedIPs = 0.0.0.0/0"),
        ("IPv6's alone", "Address = fd96::1/64", "AllowedIPs = ::/0"),
        ("a mark", &format!("{address}\nFwMark = 0x1234"), DEFAULT),
        ("a table", &format!("{address}\nTable = 1234"), DEFAULT),
        ("no routes", &format!("{address}\nTable = off"), DEFAULT),
        ("no address", "", "AllowedIPs = 10.1.0.0/16, 10.0.0.0/8, fd01::/16"),
        ("hosts of its network", address, "AllowedIPs = 192.168.96.2/32, fd96::2/128, 192.168.0.0/16"),
        ("an MTU", &format!("{address}\nMTU = 1300"), "AllowedIPs = 10.0.0.0/8\nEndpoint = [fd99::2]:51820"),
    ];
    for (case, interface, more) in table {
        site.write(interface, &peer(more));
        site.done("up");
        let (ours, our_mark) = (site.look(), site.host.run(&format!("wg show {} fwmark", site.name)));
        site.done("down");
        let quick = |verb: &str| {
            let (binary, file) = (ringtun(), site.file());
            let quick = format!("timeout 60 wg-quick {verb} {}", file.display());
            site.host.run(&format!("WG_QUICK_USERSPACE_IMPLEMENTATION={} {quick} 2>&1", binary.display()));
        };
        quick("up");
        let (theirs, their_mark) = (site.look(), site.host.run(&format!("wg show {} fwmark", site.name)));
        // And what one brought up, the other takes down.
        site.done("down");
        assert_eq!(ours, theirs, "{case}");
        assert_eq!(our_mark, their_mark, "{case}");
    }
}

#[test]
fn wg_quick_takes_down_what_ringtun_brought_up() {
    let Some(site) = Site::new() else { return };
    if find_program("wg-quick").is_none() {
        skip("wg-quick is not installed");
        return;
    }
    let before = site.look();
    site.write("Address = 192.168.96.1/24", &peer(DEFAULT));
    site.done("up");
    site.host.run(&format!("timeout 60 wg-quick down {} 2>&1", site.file().display()));
    assert_eq!(site.look(), before);
}

#[test]
fn a_failing_step_leaves_the_host_as_it_was() {
    let Some(site) = Site::new() else { return };
    let address = "Address = 192.168.96.1/24";
    site.host.run("ip route add 10.7.0.0/16 dev wire");
    let _taken = site.host.start("iperf3", &["-s", "-p", "4501"]);
    let holder = "import socket,time; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind((\"\",4500)); time.sleep(60)";
    let _port = site.host.start("python3", &["-c", holder]);
    eventually("the port is taken", SOON, || site.host.run("ss -Hlun").contains(":4500"));
    let (before, mark) = (site.look(), site.valid_mark());
    let table = [
        (format!("{address}\nPreUp = ip link show %i && false"), "&& false`: exit status: 1"),
        (format!("{address}\nPostUp = true\nPostUp = exit 3"), "`exit 3`: exit status: 3"),
        (format!("{address}\n{address}"), "address add 192.168.96.1/24"),
        (address.to_owned(), "route add 10.7.0.0/16"),
        (format!("{address}\nListenPort = 4500"), "ListenPort 4500: another program uses this UDP port"),
        (format!("{address}\nDNS = 9.9.9.9"), "DNS: neither"),
    ];
    let no_dns = find_program("resolvconf").is_none() && find_program("resolvectl").is_none();
    for (interface, why) in table {
        if why.starts_with("DNS") && !no_dns {
            continue;
        }
        site.write(
            &interface,
            &peer(DEFAULT)
                .replace("10.7.0.0/16", if why.starts_with("route") { "10.7.0.0/16" } else { "10.8.0.0/16" }),
        );
        let said = site.refused("up");
        assert!(said.contains(why), "{why}: {said}");
        assert_eq!(site.look(), before, "{why}");
        assert_eq!(site.valid_mark(), mark, "{why}");
        assert!(site.is_gone(), "{why}");
    }
    site.write(address, &peer("Endpoint = no-such-host.invalid:51820"));
    assert!(site.refused("up").contains("no-such-host.invalid:51820"));
    assert_eq!(site.look(), before);
}

#[test]
fn a_file_with_a_mistake_is_refused_with_its_line_and_one_readable_by_all_with_the_remedy() {
    let Some(site) = Site::new() else { return };
    site.write("Adress = 192.168.96.1/24", "");
    assert!(site.refused("up").contains(&format!("{}:3:", site.file().display())));
    site.write("Address = 192.168.96.1/24", "");
    site.host.run(&format!(
        "chmod 644 {0} && chmod 755 {1}",
        site.file().display(),
        site.directory.display()
    ));
    assert!(site.refused("up").contains(&format!("chmod 600 {}", site.file().display())));
    assert!(site.is_gone());
}

#[test]
fn hooks_run_in_order_with_the_interfaces_name() {
    let Some(site) = Site::new() else { return };
    let log = site.directory.join("log");
    let log = log.display();
    let hook = |key: &str| {
        format!("{key} = echo {key} %i $(ip -o link show %i 2>/dev/null | wc -l) '#' >>{log} # it is\n")
    };
    let hooks: String = ["PreUp", "PostUp", "PreDown", "PostDown"].map(hook).concat();
    site.write(&hooks, "");
    site.done("up");
    site.done("down");
    let name = &site.name;
    let expected = format!("PreUp {name} 1 #\nPostUp {name} 1 #\nPreDown {name} 1 #\nPostDown {name} 0 #\n");
    assert_eq!(std::fs::read_to_string(site.directory.join("log")).expect("a log"), expected);
}

#[test]
fn hooks_have_wg_quicks_variables() {
    let Some(site) = Site::new() else { return };
    let log = site.directory.join("log");
    let hook = |key: &str| format!("{key} = echo {key} $INTERFACE $CONFIG_FILE >>{}\n", log.display());
    let keys = ["PreUp", "PostUp", "PreDown", "PostDown"];
    site.write(&keys.map(hook).concat(), "");
    site.done("up");
    site.done("down");
    let expected = keys.map(|key| format!("{key} {} {}\n", site.name, site.file().display())).concat();
    assert_eq!(std::fs::read_to_string(log).expect("a log"), expected);
}

#[test]
fn what_pre_up_sets_on_the_interface_stays() {
    let Some(site) = Site::new() else { return };
    let (key, public_key) = key_pair();
    let secret = site.directory.join("key");
    std::fs::write(&secret, &key).expect("a key");
    let peer = peer("AllowedIPs = 10.7.0.0/16");
    site.write_whole(&format!(
        "[Interface]\nAddress = 192.168.96.1/24\nPreUp = wg set %i private-key {} listen-port 4500 fwmark 7\n{peer}",
        secret.display()
    ));
    site.done("up");
    let shown = site.host.run(&format!("wg show {}", site.name));
    for what in [public_key.as_str(), "listening port: 4500", "fwmark: 0x7", "allowed ips: 10.7.0.0/16"] {
        assert!(shown.contains(what), "no {what} in {shown}");
    }
    site.done("down");
    assert!(site.is_gone());
}

/// `ringtun up` in a hook that does not end; the interface is there.
fn stuck(site: &Site) -> Process {
    site.write("Address = 192.168.96.1/24\nPostUp = sleep 100", &peer(DEFAULT));
    let up = site.host.start(&ringtun().display().to_string(), &["up", &site.file().display().to_string()]);
    eventually("it is in its last hook", SOON, || up.said().contains("sleep 100"));
    up
}

#[test]
fn a_signal_in_the_middle_undoes_what_was_done() {
    for signal in ["INT", "TERM"] {
        let Some(site) = Site::new() else { return };
        let before = site.look();
        let mut up = stuck(&site);
        up.signal(signal);
        let status = up.wait(SOON).expect("it ends");
        assert_eq!(status.code(), Some(1), "{}", up.said());
        assert!(up.said().contains("interrupted"), "{}", up.said());
        assert_eq!(site.look(), before, "SIG{signal}");
        assert!(site.is_gone());
    }
}

#[test]
fn an_up_that_was_killed_is_healed_by_down() {
    let Some(site) = Site::new() else { return };
    let before = site.look();
    let mut up = stuck(&site);
    up.signal("KILL");
    up.wait(SOON).expect("it ends");
    let said = site.refused("up");
    assert!(said.contains(&format!("ringtun down {}", site.name)), "{said}");
    site.done("down");
    assert_eq!(site.look(), before);
    assert!(site.is_gone());
}

/// Its interface is gone, and its process has not yet seen that.
#[test]
fn down_waits_for_a_tunnel_that_is_ending_and_removes_what_it_left() {
    let Some(site) = Site::new() else { return };
    site.write("Address = 192.168.96.1/24", "");
    site.done("up");
    let daemon = site.daemon();
    let (binary, file, name) = (ringtun(), site.file(), &site.name);
    site.host.run(&format!(
        "kill -STOP {daemon}; ip link delete {name}; (sleep 0.3; kill -CONT {daemon}) & {} down {} 2>&1",
        binary.display(),
        file.display()
    ));
    assert!(site.is_gone());
}

#[test]
fn what_a_killed_device_left_is_removed_by_the_next_up_or_down() {
    for verb in ["up", "down"] {
        let Some(site) = Site::new() else { return };
        let before = site.look();
        site.write("Address = 192.168.96.1/24", &peer(DEFAULT));
        site.done("up");
        let up = site.look();
        site.host.run(&format!("kill -9 {}", site.daemon()));
        eventually("the interface went", SOON, || {
            site.host.try_run(&format!("ip link show {}", site.name)).is_err()
        });
        assert_ne!(site.look(), before);
        site.done(verb);
        assert_eq!(site.look(), if verb == "up" { up } else { before.clone() });
        if verb == "up" {
            site.done("down");
            assert_eq!(site.look(), before);
        }
        assert!(site.is_gone());
    }
}

#[test]
fn clamping_is_there_from_up_to_down_where_it_is_asked_for() {
    let Some(site) = Site::new() else { return };
    let before = site.look();
    site.write("MTU = 1380\n# ClampMSS = true", "");
    for verb in ["up", "up --clamp-mss"] {
        site.done(verb);
        let rules = site.host.run("nft list ruleset");
        for rule in ["maxseg size set rt mtu", "maxseg size set 1340", "maxseg size set 1320"] {
            assert!(rules.contains(rule), "{rule}: {rules}");
        }
        site.done("down");
        assert_eq!(site.look(), before);
        site.write("MTU = 1380", "");
    }
}

#[test]
fn two_tunnels_with_default_routes_live_and_leave_side_by_side() {
    let (Some(one), Some(two)) = (Site::new(), Site::new()) else { return };
    let before = one.look();
    one.write("Address = 192.168.96.1/24", &peer("AllowedIPs = 0.0.0.0/0"));
    two.write("Address = 192.168.97.1/24", &peer("AllowedIPs = 0.0.0.0/0"));
    one.done("up");
    let file = two.file();
    let there = |verb: &str| {
        one.host.run(&format!("timeout 60 {} {verb} {} 2>&1", ringtun().display(), file.display()))
    };
    let alone = one.look();
    there("up");
    assert!(one.host.run("ip rule").contains("lookup 51821"));
    there("down");
    assert_eq!(one.look(), alone, "the second took something of the first");
    one.done("down");
    assert_eq!(one.look(), before);
}

#[test]
fn the_default_route_comes_after_the_rules_that_keep_other_traffic_out_of_it() {
    let Some(site) = Site::new() else { return };
    let seen = site.host.start("ip", &["monitor", "route", "rule"]);
    // Until it listens, it tells nothing.
    eventually("the kernel's news are heard", SOON, || {
        site.host.run("ip route replace 10.55.0.0/16 dev wire");
        site.host.run("ip route del 10.55.0.0/16 dev wire");
        seen.said().contains("10.55.0.0/16")
    });
    site.write("Address = 192.168.96.1/24, fd96::1/64", &peer(DEFAULT));
    site.done("up");
    let route = format!("default dev {} table 51820", site.name);
    eventually("both families' routes are told", SOON, || seen.said().matches(&route).count() == 2);
    let said = seen.said();
    let at = |text: &str| said.match_indices(text).map(|(at, _)| at).collect::<Vec<_>>();
    let (routes, rules) = (at(&route), at("suppress_prefixlength 0"));
    assert_eq!((rules.len(), at("lookup 51820").len()), (2, 2), "{said}");
    for (route, rule) in routes.iter().zip(&rules) {
        assert!(rule < route, "{said}");
    }
}

#[test]
fn check_names_the_tunnel_that_has_a_route_already() {
    let Some(site) = Site::new() else { return };
    let other = site.directory.join("other.conf");
    site.write("Address = 192.168.96.1/24", &peer("AllowedIPs = 10.7.0.0/16, 192.168.96.0/24"));
    std::fs::copy(site.file(), &other).expect("a copy");
    let check = || site.host.try_run(&format!("{} check {}", ringtun().display(), other.display()));
    check().unwrap_or_else(|error| panic!("nothing is up: {error}"));
    site.done("up");
    let error = check().expect_err("the route is taken");
    assert!(error.contains(&format!("AllowedIPs 10.7.0.0/16: {}, which is up", site.name)), "{error}");
    assert!(!error.contains("192.168.96.0/24"), "a connected network may be on both: {error}");
    site.done("check");
}

#[test]
fn many_peers_get_their_routes_beside_many_of_others_and_a_reload_changes_only_its_own() {
    const PEERS: usize = 300;
    let Some(site) = Site::new() else { return };
    let foreign: String =
        (0..5000).map(|i| format!("route add 172.{}.{}.0/24 dev wire\n", 16 + i / 256, i % 256)).collect();
    site.host.try_run_with_file(&foreign, "ip -batch $FILE").expect("routes of others");
    let before = site.look();
    let hosts = |from: usize, to: usize| -> String {
        let public_key = |i: usize| format!("{}{:03}=", "A".repeat(39), i).replace("=", "A=");
        let allowed = |i: usize| format!("10.64.{}.{}/32, 10.128.{}.0/24", i / 256, i % 256, i % 256);
        let one = |i: usize| format!("[Peer]\nPublicKey = {}\nAllowedIPs = {}\n", public_key(i), allowed(i));
        (from..to).map(one).collect()
    };
    let routes = || site.host.run(&format!("ip -4 route show dev {}", site.name)).lines().count();
    site.write("Address = 192.168.96.1/32", &hosts(0, PEERS));
    site.done("up");
    assert_eq!(routes(), PEERS + 256, "a route a prefix, and one for a prefix that two peers name");
    site.write("Address = 192.168.96.1/32", &hosts(100, PEERS));
    let said = site.done("reload");
    assert!(said.contains("ip -4 route delete 10.64.0.99/32"), "{said}");
    assert!(!said.contains("route add") && !said.contains("172."), "{said}");
    assert_eq!(routes(), PEERS - 100 + 200);
    site.write("Address = 192.168.96.1/32", &hosts(0, PEERS));
    site.done("reload");
    assert_eq!(routes(), PEERS + 256);
    site.done("down");
    assert_eq!(site.look(), before);
    assert!(site.is_gone());
}
