//! Chooses the uplink of each group that forwards.

use tracing::info;

use super::{Controller, State};
use crate::control::compile::endpoints::Kind;
use crate::control::compile::failover::Fitness;
use crate::control::compile::uplink_groups::{UplinkGroup, UplinkGroupName, uplink_groups};
use crate::control::reason::{Reason, ReasonCode};
use crate::control::state::events::{Event, EventKind};
use crate::time;

impl Controller {
    /// Fails over to another uplink of a group if required.
    pub(super) async fn fail_over(&mut self) {
        if self.choose_uplinks() {
            self.push_config().await;
        }
    }

    /// Chooses the active uplink of each group. Returns whether any has changed.
    pub(super) fn choose_uplinks(&mut self) -> bool {
        let mut has_changed = false;
        for uplink_group in uplink_groups(&self.config) {
            let UplinkGroupName::Group(group) = &uplink_group.name else { continue };
            let before = uplink_group.active(&self.groups);
            let fitness: Vec<Fitness> = uplink_group.members.iter().map(|&member| self.fitness(member)).collect();
            if self.groups.update(group, &fitness, time::now()) {
                self.emit_failover(group, &uplink_group, before);
                has_changed = true;
            }
        }
        has_changed
    }

    /// Adapts groups to a changed configuration: an active uplink stays active.
    pub(super) fn follow_groups(&mut self, before: &[(UplinkGroup, String)]) {
        let now = uplink_groups(&self.config);
        for uplink_group in &now {
            let UplinkGroupName::Group(group) = &uplink_group.name else { continue };
            let Some((_, active)) = before.iter().find(|(was, _)| was.name == uplink_group.name) else { continue };
            let place = uplink_group.members.iter().position(|&member| self.config.uplinks[member].id == *active);
            if place != Some(self.groups.active(group)) {
                self.groups.rearrange(group, place);
            }
        }
        self.groups.retain(|group| {
            now.iter().any(|uplink_group| uplink_group.name == UplinkGroupName::Group(group.to_owned()))
        });
    }

    /// Uplink groups of the configuration, each with the id of its active uplink.
    pub(super) fn active_uplinks(&self) -> Vec<(UplinkGroup, String)> {
        let active = |group: UplinkGroup| {
            let id = self.config.uplinks[group.active(&self.groups)].id.clone();
            (group, id)
        };
        uplink_groups(&self.config).into_iter().map(active).collect()
    }

    /// Fitness of an uplink.
    fn fitness(&self, uplink: usize) -> Fitness {
        let config = &self.config.uplinks[uplink];
        let port = self.ports.iter().find(|port| port.endpoint.key() == (Kind::Uplink, &config.id));
        match (self.why_unfit(uplink), port.map(|port| &port.state)) {
            (None, _) => Fitness::Fit,
            (Some(_), Some(State::Opening { reason } | State::Down { reason }))
                if config.admin_state_up && reason.is_empty() =>
            {
                Fitness::Pending
            }
            (Some(_), _) => Fitness::Unfit,
        }
    }

    /// Why an uplink is unfit, if it is.
    pub(super) fn why_unfit(&self, uplink: usize) -> Option<Reason> {
        let config = &self.config.uplinks[uplink];
        let Some(port) = self.ports.iter().find(|port| port.endpoint.key() == (Kind::Uplink, &config.id)) else {
            return Some(Reason::new(ReasonCode::NoDevice, "missing"));
        };
        match &port.state {
            _ if !config.admin_state_up => Some(Reason::admin_down()),
            State::Tagged { .. } => None,
            State::Up { .. } => port.dead_link(),
            State::Opening { reason } | State::Down { reason } if reason.is_empty() => Some(Reason::opening()),
            State::Opening { reason } | State::Down { reason } => Some(reason.clone()),
        }
    }

    fn emit_failover(&mut self, group: &str, uplink_group: &UplinkGroup, before: usize) {
        let (now, before) = (uplink_group.active(&self.groups), before);
        let id = |uplink: usize| self.config.uplinks[uplink].id.as_str();
        let why = match self.why_unfit(before) {
            Some(why) => format!("uplink {:?} is down: {why}", id(before)),
            None => "it is preferred, and its link was stable".into(),
        };
        let text = format!("uplink {:?} is active in group {group:?}: {why}", id(now));
        let id = id(now).to_owned();
        let event = Event { ports: vec![id.clone()], ..self.event(EventKind::Uplink, text.clone()) };
        if self.event_log.append(event, time::now()) {
            info!(event = "uplink", uplink = id, "{text}");
        }
    }
}
