//! Requests to the controller, which owns the state of the switch, and its replies.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::control::api::responses::{
    AuditView, DropView, NetworkView, PortView, StationView, UnconfirmedView, UplinkView, VmView, WorkerView,
};
use crate::control::api::selection::{PortSelection, StationSelection};
use crate::control::author::Author;
use crate::control::config::{Config, ConfigFile};
use crate::control::desired::change::{Change, ChangeError, ChangeResult};
use crate::control::health::Health;
use crate::control::log_settings::LogSettings;
use crate::control::loops::status::{LoopCounts, LoopStatus, StormStatus};
use crate::control::state::event_filter::EventFilter;
use crate::control::state::event_page::{Cursor, Page};
use crate::control::state::history::GenerationView;
use crate::time;

/// Resources that a request occupies until it is answered, even if its client has disconnected.
pub type Permit = Box<dyn std::any::Any + Send>;

/// How a change is made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChangeOptions {
    /// It is reverted unless confirmed within this time.
    pub confirm: Option<Duration>,
    /// It is refused unless the desired configuration has one of these generations. `None`: any.
    pub generations: Option<Vec<u64>>,
}

impl From<Option<Duration>> for ChangeOptions {
    /// With this time to confirm.
    fn from(confirm: Option<Duration>) -> ChangeOptions {
        ChangeOptions { confirm, ..ChangeOptions::default() }
    }
}

impl ChangeOptions {
    /// Whether a change may be made to a configuration of this generation.
    pub fn check(&self, generation: u64) -> Result<(), ChangeError> {
        match &self.generations {
            Some(wanted) if !wanted.contains(&generation) => Err(ChangeError::outdated(wanted, generation)),
            _ => Ok(()),
        }
    }
}

/// Channel of the reply. Dropping it frees the request's permit.
pub struct Reply<T> {
    answer: oneshot::Sender<T>,
    by: Option<Author>,
    _permit: Permit,
}

impl<T> Reply<T> {
    /// Sends the reply. Returns it if the client has disconnected.
    pub fn send(self, answer: T) -> Result<(), T> {
        self.answer.send(answer)
    }

    /// Who makes the request; `None` if it is not one of the API.
    pub fn by(&self) -> Option<&Author> {
        self.by.as_ref()
    }

    /// Whether the client has disconnected.
    pub fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }
}

impl<T> std::fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("is_abandoned", &self.is_abandoned()).finish()
    }
}

/// The configuration of an earlier generation.
#[derive(Debug)]
pub struct Restored {
    /// Its number.
    pub generation: u64,
    /// Number of the configuration now.
    pub newest: u64,
    /// The configuration, with the `[switch]` of now.
    pub config: Config,
}

/// A request to the controller; [`Handle`] describes each.
#[derive(Debug)]
pub enum Request {
    /// All ports, in the order of the configuration.
    Ports(oneshot::Sender<Vec<PortView>>),
    /// The ports with these ids, those that exist, in the order of the configuration.
    PortsOf(HashSet<String>, oneshot::Sender<Vec<PortView>>),
    /// The ports selected; of a page up to one more than it has.
    SelectPorts(PortSelection, oneshot::Sender<Vec<PortView>>),
    /// All uplinks.
    Uplinks(oneshot::Sender<Vec<UplinkView>>),
    /// All VMs.
    Vms(oneshot::Sender<Vec<VmView>>),
    /// All networks.
    Networks(oneshot::Sender<Vec<NetworkView>>),
    /// The FDB entries selected; of a page up to one more than it has.
    Fdb(StationSelection, Reply<Vec<StationView>>),
    /// All workers.
    Workers(oneshot::Sender<Vec<WorkerView>>),
    /// All drop counters.
    Drops(oneshot::Sender<Vec<DropView>>),
    /// Active and recent loops, and bridged networks.
    Loops(oneshot::Sender<Vec<LoopStatus>>),
    /// Active and recent storms.
    Storms(oneshot::Sender<Vec<StormStatus>>),
    /// Counters of loops, storms and probes.
    LoopCounts(oneshot::Sender<LoopCounts>),
    /// Counter audit.
    Audit(oneshot::Sender<AuditView>),
    /// The configuration as JSON, in the form of the file, and its generation: with all defaults, or without.
    Config(ConfigForm, oneshot::Sender<(serde_json::Value, u64)>),
    /// The number of the desired configuration.
    Generation(oneshot::Sender<u64>),
    /// The last generations, the newest first.
    History(oneshot::Sender<Vec<GenerationView>>),
    /// The configuration of a generation, by default of the one before the newest.
    Restored(Option<u64>, Reply<Result<Restored, ChangeError>>),
    /// A receiver of the id of the newest event.
    Subscribe(oneshot::Sender<watch::Receiver<u64>>),
    /// A change.
    Change(Change, ChangeOptions, Reply<Result<ChangeResult, ChangeError>>),
    /// What a change would do.
    Diff(Change, ChangeOptions, Reply<Result<ChangeResult, ChangeError>>),
    /// Keep the unconfirmed change.
    Confirm(Reply<Result<ChangeResult, ChangeError>>),
    /// Revert the unconfirmed change now.
    Cancel(Reply<Result<ChangeResult, ChangeError>>),
    /// The unconfirmed change, if there is one.
    Unconfirmed(oneshot::Sender<Option<UnconfirmedView>>),
    /// Apply the configuration file, or report why it could not be read.
    Reload(Box<Result<ConfigFile, String>>, Reply<Result<ChangeResult, ChangeError>>),
    /// Flush FDB entries. Returns their number.
    Flush(Flush, Reply<Result<u64, ChangeError>>),
    /// Release a port from loop or storm quarantine.
    Release(String, Reply<Result<ChangeResult, ChangeError>>),
    /// The next events of a reader.
    Events(Arc<EventFilter>, Cursor, oneshot::Sender<Page>),
}

