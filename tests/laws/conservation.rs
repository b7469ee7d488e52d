//! Conservation: each received frame is forwarded, flooded or dropped with a reason, and each buffer slot returns to
//! its pool. Needs nothing of the host.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::device::loopback::{Loopback, LoopbackCapacity, RxMemory, loopback};
use vifswitch::switch::{DropReason, ForwardingConfig, HashKey, NetworkId};
use vifswitch::wire::{Mac, Offload, Probe};
use vifswitch::worker::{Command, PortCounterTable, RxQueue};

use crate::fault::{Fault, Faults};
use crate::generators::{self, Sketch, any_frame, header};
use support::lab::{Lab, PROBE_KEY, PortSpec, Setup, UplinkSpec, frame, mac};

#[derive(Debug, Clone)]
enum Act {
    Send(Sketch),
    Step,
    /// Runs one `poll_once` of one worker only.
    Poll(usize),
    Advance(u64),
    /// The guest receives all pending frames. Without this its loopback device fills up.
    Read(usize),
    /// Toggles `admin_up` of the port.
    Flip(usize),
    /// Sets or clears quarantine or sibling split horizon of the port.
    Measure(usize, bool),
    /// Sends a loop probe out of the port.
    Probe(usize),
    /// The guest returns the last loop probe that any guest has received.
    Echo(usize),
    /// Closes or reopens the port's device.
    Plug(usize),
    /// Swaps active and backup uplink.
    FailOver,
    /// Audits the counters, even with frames in flight.
    Audit,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        20 => any_frame().prop_map(Act::Send),
        3 => Just(Act::Step),
        5 => (0..3usize).prop_map(Act::Poll),
        1 => (0..400u64).prop_map(Act::Advance),
        3 => (0..11usize).prop_map(Act::Read),
        1 => (0..11usize).prop_map(Act::Flip),
        1 => (0..11usize).prop_map(Act::Plug),
        1 => (0..11usize, any::<bool>()).prop_map(|(port, hold)| Act::Measure(port, hold)),
        4 => (0..11usize).prop_map(Act::Probe),
        3 => (0..11usize).prop_map(Act::Echo),
        1 => Just(Act::FailOver),
        2 => Just(Act::Audit),
    ];
    vec(act, 20..200)
}

/// Device of a port.
#[derive(Debug, Clone, Copy)]
struct Wiring {
    memory: RxMemory,
    offloads: bool,
    faults: Option<Faults>,
    /// Worker of a second queue.
    second: Option<usize>,
}

fn wiring() -> impl Strategy<Value = Wiring> {
    let faults = (any::<u64>(), 0..500u32, 0..500u32, proptest::option::weighted(0.3, 0..60u64))
        .prop_map(|(seed, loss, full, die_after)| Faults { seed, loss, full, die_after });
    let faults = proptest::option::weighted(0.3, faults);
    let second = proptest::option::weighted(0.2, 0..3usize);
    (generators::memory(), prop::bool::weighted(0.7), faults, second)
        .prop_map(|(memory, offloads, faults, second)| Wiring { memory, offloads, faults, second })
}

/// Number of segments of a GSO packet.
fn count(bytes: &[u8], offload: &Offload) -> u64 {
    offload.segmentation(bytes, bytes.len() as u32).map_or(1, |parts| u64::from(parts.frames))
}

/// Receives all frames at the loopback device of port `base` and counts them, in segments, per port.
fn read(lab: &mut Lab, base: usize, second: Option<&mut Loopback>, received: &mut [u64]) -> Option<Vec<u8>> {
    let mut arrived: Vec<_> = std::iter::from_fn(|| lab.ends[base].take()).collect();
    arrived.extend(second.into_iter().flat_map(|end| std::iter::from_fn(|| end.take()).collect::<Vec<_>>()));
    let mut probe = None;
    for (mut bytes, mut offload) in arrived {
        let frames = count(&bytes, &offload);
        received[lab.sort_out(base, &mut bytes, &mut offload)] += frames;
        if Probe::read(&bytes, &PROBE_KEY).is_ok() {
            probe = Some(bytes);
        }
    }
    probe
}

