//! Packet sockets on netdevs that are there, and that others own: QEMU's taps, the ends of veths, NICs.
//!
//! It works with every Ethernet device and driver, and open checksums and super-frames pass both ways.
//! Nothing about the netdev is changed: not its address, its MTU, nor whether it is up. It hears frames
//! for every address as long as the port is open.
//!
//! **Frames that come in are also handed to the host's own stack**, unlike at the port of a bridge: a
//! packet socket listens and takes nothing away. The host answers as well then, for all of its addresses, beside
//! whoever is behind the switch, and configures itself by what guests say. With `isolate` a program on the netdev
//! drops each frame behind the socket ([`IngressDrop`]); without it, ports and `check` say what the stack does.
//!
//! For the same reason it must be in no bridge: that would forward each frame a second time. What the
//! host itself sends by the netdev is not heard; what the switch sends is not seen by other listeners
//! there (`tcpdump`) and passes by its queueing discipline.
//!
//! Two frames that another port would take are refused here, as `device_refused`: those longer than the
//! MTU of the netdev, and full ones with two tags or one of 802.1ad; the kernel allows for one of 802.1Q.
//! A frame that is refused costs no other one.
//!
//! Of GSO packets, those are sent that the netdev takes: its features and limits are asked at opening,
//! and what it does not take is segmented before.

mod offload;
mod queue;

use std::collections::HashSet;
use std::io;
use std::sync::{LazyLock, Mutex, PoisonError};

use super::{Device, DeviceLocation, Egress, MAX_GSO_SIZE, Observed, OpenError, Opened, foreign};
use crate::sys::bpf::IngressDrop;
use crate::sys::ethtool;
use crate::sys::link::Link;
use crate::sys::netns::Netns;
use crate::sys::packet::{EVERYTHING, NOTHING, Ring, Socket};
use crate::wire::{OffloadSet, TAG_LEN};
use queue::Queue;

/// Frames that may wait in the ring: some more than a tap has room for. 2 MiB.
const SLOTS: usize = 1024;

/// Bytes, by half of what the kernel counts, that frames may take which do not fit the ring's slots:
/// half a hundred super-frames and more.
const RECEIVE_ROOM: usize = 8 << 20;

/// And of what has been sent, and has not left yet.
const SEND_ROOM: usize = 4 << 20;

/// Bytes of a VLAN tag.
const TAG: u32 = 4;
const _: () = assert!(TAG as usize == TAG_LEN);

/// A netdev, told from another one that comes after it under the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Netdev {
    name: String,
    netns: Netns,
    index: u32,
}

/// Netdevs on which a ring came to a halt, in this life of the switch: see [`Queue`].
static STUCK_RINGS: LazyLock<Mutex<HashSet<Netdev>>> = LazyLock::new(Mutex::default);

/// Which netdev, and how to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The name of the netdev.
    pub name: String,
    /// The namespace of the netdev.
    pub netns: Netns,
    /// Whether frames with open checksums and super-frames are sent by it. They are received in any
    /// case: nobody else would know that such a frame is not finished.
    pub offloads: bool,
    /// Whether what it receives is kept from the network stack of its namespace.
    pub isolate: bool,
    /// The MTU of the network, with which that of the netdev is compared.
    pub mtu: u16,
    /// The port it is for.
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

/// Notes that the ring on a netdev has come to a halt.
fn remember_stuck_ring(netdev: &Netdev) {
    STUCK_RINGS.lock().unwrap_or_else(PoisonError::into_inner).insert(netdev.clone());
}

