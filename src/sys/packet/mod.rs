//! Packet sockets (AF_PACKET): receive and transmit whole frames on an existing netdev.
//!
//! A [`Socket`] belongs to the namespace of the thread that opened it and works from any thread. It receives by
//! [`Socket::receive`], or by a [`Ring`] without a system call per frame. It transmits by [`Socket::send`], or many
//! frames per call by [`Outgoing`]. Source: `linux/if_packet.h`.

#![allow(clippy::cast_possible_truncation)] // sizes of kernel structures

mod outgoing;
mod ring;

use std::ffi::{c_int, c_uint};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::{mem, ptr};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::Opcode;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, send, socket_with, sockopt};

use crate::sys::netns;

pub use outgoing::{Burst, Outgoing};
pub use ring::{Arrival, Ring, SLOT};

/// Length of the `virtio_net_hdr` of a packet socket, in host byte order.
pub const HEADER: usize = 10;

/// All EtherTypes (ETH_P_ALL).
pub const EVERYTHING: u16 = 3;

/// No EtherType: the socket receives nothing.
pub const NOTHING: u16 = 0;

/// A VLAN tag that the kernel has removed from a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    tpid: u16,
    tci: u16,
}

impl Tag {
    /// Offset of the tag in a frame: after both addresses.
    pub const AT: usize = 12;

    /// Parses the kernel's metadata of a frame.
    fn from_kernel(status: u32, tpid: u16, tci: u16) -> Option<Tag> {
        let tpid = if status & libc::TP_STATUS_VLAN_TPID_VALID != 0 { tpid } else { libc::ETH_P_8021Q as u16 };
        (status & libc::TP_STATUS_VLAN_VALID != 0).then_some(Tag { tpid, tci })
    }

    /// The tag as bytes of a frame.
    pub fn bytes(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.tpid.to_be_bytes(), self.tci.to_be_bytes());
        [a, b, c, d]
    }
}

/// Metadata of a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the whole frame and its header, also where the buffer is shorter; without a removed tag.
    pub len: usize,
    /// The frame is longer than the buffer.
    pub cut: bool,
    /// The tag that the kernel has removed.
    pub tag: Option<Tag>,
}

/// Frame counts since the last query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Frames received into the socket or ring.
    pub taken: u32,
    /// Frames lost: no space, or not deliverable.
    pub lost: u32,
}

/// State of the netdev of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Administratively up.
    Up,
    /// Administratively down.
    Down,
    /// Deleted, or moved to another namespace.
    Gone,
}

/// A packet socket. No call blocks.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

/// A netdev as `struct sockaddr_ll`.
struct LinkAddress(libc::sockaddr_ll);

impl LinkAddress {
    /// The netdev with this index, for frames of `ethertype`.
    fn to(index: c_int, ethertype: u16) -> LinkAddress {
        LinkAddress(libc::sockaddr_ll {
            sll_family: AddressFamily::PACKET.as_raw(),
            sll_protocol: ethertype.to_be(),
            sll_ifindex: index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        })
    }
}

// SAFETY: `f` gets a pointer to a whole `struct sockaddr_ll`, and its length.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(ptr::from_ref(&self.0).cast(), size_of::<libc::sockaddr_ll>() as SocketAddrLen)
    }
}

/// SIOCGSKNS: opens the namespace of a socket. `linux/sockios.h`.
const SIOCGSKNS: Opcode = 0x894c;

