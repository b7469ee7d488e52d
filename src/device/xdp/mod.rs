//! AF_XDP device on an existing netdev that the switch does not own: QEMU's tap, a container's veth, a physical NIC.
//!
//! Each queue of the netdev has a socket whose rings exchange slots of the pool with the kernel: frames between two
//! such ports are not copied by the switch. An XDP program on the netdev redirects frames to the sockets; the kernel
//! removes it with the process.
//!
//! Modes, best first: zero-copy (the driver uses the pool's slots), native copy (the driver runs the program and
//! copies), generic copy (the network stack runs the program). Each is tried in turn; a warning says why no better one
//! works.
//!
//! The outer VLAN tag of a frame may be stored beside it, where programs do not read it: see [`tags`].
//!
//! The `virtio_net_hdr` does not pass an XDP program. GSO packets and partial checksums that a guest writes to a tap
//! lose their header, so such a guest must turn its offloads off.

pub mod assembler;
pub mod drop_table;
pub mod program;
mod queue;
mod redirect;
pub mod tags;

use std::fmt;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Device, DeviceLocation, Keep, Observed, OpenError, Opened, foreign};
use crate::frame::{CopyMode, Pool, XskQueue};
use crate::sys::bpf::Attach;
use crate::sys::ethtool;
use crate::sys::link::{self, Link, XdpMode};
use crate::sys::netdev::{self, XdpFeatures};
use crate::sys::netns::Netns;
use queue::Queue;
use redirect::{Failure, Redirect};
use tags::{StrippingOff, TagCapabilities, TagLocation};

/// Entries of each ring of a queue.
const RING: u32 = 2048;

/// Warning for a tap whose frames have a `virtio_net_hdr`, which XDP programs do not see.
const LOST_OFFLOADS: &str = "unless the guest's offloads are off, their header is lost at the XDP hook: checksums stay partial and \
     GSO packets lose their segment size; QEMU: csum=off,guest_csum=off,host_tso4=off,host_tso6=off,host_ufo=off,gso=off \
     on the virtio-net device; libvirt: <driver name='qemu'><host csum='off' gso='off' tso4='off' tso6='off' ecn='off' \
     ufo='off' mrg_rxbuf='off'/><guest csum='off' tso4='off' tso6='off' ecn='off' ufo='off'/></driver> in the <interface>; \
     or use kind = packet";

/// Maximum MTU in bytes with which a frame fits one page with the space that an XDP program needs: 4096 less headroom
/// (256), `skb_shared_info` (320) and Ethernet with two tags (22).
const ONE_PAGE: u32 = 3498;

/// Minimum slots in the fill ring of a queue.
const LEAST_FILL: u32 = 64;

/// Settings of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of the netdev.
    pub name: String,
    /// Network namespace of the netdev.
    pub netns: Netns,
    /// Number of queues that the netdev must have; `None`: all that it has.
    pub queues: Option<u16>,
    /// Allowed modes.
    pub mode: Mode,
    /// Detach a program that another process has left on the netdev.
    pub replace_xdp_program: bool,
    /// MTU of the network in bytes.
    pub mtu: u16,
    /// Slots of the pool in the fill ring of each queue.
    pub fill: u32,
    /// Port that uses the device.
    pub owner: String,
    /// Frames are assigned to ports and networks by VLAN tag (parent of a trunk, uplink). No tag may be lost then.
    pub vlan_demux: bool,
}

/// Configured mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The best that works.
    #[default]
    Auto,
    /// Zero-copy only.
    ZeroCopy,
    /// Native copy only.
    Copy,
    /// Generic copy only.
    Generic,
}

/// Mode to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AttachMode {
    ZeroCopy,
    Native,
    Generic,
}

impl AttachMode {
    const fn copy_mode(self) -> CopyMode {
        match self {
            AttachMode::ZeroCopy => CopyMode::ZeroCopy,
            AttachMode::Native | AttachMode::Generic => CopyMode::Copy,
        }
    }

    const fn attach(self) -> Attach {
        match self {
            AttachMode::ZeroCopy | AttachMode::Native => Attach::Native,
            AttachMode::Generic => Attach::Generic,
        }
    }
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AttachMode::ZeroCopy => "zero-copy",
            AttachMode::Native => "native copy",
            AttachMode::Generic => "generic copy",
        })
    }
}

