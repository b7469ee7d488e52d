//! Reads counters: storm episodes, ports disabled for storms, spoofed MAC addresses.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::{Controller, Mitigation};
use crate::control::compile::endpoints::ConfigRef;
use crate::control::config::{Config, StormAction};
use crate::control::loops::alarm::{self, Alarm};
use crate::control::loops::status::StormStatus;
use crate::control::loops::storms::{Episode, Storm, Transition};
use crate::control::loops::table::RefusedCount;
use crate::control::loops::topology::Endpoint;
use crate::control::reconcile::Port;
use crate::switch::{DropReason, NetworkId, PortId, SpoofEvent, Station, StormClass, VmId};
use crate::time::MonoTime;

/// Maximum ended storms shown.
const MAX_ENDED: usize = 100;

/// A storm limit, by owner and class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum StormKind {
    /// Broadcast of a port.
    Broadcast,
    /// Multicast of a port.
    Multicast,
    /// Unknown unicast of a port.
    UnknownUnicast,
    /// Spanning tree of a port.
    Bpdu,
    /// All classes of a VM on a network.
    Vm,
    /// Copies for a VM on a network.
    Copies,
}

/// Limits of a port.
pub(super) const OF_PORT: [StormKind; 4] =
    [StormKind::Broadcast, StormKind::Multicast, StormKind::UnknownUnicast, StormKind::Bpdu];

/// Limits of a VM on a network.
pub(super) const OF_VM: [StormKind; 2] = [StormKind::Vm, StormKind::Copies];

impl StormKind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            StormKind::Broadcast => "broadcast",
            StormKind::Multicast => "multicast",
            StormKind::UnknownUnicast => "unknown_unicast",
            StormKind::Bpdu => "bpdu",
            StormKind::Vm => "vm",
            StormKind::Copies => "copies",
        }
    }

    const fn reason(self) -> DropReason {
        match self {
            StormKind::Broadcast => DropReason::StormBroadcast,
            StormKind::Multicast => DropReason::StormMulticast,
            StormKind::UnknownUnicast => DropReason::StormUnknownUnicast,
            StormKind::Bpdu => DropReason::StormBpdu,
            StormKind::Vm => DropReason::StormVm,
            StormKind::Copies => DropReason::StormCopies,
        }
    }

    const fn storm_class(self) -> Option<StormClass> {
        match self {
            StormKind::Broadcast => Some(StormClass::Broadcast),
            StormKind::Multicast => Some(StormClass::Multicast),
            StormKind::UnknownUnicast => Some(StormClass::UnknownUnicast),
            StormKind::Bpdu | StormKind::Vm | StormKind::Copies => None,
        }
    }
}

/// A port quarantined for a storm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DisabledPort {
    /// Start.
    pub since: MonoTime,
    /// End; `None`: until released by hand.
    pub until: Option<MonoTime>,
    /// The exceeded limit.
    pub class: String,
    /// The storm's episode, once it has ended.
    pub episode: Option<Episode>,
}

/// Storms and spoofing of one port.
#[derive(Debug, Default)]
struct PortMonitor {
    storms: [Storm; 4],
    /// All classes together.
    any: Storm,
    /// Created at the first reading.
    spoof_alarm: Option<Alarm>,
    /// The last foreign station from which it sent.
    last_spoofed: Option<Station>,
}

/// Source of a storm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum StormSource {
    /// A port or uplink.
    Port(PortId),
    /// A VM on a network.
    Vm(VmId, NetworkId),
}

/// Storms and spoofing of all ports.
#[derive(Debug, Default)]
pub(super) struct StormMonitor {
    ports: HashMap<PortId, PortMonitor>,
    vms: HashMap<(VmId, NetworkId), [Storm; 2]>,
    /// VMs with a storm, current or just ended.
    storming_vms: HashSet<VmId>,
    /// Classes that exceeded a VM's limits when the storm began.
    hits: HashMap<(VmId, NetworkId, StormKind), Vec<StormClass>>,
    pub(super) ended: VecDeque<StormStatus>,
}

impl StormMonitor {
    /// Removes the state of removed ports.
    pub(super) fn retain(&mut self, is_there: impl Fn(PortId) -> bool) {
        self.ports.retain(|&id, _| is_there(id));
    }

