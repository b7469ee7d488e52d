//! From as written to as meant: each value for itself, and what one table says about itself.
//!
//! A value that is wrong is noted and a stand-in takes its place, so that everything behind it is
//! judged too. Whoever has notes throws the result away. Stand-ins for what ports and networks are
//! told apart by (an empty id, the zero MAC, an empty name) are such that no right value equals them.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::wire::Mac;

use super::diagnostics::{Diagnostics, Path};
use super::error::kind;
use super::model::{Config, Device, IpAllocation, Named, Network, Port, SwitchSettings, Vm};
use super::policy::Activation;
use super::storm::Of;
use super::{device, raw};

/// `sun_path` without its final zero.
const LONGEST_SOCKET_PATH: usize = 107;
/// `CPU_SETSIZE`: what the kernel's affinity masks hold by default.
const CORES: i64 = 1024;

/// What the whole file means.
pub(super) fn lower(raw: &raw::Config, diagnostics: &mut Diagnostics<'_>) -> Config {
    let top = Path::default();
    Config {
        switch: raw.switch.as_ref().map_or_else(SwitchSettings::default, |table| {
            Lowering { path: top.key("switch"), diagnostics: &mut *diagnostics }.switch(table)
        }),
        networks: lower_each(&top.key("networks"), raw.networks.as_deref(), diagnostics, |mut at, table| {
            at.network(table)
        }),
        vms: lower_each(&top.key("vms"), raw.vms.as_deref(), diagnostics, |mut at, table| Vm {
            id: at.id("id", table.id.as_deref()),
            storm: at.storm(table.storm.as_ref(), Of::Vm),
            share_mac: table.share_mac.unwrap_or(false),
            sibling_split_horizon: table.sibling_split_horizon.unwrap_or(false),
            ports: lower_each(&at.path.key("ports"), table.ports.as_deref(), at.diagnostics, |mut at, table| {
                at.port(table)
            }),
        }),
        uplinks: lower_each(&top.key("uplinks"), raw.uplinks.as_deref(), diagnostics, |mut at, table| at.uplink(table)),
    }
}

/// What a port means that stands at `path`.
pub(super) fn port(path: Path, raw: &raw::Port, diagnostics: &mut Diagnostics<'_>) -> Port {
    Lowering { path, diagnostics }.port(raw)
}

/// The longest id of anything, in bytes.
const LONGEST_ID: usize = 255;

/// The longest id of a port or an uplink, in bytes: the alias of its netdev has it behind `vifswitch:`, and of an alias
/// the kernel takes 255 bytes with the zero at its end (`IFALIASZ`; tried).
const LONGEST_PORT_ID: usize = LONGEST_ID - 1 - "vifswitch:".len();

/// Why nothing but a port or an uplink can be known by this text, if nothing can.
pub fn wrong_id(text: &str) -> Option<String> {
    wrong_id_within(LONGEST_ID, text)
}

fn wrong_id_within(max_len: usize, text: &str) -> Option<String> {
    let wrong = match text.len() {
        0 => "empty".to_owned(),
        length if length > max_len => format!("{length} bytes long"),
        _ if text.chars().any(char::is_control) => "has control characters in it".to_owned(),
        _ => return None,
    };
    Some(format!("{wrong}; an id here is 1 to {max_len} bytes, none of them control characters"))
}

/// What each table of a list means.
pub(super) fn lower_each<W, M>(
    path: &Path,
    tables: Option<&[W]>,
    diagnostics: &mut Diagnostics<'_>,
    mean: impl Fn(Lowering<'_, '_>, &W) -> M,
) -> Vec<M> {
    let tables = tables.unwrap_or_default().iter().enumerate();
    tables
        .map(|(index, table)| mean(Lowering { path: path.item(index), diagnostics: &mut *diagnostics }, table))
        .collect()
}

/// The place of a table, and where to note what is wrong with it.
pub(super) struct Lowering<'a, 'd> {
    pub path: Path,
    pub diagnostics: &'a mut Diagnostics<'d>,
}

