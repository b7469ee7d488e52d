//! Trunks on real devices: a guest with VLAN interfaces on one network card, which has a port on each of several
//! networks. Needs root; makes its own namespaces.
use std::net::Ipv4Addr;

use rustix::process::Signal;
use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, guests, offloads, ping, tcp_both_ways};
use support::host::streams::{Gaps, Stream, Streams};
use support::host::vlans::VlanInterfaces;
use support::host::{Namespace, await_that};
use vifswitch::control::api::responses::Status;
use vifswitch::control::state::events::EventKind;
use vifswitch::wire::Mac;

const NETWORKS: &[(&str, u16)] = &[("net1", 1500), ("net2", 1500), ("net3", 1400), ("net4", 9000)];

/// A VM with a trunk, and one VM on each of its three networks.
struct Trunk {
    daemon: Daemon,
    spaces: Vec<Namespace>,
    /// The parent, then one VM per network.
    vifs: Vec<Vif>,
    /// On net2 and net3.
    subports: [Vif; 2],
}

/// `None` if the host cannot run the test.
fn trunk(on: DeviceKind) -> Option<Trunk> {
    let (spaces, mut vifs) = guests(&["fw", "a", "b", "c"], &[on], 1500)?;
    for (vif, network) in vifs.iter_mut().zip(["net1", "net1", "net2", "net3"]) {
        vif.network = network.into();
    }
    let subport =
        |number, network: &str, vlan| Vif::new("fw", number, &spaces[0]).on(network).subport_of(&vifs[0], vlan);
    let subports = [subport(11, "net2", 101), subport(12, "net3", 102)];
    let mut all = vifs.clone();
    all.extend(subports.iter().cloned());
    let daemon = Daemon::with("", NETWORKS, &all);
    vifs.iter().chain(&subports).for_each(|vif| drop(daemon.await_active(vif)));
    Some(Trunk { daemon, spaces, vifs, subports })
}

/// Adds an outer tag and inner tags.
fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], &tags.concat(), &frame[12..]].concat()
}

fn a_guest_talks_on_three_networks(on: DeviceKind) {
    let Some(trunk) = trunk(on) else { return };
    let Trunk { daemon, spaces, vifs, subports } = &trunk;
    let vlans = [(101, subports[0].mac), (102, subports[1].mac)];
    let interfaces = VlanInterfaces::new(&spaces[0], &vifs[0].name, &vlans);
    if interfaces.is_emulated() {
        spaces[1..4].iter().zip(&vifs[1..]).for_each(|(namespace, vif)| offloads(namespace, &vif.name, false));
    }
    let address = |network: u8, host: u8| Ipv4Addr::new(10, 5, network, host);
    for (network, device) in [(1, vifs[0].name.as_str()), (2, "v101"), (3, "v102")] {
        spaces[0].ip(&format!("addr add {}/24 dev {device}", address(network, 1)));
        let there = usize::from(network);
        spaces[there].ip(&format!("addr add {}/24 dev {}", address(network, 2), vifs[there].name));
        if network == 3 {
            spaces[0].ip("link set dev v102 mtu 1400");
            spaces[there].ip(&format!("link set dev {} mtu 1400", vifs[there].name));
        }
    }
    for network in 1..=3 {
        let there = &spaces[usize::from(network)];
        ping(&spaces[0], address(network, 2), 5);
        ping(there, address(network, 1), 5);
        tcp_both_ways(&spaces[0], there, address(network, 2), 1_000_000);
    }
    for vif in vifs.iter().chain(subports) {
        let counts = daemon.port(vif).counts;
        assert!(counts.rx_bytes > 1_000_000 && counts.tx_bytes > 1_000_000, "{on:?}, {}: {counts:?}", vif.port);
        assert_eq!(counts.drops, [].into(), "{on:?}, {}", vif.port);
    }

    drop(interfaces);

    // Other tags are dropped with their reason, at the parent.
    let (trunk, there) = (Nic::new(&spaces[0], &vifs[0].name), Nic::new(&spaces[2], &vifs[2].name));
    for id in [100u8, 103, 1] {
        trunk.send(&tagged(&experiment(Mac::BROADCAST, vifs[0].mac, &[0; 46]), &[[0x81, 0, 0, id]]));
    }
    await_that("the drops", || (daemon.drops(&vifs[0], "unknown_vlan") == 3).then_some(()));
    // Tags after a subport's tag pass unmodified in both directions.
    for inner in [&[][..], &[[0x88, 0xa8, 0, 7], [0x81, 0, 0xe0, 5]], &[[0x81, 0, 0, 102]]] {
        let payload: Vec<u8> = (0..100).collect();
        let here = tagged(&experiment(vifs[2].mac, subports[0].mac, &payload), inner);
        trunk.send(&tagged(&here, &[[0x81, 0, 0, 101]]));
        await_that("the frame from the trunk", || there.rest().contains(&here).then_some(()));
        let back = tagged(&experiment(subports[0].mac, vifs[2].mac, &payload), inner);
        there.send(&back);
        let expected = tagged(&back, &[[0x81, 0, 0, 101]]);
        await_that("the frame to the trunk", || trunk.rest().contains(&expected).then_some(()));
    }
    daemon.await_idle();
}

