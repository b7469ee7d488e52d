//! Raw tables and keys of the configuration: no defaults, only types are checked.
//!
//! One macro defines a table's struct, the list of its keys, and its parser, so that they agree. Does not use serde's
//! parser, which stops at the first value of a wrong type.

use serde::Serialize;
use utoipa::ToSchema;

use super::diagnostics::{Diagnostics, Path};
use super::error::{kind, quoted};
use super::parse::{Node, Value};

/// Parses a node and reports errors.
pub(super) trait Read: Sized {
    /// `None` if nothing can be validated further.
    fn read(node: &Node, path: &Path, diagnostics: &mut Diagnostics<'_>) -> Option<Self>;
}

/// Reports a value of a wrong type.
fn wrong(node: &Node, path: &Path, diagnostics: &mut Diagnostics<'_>, wanted: &str) {
    let found = match &node.value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Integer(_) => "a number",
        Value::Other(_) => "not a whole number",
        Value::Text(_) => "a text",
        Value::List(_) => "a list",
        Value::Table(_) => "a table",
    };
    diagnostics.push(path, kind::WRONG_TYPE, format!("expected {wanted}, found {found}"));
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
        // parses all items before failing
        let items: Vec<_> =
            items.iter().enumerate().map(|(index, item)| T::read(item, &path.item(index), diagnostics)).collect();
        items.into_iter().collect()
    }
}

/// Reports an unknown key.
fn reject_unknown_key(key: &str, path: &Path, diagnostics: &mut Diagnostics<'_>, keys: &[&str], later: &[&str]) {
    if later.contains(&key) {
        diagnostics.push(path, kind::NOT_YET, "not supported yet; remove the key");
        return;
    }
    let message = match nearest(key, keys.iter().copied()) {
        Some(expected) => format!("unknown key; did you mean {expected}?"),
        None => format!("unknown key; valid keys are {}", keys.join(", ")),
    };
    diagnostics.push(path, kind::UNKNOWN_KEY, message);
}

/// The most similar candidate, if similar enough.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // a very long word resembles none, and comparing it takes long
    let likeness = |candidate: &str| if word.len() > 255 { 0.0 } else { strsim::jaro_winkler(word, candidate) };
    let candidates: Vec<&str> = candidates.collect();
    // a prefix matches; of several, the first listed one
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
            /// Keys of this table.
            pub const KEYS: &'static [&'static str] = &[$( stringify!($key) ),*];
            /// Keys reserved for later versions.
            pub const LATER: &'static [&'static str] = &[$( stringify!($later) ),*];

            /// These keys, completed from `other`.
            pub fn or(self, other: $name) -> $name {
                $name { $( $key: self.$key.or(other.$key), )* }
            }

            /// Clears `key`.
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
                    // a placeholder keeps the indices of a list
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
    /// Keys of a port's VM, set together with keys of the port.
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

/// The keys of a port, and another one; for the API description only.
macro_rules! port_with {
    ($(#[$about:meta])* $name:ident, $key:literal: $type:ty) => {
        $(#[$about])*
        #[derive(Debug)]
        pub struct $name;

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                let mut schema = Port::schema();
                if let utoipa::openapi::RefOr::T(utoipa::openapi::Schema::Object(object)) = &mut schema {
                    object.properties.insert($key.into(), <$type as utoipa::PartialSchema>::schema());
                }
                schema
            }
        }

        impl ToSchema for $name {
            fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>) {
                Port::schemas(schemas);
                <$type as ToSchema>::schemas(schemas);
            }
        }
    };
}

port_with! {
    /// Keys of [`Port`] and of its VM, to be changed.
    PortPatch, "vm": VmKeys
}

port_with! {
    /// Keys of [`Port`] and the id of its VM.
    PortOfVm, "device_id": String
}

mod storm;

pub use storm::{CopiesLimit, Storm, StormClass, StormClasses, StormCopies, StormLimit};

table! {
    /// The file.
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
    /// `[switch]`: settings of the process.
    Switch {
        /// CPU cores, one worker each.
        cores: Vec<i64>,
        /// Path of the API socket.
        api: String,
        /// Users who may change the switch by the API; each that can connect without it.
        api_writers: Writers,
        /// Path of a second socket, for reads only.
        api_read: String,
        /// Path of the state file.
        state: String,
        /// Address and port of the listener for metrics and health.
        metrics: String,
        /// Address and port of the listener for reads.
        pages: String,
        /// Names of the switch by which clients of `pages` may call it.
        pages_hosts: Vec<String>,
        /// File with the key that authenticates loop probes to other hosts: `file:` and its path.
        probe_key: String,
        /// Poll mode: `adaptive` or `busy`.
        poll: String,
        /// Slots of the frame pool.
        frames: i64,
        /// FDB capacity per worker, in stations.
        stations: i64,
    }
    later {}
}

table! {
    /// `api_writers`: users who may change the switch by the API, beside root.
    Writers {
        /// Ids of users.
        uids: Vec<i64>,
        /// Ids of groups, primary or supplementary.
        gids: Vec<i64>,
    }
    later {}
}

