//! Counters: who is held to storm limits, who is disabled for that, and who sends the addresses of others.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::{Containment, Controller};
use crate::control::config::{Config, StormAction};
use crate::control::controller::Port;
use crate::control::loops::book::Refused;
use crate::control::loops::guard::Guard;
use crate::control::loops::layout::End;
use crate::control::loops::storms::{Spell, Storm, Turn};
use crate::control::loops::view::StormView;
use crate::control::seats::Stand;
use crate::switch::{DropReason, Foreign, NetworkId, Owner, PortId, Station, StormClass};
use crate::time::Moment;

/// Storms that are over and still shown, at most.
const MOST_OVER: usize = 100;

/// Whose limit refuses, and what it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Class {
    /// A port's, of broadcast.
    Broadcast,
    /// A port's, of multicast.
    Multicast,
    /// A port's, of unknown unicast.
    UnknownUnicast,
    /// A port's, of spanning tree.
    Bpdu,
    /// A VM's on a network, of whichever class.
    Vm,
    /// A VM's on a network, of copies.
    Copies,
}

/// The limits of a port.
pub(super) const OF_PORT: [Class; 4] = [Class::Broadcast, Class::Multicast, Class::UnknownUnicast, Class::Bpdu];

/// The limits of a VM on a network.
pub(super) const OF_VM: [Class; 2] = [Class::Vm, Class::Copies];

impl Class {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Class::Broadcast => "broadcast",
            Class::Multicast => "multicast",
            Class::UnknownUnicast => "unknown_unicast",
            Class::Bpdu => "bpdu",
            Class::Vm => "vm",
            Class::Copies => "copies",
        }
    }

    const fn reason(self) -> DropReason {
        match self {
            Class::Broadcast => DropReason::StormBroadcast,
            Class::Multicast => DropReason::StormMulticast,
            Class::UnknownUnicast => DropReason::StormUnknownUnicast,
            Class::Bpdu => DropReason::StormBpdu,
            Class::Vm => DropReason::StormVm,
            Class::Copies => DropReason::StormCopies,
        }
    }

    const fn storm_class(self) -> Option<StormClass> {
        match self {
            Class::Broadcast => Some(StormClass::Broadcast),
            Class::Multicast => Some(StormClass::Multicast),
            Class::UnknownUnicast => Some(StormClass::UnknownUnicast),
            Class::Bpdu | Class::Vm | Class::Copies => None,
        }
    }
}

/// A port that is held for a storm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disabled {
    /// Since when.
    pub since: Moment,
    /// Until when; `None`: until it is released by hand.
    pub until: Option<Moment>,
    /// The limit that was hit.
    pub class: String,
    /// How the storm was, once it is over.
    pub spell: Option<Spell>,
}

/// What is known of one port.
#[derive(Debug, Default)]
struct Gauges {
    storms: [Storm; 4],
    /// Of whichever class.
    any: Storm,
    guard: Guard,
    /// What it was last seen to send of others.
    foreign: Option<Station>,
}

/// Whose storm it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// A port's or an uplink's.
    Port(PortId),
    /// That of a VM on a network.
    Vm(Owner, NetworkId),
}

/// All that is watched.
#[derive(Debug, Default)]
pub(super) struct Watch {
    ports: HashMap<PortId, Gauges>,
    vms: HashMap<(Owner, NetworkId), [Storm; 2]>,
    /// The VMs that storm, or did a moment ago.
    storming: HashSet<Owner>,
    /// The classes that hit the common limit, and the limit on copies, when the storm began.
    hits: HashMap<(Owner, NetworkId, Class), Vec<StormClass>>,
    pub(super) over: VecDeque<StormView>,
}

impl Watch {
    /// Forgets the ports that are no more.
    pub(super) fn keep(&mut self, is_there: impl Fn(PortId) -> bool) {
        self.ports.retain(|&id, _| is_there(id));
    }

    /// Whether storm limits refuse frames of this VM.
    pub(super) fn storms(&self, owner: Owner) -> bool {
        self.storming.contains(&owner)
    }

