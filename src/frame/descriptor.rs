//! Frame descriptor: storage of the frame's bytes, and its pending offload.
//!
//! Its 32 bytes move from batch to TX batch to device, while the bytes of the frame stay in place. The `unsafe`
//! blocks rely on the invariant of [`pool`](super::pool): a slot belongs to one frame, and only its holder reads or
//! writes it.

#![allow(clippy::cast_possible_truncation)] // lengths within a slot

mod build;
mod tag;
pub(super) use build::Small;
pub(super) use tag::TAG_AT;

use super::pool::{NONE, Pool, SLOT};
use crate::wire::Offload;
use build::SMALL;

/// Bytes at the start of a frame that are parsed for headers: what the first segment holds in any storage.
/// Validation therefore gives the same result wherever the frame is stored, also after a copy to the pool.
const HEADERS: usize = SMALL;

/// Storage of a frame's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Storage {
    /// One slot that the frame owns; no offload pending.
    Slot,
    /// A chain of slots that the frame owns, or one slot with an offload pending.
    Chain,
    /// A receive buffer of the batch that holds the frame, until the burst is released.
    RxBuffer,
    /// A borrow: the frame is in the batch at this index.
    Borrowed,
    /// No frame: it has been moved out, or has given up its slots.
    #[default]
    Empty,
}

/// One Ethernet frame and the exclusive right to its bytes. `Storage` says where they are.
#[derive(Debug)]
pub struct Frame {
    /// The pool of its slots, valid only while `storage` says that it owns any.
    pool: Option<&'static Pool>,
    /// The offload request as one word: two fields would leave a gap.
    offload: u64,
    /// First slot, or receive buffer.
    at: u32,
    /// Length of all segments, in bytes.
    len: u32,
    /// Offset of the first segment in its slot or buffer.
    start: u16,
    csum_offset: u16,
    /// Header bytes that each segment of the GSO packet repeats.
    headers: u16,
    /// Number of frames it counts as: 0 if its offload header is invalid, 1, or [`MANY`].
    frames: u8,
    storage: Storage,
}

// Frames move from batch to TX batch to device.
const _: () = assert!(size_of::<Frame>() == 32);

/// A GSO packet of several segments. Their number follows from its length, which is cheap to compute for so few.
const MANY: u8 = 2;

impl Frame {
    /// The slot that holds the whole frame, with offset and length. `None` unless [`Frame::is_single_slot`].
    #[inline(always)]
    pub(super) fn slot(&self) -> Option<(u32, u16, u16)> {
        (self.storage == Storage::Slot).then_some((self.at, self.start, self.len as u16))
    }

    /// Creates a frame of `len` bytes in receive buffer `buffer` of a batch. The caller must validate it if its
    /// offload header requests offload.
    #[inline(always)]
    pub(super) fn in_rx_buffer(buffer: u8, start: u16, len: u32, offload: Offload) -> Frame {
        Frame::new(None, u32::from(buffer), start, len, offload, Storage::RxBuffer)
    }

    #[inline(always)]
    fn new(pool: Option<&'static Pool>, at: u32, start: u16, len: u32, offload: Offload, storage: Storage) -> Frame {
        let (offload, csum_offset) = offload.words();
        Frame { pool, offload, at, len, start, headers: 0, csum_offset, frames: 1, storage }
    }

    /// Left in place of a frame that was moved out.
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

    /// Creates a borrow of the frame at `index` of a batch.
    #[inline(always)]
    pub(super) fn borrowed(index: u8) -> Frame {
        Frame { at: u32::from(index), storage: Storage::Borrowed, ..Frame::EMPTY }
    }

    /// Turns an empty entry into a borrow.
    #[inline(always)]
    pub(super) fn set_borrowed(&mut self, index: u8) {
        debug_assert!(!self.is_some());
        (self.at, self.storage) = (u32::from(index), Storage::Borrowed);
    }

