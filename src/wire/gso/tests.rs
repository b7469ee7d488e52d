//! Segmentation: random GSO packets, packets captured on Linux, invalid headers.

use etherparse::checksum::Sum16BitWords;
use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice, UdpHeaderSlice};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::wire::Segmentation;

mod checksums;
mod tunnels;

fn offload(flags: u8, kind: u8, size: u16, start: u16, offset: u16) -> Offload {
    let mut bytes = [0; Offload::LEN];
    (bytes[0], bytes[1]) = (flags, kind);
    for (at, word) in [(4, size), (6, start), (8, offset)] {
        bytes[at..at + 2].copy_from_slice(&word.to_le_bytes());
    }
    Offload::read(&bytes)
}

/// Result of segmenting a frame whose first `head` bytes are contiguous, followed by chunks of `piece` bytes; written
/// to buffers of `room` bytes.
fn finish(frame: &[u8], offload: Offload, cuts: (usize, usize, usize)) -> Result<Vec<Vec<u8>>, GsoError> {
    let (head, piece, room) = cuts;
    let (head, tail) = frame.split_at(head.min(frame.len()));
    let mut work = Segmenter::new(head, tail.chunks(piece), frame.len() as u32, offload)?;
    let mut all = Vec::new();
    while let Some(mut part) = work.next_segment() {
        let mut written = vec![0xaa; part.len() as usize];
        written.chunks_mut(room).for_each(|room| part.fill(room));
        all.push(written);
    }
    Ok(all)
}

/// A valid GSO packet.
#[derive(Debug, Clone)]
struct GsoPacket {
    tags: Vec<usize>,
    v6: bool,
    /// Option words (IPv4), or kinds and lengths of extension headers (IPv6).
    options: Vec<(u8, u8)>,
    /// Option words; none for UDP.
    tcp: Option<usize>,
    flags: u8,
    urgent: u16,
    sequence: u32,
    id: u16,
    size: u16,
    ecn: bool,
    addresses: [u8; 32],
    payload: Vec<u8>,
}

fn gso_packets() -> impl Strategy<Value = GsoPacket> {
    let ip = (vec(0..3usize, 0..5), any::<bool>(), vec((select(vec![0u8, 43, 60]), 0..3u8), 0..4), any::<[u8; 32]>());
    let transport = (proptest::option::weighted(0.7, 0..=10usize), any::<u8>(), any::<u16>());
    let numbers = (prop_oneof![any::<u32>(), 0xffff_0000u32..], prop_oneof![any::<u16>(), 0xfff0u16..]);
    let sizes = prop_oneof![(1..60u16, 0..600usize), (500..1500u16, 0..30_000usize), (4000..9000u16, 0..60_000usize)];
    let payload = (sizes, any::<u64>(), 0..8usize).prop_map(|((size, len), seed, kind)| {
        // Also payloads that sum to zero.
        let byte = |i: usize| match kind {
            0 => 0,
            1 => 0xff,
            _ => (seed.wrapping_mul(i as u64 | 1) >> 24) as u8,
        };
        let len = len.min(usize::from(size) * MAX_FALLBACK_SEGMENTS as usize);
        (size, (0..len).map(byte).collect())
    });
    (ip, transport, numbers, payload, any::<bool>()).prop_map(
        |((tags, v6, options, addresses), (tcp, flags, urgent), (sequence, id), (size, payload), ecn)| {
            // Neither SYN nor RST.
            let flags = flags & !0x06;
            GsoPacket { tags, v6, options, tcp, flags, urgent, sequence, id, size, ecn, addresses, payload }
        },
    )
}

impl GsoPacket {
    fn protocol(&self) -> u8 {
        if self.tcp.is_some() { 6 } else { 17 }
    }

