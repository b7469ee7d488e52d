//! The stations behind each port, in the order in which they were last refreshed: lists of their places, linked
//! both ways.

use super::word;
use crate::switch::{MOST_PORTS, PortId};
use crate::sys::memory::prefer_huge_pages;

/// "No place", in a list: the highest number that a link can hold.
const NIL: u32 = u32::MAX >> 8;

/// A place in three bytes, of which each that is saved makes room for more places.
#[derive(Debug, Clone, Copy)]
struct Link([u8; 3]);

impl Link {
    /// To this place, which is below [`NIL`] or that.
    const fn to(at: u32) -> Link {
        let [a, b, c, _] = at.to_le_bytes();
        Link([a, b, c])
    }

    const fn at(self) -> u32 {
        let Link([a, b, c]) = self;
        u32::from_le_bytes([a, b, c, 0])
    }
}

#[derive(Debug, Clone, Copy)]
struct Links {
    older: Link,
    newer: Link,
}

/// The stations of one port, from the one that was silent longest.
#[derive(Debug, Clone, Copy)]
struct List {
    oldest: u32,
    newest: u32,
    len: u32,
}

const EMPTY: List = List { oldest: NIL, newest: NIL, len: 0 };

/// Who lies behind which port. Ports are told apart by their index alone: what stood behind an earlier one is in the
/// list of the next.
#[derive(Debug)]
pub(super) struct Lists {
    /// By place.
    links: Vec<Links>,
    ports: Vec<List>,
}

impl Lists {
    /// Bytes that a place takes here.
    pub(super) const BYTES: usize = size_of::<Links>();

    /// Empty lists over so many places, which are fewer than 2^24.
    pub(super) fn new(places: usize) -> Lists {
        assert!(places <= NIL as usize, "a place has a number of three bytes");
        let mut links = Vec::with_capacity(places);
        prefer_huge_pages(&mut links);
        links.resize(places, Links { older: Link::to(NIL), newer: Link::to(NIL) });
        Lists { links, ports: vec![EMPTY; MOST_PORTS] }
    }

    /// How many stations are behind `port`.
    pub(super) fn len(&self, port: PortId) -> u32 {
        self.ports[port.index()].len
    }

    /// Where the one lies that was silent longest of those behind `port`, if there is any.
    pub(super) fn oldest(&self, port: PortId) -> Option<usize> {
        let oldest = self.ports[port.index()].oldest;
        (oldest != NIL).then_some(oldest as usize)
    }

    /// Takes place `at` out of the list of `port`.
    pub(super) fn unlink(&mut self, port: PortId, at: usize) {
        let Links { older, newer } = self.links[at];
        let list = &mut self.ports[port.index()];
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

    /// Puts place `at` at the new end of the list of `port`.
    pub(super) fn append(&mut self, port: PortId, at: usize) {
        let list = &mut self.ports[port.index()];
        let older = std::mem::replace(&mut list.newest, word(at));
        list.len += 1;
        self.links[at] = Links { older: Link::to(older), newer: Link::to(NIL) };
        match older {
            NIL => list.oldest = word(at),
            older => self.links[older as usize].newer = Link::to(word(at)),
        }
    }
}
