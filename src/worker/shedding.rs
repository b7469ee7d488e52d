//! Shedding at the door: while a port may not send to groups, its device drops such frames by itself, if it can.
//!
//! Whether it may is for the buckets to say ([`PortRules::mute_until`](crate::switch::PortRules::mute_until)), and they
//! are asked only after a frame has died of them.
//! Then no frame of that kind can live before a certain moment, until which the device is told to drop them. What it
//! dropped enters the books as if it had come in and died here, and for the same reason.
//!
//! Only for ports with a device of their own: what is behind a carrier is told apart by tags, which no
//! device looks at.

use super::breath::Worker;
use super::gate::Gate;
use super::mail::Books;
use super::outbox::{bit, book};
use crate::device::Group;
use crate::switch::{DropReason, Reach, StormClass};
use crate::time::Moment;

/// The reasons of which frames die at the limits of their class.
pub(super) const OF_STORMS: u64 =
    bit(DropReason::StormBroadcast) | bit(DropReason::StormMulticast) | bit(DropReason::StormVm);

/// No gate sheds.
pub(super) const NEVER: Moment = Moment::from_nanos(u64::MAX);

/// What the device of a gate sheds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shedding {
    broadcast: Shed,
    multicast: Shed,
}

/// That frames to a group are shed, or were.
#[derive(Debug, Clone, Copy)]
struct Shed {
    /// Until when; `None`: it is over.
    until: Option<Moment>,
    /// What they would die of otherwise. It stays, for a frame that was on its way to be counted as it ended.
    reason: DropReason,
}

impl Default for Shedding {
    fn default() -> Shedding {
        let none = |group| Shed { until: None, reason: class(group).reason() };
        Shedding { broadcast: none(Group::Broadcast), multicast: none(Group::Multicast) }
    }
}

impl Shedding {
    fn of(&mut self, group: Group) -> &mut Shed {
        match group {
            Group::Broadcast => &mut self.broadcast,
            Group::Multicast => &mut self.multicast,
        }
    }
}

/// The class of frames to a group.
const fn class(group: Group) -> StormClass {
    match group {
        Group::Broadcast => StormClass::Broadcast,
        Group::Multicast => StormClass::Multicast,
    }
}

impl Gate {
    /// Enters into the books what its device has shed.
    pub(super) fn count_shed(&mut self, books: &Books) {
        let shed = self.device.was_shed();
        let Some(book) = book(books, self.port) else { return };
        for group in Group::ALL {
            let amount = shed[group];
            book.rx_frames.add(amount.frames);
            book.rx_bytes.add(amount.bytes);
            book.drops_in.add(self.shedding.of(group).reason, amount.frames);
        }
    }

    /// Its device sheds nothing any more, and what it has shed is in the books.
    pub(super) fn lift_sheds(&mut self, books: &Books) {
        for group in Group::ALL {
            if self.shedding.of(group).until.take().is_some() {
                // Also so that the device need not look at its clock any more.
                self.device.shed(group, Moment::default());
            }
        }
        self.count_shed(books);
    }
}

impl Worker {
    /// Has a device shed what its port may not send now, after a frame has died of that.
    #[cold]
    pub(super) fn shed(&mut self, number: usize, now: Moment) {
        let Some(gate) = self.gates.get_mut(number) else { return };
        let Some(port) = self.switch.rules().port(gate.port).filter(|port| port.reach == Reach::Own) else { return };
        // What was shed until now died of what was to blame until now.
        gate.count_shed(&self.books);
        for group in Group::ALL {
            if let Some((until, reason)) = port.mute_until(class(group), now) {
                gate.device.shed(group, until);
                *gate.shedding.of(group) = Shed { until: Some(until), reason };
                self.shed_until = self.shed_until.min(until);
            }
        }
    }

    /// Enters into the books what was shed until now, wherever that has ended.
    #[cold]
    pub(super) fn end_sheds(&mut self, now: Moment) {
        self.shed_until = NEVER;
        for number in 0..self.gates.len() {
            let Some(gate) = self.gates.get_mut(number) else { continue };
            match Group::ALL.into_iter().filter_map(|group| gate.shedding.of(group).until).max() {
                Some(until) if until > now => self.shed_until = self.shed_until.min(until),
                Some(_) => gate.lift_sheds(&self.books),
                None => {}
            }
        }
    }

    /// Enters into the books what was shed until now.
    pub(super) fn count_sheds(&mut self) {
        for number in 0..self.gates.len() {
            if let Some(gate) = self.gates.get_mut(number) {
                gate.count_shed(&self.books);
            }
        }
    }

    /// Nothing is shed any more.
    pub(super) fn lift_sheds(&mut self) {
        self.shed_until = NEVER;
        for number in 0..self.gates.len() {
            if let Some(gate) = self.gates.get_mut(number) {
                gate.lift_sheds(&self.books);
            }
        }
    }
}
