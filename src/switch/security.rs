//! Port security: which senders a port may name, on Ethernet and, where it is asked for, above it.

use crate::wire::{Mac, Prefix};

/// Which source addresses a port may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Any, but for those that are pinned to somebody else.
    Off,
    /// The address of the port, and these. What is above Ethernet is not looked at.
    Mac(Box<[Mac]>),
    /// The address of the port, and those of these bindings; and what ARP and IP say of the sender has to be in
    /// one of the bindings. A port without any may send no IP at all.
    MacIp(Box<[Binding]>),
}

/// A sender that a port may be: these addresses of IP, from this MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binding {
    /// The MAC address.
    pub mac: Mac,
    /// The addresses of IP; `None`: any.
    pub ip: Option<Prefix>,
}

/// How many stations may be learned behind a port, and what becomes of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacLimit {
    /// So many, addresses of its own and allowed ones not counted.
    pub stations: u32,
    /// What becomes of frames from others.
    pub policy: AtLimit,
}

/// What becomes of a frame from a station that may not be learned any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtLimit {
    /// It dies.
    Drop,
    /// It goes where it would, and its source is not learned: what is sent there is flooded.
    ForwardUnlearned,
}

impl Security {
    /// The addresses that it allows beside the port's own; some may be named more than once.
    pub fn macs(&self) -> impl Iterator<Item = Mac> + '_ {
        let (macs, bindings): (&[Mac], &[Binding]) = match self {
            Security::Off => (&[], &[]),
            Security::Mac(macs) => (macs, &[]),
            Security::MacIp(bindings) => (&[], bindings),
        };
        macs.iter().copied().chain(bindings.iter().map(|binding| binding.mac))
    }
}
