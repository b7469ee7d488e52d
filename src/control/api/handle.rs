//! How the faces of the switch talk to the thread that owns its state: a request and its answer.

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

/// What has happened, and what will.
pub type History = (Vec<Event>, broadcast::Receiver<Event>);

/// What a request takes up as long as it is not answered, also when whoever asked has gone.
pub type Permit = Box<dyn std::any::Any + Send>;

/// Where an answer goes. What the request takes up is free when this is gone.
pub struct Reply<T> {
    answer: oneshot::Sender<T>,
    _permit: Permit,
}

impl<T> Reply<T> {
    /// Answers. It comes back if whoever asked has gone.
    pub fn send(self, answer: T) -> Result<(), T> {
        self.answer.send(answer)
    }

    /// Whether whoever asked has gone.
    pub fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }
}

impl<T> std::fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("is_abandoned", &self.is_abandoned()).finish()
    }
}

/// A question to the controller.
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
    /// The forwarding database.
    Fdb(Reply<Vec<StationView>>),
    /// All workers.
    Workers(oneshot::Sender<Vec<WorkerView>>),
    /// The drop ledger.
    Drops(oneshot::Sender<Vec<DropView>>),
    /// The loops that there are and were lately, and who joins networks.
    Loops(oneshot::Sender<Vec<LoopStatus>>),
    /// The storms that there are and were lately.
    Storms(oneshot::Sender<Vec<StormStatus>>),
    /// How many of these there were.
    LoopCounts(oneshot::Sender<LoopCounts>),
    /// Whether the ledger adds up.
    Audit(oneshot::Sender<AuditView>),
    /// The configuration as JSON, in the shape in which it is written.
    Config(oneshot::Sender<serde_json::Value>),
    /// A change. With a time, it is taken back unless it is confirmed within that.
    Change(Change, Option<Duration>, Reply<Result<ChangeResult, ChangeError>>),
    /// What a change would come to; nothing is done.
    Diff(Change, Reply<Result<ChangeResult, ChangeError>>),
    /// The last change that waits to be confirmed shall stay.
    Confirm(Reply<Result<ChangeResult, ChangeError>>),
    /// The configuration file is applied as it is now, or could not be read: why.
    Reload(Box<Result<ConfigFile, String>>, Reply<Result<ChangeResult, ChangeError>>),
    /// Learned stations shall be forgotten. How many were.
    Flush(Flush, Reply<Result<u64, ChangeError>>),
    /// Whatever measure holds this port shall be lifted. What was lifted, in sentences.
    Release(String, Reply<Result<ChangeResult, ChangeError>>),
    /// What has happened, of what is kept, and what will happen from then on.
    Events(EventFilter, oneshot::Sender<Result<History, ChangeError>>),
}

impl Request {
    /// Whether it is a change whose client has gone: it is not made.
    pub fn is_abandoned(&self) -> bool {
        match self {
            Request::Change(_, _, reply) | Request::Diff(_, reply) | Request::Confirm(reply) => reply.is_abandoned(),
            Request::Release(_, reply) => reply.is_abandoned(),
            Request::Flush(_, reply) => reply.is_abandoned(),
            Request::Fdb(reply) => reply.is_abandoned(),
            _ => false,
        }
    }
}

impl Request {
    /// Whether it asks for another configuration.
    pub fn is_change(&self) -> bool {
        matches!(self, Request::Change(..) | Request::Confirm(_) | Request::Reload(..))
    }
}

/// Which stations to forget: those to which all that is given applies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flush {
    /// Those of this network.
    pub network: Option<String>,
    /// Those behind this port or uplink.
    pub port: Option<String>,
    /// This one.
    pub mac: Option<crate::wire::Mac>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the switch is shutting down, or a worker hangs, as its log says; a change that was under way and is not answered may have been kept"
)]
pub struct ShuttingDown;

/// The way to the controller. Clones share it.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Request>);

impl Handle {
    /// A handle and the end that the controller reads.
    pub fn new() -> (Handle, mpsc::Receiver<Request>) {
        let (send, read) = mpsc::channel(64);
        (Handle(send), read)
    }

    async fn request<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, ShuttingDown> {
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.map_err(|_| ShuttingDown)?;
        answer.await.map_err(|_| ShuttingDown)
    }

