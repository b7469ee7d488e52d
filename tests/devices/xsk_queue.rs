//! Ownership of buffer slots that the kernel transmits, over AF_XDP sockets without a program. Needs root; makes its
//! own namespaces.

use rustix::net::sockopt::socket_send_buffer_size;
use support::host::nic::{Nic, experiment};
use support::host::{Namespace, await_that};
use vifswitch::frame::{Batch, CopyMode, Frame, Magazine, Pool, XskQueue};
use vifswitch::sys::xsk::Kick;
use vifswitch::wire::{Mac, Offload};

const SLOTS: u32 = 1024;

/// A veth whose peer, `peer`, is in the same namespace; both are up.
fn veth(mtu: u32) -> Option<Namespace> {
    let namespace = Namespace::new()?;
    namespace.ip(&format!("link add veth0 mtu {mtu} type veth peer name peer mtu {mtu}"));
    namespace.ip("link set dev veth0 up");
    namespace.ip("link set dev peer up");
    Some(namespace)
}

fn open(namespace: &Namespace, pool: &'static Pool) -> std::io::Result<XskQueue> {
    let index = namespace.link("veth0").unwrap().index;
    namespace.run_in(|| XskQueue::open(pool, (index, 0), CopyMode::Copy, 256, 64))
}

/// Opens a queue that may still be busy.
fn reopen(namespace: &Namespace, pool: &'static Pool) -> XskQueue {
    await_that("the queue is free", || open(namespace, pool).ok())
}

/// A frame of this length, which identifies it.
fn frame(len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len - 14).map(|i| (i * 31 + len) as u8).collect();
    experiment(Mac::BROADCAST, Mac::from_bits(0x0200_0000_0001), &payload)
}

fn send(queue: &mut XskQueue, frame: &mut Frame) -> Kick {
    assert!(queue.send(frame));
    assert!(!frame.is_some());
    queue.flush();
    queue.kick()
}

#[test]
fn sent_frames_arrive_and_every_slot_is_freed() {
    let Some(namespace) = veth(9200) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let mut magazine = Magazine::new(pool);
    let mut queue = open(&namespace, pool).unwrap();
    let sends = socket_send_buffer_size(queue.fd().unwrap()).unwrap();
    assert_eq!(sends, 8 << 20, "4 MiB, which the kernel doubles");
    let peer = Nic::new(&namespace, "peer");
    for len in [14, 15, 60, 1514, 3000, 4000, 4096, 8000, 9014] {
        let written = frame(len);
        let mut frame = magazine.frame(&written, Offload::NONE).unwrap();
        assert_eq!(send(&mut queue, &mut frame), Kick::Done, "{len}");
        assert_eq!(peer.take(), written, "{len}");
    }
    // More than the kernel takes per call, and more than the ring holds.
    let mut taken = 0;
    while queue.send(&mut magazine.frame(&frame(60), Offload::NONE).unwrap()) {
        taken += 1;
    }
    assert_eq!(taken, 256);
    queue.flush();
    while queue.unsent() > 0 {
        assert_eq!(queue.kick(), Kick::Done);
        queue.reap(&mut magazine); // while completions have no room, the kernel sends nothing
    }
    (0..taken).for_each(|_| assert_eq!(peer.take().len(), 60));
    queue.reap(&mut magazine);
    assert!(queue.send(&mut magazine.frame(&frame(60), Offload::NONE).unwrap()), "the ring has room again");
    drop(magazine);
    assert!(pool.free() < SLOTS, "the kernel holds some slots");
    drop(queue);
    assert_eq!(pool.free(), SLOTS);
    assert_eq!(peer.rest(), Vec::<Vec<u8>>::new(), "frames not flushed are not sent");
}

#[test]
fn one_pool_serves_netdevs_of_several_namespaces() {
    let (Some(here), Some(there)) = (veth(1500), veth(1500)) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let mut magazine = Magazine::new(pool);
    for namespace in [&here, &there] {
        let (mut queue, peer) = (open(namespace, pool).unwrap(), Nic::new(namespace, "peer"));
        let written = frame(100);
        send(&mut queue, &mut magazine.frame(&written, Offload::NONE).unwrap());
        assert_eq!(peer.take(), written);
    }
    drop(magazine);
    assert_eq!(pool.free(), SLOTS);
}

