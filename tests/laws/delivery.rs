//! Delivery beyond the FDB: promiscuous ports, ports without unknown unicast, MAC limits, `mac+ip`, shared addresses,
//! reserved groups. Needs nothing of the host.

use std::time::Duration;

use vifswitch::switch::{AtLimit, Binding, DropReason, MacLimit, ReservedMask, Security};
use vifswitch::wire::{Mac, Offload};

use crate::builders::KINDS;
use crate::generators::{tcp, wild};
use support::lab::{Lab, PortSpec, Setup, UplinkSpec, frame, mac};

/// Sends one frame and polls until idle. Returns the receiving ports, one element per copy.
fn sent(lab: &mut Lab, from: usize, bytes: &[u8], offload: Offload) -> Vec<usize> {
    assert!(lab.ends[from].send(bytes, offload));
    lab.settle();
    let received = lab.all_received();
    assert!(received.iter().flatten().all(|frame| frame == bytes), "frames are forwarded unmodified");
    received.iter().enumerate().flat_map(|(port, frames)| vec![port; frames.len()]).collect()
}

fn reached(lab: &mut Lab, from: usize, to: Mac, source: Mac) -> Vec<usize> {
    sent(lab, from, &frame(to, source, 0x88b5, &[7; 50]), Offload::NONE)
}

fn port_specs(count: u32) -> Vec<PortSpec> {
    (0..count).map(|owner| PortSpec::new(0, owner)).collect()
}

/// Shows: REQ-15
#[test]
fn a_promiscuous_port_receives_each_forwarded_frame_once() {
    for (workers, memory) in KINDS {
        let mut port_specs = port_specs(5);
        port_specs[2].promiscuous = true;
        port_specs[4].promiscuous = true;
        port_specs.push(PortSpec::new(1, 0));
        port_specs.push(PortSpec::new(1, 1));
        let uplink_specs = [UplinkSpec::new(&[(5, 0)]), UplinkSpec::new(&[(5, 0)])];
        let mut lab = Lab::with_uplinks(Setup { workers, memory, ..Setup::default() }, &port_specs, &uplink_specs);
        assert_eq!(reached(&mut lab, 0, mac(1), mac(0)), [1, 2, 4]);
        assert_eq!(reached(&mut lab, 0, mac(2), mac(0)), [2, 4], "a promiscuous port receives its own unicast once");
        assert_eq!(reached(&mut lab, 2, mac(1), mac(2)), [1, 4], "a promiscuous port does not receive its own frames");
        assert_eq!(reached(&mut lab, 2, mac(4), mac(2)), [4]);
        assert_eq!(reached(&mut lab, 0, mac(1), mac(3)), [0; 0], "a promiscuous port does not receive dropped frames");
        assert_eq!(reached(&mut lab, 0, mac(0), mac(0)), [0; 0]);
        assert_eq!(
            reached(&mut lab, 5, mac(6), mac(5)),
            [6],
            "a promiscuous port does not receive frames of another network"
        );
        assert_eq!(lab.sum(2, |c| c.mirror_copies.get()), 1);
        assert_eq!(lab.sum(4, |c| c.mirror_copies.get()), 3);
        // Between an uplink and a VM, in both directions; tagged on the uplink.
        let (inside, mut outside) =
            (frame(wild(1), mac(0), 0x88b5, &[7; 50]), frame(mac(0), wild(1), 0x88b5, &[7; 50]));
        let there = [frame(mac(0), wild(1), 0x88b5, &[7; 50])];
        outside.splice(12..12, [0x81, 0, 0, 5]);
        assert!(lab.send(7, &outside));
        lab.settle();
        assert_eq!([0, 1, 2, 4].map(|port| lab.received(port)), [&there[..], &[], &there, &there]);
        assert!(lab.send(0, &inside));
        lab.settle();
        assert_eq!([1, 2, 4, 8].map(|port| lab.received(port).len()), [0, 1, 1, 0]);
        assert_eq!(lab.received(7).len(), 1);
        // A GSO packet counts as its segments.
        let before = (lab.sum(2, |c| c.mirror_copies.get()), lab.sum(0, |c| c.copies.get()));
        let mut bytes = frame(mac(1), mac(0), 0x0800, &[0x50; 3000]);
        bytes[46] = 0x50;
        let got = sent(&mut lab, 0, &bytes, tcp(1000));
        assert_eq!(got, [1, 2, 4]);
        assert_eq!(lab.sum(2, |c| c.mirror_copies.get()) - before.0, 3);
        assert_eq!(lab.sum(0, |c| c.copies.get()) - before.1, 6);
        lab.check_counters();
        lab.end();
    }
}

