//! Carrying out verdicts: each frame goes into the lanes of the ports it is for, or to the worker
//! that polls them, or dies with a reason.

use super::gate::{Door, Gates};
use super::mail::Books;
use super::peer::{Address, FOR_ONE, Parcel, Peer};
use crate::frame::{Batch, Cache, Frame};
use crate::switch::{Audience, DropReason, Flood, PortId, ReservedGroup, Rules, Verdict, Verdicts};
use crate::telemetry::{PortCounters, WorkerCounters};
use crate::wire::Header;

/// A burst on its way into the lanes. Made for one burst; what it borrows is the worker's.
pub(super) struct Outbox<'a> {
    pub(super) me: u16,
    pub(super) rules: &'a Rules,
    pub(super) verdicts: &'a Verdicts,
    pub(super) books: &'a Books,
    pub(super) counters: &'a WorkerCounters,
    pub(super) gates: &'a mut Gates,
    pub(super) peers: &'a mut [Option<Peer>],
    pub(super) batch: &'a mut Batch,
    pub(super) cache: &'a mut Cache,
    /// Whether some lane has borrowed from the batch, which has to be sent off before the batch
    /// is used again.
    pub(super) borrowed: bool,
    /// Whether all frames have been taken out of the batch.
    pub(super) emptied: bool,
    /// Whether some frame was not to die.
    pub(super) lived: bool,
    /// For which reasons frames that came in have died: a set of bits.
    pub(super) died_of: u64,
}

// A bit for each.
const _: () = assert!(DropReason::ALL.len() <= 64);

/// What came in with a burst, and what became of it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    forwarded: u64,
    flooded: u64,
    copies: u64,
}

impl Tally {
    /// Whether some frame was not to die.
    pub(super) fn lives(&self) -> bool {
        self.forwarded + self.flooded > 0
    }

    /// Enters it into a book.
    pub(super) fn enter(&self, book: &PortCounters) {
        book.rx_frames.add(self.frames);
        book.rx_bytes.add(self.bytes);
        book.forwarded.add(self.forwarded);
        book.flooded.add(self.flooded);
        book.copies.add(self.copies);
    }
}

