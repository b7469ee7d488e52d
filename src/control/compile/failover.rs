//! Active-backup: chooses the uplink of a group that forwards.
//!
//! The first one of the configuration is preferred and active while fit: device open, link up, administratively up. If
//! it is not, the other one takes over at once, if fit. The preferred one becomes active again once it was fit for
//! [`HOLD`] without interruption, so that a flapping link does not make the group flap; at once if the other one fails.
//! If neither is fit, nothing changes.
//!
//! An active uplink that is being opened for the first time is waited for, up to [`HOLD`]: at a start both are opened
//! concurrently, in no defined order.

use std::collections::HashMap;
use std::time::Duration;

use crate::time::MonoTime;

/// Time for which the preferred uplink must be fit before it takes over again.
pub const HOLD: Duration = Duration::from_secs(2);

/// Fitness of an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    /// Can forward.
    Fit,
    /// Cannot forward.
    Unfit,
    /// Being opened for the first time.
    Pending,
}

/// State of all groups. An unknown group has its preferred uplink active.
#[derive(Debug, Clone, Default)]
pub struct Groups(HashMap<String, Group>);

/// State of a group.
#[derive(Debug, Clone, Default)]
struct Group {
    /// Position of the active uplink, from 0.
    active: usize,
    /// Since when the preferred uplink is fit.
    fit_since: Option<MonoTime>,
    /// Since when the active uplink is pending.
    pending_since: Option<MonoTime>,
}

impl Groups {
    /// Position of the active uplink of a group: 0 for the preferred one.
    pub fn active(&self, group: &str) -> usize {
        self.0.get(group).map_or(0, |group| group.active)
    }

    /// Updates a group with the fitness of its uplinks, the preferred one first. Returns whether the active uplink has
    /// changed.
    pub fn update(&mut self, group: &str, fitness: &[Fitness], now: MonoTime) -> bool {
        let state = self.0.entry(group.to_owned()).or_default();
        let of = |place: usize| fitness.get(place).copied().unwrap_or(Fitness::Unfit);
        let is_fit = |place: usize| of(place) == Fitness::Fit;
        let before = state.active;
        if of(state.active) == Fitness::Pending {
            if now.since(*state.pending_since.get_or_insert(now)) < HOLD {
                return false;
            }
        } else {
            state.pending_since = None;
        }
        if is_fit(0) {
            state.fit_since.get_or_insert(now);
        } else {
            state.fit_since = None;
        }
        if !is_fit(state.active) {
            state.active = (0..fitness.len()).find(|&place| is_fit(place)).unwrap_or(state.active);
        } else if state.fit_since.is_some_and(|since| now.since(since) >= HOLD) {
            state.active = 0;
        }
        state.active != before
    }

    /// Removes the state of removed groups.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|group, _| is_there(group));
    }

    /// Adapts to changed uplinks of a group. `active` is the position of the active one, if it remains.
    pub fn rearrange(&mut self, group: &str, active: Option<usize>) {
        let state = Group { active: active.unwrap_or_default(), ..Group::default() };
        self.0.insert(group.to_owned(), state);
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
    fn the_preferred_uplink_is_active_again_once_stable() {
        let mut groups = Groups::default();
        let mut look = |fit: [bool; 2], now| {
            let turned = groups.update("g", &fit.map(fitness), at(now));
            (turned, groups.active("g"))
        };
        assert_eq!(look([false, false], 0), (false, 0), "no uplink works yet");
        assert_eq!(look([true, true], 1), (false, 0));
        assert_eq!(look([false, true], 10), (true, 1), "at once");
        assert_eq!(look([true, true], 20), (false, 1), "not yet");
        assert_eq!(look([true, true], 2019), (false, 1));
        assert_eq!(look([true, true], 2020), (true, 0), "the preferred uplink has been stable");
        assert_eq!(look([false, true], 3000), (true, 1));
        assert_eq!(look([true, true], 3001), (false, 1));
        assert_eq!(look([false, true], 4000), (false, 1), "a flapping uplink does not become active");
        assert_eq!(look([true, true], 4001), (false, 1));
        assert_eq!(look([true, true], 5500), (false, 1));
        assert_eq!(look([true, false], 5501), (true, 0), "the backup fails");
        assert_eq!(look([false, false], 5502), (false, 0), "no uplink works");
        assert_eq!(look([false, true], 5503), (true, 1));
    }

    fn fitness(is_fit: bool) -> Fitness {
        if is_fit { Fitness::Fit } else { Fitness::Unfit }
    }

    #[test]
    fn an_uplink_whose_first_opening_has_not_ended_is_waited_for_within_bounds() {
        use Fitness::{Fit, Pending, Unfit};
        let mut groups = Groups::default();
        let mut look = |fitness: [Fitness; 2], now| {
            groups.update("g", &fitness, at(now));
            groups.active("g")
        };
        assert_eq!(look([Pending, Fit], 0), 0, "the backup worked first");
        assert_eq!(look([Pending, Fit], 1999), 0);
        assert_eq!(look([Fit, Fit], 1999), 0);
        assert_eq!(look([Pending, Fit], 3000), 0, "after a change of configuration it is waited for again");
        assert_eq!(look([Pending, Fit], 4999), 0);
        assert_eq!(look([Pending, Fit], 5000), 1, "opening it hangs");
        assert_eq!(look([Unfit, Fit], 5001), 1);
        assert_eq!(look([Pending, Unfit], 5002), 1, "no uplink works at all");
    }

    proptest! {
        /// After any sequence of events: the active uplink works if one of them does, and a working one is replaced
        /// only by the preferred one.
        #[test]
        fn a_working_uplink_is_active(steps in prop::collection::vec((any::<[bool; 2]>(), 0u64..3000), 1..50)) {
            let mut groups = Groups::default();
            let mut now = 0;
            for (fit, pause) in steps {
                now += pause;
                let before = groups.active("g");
                let turned = groups.update("g", &fit.map(fitness), at(now));
                let after = groups.active("g");
                prop_assert_eq!(turned, before != after);
                prop_assert!(fit[after] || !fit[0] && !fit[1]);
                prop_assert!(!turned || !fit[before] || after == 0);
            }
        }
    }
}
