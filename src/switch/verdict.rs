//! Verdicts on frames, and all drop reasons.

use super::PortId;
use crate::frame::BURST;

/// Drop reason. Each is one counter per port and direction, and one label of the metrics.
///
/// *In*: counted at the ingress port. *Out*: counted at the egress port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// In: the port is closed; its last frames were still pending.
    PortClosed,
    /// In and out: the port is administratively down.
    AdminDown,
    /// In and out: the port is quarantined. Loop probes are still received.
    Quarantined,
    /// In and out: the uplink is the backup in its group.
    Standby,
    /// In: shorter than an Ethernet header.
    Runt,
    /// In: longer than the network's MTU allows.
    TooLong,
    /// In: the offload header is invalid for the frame.
    BadOffload,
    /// In: the uplink or trunk has no port for this VLAN id, or none for untagged frames.
    UnknownVlan,
    /// In: a loop probe of this switch that has returned, or of a host with the same key. Control handles it.
    Probe,
    /// In: a frame to the loop-probe address that is not of this switch.
    ProbeForged,
    /// In: a loop probe of this switch that is too old, a duplicate, or was sent by this port.
    ProbeStale,
    /// In: an announcement of this switch that a network outside has returned.
    OwnAnnouncement,
    /// In: the source is a group address or zero.
    BadSource,
    /// In: a reserved group address that the network does not pass, such as PAUSE. From an uplink, all link-local
    /// groups.
    ReservedGroup,
    /// In: the source belongs to a port of another VM.
    ForeignSource,
    /// In: the source is dampened at another port, or flaps.
    DampenedSource,
    /// In: port security does not allow this source here.
    SpoofedSource,
    /// In: ARP, IP or neighbor discovery names a sender that port security does not allow here, or the headers are
    /// unreadable.
    SpoofedIp,
    /// In: broadcast exceeds the port's storm limit.
    StormBroadcast,
    /// In: multicast exceeds the port's storm limit.
    StormMulticast,
    /// In: unknown unicast exceeds the port's storm limit.
    StormUnknownUnicast,
    /// In: one of these classes exceeds the storm limit of the VM on the network, over all its ports.
    StormVm,
    /// In: the flood would exceed the limit on copies of the VM on the network.
    StormCopies,
    /// In: BPDUs exceed the port's limit.
    StormBpdu,
    /// In: a new source, and the port has reached its MAC limit.
    MacLimit,
    /// In: the destination is behind the ingress port.
    Hairpin,
    /// In: received from one uplink, and the destination is behind another.
    SplitHorizon,
    /// Out: the network is untagged on the uplink or trunk, and the sender's own tag would put the frame on a VLAN
    /// there, which may be another network's.
    ForeignVlan,
    /// Out: the port has no device.
    NoDevice,
    /// Out: the device's TX ring was full.
    DeviceFull,
    /// Out: the device refused the frame.
    DeviceRefused,
    /// Out: the link of the device is down.
    LinkDown,
    /// Out: the ring to the port's worker was full.
    PeerFull,
    /// Out: no slot was free for a copy.
    NoBuffer,
    /// Out: a GSO packet for a port that does not take it, which cannot be segmented either: unknown tunnel,
    /// fragment, or headers that contradict the offload header.
    OffloadUnsupported,
}

