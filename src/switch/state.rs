//! The state of one worker's switch: what it remembers beside the rules, and what others ask of that.

use std::sync::Arc;

use super::activation::PinReports;
use super::carrier::{Origin, Origins};
use super::moves::Moves;
use super::probes::Ears;
use super::question::Question;
use super::rules::Port;
use super::spoofing::{SpoofedIp, Spoofing};
use super::{Fdb, Foreign, Learned, Moving, PinReport, PortId, Returned, Rules, Secret, Seen, SiblingSource, Station};
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
    /// When it was seen there. Of two updates for one station, the later one holds at every worker, in whatever order
    /// they arrive.
    pub at: Moment,
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
    /// Reports about pinned stations.
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
        // The stations of ports that are gone count no longer.
        let ports = old.open().iter().zip(self.rules.open());
        ports.filter(|(old, new)| old != new && **old != PortId::NONE).for_each(|(&old, _)| self.fdb.close(old));
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

    /// Reports about pinned stations since the last call, each with its time.
    #[inline]
    pub fn pin_reports(&mut self) -> impl ExactSizeIterator<Item = (PinReport, Moment)> + '_ {
        self.pin_reports.pending.drain(..)
    }

    /// The ports that sent from the address of a sibling without being allowed to, since this was last asked: each once in
    /// a second at most.
    #[inline]
    pub fn sibling_sources(&mut self) -> impl ExactSizeIterator<Item = SiblingSource> + '_ {
        self.moves.siblings.found.drain(..)
    }

    /// Whether control is to be told of something.
    #[inline]
    pub fn has_findings(&self) -> bool {
        let Moves { moving, foreign, siblings, .. } = &self.moves;
        !(self.ears.returned.is_empty()
            && moving.is_empty()
            && foreign.is_empty()
            && siblings.found.is_empty()
            && self.spoofing.found.is_empty()
            && self.pin_reports.pending.is_empty())
    }

    /// Applies what another worker saw. A move of a station counts here as well.
    ///
    /// The other worker may have seen it under other rules, and before or after this one saw the same station elsewhere.
    /// So the rules in force here decide whether the port may have the station, and the times decide which of the two
    /// places holds. Where this worker knows better, it says so.
    pub fn hear(&mut self, sighting: Sighting, now: Moment) {
        let Sighting { station, port: id, at } = sighting;
        let Some(port) = self.rules.compiled(id).filter(|port| port.is_open) else { return };
        let hash = self.fdb.hash(station);
        if !may_be_learned(&self.rules, port, station, hash) {
            return;
        }
        let oldest = (now.secs() + 1).saturating_sub(port.ageing);
        if let Some(known) = self.fdb.learned(station, hash)
            && known.port != id
            && known.seen >= oldest
            && self.rules.is_open(known.port)
        {
            let known_at = self.moves.times.get(station, hash).max(Moment::from_secs(known.seen.into()));
            if (known_at, known.port.bits()) > (at, id.bits()) {
                if self.news.len() < BURST {
                    self.news.push(Sighting { station, port: known.port, at: known_at });
                }
                return;
            }
        }
        yield_place(&mut self.fdb, port);
        match note(&mut self.fdb, &mut self.moves, &self.rules, port, (station, hash), at.secs(), now) {
            Seen::Stays | Seen::Refused => {}
            Seen::Known | Seen::Retell | Seen::New | Seen::Moved { .. } => self.moves.times.put(station, hash, at),
        }
    }

    /// Learns what was known before the switch was started, as far as the rules allow it. Whatever has been seen since is
    /// right.
    pub fn remember(&mut self, learned: Learned) {
        let Some(port) = self.rules.compiled(learned.port) else { return };
        let hash = self.fdb.hash(learned.station);
        if may_be_learned(&self.rules, port, learned.station, hash) && self.fdb.find(learned.station, hash, 0).is_none()
        {
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

/// Whether a station that was not seen in a frame here may be learned behind a port: it is on the port's network, port
/// security lets it pass, and it is pinned nowhere.
fn may_be_learned(rules: &Rules, port: &Port, station: Station, hash: u64) -> bool {
    port.rules.learns
        && station.network() == port.rules.network
        && station.mac().is_station()
        && port.allows(station.mac())
        && rules.pins().find(station, hash).is_none()
}

/// Notes that a station was seen behind a port, and when, in seconds; unless it moves too often. An address that
/// belongs to the port may always come back to it.
pub(super) fn note(
    fdb: &mut Fdb,
    moves: &mut Moves,
    rules: &Rules,
    port: &Port,
    (station, hash): (Station, u64),
    seen: u32,
    now: Moment,
) -> Seen {
    let oldest = (now.secs() + 1).saturating_sub(port.ageing);
    fdb.see_if((station, hash), port.rules.id, seen, port.limits, port.ageing, |learned| {
        port.claims(station.mac()) || moves.allow(rules, learned, hash, oldest, port, now)
    })
}

/// Gives up the place that a port's own address has had among its stations since before it was pinned: there is none
/// for it in what may be learned, and another station would be displaced for it.
pub(super) fn yield_place(fdb: &mut Fdb, port: &Port) {
    if port.mac_limit.is_some() && port.pinned.mac() != Mac::ZERO {
        fdb.lose(port.pinned, fdb.hash(port.pinned), port.rules.id);
    }
}