/// Opens a netdev that is there. None is ever made.
pub fn open(settings: &Settings) -> Result<Opened, OpenError> {
    let location = settings.at();
    foreign::in_namespace(&location, || {
        let (link, mut warnings) = foreign::find(&location, settings.mtu)?;
        let netdev = Netdev { name: settings.name.clone(), netns: settings.netns.clone(), index: link.index };
        let has_ring = !has_stuck_ring(&netdev);
        if !has_ring {
            warnings.push(format!(
                "{location} has sent super-frames of a kind that the kernel cannot hand over (such as UDP fragments): \
                 these are lost, and to outlive them it is read without a ring, which takes a system call for each frame"
            ));
        }
        let rx_socket = Socket::new().map_err(foreign::failed(&location, "opening a packet socket"))?;
        let tx_socket = Socket::new().map_err(foreign::failed(&location, "opening a packet socket"))?;
        let egress =
            Egress::new(egress_set(settings, &link).map_err(foreign::failed(&location, "asking for its offloads"))?);
        let spare = has_ring.then(|| open_spare(link.index)).transpose();
        let spare = spare.map_err(foreign::failed(&location, "opening a packet socket"))?;
        let ring =
            start_receive(&rx_socket, link.index, has_ring).map_err(foreign::failed(&location, "listening to it"))?;
        prepare_tx(&tx_socket, link.index, settings.offloads)
            .map_err(foreign::failed(&location, "setting up what is sent by it"))?;
        let isolation = settings.isolate.then(|| IngressDrop::attach(link.index)).transpose();
        let isolation = isolation.map_err(|why| not_isolated(&location, &why))?;
        // Last: from here on there is something to receive.
        rx_socket.bind(link.index, EVERYTHING).map_err(foreign::failed(&location, "listening to it"))?;
        let sockets = (rx_socket, spare, tx_socket);
        let observed = Observed::default();
        let queue = Queue::new(ring, sockets, settings.offloads, (egress.clone(), observed.clone()), netdev)
            .isolated(isolation);
        let mode = if has_ring { "ring" } else { "a call for each frame" };
        let (queues, mode) = (vec![Box::new(queue) as Box<dyn Device>], Some(mode.to_owned()));
        Ok(Opened {
            queues,
            made: false,
            warnings,
            mode,
            egress: Some(egress),
            may_lose_tags: false,
            observed: Some(observed),
        })
    })
}

fn not_isolated(location: &DeviceLocation, why: &io::Error) -> OpenError {
    let reason = match why.raw_os_error() {
        Some(libc::EINVAL) => {
            "isolate = true takes a kernel with tcx (Linux 6.6); leave it out, and see what `check` says of \
                               the host's stack"
                .to_owned()
        }
        _ => format!("isolate = true: the program that keeps frames from the host's stack cannot be attached: {why}"),
    };
    foreign::refused(location, reason)
}

/// What a netdev takes of what the kernel would have to segment otherwise, and does not for packets that bypass the
/// queueing discipline. It always completes checksums.
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

/// What [`open`] would come to now: why it would fail, or remarks. `adds_tags`: frames are sent with the tag of a VLAN, in
/// front of one that a guest may have added.
pub fn preflight(settings: &Settings, adds_tags: bool) -> Result<Vec<String>, OpenError> {
    let location = settings.at();
    foreign::in_namespace(&location, || {
        let (link, mut warnings) = foreign::find(&location, settings.mtu)?;
        warnings.extend(second_tag(&location, &link, settings.mtu).filter(|_| adds_tags));
        Ok(warnings)
    })
}

/// Outer tag of a frame with two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OuterTag {
    /// 802.1Q, which the switch adds.
    Dot1q,
    /// Any, such as the 802.1ad of a guest.
    Any,
}

/// The MTU, in bytes, that a netdev needs to send frames of `mtu` bytes with two tags: the kernel counts tags, but the outer
/// one if that is 802.1Q.
pub(super) fn mtu_for_two_tags(mtu: u32, outer: OuterTag) -> u32 {
    let counted = match outer {
        OuterTag::Dot1q => TAG,
        OuterTag::Any => 2 * TAG,
    };
    mtu.saturating_add(counted)
}

/// Why frames that a guest has tagged itself would not pass with the tag of their VLAN, if so.
fn second_tag(location: &DeviceLocation, link: &Link, mtu: u16) -> Option<String> {
    let needed = mtu_for_two_tags(mtu.into(), OuterTag::Dot1q);
    // The MTU of a VXLAN netdev follows the one below it.
    (link.mtu < needed && link.vxlan.is_none()).then(|| {
        format!(
            "{location} has an MTU of {}: frames of {mtu} bytes pass with the tag of their VLAN, and not with a second tag, \
             that of a guest; `ip link set dev {} mtu {needed}` lets them pass",
            link.mtu, location.device
        )
    })
}

fn start_receive(rx_socket: &Socket, index: u32, has_ring: bool) -> io::Result<Option<Ring>> {
    rx_socket.set_header()?;
    rx_socket.ignore_outgoing()?;
    rx_socket.set_room(RECEIVE_ROOM, 0)?;
    rx_socket.hear_all(index)?;
    if has_ring {
        return Ring::new(rx_socket, SLOTS).map(Some);
    }
    rx_socket.tell_tags()?;
    Ok(None)
}

/// A socket that is set up to listen, and does not yet.
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
    fn what_can_never_be_is_told_from_what_is_not_there_yet() {
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
