//! AF_XDP queue: exchanges slots with the kernel through one socket.
//!
//! The rings of the socket do not tell which slots the kernel has: the kernel keeps refused slots in lists of its
//! own, and publishes its counters late. The pool therefore has an *owner table*: per slot, the number of the queue
//! that has left it to the kernel. A slot that a ring returns is accepted only if this queue owns it. When the
//! queue closes, it reclaims all slots that the table still lists. After its socket is closed, the kernel touches
//! none of these slots. In zero-copy mode the hardware may do so until it stops; the slots are reclaimed only when
//! the queue can be bound again.

#![allow(clippy::cast_possible_truncation)] // parts of addresses within the UMEM

mod assembly;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::thread::nanosleep;
use rustix::time::Timespec;

use self::assembly::{Assembly, extent_of};
use super::descriptor::Frame;
use super::fill_target::FillTarget;
use super::pool::{NONE, OWNED_BY_US, Pool, SLOT};
use super::{Batch, Magazine, prefetch};
use crate::sys::netns::{self, Netns, within};
use crate::sys::xsk::{Kick, Piece, Socket};

/// Attempts to bind a former zero-copy queue, and the pause between them: one second in total.
const ATTEMPTS: u32 = 50;
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Whether the driver copies frames between the slots and its own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMode {
    /// The driver copies.
    Copy,
    /// The driver receives and transmits in the slots.
    ZeroCopy,
}

/// Slot exchange with the kernel over one queue of a netdev.
#[derive(Debug)]
pub struct XskQueue {
    pool: &'static Pool,
    /// Owner number in the pool's owner table.
    number: u32,
    /// In zero-copy mode `None` while the queue is being closed.
    socket: Option<Socket>,
    copy_mode: CopyMode,
    /// Checks whether the hardware has released the queue. `None` in copy mode.
    quiesce: Option<ZcQuiesce>,
    /// Known consumer position of the TX ring in descriptors, modulo 2^32.
    consumed: u32,
    /// Slots left to the kernel for transmit and not yet returned.
    in_flight: u32,
    /// Slots in the fill ring.
    filled: u32,
    /// Target number of slots in the fill ring.
    fill_target: FillTarget,
    /// State of the frame of several descriptors that is being received.
    assembly: Assembly,
    /// Frames with a descriptor of a slot that this queue does not own, or that exceeds its slot: zero, unless the
    /// kernel misbehaves.
    unexpected: u64,
}

impl XskQueue {
    /// Binds a socket to queue `queue` of the netdev `index` in the calling thread's namespace. Its rings have
    /// `entries` entries, a power of two; at most `fill` slots wait in the fill ring.
    pub fn open(
        pool: &'static Pool,
        (index, queue): (u32, u32),
        copy_mode: CopyMode,
        entries: u32,
        fill: u32,
    ) -> io::Result<XskQueue> {
        let umem = pool.umem()?;
        let socket = match copy_mode {
            CopyMode::Copy => Socket::copying(&umem, index, queue, entries),
            CopyMode::ZeroCopy => Socket::zero_copy(&umem, index, queue, entries),
        }?;
        let mut xsk = XskQueue {
            pool,
            number: pool.next_owner_id(),
            socket: Some(socket),
            copy_mode,
            quiesce: match copy_mode {
                CopyMode::Copy => None,
                CopyMode::ZeroCopy => Some(ZcQuiesce { index, queue, netns: netns::here()? }),
            },
            consumed: 0,
            in_flight: 0,
            filled: 0,
            fill_target: FillTarget::new(fill.min(entries)),
            assembly: Assembly::Idle,
            unexpected: 0,
        };
        xsk.refill(&mut Magazine::new(pool));
        Ok(xsk)
    }

    /// Copy mode of the driver.
    pub fn copy_mode(&self) -> CopyMode {
        self.copy_mode
    }

