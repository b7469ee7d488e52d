//! A virtual cable in memory, for tests and benches: each of its two ends is a [`Device`] that can also send and
//! receive single frames by hand. No system calls.
//!
//! Frames are copied in and out, as kernel devices do. They travel in *chunks*: buffers of records, one per transmitted
//! burst. One ring carries filled chunks, another one returns them empty. A record is 16 bytes (frame length, offload
//! header) and the frame. Without a file descriptor, its worker never sleeps.

use std::convert::Infallible;
use std::io;
use std::os::fd::BorrowedFd;

use rtrb::{Consumer, Producer, RingBuffer};

use super::{Device, DeviceCaps};
use crate::frame::{Batch, Magazine, Tail, TxBatch, TxStats, TxStatus, copy};
use crate::wire::Offload;

const RECORD: usize = 16;

/// Capacity per direction.
#[derive(Debug, Clone, Copy)]
pub struct LoopbackCapacity {
    /// Number of chunks (bursts).
    pub blocks: usize,
    /// Size of a chunk in bytes; a frame takes its length plus 16.
    pub block_bytes: usize,
}

impl Default for LoopbackCapacity {
    fn default() -> LoopbackCapacity {
        LoopbackCapacity { blocks: 256, block_bytes: 1 << 17 }
    }
}

/// Memory of received frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxMemory {
    /// Slots of the pool, owned by the frames, as with AF_XDP.
    Owned,
    /// Receive buffers of the batch, borrowed for the burst, as with a tap.
    Lent,
}

impl RxMemory {
    /// Appends a frame to the batch. `false`: no slot available.
    #[inline(always)]
    fn deliver(self, frame: &[u8], offload: Offload, batch: &mut Batch, magazine: &mut Magazine) -> bool {
        match self {
            RxMemory::Owned => batch.push_bytes(frame, offload, magazine),
            RxMemory::Lent => batch
                .receive(true, |room| {
                    room[..Offload::LEN].copy_from_slice(&offload.write());
                    room[Offload::LEN..][..frame.len()].copy_from_slice(frame);
                    Ok::<_, Infallible>(Offload::LEN + frame.len())
                })
                .is_ok(),
        }
    }
}

/// A burst as consecutive records.
#[derive(Debug, Default)]
struct Chunk {
    bytes: Box<[u8]>,
    used: usize,
}

/// Writes a record at the start of `room` and advances `room`. `false`: not enough space.
#[inline(always)]
fn put(room: &mut &mut [u8], len: usize, offload: Offload, head: &[u8], tail: Option<Tail<'_>>) -> bool {
    if room.len() < RECORD + len {
        return false;
    }
    let (record, after) = std::mem::take(room).split_at_mut(RECORD + len);
    *room = after;
    let (word, csum_offset) = offload.words();
    let (first, record) = record.split_at_mut(8);
    first.copy_from_slice(&(len as u64 | u64::from(csum_offset) << 48).to_ne_bytes());
    let (second, place) = record.split_at_mut(8);
    second.copy_from_slice(&word.to_ne_bytes());
    match tail {
        None => copy(head, place),
        Some(tail) => copy_segments(place, head, tail),
    }
    true
}

#[cold]
fn copy_segments(room: &mut [u8], head: &[u8], tail: Tail<'_>) {
    let (mut room, rest) = room.split_at_mut(head.len());
    room.copy_from_slice(head);
    room = rest;
    for part in tail {
        let (now, rest) = room.split_at_mut(part.len());
        now.copy_from_slice(part);
        room = rest;
    }
}

/// Sending side of one direction.
#[derive(Debug)]
struct TxRing {
    full: Producer<Chunk>,
    empty: Consumer<Chunk>,
    /// Chunk being filled; without memory if none is free.
    block: Chunk,
    block_bytes: usize,
}

impl TxRing {
    /// Gets a free chunk to fill, if there is one.
    #[inline(always)]
    fn open(&mut self) {
        if self.block.bytes.is_empty() {
            self.next();
        }
    }

    #[inline]
    fn next(&mut self) {
        let Ok(block) = self.empty.pop() else { return };
        self.block = block;
        if self.block.bytes.is_empty() {
            self.allocate();
        }
    }

