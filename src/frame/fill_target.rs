//! Target number of slots in the fill ring of an AF_XDP queue.
//!
//! The kernel cycles through all of them. Many slots prevent loss while the worker stalls; few slots stay in the
//! sender's caches. The target depends on the frame size: the same number of bytes, and the same time on a wire,
//! takes fewer large frames than small ones.

/// Target in bytes of received frames: most of a current core's L2 cache.
const BYTES: u64 = 768 << 10;

/// Descriptors per adaptation step.
const LOOK: u32 = 1024;

/// Minimum number of slots, for the largest frames.
const LEAST: u32 = 512;

/// Target number of slots, adapted to recently received descriptors. A descriptor is one slot.
#[derive(Debug)]
pub(super) struct FillTarget {
    max: u32,
    target: u32,
    /// Descriptors since the last adaptation.
    descriptors: u32,
    bytes: u64,
}

impl FillTarget {
    /// Starts at the maximum, `max`.
    pub(super) fn new(max: u32) -> FillTarget {
        FillTarget { max, target: max, descriptors: 0, bytes: 0 }
    }

    /// Current target in slots.
    #[inline(always)]
    pub(super) fn target(&self) -> u32 {
        self.target
    }

    /// Records received descriptors and their total bytes.
    #[inline(always)]
    pub(super) fn record(&mut self, descriptors: u32, bytes: u64) {
        self.descriptors += descriptors;
        self.bytes += bytes;
        if self.descriptors >= LOOK {
            self.adjust();
        }
    }

    #[cold]
    fn adjust(&mut self) {
        let wanted = BYTES * u64::from(self.descriptors) / self.bytes.max(1);
        let least = LEAST.min(self.max);
        self.target = u32::try_from(wanted).unwrap_or(u32::MAX).clamp(least, self.max);
        (self.descriptors, self.bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn after(most: u32, len: u64) -> u32 {
        let mut fill_target = FillTarget::new(most);
        (0..LOOK).for_each(|_| fill_target.record(1, len));
        fill_target.target()
    }

    #[test]
    fn small_frames_get_all_slots_and_large_ones_a_part() {
        assert_eq!((after(2048, 60), after(2048, 384), after(2048, 512)), (2048, 2048, 1536));
        assert_eq!((after(2048, 1514), after(2048, 2048)), (519, 512));
        assert_eq!((after(64, 1514), after(64, 0)), (64, 64), "a small ring has no more");
    }

    proptest! {
        #[test]
        fn the_target_is_within_bounds(
            most in 1u32..4096, bursts in vec((1u32..64, 0u64..4096), 0..400)
        ) {
            let mut fill_target = FillTarget::new(most);
            for (descriptors, len) in bursts {
                fill_target.record(descriptors, u64::from(descriptors) * len);
                prop_assert!((LEAST.min(most)..=most).contains(&fill_target.target()));
            }
        }
    }
}
