//! Frame matrix: A sends to B, C is a bystander. Each row states who receives the frame, which arrives unmodified.
//! Needs nothing of the host.

use vifswitch::switch::DropReason;
use vifswitch::wire::Mac;

use crate::builders::{KINDS, payload};
use support::lab::{Lab, PortSpec, Setup, frame, mac};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

/// Expected receivers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    /// Only B.
    U,
    /// B and C.
    F,
    /// None; dropped for this reason.
    D(DropReason),
}
use Expected::{D, F, U};

struct Row {
    name: &'static str,
    expected: Expected,
    bytes: Vec<u8>,
}

fn from_a(name: &'static str, expected: Expected, to: Mac, kind: u16, payload: &[u8]) -> Row {
    Row { name, expected, bytes: frame(to, mac(A), kind, payload) }
}

/// Unicast to B.
fn known(name: &'static str, kind: u16, payload: &[u8]) -> Row {
    from_a(name, U, mac(B), kind, payload)
}

/// Frame to a group.
fn group(name: &'static str, to: &str, kind: u16, payload: &[u8]) -> Row {
    from_a(name, F, to.parse().unwrap(), kind, payload)
}

/// An LLC frame: length in place of the EtherType, then padding.
fn llc(name: &'static str, to: &str, header: &[u8]) -> Row {
    let mut bytes = header.to_vec();
    bytes.resize(46, 0);
    group(name, to, header.len() as u16, &bytes)
}

fn arp(kind: u16, operation: u8) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, operation];
    bytes.extend(mac(A).octets());
    bytes.extend([0, 0, 0, 0]); // sender 0.0.0.0
    bytes.extend(if kind == 0x8035 { mac(A).octets() } else { [0; 6] });
    bytes.extend([10, 0, 0, 9]);
    bytes
}

/// IPv4 with this protocol number and a valid length.
fn ipv4(protocol: u8) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 60, 0, 1, 0x40, 0, 64, protocol, 0x12, 0x34, 10, 0, 0, 1, 192, 0, 2, 9];
    bytes.extend(payload(40));
    bytes
}

