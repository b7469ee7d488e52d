//! Copies frame bytes.

/// Half the maximum length that is copied in two pieces.
const HALF: usize = 32;

/// Copies bytes to a slice of equal length. Copies the shortest frames, which have the highest rate, in two
/// overlapping pieces: a call of `memcpy` would cost more than the copy.
///
/// # Panics
///
/// If the lengths differ.
#[inline(always)]
pub fn copy(from: &[u8], to: &mut [u8]) {
    if from.len() == to.len()
        && (HALF..=2 * HALF).contains(&from.len())
        && let (Some(first), Some(last)) = (from.first_chunk::<HALF>(), from.last_chunk::<HALF>())
    {
        if let Some(storage) = to.first_chunk_mut() {
            *storage = *first;
        }
        if let Some(storage) = to.last_chunk_mut() {
            *storage = *last;
        }
    } else {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_copied_exactly() {
        for len in 0..200u8 {
            let from: Vec<u8> = (1..=len).collect();
            let mut to = vec![0; usize::from(len) + 2];
            copy(&from, &mut to[1..][..usize::from(len)]);
            assert_eq!((to[0], &to[1..][..from.len()], to[from.len() + 1]), (0, &from[..], 0));
        }
    }

    #[test]
    #[should_panic(expected = "length")]
    fn a_buffer_of_another_length_is_refused() {
        copy(&[1; 40], &mut [0; 41]);
    }
}
