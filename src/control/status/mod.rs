//! Builds status responses from configuration and runtime state.

pub mod fdb;
pub(super) mod ports;

use std::collections::HashMap;
use std::time::SystemTime;

use crate::control::api::handle::ConfigForm;
use crate::control::api::responses::{
    AuditDropView, AuditPortView, AuditView, AuditWorkerView, BetweenView, Direction, DropView, NetworkView, VmView,
    WorkerView,
};
use crate::control::compile::activation::Activations;
use crate::control::compile::endpoints::{ConfigRef, Labels};
use crate::control::compile::failover::Groups;
use crate::control::compile::ids::IdAllocator;
use crate::control::config::{Config, Named, Network};
use crate::control::reconcile::lifetimes::LifetimeStates;
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
    /// Namespaces of ports that end with them.
    pub lifetimes: &'a LifetimeStates,
    /// Start of the counters.
    pub since: SystemTime,
    /// Frame slots of the workers.
    pub pool: &'static Pool,
}

impl StatusBuilder<'_> {
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
                owner: vm.owner.clone(),
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
                owner: network.owner.clone(),
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
    pub fn config(&self, form: ConfigForm) -> serde_json::Value {
        if form == ConfigForm::Sparse {
            return self.config.to_sparse();
        }
        // Serialising fails only for maps with keys that are no strings.
        serde_json::to_value(self.config).unwrap_or_default()
    }
}
