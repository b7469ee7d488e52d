//! Slots that go to the kernel and come back, over AF_XDP sockets without any program: what is sent.
//! As root, in namespaces of their own.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

mod host;

use host::nic::{Nic, experiment};
use host::{Space, await_that};
use rustix::net::sockopt::socket_send_buffer_size;
use vifswitch::frame::{Batch, Cache, Copying, Exchange, Frame, Pool};
use vifswitch::sys::xsk::Kick;
use vifswitch::wire::{Mac, Offload};

const SLOTS: u32 = 1024;

/// A veth whose other end, `peer`, is in the same namespace; both are up.
fn veth(mtu: u32) -> Option<Space> {
    let space = Space::new()?;
    space.ip(&format!("link add veth0 mtu {mtu} type veth peer name peer mtu {mtu}"));
    space.ip("link set dev veth0 up");
    space.ip("link set dev peer up");
    Some(space)
}

fn open(space: &Space, pool: &'static Pool) -> std::io::Result<Exchange> {
    let index = space.link("veth0").unwrap().index;
    space.within(|| Exchange::open(pool, (index, 0), Copying::Copies, 256, 64))
}

/// One whose queue may be busy still.
fn reopen(space: &Space, pool: &'static Pool) -> Exchange {
    await_that("the queue is free", || open(space, pool).ok())
}

/// A frame of so many bytes, which tell it from others.
fn frame(len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len - 14).map(|i| (i * 31 + len) as u8).collect();
    experiment(Mac::BROADCAST, Mac::from_bits(0x0200_0000_0001), &payload)
}

fn send(exchange: &mut Exchange, frame: &mut Frame) -> Kick {
    assert!(exchange.send(frame));
    assert!(!frame.is_here());
    exchange.flush();
    exchange.kick()
}

#[test]
fn what_is_sent_arrives_and_every_slot_comes_home() {
    let Some(space) = veth(9200) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let mut cache = Cache::new(pool);
    let mut exchange = open(&space, pool).unwrap();
    let sends = socket_send_buffer_size(exchange.fd().unwrap()).unwrap();
    assert_eq!(sends, 8 << 20, "4 MiB, which the kernel doubles");
    let peer = Nic::new(&space, "peer");
    for len in [14, 15, 60, 1514, 3000, 4000, 4096, 8000, 9014] {
        let written = frame(len);
        let mut frame = cache.frame(&written, Offload::NONE).unwrap();
        assert_eq!(send(&mut exchange, &mut frame), Kick::Done, "{len}");
        assert_eq!(peer.take(), written, "{len}");
    }
    // More than the kernel takes at a time, and more than the ring holds.
    let mut taken = 0;
    while exchange.send(&mut cache.frame(&frame(60), Offload::NONE).unwrap()) {
        taken += 1;
    }
    assert_eq!(taken, 256);
    exchange.flush();
    while exchange.unsent() > 0 {
        assert_eq!(exchange.kick(), Kick::Done);
        exchange.reap(&mut cache); // without room for what has been sent, the kernel sends nothing
    }
    (0..taken).for_each(|_| assert_eq!(peer.take().len(), 60));
    exchange.reap(&mut cache);
    assert!(exchange.send(&mut cache.frame(&frame(60), Offload::NONE).unwrap()), "there is room again");
    drop(cache);
    assert!(pool.free() < SLOTS, "the kernel has some");
    drop(exchange);
    assert_eq!(pool.free(), SLOTS);
    assert_eq!(peer.rest(), Vec::<Vec<u8>>::new(), "what was not flushed is not sent");
}

#[test]
fn one_pool_serves_netdevs_of_several_namespaces() {
    let (Some(here), Some(there)) = (veth(1500), veth(1500)) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let mut cache = Cache::new(pool);
    for space in [&here, &there] {
        let (mut exchange, peer) = (open(space, pool).unwrap(), Nic::new(space, "peer"));
        let written = frame(100);
        send(&mut exchange, &mut cache.frame(&written, Offload::NONE).unwrap());
        assert_eq!(peer.take(), written);
    }
    drop(cache);
    assert_eq!(pool.free(), SLOTS);
}

