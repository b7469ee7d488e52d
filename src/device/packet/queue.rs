//! Queue pair of a `packet` port: receive socket with ring, spare receive socket, transmit socket. Uses recvmsg,
//! sendmmsg and socket options.

use std::io::{self, ErrorKind, IoSliceMut};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Netdev, offload, remember_stuck_ring};
use crate::device::limit::{ALWAYS_TAKEN, Limit};
use crate::device::{Device, DeviceCaps, Egress, Observed};
use crate::frame::{BURST, Batch, FrameRef, FrameRefs, HEADROOM, Magazine, TxBatch, TxProgress, TxStats, TxStatus};
use crate::sys::bpf::IngressDrop;
use crate::sys::packet::{Arrival, Burst, EVERYTHING, HEADER, Outgoing, Received, Ring, Socket, State, Tag};
use crate::sys::running::Running;
use crate::wire::{OffloadSet, Segmenter, TAG_LEN};

/// Maximum frames per transmit call: the capacity of a [`TxBatch`].
const FRAMES: usize = 192;

/// Maximum fragments per call: header and bytes of each frame, and 17 slots of some GSO packets.
const MAX_IOVECS: usize = 2 * FRAMES + 512;

/// Offset in a receive buffer of a tag that the kernel has removed.
const GAP: usize = HEADROOM + Tag::AT;

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

/// Why no frame was received.
enum RxError {
    /// No frame is pending.
    Empty,
    /// A frame was lost.
    Lost,
    /// A frame exceeds the receive buffer and was lost.
    Oversize { len: usize, is_ipv4: bool },
    /// The call failed; a frame may still be queued.
    Failed,
    /// A frame is shorter than the ring states.
    Truncated,
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

    /// Receives from the ring.
    #[inline]
    fn receive_ring(&mut self, batch: &mut Batch) -> io::Result<()> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        // Lost frames count towards the maximum as well.
        for _ in 0..BURST {
            if batch.is_full() {
                break;
            }
            let Some(arrival) = ring.arrival() else {
                self.run = 0;
                break;
            };
            self.run += 1;
            self.longest_run = self.longest_run.max(self.run);
            self.has_losses |= arrival.tells_of_losses();
            if arrival.is_whole() {
                receive_frame(&arrival, batch);
                continue;
            }
            match receive_queued(&arrival, &self.rx_socket, (&mut self.unread, &mut self.has_error), batch) {
                Ok(()) => {}
                Err(RxError::Empty | RxError::Failed | RxError::Lost) => self.rx_missed += 1,
                Err(RxError::Oversize { len, is_ipv4 }) => {
                    self.observed.report_oversize(len, is_ipv4);
                    self.rx_missed += 1;
                }
                Err(RxError::Truncated) => {
                    drop(arrival);
                    self.rx_missed += 1;
                    return self.leave_ring();
                }
            }
        }
        Ok(())
    }

    /// Receives from the socket.
    fn receive_each(&mut self, batch: &mut Batch) {
        self.rx_error = None;
        for _ in 0..BURST {
            if batch.is_full() {
                break;
            }
            let in_buffer = batch.receive(true, |room| {
                // The header ends where the frame begins.
                let end = room.len() - TAG_LEN;
                match self.rx_socket.receive(&mut room[HEADROOM - HEADER..end]) {
                    Ok(None) => Err(RxError::Empty),
                    Ok(Some(received)) if received.len < HEADER => Err(RxError::Lost),
                    Ok(Some(Received { len, cut: true, .. })) => {
                        let is_ipv4 = offload::is_tcpv4(&room[HEADROOM - HEADER..]);
                        Err(RxError::Oversize { len: len - HEADER, is_ipv4 })
                    }
                    Ok(Some(Received { len, tag, .. })) => {
                        let tag = tag.filter(|_| len >= HEADER + Tag::AT);
                        if tag.is_some() {
                            let end = HEADROOM - HEADER + len;
                            room.copy_within(GAP..end, GAP + TAG_LEN);
                        }
                        Ok(finish(room, len - HEADER, tag))
                    }
                    // EINVAL: the header cannot express its offloads; the kernel has dropped the frame.
                    Err(e) if e.kind() == ErrorKind::InvalidInput => Err(RxError::Lost),
                    Err(e) => {
                        let is_transient = matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM));
                        self.rx_error = e.raw_os_error().filter(|_| !is_transient);
                        Err(RxError::Failed)
                    }
                }
            });
            match in_buffer {
                Ok(()) => {}
                Err(RxError::Empty) => break,
                Err(RxError::Lost | RxError::Truncated) => self.rx_missed += 1,
                Err(RxError::Oversize { len, is_ipv4 }) => {
                    self.observed.report_oversize(len, is_ipv4);
                    self.rx_missed += 1;
                }
                // A socket error is returned once instead of a frame.
                Err(RxError::Failed) if !self.has_error => self.has_error = true,
                Err(RxError::Failed) => break,
            }
        }
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

