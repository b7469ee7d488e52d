//! Slots that go to the kernel and come back, through one AF_XDP socket.
//!
//! The rings of the socket do not tell which slots the kernel has: it keeps those that it refuses in
//! lists of its own, and publishes its counters late. So the pool has a *ledger*, an entry for each
//! slot, that says which exchange has left it to the kernel. A slot that comes back by a ring is taken
//! only if the ledger says that it was left by this very exchange; and when the exchange is over, what
//! the ledger still lists comes home. It is over when its socket is closed: from then on the kernel
//! touches none of these slots. A driver that works without a copy may do so for a little longer, while
//! its hardware stops; there, the slots come home only when the queue can be bound again.

#![allow(clippy::cast_possible_truncation)] // parts of addresses within the UMEM

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::thread::nanosleep;
use rustix::time::Timespec;

use super::descriptor::Frame;
use super::fill_target::FillTarget;
use super::pool::{NONE, OWNED_BY_US, Pool, SLOT};
use super::{Batch, Magazine, prefetch};
use crate::sys::netns::{self, Netns, within};
use crate::sys::xsk::{Kick, Piece, Socket};

/// How often it is tried whether a queue is free that was used without a copy, and how long to wait in
/// between: a second in all.
const ATTEMPTS: u32 = 50;
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Whether frames are copied between the slots and the driver's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMode {
    /// They are.
    Copy,
    /// The driver works in the slots themselves.
    ZeroCopy,
}

/// The exchange of slots with the kernel over one queue of a netdev.
#[derive(Debug)]
pub struct XskQueue {
    pool: &'static Pool,
    /// By which the ledger knows it.
    number: u32,
    /// `ZeroCopy` only while it is being closed.
    socket: Option<Socket>,
    copy_mode: CopyMode,
    /// What it takes to find out whether the hardware has let go of the queue. `ZeroCopy` where it never has it.
    quiesce: Option<ZcQuiesce>,
    /// Pieces that the kernel has taken out of the transmit ring, as far as is known, modulo 2^32.
    consumed: u32,
    /// Slots that were left to it to be sent, and have not come back.
    in_flight: u32,
    /// Slots that wait in the fill ring.
    filled: u32,
    /// Slots that shall wait there.
    fill_target: FillTarget,
    /// A frame of which some segments have come, and its last slot.
    partial: Option<(Frame, u32)>,
    /// Pieces that came although they were not lent, or did not lie within a slot: none, unless the
    /// kernel is wrong.
    unexpected: u64,
}

