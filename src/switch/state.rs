//! State of one worker's switch: configuration, FDB, detectors, and the updates and events that they produce.

use std::sync::Arc;

use super::activation::PinReports;
use super::flaps::FlapDetector;
use super::lookup_key::LookupKey;
use super::port::Port;
use super::probe_receiver::ProbeReceiver;
use super::spoofing::{SpoofReporter, SpoofedIp};
use super::trunk::{IngressPort, IngressPorts};
use super::{
    Fdb, FdbEntry, FlapEvent, ForwardingConfig, HashKey, LearnResult, PinReport, PortId, ReceivedHostProbe,
    ReturnedProbe, SiblingSource, SpoofEvent, Station,
};
use crate::frame::BURST;
use crate::time::MonoTime;
use crate::wire::{Mac, ProbeKeys};

/// FDB update for other workers: a station was seen at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacUpdate {
    /// The station.
    pub station: Station,
    /// The port.
    pub port: PortId,
    /// Time at which it was seen there. Of two updates for a station, the later one wins at every worker, in any
    /// order of arrival.
    pub at: MonoTime,
}

/// Configuration and state of one worker's switch.
#[derive(Debug)]
pub struct Switch {
    pub(super) config: Arc<ForwardingConfig>,
    pub(super) fdb: Fdb,
    /// FDB updates to send to other workers. At most a burst.
    pub(super) updates: Vec<MacUpdate>,
    /// Receiver of returned loop probes.
    pub(super) probe_receiver: ProbeReceiver,
    /// Detector of MAC flaps.
    pub(super) flap_detector: FlapDetector,
    /// Reports of refused L3 senders.
    pub(super) spoofing: SpoofReporter,
    /// Reports about pinned stations.
    pub(super) pin_reports: PinReports,
    /// Lookup keys of the current burst.
    pub(super) keys: Box<[LookupKey; BURST]>,
    /// Ingress ports of the last burst from a trunk.
    pub(super) ingress_ports: Box<IngressPorts>,
}

impl Switch {
    /// Creates a switch without ports. Its FDB holds `stations` stations; `keys` authenticate its loop probes.
    pub fn new(stations: u32, hash_key: HashKey, keys: ProbeKeys) -> Switch {
        Switch {
            config: Arc::new(ForwardingConfig::none(hash_key)),
            fdb: Fdb::new(stations, hash_key),
            updates: Vec::with_capacity(BURST),
            probe_receiver: ProbeReceiver::new(keys),
            flap_detector: FlapDetector::new(),
            spoofing: SpoofReporter::new(),
            pin_reports: PinReports::new(),
            keys: Box::new([LookupKey::NONE; BURST]),
            ingress_ports: Box::new([IngressPort { port: PortId::NONE, tag: 0 }; BURST]),
        }
    }

    /// The current configuration.
    #[inline]
    pub fn config(&self) -> &Arc<ForwardingConfig> {
        &self.config
    }

    /// Replaces the configuration and returns the old one.
    pub fn replace_config(&mut self, config: Arc<ForwardingConfig>, now: MonoTime) -> Arc<ForwardingConfig> {
        self.flap_detector.record_opened(&self.config, &config, now);
        let old = std::mem::replace(&mut self.config, config);
        self.probe_receiver.boot_millis = self.config.boot_millis();
        // Entries of closed ports no longer count.
        let ports = old.open().iter().zip(self.config.open());
        ports.filter(|(old, new)| old != new && **old != PortId::NONE).for_each(|(&old, _)| self.fdb.close(old));
        // Most pins stay, and so do their copies in the FDB.
        self.fdb.remove_static(old.pins().except(self.config.pins()).map(|(station, _)| station));
        self.fdb.insert_static(self.config.pins().except(old.pins()));
        old
    }

    /// The FDB.
    pub fn fdb(&self) -> &Fdb {
        &self.fdb
    }

