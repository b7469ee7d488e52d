//! Uplinks: many networks over one device, told apart by a VLAN tag that no VM receives. Needs nothing of the host.

use std::time::Duration;

use proptest::prelude::*;
use vifswitch::device::loopback::{RxMemory, loopback};
use vifswitch::switch::{DropReason, Security};
use vifswitch::wire::{Mac, Offload, Priority, is_without_vlan};
use vifswitch::worker::RxQueue;

use crate::builders::{KINDS, done, payload, sent, tagged};
use crate::generators::{self, Act, WILD, header, tcp, wild};
use support::lab::{Lab, PortSpec, Setup, UplinkSpec, mac};

/// Two VMs on the first network, one on each of the others.
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const D: usize = 3;
/// The first uplink, and the second, if there is one.
const W: usize = 4;
const X: usize = 5;

/// The first two networks are tagged on it, the third is untagged.
fn trunk() -> UplinkSpec {
    UplinkSpec::new(&[(120, 0), (130, 1), (0, 2)])
}

fn lab_of(setup: Setup, uplink_specs: &[UplinkSpec]) -> Lab {
    let port_specs = [PortSpec::new(0, 0), PortSpec::new(0, 1), PortSpec::new(1, 0), PortSpec::new(2, 2)];
    Lab::with_uplinks(setup, &port_specs, uplink_specs)
}

fn labs(mtu: u16, uplink_specs: &[UplinkSpec]) -> impl Iterator<Item = Lab> {
    KINDS
        .into_iter()
        .map(move |(workers, memory)| lab_of(Setup { workers, memory, mtu, ..Setup::default() }, uplink_specs))
}

/// Ports that receive a frame sent at a port.
fn reached(lab: &mut Lab, port: usize, bytes: &[u8]) -> Vec<usize> {
    sent(lab, port, bytes).into_iter().map(|(port, _)| port).collect()
}

/// Ingress drop reasons that a frame adds at a port.
fn dropped(lab: &mut Lab, port: usize, bytes: &[u8]) -> Vec<DropReason> {
    let before = DropReason::ALL.map(|reason| lab.drops_in(port, reason));
    assert_eq!(sent(lab, port, bytes), [], "no port receives it");
    let after = DropReason::ALL.map(|reason| lab.drops_in(port, reason));
    let grown = DropReason::ALL.into_iter().zip(before).zip(after);
    grown.flat_map(|((reason, before), after)| (before..after).map(move |_| reason)).collect()
}

const ALL: Mac = Mac::BROADCAST;

#[test]
fn the_tag_selects_the_network_of_a_received_frame() {
    let p = payload(46);
    let station = wild(1);
    let of = |tags: &[(u16, u16)]| tagged(ALL, station, tags, &p);
    /// Name, frame, receiving ports, received bytes.
    type Row = (&'static str, Vec<u8>, &'static [usize], Vec<u8>);
    let rows: Vec<Row> = vec![
        ("the first VLAN", of(&[(0x8100, 120)]), &[A, B], of(&[])),
        ("the second", of(&[(0x8100, 130)]), &[C], of(&[])),
        ("with a priority", of(&[(0x8100, 0xe000 | 120)]), &[A, B], of(&[])),
        ("drop eligible", of(&[(0x8100, 0x1000 | 130)]), &[C], of(&[])),
        ("untagged", of(&[]), &[D], of(&[])),
        ("only a priority", of(&[(0x8100, 0xa000)]), &[D], of(&[])),
        ("a second tag", of(&[(0x8100, 120), (0x8100, 130)]), &[A, B], of(&[(0x8100, 130)])),
        ("a second tag of TPID 0x88a8", of(&[(0x8100, 130), (0x88a8, 120)]), &[C], of(&[(0x88a8, 120)])),
        ("a tag after a priority tag", of(&[(0x8100, 0), (0x8100, 120)]), &[D], of(&[(0x8100, 120)])),
        ("TPID 0x88a8 is not the uplink's tag", of(&[(0x88a8, 120)]), &[D], of(&[(0x88a8, 120)])),
        (
            "TPID 0x9100 is not the uplink's tag",
            of(&[(0x9100, 120), (0x8100, 5)]),
            &[D],
            of(&[(0x9100, 120), (0x8100, 5)]),
        ),
        ("just a header", tagged(ALL, station, &[(0x8100, 120)], &[]), &[A, B], tagged(ALL, station, &[], &[])),
    ];
    for mut lab in labs(1500, &[trunk()]) {
        for (name, bytes, to, expected) in &rows {
            let expected: Vec<_> = to.iter().map(|&port| (port, expected.clone())).collect();
            assert_eq!(sent(&mut lab, W, bytes), expected, "{name}");
        }
        let bytes: usize = rows.iter().map(|(_, bytes, ..)| bytes.len()).sum();
        assert_eq!(lab.sum(W, |c| c.rx_bytes.get()), bytes as u64, "bytes are counted as received, including tags");
        assert_eq!(lab.total(|c| c.drops_in.total() + c.drops_out.total()), 0);
        done(lab);
    }
}

