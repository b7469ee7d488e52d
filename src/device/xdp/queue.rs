//! One AF_XDP queue of a netdev.
//!
//! Receive costs no system call: frames in the ring already occupy slots of the pool, until they are transmitted.
//! Transmit in copy mode is one call for up to 32 frames, which runs the driver's transmit path.
//!
//! Results of that call:
//!
//! * EBUSY: the device has dropped one frame: its queue is full, it has no carrier, or the frame is too long. The call
//!   is repeated for the following frames. While the device only drops for lack of space, each burst costs one call:
//!   its first frame is tried, and the others are dropped if that is dropped.
//! * EAGAIN, ENOBUFS, ENOMEM and others: nothing was dropped. The frames wait in the ring, in order, and are retried
//!   soon. They count as sent; if they are lost later, they count as `tx_lost`.
//! * ENETDOWN: the netdev is down, and so is this queue until a frame leaves the ring. ENXIO, twice in a row: the netdev
//!   is gone.

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::redirect::Redirect;
use crate::device::limit::{ALWAYS_TAKEN, Limit};
use crate::device::observed::Samples;
use crate::device::{Device, DeviceCaps, GroupClass, Observed, XdpDropped};
use crate::frame::{Batch, CopyMode, Frame, Magazine, TxBatch, TxStats, TxStatus, XskQueue};
use crate::sys::xsk::Kick;
use crate::time::MonoTime;

/// Receive moderation time under load. A transmit costs the sender one system call, so that a frame sent alone costs
/// half as much again as one of four. The time is a fifth of what waking a sleeping reader takes.
const MODERATION_TIME: Duration = Duration::from_nanos(6_500);

/// Maximum receives between retries of pending frames: each retry costs a system call that delays the worker's other
/// queues.
const MAX_POLLS_BETWEEN: u8 = 63;

/// A queue, with its share of the netdev's program.
#[derive(Debug)]
pub(super) struct Queue {
    socket: XskQueue,
    /// Total of missed frames at the last query.
    rx_missed: u64,
    /// Frames that count as sent wait in the ring, and the kernel has not taken them yet.
    tx_pending: bool,
    /// Receives until the next retry.
    reads_left: u8,
    /// Receives between the last two retries.
    reads_between: u8,
    state: State,
    /// The last frame tried was dropped.
    dropping: bool,
    /// Learned length limit.
    limit: Limit,
    /// A frame was ever dropped. Lengths per burst are recorded from then on.
    has_dropped: bool,
    lengths: Lengths,
    /// Frames that count as sent and were dropped, since the last query.
    dropped_late: u64,
    /// Total of descriptors that the kernel rejected as invalid, at the last query.
    invalid: u64,
    /// Queue number.
    number: u32,
    /// Totals of early drop at the last query.
    dropped: XdpDropped,
    /// Shared by the netdev's queues; the last one detaches the program.
    redirect: Arc<Redirect>,
    /// Sampling of received frames.
    samples: Samples,
    observed: Observed,
}

/// State of the netdev, as results of transmit calls show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Down,
    Gone,
}

impl State {
    /// State once it is known whether frames wait in the ring. A driver in zero-copy mode transmits them by itself when
    /// its netdev is up again, and nothing is left then that would tell.
    fn with_pending(self, tx_pending: bool) -> State {
        if self == State::Down && !tx_pending { State::Up } else { self }
    }
}

/// Frames of one burst that the device has dropped.
#[derive(Debug, Clone, Copy, Default)]
struct Drops {
    frames: u64,
    bytes: u64,
    /// Of these: refused for their length.
    refused: u64,
    /// Maximum length, and number of frames of that length.
    max_len: (u32, u32),
}

/// Lengths of the frames of a burst; recorded once a frame was dropped, to learn which lengths pass.
#[derive(Debug, Clone, Copy, Default)]
struct Lengths {
    max_len: u32,
    /// Number of frames of that length.
    count: u32,
}

impl Lengths {
    #[cold]
    fn add(&mut self, len: u32) {
        if len > self.max_len {
            *self = Lengths { max_len: len, count: 0 };
        }
        self.count += u32::from(len == self.max_len);
    }

    /// Maximum length in the burst, if a frame of that length is known to have passed.
    fn passed(self, drops: Drops) -> Option<u32> {
        let (dropped, count) = drops.max_len;
        (self.max_len > dropped || self.max_len == dropped && self.count > count).then_some(self.max_len)
    }
}

