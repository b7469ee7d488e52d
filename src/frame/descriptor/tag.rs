//! A VLAN tag that is taken off a frame or put onto it, in place: only the addresses in front of it
//! move, into the room that the tag leaves or into the headroom. What follows stays where it is.

use super::{Frame, Place, SLOT};
use crate::wire::{HEADER_LEN, MIN_WIRE_LEN, Offload, TAG_LEN};

/// Bytes of a tag.
const TAG: u16 = TAG_LEN as u16;

/// Where a tag stands: behind the two addresses.
pub(in crate::frame) const TAG_AT: usize = 12;

/// Bytes that move, where a frame lies behind its offload header: that header and the addresses.
const FRONT: usize = Offload::LEN + TAG_AT;

impl Frame {
    /// Whether a tag can be taken off, and what is left of it is a frame: its header is there, in its
    /// first segment.
    fn has_room_for_tag(&self) -> bool {
        self.head() as usize >= HEADER_LEN + TAG_LEN
    }

    /// Some bytes of the first slot that it owns.
    fn slot_mut(&mut self, start: usize, len: usize) -> Option<&mut [u8]> {
        let pool = self.home()?;
        assert!(start + len <= SLOT, "within a slot");
        // SAFETY: the slot is this frame's, and whoever reads it through the frame has borrowed that,
        // which we have to ourselves; the range lies within the slot.
        Some(unsafe { pool.bytes_mut(self.at, start as u16, len as u16) })
    }

    /// Takes off the tag behind the addresses of a frame that owns its slots. Whether there was room
    /// for one.
    pub(in crate::frame) fn pop_owned(&mut self) -> bool {
        if !self.has_room_for_tag() {
            return false;
        }
        let Some(bytes) = self.slot_mut(usize::from(self.start), TAG_AT + TAG_LEN) else { return false };
        bytes.copy_within(..TAG_AT, TAG_LEN);
        self.shorten();
        true
    }

    /// The same for a frame that lies in this receive buffer, its offload header in front of it.
    pub(in crate::frame) fn pop_landed(&mut self, buffer: &mut [u8]) -> bool {
        if !self.has_room_for_tag() {
            return false;
        }
        let front = usize::from(self.start) - Offload::LEN;
        buffer.copy_within(front..front + FRONT, front + TAG_LEN);
        self.shorten();
        self.write_offload(buffer);
        true
    }

