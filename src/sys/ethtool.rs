//! ethtool ioctls: reads driver name, queues and offload features of a netdev and sets features, in the calling
//! thread's network namespace.

use std::ffi::{CStr, c_void};
use std::io;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::tun;

/// SIOCETHTOOL, linux/sockios.h
const SIOCETHTOOL: Opcode = 0x8946;

// linux/ethtool.h
const GDRVINFO: u32 = 0x03;
const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const SFEATURES: u32 = 0x3b;
const GCHANNELS: u32 = 0x3c;

/// ETH_SS_FEATURES: string set of feature names.
const FEATURE_NAMES: u32 = 4;

/// Length of a string in a set (ETH_GSTRING_LEN).
const NAME_LEN: usize = 32;

/// Capacity of a reply in features; kernels have about 64.
const MAX_FEATURES: usize = 256;

/// The same in 32-bit blocks.
const BLOCKS: usize = MAX_FEATURES / 32;

/// `struct ethtool_channels`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct ChannelsReply {
    cmd: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_drvinfo`
#[repr(C)]
#[derive(Clone, Copy)]
struct DriverReply {
    cmd: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rest: [u8; 64],
}

/// `struct ethtool_sset_info` for one set.
#[repr(C)]
struct SetSizeReply {
    cmd: u32,
    reserved: u32,
    mask: u64,
    count: u32,
}

/// `struct ethtool_gstrings`
#[repr(C)]
struct StringsReply {
    cmd: u32,
    set: u32,
    count: u32,
    names: [[u8; NAME_LEN]; MAX_FEATURES],
}

/// `struct ethtool_get_features_block`
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct FeatureBlock {
    available: u32,
    requested: u32,
    active: u32,
    never_changed: u32,
}

/// `struct ethtool_gfeatures`
#[repr(C)]
struct FeaturesReply {
    cmd: u32,
    blocks: u32,
    features: [FeatureBlock; BLOCKS],
}

/// `struct ethtool_set_features_block`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SetBlock {
    valid: u32,
    requested: u32,
}

/// `struct ethtool_sfeatures`
#[repr(C)]
struct SetFeatures {
    cmd: u32,
    blocks: u32,
    features: [SetBlock; BLOCKS],
}

/// `struct ifreq` with a pointer to the command.
#[repr(C)]
struct Request<'a, T> {
    name: [u8; 16],
    reply: &'a mut T,
    rest: [u8; 16],
}

// SAFETY: the opcode reads an `ifreq` and writes at most the reply that it points to. Its first word, the command,
// determines the length; this file alone pairs commands with reply types.
unsafe impl<T> Ioctl for Request<'_, T> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        SIOCETHTOOL
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

fn request<T>(name: &str, reply: &mut T) -> io::Result<()> {
    if !tun::is_name(name) {
        return Err(Errno::NODEV.into());
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut padded = [0; 16];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: `Request` is built as its implementation requires.
    Ok(unsafe { ioctl(&socket, Request { name: padded, reply, rest: [0; 16] }) }?)
}

/// Number of receive queues. `None`: the driver does not report it.
pub fn receive_queues(name: &str) -> io::Result<Option<u32>> {
    let mut reply = ChannelsReply { cmd: GCHANNELS, ..ChannelsReply::default() };
    match request(name, &mut reply) {
        Ok(()) => Ok(Some(reply.rx + reply.combined).filter(|&queues| queues > 0)),
        Err(e) if e.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Driver name. `None`: not reported.
pub fn driver(name: &str) -> Option<String> {
    text(&driver_info(name)?.driver)
}

/// Bus address of the hardware or of the hypervisor's device. `None` for software netdevs.
pub fn bus(name: &str) -> Option<String> {
    text(&driver_info(name)?.bus)
}

fn driver_info(name: &str) -> Option<DriverReply> {
    let empty = [0; 32];
    let (driver, version, firmware, bus) = (empty, empty, empty, empty);
    let mut reply = DriverReply { cmd: GDRVINFO, driver, version, firmware, bus, rest: [0; 64] };
    request(name, &mut reply).ok()?;
    Some(reply)
}

fn text(field: &[u8; 32]) -> Option<String> {
    let text = CStr::from_bytes_until_nul(field).ok()?.to_str().ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// Offload features of a netdev by their `ethtool -k` names, such as `tx-tcp-segmentation`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Features {
    names: Vec<String>,
    blocks: Vec<FeatureBlock>,
}

impl Features {
    /// Whether the feature is on; `false` for unknown features.
    pub fn is_active(&self, feature: &str) -> bool {
        self.bit(feature, |block| block.active)
    }

    /// Whether the feature can be turned on and off.
    pub fn can_change(&self, feature: &str) -> bool {
        self.bit(feature, |block| block.available & !block.never_changed)
    }

    /// Names of the active features, in the kernel's order.
    pub fn active(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str).filter(|name| self.is_active(name))
    }

    fn bit(&self, feature: &str, of: impl Fn(&FeatureBlock) -> u32) -> bool {
        let place = self.names.iter().position(|name| name == feature);
        place.is_some_and(|place| self.blocks.get(place / 32).is_some_and(|block| of(block) >> (place % 32) & 1 != 0))
    }
}

/// Names of all features in bit order; the same for every netdev.
fn feature_names(netdev: &str) -> io::Result<Vec<String>> {
    let mut size = SetSizeReply { cmd: GSSET_INFO, reserved: 0, mask: 1 << FEATURE_NAMES, count: 0 };
    request(netdev, &mut size)?;
    // The kernel writes all names, regardless of the count in the request.
    if size.mask == 0 || size.count as usize > MAX_FEATURES {
        return Err(Errno::OVERFLOW.into());
    }
    let names = [[0; NAME_LEN]; MAX_FEATURES];
    let mut reply = Box::new(StringsReply { cmd: GSTRINGS, set: FEATURE_NAMES, count: size.count, names });
    request(netdev, &mut *reply)?;
    let text = |name: &[u8; NAME_LEN]| {
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(NAME_LEN);
        String::from_utf8_lossy(&name[..end]).into_owned()
    };
    Ok(reply.names.iter().take(reply.count as usize).map(text).collect())
}

/// Number of 32-bit blocks for all features.
#[allow(clippy::cast_possible_truncation)] // at most BLOCKS
fn blocks_of(names: &[String]) -> u32 {
    names.len().div_ceil(32) as u32
}

/// Reads the offload features of a netdev.
pub fn features(netdev: &str) -> io::Result<Features> {
    let names = feature_names(netdev)?;
    let features = [FeatureBlock::default(); BLOCKS];
    let mut reply = FeaturesReply { cmd: GFEATURES, blocks: blocks_of(&names), features };
    request(netdev, &mut reply)?;
    let blocks = reply.features.into_iter().take(reply.blocks as usize).collect();
    Ok(Features { names, blocks })
}

/// Turns an offload feature of a netdev on or off. Returns whether the driver has applied it.
pub fn set_feature(netdev: &str, feature: &str, on: bool) -> io::Result<bool> {
    let names = feature_names(netdev)?;
    let Some(place) = names.iter().position(|name| name == feature) else { return Ok(!on) };
    let bit = 1 << (place % 32);
    let mut features = [SetBlock::default(); BLOCKS];
    features[place / 32] = SetBlock { valid: bit, requested: if on { bit } else { 0 } };
    request(netdev, &mut SetFeatures { cmd: SFEATURES, blocks: blocks_of(&names), features })?;
    Ok(self::features(netdev)?.is_active(feature) == on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::{Netns, within};

    #[test]
    fn a_missing_netdev_is_an_error() {
        assert!(receive_queues("vift-nothing").is_err());
        assert!(receive_queues("a name that no device can have").is_err());
        assert_eq!(driver("vift-nothing"), None);
        assert!(features("vift-nothing").is_err());
        assert!(set_feature("vift-nothing", "tx-vlan-hw-insert", false).is_err());
    }

    #[test]
    fn features_have_the_names_of_ethtool() {
        let features = features("lo").unwrap();
        assert!(features.is_active("loopback") && !features.can_change("loopback"));
        assert!(features.is_active("tx-generic-segmentation") && features.can_change("tx-generic-segmentation"));
        assert!(!features.is_active("rx-vlan-hw-parse") && !features.is_active("no-such-feature"));
        assert!(features.active().any(|name| name == "loopback"));
        assert!(!features.active().any(|name| name == "rx-vlan-hw-parse"));
    }

    #[test]
    fn a_feature_is_turned_off_and_on() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: needs root, to make a namespace");
        }
        let name = format!("vift-ethtool-{}", std::process::id());
        let ip = |command: &str| std::process::Command::new("ip").args(["netns", command, &name]).status().unwrap();
        assert!(ip("add").success());
        let tried = within(&Netns::Named(name.clone()), || {
            let mut seen = Vec::new();
            for on in [false, true] {
                let done = set_feature("lo", "tx-generic-segmentation", on);
                seen.push((done.ok(), features("lo").map(|all| all.is_active("tx-generic-segmentation")).ok()));
            }
            let fixed = set_feature("lo", "loopback", false).ok();
            (seen, fixed, set_feature("lo", "no-such-feature", false).ok())
        });
        assert!(ip("del").success());
        let (seen, fixed, unknown) = tried.unwrap();
        assert_eq!(seen, [(Some(true), Some(false)), (Some(true), Some(true))]);
        assert_eq!((fixed, unknown), (Some(false), Some(true)), "a fixed feature is unchanged");
    }

    #[test]
    fn the_loopback_has_no_channels() {
        assert_eq!(receive_queues("lo").unwrap(), None);
    }
}
