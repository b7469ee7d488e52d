//! Port security, delivery, activation, lifetime and MAC limit of ports, and reserved groups of networks.

use std::fmt;
use std::str::FromStr;

use super::named::Named;
use crate::switch::{AtLimit, ReservedMask};
use crate::wire::{Mac, Prefix};

/// Sources that a guest may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSecurity {
    /// Any source.
    Off,
    /// The port's own MAC address and those of its allowed pairs, with any ethertype.
    Mac,
    /// The same; a sender in ARP, IP or ND must have an IP address allowed with that MAC address.
    MacIp,
}

impl Named for PortSecurity {
    const NAMES: &'static [(&'static str, PortSecurity)] =
        &[("off", PortSecurity::Off), ("mac", PortSecurity::Mac), ("mac+ip", PortSecurity::MacIp)];
}

/// A further allowed source, with at least one of the two fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPair {
    /// MAC address; `None`: the port's own.
    pub mac: Option<Mac>,
    /// IP addresses, for `mac+ip`; `None`: any.
    pub ip: Option<Prefix>,
}

/// Flooding of unknown unicast to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownUnicast {
    /// Flooded.
    Deliver,
    /// Not flooded: its only station is known.
    Suppress,
}

impl Named for UnknownUnicast {
    const NAMES: &'static [(&'static str, UnknownUnicast)] =
        &[("deliver", UnknownUnicast::Deliver), ("suppress", UnknownUnicast::Suppress)];
}

/// When the addresses of a port are pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// Always.
    #[default]
    Immediate,
    /// From its first frame allowed by port security. Until then they are learned at any port.
    FirstFrame,
}

impl Named for Activation {
    const NAMES: &'static [(&'static str, Activation)] =
        &[("immediate", Activation::Immediate), ("first-frame", Activation::FirstFrame)];
}

/// When a port ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lifetime {
    /// Never: whoever has configured it removes it.
    #[default]
    Config,
    /// With the network namespace of its device.
    Netns,
}

impl Named for Lifetime {
    const NAMES: &'static [(&'static str, Lifetime)] = &[("config", Lifetime::Config), ("netns", Lifetime::Netns)];
}

impl Named for AtLimit {
    const NAMES: &'static [(&'static str, AtLimit)] =
        &[("drop", AtLimit::Drop), ("forward-unlearned", AtLimit::ForwardUnlearned)];
}

/// Named masks of reserved groups.
const MASKS: [(&str, ReservedMask); 3] =
    [("vm-default", ReservedMask::VM_DEFAULT), ("all", ReservedMask::ALL), ("none", ReservedMask::NONE)];

/// An invalid policy of reserved groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid; use \"vm-default\", \"all\", \"none\" or a mask of 16 bits such as \"0xfffd\", in which bit n \
     lets 01:80:c2:00:00:0n pass"
)]
pub struct WrongReservedGroups;

impl FromStr for ReservedMask {
    type Err = WrongReservedGroups;

    fn from_str(text: &str) -> Result<ReservedMask, WrongReservedGroups> {
        if let Some((_, named)) = MASKS.iter().find(|(name, _)| *name == text) {
            return Ok(*named);
        }
        let digits = text.strip_prefix("0x").ok_or(WrongReservedGroups)?;
        // `from_str_radix` would accept a sign
        let is_mask = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let mask = is_mask.then(|| u16::from_str_radix(digits, 16).ok()).flatten();
        mask.map(ReservedMask).ok_or(WrongReservedGroups)
    }
}

/// Name, or `0x` and four digits.
impl fmt::Display for ReservedMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match MASKS.iter().find(|(_, named)| named == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{:#06x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_mask_is_parsed_as_displayed(mask: u16) {
            let groups = ReservedMask(mask);
            prop_assert_eq!(groups.to_string().parse(), Ok(groups));
            prop_assert_eq!(format!("{mask:#x}").parse(), Ok(groups));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text: String) {
            let _ = text.parse::<ReservedMask>();
        }
    }

    #[test]
    fn named_masks_are_displayed_by_name() {
        for (text, shown, mask) in [
            ("0xfffd", "vm-default", 0xfffd),
            ("0xFFFF", "all", 0xffff),
            ("0x0", "none", 0),
            ("0x4001", "0x4001", 0x4001),
            ("0x1", "0x0001", 1),
        ] {
            let groups: ReservedMask = text.parse().unwrap();
            assert_eq!((groups, groups.to_string().as_str()), (ReservedMask(mask), shown));
        }
        for text in ["", "0x", "0x10000", "fffd", "0x+1", "0x-1", "65533", "vm_default", "0xg"] {
            assert_eq!(text.parse::<ReservedMask>(), Err(WrongReservedGroups), "{text}");
        }
    }
}
