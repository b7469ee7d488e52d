//! Forwarding configuration, compiled: everything that forwarding needs to know about ports and networks, in lookup
//! form. Immutable; a change is a new configuration, shared by all workers.
//!
//! *Flood lists.* The ports of a network are in one list: siblings (the ports of one VM) adjacent, uplinks last.
//! Each port has a range of the list to which it must not flood: at first only itself; for an uplink, all uplinks.
//! A flood is therefore two slices, and the loop over them checks no policy. Networks on which some ports do not
//! get every frame have further lists.
//!
//! *Pins.* A port's address is pinned to it, and so are allowed addresses that no other port of the network shares.
//! A port that is administratively down or inactive pins nothing: see [`activation`](super::activation). Pinned
//! stations are not learned; traffic can neither move nor evict them. The FDB has copies of them, so that one
//! lookup finds both kinds. Temporary pins are *dampened* stations.
//!
//! *Loop and storm mitigation* uses the same means. A quarantined port is in no flood list and has no egress. A
//! port with sibling split horizon excludes the range of all its siblings. Only the first check of a received frame
//! is specific to quarantine.

use super::flood_list::FloodList;
use super::pinned::PinnedStations;
use super::port::Port;
use super::security::Bindings;
use super::trunk::{Trunk, TrunkConfig, Trunks};
use super::{
    Attachment, DropReason, Flood, FloodScope, HashKey, MAX_NETWORKS, MAX_PORTS, NetworkConfig, NetworkId, PortConfig,
    PortId, Role, Security, Station, VmId,
};
use crate::wire::{AnnouncementKey, HEADER_LEN, Mac};

#[derive(Debug)]
struct Network {
    config: NetworkConfig,
    members: FloodList,
    /// Ports that get unknown unicast, if not all do.
    flood_unknown: FloodList,
    /// Ports that get no unknown unicast.
    no_flood_unknown: FloodList,
    /// Promiscuous ports.
    mirrors: FloodList,
}

impl Network {
    /// Compiles the network of these ports, uplinks last.
    fn new(config: NetworkConfig, ports: &[&PortConfig]) -> Network {
        let those = |which: fn(&PortConfig) -> bool| {
            let vm = |port: &PortConfig| (!port.is_uplink()).then_some(port.vm);
            FloodList::new(ports.iter().filter(|port| which(port)).map(|port| (port.id, vm(port))))
        };
        Network {
            config,
            members: those(|_| true),
            flood_unknown: those(|port| !port.no_flood_unknown()),
            no_flood_unknown: those(PortConfig::no_flood_unknown),
            mirrors: those(|port| port.promiscuous),
        }
    }
}

/// Compiled forwarding state of the switch.
#[derive(Debug)]
pub struct ForwardingConfig {
    hash_key: HashKey,
    ports: Box<[Option<Port>]>,
    /// By [`PortId::index`]: the port with this index. A dense array, because most lookups read it.
    open: Box<[PortId; MAX_PORTS]>,
    networks: Box<[Option<Network>]>,
    pins: PinnedStations,
    trunks: Trunks,
    subports: u16,
    boot_millis: u64,
}

