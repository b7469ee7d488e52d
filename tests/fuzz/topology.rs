//! Random topology: ports, trunks and uplinks with random policies. Kept twice: as configuration of the switch, and
//! in a simple form for the oracle.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use vifswitch::device::loopback::{LoopbackCapacity, RxMemory};
use vifswitch::switch::{
    AtLimit, Binding, ClassLimit, MacLimit, PortId, PortPolicer, Rate, ReservedMask, Security, StormClass, StormLimits,
    VmPolicer,
};
use vifswitch::wire::{Mac, Prefix};

use crate::rng::Rng;
use support::lab::{Lab, PortSpec, Setup, UplinkSpec, mac, uplink_port};

pub type Address = [u8; 6];

/// An allowed MAC address, and the IP prefix bound to it, if any.
pub type Bound = (Address, Option<(IpAddr, u8)>);

#[derive(Debug, Clone, PartialEq)]
pub enum SecurityMode {
    Off,
    Mac(Vec<Address>),
    MacIp(Vec<Bound>),
}

/// A port as the oracle sees it.
#[derive(Debug, Clone)]
pub struct PortModel {
    pub id: PortId,
    pub network: usize,
    pub owner: usize,
    pub uplink: bool,
    /// Its device, and its tag there.
    pub base: usize,
    pub vid: u16,
    pub mac: Address,
    pub up: bool,
    /// Quarantined.
    pub quarantined: bool,
    pub guarding: SecurityMode,
    pub suppress: bool,
    pub promiscuous: bool,
    /// MAC limit, and whether frames beyond it are dropped.
    pub limit: Option<(usize, bool)>,
    /// Flooded frames at once by class: broadcast, multicast, unknown unicast.
    pub storm: Option<[u64; 3]>,
}

#[derive(Debug, Clone)]
pub struct NetworkModel {
    pub mtu: usize,
    pub anti_spoof: bool,
    pub mask: u16,
}

/// A device.
#[derive(Debug, Clone)]
pub struct CableModel {
    pub offloads: bool,
    pub lent: bool,
    pub trunk: bool,
    pub is_backup: bool,
}

pub struct Topology {
    pub nets: Vec<NetworkModel>,
    pub places: Vec<PortModel>,
    pub bases: Vec<CableModel>,
    pub workers: u16,
    vifs: usize,
    trunks: Vec<Option<(usize, u16)>>,
    uplink_specs: Vec<UplinkSpec>,
    /// By owner and network: flooded frames at once, and their policers.
    pub vms: Vec<(Option<[u64; 3]>, VmPolicer)>,
}

const NETS: usize = 3;
const OWNERS: usize = 5;

/// Storm limits with these bursts, at rates that refill little between two bursts of a test.
fn storm_limits(storm: Option<[u64; 3]>) -> Arc<StormLimits> {
    let Some(bursts) = storm else { return StormLimits::OFF.into() };
    let with = |limits: StormLimits, (class, burst)| {
        limits.with(class, Some(ClassLimit::frames(Rate::new(50 * burst, burst))))
    };
    StormClass::ALL.into_iter().zip(bursts).fold(StormLimits::OFF, with).into()
}

/// Addresses that are no port's own and that many use.
pub fn wild(number: usize) -> Address {
    [0x0a, 0, 0, 0, 0, number as u8]
}

/// Addresses that only guests behind this port use.
pub fn private(place: usize, number: usize) -> Address {
    [0x0e, place as u8, 0, 0, 0, number as u8]
}

pub fn v4(number: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number as u8).into()
}

pub fn v6(number: usize) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number as u16).into()
}

