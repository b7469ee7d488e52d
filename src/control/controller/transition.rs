//! A change that is under way.
//!
//! First everything that goes: rules without it, then its gates come back, and its devices are
//! closed. Only then what comes: a device that is closed may be in the way of one that is opened.
//! In between questions are answered, and another change waits. Once all is closed, others may be
//! made: what is being opened settles port by port, and the answer is given when all have, or have
//! had their time. A close that does not return is not waited for either.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tracing::{info, warn};

use super::devices::Closing;
use super::writing::{Attempted, Then};
use super::{Controller, Port, State};
use crate::control::change::{Change, Changed, Refusal};
use crate::control::config::{self, Config, ConfigFile};
use crate::control::difference::differences;
use crate::control::events::{EventKind, shorten};
use crate::control::handle;
use crate::control::jobs::PATIENCE;
use crate::control::keeper;
use crate::control::leftovers;
use crate::control::merge::Merged;
use crate::control::plan::{DeviceStep, Step, device_step_of_open, plan};
use crate::control::seats::{self, Kind, Names, Seat, Stand};
use crate::device::Settings;
use crate::switch::PortId;
use crate::time::{self, Moment};
use crate::worker::{Flush, Gate};

/// Where the answer to a change goes.
pub(super) type Reply = handle::Reply<Result<Changed, Refusal>>;

/// Sentences on differences that an event has, at most.
const TOLD: usize = 20;

/// Bytes that an event has of one of them.
const DIFFERENCE: usize = 600;

/// A change under way.
#[derive(Debug, Default)]
pub(super) struct Transition {
    /// What comes of it.
    changed: Changed,
    /// Who waits for it.
    reply: Option<Reply>,
    /// Ports, by key, for which something is done elsewhere that is waited for.
    awaited: HashSet<u64>,
    /// Ports, by key, that are to have a device in the end.
    wanted: HashSet<u64>,
    /// Since when that is waited for.
    since: Moment,
    /// Whether it goes back unless it is confirmed.
    to_be_confirmed: bool,
}

/// A change that is made, but for ports that are being opened. Each of them settles by itself, and other changes go on.
#[derive(Debug)]
pub(super) struct Pending {
    changed: Changed,
    reply: Option<Reply>,
    /// Ports, by key, that were to have a device.
    wanted: HashSet<u64>,
    since: Moment,
    pub(super) to_be_confirmed: bool,
}

/// A change that is made and goes back unless it is confirmed.
#[derive(Debug)]
pub(super) struct Unconfirmed {
    pub previous: Config,
    within: Duration,
    pub deadline: Moment,
}

impl Transition {
    /// Whether something that is done with this port is waited for.
    pub fn is_awaited(&self, key: u64) -> bool {
        self.awaited.contains(&key)
    }

    /// It is not begun.
    pub fn refuse(self, refusal: Refusal) {
        if let Some(reply) = self.reply {
            // Whoever asked may be gone.
            let _ = reply.send(Err(refusal));
        }
    }
}

/// What is done with the gates and devices of a port once rules are in force that do not need them.
enum Errand {
    Close { port: u64, gates: Vec<(u16, PortId, u16)>, remove: Option<Settings> },
    Rename { gates: Vec<(u16, PortId, u16)>, id: PortId },
    Adjust { port: u64, settings: Settings },
}

impl Controller {
    /// Begins a change. Nothing is done if it is refused.
    pub(super) async fn change(&mut self, change: Change, confirm: Option<Duration>, reply: Reply) {
        let (config, changed) = match self.admit(&change) {
            Err(refusal) => return drop(reply.send(Err(refusal))),
            Ok(None) => return drop(reply.send(Ok(Changed::default()))),
            Ok(Some(admitted)) => admitted,
        };
        let text = summary(&changed.differences);
        let transition = Transition { changed, reply: Some(reply), ..Transition::default() }.into();
        match confirm {
            None => {
                let event = self.event(EventKind::Config, text);
                let left = self.left(&config, &config);
                let then = Then::Make { config: config.clone().into(), transition };
                self.write_change(config, left, event, then, None);
            }
            // The process may end before it has gone back: what it would leave behind is kept.
            Some(within) => {
                let left = self.left(&config, &self.config);
                self.write_attempt(left, Attempted { config: config.into(), transition, within, text });
            }
        }
    }

