//! The arena of slots.
//!
//! One mapping of 4 KiB slots serves the whole process, and lives as long: it is leaked on
//! purpose, so that a frame can point at it without counting. A slot is either free, and then in
//! the pool's list or in a worker's [`Magazine`](super::Magazine), or it belongs to exactly one
//! [`Frame`](super::Frame), or an [`XskQueue`](super::XskQueue) has left it to the kernel. Only the holder of a
//! slot reads or writes its bytes; that is the invariant which every `unsafe` block of this room leans on.
//!
//! The free list is a stack of *chunks*: chains of slots linked by `next`, so that a worker and
//! the pool exchange many slots with one compare-and-swap and nobody locks or allocates. The top
//! of the stack carries a tag that grows with every exchange; a chunk that was taken and given
//! back meanwhile (the ABA problem) is thereby told from one that never moved.

#![allow(clippy::cast_possible_truncation)] // lengths within a slot and halves of words

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::sys::memory::{Mapping, Pages};
use crate::sys::xsk::{self, Umem};

/// Bytes of one slot: a page, and the chunk of an AF_XDP UMEM.
pub const SLOT: usize = 4096;
const _: () = assert!(SLOT == xsk::CHUNK as usize);

/// Slots of a chunk on the free list, at first. Later chunks may be shorter.
pub(super) const CHUNK: u32 = 64;

/// "No slot": the end of a chain.
pub(super) const NONE: u32 = u32::MAX;

/// The arena that all frames of a process share.
pub struct Pool {
    memory: &'static Mapping,
    memory_view: SlotMemory,
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
    /// The ledger: which [`XskQueue`](super::XskQueue) has left a slot to the kernel, by its number;
    /// [`OWNED_BY_US`] for slots that the kernel has nothing to do with.
    owner_table: Box<[AtomicU32]>,
    /// How many exchanges there have been.
    next_owner: AtomicU32,
    /// The registration with the kernel, from when it is first needed.
    umem: Mutex<Option<Arc<Umem>>>,
}

/// Where the slots of a pool are: as a value, so that whoever goes through a burst asks once. They are there for
/// the life of the process, as the pool is.
#[derive(Clone, Copy)]
pub(super) struct SlotMemory {
    base: NonNull<u8>,
    slots: u32,
}

// SAFETY: an address and a number. What may be done at that address is for the holders of slots to know.
unsafe impl Send for SlotMemory {}
// SAFETY: the same.
unsafe impl Sync for SlotMemory {}

impl SlotMemory {
    /// The bytes of a slot that the caller holds.
    ///
    /// # Safety
    ///
    /// The caller holds the slot, `start + len` is at most [`SLOT`], and nobody writes the slot
    /// while the slice lives.
    #[inline(always)]
    pub(super) unsafe fn bytes(self, slot: u32, start: u16, len: u16) -> &'static [u8] {
        debug_assert!(slot < self.slots && usize::from(start) + usize::from(len) <= SLOT);
        let at = slot as usize * SLOT + usize::from(start);
        // SAFETY: at + len lies within slot `slot`, and so within the mapping.
        let base = unsafe { self.base.as_ptr().add(at) };
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
    #[inline(always)]
    pub(super) unsafe fn bytes_mut(self, slot: u32, start: u16, len: u16) -> &'static mut [u8] {
        debug_assert!(slot < self.slots && usize::from(start) + usize::from(len) <= SLOT);
        let at = slot as usize * SLOT + usize::from(start);
        // SAFETY: at + len lies within slot `slot`, and so within the mapping.
        let base = unsafe { self.base.as_ptr().add(at) };
        // SAFETY: the range is mapped, lives as long as the pool, and by the caller's word is ours.
        unsafe { std::slice::from_raw_parts_mut(base, usize::from(len)) }
    }
}

