//! Packet sockets: whole frames from and to a netdev that is there, as `linux/if_packet.h` has them.
//!
//! A [`Socket`] belongs to the namespace of the thread that opened it, and works from any other. What
//! it hears comes in by [`Socket::receive`] or, without a system call for each frame, by a [`Ring`].
//! What it sends goes out by [`Socket::send`] or, many in one call, by [`Outgoing`].

#![allow(clippy::cast_possible_truncation)] // sizes and numbers of the kernel's structures

mod outgoing;
mod ring;

use std::ffi::{c_int, c_uint};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::{mem, ptr};

use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, send, socket_with, sockopt};

pub use outgoing::{Burst, Outgoing};
pub use ring::{Arrival, Ring, SLOT};

/// Bytes of the offload header of a packet socket: `struct virtio_net_hdr`, in the order of the host.
pub const HEADER: usize = 10;

/// Every type of frame (ETH_P_ALL).
pub const EVERYTHING: u16 = 3;

/// No type of frame.
pub const NOTHING: u16 = 0;

/// A VLAN tag that the kernel has taken out of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    tpid: u16,
    tci: u16,
}

impl Tag {
    /// Where it was: behind the two addresses.
    pub const AT: usize = 12;

    /// What the kernel says in a status word and beside it, if it has taken out one.
    fn from_kernel(status: u32, tpid: u16, tci: u16) -> Option<Tag> {
        let tpid = if status & libc::TP_STATUS_VLAN_TPID_VALID != 0 { tpid } else { libc::ETH_P_8021Q as u16 };
        (status & libc::TP_STATUS_VLAN_VALID != 0).then_some(Tag { tpid, tci })
    }

    /// Its bytes in a frame.
    pub fn bytes(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.tpid.to_be_bytes(), self.tci.to_be_bytes());
        [a, b, c, d]
    }
}

/// A frame that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes that were written; the tag is not among them.
    pub len: usize,
    /// Whether it had more bytes than there was room for.
    pub cut: bool,
    /// The tag that the kernel has taken out.
    pub tag: Option<Tag>,
}

/// Frames since this was last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Frames that were put where they can be received.
    pub taken: u32,
    /// Frames for which there was no room, or that the kernel could not hand over.
    pub lost: u32,
}

/// How things stand with the netdev of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is there, and set up.
    Up,
    /// It is there, and set down.
    Down,
    /// It has been deleted, or moved to another namespace.
    Gone,
}

/// A packet socket. No call waits.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

/// A netdev as AF_PACKET addresses it.
struct LinkAddress(libc::sockaddr_ll);

// SAFETY: the pointer that `f` gets is that of a whole `struct sockaddr_ll`, with its length.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(ptr::from_ref(&self.0).cast(), size_of::<libc::sockaddr_ll>() as SocketAddrLen)
    }
}