    /// Whether this VM has a storm.
    pub(super) fn storms(&self, owner: VmId) -> bool {
        self.storming_vms.contains(&owner)
    }

    /// Classes that exceeded a VM's limit when the storm began.
    pub(super) fn hits(&self, who: StormSource, class: StormKind) -> &[StormClass] {
        match who {
            StormSource::Vm(owner, network) => self.hits.get(&(owner, network, class)).map_or(&[], Vec::as_slice),
            StormSource::Port(_) => &[],
        }
    }

    /// Records that a port sent from the station of another VM.
    pub(super) fn record_spoof(&mut self, spoofed: SpoofEvent) {
        if let Some(gauges) = self.ports.get_mut(&spoofed.at) {
            gauges.last_spoofed = Some(spoofed.station);
        }
    }

    /// Active storms.
    pub(super) fn active_storms(&self) -> Vec<(StormSource, StormKind, Episode)> {
        let ports = self.ports.iter().flat_map(|(&id, gauges)| {
            OF_PORT.into_iter().zip(&gauges.storms).map(move |(class, storm)| (StormSource::Port(id), class, storm))
        });
        let vms = self.vms.iter().flat_map(|(&(owner, network), storms)| {
            OF_VM.into_iter().zip(storms).map(move |(class, storm)| (StormSource::Vm(owner, network), class, storm))
        });
        ports.chain(vms).filter_map(|(who, class, storm)| Some((who, class, storm.episode()?))).collect()
    }

    /// Records an ended storm.
    pub(super) fn record_ended(&mut self, view: StormStatus) {
        if self.ended.len() == MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(view);
    }
}

/// Configured action for a storm of a port, and recovery time in seconds.
pub(super) fn action(config: &Config, config_ref: ConfigRef, class: StormKind) -> (StormAction, u32) {
    let text = (StormAction::DropEvent, 0);
    match config_ref {
        ConfigRef::Port { vm, position, network, .. } => {
            let (vm, network) = (&config.vms[vm], &config.networks[network]);
            let of = |limit: Option<&crate::control::config::StormLimit>| {
                limit.map(|limit| (limit.action, limit.recovery_seconds))
            };
            match (class, class.storm_class()) {
                (_, Some(class)) => of(config.storm_of_port(&vm.ports[position]).limit(class)).unwrap_or(text),
                // Which class it was is not counted: what is done is what all of them agree on.
                (StormKind::Vm, _) => {
                    let storm = config.storm_of_vm(vm, network);
                    let all = StormClass::ALL.into_iter().filter_map(|class| of(storm.limit(class)));
                    let mildness = |(action, _): &(StormAction, u32)| match action {
                        StormAction::Drop => 0,
                        StormAction::DropEvent => 1,
                        StormAction::Disable => 2,
                    };
                    all.min_by_key(mildness).unwrap_or(text)
                }
                _ => text,
            }
        }
        ConfigRef::Uplink { index } => {
            let limit = class.storm_class().and_then(|class| {
                let storm = config.storm_of_uplink(&config.uplinks[index]);
                storm.limit(class).map(|limit| limit.action)
            });
            // An uplink is never disabled for traffic of others.
            match limit {
                Some(StormAction::Drop) => (StormAction::Drop, 0),
                _ => text,
            }
        }
    }
}

/// Transition of a storm limit.
struct LimitTransition {
    who: StormSource,
    class: StormKind,
    transition: Transition,
    /// Ports whose frames it has refused recently.
    ports: Vec<usize>,
}

