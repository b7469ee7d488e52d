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
use super::filling::Filling;
use super::pool::{HERE, NONE, Pool, SLOT};
use super::{Batch, Cache, prefetch};
use crate::sys::netns::{self, Netns, within};
use crate::sys::xsk::{Kick, Piece, Socket};

/// How often it is tried whether a queue is free that was used without a copy, and how long to wait in
/// between: a second in all.
const ATTEMPTS: u32 = 50;
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Whether frames are copied between the slots and the driver's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// They are.
    Copies,
    /// The driver works in the slots themselves.
    None,
}

/// The exchange of slots with the kernel over one queue of a netdev.
#[derive(Debug)]
pub struct Exchange {
    pool: &'static Pool,
    /// By which the ledger knows it.
    number: u32,
    /// `None` only while it is being closed.
    socket: Option<Socket>,
    copying: Copying,
    /// What it takes to find out whether the hardware has let go of the queue. `None` where it never has it.
    claim: Option<Claim>,
    /// Slots that wait in the fill ring.
    filled: u32,
    /// Slots that shall wait there.
    filling: Filling,
    /// A frame of which some segments have come, and its last slot.
    begun: Option<(Frame, u32)>,
    /// Pieces that came although they were not lent, or did not lie within a slot: none, unless the
    /// kernel is wrong.
    strange: u64,
}

impl Exchange {
    /// Binds a socket to queue `queue` of the netdev `index` of the calling thread's namespace. Its rings have
    /// `entries` places, a power of two; at most `fill` slots wait to be received into.
    pub fn open(
        pool: &'static Pool,
        (index, queue): (u32, u32),
        copying: Copying,
        entries: u32,
        fill: u32,
    ) -> io::Result<Exchange> {
        let umem = pool.umem()?;
        let socket = match copying {
            Copying::Copies => Socket::copying(&umem, index, queue, entries),
            Copying::None => Socket::zero_copy(&umem, index, queue, entries),
        }?;
        let mut exchange = Exchange {
            pool,
            number: pool.number_exchange(),
            socket: Some(socket),
            copying,
            claim: match copying {
                Copying::Copies => None,
                Copying::None => Some(Claim { index, queue, netns: netns::here()? }),
            },
            filled: 0,
            filling: Filling::new(fill.min(entries)),
            begun: None,
            strange: 0,
        };
        exchange.refill(&mut Cache::new(pool));
        Ok(exchange)
    }

    /// Whether the driver works in the slots themselves.
    pub fn copying(&self) -> Copying {
        self.copying
    }

    /// Appends what has arrived to the batch, until that is full or nothing is left, and leaves as many slots
    /// to the kernel again.
    #[inline]
    pub fn receive(&mut self, batch: &mut Batch, cache: &mut Cache) {
        let Some(socket) = &mut self.socket else { return };
        let (mut taken, mut bytes) = (0, 0);
        let room = self.pool.room();
        while !batch.is_full() {
            let Some(piece) = socket.received() else { break };
            taken += 1;
            bytes += u64::from(piece.len);
            let slot = (piece.address / SLOT as u64) as u32;
            let start = (piece.address % SLOT as u64) as u32;
            if self.pool.lent(slot) != self.number || start + piece.len > SLOT as u32 {
                self.strange += 1;
                continue;
            }
            self.pool.set_lent(slot, HERE);
            let (start, len) = (start as u16, piece.len as u16);
            // The kernel has written it on another core: the lines of a burst are fetched side by side.
            // SAFETY: the slot is ours since it was received, and the length was checked above.
            prefetch(unsafe { room.bytes(slot, start, len) });
            if self.begun.is_none() && !piece.more {
                batch.push(Frame::arrived(self.pool, slot, start, len));
            } else {
                join(self.pool, &mut self.begun, (slot, start, len), piece.more, batch);
            }
        }
        if taken > 0 {
            socket.release_received();
            self.filled -= taken;
            self.filling.came(taken, bytes);
        }
        // In small heaps: the counters are shared with the kernel, and a look at them is not free.
        if self.filled + 16 <= self.filling.wanted() {
            self.refill(cache);
        }
    }

