//! Parses the headers between Ethernet and the transport header of an offload header: IP, or tunnels of IP.
//!
//! The offload header cannot express tunnels. A Linux guest whose netdev takes tunnel offloads sends a TCP GSO
//! packet whose checksum starts at the inner TCP header; only parsing shows the headers before it: VXLAN (RFC
//! 7348), Geneve (RFC 8926), GRE (RFC 2784, 2890), and IP in IP (RFC 2003, 2473, 4213).

use etherparse::{EtherType, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, ether_type, ip_number};

use super::ethernet::is_tag;
use super::offload::{Gso, Offload};
use super::{HEADER_LEN, TAG_LEN};

/// Maximum number of layers before the transport header: two tunnels.
pub(super) const MAX_LAYERS: usize = 6;

/// Bytes of the header of IPv6 without extensions (RFC 8200, 3).
pub(super) const V6_LEN: usize = 40;

const UDP_LEN: usize = 8;
const VXLAN_LEN: usize = 8;
const GENEVE_LEN: usize = 8;

/// VXLAN flag: the network identifier is valid. The flag of the generic extension, which allows any payload, must
/// be clear.
const VXLAN_VALID: u8 = 0x08;
const VXLAN_GENERIC: u8 = 0x04;

/// Ethernet in GRE and Geneve (Trans-Ether bridging).
const ETHERNET: EtherType = EtherType(0x6558);

/// Type of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    V4,
    V6,
    /// UDP header of a tunnel.
    Udp,
    /// GRE without checksum and sequence number.
    Gre,
}

/// Start and end of one layer's header. IPv6 includes its extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// All layers before a transport header.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    layers: [Layer; MAX_LAYERS],
    len: usize,
    /// Transport protocol.
    pub(super) protocol: IpNumber,
    /// Whether a routing header forwards the packet beyond its destination address: the pseudo-header then has
    /// another address.
    pub(super) is_routed: bool,
}

/// Why parsing the layers failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerError {
    /// Not an IP packet, or a truncated header.
    NotIp,
    /// A fragment.
    Fragment,
    /// An unknown header between IP and transport header.
    Unknown,
}

impl Layers {
    /// The layers, outermost first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Layer> + ExactSizeIterator {
        self.layers[..self.len].iter()
    }

    /// The innermost IP header.
    pub(super) fn network(&self) -> Layer {
        self.layers[self.len - 1]
    }

    /// The IP header before layer `index`.
    pub(super) fn network_before(&self, index: usize) -> Option<Layer> {
        self.layers[..index.min(self.len)].last().copied()
    }

    fn push(&mut self, kind: Kind, start: usize, end: usize) -> Result<(), LayerError> {
        *self.layers.get_mut(self.len).ok_or(LayerError::Unknown)? = Layer { kind, start, end };
        self.len += 1;
        Ok(())
    }
}

/// Ethertype after all tags, of a frame or of Ethernet in a tunnel, and offset of the payload.
pub(super) fn network(head: &[u8], start: usize) -> Option<(EtherType, usize)> {
    let mut at = start + HEADER_LEN;
    loop {
        let kind = EtherType(u16::from_be_bytes(*head.get(..at)?.last_chunk()?));
        if !is_tag(kind) {
            return Some((kind, at));
        }
        at += TAG_LEN;
    }
}

/// Whether the transport header of a GSO packet directly follows the outermost IP header and matches the type of
/// its offload header. `None`: not an IP packet.
pub(super) fn is_direct(head: &[u8], offload: Offload) -> Option<bool> {
    let (kind, at) = network(head, 0)?;
    let (protocol, end) = match (kind, offload.gso()?) {
        (ether_type::IPV4, gso) => {
            let start = head.get(at..at + 20)?;
            let protocol = IpNumber(start[9]);
            (protocol, (gso != Gso::TcpV6).then_some(at + usize::from(start[0] & 0x0f) * 4))
        }
        (ether_type::IPV6, gso) => {
            let (protocol, end, _) = v6(head, at).ok()?;
            (protocol, (gso != Gso::TcpV4).then_some(end))
        }
        _ => return None,
    };
    let expected = if offload.gso() == Some(Gso::Udp) { ip_number::UDP } else { ip_number::TCP };
    Some(protocol == expected && end == Some(usize::from(offload.csum_start())))
}

