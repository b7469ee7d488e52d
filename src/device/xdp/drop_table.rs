//! What a worker and the program on a netdev tell each other: until when frames to groups are shed, and how many
//! have been. A table that both have in memory, with an entry for each queue, so that each of its words has one
//! writer on our side.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::{DropCount, GroupClass};
use crate::sys::bpf::SharedArray;
use crate::time::MonoTime;

/// Words of an entry: three for each kind of group, one of frames that were lost, and the rest of a cache line.
const WORDS: usize = 8;

// Where they are, by words: those of multicasts come after those of broadcasts.
const EACH: usize = 3;
const UNTIL: usize = 0;
const FRAMES: usize = 1;
const BYTES: usize = 2;
const LOST: usize = 6;

/// For each queue and kind of group: until when its frames are shed, in nanoseconds since the host booted, 0
/// for never; and how many frames and bytes have been, ever.
#[derive(Debug)]
pub struct DropTable(SharedArray<WORDS>);

impl DropTable {
    /// Of `until` in the part of an entry that is about broadcasts, in bytes.
    pub(super) const UNTIL: i16 = bytes(UNTIL);
    /// Of the count of frames.
    pub(super) const FRAMES: i16 = bytes(FRAMES);
    /// Of the count of bytes.
    pub(super) const BYTES: i16 = bytes(BYTES);
    /// Of the count of frames that were lost, in an entry.
    pub(super) const LOST: i16 = bytes(LOST);
    /// From there to the part about multicasts.
    pub(super) const TO_MULTICAST: i16 = bytes(EACH);

    /// A table for the queues 0 to `queues` - 1, which sheds nothing.
    ///
    /// Needs the same capabilities as a program.
    pub fn new(queues: u32) -> io::Result<DropTable> {
        SharedArray::new(queues).map(DropTable)
    }

    /// Has frames to groups of this kind shed at `queue` until then.
    #[inline]
    pub fn set_blocked_until(&self, queue: u32, group: GroupClass, until: MonoTime) {
        if let Some(word) = self.word(queue, group, UNTIL) {
            word.store(until.nanos(), Ordering::Relaxed);
        }
    }

    /// What has been shed at `queue`, ever. A frame that is being counted may be in one count and not yet in the
    /// other.
    pub fn total(&self, queue: u32, group: GroupClass) -> DropCount {
        let count = |word| self.word(queue, group, word).map_or(0, |word| word.load(Ordering::Relaxed));
        DropCount { frames: count(FRAMES), bytes: count(BYTES) }
    }

    /// Frames that were lost at `queue` as their VLAN tag could not be put back, ever.
    pub fn lost(&self, queue: u32) -> u64 {
        self.0.entry(queue).and_then(|entry| entry.get(LOST)).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    #[inline]
    fn word(&self, queue: u32, group: GroupClass, word: usize) -> Option<&AtomicU64> {
        self.0.entry(queue)?.get(group as usize * EACH + word)
    }
}

impl AsFd for DropTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // an entry has 64 bytes
const fn bytes(words: usize) -> i16 {
    (words * size_of::<AtomicU64>()) as i16
}
