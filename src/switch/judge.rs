//! The story of one frame.

use std::sync::Arc;

use super::rules::Port;
use super::{DropReason, Fdb, Learned, PortId, Rules, Secret, Seen, Station, Verdict, Verdicts};
use crate::frame::{BURST, Batch, Frame};
use crate::time::Moment;
use crate::wire::{Header, Mac, TAG_LEN, tags};

/// 01:80:c2:00:00:01, the address of PAUSE frames (IEEE 802.3, 31B): flow control between two
/// ends of a link, never to be forwarded. The other reserved groups pass between VMs, whose own
/// LLDP, LACP, EAPOL and spanning tree are not the switch's.
const PAUSE: Mac = Mac::from_bits(0x0180_c200_0001);

/// Bytes of tables that are surely in the processor's cache; larger ones are fetched ahead.
const WARM: usize = 512 << 10;

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
    rules: Arc<Rules>,
    fdb: Fdb,
    /// What other workers are to be told, since they were last told. At most a burst.
    news: Vec<Sighting>,
}

impl Switch {
    /// A switch without ports that can learn `stations` stations.
    pub fn new(stations: u32, secret: Secret) -> Switch {
        Switch {
            rules: Arc::new(Rules::none(secret)),
            fdb: Fdb::new(stations, secret),
            news: Vec::with_capacity(BURST),
        }
    }

    /// The rules in force.
    #[inline]
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Puts new rules in force, and hands back the old ones.
    pub fn replace_rules(&mut self, rules: Arc<Rules>) -> Arc<Rules> {
        std::mem::replace(&mut self.rules, rules)
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

    /// Notes what another worker saw.
    pub fn hear(&mut self, sighting: Sighting, now: Moment) {
        if let Some(port) = self.rules.compiled(sighting.port) {
            let hash = self.fdb.hash(sighting.station);
            self.fdb.see(sighting.station, hash, sighting.port, now.secs(), port.limits, port.ageing);
        }
    }

    /// Learns what was known before the switch was started. Whatever has been seen since is right.
    pub fn remember(&mut self, learned: Learned) {
        let Some(port) = self.rules.compiled(learned.port) else { return };
        let hash = self.fdb.hash(learned.station);
        if self.fdb.find(learned.station, hash, 0, u32::MAX).is_none() {
            self.fdb.see(learned.station, hash, learned.port, learned.seen, port.limits, port.ageing);
        }
    }

    /// Looks at `budget` entries of the table from `cursor` on, and forgets those of which `forget`
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

    /// Judges the burst that came in at port `from`: one verdict per frame, in its place.
    #[inline]
    pub fn judge_burst(&mut self, from: PortId, batch: &Batch, now: Moment, verdicts: &mut Verdicts) {
        // 1. port open, admin up
        let port = match self.rules.compiled(from) {
            Some(port) if port.rules.admin_up => port,
            Some(_) => return verdicts.fill(Verdict::Drop(DropReason::AdminDown)),
            None => return verdicts.fill(Verdict::Drop(DropReason::PortClosed)),
        };
        self.fetch_ahead(port, batch);
        let (rules, fdb, news) = (&*self.rules, &mut self.fdb, &mut self.news);
        let mut judge = Judge { rules, port, fdb, news, now: now.secs() };
        for ((frame, head), verdict) in batch.heads().zip(verdicts) {
            *verdict = judge.judge(frame, head);
        }
    }

    /// Fetches what the burst will look up, where the tables are too large to be at hand. Two
    /// rounds, as the second needs what the first has fetched: index, entries.
    #[inline]
    fn fetch_ahead(&self, port: &Port, batch: &Batch) {
        let pins_are_cold = self.rules.pins().bytes() > WARM;
        if self.fdb.len() * 40 <= WARM && !pins_are_cold {
            return;
        }
        let mut hashes = [[0; 2]; BURST];
        let hashes = &mut hashes[..batch.len()];
        for ((_, head), pair) in batch.heads().zip(&mut *hashes) {
            let Some(header) = Header::read(head) else { continue };
            *pair = [header.source, header.destination].map(|mac| {
                let hash = self.fdb.hash(Station::new(port.rules.network, mac));
                if pins_are_cold {
                    self.rules.pins().prefetch(hash);
                }
                self.fdb.prefetch_index(hash);
                hash
            });
        }
        for hash in hashes.as_flattened() {
            self.fdb.prefetch_entry(*hash);
        }
    }
}

/// What the frames of one burst have in common.
struct Judge<'a> {
    rules: &'a Rules,
    port: &'a Port,
    fdb: &'a mut Fdb,
    news: &'a mut Vec<Sighting>,
    now: u32,
}