/// Parses the layers of a frame up to the transport header at `transport`.
pub(super) fn read(head: &[u8], transport: usize) -> Result<Layers, LayerError> {
    let empty = Layer { kind: Kind::Udp, start: 0, end: 0 };
    let mut layers = Layers { layers: [empty; MAX_LAYERS], len: 0, protocol: IpNumber(0), is_routed: false };
    let (mut kind, mut at) = network(head, 0).ok_or(LayerError::NotIp)?;
    loop {
        let ip = match kind {
            ether_type::IPV4 => v4(head, at),
            ether_type::IPV6 => v6(head, at),
            _ => Err(LayerError::NotIp),
        };
        let (protocol, end, is_routed) = ip.map_err(|why| match why {
            // It is an IP packet with another payload.
            LayerError::NotIp if layers.len > 0 => LayerError::Unknown,
            why => why,
        })?;
        layers.push(if kind == ether_type::IPV4 { Kind::V4 } else { Kind::V6 }, at, end)?;
        if end >= transport {
            (layers.protocol, layers.is_routed) = (protocol, is_routed);
            return if end == transport { Ok(layers) } else { Err(LayerError::Unknown) };
        }
        // The tunnel's pseudo-header would also have to be known.
        if is_routed {
            return Err(LayerError::Unknown);
        }
        (kind, at) = match protocol {
            ip_number::IPV4 => (ether_type::IPV4, end),
            ip_number::IPV6 => (ether_type::IPV6, end),
            ip_number::GRE => {
                let (inner, inside) = gre(head, end).ok_or(LayerError::Unknown)?;
                layers.push(Kind::Gre, end, inside)?;
                within(head, inner, inside)?
            }
            ip_number::UDP => {
                let (inner, inside) = udp_tunnel(head, end).ok_or(LayerError::Unknown)?;
                layers.push(Kind::Udp, end, inside)?;
                within(head, inner, inside)?
            }
            ip_number::IPV6_FRAGMENTATION_HEADER => return Err(LayerError::Fragment),
            _ => return Err(LayerError::Unknown),
        };
    }
}

/// Payload of a tunnel, after an inner Ethernet header if there is one.
fn within(head: &[u8], kind: EtherType, at: usize) -> Result<(EtherType, usize), LayerError> {
    if kind == ETHERNET { network(head, at).ok_or(LayerError::Unknown) } else { Ok((kind, at)) }
}

/// Protocol after an IPv4 header at `at`, and its offset.
fn v4(head: &[u8], at: usize) -> Result<(IpNumber, usize, bool), LayerError> {
    let header = Ipv4HeaderSlice::from_slice(head.get(at..).unwrap_or_default()).map_err(|_| LayerError::NotIp)?;
    if header.is_fragmenting_payload() {
        return Err(LayerError::Fragment);
    }
    Ok((header.protocol(), at + header.slice().len(), false))
}

/// The same for IPv6 with extension headers, and whether a routing header forwards the packet. Stops at a header
/// that belongs to one packet only or authenticates it (RFC 4302), as at an unknown protocol.
fn v6(head: &[u8], at: usize) -> Result<(IpNumber, usize, bool), LayerError> {
    let header = Ipv6HeaderSlice::from_slice(head.get(at..).unwrap_or_default()).map_err(|_| LayerError::NotIp)?;
    let (mut next, mut at, mut is_routed) = (header.next_header(), at + V6_LEN, false);
    loop {
        match next {
            ip_number::IPV6_HEADER_HOP_BY_HOP | ip_number::IPV6_DESTINATION_OPTIONS => {}
            // Segments left (RFC 8200, 4.4).
            ip_number::IPV6_ROUTE_HEADER => is_routed |= head.get(at + 3).is_none_or(|&left| left != 0),
            ip_number::IPV6_FRAGMENTATION_HEADER => return Err(LayerError::Fragment),
            _ => return Ok((next, at, is_routed)),
        }
        // Next header, and length in units of 8 bytes without the first (RFC 8200, 4.2 to 4.6).
        let &[following, units] = head.get(at..).and_then(|rest| rest.first_chunk()).ok_or(LayerError::Unknown)?;
        next = IpNumber(following);
        at += 8 * (usize::from(units) + 1);
    }
}

/// Payload of GRE at `at`, and its offset. `None` with a checksum or sequence number, which would differ per
/// segment.
fn gre(head: &[u8], at: usize) -> Option<(EtherType, usize)> {
    let &[flags, version, a, b] = head.get(at..)?.first_chunk()?;
    let has_key = flags & 0x20 != 0;
    let is_plain = flags & !0x20 == 0 && version == 0;
    is_plain.then_some((EtherType(u16::from_be_bytes([a, b])), at + if has_key { 8 } else { 4 }))
}

/// Payload of VXLAN or Geneve after UDP at `at`, and its offset. Ignores ports, which are configurable.
fn udp_tunnel(head: &[u8], at: usize) -> Option<(EtherType, usize)> {
    let at = at + UDP_LEN;
    let &[first, _, a, b] = head.get(at..)?.first_chunk()?;
    let kind = EtherType(u16::from_be_bytes([a, b]));
    let is_geneve = first >> 6 == 0 && matches!(kind, ETHERNET | ether_type::IPV4 | ether_type::IPV6);
    if is_geneve {
        return Some((kind, at + GENEVE_LEN + usize::from(first & 0x3f) * 4));
    }
    let is_vxlan = first & (VXLAN_VALID | VXLAN_GENERIC) == VXLAN_VALID;
    is_vxlan.then_some((ETHERNET, at + VXLAN_LEN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(
            mut head in vec(any::<u8>(), 0..120), transport in 0usize..140, start: bool, v6: bool, next in 0u8..64,
        ) {
            if start && head.len() > 40 {
                head[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
                head[14] = if v6 { 0x60 } else { 0x45 };
                head[if v6 { 20 } else { 23 }] = next;
            }
            if let Ok(layers) = read(&head, transport) {
                prop_assert_eq!(layers.network().end, transport);
                prop_assert!(layers.iter().all(|layer| layer.start < layer.end && layer.end <= transport));
            }
        }
    }
}
