//! Egress dressing: what a port cannot pass on is done to its frames before they leave. Checksums are
//! completed, super-frames divided.
//!
//! It is done as a lane is sent off, and not as it is filled: until then a super-frame waits as one
//! frame, so that lanes stay as long as bursts are, and a flood borrows it for all its ports. What it
//! becomes is built and sent in stretches of a burst, the first of which has left again (and, of a device
//! that copies, given back its slots) before the next is built.

use crate::device::Device;
use crate::frame::{BURST, Batch, Cache, Frame, Lane, Sent, Tail, View};
use crate::switch::DropReason;
use crate::telemetry::PortCounters;
use crate::wire::{Finished, Finishing, Offload};

/// A worker's room for frames that are about to leave.
#[derive(Debug)]
pub(super) struct Dressing {
    ready: Lane,
}

/// What became of a lane with frames to be finished.
#[derive(Debug, Default)]
pub(super) struct Dressed {
    /// Of its frames, and of those that others became.
    pub(super) sent: Sent,
    /// Super-frames that were divided.
    segmented: u64,
    /// Other frames whose checksum was completed.
    checksummed: u64,
    /// Frames that cannot be finished.
    unsupported: u64,
    /// Frames for which there was no slot.
    no_buffer: u64,
}

impl Dressed {
    /// Counts what was done, but for what was sent.
    pub(super) fn enter_into(&self, book: &PortCounters) {
        book.segmented.add(self.segmented);
        book.checksummed.add(self.checksummed);
        book.drops_out.add(DropReason::OffloadUnsupported, self.unsupported);
        book.drops_out.add(DropReason::NoBuffer, self.no_buffer);
    }
}

impl Dressing {
    pub(super) fn new() -> Dressing {
        Dressing { ready: Lane::with_capacity(BURST) }
    }

    /// Sends a lane by a device that takes no offload headers. The lane is empty afterwards.
    #[inline(never)] // most lanes need none of it
    pub(super) fn send_off(
        &mut self,
        device: &mut dyn Device,
        lane: &mut Lane,
        batch: &Batch,
        cache: &mut Cache,
    ) -> Dressed {
        let mut way = Way { device, ready: &mut self.ready, batch, cache, done: Dressed::default() };
        for place in 0..lane.len() {
            let view = lane.view(place, batch);
            if way.is_blocked() {
                way.done.sent.full += view.frame.count();
            } else if view.frame.offload().is_pending() {
                way.finish(&view);
            } else {
                way.make_room();
                lane.pass_on(place, way.ready);
            }
        }
        way.send();
        lane.clear(way.cache);
        way.done
    }
}

/// The way out, for one lane.
struct Way<'a> {
    device: &'a mut dyn Device,
    ready: &'a mut Lane,
    batch: &'a Batch,
    cache: &'a mut Cache,
    done: Dressed,
}

impl Way<'_> {
    /// Whether the device had no room: nothing more is built for it, and nothing overtakes.
    fn is_blocked(&self) -> bool {
        self.done.sent.full > 0
    }

    /// Sends what is ready.
    fn send(&mut self) {
        if !self.ready.is_empty() {
            self.done.sent += self.device.transmit(self.ready, self.batch, self.cache);
        }
    }

    /// Sees to it that there is room for one more frame.
    fn make_room(&mut self) {
        if self.ready.len() >= BURST {
            self.send();
        }
    }

    /// Finishes a frame: all that comes of it is made ready, or dies.
    fn finish(&mut self, view: &View<'_>) {
        let mut left = view.frame.count();
        let work = Finishing::new(view.head, view.tail(), view.frame.len(), view.frame.offload());
        let Ok(mut work) = work else {
            self.done.unsupported += left;
            return;
        };
        if work.is_division() {
            self.done.segmented += 1;
        } else {
            self.done.checksummed += 1;
        }
        while let Some(part) = work.finish_next() {
            self.make_room();
            if self.is_blocked() {
                self.done.sent.full += left;
                return;
            }
            let Some(frame) = self.build(part) else {
                self.done.no_buffer += left;
                return;
            };
            self.ready.push(frame);
            left -= 1;
        }
        debug_assert_eq!(left, 0, "a super-frame counts as what it becomes");
    }

    fn build<'b>(&mut self, part: Finished<'_, 'b, Tail<'b>>) -> Option<Frame> {
        build(self.cache, part.clone()).or_else(|| {
            // What is ready may have them.
            self.send();
            build(self.cache, part)
        })
    }
}

fn build<'b>(cache: &mut Cache, mut part: Finished<'_, 'b, Tail<'b>>) -> Option<Frame> {
    cache.build(part.len(), Offload::NONE, |room| part.fill(room))
}
