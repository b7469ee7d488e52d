//! Ports that end with their network namespace (`lifetime = "netns"`).
//!
//! The attempt to open such a port's device records the namespace that it finds ([`LastingId`]). The record is stored
//! before the change that adds the port is answered, and no device of the port is opened in any other namespace. When the
//! name no longer leads to the namespace, `namespaces` closes the device, which would keep the namespace alive. From then
//! on the kernel is asked whether the namespace still exists. When it does not, the port is removed as a change of the
//! switch's own, together with all others that have ended since the last check. A port never ends because something could
//! not be read. What ended while no switch ran is found out before the first change is made, so that one that wants the
//! port in the next namespace of that name finds no port of the former one.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::changes::summary;
use super::commit::Record;
use super::results::{AfterCommit, Apply};
use super::{Controller, Port, State};
use crate::control::author::Author;
use crate::control::background;
use crate::control::compile::endpoints::{ConfigRef, Endpoint};
use crate::control::config::{self, Config, Vm};
use crate::control::desired::change::Change;
use crate::control::desired::lifetimes::Lifetimes;
use crate::control::reason::{Reason, ReasonCode};
use crate::control::state::events::{Event, EventKind};
use crate::control::state::history::{Entry, Source};
use crate::device::{self, OpenError, Opened, Settings};
use crate::sys::netns::{Identity, Netns};
use crate::sys::netns_id::LastingId;

/// Maximum ports that end in one change; the next check removes more.
const AT_ONCE: usize = 1024;

/// Maximum time for which changes wait at the start for the search for ended namespaces.
const SEARCH_TIME: Duration = Duration::from_secs(1);

/// Whether a recorded namespace exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existence {
    /// Its name leads to it.
    Named,
    /// It exists, and its name leads to none or another one.
    Unnamed,
    /// It does not exist any more.
    Ended,
}

/// A search for ended namespaces, in the background.
pub(super) struct Search {
    running: JoinHandle<io::Result<()>>,
    found: mpsc::UnboundedReceiver<LastingId>,
}

/// What is known of the namespaces of ports that end with them.
#[derive(Debug, Default)]
pub struct LifetimeStates {
    namespaces: HashMap<LastingId, Existence>,
    /// Why the namespace of a port cannot be recognised, or not be asked for, by key.
    troubles: HashMap<u64, String>,
    /// Ports that ended before the start are to be removed before other changes are made.
    precede_changes: bool,
    /// Number of the record of a port's namespace, by key.
    recorded: HashMap<u64, u64>,
    /// Number of the last record, of the last one in the commit in progress, and of the last one that is stored.
    last: u64,
    committing: u64,
    stored: u64,
}

impl LifetimeStates {
    /// Whether records are not stored yet.
    pub(super) fn are_due(&self) -> bool {
        self.last > self.stored
    }

    /// A commit begins that stores all records.
    pub(super) fn begin_commit(&mut self) {
        self.committing = self.last;
    }

    /// The commit has succeeded.
    pub(super) fn committed(&mut self) {
        self.stored = self.stored.max(self.committing);
    }

    /// Whether the record of a port, by its key, is not stored yet.
    pub(super) fn is_unstored(&self, key: u64) -> bool {
        self.recorded.get(&key).is_some_and(|number| *number > self.stored)
    }

    /// Why it is unknown whether the namespace of a port has ended.
    pub fn trouble(&self, port: &Port) -> Option<&str> {
        self.troubles.get(&port.key).map(String::as_str)
    }

    fn retain(&mut self, known: &Lifetimes, has_port: impl Fn(u64) -> bool) {
        if !self.namespaces.is_empty() {
            let known: HashSet<&LastingId> = known.namespaces().collect();
            self.namespaces.retain(|namespace, _| known.contains(namespace));
        }
        self.troubles.retain(|key, _| has_port(*key));
        self.recorded.retain(|key, _| has_port(*key));
    }
}

/// The namespace of a port as the job that opens its device uses it.
#[derive(Debug, Clone)]
pub(super) enum Bound {
    /// The port does not end with it.
    No,
    /// It has not been recorded yet.
    ToAny,
    /// The recorded one.
    To(LastingId),
}

/// What that job has found out about the namespace. `None`: nothing that is to be recorded.
pub(super) type Recognised = Option<io::Result<LastingId>>;

