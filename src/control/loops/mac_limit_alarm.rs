//! Whether a port is at its MAC limit, as its counters tell.
//!
//! It is when a frame came from a station beyond the limit, which was dropped or not learned for
//! that. It is below again when no such frame has come for [`HOLD`]: a guest whose addresses come and
//! go at the limit is told of once, and not with each of them.

use std::time::Duration;

use crate::time::MonoTime;

/// For how long no frame may come from beyond the limit before the port is taken to be below.
pub const HOLD: Duration = Duration::from_secs(30);

/// What is known of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MacLimitAlarm {
    /// How many frames had come from beyond a limit at the last look.
    excess: u64,
    /// Whether it had a limit then.
    is_limited: bool,
    /// When the last of them was noticed, if it is at its limit.
    last: Option<MonoTime>,
}

/// What a look has come to, if there are news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// It has come to its limit.
    Reached,
    /// It is below again, or has no limit any more.
    Below,
}

impl MacLimitAlarm {
    /// Looks at a port that has a limit. `excess`: how many frames have ever come from beyond.
    pub fn observe(&mut self, excess: u64, now: MonoTime) -> Option<Transition> {
        self.is_limited = true;
        if std::mem::replace(&mut self.excess, excess) != excess {
            return self.last.replace(now).is_none().then_some(Transition::Reached);
        }
        let last = self.last?;
        (now.since(last) >= HOLD).then(|| {
            self.last = None;
            Transition::Below
        })
    }

    /// Looks at a port that has none. What has come is of the past, should it get one.
    pub fn clear(&mut self, excess: u64) -> Option<Transition> {
        self.excess = excess;
        self.is_limited = false;
        self.last.take().map(|_| Transition::Below)
    }

    /// Whether it had a limit at the last look.
    pub fn is_limited(&self) -> bool {
        self.is_limited
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
        let mut port = MacLimitAlarm::default();
        assert_eq!(port.observe(0, at(0)), None);
        assert_eq!(port.observe(1, at(1)), Some(Transition::Reached));
        assert_eq!(port.observe(500, at(2)), None, "the alarm stays active");
        assert_eq!(port.observe(500, at(31)), None, "not for long enough");
        assert_eq!(port.observe(501, at(31)), None);
        assert_eq!(port.observe(501, at(60)), None, "the last excess was later");
        assert_eq!(port.observe(501, at(61)), Some(Transition::Below));
        assert_eq!(port.observe(501, at(1000)), None);
        assert_eq!(port.observe(502, at(1001)), Some(Transition::Reached));
    }

    #[test]
    fn a_removed_limit_ends_the_alarm() {
        let mut port = MacLimitAlarm::default();
        port.observe(7, at(0));
        assert!(port.is_limited() && !MacLimitAlarm::default().is_limited());
        assert_eq!(port.clear(9), Some(Transition::Below));
        assert_eq!(port.clear(9), None);
        assert_eq!(port.observe(9, at(1)), None, "a new limit, without excess since");
        assert_eq!(port.observe(10, at(2)), Some(Transition::Reached));
    }

    proptest! {
        /// For any input: starts and stops alternate, and the alarm is active while there is excess.
        #[test]
        fn starts_and_stops_alternate(steps in prop::collection::vec((0u64..3, 0u64..40, prop::bool::weighted(0.1)), 0..60)) {
            let (mut port, mut excess, mut now, mut is_reached) = (MacLimitAlarm::default(), 0, 0, false);
            for (more, pause, lifted) in steps {
                excess += more;
                now += pause;
                let transition = if lifted { port.clear(excess) } else { port.observe(excess, at(now)) };
                if let Some(transition) = transition {
                    prop_assert_eq!(transition == Transition::Reached, !is_reached);
                    is_reached = !is_reached;
                }
                prop_assert_eq!(port.is_limited(), !lifted);
                prop_assert!(is_reached || more == 0 || lifted);
                prop_assert!(!(is_reached && lifted));
            }
        }
    }
}
