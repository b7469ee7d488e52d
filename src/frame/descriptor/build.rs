//! Builds frames in slots.

use super::super::copy;
use super::super::pool::{NONE, Pool, SLOT, SlotMemory};
use super::{Frame, Storage};
use crate::wire::Offload;

const SLOT_BYTES: u32 = SLOT as u32;

/// Minimum headroom of the first slot in bytes: room for a virtio_net_hdr or a tag.
const FRONT: u16 = 128;

/// Bytes that fit in any slot after its headroom.
pub(super) const SMALL: usize = SLOT - FRONT as usize - 64 * 15;

/// Offset of the first byte of a frame in slot `slot`. Varies by slot: slots are a page apart, so with a fixed
/// offset the headers of a burst would compete for one cache set.
const fn front(slot: u32) -> u16 {
    FRONT + 64 * (slot & 15) as u16
}

/// Bytes of a small frame: they fit in any slot, and no offload is pending.
#[derive(Debug, Clone, Copy)]
pub(in crate::frame) struct Small<'a> {
    bytes: &'a [u8],
    offload: Offload,
}

impl<'a> Small<'a> {
    /// Wraps these bytes; `None` if they are not a small frame.
    #[inline(always)]
    pub(in crate::frame) fn new(bytes: &'a [u8], offload: Offload) -> Option<Small<'a>> {
        (bytes.len() <= SMALL && !offload.needs_offload()).then_some(Small { bytes, offload })
    }
}

impl Frame {
    /// Builds a frame of `len` bytes in slots from `slot`; `None` when slots run out. `fill` writes the bytes,
    /// segment by segment in order.
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
        // SAFETY: slot `at` was handed to this frame, which nobody else has yet; `head` is at most the bytes after
        // `start`.
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

    /// Builds a small frame in a slot that the caller hands over.
    #[inline(always)]
    pub(in crate::frame) fn small(
        pool: &'static Pool,
        room: SlotMemory,
        at: u32,
        Small { bytes, offload }: Small<'_>,
    ) -> Frame {
        let (start, len) = (front(at), bytes.len() as u32);
        // SAFETY: the slot was handed over, and nobody else has it; after `start` it has room for the longest small
        // frame.
        copy(bytes, unsafe { room.bytes_mut(at, start, len as u16) });
        Frame::new(Some(pool), at, start, len, offload, Storage::Slot)
    }

    /// Adds the segments after the first. If slots run out, the frame keeps those it has.
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
            // SAFETY: slot `at` was handed to this frame, which nobody else has yet; `part` is at most a slot.
            fill(unsafe { pool.bytes_mut(at, 0, part as u16) });
            pool.set_extent(at, 0, part as u16);
            (left, last) = (left - part, at);
        }
        true
    }

    /// Records the extent of the first segment, so that segments can be appended. There are none yet.
    fn become_chain(&mut self, pool: &Pool) {
        pool.link(self.at, NONE);
        pool.set_extent(self.at, self.start, self.len as u16);
        self.storage = Storage::Chain;
    }

    /// Creates a frame from a slot that the kernel has written and the caller hands over: `len` bytes from `start`,
    /// within the slot.
    #[inline(always)]
    pub(in crate::frame) fn received(pool: &'static Pool, at: u32, start: u16, len: u16) -> Frame {
        debug_assert!(usize::from(start) + usize::from(len) <= SLOT);
        Frame::new(Some(pool), at, start, u32::from(len), Offload::NONE, Storage::Slot)
    }

    /// Appends a segment, in a slot that the kernel has written and the caller hands over, after slot `last`, the
    /// last so far.
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