    /// Notes that the tag is gone.
    fn shorten(&mut self) {
        self.begin_at(self.start + TAG);
        if !self.offload().is_pending() {
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

    /// Notes where the frame begins now, in its first segment; the end stays.
    fn begin_at(&mut self, start: u16) {
        if self.place == Place::Chain
            && let Some(pool) = self.pool
        {
            let end = self.start + pool.extent(self.at).1;
            pool.set_extent(self.at, start, end - start);
        }
        self.len = self.len + u32::from(self.start) - u32::from(start);
        self.start = start;
    }

    /// Its offload header and the bytes that each of its frames repeats, once it has a tag more.
    /// `None` if these numbers would become too large.
    pub(in crate::frame) fn tagged(&self) -> Option<(Offload, u16)> {
        let headers = if self.headers == 0 { 0 } else { self.headers.checked_add(TAG)? };
        Some((self.offload().with_tag()?, headers))
    }

    /// Puts a tag behind the addresses of a frame that owns its slots. Whether there was room in front
    /// of it.
    pub(in crate::frame) fn push_owned(&mut self, tag: [u8; TAG_LEN]) -> bool {
        let Some(after) = self.tagged().filter(|_| self.head() as usize >= TAG_AT) else { return false };
        let Some(start) = self.start.checked_sub(TAG) else { return false };
        let Some(bytes) = self.slot_mut(usize::from(start), TAG_AT + TAG_LEN) else { return false };
        bytes.copy_within(TAG_LEN.., 0);
        bytes[TAG_AT..].copy_from_slice(&tag);
        self.extend_front(after);
        true
    }

    /// The same for a frame that lies in this receive buffer, its offload header in front of it.
    pub(in crate::frame) fn push_landed(&mut self, tag: [u8; TAG_LEN], buffer: &mut [u8]) -> bool {
        let Some(after) = self.tagged().filter(|_| self.head() as usize >= TAG_AT) else { return false };
        let start = usize::from(self.start);
        let Some(front) = start.checked_sub(Offload::LEN + TAG_LEN) else { return false };
        buffer.copy_within(front + TAG_LEN..start + TAG_AT, front);
        buffer[front + FRONT..][..TAG_LEN].copy_from_slice(&tag);
        self.extend_front(after);
        self.write_offload(buffer);
        true
    }

    /// Its offload header and the bytes that each of its frames repeats, as they are.
    pub(in crate::frame) fn untouched(&self) -> (Offload, u16) {
        (self.offload(), self.headers)
    }

    /// Puts another tag in the place of the one behind the addresses of a frame that owns its slots. Whether there was
    /// one.
    pub(in crate::frame) fn replace_owned(&mut self, tag: [u8; TAG_LEN]) -> bool {
        if !self.has_room_for_tag() {
            return false;
        }
        let Some(bytes) = self.slot_mut(usize::from(self.start) + TAG_AT, TAG_LEN) else { return false };
        bytes.copy_from_slice(&tag);
        true
    }

    /// The same for a frame that lies in this receive buffer.
    pub(in crate::frame) fn replace_landed(&mut self, tag: [u8; TAG_LEN], buffer: &mut [u8]) -> bool {
        if !self.has_room_for_tag() {
            return false;
        }
        buffer[usize::from(self.start) + TAG_AT..][..TAG_LEN].copy_from_slice(&tag);
        true
    }

    /// Lengthens a frame that lies in one slot of its own to what a wire asks for, with zeros. Whether there was room.
    pub(in crate::frame) fn pad_owned(&mut self) -> bool {
        const LEN: usize = MIN_WIRE_LEN as usize;
        let (start, len) = (usize::from(self.start), self.len as usize);
        if self.place != Place::Slot || len > LEN || start + LEN > SLOT {
            return false;
        }
        let Some(bytes) = self.slot_mut(start + len, LEN - len) else { return false };
        bytes.fill(0);
        self.len = MIN_WIRE_LEN;
        true
    }

    /// The same for a frame that lies in this receive buffer.
    pub(in crate::frame) fn pad_landed(&mut self, buffer: &mut [u8]) -> bool {
        const LEN: usize = MIN_WIRE_LEN as usize;
        let (start, len) = (usize::from(self.start), self.len as usize);
        let Some(bytes) = buffer.get_mut(start + len..start + LEN) else { return false };
        bytes.fill(0);
        self.len = MIN_WIRE_LEN;
        true
    }

    /// Notes that a tag has been put in.
    fn extend_front(&mut self, (offload, headers): (Offload, u16)) {
        self.begin_at(self.start - TAG);
        self.set_offload(offload);
        self.headers = headers;
    }

    /// Makes a copy that has a tag more count as what it is a copy of.
    pub(in crate::frame) fn count_as(&mut self, original: &Frame, headers: u16) {
        (self.frames, self.headers) = (original.frames, headers);
    }

    fn set_offload(&mut self, offload: Offload) {
        (self.offload, self.csum_offset) = offload.words();
    }

    /// Writes its offload header in front of it, where something is left to be done. The last two
    /// bytes, the buffer count, stay as they came.
    fn write_offload(&self, buffer: &mut [u8]) {
        debug_assert!(self.place == Place::Landing);
        if self.offload().is_pending() {
            const SAID: usize = Offload::LEN - 2;
            let front = usize::from(self.start) - Offload::LEN;
            buffer[front..][..SAID].copy_from_slice(&self.offload().write()[..SAID]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::frame::{Batch, Cache, Pool, Untaggable};
    use crate::wire::{Offload, Vid};

    /// A header, and the bytes behind it.
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
                *byte = 0x50; // where TCP says how long its header is
            }
            Sketch { header, bytes }
        })
    }

    /// Puts the frame into the batch, into slots or into a receive buffer.
    fn put(sketch: &Sketch, landed: bool, batch: &mut Batch, cache: &mut Cache) -> usize {
        if landed {
            let all = [&sketch.header[..], &sketch.bytes].concat();
            let read = |room: &mut [u8]| {
                room[..all.len()].copy_from_slice(&all);
                Ok::<_, ()>(all.len())
            };
            batch.land(true, read).unwrap();
        } else {
            batch.push(cache.frame(&sketch.bytes, Offload::read(&sketch.header)).unwrap());
        }
        batch.len() - 1
    }

    type Looks = (Vec<u8>, Option<Vec<u8>>, Offload, (u64, u64), u32, bool);

    /// All that can be seen of a frame.
    fn looks(batch: &Batch, index: usize) -> Looks {
        let (view, frame) = (batch.view(index), batch.frame(index));
        let with_header = view.with_header.map(<[u8]>::to_vec);
        (view.to_vec(), with_header, frame.offload(), frame.counts(), frame.longest(), frame.is_sound())
    }

    fn with_tag(bytes: &[u8], vid: Vid) -> Vec<u8> {
        [&bytes[..12], &vid.tag(), &bytes[12..]].concat()
    }

    proptest! {
        #[test]
        fn a_tag_comes_and_goes_without_a_trace(sketch in sketch(), landed: bool, vid in 1..4095u16, others in 0..16u32) {
            let pool = Pool::new(256).unwrap();
            let mut cache = Cache::new(pool);
            let mut batch = Batch::new();
            // In each slot frames begin at another place.
            let held: Vec<_> = (0..others).map(|_| cache.frame(&[0; 60], Offload::NONE).unwrap()).collect();
            let vid = Vid::new(vid).unwrap();
            let index = put(&sketch, landed, &mut batch, &mut cache);
            let before = looks(&batch, index);
            let after = batch.adopt_tagged(index, vid, false, &mut cache);
            let pushed = batch.push_tag(index, vid, &mut cache);
            match pushed {
                Ok(()) => {
                    let tagged = looks(&batch, index);
                    prop_assert_eq!(&tagged.0, &with_tag(&before.0, vid));
                    prop_assert_eq!(Some(tagged.2), before.2.with_tag());
                    prop_assert_eq!(tagged.3.0, before.3.0, "as many frames");
                    prop_assert_eq!(tagged.5, before.5);
                    if before.5 && !before.2.is_pending() {
                        prop_assert_eq!(tagged.3.1, before.3.1 + 4);
                    }
                    if let Some(with_header) = &tagged.1 {
                        prop_assert_eq!(&with_header[..10], &tagged.2.write()[..10]);
                        prop_assert!(tagged.0.starts_with(&with_header[12..]));
                    }
                    batch.push(after.unwrap());
                    let copy = looks(&batch, index + 1);
                    prop_assert_eq!((&copy.0, copy.2, copy.3, copy.4, copy.5), (&tagged.0, tagged.2, tagged.3, tagged.4, tagged.5));
                    prop_assert!(batch.pop_tag(index));
                    // What is a lie stays one; another lie perhaps.
                    if before.5 {
                        prop_assert_eq!(looks(&batch, index), before);
                    } else {
                        prop_assert_eq!((looks(&batch, index).0, batch.frame(index).is_sound()), (before.0, false));
                    }
                }
                Err(why) => {
                    prop_assert_eq!((after.err(), why), (Some(Untaggable::Offsets), Untaggable::Offsets));
                    prop_assert!(before.2.is_pending());
                    prop_assert_eq!(looks(&batch, index), before);
                }
            }
            drop(held);
            batch.clear(&mut cache);
            drop(cache);
            prop_assert_eq!(pool.free(), 256);
        }

        /// Whatever a frame from outside has for its first four bytes behind the addresses.
        #[test]
        fn a_tag_goes_off_any_frame(sketch in sketch(), landed: bool) {
            let pool = Pool::new(256).unwrap();
            let mut cache = Cache::new(pool);
            let mut batch = Batch::new();
            let index = put(&sketch, landed, &mut batch, &mut cache);
            let before = looks(&batch, index);
            let popped = batch.pop_tag(index);
            prop_assert_eq!(popped, sketch.bytes.len() >= 18);
            if popped {
                let after = looks(&batch, index);
                prop_assert_eq!(&after.0, &[&before.0[..12], &before.0[16..]].concat());
                let offload = before.2.without_tag().filter(|_| before.5);
                prop_assert_eq!(after.5, offload.is_some());
                if let Some(offload) = offload {
                    prop_assert_eq!((after.2, after.3.0), (offload, before.3.0));
                    // And it is measured alike when it is copied.
                    let copy = batch.adopt(index, &mut cache).unwrap();
                    prop_assert_eq!((copy.counts(), copy.is_sound()), (after.3, true));
                    cache.recycle(copy);
                }
            }
            batch.clear(&mut cache);
            drop(cache);
            prop_assert_eq!(pool.free(), 256);
        }
    }

    proptest! {
        /// Whatever tag a frame has or had: one of the VLAN takes the place of a priority tag, and keeps the priority.
        #[test]
        fn a_priority_is_kept(
            sketch in sketch(), landed: bool, tci: u16, vid in 1..4095u16, popped: bool, kind in prop::sample::select(vec![0x8100u16, 0x88a8]),
        ) {
            prop_assume!(sketch.bytes.len() >= 18);
            let pool = Pool::new(256).unwrap();
            let (mut cache, mut batch) = (Cache::new(pool), Batch::new());
            let tci = if popped { tci } else { tci & 0xf000 };
            let mut sketch = sketch;
            sketch.bytes[12..14].copy_from_slice(&kind.to_be_bytes());
            sketch.bytes[14..16].copy_from_slice(&tci.to_be_bytes());
            let index = put(&sketch, landed, &mut batch, &mut cache);
            if popped {
                prop_assert!(batch.pop_tag(index));
            }
            let before = looks(&batch, index);
            let vid = Vid::new(vid).unwrap();
            let is_known = kind == 0x8100;
            let tag = [&[0x81, 0x00][..], &((if is_known { tci & 0xf000 } else { 0 }) | vid.get()).to_be_bytes()].concat();
            let replaces = is_known && !popped;
            let behind = if replaces { 16 } else { 12 };
            let expected = [&before.0[..12], &tag, &before.0[behind..]].concat();
            let copy = batch.adopt_tagged(index, vid, false, &mut cache);
            if batch.push_tag(index, vid, &mut cache).is_ok() {
                let after = looks(&batch, index);
                prop_assert_eq!(&after.0, &expected);
                if replaces {
                    prop_assert_eq!((after.2, after.3, after.5), (before.2, before.3, before.5));
                }
                batch.push(copy.unwrap());
                let copy = looks(&batch, index + 1);
                prop_assert_eq!((&copy.0, copy.2, copy.3, copy.5), (&after.0, after.2, after.3, after.5));
            } else {
                prop_assert!(copy.is_err() && before.2.is_pending() && !replaces);
            }
            batch.clear(&mut cache);
            // The next burst knows nothing of it.
            let plain = Sketch { header: [0; 12], bytes: vec![7; 60] };
            let index = put(&plain, landed, &mut batch, &mut cache);
            prop_assert_eq!(batch.priority(index), None);
            batch.clear(&mut cache);
            drop(cache);
            prop_assert_eq!(pool.free(), 256);
        }

        #[test]
        fn a_short_frame_is_padded(len in 14..60usize, landed: bool, header in any::<[u8; 12]>(), vid in 1..4095u16) {
            let pool = Pool::new(256).unwrap();
            let (mut cache, mut batch) = (Cache::new(pool), Batch::new());
            let sketch = Sketch { header, bytes: (1..=len).map(|at| at as u8).collect() };
            // What lay in the memory before does not show.
            for _ in 0..2 {
                put(&Sketch { header: [0; 12], bytes: vec![0xee; 200] }, landed, &mut batch, &mut cache);
                batch.clear(&mut cache);
            }
            let index = put(&sketch, landed, &mut batch, &mut cache);
            let is_pending = Offload::read(&header).is_pending();
            prop_assert_eq!(batch.is_short(index), !is_pending);
            if !is_pending {
                let vid = Vid::new(vid).unwrap();
                let tagged = batch.adopt_tagged(index, vid, true, &mut cache).unwrap();
                let copy = batch.adopt_padded(index, &mut cache).unwrap();
                batch.pad(index, &mut cache).unwrap();
                batch.push(copy);
                batch.push(tagged);
                let mut expected = sketch.bytes.clone();
                expected.resize(60, 0);
                prop_assert_eq!(batch.view(index).to_vec(), &expected[..]);
                prop_assert_eq!(batch.view(index + 1).to_vec(), expected);
                let mut expected = with_tag(&sketch.bytes, vid);
                expected.resize(expected.len().max(60), 0);
                prop_assert_eq!(batch.view(index + 2).to_vec(), expected);
            }
            batch.clear(&mut cache);
            drop(cache);
            prop_assert_eq!(pool.free(), 256);
        }
    }

    /// As many tags as there is headroom for go in where the frame is, and one more into a copy.
    #[test]
    fn without_headroom_the_frame_is_copied() {
        let pool = Pool::new(64).unwrap();
        let mut cache = Cache::new(pool);
        let mut batch = Batch::new();
        let sketch = Sketch { header: [0; 12], bytes: (0..100).collect() };
        let mut expected = sketch.bytes.clone();
        for landed in [true, false] {
            put(&sketch, landed, &mut batch, &mut cache);
        }
        for round in 1..600u16 {
            let vid = Vid::new(round).unwrap();
            expected = with_tag(&expected, vid);
            for index in 0..2 {
                batch.push_tag(index, vid, &mut cache).unwrap();
                assert!(batch.view(index).to_vec() == expected, "{round} tags");
            }
        }
        assert!(batch.frame(0).is_owned(), "it has left the receive buffer");
        batch.clear(&mut cache);
        // Without a slot to copy to it stays as it was.
        let mut held = Vec::new();
        put(&sketch, true, &mut batch, &mut cache);
        while let Some(frame) = cache.frame(&[0; 60], Offload::NONE) {
            held.push(frame);
        }
        let vid = Vid::new(7).unwrap();
        let done = (1..100).take_while(|_| batch.push_tag(0, vid, &mut cache).is_ok()).count();
        assert_eq!(batch.push_tag(0, vid, &mut cache), Err(Untaggable::NoSlot));
        assert_eq!(batch.frame(0).len() as usize, 100 + 4 * done);
        drop(held);
        batch.clear(&mut cache);
        drop(cache);
        assert_eq!(pool.free(), 64);
    }
}
