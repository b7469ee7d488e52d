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
use crate::device::{Abilities, Device, Group, Observed, Shed};
use crate::frame::{Batch, Cache, Copying, Exchange, Fate, Frame, Lane, Sent};
use crate::sys::xsk::Kick;
use crate::time::Moment;

/// How long frames that come fast one after the other gather before they are taken. A send is a system call,
/// so that a frame sent alone costs half as much again as one of four; and it is a fifth of the time
/// that waking a sleeping reader takes.
const GATHERING_TIME: Duration = Duration::from_nanos(6_500);

/// Reads after which frames that wait are tried again, at most, if they were tried in vain before: each try costs a
/// system call, which others of the worker wait for.
const MOST_READS_BETWEEN: u8 = 63;

/// A queue, and its share of the program that brings the frames.
#[derive(Debug)]
pub(super) struct Queue {
    exchange: Exchange,
    /// Frames that were missed until it was last asked.
    missed: u64,
    /// Frames that count as sent, wait in the ring, and that the kernel has not taken yet.
    waiting: bool,
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
    shed: Shed,
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
    longest: (u32, u32),
}

/// How long the frames of a burst are, once a frame has been dropped: which lengths pass is of interest then.
#[derive(Debug, Clone, Copy, Default)]
struct Lengths {
    longest: u32,
    /// How many are so long.
    count: u32,
}

impl Lengths {
    #[cold]
    fn add(&mut self, len: u32) {
        if len > self.longest {
            *self = Lengths { longest: len, count: 0 };
        }
        self.count += u32::from(len == self.longest);
    }

    /// The longest frame of the burst, if it is known to have passed.
    fn passed(self, drops: Drops) -> Option<u32> {
        let (dropped, count) = drops.longest;
        (self.longest > dropped || self.longest == dropped && self.count > count).then_some(self.longest)
    }
}

impl Queue {
    pub(super) fn new(exchange: Exchange, number: u32, redirect: Arc<Redirect>, observed: Observed) -> Queue {
        Queue {
            exchange,
            missed: 0,
            waiting: false,
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
            shed: Shed::default(),
            redirect,
            samples: Samples::default(),
            observed,
        }
    }

    /// Has the kernel send what is in the ring. Notes what the device has dropped of a burst that begins at position
    /// `first`.
    #[inline]
    fn push_out(&mut self, first: u32, drops: &mut Drops) {
        let mut left = self.exchange.unsent();
        while left > 0 {
            match self.exchange.kick() {
                Kick::Done | Kick::Full => (self.state, self.dropping) = (State::Up, false),
                Kick::Dropped => {
                    (self.state, self.dropping) = (State::Up, true);
                    self.note_dropped(first, drops);
                }
                Kick::Down => self.state = State::Down,
                Kick::Gone => self.state = State::Gone,
            }
            // Without progress now there is none to be expected soon: it is tried again later.
            let before = mem::replace(&mut left, self.exchange.unsent());
            if left == before {
                break;
            }
        }
        self.waiting = left > 0;
    }

