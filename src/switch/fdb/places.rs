//! Where stations lie: places in lines of four, each a line of the processor's cache, to which hashes lead.

use std::hint::select_unpredictable;

use super::Learned;
use crate::frame::prefetch;
use crate::switch::{PortId, Station};
use crate::sys::memory::prefer_huge_pages;

/// Places in a line.
const WIDE: usize = 4;

/// Places of which one word says which are taken.
const WORD: usize = 64;

/// A place where nobody lies.
const FREE: Learned = Learned { station: Station::NONE, port: PortId::NONE, seen: 0 };

#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([Learned; WIDE]);

/// The places. Who lies at one never moves to another.
#[derive(Debug)]
pub(super) struct Places {
    lines: Vec<Line>,
    /// Of each line: how many stations that would have lain there, had there been room, lie behind it. At the
    /// most that it can say it stays, which only makes searches longer.
    passed: Vec<u8>,
    /// A bit for each place.
    taken: Vec<u64>,
}

impl Places {
    /// Bytes of a line.
    pub(super) const LINE: usize = size_of::<Line>();

    /// So many free places at least.
    pub(super) fn new(least: usize) -> Places {
        let lines = least.div_ceil(WIDE);
        let mut places = Places {
            lines: Vec::with_capacity(lines),
            passed: vec![0; lines],
            taken: vec![0; (lines * WIDE).div_ceil(WORD)],
        };
        prefer_huge_pages(&mut places.lines);
        places.lines.resize(lines, Line([FREE; WIDE]));
        places
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.lines.len() * WIDE
    }

    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.passed) + size_of_val(&*self.taken)
    }

    /// Who lies at a place that is taken.
    pub(super) fn get(&self, at: usize) -> &Learned {
        &self.lines[at / WIDE].0[at % WIDE]
    }

    /// The same, to be changed: port and time, and never the station.
    pub(super) fn get_mut(&mut self, at: usize) -> &mut Learned {
        &mut self.lines[at / WIDE].0[at % WIDE]
    }

    /// Starts to fetch the line to which a hash leads.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch(&self.lines[home(hash, self.lines.len())]);
    }

    /// Starts to fetch what is looked at when that line does not tell.
    #[inline]
    pub(super) fn prefetch_behind(&self, hash: u64) {
        let home = home(hash, self.lines.len());
        prefetch(&self.passed[home]);
        prefetch(&self.lines[self.behind(home)]);
    }

    /// The lines, for many stations to be looked up in them.
    #[inline(always)]
    pub(super) fn lines(&self) -> Lines<'_> {
        Lines(&self.lines)
    }

    /// A station as it was learned, if it was.
    #[inline(always)]
    pub(super) fn lookup(&self, station: Station, hash: u64) -> Option<&Learned> {
        self.lines().glance(station, hash).or_else(|| self.search(station, hash).map(|at| self.get(at)))
    }

    /// Where a station lies, which is not [`Station::NONE`].
    #[inline(never)]
    pub(super) fn search(&self, station: Station, hash: u64) -> Option<usize> {
        let mut line = home(hash, self.lines.len());
        for _ in 0..self.lines.len() {
            if let Some(place) = self.lines[line].0.iter().position(|learned| learned.station == station) {
                return Some(line * WIDE + place);
            }
            if self.passed[line] == 0 {
                return None;
            }
            line = self.behind(line);
        }
        None
    }

    /// Lays down a station that lies nowhere yet. There must be a free place.
    pub(super) fn put(&mut self, hash: u64, learned: Learned) -> usize {
        let mut line = home(hash, self.lines.len());
        loop {
            if let Some(at) = self.room_in(line) {
                self.taken[at / WORD] |= 1 << (at % WORD);
                *self.get_mut(at) = learned;
                return at;
            }
            self.passed[line] = self.passed[line].saturating_add(1);
            line = self.behind(line);
        }
    }

    /// Frees a place at which a station with this hash lies.
    pub(super) fn free(&mut self, hash: u64, at: usize) {
        *self.get_mut(at) = FREE;
        self.taken[at / WORD] &= !(1 << (at % WORD));
        let mut line = home(hash, self.lines.len());
        while line != at / WIDE {
            if self.passed[line] < u8::MAX {
                self.passed[line] -= 1;
            }
            line = self.behind(line);
        }
    }

    /// Lays down a station in the line to which its hash leads, where [`next_taken`](Places::next_taken) does not find
    /// it. Whether there was room.
    pub(super) fn put_apart(&mut self, hash: u64, learned: Learned) -> bool {
        let room = self.room_in(home(hash, self.lines.len()));
        room.map(|at| *self.get_mut(at) = learned).is_some()
    }

    /// Frees the place of one that has been laid down so.
    pub(super) fn free_apart(&mut self, at: usize) {
        *self.get_mut(at) = FREE;
    }

    /// A free place in a line.
    fn room_in(&self, line: usize) -> Option<usize> {
        let free = |learned: &Learned| learned.station == Station::NONE;
        self.lines[line].0.iter().position(free).map(|place| line * WIDE + place)
    }

    /// The first place that is taken, from `from` on and before `end`.
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

    /// The line that is looked at after this one.
    fn behind(&self, line: usize) -> usize {
        if line + 1 < self.lines.len() { line + 1 } else { 0 }
    }
}

