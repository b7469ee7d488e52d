//! Uplinks and foreign netdevs in operation: status, events, failover, restart. Needs root; makes its own namespaces.
use std::fmt::Write as _;

use rustix::process::Signal;
use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::nic::{Nic, experiment, frame};
use support::host::{EXPERIMENT, Namespace, await_that};
use vifswitch::control::api::responses::{PortView, StationKind, StationView, Status, UplinkView};
use vifswitch::control::state::events::EventKind;
use vifswitch::telemetry::exposition;
use vifswitch::wire::Mac;

const NETWORKS: &[(&str, u16)] = &[("net1", 1500), ("net2", 2000)];

/// Two networks on one uplink: net1 tagged, net2 untagged.
const UPLINK_NETWORKS: &str = r#"[{ network_id = "net1", vlan = 120 }, { network_id = "net2" }]"#;

/// An uplink on a tap that the switch creates.
fn uplink(id: &str, more: &str, namespace: &Namespace, networks: &str) -> String {
    format!(
        "[[uplinks]]\nid = \"{id}\"\n{more}\nnetworks = {networks}\n\
         device = {{ kind = \"tap\", name = \"{id}\", netns = \"{}\" }}\n",
        namespace.0
    )
}

fn uplinks(daemon: &Daemon) -> Vec<UplinkView> {
    daemon.get("/v1/uplinks")
}

fn await_carrying(daemon: &Daemon, id: &str) -> Vec<UplinkView> {
    await_that(&format!("{id} carries"), || {
        let all = uplinks(daemon);
        all.iter().all(|uplink| uplink.active == (uplink.uplink_id == id)).then_some(all)
    })
}

