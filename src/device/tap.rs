//! Taps of which we hold the file: the other end is a netdev, for a namespace, a container or the
//! host itself.
//!
//! A frame costs one system call each way, and batching these calls gains little. What counts is
//! that 64 KiB super-frames pass whole, with their offload header in front (`IFF_VNET_HDR`). So a
//! burst is read into the receive buffers of the batch, and a frame that goes on to another tap is
//! written from there, header and all, in one piece.
//!
//! A netdev that we made is known by its alias, in this life and the next. One that somebody else
//! made is used as it is found: we take its flags, and leave alone whether it persists.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};

use super::{Device, DeviceCaps, DeviceLocation, OpenError, Opened, Removal};
use crate::frame::{Batch, FrameRef, Magazine, TxBatch, TxStats, TxStatus};
use crate::sys::link::{self, Found, Link, TapInfo, Wanted};
use crate::sys::netns::{self, Netns, within};
use crate::sys::tun::{self, Flags, NoFrame, Offloads, Queue, Unsent};
use crate::wire::{Mac, Offload, OffloadSet};

/// Queues of a tap, at most (MAX_TAP_QUEUES of the kernel).
const MAX_QUEUES: u16 = 256;

/// Pieces in which a frame is written, at most: its header, and 64 KiB in slots.
const MAX_IOVECS: usize = 20;

/// Frames that are read at once: some 25 µs.
const MAX_BURST: usize = 32;

/// Frames from a guest that wait in each queue of a netdev that we made, while their worker is kept from the processor
/// or is busy with others. The kernel's own 1000 are 10 ms of 100 000 frames/s, and hosts do stand still that long.
const QUEUE: u32 = 4096;

/// The kernel's own limit for the segments of a GSO packet (`GSO_MAX_SEGS`).
const GSO_MAX_SEGS: u32 = 65_535;

/// What the aliases of the netdevs that we made begin with; the port follows.
pub(super) const OURS: &str = "vifswitch:";

/// How a tap shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The name of the netdev.
    pub name: String,
    /// The namespace of the netdev.
    pub netns: Netns,
    /// How many queues to open. With one, and no device there yet, nobody else can ever hold a
    /// second.
    pub queues: u16,
    /// Whether open checksums and super-frames pass, in both directions.
    pub offloads: bool,
    /// Whether a netdev that we made outlives us.
    pub persist: bool,
    /// The MAC address of the netdev.
    pub mac: Mac,
    /// The MTU of the netdev.
    pub mtu: u16,
    /// The port it is for; the netdev bears it as its alias.
    pub owner: String,
}

impl Settings {
    fn at(&self) -> DeviceLocation {
        DeviceLocation { device: self.name.clone(), netns: self.netns.clone() }
    }

    /// The alias by which a netdev that we made is known.
    fn alias(&self) -> String {
        alias(&self.owner)
    }

    /// Whether a netdev is one that we made for this port when it was to have several queues, or a
    /// single one, and is to be otherwise now. It cannot be changed.
    fn has_queue_mode_mismatch(&self, link: &Link) -> bool {
        link.alias == self.alias() && link.tap.is_some_and(|tap| tap.multi_queue != (self.queues > 1))
    }

    fn refused(&self, reason: impl Into<String>) -> OpenError {
        OpenError::Refused { at: self.at(), reason: reason.into() }
    }

    fn in_use(&self) -> impl FnOnce(io::Error) -> OpenError {
        let location = self.at();
        move |source| match source.kind() {
            _ if netns::is_unbound(&source) => OpenError::Unbound { at: location },
            io::ErrorKind::NotFound => OpenError::NoNamespace { at: location },
            _ => OpenError::Io { at: location, attempt: "entering the namespace", source },
        }
    }

    fn failed(&self, attempt: &'static str) -> impl FnOnce(io::Error) -> OpenError {
        let location = self.at();
        move |source| OpenError::Io { at: location, attempt, source }
    }

