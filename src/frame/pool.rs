//! The arena of slots, and the frames that own them.
//!
//! One mapping of 4 KiB slots serves the whole process, and lives as long: it is leaked on
//! purpose, so that a frame can point at it without counting. A slot is either free, and then in
//! the pool's list or in a worker's [`Cache`](super::Cache), or it belongs to exactly one
//! [`Frame`]. Only the holder of a slot reads or writes its bytes; that is the invariant which
//! every `unsafe` block in this file leans on.
//!
//! The free list is a stack of *chunks*: chains of slots linked by `next`, so that a worker and
//! the pool exchange many slots with one compare-and-swap and nobody locks or allocates. The top
//! of the stack carries a tag that grows with every exchange; a chunk that was taken and given
//! back meanwhile (the ABA problem) is thereby told from one that never moved.

#![allow(clippy::cast_possible_truncation)] // lengths within a slot and halves of words

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::sys::memory::{Mapping, Pages};
use crate::wire::Offload;

/// Bytes of one slot: a page, and the chunk of an AF_XDP UMEM.
pub const SLOT: usize = 4096;

const SLOT_BYTES: u32 = SLOT as u32;

/// Bytes left free in front of a frame in its first slot: room for an offload header or a tag.
const FRONT: u16 = 128;

/// Bytes from the beginning of a frame that are looked at for its headers: what surely lies in the
/// first segment. So a frame is measured alike wherever it lies, also after it has been adopted.
const HEADERS: usize = SLOT - FRONT as usize - 64 * 15;

/// Slots of a chunk on the free list, at first. Later chunks may be shorter.
pub(super) const CHUNK: u32 = 64;

/// "No slot": the end of a chain.
pub(super) const NONE: u32 = u32::MAX;

/// The arena that all frames of a process share.
pub struct Pool {
    memory: Mapping,
    slots: u32,
    /// Behind a slot: the next one of the same frame or of the same free chunk. Written by whoever
    /// holds the slot.
    next: Box<[AtomicU32]>,
    /// Where in a slot its segment lies, start × 65536 + length; for slots behind a frame's first.
    extent: Box<[AtomicU32]>,
    /// Below the first slot of a free chunk: the first slot of the chunk below.
    below: Box<[AtomicU32]>,
    /// The topmost free chunk: tag × 2^32 + slot.
    top: AtomicU64,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("slots", &self.slots).field("pages", &self.memory.pages()).finish()
    }
}

fn table(len: u32) -> Box<[AtomicU32]> {
    (0..len).map(|_| AtomicU32::new(NONE)).collect()
}

