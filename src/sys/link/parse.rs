//! Parses link messages of the kernel.

use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoTun, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
};

use super::{Attached, Link, TapInfo, Vxlan, XdpMode};
use crate::wire::Mac;

// IFLA_TUN_*, linux/if_link.h
const TUN_TYPE: u16 = 3;
const TUN_VNET_HDR: u16 = 5;
const TUN_PERSIST: u16 = 6;
const TUN_MULTI_QUEUE: u16 = 7;
const TUN_NUM_QUEUES: u16 = 8;

/// IFLA_TUN_TYPE of a tap: IFF_TAP.
const TYPE_TAP: u32 = 2;

/// Name of the netdev of a message.
pub(in crate::sys) fn name(message: &LinkMessage) -> Option<String> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// The netdev of a message.
pub(in crate::sys) fn read(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let (up, carrier) = (flags.contains(LinkFlags::Up), flags.contains(LinkFlags::LowerUp));
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link { index: message.header.index, ethernet, up, carrier, ..Link::default() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(octets) => {
                link.mac = octets.as_slice().try_into().map(Mac::new).unwrap_or_default();
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::GsoMaxSegs(segs) => link.gso_max_segs = *segs,
            LinkAttribute::GsoMaxSize(size) => link.gso_max_size = *size,
            LinkAttribute::GsoIpv4MaxSize(size) => link.gso_ipv4_max_size = *size,
            LinkAttribute::GroMaxSize(size) => link.gro_max_size = *size,
            LinkAttribute::GroIpv4MaxSize(size) => link.gro_ipv4_max_size = *size,
            LinkAttribute::Controller(index) => link.master = *index,
            LinkAttribute::TxQueueLen(len) => link.queue_len = *len,
            LinkAttribute::LinkInfo(infos) => (link.tap, link.vxlan) = (read_tap(infos), read_vxlan(infos)),
            LinkAttribute::Xdp(programs) => link.xdp = read_xdp(programs),
            _ => {}
        }
    }
    link
}

fn read_vxlan(infos: &[LinkInfo]) -> Option<Vxlan> {
    let attributes = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(attributes)) => Some(attributes),
        _ => None,
    })?;
    let mut vxlan = Vxlan::default();
    for attribute in attributes {
        match *attribute {
            InfoVxlan::Link(index) => vxlan.lower = index,
            InfoVxlan::Local(address) => vxlan.local = Some(address.into()),
            InfoVxlan::Local6(address) => vxlan.local = Some(address.into()),
            InfoVxlan::Group(address) => vxlan.remote = Some(address.into()),
            InfoVxlan::Group6(address) => vxlan.remote = Some(address.into()),
            _ => {}
        }
    }
    Some(vxlan)
}

fn read_tap(infos: &[LinkInfo]) -> Option<TapInfo> {
    if !infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Tun))) {
        return None;
    }
    let mut tap = TapInfo::default();
    let mut is_tap = false;
    let data = infos.iter().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Tun(attributes)) => Some(attributes),
        _ => None,
    });
    for attribute in data.flatten() {
        let value = number(attribute);
        match attribute.kind() {
            TUN_TYPE => is_tap = value == TYPE_TAP,
            TUN_VNET_HDR => tap.vnet_header = value != 0,
            TUN_PERSIST => tap.persist = value != 0,
            TUN_MULTI_QUEUE => tap.multi_queue = value != 0,
            TUN_NUM_QUEUES => tap.queues = value,
            _ => {}
        }
    }
    is_tap.then_some(tap)
}

/// A native and a generic program exclude each other; an offloaded one may be attached in addition.
fn read_xdp(programs: &[LinkXdp]) -> Option<Attached> {
    let in_mode = programs.iter().filter_map(|program| match *program {
        LinkXdp::DrvProgId(program) => Some(Attached { mode: XdpMode::Native, program }),
        LinkXdp::SkbProgId(program) => Some(Attached { mode: XdpMode::Generic, program }),
        LinkXdp::HwProgId(program) => Some(Attached { mode: XdpMode::Offloaded, program }),
        _ => None,
    });
    in_mode.min_by_key(|attached| attached.mode == XdpMode::Offloaded)
}

/// Value of an attribute of one byte, or of one word in host byte order.
fn number(attribute: &InfoTun) -> u32 {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    match *value {
        [byte] => u32::from(byte),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attached_program_is_reported() {
        use LinkXdp::{Attached as How, DrvProgId, HwProgId, ProgId, SkbProgId};
        use rtnetlink::packet_route::link::XdpAttached;
        let (native, generic, offloaded) = (XdpMode::Native, XdpMode::Generic, XdpMode::Offloaded);
        for (message, read) in [
            (vec![How(XdpAttached::None)], None),
            (vec![How(XdpAttached::Driver), ProgId(7), DrvProgId(7)], Some((native, 7))),
            (vec![How(XdpAttached::SocketBuffer), ProgId(8), SkbProgId(8)], Some((generic, 8))),
            (vec![How(XdpAttached::Hardware), ProgId(9), HwProgId(9)], Some((offloaded, 9))),
            (vec![How(XdpAttached::Multiple), HwProgId(9), SkbProgId(8)], Some((generic, 8))),
        ] {
            assert_eq!(read_xdp(&message), read.map(|(mode, program)| Attached { mode, program }), "{message:?}");
        }
    }
}