    /// What can be said to be wrong without asking the kernel.
    fn check(&self) -> Result<(), OpenError> {
        if !tun::is_name(&self.name) {
            return Err(
                self.refused("this cannot be the name of a device; use 1 to 15 bytes without spaces, '/', ':' and '%'")
            );
        }
        if self.queues == 0 || self.queues > MAX_QUEUES {
            let queues = self.queues;
            return Err(self.refused(format!("{queues} queues cannot be had; ask for 1 to {MAX_QUEUES}")));
        }
        if !self.mac.is_station() {
            return Err(self.refused(format!("{} cannot be the address of a device", self.mac)));
        }
        Ok(())
    }
}

/// The alias of a netdev that we made for this port.
fn alias(port: &str) -> String {
    format!("{OURS}{port}")
}

/// Opens the queues of a tap, and makes its netdev if there is none and we may.
pub fn open(settings: &Settings, may_create: bool) -> Result<Opened, OpenError> {
    settings.check()?;
    let opened = within(&settings.netns, || attempt(settings, may_create)).map_err(settings.in_use())??;
    opened.ok_or_else(|| OpenError::Busy { at: settings.at() })
}

/// What [`open`] would come to now: why it would fail, or remarks. Nothing is touched.
pub fn preflight(settings: &Settings) -> Result<Vec<String>, OpenError> {
    settings.check()?;
    let found = within(&settings.netns, || link::find(&settings.name)).map_err(settings.in_use())?;
    let Some(link) = found.map_err(settings.failed("looking for it"))? else { return Ok(Vec::new()) };
    let mut notes = Vec::new();
    let is_outgrown = settings.has_queue_mode_mismatch(&link);
    if !is_outgrown {
        follow(settings, &link, &mut notes)?;
    }
    if link.tap.is_some_and(|tap| is_in_use(&link, tap)) {
        return Err(OpenError::Busy { at: settings.at() });
    }
    if is_outgrown {
        notes.push(format!("{} is there with another kind of queues, and would be made anew", settings.at()));
    }
    if let Some(other) = link.alias.strip_prefix(OURS).filter(|&owner| owner != settings.owner) {
        notes.push(format!("{} is there and was made for port {other:?}; it would be used as it is", settings.at()));
    } else if link.alias != settings.alias() {
        notes.push(format!("{} is there and was made by others; it would be used as it is", settings.at()));
    }
    Ok(notes)
}

/// Gives the netdev of an open tap its address and MTU. Its queues stay as they are.
pub fn adjust(settings: &Settings) -> Result<(), OpenError> {
    let wanted = Wanted { mac: Some(settings.mac), mtu: Some(settings.mtu.into()), ..Wanted::default() };
    change(settings, None, &wanted).map_err(settings.failed("setting its MAC address and MTU"))
}

/// The same for one that somebody else has changed, which may have been set down and renamed as well. It is told by its
/// `index`.
pub fn restore(settings: &Settings, index: u32) -> Result<(), OpenError> {
    let wanted = Wanted { mac: Some(settings.mac), mtu: Some(settings.mtu.into()), up: true, ..Wanted::default() };
    change(settings, Some(index), &wanted).map_err(settings.failed("putting its MAC address, MTU and link state right"))
}

fn change(settings: &Settings, index: Option<u32>, wanted: &Wanted) -> io::Result<()> {
    let changed = within(&settings.netns, || match link::find_each(&[(&settings.name, index)]).pop() {
        Some(Ok(Some(Found { link, .. }))) if link.tap.is_some() => link::change(&link, wanted).map(drop),
        Some(Err(e)) => Err(e),
        // It went meanwhile: whoever looks after it finds that out, and opens it anew as it is wanted.
        _ => Ok(()),
    });
    match changed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        changed => changed.and_then(|changed| changed),
    }
}

