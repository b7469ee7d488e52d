//! Pool of frame slots.
//!
//! One mapping of 4 KiB slots serves the whole process for its lifetime: it is leaked on purpose, so that frames
//! point at it without a reference count. A slot is free (in the pool's list or in a worker's
//! [`Magazine`](super::Magazine)), or belongs to exactly one [`Frame`](super::Frame), or an
//! [`XskQueue`](super::XskQueue) has left it to the kernel. Only the holder of a slot reads or writes its bytes;
//! every `unsafe` block of this module relies on that invariant.
//!
//! The free list is a stack of *chunks*: chains of slots linked by `next`. A worker and the pool exchange many
//! slots with one compare-and-swap, without lock or allocation. The top of the stack carries a tag that grows with
//! every exchange, which detects a chunk that was popped and pushed again between load and compare (the ABA
//! problem).

#![allow(clippy::cast_possible_truncation)] // lengths within a slot and halves of words

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sys::memory::{Mapping, Pages};
use crate::sys::xsk::{self, Umem};

/// Size of a slot in bytes: a page, and the chunk of an AF_XDP UMEM.
pub const SLOT: usize = 4096;
const _: () = assert!(SLOT == xsk::CHUNK as usize);

/// Initial slots per chunk on the free list. Later chunks may be shorter.
pub(super) const CHUNK: u32 = 64;

/// End of a chain.
pub(super) const NONE: u32 = u32::MAX;

/// The slots that all frames of a process share.
pub struct Pool {
    memory: &'static Mapping,
    memory_view: SlotMemory,
    slots: u32,
    /// By slot: the next slot of the same frame or free chunk. Written by the holder of the slot.
    next: Box<[AtomicU32]>,
    /// By slot after a frame's first: extent of its segment, start × 65536 + length.
    extent: Box<[AtomicU32]>,
    /// By first slot of a free chunk: the first slot of the chunk below it on the stack.
    below: Box<[AtomicU32]>,
    /// The topmost free chunk: tag × 2^32 + slot.
    top: AtomicU64,
    /// By slot: number of the [`XskQueue`](super::XskQueue) that has left it to the kernel, or [`OWNED_BY_US`].
    owner_table: Box<[AtomicU32]>,
    /// Last owner number given to an AF_XDP queue.
    next_owner: AtomicU32,
    /// Registration with the kernel, made at first use.
    umem: Mutex<Option<Arc<Umem>>>,
}

/// Address of the slots, as a value that loops over a burst read once. Valid for the life of the process, like the
/// pool.
#[derive(Clone, Copy)]
pub(super) struct SlotMemory {
    base: NonNull<u8>,
    slots: u32,
}

// SAFETY: an address and a number. The holders of slots decide what they access there.
unsafe impl Send for SlotMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for SlotMemory {}

impl SlotMemory {
    /// The bytes of a slot that the caller holds.
    ///
    /// # Safety
    ///
    /// The caller holds the slot, `start + len` is at most [`SLOT`], and nobody writes the slot while the slice
    /// lives.
    #[inline(always)]
    pub(super) unsafe fn bytes(self, slot: u32, start: u16, len: u16) -> &'static [u8] {
        debug_assert!(slot < self.slots && usize::from(start) + usize::from(len) <= SLOT);
        let at = slot as usize * SLOT + usize::from(start);
        // SAFETY: at + len lies within slot `slot`, and so within the mapping.
        let base = unsafe { self.base.as_ptr().add(at) };
        // SAFETY: the range is mapped and zeroed from the start and lives as long as the pool; the caller
        // guarantees that nobody writes it while the slice lives.
        unsafe { std::slice::from_raw_parts(base, usize::from(len)) }
    }

    /// The bytes of a slot that the caller holds, mutable.
    ///
    /// # Safety
    ///
    /// The caller holds the slot, `start + len` is at most [`SLOT`], and nobody else reads or writes the slot while
    /// the slice lives.
    #[inline(always)]
    pub(super) unsafe fn bytes_mut(self, slot: u32, start: u16, len: u16) -> &'static mut [u8] {
        debug_assert!(slot < self.slots && usize::from(start) + usize::from(len) <= SLOT);
        let at = slot as usize * SLOT + usize::from(start);
        // SAFETY: at + len lies within slot `slot`, and so within the mapping.
        let base = unsafe { self.base.as_ptr().add(at) };
        // SAFETY: the range is mapped and lives as long as the pool; the caller guarantees exclusive access.
        unsafe { std::slice::from_raw_parts_mut(base, usize::from(len)) }
    }
}

/// Owner of a slot that is not left to the kernel.
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
    /// Creates a pool of `slots` slots for the life of the process. Fails if the memory cannot be mapped.
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

    /// Number of slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Page size that backs the slots.
    pub fn pages(&self) -> Pages {
        self.memory.pages()
    }

    /// Number of free slots outside of magazines. Walks the list, for audits and tests; an estimate while workers
    /// allocate.
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

    /// The pool as a UMEM that AF_XDP sockets share. The first call allocates and pins all memory of the pool.
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

    /// Returns an owner number for an AF_XDP queue. Repeats after 2^32.
    pub(super) fn next_owner_id(&self) -> u32 {
        loop {
            let number = self.next_owner.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if number != OWNED_BY_US {
                return number;
            }
        }
    }

    /// Owner number of a slot; [`OWNED_BY_US`] if the kernel does not have it, or the slot does not exist.
    #[inline(always)]
    pub(super) fn owner_table(&self, slot: u32) -> u32 {
        self.owner_table.get(slot as usize).map_or(OWNED_BY_US, |lent| lent.load(Ordering::Relaxed))
    }

    /// Sets the owner of a slot that the caller holds.
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

    /// Pushes a chunk (a chain of slots that the caller holds) onto the free list.
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

    /// Pops a chunk off the free list. Returns the first slot of a chain that the caller then holds.
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

    /// Address of the slots.
    #[inline(always)]
    pub(super) fn memory_view(&self) -> SlotMemory {
        self.memory_view
    }

    /// As `SlotMemory::bytes`.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn bytes(&self, slot: u32, start: u16, len: u16) -> &[u8] {
        // SAFETY: guaranteed by the caller; the memory lives as long as the pool.
        unsafe { self.memory_view.bytes(slot, start, len) }
    }

    /// As `SlotMemory::bytes_mut`.
    ///
    /// # Safety
    ///
    /// As there.
    #[allow(clippy::mut_from_ref)] // exclusive by slot ownership
    #[inline(always)]
    pub(super) unsafe fn bytes_mut(&self, slot: u32, start: u16, len: u16) -> &mut [u8] {
        // SAFETY: guaranteed by the caller; the memory lives as long as the pool.
        unsafe { self.memory_view.bytes_mut(slot, start, len) }
    }

    /// Extent of the segment in a slot that the caller holds: start and length.
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
    fn an_exhausted_pool_recovers() {
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
    fn slots_cross_threads_and_are_all_freed() {
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
                    assert!(all.iter().all(|&b| b == all[0]), "no other thread wrote it");
                    if all[0] == 0 { drop(frame) } else { magazine.recycle(frame) }
                }
            });
        });
        assert_eq!(pool.free(), 2048);
    }
}