    /// Applies the configuration file as it is now. What was changed by API since it was last applied stays.
    pub(super) fn reload(&mut self, file: Result<ConfigFile, String>, reply: Reply) {
        let (file, merged, changed) = match self.reloaded(file) {
            Ok(reloaded) => reloaded,
            Err(refusal) => {
                self.tell_config(format!("reload failed, and nothing has been changed: {}", refusal.message));
                return drop(reply.send(Err(refusal)));
            }
        };
        let base = keeper::base(&file);
        if merged.config == self.config && base == *self.keeper.base() {
            info!("config: reloaded; nothing has been changed");
            return drop(reply.send(Ok(changed)));
        }
        let mut text = format!("reloaded: {}", summary(&changed.differences));
        if !merged.conflicts.is_empty() {
            text.push_str("; changed by API, and dropped because the configuration file has precedence: ");
            text.push_str(&summary(&merged.conflicts));
        }
        let event = self.event(EventKind::Config, text);
        let left = self.left(&merged.config, &merged.config);
        let transition = Transition { changed, reply: Some(reply), ..Transition::default() }.into();
        let then = Then::Make { config: merged.config.clone().into(), transition };
        self.write_change(merged.config, left, event, then, Some(base.into()));
    }

    /// What comes of the file as it is now.
    fn reloaded(&self, file: Result<ConfigFile, String>) -> Result<(ConfigFile, Merged, Changed), Refusal> {
        let file = file.map_err(|why| Refusal::request("unreadable", why))?;
        self.is_free()?;
        let merged = self.keeper.merge(&file, &self.config);
        let (config, changed) = self.outcome(&Change::Apply(merged.config))?;
        Ok((file, Merged { config, ..merged }, changed))
    }

    /// The switch stops, and what is in hand takes too long. It is kept, so it is answered.
    pub(super) fn leave_changes(&mut self) {
        self.pending.iter_mut().for_each(|pending| pending.since = Moment::default());
        self.answer_pending();
        let Some(Transition { mut changed, reply: Some(reply), .. }) = self.transition.take() else { return };
        changed.remarks.push("the switch stops while devices are being closed or changed; it is kept".into());
        // Whoever asked may be gone.
        let _ = reply.send(Ok(changed));
    }

    /// Makes a change that goes back unless it is confirmed.
    pub(super) async fn attempt(&mut self, attempted: Attempted) {
        let Attempted { config, transition, within, text } = attempted;
        self.tell_config(format!("to be confirmed within {}: {text}", seconds(within)));
        let previous = self.config.clone();
        self.unconfirmed = Some(Unconfirmed { previous, within, deadline: time::now() + within });
        self.make(*config, Transition { to_be_confirmed: true, ..*transition }).await;
    }

    /// Whether a change may be, and the configuration to which it leads; `None` if it is so
    /// already.
    fn admit(&self, change: &Change) -> Result<Option<(Config, Changed)>, Refusal> {
        self.is_free()?;
        let (config, changed) = self.outcome(change)?;
        Ok((config != self.config).then_some((config, changed)))
    }

    /// Whether any change may be.
    fn is_free(&self) -> Result<(), Refusal> {
        self.keeper.check()?;
        if self.unconfirmed.is_some() {
            let message = "the last change waits to be confirmed; confirm it, or wait until it has gone back";
            return Err(Refusal::conflict("unconfirmed", message));
        }
        Ok(())
    }

    /// What a change would come to.
    pub(super) fn outcome(&self, change: &Change) -> Result<(Config, Changed), Refusal> {
        let config = change.to(&self.config)?;
        let differences = differences(&self.config, &config);
        Ok((config, Changed { differences, remarks: Vec::new() }))
    }

    /// Keeps the change that waits to be confirmed.
    pub(super) fn confirm(&mut self, reply: Reply) {
        let Some(unconfirmed) = &self.unconfirmed else {
            let refusal = Refusal::conflict("nothing_to_confirm", "no change waits to be confirmed");
            return drop(reply.send(Err(refusal)));
        };
        let differences = differences(&unconfirmed.previous, &self.config);
        let event = self.event(EventKind::Config, format!("confirmed: {}", summary(&differences)));
        let left = self.left(&self.config, &self.config);
        let changed = Changed { differences, remarks: Vec::new() };
        self.write_change(self.config.clone(), left, event, Then::Stay { changed, reply }, None);
    }