#[test]
fn a_closed_queue_can_be_bound_again() {
    let Some(namespace) = veth(1500) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    for _ in 0..10 {
        let queue = reopen(&namespace, pool);
        assert_eq!(open(&namespace, pool).unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
        drop(queue);
        assert_eq!(pool.free(), SLOTS);
    }
}

#[test]
fn a_kick_reports_a_netdev_that_is_down_or_gone() {
    let Some(namespace) = veth(1500) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let mut magazine = Magazine::new(pool);
    let mut queue = open(&namespace, pool).unwrap();
    namespace.ip("link set dev veth0 down");
    assert_eq!(send(&mut queue, &mut magazine.frame(&frame(60), Offload::NONE).unwrap()), Kick::Down);
    assert_eq!(queue.unsent(), 1);
    namespace.ip("link del dev veth0");
    assert_eq!(queue.kick(), Kick::Gone);
    drop(queue);
    drop(magazine);
    assert_eq!(pool.free(), SLOTS);
}

#[test]
fn a_missing_netdev_cannot_be_bound() {
    let Some(namespace) = veth(1500) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let index = namespace.link("veth0").unwrap().index;
    for (index, queue, copying) in
        [(9999, 0, CopyMode::Copy), (index, 9, CopyMode::Copy), (index, 0, CopyMode::ZeroCopy)]
    {
        assert!(namespace.run_in(|| XskQueue::open(pool, (index, queue), copying, 256, 64)).is_err());
    }
    assert_eq!(pool.free(), SLOTS);
}

/// A netdev without carrier drops each frame, and the kernel does not report at once how many it has taken.
#[test]
fn a_dropped_frame_is_identified_by_index_and_bytes() {
    let Some(namespace) = veth(9200) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let mut magazine = Magazine::new(pool);
    let mut queue = open(&namespace, pool).unwrap();
    let peer = Nic::new(&namespace, "peer");
    let lens = [60, 9014, 100, 4000, 1514, 3000, 9014];
    for round in 0..100 {
        let trunk = round % 3 == 0;
        namespace.ip(&format!("link set dev peer {}", if trunk { "up" } else { "down" }));
        let first = queue.position();
        for len in lens {
            assert!(queue.send(&mut magazine.frame(&frame(len), Offload::NONE).unwrap()));
        }
        queue.flush();
        assert_eq!(queue.unsent_frames(), lens.len() as u64);
        let mut dropped = Vec::new();
        while queue.unsent() > 0 {
            match queue.kick() {
                Kick::Dropped => dropped.push(queue.dropped().unwrap()),
                kick => assert_eq!((kick, trunk), (Kick::Done, true)),
            }
        }
        let expected: Vec<u64> = lens.iter().map(|&len| len as u64).filter(|_| !trunk).collect();
        assert_eq!(dropped.iter().map(|dropped| dropped.bytes).collect::<Vec<_>>(), expected, "round {round}");
        assert!(dropped.iter().all(|dropped| dropped.is_since(first)));
        assert!(dropped.is_sorted_by(|one, next| next.is_since(one.position) && !one.is_since(next.position)));
        assert!(dropped.iter().all(|dropped| !dropped.is_since(queue.position())));
        assert_eq!((queue.dropped(), queue.unsent_frames()), (None, 0));
        queue.reap(&mut magazine);
        let came = if trunk { lens.map(|_| peer.take().len()).to_vec() } else { Vec::new() };
        assert_eq!(came, if trunk { lens.to_vec() } else { Vec::new() });
    }
    drop((magazine, queue));
    assert_eq!(pool.free(), SLOTS);
}

/// Transmitted slots are freed when the worker is idle, and before it sleeps.
#[test]
fn transmitted_slots_are_freed_without_another_send() {
    let Some(namespace) = veth(1500) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let mut queue = open(&namespace, pool).unwrap();
    let idle = pool.free();
    for before_sleep in [false, true] {
        let mut magazine = Magazine::new(pool);
        assert_eq!(send(&mut queue, &mut magazine.frame(&frame(60), Offload::NONE).unwrap()), Kick::Done);
        drop(magazine);
        await_that("the slot", || {
            let (mut magazine, mut batch) = (Magazine::new(pool), Batch::new());
            if before_sleep {
                queue.prepare_sleep(&mut magazine);
            } else {
                queue.receive(&mut batch, &mut magazine);
            }
            batch.clear(&mut magazine);
            drop(magazine);
            (pool.free() == idle).then_some(())
        });
    }
}

/// With an empty fill ring no frame can arrive and nothing wakes the worker.
#[test]
fn an_empty_fill_ring_is_reported_before_a_sleep() {
    let Some(namespace) = veth(1500) else { return };
    let pool = Pool::new(128).unwrap();
    let mut magazine = Magazine::new(pool);
    let mut all: Vec<Frame> = std::iter::from_fn(|| magazine.frame(&[0; 60], Offload::NONE)).collect();
    let mut queue = open(&namespace, pool).unwrap();
    assert!(!queue.prepare_sleep(&mut magazine), "all slots are in use");
    all.truncate(100);
    assert!(queue.prepare_sleep(&mut magazine), "some slots are free again");
    drop((all, queue, magazine));
    assert_eq!(pool.free(), 128);
}

#[test]
#[should_panic(expected = "slots of one pool")]
fn frames_of_another_pool_are_not_given_to_the_kernel() {
    let Some(namespace) = veth(1500) else { panic!("skipped: slots of one pool") };
    let (pool, other) = (Pool::new(SLOTS).unwrap(), Pool::new(16).unwrap());
    let mut queue = open(&namespace, pool).unwrap();
    queue.send(&mut Magazine::new(other).frame(&frame(60), Offload::NONE).unwrap());
}

#[test]
#[should_panic(expected = "slots of one pool")]
fn slots_of_another_pool_are_not_given_to_the_kernel() {
    let Some(namespace) = veth(1500) else { panic!("skipped: slots of one pool") };
    let (pool, other) = (Pool::new(SLOTS).unwrap(), Pool::new(16).unwrap());
    let mut queue = open(&namespace, pool).unwrap();
    queue.receive(&mut Batch::new(), &mut Magazine::new(other));
}
