//! Tap devices: `/dev/net/tun` and the ioctls of `linux/if_tun.h`.
//!
//! A [`Queue`] is an open file of `/dev/net/tun` attached to a netdev. The netdev lives in the namespace of the thread
//! that opened the file; the queue works from any namespace.

use std::ffi::{c_int, c_uint};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Getter, IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};

use crate::sys::netns;

/// IFNAMSIZ: maximum length of a netdev name with its final zero.
const NAME: usize = 16;

const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<c_int>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<c_int>(b'T', 204);
const TUNSETGROUP: Opcode = opcode::write::<c_int>(b'T', 206);
const TUNSETOFFLOAD: Opcode = opcode::write::<c_int>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<c_int>(b'T', 216);
const TUNSETVNETLE: Opcode = opcode::write::<c_int>(b'T', 220);
const TUNGETIFF: Opcode = opcode::read::<c_uint>(b'T', 210);
const TUNGETDEVNETNS: Opcode = opcode::none(b'T', 227);

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_TUN_EXCL: u16 = 0x8000;
/// The queue is detached from the netdev.
const IFF_DETACH_QUEUE: u16 = 0x0400;

/// TUN_F_CSUM, _TSO4, _TSO6, _TSO_ECN: supported by every kernel.
const OFFLOADS: usize = 0x01 | 0x02 | 0x04 | 0x08;
/// TUN_F_USO4, _USO6: since Linux 6.2.
const OFFLOADS_UDP: usize = 0x20 | 0x40;

/// Flags of TUNSETIFF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    /// Each frame begins with a `virtio_net_hdr` (IFF_VNET_HDR).
    pub vnet_header: bool,
    /// The device may have several queues (IFF_MULTI_QUEUE). All queues must agree.
    pub multi_queue: bool,
    /// Fails if the device exists (IFF_TUN_EXCL).
    pub exclusive: bool,
}

impl Flags {
    /// As the kernel has them.
    fn bits(self) -> u16 {
        let flag = |on: bool, bits: u16| if on { bits } else { 0 };
        IFF_TAP
            | IFF_NO_PI
            | flag(self.vnet_header, IFF_VNET_HDR)
            | flag(self.multi_queue, IFF_MULTI_QUEUE)
            | flag(self.exclusive, IFF_TUN_EXCL)
    }
}

/// Offloads that the kernel may leave to us on receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloads {
    /// Checksums and TCP and UDP segmentation.
    All,
    /// Checksums and TCP segmentation; this kernel has none for UDP.
    TcpOnly,
}

/// Why `read` returned no frame.
#[derive(Debug)]
pub enum NoFrame {
    /// No frame is pending.
    Empty,
    /// The kernel could not deliver a frame and has dropped it; others may follow.
    Lost,
    /// Another error; no frame has left the queue.
    Failed(Errno),
    /// The device is gone or unusable.
    Gone(io::Error),
}

/// Why `write` sent no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// The send buffer is full.
    Full,
    /// The kernel is out of memory.
    NoMemory,
    /// The netdev is administratively down or gone.
    Down,
    /// The kernel rejects this frame.
    Refused,
}

/// A queue of a tap.
#[derive(Debug)]
pub struct Queue {
    fd: OwnedFd,
}

/// `struct ifreq` for TUNSETIFF.
#[repr(C)]
struct Request {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}
const _: () = assert!(size_of::<Request>() == 40);

/// Whether the kernel accepts this as a netdev name unchanged. It silently truncates long names and expands `%d`, so
/// these are refused here.
pub fn is_name(name: &str) -> bool {
    // The kernel's isspace() covers Latin-1, where a0 is a space.
    let forbidden = |b: u8| b.is_ascii_whitespace() || matches!(b, 0 | 0x0b | 0xa0 | b'/' | b':' | b'%');
    !matches!(name, "" | "." | "..") && name.len() < NAME && !name.bytes().any(forbidden)
}

