//! Devices of ports and uplinks.

use crate::control::config::named::Named;
use crate::device::xdp;

/// Device of a port or uplink.
#[derive(Debug, Clone, PartialEq)]
pub enum Device {
    /// A tap whose file descriptor the switch holds.
    Tap(Tap),
    /// AF_XDP on a netdev of others.
    Xdp(Xdp),
    /// AF_PACKET on a netdev of others.
    Packet(Packet),
}

impl Device {
    /// Keywords of the kinds.
    pub const KINDS: &'static [&'static str] = &["tap", "xdp", "packet"];

    /// Keyword of its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Device::Tap(_) => "tap",
            Device::Xdp(_) => "xdp",
            Device::Packet(_) => "packet",
        }
    }

    /// Name of its netdev.
    pub fn name(&self) -> &str {
        match self {
            Device::Tap(tap) => &tap.name,
            Device::Xdp(xdp) => &xdp.name,
            Device::Packet(packet) => &packet.name,
        }
    }

    /// Network namespace: a name under /run/netns, or an absolute path. `None`: the switch's.
    pub fn netns(&self) -> Option<&str> {
        match self {
            Device::Tap(tap) => tap.netns.as_deref(),
            Device::Xdp(xdp) => xdp.netns.as_deref(),
            Device::Packet(packet) => packet.netns.as_deref(),
        }
    }

    /// Identity of its netdev: path of the namespace, and name.
    pub fn netdev(&self) -> (String, &str) {
        let netns = self.netns().unwrap_or_default();
        let path = match netns.strip_prefix("/var/run/netns/") {
            Some(name) => format!("/run/netns/{name}"),
            None if netns.is_empty() || netns.starts_with('/') => netns.to_string(),
            None => format!("/run/netns/{netns}"),
        };
        (path, self.name())
    }
}

/// A tap, created if missing.
#[derive(Debug, Clone, PartialEq)]
pub struct Tap {
    /// Name of the netdev, valid for the kernel.
    pub name: String,
    /// Network namespace: a name under /run/netns, or an absolute path. `None`: the switch's.
    pub netns: Option<String>,
    /// Number of queue pairs.
    pub queues: u16,
    /// Partial checksums and GSO packets pass.
    pub offloads: bool,
    /// The netdev persists after the switch ends.
    pub persist: bool,
}

/// AF_XDP on a netdev of others.
#[derive(Debug, Clone, PartialEq)]
pub struct Xdp {
    /// Name of the netdev.
    pub name: String,
    /// Network namespace, as for a tap.
    pub netns: Option<String>,
    /// Number of receive queues that the netdev must have. `None`: any.
    pub queues: Option<u16>,
    /// Allowed modes.
    pub mode: xdp::Mode,
    /// Detaches an XDP program that others attached by netlink.
    pub replace_xdp_program: bool,
}

/// AF_PACKET on a netdev of others.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    /// Name of the netdev.
    pub name: String,
    /// Network namespace, as for a tap.
    pub netns: Option<String>,
    /// Partial checksums and GSO packets pass.
    pub offloads: bool,
    /// Received frames are kept from the network stack of the namespace.
    pub isolate: bool,
}

impl Named for xdp::Mode {
    const NAMES: &'static [(&'static str, xdp::Mode)] = &[
        ("auto", xdp::Mode::Auto),
        ("zero-copy", xdp::Mode::ZeroCopy),
        ("copy", xdp::Mode::Copy),
        ("generic", xdp::Mode::Generic),
    ];
}
