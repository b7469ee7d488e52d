//! Port security: the senders that a port may name in Ethernet and, if configured, in L3 headers.
//!
//! *L3*: only senders in ARP, IPv4, IPv6 and neighbor discovery are checked; other frames pass if their source MAC
//! does. A MAC address bound to any IP address also has its EUI-64 link-local address. It may also send what RFCs
//! let hosts send from the unspecified address, which names no sender: address requests and group membership. From
//! a link-local address formed otherwise (RFC 7217, RFC 8064) it may send host configuration: neighbor discovery
//! about itself, group membership, and DHCPv6. A MAC address without bound IP addresses may send no IP. All may
//! send ARP probes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::RefusedSender;
use crate::wire::{Mac, Neighbor, Prefix, SenderInfo};

/// Source addresses that a port may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Any, except those pinned to another port.
    Off,
    /// The port's address and these. L3 headers are not checked.
    Mac(Box<[Mac]>),
    /// The port's address and those of these bindings; senders in ARP and IP must match a binding. A port without
    /// bindings may send no IP.
    MacIp(Box<[Binding]>),
}

/// An allowed L3 sender: these IP addresses from this MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binding {
    /// The MAC address.
    pub mac: Mac,
    /// The IP addresses; `None`: any.
    pub ip: Option<Prefix>,
}

/// MAC limit: maximum number of learned stations of a port, and the policy beyond.
///
/// Each worker counts in its own FDB, including stations learned through updates. A port whose queues are all at
/// one worker never exceeds the limit. A port with queues at several workers may reach the limit at each of them
/// until their updates arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacLimit {
    /// Maximum number, excluding the port's own and allowed addresses.
    pub stations: u32,
    /// Policy for frames from other stations.
    pub policy: AtLimit,
}

/// Policy for a frame whose source exceeds the MAC limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtLimit {
    /// Drop.
    Drop,
    /// Forward without learning: frames to the station are flooded.
    ForwardUnlearned,
}

impl Security {
    /// Allowed addresses besides the port's own; may contain duplicates.
    pub fn macs(&self) -> impl Iterator<Item = Mac> + '_ {
        let (macs, bindings): (&[Mac], &[Binding]) = match self {
            Security::Off => (&[], &[]),
            Security::Mac(macs) => (macs, &[]),
            Security::MacIp(bindings) => (&[], bindings),
        };
        macs.iter().copied().chain(bindings.iter().map(|binding| binding.mac))
    }
}

/// Compiled bindings of a port: by MAC address, each with ranges of IP addresses, so that hundreds cost a frame
/// little more than one.
#[derive(Debug)]
pub(super) struct Bindings {
    /// Sorted by MAC address, without duplicates; includes the port's own.
    senders: Box<[BoundSender]>,
}

