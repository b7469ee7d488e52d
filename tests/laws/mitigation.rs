//! Loop mitigation in the data path: quarantine, sibling split horizon, dampening. `model.rs` shows that they have no
//! other effect. Needs nothing of the host.

use vifswitch::device::loopback::RxMemory;
use vifswitch::switch::{DropReason, NetworkId, PortConfig, Security, Station};
use vifswitch::wire::{Mac, Offload};

use crate::builders::KINDS;
use crate::fdb::reached;
use crate::generators::wild;
use support::lab::{Lab, PortSpec, Setup, UplinkSpec, frame, mac};

const BPDU: Mac = Mac::from_bits(0x0180_c200_0000);
const PVST: Mac = Mac::from_bits(0x0100_0ccc_cccd);
const LLDP: Mac = Mac::from_bits(0x0180_c200_000e);

fn labs(port_specs: &[PortSpec], uplink_specs: &[UplinkSpec]) -> impl Iterator<Item = Lab> {
    KINDS.into_iter().map(move |(workers, memory)| {
        Lab::with_uplinks(Setup { workers, memory, ..Setup::default() }, port_specs, uplink_specs)
    })
}

fn change(lab: &mut Lab, port: usize, change: impl Fn(&mut PortConfig)) {
    let id = lab.ports[port];
    lab.change_ports(|all| all.iter_mut().filter(|port| port.id == id).for_each(change));
}

fn done(lab: Lab) {
    lab.check_counters();
    lab.end();
}

/// Ports 0, 1 and 2 belong to one VM, port 3 to another; port 4 is an uplink.
fn siblings() -> Vec<PortSpec> {
    [7, 7, 7, 1].map(|owner| PortSpec::new(0, owner)).into()
}

#[test]
fn a_quarantined_port_sends_and_receives_nothing() {
    for mut lab in labs(&siblings(), &[UplinkSpec::new(&[(0, 0)])]) {
        change(&mut lab, 0, |port| port.quarantined = true);
        for to in [Mac::BROADCAST, wild(9), mac(3), mac(1), BPDU] {
            assert_eq!(reached(&mut lab, 0, to, mac(0)), [0; 0]);
        }
        assert_eq!(lab.drops_in(0, DropReason::Quarantined), 5);
        assert_eq!(reached(&mut lab, 3, Mac::BROADCAST, mac(3)), [1, 2, 4], "the quarantined port is in no flood list");
        assert_eq!(reached(&mut lab, 3, BPDU, mac(3)), [1, 2]);
        assert_eq!(reached(&mut lab, 3, mac(0), mac(3)), [0; 0], "unicast to the quarantined port is dropped");
        assert_eq!(lab.drops_out(0, DropReason::Quarantined), 1);
        assert!((0..lab.workers.len()).all(|worker| lab.stations(worker).iter().all(|at| at.port != lab.ports[0])));
        change(&mut lab, 0, |port| port.quarantined = false);
        assert_eq!(reached(&mut lab, 3, mac(0), mac(3)), [0]);
        assert_eq!(reached(&mut lab, 0, Mac::BROADCAST, mac(0)), [1, 2, 3, 4]);
        done(lab);
    }
}

/// Quarantine of a subport does not affect its parent, nor the reverse; nor does quarantine of one network of an
/// uplink affect the others.
#[test]
fn ports_that_share_a_device_are_quarantined_separately() {
    let port_specs =
        [PortSpec::new(0, 7), PortSpec::new(1, 7).subport_of(0, 70), PortSpec::new(0, 1), PortSpec::new(1, 1)];
    for (workers, memory) in KINDS {
        let setup = Setup { workers, memory, ..Setup::default() };
        let mut lab = Lab::with_uplinks(setup, &port_specs, &[UplinkSpec::new(&[(10, 0), (11, 1)])]);
        let sent = |lab: &mut Lab, port: usize, bytes: &[u8]| -> Vec<usize> {
            let (bytes, offload) = lab.tagged(port, bytes, Offload::NONE).unwrap();
            let base = lab.base(port);
            assert!(lab.ends[base].send(&bytes, offload));
            lab.settle();
            lab.sorted().iter().enumerate().flat_map(|(port, frames)| vec![port; frames.len()]).collect()
        };
        let from = |port: usize| frame(Mac::BROADCAST, mac(port), 0x88b5, &[1; 46]);
        let outside = |vid: u8| frame(Mac::BROADCAST, wild(5), 0x8100, &[&[0, vid, 0x88, 0xb5][..], &[1; 46]].concat());
        for (held, of_parent, of_subport) in
            [(1, [vec![2, 4], vec![0, 4]], [vec![], vec![4]]), (0, [vec![], vec![4]], [vec![3, 4], vec![1, 4]])]
        {
            change(&mut lab, held, |port| port.quarantined = true);
            assert_eq!([sent(&mut lab, 0, &from(0)), sent(&mut lab, 2, &from(2))], of_parent);
            assert_eq!([sent(&mut lab, 1, &from(1)), sent(&mut lab, 3, &from(3))], of_subport);
            assert_eq!(lab.drops_in(held, DropReason::Quarantined), 1);
            change(&mut lab, held, |port| port.quarantined = false);
        }
        lab.change_ports(|all| {
            all.iter_mut().for_each(|port| port.quarantined = port.is_uplink() && port.network.index() == 0)
        });
        assert_eq!(sent(&mut lab, 2, &from(2)), [0]);
        assert_eq!(sent(&mut lab, 3, &from(3)), [1, 4]);
        assert_eq!(sent(&mut lab, 4, &outside(10)), [0; 0]);
        assert_eq!(lab.drops_in(4, DropReason::Quarantined), 1);
        assert_eq!(sent(&mut lab, 4, &outside(11)), [1, 3]);
        done(lab);
    }
}

