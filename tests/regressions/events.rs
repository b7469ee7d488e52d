//! Guests cannot flood the event log; events are complete and bounded. Needs root; makes its own namespaces; some
//! tests need strace.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Child;

use rustix::process::Signal;
use serde_json::Value;
use vifswitch::control::api::responses::Status;
use vifswitch::sys::tun::{Flags, Queue};

use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::inject::Injected;
use support::host::{Namespace, await_that, run};

/// Events of the API.
fn events(daemon: &Daemon) -> Vec<Value> {
    // Skips the chunk sizes between the lines.
    let page = daemon.page("/v1/events");
    page.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Without messages that events are missing.
fn stored(daemon: &Daemon) -> Vec<Value> {
    events(daemon).into_iter().filter(|event| event["id"].is_u64()).collect()
}

/// A guest that toggles its link as fast as possible is reported with a number of changes, and the last reported
/// state is true.
#[test]
fn a_flapping_guest_floods_neither_events_nor_log() {
    let Some(namespace) = Namespace::new() else { return };
    for number in [1, 2] {
        namespace.ip(&format!("link add tap{number} type veth peer name guest{number}"));
        namespace.ip(&format!("link set tap{number} up"));
        namespace.ip(&format!("link set guest{number} up"));
    }
    let vifs = [1, 2].map(|number| Vif { kind: "packet", ..Vif::new("vm", number, &namespace) });
    let daemon = Daemon::over(&vifs);
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    // Each change is awaited, so that none is missed.
    let mut flaps = 0;
    for _ in 0..60 {
        namespace.ip("link set guest1 down");
        daemon.await_port("no carrier", &vifs[0], |port| port.status == Status::Down);
        namespace.ip("link set guest1 up");
        daemon.await_active(&vifs[0]);
        flaps += 2;
    }
    namespace.ip("link set guest1 down");
    daemon.await_port("no carrier", &vifs[0], |port| port.status == Status::Down);
    flaps += 1;
    namespace.ip("link set guest2 down");
    let of =
        |port: &str| -> Vec<Value> { events(&daemon).into_iter().filter(|event| event["ports"][0] == port).collect() };
    await_that("the other port is reported at once", || (of("port-2").len() == 2).then_some(()));
    let others = |event: &Value| -> Option<u64> {
        let (_, rest) = event["text"].as_str()?.split_once("; and ")?;
        rest.split_once(" more events of this port in 10 seconds")?.0.parse().ok()
    };
    // The first port_up, the flaps, and perhaps more: a slow flap may be seen as several changes.
    await_that("all flaps to be counted", || {
        let said = of("port-1");
        let all = said.len() as u64 + said.iter().filter_map(others).sum::<u64>();
        (all > flaps && said.iter().any(|event| others(event).is_some())).then_some(())
    });
    let said = of("port-1");
    assert!(said.len() <= 40, "{} events", said.len());
    assert_eq!(said.last().unwrap()["kind"], "port_down", "{:?}", said.last());
    let lines = daemon.log().lines().filter(|line| line.contains("port-1")).count();
    assert!(lines <= 40, "{lines} lines");
}

/// Events in memory are answered while the disk hangs.
#[test]
fn events_do_not_wait_for_the_disk() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = Vif::new("vm", 1, &namespace);
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&vif));
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    daemon.await_active(&vif);
    let hung = Injected::new(&daemon, "vifswitch-store", "fdatasync,fsync", "delay_enter=12000000");
    let Some(hung) = hung else { return };
    // From here on writes hang.
    namespace.ip("link del tap1");
    let start = vifswitch::time::now();
    await_that("events are answered", || {
        events(&daemon).iter().any(|event| event["kind"] == "port_down").then_some(())
    });
    let took = vifswitch::time::now().since(start);
    assert!(took < std::time::Duration::from_secs(8), "{took:?}");
    drop(hung);
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

/// `vifswitch events --follow --json`, until dropped.
struct Follower {
    child: Child,
    directory: tempfile::TempDir,
}