impl DropReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [DropReason; 35] = [
        DropReason::PortClosed,
        DropReason::AdminDown,
        DropReason::Quarantined,
        DropReason::Standby,
        DropReason::Runt,
        DropReason::TooLong,
        DropReason::BadOffload,
        DropReason::UnknownVlan,
        DropReason::Probe,
        DropReason::ProbeForged,
        DropReason::ProbeStale,
        DropReason::OwnAnnouncement,
        DropReason::BadSource,
        DropReason::ReservedGroup,
        DropReason::ForeignSource,
        DropReason::DampenedSource,
        DropReason::SpoofedSource,
        DropReason::SpoofedIp,
        DropReason::StormBroadcast,
        DropReason::StormMulticast,
        DropReason::StormUnknownUnicast,
        DropReason::StormVm,
        DropReason::StormCopies,
        DropReason::StormBpdu,
        DropReason::MacLimit,
        DropReason::Hairpin,
        DropReason::SplitHorizon,
        DropReason::ForeignVlan,
        DropReason::NoDevice,
        DropReason::DeviceFull,
        DropReason::DeviceRefused,
        DropReason::LinkDown,
        DropReason::PeerFull,
        DropReason::NoBuffer,
        DropReason::OffloadUnsupported,
    ];

    /// Its name in the API and in the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::PortClosed => "port_closed",
            DropReason::AdminDown => "admin_down",
            DropReason::Quarantined => "quarantined",
            DropReason::Standby => "standby",
            DropReason::Runt => "runt",
            DropReason::TooLong => "too_long",
            DropReason::BadOffload => "bad_offload",
            DropReason::UnknownVlan => "unknown_vlan",
            DropReason::Probe => "probe",
            DropReason::ProbeForged => "probe_forged",
            DropReason::ProbeStale => "probe_stale",
            DropReason::OwnAnnouncement => "own_announcement",
            DropReason::BadSource => "bad_source",
            DropReason::ReservedGroup => "reserved_group",
            DropReason::ForeignSource => "foreign_source",
            DropReason::DampenedSource => "dampened_source",
            DropReason::SpoofedSource => "spoofed_source",
            DropReason::SpoofedIp => "spoofed_ip",
            DropReason::StormBroadcast => "storm_broadcast",
            DropReason::StormMulticast => "storm_multicast",
            DropReason::StormUnknownUnicast => "storm_unknown_unicast",
            DropReason::StormVm => "storm_vm",
            DropReason::StormCopies => "storm_copies",
            DropReason::StormBpdu => "storm_bpdu",
            DropReason::MacLimit => "mac_limit",
            DropReason::Hairpin => "hairpin",
            DropReason::SplitHorizon => "split_horizon",
            DropReason::ForeignVlan => "foreign_vlan",
            DropReason::NoDevice => "no_device",
            DropReason::DeviceFull => "device_full",
            DropReason::DeviceRefused => "device_refused",
            DropReason::LinkDown => "link_down",
            DropReason::PeerFull => "peer_full",
            DropReason::NoBuffer => "no_buffer",
            DropReason::OffloadUnsupported => "offload_unsupported",
        }
    }

    /// Description for operators, in one sentence.
    pub const fn description(self) -> &'static str {
        match self {
            DropReason::PortClosed => "the port was closed while its last frames were received",
            DropReason::AdminDown => "the port is administratively down",
            DropReason::Quarantined => "the port is quarantined for a loop or a storm",
            DropReason::Standby => "another uplink of the group is active",
            DropReason::Runt => "shorter than an Ethernet header",
            DropReason::TooLong => "longer than the MTU of the network",
            DropReason::BadOffload => "the offload header contradicts the frame",
            DropReason::UnknownVlan => {
                "no network has this VLAN id on the uplink or trunk, or none is untagged \
                                        there"
            }
            DropReason::Probe => "a loop probe of this switch that has returned, or of a host with its probe_key",
            DropReason::ProbeForged => {
                "sent to the address of loop probes, but neither by this switch nor by a host with its probe_key"
            }
            DropReason::ProbeStale => "a loop probe that is too old, was received before, or was sent by this port",
            DropReason::OwnAnnouncement => "an announcement of this switch that an outside network has returned",
            DropReason::BadSource => "the source is a group address or zero",
            DropReason::ReservedGroup => {
                "sent to a reserved group that does not pass here (by default PAUSE; on uplinks also BPDU, \
                 LACP, LLDP)"
            }
            DropReason::ForeignSource => "the source is pinned to a port of another VM",
            DropReason::DampenedSource => "the source is dampened at another port, or has moved too often",
            DropReason::SpoofedSource => "port security does not allow the source at this port",
            DropReason::SpoofedIp => {
                "port security does not allow the sender that ARP, IP or ND names, or it cannot be parsed"
            }
            DropReason::StormBroadcast => "the port exceeds its limit of broadcast",
            DropReason::StormMulticast => "the port exceeds its limit of multicast",
            DropReason::StormUnknownUnicast => "the port exceeds its limit of unknown unicast",
            DropReason::StormVm => "the VM exceeds a limit over all its ports on the network",
            DropReason::StormCopies => "the VM exceeds its limit of copies on the network",
            DropReason::StormBpdu => "the port exceeds 100 BPDUs per second",
            DropReason::MacLimit => "the port has reached its MAC limit, and the source is a further address",
            DropReason::Hairpin => "the destination is behind the port that the frame came from",
            DropReason::SplitHorizon => "received from one uplink, and the destination is behind another",
            DropReason::ForeignVlan => "its own VLAN tag would put it on another network of the uplink or trunk",
            DropReason::NoDevice => "the port has no device at the moment",
            DropReason::DeviceFull => "the device had no room",
            DropReason::DeviceRefused => "the device refused the frame",
            DropReason::LinkDown => "the guest has set the interface down",
            DropReason::PeerFull => "the ring to the port's worker was full",
            DropReason::NoBuffer => "no buffer was free to copy the frame to",
            DropReason::OffloadUnsupported => {
                "the port takes no GSO packets, and this one cannot be segmented: an unknown tunnel, a \
                 fragment, or invalid headers"
            }
        }
    }
}

/// Verdict on one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Forward to this port.
    To(PortId),
    /// Forward to one port, with copies to the promiscuous ports of its network. Both ports by [`PortId::index`],
    /// which identifies them under the same configuration.
    Mirrored {
        /// Ingress port: the receiving port, or a port of the receiving trunk.
        from: u16,
        /// Egress port.
        to: u16,
    },
    /// Flood on the network of the ingress port;
    /// [`ForwardingConfig::flood_ports`](super::ForwardingConfig::flood_ports) gives the ports.
    Flood(FloodScope),
    /// Flood a frame received at a trunk, on the network of this port of it.
    FloodFrom(PortId, FloodScope),
    /// Drop for this reason.
    Drop(DropReason),
}

// One per frame of a burst, kept dense.
const _: () = assert!(size_of::<Verdict>() == 8);

/// Scope of a flood on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloodScope {
    /// All ports.
    All,
    /// All ports but uplinks.
    NoUplinks,
    /// All ports but uplinks, ignoring sibling split horizon: for BPDUs.
    BridgeGroup,
    /// All ports that get unknown unicast. Used only if some port gets none.
    Unknown,
    /// Promiscuous ports.
    Mirrors,
}

/// A flood, which any worker can execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood {
    /// Ingress port, which is excluded.
    pub from: PortId,
    /// Scope.
    pub scope: FloodScope,
    /// Port excluded because it gets the frame anyway; `PortId::NONE` if none.
    pub except: PortId,
}

impl Flood {
    /// A flood to a whole scope.
    pub const fn new(from: PortId, scope: FloodScope) -> Flood {
        Flood { from, scope, except: PortId::NONE }
    }

    /// Copies for promiscuous ports of a frame forwarded to one port.
    pub const fn copies(from: PortId, to: PortId) -> Flood {
        Flood { from, scope: FloodScope::Mirrors, except: to }
    }
}

/// Verdicts of a burst, by frame index.
pub type Verdicts = [Verdict; BURST];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_index_and_name() {
        let mut names = std::collections::HashSet::new();
        for (place, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
            assert!(names.insert(reason.name()));
        }
    }
}
