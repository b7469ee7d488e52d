//! Device kinds: open netdevs, receive and transmit frames.
//!
//! A [`Device`] is one queue pair. Control opens and closes it, and may block and allocate for that. Exactly one worker
//! polls it.
//!
//! [`open`] dispatches by kind. A new kind is a folder here (`mod.rs` opens the device, `queue.rs` receives and
//! transmits), a variant of [`Settings`] and an arm in [`open`].
//! `tap` opens /dev/net/tun; `packet` and `xdp` open sockets on an existing netdev; `loopback` connects two ends within
//! the process, for tests and benches.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::frame::{BURST, Batch, Magazine, Pool, TxBatch, TxStats};
use crate::sys::netns::Netns;
use crate::time::MonoTime;
use crate::wire::OffloadSet;

pub mod doctor;
mod early_drop;
mod egress;
mod error;
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
pub use error::{DeviceLocation, OpenError};
pub use observed::Observed;

/// Maximum bytes of a GSO packet that a receive buffer takes (`GSO_LEGACY_MAX_SIZE` of the kernel), without its
/// Ethernet header.
const MAX_GSO_SIZE: u32 = 65_536;

/// Settings of a device to open.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settings {
    /// A tap; the switch creates the netdev and holds its file descriptors.
    Tap(tap::Settings),
    /// AF_XDP sockets on an existing netdev.
    Xdp(xdp::Settings),
    /// AF_PACKET sockets on an existing netdev.
    Packet(packet::Settings),
}

impl Settings {
    /// Name and network namespace of a device.
    pub fn at(&self) -> DeviceLocation {
        DeviceLocation { device: self.name().to_owned(), netns: self.netns().clone() }
    }

    /// The network namespace of the device.
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

    /// MTU of the network in bytes; of an uplink, the largest of its networks.
    pub fn mtu(&self) -> u16 {
        match self {
            Settings::Tap(tap) => tap.mtu,
            Settings::Xdp(xdp) => xdp.mtu,
            Settings::Packet(packet) => packet.mtu,
        }
    }

    /// True for an XDP device whose frames are assigned to ports and networks by VLAN tag.
    pub fn is_vlan_demux(&self) -> bool {
        matches!(self, Settings::Xdp(xdp) if xdp.vlan_demux)
    }

    /// True if the switch does not own the netdev: it neither creates, configures nor deletes it.
    pub fn is_foreign(&self) -> bool {
        !matches!(self, Settings::Tap(_))
    }

    /// Estimated number of file descriptors that an open device holds.
    pub fn files(&self) -> u64 {
        match self {
            Settings::Tap(tap) => tap.queues.into(),
            // One socket per queue; the program, its two maps, its link and the socket that reads the netdev's flags.
            Settings::Xdp(xdp) => u64::from(xdp.queues.unwrap_or(1)) + 5,
            // Receive socket, spare receive socket, transmit socket.
            Settings::Packet(_) => 3,
        }
    }
}

/// Result of [`open`].
pub struct Opened {
    /// Queue pairs of the device.
    pub queues: Vec<Box<dyn Device>>,
    /// True if this or an earlier run of the switch created the netdev for this port.
    pub made: bool,
    /// Warnings for the operator: settings that could not be met exactly.
    pub warnings: Vec<String>,
    /// Mode in use; `None` for kinds with a single mode.
    pub mode: Option<String>,
    /// True if received frames may lack the VLAN tag that they were sent with.
    pub may_lose_tags: bool,
    /// Observations about the device's frames; `None` for kinds that make none.
    pub observed: Option<Observed>,
    /// Offloads that the netdev accepts for transmit; `None` where they cannot change while the device is open.
    pub egress: Option<Egress>,
    /// What of the device outlives the process.
    pub keep: Keep,
}

/// Descriptors of a device that outlive the process, because the service manager keeps them.
#[derive(Debug, Default)]
pub struct KeptDescriptors {
    /// Those of an earlier process.
    pub inherited: Vec<OwnedFd>,
    /// Whether those of a newly opened device are to be kept.
    pub is_wanted: bool,
}