#[test]
fn a_guest_reaches_three_networks_over_a_tap() {
    a_guest_talks_on_three_networks(DeviceKind::Tap);
}

#[test]
fn a_guest_reaches_three_networks_over_af_xdp() {
    a_guest_talks_on_three_networks(DeviceKind::Xdp);
}

#[test]
fn a_guest_reaches_three_networks_over_af_packet() {
    a_guest_talks_on_three_networks(DeviceKind::Packet);
}

/// Subports, including the first and last, are added and removed while the parent and its neighbour lose nothing.
#[test]
fn subports_are_added_and_removed_under_traffic() {
    for on in DeviceKind::ALL {
        let Some((spaces, vifs)) = guests(&["fw", "a"], &[on], 1500) else { return };
        let daemon = Daemon::with("", NETWORKS, &vifs);
        vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
        let subports = [("net1", 101), ("net2", 4094)];
        let subports = (11..)
            .zip(subports)
            .map(|(number, (network, vlan))| Vif::new("fw", number, &spaces[0]).on(network).subport_of(&vifs[0], vlan));
        let subports: Vec<Vif> = subports.collect();
        let at = |index: usize| (&spaces[index], &vifs[index]);
        let both_ways = vec![Stream::between(at(0), at(1)), Stream::between(at(1), at(0))];
        let Some(mut streams) = Streams::through(&daemon, 2000, both_ways) else { return };
        let gaps = (0..5).map(|_| {
            streams.gaps_during(|| {
                for _ in 0..2 {
                    for subport in &subports {
                        daemon.attach(subport);
                        assert_eq!(daemon.port(subport).status, Status::Active);
                    }
                    subports.iter().for_each(|subport| drop(daemon.detach(subport)));
                }
            })
        });
        Gaps::assert_all_smooth(&gaps.collect::<Vec<_>>(), &format!("{on:?}: subports added and removed"));
        let events = daemon.events();
        let ups =
            |vif: &Vif| events.iter().filter(|e| e.kind == EventKind::PortUp && e.ports == [vif.port.clone()]).count();
        assert_eq!((ups(&vifs[0]), ups(&subports[0])), (1, 10), "{on:?}: its device stayed open");
        let drops = daemon.port(&vifs[0]).counts.drops;
        assert_eq!(drops, [].into(), "{on:?}");
        daemon.await_idle();
    }
}

