//! Times of the last FDB updates of stations between workers, in nanoseconds.
//!
//! The FDB keeps whole seconds, too coarse to order two updates that cross between two workers. Only recent updates
//! matter, so this is a small cache: for a station evicted from it, the FDB's second decides.

use super::Station;
use super::pinned::place;
use crate::time::MonoTime;

/// Sets of the cache; all sets together hold as many stations as can be pending for one worker.
const SETS: usize = 1024;
const WAYS: usize = 4;

/// The cache.
#[derive(Debug)]
pub(super) struct UpdateTimes(Box<[(Station, MonoTime)]>);

impl UpdateTimes {
    pub(super) fn new() -> UpdateTimes {
        UpdateTimes(vec![(Station::NONE, MonoTime::default()); SETS * WAYS].into())
    }

    /// Time of a station's last update; the beginning of time if unknown.
    pub(super) fn get(&self, station: Station, hash: u64) -> MonoTime {
        let set = &self.0[place(hash, SETS) * WAYS..][..WAYS];
        set.iter().find(|(known, _)| *known == station).map_or(MonoTime::default(), |&(_, at)| at)
    }

    /// Records an update of a station at `at`. Evicts the oldest of the set.
    pub(super) fn put(&mut self, station: Station, hash: u64, at: MonoTime) {
        let set = &mut self.0[place(hash, SETS) * WAYS..][..WAYS];
        if let Some(known) = set.iter_mut().find(|(known, _)| *known == station) {
            known.1 = known.1.max(at);
        } else if let Some(oldest) = set.iter_mut().min_by_key(|(_, at)| *at) {
            *oldest = (station, at);
        }
    }

    /// Time for an update that this worker sends at `now`: later than all known updates of the station, because
    /// `now` may lag behind another worker's clock.
    pub(super) fn advance(&mut self, station: Station, hash: u64, now: MonoTime) -> MonoTime {
        let at = now.max(MonoTime::from_nanos(self.get(station, hash).nanos() + 1));
        self.put(station, hash, at);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::NetworkId;
    use crate::wire::Mac;

    fn station(number: u64) -> Station {
        Station::new(NetworkId::new(0), Mac::from_bits(number))
    }

    #[test]
    fn the_oldest_entry_is_evicted() {
        let (mut times, at) = (UpdateTimes::new(), MonoTime::from_secs);
        for number in 1..=4 {
            times.put(station(number), 7, at(number));
        }
        times.put(station(1), 7, at(9));
        times.put(station(5), 7, at(5));
        let known: Vec<u64> = (1..=5).filter(|&number| times.get(station(number), 7) > at(0)).collect();
        assert_eq!(known, [1, 3, 4, 5]);
        assert_eq!(times.get(station(1), 7), at(9));
        assert_eq!(times.get(station(1), 8), at(0), "another set");
    }

    #[test]
    fn an_announcement_is_newer_than_known_entries() {
        let mut times = UpdateTimes::new();
        let now = MonoTime::from_secs(1);
        assert_eq!(times.advance(station(1), 7, now), now);
        assert_eq!(times.advance(station(1), 7, now), MonoTime::from_nanos(now.nanos() + 1));
        times.put(station(1), 7, now);
        assert_eq!(times.get(station(1), 7), MonoTime::from_nanos(now.nanos() + 1), "times never decrease");
    }
}