#[test]
fn a_queue_that_was_closed_can_be_bound_again_soon() {
    let Some(space) = veth(1500) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    for _ in 0..10 {
        let exchange = reopen(&space, pool);
        assert_eq!(open(&space, pool).unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
        drop(exchange);
        assert_eq!(pool.free(), SLOTS);
    }
}

#[test]
fn a_netdev_that_is_set_down_or_goes_tells_when_it_is_kicked() {
    let Some(space) = veth(1500) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let mut cache = Cache::new(pool);
    let mut exchange = open(&space, pool).unwrap();
    space.ip("link set dev veth0 down");
    assert_eq!(send(&mut exchange, &mut cache.frame(&frame(60), Offload::NONE).unwrap()), Kick::Down);
    assert_eq!(exchange.unsent(), 1);
    space.ip("link del dev veth0");
    assert_eq!(exchange.kick(), Kick::Gone);
    drop(exchange);
    drop(cache);
    assert_eq!(pool.free(), SLOTS);
}

#[test]
fn what_is_not_there_cannot_be_bound() {
    let Some(space) = veth(1500) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let index = space.link("veth0").unwrap().index;
    for (index, queue, copying) in [(9999, 0, Copying::Copies), (index, 9, Copying::Copies), (index, 0, Copying::None)]
    {
        assert!(space.within(|| Exchange::open(pool, (index, queue), copying, 256, 64)).is_err());
    }
    assert_eq!(pool.free(), SLOTS);
}

/// A netdev without a carrier drops each frame, and the kernel does not say at once how many it has taken.
#[test]
fn a_frame_that_is_dropped_is_known_by_its_place_and_its_bytes() {
    let Some(space) = veth(9200) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let mut cache = Cache::new(pool);
    let mut exchange = open(&space, pool).unwrap();
    let peer = Nic::new(&space, "peer");
    let lens = [60, 9014, 100, 4000, 1514, 3000, 9014];
    for round in 0..100 {
        let carrier = round % 3 == 0;
        space.ip(&format!("link set dev peer {}", if carrier { "up" } else { "down" }));
        let first = exchange.position();
        for len in lens {
            assert!(exchange.send(&mut cache.frame(&frame(len), Offload::NONE).unwrap()));
        }
        exchange.flush();
        assert_eq!(exchange.unsent_frames(), lens.len() as u64);
        let mut dropped = Vec::new();
        while exchange.unsent() > 0 {
            match exchange.kick() {
                Kick::Dropped => dropped.push(exchange.dropped().unwrap()),
                kick => assert_eq!((kick, carrier), (Kick::Done, true)),
            }
        }
        let expected: Vec<u64> = lens.iter().map(|&len| len as u64).filter(|_| !carrier).collect();
        assert_eq!(dropped.iter().map(|dropped| dropped.bytes).collect::<Vec<_>>(), expected, "round {round}");
        assert!(dropped.iter().all(|dropped| dropped.is_since(first)));
        assert!(dropped.is_sorted_by(|one, next| next.is_since(one.position) && !one.is_since(next.position)));
        assert!(dropped.iter().all(|dropped| !dropped.is_since(exchange.position())));
        assert_eq!((exchange.dropped(), exchange.unsent_frames()), (None, 0));
        exchange.reap(&mut cache);
        let came = if carrier { lens.map(|_| peer.take().len()).to_vec() } else { Vec::new() };
        assert_eq!(came, if carrier { lens.to_vec() } else { Vec::new() });
    }
    drop((cache, exchange));
    assert_eq!(pool.free(), SLOTS);
}

/// What has been sent comes home while nothing else is to do, and before a sleep.
#[test]
fn slots_that_were_sent_come_home_without_another_send() {
    let Some(space) = veth(1500) else { return };
    let pool = Pool::new(SLOTS).unwrap();
    let mut exchange = open(&space, pool).unwrap();
    let idle = pool.free();
    for before_sleep in [false, true] {
        let mut cache = Cache::new(pool);
        assert_eq!(send(&mut exchange, &mut cache.frame(&frame(60), Offload::NONE).unwrap()), Kick::Done);
        drop(cache);
        await_that("the slot", || {
            let (mut cache, mut batch) = (Cache::new(pool), Batch::new());
            if before_sleep {
                exchange.prepare_sleep(&mut cache);
            } else {
                exchange.receive(&mut batch, &mut cache);
            }
            batch.clear(&mut cache);
            drop(cache);
            (pool.free() == idle).then_some(())
        });
    }
}

/// Without a slot left to the kernel no frame can come, and so nobody would be woken.
#[test]
fn whoever_sleeps_without_a_slot_for_frames_is_told() {
    let Some(space) = veth(1500) else { return };
    let pool = Pool::new(128).unwrap();
    let mut cache = Cache::new(pool);
    let mut all: Vec<Frame> = std::iter::from_fn(|| cache.frame(&[0; 60], Offload::NONE)).collect();
    let mut exchange = open(&space, pool).unwrap();
    assert!(!exchange.prepare_sleep(&mut cache), "all slots are in use");
    all.truncate(100);
    assert!(exchange.prepare_sleep(&mut cache), "some are free again");
    drop((all, exchange, cache));
    assert_eq!(pool.free(), 128);
}

#[test]
#[should_panic(expected = "slots of one pool")]
fn frames_of_another_pool_are_not_left_to_the_kernel() {
    let Some(space) = veth(1500) else { panic!("skipped: slots of one pool") };
    let (pool, other) = (Pool::new(SLOTS).unwrap(), Pool::new(16).unwrap());
    let mut exchange = open(&space, pool).unwrap();
    exchange.send(&mut Cache::new(other).frame(&frame(60), Offload::NONE).unwrap());
}

#[test]
#[should_panic(expected = "slots of one pool")]
fn slots_of_another_pool_are_not_left_to_the_kernel() {
    let Some(space) = veth(1500) else { panic!("skipped: slots of one pool") };
    let (pool, other) = (Pool::new(SLOTS).unwrap(), Pool::new(16).unwrap());
    let mut exchange = open(&space, pool).unwrap();
    exchange.receive(&mut Batch::new(), &mut Cache::new(other));
}