/// Deletes the netdevs of taps in one namespace, of those that we made for these ports. Says of each
/// whether it was one.
pub fn remove(netns: &Netns, taps: &[&Settings]) -> Vec<Result<bool, OpenError>> {
    let removed = within(netns, || {
        let find = |tap: &&Settings| Ok(link::find(&tap.name)?.filter(|link| link.alias == tap.alias()));
        let found: Vec<io::Result<Option<Link>>> = taps.iter().map(find).collect();
        let ours: Vec<u32> = found.iter().flatten().flatten().map(|link| link.index).collect();
        let deleted = ours.len() > 1 && link::delete_many(&ours).is_ok();
        let delete = |found: io::Result<Option<Link>>| match found? {
            Some(link) if !deleted => link::delete(link.index).map(|()| true),
            found => Ok(found.is_some()),
        };
        found.into_iter().map(delete).collect::<Vec<_>>()
    });
    match removed {
        Ok(removed) => {
            let message = |(removed, tap): (io::Result<_>, &&Settings)| removed.map_err(tap.failed("deleting it"));
            removed.into_iter().zip(taps).map(message).collect()
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => taps.iter().map(|_| Ok(false)).collect(), // all went with it
        Err(e) => {
            let message = |tap: &&Settings| Err(tap.in_use()(io::Error::new(e.kind(), e.to_string())));
            taps.iter().map(message).collect()
        }
    }
}

/// Deletes the netdev of a persistent tap that was made for `port` in an earlier life, unless somebody
/// holds it.
pub fn remove_left(location: &DeviceLocation, port: &str) -> Result<Removal, OpenError> {
    let removed = within(&location.netns, || {
        let Some(link) = link::find(&location.device)?.filter(|link| link.alias == alias(port)) else {
            return Ok(Removal::Gone);
        };
        match link.tap {
            Some(tap) if !is_in_use(&link, tap) => link::delete(link.index).map(|()| Removal::Done),
            _ => Ok(Removal::InUse),
        }
    });
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Removal::Gone), // it went with its namespace
        removed => removed.and_then(|removed| removed).map_err(|source| OpenError::Io {
            at: location.clone(),
            attempt: "deleting it",
            source,
        }),
    }
}

/// Whether somebody holds a tap. Of one that has a single queue only its carrier tells, while it is up.
pub(super) fn is_in_use(link: &Link, tap: TapInfo) -> bool {
    tap.queues > 0 || (link.up && link.carrier)
}

/// One attempt, in the namespace. `None`: somebody holds it, or it changed under our hands.
fn attempt(settings: &Settings, may_create: bool) -> Result<Option<Opened>, OpenError> {
    let mut found = link::find(&settings.name).map_err(settings.failed("looking for it"))?;
    let mut warnings = Vec::new();
    if let Some(link) = found.take_if(|link| may_create && settings.has_queue_mode_mismatch(link)) {
        // Whoever was to do that was killed before.
        if link.tap.is_some_and(|tap| is_in_use(&link, tap)) {
            return Ok(None);
        }
        link::delete(link.index).map_err(settings.failed("deleting it, to make it anew"))?;
    }
    let multi_queue = match &found {
        None if !may_create => return Err(OpenError::NoDevice { at: settings.at() }),
        None => settings.queues > 1,
        Some(link) => follow(settings, link, &mut warnings)?.multi_queue,
    };
    // A second holder of a multi-queue device would get a share of its frames, and no error.
    if found.as_ref().and_then(|link| link.tap).is_some_and(|tap| tap.queues > 0) {
        return Ok(None);
    }
    let mut queues = Vec::new();
    for queue in 0..settings.queues {
        let exclusive = found.is_none() && queue == 0;
        match Queue::open(&settings.name, Flags { vnet_header: settings.offloads, multi_queue, exclusive }) {
            Ok(queue) => queues.push(queue),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => return Ok(None),
            Err(e) => return Err(settings.failed("opening a queue")(e)),
        }
    }
    // Looking and opening are two steps. Others may have come in between: to open queues as well,
    // or to delete what we found, so that the opening made a new one. Let go then, and look again.
    let opened = link::find(&settings.name).map_err(settings.failed("looking at it"))?;
    let Some(link) = opened else { return Ok(None) };
    let alone = link.tap.is_some_and(|tap| !tap.multi_queue || tap.queues == u32::from(settings.queues));
    if !alone || found.as_ref().is_some_and(|found| found.index != link.index) {
        return Ok(None);
    }
    let created = found.is_none();
    let made = created || link.alias == settings.alias();
    let takes = configure(settings, &link, &queues[0], made, created, &mut warnings)?;
    let tap = |queue| Box::new(Tap { queue, header: settings.offloads, takes, rx_missed: 0 }) as Box<dyn Device>;
    let queues = queues.into_iter().map(tap).collect();
    Ok(Some(Opened { queues, made, warnings, mode: None, egress: None, may_lose_tags: false, observed: None }))
}

