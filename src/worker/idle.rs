//! Idle policy: when a worker sleeps, and which queues it polls.
//!
//! An idle worker polls for a while and then sleeps until a descriptor becomes readable or it is notified
//! (`adaptive`), or never sleeps (`busy`).
//!
//! Sleeping costs the first frame after a pause the kernel's thread wake-up, and costs its sender an
//! inter-processor interrupt. Polling costs a core. The polling time therefore adapts to the length of the pauses,
//! as hypervisors do for halted guests: polling longer bridges short pauses, so that a worker never sleeps under
//! load; if pauses exceed [`SPIN`], the worker soon sleeps at once.
//!
//! A queue that was empty for `IDLE_LIMIT` polls is no longer polled; epoll watches it (*watched*). One epoll
//! call for all watched queues is cheaper than polling each, so that idle ports cost a worker little.
//!
//! The descriptor of a busy queue is removed from epoll (*unwatched*). The queue is polled anyway, while the kernel
//! calls epoll for each frame that arrives at a watched descriptor, on the sender's core, and for each transmitted
//! frame, on ours. The descriptor is added again before the worker sleeps or the queue becomes watched; epoll then
//! reports frames that have already arrived.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::Notifier;
use super::queues::QueueTable;
use super::rx_queue::{QueueState, RxQueue};
use crate::frame::Magazine;
use crate::sys::event::Poller;
use crate::time::MonoTime;

/// Maximum time that an idle adaptive worker polls before it sleeps.
pub const SPIN: Duration = Duration::from_micros(60);

/// Minimum of the same.
const MIN_SPIN: Duration = Duration::from_micros(4);

/// Pauses up to this length could have been bridged: [`SPIN`] plus the wake-up time.
const SHORT_PAUSE: Duration = Duration::from_micros(90);

/// Maximum sleep of a worker that nobody wakes.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// Maximum sleep while a device has work that no descriptor reports.
const SHORT_SLEEP: Duration = Duration::from_millis(1);

/// Empty receives in a row after which epoll watches a queue.
const IDLE_LIMIT: u8 = 64;

/// Bursts received or sent while watched, after which a queue is unwatched: enough to make the two system calls
/// (remove now, add before the next sleep) negligible.
const BUSY_LIMIT: u8 = 64;

/// With at most this many open queues none is watched: polling them is as cheap as epoll.
const MIN_WATCHED_QUEUES: usize = 4;

/// Epoll key of the notifier; the keys of queues are their numbers.
const NOTIFIER_KEY: u64 = u64::MAX;

/// Whether an idle worker sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// Polls for at most [`SPIN`], then sleeps.
    #[default]
    Adaptive,
    /// Never sleeps.
    Busy,
}

#[derive(Debug)]
pub(super) struct IdlePolicy {
    poller: Poller,
    /// Queues without a descriptor: while there are any, the worker does not sleep, because it would miss their
    /// frames.
    without_fd: usize,
    watched: usize,
    /// Busy queues whose descriptors are removed from epoll.
    unwatched: usize,
    /// Whether any queue has had an edge-triggered descriptor.
    has_edges: bool,
    busy_until: MonoTime,
    /// Current polling time before sleep.
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

    /// Adds the descriptors of an opened queue to epoll.
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

    /// Removes the descriptors of a queue from epoll. Returns whether they were in it.
    fn remove(&self, queue: &RxQueue, fd: BorrowedFd<'_>) -> bool {
        if let Some(second) = queue.device.second_fd() {
            let _ = self.poller.remove(second);
        }
        self.poller.remove(fd).is_ok()
    }

    /// Stops watching a queue that is being closed or whose device is gone.
    pub(super) fn remove_queue(&mut self, queue: &mut RxQueue) {
        match queue.device.fd() {
            Some(_) if queue.busy_streak == BUSY_LIMIT => self.unwatched -= 1,
            // The descriptor may already be dead, and thereby out of the set.
            Some(fd) => drop(self.remove(queue, fd)),
            None => self.without_fd -= 1,
        }
        queue.busy_streak = 0;
        self.watched -= usize::from(queue.state == QueueState::Watched);
        if matches!(queue.state, QueueState::Watched | QueueState::Failing) {
            queue.state = QueueState::Polled;
        }
    }

