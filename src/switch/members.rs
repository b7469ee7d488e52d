//! Lists of the ports of a network, in which those that a frame must not go to stand in one stretch.

use std::collections::HashMap;

use super::PortId;

/// Ports of one network: siblings next to each other, uplinks last.
#[derive(Debug, Default)]
pub(super) struct Members {
    all: Box<[PortId]>,
    /// How many are no uplinks.
    inside: usize,
    /// Where each stands.
    places: HashMap<PortId, usize>,
}

/// The stretch of a list that is left out.
pub(super) type Stretch = (usize, usize);

impl Members {
    /// These, and whether each of them is an uplink; in the order in which they shall stand.
    pub(super) fn new(ports: impl IntoIterator<Item = (PortId, bool)>) -> Members {
        let mut members = Members::default();
        let mut all = Vec::new();
        for (id, is_uplink) in ports {
            members.places.insert(id, all.len());
            members.inside += usize::from(!is_uplink);
            all.push(id);
        }
        members.all = all.into();
        members
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them.
    #[inline]
    pub(super) fn all(&self) -> &[PortId] {
        &self.all
    }

    /// The stretch in which this port alone stands; an empty one if it is not there.
    pub(super) fn stretch(&self, port: PortId) -> Stretch {
        self.places.get(&port).map_or((0, 0), |&at| (at, at + 1))
    }

    /// The stretch in which the uplinks stand.
    pub(super) fn uplinks(&self) -> Stretch {
        (self.inside, self.all.len())
    }

    /// All but those in a stretch.
    #[inline]
    pub(super) fn but(&self, skip: Stretch) -> [&[PortId]; 2] {
        self.until(self.all.len(), skip)
    }

    /// All but those in a stretch and the uplinks.
    #[inline]
    pub(super) fn inside(&self, skip: Stretch) -> [&[PortId]; 2] {
        self.until(self.inside, skip)
    }

    /// All but these two, which need not be there. They are looked for: it is a short list for which this is
    /// asked.
    pub(super) fn but_two(&self, one: PortId, other: Option<PortId>) -> [&[PortId]; 3] {
        let find = |port| self.all.iter().position(|&id| id == port).map_or((0, 0), |at| (at, at + 1));
        let (one, other) = (find(one), other.map_or((0, 0), find));
        let (first, second) = if one <= other { (one, other) } else { (other, one) };
        let end = self.all.len();
        let between = self.all.get(first.1..second.0).unwrap_or_default();
        [&self.all[..first.0], between, self.all.get(second.1..end).unwrap_or_default()]
    }

    #[inline]
    fn until(&self, end: usize, skip: Stretch) -> [&[PortId]; 2] {
        [&self.all[..skip.0], self.all.get(skip.1..end).unwrap_or_default()]
    }
}
