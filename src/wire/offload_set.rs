//! Offload features of an egress, which decide whether a frame needs software offload.

use super::ethernet::tags;
use super::layers;
use super::offload::{Gso, Offload};

/// Offloads that an egress takes, and the maximum size of its GSO packets.
///
/// The switch completes or segments a frame in software if its offload is not in the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffloadSet {
    kinds: u8,
    max_len: u32,
    max_segments: u16,
}

impl OffloadSet {
    /// Partial checksums.
    pub const CSUM: u8 = 1;
    /// TCP segmentation over IPv4.
    pub const TSO4: u8 = 1 << 1;
    /// TCP segmentation over IPv6.
    pub const TSO6: u8 = 1 << 2;
    /// TCP segmentation of packets with the CWR flag.
    pub const ECN: u8 = 1 << 3;
    /// UDP segmentation.
    pub const USO: u8 = 1 << 4;
    /// Segmentation of packets with two or more VLAN tags. The kernel takes it from no driver.
    pub const STACKED_TAGS: u8 = 1 << 5;
    /// Segmentation of packets that are not IP. Only a next hop that does not parse the headers takes it.
    pub const ANY_NETWORK: u8 = 1 << 6;
    /// Segmentation of tunnelled packets, which the header cannot express. Likewise.
    pub const TUNNELS: u8 = 1 << 7;

    /// No offloads.
    pub const NONE: OffloadSet = OffloadSet { kinds: 0, max_len: 0, max_segments: 0 };

    /// All offloads, any size.
    pub const ALL: OffloadSet = OffloadSet { kinds: u8::MAX, max_len: (1 << 24) - 1, max_segments: u16::MAX };

    /// A set of `kinds`, for GSO packets of at most `max_len` bytes and `max_segments` segments.
    pub const fn new(kinds: u8, max_len: u32, max_segments: u32) -> OffloadSet {
        const MAX_LEN: u32 = OffloadSet::ALL.max_len;
        #[allow(clippy::cast_possible_truncation)] // checked
        OffloadSet {
            kinds,
            max_len: if max_len < MAX_LEN { max_len } else { MAX_LEN },
            max_segments: if max_segments < 0xffff { max_segments as u16 } else { u16::MAX },
        }
    }

