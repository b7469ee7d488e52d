//! Writes of orchestrators: two at a time, repeats, generations over restarts, owners, and ports that cannot come up. Needs
//! root for the tests with netdevs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};

use support::host::daemon::{Daemon, TIMEOUT, Vif, attachment, config, keeping};
use support::host::{Namespace, await_that};

use super::opening::hold;

/// An answer: status, generation of its `ETag`, and body.
#[derive(Debug)]
struct Answer(u16, Option<u64>, Value);

/// Sends a request with a JSON body, and with further lines in its head.
fn ask(daemon: &Daemon, method: &str, path: &str, head: &str, body: &str) -> Answer {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: vifswitch\r\nconnection: close\r\ncontent-type: application/json\r\n{head}\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let tag =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("etag: \"")?.strip_suffix('"')?.parse().ok());
    Answer(head[9..12].parse().unwrap(), tag, serde_json::from_str(body).unwrap_or_default())
}

fn put(daemon: &Daemon, path: &str, body: &Value) -> Answer {
    ask(daemon, "PUT", path, "", &body.to_string())
}

/// A port on net1 as it is put: its device may be missing.
fn port(number: u8, namespace: &str) -> Value {
    json!({ "device_id": "vm", "network_id": "net1", "mac_address": format!("02:00:00:00:00:{number:02x}"),
        "device": { "kind": "tap", "name": format!("tap{number}"), "netns": namespace } })
}

fn status(daemon: &Daemon) -> (u64, u64) {
    let status: Value = daemon.get("/v1/status");
    assert!(status["ready"] == true && status["state"] != "store_failed", "{status}");
    (status["desired_generation"].as_u64().unwrap(), status["applied_generation"].as_u64().unwrap())
}

/// A daemon without ports that keeps its state.
fn stateful() -> Daemon {
    let mut daemon = Daemon::new();
    daemon.configure(&keeping(&config(&daemon.socket(), "", &[("net1", 1500)], &[]), &daemon.state()));
    daemon.start();
    daemon
}

/// A configuration that was read before another client's change does not take that back.
#[test]
fn a_stale_configuration_is_refused() {
    let daemon = stateful();
    let Answer(200, Some(read), mut stale) = ask(&daemon, "GET", "/v1/config", "", "") else { panic!() };
    let Answer(201, Some(new), _) = put(&daemon, "/v1/ports/other", &port(9, "missing")) else { panic!() };
    assert!(new > read);
    stale.as_object_mut().unwrap().remove("switch");
    let refused = ask(&daemon, "PUT", "/v1/config", &format!("if-match: \"{read}\"\r\n"), &stale.to_string());
    assert_eq!((refused.0, &refused.2["error"]["kind"]), (412, &json!("generation_moved")), "{refused:?}");
    assert_eq!(daemon.listed(), ["other"]);
    let Answer(200, Some(again), fresh) = ask(&daemon, "GET", "/v1/config", "", "") else { panic!() };
    assert_eq!(again, new);
    let head = format!("if-match: \"{again}\"\r\n");
    let unchanged = ask(
        &daemon,
        "PUT",
        "/v1/config",
        &head,
        &json!({ "networks": fresh["networks"], "vms": fresh["vms"] }).to_string(),
    );
    assert_eq!(
        (unchanged.0, unchanged.1, &unchanged.2["changes"]),
        (200, Some(new), &json!([])),
        "no change, no generation"
    );
}

/// A number names one configuration, whatever ends the process.
#[test]
fn generations_only_grow_over_restarts() {
    let mut daemon = stateful();
    let mut last = 0;
    let mut grown = |daemon: &Daemon, what: &str| {
        let (desired, applied) = status(daemon);
        assert!(desired >= last && desired == applied, "{what}: {desired} after {last}, {applied} applied");
        std::mem::replace(&mut last, desired) < desired
    };
    grown(&daemon, "the start");
    for (number, signal) in [(1, Signal::TERM), (2, Signal::KILL)] {
        let Answer(201, Some(_), _) = put(&daemon, &format!("/v1/networks/n{number}"), &json!({})) else { panic!() };
        assert!(grown(&daemon, "a change"));
        let repeated = put(&daemon, &format!("/v1/networks/n{number}"), &json!({}));
        assert_eq!((repeated.0, grown(&daemon, "its repeat")), (200, false));
        daemon.stop(signal);
        daemon.start();
        assert!(!grown(&daemon, "a restart"), "the same configuration has the same number");
    }
    // One that is not confirmed has a number that is never used again.
    let body = json!({ "networks": [{ "id": "provisional" }] }).to_string();
    let Answer(200, Some(provisional), _) = ask(&daemon, "PUT", "/v1/config?confirm=3600", "", &body) else { panic!() };
    daemon.stop(Signal::KILL);
    daemon.start();
    assert!(grown(&daemon, "what was not confirmed") && status(&daemon).0 > provisional);
    let Answer(200, Some(_), _) = ask(&daemon, "PUT", "/v1/config?confirm=1", "", &body) else { panic!() };
    let networks = || daemon.get::<Value>("/v1/networks").as_array().unwrap().len();
    await_that("the revert", || (networks() == 3).then_some(()));
    assert!(grown(&daemon, "a revert"));
    // An edited file makes another configuration.
    daemon.stop(Signal::TERM);
    daemon.configure(&keeping(&config(&daemon.socket(), "", &[("net1", 1500), ("net2", 9000)], &[]), &daemon.state()));
    daemon.start();
    assert!(grown(&daemon, "an edit"));
}

