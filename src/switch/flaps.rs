//! Detects MAC flaps. A few moves are a bond failover or a migrated VM; many are a loop or a hijacked address. RFC
//! 7432, 15.1 sets the limit at five moves within three minutes, which applies here: the fifth is refused and
//! reported to control, which may dampen the station. The station stays where it is while four moves are within the
//! window.
//!
//! *Ports that are both allowed to use the address*, such as by `allowed_address_pairs` on both, legitimately move
//! it more often: the master of a VRRP group changes, and a backup that starts sends from the group's address
//! between two adverts of the master (RFC 9568, 7.3 and 8.1.2). There 32 moves within a second are allowed: more
//! than any backup needs, less than any loop causes. An uplink may use any address. A port of a VM that loops or
//! storms has no such right, nor has a port without port security, for which no addresses are configured.
//!
//! *Ports of one VM* have a separate limit of five moves within a second: a bond may fail over 20 times a minute,
//! which harms no other VM. Not counted are
//!
//! * moves between ports of a VM with MAC sharing;
//! * moves from a port that is closed, administratively down or quarantined, or of an aged station: it is no longer
//!   there;
//! * moves between an uplink and a port opened within the last minute: a VM has migrated from another host. A port
//!   is opened when it first has a device and is administratively up, or is so again. More than 32 within a second are
//!   reported all the same, without being refused: the port may be in a loop over another host, and control probes it.
//!
//! *The table has a fixed size*, indexed by the keyed hash of stations. In a full set, the station with the fewest
//! moves is evicted. Moves among siblings have a separate table, so that a VM cannot evict others' stations by
//! moving its own.

use std::time::Duration;

use super::pinned::place;
use super::port::Port;
use super::sibling_sources::SiblingReporter;
use super::update_times::UpdateTimes;
use super::{FdbEntry, ForwardingConfig, MAX_PORTS, PortConfig, PortId, Station};
use crate::frame::BURST;
use crate::time::MonoTime;

/// Moves allowed within the window.
const MAX_MOVES: usize = 4;

/// Window for moves between VMs, and to and from uplinks (RFC 7432, 15.1).
const VM_WINDOW: Duration = Duration::from_secs(180);

/// Window for moves between ports of one VM.
const SIBLING_WINDOW: Duration = Duration::from_secs(1);

/// Moves allowed within [`SIBLING_WINDOW`] between ports that are both allowed to use the address.
const MAX_MOVES_SHARED: usize = 32;

/// Time after a port was opened in which moves between it and an uplink are not counted.
const OPEN_GRACE: Duration = Duration::from_secs(60);

/// Sets per table; with the set size, the maximum number of tracked stations.
const SETS: usize = 256;
const WAYS: usize = 8;

/// Sets for addresses that several ports are allowed to use: there are few.
const SETS_SHARED: usize = 32;

/// A station has exceeded the move limit; its last move was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlapEvent {
    /// The station.
    pub station: Station,
    /// Port at which it stays.
    pub from: PortId,
    /// Port at which it was seen.
    pub to: PortId,
    /// Port at which it was before its moves between VMs; `from` if there are none.
    pub origin: PortId,
}

/// A port has sent a frame whose source belongs to another VM's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoofEvent {
    /// The sending port.
    pub at: PortId,
    /// The source.
    pub station: Station,
}

/// Minimum interval between spoof events of a port.
const SPOOF_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// A station that has moved.
#[derive(Debug, Clone, Copy)]
struct Flap<const FREE: usize> {
    station: Station,
    /// Times of its last moves, oldest first; the first `len` are valid.
    times: [MonoTime; FREE],
    len: usize,
    /// Port before the moves within the window.
    origin: PortId,
    /// Time of the last event, if any.
    reported: Option<MonoTime>,
}

impl<const FREE: usize> Flap<FREE> {
    const NONE: Self = Flap {
        station: Station::NONE,
        times: [MonoTime::from_nanos(0); FREE],
        len: 0,
        origin: PortId::NONE,
        reported: None,
    };

    /// Number of moves within the window.
    fn recent(&self, now: MonoTime, time: Duration) -> usize {
        self.times[..self.len].iter().filter(|&&at| now.since(at) < time).count()
    }
}

/// Decision on a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Allow,
    Refuse { is_news: bool },
}

/// Stations that have moved, with their moves in a window, of which `MAX_MOVES` are allowed.
#[derive(Debug)]
struct FlapTable<const FREE: usize> {
    entries: Vec<Flap<FREE>>,
    time: Duration,
}

impl<const FREE: usize> FlapTable<FREE> {
    fn new(sets: usize, time: Duration) -> Self {
        FlapTable { entries: vec![Flap::NONE; sets * WAYS], time }
    }

    /// Index of the first entry of a station's set.
    fn set(&self, hash: u64) -> usize {
        place(hash, self.entries.len() / WAYS) * WAYS
    }

