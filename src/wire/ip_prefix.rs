//! IP prefixes: an address and a prefix length, as in `10.0.0.0/8` (RFC 4632, 3.1; RFC 4291, 2.3). A single address
//! has the full length.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// All addresses of one IP version with the same leading bits. The other bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    first: IpAddr,
    len: u8,
}

impl Prefix {
    /// Prefix of the first `len` bits of `address`; ignores the others. `None` if `len` exceeds the address.
    pub const fn new(address: IpAddr, len: u8) -> Option<Prefix> {
        let first = match address {
            IpAddr::V4(address) if len <= 32 => {
                let bits = address.to_bits() & !low_32(32 - len);
                IpAddr::V4(Ipv4Addr::from_bits(bits))
            }
            IpAddr::V6(address) if len <= 128 => {
                let bits = address.to_bits() & !low_128(128 - len);
                IpAddr::V6(Ipv6Addr::from_bits(bits))
            }
            _ => return None,
        };
        Some(Prefix { first, len })
    }

    /// Prefix of a single address.
    pub const fn host(address: IpAddr) -> Prefix {
        let len = if address.is_ipv4() { 32 } else { 128 };
        Prefix { first: address, len }
    }

    /// First address.
    pub const fn first(self) -> IpAddr {
        self.first
    }

    /// Last address.
    pub const fn last(self) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from_bits(first.to_bits() | low_32(32 - self.len))),
            IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits() | low_128(128 - self.len))),
        }
    }

    /// Prefix length in bits: at most 32 for IPv4, 128 for IPv6.
    #[allow(clippy::len_without_is_empty)] // it is no container
    pub const fn len(self) -> u8 {
        self.len
    }

    /// Whether the prefix contains the address; false for another IP version.
    pub fn contains(self, address: IpAddr) -> bool {
        Prefix::new(address, self.len).is_some_and(|prefix| prefix.first == self.first)
    }
}

/// Mask of the lowest `count` bits, at most 32.
const fn low_32(count: u8) -> u32 {
    match u32::MAX.checked_shr(32 - count as u32) {
        Some(bits) => bits,
        None => 0,
    }
}

/// Mask of the lowest `count` bits, at most 128.
const fn low_128(count: u8) -> u128 {
    match u128::MAX.checked_shr(128 - count as u32) {
        Some(bits) => bits,
        None => 0,
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Prefix {
        Prefix::host(address)
    }
}

impl fmt::Display for Prefix {
    /// Omits the length of a single address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Prefix::host(self.first) {
            return fmt::Display::fmt(&self.first, f);
        }
        write!(f, "{}/{}", self.first, self.len)
    }
}

/// Why a text is not a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an IP address or prefix; these look like 10.5.0.1, 10.5.0.0/24, 2001:db8::1 or 2001:db8::/32")]
pub struct NotAPrefix;

impl FromStr for Prefix {
    type Err = NotAPrefix;

    /// Parses an address, or an address, `/` and a decimal length. Ignores bits after the prefix.
    fn from_str(text: &str) -> Result<Prefix, NotAPrefix> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotAPrefix)?;
        let Some(len) = len else { return Ok(Prefix::host(address)) };
        if !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NotAPrefix);
        }
        len.parse().ok().and_then(|len| Prefix::new(address, len)).ok_or(NotAPrefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
            any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
        ]
    }

    /// Its bits, as digits.
    fn digits(address: IpAddr) -> String {
        match address {
            IpAddr::V4(address) => format!("{:032b}", address.to_bits()),
            IpAddr::V6(address) => format!("{:0128b}", address.to_bits()),
        }
    }

    proptest! {
        #[test]
        fn a_prefix_contains_addresses_with_its_bits(base in address(), len in 0..140u8, flip in 0..140usize, other in address()) {
            let all = digits(base);
            let prefix = Prefix::new(base, len);
            prop_assert_eq!(prefix.is_some(), usize::from(len) <= all.len());
            let Some(prefix) = prefix else { return Ok(()) };
            let common = &all[..usize::from(len)];
            prop_assert!(prefix.contains(base) && prefix.contains(prefix.first()) && prefix.contains(prefix.last()));
            prop_assert_eq!(digits(prefix.first()), format!("{common:0<width$}", width = all.len()));
            prop_assert_eq!(digits(prefix.last()), format!("{common:1<width$}", width = all.len()));
            // One that differs in a single bit.
            let near = match base {
                IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() ^ 1u32.rotate_right(flip as u32))),
                IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() ^ 1u128.rotate_right(flip as u32))),
            };
            for other in [near, other] {
                let begins_alike = other.is_ipv4() == base.is_ipv4() && digits(other).starts_with(common);
                prop_assert_eq!(prefix.contains(other), begins_alike);
            }
        }

        #[test]
        fn text_is_parsed_back(base in address(), len in 0..=128u8) {
            if let Some(prefix) = Prefix::new(base, len) {
                prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
                prop_assert_eq!(format!("{base}/{len}").parse(), Ok(prefix));
            }
            prop_assert_eq!(base.to_string().parse(), Ok(Prefix::host(base)));
            prop_assert_eq!(Prefix::host(base).to_string(), base.to_string());
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[0-9a-f:./]{0,24}") {
            if let Ok(prefix) = text.parse::<Prefix>() {
                prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
            }
        }
    }

    #[test]
    fn near_misses_are_refused() {
        for text in
            ["", "/", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "10.0/8", "::/129", "::1/ 5", "10.0.0.1/8/8", "/8"]
        {
            assert_eq!(text.parse::<Prefix>(), Err(NotAPrefix), "{text}");
        }
        assert_eq!("10.1.2.3/8".parse::<Prefix>().unwrap().to_string(), "10.0.0.0/8");
        assert_eq!("0.0.0.0/0".parse::<Prefix>().unwrap().to_string(), "0.0.0.0/0");
        assert_eq!("2001:DB8::/32".parse::<Prefix>().unwrap().to_string(), "2001:db8::/32");
        assert_eq!("::1".parse::<Prefix>().unwrap().to_string(), "::1");
    }
}
