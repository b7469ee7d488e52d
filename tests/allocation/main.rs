//! A warm worker neither allocates nor frees memory: `poll_once` must not wait for a lock of the allocator. The
//! allocator of this program, `allocation-counter`, counts per thread. One test needs root and a network namespace;
//! the others need nothing of the host.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // helpers of a test may panic

use std::time::Duration;

use tokio::sync::oneshot;
use vifswitch::device::loopback::{Loopback, LoopbackCapacity, RxMemory};
use vifswitch::device::{Device, packet};
use vifswitch::frame::{Batch, Magazine, Pool, TxBatch};
use vifswitch::switch::{AtLimit, Binding, DropReason, Limits, MacLimit, Security};
use vifswitch::telemetry::audit::Snapshot;
use vifswitch::wire::{Mac, Offload};
use vifswitch::worker::Command;

use support::lab::stream::open_frame;
use support::lab::{Lab, PROBE_KEY, PortSpec, Setup, UplinkSpec, frame, mac};

/// Number of allocations and frees of this thread in `work`.
fn counted(work: impl FnOnce()) -> u64 {
    let calls = allocation_counter::measure(work);
    calls.count_total + calls.count_current.unsigned_abs()
}

/// Steps all workers until they are idle. Returns the allocations and frees, and the number of `poll_once` calls.
fn counted_polls(lab: &mut Lab) -> (u64, u64) {
    let (mut calls, mut polls) = (0, 0);
    loop {
        let mut done = 0;
        calls += counted(|| done = lab.step());
        polls += lab.workers.len() as u64;
        if done == 0 {
            return (calls, polls);
        }
    }
}

/// Deterministic random numbers.
struct Rng(u64);
impl Rng {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % sides
    }
}

const PORTS: usize = 6;

/// The ports' network has two uplinks: tagged with this VLAN on the first, untagged on the second.
const VID: u16 = 5;

/// Each guest sends frames of all kinds: known unicast here and at other workers, floods, from known and new
/// stations, short and long, valid and invalid.
fn guests_send(lab: &mut Lab, rng: &mut Rng, trunks: bool) {
    let station = |number: usize| Mac::from_bits(0x0a_00_00_00_00_00 | number as u64);
    for port in 0..lab.ends.len() {
        for _ in 0..1 + rng.below(24) {
            let to = match rng.below(8) {
                0 => Mac::BROADCAST,
                1 | 2 => station(rng.below(5000)),
                _ => mac(rng.below(PORTS)),
            };
            let from = match rng.below(4) {
                0 => mac(port),
                1 => mac(rng.below(PORTS)),
                _ => station(rng.below(5000)),
            };
            let len = [0, 46, 1500, 3000, 9000][rng.below(5)];
            let offload = match rng.below(8) {
                2 => Offload::read(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]),
                0 => Offload::read(&[1, 1, 0, 0, 0xdc, 5, 34, 0, 16, 0, 0, 0]),
                1 => Offload::read(&[1, 9, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0]),
                _ => Offload::NONE,
            };
            // GSO packets that software can segment, and others.
            let mut bytes = match rng.below(2) {
                0 => open_frame(to, from, 0, len),
                _ => frame(to, from, 0x88b5, &[0x50; 9000][..len]),
            };
            if port == PORTS || rng.below(if trunks { 2 } else { 20 }) == 0 {
                bytes.splice(12..12, [0x81, 0x00, 0x00, if rng.below(8) == 0 { 99 } else { VID as u8 }]);
            }
            let _ = lab.ends[port].stage(&bytes, offload);
        }
        lab.ends[port].publish();
    }
}

