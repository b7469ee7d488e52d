//! A receive ring (TPACKET_V2): memory that the kernel puts frames into, and that we read without a
//! system call.
//!
//! It is a circle of slots. A slot is the kernel's until its status word says that it is ours, and
//! ours until we write there that it is the kernel's: that is the invariant which the `unsafe` blocks
//! lean on. Nobody but the kernel and whoever holds the [`Ring`] can reach this memory.
//!
//! A frame that is longer than a slot is put there as far as it fits, and queued at the socket whole.
//!
//! TPACKET_V3 hands over blocks of many frames, a millisecond late at best, and is no use to a switch.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{HEADER, Socket, Tag};

/// Bytes of a slot: a frame of the usual MTU, its headers, and what the kernel says about it.
pub const SLOT: usize = 2048;

/// Bytes of a block, which lies in one piece in the kernel's memory.
const BLOCK: usize = 64 << 10;

/// Slots of a ring are a multiple of this.
const SLOTS_OF_BLOCK: usize = BLOCK / SLOT;

/// `struct tpacket2_hdr`: what the kernel says about a frame, at the beginning of its slot.
type About = libc::tpacket2_hdr;
const _: () = assert!(std::mem::offset_of!(About, tp_status) == 0 && SLOT.is_multiple_of(align_of::<About>()));

/// A receive ring.
#[derive(Debug)]
pub struct Ring {
    base: NonNull<u8>,
    slots: usize,
    /// The slot that is filled next.
    next: usize,
}

// SAFETY: the ring is an owned range of memory, in which nothing belongs to a thread.
unsafe impl Send for Ring {}

/// A frame in a ring. Its slot goes back to the kernel when it is dropped.
#[derive(Debug)]
pub struct Arrival<'a> {
    ring: &'a mut Ring,
    status: u32,
    /// Bytes of the whole frame, the tag that was taken out not counted.
    pub len: usize,
    /// The tag that the kernel has taken out; the addresses are here then.
    pub tag: Option<Tag>,
    start: usize,
    here: usize,
}

impl Ring {
    /// Gives a socket a ring of `slots` slots at least. What the socket hears goes there from then on;
    /// so before it is bound.
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
        // SAFETY: a mapping at an address of the kernel's choosing touches no memory that anyone holds.
        let base = unsafe { mmap(ptr::null_mut(), slots * SLOT, protection, flags, socket, 0) }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("a ring at address zero"))?;
        Ok(Ring { base, slots, next: 0 })
    }

    /// How many frames there is room for.
    #[allow(clippy::len_without_is_empty)] // it has slots, whatever is in them
    pub fn len(&self) -> usize {
        self.slots
    }

    /// Whether a frame has come.
    pub fn has_arrival(&self) -> bool {
        self.status().load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// The frame that came next, if it has come.
    #[inline(always)]
    pub fn arrival(&mut self) -> Option<Arrival<'_>> {
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: `next` is below `slots`, so that the slot lies in the mapping.
        let slot = unsafe { self.base.add(self.next * SLOT) }.cast::<About>();
        // SAFETY: the slot is ours, and begins with this; it is aligned to its size.
        let about = unsafe { slot.as_ptr().read() };
        let (start, here) = (usize::from(about.tp_mac), about.tp_snaplen as usize);
        // What the kernel says is within the slot; if it were not, there would be no frame.
        let sane = start >= size_of::<About>() + HEADER && start + here <= SLOT;
        Some(Arrival {
            ring: self,
            status,
            len: about.tp_len as usize,
            tag: Tag::from_kernel(status, about.tp_vlan_tpid, about.tp_vlan_tci).filter(|_| sane && here >= Tag::AT),
            start: if sane { start } else { SLOT },
            here: if sane { here } else { 0 },
        })
    }

    /// The status word of the slot that is filled next.
    #[inline(always)]
    fn status(&self) -> &AtomicU32 {
        // SAFETY: `next` is below `slots`, so that the slot lies in the mapping.
        let slot = unsafe { self.base.add(self.next * SLOT) };
        // SAFETY: a slot begins with its status word, aligned, and the mapping lives as long as the
        // ring; the kernel changes it as a whole.
        unsafe { AtomicU32::from_ptr(slot.as_ptr().cast()) }
    }
}

impl Arrival<'_> {
    /// Its first bytes: all of them, unless it is longer than a slot.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        self.part(self.start, self.here)
    }

    /// The offload header, of a socket that has them.
    #[inline(always)]
    pub fn header(&self) -> &[u8] {
        self.part(self.start - HEADER, HEADER)
    }

    /// Whether all of it is here.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.here == self.len
    }

    /// Whether it waits at the socket as well, whole, as the first of those that do.
    pub fn is_queued(&self) -> bool {
        self.status & libc::TP_STATUS_COPY != 0
    }

    /// Whether frames have been lost since the statistics were last read.
    #[inline(always)]
    pub fn tells_of_losses(&self) -> bool {
        self.status & libc::TP_STATUS_LOSING != 0
    }

    #[inline(always)]
    fn part(&self, start: usize, len: usize) -> &[u8] {
        debug_assert!(start + len <= SLOT);
        // SAFETY: `next` is below `slots`, and start below SLOT: `arrival` saw to that.
        let first = unsafe { self.ring.base.add(self.ring.next * SLOT + start) };
        // SAFETY: start + len lies within the slot, which is ours as long as this lives.
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
        // SAFETY: base and length are those of the mapping, and no reference into it outlives the ring.
        let done = unsafe { munmap(self.base.as_ptr().cast(), self.slots * SLOT) };
        debug_assert!(done.is_ok(), "unmapping our own mapping cannot fail");
    }
}
