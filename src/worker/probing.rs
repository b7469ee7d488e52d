//! Loop probes on their way out: frames of the switch's own, which no port sent and no verdict is about.

use super::Worker;
use super::gate::CarriedDoor;
use super::outbox::book;
use crate::frame::{BURST, Frame};
use crate::switch::{DropReason, PortId};
use crate::wire::{Offload, Probe, TAG_LEN, Vid};

impl Worker {
    /// Sends loop probes, each out of its port, also if that is in quarantine. Between two breaths: the lanes are
    /// empty before and after it.
    #[cold]
    pub(super) fn send_probes(&mut self, probes: &[(PortId, [u8; Probe::LEN])]) {
        for burst in probes.chunks(BURST) {
            for (port, bytes) in burst {
                self.send_probe(*port, bytes);
            }
            self.exhale();
        }
    }

    fn send_probe(&mut self, port: PortId, bytes: &[u8; Probe::LEN]) {
        let rules = self.switch.rules();
        if rules.port(port).is_none() {
            return;
        }
        let at = rules.counted_at(port);
        let found = self.gates.door_for_probes(port, rules);
        let entered = found.and_then(|door| self.enter_probe(door, bytes));
        if let Some(book) = book(&self.books, at) {
            book.probes.add(1);
            if let Err(reason) = entered {
                book.drops_out.add(reason, 1);
            }
        }
    }

    /// Puts a probe into the lane behind a door, with the tag that it needs there.
    fn enter_probe(&mut self, (door, vlan): CarriedDoor, bytes: &[u8; Probe::LEN]) -> Result<(), DropReason> {
        let frame = self.build_probe(vlan, bytes).ok_or(DropReason::NoBuffer)?;
        self.gates.enter(door).push(frame);
        Ok(())
    }

    fn build_probe(&mut self, vlan: Option<Vid>, bytes: &[u8; Probe::LEN]) -> Option<Frame> {
        const ADDRESSES: usize = 12;
        const MOST: usize = Probe::LEN + TAG_LEN;
        let mut tagged = [0; MOST];
        let (before, behind) = bytes.split_at(ADDRESSES);
        let tag = vlan.map(Vid::tag);
        let parts = before.iter().chain(tag.iter().flatten()).chain(behind);
        let len = tagged.iter_mut().zip(parts).map(|(to, &from)| *to = from).count();
        let mut rest = &tagged[..len];
        #[allow(clippy::cast_possible_truncation)] // 68 at most
        self.cache.build(len as u32, Offload::NONE, |room| {
            let (now, then) = rest.split_at(room.len());
            room.copy_from_slice(now);
            rest = then;
        })
    }
}
