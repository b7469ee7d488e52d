//! FDB: learning, ageing, pins, moves, and siblings. Needs nothing of the host.

use std::time::Duration;

use vifswitch::device::loopback::{Loopback, LoopbackCapacity, RxMemory};
use vifswitch::switch::{DropReason, Limits, Security};
use vifswitch::wire::{Mac, Offload};

use crate::builders::KINDS;
use crate::generators::wild;
use support::lab::{Lab, PortSpec, Setup, frame, mac};

/// A numbered frame from a station.
pub fn note(to: Mac, from: Mac, number: u32) -> Vec<u8> {
    frame(to, from, 0x88b5, &number.to_be_bytes())
}

/// Sends one frame and polls until idle. Returns the receiving ports, one element per copy.
pub fn reached(lab: &mut Lab, from: usize, to: Mac, source: Mac) -> Vec<usize> {
    let bytes = note(to, source, 0x1234_5678);
    assert!(lab.send(from, &bytes));
    lab.settle();
    let received = lab.all_received();
    assert!(received.iter().flatten().all(|frame| *frame == bytes), "frames are forwarded unmodified");
    received.iter().enumerate().flat_map(|(port, frames)| vec![port; frames.len()]).collect()
}

/// A lab with ports of these VMs on one network.
fn lab(workers: u16, memory: RxMemory, owners: &[u32]) -> Lab {
    let port_specs: Vec<_> = owners.iter().map(|&owner| PortSpec::new(0, owner)).collect();
    Lab::new(Setup { workers, memory, ..Setup::default() }, &port_specs)
}

/// Port 0 sends from very many addresses; stations learned at port 1 stay.
fn storm_of_addresses(workers: u16, stations: u32, limits: Limits) {
    const NEIGHBOURS: usize = 500;
    let setup = Setup { workers, stations, limits, ..Setup::default() };
    let mut lab = Lab::new(setup, &[PortSpec::new(0, 0), PortSpec::new(0, 1), PortSpec::new(0, 2)]);
    for number in 0..NEIGHBOURS {
        assert!(lab.send(1, &note(mac(0), wild(number), 0)));
        lab.settle();
    }
    lab.ends.iter_mut().for_each(Loopback::discard);
    let mut bits = 1u64;
    for _ in 0..20_000 / 50 {
        for _ in 0..50 {
            bits = bits.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let source = Mac::from_bits(0x06_00_00_00_00_00 | bits >> 24);
            assert!(lab.ends[0].stage(&note(mac(2), source, 0), Offload::NONE));
        }
        lab.ends[0].publish();
        lab.settle();
        lab.ends[2].discard();
    }
    assert!(lab.all_received().iter().all(Vec::is_empty));
    for worker in 0..usize::from(workers) {
        let learned = lab.stations(worker);
        let after = |port: usize| learned.iter().filter(|learned| learned.port.index() == port).count();
        assert_eq!(after(1), NEIGHBOURS, "at worker {worker}");
        let room = limits.port.min(limits.network - NEIGHBOURS as u32).min(stations - NEIGHBOURS as u32);
        assert_eq!(after(0), room as usize, "port 0 is at its limit, at worker {worker}");
    }
    for number in 0..NEIGHBOURS {
        assert_eq!(reached(&mut lab, 2, wild(number), mac(2)), [1], "station {number}");
    }
    lab.check_counters();
    lab.end();
}

/// Shows: REQ-18
#[test]
fn twenty_thousand_addresses_evict_no_station_of_another_port() {
    for workers in [1, 2] {
        storm_of_addresses(workers, 65536, Limits::default());
        storm_of_addresses(workers, 65536, Limits { network: 1000, port: 8192 });
        storm_of_addresses(workers, 1000, Limits::default());
    }
}

/// Shows: REQ-18
#[test]
fn a_silent_station_ages() {
    for (workers, memory) in KINDS {
        let mut lab = lab(workers, memory, &[0, 1, 2]);
        assert_eq!(reached(&mut lab, 0, mac(1), wild(0)), [1]);
        lab.advance(Duration::from_secs(299));
        assert_eq!(reached(&mut lab, 2, wild(0), mac(2)), [0]);
        lab.advance(Duration::from_secs(1));
        assert_eq!(reached(&mut lab, 2, wild(0), mac(2)), [0, 1], "the station has aged");
        assert_eq!(reached(&mut lab, 0, mac(1), wild(0)), [1]);
        assert_eq!(reached(&mut lab, 2, wild(0), mac(2)), [0], "the station is learned again");
        lab.end();
    }
}

