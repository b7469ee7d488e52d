//! Which items of a list are wanted: filters, and a page.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

use crate::control::api::responses::{PortView, StationKind, StationView, Status};
use crate::wire::Mac;

/// A page: items in a stable order, behind a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<K> {
    /// Maximum number of items.
    pub limit: usize,
    /// Key of the last item of the page before.
    pub after: Option<K>,
}

impl<K: Ord> Page<K> {
    /// Whether an item with this key comes after the page before.
    pub fn has_not_passed(&self, key: &K) -> bool {
        self.after.as_ref().is_none_or(|after| key > after)
    }

    /// Number of items to look for: one more than the page has, which shows whether there is a next one.
    pub fn wanted(&self) -> usize {
        self.limit.saturating_add(1)
    }
}

/// Which ports: those that match all given filters. A page is in the order of their ids, all of them in that of the
/// configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortSelection {
    /// With this label.
    pub owner: Option<String>,
    /// On this network.
    pub network: Option<String>,
    /// Of this VM.
    pub vm: Option<String>,
    /// With this status.
    pub status: Option<Status>,
    /// A page of them.
    pub page: Option<Page<String>>,
}

impl PortSelection {
    /// Selects from views of ports.
    pub fn of(&self, ports: impl IntoIterator<Item = PortView>) -> Vec<PortView> {
        let is = |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        let is_wanted = |port: &PortView| {
            is(&self.network, &port.network_id)
                && is(&self.vm, &port.device_id)
                && (self.owner.is_none() || self.owner == port.owner)
                && self.status.is_none_or(|status| status == port.status)
        };
        paged(ports.into_iter().filter(is_wanted).collect(), self.page.as_ref(), |port| port.port_id.clone())
    }
}

/// A page of these items, in the order of their keys; without one all of them as they are.
pub fn paged<T, K: Ord>(mut items: Vec<T>, page: Option<&Page<K>>, key: impl Fn(&T) -> K) -> Vec<T> {
    if let Some(page) = page {
        items.retain(|item| page.has_not_passed(&key(item)));
        items.sort_by_cached_key(&key);
        items.truncate(page.wanted());
    }
    items
}

/// Which FDB entries: those that match all given filters, in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StationSelection {
    /// On this network.
    pub network: Option<String>,
    /// At this port or uplink.
    pub port: Option<String>,
    /// With this address.
    pub mac: Option<Mac>,
    /// Of this kind.
    pub kind: Option<StationKind>,
    /// A page of them.
    pub page: Option<Page<StationKey>>,
}

/// Place of an FDB entry in the order of a list: pinned, dampened, then learned ones, each by network and MAC address.
/// As text: `KIND/NETWORK/MAC`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StationKey {
    kind: Reverse<StationKind>,
    network: String,
    mac: Mac,
}

impl StationKey {
    /// The key of an entry.
    pub fn new(kind: StationKind, network: String, mac: Mac) -> StationKey {
        StationKey { kind: Reverse(kind), network, mac }
    }

    /// The key of an entry as shown.
    pub fn of(station: &StationView) -> Option<StationKey> {
        Some(StationKey::new(station.kind, station.network_id.clone(), station.mac_address.parse().ok()?))
    }

    /// Whether it is one of this kind, network and address, or comes before that.
    pub fn has_passed(&self, kind: StationKind, network: &str, mac: Mac) -> bool {
        (Reverse(kind), network, mac) <= (self.kind, self.network.as_str(), self.mac)
    }
}

impl fmt::Display for StationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind.0.name(), self.network, self.mac)
    }
}

impl FromStr for StationKey {
    type Err = ();

    fn from_str(text: &str) -> Result<StationKey, ()> {
        let (kind, rest) = text.split_once('/').ok_or(())?;
        let (network, mac) = rest.rsplit_once('/').ok_or(())?;
        let kind = StationKind::named(kind).ok_or(())?;
        Ok(StationKey::new(kind, network.to_owned(), mac.parse().map_err(drop)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_station_is_read_back() {
        let mac: Mac = "02:00:00:00:01:0a".parse().unwrap();
        for kind in [StationKind::Pinned, StationKind::Dampened, StationKind::Learned] {
            for network in ["net1", "", "a/b", "ü"] {
                let key = StationKey::new(kind, network.into(), mac);
                assert_eq!(key.to_string().parse(), Ok(key.clone()));
                assert!(key.has_passed(kind, network, mac));
            }
        }
        for text in ["", "pinned", "pinned/net1", "other/net1/02:00:00:00:01:0a", "pinned/net1/x"] {
            assert_eq!(text.parse::<StationKey>(), Err(()));
        }
    }

    #[test]
    fn pinned_stations_come_first() {
        let key = |kind, network: &str, last| StationKey::new(kind, network.into(), Mac::from_bits(last));
        let order = [
            key(StationKind::Pinned, "b", 9),
            key(StationKind::Dampened, "a", 1),
            key(StationKind::Learned, "a", 1),
            key(StationKind::Learned, "a", 2),
            key(StationKind::Learned, "b", 1),
        ];
        assert!(order.is_sorted());
        let page = Page { limit: 2, after: Some(order[1].clone()) };
        assert!(!page.has_not_passed(&order[1]) && page.has_not_passed(&order[2]));
        assert!(!order[1].has_passed(StationKind::Learned, "a", Mac::from_bits(1)));
    }
}
