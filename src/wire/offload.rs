//! The offload header: what the sender of a frame has left for the next hop to do.
//!
//! Its form on the wire between a tap and us is `struct virtio_net_hdr` of virtio 1.x (5.1.6), 12
//! bytes in front of the frame, little endian as modern virtio has it. A frame may ask for a
//! checksum to be completed, and may be a *super-frame* of up to 64 KiB that stands for many
//! frames of one TCP or UDP stream. Such a header passes from port to port untouched; what is
//! checked here is that it fits the frame it comes with, since a guest may write anything.

use std::fmt;

use thiserror::Error;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Where the checksum of SCTP stands in its header (RFC 9260, 3.1), and of no other protocol.
const CRC32C_OFFSET: u16 = 8;

#[allow(clippy::cast_possible_truncation)] // 4
const TAG: u16 = super::TAG_LEN as u16;

/// What is left to be done to a frame: `virtio_net_hdr` without its buffer count.
///
/// It is kept as it came, in two words, since hardly any frame has it looked at.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Flags, GSO type, header length, GSO size, checksum start; the first on the wire lowest.
    word: u64,
    /// Checksum offset.
    csum_offset: u16,
}

impl fmt::Debug for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offload")
            .field("flags", &self.flags())
            .field("gso_type", &self.gso_type())
            .field("gso_size", &self.segment_size())
            .field("csum_start", &self.csum_start())
            .field("csum_offset", &self.csum_offset)
            .finish()
    }
}

/// What a super-frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gso {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either, each datagram as long as the others, but for the last.
    Udp,
}

/// How a super-frame falls into frames. Of a plain frame: one frame, nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// How many frames it stands for, at least 1. Virtio sets no limit (1.2, 5.1.6.2), so there is none here.
    pub frames: u32,
    /// Bytes of headers that each of them repeats; 0 for a plain frame.
    pub headers: u16,
}

/// Why an offload header does not fit its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadOffload {
    /// The checksum or the transport header would lie outside the frame.
    #[error("its checksum or headers lie outside the frame")]
    OutOfFrame,
    /// A segmentation type that was never offered.
    #[error("its segmentation type was never offered")]
    UnknownType,
    /// Segments of no length.
    #[error("its segments have no length")]
    EmptySegments,
}

impl Offload {
    /// Bytes of the header on the wire: `virtio_net_hdr_v1`, with its `num_buffers`.
    pub const LEN: usize = 12;

    /// Nothing is left to be done.
    pub const NONE: Offload = Offload { word: 0, csum_offset: 0 };

    /// The checksum from `start` on is left to be done, to be put `offset` bytes behind that.
    pub(super) const fn partial(start: u16, offset: u16) -> Offload {
        Offload { word: NEEDS_CSUM as u64 | (start as u64) << 48, csum_offset: offset }
    }

    /// Reads the 12 bytes of the wire form. Any bytes are accepted: [`Offload::segmentation`] checks.
    #[inline(always)]
    pub fn read(b: &[u8; Offload::LEN]) -> Offload {
        let [a, b, c, d, e, f, g, h, i, j, ..] = *b;
        Offload { word: u64::from_le_bytes([a, b, c, d, e, f, g, h]), csum_offset: u16::from_le_bytes([i, j]) }
    }

