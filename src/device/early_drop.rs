//! Early drop: group frames dropped in the device, before they cost the worker anything.
//!
//! While a port has exceeded its flood rate, the switch would receive its group frames only to drop them. A
//! device that can drops them itself until a given time, and counts them, so that the counters still balance.

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
