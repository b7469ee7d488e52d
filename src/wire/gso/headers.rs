//! Header template of a GSO packet: writes the headers of each segment.

use etherparse::{TcpHeaderSlice, ip_number};

use super::GsoError;
use crate::wire::Offload;
use crate::wire::checksum::Checksum;
use crate::wire::layers::{self, Kind, Layer, LayerError, Layers, V6_LEN};
use crate::wire::offload::Gso;

/// Maximum length of a GSO packet's headers in bytes: Ethernet, four tags, IPv6, the longest TCP header, and 126
/// bytes of extension or tunnel headers.
pub(super) const MAX_HEADERS: usize = 256;

// Field offsets of TCP (RFC 9293, 3.1),
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 12;
pub(super) const TCP_CSUM: usize = 16;
const TCP_URGENT: usize = 18;
const FIN: u16 = 0x01;
const PSH: u16 = 0x08;
const URG: u16 = 0x20;
const CWR: u16 = 0x80;
// of UDP (RFC 768),
pub(super) const UDP_LENGTH: usize = 4;
pub(super) const UDP_CSUM: usize = 6;
const UDP_LEN: usize = 8;
// of IPv4 (RFC 791, 3.1),
const V4_LENGTH: usize = 2;
const V4_ID: usize = 4;
const V4_CSUM: usize = 10;
const V4_ADDRESSES: std::ops::Range<usize> = 12..20;
// and of IPv6 (RFC 8200, 3).
const V6_LENGTH: usize = 4;
const V6_ADDRESSES: std::ops::Range<usize> = 8..40;

/// Parsed headers of a GSO packet.
///
/// Fields of the transport header that differ per segment are removed and the rest is summed once; each segment
/// inserts its fields and adds them to the sum.
/// segment it is put in, and added to this sum.
#[derive(Debug, Clone)]
pub(super) struct Headers {
    /// The common bytes; the first `len` are valid.
    bytes: [u8; MAX_HEADERS],
    len: usize,
    layers: Layers,
    is_tcp: bool,
    /// Offset of the TCP or UDP header.
    transport: usize,
    /// TCP fields that differ per segment.
    tcp: Tcp,
    /// Sum of the pseudo-header without its length.
    pseudo: Checksum,
    /// Sum of the TCP or UDP header.
    transport_sum: Checksum,
}

/// TCP header fields that differ per segment.
#[derive(Debug, Clone, Copy, Default)]
struct Tcp {
    sequence: u32,
    /// The flags, with the header length in the upper bits.
    flags: u16,
    urgent: u16,
}

/// Position of a segment in its GSO packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentPosition {
    /// Number of earlier segments.
    pub(super) index: u16,
    /// Payload bytes of earlier segments.
    pub(super) before: u32,
    /// Payload bytes of this segment.
    pub(super) payload: u16,
    pub(super) is_last: bool,
}