impl Topology {
    /// Topology of a world: some properties alternate between worlds.
    pub fn new(rng: &mut Rng, world: u64) -> Topology {
        let vifs = rng.within(6, 14);
        let mut trunks = vec![None; vifs];
        let parents = rng.within(0, 2);
        let mut at = parents;
        for parent in 0..parents {
            for vid in [101, 5, 4094].into_iter().take(rng.within(1, 2)) {
                trunks[at] = Some((parent, vid));
                at += 1;
            }
        }
        let one = UplinkSpec::new(&[(0, 0), (120, 1), (5, 2)]);
        let uplink_specs = match world % 4 {
            0 => vec![one, UplinkSpec::new(&[(7, 0), (101, 1)])],
            1 => vec![one.clone(), UplinkSpec { backup_of: Some(0), ..one }],
            2 => vec![one],
            _ => vec![],
        };
        let owners: Vec<_> = (0..vifs).map(|_| rng.below(OWNERS)).collect();
        let mut places: Vec<PortModel> = (0..vifs)
            .map(|index| {
                let base = trunks[index].map_or(index, |(parent, _)| parent);
                let limited = rng.percent(15);
                PortModel {
                    id: PortId::new(index as u16, 0),
                    network: rng.below(NETS),
                    owner: owners[base],
                    uplink: false,
                    base,
                    vid: trunks[index].map_or(0, |(_, vid)| vid),
                    mac: mac(index).octets(),
                    up: true,
                    quarantined: false,
                    guarding: SecurityMode::Off,
                    suppress: false,
                    promiscuous: false,
                    limit: limited.then(|| (rng.within(1, 10), rng.percent(50))),
                    storm: None,
                }
            })
            .collect();
        for (number, uplink) in uplink_specs.iter().enumerate().filter(|(_, wire)| wire.backup_of.is_none()) {
            places.extend(uplink.networks.iter().map(|&(vid, network)| PortModel {
                id: uplink_port(number, network),
                network: usize::from(network),
                owner: usize::MAX,
                uplink: true,
                base: vifs + number,
                vid,
                mac: [0; 6],
                up: true,
                quarantined: false,
                guarding: SecurityMode::Off,
                suppress: false,
                promiscuous: false,
                limit: None,
                storm: None,
            }));
        }
        let bases = (0..vifs + uplink_specs.len())
            .map(|base| CableModel {
                offloads: rng.percent(60),
                lent: rng.percent(50),
                trunk: base >= vifs || trunks.iter().flatten().any(|&(parent, _)| parent == base),
                is_backup: base >= vifs && uplink_specs[base - vifs].backup_of.is_some(),
            })
            .collect();
        let nets = vec![NetworkModel { mtu: 1500, anti_spoof: true, mask: 0xfffd }; NETS];
        let vms = (0..OWNERS * NETS).map(|_| (None, VmPolicer::default())).collect();
        Topology { nets, places, bases, workers: 1 + (world % 3) as u16, vifs, trunks, uplink_specs, vms }
    }

    /// A topology of these ports and devices, without a lab.
    #[cfg(test)]
    pub fn of(places: Vec<PortModel>, bases: Vec<CableModel>, nets: Vec<NetworkModel>) -> Topology {
        Topology {
            nets,
            places,
            bases,
            workers: 1,
            vifs: 3,
            trunks: Vec::new(),
            uplink_specs: Vec::new(),
            vms: Vec::new(),
        }
    }

    /// Number of ports of VMs; they come first.
    pub fn vifs(&self) -> usize {
        self.vifs
    }

    /// Randomises everything that may change under traffic.
    pub fn randomize(&mut self, rng: &mut Rng) {
        for net in &mut self.nets {
            net.mtu = rng.pick(&[1500, 1500, 9000, 9216]);
            net.anti_spoof = rng.percent(85);
            let any = rng.bits() as u16;
            net.mask = rng.pick(&[0xfffd, 0xfffd, 0xffff, 0, any]);
        }
        for index in 0..self.vifs {
            let own = self.places[index].mac;
            let guarding = match rng.below(8) {
                _ if self.places[index].limit.is_some() => SecurityMode::Off,
                0 | 1 => SecurityMode::Off,
                2 | 3 => SecurityMode::Mac((0..rng.below(4)).map(|_| self.any_mac(own, rng)).collect()),
                _ => SecurityMode::MacIp((0..rng.below(6)).map(|_| (self.any_mac(own, rng), any_ip(rng))).collect()),
            };
            let place = &mut self.places[index];
            place.guarding = guarding;
            place.up = rng.percent(93);
            place.quarantined = rng.percent(4);
            place.promiscuous = rng.percent(10);
        }
        for index in 0..self.vifs {
            let (network, own) = (self.places[index].network, self.places[index].mac);
            // A configuration that control refuses is not generated.
            let pinned = self.pinned(network, own) == Some(index);
            self.places[index].suppress = pinned && rng.percent(40);
        }
        self.randomize_storms(rng);
    }

    /// Randomises storm limits.
    pub fn randomize_storms(&mut self, rng: &mut Rng) {
        for place in &mut self.places[..self.vifs] {
            place.storm = any_storm(25, rng);
        }
        for (storm, _) in &mut self.vms {
            *storm = any_storm(15, rng);
        }
    }

    fn any_mac(&self, own: Address, rng: &mut Rng) -> Address {
        match rng.below(10) {
            0..5 => own,
            5..8 => wild(rng.below(8)),
            8 => private(rng.below(self.vifs), 0),
            _ => self.places[rng.below(self.vifs)].mac,
        }
    }

    /// The lab of this topology.
    pub fn build(&self) -> Lab {
        let port_specs: Vec<_> = (0..self.vifs)
            .map(|index| {
                let spec = PortSpec::new(self.places[index].network as u16, self.places[index].owner as u32);
                PortSpec { trunk: self.trunks[index], ..spec }
            })
            .collect();
        let loopback = LoopbackCapacity { blocks: 16, block_bytes: 1 << 20 };
        let setup = Setup { workers: self.workers, slots: 8192, capacity: loopback, ..Setup::default() };
        let mut lab = Lab::build(setup, &port_specs, &self.uplink_specs, |index, end| {
            let base = &self.bases[index];
            let memory = if base.lent { RxMemory::Lent } else { RxMemory::Owned };
            Box::new(end.with_memory(memory).with_offloads(base.offloads))
        });
        self.apply(&mut lab);
        lab
    }

