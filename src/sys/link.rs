//! Finds, changes and deletes netdevs over rtnetlink, one or many per call.
//!
//! Each call opens a netlink socket in the calling thread's network namespace, on a tokio runtime that
//! ends with the call. Call from a thread that may block and is in no async runtime; see
//! [`within`](super::netns::within).

mod parse;
pub mod tunnels;

pub(super) use self::parse::{name, read};

use std::fmt;
use std::io;
use std::net::IpAddr;

use rtnetlink::packet_core::{DefaultNla, ErrorMessage};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage, LinkXdp};
use rtnetlink::{Handle, LinkGetRequest, LinkHandle, LinkUnspec};

use futures_util::TryStreamExt;

use crate::wire::Mac;

// linux/if_link.h
const IFLA_TARGET_NETNSID: u16 = 46;

// XDP_FLAGS_*, linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_FLAGS_HW_MODE: u32 = 1 << 3;

/// Netdevs deleted per request, which holds the kernel's RTNL lock.
const DELETE_BATCH: usize = 64;

/// ENODEV
const NO_DEVICE: i32 = 19;

/// A netdev as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Interface index, unique in its network namespace.
    pub index: u32,
    /// True for an Ethernet device other than the loopback.
    pub ethernet: bool,
    /// MAC address; zero if the device has none.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up; it may still lack a carrier.
    pub up: bool,
    /// Carrier present. The kernel reports it only while the netdev is up.
    pub carrier: bool,
    /// Interface alias (IFLA_IFALIAS).
    pub alias: String,
    /// Maximum segments of a transmitted GSO packet.
    pub gso_max_segs: u32,
    /// Maximum bytes of a transmitted GSO packet; 0 if the kernel does not report it.
    pub gso_max_size: u32,
    /// Maximum bytes of a transmitted IPv4 GSO packet; 0 before Linux 6.3, which has no such limit.
    pub gso_ipv4_max_size: u32,
    /// Maximum bytes of a GSO packet that GRO builds of received frames; 0 before Linux 5.19, where 64 KiB is the limit.
    pub gro_max_size: u32,
    /// Maximum bytes of an IPv4 GSO packet that GRO builds; 0 before Linux 6.3, where 64 KiB is the limit.
    pub gro_ipv4_max_size: u32,
    /// Interface index of its master (bridge, bond); 0 for none.
    pub master: u32,
    /// Maximum frames in each transmit queue.
    pub queue_len: u32,
    /// VXLAN attributes; `None` for other kinds.
    pub vxlan: Option<Vxlan>,
    /// Tap attributes; `None` for other kinds.
    pub tap: Option<TapInfo>,
    /// The attached XDP program, by netlink or bpf_link; `None` if there is none.
    pub xdp: Option<Attached>,
}

/// Attributes of a VXLAN netdev as the kernel reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vxlan {
    /// Interface index of the underlay netdev; 0 if the route selects it.
    pub lower: u32,
    /// Local underlay address.
    pub local: Option<IpAddr>,
    /// Remote address, unicast or multicast group; `None` if its FDB holds the remotes.
    pub remote: Option<IpAddr>,
}

/// An XDP program attached to a netdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// Where it runs.
    pub mode: XdpMode,
    /// BPF program id, unique on the host.
    pub program: u32,
}

/// Where an XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
    /// In the hardware. Frames that it passes may run through a second program; the kernel then reports
    /// that one.
    Offloaded,
}

impl XdpMode {
    /// Keyword of `ip link set`.
    pub const fn option(self) -> &'static str {
        match self {
            XdpMode::Native => "xdpdrv",
            XdpMode::Generic => "xdpgeneric",
            XdpMode::Offloaded => "xdpoffload",
        }
    }
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a foreign XDP program ({}, id {})", self.mode.option(), self.program)
    }
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
            XdpMode::Offloaded => "offloaded",
        })
    }
}

/// Attributes of a tap as the kernel reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TapInfo {
    /// Multiple queues allowed (IFF_MULTI_QUEUE).
    pub multi_queue: bool,
    /// Frames carry a `virtio_net_hdr` (IFF_VNET_HDR).
    pub vnet_header: bool,
    /// The netdev remains after its last queue is closed (IFF_PERSIST).
    pub persist: bool,
    /// Number of open queues. 0 for a tap without multiple queues, of which the kernel does not report it.
    pub queues: u32,
}

/// Wanted properties of a netdev. `None` leaves a property unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// MAC address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Interface alias.
    pub alias: Option<String>,
    /// Maximum segments of a transmitted GSO packet. Best effort: a kernel without this attribute keeps
    /// its value.
    pub gso_max_segs: Option<u32>,
    /// Maximum frames in each transmit queue.
    pub queue_len: Option<u32>,
    /// Set it up if it is down. Never sets it down.
    pub up: bool,
}

/// Finds a netdev by name.
pub fn find(name: &str) -> io::Result<Option<Link>> {
    let name = name.to_owned();
    block_on(async |links| Ok(get(links.get().match_name(name)).await?.as_ref().map(read)))
}