    /// Port of a station before its recent moves, if any.
    fn origin(&self, station: Station, hash: u64, now: MonoTime) -> Option<PortId> {
        let set = &self.entries[self.set(hash)..][..WAYS];
        let flap = set.iter().find(|flap| flap.station == station)?;
        (flap.recent(now, self.time) > 0).then_some(flap.origin)
    }

    /// Decides whether a station may move from a port, and records the move. Without `has_room` for an event, a
    /// refusal is reported later.
    fn decide(&mut self, station: Station, hash: u64, from: PortId, now: MonoTime, has_room: bool) -> Decision {
        let (time, set) = (self.time, self.set(hash));
        let set = &mut self.entries[set..][..WAYS];
        let at = set.iter().position(|flap| flap.station == station).unwrap_or_else(|| {
            // Fewest recent moves first, then oldest last move.
            let rank = |flap: &Flap<FREE>| (flap.recent(now, time), flap.times[..flap.len].last().copied());
            let least = (0..WAYS).min_by_key(|&at| rank(&set[at])).unwrap_or(0);
            set[least] = Flap { station, ..Flap::NONE };
            least
        });
        let flap = &mut set[at];
        let lately = flap.recent(now, time);
        if lately == 0 {
            flap.origin = from;
        }
        if lately == FREE {
            let is_news = has_room && flap.reported.is_none_or(|reported| now.since(reported) >= time);
            if is_news {
                flap.reported = Some(now);
            }
            return Decision::Refuse { is_news };
        }
        if flap.len == FREE {
            flap.times.rotate_left(1);
            flap.len -= 1;
        }
        flap.times[flap.len] = now;
        flap.len += 1;
        Decision::Allow
    }
}

/// Flap detector of one worker.
#[derive(Debug)]
pub(super) struct FlapDetector {
    between_vms: FlapTable<MAX_MOVES>,
    between_siblings: FlapTable<MAX_MOVES>,
    /// Moves between ports that are both allowed to use the address.
    shared: FlapTable<MAX_MOVES_SHARED>,
    /// Moves between an uplink and a port opened within the last minute, none of which is refused.
    arriving: FlapTable<MAX_MOVES_SHARED>,
    /// Sources that belong to a sibling.
    pub(super) siblings: SiblingReporter,
    /// Times of the last FDB updates.
    pub(super) times: UpdateTimes,
    /// By port index: when the port was opened.
    opened: Vec<MonoTime>,
    /// Events since control last took them.
    pub(super) events: Vec<FlapEvent>,
    /// Flaps since then whose moves were not refused.
    pub(super) allowed_flaps: Vec<FlapEvent>,
    /// By port index: time of the last spoof event.
    spoof_reported: Vec<MonoTime>,
    /// Spoof events to send.
    pub(super) spoof_events: Vec<SpoofEvent>,
}

impl FlapDetector {
    pub(super) fn new() -> FlapDetector {
        FlapDetector {
            between_vms: FlapTable::new(SETS, VM_WINDOW),
            between_siblings: FlapTable::new(SETS, SIBLING_WINDOW),
            shared: FlapTable::new(SETS_SHARED, SIBLING_WINDOW),
            arriving: FlapTable::new(SETS_SHARED, SIBLING_WINDOW),
            allowed_flaps: Vec::with_capacity(BURST),
            siblings: SiblingReporter::new(),
            times: UpdateTimes::new(),
            opened: vec![MonoTime::default(); MAX_PORTS],
            events: Vec::with_capacity(BURST),
            spoof_reported: vec![MonoTime::default(); MAX_PORTS],
            spoof_events: Vec::with_capacity(BURST),
        }
    }

    /// Records a spoofed source; emits at most one event per port and second.
    #[cold]
    pub(super) fn report_spoof(&mut self, at: PortId, station: Station, now: MonoTime) {
        let reported = &mut self.spoof_reported[at.index() % MAX_PORTS];
        if now.since(*reported) >= SPOOF_REPORT_INTERVAL && self.spoof_events.len() < BURST {
            *reported = now;
            self.spoof_events.push(SpoofEvent { at, station });
        }
    }

    /// Records the ports that a new configuration opens.
    pub(super) fn record_opened(&mut self, old: &ForwardingConfig, new: &ForwardingConfig, now: MonoTime) {
        let is_out = |port: &PortConfig| port.admin_up && port.worker.is_some();
        for port in new.ports().filter(|port| is_out(port)) {
            if !old.port(port.id).is_some_and(is_out) {
                self.opened[port.id.index() % MAX_PORTS] = now;
            }
        }
    }

    /// Decides whether a station learned at another port may move to port `to`, and records the move. `oldest`:
    /// entries last seen earlier have aged, in seconds.
    #[cold]
    pub(super) fn check_move(
        &mut self,
        config: &ForwardingConfig,
        entry: &FdbEntry,
        hash: u64,
        oldest: u32,
        to: &Port,
        now: MonoTime,
    ) -> bool {
        let station = entry.station;
        let decision = match config.compiled_port(entry.port) {
            Some(from) if entry.last_seen >= oldest && from.is_open => self.decide(from, to, station, hash, now),
            _ => Decision::Allow,
        };
        match decision {
            Decision::Allow => return true,
            Decision::Refuse { is_news: false } => {}
            Decision::Refuse { is_news: true } => {
                let origin = self.between_vms.origin(station, hash, now).unwrap_or(entry.port);
                self.events.push(FlapEvent { station, from: entry.port, to: to.config.id, origin });
            }
        }
        false
    }

