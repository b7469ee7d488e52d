//! The configuration, drawn up for the switch: who has which place in the tables, what each port's
//! device shall be, and the rules that follow from which devices are there.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::config::{Base, Config, Device, Network, Port, PortSecurity, Subport, UnknownUnicast, Uplink};
use super::failover::Groups;
use super::lines::{Line, lines};
use super::places::{OUTSIDE, Places};
use crate::device::{Settings, packet, tap, xdp};
use crate::switch::{
    Binding, CarrierRules, Limits, MOST_NETWORKS, MOST_PORTS, NetworkId, NetworkRules, Owner, PortId, PortRules, Reach,
    Role, Rules, Secret, Security,
};
use crate::sys::netns::Netns;
use crate::wire::{Mac, Vid};

/// Slots that may wait in the fill ring of a queue: as many as its kernel side can well use.
const FILL: std::ops::RangeInclusive<u32> = 64..=2048;

/// Whoever frames come from and go to, with its place in the switch: a port or an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Its id in the configuration.
    pub name: String,
    /// Its place in the tables of the switch; its gates are known by it.
    pub id: PortId,
    /// By what its frames come and go.
    pub by: By,
    /// Where it stands in the configuration.
    pub stand: Stand,
}

/// By what the frames of a port or an uplink come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// By a device of its own.
    Device(Settings),
    /// It is a subport: by that of its parent.
    Parent {
        /// The parent, as an index into all seats.
        seat: usize,
        /// Its place among the ports of its VM.
        position: usize,
        /// The tag of its frames there.
        vlan: Vid,
    },
}

/// Where a seat stands in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// It is a port.
    Port {
        /// Its VM, as an index into the configuration.
        vm: usize,
        /// Its place among the ports of its VM.
        position: usize,
        /// Its network, as an index into the configuration.
        network: usize,
        /// The place of its network in the switch.
        network_id: NetworkId,
        /// What it has in common with the other ports of its VM.
        owner: Owner,
    },
    /// It is an uplink.
    Uplink {
        /// The uplink, as an index into the configuration.
        index: usize,
    },
}

/// What the configuration calls a seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names<'c> {
    /// The port or uplink.
    pub id: &'c str,
    /// Its VM, if it is a port.
    pub vm: Option<&'c str>,
    /// Its network, if it is a port.
    pub network: Option<&'c str>,
    /// Whether it is wanted up; and, of a subport, its parent as well.
    pub admin_up: bool,
}

/// What a seat is, as far as it is another one if it becomes otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A port with a device.
    Port,
    /// A port by the device of another.
    Subport,
    /// An uplink.
    Uplink,
}

impl Seat {
    /// What tells it from every other seat, in whatever configuration.
    pub fn key(&self) -> (Kind, &str) {
        let kind = match (&self.stand, &self.by) {
            (Stand::Uplink { .. }, _) => Kind::Uplink,
            (_, By::Parent { .. }) => Kind::Subport,
            (_, By::Device(_)) => Kind::Port,
        };
        (kind, &self.name)
    }

    /// Its device, unless it is a subport.
    pub fn device(&self) -> Option<&Settings> {
        match &self.by {
            By::Device(device) => Some(device),
            By::Parent { .. } => None,
        }
    }

    /// Its parent, as an index into all seats, if it is a subport.
    pub fn parent(&self) -> Option<usize> {
        match self.by {
            By::Device(_) => None,
            By::Parent { seat, .. } => Some(seat),
        }
    }

    /// Whether it is an uplink.
    pub fn is_uplink(&self) -> bool {
        matches!(self.stand, Stand::Uplink { .. })
    }

