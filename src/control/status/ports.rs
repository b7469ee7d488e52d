//! Status of ports and uplinks: state with its reason, device, counters.

use std::collections::{BTreeMap, HashSet};

use super::StatusBuilder;
use crate::control::api::responses::{CountsView, DeviceView, PortView, Status, UplinkNetworkView, UplinkView};
use crate::control::api::selection::{Page, PortSelection};
use crate::control::compile::endpoints::ConfigRef;
use crate::control::compile::uplink_groups::uplink_groups;
use crate::control::config::{Device, Named, UplinkNetwork};
use crate::control::reason::{Reason, ReasonCode};
use crate::control::reconcile::port::{Port, State};
use crate::time;

#[cfg(test)]
thread_local! {
    /// Number of views of ports that were built.
    pub(in crate::control) static BUILT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl StatusBuilder<'_> {
    /// All ports, in the order of the configuration.
    pub fn ports(&self) -> Vec<PortView> {
        self.ports.iter().filter_map(|port| self.port(port)).collect()
    }

    /// The ports with these ids, those that exist, in the order of the configuration.
    pub fn ports_of(&self, ids: &HashSet<String>) -> Vec<PortView> {
        let is_asked = |port: &&Port| match port.endpoint.config_ref {
            ConfigRef::Port { vm, position, .. } => ids.contains(&self.config.vms[vm].ports[position].port_id),
            ConfigRef::Uplink { .. } => false,
        };
        self.ports.iter().filter(is_asked).filter_map(|port| self.port(port)).collect()
    }

    /// The ports selected; of a page up to one more than it has.
    pub fn select_ports(&self, which: &PortSelection) -> Vec<PortView> {
        let is = |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        let is_wanted = |port: &&Port| match port.endpoint.config_ref {
            ConfigRef::Port { vm, position, .. } => {
                let (vm, port) = (&self.config.vms[vm], &self.config.vms[vm].ports[position]);
                is(&which.network, &port.network_id)
                    && is(&which.vm, &vm.id)
                    && (which.owner.is_none() || which.owner == port.owner)
                    && which.page.as_ref().is_none_or(|page| page.has_not_passed(&port.port_id))
            }
            ConfigRef::Uplink { .. } => false,
        };
        let mut ports: Vec<&Port> = self.ports.iter().filter(is_wanted).collect();
        if which.page.is_some() {
            ports.sort_unstable_by(|a, b| a.endpoint.name.cmp(&b.endpoint.name));
        }
        let views = ports.into_iter().filter_map(|port| self.port(port));
        let views = views.filter(|port| which.status.is_none_or(|status| status == port.status));
        views.take(which.page.as_ref().map_or(usize::MAX, Page::wanted)).collect()
    }

    fn port(&self, port: &Port) -> Option<PortView> {
        #[cfg(test)]
        BUILT.set(BUILT.get() + 1);
        let ConfigRef::Port { vm, position, .. } = port.endpoint.config_ref else { return None };
        let vm = &self.config.vms[vm];
        let wanted = &vm.ports[position];
        let quarantine = self.quarantined.get(&port.endpoint.id).cloned().flatten().filter(|_| self.could_flow(port));
        let status = match quarantine {
            Some(_) => Status::Quarantined,
            None if self.is_active(port) => Status::Active,
            None => Status::Down,
        };
        let reason = match quarantine {
            Some(text) => Reason::new(ReasonCode::Quarantined, text),
            None => self.reason(port),
        };
        Some(PortView {
            port_id: wanted.port_id.clone(),
            device_id: vm.id.clone(),
            network_id: wanted.network_id.clone(),
            mac_address: wanted.mac.to_string(),
            position,
            status,
            status_code: reason.code.name().into(),
            status_reason: reason.text,
            admin_state_up: wanted.admin_state_up,
            owner: wanted.owner.clone(),
            port_security: wanted.port_security.name().into(),
            unknown_unicast: wanted.unknown_unicast.name().into(),
            promiscuous: wanted.promiscuous,
            mac_learning: wanted.mac_learning,
            activation: wanted.activation.name().into(),
            lifetime: wanted.lifetime.name().into(),
            pinned: port.endpoint.labels(self.config).admin_up && self.activations.pins(wanted),
            mac_limit: wanted.mac_limit.map(|limit| limit.stations),
            mac_limit_policy: wanted.mac_limit.map(|limit| limit.policy.name().into()),
            parent: wanted.subport().map(|subport| subport.parent.clone()),
            vlan: wanted.subport().map(|subport| subport.vlan.get()),
            device: self.device(port)?,
            worker: worker(self.endpoint_of(port)),
            counts: counts(port),
        })
    }

    /// The port whose device carries this one's frames: itself or its parent.
    fn endpoint_of<'p>(&'p self, port: &'p Port) -> &'p Port {
        port.endpoint.parent().and_then(|parent| self.ports.get(parent)).unwrap_or(port)
    }

    fn device(&self, port: &Port) -> Option<DeviceView> {
        let device_port = self.endpoint_of(port);
        let ConfigRef::Port { vm, position, .. } = device_port.endpoint.config_ref else { return None };
        Some(device(self.config.vms[vm].ports[position].device()?, device_port))
    }

    /// All uplinks, in the order of the configuration.
    pub fn uplinks(&self) -> Vec<UplinkView> {
        let carrying: Vec<usize> =
            uplink_groups(self.config).iter().map(|uplink_group| uplink_group.active(self.groups)).collect();
        let view = |port: &Port| {
            let ConfigRef::Uplink { index } = port.endpoint.config_ref else { return None };
            let wanted = &self.config.uplinks[index];
            let carries = carrying.contains(&index);
            let is_up = self.is_active(port);
            let reason = match self.reason(port) {
                reason if is_up && !carries => {
                    let standing_by = "backup: another uplink of its group is active";
                    let warnings = if reason.is_empty() { String::new() } else { format!("; {reason}") };
                    Reason::new(ReasonCode::Backup, format!("{standing_by}{warnings}"))
                }
                reason => reason,
            };
            let tagged = |of: &UplinkNetwork| UplinkNetworkView {
                network_id: of.network_id.clone(),
                vlan: of.vlan.map(|vlan| vlan.get()),
            };
            Some(UplinkView {
                uplink_id: wanted.id.clone(),
                group: wanted.group.clone(),
                active: is_up && carries,
                status: if is_up { Status::Active } else { Status::Down },
                status_code: reason.code.name().into(),
                status_reason: reason.text,
                admin_state_up: wanted.admin_state_up,
                owner: wanted.owner.clone(),
                networks: wanted.networks.iter().map(tagged).collect(),
                device: device(&wanted.device, port),
                worker: worker(port),
                counts: counts(port),
            })
        };
        self.ports.iter().filter_map(view).collect()
    }

    /// Reason of the status of a port or uplink.
    fn reason(&self, port: &Port) -> Reason {
        let Some(device_port) = port.endpoint.parent().and_then(|parent| self.ports.get(parent)) else {
            return self.own_reason(port);
        };
        let own = match port.endpoint.config_ref {
            ConfigRef::Port { vm, position, .. } => self.config.vms[vm].ports[position].admin_state_up,
            ConfigRef::Uplink { .. } => true,
        };
        match self.own_reason(device_port) {
            _ if !own => Reason::admin_down(),
            _ if self.could_flow(device_port) => Reason::active(String::new()),
            why => Reason::parent_down(&device_port.endpoint, &why),
        }
    }

    fn own_reason(&self, port: &Port) -> Reason {
        let reason = self.reason_of_device(port);
        match (self.lifetimes.trouble(port), &port.state) {
            (None, _) => reason,
            (Some(why), State::Up { .. }) if reason.is_empty() => Reason::active(why.to_owned()),
            (Some(why), _) => Reason { text: format!("{}; {why}", reason.text), ..reason },
        }
    }

    fn reason_of_device(&self, port: &Port) -> Reason {
        let is_wanted = port.endpoint.labels(self.config).admin_up;
        match &port.state {
            State::Tagged { .. } => Reason::active(String::new()),
            State::Up { .. } if !is_wanted => Reason::admin_down(),
            State::Up { .. } => port.dead_link().unwrap_or_else(|| Reason::active(port.warnings())),
            State::Opening { reason } => match port.overdue(time::now()) {
                Some(why) => why,
                None if reason.is_empty() => Reason::opening(),
                None => reason.clone(),
            },
            State::Down { reason } => reason.clone(),
        }
    }

    pub(super) fn is_active(&self, port: &Port) -> bool {
        self.could_flow(port) && !self.quarantined.contains_key(&port.endpoint.id)
    }

    /// Operational status of a port.
    fn could_flow(&self, port: &Port) -> bool {
        let device_port = self.endpoint_of(port);
        matches!(device_port.state, State::Up { .. })
            && port.endpoint.labels(self.config).admin_up
            && device_port.dead_link().is_none()
    }
}

