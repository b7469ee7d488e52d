//! The process's table of file descriptors.

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};

/// Descriptors of some thousand ports, with what is opened for a moment. The table takes 8 bytes for each.
const COUNT: u64 = 1 << 14;

/// Grows the table of file descriptors as far as the process may need it. For the start, while there is one thread.
///
/// The kernel doubles a table that is full. Where several threads share it, it waits each time until no thread can read the
/// former one (`expand_fdtable` calls `synchronize_rcu`): 10 to 30 ms in which no thread opens a file.
pub fn reserve_descriptors() {
    let count = getrlimit(Resource::Nofile).current.map_or(COUNT, |limit| limit.min(COUNT));
    let Some(last) = count.checked_sub(1).and_then(|last| i32::try_from(last).ok()) else { return };
    // Without it the table grows while ports open.
    let _ = eventfd(0, EventfdFlags::CLOEXEC).and_then(|file| fcntl_dupfd_cloexec(&file, last));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Size of the table: the kernel shows it.
    fn size() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        line.trim().parse().unwrap()
    }

    #[test]
    fn the_table_has_room_for_all_descriptors_and_keeps_none() {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        reserve_descriptors();
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(COUNT);
        assert!(size() >= limit.min(COUNT), "{} of {limit}", size());
        // other tests may open files beside
        assert!(open() < before + 100);
    }
}