/// What of an opened device the service manager keeps.
#[derive(Debug, Default)]
pub enum Keep {
    /// Nothing.
    #[default]
    Nothing,
    /// The inherited descriptors, which the device uses.
    Same,
    /// These descriptors, instead of any before.
    New(Vec<OwnedFd>),
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queues = self.queues.len();
        f.debug_struct("Opened")
            .field("queues", &queues)
            .field("made", &self.made)
            .field("warnings", &self.warnings)
            .finish()
    }
}

/// Opens a device; does not retry. Blocks, so do not call it from an async runtime's thread.
/// A missing tap netdev is created only if `may_create`. `pool` is the workers' frame pool.
pub fn open(settings: &Settings, may_create: bool, pool: &'static Pool) -> Result<Opened, OpenError> {
    open_kept(settings, may_create, pool, KeptDescriptors::default())
}

/// The same, with the descriptors of an earlier process where they are of this device with these settings. The others are
/// closed. Kinds of which nothing is kept ignore them.
pub fn open_kept(
    settings: &Settings,
    may_create: bool,
    pool: &'static Pool,
    kept: KeptDescriptors,
) -> Result<Opened, OpenError> {
    match settings {
        Settings::Tap(tap) => tap::open_kept(tap, may_create, kept),
        Settings::Xdp(xdp) => xdp::open(xdp, pool),
        Settings::Packet(packet) => packet::open_kept(packet, kept),
    }
}

/// Predicts the result of [`open`] without changing anything: its error, or its warnings. Best effort.
/// `adds_tags`: the switch adds a VLAN tag to frames that it transmits by the device. Blocks.
pub fn preflight(settings: &Settings, adds_tags: bool) -> Result<Vec<String>, OpenError> {
    let mut warnings = match settings {
        Settings::Tap(tap) => tap::preflight(tap),
        Settings::Xdp(xdp) => xdp::preflight(xdp),
        Settings::Packet(packet) => packet::preflight(packet, adds_tags),
    }?;
    let Ok(Some(now)) = properties::read(settings) else { return Ok(warnings) };
    match settings {
        // `open` gives the netdev the wanted properties.
        Settings::Tap(_) => warnings.extend(properties::tunnel_warnings(settings, &now)),
        Settings::Xdp(_) | Settings::Packet(_) => warnings.extend(properties::warnings(settings, false, &now)),
    }
    Ok(warnings)
}

/// Deletes the netdevs that [`open`] created in the namespace `netns`. Returns for each whether it
/// existed. Keep their queues open: closing them first costs more. Blocks, about as long for many
/// netdevs as for one.
pub fn remove(netns: &Netns, settings: &[Settings]) -> Vec<Result<bool, OpenError>> {
    let taps = settings.iter().filter_map(|settings| match settings {
        Settings::Tap(tap) => Some(tap),
        Settings::Xdp(_) | Settings::Packet(_) => None,
    });
    let mut removed = tap::remove(netns, &taps.collect::<Vec<_>>()).into_iter();
    let mut of = |settings: &Settings| if settings.is_foreign() { None } else { removed.next() };
    settings.iter().map(|settings| of(settings).unwrap_or(Ok(false))).collect()
}

/// Result of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Removed.
    Done,
    /// Does not exist, or does not belong to the switch.
    Gone,
    /// In use; not removed.
    InUse,
}

/// Deletes the netdev at `location` if an earlier run of the switch created it for `port` and it is
/// not in use, except by the descriptors `inherited` from that run. Blocks.
pub fn remove_left(location: &DeviceLocation, port: &str, inherited: Vec<OwnedFd>) -> Result<Removal, OpenError> {
    tap::remove_left(location, port, inherited)
}

/// Sets MAC address and MTU of an open device's netdev from `settings`. Netdevs that the switch does not
/// own remain unchanged. Blocks.
pub fn adjust(settings: &Settings) -> Result<(), OpenError> {
    match settings {
        Settings::Tap(tap) => tap::adjust(tap),
        // The switch does not own the netdev.
        Settings::Xdp(_) | Settings::Packet(_) => Ok(()),
    }
}

