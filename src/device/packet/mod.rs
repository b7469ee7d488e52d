//! AF_PACKET device on an existing netdev that the switch does not own: QEMU's tap, a veth's end, a NIC.
//!
//! Works with every Ethernet device and driver. Partial checksums and GSO packets pass both ways. The switch does not
//! change the netdev's address, MTU or link state, but keeps it in promiscuous mode while the port is open.
//!
//! **The host's network stack receives each frame as well**, unlike at a bridge port, because a packet socket only gets
//! a copy. The host answers for its own addresses, in addition to the stations behind the switch, and accepts router
//! advertisements of guests. With `isolate` a program on the netdev drops each frame after the socket
//! ([`IngressDrop`]). Without it, ports and `check` report what the stack does.
//!
//! For the same reason the netdev must not be a bridge port, where each frame would be forwarded a second time. Frames
//! that the host itself sends by the netdev are not received. Frames that the switch sends bypass the queueing
//! discipline, and other packet sockets there (`tcpdump`) do not see them.
//!
//! Two kinds of frames that other kinds of devices accept are dropped here as `device_refused`: frames longer than the
//! netdev's MTU, and full-size frames with two tags or one of 802.1ad; the kernel allows for one tag of 802.1Q. Other
//! frames are not affected.
//!
//! GSO packets are sent whole if the netdev's features and limits, which are read when it is opened, allow; else they
//! are segmented first.

mod offload;
mod queue;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{LazyLock, Mutex, PoisonError};

use super::{
    Device, DeviceLocation, Egress, Keep, KeptDescriptors, MAX_GSO_SIZE, Observed, OpenError, Opened, foreign,
};
use crate::sys::bpf::IngressDrop;
use crate::sys::ethtool;
use crate::sys::link::Link;
use crate::sys::netns::Netns;
use crate::sys::packet::{EVERYTHING, HEADER, NOTHING, Ring, Socket};
use crate::sys::running::Running;
use crate::wire::{OffloadSet, TAG_LEN};
use queue::Queue;

/// Frames in the receive ring: somewhat more than a tap's queue. 2 MiB.
const SLOTS: usize = 1024;

/// Receive buffer in bytes for frames longer than a ring slot; the kernel doubles the value. Enough for at least fifty
/// GSO packets of 64 KiB.
const RECEIVE_ROOM: usize = 8 << 20;

/// Send buffer in bytes, for frames that the driver has not freed yet; the kernel doubles the value.
const SEND_ROOM: usize = 4 << 20;

/// Maximum long frames that an earlier process left unread: those that fit into the receive buffer.
const MAX_UNREAD: u32 = 8192;

/// Bytes of a VLAN tag.
const TAG: u32 = 4;
const _: () = assert!(TAG as usize == TAG_LEN);

/// A netdev; its index distinguishes it from a later one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Netdev {
    name: String,
    netns: Netns,
    index: u32,
}

/// Netdevs on which a ring was stuck, since the start of the switch: see [`Queue`].
static STUCK_RINGS: LazyLock<Mutex<HashSet<Netdev>>> = LazyLock::new(Mutex::default);

/// Settings of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of the netdev.
    pub name: String,
    /// Network namespace of the netdev.
    pub netns: Netns,
    /// Send partial checksums and GSO packets. They are received in any case: without a header they could not be
    /// recognised as such.
    pub offloads: bool,
    /// Keep received frames from the network stack of the netdev's namespace.
    pub isolate: bool,
    /// MTU of the network in bytes.
    pub mtu: u16,
    /// Port that uses the device.
    pub owner: String,
}

impl Settings {
    pub(super) fn at(&self) -> DeviceLocation {
        DeviceLocation { device: self.name.clone(), netns: self.netns.clone() }
    }
}

fn has_stuck_ring(netdev: &Netdev) -> bool {
    STUCK_RINGS.lock().unwrap_or_else(PoisonError::into_inner).contains(netdev)
}

/// Records that the ring on a netdev is stuck.
fn remember_stuck_ring(netdev: &Netdev) {
    STUCK_RINGS.lock().unwrap_or_else(PoisonError::into_inner).insert(netdev.clone());
}

/// Opens the sockets. Never creates a netdev.
pub fn open(settings: &Settings) -> Result<Opened, OpenError> {
    open_kept(settings, KeptDescriptors::default())
}

