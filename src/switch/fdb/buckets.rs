//! Hash buckets of the FDB: four slots each, one cache line.

use std::hint::select_unpredictable;

use super::FdbEntry;
use crate::frame::prefetch;
use crate::switch::{PortId, Station};
use crate::sys::memory::prefer_huge_pages;

/// Slots per bucket.
const BUCKET_SLOTS: usize = 4;

/// Slots per word of the occupancy bitmap.
const WORD: usize = 64;

/// An empty slot.
const EMPTY: FdbEntry = FdbEntry { station: Station::NONE, port: PortId::NONE, last_seen: 0 };

#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Bucket([FdbEntry; BUCKET_SLOTS]);

/// The buckets. An entry never moves to another slot.
#[derive(Debug)]
pub(super) struct Buckets {
    buckets: Vec<Bucket>,
    /// Per bucket: entries that overflowed past this bucket (saturating). A saturated counter stays, which only
    /// makes searches longer.
    overflow_count: Vec<u8>,
    /// Occupancy bitmap, one bit per slot.
    taken: Vec<u64>,
}

impl Buckets {
    /// Size of a bucket in bytes.
    pub(super) const BUCKET_LEN: usize = size_of::<Bucket>();

    /// Allocates at least `least` slots.
    pub(super) fn new(least: usize) -> Buckets {
        let lines = least.div_ceil(BUCKET_SLOTS);
        let mut buckets = Buckets {
            buckets: Vec::with_capacity(lines),
            overflow_count: vec![0; lines],
            taken: vec![0; (lines * BUCKET_SLOTS).div_ceil(WORD)],
        };
        prefer_huge_pages(&mut buckets.buckets);
        buckets.buckets.resize(lines, Bucket([EMPTY; BUCKET_SLOTS]));
        buckets
    }

    /// Number of slots.
    pub(super) fn len(&self) -> usize {
        self.buckets.len() * BUCKET_SLOTS
    }

    /// Memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.buckets) + size_of_val(&*self.overflow_count) + size_of_val(&*self.taken)
    }

    /// The entry in an occupied slot.
    pub(super) fn get(&self, at: usize) -> &FdbEntry {
        &self.buckets[at / BUCKET_SLOTS].0[at % BUCKET_SLOTS]
    }

    /// The same, mutable: port and time may change, the station must not.
    pub(super) fn get_mut(&mut self, at: usize) -> &mut FdbEntry {
        &mut self.buckets[at / BUCKET_SLOTS].0[at % BUCKET_SLOTS]
    }

    /// Prefetches the home bucket of a hash.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch(&self.buckets[home_bucket(hash, self.buckets.len())]);
    }

    /// Prefetches the memory that a lookup reads after the home bucket.
    #[inline]
    pub(super) fn prefetch_overflow(&self, hash: u64) {
        let home = home_bucket(hash, self.buckets.len());
        prefetch(&self.overflow_count[home]);
        prefetch(&self.buckets[self.next_bucket(home)]);
    }

    /// Prefetches what counts the entries that overflowed past the home bucket. Returns the bucket's first slot.
    pub(super) fn prefetch_count(&self, hash: u64) -> usize {
        let home = home_bucket(hash, self.buckets.len());
        prefetch(&self.overflow_count[home]);
        home * BUCKET_SLOTS
    }

    /// A view of the buckets for a series of lookups.
    #[inline(always)]
    pub(super) fn buckets(&self) -> BucketSlice<'_> {
        BucketSlice(&self.buckets)
    }

    /// Looks up the entry of a station.
    #[inline(always)]
    pub(super) fn lookup(&self, station: Station, hash: u64) -> Option<&FdbEntry> {
        self.buckets().lookup_home(station, hash).or_else(|| self.position(station, hash).map(|at| self.get(at)))
    }

    /// Looks up the slot of a station, which must not be [`Station::NONE`].
    #[inline(never)]
    pub(super) fn position(&self, station: Station, hash: u64) -> Option<usize> {
        let mut line = home_bucket(hash, self.buckets.len());
        for _ in 0..self.buckets.len() {
            if let Some(place) = self.buckets[line].0.iter().position(|entry| entry.station == station) {
                return Some(line * BUCKET_SLOTS + place);
            }
            if self.overflow_count[line] == 0 {
                return None;
            }
            line = self.next_bucket(line);
        }
        None
    }

    /// Inserts a station that is not in the table. A free slot must exist.
    pub(super) fn insert(&mut self, hash: u64, entry: FdbEntry) -> usize {
        let mut line = home_bucket(hash, self.buckets.len());
        loop {
            if let Some(at) = self.free_slot_in(line) {
                self.taken[at / WORD] |= 1 << (at % WORD);
                *self.get_mut(at) = entry;
                return at;
            }
            self.overflow_count[line] = self.overflow_count[line].saturating_add(1);
            line = self.next_bucket(line);
        }
    }

    /// Frees the slot of a station with this hash.
    pub(super) fn remove(&mut self, hash: u64, at: usize) {
        *self.get_mut(at) = EMPTY;
        self.taken[at / WORD] &= !(1 << (at % WORD));
        let mut line = home_bucket(hash, self.buckets.len());
        while line != at / BUCKET_SLOTS {
            if self.overflow_count[line] < u8::MAX {
                self.overflow_count[line] -= 1;
            }
            line = self.next_bucket(line);
        }
    }

    /// Inserts a station into its home bucket, invisible to [`next_taken`](Buckets::next_taken). `false` if the
    /// bucket is full.
    pub(super) fn insert_static(&mut self, hash: u64, entry: FdbEntry) -> bool {
        let room = self.free_slot_in(home_bucket(hash, self.buckets.len()));
        room.map(|at| *self.get_mut(at) = entry).is_some()
    }

    /// Frees the slot of such a station.
    pub(super) fn remove_static(&mut self, at: usize) {
        *self.get_mut(at) = EMPTY;
    }

    /// A free slot of a bucket.
    fn free_slot_in(&self, line: usize) -> Option<usize> {
        let free = |entry: &FdbEntry| entry.station == Station::NONE;
        self.buckets[line].0.iter().position(free).map(|place| line * BUCKET_SLOTS + place)
    }

    /// The first occupied slot in `from..end`.
    pub(super) fn next_taken(&self, from: usize, end: usize) -> Option<usize> {
        let mut at = from;
        while at < end {
            let word = self.taken[at / WORD] >> (at % WORD);
            if word != 0 {
                return Some(at + word.trailing_zeros() as usize).filter(|&found| found < end);
            }
            at = (at / WORD + 1) * WORD;
        }
        None
    }

    /// The bucket searched after this one.
    fn next_bucket(&self, line: usize) -> usize {
        if line + 1 < self.buckets.len() { line + 1 } else { 0 }
    }
}

