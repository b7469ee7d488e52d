//! The table of learned stations, one per worker: which port a station was last seen behind.
//!
//! # What makes it less simple than a hash map
//!
//! * **It has a fixed size**, made once; nothing on the way of a frame allocates.
//! * **Addresses are chosen by guests.** They are filed under a keyed hash, and each port has a
//!   quota: at its quota a port displaces its own station that was silent longest. Where the table
//!   or the network is full, a port may likewise displace only a station of its own; one that has
//!   none goes unlearned, and its traffic floods. So a flood of addresses hurts only its sender.
//! * **Stations age.** A station that was silent for the network's ageing time is not found any
//!   more, whether or not [`Fdb::tidy`] has come round to removing it.
//! * **Most visits only read.** When a station was last heard is kept in seconds, so that a busy
//!   one is written to once a second.
//! * **A large table is cold.** [`Fdb::prefetch_index`] and [`Fdb::prefetch_entry`] fetch what a whole
//!   burst will need, before the first frame of it is judged.
//!
//! # How it is laid out
//!
//! Entries stand close together, in the order in which they were first needed, and never move; an
//! index of four times as many words leads to them (linear probing, removal by shifting back; at a
//! quarter full, most searches end where they begin). A word of the index holds the entry's number
//! and some bits of the hash, so that a probe seldom visits a wrong entry. The entries of a port
//! form a list from the oldest to the newest, linked in an array of its own to keep the part that
//! is read small. 40 bytes a station in all.

mod lists;
mod stations;
#[cfg(test)]
mod tests;

use self::lists::Lists;
pub(super) use self::stations::Stations;
use self::stations::tag;
use super::pins::place;
use super::{MOST_NETWORKS, PortId, Secret, Station};
use crate::frame::prefetch;
use crate::sys::memory::prefer_huge_pages;

/// How many stations may be learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// On the network together.
    pub network: u32,
    /// Behind each of its ports.
    pub port: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { network: 65536, port: 8192 }
    }
}

/// What seeing a station came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It was known here, and nothing had to be written, or only its age.
    Known,
    /// It was known here, and it is time to tell other workers again.
    Retell,
    /// It is new.
    New,
    /// It was behind another port until now.
    Moved {
        /// That port.
        from: PortId,
    },
    /// It is behind another port, and may not move.
    Stays,
    /// There is no room for it that this port may take.
    Refused,
}

/// A station as it was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    /// The station.
    pub station: Station,
    /// The port behind which it was seen.
    pub port: PortId,
    /// When, in seconds as [`Moment::secs`](crate::time::Moment::secs) counts.
    pub seen: u32,
}

/// The table of learned stations.
#[derive(Debug)]
pub struct Fdb {
    secret: Secret,
    /// Zero: nothing. Else bits of the hash, and the entry's number plus one.
    index: Vec<u32>,
    entries: Vec<Learned>,
    /// By number, as in `entries`.
    lists: Lists,
    capacity: usize,
    len: usize,
    networks: Vec<u32>,
    /// Where the next tidying goes on.
    broom: usize,
    refused: u64,
}

impl Fdb {
    /// An empty table for `capacity` stations.
    pub fn new(capacity: u32, secret: Secret) -> Fdb {
        let capacity = capacity.clamp(1, 1 << 23) as usize;
        let size = (capacity * 4).next_power_of_two();
        let mut index = vec![0; size];
        let mut entries = Vec::with_capacity(capacity);
        prefer_huge_pages(&mut index);
        prefer_huge_pages(&mut entries);
        Fdb {
            secret,
            index,
            entries,
            lists: Lists::new(capacity),
            capacity,
            len: 0,
            networks: vec![0; MOST_NETWORKS],
            broom: 0,
            refused: 0,
        }
    }

    /// How many stations are in it, those included that have aged and not been removed yet.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many stations it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many times a station went unlearned because its port could not make room for it.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Bytes that its tables may take.
    pub fn bytes(&self) -> usize {
        self.index.len() * size_of::<u32>() + self.capacity * (size_of::<Learned>() + Lists::BYTES)
    }

    /// The hash under which a station is filed.
    #[inline]
    pub fn hash(&self, station: Station) -> u64 {
        self.secret.hash(station)
    }

