//! Queue pair of a `packet` port: receive socket with ring, spare receive socket, transmit socket. Uses recvmsg,
//! sendmmsg and socket options.

mod receive;

use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Netdev, offload, remember_stuck_ring};
use crate::device::limit::{ALWAYS_TAKEN, Limit};
use crate::device::{Device, DeviceCaps, Egress, Observed};
use crate::frame::{Batch, FrameRef, FrameRefs, Magazine, TxBatch, TxProgress, TxStats, TxStatus};
use crate::sys::bpf::IngressDrop;
use crate::sys::packet::{Burst, EVERYTHING, Outgoing, Ring, Socket, State};
use crate::sys::running::Running;
use crate::wire::{OffloadSet, Segmenter};

/// Maximum frames per transmit call: the capacity of a [`TxBatch`].
const FRAMES: usize = 192;

/// Maximum fragments per call: header and bytes of each frame, and 17 slots of some GSO packets.
const MAX_IOVECS: usize = 2 * FRAMES + 512;

/// Empty receives after which the netdev and the ring are checked, which costs two system calls. At most as many as a
/// worker makes before it stops polling an idle queue.
const EMPTY_POLLS: u32 = 16;

/// The sockets of a port.
///
/// Frames arrive in a ring: an additional copy, but no system call, at a fiftieth of the cost. Frames longer than a
/// slot, mostly GSO packets, are read from the socket, in order. Frames leave by `sendmmsg`: over a veth, a transmit
/// ring costs 3 to 7 % more (measured by `cargo bench --bench packet`).
///
/// Received frames have a `virtio_net_hdr`; without it, partial checksums and GSO packets could not be recognised.
/// Transmitted frames have one if the port has offloads; without it they cost 5 % less. The header has 10 bytes and is
/// a fragment of its own, which costs the same as 12 bytes contiguous with the frame, and less than a fragment of 12
/// bytes; and a kernel configured for 12 bytes leaves 10 in the ring.
///
/// **The ring can get stuck.** The kernel drops a GSO packet that the header cannot express together with the slot that
/// it was about to use; no further frame arrives in this ring. UDP fragmentation (UFO) is such a kind, which old guests
/// negotiate, and malicious guests may send. (Observed on Linux 6.18. SCTP is another such kind.) It is detected by
/// lost frames although the ring cannot have been full. The spare socket, without a ring, is then bound in its place,
/// within microseconds, in which frames are lost. From then on each frame costs a system call.
///
/// The kernel also wakes waiters of a socket when it loses a frame, although the socket is not readable then. The
/// descriptors are therefore watched edge-triggered, and [`Device::inspect`] checks those reported but not readable.
#[derive(Debug)]
pub(super) struct Queue {
    /// Declared before its socket, so that it is unmapped first.
    ring: Option<Ring>,
    rx_socket: Socket,
    /// Replaces `rx_socket` when the ring is stuck, and is the old one then.
    spare_socket: Option<Socket>,
    /// A stuck ring. Closing it or its socket would take the kernel long.
    stuck: Option<Ring>,
    tx_socket: Socket,
    outgoing: Outgoing,
    egress: Egress,
    observed: Observed,
    offloads: bool,
    netdev: Netdev,
    running: Running,
    /// Keeps received frames from the host's stack, if configured.
    _isolation: Option<IngressDrop>,
    /// Empty receives since the last check.
    empty_polls: u32,
    /// Frames read since the ring was last empty.
    run: usize,
    /// Maximum of `run` since the last check.
    longest_run: usize,
    /// The state of the netdev has to be checked.
    has_error: bool,
    /// The ring reports losses.
    has_losses: bool,
    /// The ring is stuck and still in use.
    ring_stopped: bool,
    /// The ring was ever stuck.
    ring_stuck: bool,
    /// Maximum number of frames left in the socket's queue because they could not be read; their slots were released.
    unread: u32,
    rx_missed: u64,
    /// Errno with which the last receive ended.
    rx_error: Option<i32>,
    /// Learned length limits: of single frames, and of GSO packets.
    limit: Limit,
    gso_limit: Limit,
}

impl Queue {
    /// `spare_socket`: replaces `rx_socket` if its ring gets stuck.
    pub(super) fn new(
        ring: Option<Ring>,
        (rx_socket, spare_socket, tx_socket): (Socket, Option<Socket>, Socket),
        offloads: bool,
        (egress, observed): (Egress, Observed),
        (netdev, running): (Netdev, Running),
    ) -> Queue {
        Queue {
            ring,
            rx_socket,
            spare_socket,
            stuck: None,
            tx_socket,
            outgoing: Outgoing::new(FRAMES, MAX_IOVECS),
            egress,
            observed,
            offloads,
            netdev,
            running,
            _isolation: None,
            empty_polls: 0,
            run: 0,
            longest_run: 0,
            has_error: false,
            has_losses: false,
            ring_stopped: false,
            ring_stuck: false,
            unread: 0,
            rx_missed: 0,
            rx_error: None,
            limit: Limit::new(),
            gso_limit: Limit::new(),
        }
    }

