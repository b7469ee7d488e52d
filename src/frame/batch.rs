//! Received batch: a burst of frames, and the receive buffers that it lends.

mod tag;

pub use self::tag::TagError;
use super::descriptor::Frame;
use super::{FrameRef, Magazine};
use crate::wire::{Offload, Priority};

/// Maximum number of frames in a burst.
pub const BURST: usize = 64;

/// Bytes after which a burst ends early: a burst of GSO packets that exceeds the CPU cache would be fetched from
/// memory a second time for transmit.
pub const BURST_BYTES: usize = 256 << 10;

/// Minimum cost of a frame in bytes, so that the segments of GSO packets count towards the end of a burst: a
/// malicious guest makes many small ones, all of which may have to be built.
const MIN_COST: usize = 1 << 10;
const _: () = assert!(MIN_COST * BURST < BURST_BYTES, "frames that stand for themselves make no difference");

/// Bytes before each frame in a receive buffer: its virtio_net_hdr, so that header and frame are read and written
/// in one piece.
pub const HEADROOM: usize = Offload::LEN;

/// Offset of a frame in its receive buffer: at a cache line of its own, after the header.
const FRONT: usize = 64;

/// Capacity of a receive buffer in bytes: a GSO packet of 64 KiB plus Ethernet header and tags.
const ROOM: usize = (64 << 10) + 64;

/// Distance of receive buffers: an odd number of cache lines. With a power of two, the headers of a burst would
/// compete for one cache set.
const STRIDE: usize = FRONT + ROOM + 128 + 64;
const _: () = assert!(STRIDE.is_multiple_of(64) && STRIDE / 64 % 2 == 1);

/// A burst of at most [`BURST`] frames. Allocated once and reused.
///
/// Its receive buffers serve devices that copy frames to a given address. Frames in them are lent until
/// [`Batch::clear`].
#[derive(Debug)]
pub struct Batch {
    /// The first `len` are the burst; a frame that was moved out leaves [`Frame::EMPTY`]. All later entries are
    /// empty.
    frames: Box<[Frame; BURST]>,
    len: usize,
    rx_buffers: Box<[u8]>,
    bytes: usize,
    /// By index: priority of the tag that was removed from the frame.
    priorities: Box<[Option<Priority>; BURST]>,
    /// Whether any priority is set.
    has_priorities: bool,
}

impl Default for Batch {
    fn default() -> Self {
        Batch::new()
    }
}

impl Batch {
    /// Creates an empty batch with 4 MiB of receive buffers, whose memory is allocated at first use.
    pub fn new() -> Batch {
        Batch {
            frames: Box::new([const { Frame::EMPTY }; BURST]),
            len: 0,
            rx_buffers: vec![0; STRIDE * BURST].into_boxed_slice(),
            bytes: 0,
            priorities: Box::new([None; BURST]),
            has_priorities: false,
        }
    }