/// Bindings of one MAC address.
#[derive(Debug)]
struct BoundSender {
    mac: Mac,
    /// Ranges of addresses, first and last. Sorted, neither overlapping nor adjacent.
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Bindings {
    /// Compiles the bindings of a port with its own address.
    pub(super) fn new(own: Mac, bindings: &[Binding]) -> Bindings {
        type Stretches = (Vec<(u32, u32)>, Vec<(u128, u128)>);
        let mut by_mac: BTreeMap<Mac, Stretches> = BTreeMap::from([(own, Stretches::default())]);
        for binding in bindings {
            let (v4, v6) = by_mac.entry(binding.mac).or_default();
            match binding.ip.map(|ip| (ip.first(), ip.last())) {
                Some((IpAddr::V4(first), IpAddr::V4(last))) => v4.push((first.to_bits(), last.to_bits())),
                Some((IpAddr::V6(first), IpAddr::V6(last))) => v6.push((first.to_bits(), last.to_bits())),
                _ => {
                    v4.push((0, u32::MAX));
                    v6.push((0, u128::MAX));
                }
            }
        }
        let sender = |(mac, (v4, mut v6)): (Mac, Stretches)| {
            if !(v4.is_empty() && v6.is_empty()) {
                let link_local = link_local(mac).to_bits();
                v6.push((link_local, link_local));
            }
            BoundSender { mac, v4: join(v4, |end| end.checked_add(1)), v6: join(v6, |end| end.checked_add(1)) }
        };
        Bindings { senders: by_mac.into_iter().map(sender).collect() }
    }

    /// Whether a frame with an allowed source may name this sender.
    pub(super) fn allow(&self, source: Mac, claim: &SenderInfo) -> bool {
        match *claim {
            SenderInfo::Nothing => true,
            SenderInfo::Unreadable => false,
            // An ARP probe asks whether an address is free and does not claim it yet (RFC 5227, 2.1.1).
            SenderInfo::Arp { mac, ip } => self.of(mac).is_some_and(|sender| ip.is_unspecified() || sender.has_v4(ip)),
            SenderInfo::V4 { ip, address_acquisition } => {
                self.of(source).is_some_and(|sender| sender.has_v4(ip) || address_acquisition && sender.may_speak())
            }
            SenderInfo::V6 { ip, address_acquisition, neighbor } => {
                let Some(sender) = self.of(source) else { return false };
                let may_ask =
                    address_acquisition && (ip.is_unspecified() || sender.may_have_made(ip)) && sender.may_speak();
                (sender.has_v6(ip) || may_ask) && self.allow_neighbor(sender, ip, neighbor)
            }
        }
    }

    /// Whether `sender`, with source address `ip`, may send this neighbor discovery message: the advertised address
    /// must be bound to the advertised link-layer address.
    fn allow_neighbor(&self, sender: &BoundSender, ip: Ipv6Addr, says: Neighbor) -> bool {
        let Some(reported) = says.lladdr.map_or(Some(sender), |link| self.of(link)) else { return false };
        match says.target {
            Some(target) => reported.has_v6(target) || reported.may_have_made(target),
            None => says.lladdr.is_none() || ip.is_unspecified() || reported.has_v6(ip) || reported.may_have_made(ip),
        }
    }

    /// The sender to report for a dropped frame: a binding for it would let the frame pass, or reveal the next
    /// missing binding.
    pub(super) fn refused_sender(&self, source: Mac, sender: &SenderInfo) -> RefusedSender {
        let (mac, ip) = match *sender {
            SenderInfo::Nothing | SenderInfo::Unreadable => (source, None),
            SenderInfo::Arp { mac, ip } => (mac, Some(ip.into())),
            SenderInfo::V4 { ip, .. } => (source, Some(ip.into())),
            SenderInfo::V6 { ip, address_acquisition, neighbor } => {
                let speaks = SenderInfo::V6 { ip, address_acquisition, neighbor: Neighbor::default() };
                match neighbor.lladdr.unwrap_or(source) {
                    // The sender in the neighbor discovery message, unless the source itself is not allowed.
                    reported if self.allow(source, &speaks) => (reported, Some(neighbor.target.unwrap_or(ip).into())),
                    _ => (source, Some(ip.into())),
                }
            }
        };
        RefusedSender { mac, ip }
    }

    fn of(&self, mac: Mac) -> Option<&BoundSender> {
        let at = self.senders.binary_search_by_key(&mac, |sender| sender.mac).ok()?;
        self.senders.get(at)
    }
}

impl BoundSender {
    /// Whether any IP address is bound. If not, the sender may send no IP.
    fn may_speak(&self) -> bool {
        !self.v6.is_empty()
    }

    /// Whether the sender may have formed this link-local address itself, other than from a MAC address: its own
    /// EUI-64 address is bound anyway, and that of another MAC address belongs to another host.
    fn may_have_made(&self, ip: Ipv6Addr) -> bool {
        self.may_speak() && is_opaque_link_local(ip)
    }

    fn has_v4(&self, ip: Ipv4Addr) -> bool {
        holds(&self.v4, ip.to_bits())
    }