struct Case {
    port_specs: Vec<PortSpec>,
    uplink_specs: Vec<UplinkSpec>,
    wiring: Vec<Wiring>,
    setup: Setup,
    acts: Vec<Act>,
}

fn run(case: Case) {
    let Case { port_specs, uplink_specs, wiring, setup, acts } = case;
    let (vifs, ports) = (port_specs.len(), port_specs.len() + uplink_specs.len());
    let (workers, cable_size) = (usize::from(setup.workers), setup.capacity);
    // Frames wait in a loopback device for a free slot only with few slots.
    let plenty = setup.slots >= 2048;
    let mut lost: HashMap<usize, Arc<AtomicU64>> = HashMap::new();
    let mut lab = Lab::build(setup, &port_specs, &uplink_specs, |port, end| {
        let Wiring { memory, offloads, faults, .. } = wiring[port];
        let device = Fault::new(end.with_memory(memory).with_offloads(offloads), faults.unwrap_or_default());
        lost.insert(port, device.lost());
        Box::new(device)
    });
    let mut seconds: Vec<Option<Loopback>> = Vec::new();
    for (port, wiring) in wiring[..ports].iter().enumerate() {
        let second = wiring.second.filter(|_| lab.trunks[port].is_none());
        seconds.push(second.map(|worker| {
            let (end, far) = loopback(cable_size);
            let device = Box::new(end.with_memory(wiring.memory).with_offloads(wiring.offloads));
            lab.open_at(worker % workers, RxQueue::new(lab.ports[port], 1, device));
            far
        }));
    }
    let mut closed: Vec<Option<RxQueue>> = (0..ports).map(|_| None).collect();
    let mut received = vec![0; ports];
    let mut offered = vec![0; ports];
    let mut was_closed = vec![false; ports];
    let (mut sequence, mut seen) = (0, None);
    for act in acts {
        match act {
            Act::Send(sketch) => {
                let (port, (bytes, offload)) = (sketch.port(ports), sketch.offer(vifs, uplink_specs.len()));
                let Some((bytes, offload)) = lab.tagged(port, &bytes, offload) else { continue };
                let port = lab.base(port);
                // Guests with two queues alternate between them.
                let end = seconds[port].as_mut().filter(|_| offered[port] % 2 == 1).unwrap_or(&mut lab.ends[port]);
                if end.send(&bytes, offload) {
                    offered[port] += 1;
                }
            }
            Act::Step => _ = lab.step(),
            Act::Poll(worker) => _ = lab.workers[worker % workers].poll_once(lab.now),
            Act::Advance(seconds) => lab.advance(Duration::from_secs(seconds)),
            Act::Read(port) => seen = read(&mut lab, port % ports, None, &mut received).or(seen),
            Act::Measure(port, hold) => {
                let port = lab.ports[port % ports];
                lab.change_ports(|all| {
                    for config in all.iter_mut().filter(|config| config.id == port) {
                        if hold { config.quarantined ^= true } else { config.sibling_split_horizon ^= true }
                    }
                });
            }
            Act::Probe(port) => {
                // For an uplink, the port of one of its networks.
                let all: Vec<_> = lab.config.ports().map(|port| port.id).collect();
                sequence += 1;
                lab.send_probe(all[port % all.len()], sequence);
            }
            Act::Echo(port) => {
                let port = port % ports;
                let Some(bytes) = &seen else { continue };
                let Some((bytes, offload)) = lab.tagged(port, bytes, Offload::NONE) else { continue };
                let base = lab.base(port);
                if lab.ends[base].send(&bytes, offload) {
                    offered[base] += 1;
                }
            }
            Act::Flip(port) => {
                let port = lab.ports[port % ports];
                lab.change_config(|all, trunks| {
                    all.iter_mut().filter(|config| config.id == port).for_each(|config| config.admin_up ^= true);
                    trunks.iter_mut().filter(|config| config.id == port).for_each(|config| config.admin_up ^= true);
                });
            }
            Act::FailOver => {
                if uplink_specs.last().is_some_and(|uplink| uplink.backup_of.is_some()) {
                    let is_active = lab.config.trunk(lab.ports[vifs]).is_some_and(|trunk| !trunk.backup);
                    let (active, spare) = if is_active { (vifs + 1, vifs) } else { (vifs, vifs + 1) };
                    lab.fail_over(active, spare);
                }
            }
            Act::Plug(port) => {
                let port = lab.base(port % ports);
                match closed[port].take() {
                    // A device that failed before it was closed stays closed.
                    Some(queue) if wiring[port].faults.is_none() => lab.open(queue),
                    Some(_) => {}
                    None => closed[port] = lab.close(lab.ports[port], port % workers),
                }
                was_closed[port] = true;
            }
            Act::Audit => {
                let audit = lab.audit();
                assert!(audit.is_balanced(), "{audit:#?}");
            }
        }
    }
    lab.settle();
    let mut audit = lab.audit();
    // With few slots, a frame may have waited in its loopback device for the last freed slot.
    while !plenty && !audit.is_idle() {
        lab.settle();
        audit = lab.audit();
    }
    lab.check_counters();
    assert!(audit.is_idle() && audit.is_balanced(), "{audit:#?}");
    for (port, second) in seconds.iter_mut().enumerate().take(ports) {
        assert_eq!(audit.port(port).rx_frames, lab.sum(port, |c| c.rx_frames.get()));
        drop(read(&mut lab, port, second.as_mut(), &mut received));
    }
    for port in 0..ports {
        assert_eq!(
            received[port],
            lab.sum(port, |c| c.tx_frames.get()),
            "port {port} receives each frame counted as sent to it"
        );
        // GSO packets count as their segments.
        let after = (0..ports).filter(|&after| lab.base(after) == port);
        let arrived: u64 = after.map(|after| lab.sum(after, |c| c.rx_frames.get())).sum();
        let arrived = arrived + lost.get(&port).map_or(0, |lost| lost.load(Ordering::Relaxed));
        let dies = wiring[port].faults.is_some_and(|faults| faults.die_after.is_some());
        let hears = plenty && !dies && !was_closed[port];
        assert!(!hears || arrived >= offered[port], "port {port}: {arrived} of {}", offered[port]);
    }
    drop(closed);
    lab.end();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Shows: REQ-50
    #[test]
    fn frames_and_slots_are_conserved(
        port_specs in generators::measured(prop_oneof![generators::port_specs(3), generators::trunks(3)]),
        uplink_specs in generators::uplink_specs(3),
        wiring in vec(wiring(), 11),
        workers in prop::sample::select(vec![1u16, 2, 3]),
        blocks in prop::sample::select(vec![2usize, 8, 256]),
        block_bytes in prop::sample::select(vec![9000usize, 1 << 17]),
        slots in prop::sample::select(vec![64u32, 300, 2048]),
        mtu in prop::sample::select(vec![1500u16, 9000, 65_000]),
        acts in acts(),
    ) {
        let loopback = LoopbackCapacity { blocks, block_bytes };
        let setup = Setup { workers, slots, capacity: loopback, mtu, stations: 16, ..Setup::default() };
        run(Case { port_specs, uplink_specs, wiring, setup, acts });
    }
}

