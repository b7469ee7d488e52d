//! Offloads that an open device accepts for transmit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::OffloadSet;

/// The offload set of an open device. The transmitting worker reads it for each frame that needs offloads; control
/// changes it when the netdev changes ([`Properties::offloads`](super::properties::Properties::offloads)). A change
/// applies from the next frame on, without reopening the device.
#[derive(Debug, Clone)]
pub struct Egress(Arc<AtomicU64>);

impl Egress {
    /// Creates it with an initial set.
    pub fn new(set: OffloadSet) -> Egress {
        Egress(Arc::new(AtomicU64::new(set.to_word())))
    }

    /// Current offload set.
    #[inline(always)]
    pub fn get(&self) -> OffloadSet {
        // Relaxed: no other memory depends on it.
        OffloadSet::from_word(self.0.load(Ordering::Relaxed))
    }

    /// Replaces the offload set.
    pub fn set(&self, set: OffloadSet) {
        self.0.store(set.to_word(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_handles_of_a_device_see_a_change() {
        let (ours, theirs) = {
            let egress = Egress::new(OffloadSet::ALL);
            (egress.clone(), egress)
        };
        assert_eq!(theirs.get(), OffloadSet::ALL);
        ours.set(OffloadSet::new(OffloadSet::CSUM, 0, 0));
        assert!(theirs.get().has(OffloadSet::CSUM) && !theirs.get().has(OffloadSet::TSO4));
    }
}
