//! Measures of the control loop, which metrics and the status line read without asking it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in milliseconds.
const BOUNDS: [u64; 11] = [1, 2, 5, 10, 25, 50, 100, 250, 1000, 5000, 30_000];

/// Durations, counted by size.
#[derive(Debug, Default)]
pub struct Durations {
    /// One per bound, and one for all longer ones.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Durations {
    /// Counts one.
    pub fn observe(&self, duration: Duration) {
        let bucket = BOUNDS.iter().position(|&bound| duration <= Duration::from_millis(bound));
        self.buckets[bucket.unwrap_or(BOUNDS.len())].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Their sum in seconds, and per bucket its bound in seconds and its number.
    pub fn read(&self) -> (f64, Vec<(f64, u64)>) {
        let bounds = BOUNDS.iter().map(|&bound| Duration::from_millis(bound).as_secs_f64()).chain([f64::INFINITY]);
        let buckets = bounds.zip(&self.buckets).map(|(bound, count)| (bound, count.load(Ordering::Relaxed)));
        (Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64(), buckets.collect())
    }
}

/// A number that the control loop sets, or adds to.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Sets it.
    pub fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All measures.
#[derive(Debug, Default)]
pub struct Measures {
    /// How late the control loop runs its periodic check.
    pub latency: Durations,
    /// From the request of a change until its answer.
    pub changes: Durations,
    /// Commits of the state, also those that fail.
    pub commits: Durations,
    /// Commits that failed.
    pub commit_failures: Number,
    /// Attempts to open a device after the first one failed.
    pub open_retries: Number,
    /// Changes that wait for the one in progress.
    pub waiting_changes: Number,
    /// Ports and uplinks.
    pub ports: Number,
    /// Those that are up, or administratively down.
    pub ports_well: Number,
    /// Active loops and storms.
    pub troubles: Number,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_by_size() {
        let durations = Durations::default();
        for millis in [0, 1, 2, 31_000] {
            durations.observe(Duration::from_millis(millis));
        }
        let (sum, buckets) = durations.read();
        assert_eq!(
            (sum, buckets.iter().map(|bucket| bucket.1).collect::<Vec<_>>()),
            (31.003, [2, 1].into_iter().chain([0; 9]).chain([1]).collect())
        );
    }
}
