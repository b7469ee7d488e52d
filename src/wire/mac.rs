//! MAC addresses: 48 bits (IEEE 802-2014, 8.2) in one word, because the switch compares and hashes them far more
//! often than it prints them.

use std::fmt;
use std::str::FromStr;

/// A 48-bit MAC address. Any 48-bit value is valid, including broadcast, group and zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(u64);

impl Mac {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Mac = Mac(0xffff_ffff_ffff);
    /// `00:00:00:00:00:00`, not valid for a station.
    pub const ZERO: Mac = Mac(0);
    /// `01:80:c2:00:00:00`, the bridge group of spanning tree (IEEE 802.1Q-2018, table 8-1).
    pub const BRIDGE_GROUP: Mac = Mac(0x0180_c200_0000);
    /// `01:00:0c:cc:cc:cd`, the group of per-VLAN spanning tree (PVST+), common on trunks.
    pub const PVST: Mac = Mac(0x0100_0ccc_cccd);

    /// Creates it from the low 48 bits of `bits`, first octet highest.
    pub const fn from_bits(bits: u64) -> Mac {
        Mac(bits & 0xffff_ffff_ffff)
    }

    /// The address as a number below 2^48, first octet highest.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Creates it from six octets in wire order.
    pub const fn new(o: [u8; 6]) -> Mac {
        Mac(u64::from_be_bytes([0, 0, o[0], o[1], o[2], o[3], o[4], o[5]]))
    }

    /// The six octets in wire order.
    pub const fn octets(self) -> [u8; 6] {
        let [_, _, a, b, c, d, e, f] = self.0.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// Whether the group bit is set: broadcast or multicast.
    pub const fn is_group(self) -> bool {
        self.0 & 0x0100_0000_0000 != 0
    }

    /// Whether the address is a valid source: neither group nor zero.
    pub const fn is_station(self) -> bool {
        // With the group bit as its sign, a station address is a positive number: one comparison.
        self.0.rotate_left(23).cast_signed() > 0
    }

    /// Whether this is the address of a virtual router of VRRP (RFC 9568, 7.3), which moves from master to master.
    pub const fn is_virtual_router(self) -> bool {
        matches!(self.octets(), [0, 0, 0x5e, 0, 1 | 2, 1..=255])
    }

    /// Whether this is one of `01:80:c2:00:00:00` to `0f`, which a standard bridge does not forward (IEEE
    /// 802.1Q-2018, table 8-1).
    pub const fn is_reserved_group(self) -> bool {
        self.0 & !0xf == 0x0180_c200_0000
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.octets();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address; one looks like 02:00:00:00:01:0a")]
pub struct NotAMac;

impl FromStr for Mac {
    type Err = NotAMac;

    /// Parses six groups of two hexadecimal digits, joined by `:` or by `-`.
    fn from_str(text: &str) -> Result<Mac, NotAMac> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0u8; 6];
        let mut groups = text.split(separator);
        for octet in &mut octets {
            let group = groups.next().ok_or(NotAMac)?;
            if group.len() != 2 || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(NotAMac);
            }
            *octet = u8::from_str_radix(group, 16).map_err(|_| NotAMac)?;
        }
        if groups.next().is_some() { Err(NotAMac) } else { Ok(Mac::new(octets)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_octets_are_parsed_back(bits in 0u64..1 << 48) {
            let mac = Mac::from_bits(bits);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            prop_assert_eq!(mac.to_string().replace(':', "-").to_uppercase().parse(), Ok(mac));
            prop_assert_eq!(Mac::new(mac.octets()), mac);
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,24}") {
            if let Ok(mac) = text.parse::<Mac>() {
                prop_assert_eq!(mac.to_string(), text.to_lowercase().replace('-', ":"));
            }
        }
    }

    #[test]
    fn kinds_of_address() {
        assert!(Mac::BROADCAST.is_group() && !Mac::BROADCAST.is_station());
        assert!(!Mac::ZERO.is_station());
        let lldp: Mac = "01:80:c2:00:00:0e".parse().unwrap();
        assert!(lldp.is_reserved_group() && lldp.is_group());
        assert!(!"01:80:c2:00:00:10".parse::<Mac>().unwrap().is_reserved_group());
        assert!("02:00:00:00:00:01".parse::<Mac>().unwrap().is_station());
        for (text, expected) in [
            ("00:00:5e:00:01:01", true),
            ("00:00:5e:00:02:ff", true),
            ("00:00:5e:00:01:00", false),
            ("00:00:5e:00:03:01", false),
            ("00:00:5e:01:01:01", false),
            ("02:00:5e:00:01:01", false),
        ] {
            assert_eq!(text.parse::<Mac>().unwrap().is_virtual_router(), expected, "{text}");
        }
    }

    #[test]
    fn near_misses_are_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "0g:00:00:00:00:00",
            "02:00-00:00:00:01",
            "+2:00:00:00:00:01",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(NotAMac), "{text}");
        }
    }
}
