//! What control wants, compiled: everything about ports and networks that forwarding asks, in the
//! form in which it is asked. Immutable; a change is a new set of rules, the same for all workers.
//!
//! *Flood lists.* The members of a network stand in one list, siblings (the ports of one VM) next
//! to each other, uplinks last. Each port knows the stretch of the list that it must not flood to: at
//! first only itself, and an uplink all uplinks. So a flood is two slices, and the loop over them has
//! no policy left in it. Where some ports are not to get all, there are more such lists.
//!
//! *Pins.* The address of each port is pinned to it, and so are allowed addresses that no other
//! port of the network shares. A port that is administratively down or inactive pins nothing: see
//! [`activation`](super::activation). What is pinned is not learned, and traffic can neither move nor displace it; a copy
//! lies among the learned stations, to be found at the same glance. For a while others can be pinned as well: *frozen*
//! where they are.
//!
//! *Measures* against loops are of the same stuff. A port in quarantine (*held*) is in no list, and no way leads out by
//! it. One that *splits* leaves out the stretch of all its siblings. The first test of a frame's way is the only one
//! that knows of it.

use std::collections::HashMap;

use super::carrier::{Carrier, CarrierRules, Carriers};
use super::members::{Members, Stretch};
use super::pins::Pins;
use super::security::Bindings;
use super::{
    Audience, DropReason, Flood, Limits, MOST_PORTS, MacLimit, NetworkId, NetworkRules, Owner, PortId, PortRules,
    Reach, ReservedMask, Role, Secret, Security, Station,
};
use crate::wire::{AnnouncementKey, HEADER_LEN, Mac};

/// A port, compiled.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) rules: PortRules,
    /// Whether frames may come in by it.
    pub(super) is_open: bool,
    /// Its own address, if that is pinned to it; the zero address, which no frame that is read so far
    /// can have for its source, if it is shared.
    pub(super) pinned: Station,
    /// Whether port security may object to a source.
    pub(super) is_picky: bool,
    /// Whether each source has to be examined: for port security, or because control waits for a frame of the port.
    pub(super) is_examined: bool,
    /// The addresses that belong to the port and are not pinned to it now, sorted: the port is inactive, or they have
    /// yielded.
    unpinned: Box<[Mac]>,
    /// The sources that it allows, sorted.
    allowed: Box<[Mac]>,
    /// The addresses of the other ports of its VM, on whichever network, where port security objects to them. Sorted.
    of_siblings: Box<[Mac]>,
    /// What senders may be named above Ethernet, if that is asked for.
    pub(super) bindings: Option<Bindings>,
    /// The stretch of its network's members that a flood from here leaves out.
    skip: Stretch,
    /// The same, of those that are to get unknown unicast.
    skip_unknown: Stretch,
    /// The same, of those that are promiscuous.
    skip_watchers: Stretch,
    /// Whether there are ports on its network that are not to.
    pub(super) suppresses: bool,
    /// Whether there are ports on its network, others than itself, that get copies of all that is forwarded.
    pub(super) is_watched: bool,
    /// How many stations may be learned, where this is a limit at which none is displaced.
    pub(super) mac_limit: Option<MacLimit>,
    /// Whether there are limits on what it may send to everybody.
    pub(super) is_policed: bool,
    /// Its number among the subports of all trunks, if it is one.
    branch: Option<u16>,
    /// Bytes of the longest frame without tags.
    pub(super) longest: u32,
    pub(super) guard: bool,
    pub(super) reserved: ReservedMask,
    pub(super) limits: Limits,
    pub(super) ageing: u32,
}

impl Port {
    /// Whether it is a way to the outside.
    #[inline]
    pub(super) fn is_uplink(&self) -> bool {
        self.rules.is_uplink()
    }

    /// Whether control waits for a frame from this source, which port security lets pass.
    #[inline]
    pub(super) fn awaits(&self, source: Mac) -> bool {
        !self.rules.pins || self.claims(source)
    }

    /// Whether this address belongs to it, and is not pinned to it now.
    #[inline]
    pub(super) fn claims(&self, source: Mac) -> bool {
        self.unpinned.binary_search(&source).is_ok()
    }

    /// Whether port security lets this source pass.
    #[inline]
    pub(super) fn allows(&self, source: Mac) -> bool {
        !self.is_picky || source == self.rules.mac || self.allowed.binary_search(&source).is_ok()
    }
}

impl Port {
    /// Whether an address is that of another port of its VM.
    pub(super) fn is_of_sibling(&self, mac: Mac) -> bool {
        self.of_siblings.binary_search(&mac).is_ok()
    }

