//! Parsers and writers of wire formats, as far as the switch needs them.
//!
//! Forwarding reads the MAC addresses, the ethertype, the number of VLAN tags (for the length limit), and the
//! outermost VLAN id of frames from outside. Only port security reads the sender in ARP and IP headers. Nothing
//! here panics on any bytes: checked constructors create each type, and its accessors cannot fail.

#![forbid(unsafe_code)]

mod announcement;
mod checksum;
mod ethernet;
mod gso;
mod ip_prefix;
mod l3_source;
mod layers;
mod mac;
mod offload;
mod offload_set;
mod partial_checksum;
mod probe;
mod vlan;
mod vrrp;

pub use announcement::{Announcement, AnnouncementKey};
pub use ethernet::{HEADER_LEN, Header, MIN_WIRE_LEN, TAG_LEN, tags};
pub use gso::{GsoError, MAX_FALLBACK_SEGMENTS, Segment, Segmenter};
pub use ip_prefix::{NotAPrefix, Prefix};
pub use l3_source::{Neighbor, SenderInfo};
pub use mac::{Mac, NotAMac};
pub use offload::{BadOffload, Offload, Segmentation};
pub use offload_set::OffloadSet;
pub use partial_checksum::is_partial_checksum;
pub use probe::{
    Forged, HostKey, HostProbe, MAX_HOST_NAME, MAX_PORT_NAME, Probe, ProbeFrame, ProbeKey, ProbeKeys, ProbeName,
    ReadProbe,
};
pub use vlan::{NotAVid, Priority, Tagging, Vid, is_without_vlan};
