//! What one port is about to send: a lane of the worker's outbox.

use std::ops::AddAssign;

use super::descriptor::Frame;
use super::{Batch, Cache, View};

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
    /// The device will not take this frame.
    Refused,
    /// The device is there, but its link is down.
    LinkDown,
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

    /// The frames that wait, in order.
    pub fn views<'a>(&'a self, batch: &'a Batch) -> impl Iterator<Item = View<'a>> {
        self.entries[..self.len].iter().map(|entry| view(entry, batch))
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
    pub fn send_each(&mut self, batch: &Batch, cache: &mut Cache, mut send: impl FnMut(View<'_>) -> Fate) -> Sent {
        let (mut plain, mut plain_bytes) = (0, 0);
        let mut rest = Sent::default();
        let mut waiting = self.entries[..self.len].iter_mut();
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
}

impl AddAssign for Sent {
    fn add_assign(&mut self, more: Sent) {
        self.frames += more.frames;
        self.bytes += more.bytes;
        self.full += more.full;
        self.refused += more.refused;
        self.link_down += more.link_down;
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
            Fate::Full => self.full += count,
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
    use crate::wire::Offload;

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
            other.views(&batch).map(|view| (view.head[0], view.frame.len())).collect::<Vec<_>>(),
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
        assert_eq!(sent, Sent { frames: 3, bytes: 180, full: 1, refused: 1, link_down: 0 });
        assert!(lane.is_empty());
        batch.clear(&mut cache);
        drop(cache);
        assert_eq!(pool.free(), 16);
    }
}
