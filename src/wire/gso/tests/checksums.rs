//! Checksums: partial ones of random frames, of frames captured on Linux, and of packets with missing or wrong lengths.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// A partial checksum at any offset over any bytes.
    #[test]
    fn a_partial_checksum_is_completed_at_any_offset(
        frame in vec(prop_oneof![any::<u8>(), Just(0), Just(0xff)], 18..9000), start: Index, offset: Index,
        head in 14..5000usize, piece in 1..5000usize, room in 1..5000usize,
    ) {
        let start = 14 + start.index(frame.len() - 16);
        let offset = offset.index(frame.len() - start - 1);
        prop_assume!(offset != 8, "that is SCTP");
        let frames = finish(&frame, offload(1, 0, 0, start as u16, offset as u16), (head, piece, room)).unwrap();
        prop_assert_eq!(frames.len(), 1);
        let sum = Sum16BitWords::new().add_slice(&frame[start..]).ones_complement().to_be();
        let sum = if sum == 0 && offset == 6 { 0xffff } else { sum };
        let mut expected = frame.clone();
        expected[start + offset..][..2].copy_from_slice(&sum.to_be_bytes());
        prop_assert!(frames[0] == expected);
    }

    /// A TCP or UDP frame with a partial checksum becomes the one with a complete checksum.
    #[test]
    fn partial_checksums_of_tcp_and_udp_are_completed(packet in gso_packets(), piece in 1..5000usize, room in 1..5000usize) {
        let (network, transport, frame) = packet.build();
        let field = if packet.tcp.is_some() { 16 } else { 6 };
        let frames = finish(&frame, offload(1, 0, 0, transport as u16, field), (3000, piece, room)).unwrap();
        check_sums(&frames[0], network, transport);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Some senders leave lengths and pseudo-header sum empty. The result is the same.
    #[test]
    fn empty_lengths_and_sums_are_filled_in(packet in gso_packets(), seed: u16, open_ip: bool, open_udp in 0..3u8) {
        let (network, transport, frame) = packet.build();
        let right = finish(&frame, packet.offload(transport), WHOLE).unwrap();
        let mut open = frame;
        let field = transport + if packet.tcp.is_some() { 16 } else { 6 };
        open[field..field + 2].copy_from_slice(&seed.to_be_bytes());
        if open_ip {
            let length = network + if packet.v6 { 4 } else { 2 };
            open[length..length + 2].fill(0);
        }
        if packet.tcp.is_none() && open_udp > 0 {
            let length = if open_udp == 1 { 0 } else { packet.size + 8 };
            open[transport + 4..transport + 6].copy_from_slice(&length.to_be_bytes());
        }
        prop_assert!(finish(&open, packet.offload(transport), WHOLE).unwrap() == right);
    }

    /// Only the sender knows the final address behind a routing header. Its initial sum has the length of its UDP header, which
    /// is that of the packet or of one segment.
    #[test]
    fn the_initial_sum_of_a_routed_datagram_has_the_length_of_its_header(packet in gso_packets(), last: [u8; 16]) {
        let packet = GsoPacket { v6: true, tcp: None, options: vec![(43, 0)], ..packet };
        let (network, transport, mut frame) = packet.build();
        frame[network + 43] = 1;
        let whole = (frame.len() - transport) as u16;
        let mut with_length = |length: u16| {
            let sum = Sum16BitWords::new().add_slice(&packet.addresses[..16]).add_slice(&last).add_2bytes([0, 17]);
            let seed = !sum.add_2bytes(length.to_be_bytes()).ones_complement().to_be();
            frame[transport + 4..transport + 8].copy_from_slice(&[length.to_be_bytes(), seed.to_be_bytes()].concat());
            finish(&frame, packet.offload(transport), WHOLE).unwrap()
        };
        let frames = with_length(whole);
        prop_assert!(with_length(8 + packet.size) == frames);
        for frame in frames {
            let segment = &frame[transport..];
            let sum = Sum16BitWords::new().add_slice(&packet.addresses[..16]).add_slice(&last).add_2bytes([0, 17]);
            prop_assert_eq!(sum.add_2bytes([segment[4], segment[5]]).add_slice(segment).ones_complement(), 0);
        }
    }

    /// The same for the checksum of a single frame, which may be padded.
    #[test]
    fn a_checksum_needs_no_pseudo_header_sum(packet in gso_packets(), seed: u16, padding in vec(any::<u8>(), 0..20)) {
        let (network, transport, mut frame) = packet.build();
        let (len, field) = (frame.len(), if packet.tcp.is_some() { 16 } else { 6 });
        frame[transport + field..][..2].copy_from_slice(&seed.to_be_bytes());
        frame.extend(&padding);
        let [done] = finish(&frame, offload(1, 0, 0, transport as u16, field as u16), (3000, 7, 9)).unwrap().try_into().unwrap();
        check_sums(&done[..len], network, transport);
        prop_assert!(done[len..] == padding);
    }

    /// CRC32c over any chunks, compared with one over all of it.
    #[test]
    fn sctp_gets_a_crc(chunks in vec(any::<u8>(), 0..3000), v6: bool, padding in 0..20usize, piece in 1..2000usize) {
        let packet = GsoPacket { v6, tcp: None, tags: vec![0], options: vec![], flags: 0, urgent: 0, sequence: 0, id: 0, size: 0, ecn: false,
            addresses: [7; 32], payload: [&[1; 4][..], &chunks].concat() };
        let (network, transport, mut frame) = packet.build();
        frame[network + if v6 { 6 } else { 9 }] = 132;
        let len = frame.len();
        let mut zeroed = frame[transport..].to_vec();
        zeroed[8..12].fill(0);
        frame.resize(len + padding, 0);
        let [done] = finish(&frame, offload(1, 0, 0, transport as u16, 8), (100, piece, 50)).unwrap().try_into().unwrap();
        prop_assert_eq!(&done[transport + 8..][..4], &crc32c::crc32c(&zeroed).to_le_bytes());
        prop_assert!(done[..transport + 8] == frame[..transport + 8] && done[transport + 12..] == frame[transport + 12..]);
    }
}

