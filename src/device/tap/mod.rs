//! Tap device: the switch holds the file descriptors; the other side is a netdev of a namespace, a container or the
//! host.
//!
//! Each frame costs one system call per direction; batching the calls gains little. GSO packets of up to 64 KiB pass
//! whole, with their `virtio_net_hdr` in front (`IFF_VNET_HDR`). A burst is read into the receive buffers of the batch,
//! and a frame to another tap is written from there in one piece, header included.
//!
//! A netdev that the switch created has an alias, by which it is recognised after a restart. An existing netdev of
//! others is used as it is: with its flags, and without changing whether it persists.

mod queue;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use self::queue::Tap;
use super::{Device, DeviceLocation, Keep, KeptDescriptors, Observed, OpenError, Opened, Removal};
use crate::sys::link::{self, Found, Link, TapInfo, Wanted};
use crate::sys::netns::{Netns, within};
use crate::sys::tun::{self, Flags, Offloads, Queue};
use crate::wire::{Mac, OffloadSet};

/// Maximum number of queues (MAX_TAP_QUEUES of the kernel).
const MAX_QUEUES: u16 = 256;

/// Transmit queue length in frames, per queue, of a netdev that the switch creates. Frames from a guest wait there
/// while the worker is preempted or busy. The kernel's default of 1000 covers 10 ms at 100 000 frames/s, and hosts
/// stall longer.
const QUEUE: u32 = 4096;

/// The kernel's limit for segments of a GSO packet (`GSO_MAX_SEGS`).
const GSO_MAX_SEGS: u32 = 65_535;

/// Prefix of the aliases of netdevs that the switch created; the port id follows.
pub(super) const OURS: &str = "vifswitch:";

/// Settings of a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of the netdev.
    pub name: String,
    /// Network namespace of the netdev.
    pub netns: Netns,
    /// Number of queues. With one, a new netdev is created without IFF_MULTI_QUEUE, so that no other process can open a
    /// second queue.
    pub queues: u16,
    /// Pass partial checksums and GSO packets, both ways.
    pub offloads: bool,
    /// Keep a netdev that the switch created after the switch ends.
    pub persist: bool,
    /// MAC address of the netdev.
    pub mac: Mac,
    /// MTU of the netdev in bytes.
    pub mtu: u16,
    /// Port that uses the device; part of the netdev's alias.
    pub owner: String,
}

impl Settings {
    fn at(&self) -> DeviceLocation {
        DeviceLocation { device: self.name.clone(), netns: self.netns.clone() }
    }

    /// Alias of a netdev that the switch creates.
    fn alias(&self) -> String {
        alias(&self.owner)
    }

    /// Whether the switch created the netdev for this port with the other queue mode (single or multiple). The mode of
    /// an existing netdev cannot be changed.
    fn has_queue_mode_mismatch(&self, link: &Link) -> bool {
        link.alias == self.alias() && link.tap.is_some_and(|tap| tap.multi_queue != (self.queues > 1))
    }

    fn refused(&self, reason: impl Into<String>) -> OpenError {
        OpenError::Refused { at: self.at(), reason: reason.into() }
    }

    fn failed(&self, attempt: &'static str) -> impl FnOnce(io::Error) -> OpenError {
        let location = self.at();
        move |source| OpenError::Io { at: location, attempt, source }
    }

    /// Checks that need no system call.
    fn check(&self) -> Result<(), OpenError> {
        if !tun::is_name(&self.name) {
            return Err(self.refused("invalid device name; use 1 to 15 bytes without spaces, '/', ':' and '%'"));
        }
        if self.queues == 0 || self.queues > MAX_QUEUES {
            let queues = self.queues;
            return Err(self.refused(format!("queues = {queues} is invalid; use 1 to {MAX_QUEUES}")));
        }
        if !self.mac.is_station() {
            return Err(self.refused(format!("{} is no valid device address; use a unicast address", self.mac)));
        }
        Ok(())
    }
}

/// Alias of a netdev that the switch created for this port.
fn alias(port: &str) -> String {
    format!("{OURS}{port}")
}

/// Opens the queues of a tap. Creates the netdev if it does not exist and `may_create`.
pub fn open(settings: &Settings, may_create: bool) -> Result<Opened, OpenError> {
    open_kept(settings, may_create, KeptDescriptors::default())
}

