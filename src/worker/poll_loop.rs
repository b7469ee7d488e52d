//! Worker and its poll loop: receives bursts, decides, executes the verdicts. `flush` sends TX batches, `peers`
//! exchanges frames and FDB updates.

mod flush;
mod peers;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Receiver;
use tokio::sync::mpsc;

use super::Notifier;
use super::early_drop::{NEVER, STORM_REASONS};
use super::events::{EventSender, WorkerEvent};
use super::idle::{IdlePolicy, Pace};
use super::mailbox::{Command, DeviceGone};
use super::outbox::Outbox;
use super::peer::Peer;
use super::port_counters::{PortCounterTable, counters_of};
use super::queues::QueueTable;
use super::rx_queue::QueueState;
use super::settings::WorkerSetSettings;
use super::sw_offload::SwOffload;
use crate::frame::{BURST, Batch, Magazine};
use crate::switch::{DropReason, IngressPorts, PortId, Switch, Verdict, Verdicts};
use crate::telemetry::WorkerCounters;
use crate::time::{self, MonoTime};

/// FDB entries checked for ageing per `poll_once`.
const AGE_BATCH: usize = 8;

/// Frames received after which TX batches are flushed early, while their bytes are still in the L1 cache. Also
/// bounds the length of a TX batch.
const MAX_PER_POLL: usize = 2 * BURST;

/// Empty receives in a row after which the device's missed frames are read. Reading them is a system call for some
/// devices, made when the queue turns idle.
const IDLE_POLLS: u8 = 32;

/// Time from a failed receive to the next, once receive back-off has started.
const RX_RETRY: Duration = Duration::from_secs(1);

/// Interval after which every device's missed frames are read, one device per `poll_once`: covers queues that are
/// never idle.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Outcome of one `poll_once`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PollResult {
    /// Work items: frames received from devices and peers (a GSO packet counts as one), FDB updates, commands and
    /// skipped polls.
    pub done: usize,
    /// Of these, polls skipped by drop back-off. No work was done, but frames may be pending.
    pub skipped: usize,
    /// Whether the worker must stop.
    pub stop: bool,
}

/// Outcome of executing the verdicts on one burst.
#[derive(Debug, Clone, Copy)]
struct BurstOutcome {
    /// Whether a TX batch has borrowed from the batch.
    borrowed: bool,
    /// Whether all frames have been moved out of the batch.
    moved_all: bool,
    /// Any frame forwarded or flooded?
    any_forwarded: bool,
    /// Drop reasons of the others, as a bit mask.
    drop_mask: u64,
}

/// One thread's share of the switch: its queues, its FDB, its frame slots.
pub struct Worker {
    index: u16,
    pub(super) mailbox: Receiver<Command>,
    pub(super) notices: mpsc::Sender<DeviceGone>,
    event_sender: EventSender,
    notifier: Notifier,
    peers: Vec<Option<Peer>>,
    pub(super) queues: QueueTable,
    pub(super) switch: Switch,
    pub(super) port_counters: PortCounterTable,
    /// When to check next whether an early drop has ended.
    pub(super) next_drop_check: MonoTime,
    /// Devices checked for missed frames in this round; `next_check_round` starts the next.
    checked: usize,
    next_check_round: MonoTime,
    batch: Batch,
    verdicts: Box<Verdicts>,
    gso_fallback: SwOffload,
    /// Frames received since the last flush.
    received: usize,
    pub(super) magazine: Magazine,
    pub(super) idle: IdlePolicy,
    pub(super) counters: Arc<WorkerCounters>,
    /// Nothing is received.
    pub(super) is_held: bool,
    pub(super) stop: bool,
}

// Control creates a worker, which then moves to its own thread.
const _: () = {
    const fn can_be_sent<T: Send>() {}
    can_be_sent::<Worker>();
};

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("index", &self.index)
            .field("queues", &self.queues.open())
            .finish_non_exhaustive()
    }
}

