//! What a port may send and what it gets, as meant: port security, delivery, the limit on addresses;
//! and what becomes of the reserved group addresses of a network.

use std::fmt;
use std::str::FromStr;

use super::named::Named;
use crate::switch::{AtLimit, ReservedMask};
use crate::wire::{Mac, Prefix};

/// Which sources a guest may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSecurity {
    /// Any.
    Off,
    /// The port's own MAC address and those of its allowed pairs, with any ethertype.
    Mac,
    /// The same, and where ARP, IP or ND name a sender: one that is allowed with that MAC address.
    MacIp,
}

impl Named for PortSecurity {
    const NAMES: &'static [(&'static str, PortSecurity)] =
        &[("off", PortSecurity::Off), ("mac", PortSecurity::Mac), ("mac+ip", PortSecurity::MacIp)];
}

/// A further source that a guest may use. It names one of the two at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPair {
    /// A station; `None`: the port's own address, whatever that is.
    pub mac: Option<Mac>,
    /// Its addresses, which only `mac+ip` looks at; `None`: any.
    pub ip: Option<Prefix>,
}

/// What becomes of frames for a station that nobody knows, at a port that they could be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownUnicast {
    /// It gets them.
    Deliver,
    /// It does not: the one station behind it is known.
    Suppress,
}

impl Named for UnknownUnicast {
    const NAMES: &'static [(&'static str, UnknownUnicast)] =
        &[("deliver", UnknownUnicast::Deliver), ("suppress", UnknownUnicast::Suppress)];
}

/// Since when the addresses of a port are pinned to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// From the start.
    #[default]
    Immediate,
    /// From its first frame that port security lets pass. Until then they are learned at any port.
    FirstFrame,
}

impl Named for Activation {
    const NAMES: &'static [(&'static str, Activation)] =
        &[("immediate", Activation::Immediate), ("first-frame", Activation::FirstFrame)];
}

impl Named for AtLimit {
    const NAMES: &'static [(&'static str, AtLimit)] =
        &[("drop", AtLimit::Drop), ("forward-unlearned", AtLimit::ForwardUnlearned)];
}

/// The masks of reserved groups that have a name.
const MASKS: [(&str, ReservedMask); 3] =
    [("vm-default", ReservedMask::VM_DEFAULT), ("all", ReservedMask::ALL), ("none", ReservedMask::NONE)];

/// Not a word for a policy on reserved groups, and no mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a policy for the reserved groups; right would be \"vm-default\", \"all\", \"none\" or a mask of 16 bits as \
     \"0xfffd\", in which bit n lets 01:80:c2:00:00:0n pass"
)]
pub struct WrongReservedGroups;

impl FromStr for ReservedMask {
    type Err = WrongReservedGroups;

    fn from_str(text: &str) -> Result<ReservedMask, WrongReservedGroups> {
        if let Some((_, named)) = MASKS.iter().find(|(name, _)| *name == text) {
            return Ok(*named);
        }
        let digits = text.strip_prefix("0x").ok_or(WrongReservedGroups)?;
        // a number may have a sign, and a mask has none
        let is_mask = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let mask = is_mask.then(|| u16::from_str_radix(digits, 16).ok()).flatten();
        mask.map(ReservedMask).ok_or(WrongReservedGroups)
    }
}

/// Its name, or `0x` and four digits.
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
