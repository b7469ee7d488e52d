//! A port in a domain's metadata: `<vs:port id= mac= network= kind= KEY=VALUE…/>`. Further attributes are keys of a port, with
//! values as in `vifswitch set`.

use serde_json::{Map, Value};

use super::domain::Domain;
use crate::cli::keys;
use crate::control::config;
use crate::wire::Mac;

/// Attributes with names of their own, and the keys that they stand for.
const SHORT: [(&str, &str); 3] = [("id", "port_id"), ("mac", "mac_address"), ("network", "network_id")];

/// Kind of a port that names none: it takes any tap, and offloads pass.
const DEFAULT_KIND: &str = "packet";

/// Keys that the hook sets itself.
const SET_BY_HOOK: [&str; 5] = ["device_id", "owner", "device", "device.name", "device.netns"];

/// A port as the metadata describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Declared {
    /// Its id.
    pub id: String,
    /// MAC address, by which its interface is found.
    pub mac: Mac,
    /// Its keys, without the name of its device.
    keys: Map<String, Value>,
}

/// How the ports of a domain are to be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// The domain is checked before libvirt makes its taps.
    Check,
    /// The domain starts.
    Boot,
    /// The domain comes from another host: its addresses are pinned from its first frame on.
    Incoming,
    /// The domain runs: ports without an interface are left out.
    Running,
}

impl Declared {
    /// Reads attributes.
    pub fn read<'a>(attributes: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Declared, String> {
        let (mut keys, mut kind, mut pairs) = (Map::new(), None, Vec::new());
        for (name, value) in attributes {
            if let Some((_, key)) = SHORT.iter().find(|(short, _)| *short == name) {
                keys.insert((*key).to_owned(), value.into());
            } else if name == "kind" {
                kind = Some(value);
            } else if let Some((short, _)) = SHORT.iter().find(|(_, key)| *key == name) {
                return Err(format!("metadata: a port has the attribute {name}; it is {short} here"));
            } else if name == "device.kind" {
                return Err("metadata: a port has the attribute device.kind; it is kind here".into());
            } else if SET_BY_HOOK.contains(&name) {
                return Err(format!("metadata: a port has the attribute {name}, which the hook sets; remove it"));
            } else {
                pairs.push(format!("{name}={value}"));
            }
        }
        let text = |key: &str| keys.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let id = text("port_id").ok_or("metadata: a port has no id; give it the attribute id")?.to_owned();
        let of = |what: String| format!("metadata: port {id:?}: {what}");
        let mac = text("mac_address").ok_or_else(|| of("it has no mac; name that of its interface".into()))?;
        let mac: Mac = mac.parse().map_err(|e| of(format!("mac = {mac:?}: {e}")))?;
        let Value::Object(further) = keys::parse(&pairs).map_err(of)? else { return Err(of("no keys".into())) };
        keys.extend(further);
        let is_subport = keys.contains_key("parent");
        if !is_subport {
            let kind = kind.unwrap_or(DEFAULT_KIND);
            if kind == "tap" {
                return Err(of("kind = \"tap\": QEMU holds the tap; use packet, or xdp".into()));
            }
            let device = keys.entry("device").or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(device) = device {
                device.insert("kind".into(), kind.into());
            }
        }
        Ok(Declared { id, mac, keys })
    }

    /// The port that it is a subport of.
    fn parent(&self) -> Option<&str> {
        self.keys.get("parent").and_then(Value::as_str)
    }

    /// Whether it may be the port of a tap with this MAC address: libvirt replaces the first octet of the guest's.
    pub fn may_be_of_tap(&self, tap: Mac) -> bool {
        let (own, tap) = (self.mac.octets(), tap.octets());
        !self.keys.contains_key("parent") && own[1..] == tap[1..] && (matches!(tap[0], 0xfe | 0xfa) || own[0] == tap[0])
    }

    /// The port on this netdev, as the configuration has it.
    pub fn on(&self, domain: &Domain, dev: Option<&str>, how: Attach) -> Result<Value, String> {
        let mut keys = self.keys.clone();
        if let (Some(Value::Object(device)), Some(dev)) = (keys.get_mut("device"), dev) {
            device.insert("name".into(), dev.into());
        }
        if how == Attach::Incoming {
            keys.insert("activation".into(), "first-frame".into());
        }
        // Reported here, with the names of the domain: the switch would name places in a list of all ports.
        let mut whole = keys.clone();
        whole.insert("device_id".into(), domain.name.as_str().into());
        let source = format!("metadata of domain {:?}, port {:?}", domain.name, self.id);
        let checked = config::parse_port_json(&Value::Object(whole).to_string(), &source, &self.id);
        checked.map_err(|errors| errors.to_string())?;
        Ok(Value::Object(keys))
    }
}