#[test]
fn subports_are_shown_and_checked() {
    let Some(Trunk { mut daemon, spaces, vifs, subports }) = trunk(DeviceKind::Tap) else { return };
    let shown = daemon.done(&["show", "ports"], "");
    for piece in ["vlan 101 of port-1", "vlan 102 of port-1", "tap1@"] {
        assert!(shown.contains(piece), "{shown}");
    }
    let json: serde_json::Value = serde_json::from_str(&daemon.done(&["show", "ports", "--json"], "")).unwrap();
    let of = |id: &str| json.as_array().unwrap().iter().find(|port| port["port_id"] == id).unwrap();
    assert_eq!((&of("port-11")["parent"], &of("port-11")["vlan"]), (&"port-1".into(), &101.into()));
    assert_eq!((&of("port-11")["device"]["name"], &of("port-11")["worker"]), (&"tap1".into(), &of("port-1")["worker"]));
    assert_eq!((of("port-1").get("parent"), &of("port-11")["position"]), (None, &1.into()));
    // All listings show it.
    assert!(daemon.page("/metrics").contains("vifswitch_port_up{port=\"port-11\",vm=\"fw\",network=\"net2\"} 1"));
    assert!(daemon.done(&["show", "drops", "--verify"], "").contains("adds up"));

    // The parent cannot be detached before its subports.
    let refused = daemon.run_command(&["detach", "port-1"], "");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("\"port-11\", \"port-12\""), "{said}");
    // Of another VM; of a subport; with a used tag; on a network with a longer MTU.
    let new = |vm: &str, parent: &Vif, vlan| Vif::new(vm, 20, &spaces[0]).on("net2").subport_of(parent, vlan);
    for (vif, piece) in [
        (new("a", &vifs[0], 7), "of VM \"fw\""),
        (new("fw", &subports[0], 7), "is a subport itself"),
        (new("fw", &vifs[0], 101), "\"port-11\" has this VLAN id"),
        (new("fw", &vifs[0], 7).on("net4"), "9000"),
        (Vif { trunk: Some(("port-2x".into(), 7)), ..new("fw", &vifs[0], 7) }, "no such port \"port-2x\""),
    ] {
        let refused = daemon.run_command(&["attach", "-"], &support::host::daemon::attachment(&vif));
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains(piece), "{piece}: {said}");
    }

    // Subports follow the parent's state.
    daemon.done(&["set", "port-1", "admin_state_up=false"], "");
    let down = daemon.await_down(&subports[0]);
    assert!(down.status_reason.contains("its parent, port \"port-1\", is down: administratively down"), "{down:?}");
    assert_eq!(down.status_code, "parent_down");
    daemon.done(&["set", "port-1", "admin_state_up=true"], "");
    daemon.await_active(&subports[0]);
    daemon.done(&["set", "port-11", "admin_state_up=false"], "");
    assert_eq!(daemon.port(&subports[0]).status_reason, "administratively down");
    assert_eq!(daemon.port(&subports[0]).status_code, "admin_down");
    assert_eq!((daemon.port(&vifs[0]).status, daemon.port(&subports[1]).status), (Status::Active, Status::Active));
    daemon.done(&["set", "port-11", "admin_state_up=true", "vlan=105"], "");
    assert_eq!(daemon.port(&subports[0]).vlan, Some(105));
    spaces[0].delete();
    for vif in [&vifs[0], &subports[0], &subports[1]] {
        assert!(daemon.await_down(vif).status_reason.contains("has been deleted"));
    }
    spaces[0].make();
    daemon.await_active(&subports[0]);
    let events = daemon.events();
    let reported = |vif: &Vif| {
        let of = events.iter().filter(|event| event.ports == [vif.port.clone()]);
        of.filter(|event| matches!(event.kind, EventKind::PortUp | EventKind::PortDown))
            .map(|event| event.kind)
            .collect()
    };
    let (up, down) = (EventKind::PortUp, EventKind::PortDown);
    let of_subport: Vec<EventKind> = reported(&subports[0]);
    assert_eq!(of_subport, [up, down, up, down, up, down, up], "one event per change: {events:?}");
    let of_other: Vec<EventKind> = reported(&subports[1]);
    assert_eq!(of_other, [up, down, up, down, up]);
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}
