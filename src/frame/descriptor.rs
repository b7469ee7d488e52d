//! A frame: where its bytes are, and what is still to be done to it.
//!
//! 32 bytes that are moved from batch to lane to device, while the bytes of the frame stay where they
//! are. What the `unsafe` blocks lean on is said in [`pool`](super::pool): a slot belongs to one frame,
//! and only that one reads or writes it.

#![allow(clippy::cast_possible_truncation)] // lengths within a slot

mod build;
mod tag;
pub use build::Small;
pub(super) use tag::TAG_AT;

use super::pool::{NONE, Pool, SLOT, SlotMemory};
use crate::wire::Offload;
use build::SMALL;

/// Bytes from the beginning of a frame that are looked at for its headers: what surely lies in the
/// first segment. So a frame is measured alike wherever it lies, also after it has been adopted.
const HEADERS: usize = SMALL;

/// Where the bytes of a frame are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Storage {
    /// In one slot that the frame owns, and nothing is left to be done to it.
    Slot,
    /// In a chain of slots that the frame owns, or in one with an offload header to be heeded.
    Chain,
    /// In a receive buffer of the batch that the frame stands in, until that burst is released.
    RxBuffer,
    /// In the batch, of which this is only the place: a borrow.
    Borrowed,
    /// Nowhere: the frame has been taken out of here, or has given up its slots.
    #[default]
    Empty,
}

/// One Ethernet frame, and the right to its bytes. See the room's page for where they are.
#[derive(Debug)]
pub struct Frame {
    /// The pool of its slots, as long as it owns any: `storage` says whether it does.
    pool: Option<&'static Pool>,
    /// The two words of its offload header: apart, they leave no gap.
    offload: u64,
    /// Its first slot, or its receive buffer.
    at: u32,
    /// Bytes of all segments.
    len: u32,
    /// Where the first segment begins in its slot or buffer.
    start: u16,
    csum_offset: u16,
    /// Bytes that each of the frames repeats that this one stands for.
    headers: u16,
    /// For how many frames it stands: none, if its offload header is invalid, itself alone, or [`MANY`].
    frames: u8,
    storage: Storage,
}

// Frames are moved from batch to lane to device.
const _: () = assert!(size_of::<Frame>() == 32);

/// A GSO packet of several segments. How many follows from its length, which is cheap to compute for so few.
const MANY: u8 = 2;

impl Frame {
    /// The slot that holds all of it, and where in it: start and length. `None` for any other
    /// frame than [`Frame::is_single_slot`] says.
    #[inline(always)]
    pub(super) fn slot(&self) -> Option<(u32, u16, u16)> {
        (self.storage == Storage::Slot).then_some((self.at, self.start, self.len as u16))
    }

    /// A frame in receive buffer `buffer` of a batch, `len` bytes long. Where its offload header is
    /// pending, it is to be measured.
    #[inline(always)]
    pub(super) fn in_rx_buffer(buffer: u8, start: u16, len: u32, offload: Offload) -> Frame {
        Frame::new(None, u32::from(buffer), start, len, offload, Storage::RxBuffer)
    }

    #[inline(always)]
    fn new(pool: Option<&'static Pool>, at: u32, start: u16, len: u32, offload: Offload, storage: Storage) -> Frame {
        let (offload, csum_offset) = offload.words();
        Frame { pool, offload, at, len, start, headers: 0, csum_offset, frames: 1, storage }
    }

    /// What is left in the place of a frame that was taken out.
    pub(super) const EMPTY: Frame = Frame {
        pool: None,
        offload: 0,
        at: 0,
        len: 0,
        start: 0,
        headers: 0,
        csum_offset: 0,
        frames: 0,
        storage: Storage::Empty,
    };

    /// A borrow of the frame at place `index` of a batch.
    #[inline(always)]
    pub(super) fn borrowed(index: u8) -> Frame {
        Frame { at: u32::from(index), storage: Storage::Borrowed, ..Frame::EMPTY }
    }

