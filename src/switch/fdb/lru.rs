//! LRU lists: the entries of each port in order of their last refresh, doubly linked by slot.

use super::word;
use crate::frame::prefetch;
use crate::switch::{MAX_PORTS, PortId};
use crate::sys::memory::prefer_huge_pages;

/// End of a list: the highest value of a link.
const NIL: u32 = u32::MAX >> 8;

/// A slot number in three bytes; each byte saved makes room for more slots.
#[derive(Debug, Clone, Copy)]
struct LruLink([u8; 3]);

impl LruLink {
    /// Link to slot `at`, or [`NIL`].
    const fn to(at: u32) -> LruLink {
        let [a, b, c, _] = at.to_le_bytes();
        LruLink([a, b, c])
    }

    const fn at(self) -> u32 {
        let LruLink([a, b, c]) = self;
        u32::from_le_bytes([a, b, c, 0])
    }
}

#[derive(Debug, Clone, Copy)]
struct LruLinks {
    older: LruLink,
    newer: LruLink,
}

/// LRU list of one port, oldest first.
#[derive(Debug, Clone, Copy)]
struct LruList {
    oldest: u32,
    newest: u32,
    len: u32,
    /// The port that owns the list; [`PortId::NONE`] if none.
    owner: PortId,
}

const EMPTY: LruList = LruList { oldest: NIL, newest: NIL, len: 0, owner: PortId::NONE };

/// Index of the list of entries whose port is closed, after those of the ports.
const DEAD: usize = MAX_PORTS;

/// One LRU list per port index, and one for the stations of closed ports.
///
/// A list belongs to one generation of its port index. When the next generation takes it over, its entries move to the
/// list of dead ones in one step. So a station is in the list of its port if that port owns it, and is dead otherwise:
/// the entry itself needs no mark.
#[derive(Debug)]
pub(super) struct LruLists {
    /// By slot.
    links: Vec<LruLinks>,
    lists: Vec<LruList>,
    /// By port index: the generation that owned the list last, if any did.
    generations: Vec<Option<u16>>,
}

impl LruLists {
    /// Bytes per slot.
    pub(super) const BYTES: usize = size_of::<LruLinks>();

    /// Empty lists over this many slots, fewer than 2^24.
    pub(super) fn new(places: usize) -> LruLists {
        assert!(places <= NIL as usize, "a place has a number of three bytes");
        let mut links = Vec::with_capacity(places);
        prefer_huge_pages(&mut links);
        links.resize(places, LruLinks { older: LruLink::to(NIL), newer: LruLink::to(NIL) });
        LruLists { links, lists: vec![EMPTY; MAX_PORTS + 1], generations: vec![None; MAX_PORTS] }
    }

    /// Prefetches the links of slot `at`.
    pub(super) fn prefetch(&self, at: usize) {
        prefetch(&self.links[at]);
    }

    /// Number of stations behind `port`.
    pub(super) fn len(&self, port: PortId) -> u32 {
        if self.is_owner(port) { self.lists[port.index()].len } else { 0 }
    }

    /// Number of stations whose port is closed.
    pub(super) fn dead(&self) -> u32 {
        self.lists[DEAD].len
    }

    /// Slot of the oldest entry of `port`.
    pub(super) fn oldest(&self, port: PortId) -> Option<usize> {
        if self.is_owner(port) { self.lists[port.index()].oldest() } else { None }
    }

    /// Slot of the entry that has been dead longest.
    pub(super) fn oldest_dead(&self) -> Option<usize> {
        self.lists[DEAD].oldest()
    }

    /// The slot after `at` in its list.
    pub(super) fn newer(&self, at: usize) -> Option<usize> {
        existing(self.links[at].newer.at())
    }

    /// Whether `port` owns the list of its index.
    #[inline(always)]
    pub(super) fn is_owner(&self, port: PortId) -> bool {
        self.lists[port.index()].owner == port
    }

    /// Slot of the newest entry in the list of this index.
    pub(super) fn newest(&self, index: usize) -> Option<usize> {
        existing(self.lists[index].newest)
    }

