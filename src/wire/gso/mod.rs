//! What the sender of a frame has left to the next hop, done here: its checksum, or its division into
//! the frames that it stands for.
//!
//! A frame is only read. What comes of it is told frame by frame, and is written to wherever the caller
//! wants it: bytes of our own (headers, a checksum), and bytes of the frame, which are copied once.
//!
//! A checksum is completed wherever it stands, whatever is around it: the field holds what the sender
//! wants to have added (virtio 1.x, 5.1.6.2), the sum of the pseudo-header. Where that can be known, for TCP and UDP,
//! it is computed instead, since some senders leave it out. SCTP has a CRC32c (RFC 9260, 6.8), and gets one. Dividing
//! needs more insight. TCP over IPv4 and IPv6, and UDP over both, are divided, under any VLAN tags, with options and
//! extension headers, and inside the tunnels of [`layers`](super::layers), each frame as its sender would have sent it alone. All else
//! is refused: a frame that is not understood would be divided wrongly.

mod chunks;
mod headers;

use thiserror::Error;

use etherparse::ip_number;

use self::chunks::Chunks;
use self::headers::{
    Headers, MAX_HEADERS, SegmentPosition, TCP_CSUM, UDP_CSUM, UDP_LENGTH, declared_len, number, pseudo,
};
use super::checksum::Checksum;
use super::layers;
use super::offload::{BadOffload, Offload};

/// Segments that a GSO packet is divided into, at most: 64 KiB at the smallest MSS that Linux lets a peer ask for, 48
/// bytes (net.ipv4.tcp_min_snd_mss). It bounds the work for one frame; who takes the packet as it is sets no such bound.
pub const MAX_FALLBACK_SEGMENTS: u32 = 65_536 / 48 + 1;

/// Bytes of the checksum of SCTP.
const CRC_LEN: usize = 4;

/// Why a frame cannot be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GsoError {
    /// Its offload header does not fit it.
    #[error("its offload header does not fit it: {0}")]
    BadOffload(#[from] BadOffload),
    /// It has more bytes of headers than anybody needs.
    #[error("its headers are longer than {MAX_HEADERS} bytes")]
    TooManyHeaders,
    /// Its headers are not what its offload header says, or are none at all.
    #[error("its headers are not those of its segmentation type")]
    Inconsistent,
    /// Its lengths do not agree with each other.
    #[error("the lengths in its headers are not its own")]
    Lengths,
    /// It is a part of a packet already.
    #[error("it is a fragment")]
    Fragment,
    /// What is to be divided is inside something else: an unknown tunnel, IPsec.
    #[error("what is to be divided is inside an unknown tunnel")]
    Tunnel,
    /// It would become more segments than [`MAX_FALLBACK_SEGMENTS`].
    #[error("it would become more than {MAX_FALLBACK_SEGMENTS} segments")]
    TooManySegments,
    /// Its checksum stands where that of SCTP does, and it is no SCTP packet.
    #[error("its checksum is of no known protocol")]
    UnknownChecksum,
}

/// A frame that is being finished. `R`: the pieces of it behind the first.
#[derive(Debug)]
pub struct Segmenter<'a, R> {
    work: Work,
    /// What is left to be done to each frame that comes of it.
    residual: Offload,
    /// What of the frame has not been given out.
    bytes: Chunks<'a, R>,
    /// Room for the bytes of ours in one frame.
    header_buffer: [u8; MAX_HEADERS],
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // it is made once and stays where it is
enum Work {
    /// The checksum from `start` to `end`, to be put to `field`. `seed`: what is added, in place of what is there.
    Checksum {
        start: usize,
        end: usize,
        field: usize,
        seed: Option<Checksum>,
        len: u32,
        is_udp: bool,
    },
    /// The CRC32c from `start` to `end`, to be put to `field`.
    Crc {
        start: usize,
        end: usize,
        field: usize,
        len: u32,
    },
    /// Frames of `size` bytes of payload; `left` is left of it.
    Segments {
        headers: Headers,
        size: u16,
        left: u32,
        next: SegmentPosition,
    },
    Done,
}

