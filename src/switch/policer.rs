//! Token bucket: a rate per second and a burst. Several workers can share a bucket.
//!
//! Uses the generic cell rate algorithm (ITU-T I.371, annex A): the state is the time at which the bucket is full
//! again. A charge moves that time forward by the refill time of its tokens, and is refused if the time would be
//! further ahead than the refill time of a whole burst. Nothing needs refilling, and the state is one word, which
//! several workers update by compare-and-exchange.
//!
//! Integers only. Time is in 1/64 ns and wraps after nine years; the remainder of a charge is carried to the next,
//! so that the rate is exact over any time.

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};
use crate::time::MonoTime;
use std::time::Duration;

/// Time units per ns, as a power of two.
const UNITS_BITS: u32 = 6;
/// Time units per second.
const SECOND: u64 = 1_000_000_000 << UNITS_BITS;
/// Maximum refill time of a burst.
const MAX_BURST_SECONDS: u64 = 3600;
/// Maximum time that `full_at` is ahead of now. A larger distance is a wrapped time in the past: the bucket is
/// full.
const MAX_AHEAD: u64 = 2 * MAX_BURST_SECONDS * SECOND;
/// How far a bucket may be below empty before it counts as charged under another rate. Exceeds the difference of
/// two workers' clocks, each read once per `poll_once`.
const SLACK: u64 = SECOND;

/// A rate per second, with its burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_second: u64,
    burst: u64,
    /// Refill time of one token in units, and the remainder in 1/`per_second` units.
    token: (u64, u64),
    /// Refill time of a whole burst, in units.
    burst_units: u64,
}

impl Rate {
    /// Maximum rate in tokens per second: a token takes at least two units, the error that the remainder can cause
    /// in one charge.
    pub const MAX: u64 = 30_000_000_000;

    /// `per_second` tokens per second with a burst of `burst` tokens.
    ///
    /// A value below 1 counts as 1. The rate is limited to [`Rate::MAX`], the burst to the tokens of an hour.
    pub const fn new(per_second: u64, burst: u64) -> Rate {
        let per_second = clamp(per_second, Rate::MAX);
        let burst = clamp(burst, Rate::max_burst(per_second));
        let (burst_units, _) = span(burst, per_second);
        Rate { per_second, burst, token: span(1, per_second), burst_units }
    }

    /// Maximum burst of a rate: the tokens of an hour.
    pub const fn max_burst(per_second: u64) -> u64 {
        clamp(per_second, Rate::MAX) * MAX_BURST_SECONDS
    }

    /// Tokens per second.
    pub const fn per_second(self) -> u64 {
        self.per_second
    }

    /// Tokens of a full bucket.
    pub const fn burst(self) -> u64 {
        self.burst
    }

    /// Refill time of this many tokens in units, and the remainder. More than a burst costs a burst: a charge above
    /// the bucket's size must not block forever.
    #[inline]
    fn charge(&self, cost: u64) -> (u64, u64) {
        match cost {
            0 | 1 => (self.token.0 * cost, self.token.1 * cost),
            cost => span(if cost < self.burst { cost } else { self.burst }, self.per_second),
        }
    }
}

/// Clamps to 1..=`most`.
const fn clamp(number: u64, most: u64) -> u64 {
    match number {
        0 => 1,
        number if number > most => most,
        number => number,
    }
}

/// Refill time of `tokens` at `per_second` in units, and the remainder in 1/`per_second` units.
#[allow(clippy::cast_possible_truncation)] // an hour at most, and what is less than the divisor
const fn span(tokens: u64, per_second: u64) -> (u64, u64) {
    match tokens.checked_mul(SECOND) {
        Some(product) => (product / per_second, product % per_second),
        None => {
            let (product, per_second) = (tokens as u128 * SECOND as u128, per_second as u128);
            ((product / per_second) as u64, (product % per_second) as u64)
        }
    }
}

/// State of a bucket. A new one is full.
#[derive(Debug, Default)]
pub struct Policer {
    /// Time at which it is full again, in units; full if not ahead of now.
    full_at: AtomicU64,
    /// Sum of the remainders of charges.
    left_over: AtomicU64,
}

