//! TX batch: the frames pending for one port, and the loops by which devices transmit them.

use std::ops::AddAssign;
use std::slice;

use super::descriptor::Frame;
use super::{Batch, FrameRef, Magazine};

/// Frames in transmit order: owned ones, and borrows of the current burst by index.
#[derive(Debug, Default)]
pub struct TxBatch {
    /// The first `len` are pending. The rest are [`Frame::EMPTY`], kept initialised for reuse.
    entries: Vec<Frame>,
    len: usize,
}

/// Transmit status of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxStatus {
    /// Transmitted.
    Sent,
    /// The TX ring is full, for this frame and those after it.
    Full,
    /// No room for this frame; those after it may fit.
    NoRoom,
    /// The device refuses this frame.
    Refused,
    /// The link is down.
    LinkDown,
    /// A copy was needed, and no slot was free.
    NoBuffer,
}

/// Transmit statistics of a batch, in frames as [`Frame::count`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxStats {
    /// Frames transmitted.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames dropped: TX ring full.
    pub full: u64,
    /// Frames dropped: refused by the device.
    pub refused: u64,
    /// Frames dropped: link down.
    pub link_down: u64,
    /// Frames dropped: no slot for a copy.
    pub no_buffer: u64,
}

impl TxBatch {
    /// Creates an empty batch with room for `capacity` frames.
    pub fn with_capacity(capacity: usize) -> TxBatch {
        TxBatch { entries: Vec::with_capacity(capacity), len: 0 }
    }

    /// Number of pending frames.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no frame is pending.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pushes a frame that owns its slots.
    #[inline(always)]
    pub fn push(&mut self, mut frame: Frame) {
        self.push_from(&mut frame);
    }

    /// Moves a frame that owns its slots out of its entry into this batch.
    #[inline(always)]
    pub fn push_from(&mut self, frame: &mut Frame) {
        match self.entries.get_mut(self.len) {
            Some(storage) => frame.move_to(storage),
            None => self.extend(frame),
        }
        self.len += 1;
    }

    /// Pushes a frame beyond all initialised entries: once per new maximum length, within the allocated capacity.
    #[cold]
    fn extend(&mut self, frame: &mut Frame) {
        self.entries.push(frame.take());
    }

    /// Pushes a borrow of the frame at `index` of the current burst.
    #[inline(always)]
    pub fn borrow(&mut self, index: u8) {
        match self.entries.get_mut(self.len) {
            Some(storage) => storage.set_borrowed(index),
            None => self.extend(&mut Frame::borrowed(index)),
        }
        self.len += 1;
    }

    /// The frame at `place`, as it would be transmitted.
    ///
    /// # Panics
    ///
    /// If no frame is pending there.
    #[inline]
    pub fn frame<'a>(&'a self, storage: usize, batch: &'a Batch) -> FrameRef<'a> {
        view(&self.entries[..self.len][storage], batch)
    }

    /// Moves the frame at `place`, owned or borrowed, to the end of another batch. The entry must not be read again
    /// until [`TxBatch::clear`].
    ///
    /// # Panics
    ///
    /// If no frame is pending there.
    #[inline]
    pub fn move_to(&mut self, storage: usize, to: &mut TxBatch) {
        to.push_from(&mut self.entries[..self.len][storage]);
    }

    /// Empties the batch; frees the frames left in it.
    pub fn clear(&mut self, magazine: &mut Magazine) {
        for entry in &mut self.entries[..self.len] {
            magazine.recycle_from(entry);
        }
        self.len = 0;
    }