/// A station that sends occasionally never ages, including at workers that know it only from MAC updates.
#[test]
fn a_station_that_sends_does_not_age() {
    for (workers, memory) in KINDS {
        let mut lab = lab(workers, memory, &[0, 1, 2]);
        for _ in 0..100 {
            assert_eq!(reached(&mut lab, 0, mac(1), wild(0)), [1]);
            lab.advance(Duration::from_secs(37));
            assert_eq!(reached(&mut lab, 2, wild(0), mac(2)), [0]);
        }
        lab.end();
    }
}

/// Ageing removes entries from the table, a few per `poll_once`.
#[test]
fn aged_entries_are_removed() {
    let mut lab = lab(2, RxMemory::Owned, &[0, 1]);
    for number in 0..200 {
        assert_eq!(reached(&mut lab, 0, mac(1), wild(number)), [1]);
    }
    assert_eq!((lab.stations(0).len(), lab.stations(1).len()), (200, 200));
    lab.advance(Duration::from_secs(300));
    for _ in 0..200 {
        lab.step();
    }
    assert_eq!((lab.stations(0).len(), lab.stations(1).len()), (0, 0));
    lab.end();
}

#[test]
fn a_moved_station_is_reached_at_its_new_port() {
    for (workers, memory) in KINDS {
        let mut lab = lab(workers, memory, &[0, 1, 2, 3]);
        for _ in 0..5 {
            for port in [0, 1, 3] {
                lab.advance(Duration::from_secs(60));
                reached(&mut lab, port, mac(2), wild(0));
                assert_eq!(reached(&mut lab, 2, wild(0), mac(2)), [port]);
            }
        }
        lab.end();
    }
}

/// The same address on two networks is two stations.
///
/// Shows: REQ-04
#[test]
fn networks_have_separate_stations() {
    for (workers, memory) in KINDS {
        let port_specs: Vec<_> = [0, 0, 0, 1, 1, 1].into_iter().map(|network| PortSpec::new(network, 0)).collect();
        let mut lab = Lab::new(Setup { workers, memory, ..Setup::default() }, &port_specs);
        reached(&mut lab, 1, Mac::BROADCAST, wild(0));
        reached(&mut lab, 5, Mac::BROADCAST, wild(0));
        assert_eq!(reached(&mut lab, 0, wild(0), mac(0)), [1]);
        assert_eq!(reached(&mut lab, 3, wild(0), mac(3)), [5]);
        assert_eq!(reached(&mut lab, 3, mac(0), mac(3)), [4, 5], "a pin of another network does not apply");
        assert_eq!(reached(&mut lab, 3, Mac::BROADCAST, mac(3)), [4, 5]);
        lab.end();
    }
}

/// Shows: REQ-20, REQ-40
#[test]
fn a_pinned_address_cannot_be_moved() {
    for (workers, memory) in KINDS {
        let mut lab = lab(workers, memory, &[0, 1, 2, 1]);
        assert_eq!(reached(&mut lab, 0, mac(2), mac(1)), [0; 0], "an address pinned to another VM is refused");
        assert_eq!(lab.drops_in(0, DropReason::ForeignSource), 1);
        assert_eq!(reached(&mut lab, 2, mac(1), mac(2)), [1]);
        assert_eq!(reached(&mut lab, 3, mac(2), mac(1)), [2], "a sibling may send from it");
        assert_eq!(reached(&mut lab, 2, mac(1), mac(2)), [1], "the pin does not move to the sibling");
        lab.end();
    }
}

/// Shows: REQ-13, REQ-20
#[test]
fn unicast_to_a_silent_pinned_port_is_not_flooded() {
    for (workers, memory) in KINDS {
        let allowed = wild(3);
        let mut port_specs: Vec<_> = (0..4).map(|owner| PortSpec::new(0, owner)).collect();
        port_specs[1].security = Security::Mac([allowed].into());
        let mut lab = Lab::new(Setup { workers, memory, ..Setup::default() }, &port_specs);
        for to in [mac(1), allowed] {
            assert_eq!(reached(&mut lab, 0, to, mac(0)), [1]);
            assert_eq!(reached(&mut lab, 3, to, wild(0)), [1]);
        }
        lab.end();
    }
}

