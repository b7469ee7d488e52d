//! Announcements: tell the external network where local stations are.
//!
//! Bridges outside learn from the frames that they forward. A station that only receives frames stays where it was learned
//! until the entry ages, also after another uplink of a group has taken over, or after its VM was migrated to this host.
//! The switch therefore sends a small frame from the address of each such station
//! ([`Announcement`](crate::wire::Announcement)) by the uplink concerned.
//!
//! A *place* is the pair of an active uplink VLAN and a station that is pinned to an active port of its network. Each new
//! place is announced, whatever made it new: an uplink that takes over or comes back, a port that becomes active, sends its
//! first frame, is released from quarantine, or moves to another network. When an uplink takes over, learned stations behind
//! local ports are announced as well.
//!
//! Each place is announced three times, at [`ROUNDS`]: a frame can be lost, and a bridge outside may not forward yet.
//! [`BATCH`] announcements at most are sent every [`TICK`]. A place that disappears and returns, as with the link of a guest
//! that flaps, is announced once per [`REPEAT`] at most.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::switch::{NetworkId, PortId, Station};
use crate::time::MonoTime;
use crate::wire::Mac;

/// Times at which a place is announced, after it is new.
pub const ROUNDS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_secs(1)];

/// Announcements that are sent at once, at most.
pub const BATCH: usize = 50;

/// Time between two batches.
pub const TICK: Duration = Duration::from_millis(10);

/// Time after which the first round of a place may be repeated.
pub const REPEAT: Duration = Duration::from_secs(1);

/// The uplink that carries the frames of an uplink VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveUplink {
    /// The network of the VLAN.
    pub network: NetworkId,
    /// The uplink.
    pub uplink: PortId,
}

/// Active uplinks, active ports, and the stations that are pinned to these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnnouncementLayout {
    /// By uplink VLAN: the port of the network on the uplink or group.
    pub uplinks: BTreeMap<PortId, ActiveUplink>,
    /// The ports of VMs that are active, and pin their addresses.
    pub ports: BTreeSet<PortId>,
    /// The stations that are pinned to them.
    pub stations: BTreeSet<(PortId, Station)>,
}

/// An uplink that has taken over the frames of an uplink VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failover {
    /// The uplink VLAN.
    pub vlan: PortId,
    /// The uplink that is active now.
    pub active: ActiveUplink,
}

/// A place by uplink VLAN and address.
type AnnouncementKey = (PortId, Mac);

/// A place that has rounds left.
#[derive(Debug, Clone, Copy)]
struct PendingAnnouncement {
    /// The port of the VM.
    port: PortId,
    uplink: PortId,
    /// The station is learned, not pinned.
    is_learned: bool,
    /// Start of the first round.
    since: MonoTime,
    /// Rounds that were sent.
    round: usize,
    /// Position in the send queue.
    position: (MonoTime, u64),
}

/// Schedules announcements.
#[derive(Debug, Default)]
pub struct Announcer {
    layout: AnnouncementLayout,
    pending: HashMap<AnnouncementKey, PendingAnnouncement>,
    /// The send queue, by time and then by number.
    queue: BTreeMap<(MonoTime, u64), AnnouncementKey>,
    /// Numbers the entries of the queue.
    next: u64,
    /// When the next batch may be sent.
    ready: MonoTime,
    /// When the first round of a place was last sent, within [`REPEAT`]; by uplink as well.
    recent: HashMap<(AnnouncementKey, PortId), MonoTime>,
}

impl Announcer {
    /// Replaces the layout: schedules new places and cancels those that are gone. Returns the takeovers.
    pub fn follow(&mut self, topology: AnnouncementLayout, now: MonoTime) -> Vec<Failover> {
        let old = std::mem::replace(&mut self.layout, topology);
        let (topology, queue) = (&self.layout, &mut self.queue);
        self.recent.retain(|_, at| now.since(*at) < REPEAT);
        self.pending.retain(|&(vlan, mac), pending| {
            let active = topology.uplinks.get(&vlan).filter(|active| active.uplink == pending.uplink);
            let is_there = active.is_some_and(|active| {
                let station = (pending.port, Station::new(active.network, mac));
                topology.ports.contains(&pending.port) && (pending.is_learned || topology.stations.contains(&station))
            });
            if !is_there {
                queue.remove(&pending.position);
            }
            is_there
        });
        let (mut new, mut failovers) = (Vec::new(), Vec::new());
        for (&vlan, &active) in &topology.uplinks {
            let failover = Failover { vlan, active };
            let is_new = old.uplinks.get(&vlan) != Some(&active);
            if is_new {
                failovers.push(failover);
            }
            let here = topology.stations.iter().filter(|(_, station)| station.network() == active.network);
            let here = here.filter(|place| is_new || !old.stations.contains(place) || !old.ports.contains(&place.0));
            new.extend(here.map(|&(port, station)| (failover, port, station)));
        }
        for (failover, port, station) in new {
            self.schedule(failover, port, station, false, now);
        }
        failovers
    }

