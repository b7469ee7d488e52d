//! Edits of random configurations: pairs and triples that have much in common, for property tests of changes and merges.

use super::*;

/// Two configurations with the same `[switch]` and much in common: the second is the first with some edits, and with
/// parts of a third.
pub(crate) fn two() -> impl Strategy<Value = (Config, Config)> {
    (config(), config(), edits()).prop_map(|(old, other, edits)| {
        let new = edited(&old, other, 'x', 0x8000, edits);
        (old, new)
    })
}

/// Three configurations: the second and third are the first with different edits.
pub(crate) fn three() -> impl Strategy<Value = [Config; 3]> {
    (config(), [config(), config()], [edits(), edits()]).prop_map(|(old, [a, b], [of_a, of_b])| {
        let a = edited(&old, a, 'x', 0x8000, of_a);
        let b = edited(&old, b, 'y', 0x4000, of_b);
        [old, a, b]
    })
}

fn edits() -> impl Strategy<Value = Vec<(Edit, Index, Index)>> {
    vec((any::<Edit>(), any::<Index>(), any::<Index>()), 0..8)
}

fn edited(old: &Config, mut other: Config, mark: char, bit: u64, edits: Vec<(Edit, Index, Index)>) -> Config {
    // Distinct ids, so that parts of one can be inserted into another.
    for network in &mut other.networks {
        network.id.insert(0, mark);
    }
    for vm in &mut other.vms {
        vm.id.insert(0, mark);
        for port in &mut vm.ports {
            port.network_id.insert(0, mark);
            port.port_id.insert(0, mark);
            port.mac = Mac::from_bits(port.mac.bits() | bit);
            match &mut port.attachment {
                PortAttachment::Parent(subport) => subport.parent.insert(0, mark),
                PortAttachment::Device(device) => rename(device, |name| format!("{mark}{name}")),
            }
        }
    }
    for uplink in &mut other.uplinks {
        uplink.id.insert(0, mark);
        if let Some(group) = &mut uplink.group {
            group.insert(0, mark);
        }
        for tagged in &mut uplink.networks {
            tagged.network_id.insert(0, mark);
        }
        rename(&mut uplink.device, |name| format!("{mark}{name}"));
    }
    let mut new = old.clone();
    for (edit, a, b) in edits {
        edit.make(&mut new, &mut other, a, b);
    }
    mend(&mut new);
    new
}

/// Removes what edits made invalid: missing networks, groups of one uplink, conflicts of ports.
fn mend(config: &mut Config) {
    reconcile(config);
    let Config { networks, vms, uplinks, .. } = config;
    let is_there = |id: &str| networks.iter().any(|network| network.id == id);
    for vm in vms {
        vm.ports.retain(|port| is_there(&port.network_id));
    }
    for uplink in &mut *uplinks {
        uplink.networks.retain(|tagged| is_there(&tagged.network_id));
    }
    uplinks.retain(|uplink| !uplink.networks.is_empty());
    let before = uplinks.clone();
    for uplink in uplinks.iter_mut().filter(|uplink| uplink.group.is_some()) {
        let mut group = before.iter().filter(|other| other.group == uplink.group);
        if group.clone().count() > 2 || !group.all(|other| other.carries_same_as(uplink)) {
            uplink.group = None;
        }
    }
    untangle(config);
    config.order_ports();
}

/// Defines an edit of a configuration, and the list of all edits.
macro_rules! edits {
    ($($edit:ident)*) => {
        #[derive(Debug, Clone, Copy)]
        enum Edit { $($edit,)* }

        impl Edit {
            const ALL: &[Edit] = &[$(Edit::$edit,)*];
        }
    };
}

edits! {
    DropPort DropVm DropNetwork TakeVm TakeNetwork MovePort
    SwapPorts SwapVms SwapNetworks EmptyVm Mtu Ageing
    Mac AdminState Security Queues Offloads Name Lifetime
    Vlan OwnDevice Subport
    Strict Lend Suppress Promiscuous Limit Reserved
    NetworkStorm VmStorm ShareMac PortStorm UplinkStorm
    Network Kind DropUplink SwapUplinks UplinkState UplinkDevice UplinkVlan UplinkNetwork Ungroup
}

/// Changes the limit of a class.
fn flip(said: &mut Option<StormPolicy>, changed: Option<StormPolicy>) {
    let limit = StormLimit {
        frames: Some(Rate::new(7, 7)),
        bits: None,
        action: StormAction::Drop,
        recovery_seconds: StormLimit::RECOVERY,
    };
    let limit = Some(StormPolicy::Limit(limit));
    *said = if *said == limit { changed } else { limit };
}

