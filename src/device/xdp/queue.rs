//! One queue of a netdev, by AF_XDP.
//!
//! Receiving costs no system call: frames stand in slots of the pool when they are found in a ring, and
//! stay there until they are sent. Sending is one call for up to 32 frames where they are copied, and
//! then the driver's work is done within that call.
//!
//! What the kernel answers to such a call concerns one frame, and the others go on:
//!
//! * EBUSY: the device has dropped one frame, as its queue is full, it has no carrier, or the frame is too long for what
//!   is behind it. The frame dies for that reason, and the call is made again for those behind it. As long as nothing but
//!   drops for lack of room comes of it, a burst costs one call: its first frame is tried, and the others share its lot.
//! * EAGAIN, ENOBUFS, ENOMEM and whatever else there may be: nothing was dropped. The frames wait in the ring, in order,
//!   and are tried again soon. They count as sent; if they are lost in the end, that is counted beside.
//! * ENETDOWN: the netdev is set down, and so is this queue, until a frame in the ring leaves. ENXIO: it is gone.

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

/// How long frames that come fast one after the other gather before they are taken. A send is a system call,
/// so that a frame sent alone costs half as much again as one of four; and it is a fifth of the time
/// that waking a sleeping reader takes.
const MODERATION_TIME: Duration = Duration::from_nanos(6_500);

/// Reads after which frames that wait are tried again, at most, if they were tried in vain before: each try costs a
/// system call, which others of the worker wait for.
const MAX_POLLS_BETWEEN: u8 = 63;

/// A queue, and its share of the program that brings the frames.
#[derive(Debug)]
pub(super) struct Queue {
    socket: XskQueue,
    /// Frames that were missed until it was last asked.
    rx_missed: u64,
    /// Frames that count as sent, wait in the ring, and that the kernel has not taken yet.
    tx_pending: bool,
    /// Reads before these are tried again.
    reads_left: u8,
    /// And how many there were before the last try.
    reads_between: u8,
    state: State,
    /// The last frame that was tried has been dropped.
    dropping: bool,
    /// How long frames may be.
    limit: Limit,
    /// Whether it has ever dropped a frame. From then on the lengths in each burst are of interest.
    has_dropped: bool,
    lengths: Lengths,
    /// Frames that counted as sent when the device dropped them, since it was last asked.
    dropped_late: u64,
    /// Frames that the kernel did not take for such until it was last asked.
    invalid: u64,
    /// Which of the queues it is.
    number: u32,
    /// What had been shed when it was last asked.
    dropped: XdpDropped,
    /// The program goes when the last queue of its netdev does.
    redirect: Arc<Redirect>,
    /// Received frames that are sampled, and what comes of it.
    samples: Samples,
    observed: Observed,
}

/// The state of the netdev, as far as sending has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Down,
    Gone,
}

/// Frames of one burst that the device has dropped.
#[derive(Debug, Clone, Copy, Default)]
struct Drops {
    frames: u64,
    bytes: u64,
    /// Those of them that were refused for their length.
    refused: u64,
    /// The longest of them, and how many are so long.
    max_len: (u32, u32),
}

/// How long the frames of a burst are, once a frame has been dropped: which lengths pass is of interest then.
#[derive(Debug, Clone, Copy, Default)]
struct Lengths {
    max_len: u32,
    /// How many are so long.
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

    /// The longest frame of the burst, if it is known to have passed.
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

    /// Has the kernel send what is in the ring. Notes what the device has dropped of a burst that begins at position
    /// `first`.
    #[inline]
    fn flush(&mut self, first: u32, drops: &mut Drops) {
        let mut left = self.socket.unsent();
        while left > 0 {
            match self.socket.kick() {
                Kick::Done | Kick::Full => (self.state, self.dropping) = (State::Up, false),
                Kick::Dropped => {
                    (self.state, self.dropping) = (State::Up, true);
                    self.count_dropped(first, drops);
                }
                Kick::Down => self.state = State::Down,
                Kick::Gone => self.state = State::Gone,
            }
            // Without progress now there is none to be expected soon: it is tried again later.
            let before = mem::replace(&mut left, self.socket.unsent());
            if left == before {
                break;
            }
        }
        self.tx_pending = left > 0;
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
                    // That says nothing of those behind it.
                    drops.refused += 1;
                    self.dropping = false;
                }
            }
            Some(_) => self.dropped_late += 1,
            None => {}
        }
    }

    /// Looks at one received frame.
    #[cold]
    fn sample(&mut self, batch: &Batch, index: usize) {
        if self.samples.take(batch.frame_ref(index).head) {
            self.observed.report_partial_checksums();
        }
    }

    /// Notes how long the frames of a burst were that have passed: their mean, until a frame has been dropped.
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

    /// Tries again to send what waits.
    #[cold]
    fn flush_pending(&mut self) {
        let before = self.socket.unsent();
        // All of it counts as sent already.
        self.flush(self.socket.position(), &mut Drops::default());
        // A driver that works without a copy takes them by itself, and is only asked to when it says so.
        let is_asked = self.socket.copy_mode() == CopyMode::Copy;
        let in_vain = is_asked && self.tx_pending && self.socket.unsent() == before;
        self.reads_between =
            if in_vain { (self.reads_between.saturating_mul(2) + 1).min(MAX_POLLS_BETWEEN) } else { 0 };
        self.reads_left = self.reads_between;
    }

    /// Tries the same now and then, while its worker reads on.
    #[cold]
    fn flush_pending_sometimes(&mut self) {
        match self.reads_left.checked_sub(1) {
            Some(left) => self.reads_left = left,
            None => self.flush_pending(),
        }
    }

    /// Leaves a frame of the burst that begins at position `first` to the kernel. After a drop one frame is tried, and
    /// no other as long as that is dropped as well.
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
        // Of a netdev that is down nothing is to be expected before somebody sets it up: that shows with the next
        // burst, or when there is time.
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
            // What is in the ring already tells whether it is up again.
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

    /// It is a look into a ring.
    fn is_cheap_to_poll(&self) -> bool {
        true
    }

    /// What comes in here mostly leaves by another such queue.
    fn moderation_time(&self) -> Duration {
        match self.socket.copy_mode() {
            CopyMode::Copy => MODERATION_TIME,
            // The driver sends by itself, and the hardware moderates.
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
        // A driver that works without a copy is about to send what is left, as hardware is with what is in its rings.
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
        // A netdev that is gone tells no more.
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
    /// Takes what the device has dropped of a burst out of what was sent. What was not even tried after that died of the
    /// same.
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