    /// Whether this address may wander between the port and others that are allowed to use it too: somebody has said
    /// that it may use it, or it is a way to the outside, and its VM neither loops nor storms.
    pub(super) fn may_share(&self, mac: Mac) -> bool {
        self.is_uplink() || self.is_picky && !self.rules.suspect && self.allows(mac)
    }
}

#[derive(Debug)]
struct Network {
    rules: NetworkRules,
    members: Members,
    /// Those that are to get unknown unicast, where not all are.
    curious: Members,
    /// Those that are not.
    incurious: Members,
    /// Those that are promiscuous.
    watchers: Members,
}

impl Network {
    /// The network of these ports, uplinks last.
    fn new(rules: NetworkRules, ports: &[&PortRules]) -> Network {
        let those = |which: fn(&PortRules) -> bool| {
            let owner = |port: &PortRules| (!port.is_uplink()).then_some(port.owner);
            Members::new(ports.iter().filter(|port| which(port)).map(|port| (port.id, owner(port))))
        };
        Network {
            rules,
            members: those(|_| true),
            curious: those(|port| !port.is_incurious()),
            incurious: those(PortRules::is_incurious),
            watchers: those(|port| port.promiscuous),
        }
    }
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
    carriers: Carriers,
    branches: u16,
}

impl Rules {
    /// Compiles the rules.
    ///
    /// # Panics
    ///
    /// When a port names a network or a carrier that is not there, two things the same place, a carrier
    /// a port that it cannot carry, or an uplink is not carried: admission has refused such
    /// configurations long before.
    pub fn compile(
        secret: Secret,
        networks: Vec<NetworkRules>,
        mut ports: Vec<PortRules>,
        carriers: Vec<CarrierRules>,
    ) -> Rules {
        // Uplinks last, and siblings next to each other; the sort is stable, so that the order asked
        // for is kept.
        ports.sort_by_key(|port| (port.network.index(), port.role, port.owner));
        let carriers = Carriers::new(carriers, &ports);
        let (pins, mut unpinned) = Pins::new(secret, &ports, |port| port.admin_up && carriers.want_up(port));

        let mut members: HashMap<NetworkId, Vec<&PortRules>> = HashMap::new();
        for port in ports.iter().filter(|port| port.is_open() && port.worker.is_some() && carriers.let_out(port)) {
            members.entry(port.network).or_default().push(port);
        }
        let mut table: Vec<Option<Network>> = Vec::new();
        for rules in networks {
            let place = rules.id.index();
            table.resize_with(table.len().max(place + 1), || None);
            assert!(table[place].is_none(), "two networks at one place");
            let members = members.remove(&rules.id).unwrap_or_default();
            table[place] = Some(Network::new(rules, &members));
        }

        let mut of_vms: HashMap<Owner, Vec<Mac>> = HashMap::new();
        for port in ports.iter().filter(|port| !port.is_uplink()) {
            of_vms.entry(port.owner).or_default().push(port.mac);
        }
        of_vms.values_mut().for_each(|macs| macs.sort_unstable());

        let mut compiled: Vec<Option<Port>> = Vec::new();
        let mut branches = 0;
        let mut open = vec![PortId::NONE; MOST_PORTS];
        for rules in ports {
            let network = table.get(rules.network.index()).and_then(Option::as_ref).expect("its network is there");
            let skip = |members: &Members| match rules.role {
                Role::Vif if rules.splits => members.siblings(rules.owner),
                Role::Vif => members.stretch(rules.id),
                Role::Uplink => members.uplinks(),
            };
            let (skip, skip_unknown, skip_watchers) =
                (skip(&network.members), skip(&network.curious), skip(&network.watchers));
            #[allow(clippy::cast_possible_truncation)] // 14
            let longest = u32::from(network.rules.mtu) + HEADER_LEN as u32;
            let place = rules.id.index();
            compiled.resize_with(compiled.len().max(place + 1), || None);
            assert!(
                compiled[place].is_none() && !carriers.stand_at(place, rules.own_carrier()),
                "two ports at one place"
            );
            let own = Station::new(rules.network, rules.mac);
            let is_pinned = pins.find(own, secret.hash(own)).is_some_and(|pin| pin.port == rules.id);
            let is_picky = rules.security != Security::Off;
            let mut unpinned = unpinned.remove(&rules.id).unwrap_or_default();
            unpinned.sort_unstable();
            let mut allowed: Vec<Mac> = rules.security.macs().collect();
            allowed.sort_unstable();
            // Where port security says who may be learned, there is nobody left to be limited.
            let mac_limit = rules.mac_limit.filter(|_| !is_picky && !rules.is_uplink());
            let mut limits = network.rules.limits;
            if let Some(limit) = mac_limit {
                // What is its own and not pinned is learned as well, and does not count.
                limits.port = limits.port.min(limit.stations.saturating_add(u32::from(!is_pinned)));
            }
            open[place] = rules.id;
            compiled[place] = Some(Port {
                is_open: rules.is_open(),
                pinned: if is_pinned { own } else { Station::new(rules.network, Mac::ZERO) },
                is_picky,
                is_examined: is_picky || !unpinned.is_empty() || !(rules.pins || rules.is_uplink()),
                unpinned: unpinned.into(),
                allowed: allowed.into(),
                of_siblings: if is_picky {
                    of_vms.get(&rules.owner).cloned().unwrap_or_default().into()
                } else {
                    [].into()
                },
                bindings: match &rules.security {
                    Security::MacIp(bindings) => Some(Bindings::new(rules.mac, bindings)),
                    Security::Off | Security::Mac(_) => None,
                },
                suppresses: !network.incurious.is_empty(),
                is_watched: network.watchers.all().iter().any(|&watcher| watcher != rules.id),
                mac_limit,
                is_policed: !rules.storm.limits.is_off() || rules.pack.as_ref().is_some_and(|pack| !pack.is_off()),
                guard: network.rules.guard && !rules.is_uplink(),
                branch: rules.is_subport().then(|| {
                    branches += 1;
                    branches - 1
                }),
                reserved: network.rules.reserved,
                rules,
                skip,
                skip_unknown,
                skip_watchers,
                longest,
                limits,
                ageing: network.rules.ageing,
            });
        }
        let open = open.into_boxed_slice().try_into().expect("it is as long as it was made");
        Rules { secret, ports: compiled.into(), open, networks: table.into(), pins, carriers, branches }
    }

