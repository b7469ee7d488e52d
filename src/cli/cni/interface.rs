//! The interface in the container's namespace: addresses, routes and the tap of a VM, by netlink and ioctl. Nothing here asks
//! the switch.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::config::VmTap;
use super::error::{CniError, code};
use super::result::{AddResult, Cidr, Route as RouteResult};
use crate::sys::link::{self, Link, Wanted};
use crate::sys::netns::{Netns, within};
use crate::sys::packet::{NOTHING, Socket};
use crate::sys::routing::{self, Route};
use crate::sys::tun::{Flags, Queue};
use crate::wire::{Announcement, Mac};

/// Prefix of the aliases of taps that the plugin creates, for VMs. Those that the switch creates have another one.
const TAP_OF_VM: &str = "vifswitch-cni:";

/// Prefix of the aliases of taps that the switch creates.
const TAP_OF_SWITCH: &str = "vifswitch:";

/// An interface of a container.
#[derive(Debug, Clone, Copy)]
pub struct Place<'p> {
    /// Its namespace.
    pub netns: &'p Path,
    /// Its name.
    pub name: &'p str,
    /// Its port.
    pub port: &'p str,
}

impl Place<'_> {
    /// Runs `work` in the namespace.
    fn inside<T: Send>(&self, doing: &str, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, CniError> {
        let failed = |e: io::Error| {
            let place = format!("{} in {}", self.name, self.netns.display());
            CniError::new(code::INTERFACE, format!("{place}: cannot {doing}: {e}"))
        };
        within(&Netns::At(self.netns.to_owned()), work)
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => {
                    let message = format!("CNI_NETNS = {:?}: there is no such network namespace", self.netns);
                    CniError::new(code::INVALID_ENVIRONMENT, message)
                }
                _ => failed(e),
            })?
            .map_err(failed)
    }

    /// The netdev, if it is one of this port.
    fn own(&self) -> io::Result<Option<Link>> {
        Ok(link::find(self.name)?.filter(|link| self.is_own(link)))
    }

    fn is_own(&self, link: &Link) -> bool {
        [TAP_OF_SWITCH, TAP_OF_VM].iter().any(|prefix| link.alias.strip_prefix(prefix) == Some(self.port))
    }

    /// Whether the namespace has the interface of this port.
    pub fn exists(&self) -> Result<bool, CniError> {
        self.inside("find the interface", || Ok(self.own()?.is_some()))
    }

    /// Checks that the namespace can be entered and is not the host's.
    pub fn check_namespace(&self) -> Result<(), CniError> {
        if Netns::At(self.netns.to_owned()).is_same(&Netns::Host).unwrap_or(false) {
            let message =
                format!("CNI_NETNS = {:?} is the namespace of the host; name that of the container", self.netns);
            return Err(CniError::new(code::INVALID_ENVIRONMENT, message));
        }
        self.inside("enter the namespace", || Ok(()))
    }

    /// Checks that the namespace has no other interface of this name. One that the switch is creating for a call at the same time
    /// is not recognised yet.
    pub fn check_free(&self) -> Result<(), CniError> {
        match self.inside("find the interface", || link::find(self.name))? {
            Some(link) if !self.is_own(&link) => {
                let message = format!(
                    "CNI_IFNAME = {:?}: the container has an interface of this name, which is not of port {:?}; choose another name",
                    self.name, self.port
                );
                Err(CniError::new(code::INVALID_ENVIRONMENT, message))
            }
            _ => Ok(()),
        }
    }

    /// Gives the interface its addresses and routes, and announces the addresses to the network.
    pub fn configure(&self, addressing: &AddResult) -> Result<(), CniError> {
        if addressing.ips.is_empty() && addressing.routes.is_empty() {
            return Ok(());
        }
        self.inside("set addresses and routes", || {
            let link = self.own()?.ok_or_else(|| io::Error::other("the switch has not created it"))?;
            let addresses: Vec<(IpAddr, u8)> = addressing.ips.iter().map(|ip| pair(ip.address)).collect();
            if addresses.iter().any(|(address, _)| address.is_ipv6()) {
                routing::set(&format!("ipv6/conf/{}/disable_ipv6", self.name), "0")?;
            }
            routing::add(link.index, &addresses, &routes(addressing))?;
            announce(&link, &addresses);
            Ok(())
        })
    }

    /// Creates the tap of a VM, or adjusts it if it is there: it outlives all processes and ends with its namespace.
    pub fn make_tap(&self, tap: VmTap, mac: Mac, mtu: u16) -> Result<(), CniError> {
        let alias = format!("{TAP_OF_VM}{}", self.port);
        let wanted =
            Wanted { mac: Some(mac), mtu: Some(mtu.into()), alias: Some(alias), up: true, ..Wanted::default() };
        self.inside("make the tap", || {
            let found = self.own()?;
            let exclusive = found.is_none();
            // A tap that a VM has opened cannot be opened once more, and needs not to be.
            let flags = Flags { vnet_header: true, multi_queue: tap.multi_queue, exclusive };
            let queue = if exclusive { Some(Queue::open(self.name, flags)?) } else { None };
            // The stack of the container leaves the frames to the VM: it would answer for its own addresses, and dispute the
            // link-local address of the guest.
            routing::set(&format!("ipv6/conf/{}/disable_ipv6", self.name), "1")?;
            routing::set(&format!("ipv4/conf/{}/arp_ignore", self.name), "8")?;
            let link = link::find(self.name)?.ok_or_else(|| io::Error::other("it is gone"))?;
            link::change(&link, &wanted)?;
            if let Some(queue) = queue {
                tap.uid.map_or(Ok(()), |uid| queue.set_owner(uid))?;
                tap.gid.map_or(Ok(()), |gid| queue.set_group(gid))?;
                // Last: an incomplete one ends with this process.
                queue.set_persist(true)?;
            }
            Ok(())
        })
    }

    /// Removes the interface if it is one of this port. A namespace that is gone has none.
    pub fn remove(&self) -> Result<(), CniError> {
        let removed = self.inside("remove the interface", || match self.own()? {
            Some(link) => link::delete(link.index),
            None => Ok(()),
        });
        match removed {
            Err(error) if error.code == code::INVALID_ENVIRONMENT => Ok(()),
            removed => removed,
        }
    }

    /// Compares the interface with the result of ADD. Returns what differs.
    pub fn differences(
        &self,
        mac: Option<Mac>,
        result: &AddResult,
        is_configured: bool,
    ) -> Result<Vec<String>, CniError> {
        self.inside("read the interface", || {
            let Some(link) = link::find(self.name)? else { return Ok(vec!["it does not exist".to_owned()]) };
            let mut all = Vec::new();
            if !self.is_own(&link) {
                all.push(format!("it is not of port {:?}", self.port));
            }
            if !link.up {
                all.push("it is down".to_owned());
            }
            if let Some(mac) = mac.filter(|mac| *mac != link.mac) {
                all.push(format!("its MAC address is {}, not {mac}", link.mac));
            }
            if is_configured {
                all.extend(missing(&link, result)?);
            }
            Ok(all)
        })
    }
}