impl Bound {
    /// Opens a device by `open`, if its name leads to the namespace of the port. `identity`: the namespace that it leads
    /// to. Blocks.
    pub fn open(
        &self,
        settings: &Settings,
        identity: Option<Identity>,
        open: impl FnOnce() -> Result<Opened, OpenError>,
    ) -> (Recognised, Result<Opened, OpenError>) {
        let other = || OpenError::OtherNamespace { at: settings.at() };
        let recognised = match self {
            Bound::No => return (None, open()),
            Bound::ToAny => LastingId::assign(settings.netns()).transpose(),
            Bound::To(namespace) => match namespace.recognise(settings.netns()) {
                // Without a namespace, opening reports that.
                Ok(None) if identity.is_some() => return (None, Err(other())),
                Err(why) => return (None, Err(OpenError::entering(&settings.at(), why))),
                found => found.transpose(),
            },
        };
        let opened = open();
        // The name may lead to another namespace since. An open device keeps its own alive, and so its identity unique.
        // Where that cannot be read, the next identification of the name finds it out.
        if opened.is_ok() && settings.netns().identity().is_ok_and(|now| now != identity) {
            drop(opened);
            device::remove(settings.netns(), std::slice::from_ref(settings)).into_iter().for_each(drop);
            return (None, Err(other()));
        }
        (recognised, opened)
    }
}

/// What the identification of a namespace also finds out for ports that end with it.
#[derive(Debug, Default)]
pub(super) struct LifetimeJob {
    /// Namespaces that may have ended: those of ports whose device is not open.
    pub ask: Vec<LastingId>,
    /// Whether the namespace is to be recorded, for a port whose device is open.
    pub records: bool,
}

/// Its result.
#[derive(Debug, Default)]
pub(super) struct LifetimeReport {
    pub namespaces: Vec<(LastingId, io::Result<Existence>)>,
    pub recorded: Recognised,
}

impl LifetimeJob {
    /// Whether there is nothing to find out.
    pub fn is_empty(&self) -> bool {
        self.ask.is_empty() && !self.records
    }

    /// Finds it out. `identity`: the namespace to which the name leads. Blocks.
    pub fn run(self, netns: &Netns, identity: &io::Result<Option<Identity>>) -> LifetimeReport {
        if self.is_empty() {
            return LifetimeReport::default();
        }
        let namespaces = self.ask.into_iter().map(|namespace| {
            let existence = existence(&namespace, netns);
            (namespace, existence)
        });
        let namespaces = namespaces.collect();
        let recorded = if self.records { LastingId::assign(netns).transpose() } else { None };
        // Meanwhile the name may lead to another one.
        let is_same = matches!((identity, netns.identity()), (Ok(before), Ok(now)) if *before == now);
        LifetimeReport { namespaces, recorded: recorded.filter(|_| is_same) }
    }
}

/// Whether a namespace with this name exists.
fn existence(namespace: &LastingId, netns: &Netns) -> io::Result<Existence> {
    // First: an ended namespace has ended whatever the name leads to, and whether that can be read.
    match namespace.exists() {
        Ok(false) => Ok(Existence::Ended),
        Ok(true) => Ok(if namespace.recognise(netns)?.is_some() { Existence::Named } else { Existence::Unnamed }),
        Err(why) => match namespace.recognise(netns) {
            Ok(Some(_)) => Ok(Existence::Named),
            _ => Err(why),
        },
    }
}

/// The port of an endpoint, and the namespace with which it ends, by name.
fn ends_with<'c>(config: &'c Config, endpoint: &Endpoint) -> Option<(&'c config::Port, &'c str)> {
    let ConfigRef::Port { vm, position, .. } = endpoint.config_ref else { return None };
    let port = &config.vms[vm].ports[position];
    Some((port, port.ends_with()?))
}

/// To which namespace a port is bound.
pub(super) fn bound(config: &Config, known: &Lifetimes, endpoint: &Endpoint) -> Bound {
    match ends_with(config, endpoint) {
        None => Bound::No,
        Some((port, netns)) => known.get(port.id(), netns).map_or(Bound::ToAny, |of| Bound::To(of.clone())),
    }
}

impl Controller {
    /// Begins to find out which recorded namespaces have ended.
    pub(super) fn search_ended(&self) -> Search {
        let recorded: HashSet<LastingId> = self.state.lifetimes().namespaces().cloned().collect();
        let (sender, found) = mpsc::unbounded_channel();
        let search = move || {
            for namespace in recorded {
                // A namespace of which that cannot be told has not ended.
                let has_ended = namespace.exists().is_ok_and(|exists| !exists);
                if has_ended && sender.send(namespace).is_err() {
                    return;
                }
            }
        };
        Search { running: tokio::spawn(background::run(search)), found }
    }

