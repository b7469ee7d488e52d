//! What the sender of a frame has left to the next hop, done here: its checksum, or its division into
//! the frames that it stands for.
//!
//! A frame is only read. What comes of it is told frame by frame, and is written to wherever the caller
//! wants it: bytes of our own (headers, a checksum), and bytes of the frame, which are copied once.
//!
//! A checksum is completed wherever it stands, whatever is around it: the field holds what the sender
//! wants to have added (virtio 1.x, 5.1.6.2), the sum of the pseudo-header. Dividing needs more
//! insight. TCP over IPv4 and IPv6, and UDP over both, are divided, under any VLAN tags and with options and
//! extension headers, each frame as its sender would have sent it alone. All else is refused: a frame
//! that is not understood would be divided wrongly.

mod headers;
mod pieces;

use thiserror::Error;

use self::headers::{Headers, MOST_HEADERS, Seat};
use self::pieces::Pieces;
use super::checksum::Checksum;
use super::offload::{BadOffload, Offload};

/// Where the checksum of UDP, UDP-Lite and DCCP stands in their headers; of no protocol else.
const UDP_CSUM: u16 = 6;

/// Why a frame cannot be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unfinishable {
    /// Its offload header does not fit it.
    #[error("its offload header does not fit it: {0}")]
    BadOffload(#[from] BadOffload),
    /// It has more bytes of headers than anybody needs.
    #[error("its headers are longer than {MOST_HEADERS} bytes")]
    TooManyHeaders,
    /// Its headers are not what its offload header says, or are none at all.
    #[error("its headers are not those of its segmentation type")]
    Contradiction,
    /// Its lengths do not agree with each other.
    #[error("the lengths in its headers are not its own")]
    Lengths,
    /// It is a part of a packet already.
    #[error("it is a fragment")]
    Fragment,
    /// What is to be divided is inside something else: a tunnel, IPsec.
    #[error("what is to be divided is inside a tunnel")]
    Tunnel,
}

/// A frame that is being finished. `R`: the pieces of it behind the first.
#[derive(Debug)]
pub struct Finishing<'a, R> {
    work: Work,
    /// What of the frame has not been given out.
    bytes: Pieces<'a, R>,
    /// Room for the bytes of ours in one frame.
    own: [u8; MOST_HEADERS],
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // it is made once and stays where it is
enum Work {
    /// The checksum from `start` on, to be put to `field`.
    Checksum {
        start: usize,
        field: usize,
        len: u32,
        is_udp: bool,
    },
    /// Frames of `size` bytes of payload; `left` is left of it.
    Segments {
        headers: Headers,
        size: u16,
        left: u32,
        next: Seat,
    },
    Done,
}

/// One frame that is finished: bytes to be written out from first to last.
#[derive(Debug, Clone)]
pub struct Finished<'f, 'a, R> {
    len: u32,
    /// Bytes of the frame it comes from that come first.
    lead: usize,
    /// Then these,
    own: &'f [u8],
    /// in the place of so many of that frame; and then the rest.
    instead: usize,
    bytes: Pieces<'a, R>,
}

impl<'a, R: Iterator<Item = &'a [u8]> + Clone> Finishing<'a, R> {
    /// Begins with a frame of `len` bytes: `head`, with all its headers, and `tail`.
    pub fn new(head: &'a [u8], tail: R, len: u32, offload: Offload) -> Result<Finishing<'a, R>, Unfinishable> {
        let parts = offload.segmentation(head, len)?;
        let mut bytes = Pieces::new(head, tail);
        let work = match offload.gso() {
            Some(gso) => {
                let headers = Headers::read(head, parts.headers, len, gso, offload)?;
                bytes.skip(headers.len());
                let left = len - u32::from(parts.headers);
                let next = Seat { index: 0, before: 0, payload: 0, is_last: false };
                Work::Segments { headers, size: offload.segment_size(), left, next }
            }
            None if offload.is_pending() => {
                let start = usize::from(offload.csum_start());
                let field = start + usize::from(offload.csum_offset());
                Work::Checksum { start, field, len, is_udp: offload.csum_offset() == UDP_CSUM }
            }
            None => return Err(Unfinishable::Contradiction),
        };
        Ok(Finishing { work, bytes, own: [0; MOST_HEADERS] })
    }

    /// Whether it is a super-frame, which is divided.
    pub fn is_division(&self) -> bool {
        matches!(self.work, Work::Segments { .. })
    }

    /// The next frame that comes of it; as many as
    /// [`Segmentation::frames`](super::Segmentation::frames) says.
    pub fn finish_next(&mut self) -> Option<Finished<'_, 'a, R>> {
        match self.work {
            Work::Checksum { start, field, len, is_udp } => {
                let mut read = self.bytes.clone();
                read.skip(start);
                let checksum = sum(&mut read, len as usize - start).finish();
                self.own[..2].copy_from_slice(&if is_udp { closed(checksum) } else { checksum });
                self.work = Work::Done;
                let bytes = self.bytes.clone();
                Some(Finished { len, lead: field, own: &self.own[..2], instead: 2, bytes })
            }
            Work::Segments { ref headers, size, ref mut left, ref mut next } => {
                if *left == 0 && next.index > 0 {
                    return None;
                }
                next.payload = u16::try_from(*left).map_or(size, |left| left.min(size));
                *left -= u32::from(next.payload);
                next.is_last = *left == 0;
                let bytes = self.bytes.clone();
                let payload = sum(&mut self.bytes, usize::from(next.payload));
                let own = headers.write(*next, payload, &mut self.own);
                #[allow(clippy::cast_possible_truncation)] // MOST_HEADERS at most
                let len = own.len() as u32 + u32::from(next.payload);
                next.index += 1;
                next.before += u32::from(next.payload);
                Some(Finished { len, lead: 0, own, instead: 0, bytes })
            }
            Work::Done => None,
        }
    }
}

/// The sum of the next `len` bytes.
fn sum<'a>(bytes: &mut Pieces<'a, impl Iterator<Item = &'a [u8]>>, len: usize) -> Checksum {
    let mut sum = Checksum::default();
    bytes.read(len, |part| sum.add(part));
    sum
}

/// A checksum of UDP, in which zero would mean that there is none (RFC 768).
fn closed(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0; 2] { [0xff; 2] } else { checksum }
}

impl<'a, R: Iterator<Item = &'a [u8]>> Finished<'_, 'a, R> {
    /// Bytes of it.
    #[allow(clippy::len_without_is_empty)] // there is a header in each
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Fills `room` with the next bytes of it.
    #[inline]
    pub fn fill(&mut self, room: &mut [u8]) {
        let (lead, room) = room.split_at_mut(self.lead.min(room.len()));
        self.bytes.copy_to(lead);
        self.lead -= lead.len();
        let (own, room) = room.split_at_mut(self.own.len().min(room.len()));
        let (now, later) = self.own.split_at(own.len());
        own.copy_from_slice(now);
        self.own = later;
        if !room.is_empty() {
            self.bytes.skip(std::mem::take(&mut self.instead));
            self.bytes.copy_to(room);
        }
    }
}

#[cfg(test)]
mod tests;