/// No exchange has left this slot to the kernel.
pub(super) const OWNED_BY_US: u32 = 0;

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
        let memory: &'static Mapping = Box::leak(Box::new(Mapping::new(slots as usize * SLOT)?));
        let (next, extent, below) = (table(slots), table(slots), table(slots));
        let pool = Pool {
            memory,
            memory_view: SlotMemory { base: memory.base(), slots },
            slots,
            next,
            extent,
            below,
            top: AtomicU64::new(u64::from(NONE)),
            owner_table: (0..slots).map(|_| AtomicU32::new(OWNED_BY_US)).collect(),
            next_owner: AtomicU32::new(OWNED_BY_US),
            umem: Mutex::new(None),
        };
        for first in (0..slots).step_by(CHUNK as usize).rev() {
            let last = (first + CHUNK).min(slots);
            for slot in first..last - 1 {
                pool.link(slot, slot + 1);
            }
            pool.push(first);
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

    /// The pool as memory that AF_XDP sockets share. When it is first asked for, all of the pool is
    /// taken from the system and pinned.
    pub(super) fn umem(&self) -> io::Result<Arc<Umem>> {
        let mut umem = self.umem.lock().unwrap_or_else(PoisonError::into_inner);
        match &*umem {
            Some(umem) => Ok(Arc::clone(umem)),
            None => {
                let registered = Arc::new(Umem::register(self.memory, self.slots as usize * SLOT)?);
                Ok(Arc::clone(umem.insert(registered)))
            }
        }
    }

    /// A number for an exchange, by which the ledger knows it. One is used again after 2^32.
    pub(super) fn next_owner_id(&self) -> u32 {
        loop {
            let number = self.next_owner.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if number != OWNED_BY_US {
                return number;
            }
        }
    }

    /// Which exchange has left this slot to the kernel; [`OWNED_BY_US`] if none has, or there is no such slot.
    #[inline(always)]
    pub(super) fn owner_table(&self, slot: u32) -> u32 {
        self.owner_table.get(slot as usize).map_or(OWNED_BY_US, |lent| lent.load(Ordering::Relaxed))
    }

    /// Notes which exchange has a slot that the caller holds, or that none has it.
    #[inline(always)]
    pub(super) fn set_lent(&self, slot: u32, queue: u32) {
        self.owner_table[slot as usize].store(queue, Ordering::Relaxed);
    }

    pub(super) fn link(&self, slot: u32, next: u32) {
        self.next[slot as usize].store(next, Ordering::Relaxed);
    }

    pub(super) fn after(&self, slot: u32) -> u32 {
        self.next[slot as usize].load(Ordering::Relaxed)
    }

    /// Puts a chunk (a chain of slots that the caller holds) on the free list.
    pub(super) fn push(&self, chunk: u32) {
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
    pub(super) fn pop(&self) -> Option<u32> {
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

    /// Where its slots are.
    #[inline(always)]
    pub(super) fn memory_view(&self) -> SlotMemory {
        self.memory_view
    }

    /// The same as of its [`SlotMemory`].
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn bytes(&self, slot: u32, start: u16, len: u16) -> &[u8] {
        // SAFETY: by the caller's word; and the room is there as long as the pool.
        unsafe { self.memory_view.bytes(slot, start, len) }
    }

    /// The same as of its [`SlotMemory`].
    ///
    /// # Safety
    ///
    /// As there.
    #[allow(clippy::mut_from_ref)] // exclusive by the right to the slot, not to the pool
    #[inline(always)]
    pub(super) unsafe fn bytes_mut(&self, slot: u32, start: u16, len: u16) -> &mut [u8] {
        // SAFETY: by the caller's word; and the room is there as long as the pool.
        unsafe { self.memory_view.bytes_mut(slot, start, len) }
    }

    /// Where in a slot that the caller holds its segment lies: start and length.
    pub(super) fn extent(&self, slot: u32) -> (u16, u16) {
        let word = self.extent[slot as usize].load(Ordering::Relaxed);
        ((word >> 16) as u16, word as u16)
    }

    pub(super) fn set_extent(&self, slot: u32, start: u16, len: u16) {
        self.extent[slot as usize].store(u32::from(start) << 16 | u32::from(len), Ordering::Relaxed);
    }
}

const fn top_slot(top: u64) -> u32 {
    top as u32
}

const fn retop(old: u64, slot: u32) -> u64 {
    ((old >> 32).wrapping_add(1) << 32) | slot as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::descriptor::tests::bytes;
    use crate::frame::{Frame, Magazine};
    use crate::wire::Offload;

    #[test]
    fn all_slots_are_free_at_first() {
        for slots in [1, 63, 64, 65, 1000] {
            assert_eq!(Pool::new(slots).unwrap().free(), slots);
        }
    }

    #[test]
    fn a_pool_runs_dry_and_recovers() {
        let pool = Pool::new(100).unwrap();
        let mut magazine = Magazine::new(pool);
        let mut held = Vec::new();
        while let Some(frame) = magazine.frame(&[1; 60], Offload::NONE) {
            held.push(frame);
        }
        assert_eq!(held.len(), 100);
        assert!(magazine.frame(&[0; 60], Offload::NONE).is_none());
        held.pop();
        assert!(magazine.frame(&[0; 5000], Offload::NONE).is_none(), "one slot is too few for two segments");
        assert!(magazine.frame(&[0; 60], Offload::NONE).is_some(), "and the failure lost none");
        drop(held);
        drop(magazine);
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
                    let mut magazine = Magazine::new(pool);
                    for i in 0..20_000u32 {
                        let len = 14 + (i as usize * 37) % 9000;
                        let Some(frame) = magazine.frame(&vec![seed; len], Offload::NONE) else { continue };
                        if i % 3 == 0 { give.send(frame).unwrap() } else { magazine.recycle(frame) }
                    }
                });
            }
            drop(give);
            scope.spawn(move || {
                let mut magazine = Magazine::new(pool);
                for frame in take {
                    let all = bytes(&frame);
                    assert!(all.iter().all(|&b| b == all[0]), "nobody else wrote it");
                    if all[0] == 0 { drop(frame) } else { magazine.recycle(frame) }
                }
            });
        });
        assert_eq!(pool.free(), 2048);
    }
}