    /// Pseudo-header sum, with this length.
    fn pseudo(&self, len: usize) -> u16 {
        let addresses = if self.v6 { &self.addresses[..] } else { &self.addresses[..8] };
        let sum = Sum16BitWords::new().add_slice(addresses).add_2bytes([0, self.protocol()]);
        !sum.add_slice(&(len as u32).to_be_bytes()).ones_complement().to_be()
    }

    /// Offsets of the IP and transport header, and the bytes.
    fn build(&self) -> (usize, usize, Vec<u8>) {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in &self.tags {
            frame.extend([[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]][*tag]);
            frame.extend([0x20, 5]);
        }
        let mut segment = [0x12, 0x34, 0, 80].to_vec();
        match self.tcp {
            Some(words) => {
                segment.extend(self.sequence.to_be_bytes());
                segment.extend([9, 9, 9, 9, (5 + words as u8) << 4, self.flags, 1, 2, 0, 0]);
                segment.extend(if self.flags & 0x20 != 0 { self.urgent } else { 0 }.to_be_bytes());
                segment.resize(20 + 4 * words, 1);
            }
            None => segment.extend([((8 + self.payload.len()) >> 8) as u8, (8 + self.payload.len()) as u8, 0, 0]),
        }
        let len = segment.len() + self.payload.len();
        let field = if self.tcp.is_some() { 16 } else { 6 };
        segment[field..field + 2].copy_from_slice(&self.pseudo(len).to_be_bytes());
        let network;
        if self.v6 {
            frame.extend([0x86, 0xdd]);
            network = frame.len();
            let mut kinds: Vec<u8> = self.options.iter().map(|option| option.0).collect();
            kinds.push(self.protocol());
            let extensions: Vec<u8> = (self.options.iter().zip(&kinds[1..]))
                .flat_map(|(&(_, units), &next)| {
                    let mut header = vec![0; 8 * (usize::from(units) + 1)];
                    (header[0], header[1]) = (next, units);
                    header
                })
                .collect();
            frame.extend([0x6b, 1, 2, 3]);
            frame.extend(((extensions.len() + len) as u16).to_be_bytes());
            frame.extend([kinds[0], 64]);
            frame.extend(self.addresses);
            frame.extend(extensions);
        } else {
            frame.extend([0x08, 0x00]);
            network = frame.len();
            let words = self.options.len();
            frame.extend([0x45 + words as u8, 3]);
            frame.extend(((20 + 4 * words + len) as u16).to_be_bytes());
            frame.extend(self.id.to_be_bytes());
            frame.extend([0x40, 0, 64, self.protocol(), 0, 0]);
            frame.extend(&self.addresses[..8]);
            frame.resize(network + 20 + 4 * words, 1);
            let checksum = Ipv4HeaderSlice::from_slice(&frame[network..]).unwrap().to_header().calc_header_checksum();
            frame[network + 10..network + 12].copy_from_slice(&checksum.to_be_bytes());
        }
        let transport = frame.len();
        frame.extend(segment);
        frame.extend(&self.payload);
        (network, transport, frame)
    }

    fn offload(&self, transport: usize) -> Offload {
        let ecn = if self.ecn { 0x80 } else { 0 };
        match self.tcp {
            Some(_) => offload(1, if self.v6 { 4 } else { 1 } | ecn, self.size, transport as u16, 16),
            None => offload(1, 5, self.size, transport as u16, 6),
        }
    }
}

