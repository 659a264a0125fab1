//! A guest in QEMU whose kernel has WireGuard of its own; `scripts/peers kernel` makes its image. Its card is connected to
//! a TAP device in a namespace. Commands go through its second serial line (see `scripts/guest-image`).

use crate::common::implementation::peers_directory;
use crate::common::lab::{Host, Process, find_program};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Emulated in software, always: a /dev/kvm inside a virtual machine may open and then never run the guest. So it boots
/// slowly on a busy machine.
const BOOT: Duration = Duration::from_secs(180);
const ANSWER: Duration = Duration::from_secs(120);

/// Why no guest can be had.
pub(crate) fn missing() -> Option<String> {
    if find_program("qemu-system-x86_64").is_none() {
        return Some("qemu-system-x86_64 is not installed".into());
    }
    let image = peers_directory().join("kernel/initrd");
    (!image.exists()).then(|| format!("{} is missing (scripts/peers kernel makes it)", image.display()))
}

/// The running guest. Requests are answered one at a time.
pub(crate) struct Guest {
    line: Mutex<(ChildStdin, Receiver<String>)>,
    // Ends the guest when dropped.
    _process: Process,
}

impl Guest {
    /// Boots it with its card in `neighbour`'s namespace, and waits until it answers.
    pub(crate) fn boot(neighbour: &Host) -> Guest {
        neighbour.run(&format!("ip tuntap add {0} mode tap && ip link set {0} up", neighbour.link));
        let image = peers_directory().join("kernel");
        let kernel = image.join("vmlinuz").display().to_string();
        let initrd = image.join("initrd").display().to_string();
        let card = format!("tap,id=card,ifname={},script=no,downscript=no", neighbour.link);
        let mut command = neighbour.command(
            "qemu-system-x86_64",
            &[
                &[
                    "-accel",
                    "tcg",
                    "-cpu",
                    "max",
                    "-m",
                    "256",
                    "-nodefaults",
                    "-display",
                    "none",
                    "-no-reboot",
                ][..],
                &["-kernel", &kernel, "-initrd", &initrd, "-append", "quiet console=ttyS0 panic=-1"],
                &["-netdev", &card, "-device", "virtio-net-pci,netdev=card,romfile="],
                &["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"],
                &["-serial", "null", "-serial", "stdio"],
            ]
            .concat(),
        );
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("qemu");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let process = Process::adopt(child);
        loop {
            let line = lines.recv_timeout(BOOT).expect("the guest did not boot");
            if line.trim_end().ends_with("READY") {
                break;
            }
        }
        Guest { line: Mutex::new((stdin, lines)), _process: process }
    }

    /// Runs a script in the guest; its output, or what it said when it failed.
    pub(crate) fn run(&self, script: &str) -> Result<String, String> {
        let mut line = self.line.lock().expect("no panic while it was held");
        let (stdin, answers) = &mut *line;
        writeln!(stdin, "{}", STANDARD.encode(script)).map_err(|error| format!("guest: {error}"))?;
        loop {
            let answer =
                answers.recv_timeout(ANSWER).map_err(|_| format!("the guest did not answer: {script}"))?;
            let words: Vec<&str> = answer.trim().split(' ').collect();
            let (output, code) = match words[..] {
                [output, code, "END"] => (output, code),
                [code, "END"] => ("", code),
                _ => continue,
            };
            let output = STANDARD.decode(output).map_err(|error| format!("{answer}: {error}"))?;
            let output = String::from_utf8_lossy(&output).into_owned();
            return if code == "0" {
                Ok(output)
            } else {
                Err(format!("guest: `{script}`: exit {code}: {output}"))
            };
        }
    }
}
