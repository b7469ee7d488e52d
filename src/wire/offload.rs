//! Offload header: work that the sender of a frame leaves to the next hop.
//!
//! The wire format between a tap and the switch is `struct virtio_net_hdr` of virtio 1.x (5.1.6): 12 bytes before
//! the frame, little endian. A frame may request checksum completion, and may be a GSO packet of up to 64 KiB that
//! is segmented into many frames of one TCP or UDP stream. The header passes from port to port unmodified; this
//! module validates it against its frame, because a guest may write anything.

use std::fmt;

use thiserror::Error;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Accompanies a TCP type (virtio 1.2, 5.1.6.2). The kernel refuses it with UDP, and so does the switch.
const GSO_ECN: u8 = 0x80;

/// Offset of the checksum in the SCTP header (RFC 9260, 3.1); no other protocol has this offset.
const CRC32C_OFFSET: u16 = 8;

#[allow(clippy::cast_possible_truncation)] // 4
const TAG: u16 = super::TAG_LEN as u16;

/// Pending offload of a frame: `virtio_net_hdr` without its buffer count.
///
/// Stored undecoded in two words, because hardly any frame needs it decoded.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Flags, GSO type, header length, GSO size, checksum start; the first on the wire in the lowest bits.
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

/// Protocol of a GSO packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gso {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either; all datagrams but the last have the same length.
    Udp,
}

/// Segmentation of a frame. A frame that is no GSO packet is one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// Number of frames, at least 1. Virtio sets no limit (1.2, 5.1.6.2), so there is none here.
    pub frames: u32,
    /// Header bytes that each segment repeats; 0 without GSO.
    pub headers: u16,
}

/// Why an offload header is invalid for its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadOffload {
    /// The checksum or the transport header exceeds the frame.
    #[error("its checksum or headers lie outside the frame")]
    OutOfFrame,
    /// A segmentation type that was not offered.
    #[error("its segmentation type was never offered")]
    UnknownType,
    /// Segments without payload.
    #[error("its segments have no length")]
    EmptySegments,
}

impl Offload {
    /// Length of the header on the wire in bytes: `virtio_net_hdr_v1`, with its `num_buffers`.
    pub const LEN: usize = 12;

    /// No pending offload.
    pub const NONE: Offload = Offload { word: 0, csum_offset: 0 };

    /// A partial checksum from `start` on, stored `offset` bytes after `start`.
    pub(super) const fn partial(start: u16, offset: u16) -> Offload {
        Offload { word: NEEDS_CSUM as u64 | (start as u64) << 48, csum_offset: offset }
    }

    /// Parses the 12 bytes of the wire format. Accepts any bytes: [`Offload::segmentation`] validates.
    #[inline(always)]
    pub fn read(b: &[u8; Offload::LEN]) -> Offload {
        let [a, b, c, d, e, f, g, h, i, j, ..] = *b;
        Offload { word: u64::from_le_bytes([a, b, c, d, e, f, g, h]), csum_offset: u16::from_le_bytes([i, j]) }
    }

