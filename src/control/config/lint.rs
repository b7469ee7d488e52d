//! Warnings about valid configurations that are probably not intended.

use std::collections::HashMap;

use super::model::{Config, Network, Port, Vm};
use super::named::Named;
use super::policy::{PortSecurity, UnknownUnicast};
use super::storm::StormPolicy;
use crate::switch::StormClass;
use crate::wire::Mac;

/// A warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Port and VM, or uplink.
    pub about: String,
    /// Effect and remedy.
    pub message: String,
}

impl Config {
    /// Warnings in configuration order.
    pub fn lint(&self) -> Vec<Warning> {
        // Ports that may use an address of others: it may be at any of them.
        let mut users: HashMap<(&str, Mac), usize> = HashMap::new();
        for (_, port) in self.ports() {
            let mut macs: Vec<Mac> = port.allowed_address_pairs.iter().filter_map(|pair| pair.mac).collect();
            macs.push(port.mac);
            macs.sort_unstable();
            macs.dedup();
            for mac in macs {
                *users.entry((&port.network_id, mac)).or_default() += 1;
            }
        }
        let is_shared = |port: &Port, mac| users.get(&(port.network_id.as_str(), mac)).is_some_and(|users| *users > 1);
        let networks: HashMap<&str, &Network> = self.networks.iter().map(|of| (of.id.as_str(), of)).collect();
        let mut warnings = Vec::new();
        for (vm, port) in self.ports() {
            let about = format!("port {:?} (VM {:?})", port.port_id, vm.id);
            let of_port =
                [unused_pairs(port), unreachable_security(port), idle_limit(port), unreachable(port, &is_shared)];
            let network = networks.get(port.network_id.as_str());
            let idle = network.and_then(|network| idle_storm_limit(vm, port, network));
            let of_port = of_port.into_iter().flatten().chain(idle);
            warnings.extend(of_port.map(|message| Warning { about: about.clone(), message }));
        }
        let members = |group: &str| self.uplinks.iter().filter(|of| of.group.as_deref() == Some(group)).count();
        for uplink in &self.uplinks {
            if uplink.group.as_deref().is_some_and(|group| members(group) == 1) {
                let message = "it is the only uplink of its group, and has no backup; add a second one to the group";
                warnings.push(Warning { about: format!("uplink {:?}", uplink.id), message: message.into() });
            }
        }
        warnings
    }
}

fn unused_pairs(port: &Port) -> Option<String> {
    let is_own = |mac: Option<Mac>| mac.is_none_or(|mac| mac == port.mac);
    let unused = port.allowed_address_pairs.iter().find(|pair| is_own(pair.mac))?;
    (port.port_security == PortSecurity::Mac).then(|| {
        let what = unused.ip.map_or_else(|| port.mac.to_string(), |ip| ip.to_string());
        format!(
            "the allowed address pair with {what} and its own MAC address has no effect: port_security = \
             \"mac\" allows any IP address from that MAC address; \"mac+ip\" does not"
        )
    })
}

fn unreachable_security(port: &Port) -> Option<String> {
    let is_mute =
        port.port_security == PortSecurity::MacIp && port.fixed_ips.is_empty() && port.allowed_address_pairs.is_empty();
    is_mute.then(|| {
        "all its IP packets are dropped: port_security = \"mac+ip\" allows fixed_ips and allowed_address_pairs, \
         and it has neither; \"mac\" allows any IP address from its own MAC address"
            .into()
    })
}

fn idle_limit(port: &Port) -> Option<String> {
    (port.mac_limit.is_some() && port.port_security != PortSecurity::Off).then(|| {
        format!(
            "mac_limit has no effect: with port_security = {:?} only its own and allowed addresses pass, which \
             do not count",
            port.port_security.name()
        )
    })
}

/// A port whose limit exceeds its VM's.
fn idle_storm_limit(vm: &Vm, port: &Port, network: &Network) -> Option<String> {
    let common = vm.storm.over(network.storm);
    let class = StormClass::ALL.into_iter().find(|&class| {
        let of_vm = common.limit(class).and_then(|limit| limit.frames).map(|rate| rate.per_second());
        match (port.storm.classes[class as usize], of_vm) {
            (Some(StormPolicy::Off), Some(_)) => true,
            (Some(StormPolicy::Limit(own)), Some(of_vm)) => own.frames.is_some_and(|own| own.per_second() > of_vm),
            (None, _) | (_, None) => false,
        }
    })?;
    Some(format!(
        "storm.{0} exceeds the limit of its VM on network {1:?}, which applies to all ports of the VM together; \
         raise storm.{0} of the VM or of the network",
        class.name(),
        network.id
    ))
}

