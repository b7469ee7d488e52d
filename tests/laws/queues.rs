//! Egress queues: full devices, closed ports, devices that fail, rings between workers. Needs nothing of the host.

use std::collections::BTreeSet;

use vifswitch::device::Device;
use vifswitch::device::loopback::{LoopbackCapacity, RxMemory, loopback};
use vifswitch::frame::Magazine;
use vifswitch::switch::{DropReason, PortId};
use vifswitch::wire::{Mac, Offload};
use vifswitch::worker::{DeviceGone, RxQueue};

use crate::builders::KINDS;
use crate::fault::{Fault, Faults};
use crate::generators::{header, tcp, wild};
use support::lab::{Lab, PortSpec, Setup, frame, mac};

fn port_specs(count: u32) -> Vec<PortSpec> {
    (0..count).map(|owner| PortSpec::new(0, owner)).collect()
}

fn setup(workers: u16, memory: RxMemory) -> Setup {
    Setup { workers, memory, capacity: LoopbackCapacity::default(), ..Setup::default() }
}

/// A frame whose bytes 46 and 47 look like a TCP data offset.
fn frame_of(len: usize, to: Mac, from: Mac) -> Vec<u8> {
    frame(to, from, 0x0800, &vec![0x50; len - 14])
}

#[test]
fn a_frame_with_invalid_offload_header_is_dropped() {
    let lies = [
        tcp(0),
        header(1, 0x7f, 1000, 34, 16),
        header(0, 1, 1000, 34, 16),
        header(1, 0, 0, 34, 9999),
        header(1, 1, 1000, 60_000, 16),
    ];
    for (workers, memory) in KINDS {
        let mut lab = Lab::new(setup(workers, memory), &port_specs(3));
        for (number, lie) in (1..).zip(lies) {
            for to in [mac(1), Mac::BROADCAST] {
                assert!(lab.ends[0].send(&frame_of(1514, to, mac(0)), lie));
            }
            lab.settle();
            assert_eq!(lab.drops_in(0, DropReason::BadOffload), 2 * number);
            assert!(lab.all_received().iter().all(Vec::is_empty));
        }
        lab.check_counters();
        lab.end();
    }
}

/// A GSO packet of the maximum number of segments counts as that number, and fits if each segment does.
#[test]
fn gso_packets_count_as_their_segments() {
    for (workers, memory) in KINDS {
        let mut lab = Lab::new(setup(workers, memory), &port_specs(3));
        for (size, len) in [
            (500u16, 64_000usize),
            (48, 64_000),
            (1, 3000),
            (1446, 64_000),
            (1460, 65_536 - 54),
            (1447, 1447),
            (1460, 1461),
        ] {
            let before = (lab.sum(0, |c| c.rx_frames.get()), lab.sum(2, |c| c.tx_bytes.get()));
            let bytes = frame_of(54 + len, mac(2), mac(0));
            assert!(lab.ends[0].send(&bytes, tcp(size)));
            lab.settle();
            let frames = len.div_ceil(usize::from(size)) as u64;
            assert_eq!(lab.sum(0, |c| c.rx_frames.get()) - before.0, frames);
            assert_eq!(lab.sum(2, |c| c.tx_bytes.get()) - before.1, len as u64 + 54 * frames);
            assert_eq!(lab.ends[2].take(), Some((bytes, tcp(size))), "the frame is forwarded unmodified");
        }
        assert!(lab.ends[0].send(&frame_of(10_000, mac(2), mac(0)), tcp(1461)));
        lab.settle();
        assert_eq!(lab.drops_in(0, DropReason::TooLong), 7, "each would be one byte too long");
        assert!(lab.received(2).is_empty());
        lab.check_counters();
        lab.end();
    }
}

/// Ports that receive a frame to an address.
fn reached(lab: &mut Lab, from: usize, to: Mac) -> BTreeSet<usize> {
    assert!(lab.send(from, &frame(to, mac(from), 0x88b5, b"request")));
    lab.settle();
    (0..lab.ends.len()).filter(|&port| lab.received(port).len() == 1).collect()
}

