//! Fairness: every `poll_once` serves all ports, however much one port sends; a port whose frames are all dropped is
//! polled less often. Needs nothing of the host.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use proptest::prelude::*;
use vifswitch::device::loopback::{Loopback, LoopbackCapacity, RxMemory};
use vifswitch::device::{Device, DeviceCaps};
use vifswitch::frame::{Batch, Magazine, TxBatch, TxStats};
use vifswitch::switch::DropReason;
use vifswitch::wire::{Mac, Offload};

use support::lab::{Lab, PortSpec, Setup, frame, mac};

/// Maximum frames per queue and `poll_once`.
const BURST: u64 = 64;

/// A device with a smaller burst or with receive moderation.
struct LimitedDevice {
    end: Loopback,
    /// Maximum frames per receive, as of taps.
    most: u64,
    /// Receive moderation interval, as of AF_XDP.
    moderation: Duration,
}

impl Device for LimitedDevice {
    fn receive(&mut self, batch: &mut Batch, magazine: &mut Magazine) -> io::Result<()> {
        while (batch.len() as u64) < self.most
            && let Some((frame, offload)) = self.end.take()
        {
            assert!(batch.push_bytes(&frame, offload, magazine), "the pool has free slots");
        }
        Ok(())
    }
    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        self.end.transmit(tx, batch, magazine)
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn max_burst(&self) -> usize {
        self.most as usize
    }
    fn moderation_time(&self) -> Duration {
        self.moderation
    }
    fn caps(&self) -> DeviceCaps {
        self.end.caps()
    }
}

/// A far shorter queue than in other labs: memory is allocated at first use, which takes long.
fn setup(memory: RxMemory) -> Setup {
    Setup { memory, capacity: LoopbackCapacity { blocks: 64, block_bytes: 1 << 15 }, ..Setup::default() }
}

/// What the loud port sends.
#[derive(Debug, Clone, Copy)]
enum Noise {
    Known,
    Unknown,
    Broadcast,
    /// Frames that are dropped at once.
    Bad,
    /// Frames whose destination is at the ingress port.
    Hairpin,
}

impl Noise {
    fn frame(self, len: usize) -> Vec<u8> {
        let (to, from) = match self {
            Noise::Known => (mac(1), mac(0)),
            Noise::Unknown => (mac(77), mac(0)),
            Noise::Broadcast => (Mac::BROADCAST, mac(0)),
            Noise::Bad => (mac(1), Mac::BROADCAST),
            Noise::Hairpin => (mac(0), mac(0)),
        };
        frame(to, from, 0x88b5, &vec![7; len])
    }
}

fn noise() -> impl Strategy<Value = Noise> {
    prop::sample::select(vec![Noise::Known, Noise::Unknown, Noise::Broadcast, Noise::Bad, Noise::Hairpin])
}

fn memory() -> impl Strategy<Value = RxMemory> {
    prop::sample::select(vec![RxMemory::Owned, RxMemory::Lent])
}

/// Puts frames into the loopback device of a port, as one burst.
fn put(lab: &mut Lab, port: usize, bytes: &[u8], frames: u64) {
    for _ in 0..frames {
        assert!(lab.ends[port].stage(bytes, Offload::NONE), "the loopback device has room");
    }
    lab.ends[port].publish();
}

const MODERATION: Duration = Duration::from_nanos(6_500);

/// Three ports. The first has receive moderation.
fn moderated_lab() -> Lab {
    let port_specs: Vec<_> = (0..3).map(|owner| PortSpec::new(0, owner)).collect();
    Lab::with_devices(setup(RxMemory::Owned), &port_specs, |port, end| {
        if port == 0 { Box::new(LimitedDevice { end, most: BURST, moderation: MODERATION }) } else { Box::new(end) }
    })
}

fn received(lab: &Lab, port: usize) -> u64 {
    lab.sum(port, |c| c.rx_frames.get())
}

