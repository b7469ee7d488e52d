//! The API over its unix socket: pages, errors, socket handling, timeouts. Runs the API server over a fake
//! controller; needs nothing of the host.
#![allow(missing_docs, clippy::unwrap_used)]

mod authors;
mod bounds;
mod changes;
mod errors;
mod events;
mod followers;
mod listeners;
mod lists;
mod log;
mod openapi;
mod orchestrators;
mod random;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};

use serde_json::Value;
use support::fake::{Fake, ODD, Views, exists, runtime};
use tokio::sync::mpsc;
use vifswitch::control::api::client::{Client, Error};
use vifswitch::control::api::responses::{PortView, StationView};
use vifswitch::control::api::socket::{Callers, Socket};

/// A response: status, head, body.
#[derive(Debug)]
struct Answer(u16, String, String);

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.2).unwrap()
    }

    fn kind(&self) -> String {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{self:?}");
        error["kind"].as_str().unwrap().to_owned()
    }
}

/// Sends one request and reads until the server closes the connection.
fn talk(stream: impl Read + Write, method: &str, path: &str) -> Answer {
    converse(stream, method, path, "", "")
}

/// The same, with further header lines and a body.
fn converse(mut stream: impl Read + Write, method: &str, path: &str, head: &str, body: &str) -> Answer {
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: vifswitch\r\nConnection: close\r\n{head}Content-Length: {length}\r\n\r\n"
    )
    .unwrap();
    // The server may close before the whole body is sent.
    let _ = stream.write_all(body.as_bytes());
    answer_on(stream)
}

