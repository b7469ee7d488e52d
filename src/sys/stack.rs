//! Reads what the network stack does with a netdev's frames: its settings and addresses, in the calling thread's
//! network namespace. Changes nothing.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

use super::link::connected;

/// What the stack does with frames that a netdev receives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostStack {
    /// Addresses for which it answers ARP there.
    pub answers: Vec<Ipv4Addr>,
    /// Whether it forwards IPv4 packets that come in there.
    pub forwards: bool,
    /// Whether it has IPv6 there: it answers neighbour solicitations.
    pub ipv6: bool,
    /// Whether it configures itself by router advertisements.
    pub autoconfigures: bool,
}

impl HostStack {
    /// Whether it does anything.
    pub fn is_silent(&self) -> bool {
        *self == HostStack::default()
    }
}

/// What it does, in words: `answers ARP for 10.0.0.1 and 2 more, …`
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
            (self.autoconfigures, "takes routes and addresses from router advertisements"),
        ] {
            does.extend(is_so.then(|| what.to_owned()));
        }
        f.write_str(&does.join(", "))
    }
}

/// The addresses of all netdevs of the namespace, each with the index of its netdev.
pub fn addresses() -> io::Result<Vec<(u32, IpAddr)>> {
    let messages: Vec<AddressMessage> = connected(async |handle| {
        handle.address().get().execute().try_collect().await.map_err(super::link::to_io_error)
    })?;
    let address = |message: &AddressMessage| {
        // Of a point-to-point link, the local one is ours.
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

/// What the stack does with frames of this netdev. `addresses` are those of the namespace.
pub fn host_stack(name: &str, index: u32, addresses: &[(u32, IpAddr)]) -> HostStack {
    let all = format!("ipv4/conf/{name}");
    // The larger one of both counts.
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
        // Without an address of its own it has no route to anywhere.
        forwards: has_ipv4 && setting(&format!("{all}/forwarding")) != 0,
        ipv6,
        autoconfigures: ipv6 && accepts,
    }
}

/// A number below /proc/sys/net; 0 where there is none.
fn setting(path: &str) -> i32 {
    fs::read_to_string(format!("/proc/sys/net/{path}")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_does_is_said_in_words() {
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
        assert!(of_lo.answers.is_empty(), "nobody is told of the loopback");
        assert!(there.iter().all(|(index, _)| *index > 0));
    }
}
