//! AF_XDP sockets: four rings shared with the kernel, over a UMEM that both sides write.
//!
//! A *UMEM* is memory registered with the kernel, in chunks of one page. A chunk put into the *fill*
//! ring returns in the *receive* ring with a frame; a chunk put into the *transmit* ring returns in the
//! *completion* ring after transmission. Each ring has a producer and a consumer counter; the kernel
//! writes one, this process the other. Counters wrap at 2^32.
//!
//! One UMEM serves sockets on any netdev in any namespace, so frames are forwarded without a copy. A
//! socket can share only the UMEM of a *bound* socket, and inherits its copy mode. Netdevs come and
//! go, so the anchor socket is bound to the loopback of a private network namespace ([`Umem`]).
//! Zero-copy sockets cannot share with the anchor; each registers the same memory again.
//!
//! Source: the kernel's `Documentation/networking/af_xdp.rst`.

mod ring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDesc, XdpDescOptions, XdpMmapOffsets, XdpStatistics,
    XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::memory::Mapping;
use ring::Ring;

/// Chunk size in bytes.
pub const CHUNK: u32 = 4096;

/// Send buffer in bytes, for frames that the driver has not freed yet; the kernel doubles the value.
const SEND_BUFFER: usize = 4 << 20;

/// Interface index of the loopback, the same in each namespace.
const LOOPBACK: u32 = 1;

/// Memory registered with the kernel until the process ends.
#[derive(Debug)]
pub struct Umem {
    anchor: OwnedFd,
    base: NonNull<u8>,
    len: u64,
}

// SAFETY: a Umem holds a descriptor and the address of memory that lives until the process ends. It
// gives no access to that memory.
unsafe impl Send for Umem {}
// SAFETY: as above; a Umem is immutable.
unsafe impl Sync for Umem {}

impl Umem {
    /// Registers the first `len` bytes of `memory`, a multiple of [`CHUNK`]. The kernel allocates and pins
    /// all of it. A temporary thread enters a new network namespace for this, if permitted.
    pub fn register(memory: &'static Mapping, len: usize) -> io::Result<Umem> {
        assert!(len <= memory.len());
        let (base, len) = (memory.base(), len as u64);
        // Raw pointers are not `Send`; addresses are.
        let address = base.as_ptr().addr() as u64;
        let anchor = std::thread::scope(|scope| {
            let visit = std::thread::Builder::new().name("umem".into()).spawn_scoped(scope, || {
                // SAFETY: the thread keeps sharing its other resources, and ends before anything can depend
                // on its network namespace.
                match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
                    // Without CAP_SYS_ADMIN use the current namespace's loopback, which serves one process only.
                    Ok(()) | Err(Errno::PERM) => {}
                    Err(e) => return Err(e),
                }
                let fd = socket()?;
                registration(&fd, address, len)?;
                rings(&fd, 64)?;
                bind(&fd, &SocketAddrXdp::new(COPY, LOOPBACK, 0))?;
                Ok::<_, Errno>(fd)
            })?;
            visit.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(io::Error::from)
        })?;
        Ok(Umem { anchor, base, len })
    }
}

const COPY: SocketAddrXdpFlags =
    SocketAddrXdpFlags::XDP_COPY.union(SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP).union(SocketAddrXdpFlags::XDP_USE_SG);
const ZERO_COPY: SocketAddrXdpFlags = SocketAddrXdpFlags::XDP_ZEROCOPY
    .union(SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP)
    .union(SocketAddrXdpFlags::XDP_USE_SG);

fn socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)
}

fn registration(fd: &OwnedFd, addr: u64, len: u64) -> Result<(), Errno> {
    let flags = XdpUmemRegFlags::empty();
    sockopt::set_xdp_umem_reg(fd, XdpUmemReg { addr, len, chunk_size: CHUNK, headroom: 0, flags, tx_metadata_len: 0 })
}

/// Sets the number of entries of each of the four rings.
fn rings(fd: &OwnedFd, entries: u32) -> Result<(), Errno> {
    sockopt::set_xdp_umem_fill_ring_size(fd, entries)?;
    sockopt::set_xdp_umem_completion_ring_size(fd, entries)?;
    sockopt::set_xdp_rx_ring_size(fd, entries)?;
    sockopt::set_xdp_tx_ring_size(fd, entries)
}

/// A frame or fragment in the UMEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Byte offset in the UMEM.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// True if the next piece continues the same frame.
    pub more: bool,
}

