//! The control loop: owns the desired state and reconciles devices and workers with it. Opens devices, hands their
//! queues to workers, reopens failed devices, applies changes and answers requests. No other module changes this state.
//!
//! `ports` contains ports and uplinks. One is *up* while a worker polls its device; it is *down* with a reason:
//! the namespace or netdev is missing, another process uses it, or opening failed. The controller retries without limit.
//!
//! The order of steps keeps forwarding valid. Opening: all workers get a `ForwardingConfig` with the device, then one
//! worker gets the queue. Closing: all workers get a `ForwardingConfig` without the device, then the worker returns the
//! queue, which is dropped here.
//!
//! `devices` opens and closes devices and takes back those that fail; `watcher` receives changes of netdevs, and
//! `netdevs` acts on those that need no reopening; `namespaces` notices deleted and replaced namespaces; `backoff`
//! times attempts.
//!
//! `commit` writes the state in the background, so that a blocked disk delays changes only.
//!
//! `apply` performs each change. The start applies the configuration to an empty switch.

mod announce;
pub mod announcements;
mod apply;
pub mod backoff;
mod commit;
mod devices;
pub mod drift;
pub mod jobs;
mod mitigation;
mod namespaces;
mod netdevs;
mod pins;
mod policy;
pub(super) mod port;
mod results;
mod subports;
#[cfg(test)]
mod tests;
mod watcher;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use self::announce::AnnounceState;
use self::apply::{PendingApply, UnconfirmedChange};
use self::commit::{Commit, StoreFailure, last_event};
use self::mitigation::Mitigation;
use self::namespaces::Namespaces;
use self::port::{Port, State};
use self::results::{Apply, DeviceEvent, Recovered};
use self::watcher::NetdevWatchers;
use crate::control::api::handle::{Flush, Request};
use crate::control::compile::activation::Activations;
use crate::control::compile::endpoints::{self, Endpoint, Labels, TooMany};
use crate::control::compile::failover::Groups;
use crate::control::compile::ids::IdAllocator;
use crate::control::compile::policers::Policers;
use crate::control::config::Config;
use crate::control::desired::change::ChangeError;
use crate::control::desired::orphans::{self, Orphans};
use crate::control::loops::alarm::Alarm;
use crate::control::loops::schedule::TICK;
use crate::control::reconcile::backoff::Backoff;
use crate::control::reconcile::drift::Drift;
use crate::control::reconcile::jobs::Jobs;
use crate::control::state::event_log::EventLog;
use crate::control::state::events::{Event, EventKind};
use crate::control::state::store::CHUNK;
use crate::control::state::{DISK_AT_START, StateStore};
use crate::control::status::StatusBuilder;
use crate::control::status::fdb::FdbIndex;
use crate::control::workers::WorkerHandles;
use crate::frame::Pool;
use crate::switch::{ForwardingConfig, HashKey, PortId};
use crate::sys::netns::Netns;
use crate::time::{self, MonoTime};
use crate::wire::ProbeKey;
use crate::worker::{self, DeviceGone, EventReceiver};

/// Interval of the checks of ports, netdevs and namespaces.
const RETRY: Duration = Duration::from_millis(250);

/// Timeout of one disk access that a reply waits for.
const DISK: Duration = Duration::from_secs(1);

/// FDB entries restored before the first port opens, which takes a few ms.
const FIRST_STATIONS: usize = 1000;

/// Interval at which the FDB is stored, so that it survives a kill.
const SAVE_STATIONS: Duration = Duration::from_secs(60);

/// Timeout of a change in progress after a stop request.
const FINISH_TIMEOUT: Duration = Duration::from_secs(4);

/// Timeout of storing the state at exit.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(4);

/// Timeout at exit of each step: stopping workers, closing devices, closing the store.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of past events in a reply.
const MAX_EVENTS: usize = 10_000;

/// Parameters of a new controller.
#[derive(Debug)]
pub struct Startup {
    /// The cores of the workers.
    pub cores: Vec<usize>,
    /// Hash key of the FDB.
    pub hash_key: HashKey,
    /// The workers.
    pub workers: WorkerHandles,
    /// Device failures that workers report.
    pub notices: mpsc::Receiver<DeviceGone>,
    /// Events that workers detect in guest traffic.
    pub events: EventReceiver,
    /// Key that authenticates loop probes.
    pub probe_key: ProbeKey,
    /// Persists changes.
    pub state: StateStore,
    /// Frame slots of the workers.
    pub pool: &'static Pool,
}

