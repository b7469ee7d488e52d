//! Device settings of a port or uplink, from its configuration and its networks.

use crate::control::config::{Config, Device, Network, Port, Uplink};
use crate::device::{Settings, packet, tap, xdp};
use crate::sys::netns::Netns;
use crate::wire::Mac;

/// Maximum slots in the fill ring of a queue, as many as its small frames. Fewer keep caches warmer: with 512, 64-byte
/// frames pass 10 % faster. They are also the buffer while the worker stalls: with 1024, the loss-free rate falls by a
/// seventh.
const FILL: std::ops::RangeInclusive<u32> = 64..=2048;

/// Slots in the fill ring of each AF_XDP queue: a quarter of the pool is shared among these queues.
pub fn fill(config: &Config) -> u32 {
    let sharers = config.devices().filter(|device| matches!(device, Device::Xdp(_))).count().max(1);
    let share = config.switch.frames / 4 / u32::try_from(sharers).unwrap_or(u32::MAX);
    // Rounded down to a power of two.
    let share = share.checked_ilog2().map_or(0, |log| 1 << log);
    share.clamp(*FILL.start(), *FILL.end())
}

/// Device settings of a port of this network, unless it is a subport. `fill`: result of [`fill`]. Independent of
/// subports.
pub fn device(port: &Port, network: &Network, fill: u32) -> Option<Settings> {
    Some(settings(port.device()?, &port.port_id, port.mac, network.mtu, fill, false))
}

/// Device settings of an uplink: frames of all its networks must fit.
pub fn uplink_device(uplink: &Uplink, config: &Config, fill: u32) -> Settings {
    let tagged = |network: &&Network| uplink.networks.iter().any(|of| of.network_id == network.id);
    let mtu = config.networks.iter().filter(tagged).map(|network| network.mtu).max();
    // Validation ensures that there is one.
    settings(&uplink.device, &uplink.id, uplink_mac(&uplink.id), mtu.unwrap_or(1500), fill, true)
}

/// MAC address of a tap created for an uplink: locally administered, and constant. No frame is sent from it; it only
/// has to be unique.
fn uplink_mac(id: &str) -> Mac {
    // FNV-1a
    let hash = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    Mac::from_bits((hash ^ hash >> 48) & 0xfcff_ffff_ffff | 0x0200_0000_0000)
}

/// `device` with these properties.
pub(super) fn settings(device: &Device, owner: &str, mac: Mac, mtu: u16, fill: u32, vlan_demux: bool) -> Settings {
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
            replace_xdp_program: xdp.replace_xdp_program,
            mtu,
            fill,
            owner,
            vlan_demux,
        }),
        Device::Packet(packet) => Settings::Packet(packet::Settings {
            name,
            netns,
            offloads: packet.offloads,
            isolate: packet.isolate,
            mtu,
            owner,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_address_of_an_uplink_is_locally_administered(id: String) {
            let mac = uplink_mac(&id);
            prop_assert!(mac.is_station());
            prop_assert_eq!(mac.octets()[0] & 3, 2);
        }
    }

    #[test]
    fn the_pool_is_divided_among_af_xdp_queues() {
        let with = |xdp: usize, frames: u32| {
            let uplink = |number: usize| Uplink {
                owner: None,
                id: format!("up{number}"),
                group: None,
                networks: Vec::new(),
                storm: crate::control::config::Storm::OFF,
                admin_state_up: true,
                device: Device::Xdp(crate::control::config::Xdp {
                    name: format!("eth{number}"),
                    netns: None,
                    queues: None,
                    mode: xdp::Mode::Auto,
                    replace_xdp_program: false,
                }),
            };
            let mut config = Config { uplinks: (0..xdp).map(uplink).collect(), ..Config::default() };
            config.switch.frames = frames;
            fill(&config)
        };
        assert_eq!(with(0, 65536), 2048, "no device needs slots, and nothing is divided by zero");
        assert_eq!([1, 8, 9, 64, 4000].map(|xdp| with(xdp, 65536)), [2048, 2048, 1024, 256, 64]);
        assert_eq!([1, 3].map(|xdp| with(xdp, 1024)), [256, 64]);
    }
}