    /// No port, no network.
    pub fn none(secret: Secret) -> Rules {
        Rules::compile(secret, Vec::new(), Vec::new(), Vec::new())
    }

    /// Freezes each of these stations at a port, on top of those that are frozen already: there it is, whatever traffic
    /// says, and from nowhere else it is heard. Stations that are pinned to another port are not touched, and a port that is
    /// closed holds nobody.
    pub fn freeze(&mut self, stations: impl Iterator<Item = (Station, PortId)>) {
        let stations: Vec<_> = stations.filter(|&(_, port)| self.is_open(port)).collect();
        if !stations.is_empty() {
            self.pins = self.pins.with_frozen(stations.into_iter());
        }
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

    fn network_of(&self, port: &Port) -> Option<&Network> {
        self.networks.get(port.rules.network.index())?.as_ref()
    }

    /// Who gets a frame that is flooded: three stretches of lists of its network's members.
    #[inline]
    pub fn reached(&self, flood: Flood) -> [&[PortId]; 3] {
        let Some(port) = self.compiled(flood.from) else { return [&[]; 3] };
        let Some(network) = self.network_of(port) else { return [&[]; 3] };
        let [before, behind] = match flood.to {
            Audience::All => network.members.but(port.skip),
            Audience::Inside => network.members.inside(port.skip),
            Audience::Bridges => network.members.inside(network.members.stretch(flood.from)),
            Audience::Unknown => network.curious.but(port.skip_unknown),
            Audience::Watchers => return network.watchers.but_also(port.skip_watchers, flood.but),
        };
        [before, behind, &[]]
    }

    /// Who does not get a frame that is flooded, and would if it were not for a station that nobody knows: two
    /// stretches.
    pub fn suppressed(&self, flood: Flood) -> [&[PortId]; 2] {
        let Some(port) = self.compiled(flood.from) else { return [&[]; 2] };
        match self.network_of(port) {
            Some(network) if flood.to == Audience::Unknown => network.incurious.but(if port.rules.splits {
                network.incurious.siblings(port.rules.owner)
            } else {
                network.incurious.stretch(flood.from)
            }),
            _ => [&[]; 2],
        }
    }

    /// The port at a place, which a verdict has named under these rules; [`PortId::NONE`] if there is none.
    #[inline]
    pub(crate) fn port_at(&self, index: u16) -> PortId {
        self.open[usize::from(index) % MOST_PORTS]
    }

    /// Who gets a frame that is flooded from `from` to everybody.
    pub fn flood(&self, from: PortId) -> [&[PortId]; 3] {
        self.reached(Flood::new(from, Audience::All))
    }

    #[inline]
    pub(super) fn compiled_carrier(&self, id: PortId) -> Option<&Carrier> {
        self.carriers.get(id)
    }

    /// The carrier of this name, if there still is one.
    pub fn carrier(&self, id: PortId) -> Option<&CarrierRules> {
        self.carriers.get(id).map(|carrier| &carrier.rules)
    }

    /// Whether this is an uplink: a carrier that leads outside.
    pub fn is_uplink(&self, id: PortId) -> bool {
        self.carriers.get(id).is_some_and(Carrier::is_uplink)
    }

    /// All carriers.
    pub fn carriers(&self) -> impl Iterator<Item = &CarrierRules> {
        self.carriers.iter().map(|carrier| &carrier.rules)
    }

    /// The port of this name, if frames may leave for it; or why they may not.
    pub fn way_out(&self, id: PortId) -> Result<&PortRules, DropReason> {
        let port = self.way_out_of_probes(id)?;
        if port.held { Err(DropReason::Quarantined) } else { Ok(port) }
    }

    /// The same for loop probes: a port in quarantine is no obstacle.
    pub fn way_out_of_probes(&self, id: PortId) -> Result<&PortRules, DropReason> {
        let port = self.port(id).ok_or(DropReason::PortClosed)?;
        if !port.admin_up {
            return Err(DropReason::AdminDown);
        }
        match port.reach {
            Reach::Own => {}
            Reach::Carried { carrier, .. } => self.carriers.get(carrier).ok_or(DropReason::PortClosed)?.is_open()?,
        }
        Ok(port)
    }

    /// The name under which the frames of a port are counted: of an uplink's, that of its carrier.
    #[inline]
    pub fn counted_at(&self, id: PortId) -> PortId {
        match self.port(id).map(|port| (port.role, port.reach)) {
            Some((Role::Uplink, Reach::Carried { carrier, .. })) => carrier,
            _ => id,
        }
    }

    /// How many subports there are.
    pub fn branches(&self) -> usize {
        usize::from(self.branches)
    }

    /// The number of a port among all subports, if it is one: below [`branches`](Rules::branches).
    pub fn branch(&self, id: PortId) -> Option<usize> {
        self.compiled(id)?.branch.map(usize::from)
    }

    /// Whether there is such a port.
    #[inline(always)]
    pub(super) fn is_open(&self, id: PortId) -> bool {
        self.open[id.index() % MOST_PORTS] == id
    }

    /// The ports that there are, by [`PortId::index`], others [`PortId::NONE`].
    #[inline(always)]
    pub(super) fn open(&self) -> &[PortId; MOST_PORTS] {
        &self.open
    }

    /// The hash under which a station is filed, among pins and among learned stations.
    #[inline(always)]
    pub(super) fn hash(&self, station: Station) -> u64 {
        self.secret.hash(station)
    }

    /// The key under which the switch tags its announcements.
    pub(super) fn announcements(&self) -> &AnnouncementKey {
        self.secret.announcements()
    }

    #[inline]
    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The pinned stations and their ports, without those that are frozen.
    pub fn pinned(&self) -> impl Iterator<Item = (Station, PortId)> {
        self.pins.iter().filter(|(_, pin)| !pin.is_frozen).map(|(station, pin)| (station, pin.port))
    }

    /// The frozen stations and their ports.
    pub fn frozen(&self) -> impl Iterator<Item = (Station, PortId)> {
        self.pins.iter().filter(|(_, pin)| pin.is_frozen).map(|(station, pin)| (station, pin.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Vid;

    fn network(index: u16) -> NetworkRules {
        NetworkRules {
            id: NetworkId::new(index),
            mtu: 1500,
            ageing: 300,
            limits: Limits::default(),
            guard: true,
            reserved: ReservedMask::VM_DEFAULT,
        }
    }

    fn port(index: u16, network: u16, owner: u32, also: &[u64]) -> PortRules {
        let mac = Mac::from_bits(0x0200_0000_0000 + u64::from(index));
        PortRules {
            security: Security::Mac(also.iter().map(|&bits| Mac::from_bits(bits)).collect()),
            worker: Some(0),
            ..PortRules::vif(PortId::new(index, 0), NetworkId::new(network), Owner(owner), mac)
        }
    }

    /// An uplink's port, carried by port 20 under its own number.
    fn uplink(index: u16, network: u16) -> PortRules {
        let (id, network) = (PortId::new(index, 0), NetworkId::new(network));
        PortRules { worker: Some(0), ..PortRules::uplink(id, network, Owner(0), PortId::new(20, 0), Vid::new(index)) }
    }

    fn carrier(id: u16, ports: &[PortRules]) -> CarrierRules {
        let ports = ports.iter().map(|port| match port.reach {
            Reach::Carried { vlan, .. } => (vlan, port.id),
            Reach::Own => (None, port.id),
        });
        CarrierRules { id: PortId::new(id, 0), admin_up: true, worker: Some(0), standby: false, ports: ports.collect() }
    }

    fn secret() -> Secret {
        Secret::new([3; 16])
    }

    #[test]
    fn a_flood_leaves_out_only_its_source() {
        let ports = vec![port(0, 0, 1, &[]), port(1, 0, 2, &[]), port(2, 0, 1, &[]), port(3, 1, 1, &[])];
        let rules = Rules::compile(secret(), vec![network(0), network(1)], ports, Vec::new());
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
        let rules = Rules::compile(secret(), vec![network(0)], vec![port(0, 0, 1, &[]), down, gone], Vec::new());
        assert_eq!(rules.flood(PortId::new(0, 0)).concat(), []);
        assert_eq!(rules.flood(PortId::new(2, 0)).concat(), [PortId::new(0, 0)], "its last frames still go out");
    }

    #[test]
    fn a_shared_address_is_pinned_to_nobody() {
        let vrrp = 0x0000_5e00_0101;
        let own = 0x0200_0000_9999;
        let ports = vec![port(0, 0, 1, &[vrrp, own]), port(1, 0, 2, &[vrrp]), port(2, 1, 3, &[vrrp])];
        let rules = Rules::compile(secret(), vec![network(0), network(1)], ports, Vec::new());
        let find = |net, bits| {
            let station = Station::new(NetworkId::new(net), Mac::from_bits(bits));
            rules.pins().find(station, rules.hash(station)).map(|pin| pin.port.index())
        };
        assert_eq!(find(0, vrrp), None);
        assert_eq!(find(1, vrrp), Some(2));
        assert_eq!(find(0, own), Some(0));
        assert_eq!(find(0, 0x0200_0000_0001), Some(1));
        assert_eq!(find(1, 0x0200_0000_0001), None);
        assert_eq!(rules.pinned().count(), 5);
    }

    /// Whom a flood reaches, by number, in order.
    fn reached(rules: &Rules, from: u16, inside: bool) -> Vec<usize> {
        let to = if inside { Audience::Inside } else { Audience::All };
        let reached = rules.reached(Flood::new(PortId::new(from, 0), to));
        let mut reached: Vec<usize> = reached.concat().iter().map(|id| id.index()).collect();
        reached.sort_unstable();
        reached
    }

    #[test]
    fn floods_leave_by_all_uplinks_and_come_in_past_them() {
        let other = PortRules { reach: Reach::Carried { carrier: PortId::new(21, 0), vlan: None }, ..uplink(6, 0) };
        let ports = vec![uplink(5, 0), port(0, 0, 1, &[]), other.clone(), uplink(7, 1), port(1, 0, 0, &[])];
        let networks = vec![network(0), network(1)];
        let carriers = vec![carrier(20, &[ports[0].clone(), ports[3].clone()]), carrier(21, &[other])];
        let rules = Rules::compile(secret(), networks.clone(), ports.clone(), carriers.clone());
        assert_eq!(reached(&rules, 0, false), [1, 5, 6]);
        assert_eq!(reached(&rules, 0, true), [1]);
        for from in [5, 6] {
            assert_eq!((reached(&rules, from, false), reached(&rules, from, true)), (vec![0, 1], vec![0, 1]));
        }
        assert!(reached(&rules, 7, false).is_empty());
        assert_eq!(rules.pinned().count(), 2, "an uplink has no address");
        assert_eq!(rules.counted_at(PortId::new(6, 0)), PortId::new(21, 0));
        assert_eq!(rules.counted_at(PortId::new(0, 0)), PortId::new(0, 0));
        // One that is not to send gets nothing, and its last frames are not sent to other uplinks.
        for change in
            [|carrier: &mut CarrierRules| carrier.standby = true, |carrier: &mut CarrierRules| carrier.admin_up = false]
        {
            let mut carriers = carriers.clone();
            change(&mut carriers[0]);
            let rules = Rules::compile(secret(), networks.clone(), ports.clone(), carriers);
            assert_eq!(reached(&rules, 0, false), [1, 6]);
            assert_eq!(reached(&rules, 5, false), [0, 1]);
        }
    }

    #[test]
    fn the_guard_is_not_for_uplinks() {
        let ports = vec![port(0, 0, 1, &[]), uplink(5, 0)];
        let carriers = vec![carrier(20, &ports[1..])];
        let rules = Rules::compile(secret(), vec![network(0)], ports, carriers);
        let guard = |index| rules.compiled(PortId::new(index, 0)).unwrap().guard;
        assert!(guard(0) && !guard(5));
    }
}
