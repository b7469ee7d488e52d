//! The story of one frame.

use super::activation::PinReports;
use super::flaps::FlapDetector;
use super::forwarding::Port;
use super::lookup_key::{LookupKey, drop_quarantined, drop_spoofed, parse, prefetch, receive_probes};
use super::reserved::is_link_local_group;
use super::state::{drop_own_entry, learn};
use super::storm::{Cost, admit, is_bpdu};
use super::{
    AtLimit, DropReason, Fdb, Flood, FloodScope, ForwardingConfig, LearnResult, MacUpdate, PinReport, PortConfig,
    PortId, Station, StormClass, Switch, Verdict, Verdicts,
};
use crate::frame::{BURST, Batch};
use crate::time::MonoTime;
use crate::wire::{Announcement, Mac};

/// What is to be known of a burst beside its verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BurstDecision {
    /// Whether it came by a carrier, and its frames belong to several ports.
    pub by_trunk: bool,
    /// The frames that go on though their source could not be learned, at the port's limit: a set of bits, by
    /// their place in the burst.
    pub not_learned: u64,
}

impl Switch {
    /// Judges the burst that came in at port `from`: one verdict per frame, in its place. If `from` is a
    /// carrier, the tags by which its ports are told apart are taken off, and [`ingress_ports`](Switch::ingress_ports) says
    /// whose frames they are.
    #[inline(always)]
    pub fn decide_burst(
        &mut self,
        from: PortId,
        batch: &mut Batch,
        now: MonoTime,
        verdicts: &mut Verdicts,
    ) -> BurstDecision {
        if self.config.trunk(from).is_some() {
            return self.decide_trunk(from, batch, now, verdicts);
        }
        BurstDecision { by_trunk: false, not_learned: self.decide_port(from, batch, now, verdicts) }
    }

    /// Judges the burst that came in at a port by a device of its own.
    ///
    /// In two rounds, so that neither has too much in mind: first what the frames say of themselves,
    /// then, where that is sane, what the tables say of them. Which go on unlearned, as a set of bits.
    #[inline(never)] // with registers of its own
    fn decide_port(&mut self, from: PortId, batch: &Batch, now: MonoTime, verdicts: &mut Verdicts) -> u64 {
        // 1. port open, admin up
        let port = match self.config.compiled_port(from) {
            Some(port) if port.is_open => port,
            Some(port) if port.config.admin_up => {
                drop_quarantined(port, &mut self.probe_receiver, batch, now, verdicts);
                return 0;
            }
            Some(_) => return drop_all(verdicts, DropReason::AdminDown),
            None => return drop_all(verdicts, DropReason::PortClosed),
        };
        let (config, fdb, updates) = (&*self.config, &mut self.fdb, &mut self.updates);
        let keys = &mut self.keys[..batch.len()];
        if parse(config, port, batch, now, verdicts, keys) {
            receive_probes(port, &mut self.probe_receiver, batch, now, verdicts);
        }
        if port.bindings.is_some() {
            drop_spoofed(port, batch, now, &mut self.spoofing, verdicts, keys);
        }
        prefetch(fdb, keys);
        let (flaps, reports, instant, now_secs) = (&mut self.flap_detector, &mut self.pin_reports, now, now.secs());
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
        // What few ports have is asked once for a burst, and not of each frame.
        if port.mac_limit.is_some() {
            return decider.decide_limited(keys, verdicts);
        }
        decider.decide_all(keys, verdicts);
        if port.is_mirrored {
            mark_mirrored(port, &mut verdicts[..keys.len()]);
        }
        0
    }
}

/// All frames of a burst die for the same reason, and none is unlearned.
#[cold]
fn drop_all(verdicts: &mut Verdicts, reason: DropReason) -> u64 {
    verdicts.fill(Verdict::Drop(reason));
    0
}

/// Says of the frames for one port that others get copies.
#[inline(never)]
fn mark_mirrored(port: &Port, verdicts: &mut [Verdict]) {
    for verdict in verdicts {
        if let Verdict::To(to) = *verdict {
            *verdict = Verdict::Mirrored { from: port.config.id.place(), to: to.place() };
        }
    }
}

/// Whom a frame from a port is for that is for nobody in particular.
#[inline]
fn flood_scope(port: &Port, destination: Mac) -> FloodScope {
    if is_link_local_group(destination) {
        if port.config.sibling_split_horizon && is_bpdu(destination) {
            FloodScope::BridgeGroup
        } else {
            FloodScope::NoUplinks
        }
    } else if port.limits_unknown && !destination.is_group() {
        FloodScope::Unknown
    } else {
        FloodScope::All
    }
}

/// What the frames of one burst have in common.
pub(super) struct Decider<'a> {
    pub(super) config: &'a ForwardingConfig,
    pub(super) port: &'a Port,
    pub(super) batch: &'a Batch,
    pub(super) fdb: &'a mut Fdb,
    pub(super) updates: &'a mut Vec<MacUpdate>,
    pub(super) flaps: &'a mut FlapDetector,
    pub(super) reports: &'a mut PinReports,
    pub(super) now: MonoTime,
    /// The same in seconds.
    pub(super) now_secs: u32,
    /// When a station must have been heard to be remembered, in seconds.
    pub(super) oldest: u32,
    /// Whether a source has gone unlearned for the limit of the port.
    pub(super) not_learned: bool,
}

