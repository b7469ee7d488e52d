//! Trunks: several ports of a VM over one device, told apart by the VLAN tag. Needs nothing of the host.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::device::loopback::LoopbackCapacity;
use vifswitch::switch::{Attachment, DropReason};
use vifswitch::wire::{Mac, Offload, Priority, is_without_vlan};

use crate::builders::{KINDS, done, sent, tagged};
use crate::generators::{self, Sketch, any_frame, header, tcp, wild};
use support::lab::{Lab, PortSpec, Setup, mac};

/// The parent, and its subports: two on its own network with VLANs 101 and 102, and one on another network with VLAN
/// 4094.
const P: usize = 0;
const S: usize = 1;
const T: usize = 2;
const U: usize = 3;
/// Another VM on the first network, and one on the second.
const X: usize = 4;
const Y: usize = 5;

const ALL: Mac = Mac::BROADCAST;

fn port_specs() -> Vec<PortSpec> {
    vec![
        PortSpec::new(0, 0),
        PortSpec::new(0, 0).subport_of(P, 101),
        PortSpec::new(0, 0).subport_of(P, 102),
        PortSpec::new(1, 0).subport_of(P, 4094),
        PortSpec::new(0, 1),
        PortSpec::new(1, 2),
    ]
}

fn labs(mtu: u16) -> impl Iterator<Item = Lab> {
    KINDS
        .into_iter()
        .map(move |(workers, memory)| Lab::new(Setup { workers, memory, mtu, ..Setup::default() }, &port_specs()))
}

