//! The FDB compared with a model; and, by example, which port a full table affects.

use super::*;
use crate::switch::NetworkId;
use crate::switch::pinned::Pin;
use crate::wire::Mac;
use proptest::prelude::*;
use std::collections::HashMap;

const AGEING: u32 = 300;

fn station(network: u16, mac: u64) -> Station {
    Station::new(NetworkId::new(network), Mac::from_bits(mac))
}

fn fdb(capacity: u32) -> Fdb {
    Fdb::new(capacity, HashKey::new([42; 16]))
}

fn learn(fdb: &mut Fdb, s: Station, port: PortId, now: u32, limits: Limits) -> LearnResult {
    fdb.learn(s, fdb.hash(s), port, now, limits, AGEING)
}

fn find(fdb: &Fdb, s: Station, now: u32) -> Option<PortId> {
    fdb.find(s, fdb.hash(s), (now + 1).saturating_sub(AGEING))
}

/// The same table, written for clarity instead of speed.
#[derive(Default)]
struct Model {
    /// In the order of their last refresh.
    stations: Vec<FdbEntry>,
    capacity: usize,
}

impl Model {
    fn count(&self, f: impl Fn(&FdbEntry) -> bool) -> u32 {
        self.stations.iter().filter(|l| f(l)).count() as u32
    }

    fn drop_oldest_of(&mut self, port: PortId) {
        let at = self.stations.iter().position(|l| l.port.index() == port.index()).unwrap();
        self.stations.remove(at);
    }

    fn learn(&mut self, s: Station, port: PortId, now: u32, limits: Limits) -> LearnResult {
        let new = FdbEntry { station: s, port, last_seen: now };
        let full = |m: &Model| m.count(|l| l.port.index() == port.index()) >= limits.port;
        if let Some(at) = self.stations.iter().position(|l| l.station == s) {
            let old = self.stations[at];
            if old.port == port {
                if old.last_seen >= now {
                    return LearnResult::Known;
                }
                self.stations.remove(at);
                self.stations.push(new);
                return if old.last_seen / (AGEING / 4) == now / (AGEING / 4) {
                    LearnResult::Known
                } else {
                    LearnResult::Refresh
                };
            }
            if full(self) {
                self.drop_oldest_of(port);
            }
            self.stations.retain(|l| l.station != s);
            self.stations.push(new);
            return LearnResult::Moved { from: old.port };
        }
        let network = self.count(|l| l.station.network() == s.network());
        if full(self) || network >= limits.network || self.stations.len() >= self.capacity {
            if self.count(|l| l.port.index() == port.index()) == 0 {
                return LearnResult::Refused;
            }
            self.drop_oldest_of(port);
        }
        self.stations.push(new);
        LearnResult::New
    }

