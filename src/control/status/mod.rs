//! Builds status responses from configuration and runtime state.

pub mod fdb;

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use crate::control::api::responses::{
    AuditDropView, AuditPortView, AuditView, AuditWorkerView, BetweenView, CountsView, DeviceView, Direction, DropView,
    NetworkView, PortView, Status, UplinkNetworkView, UplinkView, VmView, WorkerView,
};
use crate::control::compile::activation::Activations;
use crate::control::compile::endpoints::{ConfigRef, Labels};
use crate::control::compile::failover::Groups;
use crate::control::compile::ids::IdAllocator;
use crate::control::compile::uplink_groups::uplink_groups;
use crate::control::config::{Config, Device, Named, Network, UplinkNetwork};
use crate::control::reconcile::port::{Port, State};
use crate::control::workers::WorkerHandles;
use crate::frame::Pool;
use crate::switch::{DropReason, NetworkId, PortId};
use crate::telemetry::audit::Snapshot;
use crate::time;

/// Sources of the status.
pub struct StatusBuilder<'a> {
    /// Configuration.
    pub config: &'a Config,
    /// Runtime state of ports and uplinks.
    pub ports: &'a [Port],
    /// Ids of ports and networks.
    pub ids: &'a IdAllocator,
    /// Active uplinks of groups.
    pub groups: &'a Groups,
    /// Cores of the workers.
    pub cores: &'a [usize],
    /// The workers.
    pub workers: &'a WorkerHandles,
    /// Quarantined ports, with reason.
    pub quarantined: HashMap<PortId, Option<String>>,
    /// Active ports, and pins that have yielded.
    pub activations: &'a Activations,
    /// Start of the counters.
    pub since: SystemTime,
    /// Frame slots of the workers.
    pub pool: &'static Pool,
}

