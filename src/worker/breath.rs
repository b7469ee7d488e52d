//! A worker, and how it breathes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Receiver;
use tokio::sync::mpsc;

use super::Bell;
use super::dressing::Dressing;
use super::findings::{Finder, Finding};
use super::gate::{AT_ONCE, GateState, Gates};
use super::mail::{Books, Command, Notice};
use super::outbox::{Outbox, book};
use super::pace::{Pace, Pacer};
use super::peer::Peer;
use super::shedding::{NEVER, OF_STORMS};
use super::team::TeamSettings;
use crate::frame::{BURST, Batch, Cache, Sent};
use crate::switch::{DropReason, Origins, PortId, Switch, Verdict, Verdicts};
use crate::telemetry::WorkerCounters;
use crate::time::{self, Moment};
use crate::wire::MIN_WIRE_LEN;

/// Stations looked at in each breath to see whether they have aged.
const TIDY: usize = 8;

/// Frames taken in after which the lanes are sent off before the end of the breath: while their
/// bytes are still in the processor's nearest cache. It also bounds the length of a lane.
const BREATH: usize = 2 * BURST;

/// Sightings heard from each peer in one breath, at most.
const HEARD: usize = 256;

/// Receives that found nothing in a row, after which a device is asked what it has missed. That is a system
/// call for some, made when there is time, and once between two busy spells.
const PAUSE: u8 = 32;

/// After so long each device is asked the same, one in each breath: for those that never pause, or never for long.
const ROUND: Duration = Duration::from_secs(1);

/// What came of a breath.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Frames that were received or heard of, super-frames counted once, and commands.
    pub done: usize,
    /// Of these: queues that were not read, because nothing has lived lately of what they bring. There may be more to
    /// do soon, but nothing has been done.
    pub passed_by: usize,
    /// Whether the worker has been told to stop.
    pub stop: bool,
}

/// What came of carrying out the verdicts on a burst.
#[derive(Debug, Clone, Copy)]
struct SeenTo {
    /// Whether a lane has borrowed from the batch.
    borrowed: bool,
    /// Whether all frames have been taken out of it.
    emptied: bool,
    /// Whether some frame was not to die.
    lived: bool,
    /// For which reasons others have: a set of bits.
    died_of: u64,
}

/// One thread's share of the switch: its gates, its table, its memory.
pub struct Worker {
    index: u16,
    pub(super) mailbox: Receiver<Command>,
    pub(super) notices: mpsc::Sender<Notice>,
    finder: Finder,
    bell: Bell,
    peers: Vec<Option<Peer>>,
    pub(super) gates: Gates,
    pub(super) switch: Switch,
    pub(super) books: Books,
    /// When to look again at what devices shed.
    pub(super) shed_until: Moment,
    /// So many devices have been asked in this round what they have missed, and when the next one begins.
    asked: usize,
    next_round: Moment,
    batch: Batch,
    verdicts: Box<Verdicts>,
    dressing: Dressing,
    /// Frames taken in since the lanes were last sent off.
    inhaled: usize,
    pub(super) cache: Cache,
    pub(super) pacer: Pacer,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) stop: bool,
}

// A worker is made by control and then moves to its own thread.
const _: () = {
    const fn can_be_sent<T: Send>() {}
    can_be_sent::<Worker>();
};

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("index", &self.index).field("gates", &self.gates.open()).finish_non_exhaustive()
    }
}

impl Worker {
    #[allow(clippy::too_many_arguments)] // its ends of all that leads to others
    pub(super) fn new(
        index: u16,
        settings: &TeamSettings,
        mailbox: Receiver<Command>,
        bell: Bell,
        peers: Vec<Option<Peer>>,
        counters: Arc<WorkerCounters>,
        notices: mpsc::Sender<Notice>,
        finder: Finder,
    ) -> io::Result<Worker> {
        Ok(Worker {
            index,
            mailbox,
            notices,
            finder,
            pacer: Pacer::new(&bell)?,
            bell,
            peers,
            gates: Gates::new(index),
            switch: Switch::new(settings.stations, settings.secret, settings.probe_key),
            books: Books::new(),
            shed_until: NEVER,
            asked: 0,
            next_round: Moment::default(),
            batch: Batch::new(),
            verdicts: Box::new([Verdict::Drop(DropReason::PortClosed); BURST]),
            dressing: Dressing::new(),
            inhaled: 0,
            cache: Cache::new(settings.pool),
            counters,
            stop: false,
        })
    }