impl ForwardingConfig {
    /// Compiles the configuration.
    ///
    /// # Panics
    ///
    /// If a port names a missing network or trunk, two items have one index, a trunk names a port that it cannot
    /// carry, or an uplink is on no trunk: validation has rejected such configurations before.
    pub fn compile(
        hash_key: HashKey,
        networks: Vec<NetworkConfig>,
        mut ports: Vec<PortConfig>,
        trunks: Vec<TrunkConfig>,
    ) -> ForwardingConfig {
        // Uplinks last, siblings adjacent; the sort is stable and keeps the given order within.
        ports.sort_by_cached_key(|port| (port.network.index(), port.role, port.vm));
        let trunks = Trunks::new(trunks, &ports);
        let (pins, mut unpinned) =
            PinnedStations::new(hash_key, &ports, |port| port.admin_up && trunks.is_admin_up(port));

        let is_member = |port: &&PortConfig| port.is_open() && port.worker.is_some() && trunks.allows_egress(port);
        let mut of_networks: [&[PortConfig]; MAX_NETWORKS] = [&[]; MAX_NETWORKS];
        for ports in ports.chunk_by(|a, b| a.network == b.network) {
            of_networks[ports[0].network.index()] = ports;
        }
        let mut table: Vec<Option<Network>> = Vec::new();
        for config in networks {
            let place = config.id.index();
            table.resize_with(table.len().max(place + 1), || None);
            assert!(table[place].is_none(), "two networks at one place");
            let members: Vec<_> = of_networks[place].iter().filter(is_member).collect();
            table[place] = Some(Network::new(config, &members));
        }

        let mut of_vms: Vec<(VmId, Mac)> =
            ports.iter().filter(|port| !port.is_uplink()).map(|port| (port.vm, port.mac)).collect();
        of_vms.sort_unstable();
        let macs_of = |vm: VmId| {
            let begin = of_vms.partition_point(|&(of, _)| of < vm);
            let len = of_vms[begin..].partition_point(|&(of, _)| of == vm);
            of_vms[begin..begin + len].iter().map(|&(_, mac)| mac)
        };

        let size = ports.iter().map(|port| port.id.index() + 1).max().unwrap_or(0);
        let mut compiled_port: Vec<Option<Port>> = Vec::with_capacity(size);
        compiled_port.resize_with(size, || None);
        let mut subports = 0;
        let mut open = vec![PortId::NONE; MAX_PORTS];
        for config in ports {
            let network = table.get(config.network.index()).and_then(Option::as_ref).expect("its network is there");
            let skip = |members: &FloodList| match config.role {
                Role::Vif if config.sibling_split_horizon => members.siblings(config.vm),
                Role::Vif => members.range(config.id),
                Role::Uplink => members.uplinks(),
            };
            let (skip, skip_unknown, skip_mirror) =
                (skip(&network.members), skip(&network.flood_unknown), skip(&network.mirrors));
            #[allow(clippy::cast_possible_truncation)] // 14
            let max_len = u32::from(network.config.mtu) + HEADER_LEN as u32;
            let place = config.id.index();
            assert!(
                compiled_port[place].is_none() && !trunks.has_other_at(place, config.own_trunk()),
                "two ports at one place"
            );
            let own = Station::new(config.network, config.mac);
            let is_pinned = pins.find(own, hash_key.hash(own)).is_some_and(|pin| pin.port == config.id);
            let has_source_policy = config.security != Security::Off;
            let mut unpinned = unpinned.remove(&config.id).unwrap_or_default();
            unpinned.sort_unstable();
            let mut allowed: Vec<Mac> = config.security.macs().collect();
            allowed.sort_unstable();
            // Where port security fixes the sources, no MAC limit is needed.
            let mac_limit = config.mac_limit.filter(|_| !has_source_policy && !config.is_uplink());
            let mut limits = network.config.limits;
            if let Some(limit) = mac_limit {
                // An own address that is not pinned is learned as well, and does not count.
                limits.port = limits.port.min(limit.stations.saturating_add(u32::from(!is_pinned)));
            }
            open[place] = config.id;
            compiled_port[place] = Some(Port {
                is_open: config.is_open(),
                pinned: if is_pinned { own } else { Station::new(config.network, Mac::ZERO) },
                has_source_policy,
                checks_source: has_source_policy || !unpinned.is_empty() || !(config.pins || config.is_uplink()),
                unpinned: unpinned.into(),
                allowed: allowed.into(),
                sibling_macs: if has_source_policy { macs_of(config.vm).collect() } else { [].into() },
                bindings: match &config.security {
                    Security::MacIp(bindings) => Some(Bindings::new(config.mac, bindings)),
                    Security::Off | Security::Mac(_) => None,
                },
                limits_unknown: !network.no_flood_unknown.is_empty(),
                is_mirrored: network.mirrors.all().iter().any(|&watcher| watcher != config.id),
                mac_limit,
                is_policed: !config.storm.limits.is_off()
                    || config.vm_policer.as_ref().is_some_and(|vm_policer| !vm_policer.is_off()),
                anti_spoof: network.config.anti_spoof && !config.is_uplink(),
                subport_index: config.is_subport().then(|| {
                    subports += 1;
                    subports - 1
                }),
                reserved: network.config.reserved,
                config,
                skip,
                skip_unknown,
                skip_mirror,
                max_len,
                limits,
                ageing: network.config.ageing,
            });
        }
        let open = open.into_boxed_slice().try_into().expect("it is as long as it was made");
        let (ports, networks) = (compiled_port.into(), table.into());
        ForwardingConfig { hash_key, ports, open, networks, pins, trunks, subports, boot_millis: 0 }
    }

