//! Changes of the running switch on real taps: ports are added, removed and changed without effect on others. Needs
//! root; makes its own namespaces.

use std::collections::VecDeque;
use std::time::Duration;

use support::host::daemon::Vif;
use support::host::inside::{Inside, expected, ports};
use support::host::nic::{Nic, experiment};
use support::host::setup::pass;
use support::host::streams::{Gaps, Stream, Streams};
use support::host::{Namespace, await_that};
use vifswitch::control::api::handle::Flush;
use vifswitch::control::api::responses::{StationKind, Status};
use vifswitch::control::config::raw;
use vifswitch::control::desired::change::{Change, ErrorKind};
use vifswitch::control::state::event_page::Cursor;
use vifswitch::control::state::events::{Event, EventKind};
use vifswitch::wire::Mac;

/// An address that is no port's own.
fn wild(number: u64) -> Mac {
    Mac::from_bits(0x0a00_0000_0000 | number)
}

fn keys() -> raw::Port {
    raw::Port::default()
}

fn set(vif: &Vif, keys: raw::Port) -> Change {
    Change::Set { port: vif.port.clone(), keys: keys.into() }
}

/// Ports of these VMs on net1, each in a namespace of its own.
fn vifs(vms: &[&str]) -> Option<(Vec<Namespace>, Vec<Vif>)> {
    let spaces = vms.iter().map(|_| Namespace::new()).collect::<Option<Vec<_>>>()?;
    let vifs = (1..).zip(vms).zip(&spaces).map(|((number, vm), namespace)| Vif::new(vm, number, namespace)).collect();
    Some((spaces, vifs))
}

/// Siblings of a VM under traffic are attached and detached fifty times. No frame between the others is lost, and the
/// first frame to each new port arrives.
///
/// Shows: REQ-07, REQ-08
#[test]
fn siblings_are_attached_and_detached_without_frame_loss() {
    for workers in [1, 2] {
        let Some((spaces, vifs)) = vifs(&["a", "b", "a"]) else { return };
        let inside = Inside::new(workers, Some(expected(&[("net1", 1500)], &vifs[..2])), None);
        let stream = Stream::between((&spaces[0], &vifs[0]), (&spaces[1], &vifs[1]));
        let Some(mut streams) = Streams::new(5000, vec![stream]) else { return };
        let sender = Nic::new(&spaces[1], &vifs[1].name);
        let gaps = (0..5u8).map(|round| {
            streams.gaps_during(|| {
                for cycle in 0..10u8 {
                    inside.attach(&vifs[2..]);
                    let nic = Nic::new(&spaces[2], &vifs[2].name);
                    let first = experiment(vifs[2].mac, vifs[1].mac, &[round, cycle]);
                    sender.send(&first);
                    assert_eq!(nic.take(), first);
                    assert_eq!(inside.listed(), ["port-1", "port-3", "port-2"]);
                    drop(nic);
                    inside.detach(&vifs[2]);
                    assert_eq!(spaces[2].links(), ["lo"]);
                }
            })
        });
        let what = format!("{workers} workers: a sibling attached and detached");
        Gaps::assert_all_smooth(&gaps.collect::<Vec<_>>(), &what);
        assert_eq!(inside.listed(), ["port-1", "port-2"]);
        for port in inside.ports() {
            assert!(port.counts.drops.is_empty(), "{:?}", port.counts.drops);
        }
    }
}

