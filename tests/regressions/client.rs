//! The example client of the documentation does what it says, also while the switch is away. Needs root and python3.

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};

use support::host::daemon::{Daemon, TIMEOUT, config, keeping};
use support::host::{Namespace, await_that};

fn client(daemon: &Daemon, arguments: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/client.py");
    let mut python = Command::new("python3");
    python.arg(script).arg(daemon.socket()).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
    python
}

fn run(daemon: &Daemon, arguments: &[&str]) -> Output {
    client(daemon, arguments).output().unwrap()
}

/// Its output as JSON, line by line.
fn shown(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().unwrap()).collect()
}

/// A follower of events, killed at the end.
struct Follower(Child);

impl Follower {
    fn of(daemon: &Daemon, after: u64) -> (Follower, Receiver<Value>) {
        let mut child = client(daemon, &["events", &after.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (send, events) = channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| send.send(line.parse().unwrap())));
        (Follower(child), events)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_puts_waits_changes_and_follows_over_a_restart() {
    let Some(namespace) = Namespace::new() else { return };
    let mut daemon = Daemon::new();
    daemon.configure(&keeping(&config(&daemon.socket(), "", &[("net1", 1500)], &[]), &daemon.state()));
    daemon.start();
    let last = daemon.events().last().map_or(0, |event| event.id);
    let (_follower, events) = Follower::of(&daemon, last);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("port.json");
    let mut port = json!({ "port_id": "a/b", "device_id": "vm", "network_id": "net1", "mac_address": "02:00:00:00:00:01",
        "device": { "kind": "tap", "name": "tap1", "netns": namespace.0 } });
    let put = |daemon: &Daemon, port: &Value| {
        std::fs::write(&file, port.to_string()).unwrap();
        run(daemon, &["put", file.to_str().unwrap()])
    };
    let first = put(&daemon, &port);
    assert_eq!((first.status.code(), &shown(&first)[0]["not_active"]), (Some(0), &json!([])), "{first:?}");
    assert_eq!(shown(&put(&daemon, &port))[0]["changes"], json!([]), "a repeat changes nothing");
    let listed = || shown(&run(&daemon, &["ports", "network_id=net1"]));
    assert_eq!(listed(), [json!({ "port_id": "a/b", "status": "ACTIVE", "status_code": "ok" })]);
    assert_eq!(shown(&run(&daemon, &["ports", "device_id=other"])), [Value::Null; 0]);
    assert!(run(&daemon, &["toggle", "a/b"]).status.success());
    assert_eq!(listed(), [json!({ "port_id": "a/b", "status": "DOWN", "status_code": "admin_down" })]);
    // A refused port names itself, and the remedy.
    let wrong = put(
        &daemon,
        &json!({ "port_id": "p2", "device_id": "vm", "network_id": "net2",
        "mac_address": "02:00:00:00:00:01", "device": { "kind": "tap" } }),
    );
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(wrong.status.code() == Some(1) && said.starts_with("p2: ") && said.contains("net1"), "{said}");
    // The switch is away: the client repeats until it is back.
    daemon.stop(Signal::TERM);
    port["mac_address"] = json!("02:00:00:00:00:02");
    std::fs::write(&file, port.to_string()).unwrap();
    let socket = UnixListener::bind(daemon.socket()).unwrap();
    let waiting = client(&daemon, &["put", file.to_str().unwrap()]).stdout(Stdio::piped()).spawn().unwrap();
    // Its first attempt is cut off, and so are those of the follower; the next ones find nobody, until the switch is back.
    let is_put = |stream: UnixStream| BufReader::new(stream).lines().next().unwrap().unwrap().starts_with("PUT");
    while !is_put(socket.accept().unwrap().0) {}
    drop(socket);
    std::fs::remove_file(daemon.socket()).unwrap();
    daemon.start();
    let changed = waiting.wait_with_output().unwrap();
    assert_eq!(changed.status.code(), Some(0), "{changed:?}");
    await_that("the new address", || {
        let shown: Value = daemon.get("/v1/ports/a%2Fb");
        (shown["mac_address"] == "02:00:00:00:00:02" && shown["status"] == "ACTIVE").then_some(())
    });
    assert!(run(&daemon, &["delete", "a/b"]).status.success());
    assert!(run(&daemon, &["delete", "a/b"]).status.success(), "a repeat");
    // The follower has seen all of it, each event once.
    let (mut ids, mut seen) = (Vec::new(), Vec::new());
    while !seen
        .iter()
        .any(|event: &Value| event["kind"] == "config" && event["text"].as_str().unwrap().contains("gone"))
    {
        let event = events.recv_timeout(TIMEOUT).unwrap();
        ids.extend(event["id"].as_u64());
        seen.push(event);
    }
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    assert!(seen.iter().any(|event| event["kind"] == "port_up" && event["ports"][0] == "a/b"), "{seen:?}");
}
