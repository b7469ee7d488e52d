//! Adds and reads addresses and routes of a netdev over rtnetlink, in the calling thread's network namespace, like
//! [`link`](super::link). Adding what is there changes nothing.

use std::fs;
use std::io;
use std::net::IpAddr;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::link::{connected, error_of, to_io_error};
use crate::wire::Prefix;

/// EEXIST
const EXISTS: i32 = 17;

/// An address and the prefix length of its subnet.
pub type Subnet = (IpAddr, u8);

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination: address and prefix length.
    pub destination: Subnet,
    /// Next hop; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// MTU of the path.
    pub mtu: Option<u32>,
    /// Maximum segment size that TCP advertises.
    pub advmss: Option<u32>,
    /// Priority (metric); the lowest one is preferred.
    pub priority: Option<u32>,
    /// Routing table; `None`: the main one.
    pub table: Option<u32>,
    /// Scope (`RT_SCOPE_…`); `None`: link without a gateway, else universe.
    pub scope: Option<u8>,
}

/// Addresses of a netdev, with their prefix lengths.
pub fn addresses_of(index: u32) -> io::Result<Vec<Subnet>> {
    let messages: Vec<AddressMessage> = connected(async |handle| {
        let get = handle.address().get().set_link_index_filter(index);
        get.execute().try_collect().await.map_err(to_io_error)
    })?;
    let address = |message: &AddressMessage| {
        // On a point-to-point link, IFA_LOCAL is the own address and IFA_ADDRESS the peer's.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let any = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        Some((local.or(any)?, message.header.prefix_len))
    };
    Ok(messages.iter().filter_map(address).collect())
}

/// Adds addresses and routes to a netdev. IPv6 addresses are valid at once, without duplicate address detection.
pub fn add(index: u32, addresses: &[Subnet], routes: &[Route]) -> io::Result<()> {
    connected(async |mut handle| {
        for &(address, len) in addresses {
            let mut add = handle.address().add(index, address, len);
            if address.is_ipv6() {
                add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            let added = add.execute().await.map_err(to_io_error).or_else(unless_present);
            added.map_err(|e| named(format_args!("address {address}/{len}"), &e))?;
        }
        for route in routes {
            let (address, len) = route.destination;
            let added = add_route(&mut handle, message(index, route)).await.or_else(unless_present);
            added.map_err(|e| named(format_args!("route to {address}/{len}"), &e))?;
        }
        Ok(())
    })
}

fn named(what: impl std::fmt::Display, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}

fn unless_present(e: io::Error) -> io::Result<()> {
    if e.raw_os_error() == Some(EXISTS) { Ok(()) } else { Err(e) }
}

/// Adds a route behind those of others to the same destination: the request of rtnetlink would refuse or replace these.
async fn add_route(handle: &mut Handle, message: RouteMessage) -> io::Result<()> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
    let mut answers = handle.request(request).map_err(to_io_error)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(e) = answer.payload
            && e.code.is_some()
        {
            return Err(error_of(&e));
        }
    }
    Ok(())
}

fn message(index: u32, route: &Route) -> RouteMessage {
    let wire = |address: IpAddr| match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    let (address, len) = route.destination;
    let mut message = RouteMessage::default();
    message.header.address_family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = len;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    let default = if route.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.header.scope = route.scope.map_or(default, RouteScope::from);
    let table = route.table.unwrap_or(RouteHeader::RT_TABLE_MAIN.into());
    // The header has room for a byte.
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    let attributes = &mut message.attributes;
    attributes.extend([RouteAttribute::Table(table), RouteAttribute::Oif(index)]);
    if len > 0 {
        // The kernel refuses further bits.
        let first = Prefix::new(address, len).map_or(address, Prefix::first);
        attributes.push(RouteAttribute::Destination(wire(first)));
    }
    if let Some(gateway) = route.gateway {
        attributes.push(RouteAttribute::Gateway(wire(gateway)));
    }
    message.attributes.extend(route.priority.map(RouteAttribute::Priority));
    let metrics = [route.mtu.map(RouteMetric::Mtu), route.advmss.map(RouteMetric::Advmss)];
    let metrics: Vec<RouteMetric> = metrics.into_iter().flatten().collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// Destinations and next hops of all routes of the namespace, in all tables.
pub fn destinations() -> io::Result<Vec<(Subnet, Option<IpAddr>)>> {
    let messages: Vec<RouteMessage> = connected(async |handle| {
        let mut all = Vec::new();
        for request in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let routes: Vec<RouteMessage> =
                handle.route().get(request).execute().try_collect().await.map_err(to_io_error)?;
            all.extend(routes);
        }
        Ok(all)
    })?;
    let address = |address: &RouteAddress| match *address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(address)),
        _ => None,
    };
    let route = |message: &RouteMessage| {
        let is_ipv4 = message.header.address_family == AddressFamily::Inet;
        let (mut to, mut gateway) = (if is_ipv4 { [0; 4].into() } else { [0; 16].into() }, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(of) => to = address(of)?,
                RouteAttribute::Gateway(of) => gateway = address(of),
                _ => {}
            }
        }
        Some(((to, message.header.destination_prefix_length), gateway))
    };
    Ok(messages.iter().filter_map(route).collect())
}

/// Sets a sysctl below /proc/sys/net. Returns whether the kernel has it.
pub fn set(path: &str, value: &str) -> io::Result<bool> {
    let path = format!("/proc/sys/net/{path}");
    match fs::read_to_string(&path) {
        Ok(now) if now.trim() == value => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        _ => fs::write(&path, value).map(|()| true).map_err(|e| named(path, &e)),
    }
}
