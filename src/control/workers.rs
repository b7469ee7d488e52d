//! Sends commands to workers and awaits their replies. When a call returns, every addressed worker has executed the
//! command, unless it hangs.
//!
//! Every wait has a timeout. Control logs a worker that exceeds it and stops waiting for it: commands that change state
//! stay in its mailbox, in order; queries are skipped. The supervisor's watchdog decides on a restart. If the worker
//! replies later, control reopens the devices that it polls, so that the state of both agrees.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::{error, info};

use crate::control::background;
use crate::switch::{FdbEntry, ForwardingConfig, MAX_NETWORKS, MAX_PORTS, PortId, Station};
use crate::telemetry::audit::{Audit, Snapshot};
use crate::telemetry::{PortCounters, WorkerCounters};
use crate::wire::{Announcement, ProbeFrame};
use crate::worker::{Command, FdbPage, Flush, Mailbox, PortCounterTable, RxQueue, SubportTable};

/// FDB entries per page: a worker copies a page within one `poll_once`.
pub const PAGE: usize = 1024;

/// Loop probes that a worker sends for one command.
const PROBES: usize = 64;

/// Pause between two pages. It limits the load on the worker, which wakes control by one system call per reply. A
/// million entries take 1 to 2 s.
const PAUSE: Duration = Duration::from_millis(1);

/// Timeout of a command that changes state. A worker needs less than 1 ms.
const CHANGING: Duration = Duration::from_secs(10);

/// Timeout of a query. Less than the timeout of clients.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Responsiveness of a worker.
#[derive(Debug, Default)]
struct Health {
    /// The worker has exceeded a timeout.
    hangs: AtomicBool,
    /// A command that changes state has exceeded its timeout.
    was_given_up: AtomicBool,
    /// The worker has replied after that.
    is_back: AtomicBool,
}

/// Handles of all workers. Clones share them.
#[derive(Debug, Clone)]
pub struct WorkerHandles {
    mailboxes: Vec<Mailbox>,
    counters: Vec<Arc<WorkerCounters>>,
    health: Vec<Arc<Health>>,
    /// Number of subports that the workers have capacity for.
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

    /// Counters of each worker.
    pub fn counters(&self) -> &[Arc<WorkerCounters>] {
        &self.counters
    }

