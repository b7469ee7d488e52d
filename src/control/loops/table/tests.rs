//! Scenarios with a simulated clock and guests that bridge ports.

use proptest::prelude::*;

use super::*;
use crate::control::loops::escalation::{MIN_MEASURE_TIME, time};
use crate::control::loops::schedule::{TICK, is_due};

fn end(vm: &str, network: &str, port: &str) -> Endpoint {
    Endpoint { vm: Some(vm.into()), network: network.into(), port: port.into(), host: None }
}

/// A switch, guests, and the clock, in ticks of control.
struct Scenario {
    table: LoopTable,
    layout: Topology,
    ends: Vec<Endpoint>,
    /// Bridged ports, as indices.
    bridgings: Vec<Vec<usize>>,
    tick: u64,
}

impl Scenario {
    fn new(ends: Vec<Endpoint>) -> Scenario {
        let networks: BTreeSet<String> = ends.iter().map(|end| end.network.clone()).collect();
        let networks = networks.into_iter().map(|network| (network, Duration::from_secs(1)));
        let topology = Topology::new(networks, ends.iter().cloned().enumerate().map(|(place, end)| (end, place)));
        Scenario { table: LoopTable::default(), layout: topology, ends, bridgings: Vec::new(), tick: 0 }
    }

    fn now(&self) -> MonoTime {
        MonoTime::from_secs(1000) + TICK * u32::try_from(self.tick).unwrap()
    }

    fn suspected(&self, place: usize) -> bool {
        self.ends[place].vm.as_deref().is_some_and(|vm| self.table.is_active(vm, self.now()))
    }

    /// One tick: probes are sent, return by the bridges, also by quarantined ports, and are evaluated.
    fn step(&mut self, refused: &HashMap<Endpoint, RefusedCount>) -> Vec<LoopEvent> {
        self.tick += 1;
        let now = self.now();
        for place in 0..self.ends.len() {
            if !is_due(self.tick, place, Duration::from_secs(1), self.suspected(place)) {
                continue;
            }
            for bridge in self.bridgings.iter().filter(|bridge| bridge.contains(&place)) {
                for &other in bridge.iter().filter(|&&other| other != place) {
                    self.table.record_probe(self.ends[place].clone(), self.ends[other].clone(), now);
                }
            }
        }
        self.table.update(&self.layout, refused, now)
    }

    /// Runs for some seconds. Returns the events with their times in ms since the start.
    fn run(&mut self, seconds: u64) -> Vec<(u64, LoopEvent)> {
        let mut all = Vec::new();
        for _ in 0..seconds * 4 {
            let at = (self.tick + 1) * 250;
            all.extend(self.step(&HashMap::new()).into_iter().map(|events| (at, events)));
        }
        all
    }

    fn quarantined(&self) -> Vec<String> {
        self.table.measures(&self.layout).quarantined.into_keys().map(|end| end.port).collect()
    }
}

fn siblings(count: usize) -> Scenario {
    Scenario::new((0..count).map(|place| end("v", "n", &format!("p{place}"))).collect())
}

fn siblings_key() -> LoopKey {
    LoopKey::IntraVm { vm: "v".into(), network: "n".into() }
}

#[test]
fn a_loop_of_siblings_escalates_and_is_released_when_gone() {
    for count in [2, 3, 8] {
        let mut scenario = siblings(count);
        assert_eq!(scenario.run(60), [], "no guest bridges");
        scenario.bridgings = vec![(0..count).collect()];
        let events = scenario.run(2);
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(events[0].1, LoopEvent::Started(siblings_key()));
        assert!(events[0].0 <= 61_000, "within one interval");
        assert_eq!(scenario.table.measures(&scenario.layout).split_horizon, BTreeSet::from([("v".into(), "n".into())]));
        assert_eq!(scenario.quarantined(), [""; 0]);
        let events = scenario.run(10);
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(events[0].1, LoopEvent::Escalated(siblings_key(), Level::AllButOne));
        let others: Vec<String> = (1..count).map(|place| format!("p{place}")).collect();
        assert_eq!(scenario.quarantined(), others, "the first one goes on");
        // The loop remains, and stays quarantined.
        let events = scenario.run(400);
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(events[0].1, LoopEvent::Extended(siblings_key(), Duration::from_secs(600)));
        assert_eq!(scenario.quarantined(), others);
        // The loop ends: that is detected at once, and mitigation stays until its time is over.
        scenario.bridgings.clear();
        let gone = scenario.tick * 250;
        let events = scenario.run(700);
        assert_eq!(events.len(), 2, "{events:?}");
        assert_eq!(events[0].1, LoopEvent::Cleared(siblings_key()));
        assert!(events[0].0 - gone <= 1250);
        let LoopEvent::Stopped(over) = &events[1].1 else { panic!("{events:?}") };
        assert_eq!((over.why, &over.loop_state.key), (EndReason::Gone, &siblings_key()));
        assert_eq!(scenario.table.measures(&scenario.layout), LoopMeasures::default());
        // The loop returns: twice the hold time.
        scenario.bridgings = vec![(0..count).collect()];
        scenario.run(2);
        assert_eq!(scenario.table.find(&siblings_key()).unwrap().escalation.repeats, 2);
        // Released by hand, which resets the hold time.
        assert_eq!(scenario.table.release("p1", scenario.now()).len(), 1);
        assert_eq!(scenario.table.release("p1", scenario.now()), []);
        assert_eq!(scenario.quarantined(), [""; 0]);
        assert_eq!(scenario.run(2)[0].1, LoopEvent::Started(siblings_key()));
        assert_eq!(scenario.table.find(&siblings_key()).unwrap().escalation.repeats, 0);
    }
}

