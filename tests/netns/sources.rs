//! Which of a host's addresses answers, and by which way: a table of hosts with two uplinks, in both families.

use crate::implementation::{Device, RINGTUN};
use crate::lab::{Host, eventually, join, ready};
use crate::pair::key_pair;
use std::sync::Arc;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// A host, and what it does. The words in scripts are replaced by addresses: see [`Family`].
struct Case {
    name: &'static str,
    /// Run on the server at first.
    server: &'static str,
    /// The address spoken to, and the uplink by which the client reaches it.
    spoken_to: (&'static str, u8),
    /// Where answers come from.
    answers: &'static str,
    /// What changes on the server then, and where answers come from after it.
    then: Option<(&'static str, &'static str)>,
}

const CASES: [Case; 9] = [
    Case {
        name: "a service address on the loopback interface",
        server: "IP addr add SERVICE dev lo; IP route add REMOTE via CLIENT1 dev up1",
        spoken_to: ("SERVICE", 1),
        answers: "SERVICE",
        then: None,
    },
    Case {
        name: "a service address whose answers leave by the other uplink",
        server: "IP addr add SERVICE dev lo; IP route add REMOTE via CLIENT2 dev up2",
        spoken_to: ("SERVICE", 1),
        answers: "SERVER2",
        then: None,
    },
    Case {
        name: "the second uplink's address, and a default route by the first",
        server: "IP route add default via CLIENT1 dev up1",
        spoken_to: ("SERVER2", 2),
        answers: "SERVER1",
        then: None,
    },
    Case {
        name: "the second uplink's address, with a rule that leads it out there",
        server: "IP route add default via CLIENT1 dev up1; IP route add default via CLIENT2 dev up2 table 2;
                 IP rule add from SERVER2 table 2",
        spoken_to: ("SERVER2", 2),
        answers: "SERVER2",
        then: Some(("IP rule del from SERVER2 table 2", "SERVER1")),
    },
    Case {
        name: "the second uplink's address, led out there by the port",
        server: "IP route add default via CLIENT1 dev up1; IP route add default via CLIENT2 dev up2 table 2;
                 IP rule add ipproto udp sport 51820 table 2",
        spoken_to: ("SERVER2", 2),
        answers: "SERVER2",
        then: None,
    },
    Case {
        name: "the second uplink's address, led out there by the mark",
        server: "IP route add default via CLIENT1 dev up1; IP route add default via CLIENT2 dev up2 table 2;
                 IP rule add fwmark 7 table 2; wg set DEVICE fwmark 7",
        spoken_to: ("SERVER2", 2),
        answers: "SERVER2",
        then: None,
    },
    Case {
        name: "a route that is withdrawn",
        server: "IP route add default via CLIENT1 dev up1; IP route add REMOTE via CLIENT2 dev up2",
        spoken_to: ("SERVER2", 2),
        answers: "SERVER2",
        then: Some(("IP route del REMOTE", "SERVER1")),
    },
    Case {
        name: "the second of two addresses, then another preferred source",
        server: "IP addr add SECOND dev up1; IP route add REMOTE via CLIENT1 dev up1 src SERVER1",
        spoken_to: ("SERVER1", 1),
        answers: "SERVER1",
        then: Some(("IP route change REMOTE via CLIENT1 dev up1 src SECOND", "SERVER1")),
    },
    Case {
        name: "an address that goes away",
        server: "IP addr add SECOND dev up1; IP route add REMOTE via CLIENT1 dev up1 src SERVER1",
        spoken_to: ("SECOND", 1),
        answers: "SECOND",
        then: Some(("IP addr del SECOND/LENGTH dev up1", "SERVER1")),
    },
];

/// Addresses of the stage: uplink n joins SERVERn and CLIENTn; the client speaks from REMOTE.
struct Family {
    ip: &'static str,
    length: &'static str,
    words: [(&'static str, &'static str); 7],
    bracket: fn(&str) -> String,
}

const V4: Family = Family {
    ip: "ip",
    length: "32",
    words: [
        ("SERVER1", "10.0.1.1"),
        ("SERVER2", "10.0.2.1"),
        ("CLIENT1", "10.0.1.2"),
        ("CLIENT2", "10.0.2.2"),
        ("SECOND", "10.0.1.3"),
        ("SERVICE", "203.0.113.9"),
        ("REMOTE", "198.51.100.2"),
    ],
    bracket: |ip| format!("{ip}:51820"),
};

const V6: Family = Family {
    ip: "ip -6",
    length: "128",
    words: [
        ("SERVER1", "fd00:1::1"),
        ("SERVER2", "fd00:2::1"),
        ("CLIENT1", "fd00:1::2"),
        ("CLIENT2", "fd00:2::2"),
        ("SECOND", "fd00:1::3"),
        ("SERVICE", "2001:db8:9::9"),
        ("REMOTE", "2001:db8::2"),
    ],
    bracket: |ip| format!("[{ip}]:51820"),
};

impl Family {
    fn fill(&self, script: &str) -> String {
        let script = script.replace("IP ", &format!("{} ", self.ip)).replace("LENGTH", self.length);
        self.words.iter().fold(script, |script, (word, address)| script.replace(word, address))
    }