impl From<XdpDesc> for Piece {
    #[inline(always)]
    fn from(desc: XdpDesc) -> Piece {
        Piece { address: desc.addr, len: desc.len, more: desc.options.contains(XdpDescOptions::XDP_PKT_CONTD) }
    }
}

impl From<Piece> for XdpDesc {
    #[inline(always)]
    fn from(piece: Piece) -> XdpDesc {
        let options = if piece.more { XdpDescOptions::XDP_PKT_CONTD } else { XdpDescOptions::empty() };
        XdpDesc { addr: piece.address, len: piece.len, options }
    }
}

/// Result of [`Socket::kick`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kick {
    /// The kernel transmitted the whole ring, or its maximum per call.
    Done,
    /// The device dropped one frame and the call ended: its queue is full, or it has no carrier.
    Dropped,
    /// The kernel lacks memory or buffer space; the frames stay in the ring.
    Full,
    /// The netdev is administratively down; the frames stay in the ring.
    Down,
    /// The netdev is gone.
    Gone,
}

/// An AF_XDP socket bound to one queue of a netdev.
#[derive(Debug)]
pub struct Socket {
    // A mapped ring keeps the socket and its queue in use, so rings and descriptor are dropped together.
    receive: Ring<XdpDesc>,
    transmit: Ring<XdpDesc>,
    fill: Ring<u64>,
    completion: Ring<u64>,
    fd: OwnedFd,
}