impl Follower {
    fn new(daemon: &Daemon) -> Follower {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| File::create(directory.path().join(name)).unwrap();
        let mut command = daemon.command();
        // From the first event on, wherever the ids of this switch begin.
        let since = "2025-01-01T00:00:00Z";
        command.args(["events", "--follow", "--since", since, "--json", "--socket"]).arg(daemon.socket());
        let child = command.stdout(file("out")).stderr(file("err")).spawn().unwrap();
        Follower { child, directory }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("err")).unwrap()
    }

    /// Printed events, by start and number.
    fn printed(&self) -> Vec<(String, u64)> {
        let printed = std::fs::read_to_string(self.directory.path().join("out")).unwrap();
        let whole = printed.rsplit_once('\n').map_or("", |(whole, _)| whole);
        // A message that events are missing has no id.
        let lines = whole.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &Value| line["id"].is_u64()).map(|line| name(&line)).collect()
    }

    /// Number of printed messages that events are missing.
    fn gaps(&self) -> usize {
        std::fs::read_to_string(self.directory.path().join("out")).unwrap().matches("\"kind\":\"gap\"").count()
    }

    /// Waits until it has printed all stored events, and asserts that none was printed twice.
    fn await_all(&mut self, daemon: &Daemon) {
        let all: Vec<_> = stored(daemon).iter().map(name).collect();
        await_that("all events are printed", || {
            assert!(self.child.try_wait().unwrap().is_none(), "the follower has ended: {}", self.said());
            let printed: HashSet<_> = self.printed().into_iter().collect();
            all.iter().all(|event| printed.contains(event)).then_some(())
        });
        let printed = self.printed();
        assert_eq!(printed.iter().collect::<HashSet<_>>().len(), printed.len(), "{printed:?}");
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name(event: &Value) -> (String, u64) {
    (event["start"].as_str().unwrap().to_owned(), event["id"].as_u64().unwrap())
}

/// It ended with the switch. Now it continues after the last event, and reports where that is impossible.
#[test]
fn a_follower_outlives_restarts_and_prints_each_event_once() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = Vif::new("vm", 1, &namespace);
    for is_kept in [true, false] {
        let mut daemon = Daemon::new();
        let mut text = config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&vif));
        if is_kept {
            text = keeping(&text, &daemon.state());
        }
        daemon.configure(&text);
        daemon.start();
        daemon.await_active(&vif);
        let mut follower = Follower::new(&daemon);
        for signal in [Signal::TERM, Signal::KILL, Signal::TERM] {
            for security in ["off", "mac", "off", "mac"] {
                daemon.done(&["set", "port-1", &format!("port_security={security}")], "");
            }
            follower.await_all(&daemon);
            daemon.stop(signal);
            daemon.start();
            daemon.await_active(&vif);
            follower.await_all(&daemon);
        }
        let said = follower.said();
        assert_eq!(said.matches("has stopped").count(), 3, "{said}");
        // A kill loses ids, and without state a restart loses the events of before.
        assert_eq!(follower.gaps(), if is_kept { 1 } else { 3 }, "{said}");
    }
}

/// With a state that became usable after the start, new events reused the ids of stored events and hid them.
#[test]
fn events_of_a_state_that_becomes_usable_after_the_start_are_all_answered_once() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = Vif::new("vm", 1, &namespace);
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&vif));
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    daemon.await_active(&vif);
    for security in ["off", "mac", "off", "mac"] {
        daemon.done(&["set", "port-1", &format!("port_security={security}")], "");
    }
    let mut follower = Follower::new(&daemon);
    follower.await_all(&daemon);
    let earlier = stored(&daemon);
    assert!(earlier.len() > 4);
    daemon.stop(Signal::TERM);
    let (state, away) = (daemon.state(), daemon.state().with_extension("away"));
    std::fs::rename(&state, &away).unwrap();
    std::fs::create_dir(&state).unwrap();
    daemon.start();
    daemon.await_active(&vif);
    let is_up = |event: &Value| event["kind"] == "port_up";
    let early = await_that("the port is reported", || Some(events(&daemon)).filter(|early| early.iter().any(is_up)));
    assert!(early[0]["text"].as_str().unwrap().contains("stored events are missing here"), "{early:?}");
    assert!(early[0].get("id").is_none());
    await_that("the follower continues", || {
        let printed = follower.printed();
        early[1..].iter().all(|event| printed.contains(&name(event))).then_some(())
    });

    std::fs::remove_dir(&state).unwrap();
    std::fs::rename(&away, &state).unwrap();
    await_that("the state can be stored again", || {
        events(&daemon)
            .iter()
            .any(|event| event["text"].as_str().unwrap().contains("can be stored again"))
            .then_some(())
    });
    daemon.done(&["set", "port-1", "port_security=off"], "");
    let mut before = [&earlier[..], &early[1..]].concat();
    for _ in 0..2 {
        follower.await_all(&daemon);
        let printed = daemon.done(&["events", "--json"], "");
        let all = printed.lines().map(|line| serde_json::from_str(line).unwrap());
        let all: Vec<Value> = all.filter(|event: &Value| event["id"].is_u64()).collect();
        let ids: Vec<u64> = all.iter().map(|event| event["id"].as_u64().unwrap()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        let mut rest = all.iter();
        assert!(before.iter().all(|event| rest.any(|other| other == event)), "{before:?} in {all:?}");
        before = all;
        daemon.stop(Signal::TERM);
        daemon.start();
        daemon.await_active(&vif);
    }
}

