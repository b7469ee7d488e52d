//! Detection and mitigation of loops and storms.
//!
//! At each tick, four times a second, reads counters, evaluates reports, applies measures and forwarding rules, and sends
//! probes. [`loops`](crate::control::loops) decides; this module acts. A probe that shows a new connection is handled at
//! once.
//!
//! ```text
//!   probe      loop probes sent and returned
//!   monitor    counters: storms, ports disabled for them, spoofed MAC addresses
//!   notify     events, also of refused senders in ARP and IP (`spoofed_ip`)
//!   persist    state stored over a restart
//!   status     status of loops and storms
//!   siblings   ports that use a sibling's address, and how to allow it
//! ```

mod monitor;
mod notify;
mod persist;
mod probe;
mod siblings;
mod status;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::debug;

use self::monitor::{DisabledPort, StormMonitor};
use self::persist::Persistence;
use self::probe::{ProbedPort, SentProbes, Suspects};
use super::Controller;
use super::startup::ProbeIdentity;
use crate::control::compile::endpoints::ConfigRef;
use crate::control::compile::forwarding::{MitigationState, uplink_vlans};
use crate::control::desired::change::{ChangeError, ChangeResult};
use crate::control::loops::dampening::{DampenedMac, Dampening};
use crate::control::loops::describe::what;
use crate::control::loops::spoof_reports::SpoofReports;
use crate::control::loops::status::LoopCounts;
use crate::control::loops::table::{Loop, LoopEvent, LoopTable, RefusedCount};
use crate::control::loops::topology::{Endpoint, Topology};
use crate::switch::{FlapEvent, PortId, Station};
use crate::time::{self, MonoTime};
use crate::worker::{EventReceiver, Flush, WorkerEvent};

/// Maximum flaps awaiting a decision; workers report further ones again.
const MAX_FLAPS: usize = 4096;

/// State of detection and mitigation.
#[derive(Debug)]
pub struct Mitigation {
    events: EventReceiver,
    topology: Topology,
    /// Ports and uplink VLANs, by id in the forwarding configuration.
    endpoints: HashMap<PortId, Arc<Endpoint>>,
    /// The same by endpoint, made when it is first needed.
    ids: OnceLock<HashMap<Arc<Endpoint>, PortId>>,
    probed: Vec<ProbedPort>,
    /// Networks with a port that may use further addresses.
    with_pairs: HashSet<String>,
    loops: LoopTable,
    dampening: Dampening,
    flaps: Vec<FlapEvent>,
    /// Ports that may be in a loop over other hosts.
    suspects: Suspects,
    /// Networks with an uplink.
    with_uplink: HashSet<String>,
    monitor: StormMonitor,
    spoof_reports: SpoofReports,
    /// Refused uses of siblings' addresses.
    sibling_sources: SpoofReports,
    /// Frames refused by storm limits at the last tick.
    refused: HashMap<Endpoint, RefusedCount>,
    disabled: BTreeMap<Endpoint, DisabledPort>,
    /// Measures in the current rules.
    active: MitigationState,
    sent: SentProbes,
    ticks: u64,
    persistence: Persistence,
    counts: LoopCounts,
}

impl Mitigation {
    /// Initial state. Workers send `events`.
    pub fn new(probes: ProbeIdentity, events: EventReceiver) -> Mitigation {
        Mitigation {
            events,
            topology: Topology::default(),
            endpoints: HashMap::new(),
            ids: OnceLock::new(),
            probed: Vec::new(),
            with_pairs: HashSet::new(),
            loops: LoopTable::default(),
            dampening: Dampening::default(),
            flaps: Vec::new(),
            suspects: Suspects::default(),
            with_uplink: HashSet::new(),
            monitor: StormMonitor::default(),
            spoof_reports: SpoofReports::default(),
            sibling_sources: SpoofReports::default(),
            refused: HashMap::new(),
            disabled: BTreeMap::new(),
            active: MitigationState::default(),
            sent: SentProbes::new(probes),
            ticks: 0,
            persistence: Persistence::default(),
            counts: LoopCounts::default(),
        }
    }

    /// Active measures, as the switch applies them.
    pub(super) fn active_measures(&self) -> &MitigationState {
        &self.active
    }

    /// Next event of a worker.
    pub(super) async fn next(&mut self) -> Option<WorkerEvent> {
        self.events.recv().await
    }

    /// The loop for which a port is quarantined, if any.
    fn quarantining_loop(&self, end: &Endpoint) -> Option<&Loop> {
        self.loops.loops().find(|of| of.quarantined(&self.topology).contains(end))
    }

