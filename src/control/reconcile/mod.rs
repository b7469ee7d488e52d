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
//! `devices` opens devices and takes back those that fail; `closing` closes them and removes netdevs; `watcher` receives
//! changes of netdevs, and `netdevs` acts on those that need no reopening; `namespaces` notices deleted and replaced
//! namespaces; `lifetimes` removes ports that end with theirs; `backoff` times attempts.
//!
//! `commit` writes the state in the background, so that a blocked disk delays changes only.
//!
//! `port_state` marks ports up and down; `failover` chooses uplinks.
//!
//! `requests` answers requests; `emit` emits events, `readers` reads them; `stations` stores and restores the FDB.
//!
//! `group` admits changes and has them committed together, `changes` those that are made alone; `apply` applies them. `startup`
//! applies the configuration to an empty switch; `shutdown` ends the switch.

mod announce;
pub mod announcements;
mod apply;
pub mod backoff;
mod changes;
mod closing;
mod commit;
mod devices;
pub mod drift;
mod emit;
mod failover;
mod group;
pub mod jobs;
pub mod lifetimes;
mod mitigation;
mod namespaces;
mod netdevs;
mod netns_files;
mod pins;
mod places;
mod policy;
pub(super) mod port;
mod port_state;
mod readers;
mod requests;
mod results;
mod shutdown;
mod startup;
mod stations;
mod subports;
#[cfg(test)]
mod tests;
mod watcher;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::announce::AnnounceState;
use self::apply::PendingApply;
use self::changes::UnconfirmedChange;
use self::commit::{Commit, StoreFailure};
use self::lifetimes::LifetimeStates;
use self::mitigation::Mitigation;
use self::namespaces::Namespaces;
use self::netns_files::NetnsFiles;
use self::port::{Port, State};
use self::results::{Apply, DeviceEvent, OpenResult, Recovered};
pub use self::startup::{ProbeIdentity, Startup};
use self::watcher::NetdevWatchers;
use crate::control::api::handle::Request;
use crate::control::compile::activation::Activations;
use crate::control::compile::endpoints::Endpoint;
use crate::control::compile::failover::Groups;
use crate::control::compile::ids::IdAllocator;
use crate::control::compile::policers::Policers;
use crate::control::config::Config;
use crate::control::descriptors::Descriptors;
use crate::control::desired::orphans::{self, Orphans};
use crate::control::handover::Handover;
use crate::control::health::{Health, StoreHealth};
use crate::control::loops::alarm::Alarm;
use crate::control::loops::schedule::TICK;
use crate::control::reason::Reason;
use crate::control::reconcile::backoff::Backoff;
use crate::control::reconcile::drift::Drift;
use crate::control::reconcile::jobs::Jobs;
use crate::control::state::StateStore;
use crate::control::state::event_log::EventLog;
use crate::control::status::fdb::FdbIndex;
use crate::control::workers::WorkerHandles;
use crate::frame::Pool;
use crate::switch::{ForwardingConfig, HashKey};
use crate::telemetry::PortCounters;
use crate::time::{self, MonoTime};
use crate::worker::DeviceGone;

/// Interval of the checks of ports, netdevs and namespaces.
const RETRY: Duration = Duration::from_millis(250);

/// Timeout of one disk access that a reply waits for.
const DISK: Duration = Duration::from_secs(1);

/// Interval at which the FDB is stored, so that it survives a kill.
const SAVE_STATIONS: Duration = Duration::from_secs(60);

/// Timeout of a change in progress after a stop request.
pub const FINISH_TIMEOUT: Duration = Duration::from_secs(4);

