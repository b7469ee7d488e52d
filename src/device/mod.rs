//! How frames enter and leave the process.
//!
//! A [`Device`] is one queue pair. It is opened and closed on the control side, where it may block
//! and allocate; in between it travels to a worker and is polled there, by nobody else.
//!
//! [`open`] is the one place that tells the kinds apart. A new kind is a file or folder here, a
//! variant of [`Settings`] and an arm in [`open`]. `tap` holds the file of a tap; `packet` has sockets
//! on a netdev that others own; `loopback` is a cable between two ends in this process, for tests and
//! benches.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use thiserror::Error;

use crate::frame::{BURST, Batch, Magazine, Pool, TxBatch, TxStats};
use crate::sys::netns::Netns;
use crate::time::MonoTime;
use crate::wire::OffloadSet;

pub mod doctor;
mod early_drop;
mod egress;
mod foreign;
mod limit;
pub mod loopback;
mod observed;
pub mod packet;
pub mod properties;
pub mod tap;
mod vxlan;
pub mod xdp;

pub use early_drop::{DropCount, GroupClass, XdpDropped};
pub use egress::Egress;
pub use observed::Observed;

/// Which device to open, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settings {
    /// A tap of which we hold the file.
    Tap(tap::Settings),
    /// AF_XDP on a netdev that others own.
    Xdp(xdp::Settings),
    /// A netdev that others own, by packet sockets.
    Packet(packet::Settings),
}

impl Settings {
    /// Which device, and where.
    pub fn at(&self) -> DeviceLocation {
        DeviceLocation { device: self.name().to_owned(), netns: self.netns().clone() }
    }

    /// The namespace of the device.
    pub fn netns(&self) -> &Netns {
        match self {
            Settings::Tap(tap) => &tap.netns,
            Settings::Xdp(xdp) => &xdp.netns,
            Settings::Packet(packet) => &packet.netns,
        }
    }

    /// The name of the device.
    pub fn name(&self) -> &str {
        match self {
            Settings::Tap(tap) => &tap.name,
            Settings::Xdp(xdp) => &xdp.name,
            Settings::Packet(packet) => &packet.name,
        }
    }

    /// The port that the device is for.
    pub fn owner(&self) -> &str {
        match self {
            Settings::Tap(tap) => &tap.owner,
            Settings::Xdp(xdp) => &xdp.owner,
            Settings::Packet(packet) => &packet.owner,
        }
    }

    /// Whether frames are assigned to ports and networks by their VLAN tag, as far as that matters to the device.
    pub fn is_vlan_demux(&self) -> bool {
        matches!(self, Settings::Xdp(xdp) if xdp.vlan_demux)
    }

    /// Whether others own its netdev: they make it, set it up and delete it.
    pub fn is_foreign(&self) -> bool {
        !matches!(self, Settings::Tap(_))
    }

    /// Files that are open as long as the device is, as far as can be told.
    pub fn files(&self) -> u64 {
        match self {
            Settings::Tap(tap) => tap.queues.into(),
            // A socket for each queue; the program, its two tables, its link and what asks for the netdev's flags.
            Settings::Xdp(xdp) => u64::from(xdp.queues.unwrap_or(1)) + 5,
            // One that listens, one that is to take its place, and one that sends.
            Settings::Packet(_) => 3,
        }
    }
}

/// A device that has been opened.
pub struct Opened {
    /// Its queues.
    pub queues: Vec<Box<dyn Device>>,
    /// Whether its netdev was made by us for this port, now or in an earlier life.
    pub made: bool,
    /// What the operator should know: sentences on what is not quite as asked for.
    pub warnings: Vec<String>,
    /// In which mode it is used, if there are several.
    pub mode: Option<String>,
    /// Whether a frame may come in without the VLAN tag that it was sent with.
    pub may_lose_tags: bool,
    /// What it observes about its frames, if it observes anything.
    pub observed: Option<Observed>,
    /// What it takes of offload work, where that follows the netdev and can change while it is open.
    pub egress: Option<Egress>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queues = self.queues.len();
        f.debug_struct("Opened")
            .field("queues", &queues)
            .field("made", &self.made)
            .field("notes", &self.warnings)
            .finish()
    }
}

/// Which device, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLocation {
    /// Its name.
    pub device: String,
    /// The namespace it is in, or would be.
    pub netns: Netns,
}

impl fmt::Display for DeviceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.device, self.netns)
    }
}