#[cfg(test)]
impl Places {
    /// Every place that holds a station, with whether [`next_taken`](Places::next_taken) finds it. Panics where a
    /// search does not lead there, or a line does not count right who passed it.
    pub(super) fn check(&self, hash: impl Fn(Station) -> u64) -> Vec<(usize, Learned, bool)> {
        let (mut all, mut passed) = (Vec::new(), vec![0u32; self.lines.len()]);
        for at in 0..self.len() {
            let (learned, is_taken) = (*self.get(at), self.taken[at / WORD] >> (at % WORD) & 1 != 0);
            if learned.station == Station::NONE {
                assert!(!is_taken, "place {at} is free");
                continue;
            }
            let hash = hash(learned.station);
            assert_eq!(self.search(learned.station, hash), Some(at), "{:?} is found where it is", learned.station);
            let mut line = home(hash, self.lines.len());
            assert!(is_taken || line == at / WIDE, "what is pinned lies in its own line");
            while line != at / WIDE {
                passed[line] += 1;
                line = self.behind(line);
            }
            all.push((at, learned, is_taken));
        }
        let counted = self.passed.iter().map(|&passed| u32::from(passed));
        assert!(counted.eq(passed), "who passed a line is counted there");
        all
    }
}

/// The lines alone.
#[derive(Clone, Copy)]
pub(in crate::switch) struct Lines<'a>(&'a [Line]);

impl<'a> Lines<'a> {
    /// A station as it was learned, if it lies in its own line, as nearly all do. At which place is found out without
    /// a branch, as no processor could foresee it.
    #[inline(always)]
    pub(in crate::switch) fn glance(&self, station: Station, hash: u64) -> Option<&'a Learned> {
        let line = &self.0[home(hash, self.0.len())].0;
        let at = (1..WIDE).fold(0, |found, at| select_unpredictable(line[at].station == station, at, found));
        let learned = &line[at % WIDE];
        (learned.station == station).then_some(learned)
    }
}

/// The line to which a hash leads, of so many, which are fewer than 2^32: by its high half.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // below `lines`
const fn home(hash: u64, lines: usize) -> usize {
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

    fn learned(number: u64) -> Learned {
        Learned { station: Station::new(NetworkId::new(0), Mac::from_bits(number)), port: PortId::new(1, 0), seen: 7 }
    }

    /// A hash of which little is left: most stations meet in few lines.
    fn poor_hash(number: u64, homes: u64) -> u64 {
        (number % homes) * (u64::MAX / homes)
    }

    fn all(places: &Places) -> Vec<usize> {
        let from = |at| places.next_taken(at, places.len());
        std::iter::successors(from(0), |&at| from(at + 1)).collect()
    }

    proptest! {
        /// Beside a model: stations come and go, and lines overflow into those behind them.
        #[test]
        fn who_was_put_is_found_until_freed(
            least in 4usize..200, homes in 1u64..6, steps in vec((0u64..300, any::<bool>()), 1..600)
        ) {
            let mut places = Places::new(least);
            let mut model: HashMap<u64, usize> = HashMap::new();
            for (number, comes) in steps {
                let (hash, station) = (poor_hash(number, homes), learned(number).station);
                prop_assert_eq!(places.search(station, hash), model.get(&number).copied());
                prop_assert_eq!(places.lookup(station, hash).copied(), model.get(&number).map(|_| learned(number)));
                if let Some(at) = model.remove(&number) {
                    places.free(hash, at);
                } else if comes && model.len() < places.len() {
                    model.insert(number, places.put(hash, learned(number)));
                }
            }
            let mut taken: Vec<_> = model.values().copied().collect();
            taken.sort_unstable();
            prop_assert_eq!(all(&places), taken);
            for (number, at) in model {
                prop_assert_eq!(places.search(learned(number).station, poor_hash(number, homes)), Some(at));
                places.free(poor_hash(number, homes), at);
            }
            prop_assert!(all(&places).is_empty());
            prop_assert!(places.passed.iter().all(|&passed| passed == 0), "who has gone is passed by by nobody");
        }
    }

    /// More stations pass one line by than it can count.
    #[test]
    fn a_line_that_counted_to_its_end_loses_nobody() {
        let mut places = Places::new(1000);
        let ats: Vec<_> = (0..400).map(|number| places.put(0, learned(number))).collect();
        assert_eq!(places.passed[0], u8::MAX);
        for number in (0..400).step_by(2) {
            places.free(0, ats[number as usize]);
        }
        for number in 0..400 {
            let at = ats[number as usize];
            assert_eq!(places.search(learned(number).station, 0), (number % 2 == 1).then_some(at), "{number}");
        }
        assert_eq!(places.search(learned(999).station, 0), None);
    }

    /// However good the hash: so many lie in their own line of a table that is as full as one becomes.
    #[test]
    fn nearly_all_lie_in_their_own_line() {
        let (mut places, secret) = (Places::new(18_600), crate::switch::Secret::new([3; 16]));
        let stations: Vec<_> = (0..10_000).map(learned).collect();
        for station in &stations {
            places.put(secret.hash(station.station), *station);
        }
        let own = |l: &&Learned| places.lines().glance(l.station, secret.hash(l.station)).is_some();
        assert!(stations.iter().filter(own).count() > 9500);
    }
}