    /// Breathes until told to stop, sleeping when there is nothing to do and `pace` allows it.
    pub fn run(mut self, pace: Pace) {
        let mut now = time::now();
        loop {
            let work = self.breathe(now);
            let then = std::mem::replace(&mut now, time::now());
            if work.stop {
                return;
            }
            if work.done > 0 {
                self.pacer.was_busy(now);
                if work.done > work.passed_by {
                    self.counters.busy_breaths.add(1);
                    self.counters.busy_nanos.add(now.nanos() - then.nanos());
                }
            } else if pace == Pace::Adaptive && self.pacer.is_tired(now) {
                self.sleep();
                now = time::now();
                self.pacer.was_woken(now);
            }
        }
    }

    fn sleep(&mut self) {
        let (mailbox, peers) = (&self.mailbox, &self.peers);
        let has_news = || !mailbox.is_empty() || peers.iter().flatten().any(Peer::has_news);
        if self.pacer.sleep(&mut self.gates, &mut self.cache, &self.bell, has_news) {
            self.counters.sleeps.add(1);
        }
    }

    /// One breath: take in what has arrived, decide, let it out. Bounded work, no waiting.
    pub fn breathe(&mut self, now: Moment) -> Work {
        let deferred = self.counters.deferred.get();
        let mut done = self.read_mail(now);
        done += self.hear_peers(now);
        self.pacer.rouse(&mut self.gates, &self.bell);
        for number in 0..self.gates.len() {
            done += self.inhale(number, now);
        }
        self.exhale();
        self.ring_peers();
        self.tidy(now);
        let passed_by = usize::try_from(self.counters.deferred.get() - deferred).unwrap_or(usize::MAX);
        Work { done, passed_by, stop: self.stop }
    }

    /// Receives a burst at one gate and sees to each of its frames.
    #[inline]
    fn inhale(&mut self, number: usize, now: Moment) -> usize {
        let open = self.gates.open();
        let Some(gate) = self.gates.get_mut(number) else { return 0 };
        match gate.state {
            GateState::Polled if gate.gathering.is_over(now) => {}
            GateState::Deferred(left) => {
                gate.was_passed_by(left);
                self.counters.deferred.add(1);
                return 1; // there may be more to do, so that it is no time to sleep
            }
            GateState::Polled | GateState::Resting | GateState::Gone => return 0,
        }
        let (port, lost) = (gate.port, gate.device.receive(&mut self.batch, &mut self.cache).is_err());
        let received = self.batch.len();
        if received == 0 {
            gate.futile = 0;
            self.pacer.was_quiet(number, gate, open);
            if gate.quiet == PAUSE {
                self.count_missed(number);
            }
        } else {
            gate.quiet = 0;
            gate.gathering.was_read(received, self.batch.frame(0).len() as usize, now);
            self.pacer.was_loud(gate);
            let judged = self.switch.judge_burst(port, &mut self.batch, now, &mut self.verdicts);
            let seen_to = if judged.by_carrier {
                self.outbox(|outbox, origins| outbox.deliver_carried(port, origins, judged.unlearned))
            } else {
                self.outbox(|outbox, _| outbox.deliver(port, judged.unlearned))
            };
            self.tell_peers();
            if self.switch.has_findings() {
                self.tell_findings();
            }
            let was_full = self.batch.is_full();
            self.end_burst(&seen_to);
            if let Some(gate) = self.gates.get_mut(number) {
                gate.device.release();
                gate.was_read(!seen_to.lived && (was_full || received >= gate.most));
            }
            if seen_to.died_of & OF_STORMS != 0 && !judged.by_carrier {
                self.shed(number, now);
            }
        }
        if lost {
            self.lose(number);
        }
        received
    }

    /// Enters what a device has missed, shed or lost into the books.
    #[cold]
    pub(super) fn count_missed(&mut self, number: usize) {
        let Some(gate) = self.gates.get_mut(number) else { return };
        gate.count_shed(&self.books);
        let (missed, tx_lost) = (gate.device.missed(), gate.device.tx_lost());
        if let Some(book) = book(&self.books, gate.port).filter(|_| missed + tx_lost > 0) {
            book.missed.add(missed);
            book.tx_lost.add(tx_lost);
        }
    }

