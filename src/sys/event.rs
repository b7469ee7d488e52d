//! epoll, and an eventfd to wake it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::io::Errno;

/// Maximum descriptors reported per call; the next call reports the rest.
const READY: usize = 64;

/// An epoll set. Each descriptor has a key.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Adds `fd`, level-triggered: reports `key` while it is readable.
    pub fn add(&self, fd: BorrowedFd<'_>, key: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(key), epoll::EventFlags::IN)?)
    }

    /// Adds `fd`, edge-triggered: reports `key` once per event, readable or not. For descriptors that are always
    /// writable.
    pub fn add_edges(&self, fd: BorrowedFd<'_>, key: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(key), flags)?)
    }

    /// Removes `fd`.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Waits up to `timeout`, which may be zero, and calls `ready` for each reported descriptor with its key and
    /// whether it is readable.
    pub fn wait(&self, timeout: Duration, mut ready: impl FnMut(u64, bool)) -> io::Result<()> {
        let mut events = [MaybeUninit::uninit(); READY];
        let timeout = Timespec::try_from(timeout).map_err(|_| Errno::INVAL)?;
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

/// Whether epoll would report `fd` now: it is readable, or has an error.
pub fn is_ready(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// An eventfd: another thread raises it to wake this one.
#[derive(Debug)]
pub struct Signal(OwnedFd);

impl Signal {
    /// Creates a signal that is not raised.
    pub fn new() -> io::Result<Signal> {
        Ok(Signal(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable until [`clear`](Signal::clear).
    pub fn raise(&self) {
        // Fails only if the counter is at its maximum: then it is raised already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable.
    pub fn clear(&self) {
        // Fails only if it is not raised.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