/// Shows: REQ-09
#[test]
fn a_port_set_down_stops_and_recovers_when_up() {
    let Some((spaces, mut vifs)) = vifs(&["a", "b"]) else { return };
    vifs[1].more = "port_security = \"off\"".into();
    let inside = Inside::over(&vifs);
    let mut live = Cursor::default();
    let past = inside.events(&mut live);
    assert_eq!(past.iter().map(|event| event.kind).collect::<Vec<_>>(), [EventKind::PortUp; 2]);
    let nics = [0, 1].map(|index| Nic::new(&spaces[index], &vifs[index].name));
    let hello = experiment(vifs[0].mac, wild(1), b"hello");
    nics[1].send(&hello);
    assert_eq!(nics[0].take(), hello);
    let learned = || inside.fdb().into_iter().filter(|station| station.kind == StationKind::Learned).count();
    assert_eq!(learned(), 1);
    let link = spaces[1].link(&vifs[1].name);

    let changed = inside.change(set(&vifs[1], raw::Port { admin_state_up: Some(false), ..keys() }));
    assert_eq!(changed.changes, ["port \"port-2\": admin_state_up was true and is false"]);
    assert_eq!(changed.warnings, [""; 0]);
    assert_eq!((learned(), inside.port(&vifs[1]).status), (0, Status::Down));
    nics[1].send(&hello);
    nics[0].send(&experiment(vifs[1].mac, vifs[0].mac, b"in vain"));
    await_that("both are counted", || {
        let drops = inside.port(&vifs[1]).counts.drops.get("admin_down").copied();
        // A port that is down pins nothing: its address is unknown and no other port exists.
        (drops == Some(1) && inside.port(&vifs[0]).counts.flooded == 1).then_some(())
    });
    assert_eq!((learned(), nics[0].rest().len(), nics[1].rest().len()), (0, 0, 0));

    inside.change(set(&vifs[1], raw::Port { admin_state_up: Some(true), ..keys() }));
    pass((&nics[0], &vifs[0]), (&nics[1], &vifs[1]), "up again");
    pass((&nics[1], &vifs[1]), (&nics[0], &vifs[0]), "both ways");
    assert_eq!(spaces[1].link(&vifs[1].name), link, "its netdev has not been touched");
    let received: Vec<_> = inside.events(&mut live).into_iter().map(|event| (event.kind, event.ports)).collect();
    let of = |kind| (kind, vec![vifs[1].port.clone()]);
    let config = (EventKind::Config, Vec::new());
    assert_eq!(received, [config.clone(), of(EventKind::PortDown), config, of(EventKind::PortUp)]);
}

#[test]
fn addresses_and_mtus_are_changed_in_place() {
    let Some((spaces, mut vifs)) = vifs(&["a", "b"]) else { return };
    let inside = Inside::over(&vifs);
    let nics = [0, 1].map(|index| Nic::new(&spaces[index], &vifs[index].name));
    let index = |at: usize| spaces[at].link(["tap1", "tap2"][at]).unwrap().index;
    let before = [index(0), index(1)];

    vifs[1].mac = Mac::from_bits(0x0200_0000_0999);
    inside.change(set(&vifs[1], raw::Port { mac_address: Some(vifs[1].mac.to_string()), ..keys() }));
    assert_eq!(spaces[1].link(&vifs[1].name).unwrap().mac, vifs[1].mac);
    pass((&nics[0], &vifs[0]), (&nics[1], &vifs[1]), "under the new address");
    pass((&nics[1], &vifs[1]), (&nics[0], &vifs[0]), "from the new address");

    let wanted = expected(&[("net1", 9000)], &vifs);
    let changed = inside.change(Change::Apply(wanted));
    assert_eq!(changed.changes, ["network \"net1\": mtu was 1500 and is 9000"]);
    for (namespace, vif) in spaces.iter().zip(&vifs) {
        assert_eq!(namespace.link(&vif.name).unwrap().mtu, 9000);
    }
    pass((&nics[0], &vifs[0]), (&nics[1], &vifs[1]), &"x".repeat(8900));
    assert_eq!([index(0), index(1)], before);
}

#[test]
fn a_device_with_changed_settings_is_reopened() {
    let Some((spaces, vifs)) = vifs(&["a", "b"]) else { return };
    let inside = Inside::over(&vifs);
    let device = |device| raw::Port { device: Some(device), ..keys() };
    inside.change(set(&vifs[1], device(raw::Device { queues: Some(2), ..Default::default() })));
    inside.change(set(&vifs[1], device(raw::Device { name: Some("other".into()), ..Default::default() })));
    inside.change(set(&vifs[1], device(raw::Device { offloads: Some(false), ..Default::default() })));
    assert_eq!(spaces[1].links(), ["lo", "other"]);
    let other = Vif { name: "other".into(), ..vifs[1].clone() };
    let nics = [Nic::new(&spaces[0], &vifs[0].name), Nic::new(&spaces[1], &other.name)];
    pass((&nics[0], &vifs[0]), (&nics[1], &other), "there");
    pass((&nics[1], &other), (&nics[0], &vifs[0]), "and back");
    assert_eq!(inside.port(&other).device.queues, Some(2));
}

