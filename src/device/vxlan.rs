//! Checks that full-size frames fit through VXLAN netdevs. Encapsulation adds headers; packets longer than the underlay
//! MTU are fragmented, at a tenth of the throughput. Reads netdevs, routes and FDBs; changes nothing.
//!
//! A port leads to a VXLAN netdev if it is one, or if its frames arrive at a bridge with one, as with EVPN: the bridge has its
//! tap, or the other end of its veth.
//! The underlay is the route to each remote: the one of the netdev, and those in its FDB. Without remotes it is the netdev
//! that the packets will leave by.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use super::DeviceLocation;
use crate::sys::link::{self, Link, Vxlan, tunnels};
use crate::sys::stack;

/// Bytes that VXLAN adds to a frame, as the MTU counts them: inner Ethernet header, VXLAN, UDP and IPv4 (RFC 7348); or
/// IPv6.
const OVER_IPV4: u32 = 14 + 8 + 8 + 20;
const OVER_IPV6: u32 = 14 + 8 + 8 + 40;

/// UDP port of VXLAN; the route does not depend on it.
const PORT: u16 = 4789;

/// The usual MTU of a network, of which `doctor` reports what it needs.
const USUAL_MTU: u32 = 1500;

/// A VXLAN netdev that frames of a port pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Name of the VXLAN netdev.
    device: String,
    /// The bridge that connects it to the port's netdev; `None` if it is that netdev.
    bridge: Option<String>,
    /// Its MTU.
    mtu: u32,
    /// What carries its packets; `None` if unknown.
    underlay: Option<Underlay>,
}

/// Underlay of a VXLAN netdev.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Underlay {
    /// Description: `the route to 10.0.0.2`.
    what: String,
    mtu: u32,
    /// Bytes added to a frame.
    overhead: u32,
}

impl Underlay {
    fn new(what: String, mtu: u32, is_ipv4: bool) -> Underlay {
        Underlay { what, mtu, overhead: if is_ipv4 { OVER_IPV4 } else { OVER_IPV6 } }
    }

    /// Length in bytes of the longest frame that is not fragmented, as an MTU.
    fn fitting(&self) -> u32 {
        self.mtu.saturating_sub(self.overhead)
    }
}

/// The VXLAN netdevs that frames pass which the switch sends by the netdev `link`, in the calling thread's namespace.
/// `bridge`: interface index of the bridge at which they arrive, if it is one; 0 for none.
pub(super) fn find(name: &str, link: &Link, bridge: u32) -> Vec<Tunnel> {
    if link.vxlan.is_some() {
        return tunnel(name, link, None).into_iter().collect();
    }
    if bridge == 0 {
        return Vec::new();
    }
    let found = tunnels::on_bridge(bridge).unwrap_or_default();
    if found.is_empty() {
        return Vec::new();
    }
    let bridge = netdev(bridge).map(|(name, _)| name);
    found.iter().filter_map(|(name, link)| tunnel(name, link, Some(bridge.clone()?))).collect()
}

fn tunnel(name: &str, link: &Link, bridge: Option<String>) -> Option<Tunnel> {
    let underlay = underlay(link.index, link.vxlan.as_ref()?);
    Some(Tunnel { device: name.to_owned(), bridge, mtu: link.mtu, underlay })
}

/// Name and MTU of a netdev.
fn netdev(index: u32) -> Option<(String, u32)> {
    let found = link::find_each(&[("", Some(index))]).pop()?.ok()??;
    Some((found.name, found.link.mtu))
}

fn underlay(index: u32, vxlan: &Vxlan) -> Option<Underlay> {
    let lower = Some(vxlan.lower).filter(|&lower| lower > 0).and_then(netdev);
    let mut remotes = tunnels::remotes(index).unwrap_or_default();
    remotes.extend(vxlan.remote.filter(|remote| !remote.is_multicast()));
    let routes = remotes.iter().filter_map(|&remote| {
        let mtu = route_mtu(vxlan.local, remote).ok()?;
        Some(match &lower {
            // The packets leave by this netdev, wherever the route leads.
            Some((name, lower)) if *lower < mtu => Underlay::new(name.clone(), *lower, remote.is_ipv4()),
            _ => Underlay::new(format!("the route to {remote}"), mtu, remote.is_ipv4()),
        })
    });
    if let Some(narrowest) = routes.min_by_key(Underlay::fitting) {
        return Some(narrowest);
    }
    let is_ipv4 = vxlan.remote.or(vxlan.local).is_none_or(|address| address.is_ipv4());
    let (name, mtu) = lower.or_else(|| {
        let local = vxlan.local?;
        netdev(stack::addresses().ok()?.into_iter().find(|(_, address)| *address == local)?.0)
    })?;
    Some(Underlay::new(name, mtu, is_ipv4))
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

/// The tunnel of a port, for texts: `vx1 in the host's namespace`.
struct Named<'a>(&'a Tunnel, &'a DeviceLocation);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Named(Tunnel { device, bridge, .. }, location) = self;
        match bridge {
            None => write!(f, "{location}"),
            Some(bridge) => write!(f, "{device}, to which bridge {bridge} connects {location},"),
        }
    }
}

