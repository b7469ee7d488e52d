//! Pool of frame slots.

#[path = "../../../src/frame/pool.rs"]
mod pool;

use loom::sync::Arc;
use loom::thread;

use crate::cell::Cell;
use pool::{NONE, Pool};

/// A frame of the same size as the product's.
#[derive(Debug)]
pub struct Frame(pub [u64; 4]);

/// By slot, a cell that only its holder accesses: the model fails at a second one.
struct Slots(Box<[Cell<u32>]>);

impl Slots {
    fn write(&self, slot: u32) {
        self.0[slot as usize].with_mut(|cell| *cell += 1);
    }
}

/// A pool whose slots are in chunks of their own.
fn pool(slots: u32) -> (&'static Pool, Arc<Slots>) {
    let pool = Pool::new(slots).unwrap();
    let chain = pool.pop().unwrap();
    let mut slot = chain;
    while slot != NONE {
        let next = pool.after(slot);
        pool.link(slot, NONE);
        pool.push(slot);
        slot = next;
    }
    (pool, Arc::new(Slots((0..slots).map(|_| Cell::new(0)).collect())))
}

/// While one thread pops a chunk, another pops it and the one below and pushes the first again: the tag of the top
/// detects it.
pub fn a_slot_has_one_holder() {
    let (pool, slots) = pool(3);
    let other = {
        let slots = slots.clone();
        thread::spawn(move || {
            let first = pool.pop().unwrap();
            slots.write(first);
            let second = pool.pop();
            pool.push(first);
            if let Some(second) = second {
                slots.write(second);
            }
            u32::from(second.is_some())
        })
    };
    let mine = pool.pop();
    if let Some(slot) = mine {
        slots.write(slot);
    }
    let again = pool.pop();
    if let Some(slot) = again {
        slots.write(slot);
    }
    let held = u32::from(mine.is_some()) + u32::from(again.is_some()) + other.join().unwrap();
    assert_eq!(pool.free() + held, 3, "no slot is lost");
}

/// Three threads take the two slots of a pool and return them: nobody waits, and both are there in the end.
pub fn every_slot_is_returned() {
    let (pool, slots) = pool(2);
    let borrow = move |slots: &Slots| {
        if let Some(slot) = pool.pop() {
            slots.write(slot);
            pool.push(slot);
        }
    };
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let slots = slots.clone();
            thread::spawn(move || borrow(&slots))
        })
        .collect();
    borrow(&slots);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(pool.free(), 2);
}

/// A thread links slots to a chain, writes their extents and pushes it, through one other thread: who pops it sees the
/// chain, the extents and the bytes.
pub fn a_chain_arrives_whole() {
    let (pool, slots) = pool(3);
    let give = {
        let slots = slots.clone();
        thread::spawn(move || {
            let (first, second) = (pool.pop().unwrap(), pool.pop().unwrap());
            slots.write(first);
            slots.write(second);
            pool.link(first, second);
            pool.set_extent(second, 7, 9);
            pool.push(first);
        })
    };
    if let Some(chain) = pool.pop() {
        let second = pool.after(chain);
        slots.write(chain);
        if second != NONE {
            slots.write(second);
            assert_eq!(pool.extent(second), (7, 9));
            assert_eq!(pool.after(second), NONE);
        }
    }
    give.join().unwrap();
}