    /// Schedules a learned station behind a port after a takeover.
    pub fn add_learned(&mut self, failover: Failover, port: PortId, station: Station, now: MonoTime) {
        let Failover { vlan, active } = failover;
        let is_there = self.layout.uplinks.get(&vlan) == Some(&active) && self.layout.ports.contains(&port);
        if is_there && station.network() == active.network && !self.pending.contains_key(&(vlan, station.mac())) {
            self.schedule(failover, port, station, true, now);
        }
    }

    fn schedule(&mut self, failover: Failover, port: PortId, station: Station, is_learned: bool, now: MonoTime) {
        let Failover { vlan, active: ActiveUplink { uplink, .. } } = failover;
        let key = (vlan, station.mac());
        let repeated = self.recent.get(&(key, uplink)).map(|&at| at + REPEAT);
        let since = repeated.map_or(now, |at| at.max(now));
        if let Some(before) = self.pending.remove(&key) {
            self.queue.remove(&before.position);
        }
        self.enqueue(key, PendingAnnouncement { port, uplink, is_learned, since, round: 0, position: (since, 0) });
    }

    fn enqueue(&mut self, key: AnnouncementKey, pending: PendingAnnouncement) {
        let Some(&after) = ROUNDS.get(pending.round) else { return };
        let position = (pending.since + after, self.next);
        self.next += 1;
        self.queue.insert(position, key);
        self.pending.insert(key, PendingAnnouncement { position, ..pending });
    }

    /// When the next batch is due, if the queue is not empty.
    pub fn due(&self) -> Option<MonoTime> {
        let (&(at, _), _) = self.queue.first_key_value()?;
        Some(at.max(self.ready))
    }