/// Source and destination.
#[derive(Clone, Copy)]
enum AddressPair {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

/// Checks the checksums of a frame against etherparse.
fn check_sums(frame: &[u8], network: usize, transport: usize) {
    let (ip, segment) = (&frame[network..transport], &frame[transport..]);
    let (way, is_tcp) = if ip[0] >> 4 == 4 {
        let header = Ipv4HeaderSlice::from_slice(ip).unwrap();
        assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
        assert_eq!(usize::from(header.total_len()), frame.len() - network);
        (AddressPair::V4(header.source(), header.destination()), header.protocol().0 == 6)
    } else {
        let header = Ipv6HeaderSlice::from_slice(ip).unwrap();
        assert_eq!(usize::from(header.payload_length()) + 40, frame.len() - network);
        (AddressPair::V6(header.source(), header.destination()), is_tcp(ip))
    };
    if is_tcp {
        let header = TcpHeaderSlice::from_slice(segment).unwrap();
        let payload = &segment[header.slice().len()..];
        let expected = match way {
            AddressPair::V4(from, to) => header.calc_checksum_ipv4_raw(from, to, payload),
            AddressPair::V6(from, to) => header.calc_checksum_ipv6_raw(from, to, payload),
        };
        assert_eq!(header.checksum(), expected.unwrap());
    } else {
        let header = UdpHeaderSlice::from_slice(segment).unwrap().to_header();
        let payload = &segment[8..];
        assert_eq!(usize::from(header.length), segment.len());
        let expected = match way {
            AddressPair::V4(from, to) => header.calc_checksum_ipv4_raw(from, to, payload),
            AddressPair::V6(from, to) => header.calc_checksum_ipv6_raw(from, to, payload),
        };
        assert_eq!(header.checksum, expected.unwrap());
        assert_ne!(header.checksum, 0, "zero would mean no checksum");
    }
}

/// Next-header field of the last IPv6 header.
fn is_tcp(ip: &[u8]) -> bool {
    let (mut next, mut at) = (ip[6], 40);
    while at < ip.len() {
        next = ip[at];
        at += 8 * (usize::from(ip[at + 1]) + 1);
    }
    next == 6
}

/// Headers of a frame without fields that differ per segment; and those fields.
fn split_headers(headers: &[u8], network: usize, transport: usize, tcp: bool) -> (Vec<u8>, Vec<u8>) {
    let mut same = headers.to_vec();
    let mut places: Vec<usize> = if headers[network] >> 4 == 4 {
        vec![network + 2, network + 3, network + 4, network + 5, network + 10, network + 11]
    } else {
        vec![network + 4, network + 5]
    };
    places.extend(if tcp {
        [4, 5, 6, 7, 13, 16, 17, 18, 19].map(|at| transport + at).to_vec()
    } else {
        [4, 5, 6, 7].map(|at| transport + at).to_vec()
    });
    let own = places.iter().map(|&place| std::mem::take(&mut same[place])).collect();
    (same, own)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Each segment is a frame that its sender might have sent, and together they carry the GSO packet's payload.
    #[test]
    fn segments_reassemble_to_the_gso_packet(
        packet in gso_packets(), piece in 1..5000usize, room in prop_oneof![1..100usize, 3000..5000usize], more in 0..3000usize,
    ) {
        let (network, transport, frame) = packet.build();
        let offload = packet.offload(transport);
        let headers = frame.len() - packet.payload.len();
        let parts = offload.segmentation(&frame, frame.len() as u32).unwrap();
        prop_assert_eq!(usize::from(parts.headers), headers);
        let frames = finish(&frame, offload, (headers + more, piece, room)).unwrap();
        prop_assert_eq!(frames.len(), parts.frames as usize);
        let (same, _) = split_headers(&frame[..headers], network, transport, packet.tcp.is_some());
        let (mut payload, last) = (Vec::<u8>::new(), frames.len() - 1);
        for (index, frame) in frames.iter().enumerate() {
            check_sums(frame, network, transport);
            prop_assert_eq!(&split_headers(&frame[..headers], network, transport, packet.tcp.is_some()).0, &same);
            let size = frame.len() - headers;
            let most = usize::from(packet.size);
            prop_assert!(size == most || index == last && size <= most);
            if !packet.v6 {
                let id = u16::from_be_bytes([frame[network + 4], frame[network + 5]]);
                prop_assert_eq!(id, packet.id.wrapping_add(index as u16));
            }
            if packet.tcp.is_some() {
                let tcp = TcpHeaderSlice::from_slice(&frame[transport..]).unwrap();
                prop_assert_eq!(tcp.sequence_number(), packet.sequence.wrapping_add(payload.len() as u32));
                prop_assert_eq!(tcp.cwr(), packet.flags & 0x80 != 0 && index == 0);
                prop_assert_eq!(tcp.psh(), packet.flags & 0x08 != 0 && index == last);
                prop_assert_eq!(tcp.fin(), packet.flags & 0x01 != 0 && index == last);
                let urgent = (packet.flags & 0x20 != 0).then_some(usize::from(packet.urgent));
                let urgent = urgent.and_then(|end| end.checked_sub(payload.len()));
                prop_assert_eq!((tcp.urg(), usize::from(tcp.urgent_pointer())), (urgent.is_some(), urgent.unwrap_or(0)));
                prop_assert_eq!(frame[transport + 13] & 0x56, packet.flags & 0x56, "the others");
            }
            payload.extend(&frame[headers..]);
        }
        prop_assert!(payload == packet.payload);
    }

    /// Any bytes: refused, or as many segments as counted, none longer than announced.
    #[test]
    fn invalid_headers_are_bounded(
        packet in gso_packets(), spoilt in vec((any::<Index>(), any::<u8>()), 0..6), cut in proptest::option::of(any::<Index>()),
        header in proptest::option::of(any::<[u8; 12]>()), start in -20..20i32, piece in 1..5000usize, head in 0..4000usize,
    ) {
        let (_, transport, mut frame) = packet.build();
        let headers = frame.len().min(200);
        for (place, value) in spoilt {
            let place = place.index(headers);
            frame[place] = value;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len()));
        }
        let shifted = transport.saturating_add_signed(start as isize);
        let offload = header.map_or_else(|| packet.offload(shifted), |bytes| Offload::read(&bytes));
        let head = head.min(frame.len());
        let parts = offload.segmentation(&frame[..head], frame.len() as u32);
        if let Ok(frames) = finish(&frame, offload, (head, piece, 4096)) {
            let Segmentation { frames: count, headers } = parts.unwrap();
            let count = count as usize;
            prop_assert_eq!(frames.len(), count);
            let bytes: usize = frames.iter().map(Vec::len).sum();
            prop_assert_eq!(bytes, frame.len() + (count - 1) * usize::from(headers));
            let max_len = frames.iter().map(Vec::len).max().unwrap();
            prop_assert!(count == 1 || max_len <= usize::from(headers) + usize::from(offload.segment_size()));
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|b| u8::from_str_radix(std::str::from_utf8(b).unwrap(), 16).unwrap()).collect()
}

