//! One AF_XDP ring: this process is either its producer or its consumer, the kernel the other. Each side writes one of
//! the two counters; both wrap at 2^32.

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::xdp::{XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_FILL_RING, XdpRingFlags, XdpRingOffset};

/// A ring shared with the kernel.
#[derive(Debug)]
pub(super) struct Ring<T> {
    our_counter: NonNull<AtomicU32>,
    their_counter: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    mask: u32,
    /// Our counter; the kernel sees it after [`publish`](Ring::publish).
    ours: u32,
    /// Last value read of the kernel's counter.
    theirs: u32,
    is_producer: bool,
    map: *mut c_void,
    map_len: usize,
}

// SAFETY: the memory is shared with the kernel, not with other threads; the owner has exclusive access.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T> Ring<T> {
    pub(super) fn map(fd: &OwnedFd, entries: u32, page: u64, offsets: &XdpRingOffset) -> io::Result<Ring<T>> {
        assert!(entries.is_power_of_two());
        let [producer, consumer, desc] = [offsets.producer, offsets.consumer, offsets.desc].map(to_usize);
        let flags = to_usize(offsets.flags.ok_or(Errno::NOSYS)?);
        let map_len = desc + entries as usize * size_of::<T>();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let place = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a mapping at an address that the kernel chooses overlaps no other memory.
        let map = unsafe { mmap(ptr::null_mut(), map_len, protection, place, fd, page) }?;
        let base = NonNull::new(map.cast::<u8>()).ok_or(Errno::FAULT)?;
        // The kernel states the offsets of its counters and entries; they cannot be verified beyond their range.
        let at = |offset: usize| {
            assert!(offset < map_len);
            // SAFETY: the offset is within the mapping.
            unsafe { base.add(offset) }
        };
        let (producer, consumer) = (at(producer).cast::<AtomicU32>(), at(consumer).cast::<AtomicU32>());
        let is_producer = page == XDP_PGOFF_TX_RING || page == XDP_UMEM_PGOFF_FILL_RING;
        let (our_counter, their_counter) = if is_producer { (producer, consumer) } else { (consumer, producer) };
        // SAFETY: the counter is within the mapping, aligned, and only ever used as an atomic.
        let ours = unsafe { our_counter.as_ref() }.load(Ordering::Relaxed);
        Ok(Ring {
            our_counter,
            their_counter,
            flags: at(flags).cast(),
            entries: at(desc).cast(),
            mask: entries - 1,
            ours,
            theirs: ours,
            is_producer,
            map,
            map_len,
        })
    }

    #[inline(always)]
    fn look(&mut self) {
        // SAFETY: the counter is within the mapping, which lives as long as the ring.
        self.theirs = unsafe { self.their_counter.as_ref() }.load(Ordering::Acquire);
    }

    /// Free entries. Reads the kernel's counter only if at most a quarter of the ring is free by its last value.
    #[inline(always)]
    pub(super) fn room(&mut self) -> u32 {
        debug_assert!(self.is_producer);
        let room = |ring: &Ring<T>| (ring.mask + 1).wrapping_sub(ring.ours.wrapping_sub(ring.theirs));
        if room(self) <= self.mask / 4 {
            self.look();
        }
        room(self)
    }

    /// Entries that the kernel has not read yet.
    #[inline(always)]
    pub(super) fn unread(&mut self) -> u32 {
        debug_assert!(self.is_producer);
        self.look();
        self.ours.wrapping_sub(self.theirs)
    }

    /// Our counter, unpublished entries included.
    #[inline(always)]
    pub(super) fn position(&self) -> u32 {
        self.ours
    }

    /// The kernel's counter.
    #[inline(always)]
    pub(super) fn other_position(&mut self) -> u32 {
        self.look();
        self.theirs
    }

    /// The entry put at a position, which must be among the last ones of the ring's length.
    #[cold]
    pub(super) fn entry(&self, position: u32) -> T
    where
        T: Copy,
    {
        debug_assert!(self.is_producer);
        // SAFETY: masked, the index is within the entries.
        let place = unsafe { self.entries.add((position & self.mask) as usize) };
        // SAFETY: within the mapping. Only the producer, this process, writes entries. Any bytes are a valid entry.
        unsafe { place.read() }
    }

    #[inline(always)]
    pub(super) fn put(&mut self, entry: T) {
        debug_assert!(self.is_producer);
        // SAFETY: masked, the index is within the entries.
        let place = unsafe { self.entries.add((self.ours & self.mask) as usize) };
        // SAFETY: within the mapping; the kernel does not read it before it is published.
        unsafe { place.write(entry) };
        self.ours = self.ours.wrapping_add(1);
    }

    #[inline(always)]
    pub(super) fn take(&mut self) -> Option<T> {
        debug_assert!(!self.is_producer);
        if self.ours == self.theirs {
            self.look();
            if self.ours == self.theirs {
                return None;
            }
        }
        // SAFETY: masked, the index is within the entries.
        let place = unsafe { self.entries.add((self.ours & self.mask) as usize) };
        // SAFETY: within the mapping; the kernel has published it and does not write it again until it is returned. Any
        // bytes are a valid entry.
        let entry = unsafe { place.read() };
        self.ours = self.ours.wrapping_add(1);
        Some(entry)
    }

    /// Publishes our counter to the kernel.
    #[inline(always)]
    pub(super) fn publish(&mut self) {
        // SAFETY: the counter is within the mapping, which lives as long as the ring.
        unsafe { self.our_counter.as_ref() }.store(self.ours, Ordering::Release);
    }

    #[inline(always)]
    pub(super) fn wants_wakeup(&self) -> bool {
        // SAFETY: the flags are within the mapping, which lives as long as the ring.
        let flags = unsafe { self.flags.as_ref() }.load(Ordering::Relaxed);
        flags & XdpRingFlags::XDP_RING_NEED_WAKEUP.bits() != 0
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this ring alone and is not used after this.
        // Fails if the kernel has no memory to split a mapping that it has merged with its neighbour: then this stays
        // mapped.
        let _ = unsafe { munmap(self.map, self.map_len) };
    }
}

