//! Loop probes: where they are sent, and what happens to returned ones. Needs nothing of the host.

use std::time::Duration;

use proptest::prelude::*;
use vifswitch::device::loopback::RxMemory;
use vifswitch::switch::{DropReason, PortId, ReturnedProbe};
use vifswitch::wire::{Mac, Offload, Probe, ProbeKey};
use vifswitch::worker::WorkerEvent;

use crate::generators;
use support::lab::{Lab, PROBE_KEY, PortSpec, Setup, UplinkSpec, uplink_port};

/// Two siblings, a subport of the first on another network, another VM, and an uplink with both networks.
const A: usize = 0;
const B: usize = 1;
const SUB: usize = 2;
const OTHER: usize = 3;
const W: usize = 4;

fn labs() -> impl Iterator<Item = Lab> {
    [(1, RxMemory::Owned), (1, RxMemory::Lent), (3, RxMemory::Owned), (3, RxMemory::Lent)].into_iter().map(lab)
}

fn lab((workers, memory): (u16, RxMemory)) -> Lab {
    let port_specs =
        [PortSpec::new(0, 7), PortSpec::new(0, 7), PortSpec::new(1, 7).subport_of(A, 70), PortSpec::new(0, 1)];
    let setup = Setup { workers, memory, ..Setup::default() };
    Lab::with_uplinks(setup, &port_specs, &[UplinkSpec::new(&[(120, 0), (0, 1)])])
}

fn hold(lab: &mut Lab, ports: &[PortId]) {
    lab.change_ports(|all| all.iter_mut().for_each(|port| port.quarantined = ports.contains(&port.id)));
}

/// Sends a frame that no port receives. Returns its drop reason.
fn dies(lab: &mut Lab, port: usize, bytes: &[u8]) -> DropReason {
    let before = DropReason::ALL.map(|reason| lab.drops_in(port, reason));
    let (bytes, offload) = lab.tagged(port, bytes, Offload::NONE).unwrap();
    let base = lab.base(port);
    assert!(lab.ends[base].send(&bytes, offload));
    lab.settle();
    assert!(lab.all_received().iter().all(Vec::is_empty), "probes are not forwarded");
    let dropped: Vec<_> =
        DropReason::ALL.into_iter().filter(|&why| lab.drops_in(port, why) > before[why as usize]).collect();
    assert_eq!(dropped.len(), 1, "{dropped:?}");
    dropped[0]
}

fn tagged(frame: &[u8], tag: &[u8]) -> Vec<u8> {
    [&frame[..12], tag, &frame[12..]].concat()
}

fn done(mut lab: Lab) {
    assert_eq!(lab.events(), []);
    lab.check_counters();
    assert!(lab.audit().is_balanced());
    assert!(
        (0..lab.workers.len()).all(|worker| lab.stations(worker).is_empty()),
        "the source of a probe is not learned"
    );
    lab.end();
}

#[test]
fn a_probe_leaves_by_its_port_only() {
    for mut lab in labs() {
        for held in [false, true] {
            let all: Vec<_> = lab.ports.iter().copied().chain([uplink_port(0, 0), uplink_port(0, 1)]).collect();
            hold(&mut lab, if held { &all } else { &[] });
            let way = |port: usize| (lab.ports[port], port, port, Vec::new());
            let mut ways = vec![way(A), way(B), way(OTHER)];
            ways.push((lab.ports[SUB], A, SUB, vec![0x81, 0x00, 0, 70]));
            ways.push((uplink_port(0, 0), W, W, vec![0x81, 0x00, 0, 120]));
            ways.push((uplink_port(0, 1), W, W, Vec::new()));
            for (sequence, (port, base, counted, tag)) in (0..).zip(ways) {
                let sent = lab.sum(counted, |c| c.probes.get());
                let probe = lab.send_probe(port, sequence);
                lab.settle();
                let received = lab.all_received();
                assert_eq!(received[base], [tagged(&probe, &tag)]);
                assert_eq!(received.iter().flatten().count(), 1);
                assert_eq!(lab.sum(counted, |c| c.probes.get()), sent + 1);
            }
        }
        assert_eq!(lab.total(|c| c.tx_frames.get()), 12);
        assert_eq!(lab.total(|c| c.drops_out.total()), 0);
        done(lab);
    }
}