/// The owner of the desired state.
pub struct Controller {
    config: Config,
    cores: Vec<usize>,
    hash_key: HashKey,
    workers: WorkerHandles,
    state: StateStore,
    pool: &'static Pool,
    /// Netdevs whose removal is pending or has failed.
    orphans: Orphans,
    /// The stored list contains orphans that no longer exist.
    orphans_changed: bool,
    event_log: EventLog,
    /// Start of a store failure, and time of the next retry.
    store_failure: Option<StoreFailure>,
    ports: Vec<Port>,
    /// Index into `ports`, by port key.
    port_index: HashMap<u64, usize>,
    ids: IdAllocator,
    /// Active uplink of each group.
    groups: Groups,
    /// Allocated storm policers.
    policers: Policers,
    /// Detection and mitigation of loops and storms.
    mitigation: Mitigation,
    /// Active ports, and pins that have yielded.
    activations: Activations,
    /// Announcements of local stations.
    announcements: AnnounceState,
    /// Watchers of link changes.
    watchers: NetdevWatchers,
    /// Known network namespaces.
    namespaces: Namespaces,
    /// Blocking work on separate threads.
    jobs: Jobs,
    /// Time of the next attempt to open a port that is down.
    next_attempt: Option<MonoTime>,
    forwarding: Arc<ForwardingConfig>,
    notices: mpsc::Receiver<DeviceGone>,
    device_events: mpsc::UnboundedReceiver<DeviceEvent>,
    device_event_sender: mpsc::UnboundedSender<DeviceEvent>,
    /// Commit in progress.
    commit: Option<Commit>,
    /// Change being applied.
    applying: Option<Apply>,
    /// Changes that are applied except for ports still being opened.
    pending: Vec<PendingApply>,
    /// Requests queued behind the change in progress.
    waiting: VecDeque<Request>,
    /// Provisional change, reverted unless confirmed in time.
    unconfirmed: Option<UnconfirmedChange>,
    /// The initial configuration has been applied.
    is_started: bool,
    /// State that became usable after the start.
    recovered: Option<Recovered>,
    /// A retry of state that was unusable at the start is running.
    retries_state: bool,
    /// Task that stores the FDB or restores it.
    saving_stations: Option<JoinHandle<()>>,
    /// Task that verifies the state.
    verification: Option<JoinHandle<()>>,
    next_key: u64,
    /// Start time of the counters.
    since: SystemTime,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("ports", &self.ports.len()).finish_non_exhaustive()
    }
}

impl Controller {
    /// A controller without ports or configuration.
    pub fn new(beginning: Startup) -> Controller {
        let Startup { cores, hash_key, workers, notices, events, probe_key, state: store, pool } = beginning;
        let (device_event_sender, device_events) = mpsc::unbounded_channel();
        Controller {
            config: Config::default(),
            cores,
            hash_key,
            policers: Policers::new(workers.len()),
            workers,
            orphans: store.orphans(),
            orphans_changed: false,
            state: store,
            pool,
            event_log: EventLog::default(),
            store_failure: None,
            recovered: None,
            retries_state: false,
            is_started: false,
            ports: Vec::new(),
            port_index: HashMap::new(),
            ids: IdAllocator::default(),
            groups: Groups::default(),
            mitigation: Mitigation::new(probe_key, events),
            activations: Activations::default(),
            announcements: AnnounceState::default(),
            watchers: NetdevWatchers::default(),
            namespaces: Namespaces::default(),
            jobs: Jobs::default(),
            next_attempt: None,
            forwarding: Arc::new(ForwardingConfig::none(hash_key)),
            notices,
            device_events,
            device_event_sender,
            commit: None,
            applying: None,
            pending: Vec::new(),
            waiting: VecDeque::new(),
            unconfirmed: None,
            saving_stations: None,
            verification: None,
            next_key: 0,
            since: time::wall(),
        }
    }

