//! AF_XDP on netdevs that others own: a tap that QEMU holds, a veth of a container, a physical NIC.
//!
//! Each queue of the netdev gets a socket whose rings exchange slots of the pool with the kernel, so that
//! a frame from one such port to another is not copied by us at all. A small program of our own on the netdev
//! brings the frames to the sockets; it is gone when the process is.
//!
//! There is a *ladder* of modes: the driver works in the slots (zero-copy); the driver runs the program and
//! copies (native); the network stack runs it (generic). Each rung is tried in turn, and why a better
//! one was not to be had is told.
//!
//! The outer VLAN tag of a frame may be beside it, where no program reads it: see [`tags`].
//!
//! Offload headers do not pass an XDP program. Super-frames and open checksums that a guest writes to a tap lose
//! their header there, so such a guest must have its offloads off.

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

use super::{Device, DeviceLocation, Observed, OpenError, Opened, doctor, foreign};
use crate::frame::{CopyMode, Pool, XskQueue};
use crate::sys::bpf::Attach;
use crate::sys::ethtool;
use crate::sys::link::{self, Link, XdpMode};
use crate::sys::netdev;
use crate::sys::netns::Netns;
use queue::Queue;
use redirect::{Failure, Redirect};
use tags::{StrippingOff, TagCapabilities, TagLocation};

/// Places in each ring of a queue.
const RING: u32 = 2048;

/// What is to be known of a tap whose frames have an offload header, which no XDP program sees.
const LOST_OFFLOADS: &str = "unless the guest's offloads are off, their header is lost at the XDP hook: checksums stay partial and \
     GSO packets lose their segment size; QEMU: csum=off,guest_csum=off,host_tso4=off,host_tso6=off,host_ufo=off,gso=off \
     on the virtio-net device; libvirt: <driver name='qemu'><host csum='off' gso='off' tso4='off' tso6='off' ecn='off' \
     ufo='off' mrg_rxbuf='off'/><guest csum='off' tso4='off' tso6='off' ecn='off' ufo='off'/></driver> in the <interface>; \
     or use kind = packet";

/// Slots in the fill ring of a queue, at least.
const LEAST_FILL: u32 = 64;

/// How a netdev shall be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The name of the netdev.
    pub name: String,
    /// The namespace of the netdev.
    pub netns: Netns,
    /// How many queues it must have; `ZeroCopy`: all that there are.
    pub queues: Option<u16>,
    /// Which rungs of the ladder are right.
    pub mode: Mode,
    /// Whether a program that others have left on the netdev is taken off.
    pub replace_xdp_program: bool,
    /// The MTU of the network.
    pub mtu: u16,
    /// Slots of the pool that wait for frames, at each queue.
    pub fill: u32,
    /// The port it is for.
    pub owner: String,
    /// Whether frames are assigned to ports and networks by their VLAN tag: the parent of a trunk, an uplink. Then no
    /// tag may be lost.
    pub vlan_demux: bool,
}

/// Which mode is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The best there is.
    #[default]
    Auto,
    /// Zero-copy, or nothing.
    ZeroCopy,
    /// With copies, in the driver.
    Copy,
    /// With copies, in the network stack.
    Generic,
}

/// A rung of the ladder.
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
    /// The rungs to try, from the best on.
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

/// Binds all queues of a netdev.
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
            // Its owner lives: told below, if it is in the way.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {}
            Err(e) => return Err(foreign::failed(&location, "taking the XDP program of others off it")(e)),
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
                return Ok(Opened { queues, made: false, warnings, mode, egress: None, may_lose_tags, observed });
            }
            Err(why) => not_better.push(why),
        }
    }
    Err(foreign::refused(
        &settings.at(),
        format!("the mode that is asked for cannot be had: {}", not_better.join(", ")),
    ))
}

/// How many queues there are to bind: all.
fn queues(settings: &Settings, link: &Link) -> Result<u32, OpenError> {
    let message =
        ethtool::receive_queues(&settings.name).map_err(foreign::failed(&settings.at(), "asking for its queues"))?;
    let there = message.or(link.tap.map(|tap| tap.queues)).unwrap_or(1).max(1);
    match settings.queues {
        Some(0) => Err(foreign::refused(
            &settings.at(),
            "0 queues cannot be had; ask for as many as the device has, or leave it out",
        )),
        Some(wanted) if u32::from(wanted) != there => Err(foreign::refused(
            &settings.at(),
            format!(
                "it has {there} receive queues and {wanted} are asked for; frames of the others would go past the switch: \
             ethtool -L {} combined {wanted}, or leave queues out",
                settings.name
            ),
        )),
        _ => Ok(there),
    }
}

