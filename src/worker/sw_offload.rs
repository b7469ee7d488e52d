//! Software offload at egress: completes checksums and segments GSO packets that a port does not take. Segments
//! keep a partial checksum where the port takes one.
//!
//! Runs when a TX batch is flushed, not when it is filled: until then a GSO packet is one frame, so that TX batches
//! stay as short as bursts and a flood shares the frame between its ports. Segments are built and transmitted in
//! chunks of `BURST`: a device that copies frees the slots of one chunk before the next is built.

use super::port_counters::{PortCounterTable, counters_of};
use crate::device::Device;
use crate::frame::{BURST, Batch, Frame, FrameRef, Magazine, Tail, TxBatch, TxStats};
use crate::switch::{DropReason, PortId};
use crate::wire::{Offload, OffloadSet, Segment, Segmenter};

/// A worker's buffer for built frames.
#[derive(Debug)]
pub(super) struct SwOffload {
    output: TxBatch,
}

/// Statistics of one flushed TX batch.
#[derive(Debug, Default)]
struct SwOffloadStats {
    sent: TxStats,
    /// GSO packets segmented.
    segmented: u64,
    /// Frames whose checksum was completed, GSO packets excluded.
    checksummed: u64,
    /// Frames whose offload request is unsupported.
    unsupported: u64,
    /// Frames dropped for lack of a slot.
    no_buffer: u64,
}

impl SwOffload {
    pub(super) fn new() -> SwOffload {
        SwOffload { output: TxBatch::with_capacity(BURST) }
    }

    /// Transmits `tx` by a device that lacks offloads, and counts at `port` everything except the transmitted
    /// frames, which it returns. Empties `tx`. Pads built frames to `shortest` bytes, the minimum of a wire.
    #[inline(never)] // rare
    #[allow(clippy::too_many_arguments)] // the parts of a worker that it needs
    pub(super) fn send(
        &mut self,
        device: &mut dyn Device,
        port: PortId,
        shortest: u32,
        tx: &mut TxBatch,
        batch: &Batch,
        magazine: &mut Magazine,
        port_counters: &PortCounterTable,
    ) -> TxStats {
        let takes = device.offload_set();
        let keeps_partial_checksums = takes.has(OffloadSet::CSUM);
        let output = &mut self.output;
        let mut way = SwOffloadTx {
            device,
            output,
            shortest,
            batch,
            cache: magazine,
            keeps_partial_checksums,
            is_blocked: false,
            done: SwOffloadStats::default(),
        };
        for place in 0..tx.len() {
            let view = tx.frame(place, batch);
            if way.is_blocked {
                way.done.sent.full += view.frame.count();
            } else if !view.is_supported_by(takes) {
                way.finish(&view);
            } else {
                way.make_room();
                tx.move_to(place, way.output);
            }
        }
        way.send();
        tx.clear(way.cache);
        let done = way.done;
        if let Some(counters) = counters_of(port_counters, port) {
            counters.segmented.add(done.segmented);
            counters.checksummed.add(done.checksummed);
            counters.drops_out.add(DropReason::OffloadUnsupported, done.unsupported);
            counters.drops_out.add(DropReason::NoBuffer, done.no_buffer);
        }
        done.sent
    }
}

/// State for one TX batch.
struct SwOffloadTx<'a> {
    device: &'a mut dyn Device,
    output: &'a mut TxBatch,
    shortest: u32,
    batch: &'a Batch,
    cache: &'a mut Magazine,
    /// Whether the device takes segments with partial checksums.
    keeps_partial_checksums: bool,
    /// Whether the device had no room for any frame of a chunk. Then nothing more is built or transmitted.
    is_blocked: bool,
    done: SwOffloadStats,
}