impl Mode {
    /// Modes to try, best first.
    const fn attach_modes(self) -> &'static [AttachMode] {
        match self {
            Mode::Auto => &[AttachMode::ZeroCopy, AttachMode::Native, AttachMode::Generic],
            Mode::ZeroCopy => &[AttachMode::ZeroCopy],
            Mode::Copy => &[AttachMode::Native],
            Mode::Generic => &[AttachMode::Generic],
        }
    }
}

impl Settings {
    fn at(&self) -> DeviceLocation {
        DeviceLocation { device: self.name.clone(), netns: self.netns.clone() }
    }
}

/// Binds all queues of a netdev and attaches the program.
pub fn open(settings: &Settings, pool: &'static Pool) -> Result<Opened, OpenError> {
    foreign::in_namespace(&settings.at(), || attempt(settings, pool))
}

fn attempt(settings: &Settings, pool: &'static Pool) -> Result<Opened, OpenError> {
    let location = settings.at();
    let (mut link, mut warnings) = foreign::find(&location, settings.mtu)?;
    warnings.extend(lost_offloads(&link));
    if settings.replace_xdp_program && link.xdp.is_some() {
        match link::remove_xdp_program(&link) {
            Ok(()) => link.xdp = None,
            // Its owner lives: reported below if it prevents attaching.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {}
            Err(e) => return Err(foreign::failed(&location, "detaching the foreign XDP program")(e)),
        }
    }
    let queues = queues(settings, &link)?;
    let mut not_better = Vec::new();
    for &attach_mode in settings.mode.attach_modes() {
        match try_mode(settings, pool, &link, queues, attach_mode)? {
            Ok(BoundNetdev { queues, tags_lost, observed }) => {
                if !not_better.is_empty() {
                    warnings.push(format!("{attach_mode}, as {}", not_better.join(", ")));
                }
                warnings.extend(tags_lost.as_deref().map(tags::warning));
                let (mode, may_lose_tags) = (Some(attach_mode.to_string()), tags_lost.is_some());
                let observed = Some(observed);
                let keep = Keep::Nothing;
                return Ok(Opened { queues, made: false, warnings, mode, egress: None, may_lose_tags, observed, keep });
            }
            Err(why) => not_better.push(why),
        }
    }
    Err(foreign::refused(&settings.at(), format!("the configured mode does not work: {}", not_better.join(", "))))
}

/// Number of queues to bind: all queues of the netdev.
fn queues(settings: &Settings, link: &Link) -> Result<u32, OpenError> {
    let message =
        ethtool::receive_queues(&settings.name).map_err(foreign::failed(&settings.at(), "reading its queues"))?;
    let there = message.or(link.tap.map(|tap| tap.queues)).unwrap_or(1).max(1);
    match settings.queues {
        Some(0) => Err(foreign::refused(
            &settings.at(),
            "queues = 0 is invalid; set the netdev's number of queues, or remove it",
        )),
        Some(wanted) if u32::from(wanted) != there => Err(foreign::refused(
            &settings.at(),
            format!(
                "the netdev has {there} receive queues, but queues = {wanted}: frames of the others would bypass the switch; \
                 ethtool -L {} combined {wanted}, or remove queues",
                settings.name
            ),
        )),
        _ => Ok(there),
    }
}

/// A bound netdev.
struct BoundNetdev {
    queues: Vec<Box<dyn Device>>,
    /// Observations of its queues.
    observed: Observed,
    /// Why a frame's VLAN tag may be lost; `None`: tags are not lost.
    tags_lost: Option<String>,
}