impl Request {
    /// Whether its client has disconnected: it is skipped.
    pub fn is_abandoned(&self) -> bool {
        match self {
            Request::Change(_, _, reply)
            | Request::Diff(_, _, reply)
            | Request::Confirm(reply)
            | Request::Cancel(reply) => reply.is_abandoned(),
            Request::Release(_, reply) => reply.is_abandoned(),
            Request::Restored(_, reply) => reply.is_abandoned(),
            Request::Flush(_, reply) => reply.is_abandoned(),
            Request::Fdb(_, reply) => reply.is_abandoned(),
            _ => false,
        }
    }

    /// Whether it changes the configuration.
    pub fn is_change(&self) -> bool {
        matches!(self, Request::Change(..) | Request::Confirm(_) | Request::Cancel(_) | Request::Reload(..))
    }
}

/// How a configuration is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigForm {
    /// Without the keys that have their defaults.
    Sparse,
    /// With all keys.
    Resolved,
}

/// Filter for flushing FDB entries: those that match all given fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flush {
    /// On this network.
    pub network: Option<String>,
    /// At this port or uplink.
    pub port: Option<String>,
    /// With this address.
    pub mac: Option<crate::wire::Mac>,
}

/// Why there is no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the switch is shutting down, or a worker hangs, see its log; repeat the request: a change that was in progress may \
     have been stored"
)]
pub struct ShuttingDown;

/// Sends requests to the controller. Clones share the channel.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    health: Health,
    log: LogSettings,
}

impl Handle {
    /// Creates a handle, and the receiver for the controller.
    pub fn new() -> (Handle, mpsc::Receiver<Request>) {
        let (send, read) = mpsc::channel(64);
        (Handle { requests: send, health: Health::default(), log: LogSettings::default() }, read)
    }

    /// The same, with the settings of the process's log.
    pub fn with_log(self, log: LogSettings) -> Handle {
        Handle { log, ..self }
    }

    /// Settings of the log.
    pub fn log(&self) -> &LogSettings {
        &self.log
    }

    /// Health of the switch, to be updated by the controller.
    pub fn health(&self) -> &Health {
        &self.health
    }