#[cfg(test)]
impl Buckets {
    /// All entries with their slots, and whether [`next_taken`](Buckets::next_taken) finds them. Panics if a search
    /// cannot reach an entry, or an overflow count is wrong.
    pub(super) fn check(&self, hash: impl Fn(Station) -> u64) -> Vec<(usize, FdbEntry, bool)> {
        let (mut all, mut passed) = (Vec::new(), vec![0u32; self.buckets.len()]);
        for at in 0..self.len() {
            let (entry, is_taken) = (*self.get(at), self.taken[at / WORD] >> (at % WORD) & 1 != 0);
            if entry.station == Station::NONE {
                assert!(!is_taken, "place {at} is free");
                continue;
            }
            let hash = hash(entry.station);
            assert_eq!(self.position(entry.station, hash), Some(at), "{:?} is found where it is", entry.station);
            let mut line = home_bucket(hash, self.buckets.len());
            assert!(is_taken || line == at / BUCKET_SLOTS, "what is pinned lies in its own line");
            while line != at / BUCKET_SLOTS {
                passed[line] += 1;
                line = self.next_bucket(line);
            }
            all.push((at, entry, is_taken));
        }
        let counted = self.overflow_count.iter().map(|&passed| u32::from(passed));
        assert!(counted.eq(passed), "who passed a line is counted there");
        all
    }
}

/// A view of the buckets.
#[derive(Clone, Copy)]
pub(in crate::switch) struct BucketSlice<'a>(&'a [Bucket]);

impl<'a> BucketSlice<'a> {
    /// Looks up a station in its home bucket, where nearly all entries are. Selects the slot without a branch,
    /// which would be unpredictable.
    #[inline(always)]
    pub(in crate::switch) fn lookup_home(&self, station: Station, hash: u64) -> Option<&'a FdbEntry> {
        let line = &self.0[home_bucket(hash, self.0.len())].0;
        let at = (1..BUCKET_SLOTS).fold(0, |found, at| select_unpredictable(line[at].station == station, at, found));
        let entry = &line[at % BUCKET_SLOTS];
        (entry.station == station).then_some(entry)
    }
}