/// Reads a response to the end of the connection.
fn answer_on(mut stream: impl Read) -> Answer {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Answer(head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
}

fn request(fake: &Fake, method: &str, path: &str) -> Answer {
    talk(UnixStream::connect(fake.socket()).unwrap(), method, path)
}

/// Sends a request with a JSON body.
fn ask_with(fake: &Fake, method: &str, path: &str, body: &str) -> Answer {
    let stream = UnixStream::connect(fake.socket()).unwrap();
    converse(stream, method, path, "Content-Type: application/json\r\n", body)
}

#[test]
fn every_page_has_its_documented_keys() {
    let fake = Fake::with_views(Views::made_up());
    for (path, keys) in [
        (
            "/v1/ports",
            "port_id device_id network_id mac_address position status status_reason admin_state_up device worker \
             rx_frames rx_bytes tx_frames tx_bytes drops",
        ),
        ("/v1/vms", "device_id ports networks active"),
        ("/v1/networks", "network_id mtu ports stations"),
        ("/v1/fdb", "network_id mac_address port_id kind age_seconds"),
        ("/v1/workers", "worker core poll stations polls busy_seconds sleeps"),
        ("/v1/drops", "port_id device_id direction reason description frames"),
        ("/v1/loops", "kind device_id device_ids network_id ports active level since seen dropped_frames text"),
        ("/v1/storms", "device_id network_id class active since dropped_frames highest_rate action text"),
    ] {
        let answer = request(&fake, "GET", path);
        assert_eq!(answer.0, 200, "{path}");
        assert!(answer.1.contains("content-type: application/json"), "{path}");
        let rows = answer.json();
        assert!(!rows.as_array().unwrap().is_empty(), "{path}");
        for row in rows.as_array().unwrap() {
            for key in keys.split_whitespace() {
                assert!(row.get(key).is_some(), "{path} lacks {key}");
            }
        }
    }
    assert_eq!(request(&fake, "GET", "/v1/config").json()["switch"]["cores"][0], 1);
}

#[test]
fn a_long_list_is_complete() {
    for length in [0, 1, 511, 512, 513, 1024, 20_000] {
        let mut views = Views::made_up();
        views.fdb = views
            .fdb
            .into_iter()
            .cycle()
            .take(length)
            .zip(0..)
            .map(|(s, n)| StationView { age_seconds: n, ..s })
            .collect();
        let fake = Fake::with_views(views.clone());
        let client = Client::new(fake.socket());
        let events = runtime().block_on(client.get::<Vec<StationView>>("/v1/fdb")).unwrap();
        assert!(events == views.fdb, "{length} stations");
    }
}

#[test]
fn a_client_that_does_not_read_blocks_no_other() {
    let mut views = Views::made_up();
    views.fdb = views.fdb.into_iter().cycle().take(50_000).collect();
    let fake = Fake::with_views(views);
    let idle: Vec<_> = (0..10)
        .map(|_| {
            let mut stream = UnixStream::connect(fake.socket()).unwrap();
            stream.write_all(b"GET /v1/fdb HTTP/1.1\r\nHost: vifswitch\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for path in ["/v1/ports", "/metrics", "/v1/drops"] {
        assert_eq!(request(&fake, "GET", path).0, 200);
    }
    drop(idle);
    assert_eq!(request(&fake, "GET", "/v1/fdb").0, 200);
}

#[test]
fn a_port_is_found_by_its_name() {
    let fake = Fake::with_views(Views::made_up());
    assert_eq!(request(&fake, "GET", "/v1/ports/p1").json()["device_id"], "fw-3");
    assert_eq!(request(&fake, "GET", "/v1/ports/a%22b%5Cc").json()["port_id"], ODD);
    for path in ["/v1/ports/p2", "/v1/ports/%ff", "/v1/ports/p1%00"] {
        let answer = request(&fake, "GET", path);
        assert_eq!((answer.0, answer.kind().as_str()), (404, "unknown_port"), "{path}");
    }
}

#[test]
fn a_missing_object_is_404() {
    let fake = Fake::with_views(Views::made_up());
    for path in ["/", "/v1", "/v1/port", "/v1/ports/", "/v1/ports/p1/x", "/v2/ports"] {
        let answer = request(&fake, "GET", path);
        assert_eq!((answer.0, answer.kind().as_str()), (404, "unknown_path"), "{path}");
    }
    for (method, path) in [("PUT", "/v1/ports"), ("POST", "/v1/ports/p1"), ("POST", "/metrics"), ("BREW", "/v1/config")]
    {
        let answer = request(&fake, method, path);
        assert_eq!((answer.0, answer.kind().as_str()), (405, "method_not_allowed"), "{method} {path}");
        assert!(answer.1.contains("allow: get,head"), "{answer:?}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(method), "{answer:?}");
    }
}

#[test]
fn a_switch_that_shuts_down_answers_503() {
    let fake = Fake::closing();
    for path in ["/v1/ports", "/v1/ports/p1", "/v1/config", "/metrics"] {
        let answer = request(&fake, "GET", path);
        assert_eq!((answer.0, answer.kind().as_str()), (503, "shutting_down"), "{path}");
    }
}

#[test]
fn the_client_parses_responses() {
    let views = Views::made_up();
    let fake = Fake::with_views(views.clone());
    let client = Client::new(fake.socket());
    runtime().block_on(async {
        assert_eq!(client.get::<Vec<PortView>>("/v1/ports").await.unwrap(), views.ports);
        assert!(client.get_json("/v1/drops").await.unwrap().contains("spoofed_source"));
        match client.get::<PortView>("/v1/ports/p2").await {
            Err(Error::Refused { status: 404, kind, message }) => {
                assert_eq!(kind, "unknown_port");
                assert!(message.contains("p2"));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(client.get::<u8>("/v1/ports").await, Err(Error::Broken { .. })));
        assert!(matches!(client.get_json("/metrics").await, Err(Error::Broken { .. })));
    });
}

#[test]
fn the_client_reports_a_missing_switch() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    runtime().block_on(async {
        assert!(matches!(Client::new(&path).get_json("/v1/ports").await, Err(Error::NoSwitch { .. })));
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(Client::new(&path).get_json("/v1/ports").await, Err(Error::NoSwitch { .. })));
    });
}

#[test]
fn the_client_reports_another_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let other = std::thread::spawn(move || {
        for words in ["", "220 mail.example ESMTP\r\n", "HTTP/1.1 500 x\r\ncontent-length: 2\r\n\r\nhm"] {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
            stream.write_all(words.as_bytes()).unwrap();
        }
    });
    runtime().block_on(async {
        for _ in 0..3 {
            assert!(matches!(Client::new(&path).get_json("/v1/ports").await, Err(Error::Broken { .. })));
        }
    });
    other.join().unwrap();
}

#[test]
fn silent_clients_block_nobody() {
    let fake = Fake::with_views(Views::made_up());
    let silent: Vec<_> = (0..10).map(|_| UnixStream::connect(fake.socket()).unwrap()).collect();
    let mut half = UnixStream::connect(fake.socket()).unwrap();
    half.write_all(b"GET /v1/po").unwrap();
    assert_eq!(request(&fake, "GET", "/v1/ports").0, 200);
    drop((silent, half));
}

#[test]
fn silent_clients_are_disconnected() {
    let fake = Fake::with_views(Views::made_up());
    // More than the connection limit.
    let silent: Vec<_> = (0..70).map(|_| UnixStream::connect(fake.socket()).unwrap()).collect();
    let client = Client::new(fake.socket());
    runtime().block_on(client.get_json("/v1/ports")).unwrap();
    let mut first = &silent[0];
    assert_eq!(first.read(&mut [0; 64]).unwrap(), 0, "the connection was closed");
}

#[test]
fn a_long_request_head_is_refused() {
    let fake = Fake::with_views(Views::made_up());
    let mut stream = UnixStream::connect(fake.socket()).unwrap();
    stream.write_all(b"GET /v1/ports HTTP/1.1\r\n").unwrap();
    // The server may close at any moment from here on.
    let line = format!("x-filler: {}\r\n", "x".repeat(1000));
    while stream.write_all(line.as_bytes()).is_ok() {}
    assert_eq!(request(&fake, "GET", "/v1/ports").0, 200);
}

#[test]
fn open_connections_do_not_delay_a_stop() {
    let (requests, mut received) = mpsc::unbounded_channel();
    let mut fake = Fake::hanging(requests);
    let silent = UnixStream::connect(fake.socket()).unwrap();
    let mut waiting = UnixStream::connect(fake.socket()).unwrap();
    waiting.write_all(b"GET /v1/ports HTTP/1.1\r\nHost: vifswitch\r\n\r\n").unwrap();
    received.blocking_recv().unwrap();
    fake.stop();
    assert!(!exists(&fake.socket()), "the socket is gone");
    assert_eq!(waiting.read(&mut [0; 64]).unwrap(), 0);
    drop(silent);
}

#[tokio::test]
async fn a_socket_is_accessible_to_owner_and_group_or_to_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made/on/the/way/api.sock");
    let socket = Socket::bind(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o660);
    drop(socket);
    assert!(!exists(&path), "the socket is removed with the switch");
    let _socket = Socket::bind_for(Callers::All, &path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o666);
}

#[tokio::test]
async fn the_socket_of_a_dead_switch_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(exists(&path));
    let socket = Socket::bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(socket);
}

