//! A receive ring (TPACKET_V2): memory into which the kernel writes frames, read without system calls.
//!
//! The kernel owns a slot until the slot's status word says that we do; we own it until we write the status word. The
//! `unsafe` blocks rely on this invariant. Only the kernel and the owner of the [`Ring`] access the memory.
//!
//! A frame longer than a slot is truncated there, and queued whole at the socket.
//!
//! A ring lives as long as its socket, also beyond the process that reads it: see [`Ring::resume`]. Each read slot
//! therefore has a mark, in bytes that the kernel leaves alone.
//!
//! TPACKET_V3 is not used: it delivers blocks of frames up to a millisecond late.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{HEADER, Socket, Tag};

/// Slot size in bytes: a frame of the usual MTU, its headers and the kernel's metadata.
pub const SLOT: usize = 2048;

/// Block size in bytes; a block is contiguous in kernel memory.
const BLOCK: usize = 64 << 10;

/// Slots per block; a ring has a multiple of them.
const SLOTS_OF_BLOCK: usize = BLOCK / SLOT;

/// `struct tpacket2_hdr`: the kernel's metadata at the beginning of a slot.
type About = libc::tpacket2_hdr;
const _: () = assert!(std::mem::offset_of!(About, tp_status) == 0 && SLOT.is_multiple_of(align_of::<About>()));

/// Offset in a slot of its mark: the round in which the slot was last read. Between the metadata, with which the kernel
/// writes the sender's address, and the frame, whose distance from them [`MARK`] bytes are added to.
const MARK_AT: usize = 56;

/// Bytes that the mark needs at most, so that the kernel's alignment of frames stays.
const MARK: i32 = 16;
const _: () = assert!(size_of::<About>() + size_of::<libc::sockaddr_ll>() <= MARK_AT && MARK_AT.is_multiple_of(4));

/// A receive ring.
#[derive(Debug)]
pub struct Ring {
    base: NonNull<u8>,
    slots: usize,
    /// Next slot to read.
    next: usize,
    /// Number of the current round through all slots, wrapping; the first is 1.
    round: u32,
}

// SAFETY: the ring is an owned range of memory without thread affinity.
unsafe impl Send for Ring {}

/// A frame in a ring. Dropping it returns the slot to the kernel.
#[derive(Debug)]
pub struct Arrival<'a> {
    ring: &'a mut Ring,
    status: u32,
    /// Length of the whole frame in bytes, without a removed tag.
    pub len: usize,
    /// VLAN tag that the kernel has removed; `None` also if the addresses are incomplete.
    pub tag: Option<Tag>,
    time: (u32, u32),
    start: usize,
    here: usize,
}

impl Ring {
    /// Adds a ring of at least `slots` slots to a socket. Call before binding: the ring receives frames from then on.
    pub fn new(socket: &Socket, slots: usize) -> io::Result<Ring> {
        let blocks = slots.div_ceil(SLOTS_OF_BLOCK);
        let slots = blocks * SLOTS_OF_BLOCK;
        let small = |number: usize| u32::try_from(number).map_err(|_| io::ErrorKind::InvalidInput);
        socket.set(libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2 as i32)?;
        // Frames that do not fit are queued, too.
        socket.set(libc::PACKET_COPY_THRESH, 1)?;
        socket.reserve(MARK)?;
        socket.set(
            libc::PACKET_RX_RING,
            libc::tpacket_req {
                tp_block_size: small(BLOCK)?,
                tp_block_nr: small(blocks)?,
                tp_frame_size: small(SLOT)?,
                tp_frame_nr: small(slots)?,
            },
        )?;
        Ring::map(socket, slots)
    }

    /// Continues the ring that an earlier process has added to this socket, with at least `slots` slots: frames that
    /// arrived meanwhile are pending. At most one that the earlier process had begun to read is read again.
    ///
    /// # Errors
    /// EINVAL: the socket has no ring, or one of another size.
    pub fn resume(socket: &Socket, slots: usize) -> io::Result<Ring> {
        let mut ring = Ring::map(socket, slots.div_ceil(SLOTS_OF_BLOCK) * SLOTS_OF_BLOCK)?;
        let marks = (0..ring.slots).map(|slot| ring.mark(slot).load(Ordering::Relaxed));
        (ring.next, ring.round) = position(marks);
        Ok(ring)
    }

