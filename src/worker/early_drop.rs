//! Shedding at the door: while a port may not send to groups, its device drops such frames by itself, if it can.
//!
//! Whether it may is for the buckets to say ([`PortConfig::blocked_until`](crate::switch::PortConfig::blocked_until)), and they
//! are asked only after a frame has died of them.
//! Then no frame of that kind can live before a certain moment, until which the device is told to drop them. What it
//! dropped enters the books as if it had come in and died here, and for the same reason.
//!
//! Only for ports with a device of their own: what is behind a carrier is told apart by tags, which no
//! device looks at.

use super::mailbox::PortCounterTable;
use super::outbox::{bit, counters_of};
use super::poll_loop::Worker;
use super::queues::RxQueue;
use crate::device::GroupClass;
use crate::switch::{Attachment, DropReason, StormClass};
use crate::time::MonoTime;

/// The reasons of which frames die at the limits of their class.
pub(super) const STORM_REASONS: u64 =
    bit(DropReason::StormBroadcast) | bit(DropReason::StormMulticast) | bit(DropReason::StormVm);

/// No gate sheds.
pub(super) const NEVER: MonoTime = MonoTime::from_nanos(u64::MAX);

/// What the device of a gate sheds.
#[derive(Debug, Clone, Copy)]
pub(super) struct EarlyDrop {
    broadcast: BlockedGroup,
    multicast: BlockedGroup,
}

/// That frames to a group are shed, or were.
#[derive(Debug, Clone, Copy)]
struct BlockedGroup {
    /// Until when; `None`: it is over.
    until: Option<MonoTime>,
    /// What they would die of otherwise. It stays, for a frame that was on its way to be counted as it ended.
    reason: DropReason,
}

impl Default for EarlyDrop {
    fn default() -> EarlyDrop {
        let none = |group| BlockedGroup { until: None, reason: class(group).reason() };
        EarlyDrop { broadcast: none(GroupClass::Broadcast), multicast: none(GroupClass::Multicast) }
    }
}

impl EarlyDrop {
    fn of(&mut self, group: GroupClass) -> &mut BlockedGroup {
        match group {
            GroupClass::Broadcast => &mut self.broadcast,
            GroupClass::Multicast => &mut self.multicast,
        }
    }
}

/// The class of frames to a group.
const fn class(group: GroupClass) -> StormClass {
    match group {
        GroupClass::Broadcast => StormClass::Broadcast,
        GroupClass::Multicast => StormClass::Multicast,
    }
}

impl RxQueue {
    /// Enters into the books what its device has shed.
    pub(super) fn count_xdp_drops(&mut self, port_counters: &PortCounterTable) {
        let blocked = self.device.take_xdp_dropped();
        let Some(counters) = counters_of(port_counters, self.port) else { return };
        for group in GroupClass::ALL {
            let amount = blocked[group];
            counters.rx_frames.add(amount.frames);
            counters.rx_bytes.add(amount.bytes);
            counters.drops_in.add(self.early_drop.of(group).reason, amount.frames);
        }
    }

    /// Its device sheds nothing any more, and what it has shed is in the books.
    pub(super) fn stop_xdp_drops(&mut self, port_counters: &PortCounterTable) {
        for group in GroupClass::ALL {
            if self.early_drop.of(group).until.take().is_some() {
                // Also so that the device need not look at its clock any more.
                self.device.xdp_drop(group, MonoTime::default());
            }
        }
        self.count_xdp_drops(port_counters);
    }
}

impl Worker {
    /// Has a device shed what its port may not send now, after a frame has died of that.
    #[cold]
    pub(super) fn xdp_drop(&mut self, number: usize, now: MonoTime) {
        let Some(queue) = self.queues.get_mut(number) else { return };
        let Some(port) = self.switch.config().port(queue.port).filter(|port| port.attachment == Attachment::Own) else {
            return;
        };
        // What was shed until now died of what was to blame until now.
        queue.count_xdp_drops(&self.port_counters);
        for group in GroupClass::ALL {
            if let Some((until, reason)) = port.blocked_until(class(group), now) {
                queue.device.xdp_drop(group, until);
                *queue.early_drop.of(group) = BlockedGroup { until: Some(until), reason };
                self.next_drop_check = self.next_drop_check.min(until);
            }
        }
    }

    /// Enters into the books what was shed until now, wherever that has ended.
    #[cold]
    pub(super) fn end_xdp_drops(&mut self, now: MonoTime) {
        self.next_drop_check = NEVER;
        for number in 0..self.queues.len() {
            let Some(queue) = self.queues.get_mut(number) else { continue };
            match GroupClass::ALL.into_iter().filter_map(|group| queue.early_drop.of(group).until).max() {
                Some(until) if until > now => self.next_drop_check = self.next_drop_check.min(until),
                Some(_) => queue.stop_xdp_drops(&self.port_counters),
                None => {}
            }
        }
    }

    /// Enters into the books what was shed until now.
    pub(super) fn count_xdp_drops(&mut self) {
        for number in 0..self.queues.len() {
            if let Some(queue) = self.queues.get_mut(number) {
                queue.count_xdp_drops(&self.port_counters);
            }
        }
    }

    /// Nothing is shed any more.
    pub(super) fn stop_xdp_drops(&mut self) {
        self.next_drop_check = NEVER;
        for number in 0..self.queues.len() {
            if let Some(queue) = self.queues.get_mut(number) {
                queue.stop_xdp_drops(&self.port_counters);
            }
        }
    }
}
