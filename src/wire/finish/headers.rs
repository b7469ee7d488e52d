//! The headers of a super-frame: what each of its frames gets, changed for its place.

use etherparse::{EtherType, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice, ether_type, ip_number};

use super::Unfinishable;
use crate::wire::checksum::Checksum;
use crate::wire::ethernet::is_tag;
use crate::wire::offload::Gso;
use crate::wire::{HEADER_LEN, Offload, TAG_LEN};

/// Bytes of headers that a super-frame may have: Ethernet, four tags, IPv6, the longest header of TCP,
/// and 126 bytes of extensions between these two.
pub(super) const MOST_HEADERS: usize = 256;

// Where things stand in the header of TCP (RFC 9293, 3.1),
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 12;
const TCP_CSUM: usize = 16;
const TCP_URGENT: usize = 18;
const FIN: u16 = 0x01;
const PSH: u16 = 0x08;
const URG: u16 = 0x20;
const CWR: u16 = 0x80;
// of UDP (RFC 768),
const UDP_LENGTH: usize = 4;
const UDP_CSUM: usize = 6;
// of IPv4 (RFC 791, 3.1),
const V4_LENGTH: usize = 2;
const V4_ID: usize = 4;
const V4_CSUM: usize = 10;
// and of IPv6 (RFC 8200, 3).
const V6_LENGTH: usize = 4;
const V6_LEN: usize = 40;

/// The headers of a super-frame, read once.
///
/// What differs from frame to frame is taken out, and what is left is summed up: for each frame it is put
/// in, and added to these sums.
#[derive(Debug, Clone)]
pub(super) struct Headers {
    /// What all have in common: the first `len` of them, zero where they differ.
    bytes: [u8; MOST_HEADERS],
    len: usize,
    is_v4: bool,
    is_tcp: bool,
    /// Where the header of IP begins.
    network: usize,
    /// Where that of TCP or UDP begins.
    transport: usize,
    /// The number of the packet, of IPv4.
    id: u16,
    /// What differs in a header of TCP.
    tcp: Tcp,
    /// The sum of the header of IPv4.
    network_sum: Checksum,
    /// That of the header of TCP or UDP, and of the pseudo-header without its length.
    transport_sum: Checksum,
}

/// What differs from frame to frame in a header of TCP.
#[derive(Debug, Clone, Copy, Default)]
struct Tcp {
    sequence: u32,
    /// The flags, and the length of the header in front of them.
    flags: u16,
    urgent: u16,
}

/// The place of a frame in its super-frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    /// How many frames are in front of it.
    pub(super) index: u16,
    /// Bytes of payload in front of it.
    pub(super) before: u32,
    /// Bytes of payload in it.
    pub(super) payload: u16,
    pub(super) is_last: bool,
}

