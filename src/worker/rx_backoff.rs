//! Receive back-off: a queue whose receives keep failing although its descriptor reports frames is neither polled nor
//! watched for a while, so that it does not keep the worker awake. The operator is told through the device.
//!
//! Applies to devices whose receive costs a system call. It still transmits meanwhile.

use super::poll_loop::Worker;
use super::rx_queue::{QueueState, RxQueue};
use crate::sys::event::is_ready;
use crate::time::MonoTime;

/// Failed receives in a row that start the back-off: less than those after which epoll watches an idle queue.
const MIN_FAILED: u8 = 32;

impl RxQueue {
    /// Whether the last receive failed, or earlier ones did whose end is not recorded.
    #[inline]
    pub(super) fn has_failed(&self) -> bool {
        !self.never_sleeps && (self.failed_receives > 0 || self.device.rx_error().is_some())
    }
}

impl Worker {
    /// Records that a receive without frames has failed, or that none fails any more. After [`MIN_FAILED`] failed ones in
    /// a row, suspends the queue until `retry_at`.
    #[cold]
    pub(super) fn record_rx_error(&mut self, number: usize, retry_at: MonoTime) {
        let Some(queue) = self.queues.get_mut(number) else { return };
        let was_failing = queue.failed_receives == MIN_FAILED;
        let Some(errno) = queue.device.rx_error() else {
            queue.failed_receives = 0;
            if was_failing {
                queue.device.report_rx_error(None);
            }
            return;
        };
        queue.failed_receives = MIN_FAILED.min(queue.failed_receives + 1);
        if queue.failed_receives < MIN_FAILED {
            return;
        }
        // If epoll does not report the descriptor either, failing costs no more than an idle queue.
        if queue.device.fd().is_some_and(is_ready) {
            queue.device.report_rx_error(Some(errno));
            self.idle.remove_queue(queue);
            (queue.state, queue.retry_at) = (QueueState::Failing, retry_at);
        }
    }

    /// Polls a suspended queue again once its time has come. If it cannot be watched, suspends it until `retry_at`.
    #[cold]
    pub(super) fn retry_failing(&mut self, number: usize, now: MonoTime, retry_at: MonoTime) {
        let Some(queue) = self.queues.get_mut(number).filter(|queue| now >= queue.retry_at) else { return };
        match self.idle.watch(number, queue) {
            Ok(()) => queue.state = QueueState::Polled,
            Err(_) => queue.retry_at = retry_at,
        }
    }
}
