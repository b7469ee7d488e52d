//! A town to send frames through: ports, trunks and uplinks with every policy that there is, thrown by dice. It is
//! written down twice: as rules for the switch, and here, in the simplest form, for whoever judges the switch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vifswitch::device::memory::{Capacity, Memory};
use vifswitch::switch::{AtLimit, Binding, MacLimit, PortId, ReservedMask, Security};
use vifswitch::wire::{Mac, Prefix};

use crate::common::{Lab, Plug, Setup, Wire, mac, uplink_port};
use crate::dice::Dice;

pub type Address = [u8; 6];

/// Who may speak: an address, and the addresses of IP that go with it (the first and how many bits count), if not
/// any.
pub type Bound = (Address, Option<(IpAddr, u8)>);

#[derive(Debug, Clone, PartialEq)]
pub enum Guarding {
    Off,
    Mac(Vec<Address>),
    MacIp(Vec<Bound>),
}

/// A port as the judge sees it.
#[derive(Debug, Clone)]
pub struct Place {
    pub id: PortId,
    pub network: usize,
    pub owner: usize,
    pub uplink: bool,
    /// The cable by which its frames come and go, and the tag that they have there.
    pub base: usize,
    pub vid: u16,
    pub mac: Address,
    pub up: bool,
    /// It is in quarantine.
    pub held: bool,
    pub guarding: Guarding,
    pub suppress: bool,
    pub promiscuous: bool,
    /// How many, and whether the others die.
    pub limit: Option<(usize, bool)>,
}

#[derive(Debug, Clone)]
pub struct Net {
    pub mtu: usize,
    pub guard: bool,
    pub mask: u16,
}

/// A cable.
#[derive(Debug, Clone)]
pub struct Base {
    pub offloads: bool,
    pub lent: bool,
    pub carrier: bool,
    pub standby: bool,
}

pub struct Town {
    pub nets: Vec<Net>,
    pub places: Vec<Place>,
    pub bases: Vec<Base>,
    pub workers: u16,
    vifs: usize,
    trunks: Vec<Option<(usize, u16)>>,
    wires: Vec<Wire>,
}

const NETS: usize = 3;

/// Addresses that no port has of its own, and many use.
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

impl Town {
    /// That of this world: some things all have in turn.
    pub fn new(dice: &mut Dice, world: u64) -> Town {
        let vifs = dice.within(6, 14);
        let mut trunks = vec![None; vifs];
        let parents = dice.within(0, 2);
        let mut at = parents;
        for parent in 0..parents {
            for vid in [101, 5, 4094].into_iter().take(dice.within(1, 2)) {
                trunks[at] = Some((parent, vid));
                at += 1;
            }
        }
        let one = Wire::new(&[(0, 0), (120, 1), (5, 2)]);
        let wires = match world % 4 {
            0 => vec![one, Wire::new(&[(7, 0), (101, 1)])],
            1 => vec![one.clone(), Wire { spare_of: Some(0), ..one }],
            2 => vec![one],
            _ => vec![],
        };
        let owners: Vec<_> = (0..vifs).map(|_| dice.below(5)).collect();
        let mut places: Vec<Place> = (0..vifs)
            .map(|index| {
                let base = trunks[index].map_or(index, |(parent, _)| parent);
                let limited = dice.percent(15);
                Place {
                    id: PortId::new(index as u16, 0),
                    network: dice.below(NETS),
                    owner: owners[base],
                    uplink: false,
                    base,
                    vid: trunks[index].map_or(0, |(_, vid)| vid),
                    mac: mac(index).octets(),
                    up: true,
                    held: false,
                    guarding: Guarding::Off,
                    suppress: false,
                    promiscuous: false,
                    limit: limited.then(|| (dice.within(1, 10), dice.percent(50))),
                }
            })
            .collect();
        for (number, wire) in wires.iter().enumerate().filter(|(_, wire)| wire.spare_of.is_none()) {
            places.extend(wire.networks.iter().map(|&(vid, network)| Place {
                id: uplink_port(number, network),
                network: usize::from(network),
                owner: usize::MAX,
                uplink: true,
                base: vifs + number,
                vid,
                mac: [0; 6],
                up: true,
                held: false,
                guarding: Guarding::Off,
                suppress: false,
                promiscuous: false,
                limit: None,
            }));
        }
        let bases = (0..vifs + wires.len())
            .map(|base| Base {
                offloads: dice.percent(60),
                lent: dice.percent(50),
                carrier: base >= vifs || trunks.iter().flatten().any(|&(parent, _)| parent == base),
                standby: base >= vifs && wires[base - vifs].spare_of.is_some(),
            })
            .collect();
        let nets = vec![Net { mtu: 1500, guard: true, mask: 0xfffd }; NETS];
        Town { nets, places, bases, workers: 1 + (world % 3) as u16, vifs, trunks, wires }
    }

    /// One of these ports and cables, without a laboratory.
    #[cfg(test)]
    pub fn of(places: Vec<Place>, bases: Vec<Base>, nets: Vec<Net>) -> Town {
        Town { nets, places, bases, workers: 1, vifs: 3, trunks: Vec::new(), wires: Vec::new() }
    }

    /// How many ports of VMs there are; they come first.
    pub fn vifs(&self) -> usize {
        self.vifs
    }

