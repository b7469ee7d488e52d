//! The state of one worker's switch: what it remembers beside the rules, and what others ask of that.

use std::sync::Arc;

use super::activation::PinReports;
use super::carrier::{Origin, Origins};
use super::moves::Moves;
use super::probes::Ears;
use super::question::Question;
use super::rules::Port;
use super::spoofing::{SpoofedIp, Spoofing};
use super::{Fdb, Foreign, Learned, Moving, PinReport, PortId, Returned, Rules, Secret, Seen, Station};
use crate::frame::BURST;
use crate::time::Moment;
use crate::wire::{Mac, ProbeKey};

/// News for other workers: a station was seen behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The station.
    pub station: Station,
    /// The port.
    pub port: PortId,
}

/// The rules, and what one worker remembers.
#[derive(Debug)]
pub struct Switch {
    pub(super) rules: Arc<Rules>,
    pub(super) fdb: Fdb,
    /// What other workers are to be told, since they were last told. At most a burst.
    pub(super) news: Vec<Sighting>,
    /// The loop probes that came back.
    pub(super) ears: Ears,
    /// The stations that have moved lately.
    pub(super) moves: Moves,
    /// The senders above Ethernet that were refused lately.
    pub(super) spoofing: Spoofing,
    /// What frames have said about pinned stations.
    pub(super) pin_reports: PinReports,
    /// Room for what the frames of a burst ask.
    pub(super) questions: Box<[Question; BURST]>,
    /// Of the last burst that came by a carrier.
    pub(super) origins: Box<Origins>,
}

impl Switch {
    /// A switch without ports that can learn `stations` stations, and knows its own loop probes by `key`.
    pub fn new(stations: u32, secret: Secret, key: ProbeKey) -> Switch {
        Switch {
            rules: Arc::new(Rules::none(secret)),
            fdb: Fdb::new(stations, secret),
            news: Vec::with_capacity(BURST),
            ears: Ears::new(key),
            moves: Moves::new(),
            spoofing: Spoofing::new(),
            pin_reports: PinReports::new(),
            questions: Box::new([Question::NONE; BURST]),
            origins: Box::new([Origin { port: PortId::NONE, tag: 0 }; BURST]),
        }
    }

    /// The rules in force.
    #[inline]
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Puts new rules in force, and hands back the old ones.
    pub fn replace_rules(&mut self, rules: Arc<Rules>, now: Moment) -> Arc<Rules> {
        self.moves.note_opened(&self.rules, &rules, now);
        let old = std::mem::replace(&mut self.rules, rules);
        // Most stay as they are, also among the learned stations.
        self.fdb.unpin(old.pins().but(self.rules.pins()).map(|(station, _)| station));
        self.fdb.pin(self.rules.pins().but(old.pins()));
        old
    }

    /// The learned stations.
    pub fn fdb(&self) -> &Fdb {
        &self.fdb
    }

