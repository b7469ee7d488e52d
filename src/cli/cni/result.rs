//! Results of ADD: interfaces, addresses, routes and DNS, read from any version of the specification and printed as one.
//!
//! Fields that this plugin does not know stay as they are.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::version::SpecVersion;
use crate::wire::Prefix;

/// Maximum number of interfaces, and of addresses, in a result.
const MAX_ITEMS: usize = 256;

/// Maximum number of routes in a result.
const MAX_ROUTES: usize = 1024;

/// An address with the prefix length of its subnet, as in `10.1.0.5/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// Prefix length in bits: at most 32 for IPv4, 128 for IPv6.
    pub len: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        let wrong = || format!("{text:?} is not an address with its prefix length; one looks like 10.1.0.5/16");
        let (address, len) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let len: u8 = len.parse().map_err(|_| wrong())?;
        if len > if address.is_ipv4() { 32 } else { 128 } { Err(wrong()) } else { Ok(Cidr { address, len }) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// First address of a subnet, with its prefix length.
pub fn first_of(subnet: Cidr) -> (IpAddr, u8) {
    (Prefix::new(subnet.address, subnet.len).map_or(subnet.address, Prefix::first), subnet.len)
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cidr, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// An address that may be absent, or an empty text: Go's way to say so.
fn optional_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        Some(text) if !text.is_empty() => {
            text.parse().map(Some).map_err(|_| D::Error::custom(format!("{text:?} is not an IP address")))
        }
        _ => Ok(None),
    }
}

