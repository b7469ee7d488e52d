//! A cable between two ends within the process: each end is a [`Device`], and whoever holds the
//! other one sends and receives on it by hand.
//!
//! Frames are copied in and copied out again, as a kernel device does it, through one ring of
//! bytes each way. A record is 16 bytes (length of the frame, offload header) and the frame.
//! A cable has no file descriptor; a worker that holds one keeps polling.

use std::io;
use std::os::fd::BorrowedFd;

use rtrb::{Consumer, Producer, RingBuffer};

use super::{Abilities, Device};
use crate::frame::{Batch, Cache, Fate, Lane, Sent};
use crate::wire::Offload;

const RECORD: usize = 4 + Offload::LEN;

/// How an end hands over what it receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// In slots of the pool, which the frames own: as AF_XDP does.
    Owned,
    /// In the receive buffers of the batch, lent for the burst: as a tap does.
    Lent,
}

/// One end of a cable.
#[derive(Debug)]
pub struct End {
    outward: Producer<u8>,
    inward: Consumer<u8>,
    memory: Memory,
    abilities: Abilities,
}

/// A cable whose rings hold `bytes` bytes each way, records included. Both ends take offload
/// headers, and hand frames over in slots of their own.
pub fn cable(bytes: usize) -> (End, End) {
    let (there_out, here_in) = RingBuffer::new(bytes);
    let (here_out, there_in) = RingBuffer::new(bytes);
    let end = |outward, inward| End { outward, inward, memory: Memory::Owned, abilities: Abilities { offloads: true } };
    (end(here_out, here_in), end(there_out, there_in))
}

impl End {
    /// The same end, handing over frames in this kind of memory.
    pub fn with_memory(self, memory: Memory) -> End {
        End { memory, ..self }
    }

    /// The same end, with or without taking offload headers.
    pub fn with_offloads(self, offloads: bool) -> End {
        End { abilities: Abilities { offloads }, ..self }
    }

    /// Sends one frame by hand. Whether there was room for it.
    pub fn send(&mut self, frame: &[u8], offload: Offload) -> bool {
        self.put([frame].into_iter(), frame.len(), offload)
    }

    /// Takes the next frame that has arrived by hand.
    pub fn take(&mut self) -> Option<(Vec<u8>, Offload)> {
        let mut record = [0; RECORD];
        self.inward.pop_entire_slice(&mut record).ok()?;
        let (len, offload) = read_record(&record);
        let mut frame = vec![0; len];
        self.inward.pop_entire_slice(&mut frame).ok()?;
        Some((frame, offload))
    }

    /// Forgets everything that has arrived. How many bytes that was, records included.
    pub fn discard(&mut self) -> usize {
        let waiting = self.inward.slots();
        if let Ok(chunk) = self.inward.read_chunk(waiting) {
            chunk.commit_all();
        }
        waiting
    }

    #[inline]
    fn put<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>, len: usize, offload: Offload) -> bool {
        if self.outward.slots() < RECORD + len {
            return false;
        }
        let mut record = [0; RECORD];
        #[allow(clippy::cast_possible_truncation)] // the ring is shorter than 4 GiB
        record[..4].copy_from_slice(&(len as u32).to_ne_bytes());
        record[4..].copy_from_slice(&offload.write());
        // There is room for all of it, so none of these fails; the reader waits for the whole.
        let mut done = self.outward.push_entire_slice(&record).is_ok();
        for part in parts {
            done &= self.outward.push_entire_slice(part).is_ok();
        }
        done
    }
}

fn read_record(record: &[u8; RECORD]) -> (usize, Offload) {
    let (len, offload) = record.split_first_chunk().expect("a record begins with a length");
    let offload = offload.first_chunk().expect("and goes on with an offload header");
    (u32::from_ne_bytes(*len) as usize, Offload::read(offload))
}

/// The two runs of bytes in which a ring shows its contents, read as one.
struct Runs<'a> {
    first: &'a [u8],
    second: &'a [u8],
}

