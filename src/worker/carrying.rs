//! Frames that come or leave by a device which carries several ports: each with the tag of its own, or
//! with none.

use super::gate::{CarriedDoor, Door};
use super::outbox::{Outbox, Tally, book, place};
use crate::frame::Untaggable;
use crate::switch::{DropReason, Origins, PortId};
use crate::wire::is_without_vlan;

impl Outbox<'_> {
    /// Carries out the verdicts on the burst that came in at carrier `from`. Each frame counts where it belongs,
    /// with the tag that it had.
    #[inline(never)] // with registers of its own
    pub(super) fn deliver_carried(&mut self, from: PortId, origins: &Origins, unlearned: u64) {
        if unlearned != 0 {
            self.count_unlearned(|index| origins[index].port, unlearned);
        }
        let (mut at, mut tally) = (from, Tally::default());
        let verdicts = self.verdicts.iter().zip(origins).enumerate().take(self.batch.len());
        for (index, (&verdict, origin)) in verdicts {
            if origin.port != at {
                self.enter_tally(at, &tally);
                (at, tally) = (origin.port, Tally::default());
            }
            tally.bytes += self.batch.frame(index).count() * origin.tag;
            self.carry_out(index, verdict, at, &mut tally);
        }
        self.enter_tally(at, &tally);
    }

    fn enter_tally(&mut self, port: PortId, tally: &Tally) {
        self.lived |= tally.lives();
        if let Some(book) = book(self.books, port) {
            tally.enter(book);
        }
    }

    /// The door of port `to`, if it is carried by a device here; frame `index`, which goes nowhere else,
    /// has the tag then that it needs there. If there is none here, or the frame may not leave by it,
    /// it has been seen to.
    #[inline(never)] // it would crowd the registers of the way to devices of one port
    pub(super) fn by_carrier(&mut self, index: usize, to: PortId) -> Option<Door> {
        let Some(CarriedDoor { door, vlan, pads }) = self.gates.carried_door(to) else {
            self.send_away(index, to);
            return None;
        };
        let done = match vlan {
            Some(vid) => self.batch.push_tag(index, vid, self.cache).map_err(reason),
            None => self.goes_untagged(index),
        };
        let done = match done {
            Ok(()) if pads && self.batch.is_short(index) => self.batch.pad(index, self.cache).map_err(reason),
            done => done,
        };
        match done {
            Ok(()) => Some(door),
            Err(reason) => {
                self.lose(index, to, reason);
                None
            }
        }
    }

    /// Puts frame `index`, which goes elsewhere as well, into the lane behind a door of port `to`: a
    /// copy of it, if it needs a tag, or is too short for a wire.
    #[inline(never)]
    pub(super) fn flood_carried(&mut self, index: usize, to: PortId, carried: CarriedDoor) {
        let CarriedDoor { door, vlan, pads } = carried;
        self.note_unfinished(index, door);
        let done = match vlan {
            Some(vid) => match self.batch.adopt_tagged(index, vid, pads, self.cache) {
                Ok(copy) => {
                    self.gates.enter(door).push(copy);
                    Ok(())
                }
                Err(why) => Err(reason(why)),
            },
            None => self.goes_untagged(index).and_then(|()| {
                if pads && self.batch.is_short(index) {
                    let copy = self.batch.adopt_padded(index, self.cache).ok_or(DropReason::NoBuffer)?;
                    self.gates.enter(door).push(copy);
                } else {
                    self.gates.enter(door).borrow(place(index));
                    self.borrowed = true;
                }
                Ok(())
            }),
        };
        if let Err(reason) = done {
            self.lose(index, to, reason);
        }
    }

    /// A guest may tag its frames as it likes. Where its network has no tag, one of its own must not
    /// carry a frame over to another network.
    fn goes_untagged(&self, index: usize) -> Result<(), DropReason> {
        if is_without_vlan(self.batch.head(index)) { Ok(()) } else { Err(DropReason::ForeignVlan) }
    }
}

const fn reason(why: Untaggable) -> DropReason {
    match why {
        Untaggable::NoSlot => DropReason::NoBuffer,
        Untaggable::Offsets => DropReason::OffloadUnsupported,
    }
}