impl SwOffloadTx<'_> {
    /// Transmits the built frames.
    fn send(&mut self) {
        if !self.output.is_empty() {
            let sent = self.device.transmit(self.output, self.batch, self.cache);
            // A device that had no room for one frame may have room for those after it.
            self.is_blocked |= sent.full > 0 && sent.frames == 0;
            self.done.sent += sent;
        }
    }

    /// Makes room for one more frame.
    fn make_room(&mut self) {
        if self.output.len() >= BURST {
            self.send();
        }
    }

    /// Completes a frame: builds all resulting frames or drops it.
    fn finish(&mut self, view: &FrameRef<'_>) {
        let count = view.frame.count();
        match Segmenter::new(view.head, view.tail(), view.frame.len(), view.frame.offload()) {
            Ok(mut work) => {
                let made = self.build_all(&mut work, count);
                let done = u64::from(made > 0);
                match work.is_segmentation() {
                    true => self.done.segmented += done,
                    false => self.done.checksummed += done,
                }
            }
            Err(_) => self.done.unsupported += count,
        }
    }

    /// Builds the `count` frames that result from one. Returns how many were built.
    fn build_all<'b>(&mut self, work: &mut Segmenter<'b, Tail<'b>>, count: u64) -> u64 {
        let left = if self.keeps_partial_checksums { work.keep_partial_checksums() } else { Offload::NONE };
        let mut made = 0;
        while let Some(part) = work.next_segment() {
            self.make_room();
            if self.is_blocked {
                self.done.sent.full += count - made;
                return made;
            }
            let Some(frame) = self.build(part, left) else {
                self.done.no_buffer += count - made;
                return made;
            };
            self.output.push(frame);
            made += 1;
        }
        debug_assert_eq!(made, count, "a super-frame counts as what it becomes");
        made
    }

    fn build<'b>(&mut self, part: Segment<'_, 'b, Tail<'b>>, left: Offload) -> Option<Frame> {
        build(self.cache, self.shortest, part.clone(), left).or_else(|| {
            // Transmitting the built frames may free slots.
            self.send();
            build(self.cache, self.shortest, part, left)
        })
    }
}

#[inline]
fn build<'b>(
    magazine: &mut Magazine,
    shortest: u32,
    mut part: Segment<'_, 'b, Tail<'b>>,
    left: Offload,
) -> Option<Frame> {
    let len = part.len();
    magazine.build(len.max(shortest), left, |subports| {
        // A frame shorter than the minimum is contiguous.
        let (bytes, padding) =
            if len < shortest { subports.split_at_mut(len as usize) } else { (subports, &mut [][..]) };
        part.fill(bytes);
        padding.fill(0);
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::BorrowedFd;

    use super::*;
    use crate::device::DeviceCaps;
    use crate::frame::{Pool, TxStatus};

    /// Has no room for some of the frames that it gets, by number.
    struct Narrow(std::ops::Range<u64>, u64);

    impl Device for Narrow {
        fn receive(&mut self, _: &mut Batch, _: &mut Magazine) -> io::Result<()> {
            Ok(())
        }

        fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
            tx.send_each(batch, magazine, |_| {
                self.1 += 1;
                if self.0.contains(&(self.1 - 1)) { TxStatus::NoRoom } else { TxStatus::Sent }
            })
        }

        fn fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        fn caps(&self) -> DeviceCaps {
            DeviceCaps { offloads: false }
        }
    }

    /// Sends 200 frames that need a checksum to a device without room for some of them: sent, dropped for lack of room,
    /// and how many it got.
    fn send_200(no_room: std::ops::Range<u64>) -> (u64, u64, u64) {
        let pool = Pool::new(512).unwrap();
        let mut magazine = Magazine::new(pool);
        let partial = Offload::read(&[1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0]);
        let (batch, mut tx, mut device) = (Batch::new(), TxBatch::with_capacity(200), Narrow(no_room, 0));
        (0..200).for_each(|_| tx.push(magazine.frame(&[0; 60], partial).unwrap()));
        let port = PortId::default();
        let sent =
            SwOffload::new().send(&mut device, port, 0, &mut tx, &batch, &mut magazine, &PortCounterTable::new());
        drop(magazine);
        assert_eq!(pool.free(), 512);
        (sent.frames, sent.full, device.1)
    }

    #[test]
    fn a_device_without_room_for_one_frame_gets_those_after_it() {
        assert_eq!(send_200(10..11), (199, 1, 200));
        assert_eq!(send_200(63..64), (199, 1, 200));
        assert_eq!(send_200(60..70), (190, 10, 200));
    }

    #[test]
    fn a_device_without_room_for_a_whole_chunk_gets_no_more() {
        let chunk = BURST as u64;
        assert_eq!(send_200(0..u64::MAX), (0, 200, chunk));
        assert_eq!(send_200(10..u64::MAX), (10, 190, 2 * chunk));
    }
}
