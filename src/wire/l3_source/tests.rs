//! L3 senders of valid frames in any encapsulation, and of malformed ones.

use etherparse::{ArpEthIpv4Packet, ArpOperation, PacketBuilder};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const TO: [u8; 6] = [2, 0, 0, 0, 0, 9];
const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A frame of this type.
fn frame(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&TO[..], &FROM, &kind.to_be_bytes(), payload].concat()
}

/// The same frame behind VLAN tags of these types.
fn tagged(frame: &[u8], tags: &[u16]) -> Vec<u8> {
    let tags: Vec<_> = tags.iter().flat_map(|kind| [kind.to_be_bytes(), [0x20, 0x05]]).flatten().collect();
    [&frame[..12], &tags, &frame[12..]].concat()
}

/// An IPv6 packet with this next header.
fn v6(source: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next, 255]);
    bytes.extend(source);
    bytes.extend([0xff; 16]);
    bytes.extend(payload);
    frame(0x86dd, &bytes)
}

/// A neighbor discovery message with these options.
fn message(kind: u8, fixed: &[u8], options: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], fixed, options].concat()
}

fn option(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

fn of_v6(source: [u8; 16], address_acquisition: bool, neighbor: Neighbor) -> SenderInfo {
    SenderInfo::V6 { ip: source.into(), address_acquisition, neighbor }
}

const NOBODY: Neighbor = Neighbor { target: None, lladdr: None };

/// Encapsulation between MAC addresses and EtherType.
#[derive(Debug, Clone)]
enum Layer {
    Tag(u16, u16),
    /// Length field, control field, last byte of the OUI, access points.
    Snap(u16, u8, u8, [u8; 2]),
}

impl Layer {
    /// Prepends the encapsulation to EtherType and payload.
    fn wrap(&self, after: &[u8]) -> Vec<u8> {
        match *self {
            Layer::Tag(kind, tci) => [&kind.to_be_bytes()[..], &tci.to_be_bytes(), after].concat(),
            Layer::Snap(length, control, organisation, [dsap, ssap]) => {
                [&length.to_be_bytes()[..], &[dsap, ssap, control, 0, 0, organisation], after].concat()
            }
        }
    }
}

fn layer() -> impl Strategy<Value = Layer> {
    let tag = (prop::sample::select(vec![0x8100u16, 0x88a8, 0x9100]), any::<u16>());
    let length = prop_oneof![4 => 0..0x600u16, 1 => Just(0x8870)];
    let control = prop::sample::select(vec![3u8, 0x13, 0xaf, 0xe3]);
    let organisation = prop::sample::select(vec![0u8, 0xf8]);
    let points = prop::sample::select(vec![[0xaau8, 0xaa], [0xab, 0xaa], [0xaa, 0xab], [0xaa, 0x42]]);
    prop_oneof![
        tag.prop_map(|(kind, tci)| Layer::Tag(kind, tci)),
        (length, control, organisation, points).prop_map(|(l, c, o, p)| Layer::Snap(l, c, o, p)),
    ]
}

/// EtherType, payload, and the sender that they name.
fn sample() -> impl Strategy<Value = (u16, Vec<u8>, SenderInfo)> {
    let v4 = [&[0x45, 0, 0, 20, 0, 1, 0, 0, 64, 1, 0, 0, 192, 0, 2, 7][..], &[10, 5, 0, 2]].concat();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &FROM, &[192, 0, 2, 7], &TO, &[10, 5, 0, 2]].concat();
    let ra = v6([0xfd; 16], 58, &message(134, &[0; 8], &option(1, FROM)));
    let neighbor = Neighbor { target: None, lladdr: Some(Mac::new(FROM)) };
    prop::sample::select(vec![
        (0x0800, v4, SenderInfo::V4 { ip: [192, 0, 2, 7].into(), address_acquisition: false }),
        (0x0806, arp, SenderInfo::Arp { mac: Mac::new(FROM), ip: [192, 0, 2, 7].into() }),
        (0x86dd, ra[14..].to_vec(), of_v6([0xfd; 16], false, neighbor)),
        (0x8137, vec![0xff; 40], SenderInfo::Nothing),
    ])
}

