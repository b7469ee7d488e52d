//! Shedding: frames to groups that die where they arrive, before they cost the switch anything.
//!
//! While a port may not flood for a moment, what it sends to groups is only received to be dropped. A device
//! that can drops it by itself until the moment is over, and counts it, so that the books lose nothing.

use std::ops::{Index, IndexMut};

/// Which frames are shed. Never frames to one station, of which only the table of stations knows whether they
/// would be flooded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupClass {
    /// Those to everybody.
    Broadcast,
    /// Those to any other group, but for loop probes and spanning tree, which always arrive.
    Multicast,
}

impl GroupClass {
    /// Both.
    pub const ALL: [GroupClass; 2] = [GroupClass::Broadcast, GroupClass::Multicast];
}

/// Frames that were shed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DropCount {
    /// How many.
    pub frames: u64,
    /// Their bytes, without frame check sequence.
    pub bytes: u64,
}

/// What was shed of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XdpDropped([DropCount; 2]);

impl Index<GroupClass> for XdpDropped {
    type Output = DropCount;
    fn index(&self, group: GroupClass) -> &DropCount {
        &self.0[group as usize]
    }
}

impl IndexMut<GroupClass> for XdpDropped {
    fn index_mut(&mut self, group: GroupClass) -> &mut DropCount {
        &mut self.0[group as usize]
    }
}
