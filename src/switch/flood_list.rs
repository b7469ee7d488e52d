//! Lists of the ports of a network, in which those that a frame must not go to stand in one stretch.

use std::collections::HashMap;

use super::{PortId, VmId};

/// Ports of one network: siblings next to each other, uplinks last.
#[derive(Debug, Default)]
pub(super) struct FloodList {
    all: Box<[PortId]>,
    /// How many are no uplinks.
    vif_count: usize,
    /// Where each stands.
    positions: HashMap<PortId, usize>,
    /// Where those of each VM stand.
    siblings: HashMap<VmId, Range>,
}

/// The stretch of a list that is left out.
pub(super) type Range = (usize, usize);

impl FloodList {
    /// These, and whose each of them is, if it is no uplink; in the order in which they shall stand.
    pub(super) fn new(ports: impl IntoIterator<Item = (PortId, Option<VmId>)>) -> FloodList {
        let mut members = FloodList::default();
        let mut all = Vec::new();
        for (id, vm) in ports {
            let at = all.len();
            members.positions.insert(id, at);
            if let Some(vm) = vm {
                members.vif_count += 1;
                members.siblings.entry(vm).or_insert((at, at)).1 = at + 1;
            }
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
    pub(super) fn range(&self, port: PortId) -> Range {
        self.positions.get(&port).map_or((0, 0), |&at| (at, at + 1))
    }

    /// The stretch in which the ports of this VM stand; an empty one if there is none.
    pub(super) fn siblings(&self, vm: VmId) -> Range {
        self.siblings.get(&vm).copied().unwrap_or_default()
    }

    /// The stretch in which the uplinks stand.
    pub(super) fn uplinks(&self) -> Range {
        (self.vif_count, self.all.len())
    }

    /// All but those in a stretch.
    #[inline]
    pub(super) fn except(&self, skip: Range) -> [&[PortId]; 2] {
        self.until(self.all.len(), skip)
    }

    /// All but those in a stretch and the uplinks.
    #[inline]
    pub(super) fn vifs(&self, skip: Range) -> [&[PortId]; 2] {
        self.until(self.vif_count, skip)
    }

    /// All but those in a stretch, and this one, which need not be there. It is looked for: it is a short list for
    /// which this is asked.
    pub(super) fn except_also(&self, skip: Range, other: PortId) -> [&[PortId]; 3] {
        let other = self.all.iter().position(|&id| id == other).map_or((0, 0), |at| (at, at + 1));
        let (first, second) = if skip <= other { (skip, other) } else { (other, skip) };
        let between = self.all.get(first.1..second.0).unwrap_or_default();
        [&self.all[..first.0], between, self.all.get(second.1.max(first.1)..).unwrap_or_default()]
    }

    #[inline]
    fn until(&self, end: usize, skip: Range) -> [&[PortId]; 2] {
        [&self.all[..skip.0], self.all.get(skip.1..end).unwrap_or_default()]
    }
}