/// The same, with the receive socket of an earlier process if it is bound to this netdev: the frames in its ring are
/// received first.
pub fn open_kept(settings: &Settings, kept: KeptDescriptors) -> Result<Opened, OpenError> {
    let location = settings.at();
    let KeptDescriptors { inherited, is_wanted } = kept;
    foreign::in_namespace(&location, || {
        let (link, mut warnings) = foreign::find(&location, settings.mtu)?;
        let netdev = Netdev { name: settings.name.clone(), netns: settings.netns.clone(), index: link.index };
        let has_ring = !has_stuck_ring(&netdev);
        if !has_ring {
            warnings.push(format!(
                "{location} has sent GSO packets of a kind that the kernel cannot deliver (such as UDP fragmentation): these are lost; \
                 to survive them it is read without a ring, with one system call per frame"
            ));
        }
        // The second one keeps frames from the host's stack until this process does.
        let (number, mut inherited) = (inherited.len(), inherited.into_iter());
        let resumed = inherited.next().filter(|_| has_ring).and_then(|fd| resume(fd, link.index).ok().flatten());
        let tx_socket = Socket::new().map_err(foreign::failed(&location, "opening a packet socket"))?;
        let egress =
            Egress::new(egress_set(settings, &link).map_err(foreign::failed(&location, "reading its offloads"))?);
        let spare = has_ring.then(|| open_spare(link.index)).transpose();
        let spare = spare.map_err(foreign::failed(&location, "opening a packet socket"))?;
        let is_resumed = resumed.is_some();
        let (rx_socket, ring, lost) = match resumed {
            Some(resumed) => resumed,
            None => start_receive(link.index, has_ring).map_err(foreign::failed(&location, "setting up receive"))?,
        };
        prepare_tx(&tx_socket, link.index, settings.offloads)
            .map_err(foreign::failed(&location, "setting up transmit"))?;
        let running = Running::new(link.index).map_err(foreign::failed(&location, "opening a socket"))?;
        let isolation = settings.isolate.then(|| IngressDrop::attach(link.index)).transpose();
        let isolation = isolation.map_err(|why| not_isolated(&location, &why))?;
        if !is_resumed {
            // Last: frames are received from here on.
            rx_socket.bind(link.index, EVERYTHING).map_err(foreign::failed(&location, "binding the receive socket"))?;
        }
        let keep = match is_wanted && has_ring {
            true if is_resumed && number == 1 + usize::from(settings.isolate) => Keep::Same,
            // Without a free descriptor they are not kept.
            true => copies(&rx_socket, isolation.as_ref()).map_or(Keep::Nothing, Keep::New),
            false => Keep::Nothing,
        };
        let sockets = (rx_socket, spare, tx_socket);
        let observed = Observed::default();
        let queue = Queue::new(ring, sockets, settings.offloads, (egress.clone(), observed.clone()), (netdev, running))
            .isolated(isolation)
            .missed(lost);
        let mode = if has_ring { "ring" } else { "one call per frame" };
        let (queues, mode) = (vec![Box::new(queue) as Box<dyn Device>], Some(mode.to_owned()));
        Ok(Opened {
            queues,
            made: false,
            warnings,
            mode,
            egress: Some(egress),
            may_lose_tags: false,
            observed: Some(observed),
            keep,
        })
    })
}

fn not_isolated(location: &DeviceLocation, why: &io::Error) -> OpenError {
    let reason = match why.raw_os_error() {
        Some(libc::EINVAL) => {
            "isolate = true needs a kernel with tcx (Linux 6.6); remove it, and see what `check` reports about the host's \
             stack"
                .to_owned()
        }
        _ => format!("isolate = true: cannot attach the program that keeps frames from the host's stack: {why}"),
    };
    match why.kind() {
        io::ErrorKind::PermissionDenied => OpenError::Denied { at: location.clone(), reason },
        _ => foreign::refused(location, reason),
    }
}

/// Offloads that the netdev accepts. The kernel does not segment packets that bypass the queueing discipline, but
/// always completes checksums.
pub(super) fn egress_set(settings: &Settings, link: &Link) -> io::Result<OffloadSet> {
    if !settings.offloads {
        return Ok(OffloadSet::NONE);
    }
    let features = ethtool::features(&settings.name)?;
    let kinds = [
        ("tx-tcp-segmentation", OffloadSet::TSO4),
        ("tx-tcp6-segmentation", OffloadSet::TSO6),
        ("tx-tcp-ecn-segmentation", OffloadSet::ECN),
        ("tx-udp-segmentation", OffloadSet::USO),
    ];
    let active = kinds.iter().filter(|(name, _)| features.is_active(name)).map(|&(_, kind)| kind);
    let kinds = active.fold(OffloadSet::CSUM, |set, kind| set | kind);
    // The kernel's packets are shorter than this. A tag may have to be added.
    let message = [link.gso_max_size, link.gso_ipv4_max_size].into_iter().filter(|&size| size > 0).min();
    let max_len = message.unwrap_or(MAX_GSO_SIZE).saturating_sub(1 + TAG);
    Ok(OffloadSet::new(kinds, max_len, link.gso_max_segs))
}

/// Predicts the result of [`open`]: its error, or its warnings. `adds_tags`: the switch adds a VLAN tag to frames, in
/// front of a guest's own tag.
pub fn preflight(settings: &Settings, adds_tags: bool) -> Result<Vec<String>, OpenError> {
    let location = settings.at();
    foreign::in_namespace(&location, || {
        let (link, mut warnings) = foreign::find(&location, settings.mtu)?;
        warnings.extend(second_tag(&location, &link, settings.mtu).filter(|_| adds_tags));
        Ok(warnings)
    })
}

