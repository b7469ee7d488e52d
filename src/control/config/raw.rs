//! The configuration as written: the tables and their keys, nothing filled in, nothing judged but
//! the type of each value.
//!
//! One macro defines the struct of a table, the list of its keys and the reading of it, so that the
//! three cannot drift apart. Reading does not go through serde, which would stop at the first
//! value of a wrong type.

use serde::Serialize;
use utoipa::ToSchema;

use super::diagnostics::{Diagnostics, Path};
use super::error::{kind, quoted};
use super::parse::{Node, Value};

/// From a document, with a note for everything that is not as it should be.
pub(super) trait Read: Sized {
    /// `None` if there is nothing here that could be judged any further.
    fn read(node: &Node, path: &Path, diagnostics: &mut Diagnostics<'_>) -> Option<Self>;
}

/// Notes that the value at `path` is of a wrong type.
fn wrong(node: &Node, path: &Path, diagnostics: &mut Diagnostics<'_>, wanted: &str) {
    let found = match &node.value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Integer(_) => "a number",
        Value::Other(_) => "not a whole number",
        Value::Text(_) => "a text",
        Value::List(_) => "a list",
        Value::Table(_) => "a table",
    };
    diagnostics.push(path, kind::WRONG_TYPE, format!("this is {found}; {wanted} belongs here"));
}

impl Read for bool {
    fn read(node: &Node, path: &Path, diagnostics: &mut Diagnostics<'_>) -> Option<bool> {
        let Value::Bool(yes) = node.value else {
            wrong(node, path, diagnostics, "true or false");
            return None;
        };
        Some(yes)
    }
}

impl Read for i64 {
    fn read(node: &Node, path: &Path, diagnostics: &mut Diagnostics<'_>) -> Option<i64> {
        let Value::Integer(number) = node.value else {
            wrong(node, path, diagnostics, "a whole number");
            return None;
        };
        Some(number)
    }
}

impl Read for String {
    fn read(node: &Node, path: &Path, diagnostics: &mut Diagnostics<'_>) -> Option<String> {
        let Value::Text(text) = &node.value else {
            wrong(node, path, diagnostics, "a text in quotes");
            return None;
        };
        Some(text.clone())
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(node: &Node, path: &Path, diagnostics: &mut Diagnostics<'_>) -> Option<Vec<T>> {
        let Value::List(items) = &node.value else {
            wrong(node, path, diagnostics, "a list");
            return None;
        };
        // all are read before any is missed, so that all are judged
        let items: Vec<_> =
            items.iter().enumerate().map(|(index, item)| T::read(item, &path.item(index), diagnostics)).collect();
        items.into_iter().collect()
    }
}

/// Notes a key that does not belong where it stands.
fn reject_unknown_key(key: &str, path: &Path, diagnostics: &mut Diagnostics<'_>, keys: &[&str], later: &[&str]) {
    if later.contains(&key) {
        diagnostics.push(path, kind::NOT_YET, "known, but not in this version yet; leave it out");
        return;
    }
    let message = match nearest(key, keys.iter().copied()) {
        Some(expected) => format!("unknown key; did you mean {expected}?"),
        None => format!("unknown key; the keys here are {}", keys.join(", ")),
    };
    diagnostics.push(path, kind::UNKNOWN_KEY, message);
}

/// The candidate that `word` was most likely meant to be, if one is near enough.
pub(in crate::control) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // a word as long as a book resembles nothing, and comparing it would take as long as reading it
    let likeness = |candidate: &str| if word.len() > 255 { 0.0 } else { strsim::jaro_winkler(word, candidate) };
    let candidates: Vec<&str> = candidates.collect();
    // a beginning is meant to be gone on with; of several, by what is listed first
    if let Some(begun) = candidates.iter().find(|candidate| word.len() > 2 && candidate.starts_with(word)) {
        return Some(begun);
    }
    let scored = candidates.into_iter().map(|candidate| (likeness(candidate), candidate));
    let (best, candidate) = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best > 0.7).then_some(candidate)
}

