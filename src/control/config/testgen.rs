//! Generators of valid configurations for property tests.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

use crate::device::xdp::Mode;
use crate::switch::{AtLimit, MacLimit, Rate, ReservedMask};
use crate::wire::{Mac, Vid};

use super::*;

mod edits;
pub(crate) use edits::{three, two};

impl Port {
    /// Its device, unless it is a subport.
    pub fn device_mut(&mut self) -> Option<&mut Device> {
        match &mut self.attachment {
            PortAttachment::Device(device) => Some(device),
            PortAttachment::Parent(_) => None,
        }
    }
}

/// Any configuration that [`parse_toml`] can return.
pub(crate) fn config() -> impl Strategy<Value = Config> {
    let vms = vec((id(), storm(true), any::<bool>(), vec((port(), any::<Index>()), 0..5)), 0..5);
    let wishes = vec((any::<Index>(), any::<Index>(), 1..4095u16), 0..6);
    (switch(), vec(network(), 1..5), vms, vec((uplink(), any::<bool>()), 0..3), wishes).prop_map(
        |(switch, mut networks, vms, outside, wishes)| {
            // a number makes ids and addresses unique
            for (number, network) in networks.iter_mut().enumerate() {
                network.id = format!("{number}{}", network.id);
            }
            let mut serial = 0u64;
            let mut own = |(mut port, index): (Port, Index)| {
                serial += 1;
                port.network_id = index.get(&networks).id.clone();
                port.port_id = format!("{serial}{}", port.port_id);
                port.mac = Mac::from_bits(port.mac.bits() & !0xffff | serial);
                rename_of(&mut port, |name| format!("{serial}{name}"));
                port
            };
            let vms = vms.into_iter().enumerate();
            let vms = vms.map(|(number, (id, storm, share_mac, ports))| Vm {
                id: format!("{number}{id}"),
                storm,
                share_mac,
                sibling_split_horizon: share_mac && number % 2 == 0,
                owner: (number == 1).then(|| "neutron".to_owned()),
                ports: ports.into_iter().map(&mut own).collect(),
            });
            let vms: Vec<Shared<Vm>> = vms.map(Shared::from).collect();
            let mut uplinks = Vec::new();
            for (mut uplink, is_doubled) in outside {
                uplink.networks.truncate(networks.len());
                for (tagged, network) in uplink.networks.iter_mut().zip(&networks) {
                    tagged.network_id.clone_from(&network.id);
                }
                let number = uplinks.len();
                // No port id begins like this.
                uplink.id = format!("up{number}{}", uplink.id);
                rename(&mut uplink.device, |name| format!("u{number}{name}"));
                if is_doubled {
                    uplink.group = Some(format!("g{number}"));
                    let mut second = uplink.clone();
                    second.id = format!("second{number}");
                    second.networks.reverse();
                    rename(&mut second.device, |name| format!("v{}", &name[1..]));
                    uplinks.push(second);
                }
                uplinks.push(uplink);
            }
            let mut config = Config { switch, vms, networks, uplinks };
            reconcile(&mut config);
            trunk(&mut config, &wishes);
            config.order_ports();
            config
        },
    )
}

/// Removes settings of ports that conflict with their networks or other ports.
fn reconcile(config: &mut Config) {
    let lent: Vec<(String, String, Mac)> = config
        .ports()
        .flat_map(|(_, port)| {
            let macs = port.allowed_address_pairs.iter().filter_map(|pair| pair.mac);
            macs.map(|mac| (port.port_id.clone(), port.network_id.clone(), mac))
        })
        .collect();
    let most: Vec<(String, u32)> =
        config.networks.iter().map(|network| (network.id.clone(), network.fdb_limit_per_port)).collect();
    for port in config.vms.iter_mut().flat_map(|vm| &mut vm.ports) {
        let is_shared = |(id, network, mac): &_| *id != port.port_id && *network == port.network_id && *mac == port.mac;
        if lent.iter().any(is_shared) {
            port.unknown_unicast = UnknownUnicast::Deliver;
        }
        let most = most.iter().find(|(id, _)| *id == port.network_id).map_or(u32::MAX, |(_, most)| *most);
        port.mac_limit = port.mac_limit.map(|limit| MacLimit { stations: limit.stations.min(most), ..limit });
    }
}

