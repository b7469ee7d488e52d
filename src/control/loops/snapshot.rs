//! Stores loops over a restart, and restores those that are still valid.
//!
//! Times in memory are of the host's boot clock, which restarts with the host; stored ones are wall-clock times. The
//! time of storing is stored by both clocks, so that setting the wall clock in between has no effect unless the host
//! reboots. Wrong times are bounded by their possible range; an existing loop is detected again anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::detection::{Edge, LoopKey};
use super::escalation::{Escalation, Level, MAX_MEASURE_TIME, MEMORY};
use super::table::{Loop, LoopHistory, LoopTable};
use super::topology::{Endpoint, Topology};
use crate::time::{MonoTime, Stamp};

/// Maximum loops restored.
const MAX_RESTORED: usize = 10_000;

/// One time by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// Boot clock.
    pub now: MonoTime,
    /// Wall clock.
    pub wall: SystemTime,
}

impl Clocks {
    /// The clocks to convert times stored at `kept`, as if the wall clock had not been set since.
    pub fn since(stored: &Stamp, stamp: &Stamp, now: MonoTime) -> Clocks {
        let then = Duration::from_millis(u64::try_from(stored.wall_millis).unwrap_or(0));
        Clocks { now, wall: UNIX_EPOCH + then + stored.passed(stamp) }
    }

    /// Milliseconds since 1970.
    pub fn millis(self, at: MonoTime) -> i64 {
        let wall = self.wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let wall = i64::try_from(wall).unwrap_or(i64::MAX);
        let of = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        if at >= self.now {
            wall.saturating_add(of(at.since(self.now)))
        } else {
            wall.saturating_sub(of(self.now.since(at)))
        }
    }

    /// Wall-clock time.
    pub fn wall(self, at: MonoTime) -> SystemTime {
        let earlier = self.wall.checked_sub(self.now.since(at)).unwrap_or(UNIX_EPOCH);
        earlier.checked_add(at.since(self.now)).unwrap_or(earlier)
    }