impl Controller {
    /// Reads all counters of storms and spoofed sources.
    pub(super) fn check_counters(&mut self, now: MonoTime) {
        let mut transitions: Vec<LimitTransition> = Vec::new();
        let mut guarded = Vec::new();
        // By VM and network: frames refused by each of the two limits, and the ports concerned.
        let mut vms: HashMap<(VmId, NetworkId), ([u64; 2], Vec<usize>)> = HashMap::new();
        let Mitigation { monitor, refused, endpoints, .. } = &mut self.mitigation;
        monitor.storming_vms.clear();
        refused.clear();
        for (index, port) in self.ports.iter().enumerate() {
            let id = port.endpoint.id;
            let gauges = monitor.ports.entry(id).or_default();
            let ever = |class: StormKind| drops(port, class.reason());
            let mut in_all = 0;
            for (class, storm) in OF_PORT.into_iter().zip(&mut gauges.storms) {
                let refused = ever(class);
                in_all += refused;
                if let Some(transition) = storm.observe(refused, now) {
                    transitions.push(LimitTransition {
                        who: StormSource::Port(id),
                        class,
                        transition,
                        ports: vec![index],
                    });
                }
            }
            let of_vm = OF_VM.map(ever);
            gauges.any.observe(in_all + of_vm.iter().sum::<u64>(), now);
            if let ConfigRef::Port { owner, network_id, .. } = port.endpoint.config_ref {
                let (sums, ports) = vms.entry((owner, network_id)).or_default();
                sums.iter_mut().zip(of_vm).for_each(|(sum, of)| *sum += of);
                if let Some(episode) = gauges.any.episode() {
                    monitor.storming_vms.insert(owner);
                    ports.extend(gauges.any.is_hit().then_some(index));
                    let of_port = RefusedCount { more: gauges.any.more(), total: episode.dropped };
                    refused.extend(endpoints.get(&id).map(|end| (Endpoint::clone(end), of_port)));
                }
                let spoofed = drops(port, DropReason::ForeignSource);
                let alarm = gauges.spoof_alarm.get_or_insert_with(|| Alarm::starting_at(spoofed));
                if alarm.observe(spoofed, now) == Some(alarm::Transition::Raised) {
                    guarded.push((index, gauges.last_spoofed.take()));
                }
            }
        }
        monitor.vms.retain(|who, _| vms.contains_key(who));
        monitor.hits.retain(|&(owner, network, _), _| vms.contains_key(&(owner, network)));
        for (who, (sums, ports)) in vms {
            let storms = monitor.vms.entry(who).or_default();
            for ((class, storm), sum) in OF_VM.into_iter().zip(storms).zip(sums) {
                if let Some(transition) = storm.observe(sum, now) {
                    transitions.push(LimitTransition {
                        who: StormSource::Vm(who.0, who.1),
                        class,
                        transition,
                        ports: ports.clone(),
                    });
                }
            }
        }
        for LimitTransition { who, class, transition, ports } in transitions {
            match transition {
                Transition::Started => self.begin_storm(who, class, &ports, now),
                Transition::Stopped(episode) => self.end_storm(who, class, episode, now),
            }
        }
        for (index, station) in guarded {
            self.emit_spoofed_mac(index, station);
        }
    }

    fn begin_storm(&mut self, who: StormSource, class: StormKind, ports: &[usize], now: MonoTime) {
        self.mitigation.counts.storms += 1;
        self.take_hits(who, class);
        let Some(&index) = ports.first().or(self.of(who).as_ref()) else { return };
        let (action, recovery) = action(&self.config, self.ports[index].endpoint.config_ref, class);
        if action == StormAction::Disable {
            for &index in ports {
                let Some(end) = self.mitigation.endpoints.get(&self.ports[index].endpoint.id) else { continue };
                let until = (recovery > 0).then(|| now + Duration::from_secs(u64::from(recovery)));
                let disabled = DisabledPort { since: now, until, class: class.name().into(), episode: None };
                self.mitigation.disabled.entry(Endpoint::clone(end)).or_insert(disabled);
                self.mitigation.persistence.is_due = true;
            }
        }
        if action != StormAction::Drop {
            self.emit_storm_start(who, class, action, recovery);
        }
    }

    /// Records the classes that have exceeded a VM's limit.
    fn take_hits(&mut self, who: StormSource, class: StormKind) {
        let (StormSource::Vm(owner, network), Some(index)) = (who, self.of(who)) else { return };
        let names = self.names(index);
        let state = self.policers.of_vm_on(names.vm.unwrap_or_default(), names.network.unwrap_or_default());
        let hit = match (state, class) {
            (Some(state), StormKind::Vm) => state.take_hit(),
            (Some(state), StormKind::Copies) => state.take_hit_copies(),
            _ => return,
        };
        self.mitigation.monitor.hits.insert((owner, network, class), hit);
    }

