//! Internal ids of ports, networks and stations: small values, cheap to compare and hash.

use std::fmt;

use crate::wire::{AnnouncementKey, Mac};

/// Maximum number of ports.
pub const MAX_PORTS: usize = 4096;

/// Maximum number of networks.
pub const MAX_NETWORKS: usize = 4096;

/// Port id: index in the port tables, and generation of that index. A station learned at a closed port has a
/// generation that no longer exists, and becomes invalid at once without a scan.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PortId(u32); // one word: it is compared for every frame

impl PortId {
    /// No port.
    pub(crate) const NONE: PortId = PortId(u32::MAX);

    /// Port of this generation at `index`, which is less than [`MAX_PORTS`].
    pub const fn new(index: u16, generation: u16) -> PortId {
        assert!((index as usize) < MAX_PORTS);
        PortId((generation as u32) << 16 | index as u32)
    }

    /// Index in port tables.
    #[inline(always)]
    pub const fn index(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    /// The index as `u16`.
    #[allow(clippy::cast_possible_truncation)] // the lower half
    pub(super) const fn place(self) -> u16 {
        self.0 as u16
    }

    /// The id as a number, unique while the switch runs.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Generation of the index.
    #[allow(clippy::cast_possible_truncation)] // the upper half
    pub const fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

impl fmt::Debug for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} ({})", self.index(), self.generation())
    }
}

/// A network: one broadcast domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NetworkId(u16);

impl NetworkId {
    /// Network at `index`, which is less than [`MAX_NETWORKS`].
    pub const fn new(index: u16) -> NetworkId {
        assert!((index as usize) < MAX_NETWORKS);
        NetworkId(index)
    }

    /// Index in network tables.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Station: a MAC address on a network, in one word. The same address on two networks is two stations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Station(u64);

impl Station {
    /// No station: the network does not exist.
    pub(super) const NONE: Station = Station(u64::MAX);

    /// The station with this address on this network.
    #[inline(always)]
    pub const fn new(network: NetworkId, mac: Mac) -> Station {
        Station((network.0 as u64) << 48 | mac.bits())
    }

    /// Its network.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // the upper 16 bits
    pub const fn network(self) -> NetworkId {
        NetworkId((self.0 >> 48) as u16)
    }

    /// Its address.
    pub const fn mac(self) -> Mac {
        Mac::from_bits(self.0)
    }
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network().0, self.mac())
    }
}

/// Hash key of stations, random at each start, so that a guest cannot choose addresses that collide.
#[derive(Clone, Copy)]
pub struct HashKey {
    mask: u64,
    factor: u64,
    announcements: AnnouncementKey,
}

impl HashKey {
    /// Creates the key from 16 random bytes.
    pub fn new(random: [u8; 16]) -> HashKey {
        let word = u128::from_ne_bytes(random);
        #[allow(clippy::cast_possible_truncation)] // its two halves
        let (mask, factor) = (word as u64, (word >> 64) as u64);
        // Odd: an even factor would lose the top bit. Scrambled: a factor with a pattern would mix badly.
        let announcements = AnnouncementKey::derive(random);
        HashKey { mask: scramble(mask), factor: scramble(factor) | 1, announcements }
    }

    /// Key that authenticates the switch's announcements.
    pub const fn announcements(&self) -> &AnnouncementKey {
        &self.announcements
    }

    /// Hash of a station: two full 128-bit products, each folded. With one alone, consecutive addresses cluster
    /// under an unlucky factor. Low and high bits are well distributed.
    #[inline(always)]
    pub const fn hash(&self, station: Station) -> u64 {
        fold(fold(station.0 ^ self.mask, self.factor), 0x9e37_79b9_7f4a_7c15)
    }
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // its two halves
const fn fold(word: u64, factor: u64) -> u64 {
    let product = word as u128 * factor as u128;
    (product >> 64) as u64 ^ product as u64
}

/// Mixes each bit into all bits (the finalizer of splitmix64).
const fn scramble(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_station_is_its_parts() {
        let mac: Mac = "02:ab:00:00:00:01".parse().unwrap();
        let station = Station::new(NetworkId::new(4095), mac);
        assert_eq!((station.network(), station.mac()), (NetworkId::new(4095), mac));
    }

    /// Sequential addresses, as clouds assign them, spread over a table like random ones.
    #[test]
    fn counted_addresses_spread() {
        for seed in 0..200u8 {
            let hash_key = HashKey::new([seed; 16]);
            let mut buckets = vec![0u32; 1 << 12];
            for i in 0..1u64 << 14 {
                let station = Station::new(NetworkId::new(3), Mac::from_bits(0x02_0000_0000 | i));
                buckets[(hash_key.hash(station) & 0xfff) as usize] += 1;
            }
            let fullest = buckets.iter().max().unwrap();
            assert!(*fullest < 24, "seed {seed}: 4 expected on average, the fullest has {fullest}");
        }
    }
}
