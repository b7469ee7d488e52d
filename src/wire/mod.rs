//! Bytes → meaning: what the switch reads of a frame, and nothing more.
//!
//! Forwarding reads the Ethernet addresses, the type, for the length limit how many VLAN tags stand
//! in front of the payload, and of frames from outside to which VLAN the outermost tag assigns them. Only
//! where port security asks for it, it reads whom ARP and IP name as the sender. Nothing here panics,
//! whatever the bytes: each type is made by a checked constructor, and after that its accessors cannot fail.

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

pub use announcement::{Announcement, AnnouncementKey};
pub use ethernet::{HEADER_LEN, Header, MIN_WIRE_LEN, TAG_LEN, tags};
pub use gso::{GsoError, MAX_FALLBACK_SEGMENTS, Segment, Segmenter};
pub use ip_prefix::{NotAPrefix, Prefix};
pub use l3_source::{Neighbor, SenderInfo};
pub use mac::{Mac, NotAMac};
pub use offload::{BadOffload, Offload, Segmentation};
pub use offload_set::OffloadSet;
pub use partial_checksum::is_partial_checksum;
pub use probe::{Forged, Probe, ProbeKey};
pub use vlan::{NotAVid, Priority, Tagging, Vid, is_without_vlan};
