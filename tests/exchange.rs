//! Slots that go to the kernel and come back, over AF_XDP sockets without any program: what is sent.
//! As root, in namespaces of their own.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

mod host;

use host::nic::{Nic, experiment};
use host::{Space, await_that};
use vifswitch::frame::{Cache, Copying, Exchange, Frame, Pool};
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
