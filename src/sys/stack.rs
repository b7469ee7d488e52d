//! Reads how the network stack handles a netdev's frames, from sysctls and addresses (rtnetlink) in the calling
//! thread's network namespace. Changes nothing.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

use super::link::connected;

/// Reactions of the stack to frames that a netdev receives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostStack {
    /// Addresses for which the stack answers ARP on the netdev.
    pub answers: Vec<Ipv4Addr>,
    /// The stack forwards IPv4 packets received on the netdev.
    pub forwards: bool,
    /// IPv6 is enabled on the netdev: the stack answers neighbour solicitations.
    pub ipv6: bool,
    /// The stack accepts router advertisements.
    pub autoconfigures: bool,
}

impl HostStack {
    /// Whether the stack reacts to nothing.
    pub fn is_silent(&self) -> bool {
        *self == HostStack::default()
    }
}

/// As text: `answers ARP for 10.0.0.1 and 2 more, …`
impl fmt::Display for HostStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut does = Vec::new();
        match &self.answers[..] {
            [] => {}
            [one] => does.push(format!("answers ARP for {one}")),
            [one, more @ ..] => does.push(format!("answers ARP for {one} and {} more", more.len())),
        }
        for (is_so, what) in [
            (self.forwards, "forwards IPv4 packets"),
            (self.ipv6, "answers IPv6 neighbour solicitations"),
            (self.autoconfigures, "configures routes and addresses from router advertisements"),
        ] {
            does.extend(is_so.then(|| what.to_owned()));
        }
        f.write_str(&does.join(", "))
    }
}

/// Addresses of all netdevs of the namespace, with interface indices.
pub fn addresses() -> io::Result<Vec<(u32, IpAddr)>> {
    let messages: Vec<AddressMessage> = connected(async |handle| {
        handle.address().get().execute().try_collect().await.map_err(super::link::to_io_error)
    })?;
    let address = |message: &AddressMessage| {
        // On a point-to-point link, IFA_LOCAL is the own address and IFA_ADDRESS the peer's.
        let attributes = || message.attributes.iter();
        let local = attributes().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let other = || {
            attributes().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        };
        Some((message.header.index, local.or_else(other)?))
    };
    Ok(messages.iter().filter_map(address).collect())
}

/// Reactions of the stack to frames of a netdev. `addresses`: those of the namespace.
pub fn host_stack(name: &str, index: u32, addresses: &[(u32, IpAddr)]) -> HostStack {
    let all = format!("ipv4/conf/{name}");
    // The kernel uses the larger value.
    let arp_ignore = setting("ipv4/conf/all/arp_ignore").max(setting(&format!("{all}/arp_ignore")));
    let is_answered = |of: u32| match arp_ignore {
        1 | 2 => of == index,
        8 => false,
        _ => true,
    };
    let answers = addresses.iter().filter_map(|&(of, address)| match address {
        IpAddr::V4(address) if !address.is_loopback() && is_answered(of) => Some(address),
        _ => None,
    });
    let answers: Vec<Ipv4Addr> = answers.collect();
    let ipv6 = fs::exists(format!("/proc/sys/net/ipv6/conf/{name}")).unwrap_or(false)
        && setting(&format!("ipv6/conf/{name}/disable_ipv6")) == 0;
    let accepts = match setting(&format!("ipv6/conf/{name}/accept_ra")) {
        0 => false,
        1 => setting(&format!("ipv6/conf/{name}/forwarding")) == 0,
        _ => true,
    };
    let has_ipv4 =
        addresses.iter().any(|(_, address)| matches!(address, IpAddr::V4(address) if !address.is_loopback()));
    HostStack {
        answers,
        // Without an IPv4 address the namespace has no route.
        forwards: has_ipv4 && setting(&format!("{all}/forwarding")) != 0,
        ipv6,
        autoconfigures: ipv6 && accepts,
    }
}

/// Value of a sysctl below /proc/sys/net; 0 if it does not exist.
fn setting(path: &str) -> i32 {
    fs::read_to_string(format!("/proc/sys/net/{path}")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_activity_of_the_host_stack_is_described() {
        assert!(HostStack::default().is_silent());
        let address = |n| Ipv4Addr::new(10, 0, 0, n);
        let stack = HostStack { answers: vec![address(1), address(2)], ipv6: true, ..HostStack::default() };
        assert_eq!(stack.to_string(), "answers ARP for 10.0.0.1 and 1 more, answers IPv6 neighbour solicitations");
        assert!(!stack.is_silent());
    }

    #[test]
    fn the_addresses_of_the_namespace_are_read() {
        let there = super::super::netns::within(&super::super::netns::Netns::Host, addresses).unwrap().unwrap();
        let of_lo = host_stack("lo", 1, &[(1, IpAddr::V4(Ipv4Addr::LOCALHOST))]);
        assert!(of_lo.answers.is_empty(), "the loopback address is left out");
        assert!(there.iter().all(|(index, _)| *index > 0));
    }
}
