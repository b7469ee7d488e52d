//! Copies of pinned stations in the FDB, so that one lookup decides most frames.
//!
//! The configuration decides what is pinned, and slow-path checks ask it. The FDB holds a copy of each pinned
//! station whose home bucket has room. Copies are not counted, listed or aged.

use super::{Fdb, FdbEntry};
use crate::switch::Station;
use crate::switch::pinned::Pin;

/// `last_seen` of permanent pins: later than any time.
pub(in crate::switch) const PERMANENT: u32 = u32::MAX;

/// `last_seen` of dampened stations.
const DAMPENED: u32 = PERMANENT - 1;

/// Copies may use one in this many of the slots left when the FDB is full of learned stations: full buckets would
/// make lookups longer.
const SHARE: usize = 3;

impl FdbEntry {
    /// Whether the entry is the copy of a pin.
    #[inline(always)]
    pub(super) fn is_static(&self) -> bool {
        self.last_seen >= DAMPENED
    }
}

impl Fdb {
    /// Inserts copies of pins that have none, and removes learned entries of these stations. Skips addresses that
    /// cannot be a frame's source.
    pub(in crate::switch) fn insert_static(&mut self, pins: impl Iterator<Item = (Station, Pin)>) {
        for (station, Pin { port, is_dampened }) in pins.filter(|(station, _)| station.mac().is_station()) {
            let hash = self.hash_key.hash(station);
            if let Some(at) = self.buckets.position(station, hash) {
                self.remove(at);
            }
            let last_seen = if is_dampened { DAMPENED } else { PERMANENT };
            if self.static_count < (self.buckets.len() - self.capacity) / SHARE
                && self.buckets.insert_static(hash, FdbEntry { station, port, last_seen })
            {
                self.static_count += 1;
            }
        }
    }

    /// Removes the copies of stations that are no longer pinned.
    pub(in crate::switch) fn remove_static(&mut self, stations: impl Iterator<Item = Station>) {
        for station in stations {
            if let Some(at) = self.buckets.position(station, self.hash_key.hash(station))
                && self.buckets.get(at).is_static()
            {
                self.buckets.remove_static(at);
                self.static_count -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;
    use crate::switch::{HashKey, LearnResult, Limits, NetworkId, PortId};
    use crate::wire::Mac;

    fn station(number: u64) -> Station {
        Station::new(NetworkId::new(0), Mac::from_bits(number))
    }

    fn pins(at: &BTreeMap<u64, (u16, bool)>) -> impl Iterator<Item = (Station, Pin)> {
        at.iter()
            .map(|(&number, &(port, is_dampened))| (station(number), Pin { port: PortId::new(port, 0), is_dampened }))
    }

    /// The pinned entry of a station in the table.
    fn lies(table: &Fdb, number: u64) -> Option<FdbEntry> {
        let hash = table.hash(station(number));
        table.lines().lookup_home(station(number), hash).copied().filter(FdbEntry::is_static)
    }

    #[test]
    fn copies_of_pins_take_a_third_of_the_spare_slots() {
        let mut table = Fdb::new(8, HashKey::new([9; 16]));
        assert_eq!(table.buckets.len(), 32);
        table.insert_static(
            (1..31).map(|number| (station(number), Pin { port: PortId::new(0, 0), is_dampened: false })),
        );
        assert_eq!((table.static_count, (1..31).filter(|&number| lies(&table, number).is_some()).count()), (8, 8));
    }

    proptest! {
        /// Stations are learned and age while others are pinned and unpinned.
        #[test]
        fn pinned_stations_are_not_learned(
            capacity in 2u32..40,
            rounds in vec((btree_map(1u64..60, (0u16..4, any::<bool>()), 0..40), vec((1u64..60, 0u16..4), 0..60)), 1..6),
        ) {
            let mut table = Fdb::new(capacity, HashKey::new([9; 16]));
            let (mut entry, mut before) = (BTreeMap::new(), BTreeMap::new());
            for (now, (pinned, seen)) in (1000..).zip(&rounds) {
                table.remove_static(pins(&before).map(|(station, _)| station));
                prop_assert_eq!(table.static_count, 0);
                table.insert_static(pins(pinned));
                entry.retain(|number, _| !pinned.contains_key(number));
                let room = (table.buckets.len() - table.capacity) / SHARE;
                prop_assert!(table.static_count <= room.min(pinned.len()));
                for &(number, port) in seen {
                    let (s, port) = (station(number), PortId::new(port, 0));
                    let limits = Limits { network: 1000, port: 1000 };
                    let is_there = entry.contains_key(&number);
                    if lies(&table, number).is_some() {
                        prop_assert_eq!(table.learn(s, table.hash(s), port, now, limits, 300), LearnResult::Known);
                        table.remove_from(s, table.hash(s), port);
                    } else if is_there || entry.len() < capacity as usize {
                        let seen = table.learn(s, table.hash(s), port, now, limits, 300);
                        prop_assert_eq!(seen == LearnResult::New, !is_there);
                        entry.insert(number, port);
                    }
                }
                table.age_step(1000, |_| true);
                for number in 1..60 {
                    let s = station(number);
                    prop_assert_eq!(table.find(s, table.hash(s), 0), entry.get(&number).copied());
                    if let Some(FdbEntry { port, last_seen, .. }) = lies(&table, number) {
                        let (expected, is_frozen) = pinned[&number];
                        prop_assert_eq!((port.index(), last_seen == DAMPENED), (expected.into(), is_frozen));
                    }
                }
                prop_assert_eq!((1..60).filter(|&number| lies(&table, number).is_some()).count(), table.static_count);
                let mut page = Vec::with_capacity(64);
                table.page(0, &mut page);
                page.sort_unstable_by_key(|entry| entry.station.mac());
                let all = entry.iter().map(|(&number, &port)| (station(number), port));
                prop_assert!(page.iter().map(|l| (l.station, l.port)).eq(all));
                prop_assert_eq!(table.len(), entry.len());
                before = pinned.clone();
            }
        }
    }
}
