//! Schedule of loop probes.
//!
//! Control sends probes at every tick. A port is probed once per interval of its network, at a tick of its own if
//! possible, so that probes of thousands of ports are spread evenly; a port of a VM that storms or loops is probed at
//! every tick.

use std::time::Duration;

/// Interval of ticks.
pub const TICK: Duration = Duration::from_millis(250);

/// Whether the port with index `place` is probed at this tick.
pub fn is_due(tick: u64, place: usize, interval: Duration, suspected: bool) -> bool {
    #[allow(clippy::cast_possible_truncation)] // an interval is seconds
    let ticks = (interval.as_millis() / TICK.as_millis()).max(1) as u64;
    suspected || tick % ticks == place as u64 % ticks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Each port once per interval, wherever it begins, and a bounded number at a time.
        #[test]
        fn each_port_once_in_each_interval(begin in 0u64..u64::MAX / 2, seconds in 1u64..=10, ports in 1usize..200) {
            let interval = Duration::from_secs(seconds);
            let ticks = begin..begin + 4 * seconds;
            for place in 0..ports {
                prop_assert_eq!(ticks.clone().filter(|&tick| is_due(tick, place, interval, false)).count(), 1);
                prop_assert!(ticks.clone().all(|tick| is_due(tick, place, interval, true)));
            }
            let most = ticks.map(|tick| (0..ports).filter(|&place| is_due(tick, place, interval, false)).count()).max();
            prop_assert!(most.unwrap() <= ports.div_ceil(4 * seconds as usize));
        }
    }
}