fn rows() -> Vec<Row> {
    let mut bad_ip = ipv4(6);
    bad_ip[0] = 0x4f; // IHL of 60 bytes, of which 20 are meaningless options
    bad_ip[2..4].copy_from_slice(&[0xff, 0xff]); // total length far beyond the frame
    let tagged = |inner: u16| [&[0x00, 0x05][..], &inner.to_be_bytes(), &payload(50)].concat();
    let double = [&[0x00, 0x07, 0x81, 0x00, 0x00, 0x05, 0x08, 0x00][..], &ipv4(17)].concat();
    let stp = [&[0x42, 0x42, 0x03][..], &payload(35)].concat();
    let is_is = [&[0xfe, 0xfe, 0x03, 0x83][..], &payload(40)].concat();
    let cdp = [&[0xaa, 0xaa, 0x03, 0x00, 0x00, 0x0c, 0x20, 0x00][..], &payload(30)].concat();
    let source = |source: Mac| frame(mac(B), source, 0x88b5, &payload(46));
    let p = payload(46);
    vec![
        known("PPPoE session", 0x8864, &p),
        known("MPLS", 0x8847, &p),
        known("PROFINET", 0x8892, &p),
        known("unassigned ethertype", 0x4008, &p),
        known("FCoE", 0x8906, &payload(1500)),
        known("MACsec", 0x88e5, &p),
        known("loopback test", 0x9000, &p),
        known("IPv4", 0x0800, &ipv4(6)),
        known("IPv4, protocol 115", 0x0800, &ipv4(115)),
        known("IPv4, malformed header", 0x0800, &bad_ip),
        known("IPv4, no IP header", 0x0800, &[]),
        known("IPv6", 0x86dd, &[&[0x60][..], &payload(59)].concat()),
        known("VLAN", 0x8100, &tagged(0x0800)),
        known("VLAN, priority only", 0x8100, &[&[0xe0, 0x00, 0x88, 0xb5][..], &p].concat()),
        known("QinQ", 0x88a8, &double),
        known("QinQ, TPID 0x9100", 0x9100, &double),
        known("half a tag", 0x8100, &[0x00]),
        known("LLC", 0x0026, &p),
        known("LLC, wrong length", 1500, &p),
        known("Ethernet header only", 0x88b5, &[]),
        known("one byte", 0x88b5, &[0x77]),
        known("maximum length", 0x88b5, &payload(1500)),
        known("tagged, maximum length", 0x8100, &[&[0x00, 0x05, 0x88, 0xb5][..], &payload(1500)].concat()),
        known("two tags, maximum length", 0x88a8, &[&[0, 7, 0x81, 0, 0, 5, 8, 0][..], &payload(1500)].concat()),
        group("PADI", "ff:ff:ff:ff:ff:ff", 0x8863, &p),
        group("MPLS multicast", "01:00:5e:80:00:05", 0x8848, &p),
        group("PTP", "01:1b:19:00:00:00", 0x88f7, &p),
        group("GOOSE", "01:0c:cd:01:00:01", 0x88b8, &p),
        group("SV", "01:0c:cd:04:00:01", 0x88ba, &p),
        group("PROFINET DCP", "01:0e:cf:00:00:00", 0x8892, &p),
        group("EtherCAT", "ff:ff:ff:ff:ff:ff", 0x88a4, &p),
        group("FIP", "01:10:18:01:00:02", 0x8914, &p),
        group("RARP", "ff:ff:ff:ff:ff:ff", 0x8035, &arp(0x8035, 3)),
        group("ARP probe", "ff:ff:ff:ff:ff:ff", 0x0806, &arp(0x0806, 1)),
        group("CFM", "01:80:c2:00:00:30", 0x8902, &p),
        group("IPv4 multicast, link local", "01:00:5e:00:00:05", 0x0800, &ipv4(89)),
        group("IPv6 multicast", "33:33:00:00:00:01", 0x86dd, &[&[0x60][..], &payload(59)].concat()),
        llc("DOCSIS", "01:e0:2f:00:00:01", &is_is),
        llc("IS-IS", "01:80:c2:00:00:14", &is_is),
        llc("CDP", "01:00:0c:cc:cc:cc", &cdp),
        llc("STP", "01:80:c2:00:00:00", &stp),
        llc("PVST", "01:00:0c:cc:cc:cd", &cdp),
        from_a("unknown unicast", F, Mac::from_bits(0x0a00_0000_0099), 0x88b5, &p),
        // The zero address must not match an empty entry of the pin table.
        from_a("unknown unicast to the zero address", F, Mac::ZERO, 0x88b5, &p),
        group("PTP peer delay", "01:80:c2:00:00:0e", 0x88f7, &p),
        group("LLDP", "01:80:c2:00:00:0e", 0x88cc, &p),
        group("LACP", "01:80:c2:00:00:02", 0x8809, &p),
        group("EAPOL", "01:80:c2:00:00:03", 0x888e, &p),
        from_a("PAUSE", D(DropReason::ReservedGroup), Mac::from_bits(0x0180_c200_0001), 0x8808, &p),
        Row {
            name: "group source",
            expected: D(DropReason::BadSource),
            bytes: source(Mac::from_bits(0x0300_0000_0001)),
        },
        Row { name: "broadcast source", expected: D(DropReason::BadSource), bytes: source(Mac::BROADCAST) },
        Row { name: "zero source", expected: D(DropReason::BadSource), bytes: source(Mac::ZERO) },
        from_a("destination equals source", D(DropReason::Hairpin), mac(A), 0x88b5, &p),
        Row {
            name: "destination equals unknown source",
            expected: D(DropReason::Hairpin),
            bytes: frame(Mac::from_bits(0x0a00_0000_0007), Mac::from_bits(0x0a00_0000_0007), 0x88b5, &p),
        },
        Row { name: "nothing", expected: D(DropReason::Runt), bytes: Vec::new() },
        Row {
            name: "13 bytes",
            expected: D(DropReason::Runt),
            bytes: frame(mac(B), mac(A), 0x88b5, &[])[..13].to_vec(),
        },
        from_a("one byte too long", D(DropReason::TooLong), mac(B), 0x88b5, &payload(1501)),
        from_a(
            "tagged, too long",
            D(DropReason::TooLong),
            mac(B),
            0x8100,
            &[&[0, 5, 0x88, 0xb5][..], &payload(1501)].concat(),
        ),
        from_a(
            "three tags, of which two are not counted",
            D(DropReason::TooLong),
            mac(B),
            0x88a8,
            &[&[0, 7, 0x81, 0, 0, 5, 0x81, 0, 0, 6, 0x88, 0xb5][..], &payload(1500)].concat(),
        ),
    ]
}

