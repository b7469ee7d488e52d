//! A value that one thread at a time may access, without `unsafe`: a model fails at an access that is not ordered after
//! the one before it.

use std::sync::Mutex;

use loom::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
pub struct Cell<T> {
    /// Number of accesses, without any ordering: loom lets a thread read an old number unless something else orders it
    /// after the last access.
    seen: AtomicUsize,
    /// The true number, and the value. Loom does not know of this lock, which nobody holds while loom changes threads.
    value: Mutex<(usize, T)>,
}

impl<T> Cell<T> {
    pub fn new(value: T) -> Cell<T> {
        Cell { seen: AtomicUsize::new(0), value: Mutex::new((0, value)) }
    }

    pub fn with_mut<R>(&self, access: impl FnOnce(&mut T) -> R) -> R {
        let seen = self.seen.load(Ordering::Relaxed);
        let result = {
            let (accesses, value) = &mut *self.value.lock().unwrap();
            assert_eq!(seen, *accesses, "an access is not ordered after the one before");
            *accesses += 1;
            access(value)
        };
        self.seen.store(seen + 1, Ordering::Relaxed);
        result
    }
}
