//! Dampening: a flapping station is pinned to one port for a while.
//!
//! A worker refuses the move that exceeds the limit and reports it. Control then chooses the port: the one whose VM is
//! not suspect, that is, neither storms nor loops; if both are, the origin; if neither is, the last port.

use std::collections::HashMap;
use std::time::Duration;

use crate::switch::{PortId, Station};
use crate::time::MonoTime;

/// Maximum dampened stations. Workers refuse the moves of further ones anyway.
pub const MAX_DAMPENED: usize = 1024;

/// A dampened station.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DampenedMac {
    /// Port to which it is pinned.
    pub at: PortId,
    /// Port to which it must not move.
    pub from: PortId,
    /// Start.
    pub since: MonoTime,
    /// End.
    pub until: MonoTime,
}

/// All dampened stations.
#[derive(Debug, Clone, Default)]
pub struct Dampening {
    all: HashMap<Station, DampenedMac>,
}

impl Dampening {
    /// Handles a flap of a station with origin `home`, from `was` to `to`. Returns whether it is dampened and was not
    /// before.
    pub fn dampen(
        &mut self,
        station: Station,
        [was, to, home]: [PortId; 3],
        suspected: impl Fn(PortId) -> bool,
        time: Duration,
        now: MonoTime,
    ) -> Option<DampenedMac> {
        if was == to || self.all.contains_key(&station) || self.all.len() >= MAX_DAMPENED {
            return None;
        }
        let (at, from) = match (suspected(was), suspected(to)) {
            (true, false) => (to, was),
            // A VM that loops frames of others makes them flap between its own ports.
            (true, true) if !suspected(home) => (home, was),
            _ => (was, to),
        };
        let dampened = DampenedMac { at, from, since: now, until: now + time };
        self.all.insert(station, dampened);
        Some(dampened)
    }

    /// Releases expired ones, and those at removed ports.
    pub fn expire(&mut self, is_there: impl Fn(PortId) -> bool, now: MonoTime) {
        self.release_matching(|_, dampened| now >= dampened.until || !is_there(dampened.at));
    }

    /// Releases those at these ports, and those that must not move to them. Returns their number.
    pub fn release(&mut self, is_meant: impl Fn(PortId) -> bool) -> usize {
        self.release_matching(|_, dampened| is_meant(dampened.at) || is_meant(dampened.from))
    }

    /// Releases those at these ports.
    pub fn release_at(&mut self, is_meant: impl Fn(PortId) -> bool) {
        self.release_matching(|_, dampened| is_meant(dampened.at));
    }

    fn release_matching(&mut self, goes: impl Fn(Station, &DampenedMac) -> bool) -> usize {
        let before = self.all.len();
        self.all.retain(|&station, dampened| !goes(station, dampened));
        before - self.all.len()
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = (Station, DampenedMac)> {
        self.all.iter().map(|(&station, &dampened)| (station, dampened))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::NetworkId;
    use crate::wire::Mac;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const TIME: Duration = Duration::from_secs(60);

    fn at(secs: u64) -> MonoTime {
        MonoTime::from_secs(1000) + Duration::from_secs(secs)
    }

    fn station(mac: u64) -> Station {
        Station::new(NetworkId::new(1), Mac::from_bits(mac))
    }

    fn port(index: u16) -> PortId {
        PortId::new(index, 0)
    }

    #[test]
    fn a_dampened_station_stays_at_the_unsuspected_port() {
        let of_three = [
            (vec![], 1, 2),
            (vec![2], 1, 2),
            (vec![1], 2, 1),
            (vec![1, 2], 3, 1),
            (vec![1, 2, 3], 1, 2),
            (vec![3], 1, 2),
        ];
        for (suspected, expected, not) in of_three {
            let suspected: Vec<PortId> = suspected.into_iter().map(port).collect();
            let mut dampening = Dampening::default();
            let ports = [1, 2, 3].map(port);
            let dampened = dampening.dampen(station(7), ports, |port| suspected.contains(&port), TIME, at(0));
            assert_eq!(dampened.unwrap().at, port(expected), "{suspected:?}");
            assert_eq!(dampened.unwrap().from, port(not));
        }
    }

    #[test]
    fn the_number_of_dampened_stations_is_bounded() {
        let mut dampening = Dampening::default();
        for mac in 0..2 * MAX_DAMPENED as u64 {
            dampening.dampen(station(mac), [1, 2, 1].map(port), |_| false, TIME, at(0));
        }
        assert_eq!(dampening.len(), MAX_DAMPENED);
        dampening.expire(|_| true, at(60));
        assert!(dampening.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Dampen(u64, u16, u16, u64),
        Look(u64, u16),
        Release(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..6, 0u16..4, 0u16..4, 30u64..120).prop_map(|(mac, a, b, time)| Step::Dampen(mac, a, b, time)),
            (0u64..70, 0u16..4).prop_map(|(pause, gone)| Step::Look(pause, gone)),
            (0u16..4).prop_map(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn dampening_agrees_with_a_list(steps in prop::collection::vec(step(), 0..60)) {
            let (mut dampening, mut now) = (Dampening::default(), 0);
            let mut model: BTreeMap<u64, (u16, u16, u64)> = BTreeMap::new();
            for step in steps {
                let before = model.clone();
                match step {
                    Step::Dampen(mac, was, to, time) => {
                        let time_ = Duration::from_secs(time);
                        let dampened = dampening.dampen(station(mac), [was, to, was].map(port), |_| false, time_, at(now));
                        let new = was != to && !model.contains_key(&mac);
                        prop_assert_eq!(dampened.is_some(), new);
                        if new {
                            model.insert(mac, (was, to, now + time));
                        }
                    }
                    Step::Look(pause, gone) => {
                        now += pause;
                        dampening.expire(|at| at != port(gone), at(now));
                        model.retain(|_, (at, _, until)| now < *until && *at != gone);
                    }
                    Step::Release(of) => {
                        let released = dampening.release(|at| at == port(of));
                        model.retain(|_, (at, from, _)| *at != of && *from != of);
                        prop_assert_eq!(released, before.len() - model.len());
                    }
                }
                let all: BTreeMap<u64, (u16, u16, u64)> = dampening
                    .iter()
                    .map(|(station, dampened)| {
                        let index = |port: PortId| u16::try_from(port.index()).unwrap();
                        (station.mac().bits(), (index(dampened.at), index(dampened.from), dampened.until.since(at(0)).as_secs()))
                    })
                    .collect();
                prop_assert_eq!(&all, &model);
            }
        }
    }
}