    /// What the configuration that it stands in calls it.
    pub fn names<'c>(&self, config: &'c Config) -> Names<'c> {
        match self.stand {
            Stand::Port { vm, position, .. } => {
                let vm = &config.vms[vm];
                let port = &vm.ports[position];
                let of_parent = match self.by {
                    By::Parent { position, .. } => vm.ports[position].admin_state_up,
                    By::Device(_) => true,
                };
                let (vm, network) = (Some(vm.id.as_str()), Some(port.network_id.as_str()));
                Names { id: &port.port_id, vm, network, admin_up: port.admin_state_up && of_parent }
            }
            Stand::Uplink { index } => {
                let uplink = &config.uplinks[index];
                Names { id: &uplink.id, vm: None, network: None, admin_up: uplink.admin_state_up }
            }
        }
    }
}

/// `port "p1"`, `uplink "up0"`
impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_uplink() { "uplink" } else { "port" };
        write!(f, "{what} {:?}", self.name)
    }
}

/// More than a switch can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{count} {what} are more than one switch can hold ({most}); spread them over several hosts")]
pub struct TooMany {
    what: &'static str,
    count: usize,
    most: usize,
}

/// Whether a switch can hold so much.
pub fn fits(config: &Config) -> Result<(), TooMany> {
    let check = |what, count, most| if count > most { Err(TooMany { what, count, most }) } else { Ok(()) };
    check("networks", config.networks.len(), MOST_NETWORKS)?;
    // A network on a line to the outside takes the place of a port, and so does each uplink.
    let outside: usize = lines(config).iter().map(|line| line.networks(config).len() + line.members.len()).sum();
    let what = if outside == 0 { "ports" } else { "ports and networks on uplinks" };
    check(what, config.ports().count() + outside, MOST_PORTS)
}

/// Everybody with their places, in the order of the configuration that `places` follows: the ports,
/// then the uplinks.
pub fn seats(config: &Config, places: &Places) -> Vec<Seat> {
    let fill = fill(config);
    let networks: HashMap<&str, usize> =
        config.networks.iter().enumerate().map(|(index, network)| (network.id.as_str(), index)).collect();
    // All ports stand before the uplinks, in order: so it is known where each comes to stand.
    let firsts: Vec<usize> = config
        .vms
        .iter()
        .scan(0, |next, vm| {
            *next += vm.ports.len();
            Some(*next - vm.ports.len())
        })
        .collect();
    let ports = config.vms.iter().enumerate().flat_map(|(vm, of)| (0..of.ports.len()).map(move |at| (vm, at)));
    // Admission has seen to it that networks and parents are there, and places follow the configuration.
    let ports = ports.filter_map(|(vm, position)| {
        let port = &config.vms[vm].ports[position];
        let network = *networks.get(port.network_id.as_str())?;
        Some(Seat {
            name: port.port_id.clone(),
            id: places.port(&port.port_id)?,
            by: match &port.base {
                Base::Device(device) => {
                    By::Device(settings(device, &port.port_id, port.mac, config.networks[network].mtu, fill))
                }
                Base::Parent(Subport { parent, vlan }) => {
                    let position = config.vms[vm].ports.iter().position(|port| port.port_id == *parent)?;
                    By::Parent { seat: firsts[vm] + position, position, vlan: *vlan }
                }
            },
            stand: Stand::Port {
                vm,
                position,
                network,
                network_id: places.network(&port.network_id)?,
                owner: places.owner(&config.vms[vm].id)?,
            },
        })
    });
    let uplinks = config.uplinks.iter().enumerate().filter_map(|(index, uplink)| {
        Some(Seat {
            name: uplink.id.clone(),
            id: places.carrier(&uplink.id)?,
            by: By::Device(uplink_device(uplink, config, fill)),
            stand: Stand::Uplink { index },
        })
    });
    ports.chain(uplinks).collect()
}

/// How many slots of the pool wait in the fill ring of each AF_XDP queue: a quarter of the pool is
/// shared among those who have such queues.
pub fn fill(config: &Config) -> u32 {
    let sharers = config.devices().filter(|device| matches!(device, Device::Xdp(_))).count().max(1);
    let share = config.switch.frames / 4 / u32::try_from(sharers).unwrap_or(u32::MAX);
    // The largest power of two that is not more.
    let share = share.checked_ilog2().map_or(0, |log| 1 << log);
    share.clamp(*FILL.start(), *FILL.end())
}