    /// The classes that hit a limit of a VM when the storm began.
    pub(super) fn hits(&self, who: Who, class: Class) -> &[StormClass] {
        match who {
            Who::Vm(owner, network) => self.hits.get(&(owner, network, class)).map_or(&[], Vec::as_slice),
            Who::Port(_) => &[],
        }
    }

    /// A port has sent a frame that names the station of another VM.
    pub(super) fn note_foreign(&mut self, foreign: Foreign) {
        if let Some(gauges) = self.ports.get_mut(&foreign.at) {
            gauges.foreign = Some(foreign.station);
        }
    }

    /// The storms that there are.
    pub(super) fn storms_now(&self) -> Vec<(Who, Class, Spell)> {
        let ports = self.ports.iter().flat_map(|(&id, gauges)| {
            OF_PORT.into_iter().zip(&gauges.storms).map(move |(class, storm)| (Who::Port(id), class, storm))
        });
        let vms = self.vms.iter().flat_map(|(&(owner, network), storms)| {
            OF_VM.into_iter().zip(storms).map(move |(class, storm)| (Who::Vm(owner, network), class, storm))
        });
        ports.chain(vms).filter_map(|(who, class, storm)| Some((who, class, storm.spell()?))).collect()
    }

    /// Remembers a storm that is over.
    pub(super) fn remember(&mut self, view: StormView) {
        if self.over.len() == MOST_OVER {
            self.over.pop_front();
        }
        self.over.push_back(view);
    }
}

/// What is done about a storm of a port.
pub(super) fn action(config: &Config, stand: Stand, class: Class) -> (StormAction, u32) {
    let told = (StormAction::DropEvent, 0);
    match stand {
        Stand::Port { vm, position, network, .. } => {
            let (vm, network) = (&config.vms[vm], &config.networks[network]);
            let of = |limit: Option<&crate::control::config::StormLimit>| {
                limit.map(|limit| (limit.action, limit.recovery_seconds))
            };
            match (class, class.storm_class()) {
                (_, Some(class)) => of(config.storm_of_port(&vm.ports[position]).limit(class)).unwrap_or(told),
                // Which class it was is not counted: what is done is what all of them agree on.
                (Class::Vm, _) => {
                    let storm = config.storm_of_vm(vm, network);
                    let all = StormClass::ALL.into_iter().filter_map(|class| of(storm.limit(class)));
                    let mildness = |(action, _): &(StormAction, u32)| match action {
                        StormAction::Drop => 0,
                        StormAction::DropEvent => 1,
                        StormAction::Disable => 2,
                    };
                    all.min_by_key(mildness).unwrap_or(told)
                }
                _ => told,
            }
        }
        Stand::Uplink { index } => {
            let limit = class.storm_class().and_then(|class| {
                let storm = config.storm_of_uplink(&config.uplinks[index]);
                storm.limit(class).map(|limit| limit.action)
            });
            // An uplink is not closed for what others send by it.
            match limit {
                Some(StormAction::Drop) => (StormAction::Drop, 0),
                _ => told,
            }
        }
    }
}

/// What has happened to a limit.
struct Turned {
    who: Who,
    class: Class,
    turn: Turn,
    /// The ports whose frames it refused lately.
    ports: Vec<usize>,
}