impl XskQueue {
    /// Binds a socket to queue `queue` of the netdev `index` of the calling thread's namespace. Its rings have
    /// `entries` places, a power of two; at most `fill` slots wait to be received into.
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
            partial: None,
            unexpected: 0,
        };
        xsk.refill(&mut Magazine::new(pool));
        Ok(xsk)
    }

    /// Whether the driver works in the slots themselves.
    pub fn copy_mode(&self) -> CopyMode {
        self.copy_mode
    }

    /// Appends what has arrived to the batch, until that is full or nothing is left, and leaves as many slots
    /// to the kernel again.
    ///
    /// # Panics
    ///
    /// If the cache is one of another pool.
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
            let slot = (piece.address / SLOT as u64) as u32;
            let start = (piece.address % SLOT as u64) as u32;
            if self.pool.owner_table(slot) != self.number || start + piece.len > SLOT as u32 {
                self.unexpected += 1;
                continue;
            }
            self.pool.set_lent(slot, OWNED_BY_US);
            let (start, len) = (start as u16, piece.len as u16);
            // The kernel has written it on another core: the lines of a burst are fetched side by side.
            // SAFETY: the slot is ours since it was received, and the length was checked above.
            prefetch(unsafe { room.bytes(slot, start, len) });
            if self.partial.is_none() && !piece.more {
                batch.push(Frame::received(self.pool, slot, start, len));
            } else {
                append_segment(self.pool, &mut self.partial, (slot, start, len), piece.more, batch);
            }
        }
        if taken > 0 {
            socket.release_received();
            self.filled -= taken;
            self.fill_target.record(taken, bytes);
        } else {
            // There is time. Slots that have been sent may be what others lack.
            if self.in_flight > 0 {
                self.reap(magazine);
            }
            self.wake_receive();
        }
        // In small heaps: the counters are shared with the kernel, and a look at them is not free.
        if self.filled + 16 <= self.fill_target.target() {
            self.refill(magazine);
        }
    }

    /// Wakes a driver that has stopped receiving for want of slots. Where frames are copied none ever does.
    #[inline]
    fn wake_receive(&mut self) {
        if let (CopyMode::ZeroCopy, Some(socket)) = (self.copy_mode, &mut self.socket) {
            socket.wake_receive();
        }
    }

    /// Takes back what has been sent and leaves slots to the kernel, for a caller who then sleeps until a frame has
    /// come. Whether one can come: without a slot left to the kernel it is lost, and nobody is woken.
    ///
    /// # Panics
    ///
    /// If the cache is one of another pool.
    pub fn prepare_sleep(&mut self, magazine: &mut Magazine) -> bool {
        self.reap(magazine);
        self.refill(magazine);
        self.wake_receive();
        self.filled > 0
    }

    fn refill(&mut self, magazine: &mut Magazine) {
        let Some(socket) = &mut self.socket else { return };
        let wanted = self.fill_target.target().saturating_sub(self.filled).min(socket.fill_room());
        let mut given = 0;
        while given < wanted {
            let Some(slot) = magazine.pop() else { break };
            self.pool.set_lent(slot, self.number);
            // SAFETY: the slot came out of the cache, and the ledger says from now on that the kernel has
            // it: it comes back by `receive`, or when the socket has been closed.
            unsafe { socket.fill(u64::from(slot) * SLOT as u64) };
            given += 1;
        }
        if given > 0 {
            socket.publish_fill();
            self.filled += given;
        }
    }

    /// Leaves the slots of a frame to the kernel to be sent, and empties its place. `false`, and
    /// nothing has changed, if there is no room for it. It goes out with the next [`XskQueue::flush`].
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
        // SAFETY: the slot was the frame's, which has given it up, and its bytes lie within it. The ledger
        // says from now on that the kernel has it: it comes back by `reap`, or when the socket has been closed.
        unsafe { socket.transmit(Piece { address, len: u32::from(len), more: false }) };
        true
    }

    #[cold]
    fn send_chain(&mut self, frame: &mut Frame) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        assert!(frame.is_owned(), "only what owns its slots can be left to the kernel");
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

    /// Lets the kernel see the frames that are to be sent. They go out when it is kicked.
    #[inline(always)]
    pub fn flush(&mut self) {
        if let Some(socket) = &mut self.socket {
            socket.publish_transmit();
        }
    }

    /// Asks the kernel to send: at most 32 frames where they are copied.
    #[inline(always)]
    pub fn kick(&mut self) -> Kick {
        match &self.socket {
            Some(socket) if socket.wants_kick() => socket.kick(),
            Some(_) => Kick::Done,
            None => Kick::Gone,
        }
    }

    /// Pieces that the kernel has not begun to send.
    #[inline(always)]
    pub fn unsent(&mut self) -> u32 {
        let Some(socket) = &mut self.socket else { return 0 };
        // Of what it has dropped we know before it says so.
        let taken = socket.transmit_taken();
        if is_behind(self.consumed, taken) {
            self.consumed = taken;
        }
        socket.transmit_position().wrapping_sub(self.consumed)
    }

    /// The position of the next frame that is sent, by which it is known when it has been dropped.
    #[inline(always)]
    pub fn position(&self) -> u32 {
        self.socket.as_ref().map_or(0, Socket::transmit_position)
    }

    /// Which frame was dropped by the kick that has just said so. To be asked after each such kick, before which
    /// [`XskQueue::unsent`] was asked. `ZeroCopy`: there was none to drop.
    #[cold]
    pub fn dropped(&mut self) -> Option<Dropped> {
        let before = self.consumed;
        if self.unsent() == 0 && self.consumed == before {
            return None;
        }
        let socket = self.socket.as_ref()?;
        if self.consumed == before {
            // The first frame of the call: the kernel has taken it, and does not say so yet.
            let end = socket.transmit_position();
            while socket.transmit_piece(self.consumed).more && self.consumed.wrapping_add(1) != end {
                self.consumed = self.consumed.wrapping_add(1);
            }
            self.consumed = self.consumed.wrapping_add(1);
        }
        // It is the last one that was taken.
        let mut position = self.consumed.wrapping_sub(1);
        let mut bytes = u64::from(socket.transmit_piece(position).len);
        while position != before && socket.transmit_piece(position.wrapping_sub(1)).more {
            position = position.wrapping_sub(1);
            bytes += u64::from(socket.transmit_piece(position).len);
        }
        Some(Dropped { position, bytes })
    }

    /// Frames, whole ones, that the kernel has not begun to send.
    #[cold]
    pub fn unsent_frames(&mut self) -> u64 {
        let unsent = self.unsent();
        let Some(socket) = &self.socket else { return 0 };
        let descriptors = (0..unsent).map(|at| socket.transmit_piece(self.consumed.wrapping_add(at)));
        descriptors.filter(|piece| !piece.more).count() as u64
    }

    /// Takes back the slots of what has been sent.
    ///
    /// # Panics
    ///
    /// If the cache is one of another pool.
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

    /// Frames that the kernel could not hand over since the exchange began: no slot waited for them, or
    /// the ring was full. And pieces that were not as they should be: none.
    pub fn rx_missed(&self) -> u64 {
        let counted = self.socket.as_ref().and_then(|socket| socket.statistics().ok());
        let counted = counted.map_or(0, |counted| counted.rx_dropped + counted.rx_ring_full.unwrap_or(0));
        counted + self.unexpected
    }

    /// Frames that were left to the kernel and that it did not take for frames: none, unless we are wrong.
    pub fn invalid(&self) -> u64 {
        let counted = self.socket.as_ref().and_then(|socket| socket.statistics().ok());
        counted.map_or(0, |counted| counted.tx_invalid_descs)
    }

    /// The descriptor that becomes readable when something has arrived.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }
}