impl Policer {
    /// Takes `cost` tokens, all or none; returns whether they were taken. `shared`: whether other workers may
    /// charge the bucket concurrently; if not, this is a plain load and store.
    ///
    /// The admitted cost in any time w is at most burst + rate · w + 1, and close to that for a sender that always
    /// has more, for any costs and number of workers. A changed rate applies from here on: the deficit is kept, up
    /// to one burst.
    #[inline]
    pub fn take(&self, rate: &Rate, cost: u64, now: MonoTime, shared: bool) -> bool {
        let now = units(now);
        let (charge, left_over) = rate.charge(cost);
        let mut full_at = self.full_at.load(Relaxed);
        loop {
            let ahead = ahead(full_at, now);
            if ahead + charge > rate.burst_units {
                return self.deny(rate, full_at, ahead, now);
            }
            let next = now.wrapping_add(ahead + charge);
            if !shared {
                self.full_at.store(next, Relaxed);
                break;
            }
            match self.full_at.compare_exchange_weak(full_at, next, Relaxed, Relaxed) {
                Ok(_) => break,
                Err(meanwhile) => full_at = meanwhile,
            }
        }
        if left_over > 0 {
            self.carry_remainder(rate, left_over, shared);
        }
        true
    }

    /// Whether this many tokens are available.
    #[inline]
    pub fn has(&self, rate: &Rate, cost: u64, now: MonoTime) -> bool {
        ahead(self.full_at.load(Relaxed), units(now)) + rate.charge(cost).0 <= rate.burst_units
    }

    /// Time until it is full again, if nothing is charged.
    pub fn deficit(&self, now: MonoTime) -> Duration {
        Duration::from_nanos(ahead(self.full_at.load(Relaxed), units(now)) >> UNITS_BITS)
    }

    /// Sets the time until it is full again, as an earlier process has left it; at most that of the largest burst.
    pub fn set_deficit(&self, deficit: Duration, now: MonoTime) {
        let deficit = u64::try_from(deficit.as_nanos()).unwrap_or(u64::MAX).saturating_mul(1 << UNITS_BITS);
        self.full_at.store(units(now).wrapping_add(deficit.min(MAX_BURST_SECONDS * SECOND)), Relaxed);
    }

    /// When a token is available: now, if one is.
    pub fn ready(&self, rate: &Rate, now: MonoTime) -> MonoTime {
        let ahead = ahead(self.full_at.load(Relaxed), units(now));
        let ahead = if ahead > rate.burst_units + SLACK { rate.burst_units } else { ahead };
        let missing = (ahead + rate.token.0).saturating_sub(rate.burst_units);
        MonoTime::from_nanos(now.nanos() + missing.div_ceil(1 << UNITS_BITS))
    }

    /// Slow path of a refused charge. A deficit larger than this rate allows stems from a slower rate and is
    /// reduced to an empty bucket.
    #[cold]
    fn deny(&self, rate: &Rate, full_at: u64, ahead: u64, now: u64) -> bool {
        if ahead > rate.burst_units + SLACK {
            // If another worker was faster, its update holds.
            let _ = self.full_at.compare_exchange(full_at, now.wrapping_add(rate.burst_units), Relaxed, Relaxed);
        }
        false
    }

    /// Adds up remainders of charges and charges a unit when they amount to one. Runs after the charge, so that
    /// concurrent charges do not matter.
    fn carry_remainder(&self, rate: &Rate, left_over: u64, shared: bool) {
        let before = if shared {
            self.left_over.fetch_add(left_over, Relaxed)
        } else {
            let before = self.left_over.load(Relaxed);
            self.left_over.store(before.wrapping_add(left_over), Relaxed);
            before
        };
        if before % rate.per_second + left_over >= rate.per_second {
            if shared {
                self.full_at.fetch_add(1, Relaxed);
            } else {
                self.full_at.store(self.full_at.load(Relaxed).wrapping_add(1), Relaxed);
            }
        }
    }
}

/// A time in units, wrapping.
#[inline(always)]
const fn units(now: MonoTime) -> u64 {
    now.nanos() << UNITS_BITS
}

