//! Status of loops and storms.

use std::collections::HashMap;

use super::monitor::{StormKind, StormSource, action};
use super::persist::clocks;
use super::{Controller, Mitigation};
use crate::control::config::{Named, StormAction};
use crate::control::loops::describe::{self, notice_status, view};
use crate::control::loops::status::{LoopCounts, LoopStatus, StormStatus};
use crate::control::loops::storms::Episode;
use crate::control::reconcile::Port;
use crate::switch::{DropReason, PortId};
use crate::time::{MonoTime, rfc3339};

impl Mitigation {
    /// Whether a port is quarantined.
    pub fn is_quarantined(&self, id: PortId) -> bool {
        self.active.quarantined.contains(&id)
    }

    /// Quarantined ports, with reason.
    pub fn quarantined(&self) -> HashMap<PortId, Option<String>> {
        self.active.quarantined.iter().map(|&id| (id, self.quarantine_reason(id))).collect()
    }

    fn quarantine_reason(&self, id: PortId) -> Option<String> {
        let end = self.endpoints.get(&id)?;
        let release = format!("`vifswitch release {}` releases it", end.port);
        if let Some(of) = self.quarantining_loop(end) {
            let until = rfc3339(clocks().wall(of.escalation.until));
            let (what, level) = (describe::what(of, &self.topology), of.escalation.level.number());
            return Some(format!("{what}: level {level}, until {until}, longer if the loop persists; {release}"));
        }
        let disabled = self.disabled.get(end)?;
        let until = match disabled.until {
            Some(until) => format!("until {}", rfc3339(clocks().wall(until))),
            None => "until it is released".into(),
        };
        Some(format!("quarantined for a {} storm, {until}; {release}", disabled.class))
    }

    /// Active loops, then notices, then ended loops, the latest first.
    pub fn loops(&self) -> Vec<LoopStatus> {
        let clocks = clocks();
        let active = self.loops.loops().map(|of| view(of, None, &self.topology, clocks));
        let notices = self.loops.notices(clocks.now).map(|of| notice_status(of, &self.topology, clocks));
        let over = self.loops.ended().map(|over| view(&over.loop_state, Some(over), &self.topology, clocks));
        active.chain(notices).chain(over).collect()
    }

    /// Number of active loops and storms.
    pub fn troubles(&self) -> usize {
        self.loops.loops().count() + self.monitor.active_storms().len()
    }

    /// Counts of loops, storms, dampened stations and probes.
    pub fn counts(&self, ports: &[Port]) -> LoopCounts {
        let drops = |reason| ports.iter().map(|port| port.sum(|counters| counters.drops_in.get(reason))).sum();
        LoopCounts {
            dampened: self.dampening.len() as u64,
            probes_sent: ports.iter().map(|port| port.sum(|counters| counters.probes.get())).sum(),
            probes_returned: drops(DropReason::Probe),
            probes_forged: drops(DropReason::ProbeForged),
            probes_stale: drops(DropReason::ProbeStale),
            ..self.counts
        }
    }
}

impl Controller {
    /// Active storms, then ended ones, the latest first.
    pub(in crate::control::reconcile) fn storms(&self) -> Vec<StormStatus> {
        let mut active: Vec<StormStatus> = self
            .mitigation
            .monitor
            .active_storms()
            .into_iter()
            .filter_map(|(who, class, episode)| self.storm_view(who, class, &episode, None))
            .collect();
        let key =
            |view: &StormStatus| (view.since.clone(), view.device_id.clone(), view.port_id.clone(), view.class.clone());
        active.sort_by_key(key);
        active.into_iter().chain(self.mitigation.monitor.ended.iter().rev().cloned()).collect()
    }

    /// Status of a storm.
    pub(super) fn storm_view(
        &self,
        who: StormSource,
        class: StormKind,
        episode: &Episode,
        ended: Option<MonoTime>,
    ) -> Option<StormStatus> {
        let index = self.of(who)?;
        let clocks = clocks();
        let names = self.names(index);
        let (action, _) = action(&self.config, self.ports[index].endpoint.config_ref, class);
        let disabled = match who {
            StormSource::Port(id) => {
                self.mitigation.endpoints.get(&id).and_then(|end| self.mitigation.disabled.get(end))
            }
            StormSource::Vm(..) => None,
        };
        let (whose, _) = self.storm_owner(who);
        let release = self.limit(who, index, class).release;
        let since = rfc3339(clocks.wall(episode.since));
        let frames = if episode.dropped == 1 { "frame" } else { "frames" };
        let how = format!("{} {frames} dropped, at most {} a second", episode.dropped, episode.peak);
        let class = class.name();
        let done = match (action, disabled) {
            (_, Some(_)) => "; the port is quarantined",
            (StormAction::Disable, None) => "; its ports are quarantined",
            _ => "",
        };
        let ended = ended.map(|_| rfc3339(clocks.wall(episode.last)));
        let text = match &ended {
            None => format!("{class} storm of {whose} since {since}: {how}{done}; {release}"),
            Some(ended) => format!("{class} storm of {whose} from {since} to {ended}: {how}{done}"),
        };
        Some(StormStatus {
            device_id: names.vm.unwrap_or_default().to_owned(),
            network_id: names.network.unwrap_or_default().to_owned(),
            port_id: matches!(who, StormSource::Port(_)).then(|| names.id.to_owned()),
            class: class.to_owned(),
            active: ended.is_none(),
            since,
            ended,
            dropped_frames: episode.dropped,
            highest_rate: episode.peak,
            action: action.name().to_owned(),
            quarantined: disabled.is_some(),
            until: disabled.and_then(|of| of.until).map(|until| rfc3339(clocks.wall(until))),
            text,
        })
    }
}
