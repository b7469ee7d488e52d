//! Time as a value. This is the one place of the program that reads a clock; everything else is
//! handed a [`Moment`], so that tests can make up their own.

use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime};

/// A point in time: nanoseconds of the monotonic clock since the host booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// The moment `nanos` nanoseconds after the host booted.
    pub const fn from_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }

    /// The moment `seconds` seconds after the host booted.
    pub const fn from_secs(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000_000)
    }

    /// Nanoseconds since the host booted.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Whole seconds since the host booted, the unit in which stations age. Wraps after 136 years.
    #[allow(clippy::cast_possible_truncation)] // 136 years
    pub const fn secs(self) -> u32 {
        (self.0 / 1_000_000_000) as u32
    }

    /// How long ago `earlier` was; nothing if it is not in the past.
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;
    #[allow(clippy::cast_possible_truncation)] // 584 years
    fn add(self, d: Duration) -> Moment {
        Moment(self.0.saturating_add(d.as_nanos() as u64))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;
    #[allow(clippy::cast_possible_truncation)] // 584 years
    fn sub(self, d: Duration) -> Moment {
        Moment(self.0.saturating_sub(d.as_nanos() as u64))
    }
}

/// Reads the monotonic clock: about 25 ns, so once per breath and never once per frame.
#[allow(clippy::cast_sign_loss)] // the monotonic clock starts at boot
pub fn now() -> Moment {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Moment(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// Reads the wall clock, for people to read: what `now` is in their calendar.
#[allow(clippy::disallowed_methods)] // this is the place
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// A time of the wall clock as text: RFC 3339, UTC, milliseconds, as in `2025-11-03T09:00:00.000Z`.
/// What no calendar has is shown as the beginning of 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    format!("{time:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_milliseconds() {
        let at = |millis| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(1_762_160_400_120), "2025-11-03T09:00:00.120Z");
    }
}
