//! When to breathe again, and which gates to look at.
//!
//! A worker that finds nothing to do polls on for a while and then goes to sleep until a device
//! becomes readable or its bell rings (`adaptive`), or goes on polling (`busy`).
//!
//! Sleeping costs the first frame after a pause the time it takes the kernel to wake a thread, and
//! costs whoever sent it an interrupt to another core. Polling costs a core. So how long to poll is
//! learned from how long the pauses are, as hypervisors do it for halted guests: where they are
//! short, polling longer bridges them and the worker never sleeps under load; where they are longer
//! than [`SPIN`], polling is in vain, and the worker soon sleeps at once.
//!
//! A gate that was quiet for a while is left to *rest*: asking epoll once for all resting gates is
//! cheaper than asking each of them. So a worker's speed depends little on how many quiet ports it
//! has.
//!
//! And a gate that is loud is *unwatched*: it is read at each breath anyhow, while for each frame that
//! arrives at a watched descriptor the kernel calls epoll, on the core of whoever sends, and for each that
//! leaves by it as well, on ours. Before the worker sleeps, and before such a gate rests, it is watched again;
//! what has arrived by then is reported at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::Notifier;
use super::queues::{QueueState, QueueTable, RxQueue};
use crate::frame::Magazine;
use crate::sys::event::Poller;
use crate::time::MonoTime;

/// How long an adaptive worker polls in vain before it goes to sleep, at most.
pub const SPIN: Duration = Duration::from_micros(60);

/// And at least.
const MIN_SPIN: Duration = Duration::from_micros(4);

/// Pauses up to this long could have been bridged: [`SPIN`], and what waking up takes.
const SHORT_PAUSE: Duration = Duration::from_micros(90);

/// The longest sleep; a worker that nobody wakes looks up once in this time.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// The longest sleep while a device has work of which no descriptor tells.
const SHORT_SLEEP: Duration = Duration::from_millis(1);

/// Reads in vain after which a gate may rest.
const IDLE_LIMIT: u8 = 64;

/// Bursts from and to a gate since it is watched, after which it is unwatched: so many that the two system
/// calls, one now and one before the next sleep, are nothing beside them.
const BUSY_LIMIT: u8 = 64;

/// Open gates up to which none rests: reading so few is as cheap as asking epoll.
const MIN_WATCHED_QUEUES: usize = 4;

/// The key of the bell; the keys of gates are their numbers.
const NOTIFIER_KEY: u64 = u64::MAX;

/// Whether a worker with nothing to do sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// It polls for [`SPIN`] at most, then sleeps.
    #[default]
    Adaptive,
    /// It never sleeps.
    Busy,
}

#[derive(Debug)]
pub(super) struct IdlePolicy {
    poller: Poller,
    /// Gates without a descriptor: while there are any, sleeping would miss their frames.
    without_fd: usize,
    watched: usize,
    /// Gates that have been loud.
    unwatched: usize,
    /// Whether there has been a gate whose descriptor is watched edge-triggered.
    has_edges: bool,
    busy_until: MonoTime,
    /// How long to poll in vain at present.
    spin: Duration,
}

impl IdlePolicy {
    pub(super) fn new(notifier: &Notifier) -> io::Result<IdlePolicy> {
        let poller = Poller::new()?;
        poller.add(notifier.as_fd(), NOTIFIER_KEY)?;
        Ok(IdlePolicy {
            poller,
            without_fd: 0,
            watched: 0,
            unwatched: 0,
            has_edges: false,
            busy_until: MonoTime::default(),
            spin: SPIN,
        })
    }

    /// Watches a gate that has been opened.
    pub(super) fn watch(&mut self, number: usize, queue: &RxQueue) -> io::Result<()> {
        let Some(fd) = queue.device.fd() else {
            self.without_fd += 1;
            return Ok(());
        };
        let key = number as u64;
        if !queue.device.needs_inspection() {
            return self.poller.add(fd, key);
        }
        self.has_edges = true;
        self.poller.add_edges(fd, key)?;
        let Some(second) = queue.device.second_fd() else { return Ok(()) };
        self.poller.add_edges(second, key).inspect_err(|_| drop(self.poller.remove(fd)))
    }

