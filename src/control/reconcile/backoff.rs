//! Times of retries after a failure: the interval grows exponentially, and a hint that an attempt may succeed shortens
//! it.

use std::time::Duration;

use crate::time::MonoTime;

/// Interval between the first two attempts.
const FIRST: Duration = Duration::from_millis(20);

/// Minimum interval between attempts after hints, which others can provoke.
const LEAST: Duration = Duration::from_millis(100);

/// A hint this long after the last attempt starts a new series.
const SILENCE: Duration = Duration::from_secs(1);

/// Times of attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    delay: Duration,
    next: MonoTime,
    last: MonoTime,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { delay: FIRST, next: MonoTime::default(), last: MonoTime::default() }
    }
}

impl Backoff {
    /// Time of the next attempt.
    pub fn next(&self) -> MonoTime {
        self.next
    }

    /// Whether an attempt is due.
    pub fn is_due(&self, now: MonoTime) -> bool {
        now >= self.next
    }

    /// Records an attempt. The next one is due after the next interval, at most `cap`, with a jitter of a quarter by
    /// `chance`, so that simultaneous failures do not retry simultaneously.
    pub fn tried(&mut self, now: MonoTime, cap: Duration, chance: u64) {
        let delay = self.delay.min(cap);
        let eighths = u32::try_from(chance % 5).unwrap_or_default() + 6;
        (self.last, self.next) = (now, now + delay / 8 * eighths);
        self.delay = (delay * 2).min(cap);
    }

    /// Records a hint that an attempt may succeed now.
    pub fn kick(&mut self, now: MonoTime) {
        let soonest = if self.last == MonoTime::default() { now } else { self.last + LEAST };
        self.next = self.next.min(soonest.max(now));
        if now.since(self.last) >= SILENCE {
            self.delay = FIRST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAP: Duration = Duration::from_secs(5);

    fn at(millis: u64) -> MonoTime {
        MonoTime::from_secs(1000) + Duration::from_millis(millis)
    }

    proptest! {
        #[test]
        fn attempts_back_off_and_never_stop(chances: [u64; 64]) {
            let (mut backoff, mut now) = (Backoff::default(), at(0));
            prop_assert!(backoff.is_due(now));
            let mut before = Duration::ZERO;
            for (number, chance) in chances.into_iter().enumerate() {
                backoff.tried(now, CAP, chance);
                let pause = backoff.next().since(now);
                prop_assert!(!backoff.is_due(now) && backoff.is_due(now + pause));
                prop_assert!(pause <= CAP * 5 / 4);
                prop_assert!(number > 8 || pause > before, "{pause:?} after {before:?}");
                prop_assert!(number < 9 || pause >= CAP * 3 / 4);
                (before, now) = (pause, now + pause);
            }
        }

        #[test]
        fn events_cause_an_attempt_but_are_rate_limited(signs in prop::collection::vec(0u64..30, 1..500)) {
            let mut backoff = Backoff::default();
            (0..20).for_each(|_| backoff.tried(at(0), CAP, 2));
            let (mut now, mut attempts) = (0, 0);
            for pause in signs {
                now += pause;
                backoff.kick(at(now));
                prop_assert!(backoff.next().since(at(now)) <= LEAST);
                if backoff.is_due(at(now)) {
                    attempts += 1;
                    backoff.tried(at(now), CAP, 2);
                }
            }
            prop_assert!(attempts <= now / 100 + 1, "{attempts} in {now} ms");
        }
    }

    #[test]
    fn an_event_after_a_quiet_time_causes_an_attempt_at_once() {
        let mut backoff = Backoff::default();
        (0..20).for_each(|_| backoff.tried(at(0), CAP, 0));
        assert!(!backoff.is_due(at(1000)));
        backoff.kick(at(1000));
        assert!(backoff.is_due(at(1000)));
    }
}