    #[cold]
    fn note_dropped(&mut self, first: u32, drops: &mut Drops) {
        match self.exchange.dropped() {
            Some(dropped) if dropped.is_since(first) => {
                self.has_dropped = true;
                drops.frames += 1;
                drops.bytes += dropped.bytes;
                let len = u32::try_from(dropped.bytes).unwrap_or(u32::MAX);
                let (longest, count) = drops.longest;
                drops.longest = (longest.max(len), if len > longest { 1 } else { count + u32::from(len == longest) });
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
        if self.samples.take(batch.view(index).head) {
            self.observed.note_partial_checksums();
        }
    }

    /// Notes how long the frames of a burst were that have passed: their mean, until a frame has been dropped.
    #[inline]
    fn note_passed(&mut self, sent: Sent, drops: Drops) {
        if self.has_dropped {
            if let Some(len) = self.lengths.passed(drops) {
                self.limit.passed(len);
            }
        } else if sent.bytes > sent.frames * u64::from(self.limit.longest()) {
            self.limit.passed(u32::try_from(sent.bytes.div_ceil(sent.frames)).unwrap_or_default());
        }
    }

    /// Tries again to send what waits.
    #[cold]
    fn push_out_waiting(&mut self) {
        let before = self.exchange.unsent();
        // All of it counts as sent already.
        self.push_out(self.exchange.position(), &mut Drops::default());
        // A driver that works without a copy takes them by itself, and is only asked to when it says so.
        let is_asked = self.exchange.copying() == Copying::Copies;
        let in_vain = is_asked && self.waiting && self.exchange.unsent() == before;
        self.reads_between =
            if in_vain { (self.reads_between.saturating_mul(2) + 1).min(MOST_READS_BETWEEN) } else { 0 };
        self.reads_left = self.reads_between;
    }

    /// Tries the same now and then, while its worker reads on.
    #[cold]
    fn push_out_in_time(&mut self) {
        match self.reads_left.checked_sub(1) {
            Some(left) => self.reads_left = left,
            None => self.push_out_waiting(),
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
        self.exchange.send(frame)
    }

    #[cold]
    fn try_one(&mut self, frame: &mut Frame, first: u32, drops: &mut Drops) -> bool {
        if drops.frames > drops.refused || !self.exchange.send(frame) {
            return false;
        }
        self.exchange.flush();
        self.push_out(first, drops);
        true
    }
}

impl Device for Queue {
    fn receive(&mut self, batch: &mut Batch, cache: &mut Cache) -> io::Result<()> {
        // Of a netdev that is down nothing is to be expected before somebody sets it up: that shows with the next
        // burst, or when there is time.
        if self.waiting && self.state == State::Up {
            self.push_out_in_time();
        }
        if self.state == State::Gone {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let before = batch.len();
        self.exchange.receive(batch, cache);
        if self.samples.is_due() && batch.len() > before {
            self.sample(batch, before);
        }
        Ok(())
    }

    fn transmit(&mut self, lane: &mut Lane, batch: &Batch, cache: &mut Cache) -> Sent {
        if self.state == State::Down {
            // What is in the ring already tells whether it is up again.
            self.push_out_waiting();
        }
        if self.state != State::Up {
            let sent = lane.send_each(batch, cache, |_| Fate::LinkDown);
            self.exchange.reap(cache);
            return sent;
        }
        let (first, mut drops) = (self.exchange.position(), Drops::default());
        self.lengths = Lengths::default();
        let mut sent = lane.send_owned(batch, cache, |frame| self.send(frame, first, &mut drops));
        self.exchange.flush();
        self.push_out(first, &mut drops);
        if drops.frames > 0 {
            self.correct(&mut sent, drops);
        }
        if !self.waiting {
            self.note_passed(sent, drops);
        }
        self.exchange.reap(cache);
        sent
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.exchange.fd()
    }

    /// It is a look into a ring.
    fn is_cheap_to_ask(&self) -> bool {
        true
    }

    /// What comes in here mostly leaves by another such queue.
    fn gathering_time(&self) -> Duration {
        match self.exchange.copying() {
            Copying::Copies => GATHERING_TIME,
            // The driver sends by itself, and the hardware moderates.
            Copying::None => Duration::ZERO,
        }
    }

    fn abilities(&self) -> Abilities {
        Abilities { offloads: false }
    }

    fn leads_to_wire(&self) -> bool {
        true
    }

    fn prepare_sleep(&mut self, cache: &mut Cache) -> bool {
        if self.waiting {
            self.push_out_waiting();
        }
        let can_receive = self.exchange.prepare_sleep(cache);
        self.waiting && self.state == State::Up || !can_receive && self.state != State::Gone
    }

    fn prepare_close(&mut self, cache: &mut Cache) {
        if self.waiting {
            self.push_out_waiting();
        }
        self.exchange.reap(cache);
        // A driver that works without a copy is about to send what is left, as hardware is with what is in its rings.
        if self.exchange.copying() == Copying::Copies || self.state != State::Up {
            self.dropped_late += self.exchange.unsent_frames();
        }
    }

    fn missed(&mut self) -> u64 {
        if self.observed.take_turn() {
            self.samples.begin();
        }
        if self.waiting && self.state == State::Down {
            self.push_out_waiting();
        }
        let total = self.exchange.missed() + self.redirect.shedding.lost(self.number);
        // A netdev that is gone tells no more.
        let news = total.saturating_sub(self.missed);
        self.missed += news;
        news
    }

    fn tx_lost(&mut self) -> u64 {
        let total = self.exchange.invalid();
        let news = total.saturating_sub(self.invalid);
        self.invalid += news;
        mem::take(&mut self.dropped_late) + news
    }

    fn shed(&mut self, group: Group, until: Moment) {
        self.redirect.shedding.shed(self.number, group, until);
    }

    fn was_shed(&mut self) -> Shed {
        let mut news = Shed::default();
        for group in Group::ALL {
            let total = self.redirect.shedding.total(self.number, group);
            let last = mem::replace(&mut self.shed[group], total);
            news[group].frames = total.frames.wrapping_sub(last.frames);
            news[group].bytes = total.bytes.wrapping_sub(last.bytes);
        }
        news
    }
}

impl Queue {
    /// Takes what the device has dropped of a burst out of what was sent. What was not even tried after that died of the
    /// same.
    #[cold]
    fn correct(&self, sent: &mut Sent, drops: Drops) {
        sent.frames -= drops.frames.min(sent.frames);
        sent.bytes -= drops.bytes.min(sent.bytes);
        sent.full += drops.frames - drops.refused;
        sent.refused += drops.refused;
        if !self.redirect.running.is_running() {
            sent.link_down += mem::take(&mut sent.full) + mem::take(&mut sent.refused);
        }
    }
}
