//! Drop back-off: polls a queue less often while its full bursts are dropped entirely, so that its sender costs
//! other ports little. Its frames wait in, or overflow, the device's ring, instead of being dropped here.
//!
//! After [`MIN_DROPPED_BURSTS`] such bursts in a row the queue is polled in every 2nd `poll_once`, then every 4th,
//! 8th, and at most every [`MAX_BACKOFF`]th. A burst that is not full, or of which a frame is forwarded, ends the
//! back-off.

use super::rx_queue::{QueueState, RxQueue};

/// Fully dropped full bursts in a row that start the back-off.
const MIN_DROPPED_BURSTS: u8 = 4;

/// Maximum interval between polls, in calls of `poll_once`. A power of two.
const MAX_BACKOFF: u8 = 16;

impl RxQueue {
    /// Records a burst; `in_vain`: it was full and dropped entirely.
    #[inline]
    pub(super) fn record_burst(&mut self, in_vain: bool) {
        if in_vain {
            self.record_dropped_burst();
        } else {
            self.dropped_bursts = 0;
        }
    }

    #[cold]
    fn record_dropped_burst(&mut self) {
        self.dropped_bursts = self.dropped_bursts.saturating_add(1);
        if self.state == QueueState::Polled
            && let Some(rest) = skipped_polls(self.dropped_bursts)
        {
            self.state = QueueState::BackedOff(rest);
        }
    }

    /// Records a skipped poll, of which `left` remained before.
    #[cold]
    pub(super) fn record_skip(&mut self, left: u8) {
        self.state = if left > 1 { QueueState::BackedOff(left - 1) } else { QueueState::Polled };
    }
}

/// Number of polls to skip after this many dropped bursts in a row.
fn skipped_polls(dropped_bursts: u8) -> Option<u8> {
    let further = u32::from(dropped_bursts.checked_sub(MIN_DROPPED_BURSTS)?);
    Some((2u8.checked_shl(further).filter(|&every| every != 0).unwrap_or(MAX_BACKOFF)).min(MAX_BACKOFF) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_bursts_lengthen_the_interval_up_to_sixteen_polls() {
        let all: Vec<_> = (0..=u8::MAX).map(skipped_polls).collect();
        assert_eq!(all[..9], [None, None, None, None, Some(1), Some(3), Some(7), Some(15), Some(15)]);
        assert!(all[8..].iter().all(|&left| left == Some(MAX_BACKOFF - 1)));
    }
}
