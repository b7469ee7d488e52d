//! Events of subports. A subport is up while its parent, whose device it uses, is up.

use super::{Controller, State};
use crate::control::compile::endpoints::{ConfigRef, EndpointAttachment};
use crate::control::reason::Reason;
use crate::control::state::events::EventKind;

impl Controller {
    /// Subports of a port. Ports of one VM are contiguous.
    fn subports(&self, parent: usize) -> Vec<usize> {
        let vm = |index: usize| match self.ports.get(index)?.endpoint.config_ref {
            ConfigRef::Port { vm, .. } => Some(vm),
            ConfigRef::Uplink { .. } => None,
        };
        let Some(home) = vm(parent) else { return Vec::new() };
        let before = (0..parent).rev().take_while(|&index| vm(index) == Some(home));
        let after = (parent + 1..self.ports.len()).take_while(|&index| vm(index) == Some(home));
        before.chain(after).filter(|&index| self.ports[index].endpoint.parent() == Some(parent)).collect()
    }

    /// Emits events of subports whose state has changed with their parent.
    pub(super) fn emit_subports(&mut self, parent: usize) {
        for subport in self.subports(parent) {
            self.emit_subport(subport);
        }
    }

    /// Emits an event if a subport's state differs from the last one reported.
    pub(super) fn emit_subport(&mut self, index: usize) {
        let State::Tagged { reported } = self.ports[index].state else { return };
        let now = match self.why_no_frames(index) {
            None => None,
            Some(why) if why.is_empty() => return,
            why => why,
        };
        if reported == Some(now.is_none()) {
            return;
        }
        self.ports[index].state = State::Tagged { reported: Some(now.is_none()) };
        match now {
            None => {
                let EndpointAttachment::Parent { endpoint: parent, vlan, .. } = self.ports[index].endpoint.attachment
                else {
                    return;
                };
                let text = format!("frames can flow both ways, as VLAN {vlan} of {}", self.ports[parent].endpoint);
                let event = self.event_for(&self.names(index), EventKind::PortUp, &text);
                self.emit(false, event);
            }
            Some(why) => {
                let event = self.event_for(&self.names(index), EventKind::PortDown, &why.text);
                self.emit(true, event);
            }
        }
    }

    /// Why a subport is down; `None` if it is up, empty if not known yet.
    fn why_no_frames(&self, index: usize) -> Option<Reason> {
        let endpoint = &self.ports[index].endpoint;
        let parent = self.ports.get(endpoint.parent()?)?;
        let of_parent = match &parent.state {
            State::Opening { reason } | State::Down { reason } if reason.is_empty() => return Some(Reason::default()),
            State::Opening { reason } | State::Down { reason } => Some(reason.clone()),
            _ if !parent.endpoint.labels(&self.config).admin_up => Some(Reason::admin_down()),
            _ => parent.dead_link(),
        };
        match of_parent {
            Some(why) => Some(Reason::parent_down(&parent.endpoint, &why)),
            None if !endpoint.labels(&self.config).admin_up => Some(Reason::admin_down()),
            None => None,
        }
    }
}
