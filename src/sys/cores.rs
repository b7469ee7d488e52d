//! CPU affinity: cores allowed for this process, and pinning of threads.

use core_affinity::CoreId;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Core numbers are less than this.
pub const MAX_CORES: usize = CpuSet::MAX_CPU;

/// Cores allowed for this thread, ascending.
pub fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..MAX_CORES).filter(|&core| set.is_set(core)).collect()
}

/// Pins this thread to `core`, which may also be one isolated at boot that is not in [`allowed`]. `false` if the
/// process cannot use the core.
pub fn pin(core: usize) -> bool {
    core < MAX_CORES && core_affinity::set_for_current(CoreId { id: core })
}

/// Excludes `cores` from the affinity of this thread and of threads that it starts later, unless no core remains.
pub fn avoid(cores: &[usize]) {
    let mut others = CpuSet::new();
    for core in allowed().into_iter().filter(|core| !cores.contains(core)) {
        others.set(core);
    }
    if others.count() > 0 {
        // Best effort: a failure only costs performance.
        let _ = sched_setaffinity(None, &others);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_runs_on_its_core() {
        std::thread::spawn(|| {
            let core = *allowed().last().expect("this thread runs on a core");
            assert!(pin(core));
            assert_eq!(allowed(), [core]);
            avoid(&[core]);
            assert_eq!(allowed(), [core], "there is only one core");
            assert!(!pin(MAX_CORES) && !pin(usize::MAX));
        })
        .join()
        .unwrap();
    }
}
