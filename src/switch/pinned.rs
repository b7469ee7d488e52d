//! Pinned stations: addresses that belong to a port by configuration, regardless of traffic. Temporary pins are
//! called dampened.

use std::collections::{BTreeMap, HashMap};

use super::{HashKey, PortConfig, PortId, Station};
use crate::wire::Mac;

/// Pinned stations: open addressing with linear probing. A bloom filter of one bit per few hash bits precedes it,
/// so that most misses cost one predictable test: about one in sixty unpinned stations passes the filter.
#[derive(Debug)]
pub(super) struct PinnedStations {
    /// Empty slots hold [`Station::NONE`].
    table: Box<[(Station, Pin)]>,
    bloom_filter: Box<[u64]>,
    hash_key: HashKey,
}

/// Port to which a station is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pin {
    pub(super) port: PortId,
    /// Whether the station is dampened there: all other ports drop frames from it.
    pub(super) is_dampened: bool,
}

impl PinnedStations {
    /// Compiles the pins of these ports. A port that is not `is_up` pins nothing. Also returns, by port, the
    /// addresses not pinned because the port is inactive or the pin was released.
    pub(super) fn new(
        hash_key: HashKey,
        ports: &[PortConfig],
        is_up: impl Fn(&PortConfig) -> bool,
    ) -> (PinnedStations, BTreeMap<PortId, Vec<Mac>>) {
        let mut claims: Vec<(Station, &PortConfig)> = Vec::with_capacity(2 * ports.len());
        for port in ports.iter().filter(|port| !port.is_uplink()) {
            let macs = std::iter::once(port.mac).chain(port.security.macs());
            claims.extend(macs.map(|mac| (Station::new(port.network, mac), port)));
        }
        claims.sort_unstable_by_key(|&(station, _)| station);
        let (mut pinned, mut unpinned) = (Vec::with_capacity(ports.len()), BTreeMap::<PortId, Vec<Mac>>::new());
        for claims in claims.chunk_by(|a, b| a.0 == b.0) {
            let (station, port) = claims[0];
            if claims.iter().any(|(_, other)| other.id != port.id) || !is_up(port) {
                continue;
            }
            if port.pins && !port.released_pins.contains(&station.mac()) {
                pinned.push((station, Pin { port: port.id, is_dampened: false }));
            } else {
                unpinned.entry(port.id).or_default().push(station.mac());
            }
        }
        (PinnedStations::build(hash_key, pinned), unpinned)
    }

    /// Adds dampened stations. A pinned or dampened station keeps its port; it becomes dampened if that is the
    /// given port.
    pub(super) fn with_dampened(&self, dampened: impl Iterator<Item = (Station, PortId)>) -> PinnedStations {
        let mut pinned: HashMap<Station, Pin> = self.iter().collect();
        for (station, port) in dampened {
            let dampened = Pin { port, is_dampened: true };
            pinned.entry(station).and_modify(|pin| pin.is_dampened |= pin.port == port).or_insert(dampened);
        }
        PinnedStations::build(self.hash_key, pinned.into_iter().collect())
    }

    fn build(hash_key: HashKey, pinned: Vec<(Station, Pin)>) -> PinnedStations {
        let absent = Pin { port: PortId::NONE, is_dampened: false };
        // At most an eighth of the slots is occupied, and one bit in 64 is set.
        let mut table = vec![(Station::NONE, absent); (pinned.len() * 8).next_power_of_two()];
        let mut bloom_filter = vec![0; pinned.len().next_power_of_two()];
        for (station, pin) in pinned {
            let hash = hash_key.hash(station);
            let mut at = place(hash, table.len());
            while table[at].0 != Station::NONE {
                at = place(at as u64 + 1, table.len());
            }
            table[at] = (station, pin);
            let at = place(hash >> 6, bloom_filter.len());
            bloom_filter[at] |= 1u64 << (hash % 64);
        }
        PinnedStations { table: table.into(), bloom_filter: bloom_filter.into(), hash_key }
    }

    /// Bloom filter: whether a station with this hash may be pinned.
    #[inline(always)]
    pub(super) fn may_hold(&self, hash: u64) -> bool {
        self.bloom_filter[place(hash >> 6, self.bloom_filter.len())] >> (hash % 64) & 1 != 0
    }

    /// Looks up the pin of a station.
    #[inline(always)]
    pub(super) fn find(&self, station: Station, hash: u64) -> Option<Pin> {
        let mut at = place(hash, self.table.len());
        loop {
            let (here, pin) = self.table[at];
            if here == station {
                return Some(pin);
            }
            if here == Station::NONE {
                return None;
            }
            at = place(at as u64 + 1, self.table.len());
        }
    }

    /// Pins that `others` does not have identically.
    pub(super) fn except<'a>(&'a self, others: &'a PinnedStations) -> impl Iterator<Item = (Station, Pin)> + 'a {
        self.iter().filter(|&(station, pin)| others.find(station, others.hash_key.hash(station)) != Some(pin))
    }

    /// All pins.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Station, Pin)> {
        self.table.iter().filter(|(station, _)| *station != Station::NONE).copied()
    }
}

/// Slot of a hash in a table whose size is a power of two.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // masked to the size of a table
pub(super) const fn place(hash: u64, size: usize) -> usize {
    hash as usize & (size - 1)
}
