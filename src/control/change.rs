//! A change to the desired state, and why it may be refused.
//!
//! [`Change::to`] is pure: from a configuration to the one that is wanted instead. Everything that
//! can be known without touching the host is checked here, against the same admission as a file.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::blueprint;
use super::config::{
    Config, Named, Network, Port, PortKeys, PortSecurity, Problem, SwitchSettings, Vm, judge_written, kind, nearest,
    written,
};
use super::difference::{keys, otherwise};
use crate::wire::Mac;

/// What someone wants changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Everything: this configuration instead of the present one. `[switch]` is fixed at start.
    Apply(Config),
    /// These ports, behind those that the VM has already, in this order. An unknown VM is a new one.
    Attach {
        /// The VM.
        vm: String,
        /// Its new ports.
        ports: Vec<Port>,
    },
    /// This port shall be gone. Its siblings keep their order.
    Detach {
        /// The port.
        port: String,
    },
    /// Some keys of a port shall be otherwise; those that are not named stay as they are.
    Set {
        /// The port.
        port: String,
        /// The keys.
        keys: PortKeys,
    },
}

/// Whose doing it is that a change cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The request can never be right (400).
    Request,
    /// It names something that is not there (404).
    Unknown,
    /// Something is in the way now (409).
    Conflict,
    /// The switch cannot keep its promise: the store fails, a limit is reached, it is stopping (503).
    Switch,
}

/// Why a change has not been made. Nothing has been changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Whose doing it is.
    pub blame: Blame,
    /// For programs: `duplicate_port`, `unknown_port`, `port_in_use` …
    pub kind: &'static str,
    /// For people: what is wrong, and what would be right. A line for each thing.
    pub message: String,
}

/// What came of a change that was made. It is true on every worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// What is otherwise now, a sentence for each thing; empty if it was so already.
    pub differences: Vec<String>,
    /// Remarks: ports that are wanted but have no device yet, and why.
    pub remarks: Vec<String>,
}

impl Refusal {
    /// Something in the request can never be right.
    pub fn request(kind: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { blame: Blame::Request, kind, message: message.into() }
    }

    /// Something that it names is not there.
    pub fn unknown(kind: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { blame: Blame::Unknown, kind, message: message.into() }
    }

    /// Something is in the way now.
    pub fn conflict(kind: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { blame: Blame::Conflict, kind, message: message.into() }
    }

    /// The switch cannot keep its promise.
    pub fn switch(kind: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { blame: Blame::Switch, kind, message: message.into() }
    }

    /// There is no such port in `config`.
    pub fn unknown_port(config: &Config, port: &str) -> Refusal {
        let ids = config.vms.iter().flat_map(|vm| &vm.ports).map(|port| port.port_id.as_str());
        Refusal::unknown("unknown_port", not_there("port", port, ids))
    }

    /// There is no such network in `config`.
    pub fn unknown_network(config: &Config, network: &str) -> Refusal {
        let ids = config.networks.iter().map(|network| network.id.as_str());
        Refusal::unknown(kind::UNKNOWN_NETWORK, not_there("network", network, ids))
    }
}

fn not_there<'a>(what: &str, id: &str, ids: impl Iterator<Item = &'a str>) -> String {
    match nearest(id, ids) {
        Some(meant) => format!("there is no {what} {id:?}; did you mean {meant:?}?"),
        None => format!("there is no {what} {id:?}"),
    }
}

impl Change {
    /// The configuration that is wanted instead of `now`.
    ///
    /// A VM goes with its last port: it is nothing but its ports. One without ports is there only
    /// where a whole configuration lists it so.
    pub fn to(&self, now: &Config) -> Result<Config, Refusal> {
        let wanted = match self {
            Change::Apply(config) => apply(now, config),
            Change::Attach { vm, ports } => attach(now, vm, ports),
            Change::Detach { port } => detach(now, port),
            Change::Set { port, keys } => set(now, port, keys),
        }?;
        blueprint::fits(&wanted).map_err(|e| Refusal::conflict("too_many", e.to_string()))?;
        Ok(wanted)
    }
}