#[test]
fn frames_of_unknown_vlans_are_dropped() {
    let p = payload(46);
    let of = |id: u16| tagged(ALL, wild(1), &[(0x8100, id)], &p);
    for mut lab in labs(1500, &[trunk()]) {
        for id in [1, 119, 121, 200, 4094, 4095] {
            assert_eq!(dropped(&mut lab, W, &of(id)), [DropReason::UnknownVlan], "{id}");
        }
        let whole = tagged(ALL, wild(1), &[(0x8100, 120)], &[]);
        for len in [0, 5, 13, 14, 15, 16, 17] {
            assert_eq!(dropped(&mut lab, W, &whole[..len]), [DropReason::Runt], "{len} bytes");
        }
        for source in [ALL, Mac::ZERO, Mac::from_bits(0x0300_0000_0001)] {
            let bytes = tagged(ALL, source, &[(0x8100, 120)], &p);
            assert_eq!(dropped(&mut lab, W, &bytes), [DropReason::BadSource], "{source}");
        }
        done(lab);
    }
    for mut lab in labs(1500, &[UplinkSpec::new(&[(120, 0)])]) {
        assert_eq!(dropped(&mut lab, W, &of(0)), [DropReason::UnknownVlan], "only a priority");
        assert_eq!(dropped(&mut lab, W, &tagged(ALL, wild(1), &[], &p)), [DropReason::UnknownVlan], "untagged");
        assert_eq!(reached(&mut lab, W, &of(120)), [A, B]);
        done(lab);
    }
}

/// The outer tag does not count towards the MTU; up to two tags of the VM are not counted either.
#[test]
fn the_outer_tag_does_not_count_towards_the_mtu() {
    for mut lab in labs(1500, &[trunk()]) {
        for (tags, len, is_ok) in [
            (&[(0x8100, 120)][..], 1500, true),
            (&[(0x8100, 120)], 1501, false),
            (&[(0x8100, 120), (0x8100, 5)], 1500, true),
            (&[(0x8100, 120), (0x88a8, 5), (0x8100, 6)], 1500, true),
            (&[(0x8100, 120), (0x88a8, 5), (0x8100, 6)], 1501, false),
            (&[(0x8100, 120), (0x88a8, 5), (0x8100, 6), (0x8100, 7)], 1500, false),
            (&[(0x8100, 0)], 1500, true),
            (&[(0x8100, 0)], 1501, false),
        ] {
            let bytes = tagged(ALL, wild(1), tags, &payload(len));
            if is_ok {
                assert!(!reached(&mut lab, W, &bytes).is_empty(), "{tags:?}, {len}");
            } else {
                assert_eq!(dropped(&mut lab, W, &bytes), [DropReason::TooLong], "{tags:?}, {len}");
            }
        }
        done(lab);
    }
}

#[test]
fn transmitted_frames_have_the_tag_of_their_network() {
    let p = payload(46);
    for mut lab in labs(1500, &[trunk()]) {
        // Flooded.
        for (from, vid, also) in [(A, Some(120), Some(B)), (C, Some(130), None), (D, None, None)] {
            for inner in [&[][..], &[(0x8100, 5)], &[(0x88a8, 5), (0x8100, 7)], &[(0x8100, 0xe000)]] {
                let bytes = tagged(ALL, mac(from), inner, &p);
                if vid.is_none() && inner.first() == Some(&(0x8100, 5)) {
                    continue;
                }
                let outer: Vec<_> = match (vid, inner) {
                    // A priority tag is replaced; its priority is kept.
                    (Some(vid), [(0x8100, 0xe000)]) => vec![(0x8100, 0xe000 | vid)],
                    _ => vid.map(|vid| (0x8100, vid)).into_iter().chain(inner.iter().copied()).collect(),
                };
                let mut expected: Vec<_> = also.map(|also| (also, bytes.clone())).into_iter().collect();
                expected.push((W, tagged(ALL, mac(from), &outer, &p)));
                assert_eq!(sent(&mut lab, from, &bytes), expected);
            }
        }
        // Unicast to an external station; the same address on three networks is three stations.
        for (from, vid) in [(A, Some(120)), (B, Some(120)), (C, Some(130)), (D, None)] {
            let tag: Vec<_> = vid.map(|vid| (0x8100, vid)).into_iter().collect();
            assert_eq!(reached(&mut lab, W, &tagged(mac(from), wild(1), &tag, &p)), [from]);
            let bytes = tagged(wild(1), mac(from), &[], &p);
            assert_eq!(sent(&mut lab, from, &bytes), [(W, tagged(wild(1), mac(from), &tag, &p))]);
            assert_eq!(lab.sum(from, |c| c.forwarded.get()), 1, "the station was known");
        }
        let tx = lab.sum(W, |c| c.tx_frames.get());
        assert_eq!(tx, 11 + 4);
        assert_eq!(lab.total(|c| c.drops_in.total() + c.drops_out.total()), 0);
        done(lab);
    }
}

