//! Executes verdicts: moves each frame into the TX batches of its egress ports, hands it off to the worker that
//! polls them, or drops it with a reason.

use super::peer::{HandoffFrame, HandoffTarget, Peer};
use super::port_counters::{PortCounterTable, bit, counters_of};
use super::queues::{EgressEntry, QueueTable, place};
use crate::frame::{Batch, Frame, Magazine};
use crate::switch::{DropReason, Flood, FloodScope, ForwardingConfig, PortId, ReservedGroup, Verdict, Verdicts};
use crate::telemetry::{PortCounters, WorkerCounters};
use crate::wire::Header;

/// The state that executing one burst needs, borrowed from the worker.
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
    /// Whether a TX batch has borrowed from the batch; it must be flushed before the batch is reused.
    pub(super) borrowed: bool,
    /// Whether all frames have been moved out of the batch.
    pub(super) moved_all: bool,
    /// Whether any frame was forwarded or flooded.
    pub(super) any_forwarded: bool,
    /// Ingress drop reasons of this burst, as a bit mask.
    pub(super) drop_mask: u64,
}

/// Counts of one received burst.
#[derive(Debug, Default)]
pub(super) struct BurstStats {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    forwarded: u64,
    flooded: u64,
    copies: u64,
}

impl BurstStats {
    /// Whether any frame was forwarded or flooded.
    pub(super) fn any_forwarded(&self) -> bool {
        self.forwarded + self.flooded > 0
    }

    /// Adds the counts to a port's counters.
    pub(super) fn add_to(&self, counters: &PortCounters) {
        counters.rx_frames.add(self.frames);
        counters.rx_bytes.add(self.bytes);
        counters.forwarded.add(self.forwarded);
        counters.flooded.add(self.flooded);
        counters.copies.add(self.copies);
    }
}

impl Outbox<'_> {
    /// Executes the verdicts on a burst from port `from`, which has a device of its own. `not_learned` is the mask
    /// of frames whose source was not learned.
    #[inline(never)] // to limit register pressure
    pub(super) fn dispatch(&mut self, from: PortId, not_learned: u64) {
        let (mut plain, mut plain_bytes) = (0, 0);
        let mut rest = BurstStats::default();
        if not_learned != 0 {
            self.count_not_learned(|_| from, not_learned);
        }
        let mut index = 0;
        while index < self.batch.len() {
            // Fast path of most frames: the egress queue is at this worker and no software offload is needed.
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

    /// Slow path: executes any verdict on frame `index`.
    #[inline(never)] // keeps register pressure off the fast path
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

    /// Counts a dropped frame to a reserved group by the group's name.
    #[cold]
    fn count_reserved(&self, index: usize, from: PortId) {
        let group = Header::read(self.batch.head(index)).and_then(|header| ReservedGroup::new(header.destination));
        if let (Some(counters), Some(group)) = (counters_of(self.port_counters, from), group) {
            counters.reserved_groups.add(group, self.batch.frame(index).count());
        }
    }

    /// Counts a mask of frames as forwarded without learning, each at its ingress port `of(index)`. No frame of the
    /// mask may have been moved out of the batch yet.
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

    /// Executes another worker's decision on frame `index` of the batch.
    pub(super) fn enqueue(&mut self, index: usize, target: HandoffTarget) {
        match target {
            HandoffTarget::Port(to) => {
                self.counters.peer_rx_frames.add(self.batch.frame(index).count());
                if self.queues.egress(to).is_some() || self.queues.tagged_egress(to).is_some() {
                    self.forward(index, to);
                } else {
                    // The port was closed after the decision. A second hand-off could circulate the frame.
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

    /// Moves frame `index` to port `to`, at this or another worker.
    fn forward(&mut self, index: usize, to: PortId) {
        let Some(egress) = self.queues.egress(to).or_else(|| self.tagged_egress(index, to)) else { return };
        // 12. Egress offload: offloads that the port lacks run when its TX batch is flushed.
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

    /// Like `forward`, for a frame that other TX batches may have borrowed.
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

    /// Marks the TX batch for software offload if frame `index` needs an offload that the device lacks.
    #[inline(always)]
    pub(super) fn mark_sw_offload(&mut self, index: usize, egress: EgressEntry) {
        if self.batch.frame(index).offload().needs_offload()
            && !(egress.offloads && self.queues.supports(egress, &self.batch.frame_ref(index)))
        {
            self.queues.mark_sw_offload(egress);
        }
    }

    /// Lets the TX batch of `egress` borrow frame `index`.
    #[inline(always)]
    fn push_borrowed(&mut self, index: usize, egress: EgressEntry) {
        self.mark_sw_offload(index, egress);
        self.queues.tx_mut(egress).borrow(place(index));
        self.borrowed = true;
    }

    /// Counts the copies of frame `index` that promiscuous ports of a worker receive.
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

    /// Floods frame `index` at this worker and at its peers. Returns the number of copies made here; peers count
    /// theirs.
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
                // The copies that the peer would have made are dropped here.
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

    /// Floods frame `index` to the ports of this worker. Returns the number of copies, and the peers that have
    /// ports to flood to as a bit mask.
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

    /// Floods frame `index` to port `to`, which has no plain flood egress here. Returns the worker that must flood
    /// to it, or `None` if this worker has sent or dropped the copy.
    #[inline(never)] // keeps register pressure off the fast path
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

    /// Hands frame `index` off to the worker that polls the device of port `to`; drops it if there is none.
    #[inline(never)]
    pub(super) fn hand_off(&mut self, index: usize, to: PortId) {
        let Some(worker) = self.other_worker(index, to) else { return };
        // The frame leaves the batch below, but may have to be counted.
        let count = self.batch.frame(index).count();
        let frame = self.batch.take(index).or_else(|| self.batch.copy_to_pool(index, self.magazine));
        let handoff = frame.map(|frame| self.handoff_frame(index, frame, HandoffTarget::Port(to)));
        self.send_and_count(worker, handoff, to, count);
    }

    /// Like `hand_off`, with a copy of the frame.
    fn hand_off_copy(&mut self, index: usize, to: PortId) {
        let Some(worker) = self.other_worker(index, to) else { return };
        let frame = self.batch.copy_to_pool(index, self.magazine);
        let handoff = frame.map(|frame| self.handoff_frame(index, frame, HandoffTarget::Port(to)));
        self.send_and_count(worker, handoff, to, self.batch.frame(index).count());
    }

    /// Returns the worker that polls the device of port `to`. Drops frame `index` if that is this worker or none.
    fn other_worker(&self, index: usize, to: PortId) -> Option<u16> {
        let worker = match self.config.egress(to) {
            Ok(port) => port.worker.filter(|&worker| worker != self.me).ok_or(DropReason::NoDevice),
            Err(reason) => Err(reason),
        };
        worker.map_err(|reason| self.drop_tx(index, to, reason)).ok()
    }

    /// Wraps frame `index`, or its copy `frame`, for another worker.
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
        peer.send_frame(frame).map_err(|refused| {
            self.magazine.recycle(refused.frame);
            DropReason::PeerFull
        })
    }

    /// Counts frame `index` as dropped at egress of `to`.
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
