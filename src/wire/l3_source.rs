//! Parses the L3 sender of a frame: the sender in ARP, IPv4, IPv6 and neighbor discovery.
//!
//! [`SenderInfo::read`] skips VLAN tags of any of the three TPIDs and any depth, and LLC/SNAP headers (IEEE 802.2,
//! RFC 1042, IEEE 802.1H), in the first 2048 bytes. Hosts and access points accept IP and ARP in each of these
//! encapsulations and any combination (CVE-2021-27853 and related). Headers that are truncated, malformed or
//! farther back give [`SenderInfo::Unreadable`], never [`SenderInfo::Nothing`].

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::icmpv6::{
    self, NdpOptionSlice, NdpOptionsIterator, NeighborAdvertisementPayloadSlice, NeighborSolicitationPayloadSlice,
    RouterAdvertisementPayloadSlice, RouterSolicitationPayloadSlice,
};
use etherparse::{
    ArpHardwareId, ArpPacketSlice, EtherType, Icmpv6Slice, IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice,
    Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, SingleVlanHeaderSlice, UdpHeaderSlice, ether_type, ip_number,
};

use super::ethernet::is_tag;
use super::{HEADER_LEN, Mac, TAG_LEN};

/// Maximum number of bytes parsed: enough for hundreds of tags or options, and a bound on the work.
const FIRST: usize = 2048;

/// UDP ports of DHCP (RFC 2131, 4.1).
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;

/// The port of DHCPv6 servers and relay agents (RFC 8415, 7.2).
const DHCPV6_SERVER: u16 = 547;

/// Minimum ethertype; smaller values are the length of an LLC frame (IEEE 802.3, 3.2.6).
const FIRST_ETHERTYPE: u16 = 0x0600;

/// The ethertype of LLC frames whose length does not fit into the length field (draft-ietf-isis-ext-eth).
const LONG_LLC: EtherType = EtherType(0x8870);

/// L3 sender of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenderInfo {
    /// None: neither ARP nor IP.
    Nothing,
    /// The sender cannot be parsed.
    Unreadable,
    /// ARP for IPv4 over Ethernet (RFC 826): the sender has this pair of addresses.
    Arp {
        /// The sender's hardware address.
        mac: Mac,
        /// The sender's protocol address.
        ip: Ipv4Addr,
    },
    /// IPv4: the source address.
    V4 {
        /// Source address.
        ip: Ipv4Addr,
        /// Whether an RFC lets hosts without an address send this: DHCP from client to server port, and IGMP. Set
        /// only if the source is unspecified.
        address_acquisition: bool,
    },
    /// IPv6: the source address.
    V6 {
        /// Source address.
        ip: Ipv6Addr,
        /// Whether an RFC lets hosts send this from the unspecified address, or from a self-formed link-local
        /// address: MLD and neighbor discovery of hosts; from a link-local address also DHCPv6 to a server. Set
        /// only if the source is one of these.
        address_acquisition: bool,
        /// Sender in the neighbor discovery message, if any.
        neighbor: Neighbor,
    },
}

/// Sender in a neighbor discovery message (RFC 4861, 4). Empty for other messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Neighbor {
    /// Advertised address.
    pub target: Option<Ipv6Addr>,
    /// Link-layer address of the advertised address, or of the source if none is advertised.
    pub lladdr: Option<Mac>,
}

/// The headers cannot be parsed.
struct Unreadable;

impl SenderInfo {
    /// Parses a frame from its first bytes: all of them, or at least 2048.
    #[inline]
    pub fn read(frame: &[u8]) -> SenderInfo {
        match frame.get(HEADER_LEN - 2..HEADER_LEN) {
            // Fast path for most frames.
            Some([0x08, 0x00]) => read_v4(&frame[HEADER_LEN..]),
            Some(&[a, b]) => read_other(EtherType(u16::from_be_bytes([a, b])), first(&frame[HEADER_LEN..])),
            _ => Err(Unreadable),
        }
        .unwrap_or(SenderInfo::Unreadable)
    }
}

/// Limits the bytes that are parsed.
fn first(bytes: &[u8]) -> &[u8] {
    bytes.get(..FIRST).unwrap_or(bytes)
}

