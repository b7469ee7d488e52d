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

use super::pins::place;
use super::rules::Port;
use super::siblings::SiblingSources;
use super::times::UpdateTimes;
use super::{Learned, MOST_PORTS, PortId, PortRules, Rules, Station};
use crate::frame::BURST;
use crate::time::Moment;

/// Moves that are let pass within the time.
const FREE: usize = 4;

/// The time for moves between VMs, and to and from uplinks (RFC 7432, 15.1).
const AMONG_ALL: Duration = Duration::from_secs(180);

/// The time for moves between ports of one VM.
const AMONG_SIBLINGS: Duration = Duration::from_secs(1);

/// Moves that are let pass within [`AMONG_SIBLINGS`] between ports that are both allowed to use the address.
const FREE_SHARED: usize = 32;

/// How long moves between an uplink and a port are not counted, from when it was opened.
const ARRIVAL: Duration = Duration::from_secs(60);

/// Stations of which moves are remembered in each of the tables, at most: so many sets of so many.
const SETS: usize = 256;
const WAYS: usize = 8;

/// Sets for addresses that several ports are allowed to use: few are.
const SETS_SHARED: usize = 32;

/// A station has moved too often: its last move was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moving {
    /// The station.
    pub station: Station,
    /// Where it stays.
    pub from: PortId,
    /// Where it was seen.
    pub to: PortId,
    /// Where it was before it began to move from VM to VM; where it stays, if it has not.
    pub home: PortId,
}

/// A port has sent a frame with a source that belongs to a port of another VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign {
    /// The port.
    pub at: PortId,
    /// The source.
    pub station: Station,
}

/// How often control is told of a port that sends what belongs to others.
const FOREIGN: Duration = Duration::from_secs(1);

/// A station that has moved.
#[derive(Debug, Clone, Copy)]
struct Mover<const FREE: usize> {
    station: Station,
    /// Its last moves, from the oldest; so many of them are any.
    moves: [Moment; FREE],
    len: usize,
    /// Where it was before those that lie within the time.
    home: PortId,
    /// When control was told of it.
    told: Option<Moment>,
}

impl<const FREE: usize> Mover<FREE> {
    const NONE: Self =
        Mover { station: Station::NONE, moves: [Moment::from_nanos(0); FREE], len: 0, home: PortId::NONE, told: None };

    /// How many of its moves lie within the time.
    fn lately(&self, now: Moment, time: Duration) -> usize {
        self.moves[..self.len].iter().filter(|&&at| now.since(at) < time).count()
    }
}

/// What becomes of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ruling {
    Free,
    Refused { is_news: bool },
}

/// The stations that have moved lately, and their moves within a certain time, of which `FREE` are let pass.
#[derive(Debug)]
struct Movers<const FREE: usize> {
    movers: Vec<Mover<FREE>>,
    time: Duration,
}

impl<const FREE: usize> Movers<FREE> {
    fn new(sets: usize, time: Duration) -> Self {
        Movers { movers: vec![Mover::NONE; sets * WAYS], time }
    }

    /// The first mover of the set of a station.
    fn set(&self, hash: u64) -> usize {
        place(hash, self.movers.len() / WAYS) * WAYS
    }

    /// Where a station was before it began to move, if it has lately.
    fn home(&self, station: Station, hash: u64, now: Moment) -> Option<PortId> {
        let set = &self.movers[self.set(hash)..][..WAYS];
        let mover = set.iter().find(|mover| mover.station == station)?;
        (mover.lately(now, self.time) > 0).then_some(mover.home)
    }