    /// Removes the descriptors of a gate from the set. Whether they were in it.
    fn remove(&self, queue: &RxQueue, fd: BorrowedFd<'_>) -> bool {
        if let Some(second) = queue.device.second_fd() {
            let _ = self.poller.remove(second);
        }
        self.poller.remove(fd).is_ok()
    }

    /// Watches a gate no longer: it is about to be closed, or its device is gone.
    pub(super) fn remove_queue(&mut self, queue: &mut RxQueue) {
        match queue.device.fd() {
            Some(_) if queue.busy_streak == BUSY_LIMIT => self.unwatched -= 1,
            // The descriptor may be dead already, and out of the set with that.
            Some(fd) => drop(self.remove(queue, fd)),
            None => self.without_fd -= 1,
        }
        queue.busy_streak = 0;
        if queue.state == QueueState::Watched {
            queue.state = QueueState::Polled;
            self.watched -= 1;
        }
    }

    /// Notes that a gate had nothing to read.
    #[inline]
    pub(super) fn record_idle(&mut self, number: usize, queue: &mut RxQueue, open: usize) {
        queue.idle_streak = queue.idle_streak.saturating_add(1);
        if queue.idle_streak >= IDLE_LIMIT
            && open > MIN_WATCHED_QUEUES
            && !queue.never_sleeps
            && self.watch_again(number, queue)
        {
            queue.state = QueueState::Watched;
            self.watched += 1;
        }
    }

    /// Notes that a gate had something to read, or to send.
    #[inline]
    pub(super) fn record_busy(&mut self, queue: &mut RxQueue) {
        if queue.busy_streak < BUSY_LIMIT && queue.state == QueueState::Polled {
            queue.busy_streak += 1;
            if queue.busy_streak == BUSY_LIMIT {
                self.unwatch(queue);
            }
        }
    }

    #[cold]
    fn unwatch(&mut self, queue: &mut RxQueue) {
        match queue.device.fd() {
            Some(fd) if self.remove(queue, fd) => self.unwatched += 1,
            _ => queue.busy_streak = 0,
        }
    }

    /// Whether a gate is watched, if need be again.
    fn watch_again(&mut self, number: usize, queue: &mut RxQueue) -> bool {
        if queue.busy_streak == BUSY_LIMIT {
            if self.watch(number, queue).is_err() {
                return false;
            }
            self.unwatched -= 1;
        }
        queue.busy_streak = 0;
        true
    }

    /// Whether all gates are watched, after those that have been loud are again.
    fn watch_all(&mut self, queues: &mut QueueTable) -> bool {
        for number in 0..queues.len() {
            if self.unwatched == 0 {
                break;
            }
            if let Some(queue) = queues.get_mut(number).filter(|queue| queue.busy_streak == BUSY_LIMIT) {
                self.watch_again(number, queue);
            }
        }
        self.unwatched == 0
    }

    /// Looks which resting gates have something to read.
    #[inline]
    pub(super) fn poll_watched(&mut self, queues: &mut QueueTable, notifier: &Notifier) {
        if self.watched > 0 {
            self.wait(Duration::ZERO, queues, notifier);
        }
    }

    /// Waits for a descriptor. Whether any of those reported has something to do.
    fn wait(&mut self, timeout: Duration, queues: &mut QueueTable, notifier: &Notifier) -> bool {
        let (mut roused, mut has_work) = (0, false);
        let ready = |key, readable: bool| {
            if key == NOTIFIER_KEY {
                notifier.clear();
                has_work = true;
            } else if let Some(queue) = usize::try_from(key).ok().and_then(|number| queues.get_mut(number)) {
                // A frame that has been received already leaves an edge behind.
                if !readable && queue.device.needs_inspection() && !queue.device.inspect() {
                    return;
                }
                has_work = true;
                if queue.state == QueueState::Watched {
                    queue.state = QueueState::Polled;
                    queue.idle_streak = 0;
                    roused += 1;
                }
            }
        };
        // Nothing that a running worker could do about an error of epoll, and none is documented
        // for a valid descriptor: the gates are read at the next breath all the same.
        let _ = self.poller.wait(timeout, ready);
        self.watched -= roused;
        has_work
    }

