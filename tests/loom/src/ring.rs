//! Stand-in for `rtrb`: the same operations with the same memory order, on loom's atomics.
//!
//! One slot of it stands for 512 of a real ring, so that models meet full rings.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};

use crate::cell::Cell;

/// Slots of a real ring that one slot here stands for.
const SCALE: usize = 512;

#[derive(Debug)]
pub struct RingBuffer<T> {
    /// Only the producer accesses a slot before `tail` says that it is filled, only the consumer until `head` says that
    /// it is empty.
    slots: Box<[Cell<Option<T>>]>,
    /// Number of values popped and pushed so far.
    head: AtomicUsize,
    tail: AtomicUsize,
}

#[derive(Debug)]
pub struct Producer<T>(Arc<RingBuffer<T>>);

#[derive(Debug)]
pub struct Consumer<T>(Arc<RingBuffer<T>>);

#[derive(Debug)]
pub enum PushError<T> {
    Full(T),
}

impl<T> RingBuffer<T> {
    #[allow(clippy::new_ret_no_self)] // as the original
    pub fn new(capacity: usize) -> (Producer<T>, Consumer<T>) {
        let slots = (0..capacity / SCALE).map(|_| Cell::new(None)).collect();
        let ring = Arc::new(RingBuffer { slots, head: AtomicUsize::new(0), tail: AtomicUsize::new(0) });
        (Producer(Arc::clone(&ring)), Consumer(ring))
    }

    fn slot(&self, number: usize) -> &Cell<Option<T>> {
        &self.slots[number % self.slots.len()]
    }
}

impl<T> Producer<T> {
    /// Free slots.
    pub fn slots(&self) -> usize {
        let used = self.0.tail.load(Ordering::Relaxed) - self.0.head.load(Ordering::Acquire);
        (self.0.slots.len() - used) * SCALE
    }

    pub fn push(&mut self, value: T) -> Result<(), PushError<T>> {
        if self.slots() == 0 {
            return Err(PushError::Full(value));
        }
        let tail = self.0.tail.load(Ordering::Relaxed);
        self.0.slot(tail).with_mut(|slot| *slot = Some(value));
        self.0.tail.store(tail + 1, Ordering::Release);
        Ok(())
    }
}

impl<T> Consumer<T> {
    pub fn is_empty(&self) -> bool {
        self.0.tail.load(Ordering::Acquire) == self.0.head.load(Ordering::Relaxed)
    }

    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let head = self.0.head.load(Ordering::Relaxed);
        let value = self.0.slot(head).with_mut(Option::take);
        self.0.head.store(head + 1, Ordering::Release);
        value
    }
}
