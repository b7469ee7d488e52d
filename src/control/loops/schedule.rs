//! Which ports are probed at which turn.
//!
//! Control has a turn each [`TURN`]. A port is probed once in the interval of its network, each at a
//! turn of its own as far as there are enough, so that the probes of a host with thousands of ports come
//! evenly; a port of a VM that storms or loops is probed at each turn.

use std::time::Duration;

/// Between two turns.
pub const TURN: Duration = Duration::from_millis(250);

/// Whether the port that is number `place` of all is probed at this turn.
pub fn is_due(turn: u64, place: usize, interval: Duration, suspected: bool) -> bool {
    #[allow(clippy::cast_possible_truncation)] // an interval is seconds
    let turns = (interval.as_millis() / TURN.as_millis()).max(1) as u64;
    suspected || turn % turns == place as u64 % turns
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Once in each interval, whenever that is taken to begin, and at most one in so many at a time.
        #[test]
        fn each_port_once_in_each_interval(begin in 0u64..u64::MAX / 2, seconds in 1u64..=10, ports in 1usize..200) {
            let interval = Duration::from_secs(seconds);
            let turns = begin..begin + 4 * seconds;
            for place in 0..ports {
                prop_assert_eq!(turns.clone().filter(|&turn| is_due(turn, place, interval, false)).count(), 1);
                prop_assert!(turns.clone().all(|turn| is_due(turn, place, interval, true)));
            }
            let most = turns.map(|turn| (0..ports).filter(|&place| is_due(turn, place, interval, false)).count()).max();
            prop_assert!(most.unwrap() <= ports.div_ceil(4 * seconds as usize));
        }
    }
}
