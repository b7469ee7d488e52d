//! Stations that move. A few moves are a bond that fails over, or a machine that migrates; many are a loop, or somebody
//! who takes what others are sent. RFC 7432, 15.1 draws the line at five within three minutes, and so does this: the
//! fifth is refused, and control hears of it, which freezes the station where it thinks right. Until then, and as long
//! as four lie within the time, it stays where it is.
//!
//! *Between ports that are both allowed to use the address*, as by `allowed_address_pairs` on both, more is normal: the
//! master of a VRRP group changes, and a backup that starts speaks with the group's address as well, between two
//! adverts of the master (RFC 9568, 7.3 and 8.1.2). There 32 moves within a second are free, which no backup needs and
//! every loop of frames exceeds. An uplink may use any address. A port whose VM loops or storms now has no such right,
//! nor has one without port security: nobody said what it may use.
//!
//! *Between ports of one VM* there is a line of its own, five within a second: a bond may fail over 20 times in a
//! minute, and nobody else is harmed. Not at all counted are
//!
//! * moves between ports of a VM that shares its addresses among them;
//! * moves from a port that is closed, administratively down or in quarantine, or of a station that has aged: it is
//!   not there any more;
//! * moves between an uplink and a port that was opened within the last minute: a machine has come from another host.
//!   Opened it is when it first has a device and is administratively up, or is so again.
//!
//! *The table is of a fixed size*, and filed under the keyed hash of stations. Where it is full, what moved least
//! makes room. Moves among siblings have a table of their own, so that a VM that moves what is its own cannot push out
//! what it shares with others.

use std::time::Duration;

use super::forwarding::Port;
use super::pinned::place;
use super::sibling_sources::SiblingReporter;
use super::update_times::UpdateTimes;
use super::{FdbEntry, ForwardingConfig, MAX_PORTS, PortConfig, PortId, Station};
use crate::frame::BURST;
use crate::time::MonoTime;

/// Moves that are let pass within the time.
const MAX_MOVES: usize = 4;

/// The time for moves between VMs, and to and from uplinks (RFC 7432, 15.1).
const VM_WINDOW: Duration = Duration::from_secs(180);

/// The time for moves between ports of one VM.
const SIBLING_WINDOW: Duration = Duration::from_secs(1);

/// Moves that are let pass within [`SIBLING_WINDOW`] between ports that are both allowed to use the address.
const MAX_MOVES_SHARED: usize = 32;

/// How long moves between an uplink and a port are not counted, from when it was opened.
const OPEN_GRACE: Duration = Duration::from_secs(60);

/// Stations of which moves are remembered in each of the tables, at most: so many sets of so many.
const SETS: usize = 256;
const WAYS: usize = 8;

/// Sets for addresses that several ports are allowed to use: few are.
const SETS_SHARED: usize = 32;

/// A station has moved too often: its last move was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlapEvent {
    /// The station.
    pub station: Station,
    /// Where it stays.
    pub from: PortId,
    /// Where it was seen.
    pub to: PortId,
    /// Where it was before it began to move from VM to VM; where it stays, if it has not.
    pub origin: PortId,
}

/// A port has sent a frame with a source that belongs to a port of another VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoofEvent {
    /// The port.
    pub at: PortId,
    /// The source.
    pub station: Station,
}

/// How often control is told of a port that sends what belongs to others.
const SPOOF_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// A station that has moved.
#[derive(Debug, Clone, Copy)]
struct Flap<const FREE: usize> {
    station: Station,
    /// Its last moves, from the oldest; so many of them are any.
    times: [MonoTime; FREE],
    len: usize,
    /// Where it was before those that lie within the time.
    origin: PortId,
    /// When control was told of it.
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

    /// How many of its moves lie within the time.
    fn recent(&self, now: MonoTime, time: Duration) -> usize {
        self.times[..self.len].iter().filter(|&&at| now.since(at) < time).count()
    }
}

/// What becomes of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Allow,
    Refuse { is_news: bool },
}

/// The stations that have moved lately, and their moves within a certain time, of which `MAX_MOVES` are let pass.
#[derive(Debug)]
struct FlapTable<const FREE: usize> {
    entries: Vec<Flap<FREE>>,
    time: Duration,
}

impl<const FREE: usize> FlapTable<FREE> {
    fn new(sets: usize, time: Duration) -> Self {
        FlapTable { entries: vec![Flap::NONE; sets * WAYS], time }
    }

