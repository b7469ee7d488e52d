//! Dispatches frames of trunks: devices that several ports share, each with its own VLAN tag or untagged.

use super::outbox::{BurstStats, Outbox};
use super::port_counters::counters_of;
use super::queues::place;
use super::queues::{EgressEntry, TaggedEgress};
use crate::frame::TagError;
use crate::switch::{DropReason, IngressPorts, PortId};
use crate::wire::is_without_vlan;

impl Outbox<'_> {
    /// Executes the verdicts on a burst from trunk `from`. Each frame counts at its ingress port, including the
    /// bytes of its tag.
    #[inline(never)] // to limit register pressure
    pub(super) fn dispatch_trunk(&mut self, from: PortId, ingress_ports: &IngressPorts, not_learned: u64) {
        if not_learned != 0 {
            self.count_not_learned(|index| ingress_ports[index].port, not_learned);
        }
        let (mut at, mut stats) = (from, BurstStats::default());
        let verdicts = self.verdicts.iter().zip(ingress_ports).enumerate().take(self.batch.len());
        for (index, (&verdict, origin)) in verdicts {
            if origin.port != at {
                self.add_stats(at, &stats);
                (at, stats) = (origin.port, BurstStats::default());
            }
            stats.bytes += self.batch.frame(index).count() * origin.tag;
            self.execute(index, verdict, at, &mut stats);
        }
        self.add_stats(at, &stats);
    }

    fn add_stats(&mut self, port: PortId, stats: &BurstStats) {
        self.any_forwarded |= stats.any_forwarded();
        if let Some(counters) = counters_of(self.port_counters, port) {
            stats.add_to(counters);
        }
    }

    /// Egress of port `to` on a trunk at this worker. Inserts the port's VLAN tag into frame `index`, which has no
    /// other egress. `None` if the frame has been handed off or dropped.
    #[inline(never)] // keeps register pressure off the fast path
    pub(super) fn tagged_egress(&mut self, index: usize, to: PortId) -> Option<EgressEntry> {
        let Some(TaggedEgress { entry: egress, vlan, pads }) = self.queues.tagged_egress(to) else {
            self.hand_off(index, to);
            return None;
        };
        let done = match vlan {
            Some(vid) => self.batch.push_tag(index, vid, self.magazine).map_err(reason),
            None => self.check_untagged(index),
        };
        let done = match done {
            Ok(()) if pads && self.batch.is_short(index) => self.batch.pad(index, self.magazine).map_err(reason),
            done => done,
        };
        match done {
            Ok(()) => Some(egress),
            Err(reason) => {
                self.drop_tx(index, to, reason);
                None
            }
        }
    }

    /// Pushes frame `index`, which other ports also receive, to port `to`: as a copy if it needs a tag or padding,
    /// else borrowed.
    #[inline(never)]
    pub(super) fn flood_tagged(&mut self, index: usize, to: PortId, tagged: TaggedEgress) {
        let TaggedEgress { entry: egress, vlan, pads } = tagged;
        self.mark_sw_offload(index, egress);
        let done = match vlan {
            Some(vid) => match self.batch.copy_tagged(index, vid, pads, self.magazine) {
                Ok(copy) => {
                    self.queues.tx_mut(egress).push(copy);
                    Ok(())
                }
                Err(why) => Err(reason(why)),
            },
            None => self.check_untagged(index).and_then(|()| {
                if pads && self.batch.is_short(index) {
                    let copy = self.batch.copy_padded(index, self.magazine).ok_or(DropReason::NoBuffer)?;
                    self.queues.tx_mut(egress).push(copy);
                } else {
                    self.queues.tx_mut(egress).borrow(place(index));
                    self.borrowed = true;
                }
                Ok(())
            }),
        };
        if let Err(reason) = done {
            self.drop_tx(index, to, reason);
        }
    }

    /// Guests may tag frames freely. On an untagged network, a guest's own tag must not carry its frame into
    /// another network.
    fn check_untagged(&self, index: usize) -> Result<(), DropReason> {
        if is_without_vlan(self.batch.head(index)) { Ok(()) } else { Err(DropReason::ForeignVlan) }
    }
}

const fn reason(why: TagError) -> DropReason {
    match why {
        TagError::NoSlot => DropReason::NoBuffer,
        TagError::Offsets => DropReason::OffloadUnsupported,
    }
}