    /// Id of an endpoint in the forwarding configuration.
    fn id_of(&self, end: &Endpoint) -> Option<PortId> {
        let ids = || self.endpoints.iter().map(|(id, end)| (end.clone(), *id)).collect();
        self.ids.get_or_init(ids).get(end).copied()
    }

    /// Measures required now.
    fn wanted(&self) -> MitigationState {
        let mitigation = self.loops.measures(&self.topology);
        let mut quarantined: HashSet<PortId> =
            mitigation.quarantined.keys().chain(self.disabled.keys()).filter_map(|end| self.id_of(end)).collect();
        quarantined.retain(|id| self.endpoints.get(id).is_some_and(|end| end.vm.is_some()));
        let split_horizon = self.endpoints.iter().filter(|(_, end)| {
            let split_horizon = |vm: &String| mitigation.split_horizon.contains(&(vm.clone(), end.network.clone()));
            !mitigation.split_horizon.is_empty() && end.vm.as_ref().is_some_and(split_horizon)
        });
        let suspects = self.endpoints.iter().filter(|(_, end)| self.with_pairs.contains(&end.network));
        let suspects = suspects.map(|(&id, _)| id).filter(|&id| self.is_suspect(id));
        MitigationState {
            quarantined,
            suspects: suspects.collect(),
            split_horizon: split_horizon.map(|(&id, _)| id).collect(),
            boot_millis: self.sent.boot_millis(self.active.boot_millis),
            dampened: self.dampening.iter().map(|(station, dampened)| (station, dampened.at)).collect(),
        }
    }

    /// Ids of all VM ports in a loop, on its networks.
    fn ports_of(&self, of: &Loop) -> Vec<PortId> {
        let ends = of.ends();
        let is_same = |of: &Endpoint, end: &Endpoint| of.host.is_none() && of.vm == end.vm && of.network == end.network;
        let takes_part = |end: &Endpoint| end.vm.is_some() && ends.iter().any(|of| is_same(of, end));
        self.endpoints.iter().filter(|(_, end)| takes_part(end)).map(|(&id, _)| id).collect()
    }
}

impl Controller {
    /// Updates the topology to the configuration. Rules compiled later have measures for the new ports.
    pub(super) fn update_topology(&mut self) {
        let before = std::mem::take(&mut self.mitigation.endpoints);
        let mut ends: Vec<(PortId, Arc<Endpoint>, usize)> = Vec::with_capacity(before.len() + 1);
        for port in &self.ports {
            let ConfigRef::Port { vm, position, .. } = port.endpoint.config_ref else { continue };
            // A port that moves to another VM or network has another id.
            let end = before.get(&port.endpoint.id).cloned().unwrap_or_else(|| {
                let vm = &self.config.vms[vm];
                let (port, network) = (port.endpoint.name.clone(), vm.ports[position].network_id.clone());
                Endpoint { vm: Some(vm.id.clone()), network, port, host: None }.into()
            });
            ends.push((port.endpoint.id, end, position));
        }
        for outside in uplink_vlans(&self.config, &self.ids) {
            let network = self.config.networks[outside.network].id.clone();
            // A group is represented by its preferred uplink, active or not.
            let Some(uplink) = outside.group.members.first().and_then(|&member| self.config.uplinks.get(member)) else {
                continue;
            };
            let port = uplink.id.clone();
            ends.push((outside.id, Endpoint { vm: None, network, port, host: None }.into(), 0));
        }
        let networks = self.config.networks.iter();
        let networks =
            networks.map(|network| (network.id.clone(), Duration::from_secs(u64::from(network.probe_seconds))));
        let mitigation = &mut self.mitigation;
        let topology = Topology::new(networks, ends.iter().map(|(_, end, position)| (end.clone(), *position)));
        mitigation.topology = topology.on_host(mitigation.sent.host());
        let outside = ends.iter().filter(|(_, end, _)| end.vm.is_none());
        mitigation.with_uplink = outside.map(|(_, end, _)| end.network.clone()).collect();
        mitigation.ids = OnceLock::new();
        mitigation.endpoints = ends.into_iter().map(|(id, end, _)| (id, end)).collect();
        mitigation.probed = probe::probed_ports(&self.config, &self.ports, &mitigation.endpoints, &mitigation.sent);
        let with_pairs = self.config.ports().filter(|(_, port)| !port.allowed_address_pairs.is_empty());
        mitigation.with_pairs = with_pairs.map(|(_, port)| port.network_id.clone()).collect();
        mitigation.disabled.retain(|end, _| mitigation.topology.has(end));
        let ends = &mitigation.endpoints;
        mitigation.suspects.retain(|id| ends.contains_key(&id));
        mitigation.monitor.retain(|id| ends.contains_key(&id));
        mitigation.spoof_reports.retain(|id| ends.contains_key(&id));
        mitigation.sibling_sources.retain(|id| ends.contains_key(&id));
        mitigation.dampening.expire(|id| ends.contains_key(&id), time::now());
        mitigation.restore();
        mitigation.active = mitigation.wanted();
    }