    /// The first mover of the set of a station.
    fn set(&self, hash: u64) -> usize {
        place(hash, self.entries.len() / WAYS) * WAYS
    }

    /// Where a station was before it began to move, if it has lately.
    fn origin(&self, station: Station, hash: u64, now: MonoTime) -> Option<PortId> {
        let set = &self.entries[self.set(hash)..][..WAYS];
        let flap = set.iter().find(|flap| flap.station == station)?;
        (flap.recent(now, self.time) > 0).then_some(flap.origin)
    }

    /// Whether a station may move from a port, and if so, that it does. Without room for it, a refusal is no news, and
    /// may be later.
    fn decide(&mut self, station: Station, hash: u64, from: PortId, now: MonoTime, has_room: bool) -> Decision {
        let (time, set) = (self.time, self.set(hash));
        let set = &mut self.entries[set..][..WAYS];
        let at = set.iter().position(|flap| flap.station == station).unwrap_or_else(|| {
            // What moved least, and of these what moved last longest ago.
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

/// What one worker remembers of stations that move.
#[derive(Debug)]
pub(super) struct FlapDetector {
    between_vms: FlapTable<MAX_MOVES>,
    between_siblings: FlapTable<MAX_MOVES>,
    /// Between ports that are both allowed to use the address.
    shared: FlapTable<MAX_MOVES_SHARED>,
    /// Sources that belong to a sibling.
    pub(super) siblings: SiblingReporter,
    /// When stations were announced last.
    pub(super) times: UpdateTimes,
    /// By the place of each port: when it was opened.
    opened: Vec<MonoTime>,
    /// Of whom control is to be told, since it was last asked for.
    pub(super) events: Vec<FlapEvent>,
    /// By the place of each port: when control was told of what it sends of others.
    spoof_reported: Vec<MonoTime>,
    /// What it is to be told of that.
    pub(super) spoof_events: Vec<SpoofEvent>,
}

impl FlapDetector {
    pub(super) fn new() -> FlapDetector {
        FlapDetector {
            between_vms: FlapTable::new(SETS, VM_WINDOW),
            between_siblings: FlapTable::new(SETS, SIBLING_WINDOW),
            shared: FlapTable::new(SETS_SHARED, SIBLING_WINDOW),
            siblings: SiblingReporter::new(),
            times: UpdateTimes::new(),
            opened: vec![MonoTime::default(); MAX_PORTS],
            events: Vec::with_capacity(BURST),
            spoof_reported: vec![MonoTime::default(); MAX_PORTS],
            spoof_events: Vec::with_capacity(BURST),
        }
    }

    /// Notes that a port has sent what belongs to another VM. One of these in a second is told of.
    #[cold]
    pub(super) fn report_spoof(&mut self, at: PortId, station: Station, now: MonoTime) {
        let reported = &mut self.spoof_reported[at.index() % MAX_PORTS];
        if now.since(*reported) >= SPOOF_REPORT_INTERVAL && self.spoof_events.len() < BURST {
            *reported = now;
            self.spoof_events.push(SpoofEvent { at, station });
        }
    }

    /// Notes which ports are opened as new rules come into force.
    pub(super) fn record_opened(&mut self, old: &ForwardingConfig, new: &ForwardingConfig, now: MonoTime) {
        let is_out = |port: &PortConfig| port.admin_up && port.worker.is_some();
        for port in new.ports().filter(|port| is_out(port)) {
            if !old.port(port.id).is_some_and(is_out) {
                self.opened[port.id.index() % MAX_PORTS] = now;
            }
        }
    }

    /// Whether a station that was `learned` behind another port may move to port `to`, and if so, that it does.
    /// `oldest`: when it must have been heard to be there still, in seconds.
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
            (true, false) if has_arrived(to) => Decision::Allow,
            (false, true) if has_arrived(from) => Decision::Allow,
            (false, false) if from.vm == to.vm && to.mac_sharing => Decision::Allow,
            (false, false) if from.vm == to.vm => self.between_siblings.decide(station, hash, from.id, now, has_room),
            (false, _) | (_, false) if is_allowed => self.shared.decide(station, hash, from.id, now, has_room),
            _ => self.between_vms.decide(station, hash, from.id, now, has_room),
        }
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

    /// All moves there ever were, and when control was told.
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
        /// In whatever window of the time: four moves at most. And no refusal that is not due, and one piece of news.
        #[test]
        fn the_fifth_within_the_time_is_refused(
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

    /// Stations that move once push out each other, and none that has moved more often.
    #[test]
    fn what_moves_most_is_remembered_longest() {
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