#[allow(clippy::cast_possible_truncation)] // 64-bit platforms only
const fn to_usize(offset: u64) -> usize {
    offset as usize
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::net::xdp::XDP_PGOFF_RX_RING;

    use super::*;

    const ENTRIES: u32 = 8;
    const PRODUCER: u64 = 0;
    const CONSUMER: u64 = 64;
    const FLAGS: u64 = 128;
    const DESC: u64 = 192;

    /// The kernel's side of a ring: the same memory, as a file.
    struct Kernel {
        file: File,
        page: u64,
    }

    impl Kernel {
        /// A ring whose counters are about to wrap.
        fn new(page: u64, begun: u32) -> (Kernel, Ring<u64>) {
            let fd = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
            let kernel = Kernel { file: File::from(fd.try_clone().unwrap()), page };
            kernel.file.set_len(page + 4096).unwrap();
            kernel.set(PRODUCER, begun);
            kernel.set(CONSUMER, begun);
            let offsets = XdpRingOffset { producer: PRODUCER, consumer: CONSUMER, desc: DESC, flags: Some(FLAGS) };
            let ring = Ring::map(&fd, ENTRIES, page, &offsets).unwrap();
            (kernel, ring)
        }

        fn set(&self, at: u64, value: u32) {
            self.file.write_all_at(&value.to_ne_bytes(), self.page + at).unwrap();
        }

        fn get(&self, at: u64) -> u32 {
            let mut bytes = [0; 4];
            self.file.read_exact_at(&mut bytes, self.page + at).unwrap();
            u32::from_ne_bytes(bytes)
        }

        fn place(&self, counter: u32) -> u64 {
            self.page + DESC + u64::from(counter % ENTRIES) * 8
        }
    }

    #[test]
    fn produced_entries_are_in_order_while_the_counters_wrap() {
        for page in [XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_FILL_RING] {
            let (kernel, mut ring) = Kernel::new(page, u32::MAX - 20);
            let (mut put, mut seen) = (0u64, 0u64);
            for round in 0..100u32 {
                let room = ring.room();
                // A lower estimate is allowed; the ring then reads the counter. A higher one is not.
                assert!(u64::from(room) <= u64::from(ENTRIES) - (put - seen), "round {round}");
                for _ in 0..room.min(1 + round % 7) {
                    ring.put(put);
                    put += 1;
                }
                ring.publish();
                assert_eq!(u64::from(ring.unread()), put - seen);
                let (end, mut at) = (kernel.get(PRODUCER), kernel.get(CONSUMER));
                for _ in 0..(end.wrapping_sub(at)).min(1 + round % 5) {
                    let mut bytes = [0; 8];
                    kernel.file.read_exact_at(&mut bytes, kernel.place(at)).unwrap();
                    assert_eq!(u64::from_ne_bytes(bytes), seen);
                    seen += 1;
                    at = at.wrapping_add(1);
                }
                kernel.set(CONSUMER, at);
            }
            assert!(seen > 100 && kernel.get(CONSUMER) < 1000, "the counters have wrapped");
        }
    }

    #[test]
    fn consumed_entries_are_in_order_while_the_counters_wrap() {
        let (kernel, mut ring) = Kernel::new(XDP_PGOFF_RX_RING, u32::MAX - 20);
        let (mut put, mut seen) = (0u64, 0u64);
        for round in 0..100u32 {
            let (mut at, end) = (kernel.get(PRODUCER), kernel.get(CONSUMER));
            for _ in 0..(ENTRIES - at.wrapping_sub(end)).min(1 + round % 7) {
                kernel.file.write_all_at(&put.to_ne_bytes(), kernel.place(at)).unwrap();
                put += 1;
                at = at.wrapping_add(1);
            }
            kernel.set(PRODUCER, at);
            for _ in 0..1 + round % 5 {
                let Some(entry) = ring.take() else { break };
                assert_eq!(entry, seen);
                seen += 1;
            }
            ring.publish();
        }
        while let Some(entry) = ring.take() {
            assert_eq!(entry, seen);
            seen += 1;
        }
        assert_eq!((seen, seen > 100), (put, true));
        assert!(kernel.get(PRODUCER) < 1000, "the counters have wrapped");
    }
}