    /// Makes a borrow of a place where there is no frame.
    #[inline(always)]
    pub(super) fn set_borrowed(&mut self, index: u8) {
        debug_assert!(!self.is_some());
        (self.at, self.storage) = (u32::from(index), Storage::Borrowed);
    }

    /// The place in its batch of which this is a borrow.
    #[inline(always)]
    pub(super) fn borrowed_index(&self) -> Option<usize> {
        (self.storage == Storage::Borrowed).then_some(self.at as usize)
    }

    /// Puts a frame into this place, where there is none.
    #[inline(always)]
    pub(super) fn fill(&mut self, frame: Frame) {
        debug_assert!(!self.is_some());
        // There is nothing to drop, which would have to be found out first.
        std::mem::forget(std::mem::replace(self, frame));
    }

    /// Forgets a frame that is only lent, or a borrow.
    #[inline(always)]
    pub(super) fn forget(&mut self) {
        debug_assert!(!self.is_owned());
        self.storage = Storage::Empty;
    }

    /// Takes the frame out of its place.
    #[inline(always)]
    pub fn take(&mut self) -> Frame {
        std::mem::replace(self, Frame::EMPTY)
    }

    /// Moves the frame to another place, where there is none. This is what every frame goes through
    /// on its way into a lane; by value, it would be taken apart and put together again field by
    /// field.
    #[inline(always)]
    pub(super) fn move_to(&mut self, there: &mut Frame) {
        debug_assert!(!there.is_some());
        // SAFETY: both are frames, and two references that may write do not overlap. For the moment there are
        // two that hold the same slots; none of them is dropped before the next statement, which
        // cannot panic, leaves only one. What was there held nothing.
        unsafe { std::ptr::copy_nonoverlapping(self, there, 1) };
        self.storage = Storage::Empty;
    }

    /// Whether there is a frame in this place, or only what is left of one that was taken.
    #[inline(always)]
    pub fn is_some(&self) -> bool {
        self.storage != Storage::Empty
    }

    /// Checks the offload header against the frame, once for all. `head_len`: its first segment, if it
    /// is lent.
    #[cold]
    pub(super) fn validate(&mut self, head: Option<&[u8]>) {
        let head = head.unwrap_or(self.owned_head());
        let head = &head[..head.len().min(HEADERS)];
        (self.frames, self.headers) = match self.offload().segmentation(head, self.len) {
            Ok(s) => (if s.frames == 1 { 1 } else { MANY }, s.headers),
            Err(_) => (0, 0),
        };
    }

    /// The receive buffer it lies in, if it is lent, and where it begins there.
    #[inline(always)]
    pub(super) fn rx_buffer(&self) -> Option<(usize, usize)> {
        (self.storage == Storage::RxBuffer).then_some((self.at as usize, usize::from(self.start)))
    }

    /// Bytes of the first segment.
    #[inline(always)]
    pub(super) fn head_len(&self) -> u32 {
        match self.storage {
            Storage::Chain => self.pool.map_or(0, |pool| u32::from(pool.extent(self.at).1)),
            _ => self.len,
        }
    }

    /// Bytes of all segments together.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // asked for its length in bytes, not whether it has any
    pub fn len(&self) -> u32 {
        self.len
    }

    /// What is left to be done to it.
    #[inline(always)]
    pub fn offload(&self) -> Offload {
        Offload::from_words(self.offload, self.csum_offset)
    }

    /// Whether it stands for itself alone, as most do.
    #[inline(always)]
    pub fn is_single(&self) -> bool {
        self.frames == 1
    }

    /// Whether its offload header fits it. Nothing else may be done with a frame that is a lie.
    #[inline(always)]
    pub fn is_valid(&self) -> bool {
        self.frames > 0
    }