/// Why a device was not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is no such namespace. There may be one later.
    #[error("{at}: there is no such namespace yet; it is opened as soon as there is")]
    NoNamespace {
        /// Which device.
        at: DeviceLocation,
    },
    /// There is a file of the name of the namespace, and no namespace is bound to it, as far as this process can see.
    #[error(
        "{at}: no namespace is bound to the file of its name: it was made in another mount namespace, and the switch is in a \
         private one, which does not see it (unshare -m, or PrivateMounts=, PrivateTmp=, ProtectSystem= and the like in its \
         unit): start the switch in the host's mount namespace; or it is being made right now, and is opened then"
    )]
    Unbound {
        /// Which device.
        at: DeviceLocation,
    },
    /// There is no such device, and others make it. There may be one later.
    #[error("{at}: there is no such device yet; it is opened as soon as somebody makes it")]
    NoDevice {
        /// Which device.
        at: DeviceLocation,
    },
    /// Others own it and have set it down, or nobody is at its other end. It may be up later.
    #[error("{at}: {reason}, and it is opened then")]
    Down {
        /// Which device.
        at: DeviceLocation,
        /// What of it is down.
        reason: String,
    },
    /// Somebody holds it. It may be free later.
    #[error("{at} is held by another process, or by another port; end that one or choose another device")]
    Busy {
        /// Which device.
        at: DeviceLocation,
    },
    /// It can never be opened like this.
    #[error("{at}: {reason}")]
    Refused {
        /// Which device.
        at: DeviceLocation,
        /// Why, and what to do about it.
        reason: String,
    },
    /// The operating system failed us.
    #[error("{at}: {attempt} failed: {source}")]
    Io {
        /// Which device.
        at: DeviceLocation,
        /// What was attempted.
        attempt: &'static str,
        /// How it failed.
        source: io::Error,
    },
}

/// Tries to open a device, once. May wait for the kernel, and must not be called from a runtime's thread
/// that has other things to do. Without `may_create`, a netdev that is not there is not made. `pool` is
/// that of the workers.
pub fn open(settings: &Settings, may_create: bool, pool: &'static Pool) -> Result<Opened, OpenError> {
    match settings {
        Settings::Tap(tap) => tap::open(tap, may_create),
        Settings::Xdp(xdp) => xdp::open(xdp, pool),
        Settings::Packet(packet) => packet::open(packet),
    }
}

/// What [`open`] would come to now, as far as can be told without touching anything: why it would
/// fail, or remarks on what would not be quite as asked for. `adds_tags`: the switch adds the tag of a
/// VLAN to frames that it sends by it. May wait as well.
pub fn preflight(settings: &Settings, adds_tags: bool) -> Result<Vec<String>, OpenError> {
    let mut warnings = match settings {
        // It would be made as it is wanted.
        Settings::Tap(tap) => return tap::preflight(tap),
        Settings::Xdp(xdp) => xdp::preflight(xdp),
        Settings::Packet(packet) => packet::preflight(packet, adds_tags),
    }?;
    let now = properties::read(settings).ok().flatten();
    warnings.extend(now.map(|now| properties::warnings(settings, &now)).unwrap_or_default());
    Ok(warnings)
}

/// Deletes the netdevs that [`open`] made for ports, all in the namespace `netns`; their queues may be
/// open still, and should be: closing them first costs more. Says of each whether there was one. May
/// wait as well, and for one as long as for many.
pub fn remove(netns: &Netns, settings: &[Settings]) -> Vec<Result<bool, OpenError>> {
    let taps = settings.iter().filter_map(|settings| match settings {
        Settings::Tap(tap) => Some(tap),
        Settings::Xdp(_) | Settings::Packet(_) => None,
    });
    let mut removed = tap::remove(netns, &taps.collect::<Vec<_>>()).into_iter();
    let mut of = |settings: &Settings| if settings.is_foreign() { None } else { removed.next() };
    settings.iter().map(|settings| of(settings).unwrap_or(Ok(false))).collect()
}

/// What became of something that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It has been removed.
    Done,
    /// It was not there, or is not ours.
    Gone,
    /// Somebody uses it, and keeps it.
    InUse,
}

/// Deletes the netdev at `at` if an earlier life of the switch made it for this port and nobody uses
/// it. May wait as well.
pub fn remove_left(location: &DeviceLocation, port: &str) -> Result<Removal, OpenError> {
    tap::remove_left(location, port)
}