/// Result of [`find_each`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Current name.
    pub name: String,
    /// Attributes.
    pub link: Link,
    /// Name of its master; `None` if it has none.
    pub master: Option<String>,
    /// The other end of a veth; `None` for other kinds, or if it cannot be read.
    pub peer: Option<Peer>,
}

/// The other end of a veth.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peer {
    /// Its name, in its network namespace.
    pub name: String,
    /// Maximum bytes of a transmitted GSO packet; 0 if the kernel does not report it.
    pub gso_max_size: u32,
    /// Maximum bytes of a transmitted IPv4 GSO packet; 0 before Linux 6.3.
    pub gso_ipv4_max_size: u32,
    /// Interface index of its master, if both ends of the veth are in one network namespace; 0 for none.
    pub master: u32,
}

/// Finds several netdevs: by index where one is given, whatever the current name; else by name.
pub fn find_each(wanted: &[(&str, Option<u32>)]) -> Vec<io::Result<Option<Found>>> {
    let requests = block_on(async |links| {
        let mut all = Vec::with_capacity(wanted.len());
        for &(name, index) in wanted {
            all.push(find_one(&links, name, index).await);
        }
        Ok(all)
    });
    requests.unwrap_or_else(|e| wanted.iter().map(|_| Err(io::Error::new(e.kind(), e.to_string()))).collect())
}

async fn find_one(links: &LinkHandle, wanted: &str, index: Option<u32>) -> io::Result<Option<Found>> {
    let request = match index {
        Some(index) => links.get().match_index(index),
        None => links.get().match_name(wanted.to_owned()),
    };
    let Some(message) = get(request).await? else { return Ok(None) };
    let link = read(&message);
    let master = match link.master {
        0 => None,
        index => get(links.get().match_index(index)).await?.as_ref().and_then(name),
    };
    let is_elsewhere = message.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::LinkNetNsId(_)));
    let peer = match peer_request(links, &message) {
        Some(request) => get(request).await.ok().flatten().map(|message| {
            let Link { gso_max_size, gso_ipv4_max_size, master, .. } = read(&message);
            let master = if is_elsewhere { 0 } else { master };
            Peer { name: name(&message).unwrap_or_default(), gso_max_size, gso_ipv4_max_size, master }
        }),
        None => None,
    };
    Ok(Some(Found { name: name(&message).unwrap_or_default(), link, master, peer }))
}

/// Request for the other end of a veth, which may be in another network namespace; `None` for other kinds.
fn peer_request(links: &LinkHandle, message: &LinkMessage) -> Option<LinkGetRequest> {
    let (mut is_veth, mut index, mut netns) = (false, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::LinkInfo(infos) => is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
            LinkAttribute::Link(peer) => index = Some(*peer),
            LinkAttribute::LinkNetNsId(id) => netns = Some(*id),
            _ => {}
        }
    }
    let mut request = links.get().match_index(index.filter(|_| is_veth)?);
    let target = netns.map(|id| LinkAttribute::Other(DefaultNla::new(IFLA_TARGET_NETNSID, id.to_ne_bytes().to_vec())));
    request.message_mut().attributes.extend(target);
    Some(request)
}

async fn get(request: LinkGetRequest) -> io::Result<Option<LinkMessage>> {
    without_statistics(request).execute().try_next().await.or_else(|e| match to_io_error(e) {
        e if e.raw_os_error() == Some(NO_DEVICE) => Ok(None),
        e => Err(e),
    })
}

/// The same request without statistics. Nobody reads them here, and they are a large part of an answer and of its time.
fn without_statistics(request: LinkGetRequest) -> LinkGetRequest {
    request.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats])
}

/// All netdevs, with their names.
pub fn all() -> io::Result<Vec<(String, Link)>> {
    block_on(async |links| {
        let found: Vec<LinkMessage> =
            without_statistics(links.get()).execute().try_collect().await.map_err(to_io_error)?;
        Ok(found.iter().filter_map(|message| Some((name(message)?, read(message)))).collect())
    })
}

/// Sets those properties of `link` that differ from `wanted`. Returns the changed ones, as words.
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
    let queue_len = wanted.queue_len.filter(|&len| len != link.queue_len);
    if queue_len.is_some() {
        changed.push("queue length");
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
    block_on(async |links| {
        // First, so that it holds for every frame; in a request of its own, since the kernel may refuse it.
        if let Some(segs) = segs {
            let attribute = LinkAttribute::GsoMaxSegs(segs);
            let message = LinkUnspec::new_with_index(index).append_extra_attribute(attribute).build();
            let _ = links.set(message).execute().await;
        }
        // In a request of its own: the kernel sets it after `up`, and has then to stop the netdev's queues for it.
        if let Some(len) = queue_len {
            let attribute = LinkAttribute::TxQueueLen(len);
            let message = LinkUnspec::new_with_index(index).append_extra_attribute(attribute).build();
            links.set(message).execute().await.map_err(to_io_error)?;
        }
        if anything { links.set(message.build()).execute().await.map_err(to_io_error) } else { Ok(()) }
    })?;
    Ok(changed)
}