/// Closing a port invalidates its stations at once, by the new configuration alone.
///
/// Shows: REQ-07
#[test]
fn closing_a_port_invalidates_its_stations() {
    for (workers, memory) in KINDS {
        let mut lab = Lab::new(setup(workers, memory), &port_specs(4));
        for number in 0..50 {
            assert!(lab.send(1, &frame(mac(0), wild(number), 0x88b5, &[])));
        }
        lab.settle();
        lab.received(0);
        assert_eq!(reached(&mut lab, 3, wild(7)), [1].into());
        // The port index is reused, with another generation, for another VM.
        let (old, new) = (lab.ports[1], PortId::new(1, 1));
        lab.change_ports(|all| all.iter_mut().filter(|config| config.id == old).for_each(|config| config.id = new));
        for number in 0..50 {
            assert_eq!(reached(&mut lab, 3, wild(number)), [0, 2].into(), "station {number}");
        }
        let worker = 1 % usize::from(workers);
        // Frames that its guest still sends are not received.
        assert!(lab.send(1, &frame(mac(0), wild(7), 0x88b5, &[])));
        lab.settle();
        assert_eq!(lab.drops_in(1, DropReason::PortClosed), 1);
        let queue = lab.close(old, worker).expect("the queue is returned");
        assert_eq!((queue.port, queue.queue), (old, 0));
        assert!(lab.close(old, worker).is_none(), "no second queue is returned");
        assert!(!lab.workers[worker].open_ports().any(|port| port == old));
        // The new port gets the device and has no stations.
        lab.open(RxQueue::new(new, 0, queue.device));
        assert_eq!(reached(&mut lab, 3, wild(7)), [0, 1, 2].into());
        assert_eq!(reached(&mut lab, 3, mac(1)), [1].into());
        assert!(lab.send(1, &frame(mac(0), wild(7), 0x88b5, &[])));
        lab.settle();
        lab.received(0);
        assert_eq!(reached(&mut lab, 3, wild(7)), [1].into(), "the port learns again");
        lab.check_counters();
        lab.end();
    }
}

/// Frames in flight to another worker find their port closed and are counted.
#[test]
fn frames_in_flight_to_a_closed_port_are_counted() {
    for memory in [RxMemory::Owned, RxMemory::Lent] {
        for cut in 0..4 {
            let mut lab = Lab::new(setup(2, memory), &port_specs(4));
            for to in [mac(1), Mac::BROADCAST] {
                assert!(lab.send(0, &frame(to, mac(0), 0x88b5, &[])));
            }
            for _ in 0..cut {
                lab.workers[0].poll_once(lab.now);
            }
            let port = lab.ports[1];
            if cut % 2 == 0 {
                lab.change_ports(|all| all.retain(|config| config.id != port));
            }
            lab.close(port, 1).expect("the queue was open");
            lab.settle();
            lab.check_counters();
            lab.end();
        }
    }
}

/// A port that is administratively down neither sends nor receives; up again, it continues without reopening the
/// device.
///
/// Shows: REQ-09
#[test]
fn a_port_that_is_down_neither_sends_nor_receives() {
    for (workers, memory) in KINDS {
        let mut lab = Lab::new(setup(workers, memory), &port_specs(3));
        let port = lab.ports[1];
        let switch = |lab: &mut Lab, up| {
            lab.change_ports(|all| {
                all.iter_mut().filter(|config| config.id == port).for_each(|config| config.admin_up = up)
            });
        };
        assert_eq!(reached(&mut lab, 0, mac(1)), [1].into());
        switch(&mut lab, false);
        assert_eq!(
            reached(&mut lab, 0, mac(1)),
            [2].into(),
            "a port that is down pins nothing; its address is unknown"
        );
        assert_eq!(reached(&mut lab, 0, Mac::BROADCAST), [2].into());
        assert_eq!(reached(&mut lab, 1, mac(0)), [].into());
        assert_eq!(lab.drops_in(1, DropReason::AdminDown), 1);
        switch(&mut lab, true);
        assert_eq!(reached(&mut lab, 0, Mac::BROADCAST), [1, 2].into());
        assert_eq!(reached(&mut lab, 1, mac(0)), [0].into());
        lab.check_counters();
        lab.end();
    }
}

