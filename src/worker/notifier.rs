//! How a sleeping worker is woken.
//!
//! A worker that polls must not cost those who write to it a system call. So whoever has put
//! something into a worker's mailbox or ring looks first whether it sleeps; and a worker that is
//! about to sleep says so first, and looks into its mailbox and rings again after that. With a full
//! fence on both sides at least one of the two sees the other: no wake-up is lost.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crate::sys::event::Signal;

/// The bell of one worker. Anybody may ring it.
#[derive(Debug, Clone)]
pub struct Notifier(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    asleep: AtomicBool,
    signal: Signal,
}

impl Notifier {
    /// A bell whose worker is awake.
    pub fn new() -> io::Result<Notifier> {
        Ok(Notifier(Arc::new(Inner { asleep: AtomicBool::new(false), signal: Signal::new()? })))
    }

    /// Wakes the worker if it sleeps. To be called after what it shall see has been written.
    #[inline]
    pub fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.0.asleep.load(Ordering::Relaxed) && self.0.asleep.swap(false, Ordering::Relaxed) {
            self.0.signal.raise();
        }
    }

    /// Says that the worker is about to sleep. What it finds in its mailbox and rings after this
    /// call was not announced; what comes later will be.
    pub(super) fn prepare_sleep(&self) {
        self.0.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that the worker is awake again.
    pub(super) fn wake_up(&self) {
        self.0.asleep.store(false, Ordering::Relaxed);
    }

    /// Takes note of the ringing: the descriptor is unreadable until the bell is rung again.
    pub(super) fn clear(&self) {
        self.0.signal.clear();
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.signal.as_fd()
    }
}