/// A probe that cannot be sent is counted with a reason.
#[test]
fn a_probe_that_cannot_leave_has_a_reason() {
    for mut lab in labs() {
        let (a, b, sub) = (lab.ports[A], lab.ports[B], lab.ports[SUB]);
        lab.change_ports(|all| all.iter_mut().filter(|port| port.id == b).for_each(|port| port.admin_up = false));
        lab.send_probe(b, 0);
        assert_eq!(lab.drops_out(B, DropReason::AdminDown), 1);
        drop(lab.close(a, 0));
        for (port, id) in [(A, a), (SUB, sub)] {
            lab.send_probe(id, 1);
            assert_eq!(lab.drops_out(port, DropReason::NoDevice), 1);
        }
        lab.settle();
        assert!(lab.all_received().iter().all(Vec::is_empty));
        assert_eq!(lab.total(|c| c.probes.get()), 3);
        done(lab);
    }
}

/// A probe received at any port, quarantined or not, is reported to control with both ports.
///
/// Shows: REQ-41
#[test]
fn a_returned_probe_is_reported() {
    for mut lab in labs() {
        for held in [false, true] {
            let all: Vec<_> = lab.ports.iter().copied().chain([uplink_port(0, 0), uplink_port(0, 1)]).collect();
            hold(&mut lab, if held { &all } else { &[] });
            let a = lab.ports[A];
            let probe = lab.probe(a, 100 + u64::from(held));
            let bytes = probe.write(&PROBE_KEY);
            let tags: [&[u8]; 4] =
                [&[], &[0x88, 0xa8, 0, 5], &[0x91, 0x00, 0, 5, 0x88, 0xa8, 0, 5], &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 1]];
            let ways = [(B, lab.ports[B]), (SUB, lab.ports[SUB]), (OTHER, lab.ports[OTHER]), (W, uplink_port(0, 1))];
            for ((port, at), tag) in ways.into_iter().zip(tags) {
                let bytes = tagged(&bytes, tag);
                assert_eq!(dies(&mut lab, port, &bytes), DropReason::Probe);
                assert_eq!(lab.events(), [WorkerEvent::ReturnedProbe(ReturnedProbe { at, probe })]);
                assert_eq!(dies(&mut lab, port, &bytes), DropReason::ProbeStale, "a second time");
            }
            let by_tag = tagged(&bytes, &[0x81, 0x00, 0, 120]);
            assert_eq!(dies(&mut lab, W, &by_tag), DropReason::Probe);
            assert_eq!(lab.events(), [WorkerEvent::ReturnedProbe(ReturnedProbe { at: uplink_port(0, 0), probe })]);
            assert_eq!(dies(&mut lab, A, &bytes), DropReason::ProbeStale, "the egress port of the probe is reported");
        }
        done(lab);
    }
}

/// Shows: REQ-41
#[test]
fn old_and_forged_probes_have_no_effect() {
    for mut lab in labs() {
        let a = lab.ports[A];
        let probe = lab.probe(a, 1);
        let at = |sent| Probe { sent, ..probe }.write(&PROBE_KEY);
        let (three, one, least) = (Duration::from_secs(3), Duration::from_secs(1), Duration::from_nanos(1));
        assert_eq!(dies(&mut lab, B, &at(probe.sent - three - least)), DropReason::ProbeStale);
        assert_eq!(dies(&mut lab, B, &at(probe.sent + one + least)), DropReason::ProbeStale);
        let forged = probe.write(&ProbeKey::new([1; 16]));
        assert_eq!(dies(&mut lab, B, &forged), DropReason::ProbeForged);
        let true_one = at(probe.sent);
        assert_eq!(dies(&mut lab, B, &true_one[..60]), DropReason::ProbeForged, "cut off");
        assert_eq!(dies(&mut lab, B, &[&true_one[..], &[0]].concat()), DropReason::ProbeForged, "too long");
        let mut long = true_one.to_vec();
        long.resize(1514, 0);
        assert_eq!(dies(&mut lab, B, &long), DropReason::ProbeForged);
        long.push(0);
        assert_eq!(dies(&mut lab, B, &long), DropReason::TooLong);
        assert_eq!(lab.events(), []);
        assert_eq!(dies(&mut lab, B, &at(probe.sent - three)), DropReason::Probe, "the probe is recent enough");
        assert_eq!(lab.events().len(), 1);
        done(lab);
    }
}