#[test]
fn a_failed_device_is_reported_and_affects_no_other_port() {
    for (workers, memory) in KINDS {
        let dying = Faults { die_after: Some(100), ..Faults::default() };
        let mut lab = Lab::with_devices(setup(workers, memory), &port_specs(5), |port, end| -> Box<dyn Device> {
            if port == 1 { Box::new(Fault::new(end, dying)) } else { Box::new(end) }
        });
        assert_eq!(reached(&mut lab, 0, mac(1)), [1].into());
        assert!(lab.notices.try_recv().is_err(), "no notice yet");
        let mut sent = 0u32;
        while lab.drops_out(1, DropReason::NoDevice) < 10 {
            sent += 1;
            for (from, to) in [(0, 4), (4, 1), (2, 3)] {
                assert!(lab.send(from, &frame(mac(to), mac(from), 0x88b5, &sent.to_be_bytes())));
            }
            lab.step();
        }
        lab.settle();
        assert_eq!(lab.notices.try_recv(), Ok(DeviceGone::DeviceGone { port: lab.ports[1], queue: 0 }));
        assert!(lab.notices.try_recv().is_err(), "one notice per device");
        for (from, to) in [(0, 4), (2, 3)] {
            let expected: Vec<_> =
                (1..=sent).map(|number| frame(mac(to), mac(from), 0x88b5, &number.to_be_bytes())).collect();
            assert_eq!(lab.received(to), expected, "from {from} to {to}");
        }
        lab.received(1);
        assert_eq!(reached(&mut lab, 0, Mac::BROADCAST), [2, 3, 4].into());
        // Control removes the failed device and opens another one.
        let (port, worker) = (lab.ports[1], 1 % usize::from(workers));
        assert!(lab.close(port, worker).is_some());
        let (end, far) = loopback(Default::default());
        lab.ends[1] = far;
        lab.open(RxQueue::new(port, 0, Box::new(end.with_memory(memory))));
        assert_eq!(reached(&mut lab, 0, mac(1)), [1].into());
        assert_eq!(reached(&mut lab, 1, Mac::BROADCAST), [0, 2, 3, 4].into());
        lab.check_counters();
        lab.end();
    }
}

/// A port with queues at two workers receives each frame once.
#[test]
fn a_port_with_queues_at_two_workers_gets_each_frame_once() {
    for memory in [RxMemory::Owned, RxMemory::Lent] {
        let mut lab = Lab::new(setup(2, memory), &port_specs(4));
        let (end, mut far) = loopback(Default::default());
        let port = lab.ports[0];
        lab.open_at(1, RxQueue::new(port, 1, Box::new(end.with_memory(memory))));
        let mut at_both = |lab: &mut Lab, from: usize, to: Mac| {
            assert!(lab.send(from, &frame(to, mac(from), 0x88b5, &[])));
            lab.settle();
            let second = std::iter::from_fn(|| far.take()).count();
            let others: Vec<_> = (1..4).map(|port| lab.received(port).len()).collect();
            (lab.received(0).len() + second, others)
        };
        for from in [1, 2, 3] {
            assert_eq!(at_both(&mut lab, from, mac(0)), (1, vec![0; 3]), "from {from}");
            let others = (1..4).map(|port| usize::from(port != from)).collect();
            assert_eq!(at_both(&mut lab, from, Mac::BROADCAST), (1, others), "from {from}");
        }
        assert!(far.send(&frame(Mac::BROADCAST, mac(0), 0x88b5, &[]), Offload::NONE));
        lab.settle();
        assert!(far.take().is_none() && lab.received(0).is_empty(), "a port does not receive its own frames");
        lab.check_counters();
        lab.end();
    }
}

/// A worker that does not poll is sent no more than its ring holds. The rest is dropped and counted at the egress
/// ports: flood copies each at its port, GSO packets as their segments.
#[test]
fn frames_that_find_a_peers_ring_full_are_counted() {
    for memory in [RxMemory::Owned, RxMemory::Lent] {
        for (to, offload, each) in
            [(mac(1), Offload::NONE, 1), (Mac::BROADCAST, Offload::NONE, 2), (mac(1), tcp(500), 3)]
        {
            let mut lab = Lab::new(Setup { workers: 2, slots: 8192, memory, ..Setup::default() }, &port_specs(4));
            let bytes = frame_of(54 + 1401, to, mac(0));
            for _ in 0..3000 / 60 {
                for _ in 0..60 {
                    assert!(lab.ends[0].stage(&bytes, offload));
                }
                lab.ends[0].publish();
                lab.workers[0].poll_once(lab.now);
                lab.ends[2].discard();
            }
            let lost = lab.total(|c| c.drops_out.get(DropReason::PeerFull));
            assert_eq!(lost % each, 0);
            lab.settle();
            lab.check_counters();
            assert_eq!(lab.total(|c| c.drops_out.total()), lost);
            let arrived = lab.received(1).len() as u64;
            let room = if to.is_group() { 512 } else { 1024 };
            assert!(arrived >= room, "as many as the ring holds: {arrived}");
            assert_eq!(arrived + lost / each, 3000);
            assert_eq!(lab.drops_out(3, DropReason::PeerFull), if to.is_group() { lost / 2 } else { 0 });
            lab.end();
        }
    }
}