/// An address in the allowed pairs of two ports is pinned to neither and learned at the port that sent last.
///
/// Shows: REQ-20
#[test]
fn a_shared_address_moves_between_its_ports() {
    for (workers, memory) in KINDS {
        let vrrp = Mac::from_bits(0x0000_5e00_0101);
        let mut port_specs: Vec<_> = (0..3).map(|owner| PortSpec::new(0, owner)).collect();
        for spec in &mut port_specs[..2] {
            spec.security = Security::Mac([vrrp].into());
        }
        let mut lab = Lab::new(Setup { workers, memory, ..Setup::default() }, &port_specs);
        assert_eq!(reached(&mut lab, 2, vrrp, mac(2)), [0, 1]);
        for _ in 0..3 {
            for port in [0, 1] {
                lab.advance(Duration::from_secs(60));
                assert_eq!(reached(&mut lab, port, mac(2), vrrp), [2]);
                assert_eq!(reached(&mut lab, 2, vrrp, mac(2)), [port]);
            }
        }
        assert_eq!(reached(&mut lab, 0, mac(2), wild(1)), [0; 0], "an address not in the allowed pairs is refused");
        assert_eq!(lab.drops_in(0, DropReason::SpoofedSource), 1);
        lab.end();
    }
}

/// Several ports of one VM on a network reach each other through the switch; none receives its own frames.
///
/// Shows: REQ-23
#[test]
fn siblings_reach_each_other() {
    for (workers, memory) in KINDS {
        for siblings in [2, 3, 8] {
            let mut owners = vec![7; siblings];
            owners.push(1);
            let mut lab = lab(workers, memory, &owners);
            for from in 0..siblings {
                let others: Vec<_> = (0..=siblings).filter(|&port| port != from).collect();
                for group in [Mac::BROADCAST, wild(99), Mac::from_bits(0x0100_5e00_0001)] {
                    assert_eq!(reached(&mut lab, from, group, mac(from)), others, "each once");
                }
                for to in (0..siblings).filter(|&to| to != from) {
                    assert_eq!(reached(&mut lab, from, mac(to), mac(from)), [to]);
                }
                assert_eq!(reached(&mut lab, from, mac(from), mac(from)), [0; 0]);
            }
            lab.check_counters();
            lab.end();
        }
    }
}

/// An outsider sends streams to all ports of a VM at once; each port receives its own frames in order. One port is
/// closed in between; the others lose nothing.
///
/// Shows: REQ-24, AT-04
#[test]
fn outsiders_reach_each_sibling_separately() {
    for (workers, memory) in KINDS {
        for siblings in [2usize, 3, 8] {
            let mut owners = vec![7; siblings];
            owners.push(1);
            let loopback = LoopbackCapacity { blocks: 1024, ..LoopbackCapacity::default() };
            let port_specs: Vec<_> = owners.iter().map(|&owner| PortSpec::new(0, owner)).collect();
            let mut lab = Lab::new(Setup { workers, memory, capacity: loopback, ..Setup::default() }, &port_specs);
            let outsider = siblings;
            for number in 0..600 {
                if number == 300 {
                    let port = lab.ports[0];
                    lab.settle();
                    lab.change_ports(|all| all.retain(|config| config.id != port));
                    assert!(lab.close(port, 0).is_some());
                }
                for to in 0..siblings {
                    assert!(lab.ends[outsider].stage(&note(mac(to), mac(outsider), number), Offload::NONE));
                }
                if number % 7 == 0 {
                    lab.ends[outsider].publish();
                    lab.step();
                }
            }
            lab.ends[outsider].publish();
            lab.settle();
            for to in 1..siblings {
                let to_it = |number| note(mac(to), mac(outsider), number);
                let received: Vec<_> =
                    lab.received(to).into_iter().filter(|frame| frame[..6] == mac(to).octets()).collect();
                assert_eq!(received, (0..600).map(to_it).collect::<Vec<_>>(), "sibling {to} of {siblings}");
            }
            let first = lab.received(0).len();
            assert!(first <= 301, "a closed port receives nothing: {first}");
            lab.check_counters();
            lab.end();
        }
    }
}
