//! Configurations that are accepted, and what is said of wrong ones.

use super::*;
use std::path::Path;

use crate::control::config::raw;
use proptest::prelude::*;
use serde_json::json;

fn parse(config: &Value) -> Result<NetworkConfig, CniError> {
    NetworkConfig::parse(config.to_string().as_bytes(), Strictness::Everything)
}

/// A configuration with these keys beside the required ones.
fn with(keys: Value) -> Value {
    let mut config = json!({ "cniVersion": "1.1.0", "name": "blue", "type": "vifswitch" });
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn a_short_configuration_has_defaults() {
    let read = parse(&with(json!({ "ipam": {} }))).unwrap();
    assert_eq!((read.network.as_str(), read.owner.as_str(), read.mode), ("blue", "cni", Mode::Container));
    assert_eq!((read.socket.as_path(), read.ipam, read.mtu), (Path::new(SOCKET), None, None));
    assert!(read.port.is_empty() && read.prev_result.is_none() && read.dns.is_none());
}

#[test]
fn a_long_configuration_is_read() {
    let read = parse(&with(json!({
        "network_id": "net1", "mtu": 9000, "mode": "vm", "socket": "/run/s", "state_directory": "/run/d", "owner": "pods",
        "tap": { "uid": 107, "gid": 0, "multi_queue": true },
        "port": { "port_security": "mac+ip", "storm": { "broadcast": { "pps": 5 } }, "position": 4,
                  "device": { "kind": "packet", "isolate": true } },
        "ipam": { "type": "host-local", "ranges": [] },
        "dns": { "nameservers": ["10.0.0.1"] },
        "args": { "cni": { "mac": "02:00:00:00:00:0b", "position": "7", "ips": [] }, "labels": [] },
        "runtimeConfig": { "mac": "02:00:00:00:00:0a", "portMappings": [] },
        "capabilities": { "mac": true }, "ipMasq": false, "cni.dev/attachments": [],
        "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }],
        "prevResult": { "interfaces": [] },
    })))
    .unwrap();
    assert_eq!(read.mode, Mode::Vm(VmTap { uid: Some(107), gid: Some(0), multi_queue: true }));
    assert_eq!((read.network.as_str(), read.owner.as_str(), read.mtu), ("net1", "pods", Some(9000)));
    // runtimeConfig comes before args.cni, as the conventions have it
    assert_eq!((read.mac.unwrap().to_string().as_str(), read.position), ("02:00:00:00:00:0a", Some(7)));
    assert!(read.checks_addresses() && read.ipam.as_deref() == Some("host-local"));
    assert_eq!(read.valid_attachments, Some(vec![Attachment { container: "a".into(), interface: "eth0".into() }]));
    let mut preferred = read;
    preferred.prefer(None, Some(9));
    assert_eq!((preferred.mac.is_some(), preferred.position), (true, Some(9)));
}

#[test]
fn each_mistake_is_reported_with_key_and_remedy() {
    let cases = [
        (json!({ "name": "a/b" }), "name = \"a/b\": use letters"),
        (json!({ "mtu": 20 }), "mtu = 20: expected a whole number from 68 to 9216"),
        (json!({ "socket": "api.sock" }), "not an absolute path"),
        (json!({ "mode": "bridge" }), "no such mode; use \"container\" or \"vm\""),
        (json!({ "tap": {} }), "only of mode \"vm\""),
        (json!({ "mode": "vm", "tap": { "user": 1 } }), "tap.user = 1: unknown key"),
        (json!({ "mode": "vm", "tap": { "uid": -1 } }), "tap.uid"),
        (json!({ "ipam": { "type": "../x" } }), "must not contain '/'"),
        (json!({ "ipam": 5 }), "ipam = 5: expected an object"),
        (json!({ "ipMasq": true }), "does not translate addresses"),
        (json!({ "network_idd": "x" }), "did you mean network_id?"),
        (json!({ "port": [] }), "expected an object with keys of a port"),
        (json!({ "port": { "port_securty": "mac" } }), "port.port_securty"),
        (json!({ "port": { "port_security": "none" } }), "port.port_security = \"none\""),
        (json!({ "port": { "port_security": "mac+ip" } }), "needs addresses; add ipam"),
        (json!({ "port": { "port_security": "mac+ip" }, "ipam": { "type": "dhcp" } }), "cannot send"),
        (
            json!({ "port": { "fixed_ips": [] } }),
            "port.fixed_ips = []: they are those of the IPAM plugin; remove the key",
        ),
        (
            json!({ "port": { "lifetime": "config" } }),
            "port.lifetime = \"config\": the port ends with the network namespace of the container; remove the key",
        ),
        (
            json!({ "mode": "vm", "port": { "lifetime": "netns" } }),
            "port.lifetime = \"netns\": the port ends with the network namespace of the container; remove the key",
        ),
        (json!({ "port": { "device": { "name": "x" } } }), "port.device.name = \"x\": it is CNI_IFNAME"),
        (json!({ "port": { "device": { "kind": "xdp" } } }), "a container has a tap"),
        (json!({ "mode": "vm", "port": { "device": { "kind": "tap" } } }), "use \"packet\" or \"xdp\""),
        (json!({ "port": { "device": { "queues": 0 } } }), "queues"),
        (json!({ "runtimeConfig": { "mac": "x" } }), "runtimeConfig.mac = \"x\": not a unicast MAC address"),
        (json!({ "args": { "cni": { "position": 70000 } } }), "args.cni.position = 70000"),
        (json!({ "cni.dev/valid-attachments": [{}] }), "containerID and ifname"),
    ];
    for (keys, part) in cases {
        let error = parse(&with(keys.clone())).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG, "{keys}: {error}");
        assert!(error.message.contains(part), "{keys}: {part}: {error}");
    }
    let both = parse(&with(json!({ "mtu": 20, "mode": "x" }))).unwrap_err();
    assert!(both.message.contains("mtu = 20") && both.message.contains("mode = \"x\""), "{both}");
}