impl Queue {
    pub(super) fn new(socket: XskQueue, number: u32, redirect: Arc<Redirect>, observed: Observed) -> Queue {
        Queue {
            socket,
            rx_missed: 0,
            tx_pending: false,
            reads_left: 0,
            reads_between: 0,
            state: State::Up,
            dropping: false,
            limit: Limit::new(),
            has_dropped: false,
            lengths: Lengths::default(),
            dropped_late: 0,
            invalid: 0,
            number,
            dropped: XdpDropped::default(),
            redirect,
            samples: Samples::default(),
            observed,
        }
    }

    /// Makes the kernel transmit the ring. Adds to `drops` what the device drops of the burst that begins at position
    /// `first`.
    #[inline]
    fn flush(&mut self, first: u32, drops: &mut Drops) {
        let mut left = self.socket.unsent();
        while left > 0 {
            let mut kick = self.socket.kick();
            if kick == Kick::Gone {
                // This closes the queue: one answer is not enough.
                kick = self.socket.kick();
            }
            match kick {
                Kick::Done | Kick::Full => (self.state, self.dropping) = (State::Up, false),
                Kick::Dropped => {
                    (self.state, self.dropping) = (State::Up, true);
                    self.count_dropped(first, drops);
                }
                Kick::Down => self.state = State::Down,
                Kick::Gone => self.state = State::Gone,
            }
            // No progress: retried later.
            let before = mem::replace(&mut left, self.socket.unsent());
            if left == before {
                break;
            }
        }
        self.tx_pending = left > 0;
        self.state = self.state.with_pending(self.tx_pending);
    }

    #[cold]
    fn count_dropped(&mut self, first: u32, drops: &mut Drops) {
        match self.socket.dropped() {
            Some(dropped) if dropped.is_since(first) => {
                self.has_dropped = true;
                drops.frames += 1;
                drops.bytes += dropped.bytes;
                let len = u32::try_from(dropped.bytes).unwrap_or(u32::MAX);
                let (max_len, count) = drops.max_len;
                drops.max_len = (max_len.max(len), if len > max_len { 1 } else { count + u32::from(len == max_len) });
                if len > ALWAYS_TAKEN && self.limit.refuses(len) {
                    // The next frames may pass.
                    drops.refused += 1;
                    self.dropping = false;
                }
            }
            Some(_) => self.dropped_late += 1,
            None => {}
        }
    }

    /// Samples one received frame.
    #[cold]
    fn sample(&mut self, batch: &Batch, index: usize) {
        if self.samples.take(batch.frame_ref(index).head) {
            self.observed.report_partial_checksums();
        }
    }

    /// Records the length of passed frames: their mean, until a frame is dropped.
    #[inline]
    fn record_passed(&mut self, sent: TxStats, drops: Drops) {
        if self.has_dropped {
            if let Some(len) = self.lengths.passed(drops) {
                self.limit.passed(len);
            }
        } else if sent.bytes > sent.frames * u64::from(self.limit.max_passed()) {
            self.limit.passed(u32::try_from(sent.bytes.div_ceil(sent.frames)).unwrap_or_default());
        }
    }

    /// Retries transmit of pending frames.
    #[cold]
    fn flush_pending(&mut self) {
        let before = self.socket.unsent();
        // All of them count as sent already.
        self.flush(self.socket.position(), &mut Drops::default());
        // In zero-copy mode the driver takes them by itself, and is called only on request.
        let is_asked = self.socket.copy_mode() == CopyMode::Copy;
        let in_vain = is_asked && self.tx_pending && self.socket.unsent() == before;
        self.reads_between =
            if in_vain { (self.reads_between.saturating_mul(2) + 1).min(MAX_POLLS_BETWEEN) } else { 0 };
        self.reads_left = self.reads_between;
    }

    /// Retries at the interval of `reads_between` receives.
    #[cold]
    fn flush_pending_sometimes(&mut self) {
        match self.reads_left.checked_sub(1) {
            Some(left) => self.reads_left = left,
            None => self.flush_pending(),
        }
    }

    /// Puts a frame of the burst that begins at position `first` into the ring. After a drop only one frame is tried,
    /// and no other while that is dropped, too.
    #[inline(always)]
    fn send(&mut self, frame: &mut Frame, first: u32, drops: &mut Drops) -> bool {
        if self.has_dropped {
            self.lengths.add(frame.len());
        }
        if self.dropping {
            return self.try_one(frame, first, drops);
        }
        self.socket.send(frame)
    }

    #[cold]
    fn try_one(&mut self, frame: &mut Frame, first: u32, drops: &mut Drops) -> bool {
        if drops.frames > drops.refused || !self.socket.send(frame) {
            return false;
        }
        self.socket.flush();
        self.flush(first, drops);
        true
    }
}

