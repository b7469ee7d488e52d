//! Reads the keys of a network configuration, and collects what is wrong with them.

use serde_json::{Map, Value};

use super::{Attachment, Mode, VmTap};
use crate::control::config;
use crate::wire::Mac;

/// Keys of this plugin. `dns` and `ipam` are those of the specification.
pub const OURS: &[&str] =
    &["network_id", "mtu", "mode", "port", "tap", "ipam", "dns", "owner", "socket", "state_directory"];

/// Keys of the specification and of runtimes.
const OF_OTHERS: [&str; 13] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "args",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "ipMasq",
    "disableCheck",
    "disableGC",
    "deviceID",
    "pciBusID",
];

/// Keys of a port that the plugin sets, each with where its value comes from.
const SET_BY_US: [(&str, &str); 9] = [
    ("port_id", "the plugin makes it of network, container and interface"),
    ("device_id", "it is the container's id"),
    ("network_id", "use network_id beside port"),
    ("fixed_ips", "they are those of the IPAM plugin"),
    ("ip_allocation", "it follows from the addresses"),
    ("owner", "use owner beside port"),
    ("lifetime", "the port ends with the network namespace of the container"),
    ("parent", "a container has no subports"),
    ("vlan", "a container has no subports"),
];

/// Keys of a device that the plugin sets.
const DEVICE_SET_BY_US: [(&str, &str); 3] = [
    ("name", "it is CNI_IFNAME"),
    ("netns", "it is CNI_NETNS"),
    ("persist", "the interface outlives the switch, and ends with the container"),
];

/// The keys of a configuration, and what is wrong with them.
pub struct Keys<'r> {
    root: &'r Value,
    problems: Vec<String>,
}

/// An object.
pub fn table(value: &Value) -> Option<&Map<String, Value>> {
    value.as_object()
}

impl<'r> Keys<'r> {
    /// Of this configuration, which is an object.
    pub fn new(root: &'r Value) -> Keys<'r> {
        Keys { root, problems: Vec::new() }
    }

    /// What is wrong.
    pub fn problems(self) -> Vec<String> {
        self.problems
    }

    /// Records what is wrong with a key.
    pub fn wrong(&mut self, key: &str, why: &str) {
        let value = self.at(key).map(|value| format!(" = {}", shown(value))).unwrap_or_default();
        self.problems.push(format!("{key}{value}: {why}"));
    }

    /// Records keys that nobody knows. Names with a dot or slash are those of others, as `cni.dev/…`.
    pub fn check_known(&mut self) {
        let root = self.root;
        for key in table(root).into_iter().flat_map(Map::keys) {
            let known = || OURS.iter().copied().chain(OF_OTHERS);
            if known().any(|of| of == key) || key.contains(['.', '/']) {
                continue;
            }
            match config::nearest(key, known()) {
                Some(expected) => self.wrong(key, &format!("unknown key; did you mean {expected}?")),
                None => self.wrong(key, "unknown key; docs/integrations/cni.md lists the keys"),
            }
        }
    }

    /// Whether there is such a key.
    pub fn has(&self, key: &str) -> bool {
        self.at(key).is_some()
    }

    /// The value at a path of keys with dots; `null` counts as absent.
    fn at(&self, path: &str) -> Option<&'r Value> {
        let found = match self.root.get(path) {
            Some(value) => Some(value),
            None => path.split('.').try_fold(self.root, |table, key| table.get(key)),
        };
        found.filter(|value| !value.is_null())
    }