    async fn request<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, ShuttingDown> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| ShuttingDown)?;
        answer.await.map_err(|_| ShuttingDown)
    }

    async fn request_with<T>(
        &self,
        permit: Permit,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, ShuttingDown> {
        self.request(|answer| request(Reply { answer, by: Author::current(), _permit: permit })).await
    }

    /// All ports, in the order of the configuration.
    pub async fn ports(&self) -> Result<Vec<PortView>, ShuttingDown> {
        self.request(Request::Ports).await
    }

    /// The ports with these ids, those that exist, in the order of the configuration.
    pub async fn ports_of(&self, ids: HashSet<String>) -> Result<Vec<PortView>, ShuttingDown> {
        self.request(|reply| Request::PortsOf(ids, reply)).await
    }

    /// The ports selected; of a page up to one more than it has.
    pub async fn select_ports(&self, which: PortSelection) -> Result<Vec<PortView>, ShuttingDown> {
        self.request(|reply| Request::SelectPorts(which, reply)).await
    }

    /// All uplinks, in the order of the configuration.
    pub async fn uplinks(&self) -> Result<Vec<UplinkView>, ShuttingDown> {
        self.request(Request::Uplinks).await
    }

    /// All VMs, in the order of the configuration.
    pub async fn vms(&self) -> Result<Vec<VmView>, ShuttingDown> {
        self.request(Request::Vms).await
    }

    /// All networks, in the order of the configuration.
    pub async fn networks(&self) -> Result<Vec<NetworkView>, ShuttingDown> {
        self.request(Request::Networks).await
    }

    /// The FDB entries selected, of a page up to one more than it has: pinned, then dampened, then learned ones, each by
    /// network and MAC address.
    pub async fn fdb(&self, which: StationSelection, permit: Permit) -> Result<Vec<StationView>, ShuttingDown> {
        self.request_with(permit, |reply| Request::Fdb(which, reply)).await
    }

    /// All workers.
    pub async fn workers(&self) -> Result<Vec<WorkerView>, ShuttingDown> {
        self.request(Request::Workers).await
    }

    /// Drop counters by port, direction and reason.
    pub async fn drops(&self) -> Result<Vec<DropView>, ShuttingDown> {
        self.request(Request::Drops).await
    }

    /// Active and recent loops, and bridged networks.
    pub async fn loops(&self) -> Result<Vec<LoopStatus>, ShuttingDown> {
        self.request(Request::Loops).await
    }

    /// Active and recent storms.
    pub async fn storms(&self) -> Result<Vec<StormStatus>, ShuttingDown> {
        self.request(Request::Storms).await
    }

    /// Counters of loops, storms and probes.
    pub async fn loop_counts(&self) -> Result<LoopCounts, ShuttingDown> {
        self.request(Request::LoopCounts).await
    }

    /// Counter audit: whether each received frame is counted as forwarded or dropped.
    pub async fn audit(&self) -> Result<AuditView, ShuttingDown> {
        self.request(Request::Audit).await
    }

    /// The configuration as JSON, and its generation.
    pub async fn config(&self, form: ConfigForm) -> Result<(serde_json::Value, u64), ShuttingDown> {
        self.request(|reply| Request::Config(form, reply)).await
    }

    /// The number of the desired configuration.
    pub async fn generation(&self) -> Result<u64, ShuttingDown> {
        self.request(Request::Generation).await
    }

    /// The last generations of the desired configuration, the newest first.
    pub async fn history(&self) -> Result<Vec<GenerationView>, ShuttingDown> {
        self.request(Request::History).await
    }

    /// The configuration of a generation, by default of the one before the newest.
    pub async fn restored(
        &self,
        generation: Option<u64>,
        permit: Permit,
    ) -> Result<Result<Restored, ChangeError>, ShuttingDown> {
        self.request_with(permit, |reply| Request::Restored(generation, reply)).await
    }

    /// A receiver of the id of the newest event, which changes with each event.
    pub async fn subscribe(&self) -> Result<watch::Receiver<u64>, ShuttingDown> {
        self.request(Request::Subscribe).await
    }

    /// Makes a change. When this returns, it is active on every worker, and stored. Not made if this future is dropped
    /// before its turn.
    pub async fn change(
        &self,
        change: Change,
        options: ChangeOptions,
        permit: Permit,
    ) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        let begun = time::now();
        let answer = self.request_with(permit, |reply| Request::Change(change, options, reply)).await;
        self.health.measures().changes.observe(time::now().since(begun));
        answer
    }

    /// What a change would do. Changes nothing.
    pub async fn diff(
        &self,
        change: Change,
        options: ChangeOptions,
        permit: Permit,
    ) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with(permit, |reply| Request::Diff(change, options, reply)).await
    }

    /// Keeps the unconfirmed change.
    pub async fn confirm(&self, permit: Permit) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with(permit, Request::Confirm).await
    }

    /// Reverts the unconfirmed change now.
    pub async fn cancel(&self, permit: Permit) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with(permit, Request::Cancel).await
    }

    /// The unconfirmed change, if there is one.
    pub async fn unconfirmed(&self) -> Result<Option<UnconfirmedView>, ShuttingDown> {
        self.request(Request::Unconfirmed).await
    }

    /// Applies the configuration file, or reports why it could not be read.
    pub async fn reload(
        &self,
        file: Result<ConfigFile, String>,
    ) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with(Box::new(()), |reply| Request::Reload(file.into(), reply)).await
    }

    /// Flushes learned FDB entries. Returns their number.
    pub async fn flush(&self, flush: Flush, permit: Permit) -> Result<Result<u64, ChangeError>, ShuttingDown> {
        self.request_with(permit, |reply| Request::Flush(flush, reply)).await
    }

    /// Releases a port from loop or storm quarantine.
    pub async fn release(
        &self,
        port: String,
        permit: Permit,
    ) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with(permit, |reply| Request::Release(port, reply)).await
    }

    /// The next events of a reader at this position that match.
    pub async fn events(&self, which: Arc<EventFilter>, from: Cursor) -> Result<Page, ShuttingDown> {
        self.request(|reply| Request::Events(which, from, reply)).await
    }
}