#[tokio::test]
async fn the_socket_of_a_running_switch_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let first = Socket::bind(&path).unwrap();
    let error = Socket::bind(&path).unwrap_err();
    assert_eq!(error.to_string(), format!("another switch is listening at {}", path.display()));
    UnixStream::connect(&path).unwrap();

    // A stopping switch does not remove the socket of another switch.
    fs::remove_file(&path).unwrap();
    let second = Socket::bind(&path).unwrap();
    drop(first);
    UnixStream::connect(&path).unwrap();
    drop(second);
}

#[tokio::test]
async fn a_path_that_is_no_socket_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    fs::write(&path, "precious").unwrap();
    let error = Socket::bind(&path).unwrap_err().to_string();
    assert!(error.contains("is not a socket") && error.contains(path.to_str().unwrap()), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    let link = directory.path().join("link.sock");
    symlink("nowhere", &link).unwrap();
    Socket::bind(&link).unwrap_err();
    assert!(exists(&link));
}

#[tokio::test]
async fn a_socket_that_cannot_be_created_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("x".repeat(200));
    let error = Socket::bind(&long).unwrap_err().to_string();
    assert!(error.contains(long.to_str().unwrap()), "{error}");
}

/// A sample: name and labels.
type Sample = (String, BTreeMap<String, String>);

