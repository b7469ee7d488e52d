//! Executes control's commands on the worker thread, at most one per `poll_once`. Also stops polling a queue whose
//! device has failed, and notifies control of it (`remove_lost`).

use super::mailbox::{Command, DeviceGone, FdbPage, Flushed};
use super::poll_loop::Worker;
use super::rx_queue::{QueueState, RxQueue};
use crate::switch::PortId;
use crate::time::MonoTime;

/// FDB entries visited per flush command.
const FLUSH_BATCH: usize = 1024;

impl Worker {
    /// Executes at most one command; returns how many.
    pub(super) fn read_command(&mut self, now: MonoTime) -> usize {
        let Ok(command) = self.mailbox.try_recv() else { return 0 };
        // A reply whose receiver is gone is dropped with its payload.
        match command {
            Command::Config(config, port_counters, reply) => {
                // The new limits apply from the next frame on.
                self.stop_xdp_drops();
                self.counters.retired.retire(&self.port_counters, &port_counters);
                let old = (
                    self.switch.replace_config(config, now),
                    std::mem::replace(&mut self.port_counters, port_counters),
                );
                self.queues.rebuild_egress(self.switch.config());
                let _ = reply.send(old);
            }
            Command::Subports(subports, reply) => {
                let _ = reply.send(self.queues.replace_subports(subports, self.switch.config()));
            }
            Command::Open(rx_queue, reply) => {
                let _ = reply.send(self.open(rx_queue));
            }
            Command::Close(port, queue, reply) => {
                let _ = reply.send(self.close(port, queue));
            }
            Command::Stations(FdbPage { mut entries, cursor }, reply) => {
                let cursor = cursor.and_then(|at| self.switch.fdb().page(at, &mut entries));
                let _ = reply.send(FdbPage { entries, cursor });
            }
            Command::CountByNetwork(mut counts, reply) => {
                self.switch.fdb().count_by_network(&mut counts);
                let _ = reply.send(counts);
            }
            Command::Audit(mut reading, reply) => {
                // The TX batches are empty here: frames pending in them within one `poll_once` are in no counter.
                self.count_xdp_drops();
                reading.take(&self.port_counters, &self.counters);
                let _ = reply.send(reading);
            }
            Command::Ping(reply) => drop(reply.send(())),
            Command::Flush(flush, reply) => {
                let (stations, cursor) = self.switch.flush(flush.cursor, FLUSH_BATCH, |learned| flush.matches(learned));
                let _ = reply.send(Flushed { stations, cursor });
            }
            Command::Learn(stations, reply) => {
                stations.iter().for_each(|&learned| self.switch.learn_unknown(learned));
                let _ = reply.send(stations);
            }
            Command::Restore(stations, range, reply) => {
                self.switch.restore(stations.get(range).unwrap_or_default());
                let _ = reply.send(stations);
            }
            Command::Probes(probes, reply) => {
                self.send_probes(&probes);
                let _ = reply.send(probes);
            }
            Command::Announce(announcements, reply) => {
                self.send_announcements(&announcements);
                let _ = reply.send(announcements);
            }
            Command::Hold(is_held, reply) => {
                self.is_held = is_held;
                let _ = reply.send(());
            }
            Command::Stop(reply) => {
                let queues = (0..self.queues.len()).filter_map(|number| self.take_queue(number)).collect();
                let _ = reply.send(queues);
                self.stop = true;
            }
        }
        1
    }

    #[allow(clippy::result_large_err)] // returns the queue
    fn open(&mut self, queue: RxQueue) -> Result<(), RxQueue> {
        let number = self.queues.insert(queue, self.switch.config())?;
        match self.queues.get_mut(number).map(|queue| self.idle.watch(number, queue)) {
            Some(Ok(())) => Ok(()),
            _ => self.queues.remove(number, self.switch.config()).map_or(Ok(()), Err),
        }
    }

    fn close(&mut self, port: PortId, queue: u16) -> Option<RxQueue> {
        self.take_queue(self.queues.number_of(port, queue)?)
    }

    fn take_queue(&mut self, number: usize) -> Option<RxQueue> {
        let queue = self.queues.get_mut(number)?;
        queue.stop_xdp_drops(&self.port_counters);
        queue.device.prepare_close(&mut self.magazine);
        // The last read of the device's counters.
        self.count_rx_missed(number);
        let queue = self.queues.get_mut(number)?;
        if queue.state != QueueState::Gone {
            self.idle.remove_queue(queue);
        }
        self.queues.remove(number, self.switch.config())
    }

    /// Stops polling a queue whose device is gone, and notifies control.
    #[cold]
    pub(super) fn remove_lost(&mut self, number: usize) {
        let Some(queue) = self.queues.get_mut(number) else { return };
        queue.device.prepare_close(&mut self.magazine);
        self.count_rx_missed(number);
        let Some(queue) = self.queues.get_mut(number) else { return };
        self.idle.remove_queue(queue);
        let notice = DeviceGone::DeviceGone { port: queue.port, queue: queue.queue };
        self.queues.mark_gone(number, self.switch.config());
        // The channel holds more notices than queues can exist; each queue is lost at most once.
        let _ = self.notices.try_send(notice);
    }
}