/// Addresses and routes that the interface lacks.
fn missing(link: &Link, result: &AddResult) -> io::Result<Vec<String>> {
    let there = routing::addresses_of(link.index)?;
    let addresses = result.ips.iter().filter(|ip| !there.contains(&pair(ip.address)));
    let mut all: Vec<String> = addresses.map(|ip| format!("it lacks the address {}", ip.address)).collect();
    let destinations = routing::destinations()?;
    let is_there = |route: &RouteResult| {
        let wanted = super::result::first_of(route.dst);
        destinations.iter().any(|(to, gateway)| *to == wanted && (route.gw.is_none() || *gateway == route.gw))
    };
    let routes = result.routes.iter().filter(|route| !is_there(route));
    all.extend(routes.map(|route| format!("the container lacks the route to {}", route.dst)));
    Ok(all)
}

fn pair(cidr: Cidr) -> (IpAddr, u8) {
    (cidr.address, cidr.len)
}

/// Routes as the kernel gets them. Without a gateway of its own, a route has that of the first address of its family.
fn routes(addressing: &AddResult) -> Vec<Route> {
    let default = |is_ipv4: bool| {
        let mut of_family = addressing.ips.iter().filter(|ip| ip.address.address.is_ipv4() == is_ipv4);
        of_family.find_map(|ip| ip.gateway)
    };
    let route = |route: &RouteResult| {
        let RouteResult { dst, gw, mtu, advmss, priority, table, scope, .. } = *route;
        let gateway = gw.or_else(|| default(dst.address.is_ipv4()));
        // Scope link (253) says that there is none.
        let gateway = gateway.filter(|_| scope != Some(253));
        Route { destination: pair(dst), gateway, mtu, advmss, priority, table, scope }
    };
    addressing.routes.iter().map(route).collect()
}

/// Sends an announcement of each IPv4 address, so that neighbors forget who had it before. Best effort: they forget by
/// themselves, later.
fn announce(link: &Link, addresses: &[(IpAddr, u8)]) {
    let Ok(socket) = Socket::new() else { return };
    if socket.bind(link.index, NOTHING).is_err() {
        return;
    }
    for (address, _) in addresses {
        if let IpAddr::V4(address) = address {
            let _ = socket.send(&Announcement::of_address(link.mac, *address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn routes_without_a_gateway_have_that_of_the_addresses() {
        let addressing = AddResult::parse(&json!({
            "ips": [{ "address": "10.0.0.5/24", "gateway": "10.0.0.1" }, { "address": "2001:db8::5/64" }],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.0.0.9", "table": 7 }, { "dst": "::/0" },
                       { "dst": "10.8.0.0/16", "scope": 253 }]
        }));
        let routes = routes(&addressing.unwrap());
        let gateways: Vec<Option<String>> = routes.iter().map(|of| of.gateway.map(|of| of.to_string())).collect();
        assert_eq!(gateways, [Some("10.0.0.1".to_owned()), Some("10.0.0.9".to_owned()), None, None]);
        assert_eq!((routes[1].table, routes[3].scope), (Some(7), Some(253)));
    }

    #[test]
    fn a_namespace_that_is_gone_has_no_interface_to_remove() {
        let place = Place { netns: Path::new("/run/netns/vift-nowhere"), name: "eth0", port: "p" };
        place.remove().unwrap();
        let error = place.check_namespace().unwrap_err();
        assert_eq!(error.code, code::INVALID_ENVIRONMENT);
        assert!(error.message.contains("vift-nowhere"), "{error}");
    }

    #[test]
    fn the_namespace_of_the_host_is_refused() {
        let place = Place { netns: Path::new("/proc/self/ns/net"), name: "eth0", port: "p" };
        let error = place.check_namespace().unwrap_err();
        assert!(error.message.contains("the namespace of the host"), "{error}");
    }
}