    /// Passes each frame to `send`, in order, and counts its status. Empties the batch; drops frames that were not
    /// transmitted.
    #[inline(always)]
    pub fn send_each(
        &mut self,
        batch: &Batch,
        magazine: &mut Magazine,
        mut send: impl FnMut(FrameRef<'_>) -> TxStatus,
    ) -> TxStats {
        let (mut plain, mut plain_bytes) = (0, 0);
        let mut rest = TxStats::default();
        let mut waiting = self.entries[..self.len].iter_mut();
        self.len = 0;
        for entry in &mut waiting {
            let status = send(view(entry, batch));
            // Common case: one owned slot, transmitted.
            if status == TxStatus::Sent && entry.is_single_slot() {
                plain += 1;
                plain_bytes += u64::from(entry.len());
            } else if status == TxStatus::Sent {
                let (count, size) = frame_of(entry, batch).counts();
                rest.frames += count;
                rest.bytes += size;
            } else if !rest.count(status, frame_of(entry, batch).count()) {
                magazine.recycle_from(entry);
                break;
            }
            magazine.recycle_from(entry);
        }
        for entry in waiting {
            rest.count(TxStatus::Full, frame_of(entry, batch).count());
            magazine.recycle_from(entry);
        }
        TxStats { frames: rest.frames + plain, bytes: rest.bytes + plain_bytes, ..rest }
    }

    /// Passes all pending frames to `send`, which transmits as many as it can in one call, and repeats with the
    /// rest. Empties the batch; drops and counts frames that were not transmitted. Link down and TX ring full apply
    /// to all remaining frames; any other status applies to one frame.
    #[inline]
    pub fn send_bursts(
        &mut self,
        batch: &Batch,
        magazine: &mut Magazine,
        mut send: impl FnMut(FrameRefs<'_>) -> TxProgress,
    ) -> TxStats {
        let mut all = TxStats::default();
        let mut waiting = &mut self.entries[..self.len];
        self.len = 0;
        while !waiting.is_empty() {
            let progress = send(FrameRefs { entries: waiting.iter(), batch });
            let (sent, rest) = waiting.split_at_mut(progress.sent.min(waiting.len()));
            let stalled = sent.is_empty() && matches!(progress.status, TxStatus::Sent);
            for entry in sent {
                let (count, size) = frame_of(entry, batch).counts();
                all.frames += count;
                all.bytes += size;
                magazine.recycle_from(entry);
            }
            let (status, failed) = match progress.status {
                // No progress: `send` would get the same frames forever.
                _ if stalled => (TxStatus::Full, rest.len()),
                TxStatus::Sent => (TxStatus::Sent, 0),
                status @ (TxStatus::Refused | TxStatus::NoRoom | TxStatus::NoBuffer) => (status, rest.len().min(1)),
                status => (status, rest.len()),
            };
            let (failed, rest) = rest.split_at_mut(failed);
            for entry in failed {
                all.count(status, frame_of(entry, batch).count());
                magazine.recycle_from(entry);
            }
            waiting = rest;
        }
        all
    }
}

/// Progress of a device on the frames passed to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxProgress {
    /// Number of frames transmitted, from the first on.
    pub sent: usize,
    /// Status of the next frame; [`TxStatus::Sent`] if it was not tried.
    pub status: TxStatus,
}

/// Pending frames, in order.
#[derive(Debug, Clone)]
pub struct FrameRefs<'a> {
    entries: slice::Iter<'a, Frame>,
    batch: &'a Batch,
}

impl<'a> Iterator for FrameRefs<'a> {
    type Item = FrameRef<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<FrameRef<'a>> {
        self.entries.next().map(|entry| view(entry, self.batch))
    }
}

impl TxBatch {
    /// For a device that takes slots: `send` gets frames that own theirs and moves them out of their entries. Lent
    /// and shared frames are copied first.
    #[inline(always)]
    pub fn send_owned(
        &mut self,
        batch: &Batch,
        magazine: &mut Magazine,
        mut send: impl FnMut(&mut Frame) -> bool,
    ) -> TxStats {
        let mut sent = TxStats::default();
        let mut waiting = self.entries[..self.len].iter_mut();
        self.len = 0;
        for entry in &mut waiting {
            if !entry.is_owned() {
                match copy(entry, batch, magazine) {
                    Some(copy) => *entry = copy,
                    None => {
                        sent.count(TxStatus::NoBuffer, frame_of(entry, batch).count());
                        magazine.recycle_from(entry);
                        continue;
                    }
                }
            }
            let len = entry.len();
            if !send(entry) {
                sent.count(TxStatus::Full, entry.count());
                magazine.recycle_from(entry);
                break;
            }
            sent.frames += 1;
            sent.bytes += u64::from(len);
        }
        for entry in waiting {
            sent.count(TxStatus::Full, frame_of(entry, batch).count());
            magazine.recycle_from(entry);
        }
        sent
    }
}