/// Tries one mode. The inner error: it does not work here, but a lesser mode may.
fn try_mode(
    settings: &Settings,
    pool: &'static Pool,
    link: &Link,
    queues: u32,
    mode: AttachMode,
) -> Result<Result<BoundNetdev, String>, OpenError> {
    let no_zero_copy = || {
        let driver = ethtool::driver(&settings.name).unwrap_or_else(|| "its driver".into());
        Ok(Err(format!("{driver} has no zero-copy")))
    };
    let no_native = || {
        let driver = ethtool::driver(&settings.name).unwrap_or_else(|| "its driver".into());
        Ok(Err(format!("{driver} runs no XDP programs")))
    };
    // Features are checked first, because trying zero-copy pins the whole pool again, which takes time, and leaves the
    // queue busy for a while, even for the next mode.
    if let Ok(Some(features)) = netdev::xdp_features(link.index) {
        match mode {
            AttachMode::ZeroCopy if !features.zero_copy() => return no_zero_copy(),
            AttachMode::Native if !features.native() => return no_native(),
            AttachMode::ZeroCopy | AttachMode::Native | AttachMode::Generic => {}
        }
    }
    let (mut request, mut stored, mut tags_lost) = (None, None, None);
    match TagCapabilities::of(&settings.name, link).decide(mode != AttachMode::Generic) {
        TagLocation::InFrame => {}
        TagLocation::Metadata(function) => request = Some(function),
        TagLocation::InFrameWithout(features) => match StrippingOff::turn_off(&settings.name, link.index, &features) {
            Ok(done) => stored = Some(done),
            Err(why) => tags_lost = Some(why),
        },
        TagLocation::MayBeLost(why) => tags_lost = Some(why),
    }
    if let Some(why) = tags_lost.as_deref().filter(|_| settings.vlan_demux) {
        return Err(foreign::refused(&settings.at(), tags::reject_reason(why)));
    }
    let fill = settings.fill.max(LEAST_FILL);
    let mut exchanges = Vec::new();
    for queue in 0..queues {
        match XskQueue::open(pool, (link.index, queue), mode.copy_mode(), RING, fill) {
            Ok(socket) => exchanges.push(socket),
            Err(e) if mode == AttachMode::ZeroCopy && is(&e, Errno::OPNOTSUPP) => return no_zero_copy(),
            Err(e) => return Err(not_bound(settings, queue, queues, e)),
        }
    }
    let sockets: Vec<_> = exchanges.iter().filter_map(XskQueue::fd).collect();
    let mut attached = Redirect::attach(link.index, &sockets, mode.attach(), request, stored);
    if let (Some(_), Err(Failure::Load(why))) = (request, &attached)
        && why.source.kind() != io::ErrorKind::PermissionDenied
    {
        tags_lost = Some(format!("the kernel rejects a program that reads tags ({})", why.source));
        attached = Redirect::attach(link.index, &sockets, mode.attach(), None, None);
    }
    match attached {
        Ok(_) if settings.vlan_demux && tags_lost.is_some() => {
            Err(foreign::refused(&settings.at(), tags::reject_reason(&tags_lost.unwrap_or_default())))
        }
        Ok(redirect) => {
            let (redirect, observed) = (Arc::new(redirect), Observed::default());
            let queue = |(number, socket)| {
                Box::new(Queue::new(socket, number, Arc::clone(&redirect), observed.clone())) as Box<dyn Device>
            };
            let queues = (0..).zip(exchanges).map(queue).collect();
            Ok(Ok(BoundNetdev { queues, observed, tags_lost }))
        }
        Err(Failure::Attach(e)) if mode != AttachMode::Generic && is(&e, Errno::OPNOTSUPP) => no_native(),
        Err(failure) => Err(not_attached(settings, link, failure)),
    }
}

fn is(e: &io::Error, errno: Errno) -> bool {
    e.raw_os_error() == Some(errno.raw_os_error())
}

fn not_bound(settings: &Settings, queue: u32, queues: u32, e: io::Error) -> OpenError {
    match e.kind() {
        io::ErrorKind::ResourceBusy => OpenError::Busy { at: settings.at() },
        io::ErrorKind::PermissionDenied => OpenError::Denied {
            at: settings.at(),
            reason: "binding AF_XDP is not permitted; grant CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF".into(),
        },
        _ if is(&e, Errno::NOBUFS) || is(&e, Errno::NOMEM) => OpenError::Exhausted {
            at: settings.at(),
            reason:
                "the pool cannot be locked in memory; raise the limit (LimitMEMLOCK=infinity) or grant CAP_IPC_LOCK"
                    .into(),
        },
        _ if is(&e, Errno::INVAL) && queue > 0 => foreign::refused(
            &settings.at(),
            format!(
                "queue {queue} of {queues} cannot be bound: the number of queues has just changed, or no process has opened it"
            ),
        ),
        _ => foreign::failed(&settings.at(), "binding AF_XDP to it")(e),
    }
}