#[test]
fn what_cannot_be_read_has_its_own_code() {
    for (text, code) in [
        ("", code::DECODE),
        ("{", code::DECODE),
        ("[]", code::DECODE),
        (r#"{"name":"a"}"#, code::INCOMPATIBLE_VERSION),
        (r#"{"name":"a","cniVersion":"0.2.0"}"#, code::INCOMPATIBLE_VERSION),
        (r#"{"name":"a","cniVersion":"2.0.0"}"#, code::INCOMPATIBLE_VERSION),
        (r#"{"cniVersion":"1.0.0"}"#, code::INVALID_CONFIG),
    ] {
        for strictness in [Strictness::Everything, Strictness::Essentials] {
            let error = NetworkConfig::parse(text.as_bytes(), strictness).unwrap_err();
            assert_eq!(error.code, code, "{text}: {error}");
        }
    }
    let long = vec![b' '; MAX_LEN + 1];
    assert_eq!(NetworkConfig::parse(&long, Strictness::Everything).unwrap_err().code, code::DECODE);
}

/// A container whose configuration is wrong is removed all the same.
#[test]
fn detaching_needs_the_essentials_only() {
    let config = with(json!({ "mtu": 20, "port": 5, "unknown": 1, "mode": "x", "ipam": { "type": "host-local" } }));
    let read = NetworkConfig::parse(config.to_string().as_bytes(), Strictness::Essentials).unwrap();
    assert_eq!((read.name.as_str(), read.ipam.as_deref()), ("blue", Some("host-local")));
}

/// A key of a port is accepted with its default, or refused because the plugin sets it.
#[test]
fn each_key_of_a_port_is_accepted_or_set_by_the_plugin() {
    let everything = r#"{"networks": [{"id": "n"}], "vms": [{"id": "v", "ports": [
        {"port_id": "p", "network_id": "n", "mac_address": "02:00:00:00:00:01", "mac_limit": 5, "position": 3, "owner": "o",
         "device": {"kind": "tap", "name": "t"}}]}]}"#;
    let config = crate::control::config::parse_json(everything, "x").unwrap();
    let port = serde_json::to_value(&config).unwrap()["vms"][0]["ports"][0].clone();
    let mut accepted = 0;
    for key in raw::Port::KEYS {
        let Some(value) = port.get(*key).filter(|_| *key != "device") else { continue };
        let mut keys = json!({ *key: value });
        if *key == "mac_limit_policy" {
            keys["mac_limit"] = 5.into();
        }
        match parse(&with(json!({ "port": keys }))) {
            Ok(read) => accepted += usize::from(read.port.contains_key(*key)),
            Err(error) => assert!(error.message.contains("remove the key"), "{key}: {error}"),
        }
    }
    assert!(accepted > 8, "{accepted}");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let keys = prop_oneof![
            Just("port".to_owned()),
            Just("device".to_owned()),
            Just("cni".to_owned()),
            Just("mac".to_owned()),
            Just("type".to_owned()),
            ".{0,6}"
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((keys, inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_read_or_refused(value in any_json(), at in 0..24usize, bytes: Vec<u8>) {
        let keys = ["name", "cniVersion", "port", "tap", "ipam", "args", "runtimeConfig", "dns", "prevResult", "mtu", "mode",
                    "network_id", "socket", "state_directory", "owner", "ipMasq", "cni.dev/valid-attachments"];
        for value in [value.clone(), with(json!({ keys[at % keys.len()]: value.clone(), "mode": if at > 12 { "vm" } else { "container" } }))] {
            for strictness in [Strictness::Everything, Strictness::Essentials] {
                if let Ok(read) = NetworkConfig::parse(value.to_string().as_bytes(), strictness) {
                    prop_assert!(names::is_name(&read.name));
                    prop_assert!(read.ipam.is_none_or(|kind| !kind.contains('/')));
                }
            }
        }
        let _ = NetworkConfig::parse(&bytes, Strictness::Everything);
    }
}