    /// Index in the batch of the borrowed frame.
    #[inline(always)]
    pub(super) fn borrowed_index(&self) -> Option<usize> {
        (self.storage == Storage::Borrowed).then_some(self.at as usize)
    }

    /// Stores a frame in an empty entry.
    #[inline(always)]
    pub(super) fn fill(&mut self, frame: Frame) {
        debug_assert!(!self.is_some());
        // Nothing to drop here; dropping would cost a check.
        std::mem::forget(std::mem::replace(self, frame));
    }

    /// Drops a lent frame or a borrow, which own nothing.
    #[inline(always)]
    pub(super) fn forget(&mut self) {
        debug_assert!(!self.is_owned());
        self.storage = Storage::Empty;
    }

    /// Moves the frame out, leaving `EMPTY`.
    #[inline(always)]
    pub fn take(&mut self) -> Frame {
        std::mem::replace(self, Frame::EMPTY)
    }

    /// Moves the frame to an empty entry. Every frame passes here on its way into a TX batch; a move by value would
    /// copy it field by field.
    #[inline(always)]
    pub(super) fn move_to(&mut self, there: &mut Frame) {
        debug_assert!(!there.is_some());
        // SAFETY: both are frames, and two mutable references do not overlap. For a moment two frames hold the same
        // slots; neither is dropped before the next statement, which cannot panic, leaves only one. The target was
        // empty.
        unsafe { std::ptr::copy_nonoverlapping(self, there, 1) };
        self.storage = Storage::Empty;
    }

    /// Whether the entry holds a frame: false once taken or released.
    #[inline(always)]
    pub fn is_some(&self) -> bool {
        self.storage != Storage::Empty
    }

    /// Validates the offload header against the frame, once. `head_len`: length of its first segment if it is lent.
    #[cold]
    pub(super) fn validate(&mut self, head: Option<&[u8]>) {
        let head = head.unwrap_or(self.owned_head());
        let head = &head[..head.len().min(HEADERS)];
        (self.frames, self.headers) = match self.offload().segmentation(head, self.len) {
            Ok(s) => (if s.frames == 1 { 1 } else { MANY }, s.headers),
            Err(_) => (0, 0),
        };
    }

    /// Receive buffer and offset, if the frame is lent.
    #[inline(always)]
    pub(super) fn rx_buffer(&self) -> Option<(usize, usize)> {
        (self.storage == Storage::RxBuffer).then_some((self.at as usize, usize::from(self.start)))
    }

    /// Length of the first segment, in bytes.
    #[inline(always)]
    pub(super) fn head_len(&self) -> u32 {
        match self.storage {
            Storage::Chain => self.pool.map_or(0, |pool| u32::from(pool.extent(self.at).1)),
            _ => self.len,
        }
    }

    /// Length of all segments, in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // asked for its length in bytes, not whether it has any
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Pending offload.
    #[inline(always)]
    pub fn offload(&self) -> Offload {
        Offload::from_words(self.offload, self.csum_offset)
    }

    /// Whether it is a single frame, not a GSO packet.
    #[inline(always)]
    pub fn is_single(&self) -> bool {
        self.frames == 1
    }

    /// Whether its offload header is valid. If not, the frame may only be dropped.
    #[inline(always)]
    pub fn is_valid(&self) -> bool {
        self.frames > 0
    }

    /// Number of frames it counts as; 0 if its offload header is invalid.
    #[inline(always)]
    pub(super) fn frames(&self) -> usize {
        if self.frames < MANY { usize::from(self.frames) } else { self.segments() as usize }
    }

    /// Number of segments, if [`MANY`].
    #[inline(never)]
    fn segments(&self) -> u32 {
        let payload = self.len.saturating_sub(u32::from(self.headers));
        payload.div_ceil(u32::from(self.offload().segment_size()).max(1)).max(1)
    }

    /// Number of frames it counts as after segmentation; 1 if its offload header is invalid.
    #[inline(always)]
    pub fn count(&self) -> u64 {
        if self.frames < MANY { 1 } else { u64::from(self.segments()) }
    }

