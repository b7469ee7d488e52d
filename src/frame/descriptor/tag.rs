//! Inserts, removes and replaces VLAN tags in place: only the MAC addresses before the tag move, into the gap or
//! into the headroom. The payload stays in place.

use super::{Frame, SLOT, Storage};
use crate::wire::{HEADER_LEN, MIN_WIRE_LEN, Offload, TAG_LEN};

/// Length of a tag in bytes.
const TAG: u16 = TAG_LEN as u16;

/// Offset of the tag: after the two MAC addresses.
pub(in crate::frame) const TAG_AT: usize = 12;

/// Bytes that move for a frame in a receive buffer: virtio_net_hdr and MAC addresses.
const FRONT: usize = Offload::LEN + TAG_AT;

impl Frame {
    /// Whether a tag can be removed: the Ethernet header remains and is in the first segment.
    fn has_room_for_tag(&self) -> bool {
        self.head_len() as usize >= HEADER_LEN + TAG_LEN
    }

    /// A range of the first slot that the frame owns.
    fn slot_mut(&mut self, start: usize, len: usize) -> Option<&mut [u8]> {
        let pool = self.owner()?;
        assert!(start + len <= SLOT, "within a slot");
        // SAFETY: the slot is this frame's; every reader borrows the frame, which we hold mutably. The range is
        // within the slot.
        Some(unsafe { pool.bytes_mut(self.at, start as u16, len as u16) })
    }

    /// Removes the tag of a frame that owns its slots. `false` if the frame is too short.
    pub(in crate::frame) fn pop_owned(&mut self) -> bool {
        if !self.has_room_for_tag() {
            return false;
        }
        let Some(bytes) = self.slot_mut(usize::from(self.start), TAG_AT + TAG_LEN) else { return false };
        bytes.copy_within(..TAG_AT, TAG_LEN);
        self.shorten();
        true
    }

    /// Removes the tag of a frame in this receive buffer, which the virtio_net_hdr precedes.
    pub(in crate::frame) fn pop_in_buffer(&mut self, buffer: &mut [u8]) -> bool {
        if !self.has_room_for_tag() {
            return false;
        }
        let front = usize::from(self.start) - Offload::LEN;
        buffer.copy_within(front..front + FRONT, front + TAG_LEN);
        self.shorten();
        self.write_offload(buffer);
        true
    }

    /// Updates length and offload offsets for a removed tag.
    fn shorten(&mut self) {
        self.begin_at(self.start + TAG);
        if !self.offload().needs_offload() {
            return;
        }
        match self.offload().without_tag() {
            Some(offload) => {
                self.set_offload(offload);
                self.headers = self.headers.saturating_sub(TAG);
            }
            None => self.frames = 0,
        }
    }

    /// Sets the start of the first segment; its end stays.
    fn begin_at(&mut self, start: u16) {
        if self.storage == Storage::Chain
            && let Some(pool) = self.pool
        {
            let end = self.start + pool.extent(self.at).1;
            pool.set_extent(self.at, start, end - start);
        }
        self.len = self.len + u32::from(self.start) - u32::from(start);
        self.start = start;
    }

    /// Offload request and repeated header bytes with one more tag. `None` if an offset overflows.
    pub(in crate::frame) fn tagged(&self) -> Option<(Offload, u16)> {
        let headers = if self.headers == 0 { 0 } else { self.headers.checked_add(TAG)? };
        Some((self.offload().with_tag()?, headers))
    }

    /// Inserts a tag into a frame that owns its slots. `false` if the headroom is too small.
    pub(in crate::frame) fn push_owned(&mut self, tag: [u8; TAG_LEN]) -> bool {
        let Some(after) = self.tagged().filter(|_| self.head_len() as usize >= TAG_AT) else { return false };
        let Some(start) = self.start.checked_sub(TAG) else { return false };
        let Some(bytes) = self.slot_mut(usize::from(start), TAG_AT + TAG_LEN) else { return false };
        bytes.copy_within(TAG_LEN.., 0);
        bytes[TAG_AT..].copy_from_slice(&tag);
        self.extend_front(after);
        true
    }

