//! Oracle: what policy forbids, derived from the bytes of a frame alone. Shares no code with the switch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::topology::{Address, PortModel, SecurityMode, Topology};

const PVST: Address = [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd];

/// Range of bytes in which headers of a GSO packet must be.
pub const NEAR: usize = 3008;

/// Offload work of a frame: the binding fields of `virtio_net_hdr` (virtio 1.x, 5.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OffloadFields {
    pub csum: bool,
    pub gso: u8,
    pub size: usize,
    pub start: usize,
    pub offset: usize,
}

impl OffloadFields {
    pub fn read(header: &[u8; 12]) -> OffloadFields {
        let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (csum, gso) = (header[0] & 1 != 0, header[1]);
        if !csum && gso & 0x7f == 0 {
            return OffloadFields::default();
        }
        OffloadFields { csum, gso, size: word(4), start: word(6), offset: word(8) }
    }

    pub fn is_nothing(&self) -> bool {
        *self == OffloadFields::default()
    }

    pub fn is_gso(&self) -> bool {
        self.gso & 0x7f != 0
    }

    /// The same with offsets reduced, as a tag is removed.
    pub fn pulled(self, by: usize) -> Option<OffloadFields> {
        match self.csum {
            true => Some(OffloadFields { start: self.start.checked_sub(by).filter(|&start| start >= 14)?, ..self }),
            false => Some(self),
        }
    }

    /// Header length repeated in each segment, and number of segments; one for other frames. `None` if the header
    /// does not fit the frame.
    pub fn parts(&self, frame: &[u8]) -> Option<(usize, usize)> {
        if self.csum && (self.start < 14 || self.start + self.offset + 2 > frame.len()) {
            return None;
        }
        if !self.is_gso() {
            return Some((0, 1));
        }
        let transport = match self.gso {
            // Headers are parsed near the beginning. The flag for ECN is of TCP.
            1 | 4 | 0x81 | 0x84 => {
                (usize::from(*frame.get(..frame.len().min(NEAR))?.get(self.start + 12)?) >> 4).max(5) * 4
            }
            5 => 8,
            _ => return None,
        };
        let headers = self.start + transport;
        let payload = frame.len().checked_sub(headers)?;
        let parts = payload.div_ceil(Some(self.size).filter(|&size| size > 0)?).max(1);
        self.csum.then_some((headers, parts))
    }
}

/// A frame as it is on its network, at its counting port.
pub struct Seen<'a> {
    pub place: usize,
    pub bytes: &'a [u8],
    pub leave: OffloadFields,
}

