//! CPU affinity: cores that this process may use, and pinning of threads.

use core_affinity::CoreId;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Cores are numbered below this.
pub const MAX_CORES: usize = CpuSet::MAX_CPU;

/// The cores that this thread may use, in order.
pub fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..MAX_CORES).filter(|&core| set.is_set(core)).collect()
}

/// Pins this thread to `core`, which may be one that was set apart at boot and is not among the
/// allowed ones. Whether there is such a core for this process.
pub fn pin(core: usize) -> bool {
    core < MAX_CORES && core_affinity::set_for_current(CoreId { id: core })
}

/// Keeps this thread, and those that it will start, off `cores`, unless there are no others.
pub fn avoid(cores: &[usize]) {
    let mut others = CpuSet::new();
    for core in allowed().into_iter().filter(|core| !cores.contains(core)) {
        others.set(core);
    }
    if others.count() > 0 {
        // What fails here costs a little speed, no more.
        let _ = sched_setaffinity(None, &others);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_goes_where_it_is_pinned() {
        std::thread::spawn(|| {
            let core = *allowed().last().expect("this thread runs somewhere");
            assert!(pin(core));
            assert_eq!(allowed(), [core]);
            avoid(&[core]);
            assert_eq!(allowed(), [core], "there is no other");
            assert!(!pin(MAX_CORES) && !pin(usize::MAX));
        })
        .join()
        .unwrap();
    }
}
