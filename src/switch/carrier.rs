//! Carriers: devices that carry the frames of several ports, told apart by the VLAN tag of each frame. It is
//! these ports that stations are learned behind, floods reach and verdicts name.
//!
//! *An uplink* has a port on each network that it carries. It is on no network itself; its device is
//! opened, and all that comes and goes by it is counted, under its own name. Two can share their ports: as
//! long as one is in *standby* the other carries the frames, and when they change places no station
//! moves.
//!
//! *A trunk* is the device of a VM's port, the *parent*, that has subports: frames with a tag of theirs are the
//! subports', those without one the parent's own. The parent is a port and a carrier under one name, by
//! which its device is known whether it has subports or not. Each port counts its own frames; those that
//! are for none of them count at the parent.

use std::collections::HashMap;

use super::judge::{Judge, Judged};
use super::probes::whole;
use super::question::{Question, fetch_ahead, is_spoofed, note_spoofed, read};
use super::reserved::is_of_the_wire;
use super::rules::Port;
use super::{DropReason, PortId, PortRules, Reach, Role, Rules, Switch, Verdict, Verdicts};
use crate::frame::{BURST, Batch};
use crate::time::Moment;
use crate::wire::{Header, Mac, TAG_LEN, Tagging, Vid};

/// VLAN ids that 12 bits can say.
const IDS: usize = 1 << 12;

/// Where a frame that came by a carrier belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The port at which it counts.
    pub port: PortId,
    /// Bytes of the tag that was taken off it, of each of the frames that it stands for.
    pub tag: u64,
}

/// The origins of a burst, by the place of each frame in it.
pub type Origins = [Origin; BURST];

/// What is asked about a carrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarrierRules {
    /// Its name, under which its device is opened and counts: of a trunk, that of the parent.
    pub id: PortId,
    /// Whether control wants it to carry frames.
    pub admin_up: bool,
    /// The worker that polls its device; `None` while it has none.
    pub worker: Option<u16>,
    /// Whether another one carries the frames at present: then it neither receives nor sends.
    pub standby: bool,
    /// Each port that it carries, with its VLAN id. One at most is without: untagged. They are all uplinks, each
    /// on another network, or all of one VM.
    pub ports: Vec<(Option<Vid>, PortId)>,
}

impl CarrierRules {
    /// Whether it carries frames.
    pub const fn is_active(&self) -> bool {
        self.admin_up && !self.standby
    }
}

/// A carrier, compiled.
#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) rules: CarrierRules,
    /// By VLAN id: the port that frames with it are for. Under 0, those without one.
    ports: Box<[PortId; IDS]>,
    /// Whether all its ports are uplinks.
    is_uplink: bool,
}

impl Carrier {
    /// Whether frames may come and go by it, or why not.
    pub(super) const fn is_open(&self) -> Result<(), DropReason> {
        match (self.rules.admin_up, self.rules.standby) {
            (false, _) => Err(DropReason::AdminDown),
            (true, true) => Err(DropReason::Standby),
            (true, false) => Ok(()),
        }
    }

    /// Whether all its ports are uplinks.
    pub(super) const fn is_uplink(&self) -> bool {
        self.is_uplink
    }

    fn new(rules: CarrierRules, all: &HashMap<PortId, &PortRules>) -> Carrier {
        let mut ports = Box::new([PortId::NONE; IDS]);
        let mut networks = Vec::new();
        let mut roles = Vec::new();
        for &(vlan, id) in &rules.ports {
            let place = &mut ports[vlan.map_or(0, |vid| usize::from(vid.get()))];
            assert!(*place == PortId::NONE, "one port for each VLAN id of a carrier");
            *place = id;
            let port = all.get(&id).expect("a carrier's ports are there");
            assert!(port.reach != Reach::Own, "a port that is carried has no device of its own");
            if port.role == Role::Uplink {
                // They have one lane, into which a flood puts one frame at most. A port of a VM has its own.
                assert!(!networks.contains(&port.network), "an uplink carries a network once");
                networks.push(port.network);
            }
            roles.push(port.role);
        }
        let is_uplink = roles.contains(&Role::Uplink);
        assert!(!is_uplink || !roles.contains(&Role::Vif), "uplinks and ports of VMs do not share a device");
        Carrier { rules, ports, is_uplink }
    }
}