impl Headers {
    /// Parses the headers of a GSO packet of `len` bytes: the first `headers` bytes of `head`. Rejects headers that
    /// it does not understand completely.
    pub(super) fn read(head: &[u8], headers: u16, len: u32, gso: Gso, offload: Offload) -> Result<Headers, GsoError> {
        let headers = usize::from(headers);
        let head = head.get(..headers).ok_or(GsoError::TooManyHeaders)?;
        let mut bytes = [0; MAX_HEADERS];
        bytes.get_mut(..headers).ok_or(GsoError::TooManyHeaders)?.copy_from_slice(head);
        let transport = usize::from(offload.csum_start());
        let layers = layers::read(head, transport).map_err(|why| match why {
            LayerError::NotIp => GsoError::Inconsistent,
            LayerError::Fragment => GsoError::Fragment,
            LayerError::Unknown => GsoError::Tunnel,
        })?;
        let is_tcp = gso != Gso::Udp;
        if layers.protocol != if is_tcp { ip_number::TCP } else { ip_number::UDP } {
            return Err(GsoError::Tunnel);
        }
        let network = layers.network();
        let is_of_type = match network.kind {
            Kind::V4 => gso != Gso::TcpV6,
            _ => gso != Gso::TcpV4,
        };
        if !is_of_type {
            return Err(GsoError::Inconsistent);
        }
        let len = len as usize;
        if !layers.iter().all(|layer| matches_length(head, *layer, len)) {
            return Err(GsoError::Lengths);
        }
        let (segment, length) = (&head[transport..], len - transport);
        let field = if is_tcp { read_tcp(segment)? } else { read_udp(segment, length, offload.segment_size())? };
        if usize::from(offload.csum_offset()) != field {
            return Err(GsoError::Inconsistent);
        }
        let (mut pseudo_sum, mut transport_sum) = (Checksum::default(), Checksum::default());
        let segment = &mut bytes[transport..headers];
        let seed = take_u16(segment, field);
        if layers.is_routed {
            // Only the sender knows the final destination in its pseudo-header, so the initial sum of the whole
            // packet is applied to each segment.
            pseudo_sum.add_number(seed);
            // Its length is that of the UDP header, if there is one.
            let said = if is_tcp { 0 } else { number(segment, UDP_LENGTH) };
            let whole = u16::try_from(length).map_err(|_| GsoError::Lengths)?;
            pseudo_sum.subtract(if said == 0 { whole } else { said });
        } else {
            // Some senders leave out the length, or the whole pseudo-header.
            pseudo_sum.append(pseudo(head, network, layers.protocol.0));
        }
        let mut tcp = Tcp::default();
        if is_tcp {
            let [high, low] = [take_u16(segment, TCP_SEQUENCE), take_u16(segment, TCP_SEQUENCE + 2)].map(u32::from);
            tcp.sequence = high << 16 | low;
            (tcp.flags, tcp.urgent) = (take_u16(segment, TCP_FLAGS), take_u16(segment, TCP_URGENT));
        } else {
            take_u16(segment, UDP_LENGTH);
        }
        transport_sum.add(segment);
        Ok(Headers { bytes, len: headers, layers, is_tcp, transport, tcp, pseudo: pseudo_sum, transport_sum })
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Offload that stays pending in a segment with a partial checksum.
    pub(super) fn partial(&self) -> Offload {
        Offload::partial(short(self.transport), short(if self.is_tcp { TCP_CSUM } else { UDP_CSUM }))
    }

    /// Writes the headers of the segment at `position` to `out`. `payload`: sum of its payload; without it, the
    /// transport checksum stays partial.
    pub(super) fn write<'o>(
        &self,
        position: SegmentPosition,
        payload: Option<Checksum>,
        out: &'o mut [u8; MAX_HEADERS],
    ) -> &'o [u8] {
        let out = &mut out[..self.len];
        out.copy_from_slice(&self.bytes[..self.len]);
        let segment = &mut out[self.transport..];
        let length = short(segment.len()) + position.payload;
        let mut pseudo = self.pseudo;
        pseudo.add_number(length);
        let mut sum = self.transport_sum;
        if self.is_tcp {
            self.tcp.write(segment, position, &mut sum);
        } else {
            put(segment, UDP_LENGTH, length);
            sum.add_number(length);
        }
        let field = if self.is_tcp { TCP_CSUM } else { UDP_CSUM };
        // Sum of the transport header and payload with the completed checksum.
        let mut inside = Checksum::default();
        match payload {
            Some(payload) => {
                sum.append(pseudo);
                sum.append(payload);
                let checksum = sum.finish();
                let checksum = if self.is_tcp { checksum } else { super::closed(checksum) };
                segment[field..][..2].copy_from_slice(&checksum);
                inside.add(segment);
                inside.append(payload);
            }
            None => {
                let seed = pseudo.partial();
                segment[field..][..2].copy_from_slice(&seed);
                inside.subtract(u16::from_be_bytes(seed));
            }
        }
        // Innermost first: the checksum of a tunnel covers all that it carries.
        for (index, layer) in self.layers.iter().enumerate().rev() {
            self.write_layer(index, *layer, position, inside, out);
        }
        out
    }

    /// Writes a layer's fields that differ per segment. `inside`: sum of everything after the layer.
    fn write_layer(&self, index: usize, layer: Layer, position: SegmentPosition, inside: Checksum, out: &mut [u8]) {
        let length = short(self.len - layer.start) + position.payload;
        match layer.kind {
            Kind::V4 => {
                let header = &mut out[layer.start..layer.end];
                put(header, V4_LENGTH, length);
                // Each is a packet of its own; IDs count up from the GSO packet's.
                put(header, V4_ID, number(header, V4_ID).wrapping_add(position.index));
                put(header, V4_CSUM, 0);
                let mut sum = Checksum::default();
                sum.add(header);
                header[V4_CSUM..][..2].copy_from_slice(&sum.finish());
            }
            Kind::V6 => put(&mut out[layer.start..], V6_LENGTH, length - short(V6_LEN)),
            Kind::Udp => {
                put(&mut out[layer.start..], UDP_LENGTH, length);
                // A zero checksum stays zero (RFC 768; RFC 6935 for IPv6).
                if number(&out[layer.start..], UDP_CSUM) != 0
                    && let Some(network) = self.layers.network_before(index)
                {
                    put(&mut out[layer.start..], UDP_CSUM, 0);
                    let mut sum = pseudo(out, network, ip_number::UDP.0);
                    sum.add_number(length);
                    sum.add(&out[layer.start..self.transport]);
                    sum.append(inside);
                    out[layer.start + UDP_CSUM..][..2].copy_from_slice(&super::closed(sum.finish()));
                }
            }
            Kind::Gre => {}
        }
    }
}