    /// An empty configuration: no port, no network.
    pub fn none(hash_key: HashKey) -> ForwardingConfig {
        ForwardingConfig::compile(hash_key, Vec::new(), Vec::new(), Vec::new())
    }

    /// Sets the wall clock, by which the age of other hosts' loop probes is bounded.
    pub fn set_boot_millis(&mut self, boot_millis: u64) {
        self.boot_millis = boot_millis;
    }

    /// When the host booted, in milliseconds since 1970; 0 if unknown.
    pub fn boot_millis(&self) -> u64 {
        self.boot_millis
    }

    /// Dampens each station at a port, in addition to those already dampened: it stays at that port whatever
    /// traffic says, and other ports drop its frames. Skips stations that are pinned to another port, and closed
    /// ports.
    pub fn dampen(&mut self, stations: impl Iterator<Item = (Station, PortId)>) {
        let stations: Vec<_> = stations.filter(|&(_, port)| self.is_open(port)).collect();
        if !stations.is_empty() {
            self.pins = self.pins.with_dampened(stations.into_iter());
        }
    }

    #[inline]
    pub(super) fn compiled_port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.index())?.as_ref().filter(|port| port.config.id == id)
    }

    /// The port with this id, if it exists.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&PortConfig> {
        self.compiled_port(id).map(|port| &port.config)
    }

    /// All ports.
    pub fn ports(&self) -> impl Iterator<Item = &PortConfig> {
        self.ports.iter().flatten().map(|port| &port.config)
    }

    /// The network with this id.
    pub fn network(&self, id: NetworkId) -> Option<&NetworkConfig> {
        self.networks.get(id.index())?.as_ref().map(|network| &network.config)
    }

    fn network_of(&self, port: &Port) -> Option<&Network> {
        self.networks.get(port.config.network.index())?.as_ref()
    }

    /// The ports that a flood reaches: three slices.
    #[inline]
    pub fn flood_ports(&self, flood: Flood) -> [&[PortId]; 3] {
        let Some(port) = self.compiled_port(flood.from) else { return [&[]; 3] };
        let Some(network) = self.network_of(port) else { return [&[]; 3] };
        let [before, after] = match flood.scope {
            FloodScope::All => network.members.except(port.skip),
            FloodScope::NoUplinks => network.members.vifs(port.skip),
            FloodScope::BridgeGroup => network.members.vifs(network.members.range(flood.from)),
            FloodScope::Unknown => network.flood_unknown.except(port.skip_unknown),
            FloodScope::Mirrors => return network.mirrors.except_also(port.skip_mirror, flood.except),
        };
        [before, after, &[]]
    }

    /// The ports that a flood skips only because they get no unknown unicast: two slices.
    pub fn not_flooded_ports(&self, flood: Flood) -> [&[PortId]; 2] {
        let Some(port) = self.compiled_port(flood.from) else { return [&[]; 2] };
        match self.network_of(port) {
            Some(network) if flood.scope == FloodScope::Unknown => {
                network.no_flood_unknown.except(if port.config.sibling_split_horizon {
                    network.no_flood_unknown.siblings(port.config.vm)
                } else {
                    network.no_flood_unknown.range(flood.from)
                })
            }
            _ => [&[]; 2],
        }
    }

    /// The port at an index of a verdict decided under this configuration; [`PortId::NONE`] if there is none.
    #[inline]
    pub(crate) fn port_at(&self, index: u16) -> PortId {
        self.open[usize::from(index) % MAX_PORTS]
    }

    /// The ports that a broadcast from `from` reaches.
    pub fn flood(&self, from: PortId) -> [&[PortId]; 3] {
        self.flood_ports(Flood::new(from, FloodScope::All))
    }

    #[inline]
    pub(super) fn compiled_trunk(&self, id: PortId) -> Option<&Trunk> {
        self.trunks.get(id)
    }

    /// The trunk with this id, if it exists.
    pub fn trunk(&self, id: PortId) -> Option<&TrunkConfig> {
        self.trunks.get(id).map(|trunk| &trunk.config)
    }

    /// Whether this is a trunk of uplinks.
    pub fn is_uplink(&self, id: PortId) -> bool {
        self.trunks.get(id).is_some_and(Trunk::is_uplink)
    }

    /// All trunks.
    pub fn trunks(&self) -> impl Iterator<Item = &TrunkConfig> {
        self.trunks.iter().map(|trunk| &trunk.config)
    }

    /// The port with this id if it allows egress, else the drop reason.
    pub fn egress(&self, id: PortId) -> Result<&PortConfig, DropReason> {
        let port = self.probe_egress(id)?;
        if port.quarantined { Err(DropReason::Quarantined) } else { Ok(port) }
    }

    /// The same for loop probes, which quarantine does not block.
    pub fn probe_egress(&self, id: PortId) -> Result<&PortConfig, DropReason> {
        let port = self.port(id).ok_or(DropReason::PortClosed)?;
        if !port.admin_up {
            return Err(DropReason::AdminDown);
        }
        match port.attachment {
            Attachment::Own => {}
            Attachment::Tagged { trunk, .. } => self.trunks.get(trunk).ok_or(DropReason::PortClosed)?.is_open()?,
        }
        Ok(port)
    }

    /// The port at which frames of a port are counted: for an uplink, its trunk.
    #[inline]
    pub fn counting_port(&self, id: PortId) -> PortId {
        match self.port(id).map(|port| (port.role, port.attachment)) {
            Some((Role::Uplink, Attachment::Tagged { trunk, .. })) => trunk,
            _ => id,
        }
    }

    /// Number of subports.
    pub fn subports(&self) -> usize {
        usize::from(self.subports)
    }

    /// Index of a port among all subports, if it is one: less than [`subports`](ForwardingConfig::subports).
    pub fn subport_index(&self, id: PortId) -> Option<usize> {
        self.compiled_port(id)?.subport_index.map(usize::from)
    }

    /// Whether this port exists.
    #[inline(always)]
    pub(super) fn is_open(&self, id: PortId) -> bool {
        self.open[id.index() % MAX_PORTS] == id
    }

    /// The existing ports by [`PortId::index`], [`PortId::NONE`] elsewhere.
    #[inline(always)]
    pub(super) fn open(&self) -> &[PortId; MAX_PORTS] {
        &self.open
    }

    /// Hash of a station, for pins and FDB.
    #[inline(always)]
    pub(super) fn hash(&self, station: Station) -> u64 {
        self.hash_key.hash(station)
    }

    /// Key that authenticates the switch's announcements.
    pub(super) fn announcements(&self) -> &AnnouncementKey {
        self.hash_key.announcements()
    }

    #[inline]
    pub(super) fn pins(&self) -> &PinnedStations {
        &self.pins
    }

    /// Pinned stations with their ports, without dampened ones.
    pub fn pinned(&self) -> impl Iterator<Item = (Station, PortId)> {
        self.pins.iter().filter(|(_, pin)| !pin.is_dampened).map(|(station, pin)| (station, pin.port))
    }

    /// Dampened stations with their ports.
    pub fn dampened(&self) -> impl Iterator<Item = (Station, PortId)> {
        self.pins.iter().filter(|(_, pin)| pin.is_dampened).map(|(station, pin)| (station, pin.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::{Limits, ReservedMask};
    use crate::wire::Vid;

    fn network(index: u16) -> NetworkConfig {
        NetworkConfig {
            id: NetworkId::new(index),
            mtu: 1500,
            ageing: 300,
            limits: Limits::default(),
            anti_spoof: true,
            reserved: ReservedMask::VM_DEFAULT,
        }
    }

    fn port(index: u16, network: u16, vm: u32, also: &[u64]) -> PortConfig {
        let mac = Mac::from_bits(0x0200_0000_0000 + u64::from(index));
        PortConfig {
            security: Security::Mac(also.iter().map(|&bits| Mac::from_bits(bits)).collect()),
            worker: Some(0),
            ..PortConfig::vif(PortId::new(index, 0), NetworkId::new(network), VmId(vm), mac)
        }
    }

    /// An uplink's port at the trunk port 20, with its own number.
    fn uplink(index: u16, network: u16) -> PortConfig {
        let (id, network) = (PortId::new(index, 0), NetworkId::new(network));
        PortConfig { worker: Some(0), ..PortConfig::uplink(id, network, VmId(0), PortId::new(20, 0), Vid::new(index)) }
    }

    fn trunk(id: u16, ports: &[PortConfig]) -> TrunkConfig {
        let ports = ports.iter().map(|port| match port.attachment {
            Attachment::Tagged { vlan, .. } => (vlan, port.id),
            Attachment::Own => (None, port.id),
        });
        TrunkConfig { id: PortId::new(id, 0), admin_up: true, worker: Some(0), backup: false, ports: ports.collect() }
    }

    fn hash_key() -> HashKey {
        HashKey::new([3; 16])
    }

    /// Addresses of siblings are those of the ports of the own VM, on any network, and of no other one.
    #[test]
    fn siblings_are_the_ports_of_one_vm() {
        let vms = [7, 5, 6, 5, 7, 6, 5];
        let ports: Vec<_> = (0..).zip(vms).map(|(index, vm)| port(index, index % 2, vm, &[])).collect();
        let uplink = uplink(10, 0);
        let trunk = trunk(20, std::slice::from_ref(&uplink));
        let all = ports.iter().cloned().chain([uplink]).collect();
        let forwarding = ForwardingConfig::compile(hash_key(), vec![network(0), network(1)], all, vec![trunk]);
        for of in &ports {
            let compiled = forwarding.compiled_port(of.id).unwrap();
            for other in &ports {
                assert_eq!(compiled.is_of_sibling(other.mac), other.vm == of.vm, "{:?} at {:?}", other.mac, of.id);
            }
            assert!(!compiled.is_of_sibling(Mac::ZERO), "uplinks belong to no VM");
        }
    }

    #[test]
    fn a_flood_excludes_only_its_source() {
        let ports = vec![port(0, 0, 1, &[]), port(1, 0, 2, &[]), port(2, 0, 1, &[]), port(3, 1, 1, &[])];
        let config = ForwardingConfig::compile(hash_key(), vec![network(0), network(1)], ports, Vec::new());
        let mut reached: Vec<usize> = config.flood(PortId::new(2, 0)).concat().iter().map(|id| id.index()).collect();
        reached.sort_unstable();
        assert_eq!(reached, [0, 1]);
        assert_eq!(config.flood(PortId::new(3, 0)).concat(), []);
        assert_eq!(config.flood(PortId::new(9, 0)).concat(), []);
        assert_eq!(config.flood(PortId::new(2, 1)).concat(), [], "another generation is another port");
    }

    #[test]
    fn ports_that_cannot_send_are_not_flooded_to() {
        let mut down = port(1, 0, 2, &[]);
        down.admin_up = false;
        let mut gone = port(2, 0, 3, &[]);
        gone.worker = None;
        let config =
            ForwardingConfig::compile(hash_key(), vec![network(0)], vec![port(0, 0, 1, &[]), down, gone], Vec::new());
        assert_eq!(config.flood(PortId::new(0, 0)).concat(), []);
        assert_eq!(config.flood(PortId::new(2, 0)).concat(), [PortId::new(0, 0)], "its last frames still go out");
    }

    #[test]
    fn a_shared_address_is_not_pinned() {
        let vrrp = 0x0000_5e00_0101;
        let own = 0x0200_0000_9999;
        let ports = vec![port(0, 0, 1, &[vrrp, own]), port(1, 0, 2, &[vrrp]), port(2, 1, 3, &[vrrp])];
        let config = ForwardingConfig::compile(hash_key(), vec![network(0), network(1)], ports, Vec::new());
        let find = |net, bits| {
            let station = Station::new(NetworkId::new(net), Mac::from_bits(bits));
            config.pins().find(station, config.hash(station)).map(|pin| pin.port.index())
        };
        assert_eq!(find(0, vrrp), None);
        assert_eq!(find(1, vrrp), Some(2));
        assert_eq!(find(0, own), Some(0));
        assert_eq!(find(0, 0x0200_0000_0001), Some(1));
        assert_eq!(find(1, 0x0200_0000_0001), None);
        assert_eq!(config.pinned().count(), 5);
    }

    /// Ports that a flood reaches, by number, in order.
    fn reached(config: &ForwardingConfig, from: u16, inside: bool) -> Vec<usize> {
        let to = if inside { FloodScope::NoUplinks } else { FloodScope::All };
        let reached = config.flood_ports(Flood::new(PortId::new(from, 0), to));
        let mut reached: Vec<usize> = reached.concat().iter().map(|id| id.index()).collect();
        reached.sort_unstable();
        reached
    }

    #[test]
    fn floods_leave_by_all_uplinks_and_never_cross_them() {
        let other =
            PortConfig { attachment: Attachment::Tagged { trunk: PortId::new(21, 0), vlan: None }, ..uplink(6, 0) };
        let ports = vec![uplink(5, 0), port(0, 0, 1, &[]), other.clone(), uplink(7, 1), port(1, 0, 0, &[])];
        let networks = vec![network(0), network(1)];
        let trunks = vec![trunk(20, &[ports[0].clone(), ports[3].clone()]), trunk(21, &[other])];
        let config = ForwardingConfig::compile(hash_key(), networks.clone(), ports.clone(), trunks.clone());
        assert_eq!(reached(&config, 0, false), [1, 5, 6]);
        assert_eq!(reached(&config, 0, true), [1]);
        for from in [5, 6] {
            assert_eq!((reached(&config, from, false), reached(&config, from, true)), (vec![0, 1], vec![0, 1]));
        }
        assert!(reached(&config, 7, false).is_empty());
        assert_eq!(config.pinned().count(), 2, "an uplink has no address");
        assert_eq!(config.counting_port(PortId::new(6, 0)), PortId::new(21, 0));
        assert_eq!(config.counting_port(PortId::new(0, 0)), PortId::new(0, 0));
        // An uplink that must not send receives no flood, and its last frames are not sent to other uplinks.
        for change in [|trunk: &mut TrunkConfig| trunk.backup = true, |trunk: &mut TrunkConfig| trunk.admin_up = false]
        {
            let mut trunks = trunks.clone();
            change(&mut trunks[0]);
            let config = ForwardingConfig::compile(hash_key(), networks.clone(), ports.clone(), trunks);
            assert_eq!(reached(&config, 0, false), [1, 6]);
            assert_eq!(reached(&config, 5, false), [0, 1]);
        }
    }

    #[test]
    fn anti_spoofing_does_not_apply_to_uplinks() {
        let ports = vec![port(0, 0, 1, &[]), uplink(5, 0)];
        let trunks = vec![trunk(20, &ports[1..])];
        let config = ForwardingConfig::compile(hash_key(), vec![network(0)], ports, trunks);
        let anti_spoof = |index| config.compiled_port(PortId::new(index, 0)).unwrap().anti_spoof;
        assert!(anti_spoof(0) && !anti_spoof(5));
    }
}
