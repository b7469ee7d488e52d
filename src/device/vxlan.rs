//! Checks that full-size frames fit through a VXLAN netdev. Encapsulation adds headers; packets longer than the
//! underlay MTU are fragmented, at a tenth of the throughput. Reads netdevs and routes; changes nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use super::DeviceLocation;
use crate::sys::link::{self, Link, Vxlan};
use crate::sys::stack;

/// Bytes that VXLAN adds to a frame, as the MTU counts them: inner Ethernet header, VXLAN, UDP and IPv4 (RFC 7348); or
/// IPv6.
const OVER_IPV4: u32 = 14 + 8 + 8 + 20;
const OVER_IPV6: u32 = 14 + 8 + 8 + 40;

/// UDP port of VXLAN; the route does not depend on it.
const PORT: u16 = 4789;

/// Underlay of a VXLAN netdev.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Underlay {
    /// Description: `the route to 10.0.0.2`.
    what: String,
    mtu: u32,
    /// Bytes added to a frame.
    overhead: u32,
}

/// MTU warning for a VXLAN netdev in the calling thread's namespace. `mtu`: the network's. `None`: not a VXLAN netdev,
/// or its underlay is unknown.
pub(super) fn warning(location: &DeviceLocation, link: &Link, mtu: u16) -> Option<Option<String>> {
    let underlay = underlay(link.vxlan.as_ref()?)?;
    Some(decide(location, link.mtu, mtu.into(), &underlay))
}

fn decide(location: &DeviceLocation, own: u32, wanted: u32, underlay: &Underlay) -> Option<String> {
    let Underlay { what, mtu, overhead } = underlay;
    let (device, is_ok) = (&location.device, mtu.saturating_sub(*overhead));
    let needed = wanted + overhead;
    let remedy = format!("set the underlay's MTU to {needed}, or the network's to {}", is_ok.min(wanted));
    match (own >= wanted, is_ok >= wanted) {
        (true, true) => None,
        (false, true) => Some(format!(
            "{location} has MTU {own}, its network has {wanted}: longer frames are dropped; set it with `ip link set dev {device} \
             mtu {wanted}`"
        )),
        (true, false) => Some(format!(
            "{location} adds {overhead} bytes per frame and {what} has MTU {mtu}: frames longer than {is_ok} bytes, of {wanted} \
             on its network, are fragmented; {remedy}"
        )),
        (false, false) => Some(format!(
            "{location} has MTU {own}, its network has {wanted}: longer frames are dropped, and with a larger MTU here they \
             would be fragmented, because it adds {overhead} bytes and {what} has MTU {mtu}; {remedy}, and then \
             `ip link set dev {device} mtu {wanted}`"
        )),
    }
}

fn underlay(vxlan: &Vxlan) -> Option<Underlay> {
    let of = |what: String, mtu: u32, is_ipv4: bool| {
        Some(Underlay { what, mtu, overhead: if is_ipv4 { OVER_IPV4 } else { OVER_IPV6 } })
    };
    let is_ipv4 = vxlan.remote.or(vxlan.local).is_none_or(|address| address.is_ipv4());
    if let Some(remote) = vxlan.remote.filter(|remote| !remote.is_multicast())
        && let Ok(mtu) = route_mtu(vxlan.local, remote)
    {
        return of(format!("the route to {remote}"), mtu, is_ipv4);
    }
    let lower = (vxlan.lower > 0).then_some(vxlan.lower).or_else(|| {
        // With remotes in the FDB only, packets leave by the netdev that has the local address.
        let local = vxlan.local?;
        stack::addresses().ok()?.into_iter().find(|(_, address)| *address == local).map(|(index, _)| index)
    })?;
    let found = link::find_each(&[("", Some(lower))]).pop()?.ok()??;
    of(found.name, found.link.mtu, is_ipv4)
}

/// MTU of the route to an address, in the calling thread's namespace. Sends nothing.
fn route_mtu(local: Option<IpAddr>, remote: IpAddr) -> io::Result<u32> {
    let family = if remote.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let any = match remote {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let local = local.filter(|local| local.is_ipv4() == remote.is_ipv4()).unwrap_or(any);
    bind(&socket, &SocketAddr::new(local, 0))?;
    connect(&socket, &SocketAddr::new(remote, PORT))?;
    Ok(if remote.is_ipv4() { sockopt::ip_mtu(&socket) } else { sockopt::ipv6_mtu(&socket) }?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::Netns;

    #[test]
    fn no_recommended_mtu_causes_fragments() {
        let location = DeviceLocation { device: "vx1".into(), netns: Netns::Host };
        let said = |own, wanted, mtu, overhead| {
            decide(&location, own, wanted, &Underlay { what: "the route to 10.0.0.2".into(), mtu, overhead })
                .unwrap_or_default()
        };
        assert_eq!(said(1500, 1500, 1550, OVER_IPV4), "");
        assert_eq!(said(1450, 1450, 1500, OVER_IPV4), "");
        assert!(said(1450, 1500, 1600, OVER_IPV4).contains("`ip link set dev vx1 mtu 1500`"));
        let fragments = said(1500, 1500, 1500, OVER_IPV4);
        assert!(fragments.contains("longer than 1450") && fragments.contains("MTU to 1550"), "{fragments}");
        let neither = said(1450, 1500, 1500, OVER_IPV4);
        assert!(
            neither.contains("are dropped") && neither.contains("MTU to 1550, or the network's to 1450"),
            "{neither}"
        );
        let ipv6 = said(1500, 1500, 1550, OVER_IPV6);
        assert!(ipv6.contains("longer than 1480") && ipv6.contains("MTU to 1570"), "{ipv6}");
    }
}
