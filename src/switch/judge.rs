//! The story of one frame.

use super::activation::PinReports;
use super::moves::Moves;
use super::question::{Question, ask, fetch_ahead, listen, refuse_held, refuse_spoofed};
use super::reserved::is_of_the_wire;
use super::rules::Port;
use super::state::{note, yield_place};
use super::storm::{Cost, admit, is_bpdu};
use super::{
    AtLimit, Audience, DropReason, Fdb, Flood, PinReport, PortId, PortRules, Rules, Seen, Sighting, Station,
    StormClass, Switch, Verdict, Verdicts,
};
use crate::frame::{BURST, Batch};
use crate::time::Moment;
use crate::wire::{Announcement, Mac};

/// What is to be known of a burst beside its verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Judged {
    /// Whether it came by a carrier, and its frames belong to several ports.
    pub by_carrier: bool,
    /// The frames that go on though their source could not be learned, at the port's limit: a set of bits, by
    /// their place in the burst.
    pub unlearned: u64,
}

impl Switch {
    /// Judges the burst that came in at port `from`: one verdict per frame, in its place. If `from` is a
    /// carrier, the tags by which its ports are told apart are taken off, and [`origins`](Switch::origins) says
    /// whose frames they are.
    #[inline(always)]
    pub fn judge_burst(&mut self, from: PortId, batch: &mut Batch, now: Moment, verdicts: &mut Verdicts) -> Judged {
        if self.rules.carrier(from).is_some() {
            return self.judge_carried(from, batch, now, verdicts);
        }
        Judged { by_carrier: false, unlearned: self.judge_own(from, batch, now, verdicts) }
    }

    /// Judges the burst that came in at a port by a device of its own.
    ///
    /// In two rounds, so that neither has too much in mind: first what the frames say of themselves,
    /// then, where that is sane, what the tables say of them. Which go on unlearned, as a set of bits.
    #[inline(never)] // with registers of its own
    fn judge_own(&mut self, from: PortId, batch: &Batch, now: Moment, verdicts: &mut Verdicts) -> u64 {
        // 1. port open, admin up
        let port = match self.rules.compiled(from) {
            Some(port) if port.is_open => port,
            Some(port) if port.rules.admin_up => {
                refuse_held(port, &mut self.ears, batch, now, verdicts);
                return 0;
            }
            Some(_) => return all_die(verdicts, DropReason::AdminDown),
            None => return all_die(verdicts, DropReason::PortClosed),
        };
        let (rules, fdb, news) = (&*self.rules, &mut self.fdb, &mut self.news);
        let questions = &mut self.questions[..batch.len()];
        if ask(rules, port, batch, now, verdicts, questions) {
            listen(port, &mut self.ears, batch, now, verdicts);
        }
        if port.bindings.is_some() {
            refuse_spoofed(port, batch, now, &mut self.spoofing, verdicts, questions);
        }
        fetch_ahead(fdb, questions);
        let (moves, reports, moment, now) = (&mut self.moves, &mut self.pin_reports, now, now.secs());
        let oldest = (now + 1).saturating_sub(port.ageing);
        let mut judge = Judge { rules, port, batch, fdb, news, moves, reports, moment, now, oldest, unlearned: false };
        // What few ports have is asked once for a burst, and not of each frame.
        if port.mac_limit.is_some() {
            return judge.answer_limited(questions, verdicts);
        }
        judge.answer_all(questions, verdicts);
        if port.is_watched {
            watch(port, &mut verdicts[..questions.len()]);
        }
        0
    }
}

/// All frames of a burst die for the same reason, and none is unlearned.
#[cold]
fn all_die(verdicts: &mut Verdicts, reason: DropReason) -> u64 {
    verdicts.fill(Verdict::Drop(reason));
    0
}

/// Says of the frames for one port that others get copies.
#[inline(never)]
fn watch(port: &Port, verdicts: &mut [Verdict]) {
    for verdict in verdicts {
        if let Verdict::To(to) = *verdict {
            *verdict = Verdict::Watched { from: port.rules.id.place(), to: to.place() };
        }
    }
}

/// Whom a frame from a port is for that is for nobody in particular.
#[inline]
fn audience(port: &Port, destination: Mac) -> Audience {
    if is_of_the_wire(destination) {
        if port.rules.splits && is_bpdu(destination) { Audience::Bridges } else { Audience::Inside }
    } else if port.suppresses && !destination.is_group() {
        Audience::Unknown
    } else {
        Audience::All
    }
}

/// What the frames of one burst have in common.
pub(super) struct Judge<'a> {
    pub(super) rules: &'a Rules,
    pub(super) port: &'a Port,
    pub(super) batch: &'a Batch,
    pub(super) fdb: &'a mut Fdb,
    pub(super) news: &'a mut Vec<Sighting>,
    pub(super) moves: &'a mut Moves,
    pub(super) reports: &'a mut PinReports,
    pub(super) moment: Moment,
    /// The same in seconds.
    pub(super) now: u32,
    /// When a station must have been heard to be remembered, in seconds.
    pub(super) oldest: u32,
    /// Whether a source has gone unlearned for the limit of the port.
    pub(super) unlearned: bool,
}

