//! Anonymous memory mappings, on huge pages where available.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes of a huge page on the machines we run on.
const HUGE: usize = 2 << 20;

/// What backs a [`Mapping`].
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

// SAFETY: a Mapping is an owned range of plain memory; nothing in it belongs to a thread.
unsafe impl Send for Mapping {}
// SAFETY: through a shared Mapping one gets only its address and its length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `len` zeroed bytes. Memory is taken page by page as it is touched, except
    /// for reserved huge pages, which are set aside here or not used at all.
    pub fn new(len: usize) -> io::Result<Mapping> {
        let len = len.next_multiple_of(HUGE);
        if let Ok(base) = map(len, MapFlags::PRIVATE | MapFlags::HUGETLB) {
            return Ok(Mapping { base, len, pages: Pages::Huge });
        }
        let base = map(len, MapFlags::PRIVATE | MapFlags::NORESERVE)?;
        Ok(Mapping { base, len, pages: Pages::Ordinary })
    }

    /// The first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes that are mapped.
    #[allow(clippy::len_without_is_empty)] // a mapping is never empty
    pub fn len(&self) -> usize {
        self.len
    }

    /// What backs it.
    pub fn pages(&self) -> Pages {
        self.pages
    }
}

fn map(len: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    // SAFETY: an anonymous mapping at an address of the kernel's choosing touches no memory that
    // anyone holds.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("the kernel mapped memory at address zero"))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are what `map` was given, and whoever lends out parts of the
        // mapping keeps it alive at least as long.
        let done = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(done.is_ok(), "unmapping our own mapping cannot fail");
    }
}

/// Asks the kernel to back the spare capacity of a large vector with huge pages. A table that is
/// visited at random otherwise pays a page walk for each visit. A kernel that cannot, does not.
pub fn prefer_huge_pages<T>(table: &mut Vec<T>) {
    let start = table.as_mut_ptr().addr();
    let end = start + table.capacity() * size_of::<T>();
    // only whole huge pages that lie within the vector
    let (start, end) = (start.next_multiple_of(HUGE), end / HUGE * HUGE);
    if start >= end {
        return;
    }
    let base = table.as_mut_ptr().with_addr(start);
    // SAFETY: the range lies within the allocation of `table`, and this advice changes neither
    // its contents nor its validity.
    let _ = unsafe { madvise(base.cast(), end - start, Advice::LinuxHugepage) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_zeroed_and_rounded_up() {
        let mapping = Mapping::new(5000).unwrap();
        assert_eq!(mapping.len(), HUGE);
        // SAFETY: the byte is within the mapping, which is alive and ours alone.
        assert_eq!(unsafe { mapping.base().as_ptr().read() }, 0);
    }

    #[test]
    fn advice_leaves_contents_alone() {
        let mut table = vec![7u64; 1 << 20];
        prefer_huge_pages(&mut table);
        assert!(table.iter().all(|&x| x == 7));
    }
}