    /// Keeps `isolation` for the life of the queue.
    pub(super) fn isolated(mut self, isolation: Option<IngressDrop>) -> Queue {
        self._isolation = isolation;
        self
    }

    /// Counts frames that were lost before the queue was opened.
    pub(super) fn missed(mut self, frames: u32) -> Queue {
        self.rx_missed += u64::from(frames);
        self
    }

    /// Counts lost frames. Returns whether the ring is stuck.
    fn count_lost(&mut self) -> io::Result<bool> {
        let statistics = self.rx_socket.statistics()?;
        self.rx_missed += u64::from(statistics.lost);
        let longest_run = mem::take(&mut self.longest_run).max(self.run);
        // With a full ring, more frames would have been read in a row.
        let is_stuck = |ring: &Ring| statistics.lost > 0 && longest_run < ring.len() && !ring.has_arrival();
        Ok(self.ring.as_ref().is_some_and(is_stuck))
    }

    /// Continues without the ring: binds the spare socket in its place. Closes nothing, because that would wait for all
    /// cores of the host.
    #[cold]
    fn leave_ring(&mut self) -> io::Result<()> {
        self.ring_stuck = true;
        let Some(spare) = &mut self.spare_socket else { return Err(io::Error::other("its ring is stuck")) };
        spare.bind(self.netdev.index, EVERYTHING)?;
        // Frames lost so far. From here on both sockets count, and only the spare one receives.
        self.rx_missed += u64::from(self.rx_socket.statistics()?.lost);
        mem::swap(spare, &mut self.rx_socket);
        // Frames left in the ring, which the kernel may fill again.
        if let Some(ring) = &mut self.ring {
            self.rx_missed += (0..ring.len()).map_while(|_| ring.arrival().map(drop)).count() as u64;
        }
        self.stuck = self.ring.take();
        self.observed.report_stuck_ring();
        Ok(())
    }

    /// Checks that the netdev exists and is up, counts lost frames, and checks the ring.
    #[cold]
    fn check_health(&mut self) -> io::Result<()> {
        (self.empty_polls, self.has_losses) = (0, false);
        if self.rx_socket.is_troubled() || mem::take(&mut self.has_error) {
            match self.rx_socket.state() {
                State::Up => {} // up again
                State::Down => return Err(io::Error::new(ErrorKind::NetworkDown, "its netdev is down")),
                State::Gone => return Err(io::Error::new(ErrorKind::NotFound, "its netdev is gone")),
            }
        }
        if mem::take(&mut self.ring_stopped) || self.count_lost()? { self.leave_ring() } else { Ok(()) }
    }

    /// Status of the first of `frames`, which the kernel did not send for `error`.
    #[cold]
    fn tx_status(&mut self, error: &io::Error, frames: &FrameRefs<'_>, was_full: bool) -> TxStatus {
        let Some(frame) = frames.clone().next() else { return TxStatus::Full };
        let (len, offload) = (frame.frame.len(), frame.frame.offload());
        match error.raw_os_error() {
            // Twice in a row: the device is full, not just this frame too long.
            Some(libc::EAGAIN) if was_full => TxStatus::Full,
            Some(libc::EAGAIN) => TxStatus::NoRoom,
            Some(libc::ENOMEM) => TxStatus::NoBuffer,
            // No carrier: the guest has set the peer of the veth down. Asked once for frames in a row.
            Some(libc::ENOBUFS) if !was_full && !self.running.is_running() => TxStatus::LinkDown,
            Some(libc::ENOBUFS) if offload.is_gso() => {
                let is_whole = Segmenter::new(frame.head, frame.tail(), len, offload).is_ok();
                if !is_whole || self.gso_limit.refuses(1) { TxStatus::Refused } else { TxStatus::NoRoom }
            }
            Some(libc::ENOBUFS) if len <= ALWAYS_TAKEN => {
                if was_full {
                    TxStatus::Full
                } else {
                    TxStatus::NoRoom
                }
            }
            Some(libc::ENOBUFS) => {
                if self.limit.refuses(len) {
                    TxStatus::Refused
                } else {
                    TxStatus::NoRoom
                }
            }
            Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) if self.tx_socket.state() != State::Up => {
                self.has_error = true;
                TxStatus::LinkDown
            }
            _ => TxStatus::Refused,
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.ring_stuck {
            remember_stuck_ring(&self.netdev);
        }
    }
}

