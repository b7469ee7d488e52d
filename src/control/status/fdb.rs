//! FDB entries with configured names, for the API and the store.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use crate::control::api::responses::{StationKind, StationView};
use crate::control::api::selection::StationSelection;
use crate::control::compile::endpoints::ConfigRef;
use crate::control::compile::failover::Groups;
use crate::control::compile::forwarding::uplink_vlans;
use crate::control::compile::ids::IdAllocator;
use crate::control::config::Config;
use crate::control::reconcile::port::Port;
use crate::control::state::store::{StoredPlace, StoredStation};
use crate::switch::{FdbEntry, ForwardingConfig, NetworkId, PortId, Station};
use crate::time::MonoTime;
use crate::wire::Mac;

/// Place of an entry in the order.
type Key<'i> = (Reverse<StationKind>, &'i str, Mac);

/// Whether an entry comes before the page selected.
fn has_passed(which: &StationSelection, kind: StationKind, network: &str, mac: Mac) -> bool {
    let after = which.page.as_ref().and_then(|page| page.after.as_ref());
    after.is_some_and(|after| after.has_passed(kind, network, mac))
}

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

    /// Whether a learned station can be among those selected, by its network, address, and place in the order.
    pub fn candidates(&self, which: &StationSelection) -> impl Fn(Station) -> bool {
        let networks: HashMap<NetworkId, &str> =
            self.ports.values().map(|entry| (entry.network, entry.network_id.as_str())).collect();
        move |station| {
            let Some(&network) = networks.get(&station.network()) else { return false };
            which.kind.is_none_or(|kind| kind == StationKind::Learned)
                && which.network.as_ref().is_none_or(|wanted| wanted == network)
                && which.mac.is_none_or(|mac| mac == station.mac())
                && !has_passed(which, StationKind::Learned, network, station.mac())
        }
    }

    /// The stations selected at `now`: pinned, dampened, then learned, each by network and MAC address. Of a page up to one
    /// more than it has. Only what is returned is named.
    pub fn select(
        &self,
        config: &ForwardingConfig,
        learned: Vec<FdbEntry>,
        now: MonoTime,
        which: &StationSelection,
    ) -> Vec<StationView> {
        let last_seen = now.secs();
        let dampened: HashMap<Station, PortId> = config.dampened().collect();
        let of_config = |(station, port)| FdbEntry { station, port, last_seen };
        let pinned = config.pinned().map(of_config).map(|of| (StationKind::Pinned, of));
        // A dampened station's learned entry is ignored.
        let learned = learned.into_iter().filter(|learned| !dampened.contains_key(&learned.station));
        let learned = learned.map(|of| (StationKind::Learned, of));
        let moving = dampened.iter().map(|(&station, &port)| (StationKind::Dampened, of_config((station, port))));
        let selected = pinned.chain(moving).chain(learned).filter_map(|(kind, of)| {
            let (entry, age) = self.find(&of, now)?;
            let (network, mac) = (entry.network_id.as_str(), of.station.mac());
            let is_wanted = which.kind.is_none_or(|wanted| wanted == kind)
                && which.network.as_ref().is_none_or(|wanted| wanted == network)
                && which.port.as_ref().is_none_or(|wanted| wanted == entry.id())
                && which.mac.is_none_or(|wanted| wanted == mac)
                && !has_passed(which, kind, network, mac);
            is_wanted.then_some(((Reverse(kind), network, mac), entry, age))
        });
        let mut all: Vec<_> = selected.collect();
        if let Some(page) = &which.page
            && page.wanted() < all.len()
        {
            all.select_nth_unstable_by_key(page.wanted(), |(key, ..)| *key);
            all.truncate(page.wanted());
        }
        all.sort_unstable_by_key(|(key, ..)| *key);
        let view = |((Reverse(kind), network, mac), entry, age_seconds): (Key<'_>, &Entry, u32)| StationView {
            network_id: network.to_owned(),
            mac_address: mac.to_string(),
            port_id: entry.id().to_owned(),
            uplink_id: entry.is_uplink.then(|| entry.id().to_owned()),
            kind,
            age_seconds,
        };
        all.into_iter().map(view).collect()
    }

    /// The stations to store at `now`.
    pub fn to_stored(&self, learned: Vec<FdbEntry>, now: MonoTime) -> Vec<StoredStation> {
        let place = |(&id, entry): (&PortId, &Entry)| {
            (id, Arc::new(StoredPlace { network_id: entry.network_id.clone(), port_id: entry.id().to_owned() }))
        };
        let places: HashMap<PortId, Arc<StoredPlace>> = self.ports.iter().map(place).collect();
        let stored = |learned: FdbEntry| {
            let (_, age_seconds) = self.find(&learned, now)?;
            let place = places.get(&learned.port)?.clone();
            Some(StoredStation { place, mac_address: learned.station.mac(), age_seconds })
        };
        learned.into_iter().filter_map(stored).collect()
    }

    /// The stored stations that are still valid at `now`, in their order: those of removed ports, or ports on another
    /// network, are dropped.
    pub fn resolve_stored(&self, stored: &[StoredStation], now: MonoTime) -> Vec<FdbEntry> {
        let by_name: HashMap<(&str, &str), (PortId, &Entry)> = self
            .ports
            .iter()
            .flat_map(|(&id, entry)| {
                entry.ids.iter().map(move |name| ((name.as_str(), entry.network_id.as_str()), (id, entry)))
            })
            .collect();
        // Stations share their places: each is looked up by name once.
        let mut known: HashMap<*const StoredPlace, Option<(PortId, &Entry)>> = HashMap::new();
        let learned = |stored: &StoredStation| {
            let place = &stored.place;
            let by_name = || by_name.get(&(place.port_id.as_str(), place.network_id.as_str())).copied();
            let (port, entry) = (*known.entry(Arc::as_ptr(place)).or_insert_with(by_name))?;
            let right = stored.age_seconds < entry.ageing;
            let station = Station::new(entry.network, stored.mac_address);
            right.then(|| FdbEntry { station, port, last_seen: now.secs().saturating_sub(stored.age_seconds) })
        };
        stored.iter().filter_map(learned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::selection::{Page, StationKey};
    use crate::switch::HashKey;

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
        let place = StoredPlace { network_id: network.into(), port_id: port.into() }.into();
        StoredStation { place, mac_address: Mac::from_bits(mac), age_seconds }
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
        let back = index().resolve_stored(&keep, later);
        assert_eq!(back, [learned(5, 0, 3, 1, 49_990), learned(6, 1, 0, 2, 49_800)]);
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
            &[to_stored("m", "up0", 1, 0), to_stored("n", "up1", 2, 0), to_stored("o", "up0", 3, 0)],
            now,
        );
        let allocator: Vec<_> = back.iter().map(|learned| learned.port.index()).collect();
        assert_eq!(allocator, [8, 7]);
        assert_eq!(index.to_stored(back, now), [to_stored("m", "up1", 1, 0), to_stored("n", "up1", 2, 0)]);
    }

    #[test]
    fn pages_have_each_station_once_and_in_order() {
        let now = MonoTime::from_secs(1000);
        let learned = |network, place, generation, mac| FdbEntry {
            station: Station::new(NetworkId::new(network), Mac::from_bits(mac)),
            port: PortId::new(place, generation),
            last_seen: 990,
        };
        let table: Vec<_> = (0..50).map(|n| learned(5, 0, 3, 97 * n % 101)).collect();
        let table: Vec<_> = table.into_iter().chain((0..50).map(|n| learned(6, 1, 0, 89 * n % 97))).collect();
        let config = ForwardingConfig::none(HashKey::new([1; 16]));
        let index = index();
        let select = |which: &StationSelection| {
            let candidates: Vec<_> = table.iter().copied().filter(|of| index.candidates(which)(of.station)).collect();
            index.select(&config, candidates, now, which)
        };
        let all = select(&StationSelection::default());
        assert_eq!((all.len(), all[0].network_id.as_str()), (100, "m"));
        assert!(all.is_sorted_by_key(|of| (of.network_id.clone(), of.mac_address.clone())));
        for limit in [1, 7, 50, 99, 100, 101] {
            let (mut paged, mut after) = (Vec::new(), None);
            loop {
                let page = Some(Page { limit, after });
                let mut found = select(&StationSelection { page, ..StationSelection::default() });
                assert!(found.len() <= limit + 1, "one more than the page has");
                let is_last = found.len() <= limit;
                found.truncate(limit);
                after = found.last().and_then(StationKey::of);
                paged.extend(found);
                if is_last {
                    break;
                }
            }
            assert_eq!(paged, all, "{limit}");
        }
        let of = |which: StationSelection| select(&which);
        let network = of(StationSelection { network: Some("n".into()), ..StationSelection::default() });
        assert!(network.len() == 50 && network.iter().all(|of| of.network_id == "n"));
        let port = of(StationSelection { port: Some("q".into()), ..StationSelection::default() });
        assert!(port.len() == 50 && port.iter().all(|of| of.port_id == "q"));
        let mac = of(StationSelection { mac: Some(Mac::from_bits(97)), ..StationSelection::default() });
        assert_eq!(mac.iter().map(|of| of.network_id.as_str()).collect::<Vec<_>>(), ["n"]);
        let pinned = of(StationSelection { kind: Some(StationKind::Pinned), ..StationSelection::default() });
        assert_eq!(pinned, []);
    }

    #[test]
    fn invalid_entries_are_not_restored() {
        let gone = vec![
            to_stored("n", "gone", 1, 0),
            to_stored("m", "p", 2, 0),
            to_stored("gone", "q", 3, 0),
            to_stored("n", "p", 4, 300),
        ];
        assert_eq!(index().resolve_stored(&gone, MonoTime::from_secs(1000)), []);
    }
}
