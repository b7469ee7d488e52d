//! Decides a frame's verdict: the policy checks and table lookups, in order.
//!
//! | step | decided by |
//! |---|---|
//! | 1 port open and up | `decide_port` here; `decide_trunk` in `trunk_burst.rs` |
//! | 2 header, length and offload header valid, 4 loop probe, 5 reserved group | `read` in `lookup_key.rs` |
//! | 3 VLAN id of a trunk | `demux` in `trunk_burst.rs` |
//! | 6 anti-spoofing, 7 port security: source address | `check_source` here |
//! | 7 port security: sender in ARP, IP and neighbor discovery | `is_spoofed` in `lookup_key.rs`, with `security.rs` |
//! | 8 destination, 10 learning, 11 forwarding | `decide`, `flood` here; `fast_path.rs` gives the same verdicts |
//! | 9 storm limits | `police` here, with `storm.rs` |
//! | 11 split horizon between uplinks | `decide_trunk` in `trunk_burst.rs` |

use super::activation::PinReports;
use super::flaps::FlapDetector;
use super::lookup_key::{LookupKey, drop_quarantined, drop_spoofed, parse, prefetch, receive_probes};
use super::port::Port;
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

/// Result of deciding a burst, besides its verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BurstDecision {
    /// Whether the burst came from a trunk, and its frames belong to several ports.
    pub by_trunk: bool,
    /// Mask of frames forwarded although their source was not learned because of the port's MAC limit.
    pub not_learned: u64,
}

impl Switch {
    /// Decides the burst received at port `from`: one verdict per frame, by index. If `from` is a trunk, removes
    /// the VLAN tags; [`ingress_ports`](Switch::ingress_ports) then gives each frame's port.
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

    /// Decides a burst received at a port with a device of its own.
    ///
    /// Two stages, to keep the register pressure of each low: stage 1 parses headers into lookup keys, stage 2
    /// looks the keys up. Returns the mask of frames that were forwarded unlearned.
    #[inline(never)] // to limit register pressure
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
        // Rare port settings are checked once per burst, not per frame.
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

/// Drops all frames of a burst for one reason; none is unlearned.
#[cold]
fn drop_all(verdicts: &mut Verdicts, reason: DropReason) -> u64 {
    verdicts.fill(Verdict::Drop(reason));
    0
}

/// Changes unicast verdicts so that promiscuous ports get copies.
#[inline(never)]
fn mark_mirrored(port: &Port, verdicts: &mut [Verdict]) {
    for verdict in verdicts {
        if let Verdict::To(to) = *verdict {
            *verdict = Verdict::Mirrored { from: port.config.id.place(), to: to.place() };
        }
    }
}

/// Flood scope for group and unknown destinations.
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

/// State that the frames of one burst share.
pub(super) struct Decider<'a> {
    pub(super) config: &'a ForwardingConfig,
    pub(super) port: &'a Port,
    pub(super) batch: &'a Batch,
    pub(super) fdb: &'a mut Fdb,
    pub(super) updates: &'a mut Vec<MacUpdate>,
    pub(super) flaps: &'a mut FlapDetector,
    pub(super) reports: &'a mut PinReports,
    pub(super) now: MonoTime,
    /// `now` in seconds.
    pub(super) now_secs: u32,
    /// FDB entries last seen before this time have aged out, in seconds.
    pub(super) oldest: u32,
    /// Whether the last source was not learned because of the port's MAC limit.
    pub(super) not_learned: bool,
}

impl Decider<'_> {
    /// Decides frame `index` by all table lookups. Their order is the policy: a frame that is dropped teaches the
    /// FDB nothing.
    #[inline(always)]
    pub(super) fn decide(&mut self, key: &LookupKey, index: usize) -> Verdict {
        let port = self.port;
        // 2. header valid, as far as stage 1 has not checked it
        if !key.source.mac().is_station() {
            return Verdict::Drop(DropReason::BadSource);
        }
        // 6. and 7. anti-spoofing, port security; a source pinned to this port passes both and is not learned
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

    /// Decides frame `index` with a group or unknown destination. `learn`: whether the source is still to be
    /// learned.
    #[inline(never)] // keeps register pressure off the fast path
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
            // The destination is the frame's own source, so it is behind the ingress port.
            return Verdict::Drop(DropReason::Hairpin);
        }
        if !learn && key.destination.mac().is_group() && !self.port.is_uplink() {
            self.report_own(key, index);
        }
        // 11. flood
        Verdict::Flood(to)
    }

    /// Applies storm limits to frame `index`. BPDUs have been charged before.
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

    /// Whether the FDB has the source at this port with a current timestamp.
    #[inline(always)]
    fn is_fresh(&self, key: &LookupKey) -> bool {
        self.fdb.is_current(key.source, key.source_hash, self.port.config.id, self.now_secs)
    }

    /// Decides a burst from a port with a MAC limit. Returns the mask of frames forwarded unlearned.
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

    /// Whether the last decided frame is forwarded although its source was not learned.
    #[inline]
    pub(super) fn is_not_learned(&mut self, verdict: &Verdict) -> bool {
        std::mem::take(&mut self.not_learned) && !matches!(verdict, Verdict::Drop(_))
    }

    /// Checks anti-spoofing and port security for a source that is not the port's own pin. Returns whether the
    /// source is pinned at all.
    #[inline(never)]
    fn check_source(&mut self, key: &LookupKey, index: usize) -> Result<bool, DropReason> {
        let port = self.port;
        let pinned = self.config.pins().find(key.source, key.source_hash);
        // The port's own addresses are accepted, even while dampened at another port.
        if let Some(pin) = pinned.filter(|pin| pin.port != port.config.id && !port.owns(key.source.mac())) {
            if pin.is_dampened {
                return Err(DropReason::DampenedSource);
            }
            if port.anti_spoof && self.config.compiled_port(pin.port).is_some_and(|vm| vm.config.vm != port.config.vm) {
                self.flaps.report_spoof(port.config.id, key.source, self.now);
                return Err(DropReason::ForeignSource);
            }
        }
        // A source pinned to this port is allowed; one that is only dampened here need not be.
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
            let (at, station) = (port.config.id, key.source);
            let is_announced = station.mac().is_virtual_router() && self.announcement(index).is_some();
            let report =
                if is_announced { PinReport::Announced { at, station } } else { PinReport::Received { at, station } };
            self.reports.push(report, key.source_hash, self.now);
        }
        Ok(pinned.is_some())
    }

    /// Parses frame `index` as an announcement, if it is one.
    fn announcement(&self, index: usize) -> Option<Announcement> {
        Announcement::read(self.batch.head(index), self.config.announcements())
    }

    /// Reports that frame `index`, received from an uplink, announces a station that is pinned to another port.
    /// Drops an announcement of this switch.
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

    /// Reports that frame `index` announces its source, if that is pinned to the ingress port.
    #[inline(never)]
    fn report_own(&mut self, key: &LookupKey, index: usize) {
        if self.announcement(index).is_some() {
            let report = PinReport::Announced { at: self.port.config.id, station: key.source };
            self.reports.push(report, key.source_hash, self.now);
        }
    }

    /// Looks up the destination's port; [`PortId::NONE`] if unknown or a group.
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
            // The entries of a closed port are invalid.
            Some(port) if self.config.is_open(port) => port,
            _ => PortId::NONE,
        }
    }

    /// Learns the source of frame `index`. Returns whether the frame may be forwarded, else the drop reason.
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

    /// Whether the source is, or can become, one of the `most` stations that may be learned at the port. The port's
    /// own address does not count. Removes aged entries to make room.
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
