//! Tunnels of an ordinary user, over an interface and a socket that the administrator prepared, as docs/containers.md says.

use crate::implementation::{ringtun, ringtun_itself, uapi_socket};
use crate::lab::{Host, Process, eventually, serial};
use crate::library::{SOON, expect_pings, hosts, name, set_up, tunnel};
use crate::pair::key_pair;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// The user `nobody`.
const USER: u32 = 65534;

/// A place with a program and a device node that everyone may open. The host's own may be closed to others.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        let place = Place(std::env::temp_dir().join(format!("rt-{}-{}", std::process::id(), serial())));
        std::fs::create_dir(&place.0).unwrap();
        std::fs::set_permissions(&place.0, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::copy(ringtun(), place.0.join("ringtun")).unwrap();
        crate::lab::sh(&format!("mknod -m 666 {}/tun c 10 200", place.0.display())).unwrap();
        place
    }

    /// Starts the user's tunnel when somebody first speaks to its socket.
    fn start(&self, host: &Host, name: &str) -> Process {
        let place = self.0.display();
        let run = format!(
            "mount --bind {place}/tun /dev/net/tun && exec systemd-socket-activate -l {} -E WG_UAPI_FD=3 \
             setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs {place}/ringtun -f --workers 2 {name}",
            uapi_socket(name)
        );
        host.start("unshare", &["--mount", "sh", "-c", &run])
    }

    /// Has the user's tunnel go on in another process of the user's, with one worker more. Root's would be another user's.
    fn upgrade(&self, host: &Host, name: &str, pid: u32) {
        let error = crate::upgrade::try_upgrade(host, name, "").unwrap_err();
        assert!(
            error.contains(&format!("it is user {USER}'s")) && error.contains("setpriv --reuid"),
            "{error}"
        );
        let place = self.0.display();
        host.run(&format!("chmod 666 {}", uapi_socket(name)));
        host.run(&format!(
            "nsenter --mount --target {pid} setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs \
             {place}/ringtun upgrade {name} --workers 3"
        ));
        let status = crate::upgrade::status(host, name);
        assert_eq!(status["workers"].as_array().map(Vec::len), Some(3));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn an_ordinary_users_tunnel_over_a_prepared_interface_can_be_started_again() {
    if !ringtun_itself() {
        return;
    }
    let Some([a, b]) = hosts() else { return };
    let (place, names, keys) = (Place::new(), [name(), name()], [key_pair(), key_pair()]);
    a.run(&format!("ip tuntap add dev {} mode tun multi_queue user {USER}", names[0]));
    set_up(&a, &names[0], 1);
    let peer = tunnel(&b, &names[1], &keys[1].0, &keys[0].1, 1);
    set_up(&b, &names[1], 2);
    for round in 0..2 {
        let mut process = place.start(&a, &names[0]);
        eventually("its socket is there", SOON, || std::path::Path::new(&uapi_socket(&names[0])).exists());
        let [(private, _), (_, public)] = &keys;
        let config = format!(
            "[Interface]\nPrivateKey = {private}\nListenPort = 51820\n[Peer]\nPublicKey = {public}\n\
             AllowedIPs = 10.99.0.0/24\nEndpoint = 198.18.0.2:51820\n"
        );
        a.try_run_with_file(&config, &format!("wg setconf {} $FILE", names[0])).unwrap();
        expect_pings(&a, 2, &[&process, &peer]);
        let ids = a.run(&format!("ps -o uid=,args= -p {}", process.pid()));
        assert!(ids.contains(&format!("{USER} ")) && ids.contains("ringtun -f"), "{ids}");
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
        for line in ["CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "round {round}: {status}");
        }
        if round == 1 {
            place.upgrade(&a, &names[0], process.pid());
            expect_pings(&a, 2, &[&peer]);
            a.run(&format!("kill {}", crate::upgrade::process(&a, &names[0])));
        } else {
            process.signal("TERM");
        }
        assert!(process.wait(SOON).expect("it ends").success(), "{}", process.said());
        eventually("its interface is free", SOON, || {
            a.run(&format!("ip -d link show {}", names[0])).contains("numqueues 0 ")
        });
        let _ = std::fs::remove_file(uapi_socket(&names[0]));
        let link = a.run(&format!("ip address show {}", names[0]));
        assert!(link.contains("10.99.0.1/24"), "the interface stays as it was: {link}");
    }
}

#[test]
fn an_interface_of_another_user_is_not_taken_over() {
    if !ringtun_itself() {
        return;
    }
    let Some([a, _b]) = hosts() else { return };
    let (place, name) = (Place::new(), name());
    a.run(&format!("ip tuntap add dev {name} mode tun multi_queue user {}", USER - 1));
    let mut process = place.start(&a, &name);
    eventually("its socket is there", SOON, || std::path::Path::new(&uapi_socket(&name)).exists());
    let _ = a.try_run(&format!("timeout 5 wg show {name}"));
    assert!(!process.wait(SOON).expect("it ends").success());
    let _ = std::fs::remove_file(uapi_socket(&name));
    assert!(process.said().contains("exists already"), "{}", process.said());
}
