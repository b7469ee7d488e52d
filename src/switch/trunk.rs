//! Trunks: devices that several ports share by VLAN tag. Stations are learned at these ports, floods reach them,
//! and verdicts name them.
//!
//! *An uplink trunk* has a port on each of its networks. It is on no network itself; its device is opened, and its
//! traffic counted, under its own id. Two can share their ports: while one is *backup*, the other forwards the
//! frames, and no station moves when they swap.
//!
//! *A VM's trunk* is the device of a VM's port, the *parent*, with subports: frames with a subport's tag are the
//! subport's, untagged frames the parent's. The parent is port and trunk under one id, which identifies its device
//! with or without subports. Each port counts its own frames; frames for none of them count at the parent.

use std::collections::HashMap;

use super::{Attachment, DropReason, PortConfig, PortId, Role};
use crate::frame::BURST;
use crate::wire::Vid;

/// Number of 12-bit VLAN ids.
const IDS: usize = 1 << 12;

/// Ingress port of a frame from a trunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngressPort {
    /// The port at which the frame counts.
    pub port: PortId,
    /// Length of the removed tag in bytes, per frame after segmentation.
    pub tag: u64,
}

/// Ingress ports of a burst, by frame index.
pub type IngressPorts = [IngressPort; BURST];

/// Settings of a trunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrunkConfig {
    /// Id under which its device is opened and counted; of a VM's trunk, the parent's.
    pub id: PortId,
    /// Administrative state.
    pub admin_up: bool,
    /// The worker that polls its device; `None` while it has none.
    pub worker: Option<u16>,
    /// Whether it is the backup of another trunk: then it neither receives nor transmits.
    pub backup: bool,
    /// Its ports with their VLAN ids; at most one is untagged. Either all are uplinks, each on another network, or
    /// all belong to one VM.
    pub ports: Vec<(Option<Vid>, PortId)>,
}

impl TrunkConfig {
    /// Whether it forwards frames.
    pub const fn is_active(&self) -> bool {
        self.admin_up && !self.backup
    }
}

/// A compiled trunk.
#[derive(Debug)]
pub(super) struct Trunk {
    pub(super) config: TrunkConfig,
    /// Port by VLAN id; index 0 is untagged.
    ports: Box<[PortId; IDS]>,
    /// Whether all its ports are uplinks.
    is_uplink: bool,
}

impl Trunk {
    /// Whether it may receive and transmit, else the drop reason.
    pub(super) const fn is_open(&self) -> Result<(), DropReason> {
        match (self.config.admin_up, self.config.backup) {
            (false, _) => Err(DropReason::AdminDown),
            (true, true) => Err(DropReason::Standby),
            (true, false) => Ok(()),
        }
    }

    /// Whether all its ports are uplinks.
    pub(super) const fn is_uplink(&self) -> bool {
        self.is_uplink
    }

    /// The port of a VLAN id; 0 for untagged frames. [`PortId::NONE`] if the trunk has none.
    #[inline]
    pub(super) fn port_of(&self, vlan: u16) -> PortId {
        self.ports[usize::from(vlan) % IDS]
    }

    /// `on_trunks`: all ports without a device of their own.
    fn new(config: TrunkConfig, on_trunks: &HashMap<PortId, &PortConfig>) -> Trunk {
        let mut ports = Box::new([PortId::NONE; IDS]);
        let mut networks = Vec::new();
        let mut roles = Vec::new();
        for &(vlan, id) in &config.ports {
            let place = &mut ports[vlan.map_or(0, |vid| usize::from(vid.get()))];
            assert!(*place == PortId::NONE, "one port per VLAN id of a trunk");
            *place = id;
            let port = on_trunks.get(&id).expect("the ports of a trunk exist and have no device of their own");
            if port.role == Role::Uplink {
                // The ports of an uplink share one TX batch, into which a flood puts at most one frame. A VM's port
                // has its own.
                assert!(!networks.contains(&port.network), "an uplink has a network once");
                networks.push(port.network);
            }
            roles.push(port.role);
        }
        let is_uplink = roles.contains(&Role::Uplink);
        assert!(!is_uplink || !roles.contains(&Role::Vif), "uplinks and ports of VMs do not share a device");
        Trunk { config, ports, is_uplink }
    }
}

/// All trunks, by [`PortId::index`].
#[derive(Debug)]
pub(super) struct Trunks(Box<[Option<Trunk>]>);

impl Trunks {
    pub(super) fn new(trunks: Vec<TrunkConfig>, ports: &[PortConfig]) -> Trunks {
        let is_on_trunk = |port: &&PortConfig| port.attachment != Attachment::Own;
        let on_trunks = ports.iter().filter(is_on_trunk).map(|port| (port.id, port)).collect();
        let mut table: Vec<Option<Trunk>> = Vec::new();
        for config in trunks {
            let place = config.id.index();
            table.resize_with(table.len().max(place + 1), || None);
            assert!(table[place].is_none(), "two trunks at one index");
            table[place] = Some(Trunk::new(config, &on_trunks));
        }
        let trunks = Trunks(table.into());
        for port in ports {
            match port.attachment {
                Attachment::Own => assert!(port.role != Role::Uplink, "an uplink is on a trunk"),
                Attachment::Tagged { trunk, vlan } => {
                    let trunk = trunks.get(trunk).expect("its trunk exists");
                    assert!(trunk.config.ports.contains(&(vlan, port.id)), "its trunk names it");
                }
            }
        }
        trunks
    }

    #[inline]
    pub(super) fn get(&self, id: PortId) -> Option<&Trunk> {
        self.0.get(id.index())?.as_ref().filter(|trunk| trunk.config.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Trunk> {
        self.0.iter().flatten()
    }

    /// Whether another trunk is at this index.
    pub(super) fn has_other_at(&self, place: usize, but: PortId) -> bool {
        self.0.get(place).is_some_and(|there| there.as_ref().is_some_and(|trunk| trunk.config.id != but))
    }

    /// Whether the port's trunk, if any, is administratively up.
    pub(super) fn is_admin_up(&self, port: &PortConfig) -> bool {
        match port.attachment {
            Attachment::Own => true,
            Attachment::Tagged { trunk, .. } => self.get(trunk).is_some_and(|trunk| trunk.config.admin_up),
        }
    }

    /// Whether the port's trunk allows egress.
    pub(super) fn allows_egress(&self, port: &PortConfig) -> bool {
        match port.attachment {
            Attachment::Own => true,
            Attachment::Tagged { trunk, .. } => self.get(trunk).is_some_and(|trunk| trunk.config.is_active()),
        }
    }
}
