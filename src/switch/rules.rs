//! What control wants, compiled: everything about ports and networks that forwarding asks, in the
//! form in which it is asked. Immutable; a change is a new set of rules, the same for all workers.
//!
//! *Flood lists.* The members of a network stand in one list, siblings (the ports of one VM) next
//! to each other. Each port knows the stretch of the list that it must not flood to: at first
//! only itself. So a flood is two slices, and the loop over them has no policy left in it.
//!
//! *Pins.* The address of each port is pinned to it, and so are allowed addresses that no other
//! port of the network shares. A pin is found here and never in the table of learned stations;
//! traffic can neither move nor displace it.

use std::collections::HashMap;

use super::pins::Pins;
use super::{Limits, MOST_PORTS, NetworkId, PortId, Secret, Station};
use crate::wire::{HEADER_LEN, Mac};

/// Whose port it is: ports of one owner on one network are siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub u32);

/// Which source addresses a port may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Any, but for those that are pinned to somebody else.
    Off,
    /// The address of the port, and these.
    Mac(Box<[Mac]>),
}

/// What is asked about a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRules {
    /// Its name.
    pub id: PortId,
    /// The network it is on.
    pub network: NetworkId,
    /// Its VM.
    pub owner: Owner,
    /// Its own address.
    pub mac: Mac,
    /// Which sources it may use.
    pub security: Security,
    /// Whether control wants it to carry frames.
    pub admin_up: bool,
    /// The worker through which others reach its device; `None` while it has none.
    pub worker: Option<u16>,
}

/// What is asked about a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRules {
    /// Its name.
    pub id: NetworkId,
    /// Bytes that a frame may carry behind its header and tags.
    pub mtu: u16,
    /// Seconds after which a silent station is forgotten.
    pub ageing: u32,
    /// How many stations may be learned.
    pub limits: Limits,
    /// Whether a source pinned to another VM's port is refused.
    pub guard: bool,
}

/// A port, compiled.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) rules: PortRules,
    /// Its own address, if that is pinned to it; the zero address, which no frame that is read so far
    /// can have for its source, if it is shared.
    pub(super) pinned: Station,
    /// Whether port security may object to a source.
    pub(super) is_picky: bool,
    /// The stretch of its network's members that a flood from here leaves out.
    skip: (usize, usize),
    /// Bytes of the longest frame without tags.
    pub(super) longest: u32,
    pub(super) guard: bool,
    pub(super) limits: Limits,
    pub(super) ageing: u32,
}

impl Port {
    /// Whether port security lets this source pass.
    #[inline]
    pub(super) fn allows(&self, source: Mac) -> bool {
        match &self.rules.security {
            Security::Off => true,
            Security::Mac(also) => source == self.rules.mac || also.contains(&source),
        }
    }
}

#[derive(Debug)]
struct Network {
    rules: NetworkRules,
    members: Box<[PortId]>,
}

/// What control wants of the switch.
#[derive(Debug)]
pub struct Rules {
    secret: Secret,
    ports: Box<[Option<Port>]>,
    /// By [`PortId::index`]: the port at this place. What most questions are about, close together.
    open: Box<[PortId; MOST_PORTS]>,
    networks: Box<[Option<Network>]>,
    pins: Pins,
}

impl Rules {
    /// Compiles the rules.
    ///
    /// # Panics
    ///
    /// When a port names a network that is not there, or two things the same place: admission
    /// has refused such configurations long before.
    pub fn compile(secret: Secret, networks: Vec<NetworkRules>, mut ports: Vec<PortRules>) -> Rules {
        // Siblings next to each other; the sort is stable, so that the order asked for is kept.
        ports.sort_by_key(|port| (port.network.index(), port.owner));
        let pins = Pins::new(secret, &ports);

        let mut members: HashMap<NetworkId, Vec<PortId>> = HashMap::new();
        // Where each stands among the members of its network.
        let mut stands: HashMap<PortId, usize> = HashMap::new();
        for port in ports.iter().filter(|port| port.admin_up && port.worker.is_some()) {
            let members = members.entry(port.network).or_default();
            stands.insert(port.id, members.len());
            members.push(port.id);
        }
        let mut table: Vec<Option<Network>> = Vec::new();
        for rules in networks {
            let place = rules.id.index();
            table.resize_with(table.len().max(place + 1), || None);
            assert!(table[place].is_none(), "two networks at one place");
            let members = members.remove(&rules.id).unwrap_or_default().into();
            table[place] = Some(Network { rules, members });
        }

        let mut compiled: Vec<Option<Port>> = Vec::new();
        let mut open = vec![PortId::NONE; MOST_PORTS];
        for rules in ports {
            let network = table.get(rules.network.index()).and_then(Option::as_ref).expect("its network is there");
            let skip = stands.get(&rules.id).map_or((0, 0), |&at| (at, at + 1));
            #[allow(clippy::cast_possible_truncation)] // 14
            let longest = u32::from(network.rules.mtu) + HEADER_LEN as u32;
            let place = rules.id.index();
            compiled.resize_with(compiled.len().max(place + 1), || None);
            assert!(compiled[place].is_none(), "two ports at one place");
            let own = Station::new(rules.network, rules.mac);
            let is_pinned = pins.find(own, secret.hash(own)) == Some(rules.id);
            open[place] = rules.id;
            compiled[place] = Some(Port {
                pinned: if is_pinned { own } else { Station::new(rules.network, Mac::ZERO) },
                is_picky: rules.security != Security::Off,
                rules,
                skip,
                longest,
                guard: network.rules.guard,
                limits: network.rules.limits,
                ageing: network.rules.ageing,
            });
        }
        let open = open.into_boxed_slice().try_into().expect("it is as long as it was made");
        Rules { secret, ports: compiled.into(), open, networks: table.into(), pins }
    }

