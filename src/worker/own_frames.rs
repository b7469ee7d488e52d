//! Transmits frames that the switch originates: loop probes and announcements. No ingress port and no verdict is
//! involved.

use super::Worker;
use super::port_counters::counters_of;
use super::queues::TaggedEgress;
use crate::frame::{BURST, Frame};
use crate::switch::{DropReason, PortId};
use crate::wire::{Announcement, Offload, Probe, TAG_LEN, Vid};

impl Worker {
    /// Transmits loop probes, each by its port, also by quarantined ports. Runs between two calls of `poll_once`:
    /// the TX batches are empty before and after.
    #[cold]
    pub(super) fn send_probes(&mut self, probes: &[(PortId, [u8; Probe::LEN])]) {
        for burst in probes.chunks(BURST) {
            for (port, bytes) in burst {
                self.send_probe(*port, bytes);
            }
            self.flush_tx();
        }
    }

    fn send_probe(&mut self, port: PortId, bytes: &[u8; Probe::LEN]) {
        let config = self.switch.config();
        if config.port(port).is_none() {
            return;
        }
        let at = config.counting_port(port);
        let sent = self.send_own(port, bytes);
        if let Some(counters) = counters_of(&self.port_counters, at) {
            counters.probes.add(1);
            if let Err(reason) = sent {
                counters.drops_out.add(reason, 1);
            }
        }
    }

    /// Transmits announcements, each by its uplink only. Runs between two calls of `poll_once`, as for probes.
    #[cold]
    pub(super) fn send_announcements(&mut self, announcements: &[(PortId, [u8; Announcement::LEN])]) {
        for burst in announcements.chunks(BURST) {
            for (port, bytes) in burst {
                self.send_announcement(*port, bytes);
            }
            self.flush_tx();
        }
    }

    fn send_announcement(&mut self, port: PortId, bytes: &[u8; Announcement::LEN]) {
        let config = self.switch.config();
        // Announcements never go to guests: a port that is not an uplink is skipped.
        if !config.port(port).is_some_and(|port| port.is_uplink()) {
            return;
        }
        let at = config.counting_port(port);
        let sent = self.send_own(port, bytes);
        if let Some(counters) = counters_of(&self.port_counters, at) {
            counters.announcements.add(1);
            if let Err(reason) = sent {
                counters.drops_out.add(reason, 1);
            }
        }
    }

    fn send_own(&mut self, port: PortId, bytes: &[u8]) -> Result<(), DropReason> {
        let egress = self.queues.probe_egress(port, self.switch.config())?;
        self.enter_own(egress, bytes)
    }

    /// Pushes an own frame into the TX batch of an egress entry, with the VLAN tag of that entry.
    fn enter_own(
        &mut self,
        TaggedEgress { entry: egress, vlan, .. }: TaggedEgress,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let frame = self.build_own(vlan, bytes).ok_or(DropReason::NoBuffer)?;
        self.queues.tx_mut(egress).push(frame);
        Ok(())
    }

    fn build_own(&mut self, vlan: Option<Vid>, bytes: &[u8]) -> Option<Frame> {
        const ADDRESSES: usize = 12;
        const MOST: usize = Probe::LEN + TAG_LEN;
        const { assert!(Announcement::LEN <= Probe::LEN) };
        let mut tagged = [0; MOST];
        let (before, after) = bytes.split_at_checked(ADDRESSES)?;
        let tag = vlan.map(Vid::tag);
        let parts = before.iter().chain(tag.iter().flatten()).chain(after);
        let len = tagged.iter_mut().zip(parts).map(|(to, &from)| *to = from).count();
        let mut rest = &tagged[..len];
        #[allow(clippy::cast_possible_truncation)] // 68 at most
        self.magazine.build(len as u32, Offload::NONE, |subports| {
            let (now, then) = rest.split_at(subports.len());
            subports.copy_from_slice(now);
            rest = then;
        })
    }
}
