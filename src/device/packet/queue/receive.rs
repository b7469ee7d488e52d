//! Receives frames from the ring of a packet socket, and from its queue by recvmsg. Restores removed tags.

use std::io::{self, ErrorKind, IoSliceMut};

use super::Queue;
use crate::device::packet::offload;
use crate::frame::{BURST, Batch, HEADROOM};
use crate::sys::packet::{Arrival, HEADER, Received, Socket, Tag};
use crate::wire::TAG_LEN;

/// Offset in a receive buffer of a tag that the kernel has removed.
const GAP: usize = HEADROOM + Tag::AT;

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
    /// Receives from the ring.
    #[inline]
    pub(super) fn receive_ring(&mut self, batch: &mut Batch) -> io::Result<()> {
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
    pub(super) fn receive_each(&mut self, batch: &mut Batch) {
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