impl Headers {
    /// Reads the headers of a super-frame of `len` bytes, the first `headers` of `head`. What is not
    /// wholly understood is refused.
    pub(super) fn read(
        head: &[u8],
        headers: u16,
        len: u32,
        gso: Gso,
        offload: Offload,
    ) -> Result<Headers, Unfinishable> {
        let headers = usize::from(headers);
        let head = head.get(..headers).ok_or(Unfinishable::TooManyHeaders)?;
        let mut bytes = [0; MOST_HEADERS];
        bytes.get_mut(..headers).ok_or(Unfinishable::TooManyHeaders)?.copy_from_slice(head);
        let transport = usize::from(offload.csum_start());
        let (kind, network) = network(head).ok_or(Unfinishable::Contradiction)?;
        let (ip, segment) = match (head.get(network..transport), head.get(transport..)) {
            (Some(ip), Some(segment)) => (ip, segment),
            _ => return Err(Unfinishable::Contradiction),
        };
        let is_tcp = gso != Gso::Udp;
        let protocol = if is_tcp { ip_number::TCP } else { ip_number::UDP };
        // Behind the header of IP there is nothing but what it speaks of: no padding that would be taken
        // for payload.
        let length = len as usize - network;
        let is_v4 = match kind {
            ether_type::IPV4 if gso != Gso::TcpV6 => {
                read_v4(ip, length, protocol)?;
                true
            }
            ether_type::IPV6 if gso != Gso::TcpV4 => {
                read_v6(ip, length, protocol)?;
                false
            }
            _ => return Err(Unfinishable::Contradiction),
        };
        let length = u16::try_from(length - ip.len()).map_err(|_| Unfinishable::Lengths)?;
        let field = if is_tcp { read_tcp(segment)? } else { read_udp(segment, length)? };
        if usize::from(offload.csum_offset()) != field {
            return Err(Unfinishable::Contradiction);
        }
        let (network_bytes, segment) = bytes[..headers].split_at_mut(transport);
        let ip = &mut network_bytes[network..];
        let mut transport_sum = Checksum::default();
        transport_sum.add_number(take(segment, field));
        // What the sender has added for the whole, each frame gets for itself.
        transport_sum.take_off(length);
        let mut tcp = Tcp::default();
        if is_tcp {
            let [high, low] = [take(segment, TCP_SEQUENCE), take(segment, TCP_SEQUENCE + 2)].map(u32::from);
            tcp.sequence = high << 16 | low;
            (tcp.flags, tcp.urgent) = (take(segment, TCP_FLAGS), take(segment, TCP_URGENT));
        } else {
            take(segment, UDP_LENGTH);
        }
        transport_sum.add(segment);
        let (mut id, mut network_sum) = (0, Checksum::default());
        if is_v4 {
            take(ip, V4_LENGTH);
            take(ip, V4_CSUM);
            id = take(ip, V4_ID);
            network_sum.add(ip);
        }
        Ok(Headers { bytes, len: headers, is_v4, is_tcp, network, transport, id, tcp, network_sum, transport_sum })
    }

    /// How many bytes they are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Writes the headers of the frame at `seat` to `out`. `payload`: the sum of its payload.
    pub(super) fn write<'o>(&self, seat: Seat, payload: Checksum, out: &'o mut [u8; MOST_HEADERS]) -> &'o [u8] {
        let out = &mut out[..self.len];
        out.copy_from_slice(&self.bytes[..self.len]);
        let (network, segment) = out.split_at_mut(self.transport);
        let network = &mut network[self.network..];
        let length = short(segment.len()) + seat.payload;
        if self.is_v4 {
            let mut sum = self.network_sum;
            put(network, V4_LENGTH, short(network.len()) + length, &mut sum);
            // Each is a packet of its own, numbered from the number of the super-frame on.
            put(network, V4_ID, self.id.wrapping_add(seat.index), &mut sum);
            network[V4_CSUM..][..2].copy_from_slice(&sum.finish());
        } else {
            let length = short(network.len() - V6_LEN) + length;
            network[V6_LENGTH..][..2].copy_from_slice(&length.to_be_bytes());
        }
        let mut sum = self.transport_sum;
        sum.add_number(length);
        sum.join(payload);
        if self.is_tcp {
            self.tcp.write(segment, seat, &mut sum);
            segment[TCP_CSUM..][..2].copy_from_slice(&sum.finish());
        } else {
            put(segment, UDP_LENGTH, length, &mut sum);
            segment[UDP_CSUM..][..2].copy_from_slice(&super::closed(sum.finish()));
        }
        out
    }
}

impl Tcp {
    /// What is said once must not be heard twice: that the window was reduced (RFC 3168, 6.1.2) is for the
    /// first frame to say, the push and the end of the stream are for the last. Where urgent data ends is
    /// counted from where each frame begins, and is no news behind that.
    fn write(&self, segment: &mut [u8], seat: Seat, sum: &mut Checksum) {
        let (mut flags, mut urgent) = (self.flags, self.urgent);
        if seat.index > 0 {
            flags &= !CWR;
        }
        if !seat.is_last {
            flags &= !(FIN | PSH);
        }
        if flags & URG != 0 {
            match u16::try_from(seat.before).ok().and_then(|before| urgent.checked_sub(before)) {
                Some(left) => urgent = left,
                None => (flags, urgent) = (flags & !URG, 0),
            }
        }
        let [a, b, c, d] = self.sequence.wrapping_add(seat.before).to_be_bytes();
        put(segment, TCP_SEQUENCE, u16::from_be_bytes([a, b]), sum);
        put(segment, TCP_SEQUENCE + 2, u16::from_be_bytes([c, d]), sum);
        put(segment, TCP_FLAGS, flags, sum);
        put(segment, TCP_URGENT, urgent, sum);
    }
}

