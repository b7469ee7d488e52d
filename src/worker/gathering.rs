//! Leaves a device alone for a moment where frames come one after the other and every send is a system
//! call: they gather at the device, and one call sends several of them. NICs moderate their interrupts
//! for the same reason.
//!
//! Nobody waits who need not: a frame that comes after a pause is taken at once, and so is the next one.
//! Where as many come as a call takes, there is nothing to wait for either.

use std::time::Duration;

use crate::time::Moment;

/// Frames in a burst from which on the next is not waited for: what the kernel copies out of a ring in
/// one call.
const ENOUGH: usize = 32;

/// Whether a device is left alone just now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gathering {
    /// How long it is, at most. Nothing for most devices.
    time: Duration,
    /// When it is to be asked again; when it was last read, if it may be asked.
    until: Moment,
}

impl Gathering {
    pub(super) fn new(time: Duration) -> Gathering {
        Gathering { time, until: Moment::default() }
    }

    /// Whether the device may be asked.
    #[inline]
    pub(super) fn is_over(&self, now: Moment) -> bool {
        now >= self.until
    }

    /// Notes that so many frames have come at once, more than none.
    #[inline]
    pub(super) fn was_read(&mut self, frames: usize, now: Moment) {
        let they_come_steadily = now < self.until + self.time;
        self.until = if they_come_steadily && frames < ENOUGH { now + self.time } else { now };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: Duration = Duration::from_micros(4);

    fn at(nanos: u64) -> Moment {
        Moment::from_secs(1) + Duration::from_nanos(nanos)
    }

    /// A device to which frames come at these moments, asked every 100 ns. When each was taken.
    fn taken(time: Duration, arrivals: &[u64]) -> Vec<u64> {
        let (mut gathering, mut taken) = (Gathering::new(time), Vec::new());
        for now in (0..).step_by(100) {
            if taken.len() == arrivals.len() {
                return taken;
            }
            let here = arrivals[taken.len()..].iter().filter(|&&arrival| arrival <= now).count();
            if here > 0 && gathering.is_over(at(now)) {
                gathering.was_read(here, at(now));
                taken.extend(std::iter::repeat_n(now, here));
            }
        }
        unreachable!()
    }

    #[test]
    fn what_comes_after_a_pause_is_taken_at_once_and_so_is_the_next() {
        assert_eq!(taken(TIME, &[0, 1_000, 50_000, 51_000]), [0, 1_000, 50_000, 51_000]);
    }

    #[test]
    fn of_what_comes_steadily_several_are_taken_at_once() {
        let every_two: Vec<u64> = (0..100).map(|number| number * 2_000).collect();
        let mut reads = taken(TIME, &every_two);
        reads.dedup();
        assert!(reads.len() <= 52, "{reads:?}");
    }

    #[test]
    fn a_device_that_has_more_than_enough_is_asked_at_once() {
        let mut gathering = Gathering::new(TIME);
        for now in 0..10 {
            assert!(gathering.is_over(at(now)));
            gathering.was_read(ENOUGH, at(now));
        }
    }

    proptest! {
        #[test]
        fn nobody_waits_longer_than_that_and_without_it_nobody_waits(pauses in prop::collection::vec(0u64..20_000, 1..60)) {
            let arrivals: Vec<u64> = pauses.iter().scan(0, |at, pause| { *at += pause; Some(*at) }).collect();
            for time in [Duration::ZERO, TIME] {
                for (taken, &arrival) in taken(time, &arrivals).into_iter().zip(&arrivals) {
                    prop_assert!(taken < arrival + 100 + u64::try_from(time.as_nanos()).unwrap());
                }
            }
        }
    }
}
