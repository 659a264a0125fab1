//! Configuration files: how they are found, read and replaced.

use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

/// A directory of its own for a test, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(tag: &str, mode: u32) -> Folder {
        let path = std::env::temp_dir().join(format!("rt-conf-{tag}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_name_is_looked_up_in_the_directory_and_a_path_taken_as_it_is() {
    let folder = Folder::new("find", 0o700);
    let path = folder.file("wg-0.x.conf", "", 0o600);
    let path = fs::canonicalize(path).unwrap();
    let by_name = Place::find_in(&folder.0, "wg-0.x").unwrap();
    let by_path = Place::find_in(&folder.0, path.to_str().unwrap()).unwrap();
    assert_eq!((by_name.file.clone(), by_name.interface.as_str()), (path, "wg-0.x"));
    assert_eq!(by_name, by_path);
}

#[test]
fn a_symbolic_links_own_name_is_the_interfaces() {
    let folder = Folder::new("link", 0o700);
    let path = folder.file("real.conf", "", 0o600);
    std::os::unix::fs::symlink(&path, folder.0.join("wg7.conf")).unwrap();
    let place = Place::find_in(&folder.0, "wg7").unwrap();
    assert_eq!((place.file, place.interface.as_str()), (fs::canonicalize(path).unwrap(), "wg7"));
}

#[test]
fn a_name_is_at_most_15_of_wg_quicks_characters() {
    let folder = Folder::new("name", 0o700);
    for given in
        ["wg 0", "wg/0", "", "abcdefghijklmnop", "./abcdefghijklmnop.conf", "./wg0", "./wg0.txt", "./.conf"]
    {
        let error = Place::find_in(&folder.0, given).unwrap_err();
        assert!(matches!(error, LoadError::Name(_)), "{given}: {error}");
    }
    let error = Place::find_in(&folder.0, "absent").unwrap_err();
    assert!(matches!(error, LoadError::File(..)), "{error}");
}

#[test]
fn a_name_that_leads_nowhere_is_told_with_what_was_meant() {
    let folder = Folder::new("meant", 0o700);
    folder.file("wg0.conf", "", 0o600);
    let told = |given: &str| Place::find_in(&folder.0, given).unwrap_err().to_string();
    let long = told("abcdefghijklmnop");
    assert!(long.contains("has 16 characters") && long.contains("at most 15"), "{long}");
    assert!(told("./abcdefghijklmnop.conf").contains("`abcdefghijklmnop' has 16 characters"));
    let meant = told("wg0.conf");
    assert!(meant.contains("wg0.conf.conf") && meant.contains("expected `wg0', or `./wg0.conf'"), "{meant}");
    assert!(!told("wg1").contains("expected"), "{}", told("wg1"));
}

#[test]
fn a_world_readable_file_is_warned_of_or_refused_with_the_remedy() {
    let folder = Folder::new("mode", 0o755);
    let text = format!("[Interface]\nPrivateKey = {PRIVATE}\n");
    folder.file("wg0.conf", &text, 0o644);
    let load = |permissions| Place::find_in(&folder.0, "wg0").unwrap().load(permissions);
    let loaded = load(Permissions::Warn).unwrap();
    assert!(matches!(loaded.warnings.as_slice(), [Warning::WorldReadable(_)]));
    let refusal = load(Permissions::Refuse).unwrap_err().to_string();
    assert!(refusal.contains("chmod 600 ") && refusal.ends_with("wg0.conf"), "{refusal}");
    folder.file("wg0.conf", &text, 0o640);
    assert!(load(Permissions::Refuse).unwrap().warnings.is_empty());
}

#[test]
fn a_directory_that_lets_nobody_in_protects_its_files() {
    let folder = Folder::new("dir", 0o700);
    folder.file("wg0.conf", "[Interface]\n", 0o644);
    assert!(Place::find_in(&folder.0, "wg0").unwrap().load(Permissions::Refuse).is_ok());
}

#[test]
fn an_error_names_file_and_line() {
    let folder = Folder::new("error", 0o700);
    let path = fs::canonicalize(folder.file("wg0.conf", "[Interface]\nMTU = x\n", 0o600)).unwrap();
    let error = Place::find_in(&folder.0, "wg0").unwrap().load(Permissions::Warn).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}:2: MTU", path.display())), "{error}");
}

#[test]
fn a_file_is_replaced_whole_and_privately() {
    let folder = Folder::new("write", 0o755);
    let path = folder.file("wg0.conf", "old", 0o644);
    write_private(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "nothing is left behind");
    assert!(write_private(&folder.0.join("absent/wg0.conf"), b"x").is_err());
}

#[test]
fn a_failed_replacement_leaves_the_old_file_and_nothing_else() {
    let folder = Folder::new("fail", 0o755);
    // A directory cannot be replaced by a file.
    fs::create_dir(folder.0.join("wg0.conf")).unwrap();
    assert!(write_private(&folder.0.join("wg0.conf"), b"new").is_err());
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
}