    /// One tick.
    pub(super) async fn mitigate(&mut self) {
        let now = time::now();
        self.mitigation.ticks += 1;
        self.check_counters(now);
        self.release_disabled(now);
        let dampened = self.dampen_flapping(now);
        let Mitigation { loops, topology, refused, .. } = &mut self.mitigation;
        let events = loops.update(topology, refused, now);
        self.enforce(events, dampened).await;
        self.send_probes(now).await;
        self.persist_loops();
    }

    /// Handles a worker's event and those queued behind it.
    pub(super) async fn handle_event(&mut self, event: WorkerEvent) {
        let now = time::now();
        let (mut next, mut is_new) = (Some(event), false);
        let mut pins = Vec::new();
        while let Some(event) = next {
            match event {
                WorkerEvent::ReturnedProbe(returned_probe) => {
                    is_new |= self.mitigation.receive_probe(returned_probe, now)
                }
                WorkerEvent::HostProbe => is_new |= self.mitigation.receive_host_probes(now),
                WorkerEvent::Flap(moving) => {
                    self.mitigation.suspect_ports_of(&moving, now);
                    if self.mitigation.flaps.len() < MAX_FLAPS {
                        self.mitigation.flaps.push(moving);
                    }
                }
                WorkerEvent::AllowedFlap(moving) => self.mitigation.suspect_ports_of(&moving, now),
                WorkerEvent::Spoof(spoof) => self.mitigation.monitor.record_spoof(spoof),
                WorkerEvent::SpoofedIp(spoofed) => self.report_spoofed_ip(spoofed, now),
                WorkerEvent::Pin(report, at) => pins.push((report, at)),
                WorkerEvent::SiblingSource(source) => self.report_sibling_source(source, now),
            }
            next = self.mitigation.events.try_recv().ok();
        }
        if !pins.is_empty() {
            self.apply_pin_reports(pins).await;
        }
        if is_new {
            let Mitigation { loops, topology, refused, .. } = &mut self.mitigation;
            // The refused frames are counted.
            refused.values_mut().for_each(|refused| refused.more = 0);
            let events = loops.update(topology, refused, now);
            self.enforce(events, Vec::new()).await;
        }
    }

    /// Dampens pinned stations. Each comes with its port, and the port to which it must not move.
    pub(super) async fn dampen_at(&mut self, stations: Vec<(Station, PortId, PortId)>, now: MonoTime) {
        let mut dampened = Vec::new();
        for (station, at, from) in stations {
            let Some(end) = self.mitigation.endpoints.get(&at) else { continue };
            let network = self.config.networks.iter().find(|network| network.id == end.network);
            let time = Duration::from_secs(u64::from(network.map_or(60, |network| network.dampening_seconds)));
            if let Some(dampening_entry) =
                self.mitigation.dampening.dampen(station, [at, from, at], |_| false, time, now)
            {
                self.mitigation.counts.dampenings += 1;
                dampened.push((station, dampening_entry));
            }
        }
        self.enforce(Vec::new(), dampened).await;
    }

    /// Decides which flapping stations to dampen, and where.
    fn dampen_flapping(&mut self, now: MonoTime) -> Vec<(Station, DampenedMac)> {
        let mitigation = &mut self.mitigation;
        let ends = &mitigation.endpoints;
        mitigation.dampening.expire(|id| ends.contains_key(&id), now);
        let mut dampened = Vec::new();
        for FlapEvent { station, from, to, origin } in std::mem::take(&mut mitigation.flaps) {
            let (Some(was), Some(_)) = (mitigation.endpoints.get(&from), mitigation.endpoints.get(&to)) else {
                continue;
            };
            let network = self.config.networks.iter().find(|network| network.id == was.network);
            let seconds = network.map_or(60, |network| network.dampening_seconds);
            // the origin may have been removed since
            let home = if mitigation.endpoints.contains_key(&origin) { origin } else { from };
            let ports = [from, to, home];
            let suspects = ports.map(|id| mitigation.is_suspect(id));
            let suspected = |id| ports.iter().zip(suspects).any(|(&port, is_suspect)| port == id && is_suspect);
            let time = Duration::from_secs(u64::from(seconds));
            if let Some(dampening_entry) = mitigation.dampening.dampen(station, ports, suspected, time, now) {
                mitigation.counts.dampenings += 1;
                dampened.push((station, dampening_entry));
            }
        }
        dampened
    }

