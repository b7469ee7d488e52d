//! The state of one worker's switch: what it remembers beside the rules, and what others ask of that.

use std::sync::Arc;

use super::activation::PinReports;
use super::flaps::FlapDetector;
use super::forwarding::Port;
use super::lookup_key::LookupKey;
use super::probe_receiver::ProbeReceiver;
use super::spoofing::{SpoofReporter, SpoofedIp};
use super::trunk::{IngressPort, IngressPorts};
use super::{
    Fdb, FdbEntry, FlapEvent, ForwardingConfig, HashKey, LearnResult, PinReport, PortId, ReturnedProbe, SiblingSource,
    SpoofEvent, Station,
};
use crate::frame::BURST;
use crate::time::MonoTime;
use crate::wire::{Mac, ProbeKey};

/// News for other workers: a station was seen behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacUpdate {
    /// The station.
    pub station: Station,
    /// The port.
    pub port: PortId,
    /// When it was seen there. Of two updates for one station, the later one holds at every worker, in whatever order
    /// they arrive.
    pub at: MonoTime,
}

/// The rules, and what one worker remembers.
#[derive(Debug)]
pub struct Switch {
    pub(super) config: Arc<ForwardingConfig>,
    pub(super) fdb: Fdb,
    /// What other workers are to be told, since they were last told. At most a burst.
    pub(super) updates: Vec<MacUpdate>,
    /// The loop probes that came back.
    pub(super) probe_receiver: ProbeReceiver,
    /// The stations that have moved lately.
    pub(super) flap_detector: FlapDetector,
    /// The senders above Ethernet that were refused lately.
    pub(super) spoofing: SpoofReporter,
    /// Reports about pinned stations.
    pub(super) pin_reports: PinReports,
    /// Room for what the frames of a burst ask.
    pub(super) keys: Box<[LookupKey; BURST]>,
    /// Of the last burst that came by a carrier.
    pub(super) ingress_ports: Box<IngressPorts>,
}

impl Switch {
    /// A switch without ports that can learn `stations` stations, and knows its own loop probes by `key`.
    pub fn new(stations: u32, hash_key: HashKey, key: ProbeKey) -> Switch {
        Switch {
            config: Arc::new(ForwardingConfig::none(hash_key)),
            fdb: Fdb::new(stations, hash_key),
            updates: Vec::with_capacity(BURST),
            probe_receiver: ProbeReceiver::new(key),
            flap_detector: FlapDetector::new(),
            spoofing: SpoofReporter::new(),
            pin_reports: PinReports::new(),
            keys: Box::new([LookupKey::NONE; BURST]),
            ingress_ports: Box::new([IngressPort { port: PortId::NONE, tag: 0 }; BURST]),
        }
    }

    /// The rules in force.
    #[inline]
    pub fn config(&self) -> &Arc<ForwardingConfig> {
        &self.config
    }

    /// Puts new rules in force, and hands back the old ones.
    pub fn replace_config(&mut self, config: Arc<ForwardingConfig>, now: MonoTime) -> Arc<ForwardingConfig> {
        self.flap_detector.record_opened(&self.config, &config, now);
        let old = std::mem::replace(&mut self.config, config);
        // The stations of ports that are gone count no longer.
        let ports = old.open().iter().zip(self.config.open());
        ports.filter(|(old, new)| old != new && **old != PortId::NONE).for_each(|(&old, _)| self.fdb.close(old));
        // Most stay as they are, also among the learned stations.
        self.fdb.remove_static(old.pins().except(self.config.pins()).map(|(station, _)| station));
        self.fdb.insert_static(self.config.pins().except(old.pins()));
        old
    }

    /// The learned stations.
    pub fn fdb(&self) -> &Fdb {
        &self.fdb
    }