/// A frame that was dropped after it had been left to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Where it began.
    pub position: u32,
    /// Its bytes.
    pub bytes: u64,
}

impl Dropped {
    /// Whether it was sent at this position or later.
    pub fn is_since(&self, position: u32) -> bool {
        !is_behind(self.position, position)
    }
}

/// Whether one position in a ring comes before another one. They wrap at 2^32, and are less than half of that apart.
#[inline(always)]
fn is_behind(position: u32, other: u32) -> bool {
    other.wrapping_sub(position).cast_signed() > 0
}

/// A queue of a netdev that was used without a copy.
#[derive(Debug)]
struct ZcQuiesce {
    index: u32,
    queue: u32,
    /// The namespace that it is in.
    netns: OwnedFd,
}

impl ZcQuiesce {
    /// Whether the hardware has surely let go of the queue, now that its socket is closed: it can be bound
    /// again, or is no more.
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

/// Adds a segment to the frame that has begun; it goes into the batch when it is whole.
#[cold]
fn append_segment(
    pool: &'static Pool,
    partial: &mut Option<(Frame, u32)>,
    (slot, start, len): (u32, u16, u16),
    more: bool,
    batch: &mut Batch,
) {
    match partial {
        None => *partial = Some((Frame::received(pool, slot, start, len), slot)),
        Some((frame, last)) => {
            frame.append(pool, *last, slot, start, len);
            *last = slot;
        }
    }
    if !more && let Some((frame, _)) = partial.take() {
        batch.push(frame);
    }
}

impl Drop for XskQueue {
    /// Closes the socket, then takes all slots home. May wait for the hardware, so it is for control.
    fn drop(&mut self) {
        self.socket = None;
        self.partial = None;
        if self.quiesce.as_ref().is_some_and(|quiesce| !quiesce.is_done(self.pool)) {
            // They stay in the ledger, lost: better than that the hardware writes into others' frames.
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