    /// Maps the ring of a socket, to be read from the first slot.
    fn map(socket: &Socket, slots: usize) -> io::Result<Ring> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: a mapping at an address that the kernel chooses overlaps no other memory.
        let base = unsafe { mmap(ptr::null_mut(), slots * SLOT, protection, flags, socket, 0) }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("a ring at address zero"))?;
        Ok(Ring { base, slots, next: 0, round: 1 })
    }

    /// Number of pending frames that are longer than a slot, and queued at the socket.
    pub fn queued(&self) -> usize {
        let pending = libc::TP_STATUS_USER | libc::TP_STATUS_COPY;
        (0..self.slots).filter(|&slot| self.word(slot, 0).load(Ordering::Acquire) & pending == pending).count()
    }

    /// Number of slots.
    #[allow(clippy::len_without_is_empty)] // slots, used or not
    pub fn len(&self) -> usize {
        self.slots
    }

    /// Whether a frame is pending.
    pub fn has_arrival(&self) -> bool {
        self.status().load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// The next frame, if one is pending.
    #[inline(always)]
    pub fn arrival(&mut self) -> Option<Arrival<'_>> {
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: `next` is less than `slots`, so the slot is within the mapping.
        let slot = unsafe { self.base.add(self.next * SLOT) }.cast::<About>();
        // SAFETY: we own the slot, which begins with this header, aligned.
        let about = unsafe { slot.as_ptr().read() };
        let (start, here) = (usize::from(about.tp_mac), about.tp_snaplen as usize);
        // The kernel keeps frames within the slot; a bad header yields an empty frame.
        let sane = start >= size_of::<About>() + HEADER && start + here <= SLOT;
        Some(Arrival {
            ring: self,
            status,
            len: about.tp_len as usize,
            tag: Tag::from_kernel(status, about.tp_vlan_tpid, about.tp_vlan_tci).filter(|_| sane && here >= Tag::AT),
            time: (about.tp_sec, about.tp_nsec),
            start: if sane { start } else { SLOT },
            here: if sane { here } else { 0 },
        })
    }

    /// Status word of the next slot.
    #[inline(always)]
    fn status(&self) -> &AtomicU32 {
        self.word(self.next, 0)
    }

    /// Mark of a slot.
    #[inline(always)]
    fn mark(&self, slot: usize) -> &AtomicU32 {
        self.word(slot, MARK_AT)
    }

    /// The status word or the mark of a slot.
    #[inline(always)]
    fn word(&self, slot: usize, at: usize) -> &AtomicU32 {
        debug_assert!(slot < self.slots && (at == 0 || at == MARK_AT));
        // SAFETY: `slot` is less than `slots`, so the word is within the mapping.
        let word = unsafe { self.base.add(slot * SLOT + at) };
        // SAFETY: the word is aligned, as slots are, and the mapping lives as long as the ring; the kernel writes status
        // words atomically, and marks never.
        unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) }
    }
}

/// Next slot to read and its round, from the marks of all slots: those before it were read in this round, the others in
/// the round before.
fn position(marks: impl Iterator<Item = u32>) -> (usize, u32) {
    let mut marks = marks.enumerate();
    let first = marks.next().map_or(0, |(_, mark)| mark);
    match marks.find(|&(_, mark)| mark != first) {
        Some((next, _)) => (next, first),
        None => (0, first.wrapping_add(1)),
    }
}

impl Arrival<'_> {
    /// Bytes in the slot: the whole frame, unless it is longer than the slot.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        self.part(self.start, self.here)
    }

    /// The `virtio_net_hdr`, if enabled for the socket.
    #[inline(always)]
    pub fn header(&self) -> &[u8] {
        self.part(self.start - HEADER, HEADER)
    }

    /// Time at which the netdev received the frame, by the clock of the host since 1970.
    pub fn time(&self) -> Duration {
        Duration::new(self.time.0.into(), self.time.1)
    }

    /// Whether the slot has the whole frame.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.here == self.len
    }

    /// Whether the whole frame is also queued at the socket, as the first one there.
    pub fn is_queued(&self) -> bool {
        self.status & libc::TP_STATUS_COPY != 0
    }

    /// Whether frames were lost since the last query of the statistics.
    #[inline(always)]
    pub fn tells_of_losses(&self) -> bool {
        self.status & libc::TP_STATUS_LOSING != 0
    }

    #[inline(always)]
    fn part(&self, start: usize, len: usize) -> &[u8] {
        debug_assert!(start + len <= SLOT);
        // SAFETY: `next` is less than `slots` and `start` at most SLOT, as checked in `arrival`.
        let first = unsafe { self.ring.base.add(self.ring.next * SLOT + start) };
        // SAFETY: start + len is within the slot, which we own for the life of `self`.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), len) }
    }
}

impl Drop for Arrival<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // First, so that each slot of the kernel has its mark.
        self.ring.mark(self.ring.next).store(self.ring.round, Ordering::Relaxed);
        self.ring.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.ring.next += 1;
        if self.ring.next == self.ring.slots {
            (self.ring.next, self.ring.round) = (0, self.ring.round.wrapping_add(1));
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping; references into it borrow the ring.
        // Fails if the kernel has no memory to split a mapping that it has merged with its neighbour: then this stays
        // mapped.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.slots * SLOT) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any number of frames read, also over many rounds and where their number wraps.
        #[test]
        fn the_marks_tell_where_reading_ended(slots in 2usize..40, read in 0usize..400, first in prop_oneof![Just(1), any::<u32>()]) {
            let (mut marks, mut next, mut round) = (vec![u32::wrapping_sub(first, 1); slots], 0, first);
            for _ in 0..read {
                marks[next] = round;
                next += 1;
                if next == slots {
                    (next, round) = (0, round.wrapping_add(1));
                }
            }
            prop_assert_eq!(position(marks.into_iter()), (next, round));
        }
    }
}
