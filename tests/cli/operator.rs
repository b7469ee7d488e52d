//! Changes of a running switch by its commands, over real taps. Needs root; makes its own namespaces.

use std::time::Duration;

use hyper::Method;
use rustix::process::Signal;
use support::host::daemon::{Daemon, Vif, attachment, config, keeping};
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, guests, pass};
use support::host::streams::{Gaps, Stream, Streams, assert_shortest_within, assert_within};
use support::host::{Namespace, await_that};
use vifswitch::control::api::client::{Client, Error};
use vifswitch::control::api::responses::{PortView, StationKind, StationView, Status};
use vifswitch::control::state::events::{Event, EventKind};
use vifswitch::sys::link;
use vifswitch::sys::netns::{Netns, within};
use vifswitch::time;
use vifswitch::wire::{Mac, Probe};

/// A switch with a state, these ports on net1 and none on net2.
fn with_state(vifs: &[Vif]) -> Daemon {
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500), ("net2", 1500)], vifs);
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    daemon
}

fn shown(daemon: &Daemon) -> Vec<PortView> {
    serde_json::from_str(&daemon.done(&["show", "ports", "--json"], "")).unwrap()
}

/// The same without loop probes of siblings, whose number depends on time.
fn but_probes(mut ports: Vec<PortView>) -> Vec<PortView> {
    for counts in ports.iter_mut().map(|port| &mut port.counts) {
        counts.tx_bytes -= counts.probes * Probe::LEN as u64;
        counts.tx_frames -= std::mem::take(&mut counts.probes);
    }
    ports
}

fn port(vif: &Vif) -> serde_json::Value {
    serde_json::to_value(support::host::inside::ports(std::slice::from_ref(vif))[0].to_raw()).unwrap()
}

/// Two, three and eight siblings in one request keep its order; a duplicate port is refused and changes nothing.
///
/// Shows: REQ-01, REQ-02, AT-01
#[test]
fn siblings_are_attached_in_one_request() {
    let Some(namespace) = Namespace::new() else { return };
    let daemon = with_state(&[]);
    let client = Client::new(daemon.socket());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let attach = |vm: &str, body: serde_json::Value| {
        runtime.block_on(client.request(Method::POST, &format!("/v1/vms/{vm}/ports"), Some(&body)))
    };
    let mut number = 0;
    let mut there = Vec::new();
    for siblings in [2u8, 3, 8] {
        let vm = format!("vm-{siblings}");
        let mut vifs: Vec<Vif> = (0..siblings)
            .map(|_| {
                number += 1;
                Vif::new(&vm, number, &namespace)
            })
            .collect();
        // Not in the order of numbers, and with a port on another network in the middle.
        vifs.reverse();
        vifs.swap(0, usize::from(siblings) / 2);
        vifs.insert(1, Vif::new(&vm, 100 + siblings, &namespace).on("net2"));

        let mut twice = vifs.clone();
        let again = Vif { mac: Mac::from_bits(0x0200_0000_0999), name: "again".into(), ..vifs[0].clone() };
        twice.push(again);
        let (before, links) = (but_probes(shown(&daemon)), namespace.links());
        let refused = attach(&vm, twice.iter().map(port).collect()).unwrap_err();
        assert!(
            matches!(&refused, Error::Refused { status: 400, kind, .. } if kind == "duplicate_port"),
            "{refused:?}"
        );
        assert_eq!((but_probes(shown(&daemon)), namespace.links()), (before, links), "nothing has changed");

        attach(&vm, vifs.iter().map(port).collect()).unwrap();
        let ports: Vec<PortView> = shown(&daemon).into_iter().filter(|port| port.device_id == vm).collect();
        assert_eq!(ports.len(), vifs.len());
        for (position, (port, vif)) in ports.iter().zip(&vifs).enumerate() {
            let found = (port.port_id.as_str(), port.network_id.as_str(), port.mac_address.as_str(), port.position);
            assert_eq!(found, (vif.port.as_str(), vif.network.as_str(), vif.mac.to_string().as_str(), position));
            assert_eq!(port.status, Status::Active);
        }
        there.extend(vifs.clone());
        // Each port on net1 receives it once, ports on net2 do not.
        let nics: Vec<Nic> = there.iter().map(|vif| Nic::new(&namespace, &vif.name)).collect();
        let speaker = there.len() - 1;
        let all = experiment(Mac::BROADCAST, there[speaker].mac, b"all");
        nics[speaker].send(&all);
        for (nic, vif) in nics.iter().zip(&there).take(speaker) {
            if vif.network == "net1" {
                assert_eq!(nic.take(), all);
            }
        }
        daemon.await_idle();
        assert!(nics.iter().all(|nic| nic.rest().is_empty()));
        // An attached port is in use.
        let refused = attach("other", port(&vifs[0])).unwrap_err();
        assert!(matches!(&refused, Error::Refused { status: 409, kind, .. } if kind == "port_in_use"), "{refused:?}");
        let refused = daemon.run_command(&["attach", "-"], &attachment(&Vif { vm: "other".into(), ..vifs[0].clone() }));
        assert_eq!(refused.status.code(), Some(1));
    }
}