fn tags() -> impl Strategy<Value = Vec<u16>> {
    vec(prop::sample::select(vec![0x8100u16, 0x88a8, 0x9100]), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Any length, any EtherType, any payload.
    #[test]
    fn any_bytes_are_parsed(
        kind in prop::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x8100, 0x88b5, 46]),
        tags in tags(),
        bytes in vec(any::<u8>(), 0..200),
        shape in prop::sample::select(vec![vec![], vec![0xaa, 0xaa, 3, 0, 0, 0], vec![0xaa, 0xaa, 0], vec![0x45], vec![0x4f], vec![0x60, 0, 0, 0, 0, 80, 58, 255], vec![0x60, 0, 0, 0, 0, 80, 0, 255], vec![0, 1, 8, 0, 6, 4]]),
        cut in 0..260usize,
    ) {
        let whole = tagged(&frame(kind, &[shape, bytes].concat()), &tags);
        let sender = SenderInfo::read(&whole);
        if sender == SenderInfo::Nothing {
            prop_assert!(![0x0800, 0x86dd, 0x0806].contains(&kind));
        }
        // A prefix of a frame parses like the whole, except for IP, whose length field decides.
        let part = SenderInfo::read(&whole[..cut.min(whole.len())]);
        if let (SenderInfo::Arp { .. } | SenderInfo::Nothing, true) = (part, cut >= 14) {
            prop_assert_eq!(part, sender);
        }
        prop_assert!(cut >= 14 || part == SenderInfo::Unreadable);
    }

    #[test]
    fn ipv4_is_parsed_as_built(
        from: [u8; 4], to: [u8; 4], ports: (u16, u16), payload in vec(any::<u8>(), 0..64), tags in tags(), udp: bool,
    ) {
        let builder = PacketBuilder::ethernet2(FROM, TO).ipv4(from, to, 64);
        let mut bytes = [0; 300];
        let len = match udp {
            true => builder.udp(ports.0, ports.1).write_to_slice(&mut bytes, &payload).unwrap(),
            false => builder.tcp(ports.0, ports.1, 1, 1024).write_to_slice(&mut bytes, &payload).unwrap(),
        };
        let bytes = &bytes[..len];
        prop_assert_eq!(SenderInfo::read(&tagged(bytes, &tags)), SenderInfo::V4 { ip: from.into(), address_acquisition: false });
    }

    /// IGMP needs no source address, whatever its type, and no other protocol does.
    #[test]
    fn of_ipv4_protocols_only_igmp_needs_no_address(protocol in 0..=255u8, from in 0..2u8, payload in vec(any::<u8>(), 0..40), options: bool, fragment: bool) {
        prop_assume!(protocol != 17);
        let mut bytes = vec![if options { 0x46 } else { 0x45 }, 0, 0, 60, 0, 1, u8::from(fragment) << 5, 0, 1, protocol, 0, 0, 0, 0, 0, from];
        bytes.extend([224, 0, 0, 22]);
        bytes.extend([0x94, 4, 0, 0].iter().filter(|_| options));
        bytes.extend(payload);
        let address_acquisition = protocol == 2 && from == 0 && !fragment;
        prop_assert_eq!(SenderInfo::read(&frame(0x0800, &bytes)), SenderInfo::V4 { ip: [0, 0, 0, from].into(), address_acquisition });
    }

    /// LLC, SNAP and VLAN tags are skipped, whatever lengths they have.
    #[test]
    fn encapsulation_hides_no_sender(
        layers in vec(layer(), 0..6), inner in sample(), padding in 0..20usize,
    ) {
        let mut bytes = frame(inner.0, &inner.1);
        for layer in &layers {
            let after = bytes.split_off(12);
            bytes.extend(layer.wrap(&after));
        }
        bytes.extend(vec![0; padding]);
        prop_assert_eq!(SenderInfo::read(&bytes), inner.2, "{:?}", layers);
    }

    #[test]
    fn of_ipv4_only_dhcp_acquires_addresses(ports in (60..72u16, 60..72u16), from in 0..2u8, tags in tags(), fragment: bool) {
        let mut bytes = [0; 82];
        let builder = PacketBuilder::ethernet2(FROM, TO).ipv4([0, 0, 0, from], [255; 4], 64);
        builder.udp(ports.0, ports.1).write_to_slice(&mut bytes, &[1; 40]).unwrap();
        bytes[20] |= u8::from(fragment) << 5;
        let address_acquisition = ports == (68, 67) && from == 0 && !fragment;
        prop_assert_eq!(SenderInfo::read(&tagged(&bytes, &tags)), SenderInfo::V4 { ip: [0, 0, 0, from].into(), address_acquisition });
    }

    #[test]
    fn arp_is_parsed_as_built(mac: [u8; 6], ip: [u8; 4], target: [u8; 4], operation: u16, tags in tags(), padding in 0..30usize) {
        let arp = ArpEthIpv4Packet {
            operation: ArpOperation(operation),
            sender_mac: mac,
            sender_ipv4: ip,
            target_mac: [0; 6],
            target_ipv4: target,
        };
        let bytes = frame(0x0806, &[&arp.to_bytes()[..], &vec![0; padding]].concat());
        prop_assert_eq!(SenderInfo::read(&tagged(&bytes, &tags)), SenderInfo::Arp { mac: Mac::new(mac), ip: ip.into() });
        for cut in 14..42 {
            prop_assert_eq!(SenderInfo::read(&bytes[..cut]), SenderInfo::Unreadable);
        }
    }

    #[test]
    fn ipv6_is_parsed_as_built(
        from: [u8; 16], to: [u8; 16], echo: bool, payload in vec(any::<u8>(), 0..64), tags in tags(),
    ) {
        let builder = PacketBuilder::ethernet2(FROM, TO).ipv6(from, to, 64);
        let mut bytes = [0; 300];
        let len = match echo {
            true => builder.icmpv6_echo_request(1, 2).write_to_slice(&mut bytes, &payload).unwrap(),
            false => builder.udp(68, 67).write_to_slice(&mut bytes, &payload).unwrap(),
        };
        let bytes = &bytes[..len];
        prop_assert_eq!(SenderInfo::read(&tagged(bytes, &tags)), of_v6(from, false, NOBODY));
    }

    /// After extension headers, before padding, between other options.
    #[test]
    fn neighbor_discovery_names_its_sender(
        source: [u8; 16], target: [u8; 16], mac: [u8; 6], other: [u8; 6],
        kind in 133..=136u8,
        extensions in vec(prop::sample::select(vec![0u8, 43, 60]), 0..3),
        more in prop::sample::select(vec![vec![], vec![5, 1, 0, 0, 0, 0, 5, 220], vec![14, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]),
        text: bool, padding in 0..20usize, tags in tags(),
    ) {
        let (fixed, of_target) = match kind {
            133 => (&[][..], false),
            134 => (&target[..8], false),
            135 => (&target[..], false),
            _ => (&target[..], true),
        };
        let (its, others) = if of_target { (2, 1) } else { (1, 2) };
        let mut options = more.clone();
        // The link-layer address option of another type does not count.
        options.extend(option(others, other));
        if text {
            options.extend(option(its, mac));
        }
        options.extend(more);
        let mut payload = message(kind, fixed, &options);
        let mut next = 58;
        for extension in extensions {
            payload = [&[next, 0, 1, 4, 0, 0, 0, 0][..], &payload].concat();
            next = extension;
        }
        let mut bytes = v6(source, next, &payload);
        bytes.extend(vec![0; padding]);
        let neighbor = Neighbor {
            target: of_target.then(|| target.into()),
            lladdr: text.then(|| Mac::new(mac)),
        };
        let is_local = Ipv6Addr::from(source).is_unicast_link_local();
        let address_acquisition = kind != 134 && (is_local || source == [0; 16] && kind != 136);
        prop_assert_eq!(SenderInfo::read(&tagged(&bytes, &tags)), of_v6(source, address_acquisition, neighbor));
        // Truncated anywhere, it never parses to a weaker sender.
        let whole = bytes.len() - padding;
        for cut in 14..whole {
            prop_assert_eq!(SenderInfo::read(&bytes[..cut]), SenderInfo::Unreadable, "cut to {} of {}", cut, whole);
        }
    }
}