/// What to go by when the device is there already.
fn follow(settings: &Settings, link: &Link, notes: &mut Vec<String>) -> Result<TapInfo, OpenError> {
    let Some(tap) = link.tap else {
        return Err(settings.refused("there is a device of this name, but it is no tap; choose another name or kind"));
    };
    match (tap.multi_queue, settings.queues) {
        (false, 2..) => Err(settings.refused(format!(
            "it has a single queue and {} are asked for; ask for one, or make it anew with multi_queue",
            settings.queues
        ))),
        (true, 1) => {
            notes.push(format!("{} is a multi-queue device and is opened as one, with a single queue", settings.at()));
            Ok(tap)
        }
        _ => Ok(tap),
    }
}

/// Gives the device its header and the netdev what the port asks for. What the device takes of offload work.
fn configure(
    settings: &Settings,
    link: &Link,
    queue: &Queue,
    made: bool,
    created: bool,
    notes: &mut Vec<String>,
) -> Result<OffloadSet, OpenError> {
    let mut takes = OffloadSet::NONE;
    if settings.offloads {
        let taken = queue.set_offloads().map_err(settings.failed("setting its offloads"))?;
        if taken == Offloads::TcpOnly {
            notes.push(format!("{}: this kernel passes no UDP super-frames through a tap", settings.at()));
        }
        takes = offload_set(taken);
    } else {
        queue.clear_offloads().map_err(settings.failed("clearing its offloads"))?;
    }
    let wanted = Wanted {
        mac: Some(settings.mac),
        mtu: Some(settings.mtu.into()),
        alias: created.then(|| settings.alias()),
        // An earlier version of the switch lowered it.
        gso_max_segs: settings.offloads.then_some(GSO_MAX_SEGS),
        queue_len: created.then_some(QUEUE),
        up: true,
    };
    let changed = link::change(link, &wanted).map_err(settings.failed("setting its MAC address, MTU and state"))?;
    if !made && !changed.is_empty() {
        notes.push(format!(
            "{} was not made for this port, and was changed to be as asked: {}",
            settings.at(),
            changed.join(", ")
        ));
    }
    // Last, so that a device which is not complete yet goes with us.
    if made && link.tap.is_some_and(|tap| tap.persist != settings.persist) {
        queue.set_persist(settings.persist).map_err(settings.failed("setting whether it persists"))?;
    }
    Ok(takes)
}

/// What is written to a tap goes to the stack behind it as if a driver had received it, which takes GSO packets of any
/// size and number of segments. Tunnels it would take for what they carry.
fn offload_set(offloads: Offloads) -> OffloadSet {
    let tcp = OffloadSet::CSUM | OffloadSet::TSO4 | OffloadSet::TSO6 | OffloadSet::ECN;
    let kinds = match offloads {
        Offloads::All => tcp | OffloadSet::USO,
        Offloads::TcpOnly => tcp,
    };
    OffloadSet::new(kinds | OffloadSet::STACKED_TAGS | OffloadSet::ANY_NETWORK, u32::MAX, u32::MAX)
}

/// One queue of a tap.
#[derive(Debug)]
struct Tap {
    queue: Queue,
    /// Whether an offload header stands in front of each frame.
    header: bool,
    /// What it takes of offload work.
    takes: OffloadSet,
    /// Frames that the kernel could not hand over, since it was last asked.
    rx_missed: u64,
}

