//! Shedding: frames to groups that die where they arrive, before they cost the switch anything.
//!
//! While a port may not flood for a moment, what it sends to groups is only received to be dropped. A device
//! that can drops it by itself until the moment is over, and counts it, so that the books lose nothing.

use std::ops::{Index, IndexMut};

/// Which frames are shed. Never frames to one station, of which only the table of stations knows whether they
/// would be flooded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// Those to everybody.
    Broadcast,
    /// Those to any other group, but for loop probes and spanning tree, which always arrive.
    Multicast,
}

impl Group {
    /// Both.
    pub const ALL: [Group; 2] = [Group::Broadcast, Group::Multicast];
}

/// Frames that were shed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// How many.
    pub frames: u64,
    /// Their bytes, without frame check sequence.
    pub bytes: u64,
}

/// What was shed of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shed([Amount; 2]);

impl Index<Group> for Shed {
    type Output = Amount;
    fn index(&self, group: Group) -> &Amount {
        &self.0[group as usize]
    }
}

impl IndexMut<Group> for Shed {
    fn index_mut(&mut self, group: Group) -> &mut Amount {
        &mut self.0[group as usize]
    }
}
