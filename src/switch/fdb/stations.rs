//! Looking stations up: the part of the table that is only read.

use super::super::pins::place;
use super::super::{PortId, Station};
use super::Learned;

/// The table of learned stations as it is looked up.
#[derive(Clone, Copy)]
pub(in crate::switch) struct Stations<'a> {
    /// As in [`Fdb`](super::Fdb).
    pub(super) index: &'a [u32],
    pub(super) entries: &'a [Learned],
    /// The part of an index word that is the number.
    pub(super) number: u32,
}

impl<'a> Stations<'a> {
    /// The same as [`Fdb::find`](super::Fdb::find).
    #[inline(always)]
    pub(in crate::switch) fn find(&self, station: Station, hash: u64, oldest: u32) -> Option<PortId> {
        let entry = self.lookup(station, hash)?;
        (entry.seen >= oldest).then_some(entry.port)
    }

    /// The same as [`Fdb::is_current`](super::Fdb::is_current).
    #[inline(always)]
    pub(in crate::switch) fn is_current(&self, station: Station, hash: u64, port: PortId, now: u32) -> bool {
        self.lookup(station, hash).is_some_and(|entry| entry.port == port && entry.seen >= now)
    }

    /// A station's entry. Nearly always it is named in one of the two words with which a search
    /// begins; which one is found out without a branch, as no processor could foresee it.
    #[inline(always)]
    fn lookup(&self, station: Station, hash: u64) -> Option<&'a Learned> {
        let at = place(hash, self.index.len());
        let elsewhere = (self.index[at] ^ tag(hash, self.number)) & !self.number != 0;
        let word = self.index[place(at as u64 + u64::from(elsewhere), self.index.len())];
        match self.entries.get(((word & self.number) as usize).wrapping_sub(1)) {
            Some(entry) if entry.station == station => Some(entry),
            _ => self.search(station, hash).map(|(_, id)| &self.entries[id]),
        }
    }

    /// Where the index names a station, and the number of its entry.
    #[inline(never)]
    pub(super) fn search(&self, station: Station, hash: u64) -> Option<(usize, usize)> {
        let tag = tag(hash, self.number);
        let mut at = place(hash, self.index.len());
        loop {
            let word = self.index[at];
            if word == 0 {
                return None;
            }
            if word & !self.number == tag {
                let id = (word & self.number) as usize - 1;
                if self.entries[id].station == station {
                    return Some((at, id));
                }
            }
            at = place(at as u64 + 1, self.index.len());
        }
    }
}

/// The bits of a hash that stand in an index word beside the number.
#[inline(always)]
pub(super) const fn tag(hash: u64, number: u32) -> u32 {
    #[allow(clippy::cast_possible_truncation)] // the high half
    let high = (hash >> 32) as u32;
    high & !number
}
