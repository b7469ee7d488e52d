//! Applies changed keys to a port's raw table.

use crate::control::config::{IpAllocation, Named, PortKeys, PortSecurity, raw};

/// The port's table with these keys set and cleared.
pub fn apply_port_patch(mut port: raw::Port, keys: &PortKeys) -> raw::Port {
    if keys.given.fixed_ips.is_some() || keys.cleared.iter().any(|key| key == "fixed_ips") {
        // An allocation that follows from the addresses follows from the new ones.
        let is_addressed = port.fixed_ips.as_ref().is_some_and(|addresses| !addresses.is_empty());
        let implied = IpAllocation::of_addresses(is_addressed).name();
        port.ip_allocation = port.ip_allocation.filter(|allocation| allocation != implied);
    }
    clear(&mut port, &keys.cleared);
    merge(port, keys.given.clone())
}

/// The VM's settings with these keys set and cleared.
pub fn apply_vm_patch(mut vm: raw::VmKeys, keys: &PortKeys) -> raw::VmKeys {
    for key in keys.cleared.iter().filter_map(|key| key.strip_prefix("vm.")) {
        vm.clear(key);
        if let (Some(class), Some(raw::Storm::Table(classes))) = (key.strip_prefix("storm."), &mut vm.storm) {
            classes.clear(class);
        }
    }
    let storm = merge_storm(vm.storm.take(), keys.vm.storm.clone());
    raw::VmKeys { storm, ..keys.vm.clone().or(vm) }
}

/// Clears these keys, which then have their defaults.
fn clear(port: &mut raw::Port, keys: &[String]) {
    for key in keys {
        match (key.split_once('.'), &mut port.device) {
            (None, _) => port.clear(key),
            (Some(("device", key)), Some(device)) => device.clear(key),
            _ => {}
        }
        match key.as_str() {
            // Two keys for one setting; the other one is stored.
            "port_security_enabled" => port.clear("port_security"),
            _ if key.starts_with("storm.") => {
                if let Some(raw::Storm::Table(classes)) = &mut port.storm {
                    classes.clear(&key["storm.".len()..]);
                }
            }
            // Without a limit the policy has no effect.
            "mac_limit" => port.clear("mac_limit_policy"),
            _ => {}
        }
    }
}

/// The keys of `now`, overridden by `keys`.
fn merge(mut now: raw::Port, mut keys: raw::Port) -> raw::Port {
    // Two keys for one setting: either one replaces both.
    now.port_security_enabled = None;
    if let Some(enabled) = keys.port_security_enabled {
        now.port_security = now.port_security.filter(|security| (security == PortSecurity::Off.name()) != enabled);
    }
    let device = match (now.device.take(), keys.device.take()) {
        (Some(now), Some(keys)) if keys.kind.is_none() || keys.kind == now.kind => Some(keys.or(now)),
        (now, keys) => keys.or(now),
    };
    let storm = merge_storm(now.storm.take(), keys.storm.take());
    raw::Port { port_id: now.port_id.take(), device, storm, ..keys.or(now) }
}

