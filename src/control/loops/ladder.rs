//! What is done about one loop, step by step: the ladder.
//!
//! A loop of siblings begins with the least that helps: their floods do not reach each other any more
//! ([`Level::Split`]). If after three intervals of probing probes still return, or a storm limit is
//! still hit, all but one of its ports are held ([`Level::Most`]), and if then probes still come and
//! go by ports that are not held, all are ([`Level::All`]).
//!
//! The measures stay for 300 s after the last step. A port that is held is still probed: so at the end
//! a loop that is still there is not let loose, and its time doubles, up to an hour. One that comes
//! back begins with twice the time that it had before.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Moment;

/// For how many intervals of probing a loop has to go on before more is done about it, and for how many
/// it must not have been seen to be taken for gone.
pub const PATIENCE: u32 = 3;

/// How long measures stay at first.
pub const SHORTEST: Duration = Duration::from_secs(300);

/// How long they stay at most.
pub const LONGEST: Duration = Duration::from_secs(3600);

/// For how long a loop that is over is remembered: if it comes back, it stays longer.
pub const MEMORY: Duration = Duration::from_secs(2 * 3600);

/// After so long without a probe that returns, of four in a second, what was learned by the loop is
/// forgotten: nobody has to wait for the end of the measures. If one was only lost, little is.
pub const QUIET: Duration = Duration::from_millis(600);

/// How much is done about a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// What one of its ports floods does not reach the others.
    Split,
    /// All of its ports but one are held, or those of one of two VMs.
    Most,
    /// All of its ports are held.
    All,
}

impl Level {
    /// As it is told: 1, 2, 3.
    pub const fn number(self) -> u8 {
        match self {
            Level::Split => 1,
            Level::Most => 2,
            Level::All => 3,
        }
    }
}

/// How long measures stay of a loop that has come back, or stayed, so many times.
pub fn time(repeats: u32) -> Duration {
    SHORTEST.saturating_mul(1 << repeats.min(16)).min(LONGEST)
}

/// Something that goes on, with no gap that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    first: Moment,
    last: Moment,
}

fn extend(stretch: &mut Option<Stretch>, gap: Duration, at: Moment) {
    match stretch {
        Some(stretch) if at.since(stretch.last) <= gap => stretch.last = stretch.last.max(at),
        _ => *stretch = Some(Stretch { first: at, last: at }),
    }
}

/// What has come of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// This is done from now on.
    Raised(Level),
    /// It is still there at the end of its time, and has so much more.
    Prolonged(Duration),
    /// Its probes do not return any more. The measures stay.
    Quiet,
    /// It is over, and the measures are lifted.
    Ended,
}

/// One loop on its ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ladder {
    /// What is done.
    pub level: Level,
    /// Since when the loop is there.
    pub since: Moment,
    /// When the last step was taken.
    pub raised: Moment,
    /// Until when the measures stay, if the loop is gone then.
    pub until: Moment,
    /// When it was last seen.
    pub seen: Moment,
    /// How many times it has come back, or stayed beyond its time.
    pub repeats: u32,
    /// Probes return.
    returning: Option<Stretch>,
    /// They do by ports that are not held.
    open: Option<Stretch>,
    /// A storm limit is being hit.
    limited: Option<Stretch>,
    /// It has been told that probes return no more.
    hushed: bool,
}

impl Ladder {
    /// The ladder of a loop that is seen now.
    pub fn begin(level: Level, repeats: u32, now: Moment) -> Ladder {
        Ladder {
            level,
            since: now,
            raised: now,
            until: now + time(repeats),
            seen: now,
            repeats,
            returning: Some(Stretch { first: now, last: now }),
            open: None,
            limited: None,
            hushed: false,
        }
    }

    /// One that goes on after a restart. Whatever was to end meanwhile is probed first.
    pub fn resume(level: Level, [since, raised, until, seen]: [Moment; 4], repeats: u32, now: Moment) -> Ladder {
        let until = until.max(now + SHORTEST / 10);
        Ladder { since, raised, until, seen, returning: None, hushed: true, ..Ladder::begin(level, repeats, now) }
    }

    /// The loop has been seen. `open`: by ports of which none is held.
    pub fn see(&mut self, open: bool, interval: Duration, at: Moment) {
        extend(&mut self.returning, interval * PATIENCE, at);
        if open {
            extend(&mut self.open, interval * PATIENCE, at);
        }
        self.seen = self.seen.max(at);
        self.hushed = false;
    }

    /// A storm limit of one of its ports is being hit.
    pub fn limit(&mut self, interval: Duration, now: Moment) {
        extend(&mut self.limited, interval * PATIENCE, now);
    }

