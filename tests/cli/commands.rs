//! The command line: output, exit codes and requests of every command. Runs the program against a fake controller;
//! needs nothing of the host.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write, pipe};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::fake::{Fake, FakeBehaviour, ODD, Received, Views, numbered};
use support::host::await_that;
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;
use vifswitch::control::api::handle::{ChangeOptions, Flush};
use vifswitch::control::api::responses::BetweenView;
use vifswitch::control::config::Network;
use vifswitch::control::desired::change::{Change, ChangeResult, ErrorKind};
use vifswitch::control::state::event_filter::EventFilter;
use vifswitch::control::state::events::{Event, EventKind};

fn vifswitch() -> Command {
    Command::new(support::host::program())
}

fn run(arguments: &[&str]) -> Output {
    vifswitch().args(arguments).output().unwrap()
}

fn show(fake: &Fake, arguments: &[&str]) -> Output {
    vifswitch().arg("show").args(arguments).arg("--socket").arg(fake.socket()).output().unwrap()
}

fn out(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_lists_every_command() {
    for arguments in [&[][..], &["--help"], &["help"]] {
        let text = out(&run(arguments));
        for word in [
            "run",
            "check",
            "diff",
            "apply",
            "confirm",
            "attach",
            "detach",
            "set",
            "show",
            "events",
            "flush",
            "release",
            "init",
            "bugreport",
            "completions",
            "man",
            "Exit codes",
        ] {
            assert!(text.contains(word), "{arguments:?}: {text}");
        }
    }
    assert!(out(&run(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_exits_2() {
    for arguments in [
        &["frobnicate"][..],
        &["show", "everything"],
        &["check"],
        &["run", "--confg", "x"],
        &["apply"],
        &["apply", "x", "--confirm", "0"],
        &["apply", "x", "--confirm", "soon"],
        &["attach"],
        &["detach"],
        &["set", "p1"],
        &["flush", "--mac", "02:00"],
        &["release"],
        &["events", "--since", "yesterday"],
    ] {
        assert!(err(&run(arguments), 2).contains("--help"), "{arguments:?}");
    }
}

#[test]
fn no_switch_exits_3() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    for json in [&[][..], &["--json"]] {
        let output = vifswitch().arg("show").args(json).arg("--socket").arg(&socket).output().unwrap();
        let text = err(&output, 3);
        assert!(text.contains(socket.to_str().unwrap()), "the error names the socket: {text}");
        assert!(text.contains("vifswitch run") && text.contains("--socket"), "the error has a remedy: {text}");
    }
}

#[test]
fn a_refused_request_exits_1() {
    let text = err(&show(&Fake::closing(), &[]), 1);
    assert!(text.starts_with("vifswitch: the switch is shutting down, or a worker hangs"), "{text}");
}

#[test]
fn json_is_the_response_of_the_api() {
    let views = Views::made_up();
    let fake = Fake::with_views(views.clone());
    let said = |what: &str| serde_json::from_str::<Value>(&out(&show(&fake, &[what, "--json"]))).unwrap();
    assert_eq!(said("ports"), serde_json::to_value(&views.ports).unwrap());
    assert_eq!(said("uplinks"), serde_json::to_value(&views.uplinks).unwrap());
    assert_eq!(said("vms"), serde_json::to_value(&views.vms).unwrap());
    assert_eq!(said("networks"), serde_json::to_value(&views.networks).unwrap());
    assert_eq!(said("fdb"), serde_json::to_value(&views.fdb).unwrap());
    assert_eq!(said("workers"), serde_json::to_value(&views.workers).unwrap());
    assert_eq!(said("drops"), serde_json::to_value(&views.drops).unwrap());
    assert_eq!(said("loops"), serde_json::to_value(&views.loops).unwrap());
    assert_eq!(said("storms"), serde_json::to_value(&views.storms).unwrap());
}

/// Words of each table line.
fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn tables_are_readable() {
    let fake = Fake::with_views(Views::made_up());
    let text = out(&show(&fake, &[]));
    assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    let lines = words(&text);
    let titles =
        ["VM", "#", "PORT", "NETWORK", "MAC", "SECURITY", "DEVICE", "STATUS", "WORKER", "RX", "TX", "DROPS", "REASON"];
    assert_eq!(lines[0], titles);
    assert_eq!(
        lines[1][..7],
        ["fw-3", "0", "p1", "net1", "02:00:00:00:01:0a", "mac,promiscuous,limit=16", "tap0@fw-3"]
    );
    assert_eq!(lines[1][7..8], ["ACTIVE"]);
    assert_eq!(lines[1][8..], ["0", "1.2", "MB", "980", "B", "2"]);
    assert_eq!(lines[2][7..9], ["DOWN", "-"]);
    assert!(text.ends_with("no such namespace\n"), "{text}");

    let text = out(&show(&fake, &["fdb"]));
    let lines = words(&text);
    assert_eq!(lines[0], ["NETWORK", "MAC", "PORT", "VM", "KIND", "AGE"]);
    assert_eq!(lines[1], ["net1", "02:00:00:00:01:0a", "p1", "fw-3", "pinned", "-"]);
    assert_eq!(lines[2], ["net1", "02:00:00:00:01:0a", ODD, "web", "learned", "1m", "5s"]);

    assert_eq!(lines[3], ["net1", "02:00:00:00:01:0a", "up0", "(uplink)", "learned", "7s"]);

    let text = out(&show(&fake, &["uplinks"]));
    let lines = words(&text);
    let titles = ["UPLINK", "GROUP", "ACTIVE", "NETWORKS", "KIND", "DEVICE", "STATUS", "WORKER", "RX", "TX", "DROPS"];
    assert_eq!(lines[0][..11], titles);
    assert_eq!(lines[1][..8], ["up0", "wire", "yes", "net1:120,net2", "xdp", "(native", "copy)", "eth1"]);
    assert_eq!(lines[1][8..], ["ACTIVE", "0", "2.3", "MB", "990", "B", "3"]);
    assert_eq!(lines[2][..3], ["up1", "wire", "no"]);
    assert!(text.ends_with("backup\n"), "{text}");

    let text = out(&show(&fake, &["drops"]));
    let lines = words(&text);
    assert_eq!(lines[2][..5], ["up0", "(uplink)", "out", "device_full", "3"]);
    assert_eq!(lines[0], ["PORT", "VM", "DIRECTION", "REASON", "FRAMES", "DESCRIPTION"]);
    assert_eq!(lines[1][..6], [ODD, "web", "in", "spoofed_source", "2", "port"]);

    let text = out(&show(&fake, &["loops"]));
    let lines = words(&text);
    assert_eq!(lines[0], ["VM", "NETWORK", "KIND", "STATE", "LEVEL", "DROPPED", "WHAT"]);
    assert_eq!(lines[1][..8], ["web", "net1", "intra_vm", "active", "2", "12.3k", "it", "loops"]);
    assert_eq!(lines[2][3], "ended");

    let text = out(&show(&fake, &["storms"]));
    let lines = words(&text);
    assert_eq!(lines[0], ["VM", "NETWORK", "PORT", "CLASS", "STATE", "DROPPED", "HIGHEST", "WHAT"]);
    assert_eq!(lines[1][..7], ["web", "net1", ODD, "broadcast", "active", "777", "88/s"]);
    assert_eq!(lines[2][2..4], ["-", "vm"]);

    for what in ["vms", "networks", "workers"] {
        assert!(words(&out(&show(&fake, &[what]))).len() > 1, "{what}");
    }
}

#[test]
fn an_empty_list_is_printed_as_such() {
    let fake = Fake::with_views(Views::default());
    for (what, text) in [
        ("ports", "no ports\n"),
        ("uplinks", "no uplinks\n"),
        ("vms", "no VMs\n"),
        ("networks", "no networks\n"),
        ("fdb", "no stations\n"),
        ("workers", "no workers\n"),
        ("drops", "no drops\n"),
        ("loops", "no loops\n"),
        ("storms", "no storms\n"),
    ] {
        assert_eq!(out(&show(&fake, &[what])), text);
        assert_eq!(out(&show(&fake, &[what, "--json"])), "[]\n");
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let fake = Fake::with_views(Views::made_up());
    let socket = fake.socket();
    let show = ["show", "--socket", socket.to_str().unwrap()];
    for arguments in [&[][..], &["--help"], &show] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let output = vifswitch().args(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let status = vifswitch().args(["show", "--socket", "/nowhere"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

/// A configuration without `switch`, and a port as `attach` reads it.
const CONFIG: &str = "[[networks]]\nid = \"net1\"\n";
const PORT: &str = r#"
device_id = "fw-3"
port_id = "p1"
network_id = "net1"
mac_address = "02:00:00:00:01:0a"
device = { kind = "tap" }
"#;
const PORT_JSON: &str = r#"{ "device_id": "fw-3", "port_id": "p1", "network_id": "net1",
    "mac_address": "02:00:00:00:01:0a", "device": { "kind": "tap" } }"#;

/// A fake switch that accepts every request, its received requests, and a directory for files.
struct Scenario {
    fake: Fake,
    requests: UnboundedReceiver<Received>,
    directory: TempDir,
}

impl Scenario {
    fn new() -> Scenario {
        let (mind, requests) = FakeBehaviour::willing();
        Scenario {
            fake: Fake::with_behaviour(Views::made_up(), mind),
            requests,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        run_with_input(&self.fake, arguments, "")
    }

    fn change(&mut self) -> (Change, ChangeOptions) {
        match self.requests.try_recv() {
            Ok(Received::Change(change, options)) => (change, options),
            other => panic!("{other:?}"),
        }
    }

    fn nothing_asked(&mut self) {
        assert!(self.requests.try_recv().is_err(), "the switch has received nothing");
    }
}

/// Runs a command against a switch, with this standard input.
fn run_with_input(fake: &Fake, arguments: &[&str], input: &str) -> Output {
    let mut child = vifswitch()
        .args(arguments)
        .arg("--socket")
        .arg(fake.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// The fake switch's text for every change; also as JSON.
const CHANGES: &str = "port p9 is new\nnote: no namespace\n";
const CHANGES_JSON: &str =
    "{\"changes\":[\"port p9 is new\"],\"differences\":[],\"warnings\":[\"no namespace\"],\"generation\":0}\n";

#[test]
fn a_configuration_is_applied() {
    let mut scene = Scenario::new();
    let (toml, json) = (scene.file("a.toml", CONFIG), scene.file("a.json", r#"{ "networks": [{ "id": "net1" }] }"#));
    for file in [&toml, &json] {
        assert_eq!(out(&scene.run(&["apply", file])), CHANGES);
        let (Change::Apply(config), _) = scene.change() else { panic!() };
        assert_eq!(config.networks, [Network::new("net1")]);
        assert_eq!(config.switch.cores, [1], "missing settings of the process are unchanged");
    }
    let text = out(&scene.run(&["apply", &toml, "--confirm", "30"]));
    assert!(text.starts_with(CHANGES) && text.contains("30 seconds") && text.contains("vifswitch confirm"), "{text}");
    assert_eq!(scene.change().1.confirm, Some(Duration::from_secs(30)));
    assert_eq!(out(&scene.run(&["apply", &toml, "--json"])), CHANGES_JSON);
    scene.change();

    assert_eq!(out(&scene.run(&["diff", &toml])), CHANGES);
    assert!(matches!(scene.requests.try_recv(), Ok(Received::Diff(Change::Apply(_)))));
    assert_eq!(out(&scene.run(&["confirm"])), format!("confirmed:\n{CHANGES}"));
    assert_eq!(scene.requests.try_recv(), Ok(Received::Confirm));
    assert_eq!(out(&scene.run(&["confirm", "--cancel"])), format!("cancelled:\n{CHANGES}"));
    assert_eq!(scene.requests.try_recv(), Ok(Received::Cancel));
}

#[test]
fn a_port_is_attached() {
    let mut scene = Scenario::new();
    let (toml, json) = (scene.file("p.toml", PORT), scene.file("p.json", PORT_JSON));
    let expected = "port p9 is new\nnote: no namespace\nport p1 of VM fw-3 is ACTIVE\n";
    for (file, input) in [(toml.as_str(), ""), (&json, ""), ("-", PORT), ("-", PORT_JSON)] {
        assert_eq!(out(&run_with_input(&scene.fake, &["attach", file], input)), expected);
        let (Change::Attach { vm, ports }, _) = scene.change() else { panic!() };
        assert_eq!((vm.as_str(), ports.len(), ports[0].port_id.as_str()), ("fw-3", 1, "p1"));
    }
    let text = out(&scene.run(&["attach", &toml, "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["ports"][0]["port_id"], "p1");
    // Names that need escaping in a URL.
    let odd = PORT.replace("fw-3", "a/b?c#%d é");
    out(&run_with_input(&scene.fake, &["attach", "-"], &odd));
    scene.change();
    let (Change::Attach { vm, .. }, _) = scene.change() else { panic!() };
    assert_eq!(vm, "a/b?c#%d é");
}

#[test]
fn an_invalid_file_exits_2_without_a_request() {
    let mut scene = Scenario::new();
    let config = scene.file("a.toml", "[[networks]]\nid = \"net1\"\nmtu = 7\n\n[[network]]\n");
    let port = scene.file("p.toml", "device_id = \"fw-3\"\nport_id = \"p1\"\nmac_address = \"02\"\n");
    let whose = scene.file("whose.json", &PORT_JSON.replace("\"device_id\": \"fw-3\",", ""));
    for (command, file, marks) in [
        ("apply", config.as_str(), ["a.toml:3: networks[0].mtu = 7", "a.toml:5: network"]),
        ("diff", &config, ["a.toml:3: networks[0].mtu = 7", "a.toml:5: network"]),
        ("attach", &port, ["p.toml:3: mac_address = \"02\"", "network_id: required"]),
        ("attach", &whose, ["whose.json: device_id: required", "VM"]),
        ("apply", "/nowhere/a.toml", ["/nowhere/a.toml", "cannot be read"]),
        ("attach", "/nowhere/p.toml", ["/nowhere/p.toml", "cannot be read"]),
    ] {
        let text = err(&scene.run(&[command, file]), 2);
        for mark in marks {
            assert!(text.contains(mark), "{command}: {mark}: {text}");
        }
    }
    let text = err(&run_with_input(&scene.fake, &["attach", "-"], "port_id = 7\n"), 2);
    assert!(text.contains("standard input:1: port_id = 7"), "{text}");
    scene.nothing_asked();
}

#[test]
fn keys_of_a_port_are_set() {
    let mut scene = Scenario::new();
    let pairs = [
        "admin_state_up=false",
        "mac_address=02:00:00:00:01:0b",
        "device.queues=2",
        "device.netns=",
        "fixed_ips=[\"10.5.0.1\"]",
    ];
    assert_eq!(out(&scene.run(&[&["set", ODD][..], &pairs].concat())), CHANGES);
    let (Change::Set { port, keys }, _) = scene.change() else { panic!() };
    assert_eq!(port, ODD);
    assert_eq!(keys.cleared, ["device.netns"]);
    assert_eq!(
        serde_json::to_value(&keys.given).unwrap(),
        serde_json::json!({ "admin_state_up": false, "mac_address": "02:00:00:00:01:0b", "fixed_ips": ["10.5.0.1"],
            "device": { "queues": 2 } })
    );
    for (pair, mark) in [
        ("admin_state=up", "did you mean admin_state_up?"),
        ("admin_state_up=up", "true or false"),
        ("network_id=7", "a text in quotes"),
        ("device.queue=2", "queues"),
        ("p2", "KEY=VALUE"),
    ] {
        let text = err(&scene.run(&["set", "p1", pair]), 2);
        assert!(text.contains(mark), "{pair}: {text}");
    }
    scene.nothing_asked();
}

#[test]
fn a_port_is_detached_and_released_and_stations_are_flushed() {
    let mut scene = Scenario::new();
    assert_eq!(out(&scene.run(&["detach", ODD])), CHANGES);
    assert_eq!(scene.change().0, Change::Detach { port: ODD.into() });
    assert_eq!(out(&scene.run(&["release", "a/b"])), CHANGES);
    assert_eq!(scene.requests.try_recv(), Ok(Received::Release("a/b".into())));
    assert_eq!(out(&scene.run(&["flush"])), "flushed 7 entries\n");
    assert_eq!(scene.requests.try_recv(), Ok(Received::Flush(Flush::default())));
    let flush = ["flush", "--network", "net1", "--port", "p1", "--mac", "02:00:00:00:01:0a", "--json"];
    assert_eq!(out(&scene.run(&flush)), "{\"flushed\":7}\n");
    let mac = Some("02:00:00:00:01:0a".parse().unwrap());
    assert_eq!(
        scene.requests.try_recv(),
        Ok(Received::Flush(Flush { network: Some("net1".into()), port: Some("p1".into()), mac }))
    );
}

/// Every command that sends a request, with valid arguments.
fn every_command(scene: &Scenario) -> Vec<Vec<String>> {
    let (config, port) = (scene.file("a.toml", CONFIG), scene.file("p.toml", PORT));
    [
        &["apply", &config][..],
        &["diff", &config],
        &["confirm"],
        &["attach", &port],
        &["detach", "p1"],
        &["set", "p1", "admin_state_up=true"],
        &["flush"],
        &["release", "p1"],
        &["events"],
        &["events", "--follow"],
    ]
    .map(|command| command.iter().map(ToString::to_string).collect())
    .into()
}

#[test]
fn a_refused_change_exits_1_with_its_reason() {
    let scene = Scenario::new();
    let no = Fake::with_behaviour(
        Views::made_up(),
        FakeBehaviour::refusing(ErrorKind::Conflict, "port_in_use", "port p1 is in use"),
    );
    // Events are not refused.
    for command in every_command(&scene).into_iter().filter(|command| command[0] != "events") {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        assert_eq!(err(&run_with_input(&no, &command, ""), 1), "vifswitch: port p1 is in use\n", "{command:?}");
    }
}

#[test]
fn every_command_reports_a_missing_switch() {
    let scene = Scenario::new();
    let absent = scene.directory.path().join("api.sock");
    for command in every_command(&scene) {
        let output = vifswitch().args(&command).arg("--socket").arg(&absent).output().unwrap();
        assert!(err(&output, 3).contains("--socket"), "{command:?}");
    }
}

#[test]
fn a_change_without_effect_is_reported() {
    let (mind, _asked) = FakeBehaviour::willing();
    let fake = Fake::with_behaviour(Views::default(), FakeBehaviour { answer: Ok(ChangeResult::default()), ..mind });
    let scene = Scenario::new();
    let file = scene.file("a.toml", CONFIG);
    for (command, text) in [
        (&["apply", &file][..], "no changes\n"),
        (&["diff", &file], "no changes\n"),
        (&["set", "p1", "admin_state_up=true"], "no changes\n"),
        (&["release", "p1"], "nothing to release\n"),
    ] {
        assert_eq!(out(&run_with_input(&fake, command, "")), text);
    }
}

#[test]
fn events_are_printed_one_per_line() {
    let mut scene = Scenario::new();
    let text = out(&scene.run(&["events"]));
    let lines = words(&text);
    assert_eq!(
        lines[0],
        ["2025-11-03T09:00:00.000Z", "port_up", "fw-3", &format!("p1,{ODD}"), "net1", "it", "is", "up"]
    );
    assert_eq!(lines[1], ["2025-11-03T09:00:01.000Z", "port_up", "-", "-", "-", "it", "is", "so"]);
    assert_eq!(lines.len(), 2);
    // Two pages: nothing is stored, and the rest is in memory.
    let requests = |scene: &mut Scenario| std::iter::from_fn(|| scene.requests.try_recv().ok()).collect::<Vec<_>>();
    let pages = |filter: EventFilter| [None, Some(0)].map(|after| Received::Events(filter.clone(), after));
    assert_eq!(requests(&mut scene), pages(EventFilter::default()));
    let text = out(&scene.run(&["events", "--json", "--since", "2025-11-03T10:00:00+01:00"]));
    let events: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events, numbered(&Views::made_up().events));
    let since = EventFilter { since: Some("2025-11-03T09:00:00.000Z".into()), ..EventFilter::default() };
    assert_eq!(requests(&mut scene), pages(since));
    let arguments = ["events", "--after", "1", "--kind", "config,port_up", "--vm", "v", "--port", "a&b", "--port", "c"];
    assert_eq!(out(&scene.run(&[&arguments[..], &["--network", "n"]].concat())), "");
    let texts = |of: &[&str]| of.iter().map(ToString::to_string).collect::<Vec<_>>();
    let filter = EventFilter {
        since: None,
        kinds: vec![EventKind::Config, EventKind::PortUp],
        vms: texts(&["v"]),
        ports: texts(&["a&b", "c"]),
        networks: texts(&["n"]),
    };
    assert_eq!(requests(&mut scene), [Received::Events(filter, Some(1))]);
}

#[test]
fn events_are_followed_over_a_restart() {
    let (mind, _asked) = FakeBehaviour::willing();
    let happening = mind.happening.clone();
    let mut fake = Fake::with_behaviour(Views::made_up(), mind);
    let mut child = vifswitch()
        .args(["events", "--follow", "--socket"])
        .arg(fake.socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // It begins now.
    await_that("a follower", || (happening.followers() == 1).then_some(()));
    happening.emit(support::fake::event("2025-11-03T09:00:02.000Z", "a\nb"));
    assert!(lines.next().unwrap().unwrap().ends_with("a\u{fffd}b"));
    fake.stop();
    let mut reported = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(reported.next().unwrap().unwrap().contains("has stopped"));
    assert!(child.try_wait().unwrap().is_none(), "the command waits for the switch");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_closed_pipe_while_following_is_no_error() {
    let (mind, _asked) = FakeBehaviour::willing();
    let happening = mind.happening.clone();
    let fake = Fake::with_behaviour(Views::made_up(), mind);
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let child = vifswitch()
        .args(["events", "--follow", "--socket"])
        .arg(fake.socket())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    await_that("a follower", || (happening.followers() == 1).then_some(()));
    happening.emit(support::fake::event("2025-11-03T09:00:02.000Z", "unread"));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_balanced_audit_exits_0() {
    let views = Views::made_up();
    let fake = Fake::with_views(views.clone());
    let text = out(&show(&fake, &["drops", "--verify"]));
    let lines = words(&text);
    assert_eq!(lines[1], [ODD, "web", "12", "8", "2", "2", "0"]);
    assert!(lines.contains(&vec!["0", "8", "6", "0", "0", "0", "13", "1", "0", "0"]), "{text}");
    assert!(text.contains("spoofed_source") && text.ends_with("adds up: every frame is accounted for\n"), "{text}");
    let said: Value = serde_json::from_str(&out(&show(&fake, &["drops", "--verify", "--json"]))).unwrap();
    assert_eq!(said, serde_json::to_value(&views.audit).unwrap());
}

#[test]
fn an_unbalanced_audit_exits_1() {
    let mut views = Views::made_up();
    views.audit.balanced = false;
    views.audit.ports[0].delta = 3;
    views.audit.workers[0].delta = -1;
    views.audit.frames_between = BetweenView { min: 2, max: 2 };
    let fake = Fake::with_views(views);
    let output = show(&fake, &["drops", "--verify"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for piece in [
        "DOES NOT ADD UP",
        "port \"a\\\"b\\\\c\": 3 received frames unaccounted for",
        "worker 0: 1 egress frames accounted for twice",
        "between workers: 2 frames sent and never received",
    ] {
        assert!(text.contains(piece), "{piece}: {text}");
    }
    assert_eq!(show(&fake, &["drops", "--verify", "--json"]).status.code(), Some(1));
}

#[test]
fn verify_checks_the_counters_only() {
    let text = err(&run(&["show", "ports", "--verify"]), 2);
    assert!(text.contains("show drops"), "{text}");
}