    /// Applies the required measures, emits events, and flushes FDB entries learned through a loop.
    async fn enforce(&mut self, events: Vec<LoopEvent>, dampened: Vec<(Station, DampenedMac)>) {
        let mut after = HashSet::new();
        for events in &events {
            let of = match events {
                LoopEvent::Started(key) | LoopEvent::Escalated(key, _) | LoopEvent::Cleared(key) => {
                    self.mitigation.loops.find(key)
                }
                LoopEvent::Stopped(over) => Some(&over.loop_state),
                LoopEvent::Extended(..) | LoopEvent::NetworksBridged(_) => None,
            };
            after.extend(of.into_iter().flat_map(|of| self.mitigation.ports_of(of)));
        }
        // Dampened there before the VM was suspect. A station that still flaps is dampened again, elsewhere.
        self.mitigation.dampening.release_at(|id| after.contains(&id));
        let wanted = self.mitigation.wanted();
        after.extend(wanted.quarantined.difference(&self.mitigation.active.quarantined));
        if wanted != self.mitigation.active {
            self.mitigation.active = wanted;
            self.push_config().await;
        }
        for events in events {
            self.mitigation.persistence.is_due |=
                !matches!(events, LoopEvent::NetworksBridged(_) | LoopEvent::Cleared(_));
            self.emit_loop_event(events);
        }
        for (station, dampening_entry) in dampened {
            self.emit_dampened(station, &dampening_entry);
        }
        self.flush_in_background(after);
    }

    /// Flushes FDB entries of these ports in a task, because a large FDB takes long.
    fn flush_in_background(&self, ports: HashSet<PortId>) {
        if ports.is_empty() {
            return;
        }
        let workers = self.workers.clone();
        tokio::spawn(async move {
            let mut forgotten = 0;
            for port in ports {
                forgotten += workers.flush(Flush { port_index: Some(port.index()), ..Flush::default() }).await;
            }
            debug!(forgotten, "FDB entries learned through a loop or storm have been flushed");
        });
    }

    /// Releases a port: ends measures against its loops, its storm quarantine, and dampening of stations at it and from
    /// it.
    pub(super) async fn release(&mut self, port: &str) -> Result<ChangeResult, ChangeError> {
        let Some(id) = self.ids.port(port) else {
            if self.ids.trunk(port).is_none() {
                return Err(ChangeError::unknown_port(&self.config, port));
            }
            return Ok(self.release_at(port, |_| false).await);
        };
        // Dampening applies to the VM: its station has moved among its ports too.
        let vm = self.mitigation.endpoints.get(&id).and_then(|end| end.vm.clone());
        let of_vm = self.mitigation.endpoints.iter().filter(|(_, end)| end.vm == vm).map(|(&id, _)| id);
        let of_vm: HashSet<PortId> = of_vm.collect();
        Ok(self.release_at(port, |id| of_vm.contains(&id)).await)
    }

    async fn release_at(&mut self, port: &str, is_meant: impl Fn(PortId) -> bool) -> ChangeResult {
        let now = time::now();
        let mut changes = Vec::new();
        let opened = self.mitigation.take_disabled(|end, _| end.port == port && end.vm.is_some());
        for (end, disabled) in opened {
            changes.push(format!("port {port:?} is no longer quarantined because of a {} storm", disabled.class));
            self.emit_released(&end, &disabled, "as requested");
        }
        let events = self.mitigation.loops.release(port, now);
        for events in &events {
            if let LoopEvent::Stopped(over) = events {
                let what = what(&over.loop_state, &self.mitigation.topology);
                changes.push(format!("mitigation has ended: {what}"));
            }
        }
        let let_go = self.mitigation.dampening.release(is_meant);
        if let_go > 0 {
            changes.push(format!("{let_go} stations are no longer dampened"));
        }
        let warnings = match changes.is_empty() {
            true => vec![format!("nothing to release at port {port:?}")],
            false => Vec::new(),
        };
        self.mitigation.persistence.is_due |= !changes.is_empty();
        self.enforce(events, Vec::new()).await;
        self.persist_loops();
        ChangeResult { changes, warnings, generation: self.state.generation(), ..ChangeResult::default() }
    }
}