impl<'a> Runs<'a> {
    fn len(&self) -> usize {
        self.first.len() + self.second.len()
    }

    /// Fills `out` from the front. There must be that much.
    #[inline]
    fn copy(&mut self, out: &mut [u8]) {
        if let Some((now, rest)) = self.first.split_at_checked(out.len()) {
            out.copy_from_slice(now);
            self.first = rest;
        } else {
            let (a, b) = out.split_at_mut(self.first.len());
            let (now, rest) = self.second.split_at(b.len());
            a.copy_from_slice(self.first);
            b.copy_from_slice(now);
            (self.first, self.second) = (rest, &[]);
        }
    }
}

impl Device for End {
    fn receive(&mut self, batch: &mut Batch, cache: &mut Cache) -> io::Result<()> {
        let waiting = self.inward.slots();
        if waiting == 0 {
            return Ok(());
        }
        let chunk = self.inward.read_chunk(waiting).map_err(io::Error::other)?;
        let (first, second) = chunk.as_slices();
        let mut runs = Runs { first, second };
        let mut done = 0;
        #[allow(clippy::cast_possible_truncation)] // the ring is shorter than 4 GiB
        while !batch.is_full() && runs.len() >= RECORD {
            let mut record = [0; RECORD];
            runs.copy(&mut record);
            let (len, offload) = read_record(&record);
            if runs.len() < len {
                break; // the sender is still at it
            }
            match self.memory {
                Memory::Owned => match cache.build(len as u32, offload, |part| runs.copy(part)) {
                    Some(frame) => batch.push(frame),
                    None => break, // no slots now: it waits in the cable, as in a ring of the kernel
                },
                Memory::Lent => batch.land::<io::Error>(true, |room| {
                    room[..Offload::LEN].copy_from_slice(&offload.write());
                    runs.copy(&mut room[Offload::LEN..Offload::LEN + len]);
                    Ok(Offload::LEN + len)
                })?,
            }
            done += RECORD + len;
        }
        chunk.commit(done);
        Ok(())
    }

    fn transmit(&mut self, lane: &mut Lane, batch: &Batch, cache: &mut Cache) -> Sent {
        lane.send_each(batch, cache, |view| {
            let parts = std::iter::once(view.head).chain(view.tail());
            match self.put(parts, view.frame.len() as usize, *view.frame.offload()) {
                true => Fate::Sent,
                false => Fate::Full,
            }
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cable_is_transparent(lens in proptest::collection::vec(0usize..9300, 1..40), lent: bool) {
            let pool = Pool::new(512).unwrap();
            let mut cache = Cache::new(pool);
            let mut batch = Batch::new();
            let memory = if lent { Memory::Lent } else { Memory::Owned };
            let (end, mut far) = cable(40_000);
            let mut end = end.with_memory(memory);
            let mut lane = Lane::with_capacity(64);
            for (i, &len) in lens.iter().enumerate() {
                let frame: Vec<u8> = (0..len).map(|b| (b + i).to_le_bytes()[0]).collect();
                prop_assert!(far.send(&frame, Offload::NONE));
                end.receive(&mut batch, &mut cache).unwrap();
                prop_assert_eq!(batch.len(), 1);
                prop_assert_eq!(batch.view(0).to_vec(), &frame[..]);
                match batch.take(0) { Some(frame) => lane.push(frame), None => lane.borrow(0) }
                let sent = end.transmit(&mut lane, &batch, &mut cache);
                prop_assert_eq!((sent.frames, sent.bytes), (1, len as u64));
                batch.clear(&mut cache);
                prop_assert_eq!(far.take().unwrap().0, frame);
            }
            drop(cache);
            prop_assert_eq!(pool.free(), 512);
        }
    }

    #[test]
    fn a_full_cable_says_so() {
        let (mut end, mut far) = cable(200);
        assert!(end.send(&[0; 100], Offload::NONE));
        assert!(!end.send(&[0; 100], Offload::NONE));
        assert_eq!(far.take().unwrap().0.len(), 100);
        assert!(end.send(&[0; 100], Offload::NONE));
    }
}