impl Arbitrary for Edit {
    type Parameters = ();
    type Strategy = proptest::sample::Select<Edit>;
    fn arbitrary_with((): ()) -> Self::Strategy {
        select(Edit::ALL)
    }
}

impl Edit {
    /// Applies the edit, if possible.
    fn make(self, config: &mut Config, other: &mut Config, a: Index, b: Index) {
        if matches!(self, Edit::TakeVm | Edit::TakeNetwork) {
            config.networks.append(&mut other.networks);
            if matches!(self, Edit::TakeVm) {
                config.vms.append(&mut other.vms);
                config.uplinks.append(&mut other.uplinks);
            }
            return;
        }
        if self.make_outside(&mut config.uplinks, a, b) {
            return;
        }
        let networks = config.networks.len();
        match self {
            Edit::SwapNetworks => return config.networks.swap(a.index(networks), b.index(networks)),
            // another value within the bounds
            Edit::Mtu => {
                let mtu = &mut config.networks[a.index(networks)].mtu;
                return *mtu = if *mtu == 68 { 69 } else { *mtu - 1 };
            }
            Edit::Ageing => {
                let seconds = &mut config.networks[a.index(networks)].ageing_seconds;
                return *seconds = if *seconds == 10 { 11 } else { *seconds - 1 };
            }
            Edit::NetworkStorm => {
                let network = &mut config.networks[a.index(networks)];
                network.probe_seconds = network.probe_seconds % 10 + 1;
                return flip(&mut network.storm.classes[b.index(3)], Some(StormPolicy::Off));
            }
            Edit::Reserved => return config.networks[a.index(networks)].reserved_groups.0 ^= 0x4000,
            Edit::DropNetwork if networks > 1 => {
                let gone = config.networks.remove(a.index(networks)).id;
                return config.vms.iter_mut().for_each(|vm| vm.ports.retain(|port| port.network_id != gone));
            }
            _ => {}
        }
        if config.vms.is_empty() {
            return;
        }
        let vms = config.vms.len();
        match self {
            Edit::SwapVms => return config.vms.swap(a.index(vms), b.index(vms)),
            Edit::DropVm => return drop(config.vms.remove(a.index(vms))),
            Edit::VmStorm => return flip(&mut config.vms[a.index(vms)].storm.classes[b.index(3)], None),
            Edit::ShareMac => {
                let vm = &mut config.vms[a.index(vms)];
                (vm.share_mac, vm.sibling_split_horizon) = (!vm.share_mac, vm.share_mac);
                return;
            }
            Edit::EmptyVm => return config.vms[a.index(vms)].ports.clear(),
            _ => {}
        }
        let from = a.index(vms);
        let ports = config.vms[from].ports.len();
        if ports == 0 {
            return;
        }
        let to = b.index(vms);
        let network_id = b.get(&config.networks).id.clone();
        let at = b.index(ports);
        match self {
            Edit::SwapPorts => return config.vms[from].ports.swap(a.index(ports), at),
            Edit::DropPort => return drop(config.vms[from].ports.remove(at)),
            Edit::MovePort => {
                let port = config.vms[from].ports.remove(at);
                return config.vms[to].ports.push(port);
            }
            // Allows a neighbour to use its address.
            Edit::Lend => {
                let mac = config.vms[from].ports[at].mac;
                let to = &mut config.vms[from].ports[b.index(ports)];
                if to.port_security != PortSecurity::Off && to.mac != mac {
                    to.allowed_address_pairs = vec![AddressPair { mac: Some(mac), ip: None }];
                }
                return;
            }
            _ => {}
        }
        let neighbour = config.vms[from].ports.get(at + 1).map(|port| port.port_id.clone());
        let port = &mut config.vms[from].ports[at];
        let netns = port.device().and_then(Device::netns).map(str::to_owned);
        let name = port.device().map_or("", Device::name).to_owned();
        match self {
            // Bits that generated addresses do not differ in.
            Edit::Mac => port.mac = Mac::from_bits(port.mac.bits() ^ 0x4000),
            Edit::AdminState => port.admin_state_up = !port.admin_state_up,
            Edit::Lifetime if netns.is_some() => {
                port.lifetime = match port.lifetime {
                    Lifetime::Config => Lifetime::Netns,
                    Lifetime::Netns => Lifetime::Config,
                }
            }
            Edit::Security => {
                port.port_security = PortSecurity::Off;
                port.allowed_address_pairs.clear();
            }
            Edit::Strict => port.port_security = PortSecurity::MacIp,
            Edit::Suppress => {
                port.unknown_unicast = UnknownUnicast::Suppress;
                port.promiscuous = false;
            }
            Edit::Promiscuous => {
                port.unknown_unicast = UnknownUnicast::Deliver;
                port.promiscuous = true;
            }
            Edit::PortStorm => flip(&mut port.storm.classes[b.index(3)], None),
            Edit::Limit => {
                port.mac_limit = match port.mac_limit {
                    Some(_) => None,
                    None => Some(MacLimit { stations: 1, policy: AtLimit::Drop }),
                }
            }
            Edit::Name => rename_of(port, |name| format!("y{}", &name[..name.len().min(14)])),
            Edit::Vlan => {
                if let PortAttachment::Parent(subport) = &mut port.attachment {
                    subport.vlan = Vid::new(subport.vlan.get() % 4094 + 1).unwrap();
                }
            }
            Edit::OwnDevice if port.subport().is_some() => {
                let name = format!("o{}", port.mac.bits() & 0xffff);
                port.attachment = PortAttachment::Device(Device::Packet(Packet {
                    name,
                    netns: None,
                    offloads: true,
                    isolate: false,
                }));
            }
            Edit::Subport => {
                if let Some(parent) = neighbour {
                    port.attachment = PortAttachment::Parent(Subport { parent, vlan: Vid::ONE });
                    port.lifetime = Lifetime::Config;
                }
            }
            Edit::Network => port.network_id = network_id,
            Edit::Queues => match port.device_mut() {
                Some(Device::Tap(tap)) => tap.queues = tap.queues % 256 + 1,
                Some(Device::Xdp(xdp)) => xdp.queues = xdp.queues.map_or(Some(1), |_| None),
                Some(Device::Packet(_)) | None => {}
            },
            Edit::Offloads => match port.device_mut() {
                Some(Device::Tap(Tap { offloads, .. }) | Device::Packet(Packet { offloads, .. })) => *offloads ^= true,
                Some(Device::Xdp(xdp)) => xdp.replace_xdp_program = !xdp.replace_xdp_program,
                None => {}
            },
            Edit::Kind => {
                if let Some(device) = port.device_mut() {
                    *device = match device {
                        Device::Tap(_) => {
                            Device::Xdp(Xdp { name, netns, queues: None, mode: Mode::Auto, replace_xdp_program: false })
                        }
                        Device::Xdp(_) => Device::Packet(Packet { name, netns, offloads: true, isolate: false }),
                        Device::Packet(_) => Device::Tap(Tap { name, netns, queues: 1, offloads: true, persist: true }),
                    }
                }
            }
            _ => {}
        }
    }