    /// Notes that there was something to do at `now`.
    #[inline]
    pub(super) fn record_work(&mut self, now: MonoTime) {
        self.busy_until = now;
    }

    /// Whether it is time to sleep, at `now`.
    #[inline]
    pub(super) fn should_sleep(&self, now: MonoTime) -> bool {
        self.without_fd == 0 && now.since(self.busy_until) >= self.spin
    }

    /// Notes that it was woken at `now`, and learns from how long the pause was.
    pub(super) fn record_wakeup(&mut self, now: MonoTime) {
        let pause = now.since(self.busy_until);
        self.spin = if pause <= SHORT_PAUSE { SPIN.min(self.spin * 2) } else { MIN_SPIN.max(self.spin / 2) };
        self.busy_until = now;
    }

    /// Whether a device has work of which no descriptor will tell.
    fn has_silent_work(queues: &mut QueueTable, magazine: &mut Magazine) -> bool {
        let mut any = false;
        for number in 0..queues.len() {
            if let Some(queue) = queues.get_mut(number).filter(|queue| queue.state != QueueState::Gone) {
                any |= queue.device.prepare_sleep(magazine);
            }
        }
        any
    }

    /// Sleeps until something happens. `has_work` looks into mailbox and rings; whatever is put
    /// there after that rings the bell. It does not sleep while there is a gate that it cannot watch, as the
    /// kernel has no memory for that.
    pub(super) fn sleep(
        &mut self,
        queues: &mut QueueTable,
        magazine: &mut Magazine,
        notifier: &Notifier,
        has_news: impl FnOnce() -> bool,
    ) -> bool {
        notifier.prepare_sleep();
        let mut sleeps = self.watch_all(queues) && !has_news();
        if sleeps && self.has_edges {
            // Edges of frames that have been received would end the sleep at once.
            sleeps = !self.wait(Duration::ZERO, queues, notifier);
        }
        if sleeps {
            let timeout = if IdlePolicy::has_silent_work(queues, magazine) { SHORT_SLEEP } else { MAX_SLEEP };
            self.wait(timeout, queues, notifier);
        }
        notifier.wake_up();
        sleeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a worker whose frames come `gap` apart still sleeps, once it has got used to them.
    fn sleeps(gap: Duration) -> bool {
        let mut idle = IdlePolicy::new(&Notifier::new().unwrap()).unwrap();
        let mut now = MonoTime::from_secs(1);
        let mut slept = false;
        for _ in 0..20 {
            idle.record_work(now);
            slept = idle.should_sleep(now + gap);
            now = now + gap;
            if slept {
                idle.record_wakeup(now);
            }
        }
        slept
    }

    #[test]
    fn short_pauses_are_bridged_and_long_ones_slept_through() {
        assert!(!sleeps(Duration::from_micros(10)));
        assert!(!sleeps(Duration::from_micros(55)));
        assert!(sleeps(Duration::from_micros(100)));
        assert!(sleeps(Duration::from_secs(1)));
    }

    #[test]
    fn long_pauses_are_not_polled_through_in_vain() {
        let mut idle = IdlePolicy::new(&Notifier::new().unwrap()).unwrap();
        let mut now = MonoTime::from_secs(1);
        for _ in 0..10 {
            idle.record_work(now);
            now = now + Duration::from_millis(1);
            idle.record_wakeup(now);
        }
        assert!(idle.should_sleep(now + MIN_SPIN));
    }
}
