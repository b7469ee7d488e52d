//! FDB entries with configured names, for the API and the store.

use std::collections::HashMap;

use crate::control::api::responses::{StationKind, StationView};
use crate::control::compile::endpoints::ConfigRef;
use crate::control::compile::failover::Groups;
use crate::control::compile::forwarding::uplink_vlans;
use crate::control::compile::ids::IdAllocator;
use crate::control::config::Config;
use crate::control::reconcile::port::Port;
use crate::control::state::store::StoredStation;
use crate::switch::{FdbEntry, ForwardingConfig, NetworkId, PortId, Station};
use crate::time::MonoTime;

/// Names of ports and networks at one time, by id. Independent of later changes.
#[derive(Debug)]
pub struct FdbIndex {
    ports: HashMap<PortId, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Port; or uplinks of the group, the active one first.
    ids: Vec<String>,
    is_uplink: bool,
    network: NetworkId,
    network_id: String,
    ageing: u32,
}

impl Entry {
    fn id(&self) -> &str {
        self.ids.first().map_or("", String::as_str)
    }
}

impl FdbIndex {
    /// The current names.
    pub fn of(config: &Config, ports: &[Port], allocator: &IdAllocator, groups: &Groups) -> FdbIndex {
        let entry = |ids, is_uplink, network: usize, network_id| {
            let of = &config.networks[network];
            Entry { ids, is_uplink, network: network_id, network_id: of.id.clone(), ageing: of.ageing_seconds }
        };
        let ports = ports.iter().filter_map(|port| match port.endpoint.config_ref {
            ConfigRef::Port { network, network_id, .. } => {
                Some((port.endpoint.id, entry(vec![port.endpoint.name.clone()], false, network, network_id)))
            }
            ConfigRef::Uplink { .. } => None,
        });
        let outsides = uplink_vlans(config, allocator).into_iter().map(|outside| {
            let active = outside.group.active(groups);
            let others = outside.group.members.iter().copied().filter(|&member| member != active);
            let ids = std::iter::once(active).chain(others).map(|member| config.uplinks[member].id.clone());
            (outside.id, entry(ids.collect(), true, outside.network, outside.network_id))
        });
        FdbIndex { ports: ports.chain(outsides).collect() }
    }

    /// Port and age in seconds of a station; `None` if the port is gone or the station has aged.
    fn find(&self, learned: &FdbEntry, now: MonoTime) -> Option<(&Entry, u32)> {
        let entry = self.ports.get(&learned.port).filter(|entry| entry.network == learned.station.network())?;
        let age = now.secs().saturating_sub(learned.last_seen);
        (age < entry.ageing).then_some((entry, age))
    }

    /// All stations at `now`: pinned, dampened, then learned, each by network and MAC address.
    pub fn responses(&self, config: &ForwardingConfig, learned: Vec<FdbEntry>, now: MonoTime) -> Vec<StationView> {
        let view = |learned: FdbEntry, kind| {
            let (entry, age_seconds) = self.find(&learned, now)?;
            Some(StationView {
                network_id: entry.network_id.clone(),
                mac_address: learned.station.mac().to_string(),
                port_id: entry.id().to_owned(),
                uplink_id: entry.is_uplink.then(|| entry.id().to_owned()),
                kind,
                age_seconds,
            })
        };
        let last_seen = now.secs();
        let pinned = config
            .pinned()
            .filter_map(|(station, port)| view(FdbEntry { station, port, last_seen }, StationKind::Pinned));
        let dampened: HashMap<Station, PortId> = config.dampened().collect();
        // A dampened station's learned entry is ignored.
        let learned = learned.into_iter().filter(|learned| !dampened.contains_key(&learned.station));
        let learned = learned.filter_map(|learned| view(learned, StationKind::Learned));
        let dampened = dampened.iter().map(|(&station, &port)| FdbEntry { station, port, last_seen });
        let dampened = dampened.filter_map(|learned| view(learned, StationKind::Dampened));
        let mut all: Vec<StationView> = pinned.chain(dampened).chain(learned).collect();
        all.sort_by(|a, b| (b.kind, &a.network_id, &a.mac_address).cmp(&(a.kind, &b.network_id, &b.mac_address)));
        all
    }

    /// The stations to store at `now`.
    pub fn to_stored(&self, learned: Vec<FdbEntry>, now: MonoTime) -> Vec<StoredStation> {
        let stored = |learned: FdbEntry| {
            let (entry, age_seconds) = self.find(&learned, now)?;
            let (network_id, port_id) = (entry.network_id.clone(), entry.id().to_owned());
            Some(StoredStation { network_id, mac_address: learned.station.mac(), port_id, age_seconds })
        };
        learned.into_iter().filter_map(stored).collect()
    }

