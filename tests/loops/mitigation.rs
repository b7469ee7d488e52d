//! Loops and storms from the side of control, on real devices: what is told, shown and done, what survives a
//! restart, and what is lifted by hand.
use rustix::process::Signal;
use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::nic::{Nic, experiment};
use support::host::{Namespace, await_that};
use vifswitch::control::api::responses::{StationKind, StationView, Status};
use vifswitch::control::loops::status::{LoopKind, LoopStatus, StormStatus};
use vifswitch::control::state::events::{Event, EventKind};
use vifswitch::time::{rfc3339, wall};
use vifswitch::wire::Mac;

/// A VM with so many ports on net1, all in one namespace, and one with a port of its own.
fn siblings(count: u8) -> Option<([Namespace; 2], Vec<Vif>)> {
    let spaces = [Namespace::new()?, Namespace::new()?];
    let mut vifs: Vec<Vif> = (1..=count).map(|number| Vif::new("fw", number, &spaces[0])).collect();
    vifs.push(Vif::new("other", 9, &spaces[1]));
    Some((spaces, vifs))
}

fn running(vifs: &[Vif]) -> Daemon {
    let daemon = Daemon::with("", &[("net1", 1500)], vifs);
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    daemon
}

/// Lets a guest join these by a bridge without spanning tree.
fn bridge(namespace: &Namespace, vifs: &[Vif]) {
    namespace.ip("link add br0 type bridge stp_state 0");
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

/// The loop that there is, once it is as `wanted` has it.
fn await_loop(daemon: &Daemon, what: &str, wanted: impl Fn(&LoopStatus) -> bool) -> LoopStatus {
    await_that(what, || loops(daemon).into_iter().find(|of| of.active && wanted(of)))
}

fn ports(vifs: &[Vif]) -> Vec<String> {
    vifs.iter().map(|vif| vif.port.clone()).collect()
}

/// It is named with all its ports, goes up the ladder, and is lifted by hand; and it ends when there is nobody
/// left who could.
#[test]
fn a_loop_is_named_held_released_and_ends_with_its_ports() {
    for count in [2, 3] {
        let Some((spaces, vifs)) = siblings(count) else { return };
        let daemon = running(&vifs);
        let looped = &vifs[..usize::from(count)];
        bridge(&spaces[0], looped);
        let event = await_told(&daemon, EventKind::LoopStart);
        assert_eq!((event.vm.as_deref(), event.network.as_deref()), (Some("fw"), Some("net1")), "{event:?}");
        let all = await_loop(&daemon, "all of its ports", |of| of.ports == ports(looped));
        assert_eq!((all.kind, all.device_id.as_str()), (LoopKind::IntraVm, "fw"));
        assert!(looped.iter().all(|vif| all.text.contains(&vif.port)), "{}", all.text);
        let held = await_loop(&daemon, "level 2", |of| of.level == 2 && of.quarantined.len() == looped.len() - 1);
        assert_eq!(held.quarantined, ports(&looped[1..]), "the first one goes on");
        assert_eq!(events(&daemon, EventKind::LoopLevel).len(), 1);
        assert_eq!(daemon.port(&vifs[0]).status, Status::Active);
        let port = daemon.port(&vifs[1]);
        assert_eq!(port.status, Status::Quarantined);
        assert!(port.status_reason.contains("release port-2"), "{}", port.status_reason);
        // It is still there: let loose by hand, it is found again, and begins anew.
        unbridge(&spaces[0]);
        assert!(daemon.done(&["release", "port-1"], "").contains("nothing is done any more"));
        daemon.await_active(&vifs[1]);
        assert_eq!(events(&daemon, EventKind::LoopStop).len(), 1);
        assert!(loops(&daemon).iter().all(|of| !of.active && of.ended.is_some()));
        assert!(daemon.done(&["release", "port-1"], "").contains("nothing"));
        bridge(&spaces[0], looped);
        let again = await_loop(&daemon, "the loop again", |_| true);
        assert_eq!((again.level, again.repeats), (1, 0));
        // By then every two of them were seen to be joined: as long as two are left, it is the same loop.
        await_loop(&daemon, "level 2 again", |of| of.level == 2);
        looped.iter().for_each(|vif| drop(daemon.detach(vif)));
        await_that("the end", || (events(&daemon, EventKind::LoopStop).len() == 2).then_some(()));
        assert_eq!(events(&daemon, EventKind::LoopStart).len(), 2);
    }
}

/// A switch that is killed comes back with what it had put in force, and nobody has to find the loop first.
#[test]
fn measures_survive_a_restart_and_go_on() {
    let Some((spaces, vifs)) = siblings(2) else { return };
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], &vifs);
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    bridge(&spaces[0], &vifs[..2]);
    let before = await_loop(&daemon, "level 2", |of| of.level == 2 && !of.quarantined.is_empty());
    for signal in [Signal::KILL, Signal::TERM] {
        // What is written down is so within a moment, and killed in that moment it would be found again.
        await_that("what is kept", || daemon.state().exists().then_some(()));
        let host = await_loop(&daemon, "the loop", |_| true);
        daemon.stop(signal);
        daemon.start();
        let back = loops(&daemon).into_iter().find(|of| of.active);
        let back = back.unwrap_or_else(|| panic!("after {signal:?}: {}", daemon.log()));
        assert_eq!((back.level, &back.quarantined, &back.ports), (host.level, &host.quarantined, &host.ports));
        assert_eq!(back.since[..19], before.since[..19], "it is the same loop");
        assert_eq!(daemon.port(&vifs[1]).status, Status::Quarantined);
        let now = rfc3339(wall());
        await_loop(&daemon, "a probe that returns in this life", |of| of.seen > now);
    }
    assert_eq!(events(&daemon, EventKind::LoopStart).len(), 1, "in all three lives");
}

