//! Making frames: where their bytes go in slots.

use super::super::copy;
use super::super::pool::{NONE, Pool, SLOT, SlotMemory};
use super::{Frame, Storage};
use crate::wire::Offload;

const SLOT_BYTES: u32 = SLOT as u32;

/// Bytes left free in front of a frame in its first slot: room for an offload header or a tag.
const FRONT: u16 = 128;

/// Bytes that one slot takes, whichever it is.
pub(super) const SMALL: usize = SLOT - FRONT as usize - 64 * 15;

/// Where the first byte of a frame goes in slot `slot`. Slots are a page apart, so that without
/// this the headers of a whole burst would compete for one set of the processor's cache.
const fn front(slot: u32) -> u16 {
    FRONT + 64 * (slot & 15) as u16
}

/// The bytes of a frame to be made, as most are: they fit in any slot, and nothing is left to be done to them.
#[derive(Debug, Clone, Copy)]
pub struct Small<'a> {
    bytes: &'a [u8],
    offload: Offload,
}

impl<'a> Small<'a> {
    /// These bytes, with this offload header; `None` if they are no such frame.
    #[inline(always)]
    pub fn new(bytes: &'a [u8], offload: Offload) -> Option<Small<'a>> {
        (bytes.len() <= SMALL && !offload.needs_offload()).then_some(Small { bytes, offload })
    }
}

impl Frame {
    /// A frame in the slots that `slot` hands out, `len` bytes long; `None` when they run out.
    /// `fill` writes the bytes, segment by segment in order.
    #[inline(always)]
    pub(in crate::frame) fn build(
        pool: &'static Pool,
        mut slot: impl FnMut() -> Option<u32>,
        len: u32,
        offload: Offload,
        mut fill: impl FnMut(&mut [u8]),
    ) -> Option<Frame> {
        let at = slot()?;
        let start = front(at);
        let head = len.min(SLOT_BYTES - u32::from(start));
        let storage = Storage::Slot;
        let mut frame = Frame::new(Some(pool), at, start, len, offload, storage);
        // SAFETY: slot `at` was handed to this frame, which nobody else has yet; head is at most
        // what the slot has behind start.
        fill(unsafe { pool.bytes_mut(at, start, head as u16) });
        if len > head && !frame.lengthen(pool, slot, fill) {
            return None;
        }
        if offload.needs_offload() {
            if len == head {
                frame.become_chain(pool);
            }
            frame.validate(None);
        }
        Some(frame)
    }

    /// A frame with these bytes in a slot that the caller hands over, of a pool whose slots are there.
    #[inline(always)]
    pub(in crate::frame) fn small(
        pool: &'static Pool,
        room: SlotMemory,
        at: u32,
        Small { bytes, offload }: Small<'_>,
    ) -> Frame {
        let (start, len) = (front(at), bytes.len() as u32);
        // SAFETY: the slot was handed over, and nobody else has it; behind start it has room for as many
        // bytes as a small frame has at most.
        copy(bytes, unsafe { room.bytes_mut(at, start, len as u16) });
        Frame::new(Some(pool), at, start, len, offload, Storage::Slot)
    }

    /// Adds the segments behind the first. If slots run out, the frame has those it got.
    #[cold]
    fn lengthen(
        &mut self,
        pool: &'static Pool,
        mut slot: impl FnMut() -> Option<u32>,
        mut fill: impl FnMut(&mut [u8]),
    ) -> bool {
        let head = SLOT_BYTES - u32::from(self.start);
        let (mut left, mut last) = (self.len - head, self.at);
        self.len = head;
        self.become_chain(pool);
        self.len += left;
        while left > 0 {
            let Some(at) = slot() else { return false };
            pool.link(at, NONE);
            pool.link(last, at);
            let part = left.min(SLOT_BYTES);
            // SAFETY: slot `at` was handed to this frame, which nobody else has yet; part is at
            // most a slot.
            fill(unsafe { pool.bytes_mut(at, 0, part as u16) });
            pool.set_extent(at, 0, part as u16);
            (left, last) = (left - part, at);
        }
        true
    }

    /// Notes where the first segment ends, so that others can stand behind it. There are none yet.
    fn become_chain(&mut self, pool: &Pool) {
        pool.link(self.at, NONE);
        pool.set_extent(self.at, self.start, self.len as u16);
        self.storage = Storage::Chain;
    }

    /// A frame in a slot that the kernel has written and the caller hands over: `len` bytes from
    /// `start` on, which lie within it.
    #[inline(always)]
    pub(in crate::frame) fn received(pool: &'static Pool, at: u32, start: u16, len: u16) -> Frame {
        debug_assert!(usize::from(start) + usize::from(len) <= SLOT);
        Frame::new(Some(pool), at, start, u32::from(len), Offload::NONE, Storage::Slot)
    }

    /// Adds a segment in a slot that the kernel has written and the caller hands over, behind slot
    /// `last`, which is the last one so far.
    #[cold]
    pub(in crate::frame) fn append(&mut self, pool: &Pool, last: u32, at: u32, start: u16, len: u16) {
        debug_assert!(usize::from(start) + usize::from(len) <= SLOT);
        if self.storage == Storage::Slot {
            self.become_chain(pool);
        }
        pool.set_extent(at, start, len);
        pool.link(at, NONE);
        pool.link(last, at);
        self.len += u32::from(len);
    }
}