    /// The stored stations that are still valid at `now`, in order: those of removed ports, or ports on another
    /// network, are dropped.
    pub fn resolve_stored(&self, stored: Vec<StoredStation>, now: MonoTime) -> Vec<FdbEntry> {
        let by_name: HashMap<(&str, &str), (PortId, &Entry)> = self
            .ports
            .iter()
            .flat_map(|(&id, entry)| {
                entry.ids.iter().map(move |name| ((name.as_str(), entry.network_id.as_str()), (id, entry)))
            })
            .collect();
        let learned = |stored: StoredStation| {
            let (port, entry) = *by_name.get(&(stored.port_id.as_str(), stored.network_id.as_str()))?;
            let right = stored.age_seconds < entry.ageing;
            let station = Station::new(entry.network, stored.mac_address);
            right.then(|| FdbEntry { station, port, last_seen: now.secs().saturating_sub(stored.age_seconds) })
        };
        let mut all: Vec<FdbEntry> = stored.into_iter().filter_map(learned).collect();
        all.sort_by_key(|learned| learned.last_seen);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Mac;

    fn index() -> FdbIndex {
        let entry = |port: &str, network: u16, name: &str| Entry {
            ids: vec![port.into()],
            is_uplink: false,
            network: NetworkId::new(network),
            network_id: name.into(),
            ageing: 300,
        };
        let ports = [(PortId::new(0, 3), entry("p", 5, "n")), (PortId::new(1, 0), entry("q", 6, "m"))];
        FdbIndex { ports: ports.into() }
    }

    fn to_stored(network: &str, port: &str, mac: u64, age_seconds: u32) -> StoredStation {
        let mac_address = Mac::from_bits(mac);
        StoredStation { network_id: network.into(), mac_address, port_id: port.into(), age_seconds }
    }

    #[test]
    fn stored_entries_are_restored() {
        let (now, later) = (MonoTime::from_secs(1000), MonoTime::from_secs(50_000));
        let learned = |network, place, generation, mac, last_seen| FdbEntry {
            station: Station::new(NetworkId::new(network), Mac::from_bits(mac)),
            port: PortId::new(place, generation),
            last_seen,
        };
        let table = vec![
            learned(5, 0, 3, 1, 990),
            learned(6, 1, 0, 2, 800),
            learned(5, 0, 2, 3, 990), // behind a port that no longer exists
            learned(5, 1, 0, 4, 990), // on a network that its port has left
            learned(5, 0, 3, 5, 700), // aged
        ];
        let keep = index().to_stored(table, now);
        assert_eq!(keep, [to_stored("n", "p", 1, 10), to_stored("m", "q", 2, 200)]);
        let back = index().resolve_stored(keep, later);
        assert_eq!(back, [learned(6, 1, 0, 2, 49_800), learned(5, 0, 3, 1, 49_990)]);
    }

    /// Learned at one uplink; the other one may be active after the restart.
    #[test]
    fn external_stations_are_restored_behind_the_other_uplink() {
        let outside = |network: u16, name: &str| Entry {
            ids: vec!["up1".into(), "up0".into()],
            is_uplink: true,
            network: NetworkId::new(network),
            network_id: name.into(),
            ageing: 300,
        };
        let ports = [(PortId::new(7, 0), outside(5, "n")), (PortId::new(8, 0), outside(6, "m"))];
        let index = FdbIndex { ports: ports.into() };
        let now = MonoTime::from_secs(1000);
        let back = index.resolve_stored(
            vec![to_stored("m", "up0", 1, 0), to_stored("n", "up1", 2, 0), to_stored("o", "up0", 3, 0)],
            now,
        );
        let allocator: Vec<_> = back.iter().map(|learned| learned.port.index()).collect();
        assert_eq!(allocator, [8, 7]);
        assert_eq!(index.to_stored(back, now), [to_stored("m", "up1", 1, 0), to_stored("n", "up1", 2, 0)]);
    }

    #[test]
    fn invalid_entries_are_not_restored() {
        let gone = vec![
            to_stored("n", "gone", 1, 0),
            to_stored("m", "p", 2, 0),
            to_stored("gone", "q", 3, 0),
            to_stored("n", "p", 4, 300),
        ];
        assert_eq!(index().resolve_stored(gone, MonoTime::from_secs(1000)), []);
    }
}