    /// Applies the policies.
    pub fn apply(&self, lab: &mut Lab) {
        lab.change_all(|networks, ports, trunks| {
            for (network, net) in networks.iter_mut().zip(&self.nets) {
                (network.mtu, network.anti_spoof, network.reserved) =
                    (net.mtu as u16, net.anti_spoof, ReservedMask(net.mask));
            }
            for config in ports.iter_mut() {
                let place = self.places.iter().find(|place| place.id == config.id).unwrap();
                (config.admin_up, config.quarantined) = (place.up, place.quarantined);
                config.security = place.guarding.to_security();
                (config.unknown_unicast, config.promiscuous) = (!place.suppress, place.promiscuous);
                let shared = self.workers > 1;
                let state = config.storm.state.clone();
                config.storm = PortPolicer { limits: storm_limits(place.storm), shared, state };
                config.vm_policer = self.vm(place).map(|(storm, policer)| VmPolicer {
                    limits: storm_limits(*storm),
                    shared,
                    ..policer.clone()
                });
                config.mac_limit = place.limit.map(|(stations, drop)| MacLimit {
                    stations: stations as u32,
                    policy: if drop { AtLimit::Drop } else { AtLimit::ForwardUnlearned },
                });
            }
            for trunk in trunks {
                let parent = self.places.iter().find(|place| place.id == trunk.id);
                trunk.admin_up = parent.is_none_or(|parent| parent.up);
            }
        });
    }

    /// Whether a port can send and receive.
    pub fn is_up(&self, place: usize) -> bool {
        self.is_enabled(place) && !self.places[place].quarantined
    }

    /// Whether a port could send and receive if it were not quarantined.
    pub fn is_enabled(&self, place: usize) -> bool {
        let PortModel { up, base, .. } = self.places[place];
        up && !self.bases[base].is_backup && (base >= self.vifs || self.places[base].up)
    }

    /// Storm limits of a port's VM on its network.
    pub fn vm(&self, place: &PortModel) -> Option<&(Option<[u64; 3]>, VmPolicer)> {
        self.vms.get(place.owner.checked_mul(NETS)? + place.network)
    }

    /// Port of a tag on a device; 0 is untagged.
    pub fn port_at(&self, base: usize, vid: u16) -> Option<usize> {
        self.places.iter().position(|place| place.base == base && place.vid == vid)
    }

    /// The only port of a network whose own or allowed address this is. Ports that are down pin nothing, nor do
    /// subports of a parent that is down.
    pub fn pinned(&self, network: usize, address: Address) -> Option<usize> {
        let naming = |place: &PortModel| !place.uplink && place.network == network && place.names(address);
        let mut these = (0..self.places.len()).filter(|&index| naming(&self.places[index]));
        let is_wanted = |place: &PortModel| place.up && (place.base >= self.vifs || self.places[place.base].up);
        these.next().filter(|&only| these.next().is_none() && is_wanted(&self.places[only]))
    }
}

/// Storm limits, with this chance in percent.
fn any_storm(chance: usize, rng: &mut Rng) -> Option<[u64; 3]> {
    rng.percent(chance).then(|| [0; 3].map(|_| rng.within(1, 40) as u64))
}

fn any_ip(rng: &mut Rng) -> Option<(IpAddr, u8)> {
    match rng.below(10) {
        0 => None,
        1 => Some((v4(0), 28)),
        2 => Some((v6(0), 124)),
        3 => Some((v4(0), 0)),
        4..7 => Some((v6(rng.below(16)), 128)),
        _ => Some((v4(rng.below(16)), 32)),
    }
}

impl SecurityMode {
    fn to_security(&self) -> Security {
        match self {
            SecurityMode::Off => Security::Off,
            SecurityMode::Mac(also) => Security::Mac(also.iter().map(|&mac| Mac::new(mac)).collect()),
            SecurityMode::MacIp(bound) => {
                let prefix = |(ip, len)| Prefix::new(ip, len).unwrap();
                let binding = |&(mac, ip): &Bound| Binding { mac: Mac::new(mac), ip: ip.map(prefix) };
                Security::MacIp(bound.iter().map(binding).collect())
            }
        }
    }
}

impl PortModel {
    /// Whether an address is the port's own or an allowed one.
    pub fn names(&self, address: Address) -> bool {
        self.mac == address
            || match &self.guarding {
                SecurityMode::Off => false,
                SecurityMode::Mac(also) => also.contains(&address),
                SecurityMode::MacIp(bound) => bound.iter().any(|(mac, _)| *mac == address),
            }
    }
}