#[test]
fn a_loop_that_ended_long_ago_starts_at_level_1() {
    let mut scenario = siblings(2);
    scenario.bridgings = vec![vec![0, 1]];
    scenario.run(1);
    scenario.bridgings.clear();
    assert!(scenario.run(310).iter().any(|(_, events)| matches!(events, LoopEvent::Stopped(_))));
    scenario.tick += 4 * MEMORY.as_secs();
    scenario.run(1);
    scenario.bridgings = vec![vec![0, 1]];
    scenario.run(1);
    assert_eq!(scenario.table.find(&siblings_key()).unwrap().escalation.repeats, 0);
}

#[test]
fn only_ports_in_the_loop_are_quarantined() {
    let mut scenario = siblings(4);
    scenario.bridgings = vec![vec![1, 3]];
    scenario.run(10);
    assert_eq!(scenario.quarantined(), ["p3"]);
}

#[test]
fn of_two_vms_joined_externally_the_younger_is_quarantined() {
    let mut scenario = Scenario::new(vec![
        end("z", "n", "z0"),
        end("z", "m", "z1"),
        end("a", "n", "a0"),
        end("a", "m", "a1"),
        end("a", "m", "a2"),
    ]);
    scenario.bridgings = vec![vec![0, 2]];
    let events = scenario.run(60);
    assert_eq!(events.len(), 1, "{events:?}");
    let LoopEvent::Started(LoopKey::External { .. }) = events[0].1 else { panic!("{events:?}") };
    assert_eq!(scenario.quarantined(), ["a0"]);
}

#[test]
fn networks_that_are_bridged_once_are_a_notice_and_twice_a_loop() {
    let mut scenario =
        Scenario::new(vec![end("a", "1", "a1"), end("a", "2", "a2"), end("b", "1", "b1"), end("b", "2", "b2")]);
    scenario.bridgings = vec![vec![0, 1]];
    let events = scenario.run(60);
    assert_eq!(events.len(), 1, "{events:?}");
    let LoopEvent::NetworksBridged(_) = &events[0].1 else { panic!("{events:?}") };
    assert!(scenario.table.notices(scenario.now()).all(|notice| notice.is_there));
    assert_eq!(scenario.table.notices(scenario.now()).count(), 1);
    assert_eq!(scenario.table.measures(&scenario.layout), LoopMeasures::default());
    scenario.bridgings.push(vec![2, 3]);
    let events = scenario.run(60);
    assert_eq!(events.len(), 2, "{events:?}");
    let LoopEvent::Started(key @ LoopKey::InterNetwork { ends: (b1, _) }) = &events[1].1 else { panic!("{events:?}") };
    assert_eq!(b1.vm.as_deref(), Some("b"), "the latest VM");
    assert_eq!(scenario.quarantined().len(), 1);
    // The other VM no longer bridges: this one closes no loop and is released at the end of its time.
    scenario.bridgings.remove(0);
    let events = scenario.run(300);
    assert!(
        matches!(&events[..], [(_, LoopEvent::Cleared(_)), (_, LoopEvent::Stopped(over))] if over.loop_state.key == *key),
        "{events:?}"
    );
    assert_eq!(scenario.quarantined(), [""; 0]);
    // The bridging ends and returns within the hold-down: no new event.
    assert_eq!(scenario.table.notices(scenario.now()).filter(|notice| notice.is_there).count(), 1);
    scenario.bridgings.clear();
    assert_eq!(scenario.run(10), []);
    assert!(scenario.table.notices(scenario.now()).all(|notice| !notice.is_there));
    scenario.bridgings = vec![vec![2, 3]];
    assert_eq!(scenario.run(10), []);
    assert_eq!(scenario.table.notices(scenario.now()).filter(|notice| notice.is_there).count(), 1);
}

#[test]
fn a_detached_port_leaves_the_loop() {
    let mut scenario = siblings(3);
    scenario.bridgings = vec![vec![0, 1, 2]];
    scenario.run(10);
    assert_eq!(scenario.quarantined(), ["p1", "p2"]);
    let ends = scenario.ends[..2].to_vec();
    let networks = [("n".to_owned(), Duration::from_secs(1))];
    scenario.layout = Topology::new(networks.clone(), ends.into_iter().map(|end| (end, 0)));
    scenario.ends.truncate(2);
    scenario.bridgings = vec![vec![0, 1]];
    assert_eq!(scenario.run(1), []);
    assert_eq!(scenario.quarantined(), ["p1"]);
    scenario.layout = Topology::new(networks, [(scenario.ends[0].clone(), 0)]);
    scenario.ends.truncate(1);
    scenario.bridgings.clear();
    let events = scenario.run(1);
    assert!(matches!(&events[..], [(_, LoopEvent::Stopped(over))] if over.why == EndReason::Detached), "{events:?}");
    assert_eq!(scenario.table.measures(&scenario.layout), LoopMeasures::default());
}