    /// Applies the initial configuration. A port that fails to open is down and is retried.
    ///
    /// # Errors
    /// The configuration exceeds the capacity of the switch.
    pub async fn begin(&mut self, config: Config) -> Result<(), TooMany> {
        endpoints::check_capacity(&config)?;
        self.config.switch = config.switch.clone();
        self.event_log.begin(last_event(&self.state).await, self.since);
        self.emit_state_at_start();
        self.append_start_events();
        let orphans = self.remove_conflicting_orphans(&config).await;
        let stored = timeout(DISK_AT_START, self.state.take_loops()).await.unwrap_or_else(|_| {
            let seconds = DISK_AT_START.as_secs();
            warn!("what was done about loops before is not known: the disk does not answer within {seconds} s");
            serde_json::Value::Null
        });
        self.resume_activations(&stored["activations"]);
        self.mitigation.load(stored);
        self.apply(config, Apply::default()).await;
        self.commit_events();
        // Restores FDB entries while devices open, so that the first frames to known stations are not flooded. Ports
        // wait for the first part only.
        let more = self.take_first_stations().await;
        let mut retry = tokio::time::interval(RETRY);
        while self.applying.is_some() || !self.pending.is_empty() {
            let next = self.next_attempt.map(|at| at.since(time::now()));
            tokio::select! {
                Some(outcome) = self.device_events.recv() => self.receive(outcome).await,
                () = sleep(next.unwrap_or_default()), if next.is_some() => self.try_down_ports(),
                _ = retry.tick() => self.check_ports().await,
            }
        }
        // The remaining orphans conflict with no port.
        orphans.into_iter().for_each(|orphan| self.remove_orphan(orphan));
        self.verify_state(more);
        self.is_started = true;
        Ok(())
    }

    /// Restores the first `FIRST_STATIONS` stored FDB entries, unless the disk hangs. Returns the cursor of the next page,
    /// if any.
    async fn take_first_stations(&self) -> Option<i64> {
        let Ok((stored, more)) = timeout(DISK, self.state.take_stations(0, FIRST_STATIONS)).await else {
            return Some(0);
        };
        self.workers.learn(&self.fdb_index().resolve_stored(stored, time::now())).await;
        more
    }

    /// Restores the FDB entries from cursor `more` on, then verifies the state. Blocks storing the FDB until all entries
    /// are restored, because the stored set is complete.
    fn verify_state(&mut self, mut more: Option<i64>) {
        let (store, workers, directory) = (self.state.clone(), self.workers.clone(), self.fdb_index());
        let (done, learned) = oneshot::channel::<()>();
        self.saving_stations = Some(tokio::spawn(async move {
            while let Some(from) = more {
                let (stored, next) = store.take_stations(from, CHUNK).await;
                workers.learn(&directory.resolve_stored(stored, time::now())).await;
                more = next;
            }
            drop(done);
        }));
        let store = self.state.clone();
        self.verification = Some(tokio::spawn(async move {
            let _ = learned.await;
            store.verify().await;
        }));
    }