impl Queue {
    /// Opens a queue of the tap `name` in the calling thread's namespace. Creates the tap if it does not exist; it then
    /// lasts as long as its queues.
    pub fn open(name: &str, flags: Flags) -> io::Result<Queue> {
        if !is_name(name) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no valid device name")));
        }
        let modes = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let queue = Queue { fd: rustix::fs::open("/dev/net/tun", modes, Mode::empty())? };
        queue.attach(name, flags)?;
        Ok(queue)
    }

    fn attach(&self, name: &str, flags: Flags) -> io::Result<()> {
        let mut request = Request { name: [0; NAME], flags: flags.bits(), rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: TUNSETIFF reads one `struct ifreq` and writes it back; `Request` has its layout.
        let set = unsafe { Updater::<TUNSETIFF, Request>::new(&mut request) };
        // SAFETY: the file is /dev/net/tun, which implements TUNSETIFF.
        unsafe { ioctl(&self.fd, set) }?;
        Ok(())
    }

    /// A queue from an open file, such as one of an earlier process, or `None` if the file is no queue of the tap `name` in
    /// the calling thread's namespace with these flags.
    pub fn from_file(fd: OwnedFd, name: &str, flags: Flags) -> io::Result<Option<Queue>> {
        let queue = Queue { fd };
        // SAFETY: the kernel writes one `struct ifreq`, whose layout `Request` has. Other files return an error, as this
        // opcode is of no other driver.
        let get = unsafe { Getter::<TUNGETIFF, Request>::new() };
        // SAFETY: as above.
        let Ok(found) = (unsafe { ioctl(&queue.fd, get) }) else { return Ok(None) };
        let len = found.name.iter().position(|&byte| byte == 0).unwrap_or(NAME);
        let considered = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE | IFF_DETACH_QUEUE;
        if &found.name[..len] != name.as_bytes() || found.flags & considered != flags.bits() {
            return Ok(None);
        }
        // SAFETY: the file is /dev/net/tun; TUNGETDEVNETNS opens the namespace of a queue's netdev, without an argument.
        if !unsafe { netns::is_in_this_namespace::<TUNGETDEVNETNS>(&queue.fd) }? {
            return Ok(None);
        }
        let status = rustix::fs::fcntl_getfl(&queue.fd)?;
        rustix::fs::fcntl_setfl(&queue.fd, status | OFlags::NONBLOCK)?;
        Ok(Some(queue))
    }

    /// Configures the `virtio_net_hdr`: 12 bytes, little-endian, as [`Offload`](crate::wire::Offload) parses it.
    /// Enables receive offloads; returns which.
    pub fn set_offloads(&self) -> io::Result<Offloads> {
        self.point::<TUNSETVNETHDRSZ>(12)?;
        self.point::<TUNSETVNETLE>(1)?;
        match self.pass::<TUNSETOFFLOAD>(OFFLOADS | OFFLOADS_UDP) {
            Ok(()) => Ok(Offloads::All),
            Err(Errno::INVAL) => self.pass::<TUNSETOFFLOAD>(OFFLOADS).map(|()| Offloads::TcpOnly).map_err(Into::into),
            Err(e) => Err(e.into()),
        }
    }

    /// Disables receive offloads. A device keeps the settings of an earlier process, and without a header would deliver
    /// GSO packets and partial checksums that nothing describes.
    pub fn clear_offloads(&self) -> io::Result<()> {
        Ok(self.pass::<TUNSETOFFLOAD>(0)?)
    }

    /// Sets whether the device outlives its queues (IFF_PERSIST).
    pub fn set_persist(&self, persist: bool) -> io::Result<()> {
        Ok(self.pass::<TUNSETPERSIST>(usize::from(persist))?)
    }

    /// Permits this user to open queues of the device without CAP_NET_ADMIN.
    pub fn set_owner(&self, uid: u32) -> io::Result<()> {
        Ok(self.pass::<TUNSETOWNER>(id(uid)?)?)
    }

    /// Permits the members of this group to.
    pub fn set_group(&self, gid: u32) -> io::Result<()> {
        Ok(self.pass::<TUNSETGROUP>(id(gid)?)?)
    }

    /// Sets a value that the kernel reads through a pointer to int.
    fn point<const CALL: Opcode>(&self, value: c_int) -> rustix::io::Result<()> {
        // SAFETY: only called with opcodes for which the kernel reads one int.
        let set = unsafe { Setter::<CALL, c_int>::new(value) };
        // SAFETY: the file is /dev/net/tun, which implements the opcode.
        unsafe { ioctl(&self.fd, set) }
    }

    /// Sets a value passed as the ioctl's argument.
    fn pass<const CALL: Opcode>(&self, value: usize) -> rustix::io::Result<()> {
        // SAFETY: only called with opcodes that take a number, never an address.
        let set = unsafe { IntegerSetter::<CALL>::new_usize(value) };
        // SAFETY: the file is /dev/net/tun, which implements the opcode.
        unsafe { ioctl(&self.fd, set) }
    }

    /// Reads the next frame, with its header if enabled. Returns the length in bytes.
    #[inline]
    pub fn read(&self, room: &mut [u8]) -> Result<usize, NoFrame> {
        loop {
            return match rustix::io::read(&self.fd, &mut *room) {
                Ok(len) => Ok(len),
                Err(Errno::INTR) => continue,
                Err(e) => Err(no_frame(e)),
            };
        }
    }

    /// Writes one contiguous frame.
    #[inline]
    pub fn write(&self, frame: &[u8]) -> Result<(), Unsent> {
        loop {
            return match rustix::io::write(&self.fd, frame) {
                Ok(_) => Ok(()), // never a part of a frame
                Err(Errno::INTR) => continue,
                Err(e) => Err(unsent(e)),
            };
        }
    }

    /// Writes one frame from several buffers.
    #[inline]
    pub fn write_pieces(&self, iovecs: &[IoSlice<'_>]) -> Result<(), Unsent> {
        loop {
            return match rustix::io::writev(&self.fd, iovecs) {
                Ok(_) => Ok(()),
                Err(Errno::INTR) => continue,
                Err(e) => Err(unsent(e)),
            };
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A user or group as the argument of an ioctl.
fn id(id: u32) -> io::Result<usize> {
    usize::try_from(id).map_err(io::Error::other)
}

fn no_frame(e: Errno) -> NoFrame {
    match e {
        // EINVAL: the header cannot express its offloads. The frame has left the queue in each case.
        Errno::INVAL | Errno::NOMEM | Errno::NOBUFS | Errno::FAULT | Errno::MSGSIZE => NoFrame::Lost,
        // EBADFD: the netdev has been deleted. Closing a queue for any other error would delete it.
        Errno::BADFD | Errno::BADF => NoFrame::Gone(e.into()),
        Errno::AGAIN => NoFrame::Empty,
        // Older kernels return EIO while the netdev is down.
        _ => NoFrame::Failed(e),
    }
}

fn unsent(e: Errno) -> Unsent {
    match e {
        Errno::AGAIN => Unsent::Full,
        Errno::NOBUFS | Errno::NOMEM => Unsent::NoMemory,
        Errno::IO | Errno::BADFD => Unsent::Down,
        _ => Unsent::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_frame_and_of_the_device_are_distinguished() {
        assert!(matches!(no_frame(Errno::INVAL), NoFrame::Lost));
        assert!(matches!(no_frame(Errno::AGAIN), NoFrame::Empty));
        for error in [Errno::IO, Errno::NXIO, Errno::NETDOWN, Errno::PERM] {
            assert!(matches!(no_frame(error), NoFrame::Failed(e) if e == error), "{error}");
        }
        assert!(matches!(no_frame(Errno::BADFD), NoFrame::Gone(_)));
        let message = [Errno::AGAIN, Errno::NOBUFS, Errno::NOMEM, Errno::INVAL, Errno::MSGSIZE, Errno::IO].map(unsent);
        use Unsent::{Down, Full, NoMemory, Refused};
        assert_eq!(message, [Full, NoMemory, NoMemory, Refused, Refused, Down]);
    }

    #[test]
    fn constants_are_those_of_the_kernel() {
        assert_eq!(TUNSETIFF, 0x4004_54ca);
        assert_eq!(TUNSETPERSIST, 0x4004_54cb);
        assert_eq!(TUNSETOWNER, 0x4004_54cc);
        assert_eq!(TUNSETGROUP, 0x4004_54ce);
        assert_eq!(TUNSETOFFLOAD, 0x4004_54d0);
        assert_eq!(TUNSETVNETHDRSZ, 0x4004_54d8);
        assert_eq!(TUNSETVNETLE, 0x4004_54dc);
        assert_eq!(TUNGETIFF, 0x8004_54d2);
        assert_eq!(TUNGETDEVNETNS, 0x54e3);
    }

    #[test]
    fn long_names_are_refused_and_not_truncated() {
        for name in ["tap0", "a", "123456789012345", "tap-1.2_x", "tapä"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "1234567890123456", "a/b", "a b", "a:1", "tap%d", "a\tb", "a\u{b}", "a\0", "\u{a0}"]
        {
            assert!(!is_name(name), "{name:?}");
            let flags = Flags { vnet_header: false, multi_queue: false, exclusive: true };
            assert_eq!(Queue::open(name, flags).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
