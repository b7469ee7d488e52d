//! A compiled port: its settings in the form in which forwarding reads them.

use super::flood_list::Range;
use super::security::Bindings;
use super::{Limits, MacLimit, PortConfig, ReservedMask, Station};
use crate::wire::Mac;

/// A compiled port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) config: PortConfig,
    /// Whether the port accepts received frames.
    pub(super) is_open: bool,
    /// Its own address if pinned to it, else the zero address, which no valid frame has as its source.
    pub(super) pinned: Station,
    /// Whether port security restricts sources.
    pub(super) has_source_policy: bool,
    /// Whether each source must be checked: for port security, or because control waits for a frame of the port.
    pub(super) checks_source: bool,
    /// Addresses of the port that are not pinned now, because the port is inactive or the pins were released.
    /// Sorted.
    pub(super) unpinned: Box<[Mac]>,
    /// Allowed sources, sorted.
    pub(super) allowed: Box<[Mac]>,
    /// Addresses of the other ports of its VM, on any network, that port security drops here. Sorted.
    pub(super) sibling_macs: Box<[Mac]>,
    /// Allowed L3 senders, if checked.
    pub(super) bindings: Option<Bindings>,
    /// Range of the network's flood list that a flood from this port excludes.
    pub(super) skip: Range,
    /// The same, in the list of ports that get unknown unicast.
    pub(super) skip_unknown: Range,
    /// The same, in the list of promiscuous ports.
    pub(super) skip_mirror: Range,
    /// Whether any port of its network gets no unknown unicast.
    pub(super) limits_unknown: bool,
    /// Whether any other port of its network is promiscuous.
    pub(super) is_mirrored: bool,
    /// MAC limit, if any: at this limit no station is evicted.
    pub(super) mac_limit: Option<MacLimit>,
    /// Whether storm limits apply.
    pub(super) is_policed: bool,
    /// Index among the subports of all trunks, if it is a subport.
    pub(super) subport_index: Option<u16>,
    /// Maximum frame length without tags, in bytes.
    pub(super) max_len: u32,
    pub(super) anti_spoof: bool,
    pub(super) reserved: ReservedMask,
    pub(super) limits: Limits,
    pub(super) ageing: u32,
}

impl Port {
    /// Whether it is an uplink.
    #[inline]
    pub(super) fn is_uplink(&self) -> bool {
        self.config.is_uplink()
    }

    /// Whether control waits for a frame from this source, which port security allows.
    #[inline]
    pub(super) fn awaits_activation_by(&self, source: Mac) -> bool {
        !self.config.pins || self.owns(source)
    }

    /// Whether this address belongs to it and is not pinned now.
    #[inline]
    pub(super) fn owns(&self, source: Mac) -> bool {
        self.unpinned.binary_search(&source).is_ok()
    }

    /// Whether port security allows this source.
    #[inline]
    pub(super) fn allows(&self, source: Mac) -> bool {
        !self.has_source_policy || source == self.config.mac || self.allowed.binary_search(&source).is_ok()
    }

    /// Whether an address is that of another port of its VM.
    pub(super) fn is_of_sibling(&self, mac: Mac) -> bool {
        self.sibling_macs.binary_search(&mac).is_ok()
    }

    /// Whether this address may move often between the port and others allowed to use it: it is configured here or
    /// the port is an uplink, and its VM neither loops nor storms.
    pub(super) fn may_share(&self, mac: Mac) -> bool {
        self.is_uplink() || self.has_source_policy && !self.config.suspect && self.allows(mac)
    }
}