#[test]
fn the_backup_is_active_while_the_preferred_uplink_is_down() {
    let (Some(left), Some(right)) = (Namespace::new(), Namespace::new()) else { return };
    let mut daemon = Daemon::new();
    let group = "group = \"wire\"";
    let mut text = config(&daemon.socket(), "", NETWORKS, &[]);
    text += &uplink("up0", group, &left, UPLINK_NETWORKS);
    text += &uplink("up1", group, &right, UPLINK_NETWORKS);
    daemon.configure(&text);
    daemon.start();
    let [first, second] = await_carrying(&daemon, "up0").try_into().unwrap();
    assert_eq!((first.status, first.status_reason.as_str()), (Status::Active, ""));
    assert_eq!(second.status, Status::Active, "it could");
    assert!(second.status_reason.contains("backup: ") && second.status_code == "backup", "{second:?}");
    // The created tap has the largest MTU of its networks, and a locally administered address.
    let link = left.link("up0").unwrap();
    assert_eq!((link.mtu, link.mac.octets()[0] & 3, link.alias.as_str()), (2000, 2, "vifswitch:up0"));

    left.ip("link set up0 down");
    let [first, _] = await_carrying(&daemon, "up1").try_into().unwrap();
    assert_eq!(first.status, Status::Down);
    assert!(first.status_reason.contains("`ip link set dev up0 up`") && first.status_code == "link_down", "{first:?}");
    left.ip("link set up0 up");
    let [first, _] = await_carrying(&daemon, "up0").try_into().unwrap();
    assert_eq!((first.status, first.status_reason.as_str()), (Status::Active, ""));

    let events = daemon.events();
    let reported = |kind| events.iter().filter(move |event| event.kind == kind);
    let turns: Vec<_> =
        reported(EventKind::Uplink).map(|event| (event.ports[0].as_str(), event.text.as_str())).collect();
    assert_eq!(turns.len(), 2, "{turns:?}");
    assert_eq!((turns[0].0, turns[1].0), ("up1", "up0"));
    assert!(turns[0].1.contains("\"up0\" is down") && turns[0].1.contains("\"wire\""), "{turns:?}");
    assert!(turns[1].1.contains("preferred"), "{turns:?}");
    let downs: Vec<_> =
        reported(EventKind::PortDown).map(|event| (event.vm.as_deref(), event.ports[0].as_str())).collect();
    assert_eq!(downs, [(None, "up0")], "one event");
    assert_eq!(reported(EventKind::PortUp).filter(|event| event.ports == ["up0"]).count(), 2);

    // The tap disappears with its namespace and is created again with it.
    left.delete();
    await_carrying(&daemon, "up1");
    left.make();
    await_carrying(&daemon, "up0");
    assert!(left.link("up0").is_some());
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

#[test]
fn uplinks_are_added_and_removed_live_and_kept_over_a_restart() {
    let (Some(guest), Some(wire)) = (Namespace::new(), Namespace::new()) else { return };
    let mut daemon = Daemon::new();
    let vifs = [Vif::new("fw", 1, &guest)];
    let plain = keeping(&config(&daemon.socket(), "", NETWORKS, &vifs), &daemon.state());
    daemon.configure(&plain);
    daemon.start();
    assert_eq!(daemon.done(&["show", "uplinks"], ""), "no uplinks\n");

    let with = plain.clone() + &uplink("up0", "", &wire, UPLINK_NETWORKS);
    let said = daemon.done(&["diff", "-"], &with);
    assert_eq!(said, "uplink \"up0\" is new, on \"up0\", and carries \"net1\", \"net2\"\n");
    daemon.done(&["apply", "-"], &with);
    assert_eq!(wire.links(), ["lo", "up0"]);
    let shown = daemon.done(&["show", "uplinks"], "");
    assert!(["up0", "net1:120,net2", "tap", "ACTIVE", "yes"].iter().all(|piece| shown.contains(piece)), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&daemon.done(&["show", "uplinks", "--json"], "")).unwrap();
    assert_eq!(json[0]["networks"], serde_json::json!([{"network_id": "net1", "vlan": 120}, {"network_id": "net2"}]));
    assert_eq!((&json[0]["active"], &json[0]["device"]["kind"]), (&true.into(), &"tap".into()));
    let metrics = daemon.page("/metrics");
    for sample in ["vifswitch_uplink_up{uplink=\"up0\"} 1", "vifswitch_uplink_receive_frames_total{uplink=\"up0\"} "] {
        assert!(metrics.contains(sample), "{}: {metrics}", exposition::CONTENT_TYPE);
    }
    // Stations behind it can be flushed by its name.
    assert_eq!(daemon.done(&["flush", "--port", "up0", "--json"], "").trim(), "{\"flushed\":0}");

    // A network cannot be removed while an uplink carries it.
    let without = with.replacen("[[networks]]\nid = \"net2\"\nmtu = 2000\n", "", 1);
    assert_ne!(without, with);
    let refused = daemon.run_command(&["apply", "-"], &without);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("uplinks[0].networks[1].network_id = \"net2\""), "{said}");
    // A port cannot use its netdev.
    let thief = Vif { name: "up0".into(), netns: wire.0.clone(), ..Vif::new("fw", 2, &guest) };
    let refused = daemon.run_command(&["attach", "-"], &support::host::daemon::attachment(&thief));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("in use by uplink \"up0\""), "{said}");

    // The uplink is kept without the file.
    daemon.stop(Signal::KILL);
    let state = daemon.state();
    daemon.start_over("--state", &state);
    assert!(uplinks(&daemon)[0].active);
    assert_eq!(wire.links(), ["lo", "up0"]);
    // Another VLAN changes the forwarding configuration only: the netdev is untouched.
    let index = wire.link("up0").unwrap().index;
    let said = daemon.done(&["apply", "-"], &with.replacen("vlan = 120", "vlan = 121", 1));
    assert!(said.starts_with("uplink \"up0\": networks was ["), "{said}");
    assert_eq!(uplinks(&daemon)[0].networks[0].vlan, Some(121));
    assert_eq!(wire.link("up0").unwrap().index, index);
    daemon.done(&["apply", "-"], &plain);
    assert_eq!((wire.links(), uplinks(&daemon)), (vec!["lo".to_owned()], vec![]));
    daemon.await_active(&vifs[0]);
}