impl Controller {
    /// Looks at all counters that tell of storms and of foreign sources.
    pub(super) fn watch_counters(&mut self, now: Moment) {
        let mut turned: Vec<Turned> = Vec::new();
        let mut guarded = Vec::new();
        // By VM and network: what was refused of each of the two limits, and by which ports.
        let mut vms: HashMap<(Owner, NetworkId), ([u64; 2], Vec<usize>)> = HashMap::new();
        let Containment { watch, refused, ends, .. } = &mut self.containment;
        watch.storming.clear();
        refused.clear();
        for (index, port) in self.ports.iter().enumerate() {
            let id = port.seat.id;
            let gauges = watch.ports.entry(id).or_default();
            let ever = |class: Class| drops(port, class.reason());
            let mut in_all = 0;
            for (class, storm) in OF_PORT.into_iter().zip(&mut gauges.storms) {
                let refused = ever(class);
                in_all += refused;
                if let Some(turn) = storm.look(refused, now) {
                    turned.push(Turned { who: Who::Port(id), class, turn, ports: vec![index] });
                }
            }
            let of_vm = OF_VM.map(ever);
            gauges.any.look(in_all + of_vm.iter().sum::<u64>(), now);
            if let Stand::Port { owner, network_id, .. } = port.seat.stand {
                let (sums, ports) = vms.entry((owner, network_id)).or_default();
                sums.iter_mut().zip(of_vm).for_each(|(sum, of)| *sum += of);
                if let Some(spell) = gauges.any.spell() {
                    watch.storming.insert(owner);
                    ports.extend(gauges.any.is_hit().then_some(index));
                    let of_port = Refused { more: gauges.any.more(), in_all: spell.suppressed };
                    refused.extend(ends.get(&id).map(|end| (end.clone(), of_port)));
                }
                let foreign = drops(port, DropReason::ForeignSource);
                if gauges.guard.look(foreign, now) {
                    guarded.push((index, gauges.foreign.take()));
                }
            }
        }
        watch.vms.retain(|who, _| vms.contains_key(who));
        watch.hits.retain(|&(owner, network, _), _| vms.contains_key(&(owner, network)));
        for (who, (sums, ports)) in vms {
            let storms = watch.vms.entry(who).or_default();
            for ((class, storm), sum) in OF_VM.into_iter().zip(storms).zip(sums) {
                if let Some(turn) = storm.look(sum, now) {
                    turned.push(Turned { who: Who::Vm(who.0, who.1), class, turn, ports: ports.clone() });
                }
            }
        }
        for Turned { who, class, turn, ports } in turned {
            match turn {
                Turn::Started => self.begin_storm(who, class, &ports, now),
                Turn::Stopped(spell) => self.end_storm(who, class, spell, now),
            }
        }
        for (index, station) in guarded {
            self.tell_guard(index, station);
        }
    }

    fn begin_storm(&mut self, who: Who, class: Class, ports: &[usize], now: Moment) {
        self.containment.counts.storms += 1;
        self.take_hits(who, class);
        let Some(&index) = ports.first().or(self.of(who).as_ref()) else { return };
        let (action, recovery) = action(&self.config, self.ports[index].seat.stand, class);
        if action == StormAction::Disable {
            for &index in ports {
                let Some(end) = self.containment.ends.get(&self.ports[index].seat.id) else { continue };
                let until = (recovery > 0).then(|| now + Duration::from_secs(u64::from(recovery)));
                let disabled = Disabled { since: now, until, class: class.name().into(), spell: None };
                self.containment.disabled.entry(end.clone()).or_insert(disabled);
                self.containment.keeping.is_due = true;
            }
        }
        if action != StormAction::Drop {
            self.tell_storm(who, class, action, recovery);
        }
    }

    /// Takes the classes that have hit a limit of a VM.
    fn take_hits(&mut self, who: Who, class: Class) {
        let (Who::Vm(owner, network), Some(index)) = (who, self.of(who)) else { return };
        let names = self.names(index);
        let meter = self.meters.of_vm(names.vm.unwrap_or_default(), names.network.unwrap_or_default());
        let hit = match (meter, class) {
            (Some(meter), Class::Vm) => meter.take_hit(),
            (Some(meter), Class::Copies) => meter.take_hit_copies(),
            _ => return,
        };
        self.containment.watch.hits.insert((owner, network, class), hit);
    }