/// One queue pair, polled by one worker. No method blocks; none allocates once warm.
pub trait Device: Send {
    /// Receives frames into `batch` until the batch is full or the queue is empty. Frames own slots from
    /// `magazine`, or borrow device memory until [`Device::release`].
    ///
    /// An error is permanent: the worker polls the device no more.
    fn receive(&mut self, batch: &mut Batch, magazine: &mut Magazine) -> io::Result<()>;

    /// Transmits the frames of `tx` in order, with as few system calls as possible. `tx` is empty
    /// afterwards; the result counts frames sent and dropped. `batch` is the burst that frames are
    /// borrowed from.
    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats;

    /// Ends the last received burst: the device may reuse the memory that its frames borrowed.
    fn release(&mut self) {}

    /// Descriptor that is readable when frames wait. `None`: the device must be polled, so its worker
    /// never sleeps.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// True if polling an empty queue costs no system call. The worker then polls it in every iteration,
    /// even when idle.
    fn is_cheap_to_poll(&self) -> bool {
        false
    }

    /// Maximum frames per [`Device::receive`]. Less than a batch where each frame costs a system call: a
    /// port at full rate would delay the worker's other ports.
    fn max_burst(&self) -> usize {
        BURST
    }

    /// Receive moderation: poll interval under load that lets one call transmit several frames. Zero where
    /// waiting only adds latency.
    fn moderation_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Transmit capabilities.
    fn caps(&self) -> DeviceCaps;

    /// True if the netdev may lead to a wire and the kernel does not pad short frames. The worker then
    /// pads frames to an uplink to the Ethernet minimum.
    fn needs_padding(&self) -> bool {
        false
    }

    /// Offloads accepted for transmit now. All or none, unless they follow the netdev's features.
    fn offload_set(&self) -> OffloadSet {
        if self.caps().offloads { OffloadSet::ALL } else { OffloadSet::NONE }
    }

    /// Second descriptor to watch like [`Device::fd`]; most kinds have none.
    fn second_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// True if the kernel may wake the descriptor without making it readable; [`Device::inspect`] handles that.
    /// The worker watches its descriptors edge-triggered.
    fn needs_inspection(&self) -> bool {
        false
    }

    /// Handles a wake-up of a descriptor that is not readable. Returns true if [`Device::receive`] has work.
    /// Called only if [`Device::needs_inspection`].
    fn inspect(&mut self) -> bool {
        false
    }

    /// The errno with which the last receive ended, if it is neither permanent nor known to be transient.
    fn rx_error(&self) -> Option<i32> {
        None
    }

    /// Reports to the operator that receives fail, with the errno, or fail no longer.
    fn report_rx_error(&self, _errno: Option<i32>) {}

    /// Frames lost before they could be received, since the last call. Zero for most kinds: the netdev
    /// counts them.
    fn rx_missed(&mut self) -> u64 {
        0
    }

    /// Frames counted as sent but lost in a queue of the device that dropped them or was closed, since the last
    /// call. Zero for most kinds: the netdev counts them.
    fn tx_lost(&mut self) -> u64 {
        0
    }

    /// Prepares for the worker's sleep in epoll. Returns true if work is left that no descriptor signals, such as
    /// frames to transmit; the worker then sleeps only briefly.
    fn prepare_sleep(&mut self, _cache: &mut Magazine) -> bool {
        false
    }

    /// Transmits pending frames before the queue is closed or moved to another worker.
    fn prepare_close(&mut self, _cache: &mut Magazine) {}

    /// Drops received frames to groups of this class in XDP until the given time; a past time stops it at once.
    /// No system call. Most kinds do nothing.
    fn xdp_drop(&mut self, _group: GroupClass, _until: MonoTime) {}

    /// Returns what [`Device::xdp_drop`] dropped since the last call. No other counter includes these frames.
    fn take_xdp_dropped(&mut self) -> XdpDropped {
        XdpDropped::default()
    }
}

/// Transmit capabilities of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceCaps {
    /// Transmits the `virtio_net_hdr`: partial checksums and GSO packets of its
    /// [`OffloadSet`](Device::offload_set) pass.
    pub offloads: bool,
}
