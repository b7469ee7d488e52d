//! Early-drop table shared by worker and XDP program: until when frames to groups are dropped, and how many were
//! dropped. A memory-mapped BPF array with one entry per queue; the switch has one writer per entry.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::{DropCount, GroupClass};
use crate::sys::bpf::SharedArray;
use crate::time::MonoTime;

/// Words of an entry: three per group class, one for lost frames; padded to a cache line.
const WORDS: usize = 8;

// Word offsets; the multicast words follow the broadcast words.
const EACH: usize = 3;
const UNTIL: usize = 0;
const FRAMES: usize = 1;
const BYTES: usize = 2;
const LOST: usize = 6;

/// Per queue and group class: end of the drop in nanoseconds since boot, 0 for none; and the totals of dropped frames
/// and bytes.
#[derive(Debug)]
pub struct DropTable(SharedArray<WORDS>);

impl DropTable {
    /// Byte offset of `until` in an entry's part for a class.
    pub(super) const UNTIL: i16 = bytes(UNTIL);
    /// Byte offset of the frame count in that part.
    pub(super) const FRAMES: i16 = bytes(FRAMES);
    /// Byte offset of the byte count in that part.
    pub(super) const BYTES: i16 = bytes(BYTES);
    /// Byte offset of the count of lost frames in an entry.
    pub(super) const LOST: i16 = bytes(LOST);
    /// Byte offset of the multicast part.
    pub(super) const TO_MULTICAST: i16 = bytes(EACH);

    /// Creates a table for the queues 0 to `queues` - 1 that drops nothing.
    ///
    /// Needs the same capabilities as a program.
    pub fn new(queues: u32) -> io::Result<DropTable> {
        SharedArray::new(queues).map(DropTable)
    }

    /// Drops frames to groups of this class at `queue` until the given time.
    #[inline]
    pub fn set_blocked_until(&self, queue: u32, group: GroupClass, until: MonoTime) {
        if let Some(word) = self.word(queue, group, UNTIL) {
            word.store(until.nanos(), Ordering::Relaxed);
        }
    }

    /// Totals dropped at `queue`. The program may just be updating one of the two counts.
    pub fn total(&self, queue: u32, group: GroupClass) -> DropCount {
        let count = |word| self.word(queue, group, word).map_or(0, |word| word.load(Ordering::Relaxed));
        DropCount { frames: count(FRAMES), bytes: count(BYTES) }
    }

    /// Total of frames lost at `queue` because their VLAN tag could not be restored.
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
