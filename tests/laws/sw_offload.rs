//! Software offload at ports that take no offloads: checksums are completed, GSO packets segmented. Needs nothing of
//! the host.

use std::io;
use std::os::fd::BorrowedFd;

use vifswitch::device::loopback::{Loopback, LoopbackCapacity, RxMemory};
use vifswitch::device::{Device, DeviceCaps};
use vifswitch::frame::{Batch, Magazine, TxBatch, TxStats};
use vifswitch::switch::DropReason;
use vifswitch::wire::{Mac, Offload, OffloadSet};

use crate::builders::KINDS;
use crate::generators::{header, tcp};
use support::lab::stream::{HEADERS, content, is_whole, open_frame, payload};
use support::lab::{Lab, PortSpec, Setup, frame, mac};

/// Four ports of different VMs. Ports 1 and 2 take no offloads.
fn lab(setup: Setup) -> Lab {
    let port_specs: Vec<_> = (0..4).map(|owner| PortSpec::new(0, owner)).collect();
    Lab::with_devices(setup, &port_specs, |port, end| Box::new(end.with_offloads(port != 1 && port != 2)))
}

fn open() -> Offload {
    header(1, 0, 0, 34, 16)
}

/// Frames received by a port, with `virtio_net_hdr`.
fn take(lab: &mut Lab, port: usize) -> Vec<(Vec<u8>, Offload)> {
    std::iter::from_fn(|| lab.ends[port].take()).collect()
}

/// A burst of all kinds: each port receives its frames in order, completed where it takes no offloads.
#[test]
fn offload_work_is_completed_at_egress() {
    for (workers, memory) in KINDS {
        let mut lab = lab(Setup { workers, memory, ..Setup::default() });
        for (to, reached) in [
            (mac(1), [false, true, false, false]),
            (mac(3), [false, false, false, true]),
            (Mac::BROADCAST, [false, true, true, true]),
        ] {
            let counts = |lab: &Lab, port| {
                let unsupported = lab.drops_out(port, DropReason::OffloadUnsupported);
                [lab.sum(port, |c| c.segmented.get()), lab.sum(port, |c| c.checksummed.get()), unsupported]
            };
            let before: Vec<_> = (0..4).map(|port| counts(&lab, port)).collect();
            let (mut sent, mut expected) = (Vec::new(), Vec::new());
            let mut at = 1u32;
            for (len, offload) in [
                (100, Offload::NONE),
                (1300, open()),
                (60_000, tcp(1000)),
                (60, header(2, 0, 0, 0, 0)),
                (1461, tcp(1400)),
                (10, tcp(1400)),
                (700, Offload::NONE),
            ] {
                sent.push((open_frame(to, mac(0), at, len), offload));
                let size = if offload == tcp(1000) { 1000 } else { 1400 };
                for part in (0..len).step_by(size) {
                    expected.push((at + part as u32, size.min(len - part), offload.needs_offload()));
                }
                at += len as u32;
            }
            // Seven segments of a GSO packet that is not IP.
            sent.insert(3, (frame(to, mac(0), 0x88b5, &[0x50; 40 + 6500]), tcp(1000)));
            for (bytes, offload) in &sent {
                assert!(lab.ends[0].stage(bytes, *offload));
            }
            lab.ends[0].publish();
            lab.settle();
            for port in 0..4 {
                let received = take(&mut lab, port);
                let unable = port == 1 || port == 2;
                let made: Vec<_> =
                    counts(&lab, port).into_iter().zip(before[port]).map(|(now, then)| now - then).collect();
                if !(unable && reached[port]) {
                    assert!(received == if reached[port] { sent.clone() } else { Vec::new() }, "to {to} at {port}");
                    assert_eq!(made, [0; 3]);
                    continue;
                }
                assert_eq!(made, [3, 1, 7], "to {to} at {port}");
                assert_eq!(received.len(), expected.len(), "to {to} at {port}");
                for ((bytes, offload), &(at, len, done)) in received.iter().zip(&expected) {
                    assert!(!offload.needs_offload());
                    assert_eq!(payload(bytes), (at, &content(at, len)[..]), "to {to} at {port}");
                    assert!(is_whole(bytes) || !done, "{at} to {to} at {port}: {:02x?}", &bytes[..HEADERS]);
                }
            }
            lab.check_counters();
        }
        assert!(lab.audit().is_balanced());
        lab.end();
    }
}

/// A device with some offloads.
struct LimitedOffloads(Loopback, OffloadSet);

impl Device for LimitedOffloads {
    fn receive(&mut self, batch: &mut Batch, magazine: &mut Magazine) -> io::Result<()> {
        self.0.receive(batch, magazine)
    }
    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        self.0.transmit(tx, batch, magazine)
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn caps(&self) -> DeviceCaps {
        self.0.caps()
    }
    fn offload_set(&self) -> OffloadSet {
        self.1
    }
}