/// The device that a port of this network asks for, unless it is a subport. `fill` is what [`fill`] says.
pub fn device(port: &Port, network: &Network, fill: u32) -> Option<Settings> {
    Some(settings(port.device()?, &port.port_id, port.mac, network.mtu, fill))
}

/// The device that an uplink asks for: frames of all of its networks have to pass.
pub fn uplink_device(uplink: &Uplink, config: &Config, fill: u32) -> Settings {
    let carried = |network: &&Network| uplink.networks.iter().any(|of| of.network_id == network.id);
    let mtu = config.networks.iter().filter(carried).map(|network| network.mtu).max();
    // Admission has seen to it that there is one.
    settings(&uplink.device, &uplink.id, uplink_mac(&uplink.id), mtu.unwrap_or(1500), fill)
}

/// The address of a tap that is made for an uplink: one of our own administration, the same in every
/// life. Nothing is sent from it; it only has to differ from others.
fn uplink_mac(id: &str) -> Mac {
    // FNV-1a
    let hash = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    Mac::from_bits((hash ^ hash >> 48) & 0xfcff_ffff_ffff | 0x0200_0000_0000)
}

fn settings(device: &Device, owner: &str, mac: Mac, mtu: u16, fill: u32) -> Settings {
    let (name, netns) = (device.name().to_owned(), device.netns().map_or(Netns::Host, Netns::written));
    let owner = owner.to_owned();
    match device {
        Device::Tap(tap) => Settings::Tap(tap::Settings {
            name,
            netns,
            queues: tap.queues,
            offloads: tap.offloads,
            persist: tap.persist,
            mac,
            mtu,
            owner,
        }),
        Device::Xdp(xdp) => Settings::Xdp(xdp::Settings {
            name,
            netns,
            queues: xdp.queues,
            mode: xdp.mode,
            takeover: xdp.takeover,
            mtu,
            fill,
            owner,
        }),
        Device::Packet(packet) => {
            Settings::Packet(packet::Settings { name, netns, offloads: packet.offloads, mtu, owner })
        }
    }
}

/// A network on a line to the outside: a port of the switch without a device of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// Its place in the tables of the switch.
    pub id: PortId,
    /// The network, as an index into the configuration.
    pub network: usize,
    /// The place of the network in the switch.
    pub network_id: NetworkId,
    /// The tag of its frames on the line.
    pub vlan: Option<Vid>,
    /// The line.
    pub line: Line,
}

/// All networks on all lines.
pub fn outsides(config: &Config, places: &Places) -> Vec<Outside> {
    let mut all = Vec::new();
    for line in lines(config) {
        all.extend(line.networks(config).iter().filter_map(|of| {
            Some(Outside {
                id: places.carried(&line.name, &of.network_id)?,
                network: config.networks.iter().position(|network| network.id == of.network_id)?,
                network_id: places.network(&of.network_id)?,
                vlan: of.vlan,
                line: line.clone(),
            })
        }));
    }
    all
}

/// Which sources a port may use. Where a pair names no MAC address, it means the port's own.
fn security(port: &Port) -> Security {
    let pairs = port.allowed_address_pairs.iter();
    match port.port_security {
        PortSecurity::Off => Security::Off,
        PortSecurity::Mac => Security::Mac(pairs.filter_map(|pair| pair.mac).collect()),
        PortSecurity::MacIp => {
            let own = port.fixed_ips.iter().map(|&ip| Binding { mac: port.mac, ip: Some(ip.into()) });
            let pairs = pairs.map(|pair| Binding { mac: pair.mac.unwrap_or(port.mac), ip: pair.ip });
            Security::MacIp(own.chain(pairs).collect())
        }
    }
}

/// The rules for these seats. With each: the worker through which it is reached, if it has a device
/// now. `groups` says which uplinks carry the frames.
pub fn rules<'a>(
    config: &Config,
    places: &Places,
    secret: Secret,
    seats: impl Iterator<Item = (&'a Seat, Option<u16>)>,
    groups: &Groups,
) -> Rules {
    let drawn = draw(config, places, seats, groups);
    Rules::compile(secret, drawn.networks, drawn.ports, drawn.carriers)
}

