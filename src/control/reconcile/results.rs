//! Input and results of background work; each result is a [`DeviceEvent`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::lifetimes::{LifetimeReport, Recognised};
use crate::control::api::handle::{self, Request};
use crate::control::config::Config;
use crate::control::desired::change::{ChangeError, ChangeResult};
use crate::control::desired::orphans::OrphanNetdev;
use crate::control::state::StateStore;
use crate::control::state::events::Event;
use crate::control::state::history::Entry;
use crate::control::state::store::StoreError;
use crate::device::properties::Properties;
use crate::device::{OpenError, Opened, Removal, Settings};
use crate::sys::netns::{Identity, Netns};
use crate::time::MonoTime;

/// Result of background work. Ports are identified by key.
#[derive(Debug)]
pub(super) enum DeviceEvent {
    /// An attempt to open a device.
    Opened(Box<OpenResult>),
    /// A device is closed; with a warning if that failed in part.
    Closed { port: u64, removed: Option<OrphanNetdev>, warning: Option<String> },
    /// An orphaned netdev was removed, or could not be.
    OrphanRemoved { left: OrphanNetdev, result: Result<Removal, OpenError> },
    /// A commit has ended.
    Committed(CommitDone),
    /// Result of a retry to open the state, and the changes that wait for it.
    StateReopened(Box<Result<Recovered, String>>, VecDeque<Request>),
    /// Netdevs were read.
    NetdevsRead(NetdevReadings),
    /// A namespace was identified.
    NamespaceIdentified(NamespaceIdentity),
    /// A netdev was adjusted.
    Adjusted { port: u64, result: Result<(), OpenError> },
    /// A netdev changed by others was restored.
    Restored(RestoreResult),
}

/// Result of an attempt to open a device.
#[derive(Debug)]
pub(super) struct OpenResult {
    pub port: u64,
    /// Settings used.
    pub settings: Settings,
    pub namespace: Option<Identity>,
    /// The properties of its netdev.
    pub netdev: Option<Properties>,
    /// The namespace, for a port that ends with it.
    pub recognised: Recognised,
    pub result: Result<Opened, OpenError>,
}

/// Netdevs of a namespace, by name.
#[derive(Debug)]
pub(super) struct NetdevReadings {
    pub netns: Netns,
    /// Number of the reading.
    pub read_id: u64,
    pub found: HashMap<String, io::Result<Option<Properties>>>,
}

/// Identity of a namespace.
#[derive(Debug)]
pub(super) struct NamespaceIdentity {
    pub netns: Netns,
    /// After an error it is unknown.
    pub identity: io::Result<Option<Identity>>,
    /// A file of this name exists, with no namespace bound to it.
    pub is_unbound: bool,
    /// What was found out for ports that end with it.
    pub lifetimes: LifetimeReport,
    pub began: MonoTime,
}

/// Result of restoring a netdev.
#[derive(Debug)]
pub(super) struct RestoreResult {
    /// The port, by its key.
    pub port: u64,
    /// Descriptions of the restored properties.
    pub was: Vec<String>,
    pub result: Result<(), OpenError>,
}

/// Result of a commit.
#[derive(Debug)]
pub(super) enum CommitDone {
    /// Events.
    Events(Result<(), StoreError>, Vec<Event>),
    /// A change.
    Change(Box<ChangeCommitted>),
    /// The orphans of a provisional change.
    Attempt(Result<(), StoreError>, ProvisionalChange),
}

/// Result of committing a change, or several together.
#[derive(Debug)]
pub(super) struct ChangeCommitted {
    pub result: Result<(), ChangeError>,
    /// Number of the configuration after them.
    pub generation: u64,
    /// Events of the changes, and earlier events committed with them.
    pub events: Vec<Event>,
    pub before: Vec<Event>,
    /// Generations that they make.
    pub made: Vec<Arc<Entry>>,
    pub next: AfterCommit,
    /// The configuration file applied with it, if any.
    pub last_applied: Option<Arc<Value>>,
}

/// Action after a change is committed.
#[derive(Debug)]
pub(super) enum AfterCommit {
    /// Apply it.
    Apply { config: Box<Config>, apply: Box<Apply> },
    /// Reply: an unconfirmed change is now permanent.
    Answer { changed: ChangeResult, reply: Reply },
}

/// A change that is reverted unless confirmed.
#[derive(Debug)]
pub(super) struct ProvisionalChange {
    /// Its configuration.
    pub config: Box<Config>,
    /// The change as it will be applied.
    pub apply: Box<Apply>,
    /// Its generation.
    pub generation: u64,
    /// Time to confirm, from when it is applied.
    pub within: Duration,
    /// Summary of changes.
    pub text: String,
    /// The generation that it makes, and the one of its revert if the process ends before.
    pub made: [Arc<Entry>; 2],
}

/// State that was unusable at the start and is usable now.
#[derive(Debug)]
pub(super) struct Recovered {
    pub config: Config,
    pub store: StateStore,
    /// Stored mitigation measures and activations.
    pub measures: Value,
    /// The greatest event id in use, if known.
    pub last_event: Option<u64>,
}

/// Reply channel of a change.
pub(super) type Reply = handle::Reply<Result<ChangeResult, ChangeError>>;

/// Changes being applied together: one, or a group.
#[derive(Debug, Default)]
pub(super) struct Apply {
    /// The changes.
    pub members: Vec<Member>,
    /// Replies to requests that change nothing, or were refused, because of what the members do.
    pub answers: Vec<(Reply, Result<ChangeResult, ChangeError>)>,
    /// Ports with a pending operation, by key, with their names.
    pub pending_ops: HashMap<u64, String>,
    /// Keys of ports to be opened.
    pub wanted: HashSet<u64>,
    /// Ids of ports that end with their network namespace.
    pub ended: HashSet<String>,
    /// Start of waiting for the operations.
    pub since: MonoTime,
    /// Whether it is reverted unless confirmed.
    pub to_be_confirmed: bool,
}

/// A change of those that are applied together.
#[derive(Debug, Default)]
pub(super) struct Member {
    /// Its result.
    pub result: ChangeResult,
    /// The client.
    pub reply: Option<Reply>,
    /// Names of the ports that it concerns; `None`: all.
    pub ports: Option<HashSet<String>>,
}

impl Member {
    /// Whether it concerns this port.
    pub fn concerns(&self, port: &str) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(port))
    }
}

impl Apply {
    /// Applies one change.
    pub fn one(result: ChangeResult, reply: Option<Reply>) -> Apply {
        Apply { members: vec![Member { result, reply, ports: None }], ..Apply::default() }
    }

    /// Whether an operation on this port is pending.
    pub fn awaits(&self, key: u64) -> bool {
        self.pending_ops.contains_key(&key)
    }

    /// Adds a warning to the changes that concern this port.
    pub fn warn(&mut self, port: &str, warning: &str) {
        let concerned = self.members.iter_mut().filter(|member| member.concerns(port));
        concerned.for_each(|member| member.result.warnings.push(warning.to_owned()));
    }

    /// Rejects the changes before they start, and the requests that depend on them.
    pub fn reject(self, error: &ChangeError) {
        let members = self.members.into_iter().filter_map(|member| member.reply);
        for reply in members.chain(self.answers.into_iter().map(|(reply, _)| reply)) {
            // The client may have disconnected.
            let _ = reply.send(Err(error.clone()));
        }
    }
}
