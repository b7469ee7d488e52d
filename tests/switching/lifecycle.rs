//! Start and end of the running switch: orderly stop, SIGKILL, and refused starts. Needs root; makes its own
//! namespaces.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::event::Timespec;
use rustix::process::Signal;
use support::host::daemon::{Daemon, Vif, config, page, sums};
use support::host::nic::{Nic, experiment};
use support::host::setup::{PLAIN, Setup, SetupOptions, ping, two_workers};
use support::host::{Namespace, await_that};
use vifswitch::control::api::responses::{Direction, DropView, PortView, Status, WorkerView};
use vifswitch::sys::link::Link;
use vifswitch::wire::Mac;

#[test]
fn an_orderly_stop_closes_everything() {
    for signal in [Signal::TERM, Signal::INT] {
        let (Some(host), Some(left)) = (Namespace::new(), Namespace::new()) else { return };
        let vifs = [
            Vif::new("a", 1, &host),
            Vif::new("b", 2, &left).device(", persist = false"),
            Vif::new("b", 3, &left).device(", persist = false, queues = 2"),
        ];
        let mut daemon = Daemon::over(&vifs);
        assert!(daemon.socket().exists());
        assert_eq!(left.links(), ["lo", "tap2", "tap3"]);
        let before = host.link("tap1").unwrap();
        daemon.signal(signal);
        daemon.await_note("STOPPING=1");
        let ended = daemon.wait();
        assert_eq!(ended.code(), Some(0), "{ended:?}: {}", daemon.log());
        assert!(!daemon.socket().exists());
        assert_eq!((host.links(), left.links()), (vec!["lo".into(), "tap1".into()], vec!["lo".to_owned()]));
        assert_eq!(host.link("tap1").unwrap(), Link { carrier: false, ..before });
    }
}

/// Sends broadcasts through the switch until `done`, and counts received ones.
fn stream(from: &Nic, sender: Mac, to: &Nic, came: &AtomicU64, done: impl Fn() -> bool) {
    let mut number = 0u64;
    while !done() {
        number += 1;
        // Between two runs of the switch a tap has no carrier.
        let _ = from.try_send(&experiment(Mac::BROADCAST, sender, &number.to_be_bytes()));
        came.fetch_add(to.rest().len() as u64, Ordering::Relaxed);
    }
}

#[test]
fn a_killed_switch_reopens_the_same_taps() {
    let Some(mut setup) = Setup::new(PLAIN, &["a", "b"]) else { return };
    let addresses = [setup.address(0), setup.address(1)];
    ping(&setup.spaces[0], addresses[1], 1);
    let links = |setup: &Setup| [0, 1].map(|index| setup.spaces[index].link(&setup.vifs[index].name).unwrap());
    let before = links(&setup);
    for _ in 0..3 {
        kill_while_frames_flow(&mut setup);
        assert!(setup.daemon.socket().exists(), "a killed process cleans up nothing");
        setup.daemon.start();
        assert!(setup.daemon.ports().iter().all(|port| port.status == Status::Active), "{:?}", setup.daemon.ports());
        assert_eq!(links(&setup), before);
        // The addresses are still there.
        ping(&setup.spaces[0], addresses[1], 2);
        ping(&setup.spaces[1], addresses[0], 2);
    }
}

fn kill_while_frames_flow(setup: &mut Setup) {
    let (from, to, came, killed) = (setup.nic(0), setup.nic(1), AtomicU64::new(0), AtomicU64::new(0));
    let sender = setup.vifs[0].mac;
    thread::scope(|scope| {
        scope.spawn(|| stream(&from, sender, &to, &came, || killed.load(Ordering::Relaxed) > 0));
        let flows = std::panic::catch_unwind(|| {
            await_that("frames", || (came.load(Ordering::Relaxed) > 100).then_some(()));
        });
        setup.daemon.signal(Signal::KILL);
        let ended = setup.daemon.wait();
        killed.store(1, Ordering::Relaxed);
        assert!(flows.is_ok(), "no frames flowed");
        assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()));
    });
}