    /// A text.
    pub fn text(&mut self, key: &str) -> Option<&'r str> {
        let value = self.at(key)?;
        if value.as_str().is_none() {
            self.wrong(key, "expected a text");
        }
        value.as_str()
    }

    /// An absolute path.
    pub fn path(&mut self, key: &str) -> Option<&'r str> {
        let text = self.text(key)?;
        if !text.starts_with('/') || text.contains('\0') {
            self.wrong(key, "not an absolute path");
            return None;
        }
        Some(text)
    }

    /// A boolean.
    pub fn boolean(&mut self, key: &str) -> Option<bool> {
        let value = self.at(key)?;
        if !value.is_boolean() {
            self.wrong(key, "expected true or false");
        }
        value.as_bool()
    }

    /// A whole number within bounds.
    pub fn number(&mut self, key: &str, least: u64, most: u64) -> Option<u64> {
        let value = self.at(key)?;
        let number = value.as_u64().filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.wrong(key, &format!("expected a whole number from {least} to {most}"));
        }
        number
    }

    /// A text in a table.
    pub fn nested(&mut self, key: &str, inner: &str) -> Option<String> {
        let value = self.at(key)?;
        if !value.is_object() {
            self.wrong(key, "expected an object");
            return None;
        }
        let path = format!("{key}.{inner}");
        self.text(&path).map(str::to_owned)
    }

    /// A unicast MAC address in a table that the runtime may set.
    pub fn mac(&mut self, place: &str, key: &str) -> Option<Mac> {
        let path = format!("{place}.{key}");
        let text = self.text(&path).filter(|text| !text.is_empty())?;
        let mac: Option<Mac> = text.parse().ok().filter(|mac: &Mac| mac.is_station());
        if mac.is_none() {
            self.wrong(&path, "not a unicast MAC address; one looks like 02:00:00:00:01:0a");
        }
        mac
    }

    /// A position, a number or a text, in a table that the runtime may set.
    pub fn position(&mut self, place: &str, key: &str) -> Option<u16> {
        let path = format!("{place}.{key}");
        let value = self.at(&path)?;
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        let number = number.and_then(|number| u16::try_from(number).ok());
        if number.is_none() {
            self.wrong(&path, "expected a whole number from 0 to 65535");
        }
        number
    }

    /// Settings of the tap of a VM.
    pub fn tap(&mut self, key: &str) -> VmTap {
        const KEYS: [&str; 3] = ["uid", "gid", "multi_queue"];
        match self.at(key) {
            Some(value) if !value.is_object() => self.wrong(key, "expected an object"),
            Some(value) => {
                let unknown: Vec<&String> =
                    table(value).into_iter().flat_map(Map::keys).filter(|of| !KEYS.contains(&of.as_str())).collect();
                for of in unknown {
                    self.wrong(&format!("{key}.{of}"), "unknown key; use uid, gid and multi_queue");
                }
            }
            None => {}
        }
        // The largest number stands for no user.
        let mut id = |of: &str| {
            let number = self.number(&format!("{key}.{of}"), 0, u64::from(u32::MAX - 1));
            number.and_then(|number| u32::try_from(number).ok())
        };
        let (uid, gid) = (id("uid"), id("gid"));
        VmTap { uid, gid, multi_queue: self.boolean(&format!("{key}.multi_queue")).unwrap_or(false) }
    }

    /// A list of attachments. `None` without one.
    pub fn attachments(&mut self, key: &str) -> Option<Vec<Attachment>> {
        let value = self.at(key)?;
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let one = |value: &Value| {
            Some(Attachment { container: text(value, "containerID")?, interface: text(value, "ifname")? })
        };
        let all = value.as_array().and_then(|items| items.iter().map(one).collect());
        if all.is_none() {
            self.wrong(key, "expected a list of objects with containerID and ifname");
        }
        all
    }
}

/// The keys of `port`, which are those of a port in the configuration of the switch.
pub fn of_port(keys: &mut Keys<'_>, mode: &Mode) -> Map<String, Value> {
    let port = match keys.at("port") {
        None => return Map::new(),
        Some(Value::Object(port)) => port.clone(),
        Some(_) => {
            keys.wrong("port", "expected an object with keys of a port");
            return Map::new();
        }
    };
    for (key, why) in SET_BY_US {
        if port.contains_key(key) {
            keys.wrong(&format!("port.{key}"), &format!("{why}; remove the key"));
        }
    }
    for (key, why) in DEVICE_SET_BY_US {
        if port.get("device").is_some_and(|device| device.get(key).is_some()) {
            keys.wrong(&format!("port.device.{key}"), &format!("{why}; remove the key"));
        }
    }
    let kind = port.get("device").and_then(|device| device.get("kind")).and_then(Value::as_str);
    match (mode, kind) {
        (Mode::Container, None | Some("tap")) | (Mode::Vm(_), None | Some("packet" | "xdp")) => {}
        (Mode::Container, Some(_)) => keys.wrong("port.device.kind", "a container has a tap; remove the key"),
        (Mode::Vm(_), Some(_)) => keys.wrong("port.device.kind", "use \"packet\" or \"xdp\" for the tap of a VM"),
    }
    check_as_port(keys, &port, mode);
    port
}

/// Checks the keys as those of a complete port.
fn check_as_port(keys: &mut Keys<'_>, port: &Map<String, Value>, mode: &Mode) {
    let mut whole = port.clone();
    whole.retain(|key, _| !SET_BY_US.iter().any(|(set, _)| set == key));
    for (key, value) in [("device_id", "vm"), ("port_id", "port"), ("network_id", "network")] {
        whole.insert(key.into(), value.into());
    }
    if whole.get("mac_address").is_none_or(Value::is_null) {
        whole.insert("mac_address".into(), "02:00:00:00:00:01".into());
    }
    let device = whole.entry("device").or_insert_with(|| Value::Object(Map::new()));
    if let Some(device) = device.as_object_mut() {
        device.entry("kind").or_insert_with(|| mode.default_kind().into());
        device.insert("name".into(), "eth0".into());
    }
    if let Err(errors) = config::parse_port_json(&Value::Object(whole).to_string(), "port", "port") {
        keys.problems.extend(errors.errors().iter().map(|error| format!("port.{}", error.without_location())));
    }
}

/// A value in a message, cut if long.
fn shown(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
