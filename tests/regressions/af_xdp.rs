//! Errors of sends by AF_XDP: whatever the kernel returns, each frame is transmitted soon or dropped with its true
//! reason. Needs root; makes its own namespaces; some tests need strace.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vifswitch::wire::Mac;

use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions};
use support::host::{Namespace, await_that};

/// Length of the frames.
const LEN: usize = 60;

/// Numbers of the last frames start here.
const LAST: u64 = 1 << 40;

/// Return values injected into a worker's send calls, until dropped.
struct Answers(Child);

impl Answers {
    /// `inject` in the notation of strace. Prints the reason and returns `None` without strace.
    fn inject(daemon: &Daemon, inject: &str) -> Option<Answers> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let is_worker = |task: &std::path::Path| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "vifswitch-w0")
        };
        let worker = tasks.map(|task| task.unwrap().path()).find(|task| is_worker(task)).unwrap();
        let worker = worker.file_name().unwrap().to_str().unwrap().to_owned();
        let mut command = Command::new("strace");
        command.args([
            "-o",
            "/dev/null",
            "-e",
            "trace=sendto",
            "-e",
            &format!("inject=sendto:{inject}"),
            "-p",
            &worker,
        ]);
        let Ok(mut child) = command.stderr(Stdio::piped()).spawn() else {
            eprintln!("skipped: needs strace");
            return None;
        };
        let mut said = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "{said}");
        Some(Answers(child))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        // SIGKILL would leave the traced process stopped; on SIGTERM strace detaches.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// Two VMs on AF_XDP.
fn setup() -> Option<Setup> {
    let setup = Setup::new(SetupOptions { on: &[DeviceKind::Xdp], ..PLAIN }, &["a", "b"])?;
    setup.vifs.iter().for_each(|vif| drop(shown(&setup.daemon, vif, |port| port["status"] == "ACTIVE")));
    Some(setup)
}

/// Waits until the port is as `wanted`, and returns it as JSON.
fn shown(daemon: &Daemon, vif: &Vif, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    await_that(&format!("{} as expected", vif.port), || {
        let all: Value = serde_json::from_str(&daemon.done(&["show", "ports", "--json"], "")).unwrap();
        last = all.as_array().unwrap().iter().find(|port| port["port_id"] == vif.port.as_str())?.clone();
        wanted(&last).then(|| last.clone())
    })
}

fn number(port: &Value, counter: &str) -> u64 {
    port[counter].as_u64().unwrap_or_default()
}

fn frame(to: Mac, from: Mac, number: u64) -> Vec<u8> {
    experiment(to, from, &[&number.to_be_bytes()[..], &[0; LEN - 22]].concat())
}

/// A device is full for a while: frames wait in its ring, and no event tells when there is room again.
#[test]
fn frames_waiting_for_room_leave_while_their_worker_sleeps() {
    let Some(setup) = setup() else { return };
    let (from, to) = (setup.nic(0), setup.nic(1));
    setup.send_and_await((0, &from), (1, &to), "hello");
    // More often than a worker that wakes once a second retries within the timeout of this test.
    let Some(_answers) = Answers::inject(&setup.daemon, "error=EAGAIN:when=1..300") else { return };
    for number in 0..3 {
        from.send(&frame(setup.vifs[1].mac, setup.vifs[0].mac, number));
    }
    for number in 0..3 {
        assert_eq!(to.take(), frame(setup.vifs[1].mac, setup.vifs[0].mac, number));
    }
    let port = shown(&setup.daemon, &setup.vifs[1], |port| number(port, "tx_frames") == 4);
    assert_eq!(port["drops"], serde_json::json!({}));
}

/// A single error costs no frame; a netdev that is down costs the frames sent meanwhile.
#[test]
fn after_any_send_error_later_frames_are_sent() {
    let Some(setup) = setup() else { return };
    let (from, to) = (setup.nic(0), setup.nic(1));
    let (there, here) = (setup.vifs[1].mac, setup.vifs[0].mac);
    let mut sent = 0;
    let errors = ["EAGAIN", "ENOBUFS", "ENOMEM", "EMSGSIZE", "EINVAL", "EINTR", "EIO", "ENXIO", "ENODEV", "ENETDOWN"];
    for error in errors {
        let before = shown(&setup.daemon, &setup.vifs[1], |_| true);
        // A netdev that is gone returns its error each time.
        let times = if matches!(error, "ENXIO" | "ENODEV") { "1" } else { "1..3" };
        let Some(_answers) = Answers::inject(&setup.daemon, &format!("error={error}:when={times}")) else { return };
        for number in sent..sent + 40 {
            from.send(&frame(there, here, number));
        }
        // Further single frames show that transmission continues.
        let last = frame(there, here, LAST + sent);
        let mut came = Vec::new();
        await_that(error, || {
            from.send(&last);
            came.extend(to.rest().iter().map(|frame| u64::from_be_bytes(frame[14..22].try_into().unwrap())));
            came.contains(&(LAST + sent)).then_some(())
        });
        let distinct: Vec<u64> = came.iter().copied().filter(|&number| number < LAST).collect();
        assert!(distinct.is_sorted_by(|one, next| one < next), "{error}: reordered or duplicated: {distinct:?}");
        sent += 40;
        let port = shown(&setup.daemon, &setup.vifs[1], |port| {
            let forwarded = number(&shown(&setup.daemon, &setup.vifs[0], |_| true), "forwarded");
            number(port, "tx_frames") + number(&port["drops"], "link_down") == forwarded
        });
        let lost = number(&port["drops"], "link_down") - number(&before["drops"], "link_down");
        assert!(distinct.len() as u64 + lost >= 40, "{error}: {distinct:?} received, {lost} dropped");
        assert!(lost == 0 || error == "ENETDOWN", "{error}: {port}");
        assert_eq!(number(&port["drops"], "device_full"), 0, "{error}");
    }
}

