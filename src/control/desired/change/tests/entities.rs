//! Single entities and owners: what a repeat changes, what others keep, and the order of ports.

use super::*;
use crate::control::config::{parse_network_json, parse_port_json, parse_uplink_json, parse_vm_json};
use proptest::collection::vec;

/// An owner of generated configurations.
const OWNER: &str = "neutron";

/// Any put of a part of `other`, or deletion of a part of `now`.
fn any_write(now: &Config, other: &Config, what: u8, at: Index) -> Option<Change> {
    let pick = |len: usize| (len > 0).then(|| at.index(len));
    Some(match what {
        0 => {
            let (vm, port) = other.ports().nth(pick(other.ports().count())?)?;
            Change::PutPort { vm: vm.id.clone(), port: port.clone() }
        }
        1 => Change::Detach { port: now.ports().nth(pick(now.ports().count())?)?.1.port_id.clone() },
        2 => Change::PutNetwork(other.networks[pick(other.networks.len())?].clone()),
        3 => Change::DeleteNetwork(now.networks[pick(now.networks.len())?].id.clone()),
        4 => Change::PutUplink(other.uplinks[pick(other.uplinks.len())?].clone()),
        5 => Change::DeleteUplink(now.uplinks[pick(now.uplinks.len())?].id.clone()),
        6 => {
            let vm = &other.vms[pick(other.vms.len())?];
            Change::PutVm { vm: vm.id.clone(), settings: vm.settings(), ports: Some(vm.ports.clone()) }
        }
        7 => {
            let vm = &other.vms[pick(other.vms.len())?];
            Change::PutVm { vm: vm.id.clone(), settings: vm.settings(), ports: None }
        }
        8 => Change::DeleteVm(now.vms[pick(now.vms.len())?].id.clone()),
        _ => Change::ApplyOwned { owner: OWNER.into(), config: of_owner(other) },
    })
}

/// What the owner has, as the owner requests it: without labels.
fn of_owner(config: &Config) -> Config {
    let mut of = config.clone();
    let is_own = |owner: &mut Option<String>| owner.take().is_some_and(|owner| owner == OWNER);
    of.networks.retain_mut(|network| is_own(&mut network.owner));
    of.uplinks.retain_mut(|uplink| is_own(&mut uplink.owner));
    for vm in &mut of.vms {
        let settings = if is_own(&mut vm.owner) { vm.settings() } else { VmSettings::default() };
        vm.ports.retain_mut(|port| is_own(&mut port.owner));
        *vm = settings.vm(vm.id.clone(), std::mem::take(&mut vm.ports)).into();
    }
    of.vms.retain(|vm| !vm.ports.is_empty() || vm.has_settings());
    of
}

/// What others have: ids with the entity.
fn of_others(config: &Config) -> Vec<String> {
    let is_theirs = |owner: &Option<String>| owner.as_deref() != Some(OWNER);
    let networks = config.networks.iter().filter(|of| is_theirs(&of.owner)).map(|of| format!("{of:?}"));
    let uplinks = config.uplinks.iter().filter(|of| is_theirs(&of.owner)).map(|of| format!("{of:?}"));
    let ports =
        config.ports().filter(|(_, port)| is_theirs(&port.owner)).map(|(vm, port)| format!("{} {port:?}", vm.id));
    networks.chain(uplinks).chain(ports).collect()
}

