//! Starts, counts and ends early drops at the queues of a worker.

use super::early_drop::{BlockedGroup, NEVER, class};
use super::poll_loop::Worker;
use super::port_counters::{PortCounterTable, counters_of};
use super::rx_queue::RxQueue;
use crate::device::GroupClass;
use crate::switch::Attachment;
use crate::time::MonoTime;

impl RxQueue {
    /// Counts the frames that the device's XDP program dropped.
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

    /// Ends all early drops of this queue and counts what they dropped.
    pub(super) fn stop_xdp_drops(&mut self, port_counters: &PortCounterTable) {
        for group in GroupClass::ALL {
            if self.early_drop.of(group).until.take().is_some() {
                // Also spares the device its clock reads.
                self.device.xdp_drop(group, MonoTime::default());
            }
        }
        self.count_xdp_drops(port_counters);
    }
}

impl Worker {
    /// Starts early drop at a queue after the storm limit of its port has dropped a frame.
    #[cold]
    pub(super) fn xdp_drop(&mut self, number: usize, now: MonoTime) {
        let Some(queue) = self.queues.get_mut(number) else { return };
        let Some(port) = self.switch.config().port(queue.port).filter(|port| port.attachment == Attachment::Own) else {
            return;
        };
        // Earlier XDP drops count for the earlier reason.
        queue.count_xdp_drops(&self.port_counters);
        for group in GroupClass::ALL {
            if let Some((until, reason)) = port.blocked_until(class(group), now) {
                queue.device.xdp_drop(group, until);
                *queue.early_drop.of(group) = BlockedGroup { until: Some(until), reason };
                self.next_drop_check = self.next_drop_check.min(until);
            }
        }
    }

    /// Ends and counts early drops whose time is over.
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

    /// Counts the XDP drops of all queues.
    pub(super) fn count_xdp_drops(&mut self) {
        for number in 0..self.queues.len() {
            if let Some(queue) = self.queues.get_mut(number) {
                queue.count_xdp_drops(&self.port_counters);
            }
        }
    }

    /// Ends all early drops.
    pub(super) fn stop_xdp_drops(&mut self) {
        self.next_drop_check = NEVER;
        for number in 0..self.queues.len() {
            if let Some(queue) = self.queues.get_mut(number) {
                queue.stop_xdp_drops(&self.port_counters);
            }
        }
    }
}
