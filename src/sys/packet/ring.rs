//! A receive ring (TPACKET_V2): memory into which the kernel writes frames, read without system calls.
//!
//! The kernel owns a slot until the slot's status word says that we do; we own it until we write the status word. The
//! `unsafe` blocks rely on this invariant. Only the kernel and the owner of the [`Ring`] access the memory.
//!
//! A frame longer than a slot is truncated there, and queued whole at the socket.
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

/// A receive ring.
#[derive(Debug)]
pub struct Ring {
    base: NonNull<u8>,
    slots: usize,
    /// Next slot to read.
    next: usize,
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
        socket.set(
            libc::PACKET_RX_RING,
            libc::tpacket_req {
                tp_block_size: small(BLOCK)?,
                tp_block_nr: small(blocks)?,
                tp_frame_size: small(SLOT)?,
                tp_frame_nr: small(slots)?,
            },
        )?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: a mapping at an address that the kernel chooses overlaps no other memory.
        let base = unsafe { mmap(ptr::null_mut(), slots * SLOT, protection, flags, socket, 0) }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("a ring at address zero"))?;
        Ok(Ring { base, slots, next: 0 })
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
        // SAFETY: `next` is less than `slots`, so the slot is within the mapping.
        let slot = unsafe { self.base.add(self.next * SLOT) };
        // SAFETY: a slot begins with its aligned status word, and the mapping lives as long as the ring; the kernel
        // writes it atomically.
        unsafe { AtomicU32::from_ptr(slot.as_ptr().cast()) }
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
        self.ring.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.ring.next += 1;
        if self.ring.next == self.ring.slots {
            self.ring.next = 0;
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