    /// Receives frames into the batch until it is full or the RX ring is empty, and refills the fill ring.
    ///
    /// # Panics
    ///
    /// If `magazine` is one of another pool.
    #[inline]
    pub fn receive(&mut self, batch: &mut Batch, magazine: &mut Magazine) {
        assert!(std::ptr::eq(self.pool, magazine.pool()), "slots of one pool");
        let Some(socket) = &mut self.socket else { return };
        let (mut taken, mut bytes) = (0, 0);
        let room = self.pool.memory_view();
        while !batch.is_full() {
            let Some(piece) = socket.received() else { break };
            taken += 1;
            bytes += u64::from(piece.len);
            let extent = extent_of(self.pool, self.number, piece);
            if let Some((slot, start, len)) = extent {
                self.pool.set_lent(slot, OWNED_BY_US);
                // The kernel has written the frame on another core: prefetching overlaps the cache misses of a burst.
                // SAFETY: the slot is ours since it was received, and `extent_of` has checked the length.
                prefetch(unsafe { room.bytes(slot, start, len) });
                if !piece.more && matches!(self.assembly, Assembly::Idle) {
                    batch.push(Frame::received(self.pool, slot, start, len));
                    continue;
                }
            }
            let is_lost = self.assembly.add(self.pool, extent, piece.more, batch, magazine);
            self.unexpected += u64::from(is_lost);
        }
        if taken > 0 {
            socket.release_received();
            self.filled -= taken;
            self.fill_target.record(taken, bytes);
        } else {
            // Idle: reclaim transmitted slots, which other users of the pool may need.
            if self.in_flight > 0 {
                self.reap(magazine);
            }
            self.wake_receive();
        }
        // In groups of 16: the ring counters are shared with the kernel, and reading them costs cache misses.
        if self.filled + 16 <= self.fill_target.target() {
            self.refill(magazine);
        }
    }

    /// Wakes a driver that has stopped receiving for lack of slots; `false` if it could not be woken. In copy mode no
    /// driver stops.
    #[inline]
    fn wake_receive(&mut self) -> bool {
        match (self.copy_mode, &mut self.socket) {
            (CopyMode::ZeroCopy, Some(socket)) => socket.wake_receive(),
            _ => true,
        }
    }

    /// Reclaims transmitted slots and refills the fill ring before the caller sleeps until a frame arrives. Returns
    /// whether the driver receives: without a slot it drops frames, and one that could not be woken is deaf; neither
    /// wakes anybody.
    ///
    /// # Panics
    ///
    /// If `magazine` is one of another pool.
    pub fn prepare_sleep(&mut self, magazine: &mut Magazine) -> bool {
        self.reap(magazine);
        self.refill(magazine);
        self.wake_receive() && self.filled > 0
    }

    fn refill(&mut self, magazine: &mut Magazine) {
        let Some(socket) = &mut self.socket else { return };
        let wanted = self.fill_target.target().saturating_sub(self.filled).min(socket.fill_room());
        let mut given = 0;
        while given < wanted {
            let Some(slot) = magazine.pop() else { break };
            self.pool.set_lent(slot, self.number);
            // SAFETY: the slot came out of the magazine, and from now on the owner table says that the kernel has
            // it: it comes back by `receive`, or when the socket has been closed.
            unsafe { socket.fill(u64::from(slot) * SLOT as u64) };
            given += 1;
        }
        if given > 0 {
            socket.publish_fill();
            self.filled += given;
        }
    }