    /// Lets `f` fill the outbox.
    #[inline]
    fn outbox(&mut self, f: impl FnOnce(&mut Outbox<'_>, &Origins)) -> SeenTo {
        let mut outbox = Outbox {
            me: self.index,
            rules: self.switch.rules(),
            verdicts: &self.verdicts,
            books: &self.books,
            counters: &self.counters,
            gates: &mut self.gates,
            peers: &mut self.peers,
            batch: &mut self.batch,
            cache: &mut self.cache,
            borrowed: false,
            emptied: false,
            lived: false,
            died_of: 0,
        };
        f(&mut outbox, self.switch.origins());
        SeenTo { borrowed: outbox.borrowed, emptied: outbox.emptied, lived: outbox.lived, died_of: outbox.died_of }
    }

    /// Makes the batch free for the next burst. What was borrowed from it goes out first.
    #[inline]
    fn end_burst(&mut self, seen_to: &SeenTo) {
        self.inhaled += self.batch.len();
        if seen_to.borrowed || self.inhaled > BREATH {
            self.exhale();
        }
        if seen_to.emptied {
            self.batch.end();
        } else {
            self.batch.clear(&mut self.cache);
        }
    }

    /// Sends what waits in the lanes: one call for each port that has something.
    #[inline]
    pub(super) fn exhale(&mut self) {
        self.inhaled = 0;
        for first in (0..self.gates.len()).step_by(AT_ONCE) {
            let mut waiting = self.gates.take_waiting(first);
            while waiting != 0 {
                self.send_off(first + (waiting.trailing_zeros() / u8::BITS) as usize);
                waiting &= waiting - 1;
            }
        }
        for first in self.gates.branch_numbers() {
            let mut waiting = self.gates.take_waiting(first);
            while waiting != 0 {
                self.send_off_branch(first + (waiting.trailing_zeros() / u8::BITS) as usize);
                waiting &= waiting - 1;
            }
        }
    }

    fn send_off(&mut self, number: usize) {
        let Some((gate, lane)) = self.gates.with_lane(number) else { return };
        self.pacer.was_loud(gate);
        let (port, device) = (gate.port, &mut *gate.device);
        let sent = if std::mem::take(&mut gate.unfinished) {
            let shortest = if gate.leads_to_wire && self.switch.rules().is_uplink(port) { MIN_WIRE_LEN } else { 0 };
            self.dressing.send_off(device, port, shortest, lane, &self.batch, &mut self.cache, &self.books)
        } else {
            device.transmit(lane, &self.batch, &mut self.cache)
        };
        self.count_sent(port, sent);
    }

    #[inline(never)] // most ports are no subports
    fn send_off_branch(&mut self, number: usize) {
        let Some((gate, branch)) = self.gates.with_branch(number) else { return };
        self.pacer.was_loud(gate);
        let (port, device) = (branch.port, &mut *gate.device);
        let sent = if std::mem::take(&mut branch.unfinished) {
            self.dressing.send_off(device, port, 0, &mut branch.lane, &self.batch, &mut self.cache, &self.books)
        } else {
            device.transmit(&mut branch.lane, &self.batch, &mut self.cache)
        };
        self.count_sent(port, sent);
    }

    #[inline]
    fn count_sent(&self, port: PortId, sent: Sent) {
        let Some(book) = book(&self.books, port) else { return };
        book.tx_frames.add(sent.frames);
        book.tx_bytes.add(sent.bytes);
        if sent.full + sent.refused + sent.link_down + sent.no_buffer > 0 {
            book.drops_out.add(DropReason::NoBuffer, sent.no_buffer);
            book.drops_out.add(DropReason::DeviceFull, sent.full);
            book.drops_out.add(DropReason::DeviceRefused, sent.refused);
            book.drops_out.add(DropReason::LinkDown, sent.link_down);
        }
    }

    /// Takes in what other workers have sent: of each, the frames that stood in its ring when this began, which the size
    /// of the ring bounds, and a few sightings. A worker may send for many ports of its own, so a burst for each worker
    /// would be less than a burst for each port.
    fn hear_peers(&mut self, now: Moment) -> usize {
        let mut heard = 0;
        for worker in 0..self.peers.len() {
            let Some(peer) = &mut self.peers[worker] else { continue };
            let (sightings, mut frames) = (peer.sightings_in.slots().min(HEARD), peer.parcels_in.slots());
            if let Ok(chunk) = peer.sightings_in.read_chunk(sightings) {
                chunk.into_iter().for_each(|sighting| self.switch.hear(sighting, now));
            }
            heard += sightings + frames;
            while frames > 0 {
                frames -= self.accept_burst(worker, frames).min(frames);
                if frames > 0 {
                    // A device takes one burst at a time, as if it came from a queue.
                    self.exhale();
                }
            }
        }
        // What was heard may be known better here.
        self.tell_peers();
        if self.switch.has_findings() {
            self.tell_findings();
        }
        heard
    }

    /// Sends on at most a burst, and at most `most`, of the frames that a worker has sent. Returns how many there were.
    fn accept_burst(&mut self, worker: usize, most: usize) -> usize {
        let mut addresses = [None; BURST];
        let Some(peer) = &mut self.peers[worker] else { return most };
        for address in addresses.iter_mut().take(most) {
            if self.batch.is_full() {
                break;
            }
            let Ok(parcel) = peer.parcels_in.pop() else { break };
            *address = Some(parcel.address);
            self.batch.push(parcel.frame);
            self.batch.set_priority(self.batch.len() - 1, parcel.priority);
        }
        let frames = self.batch.len();
        if frames == 0 {
            return most;
        }
        let seen_to = self.outbox(|outbox, _| {
            for (index, address) in addresses.into_iter().flatten().enumerate() {
                outbox.accept(index, address);
            }
        });
        self.end_burst(&seen_to);
        frames
    }

    /// Passes on to all other workers what was learned from the last burst.
    #[inline]
    fn tell_peers(&mut self) {
        for sighting in self.switch.news() {
            for peer in self.peers.iter_mut().flatten() {
                match peer.sightings_out.push(sighting) {
                    Ok(()) => peer.fresh = true,
                    Err(_) => self.counters.sightings_lost.add(1),
                }
            }
        }
    }

    /// Tells control what the last burst has brought to light.
    #[cold]
    fn tell_findings(&mut self) {
        let (finder, mut lost) = (&self.finder, 0);
        let mut tell = |finding| lost += u64::from(!finder.tell(finding));
        self.switch.returned().for_each(|returned| tell(Finding::Returned(returned)));
        self.switch.moving().for_each(|moving| tell(Finding::Moving(moving)));
        self.switch.foreign().for_each(|foreign| tell(Finding::Foreign(foreign)));
        self.switch.spoofed().for_each(|spoofed| tell(Finding::SpoofedIp(spoofed)));
        self.switch.pin_reports().for_each(|(report, at)| tell(Finding::Pin(report, at)));
        self.switch.sibling_sources().for_each(|source| tell(Finding::SiblingSource(source)));
        self.counters.findings_lost.add(lost);
    }

    /// Wakes the workers that were sent something in this breath.
    #[inline]
    fn ring_peers(&mut self) {
        for peer in self.peers.iter_mut().flatten().filter(|peer| peer.fresh) {
            peer.fresh = false;
            peer.bell.ring();
        }
    }

    fn tidy(&mut self, now: Moment) {
        self.switch.tidy(TIDY, now);
        if now >= self.shed_until {
            self.end_sheds(now);
        }
        self.counters.breaths.add(1);
        if self.asked < self.gates.len() {
            self.count_missed(self.asked);
            self.asked += 1;
        } else if now >= self.next_round {
            (self.asked, self.next_round) = (0, now + ROUND);
        }
        self.counters.stations.set(self.switch.fdb().len() as u64);
        self.counters.refused.set(self.switch.fdb().refused());
    }

    /// What this worker remembers. For tests that step workers by hand.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// The ports whose devices this worker polls.
    pub fn open_ports(&self) -> impl Iterator<Item = PortId> + '_ {
        self.gates.iter().map(|gate| gate.port)
    }
}
