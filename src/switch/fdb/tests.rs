//! The FDB compared with a model; and, by example, which port a full table affects.

use super::*;
use crate::switch::NetworkId;
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

#[test]
fn a_million_stations_fit_in_forty_mebibytes() {
    assert!(fdb(1_000_000).bytes() <= 40 << 20);
}

#[test]
fn pages_return_every_station_once() {
    let mut table = fdb(1000);
    for mac in 1..=1000 {
        learn(&mut table, station(1, mac), PortId::new(0, 0), 1, Limits { network: 1000, port: 1000 });
    }
    let (mut all, mut cursor) = (Vec::new(), Some(0));
    while let Some(at) = cursor {
        let mut page = Vec::with_capacity(64);
        cursor = table.page(at, &mut page);
        all.extend(page.iter().map(|l| l.station.mac().bits()));
    }
    all.sort_unstable();
    assert_eq!(all, (1..=1000).collect::<Vec<_>>());
}
