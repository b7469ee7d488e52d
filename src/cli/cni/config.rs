//! The network configuration that a runtime passes on standard input.
//!
//! All errors of a configuration are reported at once. DEL and GC only need name, version, directories and IPAM: a
//! configuration with other errors must not keep a container from being removed.

mod keys;

use std::path::PathBuf;

use serde_json::{Map, Value};

pub use self::keys::OURS as KEYS;
use self::keys::{Keys, of_port, table};
use super::error::{CniError, code};
use super::names;
use super::version::SpecVersion;
use crate::cli::SOCKET;
use crate::wire::Mac;

/// Maximum bytes of a configuration, with the result of the plugins before.
pub const MAX_LEN: usize = 1 << 20;

/// Directory of the records of attachments. Not below that of the switch, which systemd removes when it is stopped.
const STATE: &str = "/run/vifswitch-cni";

/// Label of what the plugin makes.
const OWNER: &str = "cni";

/// Which end of the interface the container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// An interface with addresses, for its processes.
    Container,
    /// A tap for a VM that runs in it.
    Vm(VmTap),
}

impl Mode {
    /// Kind of the port's device, unless the configuration says another one.
    pub fn default_kind(&self) -> &'static str {
        match self {
            Mode::Container => "tap",
            Mode::Vm(_) => "packet",
        }
    }
}

/// Settings of the tap of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VmTap {
    /// User who may open it.
    pub uid: Option<u32>,
    /// Group that may open it.
    pub gid: Option<u32>,
    /// It may have several queues.
    pub multi_queue: bool,
}

/// An attachment: container and interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attachment {
    /// Container.
    pub container: String,
    /// Interface.
    pub interface: String,
}

/// How much of a configuration has to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// All of it: to attach a container, and to report on the configuration.
    Everything,
    /// What is needed to detach one.
    Essentials,
}

/// A network configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// `cniVersion`
    pub version: SpecVersion,
    /// Name of the network, to the runtime.
    pub name: String,
    /// Id of the network, to the switch.
    pub network: String,
    /// Socket of the switch.
    pub socket: PathBuf,
    /// Directory of the records of attachments.
    pub state: PathBuf,
    /// Label of what the plugin makes.
    pub owner: String,
    /// MTU of the network.
    pub mtu: Option<u16>,
    /// What the container gets.
    pub mode: Mode,
    /// Further keys of its port, as in the configuration of the switch.
    pub port: Map<String, Value>,
    /// MAC address that the runtime wants.
    pub mac: Option<Mac>,
    /// Position that the runtime wants.
    pub position: Option<u16>,
    /// Type of the IPAM plugin; `None`: the interface gets no addresses.
    pub ipam: Option<String>,
    /// DNS of the network.
    pub dns: Option<Map<String, Value>>,
    /// Result of the plugins before.
    pub prev_result: Option<Value>,
    /// Attachments that exist, of a GC.
    pub valid_attachments: Option<Vec<Attachment>>,
    /// The whole configuration, for the IPAM plugin.
    pub raw: Value,
}

impl NetworkConfig {
    /// Reads a configuration.
    pub fn parse(text: &[u8], strictness: Strictness) -> Result<NetworkConfig, CniError> {
        if text.len() > MAX_LEN {
            let message = format!("the network configuration is longer than {} MiB", MAX_LEN >> 20);
            return Err(CniError::new(code::DECODE, message));
        }
        let raw: Value = serde_json::from_slice(text)
            .map_err(|e| CniError::new(code::DECODE, format!("the network configuration is no JSON: {e}")))?;
        if !raw.is_object() {
            return Err(CniError::new(code::DECODE, "the network configuration is no JSON object"));
        }
        let version = raw["cniVersion"].as_str().unwrap_or("0.1.0"); // the default of the specification
        let version = SpecVersion::named(version).ok_or_else(|| {
            let known = SpecVersion::names();
            let message = format!("cniVersion = {version:?} is not supported; use one of {known}");
            CniError::new(code::INCOMPATIBLE_VERSION, message)
        })?;
        let mut keys = Keys::new(&raw);
        let config = read(&mut keys, &raw, version);
        let is_usable = names::is_name(&config.name);
        match keys.problems() {
            problems if problems.is_empty() || (strictness == Strictness::Essentials && is_usable) => Ok(config),
            problems => {
                let message = format!("network configuration {:?}: {}", config.name, problems.join("; "));
                Err(CniError::new(code::INVALID_CONFIG, message))
            }
        }
    }

