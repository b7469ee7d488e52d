//! Decides the bursts that trunks receive: removes the outer tag of each frame and decides the rest as a frame of
//! the port that the tag identifies. Steps: see `decide.rs`.

use super::decide::{BurstDecision, Decider};
use super::lookup_key::{LookupKey, is_spoofed, prefetch, read, report_spoofed};
use super::port::Port;
use super::probe_receiver::contiguous;
use super::reserved::is_link_local_group;
use super::trunk::{IngressPort, Trunk};
use super::{DropReason, ForwardingConfig, PortConfig, PortId, Switch, Verdict, Verdicts};
use crate::frame::{BURST, Batch};
use crate::time::MonoTime;
use crate::wire::{Header, Mac, TAG_LEN, Tagging};

impl Switch {
    /// Decides the burst received at trunk `from`: removes the outer tag of each frame and decides the rest as a
    /// frame of the port that the tag identifies.
    #[inline(never)]
    pub(super) fn decide_trunk(
        &mut self,
        from: PortId,
        batch: &mut Batch,
        now: MonoTime,
        verdicts: &mut Verdicts,
    ) -> BurstDecision {
        let (config, fdb, updates) = (&*self.config, &mut self.fdb, &mut self.updates);
        self.ingress_ports.fill(IngressPort { port: from, tag: 0 });
        // 1. trunk open, admin up, not backup
        let trunk = config.compiled_trunk(from).ok_or(DropReason::PortClosed);
        let trunk = match trunk.and_then(|trunk| trunk.is_open().map(|()| trunk)) {
            Ok(trunk) => trunk,
            Err(reason) => {
                verdicts.fill(Verdict::Drop(reason));
                return BurstDecision { by_trunk: true, not_learned: 0 };
            }
        };
        let (probe_receiver, flaps, spoofing) = (&mut self.probe_receiver, &mut self.flap_detector, &mut self.spoofing);
        let reports = &mut self.pin_reports;
        let keys = &mut self.keys[..batch.len()];
        let mut ports: [Option<&Port>; BURST] = [None; BURST];
        let mut not_learned = 0;
        for (index, (((key, verdict), place), ingress)) in
            keys.iter_mut().zip(&mut *verdicts).zip(&mut ports).zip(&mut *self.ingress_ports).enumerate()
        {
            *key = match trunk.demux(config, batch, index, now, ingress) {
                Ok((port, header)) => {
                    *place = Some(port);
                    LookupKey::new(config, port, &header)
                }
                Err(Rejection::Spoofed(port, source)) => {
                    report_spoofed(port, source, batch.head(index), now, spoofing);
                    *verdict = Verdict::Drop(DropReason::SpoofedIp);
                    LookupKey::NONE
                }
                Err(Rejection::Drop(reason)) => {
                    *verdict = Verdict::Drop(reason);
                    LookupKey::NONE
                }
                Err(Rejection::Probe(port)) => {
                    let frame = contiguous(batch.frame(index), batch.head(index));
                    *verdict = Verdict::Drop(probe_receiver.receive(port, frame, now));
                    LookupKey::NONE
                }
            };
        }
        prefetch(fdb, keys);
        let (instant, now_secs, batch) = (now, now.secs(), &*batch);
        for (index, ((key, verdict), port)) in keys.iter().zip(verdicts).zip(ports).enumerate() {
            let Some(port) = port else { continue };
            let oldest = (now_secs + 1).saturating_sub(port.ageing);
            let mut decider = Decider {
                config,
                port,
                batch,
                fdb,
                updates,
                flaps,
                reports,
                now: instant,
                now_secs,
                oldest,
                not_learned: false,
            };
            *verdict = match decider.decide(key, index) {
                // 11. split horizon: the other uplink has received the frame from outside.
                Verdict::To(to) if port.is_uplink() && config.port(to).is_some_and(PortConfig::is_uplink) => {
                    Verdict::Drop(DropReason::SplitHorizon)
                }
                Verdict::To(to) if port.is_mirrored => {
                    Verdict::Mirrored { from: port.config.id.place(), to: to.place() }
                }
                Verdict::Flood(to) => Verdict::FloodFrom(port.config.id, to),
                verdict => verdict,
            };
            not_learned |= u64::from(decider.is_not_learned(verdict)) << index;
        }
        BurstDecision { by_trunk: true, not_learned }
    }
}

/// Why a frame needs no lookup.
enum Rejection<'a> {
    /// L3 sender not allowed at this port, from this source.
    Spoofed(&'a Port, Mac),
    /// Dropped.
    Drop(DropReason),
    /// Frame to the loop-probe group, at this port.
    Probe(PortId),
}

impl From<DropReason> for Rejection<'_> {
    fn from(reason: DropReason) -> Self {
        Rejection::Drop(reason)
    }
}

impl Trunk {
    /// Determines the port of frame `index` and removes its tag. Returns port and header, or the rejection.
    #[inline]
    fn demux<'a>(
        &self,
        config: &'a ForwardingConfig,
        batch: &mut Batch,
        index: usize,
        now: MonoTime,
        ingress: &mut IngressPort,
    ) -> Result<(&'a Port, Header), Rejection<'a>> {
        let head = batch.head(index);
        let header = Header::read(head).ok_or(DropReason::Runt)?;
        // 5. reserved groups: before the VLAN, because their senders seldom use one.
        if self.is_uplink() && is_link_local_group(header.destination) {
            return Err(DropReason::ReservedGroup.into());
        }
        // 3. VLAN admit
        let id = match Tagging::read(&header, head) {
            Tagging::Untagged => None,
            Tagging::Tagged(id) => Some(id),
            Tagging::CutOff => return Err(DropReason::Runt.into()),
        };
        let port = self.port_of(id.unwrap_or(0));
        let port = config.compiled_port(port).ok_or(DropReason::UnknownVlan)?;
        if !self.is_uplink() {
            ingress.port = port.config.id;
        }
        if !port.config.admin_up {
            return Err(DropReason::AdminDown.into());
        }
        if id.is_some() {
            if !batch.pop_tag(index) {
                return Err(DropReason::Runt.into());
            }
            ingress.tag = TAG_LEN as u64;
        }
        // 2. header valid: as the frame is on its network
        let header = match read(port, batch.frame(index), batch.head(index), now) {
            Err(DropReason::Probe) => return Err(Rejection::Probe(port.config.id)),
            _ if port.config.quarantined => return Err(DropReason::Quarantined.into()),
            header => header?,
        };
        // 7. port security, L3 part
        if is_spoofed(port, header.source, batch.head(index)) {
            return Err(Rejection::Spoofed(port, header.source));
        }
        Ok((port, header))
    }
}