/// The same, with the queues of an earlier process if they are all of this tap with these settings.
pub fn open_kept(settings: &Settings, may_create: bool, kept: KeptDescriptors) -> Result<Opened, OpenError> {
    settings.check()?;
    let KeptDescriptors { inherited, is_wanted } = kept;
    let opened = within(&settings.netns, || match reuse(settings, inherited)? {
        None => attempt(settings, may_create, is_wanted),
        reused => Ok(reused),
    });
    let opened = opened.map_err(|e| OpenError::entering(&settings.at(), e))??;
    opened.ok_or_else(|| OpenError::Busy { at: settings.at() })
}

/// Uses the queues of an earlier process, in the namespace. `None`: they are not those that opening the tap would yield,
/// and are closed.
fn reuse(settings: &Settings, inherited: Vec<OwnedFd>) -> Result<Option<Opened>, OpenError> {
    if inherited.len() != usize::from(settings.queues) {
        return Ok(None);
    }
    let found = link::find(&settings.name).map_err(settings.failed("finding the netdev"))?;
    let mut warnings = Vec::new();
    let Some(link) = found else { return Ok(None) };
    let Ok(tap) = follow(settings, &link, &mut warnings) else { return Ok(None) };
    // Others may have opened queues beside them.
    let alone = !tap.multi_queue || tap.queues == u32::from(settings.queues);
    if !alone || settings.has_queue_mode_mismatch(&link) {
        return Ok(None);
    }
    let flags = Flags { vnet_header: settings.offloads, multi_queue: tap.multi_queue, exclusive: false };
    let queues = inherited.into_iter().map(|fd| Queue::from_file(fd, &settings.name, flags));
    let queues: io::Result<Option<Vec<Queue>>> = queues.collect();
    // An error of the check: opening reports the cause, if it persists.
    let Ok(Some(queues)) = queues else { return Ok(None) };
    let made = link.alias == settings.alias();
    finish(settings, &link, queues, (made, false), Keep::Same, warnings).map(Some)
}

/// Predicts the result of [`open`]: its error, or its warnings. Changes nothing.
pub fn preflight(settings: &Settings) -> Result<Vec<String>, OpenError> {
    settings.check()?;
    let found =
        within(&settings.netns, || link::find(&settings.name)).map_err(|e| OpenError::entering(&settings.at(), e))?;
    let Some(link) = found.map_err(settings.failed("finding the netdev"))? else { return Ok(Vec::new()) };
    let mut warnings = Vec::new();
    let is_outgrown = settings.has_queue_mode_mismatch(&link);
    if !is_outgrown {
        follow(settings, &link, &mut warnings)?;
    }
    if link.tap.is_some_and(|tap| is_in_use(&link, tap)) {
        return Err(OpenError::Busy { at: settings.at() });
    }
    if is_outgrown {
        warnings.push(format!("{} exists with another queue mode and would be recreated", settings.at()));
    }
    if let Some(other) = link.alias.strip_prefix(OURS).filter(|&owner| owner != settings.owner) {
        warnings
            .push(format!("{} exists and was created for port {other:?}; it would be used unmodified", settings.at()));
    } else if link.alias != settings.alias() {
        warnings.push(format!("{} exists and was created by others; it would be used unmodified", settings.at()));
    }
    Ok(warnings)
}

/// Sets MAC address and MTU of an open tap's netdev. Its queues stay open.
pub fn adjust(settings: &Settings) -> Result<(), OpenError> {
    let wanted = Wanted { mac: Some(settings.mac), mtu: Some(settings.mtu.into()), ..Wanted::default() };
    change(settings, None, &wanted).map_err(settings.failed("setting its MAC address and MTU"))
}

/// Restores MAC address, MTU and link state of a netdev that someone else has changed, and possibly renamed: identified
/// by `index`.
pub fn restore(settings: &Settings, index: u32) -> Result<(), OpenError> {
    let wanted = Wanted { mac: Some(settings.mac), mtu: Some(settings.mtu.into()), up: true, ..Wanted::default() };
    change(settings, Some(index), &wanted).map_err(settings.failed("restoring its MAC address, MTU and link state"))
}

fn change(settings: &Settings, index: Option<u32>, wanted: &Wanted) -> io::Result<()> {
    let changed = within(&settings.netns, || match link::find_each(&[(&settings.name, index)]).pop() {
        Some(Ok(Some(Found { link, .. }))) if link.tap.is_some() => link::change(&link, wanted).map(drop),
        Some(Err(e)) => Err(e),
        // The netdev is gone; the watcher detects that and the device is reopened.
        _ => Ok(()),
    });
    match changed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        changed => changed.and_then(|changed| changed),
    }
}

