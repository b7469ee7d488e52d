//! One queue of a netdev, by AF_XDP.
//!
//! Receiving costs no system call: frames stand in slots of the pool when they are found in a ring, and
//! stay there until they are sent. Sending is one call for up to 32 frames where they are copied, and
//! then the driver's work is done within that call.

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::redirect::Redirect;
use crate::device::{Abilities, Device, Group, Shed};
use crate::frame::{Batch, Cache, Copying, Exchange, Fate, Lane, Sent};
use crate::sys::xsk::Kick;
use crate::time::Moment;

/// How long frames that come fast one after the other gather before they are taken. A send is a system call,
/// so that a frame sent alone costs half as much again as one of four; and it is a fifth of the time
/// that waking a sleeping reader takes.
const GATHERING_TIME: Duration = Duration::from_nanos(6_500);

/// A queue, and its share of the program that brings the frames.
#[derive(Debug)]
pub(super) struct Queue {
    exchange: Exchange,
    /// Frames that were missed until it was last asked.
    missed: u64,
    /// Frames wait in the ring that the kernel has not taken yet.
    waiting: bool,
    state: State,
    /// Which of the queues it is.
    number: u32,
    /// What had been shed when it was last asked.
    shed: Shed,
    /// The program goes when the last queue of its netdev does.
    redirect: Arc<Redirect>,
}

/// The state of the netdev, as far as sending has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Down,
    Gone,
}

impl Queue {
    pub(super) fn new(exchange: Exchange, number: u32, redirect: Arc<Redirect>) -> Queue {
        Queue { exchange, missed: 0, waiting: false, state: State::Up, number, shed: Shed::default(), redirect }
    }

    /// Has the kernel send what is in the ring. How many frames the device has dropped.
    #[inline]
    fn push_out(&mut self) -> u64 {
        let mut dropped = 0;
        let mut left = self.exchange.unsent();
        while left > 0 {
            match self.exchange.kick() {
                Kick::Done | Kick::Full => self.state = State::Up,
                Kick::Dropped => dropped += 1,
                Kick::Down => self.state = State::Down,
                Kick::Gone => self.state = State::Gone,
            }
            // Without progress now there is none to be expected soon: the next breath asks again.
            let before = mem::replace(&mut left, self.exchange.unsent());
            if left == before {
                break;
            }
        }
        self.waiting = left > 0;
        dropped
    }
}

impl Device for Queue {
    fn receive(&mut self, batch: &mut Batch, cache: &mut Cache) -> io::Result<()> {
        if self.waiting {
            // They are counted as sent; what the device drops of them shows in its own counters.
            self.push_out();
        }
        if self.state == State::Gone {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.exchange.receive(batch, cache);
        Ok(())
    }

    fn transmit(&mut self, lane: &mut Lane, batch: &Batch, cache: &mut Cache) -> Sent {
        if self.state == State::Down {
            // What is in the ring already tells whether it is up again.
            self.push_out();
        }
        let mut sent = match self.state {
            State::Up => lane.send_owned(batch, cache, |frame| self.exchange.send(frame)),
            State::Down | State::Gone => lane.send_each(batch, cache, |_| Fate::LinkDown),
        };
        self.exchange.flush();
        let dropped = self.push_out().min(sent.frames);
        sent.frames -= dropped;
        sent.full += dropped;
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

    fn missed(&mut self) -> u64 {
        let total = self.exchange.missed();
        // A netdev that is gone tells no more.
        let news = total.saturating_sub(self.missed);
        self.missed += news;
        news
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
