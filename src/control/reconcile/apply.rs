//! Applies a committed change to ports, devices and workers.
//!
//! Removals come first: workers get a configuration without the removed ports, return their queues, and the devices are
//! closed. Then devices are opened, because a device to be closed may conflict with one to be opened. A change that only
//! adds ports opens their devices at once, and workers get its configuration when they are open. Meanwhile requests are
//! answered, and another change waits. The reply is sent once each port to be opened has succeeded, failed or timed out;
//! other changes may start before. A close that does not return also times out.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::future::join_all;
use tracing::warn;

use super::closing::ClosingPort;
use super::places::{Place, places_before};
use super::results::{Apply, Member, Reply};
use super::{Controller, Port, State};
use crate::control::compile::endpoints::{Endpoint, Kind, endpoints};
use crate::control::compile::plan::{DeviceChange, Step, device_step_of_open, plan};
use crate::control::config::{self, Config};
use crate::control::desired::change::ChangeResult;
use crate::control::desired::orphans;
use crate::control::reason::{Reason, ReasonCode};
use crate::control::reconcile::jobs::OVERDUE_AFTER;
use crate::device::Settings;
use crate::switch::PortId;
use crate::time::{self, MonoTime};
use crate::worker::{Flush, RxQueue};

/// Maximum time for which the workers' configuration waits for devices to be open.
pub(super) const MAX_DEFERRAL: Duration = Duration::from_millis(20);

/// A change that is applied except for ports still being opened. Other changes may start.
#[derive(Debug)]
pub(super) struct PendingApply {
    result: ChangeResult,
    reply: Option<Reply>,
    /// Keys of ports to be opened.
    wanted: HashSet<u64>,
    since: MonoTime,
    pub(super) to_be_confirmed: bool,
}

/// Operation on a port's queues and device, once no worker's configuration needs them.
enum DeviceOp {
    Close { port: u64, queues: Vec<(u16, PortId, u16)>, remove: Option<Settings> },
    Rename { queues: Vec<(u16, PortId, u16)>, id: PortId },
    Adjust { port: u64, settings: Settings },
}

impl Controller {
    /// Replies to unfinished changes when the switch stops. They are stored.
    pub(super) fn answer_unfinished(&mut self) {
        self.pending.iter_mut().for_each(|pending| pending.since = MonoTime::default());
        self.answer_pending();
        let Some(Apply { members, answers, .. }) = self.applying.take() else { return };
        for Member { mut result, reply, .. } in members {
            let warning = "the switch stops before all devices are closed or adjusted; the change is stored";
            result.warnings.push(warning.into());
            // The client may have disconnected.
            reply.into_iter().for_each(|reply| drop(reply.send(Ok(result.clone()))));
        }
        answers.into_iter().for_each(|(reply, answer)| drop(reply.send(answer)));
    }