    /// Inserts a tag into a frame in this receive buffer, which the virtio_net_hdr precedes.
    pub(in crate::frame) fn push_in_buffer(&mut self, tag: [u8; TAG_LEN], buffer: &mut [u8]) -> bool {
        let Some(after) = self.tagged().filter(|_| self.head_len() as usize >= TAG_AT) else { return false };
        let start = usize::from(self.start);
        let Some(front) = start.checked_sub(Offload::LEN + TAG_LEN) else { return false };
        buffer.copy_within(front + TAG_LEN..start + TAG_AT, front);
        buffer[front + FRONT..][..TAG_LEN].copy_from_slice(&tag);
        self.extend_front(after);
        self.write_offload(buffer);
        true
    }

    /// Current offload request and repeated header bytes.
    pub(in crate::frame) fn current(&self) -> (Offload, u16) {
        (self.offload(), self.headers)
    }

    /// Replaces the tag of a frame that owns its slots. `false` if it has no tag.
    pub(in crate::frame) fn replace_owned(&mut self, tag: [u8; TAG_LEN]) -> bool {
        if !self.has_room_for_tag() {
            return false;
        }
        let Some(bytes) = self.slot_mut(usize::from(self.start) + TAG_AT, TAG_LEN) else { return false };
        bytes.copy_from_slice(&tag);
        true
    }

    /// Replaces the tag of a frame in this receive buffer.
    pub(in crate::frame) fn replace_in_buffer(&mut self, tag: [u8; TAG_LEN], buffer: &mut [u8]) -> bool {
        if !self.has_room_for_tag() {
            return false;
        }
        buffer[usize::from(self.start) + TAG_AT..][..TAG_LEN].copy_from_slice(&tag);
        true
    }

    /// Pads a frame in one owned slot with zeros to the wire's minimum. `false` if the slot has no room.
    pub(in crate::frame) fn pad_owned(&mut self) -> bool {
        const LEN: usize = MIN_WIRE_LEN as usize;
        let (start, len) = (usize::from(self.start), self.len as usize);
        if self.storage != Storage::Slot || len > LEN || start + LEN > SLOT {
            return false;
        }
        let Some(bytes) = self.slot_mut(start + len, LEN - len) else { return false };
        bytes.fill(0);
        self.len = MIN_WIRE_LEN;
        true
    }

    /// Pads a frame in this receive buffer.
    pub(in crate::frame) fn pad_in_buffer(&mut self, buffer: &mut [u8]) -> bool {
        const LEN: usize = MIN_WIRE_LEN as usize;
        let (start, len) = (usize::from(self.start), self.len as usize);
        let Some(bytes) = buffer.get_mut(start + len..start + LEN) else { return false };
        bytes.fill(0);
        self.len = MIN_WIRE_LEN;
        true
    }

    /// Updates length and offload offsets for an inserted tag.
    fn extend_front(&mut self, (offload, headers): (Offload, u16)) {
        self.begin_at(self.start - TAG);
        self.set_offload(offload);
        self.headers = headers;
    }

    /// Makes a tagged copy count as the frame that it was copied from.
    pub(in crate::frame) fn count_as(&mut self, original: &Frame, headers: u16) {
        (self.frames, self.headers) = (original.frames, headers);
    }

    fn set_offload(&mut self, offload: Offload) {
        (self.offload, self.csum_offset) = offload.words();
    }