fn apply(now: &Config, config: &Config) -> Result<Config, Refusal> {
    let judged = judge_written(&config.to_written()).map_err(|errors| {
        let told: Vec<String> = errors.problems().iter().map(Problem::told).collect();
        Refusal::request(errors.kind(), told.join("\n"))
    })?;
    let fixed = fixed_at_start(&now.switch, &judged.switch);
    if fixed.is_empty() { Ok(judged) } else { Err(Refusal::conflict("fixed_at_start", fixed.join("\n"))) }
}

/// A sentence for each key of `[switch]` that would have to be otherwise.
fn fixed_at_start(runs: &SwitchSettings, wanted: &SwitchSettings) -> Vec<String> {
    let (runs, wanted) = (keys(&runs.to_written()), keys(&wanted.to_written()));
    let told = |(name, runs, _)| {
        format!("switch.{name} is fixed at start and is {runs} now; leave it so, or start the switch anew")
    };
    otherwise(&runs, &wanted).map(told).collect()
}

fn attach(now: &Config, vm: &str, ports: &[Port]) -> Result<Config, Refusal> {
    if ports.is_empty() {
        return Err(Refusal::request(kind::MISSING, "there is no port to attach; give one at least"));
    }
    let mut ids = HashSet::new();
    if let Some(twice) = ports.iter().find(|port| !ids.insert(port.port_id.as_str())) {
        let message = format!("port {:?} stands in the request twice; a port attaches once", twice.port_id);
        return Err(Refusal::request(kind::DUPLICATE_PORT, message));
    }
    let ports = judge(now, vm, ports.iter().map(Port::to_written).collect(), "vms[0].")?;
    in_the_way(now, &ports, None)?;
    let mut wanted = now.clone();
    match wanted.vms.iter_mut().find(|known| known.id == vm) {
        Some(known) => known.ports.extend(ports),
        None => wanted.vms.push(Vm { id: vm.to_owned(), ports }),
    }
    Ok(wanted)
}

fn detach(now: &Config, port: &str) -> Result<Config, Refusal> {
    let (vm, position) = find(now, port)?;
    let mut wanted = now.clone();
    wanted.vms[vm].ports.remove(position);
    if wanted.vms[vm].ports.is_empty() {
        wanted.vms.remove(vm);
    }
    Ok(wanted)
}

fn set(now: &Config, port: &str, keys: &PortKeys) -> Result<Config, Refusal> {
    let (vm, position) = find(now, port)?;
    if keys.given.port_id.is_some() || keys.cleared.iter().any(|key| key == "port_id") {
        let message = "port_id is what a port is known by and cannot be set; detach it and attach another one";
        return Err(Refusal::request("fixed_key", message));
    }
    let mut written = now.vms[vm].ports[position].to_written();
    clear(&mut written, &keys.cleared);
    let written = merge(written, keys.given.clone());
    let ports = judge(now, &now.vms[vm].id, vec![written], "vms[0].ports[0].")?;
    in_the_way(now, &ports, Some(port))?;
    let mut wanted = now.clone();
    wanted.vms[vm].ports.splice(position..=position, ports);
    Ok(wanted)
}

/// Where a port stands: its VM and its place there.
fn find(now: &Config, port: &str) -> Result<(usize, usize), Refusal> {
    let found = now.vms.iter().enumerate().find_map(|(index, vm)| {
        let position = vm.ports.iter().position(|known| known.port_id == port)?;
        Some((index, position))
    });
    found.ok_or_else(|| Refusal::unknown_port(now, port))
}

/// Makes it as if these keys had not been written.
fn clear(port: &mut written::Port, keys: &[String]) {
    for key in keys {
        match (key.split_once('.'), &mut port.device) {
            (None, _) => port.clear(key),
            (Some(("device", key)), Some(device)) => device.clear(key),
            _ => {}
        }
        match key.as_str() {
            // Two words for one thing, of which the other one is kept.
            "port_security_enabled" => port.clear("port_security"),
            // It says what happens at the limit.
            "mac_limit" => port.clear("mac_limit_policy"),
            _ => {}
        }
    }
}