/// Gives the netdev of an open device the address and MTU that `settings` ask for, unless it is one
/// that others own. May wait as well.
pub fn adjust(settings: &Settings) -> Result<(), OpenError> {
    match settings {
        Settings::Tap(tap) => tap::adjust(tap),
        // Others own it.
        Settings::Xdp(_) | Settings::Packet(_) => Ok(()),
    }
}

/// One queue pair, polled by one worker. No call waits, and none allocates once warm.
pub trait Device: Send {
    /// Appends what has arrived to `batch` until the batch is full or nothing is left. Frames may
    /// own slots taken from `cache`, or lie in memory that is lent until [`Device::release`].
    ///
    /// An error means that the device is gone for good; it will not be asked again.
    fn receive(&mut self, batch: &mut Batch, magazine: &mut Magazine) -> io::Result<()>;

    /// Sends what waits in `tx`, in order, in as few calls as it can. The lane is empty
    /// afterwards, and the answer says what became of its frames. `batch` is the burst from which
    /// frames are borrowed.
    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats;

    /// The burst that this device was last asked for is over: memory that it lent is its own again.
    fn release(&mut self) {}

    /// Becomes readable when there is something to receive. `None`: only asking tells, so that a
    /// worker which holds this device never sleeps.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether asking it in vain costs next to nothing, and no system call: then a worker asks it at each
    /// breath, however quiet it is.
    fn is_cheap_to_poll(&self) -> bool {
        false
    }

    /// How many frames it hands over at once, at most. Fewer than a batch holds where each costs a system call: a
    /// port that sends as fast as it can would keep the others of its worker waiting.
    fn max_burst(&self) -> usize {
        BURST
    }

    /// How long it pays to leave it alone where frames come fast one after the other, so that several can be sent with
    /// one call. Not at all for most, which would only hold them up.
    fn moderation_time(&self) -> Duration {
        Duration::ZERO
    }

    /// What frames it can send.
    fn caps(&self) -> DeviceCaps;

    /// Whether the netdev may lead to a wire and the kernel does not pad short frames. The worker pads those of an uplink to
    /// the Ethernet minimum then.
    fn needs_padding(&self) -> bool {
        false
    }

    /// The offload work that it takes at present: all, or none, unless it follows a netdev.
    fn offload_set(&self) -> OffloadSet {
        if self.caps().offloads { OffloadSet::ALL } else { OffloadSet::NONE }
    }

    /// A second descriptor that is watched like the first one. Most have none.
    fn second_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether the kernel may touch the descriptor without making it readable, and [`Device::inspect`] is to be called
    /// then. Its descriptors are watched edge-triggered for that.
    fn needs_inspection(&self) -> bool {
        false
    }

    /// The kernel has touched the descriptor, which is not readable. Whether there is something for
    /// [`Device::receive`] to do. Called for devices that need inspection only.
    fn inspect(&mut self) -> bool {
        false
    }

    /// Frames that came in and were lost before they could be received, since this was last asked, as
    /// far as the device knows. Most have a netdev that counts them, and know of none.
    fn rx_missed(&mut self) -> u64 {
        0
    }

    /// Frames that count as sent and were lost all the same, since this was last asked: they waited in a queue of
    /// the device, which then dropped them or was closed. Most have a netdev that counts them, and know of none.
    fn tx_lost(&mut self) -> u64 {
        0
    }

    /// The worker that polls it is about to sleep, until a descriptor tells of something. Whether there is work of
    /// which none will tell, such as frames that wait to be sent: then the worker sleeps for a moment only.
    fn prepare_sleep(&mut self, _cache: &mut Magazine) -> bool {
        false
    }

    /// Its queue is about to be closed, or given to another worker: what waits to be sent has a last chance now.
    fn prepare_close(&mut self, _cache: &mut Magazine) {}

    /// Has frames to groups of this kind dropped where they arrive, from now until then and no longer; a moment
    /// that is over ends it at once. No system call. Most cannot, and do not.
    fn xdp_drop(&mut self, _group: GroupClass, _until: MonoTime) {}

    /// What was dropped so since this was last asked. It has come in, and nobody has counted it.
    fn take_xdp_dropped(&mut self) -> XdpDropped {
        XdpDropped::default()
    }
}

/// What a device can do with the frames it is to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceCaps {
    /// It takes the offload header along: partial checksums and GSO packets pass, those of its
    /// [`OffloadSet`](Device::offload_set).
    pub offloads: bool,
}
