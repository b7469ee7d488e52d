//! Announcements: frames by which a station tells bridges and neighbors where it is now.
//!
//! Four forms are recognised: RARP (RFC 903), gratuitous ARP (RFC 5227, 3) and unsolicited neighbor advertisement (RFC
//! 4861, 7.2.6), as in OVN's `activation-strategy`, and VRRP advertisement ([`vrrp`]). Each is sent to a group, and
//! names its own source address as the sender.
//!
//! The switch itself sends the RARP request that QEMU sends after a migration: 60 bytes, from the announced address
//! to broadcast, with zero IPv4 addresses. RARP ends at byte 42. The padding after it, which receivers ignore, is
//! zero up to byte 44 and then holds a tag: SipHash-2-4 of the announced address, under a key of this process. The
//! tag identifies the switch's own announcements when an external network returns them.

use std::fmt;
use std::net::Ipv4Addr;

use etherparse::{EtherType, ether_type};
use siphasher::sip128::SipHasher24;

use super::{HEADER_LEN, Header, Mac, TAG_LEN, tags, vrrp};

/// The Ethernet type of RARP (RFC 903), which etherparse has no name for.
const RARP: EtherType = EtherType(0x8035);

/// Start of ARP and RARP packets for Ethernet and IPv4 (RFC 826): hardware and protocol type, and address lengths.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// Length of an ARP or RARP packet for Ethernet and IPv4, in bytes.
const ARP_LEN: usize = 28;

/// The ARP operation "request".
const REQUEST: [u8; 2] = [0, 1];

/// The RARP operation "request reverse".
const REQUEST_REVERSE: [u8; 2] = [0, 3];

/// Offset of the tag.
const TAG_AT: usize = 44;

/// Key that authenticates this process's announcements.
#[derive(Clone, Copy)]
pub struct AnnouncementKey([u8; 16]);

impl AnnouncementKey {
    /// Derives the key from 16 random bytes, which may serve another purpose: the tags reveal nothing about them.
    pub fn derive(random: [u8; 16]) -> AnnouncementKey {
        AnnouncementKey(SipHasher24::new_with_key(&random).hash(b"vifswitch announcements").as_bytes())
    }

    fn tag(&self, station: Mac) -> [u8; 16] {
        SipHasher24::new_with_key(&self.0).hash(&station.octets()).as_bytes()
    }
}

impl fmt::Debug for AnnouncementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnnouncementKey")
    }
}

/// A frame that announces a station.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// The station: the source of the frame.
    pub station: Mac,
    /// Whether this process made the frame.
    pub is_own: bool,
}

impl Announcement {
    /// Length of the switch's announcements without VLAN tags, in bytes: the Ethernet minimum.
    pub const LEN: usize = 60;

    /// Writes the announcement of a station.
    pub fn write(station: Mac, key: &AnnouncementKey) -> [u8; Announcement::LEN] {
        let mut frame = [0; Announcement::LEN];
        let sender = station.octets();
        let parts = [
            &Mac::BROADCAST.octets()[..],
            &sender,
            &RARP.0.to_be_bytes(),
            &ETHERNET_IPV4,
            &REQUEST_REVERSE,
            &sender,
            &[0; 4],
            &sender,
        ];
        let bytes = parts.into_iter().flatten();
        frame.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
        let (_, tag) = frame.split_at_mut(TAG_AT);
        tag.copy_from_slice(&key.tag(station));
        frame
    }

    /// Writes a gratuitous ARP request (RFC 5227, 3): the station has this address.
    pub fn of_address(station: Mac, address: Ipv4Addr) -> [u8; Announcement::LEN] {
        let mut frame = [0; Announcement::LEN];
        let sender = station.octets();
        let address = address.octets();
        let parts = [
            &Mac::BROADCAST.octets()[..],
            &sender,
            &ether_type::ARP.0.to_be_bytes(),
            &ETHERNET_IPV4,
            &REQUEST,
            &sender,
            &address,
            &[0; 6],
            &address,
        ];
        frame.iter_mut().zip(parts.into_iter().flatten()).for_each(|(to, &from)| *to = from);
        frame
    }

