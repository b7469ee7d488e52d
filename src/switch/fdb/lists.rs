//! The stations behind each port, in the order in which they were last refreshed: lists of the numbers of their
//! entries, linked both ways, and beside them the numbers that are free.

use super::word;
use crate::switch::{MOST_PORTS, PortId};
use crate::sys::memory::prefer_huge_pages;

/// "No entry", in a list.
const NIL: u32 = u32::MAX;

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

/// Which entries are whose. Ports are told apart by their place alone: what stood behind an earlier one is in the
/// list of the next.
#[derive(Debug)]
pub(super) struct Lists {
    links: Vec<Links>,
    ports: Vec<List>,
    /// Numbers that were used and are free again, linked by `newer`.
    free: u32,
}

impl Lists {
    /// Bytes that an entry takes here.
    pub(super) const BYTES: usize = size_of::<Links>();

    /// Empty lists with room for so many entries.
    pub(super) fn new(capacity: usize) -> Lists {
        let mut links = Vec::with_capacity(capacity);
        prefer_huge_pages(&mut links);
        Lists { links, ports: vec![EMPTY; MOST_PORTS], free: NIL }
    }

    /// How many entries `port` has.
    pub(super) fn len(&self, port: PortId) -> u32 {
        self.ports[port.index()].len
    }

    /// The oldest entry of `port`, if it has any.
    pub(super) fn oldest(&self, port: PortId) -> Option<usize> {
        let oldest = self.ports[port.index()].oldest;
        (oldest != NIL).then_some(oldest as usize)
    }

    /// A number for an entry: one that was given back, or the next.
    pub(super) fn take(&mut self) -> usize {
        if self.free == NIL {
            self.links.push(Links { older: NIL, newer: NIL });
            return self.links.len() - 1;
        }
        let id = self.free as usize;
        self.free = self.links[id].newer;
        id
    }

    /// Entry `id`, which is in no list, is not needed any more.
    pub(super) fn give_back(&mut self, id: usize) {
        self.links[id].newer = self.free;
        self.free = word(id);
    }

    /// Takes entry `id` out of the list of `port`.
    pub(super) fn unlink(&mut self, port: PortId, id: usize) {
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
    pub(super) fn append(&mut self, port: PortId, id: usize) {
        let list = &mut self.ports[port.index()];
        let older = std::mem::replace(&mut list.newest, word(id));
        list.len += 1;
        self.links[id] = Links { older, newer: NIL };
        match older {
            NIL => list.oldest = word(id),
            older => self.links[older as usize].newer = word(id),
        }
    }
}
