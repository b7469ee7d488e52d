//! Wakes a sleeping worker (eventfd).
//!
//! Writing to a polling worker must cost no system call. A writer to a mailbox or ring therefore writes first and
//! then checks whether the worker sleeps. A worker sets its sleep flag first and then checks its mailbox and rings.
//! With a full fence on both sides at least one of the two sees the other's write: no wake-up is lost.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::sync::atomic::{AtomicBool, Ordering, fence};
use crate::sys::event::Signal;

/// Wake-up handle of one worker, shared by all who write to it.
#[derive(Debug, Clone)]
pub struct Notifier(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    asleep: AtomicBool,
    signal: Signal,
}

impl Notifier {
    /// Creates the notifier of an awake worker. Fails if the eventfd cannot be created.
    pub fn new() -> io::Result<Notifier> {
        Ok(Notifier(Arc::new(Inner { asleep: AtomicBool::new(false), signal: Signal::new()? })))
    }

    /// Wakes the worker if it sleeps. Call it after writing to the mailbox or ring.
    #[inline]
    pub fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.0.asleep.load(Ordering::Relaxed) && self.0.asleep.swap(false, Ordering::Relaxed) {
            self.0.signal.raise();
        }
    }

    /// Puts the worker to sleep: `wait` waits for the descriptor unless `has_news`, which checks the mailbox and
    /// rings. Both return whether that is so: news, and whether it slept. Writes before the check raised no
    /// notification, later ones do.
    pub(super) fn sleep(&self, has_news: impl FnOnce() -> bool, wait: impl FnOnce() -> bool) -> bool {
        self.0.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let slept = !has_news() && wait();
        self.0.asleep.store(false, Ordering::Relaxed);
        slept
    }

    /// Clears the notification: the descriptor is unreadable until the next one.
    pub(super) fn clear(&self) {
        self.0.signal.clear();
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.signal.as_fd()
    }
}