/// The ports of a domain, in the order in which the guest has its interfaces; subports behind their parents.
pub fn ports(domain: &Domain, how: Attach) -> Result<Vec<Value>, String> {
    let mut placed = Vec::new();
    for port in &domain.ports {
        let (device, parent) = match port.parent() {
            None => (port, false),
            Some(parent) => {
                let found = domain.ports.iter().find(|other| other.id == parent && other.parent().is_none());
                let missing =
                    || format!("metadata: port {:?}: no port {parent:?} to be its parent; list it too", port.id);
                (found.ok_or_else(missing)?, true)
            }
        };
        let found = domain.interface(device.mac).map_err(|why| format!("port {:?}: {why}", device.id));
        let (place, dev) = match (found, how) {
            (Ok((place, interface)), _) if interface.dev.is_some() => (place, interface.dev.as_deref()),
            // any name will do
            (Ok((place, _)), Attach::Check) => (place, Some("vnet0")),
            (_, Attach::Running) => continue,
            (Ok(_), _) => return Err(format!("port {:?}: libvirt has made no netdev for its interface", device.id)),
            (Err(why), _) => return Err(why),
        };
        placed.push((place, parent, port.on(domain, if parent { None } else { dev }, how)?));
    }
    placed.sort_by_key(|(place, parent, _)| (*place, *parent));
    Ok(placed.into_iter().map(|(_, _, port)| port).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::cli::libvirt_hook::domain::Interface;

    fn declared(attributes: &[(&str, &str)]) -> Result<Declared, String> {
        Declared::read(attributes.iter().copied())
    }

    fn port(id: &str, mac: &str, more: &[(&str, &str)]) -> Declared {
        let own = [("id", id), ("mac", mac), ("network", "net1")];
        Declared::read(own.iter().chain(more).copied()).unwrap()
    }

    fn domain(ports: Vec<Declared>, interfaces: &[(&str, Option<&str>)]) -> Domain {
        let interface =
            |(mac, dev): &(&str, Option<&str>)| Interface { mac: mac.parse().unwrap(), dev: dev.map(str::to_owned) };
        let interfaces = interfaces.iter().map(interface).collect();
        Domain { name: "fw-3".into(), uuid: "6b0dd2f0".into(), interfaces, ports }
    }

    const A: &str = "52:54:00:00:01:0a";
    const B: &str = "52:54:00:00:01:0b";

    #[test]
    fn attributes_are_keys_of_a_port() {
        let of = domain(
            vec![port(
                "1",
                A,
                &[
                    ("kind", "xdp"),
                    ("port_security", "mac+ip"),
                    ("fixed_ips", "[\"10.5.0.7\"]"),
                    ("device.queues", "2"),
                    ("storm.broadcast.pps", "200"),
                ],
            )],
            &[(A, Some("vnet0"))],
        );
        assert_eq!(
            ports(&of, Attach::Boot),
            Ok(vec![json!({
                "port_id": "1", "mac_address": A, "network_id": "net1", "port_security": "mac+ip",
                "fixed_ips": ["10.5.0.7"], "storm": { "broadcast": { "pps": 200 } },
                "device": { "kind": "xdp", "name": "vnet0", "queues": 2 }
            })])
        );
    }

    #[test]
    fn the_kind_is_packet_unless_it_is_named() {
        let of = domain(vec![port("p1", A, &[])], &[(A, Some("vnet0"))]);
        assert_eq!(ports(&of, Attach::Boot).unwrap()[0]["device"], json!({ "kind": "packet", "name": "vnet0" }));
    }

    #[test]
    fn what_is_wrong_with_a_port_is_said_with_the_remedy() {
        let own = [("id", "p1"), ("mac", A), ("network", "net1")];
        let with = |more: &[(&'static str, &'static str)]| own.iter().chain(more).copied().collect::<Vec<_>>();
        for (attributes, said) in [
            (vec![], "no id"),
            (vec![("id", "")], "no id"),
            (vec![("id", "p1")], "no mac"),
            (vec![("id", "p1"), ("mac", "52:54")], "one looks like"),
            (with(&[("kind", "tap")]), "use packet"),
            (with(&[("owner", "me")]), "the hook sets"),
            (with(&[("device.name", "vnet7")]), "the hook sets"),
            (with(&[("mac_address", A)]), "it is mac here"),
            (with(&[("device.kind", "xdp")]), "it is kind here"),
            (with(&[("storm", "off"), ("storm.copies", "off")]), "given twice"),
        ] {
            let error = declared(&attributes).unwrap_err();
            assert!(error.starts_with("metadata: ") && error.contains(said), "{attributes:?}: {error}");
        }
        for (more, said) in [
            (&[("kind", "vhost")][..], "kind"),
            (&[("port_securty", "mac")], "port_security"),
            (&[("device.queues", "2")], "queues"),
            (&[("mac_limit", "many")], "mac_limit"),
        ] {
            let error = ports(&domain(vec![port("p1", A, more)], &[(A, None)]), Attach::Check).unwrap_err();
            assert!(error.starts_with("metadata of domain \"fw-3\", port \"p1\"") && error.contains(said), "{error}");
        }
    }

    #[test]
    fn ports_are_in_the_order_of_the_interfaces() {
        let tagged = [("parent", "p2"), ("vlan", "7")];
        let all = vec![port("p1", A, &[]), port("p3", A, &tagged), port("p2", B, &[])];
        let of = domain(all, &[(B, Some("vnet1")), ("52:54:00:00:01:0f", Some("vnet9")), (A, Some("vnet0"))]);
        let attached = ports(&of, Attach::Boot).unwrap();
        let ids: Vec<_> = attached.iter().map(|port| port["port_id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["p2", "p3", "p1"]);
        assert_eq!((&attached[1]["device"], &attached[1]["vlan"]), (&Value::Null, &json!(7)));
    }

    #[test]
    fn each_port_needs_its_interface_unless_the_domain_runs() {
        let of = domain(vec![port("p1", A, &[]), port("p2", B, &[])], &[(A, Some("vnet0"))]);
        for how in [Attach::Check, Attach::Boot, Attach::Incoming] {
            let error = ports(&of, how).unwrap_err();
            assert!(error.contains("\"p2\"") && error.contains(B) && error.contains(A), "{error}");
        }
        assert_eq!(ports(&of, Attach::Running).unwrap().len(), 1);
        let unmade = domain(vec![port("p1", A, &[])], &[(A, None)]);
        assert!(ports(&unmade, Attach::Check).is_ok());
        assert!(ports(&unmade, Attach::Boot).unwrap_err().contains("no netdev"));
        let orphan = domain(vec![port("p1", A, &[("parent", "p2"), ("vlan", "7")])], &[(A, Some("vnet0"))]);
        assert!(ports(&orphan, Attach::Boot).unwrap_err().contains("\"p2\""));
    }

    #[test]
    fn ports_of_an_incoming_domain_are_pinned_from_their_first_frame_on() {
        let of = domain(
            vec![port("p1", A, &[]), port("p2", B, &[("activation", "immediate")])],
            &[(A, Some("v0")), (B, Some("v1"))],
        );
        let activations =
            |how| ports(&of, how).unwrap().iter().map(|port| port["activation"].clone()).collect::<Vec<_>>();
        assert_eq!(activations(Attach::Incoming), [json!("first-frame"), json!("first-frame")]);
        assert_eq!(activations(Attach::Boot), [Value::Null, json!("immediate")]);
    }

    #[test]
    fn a_tap_has_the_mac_address_of_its_port_but_for_the_first_octet() {
        let p1 = port("p1", A, &[]);
        for (tap, is) in [
            ("fe:54:00:00:01:0a", true),
            ("fa:54:00:00:01:0a", true),
            (A, true),
            ("02:54:00:00:01:0a", false),
            ("fe:54:00:00:01:0b", false),
        ] {
            assert_eq!(p1.may_be_of_tap(tap.parse().unwrap()), is, "{tap}");
        }
        assert!(!port("p1", A, &[("parent", "p2"), ("vlan", "7")]).may_be_of_tap(A.parse().unwrap()));
    }

    proptest! {
        #[test]
        fn any_attributes_are_read_or_refused(attributes in prop::collection::vec(("[a-z_.]{0,12}", ".{0,12}"), 0..6)) {
            let own = [("id", "p1"), ("mac", A), ("network", "net1")];
            let more = attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            if let Ok(declared) = Declared::read(own.into_iter().chain(more)) {
                let _ = ports(&domain(vec![declared], &[(A, Some("vnet0"))]), Attach::Boot);
            }
        }
    }
}