/// No tag of a guest's frame puts it on another external network.
#[test]
fn no_tag_of_a_guest_leads_to_another_vlan() {
    for mut lab in labs(1500, &[trunk()]) {
        let p = payload(46);
        for to in [wild(1), ALL] {
            if to != ALL {
                assert_eq!(reached(&mut lab, W, &tagged(mac(D), wild(1), &[], &p)), [D]);
            }
            for tags in [
                &[(0x8100, 120)][..],
                &[(0x8100, 7)],
                &[(0x8100, 4095)],
                &[(0x8100, 0), (0x8100, 120)],
                &[(0x8100, 0xe000), (0x8100, 0), (0x8100, 120)],
            ] {
                let before = lab.drops_out(W, DropReason::ForeignVlan);
                assert!(reached(&mut lab, D, &tagged(to, mac(D), tags, &p)).is_empty(), "{tags:?}");
                assert_eq!(lab.drops_out(W, DropReason::ForeignVlan), before + 1);
            }
            for len in 14..18 {
                let cut = &tagged(to, mac(D), &[(0x8100, 120)], &[])[..len];
                assert!(reached(&mut lab, D, cut).is_empty(), "padding would complete a tag: {len} bytes");
            }
            for tags in [&[(0x8100, 0xe000)][..], &[(0x88a8, 120)], &[(0x9100, 120)], &[(0x8100, 0), (0x88a8, 120)]] {
                let bytes = tagged(to, mac(D), tags, &p);
                assert_eq!(sent(&mut lab, D, &bytes), [(W, bytes.clone())]);
            }
        }
        done(lab);
    }
}

/// Frames of every length are forwarded unmodified in both directions, also in several segments.
#[test]
fn every_length_crosses_the_uplink_unmodified() {
    let jumbo = (2990..4000).step_by(7).chain(7080..8200).step_by(13).chain(9190..=9216);
    for (mtu, lens) in [(1500, (0..=1500).collect::<Vec<usize>>()), (9216, jumbo.collect())] {
        for mut lab in labs(mtu, &[trunk()]) {
            for &len in &lens {
                let p = payload(len);
                let (inside, outside) =
                    (tagged(mac(A), wild(1), &[], &p), tagged(mac(A), wild(1), &[(0x8100, 120)], &p));
                assert!(sent(&mut lab, W, &outside) == [(A, inside)], "{len} bytes in");
                let (inside, outside) =
                    (tagged(wild(1), mac(A), &[], &p), tagged(wild(1), mac(A), &[(0x8100, 120)], &p));
                assert!(sent(&mut lab, A, &inside) == [(W, outside)], "{len} bytes out");
            }
            done(lab);
        }
    }
}

