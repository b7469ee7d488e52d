//! Detects partial checksums in received frames.

/// Length of an Ethernet header in bytes.
const HEADER: usize = 14;
/// Maximum number of VLAN tags skipped.
const MAX_TAGS: usize = 2;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Whether the TCP or UDP checksum of a frame is the sum of its pseudo-header only, as a stack leaves it to a
/// device. A complete checksum matches by chance once in 65 536 frames. `None` if the frame has no such checksum,
/// or it is too deep to find.
pub fn is_partial_checksum(frame: &[u8]) -> Option<bool> {
    let mut at = HEADER;
    for _ in 0..MAX_TAGS {
        if !matches!(word(frame, at - 2)?, 0x8100 | 0x88a8 | 0x9100) {
            break;
        }
        at += 4;
    }
    let kind = word(frame, at - 2)?;
    let packet = frame.get(at..)?;
    let (protocol, addresses, segment, len) = match kind {
        0x0800 => ipv4(packet)?,
        0x86dd => (packet.get(6).copied()?, packet.get(8..40)?, packet.get(40..)?, word(packet, 4)?),
        _ => return None,
    };
    let found = match protocol {
        TCP => word(segment, 16)?,
        // Zero means no checksum.
        UDP => word(segment, 6).filter(|&sum| sum != 0)?,
        _ => return None,
    };
    let words = addresses.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = words.sum::<u32>() + u32::from(protocol) + u32::from(len);
    let sum = (sum & 0xffff) + (sum >> 16);
    Some(u32::from(found) == (sum & 0xffff) + (sum >> 16))
}

/// Protocol, addresses, segment, and segment length.
fn ipv4(packet: &[u8]) -> Option<(u8, &[u8], &[u8], u16)> {
    let header = usize::from(packet.first()? & 15) * 4;
    // A fragment has no checksum of its own.
    if header < 20 || word(packet, 6)? & 0x3fff != 0 {
        return None;
    }
    let len = word(packet, 2)?.checked_sub(u16::try_from(header).ok()?)?;
    Some((*packet.get(9)?, packet.get(12..20)?, packet.get(header..)?, len))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn frames() -> Vec<Vec<u8>> {
        let ethernet = || PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        macro_rules! built {
            ($builder:expr, $payload:expr) => {{
                let builder = $builder;
                let mut frame = vec![0; builder.size($payload.len())];
                builder.write_to_slice(&mut frame, $payload).unwrap();
                frame
            }};
        }
        let (four, six) = (([10, 0, 0, 1], [10, 0, 0, 2]), ([0xfd; 16], [0xfe; 16]));
        vec![
            built!(ethernet().ipv4(four.0, four.1, 9).udp(1, 2), b"odd"),
            built!(ethernet().ipv4(four.0, four.1, 9).tcp(1, 2, 3, 4), b"even"),
            built!(ethernet().ipv6(six.0, six.1, 9).udp(1, 2), b"six"),
            built!(ethernet().ipv6(six.0, six.1, 9).tcp(1, 2, 3, 4), b"six"),
        ]
    }

    /// The pseudo-header sum, computed from the complete checksum.
    fn opened(frame: &[u8]) -> Vec<u8> {
        let (at, field) = match (frame[12], frame[23], frame[20]) {
            (0x08, UDP, _) => (34, 6),
            (0x08, ..) => (34, 16),
            (_, _, UDP) => (54, 6),
            _ => (54, 16),
        };
        let mut open = frame.to_vec();
        let complete = u16::from_be_bytes([open[at + field], open[at + field + 1]]);
        open[at + field..at + field + 2].fill(0);
        let mut segment = open[at..].to_vec();
        segment.resize(segment.len().next_multiple_of(2), 0);
        let rest: u64 = segment.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(word[1])).sum();
        let fold = |mut sum: u64| {
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            sum
        };
        // In ones' complement: the whole sum minus the segment's.
        let pseudo = fold(u64::from(!complete) + (0xffff - fold(rest)));
        open[at + field..at + field + 2].copy_from_slice(&(pseudo as u16).to_be_bytes());
        open
    }

    #[test]
    fn partial_and_complete_checksums_are_distinguished() {
        for frame in frames() {
            assert_eq!(is_partial_checksum(&frame), Some(false), "{frame:02x?}");
            assert_eq!(is_partial_checksum(&opened(&frame)), Some(true), "{frame:02x?}");
            let mut tagged = opened(&frame);
            tagged.splice(12..12, [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]);
            assert_eq!(is_partial_checksum(&tagged), Some(true), "{tagged:02x?}");
        }
    }

    #[test]
    fn frames_without_a_checksum_are_ignored() {
        let udp = &frames()[0];
        let with = |change: fn(&mut Vec<u8>)| {
            let mut frame = udp.clone();
            change(&mut frame);
            is_partial_checksum(&frame)
        };
        assert_eq!(with(|frame| frame[40..42].fill(0)), None, "UDP without a checksum");
        assert_eq!(with(|frame| frame[20] = 0x20), None, "a fragment");
        assert_eq!(with(|frame| frame[23] = 1), None, "ICMP");
        assert_eq!(with(|frame| frame[13] = 6), None, "ARP");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed(bytes in prop::collection::vec(any::<u8>(), 0..90), cut in 0usize..70) {
            let _ = is_partial_checksum(&bytes);
            for frame in frames() {
                let _ = is_partial_checksum(&frame[..cut.min(frame.len())]);
            }
        }
    }
}