impl Socket {
    /// A socket in the namespace of the calling thread. It hears nothing before it is bound.
    pub fn new() -> io::Result<Socket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(Socket { fd: socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)? })
    }

    /// Frames have an offload header of [`HEADER`] bytes in front, both ways. Before any ring.
    pub fn set_header(&self) -> io::Result<()> {
        self.set(libc::PACKET_VNET_HDR, 1)
    }

    /// Does not hear what leaves by the netdev, whoever sends it.
    pub fn ignore_outgoing(&self) -> io::Result<()> {
        self.set(libc::PACKET_IGNORE_OUTGOING, 1)
    }

    /// What is sent goes straight to the driver, and not through the queues that the netdev may have.
    pub fn bypass_queues(&self) -> io::Result<()> {
        self.set(libc::PACKET_QDISC_BYPASS, 1)
    }

    /// What [`Socket::receive`] finds has its tag told.
    pub fn tell_tags(&self) -> io::Result<()> {
        self.set(libc::PACKET_AUXDATA, 1)
    }

    /// Memory, in bytes, that frames may take which wait to be received, and those that wait to be
    /// sent. The kernel counts its own overhead, and allows twice as much.
    pub fn set_room(&self, received: usize, sent: usize) -> io::Result<()> {
        sockopt::set_socket_recv_buffer_size_force(&self.fd, received)?;
        Ok(sockopt::set_socket_send_buffer_size_force(&self.fd, sent)?)
    }

    /// Sends to, and hears frames of `ethertype` from, the netdev with this index.
    pub fn bind(&self, index: u32, ethertype: u16) -> io::Result<()> {
        let address = LinkAddress(libc::sockaddr_ll {
            sll_family: AddressFamily::PACKET.as_raw(),
            sll_protocol: ethertype.to_be(),
            sll_ifindex: number(index)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        });
        Ok(bind(&self.fd, &address)?)
    }

    /// Has the netdev hear frames for any address, as long as this socket lives.
    pub fn hear_all(&self, index: u32) -> io::Result<()> {
        let kind = libc::PACKET_MR_PROMISC as u16;
        let request = libc::packet_mreq { mr_ifindex: number(index)?, mr_type: kind, mr_alen: 0, mr_address: [0; 8] };
        self.set(libc::PACKET_ADD_MEMBERSHIP, request)
    }

    fn set<T: Plain>(&self, option: c_int, value: T) -> io::Result<()> {
        let (fd, size) = (self.fd.as_raw_fd(), size_of::<T>() as libc::socklen_t);
        // SAFETY: the kernel reads `size` bytes at most, which the value has, and it outlives the call.
        let done = unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, ptr::from_ref(&value).cast(), size) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// What has come in and what was lost since this was last asked.
    pub fn statistics(&self) -> io::Result<Statistics> {
        let (fd, option) = (self.fd.as_raw_fd(), libc::PACKET_STATISTICS);
        let mut message = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut size = size_of_val(&message) as libc::socklen_t;
        let room = ptr::from_mut(&mut message).cast();
        // SAFETY: the kernel writes `size` bytes at most, which the value has, and it outlives the call.
        let done = unsafe { libc::getsockopt(fd, libc::SOL_PACKET, option, room, &raw mut size) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        // It counts what was lost among all.
        Ok(Statistics { taken: message.tp_packets.wrapping_sub(message.tp_drops), lost: message.tp_drops })
    }

    /// Whether something has happened to the netdev since this was last asked: it went down, or away.
    /// Until it is asked, the socket is ready in the eyes of epoll.
    pub fn is_troubled(&self) -> bool {
        !matches!(sockopt::socket_error(&self.fd), Ok(Ok(())))
    }

    /// How things stand with the netdev.
    pub fn state(&self) -> State {
        // Of a frame of no bytes the kernel finds out last that it cannot be sent.
        match send(&self.fd, &[], SendFlags::DONTWAIT) {
            Err(Errno::NXIO | Errno::NODEV) => State::Gone,
            Err(Errno::NETDOWN) => State::Down,
            _ => State::Up,
        }
    }

    /// Sends a frame, its header in front if the socket has them.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(&self.fd, frame, SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Receives the next frame, its header in front if the socket has them. `None`: there is none now.
    pub fn receive(&self, room: &mut [u8]) -> io::Result<Option<Received>> {
        let mut control = Control([0; 64]);
        let mut piece = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        let mut message = no_message();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control.0) as _;
        // SAFETY: the message points to buffers of the sizes it says, which are ours alone and outlive the call.
        let len = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
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

    /// Receives the next frame of those that a [`Ring`] had no room for, in pieces. How many bytes it has.
    pub fn receive_pieces(&self, iovecs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(rustix::io::readv(&self.fd, iovecs)?)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a socket option can be: plain numbers without a gap, so that each byte has a value.
trait Plain {}
impl Plain for c_int {}
impl Plain for libc::packet_mreq {}
impl Plain for libc::tpacket_req {}
const _: () = assert!(size_of::<libc::packet_mreq>() == 16 && size_of::<libc::tpacket_req>() == 16);

/// Room for what the kernel notes beside a frame, aligned as these notes are.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// A message of nothing.
fn no_message() -> libc::msghdr {
    // SAFETY: it is made of numbers and pointers, for which all zeros are valid.
    unsafe { mem::zeroed() }
}

/// The tag that stands in the notes beside a frame.
fn noted_tag(message: &libc::msghdr) -> Option<Tag> {
    // SAFETY: the kernel has filled in the message, and its control buffer is still there.
    let note = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: it is null, or points to a whole header in that buffer.
    let note = unsafe { note.as_ref() }?;
    if (note.cmsg_level, note.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: the note is one of the message.
    let aux = unsafe { libc::CMSG_DATA(note) }.cast::<libc::tpacket_auxdata>();
    // SAFETY: this is what a note of this kind holds, all of it: the buffer has room for it.
    let aux = unsafe { aux.read_unaligned() };
    Tag::from_kernel(aux.tp_status, aux.tp_vlan_tpid, aux.tp_vlan_tci)
}

/// An index as the kernel's structures have it.
fn number(index: u32) -> io::Result<c_int> {
    c_int::try_from(index).map_err(|_| Errno::NODEV.into())
}

const _: () = assert!(size_of::<c_uint>() == 4, "what the kernel's rings are described in");
const _: () = assert!(cfg!(target_endian = "little"), "the kernel writes offload headers in the order of the host");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_there_only_if_the_kernel_says_so() {
        let (tag, kind) = (libc::TP_STATUS_VLAN_VALID, libc::TP_STATUS_VLAN_TPID_VALID);
        assert_eq!(Tag::from_kernel(kind, 0x88a8, 7), None);
        assert_eq!(Tag::from_kernel(tag | kind, 0x88a8, 7).unwrap().bytes(), [0x88, 0xa8, 0, 7]);
        assert_eq!(Tag::from_kernel(tag, 0, 0x2005).unwrap().bytes(), [0x81, 0, 0x20, 5], "kernels that tell no type");
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
