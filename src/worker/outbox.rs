//! Carrying out verdicts: each frame goes into the lanes of the ports it is for, or to the worker
//! that polls them, or dies with a reason.

use super::mailbox::PortCounterTable;
use super::peer::{HandoffFrame, HandoffTarget, Peer, UNICAST_RESERVE};
use super::queues::{EgressEntry, QueueTable};
use crate::frame::{Batch, Frame, Magazine};
use crate::switch::{DropReason, Flood, FloodScope, ForwardingConfig, PortId, ReservedGroup, Verdict, Verdicts};
use crate::telemetry::{PortCounters, WorkerCounters};
use crate::wire::Header;

/// A burst on its way into the lanes. Made for one burst; what it borrows is the worker's.
pub(super) struct Outbox<'a> {
    pub(super) me: u16,
    pub(super) config: &'a ForwardingConfig,
    pub(super) verdicts: &'a Verdicts,
    pub(super) port_counters: &'a PortCounterTable,
    pub(super) counters: &'a WorkerCounters,
    pub(super) queues: &'a mut QueueTable,
    pub(super) peers: &'a mut [Option<Peer>],
    pub(super) batch: &'a mut Batch,
    pub(super) magazine: &'a mut Magazine,
    /// Whether some lane has borrowed from the batch, which has to be sent off before the batch
    /// is used again.
    pub(super) borrowed: bool,
    /// Whether all frames have been taken out of the batch.
    pub(super) moved_all: bool,
    /// Whether some frame was not to die.
    pub(super) any_forwarded: bool,
    /// For which reasons frames that came in have died: a set of bits.
    pub(super) drop_mask: u64,
}

// A bit for each.
const _: () = assert!(DropReason::ALL.len() <= 64);

/// What came in with a burst, and what became of it.
#[derive(Debug, Default)]
pub(super) struct BurstStats {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    forwarded: u64,
    flooded: u64,
    copies: u64,
}

impl BurstStats {
    /// Whether some frame was not to die.
    pub(super) fn any_forwarded(&self) -> bool {
        self.forwarded + self.flooded > 0
    }

    /// Enters it into a book.
    pub(super) fn add_to(&self, counters: &PortCounters) {
        counters.rx_frames.add(self.frames);
        counters.rx_bytes.add(self.bytes);
        counters.forwarded.add(self.forwarded);
        counters.flooded.add(self.flooded);
        counters.copies.add(self.copies);
    }
}

