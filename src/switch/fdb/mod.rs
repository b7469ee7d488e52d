//! FDB of one worker: the port at which each station was last seen.
//!
//! * **Fixed size.** All memory is allocated at creation.
//! * **Guests choose addresses**, so the hash is keyed, and each port has a limit: at its limit, a port evicts its least
//!   recently seen station. If the table or the network is full, a port also evicts only its own stations; a port
//!   without any learns nothing, and frames to it flood. A flood of addresses thus harms its sender only.
//! * **A closed port's stations** are ignored at once: they are not found, count against no limit, and are replaced
//!   first. [`Fdb::close`] costs the same for one station and for a million.
//! * **Aged stations** are not found, whether or not [`Fdb::age_step`] has removed them.
//! * **Most accesses only read.** `last_seen` is in seconds, so that it is written at most once a second.
//! * **A large table is not in the cache.** [`Fdb::prefetch`] fetches the buckets of a whole burst before its first
//!   frame is decided.
//!
//! # Layout
//!
//! Entries are in slots, four per bucket of one cache line; a hash selects the home bucket. An entry that finds its
//! home bucket full goes to the next bucket with a free slot. At 186 slots per 100 stations, 96 % of the entries
//! are in their home bucket even when the table is full, and cost one memory access. A bucket counts the entries
//! that overflowed past it, so that a search knows where to stop; no entry ever moves. The entries of a port form
//! an LRU list, linked by slot in a separate array to keep the memory that lookups read small. 41.7 bytes per
//! station in all, small tables excepted. The table also holds copies of pinned stations where there is room, so
//! that one lookup decides most frames.

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
use super::{HashKey, Limits, MAX_NETWORKS, PortId, Station};

/// Slots per 100 stations. With fewer, too many entries overflow; with more, a million stations would exceed 40
/// MiB.
const FOR_HUNDRED: usize = 186;

/// Up to this many slots, a table has four slots per station: memory is no concern, and hardly any entry overflows.
const SMALL: usize = 1 << 16;

/// Maximum number of slots that ageing visits at once where most are free: those in one cache line of the bitmap.
const AGE_WINDOW: usize = 512;

/// Maximum number of slots that a scan visits at once where most are free.
const LOOK: usize = 1 << 14;

/// Result of learning a station.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LearnResult {
    /// Known at this port; at most its timestamp was written.
    Known,
    /// Known at this port, and due for a refresh at other workers.
    Refresh,
    /// New.
    New,
    /// Moved from another port.
    Moved {
        /// Previous port.
        from: PortId,
    },
    /// Known at another port, and refused to move.
    Stays,
    /// Not learned: this port cannot make room for it.
    Refused,
}

/// An FDB entry: a learned station.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// The station.
    pub station: Station,
    /// Port at which it was last seen.
    pub port: PortId,
    /// Time of that, in seconds of [`MonoTime::secs`](crate::time::MonoTime::secs).
    pub last_seen: u32,
}

impl FdbEntry {
    /// The port, if the station was seen there at `oldest` (in seconds) or later.
    #[inline(always)]
    pub(super) fn port_since(&self, oldest: u32) -> Option<PortId> {
        (self.last_seen >= oldest).then_some(self.port)
    }

    /// Whether the entry already has `port` and the time `now`. Always true of a copy pinned to `port`.
    #[inline(always)]
    pub(super) fn is_current(&self, port: PortId, now: u32) -> bool {
        self.port == port && self.last_seen >= now
    }
}

/// The FDB of one worker.
#[derive(Debug)]
pub struct Fdb {
    hash_key: HashKey,
    buckets: Buckets,
    lru: LruLists,
    capacity: usize,
    /// Entries whose port is open. With the dead entries, at most `capacity`.
    len: usize,
    /// Copies of pinned stations.
    static_count: usize,
    /// By network: entries whose port is open.
    networks: Vec<u32>,
    /// Slot at which ageing continues.
    cursor: usize,
    refused: u64,
}

impl Fdb {
    /// Creates an empty FDB for `capacity` stations.
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

    /// Number of entries, including aged entries not yet removed, excluding those of closed ports.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Maximum number of entries.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of times a station was not learned because its port could not make room.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Upper bound of the memory that lookups read, in bytes.
    pub(super) fn bytes_in_use(&self) -> usize {
        (self.len + self.lru.dead() as usize + self.static_count) * Buckets::BUCKET_LEN
    }

    /// Memory of the tables, in bytes.
    pub fn bytes(&self) -> usize {
        self.buckets.bytes() + self.buckets.len() * LruLists::BYTES
    }

    /// Hash of a station.
    #[inline]
    pub fn hash(&self, station: Station) -> u64 {
        self.hash_key.hash(station)
    }