    /// Records an empty receive.
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

    /// Records a burst received or sent.
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

    /// Adds an unwatched queue to epoll. Returns whether it is watched now.
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

    /// Adds all unwatched queues to epoll. Returns whether all are watched now.
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

    /// Asks epoll which watched queues are readable, and polls these again.
    #[inline]
    pub(super) fn poll_watched(&mut self, queues: &mut QueueTable, notifier: &Notifier) {
        if self.watched > 0 {
            self.wait(Duration::ZERO, queues, notifier);
        }
    }

    /// Waits for a descriptor. Returns whether any reported one has work.
    fn wait(&mut self, timeout: Duration, queues: &mut QueueTable, notifier: &Notifier) -> bool {
        let (mut roused, mut has_work) = (0, false);
        let ready = |key, readable: bool| {
            if key == NOTIFIER_KEY {
                notifier.clear();
                has_work = true;
            } else if let Some(queue) = usize::try_from(key).ok().and_then(|number| queues.get_mut(number)) {
                // An edge may stem from a frame that has already been received.
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
        // A running worker cannot handle an epoll error, and none is documented for a valid descriptor. The next
        // `poll_once` receives from the polled queues regardless.
        let _ = self.poller.wait(timeout, ready);
        self.watched -= roused;
        has_work
    }

    /// Records work at `now`.
    #[inline]
    pub(super) fn record_work(&mut self, now: MonoTime) {
        self.busy_until = now;
    }

    /// Whether to sleep at `now`.
    #[inline]
    pub(super) fn should_sleep(&self, now: MonoTime) -> bool {
        self.without_fd == 0 && now.since(self.busy_until) >= self.spin
    }

    /// Records a wake-up at `now` and adapts the polling time to the length of the pause.
    pub(super) fn record_wakeup(&mut self, now: MonoTime) {
        let pause = now.since(self.busy_until);
        self.spin = if pause <= SHORT_PAUSE { SPIN.min(self.spin * 2) } else { MIN_SPIN.max(self.spin / 2) };
        self.busy_until = now;
    }

    /// Prepares devices for sleep. Returns whether any has work that no descriptor reports.
    fn has_silent_work(queues: &mut QueueTable, magazine: &mut Magazine) -> bool {
        let mut any = false;
        for number in 0..queues.len() {
            let is_used = |queue: &&mut RxQueue| !matches!(queue.state, QueueState::Gone | QueueState::Failing);
            if let Some(queue) = queues.get_mut(number).filter(is_used) {
                any |= queue.device.prepare_sleep(magazine);
            }
        }
        any
    }

    /// Sleeps until a descriptor is readable or the worker is notified. `has_news` checks the mailbox and rings;
    /// later writes to them notify. Does not sleep while a queue cannot be watched for lack of kernel memory.
    /// Returns whether it slept.
    pub(super) fn sleep(
        &mut self,
        queues: &mut QueueTable,
        magazine: &mut Magazine,
        notifier: &Notifier,
        has_news: impl FnOnce() -> bool,
    ) -> bool {
        if !self.watch_all(queues) {
            return false;
        }
        notifier.sleep(has_news, || {
            // Edges of frames that have already been received would end the sleep at once.
            if self.has_edges && self.wait(Duration::ZERO, queues, notifier) {
                return false;
            }
            let timeout = if IdlePolicy::has_silent_work(queues, magazine) { SHORT_SLEEP } else { MAX_SLEEP };
            self.wait(timeout, queues, notifier);
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a worker with this gap between frames still sleeps, once adapted.
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
    fn long_pauses_are_slept_through_at_once() {
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