/// What rules are made of.
#[derive(Debug, Default)]
struct Drawn {
    networks: Vec<NetworkRules>,
    ports: Vec<PortRules>,
    carriers: Vec<CarrierRules>,
}

fn draw<'a>(
    config: &Config,
    places: &Places,
    seats: impl Iterator<Item = (&'a Seat, Option<u16>)>,
    groups: &Groups,
) -> Drawn {
    let networks = config.networks.iter().filter_map(|network| {
        Some(NetworkRules {
            id: places.network(&network.id)?,
            mtu: network.mtu,
            ageing: network.ageing_seconds,
            limits: Limits { network: network.fdb_limit, port: network.fdb_limit_per_port },
            guard: network.guard,
            reserved: network.reserved_groups,
        })
    });
    let mut drawn = Drawn { networks: networks.collect(), ..Drawn::default() };
    let seats: Vec<(&Seat, Option<u16>)> = seats.collect();
    // By parent, as an index into the seats: its subports.
    let mut trunks: BTreeMap<usize, Vec<(Option<Vid>, PortId)>> = BTreeMap::new();
    for (seat, _) in &seats {
        if let By::Parent { seat: parent, vlan, .. } = seat.by {
            trunks.entry(parent).or_default().push((Some(vlan), seat.id));
        }
    }
    // By uplink: its place, and its worker if it has a device.
    let mut reached: HashMap<usize, (PortId, Option<u16>)> = HashMap::new();
    for (index, &(seat, worker)) in seats.iter().enumerate() {
        let (worker, reach) = match seat.by {
            By::Parent { seat: parent, vlan, .. } => {
                let Some(&(parent, worker)) = seats.get(parent) else { continue };
                (worker, Reach::Carried { carrier: parent.id, vlan: Some(vlan) })
            }
            By::Device(_) if trunks.contains_key(&index) => (worker, Reach::Carried { carrier: seat.id, vlan: None }),
            By::Device(_) => (worker, Reach::Own),
        };
        match seat.stand {
            Stand::Port { vm, position, network_id, owner, .. } => {
                let port = &config.vms[vm].ports[position];
                drawn.ports.push(PortRules {
                    id: seat.id,
                    network: network_id,
                    owner,
                    mac: port.mac,
                    security: security(port),
                    admin_up: port.admin_state_up,
                    worker,
                    role: Role::Vif,
                    reach,
                    unknown_unicast: port.unknown_unicast == UnknownUnicast::Deliver,
                    promiscuous: port.promiscuous,
                    mac_limit: port.mac_limit,
                });
            }
            Stand::Uplink { index } => drop(reached.insert(index, (seat.id, worker))),
        }
    }
    for (parent, subports) in trunks {
        let Some(&(seat, worker)) = seats.get(parent) else { continue };
        let Names { admin_up, .. } = seat.names(config);
        let ports = std::iter::once((None, seat.id)).chain(subports).collect();
        drawn.carriers.push(CarrierRules { id: seat.id, admin_up, worker, standby: false, ports });
    }
    let mut on_line: HashMap<Vec<usize>, Vec<(Option<Vid>, PortId)>> = HashMap::new();
    for Outside { id, network_id, vlan, line, .. } in outsides(config, places) {
        let active = line.active(groups);
        let Some(&(carrier, worker)) = reached.get(&active) else { continue };
        drawn.ports.push(PortRules {
            id,
            network: network_id,
            owner: OUTSIDE,
            mac: Mac::ZERO,
            security: Security::Off,
            admin_up: config.uplinks[active].admin_state_up,
            worker,
            role: Role::Uplink,
            reach: Reach::Carried { carrier, vlan },
            unknown_unicast: true,
            promiscuous: false,
            mac_limit: None,
        });
        on_line.entry(line.members).or_default().push((vlan, id));
    }
    for line in lines(config) {
        let active = line.active(groups);
        for &member in &line.members {
            let Some(&(id, worker)) = reached.get(&member) else { continue };
            drawn.carriers.push(CarrierRules {
                id,
                admin_up: config.uplinks[member].admin_state_up,
                worker,
                standby: member != active,
                ports: on_line.get(&line.members).cloned().unwrap_or_default(),
            });
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::strategy;
    use crate::control::plan::{apply, plan};
    use proptest::prelude::*;

    /// The rules as they would be if everything had been there from the start: ports and networks
    /// by name instead of by place.
    fn by_name(config: &Config, places: &Places) -> Vec<String> {
        let seats = seats(config, places);
        let reached = || seats.iter().map(|seat| (seat, Some(0)));
        let rules = rules(config, places, Secret::new([1; 16]), reached(), &Groups::default());
        let outsides = outsides(config, places);
        let name = |id: &PortId| match seats.iter().find(|seat| seat.id == *id) {
            Some(seat) => seat.name.clone(),
            None => {
                let outside = outsides.iter().find(|outside| outside.id == *id).unwrap();
                format!("{:?} {}", outside.line.name, config.networks[outside.network].id)
            }
        };
        let mut all: Vec<String> = seats
            .iter()
            .filter(|seat| !seat.is_uplink())
            .map(|seat| {
                let port = rules.port(seat.id).unwrap();
                let network = rules.network(port.network).unwrap();
                let siblings: Vec<_> =
                    rules.ports().filter(|other| other.owner == port.owner).map(|p| name(&p.id)).collect();
                let mut siblings: Vec<_> = siblings.into_iter().collect();
                siblings.sort();
                let mut flood: Vec<_> = rules.flood(seat.id).concat().iter().map(name).collect();
                flood.sort();
                let (security, up) = (&port.security, port.admin_up);
                let NetworkRules { id: _, mtu, ageing, limits, guard, reserved } = network;
                let (unknown, promiscuous, limit) = (port.unknown_unicast, port.promiscuous, port.mac_limit);
                format!(
                    "{} {} {security:?} {up} {unknown} {promiscuous} {limit:?} {mtu} {ageing} {limits:?} {guard} \
                     {reserved:?} {siblings:?} {flood:?} {:?}",
                    seat.name, port.mac, seat.by
                )
            })
            .collect();
        let drawn = draw(config, places, reached(), &Groups::default());
        let carriers =
            seats.iter().filter_map(|seat| Some((seat, drawn.carriers.iter().find(|carrier| carrier.id == seat.id)?)));
        all.extend(carriers.map(|(seat, carrier)| {
            let mut ports: Vec<_> = carrier.ports.iter().map(|(vlan, id)| (vlan, name(id))).collect();
            ports.sort();
            format!("{} {:?} {} {} {ports:?}", seat.name, seat.by, carrier.admin_up, carrier.standby)
        }));
        all.sort();
        all
    }

    proptest! {
        #[test]
        fn any_configuration_compiles(config in strategy::config()) {
            let places = Places::first(&config);
            let seats = seats(&config, &places);
            prop_assert_eq!(seats.len(), config.ports().count() + config.uplinks.len());
            let reached = || seats.iter().map(|seat| (seat, Some(0)));
            let rules = rules(&config, &places, Secret::new([1; 16]), reached(), &Groups::default());
            let outside = outsides(&config, &places).len();
            prop_assert_eq!(rules.ports().count(), config.ports().count() + outside);
            for seat in &seats {
                let Stand::Port { vm, position, network, .. } = seat.stand else { continue };
                let port = &config.vms[vm].ports[position];
                prop_assert_eq!(rules.port(seat.id).unwrap().mac, port.mac);
                prop_assert_eq!(&config.networks[network].id, &port.network_id);
            }
        }

        /// Each network of an uplink is a port of the switch, on that network, under its tag; and of
        /// each line one uplink carries, whichever that is.
        #[test]
        fn an_uplink_is_a_port_on_each_of_its_networks(config in strategy::config(), second: bool) {
            let places = Places::first(&config);
            let seats = seats(&config, &places);
            let mut groups = Groups::default();
            for uplink in &config.uplinks {
                let fit = [!second, second];
                groups.look(uplink.group.as_deref().unwrap_or_default(), &fit, crate::time::Moment::from_secs(1));
            }
            let reached = seats.iter().map(|seat| (seat, Some(u16::from(seat.is_uplink()))));
            let drawn = draw(&config, &places, reached, &groups);
            let parents: std::collections::HashSet<_> =
                config.ports().filter_map(|(_, port)| Some(&port.subport()?.parent)).collect();
            prop_assert_eq!(drawn.carriers.len(), config.uplinks.len() + parents.len());
            for uplink in &config.uplinks {
                let carrier = places.carrier(&uplink.id).unwrap();
                let rules = drawn.carriers.iter().find(|rules| rules.id == carrier).unwrap();
                let members = config.uplinks.iter().filter(|other| other.line() == uplink.line());
                let place = members.clone().position(|other| other.id == uplink.id).unwrap();
                prop_assert_eq!(rules.standby, members.count() == 2 && (place == 1) != second);
                prop_assert_eq!(rules.ports.len(), uplink.networks.len());
                for of in &uplink.networks {
                    let id = places.carried(&uplink.line(), &of.network_id).unwrap();
                    prop_assert!(rules.ports.contains(&(of.vlan, id)));
                    let port = drawn.ports.iter().find(|port| port.id == id).unwrap();
                    prop_assert_eq!(port.network, places.network(&of.network_id).unwrap());
                    prop_assert_eq!((port.role, port.mac, &port.security), (Role::Uplink, Mac::ZERO, &Security::Off));
                    prop_assert_eq!((port.owner, port.worker), (OUTSIDE, Some(1)));
                    if !rules.standby {
                        prop_assert_eq!(port.reach, Reach::Carried { carrier, vlan: of.vlan });
                        prop_assert_eq!(port.admin_up, uplink.admin_state_up);
                    }
                }
            }
        }

        #[test]
        fn the_address_of_an_uplink_is_one_of_our_administration(id: String) {
            let mac = uplink_mac(&id);
            prop_assert!(mac.is_station());
            prop_assert_eq!(mac.octets()[0] & 3, 2);
        }

        /// However it came about: the switch does what it would do had it started so.
        #[test]
        fn any_way_leads_to_the_same_rules(steps in proptest::collection::vec(strategy::two(), 1..4)) {
            let mut places = Places::default();
            let mut now = Config::default();
            for new in steps.into_iter().flat_map(|(old, new)| [old, new]) {
                // Which never is otherwise while a switch runs.
                let new = Config { switch: now.switch.clone(), ..new };
                let plan = plan(&now, &new);
                places.follow(&plan, &new);
                let there = apply(&plan, &now);
                prop_assert_eq!(by_name(&there, &places), by_name(&new, &Places::first(&new)));
                now = new;
            }
        }
    }

    #[test]
    fn the_pool_is_shared_among_those_who_lend_it_out() {
        let with = |xdp: usize, frames: u32| {
            let uplink = |number: usize| Uplink {
                id: format!("up{number}"),
                group: None,
                networks: Vec::new(),
                admin_state_up: true,
                device: Device::Xdp(crate::control::config::Xdp {
                    name: format!("eth{number}"),
                    netns: None,
                    queues: None,
                    mode: xdp::Mode::Auto,
                    takeover: false,
                }),
            };
            let mut config = Config { uplinks: (0..xdp).map(uplink).collect(), ..Config::default() };
            config.switch.frames = frames;
            fill(&config)
        };
        assert_eq!(with(0, 65536), 2048, "nobody asks, and nothing is divided by nobody");
        assert_eq!([1, 8, 9, 64, 4000].map(|xdp| with(xdp, 65536)), [2048, 2048, 1024, 256, 64]);
        assert_eq!([1, 3].map(|xdp| with(xdp, 1024)), [256, 64]);
    }
}
