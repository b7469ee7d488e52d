//! Time as a value. This is the one place of the program that reads a clock; everything else is
//! handed a [`Moment`], so that tests can make up their own.

use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

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

/// A point in time as text: RFC 3339, UTC, milliseconds. Texts of this form sort as the times do.
pub fn rfc3339(time: SystemTime) -> String {
    // What no calendar has is told as its end.
    format!("{:.3}", Timestamp::try_from(time).unwrap_or(Timestamp::MAX))
}

/// The point in time that an RFC 3339 text of any offset names.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

/// Reads the wall clock, for people to read: what `now` is in their calendar.
#[allow(clippy::disallowed_methods)] // this is the place
pub fn wall() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn texts_sort_as_times_do(a in 0u64..1 << 47, b in 0u64..1 << 47) {
            let [a, b] = [a, b].map(|millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
            prop_assert_eq!(parse_rfc3339(&rfc3339(a)), Some(a));
            prop_assert_eq!(a.cmp(&b), rfc3339(a).cmp(&rfc3339(b)));
        }
    }

    #[test]
    fn times_are_told_in_utc_with_milliseconds() {
        let text = "2026-01-31T13:00:00.25+01:00";
        assert_eq!(rfc3339(parse_rfc3339(text).unwrap()), "2026-01-31T12:00:00.250Z");
        for wrong in ["", "yesterday", "2026-01-31", "2026-02-30T00:00:00Z", "12:00"] {
            assert_eq!(parse_rfc3339(wrong), None, "{wrong}");
        }
    }
}