/// The type of a frame behind all its tags, and where its payload begins.
fn network(head: &[u8]) -> Option<(EtherType, usize)> {
    let mut at = HEADER_LEN;
    loop {
        let kind = EtherType(u16::from_be_bytes(*head.get(..at)?.last_chunk()?));
        if !is_tag(kind) {
            return Some((kind, at));
        }
        at += TAG_LEN;
    }
}

/// Checks what stands between Ethernet and transport: a header of IPv4 that speaks of `length` bytes.
fn read_v4(ip: &[u8], length: usize, protocol: IpNumber) -> Result<(), Unfinishable> {
    let header = Ipv4HeaderSlice::from_slice(ip).map_err(|_| Unfinishable::Contradiction)?;
    if header.is_fragmenting_payload() {
        return Err(Unfinishable::Fragment);
    }
    if header.slice().len() != ip.len() || header.protocol() != protocol {
        return Err(Unfinishable::Tunnel);
    }
    if usize::from(header.total_len()) != length {
        return Err(Unfinishable::Lengths);
    }
    Ok(())
}

/// The same for IPv6 with its extensions. What belongs to one packet only, or vouches for it, is
/// refused: a fragment, authentication (RFC 4302).
fn read_v6(ip: &[u8], length: usize, protocol: IpNumber) -> Result<(), Unfinishable> {
    let header = Ipv6HeaderSlice::from_slice(ip).map_err(|_| Unfinishable::Contradiction)?;
    let (mut next, mut at) = (header.next_header(), V6_LEN);
    while at < ip.len() {
        match next {
            ip_number::IPV6_HEADER_HOP_BY_HOP | ip_number::IPV6_ROUTE_HEADER | ip_number::IPV6_DESTINATION_OPTIONS => {}
            ip_number::IPV6_FRAGMENTATION_HEADER => return Err(Unfinishable::Fragment),
            _ => return Err(Unfinishable::Tunnel),
        }
        // The next header, and a length in units of 8 bytes without the first (RFC 8200, 4.2 to 4.6).
        let &[following, units] = ip[at..].first_chunk().ok_or(Unfinishable::Contradiction)?;
        next = IpNumber(following);
        at += 8 * (usize::from(units) + 1);
    }
    if at != ip.len() || next != protocol {
        return Err(Unfinishable::Tunnel);
    }
    if usize::from(header.payload_length()) + V6_LEN != length {
        return Err(Unfinishable::Lengths);
    }
    Ok(())
}

/// Checks a header of TCP, and says where its checksum stands.
fn read_tcp(segment: &[u8]) -> Result<usize, Unfinishable> {
    let header = TcpHeaderSlice::from_slice(segment).map_err(|_| Unfinishable::Contradiction)?;
    // What opens or breaks a connection is no part of a stream.
    if header.slice().len() != segment.len() || header.syn() || header.rst() {
        return Err(Unfinishable::Contradiction);
    }
    Ok(TCP_CSUM)
}

/// Checks a header of UDP that speaks of `length` bytes, and says where its checksum stands.
fn read_udp(segment: &[u8], length: u16) -> Result<usize, Unfinishable> {
    match segment.get(UDP_LENGTH..UDP_LENGTH + 2) {
        Some(_) if number(segment, UDP_LENGTH) == length => Ok(UDP_CSUM),
        _ => Err(Unfinishable::Lengths),
    }
}

fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Puts a number where there was zero, and adds it to the sum of what it stands in.
fn put(bytes: &mut [u8], at: usize, number: u16, sum: &mut Checksum) {
    bytes[at..][..2].copy_from_slice(&number.to_be_bytes());
    sum.add_number(number);
}

/// Takes a number out, and leaves zero.
fn take(bytes: &mut [u8], at: usize) -> u16 {
    let taken = number(bytes, at);
    bytes[at..][..2].fill(0);
    taken
}

/// A length within a frame of which IP says in 16 bits how long it is.
#[allow(clippy::cast_possible_truncation)] // `read_v4` and `read_v6` have compared it
const fn short(length: usize) -> u16 {
    length as u16
}