/// Frames that Linux 6.18 writes to a tap: `virtio_net_hdr` and headers, followed by a payload that counts from 1.
fn linux(header: &str, headers: &str, payload: u8) -> (Offload, Vec<u8>) {
    let mut frame = hex(headers);
    frame.extend(1..=payload);
    (Offload::read(&hex(header).try_into().unwrap()), frame)
}

const WHOLE: (usize, usize, usize) = (usize::MAX, 1, usize::MAX);

#[test]
fn a_tcp_gso_packet_of_linux_is_segmented() {
    let headers = "02000000000202000000000108004500\
                   00f0d9d7400040064c240a0500010a050002ec320009f3b5cf43000003e95018ffdc14ef0000";
    let (offload, frame) = linux("010136006400220010000000", headers, 200);
    let frames = finish(&frame, offload, WHOLE).unwrap();
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [154, 154]);
    for (frame, headers) in frames.iter().zip([
        // total length, id, checksum; sequence, flags, checksum
        ["0000008c", "d9d7", "4c88", "f3b5cf43", "5010"],
        ["0000008c", "d9d8", "4c87", "f3b5cfa7", "5018"],
    ]) {
        check_sums(frame, 14, 34);
        let [length, id, checksum, sequence, flags] = headers.map(hex);
        assert_eq!(
            (&frame[16..18], &frame[18..20], &frame[24..26], &frame[38..42], &frame[46..48]),
            (&length[2..], &id[..], &checksum[..], &sequence[..], &flags[..])
        );
    }
    assert_eq!([&frames[0][54..], &frames[1][54..]].concat(), frame[54..]);
}