    /// Boot-clock time for milliseconds since 1970. Times before the boot become the boot.
    pub fn instant(self, millis: i64) -> MonoTime {
        let ahead = millis.saturating_sub(self.millis(self.now));
        let span = Duration::from_millis(ahead.unsigned_abs());
        if ahead >= 0 { self.now + span } else { self.now - span }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct PersistedLoop {
    key: LoopKey,
    links: Vec<Edge>,
    #[serde(default)]
    receiver: Option<Endpoint>,
    #[serde(default)]
    others: Vec<Edge>,
    level: Level,
    since: i64,
    raised: i64,
    until: i64,
    seen: i64,
    repeats: u32,
    suppressed: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct PersistedHistory {
    key: LoopKey,
    repeats: u32,
    at: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct PersistedLoops {
    #[serde(default)]
    loops: Vec<Value>,
    #[serde(default)]
    past: Vec<Value>,
}

/// Serialises all loops; null without any.
pub fn to_value(table: &LoopTable, clocks: Clocks) -> Value {
    if table.loops.is_empty() && table.history.is_empty() {
        return Value::Null;
    }
    let value = |stored| serde_json::to_value(stored).unwrap_or_default();
    let loops = table.loops.values().map(|of| PersistedLoop {
        key: of.key.clone(),
        links: of.edges.keys().cloned().collect(),
        receiver: of.receiver.clone(),
        others: of.other_edges.clone(),
        level: of.escalation.level,
        since: clocks.millis(of.escalation.since),
        raised: clocks.millis(of.escalation.escalated),
        until: clocks.millis(of.escalation.until),
        seen: clocks.millis(of.escalation.last_seen),
        repeats: of.escalation.repeats,
        suppressed: of.dropped,
    });
    let past = table.history.iter().map(|(key, past)| PersistedHistory {
        key: key.clone(),
        repeats: past.repeats,
        at: clocks.millis(past.at),
    });
    let stored = PersistedLoops {
        loops: loops.map(|of| serde_json::to_value(of).unwrap_or_default()).collect(),
        past: past.map(|of| serde_json::to_value(of).unwrap_or_default()).collect(),
    };
    value(stored)
}

/// Restores stored loops whose ends exist and belong together as stored; ignores others.
pub fn restore(stored: Value, topology: &Topology, clocks: Clocks) -> LoopTable {
    let stored: PersistedLoops = serde_json::from_value(stored).unwrap_or_default();
    let mut loops = LoopTable::default();
    for of in
        stored.loops.into_iter().take(MAX_RESTORED).filter_map(|of| serde_json::from_value::<PersistedLoop>(of).ok())
    {
        if let Some(of) = restore_loop(of, topology, clocks) {
            loops.loops.insert(of.key.clone(), of);
        }
    }
    for of in
        stored.past.into_iter().take(MAX_RESTORED).filter_map(|of| serde_json::from_value::<PersistedHistory>(of).ok())
    {
        let at = clocks.instant(of.at).min(clocks.now);
        if clocks.now.since(at) < MEMORY {
            loops.history.insert(of.key, LoopHistory { repeats: of.repeats, at });
        }
    }
    loops
}

fn restore_loop(of: PersistedLoop, topology: &Topology, clocks: Clocks) -> Option<Loop> {
    let now = clocks.now;
    let is_right =
        |pair: &Edge| pair.0 < pair.1 && of.key.matches(pair) && topology.has(&pair.0) && topology.has(&pair.1);
    // Times of probes are not stored: the loop must be detected again before its measures end.
    let edges: BTreeMap<Edge, MonoTime> = of.links.into_iter().filter(is_right).map(|pair| (pair, now)).collect();
    if edges.is_empty() {
        return None;
    }
    let past = |millis: i64| clocks.instant(millis).min(now);
    let until = clocks.instant(of.until).min(now + MAX_MEASURE_TIME);
    let times = [past(of.since), past(of.raised), until, past(of.seen)];
    let escalation = Escalation::restore(of.level, times, of.repeats, now);
    let receiver = of.receiver.filter(|receiver| edges.keys().any(|(a, b)| a == receiver || b == receiver));
    let (other_edges, dropped) = (of.others, of.suppressed);
    Some(Loop { key: of.key, escalation, edges, blocked: BTreeSet::new(), receiver, other_edges, dropped })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn end(vm: &str, network: &str, port: &str) -> Endpoint {
        Endpoint { vm: Some(vm.into()), network: network.into(), port: port.into(), host: None }
    }

    fn ends() -> Vec<Endpoint> {
        vec![end("v", "n", "a"), end("v", "n", "b"), end("v", "m", "c"), end("w", "n", "d"), end("w", "m", "e")]
    }

    fn layout(ends: Vec<Endpoint>) -> Topology {
        let networks = ["n", "m"].map(|network| (network.to_owned(), Duration::from_secs(1)));
        Topology::new(networks, ends.into_iter().map(|end| (end, 0)))
    }

    /// Seconds since boot, and since 1970.
    fn clocks(boot: u64, wall: u64) -> Clocks {
        Clocks { now: MonoTime::from_secs(boot), wall: UNIX_EPOCH + Duration::from_secs(wall) }
    }

    /// A loop table in which edges have existed for ten seconds.
    fn table(links: &[(usize, usize)]) -> LoopTable {
        let (ends, mut loops) = (ends(), LoopTable::default());
        for second in 990..1000 {
            for &(a, b) in links {
                loops.record_probe(ends[a].clone(), ends[b].clone(), MonoTime::from_secs(second));
            }
            loops.update(&layout(ends.clone()), &HashMap::new(), MonoTime::from_secs(second));
        }
        loops
    }

    #[test]
    fn levels_and_times_are_restored_after_a_boot() {
        let loops = table(&[(0, 1), (0, 2), (3, 4)]);
        let before = loops.measures(&layout(ends()));
        assert_eq!(before.quarantined.len(), 2, "{before:?}");
        let stored = to_value(&loops, clocks(1000, 1_000_000));
        // Sixty seconds later, on a host that has just booted.
        let back = restore(stored, &layout(ends()), clocks(7, 1_000_060));
        assert_eq!(back.measures(&layout(ends())), before);
        for of in back.loops() {
            let was = &loops.find(&of.key).unwrap().escalation;
            assert_eq!(of.escalation.level, was.level);
            assert_eq!(of.escalation.until.since(MonoTime::from_secs(7)), was.until.since(MonoTime::from_secs(1060)));
        }
    }

    #[test]
    fn ports_that_no_longer_exist_are_not_restored() {
        let stored = to_value(&table(&[(0, 1)]), clocks(1000, 1_000_000));
        let gone = layout(ends()[1..].to_vec());
        assert_eq!(restore(stored.clone(), &gone, clocks(1000, 1_000_000)).loops().count(), 0);
        let mut elsewhere = ends();
        elsewhere[0].network = "m".into();
        assert_eq!(restore(stored, &layout(elsewhere), clocks(1000, 1_000_000)).loops().count(), 0);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(
                    prop_oneof![Just("loops"), Just("past"), Just("key"), Just("links")],
                    inner,
                    0..4
                )
                .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ]
        })
    }

    proptest! {
        /// Invalid contents are ignored; with any clocks, no loop is released at once, none is quarantined longer than the
        /// maximum, and no time is in the future.
        #[test]
        fn invalid_contents_are_ignored(stored in json(), other in json()) {
            let back = restore(stored, &layout(ends()), clocks(1, 1));
            prop_assert_eq!(back.loops().count(), 0);
            let mut bent = to_value(&table(&[(0, 1)]), clocks(1000, 1_000_000));
            if let Value::Object(of) = &mut bent["loops"][0] {
                let key = of.keys().nth(other.to_string().len() % of.len()).cloned().unwrap();
                of.insert(key, other);
            }
            let back = restore(bent, &layout(ends()), clocks(500, 77));
            prop_assert!(back.loops().count() <= 1);
        }

        #[test]
        fn restored_times_are_within_bounds(boot in 0u64..1 << 30, wall in 0u64..1 << 40, since in 0u64..1 << 40) {
            let stored = to_value(&table(&[(0, 1), (3, 4)]), clocks(1000, since));
            let clocks = clocks(boot, wall);
            for of in restore(stored, &layout(ends()), clocks).loops() {
                let Escalation { since, escalated, until, last_seen, .. } = of.escalation;
                prop_assert!(since <= clocks.now && escalated <= clocks.now && last_seen <= clocks.now);
                prop_assert!(until > clocks.now && until <= clocks.now + MAX_MEASURE_TIME);
            }
        }
    }
}
