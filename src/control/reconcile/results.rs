//! What the control loop hands to background work, and what comes back from it: each result is a [`DeviceEvent`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::control::api::handle::{self, Request};
use crate::control::config::Config;
use crate::control::desired::change::{ChangeError, ChangeResult};
use crate::control::desired::orphans::OrphanNetdev;
use crate::control::state::StateStore;
use crate::control::state::events::Event;
use crate::control::state::store::StoreError;
use crate::device::properties::Properties;
use crate::device::{OpenError, Opened, Removal, Settings};
use crate::sys::netns::{Identity, Netns};
use crate::time::MonoTime;

/// What came of something that was done elsewhere. Ports are named by their key.
#[derive(Debug)]
pub(super) enum DeviceEvent {
    /// A device was opened, or not.
    Opened(Box<OpenResult>),
    /// A device is closed for good. There may be a remark on how that went.
    Closed { port: u64, removed: Option<OrphanNetdev>, warning: Option<String> },
    /// What an earlier life has left behind is gone, or could not be removed.
    OrphanRemoved { left: OrphanNetdev, result: Result<Removal, OpenError> },
    /// Something was written down, or not.
    Committed(CommitDone),
    /// The state can be used again, or still not; and the changes that wait for that.
    StateReopened(Box<Result<Recovered, String>>, VecDeque<Request>),
    /// Netdevs were looked at.
    NetdevsRead(NetdevReadings),
    /// The name of a namespace was looked at.
    NamespaceIdentified(NamespaceIdentity),
    /// A netdev was changed, or not.
    Adjusted { port: u64, result: Result<(), OpenError> },
    /// A netdev that somebody has changed was put right, or not.
    Restored(RestoreResult),
}

/// What came of trying to open a device.
#[derive(Debug)]
pub(super) struct OpenResult {
    pub port: u64,
    /// How it was to be.
    pub settings: Settings,
    pub namespace: Option<Identity>,
    /// The properties of its netdev.
    pub netdev: Option<Properties>,
    pub result: Result<Opened, OpenError>,
}

/// What has been found of netdevs in a namespace, by name.
#[derive(Debug)]
pub(super) struct NetdevReadings {
    pub netns: Netns,
    /// Which look it was.
    pub read_id: u64,
    pub found: HashMap<String, io::Result<Option<Properties>>>,
}

/// What came of looking at a name.
#[derive(Debug)]
pub(super) struct NamespaceIdentity {
    pub netns: Netns,
    /// After an error it is unknown.
    pub identity: io::Result<Option<Identity>>,
    /// There is a file of its name, and no namespace bound to it.
    pub is_unbound: bool,
    pub began: MonoTime,
}

/// What came of putting a netdev right.
#[derive(Debug)]
pub(super) struct RestoreResult {
    /// The port, by its key.
    pub port: u64,
    /// What was put right, in words.
    pub was: Vec<String>,
    pub result: Result<(), OpenError>,
}

/// What came of writing something down.
#[derive(Debug)]
pub(super) enum CommitDone {
    /// What has happened.
    Events(Result<(), StoreError>, Vec<Event>),
    /// A change.
    Change(Box<ChangeCommitted>),
    /// What a change would leave behind that is to be confirmed.
    Attempt(Result<(), StoreError>, ProvisionalChange),
}

/// What came of writing down a change.
#[derive(Debug)]
pub(super) struct ChangeCommitted {
    pub result: Result<(), ChangeError>,
    /// What tells of it, and what had happened before and was written down with it.
    pub event: Event,
    pub before: Vec<Event>,
    pub next: AfterCommit,
    /// The configuration file that was applied with it, if one was.
    pub last_applied: Option<Arc<Value>>,
}

/// What is done when a change has been written down.
#[derive(Debug)]
pub(super) enum AfterCommit {
    /// It is made.
    Apply { config: Box<Config>, transition: Box<Apply> },
    /// It stays, and does not go back.
    Answer { changed: ChangeResult, reply: Reply },
}

/// A change that goes back unless it is confirmed.
#[derive(Debug)]
pub(super) struct ProvisionalChange {
    /// What is wanted.
    pub config: Box<Config>,
    /// How it is gone over to.
    pub transition: Box<Apply>,
    /// The time for it to be confirmed, from when it has been made.
    pub within: Duration,
    /// What has changed.
    pub text: String,
}

/// The state that could not be used at the start, and can be now.
#[derive(Debug)]
pub(super) struct Recovered {
    pub config: Config,
    pub store: StateStore,
    /// Measures against loops and storms, and the state of pins.
    pub measures: Value,
    /// The greatest id of a stored event, if known.
    pub last_event: Option<u64>,
}

/// Where the answer to a change goes.
pub(super) type Reply = handle::Reply<Result<ChangeResult, ChangeError>>;

/// A change under way.
#[derive(Debug, Default)]
pub(super) struct Apply {
    /// What comes of it.
    pub result: ChangeResult,
    /// Who waits for it.
    pub reply: Option<Reply>,
    /// Ports, by key, for which something is done elsewhere that is waited for.
    pub pending_ops: HashSet<u64>,
    /// Ports, by key, that are to have a device in the end.
    pub wanted: HashSet<u64>,
    /// Since when that is waited for.
    pub since: MonoTime,
    /// Whether it goes back unless it is confirmed.
    pub to_be_confirmed: bool,
}

impl Apply {
    /// Whether something that is done with this port is waited for.
    pub fn awaits(&self, key: u64) -> bool {
        self.pending_ops.contains(&key)
    }

    /// It is not begun.
    pub fn reject(self, error: ChangeError) {
        if let Some(reply) = self.reply {
            // Whoever asked may be gone.
            let _ = reply.send(Err(error));
        }
    }
}
