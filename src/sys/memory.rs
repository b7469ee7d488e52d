//! Anonymous memory mappings, on huge pages where available.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Size of a huge page in bytes.
const HUGE: usize = 2 << 20;

/// Kind of pages of a [`Mapping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Reserved huge pages (`vm.nr_hugepages`).
    Huge,
    /// Ordinary pages.
    Ordinary,
}

/// Zeroed private memory, page-aligned; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    pages: Pages,
}

// SAFETY: a Mapping is an owned range of plain memory without thread affinity.
unsafe impl Send for Mapping {}
// SAFETY: a shared Mapping gives access to its address and length only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `len` zeroed bytes. Ordinary pages are allocated on first access; reserved huge pages are
    /// allocated here, or not used at all.
    pub fn new(len: usize) -> io::Result<Mapping> {
        let len = len.next_multiple_of(HUGE);
        if let Ok(base) = map(len, MapFlags::PRIVATE | MapFlags::HUGETLB) {
            return Ok(Mapping { base, len, pages: Pages::Huge });
        }
        let base = map(len, MapFlags::PRIVATE | MapFlags::NORESERVE)?;
        Ok(Mapping { base, len, pages: Pages::Ordinary })
    }

    /// Address of the first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)] // a mapping is never empty
    pub fn len(&self) -> usize {
        self.len
    }

    /// Kind of pages.
    pub fn pages(&self) -> Pages {
        self.pages
    }
}

fn map(len: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    // SAFETY: an anonymous mapping at an address that the kernel chooses overlaps no other memory.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("the kernel mapped memory at address zero"))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of `map`. Users of parts of the mapping keep it alive.
        // Fails if the kernel has no memory to split a mapping that it has merged with its neighbour: then this stays
        // mapped.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Advises the kernel to back the spare capacity of a large vector with huge pages, which saves page walks on random
/// access. Best effort.
pub fn prefer_huge_pages<T>(table: &mut Vec<T>) {
    let start = table.as_mut_ptr().addr();
    let end = start + table.capacity() * size_of::<T>();
    // Only whole huge pages within the vector.
    let (start, end) = (start.next_multiple_of(HUGE), end / HUGE * HUGE);
    if start >= end {
        return;
    }
    let base = table.as_mut_ptr().with_addr(start);
    // SAFETY: the range lies within the allocation of `table`, and the advice changes neither its contents nor its
    // validity.
    let _ = unsafe { madvise(base.cast(), end - start, Advice::LinuxHugepage) };
}

/// Available bytes of this host, and free bytes of its huge pages. `None` if /proc is not mounted.
pub fn available() -> Option<(u64, u64)> {
    parse_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available(meminfo: &str) -> Option<(u64, u64)> {
    let value = |key: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let huge = value("HugePages_Free").zip(value("Hugepagesize")).map_or(0, |(pages, kib)| pages * kib * 1024);
    Some((value("MemAvailable")? * 1024, huge))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_parsed() {
        let table =
            "MemTotal:       4000 kB\nMemAvailable:   1000 kB\nHugePages_Free:       3\nHugepagesize:       2048 kB\n";
        assert_eq!(parse_available(table), Some((1_024_000, 3 << 21)));
        assert_eq!(parse_available("MemAvailable: 1 kB\n"), Some((1024, 0)));
        assert_eq!(parse_available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_mapping_is_zeroed_and_rounded_up() {
        let mapping = Mapping::new(5000).unwrap();
        assert_eq!(mapping.len(), HUGE);
        // SAFETY: the byte is within the live mapping, which only this test uses.
        assert_eq!(unsafe { mapping.base().as_ptr().read() }, 0);
    }

    #[test]
    fn advice_does_not_change_contents() {
        let mut table = vec![7u64; 1 << 20];
        prefer_huge_pages(&mut table);
        assert!(table.iter().all(|&x| x == 7));
    }
}