    /// Takes the pending FDB updates.
    #[inline]
    pub fn updates(&mut self) -> impl ExactSizeIterator<Item = MacUpdate> + '_ {
        self.updates.drain(..)
    }

    /// Takes the loop probes that have returned. Call after each burst, or events are lost.
    #[inline]
    pub fn returned_probes(&mut self) -> impl ExactSizeIterator<Item = ReturnedProbe> + '_ {
        self.probe_receiver.returned.drain(..)
    }

    /// Takes the loop probes of other hosts. Call after each burst, or events are lost.
    #[inline]
    pub fn host_probes(&mut self) -> impl ExactSizeIterator<Item = ReceivedHostProbe> + '_ {
        self.probe_receiver.received.drain(..)
    }

    /// Takes the flaps whose moves were not refused. Call after each burst, or events are lost.
    #[inline]
    pub fn allowed_flaps(&mut self) -> impl ExactSizeIterator<Item = FlapEvent> + '_ {
        self.flap_detector.allowed_flaps.drain(..)
    }

    /// Takes the flap events. Call after each burst, or events are lost until the station has settled.
    #[inline]
    pub fn flap_events(&mut self) -> impl ExactSizeIterator<Item = FlapEvent> + '_ {
        self.flap_detector.events.drain(..)
    }

    /// Takes the spoof events: at most one per port and second.
    #[inline]
    pub fn spoof_events(&mut self) -> impl ExactSizeIterator<Item = SpoofEvent> + '_ {
        self.flap_detector.spoof_events.drain(..)
    }

    /// Takes the refused L3 senders: at most four per port and second.
    #[inline]
    pub fn spoofed(&mut self) -> impl ExactSizeIterator<Item = SpoofedIp> + '_ {
        self.spoofing.events.drain(..)
    }

    /// Reports about pinned stations since the last call, each with its time.
    #[inline]
    pub fn pin_reports(&mut self) -> impl ExactSizeIterator<Item = (PinReport, MonoTime)> + '_ {
        self.pin_reports.pending.drain(..)
    }

    /// Takes the reports of ports that sent from a sibling's address without permission: at most one per port and
    /// second.
    #[inline]
    pub fn sibling_sources(&mut self) -> impl ExactSizeIterator<Item = SiblingSource> + '_ {
        self.flap_detector.siblings.events.drain(..)
    }

    /// Whether any event is pending for control.
    #[inline]
    pub fn has_events(&self) -> bool {
        let FlapDetector { events, allowed_flaps, spoof_events: spoofed, siblings, .. } = &self.flap_detector;
        !(self.probe_receiver.returned.is_empty()
            && self.probe_receiver.received.is_empty()
            && events.is_empty()
            && allowed_flaps.is_empty()
            && spoofed.is_empty()
            && siblings.events.is_empty()
            && self.spoofing.events.is_empty()
            && self.pin_reports.pending.is_empty())
    }

    /// Applies an FDB update of another worker. A move counts as a flap here as well.
    ///
    /// The other worker may have decided under another configuration, and before or after this one saw the station
    /// elsewhere. The current configuration therefore decides whether the port may have the station, and the times
    /// decide which port wins. If this worker's entry wins, it sends an update.
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

    /// Learns a station of which control knows, if the configuration allows it. An entry learned before takes precedence.
    pub fn learn_unknown(&mut self, entry: FdbEntry) {
        let Some(port) = self.config.compiled_port(entry.port) else { return };
        let hash = self.fdb.hash(entry.station);
        if may_be_learned(&self.config, port, entry.station, hash) && self.fdb.find(entry.station, hash, 0).is_none() {
            drop_own_entry(&mut self.fdb, port);
            self.fdb.learn(entry.station, hash, entry.port, entry.last_seen, port.limits, port.ageing);
        }
    }

    /// Restores entries from before the start, the youngest first, as far as the configuration allows and there is room.
    /// An entry learned since takes precedence.
    pub fn restore(&mut self, entries: &[FdbEntry]) {
        for (index, &entry) in entries.iter().enumerate() {
            if let Some(ahead) = entries.get(index + BURST) {
                self.fdb.prefetch_to_add(self.fdb.hash(ahead.station));
            }
            let Some(port) = self.config.compiled_port(entry.port) else { continue };
            let hash = self.fdb.hash(entry.station);
            if may_be_learned(&self.config, port, entry.station, hash) {
                drop_own_entry(&mut self.fdb, port);
                self.fdb.restore(entry, hash, port.limits);
            }
        }
    }

    /// Visits at most `budget` entries from `cursor` on and removes those for which `flush` returns true. Returns
    /// how many of open ports were removed, and where to continue; `None` at the end.
    pub fn flush(&mut self, cursor: usize, budget: usize, flush: impl Fn(&FdbEntry) -> bool) -> (u32, Option<usize>) {
        let (config, mut forgotten) = (&self.config, 0);
        let cursor = self.fdb.flush(cursor, budget, |entry| {
            let so = flush(entry);
            forgotten += u32::from(so && config.compiled_port(entry.port).is_some());
            so
        });
        (forgotten, cursor)
    }

    /// Visits the next entries, at most `budget`, and removes those that have aged.
    pub fn age_step(&mut self, budget: usize, now: MonoTime) {
        let (config, now) = (&self.config, now.secs());
        self.fdb.age_step(budget, |entry| {
            config.compiled_port(entry.port).is_some_and(|port| now.saturating_sub(entry.last_seen) < port.ageing)
        });
    }

    /// Ingress ports of the last burst from a trunk.
    #[inline]
    pub fn ingress_ports(&self) -> &IngressPorts {
        &self.ingress_ports
    }
}

/// Whether a station without a frame at this worker may be learned at a port: it is on the port's network, port
/// security allows it, and it is not pinned.
fn may_be_learned(config: &ForwardingConfig, port: &Port, station: Station, hash: u64) -> bool {
    port.config.learns
        && station.network() == port.config.network
        && station.mac().is_station()
        && port.allows(station.mac())
        && config.pins().find(station, hash).is_none()
}

/// Learns a station at a port with a time in seconds, unless it flaps. An address of the port itself may always
/// return to it.
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

/// Removes the entry that a port's own address has had since before it was pinned: the port's limit has no room for
/// it, and another station would be evicted.
pub(super) fn drop_own_entry(fdb: &mut Fdb, port: &Port) {
    if port.mac_limit.is_some() && port.pinned.mac() != Mac::ZERO {
        fdb.remove_from(port.pinned, fdb.hash(port.pinned), port.config.id);
    }
}