/// A change that waits to be confirmed can be seen and cancelled.
#[test]
fn an_unconfirmed_change_is_seen_and_cancelled() {
    let daemon = stateful();
    let pending = || daemon.get::<Value>("/v1/confirm");
    assert_eq!(pending(), json!({ "pending": false }));
    assert_eq!(ask(&daemon, "DELETE", "/v1/confirm", "", "").2["error"]["kind"], "nothing_to_confirm");
    let body = json!({ "networks": [{ "id": "provisional" }] }).to_string();
    let Answer(200, Some(generation), _) = ask(&daemon, "PUT", "/v1/config?confirm=3600", "", &body) else { panic!() };
    let waits = pending();
    assert_eq!((&waits["pending"], &waits["change"]["generation"]), (&json!(true), &json!(generation)), "{waits}");
    assert!(waits["change"]["seconds_left"].as_u64().is_some_and(|left| (3000..=3600).contains(&left)), "{waits}");
    assert_eq!(waits["change"]["changes"].as_array().unwrap().len(), 2, "{waits}");
    let cancelled = daemon.done(&["confirm", "--cancel"], "");
    assert!(cancelled.starts_with("cancelled:\n") && cancelled.contains("\"provisional\" is gone"), "{cancelled}");
    assert_eq!(pending(), json!({ "pending": false }));
    let networks: Value = daemon.get("/v1/networks");
    assert_eq!((networks.as_array().unwrap().len(), &networks[0]["network_id"]), (1, &json!("net1")));
    assert!(daemon.events().iter().any(|event| event.text.starts_with("cancelled; reverted")));
}

/// A change is cancelled at once, also while it waits for its ports: here for a tap that another process has.
#[test]
fn an_unconfirmed_change_is_cancelled_while_its_ports_are_opened() {
    let Some(namespace) = Namespace::new() else { return };
    let daemon = stateful();
    let vif = Vif::new("vm", 7, &namespace);
    let held = hold(&namespace, &vif);
    let body = json!({ "networks": [{ "id": "net1" }], "vms": [{ "id": "vm", "ports": [{ "port_id": vif.port,
        "network_id": "net1", "mac_address": vif.mac.to_string(),
        "device": { "kind": "tap", "name": vif.name, "netns": vif.netns } }] }] });
    thread::scope(|scope| {
        let change = scope.spawn(|| ask(&daemon, "PUT", "/v1/config?confirm=3600", "", &body.to_string()));
        let pending = || daemon.get::<Value>("/v1/confirm")["pending"] == true;
        await_that("the change", || pending().then_some(()));
        let cancelled = daemon.done(&["confirm", "--cancel"], "");
        assert!(cancelled.starts_with("cancelled:\n"), "{cancelled}");
        assert!(daemon.listed().is_empty() && !pending());
        assert_eq!(change.join().unwrap().0, 200);
    });
    drop(held);
}

/// A port without a device is its own problem.
#[test]
fn a_bad_port_keeps_no_other_change_out() {
    let Some(namespace) = Namespace::new() else { return };
    let daemon = stateful();
    let Answer(201, _, bad) = put(&daemon, "/v1/ports/bad?wait=1", &port(1, "missing")) else { panic!() };
    assert_eq!(bad["not_active"][0]["port_id"], "bad", "{bad}");
    assert_eq!(bad["not_active"][0]["status_code"], "no_namespace", "{bad}");
    assert!(bad["not_active"][0]["status_reason"].as_str().unwrap().contains("missing"), "{bad}");
    let Answer(201, _, good) = put(&daemon, "/v1/ports/good?wait=60", &port(2, &namespace.0)) else { panic!() };
    assert_eq!(good["not_active"], json!([]));
    // It names an address in use: refused, and nothing else is.
    let Answer(409, _, taken) = put(&daemon, "/v1/ports/taken", &port(2, "elsewhere")) else { panic!() };
    assert!(taken["error"]["message"].as_str().unwrap().contains("\"good\""), "{taken}");
    assert_eq!(
        (&taken["problems"][0]["port_id"], &taken["problems"][0]["key"]),
        (&json!("taken"), &json!("mac_address"))
    );
    let Answer(200, _, same) = put(&daemon, "/v1/ports/good", &port(2, &namespace.0)) else { panic!() };
    assert_eq!(same["changes"], json!([]));
    let Answer(200, ..) = ask(&daemon, "DELETE", "/v1/ports/good", "", "") else { panic!() };
    assert_eq!(namespace.links(), ["lo"], "its netdev is gone");
    let Answer(204, ..) = ask(&daemon, "DELETE", "/v1/ports/good", "", "") else { panic!() };
    let gone = daemon.run_command(&["detach", "good"], "");
    assert!(
        gone.status.code() == Some(1)
            && String::from_utf8_lossy(&gone.stderr).contains("; `vifswitch show ports` lists them"),
        "{gone:?}"
    );
}

