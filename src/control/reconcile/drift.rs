//! Differences of a netdev from its port's settings: what has been reported, and when to restore it.
//!
//! Anyone in the netdev's namespace can change it any number of times. Events are therefore limited per port, and the
//! pause between restorations doubles each time.

use std::time::Duration;

use crate::time::MonoTime;

/// Maximum burst of events of a port.
const BURST: u32 = 8;

/// Time per further event.
const REFILL: Duration = Duration::from_secs(10);

/// Maximum changes collected for the next event.
const KEPT_CHANGES: usize = 8;

/// Time for which a netdev must be missing in readings before it counts as lost. The device of a deleted netdev fails
/// within this time.
const MISSING_GRACE: Duration = Duration::from_millis(800);

/// Minimum and maximum pause between restorations.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// Differences of one port's netdev.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drift {
    /// Current differences.
    warnings: Vec<String>,
    /// Differences in the last event.
    reported: Vec<String>,
    /// Other changes since then, and the number of more.
    changes: Vec<String>,
    more_changes: u32,
    /// Recent events.
    events: u32,
    /// Since when `events` is counted.
    counted_from: MonoTime,
    /// Last restoration, and the pause after it.
    restored: Option<(MonoTime, Duration)>,
    /// Since when it is missing, and whether it counts as lost.
    missing: Option<MonoTime>,
    is_lost: bool,
}

impl Drift {
    /// Current differences.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Records current differences and changes.
    pub fn update(&mut self, warnings: Vec<String>, changes: Vec<String>) {
        self.warnings = warnings;
        for change in changes {
            if self.changes.len() < KEPT_CHANGES {
                self.changes.push(change);
            } else {
                self.more_changes = self.more_changes.saturating_add(1);
            }
        }
    }

    /// Records that the netdev is missing. Returns whether it counts as lost.
    pub fn record_missing(&mut self, now: MonoTime) -> bool {
        let since = *self.missing.get_or_insert(now);
        self.is_lost = now.since(since) >= MISSING_GRACE;
        self.is_lost
    }

    /// Records that the netdev exists.
    pub fn record_found(&mut self) {
        (self.missing, self.is_lost) = (None, false);
    }

    /// Whether it was missing in the last reading.
    pub fn is_missed(&self) -> bool {
        self.missing.is_some()
    }

    /// Whether it counts as lost.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Text of the event that is due, if any.
    pub fn report(&mut self, now: MonoTime) -> Option<String> {
        if self.warnings == self.reported && self.changes.is_empty() || !self.may_report(now) {
            return None;
        }
        let mut parts = std::mem::take(&mut self.changes);
        match std::mem::take(&mut self.more_changes) {
            0 => {}
            more => parts.push(format!("{more} more changes since")),
        }
        let events = self.warnings.iter().filter(|warning| !self.reported.contains(warning));
        parts.extend(events.cloned());
        if self.warnings.is_empty() && !self.reported.is_empty() {
            parts.push("its netdev is as the port has it again".into());
        } else if parts.is_empty() {
            parts.push(format!("still: {}", self.warnings.join("; ")));
        }
        self.reported.clone_from(&self.warnings);
        Some(parts.join("; "))
    }

    fn may_report(&mut self, now: MonoTime) -> bool {
        let refilled = now.since(self.counted_from).as_nanos() / REFILL.as_nanos();
        if refilled > 0 {
            self.events = self.events.saturating_sub(u32::try_from(refilled).unwrap_or(u32::MAX));
            self.counted_from = now;
        }
        let may = self.events < BURST;
        self.events += u32::from(may);
        may
    }

    /// Whether the netdev may be restored now; starts the next pause if so.
    pub fn may_restore(&mut self, now: MonoTime) -> bool {
        let pause = match self.restored {
            None => FIRST_PAUSE,
            Some((last, pause)) if now.since(last) < pause => return false,
            // No restoration was needed for longer than the maximum pause.
            Some((last, pause)) if now.since(last) > LONGEST_PAUSE + pause => FIRST_PAUSE,
            Some((_, pause)) => (pause * 2).min(LONGEST_PAUSE),
        };
        self.restored = Some((now, pause));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> MonoTime {
        MonoTime::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    fn warnings(of: &[&str]) -> Vec<String> {
        of.iter().map(|&warning| warning.to_owned()).collect()
    }

    #[test]
    fn each_difference_and_its_end_are_reported_once() {
        let mut drift = Drift::default();
        assert_eq!(drift.report(at(0)), None);
        drift.update(warnings(&["has MTU 900, port has 1500"]), Vec::new());
        assert_eq!(drift.report(at(1)).as_deref(), Some("has MTU 900, port has 1500"));
        assert_eq!(drift.report(at(2)), None);
        drift.update(warnings(&["has MTU 900, port has 1500", "has master br0"]), Vec::new());
        assert_eq!(drift.report(at(3)).as_deref(), Some("has master br0"));
        drift.update(warnings(&["has master br0"]), Vec::new());
        assert_eq!(drift.report(at(4)).as_deref(), Some("still: has master br0"));
        drift.update(Vec::new(), Vec::new());
        assert_eq!(drift.report(at(5)).as_deref(), Some("its netdev is as the port has it again"));
        drift.update(Vec::new(), warnings(&["the MAC address was a and is b"]));
        assert_eq!(drift.report(at(6)).as_deref(), Some("the MAC address was a and is b"));
        assert_eq!(drift.report(at(7)), None);
    }

    #[test]
    fn constant_changes_cause_few_events_and_the_last_state_is_reported() {
        let mut drift = Drift::default();
        let mut events = 0;
        for millis in 0..20_000 {
            drift.update(warnings(&[&format!("MTU {millis}")]), warnings(&["MAC"]));
            events += u64::from(drift.report(at(millis)).is_some());
        }
        assert_eq!(events, u64::from(BURST) + 1, "one more in ten seconds");
        let last = drift.report(at(60_000)).unwrap();
        assert!(last.contains("MTU 19999") && last.contains("more changes"), "{last}");
    }

    #[test]
    fn a_netdev_is_lost_after_a_time() {
        let mut drift = Drift::default();
        assert!(!drift.record_missing(at(0)) && !drift.record_missing(at(1)) && drift.is_missed());
        drift.record_found();
        assert!(
            !drift.record_missing(at(5000)) && !drift.is_lost() && drift.record_missing(at(6000)) && drift.is_lost()
        );
        drift.record_found();
        assert!(!drift.is_lost() && !drift.is_missed());
    }

    #[test]
    fn corrections_are_rate_limited() {
        let mut drift = Drift::default();
        let times: Vec<u64> = (0..200_000).step_by(10).filter(|&millis| drift.may_restore(at(millis))).collect();
        assert_eq!(times[..5], [0, 1000, 3000, 7000, 15_000]);
        assert!(times.len() <= 9, "{times:?}");
        // After a quiet time, drift is corrected at once again.
        assert!(drift.may_restore(at(400_000)) && !drift.may_restore(at(400_900)) && drift.may_restore(at(401_000)));
    }
}
