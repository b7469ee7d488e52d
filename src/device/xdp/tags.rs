//! Whether the outer VLAN tag of a frame reaches the switch.
//!
//! An XDP program reads bytes. The tag is not among them where the driver keeps it beside the frame: a veth does so
//! as long as its peer allows (`tx-vlan-hw-insert`, which a guest can turn on at any time), and a NIC that takes tags
//! out (`rx-vlan-hw-parse`). The frame then looks like one of another network.
//!
//! * A driver that tells tags to programs (veth since Linux 6.8, some NICs) is asked for it, for each frame. Nothing
//!   about its netdev is changed, and it does not matter what anybody changes later.
//! * A NIC that does not tell is made to leave tags in the frames for as long as the port is open: all of its receive
//!   queues are the switch's, so nobody else receives from it.
//! * Where neither is possible, a tag may be lost. Frames of such a netdev cannot be assigned to ports by their tag,
//!   so the parent of a trunk and an uplink are refused there. `packet` sees the tag of every frame.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys::bpf::KernelFunction;
use crate::sys::link::{self, Link};
use crate::sys::netns::{self, Netns, within};
use crate::sys::{ethtool, netdev};

/// The features with which a NIC takes tags out of frames: of 802.1Q and of 802.1ad.
const STRIPPING: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// How a netdev treats the outer tag of a received frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TagCapabilities {
    /// Its driver, if it tells.
    pub driver: Option<String>,
    /// Whether what it receives are whole frames: what the holder of a tap writes, what comes out of a VXLAN packet.
    pub whole_frames: bool,
    /// Whether hardware, or what a hypervisor shows as such, is behind it. What software hands on may have been
    /// received elsewhere, and its tag taken out there.
    pub hardware: bool,
    /// Whether its driver tells programs of the tag.
    pub has_metadata_kfunc: bool,
    /// The kernel's function by which a program asks, if it has one.
    pub function: Option<KernelFunction>,
    /// Features that are on by which it takes tags out.
    pub strips: Vec<&'static str>,
    /// Whether these can be turned off.
    pub can_stop: bool,
}

/// Where the outer tag of a frame is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagLocation {
    /// In the frame.
    InFrame,
    /// Beside it, where the program asks the driver.
    Metadata(KernelFunction),
    /// In the frame, once these features are off.
    InFrameWithout(Vec<&'static str>),
    /// Perhaps nowhere, and why.
    MayBeLost(String),
}

impl TagCapabilities {
    /// Asks about a netdev of the calling thread's namespace. Touches nothing.
    pub fn of(name: &str, link: &Link) -> TagCapabilities {
        // Where the kernel does not tell, tags may be taken out.
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

    /// Where tags are found by a program that the driver runs (`native`) or the network stack does.
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
            TagCapabilities { hardware: true, strips, .. } => TagLocation::MayBeLost(format!(
                "{driver} takes tags out of frames, and {} cannot be turned off",
                strips[0]
            )),
            TagCapabilities { has_metadata_kfunc: true, .. } if native => TagLocation::MayBeLost(
                "the kernel does not describe its functions to programs (CONFIG_DEBUG_INFO_BTF)".to_owned(),
            ),
            _ if native => TagLocation::MayBeLost(format!(
                "{driver} keeps tags beside frames and does not tell them (veth: Linux 6.8)"
            )),
            _ => TagLocation::MayBeLost(
                "in generic mode a program cannot ask for a tag that is kept beside the frame".to_owned(),
            ),
        }
    }
}

/// What an operator has to know of a netdev whose tags may be lost.
pub fn warning(why: &str) -> String {
    format!(
        "the VLAN tag of a frame may be lost: {why}; a tagged frame may pass without its tag, and trunks and uplinks are \
         refused; kind = packet sees every tag"
    )
}

/// Why a trunk or an uplink is refused on such a netdev.
pub fn reject_reason(why: &str) -> String {
    format!(
        "the VLAN tag of a frame may be lost: {why}; it cannot be an uplink or carry a trunk, as frames would come to \
         networks that they are not on; use kind = packet, which sees every tag"
    )
}

/// Keeps a NIC from taking tags out of frames, until this is dropped.
#[derive(Debug)]
pub(super) struct StrippingOff {
    name: String,
    index: u32,
    netns: OwnedFd,
    features: Vec<&'static str>,
}

impl StrippingOff {
    /// Turns these features of a netdev of the calling thread's namespace off. Why that cannot be had, if so.
    pub(super) fn turn_off(name: &str, index: u32, features: &[&'static str]) -> Result<StrippingOff, String> {
        let failed = |feature: &str, why: &str| format!("{feature} cannot be turned off: {why}");
        let netns = netns::here().map_err(|why| failed(features[0], &why.to_string()))?;
        let mut stored = StrippingOff { name: name.to_owned(), index, netns, features: Vec::new() };
        for &feature in features {
            match ethtool::set_feature(name, feature, false) {
                Ok(true) => stored.features.push(feature),
                Ok(false) => return Err(failed(feature, "its driver does not let go of it")),
                Err(why) => return Err(failed(feature, &why.to_string())),
            }
        }
        Ok(stored)
    }
}

impl Drop for StrippingOff {
    /// Turns them on again, if the netdev is still there. A switch that is killed leaves them off, which costs the
    /// host's stack a few instructions a frame.
    fn drop(&mut self) {
        let netns = Netns::At(format!("/proc/self/fd/{}", self.netns.as_raw_fd()).into());
        let (name, index, features) = (&self.name, self.index, &self.features);
        // Nothing depends on it.
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
    fn a_driver_that_tells_is_asked_where_the_program_can_ask() {
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
        // What others change at it makes no difference.
        let off = TagCapabilities { can_stop: true, strips: vec![STRIPPING[0]], ..veth };
        assert_eq!(off.decide(true), TagLocation::Metadata(ASK));
        assert!(lost(&off.decide(false)).contains("generic"), "flags of a software netdev say nothing");
    }

    #[test]
    fn hardware_leaves_tags_in_frames_or_is_made_to() {
        let nic = TagCapabilities { driver: Some("e1000".into()), hardware: true, ..TagCapabilities::default() };
        let strips = TagCapabilities { strips: vec![STRIPPING[0]], can_stop: true, ..nic.clone() };
        let fixed = TagCapabilities { can_stop: false, ..strips.clone() };
        for native in [false, true] {
            assert_eq!(nic.decide(native), TagLocation::InFrame);
            assert_eq!(strips.decide(native), TagLocation::InFrameWithout(vec![STRIPPING[0]]));
            assert!(lost(&fixed.decide(native)).contains("e1000 takes tags out"));
        }
        let tells = TagCapabilities { has_metadata_kfunc: true, function: Some(ASK), ..fixed };
        assert_eq!(tells.decide(true), TagLocation::Metadata(ASK));
    }

    #[test]
    fn what_is_written_to_a_tap_is_the_frame() {
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
        assert_eq!(fixed, Ok(()), "what is off stays off");
    }
}