#[test]
fn a_udp_gso_packet_of_linux_is_segmented() {
    let headers = "0200000000020200000000010800450000533bf140004011ea9c0a0500010a050002a7300009003f145d";
    let (offload, frame) = linux("01052a001800220006000000", headers, 55);
    let frames = finish(&frame, offload, WHOLE).unwrap();
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [66, 66, 49]);
    for (frame, (id, length)) in frames.iter().zip([(0x3bf1u16, 32u16), (0x3bf2, 32), (0x3bf3, 15)]) {
        check_sums(frame, 14, 34);
        assert_eq!((&frame[18..20], &frame[38..40]), (&id.to_be_bytes()[..], &length.to_be_bytes()[..]));
    }
}

#[test]
fn only_a_gso_packet_is_segmented() {
    let (_, transport, frame) = udp(&[7; 100]).build();
    for (offload, is_segmentation) in
        [(offload(1, 5, 40, transport as u16, 6), true), (offload(1, 0, 0, transport as u16, 6), false)]
    {
        let work = Segmenter::new(&frame, [].into_iter(), frame.len() as u32, offload).unwrap();
        assert_eq!(work.is_segmentation(), is_segmentation);
    }
}

/// UDP over IPv4, without options and tags.
fn udp(payload: &[u8]) -> GsoPacket {
    GsoPacket {
        tags: Vec::new(),
        v6: false,
        options: Vec::new(),
        tcp: None,
        flags: 0,
        urgent: 0,
        sequence: 0,
        id: 0,
        size: 40,
        ecn: false,
        addresses: [7; 32],
        payload: payload.to_vec(),
    }
}

#[test]
fn an_urgent_pointer_without_its_flag_is_not_modified() {
    let packet = GsoPacket { tcp: Some(0), flags: 0x18, size: 40, ..udp(&[7; 100]) };
    let (_, transport, mut frame) = packet.build();
    frame[transport + 18..][..2].copy_from_slice(&[0, 50]);
    let frames = finish(&frame, packet.offload(transport), WHOLE).unwrap();
    let pointers = frames.iter().map(|frame| [frame[transport + 18], frame[transport + 19]]);
    assert!(pointers.eq([[0, 50]; 3]));
}