#[test]
fn dropped_frames_are_summed() {
    let mut scenario = siblings(2);
    let refused = |more, total| HashMap::from([(end("v", "n", "p1"), RefusedCount { more, total })]);
    scenario.bridgings = vec![vec![0, 1]];
    let mut sum = 0;
    for count in 1..=20u64 {
        sum += count;
        scenario.step(&refused(count, sum));
    }
    assert_eq!(scenario.table.find(&siblings_key()).unwrap().dropped, sum, "including copies before detection");
    scenario.step(&HashMap::new());
    assert_eq!(scenario.table.find(&siblings_key()).unwrap().dropped, sum);
}

/// Behaviour of guests: bridges, and their duration in seconds.
fn doings() -> impl Strategy<Value = Vec<(Vec<Vec<usize>>, u64)>> {
    let bridge = prop::collection::btree_set(0usize..6, 2..5).prop_map(|bridge| bridge.into_iter().collect());
    let bridgings = prop::collection::vec(bridge, 0..3);
    prop::collection::vec((bridgings, prop_oneof![3 => 1u64..20, 1 => 20u64..800]), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// For any behaviour of guests: a loop starts before it escalates or stops; it stops only when it was absent for
    /// three intervals, and its mitigation has ended then; other ports are never quarantined; a loop of ten seconds
    /// is contained.
    #[test]
    fn any_behaviour_of_guests_is_contained(doings in doings()) {
        let mut scenario = Scenario::new(vec![
            end("v", "n", "v0"), end("v", "n", "v1"), end("v", "m", "v2"),
            end("w", "n", "w0"), end("w", "m", "w1"), end("w", "m", "w2"),
        ]);
        let mut there: BTreeSet<LoopKey> = BTreeSet::new();
        let mut last_seen: BTreeMap<LoopKey, u64> = BTreeMap::new();
        let mut ever: BTreeSet<usize> = BTreeSet::new();
        for (bridgings, seconds) in doings {
            ever.extend(bridgings.iter().flatten());
            let begun = scenario.tick;
            scenario.bridgings = bridgings;
            for _ in 0..seconds * 4 {
                for bridge in &scenario.bridgings {
                    for &a in bridge {
                        for &b in bridge.iter().filter(|&&b| b != a) {
                            let (a, b) = (scenario.ends[a].clone(), scenario.ends[b].clone());
                            for of in scenario.table.loops().filter(|of| !matches!(of.key, LoopKey::InterNetwork { .. })) {
                                if of.key.matches(&if a <= b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }) {
                                    last_seen.insert(of.key.clone(), scenario.tick);
                                }
                            }
                        }
                    }
                }
                for events in scenario.step(&HashMap::new()) {
                    match events {
                        LoopEvent::Started(key) => prop_assert!(there.insert(key)),
                        LoopEvent::Escalated(key, _) | LoopEvent::Extended(key, _) | LoopEvent::Cleared(key) => prop_assert!(there.contains(&key)),
                        LoopEvent::Stopped(over) => {
                            prop_assert!(there.remove(&over.loop_state.key));
                            prop_assert_eq!(over.why, EndReason::Gone);
                            if let Some(seen) = last_seen.get(&over.loop_state.key) {
                                prop_assert!(scenario.tick - seen > 12, "the loop still existed");
                            }
                            prop_assert!(over.at >= over.loop_state.escalation.escalated + MIN_MEASURE_TIME.min(time(over.loop_state.escalation.repeats)));
                        }
                        LoopEvent::NetworksBridged(_) => {}
                    }
                }
                let mitigation = scenario.table.measures(&scenario.layout);
                prop_assert_eq!(there.len(), scenario.table.loops().count());
                for (quarantined, key) in &mitigation.quarantined {
                    prop_assert!(there.contains(key));
                    let place = scenario.ends.iter().position(|end| end == quarantined).unwrap();
                    prop_assert!(ever.contains(&place));
                }
                if scenario.tick - begun < 40 {
                    continue;
                }
                // On each network, a bridge has at most one port that is not quarantined: no frame leaves it
                // elsewhere.
                for bridge in &scenario.bridgings {
                    for network in ["n", "m"] {
                        let free = bridge.iter().filter(|&&place| {
                            let end = &scenario.ends[place];
                            end.network == network && !mitigation.quarantined.contains_key(end)
                        });
                        prop_assert!(free.count() <= 1, "{:?} {:?}", bridge, mitigation);
                    }
                }
            }
        }
    }
}