    /// How many frames it stands for; none, if its offload header does not fit it.
    #[inline(always)]
    pub(super) fn frames(&self) -> usize {
        if self.frames < MANY { usize::from(self.frames) } else { self.segments() as usize }
    }

    /// How many segments it has, where these are [`MANY`].
    #[inline(never)]
    fn segments(&self) -> u32 {
        let payload = self.len.saturating_sub(u32::from(self.headers));
        payload.div_ceil(u32::from(self.offload().segment_size()).max(1)).max(1)
    }

    /// How many frames it counts as: those it will become. One, where its header is a lie.
    #[inline(always)]
    pub fn count(&self) -> u64 {
        if self.frames < MANY { 1 } else { u64::from(self.segments()) }
    }

    /// How many frames it counts as, and how many bytes these have together, each with its headers.
    #[inline(always)]
    pub fn counts(&self) -> (u64, u64) {
        if self.is_single() { (1, u64::from(self.len)) } else { self.counts_of_many() }
    }

    #[inline(never)]
    fn counts_of_many(&self) -> (u64, u64) {
        let count = self.count();
        (count, u64::from(self.len) + u64::from(self.headers) * (count - 1))
    }

    /// Bytes of the longest frame that it will become; its own length for a plain one.
    #[inline(always)]
    pub fn max_segment_len(&self) -> u32 {
        match self.frames {
            0 | 1 => self.len,
            _ => u32::from(self.headers) + u32::from(self.offload().segment_size()),
        }
    }

    /// Whether it owns the slots it lies in, and so may outlive its burst.
    #[inline(always)]
    pub fn is_owned(&self) -> bool {
        matches!(self.storage, Storage::Slot | Storage::Chain)
    }

    /// The pool of its slots, if it owns any.
    #[inline(always)]
    fn owner(&self) -> Option<&'static Pool> {
        self.pool.filter(|_| self.is_owned())
    }

    /// Whether it lies in one slot that it owns, and nothing is left to be done to it.
    #[inline(always)]
    pub fn is_single_slot(&self) -> bool {
        self.storage == Storage::Slot
    }

    /// Whether it is lent for its burst, stands for itself alone, and can be sent as it is by a device that takes
    /// offload headers, or by one that does not.
    #[inline(always)]
    pub fn is_single_borrow(&self, offloads: bool) -> bool {
        self.storage == Storage::RxBuffer
            && self.is_single()
            && (!self.offload().needs_offload() || offloads && !self.offload().has_crc32c() && !self.offload().is_gso())
    }

    /// All its bytes, if it lies in one slot that it owns.
    #[inline(always)]
    pub(super) fn slot_bytes(&self) -> Option<&[u8]> {
        if self.storage != Storage::Slot {
            return None;
        }
        // SAFETY: the slot is this frame's, and only who has the frame to himself writes it; all of it
        // lies within the slot: `build` and `small` saw to that, and a tag moves its start only.
        self.pool.map(|pool| unsafe { pool.bytes(self.at, self.start, self.len as u16) })
    }

    /// Its slot and all its bytes, if it lies in one slot that it owns, of this pool, whose slots are there.
    #[inline(always)]
    pub(super) fn slot_in(&self, pool: &'static Pool, room: SlotMemory) -> Option<(u32, &[u8])> {
        if self.storage != Storage::Slot || !self.belongs_to(pool) {
            return None;
        }
        // SAFETY: as for `slot_bytes`.
        Some((self.at, unsafe { room.bytes(self.at, self.start, self.len as u16) }))
    }

    /// Leaves the slot that it lies in to the caller, who has been told which it is.
    #[inline(always)]
    pub(super) fn forget_slot(&mut self) {
        debug_assert!(self.storage == Storage::Slot);
        self.storage = Storage::Empty;
    }

    /// Whether its slots, if it owns any, are of this pool.
    #[inline(always)]
    pub(super) fn belongs_to(&self, pool: &'static Pool) -> bool {
        self.pool.is_some_and(|home| std::ptr::eq(home, pool))
    }

    /// The first segment of an owned frame; it holds all its headers. Empty for any other.
    #[inline(always)]
    pub(super) fn owned_head(&self) -> &[u8] {
        match self.owner() {
            // SAFETY: the slot is this frame's, and only who has the frame to himself writes it. The
            // first segment ends within its slot: `build` saw to that.
            Some(pool) => unsafe { pool.bytes(self.at, self.start, self.head_len() as u16) },
            None => &[],
        }
    }

    /// The segments behind the first.
    #[inline]
    pub(super) fn tail(&self) -> Tail<'_> {
        match self.pool {
            Some(pool) if self.storage == Storage::Chain => {
                Tail { pool: Some(pool), at: pool.after(self.at), _frame: self }
            }
            _ => Tail { pool: None, at: NONE, _frame: self },
        }
    }

    /// Gives up the slots: the pool, the first of them, and whether it is the only one.
    #[inline(always)]
    pub(super) fn take_slots(&mut self) -> Option<(&'static Pool, u32, bool)> {
        let (home, only) = (self.owner(), self.storage == Storage::Slot);
        self.storage = Storage::Empty;
        Some((home?, self.at, only))
    }

    /// Gives up its slot, if that is all it has and is one of this pool. Nothing has changed if it is not.
    #[inline(always)]
    pub(super) fn take_slot(&mut self, pool: &'static Pool) -> Option<u32> {
        if self.storage != Storage::Slot || !self.belongs_to(pool) {
            return None;
        }
        self.storage = Storage::Empty;
        Some(self.at)
    }
}

