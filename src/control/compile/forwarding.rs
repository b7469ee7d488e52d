//! Compiles configuration, ids, devices and control state into the forwarding configuration.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::control::compile::activation::Activations;
use crate::control::compile::endpoints::{ConfigRef, Endpoint, EndpointAttachment, Labels};
use crate::control::compile::failover::Groups;
use crate::control::compile::ids::{IdAllocator, UPLINK_VM};
use crate::control::compile::policers::{LimitsCache, Policers};
use crate::control::compile::uplink_groups::{UplinkGroup, uplink_groups};
use crate::control::config::{Config, Port, PortSecurity, UnknownUnicast};
use crate::switch::{
    Attachment, Binding, ForwardingConfig, HashKey, Limits, NetworkConfig, NetworkId, PortConfig, PortId, Role,
    Security, Station, TrunkConfig,
};
use crate::wire::Vid;

/// A network on an uplink group: a port without a device of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkVlan {
    /// Id in the forwarding tables.
    pub id: PortId,
    /// Index of the network.
    pub network: usize,
    /// Id of the network in the forwarding tables.
    pub network_id: NetworkId,
    /// VLAN id.
    pub vlan: Option<Vid>,
    /// Group.
    pub group: UplinkGroup,
}

/// All networks of all uplink groups.
pub fn uplink_vlans(config: &Config, ids: &IdAllocator) -> Vec<UplinkVlan> {
    let mut all = Vec::new();
    for group in uplink_groups(config) {
        all.extend(group.networks(config).iter().filter_map(|of| {
            Some(UplinkVlan {
                id: ids.uplink_vlan(&group.name, &of.network_id)?,
                network: config.networks.iter().position(|network| network.id == of.network_id)?,
                network_id: ids.network(&of.network_id)?,
                vlan: of.vlan,
                group: group.clone(),
            })
        }));
    }
    all
}

/// Port security. A pair without MAC address means the port's own.
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

/// Measures against loops and storms, as the switch applies them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MitigationState {
    /// Quarantined ports.
    pub quarantined: HashSet<PortId>,
    /// Ports whose floods do not reach their siblings.
    pub split_horizon: HashSet<PortId>,
    /// Ports whose VM loops or storms, of networks on which an address may be allowed at several ports.
    pub suspects: HashSet<PortId>,
    /// Dampened stations, with their ports.
    pub dampened: BTreeMap<Station, PortId>,
    /// When the host booted, in milliseconds since 1970, by which the age of other hosts' loop probes is bounded. 0: no host
    /// shares the key.
    pub boot_millis: u64,
}

/// Decisions of control beside the configuration.
#[derive(Debug, Clone, Copy)]
pub struct ControlState<'a> {
    /// Active uplinks of groups.
    pub groups: &'a Groups,
    /// Measures against loops and storms.
    pub mitigation: &'a MitigationState,
    /// Which ports are active, and which pins have yielded.
    pub activations: &'a Activations,
}

/// Compiles the forwarding configuration of these endpoints, each with the worker that polls its device, if open.
/// `policers` is the state of storm limits. Both it and `decided` have been updated to this configuration.
pub fn compile<'a>(
    config: &Config,
    ids: &IdAllocator,
    hash_key: HashKey,
    endpoints: impl Iterator<Item = (&'a Endpoint, Option<u16>)>,
    policers: &Policers,
    decided: ControlState<'_>,
) -> ForwardingConfig {
    let input = collect(config, ids, endpoints, policers, decided);
    let mut forwarding = ForwardingConfig::compile(hash_key, input.networks, input.ports, input.trunks);
    forwarding.set_boot_millis(decided.mitigation.boot_millis);
    forwarding.dampen(decided.mitigation.dampened.iter().map(|(&station, &port)| (station, port)));
    forwarding
}

/// Parts of a forwarding configuration.
#[derive(Debug, Default)]
struct CompileInput {
    networks: Vec<NetworkConfig>,
    ports: Vec<PortConfig>,
    trunks: Vec<TrunkConfig>,
}

