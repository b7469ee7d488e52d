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

use super::meant::{Config, Device, IpAllocation, Named, Network, Port, SwitchSettings, Vm};
use super::notes::{Notes, Path};
use super::policy::Activation;
use super::problem::kind;
use super::storm::Of;
use super::{device, written};

/// `sun_path` without its final zero.
const LONGEST_SOCKET_PATH: usize = 107;
/// `CPU_SETSIZE`: what the kernel's affinity masks hold by default.
const CORES: i64 = 1024;

/// What the whole file means.
pub(super) fn config(written: &written::Config, notes: &mut Notes<'_>) -> Config {
    let top = Path::default();
    Config {
        switch: written.switch.as_ref().map_or_else(SwitchSettings::default, |table| {
            Table { path: top.key("switch"), notes: &mut *notes }.switch(table)
        }),
        networks: each(&top.key("networks"), written.networks.as_deref(), notes, |mut at, table| at.network(table)),
        vms: each(&top.key("vms"), written.vms.as_deref(), notes, |mut at, table| Vm {
            id: at.id("id", table.id.as_deref()),
            storm: at.storm(table.storm.as_ref(), Of::Vm),
            share_mac: table.share_mac.unwrap_or(false),
            sibling_split_horizon: table.sibling_split_horizon.unwrap_or(false),
            ports: each(&at.path.key("ports"), table.ports.as_deref(), at.notes, |mut at, table| at.port(table)),
        }),
        uplinks: each(&top.key("uplinks"), written.uplinks.as_deref(), notes, |mut at, table| at.uplink(table)),
    }
}