impl Drop for Frame {
    /// Sends the slots home, straight to the pool. A worker recycles frames through its cache,
    /// which is cheaper.
    #[inline(always)]
    fn drop(&mut self) {
        if self.is_owned() {
            self.free();
        }
    }
}

impl Frame {
    #[cold]
    fn free(&mut self) {
        let Some((pool, slot, only)) = self.take_slots() else { return };
        if only {
            pool.link(slot, NONE);
        }
        pool.push(slot);
    }
}

/// The segments of a frame behind its first one.
#[derive(Debug, Clone)]
pub struct Tail<'a> {
    pool: Option<&'static Pool>,
    at: u32,
    _frame: &'a Frame,
}

impl<'a> Iterator for Tail<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let pool = self.pool.filter(|_| self.at != NONE)?;
        let at = self.at;
        self.at = pool.after(at);
        let (start, len) = pool.extent(at);
        // SAFETY: the slot is in the chain of the frame, which outlives this iterator, and only who has
        // the frame to himself writes its slots.
        Some(unsafe { pool.bytes(at, start, len) })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::frame::Magazine;
    use proptest::prelude::*;

    /// All bytes of a frame that owns its slots.
    pub(in crate::frame) fn bytes(frame: &Frame) -> Vec<u8> {
        let mut all = frame.owned_head().to_vec();
        frame.tail().for_each(|part| all.extend(part));
        all
    }

    proptest! {
        #[test]
        fn frames_keep_their_bytes(lens in proptest::collection::vec(14usize..20_000, 1..12)) {
            let pool = Pool::new(256).unwrap();
            let mut magazine = Magazine::new(pool);
            let written: Vec<Vec<u8>> =
                lens.iter().enumerate().map(|(i, &len)| (0..len).map(|b| (b * 31 + i) as u8).collect()).collect();
            let frames: Vec<Frame> = written.iter().filter_map(|b| magazine.frame(b, Offload::NONE)).collect();
            prop_assert_eq!(frames.len(), written.len());
            for (frame, written) in frames.iter().zip(&written) {
                prop_assert_eq!(frame.len() as usize, written.len());
                prop_assert_eq!(&bytes(frame), written);
            }
            for frame in frames {
                magazine.recycle(frame);
            }
            drop(magazine);
            prop_assert_eq!(pool.free(), 256);
        }
    }
}