    /// The 12 bytes of the wire format; the buffer count is zero.
    #[inline(always)]
    pub fn write(&self) -> [u8; Offload::LEN] {
        let [a, b, c, d, e, f, g, h] = self.word.to_le_bytes();
        let [i, j] = self.csum_offset.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, 0, 0]
    }

    /// Creates it from the words of [`Offload::words`].
    #[inline(always)]
    pub const fn from_words(word: u64, csum_offset: u16) -> Offload {
        Offload { word, csum_offset }
    }

    /// The two words that store it.
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

    /// The segmentation of a GSO packet of an offered type.
    pub(super) const fn gso(&self) -> Option<Gso> {
        match self.gso_type() {
            GSO_UDP_L4 => Some(Gso::Udp),
            kind => match kind & !GSO_ECN {
                GSO_TCPV4 => Some(Gso::TcpV4),
                GSO_TCPV6 => Some(Gso::TcpV6),
                _ => None,
            },
        }
    }

    /// Whether it requests segmentation, of any type.
    pub const fn is_gso(&self) -> bool {
        self.gso_type() & !GSO_ECN != GSO_NONE
    }

    /// Whether it requests TCP segmentation with the CWR flag.
    pub(super) const fn has_ecn(&self) -> bool {
        self.gso_type() & GSO_ECN != 0
    }

    /// Whether the partial checksum of a single frame is SCTP's: a CRC32c, not a ones' complement sum.
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

    /// Offload of the frame with one more VLAN tag after its MAC addresses. `None` if an offset overflows.
    pub fn with_tag(&self) -> Option<Offload> {
        if !self.needs_offload() {
            return Some(*self);
        }
        // A header length of 0 means unknown.
        let header_len = match self.header_len() {
            0 => 0,
            len => len.checked_add(TAG)?,
        };
        let is_open = self.flags() & NEEDS_CSUM != 0;
        let csum_start = if is_open { self.csum_start().checked_add(TAG)? } else { self.csum_start() };
        Some(self.with_places(header_len, csum_start))
    }

    /// Offload of the frame without its VLAN tag. `None` if the checksum would start before the end of that tag.
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

    /// Whether the next hop must work: complete a checksum, or segment. Other flags are hints that may be lost.
    #[inline(always)]
    pub const fn needs_offload(&self) -> bool {
        const PENDING: u64 = u64::from_le_bytes([NEEDS_CSUM, !GSO_ECN, 0, 0, 0, 0, 0, 0]);
        self.word & PENDING != 0
    }

    /// Payload bytes per segment of a GSO packet; the last may have fewer.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // one of its words
    pub const fn segment_size(&self) -> u16 {
        (self.word >> 32) as u16
    }

    /// Validates the header against its frame and computes the segmentation. `frame`: its first segment, at least
    /// all headers; `len`: its total length in bytes.
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
        if !self.is_gso() {
            return Ok(Segmentation { frames: 1, headers: 0 });
        }
        let transport = match self.gso() {
            // A GSO packet always has a partial checksum, which gives the start of the transport header.
            _ if self.flags() & NEEDS_CSUM == 0 => return Err(BadOffload::OutOfFrame),
            Some(Gso::TcpV4 | Gso::TcpV6) => {
                // data offset: the high four bits of byte 12, in words of 4 bytes (RFC 9293, 3.1)
                let words = frame.get(start + 12).ok_or(BadOffload::OutOfFrame)? >> 4;
                usize::from(words).max(5) * 4
            }
            Some(Gso::Udp) => 8,
            None => return Err(BadOffload::UnknownType),
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

    /// A TCP over IPv4 GSO packet, as a Linux guest sends it.
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
        fn the_wire_format_is_parsed_back(b in any::<[u8; 12]>()) {
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
        fn adding_and_removing_a_tag_changes_nothing(b in any::<[u8; 12]>(), shift: bool) {
            let mut offload = Offload::read(&b);
            if shift {
                offload = offload.with_places(66, 34 + u16::from(b[0]));
            }
            if let Some(tagged) = offload.with_tag().filter(|_| offload.csum_start() >= 14) {
                prop_assert_eq!(tagged.without_tag(), Some(offload));
                prop_assert_eq!(tagged.segment_size(), offload.segment_size());
                prop_assert_eq!(tagged.needs_offload(), offload.needs_offload());
            } else if shift {
                prop_assert!(false, "small offsets can always be shifted");
            }
        }

        #[test]
        fn a_tagged_frame_has_as_many_segments(size in 536u16..9000, len in 66u32..64_000) {
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
    fn an_offset_within_a_tag_is_invalid() {
        for (start, is_right) in [(0, false), (13, false), (17, false), (18, true), (38, true)] {
            assert_eq!(offload(NEEDS_CSUM, GSO_NONE, 0, start).without_tag().is_some(), is_right, "from {start} on");
        }
        assert!(offload(NEEDS_CSUM, GSO_NONE, 0, 65_532).with_tag().is_none());
        let warning = offload(2, GSO_NONE, 0, 65_532);
        assert_eq!((warning.with_tag(), warning.without_tag()), (Some(warning), Some(warning)));
    }

    #[test]
    fn invalid_headers_are_detected() {
        let frame = tcp_frame(1514);
        assert_eq!(tcp(0).segmentation(&frame, 1514), Err(BadOffload::EmptySegments));
        assert_eq!(tcp(1).segmentation(&frame, 1514), Ok(Segmentation { frames: 1448, headers: 66 }));
        assert_eq!(tcp(1448).segmentation(&frame[..40], 40), Err(BadOffload::OutOfFrame));
        assert_eq!(offload(NEEDS_CSUM, 0x7f, 1448, 34).segmentation(&frame, 1514), Err(BadOffload::UnknownType));
        for kind in [GSO_UDP_L4 | GSO_ECN, 3 | GSO_ECN] {
            let sent = offload(NEEDS_CSUM, kind, 1448, 34);
            assert_eq!(sent.segmentation(&frame, 1514), Err(BadOffload::UnknownType), "ECN is of TCP");
            assert_eq!(sent.gso(), None);
        }
        assert_eq!(offload(0, GSO_TCPV4, 1448, 34).segmentation(&frame, 1514), Err(BadOffload::OutOfFrame));
        assert_eq!(offload(NEEDS_CSUM, GSO_TCPV4, 1448, 2000).segmentation(&frame, 1514), Err(BadOffload::OutOfFrame));
        assert!(!offload(2, GSO_NONE, 0, 0).needs_offload(), "DATA_VALID needs no work");
    }
}