/// Two ports exchange netdevs: each is closed before the other opens its netdev.
#[test]
fn ports_can_exchange_their_netdevs() {
    let Some(namespace) = Namespace::new() else { return };
    let [one, two] = [1, 2].map(|number| Vif::new("a", number, &namespace));
    let inside = Inside::over(&[one.clone(), two.clone()]);
    let swapped = [Vif { name: two.name.clone(), ..one.clone() }, Vif { name: one.name.clone(), ..two.clone() }];
    let changed = inside.change(Change::Apply(expected(&[("net1", 1500)], &swapped)));
    assert_eq!((changed.warnings, namespace.links()), (vec![], vec!["lo".to_owned(), "tap1".into(), "tap2".into()]));
    for vif in &swapped {
        assert_eq!(inside.port(vif).status, Status::Active);
        assert_eq!(namespace.link(&vif.name).unwrap().mac, vif.mac);
    }
}

#[test]
fn a_port_can_be_given_to_another_vm() {
    let Some((spaces, mut vifs)) = vifs(&["a", "b", "c"]) else { return };
    vifs[1].more = "port_security = \"off\"".into();
    let inside = Inside::over(&vifs);
    let nic = Nic::new(&spaces[0], &vifs[0].name);
    let other = Nic::new(&spaces[1], &vifs[1].name);
    let hello = experiment(vifs[0].mac, wild(1), b"hello");
    other.send(&hello);
    assert_eq!(nic.take(), hello);
    let learned = || inside.fdb().into_iter().any(|station| station.kind == StationKind::Learned);
    assert!(learned());

    // In one step, the tap is unchanged.
    let link = spaces[1].link(&vifs[1].name);
    vifs[1].vm = "c".into();
    let moved = [vifs[0].clone(), vifs[2].clone(), vifs[1].clone()];
    inside.change(Change::Apply(expected(&[("net1", 1500)], &moved)));
    assert!(!learned());
    assert_eq!((inside.port(&vifs[1]).device_id.as_str(), inside.port(&vifs[1]).position), ("c", 1));
    assert_eq!(spaces[1].link(&vifs[1].name), link);
    pass((&nic, &vifs[0]), (&other, &vifs[1]), "the station is reached at its new port");
    drop(other);

    // In two steps.
    inside.detach(&vifs[1]);
    vifs[1].vm = "new".into();
    inside.attach(&vifs[1..2]);
    let other = Nic::new(&spaces[1], &vifs[1].name);
    pass((&nic, &vifs[0]), (&other, &vifs[1]), "and there");
    assert_eq!(inside.listed(), ["port-1", "port-3", "port-2"]);
}

#[test]
fn a_refused_change_changes_nothing() {
    let Some((spaces, vifs)) = vifs(&["a", "b"]) else { return };
    let inside = Inside::over(&vifs[..1]);
    let attach = |vm: &str, ports| Change::Attach { vm: vm.into(), ports };
    let twice = ports(&[vifs[1].clone(), Vif { port: "x".into(), mac: wild(2), name: "x".into(), ..vifs[1].clone() }]);
    let twice = vec![twice[0].clone(), twice[1].clone(), twice[0].clone()];
    let (before, links) = (inside.ports(), spaces[1].links());
    let error = inside.try_change(attach("b", twice)).unwrap_err();
    assert_eq!((error.category, error.kind), (ErrorKind::Request, "duplicate_port"));
    let error = inside.try_change(attach("b", ports(&vifs[..1]))).unwrap_err();
    assert_eq!((error.category, error.kind), (ErrorKind::Conflict, "port_in_use"));
    assert_eq!((inside.ports(), spaces[1].links()), (before, links));
}

#[test]
fn a_port_whose_device_is_missing_is_accepted() {
    let (Some(here), Some(later)) = (Namespace::new(), Namespace::planned()) else { return };
    let vifs = [Vif::new("a", 1, &here), Vif::new("b", 2, &later)];
    let inside = Inside::over(&vifs[..1]);
    let changed = inside.attach(&vifs[1..]);
    assert_eq!(changed.warnings.len(), 1);
    assert!(changed.warnings[0].starts_with("port \"port-2\" is down: "), "{:?}", changed.warnings);
    later.make();
    inside.await_active(&vifs[1]);
    let nics = [Nic::new(&here, "tap1"), Nic::new(&later, "tap2")];
    pass((&nics[0], &vifs[0]), (&nics[1], &vifs[1]), "the frames have arrived");
    // A port without a device can be detached.
    drop(nics);
    later.delete();
    inside.detach(&vifs[1]);
    assert_eq!(inside.listed(), ["port-1"]);
}