    /// Enqueues a frame for transmit: leaves its slots to the kernel and empties its entry. Changes nothing and
    /// returns `false` if the TX ring has no room. [`XskQueue::flush`] publishes it.
    ///
    /// # Panics
    ///
    /// If the frame does not own its slots, or they are of another pool: the kernel would send other bytes.
    #[inline(always)]
    pub fn send(&mut self, frame: &mut Frame) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        let Some((slot, start, len)) = frame.slot() else { return self.send_chain(frame) };
        assert!(frame.belongs_to(self.pool), "slots of one pool");
        if socket.transmit_room() == 0 {
            return false;
        }
        frame.take_slots();
        self.in_flight += 1;
        self.pool.set_lent(slot, self.number);
        let address = u64::from(slot) * SLOT as u64 + u64::from(start);
        // SAFETY: the slot was the frame's, which has given it up, and its bytes lie within it. From now on the
        // owner table says that the kernel has it: it comes back by `reap`, or when the socket has been closed.
        unsafe { socket.transmit(Piece { address, len: u32::from(len), more: false }) };
        true
    }

    #[cold]
    fn send_chain(&mut self, frame: &mut Frame) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        assert!(frame.is_owned(), "only frames that own their slots can be given to the kernel");
        assert!(frame.belongs_to(self.pool), "slots of one pool");
        if (socket.transmit_room() as usize) < 1 + frame.tail().count() {
            return false;
        }
        let Some((pool, mut slot, _)) = frame.take_slots() else { return false };
        while slot != NONE {
            let (next, (start, len)) = (pool.after(slot), pool.extent(slot));
            self.in_flight += 1;
            pool.set_lent(slot, self.number);
            let address = u64::from(slot) * SLOT as u64 + u64::from(start);
            // SAFETY: as in `send`; the chain was the frame's, and each extent lies within its slot.
            unsafe { socket.transmit(Piece { address, len: u32::from(len), more: next != NONE }) };
            slot = next;
        }
        true
    }

    /// Publishes enqueued frames to the kernel, which transmits them when kicked.
    #[inline(always)]
    pub fn flush(&mut self) {
        if let Some(socket) = &mut self.socket {
            socket.publish_transmit();
        }
    }

    /// Kicks the kernel to transmit: at most 32 frames in copy mode.
    #[inline(always)]
    pub fn kick(&mut self) -> Kick {
        match &self.socket {
            Some(socket) if socket.wants_kick() => socket.kick(),
            Some(_) => Kick::Done,
            None => Kick::Gone,
        }
    }

    /// Descriptors that the kernel has not begun to transmit.
    #[inline(always)]
    pub fn unsent(&mut self) -> u32 {
        let Some(socket) = &mut self.socket else { return 0 };
        // A dropped frame is known before the kernel's counter shows it.
        let taken = socket.transmit_taken();
        if is_behind(self.consumed, taken) {
            self.consumed = taken;
        }
        socket.transmit_position().wrapping_sub(self.consumed)
    }

    /// Ring position of the next enqueued frame, which identifies it if the kernel drops it.
    #[inline(always)]
    pub fn position(&self) -> u32 {
        self.socket.as_ref().map_or(0, Socket::transmit_position)
    }

    /// The frame that the last kick dropped, as its error reported. Call after each such kick, and
    /// [`XskQueue::unsent`] before the kick. In zero-copy mode there is none: the driver transmits by itself.
    #[cold]
    pub fn dropped(&mut self) -> Option<Dropped> {
        let before = self.consumed;
        if self.copy_mode == CopyMode::ZeroCopy || self.unsent() == 0 && self.consumed == before {
            return None;
        }
        let socket = self.socket.as_ref()?;
        if self.consumed == before {
            // The first frame of the call: the kernel has consumed it, but not yet published that.
            let end = socket.transmit_position();
            while socket.transmit_piece(self.consumed).more && self.consumed.wrapping_add(1) != end {
                self.consumed = self.consumed.wrapping_add(1);
            }
            self.consumed = self.consumed.wrapping_add(1);
        }
        // The last frame consumed.
        let mut position = self.consumed.wrapping_sub(1);
        let mut bytes = u64::from(socket.transmit_piece(position).len);
        while position != before && socket.transmit_piece(position.wrapping_sub(1)).more {
            position = position.wrapping_sub(1);
            bytes += u64::from(socket.transmit_piece(position).len);
        }
        Some(Dropped { position, bytes })
    }

    /// Whole frames that the kernel has not begun to transmit.
    #[cold]
    pub fn unsent_frames(&mut self) -> u64 {
        let unsent = self.unsent();
        let Some(socket) = &self.socket else { return 0 };
        let descriptors = (0..unsent).map(|at| socket.transmit_piece(self.consumed.wrapping_add(at)));
        descriptors.filter(|piece| !piece.more).count() as u64
    }

    /// Reclaims transmitted slots from the completion ring.
    ///
    /// # Panics
    ///
    /// If `magazine` is one of another pool.
    #[inline(always)]
    pub fn reap(&mut self, magazine: &mut Magazine) {
        assert!(std::ptr::eq(self.pool, magazine.pool()), "slots of one pool");
        let Some(socket) = &mut self.socket else { return };
        let mut any = false;
        while let Some(address) = socket.completed() {
            any = true;
            let slot = (address / SLOT as u64) as u32;
            if self.pool.owner_table(slot) == self.number {
                self.pool.set_lent(slot, OWNED_BY_US);
                magazine.push(slot);
                self.in_flight = self.in_flight.saturating_sub(1);
            } else {
                self.unexpected += 1;
            }
        }
        if any {
            socket.release_completed();
        }
    }

    /// Frames that the kernel dropped since the queue was opened, for lack of a slot or of room in the RX ring,
    /// plus frames with an invalid descriptor (none expected).
    pub fn rx_missed(&self) -> u64 {
        let counted = self.socket.as_ref().and_then(|socket| socket.statistics().ok());
        let counted = counted.map_or(0, |counted| counted.rx_dropped + counted.rx_ring_full.unwrap_or(0));
        counted + self.unexpected
    }

    /// TX descriptors that the kernel rejected as invalid: none, unless this code is wrong.
    pub fn invalid(&self) -> u64 {
        let counted = self.socket.as_ref().and_then(|socket| socket.statistics().ok());
        counted.map_or(0, |counted| counted.tx_invalid_descs)
    }

    /// Descriptor that becomes readable when a frame arrives.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }
}