impl Pool {
    /// A pool of `slots` slots, for the life of the process.
    pub fn new(slots: u32) -> io::Result<&'static Pool> {
        let memory = Mapping::new(slots as usize * SLOT)?;
        let (next, extent, below) = (table(slots), table(slots), table(slots));
        let pool = Pool { memory, slots, next, extent, below, top: AtomicU64::new(u64::from(NONE)) };
        for first in (0..slots).step_by(CHUNK as usize).rev() {
            let last = (first + CHUNK).min(slots);
            for slot in first..last - 1 {
                pool.link(slot, slot + 1);
            }
            pool.give(first);
        }
        Ok(Box::leak(Box::new(pool)))
    }

    /// How many slots there are.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// What backs the slots.
    pub fn pages(&self) -> Pages {
        self.memory.pages()
    }

    /// How many slots are free and not in any worker's cache. Walks the list, so it is for tests
    /// and for a pool at rest; while others take and give, it is a guess.
    pub fn free(&self) -> u32 {
        let mut free = 0;
        let mut chunk = top_slot(self.top.load(Ordering::Acquire));
        while chunk != NONE && free <= self.slots {
            let mut slot = chunk;
            while slot != NONE && free <= self.slots {
                free += 1;
                slot = self.after(slot);
            }
            chunk = self.below[chunk as usize].load(Ordering::Relaxed);
        }
        free
    }

    pub(super) fn link(&self, slot: u32, next: u32) {
        self.next[slot as usize].store(next, Ordering::Relaxed);
    }

    pub(super) fn after(&self, slot: u32) -> u32 {
        self.next[slot as usize].load(Ordering::Relaxed)
    }

    /// Puts a chunk (a chain of slots that the caller holds) on the free list.
    pub(super) fn give(&self, chunk: u32) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            self.below[chunk as usize].store(top_slot(top), Ordering::Relaxed);
            match self.top.compare_exchange_weak(top, retop(top, chunk), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => top = other,
            }
        }
    }

    /// Takes a chunk off the free list: the first slot of a chain that is now the caller's.
    pub(super) fn grab(&self) -> Option<u32> {
        let mut top = self.top.load(Ordering::Acquire);
        loop {
            let chunk = top_slot(top);
            if chunk == NONE {
                return None;
            }
            let below = self.below[chunk as usize].load(Ordering::Relaxed);
            match self.top.compare_exchange_weak(top, retop(top, below), Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(chunk),
                Err(other) => top = other,
            }
        }
    }

    /// The bytes of a slot that the caller holds.
    ///
    /// # Safety
    ///
    /// The caller holds the slot, `start + len` is at most [`SLOT`], and nobody writes the slot
    /// while the slice lives.
    unsafe fn bytes(&self, slot: u32, start: u16, len: u16) -> &[u8] {
        debug_assert!(slot < self.slots && usize::from(start) + usize::from(len) <= SLOT);
        let at = slot as usize * SLOT + usize::from(start);
        // SAFETY: at + len lies within slot `slot`, and so within the mapping.
        let base = unsafe { self.memory.base().as_ptr().add(at) };
        // SAFETY: the range is mapped and zeroed from the start, lives as long as the pool, and by
        // the caller's word is not written meanwhile.
        unsafe { std::slice::from_raw_parts(base, usize::from(len)) }
    }

    /// The bytes of a slot that the caller holds, to write.
    ///
    /// # Safety
    ///
    /// The caller holds the slot, `start + len` is at most [`SLOT`], and nobody else reads or writes
    /// the slot while the slice lives.
    #[allow(clippy::mut_from_ref)] // exclusive by the right to the slot, not to the pool
    unsafe fn bytes_mut(&self, slot: u32, start: u16, len: u16) -> &mut [u8] {
        debug_assert!(slot < self.slots && usize::from(start) + usize::from(len) <= SLOT);
        let at = slot as usize * SLOT + usize::from(start);
        // SAFETY: at + len lies within slot `slot`, and so within the mapping.
        let base = unsafe { self.memory.base().as_ptr().add(at) };
        // SAFETY: the range is mapped, lives as long as the pool, and by the caller's word is ours.
        unsafe { std::slice::from_raw_parts_mut(base, usize::from(len)) }
    }

    fn extent(&self, slot: u32) -> (u16, u16) {
        let word = self.extent[slot as usize].load(Ordering::Relaxed);
        ((word >> 16) as u16, word as u16)
    }
}

const fn top_slot(top: u64) -> u32 {
    top as u32
}

const fn retop(old: u64, slot: u32) -> u64 {
    ((old >> 32).wrapping_add(1) << 32) | slot as u64
}

/// Where the first byte of a frame goes in slot `slot`. Slots are a page apart, so that without
/// this the headers of a whole burst would compete for one set of the processor's cache.
const fn front(slot: u32) -> u16 {
    FRONT + 64 * (slot & 15) as u16
}

/// Where the bytes of a frame are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Place {
    /// In one slot that the frame owns, and nothing is left to be done to it.
    Slot,
    /// In a chain of slots that the frame owns, or in one with an offload header to be heeded.
    Chain,
    /// In a receive buffer of the batch that the frame stands in, until that burst is released.
    Landing,
    /// In the batch, of which this is only the place: a borrow.
    Borrowed,
    /// Nowhere: the frame has been taken out of here, or has given up its slots.
    #[default]
    Nowhere,
}

/// One Ethernet frame, and the right to its bytes. See the room's page for where they are.
#[derive(Debug)]
pub struct Frame {
    /// The pool of its slots; none for a frame that is lent.
    pool: Option<&'static Pool>,
    /// The two words of its offload header: apart, they leave no gap.
    offload: u64,
    /// Its first slot, or its receive buffer.
    at: u32,
    /// Bytes of all segments.
    len: u32,
    /// Where the first segment begins in its slot or buffer.
    start: u16,
    /// Bytes that each of the frames repeats that this one stands for.
    headers: u16,
    csum_offset: u16,
    /// How many frames this stands for; 0 if its offload header does not fit it.
    frames: u8,
    place: Place,
}

// Frames are moved from batch to lane to device.
const _: () = assert!(size_of::<Frame>() == 32);