    fn find(&self, s: Station, now: u32) -> Option<PortId> {
        self.stations.iter().find(|l| l.station == s && now - l.last_seen < AGEING).map(|l| l.port)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn the_table_agrees_with_the_model(
        capacity in 4u32..40, quota in 1u32..12, per_network in 1u32..30,
        steps in proptest::collection::vec((0u64..24, 0u16..3, 0u16..4, 0u32..40, 0u8..12), 1..400)
    ) {
        let mut table = fdb(capacity);
        let mut model = Model { capacity: capacity as usize, ..Model::default() };
        let limits = Limits { network: per_network, port: quota };
        let mut now = 1000;
        for (mac, network, port, later, what) in steps {
            now += later;
            // a port is on one network
            let (s, port) = (station(network, mac + 1), PortId::new(network * 4 + port, 0));
            match what {
                0 => {
                    table.age_step(3, |l| now - l.last_seen < AGEING);
                    // the model removes what the table removed, which must be no valid entry
                    let mut page = Vec::with_capacity(64);
                    table.page(0, &mut page);
                    let left: HashMap<_, _> = page.iter().map(|l| (l.station, l)).collect();
                    model.stations.retain(|l| now - l.last_seen < AGEING || left.contains_key(&l.station));
                }
                1..6 => prop_assert_eq!(find(&table, s, now), model.find(s, now)),
                _ => prop_assert_eq!(learn(&mut table, s, port, now, limits), model.learn(s, port, now, limits)),
            }
            prop_assert_eq!(table.len(), model.stations.len());
        }
        let mut page = Vec::with_capacity(64);
        prop_assert_eq!(table.page(0, &mut page), None);
        let key = |l: &FdbEntry| (l.station, l.port.index(), l.last_seen);
        let (mut a, mut b): (Vec<_>, Vec<_>) = (page.iter().map(key).collect(), model.stations.iter().map(key).collect());
        a.sort_unstable();
        b.sort_unstable();
        prop_assert_eq!(a, b);
    }
}

#[test]
fn a_flood_of_addresses_evicts_only_its_own_entries() {
    let mut table = fdb(4096);
    let limits = Limits { network: 4096, port: 1000 };
    let (victim, attacker) = (PortId::new(1, 0), PortId::new(2, 0));
    for mac in 1..=500 {
        assert_eq!(learn(&mut table, station(0, mac), victim, 1, limits), LearnResult::New);
    }
    for mac in 0..20_000 {
        assert_eq!(learn(&mut table, station(0, 0x0200_0000_0000 + mac), attacker, 2, limits), LearnResult::New);
    }
    assert!((1..=500).all(|mac| find(&table, station(0, mac), 2) == Some(victim)));
    assert_eq!(table.len(), 1500);
    assert_eq!(find(&table, station(0, 0x0200_0000_0000 + 19_999), 2), Some(attacker), "the newest entries are kept");
}

#[test]
fn a_full_table_refuses_only_ports_without_entries() {
    let mut table = fdb(8);
    let limits = Limits::default();
    for mac in 1..=8 {
        learn(&mut table, station(0, mac), PortId::new(1, 0), 1, limits);
    }
    assert_eq!(learn(&mut table, station(0, 99), PortId::new(2, 0), 1, limits), LearnResult::Refused);
    assert_eq!(table.refused(), 1);
    assert_eq!(learn(&mut table, station(0, 99), PortId::new(1, 0), 1, limits), LearnResult::New);
    assert_eq!(find(&table, station(0, 1), 1), None, "its own oldest entry was evicted");
}

#[test]
fn a_port_that_may_have_no_station_attracts_none() {
    let mut table = fdb(8);
    let (port, full) = (PortId::new(1, 0), PortId::new(2, 0));
    learn(&mut table, station(0, 1), port, 1, Limits::default());
    let limits = Limits { port: 0, ..Limits::default() };
    for refused in 1..=2 {
        assert_eq!(learn(&mut table, station(0, 1), full, 1, limits), LearnResult::Refused);
        assert_eq!(table.refused(), refused);
    }
    assert_eq!(find(&table, station(0, 1), 1), Some(port));
}

#[test]
fn a_station_is_current_at_its_port_in_the_second_in_which_it_was_seen() {
    let mut table = fdb(8);
    let (s, port) = (station(0, 1), PortId::new(1, 0));
    learn(&mut table, s, port, 100, Limits::default());
    let is_current = |port, now| table.is_current(s, table.hash(s), port, now);
    assert!(is_current(port, 100));
    assert!(!is_current(port, 101) && !is_current(PortId::new(2, 0), 100));
}

#[test]
fn silent_stations_age_and_active_ones_do_not() {
    let mut table = fdb(8);
    let port = PortId::new(1, 0);
    learn(&mut table, station(0, 1), port, 100, Limits::default());
    learn(&mut table, station(0, 2), port, 100, Limits::default());
    assert_eq!(learn(&mut table, station(0, 2), port, 350, Limits::default()), LearnResult::Refresh);
    assert_eq!(find(&table, station(0, 1), 399), Some(port));
    assert_eq!(find(&table, station(0, 1), 400), None);
    assert_eq!(find(&table, station(0, 2), 400), Some(port));
    table.age_step(8, |l| 400 - l.last_seen < AGEING);
    assert_eq!(table.len(), 1);
}

/// A table of two windows, with an entry in each.
#[test]
fn ageing_visits_one_window_at_a_time_and_each_entry_once_per_round() {
    let mut table = fdb(250);
    assert_eq!(table.buckets.len().div_ceil(AGE_WINDOW), 2);
    let mut numbers = 1..;
    let [first, second] = [0..AGE_WINDOW - 1, AGE_WINDOW..1000].map(|window| {
        loop {
            let s = station(0, numbers.next().unwrap());
            learn(&mut table, s, PortId::new(1, 0), 1, Limits::default());
            let hash = table.hash(s);
            if table.buckets.position(s, hash).is_some_and(|at| window.contains(&at)) {
                return Some(s);
            }
            table.remove_from(s, hash, PortId::new(1, 0));
        }
    });
    for budget in [1, 8] {
        let step = |_| {
            let mut visited = Vec::new();
            table.age_step(budget, |entry| {
                visited.push(entry.station);
                true
            });
            visited
        };
        let steps: Vec<_> = (0..8).map(step).collect();
        let round = if budget == 1 { vec![first, None, second, None] } else { vec![first, second] };
        let expected: Vec<Vec<_>> = round.iter().map(|s| s.iter().copied().collect()).cycle().take(8).collect();
        assert_eq!(steps, expected, "{budget}");
    }
}

#[test]
fn a_million_stations_fit_in_forty_mebibytes() {
    let bytes = fdb(1_000_000).bytes();
    assert!((41_600_000..=40 << 20).contains(&bytes), "{bytes}");
}

/// Of learned, dead and pinned stations.
#[test]
fn the_memory_that_lookups_read_grows_with_the_entries() {
    let mut table = fdb(64);
    assert!(table.is_empty());
    assert_eq!((table.len(), table.capacity(), table.refused(), table.bytes_in_use()), (0, 64, 0, 0));
    for mac in 1..=5 {
        learn(&mut table, station(0, mac), PortId::new(1 + u16::from(mac > 3), 0), 1, Limits::default());
    }
    table.close(PortId::new(2, 0));
    table.insert_static(std::iter::once((station(0, 9), Pin { port: PortId::new(3, 0), is_dampened: false })));
    assert!(!table.is_empty());
    assert_eq!((table.len(), table.bytes_in_use()), (3, 6 * 64), "three learned, two dead and one pinned");
}

#[test]
fn pages_return_every_station_once() {
    // More stations than a page holds, and more free slots than a scan visits.
    for (capacity, stations) in [(1000, 1000), (10_000, 30)] {
        let mut table = fdb(capacity);
        for mac in 1..=stations {
            learn(&mut table, station(1, mac), PortId::new(0, 0), 1, Limits { network: 1000, port: 1000 });
        }
        let (mut all, mut cursor) = (Vec::new(), Some(0));
        while let Some(at) = cursor {
            let mut page = Vec::with_capacity(64);
            cursor = table.page(at, &mut page);
            all.extend(page.iter().map(|l| l.station.mac().bits()));
        }
        all.sort_unstable();
        assert_eq!(all, (1..=stations).collect::<Vec<_>>());
    }
}

#[test]
fn a_flush_asks_for_each_station_once_and_ends() {
    for (capacity, budget) in [(1000, 64), (10_000, 64), (10_000, 1000), (300, 1)] {
        let mut table = fdb(capacity);
        for mac in 1..=300 {
            learn(&mut table, station(1, mac), PortId::new(0, 0), 1, Limits { network: 1000, port: 1000 });
        }
        let (mut asked, mut cursor) = (Vec::new(), Some(0));
        while let Some(at) = cursor {
            let before = asked.len();
            cursor = table.flush(at, budget, |entry| {
                asked.push(entry.station.mac().bits());
                entry.station.mac().bits() % 3 == 0
            });
            assert!(asked.len() - before <= budget && cursor.is_none_or(|next| next > at));
        }
        asked.sort_unstable();
        assert_eq!(asked, (1..=300).collect::<Vec<_>>());
        assert_eq!(table.len(), 200);
        assert!((1..=300).all(|mac| find(&table, station(1, mac), 1).is_some() == (mac % 3 != 0)));
    }
}

#[test]
fn stations_are_counted_by_network() {
    let mut table = fdb(64);
    for mac in 1..=5 {
        let network = u16::from(mac > 2);
        learn(&mut table, station(network, mac), PortId::new(network, 0), 1, Limits::default());
    }
    let mut counts = [9; 3];
    table.count_by_network(&mut counts);
    assert_eq!(counts, [2, 3, 0]);
}
