//! Tap devices: `/dev/net/tun` and the ioctls of `linux/if_tun.h`.
//!
//! A [`Queue`] is one open file of `/dev/net/tun` that is attached to a netdev. The netdev lives in
//! the namespace of the thread that opened the file, and the queue works from any other.

use std::ffi::c_int;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};

/// Bytes of a name that the kernel keeps, the final zero included.
const NAME: usize = 16;

const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<c_int>(b'T', 203);
const TUNSETOFFLOAD: Opcode = opcode::write::<c_int>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<c_int>(b'T', 216);
const TUNSETVNETLE: Opcode = opcode::write::<c_int>(b'T', 220);

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_TUN_EXCL: u16 = 0x8000;

/// TUN_F_CSUM, _TSO4, _TSO6, _TSO_ECN: what any kernel of ours takes.
const OFFLOADS: usize = 0x01 | 0x02 | 0x04 | 0x08;
/// TUN_F_USO4, _USO6: since Linux 6.2.
const OFFLOADS_UDP: usize = 0x20 | 0x40;

/// How a queue is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    /// Each frame has an offload header in front.
    pub vnet_header: bool,
    /// The device may have more than one queue. All its queues must agree.
    pub multi_queue: bool,
    /// The device must not be there yet.
    pub exclusive: bool,
}

/// What a device has been told to leave undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloads {
    /// Checksums and TCP and UDP segmentation.
    All,
    /// Checksums and TCP segmentation; this kernel has none for UDP.
    TcpOnly,
}

/// Why no frame was read.
#[derive(Debug)]
pub enum NoFrame {
    /// There is none now.
    Empty,
    /// There was one that the kernel could not hand over. It has been dropped; there may be others behind it.
    Lost,
    /// The device is gone, or so broken that it may as well be.
    Gone(io::Error),
}

/// Why a frame was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// There is no room for it now.
    Full,
    /// The kernel had no memory for it.
    NoMemory,
    /// The netdev is down or gone.
    Down,
    /// The kernel does not take this frame.
    Refused,
}

/// One queue of a tap.
#[derive(Debug)]
pub struct Queue {
    fd: OwnedFd,
}

/// `struct ifreq` as TUNSETIFF has it.
#[repr(C)]
struct Request {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}
const _: () = assert!(size_of::<Request>() == 40);

/// Whether the kernel would take this as the name of a netdev, unchanged. It cuts long names and
/// fills in `%d` without a word, so that these are refused here.
pub fn is_name(name: &str) -> bool {
    // the kernel's isspace() reads Latin-1, where a0 is a space
    let forbidden = |b: u8| b.is_ascii_whitespace() || matches!(b, 0 | 0x0b | 0xa0 | b'/' | b':' | b'%');
    !matches!(name, "" | "." | "..") && name.len() < NAME && !name.bytes().any(forbidden)
}