impl Device for Queue {
    fn receive(&mut self, batch: &mut Batch, magazine: &mut Magazine) -> io::Result<()> {
        // A netdev that is down transmits nothing until it is up, which shows with the next burst or before sleep.
        if self.tx_pending && self.state == State::Up {
            self.flush_pending_sometimes();
        }
        if self.state == State::Gone {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let before = batch.len();
        self.socket.receive(batch, magazine);
        if self.samples.is_due() && batch.len() > before {
            self.sample(batch, before);
        }
        Ok(())
    }

    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        if self.state == State::Down {
            // A retry of the pending frames shows whether the netdev is up again.
            self.flush_pending();
        }
        if self.state != State::Up {
            let sent = tx.send_each(batch, magazine, |_| TxStatus::LinkDown);
            self.socket.reap(magazine);
            return sent;
        }
        let (first, mut drops) = (self.socket.position(), Drops::default());
        self.lengths = Lengths::default();
        let mut sent = tx.send_owned(batch, magazine, |frame| self.send(frame, first, &mut drops));
        self.socket.flush();
        self.flush(first, &mut drops);
        if drops.frames > 0 {
            self.correct(&mut sent, drops);
        }
        if !self.tx_pending {
            self.record_passed(sent, drops);
        }
        self.socket.reap(magazine);
        sent
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.fd()
    }

    /// Reads shared memory.
    fn is_cheap_to_poll(&self) -> bool {
        true
    }

    /// Most received frames leave by another AF_XDP queue.
    fn moderation_time(&self) -> Duration {
        match self.socket.copy_mode() {
            CopyMode::Copy => MODERATION_TIME,
            // The driver transmits by itself, and the hardware moderates.
            CopyMode::ZeroCopy => Duration::ZERO,
        }
    }

    fn caps(&self) -> DeviceCaps {
        DeviceCaps { offloads: false }
    }

    fn needs_padding(&self) -> bool {
        true
    }

    fn prepare_sleep(&mut self, magazine: &mut Magazine) -> bool {
        if self.tx_pending {
            self.flush_pending();
        }
        let can_receive = self.socket.prepare_sleep(magazine);
        self.tx_pending && self.state == State::Up || !can_receive && self.state != State::Gone
    }

    fn prepare_close(&mut self, magazine: &mut Magazine) {
        if self.tx_pending {
            self.flush_pending();
        }
        self.socket.reap(magazine);
        // In zero-copy mode the driver transmits the rest, as hardware does with its rings.
        if self.socket.copy_mode() == CopyMode::Copy || self.state != State::Up {
            self.dropped_late += self.socket.unsent_frames();
        }
    }

    fn rx_missed(&mut self) -> u64 {
        if self.observed.take_sample_request() {
            self.samples.begin();
        }
        if self.tx_pending && self.state == State::Down {
            self.flush_pending();
        }
        let total = self.socket.rx_missed() + self.redirect.drop_table.lost(self.number);
        // A netdev that is gone reports 0.
        let changed = total.saturating_sub(self.rx_missed);
        self.rx_missed += changed;
        changed
    }

    fn tx_lost(&mut self) -> u64 {
        let total = self.socket.invalid();
        let changed = total.saturating_sub(self.invalid);
        self.invalid += changed;
        mem::take(&mut self.dropped_late) + changed
    }

    fn xdp_drop(&mut self, group: GroupClass, until: MonoTime) {
        self.redirect.drop_table.set_blocked_until(self.number, group, until);
    }

    fn take_xdp_dropped(&mut self) -> XdpDropped {
        let mut changed = XdpDropped::default();
        for group in GroupClass::ALL {
            let total = self.redirect.drop_table.total(self.number, group);
            let last = mem::replace(&mut self.dropped[group], total);
            changed[group].frames = total.frames.wrapping_sub(last.frames);
            changed[group].bytes = total.bytes.wrapping_sub(last.bytes);
        }
        changed
    }
}

impl Queue {
    /// Subtracts frames of a burst that the device has dropped from those sent. Frames not tried after a drop count
    /// under the same reason.
    #[cold]
    fn correct(&self, sent: &mut TxStats, drops: Drops) {
        sent.frames -= drops.frames.min(sent.frames);
        sent.bytes -= drops.bytes.min(sent.bytes);
        sent.full += drops.frames - drops.refused;
        sent.refused += drops.refused;
        if !self.redirect.running.is_running() {
            sent.link_down += mem::take(&mut sent.full) + mem::take(&mut sent.refused);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netdev_that_was_down_is_up_when_no_frame_waits_for_it() {
        assert_eq!(State::Down.with_pending(true), State::Down);
        assert_eq!(State::Down.with_pending(false), State::Up);
        for state in [State::Up, State::Gone] {
            assert_eq!([false, true].map(|pending| state.with_pending(pending)), [state; 2]);
        }
    }
}