/// One frame that is finished: bytes to be written out from first to last.
#[derive(Debug, Clone)]
pub struct Segment<'f, 'a, R> {
    len: u32,
    /// Bytes of the frame it comes from that come first.
    prefix_len: usize,
    /// Then these,
    header: &'f [u8],
    /// in the place of so many of that frame; and then the rest.
    replaced_len: usize,
    bytes: Chunks<'a, R>,
}

impl<'a, R: Iterator<Item = &'a [u8]> + Clone> Segmenter<'a, R> {
    /// Begins with a frame of `len` bytes: `head`, with all its headers, and `tail`.
    pub fn new(head: &'a [u8], tail: R, len: u32, offload: Offload) -> Result<Segmenter<'a, R>, GsoError> {
        let parts = offload.segmentation(head, len)?;
        let mut bytes = Chunks::new(head, tail);
        let work = match offload.gso() {
            Some(_) if parts.frames > MAX_FALLBACK_SEGMENTS => return Err(GsoError::TooManySegments),
            Some(gso) => {
                let headers = Headers::read(head, parts.headers, len, gso, offload)?;
                bytes.skip(headers.len());
                let left = len - u32::from(parts.headers);
                let next = SegmentPosition { index: 0, before: 0, payload: 0, is_last: false };
                Work::Segments { headers, size: offload.segment_size(), left, next }
            }
            None if offload.needs_offload() => checksum(head, len, offload)?,
            None => return Err(GsoError::Inconsistent),
        };
        Ok(Segmenter { work, residual: Offload::NONE, bytes, header_buffer: [0; MAX_HEADERS] })
    }

    /// Leaves the checksums of TCP and UDP in the segments to be done by who gets them: so the payload is not read. What
    /// is then left to be done to each.
    pub fn keep_partial_checksums(&mut self) -> Offload {
        if let Work::Segments { headers, .. } = &self.work {
            self.residual = headers.partial();
        }
        self.residual
    }

    /// Whether it is a super-frame, which is divided.
    pub fn is_segmentation(&self) -> bool {
        matches!(self.work, Work::Segments { .. })
    }

    /// The next frame that comes of it; as many as
    /// [`Segmentation::frames`](super::Segmentation::frames) says.
    pub fn next_segment(&mut self) -> Option<Segment<'_, 'a, R>> {
        match self.work {
            Work::Checksum { start, end, field, seed, len, is_udp } => {
                let mut read = self.bytes.clone();
                read.skip(start);
                let mut sum = sum(&mut read, end - start);
                seed.into_iter().for_each(|seed| sum.append(seed));
                let checksum = sum.finish();
                self.header_buffer[..2].copy_from_slice(&if is_udp { closed(checksum) } else { checksum });
                self.work = Work::Done;
                let bytes = self.bytes.clone();
                Some(Segment { len, prefix_len: field, header: &self.header_buffer[..2], replaced_len: 2, bytes })
            }
            Work::Crc { start, end, field, len } => {
                let mut read = self.bytes.clone();
                read.skip(start);
                let mut crc = 0;
                read.read(field - start, |part| crc = crc32c::crc32c_append(crc, part));
                // The field counts as zero.
                crc = crc32c::crc32c_append(crc, &[0; CRC_LEN]);
                read.skip(CRC_LEN);
                read.read(end - field - CRC_LEN, |part| crc = crc32c::crc32c_append(crc, part));
                self.header_buffer[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
                self.work = Work::Done;
                let bytes = self.bytes.clone();
                Some(Segment {
                    len,
                    prefix_len: field,
                    header: &self.header_buffer[..CRC_LEN],
                    replaced_len: CRC_LEN,
                    bytes,
                })
            }
            Work::Segments { ref headers, size, ref mut left, ref mut next } => {
                if *left == 0 && next.index > 0 {
                    return None;
                }
                next.payload = u16::try_from(*left).map_or(size, |left| left.min(size));
                *left -= u32::from(next.payload);
                next.is_last = *left == 0;
                let bytes = self.bytes.clone();
                let payload = if self.residual.needs_offload() {
                    self.bytes.skip(next.payload.into());
                    None
                } else {
                    Some(sum(&mut self.bytes, next.payload.into()))
                };
                let header = headers.write(*next, payload, &mut self.header_buffer);
                #[allow(clippy::cast_possible_truncation)] // MOST_HEADERS at most
                let len = header.len() as u32 + u32::from(next.payload);
                next.index += 1;
                next.before += u32::from(next.payload);
                Some(Segment { len, prefix_len: 0, header, replaced_len: 0, bytes })
            }
            Work::Done => None,
        }
    }
}

/// What there is to do about the checksum of a single frame of `len` bytes.
fn checksum(head: &[u8], len: u32, offload: Offload) -> Result<Work, GsoError> {
    let start = usize::from(offload.csum_start());
    let field = start + usize::from(offload.csum_offset());
    let is_udp = usize::from(offload.csum_offset()) == UDP_CSUM;
    let layers = layers::read(head, start).ok();
    // A frame may be padded behind its packet.
    let packet_end = layers.as_ref().map_or(0, |layers| {
        let network = layers.network();
        network.start + declared_len(head, network)
    });
    let end = if packet_end >= field + 2 && packet_end <= len as usize { packet_end } else { len as usize };
    if offload.has_crc32c() {
        let is_sctp = layers.is_some_and(|layers| layers.protocol == ip_number::SCTP);
        return match is_sctp && field + CRC_LEN <= end {
            true => Ok(Work::Crc { start, end, field, len }),
            false => Err(GsoError::UnknownChecksum),
        };
    }
    let as_said = Work::Checksum { start, end: len as usize, field, seed: None, len, is_udp };
    let Some(layers) = layers.filter(|layers| !layers.is_routed) else { return Ok(as_said) };
    let mut end = end;
    match (layers.protocol, usize::from(offload.csum_offset())) {
        (ip_number::TCP, TCP_CSUM) => {}
        (ip_number::UDP, UDP_CSUM) => {
            let said = head.get(start..field).map_or(0, |header| usize::from(number(header, UDP_LENGTH)));
            if said >= UDP_CSUM + 2 && start + said <= end {
                end = start + said;
            }
        }
        _ => return Ok(as_said),
    }
    let (Some(old), Ok(length)) = (head.get(field..field + 2), u16::try_from(end - start)) else { return Ok(as_said) };
    let mut seed = pseudo(head, layers.network(), layers.protocol.0);
    seed.add_number(length);
    seed.subtract(u16::from_be_bytes([old[0], old[1]]));
    Ok(Work::Checksum { start, end, field, seed: Some(seed), len, is_udp })
}

/// The sum of the next `len` bytes.
fn sum<'a>(bytes: &mut Chunks<'a, impl Iterator<Item = &'a [u8]>>, len: usize) -> Checksum {
    let mut sum = Checksum::default();
    bytes.read(len, |part| sum.add(part));
    sum
}

/// A checksum of UDP, in which zero would mean that there is none (RFC 768).
fn closed(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0; 2] { [0xff; 2] } else { checksum }
}

impl<'a, R: Iterator<Item = &'a [u8]>> Segment<'_, 'a, R> {
    /// Bytes of it.
    #[allow(clippy::len_without_is_empty)] // there is a header in each
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Fills `room` with the next bytes of it.
    #[inline]
    pub fn fill(&mut self, room: &mut [u8]) {
        let (lead, room) = room.split_at_mut(self.prefix_len.min(room.len()));
        self.bytes.copy_to(lead);
        self.prefix_len -= lead.len();
        let (own, room) = room.split_at_mut(self.header.len().min(room.len()));
        let (now, later) = self.header.split_at(own.len());
        own.copy_from_slice(now);
        self.header = later;
        if !room.is_empty() {
            self.bytes.skip(std::mem::take(&mut self.replaced_len));
            self.bytes.copy_to(room);
        }
    }
}

#[cfg(test)]
mod tests;
