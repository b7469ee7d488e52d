//! Assembles received frames from the descriptors of an AF_XDP queue, which are not trusted.

#![allow(clippy::cast_possible_truncation)] // parts of addresses within the UMEM

use std::mem;

use crate::frame::descriptor::Frame;
use crate::frame::pool::{Pool, SLOT};
use crate::frame::{Batch, Magazine};
use crate::sys::xsk::Piece;

/// State of a frame of several descriptors.
#[derive(Debug)]
pub(super) enum Assembly {
    /// The next descriptor begins a frame.
    Idle,
    /// A partially received frame and its last slot.
    Partial(Frame, u32),
    /// A descriptor of the frame was invalid; the others are dropped.
    Discard,
}

/// Slot, start and length of a received descriptor, if queue `number` owns the slot and the slot holds all of it.
#[inline(always)]
pub(super) fn extent_of(pool: &Pool, number: u32, piece: Piece) -> Option<(u32, u16, u16)> {
    let slot = u32::try_from(piece.address / SLOT as u64).ok()?;
    let start = (piece.address % SLOT as u64) as u32;
    let is_valid = pool.owner_table(slot) == number && piece.len <= SLOT as u32 - start;
    is_valid.then_some((slot, start as u16, piece.len as u16))
}

impl Assembly {
    /// Adds a descriptor, whose slot the caller has taken; `None` if it is invalid: then its whole frame is dropped.
    /// Pushes the frame into the batch when complete. Returns whether a frame was lost.
    #[cold]
    pub(super) fn add(
        &mut self,
        pool: &'static Pool,
        extent: Option<(u32, u16, u16)>,
        more: bool,
        batch: &mut Batch,
        magazine: &mut Magazine,
    ) -> bool {
        let is_lost = extent.is_none() && !matches!(self, Assembly::Discard);
        match (extent, &mut *self) {
            (Some((slot, start, len)), Assembly::Idle) => {
                *self = Assembly::Partial(Frame::received(pool, slot, start, len), slot);
            }
            (Some((slot, start, len)), Assembly::Partial(frame, last)) => {
                frame.append(pool, *last, slot, start, len);
                *last = slot;
            }
            (Some((slot, ..)), Assembly::Discard) => magazine.push(slot),
            (None, _) => {
                if let Assembly::Partial(frame, _) = mem::replace(self, Assembly::Discard) {
                    magazine.recycle(frame);
                }
            }
        }
        if !more && let Assembly::Partial(frame, _) = mem::replace(self, Assembly::Idle) {
            batch.push(frame);
        }
        is_lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::pool::OWNED_BY_US;

    const QUEUE: u32 = 7;

    /// Takes a slot out of the pool and gives it to the queue.
    fn give_to_kernel(pool: &Pool, magazine: &mut Magazine) -> u32 {
        let slot = magazine.pop().unwrap();
        pool.set_lent(slot, QUEUE);
        slot
    }

    #[test]
    fn a_descriptor_outside_the_memory_or_its_slot_is_refused() {
        let pool = Pool::new(16).unwrap();
        let mut magazine = Magazine::new(pool);
        let slot = give_to_kernel(pool, &mut magazine);
        let at = |address: u64, len: u32| extent_of(pool, QUEUE, Piece { address, len, more: false });
        let base = u64::from(slot) * SLOT as u64;
        assert_eq!(at(base + 256, 1514), Some((slot, 256, 1514)));
        assert_eq!(at(base + 256, SLOT as u32 - 256), Some((slot, 256, SLOT as u16 - 256)));
        for len in [SLOT as u32 - 255, 1 << 16, u32::MAX - 255, u32::MAX] {
            assert_eq!(at(base + 256, len), None, "{len} bytes");
        }
        // Beyond the end; aliases of the slot in 32 bits; and a slot that the queue does not own.
        let other = u64::from(magazine.pop().unwrap());
        for address in [16 * SLOT as u64, (SLOT as u64) << 32 | base, u64::MAX, other * SLOT as u64] {
            assert_eq!(at(address, 60), None, "{address:#x}");
        }
        pool.set_lent(slot, OWNED_BY_US);
        magazine.push(slot);
        magazine.push(other as u32);
    }

    /// Wherever the invalid descriptor is in its frame, the frame is lost as a whole, and no other.
    #[test]
    fn an_invalid_descriptor_costs_its_whole_frame_and_no_other() {
        let pool = Pool::new(16).unwrap();
        for (invalid, before) in (0..3).flat_map(|invalid| [(invalid, 0), (invalid, 1)]) {
            let mut magazine = Magazine::new(pool);
            let mut batch = Batch::new();
            let (mut assembly, mut lost) = (Assembly::Idle, 0);
            let mut add = |lens: [Option<u16>; 3], magazine: &mut Magazine, batch: &mut Batch| {
                for (index, len) in lens.into_iter().enumerate() {
                    let extent = len.map(|len| (magazine.pop().unwrap(), 0, len));
                    lost += u64::from(assembly.add(pool, extent, index < 2, batch, magazine));
                }
            };
            let whole = [Some(4096), Some(4096), Some(100)];
            (0..before).for_each(|_| add(whole, &mut magazine, &mut batch));
            let mut broken = whole;
            broken[invalid] = None;
            add(broken, &mut magazine, &mut batch);
            add([None; 3], &mut magazine, &mut batch);
            add(whole, &mut magazine, &mut batch);
            let lens: Vec<u32> = (0..batch.len()).map(|index| batch.frame(index).len()).collect();
            assert_eq!((lens, lost), (vec![8292; before + 1], 2), "descriptor {invalid}");
            assert!(matches!(assembly, Assembly::Idle));
            batch.clear(&mut magazine);
            drop(magazine);
            assert_eq!(pool.free(), 16, "every slot is free again");
        }
    }
}
