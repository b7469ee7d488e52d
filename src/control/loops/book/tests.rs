//! Whole stories, with a made-up clock, and a guest that bridges what it likes.

use proptest::prelude::*;

use super::*;
use crate::control::loops::ladder::{SHORTEST, time};
use crate::control::loops::schedule::{TURN, is_due};

fn end(vm: &str, network: &str, port: &str) -> End {
    End { vm: Some(vm.into()), network: network.into(), port: port.into() }
}

/// A switch, some guests, and the time in turns of control.
struct Town {
    book: Book,
    layout: Layout,
    ends: Vec<End>,
    /// What is bridged, as indices.
    bridges: Vec<Vec<usize>>,
    turn: u64,
}

impl Town {
    fn new(ends: Vec<End>) -> Town {
        let networks: BTreeSet<String> = ends.iter().map(|end| end.network.clone()).collect();
        let networks = networks.into_iter().map(|network| (network, Duration::from_secs(1)));
        let layout = Layout::new(networks, ends.iter().cloned().enumerate().map(|(place, end)| (end, place)));
        Town { book: Book::default(), layout, ends, bridges: Vec::new(), turn: 0 }
    }

    fn now(&self) -> Moment {
        Moment::from_secs(1000) + TURN * u32::try_from(self.turn).unwrap()
    }

    fn suspected(&self, place: usize) -> bool {
        self.ends[place].vm.as_deref().is_some_and(|vm| self.book.is_in_question(vm, self.now()))
    }

    /// One turn: probes go out, come back by the bridges, also through what is held, and are looked at.
    fn step(&mut self, refused: &HashMap<End, Refused>) -> Vec<News> {
        self.turn += 1;
        let now = self.now();
        for place in 0..self.ends.len() {
            if !is_due(self.turn, place, Duration::from_secs(1), self.suspected(place)) {
                continue;
            }
            for bridge in self.bridges.iter().filter(|bridge| bridge.contains(&place)) {
                for &other in bridge.iter().filter(|&&other| other != place) {
                    self.book.hear(self.ends[place].clone(), self.ends[other].clone(), now);
                }
            }
        }
        self.book.look(&self.layout, refused, now)
    }

    /// So many seconds, and what happens in them, with the time in milliseconds since the beginning.
    fn run(&mut self, seconds: u64) -> Vec<(u64, News)> {
        let mut all = Vec::new();
        for _ in 0..seconds * 4 {
            let at = (self.turn + 1) * 250;
            all.extend(self.step(&HashMap::new()).into_iter().map(|news| (at, news)));
        }
        all
    }

    fn held(&self) -> Vec<String> {
        self.book.measures(&self.layout).held.into_keys().map(|end| end.port).collect()
    }
}

fn siblings(count: usize) -> Town {
    Town::new((0..count).map(|place| end("v", "n", &format!("p{place}"))).collect())
}

fn siblings_key() -> Key {
    Key::Siblings { vm: "v".into(), network: "n".into() }
}

#[test]
fn a_loop_of_siblings_goes_up_the_ladder_and_comes_down_when_it_is_gone() {
    for count in [2, 3, 8] {
        let mut town = siblings(count);
        assert_eq!(town.run(60), [], "nobody bridges");
        town.bridges = vec![(0..count).collect()];
        let news = town.run(2);
        assert_eq!(news.len(), 1, "{news:?}");
        assert_eq!(news[0].1, News::Started(siblings_key()));
        assert!(news[0].0 <= 61_000, "within one interval");
        assert_eq!(town.book.measures(&town.layout).splits, BTreeSet::from([("v".into(), "n".into())]));
        assert_eq!(town.held(), [""; 0]);
        let news = town.run(10);
        assert_eq!(news.len(), 1, "{news:?}");
        assert_eq!(news[0].1, News::Raised(siblings_key(), Level::Most));
        let others: Vec<String> = (1..count).map(|place| format!("p{place}")).collect();
        assert_eq!(town.held(), others, "the first one goes on");
        // It stays, and is not let loose.
        let news = town.run(400);
        assert_eq!(news.len(), 1, "{news:?}");
        assert_eq!(news[0].1, News::Prolonged(siblings_key(), Duration::from_secs(600)));
        assert_eq!(town.held(), others);
        // It goes: that is noticed at once, and the measures stay until their time.
        town.bridges.clear();
        let gone = town.turn * 250;
        let news = town.run(700);
        assert_eq!(news.len(), 2, "{news:?}");
        assert_eq!(news[0].1, News::Quiet(siblings_key()));
        assert!(news[0].0 - gone <= 1250);
        let News::Stopped(over) = &news[1].1 else { panic!("{news:?}") };
        assert_eq!((over.why, &over.was.key), (Why::Gone, &siblings_key()));
        assert_eq!(town.book.measures(&town.layout), Measures::default());
        // It comes back: twice the time it had.
        town.bridges = vec![(0..count).collect()];
        town.run(2);
        assert_eq!(town.book.find(&siblings_key()).unwrap().ladder.repeats, 2);
        // And is released by hand, which restarts the count.
        assert_eq!(town.book.release("p1", town.now()).len(), 1);
        assert_eq!(town.book.release("p1", town.now()), []);
        assert_eq!(town.held(), [""; 0]);
        assert_eq!(town.run(2)[0].1, News::Started(siblings_key()));
        assert_eq!(town.book.find(&siblings_key()).unwrap().ladder.repeats, 0);
    }
}

