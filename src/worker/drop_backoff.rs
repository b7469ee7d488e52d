//! A gate that brings nothing but frames which die is read less often, so that whoever sends them costs the others
//! little: its frames wait with its device, or are lost there, which is what would become of them anyhow.
//!
//! After [`MIN_DROPPED_BURSTS`] full bursts without a survivor it is read at every second breath, and with each further one at
//! every fourth, eighth and [`MAX_BACKOFF`]th at most. One burst that is not full, or of which a frame lives, and it
//! is read at each breath again.

use super::queues::{QueueState, RxQueue};

/// Full bursts in a row without a survivor after which a gate is futile.
const MIN_DROPPED_BURSTS: u8 = 4;

/// A gate is read once in this many breaths at least: a power of two.
const MAX_BACKOFF: u8 = 16;

impl RxQueue {
    /// Notes of a burst whether it was full and nothing of it lived.
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

    /// A breath has passed in which it was not read, and `left` were to.
    #[cold]
    pub(super) fn record_skip(&mut self, left: u8) {
        self.state = if left > 1 { QueueState::BackedOff(left - 1) } else { QueueState::Polled };
    }
}

/// How many breaths are left out after so many futile bursts in a row, if any.
fn skipped_polls(dropped_bursts: u8) -> Option<u8> {
    let further = u32::from(dropped_bursts.checked_sub(MIN_DROPPED_BURSTS)?);
    Some((2u8.checked_shl(further).filter(|&every| every != 0).unwrap_or(MAX_BACKOFF)).min(MAX_BACKOFF) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_is_in_vain_the_less_it_is_read_and_never_less_than_once_in_sixteen_breaths() {
        let all: Vec<_> = (0..=u8::MAX).map(skipped_polls).collect();
        assert_eq!(all[..9], [None, None, None, None, Some(1), Some(3), Some(7), Some(15), Some(15)]);
        assert!(all[8..].iter().all(|&left| left == Some(MAX_BACKOFF - 1)));
    }
}