/// The owner of the desired state.
pub struct Controller {
    config: Config,
    cores: Vec<usize>,
    hash_key: HashKey,
    workers: WorkerHandles,
    state: StateStore,
    /// What can be read while the controller is busy.
    health: Health,
    pool: &'static Pool,
    /// Descriptors of devices that the service manager keeps.
    descriptors: Descriptors,
    /// Counters of the last run that no port has taken.
    handover: Handover,
    /// Path to hand counters over to the next run; `None`: they are not.
    handover_path: Option<PathBuf>,
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
    /// Namespaces of ports that end with them.
    lifetimes: LifetimeStates,
    /// Files of namespaces that clients have passed.
    netns_files: NetnsFiles,
    /// Blocking work on separate threads.
    jobs: Jobs,
    /// Time of the next attempt to open a port that is down.
    next_attempt: Option<MonoTime>,
    /// Results of attempts that wait to be applied together.
    opened: Vec<OpenResult>,
    /// When these are applied while other attempts are in progress.
    next_opened: MonoTime,
    forwarding: Arc<ForwardingConfig>,
    notices: mpsc::Receiver<DeviceGone>,
    device_events: mpsc::UnboundedReceiver<DeviceEvent>,
    device_event_sender: mpsc::UnboundedSender<DeviceEvent>,
    /// Commit in progress.
    commit: Option<Commit>,
    /// Its start.
    commit_begun: MonoTime,
    /// Change being applied.
    applying: Option<Apply>,
    /// When workers get its configuration at the latest, if they do not have it yet.
    config_due: Option<MonoTime>,
    /// Changes that are applied except for ports still being opened.
    pending: Vec<PendingApply>,
    /// Requests queued behind the change in progress.
    waiting: VecDeque<Request>,
    /// Maximum time of computing a group of changes.
    max_group_time: Duration,
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
    /// Reconciles and answers requests until `stop` is ready.
    pub async fn run(&mut self, mut requests: mpsc::Receiver<Request>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut save = tokio::time::interval(SAVE_STATIONS);
        save.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        save.reset();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut finish_by: Option<MonoTime> = None;
        let mut checked = time::now();
        loop {
            self.health.measures().waiting_changes.set(self.waiting.len());
            // Finishes and answers the change in progress within FINISH_TIMEOUT.
            if let Some(until) = finish_by {
                if !self.has_change_in_progress() {
                    return;
                }
                if time::now() >= until {
                    return self.answer_unfinished();
                }
            }
            self.recover().await;
            if finish_by.is_none() {
                self.end_former_ports();
            }
            while finish_by.is_none()
                && !self.is_busy()
                && let Some(request) = self.waiting.pop_front()
            {
                self.answer(request).await;
            }
            self.commit_events();
            // Reverts a change only after it is applied, and not while its confirmation is being committed.
            let is_applying = self.applying.is_some() || self.pending.iter().any(|of| of.to_be_confirmed);
            let may_revert = !is_applying && self.commit != Some(Commit::Change);
            let unconfirmed = self.unconfirmed.as_ref().filter(|_| may_revert);
            let time_left = unconfirmed.map(|unconfirmed| unconfirmed.deadline.since(time::now()));
            let announced = self.announcements.due().map(|due| due.since(time::now()));
            let next = self.next_attempt.map(|at| at.since(time::now()));
            let opened = self.opened_due();
            let config_due = self.config_due.map(|due| due.since(time::now()));
            tokio::select! {
                () = &mut stop, if finish_by.is_none() => {
                    finish_by = Some(time::now() + FINISH_TIMEOUT);
                    // Dropping the reply channels reports the stop to waiting clients.
                    self.waiting.clear();
                }
                Some(request) = requests.recv() => {
                    if finish_by.is_none() || !request.is_change() {
                        self.answer(request).await;
                    }
                }
                Some(outcome) = self.device_events.recv() => self.receive(outcome).await,
                () = sleep(opened.unwrap_or_default()), if opened.is_some() => self.receive_opened().await,
                () = sleep(config_due.unwrap_or_default()), if config_due.is_some() => self.receive_opened().await,
                Some(notice) = self.notices.recv() => self.handle_device_gone(notice).await,
                Some(event) = self.mitigation.next() => self.handle_event(event).await,
                _ = tick.tick() => self.mitigate().await,
                Some(event) = self.watchers.next() => self.handle_link_event(event),
                Some(found) = self.announcements.next() => self.announce_learned(found),
                () = sleep(announced.unwrap_or_default()), if announced.is_some() => self.send_announcements().await,
                names = self.namespaces.next() => self.handle_name_changes(names),
                () = sleep(next.unwrap_or_default()), if next.is_some() => self.try_down_ports(),
                () = sleep(time_left.unwrap_or_default()), if time_left.is_some() => self.revert().await,
                _ = retry.tick() => {
                    self.measure(std::mem::replace(&mut checked, time::now()));
                    self.check_ports().await;
                    self.check_netdevs();
                    self.fail_over().await;
                    self.check_mac_limits();
                    self.commit_orphans();
                    self.release_other_descriptors();
                    self.reopen_state();
                    self.remove_unused_files();
                    if finish_by.is_none() {
                        self.end_ports();
                    }
                }
                _ = save.tick() => {
                    self.save_stations();
                    self.mark_loops_dirty();
                }
            }
        }
    }