#[test]
fn a_loop_that_was_over_for_long_begins_anew() {
    let mut town = siblings(2);
    town.bridges = vec![vec![0, 1]];
    town.run(1);
    town.bridges.clear();
    assert!(town.run(310).iter().any(|(_, news)| matches!(news, News::Stopped(_))));
    town.turn += 4 * MEMORY.as_secs();
    town.run(1);
    town.bridges = vec![vec![0, 1]];
    town.run(1);
    assert_eq!(town.book.find(&siblings_key()).unwrap().ladder.repeats, 0);
}

#[test]
fn only_those_in_the_loop_are_held() {
    let mut town = siblings(4);
    town.bridges = vec![vec![1, 3]];
    town.run(10);
    assert_eq!(town.held(), ["p3"]);
}

#[test]
fn two_vms_joined_outside_lose_the_younger_one() {
    let mut town = Town::new(vec![
        end("z", "n", "z0"),
        end("z", "m", "z1"),
        end("a", "n", "a0"),
        end("a", "m", "a1"),
        end("a", "m", "a2"),
    ]);
    town.bridges = vec![vec![0, 2]];
    let news = town.run(60);
    assert_eq!(news.len(), 1, "{news:?}");
    let News::Started(Key::Around { .. }) = news[0].1 else { panic!("{news:?}") };
    assert_eq!(town.held(), ["a0"]);
}

#[test]
fn networks_that_are_bridged_once_are_a_notice_and_twice_a_loop() {
    let mut town = Town::new(vec![end("a", "1", "a1"), end("a", "2", "a2"), end("b", "1", "b1"), end("b", "2", "b2")]);
    town.bridges = vec![vec![0, 1]];
    let news = town.run(60);
    assert_eq!(news.len(), 1, "{news:?}");
    let News::Bridges(_) = &news[0].1 else { panic!("{news:?}") };
    assert!(town.book.notices(town.now()).all(|notice| notice.is_there));
    assert_eq!(town.book.notices(town.now()).count(), 1);
    assert_eq!(town.book.measures(&town.layout), Measures::default());
    town.bridges.push(vec![2, 3]);
    let news = town.run(60);
    assert_eq!(news.len(), 2, "{news:?}");
    let News::Started(key @ Key::Bridged { ends: (b1, _) }) = &news[1].1 else { panic!("{news:?}") };
    assert_eq!(b1.vm.as_deref(), Some("b"), "who came last");
    assert_eq!(town.held().len(), 1);
    // The other one goes: then this one is in nobody's way, and is let go at the end of its time.
    town.bridges.remove(0);
    let news = town.run(300);
    assert!(matches!(&news[..], [(_, News::Quiet(_)), (_, News::Stopped(over))] if over.was.key == *key), "{news:?}");
    assert_eq!(town.held(), [""; 0]);
    // It has gone and comes back: that is no news.
    assert_eq!(town.book.notices(town.now()).filter(|notice| notice.is_there).count(), 1);
    town.bridges.clear();
    assert_eq!(town.run(10), []);
    assert!(town.book.notices(town.now()).all(|notice| !notice.is_there));
    town.bridges = vec![vec![2, 3]];
    assert_eq!(town.run(10), []);
    assert_eq!(town.book.notices(town.now()).filter(|notice| notice.is_there).count(), 1);
}

