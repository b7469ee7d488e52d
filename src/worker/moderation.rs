//! Receive moderation: pauses polling of a device whose peer spends one system call per transmit, so that one call
//! transmits several frames. NICs moderate interrupts for the same reason.
//!
//! Moderation starts only after a sustained rate at which waiting batches frames. The first frames after a pause
//! are received at once. A full burst is not delayed either.

use std::time::Duration;

use crate::time::MonoTime;

/// Bursts of this many frames are not delayed: the kernel copies that many out of a ring in one call.
const MAX_FRAMES: i64 = 32;

/// Waiting pays above this many small frames per moderation interval.
const BREAK_EVEN_FRAMES: i64 = 3;

/// Cost of a frame grows by one small frame per this many bytes: large frames need fewer to break even.
const BYTES_PER_FRAME: i64 = 3 << 10;

/// Length of the credit window, in moderation intervals. It exceeds the stalls of a core, after which frames arrive
/// faster than their sender transmits on average.
const CREDIT_SPAN: u32 = 20;

/// Receive moderation of one queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct RxModeration {
    /// Moderation interval; zero for most devices (no moderation).
    time: Duration,
    /// Time of the last non-empty receive.
    last_read: MonoTime,
    /// Time of the next poll.
    until: MonoTime,
    /// Credit in ns over the break-even rate, clamped to [-T × [`CREDIT_SPAN`], +T], where T is the interval.
    /// Moderation begins slowly and ends soon.
    credit: i64,
}

impl RxModeration {
    pub(super) fn new(time: Duration) -> RxModeration {
        RxModeration { time, last_read: MonoTime::default(), until: MonoTime::default(), credit: 0 }
    }

    /// Whether the interval is over.
    #[inline]
    pub(super) fn is_due(&self, now: MonoTime) -> bool {
        now >= self.until
    }

    /// Records a burst of `frames` > 0 frames; `len` is the length of the first, in bytes.
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

    /// Times at which frames of this length are received that arrive at these times, with a receive every 100 ns.
    fn taken(time: Duration, len: usize, arrivals: &[u64]) -> Vec<u64> {
        let (mut moderation, mut taken) = (RxModeration::new(time), Vec::new());
        for now in (0..).step_by(100) {
            if taken.len() == arrivals.len() {
                return taken;
            }
            let here = arrivals[taken.len()..].iter().take_while(|&&arrival| arrival <= now).count();
            if here > 0 && moderation.is_due(at(now)) {
                moderation.record(here, len, at(now));
                taken.extend(std::iter::repeat_n(now, here));
            }
        }
        unreachable!()
    }

    /// Frames at equal intervals.
    fn each(nanos: u64) -> Vec<u64> {
        (0..2000).map(|number| number * nanos).collect()
    }

    #[test]
    fn frames_after_a_pause_are_received_at_once() {
        let trains: Vec<u64> = (0..100).flat_map(|train| (0..60).map(move |n| train * 200_000 + n * 1_000)).collect();
        assert_eq!(taken(TIME, 60, &trains), trains);
    }

    #[test]
    fn at_a_sustained_rate_frames_are_batched() {
        let mut reads = taken(TIME, 60, &each(1_500));
        reads.dedup();
        assert!(reads.len() < 650, "{reads:?}");
    }

    #[test]
    fn at_a_low_rate_frames_are_not_delayed() {
        assert_eq!(taken(TIME, 60, &each(2_300)), each(2_300));
    }

    /// At an interval at which small frames do not wait.
    #[test]
    fn large_frames_need_a_lower_rate() {
        let mut reads = taken(TIME, 1_514, &each(2_900));
        reads.dedup();
        assert!(reads.len() < 1_300, "{reads:?}");
        assert_eq!(taken(TIME, 1_514, &each(3_300)), each(3_300));
    }

    #[test]
    fn a_full_burst_is_not_delayed() {
        let mut moderation = RxModeration::new(TIME);
        for now in 0..10 {
            assert!(moderation.is_due(at(now)));
            moderation.record(32, 60, at(now));
        }
    }

    proptest! {
        #[test]
        fn frames_wait_for_at_most_the_interval(
            pauses in prop::collection::vec(prop_oneof![9 => 0u64..3_000, 1 => 0u64..60_000], 1..200),
        ) {
            // Starts with a rate that enables moderation.
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