    /// No port, no network.
    pub fn none(secret: Secret) -> Rules {
        Rules::compile(secret, Vec::new(), Vec::new())
    }

    #[inline]
    pub(super) fn compiled(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.index())?.as_ref().filter(|port| port.rules.id == id)
    }

    /// The port of this name, if there still is one.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&PortRules> {
        self.compiled(id).map(|port| &port.rules)
    }

    /// All ports.
    pub fn ports(&self) -> impl Iterator<Item = &PortRules> {
        self.ports.iter().flatten().map(|port| &port.rules)
    }

    /// The network of this name.
    pub fn network(&self, id: NetworkId) -> Option<&NetworkRules> {
        self.networks.get(id.index())?.as_ref().map(|network| &network.rules)
    }

    /// Who gets a frame that is flooded from `from`: two stretches of its network's members.
    #[inline]
    pub fn flood(&self, from: PortId) -> [&[PortId]; 2] {
        let Some(port) = self.compiled(from) else { return [&[], &[]] };
        let Some(Some(network)) = self.networks.get(port.rules.network.index()) else { return [&[], &[]] };
        [&network.members[..port.skip.0], &network.members[port.skip.1..]]
    }

    /// Whether there is such a port.
    #[inline(always)]
    pub(super) fn is_open(&self, id: PortId) -> bool {
        self.open[id.index() % MOST_PORTS] == id
    }

    /// The hash under which a station is filed, among pins and among learned stations.
    #[inline(always)]
    pub(super) fn hash(&self, station: Station) -> u64 {
        self.secret.hash(station)
    }

    #[inline]
    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The pinned stations and their ports.
    pub fn pinned(&self) -> impl Iterator<Item = (Station, PortId)> {
        self.pins.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(index: u16) -> NetworkRules {
        NetworkRules { id: NetworkId::new(index), mtu: 1500, ageing: 300, limits: Limits::default(), guard: true }
    }

    fn port(index: u16, network: u16, owner: u32, also: &[u64]) -> PortRules {
        PortRules {
            id: PortId::new(index, 0),
            network: NetworkId::new(network),
            owner: Owner(owner),
            mac: Mac::from_bits(0x0200_0000_0000 + u64::from(index)),
            security: Security::Mac(also.iter().map(|&bits| Mac::from_bits(bits)).collect()),
            admin_up: true,
            worker: Some(0),
        }
    }

    fn secret() -> Secret {
        Secret::new([3; 16])
    }

    #[test]
    fn a_flood_leaves_out_only_its_source() {
        let ports = vec![port(0, 0, 1, &[]), port(1, 0, 2, &[]), port(2, 0, 1, &[]), port(3, 1, 1, &[])];
        let rules = Rules::compile(secret(), vec![network(0), network(1)], ports);
        let mut reached: Vec<usize> = rules.flood(PortId::new(2, 0)).concat().iter().map(|id| id.index()).collect();
        reached.sort_unstable();
        assert_eq!(reached, [0, 1]);
        assert_eq!(rules.flood(PortId::new(3, 0)).concat(), []);
        assert_eq!(rules.flood(PortId::new(9, 0)).concat(), []);
        assert_eq!(rules.flood(PortId::new(2, 1)).concat(), [], "another generation is another port");
    }

    #[test]
    fn ports_that_cannot_send_are_not_flooded_to() {
        let mut down = port(1, 0, 2, &[]);
        down.admin_up = false;
        let mut gone = port(2, 0, 3, &[]);
        gone.worker = None;
        let rules = Rules::compile(secret(), vec![network(0)], vec![port(0, 0, 1, &[]), down, gone]);
        assert_eq!(rules.flood(PortId::new(0, 0)).concat(), []);
        assert_eq!(rules.flood(PortId::new(2, 0)).concat(), [PortId::new(0, 0)], "its last frames still go out");
    }

    #[test]
    fn a_shared_address_is_pinned_to_nobody() {
        let vrrp = 0x0000_5e00_0101;
        let own = 0x0200_0000_9999;
        let ports = vec![port(0, 0, 1, &[vrrp, own]), port(1, 0, 2, &[vrrp]), port(2, 1, 3, &[vrrp])];
        let rules = Rules::compile(secret(), vec![network(0), network(1)], ports);
        let find = |net, bits| {
            let station = Station::new(NetworkId::new(net), Mac::from_bits(bits));
            rules.pins().find(station, rules.hash(station)).map(|id| id.index())
        };
        assert_eq!(find(0, vrrp), None);
        assert_eq!(find(1, vrrp), Some(2));
        assert_eq!(find(0, own), Some(0));
        assert_eq!(find(0, 0x0200_0000_0001), Some(1));
        assert_eq!(find(1, 0x0200_0000_0001), None);
        assert_eq!(rules.pinned().count(), 5);
    }
}
