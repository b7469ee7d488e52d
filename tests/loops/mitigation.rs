//! Loop and storm mitigation as operators see it, on real devices: events, status, mitigation, restart, release by
//! hand. Needs root; makes its own namespaces.
use rustix::process::Signal;
use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, lay, on_every_kind};
use support::host::{Namespace, await_that};
use vifswitch::control::api::responses::{StationKind, StationView, Status};
use vifswitch::control::loops::status::{LoopKind, LoopStatus, StormStatus};
use vifswitch::control::state::events::{Event, EventKind};
use vifswitch::time::{rfc3339, wall};
use vifswitch::wire::Mac;

/// A VM with this many ports on net1, all in one namespace, and a VM with one port; the host's namespace is last.
fn siblings(on: DeviceKind, count: u8) -> Option<([Namespace; 3], Vec<Vif>)> {
    let spaces = [Namespace::new()?, Namespace::new()?, Namespace::new()?];
    let mut vifs: Vec<Vif> = (1..=count).map(|number| Vif::new("fw", number, &spaces[0])).collect();
    vifs.push(Vif::new("other", 9, &spaces[1]));
    if on != DeviceKind::Tap {
        for vif in &mut vifs {
            (vif.kind, vif.netns) = (on.kind(), spaces[2].0.clone());
            lay(vif, &spaces[usize::from(vif.vm == "other")], 1500);
        }
    }
    Some((spaces, vifs))
}

fn running(vifs: &[Vif]) -> Daemon {
    let daemon = Daemon::with("", &[("net1", 1500)], vifs);
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    daemon
}

/// Joins these interfaces in the guest by a bridge without spanning tree.
fn bridge(namespace: &Namespace, vifs: &[Vif]) {
    namespace.ip("link add br0 type bridge stp_state 0 mcast_snooping 0");
    vifs.iter().for_each(|vif| namespace.ip(&format!("link set dev {} master br0", vif.name)));
    namespace.ip("link set dev br0 up");
}

fn unbridge(namespace: &Namespace) {
    namespace.ip("link del dev br0");
}

fn events(daemon: &Daemon, kind: EventKind) -> Vec<Event> {
    daemon.events().into_iter().filter(|event| event.kind == kind).collect()
}

fn await_told(daemon: &Daemon, kind: EventKind) -> Event {
    await_that(&format!("{kind:?}"), || events(daemon, kind).pop())
}

fn loops(daemon: &Daemon) -> Vec<LoopStatus> {
    daemon.get("/v1/loops")
}

/// Waits until the loop's status is as `wanted`, and returns it.
fn await_loop(daemon: &Daemon, what: &str, wanted: impl Fn(&LoopStatus) -> bool) -> LoopStatus {
    await_that(what, || loops(daemon).into_iter().find(|of| of.active && wanted(of)))
}

fn ports(vifs: &[Vif]) -> Vec<String> {
    vifs.iter().map(|vif| vif.port.clone()).collect()
}

