//! BPF array maps, mapped into this process and shared with programs.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::map;

/// BPF_MAP_TYPE_ARRAY
const TYPE_ARRAY: u32 = 2;
/// BPF_F_MMAPABLE
const MMAPABLE: u32 = 1 << 10;

/// An array of `WORDS` 64-bit words per entry, zeroed. Programs access entries by index; this process reads and writes
/// them without system calls.
#[derive(Debug)]
pub struct SharedArray<const WORDS: usize> {
    fd: OwnedFd,
    base: NonNull<[AtomicU64; WORDS]>,
    entries: u32,
    /// Length of the mapping in bytes; the kernel rounds it up to pages.
    len: usize,
}

// SAFETY: a SharedArray is a descriptor and a mapping that lives as long, without thread affinity.
unsafe impl<const WORDS: usize> Send for SharedArray<WORDS> {}
// SAFETY: a shared one gives access to atomic words only.
unsafe impl<const WORDS: usize> Sync for SharedArray<WORDS> {}

impl<const WORDS: usize> SharedArray<WORDS> {
    /// Creates an array of `entries` entries.
    ///
    /// Needs the same capabilities as a program. EINVAL: no entries, or `WORDS` is 0.
    pub fn new(entries: u32) -> io::Result<SharedArray<WORDS>> {
        let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let value_size = u32::try_from(size_of::<[AtomicU64; WORDS]>()).map_err(too_large)?;
        let fd = map::create(TYPE_ARRAY, value_size, entries, MMAPABLE)?;
        let len = usize::try_from(u64::from(value_size) * u64::from(entries)).map_err(too_large)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a mapping at an address that the kernel chooses overlaps no other memory.
        let base = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, &fd, 0) }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("the kernel mapped it at address zero"))?;
        Ok(SharedArray { fd, base, entries, len })
    }

    /// Entry `number`; `None` beyond the end. Programs may change its words at any time.
    #[inline]
    pub fn entry(&self, number: u32) -> Option<&[AtomicU64; WORDS]> {
        if number >= self.entries {
            return None;
        }
        // SAFETY: `new` maps all entries contiguously until `drop`, and `number` is less than their count.
        let entry = unsafe { self.base.add(number as usize) };
        // SAFETY: mapped as long as `self` lives; page-aligned plus whole words; all access is atomic.
        Some(unsafe { entry.as_ref() })
    }
}

impl<const WORDS: usize> AsFd for SharedArray<WORDS> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<const WORDS: usize> Drop for SharedArray<WORDS> {
    fn drop(&mut self) {
        // SAFETY: base and len are those that `new` mapped; references into it borrow `self`.
        // Fails if the kernel has no memory to split a mapping that it has merged with its neighbour: then this stays
        // mapped.
        let _ = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn every_entry_is_zero_at_first_and_has_words_of_its_own() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: needs root, to make maps");
        }
        // More than a page.
        let array = SharedArray::<3>::new(400).unwrap();
        let words = |array: &SharedArray<3>| -> Vec<u64> {
            let all = (0..400).flat_map(|number| array.entry(number).unwrap());
            all.map(|word| word.load(Ordering::Relaxed)).collect()
        };
        assert_eq!(words(&array), [0; 1200]);
        for (value, word) in (1..).zip((0..400).flat_map(|number| array.entry(number).unwrap())) {
            word.store(value, Ordering::Relaxed);
        }
        assert_eq!(words(&array), (1..=1200).collect::<Vec<_>>());
        assert!(array.entry(400).is_none() && array.entry(u32::MAX).is_none());
        assert_eq!(SharedArray::<3>::new(0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(SharedArray::<0>::new(1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
