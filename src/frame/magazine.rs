//! Magazine: a worker's private stock of free slots. Allocates and frees frames without a lock.

use super::descriptor::{Frame, Small};
use super::pool::{CHUNK, NONE, Pool};
use crate::wire::Offload;

/// Capacity in slots; one more returns a chunk to the pool.
const MOST: usize = 8 * CHUNK as usize;

/// A private stock of free slots. Returns them to the pool when dropped.
#[derive(Debug)]
pub struct Magazine {
    pool: &'static Pool,
    /// The first `len` are free and owned by this magazine.
    slots: Box<[u32; MOST]>,
    len: usize,
}

impl Magazine {
    /// Creates an empty magazine that refills from `pool`.
    pub fn new(pool: &'static Pool) -> Magazine {
        Magazine { pool, slots: Box::new([NONE; MOST]), len: 0 }
    }

    /// Builds a frame with these bytes; `None` when the pool has no slots left.
    #[inline]
    pub fn frame(&mut self, bytes: &[u8], offload: Offload) -> Option<Frame> {
        match Small::new(bytes, offload) {
            Some(small) => Some(Frame::small(self.pool, self.pool.memory_view(), self.pop()?, small)),
            None => self.chained_frame(bytes, offload),
        }
    }

    /// Takes a free slot, which the caller then owns.
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

    /// Builds a frame of `len` bytes, which `fill` writes segment by segment; `None` when the pool has no slots
    /// left.
    #[inline(always)]
    pub fn build(&mut self, len: u32, offload: Offload, fill: impl FnMut(&mut [u8])) -> Option<Frame> {
        Frame::build(self.pool, || self.pop(), len, offload, fill)
    }

    /// Frees the slots of a frame. A lent frame has none.
    #[inline(always)]
    pub fn recycle(&mut self, mut frame: Frame) {
        self.recycle_from(&mut frame);
    }

    /// Frees the slots of the frame in this entry and empties it.
    #[inline(always)]
    pub(super) fn recycle_from(&mut self, storage: &mut Frame) {
        match storage.take_slot(self.pool) {
            Some(slot) => self.push(slot),
            None if storage.is_owned() => self.recycle_slow(storage),
            None => storage.forget(),
        }
    }

    /// Slow path: the frame is not exactly one slot of this pool.
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

    /// Frees a slot of its pool that the caller owns.
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

    /// The pool of its slots.
    #[inline(always)]
    pub(super) fn pool(&self) -> &'static Pool {
        self.pool
    }

    /// Frees a slot when the magazine is full.
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

    /// Refills an empty magazine with a chunk from the pool; returns one slot of it.
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
