//! Escalation of the measures against one loop.
//!
//! A loop of siblings starts with the mildest measure: floods of one do not reach the others ([`Level::SplitHorizon`]).
//! If after three probe intervals probes still return, or a storm limit still drops, all but one of its ports are
//! quarantined ([`Level::AllButOne`]); if then probes still return at ports that are not quarantined, all are
//! ([`Level::All`]).
//!
//! Measures last for 300 s after the last step. Quarantined ports are still probed: a loop that still exists at the end
//! stays blocked, and its time doubles, up to an hour. One that returns starts with twice its last time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::MonoTime;

/// Probe intervals for which a loop must persist before escalation, and for which it must not be seen to be considered
/// gone.
pub const PERSIST_INTERVALS: u32 = 3;

/// Initial duration of measures.
pub const MIN_MEASURE_TIME: Duration = Duration::from_secs(300);

/// Maximum duration.
pub const MAX_MEASURE_TIME: Duration = Duration::from_secs(3600);

/// Time for which an ended loop is remembered: if it returns, its measures last longer.
pub const MEMORY: Duration = Duration::from_secs(2 * 3600);

/// Time without returned probes, of four per second, after which FDB entries learned through the loop are flushed,
/// before the end of the measures. If only some probes were lost, little is lost.
pub const CLEAR_AFTER: Duration = Duration::from_millis(600);

/// Level of measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Floods of one of its ports do not reach the others.
    SplitHorizon,
    /// All ports but one are quarantined, or those of one of two VMs.
    AllButOne,
    /// All ports are quarantined.
    All,
}

impl Level {
    /// Number: 1, 2, 3.
    pub const fn number(self) -> u8 {
        match self {
            Level::SplitHorizon => 1,
            Level::AllButOne => 2,
            Level::All => 3,
        }
    }
}

/// Duration of measures of a loop that has returned or persisted this many times.
pub fn time(repeats: u32) -> Duration {
    MIN_MEASURE_TIME.saturating_mul(1 << repeats.min(16)).min(MAX_MEASURE_TIME)
}

/// A condition that persists, ignoring short gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first: MonoTime,
    last: MonoTime,
}

fn extend(span: &mut Option<Span>, gap: Duration, at: MonoTime) {
    match span {
        Some(span) if at.since(span.last) <= gap => span.last = span.last.max(at),
        _ => *span = Some(Span { first: at, last: at }),
    }
}

/// Transition found by an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// New level.
    Escalated(Level),
    /// The loop still exists at the end of the measures, which are extended.
    Extended(Duration),
    /// Its probes no longer return. The measures stay.
    Cleared,
    /// The loop has ended, and the measures too.
    Ended,
}

/// Escalation of one loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Escalation {
    /// Level.
    pub level: Level,
    /// Start of the loop.
    pub since: MonoTime,
    /// Time of the last step.
    pub escalated: MonoTime,
    /// End of the measures, if the loop is gone then.
    pub until: MonoTime,
    /// Time of the last probe.
    pub last_seen: MonoTime,
    /// Number of times it has returned or persisted.
    pub repeats: u32,
    /// Probes return.
    returning: Option<Span>,
    /// Probes return at ports that are not quarantined.
    open: Option<Span>,
    /// A storm limit drops.
    limited: Option<Span>,
    /// Reported that probes no longer return.
    cleared: bool,
}

impl Escalation {
    /// Escalation of a newly detected loop.
    pub fn begin(level: Level, repeats: u32, now: MonoTime) -> Escalation {
        Escalation {
            level,
            since: now,
            escalated: now,
            until: now + time(repeats),
            last_seen: now,
            repeats,
            returning: Some(Span { first: now, last: now }),
            open: None,
            limited: None,
            cleared: false,
        }
    }

    /// Escalation restored after a restart. Probing precedes the end of measures that expired meanwhile.
    pub fn restore(
        level: Level,
        [since, escalated, until, last_seen]: [MonoTime; 4],
        repeats: u32,
        now: MonoTime,
    ) -> Escalation {
        let until = until.max(now + MIN_MEASURE_TIME / 10);
        Escalation {
            since,
            escalated,
            until,
            last_seen,
            returning: None,
            cleared: true,
            ..Escalation::begin(level, repeats, now)
        }
    }

