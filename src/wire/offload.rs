//! The offload header: what the sender of a frame has left for the next hop to do.
//!
//! Its form on the wire between a tap and us is `struct virtio_net_hdr` of virtio 1.x (5.1.6), 12
//! bytes in front of the frame, little endian as modern virtio has it. A frame may ask for a
//! checksum to be completed, and may be a *super-frame* of up to 64 KiB that stands for many
//! frames of one TCP or UDP stream. Such a header passes from port to port untouched; what is
//! checked here is that it fits the frame it comes with, since a guest may write anything.

use thiserror::Error;

/// The most frames that one super-frame may stand for.
pub const MOST_SEGMENTS: u32 = 128;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What is left to be done to a frame: `virtio_net_hdr` without its buffer count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)] // in the order of the wire form, so that reading and writing it is a plain copy
pub struct Offload {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

/// How a super-frame falls into frames. Of a plain frame: one frame, nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// How many frames it stands for, 1 to [`MOST_SEGMENTS`].
    pub frames: u8,
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
    /// Segments of no length, or more of them than [`MOST_SEGMENTS`].
    #[error("it would make no or too many segments")]
    SegmentCount,
}

impl Offload {
    /// Bytes of the header on the wire: `virtio_net_hdr_v1`, with its `num_buffers`.
    pub const LEN: usize = 12;

    /// Nothing is left to be done.
    pub const NONE: Offload = Offload { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

    /// Reads the 12 bytes of the wire form. Any bytes are accepted: [`Offload::segmentation`] checks.
    #[inline]
    pub fn read(b: &[u8; Offload::LEN]) -> Offload {
        let word = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        Offload {
            flags: b[0],
            gso_type: b[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// The 12 bytes of the wire form; the buffer count is zero.
    #[inline]
    pub fn write(&self) -> [u8; Offload::LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, 0, 0]
    }

    /// Whether the next hop must do something: complete a checksum, or segment. Other flags are
    /// remarks that may be lost.
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.flags & NEEDS_CSUM != 0 || self.gso_type & !GSO_ECN != GSO_NONE
    }

    /// Bytes of payload in each frame that a super-frame becomes, but for the last.
    #[inline]
    pub fn segment_size(&self) -> u16 {
        self.gso_size
    }

    /// Checks the header against the frame it came with (`frame`: as much of it as lies in one
    /// piece, at least its headers; `len`: all of it) and says how it falls into frames.
    #[inline]
    pub fn segmentation(&self, frame: &[u8], len: u32) -> Result<Segmentation, BadOffload> {
        if !self.is_pending() {
            return Ok(Segmentation { frames: 1, headers: 0 });
        }
        self.pending_segmentation(frame, len)
    }

    fn pending_segmentation(&self, frame: &[u8], len: u32) -> Result<Segmentation, BadOffload> {
        let start = usize::from(self.csum_start);
        if self.flags & NEEDS_CSUM != 0 {
            let end = u32::from(self.csum_start) + u32::from(self.csum_offset) + 2;
            if start < super::HEADER_LEN || end > len {
                return Err(BadOffload::OutOfFrame);
            }
        }
        let transport = match self.gso_type & !GSO_ECN {
            GSO_NONE => return Ok(Segmentation { frames: 1, headers: 0 }),
            // A segmented frame always leaves its checksum open, and so says where transport begins.
            _ if self.flags & NEEDS_CSUM == 0 => return Err(BadOffload::OutOfFrame),
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
        let size = u32::from(self.gso_size);
        if size == 0 {
            return Err(BadOffload::SegmentCount);
        }
        let frames = payload.div_ceil(size).max(1);
        match u8::try_from(frames) {
            Ok(frames) if u32::from(frames) <= MOST_SEGMENTS => Ok(Segmentation { frames, headers }),
            _ => Err(BadOffload::SegmentCount),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A TCP super-frame over IPv4 as a Linux guest sends it.
    fn tcp(size: u16) -> Offload {
        Offload { flags: NEEDS_CSUM, gso_type: GSO_TCPV4, hdr_len: 66, gso_size: size, csum_start: 34, csum_offset: 16 }
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
                prop_assert!(s.frames >= 1 && u32::from(s.frames) <= MOST_SEGMENTS);
                prop_assert!(u32::from(s.headers) <= len);
            }
        }

        #[test]
        fn segments_carry_the_whole_payload(size in 536u16..9000, payload in 1u32..64_000) {
            let len = 66 + payload;
            match tcp(size).segmentation(&tcp_frame(66), len) {
                Ok(s) => {
                    prop_assert_eq!(s.headers, 66);
                    prop_assert!(u32::from(s.frames) * u32::from(size) >= payload);
                    prop_assert!((u32::from(s.frames) - 1) * u32::from(size) < payload);
                }
                Err(e) => {
                    prop_assert_eq!(e, BadOffload::SegmentCount);
                    prop_assert!(payload.div_ceil(u32::from(size)) > MOST_SEGMENTS);
                }
            }
        }
    }

    #[test]
    fn lies_are_found() {
        let frame = tcp_frame(1514);
        assert_eq!(tcp(0).segmentation(&frame, 1514), Err(BadOffload::SegmentCount));
        assert_eq!(tcp(1).segmentation(&frame, 1514), Err(BadOffload::SegmentCount));
        assert_eq!(tcp(1448).segmentation(&frame[..40], 40), Err(BadOffload::OutOfFrame));
        assert_eq!(Offload { gso_type: 0x7f, ..tcp(1448) }.segmentation(&frame, 1514), Err(BadOffload::UnknownType));
        assert_eq!(Offload { flags: 0, ..tcp(1448) }.segmentation(&frame, 1514), Err(BadOffload::OutOfFrame));
        assert_eq!(Offload { csum_start: 2000, ..tcp(1448) }.segmentation(&frame, 1514), Err(BadOffload::OutOfFrame));
        assert!(!Offload { flags: 2, ..Offload::NONE }.is_pending(), "a valid checksum is a remark");
    }
}