impl Outbox<'_> {
    /// Carries out the verdicts on the burst that came in at port `from` by a device of its own. `not_learned` are
    /// its frames whose sources could not be learned.
    #[inline(never)] // with registers of its own
    pub(super) fn dispatch(&mut self, from: PortId, not_learned: u64) {
        let (mut plain, mut plain_bytes) = (0, 0);
        let mut rest = BurstStats::default();
        if not_learned != 0 {
            self.count_not_learned(|_| from, not_learned);
        }
        let mut index = 0;
        while index < self.batch.len() {
            // The way of most frames: the door is here, and there is nothing to be dressed.
            let fast = self.queues.push_known(self.batch.frames_from(index), index, &self.verdicts[index..]);
            plain += fast.frames as u64;
            plain_bytes += fast.bytes;
            self.borrowed |= fast.borrowed;
            index += fast.frames;
            if index < self.batch.len() {
                self.execute(index, self.verdicts[index], from, &mut rest);
                index += 1;
            }
        }
        rest.frames += plain;
        rest.bytes += plain_bytes;
        rest.forwarded += plain;
        self.any_forwarded = rest.any_forwarded();
        self.moved_all = plain == self.batch.len() as u64 && !self.borrowed;
        if let Some(counters) = counters_of(self.port_counters, from) {
            rest.add_to(counters);
        }
    }

    /// Carries out the verdict on frame `index`, whatever it is.
    #[inline(never)] // it would crowd the registers of the way that most frames go
    pub(super) fn execute(&mut self, index: usize, verdict: Verdict, from: PortId, stats: &mut BurstStats) {
        let (count, bytes) = self.batch.frame(index).counts();
        stats.frames += count;
        stats.bytes += bytes;
        match verdict {
            Verdict::To(to) => {
                stats.forwarded += count;
                self.forward(index, to);
            }
            Verdict::Mirrored { from, to } => {
                let (from, to) = (self.config.port_at(from), self.config.port_at(to));
                stats.forwarded += count;
                stats.copies += count * self.flood(index, Flood::copies(from, to));
                self.forward_copied(index, to);
            }
            Verdict::Flood(to) => self.flood_and_count(index, Flood::new(from, to), stats),
            Verdict::FloodFrom(from, to) => self.flood_and_count(index, Flood::new(from, to), stats),
            Verdict::Drop(reason) => {
                self.drop_mask |= bit(reason);
                if let Some(counters) = counters_of(self.port_counters, from) {
                    counters.drops_in.add(reason, count);
                }
                if reason == DropReason::ReservedGroup {
                    self.count_reserved(index, from);
                }
            }
        }
    }

    /// Counts by name a frame to a group that is refused.
    #[cold]
    fn count_reserved(&self, index: usize, from: PortId) {
        let group = Header::read(self.batch.head(index)).and_then(|header| ReservedGroup::new(header.destination));
        if let (Some(counters), Some(group)) = (counters_of(self.port_counters, from), group) {
            counters.reserved_groups.add(group, self.batch.frame(index).count());
        }
    }

    /// Counts the frames of a set, none of which has been taken out yet, as let pass without learning, each at
    /// the port that it is `of`.
    #[cold]
    pub(super) fn count_not_learned(&self, of: impl Fn(usize) -> PortId, mut frames: u64) {
        while frames != 0 {
            let index = frames.trailing_zeros() as usize;
            if let Some(counters) = counters_of(self.port_counters, of(index)) {
                counters.not_learned.add(self.batch.frame(index).count());
            }
            frames &= frames - 1;
        }
    }

    #[inline]
    fn flood_and_count(&mut self, index: usize, flood: Flood, stats: &mut BurstStats) {
        let count = self.batch.frame(index).count();
        stats.flooded += count;
        stats.copies += count * self.flood(index, flood);
        for port in self.config.not_flooded_ports(flood).into_iter().flatten() {
            if let Some(counters) = counters_of(self.port_counters, self.config.counting_port(*port)) {
                counters.not_flooded.add(count);
            }
        }
    }

    /// Carries out what another worker has judged about frame `index` of the batch.
    pub(super) fn enqueue(&mut self, index: usize, target: HandoffTarget) {
        match target {
            HandoffTarget::Port(to) => {
                self.counters.peer_rx_frames.add(self.batch.frame(index).count());
                if self.queues.egress(to).is_some() || self.queues.tagged_egress(to).is_some() {
                    self.forward(index, to);
                } else {
                    // It was closed meanwhile. Sending the frame on would let it wander.
                    let reason = self.config.egress(to).err().filter(|reason| *reason == DropReason::Quarantined);
                    self.drop_tx(index, to, reason.unwrap_or(DropReason::NoDevice));
                }
            }
            HandoffTarget::Flood(flood) => {
                self.counters.peer_rx_floods.add(1);
                let copies = self.flood_here(index, flood).0 * self.batch.frame(index).count();
                self.count_mirror_copies(index, flood, self.me);
                if let Some(counters) = counters_of(self.port_counters, self.config.counting_port(flood.from)) {
                    counters.copies.add(copies);
                }
            }
        }
    }

    /// Puts frame `index` into the lane of port `to`, wherever that is.
    fn forward(&mut self, index: usize, to: PortId) {
        let Some(egress) = self.queues.egress(to).or_else(|| self.tagged_egress(index, to)) else { return };
        // 12. egress dressing: what the port cannot pass on is finished as the lane is sent off.
        self.mark_sw_offload(index, egress);
        let tx = self.queues.tx_mut(egress);
        match self.batch.take(index) {
            Some(frame) => tx.push(frame),
            None => {
                tx.borrow(place(index));
                self.borrowed = true;
            }
        }
    }

    /// Puts frame `index` into the lane of port `to`, wherever that is, when other lanes may have borrowed it.
    #[inline(never)]
    fn forward_copied(&mut self, index: usize, to: PortId) {
        if let Some(egress) = self.queues.egress(to) {
            self.push_borrowed(index, egress);
        } else if let Some(tagged) = self.queues.tagged_egress(to) {
            self.flood_tagged(index, to, tagged);
        } else {
            self.hand_off_copy(index, to);
        }
    }

    /// Notes that a lane has frames to be finished, if frame `index` is one behind this door.
    #[inline(always)]
    pub(super) fn mark_sw_offload(&mut self, index: usize, egress: EgressEntry) {
        if self.batch.frame(index).offload().needs_offload()
            && !(egress.offloads && self.queues.supports(egress, &self.batch.frame_ref(index)))
        {
            self.queues.mark_sw_offload(egress);
        }
    }

    /// Lets the lane behind a door borrow frame `index`.
    #[inline(always)]
    fn push_borrowed(&mut self, index: usize, egress: EgressEntry) {
        self.mark_sw_offload(index, egress);
        self.queues.tx_mut(egress).borrow(place(index));
        self.borrowed = true;
    }

    /// Counts the copies of frame `index` that promiscuous ports of a worker got.
    #[inline]
    fn count_mirror_copies(&self, index: usize, flood: Flood, worker: u16) {
        if flood.scope != FloodScope::Mirrors {
            return;
        }
        let count = self.batch.frame(index).count();
        for &port in self.config.flood_ports(flood).into_iter().flatten() {
            if self.config.port(port).and_then(|port| port.worker) == Some(worker)
                && let Some(counters) = counters_of(self.port_counters, self.config.counting_port(port))
            {
                counters.mirror_copies.add(count);
            }
        }
    }

    /// Puts frame `index` into the lanes of all ports that a flood reaches, here and at other workers.
    /// How many copies were made, those for other workers not counted: they count theirs.
    fn flood(&mut self, index: usize, flood: Flood) -> u64 {
        let (here, there) = self.flood_here(index, flood);
        self.count_mirror_copies(index, flood, self.me);
        let mut copies = here;
        for worker in (0..self.peers.len()).filter(|worker| there & 1 << worker != 0) {
            let sent = match self.batch.copy_to_pool(index, self.magazine) {
                Some(frame) => self.send(worker, self.handoff_frame(index, frame, HandoffTarget::Flood(flood))),
                None => Err(DropReason::NoBuffer),
            };
            if sent.is_ok() {
                self.counters.peer_tx_floods.add(1);
            }
            if let Err(reason) = sent {
                // The copies that the other worker would have made die here.
                let count = self.batch.frame(index).count();
                if let Ok(worker) = u16::try_from(worker) {
                    self.count_mirror_copies(index, flood, worker);
                }
                for port in self.config.flood_ports(flood).into_iter().flatten() {
                    if self.config.port(*port).and_then(|port| port.worker) == u16::try_from(worker).ok() {
                        copies += 1;
                        self.count_out(*port, reason, count);
                    }
                }
            }
        }
        copies
    }

    /// Floods frame `index` to the ports of this worker. How many these were, and, as a set of bits,
    /// which other workers have ports to flood to.
    fn flood_here(&mut self, index: usize, flood: Flood) -> (u64, u64) {
        let (mut copies, mut there) = (0, 0u64);
        for &to in self.config.flood_ports(flood).into_iter().flatten() {
            let Some(egress) = self.queues.egress(to).filter(|egress| egress.floods) else {
                match self.flood_elsewhere(index, to) {
                    Some(worker) => there |= 1 << worker,
                    None => copies += 1,
                }
                continue;
            };
            copies += 1;
            self.push_borrowed(index, egress);
        }
        (copies, there)
    }

    /// Floods frame `index` to port `to`, which has no door here for floods to a device of its own. The
    /// worker that is to do so, if it is not this one; otherwise there is a copy, whatever became of it.
    #[inline(never)] // it would crowd the registers of the loop over a flood
    fn flood_elsewhere(&mut self, index: usize, to: PortId) -> Option<u16> {
        if let Some(tagged) = self.queues.tagged_egress(to).filter(|tagged| tagged.entry.floods) {
            self.flood_tagged(index, to, tagged);
            return None;
        }
        let worker = self.config.port(to).and_then(|port| port.worker).filter(|&worker| worker != self.me);
        if worker.is_none() {
            self.drop_tx(index, to, DropReason::NoDevice);
        }
        worker
    }

    /// Sends frame `index` to the worker that polls the device of port `to`, if there is one.
    #[inline(never)]
    pub(super) fn hand_off(&mut self, index: usize, to: PortId) {
        let Some(worker) = self.other_worker(index, to) else { return };
        // It is gone from the batch after this, and may yet have to be counted.
        let count = self.batch.frame(index).count();
        let frame = self.batch.take(index).or_else(|| self.batch.copy_to_pool(index, self.magazine));
        let handoff = frame.map(|frame| self.handoff_frame(index, frame, HandoffTarget::Port(to)));
        self.send_and_count(worker, handoff, to, count);
    }

    /// The same with a copy of it.
    fn hand_off_copy(&mut self, index: usize, to: PortId) {
        let Some(worker) = self.other_worker(index, to) else { return };
        let frame = self.batch.copy_to_pool(index, self.magazine);
        let handoff = frame.map(|frame| self.handoff_frame(index, frame, HandoffTarget::Port(to)));
        self.send_and_count(worker, handoff, to, self.batch.frame(index).count());
    }

    /// The worker that polls the device of port `to`. If that is this one, or none, frame `index` is counted as
    /// lost.
    fn other_worker(&self, index: usize, to: PortId) -> Option<u16> {
        let worker = match self.config.egress(to) {
            Ok(port) => port.worker.filter(|&worker| worker != self.me).ok_or(DropReason::NoDevice),
            Err(reason) => Err(reason),
        };
        worker.map_err(|reason| self.drop_tx(index, to, reason)).ok()
    }

    /// A frame for another worker that is, or is a copy of, frame `index`.
    fn handoff_frame(&self, index: usize, frame: Frame, target: HandoffTarget) -> HandoffFrame {
        HandoffFrame { frame, target, priority: self.batch.priority(index) }
    }

    fn send_and_count(&mut self, worker: u16, frame: Option<HandoffFrame>, to: PortId, count: u64) {
        let sent = match frame {
            Some(frame) => self.send(usize::from(worker), frame),
            None => Err(DropReason::NoBuffer),
        };
        match sent {
            Ok(()) => self.counters.peer_tx_frames.add(count),
            Err(reason) => self.count_out(to, reason, count),
        }
    }

    fn send(&mut self, worker: usize, frame: HandoffFrame) -> Result<(), DropReason> {
        let peer = self.peers.get_mut(worker).and_then(Option::as_mut).ok_or(DropReason::NoDevice)?;
        if matches!(frame.target, HandoffTarget::Flood(_)) && peer.frames_out.slots() <= UNICAST_RESERVE {
            self.magazine.recycle(frame.frame);
            return Err(DropReason::PeerFull);
        }
        match peer.frames_out.push(frame) {
            Ok(()) => {
                peer.needs_notify = true;
                Ok(())
            }
            Err(rtrb::PushError::Full(frame)) => {
                self.magazine.recycle(frame.frame);
                Err(DropReason::PeerFull)
            }
        }
    }

    /// Counts frame `index` as one that died on its way out of `to`.
    #[cold]
    pub(super) fn drop_tx(&self, index: usize, to: PortId, reason: DropReason) {
        self.count_out(to, reason, self.batch.frame(index).count());
    }

    fn count_out(&self, port: PortId, reason: DropReason, frames: u64) {
        match counters_of(self.port_counters, self.config.counting_port(port)) {
            Some(counters) => counters.drops_out.add(reason, frames),
            None => self.counters.closed_port_drops.add(frames),
        }
    }
}

#[inline]
pub(super) fn counters_of(port_counters: &PortCounterTable, port: PortId) -> Option<&PortCounters> {
    port_counters.get(port.index())?.as_deref()
}

/// The bit of a reason in a set of them.
pub(super) const fn bit(reason: DropReason) -> u64 {
    1 << reason as u8
}

#[allow(clippy::cast_possible_truncation)] // a burst has 64 places
pub(super) const fn place(index: usize) -> u8 {
    index as u8
}