impl Worker {
    #[allow(clippy::too_many_arguments)] // its ends of all channels
    pub(super) fn new(
        index: u16,
        settings: &WorkerSetSettings,
        mailbox: Receiver<Command>,
        notifier: Notifier,
        peers: Vec<Option<Peer>>,
        counters: Arc<WorkerCounters>,
        notices: mpsc::Sender<DeviceGone>,
        event_sender: EventSender,
    ) -> io::Result<Worker> {
        Ok(Worker {
            index,
            mailbox,
            notices,
            event_sender,
            idle: IdlePolicy::new(&notifier)?,
            notifier,
            peers,
            queues: QueueTable::new(index),
            switch: Switch::new(settings.fdb_capacity, settings.hash_key, settings.probe_keys),
            port_counters: PortCounterTable::new(),
            next_drop_check: NEVER,
            checked: 0,
            next_check_round: MonoTime::default(),
            batch: Batch::new(),
            verdicts: Box::new([Verdict::Drop(DropReason::PortClosed); BURST]),
            gso_fallback: SwOffload::new(),
            received: 0,
            magazine: Magazine::new(settings.pool),
            counters,
            is_held: false,
            stop: false,
        })
    }

    /// Polls until stopped. Sleeps when idle, if `pace` allows it.
    pub fn run(mut self, pace: Pace) {
        let mut now = time::now();
        loop {
            let work = self.poll_once(now);
            let then = std::mem::replace(&mut now, time::now());
            if work.stop {
                return;
            }
            if work.done > 0 {
                self.idle.record_work(now);
                if work.done > work.skipped {
                    self.counters.busy_polls.add(1);
                    self.counters.busy_nanos.add(now.nanos() - then.nanos());
                }
            } else if pace == Pace::Adaptive && self.idle.should_sleep(now) {
                self.sleep();
                now = time::now();
                self.idle.record_wakeup(now);
            }
        }
    }

    fn sleep(&mut self) {
        let (mailbox, peers) = (&self.mailbox, &self.peers);
        let has_news = || !mailbox.is_empty() || peers.iter().flatten().any(Peer::has_work);
        if self.idle.sleep(&mut self.queues, &mut self.magazine, &self.notifier, has_news) {
            self.counters.sleeps.add(1);
        }
    }

    /// One iteration: receives, decides, flushes. Bounded work, no waiting.
    pub fn poll_once(&mut self, now: MonoTime) -> PollResult {
        let skipped_before = self.counters.polls_skipped.get();
        let mut done = self.read_command(now);
        done += self.drain_peers(now);
        self.idle.poll_watched(&mut self.queues, &self.notifier);
        let polled = if self.is_held { 0 } else { self.queues.len() };
        for number in 0..polled {
            done += self.receive_burst(number, now);
        }
        self.flush_tx();
        self.notify_peers();
        self.age_step(now);
        let skipped = usize::try_from(self.counters.polls_skipped.get() - skipped_before).unwrap_or(usize::MAX);
        PollResult { done, skipped, stop: self.stop }
    }

    /// Receives a burst at one queue and executes its verdicts. Returns the number of frames, or 1 for a skipped
    /// poll.
    #[inline]
    fn receive_burst(&mut self, number: usize, now: MonoTime) -> usize {
        let open = self.queues.open();
        let Some(queue) = self.queues.get_mut(number) else { return 0 };
        match queue.state {
            QueueState::Polled if queue.moderation.is_due(now) => {}
            QueueState::BackedOff(left) => {
                queue.record_skip(left);
                self.counters.polls_skipped.add(1);
                return 1; // frames may be pending: do not sleep
            }
            QueueState::Failing => {
                self.retry_failing(number, now, now + RX_RETRY);
                return 0;
            }
            QueueState::Polled | QueueState::Watched | QueueState::Gone => return 0,
        }
        let (port, lost) = (queue.port, queue.device.receive(&mut self.batch, &mut self.magazine).is_err());
        let received = self.batch.len();
        if received == 0 {
            queue.dropped_bursts = 0;
            self.idle.record_idle(number, queue, open);
            let (is_idle, has_failed) = (queue.idle_streak == IDLE_POLLS, queue.has_failed());
            if is_idle {
                self.count_rx_missed(number);
            }
            if has_failed {
                self.record_rx_error(number, now + RX_RETRY);
            }
        } else {
            queue.idle_streak = 0;
            queue.moderation.record(received, self.batch.frame(0).len() as usize, now);
            self.idle.record_busy(queue);
            let decided = self.switch.decide_burst(port, &mut self.batch, now, &mut self.verdicts);
            let outcome = if decided.by_trunk {
                self.outbox(|outbox, ingress_ports| outbox.dispatch_trunk(port, ingress_ports, decided.not_learned))
            } else {
                self.outbox(|outbox, _| outbox.dispatch(port, decided.not_learned))
            };
            self.send_updates();
            if self.switch.has_events() {
                self.send_events();
            }
            let was_full = self.batch.is_full();
            self.end_burst(&outcome);
            if let Some(queue) = self.queues.get_mut(number) {
                queue.device.release();
                queue.record_burst(!outcome.any_forwarded && (was_full || received >= queue.max_burst));
            }
            if outcome.drop_mask & STORM_REASONS != 0 && !decided.by_trunk {
                self.xdp_drop(number, now);
            }
        }
        if lost {
            self.remove_lost(number);
        }
        received
    }