proptest! {
    /// A write that is accepted makes a valid configuration, and its repeat changes nothing.
    #[test]
    fn a_repeated_write_changes_nothing((now, other) in testgen::two(), what in 0u8..10, at in any::<Index>()) {
        prop_assume!(check_raw(&now.to_raw()).is_ok());
        let Some(change) = any_write(&now, &other, what, at) else { return Ok(()) };
        if let Ok(then) = change.to(&now) {
            prop_assert_eq!(check_raw(&then.to_raw()), Ok(then.clone()));
            prop_assert_eq!(change.to(&then), Ok(then));
        }
    }

    /// Nothing of others changes, and of the owner is left what the request has.
    #[test]
    fn an_owner_replaces_only_its_own((now, other) in testgen::two()) {
        prop_assume!(check_raw(&now.to_raw()).is_ok());
        let request = of_owner(&other);
        let change = Change::ApplyOwned { owner: OWNER.into(), config: request.clone() };
        if let Ok(then) = change.to(&now) {
            let (mut before, mut after) = (of_others(&now), of_others(&then));
            before.sort();
            after.sort();
            prop_assert_eq!(before, after);
            let own = |config: &Config| -> Vec<String> {
                let ports = config.ports().filter(|(_, port)| port.owner.as_deref() == Some(OWNER));
                let mut ids: Vec<String> = ports.map(|(vm, port)| format!("{} {}", vm.id, port.id())).collect();
                ids.sort();
                ids
            };
            let mut wanted: Vec<String> = request.ports().map(|(vm, port)| format!("{} {}", vm.id, port.id())).collect();
            wanted.sort();
            prop_assert_eq!(own(&then), wanted);
        }
    }

    /// Whatever the order in which ports with positions arrive, the result is the same.
    #[test]
    fn positions_hold_in_any_order_of_arrival(
        (places, order) in vec(0u16..1000, 1..6).prop_flat_map(|places| (Just(places.clone()), Just((0..places.len()).collect::<Vec<_>>()).prop_shuffle()))
    ) {
        let mut places = places;
        places.sort_unstable();
        places.dedup();
        let one = |place: &u16| Port { position: Some(*place), ..ports(&[port(&format!("x{place}"), "net1", 100 + u64::from(*place), &format!("x{place}"))]).remove(0) };
        let mut now = there();
        for index in order.into_iter().filter(|index| *index < places.len()) {
            now = attach("new", vec![one(&places[index])]).to(&now).unwrap();
        }
        let arrived: Vec<Option<u16>> = now.vms.last().unwrap().ports.iter().map(|port| port.position).collect();
        prop_assert_eq!(arrived, places.into_iter().map(Some).collect::<Vec<_>>());
    }

    /// Ports with positions are in their order, the others where they were, and ordering twice is ordering once.
    #[test]
    fn ordering_moves_only_ports_with_positions(positions in vec(proptest::option::of(0u16..6), 0..8)) {
        let template = ports(&[port("x", "net1", 9, "x")]).remove(0);
        let numbered = |(number, position): (usize, &Option<u16>)| Port { port_id: number.to_string(), position: *position, ..template.clone() };
        let mut vm = Vm { id: "v".into(), ports: positions.iter().enumerate().map(numbered).collect(), ..Vm::default() };
        vm.order_ports();
        let once = vm.clone();
        vm.order_ports();
        prop_assert_eq!(&vm, &once);
        prop_assert!(vm.ports.iter().filter_map(|port| port.position).is_sorted());
        for (place, port) in vm.ports.iter().enumerate().filter(|(_, port)| port.position.is_none()) {
            prop_assert_eq!(port.port_id.clone(), place.to_string());
        }
    }
}