fn unreachable(port: &Port, is_shared: &impl Fn(&Port, Mac) -> bool) -> Option<String> {
    if port.unknown_unicast == UnknownUnicast::Deliver {
        return None;
    }
    if port.port_security == PortSecurity::Off {
        let message = "with unknown_unicast = \"suppress\" and without port security, stations behind it with \
                       other addresses than its own are reachable only until they age out of the FDB";
        return Some(message.into());
    }
    let shared = port.allowed_address_pairs.iter().filter_map(|pair| pair.mac).find(|&mac| is_shared(port, mac))?;
    Some(format!(
        "{shared} is allowed to other ports as well; with unknown_unicast = \"suppress\" it is reachable here \
         only until it ages out of the FDB"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{parse_toml, testgen};
    use proptest::prelude::*;

    /// Warnings about a port with these keys, beside one with none.
    fn said(keys: &str) -> Vec<String> {
        let port = |id: u8, keys: &str| {
            format!(
                "[[vms.ports]]\nport_id = \"p{id}\"\nnetwork_id = \"n\"\nmac_address = \"02:00:00:00:00:0{id}\"\n{keys}\n\
                 device = {{ kind = \"tap\" }}\n"
            )
        };
        let vrrp = "allowed_address_pairs = [{ mac_address = \"00:00:5e:00:01:01\" }]";
        let text = format!("[[networks]]\nid = \"n\"\n[[vms]]\nid = \"a\"\n{}{}", port(1, keys), port(2, vrrp));
        let warnings = parse_toml(&text, "x").unwrap().lint();
        assert!(warnings.iter().all(|warning| warning.about == "port \"p1\" (VM \"a\")"), "{warnings:?}");
        warnings.into_iter().map(|warning| warning.message).collect()
    }

    #[test]
    fn usual_settings_cause_no_warning() {
        for keys in [
            "",
            "port_security = \"off\"",
            "fixed_ips = [\"10.5.0.1\"]",
            "fixed_ips = [\"10.5.0.1\"]\nport_security = \"mac+ip\"",
            "port_security = \"mac+ip\"\nallowed_address_pairs = [{ ip_address = \"10.0.0.0/8\" }]",
            "allowed_address_pairs = [{ mac_address = \"00:00:5e:00:01:01\", ip_address = \"10.0.0.1\" }]",
            "unknown_unicast = \"suppress\"",
            "promiscuous = true",
            "port_security = \"off\"\nmac_limit = 4",
            "storm = { broadcast = { pps = 400 }, unknown_unicast = { bps = 1000000 } }",
        ] {
            assert_eq!(said(keys), [""; 0], "{keys}");
        }
    }

    #[test]
    fn unintended_settings_cause_one_warning() {
        for (keys, piece) in [
            ("allowed_address_pairs = [{ ip_address = \"10.0.0.0/8\" }]", "with 10.0.0.0/8 and its own MAC"),
            ("allowed_address_pairs = [{ mac_address = \"02:00:00:00:00:01\" }]", "has no effect"),
            ("port_security = \"mac+ip\"", "all its IP packets are dropped"),
            ("mac_limit = 4", "do not count"),
            ("port_security = \"off\"\nunknown_unicast = \"suppress\"", "without port security"),
            ("storm = { broadcast = { pps = 501 } }", "storm.broadcast exceeds the limit"),
            ("storm.multicast = \"off\"", "storm.multicast of the VM or of the network"),
            (
                "unknown_unicast = \"suppress\"\nallowed_address_pairs = [{ mac_address = \"00:00:5e:00:01:01\" }]",
                "00:00:5e:00:01:01 is allowed to other ports",
            ),
        ] {
            let said = said(keys);
            assert!(said.len() == 1 && said[0].contains(piece), "{keys}: {said:?}");
        }
    }

    proptest! {
        /// A port with default keys causes no warning, whatever other ports there are.
        #[test]
        fn defaults_cause_no_warning(mut config in testgen::config()) {
            for port in config.vms.iter_mut().flat_map(|vm| &mut vm.ports) {
                port.port_security = super::PortSecurity::Mac;
                port.allowed_address_pairs.clear();
                port.mac_limit = None;
                port.storm = super::super::Storm::default();
            }
            prop_assert_eq!(config.lint(), []);
        }
    }
}
