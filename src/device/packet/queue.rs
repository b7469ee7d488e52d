//! Queue pair of a `packet` port: receive socket with ring, spare receive socket, transmit socket.

use std::io::{self, ErrorKind, IoSliceMut};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Netdev, offload, remember_stuck_ring};
use crate::device::limit::{ALWAYS_TAKEN, Limit};
use crate::device::{Device, DeviceCaps, Egress, Observed};
use crate::frame::{BURST, Batch, FrameRef, FrameRefs, HEADROOM, Magazine, TxBatch, TxProgress, TxStats, TxStatus};
use crate::sys::bpf::IngressDrop;
use crate::sys::packet::{Arrival, Burst, EVERYTHING, HEADER, Outgoing, Received, Ring, Socket, State, Tag};
use crate::wire::{OffloadSet, Segmenter, TAG_LEN};

/// Frames that are sent in one call, at most: what a lane holds.
const FRAMES: usize = 192;

/// Their pieces, at most: header and bytes of each, and the 17 slots of some super-frames.
const MAX_IOVECS: usize = 2 * FRAMES + 512;

/// Where in a receive buffer a tag goes that the kernel has taken out.
const GAP: usize = HEADROOM + Tag::AT;

/// Receives in vain after which we look whether all is well, which takes two system calls. Not more than
/// a worker makes before it leaves a quiet port alone (`QUIET` of its pace).
const EMPTY_POLLS: u32 = 16;

/// A port's sockets.
///
/// Frames come in by a ring: copied once more, but without a system call, at a fiftieth of the cost.
/// Those that do not fit its slots, super-frames before all, are fetched from the socket, in their turn.
/// Frames go out by `sendmmsg`: over a veth, a transmit ring costs 3 to 7 % more (`cargo bench --bench
/// packet` measures what is here).
///
/// What is received has an offload header in front: without one, nobody could tell which frames are not
/// finished. What is sent has one if the port has offloads; without it costs 5 % less. The header has 10
/// bytes and is sent as a piece of its own, which costs the same as 12 bytes in one piece with the frame,
/// and less than 12 in a piece of their own; and a kernel that is told of 12 leaves 10 in the ring.
///
/// **The ring can come to a halt.** A GSO packet of a kind that the header has no word for is dropped
/// by the kernel, and with it the slot that it was about to use: no frame comes in any more, by this
/// ring. UDP fragmentation is such a kind, which old guests ask for, and any guest can that wants to do
/// harm. (Seen with Linux 6.18. SCTP has no word either.) It is noticed by frames being lost though the ring
/// cannot have been full. The spare socket, which has been waiting without a ring, is bound in its place then: a
/// matter of microseconds, in which frames are lost. From then on each frame takes a system call.
///
/// The kernel wakes those who wait for a socket also when it loses a frame, though the socket is not readable then. So
/// the descriptors are watched edge-triggered, and looked at when they are reported and not readable.
#[derive(Debug)]
pub(super) struct Queue {
    /// Before its socket, so that it is unmapped before.
    ring: Option<Ring>,
    rx_socket: Socket,
    /// Takes the place of `rx_socket` when the ring has come to a halt, and is the other one then.
    spare_socket: Option<Socket>,
    /// A ring that has come to a halt. To close it, or its socket, would take the kernel long.
    stuck: Option<Ring>,
    tx_socket: Socket,
    outgoing: Outgoing,
    egress: Egress,
    observed: Observed,
    offloads: bool,
    netdev: Netdev,
    /// What keeps its frames from the host's stack, if that is asked for.
    _isolation: Option<IngressDrop>,
    /// Receives that found nothing, since the last look.
    empty_polls: u32,
    /// Frames read since the ring was last seen empty.
    run: usize,
    /// The most of these since the last look.
    longest_run: usize,
    /// Whether there is reason to ask what has become of the netdev.
    has_error: bool,
    /// Whether the ring tells of losses.
    has_losses: bool,
    /// Whether the ring has come to a halt, and is still to be left.
    ring_stopped: bool,
    /// Whether the ring has ever come to a halt.
    ring_stuck: bool,
    rx_missed: u64,
    /// How long frames may be that are sent: those without, and those with segments.
    limit: Limit,
    gso_limit: Limit,
}