impl Queue {
    /// Opens a queue of the tap `name` in the namespace of the calling thread. If there is no such
    /// device it is made, and lasts as long as its queues.
    pub fn open(name: &str, flags: Flags) -> io::Result<Queue> {
        if !is_name(name) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} cannot be the name of a device"),
            ));
        }
        let modes = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let queue = Queue { fd: rustix::fs::open("/dev/net/tun", modes, Mode::empty())? };
        queue.attach(name, flags)?;
        Ok(queue)
    }

    fn attach(&self, name: &str, flags: Flags) -> io::Result<()> {
        let flag = |on: bool, bits: u16| if on { bits } else { 0 };
        let mut request = Request { name: [0; NAME], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request.flags |= flag(flags.vnet_header, IFF_VNET_HDR)
            | flag(flags.multi_queue, IFF_MULTI_QUEUE)
            | flag(flags.exclusive, IFF_TUN_EXCL);
        // SAFETY: TUNSETIFF reads one `struct ifreq` and writes it back; `Request` has its layout.
        let set = unsafe { Updater::<TUNSETIFF, Request>::new(&mut request) };
        // SAFETY: `Queue::open` saw to it that the file is /dev/net/tun, which knows the call so.
        unsafe { ioctl(&self.fd, set) }?;
        Ok(())
    }

    /// Sets up the offload header of a device that has one: 12 bytes, little endian, as
    /// [`Offload`](crate::wire::Offload) reads it. Says what else the device will leave undone.
    pub fn set_offloads(&self) -> io::Result<Offloads> {
        self.point::<TUNSETVNETHDRSZ>(12)?;
        self.point::<TUNSETVNETLE>(1)?;
        match self.pass::<TUNSETOFFLOAD>(OFFLOADS | OFFLOADS_UDP) {
            Ok(()) => Ok(Offloads::All),
            Err(Errno::INVAL) => self.pass::<TUNSETOFFLOAD>(OFFLOADS).map(|()| Offloads::TcpOnly).map_err(Into::into),
            Err(e) => Err(e.into()),
        }
    }

    /// The device shall leave nothing undone. A device remembers what an earlier holder told it,
    /// and would hand out half-made frames without a header that says so.
    pub fn clear_offloads(&self) -> io::Result<()> {
        Ok(self.pass::<TUNSETOFFLOAD>(0)?)
    }

    /// Whether the device outlives its queues.
    pub fn set_persist(&self, persist: bool) -> io::Result<()> {
        Ok(self.pass::<TUNSETPERSIST>(usize::from(persist))?)
    }

    /// A setting that the kernel reads through a pointer to an int.
    fn point<const CALL: Opcode>(&self, value: c_int) -> rustix::io::Result<()> {
        // SAFETY: only called with settings for which the kernel reads one int.
        let set = unsafe { Setter::<CALL, c_int>::new(value) };
        // SAFETY: `Queue::open` saw to it that the file is /dev/net/tun, which knows the call so.
        unsafe { ioctl(&self.fd, set) }
    }

    /// A setting that is the argument itself.
    fn pass<const CALL: Opcode>(&self, value: usize) -> rustix::io::Result<()> {
        // SAFETY: only called with settings that the kernel takes as a number, never as an address.
        let set = unsafe { IntegerSetter::<CALL>::new_usize(value) };
        // SAFETY: `Queue::open` saw to it that the file is /dev/net/tun, which knows the call so.
        unsafe { ioctl(&self.fd, set) }
    }

    /// Reads the next frame, its header in front if the queue has one. How many bytes that was.
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

    /// Writes one frame that lies in one piece.
    #[inline]
    pub fn write(&self, frame: &[u8]) -> Result<(), Unsent> {
        loop {
            return match rustix::io::write(&self.fd, frame) {
                Ok(_) => Ok(()), // a frame goes whole or not at all
                Err(Errno::INTR) => continue,
                Err(e) => Err(unsent(e)),
            };
        }
    }

    /// Writes one frame that lies in several pieces.
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

fn no_frame(e: Errno) -> NoFrame {
    match e {
        // Older kernels answer EIO while the netdev is down.
        Errno::AGAIN | Errno::IO => NoFrame::Empty,
        // EINVAL: its offloads have no form in the header. The frame has left the queue in any case.
        Errno::INVAL | Errno::NOMEM | Errno::NOBUFS | Errno::FAULT | Errno::MSGSIZE => NoFrame::Lost,
        // EBADFD: the netdev has been deleted.
        e => NoFrame::Gone(e.into()),
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
    fn an_error_of_one_frame_is_told_from_one_of_the_device() {
        assert!(matches!(no_frame(Errno::INVAL), NoFrame::Lost));
        assert!(matches!(no_frame(Errno::AGAIN), NoFrame::Empty));
        assert!(matches!(no_frame(Errno::BADFD), NoFrame::Gone(_)));
        let message = [Errno::AGAIN, Errno::NOBUFS, Errno::NOMEM, Errno::INVAL, Errno::MSGSIZE, Errno::IO].map(unsent);
        use Unsent::{Down, Full, NoMemory, Refused};
        assert_eq!(message, [Full, NoMemory, NoMemory, Refused, Refused, Down]);
    }

    #[test]
    fn numbers_are_those_of_the_header_file() {
        assert_eq!(TUNSETIFF, 0x4004_54ca);
        assert_eq!(TUNSETPERSIST, 0x4004_54cb);
        assert_eq!(TUNSETOFFLOAD, 0x4004_54d0);
        assert_eq!(TUNSETVNETHDRSZ, 0x4004_54d8);
        assert_eq!(TUNSETVNETLE, 0x4004_54dc);
    }

    #[test]
    fn names_are_refused_and_never_cut() {
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
