//! Whether the outer VLAN tag of a received frame reaches the switch.
//!
//! An XDP program reads bytes. The tag is not among them if the driver stores it beside the frame: veths do if their
//! peer inserts tags (`tx-vlan-hw-insert`, which a guest can turn on at any time), and NICs if they strip tags
//! (`rx-vlan-hw-parse`). The frame then looks like one of another network.
//!
//! * If the driver reports tags to programs (veth since Linux 6.8, some NICs), the program reads the tag of each frame.
//!   The netdev is not changed, and later changes of its features do not matter.
//! * Otherwise stripping by a NIC is turned off while the port is open. The switch has all receive queues of the
//!   netdev, so that no one else is affected.
//! * If neither is possible, tags may be lost. Frames of such a netdev cannot be assigned to ports by tag, so the
//!   parent of a trunk and an uplink are refused. `packet` sees the tag of every frame.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys::bpf::KernelFunction;
use crate::sys::link::{self, Link};
use crate::sys::netns::{self, Netns, within};
use crate::sys::{ethtool, netdev};

/// Features of NICs that strip tags of 802.1Q and of 802.1ad.
const STRIPPING: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// How a netdev treats the outer tag of a received frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TagCapabilities {
    /// Driver name, if reported.
    pub driver: Option<String>,
    /// Receives frames with all tags: a tap (written by its owner) or a VXLAN netdev.
    pub whole_frames: bool,
    /// Has a hardware or virtual bus device. A software netdev may receive frames whose tag was stripped elsewhere.
    pub hardware: bool,
    /// The driver reports the tag to programs.
    pub has_metadata_kfunc: bool,
    /// The kfunc to read it; `None` if the kernel has none.
    pub function: Option<KernelFunction>,
    /// Active features that strip tags.
    pub strips: Vec<&'static str>,
    /// All of these can be turned off.
    pub can_stop: bool,
}

/// Location of a frame's outer tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagLocation {
    /// In the frame.
    InFrame,
    /// Beside the frame; the program reads it from the driver.
    Metadata(KernelFunction),
    /// In the frame, once these features are off.
    InFrameWithout(Vec<&'static str>),
    /// Unknown, and why.
    MayBeLost(String),
}

impl TagCapabilities {
    /// Reads them for a netdev of the calling thread's namespace. Changes nothing.
    pub fn of(name: &str, link: &Link) -> TagCapabilities {
        // If features cannot be read, tags may be stripped.
        let features = ethtool::features(name).ok();
        let on = |feature: &&str| features.as_ref().is_none_or(|features| features.is_active(feature));
        let driver = ethtool::driver(name);
        let strips: Vec<&str> = STRIPPING.into_iter().filter(on).collect();
        TagCapabilities {
            whole_frames: link.tap.is_some() || driver.as_deref() == Some("vxlan"),
            driver,
            hardware: ethtool::bus(name).is_some(),
            has_metadata_kfunc: netdev::tells_vlan_tags(link.index).unwrap_or(false),
            function: KernelFunction::rx_vlan_tag(),
            can_stop: features.is_some_and(|features| strips.iter().all(|strip| features.can_change(strip))),
            strips,
        }
    }

    /// Location of tags for a program run by the driver (`native`) or by the network stack.
    pub fn decide(&self, native: bool) -> TagLocation {
        let driver = self.driver.as_deref().unwrap_or("its driver");
        match self {
            TagCapabilities { whole_frames: true, .. } => TagLocation::InFrame,
            TagCapabilities { has_metadata_kfunc: true, function: Some(function), .. } if native => {
                TagLocation::Metadata(*function)
            }
            TagCapabilities { hardware: true, strips, .. } if strips.is_empty() => TagLocation::InFrame,
            TagCapabilities { hardware: true, strips, can_stop: true, .. } => {
                TagLocation::InFrameWithout(strips.clone())
            }
            TagCapabilities { hardware: true, strips, .. } => {
                TagLocation::MayBeLost(format!("{driver} strips VLAN tags, and {} cannot be turned off", strips[0]))
            }
            TagCapabilities { has_metadata_kfunc: true, .. } if native => {
                TagLocation::MayBeLost("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)".to_owned())
            }
            _ if native => TagLocation::MayBeLost(format!(
                "{driver} keeps tags beside frames and does not report them to programs (veth: needs Linux 6.8)"
            )),
            _ => TagLocation::MayBeLost(
                "programs in generic mode cannot read a tag that is kept beside the frame".to_owned(),
            ),
        }
    }
}

/// Warning for a netdev whose tags may be lost.
pub fn warning(why: &str) -> String {
    format!(
        "the VLAN tag of a frame may be lost: {why}; a tagged frame may pass without its tag, and trunks and uplinks are \
         refused; kind = packet sees every tag"
    )
}

/// Reason for refusing a trunk or an uplink on such a netdev.
pub fn reject_reason(why: &str) -> String {
    format!(
        "the VLAN tag of a frame may be lost: {why}; as uplink or trunk, frames could reach networks that they do not belong to; \
         use kind = packet, which sees every tag"
    )
}

/// Turns VLAN stripping of a NIC off until dropped.
#[derive(Debug)]
pub(super) struct StrippingOff {
    name: String,
    index: u32,
    netns: OwnedFd,
    features: Vec<&'static str>,
}

