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

use super::pins::place;
use super::{MOST_NETWORKS, MOST_PORTS, PortId, Secret, Station};
use crate::frame::prefetch;
use crate::sys::memory::prefer_huge_pages;

/// "No entry", in a list.
const NIL: u32 = u32::MAX;

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

#[derive(Debug, Clone, Copy)]
struct Links {
    older: u32,
    newer: u32,
}

/// The stations of one port, from the one that was silent longest.
#[derive(Debug, Clone, Copy)]
struct List {
    oldest: u32,
    newest: u32,
    len: u32,
}

const EMPTY: List = List { oldest: NIL, newest: NIL, len: 0 };

/// The table of learned stations.
#[derive(Debug)]
pub struct Fdb {
    secret: Secret,
    /// Zero: nothing. Else bits of the hash, and the entry's number plus one.
    index: Vec<u32>,
    entries: Vec<Learned>,
    links: Vec<Links>,
    capacity: usize,
    /// Entries that were used and are free again, linked by `newer`.
    free: u32,
    len: usize,
    ports: Vec<List>,
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
        let mut links = Vec::with_capacity(capacity);
        prefer_huge_pages(&mut index);
        prefer_huge_pages(&mut entries);
        prefer_huge_pages(&mut links);
        Fdb {
            secret,
            index,
            entries,
            links,
            capacity,
            free: NIL,
            len: 0,
            ports: vec![EMPTY; MOST_PORTS],
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
        self.index.len() * size_of::<u32>() + self.capacity * (size_of::<Learned>() + size_of::<Links>())
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
        let entry = self.lookup(station, hash)?;
        (entry.seen >= oldest).then_some(entry.port)
    }

    /// Whether it is noted already that a station was seen behind `port` at `now`.
    #[inline(always)]
    pub fn is_current(&self, station: Station, hash: u64, port: PortId, now: u32) -> bool {
        self.lookup(station, hash).is_some_and(|entry| entry.port == port && entry.seen >= now)
    }