#[test]
fn whoever_is_detached_leaves_the_loop() {
    let mut town = siblings(3);
    town.bridges = vec![vec![0, 1, 2]];
    town.run(10);
    assert_eq!(town.held(), ["p1", "p2"]);
    let ends = town.ends[..2].to_vec();
    let networks = [("n".to_owned(), Duration::from_secs(1))];
    town.layout = Layout::new(networks.clone(), ends.into_iter().map(|end| (end, 0)));
    town.ends.truncate(2);
    town.bridges = vec![vec![0, 1]];
    assert_eq!(town.run(1), []);
    assert_eq!(town.held(), ["p1"]);
    town.layout = Layout::new(networks, [(town.ends[0].clone(), 0)]);
    town.ends.truncate(1);
    town.bridges.clear();
    let news = town.run(1);
    assert!(matches!(&news[..], [(_, News::Stopped(over))] if over.why == Why::Detached), "{news:?}");
    assert_eq!(town.book.measures(&town.layout), Measures::default());
}

#[test]
fn what_was_suppressed_is_summed_up() {
    let mut town = siblings(2);
    let refused = |more, in_all| HashMap::from([(end("v", "n", "p1"), Refused { more, in_all })]);
    town.bridges = vec![vec![0, 1]];
    let mut sum = 0;
    for turn in 1..=20u64 {
        sum += turn;
        town.step(&refused(turn, sum));
    }
    assert_eq!(town.book.find(&siblings_key()).unwrap().suppressed, sum, "with what came before it was found");
    town.step(&HashMap::new());
    assert_eq!(town.book.find(&siblings_key()).unwrap().suppressed, sum);
}

/// What guests do in a while: the bridges, and for how many seconds.
fn doings() -> impl Strategy<Value = Vec<(Vec<Vec<usize>>, u64)>> {
    let bridge = prop::collection::btree_set(0usize..6, 2..5).prop_map(|bridge| bridge.into_iter().collect());
    let bridges = prop::collection::vec(bridge, 0..3);
    prop::collection::vec((bridges, prop_oneof![3 => 1u64..20, 1 => 20u64..800]), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever guests do: a loop begins before it is raised or stops; it stops only when nobody has bridged
    /// for three intervals, and by then there are no measures for it; uninvolved ports are never held; and
    /// whoever loops for ten seconds is contained.
    #[test]
    fn whatever_guests_do(doings in doings()) {
        let mut town = Town::new(vec![
            end("v", "n", "v0"), end("v", "n", "v1"), end("v", "m", "v2"),
            end("w", "n", "w0"), end("w", "m", "w1"), end("w", "m", "w2"),
        ]);
        let mut there: BTreeSet<Key> = BTreeSet::new();
        let mut last_seen: BTreeMap<Key, u64> = BTreeMap::new();
        let mut ever: BTreeSet<usize> = BTreeSet::new();
        for (bridges, seconds) in doings {
            ever.extend(bridges.iter().flatten());
            let begun = town.turn;
            town.bridges = bridges;
            for _ in 0..seconds * 4 {
                for bridge in &town.bridges {
                    for &a in bridge {
                        for &b in bridge.iter().filter(|&&b| b != a) {
                            let (a, b) = (town.ends[a].clone(), town.ends[b].clone());
                            for of in town.book.loops().filter(|of| !matches!(of.key, Key::Bridged { .. })) {
                                if of.key.fits(&if a <= b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }) {
                                    last_seen.insert(of.key.clone(), town.turn);
                                }
                            }
                        }
                    }
                }
                for news in town.step(&HashMap::new()) {
                    match news {
                        News::Started(key) => prop_assert!(there.insert(key)),
                        News::Raised(key, _) | News::Prolonged(key, _) | News::Quiet(key) => prop_assert!(there.contains(&key)),
                        News::Stopped(over) => {
                            prop_assert!(there.remove(&over.was.key));
                            prop_assert_eq!(over.why, Why::Gone);
                            if let Some(seen) = last_seen.get(&over.was.key) {
                                prop_assert!(town.turn - seen > 12, "it was still there");
                            }
                            prop_assert!(over.at >= over.was.ladder.raised + SHORTEST.min(time(over.was.ladder.repeats)));
                        }
                        News::Bridges(_) => {}
                    }
                }
                let measures = town.book.measures(&town.layout);
                prop_assert_eq!(there.len(), town.book.loops().count());
                for (held, key) in &measures.held {
                    prop_assert!(there.contains(key));
                    let place = town.ends.iter().position(|end| end == held).unwrap();
                    prop_assert!(ever.contains(&place));
                }
                if town.turn - begun < 40 {
                    continue;
                }
                // On each network no bridge has two ends that are not held: whatever goes in comes out nowhere else.
                for bridge in &town.bridges {
                    for network in ["n", "m"] {
                        let free = bridge.iter().filter(|&&place| {
                            let end = &town.ends[place];
                            end.network == network && !measures.held.contains_key(end)
                        });
                        prop_assert!(free.count() <= 1, "{:?} {:?}", bridge, measures);
                    }
                }
            }
        }
    }
}
