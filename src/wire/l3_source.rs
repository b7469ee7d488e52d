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
mod tests;
