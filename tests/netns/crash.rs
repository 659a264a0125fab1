//! A tunnel's process is killed: the service starts it anew, and the peers are reached at once, whoever they are, where they were last.

use crate::implementation::{Device, Implementation, RINGTUN, ringtun, ringtun_itself};
use crate::lab::{Host, Process, eventually, join, ready, serial, skip, wait_for};
use crate::pair::key_pair;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

/// A server that a service runs, with one peer that it cannot look for by itself: its file has no endpoint.
struct Server {
    host: Host,
    client: Arc<Host>,
    _device: Device,
    name: String,
    service: Process,
    directory: std::path::PathBuf,
}

impl Server {
    fn new(implementation: Implementation) -> Option<Server> {
        if let Some(because) = implementation.missing() {
            skip(&because);
            return None;
        }
        let host = Host::namespace();
        let is_kernel = implementation == Implementation::Kernel;
        let client = Arc::new(if is_kernel { Host::guest(&host) } else { Host::namespace() });
        if is_kernel {
            client.run(&format!("ip link set {} up", client.link));
        } else {
            join(&host, &client);
        }
        host.run(&format!("ip addr add 10.99.0.1/24 dev {}", host.link));
        client.run(&format!("ip addr add 10.99.0.2/24 dev {}", client.link));
        let (ours, theirs) = (key_pair(), key_pair());
        let name = format!("rt{}k{}", std::process::id() % 10_000_000, serial());
        let directory = std::env::temp_dir().join(format!("rt-crash-{name}"));
        std::fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join(format!("{name}.conf"));
        let text = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 4500\nAddress = 192.168.96.1/24\n[Peer]\nPublicKey = {}\nAllowedIPs = 192.168.96.2/32\n",
            ours.0, theirs.1
        );
        std::fs::write(&file, text).expect("a file");
        host.run(&format!("chmod 600 {}", file.display()));
        let service = host.start(&ringtun().display().to_string(), &["service", &file.display().to_string()]);
        let device = Device::start(&client, implementation);
        let configuration = format!(
            "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = 192.168.96.0/24\nEndpoint = 10.99.0.1:4500\n",
            theirs.0, ours.1
        );
        client
            .try_run_with_file(&configuration, &format!("wg setconf {} $FILE", device.name))
            .unwrap_or_else(|error| panic!("{error}"));
        client
            .run(&format!("ip addr add 192.168.96.2/24 dev {0} && ip link set {0} mtu 1420 up", device.name));
        let server = Server { host, client, _device: device, name, service, directory };
        eventually("the client reaches the server", SOON, || {
            server.client.try_run("ping -c 1 -W 1 192.168.96.1").is_ok()
        });
        server.remembers();
        Some(server)
    }

    /// Waits until what is to be remembered says that the peer is connected.
    fn remembers(&self) {
        let file = format!("/run/ringtun/peers/{}", self.name);
        eventually("the peer is remembered", SOON, || {
            std::fs::read_to_string(&file)
                .is_ok_and(|text| text.contains("10.99.0.2:") && text.contains(" 1 0 0"))
        });
        let mode = self.host.run(&format!("stat -c %a {file} /run/ringtun/peers"));
        assert_eq!(mode.split_whitespace().collect::<Vec<_>>(), ["600", "700"]);
    }

    fn process(&self) -> Option<u64> {
        let said = self.host.try_run(&format!("{} status {} --json", ringtun().display(), self.name)).ok()?;
        serde_json::from_str::<serde_json::Value>(&said).ok()?[0]["status"]["pid"].as_u64()
    }

    /// Kills the tunnel's process; the number of the next.
    fn kill(&self, signal: &str) -> Option<u64> {
        let before = self.process().expect("a process");
        self.host.run(&format!("kill -{signal} {before}"));
        wait_for(SOON, || self.process().filter(|&pid| pid != before))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.service.signal("TERM");
        let _ = self.service.wait(SOON);
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_file(format!("/run/ringtun/peers/{}", self.name));
    }
}

#[test]
fn the_peers_of_a_killed_tunnel_are_looked_for_at_once() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let all = [
        RINGTUN,
        Implementation::WireguardGo,
        Implementation::Boringtun,
        Implementation::Gotatun,
        Implementation::Kernel,
    ];
    for implementation in all {
        let Some(server) = Server::new(implementation) else { continue };
        assert!(server.kill("KILL").is_some(), "{implementation:?}: {}", server.service.said());
        let begun = Instant::now();
        // The server speaks first: without what it remembered it would not know where to.
        let reached = wait_for(SOON, || server.host.try_run("ping -c 1 -W 1 192.168.96.2").ok());
        assert!(reached.is_some(), "{implementation:?}: {}", server.service.said());
        println!(
            "{implementation:?}: {:.2} s from the new process to the first answer",
            begun.elapsed().as_secs_f64()
        );
        server.client.run("ping -c 1 -W 2 192.168.96.1");
        let said = server.service.said();
        assert!(said.contains("was killed by signal 9") && said.contains("looked for at once"), "{said}");
    }
}

#[test]
fn a_crash_loop_ends_the_service_and_a_stop_is_no_crash() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let Some(mut server) = Server::new(RINGTUN) else { return };
    for _ in 0..4 {
        assert!(server.kill("ABRT").is_some(), "{}", server.service.said());
    }
    let last = server.process().expect("a process");
    server.host.run(&format!("kill -KILL {last}"));
    let status = server.service.wait(SOON).expect("the service ends");
    assert!(!status.success(), "{status}");
    let said = server.service.said();
    assert!(said.contains("not started again") && said.contains("signal 6 (SIGABRT"), "{said}");
    assert!(server.host.try_run(&format!("ip link show {}", server.name)).is_err());
}