/// Why no frame has landed.
enum RxError {
    /// There is none.
    Empty,
    /// There was one.
    Lost,
    /// There was one that exceeds a receive buffer.
    Oversize { len: usize, is_ipv4: bool },
    /// There was one that is not what the ring says.
    Truncated,
}

impl Queue {
    /// `spare_socket`: a socket that is to take the place of `rx_socket`, should its ring come to a halt.
    pub(super) fn new(
        ring: Option<Ring>,
        (rx_socket, spare_socket, tx_socket): (Socket, Option<Socket>, Socket),
        offloads: bool,
        (egress, observed): (Egress, Observed),
        netdev: Netdev,
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
            _isolation: None,
            empty_polls: 0,
            run: 0,
            longest_run: 0,
            has_error: false,
            has_losses: false,
            ring_stopped: false,
            ring_stuck: false,
            rx_missed: 0,
            limit: Limit::new(),
            gso_limit: Limit::new(),
        }
    }

    /// The same, which holds this as long as it is open.
    pub(super) fn isolated(mut self, isolation: Option<IngressDrop>) -> Queue {
        self._isolation = isolation;
        self
    }

    /// Receives from the ring.
    #[inline]
    fn receive_ring(&mut self, batch: &mut Batch) -> io::Result<()> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        // Also of what is lost, no more is seen to in one go.
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
            match receive_queued(&arrival, &self.rx_socket, &mut self.has_error, batch) {
                Ok(()) => {}
                Err(RxError::Empty | RxError::Lost) => self.rx_missed += 1,
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
                    // A frame whose offloads have no form in the header: the kernel has dropped it.
                    Err(e) if e.kind() == ErrorKind::InvalidInput => Err(RxError::Lost),
                    Err(_) => {
                        self.has_error = true;
                        Err(RxError::Empty)
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
            }
        }
    }

    /// Counts what was lost. Whether the ring has come to a halt.
    fn count_lost(&mut self) -> io::Result<bool> {
        let statistics = self.rx_socket.statistics()?;
        self.rx_missed += u64::from(statistics.lost);
        let longest_run = mem::take(&mut self.longest_run).max(self.run);
        // Was the ring ever full, more frames would have been read from it in a row.
        let is_stuck = |ring: &Ring| statistics.lost > 0 && longest_run < ring.len() && !ring.has_arrival();
        Ok(self.ring.as_ref().is_some_and(is_stuck))
    }

    /// Goes on without the ring: the spare socket is bound in place of that of the ring. Nothing is closed, which would
    /// wait for all cores of the host.
    #[cold]
    fn leave_ring(&mut self) -> io::Result<()> {
        self.ring_stuck = true;
        let Some(spare) = &mut self.spare_socket else { return Err(io::Error::other("its ring has come to a halt")) };
        spare.bind(self.netdev.index, EVERYTHING)?;
        // What was lost until now. From here on both count, and only the spare one receives.
        self.rx_missed += u64::from(self.rx_socket.statistics()?.lost);
        mem::swap(spare, &mut self.rx_socket);
        self.stuck = self.ring.take();
        self.observed.report_stuck_ring();
        Ok(())
    }

    /// Looks whether the netdev is still there and up, what was lost, and whether the ring still turns.
    #[cold]
    fn check_health(&mut self) -> io::Result<()> {
        (self.empty_polls, self.has_losses) = (0, false);
        if self.rx_socket.is_troubled() || mem::take(&mut self.has_error) {
            match self.rx_socket.state() {
                State::Up => {} // again
                State::Down => return Err(io::Error::new(ErrorKind::NetworkDown, "its netdev was set down")),
                State::Gone => return Err(io::Error::new(ErrorKind::NotFound, "its netdev is gone")),
            }
        }
        if mem::take(&mut self.ring_stopped) || self.count_lost()? { self.leave_ring() } else { Ok(()) }
    }

    /// What became of the first of `frames`, which the kernel did not send and `error` says why.
    #[cold]
    fn tx_status(&mut self, error: &io::Error, frames: &FrameRefs<'_>, was_full: bool) -> TxStatus {
        let Some(frame) = frames.clone().next() else { return TxStatus::Full };
        let (len, offload) = (frame.frame.len(), frame.frame.offload());
        match error.raw_os_error() {
            // Twice in a row it is the device, and not this frame.
            Some(libc::EAGAIN) if was_full => TxStatus::Full,
            Some(libc::EAGAIN) => TxStatus::NoRoom,
            Some(libc::ENOMEM) => TxStatus::NoBuffer,
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
            // `check_health` finds out why.
            Err(_) => self.has_error = true,
        }
        self.has_error |= self.rx_socket.is_troubled();
        self.has_error || self.ring_stopped
    }

    fn rx_missed(&mut self) -> u64 {
        mem::take(&mut self.rx_missed)
    }
}