impl Lowering<'_, '_> {
    fn switch(&mut self, raw: &raw::Switch) -> SwitchSettings {
        let default = SwitchSettings::default();
        SwitchSettings {
            cores: self.cores(raw.cores.as_deref().unwrap_or_default()),
            api: match raw.api.as_deref() {
                Some(path) if self.is_path("api", path, LONGEST_SOCKET_PATH) => PathBuf::from(path),
                _ => default.api,
            },
            state: match raw.state.as_deref() {
                Some("") => None,
                Some(path) if self.is_path("state", path, 4095) => Some(PathBuf::from(path)),
                _ => default.state,
            },
            metrics: raw.metrics.as_deref().and_then(|text| {
                let remedy =
                    "not an address and port; one looks like 127.0.0.1:9477, and without this key there is none";
                text.parse::<SocketAddr>().map_err(|_| self.report("metrics", kind::BAD_VALUE, remedy)).ok()
            }),
            poll: self.keyword("poll", raw.poll.as_deref(), default.poll),
            frames: self.number("frames", raw.frames, 1024..=4_194_304, default.frames),
            stations: self.number("stations", raw.stations, 1024..=8_388_608, default.stations),
        }
    }

    fn cores(&mut self, raw: &[i64]) -> Vec<usize> {
        let mut cores = Vec::new();
        for (index, core) in raw.iter().enumerate() {
            let path = self.path.key("cores").item(index);
            match usize::try_from(*core) {
                Ok(id) if *core < CORES && !cores.contains(&id) => cores.push(id),
                Ok(_) if *core < CORES => {
                    self.diagnostics.push(
                        &path,
                        kind::BAD_VALUE,
                        "this core is listed already; each core carries one worker",
                    );
                }
                _ => self.diagnostics.push(&path, kind::BAD_VALUE, format!("not a core; cores are 0 to {}", CORES - 1)),
            }
        }
        cores
    }

    fn network(&mut self, raw: &raw::Network) -> Network {
        let default = Network::new("");
        let fdb_limit = self.number("fdb_limit", raw.fdb_limit, 1..=u32::MAX, default.fdb_limit);
        // a small network needs no second key to be a legal one
        let per_port = default.fdb_limit_per_port.min(fdb_limit);
        let per_port = self.number("fdb_limit_per_port", raw.fdb_limit_per_port, 1..=u32::MAX, per_port);
        if per_port > fdb_limit {
            let message = format!("more than the whole network may have; at most fdb_limit, which is {fdb_limit}");
            self.report("fdb_limit_per_port", kind::CONTRADICTION, message);
        }
        Network {
            id: self.id("id", raw.id.as_deref()),
            mtu: self.number("mtu", raw.mtu, 68..=9216, default.mtu),
            ageing_seconds: self.number("ageing_seconds", raw.ageing_seconds, 10..=1_000_000, default.ageing_seconds),
            fdb_limit,
            fdb_limit_per_port: per_port,
            anti_spoof: raw.anti_spoof.unwrap_or(default.anti_spoof),
            reserved_groups: match raw.reserved_groups.as_deref().map(str::parse) {
                Some(Ok(groups)) => groups,
                Some(Err(wrong)) => {
                    self.report("reserved_groups", kind::BAD_VALUE, wrong.to_string());
                    default.reserved_groups
                }
                None => default.reserved_groups,
            },
            storm: self.storm(raw.storm.as_ref(), Of::Network).over(default.storm),
            probe_seconds: self.number("probe_seconds", raw.probe_seconds, 1..=10, default.probe_seconds),
            dampening_seconds: self.number(
                "dampening_seconds",
                raw.dampening_seconds,
                30..=3600,
                default.dampening_seconds,
            ),
        }
    }

    fn port(&mut self, raw: &raw::Port) -> Port {
        let port_id = self.port_id("port_id", raw.port_id.as_deref());
        let mac = self.station("mac_address", raw.mac_address.as_deref());
        let port_security = self.security(raw);
        let fixed_ips = self.addresses(raw.fixed_ips.as_deref().unwrap_or_default());
        let unspoken = if fixed_ips.is_empty() { IpAllocation::None } else { IpAllocation::Immediate };
        Port {
            network_id: self.id("network_id", raw.network_id.as_deref()),
            mac,
            ip_allocation: self.keyword("ip_allocation", raw.ip_allocation.as_deref(), unspoken),
            fixed_ips,
            port_security,
            allowed_address_pairs: self.pairs(raw.allowed_address_pairs.as_deref(), port_security, mac),
            unknown_unicast: self.unknown_unicast(raw),
            promiscuous: raw.promiscuous.unwrap_or(false),
            mac_learning: raw.mac_learning.unwrap_or(true),
            mac_limit: self.mac_limit(raw),
            storm: self.storm(raw.storm.as_ref(), Of::Port),
            activation: self.keyword("activation", raw.activation.as_deref(), Activation::default()),
            admin_state_up: raw.admin_state_up.unwrap_or(true),
            attachment: self.attachment(raw, &port_id),
            port_id,
        }
    }

