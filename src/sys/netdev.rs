//! Reads the XDP features of a netdev over generic netlink (family "netdev", linux/netdev.h), in the calling
//! thread's network namespace. Changes nothing.

use std::io;

use super::genetlink::{attribute, open, request, resolve, send_request};

// linux/netdev.h
const DEV_GET: u8 = 1;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;
const DEV_XDP_RX_METADATA_FEATURES: u16 = 5;
/// NETDEV_XDP_RX_METADATA_VLAN_TAG
const VLAN_TAG: u64 = 4;

/// XDP features of a driver: `enum netdev_xdp_act`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// Runs programs natively.
    pub const fn native(self) -> bool {
        self.0 & 1 != 0
    }

    /// Supports XDP_REDIRECT, which AF_XDP needs.
    pub const fn redirect(self) -> bool {
        self.0 & 2 != 0
    }

    /// Supports zero-copy AF_XDP.
    pub const fn zero_copy(self) -> bool {
        self.0 & 8 != 0
    }

    /// Receives frames longer than a page, in several fragments.
    pub const fn pieces(self) -> bool {
        self.0 & 32 != 0
    }
}

/// XDP features of a netdev's driver. `None`: the kernel does not report them.
pub fn xdp_features(index: u32) -> io::Result<Option<XdpFeatures>> {
    Ok(bits(index, DEV_XDP_FEATURES)?.map(XdpFeatures))
}

/// Whether an XDP program can read a frame's VLAN tag from the driver's receive metadata.
pub fn tells_vlan_tags(index: u32) -> io::Result<bool> {
    Ok(bits(index, DEV_XDP_RX_METADATA_FEATURES)?.is_some_and(|bits| bits & VLAN_TAG != 0))
}

/// A 64-bit attribute of a netdev. `None`: the kernel does not report it.
fn bits(index: u32, wanted: u16) -> io::Result<Option<u64>> {
    let socket = open()?;
    // The family exists since Linux 6.3.
    let Some(family) = resolve(&socket, "netdev")? else { return Ok(None) };
    let answer = send_request(&socket, &request(family.id, DEV_GET, DEV_IFINDEX, &index.to_ne_bytes()))?;
    Ok(attribute(&answer, wanted).and_then(|bits| bits.try_into().ok()).map(u64::from_ne_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_netdev_has_no_properties() {
        assert!(!matches!(xdp_features(u32::MAX >> 1), Ok(Some(_))));
        assert!(!matches!(tells_vlan_tags(u32::MAX >> 1), Ok(true)));
    }
}
