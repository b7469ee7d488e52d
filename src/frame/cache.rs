//! A worker's private stock of free slots: how it takes and returns frames without a lock.

use super::Batch;
use super::descriptor::Frame;
use super::pool::{CHUNK, NONE, Pool};
use crate::wire::Offload;

/// Slots a cache keeps at most before it gives a chunk back.
const MOST: usize = 8 * CHUNK as usize;

/// A private stock of free slots. What is left goes back to the pool when it is dropped.
#[derive(Debug)]
pub struct Cache {
    pool: &'static Pool,
    stock: Vec<u32>,
}

impl Cache {
    /// An empty stock, filled from `pool` as needed.
    pub fn new(pool: &'static Pool) -> Cache {
        // Room for the stock and for the longest frame that is recycled on top of it.
        Cache { pool, stock: Vec::with_capacity(2 * MOST) }
    }

    /// A frame with these bytes; `None` when the pool has no slots left.
    #[inline]
    pub fn frame(&mut self, bytes: &[u8], offload: Offload) -> Option<Frame> {
        let slot = self.slot()?;
        Frame::small(self.pool, slot, bytes, offload).or_else(|| self.long_frame(slot, bytes, offload))
    }

    /// Appends a frame with these bytes to `batch`. Whether there were slots for it.
    #[inline(always)]
    pub fn push_frame(&mut self, bytes: &[u8], offload: Offload, batch: &mut Batch) -> bool {
        let Some(slot) = self.slot() else { return false };
        match Frame::small(self.pool, slot, bytes, offload) {
            Some(frame) => {
                batch.push(frame);
                true
            }
            None => self.push_long_frame(slot, bytes, offload, batch),
        }
    }

    #[cold]
    fn push_long_frame(&mut self, slot: u32, bytes: &[u8], offload: Offload, batch: &mut Batch) -> bool {
        self.long_frame(slot, bytes, offload).map(|frame| batch.push(frame)).is_some()
    }

    /// A free slot, which is the caller's now.
    #[inline(always)]
    pub(super) fn slot(&mut self) -> Option<u32> {
        match self.stock.pop() {
            Some(slot) => Some(slot),
            None => refill(self.pool, &mut self.stock),
        }
    }

    #[cold]
    fn long_frame(&mut self, slot: u32, mut bytes: &[u8], offload: Offload) -> Option<Frame> {
        self.stock.push(slot);
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
        let (pool, stock) = (self.pool, &mut self.stock);
        Frame::build(pool, || stock.pop().or_else(|| refill(pool, stock)), len, offload, fill)
    }

    /// Takes back the slots of a frame. A frame that is only lent has none.
    #[inline(always)]
    pub fn recycle(&mut self, mut frame: Frame) {
        self.recycle_from(&mut frame);
    }

    /// Takes back the slots of the frame in this place, which is empty then.
    #[inline(always)]
    pub(super) fn recycle_from(&mut self, place: &mut Frame) {
        let Some((pool, slot, simple)) = place.surrender() else { return };
        if !simple {
            return self.recycle_chain(pool, slot, true);
        }
        if !std::ptr::eq(pool, self.pool) {
            return self.recycle_chain(pool, slot, false);
        }
        self.put_back(slot);
    }

    /// Takes back a slot of its pool that the caller holds.
    #[inline(always)]
    pub(super) fn put_back(&mut self, slot: u32) {
        self.stock.push(slot);
        if self.stock.len() > MOST {
            self.give_chunk();
        }
    }

    /// The pool that its slots are from.
    #[inline(always)]
    pub(super) fn pool(&self) -> &'static Pool {
        self.pool
    }

    #[cold]
    fn recycle_chain(&mut self, pool: &Pool, mut slot: u32, chain: bool) {
        if !chain {
            pool.link(slot, NONE);
        }
        if !std::ptr::eq(pool, self.pool) {
            return pool.give(slot);
        }
        while slot != NONE {
            let next = pool.after(slot);
            self.stock.push(slot);
            slot = next;
        }
        while self.stock.len() > MOST {
            self.give_chunk();
        }
    }

    #[cold]
    fn give_chunk(&mut self) {
        let keep = self.stock.len().saturating_sub(CHUNK as usize);
        let mut chunk = NONE;
        for slot in self.stock.drain(keep..) {
            self.pool.link(slot, chunk);
            chunk = slot;
        }
        if chunk != NONE {
            self.pool.give(chunk);
        }
    }
}

/// Takes a chunk from the pool: one slot to use now, the others to stock.
#[cold]
fn refill(pool: &Pool, stock: &mut Vec<u32>) -> Option<u32> {
    let first = pool.grab()?;
    let mut slot = pool.after(first);
    while slot != NONE {
        stock.push(slot);
        slot = pool.after(slot);
    }
    Some(first)
}

impl Drop for Cache {
    fn drop(&mut self) {
        while !self.stock.is_empty() {
            self.give_chunk();
        }
    }
}