macro_rules! table {
    (
        $(#[$about:meta])*
        $name:ident { $( $(#[$meaning:meta])* $key:ident: $type:ty, )* }
        later { $( $later:ident )* }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $( $(#[$meaning])* #[serde(skip_serializing_if = "Option::is_none")] pub $key: Option<$type>, )*
        }

        impl $name {
            /// The keys of this table.
            pub const KEYS: &'static [&'static str] = &[$( stringify!($key) ),*];
            /// Keys that will be legal here one day, and are refused until then.
            pub const LATER: &'static [&'static str] = &[$( stringify!($later) ),*];

            /// These keys, and those of `other` that are not written here.
            pub fn or(self, other: $name) -> $name {
                $name { $( $key: self.$key.or(other.$key), )* }
            }

            /// Makes it as if `key` had not been written.
            pub fn clear(&mut self, key: &str) {
                match key {
                    $( stringify!($key) => self.$key = None, )*
                    _ => {}
                }
            }
        }

        impl Read for $name {
            fn read(node: &Node, path: &Path, diagnostics: &mut Diagnostics<'_>) -> Option<$name> {
                let mut table = $name::default();
                let Value::Table(entries) = &node.value else {
                    wrong(node, path, diagnostics, "a table of keys");
                    // an empty one keeps the places of its neighbours in a list
                    return Some(table);
                };
                for (key, node) in entries {
                    let path = path.key(key);
                    match key.as_str() {
                        $( stringify!($key) if node.value == Value::Null => {} )*
                        $( stringify!($key) => table.$key = Read::read(node, &path, diagnostics), )*
                        _ => reject_unknown_key(key, &path, diagnostics, $name::KEYS, $name::LATER),
                    }
                }
                Some(table)
            }
        }
    };
}

table! {
    /// What is set of the VM of a port, beside keys of the port.
    VmKeys {
        /// As in `vms`.
        storm: Storm,
        /// As in `vms`.
        share_mac: bool,
        /// As in `vms`.
        sibling_split_horizon: bool,
    }
    later {}
}

/// What is set of a port, and of its VM: the keys of [`Port`], and `vm`. It is only described.
#[derive(Debug)]
pub struct PortPatch;

impl utoipa::PartialSchema for PortPatch {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        let mut schema = Port::schema();
        if let utoipa::openapi::RefOr::T(utoipa::openapi::Schema::Object(object)) = &mut schema {
            object.properties.insert("vm".into(), VmKeys::schema());
        }
        schema
    }
}

impl ToSchema for PortPatch {
    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>) {
        Port::schemas(schemas);
        VmKeys::schemas(schemas);
    }
}

mod storm;

pub use storm::{CopiesLimit, Storm, StormClass, StormClasses, StormCopies, StormLimit};

table! {
    /// The whole file.
    Config {
        /// `[switch]`
        switch: Switch,
        /// `[[networks]]`
        networks: Vec<Network>,
        /// `[[vms]]`
        vms: Vec<Vm>,
        /// `[[uplinks]]`
        uplinks: Vec<Uplink>,
    }
    later {}
}

table! {
    /// `[switch]`: the process.
    Switch {
        /// One worker for each.
        cores: Vec<i64>,
        /// Path of the API's socket.
        api: String,
        /// Path of the store.
        state: String,
        /// Address and port of the metrics listener.
        metrics: String,
        /// `adaptive` or `busy`.
        poll: String,
        /// Slots of the pool.
        frames: i64,
        /// Learned stations per worker.
        stations: i64,
    }
    later {}
}

table! {
    /// `[[networks]]`: one broadcast domain.
    Network {
        /// Its name; a UUID in OpenStack.
        id: String,
        /// Longest payload of an Ethernet frame.
        mtu: i64,
        /// How long an idle station is remembered.
        ageing_seconds: i64,
        /// Learned stations at most.
        fdb_limit: i64,
        /// Learned stations of one port at most.
        fdb_limit_per_port: i64,
        /// Whether a source pinned on another VM's port is dropped.
        anti_spoof: bool,
        /// Which of 01:80:c2:00:00:0x pass between VMs: `vm-default`, `all`, `none`, or a mask as `0xfffd`.
        reserved_groups: String,
        /// What each port on it may send to everybody, and each VM by all its ports on it; or `off`: anything.
        storm: Storm,
        /// Seconds between two probes for loops, 1 to 10.
        probe_seconds: i64,
        /// Seconds for which a station that moved too often stays where it is, 30 to 3600.
        dampening_seconds: i64,
    }
    later { vlan }
}

table! {
    /// `[[vms]]`: one virtual machine or container.
    Vm {
        /// Neutron's `device_id`.
        id: String,
        /// What it may send to everybody by all its ports on a network, if not as the network has it; or `off`.
        storm: Storm,
        /// `true`: its ports on one network may use one source in turns.
        share_mac: bool,
        /// `true`: what one of its ports floods is not delivered to its other ports on the same network, as for the legs
        /// of a bond.
        sibling_split_horizon: bool,
        /// `[[vms.ports]]`, in the order in which the VM sees them.
        ports: Vec<Port>,
    }
    later {}
}

table! {
    /// `[[vms.ports]]`: one virtual interface.
    Port {
        /// Its name; a UUID in OpenStack.
        port_id: String,
        /// The `id` of its network.
        network_id: String,
        /// The address of the guest's interface.
        mac_address: String,
        /// Addresses of the guest. Only `mac+ip` looks at them.
        fixed_ips: Vec<String>,
        /// `immediate`, `deferred` or `none`, for information.
        ip_allocation: String,
        /// `off`, `mac` or `mac+ip`.
        port_security: String,
        /// Neutron's word for it: `false` means `off`.
        port_security_enabled: bool,
        /// Further sources that the guest may use.
        allowed_address_pairs: Vec<AddressPair>,
        /// Whether it gets frames for stations that nobody knows: `deliver` or `suppress`.
        unknown_unicast: String,
        /// `true`: it gets a copy of every frame that is forwarded on its network.
        promiscuous: bool,
        /// `false`: no source is learned behind it, and so none is moved to it or dampened. For ports of a ring (HSR), where
        /// a source arrives by two ports.
        mac_learning: bool,
        /// Learned stations of the port at most, if not as its network has it.
        mac_limit: i64,
        /// What becomes of frames from further stations: `drop` or `forward-unlearned`.
        mac_limit_policy: String,
        /// What it may send to everybody, if not as its network has it; or `off`: anything.
        storm: Storm,
        /// `immediate`, or `first-frame`: its addresses are pinned from its first frame on, and learned at any port before.
        activation: String,
        /// `false`: no frame passes in either direction.
        admin_state_up: bool,
        /// What the port stands on, unless it is a subport.
        device: Device,
        /// Of a subport: the port of the same VM by whose device its frames come and go.
        parent: String,
        /// Of a subport: the tag of its frames there, 1 to 4094.
        vlan: i64,
    }
    later {}
}

table! {
    /// One of `allowed_address_pairs`. It has one of the two keys at least.
    AddressPair {
        /// A source that the guest may use; without it, the address of the port.
        mac_address: String,
        /// An address or prefix that it may use with that. Only `mac+ip` looks at it.
        ip_address: String,
    }
    later {}
}

table! {
    /// `[[uplinks]]`: a device to the outside that carries several networks.
    Uplink {
        /// Its name; no port's.
        id: String,
        /// Two uplinks with the same: one carries the frames, the other one stands by.
        group: String,
        /// The networks, at least one.
        networks: Vec<UplinkNetwork>,
        /// What may come in by it to everybody, on each of its networks; by default `off`: anything.
        storm: Storm,
        /// `false`: no frame passes in either direction.
        admin_state_up: bool,
        /// What the uplink stands on.
        device: Device,
    }
    later {}
}

table! {
    /// One of an uplink's `networks`.
    UplinkNetwork {
        /// The `id` of the network.
        network_id: String,
        /// The tag of its frames, 1 to 4094; without it they are untagged.
        vlan: i64,
    }
    later {}
}

table! {
    /// `device`: what a port or an uplink stands on. Not every kind has every key.
    Device {
        /// `tap`, `xdp` or `packet`.
        kind: String,
        /// Of the netdev.
        name: String,
        /// Where the netdev stands: a name under /run/netns, or a path.
        netns: String,
        /// Queue pairs. Of an `xdp` device: all that the netdev has, unless it is given.
        queues: i64,
        /// Whether open checksums and super-frames pass. `tap` and `packet`.
        offloads: bool,
        /// Whether what the netdev receives is kept from the host's own network stack. `packet`.
        isolate: bool,
        /// Whether the netdev outlives the daemon. `tap`.
        persist: bool,
        /// `auto`, `zero-copy`, `copy` or `generic`. `xdp`.
        mode: String,
        /// Whether a program that others have attached by netlink is taken off. `xdp`.
        replace_xdp_program: bool,
    }
    later { path }
}

/// A value for people to read: in quotes, and not too long.
pub(super) fn list(values: impl Iterator<Item = impl AsRef<str>>) -> String {
    values.map(|value| quoted(value.as_ref())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_suggested() {
        let near = |word| nearest(word, Port::KEYS.iter().copied());
        assert_eq!(near("mac"), Some("mac_address"));
        assert_eq!(near("mac_addres"), Some("mac_address"));
        assert_eq!(near("network"), Some("network_id"));
        assert_eq!(near("allowed_address_pair"), Some("allowed_address_pairs"));
        assert_eq!(near("zzz"), None);
        assert_eq!(near(&"port_id".repeat(1000)), None);
        assert_eq!(nearest("x", std::iter::empty()), None);
    }

    #[test]
    fn no_key_is_both_accepted_and_unsupported() {
        for (keys, later) in [
            (Config::KEYS, Config::LATER),
            (Network::KEYS, Network::LATER),
            (Port::KEYS, Port::LATER),
            (Uplink::KEYS, Uplink::LATER),
            (Device::KEYS, Device::LATER),
        ] {
            assert!(later.iter().all(|key| !keys.contains(key)));
        }
    }
}
