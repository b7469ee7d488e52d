//! The configuration, drawn up for the switch: who has which place in the tables, what each port's
//! device shall be, and the rules that follow from which devices are there.

use super::config::{Config, Device, Network, Port, PortSecurity};
use crate::device::{Settings, tap};
use crate::switch::{
    Limits, MOST_NETWORKS, MOST_PORTS, NetworkId, NetworkRules, Owner, PortId, PortRules, Rules, Secret, Security,
};
use crate::sys::netns::Netns;

/// A port of the configuration with its place in the switch.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its VM, as an index into the configuration.
    pub vm: usize,
    /// Its place among the ports of its VM.
    pub position: usize,
    /// Its network, as an index into the configuration.
    pub network: usize,
    /// Its place in the tables of the switch.
    pub id: PortId,
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

/// Gives each port its place. Ports come in the order of the configuration.
pub fn plans(config: &Config) -> Result<Vec<Plan>, TooMany> {
    let check = |what, count, most| if count > most { Err(TooMany { what, count, most }) } else { Ok(()) };
    check("networks", config.networks.len(), MOST_NETWORKS)?;
    check("ports", config.vms.iter().map(|vm| vm.ports.len()).sum(), MOST_PORTS)?;
    let ports = config.vms.iter().enumerate().flat_map(|(vm, of)| (0..of.ports.len()).map(move |at| (vm, at)));
    Ok((0u16..)
        .zip(ports)
        .filter_map(|(place, (vm, position))| {
            let port = &config.vms[vm].ports[position];
            // Admission has seen to it that the network is there.
            let network = config.networks.iter().position(|network| network.id == port.network_id)?;
            let device = device(port, &config.networks[network]);
            Some(Plan { vm, position, network, id: PortId::new(place, 0), device })
        })
        .collect())
}

fn device(port: &Port, network: &Network) -> Settings {
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

/// The rules for these ports. `worker` says through which worker a port is reached, if it has a
/// device now.
pub fn rules(config: &Config, plans: &[Plan], secret: Secret, worker: impl Fn(usize) -> Option<u16>) -> Rules {
    let networks = (0u16..).zip(&config.networks).map(|(place, network)| NetworkRules {
        id: NetworkId::new(place),
        mtu: network.mtu,
        ageing: network.ageing_seconds,
        limits: Limits { network: network.fdb_limit, port: network.fdb_limit_per_port },
        guard: network.guard,
    });
    #[allow(clippy::cast_possible_truncation)] // there are at most 4096 of either
    let ports = plans.iter().enumerate().map(|(index, plan)| {
        let port = &config.vms[plan.vm].ports[plan.position];
        PortRules {
            id: plan.id,
            network: NetworkId::new(plan.network as u16),
            owner: Owner(plan.vm as u32),
            mac: port.mac,
            security: match port.port_security {
                PortSecurity::Off => Security::Off,
                PortSecurity::Mac => Security::Mac(port.allowed_address_pairs.iter().map(|pair| pair.mac).collect()),
            },
            admin_up: port.admin_state_up,
            worker: worker(index),
        }
    });
    Rules::compile(secret, networks.collect(), ports.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::strategy;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_configuration_compiles(config in strategy::config()) {
            let plans = plans(&config).unwrap();
            prop_assert_eq!(plans.len(), config.vms.iter().map(|vm| vm.ports.len()).sum::<usize>());
            let rules = rules(&config, &plans, Secret::new([1; 16]), |_| Some(0));
            prop_assert_eq!(rules.ports().count(), plans.len());
            for plan in &plans {
                let port = &config.vms[plan.vm].ports[plan.position];
                prop_assert_eq!(rules.port(plan.id).unwrap().mac, port.mac);
                prop_assert_eq!(&config.networks[plan.network].id, &port.network_id);
            }
        }
    }
}
