//! A hint to the processor, as a safe function.

/// Starts to fetch the cache line at which `thing` begins, and does not wait for it.
#[inline(always)]
pub fn prefetch<T: ?Sized>(thing: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that a program can see, and a reference is a valid address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(thing).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = thing;
}
