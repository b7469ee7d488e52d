//! A BPF array map, mapped into this process and shared with programs.

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

/// Entries of `WORDS` words of 64 bits each, numbered from 0 on and all zero at first. Programs find them by
/// number; here they are read and written without a system call.
#[derive(Debug)]
pub struct SharedArray<const WORDS: usize> {
    fd: OwnedFd,
    base: NonNull<[AtomicU64; WORDS]>,
    entries: u32,
    /// Bytes that are mapped; the kernel makes whole pages of them.
    len: usize,
}

// SAFETY: a SharedArray is a descriptor and memory that is mapped as long as it lives; nothing in it belongs
// to a thread.
unsafe impl<const WORDS: usize> Send for SharedArray<WORDS> {}
// SAFETY: all that one gets through a shared one are atomic words.
unsafe impl<const WORDS: usize> Sync for SharedArray<WORDS> {}

impl<const WORDS: usize> SharedArray<WORDS> {
    /// An array of so many entries.
    ///
    /// Needs the same capabilities as a program. EINVAL: without entries, or with empty ones.
    pub fn new(entries: u32) -> io::Result<SharedArray<WORDS>> {
        let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let value_size = u32::try_from(size_of::<[AtomicU64; WORDS]>()).map_err(too_large)?;
        let fd = map::create(TYPE_ARRAY, value_size, entries, MMAPABLE)?;
        let len = usize::try_from(u64::from(value_size) * u64::from(entries)).map_err(too_large)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a mapping at an address of the kernel's choosing touches no memory that anyone holds.
        let base = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, &fd, 0) }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("the kernel mapped it at address zero"))?;
        Ok(SharedArray { fd, base, entries, len })
    }

    /// The entry of this number. Programs may change its words at any moment.
    #[inline]
    pub fn entry(&self, number: u32) -> Option<&[AtomicU64; WORDS]> {
        if number >= self.entries {
            return None;
        }
        // SAFETY: `new` has mapped all entries one behind the other, which the kernel does not move and `drop`
        // alone unmaps, and this one is among them.
        let entry = unsafe { self.base.add(number as usize) };
        // SAFETY: it is mapped as long as `self` lives, aligned as a page and whole words make it, and written by
        // nobody but by atomic words.
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
        // SAFETY: base and len are what `new` has mapped, and every entry that was lent has come back.
        let done = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
        debug_assert!(done.is_ok(), "unmapping our own mapping cannot fail");
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
        // more than a page of them
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