/// Distance of a time ahead of now; 0 if past.
#[inline(always)]
const fn ahead(point: u64, now: u64) -> u64 {
    let ahead = point.wrapping_sub(now);
    if ahead > MAX_AHEAD { 0 } else { ahead }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::time::Duration;

    /// An arbitrary time, far from zero.
    const START: MonoTime = MonoTime::from_secs(1_000_000);

    fn after(nanos: u64) -> MonoTime {
        START + Duration::from_nanos(nanos)
    }

    /// Tokens earned in a time, rounded down.
    fn come(rate: &Rate, nanos: u64) -> u64 {
        u64::try_from(u128::from(rate.per_second()) * u128::from(nanos) / 1_000_000_000).unwrap()
    }

    fn rate() -> impl Strategy<Value = Rate> {
        let per_second = prop_oneof![1u64..100, 1u64..100_000, 1u64..Rate::MAX];
        (per_second, prop_oneof![1u64..10, 1u64..100_000, any::<u64>()]).prop_map(|(r, burst)| Rate::new(r, burst))
    }

    /// Takes all tokens. Returns their number.
    fn drain(bucket: &Policer, rate: &Rate, now: MonoTime, shared: bool) -> u64 {
        let (mut taken, mut cost) = (0, rate.burst());
        while cost > 0 {
            if bucket.take(rate, cost, now, shared) {
                taken += cost;
            } else {
                cost /= 2;
            }
        }
        taken
    }

    proptest! {
        /// In any window between two admitted charges.
        #[test]
        fn no_window_has_more_than_its_rate_and_a_burst(
            rate in rate(),
            tries in vec((0u64..50, 0u64..30), 1..200),
            shared: bool,
        ) {
            let bucket = Policer::default();
            // In steps of the size of burst and interval.
            let unit = 1_000_000_000 / rate.per_second() / 7 + rate.burst_units / 1000 / 64 + 1;
            let mut now = 0;
            let mut admitted: Vec<(u64, u64)> = Vec::new();
            for (wait, cost) in tries {
                now += wait * unit;
                let cost = cost * (rate.burst() / 20 + 1);
                let had = bucket.has(&rate, cost, after(now));
                let took = bucket.take(&rate, cost, after(now), shared);
                prop_assert_eq!(had, took);
                if took {
                    admitted.push((now, cost.min(rate.burst())));
                }
            }
            for (first, &(begin, _)) in admitted.iter().enumerate() {
                let mut sum = 0;
                for &(end, cost) in &admitted[first..] {
                    sum += cost;
                    prop_assert!(sum <= rate.burst() + come(&rate, end - begin) + 1);
                }
            }
        }

        /// Taking all tokens whenever there are some yields the rate exactly, for any time.
        #[test]
        fn constant_demand_gets_the_whole_rate(rate in rate(), waits in vec(1u64..1_000_000_000, 1..100), shared: bool) {
            // While the bucket cannot have filled up in between and lost tokens.
            let room = (rate.burst_units - rate.token.0) / 64;
            if room == 0 {
                return Ok(());
            }
            let bucket = Policer::default();
            let (mut now, mut taken) = (0, drain(&bucket, &rate, START, shared));
            prop_assert_eq!(taken, rate.burst(), "it is full at first");
            for wait in waits {
                now += wait % room + 1;
                taken += drain(&bucket, &rate, after(now), shared);
                let due = rate.burst() + come(&rate, now);
                prop_assert!(taken <= due + 1 && taken + 1 >= due, "{} of {}", taken, due);
            }
        }

        #[test]
        fn tokens_are_available_at_the_reported_time(rate in rate(), waits in vec(0u64..2_000_000_000, 1..20)) {
            let bucket = Policer::default();
            let mut now = START;
            for wait in waits {
                now = now + Duration::from_nanos(wait);
                drain(&bucket, &rate, now, false);
                let ready = bucket.ready(&rate, now);
                prop_assert!(ready > now);
                prop_assert!(!bucket.has(&rate, 1, ready - Duration::from_nanos(1)));
                prop_assert!(bucket.has(&rate, 1, ready));
                prop_assert_eq!(bucket.ready(&rate, ready), ready);
            }
        }

        /// Full again after the time of one burst, and full for years.
        #[test]
        fn an_idle_bucket_is_full(rate in rate(), start in 0u64..1 << 40, idle in 0u64..(1 << 58) - (1 << 44)) {
            let bucket = Policer::default();
            let start = MonoTime::from_nanos(start);
            prop_assert_eq!(drain(&bucket, &rate, start, false), rate.burst());
            let idle = Duration::from_nanos((rate.burst_units >> 6) + 2 + idle);
            prop_assert!(bucket.take(&rate, rate.burst(), start + idle, false));
        }

        /// A new rate applies from the next charge on; a debt under the old one does not block it.
        #[test]
        fn a_rate_can_change(before in rate(), rate in rate(), wait in 0u64..3_000_000_000, shared: bool) {
            let bucket = Policer::default();
            drain(&bucket, &before, START, shared);
            let mut taken = drain(&bucket, &rate, after(wait), shared);
            prop_assert!(taken <= rate.burst());
            for step in 1..10 {
                let nanos = step * 300_000_000;
                taken += drain(&bucket, &rate, after(wait + nanos), shared);
                prop_assert!(taken <= rate.burst() + come(&rate, nanos) + 1);
            }
            let token = 1_000_000_000 / rate.per_second() + 1;
            prop_assert!(bucket.ready(&rate, after(wait + 3_000_000_000)) <= after(wait + 4_000_000_000 + token));
        }

        /// A charge larger than the burst costs one burst and passes when the bucket is full.
        #[test]
        fn a_charge_larger_than_the_burst_passes_eventually(rate in rate(), more in 0u64..1000) {
            let bucket = Policer::default();
            let cost = rate.burst().saturating_add(more);
            prop_assert!(bucket.take(&rate, cost, START, false));
            prop_assert!(!bucket.has(&rate, 1, START));
            let full = START + Duration::from_nanos((rate.burst_units >> 6) + 2);
            prop_assert!(bucket.take(&rate, cost, full, false));
        }
    }

    #[test]
    fn a_charge_is_the_refill_time_of_its_tokens() {
        let rate = Rate::new(7, 100);
        assert_eq!((rate.charge(0), rate.charge(1)), ((0, 0), (SECOND / 7, SECOND % 7)));
        assert_eq!(rate.charge(2), (2 * SECOND / 7, 2 * SECOND % 7));
        assert_eq!(rate.charge(101), rate.charge(100), "more than a burst costs a burst");
    }

    /// The bucket was emptied at one token per second; then the rate rises to a thousand. A debt of up to a second more
    /// than a burst may be that of a worker with another clock.
    #[test]
    fn a_debt_of_a_slower_rate_shrinks_to_an_empty_bucket() {
        let rate = Rate::new(1000, 1000);
        for (debt, millis) in [(2, 1001), (3, 1)] {
            let bucket = Policer::default();
            assert!(bucket.take(&Rate::new(1, debt), debt, START, false));
            let ready = after(millis * 1_000_000);
            assert_eq!(bucket.ready(&rate, START), ready, "{debt}");
            assert!(!bucket.take(&rate, 1, START, false));
            assert_eq!(bucket.ready(&rate, START), ready, "{debt}");
            assert!(!bucket.has(&rate, 1, ready - Duration::from_nanos(1)), "{debt}");
            assert!(bucket.take(&rate, 1, ready, false), "{debt}");
        }
    }

    #[test]
    fn an_empty_bucket_is_empty_for_a_worker_whose_clock_is_behind() {
        let (bucket, rate) = (Policer::default(), Rate::new(1, 3600));
        assert!(bucket.take(&rate, 3600, START, true));
        assert!(!bucket.has(&rate, 1, START - Duration::from_millis(500)));
    }

    #[test]
    fn a_rate_of_zero_is_the_smallest_rate() {
        assert_eq!(Rate::new(0, 0), Rate::new(1, 1));
        assert_eq!(Rate::new(1, u64::MAX), Rate::new(1, 3600));
        assert_eq!(Rate::new(u64::MAX, 1).per_second(), Rate::MAX);
    }

    /// Threads with different clocks share one rate.
    #[test]
    fn several_threads_share_one_rate() {
        // Within a second, by which clocks may differ.
        const STEPS: u64 = 900;
        for rate in [Rate::new(100_000, 2000), Rate::new(999_983, 7001), Rate::new(7, 3)] {
            let bucket = Policer::default();
            let taken: u64 = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4u64)
                    .map(|thread| {
                        let bucket = &bucket;
                        scope.spawn(move || {
                            let steps = (0..STEPS).map(|step| {
                                let now = after(step * 1_000_000 + thread * 37_000);
                                (0..).take_while(|_| bucket.take(&rate, 1, now, true)).count() as u64
                            });
                            let taken: u64 = steps.sum();
                            let end = after(STEPS * 1_000_000);
                            taken + (0..).take_while(|_| bucket.take(&rate, 1, end, true)).count() as u64
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            let due = rate.burst() + come(&rate, STEPS * 1_000_000);
            assert!(taken <= due + 1, "{taken} of {due}");
            // The first thread may have started later than the others.
            let late = come(&rate, 3 * 37_000) + 1;
            assert!(taken + late >= due, "{taken} of {due}");
        }
    }
}