/// A GSO packet whose headers begin far behind its start counts as the same number of segments in contiguous memory
/// and split across slots.
#[test]
fn segments_count_alike_in_contiguous_and_split_memory() {
    for start in (2500..4500).step_by(50) {
        let offload = header(1, 1, 1000, start, 16);
        let mut verdicts = Vec::new();
        for (workers, memory) in [(1, RxMemory::Lent), (2, RxMemory::Lent), (1, RxMemory::Owned), (2, RxMemory::Owned)]
        {
            let setup = Setup { workers, memory, mtu: 9000, ..Setup::default() };
            let mut lab = Lab::new(setup, &[PortSpec::new(0, 0), PortSpec::new(0, 1)]);
            assert!(lab.ends[0].send(&frame(mac(1), mac(0), 0x88b5, &[0x50; 20_000]), offload));
            lab.settle();
            verdicts.push((lab.sum(0, |c| c.rx_frames.get()), lab.sum(1, |c| c.tx_frames.get())));
            lab.check_counters();
            lab.end();
        }
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "headers from {start} on: {verdicts:?}");
    }
}

/// Mixed traffic between ports on three workers.
fn busy_lab() -> Lab {
    let port_specs = [PortSpec::new(0, 0), PortSpec::new(0, 1), PortSpec::new(0, 2), PortSpec::new(0, 0)];
    let mut lab = Lab::new(Setup { workers: 3, ..Setup::default() }, &port_specs);
    for _ in 0..3 {
        for from in 0..4 {
            for to in [mac((from + 1) % 4), mac(from), mac(77), Mac::BROADCAST] {
                assert!(lab.send(from, &frame(to, mac(from), 0x88b5, &[0x50; 100])));
            }
        }
        lab.settle();
    }
    lab
}