    /// Number of frames.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the batch is empty.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the burst has reached its limit in frames or bytes.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.len >= BURST || self.bytes >= BURST_BYTES
    }

    /// Appends a frame that owns its slots.
    ///
    /// # Panics
    ///
    /// If there are [`BURST`] frames already.
    #[inline(always)]
    pub fn push(&mut self, frame: Frame) {
        let storage = self.frames.get_mut(self.len).expect("a burst has at most 64 frames");
        self.bytes += cost(&frame);
        storage.fill(frame);
        self.len += 1;
    }

    /// Appends a frame with these bytes, in slots. `false` if no slots are free.
    ///
    /// # Panics
    ///
    /// If there are [`BURST`] frames already.
    #[inline]
    pub fn push_bytes(&mut self, bytes: &[u8], offload: Offload, magazine: &mut Magazine) -> bool {
        magazine.frame(bytes, offload).map(|frame| self.push(frame)).is_some()
    }

    /// Calls `read` to fill the next receive buffer and appends the frame. With `header`, the data begins with the
    /// virtio_net_hdr. `read` returns the number of bytes; its error is passed on, and nothing is appended.
    ///
    /// # Panics
    ///
    /// If there are [`BURST`] frames already.
    #[inline(always)]
    pub fn receive<E>(&mut self, header: bool, read: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        let buffer = self.len;
        assert!(buffer < BURST, "a burst has at most {BURST} frames");
        let base = buffer * STRIDE + FRONT;
        let room = &mut self.rx_buffers[base - HEADROOM..base + ROOM];
        let len = if header {
            // Data shorter than its header becomes an empty frame, which is dropped as such.
            read(room)?.max(HEADROOM) - HEADROOM
        } else {
            room[..HEADROOM].fill(0);
            read(&mut room[HEADROOM..])?
        };
        let (front, rest) = room.split_first_chunk().expect("the headroom is a header long");
        let offload = Offload::read(front);
        #[allow(clippy::cast_possible_truncation)] // 64 buffers of 64 KiB and a little
        let mut frame = Frame::in_rx_buffer(buffer as u8, FRONT as u16, len as u32, offload);
        self.bytes += len;
        if offload.needs_offload() {
            frame.validate(Some(&rest[..len]));
            self.bytes += cost(&frame) - len;
        }
        self.frames[buffer].fill(frame);
        self.len += 1;
        Ok(())
    }

    /// The frame at `index`.
    ///
    /// # Panics
    ///
    /// If there is none, or it has been taken.
    #[inline(always)]
    pub fn frame(&self, index: usize) -> &Frame {
        let frame = &self.frames[index];
        assert!(frame.is_some(), "the frame has not been taken");
        frame
    }

    /// The frames in order, each with its first segment, which holds all headers.
    #[inline(always)]
    pub fn heads(&self) -> impl Iterator<Item = (&Frame, &[u8])> {
        self.frames[..self.len].iter().map(|frame| (frame, self.head_of(frame)))
    }

    /// First segment of the frame at `index`, which holds all headers.
    #[inline(always)]
    pub fn head(&self, index: usize) -> &[u8] {
        self.head_of(self.frame(index))
    }

    #[inline(always)]
    fn head_of<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        frame.slot_bytes().unwrap_or_else(|| self.head_of_slow(frame))
    }

    #[inline(never)]
    fn head_of_slow<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        match frame.rx_buffer() {
            Some((buffer, start)) => &self.rx_buffers[buffer * STRIDE + start..][..frame.head_len() as usize],
            None => frame.owned_head(),
        }
    }

    /// The frames from `index` on, to be moved out.
    #[inline(always)]
    pub fn frames_from(&mut self, index: usize) -> &mut [Frame] {
        self.frames[..self.len].get_mut(index..).unwrap_or_default()
    }

    /// Moves the frame at `index` out if it owns its slots. The indices of other frames stay.
    #[inline(always)]
    pub fn take(&mut self, index: usize) -> Option<Frame> {
        let frame = &mut self.frames[index];
        frame.is_owned().then(|| frame.take())
    }

    /// Copies the frame at `index` to the pool, to outlive the burst or for a second egress. `None` when the pool
    /// has no slots left.
    pub fn copy_to_pool(&self, index: usize, magazine: &mut Magazine) -> Option<Frame> {
        let frame = self.frame_ref(index);
        concat(std::iter::once(frame.head).chain(frame.tail()), frame.frame.len(), frame.frame.offload(), magazine)
    }

    /// Priority of the tag that was removed from the frame at `index`, if any.
    #[inline]
    pub fn priority(&self, index: usize) -> Option<Priority> {
        self.priorities[index]
    }

    /// Sets the priority of the tag that was removed from the frame at `index`.
    #[inline]
    pub fn set_priority(&mut self, index: usize, priority: Option<Priority>) {
        self.priorities[index] = priority;
        self.has_priorities |= priority.is_some();
    }

    /// The frame at `index`, as transmitted.
    #[inline(always)]
    pub fn frame_ref(&self, index: usize) -> FrameRef<'_> {
        self.frame_ref_of(self.frame(index))
    }

    /// A frame as transmitted: one of this batch, or one that owns its slots.
    #[inline(always)]
    pub(super) fn frame_ref_of<'a>(&'a self, frame: &'a Frame) -> FrameRef<'a> {
        match frame.slot_bytes() {
            Some(head) => FrameRef { frame, head, with_header: None },
            None => self.frame_ref_of_slow(frame),
        }
    }

    #[inline(never)]
    fn frame_ref_of_slow<'a>(&'a self, frame: &'a Frame) -> FrameRef<'a> {
        match frame.rx_buffer() {
            Some((buffer, start)) => {
                let with_header =
                    &self.rx_buffers[buffer * STRIDE + start - HEADROOM..][..HEADROOM + frame.head_len() as usize];
                FrameRef { frame, head: &with_header[HEADROOM..], with_header: Some(with_header) }
            }
            None => FrameRef { frame, head: frame.owned_head(), with_header: None },
        }
    }

    /// Ends the burst: frees the remaining frames and the receive buffers.
    #[inline(always)]
    pub fn clear(&mut self, magazine: &mut Magazine) {
        for frame in self.frames[..self.len].iter_mut().filter(|frame| frame.is_some()) {
            magazine.recycle_from(frame);
        }
        self.end();
    }

    /// Ends a burst whose frames have all been moved out.
    #[inline(always)]
    pub fn end(&mut self) {
        debug_assert!(self.frames.iter().all(|frame| !frame.is_some()), "they would be lost");
        (self.len, self.bytes) = (0, 0);
        if std::mem::take(&mut self.has_priorities) {
            self.priorities.fill(None);
        }
    }
}

