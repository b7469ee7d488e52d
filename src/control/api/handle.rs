//! Requests to the controller, which owns the state of the switch, and its replies.

use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot};

use crate::control::api::responses::{
    AuditView, DropView, NetworkView, PortView, StationView, UplinkView, VmView, WorkerView,
};
use crate::control::config::ConfigFile;
use crate::control::desired::change::{Change, ChangeError, ChangeResult};
use crate::control::loops::status::{LoopCounts, LoopStatus, StormStatus};
use crate::control::state::event_log::EventFilter;
use crate::control::state::events::Event;

/// Stored events, and a receiver of later ones.
pub type History = (Vec<Event>, broadcast::Receiver<Event>);

/// Resources that a request occupies until it is answered, even if its client has disconnected.
pub type Permit = Box<dyn std::any::Any + Send>;

/// Channel of the reply. Dropping it frees the request's permit.
pub struct Reply<T> {
    answer: oneshot::Sender<T>,
    _permit: Permit,
}

impl<T> Reply<T> {
    /// Sends the reply. Returns it if the client has disconnected.
    pub fn send(self, answer: T) -> Result<(), T> {
        self.answer.send(answer)
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

/// A request to the controller; [`Handle`] describes each.
#[derive(Debug)]
pub enum Request {
    /// All ports, in the order of the configuration.
    Ports(oneshot::Sender<Vec<PortView>>),
    /// All uplinks.
    Uplinks(oneshot::Sender<Vec<UplinkView>>),
    /// All VMs.
    Vms(oneshot::Sender<Vec<VmView>>),
    /// All networks.
    Networks(oneshot::Sender<Vec<NetworkView>>),
    /// All FDB entries.
    Fdb(Reply<Vec<StationView>>),
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
    /// The configuration as JSON, in the form of the file.
    Config(oneshot::Sender<serde_json::Value>),
    /// A change. With a time, it is reverted unless confirmed within that.
    Change(Change, Option<Duration>, Reply<Result<ChangeResult, ChangeError>>),
    /// What a change would do.
    Diff(Change, Reply<Result<ChangeResult, ChangeError>>),
    /// Keep the unconfirmed change.
    Confirm(Reply<Result<ChangeResult, ChangeError>>),
    /// Apply the configuration file, or report why it could not be read.
    Reload(Box<Result<ConfigFile, String>>, Reply<Result<ChangeResult, ChangeError>>),
    /// Flush FDB entries. Returns their number.
    Flush(Flush, Reply<Result<u64, ChangeError>>),
    /// Release a port from loop or storm quarantine.
    Release(String, Reply<Result<ChangeResult, ChangeError>>),
    /// Stored and later events.
    Events(EventFilter, oneshot::Sender<Result<History, ChangeError>>),
}

impl Request {
    /// Whether its client has disconnected: it is skipped.
    pub fn is_abandoned(&self) -> bool {
        match self {
            Request::Change(_, _, reply) | Request::Diff(_, reply) | Request::Confirm(reply) => reply.is_abandoned(),
            Request::Release(_, reply) => reply.is_abandoned(),
            Request::Flush(_, reply) => reply.is_abandoned(),
            Request::Fdb(reply) => reply.is_abandoned(),
            _ => false,
        }
    }

    /// Whether it changes the configuration.
    pub fn is_change(&self) -> bool {
        matches!(self, Request::Change(..) | Request::Confirm(_) | Request::Reload(..))
    }
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
    "the switch is shutting down, or a worker hangs, see its log; a change that was in progress may have been \
     stored"
)]
pub struct ShuttingDown;

/// Sends requests to the controller. Clones share the channel.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Request>);

impl Handle {
    /// Creates a handle, and the receiver for the controller.
    pub fn new() -> (Handle, mpsc::Receiver<Request>) {
        let (send, read) = mpsc::channel(64);
        (Handle(send), read)
    }

    async fn request<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, ShuttingDown> {
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.map_err(|_| ShuttingDown)?;
        answer.await.map_err(|_| ShuttingDown)
    }

    async fn request_with<T>(
        &self,
        permit: Permit,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, ShuttingDown> {
        self.request(|answer| request(Reply { answer, _permit: permit })).await
    }

    /// All ports, in the order of the configuration.
    pub async fn ports(&self) -> Result<Vec<PortView>, ShuttingDown> {
        self.request(Request::Ports).await
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

    /// All FDB entries: pinned, then dampened, then learned ones, each by network and MAC address.
    pub async fn fdb(&self, permit: Permit) -> Result<Vec<StationView>, ShuttingDown> {
        self.request_with(permit, Request::Fdb).await
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

    /// The configuration as JSON.
    pub async fn config(&self) -> Result<serde_json::Value, ShuttingDown> {
        self.request(Request::Config).await
    }

    /// Makes a change. When this returns, it is active on every worker, and stored. Not made if this future is dropped
    /// before its turn. With `confirm`, it is reverted unless confirmed within that time.
    pub async fn change(
        &self,
        change: Change,
        confirm: Option<Duration>,
        permit: Permit,
    ) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with(permit, |reply| Request::Change(change, confirm, reply)).await
    }

    /// What a change would do. Changes nothing.
    pub async fn diff(
        &self,
        change: Change,
        permit: Permit,
    ) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with(permit, |reply| Request::Diff(change, reply)).await
    }

    /// Keeps the unconfirmed change.
    pub async fn confirm(&self, permit: Permit) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with(permit, Request::Confirm).await
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

    /// Stored events that match, and a receiver of later ones.
    pub async fn events(&self, which: EventFilter) -> Result<Result<History, ChangeError>, ShuttingDown> {
        self.request(|reply| Request::Events(which, reply)).await
    }
}