    /// Counts the frames that a device has missed, dropped in XDP or lost.
    #[cold]
    pub(super) fn count_rx_missed(&mut self, number: usize) {
        let Some(queue) = self.queues.get_mut(number) else { return };
        queue.count_xdp_drops(&self.port_counters);
        let (rx_missed, tx_lost) = (queue.device.rx_missed(), queue.device.tx_lost());
        if let Some(counters) = counters_of(&self.port_counters, queue.port).filter(|_| rx_missed + tx_lost > 0) {
            counters.rx_missed.add(rx_missed);
            counters.tx_lost.add(tx_lost);
        }
    }

    /// Runs `f` on an outbox for the current burst.
    #[inline]
    fn outbox(&mut self, f: impl FnOnce(&mut Outbox<'_>, &IngressPorts)) -> BurstOutcome {
        let mut outbox = Outbox {
            me: self.index,
            config: self.switch.config(),
            verdicts: &self.verdicts,
            port_counters: &self.port_counters,
            counters: &self.counters,
            queues: &mut self.queues,
            peers: &mut self.peers,
            batch: &mut self.batch,
            magazine: &mut self.magazine,
            borrowed: false,
            moved_all: false,
            any_forwarded: false,
            drop_mask: 0,
        };
        f(&mut outbox, self.switch.ingress_ports());
        BurstOutcome {
            borrowed: outbox.borrowed,
            moved_all: outbox.moved_all,
            any_forwarded: outbox.any_forwarded,
            drop_mask: outbox.drop_mask,
        }
    }

    /// Frees the batch for the next burst. Flushes first if frames are borrowed from it.
    #[inline]
    fn end_burst(&mut self, outcome: &BurstOutcome) {
        self.received += self.batch.len();
        if outcome.borrowed || self.received > MAX_PER_POLL {
            self.flush_tx();
        }
        if outcome.moved_all {
            self.batch.end();
        } else {
            self.batch.clear(&mut self.magazine);
        }
    }

    /// Sends the events of the last burst to control.
    #[cold]
    fn send_events(&mut self) {
        let (event_sender, mut lost) = (&self.event_sender, 0);
        let mut sender = |event| lost += u64::from(!event_sender.send(event));
        self.switch.returned_probes().for_each(|returned_probe| sender(WorkerEvent::ReturnedProbe(returned_probe)));
        self.switch.flap_events().for_each(|moving| sender(WorkerEvent::Flap(moving)));
        self.switch.allowed_flaps().for_each(|moving| sender(WorkerEvent::AllowedFlap(moving)));
        self.switch.spoof_events().for_each(|spoof| sender(WorkerEvent::Spoof(spoof)));
        self.switch.spoofed().for_each(|spoofed| sender(WorkerEvent::SpoofedIp(spoofed)));
        self.switch.pin_reports().for_each(|(report, at)| sender(WorkerEvent::Pin(report, at)));
        self.switch.sibling_sources().for_each(|source| sender(WorkerEvent::SiblingSource(source)));
        lost += self.switch.host_probes().filter(|probe| !event_sender.send_host_probe(*probe)).count() as u64;
        self.counters.events_lost.add(lost);
    }

    fn age_step(&mut self, now: MonoTime) {
        self.switch.age_step(AGE_BATCH, now);
        if now >= self.next_drop_check {
            self.end_xdp_drops(now);
        }
        self.counters.polls.add(1);
        if self.checked < self.queues.len() {
            self.count_rx_missed(self.checked);
            self.checked += 1;
        } else if now >= self.next_check_round {
            (self.checked, self.next_check_round) = (0, now + CHECK_INTERVAL);
        }
        self.counters.stations.set(self.switch.fdb().len() as u64);
        self.counters.refused.set(self.switch.fdb().refused());
    }

    /// The switch state. For tests that step workers by hand.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Ports whose devices this worker polls.
    pub fn open_ports(&self) -> impl Iterator<Item = PortId> + '_ {
        self.queues.iter().map(|queue| queue.port)
    }
}