fn pair(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

pub fn address(bytes: &[u8], at: usize) -> Option<Address> {
    bytes.get(at..at + 6)?.try_into().ok()
}

fn is_tag(kind: Option<u16>) -> bool {
    matches!(kind, Some(0x8100 | 0x88a8 | 0x9100))
}

/// Offset of the EtherType after all tags.
pub fn behind_tags(bytes: &[u8]) -> Option<usize> {
    let mut at = 12;
    while is_tag(pair(bytes, at)) {
        at += 4;
    }
    pair(bytes, at).map(|_| at)
}

/// Whether the destination is a link-local group (IEEE 802.1Q-2018, table 8-1, and PVST+).
pub fn is_link_local_group(bytes: &[u8]) -> bool {
    bytes.starts_with(&PVST)
        || bytes.starts_with(&[0x01, 0x80, 0xc2, 0, 0]) && bytes.get(5).is_some_and(|&last| last < 16)
}

/// Reason for which a frame must not be delivered at all.
pub fn is_barred(topology: &Topology, seen: &Seen<'_>) -> Option<&'static str> {
    let (from, bytes) = (&topology.places[seen.place], seen.bytes);
    let net = &topology.nets[from.network];
    if !topology.is_up(seen.place) {
        return Some("its port is down or backup");
    }
    let (Some(to), Some(source)) = (address(bytes, 0), address(bytes, 6)) else { return Some("a runt") };
    if bytes.len() < 14 {
        return Some("a runt");
    }
    let Some((headers, parts)) = seen.leave.parts(bytes) else { return Some("its offload header is invalid") };
    let max_len =
        if parts > 1 || seen.leave.is_gso() { bytes.len().min(headers + seen.leave.size) } else { bytes.len() };
    let whole_tag = |at: usize| is_tag(pair(bytes, at)) && bytes.len() >= at + 6;
    let tags = [whole_tag(12), whole_tag(12) && whole_tag(16)].into_iter().filter(|&there| there).count();
    if max_len > net.mtu + 14 + 4 * tags {
        return Some("too long");
    }
    if source[0] & 1 == 1 || source == [0; 6] {
        return Some("no station can have its source");
    }
    if to == [0x03, 0x76, 0x69, 0x66, 0x73, 0x77] {
        return Some("it is for the loop probes of the switch");
    }
    if to[..5] == [0x01, 0x80, 0xc2, 0, 0] && to[5] < 16 && (from.uplink || net.mask >> to[5] & 1 == 0) {
        return Some("a reserved group");
    }
    if from.uplink && to == PVST {
        return Some("a link-local group from an uplink");
    }
    if from.uplink {
        return None;
    }
    let owner = topology.pinned(from.network, source);
    if net.anti_spoof && owner.is_some_and(|owner| topology.places[owner].owner != from.owner) {
        return Some("its source is another VM's");
    }
    match &from.guarding {
        SecurityMode::Off => None,
        _ if !from.names(source) => Some("its source is not allowed"),
        SecurityMode::Mac(_) => None,
        SecurityMode::MacIp(_) if names_a_sender_of(from, source, bytes) => None,
        SecurityMode::MacIp(_) => Some("its ARP or IP sender is not allowed"),
    }
}

/// Reason for which a frame must not be delivered to this port.
pub fn is_kept_from(
    topology: &Topology,
    seen: &Seen<'_>,
    to: usize,
    has_spoken: impl Fn(Address) -> bool,
) -> Option<&'static str> {
    let (from, place, bytes) = (&topology.places[seen.place], &topology.places[to], seen.bytes);
    let destination = address(bytes, 0)?;
    if to == seen.place {
        return Some("it is the ingress port");
    }
    if place.network != from.network {
        return Some("it is on another network");
    }
    if !topology.is_up(to) {
        return Some("that port is down or backup");
    }
    if place.uplink && from.uplink {
        return Some("it is from one uplink to another");
    }
    if place.uplink && is_link_local_group(bytes) {
        return Some("a link-local group to an uplink");
    }
    if place.vid == 0 && topology.bases[place.base].trunk && !is_plain(bytes) {
        return Some("it would be in another VLAN there");
    }
    if destination[0] & 1 == 1 || place.promiscuous {
        return None;
    }
    match topology.pinned(place.network, destination) {
        Some(owner) if owner == to => None,
        Some(_) => Some("its destination is another port's"),
        None if place.suppress && !has_spoken(destination) => Some("unknown unicast is not flooded there"),
        None => None,
    }
}

/// Whether the frame is untagged to a receiver that separates networks by tags.
fn is_plain(bytes: &[u8]) -> bool {
    match (pair(bytes, 12), pair(bytes, 14), pair(bytes, 16)) {
        (Some(0x8100), Some(id), Some(kind)) => id & 0xfff == 0 && kind != 0x8100,
        (kind, ..) => kind != Some(0x8100),
    }
}

/// Whether ARP, IP and ND name only senders allowed at this port. Unparsable ones do not.
fn names_a_sender_of(place: &PortModel, source: Address, bytes: &[u8]) -> bool {
    let Some((kind, at)) = behind_all(bytes).filter(|&(_, at)| at < 2100) else { return false };
    let Some(rest) = bytes.get(at..) else { return false };
    let named = match kind {
        0x0806 => arp(place, rest),
        0x0800 => ipv4(place, source, rest),
        0x86dd => ipv6(place, source, rest),
        _ => Some(true),
    };
    named == Some(true)
}

/// EtherType after tags and LLC/SNAP headers, and offset of the payload. Other LLC protocols have an unassigned type.
/// `None` if truncated.
fn behind_all(bytes: &[u8]) -> Option<(u16, usize)> {
    const OTHER: u16 = 0xffff;
    let mut at = 12;
    loop {
        let kind = pair(bytes, at)?;
        if is_tag(Some(kind)) {
            at += 4;
            continue;
        }
        if kind >= 0x600 && kind != 0x8870 {
            return Some((kind, at + 2));
        }
        match bytes.get(at + 2)? & 0xfe {
            0x06 => return Some((0x0800, at + 5)),
            0x98 => return Some((0x0806, at + 5)),
            0xaa if bytes.get(at + 4)? & 3 == 3 => match bytes.get(at + 5..at + 8)? {
                [0, 0, 0 | 0xf8] => at += 8,
                _ => return Some((OTHER, at)),
            },
            // Two SNAP variants: neither may be mistaken for an EtherType.
            0xaa => {
                let stands = |at: usize| Some(matches!(bytes.get(at..at + 3)?, [0, 0, 0 | 0xf8]));
                return (!stands(at + 5)? && !stands(at + 6)?).then_some((OTHER, at));
            }
            _ => return Some((OTHER, at)),
        }
    }
}

fn has(place: &PortModel, mac: Address, ip: IpAddr) -> bool {
    let SecurityMode::MacIp(bound) = &place.guarding else { return true };
    bound.iter().any(|(of, bound)| *of == mac && bound.is_none_or(|bound| covers(bound, ip)))
        || may_speak(place, mac) && ip == IpAddr::V6(link_local(mac))
}

/// Whether any IP address is bound to a MAC address.
fn may_speak(place: &PortModel, mac: Address) -> bool {
    matches!(&place.guarding, SecurityMode::MacIp(bound) if bound.iter().any(|(of, _)| *of == mac))
}

fn covers((first, len): (IpAddr, u8), ip: IpAddr) -> bool {
    match (first, ip) {
        (IpAddr::V4(first), IpAddr::V4(ip)) => len == 0 || (first.to_bits() ^ ip.to_bits()) >> (32 - len) == 0,
        (IpAddr::V6(first), IpAddr::V6(ip)) => len == 0 || (first.to_bits() ^ ip.to_bits()) >> (128 - len) == 0,
        _ => false,
    }
}

/// RFC 4291, appendix A.
fn link_local(mac: Address) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

/// Whether a host may have generated this link-local address independently of its MAC address (RFC 7217).
fn is_opaque(ip: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let of_mac = f & 0xff == 0xff && g >> 8 == 0xfe;
    let anycast = [e, f, g] == [0xfdff, 0xffff, 0xffff] && h >= 0xff80;
    [a, b, c, d] == [0xfe80, 0, 0, 0] && (e, f) != (0, 0) && !of_mac && !anycast
}

/// RFC 826, RFC 5227.
fn arp(place: &PortModel, bytes: &[u8]) -> Option<bool> {
    if bytes.len() < 28 || bytes[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let ip = Ipv4Addr::new(bytes[14], bytes[15], bytes[16], bytes[17]);
    let mac = address(bytes, 8)?;
    Some(place.names(mac) && (ip.is_unspecified() || has(place, mac, ip.into())))
}

/// RFC 791.
fn ipv4(place: &PortModel, source: Address, bytes: &[u8]) -> Option<bool> {
    let header = usize::from(bytes.first()? & 15) * 4;
    if bytes[0] >> 4 != 4 || header < 20 || bytes.len() < header {
        return None;
    }
    let ip = Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
    let asks = ip.is_unspecified()
        && pair(bytes, 6)? & 0x3fff == 0
        && (bytes[9] == 2 || bytes[9] == 17 && bytes.get(header..header + 4) == Some(&[0, 68, 0, 67]));
    Some(has(place, source, ip.into()) || asks && may_speak(place, source))
}

/// RFC 8200, RFC 4861.
fn ipv6(place: &PortModel, source: Address, bytes: &[u8]) -> Option<bool> {
    let ip = Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?);
    if bytes.len() < 40 || bytes[0] >> 4 != 6 {
        return None;
    }
    let (mut next, mut at, mut fragment) = (bytes[6], 40, false);
    let has_source = has(place, source, ip.into());
    loop {
        let len = match next {
            0 | 43 | 60 => (usize::from(*bytes.get(at + 1)?) + 1) * 8,
            51 => (usize::from(*bytes.get(at + 1)?) + 2) * 4,
            44 if pair(bytes, at + 2)? & 0xfff8 != 0 => return Some(has_source),
            44 => 8,
            _ => break,
        };
        fragment |= next == 44;
        next = *bytes.get(at)?;
        at += len;
        if at > bytes.len() {
            return None;
        }
    }
    let own = |mac: Address, ip: Ipv6Addr| may_speak(place, mac) && is_opaque(ip);
    if next != 58 {
        let is_dhcp = next == 17 && !fragment && bytes.len() >= at + 8 && pair(bytes, at + 2) == Some(547);
        return Some(has_source || is_dhcp && own(source, ip));
    }
    let (kind, end) = (*bytes.get(at)?, 40 + usize::from(pair(bytes, 4)?));
    if end <= at {
        return None;
    }
    let asks = [130, 131, 132, 133, 135, 143, 148].contains(&kind) && ip.is_unspecified() && may_speak(place, source)
        || [130, 131, 132, 133, 135, 136, 143, 148].contains(&kind) && own(source, ip);
    if !(133..=136).contains(&kind) {
        return Some(has_source || asks);
    }
    let message = bytes.get(at..end)?;
    let fixed = match kind {
        133 => 8,
        134 => 16,
        _ => 24,
    };
    if fragment || message.len() < fixed {
        return None;
    }
    let mut options = &message[fixed..];
    let mut links = Vec::new();
    while !options.is_empty() {
        let len = usize::from(*options.get(1)?) * 8;
        if len == 0 || options.len() < len {
            return None;
        }
        if options[0] == if kind == 136 { 2 } else { 1 } {
            links.push(address(options, 2)?);
            if len != 8 {
                return None;
            }
        }
        options = &options[len..];
    }
    let target = (kind == 136).then(|| Ipv6Addr::from(<[u8; 16]>::try_from(&message[8..24]).unwrap()));
    let mut is_ok = has_source || asks;
    is_ok &= links.iter().all(|&link| place.names(link) && link == links[0]);
    let events = links.first().copied().unwrap_or(source);
    is_ok &= target.is_none_or(|target| has(place, events, target.into()) || own(events, target));
    if target.is_none() && !links.is_empty() {
        is_ok &= ip.is_unspecified() || has(place, events, ip.into()) || own(events, ip);
    }
    Some(is_ok)
}

/// Control: the oracle objects to forbidden frames.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{CableModel, NetworkModel, v4, v6};
    use vifswitch::switch::PortId;

    const OWN: [Address; 4] = [[2, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [0; 6]];
    const ALL: Address = [0xff; 6];
    const GROUP: Address = [0x01, 0x80, 0xc2, 0, 0, 1];

    /// Two ports of two VMs on one network, the first with `mac+ip`; a port on another network; an uplink.
    fn topology() -> Topology {
        let place = |index: usize| PortModel {
            id: PortId::new(index as u16, 0),
            network: usize::from(index == 2),
            owner: index,
            uplink: index == 3,
            base: index,
            vid: 0,
            mac: OWN[index],
            up: true,
            quarantined: false,
            guarding: SecurityMode::Off,
            suppress: index == 1,
            promiscuous: false,
            limit: None,
            storm: None,
        };
        let mut places: Vec<_> = (0..4).map(place).collect();
        places[0].guarding = SecurityMode::MacIp(vec![(OWN[0], Some((v4(7), 32))), (OWN[0], Some((v6(7), 128)))]);
        let base = |index| CableModel { offloads: true, lent: false, trunk: index == 3, is_backup: false };
        Topology::of(
            places,
            (0..4).map(base).collect(),
            vec![NetworkModel { mtu: 1500, anti_spoof: true, mask: 0xfffd }; 2],
        )
    }

    fn barred(place: usize, bytes: &[u8], leave: OffloadFields) -> Option<&'static str> {
        is_barred(&topology(), &Seen { place, bytes, leave })
    }

    fn frame(to: Address, from: Address, kind: u16, body: &[u8]) -> Vec<u8> {
        [&to[..], &from, &kind.to_be_bytes(), body].concat()
    }

    fn packet(ip: u8, protocol: u8, ports: [u8; 4]) -> Vec<u8> {
        let ip = if ip == 0 { [0; 4] } else { [10, 0, 0, ip] };
        [&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0][..], &ip, &[10, 0, 0, 9], &ports, &[0, 8, 0, 0]].concat()
    }

    fn arp(mac: Address, ip: u8) -> Vec<u8> {
        [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &[10, 0, 0, ip], &[0; 10]].concat()
    }

    fn advertisement(ip: u8, target: u8, link: Address) -> Vec<u8> {
        let fd = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let message = [&[136, 0, 0, 0, 0, 0, 0, 0][..], &fd(target), &[2, 1], &link].concat();
        [&[0x60, 0, 0, 0, 0, message.len() as u8, 58, 255][..], &fd(ip), &[0xff; 16], &message].concat()
    }

    #[test]
    fn forbidden_senders_are_barred() {
        let tagged = |body: &[u8]| [&[0, 5, 0x91, 0, 0, 6, 8, 0][..], body].concat();
        let rows: Vec<(u16, Vec<u8>, bool)> = vec![
            (0x88b5, vec![1, 2, 3], true),
            (0x0800, packet(7, 17, [0, 1, 0, 1]), true),
            (0x0800, packet(8, 17, [0, 1, 0, 1]), false),
            (0x0800, packet(0, 17, [0, 68, 0, 67]), true),
            (0x0800, packet(0, 17, [0, 67, 0, 68]), false),
            (0x0800, packet(0, 6, [0, 68, 0, 67]), false),
            (0x0800, packet(7, 17, [0; 4])[..19].to_vec(), false),
            (0x0800, packet(0, 2, [0x22, 0, 0, 0]), true),
            (0x0800, packet(8, 2, [0x22, 0, 0, 0]), false),
            (46, [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &packet(7, 17, [0; 4])].concat(), true),
            (46, [&[0xaa, 0xaa, 3, 0, 0, 0xf8, 8, 0][..], &packet(8, 17, [0; 4])].concat(), false),
            (0x8870, [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 6][..], &arp(OWN[0], 8)].concat(), false),
            (46, vec![0xfe, 0xfe, 3, 0x83], true),
            (0x8100, tagged(&packet(7, 17, [0; 4])), true),
            (0x88a8, tagged(&packet(8, 17, [0; 4])), false),
            (0x8100, vec![0], false),
            (0x0806, arp(OWN[0], 7), true),
            (0x0806, arp(OWN[0], 8), false),
            (0x0806, arp(OWN[1], 7), false),
            (0x0806, arp(OWN[0], 7)[..27].to_vec(), false),
            (0x86dd, advertisement(7, 7, OWN[0]), true),
            (0x86dd, advertisement(8, 7, OWN[0]), false),
            (0x86dd, advertisement(7, 8, OWN[0]), false),
            (0x86dd, advertisement(7, 7, OWN[1]), false),
        ];
        for (kind, body, passes) in rows {
            assert_eq!(
                barred(0, &frame(ALL, OWN[0], kind, &body), OffloadFields::default()).is_none(),
                passes,
                "{kind:x} {body:x?}"
            );
        }
    }

    #[test]
    fn the_other_policies_are_checked() {
        let plain = |to, from| frame(to, from, 0x88b5, &[0; 46]);
        let lies = OffloadFields { csum: true, start: 50, offset: 16, ..OffloadFields::default() };
        assert_eq!(barred(1, &plain(ALL, OWN[1]), OffloadFields::default()), None);
        assert_eq!(barred(3, &plain(ALL, OWN[0]), OffloadFields::default()), None, "an uplink may use any address");
        for (place, bytes, leave) in [
            (0, plain(ALL, [10, 0, 0, 0, 0, 1]), OffloadFields::default()),
            (1, plain(ALL, OWN[0]), OffloadFields::default()),
            (1, plain(ALL, [0; 6]), OffloadFields::default()),
            (1, plain(ALL, ALL), OffloadFields::default()),
            (1, plain(GROUP, OWN[1]), OffloadFields::default()),
            (3, plain([0x01, 0x80, 0xc2, 0, 0, 14], OWN[1]), OffloadFields::default()),
            (3, plain(PVST, OWN[1]), OffloadFields::default()),
            (1, plain(ALL, OWN[1])[..13].to_vec(), OffloadFields::default()),
            (1, frame(ALL, OWN[1], 0x88b5, &[0; 1501]), OffloadFields::default()),
            (1, plain(ALL, OWN[1]), lies),
        ] {
            assert!(barred(place, &bytes, leave).is_some(), "{place} {bytes:x?}");
        }
    }

    #[test]
    fn misdelivered_frames_are_barred() {
        let topology = topology();
        let host = |place, bytes: &[u8], to, spoken| {
            is_kept_from(&topology, &Seen { place, bytes, leave: OffloadFields::default() }, to, |_| spoken).is_some()
        };
        let plain = |to| frame(to, OWN[0], 0x88b5, &[0; 46]);
        assert_eq!([0, 1, 2, 3].map(|to| host(0, &plain(ALL), to, false)), [true, false, true, false]);
        assert_eq!([1, 3].map(|to| host(0, &plain(OWN[1]), to, true)), [false, true]);
        let wild = plain([10, 0, 0, 0, 0, 1]);
        assert!(host(0, &wild, 1, false) && !host(0, &wild, 1, true) && !host(0, &wild, 3, false));
        assert!(host(0, &plain(PVST), 3, false) && !host(0, &plain(PVST), 1, false));
        assert!(host(0, &frame(ALL, OWN[0], 0x8100, &[0, 5, 8, 0]), 3, false));
        assert!(!host(0, &frame(ALL, OWN[0], 0x8100, &[0, 0, 8, 0]), 3, false));
    }
}