/// Copies a frame of the burst into slots of its own.
#[inline(never)]
fn copy(entry: &Frame, batch: &Batch, magazine: &mut Magazine) -> Option<Frame> {
    let index = entry.borrowed_index()?;
    match batch.frame_ref(index) {
        frame if frame.is_contiguous() => magazine.frame(frame.head, frame.frame.offload()),
        _ => batch.copy_to_pool(index, magazine),
    }
}

impl AddAssign for TxStats {
    fn add_assign(&mut self, more: TxStats) {
        self.frames += more.frames;
        self.bytes += more.bytes;
        self.full += more.full;
        self.refused += more.refused;
        self.link_down += more.link_down;
        self.no_buffer += more.no_buffer;
    }
}

impl TxStats {
    /// Counts frames that were not transmitted. Returns whether to continue.
    #[cold]
    fn count(&mut self, status: TxStatus, count: u64) -> bool {
        match status {
            TxStatus::Sent => {}
            TxStatus::Refused => self.refused += count,
            TxStatus::LinkDown => self.link_down += count,
            TxStatus::NoBuffer => self.no_buffer += count,
            TxStatus::Full | TxStatus::NoRoom => self.full += count,
        }
        status != TxStatus::Full
    }
}

#[inline(always)]
fn view<'a>(entry: &'a Frame, batch: &'a Batch) -> FrameRef<'a> {
    match entry.slot_bytes() {
        Some(head) => FrameRef { frame: entry, head, with_header: None },
        None => batch.frame_ref_of(frame_of(entry, batch)),
    }
}

