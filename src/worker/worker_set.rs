//! Workers that know each other, with their mailboxes.

use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::events::event_channel;
use super::peer::{MAX_WORKERS, Peer, pair};
use super::{DeviceGone, EventReceiver, Mailbox, Notifier, Worker};
use crate::frame::Pool;
use crate::switch::HashKey;
use crate::telemetry::WorkerCounters;
use crate::wire::ProbeKey;

/// Notices on their way to control, at most: two for each queue there can be.
const NOTICES: usize = 8192;

/// What all workers of a switch have in common.
#[derive(Debug, Clone, Copy)]
pub struct WorkerSetSettings {
    /// How many there are.
    pub workers: u16,
    /// Where their frames live.
    pub pool: &'static Pool,
    /// How many stations each can learn.
    pub fdb_capacity: u32,
    /// The key under which stations are filed.
    pub hash_key: HashKey,
    /// The key under which loop probes are sent.
    pub probe_key: ProbeKey,
}

/// Workers that know each other, and control's ends of what leads to them.
#[derive(Debug)]
pub struct WorkerSet {
    /// The workers, each to be run by a thread of its own.
    pub workers: Vec<Worker>,
    /// Their mailboxes.
    pub mailboxes: Vec<Mailbox>,
    /// What they count of themselves.
    pub counters: Vec<Arc<WorkerCounters>>,
    /// What they tell unasked.
    pub notices: mpsc::Receiver<DeviceGone>,
    /// What they have found out about guests.
    pub events: EventReceiver,
}

/// Makes a team.
pub fn worker_set(settings: WorkerSetSettings) -> io::Result<WorkerSet> {
    let count = usize::from(settings.workers);
    if count == 0 || count > MAX_WORKERS {
        return Err(io::Error::other(format!("a switch has 1 to {MAX_WORKERS} workers, not {count}")));
    }
    let notifiers = (0..count).map(|_| Notifier::new()).collect::<io::Result<Vec<_>>>()?;
    // peers[a][b]: worker a's ends of the rings between a and b
    let mut peers: Vec<Vec<Option<Peer>>> = (0..count).map(|_| (0..count).map(|_| None).collect()).collect();
    for a in 0..count {
        for b in a + 1..count {
            let (of_a, of_b) = pair(&notifiers[a], &notifiers[b]);
            peers[a][b] = Some(of_a);
            peers[b][a] = Some(of_b);
        }
    }
    let (notify, notices) = mpsc::channel(NOTICES);
    let (event_sender, events) = event_channel();
    let mut worker_set =
        WorkerSet { workers: Vec::new(), mailboxes: Vec::new(), counters: Vec::new(), notices, events };
    for ((index, notifier), peers) in (0..settings.workers).zip(notifiers).zip(peers) {
        let (handle, mailbox) = Mailbox::new(notifier.clone());
        let counters = Arc::new(WorkerCounters::default());
        worker_set.workers.push(Worker::new(
            index,
            &settings,
            mailbox,
            notifier,
            peers,
            counters.clone(),
            notify.clone(),
            event_sender.clone(),
        )?);
        worker_set.mailboxes.push(handle);
        worker_set.counters.push(counters);
    }
    Ok(worker_set)
}