/// However many frames are flooded to a worker that does not poll, unicast has room in its ring.
#[test]
fn a_flood_leaves_room_for_unicast_in_a_peers_ring() {
    for memory in [RxMemory::Owned, RxMemory::Lent] {
        let mut lab = Lab::new(Setup { workers: 2, slots: 8192, memory, ..Setup::default() }, &port_specs(4));
        for number in 0..100u8 {
            for _ in 0..30 {
                assert!(lab.ends[0].stage(&frame(Mac::BROADCAST, mac(0), 0x88b5, &[]), Offload::NONE));
            }
            lab.ends[0].publish();
            assert!(lab.send(2, &frame(mac(3), mac(2), 0x88b5, &[number])));
            lab.workers[0].poll_once(lab.now);
        }
        lab.settle();
        assert!(lab.drops_out(3, DropReason::PeerFull) > 1000);
        let for_it = lab.received(3).into_iter().filter(|bytes| bytes[..6] == mac(3).octets());
        assert_eq!(for_it.map(|bytes| bytes[14]).collect::<Vec<_>>(), (0..100).collect::<Vec<u8>>());
        lab.check_counters();
        lab.end();
    }
}

/// Borrowed frames are copied for another worker. Without free slots they are dropped and counted.
#[test]
fn frames_without_a_slot_are_counted() {
    for to in [mac(1), Mac::BROADCAST] {
        let setup = Setup { slots: 64, ..setup(2, RxMemory::Lent) };
        let mut lab = Lab::new(setup, &port_specs(4));
        for _ in 0..100 {
            assert!(lab.send(0, &frame(to, mac(0), 0x88b5, &[])));
            lab.workers[0].poll_once(lab.now);
        }
        lab.settle();
        let lost = lab.drops_out(1, DropReason::NoBuffer);
        assert_eq!((lab.received(1).len() as u64 + lost, lost), (100, 36));
        assert_eq!(lab.drops_out(3, DropReason::NoBuffer), if to.is_group() { lost } else { 0 });
        assert_eq!(lab.received(2).len(), if to.is_group() { 100 } else { 0 }, "ports of the same worker lose nothing");
        lab.check_counters();
        lab.end();
    }
}

/// While the pool is empty, frames that need a slot wait in their device or are dropped as `no_buffer`; others pass. Each
/// is counted, and none is lost when there are slots again.
#[test]
fn an_empty_pool_costs_only_counted_frames() {
    for (workers, memory) in KINDS {
        let mut lab = Lab::new(setup(workers, memory), &port_specs(3));
        let mut magazine = Magazine::new(lab.pool);
        let held: Vec<_> = std::iter::from_fn(|| magazine.frame(&[0; 60], Offload::NONE)).collect();
        let what = format!("{workers} workers, {memory:?}");
        let mut sent = 0u32;
        let mut send = |lab: &mut Lab, count: u32| {
            for number in sent..sent + count {
                let to = if number % 2 == 0 { mac(1) } else { Mac::BROADCAST };
                assert!(lab.send(0, &frame(to, mac(0), 0x88b5, &number.to_be_bytes().repeat(16))), "{what}");
            }
            sent += count;
            lab.settle();
        };
        let numbers = |lab: &mut Lab, port: usize| -> Vec<u32> {
            lab.received(port).iter().map(|frame| u32::from_be_bytes(frame[14..18].try_into().unwrap())).collect()
        };
        send(&mut lab, 200);
        let passed = [1, 2].map(|port| numbers(&mut lab, port));
        // Where a frame needs a slot, not all of them have passed.
        let is_short = memory == RxMemory::Owned || workers > 1;
        assert_eq!(passed[0].len() < 200, is_short, "{what}: {}", passed[0].len());
        held.into_iter().for_each(|frame| magazine.recycle(frame));
        drop(magazine);
        lab.settle();
        let before = [1, 2].map(|port| lab.drops_out(port, DropReason::NoBuffer));
        send(&mut lab, 200);
        for (port, early, total) in [(1, &passed[0], 400), (2, &passed[1], 200)] {
            let received = [early.clone(), numbers(&mut lab, port)].concat();
            assert!(received.is_sorted_by(|one, next| one < next), "{what}: in order");
            let lost = lab.drops_out(port, DropReason::NoBuffer);
            assert_eq!(received.len() as u64 + lost, total, "{what}: port {port}");
            assert_eq!(lost, before[port - 1], "{what}: lost with slots");
        }
        let other = lab.total(|c| c.drops_in.total() + c.drops_out.total());
        assert_eq!(other, before.iter().sum::<u64>(), "{what}: dropped for another reason");
        lab.check_counters();
        lab.end();
    }
}
