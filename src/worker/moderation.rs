//! Leaves a device alone for a moment where frames come fast one after the other and every send is a system
//! call: they gather at the device, and one call sends several of them. NICs moderate their interrupts
//! for the same reason.
//!
//! Nobody waits who need not: it takes a while of so many frames that waiting brings company, and what comes
//! after a pause is taken at once. Where as many come as a call takes, there is nothing to wait for either.

use std::time::Duration;

use crate::time::MonoTime;

/// Frames in a burst from which on the next is not waited for: what the kernel copies out of a ring in
/// one call.
const MAX_FRAMES: i64 = 32;

/// Waiting pays where more than so many small frames come in its time.
const BREAK_EVEN_FRAMES: i64 = 3;

/// Bytes of a frame that are as much work as another small one: of large frames, fewer are enough.
const BYTES_PER_FRAME: i64 = 3 << 10;

/// Over how many times of waiting that is counted. It outlasts the moments at which a core stands still, behind
/// which frames come faster than they are sent.
const CREDIT_SPAN: u32 = 20;

/// Whether a device is left alone just now.
#[derive(Debug, Clone, Copy)]
pub(super) struct RxModeration {
    /// How long it is, at most. Nothing for most devices.
    time: Duration,
    /// When it was last read.
    last_read: MonoTime,
    /// When it may be asked again.
    until: MonoTime,
    /// By how many nanoseconds frames have come earlier than so that waiting just pays. It falls to [`CREDIT_SPAN`]
    /// times of waiting below zero and rises to one above: waiting begins slowly and ends soon.
    credit: i64,
}

impl RxModeration {
    pub(super) fn new(time: Duration) -> RxModeration {
        RxModeration { time, last_read: MonoTime::default(), until: MonoTime::default(), credit: 0 }
    }

    /// Whether the device may be asked.
    #[inline]
    pub(super) fn is_due(&self, now: MonoTime) -> bool {
        now >= self.until
    }

    /// Notes that so many frames have come at once, more than none, and how long they are, or the first of them.
    #[inline]
    pub(super) fn record(&mut self, frames: usize, len: usize, now: MonoTime) {
        if self.time.is_zero() {
            return;
        }
        let (most, fast) = (nanos(self.time), nanos(now.since(self.last_read)));
        let (frames, len) = (i64::try_from(frames).unwrap_or(0), i64::try_from(len).unwrap_or(0));
        let due = most * frames * (BYTES_PER_FRAME + len) / (BYTES_PER_FRAME * BREAK_EVEN_FRAMES);
        self.credit = (self.credit + due).saturating_sub(fast).clamp(-most * i64::from(CREDIT_SPAN), most);
        self.last_read = now;
        self.until = if self.credit > 0 && frames < MAX_FRAMES { now + self.time } else { now };
    }
}

fn nanos(time: Duration) -> i64 {
    // 292 years
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: Duration = Duration::from_nanos(6_500);

    fn at(nanos: u64) -> MonoTime {
        MonoTime::from_secs(1) + Duration::from_nanos(nanos)
    }

    /// A device to which frames of this length come at these moments, asked every 100 ns. When each was taken.
    fn taken(time: Duration, len: usize, arrivals: &[u64]) -> Vec<u64> {
        let (mut moderation, mut taken) = (RxModeration::new(time), Vec::new());
        for now in (0..).step_by(100) {
            if taken.len() == arrivals.len() {
                return taken;
            }
            let here = arrivals[taken.len()..].iter().filter(|&&arrival| arrival <= now).count();
            if here > 0 && moderation.is_due(at(now)) {
                moderation.record(here, len, at(now));
                taken.extend(std::iter::repeat_n(now, here));
            }
        }
        unreachable!()
    }

    /// Frames at equal distances.
    fn each(nanos: u64) -> Vec<u64> {
        (0..2000).map(|number| number * nanos).collect()
    }

    #[test]
    fn what_comes_after_a_pause_is_taken_at_once_and_so_are_the_next() {
        let trains: Vec<u64> = (0..100).flat_map(|train| (0..60).map(move |n| train * 200_000 + n * 1_000)).collect();
        assert_eq!(taken(TIME, 60, &trains), trains);
    }

    #[test]
    fn of_what_comes_fast_for_a_while_several_are_taken_at_once() {
        let mut reads = taken(TIME, 60, &each(1_500));
        reads.dedup();
        assert!(reads.len() < 650, "{reads:?}");
    }

    #[test]
    fn where_waiting_brings_hardly_anybody_nobody_waits() {
        assert_eq!(taken(TIME, 60, &each(2_300)), each(2_300));
    }

    /// At a distance at which small ones do not wait.
    #[test]
    fn of_large_frames_fewer_are_enough() {
        let mut reads = taken(TIME, 1_514, &each(2_900));
        reads.dedup();
        assert!(reads.len() < 1_300, "{reads:?}");
        assert_eq!(taken(TIME, 1_514, &each(3_300)), each(3_300));
    }

    #[test]
    fn a_device_that_has_more_than_enough_is_asked_at_once() {
        let mut moderation = RxModeration::new(TIME);
        for now in 0..10 {
            assert!(moderation.is_due(at(now)));
            moderation.record(32, 60, at(now));
        }
    }

    proptest! {
        #[test]
        fn nobody_waits_longer_than_that_and_without_it_nobody_waits(
            pauses in prop::collection::vec(prop_oneof![9 => 0u64..3_000, 1 => 0u64..60_000], 1..200),
        ) {
            // It begins where frames gather.
            let pauses = [1_000; 200].into_iter().chain(pauses);
            let arrivals: Vec<u64> = pauses.scan(0, |at, pause| { *at += pause; Some(*at) }).collect();
            for time in [Duration::ZERO, TIME] {
                for (taken, &arrival) in taken(time, 60, &arrivals).into_iter().zip(&arrivals) {
                    prop_assert!(taken < arrival + 100 + u64::try_from(time.as_nanos()).unwrap());
                }
            }
        }
    }
}
