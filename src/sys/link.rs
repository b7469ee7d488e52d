//! Netdevs, by netlink: looked up, changed, deleted, also many at a time.
//!
//! Each call opens a netlink socket in the namespace of the calling thread, and runs it on a small
//! runtime that ends with the call. So call from a thread that may block and is in no runtime; see
//! [`within`](super::netns::within).

use std::io;

use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::{LinkHandle, LinkUnspec};

use futures_util::TryStreamExt;

use crate::wire::Mac;

// IFLA_TUN_*, linux/if_link.h
const TUN_TYPE: u16 = 3;
const TUN_VNET_HDR: u16 = 5;
const TUN_PERSIST: u16 = 6;
const TUN_MULTI_QUEUE: u16 = 7;
const TUN_NUM_QUEUES: u16 = 8;

/// IFF_TAP as a type; the other one is IFF_TUN.
const TYPE_TAP: u32 = 2;

/// Netdevs deleted in one go: for so long nobody else on the host can change one.
const TOGETHER: usize = 64;

/// ENODEV
const NO_DEVICE: i32 = 19;

/// A netdev as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Whether it has Ethernet frames, and is not the loopback.
    pub ethernet: bool,
    /// Its MAC address; zero for a device that has none.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is set up; it may lack a carrier still.
    pub up: bool,
    /// Whether somebody is at its other end. The kernel only tells while it is up.
    pub carrier: bool,
    /// Its alias, a text that says what it is for.
    pub alias: String,
    /// The most segments of a super-frame that is sent through it.
    pub gso_max_segs: u32,
    /// What there is to know of a tap; `None` for every other kind of device.
    pub tap: Option<TapInfo>,
}

/// A tap as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TapInfo {
    /// Whether it may have more than one queue.
    pub multi_queue: bool,
    /// Whether frames have an offload header.
    pub vnet_header: bool,
    /// Whether it outlives its queues.
    pub persist: bool,
    /// How many of its queues are open. The kernel tells of multi-queue devices only; 0 otherwise.
    pub queues: u32,
}

/// How a netdev shall be. `None` leaves things as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Its MAC address.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: Option<u32>,
    /// Its alias.
    pub alias: Option<String>,
    /// The most segments of a super-frame that is sent through it. A wish: a kernel that does not
    /// know it keeps its own.
    pub gso_max_segs: Option<u32>,
    /// Whether to set it up. It is never set down.
    pub up: bool,
}

/// The netdev of this name, if there is one.
pub fn find(name: &str) -> io::Result<Option<Link>> {
    let name = name.to_owned();
    ask(async |links| match links.get().match_name(name).execute().try_next().await {
        Ok(found) => Ok(found.as_ref().map(read)),
        Err(e) => match told(e) {
            e if e.raw_os_error() == Some(NO_DEVICE) => Ok(None),
            e => Err(e),
        },
    })
}

/// Makes `link` as it is wanted, and says what had to be changed for it, in words.
pub fn change(link: &Link, wanted: &Wanted) -> io::Result<Vec<&'static str>> {
    let mut changed = Vec::new();
    let mut message = LinkUnspec::new_with_index(link.index);
    if let Some(mac) = wanted.mac.filter(|&mac| mac != link.mac) {
        message = message.address(mac.octets().to_vec());
        changed.push("MAC address");
    }
    if let Some(mtu) = wanted.mtu.filter(|&mtu| mtu != link.mtu) {
        message = message.mtu(mtu);
        changed.push("MTU");
    }
    if let Some(alias) = wanted.alias.as_ref().filter(|&alias| *alias != link.alias) {
        message = message.alias(alias);
        changed.push("alias");
    }
    if wanted.up && !link.up {
        message = message.up();
        changed.push("up");
    }
    let segs = wanted.gso_max_segs.filter(|&segs| segs != link.gso_max_segs);
    if changed.is_empty() && segs.is_none() {
        return Ok(changed);
    }
    let (index, anything) = (link.index, !changed.is_empty());
    ask(async |links| {
        // First, so that no frame is sent without it; and alone, since it may be refused.
        if let Some(segs) = segs {
            let attribute = LinkAttribute::GsoMaxSegs(segs);
            let message = LinkUnspec::new_with_index(index).append_extra_attribute(attribute).build();
            let _ = links.set(message).execute().await;
        }
        if anything { links.set(message.build()).execute().await.map_err(told) } else { Ok(()) }
    })?;
    Ok(changed)
}

/// Deletes a netdev. One that is gone already is as good as deleted.
pub fn delete(index: u32) -> io::Result<()> {
    ask(async |links| match links.del(index).execute().await.map_err(told) {
        Err(e) if e.raw_os_error() != Some(NO_DEVICE) => Err(e),
        _ => Ok(()),
    })
}

/// Deletes netdevs in one go. The kernel waits for all of its cores to have forgotten a netdev, some
/// 25 ms, and does so once for those that go together. If this fails, some may still be there.
pub fn delete_together(indices: &[u32]) -> io::Result<()> {
    ask(async |links| {
        for together in indices.chunks(TOGETHER) {
            let mut number = [0; 4];
            rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())?;
            // Nobody numbers his groups like this; and it is not 0, to which all others belong.
            let group = u32::from_ne_bytes(number) | 1 << 31;
            for &index in together {
                let message = LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::Group(group));
                match links.set(message.build()).execute().await.map_err(told) {
                    Err(e) if e.raw_os_error() != Some(NO_DEVICE) => return Err(e),
                    _ => {}
                }
            }
            let mut all = links.del(0);
            all.message_mut().attributes.push(LinkAttribute::Group(group));
            all.execute().await.map_err(told)?;
        }
        Ok(())
    })
}

fn ask<T>(work: impl AsyncFnOnce(LinkHandle) -> io::Result<T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        work(handle.link()).await
    })
}

fn told(e: rtnetlink::Error) -> io::Error {
    match e {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        e => io::Error::other(e),
    }
}

fn read(message: &LinkMessage) -> Link {
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
            LinkAttribute::LinkInfo(infos) => link.tap = read_tap(infos),
            _ => {}
        }
    }
    link
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

/// The value of an attribute that is one byte or one word of the host's order.
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
    use crate::sys::netns::{Netns, within};

    #[test]
    fn the_loopback_is_found_and_is_no_tap() {
        let lo = within(&Netns::Host, || find("lo")).unwrap().unwrap().expect("every namespace has one");
        assert_eq!((lo.index, lo.ethernet, lo.mac, lo.tap), (1, false, Mac::ZERO, None));
        assert_eq!(within(&Netns::Host, || find("vift-nothing")).unwrap().unwrap(), None);
    }

    #[test]
    fn nothing_is_asked_of_the_kernel_when_nothing_differs() {
        // No netdev has this index, so that any request would fail.
        let link = Link { index: u32::MAX, mtu: 1500, up: true, ..Link::default() };
        let wanted = Wanted { mtu: Some(1500), mac: Some(Mac::ZERO), up: true, ..Wanted::default() };
        assert!(change(&link, &wanted).unwrap().is_empty());
    }
}