    /// What the port or uplink of this id stands on.
    pub fn device(&mut self, raw: Option<&raw::Device>, id: &str) -> Device {
        let empty = raw::Device::default();
        if raw.is_none() && self.is_missing("device") {
            self.report("device", kind::MISSING, r#"must be given; the shortest is device = { kind = "tap" }"#);
        }
        let mut at = Lowering { path: self.path.key("device"), diagnostics: self.diagnostics };
        device::read(raw.unwrap_or(&empty), id, &mut at)
    }

    /// A text that something is known by.
    pub fn id(&mut self, key: &str, raw: Option<&str>) -> String {
        self.id_within(LONGEST_ID, key, raw)
    }

    /// A text that a port or an uplink is known by.
    pub fn port_id(&mut self, key: &str, raw: Option<&str>) -> String {
        self.id_within(LONGEST_PORT_ID, key, raw)
    }

    fn id_within(&mut self, max_len: usize, key: &str, raw: Option<&str>) -> String {
        let Some(text) = raw else {
            if self.is_missing(key) {
                self.report(key, kind::MISSING, format!("must be given: a text of 1 to {max_len} bytes"));
            }
            return String::new();
        };
        let Some(wrong) = wrong_id_within(max_len, text) else { return text.to_string() };
        self.report(key, kind::BAD_VALUE, wrong);
        String::new()
    }

    /// A MAC address that can be a frame's source.
    pub fn station(&mut self, key: &str, raw: Option<&str>) -> Mac {
        let message = match raw.map(str::parse::<Mac>) {
            Some(Ok(mac)) if mac.is_station() => return mac,
            Some(Ok(mac)) if mac.is_group() => {
                "a group address, and no station can have one; the first octet must be even, as in 02:00:00:00:01:0a"
                    .to_string()
            }
            Some(Ok(_)) => "no station can have the address zero; one looks like 02:00:00:00:01:0a".to_string(),
            Some(Err(error)) => error.to_string(),
            None if self.is_missing(key) => {
                self.report(key, kind::MISSING, "must be given; one looks like 02:00:00:00:01:0a");
                return Mac::ZERO;
            }
            None => return Mac::ZERO,
        };
        self.report(key, kind::BAD_VALUE, message);
        Mac::ZERO
    }

    fn is_path(&mut self, key: &str, text: &str, max_len: usize) -> bool {
        let wrong = match text.len() {
            0 => "empty".to_string(),
            length if length > max_len => format!("{length} bytes long"),
            _ if text.chars().any(char::is_control) => "has control characters in it".to_string(),
            _ => return true,
        };
        self.report(
            key,
            kind::BAD_VALUE,
            format!("{wrong}; a path here is 1 to {max_len} bytes, without control characters"),
        );
        false
    }

    /// One of the words for a `T`.
    pub fn keyword<T: Named>(&mut self, key: &str, raw: Option<&str>, default: T) -> T {
        let Some(text) = raw else { return default };
        if let Some((_, value)) = T::NAMES.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        let words = raw::list(T::NAMES.iter().map(|(name, _)| name));
        self.report(key, kind::BAD_VALUE, format!("not a word for this; right would be one of {words}"));
        default
    }

    /// A number within bounds.
    pub fn number<T>(&mut self, key: &str, raw: Option<i64>, limits: RangeInclusive<T>, default: T) -> T
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let Some(number) = raw else { return default };
        match T::try_from(number) {
            Ok(number) if limits.contains(&number) => number,
            _ => {
                let message = format!("out of bounds; {} to {} is possible", limits.start(), limits.end());
                self.report(key, kind::BAD_VALUE, message);
                default
            }
        }
    }

    /// Something is wrong with `key` of this table.
    pub fn report(&mut self, key: &str, kind: &'static str, message: impl Into<String>) {
        self.diagnostics.push(&self.path.key(key), kind, message);
    }

    /// Whether `key` must be asked for: this table is there, and has it not.
    pub fn is_missing(&self, key: &str) -> bool {
        self.diagnostics.is_missing(&self.path.key(key))
    }
}
