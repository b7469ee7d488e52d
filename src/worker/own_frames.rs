//! Transmits frames that the switch originates: loop probes and announcements. No ingress port and no verdict is
//! involved.

use super::Worker;
use super::port_counters::counters_of;
use super::queues::TaggedEgress;
use crate::frame::{BURST, Frame};
use crate::switch::{DropReason, PortConfig, PortId};
use crate::telemetry::{Counter, PortCounters};
use crate::wire::{Announcement, HostProbe, Offload, ProbeFrame, TAG_LEN, Vid};

impl Worker {
    /// Transmits loop probes, each by its port, also by quarantined ports. Runs between two calls of `poll_once`:
    /// the TX batches are empty before and after.
    #[cold]
    pub(super) fn send_probes(&mut self, probes: &[(PortId, ProbeFrame)]) {
        self.send_own(probes, |_| true, |counters| &counters.probes);
    }

    /// Transmits announcements, each by its uplink only, never to guests. Runs between two calls of `poll_once`, as for
    /// probes.
    #[cold]
    pub(super) fn send_announcements(&mut self, announcements: &[(PortId, [u8; Announcement::LEN])]) {
        self.send_own(announcements, PortConfig::is_uplink, |counters| &counters.announcements);
    }

    /// Transmits frames, each by its port. Skips ports that are closed or not `allowed`.
    fn send_own(
        &mut self,
        frames: &[(PortId, impl AsRef<[u8]>)],
        allowed: fn(&PortConfig) -> bool,
        counter: fn(&PortCounters) -> &Counter,
    ) {
        for burst in frames.chunks(BURST) {
            for (port, bytes) in burst {
                let config = self.switch.config();
                if !config.port(*port).is_some_and(allowed) {
                    continue;
                }
                let at = config.counting_port(*port);
                let sent = self.push_own(*port, bytes.as_ref());
                if let Some(counters) = counters_of(&self.port_counters, at) {
                    counter(counters).add(1);
                    if let Err(reason) = sent {
                        counters.drops_out.add(reason, 1);
                    }
                }
            }
            self.flush_tx();
        }
    }

    /// Pushes an own frame into the TX batch of a port, with the VLAN tag of the port's egress entry.
    fn push_own(&mut self, port: PortId, bytes: &[u8]) -> Result<(), DropReason> {
        let TaggedEgress { entry, vlan, .. } = self.queues.probe_egress(port, self.switch.config())?;
        let frame = self.build_own(vlan, bytes).ok_or(DropReason::NoBuffer)?;
        self.queues.tx_mut(entry).push(frame);
        Ok(())
    }

    fn build_own(&mut self, vlan: Option<Vid>, bytes: &[u8]) -> Option<Frame> {
        const ADDRESSES: usize = 12;
        const MOST: usize = HostProbe::MAX_LEN + TAG_LEN;
        const { assert!(Announcement::LEN <= HostProbe::MAX_LEN) };
        let mut tagged = [0; MOST];
        let (before, after) = bytes.split_at_checked(ADDRESSES)?;
        let tag = vlan.map(Vid::tag);
        let parts = before.iter().chain(tag.iter().flatten()).chain(after);
        let len = tagged.iter_mut().zip(parts).map(|(to, &from)| *to = from).count();
        let mut rest = &tagged[..len];
        #[allow(clippy::cast_possible_truncation)] // 255 at most
        self.magazine.build(len as u32, Offload::NONE, |room| {
            let (now, then) = rest.split_at(room.len());
            room.copy_from_slice(now);
            rest = then;
        })
    }
}