    /// Starts to fetch the place in the index where this hash is looked for.
    #[inline]
    pub fn prefetch_index(&self, hash: u64) {
        prefetch(&self.index[place(hash, self.index.len())]);
    }

    /// Starts to fetch the entry that the index names first for this hash.
    #[inline]
    pub fn prefetch_entry(&self, hash: u64) {
        let word = self.index[place(hash, self.index.len())];
        if let Some(entry) = self.entries.get(((word & self.number()) as usize).wrapping_sub(1)) {
            prefetch(entry);
        }
    }

    /// The port behind which a station was seen, if that was not before `oldest`, in seconds.
    #[inline(always)]
    pub fn find(&self, station: Station, hash: u64, oldest: u32) -> Option<PortId> {
        self.stations().find(station, hash, oldest)
    }

    /// Whether it is noted already that a station was seen behind `port` at `now`.
    #[inline(always)]
    pub fn is_current(&self, station: Station, hash: u64, port: PortId, now: u32) -> bool {
        self.stations().is_current(station, hash, port, now)
    }

    /// The table as it is looked up, for many to be looked up in it.
    #[inline(always)]
    pub(super) fn stations(&self) -> Stations<'_> {
        assert!(!self.index.is_empty(), "an index has a word at least");
        Stations { index: &self.index, entries: &self.entries, number: self.number() }
    }

    /// Notes that a station was seen behind `port`.
    pub fn see(&mut self, station: Station, hash: u64, port: PortId, now: u32, limits: Limits, ageing: u32) -> Seen {
        self.see_if((station, hash), port, now, limits, ageing, |_| true)
    }

    /// The same, where it is asked whether a station that is behind another port may move.
    #[inline]
    pub fn see_if(
        &mut self,
        (station, hash): (Station, u64),
        port: PortId,
        now: u32,
        limits: Limits,
        ageing: u32,
        may_move: impl FnOnce(&Learned) -> bool,
    ) -> Seen {
        let Some((_, id)) = self.search(station, hash) else {
            return self.learn(station, hash, port, now, limits);
        };
        let entry = &mut self.entries[id];
        if entry.port == port {
            if entry.seen >= now {
                return Seen::Known;
            }
            let quarter = (ageing / 4).max(1);
            let told = entry.seen / quarter == now / quarter;
            entry.seen = now;
            self.lists.unlink(port, id);
            self.lists.append(port, id);
            return if told { Seen::Known } else { Seen::Retell };
        }
        if !may_move(entry) {
            return Seen::Stays;
        }
        self.move_to(id, port, now, limits)
    }

    /// Whether fewer than `most` stations are known behind `port`. To find out, those that were not heard since
    /// `oldest` are forgotten.
    #[cold]
    pub fn make_room(&mut self, port: PortId, most: u32, oldest: u32) -> bool {
        while self.lists.len(port) >= most {
            match self.lists.oldest(port) {
                Some(silent) if self.entries[silent].seen < oldest => self.remove(silent),
                _ => return false,
            }
        }
        true
    }

    /// Forgets a station, if it is known behind `port`.
    #[cold]
    pub fn lose(&mut self, station: Station, hash: u64, port: PortId) {
        if let Some((_, id)) = self.search(station, hash)
            && self.entries[id].port == port
        {
            self.remove(id);
        }
    }

    /// The part of an index word that is the number; the rest is bits of the hash.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // at most 2^25
    fn number(&self) -> u32 {
        (self.index.len() - 1) as u32
    }

    #[inline(always)]
    fn tag(&self, hash: u64) -> u32 {
        tag(hash, self.number())
    }

    /// Where the index names a station, and the number of its entry.
    fn search(&self, station: Station, hash: u64) -> Option<(usize, usize)> {
        self.stations().search(station, hash)
    }

    #[cold]
    fn move_to(&mut self, id: usize, port: PortId, now: u32, limits: Limits) -> Seen {
        let from = self.entries[id].port;
        if self.lists.len(port) >= limits.port {
            // Its quota is full: the mover goes out with its old port's count, its own oldest with it.
            self.remove(self.lists.oldest(port).expect("a quota is one at least"));
        }
        self.lists.unlink(from, id);
        self.lists.append(port, id);
        self.entries[id].port = port;
        self.entries[id].seen = now;
        Seen::Moved { from }
    }

    #[cold]
    fn learn(&mut self, station: Station, hash: u64, port: PortId, now: u32, limits: Limits) -> Seen {
        let network = self.networks[station.network().index()];
        if self.lists.len(port) >= limits.port || network >= limits.network || self.len >= self.capacity {
            let Some(oldest) = self.lists.oldest(port) else {
                self.refused += 1;
                return Seen::Refused;
            };
            self.remove(oldest);
        }
        let entry = Learned { station, port, seen: now };
        let id = self.lists.take();
        match self.entries.get_mut(id) {
            Some(free) => *free = entry,
            None => self.entries.push(entry),
        }
        let mut at = place(hash, self.index.len());
        while self.index[at] != 0 {
            at = place(at as u64 + 1, self.index.len());
        }
        self.index[at] = self.tag(hash) | word(id + 1);
        self.lists.append(port, id);
        self.networks[station.network().index()] += 1;
        self.len += 1;
        Seen::New
    }

    /// Forgets entry `id`.
    fn remove(&mut self, id: usize) {
        let Learned { station, port, .. } = self.entries[id];
        let hash = self.secret.hash(station);
        let mask = self.index.len() - 1;
        let (mut hole, _) = self.search(station, hash).expect("an entry in use is in the index");
        // Close the hole: what was put off because the hole was taken comes back into it.
        let mut at = hole;
        loop {
            at = place(at as u64 + 1, self.index.len());
            let word = self.index[at];
            if word == 0 {
                break;
            }
            let home =
                place(self.secret.hash(self.entries[(word & self.number()) as usize - 1].station), self.index.len());
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.index[hole] = word;
                hole = at;
            }
        }
        self.index[hole] = 0;
        self.lists.unlink(port, id);
        self.networks[station.network().index()] -= 1;
        self.len -= 1;
        self.entries[id].station = Station::default();
        self.lists.give_back(id);
    }

    /// Looks at the next `budget` entries and forgets those for which `keep` does not speak.
    pub fn tidy(&mut self, budget: usize, mut keep: impl FnMut(&Learned) -> bool) {
        for _ in 0..budget.min(self.entries.len()) {
            if self.broom >= self.entries.len() {
                self.broom = 0;
            }
            let entry = self.entries[self.broom];
            if entry.station != Station::default() && !keep(&entry) {
                self.remove(self.broom);
            }
            self.broom += 1;
        }
    }

    /// Looks at `budget` entries from `cursor` on, and forgets those of which `forget` speaks. Where
    /// to go on; `None` at the end.
    pub fn forget(&mut self, cursor: usize, budget: usize, mut forget: impl FnMut(&Learned) -> bool) -> Option<usize> {
        let end = cursor.saturating_add(budget).min(self.entries.len());
        for at in cursor..end {
            let entry = self.entries[at];
            if entry.station != Station::default() && forget(&entry) {
                self.remove(at);
            }
        }
        (end < self.entries.len()).then_some(end)
    }

    /// Says how many stations of each network there are, by [`NetworkId::index`](super::NetworkId::index).
    pub fn census(&self, counts: &mut [u32]) {
        counts.iter_mut().zip(&self.networks).for_each(|(to, from)| *to = *from);
    }

    /// Looks at as many entries as `page` has capacity left, from the entry `cursor` on, and appends
    /// the stations in them; entries that are free make a page shorter, never dearer. Where to go on;
    /// `None` at the end.
    pub fn page(&self, cursor: usize, page: &mut Vec<Learned>) -> Option<usize> {
        let end = cursor.saturating_add(page.capacity() - page.len()).min(self.entries.len());
        let entries = self.entries.get(cursor..end).unwrap_or_default();
        page.extend(entries.iter().filter(|entry| entry.station != Station::default()));
        (end < self.entries.len()).then_some(end)
    }
}

#[allow(clippy::cast_possible_truncation)] // the capacity is at most 2^23
const fn word(id: usize) -> u32 {
    id as u32
}