/// Renames the netdev of a port, if it has one.
fn rename_of(port: &mut Port, name: impl FnOnce(&str) -> String) {
    if let Some(device) = port.device_mut() {
        rename(device, name);
    }
}

/// Makes ports subports of their neighbours, where possible.
fn trunk(config: &mut Config, wishes: &[(Index, Index, u16)]) {
    for &(vm, port, vlan) in wishes {
        if config.vms.is_empty() {
            return;
        }
        let vm = vm.index(config.vms.len());
        let ports = &mut config.vms[vm].ports;
        if ports.len() < 2 {
            continue;
        }
        let at = port.index(ports.len());
        let parent = ports[(at + 1 + usize::from(vlan) % (ports.len() - 1)) % ports.len()].port_id.clone();
        ports[at].attachment = PortAttachment::Parent(Subport { parent, vlan: Vid::new(vlan).unwrap() });
        ports[at].lifetime = Lifetime::Config;
    }
    untangle(config);
}

/// Removes invalid subports.
fn untangle(config: &mut Config) {
    loop {
        let wrong: Vec<String> = super::trunk::subport_errors(config).into_iter().map(|error| error.port).collect();
        if wrong.is_empty() {
            return;
        }
        config.vms.iter_mut().for_each(|vm| vm.ports.retain(|port| !wrong.contains(&port.port_id)));
    }
}

/// Renames a netdev.
fn rename(device: &mut Device, name: impl FnOnce(&str) -> String) {
    let (Device::Tap(Tap { name: now, .. })
    | Device::Xdp(Xdp { name: now, .. })
    | Device::Packet(Packet { name: now, .. })) = device;
    *now = name(now);
}

fn id() -> impl Strategy<Value = String> {
    "\\PC{0,20}".prop_filter("no control characters", |text| !text.chars().any(char::is_control))
}

fn owner() -> impl Strategy<Value = Option<String>> {
    option::weighted(0.3, select(&["neutron", "cni", "é"])).prop_map(|owner| owner.map(str::to_owned))
}

fn path() -> impl Strategy<Value = PathBuf> {
    "/?[a-z \"é\\\\]{1,12}(/[a-z.]{1,9}){0,3}".prop_map(PathBuf::from)
}

fn switch() -> impl Strategy<Value = SwitchSettings> {
    let listeners = option::weighted(0.5, address()).prop_flat_map(|metrics| {
        let pages =
            option::weighted(0.5, address()).prop_map(move |pages| pages.filter(|pages| Some(*pages) != metrics));
        (Just(metrics), pages, subsequence(&["switch-1.example.net", "a_b", "localhost"], 0..=3))
    });
    let ids = || subsequence(&[0u32, 1000, 990, u32::MAX - 1], 0..=3);
    let writers = option::of((ids(), ids()).prop_map(|(uids, gids)| Writers { uids, gids }));
    let sockets = (path(), option::of(path()), writers).prop_map(|(api, read, writers)| {
        let read = read.filter(|read| *read != api);
        (api, read, writers)
    });
    let poll = select(&[Poll::Adaptive, Poll::Busy]);
    let probe_key = option::of(path()).prop_map(|path| path.map(|path| Path::new("/etc").join(path)));
    let cores = btree_set(0usize..1024, 0..4).prop_map(|cores| cores.into_iter().rev().collect());
    (cores, sockets, option::of(path()), listeners, (poll, probe_key), 1024u32..=4_194_304, 1024u32..=8_388_608)
        .prop_map(
            |(
                cores,
                (api, api_read, api_writers),
                state,
                (metrics, pages, hosts),
                (poll, probe_key),
                frames,
                stations,
            )| {
                SwitchSettings {
                    cores,
                    api,
                    api_writers,
                    api_read,
                    state,
                    metrics,
                    pages,
                    pages_hosts: hosts.into_iter().filter(|_| pages.is_some()).map(str::to_owned).collect(),
                    probe_key,
                    poll,
                    frames,
                    stations,
                }
            },
        )
}

