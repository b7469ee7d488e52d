//! What is shown of loops and storms.

use super::keeping::clocks;
use super::watching::{Class, Who, action};
use super::{Containment, Controller};
use crate::control::config::{Named, StormAction};
use crate::control::controller::Port;
use crate::control::loops::storms::Spell;
use crate::control::loops::told::{self, notice, view};
use crate::control::loops::view::{LoopCounts, LoopView, StormView};
use crate::switch::{DropReason, PortId};
use crate::time::{Moment, rfc3339};

impl Containment {
    /// Whether a port is held.
    pub fn holds(&self, id: PortId) -> bool {
        self.in_force.held.contains(&id)
    }

    /// Why a port is held, if it is.
    pub fn why_held(&self, id: PortId) -> Option<String> {
        if !self.holds(id) {
            return None;
        }
        let end = self.ends.get(&id)?;
        let release = format!("`vifswitch release {}` lifts it", end.port);
        if let Some(of) = self.held_for(end) {
            let until = rfc3339(clocks().wall(of.ladder.until));
            let (what, level) = (told::what(of, &self.layout), of.ladder.level.number());
            return Some(format!(
                "{what}: level {level}, until {until} or longer if it is still there then; {release}"
            ));
        }
        let disabled = self.disabled.get(end)?;
        let until = match disabled.until {
            Some(until) => format!("until {}", rfc3339(clocks().wall(until))),
            None => "until it is released by hand".into(),
        };
        Some(format!("held for a {} storm, {until}; {release}", disabled.class))
    }

    /// All loops, the notices behind them, and then those that are over, the latest first.
    pub fn loops(&self) -> Vec<LoopView> {
        let clocks = clocks();
        let there = self.book.loops().map(|of| view(of, None, &self.layout, clocks));
        let notices = self.book.notices(clocks.now).map(|of| notice(of, &self.layout, clocks));
        let over = self.book.over().map(|over| view(&over.was, Some(over), &self.layout, clocks));
        there.chain(notices).chain(over).collect()
    }

    /// How many loops, storms and freezes there were, and what became of probes.
    pub fn counts(&self, ports: &[Port]) -> LoopCounts {
        let drops = |reason| ports.iter().map(|port| port.sum(|counters| counters.drops_in.get(reason))).sum();
        LoopCounts {
            frozen: self.freezes.len() as u64,
            probes_sent: ports.iter().map(|port| port.sum(|counters| counters.probes.get())).sum(),
            probes_returned: drops(DropReason::Probe),
            probes_forged: drops(DropReason::ProbeForged),
            probes_stale: drops(DropReason::ProbeStale),
            ..self.counts
        }
    }
}

impl Controller {
    /// All storms, and then those that are over, the latest first.
    pub(in crate::control::controller) fn storms(&self) -> Vec<StormView> {
        let mut there: Vec<StormView> = self
            .containment
            .watch
            .storms_now()
            .into_iter()
            .filter_map(|(who, class, spell)| self.storm_view(who, class, &spell, None))
            .collect();
        let key =
            |view: &StormView| (view.since.clone(), view.device_id.clone(), view.port_id.clone(), view.class.clone());
        there.sort_by_key(key);
        there.into_iter().chain(self.containment.watch.over.iter().rev().cloned()).collect()
    }

    /// A storm as it is shown.
    pub(super) fn storm_view(&self, who: Who, class: Class, spell: &Spell, ended: Option<Moment>) -> Option<StormView> {
        let index = self.of(who)?;
        let clocks = clocks();
        let names = self.names(index);
        let (action, _) = action(&self.config, self.ports[index].seat.stand, class);
        let disabled = match who {
            Who::Port(id) => self.containment.ends.get(&id).and_then(|end| self.containment.disabled.get(end)),
            Who::Vm(..) => None,
        };
        let (whose, _) = self.whose(who);
        let lift = self.limit(who, index, class).lift;
        let since = rfc3339(clocks.wall(spell.since));
        let frames = if spell.suppressed == 1 { "frame" } else { "frames" };
        let how = format!("{} {frames} suppressed, at most {} a second", spell.suppressed, spell.most);
        let class = class.name();
        let done = match (action, disabled) {
            (_, Some(_)) => "; the port is held",
            (StormAction::Disable, None) => "; its ports are held",
            _ => "",
        };
        let ended = ended.map(|_| rfc3339(clocks.wall(spell.last)));
        let text = match &ended {
            None => format!("{class} storm of {whose} since {since}: {how}{done}; {lift}"),
            Some(ended) => format!("{class} storm of {whose} from {since} to {ended}: {how}{done}"),
        };
        Some(StormView {
            device_id: names.vm.unwrap_or_default().to_owned(),
            network_id: names.network.unwrap_or_default().to_owned(),
            port_id: matches!(who, Who::Port(_)).then(|| names.id.to_owned()),
            class: class.to_owned(),
            active: ended.is_none(),
            since,
            ended,
            suppressed: spell.suppressed,
            highest_rate: spell.most,
            action: action.name().to_owned(),
            held: disabled.is_some(),
            until: disabled.and_then(|of| of.until).map(|until| rfc3339(clocks.wall(until))),
            text,
        })
    }
}
