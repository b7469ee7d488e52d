//! Ethernet header: destination, source, ethertype or length, and VLAN tags.

use etherparse::{EtherType, Ethernet2HeaderSlice, SingleVlanHeaderSlice, ether_type};

use super::Mac;

/// Length of an untagged Ethernet header in bytes, without FCS. A frame of just this length is valid here; the
/// receiver handles short payloads.
pub const HEADER_LEN: usize = 14;

/// Minimum frame length on a wire in bytes, without FCS (IEEE 802.3, 4.2.3.3).
pub const MIN_WIRE_LEN: u32 = 60;

/// Length of a VLAN tag in bytes.
pub const TAG_LEN: usize = 4;

/// Parsed Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Destination address.
    pub destination: Mac,
    /// Source address.
    pub source: Mac,
    /// Ethertype, or the length of an LLC frame where it is below 0x0600 (IEEE 802.3, 3.2.6).
    pub kind: u16,
}

impl Header {
    /// Parses the first 14 bytes; `None` if there are fewer.
    ///
    /// Reads overlapping words for speed: this runs once per frame.
    #[inline(always)]
    pub fn read(frame: &[u8]) -> Option<Header> {
        let header = frame.first_chunk::<HEADER_LEN>()?;
        Some(Header {
            destination: Mac::from_bits(u64::from_be_bytes(*header.first_chunk()?) >> 16),
            source: Mac::from_bits(u64::from_be_bytes(*header.last_chunk()?) >> 16),
            kind: u16::from_be_bytes(*header.last_chunk()?),
        })
    }
}

/// Whether this ethertype is a TPID.
pub(super) fn is_tag(kind: EtherType) -> bool {
    // 802.1Q, 802.1ad, and the 0x9100 that was used for double tags before the standard
    kind == ether_type::VLAN_TAGGED_FRAME
        || kind == ether_type::PROVIDER_BRIDGING
        || kind == ether_type::VLAN_DOUBLE_TAGGED_FRAME
}

/// Number of VLAN tags before the payload, at most two, as many as the length limit ignores. A truncated tag does
/// not count.
#[inline]
pub fn tags(frame: &[u8]) -> usize {
    let Ok(header) = Ethernet2HeaderSlice::from_slice(frame) else { return 0 };
    let mut kind = header.ether_type();
    let mut rest = &frame[HEADER_LEN..];
    let mut count = 0;
    while count < 2 && is_tag(kind) {
        let Ok(tag) = SingleVlanHeaderSlice::from_slice(rest) else { break };
        kind = tag.ether_type();
        rest = &rest[TAG_LEN..];
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in vec(any::<u8>(), 0..80)) {
            let header = Header::read(&bytes);
            prop_assert_eq!(header.is_some(), bytes.len() >= HEADER_LEN);
            if let Some(h) = header {
                let independent = Ethernet2HeaderSlice::from_slice(&bytes).unwrap();
                prop_assert_eq!(h.destination.octets(), independent.destination());
                prop_assert_eq!(h.source.octets(), independent.source());
                prop_assert_eq!(h.kind, independent.ether_type().0);
            }
            prop_assert!(tags(&bytes) * TAG_LEN <= bytes.len().saturating_sub(HEADER_LEN));
        }

        #[test]
        fn tags_are_counted_up_to_two(depth in 0usize..5, kinds in vec(0usize..3, 5), tail in vec(any::<u8>(), 2..20)) {
            let mut frame = vec![0u8; 12];
            for kind in &kinds[..depth] {
                frame.extend([[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]][*kind]);
                frame.extend([0x00, 0x05]);
            }
            frame.extend([0x88, 0xb5]);
            frame.extend(tail);
            prop_assert_eq!(tags(&frame), depth.min(2));
        }
    }

    #[test]
    fn a_truncated_tag_is_no_tag() {
        let mut frame = vec![0u8; 12];
        frame.extend([0x81, 0x00, 0x00, 0x05]);
        assert_eq!(tags(&frame), 0);
        frame.extend([0x08, 0x00]);
        assert_eq!(tags(&frame), 1);
    }
}