    /// A chunk gets its memory when it is first used: most cables carry few bursts.
    #[cold]
    fn allocate(&mut self) {
        self.block.bytes = vec![0; self.block_bytes].into_boxed_slice();
    }

    /// Lets `f` write records into the current chunk, if there is one.
    #[inline(always)]
    fn fill<T>(&mut self, f: impl FnOnce(&mut &mut [u8]) -> T) -> T {
        self.open();
        let Chunk { bytes, used } = &mut self.block;
        let size = bytes.len();
        let mut room = &mut bytes[*used..];
        let done = f(&mut room);
        *used = size - room.len();
        done
    }

    /// Sends the current chunk.
    #[inline(always)]
    fn publish(&mut self) {
        if self.block.used > 0 {
            // Never full: it has a place for each chunk.
            let _ = self.full.push(std::mem::take(&mut self.block));
        }
    }
}

/// Receiving side of one direction.
#[derive(Debug)]
struct RxRing {
    full: Consumer<Chunk>,
    empty: Producer<Chunk>,
    /// Chunk being read, and the offset of the next record.
    block: Chunk,
    read: usize,
}

impl RxRing {
    /// Unread bytes of the current chunk.
    #[inline(always)]
    fn rest(&self) -> &[u8] {
        self.block.bytes.get(self.read..self.block.used).unwrap_or_default()
    }

    /// The next record, and the offset after it.
    #[inline(always)]
    fn next(&self) -> Option<(&[u8], Offload, usize)> {
        let rest = self.rest();
        let (frame, offload, after) = record(rest)?;
        Some((frame, offload, self.read + rest.len() - after.len()))
    }

    /// Advances to the next chunk if the current one is read. Whether a record is available.
    #[inline(always)]
    fn refill(&mut self) -> bool {
        self.read < self.block.used || self.swap()
    }

    #[inline]
    fn swap(&mut self) -> bool {
        if self.block.used > 0 {
            let read = std::mem::take(&mut self.block);
            // Never full: it has a place for each chunk.
            let _ = self.empty.push(Chunk { used: 0, ..read });
        }
        self.read = 0;
        match self.full.pop() {
            Ok(next) => self.block = next,
            Err(_) => return false,
        }
        true
    }
}

/// The record at the start of `bytes`, and the bytes after it.
#[inline(always)]
fn record(bytes: &[u8]) -> Option<(&[u8], Offload, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<RECORD>()?;
    let (first, word) = (u64::from_ne_bytes(*head.first_chunk()?), u64::from_ne_bytes(*head.last_chunk()?));
    #[allow(clippy::cast_possible_truncation)] // splits the word
    let (len, csum_offset) = (first as u32 as usize, (first >> 48) as u16);
    let (frame, after) = rest.split_at_checked(len)?;
    Some((frame, Offload::from_words(word, csum_offset), after))
}

fn ring(capacity: LoopbackCapacity) -> (TxRing, RxRing) {
    let (full, full_there) = RingBuffer::new(capacity.blocks);
    let (mut empty_there, empty) = RingBuffer::new(capacity.blocks);
    for _ in 0..capacity.blocks {
        let _ = empty_there.push(Chunk::default());
    }
    (
        TxRing { full, empty, block: Chunk::default(), block_bytes: capacity.block_bytes },
        RxRing { full: full_there, empty: empty_there, block: Chunk::default(), read: 0 },
    )
}

/// One end of a cable.
#[derive(Debug)]
pub struct Loopback {
    tx: TxRing,
    rx: RxRing,
    memory: RxMemory,
    caps: DeviceCaps,
}

/// Creates a cable. Both ends support offloads and receive into slots.
pub fn loopback(capacity: LoopbackCapacity) -> (Loopback, Loopback) {
    let (here_out, there_in) = ring(capacity);
    let (there_out, here_in) = ring(capacity);
    let end = |tx, rx| Loopback { tx, rx, memory: RxMemory::Owned, caps: DeviceCaps { offloads: true } };
    (end(here_out, here_in), end(there_out, there_in))
}

impl Loopback {
    /// Sets the memory of received frames.
    pub fn with_memory(self, memory: RxMemory) -> Loopback {
        Loopback { memory, ..self }
    }

    /// Enables or disables offloads on transmit.
    pub fn with_offloads(self, offloads: bool) -> Loopback {
        Loopback { caps: DeviceCaps { offloads }, ..self }
    }

