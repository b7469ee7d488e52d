//! Queue of a tap: read and write system calls on its file descriptor, one per frame.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};

use crate::device::{Device, DeviceCaps, Observed};
use crate::frame::{Batch, FrameRef, Magazine, TxBatch, TxStats, TxStatus};
use crate::sys::tun::{NoFrame, Queue, Unsent};
use crate::wire::{Offload, OffloadSet};

/// Maximum fragments of a written frame: its header, and 64 KiB in slots.
const MAX_IOVECS: usize = 20;

/// Maximum frames per receive; takes some 25 µs.
const MAX_BURST: usize = 32;

const _: () = assert!(Offload::LEN == 12, "the length that `set_offloads` configures");

/// One queue of a tap.
#[derive(Debug)]
pub(super) struct Tap {
    queue: Queue,
    /// Each frame has a `virtio_net_hdr` in front.
    header: bool,
    /// Offloads that the device accepts.
    takes: OffloadSet,
    /// Frames that the kernel could not deliver, since the last query.
    rx_missed: u64,
    /// Errno with which the last receive ended.
    rx_error: Option<i32>,
    observed: Observed,
}

impl Tap {
    /// A queue whose frames have a `virtio_net_hdr` in front if `header`, and that accepts the offloads `takes`.
    pub(super) fn new(queue: Queue, header: bool, takes: OffloadSet, observed: Observed) -> Tap {
        Tap { queue, header, takes, rx_missed: 0, rx_error: None, observed }
    }

    #[inline]
    fn send(&self, frame: &FrameRef<'_>) -> Result<(), Unsent> {
        match (self.header, frame.with_header) {
            (true, Some(all)) if frame.is_contiguous() => self.queue.write(all),
            // Without the header the receiver could not complete this frame.
            (false, _) if frame.frame.offload().needs_offload() => Err(Unsent::Refused),
            (false, _) if frame.is_contiguous() => self.queue.write(frame.head),
            _ => self.send_pieces(frame),
        }
    }

    fn send_pieces(&self, frame: &FrameRef<'_>) -> Result<(), Unsent> {
        let header = frame.frame.offload().write();
        let header: &[u8] = if self.header { &header } else { &[] };
        let mut iovecs = [IoSlice::new(&[]); MAX_IOVECS];
        let mut used = 0;
        for part in [header, frame.head].into_iter().chain(frame.tail()) {
            *iovecs.get_mut(used).ok_or(Unsent::Refused)? = IoSlice::new(part);
            used += 1;
        }
        self.queue.write_pieces(&iovecs[..used])
    }
}

impl Device for Tap {
    fn receive(&mut self, batch: &mut Batch, _: &mut Magazine) -> io::Result<()> {
        self.rx_error = None;
        // Lost frames count towards the maximum as well.
        for _ in 0..MAX_BURST {
            if batch.is_full() {
                break;
            }
            match batch.receive(self.header, |room| self.queue.read(room)) {
                Ok(()) => {}
                Err(NoFrame::Empty) => break,
                Err(NoFrame::Lost) => self.rx_missed += 1,
                Err(NoFrame::Failed(error)) => {
                    self.rx_error = Some(error.raw_os_error());
                    break;
                }
                Err(NoFrame::Gone(e)) => return Err(e),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        let mut was_full = false;
        tx.send_each(batch, magazine, |frame| {
            let status = match self.send(&frame) {
                Ok(()) => TxStatus::Sent,
                // Twice in a row: the device is full, not just this frame too long.
                Err(Unsent::Full) if was_full => return TxStatus::Full,
                Err(Unsent::Full) => TxStatus::NoRoom,
                Err(Unsent::NoMemory) => TxStatus::NoBuffer,
                Err(Unsent::Down) => TxStatus::LinkDown,
                Err(Unsent::Refused) => TxStatus::Refused,
            };
            was_full = status == TxStatus::NoRoom;
            status
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.as_fd())
    }

    fn max_burst(&self) -> usize {
        MAX_BURST
    }

    fn caps(&self) -> DeviceCaps {
        DeviceCaps { offloads: self.header }
    }

    /// The host may forward frames from the netdev to a NIC.
    fn needs_padding(&self) -> bool {
        true
    }

    fn offload_set(&self) -> OffloadSet {
        self.takes
    }

    fn rx_error(&self) -> Option<i32> {
        self.rx_error
    }

    fn report_rx_error(&self, errno: Option<i32>) {
        self.observed.report_rx_error(errno);
    }

    fn rx_missed(&mut self) -> u64 {
        std::mem::take(&mut self.rx_missed)
    }
}