impl Tunnel {
    /// Whether it is the netdev with this name itself.
    pub(super) fn is(&self, name: &str) -> bool {
        self.bridge.is_none() && self.device == name
    }

    /// Warning if frames of a network with the MTU `wanted` do not fit.
    pub(super) fn warning(&self, location: &DeviceLocation, wanted: u32) -> Option<String> {
        let (named, device, own) = (Named(self, location), &self.device, self.mtu);
        let Some(underlay) = &self.underlay else {
            let needed = [OVER_IPV4, OVER_IPV6].map(|overhead| wanted + overhead);
            return (own < wanted).then(|| {
                format!(
                    "{named} has MTU {own}, the network has {wanted}: longer frames are dropped; set the network's to {own}, \
                     or, if the route to its remotes, which are not known yet, has MTU {} (over IPv6 {}) or more, \
                     `ip link set dev {device} mtu {wanted}`",
                    needed[0], needed[1]
                )
            });
        };
        let Underlay { what, mtu, overhead } = underlay;
        let (fitting, needed) = (underlay.fitting(), wanted + overhead);
        match (own >= wanted, fitting >= wanted) {
            (true, true) => None,
            (false, true) => Some(format!(
                "{named} has MTU {own}, the network has {wanted}: longer frames are dropped; set it with \
                 `ip link set dev {device} mtu {wanted}`"
            )),
            (true, false) => Some(format!(
                "{named} adds {overhead} bytes per frame and {what} has MTU {mtu}: frames longer than {fitting} bytes, of \
                 {wanted} on the network, are fragmented; set the underlay's MTU to {needed}, or the network's to {fitting}"
            )),
            (false, false) => Some(format!(
                "{named} has MTU {own}, the network has {wanted}: longer frames are dropped, and with a larger MTU here they \
                 would be fragmented, because it adds {overhead} bytes and {what} has MTU {mtu}; set the underlay's MTU to \
                 {needed}, or the network's to {}; with the former, also `ip link set dev {device} mtu {wanted}`",
                fitting.min(own)
            )),
        }
    }

    /// How the netdev sends frames that need an MTU of `needed` for their tags: it refuses them now.
    pub(super) fn remedy_for_tags(&self, needed: u32) -> String {
        let set = format!("`ip link set dev {} mtu {needed}`", self.device);
        match &self.underlay {
            Some(underlay) if underlay.fitting() >= needed => format!("set it with {set}"),
            Some(Underlay { what, mtu, overhead }) => {
                format!("set the underlay's MTU to {} ({what} has {mtu}), and then it with {set}", needed + overhead)
            }
            None => {
                let [ipv4, ipv6] = [OVER_IPV4, OVER_IPV6].map(|overhead| needed + overhead);
                format!("if the route to its remotes has MTU {ipv4} (over IPv6 {ipv6}) or more, set it with {set}")
            }
        }
    }

