//! The network namespaces of ports that end with them (`lifetime = "netns"`).
//!
//! A namespace is recorded when the switch first sees it, and stored beside the configuration: after a restart, another
//! one with its name is not taken for it, and the kernel can be asked whether it still exists.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::control::config::{Config, Port};
use crate::sys::netns_id::LastingId;

/// Recorded namespaces: by port, and by the name or path that its device has for the namespace. A port with another one is
/// not bound to the namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lifetimes(BTreeMap<String, BTreeMap<String, LastingId>>);

/// A recorded namespace as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct StoredLifetime {
    port_id: String,
    netns: String,
    namespace: LastingId,
}

impl Lifetimes {
    /// The namespace with which a port ends, by the name that its device has for it.
    pub fn get(&self, port: &str, netns: &str) -> Option<&LastingId> {
        self.0.get(port)?.get(netns)
    }

    /// Records the namespace of a port. Returns whether that is new.
    pub fn record(&mut self, port: &str, netns: &str, namespace: LastingId) -> bool {
        let of_port = self.0.entry(port.to_owned()).or_default();
        of_port.insert(netns.to_owned(), namespace.clone()).as_ref() != Some(&namespace)
    }

    /// At most `most` ports of a configuration whose namespaces have ended.
    pub fn ended(&self, config: &Config, has_ended: impl Fn(&LastingId) -> bool, most: usize) -> BTreeSet<String> {
        if self.0.is_empty() {
            return BTreeSet::new();
        }
        let namespace = |port: &Port| self.get(port.id(), port.ends_with()?);
        let ended = config.ports().filter(|(_, port)| namespace(port).is_some_and(&has_ended));
        ended.take(most).map(|(_, port)| port.port_id.clone()).collect()
    }

