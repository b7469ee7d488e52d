//! AF_XDP on netdevs that others own: QEMU's taps, veths, network cards.

use crate::sys::netns::Netns;

/// How an AF_XDP port shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The name of the netdev.
    pub name: String,
    /// The namespace of the netdev.
    pub netns: Netns,
    /// How many of its receive queues to bind, from the first on. `None`: all that it has.
    pub queues: Option<u16>,
    /// Which way frames may take between the netdev and us.
    pub mode: Mode,
    /// Whether a program that others have attached by netlink is taken off.
    pub takeover: bool,
    /// The MTU of the network, of the largest one on an uplink.
    pub mtu: u16,
    /// Slots of the pool that wait in the fill ring of each queue.
    pub fill: u32,
    /// The port or uplink it is for.
    pub owner: String,
}

/// Which way frames take between a netdev and us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The best that the netdev can.
    #[default]
    Auto,
    /// The driver reads and writes our memory.
    ZeroCopy,
    /// The driver hands frames over, and they are copied.
    Copy,
    /// The network stack hands frames over, and they are copied.
    Generic,
}