proptest! {
    /// Port 0 always has more frames pending than a burst; ports 1 to 3 occasionally send one frame each to port 4.
    ///
    /// Shows: REQ-36
    #[test]
    fn a_port_at_line_rate_is_served_one_burst_per_poll(
        noise in noise(),
        memory in memory(),
        len in 0usize..200,
        polls in prop::collection::vec((0..=BURST, 0u8..8), 1..60),
    ) {
        let port_specs: Vec<_> = (0..5).map(|owner| PortSpec::new(0, owner)).collect();
        let mut lab = Lab::new(setup(memory), &port_specs);
        let (busy_port, mut sent) = (noise.frame(len), 0);
        for (number, (more, idle_port)) in (0u32..).zip(polls) {
            let before = received(&lab, 0);
            put(&mut lab, 0, &busy_port, BURST + more - (sent - before).min(BURST));
            sent += BURST + more - (sent - before).min(BURST);
            let ports: Vec<usize> = (1..4).filter(|port| idle_port & 1 << port != 0).collect();
            for &port in &ports {
                prop_assert!(lab.send(port, &frame(mac(4), mac(port), 0x88b5, &number.to_be_bytes())));
            }
            let skipped_before = lab.counters[0].polls_skipped.get();
            lab.step();
            let skipped = lab.counters[0].polls_skipped.get() - skipped_before;
            prop_assert_eq!(received(&lab, 0) - before, if skipped > 0 { 0 } else { BURST });
            prop_assert!(skipped == 0 || matches!(noise, Noise::Bad | Noise::Hairpin));
            let came: Vec<_> = lab.received(4).into_iter().filter(|bytes| bytes[6..12] != mac(0).octets()).collect();
            let expected: Vec<_> =
                ports.iter().map(|&port| frame(mac(4), mac(port), 0x88b5, &number.to_be_bytes())).collect();
            prop_assert_eq!(came, expected, "forwarded in the same poll_once");
            (0..4).for_each(|port| lab.ends[port].discard());
        }
        lab.settle();
        prop_assert_eq!(received(&lab, 0), sent, "all frames are received in the end");
        lab.check_counters();
        lab.end();
    }

    /// Drop back-off, burst by burst: only full bursts without a forwarded frame count, the fourth in a row starts
    /// the back-off, any other burst ends it.
    #[test]
    fn drop_backoff_polls_a_fully_dropped_port_less_often(
        bursts in prop::collection::vec(prop_oneof![
            20 => Just((true, None)),
            1 => (Just(true), (0..BURST).prop_map(Some)),
            1 => (Just(false), (0..BURST).prop_map(Some)),
        ], 1..60),
        most in prop_oneof![Just(BURST), 1..BURST],
        memory in memory(),
        trunk: bool,
    ) {
        let subport = if trunk { PortSpec::new(0, 0).subport_of(0, 5) } else { PortSpec::new(0, 0) };
        let mut lab = Lab::with_devices(setup(memory), &[PortSpec::new(0, 0), PortSpec::new(0, 1), subport], |port, end| {
            let moderation = Duration::ZERO;
            if port == 0 && most < BURST { Box::new(LimitedDevice { end, most, moderation }) } else { Box::new(end) }
        });
        let (dead, alive) = (Noise::Bad.frame(46), Noise::Known.frame(46));
        let (mut dropped_bursts, mut rest) = (0u32, 0);
        for (is_full, number) in bursts {
            let number = number.map(|number| number % most);
            let (frames, survivor) = if is_full { (most, number) } else { (number.unwrap_or_default(), None) };
            for number in 0..frames {
                let bytes = if survivor == Some(number) { &alive } else { &dead };
                prop_assert!(lab.ends[0].stage(bytes, Offload::NONE));
            }
            lab.ends[0].publish();
            let (before, skipped_before) = (received(&lab, 0), lab.counters[0].polls_skipped.get());
            for left in (0..rest).rev() {
                let work = lab.workers[0].poll_once(lab.now);
                prop_assert_eq!((work.done, work.skipped), (1, 1), "the worker skips the poll and does not sleep");
                prop_assert_eq!(received(&lab, 0), before, "{} to go", left);
            }
            prop_assert_eq!(lab.counters[0].polls_skipped.get(), skipped_before + rest);
            lab.step();
            prop_assert_eq!((received(&lab, 0), lab.counters[0].polls_skipped.get()), (before + frames, skipped_before + rest));
            dropped_bursts = if is_full && survivor.is_none() { dropped_bursts + 1 } else { 0 };
            rest = if dropped_bursts < 4 { 0 } else { (1 << (dropped_bursts - 3).min(4)) - 1 };
            prop_assert_eq!(lab.received(1).len(), usize::from(survivor.is_some()));
        }
        prop_assert_eq!(lab.total(|c| c.drops_in.total()), lab.drops_in(0, DropReason::BadSource));
        lab.check_counters();
        lab.end();
    }

    /// Port 0 has receive moderation, port 1 has not. Frames of port 0 wait for at most the moderation interval,
    /// frames of port 1 do not wait, and none is lost or reordered.
    #[test]
    fn receive_moderation_delays_one_port_by_at_most_its_interval(
        steps in prop::collection::vec((prop_oneof![9 => 0u64..3_000, 1 => 0u64..60_000], 0u8..4, any::<bool>()), 1..80),
    ) {
        let mut lab = moderated_lab();
        let numbered = |port: usize, number: u32| frame(mac(2), mac(port), 0x88b5, &number.to_be_bytes());
        let (mut number, mut waiting) = (0u32, Vec::new());
        // Starts with a rate that enables moderation.
        for (wait, frames, plain) in [(1_000, 1, false); 200].into_iter().chain(steps) {
            lab.advance(Duration::from_nanos(wait));
            for _ in 0..frames {
                waiting.push((lab.now, numbered(0, number)));
                prop_assert!(lab.send(0, &numbered(0, number)));
                number += 1;
            }
            if plain {
                prop_assert!(lab.send(1, &numbered(1, number)));
            }
            lab.step();
            let (theirs, here): (Vec<_>, Vec<_>) =
                lab.received(2).into_iter().partition(|bytes| bytes[6..12] == mac(1).octets());
            prop_assert_eq!(theirs.len(), usize::from(plain), "forwarded in the same poll_once");
            for bytes in here {
                prop_assert_eq!(bytes, waiting.remove(0).1);
            }
            prop_assert!(waiting.iter().all(|&(since, _)| lab.now < since + MODERATION));
        }
        lab.advance(MODERATION);
        lab.settle();
        prop_assert_eq!(lab.received(2), waiting.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>());
        lab.check_counters();
        lab.end();
    }
}

