//! What control may ask of a worker. One mailbox per worker, read in order, one command per breath,
//! each handled in bounded time. What control gave, control gets back: old rules and closed devices
//! return in the reply and are dropped there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;
use tokio::time::sleep;

use super::{Notifier, RxQueue, SubportTable};
use crate::switch::{FdbEntry, ForwardingConfig, NetworkId, PortId};
use crate::telemetry::PortCounters;
use crate::telemetry::audit::Snapshot;
use crate::wire::{Announcement, Mac, Probe};

/// Commands that a mailbox holds. It fills only if the worker hangs.
const MAILBOX: usize = 64;

/// Commands that wait for room in a full mailbox.
const WAITING: usize = 4096;

/// How often a mailbox is looked at for which commands wait.
const FORWARD: Duration = Duration::from_millis(50);

/// The counters of one worker, by [`PortId::index`]: of uplinks as carriers, and of ports of VMs, subports
/// included.
pub type PortCounterTable = Vec<Option<Arc<PortCounters>>>;

/// A page of a worker's stations, on the way there and back.
#[derive(Debug)]
pub struct FdbPage {
    /// Its capacity says how many stations may be put into it.
    pub entries: Vec<FdbEntry>,
    /// Where to begin; in the answer, where to go on, `None` at the end.
    pub cursor: Option<usize>,
}

/// Which stations to forget: those to which all that is given applies. A part of the table at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flush {
    /// Those of this network.
    pub network: Option<NetworkId>,
    /// Those that were learned behind the port at this place ([`PortId::index`]), or behind one that
    /// stood there before.
    pub port_index: Option<usize>,
    /// Those with this address.
    pub mac: Option<Mac>,
    /// Where to begin: 0, then what the answer says.
    pub cursor: usize,
}

impl Flush {
    /// Whether this station is one of them.
    pub fn matches(&self, learned: &FdbEntry) -> bool {
        self.network.is_none_or(|network| learned.station.network() == network)
            && self.port_index.is_none_or(|place| learned.port.index() == place)
            && self.mac.is_none_or(|mac| learned.station.mac() == mac)
    }
}

/// What came of forgetting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flushed {
    /// How many stations were forgotten, of those whose port is there.
    pub stations: u32,
    /// Where to go on; `None` at the end.
    pub cursor: Option<usize>,
}

/// Loop probes, and the ports out of which they are to go.
pub type Probes = Vec<(PortId, [u8; Probe::LEN])>;

/// Announcements of local stations, and the uplinks by which they are to go, each as its port on one network.
pub type Announcements = Vec<(PortId, [u8; Announcement::LEN])>;

/// A command, and where its answer goes.
#[derive(Debug)]
pub enum Command {
    /// Put these rules in force, and count in these books. The old ones come back.
    Config(Arc<ForwardingConfig>, PortCounterTable, oneshot::Sender<(Arc<ForwardingConfig>, PortCounterTable)>),
    /// Have this room for branches, in place of that before, which comes back. Rules with more subports than there
    /// is room for come after room for them.
    Subports(SubportTable, oneshot::Sender<SubportTable>),
    /// Poll this gate from now on. It comes back if it cannot be.
    Open(RxQueue, oneshot::Sender<Result<(), RxQueue>>),
    /// Stop polling this queue of this port. The gate comes back if there was one.
    Close(PortId, u16, oneshot::Sender<Option<RxQueue>>),
    /// Fill a page with stations.
    Stations(FdbPage, oneshot::Sender<FdbPage>),
    /// Fill in how many stations are learned on each network, by [`NetworkId::index`](crate::switch::NetworkId::index).
    CountByNetwork(Vec<u32>, oneshot::Sender<Vec<u32>>),
    /// Read all counters at this moment, at which they balance. The reading has room for
    /// [`MAX_PORTS`](crate::switch::MAX_PORTS).
    Audit(Box<Snapshot>, oneshot::Sender<Box<Snapshot>>),
    /// Answer: a worker that breathes does.
    Ping(oneshot::Sender<()>),
    /// Forget some stations.
    Flush(Flush, oneshot::Sender<Flushed>),
    /// Learn these stations, where nothing is known of them yet. They come back.
    Learn(Vec<FdbEntry>, oneshot::Sender<Vec<FdbEntry>>),
    /// Send these loop probes, in this order. They come back, and each has been counted as one of the `probes` of its
    /// port, whatever became of it; those for a port that is closed are not.
    Probes(Probes, oneshot::Sender<Probes>),
    /// Send these announcements, in this order. They come back, and each has been counted as one of the `announcements`
    /// of its uplink, whatever became of it; those for a port that is closed, or is none of an uplink, are not.
    Announce(Announcements, oneshot::Sender<Announcements>),
    /// Stop. All gates come back.
    Stop(oneshot::Sender<Vec<RxQueue>>),
}

/// What a worker tells control unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceGone {
    /// A device is gone; its gate is not polled any more, and waits to be closed.
    DeviceGone {
        /// The port it belongs to.
        port: PortId,
        /// Which of its queues.
        queue: u16,
    },
}

/// Control's end of a worker's mailbox. Nothing here blocks, whatever the worker does.
#[derive(Debug, Clone)]
pub struct Mailbox {
    sender: Sender<Command>,
    notifier: Notifier,
    /// Commands that did not fit into the mailbox, in order.
    waiting: Arc<Mutex<VecDeque<Command>>>,
}

impl Mailbox {
    /// A mailbox: the end that sends and the end that reads.
    pub fn new(notifier: Notifier) -> (Mailbox, Receiver<Command>) {
        let (sender, read) = bounded(MAILBOX);
        (Mailbox { sender, notifier, waiting: Arc::default() }, read)
    }

    /// Sends a command, behind all that were sent before. `false` if the worker is gone, or has not read thousands of
    /// commands.
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

    /// Sends a command if there is room in the mailbox.
    pub fn offer(&self, command: Command) -> bool {
        let sent = self.waiting().is_empty() && self.sender.try_send(command).is_ok();
        self.notifier.notify();
        sent
    }

    /// Waits for the answer to a command that was sent. Meanwhile commands that wait move into the mailbox.
    pub async fn answered<T>(&self, answer: &mut oneshot::Receiver<T>) -> Result<T, RecvError> {
        while !self.waiting().is_empty() {
            tokio::select! {
                answered = &mut *answer => return answered,
                () = sleep(FORWARD) => drop(self.move_waiting(&mut self.waiting())),
            }
        }
        answer.await
    }

    /// Moves commands that wait into the mailbox, as far as there is room. `false` if the worker is gone.
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
    fn a_worker_that_reads_nothing_blocks_nobody_and_gets_every_command_in_order() {
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
        assert!(!mailbox.offer(ping().0), "what has no use later is not kept for later");
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
            assert!(!mailbox.send(ping().0), "it is gone");
        });
    }
}