    /// The 12 bytes of the wire form; the buffer count is zero.
    #[inline(always)]
    pub fn write(&self) -> [u8; Offload::LEN] {
        let [a, b, c, d, e, f, g, h] = self.word.to_le_bytes();
        let [i, j] = self.csum_offset.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, 0, 0]
    }

    /// From the two words of [`Offload::words`].
    #[inline(always)]
    pub const fn from_words(word: u64, csum_offset: u16) -> Offload {
        Offload { word, csum_offset }
    }

    /// The two words in which it is kept.
    #[inline(always)]
    pub const fn words(&self) -> (u64, u16) {
        (self.word, self.csum_offset)
    }

    const fn flags(&self) -> u8 {
        self.word.to_le_bytes()[0]
    }

    const fn gso_type(&self) -> u8 {
        self.word.to_le_bytes()[1]
    }

    #[allow(clippy::cast_possible_truncation)] // one of its words
    pub(super) const fn csum_start(&self) -> u16 {
        (self.word >> 48) as u16
    }

    pub(super) const fn csum_offset(&self) -> u16 {
        self.csum_offset
    }

    /// What is to be divided, of a super-frame of a type that was offered.
    pub(super) const fn gso(&self) -> Option<Gso> {
        match self.gso_type() & !GSO_ECN {
            GSO_TCPV4 => Some(Gso::TcpV4),
            GSO_TCPV6 => Some(Gso::TcpV6),
            GSO_UDP_L4 => Some(Gso::Udp),
            _ => None,
        }
    }

    /// Whether it asks for segmentation, be it of a type that was offered or not.
    pub const fn is_gso(&self) -> bool {
        self.gso_type() & !GSO_ECN != GSO_NONE
    }

    /// Whether the segmentation is of TCP with the CWR flag.
    pub(super) const fn has_ecn(&self) -> bool {
        self.gso_type() & GSO_ECN != 0
    }

    /// Whether the partial checksum of a single frame is one of SCTP: a CRC32c, and no ones' complement sum.
    #[inline(always)]
    pub const fn has_crc32c(&self) -> bool {
        self.flags() & NEEDS_CSUM != 0 && self.csum_offset == CRC32C_OFFSET && !self.is_gso()
    }

    #[allow(clippy::cast_possible_truncation)] // one of its words
    const fn header_len(&self) -> u16 {
        (self.word >> 16) as u16
    }

    const fn with_places(&self, header_len: u16, csum_start: u16) -> Offload {
        const PLACES: u64 = 0xffff_0000_ffff_0000;
        Offload { word: self.word & !PLACES | (header_len as u64) << 16 | (csum_start as u64) << 48, ..*self }
    }

    /// The same for the frame with one VLAN tag more behind its addresses. `None` if something would
    /// begin farther back than can be said.
    pub fn with_tag(&self) -> Option<Offload> {
        if !self.needs_offload() {
            return Some(*self);
        }
        // A header length of 0 is one that has not been said.
        let header_len = match self.header_len() {
            0 => 0,
            len => len.checked_add(TAG)?,
        };
        let is_open = self.flags() & NEEDS_CSUM != 0;
        let csum_start = if is_open { self.csum_start().checked_add(TAG)? } else { self.csum_start() };
        Some(self.with_places(header_len, csum_start))
    }

    /// The same for the frame without the VLAN tag behind its addresses. `None` if what is to be
    /// summed up begins before the end of that tag, which makes no sense.
    pub fn without_tag(&self) -> Option<Offload> {
        if !self.needs_offload() {
            return Some(*self);
        }
        let mut csum_start = self.csum_start();
        if self.flags() & NEEDS_CSUM != 0 {
            csum_start = csum_start.checked_sub(TAG).filter(|&at| usize::from(at) >= super::HEADER_LEN)?;
        }
        Some(self.with_places(self.header_len().saturating_sub(TAG), csum_start))
    }

    /// Whether the next hop must do something: complete a checksum, or segment. Other flags are
    /// remarks that may be lost.
    #[inline(always)]
    pub const fn needs_offload(&self) -> bool {
        const PENDING: u64 = u64::from_le_bytes([NEEDS_CSUM, !GSO_ECN, 0, 0, 0, 0, 0, 0]);
        self.word & PENDING != 0
    }

    /// Bytes of payload in each frame that a super-frame becomes, but for the last.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // one of its words
    pub const fn segment_size(&self) -> u16 {
        (self.word >> 32) as u16
    }

    /// Checks the header against the frame it came with (`frame`: as much of it as lies in one
    /// piece, at least its headers; `len`: all of it) and says how it falls into frames.
    #[inline]
    pub fn segmentation(&self, frame: &[u8], len: u32) -> Result<Segmentation, BadOffload> {
        if !self.needs_offload() {
            return Ok(Segmentation { frames: 1, headers: 0 });
        }
        self.segmentation_slow(frame, len)
    }

    fn segmentation_slow(&self, frame: &[u8], len: u32) -> Result<Segmentation, BadOffload> {
        let start = usize::from(self.csum_start());
        if self.flags() & NEEDS_CSUM != 0 {
            let end = u32::from(self.csum_start()) + u32::from(self.csum_offset) + 2;
            if start < super::HEADER_LEN || end > len {
                return Err(BadOffload::OutOfFrame);
            }
        }
        let transport = match self.gso_type() & !GSO_ECN {
            GSO_NONE => return Ok(Segmentation { frames: 1, headers: 0 }),
            // A segmented frame always leaves its checksum open, and so says where transport begins.
            _ if self.flags() & NEEDS_CSUM == 0 => return Err(BadOffload::OutOfFrame),
            GSO_TCPV4 | GSO_TCPV6 => {
                // data offset: the high four bits of byte 12, in words of 4 bytes (RFC 9293, 3.1)
                let words = frame.get(start + 12).ok_or(BadOffload::OutOfFrame)? >> 4;
                usize::from(words).max(5) * 4
            }
            GSO_UDP_L4 => 8,
            _ => return Err(BadOffload::UnknownType),
        };
        let headers = u16::try_from(start + transport).map_err(|_| BadOffload::OutOfFrame)?;
        let payload = len.checked_sub(u32::from(headers)).ok_or(BadOffload::OutOfFrame)?;
        let size = u32::from(self.segment_size());
        if size == 0 {
            return Err(BadOffload::EmptySegments);
        }
        Ok(Segmentation { frames: payload.div_ceil(size).max(1), headers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offload(flags: u8, gso_type: u8, size: u16, csum_start: u16) -> Offload {
        let ([g, h], [s, t]) = (size.to_le_bytes(), csum_start.to_le_bytes());
        Offload::read(&[flags, gso_type, 66, 0, g, h, s, t, 16, 0, 0, 0])
    }

    /// A TCP super-frame over IPv4 as a Linux guest sends it.
    fn tcp(size: u16) -> Offload {
        offload(NEEDS_CSUM, GSO_TCPV4, size, 34)
    }

    fn tcp_frame(len: usize) -> Vec<u8> {
        let mut frame = vec![0; len];
        frame[46] = 8 << 4;
        frame
    }

    proptest! {
        #[test]
        fn wire_form_comes_back(b in any::<[u8; 12]>()) {
            let mut expected = b;
            expected[10..].fill(0);
            prop_assert_eq!(Offload::read(&b).write(), expected);
        }

        #[test]
        fn any_header_over_any_frame_is_bounded(b in any::<[u8; 12]>(), frame in proptest::collection::vec(any::<u8>(), 0..200), extra in 0u32..70_000) {
            let len = u32::try_from(frame.len()).unwrap() + extra;
            if let Ok(s) = Offload::read(&b).segmentation(&frame, len) {
                prop_assert!(s.frames >= 1 && s.frames <= len.max(1));
                prop_assert!(u32::from(s.headers) <= len);
            }
        }

        #[test]
        fn a_tag_that_comes_and_goes_changes_nothing(b in any::<[u8; 12]>(), shift: bool) {
            let mut offload = Offload::read(&b);
            if shift {
                offload = offload.with_places(66, 34 + u16::from(b[0]));
            }
            if let Some(tagged) = offload.with_tag().filter(|_| offload.csum_start() >= 14) {
                prop_assert_eq!(tagged.without_tag(), Some(offload));
                prop_assert_eq!(tagged.segment_size(), offload.segment_size());
                prop_assert_eq!(tagged.needs_offload(), offload.needs_offload());
            } else if shift {
                prop_assert!(false, "34 and a little can always be moved");
            }
        }

        #[test]
        fn a_tagged_frame_falls_into_as_many_frames(size in 536u16..9000, len in 66u32..64_000) {
            let (frame, mut tagged) = (tcp_frame(66), tcp_frame(66));
            tagged.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
            let one = tcp(size).segmentation(&frame, len);
            let other = tcp(size).with_tag().unwrap().segmentation(&tagged, len + 4);
            prop_assert_eq!(one.map(|s| (s.frames, s.headers + 4)), other.map(|s| (s.frames, s.headers)));
        }

        #[test]
        fn segments_carry_the_whole_payload(size in 1u16..9000, payload in 1u32..64_000) {
            let len = 66 + payload;
            let s = tcp(size).segmentation(&tcp_frame(66), len).unwrap();
            prop_assert_eq!(s.headers, 66);
            prop_assert!(s.frames * u32::from(size) >= payload);
            prop_assert!((s.frames - 1) * u32::from(size) < payload);
        }
    }

    #[test]
    fn what_begins_in_a_tag_is_a_lie() {
        for (start, is_right) in [(0, false), (13, false), (17, false), (18, true), (38, true)] {
            assert_eq!(offload(NEEDS_CSUM, GSO_NONE, 0, start).without_tag().is_some(), is_right, "from {start} on");
        }
        assert!(offload(NEEDS_CSUM, GSO_NONE, 0, 65_532).with_tag().is_none());
        let warning = offload(2, GSO_NONE, 0, 65_532);
        assert_eq!((warning.with_tag(), warning.without_tag()), (Some(warning), Some(warning)));
    }

    #[test]
    fn lies_are_found() {
        let frame = tcp_frame(1514);
        assert_eq!(tcp(0).segmentation(&frame, 1514), Err(BadOffload::EmptySegments));
        assert_eq!(tcp(1).segmentation(&frame, 1514), Ok(Segmentation { frames: 1448, headers: 66 }));
        assert_eq!(tcp(1448).segmentation(&frame[..40], 40), Err(BadOffload::OutOfFrame));
        assert_eq!(offload(NEEDS_CSUM, 0x7f, 1448, 34).segmentation(&frame, 1514), Err(BadOffload::UnknownType));
        assert_eq!(offload(0, GSO_TCPV4, 1448, 34).segmentation(&frame, 1514), Err(BadOffload::OutOfFrame));
        assert_eq!(offload(NEEDS_CSUM, GSO_TCPV4, 1448, 2000).segmentation(&frame, 1514), Err(BadOffload::OutOfFrame));
        assert!(!offload(2, GSO_NONE, 0, 0).needs_offload(), "a valid checksum is a remark");
    }
}
