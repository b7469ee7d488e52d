//! An alarm on a counter of unwanted frames: frames beyond a MAC limit, frames with the source of another VM.
//!
//! It is raised when the counter grows, and cleared when it has not grown for [`HOLD`]: a guest that sends them with
//! interruptions is reported once, and not with each frame.

use std::time::Duration;

use crate::time::MonoTime;

/// How long the counter may not grow before the alarm is cleared.
pub const HOLD: Duration = Duration::from_secs(30);

/// The alarm on one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Alarm {
    /// The counter at the last look.
    count: u64,
    /// Whether the alarm was raised at the last reading.
    is_on: bool,
    /// Time of the last growth, while raised.
    last: Option<MonoTime>,
}

/// Transition found by a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// The counter has started to grow.
    Raised,
    /// It has not grown for [`HOLD`], or the alarm was turned off.
    Cleared,
}

impl Alarm {
    /// An alarm that ignores what has been counted so far.
    pub fn starting_at(count: u64) -> Alarm {
        Alarm { count, ..Alarm::default() }
    }

    /// Records a reading.
    pub fn observe(&mut self, count: u64, now: MonoTime) -> Option<Transition> {
        self.is_on = true;
        if std::mem::replace(&mut self.count, count) != count {
            return self.last.replace(now).is_none().then_some(Transition::Raised);
        }
        self.last.take_if(|last| now.since(*last) >= HOLD).map(|_| Transition::Cleared)
    }

    /// Clears the alarm until the next reading, and ignores what has been counted so far.
    pub fn turn_off(&mut self, count: u64) -> Option<Transition> {
        (self.count, self.is_on) = (count, false);
        self.last.take().map(|_| Transition::Cleared)
    }

    /// Whether the alarm was raised at the last reading.
    pub fn is_on(&self) -> bool {
        self.is_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(secs: u64) -> MonoTime {
        MonoTime::from_secs(1000) + Duration::from_secs(secs)
    }

    #[test]
    fn each_transition_is_reported_once() {
        let mut port = Alarm::default();
        assert_eq!(port.observe(0, at(0)), None);
        assert_eq!(port.observe(1, at(1)), Some(Transition::Raised));
        assert_eq!(port.observe(500, at(2)), None, "the alarm stays active");
        assert_eq!(port.observe(500, at(31)), None, "not for long enough");
        assert_eq!(port.observe(501, at(31)), None);
        assert_eq!(port.observe(501, at(60)), None, "the last excess was later");
        assert_eq!(port.observe(501, at(61)), Some(Transition::Cleared));
        assert_eq!(port.observe(501, at(1000)), None);
        assert_eq!(port.observe(502, at(1001)), Some(Transition::Raised));
    }

    #[test]
    fn what_was_counted_while_it_was_off_does_not_raise_it() {
        let mut port = Alarm::default();
        port.observe(7, at(0));
        assert!(port.is_on() && !Alarm::default().is_on());
        assert_eq!(port.turn_off(9), Some(Transition::Cleared));
        assert_eq!(port.turn_off(9), None);
        assert_eq!(port.observe(9, at(1)), None, "nothing was counted since");
        assert_eq!(port.observe(10, at(2)), Some(Transition::Raised));
        let mut other = Alarm::starting_at(3);
        assert_eq!(other.observe(3, at(0)), None);
        assert_eq!(other.observe(4, at(1)), Some(Transition::Raised));
    }

    proptest! {
        /// For any input: raised and cleared alternate, each as soon as its condition holds.
        #[test]
        fn transitions_alternate(steps in prop::collection::vec((0u64..3, 0u64..40, prop::bool::weighted(0.1)), 0..60)) {
            let (mut port, mut count, mut now) = (Alarm::default(), 0, 0);
            let mut last: Option<u64> = None;
            for (more, pause, is_off) in steps {
                count += more;
                now += pause;
                let is_quiet = is_off || more == 0 && last.is_some_and(|last| now - last >= HOLD.as_secs());
                let expected = match last {
                    None if more > 0 && !is_off => Some(Transition::Raised),
                    Some(_) if is_quiet => Some(Transition::Cleared),
                    _ => None,
                };
                last = if is_quiet { None } else if more > 0 { Some(now) } else { last };
                let transition = if is_off { port.turn_off(count) } else { port.observe(count, at(now)) };
                prop_assert_eq!(transition, expected);
                prop_assert_eq!(port.is_on(), !is_off);
            }
        }
    }
}