impl StrippingOff {
    /// Turns these features of a netdev of the calling thread's namespace off. The error says why that failed.
    pub(super) fn turn_off(name: &str, index: u32, features: &[&'static str]) -> Result<StrippingOff, String> {
        let failed = |feature: &str, why: &str| format!("{feature} cannot be turned off: {why}");
        let netns = netns::here().map_err(|why| failed(features[0], &why.to_string()))?;
        let mut stored = StrippingOff { name: name.to_owned(), index, netns, features: Vec::new() };
        for &feature in features {
            match ethtool::set_feature(name, feature, false) {
                Ok(true) => stored.features.push(feature),
                Ok(false) => return Err(failed(feature, "the driver keeps it on")),
                Err(why) => return Err(failed(feature, &why.to_string())),
            }
        }
        Ok(stored)
    }
}

impl Drop for StrippingOff {
    /// Turns them on again, if the netdev still exists. A killed switch leaves them off, which costs the host's stack a
    /// few instructions per frame.
    fn drop(&mut self) {
        let netns = Netns::At(format!("/proc/self/fd/{}", self.netns.as_raw_fd()).into());
        let (name, index, features) = (&self.name, self.index, &self.features);
        // Best effort.
        let _ = within(&netns, || {
            if link::find(name).is_ok_and(|found| found.is_some_and(|found| found.index == index)) {
                for feature in features {
                    let _ = ethtool::set_feature(name, feature, true);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK: KernelFunction = KernelFunction::with_btf_id(7);

    fn lost(tags: &TagLocation) -> &str {
        match tags {
            TagLocation::MayBeLost(why) => why,
            found => panic!("{found:?}"),
        }
    }

    #[test]
    fn stripped_tags_are_read_where_the_program_can() {
        let veth = TagCapabilities {
            driver: Some("veth".into()),
            has_metadata_kfunc: true,
            function: Some(ASK),
            ..TagCapabilities::default()
        };
        assert_eq!(veth.decide(true), TagLocation::Metadata(ASK));
        assert!(lost(&veth.decide(false)).contains("generic"));
        let old = TagCapabilities { has_metadata_kfunc: false, ..veth.clone() };
        assert!(lost(&old.decide(true)).contains("veth keeps tags beside"));
        let bare = TagCapabilities { function: None, ..veth.clone() };
        assert!(lost(&bare.decide(true)).contains("CONFIG_DEBUG_INFO_BTF"));
        // Foreign changes of the flag make no difference.
        let off = TagCapabilities { can_stop: true, strips: vec![STRIPPING[0]], ..veth };
        assert_eq!(off.decide(true), TagLocation::Metadata(ASK));
        assert!(lost(&off.decide(false)).contains("generic"), "flags of a software netdev say nothing");
    }

    #[test]
    fn hardware_tag_stripping_is_turned_off() {
        let nic = TagCapabilities { driver: Some("e1000".into()), hardware: true, ..TagCapabilities::default() };
        let strips = TagCapabilities { strips: vec![STRIPPING[0]], can_stop: true, ..nic.clone() };
        let fixed = TagCapabilities { can_stop: false, ..strips.clone() };
        for native in [false, true] {
            assert_eq!(nic.decide(native), TagLocation::InFrame);
            assert_eq!(strips.decide(native), TagLocation::InFrameWithout(vec![STRIPPING[0]]));
            assert!(lost(&fixed.decide(native)).contains("e1000 strips VLAN tags"));
        }
        let tells = TagCapabilities { has_metadata_kfunc: true, function: Some(ASK), ..fixed };
        assert_eq!(tells.decide(true), TagLocation::Metadata(ASK));
    }

    #[test]
    fn a_tap_strips_no_tags() {
        let tap = TagCapabilities { whole_frames: true, ..TagCapabilities::default() };
        assert_eq!([tap.decide(true), tap.decide(false)], [TagLocation::InFrame, TagLocation::InFrame]);
    }

    #[test]
    fn stripping_is_off_as_long_as_the_port_is_open() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: needs root, to make a namespace");
        }
        let ns = format!("vift-tags-{}", std::process::id());
        let ip = |arguments: &str| {
            let done = std::process::Command::new("ip").args(arguments.split(' ')).output().unwrap();
            assert!(done.status.success(), "{arguments}: {done:?}");
        };
        ip(&format!("netns add {ns}"));
        ip(&format!("-n {ns} link add v0 type veth peer name v1"));
        let tried = within(&Netns::Named(ns.clone()), || {
            let strips = || ethtool::features("v0").unwrap().is_active(STRIPPING[0]);
            let index = link::find("v0").unwrap().unwrap().index;
            let mut seen = vec![strips()];
            let stored = StrippingOff::turn_off("v0", index, &STRIPPING).unwrap();
            seen.push(strips());
            drop(stored);
            seen.push(strips());
            let fixed = StrippingOff::turn_off("v0", index, &["loopback", "no-such-feature", "rx-all"]).map(drop);
            (seen, fixed)
        });
        ip(&format!("netns del {ns}"));
        let (seen, fixed) = tried.unwrap();
        assert_eq!(seen, [true, false, true]);
        assert_eq!(fixed, Ok(()), "a disabled feature stays disabled");
    }
}