    /// Reconciles and answers requests until `stop` is ready.
    pub async fn run(&mut self, mut requests: mpsc::Receiver<Request>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut keep = tokio::time::interval(SAVE_STATIONS);
        keep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        keep.reset();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leaving: Option<MonoTime> = None;
        loop {
            // Finishes and answers the change in progress within FINISH_TIMEOUT.
            if let Some(until) = leaving {
                if !self.has_change_in_progress() {
                    return;
                }
                if time::now() >= until {
                    return self.answer_unfinished();
                }
            }
            self.recover().await;
            while leaving.is_none()
                && !self.is_busy()
                && let Some(request) = self.waiting.pop_front()
            {
                self.answer(request).await;
            }
            self.commit_events();
            // Reverts a change only after it is applied, and not while its confirmation is being committed.
            let is_being_made = self.applying.is_some() || self.pending.iter().any(|of| of.to_be_confirmed);
            let may_go_back = !is_being_made && self.commit != Some(Commit::Change);
            let unconfirmed = self.unconfirmed.as_ref().filter(|_| may_go_back);
            let time_left = unconfirmed.map(|unconfirmed| unconfirmed.deadline.since(time::now()));
            let announced = self.announcements.due().map(|due| due.since(time::now()));
            let next = self.next_attempt.map(|at| at.since(time::now()));
            tokio::select! {
                () = &mut stop, if leaving.is_none() => {
                    leaving = Some(time::now() + FINISH_TIMEOUT);
                    // Dropping the reply channels reports the stop to waiting clients.
                    self.waiting.clear();
                }
                Some(request) = requests.recv() => {
                    if leaving.is_none() || !request.is_change() {
                        self.answer(request).await;
                    }
                }
                Some(outcome) = self.device_events.recv() => self.receive(outcome).await,
                Some(notice) = self.notices.recv() => self.handle_device_gone(notice).await,
                Some(finding) = self.mitigation.next() => self.handle_event(finding).await,
                _ = tick.tick() => self.mitigate().await,
                Some(event) = self.watchers.next() => self.handle_link_event(event),
                Some(found) = self.announcements.next() => self.announce_learned(found),
                () = sleep(announced.unwrap_or_default()), if announced.is_some() => self.send_announcements().await,
                names = self.namespaces.next() => self.handle_name_changes(names),
                () = sleep(next.unwrap_or_default()), if next.is_some() => self.try_down_ports(),
                () = sleep(time_left.unwrap_or_default()), if time_left.is_some() => self.revert().await,
                _ = retry.tick() => {
                    self.check_ports().await;
                    self.check_netdevs();
                    self.fail_over().await;
                    self.check_mac_limits();
                    self.commit_orphans();
                    self.reopen_state();
                }
                _ = keep.tick() => {
                    self.save_stations();
                    self.mark_loops_dirty();
                }
            }
        }
    }

    /// Checks namespaces and links, and continues opening ports.
    async fn check_ports(&mut self) {
        self.flush_limited_events(false);
        self.reopen_behind_returned().await;
        self.poll_namespaces();
        self.watch_netdevs_in_use();
        self.note_overdue();
        self.advance().await;
        self.try_down_ports();
        self.answer_pending();
    }