impl Socket {
    /// A socket from an open file, such as one of an earlier process, or `None` if the file is no packet socket of the
    /// calling thread's namespace that is bound to the netdev with this index and receives frames of `ethertype`.
    pub fn from_file(fd: OwnedFd, index: u32, ethertype: u16) -> io::Result<Option<Socket>> {
        let is_packet = sockopt::socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::PACKET);
        let is_raw = is_packet && sockopt::socket_type(&fd).is_ok_and(|kind| kind == SocketType::RAW);
        // SAFETY: the file is a socket; SIOCGSKNS takes no argument.
        if !is_raw || !unsafe { netns::is_in_this_namespace::<SIOCGSKNS>(&fd) }? {
            return Ok(None);
        }
        let socket = Socket { fd };
        let bound = socket.bound()?;
        if bound.sll_ifindex != number(index)? || bound.sll_protocol != ethertype.to_be() {
            return Ok(None);
        }
        let status = rustix::fs::fcntl_getfl(&socket.fd)?;
        rustix::fs::fcntl_setfl(&socket.fd, status | OFlags::NONBLOCK)?;
        Ok(Some(socket))
    }

    /// Opens a socket in the calling thread's namespace. It receives nothing before [`bind`](Socket::bind).
    pub fn new() -> io::Result<Socket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(Socket { fd: socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)? })
    }

    /// Prepends a `virtio_net_hdr` of [`HEADER`] bytes to each frame, both ways (PACKET_VNET_HDR). Call before creating
    /// a ring.
    pub fn set_header(&self) -> io::Result<()> {
        self.set(libc::PACKET_VNET_HDR, 1)
    }

    /// Excludes outgoing frames of the netdev from receive.
    pub fn ignore_outgoing(&self) -> io::Result<()> {
        self.set(libc::PACKET_IGNORE_OUTGOING, 1)
    }

    /// Transmits directly to the driver, past the netdev's queueing discipline.
    pub fn bypass_queues(&self) -> io::Result<()> {
        self.set(libc::PACKET_QDISC_BYPASS, 1)
    }

    /// Reports removed VLAN tags in [`Socket::receive`] (PACKET_AUXDATA).
    pub fn tell_tags(&self) -> io::Result<()> {
        self.set(libc::PACKET_AUXDATA, 1)
    }

    /// Sets the receive and send buffer sizes in bytes. The kernel doubles them and counts its overhead.
    pub fn set_room(&self, received: usize, sent: usize) -> io::Result<()> {
        sockopt::set_socket_recv_buffer_size_force(&self.fd, received)?;
        Ok(sockopt::set_socket_send_buffer_size_force(&self.fd, sent)?)
    }

    /// Binds to the netdev with this index; receives frames of `ethertype`.
    pub fn bind(&self, index: u32, ethertype: u16) -> io::Result<()> {
        Ok(bind(&self.fd, &LinkAddress::to(number(index)?, ethertype))?)
    }

    /// Puts the netdev into promiscuous mode for the life of this socket.
    pub fn hear_all(&self, index: u32) -> io::Result<()> {
        let kind = libc::PACKET_MR_PROMISC as u16;
        let request = libc::packet_mreq { mr_ifindex: number(index)?, mr_type: kind, mr_alen: 0, mr_address: [0; 8] };
        self.set(libc::PACKET_ADD_MEMBERSHIP, request)
    }

    /// Reserves bytes in front of each frame of a [`Ring`], which the kernel does not write to. Call before creating it.
    fn reserve(&self, bytes: c_int) -> io::Result<()> {
        self.set(libc::PACKET_RESERVE, bytes)
    }

    /// Netdev and EtherType that the socket is bound to. The index is -1 if the netdev is gone.
    fn bound(&self) -> io::Result<libc::sockaddr_ll> {
        let (fd, mut address) = (self.fd.as_raw_fd(), LinkAddress::to(0, 0).0);
        let mut size = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the kernel writes at most `size` bytes of the value, which outlives the call.
        let done = unsafe { libc::getsockname(fd, ptr::from_mut(&mut address).cast(), &raw mut size) };
        if done == 0 { Ok(address) } else { Err(io::Error::last_os_error()) }
    }

    fn set<T: Plain>(&self, option: c_int, value: T) -> io::Result<()> {
        let (fd, size) = (self.fd.as_raw_fd(), size_of::<T>() as libc::socklen_t);
        // SAFETY: the kernel reads `size` bytes of the value, which outlives the call.
        let done = unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, ptr::from_ref(&value).cast(), size) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Frames received and lost since the last call.
    pub fn statistics(&self) -> io::Result<Statistics> {
        let (fd, option) = (self.fd.as_raw_fd(), libc::PACKET_STATISTICS);
        let mut message = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut size = size_of_val(&message) as libc::socklen_t;
        let room = ptr::from_mut(&mut message).cast();
        // SAFETY: the kernel writes at most `size` bytes of the value, which outlives the call.
        let done = unsafe { libc::getsockopt(fd, libc::SOL_PACKET, option, room, &raw mut size) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        // `tp_packets` includes lost frames.
        Ok(Statistics { taken: message.tp_packets.wrapping_sub(message.tp_drops), lost: message.tp_drops })
    }

    /// Takes the pending socket error: whether the netdev went down or was deleted since the last call. Until then
    /// epoll reports the socket as ready.
    pub fn is_troubled(&self) -> bool {
        !matches!(sockopt::socket_error(&self.fd), Ok(Ok(())))
    }

    /// True if a frame waits to be received.
    pub fn is_readable(&self) -> bool {
        let mut watched = [PollFd::new(&self.fd, PollFlags::IN)];
        let polled = poll(&mut watched, Some(&Timespec::default()));
        polled.is_ok() && watched[0].revents().contains(PollFlags::IN)
    }

    /// State of the netdev.
    pub fn state(&self) -> State {
        // The kernel checks the netdev before the length, so that an empty frame is never sent.
        match send(&self.fd, &[], SendFlags::DONTWAIT) {
            Err(Errno::NXIO | Errno::NODEV) => State::Gone,
            Err(Errno::NETDOWN) => State::Down,
            _ => State::Up,
        }
    }

    /// Sends a frame, with its header if enabled.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(&self.fd, frame, SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Receives the next frame, with its header if enabled. `None`: no frame is pending.
    pub fn receive(&self, room: &mut [u8]) -> io::Result<Option<Received>> {
        let mut control = Control([0; 64]);
        let mut piece = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        let mut message = no_message();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control.0) as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: the message points to exclusive buffers of the given sizes, which outlive the call.
        let len = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, flags) };
        let Ok(len) = usize::try_from(len) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        };
        let cut = message.msg_flags & libc::MSG_TRUNC != 0;
        Ok(Some(Received { len, cut, tag: noted_tag(&message) }))
    }

    /// Receives the next frame that did not fit a [`Ring`] slot, into several buffers. Returns its length.
    pub fn receive_pieces(&self, iovecs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(rustix::io::readv(&self.fd, iovecs)?)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Values of socket options: plain integers without padding.
trait Plain {}
impl Plain for c_int {}
impl Plain for libc::packet_mreq {}
impl Plain for libc::tpacket_req {}
const _: () = assert!(size_of::<libc::packet_mreq>() == 16 && size_of::<libc::tpacket_req>() == 16);

/// Buffer for control messages, aligned for them.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// An empty message.
fn no_message() -> libc::msghdr {
    // SAFETY: numbers and pointers, for which zero is valid.
    unsafe { mem::zeroed() }
}

/// The VLAN tag in the control messages of a frame.
fn noted_tag(message: &libc::msghdr) -> Option<Tag> {
    // SAFETY: the kernel has filled in the message, and its control buffer is alive.
    let note = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null, or a pointer to a whole header in that buffer.
    let note = unsafe { note.as_ref() }?;
    if (note.cmsg_level, note.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: the control message belongs to this message.
    let aux = unsafe { libc::CMSG_DATA(note) }.cast::<libc::tpacket_auxdata>();
    // SAFETY: PACKET_AUXDATA carries this structure; the buffer has room for all of it.
    let aux = unsafe { aux.read_unaligned() };
    Tag::from_kernel(aux.tp_status, aux.tp_vlan_tpid, aux.tp_vlan_tci)
}

/// An interface index as a signed integer.
fn number(index: u32) -> io::Result<c_int> {
    c_int::try_from(index).map_err(|_| Errno::NODEV.into())
}

const _: () = assert!(size_of::<c_uint>() == 4, "what the kernel's rings are described in");
const _: () = assert!(cfg!(target_endian = "little"), "the kernel writes offload headers in the order of the host");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stripped_tag_is_valid_only_if_flagged() {
        let (tag, kind) = (libc::TP_STATUS_VLAN_VALID, libc::TP_STATUS_VLAN_TPID_VALID);
        assert_eq!(Tag::from_kernel(kind, 0x88a8, 7), None);
        assert_eq!(Tag::from_kernel(tag | kind, 0x88a8, 7).unwrap().bytes(), [0x88, 0xa8, 0, 7]);
        assert_eq!(Tag::from_kernel(tag, 0, 0x2005).unwrap().bytes(), [0x81, 0, 0x20, 5], "kernels without a TPID");
    }

    #[test]
    fn an_index_that_no_netdev_has_is_refused() {
        let Ok(socket) = Socket::new() else { return eprintln!("skipped: needs CAP_NET_RAW") };
        for index in [c_int::MAX.unsigned_abs(), u32::MAX] {
            assert_eq!(socket.bind(index, EVERYTHING).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        }
        assert_eq!(socket.state(), State::Gone);
        assert_eq!(socket.statistics().unwrap(), Statistics::default());
        assert!(socket.receive(&mut [0; 64]).unwrap().is_none());
    }
}