/// A list that may be absent or `null`.
fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// An interface of the container or of the host.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac: Option<String>,
    /// Its MTU; since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mtu: Option<u32>,
    /// Its network namespace; absent for the host's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sandbox: Option<String>,
    /// Path of its vhost-user socket; since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub socket_path: Option<String>,
    /// Its PCI device; since 1.1.0.
    #[serde(rename = "pciID", skip_serializing_if = "Option::is_none", default)]
    pub pci_id: Option<String>,
    /// Fields that this plugin does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IpConfig {
    /// `4` or `6`; before 1.0.0.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<String>,
    /// Index of the interface in the result.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interface: Option<usize>,
    /// The address.
    pub address: Cidr,
    /// Gateway of its subnet.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "optional_address")]
    pub gateway: Option<IpAddr>,
    /// Fields that this plugin does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A route of the container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: Cidr,
    /// Gateway; absent: that of the addresses.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "optional_address")]
    pub gw: Option<IpAddr>,
    /// MTU of the path; this and the following since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mtu: Option<u32>,
    /// Maximum segment size that is advertised.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub advmss: Option<u32>,
    /// Priority; the lowest one is preferred.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub table: Option<u32>,
    /// Scope.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<u8>,
    /// Fields that this plugin does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A result of ADD.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AddResult {
    /// Interfaces.
    #[serde(skip_serializing_if = "Vec::is_empty", default, deserialize_with = "list")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(skip_serializing_if = "Vec::is_empty", default, deserialize_with = "list")]
    pub ips: Vec<IpConfig>,
    /// Routes.
    #[serde(skip_serializing_if = "Vec::is_empty", default, deserialize_with = "list")]
    pub routes: Vec<Route>,
    /// DNS: `nameservers`, `domain`, `search`, `options`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dns: Option<Map<String, Value>>,
    /// Fields that this plugin does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl AddResult {
    /// Reads the result of a plugin. It may be of any version that [`SpecVersion`] has: fields that a version lacks are
    /// absent.
    pub fn parse(result: &Value) -> Result<AddResult, String> {
        let mut read: AddResult = serde_json::from_value(result.clone()).map_err(|e| e.to_string())?;
        // Printed with the version of the network configuration.
        read.other.remove("cniVersion");
        for (what, count, most) in [
            ("interfaces", read.interfaces.len(), MAX_ITEMS),
            ("ips", read.ips.len(), MAX_ITEMS),
            ("routes", read.routes.len(), MAX_ROUTES),
        ] {
            if count > most {
                return Err(format!("{what} has {count} items; at most {most} are possible"));
            }
        }
        let count = read.interfaces.len();
        match read.ips.iter().find_map(|ip| ip.interface.filter(|index| *index >= count)) {
            Some(index) => Err(format!("ips: interface = {index}, but the result has {count} interfaces")),
            None => Ok(read),
        }
    }

    /// Appends what this plugin has made to the result of the plugins before it: an interface with the addresses, routes and
    /// DNS of its IPAM plugin.
    pub fn append(&mut self, interface: Interface, addressing: AddResult) {
        let index = self.interfaces.len();
        self.interfaces.push(interface);
        let ips = addressing.ips.into_iter().map(|ip| IpConfig { interface: Some(index), ..ip });
        self.ips.extend(ips);
        self.routes.extend(addressing.routes);
        if addressing.dns.as_ref().is_some_and(|dns| !dns.is_empty()) {
            self.dns = addressing.dns;
        }
    }

    /// The result as this version of the specification has it.
    pub fn to_json(&self, version: SpecVersion) -> Value {
        let mut result = self.clone();
        for ip in &mut result.ips {
            let family = if ip.address.address.is_ipv4() { "4" } else { "6" };
            ip.version = (version < SpecVersion::V1_0_0).then(|| family.to_owned());
        }
        if version < SpecVersion::V1_1_0 {
            for interface in &mut result.interfaces {
                (interface.mtu, interface.socket_path, interface.pci_id) = (None, None, None);
            }
            for route in &mut result.routes {
                (route.mtu, route.advmss, route.priority, route.table, route.scope) = (None, None, None, None, None);
            }
        }
        result.dns.get_or_insert_default();
        // Serialising fails only for maps with keys that are no strings.
        let mut json = serde_json::to_value(&result).unwrap_or_default();
        json["cniVersion"] = version.name().into();
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::fs;
    use std::path::Path;

    /// One of everything.
    fn example() -> AddResult {
        let addressing = json!({
            "ips": [{ "address": "10.1.0.5/16", "gateway": "10.1.0.1" }, { "address": "2001:db8::5/64" }],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.1.0.9", "mtu": 1400, "advmss": 1360,
                                                  "priority": 5, "table": 100, "scope": 0 }],
            "dns": { "nameservers": ["10.1.0.1"], "search": ["example.net"] }
        });
        let mut result = AddResult::parse(&json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "dummy0", "sandbox": "/run/netns/a" }],
            "ips": [{ "address": "192.0.2.1/32", "interface": 0 }]
        }))
        .unwrap();
        let interface = Interface {
            name: "eth0".into(),
            mac: Some("02:00:00:00:01:0a".into()),
            mtu: Some(1500),
            sandbox: Some("/run/netns/a".into()),
            socket_path: Some("/run/vhost/a".into()),
            pci_id: Some("0000:3b:00.1".into()),
            ..Interface::default()
        };
        result.append(interface, AddResult::parse(&addressing).unwrap());
        result
    }

    /// Checks a result against the types of this version of the specification.
    fn validate(result: &Value, version: SpecVersion) -> Result<(), String> {
        let keys = |value: &Value, known: &[&str], required: &[&str]| {
            let table = value.as_object().ok_or_else(|| format!("{value} is no object"))?;
            if let Some(unknown) = table.keys().find(|key| !known.contains(&key.as_str())) {
                return Err(format!("{version}: unknown key {unknown} in {value}"));
            }
            required
                .iter()
                .find(|key| !table.contains_key(**key))
                .map_or(Ok(()), |key| Err(format!("no {key} in {value}")))
        };
        let items = |key: &str| result[key].as_array().cloned().unwrap_or_default();
        keys(result, &["cniVersion", "interfaces", "ips", "routes", "dns"], &["cniVersion", "dns"])?;
        let new = version >= SpecVersion::V1_1_0;
        let interface: &[&str] =
            if new { &["name", "mac", "mtu", "sandbox", "socketPath", "pciID"] } else { &["name", "mac", "sandbox"] };
        let route: &[&str] =
            if new { &["dst", "gw", "mtu", "advmss", "priority", "table", "scope"] } else { &["dst", "gw"] };
        let has_family = version < SpecVersion::V1_0_0;
        let ip: &[&str] = if has_family {
            &["version", "interface", "address", "gateway"]
        } else {
            &["interface", "address", "gateway"]
        };
        for of in items("interfaces") {
            keys(&of, interface, &["name"])?;
        }
        for of in items("routes") {
            keys(&of, route, &["dst"])?;
        }
        for of in items("ips") {
            keys(&of, ip, if has_family { &["address", "version"] } else { &["address"] })?;
            if of["interface"].as_u64().is_some_and(|index| index as usize >= items("interfaces").len()) {
                return Err(format!("no such interface: {of}"));
            }
        }
        if result["cniVersion"] == version.name() { Ok(()) } else { Err(format!("not {version}: {result}")) }
    }

    /// `VIFSWITCH_WRITE=1 cargo test --lib golden` writes the files, to be compared by eye with the specification.
    #[test]
    fn results_of_each_version_are_the_golden_ones() {
        for version in SpecVersion::ALL {
            let printed = example().to_json(version);
            validate(&printed, version).unwrap();
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/cni/result-{version}.json"));
            let text = serde_json::to_string_pretty(&printed).unwrap() + "\n";
            if std::env::var_os("VIFSWITCH_WRITE").is_some() {
                fs::write(&path, &text).unwrap();
            }
            let golden: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(printed, golden, "{}", path.display());
        }
    }

    #[test]
    fn what_plugins_before_have_made_is_passed_on() {
        let before = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{ "name": "x", "future": { "a": 1 } }],
            "ips": [{ "address": "10.0.0.1/24", "interface": 0, "future": true }],
            "dns": { "nameservers": ["10.0.0.53"] },
            "future": [1]
        });
        let mut result = AddResult::parse(&before).unwrap();
        result.append(Interface { name: "eth0".into(), ..Interface::default() }, AddResult::default());
        let mut wanted = before;
        wanted["interfaces"].as_array_mut().unwrap().push(json!({ "name": "eth0" }));
        assert_eq!(result.to_json(SpecVersion::V1_1_0), wanted);
    }

    #[test]
    fn wrong_results_are_refused_with_the_reason() {
        for (result, part) in [
            (json!({ "ips": [{ "address": "10.0.0.1" }] }), "prefix length"),
            (json!({ "ips": [{ "address": "10.0.0.1/33" }] }), "prefix length"),
            (json!({ "ips": [{ "address": "10.0.0.1/8", "interface": 0 }] }), "0 interfaces"),
            (json!({ "ips": [{ "address": "10.0.0.1/8", "gateway": "x" }] }), "not an IP address"),
            (json!({ "routes": vec![json!({ "dst": "0.0.0.0/0" }); 1025] }), "at most 1024"),
            (json!([]), "invalid"),
        ] {
            let error = AddResult::parse(&result).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
        let lenient = json!({ "ips": null, "routes": null, "dns": {}, "interfaces": null });
        assert_eq!(AddResult::parse(&lenient).map(|read| read.ips.len()), Ok(0));
        let empty = json!({ "ips": [{ "address": "10.0.0.1/8", "gateway": "" }] });
        assert_eq!(AddResult::parse(&empty).unwrap().ips[0].gateway, None);
    }

    fn cidrs() -> impl Strategy<Value = String> {
        prop_oneof![
            (any::<[u8; 4]>(), 0..40u8).prop_map(|(octets, len)| format!("{}/{len}", IpAddr::from(octets))),
            (any::<[u8; 16]>(), 0..130u8).prop_map(|(octets, len)| format!("{}/{len}", IpAddr::from(octets))),
            ".{0,8}"
        ]
    }

    proptest! {
        #[test]
        fn what_is_printed_is_valid_in_each_version(
            addresses in proptest::collection::vec((cidrs(), any::<bool>()), 0..4),
            routes in proptest::collection::vec((cidrs(), any::<Option<u32>>(), any::<Option<u8>>()), 0..4),
            mtu: Option<u32>,
            socket: Option<String>,
        ) {
            let ips: Vec<Value> = addresses.iter().map(|(address, gateway)| match gateway {
                true => json!({ "address": address, "gateway": "10.0.0.1", "version": "4" }),
                false => json!({ "address": address }),
            }).collect();
            let routes: Vec<Value> = routes.iter().map(|(dst, mtu, scope)| {
                json!({ "dst": dst, "mtu": mtu, "scope": scope })
            }).collect();
            if let Ok(addressing) = AddResult::parse(&json!({ "ips": ips, "routes": routes })) {
                let mut result = AddResult::default();
                let interface = Interface { name: "eth0".into(), mtu, socket_path: socket, ..Interface::default() };
                result.append(interface, addressing);
                for version in SpecVersion::ALL {
                    let printed = result.to_json(version);
                    prop_assert_eq!(validate(&printed, version), Ok(()));
                    // A plugin behind this one reads it.
                    prop_assert!(AddResult::parse(&printed).is_ok());
                }
                let read = AddResult::parse(&result.to_json(SpecVersion::V1_1_0)).unwrap();
                let pairs = |of: &AddResult| of.ips.iter().map(|ip| (ip.address, ip.gateway)).collect::<Vec<_>>();
                prop_assert_eq!(pairs(&read), pairs(&result));
            }
        }

        #[test]
        fn any_json_is_read_or_refused(text in ".{0,60}", key in "interfaces|ips|routes|dns", item in ".{0,20}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = AddResult::parse(&value);
            }
            let item: Value = serde_json::from_str(&item).unwrap_or(Value::String(item));
            for value in [json!({ &key: item }), json!({ &key: [item] }), json!({ &key: [{ "address": item, "dst": item }] })] {
                let _ = AddResult::parse(&value);
            }
        }
    }
}
