//! Control's side of the workers: their mailboxes, and waiting for their answers. When a call here
//! returns, what it asked for is true on every worker it was asked of, unless one hangs.
//!
//! Nothing here waits for a worker without a bound. Of one that has not answered in time, control logs that it hangs, and
//! waits for it no longer: commands that change something stay in its mailbox, in order, and everything else is left out.
//! The supervisor's watchdog decides whether the switch is restarted. If the worker answers after all, the devices that it
//! polls are opened again, so that what control believes is true.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{error, info};

use crate::switch::{FdbEntry, ForwardingConfig, MAX_NETWORKS, MAX_PORTS, PortId, Station};
use crate::telemetry::audit::{Audit, Snapshot};
use crate::telemetry::{PortCounters, WorkerCounters};
use crate::wire::{Announcement, Probe};
use crate::worker::{Announcements, Command, FdbPage, Flush, Mailbox, PortCounterTable, Probes, RxQueue, SubportTable};

/// Stations asked for at a time: a worker copies them within one breath.
const PAGE: usize = 1024;

/// Loop probes that a worker sends for one command.
const PROBES: usize = 64;

/// Between two pages: a worker is to spend next to nothing of its time on answers, each of which costs
/// it a system call to wake control. A million stations take a second or two at this pace.
const PAUSE: Duration = Duration::from_millis(1);

/// How long the answer to a command that changes something is waited for. It takes a worker less than a millisecond.
const CHANGING: Duration = Duration::from_secs(10);

/// How long the answer to a question is waited for. Less than clients wait.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether a worker answers.
#[derive(Debug, Default)]
struct Health {
    /// It has not answered in time.
    hangs: AtomicBool,
    /// Control went on without the answer to a command that changes something.
    was_given_up: AtomicBool,
    /// And it has answered since.
    is_back: AtomicBool,
}

/// The workers, as control knows them. Clones share them.
#[derive(Debug, Clone)]
pub struct WorkerHandles {
    mailboxes: Vec<Mailbox>,
    counters: Vec<Arc<WorkerCounters>>,
    health: Vec<Arc<Health>>,
    /// For how many subports the workers have room.
    subport_capacity: Arc<AtomicUsize>,
}

impl WorkerHandles {
    /// From what [`worker_set`](crate::worker::worker_set) made.
    pub fn new(mailboxes: Vec<Mailbox>, counters: Vec<Arc<WorkerCounters>>) -> WorkerHandles {
        let health = mailboxes.iter().map(|_| Arc::default()).collect();
        WorkerHandles { mailboxes, counters, health, subport_capacity: Arc::default() }
    }

    /// How many workers there are.
    #[allow(clippy::cast_possible_truncation)] // at most 64
    pub fn len(&self) -> u16 {
        self.mailboxes.len() as u16
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.mailboxes.is_empty()
    }

    /// The worker that polls a queue of a port whose first queue is polled by `first`.
    pub fn worker_for(&self, first: u16, queue: u16) -> u16 {
        let workers = self.len();
        (first + queue % workers) % workers
    }

    /// What each worker counts of itself.
    pub fn counters(&self) -> &[Arc<WorkerCounters>] {
        &self.counters
    }

