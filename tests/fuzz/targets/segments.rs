//! Offload header and frame, completed or segmented in software: the segments carry the payload once and in order, their
//! headers are those of the frame but for the fields that differ by segment, and lengths and checksums are right.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use vifswitch::wire::{Offload, Segmenter};

use super::Input;

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut header = [0; Offload::LEN];
    for (to, from) in header.iter_mut().zip(input.bytes(Offload::LEN)) {
        *to = *from;
    }
    let (at, piece, repeat) = (usize::from(input.word()), usize::from(input.byte()) + 1, usize::from(input.byte()));
    // Long payloads by repetition.
    let mut frame = input.0.to_vec();
    let end = frame.len();
    (0..repeat.min(64_000 / end.max(1))).for_each(|_| frame.extend_from_within(..end));
    let offload = Offload::read(&header);
    let Ok(whole) = segments(&frame, frame.len(), 4096, offload) else { return };
    let said = offload.segmentation(&frame, frame.len() as u32).unwrap();
    assert_eq!(whole.len(), said.frames as usize);
    // Headers must be in the first part. Where the rest is divided does not matter.
    let head = at.clamp(usize::from(said.headers).max(1024).min(frame.len()), frame.len());
    assert_eq!(segments(&frame, head, piece, offload).as_ref(), Ok(&whole), "it matters where memory is divided");
    if !offload.is_gso() {
        assert_eq!(whole[0].len(), frame.len());
        let differs = whole[0].iter().zip(&frame).filter(|(one, other)| one != other).count();
        assert!(differs <= 4, "more than a checksum has changed");
        return;
    }
    let headers = usize::from(said.headers);
    let payload: Vec<u8> = whole.iter().flat_map(|segment| &segment[headers..]).copied().collect();
    assert!(payload == frame[headers..], "the payload differs");
    for (number, segment) in whole.iter().enumerate() {
        let size = segment.len() - headers;
        let expected = usize::from(offload.segment_size());
        assert!(size == expected || size < expected && number == whole.len() - 1, "segment {number} has {size} bytes");
        check_sums(number, segment);
    }
}

fn segments(
    frame: &[u8],
    head: usize,
    piece: usize,
    offload: Offload,
) -> Result<Vec<Vec<u8>>, vifswitch::wire::GsoError> {
    let (head, tail) = frame.split_at(head);
    let mut segmenter = Segmenter::new(head, tail.chunks(piece), frame.len() as u32, offload)?;
    let mut all = Vec::new();
    while let Some(mut segment) = segmenter.next_segment() {
        let mut bytes = vec![0xaa; segment.len() as usize];
        segment.fill(&mut bytes);
        all.push(bytes);
    }
    Ok(all)
}

/// Checks lengths and checksums of a segment, as far as etherparse understands its headers.
fn check_sums(number: usize, segment: &[u8]) {
    let Ok(packet) = SlicedPacket::from_ethernet(segment) else { return };
    let (Some(net), Some(transport)) = (packet.net, packet.transport) else { return };
    if let NetSlice::Ipv4(v4) = &net {
        let header = v4.header();
        assert_eq!(
            header.header_checksum(),
            header.to_header().calc_header_checksum(),
            "segment {number}: IPv4 checksum"
        );
    }
    let expected = match (&net, &transport) {
        (NetSlice::Ipv4(v4), TransportSlice::Tcp(tcp)) => {
            let header = v4.header();
            (tcp.checksum(), tcp.calc_checksum_ipv4(header.source(), header.destination()))
        }
        (NetSlice::Ipv6(v6), TransportSlice::Tcp(tcp)) => {
            let header = v6.header();
            (tcp.checksum(), tcp.calc_checksum_ipv6(header.source(), header.destination()))
        }
        (NetSlice::Ipv4(v4), TransportSlice::Udp(udp)) => {
            let header = v4.header();
            (
                udp.checksum(),
                udp.to_header().calc_checksum_ipv4_raw(header.source(), header.destination(), udp.payload()),
            )
        }
        (NetSlice::Ipv6(v6), TransportSlice::Udp(udp)) => {
            let header = v6.header();
            (
                udp.checksum(),
                udp.to_header().calc_checksum_ipv6_raw(header.source(), header.destination(), udp.payload()),
            )
        }
        _ => return,
    };
    assert_eq!(Ok(expected.0), expected.1, "segment {number}: transport checksum");
}