    /// Sends a command that changes state. `None` if the worker has ended or hangs.
    async fn command<T: Send + 'static>(
        &self,
        worker: usize,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.mailboxes[worker].send(command(reply)).then_some(())?;
        self.changed(worker, answer).await
    }

    /// Awaits the reply to a command that changes state.
    async fn changed<T: Send + 'static>(&self, worker: usize, answer: oneshot::Receiver<T>) -> Option<T> {
        let hangs = self.health[worker].hangs.load(Ordering::Relaxed);
        let answer = self.answer(worker, answer, if hangs { Duration::ZERO } else { CHANGING }).await;
        answer.unwrap_or_else(|()| {
            self.health[worker].was_given_up.store(true, Ordering::Relaxed);
            None
        })
    }

    /// Sends a query, or a command that is useless if late. `None` if the worker has ended or hangs.
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

    /// Awaits a reply for at most `patience`. `Err` on timeout; a late reply is dropped.
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
            // Dropping the reply may close a device, which blocks.
            let _ = background::run(move || drop(late)).await;
        });
        Err(())
    }

    /// Takes the workers that reply again after a timeout. The caller reopens the devices that they poll.
    pub fn take_returned(&self) -> Vec<u16> {
        let is_back = |health: &Arc<Health>| health.is_back.swap(false, Ordering::Relaxed);
        let back: Vec<u16> = (0..).zip(&self.health).filter(|(_, health)| is_back(health)).map(|(id, _)| id).collect();
        if !back.is_empty() {
            self.subport_capacity.store(0, Ordering::Relaxed);
        }
        back
    }

    /// Installs the forwarding configuration on all workers. `port_counters`: the counters of each port, by worker.
    pub async fn set_config<'a>(
        &self,
        config: &Arc<ForwardingConfig>,
        port_counters: impl Iterator<Item = (PortId, &'a [Arc<PortCounters>])> + Clone,
    ) {
        self.reserve_subports(config.subports()).await;
        let mut answers = Vec::new();
        for (worker, post) in self.mailboxes.iter().enumerate() {
            let mut of_worker = PortCounterTable::new();
            let size = port_counters.clone().map(|(port, _)| port.index() + 1).max();
            of_worker.resize_with(size.unwrap_or(0), || None);
            for (port, counters) in port_counters.clone() {
                of_worker[port.index()] = counters.get(worker).cloned();
            }
            let (reply, answer) = oneshot::channel();
            if post.send(Command::Config(config.clone(), of_worker, reply)) {
                answers.push((worker, answer));
            }
        }
        for (worker, answer) in answers {
            // Drops the previous configuration and counters here, off the worker.
            drop(self.changed(worker, answer).await);
        }
    }

    /// Grows the subport capacity of the workers to the next power of two. Capacity does not shrink.
    async fn reserve_subports(&self, subports: usize) {
        if subports <= self.subport_capacity.load(Ordering::Relaxed) {
            return;
        }
        let size = subports.next_power_of_two();
        self.subport_capacity.store(size, Ordering::Relaxed);
        for worker in 0..self.mailboxes.len() {
            // Drops the previous table here, off the worker.
            drop(self.command(worker, |reply| Command::Subports(SubportTable::with_capacity(size), reply)).await);
        }
    }

    /// Makes a worker poll a queue. Returns the queue as the error if the worker is at its maximum.
    #[allow(clippy::result_large_err)] // the error is the queue
    pub async fn open(&self, worker: u16, queue: RxQueue) -> Result<(), RxQueue> {
        self.command(usize::from(worker), |reply| Command::Open(queue, reply)).await.unwrap_or(Ok(()))
    }

    /// Makes a worker stop polling a queue. Returns the queue if the worker polled it.
    pub async fn close(&self, worker: u16, port: PortId, queue: u16) -> Option<RxQueue> {
        self.command(usize::from(worker), |reply| Command::Close(port, queue, reply)).await?
    }

    /// Merged FDB of all workers; the most recently seen entry of a station wins. `None` if a worker hangs or has ended.
    pub async fn stations(&self) -> Option<Vec<FdbEntry>> {
        self.stations_where(|_| true).await
    }

    /// The same, of the stations to keep.
    pub async fn stations_where(&self, keep: impl Fn(Station) -> bool) -> Option<Vec<FdbEntry>> {
        let mut all: HashMap<Station, FdbEntry> = HashMap::new();
        for worker in 0..self.mailboxes.len() {
            let mut cursor = Some(0);
            while cursor.is_some() {
                let page = FdbPage { entries: Vec::with_capacity(PAGE), cursor };
                let page = self.question(worker, |reply| Command::Stations(page, reply)).await?;
                for learned in page.entries.into_iter().filter(|learned| keep(learned.station)) {
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

    /// Learned stations per network: the maximum over all workers.
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

    /// Takes two counter snapshots of every worker.
    pub async fn audit(&self) -> Audit {
        Audit { first: self.snapshots().await, second: self.snapshots().await }
    }

    async fn snapshots(&self) -> Vec<Snapshot> {
        let mut all = Vec::new();
        for worker in 0..self.mailboxes.len() {
            let reading = Box::new(Snapshot::with_capacity(MAX_PORTS));
            // Skips a worker that has ended or hangs.
            all.extend(self.question(worker, |reply| Command::Audit(reading, reply)).await.map(|reading| *reading));
        }
        all
    }

    /// Flushes FDB entries on all workers. Returns the number of flushed entries: the maximum over all workers.
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

    /// Adds FDB entries on all workers, in this order. Existing entries remain.
    pub async fn learn(&self, stations: &[FdbEntry]) {
        for worker in 0..self.mailboxes.len() {
            for page in stations.chunks(PAGE) {
                // Drops the page here, off the worker.
                drop(self.question(worker, |reply| Command::Learn(page.to_vec(), reply)).await);
            }
        }
    }

    /// Restores FDB entries on all workers, which come in the order of their age, the youngest first. A worker adds `page`
    /// of them within one `poll_once`. Known entries, and those that others have no room for, are left out.
    pub async fn restore(&self, stations: Vec<FdbEntry>, page: usize) {
        let stations: Arc<[FdbEntry]> = stations.into();
        for first in (0..stations.len()).step_by(page) {
            let range = first..stations.len().min(first + page);
            // All workers at once.
            let mut answers = Vec::new();
            for (worker, post) in self.mailboxes.iter().enumerate() {
                let (reply, answer) = oneshot::channel();
                if !self.health[worker].hangs.load(Ordering::Relaxed)
                    && post.offer(Command::Restore(stations.clone(), range.clone(), reply))
                {
                    answers.push((worker, answer));
                }
            }
            for (worker, answer) in answers {
                // Drops the stations here, off the worker.
                drop(self.answer(worker, answer, REQUEST_TIMEOUT).await);
            }
        }
    }

    /// Frames by worker to which `config` assigns their ports, without those of ports without a worker.
    fn by_worker<F: Clone>(
        &self,
        config: &ForwardingConfig,
        frames: impl Iterator<Item = (PortId, F)>,
    ) -> Vec<Vec<(PortId, F)>> {
        let mut of_worker = vec![Vec::new(); self.mailboxes.len()];
        for (port, frame) in frames {
            let worker = config.port(port).and_then(|port| port.worker);
            if let Some(frames) = worker.and_then(|worker| of_worker.get_mut(usize::from(worker))) {
                frames.push((port, frame));
            }
        }
        of_worker
    }

    /// Sends loop probes, each by the worker that `config`, the installed configuration, assigns to the port. Skips ports
    /// without a worker.
    pub async fn probe(&self, config: &ForwardingConfig, probes: impl Iterator<Item = (PortId, ProbeFrame)>) {
        for (worker, probes) in self.by_worker(config, probes).iter().enumerate() {
            for probes in probes.chunks(PROBES) {
                // Drops the frames here, off the worker.
                drop(self.question(worker, |reply| Command::Probes(probes.to_vec(), reply)).await);
            }
        }
    }

    /// Sends announcements, each on its uplink VLAN port by the worker that `config`, the installed configuration, assigns
    /// to it.
    pub async fn announce(
        &self,
        config: &ForwardingConfig,
        frames: impl Iterator<Item = (PortId, [u8; Announcement::LEN])>,
    ) {
        for (worker, announcements) in self.by_worker(config, frames).into_iter().enumerate() {
            if !announcements.is_empty() {
                // Drops the frames here, off the worker.
                drop(self.question(worker, |reply| Command::Announce(announcements, reply)).await);
            }
        }
    }

    /// Makes all workers receive nothing, or receive again.
    pub async fn hold(&self, is_held: bool) {
        for worker in 0..self.mailboxes.len() {
            let _ = self.command(worker, |reply| Command::Hold(is_held, reply)).await;
        }
    }

    /// Stops all workers and returns their queues.
    pub async fn stop(&self) -> Vec<RxQueue> {
        let mut queues = Vec::new();
        for worker in 0..self.mailboxes.len() {
            queues.extend(self.command(worker, Command::Stop).await.unwrap_or_default());
        }
        queues
    }
}
