//! Egress dressing: what a port cannot pass on is done to its frames before they leave. Checksums are
//! completed, super-frames divided. The segments of a super-frame keep a partial checksum where the port passes that on.
//!
//! It is done as a lane is sent off, and not as it is filled: until then a super-frame waits as one
//! frame, so that lanes stay as long as bursts are, and a flood borrows it for all its ports. What it
//! becomes is built and sent in stretches of a burst, the first of which has left again (and, of a device
//! that copies, given back its slots) before the next is built.

use super::mailbox::PortCounterTable;
use super::outbox::counters_of;
use crate::device::Device;
use crate::frame::{BURST, Batch, Frame, FrameRef, Magazine, Tail, TxBatch, TxStats};
use crate::switch::{DropReason, PortId};
use crate::wire::{Offload, OffloadSet, Segment, Segmenter};

/// A worker's room for frames that are about to leave.
#[derive(Debug)]
pub(super) struct SwOffload {
    output: TxBatch,
}

/// What was done to the frames of a lane, and what became of them.
#[derive(Debug, Default)]
struct SwOffloadStats {
    sent: TxStats,
    /// Super-frames that were divided.
    segmented: u64,
    /// Other frames whose checksum was completed.
    checksummed: u64,
    /// Frames that cannot be finished.
    unsupported: u64,
    /// Frames for which there was no slot.
    no_buffer: u64,
}

impl SwOffload {
    pub(super) fn new() -> SwOffload {
        SwOffload { output: TxBatch::with_capacity(BURST) }
    }

    /// Sends a lane by a device that takes no offload headers, and counts at `port` all but what was sent. The
    /// lane is empty afterwards. What is finished is `shortest` bytes long at least: a wire asks for that.
    #[inline(never)] // most lanes need none of it
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
            done: SwOffloadStats::default(),
        };
        for place in 0..tx.len() {
            let view = tx.frame(place, batch);
            if way.is_blocked() {
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

/// The way out, for one lane.
struct SwOffloadTx<'a> {
    device: &'a mut dyn Device,
    output: &'a mut TxBatch,
    shortest: u32,
    batch: &'a Batch,
    cache: &'a mut Magazine,
    /// Whether the device takes segments with partial checksums.
    keeps_partial_checksums: bool,
    done: SwOffloadStats,
}

impl SwOffloadTx<'_> {
    /// Whether the device had no room. Nothing more is built for it then, and nothing sent.
    fn is_blocked(&self) -> bool {
        self.done.sent.full > 0
    }

    /// Sends what is ready.
    fn send(&mut self) {
        if !self.output.is_empty() {
            self.done.sent += self.device.transmit(self.output, self.batch, self.cache);
        }
    }

    /// Sees to it that there is room for one more frame.
    fn make_room(&mut self) {
        if self.output.len() >= BURST {
            self.send();
        }
    }

    /// Finishes a frame: all that comes of it is made ready, or dies.
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

    /// Makes ready the frames, `count` of them, that come of one. How many there was room for.
    fn build_all<'b>(&mut self, work: &mut Segmenter<'b, Tail<'b>>, count: u64) -> u64 {
        let left = if self.keeps_partial_checksums { work.keep_partial_checksums() } else { Offload::NONE };
        let mut made = 0;
        while let Some(part) = work.next_segment() {
            self.make_room();
            if self.is_blocked() {
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
            // What is ready may have them.
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
        // What is so short lies in one piece.
        let (bytes, padding) =
            if len < shortest { subports.split_at_mut(len as usize) } else { (subports, &mut [][..]) };
        part.fill(bytes);
        padding.fill(0);
    })
}
