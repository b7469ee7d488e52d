//! Settings of each port and network, before compilation.

use super::{DropReason, MacLimit, NetworkId, PortId, PortPolicer, ReservedMask, Security, StormClass, VmPolicer};
use crate::time::MonoTime;
use crate::wire::{Mac, Vid};

/// Owner of a port: ports of one VM on one network are siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(pub u32);

/// Limits on learned stations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Per network.
    pub network: u32,
    /// Per port.
    pub port: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { network: 65536, port: 8192 }
    }
}

/// Role of a port in its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// A VM's interface.
    Vif,
    /// An uplink to the outside. It has no address of its own and accepts any source; frames from one uplink do not
    /// leave by another.
    Uplink,
}

/// Device of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// A device of its own.
    Own,
    /// A trunk.
    Tagged {
        /// The trunk by which frames leave; they may be received by others too. The parent of a trunk is its own
        /// trunk.
        trunk: PortId,
        /// VLAN id on the trunk; `None`: untagged.
        vlan: Option<Vid>,
    },
}

/// Settings of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// Its id.
    pub id: PortId,
    /// Its network.
    pub network: NetworkId,
    /// Its VM.
    pub vm: VmId,
    /// Its own address, pinned to it. Zero for an uplink.
    pub mac: Mac,
    /// Port security.
    pub security: Security,
    /// Whether the addresses that only it may use are pinned to it. If not, the port is inactive: they are learned
    /// at any port, and control waits for a frame from this port.
    pub pins: bool,
    /// Addresses whose pins were released one by one, each until the port sends from it.
    pub released_pins: Vec<Mac>,
    /// Administrative state.
    pub admin_up: bool,
    /// The worker that polls its device; `None` while it has none.
    pub worker: Option<u16>,
    /// Role in its network.
    pub role: Role,
    /// Device.
    pub attachment: Attachment,
    /// Whether it gets unknown unicast. Only a port with a pinned address can do without, because that address is
    /// never unknown. An inactive port always gets it.
    pub unknown_unicast: bool,
    /// Whether it gets a copy of every frame forwarded on its network.
    pub promiscuous: bool,
    /// Whether its sources are learned. If not, known stations keep their entries and do not move here.
    pub learns: bool,
    /// MAC limit. `None`: the network's limit per port, at which the newest station evicts the oldest.
    pub mac_limit: Option<MacLimit>,
    /// Whether it is quarantined: only loop probes are received and transmitted.
    pub quarantined: bool,
    /// Whether its floods skip the other ports of its VM on its network. BPDUs and known unicast still reach them.
    pub sibling_split_horizon: bool,
    /// Whether its VM loops or storms now. Then the higher flap limit for shared addresses does not apply.
    pub suspect: bool,
    /// Whether ports of its VM on its network share addresses, which may then move among them without limit.
    pub mac_sharing: bool,
    /// Storm limits of the port.
    pub storm: PortPolicer,
    /// Storm limits that all siblings share, the same for each. `None`: unlimited, at no cost.
    pub vm_policer: Option<VmPolicer>,
}

impl PortConfig {
    /// A VM's interface without a device, with default settings and no limits.
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

    /// An uplink port on a trunk.
    pub fn uplink(id: PortId, network: NetworkId, vm: VmId, trunk: PortId, vlan: Option<Vid>) -> PortConfig {
        let attachment = Attachment::Tagged { trunk, vlan };
        PortConfig { role: Role::Uplink, attachment, ..PortConfig::vif(id, network, vm, Mac::ZERO) }
    }

    /// Whether it is an uplink.
    pub fn is_uplink(&self) -> bool {
        self.role == Role::Uplink
    }

    /// Until when the storm limits, its own or the siblings' shared one, drop every frame of this class, and with
    /// which reason. `None`: not now.
    pub fn blocked_until(&self, class: StormClass, now: MonoTime) -> Option<(MonoTime, DropReason)> {
        let own = (self.storm.ready(class, now), class.reason());
        let common =
            (self.vm_policer.as_ref().map_or(now, |vm_policer| vm_policer.ready(class, now)), DropReason::StormVm);
        // In the order in which a frame is checked.
        [own, common].into_iter().find(|&(until, _)| until > now)
    }

    /// Whether the port's own settings allow it to receive.
    pub(super) fn is_open(&self) -> bool {
        self.admin_up && !self.quarantined
    }

    /// Whether it is a subport: a VM's port whose frames are tagged on another port's device.
    pub fn is_subport(&self) -> bool {
        self.role == Role::Vif && !matches!(self.attachment, Attachment::Own) && self.own_trunk() == PortId::NONE
    }

    /// The trunk with its id: for the parent of a trunk, itself; else none.
    pub(super) fn own_trunk(&self) -> PortId {
        match self.attachment {
            Attachment::Tagged { trunk, vlan: None } if trunk == self.id => trunk,
            _ => PortId::NONE,
        }
    }

    /// Whether it gets no unknown unicast. A promiscuous port gets everything.
    pub(super) fn no_flood_unknown(&self) -> bool {
        !self.unknown_unicast && !self.promiscuous && self.pins
    }
}

/// Settings of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Its id.
    pub id: NetworkId,
    /// MTU: maximum payload after header and tags, in bytes.
    pub mtu: u16,
    /// Ageing time of FDB entries, in seconds.
    pub ageing: u32,
    /// Limits on learned stations.
    pub limits: Limits,
    /// Whether a source pinned to another VM's port is dropped.
    pub anti_spoof: bool,
    /// Reserved groups that pass between its VMs.
    pub reserved: ReservedMask,
}
