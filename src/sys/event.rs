//! epoll, and an eventfd that wakes it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

/// Descriptors that one call reports at most; the others are reported by the next.
const READY: usize = 64;

/// A set of file descriptors to wait for, each with a number that tells it apart.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Reports `key` whenever `fd` is readable.
    pub fn add(&self, fd: BorrowedFd<'_>, key: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(key), epoll::EventFlags::IN)?)
    }

    /// Reports `key` each time that something happens at `fd`, once, also if that does not make it readable. For
    /// descriptors that are always writable.
    pub fn add_edges(&self, fd: BorrowedFd<'_>, key: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(key), flags)?)
    }

    /// Forgets `fd`.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Calls `ready` with the key of each descriptor to report, and whether it is readable; waits for the first of them
    /// as long as `timeout`, and not at all if that is zero.
    pub fn wait(&self, patience: Duration, mut ready: impl FnMut(u64, bool)) -> io::Result<()> {
        let mut events = [MaybeUninit::uninit(); READY];
        let timeout = Timespec::try_from(patience).map_err(|_| Errno::INVAL)?;
        match epoll::wait(&self.0, &mut events, Some(&timeout)) {
            Ok((events, _)) => {
                for event in events {
                    let flags = event.flags;
                    ready(event.data.u64(), flags.contains(epoll::EventFlags::IN));
                }
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Something to be woken by from another thread.
#[derive(Debug)]
pub struct Signal(OwnedFd);

impl Signal {
    /// A signal that is not raised.
    pub fn new() -> io::Result<Signal> {
        Ok(Signal(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable until it is cleared.
    pub fn raise(&self) {
        // It fails only when it was raised 2^64 - 2 times and never cleared: it is up then.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable again.
    pub fn clear(&self) {
        // It fails only when it is not up.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