    /// Takes the batch that is due now: uplink VLANs and the addresses to announce.
    pub fn take(&mut self, now: MonoTime) -> Vec<AnnouncementKey> {
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && now >= self.ready
            && let Some(entry) = self.queue.first_entry()
            && entry.key().0 <= now
        {
            let key = entry.remove();
            batch.push(key);
            let Some(pending) = self.pending.remove(&key) else { continue };
            if pending.round == 0 {
                self.recent.insert((key, pending.uplink), now);
            }
            // A round that is late delays the next one.
            let since = pending.since.max(now - ROUNDS.get(pending.round).copied().unwrap_or_default());
            self.enqueue(key, PendingAnnouncement { since, round: pending.round + 1, ..pending });
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
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    fn id(index: u16) -> PortId {
        PortId::new(index, 0)
    }

    fn at(millis: u64) -> MonoTime {
        MonoTime::from_secs(1000) + Duration::from_millis(millis)
    }

    fn active(network: u16, uplink: u16) -> ActiveUplink {
        ActiveUplink { network: NetworkId::new(network), uplink: id(uplink) }
    }

    fn mac(number: u16) -> Mac {
        Mac::from_bits(0x0200_0000_0000 + u64::from(number))
    }

    /// Ports with their networks, each with an address of the same number; and active uplinks by VLAN.
    fn layout(ports: &[(u16, u16)], uplinks: &[(u16, ActiveUplink)]) -> AnnouncementLayout {
        AnnouncementLayout {
            uplinks: uplinks.iter().map(|&(vlan, active)| (id(vlan), active)).collect(),
            ports: ports.iter().map(|&(port, _)| id(port)).collect(),
            stations: ports
                .iter()
                .map(|&(port, network)| (id(port), Station::new(NetworkId::new(network), mac(port))))
                .collect(),
        }
    }

    /// Everything that is sent until a time, with the time in milliseconds.
    fn sent(announcer: &mut Announcer, until: u64) -> Vec<(u64, usize, Mac)> {
        let mut all = Vec::new();
        while let Some(due) = announcer.due().filter(|&due| due <= at(until)) {
            let millis = u64::try_from(due.since(at(0)).as_millis()).unwrap();
            all.extend(announcer.take(due).into_iter().map(|(vlan, mac)| (millis, vlan.index(), mac)));
        }
        all
    }

    #[test]
    fn each_place_is_announced_three_times() {
        let mut announcer = Announcer::default();
        assert_eq!(announcer.due(), None);
        announcer.follow(layout(&[(1, 0)], &[]), at(0));
        assert_eq!(announcer.due(), None, "there is no uplink");
        let both = [(8, active(0, 20)), (9, active(1, 20))];
        assert_eq!(announcer.follow(layout(&[(1, 0)], &both), at(0)).len(), 2);
        assert_eq!(sent(&mut announcer, 9000), [(0, 8, mac(1)), (300, 8, mac(1)), (1000, 8, mac(1))]);
        announcer.follow(layout(&[(1, 0)], &both), at(10_000));
        assert_eq!(announcer.due(), None, "nothing is new");
        announcer.follow(layout(&[(1, 0), (2, 0)], &both), at(10_000));
        assert_eq!(sent(&mut announcer, 10_100), [(10_000, 8, mac(2))], "one more port");
        // Another uplink takes over between two rounds.
        let over = [(8, active(0, 21)), (9, active(1, 20))];
        let taken = announcer.follow(layout(&[(1, 0), (2, 0)], &over), at(10_200));
        assert_eq!(taken, [Failover { vlan: id(8), active: active(0, 21) }]);
        let rounds = [10_200, 10_500, 11_200];
        let expected: Vec<_> = rounds.into_iter().flat_map(|at| [(at, 8, mac(1)), (at, 8, mac(2))]).collect();
        assert_eq!(sent(&mut announcer, 20_000), expected);
        // A port that moves is announced on its new network.
        announcer.follow(layout(&[(1, 1), (2, 0)], &over), at(20_000));
        assert_eq!(sent(&mut announcer, 20_000), [(20_000, 9, mac(1))]);
        announcer.follow(layout(&[(2, 0)], &over), at(20_001));
        assert_eq!(announcer.due(), None, "the port is gone, and its rounds are cancelled");
    }

    #[test]
    fn learned_stations_are_announced_as_long_as_their_port_and_the_uplink_are_there() {
        let mut announcer = Announcer::default();
        let uplinks = [(8, active(0, 20))];
        let failover = announcer.follow(layout(&[(1, 0)], &uplinks), at(0))[0];
        sent(&mut announcer, 5000);
        let station = |number| Station::new(NetworkId::new(0), mac(number));
        announcer.add_learned(failover, id(1), station(100), at(5000));
        announcer.add_learned(failover, id(3), station(101), at(5000));
        announcer.add_learned(failover, id(1), Station::new(NetworkId::new(1), mac(102)), at(5000));
        assert_eq!(sent(&mut announcer, 5000), [(5000, 8, mac(100))], "no such port, and another network");
        announcer.follow(layout(&[(1, 0)], &[]), at(5001));
        assert_eq!(announcer.due(), None);
        announcer.add_learned(failover, id(1), station(100), at(5002));
        assert_eq!(announcer.due(), None, "too late");
    }

    #[test]
    fn the_rate_is_limited_and_every_station_announced() {
        let mut announcer = Announcer::default();
        let ports: Vec<(u16, u16)> = (0..2000).map(|port| (port, 0)).collect();
        announcer.follow(layout(&ports, &[(3000, active(0, 3001))]), at(0));
        let all = sent(&mut announcer, 60_000);
        assert_eq!(all.len(), 6000);
        let last_of_first = all.iter().take(2000).map(|&(at, ..)| at).max().unwrap();
        assert!(last_of_first <= 500, "{last_of_first} ms until each has been announced once");
        for window in all.windows(BATCH + 1) {
            assert!(window[BATCH].0 - window[0].0 >= 10, "{window:?}");
        }
    }

    /// The link of a guest that flaps causes one announcement per second.
    #[test]
    fn a_place_that_flaps_is_announced_once_per_second() {
        let mut announcer = Announcer::default();
        let uplinks = [(8, active(0, 20))];
        let mut all = Vec::new();
        for time in 0..300 {
            announcer.follow(layout(&[(1, 0)], &uplinks), at(time * 10));
            all.extend(sent(&mut announcer, time * 10));
            announcer.follow(layout(&[], &uplinks), at(time * 10 + 5));
        }
        assert_eq!(all, [(0, 8, mac(1)), (1000, 8, mac(1)), (2000, 8, mac(1))]);
        // Another uplink is another place.
        announcer.follow(layout(&[(1, 0)], &[(8, active(0, 21))]), at(3001));
        assert_eq!(sent(&mut announcer, 3001), [(3001, 8, mac(1))]);
    }

    proptest! {
        /// For any sequence of changes: each announcement is of a place that exists at that time, and pending places are
        /// exactly those in the queue.
        #[test]
        fn only_existing_places_are_announced(
            steps in prop::collection::vec(
                (btree_map(0u16..6, 0u16..2, 0..6), btree_map(10u16..13, (0u16..2, 20u16..22), 0..3), 0u64..1500),
                1..20,
            ),
        ) {
            let (mut announcer, mut now) = (Announcer::default(), 0);
            for (ports, uplinks, pause) in steps {
                let ports: Vec<_> = ports.into_iter().collect();
                let uplinks: Vec<_> =
                    uplinks.into_iter().map(|(vlan, (network, uplink))| (vlan, active(network, uplink))).collect();
                announcer.follow(layout(&ports, &uplinks), at(now));
                let is_there = |vlan: usize, mac: Mac| {
                    let active = uplinks.iter().find(|(id, _)| usize::from(*id) == vlan);
                    let is_on = |network, of: NetworkId| NetworkId::new(network) == of;
                    let of = |of| ports.iter().any(|&(port, network)| self::mac(port) == mac && is_on(network, of));
                    active.is_some_and(|(_, active)| of(active.network))
                };
                now += pause;
                let all = sent(&mut announcer, now);
                prop_assert!(all.iter().all(|&(_, vlan, mac)| is_there(vlan, mac)));
                prop_assert_eq!(announcer.pending.len(), announcer.queue.len());
            }
            announcer.follow(AnnouncementLayout::default(), at(now));
            prop_assert_eq!(announcer.due(), None);
        }
    }
}
