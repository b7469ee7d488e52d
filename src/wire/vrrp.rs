//! VRRP advertisements, version 2 (RFC 3768, IPv4) and version 3 (RFC 9568, IPv4 and IPv6).
//!
//! The master of a virtual router sends them periodically to a group address, from the MAC address of the virtual
//! router: 00:00:5e:00:01:{VRID} for IPv4, 00:00:5e:00:02:{VRID} for IPv6 (RFC 9568, 7.3).

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, ip_number};

use super::{Header, Mac};

/// TTL or hop limit of an advertisement: no router has forwarded it (RFC 9568, 5.1.1.3 and 5.1.2.3).
const NOT_FORWARDED: u8 = 255;

/// Minimum length of an advertisement, in bytes: the fields before the addresses (RFC 9568, 5.1).
const MIN_LEN: usize = 8;

/// Whether an IPv4 packet is the advertisement of a master for the virtual router that the frame's source names.
pub(super) fn is_ipv4_advert(header: &Header, packet: &[u8]) -> bool {
    const GROUP_MAC: Mac = Mac::new([0x01, 0, 0x5e, 0, 0, 0x12]);
    const GROUP: [u8; 4] = [224, 0, 0, 18];
    // First, because guests flood other IPv4 multicast.
    if header.destination != GROUP_MAC {
        return false;
    }
    let (Some(vrid), Ok(ip)) = (vrid(header.source, 1), Ipv4HeaderSlice::from_slice(packet)) else { return false };
    let start = ip.slice().len();
    ip.destination() == GROUP
        && ip.protocol() == ip_number::VRRP
        && ip.ttl() == NOT_FORWARDED
        && !ip.is_fragmenting_payload()
        && usize::from(ip.total_len()) >= start + MIN_LEN
        && packet.get(start..).is_some_and(|message| is_of_master(message, &[2, 3], vrid))
}

/// Whether an IPv6 packet is the advertisement of a master for the virtual router that the frame's source names.
pub(super) fn is_ipv6_advert(header: &Header, packet: &[u8]) -> bool {
    const GROUP_MAC: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 0x12]);
    const GROUP: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12];
    if header.destination != GROUP_MAC {
        return false;
    }
    let (Some(vrid), Ok(ip)) = (vrid(header.source, 2), Ipv6HeaderSlice::from_slice(packet)) else { return false };
    ip.destination() == GROUP
        && ip.next_header() == ip_number::VRRP
        && ip.hop_limit() == NOT_FORWARDED
        && usize::from(ip.payload_length()) >= MIN_LEN
        && packet.get(ip.slice().len()..).is_some_and(|message| is_of_master(message, &[3], vrid))
}

/// The VRID in the MAC address of a virtual router; `family` is 1 for IPv4 and 2 for IPv6.
fn vrid(router: Mac, family: u8) -> Option<u8> {
    match router.octets() {
        [0, 0, 0x5e, 0, of, vrid] if of == family && vrid != 0 => Some(vrid),
        _ => None,
    }
}

