//! Learned stations in the words of the configuration: as they are shown, and as they are kept over
//! a restart.

use std::collections::HashMap;

use super::blueprint::outsides;
use super::config::Config;
use super::controller::Port;
use super::failover::Groups;
use super::places::Places;
use super::seats::Stand;
use super::store::KeptStation;
use super::view::{StationKind, StationView};
use crate::switch::{Learned, NetworkId, PortId, Rules, Station};
use crate::time::Moment;

/// The ports and networks at one time, by their places. It needs nothing else to be there still.
#[derive(Debug)]
pub struct Directory {
    ports: HashMap<PortId, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// The port; or the uplink, the one that carries in front, and then the other one of its group.
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

impl Directory {
    /// As things are now.
    pub fn of(config: &Config, ports: &[Port], places: &Places, groups: &Groups) -> Directory {
        let entry = |ids, is_uplink, network: usize, network_id| {
            let of = &config.networks[network];
            Entry { ids, is_uplink, network: network_id, network_id: of.id.clone(), ageing: of.ageing_seconds }
        };
        let ports = ports.iter().filter_map(|port| match port.seat.stand {
            Stand::Port { network, network_id, .. } => {
                Some((port.seat.id, entry(vec![port.seat.name.clone()], false, network, network_id)))
            }
            Stand::Uplink { .. } => None,
        });
        let outsides = outsides(config, places).into_iter().map(|outside| {
            let active = outside.line.active(groups);
            let others = outside.line.members.iter().copied().filter(|&member| member != active);
            let ids = std::iter::once(active).chain(others).map(|member| config.uplinks[member].id.clone());
            (outside.id, entry(ids.collect(), true, outside.network, outside.network_id))
        });
        Directory { ports: ports.chain(outsides).collect() }
    }

    /// The port behind which a station is and its age in seconds, unless the port is no more, or
    /// the station has aged.
    fn find(&self, learned: &Learned, now: Moment) -> Option<(&Entry, u32)> {
        let entry = self.ports.get(&learned.port).filter(|entry| entry.network == learned.station.network())?;
        let age = now.secs().saturating_sub(learned.seen);
        (age < entry.ageing).then_some((entry, age))
    }