impl Frame {
    /// A frame in the slots that `slot` hands out, `len` bytes long; `None` when they run out.
    /// `fill` writes the bytes, segment by segment in order.
    #[inline(always)]
    pub(super) fn build(
        pool: &'static Pool,
        mut slot: impl FnMut() -> Option<u32>,
        len: u32,
        offload: Offload,
        mut fill: impl FnMut(&mut [u8]),
    ) -> Option<Frame> {
        let at = slot()?;
        let start = front(at);
        let head = len.min(SLOT_BYTES - u32::from(start));
        let place = Place::Slot;
        let mut frame = Frame::new(Some(pool), at, start, len, offload, place);
        // SAFETY: slot `at` was handed to this frame, which nobody else has yet; head is at most
        // what the slot has behind start.
        fill(unsafe { pool.bytes_mut(at, start, head as u16) });
        if len > head && !frame.lengthen(pool, slot, fill) {
            return None;
        }
        if offload.is_pending() {
            if len == head {
                pool.link(at, NONE);
                frame.place = Place::Chain;
            }
            frame.measure(None);
        }
        Some(frame)
    }

    /// A frame with these bytes in a slot that the caller hands over. `None` if it takes more than
    /// the one slot, or a closer look at its header; the slot is the caller's then.
    #[inline(always)]
    pub(super) fn small(pool: &'static Pool, at: u32, bytes: &[u8], offload: Offload) -> Option<Frame> {
        let start = front(at);
        if bytes.len() > SLOT - usize::from(start) || offload.is_pending() {
            return None;
        }
        let len = bytes.len() as u32;
        // SAFETY: the slot was handed over, and nobody else has it; start + len lies within it.
        unsafe { pool.bytes_mut(at, start, len as u16) }.copy_from_slice(bytes);
        Some(Frame::new(Some(pool), at, start, len, offload, Place::Slot))
    }

    /// Adds the segments behind the first. If slots run out, the frame has those it got.
    #[cold]
    fn lengthen(
        &mut self,
        pool: &'static Pool,
        mut slot: impl FnMut() -> Option<u32>,
        mut fill: impl FnMut(&mut [u8]),
    ) -> bool {
        self.place = Place::Chain;
        pool.link(self.at, NONE);
        let (mut left, mut last) = (self.len - self.head(), self.at);
        while left > 0 {
            let Some(at) = slot() else { return false };
            pool.link(at, NONE);
            pool.link(last, at);
            let part = left.min(SLOT_BYTES);
            // SAFETY: slot `at` was handed to this frame, which nobody else has yet; part is at
            // most a slot.
            fill(unsafe { pool.bytes_mut(at, 0, part as u16) });
            pool.extent[at as usize].store(part, Ordering::Relaxed);
            (left, last) = (left - part, at);
        }
        true
    }

    /// A frame in receive buffer `buffer` of a batch, `len` bytes long. Where its offload header is
    /// pending, it is to be measured.
    #[inline(always)]
    pub(super) fn landed(buffer: u8, start: u16, len: u32, offload: Offload) -> Frame {
        Frame::new(None, u32::from(buffer), start, len, offload, Place::Landing)
    }

    #[inline(always)]
    fn new(pool: Option<&'static Pool>, at: u32, start: u16, len: u32, offload: Offload, place: Place) -> Frame {
        let (offload, csum_offset) = offload.words();
        Frame { pool, offload, at, len, start, headers: 0, csum_offset, frames: 1, place }
    }

    /// What is left in the place of a frame that was taken out.
    pub(super) const GONE: Frame = Frame {
        pool: None,
        offload: 0,
        at: 0,
        len: 0,
        start: 0,
        headers: 0,
        csum_offset: 0,
        frames: 0,
        place: Place::Nowhere,
    };

    /// A borrow of the frame at place `index` of a batch.
    #[inline(always)]
    pub(super) fn borrowed(index: u8) -> Frame {
        Frame { at: u32::from(index), place: Place::Borrowed, ..Frame::GONE }
    }

    /// Makes a borrow of a place where there is no frame.
    #[inline(always)]
    pub(super) fn become_borrow(&mut self, index: u8) {
        debug_assert!(!self.is_here());
        (self.at, self.place) = (u32::from(index), Place::Borrowed);
    }

    /// The place in its batch of which this is a borrow.
    #[inline(always)]
    pub(super) fn borrow(&self) -> Option<usize> {
        (self.place == Place::Borrowed).then_some(self.at as usize)
    }

    /// Takes the frame out of its place.
    #[inline(always)]
    pub fn take(&mut self) -> Frame {
        std::mem::replace(self, Frame::GONE)
    }

    /// Moves the frame to another place, where there is none. This is what every frame goes through
    /// on its way into a lane; by value, it would be taken apart and put together again field by
    /// field.
    #[inline(always)]
    pub(super) fn move_to(&mut self, there: &mut Frame) {
        debug_assert!(!there.is_here());
        // SAFETY: both are frames, and two references that may write do not overlap. For the moment there are
        // two that hold the same slots; none of them is dropped before the next statement, which
        // cannot panic, leaves only one. What was there held nothing.
        unsafe { std::ptr::copy_nonoverlapping(self, there, 1) };
        (self.pool, self.place) = (None, Place::Nowhere);
    }