    /// The MAC address and position that the runtime wants: those of `CNI_ARGS` come first.
    pub fn prefer(&mut self, mac: Option<Mac>, position: Option<u16>) {
        self.mac = mac.or(self.mac);
        self.position = position.or(self.position);
    }

    /// Whether the port needs to know its addresses.
    pub fn checks_addresses(&self) -> bool {
        checks_addresses(&self.port)
    }
}

fn checks_addresses(port: &Map<String, Value>) -> bool {
    port.get("port_security").and_then(Value::as_str) == Some("mac+ip")
}

fn read(keys: &mut Keys<'_>, raw: &Value, version: SpecVersion) -> NetworkConfig {
    keys.check_known();
    let name = keys.text("name").unwrap_or_default().to_owned();
    if !names::is_name(&name) {
        keys.wrong("name", names::RULE);
    }
    let network = keys.text("network_id").map_or_else(|| name.clone(), str::to_owned);
    let mtu = keys.number("mtu", 68, 9216).and_then(|mtu| u16::try_from(mtu).ok());
    let path = |text: Option<&str>, default: &str| PathBuf::from(text.unwrap_or(default));
    let socket = path(keys.path("socket"), SOCKET);
    let state = path(keys.path("state_directory"), STATE);
    let owner = keys.text("owner").unwrap_or(OWNER).to_owned();
    if keys.boolean("ipMasq") == Some(true) {
        keys.wrong("ipMasq", "the switch does not translate addresses; remove the key");
    }
    let mode = mode(keys);
    let ipam = ipam(keys);
    let port = of_port(keys, &mode);
    if checks_addresses(&port) && ipam.is_none() {
        keys.wrong("port", "port_security = \"mac+ip\" needs addresses; add ipam");
    }
    if checks_addresses(&port) && ipam.as_deref() == Some("dhcp") {
        let why = "a DHCP client cannot send from a port with port_security = \"mac+ip\" that has no address yet; use \"mac\"";
        keys.wrong("ipam", why);
    }
    let mac = ["runtimeConfig", "args.cni"].into_iter().find_map(|place| keys.mac(place, "mac"));
    let position = ["runtimeConfig", "args.cni"].into_iter().find_map(|place| keys.position(place, "position"));
    NetworkConfig {
        version,
        name,
        network,
        socket,
        state,
        owner,
        mtu,
        mode,
        port,
        mac,
        position,
        ipam,
        dns: table(&raw["dns"]).filter(|dns| !dns.is_empty()).cloned(),
        prev_result: Some(&raw["prevResult"]).filter(|result| !result.is_null()).cloned(),
        valid_attachments: keys.attachments("cni.dev/valid-attachments"),
        raw: raw.clone(),
    }
}

fn mode(keys: &mut Keys<'_>) -> Mode {
    match keys.text("mode") {
        None | Some("container") => {
            if keys.has("tap") {
                keys.wrong("tap", "only of mode \"vm\"; remove it, or set mode = \"vm\"");
            }
            Mode::Container
        }
        Some("vm") => Mode::Vm(keys.tap("tap")),
        Some(_) => {
            keys.wrong("mode", "no such mode; use \"container\" or \"vm\"");
            Mode::Container
        }
    }
}

/// The type of the IPAM plugin. `"ipam": {}` stands for none, as in other plugins.
fn ipam(keys: &mut Keys<'_>) -> Option<String> {
    let kind = keys.nested("ipam", "type");
    let kind = kind.filter(|kind| !kind.is_empty())?;
    // It is the name of a file in one of the directories of CNI_PATH.
    if kind.contains('/') || kind == "." || kind == ".." {
        keys.wrong("ipam", "type is no name of a plugin; it must not contain '/'");
        return None;
    }
    Some(kind)
}

#[cfg(test)]
mod tests;