    /// Applies the edit if it is one of uplinks. Whether it is.
    fn make_outside(self, uplinks: &mut Vec<Uplink>, a: Index, b: Index) -> bool {
        use Edit::{
            DropUplink, SwapUplinks, Ungroup, UplinkDevice, UplinkNetwork, UplinkState, UplinkStorm, UplinkVlan,
        };
        if !matches!(
            self,
            DropUplink | SwapUplinks | Ungroup | UplinkDevice | UplinkNetwork | UplinkState | UplinkStorm | UplinkVlan
        ) {
            return false;
        }
        let all = uplinks.len();
        if all == 0 {
            return true;
        }
        let index = a.index(all);
        let group = uplinks[index].group_name();
        match self {
            DropUplink => drop(uplinks.remove(index)),
            SwapUplinks => uplinks.swap(index, b.index(all)),
            Ungroup => uplinks[index].group = None,
            UplinkStorm => flip(&mut uplinks[index].storm.classes[b.index(3)], Some(StormPolicy::Off)),
            UplinkState => uplinks[index].admin_state_up ^= true,
            UplinkDevice => rename(&mut uplinks[index].device, |name| format!("z{}", &name[..name.len().min(14)])),
            _ => {
                // The same for both uplinks of a group.
                let is_meant = |uplink: &&mut Uplink| uplink.group_name() == group && !uplink.networks.is_empty();
                for uplink in uplinks.iter_mut().filter(is_meant) {
                    uplink.networks.sort_by(|a, b| a.network_id.cmp(&b.network_id));
                    let tagged = b.index(uplink.networks.len());
                    if matches!(self, UplinkNetwork) {
                        uplink.networks.remove(tagged);
                    } else {
                        // Generated VLANs are below 2000.
                        let vlan = uplink.networks[tagged].vlan.map_or(2000, |vlan| vlan.get() ^ 2048);
                        uplink.networks[tagged].vlan = Vid::new(vlan);
                    }
                }
            }
        }
        true
    }
}
