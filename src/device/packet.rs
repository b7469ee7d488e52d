//! AF_PACKET on netdevs that others own: where XDP is not possible, or super-frames must pass.

use crate::sys::netns::Netns;

/// How an AF_PACKET port shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The name of the netdev.
    pub name: String,
    /// The namespace of the netdev.
    pub netns: Netns,
    /// Whether open checksums and super-frames pass.
    pub offloads: bool,
    /// The MTU of the network, of the largest one on an uplink.
    pub mtu: u16,
    /// The port or uplink it is for.
    pub owner: String,
}