#[test]
fn a_port_without_unknown_unicast_receives_all_else() {
    for (workers, memory) in KINDS {
        let mut port_specs = port_specs(4);
        port_specs[2].unknown_unicast = false;
        let mut lab = Lab::new(Setup { workers, memory, ..Setup::default() }, &port_specs);
        assert_eq!(reached(&mut lab, 0, wild(1), mac(0)), [1, 3]);
        assert_eq!(
            reached(&mut lab, 2, wild(1), mac(2)),
            [0, 1, 3],
            "unknown unicast from the port reaches the other ports"
        );
        assert_eq!(lab.sum(2, |c| c.not_flooded.get()), 1);
        assert_eq!(reached(&mut lab, 0, Mac::BROADCAST, mac(0)), [1, 2, 3]);
        assert_eq!(reached(&mut lab, 0, Mac::from_bits(0x3333_0000_0001), mac(0)), [1, 2, 3]);
        assert_eq!(reached(&mut lab, 0, mac(2), mac(0)), [2], "the pinned address is known unicast");
        reached(&mut lab, 2, mac(0), wild(2));
        assert_eq!(reached(&mut lab, 0, wild(2), mac(0)), [2], "a learned address is known unicast");
        assert_eq!(lab.total(|c| c.not_flooded.get()), 1);
        lab.check_counters();
        lab.end();
    }
}

#[test]
fn a_port_at_its_mac_limit_learns_no_further_station() {
    for (workers, memory) in KINDS {
        for policy in [AtLimit::Drop, AtLimit::ForwardUnlearned] {
            let mut port_specs = port_specs(3);
            port_specs[0].mac_limit = Some(MacLimit { stations: 2, policy });
            let mut lab = Lab::new(Setup { workers, memory, ..Setup::default() }, &port_specs);
            for source in [mac(0), wild(0), wild(1), wild(0)] {
                assert_eq!(
                    reached(&mut lab, 0, mac(1), source),
                    [1],
                    "pinned addresses do not count towards the limit"
                );
            }
            let is_dropped = policy == AtLimit::Drop;
            let passes: &[usize] = if is_dropped { &[] } else { &[1] };
            assert_eq!(reached(&mut lab, 0, mac(1), wild(2)), passes);
            assert_eq!(reached(&mut lab, 1, wild(2), mac(1)), [0, 2], "the address is not learned");
            assert_eq!(reached(&mut lab, 1, wild(0), mac(1)), [0], "no entry was evicted");
            let counted = (lab.drops_in(0, DropReason::MacLimit), lab.sum(0, |c| c.not_learned.get()));
            assert_eq!(counted, if is_dropped { (1, 0) } else { (0, 1) });
            // In one burst, after a frame of a known station.
            lab.advance(Duration::from_secs(1));
            for source in [wild(0), wild(3), wild(4)] {
                assert!(lab.send(0, &frame(mac(1), source, 0x88b5, &[7; 50])));
            }
            lab.settle();
            assert_eq!(lab.received(1).len(), if is_dropped { 1 } else { 3 });
            let counted = (lab.drops_in(0, DropReason::MacLimit), lab.sum(0, |c| c.not_learned.get()));
            assert_eq!(counted, if is_dropped { (3, 0) } else { (0, 3) });
            // A station moves away, which frees an entry.
            reached(&mut lab, 2, mac(1), wild(1));
            assert_eq!(reached(&mut lab, 0, mac(1), wild(2)), [1]);
            assert_eq!(reached(&mut lab, 1, wild(2), mac(1)), [0]);
            assert_eq!(
                reached(&mut lab, 0, mac(1), wild(1)),
                passes,
                "a moved station does not return to a port at its limit"
            );
            assert_eq!(reached(&mut lab, 1, wild(1), mac(1)), [2]);
            // Stations age, which frees entries.
            lab.advance(Duration::from_secs(300));
            assert_eq!(reached(&mut lab, 0, mac(1), wild(5)), [1]);
            assert_eq!(reached(&mut lab, 1, wild(5), mac(1)), [0]);
            lab.check_counters();
            lab.end();
        }
    }
}

