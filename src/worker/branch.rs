//! Branches: what waits to leave for the subports of trunks. Each has a lane of its own, though many leave by
//! one gate, so that each counts what becomes of its frames, and a flood to several of them puts one frame at
//! most into each lane.

use crate::frame::Lane;
use crate::switch::PortId;

use super::gate::LANE;

/// The lane of one subport.
#[derive(Debug)]
pub(super) struct Branch {
    /// The subport.
    pub(super) port: PortId,
    /// The number of the gate by which it leaves.
    pub(super) gate: usize,
    /// Whether its lane has frames that have to be finished before they can leave.
    pub(super) unfinished: bool,
    pub(super) lane: Lane,
}

/// Room for the branches of a worker: control makes it, as a worker that breathes does not allocate.
#[derive(Debug, Default)]
pub struct Room(Vec<Branch>);

impl Room {
    /// Room for the subports of rules that have so many.
    pub fn for_branches(count: usize) -> Room {
        let branch = || Branch { port: PortId::default(), gate: 0, unfinished: false, lane: Lane::with_capacity(LANE) };
        Room(std::iter::repeat_with(branch).take(count).collect())
    }

    /// For how many there is room.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, branch: usize) -> Option<&mut Branch> {
        self.0.get_mut(branch)
    }

    /// The number of the gate by which a branch leaves.
    #[inline]
    pub(super) fn gate_of(&self, branch: usize) -> Option<usize> {
        self.0.get(branch).map(|branch| branch.gate)
    }

    /// Notes by which gate a subport leaves. `false` if there is no room for it.
    pub(super) fn assign(&mut self, branch: usize, port: PortId, gate: usize) -> bool {
        let Some(branch) = self.0.get_mut(branch) else { return false };
        (branch.port, branch.gate) = (port, gate);
        true
    }

    /// The lane of a branch that has been assigned.
    #[inline]
    pub(super) fn lane(&mut self, branch: usize) -> &mut Lane {
        &mut self.0[branch].lane
    }
}