/// The keys of `now`, but for those that `keys` has.
fn merge(now: written::Port, keys: written::Port) -> written::Port {
    // Two words for one thing: whoever says one of them means it, whatever the other was.
    let port_security = match keys.port_security_enabled {
        Some(enabled) if keys.port_security.is_none() => {
            now.port_security.filter(|security| (security == PortSecurity::Off.name()) != enabled)
        }
        _ => keys.port_security.or(now.port_security),
    };
    let device = match (now.device, keys.device) {
        (Some(now), Some(keys)) if keys.kind.is_none() || keys.kind == now.kind => Some(written::Device {
            kind: now.kind,
            name: keys.name.or(now.name),
            netns: keys.netns.or(now.netns),
            queues: keys.queues.or(now.queues),
            offloads: keys.offloads.or(now.offloads),
            persist: keys.persist.or(now.persist),
            mode: keys.mode.or(now.mode),
            takeover: keys.takeover.or(now.takeover),
        }),
        (now, keys) => keys.or(now),
    };
    written::Port {
        port_id: now.port_id,
        network_id: keys.network_id.or(now.network_id),
        mac_address: keys.mac_address.or(now.mac_address),
        fixed_ips: keys.fixed_ips.or(now.fixed_ips),
        ip_allocation: keys.ip_allocation.or(now.ip_allocation),
        port_security,
        port_security_enabled: keys.port_security_enabled,
        allowed_address_pairs: keys.allowed_address_pairs.or(now.allowed_address_pairs),
        unknown_unicast: keys.unknown_unicast.or(now.unknown_unicast),
        promiscuous: keys.promiscuous.or(now.promiscuous),
        mac_limit: keys.mac_limit.or(now.mac_limit),
        mac_limit_policy: keys.mac_limit_policy.or(now.mac_limit_policy),
        admin_state_up: keys.admin_state_up.or(now.admin_state_up),
        device,
    }
}

/// Judges ports as if they stood in a file beside the networks of `now`. `here` is where the
/// request begins in that file.
fn judge(now: &Config, vm: &str, ports: Vec<written::Port>, here: &str) -> Result<Vec<Port>, Refusal> {
    // The bounds of the networks that they are on are asked for, and of the others the names.
    let asked: HashSet<&str> = ports.iter().filter_map(|port| port.network_id.as_deref()).collect();
    let network = |network: &Network| {
        if asked.contains(network.id.as_str()) {
            return network.to_written();
        }
        written::Network { id: Some(network.id.clone()), ..Default::default() }
    };
    let networks = now.networks.iter().map(network).collect();
    let file = written::Config {
        switch: None,
        networks: Some(networks),
        vms: Some(vec![written::Vm { id: Some(vm.to_owned()), ports: Some(ports) }]),
        uplinks: None,
    };
    match judge_written(&file) {
        Ok(config) => Ok(config.vms.into_iter().flat_map(|vm| vm.ports).collect()),
        Err(errors) => {
            let told: Vec<String> = errors.problems().iter().map(|problem| problem.told().replace(here, "")).collect();
            let message = told.join("\n");
            let wrong = errors.problems().iter().find(|problem| problem.kind != kind::UNKNOWN_NETWORK);
            Err(wrong.map_or_else(
                || Refusal::unknown(kind::UNKNOWN_NETWORK, message.clone()),
                |problem| Refusal::request(problem.kind, message.clone()),
            ))
        }
    }
}