/// Name, ingress device, tags, destination; and the devices that receive it, with tags.
type Row<'a> = (&'a str, usize, &'a [(u16, u16)], Mac, &'a [(usize, &'a [(u16, u16)])]);

#[test]
fn the_outer_tag_selects_the_port() {
    const A: (u16, u16) = (0x8100, 101);
    const B: (u16, u16) = (0x8100, 102);
    const C: (u16, u16) = (0x8100, 4094);
    const INNER: (u16, u16) = (0x8100, 7);
    const PROVIDER: (u16, u16) = (0x88a8, 101);
    const URGENT: u16 = 0xe000;
    let rows: &[Row<'_>] = &[
        ("untagged from the parent", P, &[], ALL, &[(P, &[A]), (P, &[B]), (X, &[])]),
        (
            "only a priority",
            P,
            &[(0x8100, URGENT)],
            ALL,
            &[(P, &[(0x8100, URGENT | 101)]), (P, &[(0x8100, URGENT | 102)]), (X, &[])],
        ),
        ("a subport's", P, &[A], ALL, &[(P, &[]), (P, &[B]), (X, &[])]),
        ("with a priority", P, &[(0x8100, URGENT | 102)], ALL, &[(P, &[]), (P, &[(0x8100, URGENT | 101)]), (X, &[])]),
        ("priority tag, from another VM", X, &[(0x8100, URGENT)], mac(S), &[(P, &[(0x8100, URGENT | 101)])]),
        ("from the subport on another network", P, &[C], ALL, &[(Y, &[])]),
        ("from another VM", X, &[], ALL, &[(P, &[]), (P, &[A]), (P, &[B])]),
        ("from another VM on that network", Y, &[], ALL, &[(P, &[C])]),
        ("to the parent", X, &[], mac(P), &[(P, &[])]),
        ("to a subport", X, &[], mac(S), &[(P, &[A])]),
        ("to another", X, &[], mac(T), &[(P, &[B])]),
        ("to the subport on another network", Y, &[], mac(U), &[(P, &[C])]),
        ("between subports of one device", P, &[A], mac(T), &[(P, &[B])]),
        ("from parent to subport", P, &[], mac(S), &[(P, &[A])]),
        ("from subport to parent", P, &[B], mac(P), &[(P, &[])]),
        ("a second tag", P, &[A, INNER], mac(X), &[(X, &[INNER])]),
        ("a second tag of TPID 0x88a8", P, &[A, PROVIDER, INNER], mac(X), &[(X, &[PROVIDER, INNER])]),
        ("and back", X, &[PROVIDER, INNER], mac(S), &[(P, &[A, PROVIDER, INNER])]),
        ("a second tag of the same VLAN", X, &[B], mac(S), &[(P, &[A, B])]),
        ("TPID 0x88a8 selects no subport", P, &[PROVIDER], mac(X), &[(X, &[PROVIDER])]),
        ("nor back", X, &[PROVIDER], mac(P), &[(P, &[PROVIDER])]),
        ("TPID 0x9100 selects no subport", P, &[(0x9100, 101), INNER], mac(X), &[(X, &[(0x9100, 101), INNER])]),
    ];
    let from = |loopback: usize, tags: &[(u16, u16)]| match tags.first() {
        Some(&(0x8100, id)) if loopback == P && id & 0xfff == 101 => mac(S),
        Some(&(0x8100, id)) if loopback == P && id & 0xfff == 102 => mac(T),
        Some(&(0x8100, 4094)) if loopback == P => mac(U),
        _ => mac(loopback),
    };
    for mut lab in labs(1500) {
        for &(name, loopback, tags, to, expected) in rows {
            let source = from(loopback, tags);
            let mut expected: Vec<_> =
                expected.iter().map(|&(port, tags)| (port, tagged(to, source, tags, b"hello"))).collect();
            expected.sort();
            let mut arrived = sent(&mut lab, loopback, &tagged(to, source, tags, b"hello"));
            arrived.sort();
            assert_eq!(arrived, expected, "{name}");
        }
        assert_eq!(lab.total(|c| c.drops_in.total() + c.drops_out.total()), 0);
        done(lab);
    }
}

/// Each port counts its own frames, including their tags; the parent counts frames of no subport.
#[test]
fn each_port_of_a_trunk_counts_its_own() {
    for mut lab in labs(1500) {
        let before = |lab: &Lab, port| {
            let sum = |counter: fn(&vifswitch::telemetry::PortCounters) -> u64| lab.sum(port, counter);
            [
                sum(|c| c.rx_frames.get()),
                sum(|c| c.rx_bytes.get()),
                sum(|c| c.tx_frames.get()),
                sum(|c| c.tx_bytes.get()),
            ]
        };
        sent(&mut lab, P, &tagged(mac(X), mac(S), &[(0x8100, 101)], &[0; 46]));
        assert_eq!((before(&lab, S), before(&lab, X)), ([1, 64, 0, 0], [0, 0, 1, 60]));
        sent(&mut lab, X, &tagged(mac(U), mac(X), &[], &[0; 46]));
        assert_eq!((before(&lab, U), before(&lab, T)), ([0; 4], [0, 0, 1, 64]), "unknown here, flooded");
        sent(&mut lab, X, &tagged(mac(T), mac(X), &[], &[0; 46]));
        assert_eq!(before(&lab, T), [0, 0, 2, 128]);
        let at_parent = before(&lab, P);
        for id in [1, 100, 103, 4095] {
            let bytes = tagged(ALL, mac(P), &[(0x8100, id)], &[]);
            assert!(sent(&mut lab, P, &bytes).is_empty(), "{id}");
        }
        assert_eq!(lab.drops_in(P, DropReason::UnknownVlan), 4);
        assert_eq!(before(&lab, P)[0], at_parent[0] + 4);
        // An invalid frame of a subport counts at the subport.
        sent(&mut lab, P, &tagged(ALL, ALL, &[(0x8100, 101)], &[]));
        sent(&mut lab, P, &tagged(ALL, mac(S), &[(0x8100, 101)], &[0; 1501]));
        sent(&mut lab, P, &tagged(mac(S), mac(S), &[(0x8100, 101)], &[]));
        sent(&mut lab, P, &tagged("01:80:c2:00:00:01".parse().unwrap(), mac(S), &[(0x8100, 101)], &[]));
        sent(&mut lab, P, &tagged(ALL, mac(X), &[(0x8100, 101)], &[]));
        for reason in [
            DropReason::BadSource,
            DropReason::TooLong,
            DropReason::Hairpin,
            DropReason::ReservedGroup,
            DropReason::ForeignSource,
        ] {
            assert_eq!((lab.drops_in(S, reason), lab.drops_in(P, reason)), (1, 0), "{reason:?}");
        }
        sent(&mut lab, P, &tagged(ALL, mac(P), &[(0x8100, 101)], &[])[..16]);
        assert_eq!(lab.drops_in(P, DropReason::Runt), 1);
        done(lab);
    }
}

/// A frame delivered untagged must not look like a subport's frame to the guest.
#[test]
fn no_tag_of_another_port_reaches_a_subport() {
    for mut lab in labs(1500) {
        for (tags, to) in [(&[(0x8100, 101)][..], mac(P)), (&[(0x8100, 0), (0x8100, 4094)], mac(P))] {
            assert!(sent(&mut lab, X, &tagged(to, mac(X), tags, &[])).is_empty());
        }
        let flooded = tagged(ALL, mac(X), &[(0x8100, 101)], &[]);
        let arrived = sent(&mut lab, X, &flooded);
        assert_eq!(arrived.len(), 2, "subports receive it with their own outer tag: {arrived:?}");
        assert!(arrived.iter().all(|(_, bytes)| bytes.len() == flooded.len() + 4));
        assert_eq!(lab.drops_out(P, DropReason::ForeignVlan), 3);
        done(lab);
    }
}

/// The parent's traffic continues while subports are added and removed; its device stays open.
#[test]
fn subports_are_added_and_removed_under_traffic() {
    for mut lab in labs(1500) {
        let config = lab.config.clone();
        assert_eq!(sent(&mut lab, X, &tagged(wild(1), mac(X), &[], &[])).len(), 3);
        assert_eq!(sent(&mut lab, P, &tagged(ALL, wild(1), &[], &[])).len(), 3, "learned behind the parent");
        for round in 0..3 {
            // Without subports the parent is an ordinary, VLAN-transparent port.
            lab.change_config(|ports, trunks| {
                trunks.clear();
                ports.retain(|port| !port.is_subport());
                ports.iter_mut().for_each(|port| port.attachment = Attachment::Own);
            });
            let bytes = tagged(wild(1), mac(X), &[(0x8100, 101)], b"tagged");
            assert_eq!(sent(&mut lab, X, &bytes), [(P, bytes.clone())], "round {round}");
            assert_eq!(sent(&mut lab, X, &tagged(mac(S), mac(X), &[], &[])), [(P, tagged(mac(S), mac(X), &[], &[]))]);
            lab.set_config(config.clone());
            let plain = tagged(wild(1), mac(X), &[], b"plain");
            assert_eq!(sent(&mut lab, X, &plain), [(P, plain.clone())], "the parent's stations stay");
            let bytes = tagged(mac(S), mac(X), &[(0x8100, 101)], &[]);
            let expected = tagged(mac(S), mac(X), &[(0x8100, 101), (0x8100, 101)], &[]);
            assert_eq!(sent(&mut lab, X, &bytes), [(P, expected)]);
        }
        // A subport that is down is treated as absent; a parent that is down takes its subports down.
        let subport = lab.ports[S];
        let set = |lab: &mut Lab, port, up: bool| {
            lab.change_config(|ports, trunks| {
                ports.iter_mut().filter(|config| config.id == port).for_each(|config| config.admin_up = up);
                trunks.iter_mut().filter(|config| config.id == port).for_each(|config| config.admin_up = up);
            });
        };
        set(&mut lab, subport, false);
        assert_eq!(sent(&mut lab, X, &tagged(ALL, mac(X), &[], &[])).len(), 2);
        assert_eq!(sent(&mut lab, X, &tagged(mac(S), mac(X), &[], &[])).len(), 2, "its address is unknown");
        assert!(sent(&mut lab, P, &tagged(ALL, mac(S), &[(0x8100, 101)], &[])).is_empty());
        assert_eq!((lab.drops_out(S, DropReason::AdminDown), lab.drops_in(S, DropReason::AdminDown)), (0, 1));
        set(&mut lab, subport, true);
        let parent = lab.ports[P];
        set(&mut lab, parent, false);
        assert!(sent(&mut lab, X, &tagged(ALL, mac(X), &[], &[])).is_empty());
        for to in [mac(P), mac(S), mac(T)] {
            assert!(sent(&mut lab, X, &tagged(to, mac(X), &[], &[])).is_empty());
        }
        assert!(sent(&mut lab, P, &tagged(ALL, mac(S), &[(0x8100, 101)], &[])).is_empty());
        assert_eq!(lab.drops_out(S, DropReason::AdminDown), 0);
        assert_eq!(lab.drops_in(P, DropReason::AdminDown), 1);
        done(lab);
    }
}

/// A burst flooded to many subports of one device loses nothing.
#[test]
fn a_burst_is_flooded_to_every_subport() {
    for (workers, memory) in KINDS {
        let mut port_specs = vec![PortSpec::new(0, 0), PortSpec::new(0, 1)];
        port_specs.extend((0..100).map(|number| PortSpec::new(0, 0).subport_of(0, 1000 + number)));
        let mut lab = Lab::new(
            Setup { workers, memory, slots: 32_768, capacity: LoopbackCapacity::default(), ..Setup::default() },
            &port_specs,
        );
        for number in 0..100u8 {
            assert!(lab.ends[1].stage(&tagged(ALL, mac(1), &[], &[number; 46]), Offload::NONE));
        }
        lab.ends[1].publish();
        lab.settle();
        for (port, frames) in lab.sorted().into_iter().enumerate() {
            let expected = if port == 1 { Vec::new() } else { (0..100u8).collect() };
            assert_eq!(frames.iter().map(|(bytes, _)| bytes[14]).collect::<Vec<_>>(), expected, "port {port}");
        }
        // Also between two subports.
        for number in 0..100u8 {
            assert!(lab.ends[0].stage(&tagged(mac(3), mac(2), &[(0x8100, 1000)], &[number; 46]), Offload::NONE));
        }
        lab.ends[0].publish();
        lab.settle();
        assert_eq!(lab.sorted()[3].len(), 100);
        done(lab);
    }
}

/// Device without offloads: work for a subport's frames is completed, and counted there.
#[test]
fn offload_work_is_completed_for_a_subport() {
    for (workers, memory) in KINDS {
        let setup = Setup { workers, memory, ..Setup::default() };
        let mut lab = Lab::with_devices(setup, &port_specs(), |port, end| Box::new(end.with_offloads(port != P)));
        let body = support::lab::stream::open_frame(mac(S), mac(X), 0, 20_000);
        assert!(lab.ends[X].send(&body, tcp(1000)));
        lab.settle();
        let arrived = lab.sorted();
        assert_eq!((arrived[S].len(), lab.sum(S, |c| c.tx_frames.get())), (20, 20));
        assert_eq!((lab.sum(S, |c| c.segmented.get()), lab.sum(P, |c| c.segmented.get())), (1, 0));
        assert!(lab.ends[X].send(&tagged(mac(S), mac(X), &[], &[0x50; 2000]), header(1, 1, 1000, 34, 16)));
        lab.settle();
        assert_eq!(lab.drops_out(S, DropReason::OffloadUnsupported), 2);
        done(lab);
    }
}

#[derive(Debug, Clone)]
enum Act {
    Send(Sketch),
    Advance(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let pass = prop_oneof![4 => 0..2u64, 1 => Just(400u64)];
    vec(prop_oneof![12 => any_frame().prop_map(Act::Send), 1 => pass.prop_map(Act::Advance)], 1..80)
}

/// Drops at a port by reason, at ingress and egress.
fn dropped(lab: &Lab, port: usize) -> Vec<(u64, u64)> {
    DropReason::ALL.map(|reason| (lab.drops_in(port, reason), lab.drops_out(port, reason))).to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A subport behaves like a port with a device of its own: receivers, bytes, drop reasons and counters are the
    /// same.
    #[test]
    fn a_subport_behaves_like_a_port_of_its_own(
        port_specs in generators::trunks(3),
        (workers, memory) in prop::sample::select(KINDS.to_vec()),
        acts in acts(),
    ) {
        let count = port_specs.len();
        // A parent that is down takes its subports down.
        let mut port_specs = port_specs;
        for at in 0..count {
            if let Some((parent, _)) = port_specs[at].trunk {
                port_specs[parent].admin_up = true;
            }
        }
        let is_parent: Vec<bool> = (0..count).map(|port| port_specs.iter().any(|spec| spec.trunk.is_some_and(|of| of.0 == port))).collect();
        let setup = || Setup { workers, memory, mtu: 9000, ..Setup::default() };
        let mut by_tag = Lab::new(setup(), &port_specs);
        let apart: Vec<_> = port_specs.iter().map(|spec| PortSpec { trunk: None, ..spec.clone() }).collect();
        let mut by_port = Lab::new(setup(), &apart);
        // Frames not delivered to a parent because they look like a subport's.
        let mut spoofed = vec![0; count];
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
            let port = sketch.port(count);
            let bytes = sketch.bytes(count);
            // A priority tag is replaced by the subport's tag; a port with its own device receives it unmodified.
            if Priority::of_priority_tag(&bytes).is_some() {
                continue;
            }
            let is_subport = port_specs[port].trunk.is_some();
            // A frame too short for a tag has none; an untagged parent's frame has none with the trunk's TPID.
            if is_subport && bytes.len() < 14 || is_parent[port] && bytes.get(12..14) == Some(&[0x81, 0x00]) {
                continue;
            }
            // Headers are parsed in the first 3008 bytes; a tag takes four of them.
            let start = sketch.offload.write();
            if (2992..2996).contains(&u16::from_le_bytes([start[6], start[7]])) {
                continue;
            }
            let Some((with_tag, offload)) = by_tag.tagged(port, &bytes, sketch.offload) else { continue };
            let base = by_tag.base(port);
            prop_assert!(by_tag.ends[base].send(&with_tag, offload));
            prop_assert!(by_port.ends[port].send(&bytes, sketch.offload));
            by_tag.settle();
            by_port.settle();
            let mut expected = by_port.sorted();
            for port in (0..count).filter(|&port| is_parent[port]) {
                let before = expected[port].len();
                expected[port].retain(|(bytes, _)| is_without_vlan(bytes));
                spoofed[port] += u64::from(expected[port].len() < before);
            }
            let these = by_tag.sorted();
            prop_assert!(these == expected, "frames differ: {:?} for {:?}", these, expected);
        }
        for (port, &spoofed) in spoofed.iter().enumerate() {
            let mut expected = dropped(&by_port, port);
            let lost = by_tag.drops_out(port, DropReason::ForeignVlan);
            expected[DropReason::ForeignVlan as usize].1 = lost;
            prop_assert!(lost >= spoofed && (lost == 0) == (spoofed == 0));
            prop_assert_eq!(dropped(&by_tag, port), expected);
            let counts = |lab: &Lab, lost: u64| {
                [
                    lab.sum(port, |c| c.rx_frames.get()),
                    lab.sum(port, |c| c.forwarded.get()),
                    lab.sum(port, |c| c.flooded.get()),
                    lab.sum(port, |c| c.copies.get()),
                    lab.sum(port, |c| c.tx_frames.get()) + lost,
                ]
            };
            prop_assert_eq!(counts(&by_tag, lost), counts(&by_port, 0), "port {}", port);
        }
        by_tag.check_counters();
        by_tag.end();
        by_port.end();
    }
}