    /// Whether a station may move from a port, and if so, that it does. Without room for it, a refusal is no news, and
    /// may be later.
    fn rule(&mut self, station: Station, hash: u64, from: PortId, now: Moment, has_room: bool) -> Ruling {
        let (time, set) = (self.time, self.set(hash));
        let set = &mut self.movers[set..][..WAYS];
        let at = set.iter().position(|mover| mover.station == station).unwrap_or_else(|| {
            // What moved least, and of these what moved last longest ago.
            let rank = |mover: &Mover<FREE>| (mover.lately(now, time), mover.moves[..mover.len].last().copied());
            let least = (0..WAYS).min_by_key(|&at| rank(&set[at])).unwrap_or(0);
            set[least] = Mover { station, ..Mover::NONE };
            least
        });
        let mover = &mut set[at];
        let lately = mover.lately(now, time);
        if lately == 0 {
            mover.home = from;
        }
        if lately == FREE {
            let is_news = has_room && mover.told.is_none_or(|told| now.since(told) >= time);
            if is_news {
                mover.told = Some(now);
            }
            return Ruling::Refused { is_news };
        }
        if mover.len == FREE {
            mover.moves.rotate_left(1);
            mover.len -= 1;
        }
        mover.moves[mover.len] = now;
        mover.len += 1;
        Ruling::Free
    }
}

/// What one worker remembers of stations that move.
#[derive(Debug)]
pub(super) struct Moves {
    among_all: Movers<FREE>,
    among_siblings: Movers<FREE>,
    /// Between ports that are both allowed to use the address.
    among_allowed: Movers<FREE_SHARED>,
    /// Sources that belong to a sibling.
    pub(super) siblings: SiblingSources,
    /// When stations were announced last.
    pub(super) times: UpdateTimes,
    /// By the place of each port: when it was opened.
    opened: Vec<Moment>,
    /// Of whom control is to be told, since it was last asked for.
    pub(super) moving: Vec<Moving>,
    /// By the place of each port: when control was told of what it sends of others.
    told_foreign: Vec<Moment>,
    /// What it is to be told of that.
    pub(super) foreign: Vec<Foreign>,
}

impl Moves {
    pub(super) fn new() -> Moves {
        Moves {
            among_all: Movers::new(SETS, AMONG_ALL),
            among_siblings: Movers::new(SETS, AMONG_SIBLINGS),
            among_allowed: Movers::new(SETS_SHARED, AMONG_SIBLINGS),
            siblings: SiblingSources::new(),
            times: UpdateTimes::new(),
            opened: vec![Moment::default(); MOST_PORTS],
            moving: Vec::with_capacity(BURST),
            told_foreign: vec![Moment::default(); MOST_PORTS],
            foreign: Vec::with_capacity(BURST),
        }
    }

    /// Notes that a port has sent what belongs to another VM. One of these in a second is told of.
    #[cold]
    pub(super) fn note_foreign(&mut self, at: PortId, station: Station, now: Moment) {
        let told = &mut self.told_foreign[at.index() % MOST_PORTS];
        if now.since(*told) >= FOREIGN && self.foreign.len() < BURST {
            *told = now;
            self.foreign.push(Foreign { at, station });
        }
    }

    /// Notes which ports are opened as new rules come into force.
    pub(super) fn note_opened(&mut self, old: &Rules, new: &Rules, now: Moment) {
        let is_out = |port: &PortRules| port.admin_up && port.worker.is_some();
        for port in new.ports().filter(|port| is_out(port)) {
            if !old.port(port.id).is_some_and(is_out) {
                self.opened[port.id.index() % MOST_PORTS] = now;
            }
        }
    }

    /// Whether a station that was `learned` behind another port may move to port `to`, and if so, that it does.
    /// `oldest`: when it must have been heard to be there still, in seconds.
    #[cold]
    pub(super) fn allow(
        &mut self,
        rules: &Rules,
        learned: &Learned,
        hash: u64,
        oldest: u32,
        to: &Port,
        now: Moment,
    ) -> bool {
        let station = learned.station;
        let ruling = match rules.compiled(learned.port) {
            Some(from) if learned.seen >= oldest && from.is_open => self.rule(from, to, station, hash, now),
            _ => Ruling::Free,
        };
        match ruling {
            Ruling::Free => return true,
            Ruling::Refused { is_news: false } => {}
            Ruling::Refused { is_news: true } => {
                let home = self.among_all.home(station, hash, now).unwrap_or(learned.port);
                self.moving.push(Moving { station, from: learned.port, to: to.rules.id, home });
            }
        }
        false
    }

