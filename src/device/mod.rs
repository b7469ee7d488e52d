//! How frames enter and leave the process.
//!
//! A [`Device`] is one queue pair. It is opened and closed on the control side, where it may block
//! and allocate; in between it travels to a worker and is polled there, by nobody else.
//!
//! [`open`] is the one place that tells the kinds apart. A new kind is a file or folder here, a
//! variant of [`Settings`] and an arm in [`open`]. `memory` is a cable between two ends in this
//! process, for tests and benches; `pcap` and `fault` are devices around a device.

use std::io;
use std::os::fd::BorrowedFd;

use crate::frame::{Batch, Cache, Lane, Sent};

pub mod memory;

/// One queue pair, polled by one worker. No call waits, and none allocates once warm.
pub trait Device: Send {
    /// Appends what has arrived to `batch` until the batch is full or nothing is left. Frames may
    /// own slots taken from `cache`, or lie in memory that is lent until [`Device::release`].
    ///
    /// An error means that the device is gone for good; it will not be asked again.
    fn receive(&mut self, batch: &mut Batch, cache: &mut Cache) -> io::Result<()>;

    /// Sends what waits in `lane`, in order, in as few calls as it can. The lane is empty
    /// afterwards, and the answer says what became of its frames. `batch` is the burst from which
    /// frames are borrowed.
    fn transmit(&mut self, lane: &mut Lane, batch: &Batch, cache: &mut Cache) -> Sent;

    /// The burst that this device was last asked for is over: memory that it lent is its own again.
    fn release(&mut self) {}

    /// Becomes readable when there is something to receive. `None`: only asking tells, so that a
    /// worker which holds this device never sleeps.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// What frames it can send.
    fn abilities(&self) -> Abilities;
}

/// What a device can do with the frames it is to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// It takes the offload header along: open checksums and super-frames pass.
    pub offloads: bool,
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn receive(&mut self, batch: &mut Batch, cache: &mut Cache) -> io::Result<()> {
        (**self).receive(batch, cache)
    }
    fn transmit(&mut self, lane: &mut Lane, batch: &Batch, cache: &mut Cache) -> Sent {
        (**self).transmit(lane, batch, cache)
    }
    fn release(&mut self) {
        (**self).release();
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).fd()
    }
    fn abilities(&self) -> Abilities {
        (**self).abilities()
    }
}