#[test]
fn unsupported_packets_are_refused() {
    let packet = GsoPacket {
        tags: vec![0],
        v6: false,
        options: Vec::new(),
        tcp: Some(3),
        flags: 0x18,
        urgent: 0,
        sequence: 7,
        id: 9,
        size: 1000,
        ecn: false,
        addresses: [7; 32],
        payload: vec![5; 2500],
    };
    let six = GsoPacket { v6: true, options: vec![(60, 0)], ..packet.clone() };
    let udp = GsoPacket { tcp: None, ..packet.clone() };
    let spoil = |packet: &GsoPacket, place: usize, value: u8| {
        let (network, transport, mut frame) = packet.build();
        frame[network + place] = value;
        finish(&frame, packet.offload(transport), WHOLE)
    };
    use GsoError::{Fragment, Inconsistent, Lengths, TooManyHeaders, Tunnel};
    for packet in [&packet, &six, &udp] {
        assert_eq!(spoil(packet, 1, 0x60).unwrap().len(), 3, "any traffic class");
    }
    for (name, packet, place, value, why) in [
        ("IPv5", &packet, 0, 0x55, Inconsistent),
        ("a header of IPv4 that is too short", &packet, 0, 0x44, Inconsistent),
        ("options that are none", &packet, 0, 0x46, Tunnel),
        ("more fragments", &packet, 6, 0x20, Fragment),
        ("a later fragment", &packet, 7, 1, Fragment),
        ("IP in IP", &packet, 9, 4, Tunnel),
        ("authentication", &packet, 9, 51, Tunnel),
        ("UDP as TCP", &packet, 9, 17, Tunnel),
        ("padding behind it", &packet, 2, 1, Lengths),
        ("no header of TCP", &packet, 32, 0x40, Inconsistent),
        ("a SYN", &packet, 33, 0x02, Inconsistent),
        ("a RST", &packet, 33, 0x04, Inconsistent),
        ("a fragment over IPv6", &six, 6, 44, Fragment),
        ("a tunnel over IPv6", &six, 6, 41, Tunnel),
        ("authentication over IPv6", &six, 6, 51, Tunnel),
        ("an extension without end", &six, 41, 0xff, Tunnel),
        ("UDP as TCP over IPv6", &six, 40, 17, Tunnel),
        ("a jumbogram", &six, 4, 0, Lengths),
        ("the length of UDP", &udp, 24, 0, Lengths),
    ] {
        assert_eq!(spoil(packet, place, value), Err(why), "{name}");
    }
    // Another GSO type, and other checksum offsets.
    for (packet, kind, offset) in
        [(&packet, 4, 16), (&six, 1, 16), (&packet, 5, 6), (&udp, 1, 6), (&packet, 1, 6), (&udp, 5, 16)]
    {
        let (_, transport, frame) = packet.build();
        assert!(finish(&frame, offload(1, kind, 1000, transport as u16, offset), WHOLE).is_err(), "{kind} at {offset}");
    }
    // The inner TCP of a tunnel.
    let (network, _, outer) = udp.build();
    let (_, inner, within) = GsoPacket { tags: Vec::new(), payload: vec![1; 400], ..packet.clone() }.build();
    let mut tunnel = outer[..network + 36].to_vec();
    tunnel.extend(&within);
    let total = ((tunnel.len() - network) as u16).to_be_bytes();
    tunnel[network + 2..network + 4].copy_from_slice(&total);
    let start = (network + 36 + inner) as u16;
    assert_eq!(finish(&tunnel, offload(1, 1, 100, start, 16), WHOLE), Err(Tunnel));
    assert!(finish(&tunnel, offload(1, 0, 0, start, 16), WHOLE).is_ok(), "its checksum is completed");
    let long = GsoPacket { v6: true, options: vec![(60, 20), (60, 10)], ..packet };
    let (_, transport, frame) = long.build();
    assert_eq!(finish(&frame, long.offload(transport), WHOLE), Err(TooManyHeaders));
}

#[test]
fn work_for_one_packet_is_bounded() {
    let packet = GsoPacket {
        tags: Vec::new(),
        v6: false,
        options: Vec::new(),
        tcp: Some(0),
        flags: 0x10,
        urgent: 0,
        sequence: 1,
        id: 1,
        size: 48,
        ecn: false,
        addresses: [7; 32],
        payload: vec![5; 65_495],
    };
    let (_, transport, frame) = packet.build();
    assert_eq!(finish(&frame, packet.offload(transport), WHOLE).unwrap().len(), 1365);
    let smaller = GsoPacket { size: 47, ..packet.clone() };
    assert_eq!(finish(&frame, smaller.offload(transport), WHOLE), Err(GsoError::TooManySegments));
    // Longer than IP can say.
    let (network, transport, mut frame) = packet.build();
    frame[network + 2..][..2].fill(0);
    for (payload, frames) in [(65_536, Ok(1366)), (65_569, Err(GsoError::TooManySegments))] {
        frame.resize(transport + 20 + payload, 5);
        assert_eq!(finish(&frame, packet.offload(transport), WHOLE).map(|frames| frames.len()), frames);
    }
}