    fn rule(&mut self, from: &Port, to: &Port, station: Station, hash: u64, now: Moment) -> Ruling {
        let has_arrived =
            |port: &PortRules| !port.is_uplink() && now.since(self.opened[port.id.index() % MOST_PORTS]) < ARRIVAL;
        let has_room = self.moving.len() < BURST;
        let is_allowed = from.may_share(station.mac()) && to.may_share(station.mac());
        let (from, to) = (&from.rules, &to.rules);
        match (from.is_uplink(), to.is_uplink()) {
            (true, false) if has_arrived(to) => Ruling::Free,
            (false, true) if has_arrived(from) => Ruling::Free,
            (false, false) if from.owner == to.owner && to.shares_mac => Ruling::Free,
            (false, false) if from.owner == to.owner => self.among_siblings.rule(station, hash, from.id, now, has_room),
            (false, _) | (_, false) if is_allowed => self.among_allowed.rule(station, hash, from.id, now, has_room),
            _ => self.among_all.rule(station, hash, from.id, now, has_room),
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
        moves: HashMap<u64, Vec<Moment>>,
        homes: HashMap<u64, PortId>,
        told: HashMap<u64, Moment>,
    }

    impl Model {
        fn rule(&mut self, number: u64, from: PortId, now: Moment, time: Duration, has_room: bool) -> Ruling {
            let moves = self.moves.entry(number).or_default();
            if moves.iter().all(|&at| now.since(at) >= time) {
                self.homes.insert(number, from);
            }
            if moves.iter().filter(|&&at| now.since(at) < time).count() < 4 {
                moves.push(now);
                return Ruling::Free;
            }
            let is_news = has_room && self.told.get(&number).is_none_or(|&told| now.since(told) >= time);
            if is_news {
                self.told.insert(number, now);
            }
            Ruling::Refused { is_news }
        }
    }

    proptest! {
        /// In whatever window of the time: four moves at most. And no refusal that is not due, and one piece of news.
        #[test]
        fn the_fifth_within_the_time_is_refused(
            siblings: bool,
            start in 0..1_000_000_000u64,
            moves in vec((0..WAYS as u64, prop_oneof![0..3u64, 0..100u64, Just(45), Just(180)], prop::bool::weighted(0.9)), 0..200),
        ) {
            let time = if siblings { AMONG_SIBLINGS } else { AMONG_ALL };
            let (mut movers, mut model) = (Movers::<FREE>::new(SETS, time), Model::default());
            let mut now = Moment::from_nanos(start);
            for (number, pause, has_room) in moves {
                now = now + time * u32::try_from(pause).unwrap() / 180;
                let from = PortId::new(u16::try_from(pause).unwrap(), 0);
                let ruling = movers.rule(station(number), 5, from, now, has_room);
                prop_assert_eq!(ruling, model.rule(number, from, now, time, has_room));
                prop_assert_eq!(movers.home(station(number), 5, now), model.homes.get(&number).copied());
            }
        }
    }

    /// Stations that move once push out each other, and none that has moved more often.
    #[test]
    fn what_moves_most_is_remembered_longest() {
        let (mut movers, now) = (Movers::<FREE>::new(SETS, AMONG_ALL), Moment::from_secs(1000));
        for _ in 0..4 {
            assert_eq!(movers.rule(station(0), 5, HOME, now, true), Ruling::Free);
        }
        for number in 1..1000 {
            assert_eq!(movers.rule(station(number), 5, HOME, now, true), Ruling::Free);
        }
        assert_eq!(movers.rule(station(0), 5, HOME, now, true), Ruling::Refused { is_news: true });
        assert_eq!(movers.rule(station(0), 5, HOME, now + AMONG_ALL, true), Ruling::Free);
    }
}