    /// Records a returned probe. `open`: at ports of which none is quarantined.
    pub fn observe(&mut self, open: bool, interval: Duration, at: MonoTime) {
        extend(&mut self.returning, interval * PERSIST_INTERVALS, at);
        if open {
            extend(&mut self.open, interval * PERSIST_INTERVALS, at);
        }
        self.last_seen = self.last_seen.max(at);
        self.cleared = false;
    }

    /// Records that a storm limit of one of its ports drops.
    pub fn limit(&mut self, interval: Duration, now: MonoTime) {
        extend(&mut self.limited, interval * PERSIST_INTERVALS, now);
    }

    /// Whether it still exists: a probe returned recently.
    pub fn is_seen(&self, interval: Duration, now: MonoTime) -> bool {
        now.since(self.last_seen) <= interval * PERSIST_INTERVALS
    }

    /// Updates the level.
    pub fn update(&mut self, interval: Duration, now: MonoTime) -> Option<Transition> {
        if let Some(level) = self.next(interval, now) {
            self.level = level;
            (self.escalated, self.until) = (now, now + time(self.repeats));
            self.open = None;
            return Some(Transition::Escalated(level));
        }
        if now >= self.until {
            if !self.is_seen(interval, now) {
                return Some(Transition::Ended);
            }
            self.repeats = self.repeats.saturating_add(1);
            self.until = now + time(self.repeats);
            return Some(Transition::Extended(time(self.repeats)));
        }
        if !self.cleared && now.since(self.last_seen) > CLEAR_AFTER {
            self.cleared = true;
            return Some(Transition::Cleared);
        }
        None
    }