    /// What other workers have to be told since this was last asked.
    #[inline]
    pub fn updates(&mut self) -> impl ExactSizeIterator<Item = MacUpdate> + '_ {
        self.updates.drain(..)
    }

    /// The loop probes that came back since this was last asked: of one burst, or some of them are lost.
    #[inline]
    pub fn returned_probes(&mut self) -> impl ExactSizeIterator<Item = ReturnedProbe> + '_ {
        self.probe_receiver.returned.drain(..)
    }

    /// The stations that moved too often since this was last asked: of one burst, or some of them are lost until they
    /// have come to rest.
    #[inline]
    pub fn flap_events(&mut self) -> impl ExactSizeIterator<Item = FlapEvent> + '_ {
        self.flap_detector.events.drain(..)
    }

    /// The ports that sent what belongs to others, since this was last asked: each once in a second at most.
    #[inline]
    pub fn spoof_events(&mut self) -> impl ExactSizeIterator<Item = SpoofEvent> + '_ {
        self.flap_detector.spoof_events.drain(..)
    }

    /// The senders above Ethernet that were refused since this was last asked: of each port four a second at most.
    #[inline]
    pub fn spoofed(&mut self) -> impl ExactSizeIterator<Item = SpoofedIp> + '_ {
        self.spoofing.events.drain(..)
    }

    /// Reports about pinned stations since the last call, each with its time.
    #[inline]
    pub fn pin_reports(&mut self) -> impl ExactSizeIterator<Item = (PinReport, MonoTime)> + '_ {
        self.pin_reports.pending.drain(..)
    }

    /// The ports that sent from the address of a sibling without being allowed to, since this was last asked: each once in
    /// a second at most.
    #[inline]
    pub fn sibling_sources(&mut self) -> impl ExactSizeIterator<Item = SiblingSource> + '_ {
        self.flap_detector.siblings.events.drain(..)
    }

    /// Whether control is to be told of something.
    #[inline]
    pub fn has_events(&self) -> bool {
        let FlapDetector { events, spoof_events: spoofed, siblings, .. } = &self.flap_detector;
        !(self.probe_receiver.returned.is_empty()
            && events.is_empty()
            && spoofed.is_empty()
            && siblings.events.is_empty()
            && self.spoofing.events.is_empty()
            && self.pin_reports.pending.is_empty())
    }

    /// Applies what another worker saw. A move of a station counts here as well.
    ///
    /// The other worker may have seen it under other rules, and before or after this one saw the same station elsewhere.
    /// So the rules in force here decide whether the port may have the station, and the times decide which of the two
    /// places holds. Where this worker knows better, it says so.
    pub fn apply(&mut self, update: MacUpdate, now: MonoTime) {
        let MacUpdate { station, port: id, at } = update;
        let Some(port) = self.config.compiled_port(id).filter(|port| port.is_open) else { return };
        let hash = self.fdb.hash(station);
        if !may_be_learned(&self.config, port, station, hash) {
            return;
        }
        let oldest = (now.secs() + 1).saturating_sub(port.ageing);
        if let Some(known) = self.fdb.learned(station, hash)
            && known.port != id
            && known.last_seen >= oldest
            && self.config.is_open(known.port)
        {
            let known_at = self.flap_detector.times.get(station, hash).max(MonoTime::from_secs(known.last_seen.into()));
            if (known_at, known.port.bits()) > (at, id.bits()) {
                if self.updates.len() < BURST {
                    self.updates.push(MacUpdate { station, port: known.port, at: known_at });
                }
                return;
            }
        }
        drop_own_entry(&mut self.fdb, port);
        match learn(&mut self.fdb, &mut self.flap_detector, &self.config, port, (station, hash), at.secs(), now) {
            LearnResult::Stays | LearnResult::Refused => {}
            LearnResult::Known | LearnResult::Refresh | LearnResult::New | LearnResult::Moved { .. } => {
                self.flap_detector.times.put(station, hash, at)
            }
        }
    }

    /// Learns what was known before the switch was started, as far as the rules allow it. Whatever has been seen since is
    /// right.
    pub fn restore(&mut self, entry: FdbEntry) {
        let Some(port) = self.config.compiled_port(entry.port) else { return };
        let hash = self.fdb.hash(entry.station);
        if may_be_learned(&self.config, port, entry.station, hash) && self.fdb.find(entry.station, hash, 0).is_none() {
            drop_own_entry(&mut self.fdb, port);
            self.fdb.learn(entry.station, hash, entry.port, entry.last_seen, port.limits, port.ageing);
        }
    }

    /// Looks at `budget` stations at most, from `cursor` on, and forgets those of which `flush`
    /// speaks. How many these were, of those whose port is there, and where to go on; `None` at
    /// the end.
    pub fn flush(&mut self, cursor: usize, budget: usize, flush: impl Fn(&FdbEntry) -> bool) -> (u32, Option<usize>) {
        let (config, mut forgotten) = (&self.config, 0);
        let cursor = self.fdb.flush(cursor, budget, |entry| {
            let so = flush(entry);
            forgotten += u32::from(so && config.compiled_port(entry.port).is_some());
            so
        });
        (forgotten, cursor)
    }

    /// Looks at the next few learned stations, and forgets those that have aged.
    pub fn age_step(&mut self, budget: usize, now: MonoTime) {
        let (config, now) = (&self.config, now.secs());
        self.fdb.age_step(budget, |entry| {
            config.compiled_port(entry.port).is_some_and(|port| now.saturating_sub(entry.last_seen) < port.ageing)
        });
    }

    /// Where the frames of the last burst that came by a carrier belong.
    #[inline]
    pub fn ingress_ports(&self) -> &IngressPorts {
        &self.ingress_ports
    }
}

/// Whether a station that was not seen in a frame here may be learned behind a port: it is on the port's network, port
/// security lets it pass, and it is pinned nowhere.
fn may_be_learned(config: &ForwardingConfig, port: &Port, station: Station, hash: u64) -> bool {
    port.config.learns
        && station.network() == port.config.network
        && station.mac().is_station()
        && port.allows(station.mac())
        && config.pins().find(station, hash).is_none()
}

/// Notes that a station was seen behind a port, and when, in seconds; unless it moves too often. An address that
/// belongs to the port may always come back to it.
pub(super) fn learn(
    fdb: &mut Fdb,
    flaps: &mut FlapDetector,
    config: &ForwardingConfig,
    port: &Port,
    (station, hash): (Station, u64),
    seen: u32,
    now: MonoTime,
) -> LearnResult {
    let oldest = (now.secs() + 1).saturating_sub(port.ageing);
    fdb.learn_if((station, hash), port.config.id, seen, port.limits, port.ageing, |entry| {
        port.owns(station.mac()) || flaps.check_move(config, entry, hash, oldest, port, now)
    })
}

/// Gives up the place that a port's own address has had among its stations since before it was pinned: there is none
/// for it in what may be learned, and another station would be displaced for it.
pub(super) fn drop_own_entry(fdb: &mut Fdb, port: &Port) {
    if port.mac_limit.is_some() && port.pinned.mac() != Mac::ZERO {
        fdb.remove_from(port.pinned, fdb.hash(port.pinned), port.config.id);
    }
}
