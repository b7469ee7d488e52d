//! The FDB compared with a model of it, with limits, generations, pins and ageing: random operations, and a check of
//! the whole structure after each.
//!
//! `FDB_OPERATIONS=10000000 cargo test --lib fdb::model` makes ten million of them.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::switch::NetworkId;
use crate::switch::pinned::Pin;
use crate::wire::Mac;

const AGEING: u32 = 60;

/// Port indices in use.
const PORTS: usize = 5;

const NETWORKS: u16 = 3;

/// Deterministic random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) % below
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.next(many) == 0
    }
}

/// Expected contents of the table, written for clarity instead of speed.
struct Model {
    capacity: usize,
    /// By port index: the port that learned last, and its stations, oldest first.
    ports: [(PortId, Vec<FdbEntry>); PORTS],
    /// Stations of closed ports, in the order of closing.
    dead: Vec<FdbEntry>,
    pins: BTreeMap<Station, (PortId, bool)>,
}

impl Model {
    fn new(capacity: u32) -> Model {
        let ports = std::array::from_fn(|_| (PortId::NONE, Vec::new()));
        Model { capacity: capacity as usize, ports, dead: Vec::new(), pins: BTreeMap::new() }
    }

    fn all(&self) -> impl Iterator<Item = &FdbEntry> {
        self.living().chain(&self.dead)
    }

    fn living(&self) -> impl Iterator<Item = &FdbEntry> {
        self.ports.iter().flat_map(|(_, stations)| stations)
    }

    fn of_network(&self, network: NetworkId) -> usize {
        self.living().filter(|entry| entry.station.network() == network).count()
    }

    fn get(&self, station: Station) -> Option<FdbEntry> {
        self.all().find(|entry| entry.station == station).copied()
    }

    fn remove(&mut self, station: Station) {
        let lru_lists = self.ports.iter_mut().map(|(_, stations)| stations).chain([&mut self.dead]);
        lru_lists.for_each(|stations| stations.retain(|entry| entry.station != station));
    }

    fn is_alive(&self, entry: &FdbEntry) -> bool {
        self.ports[entry.port.index()].0 == entry.port
    }

    fn close(&mut self, port: PortId) {
        if self.ports[port.index()].0 == port {
            self.transfer(port.index(), PortId::NONE);
        }
    }

    fn own(&mut self, port: PortId) {
        if self.ports[port.index()].0 != port {
            self.transfer(port.index(), port);
            self.dead.retain(|entry| entry.port != port);
        }
    }

    fn transfer(&mut self, index: usize, to: PortId) {
        let (vm, stations) = &mut self.ports[index];
        *vm = to;
        self.dead.append(stations);
    }

    fn learn(&mut self, station: Station, port: PortId, now: u32, limits: Limits, may_move: bool) -> LearnResult {
        let new = FdbEntry { station, port, last_seen: now };
        let Some(old) = self.get(station) else { return self.insert(new, limits) };
        if old.port == port {
            if old.last_seen >= now {
                return LearnResult::Known;
            }
            let is_alive = self.is_alive(&old);
            self.remove(station);
            if !is_alive {
                return self.insert(new, limits);
            }
            self.ports[port.index()].1.push(new);
            return if old.last_seen / (AGEING / 4) == now / (AGEING / 4) {
                LearnResult::Known
            } else {
                LearnResult::Refresh
            };
        }
        if !may_move {
            return LearnResult::Stays;
        }
        self.own(port);
        let is_alive = self.is_alive(&old);
        if !is_alive {
            self.remove(station);
            return self.insert(new, limits);
        }
        if self.ports[port.index()].1.len() >= limits.port as usize {
            self.ports[port.index()].1.remove(0);
        }
        self.remove(station);
        self.ports[port.index()].1.push(new);
        LearnResult::Moved { from: old.port }
    }

    fn insert(&mut self, new: FdbEntry, limits: Limits) -> LearnResult {
        self.own(new.port);
        let (here, network) = (self.ports[new.port.index()].1.len(), self.of_network(new.station.network()));
        let len = self.living().count();
        if here >= limits.port as usize || network >= limits.network as usize || len >= self.capacity {
            if here == 0 {
                return LearnResult::Refused;
            }
            self.ports[new.port.index()].1.remove(0);
        } else if len + self.dead.len() >= self.capacity {
            self.dead.remove(0);
        }
        self.ports[new.port.index()].1.push(new);
        LearnResult::New
    }

