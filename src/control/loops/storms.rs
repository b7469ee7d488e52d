//! Storm episodes, derived from counters: one starts when a storm limit drops frames, and ends when none was dropped
//! for [`HOLD_DOWN`].

use std::time::Duration;

use crate::time::MonoTime;

/// Time without drops after which a storm has ended.
pub const HOLD_DOWN: Duration = Duration::from_secs(5);

/// An active or ended storm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Episode {
    /// Time of detection.
    pub since: MonoTime,
    /// Time of the last drop.
    pub last: MonoTime,
    /// Frames dropped.
    pub dropped: u64,
    /// Maximum drops per second, by readings.
    pub peak: u64,
}

/// Transition found by a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Started.
    Started,
    /// Ended, with the episode.
    Stopped(Episode),
}

/// State of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Storm {
    /// Drops at the last reading, and its time.
    refused: u64,
    observed: Option<MonoTime>,
    /// Drops between the last two readings.
    more: u64,
    episode: Option<Episode>,
}

impl Storm {
    /// Records a reading of a limit's drop counter. Drops before the first reading are ignored.
    pub fn observe(&mut self, refused: u64, now: MonoTime) -> Option<Transition> {
        let before = self.observed.replace(now);
        // The counters of a detached port are gone.
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
        let episode = self.episode.get_or_insert(Episode { since: now, last: now, dropped: 0, peak: 0 });
        episode.last = now;
        episode.dropped = episode.dropped.saturating_add(more);
        episode.peak = episode.peak.max(rate);
        is_new.then_some(Transition::Started)
    }

    /// The active storm, if any.
    pub fn episode(&self) -> Option<Episode> {
        self.episode
    }

    /// Drops between the last two readings.
    pub fn more(&self) -> u64 {
        self.more
    }

    /// Whether there were drops between the last two readings.
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
        let episode = Episode { since: at(500), last: at(750), dropped: 600, peak: 2000 };
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
                let reported = transition.map(|transition| match transition {
                    Transition::Started => (true, 0),
                    Transition::Stopped(episode) => (false, episode.dropped),
                });
                prop_assert_eq!(reported, expected);
                prop_assert_eq!(storm.episode().map(|episode| (episode.since, episode.dropped, episode.last)),
                    model.map(|(since, all, last)| (at(since), all, at(last))));
            }
        }
    }
}