    /// Takes over what has been found. What takes longer is found out later.
    pub(super) async fn take_ended(&mut self, search: Search) {
        let Search { running, mut found } = search;
        let _ = timeout(SEARCH_TIME, running).await;
        while let Ok(namespace) = found.try_recv() {
            self.lifetimes.namespaces.insert(namespace, Existence::Ended);
            self.lifetimes.precede_changes = true;
        }
    }

    /// Removes the ports whose namespaces have ended before the start.
    pub(super) fn end_former_ports(&mut self) {
        if self.lifetimes.precede_changes {
            self.end_ports();
        }
    }

    /// What is to be found out at the identification of each namespace.
    pub(super) fn lifetime_jobs(&self) -> HashMap<Netns, LifetimeJob> {
        let mut jobs: HashMap<Netns, LifetimeJob> = HashMap::new();
        for port in &self.ports {
            let Some(device) = port.endpoint.device() else { continue };
            let is_up = matches!(port.state, State::Up { .. });
            match bound(&self.config, self.state.lifetimes(), &port.endpoint) {
                Bound::ToAny if is_up => jobs.entry(device.netns().clone()).or_default().records = true,
                // An open device keeps the namespace alive.
                Bound::To(namespace) if !is_up && port.closing == 0 => {
                    let ask = &mut jobs.entry(device.netns().clone()).or_default().ask;
                    // The ports of a VM are in few namespaces.
                    if !ask.contains(&namespace) {
                        ask.push(namespace);
                    }
                }
                _ => {}
            }
        }
        jobs
    }

    /// Records what the attempt to open the device of a port has found out.
    pub(super) fn record_namespace(&mut self, index: usize, recognised: Recognised) {
        let port = &self.ports[index];
        let Some((wanted, netns)) = ends_with(&self.config, &port.endpoint) else { return };
        match recognised {
            None => {}
            Some(Ok(namespace)) => {
                self.lifetimes.troubles.remove(&port.key);
                if self.state.record_lifetime(wanted.id(), netns, namespace) {
                    self.lifetimes.last += 1;
                    self.lifetimes.recorded.insert(port.key, self.lifetimes.last);
                }
            }
            Some(Err(why)) => {
                let why =
                    format!("lifetime = \"netns\" has no effect, because the namespace cannot be recognised: {why}");
                self.lifetimes.troubles.insert(port.key, why);
            }
        }
    }

    /// Handles what the identification of a namespace has found out.
    pub(super) fn receive_lifetimes(&mut self, netns: &Netns, identity: Option<Identity>, report: LifetimeReport) {
        let LifetimeReport { namespaces, recorded } = report;
        for index in 0..self.ports.len() {
            let port = &self.ports[index];
            if port.endpoint.device().is_none_or(|device| device.netns() != netns) {
                continue;
            }
            let is_up = matches!(port.state, State::Up { .. });
            match bound(&self.config, self.state.lifetimes(), &port.endpoint) {
                Bound::ToAny if is_up && identity.is_some() && port.namespace == identity => {
                    let recognised = recorded.as_ref().map(|found| match found {
                        Ok(namespace) => Ok(namespace.clone()),
                        Err(why) => Err(io::Error::new(why.kind(), why.to_string())),
                    });
                    self.record_namespace(index, recognised);
                }
                Bound::To(namespace) if !is_up => {
                    let Some((_, existence)) = namespaces.iter().find(|(of, _)| *of == namespace) else { continue };
                    self.receive_existence(index, namespace, existence);
                }
                _ => {}
            }
        }
    }