    fn refill(&mut self, cache: &mut Cache) {
        let Some(socket) = &mut self.socket else { return };
        debug_assert!(std::ptr::eq(self.pool, cache.pool()));
        let wanted = self.filling.wanted().saturating_sub(self.filled).min(socket.fill_room());
        let mut given = 0;
        while given < wanted {
            let Some(slot) = cache.slot() else { break };
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
    /// nothing has changed, if there is no room for it. It goes out with the next [`Exchange::flush`].
    ///
    /// # Panics
    ///
    /// If the frame does not own its slots.
    #[inline(always)]
    pub fn send(&mut self, frame: &mut Frame) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        let Some((slot, start, len)) = frame.slot() else { return self.send_chain(frame) };
        if socket.transmit_room() == 0 {
            return false;
        }
        frame.surrender();
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
        if (socket.transmit_room() as usize) < 1 + frame.tail().count() {
            return false;
        }
        let Some((pool, mut slot, _)) = frame.surrender() else { return false };
        while slot != NONE {
            let (next, (start, len)) = (pool.after(slot), pool.extent(slot));
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
        self.socket.as_mut().map_or(0, Socket::untransmitted)
    }

    /// Takes back the slots of what has been sent.
    #[inline(always)]
    pub fn reap(&mut self, cache: &mut Cache) {
        let Some(socket) = &mut self.socket else { return };
        debug_assert!(std::ptr::eq(self.pool, cache.pool()));
        let mut any = false;
        while let Some(address) = socket.completed() {
            any = true;
            let slot = (address / SLOT as u64) as u32;
            if self.pool.lent(slot) == self.number {
                self.pool.set_lent(slot, HERE);
                cache.put_back(slot);
            } else {
                self.strange += 1;
            }
        }
        if any {
            socket.release_completed();
        }
    }

    /// Frames that the kernel could not hand over since the exchange began: no slot waited for them, or
    /// the ring was full. And pieces that were not as they should be: none.
    pub fn missed(&self) -> u64 {
        let counted = self.socket.as_ref().and_then(|socket| socket.statistics().ok());
        let counted = counted.map_or(0, |counted| counted.rx_dropped + counted.rx_ring_full.unwrap_or(0));
        counted + self.strange
    }

    /// The descriptor that becomes readable when something has arrived.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }
}

/// A queue of a netdev that was used without a copy.
#[derive(Debug)]
struct Claim {
    index: u32,
    queue: u32,
    /// The namespace that it is in.
    netns: OwnedFd,
}

impl Claim {
    /// Whether the hardware has surely let go of the queue, now that its socket is closed: it can be bound
    /// again, or is no more.
    fn is_over(&self, pool: &Pool) -> bool {
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
fn join(
    pool: &'static Pool,
    begun: &mut Option<(Frame, u32)>,
    (slot, start, len): (u32, u16, u16),
    more: bool,
    batch: &mut Batch,
) {
    match begun {
        None => *begun = Some((Frame::arrived(pool, slot, start, len), slot)),
        Some((frame, last)) => {
            frame.append(pool, *last, slot, start, len);
            *last = slot;
        }
    }
    if !more && let Some((frame, _)) = begun.take() {
        batch.push(frame);
    }
}

impl Drop for Exchange {
    /// Closes the socket, then takes all slots home. May wait for the hardware, so it is for control.
    fn drop(&mut self) {
        self.socket = None;
        self.begun = None;
        if self.claim.as_ref().is_some_and(|claim| !claim.is_over(self.pool)) {
            // They stay in the ledger, lost: better than that the hardware writes into others' frames.
            return;
        }
        for slot in 0..self.pool.slots() {
            if self.pool.lent(slot) == self.number {
                self.pool.set_lent(slot, HERE);
                self.pool.link(slot, NONE);
                self.pool.give(slot);
            }
        }
    }
}
