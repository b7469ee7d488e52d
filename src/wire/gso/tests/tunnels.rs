//! GSO packets inside of tunnels.

use super::*;

/// A tunnel: bytes between the outer IP header and the inner Ethernet or IP header.
#[derive(Debug, Clone, Copy)]
enum Tunnel {
    Vxlan,
    Geneve { options: u8 },
    Gre { keyed: bool },
    IpInIp,
}

fn tunnels() -> impl Strategy<Value = Tunnel> {
    prop_oneof![
        Just(Tunnel::Vxlan),
        (0..5u8).prop_map(|options| Tunnel::Geneve { options }),
        any::<bool>().prop_map(|keyed| Tunnel::Gre { keyed }),
        Just(Tunnel::IpInIp),
    ]
}

impl Tunnel {
    /// The GSO packet inside a tunnel. Returns the offsets of outer IP, inner IP and transport header, and the bytes.
    fn wrap(self, packet: &GsoPacket, v6: bool, has_csum: bool) -> (usize, usize, usize, Vec<u8>) {
        let (network, transport, inner) = packet.build();
        let ether = [if packet.v6 { [0x86, 0xdd] } else { [8, 0] }].concat();
        let (protocol, mut header) = match self {
            Tunnel::Vxlan => (17, vec![8, 0, 0, 0, 0, 0, 7, 0]),
            Tunnel::Geneve { options } => {
                let mut header = vec![options, 0, 0x65, 0x58, 0, 0, 7, 0];
                header.resize(8 + 4 * usize::from(options), 3);
                (17, header)
            }
            Tunnel::Gre { keyed: true } => (47, [&[0x20, 0][..], &ether, &[0, 0, 0, 9]].concat()),
            Tunnel::Gre { keyed: false } => (47, vec![0, 0, 0x65, 0x58]),
            Tunnel::IpInIp => (if packet.v6 { 41 } else { 4 }, Vec::new()),
        };
        let is_bare = matches!(self, Tunnel::IpInIp | Tunnel::Gre { keyed: true });
        let dropped = if is_bare { network } else { 0 };
        header.extend(&inner[dropped..]);
        if protocol == 17 {
            let length = (header.len() + 8) as u16;
            // Any nonzero checksum means that there is one.
            let csum = if has_csum { [0x12, 0x34] } else { [0, 0] };
            header.splice(0..0, [&[0xc0, 0, 0x12, 0xb5][..], &length.to_be_bytes(), &csum].concat());
        }
        let mut frame = vec![2, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 4];
        let length = header.len() as u16;
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend([9; 32]);
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend([0xff, 0xff, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        let shift = frame.len() + header.len() - inner.len();
        frame.extend(header);
        (14, network + shift, transport + shift, frame)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Each segment has its own outer headers; its inside equals the segment without a tunnel.
    #[test]
    fn a_tunnel_is_around_each_segment(packet in gso_packets(), tunnel in tunnels(), v6: bool, has_csum: bool) {
        let packet = GsoPacket { payload: packet.payload[..packet.payload.len().min(30_000)].to_vec(), ..packet };
        let (outer, network, transport, frame) = tunnel.wrap(&packet, v6, has_csum);
        let headers = frame.len() - packet.payload.len();
        prop_assume!(headers <= MAX_HEADERS);
        let frames = finish(&frame, packet.offload(transport), (headers, 1000, 1000)).unwrap();
        let (_, bare_transport, bare) = packet.build();
        let alone = finish(&bare, packet.offload(bare_transport), WHOLE).unwrap();
        prop_assert_eq!(frames.len(), alone.len());
        for (index, (frame, alone)) in frames.iter().zip(&alone).enumerate() {
            check_sums(frame, network, transport);
            prop_assert!(frame[network..] == alone[bare_transport - (transport - network)..]);
            let ip = &frame[outer..];
            if v6 {
                prop_assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])), ip.len() - 40);
            } else {
                let header = Ipv4HeaderSlice::from_slice(ip).unwrap();
                prop_assert_eq!(usize::from(header.total_len()), ip.len());
                prop_assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
                prop_assert_eq!(header.identification(), 0xffffu16.wrapping_add(index as u16));
            }
            if matches!(tunnel, Tunnel::Vxlan | Tunnel::Geneve { .. }) {
                let udp = &ip[if v6 { 40 } else { 20 }..];
                prop_assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len());
                if has_csum {
                    let addresses = if v6 { &ip[8..40] } else { &ip[12..20] };
                    let sum = Sum16BitWords::new().add_slice(addresses).add_2bytes([0, 17]);
                    let sum = sum.add_slice(&(udp.len() as u32).to_be_bytes()).add_slice(udp);
                    prop_assert_eq!(sum.ones_complement(), 0);
                } else {
                    prop_assert_eq!(&udp[6..8], &[0, 0]);
                }
            }
        }
    }

    /// Segments with partial checksums, once completed, equal those with complete ones; the checksum of an outer
    /// tunnel is right before that.
    #[test]
    fn segments_may_keep_partial_checksums(packet in gso_packets(), tunnel in proptest::option::of(tunnels()), v6: bool) {
        let packet = GsoPacket { payload: packet.payload[..packet.payload.len().min(20_000)].to_vec(), ..packet };
        let (transport, frame) = match tunnel {
            Some(tunnel) => {
                let (_, _, transport, frame) = tunnel.wrap(&packet, v6, true);
                (transport, frame)
            }
            None => {
                let (_, transport, frame) = packet.build();
                (transport, frame)
            }
        };
        prop_assume!(frame.len() - packet.payload.len() <= MAX_HEADERS);
        let whole = finish(&frame, packet.offload(transport), WHOLE).unwrap();
        let mut work = Segmenter::new(&frame, [].into_iter(), frame.len() as u32, packet.offload(transport)).unwrap();
        let left = work.keep_partial_checksums();
        for whole in whole {
            let mut part = work.next_segment().unwrap();
            let mut written = vec![0; part.len() as usize];
            part.fill(&mut written);
            let [completed] = finish(&written, left, WHOLE).unwrap().try_into().unwrap();
            prop_assert!(completed == whole);
        }
        prop_assert!(work.next_segment().is_none());
    }
}