    /// Whether it is still there: it has been seen not long ago.
    pub fn is_seen(&self, interval: Duration, now: Moment) -> bool {
        now.since(self.seen) <= interval * PATIENCE
    }

    /// What follows from what has been seen.
    pub fn look(&mut self, interval: Duration, now: Moment) -> Option<Turn> {
        if let Some(level) = self.next(interval, now) {
            self.level = level;
            (self.raised, self.until) = (now, now + time(self.repeats));
            self.open = None;
            return Some(Turn::Raised(level));
        }
        if now >= self.until {
            if !self.is_seen(interval, now) {
                return Some(Turn::Ended);
            }
            self.repeats = self.repeats.saturating_add(1);
            self.until = now + time(self.repeats);
            return Some(Turn::Prolonged(time(self.repeats)));
        }
        if !self.hushed && now.since(self.seen) > QUIET {
            self.hushed = true;
            return Some(Turn::Quiet);
        }
        None
    }

    /// The level that is called for, if that is another one.
    fn next(&self, interval: Duration, now: Moment) -> Option<Level> {
        let patience = interval * PATIENCE;
        let goes_on = |stretch: &Stretch| {
            now.since(stretch.last) <= interval && now.since(stretch.first.max(self.raised)) >= patience
        };
        // A storm that begins later is another matter: the loop has been seen once, and is not there for it.
        let still_limited = |stretch: &Stretch| goes_on(stretch) && stretch.first <= self.raised + patience;
        match self.level {
            Level::Split => {
                let still = self.returning.as_ref().is_some_and(goes_on);
                (still || self.limited.as_ref().is_some_and(still_limited)).then_some(Level::Most)
            }
            Level::Most => self.open.as_ref().is_some_and(goes_on).then_some(Level::All),
            Level::All => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Moment {
        Moment::from_secs(1000) + Duration::from_millis(millis)
    }

    /// Looks at it every 250 ms from `from` to `to`, in seconds, and sees it at each of them.
    fn seen(ladder: &mut Ladder, open: bool, from: u64, to: u64) -> Vec<(u64, Turn)> {
        let mut turns = Vec::new();
        for millis in (from * 1000..to * 1000).step_by(250) {
            ladder.see(open, SECOND, at(millis));
            turns.extend(ladder.look(SECOND, at(millis)).map(|turn| (millis, turn)));
        }
        turns
    }

    fn unseen(ladder: &mut Ladder, from: u64, to: u64) -> Vec<(u64, Turn)> {
        let looks = (from * 1000..to * 1000).step_by(250);
        looks.filter_map(|millis| Some((millis, ladder.look(SECOND, at(millis))?))).collect()
    }

    #[test]
    fn a_loop_that_goes_at_once_stays_at_the_first_level_and_ends_in_time() {
        let mut ladder = Ladder::begin(Level::Split, 0, at(0));
        assert_eq!(seen(&mut ladder, false, 0, 2), []);
        assert_eq!(unseen(&mut ladder, 2, 400)[..2], [(2500, Turn::Quiet), (300_000, Turn::Ended)]);
    }

    #[test]
    fn a_loop_that_stays_is_held_and_is_not_let_loose() {
        let mut ladder = Ladder::begin(Level::Split, 0, at(0));
        let turns = seen(&mut ladder, false, 0, 20_000);
        let expected = [
            (3_000, Turn::Raised(Level::Most)),
            (303_000, Turn::Prolonged(Duration::from_secs(600))),
            (903_000, Turn::Prolonged(Duration::from_secs(1200))),
            (2_103_000, Turn::Prolonged(Duration::from_secs(2400))),
            (4_503_000, Turn::Prolonged(LONGEST)),
            (8_103_000, Turn::Prolonged(LONGEST)),
            (11_703_000, Turn::Prolonged(LONGEST)),
            (15_303_000, Turn::Prolonged(LONGEST)),
            (18_903_000, Turn::Prolonged(LONGEST)),
        ];
        assert_eq!(turns, expected);
        assert_eq!(ladder.level, Level::Most, "it comes and goes by ports that are held");
    }

    #[test]
    fn a_loop_by_ports_that_are_not_held_ends_with_all_held() {
        let mut ladder = Ladder::begin(Level::Split, 0, at(0));
        let turns = seen(&mut ladder, true, 0, 10);
        assert_eq!(turns, [(3000, Turn::Raised(Level::Most)), (6250, Turn::Raised(Level::All))]);
        let mut ladder = Ladder::begin(Level::Most, 0, at(0));
        assert_eq!(seen(&mut ladder, false, 0, 100), [], "what is held is held");
    }

    #[test]
    fn a_limit_that_is_still_hit_raises_and_one_hit_later_does_not() {
        for (from, expected) in [(1, Some(Turn::Raised(Level::Most))), (60, None)] {
            let mut ladder = Ladder::begin(Level::Split, 0, at(0));
            let mut turn = None;
            for second in 0..100 {
                if second >= from {
                    ladder.limit(SECOND, at(second * 1000));
                }
                turn = turn.or(ladder.look(SECOND, at(second * 1000)).filter(|turn| *turn != Turn::Quiet));
            }
            assert_eq!(turn, expected, "from second {from}");
        }
    }

    #[test]
    fn after_a_restart_nothing_is_let_loose_before_it_has_been_probed() {
        let past = [at(0), at(0), at(300_000), at(299_000)];
        let now = 900_000;
        let mut ladder = Ladder::resume(Level::Most, past, 2, at(now));
        assert_eq!(ladder.look(SECOND, at(now)), None);
        let mut gone = ladder;
        ladder.see(false, SECOND, at(now + 29_000));
        assert_eq!(ladder.look(SECOND, at(now + 30_000)), Some(Turn::Prolonged(time(3))));
        assert_eq!(gone.look(SECOND, at(now + 30_000)), Some(Turn::Ended));
    }

    #[test]
    fn time_doubles_up_to_an_hour() {
        let times: Vec<u64> = [0, 1, 2, 3, 4, 5, 31, u32::MAX].map(|repeats| time(repeats).as_secs()).into();
        assert_eq!(times, [300, 600, 1200, 2400, 3600, 3600, 3600, 3600]);
    }

    /// What happens in one of many steps.
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

    /// The start of the uninterrupted run of moments that ends with the last one: all that happened, gone
    /// through anew each time.
    fn run(all: &[u64], gap: u64) -> Option<(u64, u64)> {
        let last = *all.last()?;
        let breaks = all.windows(2).rposition(|pair| pair[1] - pair[0] > gap);
        Some((all[breaks.map_or(0, |at| at + 1)], last))
    }

    proptest! {
        /// Against a model that remembers everything and decides anew at each look.
        #[test]
        fn it_does_as_a_model_that_remembers_everything(
            steps in happenings(), interval in 1u64..=10, first in 1u8..=2, repeats in 0u32..6,
        ) {
            let (interval, level) = (interval * 1000, if first == 1 { Level::Split } else { Level::Most });
            let pace = Duration::from_millis(interval);
            let mut ladder = Ladder::begin(level, repeats, at(0));
            let (mut seen, mut open, mut limited) = (vec![0], vec![], vec![]);
            let (mut raised, mut until, mut times, mut now) = (0, time(repeats).as_millis() as u64, repeats, 0u64);
            let mut level = level;
            for step in steps {
                now += step.pause;
                if let Some(by_open) = step.seen {
                    ladder.see(by_open, pace, at(now));
                    seen.push(now);
                    open.extend(by_open.then_some(now));
                }
                if step.limited {
                    ladder.limit(pace, at(now));
                    limited.push(now);
                }
                let turn = ladder.look(pace, at(now)).filter(|turn| *turn != Turn::Quiet);
                let goes_on = |all: &[u64]| {
                    run(all, 3 * interval).filter(|&(from, to)| {
                        now - to <= interval && now - from.max(raised) >= 3 * interval
                    })
                };
                let raise = match level {
                    Level::Split => {
                        let limited = goes_on(&limited).is_some_and(|(from, _)| from <= raised + 3 * interval);
                        (goes_on(&seen).is_some() || limited).then_some(Level::Most)
                    }
                    Level::Most => goes_on(&open).map(|_| Level::All),
                    Level::All => None,
                };
                let expected = if let Some(next) = raise {
                    level = next;
                    raised = now;
                    until = now + time(times).as_millis() as u64;
                    open.clear();
                    Some(Turn::Raised(next))
                } else if now < until {
                    None
                } else if now - seen[seen.len() - 1] > 3 * interval {
                    Some(Turn::Ended)
                } else {
                    times += 1;
                    until = now + time(times).as_millis() as u64;
                    Some(Turn::Prolonged(time(times)))
                };
                prop_assert_eq!(turn, expected, "at {}", now);
                prop_assert_eq!(ladder.level, level);
                prop_assert_eq!(ladder.until, at(until));
                if turn == Some(Turn::Ended) {
                    break;
                }
            }
        }
    }
}
