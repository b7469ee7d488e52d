//! A worker's private stock of free slots: how it takes and returns frames without a lock.

use super::Batch;
use super::descriptor::{Frame, Small};
use super::pool::{CHUNK, NONE, Pool};
use crate::wire::Offload;

/// Slots a cache keeps at most: for another one, it gives a chunk back.
const MOST: usize = 8 * CHUNK as usize;

/// A private stock of free slots. What is left goes back to the pool when it is dropped.
#[derive(Debug)]
pub struct Magazine {
    pool: &'static Pool,
    /// The first `len` of them are free, and nobody else's.
    slots: Box<[u32; MOST]>,
    len: usize,
}

impl Magazine {
    /// An empty stock, filled from `pool` as needed.
    pub fn new(pool: &'static Pool) -> Magazine {
        Magazine { pool, slots: Box::new([NONE; MOST]), len: 0 }
    }

    /// A frame with these bytes; `None` when the pool has no slots left.
    #[inline]
    pub fn frame(&mut self, bytes: &[u8], offload: Offload) -> Option<Frame> {
        match Small::new(bytes, offload) {
            Some(small) => Some(Frame::small(self.pool, self.pool.memory_view(), self.pop()?, small)),
            None => self.chained_frame(bytes, offload),
        }
    }

    /// Appends frames to `batch` for as long as that has places, there are slots, and `next` hands out another
    /// one. It is not asked for one that there is no place or no slot for.
    #[inline(always)]
    pub fn push_small<'a>(&mut self, batch: &mut Batch, mut next: impl FnMut() -> Option<Small<'a>>) {
        if self.len == 0 {
            let Some(slot) = self.refill() else { return };
            self.push(slot);
        }
        let (pool, room) = (self.pool, self.pool.memory_view());
        let places = batch.spare_mut();
        let stock = self.slots.get(..self.len).unwrap_or_default();
        let (rest, mut slots) = stock.split_at(stock.len().saturating_sub(places.len()));
        let most = slots.len();
        // They are out of the stock until it is known how many have been used: none is ever in it and in a
        // frame at once, should `next` panic.
        self.len = rest.len();
        for storage in places {
            let [rest @ .., slot] = slots else { break };
            let Some(small) = next() else { break };
            storage.fill(Frame::small(pool, room, *slot, small));
            slots = rest;
        }
        self.len += slots.len();
        batch.commit(most - slots.len());
    }

    /// Appends a frame with these bytes to `batch`. Whether there were slots for it.
    #[inline]
    pub fn push_frame(&mut self, bytes: &[u8], offload: Offload, batch: &mut Batch) -> bool {
        self.frame(bytes, offload).map(|frame| batch.push(frame)).is_some()
    }

    /// A free slot, which is the caller's now.
    #[inline(always)]
    pub(super) fn pop(&mut self) -> Option<u32> {
        match self.len.checked_sub(1) {
            Some(last) => {
                self.len = last;
                Some(self.slots[last])
            }
            None => self.refill(),
        }
    }

    #[cold]
    fn chained_frame(&mut self, mut bytes: &[u8], offload: Offload) -> Option<Frame> {
        #[allow(clippy::cast_possible_truncation)] // no frame has 4 GiB
        let len = bytes.len() as u32;
        self.build(len, offload, |part| {
            let (now, rest) = bytes.split_at(part.len());
            part.copy_from_slice(now);
            bytes = rest;
        })
    }

    /// A frame of `len` bytes, which `fill` writes segment by segment; `None` when the pool has no
    /// slots left.
    #[inline(always)]
    pub fn build(&mut self, len: u32, offload: Offload, fill: impl FnMut(&mut [u8])) -> Option<Frame> {
        Frame::build(self.pool, || self.pop(), len, offload, fill)
    }

    /// Takes back the slots of a frame. A frame that is only lent has none.
    #[inline(always)]
    pub fn recycle(&mut self, mut frame: Frame) {
        self.recycle_from(&mut frame);
    }

    /// Takes back the slots of the frame in this place, which is empty then.
    #[inline(always)]
    pub(super) fn recycle_from(&mut self, storage: &mut Frame) {
        match storage.take_slot(self.pool) {
            Some(slot) => self.push(slot),
            None if storage.is_owned() => self.recycle_slow(storage),
            None => storage.forget(),
        }
    }

    /// The same for a frame that has not just one slot of this pool.
    #[inline(never)]
    fn recycle_slow(&mut self, storage: &mut Frame) {
        let Some((pool, mut slot, simple)) = storage.take_slots() else { return };
        if simple {
            pool.link(slot, NONE);
        }
        if !std::ptr::eq(pool, self.pool) {
            return pool.push(slot);
        }
        while slot != NONE {
            let next = pool.after(slot);
            self.push(slot);
            slot = next;
        }
    }

    /// Takes back a slot of its pool that the caller holds.
    #[inline(always)]
    pub(super) fn push(&mut self, slot: u32) {
        match self.slots.get_mut(self.len) {
            Some(storage) => {
                *storage = slot;
                self.len += 1;
            }
            None => self.push_slow(slot),
        }
    }

    /// Places for `slots` slots that will be taken back, or for as many as there is room for at all; how many of
    /// them have been filled is to be said to [`Magazine::commit`].
    #[inline(always)]
    pub(super) fn spare_mut(&mut self, slots: usize) -> &mut [u32] {
        let slots = slots.min(MOST);
        while self.len > MOST - slots {
            self.push_chunk();
        }
        &mut self.slots[self.len..][..slots]
    }

    /// Takes back the slots that have been put into so many places of [`Magazine::spare_mut`], and which the caller held.
    #[inline(always)]
    pub(super) fn commit(&mut self, slots: usize) {
        self.len += slots;
    }

    /// The pool that its slots are from.
    #[inline(always)]
    pub(super) fn pool(&self) -> &'static Pool {
        self.pool
    }

    /// Takes back a slot for which there is no room.
    #[cold]
    fn push_slow(&mut self, slot: u32) {
        self.push_chunk();
        self.push(slot);
    }

    #[cold]
    fn push_chunk(&mut self) {
        let keep = self.len.saturating_sub(CHUNK as usize);
        let mut chunk = NONE;
        for &slot in &self.slots[keep..self.len] {
            self.pool.link(slot, chunk);
            chunk = slot;
        }
        self.len = keep;
        if chunk != NONE {
            self.pool.push(chunk);
        }
    }

    /// Takes a chunk from the pool: one slot to use now, the others to stock. For an empty stock.
    #[cold]
    fn refill(&mut self) -> Option<u32> {
        let first = self.pool.pop()?;
        let mut slot = self.pool.after(first);
        while slot != NONE {
            let next = self.pool.after(slot);
            self.push(slot);
            slot = next;
        }
        Some(first)
    }
}