    /// All stations at `now`: the pinned, the frozen, then the learned, each by network and address.
    pub fn views(&self, rules: &Rules, learned: Vec<Learned>, now: Moment) -> Vec<StationView> {
        let view = |learned: Learned, kind| {
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
        let seen = now.secs();
        let pinned =
            rules.pinned().filter_map(|(station, port)| view(Learned { station, port, seen }, StationKind::Pinned));
        let frozen: HashMap<Station, PortId> = rules.frozen().collect();
        // Where one was learned is of no account as long as it is frozen.
        let learned = learned.into_iter().filter(|learned| !frozen.contains_key(&learned.station));
        let learned = learned.filter_map(|learned| view(learned, StationKind::Learned));
        let frozen = frozen.iter().map(|(&station, &port)| Learned { station, port, seen });
        let frozen = frozen.filter_map(|learned| view(learned, StationKind::Frozen));
        let mut all: Vec<StationView> = pinned.chain(frozen).chain(learned).collect();
        all.sort_by(|a, b| (b.kind, &a.network_id, &a.mac_address).cmp(&(a.kind, &b.network_id, &b.mac_address)));
        all
    }

    /// The stations that are worth keeping at `now`.
    pub fn kept(&self, learned: Vec<Learned>, now: Moment) -> Vec<KeptStation> {
        let kept = |learned: Learned| {
            let (entry, age_seconds) = self.find(&learned, now)?;
            let (network_id, port_id) = (entry.network_id.clone(), entry.id().to_owned());
            Some(KeptStation { network_id, mac_address: learned.station.mac(), port_id, age_seconds })
        };
        learned.into_iter().filter_map(kept).collect()
    }

    /// What of it can still be right at `now`, in the order in which it was heard: a port that is
    /// no more, or on another network, takes its stations with it.
    pub fn learned(&self, kept: Vec<KeptStation>, now: Moment) -> Vec<Learned> {
        let by_name: HashMap<(&str, &str), (PortId, &Entry)> = self
            .ports
            .iter()
            .flat_map(|(&id, entry)| {
                entry.ids.iter().map(move |name| ((name.as_str(), entry.network_id.as_str()), (id, entry)))
            })
            .collect();
        let learned = |kept: KeptStation| {
            let (port, entry) = *by_name.get(&(kept.port_id.as_str(), kept.network_id.as_str()))?;
            let right = kept.age_seconds < entry.ageing;
            let station = Station::new(entry.network, kept.mac_address);
            right.then(|| Learned { station, port, seen: now.secs().saturating_sub(kept.age_seconds) })
        };
        let mut all: Vec<Learned> = kept.into_iter().filter_map(learned).collect();
        all.sort_by_key(|learned| learned.seen);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Mac;

    fn directory() -> Directory {
        let entry = |port: &str, network: u16, name: &str| Entry {
            ids: vec![port.into()],
            is_uplink: false,
            network: NetworkId::new(network),
            network_id: name.into(),
            ageing: 300,
        };
        let ports = [(PortId::new(0, 3), entry("p", 5, "n")), (PortId::new(1, 0), entry("q", 6, "m"))];
        Directory { ports: ports.into() }
    }

    fn kept(network: &str, port: &str, mac: u64, age_seconds: u32) -> KeptStation {
        let mac_address = Mac::from_bits(mac);
        KeptStation { network_id: network.into(), mac_address, port_id: port.into(), age_seconds }
    }

    #[test]
    fn what_is_kept_comes_back() {
        let (now, later) = (Moment::from_secs(1000), Moment::from_secs(50_000));
        let learned = |network, place, generation, mac, seen| Learned {
            station: Station::new(NetworkId::new(network), Mac::from_bits(mac)),
            port: PortId::new(place, generation),
            seen,
        };
        let table = vec![
            learned(5, 0, 3, 1, 990),
            learned(6, 1, 0, 2, 800),
            learned(5, 0, 2, 3, 990), // behind a port that is no more
            learned(5, 1, 0, 4, 990), // on a network where its port was before
            learned(5, 0, 3, 5, 700), // aged
        ];
        let keep = directory().kept(table, now);
        assert_eq!(keep, [kept("n", "p", 1, 10), kept("m", "q", 2, 200)]);
        let back = directory().learned(keep, later);
        assert_eq!(back, [learned(6, 1, 0, 2, 49_800), learned(5, 0, 3, 1, 49_990)]);
    }

    /// It was heard by the one uplink, and the other one may carry when it comes back.
    #[test]
    fn what_was_heard_outside_is_still_there_behind_the_other_uplink() {
        let outside = |network: u16, name: &str| Entry {
            ids: vec!["up1".into(), "up0".into()],
            is_uplink: true,
            network: NetworkId::new(network),
            network_id: name.into(),
            ageing: 300,
        };
        let ports = [(PortId::new(7, 0), outside(5, "n")), (PortId::new(8, 0), outside(6, "m"))];
        let directory = Directory { ports: ports.into() };
        let now = Moment::from_secs(1000);
        let back = directory.learned(vec![kept("m", "up0", 1, 0), kept("n", "up1", 2, 0), kept("o", "up0", 3, 0)], now);
        let places: Vec<_> = back.iter().map(|learned| learned.port.index()).collect();
        assert_eq!(places, [8, 7]);
        assert_eq!(directory.kept(back, now), [kept("m", "up1", 1, 0), kept("n", "up1", 2, 0)]);
    }

    #[test]
    fn what_cannot_be_right_any_more_does_not_come_back() {
        let gone = vec![kept("n", "gone", 1, 0), kept("m", "p", 2, 0), kept("gone", "q", 3, 0), kept("n", "p", 4, 300)];
        assert_eq!(directory().learned(gone, Moment::from_secs(1000)), []);
    }
}
