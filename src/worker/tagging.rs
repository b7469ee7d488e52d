//! Frames that leave by a device which carries several networks: each with the tag of its own.

use super::gate::Door;
use super::outbox::Outbox;
use crate::frame::Untaggable;
use crate::switch::{DropReason, PortId};
use crate::wire::Vid;

impl Outbox<'_> {
    /// The door of port `to`, if it has one here behind which frames are tagged; frame `index`, which
    /// goes nowhere else, has its tag then. If there is none here, or no tag can be put on, the frame
    /// has been seen to.
    #[inline(never)] // it would crowd the registers of the way without a tag
    pub(super) fn tag(&mut self, index: usize, to: PortId) -> Option<Door> {
        let Some((door, vid)) = self.gates.tagged_door(to) else {
            self.send_away(index, to);
            return None;
        };
        match self.batch.push_tag(index, vid, self.cache) {
            Ok(()) => Some(door),
            Err(why) => {
                self.lose(index, to, reason(why));
                None
            }
        }
    }

    /// Puts a copy of frame `index` with the tag of `vid` into the lane behind a door of port `to`.
    #[inline(never)]
    pub(super) fn flood_tagged(&mut self, index: usize, to: PortId, door: Door, vid: Vid) {
        if self.batch.frame(index).offload().is_pending() && !door.offloads {
            self.gates.note_unfinished(door);
        }
        match self.batch.adopt_tagged(index, vid, self.cache) {
            Ok(copy) => self.gates.enter(door).push(copy),
            Err(why) => self.lose(index, to, reason(why)),
        }
    }
}

const fn reason(why: Untaggable) -> DropReason {
    match why {
        Untaggable::NoSlot => DropReason::NoBuffer,
        Untaggable::Offsets => DropReason::OffloadUnsupported,
    }
}