    /// Throws all that may change while frames flow.
    pub fn shuffle(&mut self, dice: &mut Dice) {
        for net in &mut self.nets {
            net.mtu = dice.pick(&[1500, 1500, 9000, 9216]);
            net.guard = dice.percent(85);
            let any = dice.bits() as u16;
            net.mask = dice.pick(&[0xfffd, 0xfffd, 0xffff, 0, any]);
        }
        for index in 0..self.vifs {
            let own = self.places[index].mac;
            let guarding = match dice.below(8) {
                _ if self.places[index].limit.is_some() => Guarding::Off,
                0 | 1 => Guarding::Off,
                2 | 3 => Guarding::Mac((0..dice.below(4)).map(|_| self.any_mac(own, dice)).collect()),
                _ => Guarding::MacIp((0..dice.below(6)).map(|_| (self.any_mac(own, dice), any_ip(dice))).collect()),
            };
            let place = &mut self.places[index];
            place.guarding = guarding;
            place.up = dice.percent(93);
            place.held = dice.percent(4);
            place.promiscuous = dice.percent(10);
        }
        for index in 0..self.vifs {
            let (network, own) = (self.places[index].network, self.places[index].mac);
            // What control refuses is no policy.
            let pinned = self.pinned(network, own) == Some(index);
            self.places[index].suppress = pinned && dice.percent(40);
        }
    }

    fn any_mac(&self, own: Address, dice: &mut Dice) -> Address {
        match dice.below(10) {
            0..5 => own,
            5..8 => wild(dice.below(8)),
            8 => private(dice.below(self.vifs), 0),
            _ => self.places[dice.below(self.vifs)].mac,
        }
    }

    /// The laboratory of this town.
    pub fn build(&self) -> Lab {
        let plugs: Vec<_> = (0..self.vifs)
            .map(|index| {
                let plug = Plug::new(self.places[index].network as u16, self.places[index].owner as u32);
                Plug { trunk: self.trunks[index], ..plug }
            })
            .collect();
        let cable = Capacity { blocks: 16, block_bytes: 1 << 20 };
        let setup = Setup { workers: self.workers, slots: 8192, cable, ..Setup::default() };
        let mut lab = Lab::build(setup, &plugs, &self.wires, |index, end| {
            let base = &self.bases[index];
            let memory = if base.lent { Memory::Lent } else { Memory::Owned };
            Box::new(end.with_memory(memory).with_offloads(base.offloads))
        });
        self.enact(&mut lab);
        lab
    }

    /// Puts the policies in force.
    pub fn enact(&self, lab: &mut Lab) {
        lab.change_all(|networks, ports, carriers| {
            for (network, net) in networks.iter_mut().zip(&self.nets) {
                (network.mtu, network.guard, network.reserved) = (net.mtu as u16, net.guard, ReservedMask(net.mask));
            }
            for rules in ports.iter_mut() {
                let place = self.places.iter().find(|place| place.id == rules.id).unwrap();
                (rules.admin_up, rules.held) = (place.up, place.held);
                rules.security = place.guarding.rules();
                (rules.unknown_unicast, rules.promiscuous) = (!place.suppress, place.promiscuous);
                rules.mac_limit = place.limit.map(|(stations, drop)| MacLimit {
                    stations: stations as u32,
                    policy: if drop { AtLimit::Drop } else { AtLimit::ForwardUnlearned },
                });
            }
            for carrier in carriers {
                let parent = self.places.iter().find(|place| place.id == carrier.id);
                carrier.admin_up = parent.is_none_or(|parent| parent.up);
            }
        });
    }

    /// Whether frames may come and go by a port at all.
    pub fn is_up(&self, place: usize) -> bool {
        let Place { up, held, base, .. } = self.places[place];
        up && !held && !self.bases[base].standby && (base >= self.vifs || self.places[base].up)
    }

    /// The port that a tag stands for on a cable; 0: none.
    pub fn at(&self, base: usize, vid: u16) -> Option<usize> {
        self.places.iter().position(|place| place.base == base && place.vid == vid)
    }

    /// The one port of a network, if it is only one, that names this address as its own or as allowed. One that is down
    /// pins nothing, and neither does a subport whose parent is.
    pub fn pinned(&self, network: usize, address: Address) -> Option<usize> {
        let naming = |place: &Place| !place.uplink && place.network == network && place.names(address);
        let mut these = (0..self.places.len()).filter(|&index| naming(&self.places[index]));
        let is_wanted = |place: &Place| place.up && (place.base >= self.vifs || self.places[place.base].up);
        these.next().filter(|&only| these.next().is_none() && is_wanted(&self.places[only]))
    }
}

fn any_ip(dice: &mut Dice) -> Option<(IpAddr, u8)> {
    match dice.below(10) {
        0 => None,
        1 => Some((v4(0), 28)),
        2 => Some((v6(0), 124)),
        3 => Some((v4(0), 0)),
        4..7 => Some((v6(dice.below(16)), 128)),
        _ => Some((v4(dice.below(16)), 32)),
    }
}

impl Guarding {
    fn rules(&self) -> Security {
        match self {
            Guarding::Off => Security::Off,
            Guarding::Mac(also) => Security::Mac(also.iter().map(|&mac| Mac::new(mac)).collect()),
            Guarding::MacIp(bound) => {
                let prefix = |(ip, len)| Prefix::new(ip, len).unwrap();
                let binding = |&(mac, ip): &Bound| Binding { mac: Mac::new(mac), ip: ip.map(prefix) };
                Security::MacIp(bound.iter().map(binding).collect())
            }
        }
    }
}

impl Place {
    /// Whether an address is its own or one that it is allowed.
    pub fn names(&self, address: Address) -> bool {
        self.mac == address
            || match &self.guarding {
                Guarding::Off => false,
                Guarding::Mac(also) => also.contains(&address),
                Guarding::MacIp(bound) => bound.iter().any(|(mac, _)| *mac == address),
            }
    }
}