impl Judge<'_> {
    /// Everything that the tables decide about frame `index` of the burst, in the order in which it is decided. The
    /// order is the policy: nothing is learned from a frame that may not be here, or goes no further.
    #[inline(always)]
    pub(super) fn answer(&mut self, q: &Question, index: usize) -> Verdict {
        let port = self.port;
        // 2. header sane, as far as it has not been asked before
        if !q.source.mac().is_station() {
            return Verdict::Drop(DropReason::BadSource);
        }
        // 6. and 7. guard, port security; a port's own pin passes both and need not be learned
        let mut learn = false;
        if q.source != port.pinned {
            learn = port.rules.learns;
            if port.is_examined || self.rules.pins().may_hold(q.source_hash) {
                match self.examine(q, index) {
                    Ok(is_pinned) => learn &= !is_pinned,
                    Err(reason) => return Verdict::Drop(reason),
                }
            }
        }
        // 8. find the destination
        let to = self.find(q);
        if to == port.rules.id {
            return Verdict::Drop(DropReason::Hairpin);
        }
        if to == PortId::NONE {
            return self.flood(q, index, learn);
        }
        // 10. learn the source
        if learn
            && !self.knows(q)
            && let Err(reason) = self.see(q, index)
        {
            return Verdict::Drop(reason);
        }
        // 11. forward
        Verdict::To(to)
    }

    /// What becomes of frame `index`, which is for nobody in particular. `learn`: whether its source is still to
    /// be learned.
    #[inline(never)] // it would crowd the registers of the way that most frames go
    fn flood(&mut self, q: &Question, index: usize, learn: bool) -> Verdict {
        let to = audience(self.port, q.destination.mac());
        let is_for_itself = q.destination == q.source;
        // 9. storm control
        if self.port.is_policed
            && !is_for_itself
            && let Err(reason) = self.police(q.destination.mac(), index, to)
        {
            return Verdict::Drop(reason);
        }
        // 10. learn the source
        if learn
            && !self.knows(q)
            && let Err(reason) = self.see(q, index)
        {
            return Verdict::Drop(reason);
        }
        if is_for_itself {
            // Whoever this is, it is behind the port that the frame came from: it sent it.
            return Verdict::Drop(DropReason::Hairpin);
        }
        if !learn && q.destination.mac().is_group() && !self.port.is_uplink() {
            self.report_own(q, index);
        }
        // 11. flood
        Verdict::Flood(to)
    }

    /// Whether frame `index` may go to many, as far as storm limits are concerned. BPDUs have been counted before.
    fn police(&self, destination: Mac, index: usize, to: Audience) -> Result<(), DropReason> {
        if is_bpdu(destination) {
            return Ok(());
        }
        let (frames, bytes) = self.batch.frame(index).counts();
        let copies = || {
            let reached = self.rules.reached(Flood::new(self.port.rules.id, to));
            reached.iter().map(|ports| ports.len() as u64).sum()
        };
        let PortRules { storm, pack, .. } = &self.port.rules;
        let class = StormClass::of(destination);
        admit(storm, pack.as_ref(), class, Cost { frames, bytes }, copies, self.moment)
    }

    /// Whether the source is known to be where it is, and has been heard just now.
    #[inline(always)]
    fn knows(&self, q: &Question) -> bool {
        self.fdb.is_current(q.source, q.source_hash, self.port.rules.id, self.now)
    }

    /// Answers the questions of a burst from a port at which it matters how many stations have been learned.
    /// Which frames go on unlearned, as a set of bits.
    #[inline(never)]
    fn answer_limited(&mut self, questions: &[Question], verdicts: &mut Verdicts) -> u64 {
        let mut unlearned = 0;
        for (index, (question, verdict)) in questions.iter().zip(&mut *verdicts).enumerate() {
            if !question.is_none() {
                *verdict = self.answer(question, index);
                unlearned |= u64::from(self.goes_unlearned(verdict)) << index;
            }
        }
        if self.port.is_watched {
            watch(self.port, &mut verdicts[..questions.len()]);
        }
        unlearned
    }

    /// Whether the frame that was judged last goes on though its source was not learned.
    #[inline]
    pub(super) fn goes_unlearned(&mut self, verdict: &Verdict) -> bool {
        std::mem::take(&mut self.unlearned) && !matches!(verdict, Verdict::Drop(_))
    }

    /// Whether a source that is not the port's own pin is one that the port may use, and then
    /// whether it is pinned at all.
    #[inline(never)]
    fn examine(&mut self, q: &Question, index: usize) -> Result<bool, DropReason> {
        let port = self.port;
        let pinned = self.rules.pins().find(q.source, q.source_hash);
        // An address that belongs to the port is accepted there, also while it is dampened elsewhere.
        if let Some(pin) = pinned.filter(|pin| pin.port != port.rules.id && !port.claims(q.source.mac())) {
            if pin.is_frozen {
                return Err(DropReason::FrozenSource);
            }
            if port.guard && self.rules.compiled(pin.port).is_some_and(|owner| owner.rules.owner != port.rules.owner) {
                self.moves.note_foreign(port.rules.id, q.source, self.moment);
                return Err(DropReason::ForeignSource);
            }
        }
        // Its own pins are sources that it allows; what is frozen at it need not be.
        if !(pinned.is_some_and(|pin| pin.port == port.rules.id && !pin.is_frozen) || port.allows(q.source.mac())) {
            if port.is_of_sibling(q.source.mac()) {
                self.moves.siblings.note(port.rules.id, q.source, self.moment);
            }
            return Err(DropReason::SpoofedSource);
        }
        if port.is_uplink() {
            if let Some(pin) = pinned {
                self.report_elsewhere(q, index, pin.port)?;
            }
        } else if port.awaits(q.source.mac()) {
            let report = PinReport::Received { at: port.rules.id, station: q.source };
            self.reports.add(report, q.source_hash, self.moment);
        }
        Ok(pinned.is_some())
    }

    /// The announcement that frame `index` is, if it is one.
    fn announcement(&self, index: usize) -> Option<Announcement> {
        Announcement::read(self.batch.head(index), self.rules.announcements())
    }

    /// Reports that frame `index`, received from an uplink, announces a station that is pinned to another port. An
    /// announcement of this switch is dropped.
    #[cold]
    fn report_elsewhere(&mut self, q: &Question, index: usize, pinned: PortId) -> Result<(), DropReason> {
        match self.announcement(index) {
            Some(Announcement { is_own: true, .. }) => Err(DropReason::OwnAnnouncement),
            Some(_) => {
                let report = PinReport::Elsewhere { pinned, at: self.port.rules.id, station: q.source };
                self.reports.add(report, q.source_hash, self.moment);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Reports that frame `index` announces its source, which is pinned to the ingress port, if it does.
    #[inline(never)]
    fn report_own(&mut self, q: &Question, index: usize) {
        if self.announcement(index).is_some() {
            let report = PinReport::Announced { at: self.port.rules.id, station: q.source };
            self.reports.add(report, q.source_hash, self.moment);
        }
    }

    /// The port behind which the destination is; [`PortId::NONE`] if nobody knows, and for groups.
    #[inline(always)]
    fn find(&self, q: &Question) -> PortId {
        let (station, hash) = (q.destination, q.destination_hash);
        if station.mac().is_group() {
            return PortId::NONE;
        }
        if self.rules.pins().may_hold(hash)
            && let Some(pin) = self.rules.pins().find(station, hash)
        {
            return pin.port;
        }
        match self.fdb.find(station, hash, self.oldest) {
            // A port that was closed takes its stations with it.
            Some(port) if self.rules.is_open(port) => port,
            _ => PortId::NONE,
        }
    }

    /// Learns a source of frame `index`. Whether the frame may go on, or why not.
    #[inline(never)]
    fn see(&mut self, q: &Question, index: usize) -> Result<(), DropReason> {
        let port = self.port;
        if port.is_uplink() && self.announcement(index).is_some_and(|announcement| announcement.is_own) {
            return Err(DropReason::OwnAnnouncement);
        }
        if let Some(limit) = port.mac_limit
            && !self.has_room(q, limit.stations)
        {
            self.unlearned = limit.policy == AtLimit::ForwardUnlearned;
            return if self.unlearned { Ok(()) } else { Err(DropReason::MacLimit) };
        }
        match note(self.fdb, self.moves, self.rules, port, (q.source, q.source_hash), self.now, self.moment) {
            Seen::Known | Seen::Refused => {}
            Seen::Stays => return Err(DropReason::FrozenSource),
            Seen::New | Seen::Moved { .. } | Seen::Retell => {
                let at = self.moves.times.advance(q.source, q.source_hash, self.moment);
                if self.news.len() < BURST {
                    self.news.push(Sighting { station: q.source, port: port.rules.id, at });
                }
            }
        }
        Ok(())
    }

    /// Whether a source is one of the `most` stations that may be learned behind the port, or can become one.
    /// The port's own address does not count. What has aged makes room.
    fn has_room(&mut self, q: &Question, most: u32) -> bool {
        let (id, own) = (self.port.rules.id, Station::new(self.port.rules.network, self.port.rules.mac));
        if q.source == own || self.fdb.find(q.source, q.source_hash, self.oldest) == Some(id) {
            return true;
        }
        yield_place(self.fdb, self.port);
        let own_is_learned = self.fdb.find(own, self.rules.hash(own), self.oldest) == Some(id);
        self.fdb.make_room(id, most.saturating_add(u32::from(own_is_learned)), self.oldest)
    }
}
