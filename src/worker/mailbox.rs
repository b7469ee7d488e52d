//! Commands from control to a worker. One mailbox per worker, executed in order, one command per `poll_once`, each
//! in bounded time. The reply returns what a command replaces (old configurations, closed devices), so that control
//! drops it rather than the worker.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;
use tokio::time::sleep;

use super::{Notifier, PortCounterTable, RxQueue, SubportTable};
use crate::switch::{FdbEntry, ForwardingConfig, NetworkId, PortId};
use crate::telemetry::audit::Snapshot;
use crate::wire::{Announcement, Mac, ProbeFrame};

/// Capacity of a mailbox in commands. It fills only if the worker hangs.
const MAILBOX: usize = 64;

/// Maximum number of commands that wait for room in a full mailbox.
const WAITING: usize = 4096;

/// Interval of moving waiting commands into a full mailbox.
const FORWARD: Duration = Duration::from_millis(50);

/// A page of a worker's FDB entries; request and reply.
#[derive(Debug)]
pub struct FdbPage {
    /// The capacity is the maximum number of entries.
    pub entries: Vec<FdbEntry>,
    /// Request: where to begin. Reply: where to continue, `None` at the end.
    pub cursor: Option<usize>,
}

/// Filter for flushing FDB entries: those that match all given fields. Each command flushes a part of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flush {
    /// Entries of this network.
    pub network: Option<NetworkId>,
    /// Entries learned at this port index ([`PortId::index`]), in any generation of it.
    pub port_index: Option<usize>,
    /// Entries with this address.
    pub mac: Option<Mac>,
    /// Where to begin: 0, then the reply's cursor.
    pub cursor: usize,
}

impl Flush {
    /// Whether the entry matches.
    pub fn matches(&self, learned: &FdbEntry) -> bool {
        self.network.is_none_or(|network| learned.station.network() == network)
            && self.port_index.is_none_or(|place| learned.port.index() == place)
            && self.mac.is_none_or(|mac| learned.station.mac() == mac)
    }
}

/// Result of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flushed {
    /// Number of entries flushed whose port is at this worker.
    pub stations: u32,
    /// Where to continue; `None` at the end.
    pub cursor: Option<usize>,
}

/// Loop probes with their egress ports.
pub type Probes = Vec<(PortId, ProbeFrame)>;

/// Announcements of local stations, each with its uplink's port on one network.
pub type Announcements = Vec<(PortId, [u8; Announcement::LEN])>;

/// A command, with the channel of its reply.
#[derive(Debug)]
pub enum Command {
    /// Replace the forwarding configuration and the port counters. Returns the old ones.
    Config(Arc<ForwardingConfig>, PortCounterTable, oneshot::Sender<(Arc<ForwardingConfig>, PortCounterTable)>),
    /// Replace the subport table. Returns the old one. Must precede a configuration that has more subports than the
    /// current table.
    Subports(SubportTable, oneshot::Sender<SubportTable>),
    /// Start polling this queue. Returns it on failure.
    Open(RxQueue, oneshot::Sender<Result<(), RxQueue>>),
    /// Stop polling this queue of this port. Returns it if it was open.
    Close(PortId, u16, oneshot::Sender<Option<RxQueue>>),
    /// Fill a page of FDB entries.
    Stations(FdbPage, oneshot::Sender<FdbPage>),
    /// Count the learned stations per network, by [`NetworkId::index`](crate::switch::NetworkId::index).
    CountByNetwork(Vec<u32>, oneshot::Sender<Vec<u32>>),
    /// Read all counters at a moment at which they balance. The snapshot has room for
    /// [`MAX_PORTS`](crate::switch::MAX_PORTS).
    Audit(Box<Snapshot>, oneshot::Sender<Box<Snapshot>>),
    /// Reply: shows that the worker polls.
    Ping(oneshot::Sender<()>),
    /// Flush FDB entries.
    Flush(Flush, oneshot::Sender<Flushed>),
    /// Learn these stations unless known. Returns them.
    Learn(Vec<FdbEntry>, oneshot::Sender<Vec<FdbEntry>>),
    /// Restore these of the stations, the youngest first. Returns them.
    Restore(Arc<[FdbEntry]>, Range<usize>, oneshot::Sender<Arc<[FdbEntry]>>),
    /// Send these loop probes in order. Returns them. Each counts as one of its port's `probes`, even if dropped;
    /// probes for closed ports are not counted.
    Probes(Probes, oneshot::Sender<Probes>),
    /// Send these announcements in order. Returns them. Each counts as one of its uplink's `announcements`, even if
    /// dropped; those for closed ports and for ports that are not uplinks are not counted.
    Announce(Announcements, oneshot::Sender<Announcements>),
    /// Receive nothing, or receive again: frames of the first port opened would be dropped where that to the next port is
    /// not open yet.
    Hold(bool, oneshot::Sender<()>),
    /// Stop. Returns all queues.
    Stop(oneshot::Sender<Vec<RxQueue>>),
}

