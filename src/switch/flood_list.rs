//! Flood lists: the ports of a network, ordered so that a flood excludes one contiguous range.

use super::{PortId, VmId};

/// Ports of one network: siblings adjacent, uplinks last.
#[derive(Debug, Default)]
pub(super) struct FloodList {
    all: Box<[PortId]>,
    /// Number of ports that are not uplinks.
    vif_count: usize,
    /// Index of each port, sorted by port. A table would be as fast to read, and is slower to make; configurations are made often.
    positions: Box<[(PortId, usize)]>,
    /// Range of each VM's ports, sorted by VM.
    siblings: Box<[(VmId, Range)]>,
}

/// An excluded range of a list.
pub(super) type Range = (usize, usize);

impl FloodList {
    /// Creates a list of these ports in flood order, each with its VM, or `None` for an uplink.
    pub(super) fn new(ports: impl IntoIterator<Item = (PortId, Option<VmId>)>) -> FloodList {
        let (mut all, mut vif_count, mut siblings) = (Vec::new(), 0, Vec::<(VmId, Range)>::new());
        for (at, (id, vm)) in ports.into_iter().enumerate() {
            all.push(id);
            let Some(vm) = vm else { continue };
            vif_count += 1;
            match siblings.last_mut() {
                Some((last, range)) if *last == vm => range.1 = at + 1,
                _ => siblings.push((vm, (at, at + 1))),
            }
        }
        let mut positions: Box<[(PortId, usize)]> = all.iter().enumerate().map(|(at, &id)| (id, at)).collect();
        positions.sort_unstable();
        siblings.sort_unstable();
        FloodList { all: all.into(), vif_count, positions, siblings: siblings.into() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All ports.
    #[inline]
    pub(super) fn all(&self) -> &[PortId] {
        &self.all
    }

    /// Range of this port alone; empty if it is not in the list.
    pub(super) fn range(&self, port: PortId) -> Range {
        let found = self.positions.binary_search_by_key(&port, |&(id, _)| id);
        found.map_or((0, 0), |index| (self.positions[index].1, self.positions[index].1 + 1))
    }

    /// Range of the VM's ports; empty if there are none.
    pub(super) fn siblings(&self, vm: VmId) -> Range {
        let found = self.siblings.binary_search_by_key(&vm, |&(of, _)| of);
        found.map_or((0, 0), |index| self.siblings[index].1)
    }

    /// Range of the uplinks.
    pub(super) fn uplinks(&self) -> Range {
        (self.vif_count, self.all.len())
    }

    /// All ports outside a range.
    #[inline]
    pub(super) fn except(&self, skip: Range) -> [&[PortId]; 2] {
        self.until(self.all.len(), skip)
    }

    /// All ports outside a range, without uplinks.
    #[inline]
    pub(super) fn vifs(&self, skip: Range) -> [&[PortId]; 2] {
        self.until(self.vif_count, skip)
    }

    /// All ports outside a range and not `other`, which need not be in the list. Searches linearly: the list is
    /// short.
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
