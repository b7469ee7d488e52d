//! Trunks: devices that several ports share by VLAN tag. Stations are learned at these ports, floods reach them,
//! and verdicts name them.
//!
//! *An uplink trunk* has a port on each of its networks. It is on no network itself; its device is opened, and its
//! traffic counted, under its own id. Two can share their ports: while one is *backup*, the other forwards the
//! frames, and no station moves when they swap.
//!
//! *A VM's trunk* is the device of a VM's port, the *parent*, with subports: frames with a subport's tag are the
//! subport's, untagged frames the parent's. The parent is port and trunk under one id, which identifies its device
//! with or without subports. Each port counts its own frames; frames for none of them count at the parent.

use std::collections::HashMap;

use super::decide::{BurstDecision, Decider};
use super::forwarding::Port;
use super::lookup_key::{LookupKey, is_spoofed, prefetch, read, report_spoofed};
use super::probe_receiver::contiguous;
use super::reserved::is_link_local_group;
use super::{Attachment, DropReason, ForwardingConfig, PortConfig, PortId, Role, Switch, Verdict, Verdicts};
use crate::frame::{BURST, Batch};
use crate::time::MonoTime;
use crate::wire::{Header, Mac, TAG_LEN, Tagging, Vid};

/// Number of 12-bit VLAN ids.
const IDS: usize = 1 << 12;

/// Ingress port of a frame from a trunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngressPort {
    /// The port at which the frame counts.
    pub port: PortId,
    /// Length of the removed tag in bytes, per frame after segmentation.
    pub tag: u64,
}

/// Ingress ports of a burst, by frame index.
pub type IngressPorts = [IngressPort; BURST];

/// Settings of a trunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrunkConfig {
    /// Id under which its device is opened and counted; of a VM's trunk, the parent's.
    pub id: PortId,
    /// Administrative state.
    pub admin_up: bool,
    /// The worker that polls its device; `None` while it has none.
    pub worker: Option<u16>,
    /// Whether it is the backup of another trunk: then it neither receives nor transmits.
    pub backup: bool,
    /// Its ports with their VLAN ids; at most one is untagged. Either all are uplinks, each on another network, or
    /// all belong to one VM.
    pub ports: Vec<(Option<Vid>, PortId)>,
}

impl TrunkConfig {
    /// Whether it forwards frames.
    pub const fn is_active(&self) -> bool {
        self.admin_up && !self.backup
    }
}

/// A compiled trunk.
#[derive(Debug)]
pub(super) struct Trunk {
    pub(super) config: TrunkConfig,
    /// Port by VLAN id; index 0 is untagged.
    ports: Box<[PortId; IDS]>,
    /// Whether all its ports are uplinks.
    is_uplink: bool,
}

impl Trunk {
    /// Whether it may receive and transmit, else the drop reason.
    pub(super) const fn is_open(&self) -> Result<(), DropReason> {
        match (self.config.admin_up, self.config.backup) {
            (false, _) => Err(DropReason::AdminDown),
            (true, true) => Err(DropReason::Standby),
            (true, false) => Ok(()),
        }
    }

    /// Whether all its ports are uplinks.
    pub(super) const fn is_uplink(&self) -> bool {
        self.is_uplink
    }

    fn new(config: TrunkConfig, all: &HashMap<PortId, &PortConfig>) -> Trunk {
        let mut ports = Box::new([PortId::NONE; IDS]);
        let mut networks = Vec::new();
        let mut roles = Vec::new();
        for &(vlan, id) in &config.ports {
            let place = &mut ports[vlan.map_or(0, |vid| usize::from(vid.get()))];
            assert!(*place == PortId::NONE, "one port for each VLAN id of a carrier");
            *place = id;
            let port = all.get(&id).expect("a carrier's ports are there");
            assert!(port.attachment != Attachment::Own, "a port that is carried has no device of its own");
            if port.role == Role::Uplink {
                // The ports of an uplink share one TX batch, into which a flood puts at most one frame. A VM's port
                // has its own.
                assert!(!networks.contains(&port.network), "an uplink carries a network once");
                networks.push(port.network);
            }
            roles.push(port.role);
        }
        let is_uplink = roles.contains(&Role::Uplink);
        assert!(!is_uplink || !roles.contains(&Role::Vif), "uplinks and ports of VMs do not share a device");
        Trunk { config, ports, is_uplink }
    }
}

/// All trunks, by [`PortId::index`].
#[derive(Debug)]
pub(super) struct Trunks(Box<[Option<Trunk>]>);

impl Trunks {
    pub(super) fn new(trunks: Vec<TrunkConfig>, ports: &[PortConfig]) -> Trunks {
        let all = ports.iter().map(|port| (port.id, port)).collect();
        let mut table: Vec<Option<Trunk>> = Vec::new();
        for config in trunks {
            let place = config.id.index();
            table.resize_with(table.len().max(place + 1), || None);
            assert!(table[place].is_none(), "two carriers at one place");
            table[place] = Some(Trunk::new(config, &all));
        }
        let trunks = Trunks(table.into());
        for port in ports {
            match port.attachment {
                Attachment::Own => assert!(port.role != Role::Uplink, "an uplink is carried"),
                Attachment::Tagged { trunk, vlan } => {
                    let trunk = trunks.get(trunk).expect("its carrier is there");
                    assert!(trunk.config.ports.contains(&(vlan, port.id)), "its carrier carries it");
                }
            }
        }
        trunks
    }

    #[inline]
    pub(super) fn get(&self, id: PortId) -> Option<&Trunk> {
        self.0.get(id.index())?.as_ref().filter(|trunk| trunk.config.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Trunk> {
        self.0.iter().flatten()
    }

    /// Whether another trunk is at this index.
    pub(super) fn has_other_at(&self, place: usize, but: PortId) -> bool {
        self.0.get(place).is_some_and(|there| there.as_ref().is_some_and(|trunk| trunk.config.id != but))
    }

    /// Whether the port's trunk, if any, is administratively up.
    pub(super) fn is_admin_up(&self, port: &PortConfig) -> bool {
        match port.attachment {
            Attachment::Own => true,
            Attachment::Tagged { trunk, .. } => self.get(trunk).is_some_and(|trunk| trunk.config.admin_up),
        }
    }

    /// Whether the port's trunk allows egress.
    pub(super) fn allows_egress(&self, port: &PortConfig) -> bool {
        match port.attachment {
            Attachment::Own => true,
            Attachment::Tagged { trunk, .. } => self.get(trunk).is_some_and(|trunk| trunk.config.is_active()),
        }
    }
}

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
        if self.is_uplink && is_link_local_group(header.destination) {
            return Err(DropReason::ReservedGroup.into());
        }
        // 3. VLAN admit
        let id = match Tagging::read(&header, head) {
            Tagging::Untagged => None,
            Tagging::Tagged(id) => Some(id),
            Tagging::CutOff => return Err(DropReason::Runt.into()),
        };
        let port = self.ports[usize::from(id.unwrap_or(0)) % IDS];
        let port = config.compiled_port(port).ok_or(DropReason::UnknownVlan)?;
        if !self.is_uplink {
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