/// Five ports not in the order of addresses; the third is detached, another attached, and the switch restarted.
///
/// Shows: REQ-03, AT-02
#[test]
fn the_order_of_ports_is_kept_over_changes_and_restarts() {
    let Some(namespace) = Namespace::new() else { return };
    let order = [3, 5, 1, 4, 2];
    let vifs = order.map(|number| Vif::new("fw", number, &namespace));
    let mut daemon = with_state(&[]);
    vifs.iter().for_each(|vif| drop(daemon.attach(vif)));
    let names = |numbers: &[u8]| numbers.iter().map(|number| format!("port-{number}")).collect::<Vec<_>>();
    assert_eq!(daemon.listed(), names(&order));
    daemon.detach(&vifs[2]);
    assert_eq!(daemon.listed(), names(&[3, 5, 4, 2]));
    let new = Vif { mac: Mac::from_bits(0x0200_0000_0001), ..Vif::new("fw", 9, &namespace) };
    daemon.attach(&new);
    daemon.done(&["set", "port-5", "admin_state_up=false"], "");
    daemon.done(&["set", "port-5", "admin_state_up=true"], "");
    for signal in [Signal::TERM, Signal::KILL] {
        assert_eq!(daemon.listed(), names(&[3, 5, 4, 2, 9]));
        daemon.stop(signal);
        daemon.start();
    }
    let ports = shown(&daemon);
    assert_eq!(daemon.listed(), names(&[3, 5, 4, 2, 9]));
    assert!(ports.iter().enumerate().all(|(at, port)| port.position == at && port.status == Status::Active));
    assert_eq!(namespace.links(), ["lo", "tap2", "tap3", "tap4", "tap5", "tap9"]);
}

/// Netdevs of the switch are removed, foreign ones are free again.
fn assert_detached(guest: &Namespace, vif: &Vif) {
    if vif.kind == "tap" {
        assert_eq!(guest.links(), ["lo"]);
    } else {
        let link = within(&Netns::Named(vif.netns.clone()), || link::find(&vif.name)).unwrap().unwrap().unwrap();
        assert_eq!(link.xdp, None, "{vif:?}");
    }
}

/// A VM gets a second interface, uses both, and loses the first; fifty times, under traffic of two others.
///
/// Shows: REQ-07, AT-05
#[test]
fn interfaces_are_replaced_under_traffic_without_frame_loss() {
    interfaces_are_exchanged(&[DeviceKind::Tap], 50);
}

/// The same, fewer times, with ports of every kind.
///
/// Shows: REQ-07, AT-05
#[test]
fn interfaces_on_foreign_netdevs_are_replaced_under_traffic_without_frame_loss() {
    interfaces_are_exchanged(&[DeviceKind::Tap, DeviceKind::Xdp, DeviceKind::Packet, DeviceKind::Xdp], 10);
    interfaces_are_exchanged(&[DeviceKind::Tap, DeviceKind::Packet, DeviceKind::Xdp, DeviceKind::Tap], 10);
}

