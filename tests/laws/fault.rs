//! A loopback device with deterministic faults: lost frames, full transmits, a device that disappears. Tests use it
//! to check handling and counting of device errors.
//!
//! The same seed gives the same faults in the same order.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vifswitch::device::loopback::{Loopback, LoopbackCapacity, RxMemory, loopback};
use vifswitch::device::{Device, DeviceCaps};
use vifswitch::frame::{Batch, Magazine, Pool, TxBatch, TxStats, TxStatus};
use vifswitch::wire::Offload;

/// Rates of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Seed of the generator.
    pub seed: u64,
    /// Lost received frames, in per mille.
    pub loss: u32,
    /// Calls to transmit that accept no frame, in per mille.
    pub full: u32,
    /// Number of successful receives after which the device is gone.
    pub die_after: Option<u64>,
}

/// A loopback device with faults.
#[derive(Debug)]
pub struct Fault {
    device: Loopback,
    faults: Faults,
    state: u64,
    calls: u64,
    lost: Arc<AtomicU64>,
    /// Frames received from `device`; those from `next` on are pending.
    inbox: Batch,
    next: usize,
}

impl Fault {
    /// Wraps `device`.
    pub fn new(device: Loopback, faults: Faults) -> Fault {
        Fault { device, faults, state: faults.seed, calls: 0, lost: Arc::default(), inbox: Batch::new(), next: 0 }
    }

    /// Frames lost so far. The counter outlives the device.
    pub fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): true with probability `permille`/1000.
    fn chance(&mut self, permille: u32) -> bool {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 1000 < u64::from(permille)
    }

    fn is_dead(&self) -> bool {
        self.faults.die_after.is_some_and(|calls| self.calls > calls)
    }

    /// Moves the next frame of the inbox on, in its kind of memory.
    fn forward_next(&mut self, batch: &mut Batch) {
        let index = self.next;
        self.next += 1;
        if self.chance(self.faults.loss) {
            self.lost.fetch_add(self.inbox.frame(index).count(), Ordering::Relaxed);
        } else if let Some(frame) = self.inbox.take(index) {
            batch.push(frame);
        } else {
            let view = self.inbox.frame_ref(index);
            let received = batch.receive::<std::convert::Infallible>(true, |room| {
                let (header, rest) = room.split_at_mut(Offload::LEN);
                header.copy_from_slice(&view.frame.offload().write());
                rest[..view.head.len()].copy_from_slice(view.head);
                Ok(Offload::LEN + view.head.len())
            });
            let Ok(()) = received;
        }
    }
}

impl Device for Fault {
    fn receive(&mut self, batch: &mut Batch, magazine: &mut Magazine) -> io::Result<()> {
        self.calls += 1;
        if self.is_dead() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        while !batch.is_full() {
            if self.next == self.inbox.len() {
                self.inbox.clear(magazine);
                self.next = 0;
                self.device.release();
                self.device.receive(&mut self.inbox, magazine)?;
                if self.inbox.is_empty() {
                    break;
                }
            }
            self.forward_next(batch);
        }
        Ok(())
    }

    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        if self.is_dead() {
            return tx.send_each(batch, magazine, |_| TxStatus::LinkDown);
        }
        if self.chance(self.faults.full) {
            return tx.send_each(batch, magazine, |_| TxStatus::Full);
        }
        self.device.transmit(tx, batch, magazine)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.fd()
    }

    fn caps(&self) -> DeviceCaps {
        self.device.caps()
    }
}

/// Sends 1000 frames. Returns the received ones, the number of lost ones, and the free slots afterwards.
fn run(memory: RxMemory, faults: Faults) -> (Vec<u32>, u64) {
    let pool = Pool::new(2048).unwrap();
    let mut magazine = Magazine::new(pool);
    let (end, mut far) = loopback(LoopbackCapacity { blocks: 2048, ..LoopbackCapacity::default() });
    let mut device = Fault::new(end.with_memory(memory), faults);
    let lost = device.lost();
    let (mut batch, mut seen) = (Batch::new(), Vec::new());
    for i in 0..1000u32 {
        assert!(far.send(&[&i.to_be_bytes()[..], &[7; 60]].concat(), Offload::NONE));
    }
    loop {
        device.receive(&mut batch, &mut magazine).unwrap();
        if batch.is_empty() {
            break;
        }
        seen.extend((0..batch.len()).map(|i| u32::from_be_bytes(*batch.head(i).first_chunk().unwrap())));
        batch.clear(&mut magazine);
        device.release();
    }
    drop((device, magazine));
    assert_eq!(pool.free(), 2048, "slots of lost frames are freed");
    (seen, lost.load(Ordering::Relaxed))
}

#[test]
fn lost_frames_are_counted() {
    for memory in [RxMemory::Owned, RxMemory::Lent] {
        let (seen, lost) = run(memory, Faults { seed: 5, loss: 300, ..Faults::default() });
        assert_eq!(seen.len() as u64 + lost, 1000);
        assert!((200..400).contains(&lost), "{lost}");
        assert!(seen.is_sorted(), "frames are not reordered");
        assert_eq!(run(memory, Faults { seed: 5, loss: 300, ..Faults::default() }), (seen, lost));
        assert_eq!(run(memory, Faults::default()).1, 0);
    }
}

#[test]
fn a_full_device_reports_full_and_a_gone_one_reports_down() {
    let pool = Pool::new(64).unwrap();
    let mut magazine = Magazine::new(pool);
    let (end, _far) = loopback(LoopbackCapacity::default());
    let mut device = Fault::new(end, Faults { full: 1000, die_after: Some(2), ..Faults::default() });
    let (mut batch, mut tx) = (Batch::new(), TxBatch::with_capacity(8));
    let mut transmit = |device: &mut Fault, magazine: &mut Magazine, batch: &Batch| {
        tx.push(magazine.frame(&[1; 60], Offload::NONE).unwrap());
        device.transmit(&mut tx, batch, magazine)
    };
    assert_eq!(transmit(&mut device, &mut magazine, &batch), TxStats { full: 1, ..TxStats::default() });
    device.receive(&mut batch, &mut magazine).unwrap();
    device.receive(&mut batch, &mut magazine).unwrap();
    assert!(device.receive(&mut batch, &mut magazine).is_err());
    assert!(device.receive(&mut batch, &mut magazine).is_err(), "a device that is gone stays gone");
    assert_eq!(transmit(&mut device, &mut magazine, &batch), TxStats { link_down: 1, ..TxStats::default() });
    drop((device, magazine));
    assert_eq!(pool.free(), 64);
}