/// `virtio_net_hdr` has offsets into the frame, which a tag shifts.
#[test]
fn offload_headers_follow_the_tag() {
    for mut lab in labs(1500, &[trunk()]) {
        let body = vec![0x50; 40_000];
        for (inside, outside, len) in [
            (tcp(1000), header(1, 1, 1000, 38, 16), 40_000),
            (header(1, 5, 900, 34, 6), header(1, 5, 900, 38, 6), 30_000),
            (header(1, 0, 0, 34, 16), header(1, 0, 0, 38, 16), 100),
            (header(2, 0, 0, 0, 0), header(2, 0, 0, 0, 0), 100),
        ] {
            for to in [mac(A), ALL] {
                let tag = [(0x8100, 120)];
                let before = (lab.sum(W, |c| c.rx_frames.get()), lab.sum(W, |c| c.rx_bytes.get()));
                assert!(lab.ends[W].send(&tagged(to, wild(1), &tag, &body[..len]), outside));
                lab.settle();
                let expected = (tagged(to, wild(1), &[], &body[..len]), inside);
                assert!(lab.ends[A].take() == Some(expected.clone()));
                assert_eq!(lab.ends[B].take().is_some(), to == ALL);
                let rx = (lab.sum(W, |c| c.rx_frames.get()) - before.0, lab.sum(W, |c| c.rx_bytes.get()) - before.1);
                // The reverse direction, both flooded and unicast.
                let before = (lab.sum(W, |c| c.tx_frames.get()), lab.sum(W, |c| c.tx_bytes.get()));
                let to = if to == ALL { ALL } else { wild(1) };
                assert!(lab.ends[A].send(&tagged(to, mac(A), &[], &body[..len]), inside));
                lab.settle();
                assert!(lab.ends[W].take() == Some((tagged(to, mac(A), &tag, &body[..len]), outside)));
                assert_eq!(lab.ends[B].take().is_some(), to == ALL);
                let tx = (lab.sum(W, |c| c.tx_frames.get()) - before.0, lab.sum(W, |c| c.tx_bytes.get()) - before.1);
                assert_eq!(rx, tx, "counted alike both ways");
                assert!(lab.all_received().iter().all(Vec::is_empty));
            }
        }
        // An offset within the tag, or one that cannot be shifted, is invalid.
        assert!(lab.ends[W].send(&tagged(mac(A), wild(1), &[(0x8100, 120)], &body[..100]), header(1, 0, 0, 16, 4)));
        lab.settle();
        assert_eq!(lab.drops_in(W, DropReason::BadOffload), 1);
        done(lab);
    }
}

#[test]
fn frames_too_long_for_the_uplink_are_counted_there() {
    for (workers, memory) in KINDS {
        let port_specs = [PortSpec::new(0, 0), PortSpec::new(0, 1)];
        let setup = Setup { workers, memory, ..Setup::default() };
        let mut lab = Lab::build(setup, &port_specs, &[UplinkSpec::new(&[(7, 0)])], |port, end| {
            Box::new(end.with_offloads(port != 2))
        });
        assert_eq!(reached(&mut lab, 2, &tagged(ALL, wild(1), &[(0x8100, 7)], &[])), [0, 1]);
        for to in [wild(1), ALL] {
            assert!(lab.ends[0].send(&tagged(to, mac(0), &[], &[0x50; 2000]), tcp(1000)));
            lab.settle();
        }
        assert_eq!(lab.drops_out(2, DropReason::OffloadUnsupported), 4);
        assert_eq!((lab.received(1).len(), lab.received(2).len()), (1, 0));
        done(lab);
    }
}

/// Moves frames between the two ends of a link.
fn over_the_wire(one: &mut Lab, other: &mut Lab) {
    loop {
        let mut moved = 0;
        one.settle();
        while let Some((bytes, offload)) = one.ends[W].take() {
            assert!(other.ends[W].send(&bytes, offload));
            moved += 1;
        }
        other.settle();
        while let Some((bytes, offload)) = other.ends[W].take() {
            assert!(one.ends[W].send(&bytes, offload));
            moved += 1;
        }
        if moved == 0 {
            return;
        }
    }
}

/// VMs of two hosts reach each other on three networks over one link.
#[test]
fn vms_of_two_hosts_reach_each_other_over_a_link() {
    // Unpinned addresses: generated port addresses are the same on both hosts.
    let (here, there) = (|vm: usize| wild(vm), |vm: usize| wild(10 + vm));
    for (mut one, mut other) in labs(1500, &[trunk()]).zip(labs(9000, &[trunk()]).collect::<Vec<_>>().into_iter().rev())
    {
        for (asks, answers) in [(A, A), (A, B), (B, A), (C, C), (D, D)] {
            let neighbours = if asks < C { vec![A, B] } else { vec![asks] };
            let request = tagged(ALL, here(asks), &[(0x88a8, 5)], b"request");
            assert!(one.send(asks, &request));
            over_the_wire(&mut one, &mut other);
            for port in [A, B, C, D] {
                let at_home = neighbours.contains(&port) && port != asks;
                assert_eq!(one.received(port), vec![request.clone(); usize::from(at_home)]);
                assert_eq!(other.received(port), vec![request.clone(); usize::from(neighbours.contains(&port))]);
            }
            let answer = tagged(here(asks), there(answers), &[], b"reply");
            assert!(other.send(answers, &answer));
            over_the_wire(&mut one, &mut other);
            let again = tagged(there(answers), here(asks), &[], b"again");
            assert!(one.send(asks, &again));
            over_the_wire(&mut one, &mut other);
            for port in [A, B, C, D] {
                assert_eq!(
                    one.received(port),
                    vec![answer.clone(); usize::from(port == asks)],
                    "the station is known now"
                );
                assert_eq!(other.received(port), vec![again.clone(); usize::from(port == answers)]);
            }
        }
        for lab in [one, other] {
            assert_eq!(lab.total(|c| c.drops_in.total() + c.drops_out.total()), 0);
            done(lab);
        }
    }
}