    /// Has a worker change something. `None` if it has ended, or hangs.
    async fn command<T: Send + 'static>(
        &self,
        worker: usize,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.mailboxes[worker].send(command(reply)).then_some(())?;
        self.changed(worker, answer).await
    }

    /// The answer to a command that changes something.
    async fn changed<T: Send + 'static>(&self, worker: usize, answer: oneshot::Receiver<T>) -> Option<T> {
        let hangs = self.health[worker].hangs.load(Ordering::Relaxed);
        let answer = self.answer(worker, answer, if hangs { Duration::ZERO } else { CHANGING }).await;
        answer.unwrap_or_else(|()| {
            self.health[worker].was_given_up.store(true, Ordering::Relaxed);
            None
        })
    }

    /// Asks a worker something, or has it do what is of no use later. `None` if it has ended, or hangs.
    async fn question<T: Send + 'static>(
        &self,
        worker: usize,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Option<T> {
        if self.health[worker].hangs.load(Ordering::Relaxed) {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        self.mailboxes[worker].offer(command(reply)).then_some(())?;
        self.answer(worker, answer, REQUEST_TIMEOUT).await.unwrap_or_default()
    }

    /// Waits for an answer for a while; an error is that it has not come. What comes later is dropped.
    async fn answer<T: Send + 'static>(
        &self,
        worker: usize,
        mut answer: oneshot::Receiver<T>,
        patience: Duration,
    ) -> Result<Option<T>, ()> {
        let (post, health) = (&self.mailboxes[worker], &self.health[worker]);
        if let Ok(answer) = timeout(patience, post.answered(&mut answer)).await {
            return Ok(answer.ok());
        }
        if !health.hangs.swap(true, Ordering::Relaxed) {
            error!(worker, "the worker has not answered for {} s; control goes on without it", patience.as_secs());
        }
        let (post, health) = (post.clone(), health.clone());
        tokio::spawn(async move {
            let late = post.answered(&mut answer).await;
            if health.hangs.swap(false, Ordering::Relaxed) && late.is_ok() {
                info!(worker, "the worker answers again");
            }
            if late.is_ok() && health.was_given_up.swap(false, Ordering::Relaxed) {
                health.is_back.store(true, Ordering::Relaxed);
            }
            // To close a device may take a while.
            let _ = spawn_blocking(move || drop(late)).await;
        });
        Err(())
    }

    /// The workers that answer again after control went on without them, once: what they poll is to be opened again.
    pub fn take_returned(&self) -> Vec<u16> {
        let is_back = |health: &Arc<Health>| health.is_back.swap(false, Ordering::Relaxed);
        let back: Vec<u16> = (0..).zip(&self.health).filter(|(_, health)| is_back(health)).map(|(id, _)| id).collect();
        if !back.is_empty() {
            self.subport_capacity.store(0, Ordering::Relaxed);
        }
        back
    }

    /// Puts rules in force at all workers. `books`: the counters of each port, by worker.
    pub async fn set_config<'a>(
        &self,
        config: &Arc<ForwardingConfig>,
        port_counters: impl Iterator<Item = (PortId, &'a [Arc<PortCounters>])> + Clone,
    ) {
        self.reserve_subports(config.subports()).await;
        let mut answers = Vec::new();
        for (worker, post) in self.mailboxes.iter().enumerate() {
            let mut of_worker = PortCounterTable::new();
            for (port, counters) in port_counters.clone() {
                of_worker.resize_with(of_worker.len().max(port.index() + 1), || None);
                of_worker[port.index()] = counters.get(worker).cloned();
            }
            let (reply, answer) = oneshot::channel();
            if post.send(Command::Config(config.clone(), of_worker, reply)) {
                answers.push((worker, answer));
            }
        }
        for (worker, answer) in answers {
            // The old rules and books come back, and are dropped here.
            drop(self.changed(worker, answer).await);
        }
    }

    /// Sees to it that the workers have room for so many subports. It grows in leaps, and does not shrink.
    async fn reserve_subports(&self, subports: usize) {
        if subports <= self.subport_capacity.load(Ordering::Relaxed) {
            return;
        }
        let size = subports.next_power_of_two();
        self.subport_capacity.store(size, Ordering::Relaxed);
        for worker in 0..self.mailboxes.len() {
            // What they had comes back, and is dropped here.
            drop(self.command(worker, |reply| Command::Subports(SubportTable::with_capacity(size), reply)).await);
        }
    }

    /// Has a gate polled. It comes back if the worker has too many already.
    #[allow(clippy::result_large_err)] // it is the gate that comes back
    pub async fn open(&self, worker: u16, queue: RxQueue) -> Result<(), RxQueue> {
        self.command(usize::from(worker), |reply| Command::Open(queue, reply)).await.unwrap_or(Ok(()))
    }

    /// Has a gate polled no longer. It comes back, if it was.
    pub async fn close(&self, worker: u16, port: PortId, queue: u16) -> Option<RxQueue> {
        self.command(usize::from(worker), |reply| Command::Close(port, queue, reply)).await?
    }

    /// All stations that some worker has learned; where workers differ, as the latest saw it. `None` if a worker hangs or
    /// has ended.
    pub async fn stations(&self) -> Option<Vec<FdbEntry>> {
        let mut all: HashMap<Station, FdbEntry> = HashMap::new();
        for worker in 0..self.mailboxes.len() {
            let mut cursor = Some(0);
            while cursor.is_some() {
                let page = FdbPage { entries: Vec::with_capacity(PAGE), cursor };
                let page = self.question(worker, |reply| Command::Stations(page, reply)).await?;
                for learned in page.entries {
                    match all.entry(learned.station) {
                        Entry::Occupied(known) if known.get().last_seen >= learned.last_seen => {}
                        Entry::Occupied(mut known) => *known.get_mut() = learned,
                        Entry::Vacant(place) => drop(place.insert(learned)),
                    }
                }
                cursor = page.cursor;
                if cursor.is_some() {
                    sleep(PAUSE).await;
                }
            }
        }
        Some(all.into_values().collect())
    }

    /// How many stations are learned on each network, as the fullest table has it.
    pub async fn count_by_network(&self) -> Vec<u32> {
        let mut most = vec![0; MAX_NETWORKS];
        for worker in 0..self.mailboxes.len() {
            let counts = vec![0; MAX_NETWORKS];
            let Some(counts) = self.question(worker, |reply| Command::CountByNetwork(counts, reply)).await else {
                continue;
            };
            most.iter_mut().zip(counts).for_each(|(most, count)| *most = count.max(*most));
        }
        most
    }

    /// Has every worker read its counters, twice.
    pub async fn audit(&self) -> Audit {
        Audit { first: self.snapshots().await, second: self.snapshots().await }
    }

    async fn snapshots(&self) -> Vec<Snapshot> {
        let mut all = Vec::new();
        for worker in 0..self.mailboxes.len() {
            let reading = Box::new(Snapshot::with_capacity(MAX_PORTS));
            // Of a worker that has ended there is nothing to be had, and nothing to be balanced.
            all.extend(self.question(worker, |reply| Command::Audit(reading, reply)).await.map(|reading| *reading));
        }
        all
    }

    /// Has stations forgotten everywhere. How many were, as the fullest table had it.
    pub async fn flush(&self, flush: Flush) -> u32 {
        let mut most = 0;
        for worker in 0..self.mailboxes.len() {
            let (mut forgotten, mut cursor) = (0, Some(0));
            while let Some(at) = cursor {
                let part = Flush { cursor: at, ..flush };
                let Some(flushed) = self.command(worker, |reply| Command::Flush(part, reply)).await else { break };
                forgotten += flushed.stations;
                cursor = flushed.cursor;
            }
            most = forgotten.max(most);
        }
        most
    }

    /// Has stations learned everywhere, in this order, where nothing is known of them yet.
    pub async fn learn(&self, stations: &[FdbEntry]) {
        for worker in 0..self.mailboxes.len() {
            for page in stations.chunks(PAGE) {
                // The page comes back, and is dropped here.
                drop(self.question(worker, |reply| Command::Learn(page.to_vec(), reply)).await);
            }
        }
    }

    /// Sends loop probes, each out of its port by the worker that these rules, which are in force, name. Those for
    /// ports that have none are not sent.
    pub async fn probe(&self, config: &ForwardingConfig, probes: impl Iterator<Item = (PortId, [u8; Probe::LEN])>) {
        let mut of_worker = vec![Probes::new(); self.mailboxes.len()];
        for (port, bytes) in probes {
            let worker = config.port(port).and_then(|port| port.worker);
            if let Some(probes) = worker.and_then(|worker| of_worker.get_mut(usize::from(worker))) {
                probes.push((port, bytes));
            }
        }
        for (worker, probes) in of_worker.iter().enumerate() {
            for probes in probes.chunks(PROBES) {
                // They come back, and are dropped here.
                drop(self.question(worker, |reply| Command::Probes(probes.to_vec(), reply)).await);
            }
        }
    }

    /// Sends announcements, each by the uplink whose port on a network it names, and by the worker that these rules,
    /// which are in force, name.
    pub async fn announce(
        &self,
        config: &ForwardingConfig,
        frames: impl Iterator<Item = (PortId, [u8; Announcement::LEN])>,
    ) {
        let mut of_worker = vec![Announcements::new(); self.mailboxes.len()];
        for (port, frame) in frames {
            let worker = config.port(port).and_then(|port| port.worker);
            if let Some(announcements) = worker.and_then(|worker| of_worker.get_mut(usize::from(worker))) {
                announcements.push((port, frame));
            }
        }
        for (worker, announcements) in of_worker.into_iter().enumerate() {
            if !announcements.is_empty() {
                // They come back, and are dropped here.
                drop(self.question(worker, |reply| Command::Announce(announcements, reply)).await);
            }
        }
    }

    /// Stops all workers. Their gates come back.
    pub async fn stop(&self) -> Vec<RxQueue> {
        let mut queues = Vec::new();
        for worker in 0..self.mailboxes.len() {
            queues.extend(self.command(worker, Command::Stop).await.unwrap_or_default());
        }
        queues
    }
}
