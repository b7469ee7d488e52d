//! What one port is about to send: a lane of the worker's outbox.

use std::ops::AddAssign;
use std::slice;

use super::descriptor::Frame;
use super::{Batch, Cache, View};
use crate::wire::Offload;

/// Frames in the order in which one port sends them: owned ones, and borrows of the present burst
/// by their place in it.
#[derive(Debug, Default)]
pub struct Lane {
    /// The first `len` of them wait. Behind these nothing but [`Frame::GONE`], ready to be changed for a frame.
    entries: Vec<Frame>,
    len: usize,
}

/// What became of a frame that a device was to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is on its way.
    Sent,
    /// The device has no room left now, for this frame and for those behind it.
    Full,
    /// The device had no room for this frame. That says nothing of those behind it.
    NoRoom,
    /// The device will not take this frame.
    Refused,
    /// The device is there, but its link is down.
    LinkDown,
    /// It would have had to be copied, and there was no slot free.
    NoBuffer,
}

/// What became of a lane, counted in frames as [`Frame::count`] has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Frames that went out.
    pub frames: u64,
    /// And their bytes.
    pub bytes: u64,
    /// Frames for which the device had no room.
    pub full: u64,
    /// Frames that the device would not take.
    pub refused: u64,
    /// Frames that found the link down.
    pub link_down: u64,
    /// Frames for which there was no slot to copy them to.
    pub no_buffer: u64,
}

impl Lane {
    /// An empty lane with room for `capacity` frames.
    pub fn with_capacity(capacity: usize) -> Lane {
        Lane { entries: Vec::with_capacity(capacity), len: 0 }
    }

    /// How many frames wait.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a frame that owns its slots.
    #[inline(always)]
    pub fn push(&mut self, mut frame: Frame) {
        self.take_in(&mut frame);
    }

    /// Adds a frame that owns its slots, out of its place.
    #[inline(always)]
    pub fn take_in(&mut self, frame: &mut Frame) {
        match self.entries.get_mut(self.len) {
            Some(place) => frame.move_to(place),
            None => self.extend(frame),
        }
        self.len += 1;
    }

    /// Takes a frame in behind all that there ever were: as often as the lane is longer than
    /// before, and within what was allocated for it.
    #[cold]
    fn extend(&mut self, frame: &mut Frame) {
        self.entries.push(frame.take());
    }

    /// Adds the frame at `index` of the present burst, which stays where it is.
    #[inline(always)]
    pub fn borrow(&mut self, index: u8) {
        match self.entries.get_mut(self.len) {
            Some(place) => place.become_borrow(index),
            None => self.extend(&mut Frame::borrowed(index)),
        }
        self.len += 1;
    }

    /// The frame at `place`: how it would go out.
    ///
    /// # Panics
    ///
    /// When none waits there.
    #[inline]
    pub fn view<'a>(&'a self, place: usize, batch: &'a Batch) -> View<'a> {
        view(&self.entries[..self.len][place], batch)
    }

    /// Moves the frame at `place`, whether owned or borrowed, to the end of another lane. It is to be
    /// looked at no more; [`Lane::clear`] ends this.
    ///
    /// # Panics
    ///
    /// When none waits there.
    #[inline]
    pub fn pass_on(&mut self, place: usize, to: &mut Lane) {
        to.take_in(&mut self.entries[..self.len][place]);
    }

    /// Ends the lane: what is still here goes home.
    pub fn clear(&mut self, cache: &mut Cache) {
        for entry in &mut self.entries[..self.len] {
            cache.recycle_from(entry);
        }
        self.len = 0;
    }