#[test]
fn unparsable_frames_are_invalid() {
    let target = [0xfe; 16];
    let own = option(1, FROM);
    let fragment = |offset: u8, next: u8, rest: &[u8]| [&[next, 0, 0, offset << 3, 0, 0, 0, 1][..], rest].concat();
    let solicitation = message(135, &target, &own);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("IPv4 of version 6", frame(0x0800, &[0x65; 40])),
        ("a header of IPv4 that is too short", frame(0x0800, &[0x44; 40])),
        ("options of IPv4 that are not there", frame(0x0800, &[0x4f; 40])),
        ("IPv6 of version 4", frame(0x86dd, &[0x45; 60])),
        (
            "ARP for another link",
            frame(0x0806, &[0, 6, 8, 0, 6, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ),
        (
            "ARP for another protocol",
            frame(0x0806, &[0, 1, 0x86, 0xdd, 6, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ),
        ("ARP with long addresses", frame(0x0806, &[&[0, 1, 8, 0, 8, 4, 0, 1][..], &[0; 24]].concat())),
        ("half a tag", frame(0x8100, &[0, 5])),
        ("a tag and half a type", frame(0x8100, &[0, 5, 8])),
        ("no LLC header", frame(46, &[])),
        ("half a SNAP header", frame(8, &[0xaa, 0xaa, 3, 0, 0, 0, 8])),
        ("SNAP headers without end", frame(46, &[0xaa, 0xaa, 3, 0, 0, 0, 0, 46].repeat(300))),
        ("IP behind a numbered SNAP frame", frame(46, &[&[0xaa, 0xaa, 0, 0, 0, 0, 0, 8, 0][..], &[0; 30]].concat())),
        (
            "the same, the control field taken for one byte",
            frame(46, &[&[0xaa, 0xaa, 0, 0, 0, 0, 8, 0][..], &[0x45; 30]].concat()),
        ),
        ("half an IP header behind LLC", frame(46, &[0x06, 0x06, 3, 0x45, 0, 0, 20])),
        ("tags without end", tagged(&frame(0x88b5, &[]), &[0x8100; 600])),
        ("an extension that is not there", v6(target, 60, &[58, 9, 0, 0, 0, 0, 0, 0])),
        ("extensions without end", v6(target, 60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(300))),
        ("ICMPv6 without a type", v6(target, 58, &[])),
        ("discovery in a fragment", v6(target, 44, &fragment(0, 58, &solicitation))),
        ("an option of no length", v6(target, 58, &message(135, &target, &[1, 0, 0, 0, 0, 0, 0, 0]))),
        ("an option beyond the end", v6(target, 58, &message(135, &target, &[1, 2, 0, 0, 0, 0, 0, 0]))),
        ("a longer address", v6(target, 58, &message(135, &target, &[1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))),
        ("two addresses", v6(target, 58, &message(135, &target, &[own.clone(), option(1, TO)].concat()))),
        ("options without end", v6(target, 58, &message(135, &target, &own.repeat(300)))),
    ];
    for (name, bytes) in cases {
        assert_eq!(SenderInfo::read(&bytes), SenderInfo::Unreadable, "{name}");
    }
    for (name, bytes) in [
        ("the rest of a fragmented datagram", v6(target, 44, &fragment(1, 58, &solicitation))),
        (
            "the rest of one, with extensions before",
            v6(target, 60, &[&[44, 0, 1, 4, 0, 0, 0, 0], &fragment(9, 60, &[1])[..]].concat()),
        ),
        ("a fragment of something else", v6(target, 44, &fragment(0, 17, &[0; 8]))),
        ("a fragment of an echo", v6(target, 44, &fragment(0, 58, &[128, 0, 0, 0]))),
        ("the same address twice", v6(target, 6, &[])),
        ("no next header", v6(target, 59, &[])),
        ("a redirect", v6(target, 58, &message(137, &[target, target].concat(), &option(2, TO)))),
    ] {
        assert_eq!(SenderInfo::read(&bytes), of_v6(target, false, NOBODY), "{name}");
    }
    let twice = v6(target, 58, &message(135, &target, &own.repeat(2)));
    assert_eq!(SenderInfo::read(&twice), of_v6(target, false, Neighbor { target: None, lladdr: Some(Mac::new(FROM)) }));
    for (name, llc) in [
        ("spanning tree", &[0x42, 0x42, 3, 0, 0, 0, 0, 0][..]),
        ("IS-IS", &[0xfe, 0xfe, 3, 0x83, 27, 1]),
        ("IPX, raw", &[0xff, 0xff, 0, 40]),
        ("IPX behind LLC", &[0xe0, 0xe0, 3, 0xff, 0xff]),
        ("IPX behind SNAP", &[0xaa, 0xaa, 3, 0, 0, 0, 0x81, 0x37, 0xff, 0xff]),
        ("AppleTalk", &[0xaa, 0xaa, 3, 8, 0, 7, 0x80, 0x9b, 0]),
        ("AppleTalk ARP", &[0xaa, 0xaa, 3, 0, 0, 0, 0x80, 0xf3, 0]),
        ("PVST+", &[0xaa, 0xaa, 3, 0, 0, 0x0c, 1, 0x0b, 0]),
        ("CDP", &[0xaa, 0xaa, 3, 0, 0, 0x0c, 0x20, 0, 2]),
        ("NetBIOS", &[0xf0, 0xf0, 3, 0x45, 0, 0]),
        ("XID of SNAP", &[0xaa, 0xaa, 0xbf, 0x81, 1, 0]),
    ] {
        for kind in [llc.len() as u16, 3, 0x5ff, 0x8870] {
            let plain = frame(kind, &[llc, &[0; 40]].concat());
            assert_eq!(SenderInfo::read(&plain), SenderInfo::Nothing, "{name}, {kind:x}");
            assert_eq!(SenderInfo::read(&tagged(&plain, &[0x8100, 0x8100])), SenderInfo::Nothing, "{name}, tagged");
        }
    }
    for (dsap, after) in [(0x06, 0x0800), (0x98, 0x0806)] {
        let packet = [0x45; 40];
        let sender = SenderInfo::read(&frame(43, &[&[dsap, dsap, 3], &packet[..]].concat()));
        assert_eq!(sender, SenderInfo::read(&frame(after, &packet)), "the access point of {after:x}");
    }
    for kind in [0x8035u16, 0x8864, 0x88b5, 0x88cc, 46, 1500] {
        assert_eq!(SenderInfo::read(&frame(kind, &[0x45; 60])), SenderInfo::Nothing, "{kind:x}");
    }
    assert_eq!(SenderInfo::read(&tagged(&frame(0x88b5, &[]), &[0x8100; 500])), SenderInfo::Nothing);
}

#[test]
fn unspecified_sources_only_acquire_addresses() {
    let none = [0; 16];
    for kind in 0..=255u8 {
        let fixed: &[u8] = match kind {
            133 => &[],
            134 => &[0; 8],
            _ => &[0xfe; 16],
        };
        let sender = SenderInfo::read(&v6(none, 58, &message(kind, fixed, &[])));
        let address_acquisition = [130, 131, 132, 133, 135, 143, 148].contains(&kind);
        let SenderInfo::V6 { address_acquisition: read, .. } = sender else { panic!("{kind}: {sender:?}") };
        assert_eq!(read, address_acquisition, "{kind}");
    }
    // Hosts send advertisements from link-local addresses too.
    let local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    for kind in 0..=255u8 {
        let fixed: &[u8] = match kind {
            133 => &[],
            134 => &[0; 8],
            _ => &[0xfe; 16],
        };
        let sender = SenderInfo::read(&v6(local, 58, &message(kind, fixed, &[])));
        let address_acquisition = [130, 131, 132, 133, 135, 136, 143, 148].contains(&kind);
        let SenderInfo::V6 { address_acquisition: read, .. } = sender else { panic!("{kind}: {sender:?}") };
        assert_eq!(read, address_acquisition, "{kind}");
    }
    for (port, address_acquisition) in [(546, false), (547, true), (53, false)] {
        let [a, b] = u16::to_be_bytes(port);
        let udp = [2, 34, a, b, 0, 8, 0, 0];
        assert_eq!(SenderInfo::read(&v6(local, 17, &udp)), of_v6(local, address_acquisition, NOBODY), "to port {port}");
        assert_eq!(SenderInfo::read(&v6([0xfd; 16], 17, &udp)), of_v6([0xfd; 16], false, NOBODY), "to port {port}");
        assert_eq!(SenderInfo::read(&v6(none, 17, &udp)), of_v6(none, false, NOBODY), "to port {port}");
    }
    // An MLD report follows a router alert option.
    let alert = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &message(143, &[], &[])].concat();
    assert_eq!(SenderInfo::read(&v6(none, 0, &alert)), of_v6(none, true, NOBODY));
}
