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
const TCP_FLAGS: usize = 13;
const TCP_CSUM: usize = 16;
const TCP_URGENT: usize = 18;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;
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
#[derive(Debug, Clone)]
pub(super) struct Headers {
    /// As they came, but for the checksum of TCP or UDP, which is zero; the first `len` of them.
    bytes: [u8; MOST_HEADERS],
    len: usize,
    is_v4: bool,
    is_tcp: bool,
    /// Where the header of IP begins.
    network: usize,
    /// Where that of TCP or UDP begins.
    transport: usize,
    /// What each checksum begins with: the pseudo-header without its length.
    pseudo: Checksum,
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
        let field = transport + field;
        let mut pseudo = Checksum::default();
        pseudo.add(&bytes[field..field + 2]);
        // What the sender has added for the whole, each frame gets for itself.
        pseudo.take_off(length);
        bytes[field..field + 2].fill(0);
        Ok(Headers { bytes, len: headers, is_v4, is_tcp, network, transport, pseudo })
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
        let length = short(segment.len() + usize::from(seat.payload));
        if self.is_v4 {
            put(network, V4_LENGTH, short(network.len()) + length);
            // Each is a packet of its own, numbered from the number of the super-frame on.
            put(network, V4_ID, number(network, V4_ID).wrapping_add(seat.index));
            put(network, V4_CSUM, 0);
            let mut sum = Checksum::default();
            sum.add(network);
            network[V4_CSUM..][..2].copy_from_slice(&sum.finish());
        } else {
            put(network, V6_LENGTH, short(network.len() - V6_LEN) + length);
        }
        if self.is_tcp {
            write_tcp(segment, seat);
        } else {
            put(segment, UDP_LENGTH, length);
        }
        let mut sum = self.pseudo;
        sum.add_number(length);
        sum.add(segment);
        sum.join(payload);
        let checksum = sum.finish();
        if self.is_tcp {
            segment[TCP_CSUM..][..2].copy_from_slice(&checksum);
        } else {
            segment[UDP_CSUM..][..2].copy_from_slice(&super::closed(checksum));
        }
        out
    }
}

/// What is said once must not be heard twice: that the window was reduced (RFC 3168, 6.1.2) is for the
/// first frame to say, the push and the end of the stream are for the last. Where urgent data ends is
/// counted from where each frame begins, and no news behind that.
fn write_tcp(segment: &mut [u8], seat: Seat) {
    let sequence = &mut segment[TCP_SEQUENCE..][..4];
    let first = sequence.iter().fold(0, |word, &byte| word << 8 | u32::from(byte));
    sequence.copy_from_slice(&first.wrapping_add(seat.before).to_be_bytes());
    if seat.index > 0 {
        segment[TCP_FLAGS] &= !CWR;
    }
    if !seat.is_last {
        segment[TCP_FLAGS] &= !(FIN | PSH);
    }
    if segment[TCP_FLAGS] & URG != 0 {
        let urgent = u32::from(number(segment, TCP_URGENT)).checked_sub(seat.before);
        match urgent.and_then(|urgent| u16::try_from(urgent).ok()) {
            Some(urgent) => put(segment, TCP_URGENT, urgent),
            None => {
                segment[TCP_FLAGS] &= !URG;
                put(segment, TCP_URGENT, 0);
            }
        }
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

fn put(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..][..2].copy_from_slice(&number.to_be_bytes());
}

/// A length within a frame of which IP says in 16 bits how long it is.
#[allow(clippy::cast_possible_truncation)] // `read_v4` and `read_v6` have compared it
const fn short(length: usize) -> u16 {
    length as u16
}