    /// The required level, if it differs.
    fn next(&self, interval: Duration, now: MonoTime) -> Option<Level> {
        let timeout = interval * PERSIST_INTERVALS;
        let goes_on =
            |span: &Span| now.since(span.last) <= interval && now.since(span.first.max(self.escalated)) >= timeout;
        // A storm that starts later is not this loop's, which was seen once and is gone.
        let still_limited = |span: &Span| goes_on(span) && span.first <= self.escalated + timeout;
        match self.level {
            Level::SplitHorizon => {
                let still = self.returning.as_ref().is_some_and(goes_on);
                (still || self.limited.as_ref().is_some_and(still_limited)).then_some(Level::AllButOne)
            }
            Level::AllButOne => self.open.as_ref().is_some_and(goes_on).then_some(Level::All),
            Level::All => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> MonoTime {
        MonoTime::from_secs(1000) + Duration::from_millis(millis)
    }

    /// Updates every 250 ms from `from` to `to` seconds, with the loop seen each time.
    fn seen(escalation: &mut Escalation, open: bool, from: u64, to: u64) -> Vec<(u64, Transition)> {
        let mut ticks = Vec::new();
        for millis in (from * 1000..to * 1000).step_by(250) {
            escalation.observe(open, SECOND, at(millis));
            ticks.extend(escalation.update(SECOND, at(millis)).map(|transition| (millis, transition)));
        }
        ticks
    }

    fn unseen(escalation: &mut Escalation, from: u64, to: u64) -> Vec<(u64, Transition)> {
        let updates = (from * 1000..to * 1000).step_by(250);
        updates.filter_map(|millis| Some((millis, escalation.update(SECOND, at(millis))?))).collect()
    }

    #[test]
    fn a_short_loop_stays_at_level_1_and_ends_in_time() {
        let mut escalation = Escalation::begin(Level::SplitHorizon, 0, at(0));
        assert_eq!(seen(&mut escalation, false, 0, 2), []);
        assert_eq!(unseen(&mut escalation, 2, 400)[..2], [(2500, Transition::Cleared), (300_000, Transition::Ended)]);
    }

    #[test]
    fn a_loop_is_cleared_after_more_than_600_ms_without_a_probe() {
        let mut escalation = Escalation::begin(Level::SplitHorizon, 0, at(0));
        assert_eq!(escalation.update(SECOND, at(600)), None);
        assert_eq!(escalation.update(SECOND, at(601)), Some(Transition::Cleared));
        assert_eq!(escalation.update(SECOND, at(602)), None, "once");
    }

    #[test]
    fn a_lasting_loop_stays_quarantined() {
        let mut escalation = Escalation::begin(Level::SplitHorizon, 0, at(0));
        let ticks = seen(&mut escalation, false, 0, 20_000);
        let expected = [
            (3_000, Transition::Escalated(Level::AllButOne)),
            (303_000, Transition::Extended(Duration::from_secs(600))),
            (903_000, Transition::Extended(Duration::from_secs(1200))),
            (2_103_000, Transition::Extended(Duration::from_secs(2400))),
            (4_503_000, Transition::Extended(MAX_MEASURE_TIME)),
            (8_103_000, Transition::Extended(MAX_MEASURE_TIME)),
            (11_703_000, Transition::Extended(MAX_MEASURE_TIME)),
            (15_303_000, Transition::Extended(MAX_MEASURE_TIME)),
            (18_903_000, Transition::Extended(MAX_MEASURE_TIME)),
        ];
        assert_eq!(ticks, expected);
        assert_eq!(escalation.level, Level::AllButOne, "the loop comes and goes by quarantined ports");
    }

    #[test]
    fn a_loop_over_other_ports_escalates_to_level_3() {
        let mut escalation = Escalation::begin(Level::SplitHorizon, 0, at(0));
        let ticks = seen(&mut escalation, true, 0, 10);
        assert_eq!(ticks, [(3000, Transition::Escalated(Level::AllButOne)), (6250, Transition::Escalated(Level::All))]);
        let mut escalation = Escalation::begin(Level::AllButOne, 0, at(0));
        assert_eq!(seen(&mut escalation, false, 0, 100), [], "quarantined ports stay quarantined");
    }

    #[test]
    fn a_limit_still_hit_escalates_and_a_later_hit_does_not() {
        for (from, expected) in [(1, Some(Transition::Escalated(Level::AllButOne))), (60, None)] {
            let mut escalation = Escalation::begin(Level::SplitHorizon, 0, at(0));
            let mut transition = None;
            for second in 0..100 {
                if second >= from {
                    escalation.limit(SECOND, at(second * 1000));
                }
                transition = transition.or(escalation
                    .update(SECOND, at(second * 1000))
                    .filter(|transition| *transition != Transition::Cleared));
            }
            assert_eq!(transition, expected, "from second {from}");
        }
    }

    #[test]
    fn after_a_restart_mitigation_ends_only_after_probing() {
        let past = [at(0), at(0), at(300_000), at(299_000)];
        let now = 900_000;
        let mut escalation = Escalation::restore(Level::AllButOne, past, 2, at(now));
        assert_eq!(escalation.update(SECOND, at(now)), None);
        let mut gone = escalation;
        escalation.observe(false, SECOND, at(now + 29_000));
        assert_eq!(escalation.update(SECOND, at(now + 30_000)), Some(Transition::Extended(time(3))));
        assert_eq!(gone.update(SECOND, at(now + 30_000)), Some(Transition::Ended));
    }

    #[test]
    fn a_restart_keeps_the_times_of_a_loop() {
        let times = [at(1000), at(2000), at(900_000), at(3000)];
        let escalation = Escalation::restore(Level::AllButOne, times, 2, at(4000));
        assert_eq!([escalation.since, escalation.escalated, escalation.until, escalation.last_seen], times);
        assert_eq!((escalation.level, escalation.repeats), (Level::AllButOne, 2));
    }

    /// The restart itself is no sight of the loop.
    #[test]
    fn after_a_restart_a_loop_must_persist_again_to_escalate() {
        let mut escalation = Escalation::restore(Level::SplitHorizon, [at(0); 4], 0, at(10_000));
        let mut raised = Vec::new();
        for millis in (12_000..17_000).step_by(500) {
            escalation.observe(false, SECOND, at(millis));
            raised.extend(escalation.update(SECOND, at(millis)).map(|transition| (millis, transition)));
        }
        assert_eq!(raised, [(15_000, Transition::Escalated(Level::AllButOne))]);
    }

    /// Shows: REQ-42
    #[test]
    fn the_hold_time_doubles_up_to_an_hour() {
        let times: Vec<u64> = [0, 1, 2, 3, 4, 5, 31, u32::MAX].map(|repeats| time(repeats).as_secs()).into();
        assert_eq!(times, [300, 600, 1200, 2400, 3600, 3600, 3600, 3600]);
    }

    /// An event in one of many steps.
    #[derive(Debug, Clone, Copy)]
    struct Happening {
        pause: u64,
        seen: Option<bool>,
        limited: bool,
    }

    fn happenings() -> impl Strategy<Value = Vec<Happening>> {
        let pause = prop_oneof![8 => Just(250u64), 2 => 0u64..5000, 1 => 0u64..900_000];
        let one = (pause, prop::option::weighted(0.6, any::<bool>()), prop::bool::weighted(0.2));
        prop::collection::vec(one.prop_map(|(pause, seen, limited)| Happening { pause, seen, limited }), 1..400)
    }

    /// Start of the last uninterrupted run of moments, recomputed from all events.
    fn run(all: &[u64], gap: u64) -> Option<(u64, u64)> {
        let last = *all.last()?;
        let breaks = all.windows(2).rposition(|pair| pair[1] - pair[0] > gap);
        Some((all[breaks.map_or(0, |at| at + 1)], last))
    }

    proptest! {
        /// Compares with a model that stores all events and recomputes every decision.
        #[test]
        fn escalation_agrees_with_a_model(
            steps in happenings(), interval in 1u64..=10, first in 1u8..=2, repeats in 0u32..6,
        ) {
            let (interval, level) = (interval * 1000, if first == 1 { Level::SplitHorizon } else { Level::AllButOne });
            let pace = Duration::from_millis(interval);
            let mut escalation = Escalation::begin(level, repeats, at(0));
            let (mut seen, mut open, mut limited) = (vec![0], vec![], vec![]);
            let (mut raised, mut until, mut times, mut now) = (0, time(repeats).as_millis() as u64, repeats, 0u64);
            let mut level = level;
            for step in steps {
                now += step.pause;
                if let Some(by_open) = step.seen {
                    escalation.observe(by_open, pace, at(now));
                    seen.push(now);
                    open.extend(by_open.then_some(now));
                }
                if step.limited {
                    escalation.limit(pace, at(now));
                    limited.push(now);
                }
                let transition = escalation.update(pace, at(now)).filter(|transition| *transition != Transition::Cleared);
                let goes_on = |all: &[u64]| {
                    run(all, 3 * interval).filter(|&(from, to)| {
                        now - to <= interval && now - from.max(raised) >= 3 * interval
                    })
                };
                let raise = match level {
                    Level::SplitHorizon => {
                        let limited = goes_on(&limited).is_some_and(|(from, _)| from <= raised + 3 * interval);
                        (goes_on(&seen).is_some() || limited).then_some(Level::AllButOne)
                    }
                    Level::AllButOne => goes_on(&open).map(|_| Level::All),
                    Level::All => None,
                };
                let expected = if let Some(next) = raise {
                    level = next;
                    raised = now;
                    until = now + time(times).as_millis() as u64;
                    open.clear();
                    Some(Transition::Escalated(next))
                } else if now < until {
                    None
                } else if now - seen[seen.len() - 1] > 3 * interval {
                    Some(Transition::Ended)
                } else {
                    times += 1;
                    until = now + time(times).as_millis() as u64;
                    Some(Transition::Extended(time(times)))
                };
                prop_assert_eq!(transition, expected, "at {}", now);
                prop_assert_eq!(escalation.level, level);
                prop_assert_eq!(escalation.until, at(until));
                if transition == Some(Transition::Ended) {
                    break;
                }
            }
        }
    }
}