#[test]
fn a_port_that_storms_can_be_disabled_and_recovers() {
    let Some((_spaces, mut vifs)) = siblings(1) else { return };
    vifs[0].more =
        "storm = { broadcast = { pps = 100, burst = 100, action = \"disable\", recovery_seconds = 2 } }".into();
    let daemon = running(&vifs);
    let nic = Nic::new(&_spaces[0], &vifs[0].name);
    (0..300u16).for_each(|number| nic.send(&experiment(Mac::BROADCAST, vifs[0].mac, &number.to_be_bytes())));
    let port = daemon.await_port("QUARANTINED", &vifs[0], |port| port.status == Status::Quarantined);
    assert!(port.status_reason.contains("broadcast storm"), "{}", port.status_reason);
    let start = await_told(&daemon, EventKind::StormStart);
    assert_eq!((start.vm.as_deref(), &start.ports), (Some("fw"), &vec!["port-1".to_owned()]), "{start:?}");
    assert!(start.text.contains("100 frames a second (burst 100)"), "{}", start.text);
    let storms: Vec<StormStatus> = daemon.get("/v1/storms");
    assert!(storms.iter().any(|storm| storm.class == "broadcast" && storm.quarantined && storm.action == "disable"));
    daemon.await_active(&vifs[0]);
    assert!(await_told(&daemon, EventKind::StormStop).text.contains("is open again"));
    await_that("the storm is over", || {
        let storms: Vec<StormStatus> = daemon.get("/v1/storms");
        storms.iter().all(|storm| !storm.active && storm.suppressed > 0).then_some(())
    });
    assert_eq!(events(&daemon, EventKind::StormStart).len(), 1);
}

/// The guard says whose address it is, and once.
#[test]
fn a_foreign_source_is_told_once_and_its_owner_named() {
    let Some((spaces, mut vifs)) = siblings(1) else { return };
    vifs[0].more = "port_security = \"off\"".into();
    let daemon = running(&vifs);
    let nic = Nic::new(&spaces[0], &vifs[0].name);
    // A turn has passed, since the counters were first looked at, when there is an event of anything.
    await_that("the guard", || {
        nic.send(&experiment(Mac::BROADCAST, vifs[1].mac, b"not mine"));
        events(&daemon, EventKind::SpoofedMac).pop()
    });
    let event = await_told(&daemon, EventKind::SpoofedMac);
    assert_eq!((event.vm.as_deref(), event.mac.clone()), (Some("fw"), Some(vifs[1].mac.to_string())), "{event:?}");
    assert!(event.text.contains("\"port-9\"") && event.text.contains("\"other\""), "{}", event.text);
    (0..10).for_each(|_| nic.send(&experiment(Mac::BROADCAST, vifs[1].mac, b"not mine")));
    await_that("it is counted", || (daemon.drops(&vifs[0], "foreign_source") > 10).then_some(()));
    assert_eq!(events(&daemon, EventKind::SpoofedMac).len(), 1);
}

/// A station that nobody owns moves between two VMs: at the fifth time it stays, and is let go by hand.
#[test]
fn a_station_that_moves_too_often_is_dampened_where_it_was() {
    let Some((spaces, mut vifs)) = siblings(1) else { return };
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
            await_that("it is learned", || fdb().filter(|station| station.port_id == *at));
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