/// Anti-spoofing leaves the addresses of siblings to port security.
#[test]
fn port_security_refuses_the_address_of_a_sibling() {
    for (workers, memory) in KINDS {
        let mut port_specs = [PortSpec::new(0, 0), PortSpec::new(0, 0), PortSpec::new(0, 1)];
        port_specs[0].security = Security::Mac([].into());
        let mut lab = Lab::new(Setup { workers, memory, ..Setup::default() }, &port_specs);
        assert_eq!(reached(&mut lab, 0, mac(2), mac(0)), [2]);
        assert_eq!(reached(&mut lab, 0, mac(2), mac(1)), [0; 0]);
        assert_eq!(lab.drops_in(0, DropReason::SpoofedSource), 1);
        lab.check_counters();
        lab.end();
    }
}

/// An address in the allowed pairs of several ports is learned and takes an FDB entry. Pinning it displaces no other
/// station.
#[test]
fn pinning_an_address_evicts_no_station() {
    for (workers, memory) in KINDS {
        for policy in [AtLimit::Drop, AtLimit::ForwardUnlearned] {
            let mut port_specs = port_specs(3);
            port_specs[0].mac_limit = Some(MacLimit { stations: 2, policy });
            port_specs[2].security = Security::Mac([mac(0)].into());
            let mut lab = Lab::new(Setup { workers, memory, ..Setup::default() }, &port_specs);
            for source in [wild(0), mac(0)] {
                assert_eq!(reached(&mut lab, 0, mac(1), source), [1]);
            }
            lab.change_ports(|ports| ports.iter_mut().for_each(|port| port.security = Security::Off));
            assert_eq!(reached(&mut lab, 0, mac(1), wild(1)), [1], "pinned addresses do not count towards the limit");
            let passes: &[usize] = if policy == AtLimit::Drop { &[] } else { &[1] };
            assert_eq!(reached(&mut lab, 0, mac(1), wild(2)), passes);
            assert_eq!([wild(0), wild(1)].map(|to| reached(&mut lab, 1, to, mac(1))), [[0], [0]]);
            assert_eq!(reached(&mut lab, 1, wild(2), mac(1)), [0, 2], "the address is not learned");
            assert_eq!(reached(&mut lab, 1, mac(0), mac(1)), [0]);
            lab.check_counters();
            lab.end();
        }
    }
}

/// Announcements after a migration are ordinary frames: the station is at their ingress port.
///
/// Shows: REQ-25
#[test]
fn an_announcement_moves_a_station_at_once() {
    let rarp = |of: Mac| frame(Mac::BROADCAST, of, 0x8035, &[&[0, 1, 8, 0, 6, 4, 0, 3][..], &[0; 38]].concat());
    let garp = |of: Mac| {
        let sender = [&of.octets()[..], &[10, 0, 0, 1]].concat();
        let target = [&[0; 6][..], &[10, 0, 0, 1], &[0; 18]].concat();
        frame(Mac::BROADCAST, of, 0x0806, &[&[0, 1, 8, 0, 6, 4, 0, 1][..], &sender, &target].concat())
    };
    for (workers, memory) in KINDS {
        for announce in [rarp, garp] as [fn(Mac) -> Vec<u8>; 2] {
            let mut lab = Lab::new(Setup { workers, memory, ..Setup::default() }, &port_specs(4));
            for port in [0, 1, 3, 1] {
                let others: Vec<_> = (0..4).filter(|&other| other != port).collect();
                assert_eq!(sent(&mut lab, port, &announce(wild(0)), Offload::NONE), others);
                assert_eq!(reached(&mut lab, 2, wild(0), mac(2)), [port], "one announcement moves the station");
            }
            // A pinned station stays, whatever announcements claim, until the pin moves.
            assert_eq!(sent(&mut lab, 0, &announce(mac(1)), Offload::NONE), [0; 0]);
            assert_eq!(lab.drops_in(0, DropReason::ForeignSource), 1);
            assert_eq!(reached(&mut lab, 2, mac(1), mac(2)), [1]);
            lab.change_ports(|ports| {
                let (one, other) =
                    (ports.iter().position(|p| p.mac == mac(0)), ports.iter().position(|p| p.mac == mac(1)));
                ports[one.unwrap()].mac = mac(1);
                ports[other.unwrap()].mac = mac(99);
            });
            assert_eq!(sent(&mut lab, 0, &announce(mac(1)), Offload::NONE), [1, 2, 3]);
            assert_eq!(reached(&mut lab, 2, mac(1), mac(2)), [0]);
            lab.end();
        }
    }
}