    fn end_storm(&mut self, who: StormSource, class: StormKind, episode: Episode, now: MonoTime) {
        let view = self.storm_view(who, class, &episode, Some(now));
        // Forgets the classes of the last storm.
        self.take_hits(who, class);
        let Some(view) = view else { return };
        let disabled = match who {
            StormSource::Port(id) => {
                self.mitigation.endpoints.get(&id).and_then(|end| self.mitigation.disabled.get_mut(end))
            }
            StormSource::Vm(..) => None,
        };
        // It ended because the port is disabled: reported when the port is released.
        if let Some(disabled) = disabled
            && disabled.class == class.name()
        {
            disabled.episode = Some(episode);
        } else if view.action != "drop" {
            self.emit_storm_stop(&view);
        }
        self.mitigation.monitor.record_ended(view);
    }

    /// Releases ports whose storm quarantine has expired or whose limit has been removed.
    pub(super) fn release_disabled(&mut self, now: MonoTime) {
        if !self.mitigation.disabled.is_empty() {
            let lifted: HashSet<Endpoint> = self
                .mitigation
                .disabled
                .iter()
                .filter(|of| !self.may_disable(of.0, of.1))
                .map(|of| of.0.clone())
                .collect();
            for (end, disabled) in self.mitigation.take_disabled(|end, _| lifted.contains(end)) {
                self.mitigation.persistence.is_due = true;
                self.emit_released(&end, &disabled, "as its limit has changed");
            }
        }
        let opened = self.mitigation.take_disabled(|_, disabled| disabled.until.is_some_and(|until| now >= until));
        for (end, disabled) in opened {
            self.mitigation.persistence.is_due = true;
            self.emit_released(&end, &disabled, "as its recovery time is over");
        }
    }

    /// Whether the limit for which a port is disabled still has that action.
    fn may_disable(&self, end: &Endpoint, disabled: &DisabledPort) -> bool {
        let Some(id) = self.mitigation.id_of(end) else { return true };
        let Some(port) = self.ports.iter().find(|port| port.is(id)) else { return true };
        let class = OF_PORT.into_iter().chain(OF_VM).find(|class| class.name() == disabled.class);
        let ConfigRef::Port { vm, position, network, .. } = port.endpoint.config_ref else { return true };
        let (vm, network) = (&self.config.vms[vm], &self.config.networks[network]);
        let disables = |limit: Option<&crate::control::config::StormLimit>| {
            limit.is_some_and(|limit| limit.action == StormAction::Disable)
        };
        match class.map(|class| (class, class.storm_class())) {
            Some((_, Some(class))) => disables(self.config.storm_of_port(&vm.ports[position]).limit(class)),
            Some((StormKind::Vm, None)) => {
                let own = &vm.ports[position].storm;
                let storm = self.config.storm_of_vm(vm, network);
                StormClass::ALL.into_iter().any(|class| !own.disables(class) && disables(storm.limit(class)))
            }
            _ => true,
        }
    }

    /// A port of this storm.
    pub(super) fn of(&self, who: StormSource) -> Option<usize> {
        self.ports.iter().position(|port| match (who, port.endpoint.config_ref) {
            (StormSource::Port(id), _) => port.endpoint.id == id,
            (StormSource::Vm(of, on), ConfigRef::Port { owner, network_id, .. }) => (owner, network_id) == (of, on),
            (StormSource::Vm(..), ConfigRef::Uplink { .. }) => false,
        })
    }
}

impl Mitigation {
    /// Removes and returns the disabled ports that match `is_meant`.
    pub(super) fn take_disabled(
        &mut self,
        is_meant: impl Fn(&Endpoint, &DisabledPort) -> bool,
    ) -> Vec<(Endpoint, DisabledPort)> {
        let expected =
            self.disabled.iter().filter(|(end, disabled)| is_meant(end, disabled)).map(|(end, _)| end.clone());
        let expected: Vec<Endpoint> = expected.collect();
        expected.into_iter().filter_map(|end| self.disabled.remove_entry(&end)).collect()
    }

    /// Whether the port's VM has a storm or is in a loop.
    pub(super) fn is_suspect(&self, id: PortId) -> bool {
        let Some(end) = self.endpoints.get(&id) else { return false };
        self.refused.contains_key(end) || end.vm.as_ref().is_some_and(|vm| self.loops.is_suspect(vm, &end.network))
    }
}

fn drops(port: &Port, reason: DropReason) -> u64 {
    port.sum(|counters| counters.drops_in.get(reason))
}