/// Deletes a netdev; `Ok` if it is already gone.
pub fn delete(index: u32) -> io::Result<()> {
    block_on(async |links| match links.del(index).execute().await.map_err(to_io_error) {
        Err(e) if e.raw_os_error() != Some(NO_DEVICE) => Err(e),
        _ => Ok(()),
    })
}

/// Deletes netdevs in batches. The kernel waits some 25 ms for all cores to release a deleted netdev,
/// once per batch. On error, some netdevs may remain.
pub fn delete_many(indices: &[u32]) -> io::Result<()> {
    block_on(async |links| {
        for together in indices.chunks(DELETE_BATCH) {
            let mut number = [0; 4];
            rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())?;
            // Random with the top bit set: differs from groups that an operator uses and from the default group 0.
            let group = u32::from_ne_bytes(number) | 1 << 31;
            for &index in together {
                let message = LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::Group(group));
                match links.set(message.build()).execute().await.map_err(to_io_error) {
                    Err(e) if e.raw_os_error() != Some(NO_DEVICE) => return Err(e),
                    _ => {}
                }
            }
            let mut all = links.del(0);
            all.message_mut().attributes.push(LinkAttribute::Group(group));
            all.execute().await.map_err(to_io_error)?;
        }
        Ok(())
    })
}

/// Detaches the XDP program that `link` reports. A program attached by netlink stays after its process
/// ends, and blocks every other program.
///
/// # Errors
///
/// EBUSY: a bpf_link holds the program; its process lives, or the link is pinned under /sys/fs/bpf.
pub fn remove_xdp_program(link: &Link) -> io::Result<()> {
    let Some(attached) = link.xdp else { return Ok(()) };
    let mode = match attached.mode {
        XdpMode::Native => XDP_FLAGS_DRV_MODE,
        XdpMode::Generic => XDP_FLAGS_SKB_MODE,
        XdpMode::Offloaded => XDP_FLAGS_HW_MODE,
    };
    let empty = LinkAttribute::Xdp(vec![LinkXdp::Fd(-1), LinkXdp::Flags(mode)]);
    let message = LinkUnspec::new_with_index(link.index).append_extra_attribute(empty).build();
    block_on(async |links| links.set(message).execute().await.map_err(to_io_error))
}

fn block_on<T>(work: impl AsyncFnOnce(LinkHandle) -> io::Result<T>) -> io::Result<T> {
    connected(async |handle| work(handle.link()).await)
}

/// Runs `work` with an rtnetlink connection in the calling thread's network namespace.
///
/// # Errors
///
/// Those of `work`, and a socket that failed meanwhile: to `work` the answers then only ended early, as if a netdev did
/// not exist.
pub(super) fn connected<T>(work: impl AsyncFnOnce(Handle) -> io::Result<T>) -> io::Result<T> {
    run(false, work)
}

/// The same with strict checking: the kernel refuses a filter of a dump that it does not have, instead of ignoring it.
fn connected_strictly<T>(work: impl AsyncFnOnce(Handle) -> io::Result<T>) -> io::Result<T> {
    run(true, work)
}

fn run<T>(is_strict: bool, work: impl AsyncFnOnce(Handle) -> io::Result<T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) =
            if is_strict { rtnetlink::new_connection_with_strict_check() } else { rtnetlink::new_connection() }?;
        let connection = tokio::spawn(connection);
        let result = work(handle.clone()).await;
        // It runs as long as there is a handle, unless its socket fails.
        if connection.is_finished() { Err(io::Error::other("the netlink socket failed")) } else { result }
    })
}

/// The error of a message that refuses a request, whose code is a negated errno.
pub(super) fn error_of(message: &ErrorMessage) -> io::Error {
    // `ErrorMessage::to_io` overflows with the least number.
    io::Error::from_raw_os_error(message.raw_code().saturating_abs())
}

pub(super) fn to_io_error(e: rtnetlink::Error) -> io::Error {
    match e {
        rtnetlink::Error::NetlinkError(message) => error_of(&message),
        e => io::Error::other(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_errno_whatever_it_is() {
        for (code, errno) in [(-libc::EPERM, libc::EPERM), (i32::MIN, i32::MAX)] {
            let mut message = ErrorMessage::default();
            message.code = std::num::NonZeroI32::new(code);
            assert_eq!(error_of(&message).raw_os_error(), Some(errno));
        }
    }
    use crate::sys::netns::{Netns, within};

    #[test]
    fn the_loopback_is_found_and_is_no_tap() {
        let lo = within(&Netns::Host, || find("lo")).unwrap().unwrap().expect("every namespace has one");
        assert_eq!((lo.index, lo.ethernet, lo.mac, lo.tap), (1, false, Mac::ZERO, None));
        assert_eq!(within(&Netns::Host, || find("vift-nothing")).unwrap().unwrap(), None);
    }

    #[test]
    fn without_differences_there_is_no_request() {
        // No netdev has this index, so any request fails.
        let link = Link { index: u32::MAX, mtu: 1500, up: true, ..Link::default() };
        let wanted = Wanted { mtu: Some(1500), mac: Some(Mac::ZERO), up: true, ..Wanted::default() };
        assert!(change(&link, &wanted).unwrap().is_empty());
        remove_xdp_program(&link).unwrap();
    }
}
