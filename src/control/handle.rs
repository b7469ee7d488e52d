//! How the faces of the switch talk to the thread that owns its state: a request and its answer.

use tokio::sync::{mpsc, oneshot};

use super::view::{DropView, NetworkView, PortView, StationView, VmView, WorkerView};

/// A question to the controller.
#[derive(Debug)]
pub enum Request {
    /// All ports, in the order of the configuration.
    Ports(oneshot::Sender<Vec<PortView>>),
    /// All VMs.
    Vms(oneshot::Sender<Vec<VmView>>),
    /// All networks.
    Networks(oneshot::Sender<Vec<NetworkView>>),
    /// The forwarding database.
    Fdb(oneshot::Sender<Vec<StationView>>),
    /// All workers.
    Workers(oneshot::Sender<Vec<WorkerView>>),
    /// The drop ledger.
    Drops(oneshot::Sender<Vec<DropView>>),
    /// The configuration as JSON, in the shape in which it is written.
    Config(oneshot::Sender<serde_json::Value>),
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the switch is shutting down")]
pub struct Closing;

/// The way to the controller. Clones share it.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Request>);

impl Handle {
    /// A handle and the end that the controller reads.
    pub fn new() -> (Handle, mpsc::Receiver<Request>) {
        let (send, read) = mpsc::channel(64);
        (Handle(send), read)
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Closing> {
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.map_err(|_| Closing)?;
        answer.await.map_err(|_| Closing)
    }

    /// All ports, in the order of the configuration.
    pub async fn ports(&self) -> Result<Vec<PortView>, Closing> {
        self.ask(Request::Ports).await
    }

    /// All VMs, in the order of the configuration.
    pub async fn vms(&self) -> Result<Vec<VmView>, Closing> {
        self.ask(Request::Vms).await
    }

    /// All networks, in the order of the configuration.
    pub async fn networks(&self) -> Result<Vec<NetworkView>, Closing> {
        self.ask(Request::Networks).await
    }

    /// All stations: pinned ones first, then learned ones, each by network and address.
    pub async fn fdb(&self) -> Result<Vec<StationView>, Closing> {
        self.ask(Request::Fdb).await
    }

    /// All workers.
    pub async fn workers(&self) -> Result<Vec<WorkerView>, Closing> {
        self.ask(Request::Workers).await
    }

    /// All reasons for which frames have died, by port and direction.
    pub async fn drops(&self) -> Result<Vec<DropView>, Closing> {
        self.ask(Request::Drops).await
    }

    /// The configuration.
    pub async fn config(&self) -> Result<serde_json::Value, Closing> {
        self.ask(Request::Config).await
    }
}