/// Events that a guest, a container or a client can cause repeatedly are limited; events of other ports are reported
/// nevertheless.
#[test]
fn events_that_others_cause_are_limited() {
    const TIMES: usize = 100;
    const MOST: usize = 45;
    // The log's limit for messages of one source in ten seconds, and the last one.
    const LOGGED: usize = 101;
    let Some(namespace) = Namespace::new() else { return };
    // A netdev of the switch in a container with root; a tap of a hypervisor that is recreated; a bystander.
    namespace.ip("tuntap add dev tap2 mode tap multi_queue");
    namespace.ip("link set tap2 up");
    namespace.ip("link add tap3 type veth peer name guest3");
    namespace.ip("link set tap3 up");
    namespace.ip("link set guest3 up");
    let kinds = ["tap", "packet", "packet"];
    let vifs: Vec<Vif> =
        (1..).zip(kinds).map(|(number, kind)| Vif { kind, ..Vif::new("vm", number, &namespace) }).collect();
    let daemon = Daemon::over(&vifs);
    [0, 2].into_iter().for_each(|index: usize| drop(daemon.await_active(&vifs[index])));
    let batch = |lines: &dyn Fn(usize) -> String| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("batch");
        std::fs::write(&file, (0..TIMES).map(lines).collect::<String>()).unwrap();
        run("ip", &["-n", &namespace.0, "-force", "-batch", file.to_str().unwrap()]);
    };
    // Each change is awaited, so that none is missed.
    let open_and_close = || {
        for _ in 0..30 {
            let flags = Flags { vnet_header: false, multi_queue: true, exclusive: false };
            let queue = namespace.run_in(|| Queue::open("tap2", flags)).unwrap();
            daemon.await_active(&vifs[1]);
            drop(queue);
            daemon.await_port("no carrier", &vifs[1], |port| port.status == Status::Down);
        }
    };
    let refused = || {
        for _ in 0..2 * LOGGED {
            let wrong = r#"{"mtu_of_nothing":1}"#;
            let mut stream = UnixStream::connect(daemon.socket()).unwrap();
            write!(
                stream,
                "PATCH /v1/ports/port-1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n{wrong}",
                wrong.len()
            )
            .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        }
    };
    let provoke: [(&str, &str, &dyn Fn()); 5] = [
        ("MAC", "port-1", &|| batch(&|n| format!("link set tap1 address 02:00:00:00:77:{:02x}\n", n % 250))),
        ("MTU", "port-1", &|| batch(&|n| format!("link set tap1 mtu {}\n", 1000 + n))),
        ("promisc", "port-1", &|| batch(&|n| format!("link set tap1 promisc {}\n", ["on", "off"][n % 2]))),
        ("queue", "port-2", &open_and_close),
        ("refused", "port-1", &refused),
    ];
    let lines = |port: &str| daemon.log().lines().filter(|line| line.contains(port)).count();
    let text = |port: &str| events(&daemon).iter().filter(|event| event["ports"][0] == port).count();
    for (index, (what, port, provoke)) in provoke.iter().enumerate() {
        let before = (text(port), lines(port), daemon.log().lines().count());
        provoke();
        namespace.ip(&format!("link set guest3 {}", ["down", "up"][index % 2]));
        let last = ["port_down", "port_up"][index % 2];
        await_that("the bystander is reported", || {
            let all = events(&daemon);
            let mut of_bystander = all.iter().filter(|event| event["ports"][0] == "port-3");
            of_bystander.next_back().is_some_and(|event| event["kind"] == last).then_some(())
        });
        let events = text(port) - before.0;
        assert!(events <= MOST, "{what}: {events} events");
        // Each request for a change has a line, up to the limit of the log.
        let most = if *what == "refused" { LOGGED } else { MOST };
        assert!(lines(port) - before.1 <= most, "{what}: {} lines", lines(port) - before.1);
        assert!(daemon.log().lines().count() - before.2 <= most + MOST, "{what}: {}", daemon.log());
    }
    daemon.await_active(&vifs[0]);
}