/// All carriers, by [`PortId::index`].
#[derive(Debug)]
pub(super) struct Carriers(Box<[Option<Carrier>]>);

impl Carriers {
    pub(super) fn new(carriers: Vec<CarrierRules>, ports: &[PortRules]) -> Carriers {
        let all = ports.iter().map(|port| (port.id, port)).collect();
        let mut table: Vec<Option<Carrier>> = Vec::new();
        for rules in carriers {
            let place = rules.id.index();
            table.resize_with(table.len().max(place + 1), || None);
            assert!(table[place].is_none(), "two carriers at one place");
            table[place] = Some(Carrier::new(rules, &all));
        }
        let carriers = Carriers(table.into());
        for port in ports {
            match port.reach {
                Reach::Own => assert!(port.role != Role::Uplink, "an uplink is carried"),
                Reach::Carried { carrier, vlan } => {
                    let carrier = carriers.get(carrier).expect("its carrier is there");
                    assert!(carrier.rules.ports.contains(&(vlan, port.id)), "its carrier carries it");
                }
            }
        }
        carriers
    }

    #[inline]
    pub(super) fn get(&self, id: PortId) -> Option<&Carrier> {
        self.0.get(id.index())?.as_ref().filter(|carrier| carrier.rules.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Carrier> {
        self.0.iter().flatten()
    }

    /// Whether there is one at this place, of whatever name but this.
    pub(super) fn stand_at(&self, place: usize, but: PortId) -> bool {
        self.0.get(place).is_some_and(|there| there.as_ref().is_some_and(|carrier| carrier.rules.id != but))
    }

    /// Whether the carrier of this port, if it has one, is administratively up.
    pub(super) fn want_up(&self, port: &PortRules) -> bool {
        match port.reach {
            Reach::Own => true,
            Reach::Carried { carrier, .. } => self.get(carrier).is_some_and(|carrier| carrier.rules.admin_up),
        }
    }

    /// Whether frames for this port can leave, as far as its carrier is concerned.
    pub(super) fn let_out(&self, port: &PortRules) -> bool {
        match port.reach {
            Reach::Own => true,
            Reach::Carried { carrier, .. } => self.get(carrier).is_some_and(|carrier| carrier.rules.is_active()),
        }
    }
}

impl Switch {
    /// Judges the burst that came in at carrier `from`: takes off the outer tag of each frame, and
    /// judges what is left as a frame of the port that the tag stands for.
    #[inline(never)]
    pub(super) fn judge_carried(
        &mut self,
        from: PortId,
        batch: &mut Batch,
        now: Moment,
        verdicts: &mut Verdicts,
    ) -> Judged {
        let (rules, fdb, news) = (&*self.rules, &mut self.fdb, &mut self.news);
        self.origins.fill(Origin { port: from, tag: 0 });
        // 1. carrier open, admin up, not in standby
        let carrier = rules.compiled_carrier(from).ok_or(DropReason::PortClosed);
        let carrier = match carrier.and_then(|carrier| carrier.is_open().map(|()| carrier)) {
            Ok(carrier) => carrier,
            Err(reason) => {
                verdicts.fill(Verdict::Drop(reason));
                return Judged { by_carrier: true, unlearned: 0 };
            }
        };
        let (ears, moves, spoofing) = (&mut self.ears, &mut self.moves, &mut self.spoofing);
        let reports = &mut self.pin_reports;
        let questions = &mut self.questions[..batch.len()];
        let mut ports: [Option<&Port>; BURST] = [None; BURST];
        let mut unlearned = 0;
        for (index, (((question, verdict), place), origin)) in
            questions.iter_mut().zip(&mut *verdicts).zip(&mut ports).zip(&mut *self.origins).enumerate()
        {
            *question = match carrier.admit(rules, batch, index, now, origin) {
                Ok((port, header)) => {
                    *place = Some(port);
                    Question::new(rules, port, &header)
                }
                Err(Refusal::Spoofed(port, source)) => {
                    note_spoofed(port, source, batch.head(index), now, spoofing);
                    *verdict = Verdict::Drop(DropReason::SpoofedIp);
                    Question::NONE
                }
                Err(Refusal::Dies(reason)) => {
                    *verdict = Verdict::Drop(reason);
                    Question::NONE
                }
                Err(Refusal::Probe(port)) => {
                    let frame = whole(batch.frame(index), batch.head(index));
                    *verdict = Verdict::Drop(ears.hear(port, frame, now));
                    Question::NONE
                }
            };
        }
        fetch_ahead(fdb, questions);
        let (moment, now, batch) = (now, now.secs(), &*batch);
        for (index, ((question, verdict), port)) in questions.iter().zip(verdicts).zip(ports).enumerate() {
            let Some(port) = port else { continue };
            let oldest = (now + 1).saturating_sub(port.ageing);
            let mut judge =
                Judge { rules, port, batch, fdb, news, moves, reports, moment, now, oldest, unlearned: false };
            *verdict = match judge.answer(question, index) {
                // 11. split horizon: another uplink has heard of it on the outside.
                Verdict::To(to) if port.is_uplink() && rules.port(to).is_some_and(PortRules::is_uplink) => {
                    Verdict::Drop(DropReason::SplitHorizon)
                }
                Verdict::To(to) if port.is_watched => Verdict::Watched { from: port.rules.id.place(), to: to.place() },
                Verdict::Flood(to) => Verdict::FloodFrom(port.rules.id, to),
                verdict => verdict,
            };
            unlearned |= u64::from(judge.goes_unlearned(verdict)) << index;
        }
        Judged { by_carrier: true, unlearned }
    }
}

/// Why a frame is not asked about.
enum Refusal<'a> {
    /// It names a sender above Ethernet that this port may not be, from this source.
    Spoofed(&'a Port, Mac),
    /// It dies.
    Dies(DropReason),
    /// It is one to the address of loop probes, at this port.
    Probe(PortId),
}

impl From<DropReason> for Refusal<'_> {
    fn from(reason: DropReason) -> Self {
        Refusal::Dies(reason)
    }
}

impl Carrier {
    /// Finds out whose frame `index` is, and takes off the tag that says so. Its port, and its header;
    /// or why it goes no further.
    #[inline]
    fn admit<'a>(
        &self,
        rules: &'a Rules,
        batch: &mut Batch,
        index: usize,
        now: Moment,
        origin: &mut Origin,
    ) -> Result<(&'a Port, Header), Refusal<'a>> {
        let head = batch.head(index);
        let header = Header::read(head).ok_or(DropReason::Runt)?;
        // 5. reserved groups: before the VLAN is asked for, as those who send them seldom use one.
        if self.is_uplink && is_of_the_wire(header.destination) {
            return Err(DropReason::ReservedGroup.into());
        }
        // 3. VLAN admit
        let id = match Tagging::read(&header, head) {
            Tagging::Untagged => None,
            Tagging::Tagged(id) => Some(id),
            Tagging::CutOff => return Err(DropReason::Runt.into()),
        };
        let port = self.ports[usize::from(id.unwrap_or(0)) % IDS];
        let port = rules.compiled(port).ok_or(DropReason::UnknownVlan)?;
        if !self.is_uplink {
            origin.port = port.rules.id;
        }
        if !port.rules.admin_up {
            return Err(DropReason::AdminDown.into());
        }
        if id.is_some() {
            if !batch.pop_tag(index) {
                return Err(DropReason::Runt.into());
            }
            origin.tag = TAG_LEN as u64;
        }
        // 2. header sane: as the frame is on its network
        let header = match read(port, batch.frame(index), batch.head(index), now) {
            Err(DropReason::Probe) => return Err(Refusal::Probe(port.rules.id)),
            _ if port.rules.held => return Err(DropReason::Quarantined.into()),
            header => header?,
        };
        // 7. port security, as far as it is about what is behind the header
        if is_spoofed(port, header.source, batch.head(index)) {
            return Err(Refusal::Spoofed(port, header.source));
        }
        Ok((port, header))
    }
}
