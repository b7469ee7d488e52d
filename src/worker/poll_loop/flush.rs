//! Flushes TX batches to devices, and counts what was sent.

use super::Worker;
use crate::frame::TxStats;
use crate::switch::{DropReason, PortId};
use crate::wire::MIN_WIRE_LEN;
use crate::worker::port_counters::counters_of;
use crate::worker::queues::SCAN_WIDTH;

impl Worker {
    /// Flushes all non-empty TX batches: one call per port.
    #[inline]
    pub(in crate::worker) fn flush_tx(&mut self) {
        self.received = 0;
        for first in (0..self.queues.len()).step_by(SCAN_WIDTH) {
            let mut waiting = self.queues.take_pending(first);
            while waiting != 0 {
                self.flush_queue(first + (waiting.trailing_zeros() / u8::BITS) as usize);
                waiting &= waiting - 1;
            }
        }
        for first in self.queues.subport_numbers() {
            let mut waiting = self.queues.take_pending(first);
            while waiting != 0 {
                self.flush_subport(first + (waiting.trailing_zeros() / u8::BITS) as usize);
                waiting &= waiting - 1;
            }
        }
    }

    fn flush_queue(&mut self, number: usize) {
        let Some((queue, tx)) = self.queues.with_tx(number) else { return };
        self.idle.record_busy(queue);
        let (port, device) = (queue.port, &mut *queue.device);
        let sent = if std::mem::take(&mut queue.needs_sw_offload) {
            let shortest = if queue.needs_padding && self.switch.config().is_uplink(port) { MIN_WIRE_LEN } else { 0 };
            self.gso_fallback.send(device, port, shortest, tx, &self.batch, &mut self.magazine, &self.port_counters)
        } else {
            device.transmit(tx, &self.batch, &mut self.magazine)
        };
        self.count_sent(port, sent);
    }

    #[inline(never)] // most ports are not subports
    fn flush_subport(&mut self, number: usize) {
        let Some((queue, subport)) = self.queues.subport(number) else { return };
        self.idle.record_busy(queue);
        let (port, device) = (subport.port, &mut *queue.device);
        let sent = if std::mem::take(&mut subport.needs_sw_offload) {
            self.gso_fallback.send(
                device,
                port,
                0,
                &mut subport.tx,
                &self.batch,
                &mut self.magazine,
                &self.port_counters,
            )
        } else {
            device.transmit(&mut subport.tx, &self.batch, &mut self.magazine)
        };
        self.count_sent(port, sent);
    }

    #[inline]
    fn count_sent(&self, port: PortId, sent: TxStats) {
        let Some(counters) = counters_of(&self.port_counters, port) else { return };
        counters.tx_frames.add(sent.frames);
        counters.tx_bytes.add(sent.bytes);
        if sent.full + sent.refused + sent.link_down + sent.no_buffer > 0 {
            counters.drops_out.add(DropReason::NoBuffer, sent.no_buffer);
            counters.drops_out.add(DropReason::DeviceFull, sent.full);
            counters.drops_out.add(DropReason::DeviceRefused, sent.refused);
            counters.drops_out.add(DropReason::LinkDown, sent.link_down);
        }
    }
}