    /// Sends one frame as a burst. `false`: no space.
    pub fn send(&mut self, frame: &[u8], offload: Offload) -> bool {
        let done = self.stage(frame, offload);
        self.publish();
        done
    }

    /// Adds a frame to the burst that [`Loopback::publish`] sends. `false`: no space.
    pub fn stage(&mut self, frame: &[u8], offload: Offload) -> bool {
        self.tx.fill(|room| put(room, frame.len(), offload, frame, None))
    }

    /// Sends the staged burst.
    pub fn publish(&mut self) {
        self.tx.publish();
    }

    /// Takes the next received frame.
    pub fn take(&mut self) -> Option<(Vec<u8>, Offload)> {
        if !self.rx.refill() {
            return None;
        }
        let (frame, offload, read) = self.rx.next()?;
        let taken = (frame.to_vec(), offload);
        self.rx.read = read;
        Some(taken)
    }

    /// Discards all received frames.
    pub fn discard(&mut self) {
        while self.rx.refill() {
            self.rx.read = self.rx.block.used;
        }
    }
}

impl Device for Loopback {
    fn receive(&mut self, batch: &mut Batch, magazine: &mut Magazine) -> io::Result<()> {
        while !batch.is_full() && self.rx.refill() {
            while let Some((frame, offload, read)) = self.rx.next() {
                // Without a free slot the frame stays in the cable, as in a ring of the kernel.
                if batch.is_full() || !self.memory.deliver(frame, offload, batch, magazine) {
                    return Ok(());
                }
                self.rx.read = read;
            }
        }
        Ok(())
    }

    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        let sent = self.tx.fill(|room| {
            tx.send_each(batch, magazine, |frame| {
                let tail = (!frame.is_contiguous()).then(|| frame.tail());
                match put(room, frame.frame.len() as usize, frame.frame.offload(), frame.head, tail) {
                    true => TxStatus::Sent,
                    false => TxStatus::Full,
                }
            })
        });
        self.tx.publish();
        sent
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn caps(&self) -> DeviceCaps {
        self.caps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_pass_unmodified(lens in proptest::collection::vec(0usize..9300, 1..40), lent: bool) {
            let pool = Pool::new(512).unwrap();
            let mut magazine = Magazine::new(pool);
            let mut batch = Batch::new();
            let memory = if lent { RxMemory::Lent } else { RxMemory::Owned };
            let (end, mut far) = loopback(LoopbackCapacity { blocks: 2, block_bytes: 10_000 });
            let mut end = end.with_memory(memory);
            let mut tx = TxBatch::with_capacity(64);
            for (i, &len) in lens.iter().enumerate() {
                let frame: Vec<u8> = (0..len).map(|b| (b + i) as u8).collect();
                prop_assert!(far.send(&frame, Offload::NONE));
                end.receive(&mut batch, &mut magazine).unwrap();
                prop_assert_eq!(batch.len(), 1);
                prop_assert_eq!(batch.frame_ref(0).to_vec(), &frame[..]);
                match batch.take(0) { Some(frame) => tx.push(frame), None => tx.borrow(0) }
                let sent = end.transmit(&mut tx, &batch, &mut magazine);
                prop_assert_eq!((sent.frames, sent.bytes), (1, len as u64));
                batch.clear(&mut magazine);
                prop_assert_eq!(far.take().unwrap().0, frame);
            }
            drop(magazine);
            prop_assert_eq!(pool.free(), 512);
        }
    }

    #[test]
    fn a_full_device_is_reported() {
        let (mut end, mut far) = loopback(LoopbackCapacity { blocks: 1, block_bytes: 200 });
        assert!(!end.send(&[0; 200], Offload::NONE), "a frame that no block can hold");
        assert!(end.stage(&[1; 100], Offload::NONE));
        assert!(!end.stage(&[2; 100], Offload::NONE), "the block is full");
        end.publish();
        assert!(!end.send(&[3; 100], Offload::NONE), "there is no other block");
        assert_eq!(far.take().unwrap().0, [1; 100]);
        assert!(far.take().is_none());
        assert!(end.send(&[4; 100], Offload::NONE));
        assert_eq!(far.take().unwrap().0, [4; 100]);
    }
}