    /// Writes the virtio_net_hdr before the frame if offload is pending. The last two bytes, the buffer count, stay
    /// unchanged.
    fn write_offload(&self, buffer: &mut [u8]) {
        debug_assert!(self.storage == Storage::RxBuffer);
        if self.offload().needs_offload() {
            const SAID: usize = Offload::LEN - 2;
            let front = usize::from(self.start) - Offload::LEN;
            buffer[front..][..SAID].copy_from_slice(&self.offload().write()[..SAID]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::frame::{Batch, Magazine, Pool, TagError};
    use crate::wire::{Offload, Vid};

    /// A `virtio_net_hdr` and the bytes after it.
    #[derive(Debug, Clone)]
    struct Sketch {
        header: [u8; 12],
        bytes: Vec<u8>,
    }

    fn sketch() -> impl Strategy<Value = Sketch> {
        let header = prop_oneof![
            3 => Just([0; 12]),
            1 => Just([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]),
            1 => Just([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 7]),
            3 => (500..1500u16, 0..4000u16).prop_map(|(size, start)| {
                let ([a, b], [c, d]) = (size.to_le_bytes(), start.to_le_bytes());
                [1, 1, 66, 0, a, b, c, d, 16, 0, 0, 0]
            }),
            2 => any::<[u8; 12]>(),
        ];
        let len = prop_oneof![2 => 14..200usize, 2 => 2900..4200usize, 1 => 14..20_000usize];
        (header, len, any::<u8>()).prop_map(|(header, len, seed)| {
            let mut bytes: Vec<u8> = (0..len).map(|at| (at * 31 + at / 251) as u8 ^ seed).collect();
            if let Some(byte) = bytes.get_mut(46) {
                *byte = 0x50; // TCP data offset
            }
            Sketch { header, bytes }
        })
    }

    /// Puts the frame into the batch, in slots or in a receive buffer.
    fn put(sketch: &Sketch, received: bool, batch: &mut Batch, magazine: &mut Magazine) -> usize {
        if received {
            let all = [&sketch.header[..], &sketch.bytes].concat();
            let read = |room: &mut [u8]| {
                room[..all.len()].copy_from_slice(&all);
                Ok::<_, ()>(all.len())
            };
            batch.receive(true, read).unwrap();
        } else {
            batch.push(magazine.frame(&sketch.bytes, Offload::read(&sketch.header)).unwrap());
        }
        batch.len() - 1
    }

    type VidSource = (Vec<u8>, Option<Vec<u8>>, Offload, (u64, u64), u32, bool);

    /// All properties of a frame.
    fn vid_sources(batch: &Batch, index: usize) -> VidSource {
        let (frame_ref, frame) = (batch.frame_ref(index), batch.frame(index));
        let with_header = frame_ref.with_header.map(<[u8]>::to_vec);
        (frame_ref.to_vec(), with_header, frame.offload(), frame.counts(), frame.max_segment_len(), frame.is_valid())
    }

    fn with_tag(bytes: &[u8], vid: Vid) -> Vec<u8> {
        [&bytes[..12], &vid.tag(), &bytes[12..]].concat()
    }

    proptest! {
        #[test]
        fn a_tag_is_added_and_removed_without_a_trace(sketch in sketch(), received: bool, vid in 1..4095u16, others in 0..16u32) {
            let pool = Pool::new(256).unwrap();
            let mut magazine = Magazine::new(pool);
            let mut batch = Batch::new();
            // Frames begin at a different offset in each slot.
            let held: Vec<_> = (0..others).map(|_| magazine.frame(&[0; 60], Offload::NONE).unwrap()).collect();
            let vid = Vid::new(vid).unwrap();
            let index = put(&sketch, received, &mut batch, &mut magazine);
            let before = vid_sources(&batch, index);
            let after = batch.copy_tagged(index, vid, false, &mut magazine);
            let pushed = batch.push_tag(index, vid, &mut magazine);
            match pushed {
                Ok(()) => {
                    let tagged = vid_sources(&batch, index);
                    prop_assert_eq!(&tagged.0, &with_tag(&before.0, vid));
                    prop_assert_eq!(Some(tagged.2), before.2.with_tag());
                    prop_assert_eq!(tagged.3.0, before.3.0, "as many frames");
                    prop_assert_eq!(tagged.5, before.5);
                    if before.5 && !before.2.needs_offload() {
                        prop_assert_eq!(tagged.3.1, before.3.1 + 4);
                    }
                    if let Some(with_header) = &tagged.1 {
                        prop_assert_eq!(&with_header[..10], &tagged.2.write()[..10]);
                        prop_assert!(tagged.0.starts_with(&with_header[12..]));
                    }
                    batch.push(after.unwrap());
                    let copy = vid_sources(&batch, index + 1);
                    prop_assert_eq!((&copy.0, copy.2, copy.3, copy.4, copy.5), (&tagged.0, tagged.2, tagged.3, tagged.4, tagged.5));
                    prop_assert!(batch.pop_tag(index));
                    // An invalid header stays invalid, possibly for another reason.
                    if before.5 {
                        prop_assert_eq!(vid_sources(&batch, index), before);
                    } else {
                        prop_assert_eq!((vid_sources(&batch, index).0, batch.frame(index).is_valid()), (before.0, false));
                    }
                }
                Err(why) => {
                    prop_assert_eq!((after.err(), why), (Some(TagError::Offsets), TagError::Offsets));
                    prop_assert!(before.2.needs_offload());
                    prop_assert_eq!(vid_sources(&batch, index), before);
                }
            }
            drop(held);
            batch.clear(&mut magazine);
            drop(magazine);
            prop_assert_eq!(pool.free(), 256);
        }

        /// Any four bytes after the addresses of an external frame.
        #[test]
        fn a_tag_is_removed_from_any_frame(sketch in sketch(), received: bool) {
            let pool = Pool::new(256).unwrap();
            let mut magazine = Magazine::new(pool);
            let mut batch = Batch::new();
            let index = put(&sketch, received, &mut batch, &mut magazine);
            let before = vid_sources(&batch, index);
            let popped = batch.pop_tag(index);
            prop_assert_eq!(popped, sketch.bytes.len() >= 18);
            if popped {
                let after = vid_sources(&batch, index);
                prop_assert_eq!(&after.0, &[&before.0[..12], &before.0[16..]].concat());
                let offload = before.2.without_tag().filter(|_| before.5);
                prop_assert_eq!(after.5, offload.is_some());
                if let Some(offload) = offload {
                    prop_assert_eq!((after.2, after.3.0), (offload, before.3.0));
                    // The copy has the same properties.
                    let copy = batch.copy_to_pool(index, &mut magazine).unwrap();
                    prop_assert_eq!((copy.counts(), copy.is_valid()), (after.3, true));
                    magazine.recycle(copy);
                }
            }
            batch.clear(&mut magazine);
            drop(magazine);
            prop_assert_eq!(pool.free(), 256);
        }
    }

    proptest! {
        /// Whatever tags a frame has: the new tag replaces a priority tag and keeps its priority.
        #[test]
        fn a_priority_is_kept(
            sketch in sketch(), received: bool, tci: u16, vid in 1..4095u16, popped: bool, kind in prop::sample::select(vec![0x8100u16, 0x88a8]),
        ) {
            prop_assume!(sketch.bytes.len() >= 18);
            let pool = Pool::new(256).unwrap();
            let (mut magazine, mut batch) = (Magazine::new(pool), Batch::new());
            let tci = if popped { tci } else { tci & 0xf000 };
            let mut sketch = sketch;
            sketch.bytes[12..14].copy_from_slice(&kind.to_be_bytes());
            sketch.bytes[14..16].copy_from_slice(&tci.to_be_bytes());
            let index = put(&sketch, received, &mut batch, &mut magazine);
            if popped {
                prop_assert!(batch.pop_tag(index));
            }
            let before = vid_sources(&batch, index);
            let vid = Vid::new(vid).unwrap();
            let is_known = kind == 0x8100;
            let tag = [&[0x81, 0x00][..], &((if is_known { tci & 0xf000 } else { 0 }) | vid.get()).to_be_bytes()].concat();
            let replaces = is_known && !popped;
            let rest_of = if replaces { 16 } else { 12 };
            let expected = [&before.0[..12], &tag, &before.0[rest_of..]].concat();
            let copy = batch.copy_tagged(index, vid, false, &mut magazine);
            if batch.push_tag(index, vid, &mut magazine).is_ok() {
                let after = vid_sources(&batch, index);
                prop_assert_eq!(&after.0, &expected);
                if replaces {
                    prop_assert_eq!((after.2, after.3, after.5), (before.2, before.3, before.5));
                }
                batch.push(copy.unwrap());
                let copy = vid_sources(&batch, index + 1);
                prop_assert_eq!((&copy.0, copy.2, copy.3, copy.5), (&after.0, after.2, after.3, after.5));
            } else {
                prop_assert!(copy.is_err() && before.2.needs_offload() && !replaces);
            }
            batch.clear(&mut magazine);
            // The next burst is unaffected.
            let plain = Sketch { header: [0; 12], bytes: vec![7; 60] };
            let index = put(&plain, received, &mut batch, &mut magazine);
            prop_assert_eq!(batch.priority(index), None);
            batch.clear(&mut magazine);
            drop(magazine);
            prop_assert_eq!(pool.free(), 256);
        }

        #[test]
        fn a_short_frame_is_padded(len in 14..60usize, received: bool, header in any::<[u8; 12]>(), vid in 1..4095u16) {
            let pool = Pool::new(256).unwrap();
            let (mut magazine, mut batch) = (Magazine::new(pool), Batch::new());
            let sketch = Sketch { header, bytes: (1..=len).map(|at| at as u8).collect() };
            // Earlier contents of the memory do not appear.
            for _ in 0..2 {
                put(&Sketch { header: [0; 12], bytes: vec![0xee; 200] }, received, &mut batch, &mut magazine);
                batch.clear(&mut magazine);
            }
            let index = put(&sketch, received, &mut batch, &mut magazine);
            let is_pending = Offload::read(&header).needs_offload();
            prop_assert_eq!(batch.is_short(index), !is_pending);
            if !is_pending {
                let vid = Vid::new(vid).unwrap();
                let tagged = batch.copy_tagged(index, vid, true, &mut magazine).unwrap();
                let copy = batch.copy_padded(index, &mut magazine).unwrap();
                batch.pad(index, &mut magazine).unwrap();
                batch.push(copy);
                batch.push(tagged);
                let mut expected = sketch.bytes.clone();
                expected.resize(60, 0);
                prop_assert_eq!(batch.frame_ref(index).to_vec(), &expected[..]);
                prop_assert_eq!(batch.frame_ref(index + 1).to_vec(), expected);
                let mut expected = with_tag(&sketch.bytes, vid);
                expected.resize(expected.len().max(60), 0);
                prop_assert_eq!(batch.frame_ref(index + 2).to_vec(), expected);
            }
            batch.clear(&mut magazine);
            drop(magazine);
            prop_assert_eq!(pool.free(), 256);
        }
    }

    /// As many tags as there is headroom for are inserted in place, one more into a copy.
    #[test]
    fn without_headroom_the_frame_is_copied() {
        let pool = Pool::new(64).unwrap();
        let mut magazine = Magazine::new(pool);
        let mut batch = Batch::new();
        let sketch = Sketch { header: [0; 12], bytes: (0..100).collect() };
        let mut expected = sketch.bytes.clone();
        for received in [true, false] {
            put(&sketch, received, &mut batch, &mut magazine);
        }
        for round in 1..600u16 {
            let vid = Vid::new(round).unwrap();
            expected = with_tag(&expected, vid);
            for index in 0..2 {
                batch.push_tag(index, vid, &mut magazine).unwrap();
                assert!(batch.frame_ref(index).to_vec() == expected, "{round} tags");
            }
        }
        assert!(batch.frame(0).is_owned(), "the frame has left the receive buffer");
        batch.clear(&mut magazine);
        // Without a slot for the copy the frame is unchanged.
        let mut held = Vec::new();
        put(&sketch, true, &mut batch, &mut magazine);
        while let Some(frame) = magazine.frame(&[0; 60], Offload::NONE) {
            held.push(frame);
        }
        let vid = Vid::new(7).unwrap();
        let done = (1..100).take_while(|_| batch.push_tag(0, vid, &mut magazine).is_ok()).count();
        assert_eq!(batch.push_tag(0, vid, &mut magazine), Err(TagError::NoSlot));
        assert_eq!(batch.frame(0).len() as usize, 100 + 4 * done);
        drop(held);
        batch.clear(&mut magazine);
        drop(magazine);
        assert_eq!(pool.free(), 64);
    }
}