    /// Whether there is a frame in this place, or only what is left of one that was taken.
    #[inline(always)]
    pub fn is_here(&self) -> bool {
        self.place != Place::Nowhere
    }

    /// Checks the offload header against the frame, once for all. `head`: its first segment, if it
    /// is lent.
    #[cold]
    pub(super) fn measure(&mut self, head: Option<&[u8]>) {
        let head = head.unwrap_or(self.owned_head());
        let head = &head[..head.len().min(HEADERS)];
        (self.frames, self.headers) = match self.offload().segmentation(head, self.len) {
            Ok(s) => (s.frames, s.headers),
            Err(_) => (0, 0),
        };
    }

    /// The receive buffer it lies in, if it is lent, and where it begins there.
    #[inline(always)]
    pub(super) fn landing(&self) -> Option<(usize, usize)> {
        (self.place == Place::Landing).then_some((self.at as usize, usize::from(self.start)))
    }

    /// Bytes of the first segment.
    #[inline(always)]
    pub(super) fn head(&self) -> u32 {
        match self.place {
            Place::Chain => self.len.min(SLOT_BYTES - u32::from(self.start)),
            _ => self.len,
        }
    }

    /// Bytes of all segments together.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // asked for its length in bytes, not whether it has any
    pub fn len(&self) -> u32 {
        self.len
    }

    /// What is left to be done to it.
    #[inline(always)]
    pub fn offload(&self) -> Offload {
        Offload::from_words(self.offload, self.csum_offset)
    }

    /// Whether it stands for itself alone, as most do.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        self.frames == 1
    }

    /// Whether its offload header fits it. Nothing else may be done with a frame that is a lie.
    #[inline(always)]
    pub fn is_sound(&self) -> bool {
        self.frames > 0
    }

    /// How many frames it counts as: those it will become. One, where its header is a lie.
    #[inline(always)]
    pub fn count(&self) -> u64 {
        u64::from(self.frames.max(1))
    }

    /// How many frames it counts as, and how many bytes these have together, each with its headers.
    #[inline(always)]
    pub fn counts(&self) -> (u64, u64) {
        if self.is_plain() { (1, u64::from(self.len)) } else { self.counts_of_many() }
    }

    #[inline(never)]
    fn counts_of_many(&self) -> (u64, u64) {
        (self.count(), u64::from(self.len) + u64::from(self.headers) * (self.count() - 1))
    }

    /// Bytes of the longest frame that it will become; its own length for a plain one.
    #[inline(always)]
    pub fn longest(&self) -> u32 {
        match self.frames {
            0 | 1 => self.len,
            _ => u32::from(self.headers) + u32::from(self.offload().segment_size()),
        }
    }

    /// Whether it owns the slots it lies in, and so may outlive its burst.
    #[inline(always)]
    pub fn is_owned(&self) -> bool {
        matches!(self.place, Place::Slot | Place::Chain)
    }

    /// Whether it lies in one slot that it owns, and nothing is left to be done to it.
    #[inline(always)]
    pub fn is_plain_slot(&self) -> bool {
        self.place == Place::Slot
    }

    /// All its bytes, if it lies in one slot that it owns.
    #[inline(always)]
    pub(super) fn slot_bytes(&self) -> Option<&[u8]> {
        if self.place != Place::Slot {
            return None;
        }
        // SAFETY: the slot is this frame's, and bytes are written only while it is built; all of it
        // lies within the slot: `build` and `small` saw to that.
        self.pool.map(|pool| unsafe { pool.bytes(self.at, self.start, self.len as u16) })
    }

    /// The first segment of an owned frame; it holds all its headers. Empty for any other.
    #[inline(always)]
    pub(super) fn owned_head(&self) -> &[u8] {
        match self.pool {
            // SAFETY: the slot is this frame's, and bytes are written only while it is built. The
            // first segment ends within its slot: `build` saw to that.
            Some(pool) => unsafe { pool.bytes(self.at, self.start, self.head() as u16) },
            None => &[],
        }
    }

    /// The segments behind the first.
    #[inline]
    pub(super) fn tail(&self) -> Tail<'_> {
        match self.pool {
            Some(pool) if self.place == Place::Chain => {
                Tail { pool: Some(pool), at: pool.after(self.at), _frame: self }
            }
            _ => Tail { pool: None, at: NONE, _frame: self },
        }
    }

    /// Gives up the slots: the pool, the first of them, and whether it is the only one.
    #[inline(always)]
    pub(super) fn surrender(&mut self) -> Option<(&'static Pool, u32, bool)> {
        let only = self.place == Place::Slot;
        self.place = Place::Nowhere;
        let pool = self.pool.take()?;
        Some((pool, self.at, only))
    }
}