#[inline(never)]
fn read_other(mut kind: EtherType, mut rest: &[u8]) -> Result<SenderInfo, Unreadable> {
    // Tags and LLC headers in any order: each step consumes bytes.
    loop {
        if is_tag(kind) {
            kind = SingleVlanHeaderSlice::from_slice(rest).map_err(|_| Unreadable)?.ether_type();
            rest = &rest[TAG_LEN..];
        } else if kind.0 < FIRST_ETHERTYPE || kind == LONG_LLC {
            // The length is not checked: receivers differ in how they handle a wrong one.
            match read_llc(rest)? {
                Some(inner) => (kind, rest) = inner,
                None => return Ok(SenderInfo::Nothing),
            }
        } else {
            break;
        }
    }
    match kind {
        ether_type::IPV4 => read_v4(rest),
        ether_type::IPV6 => read_v6(rest),
        ether_type::ARP => read_arp(rest),
        _ => Ok(SenderInfo::Nothing),
    }
}

/// Service access points of LLC (IEEE 802.2), without the bit that distinguishes groups: that of SNAP, and those once
/// assigned to IP and ARP themselves (RFC 948; IANA, "IEEE 802 Numbers").
const SNAP: u8 = 0xaa;
const LLC_IP: u8 = 0x06;
const LLC_ARP: u8 = 0x98;

/// Parses an LLC header. Returns its ethertype and payload; `None` if it carries no ethertype.
fn read_llc(bytes: &[u8]) -> Result<Option<(EtherType, &[u8])>, Unreadable> {
    let (&dsap, rest) = bytes.split_first().ok_or(Unreadable)?;
    // The source access point is ignored: receivers use the destination's.
    match dsap & !1 {
        SNAP => read_snap(rest.get(1..).ok_or(Unreadable)?),
        LLC_IP => Ok(Some((ether_type::IPV4, rest.get(2..).ok_or(Unreadable)?))),
        LLC_ARP => Ok(Some((ether_type::ARP, rest.get(2..).ok_or(Unreadable)?))),
        _ => Ok(None),
    }
}

/// Parses a SNAP header from the LLC control field on.
fn read_snap(bytes: &[u8]) -> Result<Option<(EtherType, &[u8])>, Unreadable> {
    /// The last two bits of the control field of an unnumbered frame, which is one byte long.
    const UNNUMBERED: u8 = 0b11;
    let (&control, rest) = bytes.split_first().ok_or(Unreadable)?;
    let inner = read_protocol(rest)?;
    // Other control fields are two bytes long, and no protocol sends IP or ARP behind them. Receivers that do not
    // look at the control field, and those that do, find the protocol in different places: neither may find one.
    if control & UNNUMBERED != UNNUMBERED
        && (inner.is_some() || read_protocol(rest.get(1..).ok_or(Unreadable)?)?.is_some())
    {
        return Err(Unreadable);
    }
    Ok(inner)
}

/// Parses the SNAP protocol: an organisation and its protocol number. Two organisations use ethertypes: 0 (RFC
/// 1042), and bridges to other media (IEEE 802.1H).
fn read_protocol(bytes: &[u8]) -> Result<Option<(EtherType, &[u8])>, Unreadable> {
    let (organisation, rest) = bytes.split_first_chunk::<3>().ok_or(Unreadable)?;
    match organisation {
        [0, 0, 0 | 0xf8] => {
            let (kind, rest) = rest.split_first_chunk::<2>().ok_or(Unreadable)?;
            Ok(Some((EtherType(u16::from_be_bytes(*kind)), rest)))
        }
        _ => Ok(None),
    }
}

fn read_arp(bytes: &[u8]) -> Result<SenderInfo, Unreadable> {
    let arp = ArpPacketSlice::from_slice(bytes).map_err(|_| Unreadable)?;
    let is_usual = arp.hw_addr_type() == ArpHardwareId::ETHERNET && arp.proto_addr_type() == ether_type::IPV4;
    match (arp.sender_hw_addr().try_into(), arp.sender_protocol_addr().try_into()) {
        (Ok(mac), Ok::<[u8; 4], _>(ip)) if is_usual => Ok(SenderInfo::Arp { mac: Mac::new(mac), ip: ip.into() }),
        _ => Err(Unreadable),
    }
}

#[inline]
fn read_v4(bytes: &[u8]) -> Result<SenderInfo, Unreadable> {
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| Unreadable)?;
    let ip = header.source_addr();
    Ok(SenderInfo::V4 {
        ip,
        address_acquisition: ip.is_unspecified() && needs_no_v4_address(&header, &bytes[header.slice().len()..]),
    })
}

/// Whether an RFC lets hosts without an address send this IPv4 packet: a DHCP request (RFC 2131, 4.1), or group
/// membership (IGMP: RFC 3376, 4.2.13; of proxies: RFC 4541, 2.1.1).
#[inline(never)]
fn needs_no_v4_address(header: &Ipv4HeaderSlice<'_>, rest: &[u8]) -> bool {
    let is_whole = !header.is_fragmenting_payload();
    match header.protocol() {
        ip_number::IGMP => is_whole,
        ip_number::UDP => {
            is_whole
                && UdpHeaderSlice::from_slice(rest)
                    .is_ok_and(|udp| udp.source_port() == DHCP_CLIENT && udp.destination_port() == DHCP_SERVER)
        }
        _ => false,
    }
}