impl Judge<'_> {
    /// Everything that is decided about a frame, in the order in which it is decided. The order is
    /// the policy: nothing is learned from a frame that may not be here.
    #[inline(always)]
    fn judge(&mut self, frame: &Frame, head: &[u8]) -> Verdict {
        use DropReason::*;
        let Judge { rules, port, .. } = *self;

        // 2. header sane
        let Some(header) = Header::read(head) else { return Verdict::Drop(Runt) };
        if !frame.is_sound() {
            return Verdict::Drop(BadOffload);
        }
        if frame.longest() > port.longest && !fits_with_tags(frame, head, port) {
            return Verdict::Drop(TooLong);
        }
        if !header.source.is_station() {
            return Verdict::Drop(BadSource);
        }
        // 5. reserved groups
        if header.destination == PAUSE {
            return Verdict::Drop(ReservedGroup);
        }
        // 6. and 7. guard, port security; a port's own pin passes both and need not be learned
        let mut learn = None;
        if header.source != port.pinned_mac {
            let source = Station::new(port.rules.network, header.source);
            let hash = rules.pins().hash(source);
            match rules.pins().find(source, hash).and_then(|pinned| rules.compiled(pinned)) {
                Some(owner) if port.guard && owner.rules.owner != port.rules.owner => {
                    return Verdict::Drop(ForeignSource);
                }
                _ if !port.allows(header.source) => return Verdict::Drop(SpoofedSource),
                Some(_) => {}
                None => learn = Some((source, hash)),
            }
        }
        // 8. find the destination
        let to = self.find(header.destination);
        if to == Some(port.rules.id) {
            return Verdict::Drop(Hairpin);
        }
        // 10. learn the source
        if let Some((source, hash)) = learn {
            self.learn(source, hash);
        }
        // 11. forward or flood
        match to {
            Some(to) => Verdict::To(to),
            // Whoever this is, it is behind the port that the frame came from: it sent it.
            None if header.destination == header.source => Verdict::Drop(Hairpin),
            None => Verdict::Flood,
        }
    }

    #[inline(always)]
    fn find(&self, destination: Mac) -> Option<PortId> {
        if destination.is_group() {
            return None;
        }
        let station = Station::new(self.port.rules.network, destination);
        let pins = self.rules.pins();
        let hash = pins.hash(station);
        pins.find(station, hash)
            .or_else(|| self.fdb.find(station, hash, self.now, self.port.ageing))
            // A port that was closed takes its stations with it.
            .filter(|&to| self.rules.compiled(to).is_some())
    }

    #[inline(always)]
    fn learn(&mut self, source: Station, hash: u64) {
        let port = self.port;
        if self.fdb.is_current(source, hash, port.rules.id, self.now) {
            return;
        }
        self.see(source, hash);
    }

    #[inline(never)]
    fn see(&mut self, source: Station, hash: u64) {
        let port = self.port;
        match self.fdb.see(source, hash, port.rules.id, self.now, port.limits, port.ageing) {
            Seen::Known | Seen::Refused => {}
            Seen::New | Seen::Moved { .. } | Seen::Retell => {
                if self.news.len() < BURST {
                    self.news.push(Sighting { station: source, port: port.rules.id });
                }
            }
        }
    }
}

/// Whether a frame over the limit is within it once its tags are forgiven (two at most).
#[cold]
#[allow(clippy::cast_possible_truncation)] // 8 at most
fn fits_with_tags(frame: &Frame, head: &[u8], port: &Port) -> bool {
    frame.longest() <= port.longest + (tags(head) * TAG_LEN) as u32
}