#[test]
fn siblings_with_split_horizon_do_not_flood_each_other() {
    for mut lab in labs(&siblings(), &[UplinkSpec::new(&[(0, 0)])]) {
        for port in 0..2 {
            change(&mut lab, port, |port| port.sibling_split_horizon = true);
        }
        for from in 0..2 {
            for to in [Mac::BROADCAST, wild(9), Mac::from_bits(0x0100_5e00_0001)] {
                assert_eq!(reached(&mut lab, from, to, mac(from)), [3, 4]);
            }
            let others: Vec<_> = (0..4).filter(|&port| port != from).collect();
            for to in [BPDU, PVST] {
                assert_eq!(
                    reached(&mut lab, from, to, mac(from)),
                    others,
                    "BPDUs pass, so that the guest's spanning tree finds the loop"
                );
            }
            assert_eq!(
                reached(&mut lab, from, LLDP, mac(from)),
                [3],
                "other reserved groups do not pass between siblings"
            );
            for to in (0..4).filter(|&to| to != from) {
                assert_eq!(reached(&mut lab, from, mac(to), mac(from)), [to], "known unicast passes");
            }
        }
        assert_eq!(
            reached(&mut lab, 2, Mac::BROADCAST, mac(2)),
            [0, 1, 3, 4],
            "a sibling without split horizon floods to all"
        );
        assert_eq!(reached(&mut lab, 3, Mac::BROADCAST, mac(3)), [0, 1, 2, 4]);
        done(lab);
    }
}

/// A promiscuous sibling could bridge its mirror copies back.
#[test]
fn a_promiscuous_sibling_gets_no_copies_with_split_horizon() {
    let mut port_specs = siblings();
    port_specs[1].promiscuous = true;
    port_specs.push(PortSpec { promiscuous: true, ..PortSpec::new(0, 2) });
    for mut lab in labs(&port_specs, &[]) {
        assert_eq!(reached(&mut lab, 0, mac(3), mac(0)), [1, 3, 4]);
        change(&mut lab, 0, |port| port.sibling_split_horizon = true);
        assert_eq!(reached(&mut lab, 0, mac(3), mac(0)), [3, 4]);
        assert_eq!(reached(&mut lab, 0, mac(1), mac(0)), [1, 4], "unicast to the sibling passes");
        assert_eq!(reached(&mut lab, 0, mac(4), mac(0)), [4]);
        assert_eq!(reached(&mut lab, 3, mac(0), mac(3)), [0, 1, 4]);
        done(lab);
    }
}

/// A dampened station stays at its port; frames from it at any other port are dropped: another VM, a sibling, the
/// uplink.
#[test]
fn a_dampened_station_stays_at_its_port() {
    let mut port_specs = siblings();
    port_specs[2].security = Security::Mac([].into());
    for mut lab in labs(&port_specs, &[UplinkSpec::new(&[(0, 0)])]) {
        let station = |mac| Station::new(NetworkId::new(0), mac);
        let id = lab.ports[0];
        assert_eq!(reached(&mut lab, 3, Mac::BROADCAST, wild(1)), [0, 1, 2, 4]);
        lab.dampen(&[(station(wild(1)), id), (station(mac(3)), id), (station(wild(2)), lab.ports[2])]);
        assert_eq!(lab.config.dampened().count(), 2, "a pinned station cannot be dampened");
        assert_eq!(lab.config.pinned().count(), 4);
        for from in [1, 3, 4] {
            assert_eq!(reached(&mut lab, from, Mac::BROADCAST, wild(1)), [0; 0]);
            assert_eq!(lab.drops_in(from, DropReason::DampenedSource), 1);
        }
        assert_eq!(reached(&mut lab, 0, Mac::BROADCAST, wild(1)), [1, 2, 3, 4]);
        assert_eq!(reached(&mut lab, 3, wild(1), mac(3)), [0], "the dampened station is reached at its port");
        assert_eq!(reached(&mut lab, 3, mac(0), mac(3)), [0], "pins are unchanged");
        assert_eq!(reached(&mut lab, 2, Mac::BROADCAST, wild(2)), [0; 0], "port security still applies");
        assert_eq!(lab.drops_in(2, DropReason::SpoofedSource), 1);
        // When dampening ends, the station is learned where it sends.
        lab.change_ports(|_| {});
        assert_eq!(reached(&mut lab, 1, Mac::BROADCAST, wild(1)), [0, 2, 3, 4]);
        assert_eq!(reached(&mut lab, 3, wild(1), mac(3)), [1]);
        done(lab);
    }
}

/// A frame is in flight to another worker when the port there is quarantined.
#[test]
fn frames_in_flight_to_a_quarantined_port_are_dropped() {
    let setup = Setup { workers: 2, memory: RxMemory::Owned, ..Setup::default() };
    let mut lab = Lab::new(setup, &[PortSpec::new(0, 0), PortSpec::new(0, 1)]);
    assert!(lab.send(0, &frame(mac(1), mac(0), 0x88b5, &[1; 46])));
    lab.workers[0].poll_once(lab.now);
    change(&mut lab, 1, |port| port.quarantined = true);
    lab.settle();
    assert_eq!((lab.received(1).len(), lab.drops_out(1, DropReason::Quarantined)), (0, 1));
    done(lab);
}