fn read_v6(bytes: &[u8]) -> Result<SenderInfo, Unreadable> {
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Unreadable)?;
    let ip = header.source_addr();
    let mut rest = &bytes[header.slice().len()..];
    let mut kind = header.next_header();
    let mut is_fragment = false;
    // Extension headers are skipped in any order (RFC 8200, 4.1): the receiver checks their order.
    loop {
        let len = match kind {
            ip_number::IPV6_HOP_BY_HOP | ip_number::IPV6_ROUTE | ip_number::IPV6_DEST_OPTIONS => {
                let extension = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| Unreadable)?;
                kind = extension.next_header();
                extension.slice().len()
            }
            ip_number::AUTH => {
                let extension = IpAuthHeaderSlice::from_slice(rest).map_err(|_| Unreadable)?;
                kind = extension.next_header();
                extension.slice().len()
            }
            ip_number::IPV6_FRAG => {
                let extension = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| Unreadable)?;
                if extension.fragment_offset().value() != 0 {
                    // A later fragment: the first one has been parsed or dropped.
                    return Ok(SenderInfo::V6 { ip, address_acquisition: false, neighbor: Neighbor::default() });
                }
                is_fragment = true;
                kind = extension.next_header();
                extension.slice().len()
            }
            _ => break,
        };
        rest = &rest[len..];
    }
    if kind != ip_number::IPV6_ICMP {
        let address_acquisition =
            kind == ip_number::UDP && !is_fragment && ip.is_unicast_link_local() && is_for_dhcp_server(rest);
        return Ok(SenderInfo::V6 { ip, address_acquisition, neighbor: Neighbor::default() });
    }
    // Padding may follow the packet.
    let after = bytes.len() - rest.len() - header.slice().len();
    let len = usize::from(header.payload_length()).checked_sub(after).ok_or(Unreadable)?;
    read_icmp(ip, rest, len, is_fragment)
}

/// Parses an ICMPv6 message of `len` bytes at the start of `bytes`.
fn read_icmp(ip: Ipv6Addr, bytes: &[u8], len: usize, is_fragment: bool) -> Result<SenderInfo, Unreadable> {
    let message = bytes.get(..len);
    let kind = *message.unwrap_or(bytes).first().ok_or(Unreadable)?;
    let neighbor = match kind {
        // Receivers ignore fragmented neighbor discovery (RFC 6980, 5).
        icmpv6::TYPE_ROUTER_SOLICITATION..=icmpv6::TYPE_NEIGHBOR_ADVERTISEMENT if is_fragment => {
            return Err(Unreadable);
        }
        icmpv6::TYPE_ROUTER_SOLICITATION..=icmpv6::TYPE_NEIGHBOR_ADVERTISEMENT => {
            let message = Icmpv6Slice::from_slice(message.ok_or(Unreadable)?).map_err(|_| Unreadable)?;
            read_neighbor(kind, message.payload())?
        }
        _ => Neighbor::default(),
    };
    let address_acquisition = match ip.is_unspecified() {
        true => is_allowed_from_unspecified(kind),
        false => ip.is_unicast_link_local() && is_host_message(kind),
    };
    Ok(SenderInfo::V6 { ip, address_acquisition, neighbor })
}

/// Whether a datagram goes to a DHCPv6 server or relay agent. Clients send from a link-local address, whatever
/// other addresses they have (RFC 8415, 17.1).
fn is_for_dhcp_server(bytes: &[u8]) -> bool {
    UdpHeaderSlice::from_slice(bytes).is_ok_and(|udp| udp.destination_port() == DHCPV6_SERVER)
}

/// MLD version 2 (RFC 3810, 5.2).
const LISTENER_REPORT_V2: u8 = 143;
/// Secure neighbor discovery (RFC 3971, 6.4.1).
const CERTIFICATION_PATH_SOLICITATION: u8 = 148;

/// Whether hosts send this ICMPv6 type from their link-local address to configure themselves: what they may send
/// without an address, and neighbor advertisement. Excludes router advertisement and redirect, which change how
/// other hosts send: a router needs a binding for its source address.
const fn is_host_message(kind: u8) -> bool {
    is_allowed_from_unspecified(kind) || kind == icmpv6::TYPE_NEIGHBOR_ADVERTISEMENT
}