impl Drop for Frame {
    /// Sends the slots home, straight to the pool. A worker recycles frames through its cache,
    /// which is cheaper.
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(pool) = self.pool {
            self.go_home(pool);
        }
    }
}

impl Frame {
    #[cold]
    fn go_home(&mut self, pool: &'static Pool) {
        if self.place == Place::Slot {
            pool.link(self.at, NONE);
        }
        pool.give(self.at);
    }
}

/// The segments of a frame behind its first one.
#[derive(Debug)]
pub struct Tail<'a> {
    pool: Option<&'static Pool>,
    at: u32,
    _frame: &'a Frame,
}

impl<'a> Iterator for Tail<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let pool = self.pool.filter(|_| self.at != NONE)?;
        let at = self.at;
        self.at = pool.after(at);
        let (start, len) = pool.extent(at);
        // SAFETY: the slot is in the chain of the frame, which outlives this iterator, and bytes
        // are written only while a frame is built.
        Some(unsafe { pool.bytes(at, start, len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Cache;
    use proptest::prelude::*;

    fn bytes(frame: &Frame) -> Vec<u8> {
        let mut all = frame.owned_head().to_vec();
        frame.tail().for_each(|part| all.extend(part));
        all
    }

    #[test]
    fn all_slots_are_free_at_first() {
        for slots in [1, 63, 64, 65, 1000] {
            assert_eq!(Pool::new(slots).unwrap().free(), slots);
        }
    }

    #[test]
    fn a_pool_runs_dry_and_recovers() {
        let pool = Pool::new(100).unwrap();
        let mut cache = Cache::new(pool);
        let mut held = Vec::new();
        while let Some(frame) = cache.frame(&[1; 60], Offload::NONE) {
            held.push(frame);
        }
        assert_eq!(held.len(), 100);
        assert!(cache.frame(&[0; 60], Offload::NONE).is_none());
        held.pop();
        assert!(cache.frame(&[0; 5000], Offload::NONE).is_none(), "one slot is too few for two segments");
        assert!(cache.frame(&[0; 60], Offload::NONE).is_some(), "and the failure lost none");
        drop(held);
        drop(cache);
        assert_eq!(pool.free(), 100);
    }

    #[test]
    fn slots_cross_threads_and_all_come_home() {
        let pool = Pool::new(2048).unwrap();
        std::thread::scope(|scope| {
            let (give, take) = crossbeam::channel::bounded::<Frame>(64);
            for seed in 0..3u8 {
                let give = give.clone();
                scope.spawn(move || {
                    let mut cache = Cache::new(pool);
                    for i in 0..20_000u32 {
                        let len = 14 + (i as usize * 37) % 9000;
                        let Some(frame) = cache.frame(&vec![seed; len], Offload::NONE) else { continue };
                        if i % 3 == 0 { give.send(frame).unwrap() } else { cache.recycle(frame) }
                    }
                });
            }
            drop(give);
            scope.spawn(move || {
                let mut cache = Cache::new(pool);
                for frame in take {
                    let all = bytes(&frame);
                    assert!(all.iter().all(|&b| b == all[0]), "nobody else wrote it");
                    if all[0] == 0 { drop(frame) } else { cache.recycle(frame) }
                }
            });
        });
        assert_eq!(pool.free(), 2048);
    }

    proptest! {
        #[test]
        fn frames_keep_their_bytes(lens in proptest::collection::vec(14usize..20_000, 1..12)) {
            let pool = Pool::new(256).unwrap();
            let mut cache = Cache::new(pool);
            let written: Vec<Vec<u8>> =
                lens.iter().enumerate().map(|(i, &len)| (0..len).map(|b| (b * 31 + i) as u8).collect()).collect();
            let frames: Vec<Frame> = written.iter().filter_map(|b| cache.frame(b, Offload::NONE)).collect();
            prop_assert_eq!(frames.len(), written.len());
            for (frame, written) in frames.iter().zip(&written) {
                prop_assert_eq!(frame.len() as usize, written.len());
                prop_assert_eq!(&bytes(frame), written);
            }
            for frame in frames {
                cache.recycle(frame);
            }
            drop(cache);
            prop_assert_eq!(pool.free(), 256);
        }
    }
}
