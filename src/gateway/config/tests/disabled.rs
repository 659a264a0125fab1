//! Peers out of use: what is made a comment comes back as it was, and nobody else's lines change hands.

use super::properties::configs;
use super::*;
use proptest::prelude::*;

const FILE: &str = "\
[Interface]
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=

# Name = laptop
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
#Endpoint = vpn.example.org:1

AllowedIPs = 192.168.96.2/32   # its address
# ---- phones ----
### begin desk ###
[Peer]
PublicKey = TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=
AllowedIPs = 192.168.96.3/32
### end desk ###
";

fn key(text: &str) -> PublicKey {
    PublicKey::from_base64(text).unwrap()
}

fn text(document: &Document) -> String {
    String::from_utf8(document.bytes().to_vec()).unwrap()
}

fn names(document: &Document) -> Vec<Option<String>> {
    document.parse().unwrap().0.peers.into_iter().map(|peer| peer.name).collect()
}

fn name(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn a_disabled_peer_is_comments_that_name_nobody_else() {
    let mut document = Document::new(FILE.as_bytes());
    assert_eq!(names(&document), [name("laptop"), name("desk")]);
    assert!(document.disable_peer(&key(PUBLIC)));
    assert_eq!(names(&document), [name("desk")]);
    let disabled = document.disabled_peers();
    assert_eq!((disabled.len(), disabled[0].name.as_deref()), (1, Some("laptop")));
    assert_eq!(disabled[0].line.0, 5, "{}", text(&document));
    assert!(text(&document).contains("## Name = laptop\n#[Peer]\n#PublicKey = xTIB"), "{}", text(&document));
    assert!(
        text(&document).contains("\n##Endpoint = vpn.example.org:1\n#\n#AllowedIPs"),
        "{}",
        text(&document)
    );
    assert!(document.enable_peer(&key(PUBLIC)));
    assert!(!document.enable_peer(&key(PUBLIC)));
    assert_eq!(text(&document).replace("\n\n", "\n"), FILE.replace("\n\n", "\n"));
    assert_eq!(names(&document), [name("laptop"), name("desk")]);
}

#[test]
fn a_disabled_last_peer_comes_back_with_its_marks() {
    let mut document = Document::new(FILE.as_bytes());
    assert!(document.disable_peer(&key(OTHER)));
    assert_eq!(names(&document), [name("laptop")]);
    assert_eq!(document.disabled_peers()[0].name.as_deref(), Some("desk"));
    assert!(text(&document).ends_with("#### end desk ###\n"), "{}", text(&document));
    assert!(document.enable_peer(&key(OTHER)));
    assert_eq!(text(&document).replace("\n\n", "\n"), FILE.replace("\n\n", "\n"));
}

#[test]
fn a_peer_that_was_put_out_of_use_by_hand_is_found_and_enabled() {
    let file = "[Interface]\n\n# Name = laptop\n# [Peer]\n# the old one, of 2019\n# PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n#AllowedIPs=10.0.0.2/32\n# not before May\n\n# [Peer]\n# PublicKey = <key>\n";
    let mut document = Document::new(file.as_bytes());
    let disabled = document.disabled_peers();
    assert_eq!((disabled.len(), disabled[0].name.as_deref()), (1, Some("laptop")));
    assert!(document.enable_peer(&key(PUBLIC)));
    let peers = document.parse().unwrap().0.peers;
    assert_eq!((peers[0].name.as_deref(), peers[0].allowed_ips.len()), (Some("laptop"), 1));
    let after = text(&document);
    assert!(
        after.contains("# the old one, of 2019\n PublicKey") && after.contains("# not before May\n"),
        "{after}"
    );
}

#[test]
fn a_header_with_a_comment_behind_it_goes_out_of_use_and_comes_back() {
    let file = format!("[Peer] # Name = laptop\nPublicKey = {PUBLIC}\n");
    let mut document = Document::new(file.as_bytes());
    assert!(document.disable_peer(&key(PUBLIC)));
    assert_eq!(document.disabled_peers().len(), 1, "{}", text(&document));
    assert!(document.enable_peer(&key(PUBLIC)));
    assert_eq!((text(&document), names(&document)), (file, vec![name("laptop")]));
}

#[test]
fn a_neighbours_last_comment_is_not_a_disabled_peers() {
    let file = format!(
        "[Peer]\nPublicKey = {PUBLIC}\n# Name = first\n#[Peer]\n#PublicKey = {OTHER}\n### Client second\n[Peer]\nPublicKey = {PRIVATE}\n"
    );
    let document = Document::new(file.as_bytes());
    assert_eq!(names(&document), [name("first"), name("second")]);
    assert_eq!(document.disabled_peers()[0].name, None);
}

#[test]
fn a_removed_peer_takes_its_lines_along_in_use_or_not() {
    for disable in [false, true] {
        let mut document = Document::new(FILE.as_bytes());
        assert!(!disable || document.disable_peer(&key(PUBLIC)));
        assert!(document.remove_peer(&key(PUBLIC)));
        assert!(!document.remove_peer(&key(PUBLIC)));
        let after = text(&document);
        assert!(
            !after.contains("laptop") && !after.contains("xTIB") && !after.contains("Endpoint"),
            "{after}"
        );
        assert!(after.contains("# ---- phones ----\n### begin desk ###\n[Peer]\n"), "{after}");
        assert!(document.disabled_peers().is_empty());
    }
}

#[test]
fn a_renamed_peer_keeps_one_name() {
    for disable in [false, true] {
        let mut document = Document::new(FILE.as_bytes());
        for (public, new) in [(PUBLIC, "notebook"), (OTHER, "desk 2")] {
            assert!(!disable || document.disable_peer(&key(public)));
            assert!(document.rename_peer(&key(public), new));
            let after = text(&document);
            let count = after.matches(&format!("# Name = {new}\n")).count();
            assert_eq!(count, 1, "{after}");
        }
        let peers = if disable { document.disabled_peers() } else { document.parse().unwrap().0.peers };
        let told: Vec<_> = peers.into_iter().map(|peer| peer.name).collect();
        assert_eq!(told, [name("notebook"), name("desk 2")]);
    }
}

#[test]
fn keys_in_comments_are_keys_all_the_same() {
    let file = format!("[Peer]\nPublicKey = {PUBLIC}\nPresharedKey = {PRIVATE}\n");
    let mut document = Document::new(file.as_bytes());
    assert!(document.disable_peer(&key(PUBLIC)));
    assert!(text(&document).contains(PRIVATE));
    assert!(!text(&document.without_keys()).contains(PRIVATE));
}

#[test]
fn a_hook_is_added_once_behind_the_interfaces_values() {
    let mut document = Document::new(FILE.as_bytes());
    for _ in 0..2 {
        document.add_hook("PostUp", "sysctl -w net.ipv4.ip_forward=1");
        document.add_hook("PostDown", "true # done");
    }
    let interface = document.parse().unwrap().0.interface;
    assert_eq!(interface.post_up, ["sysctl -w net.ipv4.ip_forward=1"]);
    assert_eq!(interface.post_down, ["true # done"]);
    assert!(text(&document).contains("fBmk=\nPostUp = sysctl"), "{}", text(&document));
}

proptest! {
    #[test]
    fn what_is_disabled_is_gone_for_wg_and_comes_back_whole(config in configs(), chosen in any::<prop::sample::Index>()) {
        prop_assume!(!config.peers.is_empty());
        let printed = config.print();
        let mut document = Document::new(printed.as_bytes());
        let peer = config.peers[chosen.index(config.peers.len())].clone();
        prop_assert!(document.disable_peer(&peer.public_key));
        let without: Vec<PeerConfig> = config.peers.iter().filter(|one| one.public_key != peer.public_key).cloned().collect();
        prop_assert_eq!(document.parse().unwrap().0.peers, without);
        let last = document.disabled_peers().pop();
        prop_assert_eq!(last.as_ref(), config.peers.iter().rfind(|one| one.public_key == peer.public_key));
        prop_assert!(document.enable_peer(&peer.public_key));
        prop_assert_eq!(String::from_utf8(document.bytes().to_vec()).unwrap(), printed.to_string());
    }
}