impl Device for Queue {
    fn receive(&mut self, batch: &mut Batch, _: &mut Magazine) -> io::Result<()> {
        let before = batch.len();
        if self.ring.is_some() {
            self.receive_ring(batch)?;
        } else {
            self.receive_each(batch);
        }
        if batch.len() == before {
            self.empty_polls += 1;
        }
        if self.empty_polls >= EMPTY_POLLS || self.has_error || self.has_losses || self.ring_stopped {
            self.check_health()
        } else {
            Ok(())
        }
    }

    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        let takes = self.egress.get();
        let mut was_full = false;
        tx.send_bursts(batch, magazine, |frame_refs| {
            let mut burst = self.outgoing.burst();
            let filled = fill(&mut burst, frame_refs.clone(), self.offloads, takes);
            let frames = burst.len();
            if frames == 0 {
                return TxProgress { sent: 0, status: if filled.refused { TxStatus::Refused } else { TxStatus::Full } };
            }
            match burst.send(&self.tx_socket) {
                Ok(sent) => {
                    was_full = false;
                    let (max_len, longest_gso) =
                        if sent == frames { filled.max_len } else { max_lens(frame_refs.take(sent)) };
                    self.limit.passed(max_len);
                    self.gso_limit.passed(longest_gso);
                    TxProgress { sent, status: TxStatus::Sent }
                }
                Err(e) => {
                    let status = self.tx_status(&e, &frame_refs, was_full);
                    was_full = status == TxStatus::NoRoom;
                    TxProgress { sent: 0, status }
                }
            }
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.rx_socket.as_fd())
    }

    fn caps(&self) -> DeviceCaps {
        DeviceCaps { offloads: self.offloads }
    }

    fn needs_padding(&self) -> bool {
        true
    }

    fn offload_set(&self) -> OffloadSet {
        self.egress.get()
    }

    fn second_fd(&self) -> Option<BorrowedFd<'_>> {
        self.spare_socket.as_ref().map(Socket::as_fd)
    }

    fn needs_inspection(&self) -> bool {
        true
    }

    fn inspect(&mut self) -> bool {
        match self.count_lost() {
            Ok(is_stuck) => self.ring_stopped |= is_stuck,
            // `check_health` finds the cause.
            Err(_) => self.has_error = true,
        }
        self.has_error |= self.rx_socket.is_troubled();
        self.has_error || self.ring_stopped
    }

    fn rx_error(&self) -> Option<i32> {
        self.rx_error
    }

    fn report_rx_error(&self, errno: Option<i32>) {
        self.observed.report_rx_error(errno);
    }

    fn rx_missed(&mut self) -> u64 {
        mem::take(&mut self.rx_missed)
    }

    /// A receive call that failed leaves queued frames, which no further edge reports.
    fn prepare_sleep(&mut self, _: &mut Magazine) -> bool {
        self.ring.is_none() && self.rx_socket.is_readable()
    }
}

/// Result of [`fill`].
struct Filled {
    /// It ends before a frame that cannot be sent.
    refused: bool,
    /// Maximum length of single frames, and 1 if there is a GSO packet.
    max_len: (u32, u32),
}

/// Adds frames to a burst until it is full or a frame cannot be sent.
#[inline]
fn fill<'b>(burst: &mut Burst<'_, 'b>, frames: FrameRefs<'b>, has_header: bool, takes: OffloadSet) -> Filled {
    let mut filled = Filled { refused: false, max_len: (0, 0) };
    for frame_ref in frames {
        let FrameRef { frame, head, .. } = frame_ref;
        // Without a header the receiver could not complete this frame.
        if !frame_ref.is_supported_by(takes) {
            filled.refused = true;
            break;
        }
        let header = has_header.then(|| offload::to_packet(frame.offload()));
        let taken = if frame_ref.is_contiguous() {
            burst.push(header, std::iter::once(head))
        } else {
            burst.push(header, std::iter::once(head).chain(frame_ref.tail()))
        };
        if !taken {
            filled.refused = burst.is_empty();
            break;
        }
        count_length(&frame_ref, &mut filled.max_len);
    }
    filled
}

#[inline(always)]
fn count_length(frame: &FrameRef<'_>, (max_len, longest_gso): &mut (u32, u32)) {
    if frame.frame.offload().is_gso() {
        *longest_gso = 1;
    } else {
        *max_len = frame.frame.len().max(*max_len);
    }
}

/// Maximum length of single frames, and 1 if there is a GSO packet.
#[cold]
fn max_lens<'b>(frames: impl Iterator<Item = FrameRef<'b>>) -> (u32, u32) {
    let mut max_len = (0, 0);
    frames.for_each(|frame| count_length(&frame, &mut max_len));
    max_len
}
