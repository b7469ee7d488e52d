//! `virtio_net_hdr` of packet sockets: without `num_buffers`, and with offsets that do not count a tag which the kernel
//! has removed from the frame.

use crate::frame::HEADROOM;
use crate::sys::packet::HEADER;
use crate::wire::{Offload, TAG_LEN};

const NEEDS_CSUM: u8 = 1;

/// Bytes by which a tag shifts the following headers.
const SHIFT: u16 = 4;
const _: () = assert!(SHIFT as usize == TAG_LEN);

const GSO_TCPV4: u8 = 1;
const GSO_ECN: u8 = 0x80;

// Field offsets of struct virtio_net_hdr (virtio 1.2, 5.1.6).
const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const HDR_LEN: usize = 2;
const CSUM_START: usize = 6;

/// Header in front of a transmitted frame.
#[inline(always)]
pub(super) fn to_packet(offload: Offload) -> [u8; HEADER] {
    let [header @ .., _, _] = offload.write();
    header
}

/// Whether it is the header of a GSO packet of TCP over IPv4.
pub(super) fn is_tcpv4(header: &[u8]) -> bool {
    header.get(GSO_TYPE).is_some_and(|kind| kind & !GSO_ECN == GSO_TCPV4)
}

/// Header of a frame after its tag was restored.
pub(super) fn behind_tag(header: &[u8; HEADROOM]) -> [u8; HEADROOM] {
    let mut shifted = *header;
    if header[FLAGS] & NEEDS_CSUM != 0 {
        shift(&mut shifted, CSUM_START);
    }
    // Length of the headers: a hint, absent if 0.
    if header[HDR_LEN..HDR_LEN + 2] != [0, 0] {
        shift(&mut shifted, HDR_LEN);
    }
    shifted
}

/// Adds a tag's length to a field. An overflow saturates, so that an invalid header stays invalid.
fn shift(header: &mut [u8; HEADROOM], location: usize) {
    let value = u16::from_le_bytes([header[location], header[location + 1]]).saturating_add(SHIFT);
    header[location..location + 2].copy_from_slice(&value.to_le_bytes());
}

const _: () = assert!(HEADROOM == HEADER + 2, "packet sockets omit num_buffers");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A TCP over IPv4 GSO packet: headers of 54 bytes, csum_start 34.
    const TCP: [u8; HEADROOM] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

    proptest! {
        #[test]
        fn a_tag_shifts_offsets_only(header in any::<[u8; HEADROOM]>()) {
            let shifted = behind_tag(&header);
            for location in [0, 1, 4, 5, 8, 9, 10, 11] {
                prop_assert_eq!(shifted[location], header[location]);
            }
            let start = |header: &[u8; HEADROOM]| u16::from_le_bytes([header[6], header[7]]);
            let expected = if header[0] & 1 == 0 { start(&header) } else { start(&header).saturating_add(4) };
            prop_assert_eq!(start(&shifted), expected);
        }
    }

    #[test]
    fn a_tag_does_not_change_validity() {
        let mut frame = vec![0; 20_000];
        frame[46] = 5 << 4;
        let without = Offload::read(&TCP).segmentation(&frame, 20_000).unwrap();
        frame.splice(12..12, [0x81, 0, 0, 5]);
        let with = Offload::read(&behind_tag(&TCP)).segmentation(&frame, 20_004).unwrap();
        assert_eq!((with.frames, with.headers), (without.frames, without.headers + 4));
        assert_eq!(behind_tag(&TCP)[2], 58);
    }

    #[test]
    fn sent_headers_have_no_buffer_count() {
        assert_eq!(to_packet(Offload::read(&TCP)), TCP[..HEADER]);
    }
}