    /// Measures the control loop at a periodic check. The last one was at `checked`.
    fn measure(&self, checked: MonoTime) {
        let measures = self.health.measures();
        measures.latency.observe(time::now().since(checked).saturating_sub(RETRY));
        let is_well = |port: &&Port| {
            matches!(port.state, State::Up { .. } | State::Tagged { .. })
                || !port.endpoint.labels(&self.config).admin_up
        };
        measures.ports.set(self.ports.len());
        measures.ports_well.set(self.ports.iter().filter(is_well).count());
        measures.troubles.set(self.mitigation.troubles());
    }

    /// Checks namespaces and links, and continues opening ports.
    async fn check_ports(&mut self) {
        self.flush_limited_events(false);
        self.report_slow_commit();
        self.reopen_behind_returned().await;
        self.poll_namespaces();
        self.watch_netdevs_in_use();
        self.note_overdue();
        self.advance().await;
        self.try_down_ports();
        self.answer_pending();
    }

    /// The desired configuration has this number now.
    fn set_generation(&mut self, generation: u64) {
        self.state.set_generation(generation);
        self.health.update(|status| status.desired_generation = generation);
    }

    /// Publishes generation and state at the start, and when the state becomes usable.
    fn publish_state(&self) {
        self.health.update(|status| {
            status.desired_generation = self.state.generation();
            status.start = self.event_log.start().to_owned();
        });
        self.publish_store(self.state.check().err().map(|error| error.message));
    }

    /// Publishes whether changes can be stored, and why not.
    fn publish_store(&self, failure: Option<String>) {
        let health = match (&failure, self.state.store()) {
            (Some(_), _) => StoreHealth::StoreFailed,
            (None, None) => StoreHealth::None,
            (None, Some(_)) => StoreHealth::Ok,
        };
        self.health.update(|status| (status.state, status.state_reason) = (health, failure));
    }

    fn new_port(&mut self, endpoint: Endpoint) -> Port {
        self.next_key += 1;
        let mut counters: Vec<Arc<PortCounters>> = (0..self.workers.len()).map(|_| Arc::default()).collect();
        if let Some(first) = counters.first_mut() {
            *first = self.handover.take_port(endpoint.key());
        }
        let state = match endpoint.parent() {
            Some(_) => State::Tagged { reported: None },
            None => State::Down { reason: Reason::default() },
        };
        Port {
            endpoint,
            state,
            counters,
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

    /// Names for FDB entries.
    fn fdb_index(&self) -> FdbIndex {
        FdbIndex::of(&self.config, &self.ports, &self.ids, &self.groups)
    }

    /// Netdevs orphaned if the process dies while applying `next` and restarts with `stored`.
    fn orphans_after(&self, next: &Config, stored: &Config) -> Orphans {
        let mut orphans = orphans::without(self.orphans.clone(), stored);
        orphans.append(&mut orphans::gone(&self.config, stored));
        orphans.append(&mut orphans::gone(next, stored));
        orphans
    }
}