/// Whether other ports than `but`, or uplinks, have what these ports need for themselves.
fn in_the_way(now: &Config, ports: &[Port], but: Option<&str>) -> Result<(), Refusal> {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    let ids: HashMap<&str, &Port> = ports.iter().map(|port| (port.port_id.as_str(), port)).collect();
    let macs: HashMap<(&str, Mac), &Port> =
        ports.iter().map(|port| ((port.network_id.as_str(), port.mac), port)).collect();
    let netdevs: HashMap<(String, &str), &Port> = ports.iter().map(|port| (port.device.netdev(), port)).collect();
    for vm in &now.vms {
        for other in vm.ports.iter().filter(|other| Some(other.port_id.as_str()) != but) {
            let holder = || format!("port {:?} of VM {:?}", other.port_id, vm.id);
            if ids.contains_key(other.port_id.as_str()) {
                let message = format!("port {:?} is in use by VM {:?}; detach it there first", other.port_id, vm.id);
                found.push(("port_in_use", message));
                // It has its own MAC address and its own netdev: once is enough said.
                continue;
            }
            if let Some(port) = macs.get(&(other.network_id.as_str(), other.mac)) {
                found.push((
                    "mac_in_use",
                    format!(
                        "port {:?}: {} is the address of {} on network {:?}; each port needs its own there",
                        port.port_id,
                        other.mac,
                        holder(),
                        other.network_id
                    ),
                ));
            }
            let netdev = other.device.netdev();
            if let Some(port) = netdevs.get(&netdev) {
                let message = format!(
                    "port {:?}: the netdev {:?} is in use by {}; each port needs its own",
                    port.port_id,
                    netdev.1,
                    holder()
                );
                found.push(("device_in_use", message));
            }
        }
    }
    for uplink in &now.uplinks {
        if ids.contains_key(uplink.id.as_str()) {
            let message = format!("port {:?}: an uplink has this id; each port needs its own", uplink.id);
            found.push(("port_in_use", message));
        }
        let netdev = uplink.device.netdev();
        if let Some(port) = netdevs.get(&netdev) {
            let message = format!(
                "port {:?}: the netdev {:?} is in use by uplink {:?}; each needs its own",
                port.port_id, netdev.1, uplink.id
            );
            found.push(("device_in_use", message));
        }
    }
    let Some(&(kind, _)) = found.first() else { return Ok(()) };
    let lines: Vec<String> = found.into_iter().map(|(_, message)| message).collect();
    Err(Refusal::conflict(kind, lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::{Device, parse_json, parse_port_keys_json, strategy};
    use proptest::prelude::*;
    use proptest::sample::Index;
    use serde_json::{Value, json};

    fn port(id: &str, network: &str, mac: u64, tap: &str) -> Value {
        let mac = Mac::from_bits(0x0200_0000_0000 + mac).to_string();
        json!({"port_id": id, "network_id": network, "mac_address": mac, "device": {"kind": "tap", "name": tap}})
    }

    fn config(vms: &Value) -> Config {
        let networks = json!([{"id": "net1"}, {"id": "net2"}]);
        parse_json(&json!({"networks": networks, "vms": vms}).to_string(), "x").unwrap()
    }

    /// VM a with p1 on net1 and p2 on net2, VM b with p3 on net1.
    fn there() -> Config {
        config(&json!([
            {"id": "a", "ports": [port("p1", "net1", 1, "t1"), port("p2", "net2", 2, "t2")]},
            {"id": "b", "ports": [port("p3", "net1", 3, "t3")]},
        ]))
    }

    /// The ports of these tables.
    fn ports(ports: &[Value]) -> Vec<Port> {
        config(&json!([{"id": "x", "ports": ports}])).vms.remove(0).ports
    }

    fn attach(vm: &str, ports: Vec<Port>) -> Change {
        Change::Attach { vm: vm.into(), ports }
    }

    fn set(port: &str, keys: impl Into<PortKeys>) -> Change {
        Change::Set { port: port.into(), keys: keys.into() }
    }

    fn detach(port: &str) -> Change {
        Change::Detach { port: port.into() }
    }

    fn listed(config: &Config) -> Vec<(&str, Vec<&str>)> {
        config.vms.iter().map(|vm| (vm.id.as_str(), vm.ports.iter().map(Port::id).collect())).collect()
    }

    fn refused(change: &Change) -> (Blame, &'static str, String) {
        let Refusal { blame, kind, message } = change.to(&there()).unwrap_err();
        (blame, kind, message)
    }

    #[test]
    fn the_order_asked_for_is_kept() {
        let now = there();
        let now = attach("a", ports(&[port("p5", "net1", 5, "t5"), port("p4", "net1", 4, "t4")])).to(&now).unwrap();
        assert_eq!(listed(&now), [("a", vec!["p1", "p2", "p5", "p4"]), ("b", vec!["p3"])]);
        let now = detach("p2").to(&now).unwrap();
        assert_eq!(listed(&now), [("a", vec!["p1", "p5", "p4"]), ("b", vec!["p3"])]);
        let now = attach("new", ports(&[port("p2", "net2", 2, "t2")])).to(&now).unwrap();
        assert_eq!(listed(&now), [("a", vec!["p1", "p5", "p4"]), ("b", vec!["p3"]), ("new", vec!["p2"])]);
    }

    #[test]
    fn a_vm_goes_with_its_last_port() {
        assert_eq!(listed(&detach("p3").to(&there()).unwrap()), [("a", vec!["p1", "p2"])]);
        let listed_empty = config(&json!([{"id": "a", "ports": [port("p1", "net1", 1, "t1")]}, {"id": "empty"}]));
        assert_eq!(listed(&detach("p1").to(&listed_empty).unwrap()), [("empty", vec![])]);
    }

    #[test]
    fn what_can_never_be_attached_is_the_fault_of_the_request() {
        use Blame::Request;
        let (blame, kind, _) = refused(&attach("a", Vec::new()));
        assert_eq!((blame, kind), (Request, "missing"));
        // Nothing else is judged: p3 is in use, and its network is not there.
        let twice = Port { network_id: "gone".into(), ..ports(&[port("p3", "net1", 9, "t9")]).remove(0) };
        let (blame, kind, message) = refused(&attach("a", vec![twice.clone(), twice]));
        assert_eq!((blame, kind), (Request, "duplicate_port"), "{message}");
        let [one, two] = [("p8", "t8"), ("p9", "t9")].map(|(id, tap)| ports(&[port(id, "net1", 9, tap)]).remove(0));
        let (blame, kind, message) = refused(&attach("a", vec![one, two]));
        assert_eq!((blame, kind), (Request, "duplicate_mac"), "{message}");
        assert!(message.starts_with("ports[1].mac_address = "), "{message}");
        let (blame, kind, _) = refused(&attach("", ports(&[port("p9", "net1", 9, "t9")])));
        assert_eq!((blame, kind), (Request, "bad_value"));
        let group = Port { mac: Mac::BROADCAST, ..ports(&[port("p9", "net1", 9, "t9")]).remove(0) };
        assert_eq!(refused(&attach("a", vec![group])).1, "bad_value");
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let cases = [
            (port("p3", "net1", 3, "t3"), "port_in_use", "in use by VM \"b\""),
            (port("p9", "net1", 1, "t9"), "mac_in_use", "port \"p1\" of VM \"a\""),
            (port("p9", "net1", 9, "t2"), "device_in_use", "port \"p2\" of VM \"a\""),
        ];
        for (table, wanted, named) in cases {
            let (blame, kind, message) = refused(&attach("a", ports(&[table])));
            assert_eq!((blame, kind), (Blame::Conflict, wanted), "{message}");
            assert!(message.contains(named), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
        let (_, _, message) = refused(&attach("a", ports(&[port("p3", "net1", 9, "t9"), port("p9", "net1", 1, "t2")])));
        assert_eq!(message.lines().count(), 3, "{message}");
        // The same address on another network is another station.
        attach("a", ports(&[port("p9", "net2", 1, "t9")])).to(&there()).unwrap();
    }

    #[test]
    fn what_is_not_there_is_unknown() {
        let nowhere = Port { network_id: "net".into(), ..ports(&[port("p9", "net1", 9, "t9")]).remove(0) };
        let (blame, kind, message) = refused(&attach("a", vec![nowhere]));
        assert_eq!((blame, kind), (Blame::Unknown, "unknown_network"));
        assert!(message.contains("did you mean \"net"), "{message}");
        for change in [detach("p"), set("p", written::Port::default())] {
            let (blame, kind, message) = refused(&change);
            assert_eq!((blame, kind), (Blame::Unknown, "unknown_port"));
            assert!(message.contains("did you mean \"p"), "{message}");
        }
    }

    #[test]
    fn keys_that_are_not_set_stay() {
        let keys = written::Port {
            mac_address: Some("02:00:00:00:00:77".into()),
            device: Some(written::Device { queues: Some(4), ..Default::default() }),
            ..Default::default()
        };
        let now = there();
        let then = set("p1", keys).to(&now).unwrap();
        let mut wanted = now.vms[0].ports[0].clone();
        wanted.mac = Mac::from_bits(0x0200_0000_0077);
        let Device::Tap(tap) = &mut wanted.device else { panic!("{wanted:?}") };
        tap.queues = 4;
        assert_eq!(then.vms[0].ports[0], wanted);
        assert_eq!((&then.vms[0].ports[1..], &then.vms[1..]), (&now.vms[0].ports[1..], &now.vms[1..]));
    }

    #[test]
    fn a_set_is_judged_as_a_file_is() {
        let key = |key: &str, value: Value| {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            match key {
                "mac_address" => written::Port { mac_address: text(&value), ..Default::default() },
                "network_id" => written::Port { network_id: text(&value), ..Default::default() },
                _ => written::Port { port_id: text(&value), ..Default::default() },
            }
        };
        let cases = [
            ("mac_address", json!("02:00:00:00:00:03"), Blame::Conflict, "mac_in_use"),
            ("mac_address", json!("nonsense"), Blame::Request, "bad_value"),
            ("network_id", json!("nowhere"), Blame::Unknown, "unknown_network"),
            ("port_id", json!("p1"), Blame::Request, "fixed_key"),
        ];
        for (name, value, blame, kind) in cases {
            let (was, found, message) = refused(&set("p1", key(name, value)));
            assert_eq!((was, found), (blame, kind), "{message}");
        }
    }

    #[test]
    fn keys_that_are_null_are_as_in_a_file_without_them() {
        let clear = |keys: Value| set("p1", parse_port_keys_json(&keys.to_string(), "x").unwrap());
        let mut now = there();
        let plain = now.vms[0].ports[0].clone();
        let port = &mut now.vms[0].ports[0];
        port.port_security = PortSecurity::Off;
        port.admin_state_up = false;
        let Device::Tap(tap) = &mut port.device else { panic!("{port:?}") };
        (tap.netns, tap.queues, tap.persist) = (Some("away".into()), 4, false);
        // In JSON as it comes; a port that is written again with its kind and name is as it was at first.
        let keys = json!({ "port_security": null, "admin_state_up": null,
            "device": { "netns": null, "queues": null, "persist": null } });
        assert_eq!(clear(keys).to(&now).unwrap().vms[0].ports[0], plain);
        // Of two words for one thing either brings the default back.
        let then = clear(json!({ "port_security_enabled": null, "device": { "netns": null } })).to(&now).unwrap();
        let Device::Tap(tap) = &then.vms[0].ports[0].device else { panic!("{then:?}") };
        assert_eq!((then.vms[0].ports[0].port_security, tap.netns.as_ref(), tap.queues), (PortSecurity::Mac, None, 4));
        // A name that is not written is made of the id.
        let then = clear(json!({ "device": { "name": null } })).to(&now).unwrap();
        let Device::Tap(tap) = &then.vms[0].ports[0].device else { panic!("{then:?}") };
        assert_eq!(tap.name, "tapp1");
        // What must be given cannot go.
        for (keys, kind) in [
            (json!({ "mac_address": null }), "missing"),
            (json!({ "network_id": null }), "missing"),
            (json!({ "device": null }), "missing"),
            (json!({ "device": { "kind": null } }), "missing"),
            (json!({ "port_id": null }), "fixed_key"),
        ] {
            let (blame, found, message) = refused(&clear(keys));
            assert_eq!((blame, found), (Blame::Request, kind), "{message}");
        }
    }

    #[test]
    fn both_words_for_security_can_be_set() {
        let enabled = |enabled| written::Port { port_security_enabled: Some(enabled), ..Default::default() };
        let security = |config: &Config| config.vms[0].ports[0].port_security;
        let off = set("p1", enabled(false)).to(&there()).unwrap();
        assert_eq!(security(&off), PortSecurity::Off);
        assert_eq!(security(&set("p1", enabled(false)).to(&off).unwrap()), PortSecurity::Off);
        assert_eq!(security(&set("p1", enabled(true)).to(&off).unwrap()), PortSecurity::Mac);
        let word = written::Port { port_security: Some("off".into()), ..Default::default() };
        assert_eq!(security(&set("p1", word).to(&there()).unwrap()), PortSecurity::Off);
    }

    #[test]
    fn the_process_is_not_changed_while_it_runs() {
        let now = there();
        let mut other = now.clone();
        other.networks.clear();
        other.vms.clear();
        assert_eq!(Change::Apply(other.clone()).to(&now), Ok(other.clone()));
        other.switch.frames += 1;
        other.switch.metrics = Some("127.0.0.1:9477".parse().unwrap());
        let Refusal { blame, kind, message } = Change::Apply(other).to(&now).unwrap_err();
        assert_eq!((blame, kind), (Blame::Conflict, "fixed_at_start"));
        assert!(message.contains("switch.frames is fixed at start and is 65536 now"), "{message}");
        assert!(message.contains("switch.metrics is fixed at start and is not set now"), "{message}");
        assert_eq!(message.lines().count(), 2, "{message}");
    }

    #[test]
    fn what_an_uplink_has_is_in_use() {
        let mut now = there();
        let uplink = json!([{"id": "up0", "networks": [{"network_id": "net1"}],
            "device": {"kind": "xdp", "name": "eth1"}}]);
        let text = json!({"networks": [{"id": "net1"}], "uplinks": uplink}).to_string();
        now.uplinks = parse_json(&text, "x").unwrap().uplinks;
        let refused = |port: Value| {
            let Refusal { blame, kind, message } = attach("a", ports(&[port])).to(&now).unwrap_err();
            assert_eq!(blame, Blame::Conflict, "{message}");
            assert!(message.contains("uplink"), "{message}");
            kind
        };
        assert_eq!(refused(port("p9", "net1", 9, "eth1")), "device_in_use");
        assert_eq!(refused(port("up0", "net1", 9, "t9")), "port_in_use");
        // Its network cannot go either.
        let mut without = Config { vms: Vec::new(), ..now.clone() };
        without.networks.remove(0);
        let Refusal { blame, kind, message } = Change::Apply(without).to(&now).unwrap_err();
        assert_eq!((blame, kind), (Blame::Request, "unknown_network"), "{message}");
        assert!(message.starts_with("uplinks[0].networks[0].network_id = \"net1\""), "{message}");
    }

    #[test]
    fn too_many_are_refused() {
        let now = there();
        let many = (0..4096).map(|n| port(&format!("x{n}"), "net1", 100 + n, &format!("x{n}"))).collect::<Vec<_>>();
        let refusal = attach("a", ports(&many)).to(&now).unwrap_err();
        assert_eq!((refusal.blame, refusal.kind), (Blame::Conflict, "too_many"));
    }

    proptest! {
        /// Whatever is accepted could have stood in a file.
        #[test]
        fn what_is_accepted_is_right(
            (now, other) in strategy::two(), from in any::<Index>(), take in any::<Index>(), what in 0..3
        ) {
            let id = |config: &Config, at: Index| {
                let ids: Vec<String> = config.ports().map(|(_, port)| port.port_id.clone()).collect();
                (!ids.is_empty()).then(|| at.get(&ids).clone())
            };
            let change = match (what, id(&now, from), other.ports().nth(take.index(8))) {
                (0, Some(id), _) => detach(&id),
                (1, Some(id), Some((_, port))) => {
                    set(&id, written::Port { port_id: None, ..port.to_written() })
                }
                (_, _, Some((vm, port))) => attach(&vm.id, vec![port.clone()]),
                _ => return Ok(()),
            };
            // The strategy edits freely; what it makes may not be right itself.
            prop_assume!(judge_written(&now.to_written()).is_ok());
            if let Ok(then) = change.to(&now) {
                prop_assert_eq!(judge_written(&then.to_written()), Ok(then.clone()));
                let stay = |config: &Config| -> Vec<String> {
                    config.ports().map(|(_, port)| port.port_id.clone()).collect()
                };
                let (before, after) = (stay(&now), stay(&then));
                let kept: Vec<&String> = before.iter().filter(|id| after.contains(id)).collect();
                let known: Vec<&String> = after.iter().filter(|id| before.contains(id)).collect();
                prop_assert_eq!(kept, known, "nobody changes places");
            }
        }
    }
}