    async fn request_with_permit<T>(
        &self,
        hold: Permit,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, ShuttingDown> {
        self.request(|answer| request(Reply { answer, _permit: hold })).await
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

    /// All stations: pinned ones first, then frozen ones, then learned ones, each by network and address.
    pub async fn fdb(&self) -> Result<Vec<StationView>, ShuttingDown> {
        self.fdb_with_permit(Box::new(())).await
    }

    /// The same, as a request that takes up something.
    pub async fn fdb_with_permit(&self, hold: Permit) -> Result<Vec<StationView>, ShuttingDown> {
        self.request_with_permit(hold, Request::Fdb).await
    }

    /// All workers.
    pub async fn workers(&self) -> Result<Vec<WorkerView>, ShuttingDown> {
        self.request(Request::Workers).await
    }

    /// All reasons for which frames have died, by port and direction.
    pub async fn drops(&self) -> Result<Vec<DropView>, ShuttingDown> {
        self.request(Request::Drops).await
    }

    /// The loops that there are, who joins networks, and the loops that were lately.
    pub async fn loops(&self) -> Result<Vec<LoopStatus>, ShuttingDown> {
        self.request(Request::Loops).await
    }

    /// The storms that there are, and those that were lately.
    pub async fn storms(&self) -> Result<Vec<StormStatus>, ShuttingDown> {
        self.request(Request::Storms).await
    }

    /// How many loops and storms there were, and what became of probes.
    pub async fn loop_counts(&self) -> Result<LoopCounts, ShuttingDown> {
        self.request(Request::LoopCounts).await
    }

    /// Whether every frame is accounted for, as the workers themselves have it.
    pub async fn audit(&self) -> Result<AuditView, ShuttingDown> {
        self.request(Request::Audit).await
    }

    /// The configuration.
    pub async fn config(&self) -> Result<serde_json::Value, ShuttingDown> {
        self.request(Request::Config).await
    }

    /// Makes a change. When this returns it is true on every worker, and kept.
    pub async fn change(
        &self,
        change: Change,
        confirm: Option<Duration>,
    ) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.change_with_permit(change, confirm, Box::new(())).await
    }

    /// The same, as a request that takes up something. It is not made if this future is dropped before its turn.
    pub async fn change_with_permit(
        &self,
        change: Change,
        confirm: Option<Duration>,
        hold: Permit,
    ) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with_permit(hold, |reply| Request::Change(change, confirm, reply)).await
    }

    /// What a change would come to.
    pub async fn diff(&self, change: Change) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.diff_with_permit(change, Box::new(())).await
    }

    /// The same, as a request that takes up something.
    pub async fn diff_with_permit(
        &self,
        change: Change,
        hold: Permit,
    ) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with_permit(hold, |reply| Request::Diff(change, reply)).await
    }

    /// Keeps the change that waits to be confirmed.
    pub async fn confirm(&self) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.confirm_with_permit(Box::new(())).await
    }

    /// The same, as a request that takes up something.
    pub async fn confirm_with_permit(&self, hold: Permit) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with_permit(hold, Request::Confirm).await
    }

    /// Applies the configuration file as it is now, or says why it could not be read.
    pub async fn reload(
        &self,
        file: Result<ConfigFile, String>,
    ) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with_permit(Box::new(()), |reply| Request::Reload(file.into(), reply)).await
    }

    /// Forgets learned stations, and says how many.
    pub async fn flush(&self, flush: Flush) -> Result<Result<u64, ChangeError>, ShuttingDown> {
        self.flush_with_permit(flush, Box::new(())).await
    }

    /// The same, as a request that takes up something.
    pub async fn flush_with_permit(
        &self,
        flush: Flush,
        hold: Permit,
    ) -> Result<Result<u64, ChangeError>, ShuttingDown> {
        self.request_with_permit(hold, |reply| Request::Flush(flush, reply)).await
    }

    /// Lifts whatever measure holds a port.
    pub async fn release(&self, port: String) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.release_with_permit(port, Box::new(())).await
    }

    /// The same, as a request that takes up something.
    pub async fn release_with_permit(
        &self,
        port: String,
        hold: Permit,
    ) -> Result<Result<ChangeResult, ChangeError>, ShuttingDown> {
        self.request_with_permit(hold, |reply| Request::Release(port, reply)).await
    }

    /// What has happened, and what will.
    pub async fn events(&self, which: EventFilter) -> Result<Result<History, ChangeError>, ShuttingDown> {
        self.request(|reply| Request::Events(which, reply)).await
    }
}