    /// Shows each frame to `send`, in order, and sees to what comes of it. The lane is empty
    /// afterwards: what could not be sent is dropped, and counted.
    #[inline(always)]
    pub fn send_each(&mut self, batch: &Batch, cache: &mut Cache, send: impl FnMut(View<'_>) -> Fate) -> Sent {
        self.send_from(0, batch, cache, send)
    }

    /// The same for a device that is quicker with frames in one slot each to which nothing is left to be done, as
    /// most are: the first ones are shown to `put` as they are, as long as it takes them and no other comes.
    /// Both are handed `device`.
    #[inline(always)]
    pub fn send_plain_first<D>(
        &mut self,
        batch: &Batch,
        cache: &mut Cache,
        device: &mut D,
        mut put: impl FnMut(&mut D, &[u8], Offload) -> bool,
        mut send: impl FnMut(&mut D, View<'_>) -> Fate,
    ) -> Sent {
        let (pool, room) = (cache.pool(), cache.pool().room());
        let waiting = &mut self.entries[..self.len];
        let free = cache.open(waiting.len());
        let (mut frames, mut bytes) = (0, 0);
        for (entry, free) in waiting.iter_mut().zip(free) {
            let Some((slot, head)) = entry.slot_in(pool, room) else { break };
            if !put(device, head, entry.offload()) {
                break;
            }
            bytes += head.len() as u64;
            frames += 1;
            *free = slot;
            entry.leave_slot();
        }
        cache.close(frames);
        let plain = Sent { frames: frames as u64, bytes, ..Sent::default() };
        if frames == self.len {
            self.len = 0;
            return plain;
        }
        let mut sent = self.send_from(frames, batch, cache, |view| send(device, view));
        sent += plain;
        sent
    }

    /// Shows each frame from the one at `first` on to `send`; those in front of it are gone.
    #[inline(always)]
    fn send_from(
        &mut self,
        first: usize,
        batch: &Batch,
        cache: &mut Cache,
        mut send: impl FnMut(View<'_>) -> Fate,
    ) -> Sent {
        let (mut plain, mut plain_bytes) = (0, 0);
        let mut rest = Sent::default();
        let mut waiting = self.entries[first..self.len].iter_mut();
        self.len = 0;
        for entry in &mut waiting {
            let fate = send(view(entry, batch));
            // Most own one slot, and are sent.
            if fate == Fate::Sent && entry.is_plain_slot() {
                plain += 1;
                plain_bytes += u64::from(entry.len());
            } else if fate == Fate::Sent {
                let (count, size) = frame_of(entry, batch).counts();
                rest.frames += count;
                rest.bytes += size;
            } else if !rest.note(fate, frame_of(entry, batch).count()) {
                cache.recycle_from(entry);
                break;
            }
            cache.recycle_from(entry);
        }
        for entry in waiting {
            rest.note(Fate::Full, frame_of(entry, batch).count());
            cache.recycle_from(entry);
        }
        Sent { frames: rest.frames + plain, bytes: rest.bytes + plain_bytes, ..rest }
    }

    /// Shows the frames to `send`, which sends as many of them in one call as it can; those behind
    /// these are shown again, until there are none. The lane is empty afterwards: what could not be
    /// sent is dropped, and counted. For the frames behind one that found the link down, or the device full,
    /// it would be the same; any other fate is that of one frame.
    #[inline]
    pub fn send_bursts(
        &mut self,
        batch: &Batch,
        cache: &mut Cache,
        mut send: impl FnMut(Views<'_>) -> Progress,
    ) -> Sent {
        let mut all = Sent::default();
        let mut waiting = &mut self.entries[..self.len];
        self.len = 0;
        while !waiting.is_empty() {
            let progress = send(Views { entries: waiting.iter(), batch });
            let (sent, rest) = waiting.split_at_mut(progress.sent.min(waiting.len()));
            let stalled = sent.is_empty() && matches!(progress.then, Fate::Sent);
            for entry in sent {
                let (count, size) = frame_of(entry, batch).counts();
                all.frames += count;
                all.bytes += size;
                cache.recycle_from(entry);
            }
            let (fate, failed) = match progress.then {
                // It would be shown the same frames for ever.
                _ if stalled => (Fate::Full, rest.len()),
                Fate::Sent => (Fate::Sent, 0),
                fate @ (Fate::Refused | Fate::NoRoom | Fate::NoBuffer) => (fate, rest.len().min(1)),
                fate => (fate, rest.len()),
            };
            let (failed, rest) = rest.split_at_mut(failed);
            for entry in failed {
                all.note(fate, frame_of(entry, batch).count());
                cache.recycle_from(entry);
            }
            waiting = rest;
        }
        all
    }
}

/// How far a device got with the frames that it was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// So many of them are on their way, from the first on.
    pub sent: usize,
    /// What became of the one behind these; [`Fate::Sent`] if it has not been tried.
    pub then: Fate,
}

/// Frames that wait, in order.
#[derive(Debug, Clone)]
pub struct Views<'a> {
    entries: slice::Iter<'a, Frame>,
    batch: &'a Batch,
}

impl<'a> Iterator for Views<'a> {
    type Item = View<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<View<'a>> {
        self.entries.next().map(|entry| view(entry, self.batch))
    }
}

impl Lane {
    /// For a device that takes the slots themselves: `send` is shown frames that own theirs, and
    /// takes them out of their places. A frame that is lent, or that others get as well, is copied first.
    #[inline(always)]
    pub fn send_owned(&mut self, batch: &Batch, cache: &mut Cache, mut send: impl FnMut(&mut Frame) -> bool) -> Sent {
        let mut sent = Sent::default();
        let mut waiting = self.entries[..self.len].iter_mut();
        self.len = 0;
        for entry in &mut waiting {
            if !entry.is_owned() {
                match copy(entry, batch, cache) {
                    Some(copy) => *entry = copy,
                    None => {
                        sent.note(Fate::NoBuffer, frame_of(entry, batch).count());
                        cache.recycle_from(entry);
                        continue;
                    }
                }
            }
            let len = entry.len();
            if !send(entry) {
                sent.note(Fate::Full, entry.count());
                cache.recycle_from(entry);
                break;
            }
            sent.frames += 1;
            sent.bytes += u64::from(len);
        }
        for entry in waiting {
            sent.note(Fate::Full, frame_of(entry, batch).count());
            cache.recycle_from(entry);
        }
        sent
    }
}

/// A copy of a frame of the burst, in slots of its own.
#[inline(never)]
fn copy(entry: &Frame, batch: &Batch, cache: &mut Cache) -> Option<Frame> {
    let index = entry.borrow()?;
    match batch.view(index) {
        view if view.is_one_piece() => cache.frame(view.head, view.frame.offload()),
        _ => batch.adopt(index, cache),
    }
}

impl AddAssign for Sent {
    fn add_assign(&mut self, more: Sent) {
        self.frames += more.frames;
        self.bytes += more.bytes;
        self.full += more.full;
        self.refused += more.refused;
        self.link_down += more.link_down;
        self.no_buffer += more.no_buffer;
    }
}

impl Sent {
    /// Counts frames that have not been sent. Whether there is any use in going on.
    #[cold]
    fn note(&mut self, fate: Fate, count: u64) -> bool {
        match fate {
            Fate::Sent => {}
            Fate::Refused => self.refused += count,
            Fate::LinkDown => self.link_down += count,
            Fate::NoBuffer => self.no_buffer += count,
            Fate::Full | Fate::NoRoom => self.full += count,
        }
        fate != Fate::Full
    }
}

#[inline(always)]
fn view<'a>(entry: &'a Frame, batch: &'a Batch) -> View<'a> {
    match entry.slot_bytes() {
        Some(head) => View { frame: entry, head, with_header: None },
        None => batch.view_of(frame_of(entry, batch)),
    }
}

/// The frame that waits: the entry itself, or the one in the burst of which it is a borrow.
#[inline(always)]
fn frame_of<'a>(entry: &'a Frame, batch: &'a Batch) -> &'a Frame {
    entry.borrow().map_or(entry, |index| batch.frame(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn a_lane_may_end_in_another() {
        let pool = Pool::new(16).unwrap();
        let mut cache = Cache::new(pool);
        let mut batch = Batch::new();
        batch.push(cache.frame(&[1; 60], Offload::NONE).unwrap());
        let (mut lane, mut other) = (Lane::with_capacity(8), Lane::with_capacity(8));
        lane.borrow(0);
        for (value, len) in [(2, 60), (3, 60), (4, 9000)] {
            lane.push(cache.frame(&[value; 9000][..len], Offload::NONE).unwrap());
        }
        for place in [0, 1, 3] {
            lane.pass_on(place, &mut other);
        }
        assert_eq!(lane.view(2, &batch).head, [3; 60]);
        lane.clear(&mut cache);
        assert!(lane.is_empty());
        assert_eq!(
            [0, 1, 2].map(|place| other.view(place, &batch)).map(|view| (view.head[0], view.frame.len())),
            [(1, 60), (2, 60), (4, 9000)]
        );
        other.clear(&mut cache);
        batch.clear(&mut cache);
        drop(cache);
        assert_eq!(pool.free(), 16);
    }

    #[test]
    fn what_does_not_fit_is_counted_and_goes_home() {
        let pool = Pool::new(16).unwrap();
        let mut cache = Cache::new(pool);
        let mut batch = Batch::new();
        batch.push(cache.frame(&[1; 60], Offload::NONE).unwrap());
        let mut lane = Lane::with_capacity(8);
        lane.borrow(0);
        for value in 2..6 {
            lane.push(cache.frame(&[value; 60], Offload::NONE).unwrap());
        }
        let mut seen = Vec::new();
        let sent = lane.send_each(&batch, &mut cache, |view| {
            seen.push(view.head[0]);
            match view.head[0] {
                3 => Fate::Refused,
                5 => Fate::Full,
                _ => Fate::Sent,
            }
        });
        assert_eq!(seen, [1, 2, 3, 4, 5]);
        assert_eq!(sent, Sent { frames: 3, bytes: 180, full: 1, refused: 1, ..Sent::default() });
        assert!(lane.is_empty());
        batch.clear(&mut cache);
        drop(cache);
        assert_eq!(pool.free(), 16);
    }

    /// What a device does with one frame after the other, by the numbers in them.
    fn fate(number: u8) -> Fate {
        match number % 16 {
            5 | 8 => Fate::Refused,
            6 => Fate::Full,
            7 => Fate::LinkDown,
            9 => Fate::NoRoom,
            10 => Fate::NoBuffer,
            _ => Fate::Sent,
        }
    }

    proptest! {
        /// A device that sends `most` frames in a call: the same as one after the other, but that a
        /// link which is down is asked once only.
        #[test]
        fn bursts_fare_as_single_frames_do(numbers in vec(any::<u8>(), 0..40), most in 1usize..9, lent in any::<bool>()) {
            let pool = Pool::new(128).unwrap();
            let mut cache = Cache::new(pool);
            let mut batch = Batch::new();
            let mut lane = Lane::with_capacity(64);
            let mut seen = Vec::new();
            let mut results = Vec::new();
            for bursts in [false, true] {
                for (index, &number) in numbers.iter().enumerate() {
                    let frame = cache.frame(&[number; 60], Offload::NONE).unwrap();
                    if lent {
                        batch.push(frame);
                        lane.borrow(u8::try_from(index).unwrap());
                    } else {
                        lane.push(frame);
                    }
                }
                let mut sent_ones = Vec::new();
                results.push(if bursts {
                    lane.send_bursts(&batch, &mut cache, |views| {
                        let shown: Vec<u8> = views.take(most).map(|view| view.head[0]).collect();
                        let sent = shown.iter().take_while(|&&number| fate(number) == Fate::Sent).count();
                        sent_ones.extend(&shown[..sent]);
                        Progress { sent, then: shown.get(sent).map_or(Fate::Sent, |&number| fate(number)) }
                    })
                } else {
                    let mut down = false;
                    lane.send_each(&batch, &mut cache, |view| {
                        down |= fate(view.head[0]) == Fate::LinkDown;
                        let fate = if down { Fate::LinkDown } else { fate(view.head[0]) };
                        sent_ones.extend((fate == Fate::Sent).then_some(view.head[0]));
                        fate
                    })
                });
                seen.push(sent_ones);
                prop_assert!(lane.is_empty());
                batch.clear(&mut cache);
            }
            prop_assert_eq!(results[0], results[1]);
            prop_assert_eq!(&seen[0], &seen[1]);
            drop(cache);
            prop_assert_eq!(pool.free(), 128);
        }
    }

    proptest! {
        /// A device that takes plain frames as they are, while it has room: the same as one that is shown all.
        #[test]
        fn plain_frames_fare_as_all_do(kinds in vec(0u8..4, 0..40), room in 0usize..50) {
            let (pool, other) = (Pool::new(256).unwrap(), Pool::new(64).unwrap());
            let (mut cache, mut others) = (Cache::new(pool), Cache::new(other));
            let mut results = Vec::new();
            for plain_first in [false, true] {
                let (mut batch, mut lane) = (Batch::new(), Lane::with_capacity(64));
                for (number, &kind) in (0u8..).zip(&kinds) {
                    let frame = cache.frame(&[number; 9000][..if kind == 1 { 9000 } else { 60 }], Offload::NONE).unwrap();
                    match kind {
                        0 => {
                            lane.borrow(u8::try_from(batch.len()).unwrap());
                            batch.push(frame);
                        }
                        1 | 2 => lane.push(frame),
                        _ if number > 20 => lane.push(others.frame(&[number; 60], Offload::NONE).unwrap()),
                        _ => lane.push(frame),
                    }
                }
                let mut seen = Vec::new();
                let take = |seen: &mut Vec<u8>, first: u8| {
                    seen.len() < room && {
                        seen.push(first);
                        true
                    }
                };
                let sent = if plain_first {
                    lane.send_plain_first(
                        &batch,
                        &mut cache,
                        &mut seen,
                        |seen, bytes, _| take(seen, bytes[0]),
                        |seen, view| if take(seen, view.head[0]) { Fate::Sent } else { Fate::Full },
                    )
                } else {
                    lane.send_each(&batch, &mut cache, |view| match take(&mut seen, view.head[0]) {
                        true => Fate::Sent,
                        false => Fate::Full,
                    })
                };
                prop_assert!(lane.is_empty());
                batch.clear(&mut cache);
                results.push((sent, seen));
            }
            prop_assert_eq!(&results[0], &results[1]);
            drop((cache, others));
            prop_assert_eq!((pool.free(), other.free()), (256, 64));
        }
    }

    #[test]
    fn a_device_that_gets_nowhere_is_asked_once() {
        let pool = Pool::new(16).unwrap();
        let mut cache = Cache::new(pool);
        let mut lane = Lane::with_capacity(8);
        (0..3).for_each(|_| lane.push(cache.frame(&[1; 60], Offload::NONE).unwrap()));
        let mut asked = 0;
        let sent = lane.send_bursts(&Batch::new(), &mut cache, |_| {
            asked += 1;
            Progress { sent: 0, then: Fate::Sent }
        });
        assert_eq!((asked, sent), (1, Sent { full: 3, ..Sent::default() }));
    }
}