/// A guest floods forged and replayed probes; the valid one among them is reported.
#[test]
fn forged_probes_do_not_mask_a_valid_one() {
    for mut lab in labs() {
        let a = lab.ports[A];
        for round in 0..20 {
            let probe = lab.probe(a, round);
            let bytes = probe.write(&PROBE_KEY);
            for number in 0..1000 {
                let mut bent = bytes;
                bent[14 + number % 50] ^= 1 << (number % 8);
                assert!(lab.send(B, &bent));
                if number >= 500 {
                    assert!(lab.send(B, &bytes));
                }
                if number % 20 == 0 {
                    lab.settle();
                }
            }
            lab.settle();
            assert_eq!(lab.events(), [WorkerEvent::ReturnedProbe(ReturnedProbe { at: lab.ports[B], probe })]);
            lab.advance(Duration::from_millis(50));
        }
        assert_eq!(lab.drops_in(B, DropReason::ProbeForged), 20_000);
        assert_eq!(lab.drops_in(B, DropReason::ProbeStale), 20 * 499);
        assert_eq!(lab.drops_in(B, DropReason::Probe), 20);
        done(lab);
    }
}

/// Control does not read events for a while. Events that find the queue full are counted; device notices are
/// unaffected.
#[test]
fn events_that_find_the_queue_full_are_counted() {
    let mut lab = labs().next().unwrap();
    let (a, mut sent) = (lab.ports[A], 0);
    for _ in 0..11 {
        for _ in 0..400 {
            let probe = lab.probe(a, sent).write(&PROBE_KEY);
            sent += 1;
            assert!(lab.send(B, &probe));
            if sent % 50 == 0 {
                lab.settle();
            }
        }
        lab.advance(Duration::from_secs(5));
    }
    lab.settle();
    let lost = lab.counters[0].events_lost.get();
    assert!(lost > 0);
    assert_eq!(lab.events().len() as u64 + lost, sent);
    assert_eq!(lab.drops_in(B, DropReason::Probe), sent);
    done(lab);
}

proptest! {
    /// However a guest modifies a probe: it is reported as sent, or dropped unreported, and never forwarded.
    #[test]
    fn modified_probes_are_dropped_unreported(
        held: bool,
        memory in generators::memory(),
        changes in prop::collection::vec((12..Probe::LEN, 0..8u32), 0..3),
        port in prop::sample::select(vec![B, SUB, OTHER]),
        source in any::<[u8; 6]>(),
    ) {
        let mut lab = lab((1, memory));
        let (a, at) = (lab.ports[A], lab.ports[port]);
        hold(&mut lab, &[at][..usize::from(held)]);
        let probe = lab.probe(a, 1);
        let mut bytes = probe.write(&PROBE_KEY);
        for (place, bit) in changes {
            bytes[place] ^= 1 << bit;
        }
        let is_whole = bytes == probe.write(&PROBE_KEY);
        bytes[6..12].copy_from_slice(&source);
        let expected = match (Mac::new(source).is_station(), is_whole) {
            (false, _) if held => DropReason::Quarantined,
            (false, _) => DropReason::BadSource,
            (true, true) => DropReason::Probe,
            (true, false) => DropReason::ProbeForged,
        };
        prop_assert_eq!(dies(&mut lab, port, &bytes), expected);
        let events = if expected == DropReason::Probe { vec![WorkerEvent::ReturnedProbe(ReturnedProbe { at, probe })] } else { vec![] };
        prop_assert_eq!(lab.events(), events);
        done(lab);
    }
}