    /// Goes back to what was before the change that has not been confirmed.
    pub(super) async fn go_back(&mut self) {
        let Some(Unconfirmed { previous, within, .. }) = self.unconfirmed.take() else { return };
        let differences = differences(&self.config, &previous);
        let text = summary(&differences);
        self.tell_config(format!("not confirmed within {}, and taken back: {text}", seconds(within)));
        self.make(previous, Transition::default()).await;
    }

    fn tell_config(&mut self, text: String) {
        let event = self.event(EventKind::Config, text);
        self.emit(true, event);
    }

    /// Goes over to another configuration.
    pub(super) async fn make(&mut self, config: Config, mut transition: Transition) {
        let carried = self.carrying();
        let plan = plan(&self.config, &config);
        for used_up in self.places.follow(&plan, &config) {
            self.staff.flush(Flush { place: Some(used_up.index()), ..Flush::default() }).await;
        }
        self.left.append(&mut leftovers::netdevs(&self.config));
        self.left = &self.left - &leftovers::netdevs(&config);
        let before = std::mem::replace(&mut self.config, config);
        self.follow_groups(&carried);
        let kind = |port: &config::Port| if port.subport().is_some() { Kind::Subport } else { Kind::Port };
        let steps: HashMap<(Kind, &str), (bool, DeviceStep)> = plan
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Change { port, forget, device, .. } => Some(((kind(port), port.id()), (*forget, *device))),
                // Nothing is learned behind the name of its gates, which stays.
                Step::ChangeUplink { uplink, device, .. } => {
                    Some(((Kind::Uplink, uplink.id.as_str()), (false, *device)))
                }
                _ => None,
            })
            .collect();
        let key = |(kind, name): (Kind, &str)| (kind, name.to_owned());
        let mut old: HashMap<(Kind, String), Port> =
            self.ports.drain(..).map(|port| (key(port.seat.key()), port)).collect();
        let (mut errands, mut stricter) = (Vec::new(), Vec::new());
        for seat in seats::seats(&self.config, &self.places) {
            let Some(mut port) = old.remove(&key(seat.key())) else {
                let port = self.new_port(seat);
                transition.wanted.extend(port.seat.device().map(|_| port.key));
                self.ports.push(port);
                continue;
            };
            let was = std::mem::replace(&mut port.seat, seat);
            let was_up = was.names(&before).admin_up;
            let index = self.ports.len();
            let planned = steps.get(&was.key()).copied();
            // Of a port that is otherwise only in what subports it has, nothing is planned.
            let devices = was.device().zip(port.seat.device()).filter(|_| port.may_lose_tags);
            let planned = match devices.map(|(before, after)| device_step_of_open(before, after, true)) {
                Some(step @ DeviceStep::Reopen { .. }) if !matches!(planned, Some((_, DeviceStep::Reopen { .. }))) => {
                    Some((planned.is_some_and(|(forget, _)| forget), step))
                }
                _ => planned,
            };
            self.ports.push(port);
            if let Some((forget, device)) = planned {
                errands.extend(self.turn(index, &was, forget, device, &mut transition));
                self.tell_admin_state(index, was_up);
                stricter.extend(self.stricter(index, &was, &before));
            }
        }
        self.standing = self.ports.iter().enumerate().map(|(index, port)| (port.key, index)).collect();
        // In the order in which they stood, so that the same is always told the same way.
        let mut gone: Vec<Port> = old.into_values().collect();
        gone.sort_by_key(|port| match port.seat.stand {
            Stand::Port { vm, position, .. } => (vm, position),
            Stand::Uplink { index } => (usize::MAX, index),
        });
        for port in gone {
            self.tell_gone(&before, &port);
            let Some(device) = port.seat.device().cloned() else { continue };
            // An attempt that has not returned in time may never do so.
            if !port.is_overdue {
                transition.awaited.insert(port.key);
            }
            let gates = self.gates(&port, port.seat.id);
            // One that is being opened comes back when it is open, and is closed then.
            if !matches!(port.state, State::Opening { .. }) {
                errands.push(Errand::Close { port: port.key, gates, remove: Some(device) });
            }
        }
        self.listen_to_links();
        self.follow_layout();
        self.follow_activations(&before);
        self.set_rules().await;
        self.forget_behind(stricter).await;
        (0..self.ports.len()).for_each(|index| self.tell_subport(index));
        let mut closings = Vec::new();
        for errand in errands {
            closings.extend(self.run_errand(errand).await);
        }
        self.close(closings);
        transition.since = time::now();
        self.transition = Some(transition);
        self.advance().await;
    }

    /// What is to be done with the device of a port that is otherwise.
    fn turn(
        &mut self,
        index: usize,
        was: &Seat,
        forget: bool,
        device: DeviceStep,
        transition: &mut Transition,
    ) -> Option<Errand> {
        let port = &mut self.ports[index];
        let key = port.key;
        match (&port.state, device) {
            (State::Opening { .. }, DeviceStep::Adjust | DeviceStep::Reopen { .. }) => {
                // It comes back as it was to be before, and is opened again then.
                port.held = true;
                transition.awaited.insert(key);
                transition.wanted.insert(key);
                None
            }
            (State::Up { .. }, DeviceStep::Adjust) => {
                transition.awaited.insert(key);
                let settings = port.seat.device().cloned()?;
                if forget {
                    // Both are wanted; the one is done at once, the other one elsewhere.
                    self.adjust(key, settings);
                    let gates = self.gates(&self.ports[index], was.id);
                    return Some(Errand::Rename { gates, id: self.ports[index].seat.id });
                }
                Some(Errand::Adjust { port: key, settings })
            }
            (State::Up { .. } | State::Down { .. }, DeviceStep::Reopen { anew }) => {
                let gates = self.gates(&self.ports[index], was.id);
                let port = &mut self.ports[index];
                port.held = true;
                if anew {
                    port.made = None;
                }
                transition.awaited.insert(key);
                transition.wanted.insert(key);
                if gates.is_empty() {
                    port.state = State::Down { reason: String::new() };
                } else {
                    self.fail(index, "its device is opened anew, as it shall be now".into());
                }
                Some(Errand::Close { port: key, gates, remove: was.device().filter(|_| anew).cloned() })
            }
            (State::Up { .. }, DeviceStep::Keep) if forget => {
                Some(Errand::Rename { gates: self.gates(&self.ports[index], was.id), id: self.ports[index].seat.id })
            }
            _ => None,
        }
    }

    /// The gates that a port has: the worker, the name it knows the port by, and the queue.
    fn gates(&self, port: &Port, id: PortId) -> Vec<(u16, PortId, u16)> {
        let State::Up { worker, queues, .. } = port.state else { return Vec::new() };
        (0..queues).map(|queue| (self.staff.home(worker, queue), id, queue)).collect()
    }

    /// Does it. What is to be closed comes back, to be closed with others.
    async fn run_errand(&mut self, errand: Errand) -> Option<Closing> {
        match errand {
            Errand::Close { port, gates, remove } => {
                let mut queues = Vec::new();
                for (worker, id, queue) in gates {
                    queues.extend(self.staff.close(worker, id, queue).await.map(|gate| gate.device));
                }
                return Some(Closing { port, queues, remove, ..Closing::default() });
            }
            Errand::Rename { gates, id } => {
                for (worker, old, queue) in gates {
                    if let Some(gate) = self.staff.close(worker, old, queue).await {
                        // There is room for it: it has just left.
                        let _ = self.staff.open(worker, Gate::new(id, queue, gate.device)).await;
                    }
                }
            }
            Errand::Adjust { port, settings } => self.adjust(port, settings),
        }
        None
    }

    fn tell_admin_state(&mut self, index: usize, was_up: bool) {
        let is_up = self.is_wanted_up(index);
        if is_up == was_up || !matches!(self.ports[index].state, State::Up { .. }) {
            return;
        }
        if is_up {
            self.tell_up(index);
        } else {
            self.ports[index].told_down = true;
            if self.tell(EventKind::PortDown, index, "administratively down") {
                let Names { vm, network, .. } = self.names(index);
                let (port, uplink) = self.label(index);
                info!(vm, network, port, uplink, "port_down: administratively down");
            }
            self.tell_subports(index);
        }
    }

    fn tell_gone(&mut self, before: &Config, port: &Port) {
        let names = port.seat.names(before);
        if matches!(port.state, State::Up { .. } | State::Carried { told: Some(true) }) && names.admin_up {
            let event = self.event_of(&names, EventKind::PortDown, "detached");
            self.emit(false, event);
        }
    }

    /// Something has come for which a change may wait.
    pub(super) fn has_come(&mut self, key: u64, remark: Option<String>) {
        let port = self.standing.get(&key).copied();
        let seat = port.map(|index| self.ports[index].seat.to_string());
        if let Some(transition) = &mut self.transition
            && transition.awaited.remove(&key)
        {
            let name = seat.map(|seat| format!("{seat}: ")).unwrap_or_default();
            transition.changed.remarks.extend(remark.map(|remark| format!("{name}{remark}")));
        } else if let Some(index) = port {
            // Nobody waits for it: then nothing is in its way either.
            self.ports[index].held = false;
        }
    }

    /// Goes on with the change that is under way, if nothing is waited for or that has had its time.
    pub(super) async fn advance(&mut self) {
        let now = time::now();
        let Some(transition) = &mut self.transition else { return };
        if !transition.awaited.is_empty() {
            if now.since(transition.since) < PATIENCE {
                return;
            }
            let seconds = PATIENCE.as_secs();
            let late = std::mem::take(&mut transition.awaited);
            warn!("{} devices have not been closed in {seconds} seconds; they are closed when they can be", late.len());
            let remark = format!("{} devices have not been closed in {seconds} seconds", late.len());
            transition.changed.remarks.push(remark);
        }
        let Some(Transition { changed, reply, wanted, to_be_confirmed, .. }) = self.transition.take() else { return };
        self.ports.iter_mut().for_each(|port| port.held = false);
        self.try_down_ports();
        self.pending.push(Pending { changed, reply, wanted, since: now, to_be_confirmed });
        self.answer_pending();
    }

    /// Answers the changes whose ports have all been opened, or not, or have had their time.
    pub(super) fn answer_pending(&mut self) {
        let now = time::now();
        let is_settled = |key: &u64| {
            let port = self.standing.get(key).map(|&index| &self.ports[index]);
            port.is_none_or(|port| match &port.state {
                State::Up { .. } | State::Carried { .. } => true,
                State::Opening { .. } => port.is_overdue,
                State::Down { reason } => !reason.is_empty(),
            })
        };
        // What waits behind something that does not return has twice the time.
        let is_over = |pending: &Pending| now.since(pending.since) >= 2 * PATIENCE;
        let is_done = |pending: &mut Pending| is_over(pending) || pending.wanted.iter().all(is_settled);
        let done: Vec<Pending> = self.pending.extract_if(.., is_done).collect();
        for Pending { mut changed, reply, wanted, to_be_confirmed, .. } in done {
            let wanted = self.ports.iter().filter(|port| wanted.contains(&port.key));
            changed.remarks.extend(wanted.filter_map(|port| match &port.state {
                State::Opening { reason } if reason.is_empty() => Some(format!("{} is still being opened", port.seat)),
                State::Down { reason } | State::Opening { reason } => Some(format!("{} is down: {reason}", port.seat)),
                State::Up { .. } | State::Carried { .. } => None,
            }));
            // The time to confirm it begins when it can be looked at.
            if let Some(unconfirmed) = self.unconfirmed.as_mut().filter(|_| to_be_confirmed) {
                unconfirmed.deadline = now + unconfirmed.within;
            }
            if let Some(reply) = reply {
                // Whoever asked may be gone; it is true all the same.
                let _ = reply.send(Ok(changed));
            }
        }
    }
}

/// The differences in one text, not too long.
fn summary(differences: &[String]) -> String {
    let short = |difference: &String| {
        let mut text = difference.clone();
        shorten(&mut text, DIFFERENCE);
        text
    };
    let mut text = differences.iter().take(TOLD).map(short).collect::<Vec<_>>().join("; ");
    if differences.len() > TOLD {
        text.push_str(&format!("; and {} more", differences.len() - TOLD));
    }
    text
}

fn seconds(duration: Duration) -> String {
    format!("{} seconds", duration.as_secs_f64())
}