    /// What the underlay lets pass, before a network is known.
    pub(super) fn report(&self, location: &DeviceLocation) -> String {
        let (named, device, own) = (Named(self, location), &self.device, self.mtu);
        let Some(underlay) = &self.underlay else {
            return format!(
                "{named} has MTU {own}; its remotes are not known yet: the route to them needs the network's MTU and \
                 {OVER_IPV4} bytes more, {OVER_IPV6} over IPv6"
            );
        };
        let Underlay { what, mtu, overhead } = underlay;
        let fitting = underlay.fitting();
        let mut text = format!(
            "{named} has MTU {own} and adds {overhead} bytes per frame, and {what} has MTU {mtu}: a network's mtu may be up to {}",
            fitting.min(own)
        );
        if own > fitting {
            text.push_str("; longer frames are fragmented");
        }
        if fitting.min(own) < USUAL_MTU {
            let needed = USUAL_MTU + overhead;
            let underlay = (*mtu < needed).then(|| format!("set the underlay's MTU to {needed}"));
            let here = (own < USUAL_MTU).then(|| format!("`ip link set dev {device} mtu {USUAL_MTU}`"));
            let steps: Vec<String> = underlay.into_iter().chain(here).collect();
            text.push_str(&format!("; for {USUAL_MTU}, {}", steps.join(", and then ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::properties::{Properties, refusals};
    use crate::device::{Settings, packet};
    use crate::sys::link_events::LinkState;
    use crate::sys::netns::Netns;

    fn location(device: &str) -> DeviceLocation {
        DeviceLocation { device: device.into(), netns: Netns::Host }
    }

    fn tunnel(own: u32, underlay: Option<(u32, u32)>) -> Tunnel {
        let underlay = underlay.map(|(mtu, overhead)| Underlay { what: "the route to 10.0.0.2".into(), mtu, overhead });
        Tunnel { device: "vx1".into(), bridge: None, mtu: own, underlay }
    }

    #[test]
    fn no_recommended_mtu_causes_fragments() {
        let said = |own, wanted, mtu, overhead| {
            tunnel(own, Some((mtu, overhead))).warning(&location("vx1"), wanted).unwrap_or_default()
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
        let small = said(1400, 1500, 1500, OVER_IPV4);
        assert!(small.contains("or the network's to 1400"), "with 1450, frames would still be dropped: {small}");
    }

    #[test]
    fn without_known_remotes_a_larger_mtu_is_conditional() {
        assert_eq!(tunnel(1500, None).warning(&location("vx1"), 1500), None);
        let said = tunnel(1450, None).warning(&location("vx1"), 1500).unwrap();
        assert!(
            said.contains("the network's to 1450, or, if the route") && said.contains("has MTU 1550 (over IPv6 1570)")
        );
    }

    #[test]
    fn a_tunnel_behind_a_bridge_is_named_with_it() {
        let behind = Tunnel { bridge: Some("br1".into()), ..tunnel(1500, Some((1500, OVER_IPV4))) };
        let said = behind.warning(&location("sw1"), 1500).unwrap();
        assert!(
            said.starts_with("vx1, to which bridge br1 connects sw1 in the host's namespace, adds 50 bytes"),
            "{said}"
        );
    }

    #[test]
    fn frames_with_more_tags_need_a_larger_underlay_too() {
        let remedy = |mtu| tunnel(1500, Some((mtu, OVER_IPV4))).remedy_for_tags(1508);
        assert_eq!(remedy(1558), "set it with `ip link set dev vx1 mtu 1508`");
        assert!(
            remedy(1550).starts_with("set the underlay's MTU to 1558 (the route to 10.0.0.2 has 1550), and then it")
        );
        assert!(tunnel(1500, None).remedy_for_tags(1508).starts_with("if the route to its remotes has MTU 1558"));
    }

    /// Of frames without tags, the warning about the MTU says what helps.
    #[test]
    fn no_refused_frame_leads_to_a_recommendation_that_causes_fragments() {
        let settings = Settings::Packet(packet::Settings {
            name: "vx1".into(),
            netns: Netns::Host,
            offloads: true,
            isolate: true,
            mtu: 1500,
            owner: "p".into(),
        });
        let refused = |own, underlay| {
            let link = LinkState { mtu: own, ..LinkState::default() };
            let tunnels = vec![tunnel(own, Some((underlay, OVER_IPV4)))];
            refusals(&settings, &Properties { name: "vx1".into(), link, tunnels, ..Properties::default() })
        };
        assert_eq!(refused(1450, 1500), None);
        assert_eq!(refused(1508, 1558), None);
        let tags = refused(1500, 1550).unwrap();
        assert!(tags.contains("802.1ad; set the underlay's MTU to 1558") && tags.ends_with("mtu 1508`"), "{tags}");
    }

    #[test]
    fn doctor_reports_what_fits_and_what_1500_bytes_need() {
        let said = |own, mtu| tunnel(own, Some((mtu, OVER_IPV4))).report(&location("vx1"));
        assert!(said(1500, 1550).ends_with("may be up to 1500"), "{}", said(1500, 1550));
        assert!(
            said(1500, 1500)
                .ends_with("up to 1450; longer frames are fragmented; for 1500, set the underlay's MTU to 1550")
        );
        assert!(
            said(1450, 1500)
                .ends_with("for 1500, set the underlay's MTU to 1550, and then `ip link set dev vx1 mtu 1500`")
        );
        assert!(said(1450, 1600).ends_with("up to 1450; for 1500, `ip link set dev vx1 mtu 1500`"));
        assert!(tunnel(1500, None).report(&location("vx1")).contains("not known yet"));
    }
}