    /// Applies a configuration.
    pub(super) async fn apply(&mut self, config: Config, mut apply: Apply) {
        let tagged = self.active_uplinks();
        let steps = plan(&self.config, &config);
        for used_up in self.ids.update(&steps, &config) {
            self.workers.flush(Flush { port_index: Some(used_up.index()), ..Flush::default() }).await;
        }
        self.orphans.append(&mut orphans::gone(&self.config, &config));
        self.orphans = orphans::without(std::mem::take(&mut self.orphans), &config);
        // These netdevs have ended with their namespaces.
        self.orphans.retain(|orphan| !apply.ended.contains(&orphan.port_id));
        let before = std::mem::replace(&mut self.config, config);
        self.policers.follow(&before, &self.config);
        if let Some((deficits, passed)) = self.handover.take_policers() {
            self.policers.set_deficits(&deficits, passed, time::now());
        }
        self.follow_groups(&tagged);
        let kind = |port: &config::Port| if port.subport().is_some() { Kind::Subport } else { Kind::Port };
        let steps: HashMap<(Kind, &str), (bool, DeviceChange)> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Change { port, flush, device, .. } => Some(((kind(port), port.id()), (*flush, *device))),
                // FDB entries refer to the uplink's VLANs, not to its queues.
                Step::ChangeUplink { uplink, device, .. } => {
                    Some(((Kind::Uplink, uplink.id.as_str()), (false, *device)))
                }
                _ => None,
            })
            .collect();
        let mut old: Vec<Option<Port>> = self.ports.drain(..).map(Some).collect();
        let places = self.places(&before, &old);
        let old_places: HashMap<(Kind, String), usize> = places_before(&places, &old);
        let key = |(kind, name): (Kind, &str)| (kind, name.to_owned());
        let (mut ops, mut stricter, mut has_new_subport) = (Vec::new(), Vec::new(), false);
        for place in places {
            let endpoint = match place {
                Place::Unchanged { before, vm, firsts } => {
                    self.ports.extend(old[before].take().map(|mut port| {
                        port.endpoint.relocate(vm, firsts);
                        port
                    }));
                    continue;
                }
                Place::Made(endpoint) => *endpoint,
            };
            let found = old_places.get(&key(endpoint.key())).and_then(|&place| old[place].take());
            let Some(mut port) = found else {
                let port = self.new_port(endpoint);
                has_new_subport |= port.endpoint.device().is_none();
                apply.wanted.extend(port.endpoint.device().map(|_| port.key));
                self.ports.push(port);
                continue;
            };
            let was = std::mem::replace(&mut port.endpoint, endpoint);
            let was_up = was.labels(&before).admin_up;
            let index = self.ports.len();
            let planned = steps.get(&was.key()).copied();
            // No step is planned for a parent whose subports alone changed.
            let devices = was.device().zip(port.endpoint.device()).filter(|_| port.may_lose_tags);
            let planned = match devices.map(|(before, after)| device_step_of_open(before, after, true)) {
                Some(step @ DeviceChange::Reopen { .. })
                    if !matches!(planned, Some((_, DeviceChange::Reopen { .. }))) =>
                {
                    Some((planned.is_some_and(|(flush, _)| flush), step))
                }
                _ => planned,
            };
            self.ports.push(port);
            if let Some((flush, device)) = planned {
                ops.extend(self.device_op(index, &was, flush, device, &mut apply));
                self.emit_admin_state(index, was_up);
                stricter.extend(self.stricter(index, &was, &before));
            }
        }
        debug_assert!(
            self.ports.iter().map(|port| &port.endpoint).eq(&endpoints(&self.config, &self.ids)),
            "kept ones are as they would be made"
        );
        self.port_index = self.ports.iter().enumerate().map(|(index, port)| (port.key, index)).collect();
        // In configuration order, so that events have a defined order.
        let has_removed = old.iter().any(Option::is_some);
        for port in old.into_iter().flatten() {
            let has_ended = apply.ended.contains(&port.endpoint.name);
            if has_ended {
                self.emit_ended(&before, &port);
            } else {
                self.emit_removed(&before, &port);
            }
            let Some(device) = port.endpoint.device().cloned() else { continue };
            // An overdue attempt may never return.
            if !port.is_overdue {
                apply.pending_ops.insert(port.key, port.endpoint.name.clone());
            }
            let queues = self.queues(&port, port.endpoint.id);
            // A device being opened is closed when the attempt returns.
            if !matches!(port.state, State::Opening { .. }) {
                let remove = (!has_ended).then_some(device);
                ops.push(DeviceOp::Close { port: port.key, queues, remove });
            }
        }
        self.watch_netdevs_in_use();
        self.follow_lifetimes();
        self.netns_files.changed();
        let closes_nothing = ops.is_empty() && apply.pending_ops.is_empty();
        if closes_nothing {
            // First, as the kernel makes the netdevs meanwhile.
            self.open_wanted();
        }
        self.follow_activations(&before);
        self.update_topology();
        // Workers need the configuration again when the devices are open. If that is all that changes, once is sufficient.
        let only_opens = closes_nothing && stricter.is_empty() && !has_removed && !has_new_subport;
        if self.is_started && only_opens && self.any_is_opening(&apply.wanted) {
            self.config_due = Some(time::now() + MAX_DEFERRAL);
        } else {
            self.push_config().await;
            self.flush_ports(stricter).await;
            (0..self.ports.len()).for_each(|index| self.emit_subport(index));
        }
        let closings = join_all(ops.into_iter().map(|op| self.run_device_op(op))).await;
        self.close(closings.into_iter().flatten().collect());
        apply.since = time::now();
        self.applying = Some(apply);
        self.advance().await;
    }

    /// Starts to open the devices that a change wants: no other one conflicts with them any more.
    fn open_wanted(&mut self) {
        self.ports.iter_mut().for_each(|port| port.open_deferred = false);
        self.try_down_ports();
    }

    /// Whether any of these ports is being opened.
    fn any_is_opening(&self, ports: &HashSet<u64>) -> bool {
        let index = |key| self.port_index.get(key).copied();
        ports.iter().filter_map(index).any(|index| self.ports[index].attempt.is_some())
    }

    /// Sends the workers the configuration of the change in progress, if none of its devices is being opened any more or
    /// that takes too long.
    pub(super) async fn push_due_config(&mut self) {
        let Some(due) = self.config_due else { return };
        let is_opening = self.applying.as_ref().is_some_and(|apply| self.any_is_opening(&apply.wanted));
        if time::now() >= due || !is_opening {
            self.push_config().await;
        }
    }

    /// Operation on the device of a changed port, if it needs one.
    fn device_op(
        &mut self,
        index: usize,
        was: &Endpoint,
        flush: bool,
        device: DeviceChange,
        apply: &mut Apply,
    ) -> Option<DeviceOp> {
        let port = &mut self.ports[index];
        let key = port.key;
        let name = || was.name.clone();
        match (&port.state, device) {
            (State::Opening { .. }, DeviceChange::Adjust | DeviceChange::Reopen { .. }) => {
                // The attempt returns with the old settings; then the device is reopened.
                port.open_deferred = true;
                apply.pending_ops.insert(key, name());
                apply.wanted.insert(key);
                None
            }
            (State::Up { .. }, DeviceChange::Adjust) => {
                apply.pending_ops.insert(key, name());
                let settings = port.endpoint.device().cloned()?;
                if flush {
                    // Both operations: adjust in the background, rename now.
                    self.adjust(key, settings);
                    let queues = self.queues(&self.ports[index], was.id);
                    return Some(DeviceOp::Rename { queues, id: self.ports[index].endpoint.id });
                }
                Some(DeviceOp::Adjust { port: key, settings })
            }
            (State::Up { .. } | State::Down { .. }, DeviceChange::Reopen { recreate }) => {
                let queues = self.queues(&self.ports[index], was.id);
                let port = &mut self.ports[index];
                port.open_deferred = true;
                if recreate {
                    port.made = None;
                }
                apply.pending_ops.insert(key, name());
                apply.wanted.insert(key);
                if queues.is_empty() {
                    port.state = State::Down { reason: Reason::default() };
                } else {
                    let why = Reason::new(ReasonCode::Reopening, "reopening device with new settings");
                    self.mark_down(index, why);
                }
                Some(DeviceOp::Close { port: key, queues, remove: was.device().filter(|_| recreate).cloned() })
            }
            (State::Up { .. }, DeviceChange::Keep) if flush => Some(DeviceOp::Rename {
                queues: self.queues(&self.ports[index], was.id),
                id: self.ports[index].endpoint.id,
            }),
            _ => None,
        }
    }

    /// Queues of a port: worker, port id known to the worker, queue index.
    fn queues(&self, port: &Port, id: PortId) -> Vec<(u16, PortId, u16)> {
        let State::Up { worker, queues, .. } = port.state else { return Vec::new() };
        (0..queues).map(|queue| (self.workers.worker_for(worker, queue), id, queue)).collect()
    }

    /// Runs an operation. Returns a device to be closed, which the caller closes together with others.
    async fn run_device_op(&self, op: DeviceOp) -> Option<ClosingPort> {
        match op {
            DeviceOp::Close { port, queues: rx_queues, remove } => {
                let mut queues = Vec::new();
                for (worker, id, queue) in rx_queues {
                    queues.extend(self.workers.close(worker, id, queue).await.map(|rx_queue| rx_queue.device));
                }
                return Some(ClosingPort { port, queues, remove, ..ClosingPort::default() });
            }
            DeviceOp::Rename { queues: rx_queues, id } => {
                for (worker, old, queue) in rx_queues {
                    if let Some(rx_queue) = self.workers.close(worker, old, queue).await {
                        // The worker has room: the queue has just left it.
                        let _ = self.workers.open(worker, RxQueue::new(id, queue, rx_queue.device)).await;
                    }
                }
            }
            DeviceOp::Adjust { port, settings } => self.adjust(port, settings),
        }
        None
    }

    /// Records the end of an operation on a port's device.
    pub(super) fn op_finished(&mut self, key: u64, warning: Option<String>) {
        let port = self.port_index.get(&key).copied();
        let endpoint = port.map(|index| self.ports[index].endpoint.to_string());
        if let Some(apply) = &mut self.applying
            && let Some(name) = apply.pending_ops.remove(&key)
        {
            let endpoint = endpoint.map(|endpoint| format!("{endpoint}: ")).unwrap_or_default();
            warning.into_iter().for_each(|warning| apply.warn(&name, &format!("{endpoint}{warning}")));
        } else if let Some(index) = port {
            // No change waits for it, so no other device conflicts with it.
            self.ports[index].open_deferred = false;
        }
    }

    /// Continues the change in progress once all operations have ended or timed out.
    pub(super) async fn advance(&mut self) {
        let now = time::now();
        let Some(apply) = &mut self.applying else { return };
        if self.config_due.is_some() {
            return;
        }
        if !apply.pending_ops.is_empty() {
            if now.since(apply.since) < OVERDUE_AFTER {
                return;
            }
            let seconds = OVERDUE_AFTER.as_secs();
            let late = std::mem::take(&mut apply.pending_ops);
            warn!(
                "{} devices have not been closed within {seconds} seconds; closing continues in the background",
                late.len()
            );
            for member in &mut apply.members {
                let count = late.values().filter(|name| member.concerns(name)).count();
                if count > 0 {
                    let warning = format!("{count} devices have not been closed within {seconds} seconds");
                    member.result.warnings.push(warning);
                }
            }
        }
        let Some(Apply { members, answers, wanted, to_be_confirmed, .. }) = self.applying.take() else { return };
        self.health.update(|status| status.applied_generation = self.state.generation());
        self.open_wanted();
        // They are true on every worker now. Those who made them wait for their ports.
        answers.into_iter().for_each(|(reply, answer)| drop(reply.send(answer)));
        let name = |key: &u64| self.port_index.get(key).map(|&index| self.ports[index].endpoint.name.as_str());
        let of_member = |member: &Member| match member.ports {
            None => wanted.clone(),
            Some(_) => {
                wanted.iter().copied().filter(|key| name(key).is_some_and(|name| member.concerns(name))).collect()
            }
        };
        let pending: Vec<PendingApply> = if members.is_empty() {
            vec![PendingApply { result: ChangeResult::default(), reply: None, wanted, since: now, to_be_confirmed }]
        } else {
            let pending = |member: Member| {
                let wanted = of_member(&member);
                PendingApply { result: member.result, reply: member.reply, wanted, since: now, to_be_confirmed }
            };
            members.into_iter().map(pending).collect()
        };
        self.pending.extend(pending);
        self.answer_pending();
    }

    /// Replies to changes whose ports have all succeeded, failed or timed out.
    pub(super) fn answer_pending(&mut self) {
        let now = time::now();
        let is_settled = |key: &u64| {
            let port = self.port_index.get(key).map(|&index| &self.ports[index]);
            port.is_none_or(|port| match &port.state {
                State::Up { .. } | State::Tagged { .. } => true,
                State::Opening { .. } => port.is_overdue,
                State::Down { reason } => !reason.is_empty(),
            })
        };
        // An attempt queued behind one that does not return has twice the time.
        let is_over = |pending: &PendingApply| now.since(pending.since) >= 2 * OVERDUE_AFTER;
        // The client knows that the port ends with this namespace, whatever becomes of this process.
        let is_stored = |key: &u64| !self.lifetimes.is_unstored(*key);
        let is_answerable = |pending: &PendingApply| pending.reply.is_none() || pending.wanted.iter().all(is_stored);
        let is_done = |pending: &mut PendingApply| {
            is_over(pending) || pending.wanted.iter().all(is_settled) && is_answerable(pending)
        };
        let done: Vec<PendingApply> = self.pending.extract_if(.., is_done).collect();
        for PendingApply { mut result, reply, wanted, to_be_confirmed, .. } in done {
            let mut wanted: Vec<usize> = wanted.iter().filter_map(|key| self.port_index.get(key).copied()).collect();
            wanted.sort_unstable();
            let wanted = wanted.into_iter().map(|index| &self.ports[index]);
            result.warnings.extend(wanted.filter_map(|port| match &port.state {
                State::Opening { reason } if reason.is_empty() => {
                    Some(format!("{} is still being opened", port.endpoint))
                }
                State::Down { reason } | State::Opening { reason } => {
                    Some(format!("{} is down: {reason}", port.endpoint))
                }
                State::Up { .. } | State::Tagged { .. } => None,
            }));
            if let Some(unconfirmed) = self.unconfirmed.as_mut().filter(|_| to_be_confirmed) {
                unconfirmed.restart_time(now);
            }
            if let Some(reply) = reply {
                // The client may have disconnected; the change stands.
                let _ = reply.send(Ok(result));
            }
        }
    }
}