/// Unsolicited notices from a worker to control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceGone {
    /// A device is gone. Its queue is no longer polled and waits to be closed.
    DeviceGone {
        /// The device's port.
        port: PortId,
        /// The device's queue.
        queue: u16,
    },
}

/// Control's end of a worker's mailbox. Sending never blocks.
#[derive(Debug, Clone)]
pub struct Mailbox {
    sender: Sender<Command>,
    notifier: Notifier,
    /// Commands that did not fit into the mailbox, in order.
    waiting: Arc<Mutex<VecDeque<Command>>>,
}

impl Mailbox {
    /// Creates a mailbox: sending end and reading end.
    pub fn new(notifier: Notifier) -> (Mailbox, Receiver<Command>) {
        let (sender, read) = bounded(MAILBOX);
        (Mailbox { sender, notifier, waiting: Arc::default() }, read)
    }

    /// Enqueues a command. `false` if the worker is gone or `WAITING` commands are already pending.
    pub fn send(&self, command: Command) -> bool {
        let mut waiting = self.waiting();
        if !waiting.is_empty() {
            if waiting.len() >= WAITING {
                return false;
            }
            waiting.push_back(command);
            return self.move_waiting(&mut waiting);
        }
        match self.sender.try_send(command) {
            Err(TrySendError::Full(command)) => waiting.push_back(command),
            Err(TrySendError::Disconnected(_)) => return false,
            Ok(()) => {}
        }
        self.notifier.notify();
        true
    }

    /// Sends a command if the mailbox has room.
    pub fn offer(&self, command: Command) -> bool {
        let sent = self.waiting().is_empty() && self.sender.try_send(command).is_ok();
        self.notifier.notify();
        sent
    }

    /// Waits for a reply. Moves waiting commands into the mailbox until it arrives, and then too: the worker has taken a
    /// command.
    pub async fn answered<T>(&self, answer: &mut oneshot::Receiver<T>) -> Result<T, RecvError> {
        let answered = self.answer(answer).await;
        let mut waiting = self.waiting();
        if !waiting.is_empty() {
            self.move_waiting(&mut waiting);
        }
        answered
    }

    async fn answer<T>(&self, answer: &mut oneshot::Receiver<T>) -> Result<T, RecvError> {
        while !self.waiting().is_empty() {
            tokio::select! {
                answered = &mut *answer => return answered,
                () = sleep(FORWARD) => drop(self.move_waiting(&mut self.waiting())),
            }
        }
        answer.await
    }

    /// Moves waiting commands into the mailbox while it has room. `false` if the worker is gone.
    fn move_waiting(&self, waiting: &mut VecDeque<Command>) -> bool {
        while let Some(command) = waiting.pop_front() {
            match self.sender.try_send(command) {
                Ok(()) => {}
                Err(TrySendError::Full(command)) => {
                    waiting.push_front(command);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => {
                    waiting.clear();
                    return false;
                }
            }
        }
        self.notifier.notify();
        true
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Command>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hung_worker_blocks_no_sender_and_gets_every_command_in_order() {
        let (mailbox, read) = Mailbox::new(Notifier::new().unwrap());
        let ping = || {
            let (reply, answer) = oneshot::channel();
            (Command::Ping(reply), answer)
        };
        let mut answers: Vec<_> = std::iter::from_fn(|| {
            let (command, answer) = ping();
            mailbox.send(command).then_some(answer)
        })
        .collect();
        assert_eq!(answers.len(), MAILBOX + WAITING);
        assert!(!mailbox.offer(ping().0), "commands without later use are dropped");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let reader = tokio::spawn(async move {
                let mut order = 0;
                while order < MAILBOX + WAITING {
                    match read.try_recv() {
                        Ok(Command::Ping(reply)) => order += usize::from(reply.send(()).is_ok()),
                        _ => sleep(Duration::from_millis(1)).await,
                    }
                }
                read
            });
            for answer in &mut answers {
                mailbox.answered(answer).await.unwrap();
            }
            let read = reader.await.unwrap();
            assert!(mailbox.offer(ping().0));
            drop(read);
            assert!(!mailbox.send(ping().0), "the worker is gone");
        });
    }

    #[test]
    fn commands_that_wait_follow_as_soon_as_the_worker_has_answered_others() {
        let (mailbox, read) = Mailbox::new(Notifier::new().unwrap());
        let mut answers: Vec<_> = (0..2 * MAILBOX)
            .map(|_| {
                let (reply, answer) = oneshot::channel();
                assert!(mailbox.send(Command::Ping(reply)));
                answer
            })
            .collect();
        // Time does not pass between an answer and the next command.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for answer in &mut answers {
                let Ok(Command::Ping(reply)) = read.try_recv() else { panic!("there is none") };
                reply.send(()).unwrap();
                mailbox.answered(answer).await.unwrap();
            }
        });
    }
}
