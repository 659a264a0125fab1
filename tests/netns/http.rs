//! The listener of `--http`: what it tells of a tunnel with traffic, to a program, to Prometheus, and to those who come by accident.

use crate::implementation::{Device, Hindrance, Implementation, RINGTUN_TWO, ringtun, ringtun_itself};
use crate::lab::{Host, eventually, find_program, ready, skip};
use crate::pair::{A, B, Pair, V4};
use crate::updown::SOON;
use serde_json::Value;
use std::sync::Arc;

const LISTENING: Hindrance = Hindrance { behind: &[], options: &["--workers", "2", "--http", "9586"] };

/// A tunnel with traffic whose first end listens.
fn pair() -> Option<Pair> {
    if !ringtun_itself() {
        return None;
    }
    Pair::connected(Implementation::Hindered(&LISTENING), RINGTUN_TWO)
}

/// Asks for a page with Python, which every test host has. The answer is the status, then the body.
fn get(host: &Host, path: &str, headers: &str) -> (u16, String) {
    let script = format!(
        "import http.client; c = http.client.HTTPConnection('127.0.0.1', 9586, timeout=10)\n\
         c.request('GET', '{path}', headers={headers}); r = c.getresponse(); print(r.status); print(r.read().decode(), end='')"
    );
    let answer = host.run(&format!("python3 -c \"{script}\""));
    let (status, body) = answer.split_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn status(host: &Host) -> Value {
    serde_json::from_str(&get(host, "/status.json", "{}").1).unwrap()
}

#[test]
fn what_the_listener_tells_agrees_with_the_other_tools() {
    let Some(pair) = pair() else { return };
    pair.expect_ping(A, V4);
    let (host, name) = (&pair[A].host, pair[A].name().to_owned());
    eventually("there are two samples", SOON, || {
        status(host)["history"]["samples"].as_array().is_some_and(|samples| samples.len() >= 2)
    });
    pair.expect_ping(A, V4);
    // It asks the device again after a second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let told = status(host);
    let transfer = host.run(&format!("wg show {name} transfer"));
    let transfer: Vec<&str> = transfer.split_whitespace().collect();
    let peer = &told["device"]["peers"][0];
    assert_eq!([peer["rx_bytes"].to_string(), peer["tx_bytes"].to_string()], transfer[1..], "{told}");
    assert_eq!(
        (&told["interface"], &told["peers"], &told["status"]["up"]),
        (&name.into(), &1.into(), &true.into())
    );
    // Packets of both ways, as the kernel counts them for the interface.
    let worker = |counter: &str| -> u64 {
        let workers = told["status"]["workers"].as_array().unwrap();
        workers.iter().map(|worker| worker[counter].as_u64().unwrap()).sum()
    };
    let of_kernel = |way: &str| -> u64 {
        let path = format!("/sys/class/net/{}/statistics/{way}_packets", pair[A].name());
        host.run(&format!("cat {path}")).trim().parse().unwrap()
    };
    assert_eq!((worker("rx_packets"), worker("tx_packets")), (of_kernel("rx"), of_kernel("tx")), "{told}");
    let turns = |n: usize| told["status"]["histograms"][n]["turn_packets"]["sum"].as_u64().unwrap();
    assert_eq!(
        turns(0) + turns(1),
        worker("rx_packets") + worker("tx_packets"),
        "every packet is of some turn"
    );
    let private = &pair[A].private;
    for path in ["/", "/metrics", "/status.json"] {
        let (code, body) = get(host, path, "{}");
        assert!(code == 200 && !body.contains(private), "{path}");
    }
}

#[test]
fn prometheus_reads_both_forms_and_finds_nothing_to_say() {
    let Some(pair) = pair() else { return };
    pair.expect_ping(A, V4);
    let host = &pair[A].host;
    let (_, metrics) = get(host, "/metrics", "{}");
    for metric in
        ["wireguard_peer_connected{", "ringtun_worker_turn_seconds_bucket{", "ringtun_slow_path_waiting{"]
    {
        assert!(metrics.contains(metric), "{metric}: {metrics}");
    }
    let (_, open) = get(host, "/metrics", "{'Accept': 'application/openmetrics-text;version=1.0.0'}");
    assert!(open.ends_with("# EOF\n"), "{open}");
    if find_program("promtool").is_none() || find_program("prometheus").is_none() {
        return skip("prometheus is not installed");
    }
    host.try_run_with_file(
        &metrics,
        "promtool check metrics <$FILE && test -z \"$(promtool check metrics <$FILE 2>&1)\"",
    )
    .unwrap();
    let directory = format!("/tmp/{}-prometheus", host.name());
    let config = format!(
        "global: {{scrape_interval: 1s}}\nrule_files: [\"{}/docs/monitoring/alerts.yml\"]\n\
         scrape_configs: [{{job_name: ringtun, static_configs: [{{targets: [\"127.0.0.1:9586\"]}}]}}]\n",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(format!("{directory}/prometheus.yml"), config).unwrap();
    let options = [
        format!("--config.file={directory}/prometheus.yml"),
        format!("--storage.tsdb.path={directory}/data"),
        "--web.listen-address=127.0.0.1:9090".to_owned(),
    ];
    let server = host.start("prometheus", &options.each_ref().map(String::as_str));
    let ask = |query: &str| {
        host.try_run(&format!("python3 -c \"import urllib.request as r; print(r.urlopen('http://127.0.0.1:9090/api/v1/{query}').read().decode())\""))
            .unwrap_or_default()
    };
    eventually("it has scraped", SOON, || ask("query?query=wireguard_peer_connected").contains("\"1\"]"));
    assert!(ask("targets").contains("\"health\":\"up\""), "{}", ask("targets"));
    assert!(ask("rules").contains("WireGuardPeerLost"), "{}{}", ask("rules"), server.said());
    // What the dashboard asks, each as Grafana would write it.
    let dashboard: Value = serde_json::from_str(include_str!("../../docs/monitoring/grafana.json")).unwrap();
    let queries =
        dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    for query in queries.map(|target| target["expr"].as_str().unwrap()) {
        let query = query.replace("$__rate_interval", "10s").replace("$interface", ".*");
        let asked = "import sys, urllib.request as r, urllib.parse as p\n\
            print(r.urlopen('http://127.0.0.1:9090/api/v1/query?' + p.urlencode({'query': open(sys.argv[1]).read()})).read().decode())";
        let answer = host.try_run_with_file(&query, &format!("python3 -c \"{asked}\" $FILE"));
        assert!(
            answer.as_ref().is_ok_and(|answer| answer.contains("\"status\":\"success\"")),
            "{query}: {answer:?}"
        );
        for metric in query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let is_one = metric.starts_with("ringtun_") || metric.starts_with("wireguard_");
            assert!(
                !is_one || metrics.contains(&format!("\n{metric}{{")),
                "{metric} of {query} does not exist"
            );
        }
    }
    drop(server);
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn strangers_names_writes_and_crowds_are_turned_away_and_the_tunnel_goes_on() {
    let Some(pair) = pair() else { return };
    let host = &pair[A].host;
    assert_eq!(get(host, "/", "{'Host': 'evil.example'}").0, 421);
    assert_eq!(get(host, "/nothing", "{}").0, 404);
    // A head that is too long, garbage, then more heads that never end than connections are taken at a time.
    let script = "import socket\n\
        def talk(data):\n    s = socket.create_connection(('127.0.0.1', 9586)); s.sendall(data); return s\n\
        s = talk(b'GET / HTTP/1.1\\r\\nX: ' + b'x' * 100000); s.settimeout(20)\n\
        try:\n    assert b' 431 ' in s.recv(1000)\n\
        except ConnectionError:\n    pass\n\
        talk(bytes(range(256)))\n\
        held = [talk(b'GET / HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n') for _ in range(100)]\n";
    let crowd = host.try_run_with_file(script, "python3 $FILE");
    assert!(crowd.is_ok(), "{crowd:?}");
    pair.expect_ping(A, V4);
    eventually("it answers again", SOON, || {
        host.try_run("python3 -c \"import urllib.request as r; r.urlopen('http://127.0.0.1:9586/status.json', timeout=2)\"").is_ok()
    });
    pair.expect_ping(B, V4);
}

#[test]
fn a_place_that_is_taken_is_named_before_anything_is_made() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Arc::new(Host::namespace());
    let mut device = Device::start(&host, Implementation::Hindered(&LISTENING));
    let program = ringtun().display().to_string();
    let error = host.try_run(&format!("{program} -f --http 9586 rt-second")).unwrap_err();
    assert!(error.contains("--http: http://127.0.0.1:9586/: Address already in use"), "{error}");
    assert!(host.try_run("ip link show rt-second").is_err());
    let path = format!("/tmp/{}.http", device.name);
    let mut unix = host.start(&program, &["-f", "--http", &format!("unix:{path}"), "rt-unix"]);
    let ask = format!(
        "python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{path}'); \
         s.sendall(b'GET /metrics HTTP/1.0\\r\\n\\r\\n'); print(s.makefile().read())\""
    );
    eventually("it answers", SOON, || {
        host.try_run(&ask).is_ok_and(|answer| answer.contains("ringtun_build_info"))
    });
    assert!(device.process().ended().is_none());
    unix.signal("TERM");
    assert!(unix.wait(SOON).expect("it ends").success());
    let _ = std::fs::remove_file(path);
}

/// What Chromium shows of the page.
fn browse(host: &Host, options: &str) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/browser.py");
    let seen = host.run(&format!("python3 {script} http://127.0.0.1:9586/ 6 {options}"));
    serde_json::from_str(&seen).unwrap()
}