/// Overrides each given class; others stay.
fn merge_storm(now: Option<raw::Storm>, keys: Option<raw::Storm>) -> Option<raw::Storm> {
    match (now, keys) {
        (Some(raw::Storm::Table(now)), Some(raw::Storm::Table(keys))) => Some(raw::Storm::Table(keys.or(now))),
        (now, keys) => keys.or(now),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ErrorKind;
    use super::super::tests::{refused, set, there};
    use super::*;
    use crate::control::config::{Config, Device, Storm, StormPolicy, parse_port_keys_json};
    use crate::switch::{AtLimit, MacLimit, Rate, StormClass};
    use crate::wire::Mac;
    use serde_json::{Value, json};

    #[test]
    fn keys_not_set_are_unchanged() {
        let keys = raw::Port {
            mac_address: Some("02:00:00:00:00:77".into()),
            device: Some(raw::Device { queues: Some(4), ..Default::default() }),
            ..Default::default()
        };
        let now = there();
        let then = set("p1", keys).to(&now).unwrap();
        let mut wanted = now.vms[0].ports[0].clone();
        wanted.mac = Mac::from_bits(0x0200_0000_0077);
        let Some(Device::Tap(tap)) = wanted.device_mut() else { panic!("no tap") };
        tap.queues = 4;
        assert_eq!(then.vms[0].ports[0], wanted);
        assert_eq!((&then.vms[0].ports[1..], &then.vms[1..]), (&now.vms[0].ports[1..], &now.vms[1..]));
    }

    #[test]
    fn null_resets_a_key_to_its_default() {
        let clear = |keys: Value| set("p1", parse_port_keys_json(&keys.to_string(), "x").unwrap());
        let mut now = there();
        let plain = now.vms[0].ports[0].clone();
        let port = &mut now.vms[0].ports[0];
        port.port_security = PortSecurity::Off;
        port.admin_state_up = false;
        let Some(Device::Tap(tap)) = port.device_mut() else { panic!("no tap") };
        (tap.netns, tap.queues, tap.persist) = (Some("away".into()), 4, false);
        // In JSON order; a port set back to its kind and name equals the original.
        let keys = json!({ "port_security": null, "admin_state_up": null,
            "device": { "netns": null, "queues": null, "persist": null } });
        assert_eq!(clear(keys).to(&now).unwrap().vms[0].ports[0], plain);
        // Each of two synonymous keys resets to the default.
        let then = clear(json!({ "port_security_enabled": null, "device": { "netns": null } })).to(&now).unwrap();
        let Some(Device::Tap(tap)) = then.vms[0].ports[0].device() else { panic!("{then:?}") };
        assert_eq!((then.vms[0].ports[0].port_security, tap.netns.as_ref(), tap.queues), (PortSecurity::Mac, None, 4));
        // The default name is derived from the id.
        let then = clear(json!({ "device": { "name": null } })).to(&now).unwrap();
        let Some(Device::Tap(tap)) = then.vms[0].ports[0].device() else { panic!("{then:?}") };
        assert_eq!(tap.name, "tapp1");
        // Required keys cannot be reset.
        for (keys, kind) in [
            (json!({ "mac_address": null }), "missing"),
            (json!({ "network_id": null }), "missing"),
            (json!({ "device": null }), "missing"),
            (json!({ "device": { "kind": null } }), "missing"),
            (json!({ "port_id": null }), "fixed_key"),
        ] {
            let (category, found, message) = refused(&clear(keys));
            assert_eq!((category, found), (ErrorKind::Request, kind), "{message}");
        }
    }

    #[test]
    fn an_ip_allocation_that_follows_from_addresses_follows_changed_ones() {
        let given = |keys: Value| set("p1", parse_port_keys_json(&keys.to_string(), "x").unwrap());
        let of = |config: &Config| config.vms[0].ports[0].ip_allocation;
        let none = given(json!({ "fixed_ips": [] })).to(&there()).unwrap();
        assert_eq!(of(&none), IpAllocation::None);
        let one = given(json!({ "fixed_ips": ["10.9.0.7"] })).to(&none).unwrap();
        assert_eq!(of(&one), IpAllocation::Immediate);
        assert_eq!(of(&given(json!({ "fixed_ips": null })).to(&one).unwrap()), IpAllocation::None);
        let deferred = given(json!({ "ip_allocation": "deferred" })).to(&one).unwrap();
        assert_eq!(of(&given(json!({ "fixed_ips": [] })).to(&deferred).unwrap()), IpAllocation::Deferred, "as written");
    }

    #[test]
    fn a_limit_is_reset_with_its_policy() {
        let given = |keys: Value| set("p1", parse_port_keys_json(&keys.to_string(), "x").unwrap());
        let limited = given(json!({ "mac_limit": 4, "mac_limit_policy": "drop" })).to(&there()).unwrap();
        let limit = |config: &Config| config.vms[0].ports[0].mac_limit;
        assert_eq!(limit(&limited), Some(MacLimit { stations: 4, policy: AtLimit::Drop }));
        let more = given(json!({ "mac_limit": 5 })).to(&limited).unwrap();
        assert_eq!(limit(&more), Some(MacLimit { stations: 5, policy: AtLimit::Drop }));
        let plain = given(json!({ "mac_limit_policy": null })).to(&limited).unwrap();
        assert_eq!(limit(&plain), Some(MacLimit { stations: 4, policy: AtLimit::ForwardUnlearned }));
        assert_eq!(limit(&given(json!({ "mac_limit": null })).to(&limited).unwrap()), None);
        for keys in [json!({ "mac_limit_policy": "drop" }), json!({ "mac_limit": null, "mac_limit_policy": "drop" })] {
            let (category, kind, message) = refused(&given(keys));
            assert_eq!((category, kind), (ErrorKind::Request, "contradiction"), "{message}");
            assert!(message.starts_with("mac_limit_policy = \"drop\": "), "{message}");
        }
        // Bounds of the network are checked.
        let (_, kind, message) = refused(&given(json!({ "mac_limit": 9000 })));
        assert!(kind == "contradiction" && message.contains("\"net1\", which is 8192"), "{message}");
    }

    #[test]
    fn keys_of_the_vm_can_be_set_at_a_port() {
        let given = |keys: Value| set("p1", parse_port_keys_json(&keys.to_string(), "x").unwrap());
        let now = there();
        let one = given(json!({ "vm": { "storm": { "multicast": "off" }, "share_mac": true } })).to(&now).unwrap();
        assert!(one.vms[0].storm.disables(StormClass::Multicast) && one.vms[0].share_mac);
        assert_eq!((&one.vms[0].ports, &one.vms[1..]), (&now.vms[0].ports, &now.vms[1..]), "nothing else");
        let two = given(json!({ "vm": { "storm": { "copies": "off", "broadcast": { "pps": 7 } } } })).to(&one).unwrap();
        assert_eq!(two.vms[0].storm.copies(), None);
        assert!(two.vms[0].storm.disables(StormClass::Multicast));
        let three = given(json!({ "vm": { "storm": { "multicast": null }, "share_mac": null } })).to(&two).unwrap();
        assert!(!three.vms[0].storm.disables(StormClass::Multicast) && !three.vms[0].share_mac);
        let frames = three.vms[0].storm.limit(StormClass::Broadcast).and_then(|limit| limit.frames);
        assert_eq!(frames, Some(Rate::new(7, 7)));
        let back = given(json!({ "vm": { "storm": null } })).to(&three).unwrap();
        assert_eq!(back, now);
        let off = given(json!({ "vm": { "storm": "off" } })).to(&now).unwrap();
        assert_eq!(off.vms[0].storm, Storm::OFF);
        let (_, kind, message) = refused(&given(json!({ "vm": { "storm": { "broadcast": { "pps": 0 } } } })));
        assert!(kind == "bad_value" && message.starts_with("vm.storm.broadcast.pps = 0: "), "{message}");
        let wrong = parse_port_keys_json(&json!({ "vm": { "id": "other" } }).to_string(), "x").unwrap_err();
        assert!(wrong.to_string().contains("vm.id"), "{wrong}");
    }

    #[test]
    fn storm_classes_are_set_separately() {
        let given = |keys: Value| set("p1", parse_port_keys_json(&keys.to_string(), "x").unwrap());
        let of = |config: &Config| config.vms[0].ports[0].storm;
        let frames = |storm: Storm, class| storm.limit(class).and_then(|limit| limit.frames);
        let (broadcast, multicast) = (StormClass::Broadcast, StormClass::Multicast);
        let one = given(json!({ "storm": { "broadcast": { "pps": 50 } } })).to(&there()).unwrap();
        assert_eq!(frames(of(&one), broadcast), Some(Rate::new(50, 50)));
        let two = given(json!({ "storm": { "multicast": { "pps": 7 } } })).to(&one).unwrap();
        assert_eq!(frames(of(&two), broadcast), Some(Rate::new(50, 50)), "the others stay");
        assert_eq!(frames(of(&two), multicast), Some(Rate::new(7, 7)));
        // A class is replaced as a whole.
        let again = given(json!({ "storm": { "broadcast": { "bps": 8000 } } })).to(&two).unwrap();
        assert_eq!(frames(of(&again), broadcast), None);
        assert!(of(&again).limit(broadcast).is_some());
        let off = given(json!({ "storm": "off" })).to(&two).unwrap();
        assert_eq!(of(&off).classes, [Some(StormPolicy::Off); 3]);
        let cleared = given(json!({ "storm": { "broadcast": null } })).to(&two).unwrap();
        assert_eq!(of(&cleared).classes[0], None, "as on its network");
        assert_eq!(frames(of(&cleared), multicast), Some(Rate::new(7, 7)));
        assert_eq!(of(&given(json!({ "storm": null })).to(&two).unwrap()), Storm::default());
        let (_, kind, message) = refused(&given(json!({ "storm": { "broadcast": { "pps": 0 } } })));
        assert!(kind == "bad_value" && message.starts_with("storm.broadcast.pps = 0: "), "{message}");
    }

    #[test]
    fn both_keys_of_port_security_can_be_set() {
        let enabled = |enabled| raw::Port { port_security_enabled: Some(enabled), ..Default::default() };
        let security = |config: &Config| config.vms[0].ports[0].port_security;
        let off = set("p1", enabled(false)).to(&there()).unwrap();
        assert_eq!(security(&off), PortSecurity::Off);
        assert_eq!(security(&set("p1", enabled(false)).to(&off).unwrap()), PortSecurity::Off);
        assert_eq!(security(&set("p1", enabled(true)).to(&off).unwrap()), PortSecurity::Mac);
        let word = raw::Port { port_security: Some("off".into()), ..Default::default() };
        assert_eq!(security(&set("p1", word).to(&there()).unwrap()), PortSecurity::Off);
    }
}