/// Whether hosts without an address may send this ICMPv6 type: group listeners (RFC 3590, 4), router solicitation
/// (RFC 4861, 4.1), also for certificates (RFC 3971, 6.4.1), and neighbor solicitation for duplicate address
/// detection (RFC 4862, 5.4.2).
const fn is_allowed_from_unspecified(kind: u8) -> bool {
    matches!(
        kind,
        icmpv6::TYPE_MULTICAST_LISTENER_QUERY
            | icmpv6::TYPE_MULTICAST_LISTENER_REPORT
            | icmpv6::TYPE_MULTICAST_LISTENER_REDUCTION
            | icmpv6::TYPE_ROUTER_SOLICITATION
            | icmpv6::TYPE_NEIGHBOR_SOLICITATION
            | LISTENER_REPORT_V2
            | CERTIFICATION_PATH_SOLICITATION
    )
}

/// Parses a neighbor discovery message after its first eight bytes.
fn read_neighbor(kind: u8, payload: &[u8]) -> Result<Neighbor, Unreadable> {
    let (target, options) = match kind {
        icmpv6::TYPE_ROUTER_SOLICITATION => {
            let message = RouterSolicitationPayloadSlice::from_slice(payload).map_err(|_| Unreadable)?;
            (None, message.options_iterator())
        }
        icmpv6::TYPE_ROUTER_ADVERTISEMENT => {
            let message = RouterAdvertisementPayloadSlice::from_slice(payload).map_err(|_| Unreadable)?;
            (None, message.options_iterator())
        }
        icmpv6::TYPE_NEIGHBOR_SOLICITATION => {
            let message = NeighborSolicitationPayloadSlice::from_slice(payload).map_err(|_| Unreadable)?;
            (None, message.options_iterator())
        }
        _ => {
            let message = NeighborAdvertisementPayloadSlice::from_slice(payload).map_err(|_| Unreadable)?;
            (Some(message.target_address()), message.options_iterator())
        }
    };
    Ok(Neighbor { target, lladdr: read_lladdr(options, target.is_some())? })
}

/// Link-layer address option of a message: of the target, else of the source. Two different ones are unreadable,
/// because receivers may use either.
fn read_lladdr(options: NdpOptionsIterator<'_>, of_target: bool) -> Result<Option<Mac>, Unreadable> {
    let mut link = None;
    for option in options {
        let address = match option.map_err(|_| Unreadable)? {
            NdpOptionSlice::TargetLinkLayerAddress(option) if of_target => option.link_layer_address(),
            NdpOptionSlice::SourceLinkLayerAddress(option) if !of_target => option.link_layer_address(),
            _ => continue,
        };
        let address = Mac::new(address.try_into().map_err(|_| Unreadable)?);
        if link.replace(address).is_some_and(|before| before != address) {
            return Err(Unreadable);
        }
    }
    Ok(link)
}

#[cfg(test)]
mod tests {
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
                frame(
                    0x0806,
                    &[0, 1, 0x86, 0xdd, 6, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                ),
            ),
            ("ARP with long addresses", frame(0x0806, &[&[0, 1, 8, 0, 8, 4, 0, 1][..], &[0; 24]].concat())),
            ("half a tag", frame(0x8100, &[0, 5])),
            ("a tag and half a type", frame(0x8100, &[0, 5, 8])),
            ("no LLC header", frame(46, &[])),
            ("half a SNAP header", frame(8, &[0xaa, 0xaa, 3, 0, 0, 0, 8])),
            ("SNAP headers without end", frame(46, &[0xaa, 0xaa, 3, 0, 0, 0, 0, 46].repeat(300))),
            (
                "IP behind a numbered SNAP frame",
                frame(46, &[&[0xaa, 0xaa, 0, 0, 0, 0, 0, 8, 0][..], &[0; 30]].concat()),
            ),
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
            (
                "a longer address",
                v6(target, 58, &message(135, &target, &[1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
            ),
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
        assert_eq!(
            SenderInfo::read(&twice),
            of_v6(target, false, Neighbor { target: None, lladdr: Some(Mac::new(FROM)) })
        );
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
            assert_eq!(
                SenderInfo::read(&v6(local, 17, &udp)),
                of_v6(local, address_acquisition, NOBODY),
                "to port {port}"
            );
            assert_eq!(SenderInfo::read(&v6([0xfd; 16], 17, &udp)), of_v6([0xfd; 16], false, NOBODY), "to port {port}");
            assert_eq!(SenderInfo::read(&v6(none, 17, &udp)), of_v6(none, false, NOBODY), "to port {port}");
        }
        // An MLD report follows a router alert option.
        let alert = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &message(143, &[], &[])].concat();
        assert_eq!(SenderInfo::read(&v6(none, 0, &alert)), of_v6(none, true, NOBODY));
    }
}