/// Parses the OpenMetrics text format strictly.
fn scrape(text: &str) -> HashMap<Sample, f64> {
    let legal = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let body = text.strip_suffix("# EOF\n").expect("the text ends with EOF");
    let (mut samples, mut seen) = (HashMap::new(), BTreeSet::new());
    let (mut family, mut ending) = (String::new(), None);
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(legal(name) && !help.is_empty(), "{line}");
            assert!(seen.insert(name.to_owned()), "samples of a family are adjacent: {line}");
            (family, ending) = (name.to_owned(), None);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family, "{line}");
            ending = Some(match kind {
                "counter" => &["_total"][..],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_sum", "_count", "_bucket"],
                _ => panic!("{line}"),
            });
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (name, unit) = rest.split_once(' ').unwrap();
            assert!(name == family && name.ends_with(&format!("_{unit}")), "{line}");
        } else {
            let ending = ending.expect("HELP and TYPE come before samples");
            let mut names = ending.iter().map(|ending| format!("{family}{ending}"));
            let found = names.find_map(|name| Some((line.strip_prefix(&name)?, name)));
            let (rest, name) = found.unwrap_or_else(|| panic!("{line}"));
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => labels(rest),
                None => (BTreeMap::new(), rest),
            };
            assert!(labels.keys().all(|label| legal(label)), "{line}");
            let value = value.strip_prefix(' ').unwrap().parse().unwrap();
            assert!(samples.insert((name, labels), value).is_none(), "twice: {line}");
        }
    }
    samples
}

/// Parses labels up to the closing brace; returns the rest.
fn labels(mut rest: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    loop {
        let (name, quoted) = rest.split_once("=\"").unwrap();
        let mut value = String::new();
        let mut chars = quoted.chars();
        loop {
            match chars.next().unwrap() {
                '"' => break,
                '\\' => value.push(match chars.next().unwrap() {
                    'n' => '\n',
                    c @ ('"' | '\\') => c,
                    c => panic!("\\{c}"),
                }),
                c => value.push(c),
            }
        }
        assert!(labels.insert(name.to_owned(), value).is_none());
        match chars.next().unwrap() {
            ',' => rest = chars.as_str(),
            '}' => return (labels, chars.as_str()),
            c => panic!("{c}"),
        }
    }
}