#[test]
fn the_audit_detects_forged_counters() {
    let mut lab = busy_lab();
    let book = lab.port_counters[1][1].clone();
    let worker = lab.counters[1].clone();
    assert!(lab.audit().is_balanced());
    let counters = [
        &book.rx_frames,
        &book.forwarded,
        &book.flooded,
        &book.copies,
        &book.probes,
        &book.announcements,
        &book.tx_frames,
        &worker.peer_tx_frames,
        &worker.peer_rx_frames,
        &worker.peer_tx_floods,
        &worker.peer_rx_floods,
        &worker.closed_port_drops,
    ];
    for (place, counter) in counters.into_iter().enumerate() {
        for forged in [1, 1u64.wrapping_neg()] {
            counter.add(forged);
            assert!(!lab.audit().is_balanced(), "counter {place}, by {forged:x}");
            counter.add(forged.wrapping_neg());
            assert!(lab.audit().is_balanced());
        }
    }
    for reason in [DropReason::Hairpin, DropReason::DeviceFull] {
        for drops in [&book.drops_in, &book.drops_out] {
            drops.add(reason, 1);
            assert!(!lab.audit().is_balanced(), "{reason:?}");
            drops.add(reason, 1u64.wrapping_neg());
        }
    }
    book.rx_frames.add(3);
    let audit = lab.audit();
    assert_eq!((audit.port(1).delta(), audit.port(0).delta()), (3, 0));
    assert!(audit.second.iter().all(|reading| reading.delta() == 0));
    book.rx_frames.add(3u64.wrapping_neg());
    lab.end();
}

/// Closing a port with frames in flight to it retires its counters and changes no counter of other ports.
#[test]
fn counters_of_a_closed_port_are_retained() {
    let mut lab = busy_lab();
    let port = 1;
    // The frame is in flight: the other worker has not polled it yet.
    assert!(lab.send(0, &frame(mac(port), mac(0), 0x88b5, &[1; 100])));
    lab.workers[0].poll_once(lab.now);
    let mut ports: Vec<_> = lab.config.ports().cloned().collect();
    ports.retain(|config| config.id != lab.ports[port]);
    let networks = lab.config.network(NetworkId::new(0)).cloned().into_iter().collect();
    let config = Arc::new(ForwardingConfig::compile(HashKey::new([7; 16]), networks, ports, Vec::new()));
    for worker in 0..3 {
        let mut port_counters: PortCounterTable = lab.port_counters[worker].iter().cloned().map(Some).collect();
        port_counters[port] = None;
        lab.command(worker, |reply| Command::Config(config.clone(), port_counters, reply));
    }
    lab.settle();
    assert_eq!(lab.counters[1].closed_port_drops.get(), 1);
    let audit = lab.audit();
    assert!(audit.is_idle() && audit.is_balanced(), "{audit:#?}");
    assert_eq!(audit.port(port).rx_frames, 0, "the port is closed");
    let queue = lab.close(lab.ports[port], 1);
    assert!(queue.is_some());
    drop(queue);
    lab.end();
}
