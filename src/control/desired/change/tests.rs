//! Changes: accepted ones, and the error category of refused ones.

use super::*;
use crate::control::config::{AddressPair, parse_json, parse_port_keys_json, parse_ports_json, testgen};
use crate::wire::Mac;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

mod entities;

fn port(id: &str, network: &str, mac: u64, tap: &str) -> Value {
    let mac = Mac::from_bits(0x0200_0000_0000 + mac).to_string();
    json!({"port_id": id, "network_id": network, "mac_address": mac, "device": {"kind": "tap", "name": tap}})
}

fn config(vms: &Value) -> Config {
    let networks = json!([{"id": "net1"}, {"id": "net2"}]);
    parse_json(&json!({"networks": networks, "vms": vms}).to_string(), "x").unwrap()
}

/// VM a with p1 on net1 and p2 on net2, VM b with p3 on net1.
pub(super) fn there() -> Config {
    config(&json!([
        {"id": "a", "ports": [port("p1", "net1", 1, "t1"), port("p2", "net2", 2, "t2")]},
        {"id": "b", "ports": [port("p3", "net1", 3, "t3")]},
    ]))
}

/// Ports parsed from these tables.
fn ports(ports: &[Value]) -> Vec<Port> {
    config(&json!([{"id": "x", "ports": ports}])).vms.remove(0).into_inner().ports
}

fn attach(vm: &str, ports: Vec<Port>) -> Change {
    Change::Attach { vm: vm.into(), ports }
}

pub(super) fn set(port: &str, keys: impl Into<PortKeys>) -> Change {
    Change::Set { port: port.into(), keys: keys.into() }
}

fn detach(port: &str) -> Change {
    Change::Detach { port: port.into() }
}

fn listed(config: &Config) -> Vec<(&str, Vec<&str>)> {
    config.vms.iter().map(|vm| (vm.id.as_str(), vm.ports.iter().map(Port::id).collect())).collect()
}

pub(super) fn refused(change: &Change) -> (ErrorKind, &'static str, String) {
    let ChangeError { category, kind, message, .. } = change.to(&there()).unwrap_err();
    (category, kind, message)
}