impl Drop for Magazine {
    fn drop(&mut self) {
        while self.len > 0 {
            self.push_chunk();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn nobody_is_asked_for_what_there_is_no_slot_for() {
        let pool = Pool::new(70).unwrap();
        let (mut magazine, mut batches) = (Magazine::new(pool), [Batch::new(), Batch::new()]);
        let mut requests = [0; 3];
        for (requests, batch) in requests.iter_mut().zip([0, 1, 1]) {
            magazine.push_small(&mut batches[batch], || {
                *requests += 1;
                Small::new(&[7; 60], Offload::NONE)
            });
        }
        assert_eq!(requests, [64, 6, 0]);
        assert_eq!(batches.each_ref().map(Batch::len), [64, 6]);
        batches.iter_mut().for_each(|batch| batch.clear(&mut magazine));
        drop(magazine);
        assert_eq!(pool.free(), 70);
    }

    #[test]
    fn a_panic_gives_no_slot_to_two() {
        let pool = Pool::new(8).unwrap();
        let (mut magazine, mut batch) = (Magazine::new(pool), Batch::new());
        let mut requests = 0;
        let next = || {
            requests += 1;
            assert!(requests < 3, "the third is one too many");
            Small::new(&[7; 60], Offload::NONE)
        };
        catch_unwind(AssertUnwindSafe(|| magazine.push_small(&mut batch, next))).unwrap_err();
        drop((magazine, batch));
        assert_eq!(pool.free(), 2, "those of the two frames; the others are lost");
    }
}