    /// Parses a frame as an announcement; `None` if it is none. Skips up to two VLAN tags.
    pub fn read(frame: &[u8], key: &AnnouncementKey) -> Option<Announcement> {
        let header = Header::read(frame)?;
        if !header.destination.is_group() || !header.source.is_station() {
            return None;
        }
        let payload = HEADER_LEN + tags(frame) * TAG_LEN;
        let kind = u16::from_be_bytes(frame.get(payload - 2..payload)?.try_into().ok()?);
        let packet = frame.get(payload..)?;
        let names_source = match EtherType(kind) {
            RARP => is_rarp(packet, header.source),
            ether_type::ARP => is_gratuitous_arp(packet, header.source),
            ether_type::IPV4 => vrrp::is_ipv4_advert(&header, packet),
            ether_type::IPV6 => {
                is_unsolicited_advertisement(packet, header.source) || vrrp::is_ipv6_advert(&header, packet)
            }
            _ => false,
        };
        names_source
            .then(|| Announcement { station: header.source, is_own: is_tagged(kind, packet, header.source, key) })
    }
}

/// Whether the padding of an announcement holds the tag of this process.
fn is_tagged(kind: u16, packet: &[u8], station: Mac, key: &AnnouncementKey) -> bool {
    const AT: usize = TAG_AT - HEADER_LEN;
    let Some(tag) = packet.get(AT..Announcement::LEN - HEADER_LEN) else { return false };
    // Compares as integers, for constant time.
    let number = |tag: &[u8]| tag.try_into().map(u128::from_ne_bytes).ok();
    kind == RARP.0 && number(tag) == number(&key.tag(station))
}

/// Whether an ARP or RARP packet for IPv4 over Ethernet has this operation and names this sender.
fn arp_from(packet: &[u8], sender: Mac) -> Option<&[u8; ARP_LEN]> {
    let packet: &[u8; ARP_LEN] = packet.first_chunk()?;
    (packet.starts_with(&ETHERNET_IPV4) && packet[8..14] == sender.octets()).then_some(packet)
}

fn is_rarp(packet: &[u8], sender: Mac) -> bool {
    arp_from(packet, sender).is_some_and(|packet| packet[6..8] == REQUEST_REVERSE)
}

/// Whether this is ARP, request or reply, whose sender names its own address as the target. A probe is not: its sender
/// has no address yet.
fn is_gratuitous_arp(packet: &[u8], sender: Mac) -> bool {
    arp_from(packet, sender).is_some_and(|packet| {
        let (from, to) = (&packet[14..18], &packet[24..28]);
        matches!(packet[6..8], [0, 1 | 2]) && from == to && from != [0; 4]
    })
}