    /// Whether any offload is in the set.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.kinds == 0
    }

    /// Whether all of these offloads are in the set.
    #[inline(always)]
    pub const fn has(self, kinds: u8) -> bool {
        self.kinds & kinds == kinds
    }

    /// Whether a frame can be transmitted with its offload pending: `head` holds its headers, `len` is its length
    /// in bytes, `segments` its number of segments.
    pub fn takes(self, offload: Offload, head: &[u8], len: u32, segments: u64) -> bool {
        if !offload.needs_offload() {
            return true;
        }
        // The header cannot request a CRC32c, so no next hop computes one.
        if offload.has_crc32c() {
            return false;
        }
        let kind = match offload.gso() {
            None => return self.has(Self::CSUM) && !offload.is_gso(),
            Some(Gso::TcpV4) => Self::TSO4,
            Some(Gso::TcpV6) => Self::TSO6,
            Some(Gso::Udp) => Self::USO,
        };
        let ecn = if offload.has_ecn() { Self::ECN } else { 0 };
        self.has(Self::CSUM | kind | ecn)
            && len <= self.max_len
            && segments <= u64::from(self.max_segments)
            && (self.has(Self::STACKED_TAGS) || tags(head) < 2)
            && match layers::is_direct(head, offload) {
                Some(true) => true,
                Some(false) => self.has(Self::TUNNELS),
                None => self.has(Self::ANY_NETWORK),
            }
    }

    /// The set as one word, for an atomic.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.kinds as u64 | (self.max_segments as u64) << 8 | (self.max_len as u64) << 24
    }

    /// The set from a word of [`OffloadSet::to_word`].
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // its parts
    pub const fn from_word(word: u64) -> OffloadSet {
        OffloadSet {
            kinds: word as u8,
            max_segments: (word >> 8) as u16,
            max_len: (word >> 24) as u32 & Self::ALL.max_len,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// All kinds except for devices that do not parse headers.
    const STRICT: u8 = OffloadSet::CSUM | OffloadSet::TSO4 | OffloadSet::TSO6 | OffloadSet::ECN | OffloadSet::USO;

    /// A header: flags, GSO type, segment size 1448, checksum at `start` + `offset`.
    fn header(flags: u8, gso_type: u8, start: u8, offset: u8) -> Offload {
        Offload::read(&[flags, gso_type, 54, 0, 0xa8, 5, start, 0, offset, 0, 0, 0])
    }

    /// An IPv4 packet of this protocol after this many tags.
    fn v4(protocol: u8, tags: usize) -> Vec<u8> {
        let mut frame = vec![0; 80];
        (12..12 + 4 * tags).step_by(4).for_each(|at| frame[at..at + 2].copy_from_slice(&[0x81, 0]));
        let at = 12 + 4 * tags;
        frame[at..at + 3].copy_from_slice(&[8, 0, 0x45]);
        frame[at + 2 + 9] = protocol;
        frame
    }

    /// A TCP over IPv6 packet.
    fn v6() -> Vec<u8> {
        let mut frame = vec![0; 80];
        frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        frame[20] = 6;
        frame
    }

    proptest! {
        #[test]
        fn the_set_fits_into_one_word(kinds: u8, max_len in 0u32..1 << 24, max_segments in 0u32..65_536) {
            let set = OffloadSet::new(kinds, max_len, max_segments);
            prop_assert_eq!(OffloadSet::from_word(set.to_word()), set);
        }

        #[test]
        fn an_empty_set_takes_only_frames_without_work(b in any::<[u8; 12]>(), head in vec(any::<u8>(), 0..200), len: u32) {
            let offload = Offload::read(&b);
            prop_assert_eq!(OffloadSet::NONE.takes(offload, &head, len, 3), !offload.needs_offload());
        }

        /// Any bytes, any header.
        #[test]
        fn any_header_is_compared(b in any::<[u8; 12]>(), head in vec(any::<u8>(), 0..200), kinds: u8) {
            OffloadSet::new(kinds, 65_535, 65_535).takes(Offload::read(&b), &head, 1000, 3);
        }
    }

    #[test]
    fn each_kind_has_a_bit_of_its_own() {
        let kinds = [
            (header(1, 1, 34, 16), v4(6, 0), OffloadSet::TSO4),
            (header(1, 4, 54, 16), v6(), OffloadSet::TSO6),
            (header(1, 5, 34, 6), v4(17, 0), OffloadSet::USO),
            (header(1, 0x81, 34, 16), v4(6, 0), OffloadSet::TSO4 | OffloadSet::ECN),
            (header(1, 1, 38, 16), v4(6, 1), OffloadSet::TSO4),
            (header(1, 1, 42, 16), v4(6, 2), OffloadSet::TSO4 | OffloadSet::STACKED_TAGS),
            (header(1, 1, 34, 16), v4(17, 0), OffloadSet::TSO4 | OffloadSet::TUNNELS),
            (header(1, 1, 54, 16), v4(6, 0), OffloadSet::TSO4 | OffloadSet::TUNNELS),
            (header(1, 1, 34, 16), vec![0; 80], OffloadSet::TSO4 | OffloadSet::ANY_NETWORK),
        ];
        for (offload, head, needed) in kinds {
            let needed = needed | OffloadSet::CSUM;
            for set in 0..=255 {
                let takes = OffloadSet::new(set, 65_535, 65_535).takes(offload, &head, 20_000, 14);
                assert_eq!(takes, set & needed == needed, "{offload:?} by {set:#x}");
            }
        }
        let checksum = header(1, 0, 34, 16);
        assert!(
            OffloadSet::new(OffloadSet::CSUM, 0, 0).takes(checksum, &v4(6, 0), 1514, 1),
            "no limit of a GSO packet"
        );
    }

    #[test]
    fn sizes_are_limited_where_the_netdev_limits_them() {
        let (tcp, head) = (header(1, 1, 34, 16), v4(6, 0));
        let set = OffloadSet::new(STRICT, 32_000, 20);
        assert!(set.takes(tcp, &head, 32_000, 20));
        assert!(!set.takes(tcp, &head, 32_001, 20) && !set.takes(tcp, &head, 32_000, 21));
        assert!(OffloadSet::ALL.takes(tcp, &head, 65_550, 65_000));
    }

    #[test]
    fn unsupported_work_is_in_no_set() {
        assert!(!OffloadSet::ALL.takes(header(1, 0, 34, 8), &v4(132, 0), 60, 1), "CRC32c");
        assert!(!OffloadSet::ALL.takes(header(1, 3, 34, 6), &v4(17, 0), 3000, 1), "UDP fragmentation");
    }
}