/// A netdev may take partial checksums but no GSO packets, or only some of them: it gets segments of the others.
#[test]
fn a_device_with_some_offloads_gets_segments_of_what_it_does_not_take() {
    let short = OffloadSet::new(OffloadSet::CSUM | OffloadSet::TSO4, 4000, 64);
    for (memory, set, len) in [
        (RxMemory::Owned, OffloadSet::new(OffloadSet::CSUM, 0, 0), 3000),
        (RxMemory::Lent, OffloadSet::new(OffloadSet::CSUM, 0, 0), 3000),
        (RxMemory::Owned, short, 5000),
        (RxMemory::Lent, short, 5000),
    ] {
        let port_specs = [0, 1].map(|owner| PortSpec::new(0, owner));
        let setup = Setup { memory, ..Setup::default() };
        let mut lab = Lab::with_devices(setup, &port_specs, |_, end| Box::new(LimitedOffloads(end, set)));
        let partial = (open_frame(mac(1), mac(0), 0, 1300), open());
        for (bytes, offload) in [partial.clone(), (open_frame(mac(1), mac(0), 1300, len), tcp(1000))] {
            assert!(lab.ends[0].send(&bytes, offload));
            lab.settle();
        }
        let received = take(&mut lab, 1);
        assert_eq!(received[0], partial);
        assert_eq!(received.len(), 1 + len / 1000);
        for (number, (bytes, offload)) in received[1..].iter().enumerate() {
            let at = 1300 + 1000 * number;
            assert!(!offload.is_gso());
            assert_eq!(payload(bytes), (at as u32, &content(at as u32, 1000)[..]));
        }
        lab.check_counters();
        lab.end();
    }
}

/// A burst of GSO packets, each of the maximum number of segments: far more than a TX batch holds. Few slots suffice,
/// because segments are transmitted as they are built.
#[test]
fn a_burst_may_become_a_hundred_times_as_many_segments() {
    for (workers, memory) in KINDS {
        let loopback = LoopbackCapacity { blocks: 256, block_bytes: 1 << 18 };
        let mut lab = lab(Setup { workers, memory, slots: 512, capacity: loopback, ..Setup::default() });
        let (size, burst) = (20, 64);
        let len = 128 * usize::from(size);
        for number in 0..burst {
            assert!(lab.ends[0].stage(&open_frame(mac(1), mac(0), number * len as u32, len), tcp(size)));
        }
        lab.ends[0].publish();
        lab.settle();
        let received = take(&mut lab, 1);
        assert_eq!(received.len(), 128 * burst as usize);
        for (number, (bytes, _)) in (0..).zip(&received) {
            let at = number * u32::from(size);
            assert_eq!(payload(bytes), (at, &content(at, size.into())[..]));
            assert!(is_whole(bytes));
        }
        assert_eq!(lab.sum(1, |c| c.segmented.get()), u64::from(burst));
        assert_eq!(lab.sum(1, |c| c.tx_frames.get()), 128 * u64::from(burst));
        assert_eq!(lab.sum(1, |c| c.tx_bytes.get()), lab.sum(0, |c| c.rx_bytes.get()));
        lab.check_counters();
        lab.end();
    }
}

/// A full device: frames that did not leave are counted; none is duplicated or reordered.
#[test]
fn frames_that_find_the_device_full_are_counted() {
    for memory in [RxMemory::Owned, RxMemory::Lent] {
        let loopback = LoopbackCapacity { blocks: 2, block_bytes: 70_000 };
        let mut lab = lab(Setup { memory, capacity: loopback, ..Setup::default() });
        for number in 0..8 {
            assert!(lab.ends[0].send(&open_frame(mac(1), mac(0), number * 60_000, 60_000), tcp(1000)));
            lab.settle();
        }
        let received = take(&mut lab, 1);
        assert!(received.iter().all(|(bytes, _)| is_whole(bytes)));
        assert!(received.is_sorted_by_key(|(bytes, _)| payload(bytes).0));
        let full = lab.drops_out(1, DropReason::DeviceFull);
        assert!(full > 0, "dropped for this reason");
        assert_eq!(received.len() as u64 + full, 8 * 60);
        lab.check_counters();
        lab.end();
    }
}

/// Without free slots no segment can be built. The frames are dropped; later ones are not.
#[test]
fn frames_without_a_slot_are_counted() {
    let mut lab = lab(Setup { memory: RxMemory::Lent, ..Setup::default() });
    let mut magazine = Magazine::new(lab.pool);
    let mut held: Vec<_> = std::iter::from_fn(|| magazine.frame(&[0; 60], Offload::NONE)).collect();
    let super_frame = open_frame(Mac::BROADCAST, mac(0), 0, 60_000);
    assert!(lab.ends[0].send(&super_frame, tcp(1000)));
    assert!(lab.ends[0].send(&open_frame(mac(1), mac(0), 0, 100), open()));
    lab.settle();
    assert_eq!([1, 2, 3].map(|port| lab.drops_out(port, DropReason::NoBuffer)), [61, 60, 0]);
    assert!(lab.received(1).is_empty());
    assert!(lab.received(3) == std::slice::from_ref(&super_frame));
    // A few free slots suffice.
    held.truncate(held.len() - 64);
    drop(magazine);
    assert!(lab.ends[0].send(&super_frame, tcp(1000)));
    lab.settle();
    assert_eq!([1, 2].map(|port| lab.received(port).len()), [60, 60]);
    lab.check_counters();
    drop(held);
    lab.end();
}
