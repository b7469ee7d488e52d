//! The configuration, drawn up for the switch: the rules that follow from who sits where and which
//! devices are there.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::activation::Activations;
use super::config::{Config, Port, PortSecurity, UnknownUnicast};
use super::failover::Groups;
use super::lines::{Line, lines};
use super::meters::Meters;
use super::places::{OUTSIDE, Places};
use super::seats::{By, Names, Seat, Stand};
use crate::switch::{
    Binding, CarrierRules, Limits, NetworkId, NetworkRules, PortId, PortRules, Reach, Role, Rules, Secret, Security,
    Station,
};
use crate::wire::Vid;

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

/// What is done about loops and storms, in the terms of the switch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Measures {
    /// Ports that are in quarantine.
    pub held: HashSet<PortId>,
    /// Ports whose floods do not reach their siblings.
    pub splits: HashSet<PortId>,
    /// Ports whose VM loops or storms, of networks on which an address may be allowed at several ports.
    pub suspects: HashSet<PortId>,
    /// Stations that are frozen, and where.
    pub frozen: BTreeMap<Station, PortId>,
}

/// What control has decided beside the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Decided<'a> {
    /// Which uplinks carry the frames of their groups.
    pub groups: &'a Groups,
    /// What is done about loops and storms.
    pub measures: &'a Measures,
    /// Which ports are active, and which pins have yielded.
    pub activations: &'a Activations,
}

/// The rules for these seats. With each: the worker through which it is reached, if it has a device
/// now. `meters` say how much of the storm limits is used. They and what is `decided` have followed this configuration.
pub fn rules<'a>(
    config: &Config,
    places: &Places,
    secret: Secret,
    seats: impl Iterator<Item = (&'a Seat, Option<u16>)>,
    meters: &Meters,
    decided: Decided<'_>,
) -> Rules {
    let drawn = draw(config, places, seats, meters, decided);
    let mut rules = Rules::compile(secret, drawn.networks, drawn.ports, drawn.carriers);
    rules.freeze(decided.measures.frozen.iter().map(|(&station, &port)| (station, port)));
    rules
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
    meters: &Meters,
    decided: Decided<'_>,
) -> Drawn {
    let Decided { groups, measures, activations } = decided;
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
            Stand::Port { vm, position, network, network_id, owner } => {
                let vm = &config.vms[vm];
                let port = &vm.ports[position];
                let (storm, pack) = meters.of_port(vm, port, &config.networks[network]);
                drawn.ports.push(PortRules {
                    id: seat.id,
                    network: network_id,
                    owner,
                    mac: port.mac,
                    security: security(port),
                    pins: activations.pins(port),
                    yielded: activations.yielded(port),
                    admin_up: port.admin_state_up,
                    worker,
                    role: Role::Vif,
                    reach,
                    unknown_unicast: port.unknown_unicast == UnknownUnicast::Deliver,
                    promiscuous: port.promiscuous,
                    learns: port.mac_learning,
                    mac_limit: port.mac_limit,
                    held: measures.held.contains(&seat.id),
                    splits: vm.sibling_split_horizon || measures.splits.contains(&seat.id),
                    suspect: measures.suspects.contains(&seat.id),
                    shares_mac: vm.share_mac,
                    storm,
                    pack: Some(pack),
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
    for Outside { id, network, network_id, vlan, line } in outsides(config, places) {
        let active = line.active(groups);
        let Some(&(carrier, worker)) = reached.get(&active) else { continue };
        let network_name = &config.networks[network].id;
        let (storm, pack) = meters.of_line(config, &line, network_name, &config.uplinks[active]);
        drawn.ports.push(PortRules {
            admin_up: config.uplinks[active].admin_state_up,
            worker,
            storm,
            pack,
            ..PortRules::uplink(id, network_id, OUTSIDE, carrier, vlan)
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
    use crate::control::failover::Fitness;
    use crate::control::plan::{apply, plan};
    use crate::control::seats::seats;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static ACTIVATIONS: LazyLock<Activations> = LazyLock::new(Activations::default);
    static MEASURES: LazyLock<Measures> = LazyLock::new(Measures::default);

    fn decided(groups: &Groups) -> Decided<'_> {
        Decided { groups, measures: &MEASURES, activations: &ACTIVATIONS }
    }

    /// The rules as they would be if everything had been there from the start: ports and networks
    /// by name instead of by place.
    fn by_name(config: &Config, places: &Places) -> Vec<String> {
        let seats = seats(config, places);
        let reached = || seats.iter().map(|seat| (seat, Some(0)));
        let mut meters = Meters::new(2);
        meters.follow(config);
        let rules = rules(config, places, Secret::new([1; 16]), reached(), &meters, decided(&Groups::default()));
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
                     {reserved:?} {siblings:?} {flood:?} {:?} {:?} {:?}",
                    seat.name, port.mac, seat.by, port.storm, port.pack
                )
            })
            .collect();
        let drawn = draw(config, places, reached(), &meters, decided(&Groups::default()));
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
            let mut meters = Meters::new(2);
            meters.follow(&config);
            let rules = rules(&config, &places, Secret::new([1; 16]), reached(), &meters, decided(&Groups::default()));
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
                let mut fitness = [Fitness::Fit, Fitness::Unfit];
                fitness.rotate_right(usize::from(second));
                groups.look(uplink.group.as_deref().unwrap_or_default(), &fitness, crate::time::Moment::from_secs(1));
            }
            let reached = seats.iter().map(|seat| (seat, Some(u16::from(seat.is_uplink()))));
            let mut meters = Meters::new(2);
            meters.follow(&config);
            let drawn = draw(&config, &places, reached, &meters, decided(&groups));
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
                    prop_assert_eq!((port.role, port.mac, &port.security), (Role::Uplink, crate::wire::Mac::ZERO, &Security::Off));
                    prop_assert_eq!((port.owner, port.worker), (OUTSIDE, Some(1)));
                    if !rules.standby {
                        prop_assert_eq!(port.reach, Reach::Carried { carrier, vlan: of.vlan });
                        prop_assert_eq!(port.admin_up, uplink.admin_state_up);
                    }
                }
            }
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
}