/// Deletes the netdevs of taps in one namespace that the switch created for these ports. Returns for each whether it
/// existed.
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
        Err(e) if e.kind() == io::ErrorKind::NotFound => taps.iter().map(|_| Ok(false)).collect(), // deleted with the namespace
        Err(e) => {
            let message =
                |tap: &&Settings| Err(OpenError::entering(&tap.at(), io::Error::new(e.kind(), e.to_string())));
            taps.iter().map(message).collect()
        }
    }
}

/// Deletes the netdev of a persistent tap that an earlier run of the switch created for `port`, unless it is in use by
/// anybody but that run, whose queues are `inherited`.
pub fn remove_left(location: &DeviceLocation, port: &str, inherited: Vec<OwnedFd>) -> Result<Removal, OpenError> {
    let removed = within(&location.netns, || {
        let Some(link) = link::find(&location.device)?.filter(|link| link.alias == alias(port)) else {
            return Ok(Removal::Gone);
        };
        let Some(tap) = link.tap else { return Ok(Removal::InUse) };
        let flags = Flags { vnet_header: tap.vnet_header, multi_queue: tap.multi_queue, exclusive: false };
        let mut own = inherited.into_iter().map(|fd| Queue::from_file(fd, &location.device, flags));
        let is_own = own.any(|queue| queue.is_ok_and(|queue| queue.is_some()));
        if is_own || !is_in_use(&link, tap) {
            return link::delete(link.index).map(|()| Removal::Done);
        }
        Ok(Removal::InUse)
    });
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Removal::Gone), // deleted with the namespace
        removed => removed.and_then(|removed| removed).map_err(|source| OpenError::Io {
            at: location.clone(),
            attempt: "deleting it",
            source,
        }),
    }
}

/// Whether a process has opened the tap. Without multiple queues only the carrier shows that, and only while it is up.
pub(super) fn is_in_use(link: &Link, tap: TapInfo) -> bool {
    tap.queues > 0 || (link.up && link.carrier)
}

/// Creates the netdev, in the namespace, and opens its first queue. `None`: one of its name exists.
fn create(settings: &Settings) -> Result<Option<Queue>, OpenError> {
    let flags = Flags { vnet_header: settings.offloads, multi_queue: settings.queues > 1, exclusive: true };
    match Queue::open(&settings.name, flags) {
        Ok(queue) => Ok(Some(queue)),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(None),
        Err(e) => Err(settings.failed("opening a queue")(e)),
    }
}

/// One attempt, in the namespace. `None`: in use, or changed concurrently.
fn attempt(settings: &Settings, may_create: bool, is_kept: bool) -> Result<Option<Opened>, OpenError> {
    // Most netdevs do not exist yet: creating one needs no look before.
    let first = if may_create { create(settings)? } else { None };
    let mut found = match &first {
        Some(_) => None,
        None => link::find(&settings.name).map_err(settings.failed("finding the netdev"))?,
    };
    let mut warnings = Vec::new();
    if let Some(link) = found.take_if(|link| may_create && settings.has_queue_mode_mismatch(link)) {
        // An earlier run of the switch ended before it recreated the netdev.
        if link.tap.is_some_and(|tap| is_in_use(&link, tap)) {
            return Ok(None);
        }
        link::delete(link.index).map_err(settings.failed("deleting it, to recreate it"))?;
    }
    let multi_queue = match &found {
        None if !may_create => return Err(OpenError::NoDevice { at: settings.at() }),
        None => settings.queues > 1,
        Some(link) => follow(settings, link, &mut warnings)?.multi_queue,
    };
    // A second process at a multi-queue device would get a share of its frames, without an error.
    if found.as_ref().and_then(|link| link.tap).is_some_and(|tap| tap.queues > 0) {
        return Ok(None);
    }
    let mut queues: Vec<Queue> = first.into_iter().collect();
    while queues.len() < usize::from(settings.queues) {
        let exclusive = found.is_none() && queues.is_empty();
        match Queue::open(&settings.name, Flags { vnet_header: settings.offloads, multi_queue, exclusive }) {
            Ok(queue) => queues.push(queue),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => return Ok(None),
            Err(e) => return Err(settings.failed("opening a queue")(e)),
        }
    }
    // Finding and opening are two steps. In between other processes may have opened queues as well, or deleted the
    // netdev, so that opening created a new one. The queues are closed then, and the attempt repeated.
    let opened = link::find(&settings.name).map_err(settings.failed("reading the netdev"))?;
    let Some(link) = opened else { return Ok(None) };
    let alone = link.tap.is_some_and(|tap| !tap.multi_queue || tap.queues == u32::from(settings.queues));
    if !alone || found.as_ref().is_some_and(|found| found.index != link.index) {
        return Ok(None);
    }
    let created = found.is_none();
    let made = created || link.alias == settings.alias();
    let keep = match is_kept {
        true => {
            let copies = queues.iter().map(|queue| queue.as_fd().try_clone_to_owned()).collect::<io::Result<_>>();
            // Without a free descriptor it is not kept.
            copies.map_or(Keep::Nothing, Keep::New)
        }
        false => Keep::Nothing,
    };
    finish(settings, &link, queues, (made, created), keep, warnings).map(Some)
}

