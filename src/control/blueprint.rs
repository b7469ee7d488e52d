//! The configuration, drawn up for the switch: who has which place in the tables, what each port's
//! device shall be, and the rules that follow from which devices are there.

use std::collections::HashMap;

use super::config::{Config, Device, Network, Port, PortSecurity};
use super::places::Places;
use crate::device::{Settings, tap};
use crate::switch::{
    Limits, MOST_NETWORKS, MOST_PORTS, NetworkId, NetworkRules, Owner, PortId, PortRules, Reach, Role, Rules, Secret,
    Security,
};
use crate::sys::netns::Netns;

/// A port of the configuration with its place in the switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Its id.
    pub port_id: String,
    /// Its VM, as an index into the configuration.
    pub vm: usize,
    /// Its place among the ports of its VM.
    pub position: usize,
    /// Its network, as an index into the configuration.
    pub network: usize,
    /// Its place in the tables of the switch.
    pub id: PortId,
    /// The place of its network there.
    pub network_id: NetworkId,
    /// What it has in common with the other ports of its VM.
    pub owner: Owner,
    /// Its device.
    pub device: Settings,
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
    check("ports", config.ports().count(), MOST_PORTS)
}

/// All ports with their places, in the order of the configuration that `places` follows.
pub fn seats(config: &Config, places: &Places) -> Vec<Seat> {
    let networks: HashMap<&str, usize> =
        config.networks.iter().enumerate().map(|(index, network)| (network.id.as_str(), index)).collect();
    let ports = config.vms.iter().enumerate().flat_map(|(vm, of)| (0..of.ports.len()).map(move |at| (vm, at)));
    ports
        .filter_map(|(vm, position)| {
            let port = &config.vms[vm].ports[position];
            // Admission has seen to it that the network is there, and places follow the configuration.
            let network = *networks.get(port.network_id.as_str())?;
            Some(Seat {
                port_id: port.port_id.clone(),
                vm,
                position,
                network,
                id: places.port(&port.port_id)?,
                network_id: places.network(&port.network_id)?,
                owner: places.owner(&config.vms[vm].id)?,
                device: device(port, &config.networks[network]),
            })
        })
        .collect()
}

/// The device that a port of this network asks for.
pub fn device(port: &Port, network: &Network) -> Settings {
    let Device::Tap(tap) = &port.device;
    Settings::Tap(tap::Settings {
        name: tap.name.clone(),
        netns: tap.netns.as_deref().map_or(Netns::Host, Netns::written),
        queues: tap.queues,
        offloads: tap.offloads,
        persist: tap.persist,
        mac: port.mac,
        mtu: network.mtu,
        owner: port.port_id.clone(),
    })
}

/// The rules for these ports. With each: the worker through which it is reached, if it has a device
/// now.
pub fn rules<'a>(
    config: &Config,
    places: &Places,
    secret: Secret,
    ports: impl Iterator<Item = (&'a Seat, Option<u16>)>,
) -> Rules {
    let networks = config.networks.iter().filter_map(|network| {
        Some(NetworkRules {
            id: places.network(&network.id)?,
            mtu: network.mtu,
            ageing: network.ageing_seconds,
            limits: Limits { network: network.fdb_limit, port: network.fdb_limit_per_port },
            guard: network.guard,
        })
    });
    let ports = ports.map(|(seat, worker)| {
        let port = &config.vms[seat.vm].ports[seat.position];
        PortRules {
            id: seat.id,
            network: seat.network_id,
            owner: seat.owner,
            mac: port.mac,
            security: match port.port_security {
                PortSecurity::Off => Security::Off,
                PortSecurity::Mac => Security::Mac(port.allowed_address_pairs.iter().map(|pair| pair.mac).collect()),
            },
            admin_up: port.admin_state_up,
            worker,
            role: Role::Vif,
            reach: Reach::Own,
        }
    });
    Rules::compile(secret, networks.collect(), ports.collect(), Vec::new())
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
        let rules = rules(config, places, Secret::new([1; 16]), seats.iter().map(|seat| (seat, Some(0))));
        let name = |id: &PortId| &seats.iter().find(|seat| seat.id == *id).unwrap().port_id;
        let mut all: Vec<String> = seats
            .iter()
            .map(|seat| {
                let port = rules.port(seat.id).unwrap();
                let network = rules.network(port.network).unwrap();
                let siblings: Vec<_> =
                    rules.ports().filter(|other| other.owner == port.owner).map(|p| name(&p.id)).collect();
                let mut siblings: Vec<_> = siblings.into_iter().collect();
                siblings.sort();
                let mut flood: Vec<_> = rules.flood(seat.id).concat().iter().map(name).cloned().collect();
                flood.sort();
                let (security, up) = (&port.security, port.admin_up);
                let NetworkRules { mtu, ageing, limits, guard, .. } = network;
                format!(
                    "{} {} {security:?} {up} {mtu} {ageing} {limits:?} {guard} {siblings:?} {flood:?} {:?}",
                    seat.port_id, port.mac, seat.device
                )
            })
            .collect();
        all.sort();
        all
    }

    proptest! {
        #[test]
        fn any_configuration_compiles(config in strategy::config()) {
            let places = Places::first(&config);
            let seats = seats(&config, &places);
            prop_assert_eq!(seats.len(), config.ports().count());
            let rules = rules(&config, &places, Secret::new([1; 16]), seats.iter().map(|seat| (seat, Some(0))));
            prop_assert_eq!(rules.ports().count(), seats.len());
            for seat in &seats {
                let port = &config.vms[seat.vm].ports[seat.position];
                prop_assert_eq!(rules.port(seat.id).unwrap().mac, port.mac);
                prop_assert_eq!(&config.networks[seat.network].id, &port.network_id);
            }
        }

        /// However it came about: the switch does what it would do had it started so.
        #[test]
        fn any_way_leads_to_the_same_rules(steps in proptest::collection::vec(strategy::two(), 1..4)) {
            let mut places = Places::default();
            let mut now = Config::default();
            for new in steps.into_iter().flat_map(|(old, new)| [old, new]) {
                let plan = plan(&now, &new);
                places.follow(&plan, &new);
                let there = apply(&plan, &now);
                prop_assert_eq!(by_name(&there, &places), by_name(&new, &Places::first(&new)));
                now = new;
            }
        }
    }
}