    /// Whether `port` is a later generation than all that have owned the list of its index: no dead station names it.
    pub(super) fn is_newer(&self, port: PortId) -> bool {
        self.generations[port.index()] < Some(port.generation())
    }

    /// Makes `port` the owner of the list of its index, which is empty.
    pub(super) fn assign_owner(&mut self, port: PortId) {
        let list = &mut self.lists[port.index()];
        debug_assert_eq!(list.len, 0);
        list.owner = port;
        let last = &mut self.generations[port.index()];
        *last = (*last).max(Some(port.generation()));
    }

    /// Moves all stations of the list of this index to the list of dead ones, and leaves it without an owner. Returns
    /// how many there were.
    pub(super) fn retire(&mut self, index: usize) -> u32 {
        let retired = std::mem::replace(&mut self.lists[index], EMPTY);
        if retired.len > 0 {
            let dead = &mut self.lists[DEAD];
            let newest = std::mem::replace(&mut dead.newest, retired.newest);
            dead.len += retired.len;
            match newest {
                NIL => dead.oldest = retired.oldest,
                newest => self.links[newest as usize].newer = LruLink::to(retired.oldest),
            }
            self.links[retired.oldest as usize].older = LruLink::to(newest);
        }
        retired.len
    }

    /// Unlinks slot `at` from the list of `port`, or from the list of dead entries if `port` owns none.
    pub(super) fn unlink(&mut self, port: PortId, at: usize) {
        let LruLinks { older, newer } = self.links[at];
        let list = if self.is_owner(port) { port.index() } else { DEAD };
        let list = &mut self.lists[list];
        list.len -= 1;
        match older.at() {
            NIL => list.oldest = newer.at(),
            older => self.links[older as usize].newer = newer,
        }
        match newer.at() {
            NIL => list.newest = older.at(),
            newer => self.links[newer as usize].older = older,
        }
    }

    /// Puts slot `at` before all others of the list that `port` owns.
    pub(super) fn prepend(&mut self, port: PortId, at: usize) {
        debug_assert!(self.is_owner(port));
        let list = &mut self.lists[port.index()];
        let newer = std::mem::replace(&mut list.oldest, word(at));
        list.len += 1;
        self.links[at] = LruLinks { older: LruLink::to(NIL), newer: LruLink::to(newer) };
        match newer {
            NIL => list.newest = word(at),
            newer => self.links[newer as usize].older = LruLink::to(word(at)),
        }
    }

    /// Appends slot `at` to the list that `port` owns.
    pub(super) fn append(&mut self, port: PortId, at: usize) {
        debug_assert!(self.is_owner(port));
        let list = &mut self.lists[port.index()];
        let older = std::mem::replace(&mut list.newest, word(at));
        list.len += 1;
        self.links[at] = LruLinks { older: LruLink::to(older), newer: LruLink::to(NIL) };
        match older {
            NIL => list.oldest = word(at),
            older => self.links[older as usize].newer = LruLink::to(word(at)),
        }
    }
}

impl LruList {
    fn oldest(&self) -> Option<usize> {
        existing(self.oldest)
    }
}

fn existing(at: u32) -> Option<usize> {
    (at != NIL).then_some(at as usize)
}

#[cfg(test)]
impl LruLists {
    /// The lists of the first `ports` indices and of dead entries, each with its owner and its slots from oldest to
    /// newest. Panics if links and lengths are inconsistent.
    pub(super) fn check(&self, ports: usize) -> Vec<(PortId, Vec<usize>)> {
        let lru_lists = (0..ports).chain([DEAD]).map(|index| (index, &self.lists[index]));
        let checked = lru_lists.map(|(index, list)| {
            let (mut places, mut at, mut older) = (Vec::new(), list.oldest, NIL);
            while at != NIL {
                assert!(places.len() < list.len as usize, "list {index} is longer than it says");
                let links = self.links[at as usize];
                assert_eq!(links.older.at(), older, "list {index}: the way back from {at}");
                places.push(at as usize);
                (older, at) = (at, links.newer.at());
            }
            assert_eq!((places.len(), older), (list.len as usize, list.newest), "list {index}: its end");
            (list.owner, places)
        });
        checked.collect()
    }
}