#[test]
fn a_put_port_is_attached_changed_or_moved() {
    let put = |vm: &str, table: &Value| {
        let id = table["port_id"].as_str().unwrap();
        let mut text = table.clone();
        text["device_id"] = json!(vm);
        let (vm, port) = parse_port_json(&text.to_string(), "x", id).unwrap();
        Change::PutPort { vm, port }
    };
    let now = put("a", &port("p4", "net1", 4, "t4")).to(&there()).unwrap();
    assert_eq!(listed(&now), [("a", vec!["p1", "p2", "p4"]), ("b", vec!["p3"])]);
    // In place: keys that are left out have their defaults.
    let changed = set("p1", parse_port_keys_json(r#"{"admin_state_up": false}"#, "x").unwrap()).to(&now).unwrap();
    assert_eq!(put("a", &port("p1", "net1", 1, "t1")).to(&changed), Ok(now.clone()));
    // To another VM, which is new; the one that it leaves empty goes.
    let moved = put("c", &port("p3", "net1", 3, "t3")).to(&now).unwrap();
    assert_eq!(listed(&moved), [("a", vec!["p1", "p2", "p4"]), ("c", vec!["p3"])]);
    // A bad port is refused alone, by the reason of an attachment.
    let (category, kind, message) = refused(&put("a", &port("p9", "net1", 3, "t9")));
    assert_eq!((category, kind), (ErrorKind::Conflict, "mac_in_use"), "{message}");
    let mut first = port("p5", "net1", 5, "t5");
    first["position"] = json!(0);
    assert_eq!(listed(&put("a", &first).to(&now).unwrap())[0], ("a", vec!["p5", "p1", "p2", "p4"]));
    first["position"] = json!(2);
    let now = put("a", &first).to(&now).unwrap();
    assert_eq!(listed(&now)[0], ("a", vec!["p1", "p2", "p5", "p4"]));
    // Its siblings keep their order, also in what a restart reads.
    let now = detach("p1").to(&now).unwrap();
    assert_eq!(listed(&now)[0], ("a", vec!["p2", "p5", "p4"]));
    assert_eq!(check_raw(&now.to_raw()), Ok(now.clone()));
    first["position"] = json!(0);
    assert_eq!(listed(&put("a", &first).to(&now).unwrap())[0], ("a", vec!["p5", "p2", "p4"]));
}

#[test]
fn ports_of_a_put_vm_are_no_ones_else() {
    let put = |vm: &str, wanted: &[Value]| Change::PutVm {
        vm: vm.into(),
        settings: VmSettings::default(),
        ports: Some(ports(wanted)),
    };
    for (wanted, expected) in [
        (port("p1", "net1", 9, "t9"), "port_in_use"),
        (port("p9", "net1", 1, "t9"), "mac_in_use"),
        (port("p9", "net1", 9, "t1"), "device_in_use"),
    ] {
        let (category, kind, message) = refused(&put("b", &[wanted]));
        assert_eq!((category, kind), (ErrorKind::Conflict, expected), "{message}");
    }
    // Its own ones may change places, and what is not listed goes.
    let now = put("a", &[port("p2", "net2", 2, "t2"), port("p1", "net1", 1, "t1")]).to(&there()).unwrap();
    assert_eq!(listed(&now)[0], ("a", vec!["p2", "p1"]));
    let now = put("a", &[port("p2", "net2", 2, "t2")]).to(&now).unwrap();
    assert_eq!(listed(&now), [("a", vec!["p2"]), ("b", vec!["p3"])]);
}

#[test]
fn an_entity_names_itself_or_nothing() {
    assert_eq!(parse_network_json(r#"{"mtu": 9000}"#, "body", "n").unwrap().id, "n");
    assert_eq!(parse_network_json(r#"{"id": "n", "mtu": 9000}"#, "body", "n").unwrap().mtu, 9000);
    assert_eq!(parse_network_json(r#"{"id": null}"#, "body", "n").unwrap().id, "n");
    for text in [r#"{"id": "m"}"#, r#"{"id": 7}"#, "7", "[]", r#"{"mtu": 7}"#] {
        assert!(parse_network_json(text, "body", "n").is_err(), "{text}");
    }
    let uplink = r#"{"networks": [{"network_id": "n"}], "device": {"kind": "packet", "name": "e"}}"#;
    assert_eq!(parse_uplink_json(uplink, "body", "u").unwrap().id, "u");
    let (settings, ports) = parse_vm_json(r#"{"share_mac": true}"#, "body", "v").unwrap();
    assert!(settings.share_mac && ports.is_none());
    let (_, ports) = parse_vm_json(r#"{"ports": []}"#, "body", "v").unwrap();
    assert_eq!(ports, Some(Vec::new()));
    let error = parse_port_json(&port("p1", "net1", 1, "t").to_string(), "body", "p1").unwrap_err();
    assert!(error.to_string().contains("device_id: required"), "{error}");
}

#[test]
fn a_network_in_use_is_not_deleted() {
    let (category, kind, message) = refused(&Change::DeleteNetwork("net1".into()));
    assert_eq!((category, kind), (ErrorKind::Conflict, "network_in_use"));
    assert!(message.contains("port \"p1\" of VM \"a\"") && message.contains("port \"p3\" of VM \"b\""), "{message}");
    let now = Change::PutNetwork(Network::new("net3")).to(&there()).unwrap();
    assert_eq!(Change::DeleteNetwork("net3".into()).to(&now), Ok(there()));
    assert_eq!(Change::DeleteNetwork("nowhere".into()).to(&there()), Ok(there()));
}

/// What an owner wants does not depend on what it wanted before: settings come to a VM that it has made without.
#[test]
fn an_owner_gives_settings_to_a_vm_of_its_own_ports() {
    let apply = |vm: &str, id: &str, share_mac: bool| {
        let ports = [port(id, "own", 9, "t9")];
        let text = json!({"networks": [{"id": "own"}], "vms": [{"id": vm, "share_mac": share_mac, "ports": ports}]});
        Change::ApplyOwned { owner: OWNER.into(), config: parse_json(&text.to_string(), "x").unwrap() }
    };
    let (bare, shared) = (apply("own", "p9", false), apply("own", "p9", true));
    let now = shared.to(&there()).unwrap();
    let vm = now.vms.last().unwrap();
    assert_eq!((vm.share_mac, vm.owner.as_deref()), (true, Some(OWNER)));
    assert_eq!(shared.to(&bare.to(&there()).unwrap()), Ok(now.clone()));
    assert_eq!(bare.to(&now), bare.to(&there()));
    // Not where others have a port.
    let now = apply("a", "p9", false).to(&there()).unwrap();
    let error = apply("a", "p9", true).to(&now).unwrap_err();
    assert_eq!((error.category, error.kind), (ErrorKind::Conflict, "owned_by_other"), "{error:?}");
}

/// A VM of the owner without ports goes when the owner does not name it any more; one of others stays.
#[test]
fn an_owner_removes_its_vm_without_ports() {
    let apply = |text: Value| {
        let config = parse_json(&text.to_string(), "x").unwrap();
        Change::ApplyOwned { owner: OWNER.into(), config }
    };
    let now = apply(json!({"vms": [{"id": "own", "share_mac": true}]})).to(&there()).unwrap();
    assert_eq!(listed(&now).last(), Some(&("own", Vec::new())));
    assert_eq!(apply(json!({})).to(&now), Ok(there()));
    let empty = Change::PutVm { vm: "empty".into(), settings: VmSettings::default(), ports: None };
    let now = empty.to(&there()).unwrap();
    assert_eq!(listed(&now).last(), Some(&("empty", Vec::new())));
    assert_eq!(apply(json!({})).to(&now), Ok(now));
}

#[test]
fn what_has_another_owner_is_in_the_way() {
    let apply = |text: Value| {
        let config = parse_json(&text.to_string(), "x").unwrap();
        Change::ApplyOwned { owner: OWNER.into(), config }
    };
    let network = apply(json!({"networks": [{"id": "net1", "mtu": 9000}]}));
    let (category, kind, message) = refused(&network);
    assert_eq!((category, kind), (ErrorKind::Conflict, "owned_by_other"));
    assert!(message.contains("network \"net1\" exists and has no owner"), "{message}");
    // Of a VM of others, ports may be the owner's.
    let own = apply(json!({"networks": [{"id": "own"}], "vms": [{"id": "a", "ports": [port("p9", "own", 9, "t9")]}]}));
    let now = own.to(&there()).unwrap();
    assert_eq!(listed(&now)[0], ("a", vec!["p1", "p2", "p9"]));
    assert_eq!(apply(json!({})).to(&now), Ok(there()));
    let labelled = apply(json!({"networks": [{"id": "x", "owner": "cni"}]}));
    assert_eq!(refused(&labelled).1, "contradiction");
}
