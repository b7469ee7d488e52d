//! Whether a port sends what belongs to others, as its counter of foreign sources tells. It is told
//! when it begins, and not again before it has been quiet for [`HOLD`].

use std::time::Duration;

use crate::time::MonoTime;

/// For how long a port must not have sent a foreign source before it is told of again.
pub const HOLD: Duration = Duration::from_secs(30);

/// What is known of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoofAlarm {
    spoofed: u64,
    observed: bool,
    last: Option<MonoTime>,
}

impl SpoofAlarm {
    /// Looks at a port from which so many frames with foreign sources have ever come. Whether it begins.
    pub fn observe(&mut self, spoofed: u64, now: MonoTime) -> bool {
        let more = std::mem::replace(&mut self.spoofed, spoofed) < spoofed;
        if !std::mem::replace(&mut self.observed, true) || !more {
            return false;
        }
        let was = self.last.replace(now);
        was.is_none_or(|last| now.since(last) >= HOLD)
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
    fn spoofing_is_reported_once_until_quiet() {
        let mut guard = SpoofAlarm::default();
        assert!(!guard.observe(3, at(0)), "counted before");
        assert!(guard.observe(4, at(1)));
        assert!(!guard.observe(5, at(30)));
        assert!(!guard.observe(5, at(59)));
        assert!(!guard.observe(6, at(59)));
        assert!(guard.observe(7, at(89)));
    }

    proptest! {
        /// Reported exactly if there are new drops after a quiet time.
        #[test]
        fn spoofing_is_reported_again_after_a_quiet_time(steps in prop::collection::vec((0u64..2, 0u64..50), 0..60)) {
            let mut guard = SpoofAlarm::default();
            guard.observe(0, at(0));
            let (mut spoofed, mut now, mut event): (u64, u64, Vec<u64>) = (0, 0, Vec::new());
            for (more, pause) in steps {
                spoofed += more;
                now += pause;
                let expected = more > 0 && event.iter().all(|&before| now - before >= HOLD.as_secs());
                prop_assert_eq!(guard.observe(spoofed, at(now)), expected);
                event.extend((more > 0).then_some(now));
            }
        }
    }
}