/// The pending frame: the entry itself, or the frame that it borrows from the burst.
#[inline(always)]
fn frame_of<'a>(entry: &'a Frame, batch: &'a Batch) -> &'a Frame {
    entry.borrowed_index().map_or(entry, |index| batch.frame(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;
    use crate::wire::Offload;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn a_tx_batch_can_be_appended_to_another() {
        let pool = Pool::new(16).unwrap();
        let mut magazine = Magazine::new(pool);
        let mut batch = Batch::new();
        batch.push(magazine.frame(&[1; 60], Offload::NONE).unwrap());
        let (mut tx, mut other) = (TxBatch::with_capacity(8), TxBatch::with_capacity(8));
        tx.borrow(0);
        for (value, len) in [(2, 60), (3, 60), (4, 9000)] {
            tx.push(magazine.frame(&[value; 9000][..len], Offload::NONE).unwrap());
        }
        for storage in [0, 1, 3] {
            tx.move_to(storage, &mut other);
        }
        assert_eq!(tx.frame(2, &batch).head, [3; 60]);
        tx.clear(&mut magazine);
        assert!(tx.is_empty());
        assert_eq!(
            [0, 1, 2].map(|storage| other.frame(storage, &batch)).map(|frame| (frame.head[0], frame.frame.len())),
            [(1, 60), (2, 60), (4, 9000)]
        );
        other.clear(&mut magazine);
        batch.clear(&mut magazine);
        drop(magazine);
        assert_eq!(pool.free(), 16);
    }

    #[test]
    fn frames_that_do_not_fit_are_counted_and_freed() {
        let pool = Pool::new(16).unwrap();
        let mut magazine = Magazine::new(pool);
        let mut batch = Batch::new();
        batch.push(magazine.frame(&[1; 60], Offload::NONE).unwrap());
        let mut tx = TxBatch::with_capacity(8);
        tx.borrow(0);
        for value in 2..6 {
            tx.push(magazine.frame(&[value; 60], Offload::NONE).unwrap());
        }
        let mut seen = Vec::new();
        let sent = tx.send_each(&batch, &mut magazine, |frame| {
            seen.push(frame.head[0]);
            match frame.head[0] {
                3 => TxStatus::Refused,
                5 => TxStatus::Full,
                _ => TxStatus::Sent,
            }
        });
        assert_eq!(seen, [1, 2, 3, 4, 5]);
        assert_eq!(sent, TxStats { frames: 3, bytes: 180, full: 1, refused: 1, ..TxStats::default() });
        assert!(tx.is_empty());
        batch.clear(&mut magazine);
        drop(magazine);
        assert_eq!(pool.free(), 16);
    }

    /// What a device does with one frame after the other, by the numbers in them.
    fn tx_status(number: u8) -> TxStatus {
        match number % 16 {
            5 | 8 => TxStatus::Refused,
            6 => TxStatus::Full,
            7 => TxStatus::LinkDown,
            9 => TxStatus::NoRoom,
            10 => TxStatus::NoBuffer,
            _ => TxStatus::Sent,
        }
    }

    proptest! {
        /// A device that sends `most` frames per call behaves like single calls, except that a link that is down is
        /// detected once.
        #[test]
        fn bursts_behave_like_single_frames(numbers in vec(any::<u8>(), 0..40), most in 1usize..9, lent in any::<bool>()) {
            let pool = Pool::new(128).unwrap();
            let mut magazine = Magazine::new(pool);
            let mut batch = Batch::new();
            let mut tx = TxBatch::with_capacity(64);
            let mut seen = Vec::new();
            let mut results = Vec::new();
            for bursts in [false, true] {
                for (index, &number) in numbers.iter().enumerate() {
                    let frame = magazine.frame(&[number; 60], Offload::NONE).unwrap();
                    if lent {
                        batch.push(frame);
                        tx.borrow(u8::try_from(index).unwrap());
                    } else {
                        tx.push(frame);
                    }
                }
                let mut sent_ones = Vec::new();
                results.push(if bursts {
                    tx.send_bursts(&batch, &mut magazine, |frames| {
                        let shown: Vec<u8> = frames.take(most).map(|frame_ref| frame_ref.head[0]).collect();
                        let sent = shown.iter().take_while(|&&number| tx_status(number) == TxStatus::Sent).count();
                        sent_ones.extend(&shown[..sent]);
                        TxProgress { sent, status: shown.get(sent).map_or(TxStatus::Sent, |&number| tx_status(number)) }
                    })
                } else {
                    let mut down = false;
                    tx.send_each(&batch, &mut magazine, |frame_ref| {
                        down |= tx_status(frame_ref.head[0]) == TxStatus::LinkDown;
                        let status = if down { TxStatus::LinkDown } else { tx_status(frame_ref.head[0]) };
                        sent_ones.extend((status == TxStatus::Sent).then_some(frame_ref.head[0]));
                        status
                    })
                });
                seen.push(sent_ones);
                prop_assert!(tx.is_empty());
                batch.clear(&mut magazine);
            }
            prop_assert_eq!(results[0], results[1]);
            prop_assert_eq!(&seen[0], &seen[1]);
            drop(magazine);
            prop_assert_eq!(pool.free(), 128);
        }
    }

    #[test]
    fn a_device_without_progress_is_called_once() {
        let pool = Pool::new(16).unwrap();
        let mut magazine = Magazine::new(pool);
        let mut tx = TxBatch::with_capacity(8);
        (0..3).for_each(|_| tx.push(magazine.frame(&[1; 60], Offload::NONE).unwrap()));
        let mut requests = 0;
        let sent = tx.send_bursts(&Batch::new(), &mut magazine, |_| {
            requests += 1;
            TxProgress { sent: 0, status: TxStatus::Sent }
        });
        assert_eq!((requests, sent), (1, TxStats { full: 3, ..TxStats::default() }));
    }
}