    fn restore(&mut self, entry: FdbEntry, limits: Limits) -> bool {
        if self.get(entry.station).is_some() {
            return false;
        }
        self.own(entry.port);
        let (here, network) = (self.ports[entry.port.index()].1.len(), self.of_network(entry.station.network()));
        let len = self.living().count();
        if here >= limits.port as usize || network >= limits.network as usize || len >= self.capacity {
            return false;
        }
        if len + self.dead.len() >= self.capacity {
            self.dead.remove(0);
        }
        self.ports[entry.port.index()].1.insert(0, entry);
        true
    }

    fn has_room(&mut self, port: PortId, most: u32, oldest: u32) -> bool {
        let (vm, stations) = &mut self.ports[port.index()];
        if *vm != port {
            return most > 0;
        }
        while stations.len() >= most as usize {
            match stations.first() {
                Some(first) if first.last_seen < oldest => drop(stations.remove(0)),
                _ => return false,
            }
        }
        true
    }

    /// Compares the contents of the table with the model.
    fn check(&self, table: &Fdb) {
        let entries = table.buckets.check(|station| table.hash(station));
        let taken: BTreeMap<usize, FdbEntry> =
            entries.iter().filter(|&&(_, _, is_taken)| is_taken).map(|&(at, entry, _)| (at, entry)).collect();
        let lru_lists = table.lru.check(PORTS);
        let mut listed = BTreeSet::new();
        let expected = self.ports.iter().map(|(_, stations)| stations).chain([&self.dead]);
        for ((vm, list), expected) in lru_lists.iter().zip(expected) {
            let here: Vec<FdbEntry> = list.iter().map(|at| taken[at]).collect();
            assert_eq!(&here, expected, "behind {vm:?}, from the oldest");
            assert!(here.iter().all(|entry| *vm == PortId::NONE || entry.port == *vm));
            assert!(list.iter().all(|&at| listed.insert(at)), "an entry is in at most one list");
        }
        assert!(listed.iter().eq(taken.keys()), "an entry is in a list or free");
        let owners: Vec<PortId> = lru_lists.iter().map(|&(vm, _)| vm).collect();
        assert!(self.dead.iter().all(|entry| !owners.contains(&entry.port)), "no station of an open port is invalid");
        for network in (0..NETWORKS).map(NetworkId::new) {
            assert_eq!(table.networks[network.index()] as usize, self.of_network(network));
        }
        assert_eq!(table.len(), self.living().count());
        assert!(table.len() + self.dead.len() <= self.capacity);
        let pinned: Vec<&FdbEntry> = entries.iter().filter(|entry| !entry.2).map(|(_, entry, _)| entry).collect();
        assert_eq!(pinned.len(), table.static_count);
        for pin in pinned {
            let (port, is_dampened) = self.pins[&pin.station];
            assert_eq!((pin.port, pin.last_seen == PERMANENT), (port, !is_dampened));
        }
    }
}

