//! What may become of a frame: the verdicts, and every way to die by name.

use super::PortId;
use crate::frame::BURST;

/// Why a frame died. Each is one counter per port and direction, and one label of the metrics.
///
/// *In*: counted at the port the frame came from. *Out*: counted at the port it was to leave by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// In: the port has been closed, and its last frames were still on their way.
    PortClosed,
    /// In and out: the port is administratively down.
    AdminDown,
    /// In and out: the port is in quarantine. Loop probes are heard all the same.
    Quarantined,
    /// In and out: another uplink of its group carries the frames at present.
    Standby,
    /// In: shorter than an Ethernet header.
    Runt,
    /// In: longer than the network's MTU allows.
    TooLong,
    /// In: the offload header does not fit the frame.
    BadOffload,
    /// In: nobody has this VLAN id on the uplink or trunk, or no network of the uplink is untagged.
    UnknownVlan,
    /// In: a loop probe of this switch that has come back. It is control's from here on.
    Probe,
    /// In: a frame to the address of loop probes that is none of this switch.
    ProbeForged,
    /// In: a loop probe of this switch that is too old, has come in here before, or was sent by this port.
    ProbeStale,
    /// In: an announcement of this switch that a network outside has returned.
    OwnAnnouncement,
    /// In: the source is a group address or zero.
    BadSource,
    /// In: a reserved group address that the network does not let pass, as PAUSE. From an uplink, all groups
    /// that two ends of a link keep to themselves.
    ReservedGroup,
    /// In: the source belongs to a port of another VM.
    ForeignSource,
    /// In: the source is dampened at another port, or has moved too often.
    DampenedSource,
    /// In: port security does not allow this source here.
    SpoofedSource,
    /// In: ARP, IP or neighbor discovery names a sender that port security does not allow here, or one that
    /// cannot be read.
    SpoofedIp,
    /// In: more broadcast than the port may send.
    StormBroadcast,
    /// In: more multicast than the port may send.
    StormMulticast,
    /// In: more frames for stations that nobody knows than the port may send.
    StormUnknownUnicast,
    /// In: more of one of these classes than the VM may send on the network, by all its ports together.
    StormVm,
    /// In: it would go to everybody, and as many copies as the VM may cause on the network have been made.
    StormCopies,
    /// In: more BPDUs than a port may send.
    StormBpdu,
    /// In: as many stations as may be have been learned behind the port, and this is another one.
    MacLimit,
    /// In: the destination is behind the port that the frame came from.
    Hairpin,
    /// In: it came by one uplink, and the destination is behind another.
    SplitHorizon,
    /// Out: its network is untagged on the uplink or trunk, and with the tag that it has from its sender it would
    /// be on a VLAN there, which may be that of another network.
    ForeignVlan,
    /// Out: the port has no device at the moment.
    NoDevice,
    /// Out: the device had no room.
    DeviceFull,
    /// Out: the device would not take the frame.
    DeviceRefused,
    /// Out: the link of the device is down.
    LinkDown,
    /// Out: the ring to the worker of this port was full.
    PeerFull,
    /// Out: there was no slot free to copy the frame to.
    NoBuffer,
    /// Out: a super-frame for a port that takes none, which cannot be divided either: a tunnel, a
    /// fragment, headers that are not what the offload header says.
    OffloadUnsupported,
}

impl DropReason {
    /// All of them, in the order of their counters.
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

