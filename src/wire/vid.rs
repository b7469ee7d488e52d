//! VLAN ids (IEEE 802.1Q, 9.6).

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The id of a VLAN: 1 to 4094. 0 stands for "priority only", and 4095 is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vid(u16);

/// What is not the id of a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not the id of a VLAN; those are 1 to 4094")]
pub struct NotAVid;

impl Vid {
    /// The VLAN of this number, if there can be one.
    pub const fn new(number: u16) -> Option<Vid> {
        match number {
            1..=4094 => Some(Vid(number)),
            _ => None,
        }
    }

    /// Its number.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Vid {
    type Err = NotAVid;

    fn from_str(text: &str) -> Result<Vid, NotAVid> {
        text.parse().ok().and_then(Vid::new).ok_or(NotAVid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_are_ids() {
        for text in ["", "0", "4095", "-1", "x", "65537"] {
            assert_eq!(text.parse::<Vid>(), Err(NotAVid), "{text}");
        }
        for number in [1, 120, 4094] {
            assert_eq!(number.to_string().parse(), Ok(Vid::new(number).unwrap()));
        }
    }
}