/// A frame that the kernel dropped after it was enqueued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Ring position of its first descriptor.
    pub position: u32,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Dropped {
    /// Whether it was enqueued at this position or later.
    pub fn is_since(&self, position: u32) -> bool {
        !is_behind(self.position, position)
    }
}

/// Whether ring position `position` precedes `other`. Positions wrap at 2^32 and differ by less than half of that.
#[inline(always)]
fn is_behind(position: u32, other: u32) -> bool {
    other.wrapping_sub(position).cast_signed() > 0
}

/// A netdev queue that was used in zero-copy mode.
#[derive(Debug)]
struct ZcQuiesce {
    index: u32,
    queue: u32,
    /// Network namespace of the netdev.
    netns: OwnedFd,
}

impl ZcQuiesce {
    /// Whether the hardware has released the queue after its socket was closed: it can be bound again, or no longer
    /// exists.
    fn is_done(&self, pool: &Pool) -> bool {
        let Ok(umem) = pool.umem() else { return false };
        let netns = Netns::At(format!("/proc/self/fd/{}", self.netns.as_raw_fd()).into());
        let over = within(&netns, || {
            for _ in 0..ATTEMPTS {
                match Socket::zero_copy(&umem, self.index, self.queue, 64) {
                    Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {}
                    _ => return true,
                }
                let _ = nanosleep(&PAUSE); // woken early, it asks early
            }
            false
        });
        over.unwrap_or(false)
    }
}

impl Drop for XskQueue {
    /// Closes the socket, then reclaims all slots. May wait for the hardware, so only control drops it.
    fn drop(&mut self) {
        self.socket = None;
        self.assembly = Assembly::Idle;
        if self.quiesce.as_ref().is_some_and(|quiesce| !quiesce.is_done(self.pool)) {
            // The slots stay lost in the owner table, so that the hardware cannot write into other frames.
            return;
        }
        for slot in 0..self.pool.slots() {
            if self.pool.owner_table(slot) == self.number {
                self.pool.set_lent(slot, OWNED_BY_US);
                self.pool.link(slot, NONE);
                self.pool.push(slot);
            }
        }
    }
}
