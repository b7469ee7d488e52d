//! Reader over the bytes of a frame in several segments.

/// Reads bytes in order across segments.
#[derive(Debug, Clone)]
pub(super) struct Chunks<'a, R> {
    /// Unread bytes of the current segment.
    part: &'a [u8],
    /// The segments after it.
    rest: R,
}

impl<'a, R: Iterator<Item = &'a [u8]>> Chunks<'a, R> {
    pub(super) fn new(head: &'a [u8], rest: R) -> Chunks<'a, R> {
        Chunks { part: head, rest }
    }

    /// Passes the next `len` bytes to `see`, as far as available. Returns how many are missing.
    #[inline]
    pub(super) fn read(&mut self, mut len: usize, mut each: impl FnMut(&'a [u8])) -> usize {
        while len > 0 {
            if self.part.is_empty() {
                match self.rest.next() {
                    Some(part) => self.part = part,
                    None => break,
                }
            }
            let (now, later) = self.part.split_at(self.part.len().min(len));
            each(now);
            (self.part, len) = (later, len - now.len());
        }
        len
    }

    /// Skips the next `len` bytes.
    pub(super) fn skip(&mut self, len: usize) {
        self.read(len, |_| {});
    }

    /// Fills `room` with the next bytes.
    #[inline]
    pub(super) fn copy_to(&mut self, room: &mut [u8]) {
        let mut at = 0;
        let missing = self.read(room.len(), |part| {
            room[at..][..part.len()].copy_from_slice(part);
            at += part.len();
        });
        if missing > 0 {
            // Never for a frame as long as its segments. Old bytes in the buffer must not leak.
            room[at..].fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_are_in_order_across_chunks(chunks in vec(vec(any::<u8>(), 0..20), 1..6), steps in vec((0usize..15, any::<bool>()), 0..12)) {
            let all = chunks.concat();
            let mut read = Chunks::new(&chunks[0], chunks[1..].iter().map(Vec::as_slice));
            let mut at = 0;
            for (len, skip) in steps {
                let expected: Vec<u8> = (at..at + len).map(|i| all.get(i).copied().unwrap_or(0)).collect();
                at += len;
                if skip {
                    read.skip(len);
                } else {
                    let mut room = vec![0xaa; len];
                    read.copy_to(&mut room);
                    prop_assert_eq!(room, expected);
                }
            }
        }
    }
}
