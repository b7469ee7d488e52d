//! Storms, from counters: one begins when frames are refused by a storm limit, and is over when none
//! has been for [`HOLD_DOWN`].

use std::time::Duration;

use crate::time::MonoTime;

/// For how long nothing may be refused before a storm is over.
pub const HOLD_DOWN: Duration = Duration::from_secs(5);

/// A storm that is there, or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Episode {
    /// When it was noticed.
    pub since: MonoTime,
    /// When something was refused last.
    pub last: MonoTime,
    /// How many frames were refused.
    pub suppressed: u64,
    /// The most in a second, as the looks tell.
    pub peak: u64,
}

/// What a look has come to, if there are news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// It begins.
    Started,
    /// It is over; how it was.
    Stopped(Episode),
}

/// What is known of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Storm {
    /// How much had been refused at the last look, and when that was.
    refused: u64,
    observed: Option<MonoTime>,
    /// How much was refused between the last two looks.
    more: u64,
    episode: Option<Episode>,
}

impl Storm {
    /// Looks at a limit that has ever refused so many frames. What was refused before the first look is of
    /// the past.
    pub fn observe(&mut self, refused: u64, now: MonoTime) -> Option<Transition> {
        let before = self.observed.replace(now);
        // A port that has been detached takes its counters with it.
        let more = refused.saturating_sub(std::mem::replace(&mut self.refused, refused));
        self.more = if before.is_some() { more } else { 0 };
        let before = before?;
        if more == 0 {
            let episode = self.episode.filter(|episode| now.since(episode.last) >= HOLD_DOWN)?;
            self.episode = None;
            return Some(Transition::Stopped(episode));
        }
        let millis = now.since(before).as_millis().max(1);
        let rate = u64::try_from(u128::from(more) * 1000 / millis).unwrap_or(u64::MAX);
        let is_new = self.episode.is_none();
        let episode = self.episode.get_or_insert(Episode { since: now, last: now, suppressed: 0, peak: 0 });
        episode.last = now;
        episode.suppressed = episode.suppressed.saturating_add(more);
        episode.peak = episode.peak.max(rate);
        is_new.then_some(Transition::Started)
    }

    /// The storm, if there is one.
    pub fn episode(&self) -> Option<Episode> {
        self.episode
    }

    /// How much was refused between the last two looks.
    pub fn more(&self) -> u64 {
        self.more
    }

    /// Whether anything was.
    pub fn is_hit(&self) -> bool {
        self.more > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> MonoTime {
        MonoTime::from_secs(1000) + Duration::from_millis(millis)
    }

    #[test]
    fn each_transition_is_reported_once_with_its_drops() {
        let mut storm = Storm::default();
        assert_eq!(storm.observe(77, at(0)), None, "counted before");
        assert_eq!(storm.observe(77, at(250)), None);
        assert_eq!(storm.observe(177, at(500)), Some(Transition::Started));
        assert_eq!(storm.observe(677, at(750)), None);
        assert!(storm.is_hit());
        assert_eq!(storm.observe(677, at(1000)), None);
        assert!(!storm.is_hit());
        assert_eq!(storm.observe(677, at(5749)), None, "not for long enough");
        let episode = Episode { since: at(500), last: at(750), suppressed: 600, peak: 2000 };
        assert_eq!(storm.observe(677, at(5750)), Some(Transition::Stopped(episode)));
        assert_eq!(storm.observe(677, at(50_000)), None);
        assert_eq!(storm.observe(5, at(50_250)), None, "counted from zero");
        assert_eq!(storm.observe(6, at(50_500)), Some(Transition::Started));
    }

    proptest! {
        /// Starts and stops alternate; a stop reports all drops since the start, as early as the hold-down allows.
        #[test]
        fn every_drop_is_reported(steps in prop::collection::vec((prop_oneof![3 => Just(0u64), 2 => 1u64..1000], 1u64..6000), 1..80)) {
            let mut storm = Storm::default();
            storm.observe(0, at(0));
            let (mut refused, mut now) = (0, 0);
            // Start, drops, and time of the last drop.
            let mut model: Option<(u64, u64, u64)> = None;
            for (more, pause) in steps {
                refused += more;
                now += pause;
                let transition = storm.observe(refused, at(now));
                let expected = match &mut model {
                    None if more > 0 => {
                        model = Some((now, more, now));
                        Some((true, 0))
                    }
                    Some((_, all, last)) if more > 0 => {
                        (*all, *last) = (*all + more, now);
                        None
                    }
                    Some((_, all, last)) if now - *last >= 5000 => {
                        let all = *all;
                        model = None;
                        Some((false, all))
                    }
                    _ => None,
                };
                let messages = transition.map(|transition| match transition {
                    Transition::Started => (true, 0),
                    Transition::Stopped(episode) => (false, episode.suppressed),
                });
                prop_assert_eq!(messages, expected);
                prop_assert_eq!(storm.episode().map(|episode| (episode.since, episode.suppressed, episode.last)),
                    model.map(|(since, all, last)| (at(since), all, at(last))));
            }
        }
    }
}