#[test]
fn a_killed_switch_creates_its_taps_again() {
    let Some(mut setup) = Setup::new(SetupOptions { device: ", persist = false", ..PLAIN }, &["a", "b"]) else {
        return;
    };
    for round in 0..2 {
        kill_while_frames_flow(&mut setup);
        assert!(setup.spaces.iter().all(|namespace| namespace.links() == ["lo"]));
        setup.daemon.start();
        assert!(setup.daemon.ports().iter().all(|port| port.status == Status::Active));
        let nics = [setup.nic(0), setup.nic(1)];
        setup.send_and_await((0, &nics[0]), (1, &nics[1]), &format!("again {round}"));
        setup.send_and_await((1, &nics[1]), (0, &nics[0]), &format!("and back {round}"));
    }
}

#[test]
fn a_second_switch_on_the_same_socket_is_refused() {
    let Some(setup) = Setup::new(PLAIN, &["a", "b"]) else { return };
    let Some(other) = Namespace::new() else { return };
    let text = std::fs::read_to_string(setup.daemon.file()).unwrap();
    let second = Daemon::new();
    second.configure(&config(&setup.daemon.socket(), "", &[("net1", 1500)], &[Vif::new("c", 7, &other)]));
    let refused = second.try_command(&["run", "--config", "FILE"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let socket = setup.daemon.socket();
    assert!(said.contains("another switch is listening") && said.contains(socket.to_str().unwrap()), "{said}");
    assert_eq!(other.links(), ["lo"]);
    // A repeated start with the same file fails too.
    second.configure(&text);
    assert_eq!(second.try_command(&["run", "--config", "FILE"]).status.code(), Some(1));
    let nics = [setup.nic(0), setup.nic(1)];
    setup.send_and_await((0, &nics[0]), (1, &nics[1]), "still here");
    assert!(setup.daemon.socket().exists());
    assert!(setup.daemon.ports().iter().all(|port| port.status == Status::Active));
}

#[test]
fn a_port_is_down_while_its_device_is_in_use() {
    let Some(setup) = Setup::new(PLAIN, &["a", "b"]) else { return };
    // A switch with its own socket, over a tap of its own and one of the first switch.
    let Some(namespace) = Namespace::new() else { return };
    let vifs = vec![Vif::new("a", 7, &namespace), setup.vifs[1].clone()];
    let second = Daemon::over(&vifs);
    let [free, held] = second.ports().try_into().unwrap();
    assert_eq!((free.status, held.status), (Status::Active, Status::Down));
    assert!(held.status_reason.contains("in use") && held.status_reason.contains("tap2"), "{}", held.status_reason);
    assert_eq!(held.status_code, "in_use");
    let nics = [setup.nic(0), setup.nic(1)];
    setup.send_and_await((0, &nics[0]), (1, &nics[1]), "undisturbed");
    drop(setup.daemon);
    second.await_active(&vifs[1]);
    drop(second);
}

/// Part of a valid configuration, its replacement; key, value and remedy in the error.
type Mistake = (&'static str, &'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const MISTAKES: &[Mistake] = &[
    ("frames = 2048", "frames = 7", "switch.frames", "= 7", "1024 to 4194304"),
    ("state = \"\"", "state = \"\"\npoll = \"lazy\"", "switch.poll", "\"lazy\"", "\"adaptive\""),
    ("state = \"\"", "state = \"\"\nmetrics = \"here\"", "switch.metrics", "\"here\"", "127.0.0.1:9477"),
    ("state = \"\"", "state = \"\"\ncores = [0, 0]", "switch.cores[1]", "= 0", "already"),
    ("mtu = 1500", "mtu = 10000", "networks[0].mtu", "= 10000", "68 to 9216"),
    ("mtu = 1500", "mtuu = 1500", "networks[0].mtuu", "= 1500", "did you mean mtu?"),
    ("02:00:00:00:01:02", "03:00:00:00:01:02", "vms[0].ports[1].mac_address", "\"03:00:00:00:01:02\"", "group address"),
    ("02:00:00:00:01:02", "02:00:00:00:01:01", "vms[0].ports[1].mac_address", "\"02:00:00:00:01:01\"", "another address"),
    ("port-2", "port-1", "vms[0].ports[1].port_id", "\"port-1\"", "once"),
    ("network_id = \"net1\"", "network_id = \"net2\"", "vms[0].ports[0].network_id", "\"net2\"", "\"net1\""),
    ("name = \"tap2\"", "name = \"a-name-of-16-byt\"", "vms[0].ports[1].device.name", "\"a-name-of-16-byt\"", "15"),
    ("name = \"tap2\"", "name = \"tap1\"", "vms[0].ports[1].device.name", "\"tap1\"", "vms[0].ports[0].device.name"),
    ("kind = \"tap\", name = \"tap2\"", "kind = \"tub\", name = \"tap2\"", "vms[0].ports[1].device.kind", "\"tub\"", "\"tap\""),
    ("kind = \"tap\", name = \"tap2\"", "kind = \"tap\", queues = 0, name = \"tap2\"", "vms[0].ports[1].device.queues", "= 0", "1 to 256"),
    ("id = \"fw\"", "id = 5", "vms[0].id", "= 5", "a text"),
];

#[test]
fn a_killed_switch_restores_its_state_without_a_file() {
    let Some(namespace) = Namespace::new() else { return };
    let mut daemon = Daemon::new();
    let vifs = [Vif::new("fw", 1, &namespace), Vif::new("fw", 2, &namespace)];
    let state = daemon.file().with_extension("db");
    let empty = daemon.try_command(&["run", "--state", state.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&empty.stderr);
    assert_eq!(empty.status.code(), Some(2), "{said}");
    assert!(said.contains("--config FILE") && said.contains(state.to_str().unwrap()), "{said}");

    let text = config(&daemon.socket(), "", &[("net1", 1500)], &vifs);
    daemon.configure(&text.replacen("state = \"\"", &format!("state = {state:?}"), 1));
    daemon.start();
    let names = |daemon: &Daemon| daemon.ports().into_iter().map(|port| port.port_id).collect::<Vec<_>>();
    let before = (names(&daemon), namespace.links());
    daemon.stop(Signal::KILL);
    std::fs::remove_file(daemon.file()).unwrap();
    daemon.start_over("--state", &state);
    assert_eq!((names(&daemon), namespace.links()), before);
    assert!(daemon.ports().iter().all(|port| port.status == Status::Active));
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

#[test]
fn an_invalid_configuration_opens_nothing() {
    let Some(namespace) = Namespace::new() else { return };
    let daemon = Daemon::new();
    let vifs = [Vif::new("fw", 1, &namespace), Vif::new("fw", 2, &namespace)];
    let good = config(&daemon.socket(), "", &[("net1", 1500)], &vifs);
    daemon.configure(&good);
    assert_eq!(daemon.try_command(&["check", "FILE"]).status.code(), Some(0));
    assert!(!daemon.socket().exists());
    let file = daemon.file();
    for (from, to, key, value, remedy) in MISTAKES {
        assert!(good.contains(from), "there is no {from}");
        daemon.configure(&good.replacen(from, to, 1));
        let run = daemon.try_command(&["run", "--config", "FILE"]);
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{to}: {said}");
        for piece in [file.to_str().unwrap(), key, value, remedy] {
            assert!(said.contains(piece), "{to}: no {piece} in {said}");
        }
        assert_eq!(namespace.links(), ["lo"], "{to}");
        assert!(!daemon.socket().exists(), "{to}");
        let check = daemon.try_command(&["check", "FILE"]);
        assert_eq!((check.status.code(), check.stderr), (Some(2), run.stderr), "{to}");
    }
    daemon.configure("[switch");
    assert_eq!(daemon.try_command(&["run", "--config", "FILE"]).status.code(), Some(2));
    // A missing core is detected when it is used.
    daemon.configure(&good.replacen("state = \"\"", "state = \"\"\ncores = [1023]", 1));
    let run = daemon.try_command(&["run", "--config", "FILE"]);
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{said}");
    assert!([file.to_str().unwrap(), "switch.cores", "1023"].iter().all(|piece| said.contains(piece)), "{said}");
    assert_eq!(namespace.links(), ["lo"]);
}

/// Known and unknown unicast, broadcast, and frames that are dropped.
fn traffic(setup: &Setup) {
    let nics: Vec<Nic> = (0..setup.vifs.len()).map(|index| setup.nic(index)).collect();
    let stranger = Mac::from_bits(0x0200_0000_7777);
    for round in 0..50u8 {
        for (index, nic) in nics.iter().enumerate() {
            let (me, next) = (setup.vifs[index].mac, setup.vifs[(index + 1) % setup.vifs.len()].mac);
            for (to, from) in [(next, me), (Mac::BROADCAST, me), (stranger, me), (me, me), (next, stranger), (me, next)]
            {
                nic.send(&experiment(to, from, &[round; 100]));
            }
        }
    }
}

/// Waits until every port's frames are received and their outcome is counted.
fn all_counted(setup: &Setup) -> Vec<PortView> {
    let came = |port: &PortView| port.counts.rx_frames == 300;
    await_that("all frames", || Some(setup.daemon.await_idle()).filter(|ports| ports.iter().all(came)))
}

/// The metrics, by name and labels.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    assert!(text.ends_with("# EOF\n"), "{text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name, value.parse().unwrap())).collect()
}

/// Shows: REQ-50
#[test]
fn metrics_and_json_agree() {
    let Some(spaces) = (0..3).map(|_| Namespace::new()).collect::<Option<Vec<_>>>() else { return };
    // Each port in a VM of its own: siblings would receive loop probes between the two readings compared here.
    let vif = |(number, namespace)| Vif::new(&format!("fw-{number}"), number, namespace);
    let vifs: Vec<Vif> = (1..).zip(&spaces).map(vif).collect();
    // Another process may take the port between these two lines; several ports are tried.
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (daemon, address): (Daemon, SocketAddr) = await_that("a free port", || {
        let (address, mut daemon) = (free(), Daemon::new());
        let switch = format!("metrics = \"{address}\"");
        daemon.configure(&config(&daemon.socket(), &switch, &[("net1", 1500)], &vifs));
        daemon.spawn_over("--config", &daemon.file());
        let is_ready = |note: &str| note.lines().any(|line| line == "READY=1");
        while daemon.is_running() {
            if daemon.note_within(Timespec { tv_sec: 0, tv_nsec: 20_000_000 }).is_some_and(|note| is_ready(&note)) {
                return Some((daemon, address));
            }
        }
        // Another process may have taken it in the meantime; nothing else may keep the switch from starting.
        assert!(daemon.log().contains("in use"), "{}", daemon.log());
        None
    });
    let setup = Setup { daemon, vifs, spaces };
    traffic(&setup);
    let ports = all_counted(&setup);
    let drops: Vec<DropView> = setup.daemon.get("/v1/drops");
    assert!(ports.iter().all(|port| port.counts.drops["hairpin"] == 50), "{ports:?}");
    for text in [setup.daemon.page("/metrics"), page(TcpStream::connect(address).unwrap(), "/metrics")] {
        let samples = samples(&text);
        for port in &ports {
            let labels = format!("{{port=\"{}\",vm=\"{}\",network=\"net1\"}}", port.port_id, port.device_id);
            let said = |name: &str| samples[format!("vifswitch_port_{name}_total{labels}").as_str()] as u64;
            let counts = &port.counts;
            assert_eq!((said("receive_frames"), said("receive_bytes")), (counts.rx_frames, counts.rx_bytes));
            assert_eq!((said("transmit_frames"), said("transmit_bytes")), (counts.tx_frames, counts.tx_bytes));
            assert_eq!((said("forwarded_frames"), said("flooded_frames")), (counts.forwarded, counts.flooded));
            assert_eq!(said("flood_copies"), counts.copies);
            assert!((samples[format!("vifswitch_port_up{labels}").as_str()] - 1.0).abs() < f64::EPSILON);
        }
        for DropView { port_id, device_id, direction, reason, frames, .. } in &drops {
            let direction = if *direction == Direction::In { "in" } else { "out" };
            let labels = format!("port=\"{port_id}\",vm=\"{device_id}\",network=\"net1\"");
            let name = format!("vifswitch_port_drops_total{{{labels},direction=\"{direction}\",reason=\"{reason}\"}}");
            assert_eq!(samples[name.as_str()] as u64, *frames, "{name}");
        }
        let events = samples.keys().filter(|name| name.starts_with("vifswitch_port_drops_total")).count();
        assert_eq!(events, drops.len());
    }
    // The command line prints the same.
    let socket = setup.daemon.socket();
    let shown = setup.daemon.try_command(&["show", "ports", "--json", "--socket", socket.to_str().unwrap()]);
    assert_eq!(serde_json::from_slice::<Vec<PortView>>(&shown.stdout).unwrap(), ports);
}

/// The reported counters account for every frame.
fn every_frame_is_counted(kind: SetupOptions) {
    let Some(setup) = Setup::new(kind, &["a", "a", "b", "b", "c"]) else { return };
    traffic(&setup);
    let ports = all_counted(&setup);
    let drops: Vec<DropView> = setup.daemon.get("/v1/drops");
    let dropped = |port: &PortView, way| -> u64 {
        let at = drops.iter().filter(|drop| drop.port_id == port.port_id && drop.direction == way);
        at.map(|drop| drop.frames).sum()
    };
    for port in &ports {
        let (counts, [died_in, died_out]) =
            (&port.counts, [Direction::In, Direction::Out].map(|way| dropped(port, way)));
        assert_eq!(counts.rx_frames, counts.forwarded + counts.flooded + died_in, "{port:?}");
        assert_eq!(counts.drops.values().sum::<u64>(), died_in + died_out);
        assert_eq!(counts.copies, counts.flooded * 4, "{port:?}");
    }
    let expected: u64 = ports.iter().map(|port| port.counts.forwarded + port.counts.copies + port.counts.probes).sum();
    let went: u64 = ports.iter().map(|port| port.counts.tx_frames + dropped(port, Direction::Out)).sum();
    assert_eq!((expected, went), sums(&ports));
    assert_eq!(expected, went);
}

/// Shows: REQ-50
#[test]
fn every_frame_is_counted_on_one_worker() {
    every_frame_is_counted(PLAIN);
}

/// Shows: REQ-50
#[test]
fn every_frame_is_counted_on_two_workers() {
    let Some(switch) = two_workers() else { return };
    every_frame_is_counted(SetupOptions { switch, ..PLAIN });
    every_frame_is_counted(SetupOptions { switch, device: ", queues = 2", ..PLAIN });
}

#[test]
fn an_idle_switch_sleeps() {
    let Some(setup) = Setup::new(PLAIN, &["a", "b"]) else { return };
    let look = || -> WorkerView { setup.daemon.workers().remove(0) };
    let nics = [setup.nic(0), setup.nic(1)];
    let mut before = look();
    for round in 0..20 {
        setup.send_and_await((0, &nics[0]), (1, &nics[1]), &format!("wake up {round}"));
        let after = await_that("sleep", || Some(look()).filter(|now| now.sleeps > before.sleeps));
        let (polls, sleeps) = (after.polls - before.polls, after.sleeps - before.sleeps);
        // The worker may poll for some microseconds before it sleeps; a debug build is slow.
        assert!(polls < 2000 * sleeps, "{polls} polls for {sleeps} sleeps");
        before = after;
    }
}

#[test]
fn a_busy_switch_does_not_sleep() {
    let Some(setup) = Setup::new(SetupOptions { switch: "poll = \"busy\"", ..PLAIN }, &["a", "b"]) else { return };
    let first = setup.daemon.workers().remove(0).polls;
    let grown = |worker: &WorkerView| worker.polls > first + 10_000;
    let worker = await_that("polls", || Some(setup.daemon.workers().remove(0)).filter(grown));
    assert_eq!((worker.sleeps, worker.poll.as_str()), (0, "busy"));
}
