//! Answers to questions: the state of the switch as it is shown.

use std::collections::BTreeMap;

use super::config::{Config, Device, Named};
use super::controller::{Port, State};
use super::staff::Staff;
use super::view::{
    AuditDropView, AuditPortView, AuditView, AuditWorkerView, BetweenView, DeviceView, Direction, DropView,
    NetworkView, PortView, StationKind, StationView, Status, VmView, WorkerView,
};
use crate::switch::{DropReason, Learned, PortId, Rules};
use crate::telemetry::audit::Reading;
use crate::time::Moment;

/// What there is to report on.
pub struct Report<'a> {
    /// What shall be.
    pub config: &'a Config,
    /// What is.
    pub ports: &'a [Port],
    /// The cores of the workers.
    pub cores: &'a [usize],
    /// The workers.
    pub staff: &'a Staff,
}

impl Report<'_> {
    /// All ports, in the order of the configuration.
    pub fn ports(&self) -> Vec<PortView> {
        self.ports.iter().map(|port| self.port(port)).collect()
    }

    fn port(&self, port: &Port) -> PortView {
        let vm = &self.config.vms[port.plan.vm];
        let wanted = &vm.ports[port.plan.position];
        let Device::Tap(tap) = &wanted.device;
        let (worker, reason) = match &port.state {
            State::Up { worker, notes, .. } if wanted.admin_state_up => (Some(*worker), notes.clone()),
            State::Up { worker, .. } => (Some(*worker), "administratively down".into()),
            State::Opening { reason } if reason.is_empty() => (None, "being opened".into()),
            State::Opening { reason } | State::Down { reason } => (None, reason.clone()),
        };
        let mut drops = BTreeMap::new();
        for counters in &port.counters {
            for (reason, frames) in counters.drops_in.iter().chain(counters.drops_out.iter()) {
                *drops.entry(reason.name().to_owned()).or_default() += frames;
            }
        }
        PortView {
            port_id: wanted.port_id.clone(),
            device_id: vm.id.clone(),
            network_id: wanted.network_id.clone(),
            mac_address: wanted.mac.to_string(),
            position: port.plan.position,
            status: if self.is_active(port) { Status::Active } else { Status::Down },
            status_reason: reason,
            admin_state_up: wanted.admin_state_up,
            port_security: wanted.port_security.name().into(),
            device: DeviceView {
                kind: "tap".into(),
                name: tap.name.clone(),
                netns: tap.netns.clone(),
                queues: tap.queues,
                offloads: tap.offloads,
                persist: tap.persist,
            },
            worker,
            rx_frames: port.sum(|c| c.rx_frames.get()),
            rx_bytes: port.sum(|c| c.rx_bytes.get()),
            tx_frames: port.sum(|c| c.tx_frames.get()),
            tx_bytes: port.sum(|c| c.tx_bytes.get()),
            forwarded: port.sum(|c| c.forwarded.get()),
            flooded: port.sum(|c| c.flooded.get()),
            copies: port.sum(|c| c.copies.get()),
            drops,
        }
    }

    fn is_active(&self, port: &Port) -> bool {
        matches!(port.state, State::Up { .. }) && self.config.vms[port.plan.vm].ports[port.plan.position].admin_state_up
    }

    /// All VMs, in the order of the configuration.
    pub fn vms(&self) -> Vec<VmView> {
        let of = |vm: usize| self.ports.iter().filter(move |port| port.plan.vm == vm);
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
        let census = self.staff.census().await;
        let of = |network: usize| self.ports.iter().filter(move |port| port.plan.network == network);
        self.config
            .networks
            .iter()
            .enumerate()
            .map(|(index, network)| NetworkView {
                network_id: network.id.clone(),
                mtu: network.mtu,
                ports: of(index).count(),
                active: of(index).filter(|port| self.is_active(port)).count(),
                stations: census.get(index).copied().unwrap_or_default().into(),
                fdb_limit: network.fdb_limit,
                ageing_seconds: network.ageing_seconds,
            })
            .collect()
    }

    /// All stations at `now`: the pinned, then the learned, each by network and address.
    pub async fn fdb(&self, rules: &Rules, now: Moment) -> Vec<StationView> {
        let learned = self.staff.stations().await;
        let pinned = rules.pinned().filter_map(|(station, port)| {
            let seen = now.secs();
            self.station(Learned { station, port, seen }, StationKind::Pinned, now)
        });
        let learned = learned.into_iter().filter_map(|l| self.station(l, StationKind::Learned, now));
        let mut all: Vec<StationView> = pinned.chain(learned).collect();
        all.sort_by(|a, b| (b.kind, &a.network_id, &a.mac_address).cmp(&(a.kind, &b.network_id, &b.mac_address)));
        all
    }

    /// A station as it is shown; `None` if its port is no more, or it has aged.
    fn station(&self, learned: Learned, kind: StationKind, now: Moment) -> Option<StationView> {
        let port = self.find(learned.port)?;
        let network = self.config.networks.get(learned.station.network().index())?;
        let age_seconds = now.secs().saturating_sub(learned.seen);
        (age_seconds < network.ageing_seconds).then(|| StationView {
            network_id: network.id.clone(),
            mac_address: learned.station.mac().to_string(),
            port_id: self.config.vms[port.plan.vm].ports[port.plan.position].port_id.clone(),
            kind,
            age_seconds,
        })
    }

    fn find(&self, id: PortId) -> Option<&Port> {
        // Ports stand in the order of their places.
        self.ports.get(id.index()).filter(|port| port.is(id))
    }

    /// All workers.
    #[allow(clippy::cast_precision_loss)] // of seconds
    pub fn workers(&self) -> Vec<WorkerView> {
        let queues = |worker: u16| {
            let polled = |port: &Port| match port.state {
                State::Up { worker: first, queues, .. } => {
                    (0..queues).filter(|&queue| self.staff.home(first, queue) == worker).count()
                }
                _ => 0,
            };
            self.ports.iter().map(polled).sum()
        };
        (0u16..)
            .zip(self.staff.counters())
            .zip(self.cores)
            .map(|((worker, counters), &core)| WorkerView {
                worker,
                core,
                poll: self.config.switch.poll.name().into(),
                queues: queues(worker),
                stations: counters.stations.get(),
                stations_limit: self.config.switch.stations.into(),
                stations_refused: counters.refused.get(),
                breaths: counters.breaths.get(),
                busy_breaths: counters.busy_breaths.get(),
                busy_seconds: counters.busy_nanos.get() as f64 / 1e9,
                sleeps: counters.sleeps.get(),
                sightings_lost: counters.sightings_lost.get(),
                frames_sent: counters.frames_sent.get(),
                frames_heard: counters.frames_heard.get(),
                floods_sent: counters.floods_sent.get(),
                floods_heard: counters.floods_heard.get(),
                strays: counters.strays.get(),
            })
            .collect()
    }

    /// Why frames died, by port and direction.
    pub fn drops(&self) -> Vec<DropView> {
        let mut all = Vec::new();
        for port in self.ports {
            let vm = &self.config.vms[port.plan.vm];
            let wanted = &vm.ports[port.plan.position];
            for direction in [Direction::In, Direction::Out] {
                for reason in DropReason::ALL {
                    let frames = port.sum(|c| match direction {
                        Direction::In => c.drops_in.get(reason),
                        Direction::Out => c.drops_out.get(reason),
                    });
                    if frames > 0 {
                        all.push(DropView {
                            port_id: wanted.port_id.clone(),
                            device_id: vm.id.clone(),
                            network_id: wanted.network_id.clone(),
                            direction,
                            reason: reason.name().into(),
                            meaning: reason.meaning().into(),
                            frames,
                        });
                    }
                }
            }
        }
        all
    }

    /// Whether everything is accounted for, as the workers themselves have it.
    pub async fn audit(&self) -> AuditView {
        let audit = self.staff.audit().await;
        let port = |port: &Port| {
            let vm = &self.config.vms[port.plan.vm];
            let wanted = &vm.ports[port.plan.position];
            let share = audit.port(port.plan.id.index());
            AuditPortView {
                port_id: wanted.port_id.clone(),
                device_id: vm.id.clone(),
                network_id: wanted.network_id.clone(),
                rx_frames: share.rx_frames,
                forwarded: share.forwarded,
                flooded: share.flooded,
                drops_in: share.drops_in,
                off: share.off(),
            }
        };
        let worker = |(worker, reading): (u16, &Reading)| AuditWorkerView {
            worker,
            forwarded: reading.forwarded,
            copies: reading.copies,
            frames_heard: reading.frames_heard,
            tx_frames: reading.tx_frames,
            drops_out: reading.died,
            frames_sent: reading.frames_sent,
            off: reading.off(),
        };
        let mut drops = Vec::new();
        for direction in [Direction::In, Direction::Out] {
            for reason in DropReason::ALL {
                let died = |reading: &Reading| match direction {
                    Direction::In => reading.drops_in[reason as usize],
                    Direction::Out => reading.drops_out[reason as usize],
                };
                let frames: u64 = audit.second.iter().map(died).sum();
                if frames > 0 {
                    let (reason, meaning) = (reason.name().into(), reason.meaning().into());
                    drops.push(AuditDropView { direction, reason, meaning, frames });
                }
            }
        }
        let between = |(least, most)| BetweenView { least, most };
        AuditView {
            adds_up: audit.adds_up(),
            quiet: audit.is_quiet(),
            ports: self.ports.iter().map(port).collect(),
            workers: (0..).zip(&audit.second).map(worker).collect(),
            frames_between: between(audit.frames_between()),
            floods_between: between(audit.floods_between()),
            drops,
        }
    }

    /// The configuration, in the shape in which it is written.
    pub fn config(&self) -> serde_json::Value {
        // Its types have no map with other keys than texts, which is all that could fail.
        serde_json::to_value(self.config).unwrap_or_default()
    }
}