#[test]
fn frames_from_one_uplink_do_not_leave_by_another() {
    let uplink_specs = [trunk(), UplinkSpec::new(&[(0, 0), (7, 1)])];
    for mut lab in labs(1500, &uplink_specs) {
        let (by_w, by_x) = ([(0x8100, 120)], [(0x8100, 7)]);
        assert_eq!(reached(&mut lab, W, &tagged(ALL, wild(1), &by_w, &[])), [A, B]);
        assert_eq!(reached(&mut lab, X, &tagged(ALL, wild(2), &[], &[])), [A, B]);
        assert_eq!(reached(&mut lab, X, &tagged(ALL, wild(2), &by_x, &[])), [C]);
        assert_eq!(dropped(&mut lab, W, &tagged(wild(2), wild(1), &by_w, &[])), [DropReason::SplitHorizon]);
        assert_eq!(dropped(&mut lab, X, &tagged(wild(1), wild(2), &[], &[])), [DropReason::SplitHorizon]);
        assert_eq!(dropped(&mut lab, W, &tagged(wild(1), wild(3), &by_w, &[])), [DropReason::Hairpin]);
        // On the other network of the same uplinks it is unknown and flooded to VMs.
        assert_eq!(reached(&mut lab, X, &tagged(wild(1), wild(3), &by_x, &[])), [C]);
        // Frames of VMs leave by each uplink, with its tag.
        for (from, to, expected) in [
            (A, ALL, vec![(B, vec![]), (W, by_w.to_vec()), (X, vec![])]),
            (C, ALL, vec![(W, vec![(0x8100, 130)]), (X, by_x.to_vec())]),
            (D, ALL, vec![(W, vec![])]),
            (A, wild(1), vec![(W, by_w.to_vec())]),
            (B, wild(2), vec![(X, vec![])]),
            (C, wild(2), vec![(X, by_x.to_vec())]),
        ] {
            let expected: Vec<_> =
                expected.into_iter().map(|(port, tags)| (port, tagged(to, mac(from), &tags, b"hello"))).collect();
            assert_eq!(sent(&mut lab, from, &tagged(to, mac(from), &[], b"hello")), expected);
        }
        done(lab);
    }
}

#[test]
fn a_failover_moves_no_station() {
    let uplink_specs = [trunk(), UplinkSpec { backup_of: Some(0), ..trunk() }];
    for mut lab in labs(1500, &uplink_specs) {
        let in_vlan = |to, from| tagged(to, from, &[(0x8100, 120)], b"hello");
        let plain = |to, from| tagged(to, from, &[], b"hello");
        let (mut active, mut spare) = (W, X);
        assert_eq!(reached(&mut lab, W, &in_vlan(ALL, wild(1))), [A, B]);
        assert_eq!(reached(&mut lab, W, &plain(ALL, wild(1))), [D]);
        let known = (0..lab.workers.len()).map(|worker| lab.stations(worker)).collect::<Vec<_>>();
        for round in 0..4 {
            assert_eq!(sent(&mut lab, A, &plain(wild(1), mac(A))), [(active, in_vlan(wild(1), mac(A)))]);
            assert_eq!(reached(&mut lab, D, &plain(wild(1), mac(D))), [active], "round {round}");
            assert_eq!(reached(&mut lab, A, &plain(ALL, mac(A))), [B, active]);
            assert_eq!(dropped(&mut lab, spare, &in_vlan(mac(A), wild(1))), [DropReason::Standby]);
            assert_eq!(dropped(&mut lab, spare, &plain(ALL, wild(9))), [DropReason::Standby]);
            assert_eq!(dropped(&mut lab, spare, &[]), [DropReason::Standby]);
            assert_eq!(reached(&mut lab, active, &in_vlan(mac(A), wild(1))), [A]);
            for (worker, known) in known.iter().enumerate() {
                assert_eq!(lab.stations(worker), *known);
            }
            (active, spare) = (spare, active);
            lab.fail_over(active, spare);
        }
        // Without an active uplink nothing leaves, and the drop reason says so.
        let lost = |lab: &Lab, reason| lab.drops_out(W, reason) + lab.drops_out(X, reason);
        lab.change_config(|_, trunks| trunks.iter_mut().for_each(|trunk_port| trunk_port.backup = true));
        assert!(reached(&mut lab, A, &plain(wild(1), mac(A))).is_empty());
        assert_eq!(reached(&mut lab, A, &plain(ALL, mac(A))), [B]);
        assert_eq!(lost(&lab, DropReason::Standby), 1);
        lab.change_config(|_, trunks| trunks.iter_mut().for_each(|trunk_port| trunk_port.admin_up = false));
        assert!(reached(&mut lab, A, &plain(wild(1), mac(A))).is_empty());
        assert_eq!(reached(&mut lab, A, &plain(ALL, mac(A))), [B]);
        assert_eq!(lost(&lab, DropReason::AdminDown), 1);
        assert_eq!(dropped(&mut lab, W, &in_vlan(ALL, wild(1))), [DropReason::AdminDown]);
        done(lab);
    }
}

