//! What control asks for of each port and each network, not compiled yet.

use super::{
    DropReason, Limits, MacLimit, NetworkId, PortId, PortPolicer, ReservedMask, Security, StormClass, VmPolicer,
};
use crate::time::MonoTime;
use crate::wire::{Mac, Vid};

/// Whose port it is: ports of one owner on one network are siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(pub u32);

/// What a port is to its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// An interface of a VM.
    Vif,
    /// A way to the outside. It has no address of its own, any source may come from there, and what
    /// comes by one uplink does not leave by another.
    Uplink,
}

/// By which device the frames of a port come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// By one of its own.
    Own,
    /// By one that carries several ports.
    Tagged {
        /// That device: the one by which frames leave. They may come by others as well. The parent of a trunk
        /// is its own carrier.
        trunk: PortId,
        /// The VLAN id that frames have on it; `None`: untagged.
        vlan: Option<Vid>,
    },
}

/// What is asked about a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// Its name.
    pub id: PortId,
    /// The network it is on.
    pub network: NetworkId,
    /// Its VM.
    pub vm: VmId,
    /// Its own address, which is pinned to it. An uplink has none: zero.
    pub mac: Mac,
    /// Which sources it may use.
    pub security: Security,
    /// Whether its addresses, its own and those that only it may use, are pinned to it. If not, the port is inactive:
    /// they are learned at any port, and control waits for a frame from this one.
    pub pins: bool,
    /// Addresses of the port whose pins have yielded one by one, each until the port sends a frame from it.
    pub released_pins: Vec<Mac>,
    /// Whether control wants it to carry frames.
    pub admin_up: bool,
    /// The worker through which others reach its device; `None` while it has none.
    pub worker: Option<u16>,
    /// What it is to its network.
    pub role: Role,
    /// By which device its frames come and go.
    pub attachment: Attachment,
    /// Whether it gets frames for stations that nobody knows. Only a port whose address is pinned to it can
    /// do without: what is for it is known. An inactive port gets them in any case.
    pub unknown_unicast: bool,
    /// Whether it gets a copy of every frame that is forwarded on its network.
    pub promiscuous: bool,
    /// Whether the sources of its frames are learned. Where they are not, they stay where they are known, if they are,
    /// and do not move.
    pub learns: bool,
    /// How many stations may be learned behind it. `None`: as many as behind every port of its network, and the
    /// newest displaces the oldest.
    pub mac_limit: Option<MacLimit>,
    /// Whether it is in quarantine: nothing comes in by it and nothing goes out, but for loop probes, both ways.
    pub quarantined: bool,
    /// Whether what it floods does not go to other ports of its VM on its network. Spanning tree does, and what is
    /// for a station that is known.
    pub sibling_split_horizon: bool,
    /// Whether its VM loops or storms now. Then no station may wander between it and other ports more often than between
    /// any.
    pub suspect: bool,
    /// Whether stations may wander between it and other ports of its VM on its network, which share them, as often
    /// as they like.
    pub mac_sharing: bool,
    /// How much it may send to everybody.
    pub storm: PortPolicer,
    /// How much it may together with its siblings; all of them have the same. `None`: anything, at no cost.
    pub vm_policer: Option<VmPolicer>,
}

impl PortConfig {
    /// An interface of a VM that is to have a device of its own and has none yet. Nothing is kept from it, and nothing
    /// else is said of it.
    pub fn vif(id: PortId, network: NetworkId, vm: VmId, mac: Mac) -> PortConfig {
        PortConfig {
            id,
            network,
            vm,
            mac,
            security: Security::Off,
            pins: true,
            released_pins: Vec::new(),
            admin_up: true,
            worker: None,
            role: Role::Vif,
            attachment: Attachment::Own,
            unknown_unicast: true,
            promiscuous: false,
            learns: true,
            mac_limit: None,
            quarantined: false,
            sibling_split_horizon: false,
            suspect: false,
            mac_sharing: false,
            storm: PortPolicer::default(),
            vm_policer: None,
        }
    }

    /// The same, for a way to the outside by a carrier.
    pub fn uplink(id: PortId, network: NetworkId, vm: VmId, trunk: PortId, vlan: Option<Vid>) -> PortConfig {
        let attachment = Attachment::Tagged { trunk, vlan };
        PortConfig { role: Role::Uplink, attachment, ..PortConfig::vif(id, network, vm, Mac::ZERO) }
    }

    /// Whether it is a way to the outside.
    pub fn is_uplink(&self) -> bool {
        self.role == Role::Uplink
    }

    /// Until when all frames of this class die that it sends to everybody, and of what: its own limit, or that which it
    /// has in common with its siblings. `None`: not all of them do now.
    pub fn blocked_until(&self, class: StormClass, now: MonoTime) -> Option<(MonoTime, DropReason)> {
        let own = (self.storm.ready(class, now), class.reason());
        let common =
            (self.vm_policer.as_ref().map_or(now, |vm_policer| vm_policer.ready(class, now)), DropReason::StormVm);
        // In the order in which a frame would come to them.
        [own, common].into_iter().find(|&(until, _)| until > now)
    }

    /// Whether frames may come in by it, as far as it is up to itself.
    pub(super) fn is_open(&self) -> bool {
        self.admin_up && !self.quarantined
    }

    /// Whether it is a subport: a port of a VM whose frames have a tag on the device of another one.
    pub fn is_subport(&self) -> bool {
        self.role == Role::Vif && !matches!(self.attachment, Attachment::Own) && self.own_trunk() == PortId::NONE
    }

    /// The carrier that has its name: of the parent of a trunk, itself; of others, none.
    pub(super) fn own_trunk(&self) -> PortId {
        match self.attachment {
            Attachment::Tagged { trunk, vlan: None } if trunk == self.id => trunk,
            _ => PortId::NONE,
        }
    }

    /// Whether it gets no unknown unicast. One that is promiscuous gets everything.
    pub(super) fn no_flood_unknown(&self) -> bool {
        !self.unknown_unicast && !self.promiscuous && self.pins
    }
}

/// What is asked about a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Its name.
    pub id: NetworkId,
    /// Bytes that a frame may carry behind its header and tags.
    pub mtu: u16,
    /// Seconds after which a silent station is forgotten.
    pub ageing: u32,
    /// How many stations may be learned.
    pub limits: Limits,
    /// Whether a source pinned to another VM's port is refused.
    pub anti_spoof: bool,
    /// Which reserved group addresses pass between its VMs.
    pub reserved: ReservedMask,
}