fn interfaces_are_exchanged(on: &[DeviceKind], cycles: u32) {
    let Some((spaces, vifs)) = guests(&["a", "b", "fw", "fw"], on, 1500) else { return };
    let daemon = with_state(&vifs[..3]);
    let stream = Stream::between((&spaces[0], &vifs[0]), (&spaces[1], &vifs[1]));
    let Some(mut streams) = Streams::through(&daemon, 10_000, vec![stream]) else { return };
    let nic = Nic::new(&spaces[1], &vifs[1].name);
    let (mut first, mut second) = (2, 3);
    let mut gaps = Vec::new();
    for round in 0..5 {
        gaps.push(streams.gaps_during(|| {
            for cycle in 0..cycles / 5 {
                let tale = format!("{round} {cycle}");
                let said = daemon.attach(&vifs[second]);
                assert!(said.contains("is ACTIVE"), "{said}");
                let pair = [first, second].map(|at| Nic::new(&spaces[at], &vifs[at].name));
                // The first frame arrives, and siblings exchange frames through the switch.
                pass((&pair[0], &vifs[first]), (&pair[1], &vifs[second]), &format!("there {tale}"));
                pass((&pair[1], &vifs[second]), (&pair[0], &vifs[first]), &format!("back {tale}"));
                let all = experiment(Mac::BROADCAST, vifs[second].mac, format!("all {tale}").as_bytes());
                pair[1].send(&all);
                assert_eq!(pair[0].take(), all);
                let listed = [0, 1, first, second].map(|at| vifs[at].port.clone());
                assert_eq!(daemon.listed(), listed);
                daemon.detach(&vifs[first]);
                assert_detached(&spaces[first], &vifs[first]);
                // The second port is unaffected.
                pass((&nic, &vifs[1]), (&pair[1], &vifs[second]), &format!("still here {tale}"));
                assert_eq!(pair[1].rest().len(), 0, "each frame arrived once");
                (first, second) = (second, first);
            }
        }));
    }
    Gaps::assert_all_smooth(&gaps, &format!("{on:?}: interfaces replaced"));
    let frames = gaps.iter().map(|gaps| gaps.sent).sum::<u64>();
    // A worker counts a frame after sending it. Detached ports have no counters, so that sums do not balance here.
    let ports = await_that("all frames", || {
        Some(daemon.ports()).filter(|ports| ports[0].counts.rx_frames >= frames && ports[1].counts.tx_frames >= frames)
    });
    assert!(ports.iter().all(|port| port.counts.drops.is_empty()), "{ports:?}");
    assert_eq!(ports[0].counts.rx_frames, frames, "no frame was lost before the switch");
}

/// A port moves from one VM to another.
///
/// Shows: REQ-07, AT-15
#[test]
fn a_port_is_moved_to_another_vm() {
    a_port_is_given(&[DeviceKind::Tap]);
}

/// Shows: AT-15
#[test]
fn a_port_on_a_foreign_netdev_is_moved_to_another_vm() {
    a_port_is_given(&[DeviceKind::Tap, DeviceKind::Xdp, DeviceKind::Packet]);
    a_port_is_given(&[DeviceKind::Xdp, DeviceKind::Packet, DeviceKind::Xdp]);
    a_port_is_given(&[DeviceKind::Packet, DeviceKind::Xdp, DeviceKind::Tap]);
}