#[test]
fn receive_moderation_batches_frames_at_a_sustained_rate() {
    let mut lab = moderated_lab();
    let batches: Vec<usize> = (0..2000u32)
        .map(|number| {
            lab.advance(MODERATION / 5);
            assert!(lab.send(0, &frame(mac(2), mac(0), 0x88b5, &number.to_be_bytes())));
            lab.step();
            lab.received(2).len()
        })
        .filter(|&frames| frames > 0)
        .collect();
    assert!(batches.len() < 600 && batches.iter().sum::<usize>() >= 1995, "{batches:?}");
}

/// Each of 32 ports at one worker sends to a port at another one, in total many bursts: no frame stays in the ring
/// between the workers.
#[test]
fn frames_for_many_ports_of_another_worker_do_not_wait_in_the_ring() {
    const PORTS: usize = 32;
    let port_specs: Vec<_> = (0..2 * PORTS as u32).map(|owner| PortSpec::new(0, owner)).collect();
    for memory in [RxMemory::Owned, RxMemory::Lent] {
        let mut lab = Lab::new(Setup { workers: 2, slots: 8192, ..setup(memory) }, &port_specs);
        // Even ports are polled by worker 0, odd ports by worker 1.
        for round in 1..=40 {
            for port in 0..PORTS {
                let bytes = frame(mac(2 * port + 1), mac(2 * port), 0x88b5, &[7; 46]);
                put(&mut lab, 2 * port, &bytes, 16);
            }
            lab.step();
            lab.ends.iter_mut().for_each(Loopback::discard);
            for port in 0..PORTS {
                assert_eq!(lab.sum(2 * port + 1, |c| c.tx_frames.get()), round * 16, "to port {port}");
            }
        }
        assert_eq!(lab.total(|c| c.drops_out.total()), 0);
        lab.check_counters();
        lab.end();
    }
}