/// Status of a device.
fn device(wanted: &Device, port: &Port) -> DeviceView {
    let (name, netns) = (wanted.name().to_owned(), wanted.netns().map(str::to_owned));
    let view = DeviceView { kind: wanted.kind().into(), name, netns, ..DeviceView::default() };
    let (open, mode) = match &port.state {
        State::Up { queues, mode, .. } => (Some(*queues), mode.clone()),
        _ => (None, None),
    };
    match wanted {
        Device::Tap(tap) => {
            DeviceView { queues: Some(tap.queues), offloads: Some(tap.offloads), persist: Some(tap.persist), ..view }
        }
        Device::Xdp(xdp) => DeviceView { queues: open.or(xdp.queues), mode, ..view },
        Device::Packet(packet) => {
            DeviceView { queues: open, offloads: Some(packet.offloads), isolate: Some(packet.isolate), mode, ..view }
        }
    }
}

fn worker(port: &Port) -> Option<u16> {
    match port.state {
        State::Up { worker, .. } => Some(worker),
        _ => None,
    }
}

/// Counters of a port or uplink, sum of its queues.
fn counts(port: &Port) -> CountsView {
    CountsView {
        rx_frames: port.sum(|c| c.rx_frames.get()),
        rx_bytes: port.sum(|c| c.rx_bytes.get()),
        tx_frames: port.sum(|c| c.tx_frames.get()),
        tx_bytes: port.sum(|c| c.tx_bytes.get()),
        forwarded: port.sum(|c| c.forwarded.get()),
        flooded: port.sum(|c| c.flooded.get()),
        copies: port.sum(|c| c.copies.get()),
        probes: port.sum(|c| c.probes.get()),
        announcements: port.sum(|c| c.announcements.get()),
        rx_missed: port.sum(|c| c.rx_missed.get()),
        tx_lost: port.sum(|c| c.tx_lost.get()),
        segmented: port.sum(|c| c.segmented.get()),
        checksummed: port.sum(|c| c.checksummed.get()),
        not_learned: port.sum(|c| c.not_learned.get()),
        not_flooded: port.sum(|c| c.not_flooded.get()),
        mirror_copies: port.sum(|c| c.mirror_copies.get()),
        reserved_groups: reserved_groups(port),
        drops: drops(port),
    }
}

/// Frames to reserved groups dropped at a port, by group.
fn reserved_groups(port: &Port) -> BTreeMap<String, u64> {
    let mut groups = BTreeMap::new();
    for (group, frames) in port.counters.iter().flat_map(|counters| counters.reserved_groups.iter()) {
        *groups.entry(group.name().to_owned()).or_default() += frames;
    }
    groups
}

/// Frames dropped at a port, both directions, by reason.
fn drops(port: &Port) -> BTreeMap<String, u64> {
    let mut drops = BTreeMap::new();
    for counters in &port.counters {
        for (reason, frames) in counters.drops_in.iter().chain(counters.drops_out.iter()) {
            *drops.entry(reason.name().to_owned()).or_default() += frames;
        }
    }
    drops
}
