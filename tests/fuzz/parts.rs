//! Checks completed checksums and segments of GSO packets, with checksum code that is not the switch's.

use etherparse::checksum::Sum16BitWords;

use crate::oracle::{OffloadFields, behind_tags};

/// The frame with its checksum completed (virtio 1.x, 5.1.6.2).
pub fn completed(frame: &[u8], leave: &OffloadFields) -> Option<Vec<u8>> {
    leave.parts(frame)?;
    let field = leave.start + leave.offset;
    let sum = Sum16BitWords::new().add_slice(&frame[leave.start..]).ones_complement().to_be();
    // Zero means no checksum (RFC 768).
    let sum = if leave.offset == 6 && sum == 0 { 0xffff } else { sum };
    let mut done = frame.to_vec();
    done[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    Some(done)
}

/// Whether `done` is the frame with its checksum completed: starting from the sender's pseudo-header sum, or, as some
/// senders omit it, from the IP header's.
pub fn is_completed(frame: &[u8], leave: &OffloadFields, done: &[u8]) -> bool {
    if completed(frame, leave).is_some_and(|expected| expected == done) {
        return true;
    }
    let field = leave.start + leave.offset;
    let is_same =
        frame.len() == done.len() && (0..frame.len()).all(|at| at == field || at == field + 1 || frame[at] == done[at]);
    let protocol = match leave.offset {
        16 => 6,
        6 => 17,
        _ => return false,
    };
    let Some(network) = behind_tags(frame).map(|at| at + 2).filter(|_| is_same && leave.parts(frame).is_some()) else {
        return false;
    };
    let is_right = |at: usize| {
        let ip = &done[at..];
        let word =
            |at: usize| ip.get(at..at + 2).map_or(0, |bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])));
        let (addresses, said) = match ip[0] >> 4 {
            4 => (ip.get(12..20), word(2)),
            6 => (ip.get(8..40), word(4) + 40),
            _ => return false,
        };
        let udp = done
            .get(leave.start + 4..leave.start + 6)
            .map_or(0, |said| usize::from(u16::from_be_bytes([said[0], said[1]])));
        let ends = [done.len(), at + said, leave.start + udp];
        ends.into_iter().filter(|end| (field + 2..=done.len()).contains(end)).any(|end| {
            let len = ((end - leave.start) as u32).to_be_bytes();
            let mut sum = Sum16BitWords::new().add_slice(addresses.unwrap_or_default()).add_2bytes([0, protocol]);
            sum.add_4bytes(len).add_slice(&done[leave.start..end]).ones_complement() == 0
        })
    };
    (network..leave.start).any(is_right)
}

/// Checks that these are the segments of a GSO packet, in order: the whole payload once, each with the same headers
/// except for fields that differ per segment. If some were `lost` at egress, those remaining.
pub fn are_of(chunks: &[Vec<u8>], whole: &[u8], leave: &OffloadFields, honest: bool, lost: bool) -> Result<(), String> {
    let (headers, count) = leave.parts(whole).ok_or("the frame does not fit its offload header")?;
    if chunks.len() > count || chunks.len() < count && !lost {
        return Err(format!("{} segments of {count}", chunks.len()));
    }
    let network = behind_tags(whole).ok_or("no headers")? + 2;
    let mut at = headers;
    for (number, piece) in chunks.iter().enumerate() {
        let payload = whole.get(at..whole.len().min(at + leave.size)).ok_or("no payload left")?;
        at += payload.len();
        if piece.len() != headers + payload.len() || &piece[headers..] != payload {
            return Err(format!("segment {number}: payload differs"));
        }
        let differs =
            |at: usize| piece[at] != whole[at] && !may_differ(at, network, leave.start, leave.gso & 0x7f, whole);
        if let Some(at) = (0..headers).find(|&at| differs(at)) {
            return Err(format!("segment {number}: byte {at} differs"));
        }
        if honest && !has_right_sums(piece, network, leave) {
            return Err(format!("segment {number}: wrong length or checksum"));
        }
    }
    Ok(())
}

/// Whether a header byte may differ per segment: lengths, identification, sequence numbers, flags, checksums.
fn may_differ(at: usize, network: usize, transport: usize, gso: u8, whole: &[u8]) -> bool {
    if at >= transport {
        return match (gso, at - transport) {
            (5, at) => at >= 4,
            (_, at) => matches!(at, 4..8 | 13 | 16..18),
        };
    }
    match (whole[network] >> 4, at.checked_sub(network)) {
        (4, Some(at)) => matches!(at, 2..6 | 10..12),
        (_, Some(at)) => matches!(at, 4..6),
        (_, None) => false,
    }
}

/// Whether lengths and checksums of a TCP or UDP frame without options are right.
fn has_right_sums(frame: &[u8], network: usize, leave: &OffloadFields) -> bool {
    let (packet, segment) = (&frame[network..leave.start], &frame[leave.start..]);
    let is_udp = leave.gso & 0x7f == 5;
    let protocol = if is_udp { 17 } else { 6 };
    let len = (segment.len() as u16).to_be_bytes();
    let (addresses, head) = match packet[0] >> 4 {
        4 => {
            let total = ((packet.len() + segment.len()) as u16).to_be_bytes();
            let right = Sum16BitWords::new().add_slice(packet).ones_complement() == 0;
            (&packet[12..20], right && packet[2..4] == total)
        }
        _ => (&packet[8..40], packet[4..6] == len),
    };
    let sum = Sum16BitWords::new().add_slice(addresses).add_2bytes([0, protocol]).add_2bytes(len).add_slice(segment);
    head && sum.ones_complement() == 0 && (!is_udp || segment[4..6] == len)
}