/// A netdev that is bound.
struct BoundNetdev {
    queues: Vec<Box<dyn Device>>,
    /// What they observe.
    observed: Observed,
    /// Why the VLAN tag of a frame may be lost, if so.
    tags_lost: Option<String>,
}

/// Tries one rung. The inner error is why it cannot be had while a lower one might.
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
    // It is asked first: trying zero-copy pins the whole pool once more and takes its time, and a queue that was bound in
    // vain is busy for a while, also for the next rung.
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
        tags_lost = Some(format!("the kernel refuses a program that asks for tags ({})", why.source));
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
        io::ErrorKind::PermissionDenied => foreign::refused(
            &settings.at(),
            "binding AF_XDP is not permitted; it takes CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF",
        ),
        _ if is(&e, Errno::NOBUFS) || is(&e, Errno::NOMEM) => foreign::refused(
            &settings.at(),
            "the pool cannot be pinned in memory; raise the limit (LimitMEMLOCK=infinity), or give CAP_IPC_LOCK",
        ),
        _ if is(&e, Errno::INVAL) && queue > 0 => foreign::refused(
            &settings.at(),
            format!("queue {queue} of {queues} cannot be bound: they changed just now, or nobody holds it"),
        ),
        _ => foreign::failed(&settings.at(), "binding AF_XDP to it")(e),
    }
}

fn not_attached(settings: &Settings, link: &Link, failure: Failure) -> OpenError {
    let e = match failure {
        Failure::Load(e) => {
            return match e.source.kind() {
                io::ErrorKind::PermissionDenied => foreign::refused(
                    &settings.at(),
                    "loading an XDP program is not permitted; it takes CAP_BPF and CAP_NET_ADMIN",
                ),
                _ => foreign::refused(&settings.at(), e.to_string()),
            };
        }
        Failure::Map(e) => return foreign::failed(&settings.at(), "making the tables of its program")(e),
        Failure::Attach(e) => e,
    };
    match e.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::AlreadyExists => match link.xdp {
            Some(other) => foreign::refused(
                &settings.at(),
                format!(
                    "{other} is on it already; end its owner or, if that is gone, take it off: ip link set dev {} {} off, or \
                 replace_xdp_program = true",
                    settings.name,
                    other.mode.option()
                ),
            ),
            None => OpenError::Busy { at: settings.at() },
        },
        _ if is(&e, Errno::RANGE) => foreign::refused(
            &settings.at(),
            format!("its MTU of {}, or that of its peer, is too large for an XDP program; make it smaller", link.mtu),
        ),
        _ => foreign::failed(&settings.at(), "attaching the XDP program")(e),
    }
}

/// What [`open`] would come to now: why it would fail, or remarks. Nothing is touched.
pub fn preflight(settings: &Settings) -> Result<Vec<String>, OpenError> {
    let location = settings.at();
    foreign::in_namespace(&location, || {
        let (link, mut notes) = foreign::find(&location, settings.mtu)?;
        notes.extend(lost_offloads(&link));
        queues(settings, &link)?;
        if let TagLocation::MayBeLost(why) = expected_tag_location(settings.mode, &settings.name, &link) {
            if settings.vlan_demux {
                return Err(foreign::refused(&location, tags::reject_reason(&why)));
            }
            notes.push(tags::warning(&why));
        }
        notes.extend(long_frames(settings, &link));
        Ok(notes)
    })
}

/// Why long frames would not pass, if so. A program that runs in the driver already shows that they do.
fn long_frames(settings: &Settings, link: &Link) -> Option<String> {
    let in_driver = link.xdp.is_some_and(|attached| attached.mode == XdpMode::Native);
    if settings.mode == Mode::Generic || in_driver {
        return None;
    }
    let features = netdev::xdp_features(link.index).ok().flatten()?;
    let driver = ethtool::driver(&settings.name).unwrap_or_else(|| "its driver".into());
    doctor::exceeds_one_page(link, &driver, features).map(|why| format!("{}: {why}", settings.at()))
}

/// Where tags would be found in the mode that would be had.
pub(super) fn expected_tag_location(mode: Mode, name: &str, link: &Link) -> TagLocation {
    // Where the kernel does not tell what the driver can, it is taken for one that runs programs.
    let native = || !matches!(netdev::xdp_features(link.index), Ok(Some(features)) if !features.native());
    let native = match mode {
        Mode::Generic => false,
        Mode::ZeroCopy | Mode::Copy => true,
        Mode::Auto => native(),
    };
    TagCapabilities::of(name, link).decide(native)
}

/// What becomes of the offloads of a guest, if the netdev is a tap whose holder writes offload headers.
pub(super) fn lost_offloads(link: &Link) -> Option<String> {
    link.tap.filter(|tap| tap.vnet_header).map(|_| LOST_OFFLOADS.to_owned())
}
