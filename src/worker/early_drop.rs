//! Early drop in XDP: while a storm limit blocks group frames of a port, the port's device drops them itself if it
//! can.
//!
//! The policer decides ([`PortConfig::blocked_until`](crate::switch::PortConfig::blocked_until)) and is asked only
//! after it has dropped a frame. It returns a time before which no frame of that class can pass; the device drops
//! the class until then. Frames dropped by the device count as received and dropped by the switch, for the same
//! reason.
//!
//! Applies only to ports with a device of their own: ports of a trunk are told apart by VLAN tags, which the XDP
//! program does not read. `xdp_drops.rs` starts, counts and ends it.

use super::port_counters::bit;
use crate::device::GroupClass;
use crate::switch::{DropReason, StormClass};
use crate::time::MonoTime;

/// Drop reasons of the per-class storm limits.
pub(super) const STORM_REASONS: u64 =
    bit(DropReason::StormBroadcast) | bit(DropReason::StormMulticast) | bit(DropReason::StormVm);

/// No queue has an early drop.
pub(super) const NEVER: MonoTime = MonoTime::from_nanos(u64::MAX);

/// Early drop of one queue, per group class.
#[derive(Debug, Clone, Copy)]
pub(super) struct EarlyDrop {
    broadcast: BlockedGroup,
    multicast: BlockedGroup,
}

/// Early drop of one group class, current or past.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockedGroup {
    /// End of the early drop; `None` if it has ended.
    pub(super) until: Option<MonoTime>,
    /// Drop reason to count. Kept after the end, because a frame may be counted late.
    pub(super) reason: DropReason,
}

impl Default for EarlyDrop {
    fn default() -> EarlyDrop {
        let none = |group| BlockedGroup { until: None, reason: class(group).reason() };
        EarlyDrop { broadcast: none(GroupClass::Broadcast), multicast: none(GroupClass::Multicast) }
    }
}

impl EarlyDrop {
    pub(super) fn of(&mut self, group: GroupClass) -> &mut BlockedGroup {
        match group {
            GroupClass::Broadcast => &mut self.broadcast,
            GroupClass::Multicast => &mut self.multicast,
        }
    }
}

/// Storm class of a group.
pub(super) const fn class(group: GroupClass) -> StormClass {
    match group {
        GroupClass::Broadcast => StormClass::Broadcast,
        GroupClass::Multicast => StormClass::Multicast,
    }
}