/// An uplink whose device is closed, fails, or reappears.
#[test]
fn an_uplink_without_a_device_has_its_drop_reason() {
    for mut lab in labs(1500, &[trunk()]) {
        let workers = lab.workers.len();
        let plain = |to| tagged(to, mac(A), &[], b"hello");
        assert_eq!(reached(&mut lab, W, &tagged(ALL, wild(1), &[(0x8100, 120)], &[])), [A, B]);
        let trunk_port = lab.ports[W];
        let queue = lab.close(trunk_port, W % workers).expect("the queue was open");
        assert!(reached(&mut lab, A, &plain(wild(1))).is_empty());
        assert_eq!(reached(&mut lab, A, &plain(ALL)), [B]);
        assert_eq!(lab.drops_out(W, DropReason::NoDevice), 2);
        // Control applies that, and nothing is flooded there any more.
        lab.change_config(|ports, trunks| {
            ports.iter_mut().filter(|port| port.is_uplink()).for_each(|port| port.worker = None);
            trunks[0].worker = None;
        });
        assert_eq!(reached(&mut lab, A, &plain(ALL)), [B]);
        assert!(reached(&mut lab, A, &plain(wild(1))).is_empty());
        assert_eq!(lab.drops_out(W, DropReason::NoDevice), 3);
        lab.change_config(|ports, trunks| {
            trunks[0].worker = Some((W % workers) as u16);
            ports.iter_mut().filter(|port| port.is_uplink()).for_each(|port| port.worker = trunks[0].worker);
        });
        lab.open(queue);
        assert_eq!(reached(&mut lab, A, &plain(ALL)), [B, W]);
        assert_eq!(reached(&mut lab, A, &plain(wild(1))), [W]);
        // The uplink is removed; frames to its stations are flooded again.
        lab.change_config(|ports, trunks| {
            ports.retain(|port| !port.is_uplink());
            trunks.clear();
        });
        assert_eq!(reached(&mut lab, A, &plain(wild(1))), [B]);
        assert_eq!(dropped(&mut lab, W, &tagged(ALL, wild(1), &[], &[])), [DropReason::PortClosed]);
        done(lab);
    }
}

/// An uplink with a queue at each of two workers sends and receives each frame once.
#[test]
fn an_uplink_with_queues_at_two_workers_gets_each_frame_once() {
    for memory in [RxMemory::Owned, RxMemory::Lent] {
        let mut lab = lab_of(Setup { workers: 2, memory, ..Setup::default() }, &[trunk()]);
        let (end, mut far) = loopback(Default::default());
        let trunk_port = lab.ports[W];
        lab.open_at(1, RxQueue::new(trunk_port, 1, Box::new(end.with_memory(memory))));
        assert!(far.send(&tagged(ALL, wild(1), &[(0x8100, 120)], &[]), Offload::NONE));
        lab.settle();
        let both: Vec<_> = lab.all_received().iter().map(Vec::len).collect();
        assert_eq!((both, far.take()), (vec![1, 1, 0, 0, 0], None), "an uplink does not receive its own frames");
        for (from, to, vid) in [(A, ALL, 120), (B, ALL, 120), (A, wild(1), 120), (B, wild(1), 120), (C, ALL, 130)] {
            assert!(lab.send(from, &tagged(to, mac(from), &[], &[])));
            lab.settle();
            let mut outside = lab.received(W);
            outside.extend(far.take().map(|(bytes, _)| bytes));
            assert_eq!(outside, [tagged(to, mac(from), &[(0x8100, vid)], &[])]);
            assert!(far.take().is_none());
        }
        lab.all_received();
        // When one queue is closed, the other continues.
        assert!(lab.close(trunk_port, W % 2).is_some());
        assert!(far.send(&tagged(mac(B), wild(1), &[(0x8100, 120)], &[]), Offload::NONE));
        lab.settle();
        assert_eq!(lab.received(B).len(), 1);
        assert!(lab.send(B, &tagged(wild(1), mac(B), &[], &[])));
        lab.settle();
        assert!(far.take().is_some());
        done(lab);
    }
}