/// Home bucket of a hash, by its high half; there are fewer than 2^32 buckets.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // below `buckets`
const fn home_bucket(hash: u64, lines: usize) -> usize {
    (((hash >> 32) * lines as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::switch::NetworkId;
    use crate::wire::Mac;

    fn learned(number: u64) -> FdbEntry {
        FdbEntry {
            station: Station::new(NetworkId::new(0), Mac::from_bits(number)),
            port: PortId::new(1, 0),
            last_seen: 7,
        }
    }

    /// A weak hash: most stations share few buckets.
    fn poor_hash(number: u64, homes: u64) -> u64 {
        (number % homes) * (u64::MAX / homes)
    }

    fn all(buckets: &Buckets) -> Vec<usize> {
        let from = |at| buckets.next_taken(at, buckets.len());
        std::iter::successors(from(0), |&at| from(at + 1)).collect()
    }

    proptest! {
        /// Compared with a model: stations are added and removed, and buckets overflow into the following ones.
        #[test]
        fn stations_are_found_until_removed(
            least in 4usize..200, homes in 1u64..6, steps in vec((0u64..300, any::<bool>()), 1..600)
        ) {
            let mut buckets = Buckets::new(least);
            let mut model: HashMap<u64, usize> = HashMap::new();
            for (number, comes) in steps {
                let (hash, station) = (poor_hash(number, homes), learned(number).station);
                prop_assert_eq!(buckets.position(station, hash), model.get(&number).copied());
                prop_assert_eq!(buckets.lookup(station, hash).copied(), model.get(&number).map(|_| learned(number)));
                if let Some(at) = model.remove(&number) {
                    buckets.remove(hash, at);
                } else if comes && model.len() < buckets.len() {
                    model.insert(number, buckets.insert(hash, learned(number)));
                }
            }
            let mut taken: Vec<_> = model.values().copied().collect();
            taken.sort_unstable();
            prop_assert_eq!(all(&buckets), taken);
            for (number, at) in model {
                prop_assert_eq!(buckets.position(learned(number).station, poor_hash(number, homes)), Some(at));
                buckets.remove(poor_hash(number, homes), at);
            }
            prop_assert!(all(&buckets).is_empty());
            prop_assert!(buckets.overflow_count.iter().all(|&passed| passed == 0), "removed stations are not counted as overflowed");
        }
    }

    #[test]
    fn occupied_slots_are_found_within_the_range_only() {
        let mut buckets = Buckets::new(200);
        for number in 0..100 {
            assert_eq!(buckets.insert(0, learned(number)), number as usize);
        }
        let kept = [3, 63, 64, 70];
        (0..100).filter(|at| !kept.contains(at)).for_each(|at| buckets.remove(0, at));
        for (from, end) in (0..100).flat_map(|from| (from..=100).map(move |end| (from, end))) {
            assert_eq!(buckets.next_taken(from, end), kept.into_iter().find(|at| (from..end).contains(at)));
        }
    }

    /// More stations overflow past one bucket than its counter can count.
    #[test]
    fn a_saturated_bucket_loses_no_station() {
        let mut buckets = Buckets::new(1000);
        let slots: Vec<_> = (0..400).map(|number| buckets.insert(0, learned(number))).collect();
        assert_eq!(buckets.overflow_count[0], u8::MAX);
        // More than its counter can count, too.
        for number in (0..400).filter(|number| number % 8 != 0) {
            buckets.remove(0, slots[number as usize]);
        }
        for number in 0..400 {
            let at = slots[number as usize];
            assert_eq!(buckets.position(learned(number).station, 0), (number % 8 == 0).then_some(at), "{number}");
        }
        assert_eq!(buckets.position(learned(999).station, 0), None);
    }

    /// With a good hash, nearly all stations are in their own bucket of a full table.
    #[test]
    fn nearly_all_stations_are_in_their_own_bucket() {
        let (mut buckets, hash_key) = (Buckets::new(18_600), crate::switch::HashKey::new([3; 16]));
        let stations: Vec<_> = (0..10_000).map(learned).collect();
        for station in &stations {
            buckets.insert(hash_key.hash(station.station), *station);
        }
        let own = |l: &&FdbEntry| buckets.buckets().lookup_home(l.station, hash_key.hash(l.station)).is_some();
        assert!(stations.iter().filter(own).count() > 9500);
    }
}