impl Decider<'_> {
    /// Everything that the tables decide about frame `index` of the burst, in the order in which it is decided. The
    /// order is the policy: nothing is learned from a frame that may not be here, or goes no further.
    #[inline(always)]
    pub(super) fn decide(&mut self, key: &LookupKey, index: usize) -> Verdict {
        let port = self.port;
        // 2. header sane, as far as it has not been asked before
        if !key.source.mac().is_station() {
            return Verdict::Drop(DropReason::BadSource);
        }
        // 6. and 7. guard, port security; a port's own pin passes both and need not be learned
        let mut learn = false;
        if key.source != port.pinned {
            learn = port.config.learns;
            if port.checks_source || self.config.pins().may_hold(key.source_hash) {
                match self.check_source(key, index) {
                    Ok(is_pinned) => learn &= !is_pinned,
                    Err(reason) => return Verdict::Drop(reason),
                }
            }
        }
        // 8. find the destination
        let to = self.lookup(key);
        if to == port.config.id {
            return Verdict::Drop(DropReason::Hairpin);
        }
        if to == PortId::NONE {
            return self.flood(key, index, learn);
        }
        // 10. learn the source
        if learn
            && !self.is_fresh(key)
            && let Err(reason) = self.learn(key, index)
        {
            return Verdict::Drop(reason);
        }
        // 11. forward
        Verdict::To(to)
    }

    /// What becomes of frame `index`, which is for nobody in particular. `learn`: whether its source is still to
    /// be learned.
    #[inline(never)] // it would crowd the registers of the way that most frames go
    fn flood(&mut self, key: &LookupKey, index: usize, learn: bool) -> Verdict {
        let to = flood_scope(self.port, key.destination.mac());
        let is_for_itself = key.destination == key.source;
        // 9. storm control
        if self.port.is_policed
            && !is_for_itself
            && let Err(reason) = self.police(key.destination.mac(), index, to)
        {
            return Verdict::Drop(reason);
        }
        // 10. learn the source
        if learn
            && !self.is_fresh(key)
            && let Err(reason) = self.learn(key, index)
        {
            return Verdict::Drop(reason);
        }
        if is_for_itself {
            // Whoever this is, it is behind the port that the frame came from: it sent it.
            return Verdict::Drop(DropReason::Hairpin);
        }
        if !learn && key.destination.mac().is_group() && !self.port.is_uplink() {
            self.report_own(key, index);
        }
        // 11. flood
        Verdict::Flood(to)
    }

    /// Whether frame `index` may go to many, as far as storm limits are concerned. BPDUs have been counted before.
    fn police(&self, destination: Mac, index: usize, to: FloodScope) -> Result<(), DropReason> {
        if is_bpdu(destination) {
            return Ok(());
        }
        let (frames, bytes) = self.batch.frame(index).counts();
        let copies = || {
            let reached = self.config.flood_ports(Flood::new(self.port.config.id, to));
            reached.iter().map(|ports| ports.len() as u64).sum()
        };
        let PortConfig { storm, vm_policer, .. } = &self.port.config;
        let class = StormClass::of(destination);
        admit(storm, vm_policer.as_ref(), class, Cost { frames, bytes }, copies, self.now)
    }

    /// Whether the source is known to be where it is, and has been heard just now.
    #[inline(always)]
    fn is_fresh(&self, key: &LookupKey) -> bool {
        self.fdb.is_current(key.source, key.source_hash, self.port.config.id, self.now_secs)
    }

    /// Answers the questions of a burst from a port at which it matters how many stations have been learned.
    /// Which frames go on unlearned, as a set of bits.
    #[inline(never)]
    fn decide_limited(&mut self, keys: &[LookupKey], verdicts: &mut Verdicts) -> u64 {
        let mut not_learned = 0;
        for (index, (key, verdict)) in keys.iter().zip(&mut *verdicts).enumerate() {
            if !key.is_none() {
                *verdict = self.decide(key, index);
                not_learned |= u64::from(self.is_not_learned(verdict)) << index;
            }
        }
        if self.port.is_mirrored {
            mark_mirrored(self.port, &mut verdicts[..keys.len()]);
        }
        not_learned
    }

    /// Whether the frame that was judged last goes on though its source was not learned.
    #[inline]
    pub(super) fn is_not_learned(&mut self, verdict: &Verdict) -> bool {
        std::mem::take(&mut self.not_learned) && !matches!(verdict, Verdict::Drop(_))
    }

    /// Whether a source that is not the port's own pin is one that the port may use, and then
    /// whether it is pinned at all.
    #[inline(never)]
    fn check_source(&mut self, key: &LookupKey, index: usize) -> Result<bool, DropReason> {
        let port = self.port;
        let pinned = self.config.pins().find(key.source, key.source_hash);
        // An address that belongs to the port is accepted there, also while it is dampened elsewhere.
        if let Some(pin) = pinned.filter(|pin| pin.port != port.config.id && !port.owns(key.source.mac())) {
            if pin.is_dampened {
                return Err(DropReason::DampenedSource);
            }
            if port.anti_spoof && self.config.compiled_port(pin.port).is_some_and(|vm| vm.config.vm != port.config.vm) {
                self.flaps.report_spoof(port.config.id, key.source, self.now);
                return Err(DropReason::ForeignSource);
            }
        }
        // Its own pins are sources that it allows; what is frozen at it need not be.
        if !(pinned.is_some_and(|pin| pin.port == port.config.id && !pin.is_dampened) || port.allows(key.source.mac()))
        {
            if port.is_of_sibling(key.source.mac()) {
                self.flaps.siblings.record(port.config.id, key.source, self.now);
            }
            return Err(DropReason::SpoofedSource);
        }
        if port.is_uplink() {
            if let Some(pin) = pinned {
                self.report_elsewhere(key, index, pin.port)?;
            }
        } else if port.awaits_activation_by(key.source.mac()) {
            let report = PinReport::Received { at: port.config.id, station: key.source };
            self.reports.push(report, key.source_hash, self.now);
        }
        Ok(pinned.is_some())
    }

    /// The announcement that frame `index` is, if it is one.
    fn announcement(&self, index: usize) -> Option<Announcement> {
        Announcement::read(self.batch.head(index), self.config.announcements())
    }

    /// Reports that frame `index`, received from an uplink, announces a station that is pinned to another port. An
    /// announcement of this switch is dropped.
    #[cold]
    fn report_elsewhere(&mut self, key: &LookupKey, index: usize, pinned: PortId) -> Result<(), DropReason> {
        match self.announcement(index) {
            Some(Announcement { is_own: true, .. }) => Err(DropReason::OwnAnnouncement),
            Some(_) => {
                let report = PinReport::Elsewhere { pinned, at: self.port.config.id, station: key.source };
                self.reports.push(report, key.source_hash, self.now);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Reports that frame `index` announces its source, which is pinned to the ingress port, if it does.
    #[inline(never)]
    fn report_own(&mut self, key: &LookupKey, index: usize) {
        if self.announcement(index).is_some() {
            let report = PinReport::Announced { at: self.port.config.id, station: key.source };
            self.reports.push(report, key.source_hash, self.now);
        }
    }

    /// The port behind which the destination is; [`PortId::NONE`] if nobody knows, and for groups.
    #[inline(always)]
    fn lookup(&self, key: &LookupKey) -> PortId {
        let (station, hash) = (key.destination, key.destination_hash);
        if station.mac().is_group() {
            return PortId::NONE;
        }
        if self.config.pins().may_hold(hash)
            && let Some(pin) = self.config.pins().find(station, hash)
        {
            return pin.port;
        }
        match self.fdb.find(station, hash, self.oldest) {
            // A port that was closed takes its stations with it.
            Some(port) if self.config.is_open(port) => port,
            _ => PortId::NONE,
        }
    }

    /// Learns a source of frame `index`. Whether the frame may go on, or why not.
    #[inline(never)]
    fn learn(&mut self, key: &LookupKey, index: usize) -> Result<(), DropReason> {
        let port = self.port;
        if port.is_uplink() && self.announcement(index).is_some_and(|announcement| announcement.is_own) {
            return Err(DropReason::OwnAnnouncement);
        }
        if let Some(limit) = port.mac_limit
            && !self.has_room(key, limit.stations)
        {
            self.not_learned = limit.policy == AtLimit::ForwardUnlearned;
            return if self.not_learned { Ok(()) } else { Err(DropReason::MacLimit) };
        }
        match learn(self.fdb, self.flaps, self.config, port, (key.source, key.source_hash), self.now_secs, self.now) {
            LearnResult::Known | LearnResult::Refused => {}
            LearnResult::Stays => return Err(DropReason::DampenedSource),
            LearnResult::New | LearnResult::Moved { .. } | LearnResult::Refresh => {
                let at = self.flaps.times.advance(key.source, key.source_hash, self.now);
                if self.updates.len() < BURST {
                    self.updates.push(MacUpdate { station: key.source, port: port.config.id, at });
                }
            }
        }
        Ok(())
    }

    /// Whether a source is one of the `most` stations that may be learned behind the port, or can become one.
    /// The port's own address does not count. What has aged makes room.
    fn has_room(&mut self, key: &LookupKey, most: u32) -> bool {
        let (id, own) = (self.port.config.id, Station::new(self.port.config.network, self.port.config.mac));
        if key.source == own || self.fdb.find(key.source, key.source_hash, self.oldest) == Some(id) {
            return true;
        }
        drop_own_entry(self.fdb, self.port);
        let own_is_learned = self.fdb.find(own, self.config.hash(own), self.oldest) == Some(id);
        self.fdb.evict_oldest(id, most.saturating_add(u32::from(own_is_learned)), self.oldest)
    }
}
