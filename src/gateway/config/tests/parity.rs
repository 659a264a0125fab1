//! Agreement with the installed wg-quick(8) and wg(8) in what they strip, accept, reject and send. Where they are not
//! installed, these tests are skipped.

use super::*;
use crate::device::uapi::SetRequest;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;

const DIRECTORY: &str = "/var/run/wireguard";

/// A configuration socket that takes everything, and the directory for files.
struct Oracle {
    name: String,
    socket: PathBuf,
    directory: PathBuf,
    sent: mpsc::Receiver<Vec<u8>>,
}

impl Oracle {
    fn new(tag: &str) -> Option<Oracle> {
        let works = |program: &str, argument: &str| {
            let run =
                Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
            run.is_ok_and(|status| status.success())
        };
        let name = format!("rtcf{tag}{}", std::process::id());
        let socket = PathBuf::from(DIRECTORY).join(format!("{name}.sock"));
        let _ = std::fs::create_dir_all(DIRECTORY);
        let listener = UnixListener::bind(&socket)
            .ok()
            .filter(|_| works("wg", "--version") && works("wg-quick", "--help"));
        let Some(listener) = listener.filter(|_| rustix::process::geteuid().is_root()) else {
            eprintln!("SKIPPED: agreement with wg and wg-quick needs both of them, and root");
            let _ = std::fs::remove_file(socket);
            return None;
        };
        let directory = std::env::temp_dir().join(format!("{name}.d"));
        std::fs::create_dir_all(&directory).unwrap();
        let (sender, sent) = mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = Vec::new();
                let mut chunk = [0; 4096];
                while !request.ends_with(b"\n\n") {
                    match stream.read(&mut chunk) {
                        Ok(len) if len > 0 => request.extend_from_slice(&chunk[..len]),
                        _ => break,
                    }
                }
                // `wg` first looks whether anybody is there, and says nothing then.
                if !request.is_empty()
                    && stream.write_all(b"errno=0\n\n").is_ok()
                    && sender.send(request).is_err()
                {
                    return;
                }
            }
        });
        Some(Oracle { name, socket, directory, sent })
    }

    fn strip(&self, text: &[u8]) -> Option<Vec<u8>> {
        let file = self.directory.join("wg0.conf");
        std::fs::write(&file, text).unwrap();
        let output = Command::new("wg-quick").arg("strip").arg(&file).stderr(Stdio::null()).output().unwrap();
        output.status.success().then_some(output.stdout)
    }

    /// The request that `wg addconf` sends. `None` where it rejects the file.
    fn addconf(&self, text: &[u8]) -> Option<Vec<u8>> {
        let file = self.directory.join("stripped");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("wg");
        command.args(["addconf", &self.name]).arg(&file).env("WG_ENDPOINT_RESOLUTION_RETRIES", "0");
        let status = command.stderr(Stdio::null()).status().unwrap();
        status.success().then(|| self.sent.recv().unwrap())
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Values of wg's own keys, and whole files.
fn corpus() -> Vec<String> {
    let interface = [
        "ListenPort=0",
        "ListenPort = 4500",
        "listenport=domain",
        "ListenPort=",
        "ListenPort=-1",
        "ListenPort= 5 1",
        "ListenPort=0x10",
        "ListenPort",
        "ListenPort==5",
        "FwMark=0x",
        "FwMark=0X10",
        "FwMark=010",
        "FwMark=OFF",
        "FwMark=0xca6c",
        "FwMark=4294967296",
        "FwMark=0xfg",
        "FwMark=",
        "FwMark=-1",
        "PrivateKey=",
        "PrivateKey=K",
        "Private Key = K",
        "PrivateKey=Kx",
        "PrivateKey=Z",
        "[peer",
        "[INTERFACE]",
        "[ Interface ]",
        "[Interface]=",
        "Unknown=1",
        "PublicKey=P",
        "ListenPort=5;x",
        "MTU=1400\nTable=off\nDNS=1.1.1.1",
        "Save Config=true",
        "[ Interface ]\nAddress=10.0.0.1/24",
        "#x\n  # y\n\tPostUp = a # b\n PostDown=c\n\n  FwMark=1  \n",
        "address=10.0.0.1/24\nADDRESS=fd00::1/64",
    ];
    let peer = [
        "AllowedIPs=",
        "AllowedIPs=1.2.3.4",
        "AllowedIPs=1.2.3.4/",
        "AllowedIPs=1.2.3.4/33",
        "AllowedIPs=1.2.3.4/024",
        "AllowedIPs=1.2.3.4/+24",
        "AllowedIPs=1.2.3.4/8,",
        "AllowedIPs=,",
        "AllowedIPs=1.2.3",
        "AllowedIPs=01.2.3.4",
        "AllowedIPs=::1",
        "AllowedIPs=fe80::1%lo/64",
        "AllowedIPs=::ffff:1.2.3.4/96",
        "AllowedIPs=+1.2.3.4/32",
        "AllowedIPs=1.2.3.4/8/9",
        "AllowedIPs = 10.0.0.0/8 , 0.0.0.0/0,::/0\nAllowedIPs=fd00::/8",
        "Endpoint=",
        "Endpoint=1.2.3.4",
        "Endpoint=1.2.3.4:",
        "Endpoint=1.2.3.4:0",
        "Endpoint=[::1]:5",
        "Endpoint=::1:5",
        "Endpoint=[1.2.3.4]:5",
        "Endpoint=[1.2.3.4]:domain",
        "Endpoint=:5",
        "Endpoint=[]:5",
        "Endpoint=[::1]5",
        "Endpoint=[::1",
        "Endpoint=1.2.3:5",
        "Endpoint=[::1]:5x",
        "Endpoint=1.2.3.4: 5 6",
        "Endpoint=1.2.3.4:-1",
        "Endpoint=a:b:c:5",
        "PersistentKeepalive=0",
        "PersistentKeepalive=off",
        "PersistentKeepalive=",
        "PersistentKeepalive=65535",
        "PersistentKeepalive=65536",
        "PersistentKeepalive=025",
        "PersistentKeepalive=1s",
        "PresharedKey=",
        "PresharedKey=K",
        "PresharedKey=Z",
        "PublicKey=P",
        "Foo=1",
        "[Interface]\nListenPort=5\nMTU=1",
        "[Peer]\nPublicKey=O\n[Peer]\nPublicKey=P\nEndpoint=1.2.3.4:5",
        "[Peer]",
        "MTU=1400",
        "# Name = x\nallowedips = 10.0.0.0/8#y",
    ];
    let whole = [
        "",
        "\n\n",
        "# x",
        "ListenPort=5\n",
        "[Peer]\nAllowedIPs=1.2.3.4\n",
        "[Interface]\r\nListenPort=5\r\n",
        "\u{feff}[Interface]\n",
        "[Interface]",
        "  [Interface]  # x\n\t ListenPort = 5 \t\n x\n",
    ];
    let fill = |text: String| {
        let zeros = format!("{}=", "A".repeat(43));
        let with = |text: String, mark: &str, key: &str| {
            text.replace(&format!("Key={mark}"), &format!("Key={key}"))
                .replace(&format!("Key = {mark}"), &format!("Key = {key}"))
        };
        with(with(with(with(text, "K", PRIVATE), "P", PUBLIC), "O", OTHER), "Z", &zeros)
    };
    let interface = interface.iter().map(|line| format!("[Interface]\n{line}\n"));
    let peer = peer
        .iter()
        .map(|line| format!("[Interface]\nAddress=10.0.0.1/24\nPrivateKey=K\n[Peer]\nPublicKey=P\n{line}\n"));
    interface.chain(peer).chain(whole.iter().map(|&text| text.to_owned())).map(fill).collect()
}

#[test]
fn strip_prints_what_wg_quick_prints() {
    let Some(oracle) = Oracle::new("s") else { return };
    for text in corpus() {
        if let Some(expected) = oracle.strip(text.as_bytes()) {
            let stripped = Document::new(text.as_bytes()).strip();
            assert_eq!(String::from_utf8_lossy(&stripped), String::from_utf8_lossy(&expected), "{text:?}");
        }
    }
}

#[test]
fn what_wg_accepts_is_accepted_and_sent_alike_and_what_it_rejects_is_rejected() {
    let Some(oracle) = Oracle::new("c") else { return };
    let mut accepted = 0;
    for text in corpus() {
        let expected = oracle.strip(text.as_bytes()).and_then(|stripped| oracle.addconf(&stripped));
        // A number for an MTU of 1 is refused by ip(8) later, and by this program at once.
        let text_read = text.replace("MTU=1\n", "MTU=1400\n");
        let read = parse(&text_read);
        assert_eq!(read.is_ok(), expected.is_some(), "{text:?}: {:?}", read.err());
        let (Ok((config, _)), Some(expected)) = (read, expected) else { continue };
        let request = config.request(&mut |_, endpoint| endpoint.resolve().ok());
        let expected = SetRequest::parse(expected.strip_suffix(b"\n").unwrap()).unwrap();
        // A key of zeros is no key. For a new device and a new peer it is the same whether that is said or not.
        let plain = |request: &SetRequest| {
            let none = |key: &str| format!("{key}_key={}\n", "0".repeat(64));
            set_text(request).replace(&none("preshared"), "").replace(&none("private"), "")
        };
        assert_eq!(plain(&request), plain(&expected), "{text:?}");
        accepted += 1;
    }
    assert!(accepted > 30, "{accepted}");
}