fn address() -> impl Strategy<Value = SocketAddr> {
    any::<(IpAddr, u16)>().prop_map(SocketAddr::from)
}

fn network() -> impl Strategy<Value = Network> {
    let seconds = (1u32..=10, 30u32..=3600);
    let amounts = (68u16..=9216, 10u32..=1_000_000, any::<(u32, u32)>());
    (id(), amounts, any::<bool>(), any::<u16>(), storm(true), seconds, owner()).prop_map(
        |(
            id,
            (mtu, ageing_seconds, (a, b)),
            anti_spoof,
            reserved,
            storm,
            (probe_seconds, dampening_seconds),
            owner,
        )| {
            Network {
                id,
                mtu,
                ageing_seconds,
                fdb_limit: a.max(b).max(1),
                fdb_limit_per_port: a.min(b).max(1),
                anti_spoof,
                reserved_groups: ReservedMask(reserved),
                storm: storm.over(Storm::DEFAULT),
                probe_seconds,
                dampening_seconds,
                owner,
            }
        },
    )
}

/// A port; ids, address and netdev name are not unique yet, and its network does not exist.
fn port() -> impl Strategy<Value = Port> {
    let allocation = select(&[IpAllocation::Immediate, IpAllocation::Deferred, IpAllocation::None]);
    (
        id(),
        station(),
        vec(any::<IpAddr>(), 0..3),
        allocation,
        security(),
        delivery(),
        option::of((1u32.., any::<bool>())),
        (any::<bool>(), select(&[Activation::Immediate, Activation::FirstFrame]), any::<bool>()),
        (device(), storm(false)),
        (option::weighted(0.3, 0u16..6), owner()),
    )
        .prop_map(
            |(
                port_id,
                mac,
                fixed_ips,
                ip_allocation,
                security,
                delivery,
                limit,
                states,
                (device, storm),
                (position, owner),
            )| {
                let (admin_state_up, activation, ends) = states;
                let lifetime = if ends && device.netns().is_some() { Lifetime::Netns } else { Lifetime::Config };
                let (port_security, allowed_address_pairs) = security;
                let (unknown_unicast, promiscuous) = delivery;
                let mac_limit = limit.map(|(stations, drop)| MacLimit {
                    stations,
                    policy: if drop { AtLimit::Drop } else { AtLimit::ForwardUnlearned },
                });
                Port {
                    port_id,
                    network_id: String::new(),
                    mac,
                    fixed_ips,
                    ip_allocation,
                    port_security,
                    allowed_address_pairs,
                    unknown_unicast,
                    promiscuous,
                    mac_learning: !promiscuous || admin_state_up,
                    mac_limit,
                    storm,
                    activation,
                    lifetime,
                    admin_state_up,
                    attachment: PortAttachment::Device(device),
                    position,
                    owner,
                }
            },
        )
}

fn security() -> impl Strategy<Value = (PortSecurity, Vec<AddressPair>)> {
    let ip = select(&["10.5.0.1", "10.5.0.0/24", "fd00::/64", "::"]).prop_map(|text| text.parse().unwrap());
    let mac = station().prop_map(Some);
    let pair = prop_oneof![
        3 => (mac, option::of(ip.clone())).prop_map(|(mac, ip)| AddressPair { mac, ip }),
        1 => ip.prop_map(|ip| AddressPair { mac: None, ip: Some(ip) }),
    ];
    let pairs = vec(pair, 0..3).prop_map(|mut pairs| {
        pairs.dedup();
        // The first and last of three may be equal as well.
        if pairs.len() == 3 && pairs[0] == pairs[2] {
            pairs.pop();
        }
        pairs
    });
    prop_oneof![Just((PortSecurity::Off, Vec::new())), (select(&[PortSecurity::Mac, PortSecurity::MacIp]), pairs),]
}