/// A frame of net1 on the wire: VLAN 120 of [`UPLINK_NETWORKS`], padded to the Ethernet minimum.
fn tagged(to: Mac, from: Mac, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame(to, from, 0x8100, &[&[0, 120], &EXPERIMENT.to_be_bytes()[..], payload].concat());
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The same as a guest receives it: the padding stays.
fn untagged(to: Mac, from: Mac, payload: &[u8]) -> Vec<u8> {
    let frame = tagged(to, from, payload);
    [&frame[..12], &frame[16..]].concat()
}

fn subport_of(daemon: &Daemon) -> Vec<(String, Option<String>)> {
    let stations: Vec<StationView> = daemon.get("/v1/fdb");
    let outside = stations.into_iter().filter(|station| station.kind == StationKind::Learned);
    outside.map(|station| (station.port_id, station.uplink_id)).collect()
}

/// From a guest to the external network and back, over a failover and a restart: external stations stay learned
/// behind the group.
#[test]
fn external_stations_are_reached_by_either_uplink() {
    let spaces: Option<Vec<Namespace>> = (0..3).map(|_| Namespace::new()).collect();
    let Some([guest, left, right]) = spaces.and_then(|spaces| <[Namespace; 3]>::try_from(spaces).ok()) else { return };
    let vif = Vif::new("fw", 1, &guest);
    let mut daemon = Daemon::new();
    let group = "group = \"wire\"";
    let mut text = keeping(&config(&daemon.socket(), "", NETWORKS, std::slice::from_ref(&vif)), &daemon.state());
    text += &uplink("up0", group, &left, UPLINK_NETWORKS);
    text += &uplink("up1", group, &right, UPLINK_NETWORKS);
    daemon.configure(&text);
    daemon.start();
    await_carrying(&daemon, "up0");
    let [nic, wire, other] = [Nic::new(&guest, &vif.name), Nic::new(&left, "up0"), Nic::new(&right, "up1")];
    let far = Mac::from_bits(0x0200_0000_0f01);
    wire.send(&tagged(vif.mac, far, b"from outside"));
    assert_eq!(nic.take(), untagged(vif.mac, far, b"from outside"));
    nic.send(&experiment(far, vif.mac, b"from inside"));
    assert_eq!(wire.take(), tagged(far, vif.mac, b"from inside"));
    assert_eq!(subport_of(&daemon), [("up0".to_owned(), Some("up0".to_owned()))]);
    // The backup neither receives nor sends.
    other.send(&tagged(vif.mac, far, b"not this way"));
    await_that("the drop", || {
        uplinks(&daemon)[1].counts.drops.get("standby").filter(|frames| **frames == 1).map(|_| ())
    });
    nic.send(&experiment(Mac::BROADCAST, vif.mac, b"to all"));
    assert_eq!(wire.take(), tagged(Mac::BROADCAST, vif.mac, b"to all"));
    assert_eq!((other.rest(), nic.rest()), (vec![], vec![]));

    left.ip("link set up0 down");
    await_carrying(&daemon, "up1");
    assert_eq!(subport_of(&daemon), [("up1".to_owned(), Some("up1".to_owned()))]);
    nic.send(&experiment(far, vif.mac, b"the other way"));
    assert_eq!(other.take(), tagged(far, vif.mac, b"the other way"));
    // Learned stations are stored at stop, and restored behind the active uplink.
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
    left.ip("link set up0 up");
    daemon.start();
    await_carrying(&daemon, "up0");
    assert_eq!(subport_of(&daemon), [("up0".to_owned(), Some("up0".to_owned()))]);
    assert_eq!(daemon.done(&["flush", "--port", "up1", "--json"], "").trim(), "{\"flushed\":1}");
    assert_eq!(subport_of(&daemon), []);
    assert!(daemon.done(&["show", "drops", "--verify"], "").contains("adds up"));
}

/// Changes of a foreign netdev are followed; other ports are unaffected.
fn others_do_as_they_like(kind: &str) {
    let (Some(namespace), Some(beside)) = (Namespace::new(), Namespace::new()) else { return };
    let make = || {
        namespace.ip("link add v0 mtu 1500 type veth peer name v1 mtu 1500");
        namespace.ip("link set v1 up");
        namespace.ip("link set v0 up");
    };
    let bystander = Vif::new("beside", 1, &beside);
    let guest = Vif { name: "v0".into(), ..Vif::new("fw", 2, &namespace) };
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", NETWORKS, &[bystander.clone(), guest.clone()]);
    let text = text.replace("kind = \"tap\", name = \"v0\"", &format!("kind = \"{kind}\", name = \"v0\""));
    daemon.configure(&text);
    daemon.start();
    let reason = daemon.await_down(&guest).status_reason;
    assert!(reason.contains("no such device yet"), "{reason}");
    let is_down = |what: &str| {
        let down = |port: &PortView| port.status == Status::Down && port.status_reason.contains(what);
        daemon.await_port(what, &guest, down);
    };
    make();
    let port = daemon.await_active(&guest);
    assert_eq!(port.device.kind, kind);
    assert!(port.device.mode.is_some() && port.device.queues > Some(0), "{port:?}");
    namespace.ip("link set v0 down");
    is_down("`ip link set dev v0 up`");
    namespace.ip("link set v0 up");
    daemon.await_active(&guest);
    namespace.ip("link set v1 down");
    is_down("no carrier");
    namespace.ip("link set v1 up");
    daemon.await_active(&guest);
    namespace.ip("link set v0 down");
    namespace.ip("link set v0 name w0");
    is_down("no such device");
    namespace.ip("link set w0 name v0");
    namespace.ip("link set v0 up");
    daemon.await_active(&guest);
    namespace.ip("link del v0");
    is_down("no such device");
    make();
    daemon.await_active(&guest);
    // An MTU below that of the network is reported at once.
    namespace.ip("link set v0 mtu 1400");
    let remarked = |port: &PortView| port.status == Status::Active && port.status_reason.contains("has MTU 1400");
    daemon.await_port("a remark", &guest, remarked);
    let (nic, wire) = (Nic::new(&beside, &bystander.name), Nic::new(&namespace, "v1"));
    nic.send(&experiment(guest.mac, bystander.mac, b"there"));
    assert_eq!(wire.take(), experiment(guest.mac, bystander.mac, b"there"));
    let events = daemon.events();
    let beside: Vec<_> = events.iter().filter(|event| event.ports == ["port-1"]).map(|event| event.kind).collect();
    assert_eq!(beside, [EventKind::PortUp], "no other port is affected");
    let of_guest: Vec<_> = events.iter().filter(|event| event.ports == ["port-2"]).map(|event| event.kind).collect();
    let turns = [EventKind::PortDown, EventKind::PortUp].repeat(of_guest.len() / 2);
    assert_eq!(of_guest, turns, "one event per change: {events:#?}");
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
    assert_eq!(namespace.links(), ["lo", "v0", "v1"], "foreign netdevs are not deleted");
}

#[test]
fn packet_ports_follow_changes_of_foreign_netdevs() {
    others_do_as_they_like("packet");
}

#[test]
fn xdp_ports_follow_changes_of_foreign_netdevs() {
    others_do_as_they_like("xdp");
}

/// Foreign netdevs are waited for, and the status states what they lack.
#[test]
fn a_foreign_netdev_is_not_set_up() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip("link add v0 type veth peer name v1");
    let mut daemon = Daemon::new();
    let mut text = config(&daemon.socket(), "", NETWORKS, &[]);
    let device =
        |kind: &str, name: &str| format!("{{ kind = \"{kind}\", name = \"{name}\", netns = \"{}\" }}", namespace.0);
    writeln!(text, "[[uplinks]]\nid = \"up0\"\nnetworks = {UPLINK_NETWORKS}\ndevice = {}", device("xdp", "v0"))
        .unwrap();
    write!(
        text,
        "[[vms]]\nid = \"fw\"\n[[vms.ports]]\nport_id = \"p1\"\nnetwork_id = \"net1\"\n\
         mac_address = \"02:00:00:00:00:01\"\ndevice = {}\n",
        device("packet", "v1")
    )
    .unwrap();
    daemon.configure(&text);
    daemon.start();
    let (up0, p1) = (uplinks(&daemon).remove(0), daemon.ports().remove(0));
    assert_eq!((up0.status, p1.status), (Status::Down, Status::Down));
    assert!(up0.status_reason.contains("`ip link set dev v0 up`"), "{up0:?}");
    assert!(p1.status_reason.contains("`ip link set dev v1 up`"), "{p1:?}");
    assert_eq!((up0.device.kind.as_str(), p1.device.kind.as_str()), ("xdp", "packet"));
    assert_eq!((up0.device.persist, p1.device.offloads, p1.device.queues), (None, Some(true), None));
    let links = [namespace.link("v0").unwrap(), namespace.link("v1").unwrap()];
    assert!(links.iter().all(|link| !link.up), "a foreign netdev is not set up");
    // Once it is up, the reason changes or disappears.
    namespace.ip("link set v0 up");
    await_that("another look", || {
        let up0 = uplinks(&daemon).remove(0);
        (!up0.status_reason.contains("`ip link set dev v0 up`")).then_some(())
    });
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
    assert_eq!(namespace.links(), ["lo", "v0", "v1"], "foreign netdevs are not deleted");
}