/// Runs operations on one table.
fn run(random: &mut Random, operations: u64) {
    let capacity = 4 + random.next(36) as u32;
    let limits = Limits { network: 1 + random.next(24) as u32, port: 1 + random.next(12) as u32 };
    let mut table = Fdb::new(capacity, HashKey::new([random.next(256) as u8; 16]));
    let mut model = Model::new(capacity);
    let (mut now, mut generations) = (1000, [0u16; PORTS]);
    for _ in 0..operations {
        now += u32::from(random.one_in(4)) * random.next(20) as u32;
        let index = random.next(PORTS as u64) as u16;
        let generation = generations[usize::from(index)];
        // Another generation of a port may be on another network.
        let network = |generation: u16| NetworkId::new((index + generation) % NETWORKS);
        let port = PortId::new(index, generation);
        let station = Station::new(network(generation), Mac::from_bits(2 + 2 * random.next(24)));
        let (hash, oldest) = (table.hash(station), now - AGEING);
        match random.next(100) {
            0..5 if !model.pins.contains_key(&station) => {
                let entry = FdbEntry { station, port, last_seen: now - random.next(90) as u32 };
                assert_eq!(table.restore(entry, hash, limits), model.restore(entry, limits));
            }
            5..70 if !model.pins.contains_key(&station) => {
                let may_move = !random.one_in(8);
                let seen = table.learn_if((station, hash), port, now, limits, AGEING, |_| may_move);
                assert_eq!(seen, model.learn(station, port, now, limits, may_move));
            }
            70..78 => {
                let found = model.get(station).filter(|entry| entry.last_seen >= oldest).map(|entry| entry.port);
                assert_eq!(table.find(station, hash, oldest), found);
                let is_current = model.get(station).is_some_and(|entry| entry.is_current(port, now));
                assert_eq!(table.is_current(station, hash, port, now), is_current);
            }
            78..82 => {
                let most = 1 + random.next(12) as u32;
                assert_eq!(table.evict_oldest(port, most, oldest), model.has_room(port, most, oldest));
            }
            82..85 => {
                table.remove_from(station, hash, port);
                if model.get(station).is_some_and(|entry| entry.port == port) {
                    model.remove(station);
                }
            }
            85..88 => generations[usize::from(index)] += 1, // its list is taken over when the next one learns
            88..91 => {
                table.close(port);
                model.close(port);
                // Some keep their id.
                generations[usize::from(index)] += u16::from(!random.one_in(4));
            }
            91 if generation > 0 && !model.pins.contains_key(&station) => {
                // An earlier generation.
                let old = generation - 1;
                let station = Station::new(network(old), station.mac());
                if !model.pins.contains_key(&station) {
                    let (hash, old) = (table.hash(station), PortId::new(index, old));
                    let seen = table.learn(station, hash, old, now, limits, AGEING);
                    assert_eq!(seen, model.learn(station, old, now, limits, true));
                }
            }
            92..96 => {
                let mut gone = Vec::new();
                table.age_step(1 + random.next(8) as usize, |entry| {
                    let keep = entry.last_seen >= oldest && model.is_alive(entry);
                    gone.extend((!keep).then_some(entry.station));
                    keep
                });
                gone.into_iter().for_each(|station| model.remove(station));
            }
            96 => {
                let (mut gone, cursor) = (Vec::new(), random.next(200) as usize);
                table.flush(cursor, 20, |entry| {
                    let goes = entry.port.index() == port.index();
                    gone.extend(goes.then_some(entry.station));
                    goes
                });
                gone.into_iter().for_each(|station| model.remove(station));
            }
            97 => {
                table.remove_static(model.pins.keys().copied());
                let pin = |_| {
                    let number = random.next(24);
                    let station = Station::new(NetworkId::new((number % 3) as u16), Mac::from_bits(2 + 2 * number));
                    (station, (PortId::new((number % 4) as u16, 0), random.one_in(2)))
                };
                model.pins = (0..6).map(pin).collect();
                let pins: Vec<_> = model
                    .pins
                    .iter()
                    .map(|(&station, &(port, is_dampened))| (station, Pin { port, is_dampened }))
                    .collect();
                table.insert_static(pins.into_iter());
                let pinned: Vec<Station> = model.pins.keys().copied().collect();
                pinned.into_iter().for_each(|station| model.remove(station));
            }
            _ => {
                let mut page = Vec::with_capacity(64);
                table.page(0, &mut page);
                let mut all: Vec<_> = model.all().copied().collect();
                page.sort_unstable_by_key(|entry| entry.station);
                all.sort_unstable_by_key(|entry| entry.station);
                assert_eq!(page, all);
            }
        }
        model.check(&table);
    }
}

#[test]
fn the_table_is_consistent_after_each_operation() {
    let operations = std::env::var("FDB_OPERATIONS").ok().and_then(|number| number.parse().ok()).unwrap_or(200_000);
    let mut random = Random(42);
    for round in 0..operations / 1000 {
        if round % 1000 == 999 {
            eprintln!("{} operations", (round + 1) * 1000);
        }
        run(&mut random, 1000);
    }
}
