//! Every example that `--help` gives does what it says, with the file that the README has.

use crate::implementation::{ringtun, ringtun_itself};
use crate::lab::{Host, find_program, ready, serial, sh, skip};
use std::path::Path;

/// Those who have examples, as they are called.
const VERBS: [&str; 30] = [
    "",
    "genkey",
    "genpsk",
    "pubkey",
    "service",
    "show",
    "showconf",
    "status",
    "doctor",
    "bench",
    "up",
    "down",
    "save",
    "reload",
    "upgrade",
    "check",
    "strip",
    "mtu",
    "peer",
    "peer add",
    "peer list",
    "peer show",
    "peer rename",
    "peer disable",
    "peer enable",
    "peer remove",
    "peer limit",
    "import",
    "export",
    "help",
];

/// Makes the peer whom examples speak of.
const KNOWN: &str = "ringtun peer add laptop --endpoint vpn.example.org >/dev/null 2>&1\n";

/// The commands of the examples, without the words beside them.
fn examples(verb: &str) -> Vec<String> {
    let help = sh(&format!("COLUMNS=400 {} {verb} --help", ringtun().display())).unwrap_or_default();
    let lines = help.lines().skip_while(|line| !line.starts_with("Example")).skip(1);
    let lines = lines.take_while(|line| line.starts_with("  ")).map(str::trim);
    lines.map(|line| line.split("  ").next().unwrap_or_default().to_owned()).collect()
}

/// What an example finds: a directory of its own, the README's file and its like, and the programs that it speaks of.
fn prelude(directory: &Path) -> String {
    let peer = "[Peer]\\nPublicKey = $(wg genkey | wg pubkey)\\nAllowedIPs = 192.168.96.2/32\\n";
    let write = |name: &str, port: u16, network: u8| {
        format!(
            "printf \"[Interface]\\nAddress = 192.168.{network}.1/24\\nListenPort = {port}\\nPrivateKey = $(wg genkey)\\n{}\" >{name}\n",
            if network == 96 { peer } else { "" }
        )
    };
    [
        "set -e; umask 077; cd ", &directory.display().to_string(), "\n",
        "mount -t tmpfs none /run; mkdir -p /etc/wireguard; mount -t tmpfs none /etc/wireguard\n",
        "mount -t tmpfs none /var/lib; mkdir -p /var/lib/prometheus/node-exporter\n",
        "cp /etc/hosts hosts; echo 192.0.2.1 vpn.example.org >>hosts; mount --bind hosts /etc/hosts\n",
        "ip link add out type veth peer name far; ip link set far up; ip address add 192.0.2.9/24 dev out; ip link set out up; ip route add default via 192.0.2.1\n",
        &write("/etc/wireguard/wg0.conf", 4500, 96), &write("/etc/wireguard/wg1.conf", 4501, 97), &write("office.conf", 4502, 98),
        "cp /etc/wireguard/wg0.conf wg0.conf; wg genkey >private.key\n",
        "printf \"wgkey $(wg genkey)\\ninet 10.0.0.1/24\\n\" >hostname.wg0\n",
        "mkdir bin; ln -s ", &ringtun().display().to_string(), " bin/ringtun\n",
        "for stub in 'sudo exec \"$@\"' 'ssh exec cat' 'jq exec cat'; do printf '#!/bin/sh\\n%s\\n' \"${stub#* }\" >bin/${stub%% *}; chmod 755 bin/${stub%% *}; done\n",
        "PATH=$PWD/bin:$PATH\n",
    ]
    .concat()
}

/// The example, made to end: what stays in the foreground is ended as Ctrl-C does it.
fn made_to_end(example: &str) -> String {
    if ["-f", "service", "monitor"].iter().any(|word| example.contains(&format!("ringtun {word}"))) {
        let (environment, command) = example.split_at(example.find("ringtun").unwrap_or(0));
        return format!("{environment} timeout --preserve-status -s INT 3 {command}");
    }
    // What runs for a minute by default does the same in less.
    if example.ends_with("ringtun bench") { format!("{example} --seconds 1") } else { example.to_owned() }
}

/// What must be there for an example beside the prelude: a tunnel, unless it begins one itself or needs none, the peer of whom it speaks, and
/// results to compare.
fn before(example: &str) -> String {
    if example.contains("--compare") {
        return "ringtun bench --seconds 1 --only rtt --json before.json; cp before.json after.json\n"
            .to_owned();
    }
    let begins = ["up ", "wg0", "-f", "--http", "service", "check", "peer", "bench"]
        .iter()
        .any(|word| example.contains(&format!("ringtun {word}")))
        || example.contains("wg-quick");
    let name = if example.contains("office") { "./office.conf" } else { "wg0" };
    let up = if begins { String::new() } else { format!("ringtun up {name} 2>/dev/null\n") };
    let known = ["show", "limit", "rename", "disable", "enable", "remove"];
    match known.iter().find(|verb| example.contains(&format!("peer {verb}"))) {
        Some(&"enable") => format!("{up}{KNOWN}ringtun peer disable laptop 2>/dev/null\n"),
        Some(_) => up + KNOWN,
        None => up,
    }
}

#[test]
fn every_example_of_help_is_true() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let has_kernels = Host::namespace().try_run("ip link add probe type wireguard").is_ok();
    let (mut tried, mut wrong) = (0, Vec::new());
    for (verb, example) in
        VERBS.iter().flat_map(|verb| examples(verb).into_iter().map(move |line| (verb, line)))
    {
        // The unit's own tests are others, and wg-quick takes the kernel's device where there is one.
        if example.starts_with("systemctl") {
            continue;
        }
        if example.contains("wg-quick") && (has_kernels || find_program("wg-quick").is_none()) {
            skip("wg-quick is not installed, or would take the kernel's own WireGuard");
            continue;
        }
        let host = Host::namespace();
        let directory = std::env::temp_dir().join(format!("rt-{}-{}", std::process::id(), serial()));
        std::fs::create_dir(&directory).expect("a directory");
        let input = if example == "ringtun pubkey" { " <private.key" } else { "" };
        let script = format!("{}{}{}{input}\n", prelude(&directory), before(&example), made_to_end(&example));
        std::fs::write(directory.join("script"), script).expect("a script");
        let done = host.try_run(&format!("unshare -m bash {}/script", directory.display()));
        let _ = std::fs::remove_dir_all(&directory);
        wrong.extend(done.err().map(|error| format!("ringtun {verb} --help: {example}\n{error}\n")));
        tried += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.concat());
    assert!(tried > 35, "{tried}");
}
