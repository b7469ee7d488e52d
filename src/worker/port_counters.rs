//! Port counters of one worker, and masks of drop reasons.

use std::sync::Arc;

use crate::switch::{DropReason, PortId};
use crate::telemetry::PortCounters;

/// Counters of one worker, by [`PortId::index`]: uplinks (at the trunk) and ports of VMs, subports included.
pub type PortCounterTable = Vec<Option<Arc<PortCounters>>>;

#[inline]
pub(super) fn counters_of(port_counters: &PortCounterTable, port: PortId) -> Option<&PortCounters> {
    port_counters.get(port.index())?.as_deref()
}

// One bit per reason.
const _: () = assert!(DropReason::ALL.len() <= 64);

/// Bit of a reason in a drop mask.
pub(super) const fn bit(reason: DropReason) -> u64 {
    1 << reason as u8
}