#[test]
fn the_page_shows_the_tunnel_in_a_browser_wide_and_narrow_light_and_dark() {
    if find_program("chromium").is_none() {
        return skip("chromium is not installed");
    }
    let Some(pair) = pair() else { return };
    let host = &pair[A].host;
    let pinger = pair.pinger();
    let (wide, narrow) = (browse(host, ""), browse(host, "--width 390 --dark"));
    drop(pinger);
    for (seen, width) in [(&wide, 1200), (&narrow, 390)] {
        let text = seen["text"].as_str().unwrap();
        for shown in [pair[A].name(), "up", "1 of 1", &pair[B].public, "connected", "packets/s"] {
            assert!(text.contains(shown), "{shown}: {text}");
        }
        let busy = text.split("workers busy").nth(1).unwrap().split_whitespace().next().unwrap();
        assert!(busy.parse::<u32>().is_ok(), "rates come with the second look: {text}");
        assert_eq!(seen["logged"], serde_json::json!([]), "no error, and no refused source");
        assert_eq!(seen["width"], width, "nothing is cut off at the side");
    }
    assert!(wide["text"].as_str().unwrap().contains("198.18.0.20:"), "{wide}");
    assert_eq!(wide["ground"], "rgb(255, 255, 255)");
    assert_ne!(narrow["ground"], wide["ground"]);
}