/// The loop is shown with all its ports, escalates, and is released by hand; it ends when no two ports are left.
///
/// Shows: REQ-42, REQ-51
#[test]
fn a_loop_is_reported_mitigated_and_released() {
    on_every_kind(|on| {
        // An even number and an odd one.
        let count = if on == DeviceKind::Xdp { 2 } else { 3 };
        let Some((spaces, vifs)) = siblings(on, count) else { return };
        let daemon = running(&vifs);
        let looped = &vifs[..usize::from(count)];
        bridge(&spaces[0], looped);
        let event = await_told(&daemon, EventKind::LoopStart);
        assert_eq!((event.vm.as_deref(), event.network.as_deref()), (Some("fw"), Some("net1")), "{event:?}");
        let all = await_loop(&daemon, "all of its ports", |of| of.ports == ports(looped));
        assert_eq!((all.kind, all.device_id.as_str()), (LoopKind::IntraVm, "fw"));
        assert!(looped.iter().all(|vif| all.text.contains(&vif.port)), "{}", all.text);
        let held = await_loop(&daemon, "level 2", |of| of.level == 2 && of.quarantined.len() == looped.len() - 1);
        assert_eq!(held.quarantined, ports(&looped[1..]), "the first port continues");
        assert_eq!(events(&daemon, EventKind::LoopLevel).len(), 1);
        assert_eq!(daemon.port(&vifs[0]).status, Status::Active);
        let port = daemon.port(&vifs[1]);
        assert_eq!(port.status, Status::Quarantined);
        assert!(port.status_reason.contains("release port-2"), "{}", port.status_reason);
        assert_eq!(port.status_code, "quarantined");
        // The loop still exists: once released it is detected again, from level 1.
        unbridge(&spaces[0]);
        assert!(daemon.done(&["release", "port-1"], "").contains("mitigation has ended"));
        daemon.await_active(&vifs[1]);
        assert_eq!(events(&daemon, EventKind::LoopStop).len(), 1);
        assert!(loops(&daemon).iter().all(|of| !of.active && of.ended.is_some()));
        assert!(daemon.done(&["release", "port-1"], "").contains("nothing"));
        bridge(&spaces[0], looped);
        let again = await_loop(&daemon, "the loop again", |_| true);
        assert_eq!((again.level, again.repeats), (1, 0));
        // By then each pair of ports was seen to be joined: while two remain, it is the same loop.
        await_loop(&daemon, "level 2 again", |of| of.level == 2);
        looped.iter().for_each(|vif| drop(daemon.detach(vif)));
        await_that("the end", || (events(&daemon, EventKind::LoopStop).len() == 2).then_some(()));
        assert_eq!(events(&daemon, EventKind::LoopStart).len(), 2);
    });
}

/// A switch that is killed restores its mitigation before it detects the loop again.
#[test]
fn mitigation_survives_a_restart() {
    on_every_kind(mitigation_is_restored);
}

fn mitigation_is_restored(on: DeviceKind) {
    let Some((spaces, vifs)) = siblings(on, 2) else { return };
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], &vifs);
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    bridge(&spaces[0], &vifs[..2]);
    let before = await_loop(&daemon, "level 2", |of| of.level == 2 && !of.quarantined.is_empty());
    for signal in [Signal::KILL, Signal::TERM] {
        // Killed before its state is stored, the switch would have to detect the loop again.
        daemon.await_stored("\"level\":\"all_but_one\"");
        let host = await_loop(&daemon, "the loop", |_| true);
        daemon.stop(signal);
        daemon.start();
        let back = loops(&daemon).into_iter().find(|of| of.active);
        let back = back.unwrap_or_else(|| panic!("after {signal:?}: {}", daemon.log()));
        assert_eq!((back.level, &back.quarantined, &back.ports), (host.level, &host.quarantined, &host.ports));
        assert_eq!(back.since[..19], before.since[..19], "the same loop");
        assert_eq!(daemon.port(&vifs[1]).status, Status::Quarantined);
        let now = rfc3339(wall());
        await_loop(&daemon, "a probe that returns after the restart", |of| of.seen > now);
    }
    assert_eq!(events(&daemon, EventKind::LoopStart).len(), 1, "over both restarts");
}

/// Shows: REQ-35
#[test]
fn a_port_that_storms_can_be_disabled_and_recovers() {
    on_every_kind(a_storming_port_is_disabled);
}

fn a_storming_port_is_disabled(on: DeviceKind) {
    let Some((_spaces, mut vifs)) = siblings(on, 1) else { return };
    vifs[0].more =
        "storm = { broadcast = { pps = 100, burst = 100, action = \"disable\", recovery_seconds = 2 } }".into();
    let daemon = running(&vifs);
    let nic = Nic::new(&_spaces[0], &vifs[0].name);
    (0..300u16).for_each(|number| nic.send(&experiment(Mac::BROADCAST, vifs[0].mac, &number.to_be_bytes())));
    let port = daemon.await_port("QUARANTINED", &vifs[0], |port| port.status == Status::Quarantined);
    assert!(port.status_reason.contains("broadcast storm"), "{}", port.status_reason);
    assert_eq!(port.status_code, "quarantined");
    let start = await_told(&daemon, EventKind::StormStart);
    assert_eq!((start.vm.as_deref(), &start.ports), (Some("fw"), &vec!["port-1".to_owned()]), "{start:?}");
    assert!(start.text.contains("100 frames a second (burst 100)"), "{}", start.text);
    let storms: Vec<StormStatus> = daemon.get("/v1/storms");
    assert!(storms.iter().any(|storm| storm.class == "broadcast" && storm.quarantined && storm.action == "disable"));
    daemon.await_active(&vifs[0]);
    assert!(await_told(&daemon, EventKind::StormStop).text.contains("is released"));
    await_that("the storm is over", || {
        let storms: Vec<StormStatus> = daemon.get("/v1/storms");
        storms.iter().all(|storm| !storm.active && storm.dropped_frames > 0).then_some(())
    });
    assert_eq!(events(&daemon, EventKind::StormStart).len(), 1);
}