/// Configures a tap and its queues.
fn finish(
    settings: &Settings,
    link: &Link,
    queues: Vec<Queue>,
    (made, created): (bool, bool),
    keep: Keep,
    mut warnings: Vec<String>,
) -> Result<Opened, OpenError> {
    let takes = configure(settings, link, &queues[0], made, created, &mut warnings)?;
    let observed = Observed::default();
    let tap = |queue| Box::new(Tap::new(queue, settings.offloads, takes, observed.clone())) as Box<dyn Device>;
    Ok(Opened {
        queues: queues.into_iter().map(tap).collect(),
        made,
        warnings,
        mode: None,
        egress: None,
        may_lose_tags: false,
        observed: Some(observed),
        keep,
    })
}

/// Checks an existing netdev against the settings; returns its tap attributes.
fn follow(settings: &Settings, link: &Link, warnings: &mut Vec<String>) -> Result<TapInfo, OpenError> {
    let Some(tap) = link.tap else {
        return Err(settings.refused("a device of this name exists, but it is no tap; choose another name or kind"));
    };
    match (tap.multi_queue, settings.queues) {
        (false, 2..) => Err(settings.refused(format!(
            "the tap has a single queue, but queues = {}; set queues = 1, or recreate the tap with multi_queue",
            settings.queues
        ))),
        (true, 1) => {
            warnings.push(format!("{} is a multi-queue tap; opening one queue of it", settings.at()));
            Ok(tap)
        }
        _ => Ok(tap),
    }
}

/// Configures the device's offloads and the netdev's properties. Returns the offloads that the device accepts.
fn configure(
    settings: &Settings,
    link: &Link,
    queue: &Queue,
    made: bool,
    created: bool,
    warnings: &mut Vec<String>,
) -> Result<OffloadSet, OpenError> {
    let mut takes = OffloadSet::NONE;
    if settings.offloads {
        let taken = queue.set_offloads().map_err(settings.failed("setting its offloads"))?;
        if taken == Offloads::TcpOnly {
            warnings.push(format!("{}: this kernel passes no UDP GSO packets (USO) through taps", settings.at()));
        }
        takes = offload_set(taken);
    } else {
        queue.clear_offloads().map_err(settings.failed("clearing its offloads"))?;
    }
    let wanted = Wanted {
        mac: Some(settings.mac),
        mtu: Some(settings.mtu.into()),
        alias: created.then(|| settings.alias()),
        // Earlier versions of the switch lowered it.
        gso_max_segs: settings.offloads.then_some(GSO_MAX_SEGS),
        queue_len: created.then_some(QUEUE),
        up: true,
    };
    let changed = link::change(link, &wanted).map_err(settings.failed("setting its MAC address, MTU and state"))?;
    if !made && !changed.is_empty() {
        warnings.push(format!("{} was not created for this port; changed: {}", settings.at(), changed.join(", ")));
    }
    // Last: an incompletely configured netdev is deleted with the switch.
    if made && link.tap.is_some_and(|tap| tap.persist != settings.persist) {
        queue.set_persist(settings.persist).map_err(settings.failed("setting its persistence"))?;
    }
    Ok(takes)
}

/// A frame written to a tap enters the stack as if received by a driver, which accepts GSO packets of any size and
/// number of segments; but not those of tunnels, which it would treat as packets of the inner protocol.
fn offload_set(offloads: Offloads) -> OffloadSet {
    let tcp = OffloadSet::CSUM | OffloadSet::TSO4 | OffloadSet::TSO6 | OffloadSet::ECN;
    let kinds = match offloads {
        Offloads::All => tcp | OffloadSet::USO,
        Offloads::TcpOnly => tcp,
    };
    OffloadSet::new(kinds | OffloadSet::STACKED_TAGS | OffloadSet::ANY_NETWORK, u32::MAX, u32::MAX)
}

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
    fn invalid_settings_are_refused_before_any_system_call() {
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