/// What was put into a burst.
struct Filled {
    /// Whether it ends before a frame that cannot be sent.
    refused: bool,
    /// The longest frame of those without segments, and 1 if there is one with segments.
    max_len: (u32, u32),
}

/// Puts frames into a burst until it is full, or one comes that cannot be sent.
#[inline]
fn fill<'b>(burst: &mut Burst<'_, 'b>, frames: FrameRefs<'b>, has_header: bool, takes: OffloadSet) -> Filled {
    let mut filled = Filled { refused: false, max_len: (0, 0) };
    for frame_ref in frames {
        let FrameRef { frame, head, .. } = frame_ref;
        // Without a header nobody could tell that this frame is not finished.
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

/// The longest frame without segments, and 1 if there is one with segments.
#[cold]
fn max_lens<'b>(frames: impl Iterator<Item = FrameRef<'b>>) -> (u32, u32) {
    let mut max_len = (0, 0);
    frames.for_each(|frame| count_length(&frame, &mut max_len));
    max_len
}

/// Lets a frame of the ring land, its tag put back.
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

/// Lets a frame land that is longer than a slot, from the queue of its socket.
#[cold]
fn receive_queued(
    arrival: &Arrival<'_>,
    rx_socket: &Socket,
    has_error: &mut bool,
    batch: &mut Batch,
) -> Result<(), RxError> {
    if !arrival.is_queued() {
        return Err(RxError::Lost); // there was no room for it
    }
    batch.receive(true, |room| {
        let is_ok = HEADROOM + arrival.len + TAG_LEN <= room.len();
        let gap = if arrival.tag.is_some() { TAG_LEN } else { 0 };
        let (first, rest) = room.split_at_mut(GAP);
        let mut iovecs = [IoSliceMut::new(&mut first[HEADROOM - HEADER..]), IoSliceMut::new(&mut rest[gap..])];
        let read = rx_socket.receive_pieces(&mut iovecs).or_else(|_| {
            // What befalls the netdev is told once, in place of a frame.
            *has_error = true;
            rx_socket.receive_pieces(&mut iovecs)
        });
        match read {
            Ok(read) if is_ok && read == HEADER + arrival.len => Ok(finish(room, arrival.len, arrival.tag)),
            Ok(_) if is_ok => Err(RxError::Truncated),
            Ok(_) => Err(RxError::Oversize { len: arrival.len, is_ipv4: offload::is_tcpv4(arrival.header()) }),
            Err(_) => Err(RxError::Lost),
        }
    })
}

/// Makes what a packet socket has written into `room` what a batch wants there. The frame is in its
/// place, `len` bytes long but for the tag that the kernel has taken out, and has a gap for that. Its
/// header stands before it. How much all that is.
#[inline(always)]
fn finish(room: &mut [u8], len: usize, tag: Option<Tag>) -> usize {
    room.copy_within(HEADROOM - HEADER..HEADROOM, 0);
    room[HEADER..HEADROOM].fill(0);
    HEADROOM + len + tag.map_or(0, |tag| put_back(room, tag))
}

/// Puts a tag into its gap, and shifts what the header says of the bytes behind it.
#[inline(never)]
fn put_back(room: &mut [u8], tag: Tag) -> usize {
    room[GAP..GAP + TAG_LEN].copy_from_slice(&tag.bytes());
    if let Some(header) = room.first_chunk_mut() {
        *header = offload::behind_tag(header);
    }
    TAG_LEN
}