    /// Prefetches the home bucket of a hash.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.buckets.prefetch(hash);
    }

    /// Prefetches what a lookup reads after the home bucket.
    #[inline]
    pub(super) fn prefetch_behind(&self, hash: u64) {
        self.buckets.prefetch_overflow(hash);
    }

    /// Prefetches the memory that adding a station needs.
    #[inline]
    pub fn prefetch_to_add(&self, hash: u64) {
        self.buckets.prefetch(hash);
        self.lru.prefetch(self.buckets.prefetch_count(hash));
    }

    /// Port of a station, if seen at `oldest` (in seconds) or later.
    #[inline]
    pub fn find(&self, station: Station, hash: u64, oldest: u32) -> Option<PortId> {
        self.learned(station, hash)?.port_since(oldest)
    }

    /// Whether the entry of a station already has `port` and the time `now`.
    #[inline]
    pub fn is_current(&self, station: Station, hash: u64, port: PortId, now: u32) -> bool {
        self.learned(station, hash).is_some_and(|entry| entry.is_current(port, now))
    }

    /// Entry of a station, even if aged or of a closed port.
    #[inline(always)]
    pub(super) fn learned(&self, station: Station, hash: u64) -> Option<&FdbEntry> {
        self.buckets.lookup(station, hash).filter(|entry| !entry.is_static())
    }

    /// A view of the buckets for a series of home-bucket lookups.
    #[inline(always)]
    pub(super) fn lines(&self) -> BucketSlice<'_> {
        self.buckets.buckets()
    }

    /// Learns that a station was seen at `port`.
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

    /// Like `learn`; asks a callback whether a station at another port may move.
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
                // The port was closed and reopened under the same id.
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

    /// Whether fewer than `most` stations are known at `port`. Removes entries not seen since `oldest` to find out.
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

    /// Removes the entry of a station, if it is at `port`.
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

    /// Marks the entries of `port` as dead.
    #[cold]
    pub fn close(&mut self, port: PortId) {
        if self.lru.is_owner(port) {
            self.retire(port.index());
        }
    }

    /// Marks the entries in the list of this port index as dead.
    fn retire(&mut self, index: usize) {
        let newest = self.lru.newest(index);
        let retired = self.lru.retire(index);
        if let Some(newest) = newest {
            // All entries of one port are on its network.
            self.networks[self.buckets.get(newest).station.network().index()] -= retired;
        }
        self.len -= retired as usize;
    }

    /// Makes `port` the owner of the list of its index. Marks the entries of an earlier owner as dead.
    fn take_list(&mut self, port: PortId) {
        if self.lru.is_owner(port) {
            return;
        }
        self.retire(port.index());
        if !self.lru.is_newer(port) {
            // This generation has owned the list before: its dead entries must not become valid again.
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
            // The moving entry is not in the list of `port` and cannot be evicted here. The count of its old port
            // decreases.
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

    /// Learns a station whose entry is dead. It counts again, and needs room like a new one.
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
        if !self.has_room(station, port, limits) {
            let Some(oldest) = self.lru.oldest(port) else {
                self.refused += 1;
                return LearnResult::Refused;
            };
            self.remove(oldest);
        }
        let at = self.add(hash, FdbEntry { station, port, last_seen: now });
        self.lru.append(port, at);
        LearnResult::New
    }

    /// Adds a station that was seen before all others of its port. Returns whether it was added: a known one keeps its
    /// entry, and without room no other is evicted.
    pub fn restore(&mut self, entry: FdbEntry, hash: u64, limits: Limits) -> bool {
        let FdbEntry { station, port, .. } = entry;
        if self.buckets.position(station, hash).is_some() {
            return false;
        }
        self.take_list(port);
        if !self.has_room(station, port, limits) {
            return false;
        }
        let at = self.add(hash, entry);
        self.lru.prepend(port, at);
        true
    }

    /// Whether a station may be added at `port` without evicting one.
    fn has_room(&self, station: Station, port: PortId, limits: Limits) -> bool {
        let network = self.networks[station.network().index()];
        self.lru.len(port) < limits.port && network < limits.network && self.len < self.capacity
    }

    /// Puts an entry into a free slot, which it gets from a dead one where the table is full. The caller links it.
    fn add(&mut self, hash: u64, entry: FdbEntry) -> usize {
        if self.len + self.lru.dead() as usize >= self.capacity
            && let Some(dead) = self.lru.oldest_dead()
        {
            self.remove(dead);
        }
        self.networks[entry.station.network().index()] += 1;
        self.len += 1;
        self.buckets.insert(hash, entry)
    }

    /// Removes the entry in slot `at`.
    fn remove(&mut self, at: usize) {
        let FdbEntry { station, port, .. } = *self.buckets.get(at);
        if self.lru.is_owner(port) {
            self.networks[station.network().index()] -= 1;
            self.len -= 1;
        }
        self.buckets.remove(self.hash_key.hash(station), at);
        self.lru.unlink(port, at);
    }

    /// Visits at most `budget` entries and removes those for which `keep` returns false.
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

    /// Visits at most `budget` entries from `cursor` on and removes those for which `flush` returns true. Returns
    /// where to continue; `None` at the end.
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

    /// Counts the entries of each network, by [`NetworkId::index`](super::NetworkId::index).
    pub fn count_by_network(&self, counts: &mut [u32]) {
        counts.iter_mut().zip(&self.networks).for_each(|(to, from)| *to = *from);
    }

    /// Appends entries to `page` from `cursor` on, up to its capacity. Returns where to continue; `None` at the
    /// end. Free slots make a page shorter, but not slower.
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

    /// End of one scan that starts at `cursor`.
    fn scan_end(&self, cursor: usize) -> usize {
        cursor.saturating_add(LOOK).min(self.buckets.len())
    }
}

#[allow(clippy::cast_possible_truncation)] // of 1.86 * 2^23 at most
const fn word(at: usize) -> u32 {
    at as u32
}