    /// What other workers have to be told since this was last asked.
    #[inline]
    pub fn news(&mut self) -> impl ExactSizeIterator<Item = Sighting> + '_ {
        self.news.drain(..)
    }

    /// The loop probes that came back since this was last asked: of one burst, or some of them are lost.
    #[inline]
    pub fn returned(&mut self) -> impl ExactSizeIterator<Item = Returned> + '_ {
        self.ears.returned.drain(..)
    }

    /// The stations that moved too often since this was last asked: of one burst, or some of them are lost until they
    /// have come to rest.
    #[inline]
    pub fn moving(&mut self) -> impl ExactSizeIterator<Item = Moving> + '_ {
        self.moves.moving.drain(..)
    }

    /// The ports that sent what belongs to others, since this was last asked: each once in a second at most.
    #[inline]
    pub fn foreign(&mut self) -> impl ExactSizeIterator<Item = Foreign> + '_ {
        self.moves.foreign.drain(..)
    }

    /// The senders above Ethernet that were refused since this was last asked: of each port four a second at most.
    #[inline]
    pub fn spoofed(&mut self) -> impl ExactSizeIterator<Item = SpoofedIp> + '_ {
        self.spoofing.found.drain(..)
    }

    /// What frames have said about pinned stations since this was last asked, and when.
    #[inline]
    pub fn pin_reports(&mut self) -> impl ExactSizeIterator<Item = (PinReport, Moment)> + '_ {
        self.pin_reports.pending.drain(..)
    }

    /// Whether control is to be told of something.
    #[inline]
    pub fn has_findings(&self) -> bool {
        !(self.ears.returned.is_empty()
            && self.moves.moving.is_empty()
            && self.moves.foreign.is_empty()
            && self.spoofing.found.is_empty()
            && self.pin_reports.pending.is_empty())
    }

    /// Notes what another worker saw. A move of a station counts here as well.
    pub fn hear(&mut self, sighting: Sighting, now: Moment) {
        if let Some(port) = self.rules.compiled(sighting.port) {
            let hash = self.fdb.hash(sighting.station);
            yield_place(&mut self.fdb, port);
            note(&mut self.fdb, &mut self.moves, &self.rules, port, (sighting.station, hash), now);
        }
    }

    /// Learns what was known before the switch was started. Whatever has been seen since is right.
    pub fn remember(&mut self, learned: Learned) {
        let Some(port) = self.rules.compiled(learned.port) else { return };
        let hash = self.fdb.hash(learned.station);
        if learned.station.mac().is_station() && self.fdb.find(learned.station, hash, 0).is_none() {
            yield_place(&mut self.fdb, port);
            self.fdb.see(learned.station, hash, learned.port, learned.seen, port.limits, port.ageing);
        }
    }

    /// Looks at `budget` stations at most, from `cursor` on, and forgets those of which `forget`
    /// speaks. How many these were, of those whose port is there, and where to go on; `None` at
    /// the end.
    pub fn forget(&mut self, cursor: usize, budget: usize, forget: impl Fn(&Learned) -> bool) -> (u32, Option<usize>) {
        let (rules, mut forgotten) = (&self.rules, 0);
        let cursor = self.fdb.forget(cursor, budget, |learned| {
            let so = forget(learned);
            forgotten += u32::from(so && rules.compiled(learned.port).is_some());
            so
        });
        (forgotten, cursor)
    }

    /// Looks at the next few learned stations, and forgets those that have aged.
    pub fn tidy(&mut self, budget: usize, now: Moment) {
        let (rules, now) = (&self.rules, now.secs());
        self.fdb.tidy(budget, |learned| {
            rules.compiled(learned.port).is_some_and(|port| now.saturating_sub(learned.seen) < port.ageing)
        });
    }

    /// Where the frames of the last burst that came by a carrier belong.
    #[inline]
    pub fn origins(&self) -> &Origins {
        &self.origins
    }
}

/// Notes that a station was seen behind a port, unless it moves too often. An address that belongs to the port may
/// always come back to it.
pub(super) fn note(
    fdb: &mut Fdb,
    moves: &mut Moves,
    rules: &Rules,
    port: &Port,
    (station, hash): (Station, u64),
    now: Moment,
) -> Seen {
    let seconds = now.secs();
    let oldest = (seconds + 1).saturating_sub(port.ageing);
    fdb.see_if((station, hash), port.rules.id, seconds, port.limits, port.ageing, |learned| {
        port.claims(station.mac()) || moves.allow(rules, learned, hash, oldest, &port.rules, now)
    })
}

/// Gives up the place that a port's own address has had among its stations since before it was pinned: there is none
/// for it in what may be learned, and another station would be displaced for it.
pub(super) fn yield_place(fdb: &mut Fdb, port: &Port) {
    if port.mac_limit.is_some() && port.pinned.mac() != Mac::ZERO {
        fdb.lose(port.pinned, fdb.hash(port.pinned), port.rules.id);
    }
}