/// Link-local groups do not cross an uplink in either direction. Between VMs they pass as always.
///
/// Shows: REQ-17
#[test]
fn reserved_groups_do_not_cross_an_uplink() {
    let reserved = (0..16u64).map(|low| 0x0180_c200_0000 | low).chain([0x0100_0ccc_cccd]).map(Mac::from_bits);
    let reserved: Vec<_> = reserved.collect();
    for mut lab in labs(1500, &[trunk()]) {
        for &to in &reserved {
            for tags in [&[][..], &[(0x8100, 120)], &[(0x8100, 0)], &[(0x8100, 999)]] {
                let bytes = tagged(to, wild(1), tags, &[0; 46]);
                assert_eq!(dropped(&mut lab, W, &bytes), [DropReason::ReservedGroup], "{to}, {tags:?}");
            }
            let pause = to == Mac::from_bits(0x0180_c200_0001);
            for (from, expected) in [(A, vec![B]), (C, vec![]), (D, vec![])] {
                let before = (lab.sum(from, |c| c.flooded.get()), lab.sum(from, |c| c.copies.get()));
                let expected = if pause { Vec::new() } else { expected };
                assert_eq!(reached(&mut lab, from, &tagged(to, mac(from), &[], &[0; 46])), expected, "{to}");
                let after = (lab.sum(from, |c| c.flooded.get()), lab.sum(from, |c| c.copies.get()));
                assert_eq!((after.0 - before.0, after.1 - before.1), (u64::from(!pause), expected.len() as u64));
            }
        }
        // Adjacent groups pass.
        for to in ["01:80:c2:00:00:10", "01:00:0c:cc:cc:cc", "01:80:c2:00:00:30"] {
            let to = to.parse().unwrap();
            assert_eq!(reached(&mut lab, A, &tagged(to, mac(A), &[], &[0; 46])), [B, W]);
            assert_eq!(reached(&mut lab, W, &tagged(to, wild(1), &[(0x8100, 120)], &[0; 46])), [A, B]);
        }
        done(lab);
    }
}

/// An external station may have the address of a local VM. Its frames are forwarded; no pin moves.
#[test]
fn external_frames_are_admitted_and_move_no_pin() {
    for mut lab in labs(1500, &[trunk()]) {
        assert_eq!(reached(&mut lab, W, &tagged(mac(B), mac(A), &[(0x8100, 120)], &[])), [B]);
        assert_eq!(reached(&mut lab, B, &tagged(mac(A), mac(B), &[], &[])), [A]);
        // The zero address is pinned to no uplink.
        assert_eq!(reached(&mut lab, A, &tagged(Mac::ZERO, mac(A), &[], &[])), [B, W]);
        done(lab);
    }
}

/// Received frames by port.
type Deliveries = Vec<Vec<(Vec<u8>, Offload)>>;

fn taken(lab: &mut Lab) -> Deliveries {
    lab.ends.iter_mut().map(|end| std::iter::from_fn(|| end.take()).collect()).collect()
}