/// One and three workers, each with owned and borrowed RX buffers.
fn labs(mtu: u16) -> impl Iterator<Item = Lab> {
    KINDS.into_iter().map(move |(workers, memory)| {
        let setup = Setup { workers, memory, mtu, ..Setup::default() };
        Lab::new(setup, &[PortSpec::new(0, 1), PortSpec::new(0, 2), PortSpec::new(0, 3)])
    })
}

/// Shows: REQ-10, REQ-11, REQ-18, REQ-19
#[test]
fn each_row_reaches_its_receivers() {
    for mut lab in labs(1500) {
        for Row { name, expected, bytes } in rows() {
            let drops = DropReason::ALL.map(|reason| lab.drops_in(A, reason));
            assert!(lab.send(A, &bytes));
            lab.settle();
            let copies = match expected {
                U => [0, 1, 0],
                F => [0, 1, 1],
                D(_) => [0, 0, 0],
            };
            for (port, copies) in [A, B, C].into_iter().zip(copies) {
                assert_eq!(lab.received(port), vec![bytes.clone(); copies], "{name}: at port {port}");
            }
            for (reason, before) in DropReason::ALL.into_iter().zip(drops) {
                assert_eq!(lab.drops_in(A, reason) - before, u64::from(expected == D(reason)), "{name}: {reason:?}");
            }
        }
        assert_eq!(lab.total(|c| c.drops_out.total()), 0);
        lab.check_counters();
        lab.end();
    }
}

/// Sends frames of these lengths with up to two tags, unicast to B and flooded, and expects each to arrive
/// unmodified.
fn all_lengths_arrive(mtu: u16, lens: impl Iterator<Item = usize> + Clone) {
    for mut lab in labs(mtu) {
        for tags in 0..3 {
            for len in lens.clone() {
                let front = [0x81, 0x00, 0x00, 0x05, 0x88, 0xa8, 0x00, 0x06, 0x08, 0x00];
                let after = [&front[..4 * tags], &[0x88, 0xb5][..], &payload(len)].concat();
                let kind = u16::from_be_bytes([after[0], after[1]]);
                for to in [mac(B), Mac::BROADCAST] {
                    let bytes = frame(to, mac(A), kind, &after[2..]);
                    assert_eq!(bytes.len(), 14 + 4 * tags + len);
                    assert!(lab.send(A, &bytes));
                    lab.settle();
                    assert!(lab.received(B) == [&bytes[..]], "{} bytes, {tags} tags", bytes.len());
                    let at_c: &[Vec<u8>] = if to.is_group() { &[bytes] } else { &[] };
                    assert!(lab.received(C) == at_c, "{tags} tags, {len} bytes after them");
                }
            }
        }
        lab.check_counters();
        lab.end();
    }
}

/// Shows: REQ-10
#[test]
fn every_length_is_forwarded_unmodified() {
    all_lengths_arrive(1500, 0..=1500);
}

/// A jumbo frame is longer than two slots.
///
/// Shows: REQ-10
#[test]
fn jumbo_frames_are_forwarded_unmodified() {
    // Lengths around the ends of slots, for any offset of the first segment in its slot.
    let lens = (2990..4000).step_by(7).chain(7080..8200).step_by(13).chain(9180..=9216);
    all_lengths_arrive(9216, lens);
    for mut lab in labs(9216) {
        assert!(lab.send(A, &frame(mac(B), mac(A), 0x88b5, &payload(9217))));
        lab.settle();
        assert_eq!(lab.drops_in(A, DropReason::TooLong), 1, "never truncated");
        assert!(lab.received(B).is_empty());
        lab.end();
    }
}
