//! The Debian package: the same bytes wherever and whenever it is made, and what it says it is built from.

use crate::lab::{find_program, serial, skip};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory that is gone with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let path = std::env::temp_dir().join(format!("rt-package-{}-{}", std::process::id(), serial()));
        std::fs::create_dir_all(&path).expect("a directory");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(command: &mut Command) -> Output {
    let done = command.output().expect("the command");
    let said = [&done.stdout[..], &done.stderr].map(String::from_utf8_lossy).concat();
    assert!(done.status.success(), "{command:?}: {said}");
    done
}

/// Copies the tree to `to` and packs `program` there, in this time zone and with this mask of permissions. Returns the package.
fn pack(to: &Path, program: &Path, zone: &str, mask: &str) -> PathBuf {
    std::fs::create_dir_all(to).expect("a directory");
    let script = format!(
        "umask {mask}; tar --exclude ./.git --exclude target --create . | tar --extract --touch --directory '{0}' && exec '{0}/scripts/package' --fast",
        to.display()
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.env("RINGTUN_BIN", program).env("SOURCE_DATE_EPOCH", "1700000000").env("TZ", zone);
    run(command.env_remove("CARGO_TARGET_DIR"));
    let made = std::fs::read_dir(to.join("target/debian")).expect("a package").next();
    made.expect("a package").expect("its entry").path()
}

/// The checksums of Cargo.lock, by name and version. What is of this tree has none.
fn locked() -> HashMap<(String, String), String> {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).expect("Cargo.lock");
    let value = |entry: &str, key: &str| {
        let start = format!("{key} = \"");
        entry.lines().find_map(|line| Some(line.strip_prefix(&start)?.trim_end_matches('"').to_owned()))
    };
    let entries = text.split("[[package]]").skip(1);
    let entries = entries.map(|entry| ["name", "version", "checksum"].map(|key| value(entry, key)));
    entries.filter_map(|[name, version, checksum]| Some(((name?, version?), checksum?))).collect()
}

/// All crates that the program is linked from stand in the list with the checksums of Cargo.lock, and none that Cargo.lock has not.
fn check_components(list: &serde_json::Value) {
    let locked = locked();
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let components = list["components"].as_array().expect("components");
    for component in components {
        let key = (text(&component["name"]), text(&component["version"]));
        assert_eq!(locked.get(&key), Some(&text(&component["hashes"][0]["content"])), "{key:?}");
        assert_eq!(text(&component["purl"]), format!("pkg:cargo/{}@{}", key.0, key.1));
        assert!(!text(&component["licenses"][0]["expression"]).is_empty(), "{key:?}");
    }
    let linked =
        ["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let linked = run(Command::new(env!("CARGO")).args(linked).current_dir(env!("CARGO_MANIFEST_DIR")));
    let linked = String::from_utf8(linked.stdout).expect("text");
    let mut count = 0;
    for line in linked.lines().filter(|line| !line.is_empty() && !line.starts_with("ringtun ")) {
        let [name, version] = [0, 1].map(|at| line.split(' ').nth(at).expect("name and version"));
        let is_it = |one: &&serde_json::Value| one["name"] == name && one["version"] == version[1..];
        assert!(components.iter().any(|one| is_it(&one)), "{line}");
        count += 1;
    }
    assert!(count > 30, "{count} crates");
    let root = list["dependencies"].as_array().expect("dependencies").iter();
    let mut root = root.filter(|one| one["ref"] == list["metadata"]["component"]["bom-ref"]);
    let direct = root.next().expect("the program's own")["dependsOn"].as_array().expect("its dependencies");
    assert!(direct.iter().any(|one| text(one).starts_with("pkg:cargo/ring@")), "{direct:?}");
    assert!(
        direct.iter().all(|one| !text(one).starts_with("pkg:cargo/loom@")),
        "what tests need is not in it"
    );
}

#[test]
fn a_package_is_the_same_wherever_and_whenever_it_is_made_and_lists_what_it_is_built_from() {
    let peers = std::env::var("RINGTUN_PEERS").unwrap_or("/opt/peers".into());
    let cargo_deb = find_program("cargo-deb").is_some() || Path::new(&peers).join("bin/cargo-deb").exists();
    if !cargo_deb || find_program("dpkg-shlibdeps").is_none() || find_program("python3").is_none() {
        return skip("cargo-deb, dpkg-shlibdeps or python3 is not installed");
    }
    let folder = Folder::new();
    let program = folder.0.join("ringtun");
    // What it holds for a debugger would only take time.
    run(Command::new("strip").arg("-o").arg(&program).arg(env!("CARGO_BIN_EXE_ringtun")));
    let one = pack(&folder.0.join("a"), &program, "Pacific/Kiritimati", "077");
    let other = pack(&folder.0.join("another/place"), &program, "America/Adak", "000");
    assert_eq!(one.file_name(), other.file_name());
    let read = |path: &Path| std::fs::read(path).expect("a package");
    assert!(read(&one) == read(&other), "two packages of one program differ");
    let content = folder.0.join("content");
    run(Command::new("dpkg-deb").arg("--extract").arg(&one).arg(&content));
    let list = read(&content.join("usr/share/doc/ringtun/ringtun.cdx.json"));
    let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
    assert_eq!((&list["bomFormat"], &list["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    assert_eq!(list["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
    check_components(&list);
}

#[test]
fn what_packaging_does_not_know_is_a_wrong_use() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/package");
    for arguments in [&["--quick"][..], &["--verify", "again"]] {
        assert_eq!(Command::new(script).args(arguments).output().expect("the script").status.code(), Some(2));
    }
    let of_another =
        Command::new(script).arg("--verify").env("RINGTUN_BIN", "/bin/true").output().expect("the script");
    assert_eq!(of_another.status.code(), Some(2), "{}", String::from_utf8_lossy(&of_another.stderr));
    let timeless = Command::new(script).env("SOURCE_DATE_EPOCH", "today").output().expect("the script");
    assert!(String::from_utf8_lossy(&timeless.stderr).contains("seconds since 1970, not today"));
}
