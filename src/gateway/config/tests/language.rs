//! Each key of wg-quick(8) and wg(8): what is accepted, what it comes to, what is rejected and how.

use super::*;

fn interface(line: &str) -> Interface {
    config(&format!("[Interface]\n{line}\n")).interface
}

fn peer(line: &str) -> PeerConfig {
    config(&format!("[Peer]\nPublicKey = {PUBLIC}\n{line}\n")).peers.remove(0)
}

fn rejected(text: &str, line: usize, part: &str) {
    let errors = parse(text).expect_err(text);
    assert_eq!(errors[0].line, line, "{text}: {errors:?}");
    assert!(errors[0].message.contains(part), "{text}: {errors:?}");
}

fn rejected_in_interface(line: &str, part: &str) {
    rejected(&format!("[Interface]\n{line}\n"), 2, part);
}

fn rejected_in_peer(line: &str, part: &str) {
    rejected(&format!("[Peer]\nPublicKey = {PUBLIC}\n{line}\n"), 3, part);
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

#[test]
fn addresses_stand_in_one_line_or_several_with_or_without_length() {
    let read =
        interface("address=10.0.0.1/24,fd00::1/64 10.0.1.1\nADDRESS = 10.2/16, 10.3.0.1/255.255.255.0");
    assert_eq!(
        texts(&read.addresses),
        ["10.0.0.1/24", "fd00::1/64", "10.0.1.1/32", "10.2.0.0/16", "10.3.0.1/24"]
    );
    assert_eq!(interface("Address =").addresses, []);
    for wrong in [
        "10.0.0.1/33",
        "fd00::1/129",
        "10.0.0.256",
        "x",
        "10.0.0.1/",
        "10.0.0.1/-1",
        "10.0.0.1/255.0.255.0",
        "fd00::1/255.0.0.0",
        "010.0.0.1",
    ] {
        rejected_in_interface(&format!("Address = {wrong}"), "expected");
    }
    rejected_in_interface("Address", "expected `Address = VALUE`");
}

#[test]
fn listen_port_is_16_bits_or_a_service() {
    assert_eq!(interface("ListenPort = 4500").listen_port, Some(4500));
    assert_eq!(interface("listenport=0").listen_port, Some(0));
    assert_eq!(interface("ListenPort = 5 1").listen_port, Some(51), "wg removes all white space");
    for wrong in ["65536", "70000", "-1", "0x10", "no-such-service", "=5"] {
        rejected_in_interface(&format!("ListenPort = {wrong}"), "expected a port from 0 to 65535");
    }
    rejected_in_interface("ListenPort =", "expected a value");
    rejected_in_interface("ListenPort", "expected `ListenPort = VALUE`: the `=` is missing");
}

#[test]
fn private_key_is_a_key_and_zeros_are_none() {
    assert_eq!(
        interface(&format!("PrivateKey = {PRIVATE}")).private_key.unwrap().to_base64().as_str(),
        PRIVATE
    );
    assert_eq!(
        interface(&format!("Private Key = {PRIVATE} # mine")).private_key.unwrap().to_base64().as_str(),
        PRIVATE
    );
    assert_eq!(interface(&format!("PrivateKey = {}=", "A".repeat(43))).private_key, None);
    let short = &PRIVATE[1..];
    for wrong in [short, &format!("{PRIVATE}x"), "x", &PRIVATE.replace("mk=", "ml=")] {
        rejected_in_interface(&format!("PrivateKey = {wrong}"), "44 characters");
    }
}

#[test]
fn fwmark_is_off_decimal_or_hexadecimal() {
    let good = [
        ("off", 0),
        ("OFF", 0),
        ("0", 0),
        ("51820", 51820),
        ("0xca6c", 51820),
        ("010", 10),
        ("4294967295", u32::MAX),
    ];
    for (text, mark) in good {
        assert_eq!(interface(&format!("FwMark = {text}")).fwmark, Some(mark), "{text}");
    }
    for wrong in ["4294967296", "0x", "0X10", "0xfg", "-1", "on", "0x100000000"] {
        rejected_in_interface(&format!("FwMark = {wrong}"), "expected `off`");
    }
}

#[test]
fn dns_tells_servers_from_search_domains_as_wg_quick_does() {
    let read = interface("DNS = 192.0.2.53,fd00::53 example.org\nDNS = fe80::1%eth0, corp");
    assert_eq!(texts(&read.dns), ["192.0.2.53", "fd00::53", "fe80::1%eth0"]);
    assert_eq!(read.dns_search, ["example.org", "corp"]);
    for wrong in ["1.2.3", "[::1]:53", "a:b", "fe80::1%"] {
        rejected_in_interface(&format!("DNS = {wrong}"), "expected a resolver");
    }
}

#[test]
fn mtu_is_a_number_or_exact_or_empty() {
    assert_eq!(interface("MTU = 1380").mtu, Some(Mtu::Bytes(1380)));
    assert_eq!(interface("mtu = exact").mtu, Some(Mtu::Exact));
    assert_eq!(interface("MTU =").mtu, None);
    for wrong in ["67", "65536", "1380b", "-1", "auto"] {
        rejected_in_interface(&format!("MTU = {wrong}"), "expected bytes from 68 to 65535, or `exact`");
    }
}

#[test]
fn table_is_auto_off_or_a_table() {
    let good = [
        ("auto", Table::Auto),
        ("", Table::Auto),
        ("off", Table::Off),
        ("1234", Table::Number(1234)),
        ("0x10", Table::Number(16)),
        ("main", Table::Number(254)),
    ];
    for (text, table) in good {
        assert_eq!(interface(&format!("Table = {text}")).table, table, "{text}");
    }
    for wrong in ["OFF", "no-such-table", "-1", "4294967296", "0"] {
        rejected_in_interface(&format!("Table = {wrong}"), "expected `auto`, `off`");
    }
}

#[test]
fn save_config_is_true_or_false() {
    assert!(interface("SaveConfig = true").save_config);
    assert!(interface("saveconfig=TRUE").save_config);
    assert!(!interface("SaveConfig = false").save_config);
    for wrong in ["yes", "1", ""] {
        rejected_in_interface(&format!("SaveConfig = {wrong}"), "expected `true` or `false`");
    }
}

#[test]
fn hooks_keep_their_order_and_their_text() {
    let read = interface(
        "PostUp = nft add rule a=b; echo %i # why\nPreUp=x\npostup = echo 'a, b'\nPreDown = y\nPostDown = z\nPostDown =",
    );
    assert_eq!(read.post_up, ["nft add rule a=b; echo %i # why", "echo 'a, b'"]);
    assert_eq!(
        (read.pre_up, read.pre_down, read.post_down),
        (vec!["x".into()], vec!["y".into()], vec!["z".into()])
    );
    rejected_in_interface("PostUp", "expected `PostUp = VALUE`");
}

#[test]
fn a_number_sign_in_a_hook_is_the_shells() {
    let read = interface("PostUp = echo '#1' a#b # c\n# PostUp = false\nPostDown = # nothing");
    assert_eq!(read.post_up, ["echo '#1' a#b # c"]);
    assert_eq!(read.post_down, ["# nothing"]);
}

#[test]
fn allowed_ips_are_a_list_and_lose_host_bits_with_a_warning() {
    let read = peer("AllowedIPs = 10.0.0.1/8 , fd00::1,1.2.3.4/032\nallowedips=0.0.0.0/0");
    assert_eq!(texts(&read.allowed_ips), ["10.0.0.0/8", "fd00::1/128", "1.2.3.4/32", "0.0.0.0/0"]);
    let (_, warnings) = parse(&format!("[Peer]\nPublicKey={PUBLIC}\nAllowedIPs=10.0.0.1/8\n")).unwrap();
    assert_eq!(warnings, [Warning::HostBits { line: 3, value: "10.0.0.1/8".into() }]);
    for wrong in [
        "1.2.3.4/33",
        "1.2.3",
        "::/129",
        "1.2.3.4/+8",
        "1.2.3.4/",
        "1.2.3.4,",
        ",",
        "x",
        "fe80::1%lo/64",
        "1.2.3.4/8/9",
        "01.2.3.4",
    ] {
        rejected_in_peer(&format!("AllowedIPs = {wrong}"), "expected");
    }
    rejected_in_peer("AllowedIPs =", "expected a value");
}

#[test]
fn endpoint_is_an_address_or_a_name_and_a_port() {
    let good = [
        ("192.0.2.1:51820", "192.0.2.1:51820"),
        ("[2001:db8::1]:51820", "[2001:db8::1]:51820"),
        ("2001:db8::1:51820", "[2001:db8::1]:51820"),
        ("vpn.example.org:4500", "vpn.example.org:4500"),
        ("[vpn.example.org]:4500", "vpn.example.org:4500"),
        ("[fe80::1%eth0]:1", "[fe80::1%eth0]:1"),
        ("192.0.2.1: 5 6", "192.0.2.1:56"),
        ("192.0.2.1:0", "192.0.2.1:0"),
    ];
    for (text, expected) in good {
        assert_eq!(peer(&format!("Endpoint = {text}")).endpoint.unwrap().to_string(), expected);
    }
    for wrong in [
        "192.0.2.1",
        "192.0.2.1:",
        ":5",
        "[]:5",
        "[::1]5",
        "[::1",
        "[::1]:5x",
        "a:b:c:5",
        "192.0.2.1:70000",
        "192.0.2.1:-1",
        "/:5",
        "[fe80::1%]:5",
    ] {
        rejected_in_peer(&format!("Endpoint = {wrong}"), "expected");
    }
}

#[test]
fn persistent_keepalive_is_off_or_seconds() {
    for (text, seconds) in [("off", 0), ("Off", 0), ("0", 0), ("25", 25), ("025", 25), ("65535", 65535)] {
        assert_eq!(
            peer(&format!("PersistentKeepalive = {text}")).persistent_keepalive,
            Some(seconds),
            "{text}"
        );
    }
    for wrong in ["65536", "1s", "-1", "on"] {
        rejected_in_peer(&format!("PersistentKeepalive = {wrong}"), "expected `off` or seconds");
    }
}

#[test]
fn preshared_and_public_keys_are_keys() {
    assert_eq!(
        peer(&format!("PresharedKey = {PRIVATE}")).preshared_key.unwrap().to_base64().as_str(),
        PRIVATE
    );
    assert_eq!(peer(&format!("PresharedKey = {}=", "A".repeat(43))).preshared_key, None);
    rejected_in_peer("PresharedKey = x", "genpsk");
    rejected("[Peer]\nPublicKey = x\n", 2, "44 characters");
    assert_eq!(parse("[Peer]\nPublicKey = x\n").unwrap_err().len(), 1, "the key is there, though wrong");
    rejected("\n[Peer]\nAllowedIPs = 10.0.0.0/8\n", 2, "without PublicKey");
}

#[test]
fn sections_may_be_written_as_wg_takes_them() {
    let text = format!(
        "\r\n  [interface] # x\r\n\tListenPort\t=\t1\r\n[ PEER ]\r\npublickey={PUBLIC}\r\n[Interface]\nMTU=1400\n"
    );
    let read = config(&text);
    assert_eq!(
        (read.interface.listen_port, read.interface.mtu, read.peers.len()),
        (Some(1), Some(Mtu::Bytes(1400)), 1)
    );
    assert_eq!(config(""), Config::default());
    assert_eq!(config("# only a comment\n\n"), Config::default());
}

#[test]
fn what_stands_in_the_wrong_place_is_told_where_it_belongs() {
    rejected("ListenPort = 1\n", 1, "expected [Interface] or [Peer] first");
    rejected("[Wireguard]\n", 1, "expected [Interface] or [Peer]");
    rejected_in_interface("Endpoint = 192.0.2.1:1", "belongs in [Peer]");
    rejected_in_peer("Address = 10.0.0.1/8", "belongs in [Interface]");
    rejected_in_interface("ListenPrt = 1", "expected ListenPort?");
    rejected_in_interface("Colour = blue", "expected one of");
    rejected_in_interface("ListenPort = 5;x", "expected a port");
    rejected("[ Interface ]\nMTU = 1400\n", 2, "without blanks");
}

#[test]
fn all_errors_are_reported_at_once_and_in_order() {
    let errors = parse("[Interface]\nMTU = x\nFoo = 1\n[Peer]\nEndpoint = y\n").unwrap_err();
    assert_eq!(errors.iter().map(|error| error.line).collect::<Vec<_>>(), [2, 3, 4, 5]);
    let shown = ConfigErrors { file: "wg0.conf".into(), errors }.to_string();
    assert!(shown.starts_with("wg0.conf:2: MTU: `x`: expected bytes"), "{shown}");
    assert_eq!(shown.lines().count(), 4);
}

#[test]
fn what_is_replaced_or_taken_is_warned_of() {
    let text = format!(
        "[Interface]\nMTU=1400\nMTU=1380\n[Peer]\nPublicKey={PUBLIC}\nAllowedIPs=10.0.0.0/8\n[Peer]\nPublicKey={OTHER}\nAllowedIPs=10.0.0.0/8\n[Peer]\nPublicKey={PUBLIC}\n"
    );
    let (read, warnings) = parse(&text).unwrap();
    assert_eq!(read.interface.mtu, Some(Mtu::Bytes(1380)));
    let expected = [
        Warning::Replaced { line: 3, key: "MTU" },
        Warning::Taken { line: 7, prefix: "10.0.0.0/8".into() },
        Warning::SamePeer { line: 10 },
    ];
    assert_eq!(warnings, expected);
}

#[test]
fn a_peers_name_is_in_a_comment_in_or_directly_above_its_section() {
    let names = |text: &str| config(text).peers.into_iter().map(|peer| peer.name).collect::<Vec<_>>();
    let some = |name: &str| Some(name.to_owned());
    assert_eq!(
        names(&format!("[Peer]\n# Name = in the section\nPublicKey={PUBLIC}\n")),
        [some("in the section")]
    );
    assert_eq!(names(&format!("#name=above\n[Peer]\nPublicKey={PUBLIC}\n")), [some("above")]);
    assert_eq!(names(&format!("# Name = far\n\n[Peer]\nPublicKey={PUBLIC}\n")), [None]);
    assert_eq!(
        names(&format!("[Peer]\nPublicKey={PUBLIC} # Name = behind\n# Nickname = x\n")),
        [some("behind")]
    );
    // What is not shown of it leaves no blanks at its ends.
    assert_eq!(names(&format!("[Peer]\n# Name = \x01 a\x02 \x03\nPublicKey={PUBLIC}\n")), [Some("a".into())]);
    assert_eq!(names(&format!("[Peer]\n# Name = \x01\nPublicKey={PUBLIC}\n")), [None]);
    let tail = format!("[Peer]\nPublicKey={PUBLIC}\n# Name = a\n[Peer]\nPublicKey={OTHER}\n# Name = b\n");
    assert_eq!(names(&tail), [some("a"), some("b")]);
    let heads = format!("# Name = a\n[Peer]\nPublicKey={PUBLIC}\n# Name = b\n[Peer]\nPublicKey={OTHER}\n");
    assert_eq!(names(&heads), [some("a"), some("b")]);
}

#[test]
fn a_byte_that_is_no_text_harms_only_where_text_is_needed() {
    let read = |bytes: &[u8]| Document::new(bytes).parse();
    assert!(read(b"[Interface]\n# caf\xe9\nListenPort = 1 # \xff\n").is_ok());
    assert!(read(b"[Interface]\nPostUp = \xff\n").unwrap_err()[0].message.contains("UTF-8"));
    assert!(read(b"[Interface]\nListenPort = 1\x00\n").is_err());
}

#[test]
fn no_secret_is_in_an_error_or_debug_output() {
    let wrong = [
        format!("[Interface]\nPrivateKey = {PRIVATE}x\n"),
        format!("[Interface]\nPrivatKey = {PRIVATE}\n"),
        format!("[Interface]\n{PRIVATE}\n"),
        format!("[Interface]\nMTU = {PRIVATE}\n"),
        format!("[Interface]\nAddress = {PRIVATE}\n"),
        format!("[{PRIVATE}]\n"),
        format!("{PRIVATE}\n"),
        format!(
            "[Peer]\nEndpoint = {PRIVATE}:1\nAllowedIPs = {PRIVATE}\nPublicKey = {PRIVATE}x\nPresharedKey = -{PRIVATE}\n"
        ),
    ];
    for text in wrong {
        let shown = format!("{:?}", parse(&text).unwrap_err());
        assert!(
            !shown.contains("yAnz5TF") && !shown.contains("yanz5tf") && !shown.contains("lXXJte14"),
            "{shown}"
        );
    }
    let text = format!(
        "[Interface]\nPrivateKey = {PRIVATE}\n[Peer]\nPublicKey = {PUBLIC}\nPresharedKey = {PRIVATE}\n"
    );
    let shown = format!("{:?} {:?}", config(&text), Document::new(text.as_bytes()));
    assert!(!shown.contains("yAnz5TF") && !shown.contains("200, 9, 243"), "{shown}");
}

#[test]
fn without_its_keys_a_file_has_all_the_rest() {
    let rest = "[Interface]\n# Name = keys\nListenPort = 7\n[Peer]\nPublicKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n";
    let whole = rest
        .replace("ListenPort", " private KEY = x # no key\nListenPort")
        .replace("[Peer]\n", "[Peer]\nPresharedKey\t=x\n#PresharedKey = of a peer out of use\n");
    let without = Document::new(whole.as_bytes()).without_keys();
    assert_eq!(str::from_utf8(&without.bytes()), Ok(rest));
}