/// A netdev without carrier drops each frame. The drop reason is link down, not device full.
#[test]
fn frames_to_a_guest_interface_that_is_down_have_that_drop_reason() {
    let Some(setup) = setup() else { return };
    let (from, to) = (setup.nic(0), setup.nic(1));
    setup.send_and_await((0, &from), (1, &to), "hello");
    setup.spaces[1].ip(&format!("link set dev {} down", setup.vifs[1].name));
    shown(&setup.daemon, &setup.vifs[1], |port| port["status"] == "DOWN");
    let before = shown(&setup.daemon, &setup.vifs[1], |_| true);
    for number in 0..1000 {
        from.send(&frame(setup.vifs[1].mac, setup.vifs[0].mac, number));
    }
    shown(&setup.daemon, &setup.vifs[0], |port| number(port, "rx_frames") == 1001);
    let port = shown(&setup.daemon, &setup.vifs[1], |port| number(&port["drops"], "link_down") == 1000);
    assert_eq!(port["drops"], serde_json::json!({ "link_down": 1000 }));
    for counter in ["tx_frames", "tx_bytes"] {
        assert_eq!(port[counter], before[counter], "{counter}: no frame was transmitted");
    }
    // The first later frame passes, and no frame has waited.
    setup.spaces[1].ip(&format!("link set dev {} up", setup.vifs[1].name));
    shown(&setup.daemon, &setup.vifs[1], |port| port["status"] == "ACTIVE");
    to.rest();
    let later = frame(setup.vifs[1].mac, setup.vifs[0].mac, 1000);
    await_that("a frame", || {
        from.send(&later);
        let came = to.rest();
        assert!(came.iter().all(|frame| *frame == later));
        came.first().map(drop)
    });
}

/// A tap queues a fixed number of frames for its VMM and drops later ones; they are counted to the frame and byte.
#[test]
fn frames_dropped_by_an_unread_tap_do_not_count_as_sent() {
    let (Some(guest), Some(host)) = (Namespace::new(), Namespace::new()) else { return };
    let held = Nic::owned_tap(&host, "held");
    host.ip("link set dev held up");
    let mut vifs = [Vif::new("a", 1, &guest), Vif { kind: "xdp", name: "held".into(), ..Vif::new("b", 2, &host) }];
    vifs[1].more = "port_security = \"off\"".into();
    let daemon = Daemon::over(&vifs);
    vifs.iter().for_each(|vif| drop(shown(&daemon, vif, |port| port["status"] == "ACTIVE")));
    let from = Nic::new(&guest, "tap1");
    let sent = 2000;
    for number in 0..sent {
        from.send(&frame(vifs[1].mac, vifs[0].mac, number));
    }
    let port =
        shown(&daemon, &vifs[1], |port| number(port, "tx_frames") + number(&port["drops"], "device_full") == sent);
    let went = number(&port, "tx_frames");
    assert!(went > 0 && went < sent, "{port}");
    assert_eq!(port["drops"], serde_json::json!({ "device_full": sent - went }));
    assert_eq!(number(&port, "tx_bytes"), went * LEN as u64, "{port}");
    let came = held.rest();
    assert_eq!(came.len() as u64, went);
    let expected: Vec<_> = (0..went).map(|number| frame(vifs[1].mac, vifs[0].mac, number)).collect();
    assert!(came == expected, "the first ones");
    // The queue has room again.
    let later = frame(vifs[1].mac, vifs[0].mac, sent);
    from.send(&later);
    assert_eq!(held.take(), later);
}

/// Frames in the ring of a deleted netdev are lost and counted.
#[test]
fn frames_waiting_in_a_deleted_netdev_are_counted() {
    let Some(setup) = setup() else { return };
    let (from, to) = (setup.nic(0), setup.nic(1));
    setup.send_and_await((0, &from), (1, &to), "hello");
    let Some(answers) = Answers::inject(&setup.daemon, "error=EAGAIN:when=1+") else { return };
    for number in 0..5 {
        from.send(&frame(setup.vifs[1].mac, setup.vifs[0].mac, number));
    }
    shown(&setup.daemon, &setup.vifs[1], |port| number(port, "tx_frames") == 6);
    delete_netdev(&setup);
    let port = shown(&setup.daemon, &setup.vifs[1], |port| port["status"] == "DOWN");
    drop(answers);
    assert_eq!(port["tx_lost"], 5, "{port}");
    assert_eq!(to.rest(), [[0; 0]; 0]);
}

/// Deletes the netdev of the second port.
fn delete_netdev(setup: &Setup) {
    let host = setup.spaces.last().unwrap();
    host.ip(&format!("link del dev {}", setup.vifs[1].name));
}

/// A netdev whose driver runs no XDP programs is bound in generic mode, after the driver was tried.
#[test]
fn a_netdev_whose_driver_runs_no_programs_is_bound_in_generic_mode() {
    let Some(host) = Namespace::new() else { return };
    host.ip("link add vx0 type vxlan id 5 dstport 4789 local 127.0.0.1 remote 127.0.0.1");
    host.ip("link set dev vx0 up");
    let vif = Vif { kind: "xdp", name: "vx0".into(), ..Vif::new("a", 1, &host) };
    let daemon = Daemon::over(std::slice::from_ref(&vif));
    let port = shown(&daemon, &vif, |port| port["status"] == "ACTIVE");
    assert_eq!(port["status_reason"], "generic copy, as vxlan has no zero-copy, vxlan runs no XDP programs");
}
