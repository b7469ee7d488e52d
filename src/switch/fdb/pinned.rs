//! Pinned stations among the learned ones, so that for most frames one table says all.
//!
//! What is pinned is said by the rules, and asked of them wherever it matters. Here lies what is found at a glance: of
//! each pinned station whose line has room, where it is. It is not counted, shown or swept, and does not age.

use super::{Fdb, Learned};
use crate::switch::Station;
use crate::switch::pins::Pin;

/// "Seen" of those pinned for good, in place of a time: later than any.
pub(in crate::switch) const FOR_GOOD: u32 = u32::MAX;

/// And of those that are frozen.
const FROZEN: u32 = FOR_GOOD - 1;

/// One in so many of the places that are left when all is learned that can be may go to pinned stations: lines that
/// are full would make lookups longer.
const SHARE: usize = 3;

impl Learned {
    /// Whether it lies here because it is pinned.
    #[inline(always)]
    pub(super) fn is_pinned(&self) -> bool {
        self.seen >= FROZEN
    }
}

impl Fdb {
    /// Lays pinned stations down, none of which is. Of those, nothing is remembered as learned. Only what can be the
    /// source of a frame is laid down.
    pub(in crate::switch) fn pin(&mut self, pins: impl Iterator<Item = (Station, Pin)>) {
        for (station, Pin { port, is_frozen }) in pins.filter(|(station, _)| station.mac().is_station()) {
            let hash = self.secret.hash(station);
            if let Some(at) = self.places.search(station, hash) {
                self.remove(at);
            }
            let seen = if is_frozen { FROZEN } else { FOR_GOOD };
            if self.pinned < (self.places.len() - self.capacity) / SHARE
                && self.places.put_apart(hash, Learned { station, port, seen })
            {
                self.pinned += 1;
            }
        }
    }

    /// Takes stations up that are pinned no longer.
    pub(in crate::switch) fn unpin(&mut self, stations: impl Iterator<Item = Station>) {
        for station in stations {
            if let Some(at) = self.places.search(station, self.secret.hash(station))
                && self.places.get(at).is_pinned()
            {
                self.places.free_apart(at);
                self.pinned -= 1;
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
    use crate::switch::{Limits, NetworkId, PortId, Secret, Seen};
    use crate::wire::Mac;

    fn station(number: u64) -> Station {
        Station::new(NetworkId::new(0), Mac::from_bits(number))
    }

    fn pins(at: &BTreeMap<u64, (u16, bool)>) -> impl Iterator<Item = (Station, Pin)> {
        at.iter().map(|(&number, &(port, is_frozen))| (station(number), Pin { port: PortId::new(port, 0), is_frozen }))
    }

    /// Who lies in the table as pinned.
    fn lies(table: &Fdb, number: u64) -> Option<Learned> {
        let hash = table.hash(station(number));
        table.lines().glance(station(number), hash).copied().filter(Learned::is_pinned)
    }

    proptest! {
        /// Stations are learned and age while others are pinned and pinned no longer.
        #[test]
        fn who_is_pinned_is_not_among_the_learned(
            capacity in 2u32..40,
            rounds in vec((btree_map(1u64..60, (0u16..4, any::<bool>()), 0..40), vec((1u64..60, 0u16..4), 0..60)), 1..6),
        ) {
            let mut table = Fdb::new(capacity, Secret::new([9; 16]));
            let (mut learned, mut before) = (BTreeMap::new(), BTreeMap::new());
            for (now, (pinned, seen)) in (1000..).zip(&rounds) {
                table.unpin(pins(&before).map(|(station, _)| station));
                prop_assert_eq!(table.pinned, 0);
                table.pin(pins(pinned));
                learned.retain(|number, _| !pinned.contains_key(number));
                let room = (table.places.len() - table.capacity) / SHARE;
                prop_assert!(table.pinned <= room.min(pinned.len()));
                for &(number, port) in seen {
                    let (s, port) = (station(number), PortId::new(port, 0));
                    let limits = Limits { network: 1000, port: 1000 };
                    let is_there = learned.contains_key(&number);
                    if lies(&table, number).is_some() {
                        prop_assert_eq!(table.see(s, table.hash(s), port, now, limits, 300), Seen::Known);
                        table.lose(s, table.hash(s), port);
                    } else if is_there || learned.len() < capacity as usize {
                        let seen = table.see(s, table.hash(s), port, now, limits, 300);
                        prop_assert_eq!(seen == Seen::New, !is_there);
                        learned.insert(number, port);
                    }
                }
                table.tidy(1000, |_| true);
                for number in 1..60 {
                    let s = station(number);
                    prop_assert_eq!(table.find(s, table.hash(s), 0), learned.get(&number).copied());
                    if let Some(Learned { port, seen, .. }) = lies(&table, number) {
                        let (expected, is_frozen) = pinned[&number];
                        prop_assert_eq!((port.index(), seen == FROZEN), (expected.into(), is_frozen));
                    }
                }
                prop_assert_eq!((1..60).filter(|&number| lies(&table, number).is_some()).count(), table.pinned);
                let mut page = Vec::with_capacity(64);
                table.page(0, &mut page);
                page.sort_unstable_by_key(|learned| learned.station.mac());
                let all = learned.iter().map(|(&number, &port)| (station(number), port));
                prop_assert!(page.iter().map(|l| (l.station, l.port)).eq(all));
                prop_assert_eq!(table.len(), learned.len());
                before = pinned.clone();
            }
        }
    }
}
