//! Early drop: the device drops group frames before they reach the worker.
//!
//! While a port exceeds a storm limit, the switch would receive its group frames only to drop them. A capable device
//! drops them itself until a given time and counts them, so that the counters balance.

use std::ops::{Index, IndexMut};

/// Class of frames to drop. Unicast frames are never dropped early: only the FDB knows whether they would be flooded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupClass {
    /// Broadcast.
    Broadcast,
    /// Any other group, except loop probes and BPDUs.
    Multicast,
}

impl GroupClass {
    /// Both classes.
    pub const ALL: [GroupClass; 2] = [GroupClass::Broadcast, GroupClass::Multicast];
}

/// Counts of frames dropped early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DropCount {
    /// Number of frames.
    pub frames: u64,
    /// Bytes, without frame check sequence.
    pub bytes: u64,
}

/// Frames dropped early, by class.
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