/// The next event about the configuration, of those read and of later ones.
fn next_config(live: &mut (Cursor, VecDeque<Event>), inside: &Inside) -> Event {
    await_that("an event", || {
        live.1.extend(inside.events(&mut live.0));
        live.1.pop_front().filter(|event| event.kind == EventKind::Config)
    })
}

#[test]
fn an_unconfirmed_change_is_reverted() {
    let Some((spaces, vifs)) = vifs(&["a", "b"]) else { return };
    let state = tempfile::tempdir().unwrap();
    let state = state.path().join("state.db");
    let file = expected(&[("net1", 1500)], &vifs[..1]);
    let mut inside = Inside::new(1, Some(file.clone()), Some(&state));
    let attach = || Change::Attach { vm: "b".into(), ports: ports(&vifs[1..]) };
    let change =
        |change, seconds| inside.wait(inside.handle.change(change, Some(seconds).into(), Box::new(()))).unwrap();
    let mut live = (Cursor::default(), VecDeque::new());
    inside.events(&mut live.0);

    change(attach(), Duration::from_millis(1)).unwrap();
    assert!(next_config(&mut live, &inside).text.starts_with("to be confirmed within"));
    assert!(next_config(&mut live, &inside).text.starts_with("not confirmed within"));
    await_that("its netdev is gone", || (spaces[1].links() == ["lo"]).then_some(()));
    assert_eq!(inside.listed(), ["port-1"]);

    let long = Duration::from_secs(3600);
    change(attach(), long).unwrap();
    assert_eq!(inside.port(&vifs[1]).status, Status::Active);
    let error = inside.try_change(Change::Detach { port: vifs[0].port.clone() }).unwrap_err();
    assert_eq!((error.category, error.kind), (ErrorKind::Conflict, "unconfirmed"));
    let host = inside.wait(inside.handle.confirm(Box::new(()))).unwrap().unwrap();
    assert_eq!(host.changes.len(), 2, "{:?}", host.changes);
    let error = inside.wait(inside.handle.confirm(Box::new(()))).unwrap().unwrap_err();
    assert_eq!((error.category, error.kind), (ErrorKind::Conflict, "nothing_to_confirm"));

    // A switch that stops before confirmation starts without the change.
    let detach = Change::Detach { port: vifs[0].port.clone() };
    inside.wait(inside.handle.change(detach, Some(long).into(), Box::new(()))).unwrap().unwrap();
    assert_eq!(inside.listed(), ["port-2"]);
    inside.stop();
    let inside = Inside::new(1, Some(file), Some(&state));
    assert_eq!(inside.listed(), ["port-1", "port-2"]);
}

#[test]
fn a_restart_keeps_changes_and_stations() {
    let Some((spaces, mut vifs)) = vifs(&["a", "b", "a", "c"]) else { return };
    vifs[1].more = "port_security = \"off\"".into();
    let state = tempfile::tempdir().unwrap();
    let state = state.path().join("state.db");
    let file = |vifs: &[Vif]| Some(expected(&[("net1", 1500)], vifs));
    let mut inside = Inside::new(1, file(&vifs[..2]), Some(&state));
    inside.attach(&vifs[2..3]);
    let first = |inside: &Inside| inside.events(&mut Cursor::default());
    let events = first(&inside);
    let speak = |to: usize| {
        let nics = [0, 1, 2].map(|index| Nic::new(&spaces[index], &vifs[index].name));
        let hello = experiment(wild(1), vifs[to].mac, b"to one port only");
        nics[to].send(&hello);
        assert_eq!(nics[1].take(), hello);
        let end = experiment(Mac::BROADCAST, vifs[1].mac, b"end");
        nics[1].send(&end);
        for index in [0, 2] {
            assert_eq!(nics[index].take(), end, "no earlier frame has arrived here");
        }
    };
    {
        let nics = [0, 1].map(|index| Nic::new(&spaces[index], &vifs[index].name));
        let hello = experiment(vifs[0].mac, wild(1), b"here I am");
        nics[1].send(&hello);
        assert_eq!(nics[0].take(), hello);
    }
    speak(0);
    // With the same file, then without.
    for again in [file(&vifs[..2]), None] {
        inside.stop();
        inside = Inside::new(2, again, Some(&state));
        assert_eq!(inside.listed(), ["port-1", "port-3", "port-2"]);
        speak(0);
        speak(2);
        assert!(first(&inside).starts_with(&events), "earlier events are still shown");
    }
    // Changes in the edited file are applied; attached ports stay.
    inside.stop();
    let edited = [vifs[0].clone(), vifs[1].clone(), vifs[3].clone()];
    inside = Inside::new(1, file(&edited), Some(&state));
    assert_eq!(inside.listed(), ["port-1", "port-3", "port-2", "port-4"]);
    inside.detach(&vifs[3]);
    inside.stop();
    inside = Inside::new(1, None, Some(&state));
    assert_eq!(inside.listed(), ["port-1", "port-3", "port-2"]);
}