    /// What it means, in one sentence for operators.
    pub const fn description(self) -> &'static str {
        match self {
            DropReason::PortClosed => "the port was closed while the frame was on its way",
            DropReason::AdminDown => "the port is administratively down",
            DropReason::Quarantined => "the port is in quarantine, for a loop or a storm",
            DropReason::Standby => "another uplink of the group carries the frames at present",
            DropReason::Runt => "shorter than an Ethernet header",
            DropReason::TooLong => "longer than the MTU of the network allows",
            DropReason::BadOffload => "the offload header does not fit the frame",
            DropReason::UnknownVlan => "nobody has this VLAN id on the uplink or trunk, or none is untagged there",
            DropReason::Probe => "a loop probe of this switch that has come back",
            DropReason::ProbeForged => "sent to the address of loop probes, and none of this switch",
            DropReason::ProbeStale => "a loop probe that is too old, was here before, or was sent by this port",
            DropReason::OwnAnnouncement => "an announcement of this switch that the network outside has returned",
            DropReason::BadSource => "the source is a group address or zero",
            DropReason::ReservedGroup => {
                "sent to a group address that bridges keep to themselves (by default PAUSE; on uplinks also BPDU, LACP, LLDP)"
            }
            DropReason::ForeignSource => "the source belongs to a port of another VM",
            DropReason::DampenedSource => "the source is dampened at another port, or has moved too often",
            DropReason::SpoofedSource => "port security does not allow this source here",
            DropReason::SpoofedIp => {
                "port security does not allow the sender that ARP or IP names here, or it cannot be read"
            }
            DropReason::StormBroadcast => "more broadcast than the port may send",
            DropReason::StormMulticast => "more multicast than the port may send",
            DropReason::StormUnknownUnicast => "more frames for stations that nobody knows than the port may send",
            DropReason::StormVm => {
                "more broadcast, multicast or unknown unicast than the VM may send on the network by all its ports"
            }
            DropReason::StormCopies => "the VM has caused as many copies on the network as it may",
            DropReason::StormBpdu => "more BPDUs than a port may send",
            DropReason::MacLimit => "as many stations as may be have been learned behind the port",
            DropReason::Hairpin => "the destination is behind the port the frame came from",
            DropReason::SplitHorizon => "came by one uplink, and the destination is behind another",
            DropReason::ForeignVlan => "its own VLAN tag would put it on another network of the uplink or trunk",
            DropReason::NoDevice => "the port has no device at the moment",
            DropReason::DeviceFull => "the device had no room",
            DropReason::DeviceRefused => "the device would not take the frame",
            DropReason::LinkDown => "the guest has taken the interface down",
            DropReason::PeerFull => "the ring to the port's worker was full",
            DropReason::NoBuffer => "no buffer was free to copy the frame to",
            DropReason::OffloadUnsupported => {
                "the port takes no super-frames, and this one cannot be divided: a tunnel, a fragment, false headers"
            }
        }
    }
}

/// What to do with one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes out of this port.
    To(PortId),
    /// It goes out of one port, and promiscuous ports of its network get copies. Both ports by
    /// [`PortId::index`]: as long as the rules are the same, that is their name.
    Mirrored {
        /// The port that it came from: the one it came in at, or one that this carries.
        from: u16,
        /// The port that it goes to.
        to: u16,
    },
    /// It goes to many on the network of the port it came in at:
    /// [`ForwardingConfig::flood_ports`](super::ForwardingConfig::flood_ports) says who that is.
    Flood(FloodScope),
    /// It came in at a carrier, and goes to many on the network of this port that it carries.
    FloodFrom(PortId, FloodScope),
    /// It dies, for this reason.
    Drop(DropReason),
}

// One for each frame of a burst, and close together.
const _: () = assert!(size_of::<Verdict>() == 8);

/// Which ports of a network a frame is meant for that is meant for many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloodScope {
    /// All.
    All,
    /// All but uplinks.
    NoUplinks,
    /// The same, and the siblings of a port that splits as well: for their spanning tree.
    BridgeGroup,
    /// All that are to get frames for stations that nobody knows. It is only told from all where there is a port
    /// that is not to.
    Unknown,
    /// Those that are promiscuous.
    Mirrors,
}

/// Whom a frame goes to that is meant for many. Also another worker can carry it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood {
    /// The port that it came from, which does not get it.
    pub from: PortId,
    /// Who gets it.
    pub scope: FloodScope,
    /// One that gets it anyway, and not a second time; `PortId::NONE` if there is none.
    pub except: PortId,
}

impl Flood {
    /// All of these get it.
    pub const fn new(from: PortId, scope: FloodScope) -> Flood {
        Flood { from, scope, except: PortId::NONE }
    }

    /// Promiscuous ports get copies of what one port gets.
    pub const fn copies(from: PortId, to: PortId) -> Flood {
        Flood { from, scope: FloodScope::Mirrors, except: to }
    }
}

/// The verdicts on a burst, by the place of each frame in it.
pub type Verdicts = [Verdict; BURST];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_place_and_its_own_name() {
        let mut names = std::collections::HashSet::new();
        for (place, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
            assert!(names.insert(reason.name()));
        }
    }
}
