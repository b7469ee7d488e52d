//! Tags and padding of the frames of a batch: in place, or in a copy if there is no headroom.

use super::{Batch, STRIDE, concat};
use crate::frame::Magazine;
use crate::frame::descriptor::{Frame, TAG_AT};
use crate::wire::{MIN_WIRE_LEN, Priority, TAG_LEN, Vid};

/// Why a tag cannot be inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagError {
    /// No slot is free for a copy.
    NoSlot,
    /// The frame has no Ethernet header, or an offload offset would overflow.
    Offsets,
}

impl Batch {
    /// The tag for the frame at `index` on VLAN `vid`, and whether it replaces a tag. Keeps the priority of the
    /// removed tag. A priority tag on the frame (VLAN 0) is replaced, and its priority kept.
    fn tag_for(&self, index: usize, vid: Vid) -> ([u8; TAG_LEN], bool) {
        if let Some(priority) = self.priority(index) {
            return (vid.tag_with(priority), false);
        }
        match Priority::of_priority_tag(self.head(index)) {
            Some(priority) => (vid.tag_with(priority), true),
            None => (vid.tag(), false),
        }
    }

    /// Like `copy_to_pool`, with the tag of VLAN `vid` inserted. With `pads`, padded to the wire's minimum.
    pub fn copy_tagged(&self, index: usize, vid: Vid, pads: bool, magazine: &mut Magazine) -> Result<Frame, TagError> {
        let (frame, (tag, replaces)) = (self.frame_ref(index), self.tag_for(index, vid));
        let (addresses, rest) = frame.head.split_at_checked(TAG_AT).ok_or(TagError::Offsets)?;
        let (rest, after) = match replaces {
            true => (rest.get(TAG_LEN..).unwrap_or_default(), Some(frame.frame.current())),
            false => (rest, frame.frame.tagged()),
        };
        let (offload, headers) = after.ok_or(TagError::Offsets)?;
        #[allow(clippy::cast_possible_truncation)] // 4
        let len = frame.frame.len() + if replaces { 0 } else { TAG_LEN as u32 };
        let padding = if pads && !offload.needs_offload() { padding(len) } else { &[] };
        let parts = [addresses, &tag, rest].into_iter().chain(frame.tail()).chain([padding]);
        #[allow(clippy::cast_possible_truncation)] // 60 at most
        let len = len + padding.len() as u32;
        let mut copy = concat(parts, len, offload, magazine).ok_or(TagError::NoSlot)?;
        copy.count_as(frame.frame, headers);
        Ok(copy)
    }

    /// Whether the frame at `index` is shorter than the wire's minimum. False with offload pending: the software
    /// offload pads the frames that it builds.
    #[inline]
    pub fn is_short(&self, index: usize) -> bool {
        let frame = self.frame(index);
        frame.len() < MIN_WIRE_LEN && !frame.offload().needs_offload()
    }

    /// Copies a short frame, padded to the wire's minimum. `None` when the pool has no slots left.
    pub fn copy_padded(&self, index: usize, magazine: &mut Magazine) -> Option<Frame> {
        let frame = self.frame_ref(index);
        let parts = std::iter::once(frame.head).chain(frame.tail()).chain([padding(frame.frame.len())]);
        concat(parts, frame.frame.len().max(MIN_WIRE_LEN), frame.frame.offload(), magazine)
    }

    /// Pads a short frame to the wire's minimum. No TX batch may have borrowed it.
    #[cold]
    pub fn pad(&mut self, index: usize, magazine: &mut Magazine) -> Result<(), TagError> {
        let frame = &mut self.frames[index];
        let done = match frame.rx_buffer() {
            Some((buffer, _)) => frame.pad_in_buffer(&mut self.rx_buffers[buffer * STRIDE..][..STRIDE]),
            None => frame.pad_owned(),
        };
        if !done {
            let copy = self.copy_padded(index, magazine).ok_or(TagError::NoSlot)?;
            magazine.recycle(std::mem::replace(&mut self.frames[index], copy));
        }
        Ok(())
    }

    /// Removes the tag after the MAC addresses of the frame at `index`, of any TPID. Adjusts the offload offsets;
    /// if they become invalid, the frame is marked invalid. Keeps the priority for a tag inserted at egress.
    /// `false` if fewer bytes than an Ethernet header would remain.
    pub fn pop_tag(&mut self, index: usize) -> bool {
        self.set_priority(index, Priority::of_tag(self.head(index)));
        let frame = &mut self.frames[index];
        match frame.rx_buffer() {
            Some((buffer, _)) => frame.pop_in_buffer(&mut self.rx_buffers[buffer * STRIDE..][..STRIDE]),
            None => frame.pop_owned(),
        }
    }

    /// Inserts the tag of VLAN `vid` into the frame at `index`: in place, or, without headroom, in a copy that
    /// replaces it. Replaces a priority tag. No TX batch may have borrowed the frame.
    pub fn push_tag(&mut self, index: usize, vid: Vid, magazine: &mut Magazine) -> Result<(), TagError> {
        let (tag, replaces) = self.tag_for(index, vid);
        let frame = &mut self.frames[index];
        let done = match (frame.rx_buffer(), replaces) {
            (Some((buffer, _)), true) => {
                frame.replace_in_buffer(tag, &mut self.rx_buffers[buffer * STRIDE..][..STRIDE])
            }
            (Some((buffer, _)), false) => frame.push_in_buffer(tag, &mut self.rx_buffers[buffer * STRIDE..][..STRIDE]),
            (None, true) => frame.replace_owned(tag),
            (None, false) => frame.push_owned(tag),
        };
        if !done {
            let copy = self.copy_tagged(index, vid, false, magazine)?;
            magazine.recycle(std::mem::replace(&mut self.frames[index], copy));
        }
        Ok(())
    }
}

/// Zeros that pad a frame of this length to the wire's minimum.
fn padding(len: u32) -> &'static [u8] {
    const ZEROS: &[u8] = &[0; MIN_WIRE_LEN as usize];
    ZEROS.get(len as usize..).unwrap_or_default()
}