/// Outer tag of a frame with two tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OuterTag {
    /// 802.1Q, which the switch adds.
    Dot1q,
    /// Any, such as the 802.1ad of a guest.
    Any,
}

/// MTU in bytes that a netdev needs to send frames of `mtu` bytes with two tags: the kernel counts tags towards the MTU,
/// except an outer tag of 802.1Q.
pub(super) fn mtu_for_two_tags(mtu: u32, outer: OuterTag) -> u32 {
    let counted = match outer {
        OuterTag::Dot1q => TAG,
        OuterTag::Any => 2 * TAG,
    };
    mtu.saturating_add(counted)
}

/// Warning if frames with a guest's own tag would not pass with an additional VLAN tag.
fn second_tag(location: &DeviceLocation, link: &Link, mtu: u16) -> Option<String> {
    let needed = mtu_for_two_tags(mtu.into(), OuterTag::Dot1q);
    // The MTU of a VXLAN netdev depends on its underlay.
    (link.mtu < needed && link.vxlan.is_none()).then(|| {
        format!(
            "{location} has MTU {}: full-size frames ({mtu} bytes) pass with the VLAN tag of the switch, but not with a second tag, \
             a guest's; set it with `ip link set dev {} mtu {needed}`",
            link.mtu, location.device
        )
    })
}

/// A receive socket with its ring, and the number of frames that it has lost without having been counted.
type Receiver = (Socket, Option<Ring>, u32);

/// Opens a receive socket that receives nothing yet.
fn start_receive(index: u32, has_ring: bool) -> io::Result<Receiver> {
    let rx_socket = Socket::new()?;
    rx_socket.set_header()?;
    rx_socket.ignore_outgoing()?;
    rx_socket.set_room(RECEIVE_ROOM, 0)?;
    rx_socket.hear_all(index)?;
    if has_ring {
        let ring = Ring::new(&rx_socket, SLOTS)?;
        return Ok((rx_socket, Some(ring), 0));
    }
    rx_socket.tell_tags()?;
    Ok((rx_socket, None, 0))
}

/// Continues with the receive socket of an earlier process, which [`start_receive`] has opened with a ring. `None`: it is
/// none of this netdev.
fn resume(fd: OwnedFd, index: u32) -> io::Result<Option<Receiver>> {
    let Some(rx_socket) = Socket::from_file(fd, index, EVERYTHING)? else { return Ok(None) };
    let ring = Ring::resume(&rx_socket, SLOTS)?;
    // Lost before now, so that they are not taken for those of a stuck ring.
    let mut lost = rx_socket.statistics()?.lost;
    // Long frames that the earlier process left unread, although it had released their slots.
    if ring.queued() == 0 {
        // With less room than the header of a frame, the kernel drops the frame with an error.
        let unread = (0..MAX_UNREAD).take_while(|_| matches!(rx_socket.receive(&mut [0; HEADER]), Ok(Some(_))));
        lost += unread.map(|_| 1).sum::<u32>();
    }
    Ok(Some((rx_socket, Some(ring), lost)))
}

/// Copies of what has to outlive the process.
fn copies(rx_socket: &Socket, isolation: Option<&IngressDrop>) -> io::Result<Vec<OwnedFd>> {
    let descriptors = [Some(rx_socket.as_fd()), isolation.map(AsFd::as_fd)];
    descriptors.into_iter().flatten().map(|descriptor| descriptor.try_clone_to_owned()).collect()
}

/// Opens a configured receive socket that receives nothing yet.
fn open_spare(index: u32) -> io::Result<Socket> {
    let spare = Socket::new()?;
    spare.set_header()?;
    spare.ignore_outgoing()?;
    spare.set_room(RECEIVE_ROOM, 0)?;
    spare.tell_tags()?;
    spare.bind(index, NOTHING)?;
    Ok(spare)
}

fn prepare_tx(tx_socket: &Socket, index: u32, offloads: bool) -> io::Result<()> {
    if offloads {
        tx_socket.set_header()?;
    }
    tx_socket.bypass_queues()?;
    tx_socket.set_room(0, SEND_ROOM)?;
    tx_socket.bind(index, NOTHING)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            name: "vift-none".into(),
            netns: Netns::Named("vift-nowhere".into()),
            offloads: true,
            isolate: false,
            mtu: 1500,
            owner: "port-1".into(),
        }
    }

    #[test]
    fn permanent_and_temporary_errors_are_distinguished() {
        let refused = Settings { name: "sixteen-bytes-16".into(), ..settings() };
        let absent = settings();
        let missing = Settings { netns: Netns::Host, ..settings() };
        let loopback = Settings { name: "lo".into(), ..missing.clone() };
        for (settings, what) in
            [(refused, "Refused"), (absent, "NoNamespace"), (missing, "NoDevice"), (loopback, "Refused")]
        {
            for error in [open(&settings).unwrap_err(), preflight(&settings, true).unwrap_err()] {
                assert!(format!("{error:?}").starts_with(what), "{error:?}");
                assert!(error.to_string().contains(&settings.name), "{error}");
            }
        }
    }
}