impl Tap {
    #[inline]
    fn send(&self, frame: &FrameRef<'_>) -> Result<(), Unsent> {
        match (self.header, frame.with_header) {
            (true, Some(all)) if frame.is_contiguous() => self.queue.write(all),
            // Nobody behind a plain tap could tell that this frame is not finished.
            (false, _) if frame.frame.offload().needs_offload() => Err(Unsent::Refused),
            (false, _) if frame.is_contiguous() => self.queue.write(frame.head),
            _ => self.send_pieces(frame),
        }
    }

    fn send_pieces(&self, frame: &FrameRef<'_>) -> Result<(), Unsent> {
        let header = frame.frame.offload().write();
        let header: &[u8] = if self.header { &header } else { &[] };
        let mut iovecs = [IoSlice::new(&[]); MAX_IOVECS];
        let mut used = 0;
        for part in [header, frame.head].into_iter().chain(frame.tail()) {
            *iovecs.get_mut(used).ok_or(Unsent::Refused)? = IoSlice::new(part);
            used += 1;
        }
        self.queue.write_pieces(&iovecs[..used])
    }
}

impl Device for Tap {
    fn receive(&mut self, batch: &mut Batch, _: &mut Magazine) -> io::Result<()> {
        // Also of frames that are lost, no more is seen to in one go.
        for _ in 0..MAX_BURST {
            if batch.is_full() {
                break;
            }
            match batch.receive(self.header, |room| self.queue.read(room)) {
                Ok(()) => {}
                Err(NoFrame::Empty) => break,
                Err(NoFrame::Lost) => self.rx_missed += 1,
                Err(NoFrame::Gone(e)) => return Err(e),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        let mut was_full = false;
        tx.send_each(batch, magazine, |frame| {
            let status = match self.send(&frame) {
                Ok(()) => TxStatus::Sent,
                // Twice in a row it is the device, and not this frame.
                Err(Unsent::Full) if was_full => return TxStatus::Full,
                Err(Unsent::Full) => TxStatus::NoRoom,
                Err(Unsent::NoMemory) => TxStatus::NoBuffer,
                Err(Unsent::Down) => TxStatus::LinkDown,
                Err(Unsent::Refused) => TxStatus::Refused,
            };
            was_full = status == TxStatus::NoRoom;
            status
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.as_fd())
    }

    fn max_burst(&self) -> usize {
        MAX_BURST
    }

    fn caps(&self) -> DeviceCaps {
        DeviceCaps { offloads: self.header }
    }

    /// The host may forward what its netdev receives to a NIC.
    fn needs_padding(&self) -> bool {
        true
    }

    fn offload_set(&self) -> OffloadSet {
        self.takes
    }

    fn rx_missed(&mut self) -> u64 {
        std::mem::take(&mut self.rx_missed)
    }
}

const _: () = assert!(Offload::LEN == 12, "what `set_offloads` tells the kernel");

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            name: "vift-none".into(),
            netns: Netns::Named("vift-nowhere".into()),
            queues: 1,
            offloads: true,
            persist: false,
            mac: Mac::from_bits(0x0200_0000_0001),
            mtu: 1500,
            owner: "port-1".into(),
        }
    }

    #[test]
    fn what_can_never_be_is_refused_before_anything_is_asked() {
        let cases = [
            Settings { name: "sixteen-bytes-16".into(), ..settings() },
            Settings { queues: 0, ..settings() },
            Settings { queues: 257, ..settings() },
            Settings { mac: Mac::BROADCAST, ..settings() },
        ];
        for case in cases {
            let refused = open(&case, true).unwrap_err();
            assert!(matches!(refused, OpenError::Refused { .. }), "{refused}");
            assert!(refused.to_string().contains(&case.name), "{refused}");
        }
    }

    #[test]
    fn a_missing_namespace_is_waited_for_and_has_nothing_to_remove() {
        let missing = open(&settings(), true).unwrap_err();
        assert!(matches!(missing, OpenError::NoNamespace { .. }), "{missing}");
        assert!(missing.to_string().contains("vift-nowhere"));
        let removed = remove(&settings().netns, &[&settings()]);
        assert!(matches!(*removed, [Ok(false)]), "{removed:?}");
    }
}
