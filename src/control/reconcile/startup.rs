//! Start of the controller: applies the initial configuration to an empty switch.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::announce::AnnounceState;
use super::group::MAX_GROUP_TIME;
use super::jobs::Jobs;
use super::lifetimes::LifetimeStates;
use super::mitigation::Mitigation;
use super::namespaces::Namespaces;
use super::netns_files::NetnsFiles;
use super::port::Port;
use super::readers::reserve_event_ids;
use super::results::Apply;
use super::stations::FIRST_CHUNK;
use super::watcher::NetdevWatchers;
use super::{Controller, RETRY};
use crate::control::compile::activation::Activations;
use crate::control::compile::endpoints::{self, TooMany};
use crate::control::compile::failover::Groups;
use crate::control::compile::ids::IdAllocator;
use crate::control::compile::policers::Policers;
use crate::control::config::Config;
use crate::control::descriptors::Descriptors;
use crate::control::handover::Handover;
use crate::control::health::{Health, Phase};
use crate::control::state::event_log::EventLog;
use crate::control::state::{DISK_AT_START, StateStore};
use crate::control::workers::WorkerHandles;
use crate::frame::Pool;
use crate::switch::{ForwardingConfig, HashKey};
use crate::time::{self, MonoTime};
use crate::wire::{ProbeKey, ProbeKeys};
use crate::worker::{DeviceGone, EventReceiver};

/// Maximum time for which no frame is received because devices that stayed open are being opened: an open may hang. At
/// 10 000 frames/s the queue of a tap holds 0.4 s.
const MAX_HOLD: Duration = Duration::from_millis(250);

/// Maximum time for which ports wait for FDB entries to be restored.
const FIRST_STATIONS: Duration = Duration::from_millis(250);

/// Who sends the loop probes of this switch.
#[derive(Debug)]
pub struct ProbeIdentity {
    /// Keys that authenticate them.
    pub keys: ProbeKeys,
    /// Name of the host, in probes that other hosts read.
    pub host: String,
}

impl From<ProbeKey> for ProbeIdentity {
    fn from(own: ProbeKey) -> ProbeIdentity {
        ProbeIdentity { keys: own.into(), host: String::new() }
    }
}

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
    /// Sender of loop probes.
    pub probes: ProbeIdentity,
    /// Persists changes.
    pub state: StateStore,
    /// Frame slots of the workers.
    pub pool: &'static Pool,
    /// Health of the switch.
    pub health: Health,
    /// Descriptors of devices that the service manager keeps.
    pub descriptors: Descriptors,
    /// Counters of the last run, and the path to hand them over to the next one.
    pub handover: (Handover, Option<PathBuf>),
}

impl Controller {
    /// A controller without ports or configuration.
    pub fn new(startup: Startup) -> Controller {
        let Startup {
            cores,
            hash_key,
            workers,
            notices,
            events,
            probes,
            state: store,
            pool,
            health,
            descriptors,
            handover,
        } = startup;
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
            health,
            pool,
            descriptors,
            handover: handover.0,
            handover_path: handover.1,
            event_log: EventLog::default(),
            store_failure: None,
            recovered: None,
            retries_state: false,
            is_started: false,
            ports: Vec::new(),
            port_index: HashMap::new(),
            ids: IdAllocator::default(),
            groups: Groups::default(),
            mitigation: Mitigation::new(probes, events),
            activations: Activations::default(),
            announcements: AnnounceState::default(),
            watchers: NetdevWatchers::default(),
            namespaces: Namespaces::default(),
            lifetimes: LifetimeStates::default(),
            netns_files: NetnsFiles::default(),
            jobs: Jobs::default(),
            next_attempt: None,
            opened: Vec::new(),
            next_opened: MonoTime::default(),
            forwarding: Arc::new(ForwardingConfig::none(hash_key)),
            notices,
            device_events,
            device_event_sender,
            commit: None,
            commit_begun: time::now(),
            config_due: None,
            applying: None,
            pending: Vec::new(),
            waiting: VecDeque::new(),
            max_group_time: MAX_GROUP_TIME,
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
        let first = time::unix_millis(self.since);
        let last = reserve_event_ids(&self.state, first).await;
        self.event_log.begin(last.map(|last| if last == 0 { first } else { last }), self.since);
        self.publish_state();
        self.emit_state_at_start();
        self.append_start_events();
        let orphans = self.remove_conflicting_orphans(&config).await;
        let stored = timeout(DISK_AT_START, self.state.take_loops()).await.unwrap_or_else(|_| {
            let seconds = DISK_AT_START.as_secs();
            warn!("the stored state of loop mitigation cannot be read: the disk does not answer within {seconds} s");
            serde_json::Value::Null
        });
        self.resume_activations(&stored["activations"]);
        self.mitigation.load(stored);
        // Frames wait in queues that stayed open. None is received before all of these are open again, or it would be lost
        // where its destination is not.
        let mut held_until = self.descriptors.are_passed().then(|| time::now() + MAX_HOLD);
        if held_until.is_some() {
            self.workers.hold(true).await;
        }
        let search = self.search_ended();
        self.apply(config, Apply::default()).await;
        self.commit_events();
        // Restores FDB entries while devices open, so that the first frames to known stations are not flooded.
        let more = self.take_first_stations(FIRST_STATIONS, FIRST_CHUNK).await;
        let mut retry = tokio::time::interval(RETRY);
        while self.applying.is_some() || !self.pending.is_empty() {
            // What has opened by now, also if the time is over.
            if let Ok(outcome) = self.device_events.try_recv() {
                self.receive(outcome).await;
                continue;
            }
            let next = self.next_attempt.map(|at| at.since(time::now()));
            if held_until.is_some_and(|until| time::now() >= until || !self.opens_kept()) {
                held_until = None;
                self.workers.hold(false).await;
            }
            let held = held_until.map(|until| until.since(time::now()));
            let opened = self.opened_due();
            tokio::select! {
                Some(outcome) = self.device_events.recv() => self.receive(outcome).await,
                () = sleep(opened.unwrap_or_default()), if opened.is_some() => self.receive_opened().await,
                () = sleep(held.unwrap_or_default()), if held.is_some() => {}
                () = sleep(next.unwrap_or_default()), if next.is_some() => self.try_down_ports(),
                _ = retry.tick() => self.check_ports().await,
            }
        }
        if held_until.is_some() {
            self.workers.hold(false).await;
        }
        // The remaining orphans conflict with no port.
        orphans.into_iter().for_each(|orphan| self.remove_orphan(orphan));
        self.release_other_descriptors();
        self.verify_state(more);
        self.take_ended(search).await;
        self.is_started = true;
        self.health.update(|status| status.phase = Phase::Running);
        Ok(())
    }

    /// Whether devices that stayed open over the restart are still being opened.
    fn opens_kept(&self) -> bool {
        let is_opening = |port: &Port| port.attempt.is_some() && self.descriptors.is_stored(port.key);
        self.applying.is_some() || self.ports.iter().any(is_opening)
    }
}