/// Whether this is an advertisement of one of these versions for this virtual router. With priority 0 the sender
/// says that it is no longer the master (RFC 9568, 5.2.4). The checksum is not verified: guests may leave it to the
/// device.
fn is_of_master(message: &[u8], versions: &[u8], vrid: u8) -> bool {
    const ADVERTISEMENT: u8 = 1;
    let Some(&[kind, id, priority, ..]) = message.first_chunk::<MIN_LEN>() else { return false };
    versions.contains(&(kind >> 4)) && kind & 0xf == ADVERTISEMENT && id == vrid && priority != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::HEADER_LEN;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const VRID: u8 = 0xc6;

    /// An advertisement of a version over IPv4, with this many bytes of options in the IP header.
    fn ipv4(version: u8, options: u8) -> Vec<u8> {
        let mut frame = vec![0x01, 0, 0x5e, 0, 0, 0x12, 0, 0, 0x5e, 0, 1, VRID, 0x08, 0];
        frame.extend([
            0x45 + options / 4,
            0xc0,
            0,
            32 + options,
            0,
            7,
            0,
            0,
            255,
            112,
            0,
            0,
            10,
            5,
            0,
            2,
            224,
            0,
            0,
            18,
        ]);
        frame.extend(std::iter::repeat_n(1, usize::from(options)));
        frame.extend([(version << 4) | 1, VRID, 100, 1, 0, 1, 0, 0, 10, 5, 0, 1]);
        frame
    }

    fn ipv6(version: u8) -> Vec<u8> {
        let mut frame =
            vec![0x33, 0x33, 0, 0, 0, 0x12, 0, 0, 0x5e, 0, 2, VRID, 0x86, 0xdd, 0x6c, 0, 0, 0, 0, 24, 112, 255];
        frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12]);
        frame.extend([(version << 4) | 1, VRID, 100, 1, 0, 100, 0, 0]);
        frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame
    }

    /// Whether each of the two parsers accepts the frame.
    fn read(frame: &[u8]) -> [bool; 2] {
        let Some(header) = Header::read(frame) else { return [false; 2] };
        let packet = &frame[HEADER_LEN..];
        [is_ipv4_advert(&header, packet), is_ipv6_advert(&header, packet)]
    }

    /// The frame with one byte changed.
    fn with(frame: &[u8], at: usize, byte: u8) -> Vec<u8> {
        let mut frame = frame.to_vec();
        frame[at] = byte;
        frame
    }

    #[test]
    fn advertisements_of_both_versions_are_recognised() {
        for version in [2, 3] {
            for options in [0, 4, 40] {
                assert_eq!(
                    read(&ipv4(version, options)),
                    [true, false],
                    "version {version}, {options} bytes of options"
                );
            }
        }
        assert_eq!(read(&ipv6(3)), [false, true]);
        assert_eq!(read(&ipv6(2)), [false; 2], "version 2 is for IPv4 alone");
        assert_eq!(read(&with(&ipv4(3, 0), 36, 255)), [true, false], "of the owner of the addresses");
    }

    #[test]
    fn each_field_is_checked() {
        for frame in [ipv4(2, 0), ipv4(3, 0)] {
            let others = [
                ("destination MAC", 5, 0x13),
                ("source MAC: prefix", 8, 0x5f),
                ("source MAC: of IPv6", 10, 2),
                ("source MAC: another VRID", 11, VRID + 1),
                ("IP version", 14, 0x65),
                ("IHL", 14, 0x44),
                ("total length", 17, 27),
                ("more fragments", 20, 0x20),
                ("fragment offset", 21, 1),
                ("TTL", 22, 254),
                ("protocol", 23, 17),
                ("destination address", 33, 17),
                ("VRRP version 1", 34, 0x11),
                ("VRRP version 4", 34, 0x41),
                ("type", 34, 0x32),
                ("VRID", 35, VRID + 1),
                ("priority: resigns", 36, 0),
            ];
            for (field, at, byte) in others {
                assert_eq!(read(&with(&frame, at, byte)), [false; 2], "{field}");
            }
            assert_eq!(read(&with(&with(&frame, 11, 0), 35, 0)), [false; 2], "VRID 0");
            assert_eq!(read(&with(&frame, 20, 0x40)), [true, false], "don't fragment");
        }
        let others = [
            ("destination MAC", 5, 1),
            ("source MAC: of IPv4", 10, 1),
            ("source MAC: another VRID", 11, VRID + 1),
            ("IP version", 14, 0x4c),
            ("payload length", 19, 7),
            ("next header", 20, 0),
            ("hop limit", 21, 254),
            ("destination address", 53, 1),
            ("type", 54, 0x32),
            ("VRID", 55, VRID + 1),
            ("priority: resigns", 56, 0),
        ];
        for (field, at, byte) in others {
            assert_eq!(read(&with(&ipv6(3), at, byte)), [false; 2], "{field}");
        }
    }

    #[test]
    fn truncated_advertisements_are_refused() {
        for (frame, fields_end) in [(ipv4(2, 0), 42), (ipv4(3, 0), 42), (ipv4(3, 40), 82), (ipv6(3), 62)] {
            for len in 0..=frame.len() {
                assert_eq!(read(&frame[..len]).contains(&true), len >= fields_end, "{len} of {} bytes", frame.len());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Any bytes behind the start of an advertisement.
        #[test]
        fn any_bytes_are_read_or_refused(
            form in 0usize..4, kept in 0usize..80, bytes in vec(any::<u8>(), 0..120), to_change in any::<prop::sample::Index>(),
        ) {
            let mut frame = vec![ipv4(2, 0), ipv4(3, 40), ipv6(3), Vec::new()].swap_remove(form);
            frame.truncate(kept);
            frame.extend(&bytes);
            if let (false, Some(&byte)) = (frame.is_empty(), bytes.first()) {
                let at = to_change.index(frame.len());
                frame[at] = byte;
            }
            let starts = [[0x01, 0, 0x5e, 0, 0, 0x12, 0, 0, 0x5e, 0, 1], [0x33, 0x33, 0, 0, 0, 0x12, 0, 0, 0x5e, 0, 2]];
            for (accepted, start) in read(&frame).into_iter().zip(starts) {
                prop_assert!(!accepted || (frame.starts_with(&start) && frame[start.len()] != 0));
            }
        }
    }
}