    /// Stores the state and closes all devices. The kernel has removed our non-persistent netdevs on return, unless
    /// closing exceeds `CLOSE_TIMEOUT`.
    pub async fn close_all(mut self) {
        self.flush_limited_events(true);
        // The next start verifies the state again.
        if let Some(verification) = self.verification.take() {
            verification.abort();
            let _ = verification.await;
        }
        // A controller that has not started has nothing new to store.
        let keep = async {
            // A save in progress lacks entries learned after it began.
            self.finish_keeping_stations().await;
            if self.is_started {
                self.save_stations();
                self.mark_loops_dirty();
            }
            self.finish_persisting_loops().await;
            self.finish_keeping_stations().await;
            self.finish_commits().await;
        };
        if timeout(PERSIST_TIMEOUT, keep).await.is_err() {
            warn!("what is known has not been kept within {} s", PERSIST_TIMEOUT.as_secs());
        }
        // Stopped workers return an incomplete FDB, which must not replace the stored one.
        if let Some(persisted) = self.saving_stations.take() {
            persisted.abort();
            // It holds the store.
            let _ = persisted.await;
        }
        // While frames are still forwarded: the more stations were stored, the longer this takes.
        let _ = timeout(CLOSE_TIMEOUT, self.state.close()).await;
        let queues = timeout(CLOSE_TIMEOUT, self.workers.stop()).await;
        // Closing a tap blocks until the kernel removes the netdev. A driver that blocks longer is abandoned until the
        // process exits.
        let (done, closed) = oneshot::channel();
        self.jobs.run(&Netns::Host, move || {
            drop(queues);
            let _ = done.send(());
        });
        if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            warn!("devices have not been closed within {} s", CLOSE_TIMEOUT.as_secs());
        }
    }

    fn new_port(&mut self, endpoint: Endpoint) -> Port {
        self.next_key += 1;
        let state = match endpoint.parent() {
            Some(_) => State::Tagged { reported: None },
            None => State::Down { reason: String::new() },
        };
        Port {
            endpoint,
            state,
            counters: (0..self.workers.len()).map(|_| Arc::default()).collect(),
            key: self.next_key,
            reported_down: false,
            made: None,
            namespace: None,
            netdev: None,
            egress: None,
            observed: None,
            refused_before: 0,
            has_refused: false,
            drift: Drift::default(),
            min_read: 0,
            open_deferred: true,
            may_lose_tags: false,
            closing: 0,
            retry: Backoff::default(),
            attempt: None,
            is_overdue: false,
            in_use_since: None,
            opened: MonoTime::default(),
            mac_limit_alarm: Alarm::default(),
        }
    }

    /// An event with the current time.
    fn event(&self, kind: EventKind, text: String) -> Event {
        Event { text, ..Event::new(kind, time::wall()) }
    }

    /// Appends an event of the port or uplink at `index` to the event log.
    fn emit_for(&mut self, kind: EventKind, index: usize, text: &str) -> bool {
        let event = self.event_for(&self.ports[index].endpoint.labels(&self.config), kind, text);
        self.event_log.append(event, time::now())
    }

    /// Appends an event to the event log and logs it at level warn or info.
    fn emit(&mut self, is_warning: bool, event: Event) {
        let logged = event.clone();
        if self.event_log.append(event, time::now()) {
            log_event(is_warning, &logged);
        }
    }

    /// Emits the last event of each rate-limited source.
    fn flush_limited_events(&mut self, all: bool) {
        for event in self.event_log.flush_limited(time::now(), all) {
            log_event(true, &event);
        }
    }

    /// An event of the port or uplink with these labels, with the current time.
    fn event_for(&self, names: &Labels<'_>, kind: EventKind, text: &str) -> Event {
        let (vm, network) = (names.vm.map(str::to_owned), names.network.map(str::to_owned));
        Event { vm, network, ports: vec![names.id.to_owned()], ..self.event(kind, text.to_owned()) }
    }

    /// Names for FDB entries.
    fn fdb_index(&self) -> FdbIndex {
        FdbIndex::of(&self.config, &self.ports, &self.ids, &self.groups)
    }

    /// Netdevs orphaned if the process dies while applying `next` and restarts with `stored`.
    fn orphans_after(&self, next: &Config, stored: &Config) -> Orphans {
        let mut orphans = self.orphans.clone();
        orphans.append(&mut orphans::netdevs(&self.config));
        orphans.append(&mut orphans::netdevs(next));
        &orphans - &orphans::netdevs(stored)
    }

    /// Starts a task that stores the FDB, unless one is running.
    fn save_stations(&mut self) {
        let under_way = self.saving_stations.as_ref().is_some_and(|persisted| !persisted.is_finished());
        let (Some(store), false) = (self.state.store().cloned(), under_way) else { return };
        let (workers, directory) = (self.workers.clone(), self.fdb_index());
        self.saving_stations = Some(tokio::spawn(async move {
            // The save replaces the stored FDB, so it requires the entries of all workers.
            let Some(stations) = workers.stations().await else { return };
            let stored = directory.to_stored(stations, time::now());
            if let Err(why) = store.save_stations(stored).await {
                warn!("the learned stations have not been kept: {why}");
            }
        }));
    }

    /// Waits for the task that stores or restores the FDB.
    async fn finish_keeping_stations(&mut self) {
        if let Some(persisted) = &mut self.saving_stations {
            let _ = persisted.await;
            self.saving_stations = None;
        }
    }

    async fn answer(&mut self, request: Request) {
        // The client has disconnected: drops its request.
        if request.is_abandoned() {
            return;
        }
        match request {
            request if request.is_change() && self.is_busy() => self.waiting.push_back(request),
            request if request.is_change() && self.state.check().is_err() => {
                // The cause of the failure may have gone since the last retry.
                let mut changes = std::mem::take(&mut self.waiting);
                changes.push_front(request);
                self.retry_state(changes);
            }
            request if request.is_change() => self.apply_change(request).await,
            Request::Diff(change, reply) => drop(reply.send(self.outcome(&change).map(|(_, changed)| changed))),
            Request::Events(which, reply) => self.read_events(which, reply),
            Request::Release(port, reply) => {
                let released = self.release(&port).await;
                let _ = reply.send(released);
            }
            Request::Flush(flush, reply) => match self.resolve_flush(&flush) {
                Err(error) => drop(reply.send(Err(error))),
                Ok(flush) => {
                    let workers = self.workers.clone();
                    tokio::spawn(async move {
                        let mut flushed = 0u64;
                        for flush in flush {
                            flushed += u64::from(workers.flush(flush).await);
                        }
                        let _ = reply.send(Ok(flushed));
                    });
                }
            },
            Request::Fdb(reply) => {
                // Runs in a task, because a large FDB would delay other requests.
                let (workers, config) = (self.workers.clone(), self.forwarding.clone());
                let directory = self.fdb_index();
                tokio::spawn(async move {
                    // A dropped reply channel tells the client to retry.
                    let Some(learned) = workers.stations().await else { return };
                    // Naming and sorting a million entries takes seconds.
                    let views = move || drop(reply.send(directory.responses(&config, learned, time::now())));
                    let _ = spawn_blocking(views).await;
                });
            }
            request => self.read(request).await,
        }
    }

    /// Starts a change. The caller ensures that no other change is in progress.
    async fn apply_change(&mut self, request: Request) {
        match request {
            Request::Change(change, confirm, reply) => self.change(change, confirm, reply).await,
            Request::Confirm(reply) => self.confirm(reply),
            Request::Reload(file, reply) => self.reload(*file, reply),
            // Not changes.
            _ => {}
        }
    }

    async fn read(&self, request: Request) {
        let report = StatusBuilder {
            config: &self.config,
            ports: &self.ports,
            ids: &self.ids,
            groups: &self.groups,
            cores: &self.cores,
            workers: &self.workers,
            quarantined: self.mitigation.quarantined(),
            activations: &self.activations,
            since: self.since,
            pool: self.pool,
        };
        match request {
            Request::Ports(reply) => drop(reply.send(report.ports())),
            Request::Uplinks(reply) => drop(reply.send(report.uplinks())),
            Request::Vms(reply) => drop(reply.send(report.vms())),
            Request::Networks(reply) => drop(reply.send(report.networks().await)),
            Request::Workers(reply) => drop(reply.send(report.workers())),
            Request::Drops(reply) => drop(reply.send(report.drops())),
            Request::Loops(reply) => drop(reply.send(self.mitigation.loops())),
            Request::Storms(reply) => drop(reply.send(self.storms())),
            Request::LoopCounts(reply) => drop(reply.send(self.mitigation.counts(&self.ports))),
            Request::Audit(reply) => drop(reply.send(report.audit().await)),
            Request::Config(reply) => drop(reply.send(report.config())),
            // Handled by `answer`.
            Request::Fdb(_)
            | Request::Change(..)
            | Request::Confirm(_)
            | Request::Reload(..)
            | Request::Diff(..)
            | Request::Events(..)
            | Request::Release(..)
            | Request::Flush(..) => {}
        }
    }

    /// Resolves names to worker flushes: one for a port, one per network for an uplink.
    ///
    /// # Errors
    /// The network or port is unknown.
    fn resolve_flush(&self, flush: &Flush) -> Result<Vec<worker::Flush>, ChangeError> {
        let network = flush
            .network
            .as_deref()
            .map(|id| self.ids.network(id).ok_or_else(|| ChangeError::unknown_network(&self.config, id)));
        let wanted = worker::Flush { network: network.transpose()?, port_index: None, mac: flush.mac, cursor: 0 };
        let Some(id) = flush.port.as_deref() else { return Ok(vec![wanted]) };
        let after = |place: PortId| worker::Flush { port_index: Some(place.index()), ..wanted };
        if let Some(port) = self.ids.port(id) {
            return Ok(vec![after(port)]);
        }
        let uplink = self.config.uplinks.iter().find(|uplink| uplink.id == id);
        let uplink = uplink.ok_or_else(|| ChangeError::unknown_port(&self.config, id))?;
        let tagged = uplink.networks.iter().filter_map(|of| self.ids.uplink_vlan(&uplink.group_name(), &of.network_id));
        Ok(tagged.map(after).collect())
    }
}

fn log_event(is_warning: bool, event: &Event) {
    let Event { kind, vm, network, ports, text, .. } = event;
    let (kind, port) = (kind.name(), ports.first().filter(|_| ports.len() == 1));
    if is_warning {
        warn!(vm, network, port, "{kind}: {text}");
    } else {
        info!(vm, network, port, "{kind}: {text}");
    }
}