table! {
    /// `[[networks]]`: a network, one broadcast domain.
    Network {
        /// Id; a UUID in OpenStack.
        id: String,
        /// MTU in bytes.
        mtu: i64,
        /// Ageing time in seconds.
        ageing_seconds: i64,
        /// Maximum learned stations.
        fdb_limit: i64,
        /// Maximum learned stations per port.
        fdb_limit_per_port: i64,
        /// Drop frames from a source that is pinned at another VM's port.
        anti_spoof: bool,
        /// Reserved groups 01:80:c2:00:00:0x forwarded between VMs: `vm-default`, `all`, `none`, or a mask such as
        /// `0xfffd`.
        reserved_groups: String,
        /// Storm limits of each port, and of each VM by all its ports; or `off`: unlimited.
        storm: Storm,
        /// Interval of loop probes in seconds, 1 to 10.
        probe_seconds: i64,
        /// Dampening time of a flapping station in seconds, 30 to 3600.
        dampening_seconds: i64,
        /// Owner: a label of who manages it, for scoped changes and lists.
        owner: String,
    }
    later { vlan }
}

table! {
    /// `[[vms]]`: a virtual machine or container.
    Vm {
        /// Id, Neutron's `device_id`.
        id: String,
        /// Storm limits of all its ports on a network together, if not the network's; or `off`.
        storm: Storm,
        /// `true`: its ports on one network may alternately use one source.
        share_mac: bool,
        /// `true`: frames flooded by one of its ports do not reach its other ports on the same network, as for members
        /// of a bond.
        sibling_split_horizon: bool,
        /// Owner: a label of who manages it, for scoped changes and lists.
        owner: String,
        /// `[[vms.ports]]`, in the VM's order.
        ports: Vec<Port>,
    }
    later {}
}

table! {
    /// `[[vms.ports]]`: a port, one virtual interface.
    Port {
        /// Id; a UUID in OpenStack.
        port_id: String,
        /// Id of its network.
        network_id: String,
        /// MAC address of the guest's interface.
        mac_address: String,
        /// IP addresses of the guest, for `mac+ip`.
        fixed_ips: Vec<String>,
        /// IP allocation, for information: `immediate`, `deferred` or `none`.
        ip_allocation: String,
        /// Port security: `off`, `mac` or `mac+ip`.
        port_security: String,
        /// Neutron's key: `false` means `off`.
        port_security_enabled: bool,
        /// Further allowed sources.
        allowed_address_pairs: Vec<AddressPair>,
        /// Flooding of unknown unicast: `deliver` or `suppress`.
        unknown_unicast: String,
        /// `true`: gets a copy of each frame forwarded on its network.
        promiscuous: bool,
        /// `false`: no source is learned at the port, and so none moves to it or is dampened. For ports of a ring
        /// (HSR), where a source arrives at two ports.
        mac_learning: bool,
        /// MAC limit, if not the network's.
        mac_limit: i64,
        /// Policy for frames from further stations: `drop` or `forward-unlearned`.
        mac_limit_policy: String,
        /// Storm limits, if not the network's; or `off`: unlimited.
        storm: Storm,
        /// Activation: `immediate`, or `first-frame`: addresses are pinned from its first frame on, and learned at any
        /// port before.
        activation: String,
        /// Lifetime: `config`, or `netns`: the switch removes the port when the network namespace of its device has
        /// ended.
        lifetime: String,
        /// Administrative state; `false`: no frame passes in either direction.
        admin_state_up: bool,
        /// Device, unless it is a subport.
        device: Device,
        /// Parent of a subport: a port of the same VM.
        parent: String,
        /// VLAN id of a subport on its parent, 1 to 4094.
        vlan: i64,
        /// Place among the VM's ports, from 0; by default after the last one.
        position: i64,
        /// Owner: a label of who manages it, for scoped changes and lists.
        owner: String,
    }
    later {}
}

table! {
    /// An item of `allowed_address_pairs`, with at least one of the two keys.
    AddressPair {
        /// MAC address; by default the port's own.
        mac_address: String,
        /// IP address or prefix, for `mac+ip`.
        ip_address: String,
    }
    later {}
}

table! {
    /// `[[uplinks]]`: an uplink, a device to the outside for several networks.
    Uplink {
        /// Id; unique among uplinks and ports.
        id: String,
        /// Group of two uplinks, active-backup.
        group: String,
        /// Networks, at least one.
        networks: Vec<UplinkNetwork>,
        /// Storm limits of received traffic on each network; by default `off`: unlimited.
        storm: Storm,
        /// Administrative state; `false`: no frame passes in either direction.
        admin_state_up: bool,
        /// Device.
        device: Device,
        /// Owner: a label of who manages it, for scoped changes and lists.
        owner: String,
    }
    later {}
}

table! {
    /// An item of an uplink's `networks`.
    UplinkNetwork {
        /// Network id.
        network_id: String,
        /// VLAN id, 1 to 4094; by default untagged.
        vlan: i64,
    }
    later {}
}

table! {
    /// `device`: device of a port or uplink. Keys depend on the kind.
    Device {
        /// Kind: `tap`, `xdp` or `packet`.
        kind: String,
        /// Name of the netdev.
        name: String,
        /// Network namespace: a name under /run/netns, or a path.
        netns: String,
        /// Number of queue pairs. For `xdp` by default all that the netdev has.
        queues: i64,
        /// Partial checksums and GSO packets pass. `tap` and `packet`.
        offloads: bool,
        /// Received frames are kept from the host's network stack. `packet`.
        isolate: bool,
        /// The netdev persists after the switch ends. `tap`.
        persist: bool,
        /// Mode: `auto`, `zero-copy`, `copy` or `generic`. `xdp`.
        mode: String,
        /// Detaches an XDP program that others attached by netlink. `xdp`.
        replace_xdp_program: bool,
    }
    later { path }
}

/// A quoted value of limited length, for messages.
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