fn a_warm_worker_does_not_allocate(memory: RxMemory, trunks: bool) {
    let setup = Setup {
        workers: 2,
        slots: 4096,
        // The table is smaller than the number of stations, so that entries are evicted.
        stations: 3000,
        capacity: LoopbackCapacity { blocks: 16, block_bytes: 1 << 17 },
        memory,
        limits: Limits { network: 2500, port: 600 },
        mtu: 3000,
        warm: true,
        ..Setup::default()
    };
    let mut port_specs: Vec<_> = (0..PORTS).map(|port| PortSpec::new(0, port as u32 / 2)).collect();
    // The outer tag selects a subport.
    for subport in [1, 3].into_iter().filter(|_| trunks) {
        port_specs[subport].trunk = Some((subport - 1, VID));
    }
    // The second port may use the stream's IP address only with the first port's MAC; the third is promiscuous and
    // the fourth takes no unknown unicast; the fifth has a MAC limit.
    let bound = Binding { mac: mac(1), ip: "10.5.0.8/31".parse().ok() };
    port_specs[1].security = Security::MacIp([bound, Binding { mac: mac(0), ip: None }].into());
    port_specs[2].promiscuous = true;
    port_specs[3].unknown_unicast = false;
    port_specs[4].mac_limit = Some(MacLimit { stations: 50, policy: AtLimit::ForwardUnlearned });
    let uplink_specs = [UplinkSpec::new(&[(VID, 0)]), UplinkSpec::new(&[(0, 0)])];
    // Half of the ports take no offloads.
    let mut lab = Lab::build(setup, &port_specs, &uplink_specs, |port, end| Box::new(end.with_offloads(port % 2 == 0)));
    let mut rng = Rng(1);
    let (mut calls, mut polls) = (0, 0);
    for round in 0..2000u64 {
        guests_send(&mut lab, &mut rng, trunks);
        let (more_calls, more_polls) = counted_polls(&mut lab);
        calls += more_calls;
        polls += more_polls;
        lab.ends.iter_mut().for_each(Loopback::discard);
        lab.advance(Duration::from_millis([1, 300, 20_000][rng.below(3)] * u64::from(round % 5 == 0)));
        if round % 400 == 0 {
            lab.advance(Duration::from_secs(400));
        }
    }
    assert_eq!(calls, 0, "in {polls} polls");
    assert!(polls > 10_000, "the workers were busy: {polls}");
    assert!(lab.total(|c| c.forwarded.get()) > 10_000 && lab.total(|c| c.copies.get()) > 10_000);
    assert!(lab.total(|c| c.segmented.get()) > 1000 && lab.total(|c| c.checksummed.get()) > 1000);
    assert!(lab.workers.iter().all(|worker| worker.switch().fdb().len() > 100));
    let bound = (lab.drops_in(1, DropReason::SpoofedIp), lab.sum(1, |c| c.forwarded.get()));
    assert!(bound.0 > 100 && bound.1 > 500, "{bound:?}");
    assert!(lab.sum(2, |c| c.mirror_copies.get()) > 10_000 && lab.sum(3, |c| c.not_flooded.get()) > 1000);
    assert!(lab.sum(4, |c| c.not_learned.get()) > 1000);
    for port in [1, 3, PORTS, PORTS + 1] {
        let frames = (lab.sum(port, |c| c.forwarded.get()), lab.sum(port, |c| c.tx_frames.get()));
        assert!(frames.0 > 500 && frames.1 > 1000, "port {port} received some: {frames:?}");
    }
    lab.check_counters();
    lab.end();
}

#[test]
fn a_warm_worker_with_owned_buffers_does_not_allocate() {
    a_warm_worker_does_not_allocate(RxMemory::Owned, false);
}

#[test]
fn a_warm_worker_with_borrowed_buffers_does_not_allocate() {
    a_warm_worker_does_not_allocate(RxMemory::Lent, false);
}

#[test]
fn a_warm_worker_with_trunks_does_not_allocate() {
    a_warm_worker_does_not_allocate(RxMemory::Owned, true);
    a_warm_worker_does_not_allocate(RxMemory::Lent, true);
}

/// Status commands bring the memory of their reply with them.
#[test]
fn status_commands_do_not_make_a_worker_allocate() {
    let port_specs: Vec<_> = (0..PORTS).map(|port| PortSpec::new(0, port as u32 / 2)).collect();
    let mut lab = Lab::new(Setup::default(), &port_specs);
    let (reply, mut reading) = oneshot::channel();
    assert!(lab.mailboxes[0].send(Command::Audit(Box::new(Snapshot::with_capacity(PORTS)), reply)));
    let (reply, mut pong) = oneshot::channel();
    assert!(lab.mailboxes[0].send(Command::Ping(reply)));
    assert_eq!(counted_polls(&mut lab).0, 0);
    assert_eq!(reading.try_recv().unwrap().shares.len(), PORTS);
    pong.try_recv().unwrap();
    lab.end();
}