fn collect<'a>(
    config: &Config,
    ids: &IdAllocator,
    endpoints: impl Iterator<Item = (&'a Endpoint, Option<u16>)>,
    policers: &Policers,
    decided: ControlState<'_>,
) -> CompileInput {
    let ControlState { groups, mitigation, activations } = decided;
    let networks = config.networks.iter().filter_map(|network| {
        Some(NetworkConfig {
            id: ids.network(&network.id)?,
            mtu: network.mtu,
            ageing: network.ageing_seconds,
            limits: Limits { network: network.fdb_limit, port: network.fdb_limit_per_port },
            anti_spoof: network.anti_spoof,
            reserved: network.reserved_groups,
        })
    });
    let mut input = CompileInput { networks: networks.collect(), ..CompileInput::default() };
    let endpoints: Vec<(&Endpoint, Option<u16>)> = endpoints.collect();
    input.ports.reserve(endpoints.len());
    // Subports by index of their parent.
    let mut trunks: BTreeMap<usize, Vec<(Option<Vid>, PortId)>> = BTreeMap::new();
    for (endpoint, _) in &endpoints {
        if let EndpointAttachment::Parent { endpoint: parent, vlan, .. } = endpoint.attachment {
            trunks.entry(parent).or_default().push((Some(vlan), endpoint.id));
        }
    }
    // By uplink: its id, and its worker if its device is open.
    let mut reached: HashMap<usize, (PortId, Option<u16>)> = HashMap::new();
    let (mut last_vm, mut cache) = (None, LimitsCache::default());
    for (index, &(endpoint, worker)) in endpoints.iter().enumerate() {
        let (worker, attachment) = match endpoint.attachment {
            EndpointAttachment::Parent { endpoint: parent, vlan, .. } => {
                let Some(&(parent, worker)) = endpoints.get(parent) else { continue };
                (worker, Attachment::Tagged { trunk: parent.id, vlan: Some(vlan) })
            }
            EndpointAttachment::Device(_) if trunks.contains_key(&index) => {
                (worker, Attachment::Tagged { trunk: endpoint.id, vlan: None })
            }
            EndpointAttachment::Device(_) => (worker, Attachment::Own),
        };
        match endpoint.config_ref {
            ConfigRef::Port { vm, position, network, network_id, owner } => {
                // Ports of a VM are adjacent.
                if last_vm.is_none_or(|(last, _)| last != vm) {
                    last_vm = Some((vm, policers.of_vm(&config.vms[vm].id)));
                }
                let of_vm = last_vm.and_then(|(_, policers)| policers);
                let vm = &config.vms[vm];
                let port = &vm.ports[position];
                let (storm, vm_policer) = policers.of_port(of_vm, vm, position, &config.networks[network], &mut cache);
                input.ports.push(PortConfig {
                    id: endpoint.id,
                    network: network_id,
                    vm: owner,
                    mac: port.mac,
                    security: security(port),
                    pins: activations.pins(port),
                    released_pins: activations.yielded(port),
                    admin_up: port.admin_state_up,
                    worker,
                    role: Role::Vif,
                    attachment,
                    unknown_unicast: port.unknown_unicast == UnknownUnicast::Deliver,
                    promiscuous: port.promiscuous,
                    learns: port.mac_learning,
                    mac_limit: port.mac_limit,
                    quarantined: mitigation.quarantined.contains(&endpoint.id),
                    sibling_split_horizon: vm.sibling_split_horizon || mitigation.split_horizon.contains(&endpoint.id),
                    suspect: mitigation.suspects.contains(&endpoint.id),
                    mac_sharing: vm.share_mac,
                    storm,
                    vm_policer: Some(vm_policer),
                });
            }
            ConfigRef::Uplink { index } => drop(reached.insert(index, (endpoint.id, worker))),
        }
    }
    for (parent, subports) in trunks {
        let Some(&(endpoint, worker)) = endpoints.get(parent) else { continue };
        let Labels { admin_up, .. } = endpoint.labels(config);
        let ports = std::iter::once((None, endpoint.id)).chain(subports).collect();
        input.trunks.push(TrunkConfig { id: endpoint.id, admin_up, worker, backup: false, ports });
    }
    let mut on_line: HashMap<Vec<usize>, Vec<(Option<Vid>, PortId)>> = HashMap::new();
    for UplinkVlan { id, network, network_id, vlan, group } in uplink_vlans(config, ids) {
        let active = group.active(groups);
        let Some(&(trunk, worker)) = reached.get(&active) else { continue };
        let network_name = &config.networks[network].id;
        let (storm, vm_policer) = policers.of_uplink(config, &group, network_name, &config.uplinks[active]);
        input.ports.push(PortConfig {
            admin_up: config.uplinks[active].admin_state_up,
            worker,
            storm,
            vm_policer,
            ..PortConfig::uplink(id, network_id, UPLINK_VM, trunk, vlan)
        });
        on_line.entry(group.members).or_default().push((vlan, id));
    }
    for group in uplink_groups(config) {
        let active = group.active(groups);
        for &member in &group.members {
            let Some(&(id, worker)) = reached.get(&member) else { continue };
            input.trunks.push(TrunkConfig {
                id,
                admin_up: config.uplinks[member].admin_state_up,
                worker,
                backup: member != active,
                ports: on_line.get(&group.members).cloned().unwrap_or_default(),
            });
        }
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::compile::endpoints::endpoints;
    use crate::control::compile::failover::Fitness;
    use crate::control::compile::plan::plan;
    use crate::control::config::testgen;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static ACTIVATIONS: LazyLock<Activations> = LazyLock::new(Activations::default);
    static NO_MITIGATION: LazyLock<MitigationState> = LazyLock::new(MitigationState::default);

    fn decided(groups: &Groups) -> ControlState<'_> {
        ControlState { groups, mitigation: &NO_MITIGATION, activations: &ACTIVATIONS }
    }

    /// The configuration input from scratch, with ports and networks by name instead of id.
    fn by_name(config: &Config, ids: &IdAllocator) -> Vec<String> {
        let endpoints = endpoints(config, ids);
        let reached = || endpoints.iter().map(|endpoint| (endpoint, Some(0)));
        let mut policers = Policers::new(2);
        policers.follow(&Config::default(), config);
        let forwarding = compile(config, ids, HashKey::new([1; 16]), reached(), &policers, decided(&Groups::default()));
        let outsides = uplink_vlans(config, ids);
        let name = |id: &PortId| match endpoints.iter().find(|endpoint| endpoint.id == *id) {
            Some(endpoint) => endpoint.name.clone(),
            None => {
                let outside = outsides.iter().find(|outside| outside.id == *id).unwrap();
                format!("{:?} {}", outside.group.name, config.networks[outside.network].id)
            }
        };
        let mut all: Vec<String> = endpoints
            .iter()
            .filter(|endpoint| !endpoint.is_uplink())
            .map(|endpoint| {
                let port = forwarding.port(endpoint.id).unwrap();
                let network = forwarding.network(port.network).unwrap();
                let siblings: Vec<_> =
                    forwarding.ports().filter(|other| other.vm == port.vm).map(|p| name(&p.id)).collect();
                let mut siblings: Vec<_> = siblings.into_iter().collect();
                siblings.sort();
                let mut flood: Vec<_> = forwarding.flood(endpoint.id).concat().iter().map(name).collect();
                flood.sort();
                let (security, up) = (&port.security, port.admin_up);
                let NetworkConfig { id: _, mtu, ageing, limits, anti_spoof, reserved } = network;
                let (unknown, promiscuous, limit) = (port.unknown_unicast, port.promiscuous, port.mac_limit);
                format!(
                    "{} {} {security:?} {up} {unknown} {promiscuous} {limit:?} {mtu} {ageing} {limits:?} {anti_spoof} \
                     {reserved:?} {siblings:?} {flood:?} {:?} {:?} {:?}",
                    endpoint.name, port.mac, endpoint.attachment, port.storm, port.vm_policer
                )
            })
            .collect();
        let input = collect(config, ids, reached(), &policers, decided(&Groups::default()));
        let trunks = endpoints
            .iter()
            .filter_map(|endpoint| Some((endpoint, input.trunks.iter().find(|trunk| trunk.id == endpoint.id)?)));
        all.extend(trunks.map(|(endpoint, trunk)| {
            let mut ports: Vec<_> = trunk.ports.iter().map(|(vlan, id)| (vlan, name(id))).collect();
            ports.sort();
            format!("{} {:?} {} {} {ports:?}", endpoint.name, endpoint.attachment, trunk.admin_up, trunk.backup)
        }));
        all.sort();
        all
    }

    proptest! {
        #[test]
        fn any_configuration_compiles(config in testgen::config()) {
            let ids = IdAllocator::first(&config);
            let endpoints = endpoints(&config, &ids);
            prop_assert_eq!(endpoints.len(), config.ports().count() + config.uplinks.len());
            let reached = || endpoints.iter().map(|endpoint| (endpoint, Some(0)));
            let mut policers = Policers::new(2);
            policers.follow(&Config::default(), &config);
            let forwarding = compile(&config, &ids, HashKey::new([1; 16]), reached(), &policers, decided(&Groups::default()));
            let outside = uplink_vlans(&config, &ids).len();
            prop_assert_eq!(forwarding.ports().count(), config.ports().count() + outside);
            for endpoint in &endpoints {
                let ConfigRef::Port { vm, position, network, .. } = endpoint.config_ref else { continue };
                let port = &config.vms[vm].ports[position];
                let compiled = forwarding.port(endpoint.id).unwrap();
                prop_assert_eq!(compiled.mac, port.mac);
                prop_assert_eq!(&config.networks[network].id, &port.network_id);
                let (vm, of_vm) = (&config.vms[vm], policers.of_vm(&config.vms[vm].id));
                let cache = &mut LimitsCache::default();
                let (storm, vm_policer) = policers.of_port(of_vm, vm, position, &config.networks[network], cache);
                prop_assert_eq!((&compiled.storm, &compiled.vm_policer), (&storm, &Some(vm_policer)));
            }
        }

        /// Each network of an uplink is a port on that network, with its VLAN; one uplink of each group is active.
        #[test]
        fn an_uplink_is_a_port_on_each_of_its_networks(config in testgen::config(), second: bool) {
            let ids = IdAllocator::first(&config);
            let endpoints = endpoints(&config, &ids);
            let mut groups = Groups::default();
            for uplink in &config.uplinks {
                let mut fitness = [Fitness::Fit, Fitness::Unfit];
                fitness.rotate_right(usize::from(second));
                groups.update(uplink.group.as_deref().unwrap_or_default(), &fitness, crate::time::MonoTime::from_secs(1));
            }
            let reached = endpoints.iter().map(|endpoint| (endpoint, Some(u16::from(endpoint.is_uplink()))));
            let mut policers = Policers::new(2);
            policers.follow(&Config::default(), &config);
            let input = collect(&config, &ids, reached, &policers, decided(&groups));
            let parents: std::collections::HashSet<_> =
                config.ports().filter_map(|(_, port)| Some(&port.subport()?.parent)).collect();
            prop_assert_eq!(input.trunks.len(), config.uplinks.len() + parents.len());
            for uplink in &config.uplinks {
                let trunk = ids.trunk(&uplink.id).unwrap();
                let forwarding = input.trunks.iter().find(|forwarding| forwarding.id == trunk).unwrap();
                let members = config.uplinks.iter().filter(|other| other.group_name() == uplink.group_name());
                let place = members.clone().position(|other| other.id == uplink.id).unwrap();
                prop_assert_eq!(forwarding.backup, members.count() == 2 && (place == 1) != second);
                prop_assert_eq!(forwarding.ports.len(), uplink.networks.len());
                for of in &uplink.networks {
                    let id = ids.uplink_vlan(&uplink.group_name(), &of.network_id).unwrap();
                    prop_assert!(forwarding.ports.contains(&(of.vlan, id)));
                    let port = input.ports.iter().find(|port| port.id == id).unwrap();
                    prop_assert_eq!(port.network, ids.network(&of.network_id).unwrap());
                    prop_assert_eq!((port.role, port.mac, &port.security), (Role::Uplink, crate::wire::Mac::ZERO, &Security::Off));
                    prop_assert_eq!((port.vm, port.worker), (UPLINK_VM, Some(1)));
                    if !forwarding.backup {
                        prop_assert_eq!(port.attachment, Attachment::Tagged { trunk, vlan: of.vlan });
                        prop_assert_eq!(port.admin_up, uplink.admin_state_up);
                    }
                }
            }
        }

        /// The result does not depend on the sequence of changes.
        #[test]
        fn the_result_does_not_depend_on_history(steps in proptest::collection::vec(testgen::two(), 1..4)) {
            let mut ids = IdAllocator::default();
            let mut now = Config::default();
            for new in steps.into_iter().flat_map(|(old, new)| [old, new]) {
                // The `switch` table never changes while the switch runs.
                let new = Config { switch: now.switch.clone(), ..new };
                ids.update(&plan(&now, &new), &new);
                prop_assert_eq!(by_name(&new, &ids), by_name(&new, &IdAllocator::first(&new)));
                now = new;
            }
        }
    }
}