#[test]
fn with_an_unwritable_state_changes_are_refused_and_frames_flow() {
    let Some((spaces, vifs)) = vifs(&["a", "b", "c"]) else { return };
    let state = tempfile::tempdir().unwrap();
    let inside = Inside::new(1, Some(expected(&[("net1", 1500)], &vifs[..2])), Some(state.path()));
    let error = inside.try_change(Change::Attach { vm: "c".into(), ports: ports(&vifs[2..]) }).unwrap_err();
    assert_eq!((error.category, error.kind), (ErrorKind::Switch, "store_failed"));
    assert!(error.message.contains(&state.path().display().to_string()), "{}", error.message);
    let nics = [0, 1].map(|index| Nic::new(&spaces[index], &vifs[index].name));
    pass((&nics[0], &vifs[0]), (&nics[1], &vifs[1]), "unchanged");
    assert_eq!((inside.listed().len(), spaces[2].links()), (2, vec!["lo".to_owned()]));
}

#[test]
fn stations_are_flushed_and_ports_released_by_name() {
    let Some((spaces, mut vifs)) = vifs(&["a", "b"]) else { return };
    vifs.iter_mut().for_each(|vif| vif.more = "port_security = \"off\"".into());
    let inside = Inside::over(&vifs);
    let nics = [0, 1].map(|index| Nic::new(&spaces[index], &vifs[index].name));
    let fill = || {
        for number in 0..6 {
            let (from, to) = (number as usize % 2, 1 - number as usize % 2);
            let hello = experiment(vifs[to].mac, wild(number), b"hello");
            nics[from].send(&hello);
            assert_eq!(nics[to].take(), hello);
        }
    };
    let flush = |flush| inside.wait(inside.handle.flush(flush, Box::new(()))).unwrap();
    fill();
    assert_eq!(flush(Flush { mac: Some(wild(0)), ..Flush::default() }), Ok(1));
    assert_eq!(flush(Flush { port: Some("port-2".into()), ..Flush::default() }), Ok(3));
    assert_eq!(flush(Flush { network: Some("net1".into()), ..Flush::default() }), Ok(2));
    assert_eq!(flush(Flush::default()), Ok(0));
    let absent = Flush { network: Some("net".into()), ..Flush::default() };
    assert_eq!(flush(absent).unwrap_err().kind, "unknown_network");
    let nobody = Flush { port: Some("nobody".into()), ..Flush::default() };
    assert_eq!(flush(nobody).unwrap_err().kind, "unknown_port");
    let release = |port: &str| inside.wait(inside.handle.release(port.into(), Box::new(()))).unwrap();
    assert_eq!(release("nobody").unwrap_err().kind, "unknown_port");
    assert!(release("port-1").unwrap().warnings[0].starts_with("nothing to release"));
}

/// Attaches and detaches a hundred ports at once.
#[test]
fn a_hundred_ports_are_attached_and_detached_at_once() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs: Vec<Vif> =
        (0..100).map(|number| Vif::new(["a", "b", "c"][usize::from(number) % 3], number, &namespace)).collect();
    let inside = Inside::new(2, Some(expected(&[("net1", 1500)], &[])), None);
    let empty = expected(&[("net1", 1500)], &[]);
    for _ in 0..2 {
        let changed = inside.change(Change::Apply(expected(&[("net1", 1500)], &vifs)));
        assert_eq!((changed.warnings, namespace.links().len()), (vec![], 101));
        assert!(inside.ports().iter().all(|port| port.status == Status::Active));
        let changed = inside.change(Change::Apply(empty.clone()));
        assert_eq!((changed.warnings, namespace.links()), (vec![], vec!["lo".to_owned()]));
    }
}