    /// Number of frames after segmentation, and their total length in bytes including repeated headers.
    #[inline(always)]
    pub fn counts(&self) -> (u64, u64) {
        if self.is_single() { (1, u64::from(self.len)) } else { self.counts_of_many() }
    }

    #[inline(never)]
    fn counts_of_many(&self) -> (u64, u64) {
        let count = self.count();
        (count, u64::from(self.len) + u64::from(self.headers) * (count - 1))
    }

    /// Length of the longest segment in bytes; the frame's length if it is not a GSO packet.
    #[inline(always)]
    pub fn max_segment_len(&self) -> u32 {
        match self.frames {
            0 | 1 => self.len,
            _ => u32::from(self.headers) + u32::from(self.offload().segment_size()),
        }
    }

    /// Whether it owns its slots, and thus may outlive its burst.
    #[inline(always)]
    pub fn is_owned(&self) -> bool {
        matches!(self.storage, Storage::Slot | Storage::Chain)
    }

    /// The pool of its slots, if it owns any.
    #[inline(always)]
    fn owner(&self) -> Option<&'static Pool> {
        self.pool.filter(|_| self.is_owned())
    }

    /// Whether it is one owned slot with no offload pending.
    #[inline(always)]
    pub fn is_single_slot(&self) -> bool {
        self.storage == Storage::Slot
    }

    /// Whether it is lent, single, and can be transmitted unmodified by a device with (`offloads`) or without
    /// offload support.
    #[inline(always)]
    pub fn is_single_borrow(&self, offloads: bool) -> bool {
        self.storage == Storage::RxBuffer
            && self.is_single()
            && (!self.offload().needs_offload() || offloads && !self.offload().has_crc32c() && !self.offload().is_gso())
    }

    /// All its bytes, if it is one owned slot.
    #[inline(always)]
    pub(super) fn slot_bytes(&self) -> Option<&[u8]> {
        if self.storage != Storage::Slot {
            return None;
        }
        // SAFETY: the slot is this frame's, and only the holder of the frame writes it. All bytes are within the
        // slot: `build` and `small` ensure it, and a tag moves its start only.
        self.pool.map(|pool| unsafe { pool.bytes(self.at, self.start, self.len as u16) })
    }

    /// Whether its slots, if any, are of this pool.
    #[inline(always)]
    pub(super) fn belongs_to(&self, pool: &'static Pool) -> bool {
        self.pool.is_some_and(|home| std::ptr::eq(home, pool))
    }

    /// The first segment of an owned frame, which holds all headers. Empty for a frame that is not owned.
    #[inline(always)]
    pub(super) fn owned_head(&self) -> &[u8] {
        match self.owner() {
            // SAFETY: the slot is this frame's, and only the holder of the frame writes it. The first segment ends
            // within its slot: `build` ensures it.
            Some(pool) => unsafe { pool.bytes(self.at, self.start, self.head_len() as u16) },
            None => &[],
        }
    }

    /// The segments after the first.
    #[inline]
    pub(super) fn tail(&self) -> Tail<'_> {
        match self.pool {
            Some(pool) if self.storage == Storage::Chain => {
                Tail { pool: Some(pool), at: pool.after(self.at), _frame: self }
            }
            _ => Tail { pool: None, at: NONE, _frame: self },
        }
    }

    /// Gives up the slots: pool, first slot, and whether it is the only one.
    #[inline(always)]
    pub(super) fn take_slots(&mut self) -> Option<(&'static Pool, u32, bool)> {
        let (home, only) = (self.owner(), self.storage == Storage::Slot);
        self.storage = Storage::Empty;
        Some((home?, self.at, only))
    }

    /// Gives up its slot if it is the only one and of this pool; otherwise changes nothing.
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
    /// Frees the slots straight to the pool. A worker recycles frames through its magazine, which is cheaper.
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

/// Iterator over the segments after the first.
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
        // SAFETY: the slot is in the chain of the frame, which outlives this iterator, and only the holder of the
        // frame writes its slots.
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