    fn decide(&mut self, from: &Port, to: &Port, station: Station, hash: u64, now: MonoTime) -> Decision {
        let has_arrived =
            |port: &PortConfig| !port.is_uplink() && now.since(self.opened[port.id.index() % MAX_PORTS]) < OPEN_GRACE;
        let has_room = self.events.len() < BURST;
        let is_allowed = from.may_share(station.mac()) && to.may_share(station.mac());
        let (from, to) = (&from.config, &to.config);
        match (from.is_uplink(), to.is_uplink()) {
            (true, false) if has_arrived(to) => self.arrive(station, hash, from.id, to.id, now),
            (false, true) if has_arrived(from) => self.arrive(station, hash, from.id, to.id, now),
            (false, false) if from.vm == to.vm && to.mac_sharing => Decision::Allow,
            (false, false) if from.vm == to.vm => self.between_siblings.decide(station, hash, from.id, now, has_room),
            (false, _) | (_, false) if is_allowed => self.shared.decide(station, hash, from.id, now, has_room),
            _ => self.between_vms.decide(station, hash, from.id, now, has_room),
        }
    }

    /// Allows a move between an uplink and a new port, and reports it if there are too many.
    fn arrive(&mut self, station: Station, hash: u64, from: PortId, to: PortId, now: MonoTime) -> Decision {
        let has_room = self.allowed_flaps.len() < BURST;
        if self.arriving.decide(station, hash, from, now, has_room) == (Decision::Refuse { is_news: true }) {
            self.allowed_flaps.push(FlapEvent { station, from, to, origin: from });
        }
        Decision::Allow
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::NetworkId;
    use crate::wire::Mac;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const HOME: PortId = PortId::new(1, 0);

    fn station(number: u64) -> Station {
        Station::new(NetworkId::new(0), Mac::from_bits(0x0200_0000_0000 + number))
    }

    /// All moves, and the times at which control was told.
    #[derive(Default)]
    struct Model {
        moves: HashMap<u64, Vec<MonoTime>>,
        homes: HashMap<u64, PortId>,
        reported: HashMap<u64, MonoTime>,
    }

    impl Model {
        fn rule(&mut self, number: u64, from: PortId, now: MonoTime, time: Duration, has_room: bool) -> Decision {
            let flaps = self.moves.entry(number).or_default();
            if flaps.iter().all(|&at| now.since(at) >= time) {
                self.homes.insert(number, from);
            }
            if flaps.iter().filter(|&&at| now.since(at) < time).count() < 4 {
                flaps.push(now);
                return Decision::Allow;
            }
            let is_news = has_room && self.reported.get(&number).is_none_or(|&reported| now.since(reported) >= time);
            if is_news {
                self.reported.insert(number, now);
            }
            Decision::Refuse { is_news }
        }
    }

    proptest! {
        /// At most four moves in any window, no refusal that is not due, and one event.
        #[test]
        fn the_fifth_move_within_the_window_is_refused(
            siblings: bool,
            start in 0..1_000_000_000u64,
            flaps in vec((0..WAYS as u64, prop_oneof![0..3u64, 0..100u64, Just(45), Just(180)], prop::bool::weighted(0.9)), 0..200),
        ) {
            let time = if siblings { SIBLING_WINDOW } else { VM_WINDOW };
            let (mut movers, mut model) = (FlapTable::<MAX_MOVES>::new(SETS, time), Model::default());
            let mut now = MonoTime::from_nanos(start);
            for (number, pause, has_room) in flaps {
                now = now + time * u32::try_from(pause).unwrap() / 180;
                let from = PortId::new(u16::try_from(pause).unwrap(), 0);
                let decision = movers.decide(station(number), 5, from, now, has_room);
                prop_assert_eq!(decision, model.rule(number, from, now, time, has_room));
                prop_assert_eq!(movers.origin(station(number), 5, now), model.homes.get(&number).copied());
            }
        }
    }

    /// Stations that move once evict each other, and none that has moved more often.
    #[test]
    fn stations_with_most_moves_are_evicted_last() {
        let (mut movers, now) = (FlapTable::<MAX_MOVES>::new(SETS, VM_WINDOW), MonoTime::from_secs(1000));
        for _ in 0..4 {
            assert_eq!(movers.decide(station(0), 5, HOME, now, true), Decision::Allow);
        }
        for number in 1..1000 {
            assert_eq!(movers.decide(station(number), 5, HOME, now, true), Decision::Allow);
        }
        assert_eq!(movers.decide(station(0), 5, HOME, now, true), Decision::Refuse { is_news: true });
        assert_eq!(movers.decide(station(0), 5, HOME, now + VM_WINDOW, true), Decision::Allow);
    }
}