/// One `spoofed_mac` event names the owner of the address.
///
/// Shows: REQ-40, REQ-51
#[test]
fn a_spoofed_address_is_reported_once_with_its_owner() {
    on_every_kind(a_spoofed_address_is_reported);
}

fn a_spoofed_address_is_reported(on: DeviceKind) {
    let Some((spaces, mut vifs)) = siblings(on, 1) else { return };
    vifs[0].more = "port_security = \"off\"".into();
    let daemon = running(&vifs);
    let nic = Nic::new(&spaces[0], &vifs[0].name);
    // An event of any kind shows that a tick has passed since the counters were first read.
    await_that("the guard", || {
        nic.send(&experiment(Mac::BROADCAST, vifs[1].mac, b"not mine"));
        events(&daemon, EventKind::SpoofedMac).pop()
    });
    let event = await_told(&daemon, EventKind::SpoofedMac);
    assert_eq!((event.vm.as_deref(), event.mac.clone()), (Some("fw"), Some(vifs[1].mac.to_string())), "{event:?}");
    assert!(event.text.contains("\"port-9\"") && event.text.contains("\"other\""), "{}", event.text);
    (0..10).for_each(|_| nic.send(&experiment(Mac::BROADCAST, vifs[1].mac, b"not mine")));
    await_that("the drop is counted", || (daemon.drops(&vifs[0], "foreign_source") > 10).then_some(()));
    assert_eq!(events(&daemon, EventKind::SpoofedMac).len(), 1);
}

/// A station that no port owns moves between two VMs: the fifth move is refused, and dampening is released by hand.
///
/// Shows: REQ-21
#[test]
fn a_flapping_station_is_dampened_at_its_port() {
    on_every_kind(a_flapping_station_is_dampened);
}

fn a_flapping_station_is_dampened(on: DeviceKind) {
    let Some((spaces, mut vifs)) = siblings(on, 1) else { return };
    vifs.iter_mut().for_each(|vif| vif.more = "port_security = \"off\"".into());
    let daemon = running(&vifs);
    let nics: Vec<Nic> = vifs.iter().zip(&spaces).map(|(vif, namespace)| Nic::new(namespace, &vif.name)).collect();
    let restless = Mac::from_bits(0x0200_0000_7777);
    let fdb = || -> Option<StationView> {
        let all: Vec<StationView> = daemon.get("/v1/fdb");
        all.into_iter().find(|station| station.mac_address == restless.to_string())
    };
    for round in 0..6 {
        nics[round % 2].send(&experiment(Mac::BROADCAST, restless, b"here"));
        let at = &vifs[round % 2].port;
        if round < 5 {
            await_that("the station is learned", || fdb().filter(|station| station.port_id == *at));
        }
    }
    let event = await_told(&daemon, EventKind::MacDampened);
    assert_eq!(event.mac, Some(restless.to_string()), "{event:?}");
    assert_eq!(event.ports, ["port-1", "port-9"], "it stays where it was: {event:?}");
    let dampened = await_that("dampened", || fdb().filter(|station| station.kind == StationKind::Dampened));
    assert_eq!(dampened.port_id, "port-1");
    nics[1].send(&experiment(Mac::BROADCAST, restless, b"here"));
    await_that("refused", || (daemon.drops(&vifs[1], "dampened_source") > 1).then_some(()));
    assert!(daemon.done(&["release", "port-9"], "").contains("no longer dampened"));
    assert!(fdb().is_none_or(|station| station.kind == StationKind::Learned));
    assert_eq!(events(&daemon, EventKind::MacDampened).len(), 1);
}