    fn endpoint(&self, word: &str) -> String {
        (self.bracket)(&self.fill(word))
    }
}

/// A server with two uplinks, a client at the end of both, and a tunnel.
struct Stage {
    server: Device,
    client: Device,
    hosts: [Arc<Host>; 2],
}

impl Stage {
    fn new(family: &Family, case: &Case) -> Stage {
        let [mut server, mut client] = [0; 2].map(|_| Host::namespace());
        for link in ["up1", "up2"] {
            (server.link, client.link) = (link.into(), link.into());
            join(&server, &client);
        }
        let hosts = [Arc::new(server), Arc::new(client)];
        let [server, client] = [0, 1].map(|i| Device::start(&hosts[i], RINGTUN));
        let stage = Stage { server, client, hosts };
        stage.address(family);
        let ((server_key, server_public), (client_key, client_public)) = (key_pair(), key_pair());
        let (s, c) = (&stage.server.name, &stage.client.name);
        let key = |host: &Host, key: &str, script: &str| {
            host.try_run_with_file(key, script).unwrap_or_else(|error| panic!("{error}"));
        };
        key(
            &stage.hosts[0],
            &server_key,
            &format!(
                "wg set {s} listen-port 51820 private-key $FILE peer {client_public} allowed-ips 10.9.0.2/32
                      ip addr add 10.9.0.1/24 dev {s}; ip link set {s} up"
            ),
        );
        stage.hosts[0].run(&family.fill(&format!("set -e; {}", case.server.replace("DEVICE", s))));
        let (to, uplink) = case.spoken_to;
        // An address of the wire itself needs no gateway.
        let via = if to == "SERVICE" { format!("via SERVER{uplink} ") } else { String::new() };
        stage.hosts[1]
            .run(&family.fill(&format!("IP route replace {to}/LENGTH {via}dev up{uplink} src REMOTE")));
        let endpoint = family.endpoint(to);
        key(
            &stage.hosts[1],
            &client_key,
            &format!("wg set {c} private-key $FILE peer {server_public} endpoint {endpoint} allowed-ips 10.9.0.1/32
                      ip addr add 10.9.0.2/24 dev {c}; ip link set {c} up"),
        );
        stage
    }

    /// Addresses on both uplinks; no reverse-path filter, as asymmetric ways need it, and no search for duplicates, until whose
    /// end an address is the source of nothing.
    fn address(&self, family: &Family) {
        let wire = if family.ip == "ip" { "/24" } else { "/64 nodad" };
        let open = "for f in /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 >$f; done";
        for (host, who) in self.hosts.iter().zip(["SERVER", "CLIENT"]) {
            host.run(&family.fill(&format!(
                "{open}; IP addr add {who}1{wire} dev up1; IP addr add {who}2{wire} dev up2"
            )));
        }
        self.hosts[1].run(&family.fill("IP addr add REMOTE/LENGTH dev lo; IP route replace SERVER1/LENGTH dev up1 src REMOTE; IP route replace SERVER2/LENGTH dev up2 src REMOTE"));
    }

    /// Pings pass, and the answers come from there.
    #[track_caller]
    fn answers_from(&self, endpoint: &str, what: &str) {
        eventually(&format!("{what}: answers from {endpoint}"), SOON, || {
            let pings = self.hosts[1].try_run("ping -c 2 -i 0.2 -W 1 10.9.0.1").is_ok();
            let told = self.hosts[1].run(&format!("wg show {} endpoints", self.client.name));
            pings && told.trim().ends_with(&format!("\t{endpoint}"))
        });
    }
}

fn play(family: &Family) {
    if !ready() {
        return;
    }
    for case in &CASES {
        let stage = Stage::new(family, case);
        stage.answers_from(&family.endpoint(case.answers), case.name);
        if let Some((change, answers)) = case.then {
            stage.hosts[0].run(&family.fill(change));
            stage.answers_from(&family.endpoint(answers), &format!("{}, then", case.name));
            // It stays so.
            std::thread::sleep(Duration::from_millis(300));
            stage.answers_from(&family.endpoint(answers), &format!("{}, and later", case.name));
        }
    }
}

#[test]
fn answers_come_from_the_address_spoken_to_by_the_way_the_routes_lead_over_ipv4() {
    play(&V4);
}

#[test]
fn answers_come_from_the_address_spoken_to_by_the_way_the_routes_lead_over_ipv6() {
    play(&V6);
}
