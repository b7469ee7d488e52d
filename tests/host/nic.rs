//! A guest's network card without a guest: an AF_PACKET socket on a netdev. What it sends, the
//! switch receives, and the other way round.

use std::ffi::{c_int, c_void};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{mem, ptr};

use vifswitch::wire::Mac;

use super::{EXPERIMENT, Space, readable};

/// Bytes that may wait to be read: more than any test sends at once.
const ROOM: c_int = 64 << 20;

// linux/if_packet.h
const STATUS_VLAN_VALID: u32 = 1 << 4;
const STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
const IGNORE_OUTGOING: c_int = 23;

/// `struct tpacket_auxdata`
#[repr(C)]
#[derive(Clone, Copy)]
struct Aux {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

pub struct Nic(OwnedFd);

impl Nic {
    /// The netdev `name` of a namespace. Hears everything that comes in, whomever it is for.
    pub fn new(space: &Space, name: &str) -> Nic {
        Nic::open(space, name, false)
    }

    /// One that sends frames with an offload header of 10 bytes in front.
    pub fn with_header(space: &Space, name: &str) -> Nic {
        Nic::open(space, name, true)
    }

    fn open(space: &Space, name: &str, header: bool) -> Nic {
        let index = c_int::try_from(space.link(name).unwrap_or_else(|| panic!("no {name}")).index).unwrap();
        let everything = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the call takes no pointers.
        let fd = space.within(|| unsafe { libc::socket(libc::AF_PACKET, kind, 0) });
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: it is new, and nobody else's.
        let nic = Nic(unsafe { OwnedFd::from_raw_fd(fd) });
        nic.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM);
        nic.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, ROOM);
        nic.set(libc::SOL_PACKET, IGNORE_OUTGOING, 1);
        nic.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1);
        if header {
            nic.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1);
        }
        // SAFETY: all zeros are a valid address of no meaning.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = everything;
        address.sll_ifindex = index;
        let size = size_of_val(&address) as libc::socklen_t;
        // SAFETY: it reads an address of this size, which outlives the call.
        let done = unsafe { libc::bind(fd, ptr::from_ref(&address).cast(), size) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        nic
    }

    fn set(&self, level: c_int, option: c_int, value: c_int) {
        let size = size_of::<c_int>() as libc::socklen_t;
        // SAFETY: it reads one int, which outlives the call.
        let done = unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, ptr::from_ref(&value).cast(), size) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }

    pub fn try_send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: it reads the bytes of a slice.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub fn send(&self, frame: &[u8]) {
        self.try_send(frame).unwrap_or_else(|e| panic!("{} bytes: {e}", frame.len()));
    }

    /// The next frame, if there is one now. A tag that the kernel has put aside is back in it.
    pub fn try_take(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0u8; 70_000];
        let mut control = [0u64; 16];
        let mut piece = libc::iovec { iov_base: frame.as_mut_ptr().cast::<c_void>(), iov_len: frame.len() };
        // SAFETY: all zeros are a valid message of nothing.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast::<c_void>();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: the message points to buffers of the sizes it says, which outlive the call.
        let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        let Ok(len) = usize::try_from(len) else {
            let e = io::Error::last_os_error();
            // The netdev may have gone; that is told once, and nothing comes any more.
            assert!(matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NetworkDown), "{e}");
            return None;
        };
        frame.truncate(len);
        // SAFETY: the kernel has filled in the message; its control buffer is still there.
        let note = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: it is null, or points into that buffer.
        let note = unsafe { note.as_ref() };
        if let Some(note) = note
            && (note.cmsg_level, note.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA)
        {
            // SAFETY: the note is one of the message.
            let aux = unsafe { libc::CMSG_DATA(note) }.cast::<Aux>();
            // SAFETY: this is what a note of this kind holds.
            let aux = unsafe { aux.read_unaligned() };
            if aux.status & STATUS_VLAN_VALID != 0 {
                let tpid = if aux.status & STATUS_VLAN_TPID_VALID != 0 { aux.vlan_tpid } else { 0x8100 };
                let [t0, t1] = tpid.to_be_bytes();
                let [c0, c1] = aux.vlan_tci.to_be_bytes();
                frame.splice(12..12, [t0, t1, c0, c1]);
            }
        }
        Some(frame)
    }

    /// The next frame. Waits for it.
    pub fn take(&self) -> Vec<u8> {
        loop {
            if let Some(frame) = self.try_take() {
                return frame;
            }
            readable(self);
        }
    }

    /// What is there now.
    pub fn rest(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.try_take()).collect()
    }

    /// The frames up to `last`, which is awaited.
    pub fn take_until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| Some(self.take()).filter(|frame| frame != last)).collect()
    }
}

impl AsFd for Nic {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A frame of the type that no stack answers.
pub fn experiment(to: Mac, from: Mac, payload: &[u8]) -> Vec<u8> {
    frame(to, from, EXPERIMENT, payload)
}

pub fn frame(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to.octets(), &from.octets(), &kind.to_be_bytes()[..], payload].concat()
}
