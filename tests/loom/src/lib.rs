//! Models of the code that several threads run, explored by loom: the interleavings, and every value that the memory model
//! allows a load to return.
//!
//! The files of the product are compiled here as they are, with loom's atomics for `crate::sync` and simple stand-ins
//! for the rest. Each function named after a property is one model; `tests/models.rs` runs them all.
#![cfg(not(test))] // the files' own tests are the product's
#![allow(dead_code, clippy::unwrap_used)]

extern crate self as rtrb; // `ring` stands in for it

mod cell;
pub mod frame;
mod ring;
pub mod switch;
pub mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use ring::{Consumer, Producer, PushError, RingBuffer};

mod sync {
    pub mod atomic {
        pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

        /// Loom does not know that nothing comes between a swap and the store whose value it has read: a later load may
        /// return the swapped value although the swapping thread has seen a newer store. It orders swaps among each other;
        /// therefore a store here is one.
        #[derive(Debug)]
        pub struct AtomicBool(loom::sync::atomic::AtomicBool);

        impl AtomicBool {
            pub fn new(value: bool) -> AtomicBool {
                AtomicBool(loom::sync::atomic::AtomicBool::new(value))
            }

            pub fn load(&self, order: Ordering) -> bool {
                self.0.load(order)
            }

            pub fn store(&self, value: bool, order: Ordering) {
                self.0.swap(value, order);
            }

            pub fn swap(&self, value: bool, order: Ordering) -> bool {
                self.0.swap(value, order)
            }
        }
    }
}

mod time {
    #[derive(Debug, Clone, Copy)]
    pub struct MonoTime(u64);

    impl MonoTime {
        pub const fn from_nanos(nanos: u64) -> MonoTime {
            MonoTime(nanos)
        }

        pub const fn nanos(self) -> u64 {
            self.0
        }
    }
}

mod wire {
    #[derive(Debug, Clone, Copy)]
    pub struct Priority(pub u8);
}

mod sys {
    pub mod event {
        use std::io;
        use std::os::fd::{AsFd, BorrowedFd};

        use loom::sync::{Condvar, Mutex};

        /// An eventfd together with the epoll set that watches it.
        #[derive(Debug)]
        pub struct Signal(Mutex<bool>, Condvar);

        impl Signal {
            pub fn new() -> io::Result<Signal> {
                Ok(Signal(Mutex::new(false), Condvar::new()))
            }

            pub fn raise(&self) {
                *self.0.lock().unwrap() = true;
                self.1.notify_one();
            }

            /// Waits until it is raised, and clears it.
            pub fn clear(&self) {
                let mut raised = self.0.lock().unwrap();
                while !*raised {
                    raised = self.1.wait(raised).unwrap();
                }
                *raised = false;
            }
        }

        impl AsFd for Signal {
            fn as_fd(&self) -> BorrowedFd<'_> {
                unreachable!("`clear` waits without a descriptor")
            }
        }
    }

    pub mod memory {
        use std::io;
        use std::ptr::NonNull;

        #[derive(Debug)]
        pub enum Pages {
            Ordinary,
        }

        /// No memory: models check who holds a slot, by a cell per slot.
        #[derive(Debug)]
        pub struct Mapping;

        impl Mapping {
            pub fn new(_: usize) -> io::Result<Mapping> {
                Ok(Mapping)
            }

            pub fn base(&self) -> NonNull<u8> {
                NonNull::dangling()
            }

            pub fn pages(&self) -> Pages {
                Pages::Ordinary
            }
        }
    }

    pub mod xsk {
        use std::io;

        pub const CHUNK: u32 = 4096;

        pub struct Umem;

        impl Umem {
            pub fn register(_: &super::memory::Mapping, _: usize) -> io::Result<Umem> {
                Ok(Umem)
            }
        }
    }
}

/// Preemptions per execution, unless `LOOM_MAX_PREEMPTIONS` is set.
const PREEMPTIONS: usize = 3;

/// Runs a model in every interleaving of up to so many preemptions. Returns the number of interleavings.
pub fn explore(model: fn()) -> usize {
    let executions = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        model();
    });
    executions.load(Ordering::Relaxed)
}