impl Outbox<'_> {
    /// Carries out the verdicts on the burst that came in at port `from` by a device of its own. `unlearned` are
    /// its frames whose sources could not be learned.
    #[inline(never)] // with registers of its own
    pub(super) fn deliver(&mut self, from: PortId, unlearned: u64) {
        let (mut plain, mut plain_bytes) = (0, 0);
        let mut rest = Tally::default();
        if unlearned != 0 {
            self.count_unlearned(|_| from, unlearned);
        }
        let mut index = 0;
        while index < self.batch.len() {
            // The way of most frames: the door is here, and there is nothing to be dressed.
            let passed = self.gates.pass_on(self.batch.from(index), index, &self.verdicts[index..]);
            plain += passed.frames as u64;
            plain_bytes += passed.bytes;
            self.borrowed |= passed.borrowed;
            index += passed.frames;
            if index < self.batch.len() {
                self.carry_out(index, self.verdicts[index], from, &mut rest);
                index += 1;
            }
        }
        rest.frames += plain;
        rest.bytes += plain_bytes;
        rest.forwarded += plain;
        self.lived = rest.lives();
        self.emptied = plain == self.batch.len() as u64 && !self.borrowed;
        if let Some(book) = book(self.books, from) {
            rest.enter(book);
        }
    }

    /// Carries out the verdict on frame `index`, whatever it is.
    #[inline(never)] // it would crowd the registers of the way that most frames go
    pub(super) fn carry_out(&mut self, index: usize, verdict: Verdict, from: PortId, tally: &mut Tally) {
        let (count, bytes) = self.batch.frame(index).counts();
        tally.frames += count;
        tally.bytes += bytes;
        match verdict {
            Verdict::To(to) => {
                tally.forwarded += count;
                self.forward(index, to);
            }
            Verdict::Watched { from, to } => {
                let (from, to) = (self.rules.port_at(from), self.rules.port_at(to));
                tally.forwarded += count;
                tally.copies += count * self.flood(index, Flood::copies(from, to));
                self.forward_copied(index, to);
            }
            Verdict::Flood(to) => self.flood_and_tally(index, Flood::new(from, to), tally),
            Verdict::FloodFrom(from, to) => self.flood_and_tally(index, Flood::new(from, to), tally),
            Verdict::Drop(reason) => {
                self.died_of |= bit(reason);
                if let Some(book) = book(self.books, from) {
                    book.drops_in.add(reason, count);
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
        if let (Some(book), Some(group)) = (book(self.books, from), group) {
            book.reserved_groups.add(group, self.batch.frame(index).count());
        }
    }

    /// Counts the frames of a set, none of which has been taken out yet, as let pass without learning, each at
    /// the port that it is `of`.
    #[cold]
    pub(super) fn count_unlearned(&self, of: impl Fn(usize) -> PortId, mut frames: u64) {
        while frames != 0 {
            let index = frames.trailing_zeros() as usize;
            if let Some(book) = book(self.books, of(index)) {
                book.unlearned.add(self.batch.frame(index).count());
            }
            frames &= frames - 1;
        }
    }

    #[inline]
    fn flood_and_tally(&mut self, index: usize, flood: Flood, tally: &mut Tally) {
        let count = self.batch.frame(index).count();
        tally.flooded += count;
        tally.copies += count * self.flood(index, flood);
        for port in self.rules.suppressed(flood).into_iter().flatten() {
            if let Some(book) = book(self.books, self.rules.counted_at(*port)) {
                book.suppressed.add(count);
            }
        }
    }

    /// Carries out what another worker has judged about frame `index` of the batch.
    pub(super) fn accept(&mut self, index: usize, address: Address) {
        match address {
            Address::To(to) => {
                self.counters.frames_heard.add(self.batch.frame(index).count());
                if self.gates.door(to).is_some() || self.gates.carried_door(to).is_some() {
                    self.forward(index, to);
                } else {
                    // It was closed meanwhile. Sending the frame on would let it wander.
                    let reason = self.rules.way_out(to).err().filter(|reason| *reason == DropReason::Quarantined);
                    self.lose(index, to, reason.unwrap_or(DropReason::NoDevice));
                }
            }
            Address::Flood(flood) => {
                self.counters.floods_heard.add(1);
                let copies = self.flood_here(index, flood).0 * self.batch.frame(index).count();
                self.count_mirrored(index, flood, self.me);
                if let Some(book) = book(self.books, self.rules.counted_at(flood.from)) {
                    book.copies.add(copies);
                }
            }
        }
    }

    /// Puts frame `index` into the lane of port `to`, wherever that is.
    fn forward(&mut self, index: usize, to: PortId) {
        let Some(door) = self.gates.door(to).or_else(|| self.by_carrier(index, to)) else { return };
        // 12. egress dressing: what the port cannot pass on is finished as the lane is sent off.
        self.note_unfinished(index, door);
        let lane = self.gates.enter(door);
        match self.batch.take(index) {
            Some(frame) => lane.push(frame),
            None => {
                lane.borrow(place(index));
                self.borrowed = true;
            }
        }
    }

    /// Puts frame `index` into the lane of port `to`, wherever that is, when other lanes may have borrowed it.
    #[inline(never)]
    fn forward_copied(&mut self, index: usize, to: PortId) {
        if let Some(door) = self.gates.door(to) {
            self.lend(index, door);
        } else if let Some(carried) = self.gates.carried_door(to) {
            self.flood_carried(index, to, carried);
        } else {
            self.send_copy_away(index, to);
        }
    }

    /// Notes that a lane has frames to be finished, if frame `index` is one behind this door.
    #[inline(always)]
    pub(super) fn note_unfinished(&mut self, index: usize, door: Door) {
        if self.batch.frame(index).offload().is_pending()
            && !(door.offloads && self.gates.takes(door, &self.batch.view(index)))
        {
            self.gates.note_unfinished(door);
        }
    }

    /// Lets the lane behind a door borrow frame `index`.
    #[inline(always)]
    fn lend(&mut self, index: usize, door: Door) {
        self.note_unfinished(index, door);
        self.gates.enter(door).borrow(place(index));
        self.borrowed = true;
    }

    /// Counts the copies of frame `index` that promiscuous ports of a worker got.
    #[inline]
    fn count_mirrored(&self, index: usize, flood: Flood, worker: u16) {
        if flood.to != Audience::Watchers {
            return;
        }
        let count = self.batch.frame(index).count();
        for &port in self.rules.reached(flood).into_iter().flatten() {
            if self.rules.port(port).and_then(|port| port.worker) == Some(worker)
                && let Some(book) = book(self.books, self.rules.counted_at(port))
            {
                book.mirrored.add(count);
            }
        }
    }

    /// Puts frame `index` into the lanes of all ports that a flood reaches, here and at other workers.
    /// How many copies were made, those for other workers not counted: they count theirs.
    fn flood(&mut self, index: usize, flood: Flood) -> u64 {
        let (here, there) = self.flood_here(index, flood);
        self.count_mirrored(index, flood, self.me);
        let mut copies = here;
        for worker in (0..self.peers.len()).filter(|worker| there & 1 << worker != 0) {
            let sent = match self.batch.adopt(index, self.cache) {
                Some(frame) => self.send(worker, self.parcel(index, frame, Address::Flood(flood))),
                None => Err(DropReason::NoBuffer),
            };
            if sent.is_ok() {
                self.counters.floods_sent.add(1);
            }
            if let Err(reason) = sent {
                // The copies that the other worker would have made die here.
                let count = self.batch.frame(index).count();
                if let Ok(worker) = u16::try_from(worker) {
                    self.count_mirrored(index, flood, worker);
                }
                for port in self.rules.reached(flood).into_iter().flatten() {
                    if self.rules.port(*port).and_then(|port| port.worker) == u16::try_from(worker).ok() {
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
        for &to in self.rules.reached(flood).into_iter().flatten() {
            let Some(door) = self.gates.door(to).filter(|door| door.floods) else {
                match self.flood_elsewhere(index, to) {
                    Some(worker) => there |= 1 << worker,
                    None => copies += 1,
                }
                continue;
            };
            copies += 1;
            self.lend(index, door);
        }
        (copies, there)
    }

    /// Floods frame `index` to port `to`, which has no door here for floods to a device of its own. The
    /// worker that is to do so, if it is not this one; otherwise there is a copy, whatever became of it.
    #[inline(never)] // it would crowd the registers of the loop over a flood
    fn flood_elsewhere(&mut self, index: usize, to: PortId) -> Option<u16> {
        if let Some(carried) = self.gates.carried_door(to).filter(|carried| carried.door.floods) {
            self.flood_carried(index, to, carried);
            return None;
        }
        let worker = self.rules.port(to).and_then(|port| port.worker).filter(|&worker| worker != self.me);
        if worker.is_none() {
            self.lose(index, to, DropReason::NoDevice);
        }
        worker
    }

    /// Sends frame `index` to the worker that polls the device of port `to`, if there is one.
    #[inline(never)]
    pub(super) fn send_away(&mut self, index: usize, to: PortId) {
        let Some(worker) = self.other_worker(index, to) else { return };
        // It is gone from the batch after this, and may yet have to be counted.
        let count = self.batch.frame(index).count();
        let frame = self.batch.take(index).or_else(|| self.batch.adopt(index, self.cache));
        let parcel = frame.map(|frame| self.parcel(index, frame, Address::To(to)));
        self.send_and_count(worker, parcel, to, count);
    }

    /// The same with a copy of it.
    fn send_copy_away(&mut self, index: usize, to: PortId) {
        let Some(worker) = self.other_worker(index, to) else { return };
        let frame = self.batch.adopt(index, self.cache);
        let parcel = frame.map(|frame| self.parcel(index, frame, Address::To(to)));
        self.send_and_count(worker, parcel, to, self.batch.frame(index).count());
    }

    /// The worker that polls the device of port `to`. If that is this one, or none, frame `index` is counted as
    /// lost.
    fn other_worker(&self, index: usize, to: PortId) -> Option<u16> {
        let worker = match self.rules.way_out(to) {
            Ok(port) => port.worker.filter(|&worker| worker != self.me).ok_or(DropReason::NoDevice),
            Err(reason) => Err(reason),
        };
        worker.map_err(|reason| self.lose(index, to, reason)).ok()
    }

    /// A frame for another worker that is, or is a copy of, frame `index`.
    fn parcel(&self, index: usize, frame: Frame, address: Address) -> Parcel {
        Parcel { frame, address, priority: self.batch.priority(index) }
    }

    fn send_and_count(&mut self, worker: u16, parcel: Option<Parcel>, to: PortId, count: u64) {
        let sent = match parcel {
            Some(parcel) => self.send(usize::from(worker), parcel),
            None => Err(DropReason::NoBuffer),
        };
        match sent {
            Ok(()) => self.counters.frames_sent.add(count),
            Err(reason) => self.count_out(to, reason, count),
        }
    }

    fn send(&mut self, worker: usize, parcel: Parcel) -> Result<(), DropReason> {
        let peer = self.peers.get_mut(worker).and_then(Option::as_mut).ok_or(DropReason::NoDevice)?;
        if matches!(parcel.address, Address::Flood(_)) && peer.parcels_out.slots() <= FOR_ONE {
            self.cache.recycle(parcel.frame);
            return Err(DropReason::PeerFull);
        }
        match peer.parcels_out.push(parcel) {
            Ok(()) => {
                peer.fresh = true;
                Ok(())
            }
            Err(rtrb::PushError::Full(parcel)) => {
                self.cache.recycle(parcel.frame);
                Err(DropReason::PeerFull)
            }
        }
    }

    /// Counts frame `index` as one that died on its way out of `to`.
    #[cold]
    pub(super) fn lose(&self, index: usize, to: PortId, reason: DropReason) {
        self.count_out(to, reason, self.batch.frame(index).count());
    }

    fn count_out(&self, port: PortId, reason: DropReason, frames: u64) {
        match book(self.books, self.rules.counted_at(port)) {
            Some(book) => book.drops_out.add(reason, frames),
            None => self.counters.strays.add(frames),
        }
    }
}

#[inline]
pub(super) fn book(books: &Books, port: PortId) -> Option<&PortCounters> {
    books.get(port.index())?.as_deref()
}

/// The bit of a reason in a set of them.
pub(super) const fn bit(reason: DropReason) -> u64 {
    1 << reason as u8
}

#[allow(clippy::cast_possible_truncation)] // a burst has 64 places
pub(super) const fn place(index: usize) -> u8 {
    index as u8
}
