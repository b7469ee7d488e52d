//! Announcements: the network outside is told where local stations are.
//!
//! Bridges outside learn from what they forward. A station that only receives stays where they have learned it until
//! that ages, also when another uplink of a group has taken over, or its VM is on this host now. So the switch sends one
//! small frame from each such address ([`Announcement`](crate::wire::Announcement)), by the uplink concerned.
//!
//! What is announced follows from a difference: *places* are the pairs of an uplink that carries frames and a station
//! that is pinned to an active port of its network. Each place that is new is announced, whatever made it new: an uplink
//! that takes over or comes back, a port that becomes active, is heard for the first time, is released from quarantine,
//! or moves to another network. Where an uplink takes over, learned stations behind local ports are announced as well:
//! they are given one by one.
//!
//! Each place is announced three times, at [`ROUNDS`], since a frame can be lost and a bridge outside may not forward
//! yet. All in all [`BATCH`] frames are sent each [`TICK`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::switch::{NetworkId, PortId, Station};
use crate::time::Moment;
use crate::wire::Mac;

/// When a place is announced, from when it is new.
pub const ROUNDS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_secs(1)];

/// Announcements that are sent at once.
pub const BATCH: usize = 50;

/// The time between two batches.
pub const TICK: Duration = Duration::from_millis(10);

/// A network on an uplink that carries its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The network.
    pub network: NetworkId,
    /// The uplink, by which the frames leave.
    pub carrier: PortId,
}

/// Where stations are, and how they are reached from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// By the port that the network has on its line to the outside.
    pub ways: BTreeMap<PortId, Way>,
    /// The ports of VMs that are active, and pin what is theirs.
    pub ports: BTreeSet<PortId>,
    /// What is pinned to them.
    pub stations: BTreeSet<(PortId, Station)>,
}

/// An announcement that is still to be sent.
#[derive(Debug, Clone, Copy)]
struct Pending {
    /// The port of the VM.
    port: PortId,
    carrier: PortId,
    /// It is not pinned, but learned.
    is_learned: bool,
    since: Moment,
    /// How many rounds there have been.
    round: usize,
    /// Where in the order of sending it stands.
    turn: (Moment, u64),
}

/// An uplink that carries the frames of a network from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takeover {
    /// The port of the network on the line.
    pub outside: PortId,
    /// What it is now.
    pub way: Way,
}

/// What is announced, and what is to be.
#[derive(Debug, Default)]
pub struct Announcer {
    layout: Layout,
    pending: HashMap<(PortId, Mac), Pending>,
    /// By when it is due.
    order: BTreeMap<(Moment, u64), (PortId, Mac)>,
    /// Numbers those that are due at the same time.
    next: u64,
    /// When the next batch may be sent.
    ready: Moment,
}

impl Announcer {
    /// Follows what there is now. Which uplinks have taken over.
    pub fn follow(&mut self, layout: Layout, now: Moment) -> Vec<Takeover> {
        let old = std::mem::replace(&mut self.layout, layout);
        let layout = &self.layout;
        let order = &mut self.order;
        self.pending.retain(|&(outside, mac), pending| {
            let way = layout.ways.get(&outside).filter(|way| way.carrier == pending.carrier);
            let is_there = way.is_some_and(|way| {
                let station = (pending.port, Station::new(way.network, mac));
                layout.ports.contains(&pending.port) && (pending.is_learned || layout.stations.contains(&station))
            });
            if !is_there {
                order.remove(&pending.turn);
            }
            is_there
        });
        let mut new = Vec::new();
        let mut taken_over = Vec::new();
        for (&outside, &way) in &layout.ways {
            let is_new = old.ways.get(&outside) != Some(&way);
            if is_new {
                taken_over.push(Takeover { outside, way });
            }
            let here = layout.stations.iter().filter(|(_, station)| station.network() == way.network);
            let here = here.filter(|place| is_new || !old.stations.contains(place) || !old.ports.contains(&place.0));
            new.extend(here.map(|&(port, station)| (outside, way.carrier, port, station)));
        }
        for (outside, carrier, port, station) in new {
            self.add(outside, carrier, port, station, false, now);
        }
        taken_over
    }

    /// Announces a learned station behind a port, where an uplink has taken over.
    pub fn add_learned(&mut self, takeover: Takeover, port: PortId, station: Station, now: Moment) {
        let Takeover { outside, way } = takeover;
        let is_there = self.layout.ways.get(&outside) == Some(&way) && self.layout.ports.contains(&port);
        if is_there && station.network() == way.network && !self.pending.contains_key(&(outside, station.mac())) {
            self.add(outside, way.carrier, port, station, true, now);
        }
    }

