//! Any right configuration, for the property tests of everything that takes one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::wire::Mac;

use super::*;

/// Any configuration that [`parse_toml`] could have given.
pub(crate) fn config() -> impl Strategy<Value = Config> {
    (switch(), vec(network(), 1..5), vec((id(), vec((port(), any::<Index>()), 0..5)), 0..5)).prop_map(
        |(switch, mut networks, vms)| {
            // a number makes them all different, whatever else is in them
            for (number, network) in networks.iter_mut().enumerate() {
                network.id = format!("{number}{}", network.id);
            }
            let mut serial = 0u64;
            let mut own = |(mut port, index): (Port, Index)| {
                serial += 1;
                port.network_id = index.get(&networks).id.clone();
                port.port_id = format!("{serial}{}", port.port_id);
                port.mac = Mac::from_bits(port.mac.bits() & !0xffff | serial);
                let Device::Tap(tap) = &mut port.device;
                tap.name = format!("{serial}{}", tap.name);
                port
            };
            let vms = vms.into_iter().enumerate();
            let vms = vms.map(|(number, (id, ports))| Vm {
                id: format!("{number}{id}"),
                ports: ports.into_iter().map(&mut own).collect(),
            });
            Config { switch, vms: vms.collect(), networks }
        },
    )
}

fn id() -> impl Strategy<Value = String> {
    "\\PC{0,20}".prop_filter("no control characters", |text| !text.chars().any(char::is_control))
}

fn path() -> impl Strategy<Value = PathBuf> {
    "/?[a-z \"é\\\\]{1,12}(/[a-z.]{1,9}){0,3}".prop_map(PathBuf::from)
}

fn switch() -> impl Strategy<Value = SwitchSettings> {
    let metrics = option::of(any::<(IpAddr, u16)>().prop_map(SocketAddr::from));
    let poll = select(&[Poll::Adaptive, Poll::Busy]);
    let cores = btree_set(0usize..1024, 0..4).prop_map(|cores| cores.into_iter().rev().collect());
    (cores, path(), option::of(path()), metrics, poll, 1024u32..=4_194_304, 1024u32..=8_388_608).prop_map(
        |(cores, api, state, metrics, poll, frames, stations)| SwitchSettings {
            cores,
            api,
            state,
            metrics,
            poll,
            frames,
            stations,
        },
    )
}

fn network() -> impl Strategy<Value = Network> {
    (id(), 68u16..=9216, 10u32..=1_000_000, any::<(u32, u32)>(), any::<bool>()).prop_map(
        |(id, mtu, ageing_seconds, (a, b), guard)| Network {
            id,
            mtu,
            ageing_seconds,
            fdb_limit: a.max(b).max(1),
            fdb_limit_per_port: a.min(b).max(1),
            guard,
            reserved_groups: ReservedGroups::VmDefault,
        },
    )
}

/// Its ids, its address and its name are not unique yet, and its network is not there.
fn port() -> impl Strategy<Value = Port> {
    let allocation = select(&[IpAllocation::Immediate, IpAllocation::Deferred, IpAllocation::None]);
    let ip = select(&["10.5.0.1", "10.5.0.0/24", "fd00::/64", "::"]).prop_map(str::to_string);
    let pair = (station(), option::of(ip)).prop_map(|(mac, ip)| AddressPair { mac, ip });
    let security = prop_oneof![
        Just((PortSecurity::Off, Vec::new())),
        vec(pair, 0..3).prop_map(|pairs| (PortSecurity::Mac, pairs)),
    ];
    (id(), station(), vec(any::<IpAddr>(), 0..3), allocation, security, any::<bool>(), tap()).prop_map(
        |(port_id, mac, fixed_ips, ip_allocation, (port_security, pairs), admin_state_up, tap)| Port {
            port_id,
            network_id: String::new(),
            mac,
            fixed_ips,
            ip_allocation,
            port_security,
            allowed_address_pairs: pairs,
            admin_state_up,
            device: Device::Tap(tap),
        },
    )
}

fn station() -> impl Strategy<Value = Mac> {
    (1u64..1 << 48).prop_map(|bits| Mac::from_bits(bits & !0x0100_0000_0000 | 1))
}

fn tap() -> impl Strategy<Value = Tap> {
    let netns = option::of(prop_oneof!["[a-z][a-z0-9-]{0,9}", "/[a-z]{1,5}/[a-z]{1,5}"]);
    ("[a-z._-]{1,11}", netns, 1u16..=256, any::<bool>(), any::<bool>())
        .prop_map(|(name, netns, queues, offloads, persist)| Tap { name, netns, queues, offloads, persist })
}
