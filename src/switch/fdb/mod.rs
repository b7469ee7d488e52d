//! The table of learned stations, one per worker: which port a station was last seen behind.
//!
//! # What makes it less simple than a hash map
//!
//! * **It has a fixed size**, made once; nothing on the way of a frame allocates.
//! * **Addresses are chosen by guests.** They are filed under a keyed hash, and each port has a
//!   quota: at its quota a port displaces its own station that was silent longest. Where the table
//!   or the network is full, a port may likewise displace only a station of its own; one that has
//!   none goes unlearned, and its traffic floods. So a flood of addresses hurts only its sender.
//! * **Ports close.** The stations of a closed port are *dead* at once: they are not found, count against no limit, and
//!   make room before any other station does. [`Fdb::close`] costs the same for one station and for a million.
//! * **Stations age.** A station that was silent for the network's ageing time is not found any
//!   more, whether or not [`Fdb::age_step`] has come round to removing it.
//! * **Most visits only read.** When a station was last heard is kept in seconds, so that a busy
//!   one is written to once a second.
//! * **A large table is cold.** [`Fdb::prefetch`] fetches what a frame will need, for a whole burst before the
//!   first of its frames is judged.
//!
//! # How it is laid out
//!
//! Stations lie in places, four in a line of the processor's cache, and a hash leads to a line. Whoever
//! finds it full lies in the next one that is not. At 186 places for a hundred stations, 96 in 100 lie in their
//! own line even when the table is full, and so cost one visit to memory. A line counts who passed it by,
//! so that a search knows where to stop, and nobody ever moves. The stations of a port form a list from the
//! oldest to the newest, linked by place in an array of its own to keep the part that is read small.
//! 41.7 bytes a station in all, where the table is no small one. Pinned stations lie among them, as far as there is
//! room, so that for most frames one table says all.

mod buckets;
mod lru;
#[cfg(test)]
mod model;
mod pinned;
#[cfg(test)]
mod tests;

pub(super) use self::buckets::BucketSlice;
use self::buckets::Buckets;
use self::lru::LruLists;
pub(super) use self::pinned::PERMANENT;
use super::{HashKey, MAX_NETWORKS, PortId, Station};

/// Places for a hundred stations. With fewer, too many lie in the lines of others; with more, a million stations would
/// not fit in 40 MiB.
const FOR_HUNDRED: usize = 186;

/// Places up to which a table has four for each station: where memory is not the matter, next to nobody shares a line.
const SMALL: usize = 1 << 16;

/// Places that are swept in one go, at most, where most are free: what one line of the processor's cache says of them.
const AGE_WINDOW: usize = 512;

/// Places that are looked at in one go, at most, where most are free.
const LOOK: usize = 1 << 14;

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
pub enum LearnResult {
    /// It was known here, and nothing had to be written, or only its age.
    Known,
    /// It was known here, and it is time to tell other workers again.
    Refresh,
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
pub struct FdbEntry {
    /// The station.
    pub station: Station,
    /// The port behind which it was seen.
    pub port: PortId,
    /// When, in seconds as [`MonoTime::secs`](crate::time::MonoTime::secs) counts.
    pub last_seen: u32,
}

impl FdbEntry {
    /// The port, if the station was seen behind it not before `oldest`, in seconds.
    #[inline(always)]
    pub(super) fn port_since(&self, oldest: u32) -> Option<PortId> {
        (self.last_seen >= oldest).then_some(self.port)
    }

    /// Whether it says already that the station was seen behind `port` at `now`. Of one that is pinned there, it always
    /// does.
    #[inline(always)]
    pub(super) fn is_current(&self, port: PortId, now: u32) -> bool {
        self.port == port && self.last_seen >= now
    }
}

/// The table of learned stations.
#[derive(Debug)]
pub struct Fdb {
    hash_key: HashKey,
    buckets: Buckets,
    lru: LruLists,
    capacity: usize,
    /// Stations whose port is open. Together with the dead ones, at most `capacity`.
    len: usize,
    /// Stations that lie among these because they are pinned.
    static_count: usize,
    /// By network: stations whose port is open.
    networks: Vec<u32>,
    /// Where the next tidying goes on.
    cursor: usize,
    refused: u64,
}

impl Fdb {
    /// An empty table for `capacity` stations.
    pub fn new(capacity: u32, hash_key: HashKey) -> Fdb {
        let capacity = capacity.clamp(1, 1 << 23) as usize;
        let buckets = Buckets::new((capacity * FOR_HUNDRED).div_ceil(100).max((capacity * 4).min(SMALL)));
        Fdb {
            hash_key,
            lru: LruLists::new(buckets.len()),
            buckets,
            capacity,
            len: 0,
            static_count: 0,
            networks: vec![0; MAX_NETWORKS],
            cursor: 0,
            refused: 0,
        }
    }

    /// How many stations are in it, those included that have aged and not been removed yet. Those of closed ports are
    /// not.
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

    /// Bytes of it that are in use at most, when frames are on their way.
    pub(super) fn bytes_in_use(&self) -> usize {
        (self.len + self.lru.dead() as usize + self.static_count) * Buckets::BUCKET_LEN
    }

