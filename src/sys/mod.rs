//! Safe wrappers of kernel interfaces, one file each.
//!
//! Errors are `io::Error`.

pub mod bpf;
pub mod cores;
pub mod ethtool;
pub mod ethtool_events;
pub mod event;
pub mod files;
mod genetlink;
pub mod inherited;
pub mod link;
pub mod link_events;
pub mod memory;
pub mod netdev;
pub mod netns;
pub mod netns_files;
pub mod netns_id;
pub mod netns_names;
pub mod packet;
pub mod passing;
pub mod peer_groups;
pub mod privileges;
pub mod routing;
pub mod running;
pub mod stack;
pub mod tun;
pub mod xsk;
