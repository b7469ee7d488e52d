//! How many slots wait in the fill ring of a queue.
//!
//! The kernel goes through all of them in turn. Many keep frames from being lost while the worker stands still for a
//! moment, and few stay in the caches of whoever writes into them. What that takes depends on the frames: as many bytes
//! as wait, and as much time as a wire takes to bring them, come in fewer large ones than small ones.

/// Bytes that wait, as frames come: most of the second-level cache of a core of today.
const BYTES: u64 = 768 << 10;

/// Pieces that are looked at together.
const LOOK: u32 = 1024;

/// Slots that wait for the largest frames.
const LEAST: u32 = 512;

/// How many slots shall wait, for pieces as they have come lately. A piece is what one slot takes.
#[derive(Debug)]
pub(super) struct FillTarget {
    max: u32,
    target: u32,
    /// Since it was last thought about.
    descriptors: u32,
    bytes: u64,
}

impl FillTarget {
    /// At most so many, and so many at first.
    pub(super) fn new(max: u32) -> FillTarget {
        FillTarget { max, target: max, descriptors: 0, bytes: 0 }
    }

    /// How many shall wait.
    #[inline(always)]
    pub(super) fn target(&self) -> u32 {
        self.target
    }

    /// Notes that pieces have come, of so many bytes together.
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
    fn small_frames_get_all_and_large_ones_a_part() {
        assert_eq!((after(2048, 60), after(2048, 384), after(2048, 512)), (2048, 2048, 1536));
        assert_eq!((after(2048, 1514), after(2048, 2048)), (519, 512));
        assert_eq!((after(64, 1514), after(64, 0)), (64, 64), "a small ring has no more");
    }

    proptest! {
        #[test]
        fn there_are_never_too_few_and_never_too_many(
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