/// A client whose answer was lost repeats the request.
#[test]
fn a_repeated_attach_changes_nothing() {
    let both = [port("p5", "net1", 5, "t5"), port("p4", "net1", 4, "t4")];
    let now = attach("a", ports(&both)).to(&there()).unwrap();
    for repeated in [&both[..], &both[..1], &both[1..]] {
        assert_eq!(attach("a", ports(repeated)).to(&now).unwrap(), now);
    }
    let [five, four] = both;
    for (vm, others) in [
        ("b", vec![five.clone()]),
        ("a", vec![four.clone(), five.clone()]),
        ("a", vec![port("p5", "net1", 6, "t5")]),
        ("a", vec![port("p5", "net1", 5, "t6")]),
        ("a", vec![five.clone(), port("p6", "net1", 6, "t6")]),
    ] {
        assert_eq!(attach(vm, ports(&others)).to(&now).unwrap_err().kind, "port_in_use", "{others:?}");
    }
    // Changed since.
    let changed = set("p5", parse_port_keys_json(r#"{"admin_state_up": false}"#, "x").unwrap()).to(&now).unwrap();
    assert_eq!(attach("a", ports(&[five])).to(&changed).unwrap_err().kind, "port_in_use");
}

#[test]
fn the_requested_order_is_kept() {
    let now = there();
    let now = attach("a", ports(&[port("p5", "net1", 5, "t5"), port("p4", "net1", 4, "t4")])).to(&now).unwrap();
    assert_eq!(listed(&now), [("a", vec!["p1", "p2", "p5", "p4"]), ("b", vec!["p3"])]);
    let now = detach("p2").to(&now).unwrap();
    assert_eq!(listed(&now), [("a", vec!["p1", "p5", "p4"]), ("b", vec!["p3"])]);
    let now = attach("new", ports(&[port("p2", "net2", 2, "t2")])).to(&now).unwrap();
    assert_eq!(listed(&now), [("a", vec!["p1", "p5", "p4"]), ("b", vec!["p3"]), ("new", vec!["p2"])]);
}

/// A subport as it is attached: its parent may be on another network.
fn subport(id: &str, network: &str, mac: u64, parent: &str, vlan: u16) -> Vec<Port> {
    let mac = Mac::from_bits(0x0200_0000_0000 + mac).to_string();
    let table =
        json!({"port_id": id, "network_id": network, "mac_address": mac, "parent": parent, "vlan": vlan}).to_string();
    parse_ports_json(&table, "x", "a").unwrap()
}

#[test]
fn a_subport_is_listed_with_the_ports_of_its_vm() {
    let mut now = attach("a", subport("s1", "net2", 1, "p1", 101)).to(&there()).unwrap();
    assert_eq!(listed(&now)[0], ("a", vec!["p1", "p2", "s1"]), "a subport may have the MAC address of its parent");
    let refused = |now: &Config, change: Change| {
        let ChangeError { category, kind, message, .. } = change.to(now).unwrap_err();
        (category, kind, message)
    };
    for (change, category, kind, piece) in [
        (detach("p1"), ErrorKind::Conflict, "has_subports", "the subports \"s1\"; detach them first"),
        (
            attach("a", subport("s2", "net2", 9, "p1", 101)),
            ErrorKind::Conflict,
            "vlan_in_use",
            "port \"s1\" has this VLAN id",
        ),
        (attach("a", subport("s2", "net2", 9, "s1", 102)), ErrorKind::Conflict, "not_a_parent", "a subport itself"),
        (attach("b", subport("s2", "net2", 9, "p1", 102)), ErrorKind::Conflict, "not_a_parent", "is of VM \"a\""),
        (
            attach("a", subport("s2", "net2", 9, "p11", 102)),
            ErrorKind::Unknown,
            "unknown_parent",
            "did you mean \"p1\"?",
        ),
        (
            attach("a", subport("s2", "net1", 1, "p1", 102)),
            ErrorKind::Conflict,
            "mac_in_use",
            "port \"p1\" of VM \"a\"",
        ),
        (
            set("p1", parse_port_keys_json(r#"{"device": null, "parent": "p2", "vlan": 5}"#, "x").unwrap()),
            ErrorKind::Conflict,
            "not_a_parent",
            "port \"s1\": parent: port \"p1\" is a subport itself",
        ),
    ] {
        let (was, found, message) = refused(&now, change);
        assert_eq!((was, found), (category, kind), "{message}");
        assert!(message.contains(piece), "{message}");
    }
    now.networks[1].mtu = 9000;
    let (_, kind, message) = refused(&now, attach("a", subport("s2", "net2", 9, "p1", 102)));
    assert!(kind == "not_a_parent" && message.contains("at most its parent's"), "{message}");
    now.networks[1].mtu = 1500;
    // Its keys can be set, including those that change its parent.
    let keys = |text: &str| set("s1", parse_port_keys_json(text, "x").unwrap());
    let moved = keys(r#"{"parent": "p2", "vlan": 7}"#).to(&now).unwrap();
    assert_eq!(moved.vms[0].ports[2].subport().map(|of| (of.parent.as_str(), of.vlan.get())), Some(("p2", 7)));
    let alone = keys(r#"{"parent": null, "vlan": null, "device": {"kind": "tap"}}"#).to(&now).unwrap();
    assert!(alone.vms[0].ports[2].device().is_some());
    assert_eq!(refused(&now, keys(r#"{"device": {"kind": "tap"}}"#)).1, "contradiction");
    assert_eq!(listed(&detach("s1").to(&now).unwrap()), listed(&there()));
}

#[test]
fn a_vm_is_removed_with_its_last_port() {
    assert_eq!(listed(&detach("p3").to(&there()).unwrap()), [("a", vec!["p1", "p2"])]);
    let listed_empty = config(&json!([{"id": "a", "ports": [port("p1", "net1", 1, "t1")]}, {"id": "empty"}]));
    assert_eq!(listed(&detach("p1").to(&listed_empty).unwrap()), [("empty", vec![])]);
}

/// Settings of a VM are kept when its last port is detached.
#[test]
fn a_vm_with_settings_stays_without_ports() {
    for said in [json!({"storm": "off"}), json!({"share_mac": true})] {
        let mut vm = json!({"id": "a", "ports": [port("p1", "net1", 1, "t1")]});
        vm.as_object_mut().unwrap().extend(said.as_object().unwrap().clone());
        let alone = detach("p1").to(&config(&json!([vm]))).unwrap();
        assert_eq!(listed(&alone), [("a", vec![])]);
        let again = attach("a", ports(&[port("p2", "net2", 2, "t2")])).to(&alone).unwrap();
        assert_eq!(listed(&again), [("a", vec!["p2"])]);
        assert!(again.vms[0].has_settings(), "{said}");
    }
}

#[test]
fn invalid_ports_are_an_error_of_the_request() {
    use ErrorKind::Request;
    let (category, kind, _) = refused(&attach("a", Vec::new()));
    assert_eq!((category, kind), (Request, "missing"));
    // No other error is reported: p3 is in use, and its network does not exist.
    let twice = Port { network_id: "gone".into(), ..ports(&[port("p3", "net1", 9, "t9")]).remove(0) };
    let (category, kind, message) = refused(&attach("a", vec![twice.clone(), twice]));
    assert_eq!((category, kind), (Request, "duplicate_port"), "{message}");
    let [one, two] = [("p8", "t8"), ("p9", "t9")].map(|(id, tap)| ports(&[port(id, "net1", 9, tap)]).remove(0));
    let (category, kind, message) = refused(&attach("a", vec![one, two]));
    assert_eq!((category, kind), (Request, "duplicate_mac"), "{message}");
    assert!(message.starts_with("ports[1].mac_address = "), "{message}");
    let (category, kind, _) = refused(&attach("", ports(&[port("p9", "net1", 9, "t9")])));
    assert_eq!((category, kind), (Request, "bad_value"));
    let group = Port { mac: Mac::BROADCAST, ..ports(&[port("p9", "net1", 9, "t9")]).remove(0) };
    assert_eq!(refused(&attach("a", vec![group])).1, "bad_value");
}

#[test]
fn conflicts_are_named() {
    let cases = [
        (port("p3", "net1", 3, "t3"), "port_in_use", "in use by VM \"b\""),
        (port("p9", "net1", 1, "t9"), "mac_in_use", "port \"p1\" of VM \"a\""),
        (port("p9", "net1", 9, "t2"), "device_in_use", "port \"p2\" of VM \"a\""),
    ];
    for (table, wanted, named) in cases {
        let (category, kind, message) = refused(&attach("a", ports(&[table])));
        assert_eq!((category, kind), (ErrorKind::Conflict, wanted), "{message}");
        assert!(message.contains(named), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let (_, _, message) = refused(&attach("a", ports(&[port("p3", "net1", 9, "t9"), port("p9", "net1", 1, "t2")])));
    assert_eq!(message.lines().count(), 3, "{message}");
    // The same address on another network is another station.
    attach("a", ports(&[port("p9", "net2", 1, "t9")])).to(&there()).unwrap();
}

/// If two ports use an address and one of them needs it alone, the second is refused.
#[test]
fn an_address_that_must_be_pinned_is_not_shared() {
    let keys = |keys: Value| parse_port_keys_json(&keys.to_string(), "x").unwrap();
    let suppress = || keys(json!({ "unknown_unicast": "suppress" }));
    let borrow = || keys(json!({ "allowed_address_pairs": [{ "mac_address": "02:00:00:00:00:01" }] }));
    for (first, second, names) in [
        (set("p1", suppress()), set("p3", borrow()), ["port \"p3\": ", "port \"p1\" of VM \"a\""]),
        (set("p3", borrow()), set("p1", suppress()), ["port \"p1\": ", "port \"p3\" of VM \"b\""]),
    ] {
        let now = first.to(&there()).unwrap();
        let ChangeError { category, kind, message, .. } = second.to(&now).unwrap_err();
        assert_eq!((category, kind), (ErrorKind::Conflict, "mac_shared"), "{message}");
        assert!(message.starts_with(names[0]) && message.contains(names[1]), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    // On another network it is another address; a port may use its own.
    let now = set("p1", suppress()).to(&there()).unwrap();
    set("p2", borrow()).to(&now).unwrap();
    set("p1", borrow()).to(&now).unwrap();
    // The same for attached ports.
    let mut new = ports(&[port("p9", "net1", 9, "t9")]);
    new[0].allowed_address_pairs = vec![AddressPair { mac: Some(Mac::from_bits(0x0200_0000_0001)), ip: None }];
    assert_eq!(attach("c", new.clone()).to(&now).unwrap_err().kind, "mac_shared");
    attach("c", new).to(&there()).unwrap();
}

#[test]
fn missing_objects_are_unknown() {
    let absent = Port { network_id: "net".into(), ..ports(&[port("p9", "net1", 9, "t9")]).remove(0) };
    let (category, kind, message) = refused(&attach("a", vec![absent]));
    assert_eq!((category, kind), (ErrorKind::Unknown, "unknown_network"));
    assert!(message.contains("did you mean \"net"), "{message}");
    let (category, kind, message) = refused(&set("p", raw::Port::default()));
    assert_eq!((category, kind), (ErrorKind::Unknown, "unknown_port"));
    assert!(message.contains("did you mean \"p"), "{message}");
    assert_eq!(detach("p").to(&there()), Ok(there()), "what is gone is detached");
}

#[test]
fn set_keys_are_checked_as_in_a_file() {
    let key = |key: &str, value: Value| {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match key {
            "mac_address" => raw::Port { mac_address: text(&value), ..Default::default() },
            "network_id" => raw::Port { network_id: text(&value), ..Default::default() },
            _ => raw::Port { port_id: text(&value), ..Default::default() },
        }
    };
    let cases = [
        ("mac_address", json!("02:00:00:00:00:03"), ErrorKind::Conflict, "mac_in_use"),
        ("mac_address", json!("nonsense"), ErrorKind::Request, "bad_value"),
        ("network_id", json!("nowhere"), ErrorKind::Unknown, "unknown_network"),
        ("port_id", json!("p1"), ErrorKind::Request, "fixed_key"),
    ];
    for (name, value, category, kind) in cases {
        let (was, found, message) = refused(&set("p1", key(name, value)));
        assert_eq!((was, found), (category, kind), "{message}");
    }
}

#[test]
fn settings_of_the_process_are_fixed_at_start() {
    let now = there();
    let mut other = now.clone();
    other.networks.clear();
    other.vms.clear();
    assert_eq!(Change::Apply(other.clone()).to(&now), Ok(other.clone()));
    other.switch.frames += 1;
    other.switch.metrics = Some("127.0.0.1:9477".parse().unwrap());
    let ChangeError { category, kind, message, .. } = Change::Apply(other).to(&now).unwrap_err();
    assert_eq!((category, kind), (ErrorKind::Conflict, "fixed_at_start"));
    assert!(message.contains("switch.frames is fixed at start and is 65536 now"), "{message}");
    assert!(message.contains("switch.metrics is fixed at start and is not set now"), "{message}");
    assert_eq!(message.lines().count(), 2, "{message}");
}

#[test]
fn resources_of_an_uplink_are_in_use() {
    let mut now = there();
    let uplink = json!([{"id": "up0", "networks": [{"network_id": "net1"}],
        "device": {"kind": "xdp", "name": "eth1"}}]);
    let text = json!({"networks": [{"id": "net1"}], "uplinks": uplink}).to_string();
    now.uplinks = parse_json(&text, "x").unwrap().uplinks;
    let refused = |port: Value| {
        let ChangeError { category, kind, message, .. } = attach("a", ports(&[port])).to(&now).unwrap_err();
        assert_eq!(category, ErrorKind::Conflict, "{message}");
        assert!(message.contains("uplink"), "{message}");
        kind
    };
    assert_eq!(refused(port("p9", "net1", 9, "eth1")), "device_in_use");
    assert_eq!(refused(port("up0", "net1", 9, "t9")), "port_in_use");
    // Its network cannot be removed either.
    let mut without = Config { vms: Vec::new(), ..now.clone() };
    without.networks.remove(0);
    let ChangeError { category, kind, message, .. } = Change::Apply(without).to(&now).unwrap_err();
    assert_eq!((category, kind), (ErrorKind::Request, "unknown_network"), "{message}");
    assert!(message.starts_with("uplinks[0].networks[0].network_id = \"net1\""), "{message}");
}

#[test]
fn too_many_ports_are_refused() {
    let now = there();
    let many = (0..4096).map(|n| port(&format!("x{n}"), "net1", 100 + n, &format!("x{n}"))).collect::<Vec<_>>();
    let error = attach("a", ports(&many)).to(&now).unwrap_err();
    assert_eq!((error.category, error.kind), (ErrorKind::Conflict, "too_many"));
}

proptest! {
    /// Every accepted configuration is valid as a file.
    #[test]
    fn accepted_changes_are_valid(
        (now, other) in testgen::two(), from in any::<Index>(), take in any::<Index>(), what in 0..3
    ) {
        let id = |config: &Config, at: Index| {
            let ids: Vec<String> = config.ports().map(|(_, port)| port.port_id.clone()).collect();
            (!ids.is_empty()).then(|| at.get(&ids).clone())
        };
        let change = match (what, id(&now, from), other.ports().nth(take.index(8))) {
            (0, Some(id), _) => detach(&id),
            (1, Some(id), Some((_, port))) => {
                set(&id, raw::Port { port_id: None, position: None, ..port.to_raw() })
            }
            (_, _, Some((vm, port))) => attach(&vm.id, vec![port.clone()]),
            _ => return Ok(()),
        };
        // Generated edits may be invalid themselves.
        prop_assume!(check_raw(&now.to_raw()).is_ok());
        if let Ok(then) = change.to(&now) {
            prop_assert_eq!(check_raw(&then.to_raw()), Ok(then.clone()));
            let stay = |config: &Config| -> Vec<String> {
                config.ports().map(|(_, port)| port.port_id.clone()).collect()
            };
            let (before, after) = (stay(&now), stay(&then));
            let stored: Vec<&String> = before.iter().filter(|id| after.contains(id)).collect();
            let known: Vec<&String> = after.iter().filter(|id| before.contains(id)).collect();
            prop_assert_eq!(stored, known, "no port changes its position");
        }
    }
}
