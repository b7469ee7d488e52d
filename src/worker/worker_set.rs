//! Creates the workers of a switch, with their mailboxes and the rings between them.

use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::events::event_channel;
use super::peer::{MAX_WORKERS, Peer, pair};
use super::{DeviceGone, EventReceiver, Mailbox, Notifier, Worker, WorkerSetSettings};
use crate::telemetry::WorkerCounters;

/// Capacity of the notice channel: two per possible queue.
const NOTICES: usize = 8192;

/// The workers of a switch, with control's ends of their channels.
#[derive(Debug)]
pub struct WorkerSet {
    /// The workers, each for a thread of its own.
    pub workers: Vec<Worker>,
    /// Their mailboxes.
    pub mailboxes: Vec<Mailbox>,
    /// Per-worker counters.
    pub counters: Vec<Arc<WorkerCounters>>,
    /// Notices of lost devices.
    pub notices: mpsc::Receiver<DeviceGone>,
    /// Events that workers detect in guest traffic.
    pub events: EventReceiver,
}

/// Creates the workers. Fails if `workers` is out of range or an eventfd cannot be created.
pub fn worker_set(settings: WorkerSetSettings) -> io::Result<WorkerSet> {
    let count = usize::from(settings.workers);
    if count == 0 || count > MAX_WORKERS {
        return Err(io::Error::other(format!("a switch has 1 to {MAX_WORKERS} workers, not {count}")));
    }
    let notifiers = (0..count).map(|_| Notifier::new()).collect::<io::Result<Vec<_>>>()?;
    // peers[a][b]: worker a's ends of the rings between a and b.
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