/// Whether this is an unsolicited neighbor advertisement. Its link-layer address option, if any, must be the
/// sender's.
fn is_unsolicited_advertisement(packet: &[u8], sender: Mac) -> bool {
    const IPV6_LEN: usize = 40;
    const ICMPV6: u8 = 58;
    const ADVERTISEMENT: u8 = 136;
    const SOLICITED: u8 = 0x40;
    const TARGET_END: usize = 24;
    const TARGET_LINK_LAYER: [u8; 2] = [2, 1];
    let Some((ip, message)) = packet.split_first_chunk::<IPV6_LEN>() else { return false };
    let is_icmp = ip[0] >> 4 == 6 && ip[6] == ICMPV6 && ip[7] == 255 && ip[24] == 0xff;
    if !is_icmp || message.len() < TARGET_END || message[..2] != [ADVERTISEMENT, 0] || message[4] & SOLICITED != 0 {
        return false;
    }
    match message.get(TARGET_END..TARGET_END + 8) {
        Some(option) if option.starts_with(&TARGET_LINK_LAYER) => option[2..] == sender.octets(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const STATION: Mac = Mac::new([2, 0, 0, 0, 0x0f, 1]);

    fn key(number: u8) -> AnnouncementKey {
        AnnouncementKey::derive([number; 16])
    }

    fn frame(to: Mac, from: Mac, kind: u16, packet: &[u8]) -> Vec<u8> {
        [&to.octets(), &from.octets(), &kind.to_be_bytes()[..], packet].concat()
    }

    /// An ARP or RARP packet.
    fn arp(operation: u8, sender: Mac, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        [&ETHERNET_IPV4[..], &[0, operation], &sender.octets(), &from, &[0; 6], &to].concat()
    }

    fn advertisement(flags: u8, to: u8, link_layer: Option<Mac>) -> Vec<u8> {
        let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
        message.extend([0xfd; 16]);
        message.extend(link_layer.iter().flat_map(|mac| [&[2, 1][..], &mac.octets()].concat()));
        let ip = [&[0x60, 0, 0, 0, 0, message.len() as u8, 58, 255][..], &[0xfd; 16], &[to; 16]].concat();
        [ip, message].concat()
    }

    fn announces(frame: &[u8]) -> bool {
        Announcement::read(frame, &key(1)) == Some(Announcement { station: STATION, is_own: false })
    }

    #[test]
    fn the_announcement_of_the_switch_is_the_rarp_of_qemu_with_a_tag_in_the_padding() {
        let sent = Announcement::write(STATION, &key(1));
        let expected =
            "ffffffffffff 020000000f01 8035 0001 0800 06 04 0003 020000000f01 00000000 020000000f01 00000000 0000";
        let expected: String = expected.split(' ').collect();
        let text: String = sent[..TAG_AT].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, expected);
        let read = |key: u8, frame: &[u8]| Announcement::read(frame, &self::key(key));
        assert_eq!(read(1, &sent), Some(Announcement { station: STATION, is_own: true }));
        assert_eq!(read(2, &sent), Some(Announcement { station: STATION, is_own: false }), "of another switch");
        assert_eq!(read(1, &sent[..59]), Some(Announcement { station: STATION, is_own: false }), "truncated");
        let tagged = [&sent[..12], &[0x81, 0, 0, 7, 0x88, 0xa8, 0, 5], &sent[12..]].concat();
        assert_eq!(read(1, &tagged), Some(Announcement { station: STATION, is_own: true }));
        let mut other = sent;
        for at in [11, 27, 37] {
            other[at] ^= 1;
        }
        assert_eq!(read(1, &other).map(|read| read.is_own), Some(false), "the tag is that of another station");
    }

    #[test]
    fn the_announcement_of_an_address_is_a_gratuitous_arp_request() {
        let sent = Announcement::of_address(STATION, Ipv4Addr::new(10, 0, 0, 1));
        let packet = arp(1, STATION, [10, 0, 0, 1], [10, 0, 0, 1]);
        assert_eq!(sent[..42], frame(Mac::BROADCAST, STATION, 0x0806, &packet));
        assert!(announces(&sent) && sent[42..] == [0; 18]);
    }

    #[test]
    fn each_form_is_recognised_and_similar_frames_are_not() {
        let other = Mac::new([2, 0, 0, 0, 0x0f, 2]);
        let all_nodes = Mac::new([0x33, 0x33, 0, 0, 0, 1]);
        let broadcast = |kind, packet: &[u8]| announces(&frame(Mac::BROADCAST, STATION, kind, packet));
        let (ip, probe) = ([10, 0, 0, 1], [0; 4]);
        assert!(broadcast(0x8035, &arp(3, STATION, probe, probe)));
        assert!(!broadcast(0x8035, &arp(4, STATION, probe, probe)), "a reply is for one station");
        assert!(!broadcast(0x8035, &arp(3, other, probe, probe)), "on behalf of another station");
        assert!(!announces(&frame(other, STATION, 0x8035, &arp(3, STATION, probe, probe))), "to one station");
        assert!(!broadcast(0x8035, &arp(3, STATION, probe, probe)[..27]), "truncated");
        for operation in [1, 2] {
            assert!(broadcast(0x0806, &arp(operation, STATION, ip, ip)));
            assert!(!broadcast(0x0806, &arp(operation, other, ip, ip)), "on behalf of another station");
            assert!(!broadcast(0x0806, &arp(operation, STATION, ip, [10, 0, 0, 2])), "an ordinary request");
            assert!(!broadcast(0x0806, &arp(operation, STATION, probe, probe)), "no address");
        }
        let neighbors = |packet: &[u8]| announces(&frame(all_nodes, STATION, 0x86dd, packet));
        assert!(neighbors(&advertisement(0x20, 0xff, Some(STATION))));
        assert!(neighbors(&advertisement(0x00, 0xff, None)));
        assert!(!neighbors(&advertisement(0x60, 0xff, Some(STATION))), "solicited");
        assert!(!neighbors(&advertisement(0x20, 0xff, Some(other))), "on behalf of another station");
        assert!(!neighbors(&advertisement(0x20, 0xfd, Some(STATION))), "to one station");
        assert!(!neighbors(&advertisement(0x20, 0xff, Some(STATION))[..63]), "truncated");
        assert!(!broadcast(0x88b5, &arp(3, STATION, probe, probe)));
    }

    /// The address of a virtual router in the source is the announced station, behind tags as well.
    #[test]
    fn advertisements_of_vrrp_are_recognised_behind_tags() {
        let message = [0x31, 7, 100, 1, 0, 100, 0, 0];
        let v4 = [&[0x45, 0, 0, 28, 0, 0, 0, 0, 255, 112, 0, 0, 10, 5, 0, 2, 224, 0, 0, 18][..], &message].concat();
        let all_routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12];
        let v6 = [&[0x60, 0, 0, 0, 0, 8, 112, 255][..], &[0xfe; 16], &all_routers, &message].concat();
        for (group, router, kind, packet) in [
            (Mac::new([0x01, 0, 0x5e, 0, 0, 0x12]), Mac::new([0, 0, 0x5e, 0, 1, 7]), 0x0800, v4),
            (Mac::new([0x33, 0x33, 0, 0, 0, 0x12]), Mac::new([0, 0, 0x5e, 0, 2, 7]), 0x86dd, v6),
        ] {
            let expected = Some(Announcement { station: router, is_own: false });
            let sent = frame(group, router, kind, &packet);
            for tags in [&[][..], &[0x81, 0, 0, 7], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 7]] {
                let tagged = [&sent[..12], tags, &sent[12..]].concat();
                assert_eq!(Announcement::read(&tagged, &key(1)), expected);
                let cut_off = &tagged[..tagged.len() - 1];
                assert_eq!(Announcement::read(cut_off, &key(1)), None);
            }
            assert_eq!(Announcement::read(&frame(group, STATION, kind, &packet), &key(1)), None, "its own address");
            assert_eq!(Announcement::read(&frame(STATION, router, kind, &packet), &key(1)), None, "to one station");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(mut bytes in vec(any::<u8>(), 0..120), kind in 0usize..5) {
            if let (Some(kind), Some(place)) = ([0x8035u16, 0x0806, 0x0800, 0x86dd].get(kind), bytes.get_mut(12..14)) {
                place.copy_from_slice(&kind.to_be_bytes());
            }
            if let Some(read) = Announcement::read(&bytes, &key(1)) {
                prop_assert!(!read.is_own);
                prop_assert_eq!(Header::read(&bytes).map(|header| header.source), Some(read.station));
            }
        }
    }
}
