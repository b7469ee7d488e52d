//! Storm limits on whole workers, exact to the frame with a simulated clock: classes are separate, siblings share the
//! VM's limit, refused frames are not learned, known unicast is not limited. Needs nothing of the host.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::device::loopback::{LoopbackCapacity, RxMemory};
use vifswitch::switch::{
    BPDU_RATE, ClassLimit, DropReason, NetworkId, PortPolicer, Rate, Station, StormClass, StormLimits, VmId, VmPolicer,
};
use vifswitch::wire::{Mac, Offload};

use support::lab::{Lab, PortSpec, Setup, UplinkSpec, frame, mac};

/// A group that is not reserved, and an unknown station.
const GROUP: Mac = Mac::from_bits(0x0100_5e01_0203);
const NOBODY: Mac = Mac::from_bits(0x0a00_0000_ffff);
const BRIDGE_GROUP: Mac = Mac::from_bits(0x0180_c200_0000);

/// A destination of this class.
fn address(class: StormClass) -> Mac {
    match class {
        StormClass::Broadcast => Mac::BROADCAST,
        StormClass::Multicast => GROUP,
        StormClass::UnknownUnicast => NOBODY,
    }
}

fn only(class: StormClass, rate: Rate) -> StormLimits {
    StormLimits::OFF.with(class, Some(ClassLimit::frames(rate)))
}

/// `siblings` ports of one VM, and a receiving port of another.
fn lab(siblings: usize, workers: u16) -> Lab {
    let port_specs: Vec<_> = (0..=siblings).map(|port| PortSpec::new(0, u32::from(port == siblings))).collect();
    Lab::new(Setup { workers, slots: 4096, ..Setup::default() }, &port_specs)
}

/// Sets storm limits of a port.
fn limit_port(lab: &mut Lab, port: usize, limits: StormLimits) {
    let (id, shared) = (lab.ports[port], lab.workers.len() > 1);
    lab.change_ports(|ports| {
        for config in ports.iter_mut().filter(|config| config.id == id) {
            config.storm = PortPolicer { limits: limits.into(), shared, state: config.storm.state.clone() };
        }
    });
}

/// Sets limits that all ports of VM 0 share.
fn limit_vm(lab: &mut Lab, limits: StormLimits, copies: Option<Rate>) {
    let vm_policer = VmPolicer { limits: limits.into(), copies, shared: lab.workers.len() > 1, ..VmPolicer::default() };
    lab.change_ports(|ports| {
        ports
            .iter_mut()
            .filter(|config| config.vm == VmId(0))
            .for_each(|config| config.vm_policer = Some(vm_policer.clone()));
    });
}

/// Sends a frame, polling until the device has room.
fn send(lab: &mut Lab, port: usize, bytes: &[u8]) {
    while !lab.send(port, bytes) {
        lab.settle();
    }
}

/// Frames received at all ports and not dropped.
fn admitted(lab: &Lab) -> u64 {
    lab.total(|c| c.flooded.get())
}