    /// Bytes of its tables.
    pub fn bytes(&self) -> usize {
        self.buckets.bytes() + self.buckets.len() * LruLists::BYTES
    }

    /// The hash under which a station is filed.
    #[inline]
    pub fn hash(&self, station: Station) -> u64 {
        self.hash_key.hash(station)
    }

    /// Starts to fetch what will be asked about this hash.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.buckets.prefetch(hash);
    }

    /// The same, for what does not lie where most do.
    #[inline]
    pub(super) fn prefetch_behind(&self, hash: u64) {
        self.buckets.prefetch_overflow(hash);
    }

    /// The port behind which a station was seen, if that was not before `oldest`, in seconds.
    #[inline]
    pub fn find(&self, station: Station, hash: u64, oldest: u32) -> Option<PortId> {
        self.learned(station, hash)?.port_since(oldest)
    }

    /// Whether it is noted already that a station was seen behind `port` at `now`.
    #[inline]
    pub fn is_current(&self, station: Station, hash: u64, port: PortId, now: u32) -> bool {
        self.learned(station, hash).is_some_and(|entry| entry.is_current(port, now))
    }

    /// A station as it was learned, whether or not it has aged or its port is closed.
    #[inline(always)]
    pub(super) fn learned(&self, station: Station, hash: u64) -> Option<&FdbEntry> {
        self.buckets.lookup(station, hash).filter(|entry| !entry.is_static())
    }