#[test]
fn a_partial_checksum_of_linux_is_completed() {
    let headers = "02000000000202000000000108004500\
                   00293bf240004011eac50a0500010a050002a1d200090015143301020304050607080910111213";
    let (offload, frame) = linux("010000000000220006000000", headers, 0);
    let [done] = finish(&frame, offload, WHOLE).unwrap().try_into().unwrap();
    check_sums(&done, 14, 34);
    assert_eq!((&done[..40], &done[42..]), (&frame[..40], &frame[42..]));
}

/// A checksum of zero means none in UDP, whose checksum is at offset 6, and nowhere else (RFC 768).
#[test]
fn only_a_checksum_of_udp_is_never_zero() {
    for (offset, expected) in [(4, [0, 0]), (6, [0xff, 0xff]), (16, [0, 0])] {
        let mut frame = vec![0; 60];
        frame[50..52].fill(0xff);
        let [done] = finish(&frame, offload(1, 0, 0, 14, offset), WHOLE).unwrap().try_into().unwrap();
        assert_eq!(done[14 + usize::from(offset)..][..2], expected, "{offset}");
    }
}

/// A length of IP that does not reach behind the checksum is no end of the packet.
#[test]
fn the_checksum_of_a_packet_with_a_wrong_length_is_that_of_the_frame() {
    for packet in [GsoPacket { tcp: Some(0), ..udp(&[7; 30]) }, udp(&[7; 31])] {
        let (network, transport, frame) = packet.build();
        let field = if packet.tcp.is_some() { 16 } else { 6 };
        let offload = offload(1, 0, 0, transport as u16, field);
        let right = finish(&frame, offload, WHOLE).unwrap();
        let too_long = [frame.len() - network + 1, 0xffff];
        for length in (0..transport - network + usize::from(field) + 2).chain(too_long) {
            let mut frame = frame.clone();
            frame[network + 2..][..2].copy_from_slice(&(length as u16).to_be_bytes());
            let done = finish(&frame, offload, WHOLE).unwrap();
            assert_eq!(done[0][transport..], right[0][transport..], "{length}");
        }
    }
}

/// The checksum covers what UDP says that it covers, as far as that is in the packet of IP.
#[test]
fn the_length_of_udp_ends_its_checksum() {
    let (network, transport, frame) = udp(&[0xa7; 30]).build();
    for padding in [0, 9] {
        for length in 0..60u16 {
            let mut frame = frame.clone();
            frame[transport + 4..][..2].copy_from_slice(&length.to_be_bytes());
            frame.extend(vec![3; padding]);
            let [done] = finish(&frame, offload(1, 0, 0, transport as u16, 6), WHOLE).unwrap().try_into().unwrap();
            let covered = if (8..=38).contains(&length) { length } else { 38 };
            frame[transport + 6..][..2].fill(0);
            let sum = Sum16BitWords::new()
                .add_slice(&frame[network + 12..network + 20])
                .add_2bytes([0, 17])
                .add_2bytes(covered.to_be_bytes())
                .add_slice(&frame[transport..][..covered.into()]);
            assert_eq!(done[transport + 6..][..2], sum.ones_complement().to_be().to_be_bytes(), "{length} {padding}");
        }
    }
}

#[test]
fn a_packet_of_sctp_has_the_checksum_of_rfc_9260() {
    let (offload, frame) = linux(
        "010000000000220008000000",
        "02000000010b02000000010a08004500003400010000408466430a0500010a050002\
         13881389112233440000000001000014aabbccdd00010000000a000a00000001",
        0,
    );
    let [done] = finish(&frame, offload, WHOLE).unwrap().try_into().unwrap();
    assert_eq!(done[42..46], hex("8eb1559a"));
    assert_eq!((&done[..42], &done[46..]), (&frame[..42], &frame[46..]));
    for end in 44..46 {
        assert_eq!(finish(&frame[..end], offload, WHOLE), Err(GsoError::UnknownChecksum), "cut within its checksum");
    }
    let mut tcp = frame;
    tcp[23] = 6;
    assert_eq!(finish(&tcp, offload, WHOLE), Err(GsoError::UnknownChecksum));
}