impl Tcp {
    /// Writes the TCP fields. CWR (RFC 3168, 6.1.2) belongs to the first segment only, PSH and FIN to the last. The
    /// urgent pointer is relative to each segment's sequence number, and is dropped in segments after the urgent
    /// data.
    /// counted from where each segment begins, and is no news behind that.
    fn write(&self, segment: &mut [u8], position: SegmentPosition, sum: &mut Checksum) {
        let (mut flags, mut urgent) = (self.flags, self.urgent);
        if position.index > 0 {
            flags &= !CWR;
        }
        if !position.is_last {
            flags &= !(FIN | PSH);
        }
        if flags & URG != 0 {
            match u16::try_from(position.before).ok().and_then(|before| urgent.checked_sub(before)) {
                Some(left) => urgent = left,
                None => (flags, urgent) = (flags & !URG, 0),
            }
        }
        let [a, b, c, d] = self.sequence.wrapping_add(position.before).to_be_bytes();
        for (at, number) in [
            (TCP_SEQUENCE, u16::from_be_bytes([a, b])),
            (TCP_SEQUENCE + 2, u16::from_be_bytes([c, d])),
            (TCP_FLAGS, flags),
            (TCP_URGENT, urgent),
        ] {
            put(segment, at, number);
            sum.add_number(number);
        }
    }
}

/// Sum of the pseudo-header of `protocol` after this IP header, without the length (RFC 9293, 3.1; RFC 8200, 8.1).
pub(super) fn pseudo(head: &[u8], network: Layer, protocol: u8) -> Checksum {
    let addresses = if network.kind == Kind::V4 { V4_ADDRESSES } else { V6_ADDRESSES };
    let mut sum = Checksum::default();
    sum.add(&head[network.start..][addresses]);
    sum.add_number(protocol.into());
    sum
}

/// Length that an IP or tunnel UDP header declares, in bytes from its start; 0 if none.
pub(super) fn declared_len(head: &[u8], layer: Layer) -> usize {
    let header = &head[layer.start..];
    match layer.kind {
        Kind::V4 => number(header, V4_LENGTH).into(),
        Kind::V6 => match number(header, V6_LENGTH) {
            0 => 0,
            length => usize::from(length) + V6_LEN,
        },
        Kind::Udp => number(header, UDP_LENGTH).into(),
        Kind::Gre => 0,
    }
}

/// Whether the declared length of a layer covers the packet of `len` bytes, without padding that would be taken for
/// payload. Some senders leave the length to the segmenting hop, and packets over 64 KiB have none.
fn matches_length(head: &[u8], layer: Layer, len: usize) -> bool {
    matches!(declared_len(head, layer), said if said == 0 || said == len - layer.start)
}

/// Validates a TCP header and returns its checksum offset.
fn read_tcp(segment: &[u8]) -> Result<usize, GsoError> {
    let header = TcpHeaderSlice::from_slice(segment).map_err(|_| GsoError::Inconsistent)?;
    // SYN and RST segments are not part of a stream.
    if header.slice().len() != segment.len() || header.syn() || header.rst() {
        return Err(GsoError::Inconsistent);
    }
    Ok(TCP_CSUM)
}

/// Validates a UDP header whose length is `length`, that of one segment with `size` payload bytes, or zero. Returns
/// its checksum offset.
fn read_udp(segment: &[u8], length: usize, size: u16) -> Result<usize, GsoError> {
    let said = segment.get(..UDP_LEN).map(|header| usize::from(number(header, UDP_LENGTH)));
    match said {
        Some(said) if said == 0 || said == length || said == UDP_LEN + usize::from(size) => Ok(UDP_CSUM),
        _ => Err(GsoError::Lengths),
    }
}

pub(super) fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Overwrites a 16-bit number.
fn put(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..][..2].copy_from_slice(&number.to_be_bytes());
}

/// Reads a 16-bit number and sets it to zero.
fn take_u16(bytes: &mut [u8], at: usize) -> u16 {
    let taken = number(bytes, at);
    bytes[at..][..2].fill(0);
    taken
}

/// A length within a segment: its headers are few, and its payload is counted in 16 bits.
#[allow(clippy::cast_possible_truncation)] // MAX_HEADERS at most
const fn short(length: usize) -> u16 {
    length as u16
}