/// Copies a frame from the ring into the batch and restores its tag.
#[inline(always)]
fn receive_frame(arrival: &Arrival<'_>, batch: &mut Batch) {
    let bytes = arrival.bytes();
    let _ = batch.receive::<std::convert::Infallible>(true, |room| {
        room[HEADROOM - HEADER..HEADROOM].copy_from_slice(arrival.header());
        match arrival.tag {
            None => room[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes),
            Some(_) => {
                let (addresses, rest) = bytes.split_at(Tag::AT);
                room[HEADROOM..GAP].copy_from_slice(addresses);
                room[GAP + TAG_LEN..GAP + TAG_LEN + rest.len()].copy_from_slice(rest);
            }
        }
        Ok(finish(room, bytes.len(), arrival.tag))
    });
}

/// Reads a frame longer than a slot from the socket's queue into the batch. Skips up to `unread` frames before it that
/// could not be read when their slots were released.
#[cold]
fn receive_queued(
    arrival: &Arrival<'_>,
    rx_socket: &Socket,
    (unread, has_error): (&mut u32, &mut bool),
    batch: &mut Batch,
) -> Result<(), RxError> {
    if !arrival.is_queued() {
        return Err(RxError::Lost); // the receive buffer was full
    }
    let gap = if arrival.tag.is_some() { TAG_LEN } else { 0 };
    batch.receive(true, |room| {
        let is_ok = HEADROOM + arrival.len + TAG_LEN <= room.len();
        for _ in 0..BURST {
            let (first, rest) = room.split_at_mut(GAP);
            let mut iovecs = [IoSliceMut::new(&mut first[HEADROOM - HEADER..]), IoSliceMut::new(&mut rest[gap..])];
            let read = rx_socket.receive_pieces(&mut iovecs).or_else(|_| {
                // A socket error is returned once instead of a frame.
                *has_error = true;
                rx_socket.receive_pieces(&mut iovecs)
            });
            let Ok(read) = read else { break };
            match begins_with(room, gap, arrival.bytes()) {
                true if !is_ok => {
                    return Err(RxError::Oversize { len: arrival.len, is_ipv4: offload::is_tcpv4(arrival.header()) });
                }
                true if read == HEADER + arrival.len => return Ok(finish(room, arrival.len, arrival.tag)),
                _ => *unread = unread.checked_sub(1).ok_or(RxError::Truncated)?,
            }
        }
        // It still waits there, before the next one.
        *unread += 1;
        Err(RxError::Lost)
    })
}

/// True if the frame in `room`, with a gap of `gap` bytes for its tag, begins with these bytes.
fn begins_with(room: &[u8], gap: usize, bytes: &[u8]) -> bool {
    let (addresses, rest) = bytes.split_at(bytes.len().min(Tag::AT));
    room[HEADROOM..].starts_with(addresses) && room[GAP + gap..].starts_with(rest)
}

/// Converts what a packet socket has written into `room` to the batch's layout: the header before the frame, `len`
/// bytes at `HEADROOM`, with a gap for a removed tag. Returns the total length.
#[inline(always)]
fn finish(room: &mut [u8], len: usize, tag: Option<Tag>) -> usize {
    room.copy_within(HEADROOM - HEADER..HEADROOM, 0);
    room[HEADER..HEADROOM].fill(0);
    HEADROOM + len + tag.map_or(0, |tag| put_back(room, tag))
}

/// Writes a tag into its gap, and adjusts the header's offsets.
#[inline(never)]
fn put_back(room: &mut [u8], tag: Tag) -> usize {
    room[GAP..GAP + TAG_LEN].copy_from_slice(&tag.bytes());
    if let Some(header) = room.first_chunk_mut() {
        *header = offload::behind_tag(header);
    }
    TAG_LEN
}