fn not_attached(settings: &Settings, link: &Link, failure: Failure) -> OpenError {
    let e = match failure {
        Failure::Load(e) => {
            return match e.source.kind() {
                io::ErrorKind::PermissionDenied => OpenError::Denied {
                    at: settings.at(),
                    reason: "loading an XDP program is not permitted; grant CAP_BPF and CAP_NET_ADMIN".into(),
                },
                _ => foreign::refused(&settings.at(), e.to_string()),
            };
        }
        Failure::Map(e) => return foreign::failed(&settings.at(), "creating the maps of its program")(e),
        Failure::Attach(e) => e,
    };
    match e.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::AlreadyExists => match link.xdp {
            Some(other) => OpenError::Occupied {
                at: settings.at(),
                reason: format!(
                    "{other} is attached already; end its owner or, if that has ended, detach it: ip link set dev {} {} off, or \
                     replace_xdp_program = true",
                    settings.name,
                    other.mode.option()
                ),
            },
            None => OpenError::Busy { at: settings.at() },
        },
        _ if is(&e, Errno::RANGE) => foreign::refused(
            &settings.at(),
            format!("its MTU of {}, or its peer's, is too large for an XDP program; reduce it", link.mtu),
        ),
        _ => foreign::failed(&settings.at(), "attaching the XDP program")(e),
    }
}

/// Predicts the result of [`open`]: its error, or its warnings. Changes nothing.
pub fn preflight(settings: &Settings) -> Result<Vec<String>, OpenError> {
    let location = settings.at();
    foreign::in_namespace(&location, || {
        let (link, mut warnings) = foreign::find(&location, settings.mtu)?;
        warnings.extend(lost_offloads(&link));
        queues(settings, &link)?;
        if let TagLocation::MayBeLost(why) = expected_tag_location(settings.mode, &settings.name, &link) {
            if settings.vlan_demux {
                return Err(foreign::refused(&location, tags::reject_reason(&why)));
            }
            warnings.push(tags::warning(&why));
        }
        warnings.extend(long_frames(settings, &link));
        Ok(warnings)
    })
}

/// Why long frames would not pass; `None` if they do. An XDP program already attached natively proves that they do.
fn long_frames(settings: &Settings, link: &Link) -> Option<String> {
    let in_driver = link.xdp.is_some_and(|attached| attached.mode == XdpMode::Native);
    if settings.mode == Mode::Generic || in_driver {
        return None;
    }
    let features = netdev::xdp_features(link.index).ok().flatten()?;
    let driver = ethtool::driver(&settings.name).unwrap_or_else(|| "its driver".into());
    exceeds_one_page(link, &driver, features).map(|why| format!("{}: {why}", settings.at()))
}

/// Why the driver cannot run an XDP program with the netdev's MTU; `None` if it can.
pub(super) fn exceeds_one_page(link: &Link, driver: &str, features: XdpFeatures) -> Option<String> {
    // A tap runs the program on a frame longer than a page in the network stack, whatever its driver announces.
    let is_one_page = features.native() && !features.pieces() && link.tap.is_none();
    (link.mtu > ONE_PAGE && is_one_page)
        .then(|| format!("{driver} has no multi-buffer XDP, and the MTU is {}; reduce it to {ONE_PAGE}", link.mtu))
}

/// Location of tags in the expected mode.
pub(super) fn expected_tag_location(mode: Mode, name: &str, link: &Link) -> TagLocation {
    // A driver of unknown features is assumed to run programs.
    let native = || !matches!(netdev::xdp_features(link.index), Ok(Some(features)) if !features.native());
    let native = match mode {
        Mode::Generic => false,
        Mode::ZeroCopy | Mode::Copy => true,
        Mode::Auto => native(),
    };
    TagCapabilities::of(name, link).decide(native)
}

/// Warning about lost offloads, if the netdev is a tap whose owner uses the `virtio_net_hdr`.
pub(super) fn lost_offloads(link: &Link) -> Option<String> {
    link.tap.filter(|tap| tap.vnet_header).map(|_| LOST_OFFLOADS.to_owned())
}