    /// Whether none is recorded.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All recorded namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = &LastingId> {
        self.0.values().flat_map(BTreeMap::values)
    }

    /// Forgets those that are of no port of these configurations.
    pub fn retain(&mut self, configs: &[&Config]) {
        if self.0.is_empty() {
            return;
        }
        let ports = configs.iter().flat_map(|config| config.ports());
        let ends: HashSet<(&str, &str)> = ports.filter_map(|(_, port)| Some((port.id(), port.ends_with()?))).collect();
        self.0.retain(|port, of_port| {
            of_port.retain(|netns, _| ends.contains(&(port.as_str(), netns.as_str())));
            !of_port.is_empty()
        });
    }

    /// Those of the ports of a configuration.
    pub fn of(&self, config: &Config) -> Lifetimes {
        let mut of = self.clone();
        of.retain(&[config]);
        of
    }

    /// Serialises them; null if there are none.
    pub fn to_value(&self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        let all = self.0.iter().flat_map(|(port_id, of_port)| {
            of_port.iter().map(|(netns, namespace)| StoredLifetime {
                port_id: port_id.clone(),
                netns: netns.clone(),
                namespace: namespace.clone(),
            })
        });
        // Serialising a list of tables cannot fail.
        serde_json::to_value(all.collect::<Vec<_>>()).unwrap_or_default()
    }

    /// Parses stored ones. Those that cannot be parsed are ignored: their ports are bound to the namespace that they find.
    pub fn from_value(stored: &Value) -> Lifetimes {
        let all = stored.as_array().map(Vec::as_slice).unwrap_or_default();
        let all = all.iter().filter_map(|one| StoredLifetime::deserialize(one).ok());
        let mut lifetimes = Lifetimes::default();
        for StoredLifetime { port_id, netns, namespace } in all {
            lifetimes.record(&port_id, &netns, namespace);
        }
        lifetimes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::{Device, Lifetime, testgen};
    use crate::control::desired::change::Change;
    use proptest::prelude::*;
    use serde_json::json;

    fn namespace(own: usize) -> LastingId {
        serde_json::from_value(json!({"boot": "b", "own": own, "nsid": own, "observer": 1})).unwrap()
    }

    /// Those of all ports that end with a namespace, each with a namespace of its own.
    fn all(config: &Config) -> Lifetimes {
        let mut lifetimes = Lifetimes::default();
        for (number, (_, port)) in config.ports().enumerate() {
            if let Some(netns) = port.ends_with() {
                assert!(lifetimes.record(port.id(), netns, namespace(number)));
                assert!(!lifetimes.record(port.id(), netns, namespace(number)), "known");
            }
        }
        lifetimes
    }

    proptest! {
        #[test]
        fn stored_ones_are_read_again(config in testgen::config()) {
            let lifetimes = all(&config);
            prop_assert_eq!(&Lifetimes::from_value(&lifetimes.to_value()), &lifetimes);
        }

        /// A port that is removed, or has another namespace, loses its record; no other does.
        #[test]
        fn a_record_ends_with_its_port((before, after) in testgen::two()) {
            let known = all(&before);
            let kept = known.of(&after);
            for (_, port) in before.ports() {
                let Some(netns) = port.ends_with() else { continue };
                let stays = after.ports().any(|(_, of)| of.id() == port.id() && of.ends_with() == Some(netns));
                prop_assert_eq!(kept.get(port.id(), netns), known.get(port.id(), netns).filter(|_| stays));
            }
            let mut both = known.clone();
            both.retain(&[&after, &before]);
            prop_assert_eq!(both, known);
        }
    }

    /// Puts devices into few namespaces, with both lifetimes.
    fn in_few_namespaces(mut config: Config, choices: &[u8]) -> Config {
        let ports = config.vms.iter_mut().flat_map(|vm| &mut vm.ports);
        for (port, choice) in ports.zip(choices.iter().cycle()) {
            let Some(device) = port.device_mut() else { continue };
            let netns = [None, Some("a"), Some("b"), Some("/a/b")][usize::from(choice % 4)].map(str::to_owned);
            let ends = netns.is_some() && choice & 4 != 0;
            match device {
                Device::Tap(tap) => tap.netns = netns,
                Device::Xdp(xdp) => xdp.netns = netns,
                Device::Packet(packet) => packet.netns = netns,
            }
            port.lifetime = if ends { Lifetime::Netns } else { Lifetime::Config };
        }
        config
    }

    proptest! {
        /// Of all that is configured, only the ports that end with this namespace go, with their subports, and VMs that
        /// are empty then. The rest is byte for byte what it was, in its order.
        #[test]
        fn a_namespace_takes_its_own_ports_along_and_nothing_else(
            config in testgen::config(),
            choices in prop::collection::vec(any::<u8>(), 1..20),
            most in 0usize..4,
        ) {
            let config = in_few_namespaces(config, &choices);
            let number = |netns: &str| ["a", "b", "/a/b"].iter().position(|of| *of == netns).unwrap();
            let mut known = Lifetimes::default();
            // Every third port has not seen its namespace yet.
            for (place, (_, port)) in config.ports().enumerate().filter(|(place, _)| place % 3 != 2) {
                if let Some(netns) = port.ends_with() {
                    known.record(port.id(), netns, namespace(number(netns)));
                }
                // A record of an earlier namespace of the port means nothing.
                known.record(port.id(), "earlier", namespace(place % 2));
            }
            let gone = namespace(number("a"));
            let ended = known.ended(&config, |of| *of == gone, usize::MAX);
            for (place, (_, port)) in config.ports().enumerate() {
                let goes = port.ends_with() == Some("a") && place % 3 != 2;
                prop_assert_eq!(ended.contains(port.id()), goes, "{:?}", port);
            }
            let few = known.ended(&config, |of| *of == gone, most);
            prop_assert!(few.len() == most.min(ended.len()) && few.is_subset(&ended));

            let after = Change::EndPorts(ended.clone()).to(&config).unwrap();
            let goes = |port: &Port| {
                ended.contains(port.id()) || port.subport().is_some_and(|of| ended.contains(&of.parent))
            };
            let mut expected = serde_json::to_value(&config).unwrap();
            let vms = expected["vms"].as_array_mut().unwrap();
            for (vm, of) in vms.iter_mut().zip(&config.vms) {
                let mut stays = of.ports.iter().map(|port| !goes(port));
                vm["ports"].as_array_mut().unwrap().retain(|_| stays.next().unwrap());
            }
            let mut stays = config.vms.iter().map(|vm| {
                let goes = vm.ports.iter().any(goes) && vm.ports.iter().all(goes);
                !goes || vm.has_settings()
            });
            vms.retain(|_| stays.next().unwrap());
            prop_assert_eq!(serde_json::to_value(&after).unwrap().to_string(), expected.to_string());
            // It is a configuration that a file may have.
            prop_assert_eq!(Change::Apply(after.clone()).to(&config).unwrap(), after);
        }
    }

    #[test]
    fn what_cannot_be_read_is_ignored() {
        let mut stored = json!([7, {"port_id": "p"}, null]);
        assert_eq!(Lifetimes::from_value(&stored), Lifetimes::default());
        let mut one = Lifetimes::default();
        one.record("p", "ns", namespace(1));
        stored.as_array_mut().unwrap().extend(one.to_value().as_array().unwrap().clone());
        assert_eq!(Lifetimes::from_value(&stored), one);
        assert_eq!(Lifetimes::default().to_value(), Value::Null);
    }
}