/// Admits rate × time + burst within ±5 %, at each rate, with several workers and siblings.
///
/// Shows: REQ-34, AT-18
#[test]
fn admitted_frames_meet_the_rate() {
    let mut class = StormClass::ALL.into_iter().cycle();
    for (rate, seconds) in [(100, 10), (500, 10), (10_000, 4)] {
        for workers in [1u16, 2, 4] {
            for siblings in [1usize, 8] {
                let class = class.next().unwrap();
                let limit = only(class, Rate::new(rate, rate / 2));
                let mut lab = lab(siblings, workers);
                if siblings == 1 {
                    limit_port(&mut lab, 0, limit);
                } else {
                    limit_vm(&mut lab, limit, None);
                }
                // Offers three times the rate, by all ports in turn.
                let bytes: Vec<_> =
                    (0..siblings).map(|port| frame(address(class), mac(port), 0x88b5, &[0; 46])).collect();
                let offered = 3 * rate * seconds;
                let gap = Duration::from_nanos(1_000_000_000 / (3 * rate));
                for number in 0..offered {
                    let port = number as usize % siblings;
                    lab.advance(gap);
                    send(&mut lab, port, &bytes[port]);
                    lab.workers[port % usize::from(workers)].poll_once(lab.now);
                    if number % 64 == 0 {
                        lab.settle();
                        lab.ends.iter_mut().for_each(|end| end.discard());
                    }
                }
                lab.settle();
                let (admitted, due) = (admitted(&lab) as f64, (rate * seconds + rate / 2) as f64);
                let name = format!("{class:?} {rate} frames/s, {workers} workers, {siblings} siblings");
                assert!((admitted / due - 1.0).abs() < 0.05, "{name}: {admitted} of {due}");
                let reason = if siblings == 1 { class.reason() } else { DropReason::StormVm };
                assert_eq!(lab.total(|c| c.drops_in.get(reason)) + admitted as u64, offered, "{name}");
                lab.check_counters();
                lab.end();
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Flood(StormClass),
    Known,
    Advance(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let class = prop::sample::select(&StormClass::ALL);
    let act = prop_oneof![
        8 => class.prop_map(Act::Flood),
        4 => Just(Act::Known),
        1 => (1u64..500).prop_map(Act::Advance),
    ];
    vec(act, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// One class is limited, at the port or for its VM: other classes and known unicast pass; refused frames are
    /// neither learned nor flooded.
    ///
    /// Shows: REQ-30, REQ-32
    #[test]
    fn a_limit_applies_to_its_class_only(
        acts in acts(),
        class in prop::sample::select(&StormClass::ALL),
        rate in (1u64..200, 1u64..50),
        of_port: bool,
        workers in 1u16..3,
    ) {
        let rate = Rate::new(rate.0, rate.1);
        let mut lab = lab(2, workers);
        if of_port {
            limit_port(&mut lab, 0, only(class, rate));
        } else {
            limit_vm(&mut lab, only(class, rate), None);
        }
        // Port 2 is known by its pin.
        let (begin, mut sources) = (lab.now, 0u64);
        let (mut offered, mut allowed, mut learned) = (0, 0, Vec::new());
        for act in acts {
            let to = match act {
                Act::Advance(millis) => {
                    lab.advance(Duration::from_millis(millis));
                    continue;
                }
                Act::Flood(class) => address(class),
                Act::Known => mac(2),
            };
            sources += 1;
            let source = Mac::from_bits(0x0e00_0000_0000 + sources);
            let (before, got) = (admitted(&lab), lab.sum(2, |c| c.tx_frames.get()));
            send(&mut lab, 0, &frame(to, source, 0x88b5, &[0; 46]));
            lab.settle();
            let is_limited = matches!(act, Act::Flood(of) if of == class);
            let elapsed = lab.sum(2, |c| c.tx_frames.get()) - got;
            prop_assert_eq!(admitted(&lab) - before, u64::from(!matches!(act, Act::Known)) * elapsed);
            prop_assert!(is_limited || elapsed == 1);
            if is_limited {
                offered += 1;
                allowed += elapsed;
                let due = rate.burst() as f64 + rate.per_second() as f64 * lab.now.since(begin).as_secs_f64();
                prop_assert!(allowed as f64 <= due + 1.0);
                prop_assert!(allowed >= offered.min(rate.burst()));
            }
            if elapsed == 1 {
                learned.push(Station::new(NetworkId::new(0), source));
            }
            lab.ends.iter_mut().for_each(|end| end.discard());
        }
        let reason = if of_port { class.reason() } else { DropReason::StormVm };
        prop_assert_eq!(lab.drops_in(0, reason), offered - allowed);
        prop_assert_eq!(lab.sum(0, |c| c.drops_in.total()), offered - allowed);
        let mut known: Vec<Station> = lab.stations(0).into_iter().map(|learned| learned.station).collect();
        known.sort_by_key(|station| station.mac().bits());
        prop_assert_eq!(known, learned, "admitted frames are received in order, and no others");
        lab.check_counters();
        lab.end();
    }

    /// Any number of siblings on any workers share one limit, of frames and of copies.
    ///
    /// Shows: REQ-33
    #[test]
    fn siblings_share_the_limit_of_their_vm(
        from in vec((0usize..5, 0u64..40), 1..300),
        workers in 1u16..5,
        copies: bool,
        rate in (10u64..300, 1u64..60),
    ) {
        let rate = Rate::new(rate.0, rate.1);
        let mut lab = lab(5, workers);
        let each = 5;
        if copies {
            // Each frame is flooded as 5 copies.
            limit_vm(&mut lab, StormLimits::OFF, Some(Rate::new(each * rate.per_second(), each * rate.burst())));
        } else {
            limit_vm(&mut lab, only(StormClass::Broadcast, rate), None);
        }
        let begin = lab.now;
        let mut offered = 0;
        for (port, wait) in from {
            lab.advance(Duration::from_millis(wait / 10));
            send(&mut lab, port, &frame(Mac::BROADCAST, mac(port), 0x88b5, &[0; 46]));
            offered += 1;
            lab.settle();
            lab.ends.iter_mut().for_each(|end| end.discard());
            let due = rate.burst() as f64 + rate.per_second() as f64 * lab.now.since(begin).as_secs_f64();
            let admitted = admitted(&lab);
            prop_assert!(admitted as f64 <= due + 1.0);
            prop_assert!(admitted >= offered.min(rate.burst()));
            prop_assert_eq!(lab.total(|c| c.copies.get()), admitted * each);
        }
        let reason = if copies { DropReason::StormCopies } else { DropReason::StormVm };
        prop_assert_eq!(lab.total(|c| c.drops_in.get(reason)) + admitted(&lab), offered);
        lab.end();
    }
}

/// A GSO packet costs its segments, in frames and in bytes.
#[test]
fn a_gso_packet_costs_its_segments() {
    for memory in [RxMemory::Owned, RxMemory::Lent] {
        let loopback = LoopbackCapacity { blocks: 64, block_bytes: 1 << 17 };
        let setup = Setup { memory, capacity: loopback, ..Setup::default() };
        let mut lab = Lab::new(setup, &[PortSpec::new(0, 0), PortSpec::new(0, 1)]);
        // Ten segments of 1000 bytes, with headers.
        let bytes = frame(Mac::BROADCAST, mac(0), 0x88b5, &[0x50; 10_040]);
        let offload = super::generators::tcp(1000);
        let count = |lab: &mut Lab| {
            lab.ends[0].send(&bytes, offload);
            lab.settle();
            lab.ends[1].discard();
            admitted(lab)
        };
        let each = count(&mut lab);
        let (frames, sizes) = (lab.sum(0, |c| c.rx_frames.get()), lab.sum(0, |c| c.rx_bytes.get()));
        assert_eq!(each, frames);
        assert!(frames > 1, "the GSO packet counts as its segments");
        // Limits that admit two and a half GSO packets.
        for limit in [
            ClassLimit::frames(Rate::new(1, frames * 5 / 2)),
            ClassLimit { frames: None, bytes: Some(Rate::new(60, sizes * 5 / 2)) },
        ] {
            lab.advance(Duration::from_secs(3600));
            let before = admitted(&lab);
            limit_port(&mut lab, 0, StormLimits::OFF.with(StormClass::Broadcast, Some(limit)));
            (0..5).for_each(|_| _ = count(&mut lab));
            assert_eq!(admitted(&lab) - before, 2 * frames, "{limit:?}");
        }
        lab.check_counters();
        lab.end();
    }
}

/// BPDUs have a bucket of their own at each port; other reserved groups count as multicast.
#[test]
fn bpdus_have_their_own_bucket() {
    let mut lab = lab(2, 1);
    let none = only(StormClass::Multicast, Rate::new(1, 1));
    limit_port(&mut lab, 0, none);
    limit_vm(&mut lab, none, Some(Rate::new(1, 1)));
    send(&mut lab, 0, &frame(GROUP, mac(0), 0x88b5, &[0; 46]));
    lab.settle();
    let pvst = Mac::from_bits(0x0100_0ccc_cccd);
    for number in 0..150u64 {
        send(&mut lab, 0, &frame(if number % 2 == 0 { BRIDGE_GROUP } else { pvst }, mac(0), 38, &[0; 46]));
    }
    lab.settle();
    assert_eq!(admitted(&lab), 1 + BPDU_RATE.burst());
    assert_eq!(lab.drops_in(0, DropReason::StormBpdu), 150 - BPDU_RATE.burst());
    // The sibling has its own BPDU bucket; LLDP finds the VM's limit exhausted.
    send(&mut lab, 1, &frame(BRIDGE_GROUP, mac(1), 38, &[0; 46]));
    send(&mut lab, 1, &frame(Mac::from_bits(0x0180_c200_000e), mac(1), 0x88cc, &[0; 46]));
    lab.settle();
    assert_eq!((lab.sum(1, |c| c.flooded.get()), lab.drops_in(1, DropReason::StormVm)), (1, 1));
    lab.advance(Duration::from_millis(500));
    for _ in 0..150 {
        send(&mut lab, 0, &frame(BRIDGE_GROUP, mac(0), 38, &[0; 46]));
    }
    lab.settle();
    assert_eq!(lab.drops_in(0, DropReason::StormBpdu), 150 - BPDU_RATE.burst() + 100);
    lab.ends.iter_mut().for_each(|end| end.discard());
    lab.end();
}

/// A new configuration refills no bucket; a changed limit applies at once.
#[test]
fn a_bucket_outlives_a_configuration_change() {
    let mut lab = lab(1, 1);
    let storm = |lab: &mut Lab, frames: u64| {
        let before = admitted(lab);
        for _ in 0..frames {
            send(lab, 0, &frame(Mac::BROADCAST, mac(0), 0x88b5, &[0; 46]));
        }
        lab.settle();
        lab.ends.iter_mut().for_each(|end| end.discard());
        admitted(lab) - before
    };
    limit_port(&mut lab, 0, only(StormClass::Broadcast, Rate::new(100, 100)));
    assert_eq!(storm(&mut lab, 200), 100);
    lab.change_ports(|ports| ports[0].promiscuous = true);
    assert_eq!(storm(&mut lab, 200), 0);
    limit_port(&mut lab, 0, only(StormClass::Broadcast, Rate::new(1000, 1000)));
    assert_eq!(storm(&mut lab, 200), 0, "the bucket stays empty with another rate");
    lab.advance(Duration::from_millis(100));
    assert_eq!(storm(&mut lab, 200), 100);
    limit_port(&mut lab, 0, StormLimits::OFF);
    assert_eq!(storm(&mut lab, 200), 200);
    limit_port(&mut lab, 0, only(StormClass::Broadcast, Rate::new(50, 10)));
    lab.advance(Duration::from_secs(2));
    assert_eq!(storm(&mut lab, 200), 10);
    lab.end();
}

/// Frames to the sender itself are learned, are not forwarded and cost nothing; frames that another check drops first
/// cost nothing.
#[test]
fn frames_that_are_not_flooded_cost_nothing() {
    let mut lab = lab(1, 1);
    limit_port(&mut lab, 0, only(StormClass::UnknownUnicast, Rate::new(1, 1)));
    for _ in 0..10 {
        send(&mut lab, 0, &frame(NOBODY, NOBODY, 0x88b5, &[0; 46]));
        send(&mut lab, 0, &frame(NOBODY, mac(1), 0x88b5, &[0; 46]));
    }
    lab.settle();
    assert_eq!((lab.drops_in(0, DropReason::Hairpin), lab.drops_in(0, DropReason::ForeignSource)), (10, 10));
    assert_eq!(lab.stations(0).len(), 1);
    send(&mut lab, 0, &frame(Mac::from_bits(0x0a00_0000_eeee), mac(0), 0x88b5, &[0; 46]));
    lab.settle();
    assert_eq!((admitted(&lab), lab.sum(0, |c| c.drops_in.get(DropReason::StormUnknownUnicast))), (1, 0));
    lab.ends.iter_mut().for_each(|end| end.discard());
    lab.end();
}

/// A subport has its own limits; an uplink has its configured limit once per network.
#[test]
fn subports_and_uplink_networks_have_their_own_limits() {
    let port_specs =
        [PortSpec::new(0, 0), PortSpec::new(1, 0).subport_of(0, 7), PortSpec::new(0, 1), PortSpec::new(1, 2)];
    let mut lab = Lab::with_uplinks(Setup::default(), &port_specs, &[UplinkSpec::new(&[(0, 0), (20, 1)])]);
    let limits = only(StormClass::Broadcast, Rate::new(1, 3));
    lab.change_ports(|ports| {
        for config in ports.iter_mut().filter(|config| config.id.index() < 2 || config.is_uplink()) {
            config.storm = PortPolicer { limits: limits.into(), ..PortPolicer::default() };
        }
    });
    let outside = port_specs.len();
    for _ in 0..5 {
        let inner = frame(Mac::BROADCAST, mac(1), 0x88b5, &[0; 46]);
        let (tagged, offload) = lab.tagged(1, &inner, Offload::NONE).unwrap();
        assert!(lab.ends[0].send(&tagged, offload));
        let stranger = Mac::from_bits(0x0a00_0000_0001);
        assert!(lab.send(outside, &frame(Mac::BROADCAST, stranger, 0x88b5, &[0; 46])));
        let mut vlan = frame(Mac::BROADCAST, stranger, 0x88b5, &[0; 46]);
        vlan.splice(12..12, [0x81, 0, 0, 20]);
        assert!(lab.send(outside, &vlan));
    }
    lab.settle();
    assert_eq!(lab.drops_in(1, DropReason::StormBroadcast), 2, "the subport has its own limit");
    assert_eq!(lab.sum(0, |c| c.drops_in.total()), 0, "the parent's bucket is untouched");
    assert_eq!(lab.drops_in(outside, DropReason::StormBroadcast), 2 * 2, "the burst of two applies on each network");
    lab.check_counters();
    lab.ends.iter_mut().for_each(|end| end.discard());
    lab.end();
}