    fn end_storm(&mut self, who: Who, class: Class, spell: Spell, now: Moment) {
        let view = self.storm_view(who, class, &spell, Some(now));
        // What it was of is of the past.
        self.take_hits(who, class);
        let Some(view) = view else { return };
        let disabled = match who {
            Who::Port(id) => self.containment.ends.get(&id).and_then(|end| self.containment.disabled.get_mut(end)),
            Who::Vm(..) => None,
        };
        // It is over because the port is closed: that is told when it is open again.
        if let Some(disabled) = disabled
            && disabled.class == class.name()
        {
            disabled.spell = Some(spell);
        } else if view.action != "drop" {
            self.tell_storm_over(&view);
        }
        self.containment.watch.remember(view);
    }

    /// Opens the ports whose time in quarantine for a storm is over, and those whose limit has been lifted.
    pub(super) fn let_go_disabled(&mut self, now: Moment) {
        if !self.containment.disabled.is_empty() {
            let lifted: HashSet<End> = self
                .containment
                .disabled
                .iter()
                .filter(|of| !self.may_disable(of.0, of.1))
                .map(|of| of.0.clone())
                .collect();
            for (end, disabled) in self.containment.take_disabled(|end, _| lifted.contains(end)) {
                self.containment.keeping.is_due = true;
                self.tell_reopened(&end, &disabled, "its limit no longer holds it");
            }
        }
        let opened = self.containment.take_disabled(|_, disabled| disabled.until.is_some_and(|until| now >= until));
        for (end, disabled) in opened {
            self.containment.keeping.is_due = true;
            self.tell_reopened(&end, &disabled, "its time is over");
        }
    }

    /// Whether the limit for which a port is held still says so.
    fn may_disable(&self, end: &End, disabled: &Disabled) -> bool {
        let Some(&id) = self.containment.ids.get(end) else { return true };
        let Some(port) = self.ports.iter().find(|port| port.is(id)) else { return true };
        let class = OF_PORT.into_iter().chain(OF_VM).find(|class| class.name() == disabled.class);
        let Stand::Port { vm, position, network, .. } = port.seat.stand else { return true };
        let (vm, network) = (&self.config.vms[vm], &self.config.networks[network]);
        let disables = |limit: Option<&crate::control::config::StormLimit>| {
            limit.is_some_and(|limit| limit.action == StormAction::Disable)
        };
        match class.map(|class| (class, class.storm_class())) {
            Some((_, Some(class))) => disables(self.config.storm_of_port(&vm.ports[position]).limit(class)),
            Some((Class::Vm, None)) => {
                let own = &vm.ports[position].storm;
                let storm = self.config.storm_of_vm(vm, network);
                StormClass::ALL.into_iter().any(|class| !own.lifts(class) && disables(storm.limit(class)))
            }
            _ => true,
        }
    }

    /// A port by which this storm is.
    pub(super) fn of(&self, who: Who) -> Option<usize> {
        self.ports.iter().position(|port| match (who, port.seat.stand) {
            (Who::Port(id), _) => port.seat.id == id,
            (Who::Vm(of, on), Stand::Port { owner, network_id, .. }) => (owner, network_id) == (of, on),
            (Who::Vm(..), Stand::Uplink { .. }) => false,
        })
    }
}

impl Containment {
    /// Those ports that are held for a storm of which `is_meant` speaks, which are not from now on.
    pub(super) fn take_disabled(&mut self, is_meant: impl Fn(&End, &Disabled) -> bool) -> Vec<(End, Disabled)> {
        let meant = self.disabled.iter().filter(|(end, disabled)| is_meant(end, disabled)).map(|(end, _)| end.clone());
        let meant: Vec<End> = meant.collect();
        meant.into_iter().filter_map(|end| self.disabled.remove_entry(&end)).collect()
    }

    /// Whether the VM of this port storms, or is in a loop.
    pub(super) fn is_suspect(&self, id: PortId) -> bool {
        let Some(end) = self.ends.get(&id) else { return false };
        self.refused.contains_key(end) || end.vm.as_ref().is_some_and(|vm| self.book.is_suspect(vm, &end.network))
    }
}

fn drops(port: &Port, reason: DropReason) -> u64 {
    port.sum(|counters| counters.drops_in.get(reason))
}