fn delivery() -> impl Strategy<Value = (UnknownUnicast, bool)> {
    select(&[(UnknownUnicast::Deliver, false), (UnknownUnicast::Suppress, false), (UnknownUnicast::Deliver, true)])
}

fn station() -> impl Strategy<Value = Mac> {
    (1u64..1 << 48).prop_map(|bits| Mac::from_bits(bits & !0x0100_0000_0000 | 1))
}

/// An uplink; ids and netdev names are not unique yet, and its networks do not exist.
fn uplink() -> impl Strategy<Value = Uplink> {
    // At most one is untagged; VLANs are unique.
    let vlans = (any::<bool>(), btree_set(1u16..2000, 1..4)).prop_map(|(native, vlans)| {
        let vlans = vlans.into_iter().enumerate();
        vlans.map(|(index, vlan)| if native && index == 0 { None } else { Vid::new(vlan) }).collect::<Vec<_>>()
    });
    (id(), vlans, any::<bool>(), device(), storm(true), owner()).prop_map(
        |(id, vlans, admin_state_up, device, storm, owner)| Uplink {
            id,
            group: None,
            networks: vlans.into_iter().map(|vlan| UplinkNetwork { network_id: String::new(), vlan }).collect(),
            storm: storm.over(Storm::OFF),
            admin_state_up,
            device,
            owner,
        },
    )
}

/// Storm limits, optionally with a limit of copies.
fn storm(copies: bool) -> impl Strategy<Value = Storm> {
    let frames = || (1u64..=1_000_000_000, 1u64..=3600).prop_map(|(rate, times)| Rate::new(rate, rate / 7 * times + 1));
    let bits = (1000u64..=200_000_000_000, 1u64..=1000)
        .prop_map(|(per_second, burst)| BitRate { per_second, burst_bytes: burst * (per_second / 1000) });
    let amounts = prop_oneof![
        frames().prop_map(|frames| (Some(frames), None)),
        bits.clone().prop_map(|bits| (None, Some(bits))),
        (frames(), bits).prop_map(|(frames, bits)| (Some(frames), Some(bits))),
    ];
    let action = prop_oneof![
        select(&[StormAction::Drop, StormAction::DropEvent]).prop_map(|action| (action, StormLimit::RECOVERY)),
        (0u32..=86_400).prop_map(|seconds| (StormAction::Disable, seconds)),
    ];
    let limit = (amounts, action).prop_map(|((frames, bits), (action, recovery_seconds))| {
        StormPolicy::Limit(StormLimit { frames, bits, action, recovery_seconds })
    });
    let policy = || option::of(prop_oneof![1 => Just(StormPolicy::Off), 2 => limit.clone()]);
    let of_copies = option::of(prop_oneof![Just(CopiesPolicy::Off), frames().prop_map(CopiesPolicy::Limit)]);
    ([policy(), policy(), policy()], of_copies)
        .prop_map(move |(classes, of_copies)| Storm { classes, copies: of_copies.filter(|_| copies) })
}

fn device() -> impl Strategy<Value = Device> {
    let netns = || option::of(prop_oneof!["[a-z][a-z0-9-]{0,9}", "/[a-z]{1,5}/[a-z]{1,5}"]);
    let common = || ("[a-z._-]{1,11}", netns());
    let tap = (common(), 1u16..=256, any::<(bool, bool)>()).prop_map(|((name, netns), queues, (offloads, persist))| {
        Device::Tap(Tap { name, netns, queues, offloads, persist })
    });
    let mode = select(&[Mode::Auto, Mode::ZeroCopy, Mode::Copy, Mode::Generic]);
    let xdp =
        (common(), option::of(1u16..=256), mode, any::<bool>()).prop_map(|((name, netns), queues, mode, replaces)| {
            Device::Xdp(Xdp { name, netns, queues, mode, replace_xdp_program: replaces })
        });
    let packet = (common(), any::<(bool, bool)>())
        .prop_map(|((name, netns), (offloads, isolate))| Device::Packet(Packet { name, netns, offloads, isolate }));
    prop_oneof![2 => tap, 1 => xdp, 1 => packet]
}