/// Unaddressed port with `mac+ip` and no bound address: IP and ARP are dropped, all else is forwarded.
#[test]
fn a_port_without_addresses_sends_no_ip_with_mac_ip() {
    let ip = |kind: u16, first: u8| frame(mac(1), mac(0), kind, &[first; 60]);
    for (workers, memory) in KINDS {
        let mut port_specs = port_specs(2);
        port_specs[0].security = Security::MacIp([].into());
        let mut lab = Lab::new(Setup { workers, memory, ..Setup::default() }, &port_specs);
        for (kind, first) in [(0x0800, 0x45), (0x86dd, 0x60), (0x0806, 0), (0x0800, 0)] {
            assert_eq!(sent(&mut lab, 0, &ip(kind, first), Offload::NONE), [0; 0], "{kind:x}");
        }
        for (kind, first) in [(0x88b5, 0x45), (0x8035, 0), (46, 0x60), (0x8864, 0x45)] {
            assert_eq!(sent(&mut lab, 0, &ip(kind, first), Offload::NONE), [1], "{kind:x}");
        }
        assert_eq!(lab.drops_in(0, DropReason::SpoofedIp), 4);
        // Live change: an address is bound, then port security is off.
        let mut packet = ip(0x0800, 0x45);
        packet[26..30].copy_from_slice(&[10, 0, 0, 7]);
        for (security, passes) in [
            (Security::MacIp([Binding { mac: mac(0), ip: "10.0.0.0/29".parse().ok() }].into()), true),
            (Security::MacIp([Binding { mac: mac(0), ip: "10.0.0.6".parse().ok() }].into()), false),
            (Security::Mac([].into()), true),
        ] {
            lab.change_ports(|ports| {
                ports.iter_mut().filter(|port| port.mac == mac(0)).for_each(|port| port.security = security.clone());
            });
            let expected: &[usize] = if passes { &[1] } else { &[] };
            assert_eq!(sent(&mut lab, 0, &packet, Offload::NONE), expected, "{security:?}");
        }
        lab.check_counters();
        lab.end();
    }
}

#[test]
fn each_reserved_group_has_its_drop_reason() {
    for (workers, memory) in KINDS {
        for mask in [ReservedMask::VM_DEFAULT, ReservedMask::ALL, ReservedMask::NONE, ReservedMask(0x4001)] {
            let setup = Setup { workers, memory, reserved: mask, ..Setup::default() };
            let mut lab = Lab::new(setup, &port_specs(2));
            for place in 0..16 {
                let to = Mac::from_bits(0x0180_c200_0000 + place);
                let expected: &[usize] = if mask.0 >> place & 1 == 1 { &[1] } else { &[] };
                assert_eq!(reached(&mut lab, 0, to, mac(0)), expected, "{to} by {mask:?}");
            }
            let refused: Vec<_> =
                lab.port_counters[0][0].reserved_groups.iter().map(|(group, n)| (group.index(), n)).collect();
            let expected: Vec<_> = (0..16).filter(|place| mask.0 >> place & 1 == 0).map(|place| (place, 1)).collect();
            assert_eq!(refused, expected);
            assert_eq!(lab.drops_in(0, DropReason::ReservedGroup), expected.len() as u64);
            lab.end();
        }
    }
}