    fn receive_existence(&mut self, index: usize, namespace: LastingId, existence: &io::Result<Existence>) {
        let (key, netns) = {
            let port = &self.ports[index];
            let Some(device) = port.endpoint.device() else { return };
            (port.key, device.netns().clone())
        };
        let existence = match existence {
            Ok(existence) => *existence,
            Err(why) => {
                let why = format!("it cannot be told whether its network namespace has ended, and it stays: {why}");
                self.lifetimes.troubles.insert(key, why);
                return;
            }
        };
        self.lifetimes.troubles.remove(&key);
        self.lifetimes.namespaces.insert(namespace, existence);
        let reason = match existence {
            Existence::Named => return,
            Existence::Unnamed => Reason::new(
                ReasonCode::NamespaceUnnamed,
                format!(
                    "its network namespace still exists, but {netns} does not lead to it any more: the name was removed or \
                     given to another one, or is not visible to the switch in its mount namespace; the port ends with the \
                     namespace"
                ),
            ),
            Existence::Ended => {
                let why = "its network namespace has ended; the port is removed as soon as a change can be made";
                Reason::new(ReasonCode::NamespaceEnded, why)
            }
        };
        let port = &self.ports[index];
        if matches!(&port.state, State::Down { reason: known } if known.code != reason.code) {
            self.mark_down(index, reason);
        }
    }

    /// Removes ports whose namespaces have ended, all that are known by now in one change.
    pub(super) fn end_ports(&mut self) {
        let has_ended = |namespace: &LastingId| self.lifetimes.namespaces.get(namespace) == Some(&Existence::Ended);
        let may_change = !self.is_busy()
            && (self.waiting.is_empty() || self.lifetimes.precede_changes)
            && self.unconfirmed.is_none()
            && self.store_failure.is_none()
            && self.state.check().is_ok();
        if !may_change || !self.lifetimes.namespaces.values().any(|existence| *existence == Existence::Ended) {
            return;
        }
        let ended = self.state.lifetimes().ended(&self.config, has_ended, AT_ONCE);
        self.lifetimes.precede_changes &= ended.len() == AT_ONCE;
        if ended.is_empty() {
            return;
        }
        // It only removes ports.
        let Ok((config, result)) = self.outcome(&Change::EndPorts(ended)) else { return };
        let by = Some(Author::of_switch());
        let entry = Entry::between(&self.config, &config, &result, Source::Netns, by.clone());
        let stays: HashSet<&str> = config.ports().map(|(_, port)| port.id()).collect();
        let gone: Vec<(&Vm, &config::Port)> =
            self.config.ports().filter(|(_, port)| !stays.contains(port.id())).collect();
        let text = format!("network namespaces have ended: {}", summary(&result.changes));
        let event = Event {
            by,
            vm: same(gone.iter().map(|(vm, _)| &vm.id)),
            network: same(gone.iter().map(|(_, port)| &port.network_id)),
            ports: gone.iter().map(|(_, port)| port.port_id.clone()).collect(),
            ..self.event(EventKind::Config, text)
        };
        let ended: HashSet<String> = event.ports.iter().cloned().collect();
        let (event, generation) = (event.bounded(), result.generation);
        let mut orphans = self.orphans_after(&config, &config);
        // These netdevs have ended with their namespaces.
        orphans.retain(|orphan| !ended.contains(&orphan.port_id));
        let apply = Apply { ended, ..Apply::one(result, None) };
        let then = AfterCommit::Apply { config: config.clone().into(), apply: apply.into() };
        let record = Record { events: vec![event], made: vec![entry.into()], last_applied: None };
        self.commit_change(config, generation, orphans, record, then);
    }

    /// Emits that a port has ended with its namespace.
    pub(super) fn emit_ended(&mut self, before: &Config, port: &Port) {
        let names = port.endpoint.labels(before);
        let why = "its network namespace has ended; the port is removed";
        let event = Event { by: Some(Author::of_switch()), ..self.event_for(&names, EventKind::PortEnded, why) };
        self.emit(false, event);
    }

    /// Follows a change of the configuration, or its confirmation: forgets the namespaces of ports that have another one or
    /// do not end with theirs.
    pub(super) fn follow_lifetimes(&mut self) {
        let previous = self.unconfirmed.as_ref().map(|unconfirmed| &unconfirmed.previous);
        let configs: Vec<&Config> = std::iter::once(&self.config).chain(previous).collect();
        self.state.retain_lifetimes(&configs);
        self.lifetimes.retain(self.state.lifetimes(), |key| self.port_index.contains_key(&key));
        for index in 0..self.ports.len() {
            let port = &self.ports[index];
            let bound = bound(&self.config, self.state.lifetimes(), &port.endpoint);
            if matches!((bound, &port.state), (Bound::ToAny, State::Up { .. })) {
                self.identify_soon(index);
            }
        }
    }
}

/// The value, if all are the same.
fn same<'v>(mut values: impl Iterator<Item = &'v String>) -> Option<String> {
    let first = values.next()?;
    values.all(|value| value == first).then(|| first.clone())
}
