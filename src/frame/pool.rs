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
    /// The caller holds the slot, and nobody writes it while the slice lives.
    unsafe fn bytes(&self, slot: u32, start: u16, len: u16) -> &[u8] {
        assert!(slot < self.slots && usize::from(start) + usize::from(len) <= SLOT);
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
    /// The caller holds the slot, and nobody else reads or writes it while the slice lives.
    #[allow(clippy::mut_from_ref)] // exclusive by the right to the slot, not to the pool
    unsafe fn bytes_mut(&self, slot: u32, start: u16, len: u16) -> &mut [u8] {
        assert!(slot < self.slots && usize::from(start) + usize::from(len) <= SLOT);
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
#[derive(Debug, Default)]
pub(super) enum Place {
    /// The frame has been taken out of here.
    #[default]
    Nowhere,
    /// In a chain of slots that the frame owns.
    Slots { pool: &'static Pool, first: u32 },
    /// In a receive buffer of the batch that the frame stands in, until that burst is released.
    Landing { buffer: u8 },
}

/// One Ethernet frame, and the right to its bytes. See the room's page for where they are.
#[derive(Debug, Default)]
pub struct Frame {
    pub(super) place: Place,
    /// Where the first segment begins in its slot or buffer.
    pub(super) start: u16,
    /// Bytes of the first segment.
    pub(super) head: u32,
    /// Bytes of all segments.
    pub(super) len: u32,
    /// How many frames this stands for; 0 if its offload header does not fit it.
    pub(super) frames: u8,
    /// Bytes that each of these frames repeats.
    pub(super) headers: u16,
    /// Bytes of the longest of these frames.
    pub(super) longest: u32,
    pub(super) offload: Offload,
}

impl Frame {
    /// A frame in the slots that `slot` hands out, `len` bytes long; `None` when they run out.
    /// `fill` writes the bytes, segment by segment in order.
    pub(super) fn build(
        pool: &'static Pool,
        mut slot: impl FnMut() -> Option<u32>,
        len: u32,
        offload: Offload,
        mut fill: impl FnMut(&mut [u8]),
    ) -> Option<Frame> {
        let first = slot()?;
        pool.link(first, NONE);
        let start = front(first);
        // From here on the slots are the frame's: an early return sends them home.
        let mut frame = Frame { place: Place::Slots { pool, first }, start, len, offload, ..Frame::default() };
        frame.head = len.min(SLOT_BYTES - u32::from(start));
        // SAFETY: slot `first` was handed to this frame, which nobody else has yet.
        fill(unsafe { pool.bytes_mut(first, start, frame.head as u16) });
        let (mut left, mut last) = (len - frame.head, first);
        while left > 0 {
            let at = slot()?;
            pool.link(at, NONE);
            pool.link(last, at);
            let part = left.min(SLOT_BYTES);
            // SAFETY: slot `at` was handed to this frame, which nobody else has yet.
            fill(unsafe { pool.bytes_mut(at, 0, part as u16) });
            pool.extent[at as usize].store(part, Ordering::Relaxed);
            (left, last) = (left - part, at);
        }
        // SAFETY: slot `first` is this frame's, and it is not written any more.
        let head = unsafe { pool.bytes(first, start, frame.head as u16) };
        frame.measure(head);
        Some(frame)
    }

    /// A frame in receive buffer `buffer` of a batch. `bytes`: all of it.
    pub(super) fn landed(buffer: u8, start: u16, bytes: &[u8], offload: Offload) -> Frame {
        let len = bytes.len() as u32;
        let mut frame = Frame { place: Place::Landing { buffer }, start, head: len, len, offload, ..Frame::default() };
        frame.measure(bytes);
        frame
    }

    /// Checks the offload header against the frame, once for all.
    #[inline]
    fn measure(&mut self, head: &[u8]) {
        match self.offload.segmentation(head, self.len) {
            Ok(s) => (self.frames, self.headers, self.longest) = (s.frames, s.headers, s.longest),
            Err(_) => (self.frames, self.headers, self.longest) = (0, 0, self.len),
        }
    }

    /// Bytes of all segments together.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // asked for its length in bytes, not whether it has any
    pub fn len(&self) -> u32 {
        self.len
    }

    /// What is left to be done to it.
    #[inline]
    pub fn offload(&self) -> &Offload {
        &self.offload
    }

    /// Whether its offload header fits it. Nothing else may be done with a frame that is a lie.
    #[inline]
    pub fn is_sound(&self) -> bool {
        self.frames > 0
    }

    /// How many frames it counts as: those it will become. One, where its header is a lie.
    #[inline]
    pub fn count(&self) -> u64 {
        u64::from(self.frames.max(1))
    }

    /// How many bytes these frames have together, each with its headers.
    #[inline]
    pub fn count_bytes(&self) -> u64 {
        u64::from(self.len) + u64::from(self.headers) * (self.count() - 1)
    }

    /// Bytes of the longest frame that it will become; its own length for a plain one.
    #[inline]
    pub fn longest(&self) -> u32 {
        self.longest
    }

    /// Whether it owns the slots it lies in, and so may outlive its burst.
    #[inline]
    pub fn is_owned(&self) -> bool {
        matches!(self.place, Place::Slots { .. })
    }

    /// The first segment of an owned frame; it holds all its headers. Empty for any other.
    #[inline]
    pub(super) fn owned_head(&self) -> &[u8] {
        match self.place {
            // SAFETY: the slot is this frame's, and bytes are written only while it is built.
            // The first segment of a slot is at most a slot long.
            Place::Slots { pool, first } => unsafe { pool.bytes(first, self.start, self.head as u16) },
            _ => &[],
        }
    }

    /// The segments behind the first.
    pub(super) fn tail(&self) -> Tail<'_> {
        match self.place {
            Place::Slots { pool, first } if self.head < self.len => {
                Tail { pool: Some(pool), at: pool.after(first), _frame: self }
            }
            _ => Tail { pool: None, at: NONE, _frame: self },
        }
    }

    /// Gives up the slots, as a chain that is now the caller's.
    #[inline]
    pub(super) fn surrender(&mut self) -> Option<(&'static Pool, u32)> {
        match std::mem::take(&mut self.place) {
            Place::Slots { pool, first } => Some((pool, first)),
            _ => None,
        }
    }
}

impl Drop for Frame {
    /// Sends the slots home, straight to the pool. A worker recycles frames through its cache,
    /// which is cheaper.
    #[inline]
    fn drop(&mut self) {
        if let Some((pool, first)) = self.surrender() {
            pool.give(first);
        }
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
