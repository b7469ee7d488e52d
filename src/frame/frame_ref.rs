//! A frame of a batch as a device transmits it.

use super::descriptor::{Frame, Tail};
use crate::wire::OffloadSet;

/// A frame as the transmitting device sees it.
#[derive(Debug, Clone, Copy)]
pub struct FrameRef<'a> {
    /// The frame.
    pub frame: &'a Frame,
    /// Its first segment: all of it, unless it is longer than a slot.
    pub head: &'a [u8],
    /// The virtio_net_hdr and the first segment, if contiguous.
    pub with_header: Option<&'a [u8]>,
}

impl<'a> FrameRef<'a> {
    /// The segments after the first.
    pub fn tail(&self) -> Tail<'a> {
        self.frame.tail()
    }

    /// Whether a device with the offloads `set` can transmit it unmodified.
    #[inline]
    pub fn is_supported_by(&self, set: OffloadSet) -> bool {
        let offload = self.frame.offload();
        !offload.needs_offload() || set.takes(offload, self.head, self.frame.len(), self.frame.count())
    }

    /// Whether it has a single segment.
    #[inline(always)]
    pub fn is_contiguous(&self) -> bool {
        self.frame.head_len() == self.frame.len()
    }

    /// Copies all its bytes. For tests and captures.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.frame.len() as usize);
        all.extend_from_slice(self.head);
        self.tail().for_each(|part| all.extend_from_slice(part));
        all
    }
}
