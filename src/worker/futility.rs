//! A gate that brings nothing but frames which die is read less often, so that whoever sends them costs the others
//! little: its frames wait with its device, or are lost there, which is what would become of them anyhow.
//!
//! After [`PATIENCE`] full bursts without a survivor it is read at every second breath, and with each further one at
//! every fourth, eighth and [`LONGEST`]th at most. One burst that is not full, or of which a frame lives, and it
//! is read at each breath again.

use super::gate::{Gate, GateState};

/// Full bursts in a row without a survivor after which a gate is futile.
const PATIENCE: u8 = 4;

/// A gate is read once in this many breaths at least: a power of two.
const LONGEST: u8 = 16;

impl Gate {
    /// Notes of a burst whether it was full and nothing of it lived.
    #[inline]
    pub(super) fn was_read(&mut self, in_vain: bool) {
        if in_vain {
            self.was_futile();
        } else {
            self.futile = 0;
        }
    }

    #[cold]
    fn was_futile(&mut self) {
        self.futile = self.futile.saturating_add(1);
        if self.state == GateState::Polled
            && let Some(rest) = left_out(self.futile)
        {
            self.state = GateState::Deferred(rest);
        }
    }

    /// A breath has passed in which it was not read, and `left` were to.
    #[cold]
    pub(super) fn was_passed_by(&mut self, left: u8) {
        self.state = if left > 1 { GateState::Deferred(left - 1) } else { GateState::Polled };
    }
}

/// How many breaths are left out after so many futile bursts in a row, if any.
fn left_out(futile: u8) -> Option<u8> {
    let further = u32::from(futile.checked_sub(PATIENCE)?);
    Some((2u8.checked_shl(further).filter(|&every| every != 0).unwrap_or(LONGEST)).min(LONGEST) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_is_in_vain_the_less_it_is_read_and_never_less_than_once_in_sixteen_breaths() {
        let all: Vec<_> = (0..=u8::MAX).map(left_out).collect();
        assert_eq!(all[..9], [None, None, None, None, Some(1), Some(3), Some(7), Some(15), Some(15)]);
        assert!(all[8..].iter().all(|&left| left == Some(LONGEST - 1)));
    }
}