impl StatusBuilder<'_> {
    /// All ports, in the order of the configuration.
    pub fn ports(&self) -> Vec<PortView> {
        self.ports.iter().filter_map(|port| self.port(port)).collect()
    }

    fn port(&self, port: &Port) -> Option<PortView> {
        let ConfigRef::Port { vm, position, .. } = port.endpoint.config_ref else { return None };
        let vm = &self.config.vms[vm];
        let wanted = &vm.ports[position];
        let held = self.quarantined.get(&port.endpoint.id).cloned().flatten().filter(|_| self.could_flow(port));
        Some(PortView {
            port_id: wanted.port_id.clone(),
            device_id: vm.id.clone(),
            network_id: wanted.network_id.clone(),
            mac_address: wanted.mac.to_string(),
            position,
            status: match held {
                Some(_) => Status::Quarantined,
                None if self.is_active(port) => Status::Active,
                None => Status::Down,
            },
            status_reason: held.unwrap_or_else(|| self.reason(port)),
            admin_state_up: wanted.admin_state_up,
            port_security: wanted.port_security.name().into(),
            unknown_unicast: wanted.unknown_unicast.name().into(),
            promiscuous: wanted.promiscuous,
            mac_learning: wanted.mac_learning,
            activation: wanted.activation.name().into(),
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
                    let standing_by = "stands by: another one of its group carries the frames";
                    if reason.is_empty() { standing_by.into() } else { format!("{standing_by}; {reason}") }
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
                status_reason: reason,
                admin_state_up: wanted.admin_state_up,
                networks: wanted.networks.iter().map(tagged).collect(),
                device: device(&wanted.device, port),
                worker: worker(port),
                counts: counts(port),
            })
        };
        self.ports.iter().filter_map(view).collect()
    }

    /// Reason of the status of a port or uplink.
    fn reason(&self, port: &Port) -> String {
        let Some(device_port) = port.endpoint.parent().and_then(|parent| self.ports.get(parent)) else {
            return self.own_reason(port);
        };
        let own = match port.endpoint.config_ref {
            ConfigRef::Port { vm, position, .. } => self.config.vms[vm].ports[position].admin_state_up,
            ConfigRef::Uplink { .. } => true,
        };
        match self.own_reason(device_port) {
            _ if !own => "administratively down".into(),
            _ if self.could_flow(device_port) => String::new(),
            why => format!("its parent, {}, is down: {why}", device_port.endpoint),
        }
    }

    fn own_reason(&self, port: &Port) -> String {
        let is_wanted = port.endpoint.labels(self.config).admin_up;
        match &port.state {
            State::Tagged { .. } => String::new(),
            State::Up { .. } if !is_wanted => "administratively down".into(),
            State::Up { .. } => port.dead_link().unwrap_or_else(|| port.warnings()),
            State::Opening { reason } => match port.overdue(time::now()) {
                Some(why) => why,
                None if reason.is_empty() => "being opened".into(),
                None => reason.clone(),
            },
            State::Down { reason } => reason.clone(),
        }
    }

    fn is_active(&self, port: &Port) -> bool {
        self.could_flow(port) && !self.quarantined.contains_key(&port.endpoint.id)
    }

    /// Operational status of a port.
    fn could_flow(&self, port: &Port) -> bool {
        let device_port = self.endpoint_of(port);
        matches!(device_port.state, State::Up { .. })
            && port.endpoint.labels(self.config).admin_up
            && device_port.dead_link().is_none()
    }

    /// All VMs, in the order of the configuration.
    pub fn vms(&self) -> Vec<VmView> {
        let is_of = |port: &Port, of| matches!(port.endpoint.config_ref, ConfigRef::Port { vm, .. } if vm == of);
        let of = |vm: usize| self.ports.iter().filter(move |port| is_of(port, vm));
        self.config
            .vms
            .iter()
            .enumerate()
            .map(|(index, vm)| VmView {
                device_id: vm.id.clone(),
                ports: vm.ports.iter().map(|port| port.port_id.clone()).collect(),
                networks: vm.ports.iter().map(|port| port.network_id.clone()).collect(),
                active: of(index).filter(|port| self.is_active(port)).count(),
                rx_frames: of(index).map(|port| port.sum(|c| c.rx_frames.get())).sum(),
                rx_bytes: of(index).map(|port| port.sum(|c| c.rx_bytes.get())).sum(),
                tx_frames: of(index).map(|port| port.sum(|c| c.tx_frames.get())).sum(),
                tx_bytes: of(index).map(|port| port.sum(|c| c.tx_bytes.get())).sum(),
                drops: of(index).map(|port| port.sum(|c| c.drops_in.total() + c.drops_out.total())).sum(),
            })
            .collect()
    }

    /// All networks, in the order of the configuration.
    pub async fn networks(&self) -> Vec<NetworkView> {
        let station_counts = self.workers.count_by_network().await;
        let is_on =
            |port: &Port, on| matches!(port.endpoint.config_ref, ConfigRef::Port { network, .. } if network == on);
        let of = |network: usize| self.ports.iter().filter(move |port| is_on(port, network));
        self.config
            .networks
            .iter()
            .enumerate()
            .map(|(index, network)| NetworkView {
                network_id: network.id.clone(),
                mtu: network.mtu,
                ports: of(index).count(),
                active: of(index).filter(|port| self.is_active(port)).count(),
                stations: self.stations(network, &station_counts),
                reserved_groups: network.reserved_groups.to_string(),
                fdb_limit: network.fdb_limit,
                ageing_seconds: network.ageing_seconds,
            })
            .collect()
    }

    fn stations(&self, network: &Network, station_counts: &[u32]) -> u64 {
        let place = self.ids.network(&network.id).map(NetworkId::index);
        place.and_then(|place| station_counts.get(place)).copied().unwrap_or_default().into()
    }

    /// All workers.
    #[allow(clippy::cast_precision_loss)] // of seconds
    pub fn workers(&self) -> Vec<WorkerView> {
        let queues = |worker: u16| {
            let polled = |port: &Port| match port.state {
                State::Up { worker: first, queues, .. } => {
                    (0..queues).filter(|&queue| self.workers.worker_for(first, queue) == worker).count()
                }
                _ => 0,
            };
            self.ports.iter().map(polled).sum()
        };
        (0u16..)
            .zip(self.workers.counters())
            .zip(self.cores)
            .map(|((worker, counters), &core)| WorkerView {
                worker,
                core,
                poll: self.config.switch.poll.name().into(),
                queues: queues(worker),
                stations: counters.stations.get(),
                stations_limit: self.config.switch.stations.into(),
                stations_refused: counters.refused.get(),
                polls: counters.polls.get(),
                busy_polls: counters.busy_polls.get(),
                busy_seconds: counters.busy_nanos.get() as f64 / 1e9,
                sleeps: counters.sleeps.get(),
                polls_skipped: counters.polls_skipped.get(),
                updates_lost: counters.updates_lost.get(),
                peer_tx_frames: counters.peer_tx_frames.get(),
                peer_rx_frames: counters.peer_rx_frames.get(),
                peer_tx_floods: counters.peer_tx_floods.get(),
                peer_rx_floods: counters.peer_rx_floods.get(),
                closed_port_drops: counters.closed_port_drops.get(),
                since: time::rfc3339(self.since),
            })
            .collect()
    }

    /// Drop counters by port and direction.
    pub fn drops(&self) -> Vec<DropView> {
        let mut all = Vec::new();
        for port in self.ports {
            let Labels { id, vm, network, .. } = port.endpoint.labels(self.config);
            for direction in [Direction::In, Direction::Out] {
                for reason in DropReason::ALL {
                    let frames = port.sum(|c| match direction {
                        Direction::In => c.drops_in.get(reason),
                        Direction::Out => c.drops_out.get(reason),
                    });
                    if frames > 0 {
                        all.push(DropView {
                            port_id: id.to_owned(),
                            uplink_id: port.endpoint.is_uplink().then(|| id.to_owned()),
                            device_id: vm.unwrap_or_default().to_owned(),
                            network_id: network.unwrap_or_default().to_owned(),
                            direction,
                            reason: reason.name().into(),
                            description: reason.description().into(),
                            frames,
                        });
                    }
                }
            }
        }
        all
    }

    /// Counter audit.
    pub async fn audit(&self) -> AuditView {
        let audit = self.workers.audit().await;
        let port = |port: &Port| {
            let Labels { id, vm, network, .. } = port.endpoint.labels(self.config);
            let share = audit.port(port.endpoint.id.index());
            AuditPortView {
                port_id: id.to_owned(),
                device_id: vm.unwrap_or_default().to_owned(),
                network_id: network.unwrap_or_default().to_owned(),
                rx_frames: share.rx_frames,
                forwarded: share.forwarded,
                flooded: share.flooded,
                drops_in: share.drops_in,
                delta: share.delta(),
            }
        };
        let worker = |(worker, reading): (u16, &Snapshot)| AuditWorkerView {
            worker,
            forwarded: reading.forwarded,
            copies: reading.copies,
            probes: reading.probes,
            announcements: reading.announcements,
            peer_rx_frames: reading.frames_received,
            tx_frames: reading.tx_frames,
            drops_out: reading.dropped,
            peer_tx_frames: reading.frames_sent,
            delta: reading.delta(),
        };
        let mut drops = Vec::new();
        for direction in [Direction::In, Direction::Out] {
            for reason in DropReason::ALL {
                let dropped = |reading: &Snapshot| match direction {
                    Direction::In => reading.drops_in[reason],
                    Direction::Out => reading.drops_out[reason],
                };
                let frames: u64 = audit.second.iter().map(dropped).sum();
                if frames > 0 {
                    let (reason, description) = (reason.name().into(), reason.description().into());
                    drops.push(AuditDropView { direction, reason, description, frames });
                }
            }
        }
        let between = |(min, max)| BetweenView { min, max };
        AuditView {
            balanced: audit.is_balanced(),
            idle: audit.is_idle(),
            ports: self.ports.iter().map(port).collect(),
            workers: (0..).zip(&audit.second).map(worker).collect(),
            frames_between: between(audit.frames_between()),
            floods_between: between(audit.floods_between()),
            drops,
            slots: self.pool.slots(),
            slots_free: self.pool.free(),
        }
    }

    /// The configuration, as raw tables.
    pub fn config(&self) -> serde_json::Value {
        // Serialising fails only for maps with keys that are no strings.
        serde_json::to_value(self.config).unwrap_or_default()
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