/// Builds a frame of `len` bytes in slots of its own from these parts.
#[inline(always)]
fn concat<'a>(
    mut parts: impl Iterator<Item = &'a [u8]>,
    len: u32,
    offload: Offload,
    magazine: &mut Magazine,
) -> Option<Frame> {
    let mut part: &[u8] = &[];
    magazine.build(len, offload, |mut out| {
        while !out.is_empty() {
            if part.is_empty() {
                part = parts.next().expect("the segments of a frame add up to its length");
            }
            let now = part.len().min(out.len());
            out[..now].copy_from_slice(&part[..now]);
            (part, out) = (&part[now..], &mut out[now..]);
        }
    })
}

/// Cost of a frame in bytes, for the end of a burst.
#[inline(always)]
fn cost(frame: &Frame) -> usize {
    (frame.len() as usize).max(frame.frames() * MIN_COST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;

    fn land(batch: &mut Batch, header: bool, bytes: &[u8]) {
        batch
            .receive(header, |room| {
                room[..bytes.len()].copy_from_slice(bytes);
                Ok::<_, ()>(bytes.len())
            })
            .unwrap();
    }

    #[test]
    fn a_received_frame_has_its_header_in_front() {
        let mut batch = Batch::new();
        let mut bytes = vec![0; 12 + 60];
        bytes[0] = 2; // a checksum known to be valid
        bytes[12..].fill(7);
        land(&mut batch, true, &bytes);
        assert_eq!(batch.head(0), &[7; 60]);
        assert_eq!(batch.frame_ref(0).with_header, Some(&bytes[..]));
        let mut magazine = Magazine::new(Pool::new(8).unwrap());
        batch.clear(&mut magazine);
        land(&mut batch, false, &[9; 60]);
        assert_eq!(batch.frame_ref(0).with_header.unwrap()[..12], [0; 12], "an old header must not show through");
        assert_eq!(batch.head(0), &[9; 60]);
    }

    #[test]
    fn long_frames_are_copied_completely() {
        let pool = Pool::new(64).unwrap();
        let mut magazine = Magazine::new(pool);
        let mut batch = Batch::new();
        let bytes: Vec<u8> = (0..60_000u32).map(|i| (i * 7).to_le_bytes()[0]).collect();
        land(&mut batch, false, &bytes);
        let adopted = batch.copy_to_pool(0, &mut magazine).unwrap();
        assert!(adopted.is_owned() && batch.take(0).is_none());
        batch.push(adopted);
        assert_eq!(batch.frame_ref(1).to_vec(), bytes);
        let again = batch.copy_to_pool(1, &mut magazine).unwrap();
        assert_eq!(batch.frame_ref_of(&again).to_vec(), bytes);
        magazine.recycle(again);
        batch.clear(&mut magazine);
        drop(magazine);
        assert_eq!(pool.free(), 64);
    }

    #[test]
    fn a_burst_ends_by_count_and_by_bytes() {
        let mut batch = Batch::new();
        for _ in 0..BURST {
            assert!(!batch.is_full());
            land(&mut batch, false, &[0; 60]);
        }
        assert!(batch.is_full());
        batch.clear(&mut Magazine::new(Pool::new(1).unwrap()));
        for _ in 0..4 {
            assert!(!batch.is_full());
            land(&mut batch, false, &vec![0; ROOM]);
        }
        assert!(batch.is_full());
    }

    #[test]
    fn a_burst_ends_by_the_segments_of_gso_packets() {
        let (mut batch, mut magazine) = (Batch::new(), Magazine::new(Pool::new(64).unwrap()));
        // TCP over IPv4 in 128 segments of 10.
        let header = [1, 1, 54, 0, 10, 0, 34, 0, 16, 0, 0, 0];
        let mut frame = vec![0x50; 54 + 1280];
        for owned in [false, true] {
            for _ in 0..2 {
                assert!(!batch.is_full());
                match owned {
                    true => batch.push(magazine.frame(&frame, Offload::read(&header)).unwrap()),
                    false => land(&mut batch, true, &[&header, &frame[..]].concat()),
                }
            }
            assert_eq!((batch.frame(1).count(), batch.is_full()), (128, true));
            batch.clear(&mut magazine);
        }
        // With ordinary segments the number of bytes counts.
        let header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        frame.resize(54 + 44 * 1448, 0);
        for _ in 0..4 {
            land(&mut batch, true, &[&header, &frame[..]].concat());
        }
        assert_eq!((batch.frame(3).count(), batch.is_full()), (44, false));
    }

    #[test]
    fn a_truncated_header_is_an_empty_frame() {
        let mut batch = Batch::new();
        land(&mut batch, true, &[0; 5]);
        assert_eq!(batch.frame(0).len(), 0);
    }
}
