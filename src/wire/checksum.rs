//! Internet checksum: ones' complement sum of 16-bit words (RFC 1071).

/// A running sum. Takes bytes in wire order, in pieces of any length.
///
/// Ones' complement addition is independent of byte order (RFC 1071, 2.B), so 8-byte words are added in little
/// endian.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Checksum {
    sum: u64,
    /// Whether an odd number of bytes has been added: the next one completes a word.
    odd: bool,
}

impl Checksum {
    /// Appends bytes.
    #[inline]
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let sum = sum_of(bytes);
        let sum = if self.odd { sum.swap_bytes() } else { sum };
        self.sum = plus(self.sum, u64::from(sum));
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Adds a 16-bit number at an even offset.
    #[inline]
    pub(super) fn add_number(&mut self, number: u16) {
        self.sum = plus(self.sum, u64::from(number.to_be()));
    }

    /// Subtracts a number that is in the sum.
    #[inline]
    pub(super) fn subtract(&mut self, number: u16) {
        self.add_number(!number);
    }

    /// Adds the sum of the bytes that follow, at an even offset.
    #[inline]
    pub(super) fn append(&mut self, after: Checksum) {
        self.sum = plus(self.sum, after.sum);
    }

    /// The sum itself, as stored in a partial checksum.
    #[inline]
    pub(super) fn partial(self) -> [u8; 2] {
        fold(self.sum).to_le_bytes()
    }

    /// The checksum for the header: it makes the total sum all ones.
    #[inline]
    pub(super) fn finish(self) -> [u8; 2] {
        (!fold(self.sum)).to_le_bytes()
    }
}

/// Adds two words with end-around carry.
#[inline(always)]
fn plus(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // the carries have been added
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Sum of bytes that start at an even offset; a last odd byte is the first of a word.
#[inline]
fn sum_of(bytes: &[u8]) -> u16 {
    // Four independent sums, so that none waits for another's carry.
    let mut sums = [0; 4];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        for (sum, word) in sums.iter_mut().zip(block.as_chunks().0) {
            *sum = plus(*sum, u64::from_le_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let sum = words.iter().chain([&last]).fold(0, |sum, word| plus(sum, u64::from_le_bytes(*word)));
    fold(sums.into_iter().fold(sum, plus))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Word by word, as in RFC 1071.
    fn plain(bytes: &[u8]) -> [u8; 2] {
        let words = bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |&b| u64::from(b)));
        let mut sum: u64 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!u16::try_from(sum).unwrap()).to_be_bytes()
    }

    proptest! {
        #[test]
        fn sums_of_parts_add_up(chunks in vec(vec(prop_oneof![any::<u8>(), Just(0xff), Just(0)], 0..150), 0..6)) {
            let mut sum = Checksum::default();
            chunks.iter().for_each(|piece| sum.add(piece));
            prop_assert_eq!(sum.finish(), plain(&chunks.concat()));
        }

        #[test]
        fn a_subtracted_part_is_removed(bytes in vec(any::<u8>(), 1..60), old: u16, new: u16) {
            let mut sum = Checksum::default();
            sum.add(&old.to_be_bytes());
            sum.add(&bytes);
            if bytes.len() % 2 == 1 {
                sum.add(&[0]);
            }
            sum.subtract(old);
            sum.add_number(new);
            let other = plain(&[&new.to_be_bytes(), &bytes[..]].concat());
            // Ones' complement has two zeros, which are equal.
            let one = |b: [u8; 2]| if b == [0xff; 2] { [0; 2] } else { b };
            prop_assert_eq!(one(sum.finish()), one(other));
        }
    }
}