fn a_port_is_given(on: &[DeviceKind]) {
    let Some((spaces, vifs)) = guests(&["a", "one", "two"], on, 1500) else { return };
    let open = |vif: &Vif| Vif { more: "port_security = \"off\"".into(), ..vif.clone() };
    // The port at the old VM, and the same port at the new one.
    let (one, two) = (open(&vifs[1]), Vif { port: vifs[1].port.clone(), mac: vifs[1].mac, ..open(&vifs[2]) });
    let daemon = with_state(&[vifs[0].clone(), one.clone()]);
    let nic = Nic::new(&spaces[0], &vifs[0].name);
    let wild = Mac::from_bits(0x0a00_0000_0001);
    let learned = || -> Vec<String> {
        let stations: Vec<StationView> = daemon.get("/v1/fdb");
        stations.into_iter().filter(|station| station.kind == StationKind::Learned).map(|s| s.mac_address).collect()
    };
    let mut took = Vec::new();
    let moves = [(&one, &two, (1, 2)), (&two, &one, (2, 1))];
    for (was, is, (old, new)) in [moves; 2].into_iter().flatten() {
        let there = Nic::new(&spaces[old], &was.name);
        let hello = experiment(vifs[0].mac, wild, was.vm.as_bytes());
        there.send(&hello);
        assert_eq!(nic.take(), hello);
        assert_eq!(learned(), vec![wild.to_string()]);
        drop(there);
        // As long as two commands that change nothing.
        let start = time::now();
        (0..2).for_each(|_| drop(daemon.done(&["show", "ports"], "")));
        let control = time::now().since(start);
        let start = time::now();
        daemon.detach(was);
        let detached = time::now().since(start);
        assert_eq!(learned(), Vec::<String>::new());
        assert_detached(&spaces[old], was);
        let start = time::now();
        daemon.attach(is);
        // The first frame arrives.
        let here = Nic::new(&spaces[new], &is.name);
        pass((&nic, &vifs[0]), (&here, is), "it is mine now");
        took.push((detached + time::now().since(start), control));
        pass((&here, is), (&nic, &vifs[0]), "and speaks");
        assert_eq!(learned(), Vec::<String>::new());
        let port = daemon.port(is);
        assert_eq!((port.device_id.as_str(), port.status), (is.vm.as_str(), Status::Active));
    }
    assert_shortest_within(&format!("{on:?}: moved to another VM"), Duration::from_millis(100), &took);
}

fn events(daemon: &Daemon, vif: &Vif) -> Vec<Event> {
    daemon.events().into_iter().filter(|event| event.ports == [vif.port.clone()]).collect()
}

/// A device that disappears and reappears causes one event each, and no other event.
///
/// Shows: REQ-08, REQ-51
#[test]
fn a_lost_device_and_its_return_are_one_event_each() {
    let Some(spaces) = (0..2).map(|_| Namespace::new()).collect::<Option<Vec<_>>>() else { return };
    spaces[1].ip("tuntap add dev tap2 mode tap");
    // A tap of the switch, which it creates again, and a foreign tap, which the test creates again.
    let vifs: Vec<Vif> = (1..).zip(&spaces).map(|(number, namespace)| Vif::new("fw", number, namespace)).collect();
    let daemon = with_state(&vifs);
    let kinds = |vif: &Vif| events(&daemon, vif).iter().map(|event| event.kind).collect::<Vec<_>>();
    let (up, down) = (EventKind::PortUp, EventKind::PortDown);
    let mut wanted = vec![up];
    let again = |vif: &Vif, wanted: &mut Vec<EventKind>| {
        wanted.extend([down, up]);
        let start = time::now();
        await_that("down and up", || (kinds(vif).len() >= wanted.len()).then_some(()));
        daemon.await_active(vif);
        let took = time::now().since(start);
        assert_eq!(kinds(vif), *wanted, "{:?}", events(&daemon, vif));
        // As long as a request that changes nothing.
        let start = time::now();
        drop(events(&daemon, vif));
        let control = time::now().since(start);
        assert_within(&format!("{} is opened again", vif.name), Duration::from_secs(1), took, control);
    };
    for _ in 0..3 {
        spaces[0].ip("link del tap1");
        again(&vifs[0], &mut wanted);
    }
    for _ in 0..3 {
        spaces[0].delete();
        daemon.await_down(&vifs[0]);
        spaces[0].make();
        again(&vifs[0], &mut wanted);
    }
    let mut wanted = vec![up];
    for _ in 0..3 {
        spaces[1].ip("link del tap2");
        // By then the switch has tried to open the device again, which is no event.
        let names_it = |port: &PortView| port.status_reason.contains(&spaces[1].0);
        daemon.await_port("its name", &vifs[1], names_it);
        spaces[1].ip("tuntap add dev tap2 mode tap");
        again(&vifs[1], &mut wanted);
    }
}