    fn has_v6(&self, ip: Ipv6Addr) -> bool {
        holds(&self.v6, ip.to_bits())
    }
}

/// Whether a number is in one of the ranges.
#[inline]
fn holds<T: Ord + Copy>(stretches: &[(T, T)], number: T) -> bool {
    let at = stretches.partition_point(|&(_, last)| last < number);
    stretches.get(at).is_some_and(|&(first, _)| first <= number)
}

/// Sorts the ranges and joins those that overlap or are adjacent.
fn join<T: Ord + Copy>(mut stretches: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Box<[(T, T)]> {
    stretches.sort_unstable();
    stretches.dedup_by(|&mut (first, last), (_, end)| {
        // A range that ends at the maximum joins all later ones.
        let joins = next(*end).is_none_or(|next| first <= next);
        if joins {
            *end = last.max(*end);
        }
        joins
    });
    stretches.into()
}

/// EUI-64 link-local address of a MAC address (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.octets();
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Whether a host may have made this address by itself with an opaque interface identifier (RFC 7217, 5; RFC 8064).
/// It is in fe80::/64 (RFC 4291, 2.5.6), and its identifier is none of these:
/// * made of a MAC address (EUI-64, RFC 4291, appendix A): that is another's;
/// * reserved (RFC 5453; the others of these are made of MAC addresses);
/// * small, as those that people write, such as a router's fe80::1.
///
/// One in 65 000 opaque identifiers looks as if it were made of a MAC address.
fn is_opaque_link_local(ip: Ipv6Addr) -> bool {
    const ANYCAST: u64 = 0xfdff_ffff_ffff_ff80;
    #[allow(clippy::cast_possible_truncation)] // the lower half
    let (prefix, identifier) = ((ip.to_bits() >> 64) as u64, ip.to_bits() as u64);
    let is_small = identifier >> 32 == 0;
    let is_of_mac = identifier >> 24 & 0xffff == 0xfffe;
    prefix == 0xfe80_0000_0000_0000 && !is_small && !is_of_mac && identifier >> 7 != ANYCAST >> 7
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn mac(number: u64) -> Mac {
        Mac::from_bits(0x0200_0000_0000 + number)
    }

    fn v4(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn v6(number: u8) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from_bits(u128::MAX - u128::from(number)))
    }

    fn binding() -> impl Strategy<Value = Binding> {
        let ip = prop_oneof![
            6 => (any::<u8>(), 24..=32u8).prop_map(|(n, len)| Prefix::new(v4(n), len)),
            6 => (any::<u8>(), 120..=128u8).prop_map(|(n, len)| Prefix::new(v6(n), len)),
            1 => Just(None),
        ];
        (0..4u64, ip).prop_map(|(number, ip)| Binding { mac: mac(number), ip })
    }

    proptest! {
        /// With overlapping bindings, exactly the addresses of each are allowed.
        #[test]
        fn a_sender_is_one_binding(bindings in vec(binding(), 0..40)) {
            let compiled_port = Bindings::new(mac(0), &bindings);
            for number in 0..5 {
                let its: Vec<_> = bindings.iter().filter(|binding| binding.mac == mac(number)).collect();
                for (at, ip) in (0..=255).flat_map(|n| [(n, v4(n)), (n, v6(n))]) {
                    let is_bound = its.iter().any(|binding| binding.ip.is_none_or(|prefix| prefix.contains(ip)));
                    let sender = match ip {
                        IpAddr::V4(ip) => SenderInfo::V4 { ip, address_acquisition: false },
                        IpAddr::V6(ip) => SenderInfo::V6 { ip, address_acquisition: false, neighbor: Neighbor::default() },
                    };
                    prop_assert_eq!(compiled_port.allow(mac(number), &sender), is_bound, "{} {}", number, at);
                    if let IpAddr::V4(ip) = ip {
                        let arp = SenderInfo::Arp { mac: mac(number), ip };
                        prop_assert_eq!(compiled_port.allow(mac(1), &arp), is_bound, "for any source of the frame");
                    }
                }
                let link = link_local(mac(number));
                let sender = SenderInfo::V6 { ip: link, address_acquisition: false, neighbor: Neighbor::default() };
                prop_assert_eq!(compiled_port.allow(mac(number), &sender), !its.is_empty(), "{}", link);
                for address_acquisition in [true, false] {
                    let (four, six) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
                    let any = its.iter().any(|binding| binding.ip.is_none());
                    let may = any || address_acquisition && !its.is_empty();
                    prop_assert_eq!(compiled_port.allow(mac(number), &SenderInfo::V4 { ip: four, address_acquisition }), may);
                    let sender = SenderInfo::V6 { ip: six, address_acquisition, neighbor: Neighbor::default() };
                    prop_assert_eq!(compiled_port.allow(mac(number), &sender), may);
                }
                let probe = SenderInfo::Arp { mac: mac(number), ip: Ipv4Addr::UNSPECIFIED };
                prop_assert_eq!(compiled_port.allow(mac(1), &probe), number == 0 || !its.is_empty());
            }
        }
    }

    #[test]
    fn neighbour_discovery_names_bound_addresses() {
        let bind = |number, ip: &str| Binding { mac: mac(number), ip: ip.parse().ok() };
        let bindings = Bindings::new(mac(1), &[bind(1, "fd::1"), bind(2, "fd::2"), bind(2, "fd::3")]);
        let says = |ip: &str, target: Option<&str>, link: Option<u64>| {
            let target = target.map(|target| target.parse().unwrap());
            let neighbor = Neighbor { target, lladdr: link.map(mac) };
            let ip: Ipv6Addr = ip.parse().unwrap();
            let address_acquisition = ip.is_unspecified() || ip.is_unicast_link_local();
            bindings.allow(mac(1), &SenderInfo::V6 { ip, address_acquisition, neighbor })
        };
        for (ip, target, link, expected) in [
            ("fd::1", None, None, true),
            ("fd::2", None, None, false),
            ("fe80::ff:fe00:1", None, None, true),
            ("fe80::ff:fe00:2", None, None, false),
            ("::", None, None, true),
            ("fd::1", Some("fd::1"), None, true),
            ("fd::1", Some("fd::2"), None, false),
            ("fd::1", Some("fd::2"), Some(2), true),
            ("fd::1", Some("fd::1"), Some(2), false),
            ("fd::1", Some("fd::3"), Some(3), false),
            ("fd::1", None, Some(1), true),
            ("fd::1", None, Some(2), false),
            ("fd::1", None, Some(3), false),
            ("::", None, Some(2), true),
            ("::", None, Some(3), false),
            // Opaque interface identifier (RFC 7217).
            ("fe80::a1b2:c3d4:e5f6:789", None, None, true),
            ("fe80::a1b2:c3d4:e5f6:789", None, Some(1), true),
            ("fe80::a1b2:c3d4:e5f6:789", None, Some(3), false),
            ("fe80::a1b2:c3d4:e5f6:789", Some("fe80::a1b2:c3d4:e5f6:789"), Some(1), true),
            ("fe80::a1b2:c3d4:e5f6:789", Some("fd::1"), Some(1), true),
            ("fe80::a1b2:c3d4:e5f6:789", Some("fd::2"), Some(1), false),
            ("fe80::a1b2:c3d4:e5f6:789", Some("fe80::ff:fe00:9"), Some(1), false),
            ("fd::1", Some("fe80::a1b2:c3d4:e5f6:789"), Some(1), true),
            ("fd::1", Some("fe80::1"), Some(1), false),
            ("fe80::1", None, None, false),
            ("fe80::200:5eff:fe00:201", None, None, false),
            ("fe80:0:0:1:a1b2:c3d4:e5f6:789", None, None, false),
            ("fe80::fdff:ffff:ffff:fffe", None, None, false),
        ] {
            assert_eq!(says(ip, target, link), expected, "{ip} {target:?} {link:?}");
        }
    }

    #[test]
    fn from_an_opaque_address_only_address_configuration_passes() {
        let bind = |number, ip: &str| Binding { mac: mac(number), ip: ip.parse().ok() };
        let bindings = Bindings::new(mac(1), &[bind(2, "10.0.0.1")]);
        let ip: Ipv6Addr = "fe80::a1b2:c3d4:e5f6:789".parse().unwrap();
        for (number, address_acquisition, expected) in
            [(2, true, true), (2, false, false), (1, true, false), (3, true, false)]
        {
            let sender = SenderInfo::V6 { ip, address_acquisition, neighbor: Neighbor::default() };
            assert_eq!(bindings.allow(mac(number), &sender), expected, "{number} {address_acquisition}");
        }
    }

    #[test]
    fn the_refused_sender_is_named() {
        let bind = |number, ip: &str| Binding { mac: mac(number), ip: ip.parse().ok() };
        let bindings = Bindings::new(mac(1), &[bind(1, "fd::1"), bind(2, "fd::2")]);
        let v6 = |ip: &str, target: Option<&str>, link: Option<u64>| {
            let target = target.map(|target| target.parse().unwrap());
            SenderInfo::V6 {
                ip: ip.parse().unwrap(),
                address_acquisition: false,
                neighbor: Neighbor { target, lladdr: link.map(mac) },
            }
        };
        for (sender, number, ip) in [
            (SenderInfo::Unreadable, 1, None),
            (SenderInfo::Arp { mac: mac(2), ip: [10, 0, 0, 1].into() }, 2, Some("10.0.0.1")),
            (SenderInfo::V4 { ip: [10, 0, 0, 1].into(), address_acquisition: false }, 1, Some("10.0.0.1")),
            (v6("fd::2", None, None), 1, Some("fd::2")),
            (v6("fd::2", Some("fd::3"), None), 1, Some("fd::2")),
            (v6("fd::1", Some("fd::3"), None), 1, Some("fd::3")),
            (v6("fd::1", Some("fd::1"), Some(3)), 3, Some("fd::1")),
            (v6("fd::1", None, Some(2)), 2, Some("fd::1")),
        ] {
            assert!(!bindings.allow(mac(1), &sender), "{sender:?}");
            let ip = ip.map(|ip| ip.parse().unwrap());
            assert_eq!(bindings.refused_sender(mac(1), &sender), RefusedSender { mac: mac(number), ip }, "{sender:?}");
        }
    }

    #[test]
    fn unparsable_frames_are_refused() {
        let bindings = Bindings::new(mac(1), &[Binding { mac: mac(1), ip: None }]);
        assert!(!bindings.allow(mac(1), &SenderInfo::Unreadable));
        assert!(bindings.allow(mac(1), &SenderInfo::Nothing));
    }
}