    /// Notes that a station was seen behind `port`.
    pub fn see(&mut self, station: Station, hash: u64, port: PortId, now: u32, limits: Limits, ageing: u32) -> Seen {
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
            self.unlink(port, id);
            self.append(port, id);
            return if told { Seen::Known } else { Seen::Retell };
        }
        self.move_to(id, port, now, limits)
    }

    /// Whether fewer than `most` stations are known behind `port`. To find out, those that were not heard since
    /// `oldest` are forgotten.
    #[cold]
    pub fn make_room(&mut self, port: PortId, most: u32, oldest: u32) -> bool {
        while self.ports[port.index()].len >= most {
            let silent = self.ports[port.index()].oldest;
            match self.entries.get(silent as usize) {
                Some(entry) if entry.seen < oldest => self.remove(silent as usize),
                _ => return false,
            }
        }
        true
    }

    /// The part of an index word that is the number; the rest is bits of the hash.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // at most 2^25
    fn number(&self) -> u32 {
        (self.index.len() - 1) as u32
    }

    #[inline(always)]
    fn tag(&self, hash: u64) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // the high half
        let high = (hash >> 32) as u32;
        high & !self.number()
    }

    /// A station's entry. Nearly always it is named in one of the two words with which a search
    /// begins; which one is found out without a branch, as no processor could foresee it.
    #[inline(always)]
    fn lookup(&self, station: Station, hash: u64) -> Option<&Learned> {
        let at = place(hash, self.index.len());
        let elsewhere = (self.index[at] ^ self.tag(hash)) & !self.number() != 0;
        let word = self.index[place(at as u64 + u64::from(elsewhere), self.index.len())];
        match self.entries.get(((word & self.number()) as usize).wrapping_sub(1)) {
            Some(entry) if entry.station == station => Some(entry),
            _ => self.search(station, hash).map(|(_, id)| &self.entries[id]),
        }
    }

    /// Where the index names a station, and the number of its entry.
    #[inline(never)]
    fn search(&self, station: Station, hash: u64) -> Option<(usize, usize)> {
        let tag = self.tag(hash);
        let mut at = place(hash, self.index.len());
        loop {
            let word = self.index[at];
            if word == 0 {
                return None;
            }
            if word & !self.number() == tag {
                let id = (word & self.number()) as usize - 1;
                if self.entries[id].station == station {
                    return Some((at, id));
                }
            }
            at = place(at as u64 + 1, self.index.len());
        }
    }

    #[cold]
    fn move_to(&mut self, id: usize, port: PortId, now: u32, limits: Limits) -> Seen {
        let from = self.entries[id].port;
        if self.ports[port.index()].len >= limits.port {
            // Its quota is full: the mover goes out with its old port's count, its own oldest with it.
            self.remove(self.ports[port.index()].oldest as usize);
        }
        self.unlink(from, id);
        self.append(port, id);
        self.entries[id].port = port;
        self.entries[id].seen = now;
        Seen::Moved { from }
    }

    #[cold]
    fn learn(&mut self, station: Station, hash: u64, port: PortId, now: u32, limits: Limits) -> Seen {
        let own = self.ports[port.index()];
        let network = self.networks[station.network().index()];
        if own.len >= limits.port || network >= limits.network || self.len >= self.capacity {
            if own.len == 0 {
                self.refused += 1;
                return Seen::Refused;
            }
            self.remove(own.oldest as usize);
        }
        let entry = Learned { station, port, seen: now };
        let id = if self.free == NIL {
            self.entries.push(entry);
            self.links.push(Links { older: NIL, newer: NIL });
            self.entries.len() - 1
        } else {
            let id = self.free as usize;
            self.free = self.links[id].newer;
            self.entries[id] = entry;
            id
        };
        let mut at = place(hash, self.index.len());
        while self.index[at] != 0 {
            at = place(at as u64 + 1, self.index.len());
        }
        self.index[at] = self.tag(hash) | word(id + 1);
        self.append(port, id);
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
        self.unlink(port, id);
        self.networks[station.network().index()] -= 1;
        self.len -= 1;
        self.entries[id].station = Station::default();
        self.links[id].newer = self.free;
        self.free = word(id);
    }

    /// Takes entry `id` out of the list of `port`.
    fn unlink(&mut self, port: PortId, id: usize) {
        let Links { older, newer } = self.links[id];
        let list = &mut self.ports[port.index()];
        list.len -= 1;
        match older {
            NIL => list.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        match newer {
            NIL => list.newest = older,
            newer => self.links[newer as usize].older = older,
        }
    }

    /// Puts entry `id` at the new end of the list of `port`.
    fn append(&mut self, port: PortId, id: usize) {
        let list = &mut self.ports[port.index()];
        let older = std::mem::replace(&mut list.newest, word(id));
        list.len += 1;
        self.links[id] = Links { older, newer: NIL };
        match older {
            NIL => list.oldest = word(id),
            older => self.links[older as usize].newer = word(id),
        }
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

#[cfg(test)]
mod tests {
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
        Fdb::new(capacity, Secret::new([42; 16]))
    }

    fn see(fdb: &mut Fdb, s: Station, port: PortId, now: u32, limits: Limits) -> Seen {
        fdb.see(s, fdb.hash(s), port, now, limits, AGEING)
    }

    fn find(fdb: &Fdb, s: Station, now: u32) -> Option<PortId> {
        fdb.find(s, fdb.hash(s), (now + 1).saturating_sub(AGEING))
    }

    /// The same table, written to be obviously right.
    #[derive(Default)]
    struct Model {
        /// In the order in which they were last refreshed.
        stations: Vec<Learned>,
        capacity: usize,
    }

    impl Model {
        fn count(&self, f: impl Fn(&Learned) -> bool) -> u32 {
            self.stations.iter().filter(|l| f(l)).count() as u32
        }

        fn drop_oldest_of(&mut self, port: PortId) {
            let at = self.stations.iter().position(|l| l.port.index() == port.index()).unwrap();
            self.stations.remove(at);
        }

        fn see(&mut self, s: Station, port: PortId, now: u32, limits: Limits) -> Seen {
            let new = Learned { station: s, port, seen: now };
            let full = |m: &Model| m.count(|l| l.port.index() == port.index()) >= limits.port;
            if let Some(at) = self.stations.iter().position(|l| l.station == s) {
                let old = self.stations[at];
                if old.port == port {
                    if old.seen >= now {
                        return Seen::Known;
                    }
                    self.stations.remove(at);
                    self.stations.push(new);
                    return if old.seen / (AGEING / 4) == now / (AGEING / 4) { Seen::Known } else { Seen::Retell };
                }
                if full(self) {
                    self.drop_oldest_of(port);
                }
                self.stations.retain(|l| l.station != s);
                self.stations.push(new);
                return Seen::Moved { from: old.port };
            }
            let network = self.count(|l| l.station.network() == s.network());
            if full(self) || network >= limits.network || self.stations.len() >= self.capacity {
                if self.count(|l| l.port.index() == port.index()) == 0 {
                    return Seen::Refused;
                }
                self.drop_oldest_of(port);
            }
            self.stations.push(new);
            Seen::New
        }

        fn find(&self, s: Station, now: u32) -> Option<PortId> {
            self.stations.iter().find(|l| l.station == s && now - l.seen < AGEING).map(|l| l.port)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn does_what_the_model_does(
            capacity in 4u32..40, quota in 1u32..12, per_network in 1u32..30,
            steps in proptest::collection::vec((0u64..24, 0u16..3, 0u16..4, 0u32..40, 0u8..12), 1..400)
        ) {
            let mut table = fdb(capacity);
            let mut model = Model { capacity: capacity as usize, ..Model::default() };
            let limits = Limits { network: per_network, port: quota };
            let mut now = 1000;
            for (mac, network, port, later, what) in steps {
                now += later;
                // a port is on one network, as admission has it
                let (s, port) = (station(network, mac + 1), PortId::new(network * 4 + port, 0));
                match what {
                    0 => {
                        table.tidy(3, |l| now - l.seen < AGEING);
                        // the model forgets what the table just did, and nothing that is still valid
                        let mut page = Vec::with_capacity(64);
                        table.page(0, &mut page);
                        let left: HashMap<_, _> = page.iter().map(|l| (l.station, l)).collect();
                        model.stations.retain(|l| now - l.seen < AGEING || left.contains_key(&l.station));
                    }
                    1..6 => prop_assert_eq!(find(&table, s, now), model.find(s, now)),
                    _ => prop_assert_eq!(see(&mut table, s, port, now, limits), model.see(s, port, now, limits)),
                }
                prop_assert_eq!(table.len(), model.stations.len());
            }
            let mut page = Vec::with_capacity(64);
            prop_assert_eq!(table.page(0, &mut page), None);
            let key = |l: &Learned| (l.station, l.port.index(), l.seen);
            let (mut a, mut b): (Vec<_>, Vec<_>) = (page.iter().map(key).collect(), model.stations.iter().map(key).collect());
            a.sort_unstable();
            b.sort_unstable();
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn a_flood_of_addresses_hurts_only_its_sender() {
        let mut table = fdb(4096);
        let limits = Limits { network: 4096, port: 1000 };
        let (victim, attacker) = (PortId::new(1, 0), PortId::new(2, 0));
        for mac in 1..=500 {
            assert_eq!(see(&mut table, station(0, mac), victim, 1, limits), Seen::New);
        }
        for mac in 0..20_000 {
            assert_eq!(see(&mut table, station(0, 0x0200_0000_0000 + mac), attacker, 2, limits), Seen::New);
        }
        assert!((1..=500).all(|mac| find(&table, station(0, mac), 2) == Some(victim)));
        assert_eq!(table.len(), 1500);
        assert_eq!(find(&table, station(0, 0x0200_0000_0000 + 19_999), 2), Some(attacker), "its newest are kept");
    }

    #[test]
    fn a_full_table_refuses_only_those_who_own_nothing() {
        let mut table = fdb(8);
        let limits = Limits::default();
        for mac in 1..=8 {
            see(&mut table, station(0, mac), PortId::new(1, 0), 1, limits);
        }
        assert_eq!(see(&mut table, station(0, 99), PortId::new(2, 0), 1, limits), Seen::Refused);
        assert_eq!(table.refused(), 1);
        assert_eq!(see(&mut table, station(0, 99), PortId::new(1, 0), 1, limits), Seen::New);
        assert_eq!(find(&table, station(0, 1), 1), None, "its own oldest made room");
    }

    #[test]
    fn silence_is_forgotten_and_traffic_is_not() {
        let mut table = fdb(8);
        let port = PortId::new(1, 0);
        see(&mut table, station(0, 1), port, 100, Limits::default());
        see(&mut table, station(0, 2), port, 100, Limits::default());
        assert_eq!(see(&mut table, station(0, 2), port, 350, Limits::default()), Seen::Retell);
        assert_eq!(find(&table, station(0, 1), 399), Some(port));
        assert_eq!(find(&table, station(0, 1), 400), None);
        assert_eq!(find(&table, station(0, 2), 400), Some(port));
        table.tidy(8, |l| 400 - l.seen < AGEING);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_million_stations_fit_in_forty_mebibytes() {
        assert!(fdb(1_000_000).bytes() <= 40 << 20);
    }

    #[test]
    fn pages_meet_every_station_once() {
        let mut table = fdb(1000);
        for mac in 1..=1000 {
            see(&mut table, station(1, mac), PortId::new(0, 0), 1, Limits { network: 1000, port: 1000 });
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
}