impl Socket {
    /// Binds a copy-mode socket to queue `queue` of the netdev `index` in the calling thread's namespace. Each
    /// ring has `entries` entries, a power of two. The kernel copies frames between UMEM and driver memory.
    pub fn copying(umem: &Umem, index: u32, queue: u32, entries: u32) -> io::Result<Socket> {
        let fd = socket()?;
        rings(&fd, entries)?;
        // Frames count against the send buffer until the driver frees them. The default is less than a ring of long
        // frames; if raising it fails, fewer frames are in flight.
        let _ = sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER);
        let socket = Socket::map(fd, entries)?;
        // A sharing bind sets this flag alone; the others are inherited from the anchor.
        let addr = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, index, queue);
        bind(&socket.fd, &SocketAddrXdpWithSharedUmem { addr, shared_umem_fd: umem.anchor.as_fd() })?;
        Ok(socket)
    }

    /// Like [`Socket::copying`] in zero-copy mode: the driver transmits from and receives into the UMEM.
    /// EOPNOTSUPP if the driver cannot.
    pub fn zero_copy(umem: &Umem, index: u32, queue: u32, entries: u32) -> io::Result<Socket> {
        let fd = socket()?;
        registration(&fd, umem.base.as_ptr().addr() as u64, umem.len)?;
        rings(&fd, entries)?;
        let socket = Socket::map(fd, entries)?;
        bind(&socket.fd, &SocketAddrXdp::new(ZERO_COPY, index, queue))?;
        Ok(socket)
    }

    fn map(fd: OwnedFd, entries: u32) -> io::Result<Socket> {
        let XdpMmapOffsets { rx, tx, fr, cr } = sockopt::xdp_mmap_offsets(&fd)?;
        Ok(Socket {
            receive: Ring::map(&fd, entries, XDP_PGOFF_RX_RING, &rx)?,
            transmit: Ring::map(&fd, entries, XDP_PGOFF_TX_RING, &tx)?,
            fill: Ring::map(&fd, entries, XDP_UMEM_PGOFF_FILL_RING, &fr)?,
            completion: Ring::map(&fd, entries, XDP_UMEM_PGOFF_COMPLETION_RING, &cr)?,
            fd,
        })
    }

    /// Takes the next received piece. The caller owns its chunk.
    #[inline(always)]
    pub fn received(&mut self) -> Option<Piece> {
        self.receive.take().map(Piece::from)
    }

    /// Returns the receive ring entries of the taken pieces to the kernel.
    #[inline(always)]
    pub fn release_received(&mut self) {
        self.receive.publish();
    }

    /// Free entries of the fill ring.
    #[inline(always)]
    pub fn fill_room(&mut self) -> u32 {
        self.fill.room()
    }

    /// Puts the chunk at `address` into the fill ring, which must have a free entry.
    ///
    /// # Safety
    ///
    /// The caller owns the chunk, and does not access it until [`Socket::received`] returns it or the
    /// socket is closed.
    #[inline(always)]
    pub unsafe fn fill(&mut self, address: u64) {
        self.fill.put(address);
    }

    /// Publishes new fill ring entries to the kernel, and wakes a driver that waits for chunks.
    #[inline(always)]
    pub fn publish_fill(&mut self) {
        self.fill.publish();
        self.wake_receive();
    }

    /// Wakes a driver that stopped receiving for lack of chunks, if the fill ring has some. The driver may have
    /// stopped after the last publish without reading the new entries. `false` if the driver could not be woken now,
    /// such as one that resets its device, and has to be woken again.
    #[inline(always)]
    pub fn wake_receive(&mut self) -> bool {
        if self.fill.wants_wakeup() && self.fill.unread() > 0 {
            let mut empty = [0; 0];
            // It reads nothing.
            return is_awake(recv(&self.fd, &mut empty, RecvFlags::DONTWAIT).err());
        }
        true
    }

    /// Free entries of the transmit ring.
    #[inline(always)]
    pub fn transmit_room(&mut self) -> u32 {
        self.transmit.room()
    }

    /// Puts a piece into the transmit ring, which must have a free entry.
    ///
    /// # Safety
    ///
    /// The caller owns the chunk, the piece is within it, and no one writes the chunk until
    /// [`Socket::completed`] returns it or the socket is closed.
    #[inline(always)]
    pub unsafe fn transmit(&mut self, piece: Piece) {
        self.transmit.put(piece.into());
    }

    /// Publishes new transmit ring entries to the kernel.
    #[inline(always)]
    pub fn publish_transmit(&mut self) {
        self.transmit.publish();
    }

    /// Producer position of the transmit ring: pieces put so far, modulo 2^32.
    #[inline(always)]
    pub fn transmit_position(&self) -> u32 {
        self.transmit.position()
    }

    /// Consumer position of the transmit ring, as published by the kernel. It may lag: the kernel does not publish
    /// it after a call that ends with the drop of its first frame.
    #[inline(always)]
    pub fn transmit_taken(&mut self) -> u32 {
        self.transmit.other_position()
    }

    /// The piece at a position, which must be among the last `entries` ones.
    pub fn transmit_piece(&self, position: u32) -> Piece {
        self.transmit.entry(position).into()
    }

    /// True if the kernel transmits only after [`Socket::kick`]. Always true in copy mode.
    #[inline(always)]
    pub fn wants_kick(&self) -> bool {
        self.transmit.wants_wakeup()
    }

    /// Makes the kernel transmit. In copy mode it transmits up to 32 frames within this call.
    #[inline]
    pub fn kick(&self) -> Kick {
        match send(&self.fd, &[], SendFlags::DONTWAIT) {
            Ok(_) | Err(Errno::AGAIN) => Kick::Done,
            Err(Errno::BUSY) => Kick::Dropped,
            Err(Errno::NETDOWN) => Kick::Down,
            Err(Errno::NXIO | Errno::BADF | Errno::NODEV) => Kick::Gone,
            Err(_) => Kick::Full,
        }
    }

    /// Takes the next transmitted chunk and returns an address within it. The caller owns the chunk.
    #[inline(always)]
    pub fn completed(&mut self) -> Option<u64> {
        self.completion.take()
    }

    /// Returns the completion ring entries of the taken chunks to the kernel.
    #[inline(always)]
    pub fn release_completed(&mut self) {
        self.completion.publish();
    }

    /// Reads the kernel's counters of this socket.
    pub fn statistics(&self) -> io::Result<XdpStatistics> {
        Ok(sockopt::xdp_statistics(&self.fd)?)
    }
}

/// False if a driver that answered so has to be woken again. One whose netdev is down or gone receives nothing, and
/// reads the fill ring when it is set up.
fn is_awake(answer: Option<Errno>) -> bool {
    matches!(answer, None | Some(Errno::NETDOWN | Errno::NXIO | Errno::NODEV))
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_cannot_be_woken_now_is_woken_again() {
        for answer in [Errno::AGAIN, Errno::BUSY, Errno::INVAL, Errno::IO, Errno::NOMEM, Errno::NOBUFS] {
            assert!(!is_awake(Some(answer)), "{answer}");
        }
        for answer in [None, Some(Errno::NETDOWN), Some(Errno::NXIO), Some(Errno::NODEV)] {
            assert!(is_awake(answer), "{answer:?}");
        }
    }
}