/// Drops of frames from a port, by reason.
fn reasons(lab: &Lab, port: usize) -> [u64; DropReason::ALL.len()] {
    DropReason::ALL.map(|reason| lab.drops_in(port, reason))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A VLAN of an uplink behaves like a device of its own: receivers, bytes and drop reasons are the same.
    #[test]
    fn a_vlan_behaves_like_a_device_of_its_own(
        port_specs in generators::port_specs(3),
        vids in prop::sample::subsequence(vec![0u16, 5, 4094], 3),
        (workers, memory) in prop::sample::select(KINDS.to_vec()),
        acts in generators::acts(12, 80),
    ) {
        // External stations have no port security, so the compared ports have none either.
        let mut port_specs = port_specs;
        port_specs.iter_mut().for_each(|spec| spec.security = Security::Off);
        let count = port_specs.len();
        let wire = UplinkSpec::new(&vids.iter().copied().zip(0..).collect::<Vec<_>>());
        let setup = || Setup { workers, memory, mtu: 9000, ..Setup::default() };
        let mut by_tag = Lab::with_uplinks(setup(), &port_specs, &[wire]);
        // An external VM on each network, each of another owner.
        let apart: Vec<_> = port_specs.iter().cloned().chain((0..3).map(|network| PortSpec::new(network, 100 + u32::from(network)))).collect();
        let mut by_port = Lab::new(setup(), &apart);
        // Moves from an uplink to a port are not counted in the port's first minute.
        for lab in [&mut by_tag, &mut by_port] {
            lab.advance(Duration::from_secs(60));
        }
        for act in acts {
            let sketch = match act {
                Act::Send(sketch) => sketch,
                Act::Advance(seconds) => {
                    by_tag.advance(Duration::from_secs(seconds));
                    by_port.advance(Duration::from_secs(seconds));
                    continue;
                }
            };
            // No two frames have the same time: between workers the port would decide which is later.
            for lab in [&mut by_tag, &mut by_port] {
                lab.advance(Duration::from_nanos(1));
            }
            // The last three are the external networks.
            let place = sketch.port(count + 3);
            let mut bytes = sketch.bytes(count);
            // A priority tag is replaced by the uplink's tag; a port with its own device receives it unmodified.
            if Priority::of_priority_tag(&bytes).is_some() {
                continue;
            }
            // Link-local groups are tested separately.
            if bytes.starts_with(&[0x01, 0x80, 0xc2]) || bytes.starts_with(&[0x01, 0, 0x0c]) {
                continue;
            }
            let before = (reasons(&by_tag, place.min(count)), reasons(&by_port, place));
            if let Some(network) = place.checked_sub(count) {
                // External stations do not use a port's address, nor offsets that are invalid only with a tag.
                let Some(tagged_offload) = sketch.offload.with_tag() else { continue };
                // Headers are parsed in the first 3008 bytes; a tag takes four of them.
                let header = sketch.offload.write();
                if (2992..2996).contains(&u16::from_le_bytes([header[6], header[7]])) {
                    continue;
                }
                if let Some(source) = bytes.get_mut(6..12) {
                    source.copy_from_slice(&wild(usize::from(source[5]) % WILD).octets());
                }
                prop_assert!(by_port.ends[place].send(&bytes, sketch.offload));
                let vid = vids[network];
                let is_framed = bytes.len() >= 14;
                // On an untagged network, a tag of the guest would be taken for the uplink's.
                let needs_none = vid == 0 && bytes.get(12..14) != Some(&[0x81, 0x00]);
                if is_framed && !needs_none {
                    bytes.splice(12..12, [0x81, 0x00, (vid >> 8) as u8, vid as u8]);
                }
                let offload = if is_framed && !needs_none { tagged_offload } else { sketch.offload };
                prop_assert!(by_tag.ends[count].send(&bytes, offload));
            } else {
                prop_assert!(by_port.ends[place].send(&bytes, sketch.offload));
                prop_assert!(by_tag.ends[place].send(&bytes, sketch.offload));
            }
            by_tag.settle();
            by_port.settle();
            let after = (reasons(&by_tag, place.min(count)), reasons(&by_port, place));
            for (number, reason) in DropReason::ALL.into_iter().enumerate() {
                prop_assert_eq!(after.0[number] - before.0[number], after.1[number] - before.1[number], "{:?}", reason);
            }
            let mut expected = taken(&mut by_port);
            let outside = expected.split_off(count).into_iter().zip(&vids);
            // On an untagged network, a tag of the guest would be taken for the uplink's.
            let stays = |vid: u16, bytes: &[u8]| vid == 0 && !is_without_vlan(bytes);
            let outside = outside.flat_map(|(frames, &vid)| frames.into_iter().filter(move |(bytes, _)| !stays(vid, bytes)).map(move |(mut bytes, offload)| {
                if vid == 0 {
                    return (bytes, offload);
                }
                bytes.splice(12..12, [0x81, 0x00, (vid >> 8) as u8, vid as u8]);
                (bytes, offload.with_tag().expect("the device has room"))
            }));
            expected.push(outside.collect());
            let these = taken(&mut by_tag);
            prop_assert!(these == expected, "frames differ: {:?} for {:?}", these, expected);
        }
        by_tag.check_counters();
        by_tag.end();
        by_port.end();
    }
}