#[test]
fn the_metrics_can_be_scraped() {
    let fake = Fake::with_views(Views::made_up());
    let answer = request(&fake, "GET", "/metrics");
    assert!(answer.1.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let samples = scrape(&answer.2);
    let value = |name: &str, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        samples.get(&(format!("vifswitch_{name}"), labels)).copied()
    };
    let odd = [("port", ODD), ("vm", "web"), ("network", "net1")];
    let plain = [("port", "p1"), ("vm", "fw-3"), ("network", "net1")];
    assert_eq!(value("port_receive_frames_total", &odd), Some(12.0));
    assert_eq!(value("port_receive_bytes_total", &odd), Some(1_234_567.0));
    assert_eq!(value("port_transmit_frames_total", &plain), Some(7.0));
    assert_eq!(value("port_transmit_bytes_total", &plain), Some(980.0));
    assert_eq!(value("port_forwarded_frames_total", &plain), Some(8.0));
    assert_eq!(value("port_flooded_frames_total", &plain), Some(2.0));
    assert_eq!(value("port_flood_copies_total", &plain), Some(6.0));
    assert_eq!(value("port_segmented_frames_total", &plain), Some(3.0));
    assert_eq!(value("port_checksummed_frames_total", &plain), Some(4.0));
    assert_eq!(value("port_receive_missed_frames_total", &plain), Some(5.0));
    assert_eq!(value("port_not_learned_frames_total", &plain), Some(9.0));
    assert_eq!(value("port_not_flooded_frames_total", &plain), Some(10.0));
    assert_eq!(value("port_mirror_copies_total", &plain), Some(11.0));
    let group = |group| [plain[0], plain[1], plain[2], ("group", group)];
    assert_eq!(value("port_reserved_group_frames_total", &group("pause")), Some(13.0));
    assert_eq!(value("port_reserved_group_frames_total", &group("bpdu")), None);
    assert_eq!(value("uplink_reserved_group_frames_total", &[("uplink", "up0"), ("group", "bpdu")]), Some(6.0));
    assert_eq!((value("port_up", &plain), value("port_up", &odd)), (Some(1.0), Some(0.0)));
    let drops = [odd[0], odd[1], odd[2], ("direction", "in"), ("reason", "spoofed_source")];
    assert_eq!(value("port_drops_total", &drops), Some(2.0));
    let vm = [("vm", "web")];
    assert_eq!((value("vm_ports", &vm), value("vm_ports_up", &vm)), (Some(1.0), Some(1.0)));
    assert_eq!(value("vm_receive_bytes_total", &vm), Some(1_234_567.0));
    assert_eq!((value("vm_transmit_frames_total", &vm), value("vm_drops_total", &vm)), (Some(7.0), Some(2.0)));
    assert_eq!(value("network_stations", &[("network", "net1")]), Some(3.0));
    let looped = [("vm", "web"), ("network", "net1")];
    assert_eq!(value("loop_level", &looped), Some(2.0));
    assert_eq!(value("loop_dropped_frames", &looped), Some(12_345.0), "families of existing objects");
    let storm = |port, class| [("vm", "web"), ("network", "net1"), ("port", port), ("class", class)];
    assert_eq!(value("storm_dropped_frames", &storm(ODD, "broadcast")), Some(777.0));
    assert_eq!(value("storm_highest_rate", &storm("", "vm")), Some(88.0));
    assert_eq!((value("loops_total", &[]), value("storms_total", &[])), (Some(2.0), Some(3.0)));
    assert_eq!((value("dampenings_total", &[]), value("stations_dampened", &[])), (Some(4.0), Some(1.0)));
    assert_eq!((value("probes_sent_total", &[]), value("probes_returned_total", &[])), (Some(500.0), Some(20.0)));
    assert_eq!((value("probes_forged_total", &[]), value("probes_stale_total", &[])), (Some(6.0), Some(7.0)));
    let worker = [("worker", "0"), ("core", "1")];
    assert_eq!(value("worker_polls_total", &worker), Some(1_000_000.0));
    assert_eq!(value("worker_busy_seconds_total", &worker), Some(0.25));
    assert_eq!(value("worker_peer_tx_frames_total", &worker), Some(5.0));
    assert_eq!(value("worker_peer_rx_floods_total", &worker), Some(8.0));
    assert_eq!(value("worker_closed_port_drops_total", &worker), Some(9.0));
    assert_eq!(value("start_time_seconds", &[]), Some(1_769_860_800.0));
    assert_eq!(value("build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
}

#[test]
fn metrics_of_an_empty_switch_can_be_scraped() {
    let fake = Fake::with_views(Views::default());
    assert_eq!(
        scrape(&request(&fake, "GET", "/metrics").2).len(),
        59,
        "build info, log lines, loops and storms, control"
    );
    assert_eq!(request(&fake, "GET", "/v1/ports").2, "[]");
}