/// Probes are sent and return, a station flaps, and control does not read its events.
#[test]
fn loops_do_not_make_a_worker_allocate() {
    let port_specs: Vec<_> = (0..PORTS).map(|port| PortSpec::new(0, port as u32)).collect();
    let mut lab = Lab::new(Setup { warm: true, ..Setup::default() }, &port_specs);
    for round in 0..100 {
        let (to, at) = (lab.ports[0], round as usize % 2);
        let probe = lab.probe(to, round).write(&PROBE_KEY);
        let (reply, mut sent) = oneshot::channel();
        assert!(lab.mailboxes[0].send(Command::Probes(vec![(to, probe.into()); 64], reply)));
        assert!(lab.send(1, &probe));
        assert!(lab.send(at, &frame(mac(2), Mac::from_bits(0x0a_00_00_00_00_01), 0x88b5, &[1; 46])));
        assert_eq!(counted_polls(&mut lab).0, 0, "round {round}");
        assert_eq!(sent.try_recv().unwrap().len(), 64);
        lab.ends.iter_mut().for_each(Loopback::discard);
    }
    // The fifth move is refused.
    assert_eq!(lab.events().len(), 100 + 1);
    lab.check_counters();
    lab.end();
}

/// Control: allocations are counted.
#[test]
fn an_allocation_is_counted_and_so_is_a_free() {
    let mut host = None;
    assert_eq!(counted(|| host = std::hint::black_box(Some(Box::new(7)))), 2);
    assert_eq!(counted(|| drop(std::hint::black_box(host.take()))), 1);
    assert_eq!(counted(|| drop(std::hint::black_box(Box::new(7)))), 1);
    assert_eq!(counted(|| ()), 0);
}

/// Packet sockets on a real netdev, with frames of all kinds: tagged, longer than a ring slot, more than the ring
/// holds, and refused.
#[test]
fn a_packet_port_does_not_allocate() {
    let (Some(port), Some(guest)) = (support::host::Namespace::new(), support::host::Namespace::new()) else { return };
    port.ip(&format!("link add dev port mtu 9000 type veth peer name guest mtu 9000 netns {}", guest.0));
    port.ip("link set dev port up");
    guest.ip("link set dev guest up");
    let nic = support::host::nic::Nic::new(&guest, "guest");
    let settings = packet::Settings {
        name: "port".into(),
        netns: port.netns(),
        offloads: true,
        isolate: false,
        mtu: 9000,
        owner: "port-1".into(),
    };
    let mut device = packet::open(&settings).unwrap().queues.remove(0);
    let (mut magazine, mut batch) = (Magazine::new(Pool::new(4096).unwrap()), Batch::new());
    let mut tx = TxBatch::with_capacity(192);
    let frames: Vec<_> = [(0x88b5, 46), (0x88b5, 8986), (0x8100, 50), (0x8100, 8990), (0x88b5, 9500)]
        .map(|(kind, len)| frame(mac(1), mac(0), kind, &[0; 9500][..len]))
        .into();
    let mut calls = |device: &mut Box<dyn Device>| {
        let mut received = 0;
        let calls = counted(|| {
            for _ in 0..200 {
                device.receive(&mut batch, &mut magazine).unwrap();
                received += batch.len();
                batch.clear(&mut magazine);
                for bytes in &frames {
                    tx.push(magazine.frame(bytes, Offload::NONE).unwrap());
                }
                let sent = device.transmit(&mut tx, &batch, &mut magazine);
                assert_eq!((sent.frames, sent.refused), (4, 1));
            }
        });
        (calls, received)
    };
    let _ = calls(&mut device);
    (0..2000).for_each(|number| nic.send(&frames[number % 4]));
    let (allocations, received) = calls(&mut device);
    assert_eq!(allocations, 0);
    assert!(received >= 1000 && device.rx_missed() > 0, "{received}");
}