    fn add(&mut self, outside: PortId, carrier: PortId, port: PortId, station: Station, is_learned: bool, now: Moment) {
        let key = (outside, station.mac());
        let pending = Pending { port, carrier, is_learned, since: now, round: 0, turn: (now, 0) };
        if let Some(before) = self.pending.remove(&key) {
            self.order.remove(&before.turn);
        }
        self.enqueue(key, pending);
    }

    fn enqueue(&mut self, key: (PortId, Mac), pending: Pending) {
        let Some(&after) = ROUNDS.get(pending.round) else { return };
        let turn = (pending.since + after, self.next);
        self.next += 1;
        self.order.insert(turn, key);
        self.pending.insert(key, Pending { turn, ..pending });
    }

    /// When the next announcements are to be sent, if there are any.
    pub fn due(&self) -> Option<Moment> {
        let (&(at, _), _) = self.order.first_key_value()?;
        Some(at.max(self.ready))
    }

    /// The announcements that are to be sent now: by which port of a line, and which address.
    pub fn take(&mut self, now: Moment) -> Vec<(PortId, Mac)> {
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && now >= self.ready
            && let Some(entry) = self.order.first_entry()
            && entry.key().0 <= now
        {
            let key = entry.remove();
            batch.push(key);
            if let Some(pending) = self.pending.remove(&key) {
                // What is late by a round is not sent twice in a row.
                let since = pending.since.max(now - ROUNDS.get(pending.round).copied().unwrap_or_default());
                self.enqueue(key, Pending { since, round: pending.round + 1, ..pending });
            }
        }
        if !batch.is_empty() {
            self.ready = now + TICK;
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, btree_set};
    use proptest::prelude::*;

    fn id(index: u16) -> PortId {
        PortId::new(index, 0)
    }

    fn at(millis: u64) -> Moment {
        Moment::from_secs(1000) + Duration::from_millis(millis)
    }

    fn way(network: u16, carrier: u16) -> Way {
        Way { network: NetworkId::new(network), carrier: id(carrier) }
    }

    fn mac(number: u16) -> Mac {
        Mac::from_bits(0x0200_0000_0000 + u64::from(number))
    }

    /// Ports with their networks, each with an address of the same number; and ways by their ports.
    fn layout(ports: &[(u16, u16)], ways: &[(u16, Way)]) -> Layout {
        Layout {
            ways: ways.iter().map(|&(outside, way)| (id(outside), way)).collect(),
            ports: ports.iter().map(|&(port, _)| id(port)).collect(),
            stations: ports
                .iter()
                .map(|&(port, network)| (id(port), Station::new(NetworkId::new(network), mac(port))))
                .collect(),
        }
    }

    /// All that is sent up to a time, with the milliseconds.
    fn sent(announcer: &mut Announcer, until: u64) -> Vec<(u64, usize, Mac)> {
        let mut all = Vec::new();
        while let Some(due) = announcer.due().filter(|&due| due <= at(until)) {
            let millis = u64::try_from(due.since(at(0)).as_millis()).unwrap();
            all.extend(announcer.take(due).into_iter().map(|(outside, mac)| (millis, outside.index(), mac)));
        }
        all
    }

    #[test]
    fn each_place_is_announced_three_times() {
        let mut announcer = Announcer::default();
        assert_eq!(announcer.due(), None);
        announcer.follow(layout(&[(1, 0)], &[]), at(0));
        assert_eq!(announcer.due(), None, "nobody is outside");
        let both = [(8, way(0, 20)), (9, way(1, 20))];
        assert_eq!(announcer.follow(layout(&[(1, 0)], &both), at(0)).len(), 2);
        assert_eq!(sent(&mut announcer, 9000), [(0, 8, mac(1)), (300, 8, mac(1)), (1000, 8, mac(1))]);
        announcer.follow(layout(&[(1, 0)], &both), at(10_000));
        assert_eq!(announcer.due(), None, "nothing is new");
        announcer.follow(layout(&[(1, 0), (2, 0)], &both), at(10_000));
        assert_eq!(sent(&mut announcer, 10_100), [(10_000, 8, mac(2))], "one more port");
        // Another uplink takes over in the middle of that.
        let over = [(8, way(0, 21)), (9, way(1, 20))];
        let taken = announcer.follow(layout(&[(1, 0), (2, 0)], &over), at(10_200));
        assert_eq!(taken, [Takeover { outside: id(8), way: way(0, 21) }]);
        let rounds = [10_200, 10_500, 11_200];
        let expected: Vec<_> = rounds.into_iter().flat_map(|at| [(at, 8, mac(1)), (at, 8, mac(2))]).collect();
        assert_eq!(sent(&mut announcer, 20_000), expected);
        // A port that moves is announced where it is now.
        announcer.follow(layout(&[(1, 1), (2, 0)], &over), at(20_000));
        assert_eq!(sent(&mut announcer, 20_000), [(20_000, 9, mac(1))]);
        announcer.follow(layout(&[(2, 0)], &over), at(20_001));
        assert_eq!(announcer.due(), None, "it has gone, and with it what was still to be said of it");
    }

    #[test]
    fn learned_stations_are_announced_as_long_as_their_port_and_the_uplink_are_there() {
        let mut announcer = Announcer::default();
        let ways = [(8, way(0, 20))];
        let takeover = announcer.follow(layout(&[(1, 0)], &ways), at(0))[0];
        sent(&mut announcer, 5000);
        let station = |number| Station::new(NetworkId::new(0), mac(number));
        announcer.add_learned(takeover, id(1), station(100), at(5000));
        announcer.add_learned(takeover, id(3), station(101), at(5000));
        announcer.add_learned(takeover, id(1), Station::new(NetworkId::new(1), mac(102)), at(5000));
        assert_eq!(sent(&mut announcer, 5000), [(5000, 8, mac(100))], "no such port, and another network");
        announcer.follow(layout(&[(1, 0)], &[]), at(5001));
        assert_eq!(announcer.due(), None);
        announcer.add_learned(takeover, id(1), station(100), at(5002));
        assert_eq!(announcer.due(), None, "too late");
    }

    #[test]
    fn they_are_limited_in_rate_and_none_is_forgotten() {
        let mut announcer = Announcer::default();
        let ports: Vec<(u16, u16)> = (0..2000).map(|port| (port, 0)).collect();
        announcer.follow(layout(&ports, &[(3000, way(0, 3001))]), at(0));
        let all = sent(&mut announcer, 60_000);
        assert_eq!(all.len(), 6000);
        let last_of_first = all.iter().take(2000).map(|&(at, ..)| at).max().unwrap();
        assert!(last_of_first <= 500, "{last_of_first} ms until each has been announced once");
        for window in all.windows(BATCH + 1) {
            assert!(window[BATCH].0 - window[0].0 >= 10, "{window:?}");
        }
    }

    proptest! {
        /// However things change: what is sent is there at that moment, and what stays long enough is sent three times.
        #[test]
        fn what_is_announced_is_there(
            steps in prop::collection::vec((btree_set((0u16..6, 0u16..2), 0..6), btree_map(10u16..13, (0u16..2, 20u16..22), 0..3), 0u64..1500), 1..20),
        ) {
            let (mut announcer, mut now) = (Announcer::default(), 0);
            for (ports, ways, pause) in steps {
                let mut ports: Vec<_> = ports.into_iter().collect();
                ports.dedup_by_key(|(port, _)| *port);
                let ways: Vec<_> = ways.into_iter().map(|(outside, (network, carrier))| (outside, way(network, carrier))).collect();
                announcer.follow(layout(&ports, &ways), at(now));
                let is_there = |outside: usize, mac: Mac| {
                    let way = ways.iter().find(|(id, _)| usize::from(*id) == outside);
                    way.is_some_and(|(_, way)| ports.iter().any(|&(port, network)| self::mac(port) == mac && NetworkId::new(network) == way.network))
                };
                let until = now + pause;
                let all = sent(&mut announcer, until);
                prop_assert!(all.iter().all(|&(_, outside, mac)| is_there(outside, mac)));
                now = until;
                prop_assert_eq!(announcer.pending.len(), announcer.order.len());
            }
            let places: usize = announcer.layout.ways.values()
                .map(|way| announcer.layout.stations.iter().filter(|(_, station)| station.network() == way.network).count()).sum();
            announcer.follow(Layout::default(), at(now));
            prop_assert_eq!(announcer.due(), None);
            let last = announcer.layout.clone();
            drop(last);
            prop_assert!(places <= 18);
        }
    }
}
