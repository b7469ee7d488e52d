//! Lowers raw tables to the model.

use std::path::PathBuf;

use super::diagnostics::{Diagnostics, Path};
use super::error::kind;
use super::listeners::LONGEST_SOCKET_PATH;
use super::lowering::{Lowering, lower_each};
use super::model::{Config, IpAllocation, Network, Port, SwitchSettings, Vm};
use super::policy::{Activation, Lifetime};
use super::raw;
use super::storm::Of;

/// `CPU_SETSIZE`: what the kernel's affinity masks hold by default.
const CORES: i64 = 1024;

/// Lowers the file.
pub(super) fn lower(raw: &raw::Config, diagnostics: &mut Diagnostics<'_>) -> Config {
    let top = Path::default();
    Config {
        switch: raw.switch.as_ref().map_or_else(SwitchSettings::default, |table| {
            Lowering { path: top.key("switch"), diagnostics: &mut *diagnostics }.switch(table)
        }),
        networks: lower_each(&top.key("networks"), raw.networks.as_deref(), diagnostics, |mut at, table| {
            at.network(table)
        }),
        vms: lower_each(&top.key("vms"), raw.vms.as_deref(), diagnostics, |mut at, table| at.vm(table).into()),
        uplinks: lower_each(&top.key("uplinks"), raw.uplinks.as_deref(), diagnostics, |mut at, table| at.uplink(table)),
    }
}

/// Lowers the port at `path`.
pub(super) fn port(path: Path, raw: &raw::Port, diagnostics: &mut Diagnostics<'_>) -> Port {
    Lowering { path, diagnostics }.port(raw)
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
            api_writers: self.writers(raw.api_writers.as_ref()),
            api_read: self.read_socket(raw),
            state: match raw.state.as_deref() {
                Some("") => None,
                Some(path) if self.is_path("state", path, 4095) => Some(PathBuf::from(path)),
                _ => default.state,
            },
            metrics: self.listener("metrics", raw.metrics.as_deref(), "127.0.0.1:9477"),
            pages: self.pages(raw),
            pages_hosts: self.pages_hosts(raw),
            probe_key: self.probe_key(raw.probe_key.as_deref()),
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
                    self.diagnostics.push(&path, kind::BAD_VALUE, "this core is listed already; list each core once");
                }
                _ => self.diagnostics.push(&path, kind::BAD_VALUE, format!("not a core; use 0 to {}", CORES - 1)),
            }
        }
        cores
    }

    /// Lowers a `[[vms]]` item.
    pub fn vm(&mut self, raw: &raw::Vm) -> Vm {
        Vm {
            id: self.id("id", raw.id.as_deref()),
            storm: self.storm(raw.storm.as_ref(), Of::Vm),
            share_mac: raw.share_mac.unwrap_or(false),
            sibling_split_horizon: raw.sibling_split_horizon.unwrap_or(false),
            owner: self.label("owner", raw.owner.as_deref()),
            ports: lower_each(&self.path.key("ports"), raw.ports.as_deref(), self.diagnostics, |mut at, table| {
                at.port(table)
            }),
        }
    }

    /// Lowers a `[[networks]]` item.
    pub fn network(&mut self, raw: &raw::Network) -> Network {
        let default = Network::new("");
        let fdb_limit = self.number("fdb_limit", raw.fdb_limit, 1..=u32::MAX, default.fdb_limit);
        // a small fdb_limit must be valid without fdb_limit_per_port
        let per_port = default.fdb_limit_per_port.min(fdb_limit);
        let per_port = self.number("fdb_limit_per_port", raw.fdb_limit_per_port, 1..=u32::MAX, per_port);
        if per_port > fdb_limit {
            let message = format!("greater than the limit of the network; use at most fdb_limit, {fdb_limit}");
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
            owner: self.label("owner", raw.owner.as_deref()),
        }
    }

    fn port(&mut self, raw: &raw::Port) -> Port {
        let port_id = self.port_id("port_id", raw.port_id.as_deref());
        let mac = self.station("mac_address", raw.mac_address.as_deref());
        let port_security = self.security(raw);
        let fixed_ips = self.addresses(raw.fixed_ips.as_deref().unwrap_or_default());
        let allocation = IpAllocation::of_addresses(!fixed_ips.is_empty());
        Port {
            network_id: self.id("network_id", raw.network_id.as_deref()),
            mac,
            ip_allocation: self.keyword("ip_allocation", raw.ip_allocation.as_deref(), allocation),
            fixed_ips,
            port_security,
            allowed_address_pairs: self.pairs(raw.allowed_address_pairs.as_deref(), port_security, mac),
            unknown_unicast: self.unknown_unicast(raw),
            promiscuous: raw.promiscuous.unwrap_or(false),
            mac_learning: raw.mac_learning.unwrap_or(true),
            mac_limit: self.mac_limit(raw),
            storm: self.storm(raw.storm.as_ref(), Of::Port),
            activation: self.keyword("activation", raw.activation.as_deref(), Activation::default()),
            lifetime: self.lifetime(raw),
            admin_state_up: raw.admin_state_up.unwrap_or(true),
            attachment: self.attachment(raw, &port_id),
            position: raw.position.map(|_| self.number("position", raw.position, 0..=u16::MAX, 0)),
            owner: self.label("owner", raw.owner.as_deref()),
            port_id,
        }
    }

    /// Lifetime of a port, which needs a network namespace that can end before the switch does.
    fn lifetime(&mut self, raw: &raw::Port) -> Lifetime {
        let lifetime = self.keyword("lifetime", raw.lifetime.as_deref(), Lifetime::default());
        if lifetime == Lifetime::Config {
            return lifetime;
        }
        if raw.parent.is_some() {
            let message = "a subport ends with its parent; remove the key, and set it at the parent";
            self.report("lifetime", kind::CONTRADICTION, message);
        } else if raw.device.as_ref().is_some_and(|device| device.netns.is_none()) {
            let message = "its device is in the switch's own network namespace, which does not end; set device.netns, or \
                           remove the key";
            self.report("lifetime", kind::CONTRADICTION, message);
        }
        lifetime
    }
}
