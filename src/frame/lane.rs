//! What one port is about to send: a lane of the worker's outbox.

use super::pool::Frame;
use super::{Batch, Cache, View};

/// Frames in the order in which one port sends them: owned ones, and borrows of the present burst
/// by their place in it.
#[derive(Debug)]
pub struct Lane {
    entries: Vec<Frame>,
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
        Lane { entries: Vec::with_capacity(capacity) }
    }

    /// How many frames wait.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a frame that owns its slots.
    #[inline(always)]
    pub fn push(&mut self, frame: Frame) {
        self.entries.push(frame);
    }

    /// Adds the frame at `index` of the present burst, which stays where it is.
    #[inline(always)]
    pub fn borrow(&mut self, index: u8) {
        self.entries.push(Frame::borrowed(index));
    }

    /// The frames that wait, in order.
    pub fn views<'a>(&'a self, batch: &'a Batch) -> impl Iterator<Item = View<'a>> {
        self.entries.iter().map(|entry| view(entry, batch))
    }

    /// Shows each frame to `send`, in order, and sees to what comes of it. The lane is empty
    /// afterwards: what could not be sent is dropped, and counted.
    #[inline(always)]
    pub fn send_each(&mut self, batch: &Batch, cache: &mut Cache, mut send: impl FnMut(View<'_>) -> Fate) -> Sent {
        let mut sent = Sent::default();
        for (place, entry) in self.entries.iter().enumerate() {
            let view = view(entry, batch);
            let (count, bytes) = (view.frame.count(), view.frame.count_bytes());
            match send(view) {
                Fate::Sent => {
                    sent.frames += count;
                    sent.bytes += bytes;
                }
                Fate::Refused => sent.refused += count,
                Fate::LinkDown => sent.link_down += count,
                Fate::Full => {
                    sent.full = self.count_from(place, batch);
                    break;
                }
            }
        }
        for entry in self.entries.drain(..) {
            cache.recycle(entry);
        }
        sent
    }

    /// How many frames wait from `place` on.
    #[cold]
    fn count_from(&self, place: usize, batch: &Batch) -> u64 {
        self.entries[place..].iter().map(|entry| view(entry, batch).frame.count()).sum()
    }
}

/// What waits in a lane, as it goes out.
#[inline(always)]
fn view<'a>(entry: &'a Frame, batch: &'a Batch) -> View<'a> {
    match entry.borrow() {
        Some(index) => batch.view(index),
        None => batch.view_of(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;
    use crate::wire::Offload;

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