    /// Where nearly all of the stations are, for many to be looked up in it.
    #[inline(always)]
    pub(super) fn lines(&self) -> BucketSlice<'_> {
        self.buckets.buckets()
    }

    /// Notes that a station was seen behind `port`.
    pub fn learn(
        &mut self,
        station: Station,
        hash: u64,
        port: PortId,
        now: u32,
        limits: Limits,
        ageing: u32,
    ) -> LearnResult {
        self.learn_if((station, hash), port, now, limits, ageing, |_| true)
    }

    /// The same, where it is asked whether a station that is behind another port may move.
    #[inline]
    pub fn learn_if(
        &mut self,
        (station, hash): (Station, u64),
        port: PortId,
        now: u32,
        limits: Limits,
        ageing: u32,
        may_move: impl FnOnce(&FdbEntry) -> bool,
    ) -> LearnResult {
        let Some(at) = self.buckets.position(station, hash) else {
            return self.insert(station, hash, port, now, limits);
        };
        let entry = self.buckets.get_mut(at);
        if entry.port == port || entry.is_static() {
            if entry.last_seen >= now {
                return LearnResult::Known;
            }
            if !self.lru.is_owner(port) {
                // The port was closed and is open again under the same name.
                return self.revive(at, station, hash, port, now, limits);
            }
            let quarter = (ageing / 4).max(1);
            let reported = entry.last_seen / quarter == now / quarter;
            entry.last_seen = now;
            self.lru.unlink(port, at);
            self.lru.append(port, at);
            return if reported { LearnResult::Known } else { LearnResult::Refresh };
        }
        if !may_move(entry) {
            return LearnResult::Stays;
        }
        self.move_to(at, station, hash, port, now, limits)
    }

    /// Whether fewer than `most` stations are known behind `port`. To find out, those that were not heard since
    /// `oldest` are forgotten.
    #[cold]
    pub fn evict_oldest(&mut self, port: PortId, most: u32, oldest: u32) -> bool {
        while self.lru.len(port) >= most {
            match self.lru.oldest(port) {
                Some(silent) if self.buckets.get(silent).last_seen < oldest => self.remove(silent),
                _ => return false,
            }
        }
        true
    }

    /// Forgets a station, if it is known behind `port`.
    #[cold]
    pub fn remove_from(&mut self, station: Station, hash: u64, port: PortId) {
        if let Some(at) = self.buckets.position(station, hash)
            && let entry = self.buckets.get(at)
            && entry.port == port
            && !entry.is_static()
        {
            self.remove(at);
        }
    }

    /// Declares the stations behind `port` dead.
    #[cold]
    pub fn close(&mut self, port: PortId) {
        if self.lru.is_owner(port) {
            self.retire(port.index());
        }
    }

    /// Declares the stations in the list of this port index dead.
    fn retire(&mut self, index: usize) {
        let newest = self.lru.newest(index);
        let retired = self.lru.retire(index);
        if let Some(newest) = newest {
            // The stations behind one port are all on its network.
            self.networks[self.buckets.get(newest).station.network().index()] -= retired;
        }
        self.len -= retired as usize;
    }

    /// Makes `port` the owner of the list of its index. The stations of an earlier owner are dead from now on.
    fn take_list(&mut self, port: PortId) {
        if self.lru.is_owner(port) {
            return;
        }
        self.retire(port.index());
        if !self.lru.is_newer(port) {
            // This generation was there before: what died under its name must not come to life with it.
            let mut next = self.lru.oldest_dead();
            while let Some(at) = next {
                next = self.lru.newer(at);
                if self.buckets.get(at).port == port {
                    self.remove(at);
                }
            }
        }
        self.lru.assign_owner(port);
    }

    #[cold]
    fn move_to(
        &mut self,
        at: usize,
        station: Station,
        hash: u64,
        port: PortId,
        now: u32,
        limits: Limits,
    ) -> LearnResult {
        self.take_list(port);
        let from = self.buckets.get(at).port;
        if !self.lru.is_owner(from) {
            return self.revive(at, station, hash, port, now, limits);
        }
        if self.lru.len(port) >= limits.port {
            // The mover is not in the list of `port` and cannot be evicted here. Its old port's count goes down.
            let Some(oldest) = self.lru.oldest(port) else {
                self.refused += 1;
                return LearnResult::Refused;
            };
            self.remove(oldest);
        }
        self.lru.unlink(from, at);
        self.lru.append(port, at);
        let entry = self.buckets.get_mut(at);
        (entry.port, entry.last_seen) = (port, now);
        LearnResult::Moved { from }
    }

    /// Learns a station that is dead. It counts from now on, and so needs room like a new one.
    #[cold]
    fn revive(
        &mut self,
        at: usize,
        station: Station,
        hash: u64,
        port: PortId,
        now: u32,
        limits: Limits,
    ) -> LearnResult {
        self.remove(at);
        self.insert(station, hash, port, now, limits)
    }

    #[cold]
    fn insert(&mut self, station: Station, hash: u64, port: PortId, now: u32, limits: Limits) -> LearnResult {
        self.take_list(port);
        let network = self.networks[station.network().index()];
        if self.lru.len(port) >= limits.port || network >= limits.network || self.len >= self.capacity {
            let Some(oldest) = self.lru.oldest(port) else {
                self.refused += 1;
                return LearnResult::Refused;
            };
            self.remove(oldest);
        } else if self.len + self.lru.dead() as usize >= self.capacity
            && let Some(dead) = self.lru.oldest_dead()
        {
            self.remove(dead);
        }
        let at = self.buckets.insert(hash, FdbEntry { station, port, last_seen: now });
        self.lru.append(port, at);
        self.networks[station.network().index()] += 1;
        self.len += 1;
        LearnResult::New
    }

    /// Forgets who lies at `at`.
    fn remove(&mut self, at: usize) {
        let FdbEntry { station, port, .. } = *self.buckets.get(at);
        if self.lru.is_owner(port) {
            self.networks[station.network().index()] -= 1;
            self.len -= 1;
        }
        self.buckets.remove(self.hash_key.hash(station), at);
        self.lru.unlink(port, at);
    }

    /// Looks at the next few stations, at most `budget`, and forgets those for which `keep` does not speak.
    pub fn age_step(&mut self, budget: usize, mut keep: impl FnMut(&FdbEntry) -> bool) {
        let end = ((self.cursor / AGE_WINDOW + 1) * AGE_WINDOW).min(self.buckets.len());
        for _ in 0..budget {
            let Some(at) = self.buckets.next_taken(self.cursor, end) else {
                self.cursor = end % self.buckets.len();
                return;
            };
            if !keep(self.buckets.get(at)) {
                self.remove(at);
            }
            self.cursor = at + 1;
        }
    }

    /// Looks at `budget` stations at most, from `cursor` on, and forgets those of which `flush` speaks. Where
    /// to go on; `None` at the end.
    pub fn flush(&mut self, cursor: usize, budget: usize, mut flush: impl FnMut(&FdbEntry) -> bool) -> Option<usize> {
        let (mut from, end) = (cursor, self.scan_end(cursor));
        for _ in 0..budget {
            let Some(at) = self.buckets.next_taken(from, end) else {
                return (end < self.buckets.len()).then_some(end);
            };
            if flush(self.buckets.get(at)) {
                self.remove(at);
            }
            from = at + 1;
        }
        Some(from)
    }

    /// Says how many stations of each network there are, by [`NetworkId::index`](super::NetworkId::index).
    pub fn count_by_network(&self, counts: &mut [u32]) {
        counts.iter_mut().zip(&self.networks).for_each(|(to, from)| *to = *from);
    }

    /// Appends stations to `page`, from `cursor` on and as many as it has capacity left. Where to go on; `None`
    /// at the end. Free places make a page shorter, never dearer.
    pub fn page(&self, cursor: usize, page: &mut Vec<FdbEntry>) -> Option<usize> {
        let (mut from, end) = (cursor, self.scan_end(cursor));
        while let Some(at) = self.buckets.next_taken(from, end) {
            if page.len() == page.capacity() {
                return Some(at);
            }
            page.push(*self.buckets.get(at));
            from = at + 1;
        }
        (end < self.buckets.len()).then_some(end)
    }

    /// Up to where one looks in one go who starts at `cursor`.
    fn scan_end(&self, cursor: usize) -> usize {
        cursor.saturating_add(LOOK).min(self.buckets.len())
    }
}

#[allow(clippy::cast_possible_truncation)] // of 1.86 * 2^23 at most
const fn word(at: usize) -> u32 {
    at as u32
}
