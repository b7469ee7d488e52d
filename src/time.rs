//! Clocks and points in time. The only module that reads a clock; all others are passed a [`MonoTime`],
//! so that tests can set it.

use std::ops::{Add, Sub};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A point in time: nanoseconds since the host booted, those in suspend included. So what ages, is held down or expires
/// does so while the host is suspended, as it does for every other host on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MonoTime(u64);

impl MonoTime {
    /// The time `nanos` nanoseconds after the host booted.
    pub const fn from_nanos(nanos: u64) -> MonoTime {
        MonoTime(nanos)
    }

    /// The time `seconds` seconds after the host booted.
    pub const fn from_secs(seconds: u64) -> MonoTime {
        MonoTime(seconds * 1_000_000_000)
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

    /// Time elapsed since `earlier`; zero if `earlier` is later.
    pub const fn since(self, earlier: MonoTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for MonoTime {
    type Output = MonoTime;
    #[allow(clippy::cast_possible_truncation)] // 584 years
    fn add(self, d: Duration) -> MonoTime {
        MonoTime(self.0.saturating_add(d.as_nanos() as u64))
    }
}

impl Sub<Duration> for MonoTime {
    type Output = MonoTime;
    #[allow(clippy::cast_possible_truncation)] // 584 years
    fn sub(self, d: Duration) -> MonoTime {
        MonoTime(self.0.saturating_sub(d.as_nanos() as u64))
    }
}

/// Reads CLOCK_BOOTTIME: about 25 ns, so once per loop iteration, never per frame. XDP programs read the same clock.
pub fn now() -> MonoTime {
    moment(rustix::time::clock_gettime(rustix::time::ClockId::Boottime))
}

#[allow(clippy::cast_sign_loss)] // the clock starts at boot
const fn moment(t: rustix::time::Timespec) -> MonoTime {
    MonoTime(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
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

/// Milliseconds since 1970; 0 before that.
pub fn unix_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

/// A point in time that can be compared with one of another life of the switch, and of another life of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Boot id of the host; empty if unknown.
    boot: String,
    /// Milliseconds since the host booted.
    boot_millis: i64,
    /// Milliseconds since 1970; 0 before that.
    pub wall_millis: i64,
}

/// No host is off for longer, and what was kept before that is of no use any more. A wall clock that says more has been
/// set.
const LONGEST_OFF: Duration = Duration::from_secs(31 * 24 * 3600);

impl Stamp {
    /// Now.
    pub fn now() -> Stamp {
        static BOOT: OnceLock<String> = OnceLock::new();
        let boot = BOOT.get_or_init(|| {
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
            boot.trim().to_owned()
        });
        Stamp {
            boot: boot.clone(),
            boot_millis: millis(Duration::from_nanos(now().nanos())),
            wall_millis: wall_millis(),
        }
    }

    /// One of which only the wall clock is known.
    pub fn of_wall(wall_millis: i64) -> Stamp {
        Stamp { boot: String::new(), boot_millis: 0, wall_millis }
    }

    /// How much time has passed until `now`. As long as the host has not been booted in between, that is known exactly,
    /// whatever has been done to the wall clock. Else the wall clock tells; nothing grows younger by it.
    pub fn age(&self, now: &Stamp) -> Duration {
        let passed = if self.is_of_one_boot(now) {
            now.boot_millis.saturating_sub(self.boot_millis)
        } else {
            now.wall_millis.saturating_sub(self.wall_millis)
        };
        Duration::from_millis(u64::try_from(passed).unwrap_or(0))
    }

    /// The same for what must neither end too early nor never: where the wall clock cannot be right, as much has passed
    /// as the host has been up.
    pub fn passed(&self, now: &Stamp) -> Duration {
        let age = self.age(now);
        if self.boot.is_empty() || self.is_of_one_boot(now) {
            return age;
        }
        let up = Duration::from_millis(u64::try_from(now.boot_millis).unwrap_or(0));
        if age <= LONGEST_OFF { age.max(up) } else { up }
    }

    fn is_of_one_boot(&self, other: &Stamp) -> bool {
        !self.boot.is_empty() && self.boot == other.boot
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

fn wall_millis() -> i64 {
    wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, millis)
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
    fn time_in_suspend_counts() {
        use rustix::time::{ClockId, clock_gettime};
        const SUSPENDED: u64 = 100_000;
        let read = |clock| moment(clock_gettime(clock));
        let (before, now, after) = (read(ClockId::Boottime), now(), read(ClockId::Boottime));
        assert!(before <= now && now <= after, "{before:?} {now:?} {after:?}");
        if std::env::var_os("VIFSWITCH_SUSPENDED").is_some() {
            assert!(now.since(read(ClockId::Monotonic)) > Duration::from_secs(SUSPENDED - 60));
            return;
        }
        // Again where both clocks differ, as on a host that was suspended.
        let offset = SUSPENDED.to_string();
        let mut command = std::process::Command::new("unshare");
        command.args(["--time", "--fork", "--boottime", &offset]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "time::tests::time_in_suspend_counts"]).env("VIFSWITCH_SUSPENDED", "1");
        match command.output() {
            Ok(output) if String::from_utf8_lossy(&output.stderr).starts_with("unshare:") => {
                eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
            Err(e) => eprintln!("skipped: needs unshare: {e}"),
        }
    }

    #[test]
    fn elapsed_time_does_not_depend_on_the_wall_clock() {
        const YEARS: i64 = 10 * 365 * 86_400_000;
        let at = |boot: &str, boot_millis, wall_millis| Stamp { boot: boot.into(), boot_millis, wall_millis };
        let (then, seconds) = (at("a", 5_000, 100 * YEARS), Duration::from_secs);
        for jump in [0, YEARS, -YEARS] {
            let same = at("a", 12_000, 100 * YEARS + jump);
            assert_eq!(then.passed(&same), seconds(7), "{jump}");
        }
        // Across a boot the wall clock applies, unless it is implausible.
        assert_eq!(then.passed(&at("b", 3_000, 100 * YEARS + 60_000)), seconds(60));
        assert_eq!(then.passed(&at("b", 30_000, 100 * YEARS + YEARS)), seconds(30));
        assert_eq!(then.passed(&at("b", 30_000, 90 * YEARS)), seconds(30));
        assert_eq!(then.age(&at("b", 30_000, 100 * YEARS + YEARS)), seconds(10 * 365 * 86_400));
        assert_eq!(Stamp::of_wall(YEARS).passed(&at("b", 30_000, YEARS + 9_000)), seconds(9));
        assert_eq!(Stamp::of_wall(YEARS).passed(&at("b", 30_000, 0)), seconds(0));
        let now = Stamp::now();
        assert!(!now.boot.is_empty() && now.passed(&Stamp::now()) < seconds(60));
    }

    #[test]
    fn times_are_displayed_in_utc_with_milliseconds() {
        let text = "2026-01-31T13:00:00.25+01:00";
        assert_eq!(rfc3339(parse_rfc3339(text).unwrap()), "2026-01-31T12:00:00.250Z");
        for wrong in ["", "yesterday", "2026-01-31", "2026-02-30T00:00:00Z", "12:00"] {
            assert_eq!(parse_rfc3339(wrong), None, "{wrong}");
        }
    }
}