/// What a port means that stands at `path`.
pub(super) fn port(path: Path, written: &written::Port, notes: &mut Notes<'_>) -> Port {
    Table { path, notes }.port(written)
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

fn wrong_id_within(longest: usize, text: &str) -> Option<String> {
    let wrong = match text.len() {
        0 => "empty".to_owned(),
        length if length > longest => format!("{length} bytes long"),
        _ if text.chars().any(char::is_control) => "has control characters in it".to_owned(),
        _ => return None,
    };
    Some(format!("{wrong}; an id here is 1 to {longest} bytes, none of them control characters"))
}

/// What each table of a list means.
pub(super) fn each<W, M>(
    path: &Path,
    tables: Option<&[W]>,
    notes: &mut Notes<'_>,
    mean: impl Fn(Table<'_, '_>, &W) -> M,
) -> Vec<M> {
    let tables = tables.unwrap_or_default().iter().enumerate();
    tables.map(|(index, table)| mean(Table { path: path.item(index), notes: &mut *notes }, table)).collect()
}

/// The place of a table, and where to note what is wrong with it.
pub(super) struct Table<'a, 'd> {
    pub path: Path,
    pub notes: &'a mut Notes<'d>,
}

impl Table<'_, '_> {
    fn switch(&mut self, written: &written::Switch) -> SwitchSettings {
        let default = SwitchSettings::default();
        SwitchSettings {
            cores: self.cores(written.cores.as_deref().unwrap_or_default()),
            api: match written.api.as_deref() {
                Some(path) if self.is_path("api", path, LONGEST_SOCKET_PATH) => PathBuf::from(path),
                _ => default.api,
            },
            state: match written.state.as_deref() {
                Some("") => None,
                Some(path) if self.is_path("state", path, 4095) => Some(PathBuf::from(path)),
                _ => default.state,
            },
            metrics: written.metrics.as_deref().and_then(|text| {
                let remedy =
                    "not an address and port; one looks like 127.0.0.1:9477, and without this key there is none";
                text.parse::<SocketAddr>().map_err(|_| self.note("metrics", kind::BAD_VALUE, remedy)).ok()
            }),
            poll: self.word("poll", written.poll.as_deref(), default.poll),
            frames: self.number("frames", written.frames, 1024..=4_194_304, default.frames),
            stations: self.number("stations", written.stations, 1024..=8_388_608, default.stations),
        }
    }

    fn cores(&mut self, written: &[i64]) -> Vec<usize> {
        let mut cores = Vec::new();
        for (index, core) in written.iter().enumerate() {
            let path = self.path.key("cores").item(index);
            match usize::try_from(*core) {
                Ok(id) if *core < CORES && !cores.contains(&id) => cores.push(id),
                Ok(_) if *core < CORES => {
                    self.notes.add(&path, kind::BAD_VALUE, "this core is listed already; each core carries one worker");
                }
                _ => self.notes.add(&path, kind::BAD_VALUE, format!("not a core; cores are 0 to {}", CORES - 1)),
            }
        }
        cores
    }

    fn network(&mut self, written: &written::Network) -> Network {
        let default = Network::new("");
        let fdb_limit = self.number("fdb_limit", written.fdb_limit, 1..=u32::MAX, default.fdb_limit);
        // a small network needs no second key to be a legal one
        let per_port = default.fdb_limit_per_port.min(fdb_limit);
        let per_port = self.number("fdb_limit_per_port", written.fdb_limit_per_port, 1..=u32::MAX, per_port);
        if per_port > fdb_limit {
            let message = format!("more than the whole network may have; at most fdb_limit, which is {fdb_limit}");
            self.note("fdb_limit_per_port", kind::CONTRADICTION, message);
        }
        Network {
            id: self.id("id", written.id.as_deref()),
            mtu: self.number("mtu", written.mtu, 68..=9216, default.mtu),
            ageing_seconds: self.number(
                "ageing_seconds",
                written.ageing_seconds,
                10..=1_000_000,
                default.ageing_seconds,
            ),
            fdb_limit,
            fdb_limit_per_port: per_port,
            guard: written.guard.unwrap_or(default.guard),
            reserved_groups: match written.reserved_groups.as_deref().map(str::parse) {
                Some(Ok(groups)) => groups,
                Some(Err(wrong)) => {
                    self.note("reserved_groups", kind::BAD_VALUE, wrong.to_string());
                    default.reserved_groups
                }
                None => default.reserved_groups,
            },
            storm: self.storm(written.storm.as_ref(), Of::Network).over(default.storm),
            probe_seconds: self.number("probe_seconds", written.probe_seconds, 1..=10, default.probe_seconds),
            freeze_seconds: self.number("freeze_seconds", written.freeze_seconds, 30..=3600, default.freeze_seconds),
        }
    }

    fn port(&mut self, written: &written::Port) -> Port {
        let port_id = self.port_id("port_id", written.port_id.as_deref());
        let mac = self.station("mac_address", written.mac_address.as_deref());
        let port_security = self.security(written);
        let fixed_ips = self.addresses(written.fixed_ips.as_deref().unwrap_or_default());
        let unspoken = if fixed_ips.is_empty() { IpAllocation::None } else { IpAllocation::Immediate };
        Port {
            network_id: self.id("network_id", written.network_id.as_deref()),
            mac,
            ip_allocation: self.word("ip_allocation", written.ip_allocation.as_deref(), unspoken),
            fixed_ips,
            port_security,
            allowed_address_pairs: self.pairs(written.allowed_address_pairs.as_deref(), port_security, mac),
            unknown_unicast: self.unknown_unicast(written),
            promiscuous: written.promiscuous.unwrap_or(false),
            mac_learning: written.mac_learning.unwrap_or(true),
            mac_limit: self.mac_limit(written),
            storm: self.storm(written.storm.as_ref(), Of::Port),
            activation: self.word("activation", written.activation.as_deref(), Activation::default()),
            admin_state_up: written.admin_state_up.unwrap_or(true),
            base: self.base(written, &port_id),
            port_id,
        }
    }

    /// What the port or uplink of this id stands on.
    pub fn device(&mut self, written: Option<&written::Device>, id: &str) -> Device {
        let nothing = written::Device::default();
        if written.is_none() && self.misses("device") {
            self.note("device", kind::MISSING, r#"must be given; the shortest is device = { kind = "tap" }"#);
        }
        let mut at = Table { path: self.path.key("device"), notes: self.notes };
        device::read(written.unwrap_or(&nothing), id, &mut at)
    }

    /// A text that something is known by.
    pub fn id(&mut self, key: &str, written: Option<&str>) -> String {
        self.id_within(LONGEST_ID, key, written)
    }

    /// A text that a port or an uplink is known by.
    pub fn port_id(&mut self, key: &str, written: Option<&str>) -> String {
        self.id_within(LONGEST_PORT_ID, key, written)
    }

    fn id_within(&mut self, longest: usize, key: &str, written: Option<&str>) -> String {
        let Some(text) = written else {
            if self.misses(key) {
                self.note(key, kind::MISSING, format!("must be given: a text of 1 to {longest} bytes"));
            }
            return String::new();
        };
        let Some(wrong) = wrong_id_within(longest, text) else { return text.to_string() };
        self.note(key, kind::BAD_VALUE, wrong);
        String::new()
    }

    /// A MAC address that can be a frame's source.
    pub fn station(&mut self, key: &str, written: Option<&str>) -> Mac {
        let message = match written.map(str::parse::<Mac>) {
            Some(Ok(mac)) if mac.is_station() => return mac,
            Some(Ok(mac)) if mac.is_group() => {
                "a group address, and no station can have one; the first octet must be even, as in 02:00:00:00:01:0a"
                    .to_string()
            }
            Some(Ok(_)) => "no station can have the address zero; one looks like 02:00:00:00:01:0a".to_string(),
            Some(Err(error)) => error.to_string(),
            None if self.misses(key) => {
                self.note(key, kind::MISSING, "must be given; one looks like 02:00:00:00:01:0a");
                return Mac::ZERO;
            }
            None => return Mac::ZERO,
        };
        self.note(key, kind::BAD_VALUE, message);
        Mac::ZERO
    }

    fn is_path(&mut self, key: &str, text: &str, longest: usize) -> bool {
        let wrong = match text.len() {
            0 => "empty".to_string(),
            length if length > longest => format!("{length} bytes long"),
            _ if text.chars().any(char::is_control) => "has control characters in it".to_string(),
            _ => return true,
        };
        self.note(
            key,
            kind::BAD_VALUE,
            format!("{wrong}; a path here is 1 to {longest} bytes, without control characters"),
        );
        false
    }

    /// One of the words for a `T`.
    pub fn word<T: Named>(&mut self, key: &str, written: Option<&str>, default: T) -> T {
        let Some(text) = written else { return default };
        if let Some((_, value)) = T::NAMES.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        let words = written::list(T::NAMES.iter().map(|(name, _)| name));
        self.note(key, kind::BAD_VALUE, format!("not a word for this; right would be one of {words}"));
        default
    }

    /// A number within bounds.
    pub fn number<T>(&mut self, key: &str, written: Option<i64>, bounds: RangeInclusive<T>, default: T) -> T
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let Some(number) = written else { return default };
        match T::try_from(number) {
            Ok(number) if bounds.contains(&number) => number,
            _ => {
                let message = format!("out of bounds; {} to {} is possible", bounds.start(), bounds.end());
                self.note(key, kind::BAD_VALUE, message);
                default
            }
        }
    }

    /// Something is wrong with `key` of this table.
    pub fn note(&mut self, key: &str, kind: &'static str, message: impl Into<String>) {
        self.notes.add(&self.path.key(key), kind, message);
    }

    /// Whether `key` must be asked for: this table is there, and has it not.
    pub fn misses(&self, key: &str) -> bool {
        self.notes.misses(&self.path.key(key))
    }
}