/// The answer to a change that waits comes when its port is up, long before the time is over.
#[test]
fn a_change_waits_until_its_port_is_active() {
    let Some(namespace) = Namespace::planned() else { return };
    let daemon = stateful();
    let (body, path) = (port(1, &namespace.0).to_string(), "/v1/ports/later?wait=300");
    let answer = thread::scope(|scope| {
        let waiting = scope.spawn(|| ask(&daemon, "PUT", path, "", &body));
        await_that("the port", || (daemon.listed() == ["later"]).then_some(()));
        assert!(!waiting.is_finished(), "its namespace does not exist");
        namespace.make();
        waiting.join().unwrap()
    });
    let Answer(201, _, changed) = answer else { panic!("{answer:?}") };
    assert_eq!(changed["not_active"], json!([]));
    let listed: Value = daemon.get("/v1/ports/later");
    assert_eq!(listed["status"], "ACTIVE");
}

/// Siblings that are attached in any order are in the requested one.
#[test]
fn siblings_arrive_in_any_order() {
    let daemon = stateful();
    for (id, position) in [("eth2", 2), ("eth0", 0), ("eth1", 1)] {
        let mut body = port(position, "missing");
        body["position"] = json!(position);
        let Answer(201, ..) = put(&daemon, &format!("/v1/ports/{id}"), &body) else { panic!() };
    }
    assert_eq!(daemon.listed(), ["eth0", "eth1", "eth2"]);
    let listed: Value = daemon.get("/v1/ports");
    assert_eq!([0, 1, 2].map(|number| listed[number]["position"].as_u64().unwrap()), [0, 1, 2]);
}

/// What an owner applies again and again leaves a port that a person has attached.
#[test]
fn an_owner_leaves_ports_of_others() {
    let Some(namespace) = Namespace::new() else { return };
    let daemon = stateful();
    let by_hand = Vif::new("vm", 1, &namespace);
    daemon.done(&["attach", "-"], &attachment(&by_hand));
    let wanted = |ports: Vec<Value>| {
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|mut port| {
                let number = port["mac_address"].as_str().unwrap()[15..].to_owned();
                port.as_object_mut().unwrap().remove("device_id");
                port["port_id"] = json!(format!("own-{number}"));
                port
            })
            .collect();
        json!({ "networks": [{ "id": "own" }], "vms": [{ "id": "vm", "ports": ports }] })
    };
    let apply = |ports| put(&daemon, "/v1/config?owner=neutron", &wanted(ports));
    let Answer(200, Some(first), _) = apply(vec![port(2, "missing"), port(3, "missing")]) else { panic!() };
    assert_eq!(daemon.listed(), [by_hand.port.as_str(), "own-02", "own-03"]);
    let Answer(200, Some(same), _) = apply(vec![port(2, "missing"), port(3, "missing")]) else { panic!() };
    assert_eq!(same, first);
    let Answer(200, ..) = apply(vec![port(3, "missing")]) else { panic!() };
    assert_eq!(daemon.listed(), [by_hand.port.as_str(), "own-03"]);
    let own: Value = daemon.get("/v1/ports?owner=neutron");
    assert_eq!((own.as_array().unwrap().len(), &own[0]["port_id"]), (1, &json!("own-03")));
    let file = daemon.file().with_file_name("empty.toml");
    std::fs::write(&file, "").unwrap();
    daemon.done(&["apply", "--owner", "neutron", file.to_str().unwrap()], "");
    assert_eq!(daemon.listed(), [by_hand.port.as_str()]);
    daemon.await_active(&by_hand);
}

/// Health is answered while the state cannot be opened yet.
#[test]
fn health_is_answered_during_the_start() {
    let mut daemon = stateful();
    let live = ask(&daemon, "GET", "/livez", "", "").0;
    assert_eq!((live, ask(&daemon, "GET", "/readyz", "", "").0), (200, 200));
    // Another switch has the state open: the start waits for it.
    let mut second = Daemon::new();
    second.configure(&keeping(&config(&second.socket(), "", &[], &[]), &daemon.state()));
    let file = second.file();
    second.spawn_over("--config", &file);
    await_that("the API", || second.socket().exists().then_some(()));
    assert_eq!((ask(&second, "GET", "/livez", "", "").0, ask(&second, "GET", "/readyz", "", "").0), (200, 503));
    let Answer(200, _, starting) = ask(&second, "GET", "/v1/status", "", "") else { panic!() };
    assert_eq!((&starting["starting"], &starting["phase"]), (&json!(true), &json!("starting")));
    daemon.stop(Signal::TERM);
    second.await_note("READY=1");
    assert_eq!(ask(&second, "GET", "/readyz", "", "").0, 200);
    assert_eq!(status(&second).0, status(&second).1);
}
