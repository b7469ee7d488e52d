//! AF_XDP sockets: four rings that this process and the kernel share, over memory that both write.
//!
//! A *UMEM* is memory that has been registered with the kernel, in chunks of a page. Chunks that are
//! put into the *fill* ring come back in the *receive* ring with frames in them; those that are put
//! into the *transmit* ring come back in the *completion* ring when they have been sent. Of each ring the
//! kernel owns one counter and we own the other. Counters wrap at 2^32.
//!
//! One UMEM serves sockets on any netdev in any namespace, each with rings of its own: that makes
//! forwarding free of copies. The kernel lets a socket share the UMEM of one that is *bound*, and
//! takes over from it whether frames are copied. Netdevs come and go, so the one that all others share
//! with is bound to the loopback of a namespace that nobody else knows ([`Umem`]). Sockets whose
//! driver works without a copy cannot share with it; these register the same memory once more.
//!
//! See `Documentation/networking/af_xdp.rst` of the kernel.

mod ring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDesc, XdpDescOptions, XdpMmapOffsets, XdpOptionsFlags,
    XdpStatistics, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::memory::Mapping;
use ring::Ring;

/// Bytes of a chunk.
pub const CHUNK: u32 = 4096;

/// Bytes that the kernel leaves free in front of each received frame (XDP_PACKET_HEADROOM).
pub const HEADROOM: u32 = 256;

/// Bytes that frames may take which the driver has not freed yet, by half of what the kernel counts.
const SEND_BUFFER: usize = 4 << 20;

/// The index of the loopback, in each namespace.
const LOOPBACK: u32 = 1;

/// Memory that is registered with the kernel, for as long as the process lives.
#[derive(Debug)]
pub struct Umem {
    anchor: OwnedFd,
    base: NonNull<u8>,
    len: u64,
}

// SAFETY: a Umem is a descriptor, and the address of memory that lives as long as the process. It
// gives nobody access to that memory.
unsafe impl Send for Umem {}
// SAFETY: as above; nothing in it ever changes.
unsafe impl Sync for Umem {}

impl Umem {
    /// Registers the first `len` bytes of `memory`, a whole number of chunks. All of it is taken from the
    /// system and pinned. Opens a namespace of its own for a moment, in a thread of its own, if it may.
    pub fn register(memory: &'static Mapping, len: usize) -> io::Result<Umem> {
        assert!(len <= memory.len());
        let (base, len) = (memory.base(), len as u64);
        // A raw pointer does not go into another thread; its address does.
        let address = base.as_ptr().addr() as u64;
        let anchor = std::thread::scope(|scope| {
            let visit = std::thread::Builder::new().name("umem".into()).spawn_scoped(scope, || {
                // SAFETY: the thread shares its other resources as before, and ends before anything is
                // done that could depend on which namespace it is in.
                match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
                    // Without CAP_SYS_ADMIN the loopback of the present one has to do, which serves one process.
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

/// Sets how many entries each of the four rings has.
fn rings(fd: &OwnedFd, entries: u32) -> Result<(), Errno> {
    sockopt::set_xdp_umem_fill_ring_size(fd, entries)?;
    sockopt::set_xdp_umem_completion_ring_size(fd, entries)?;
    sockopt::set_xdp_rx_ring_size(fd, entries)?;
    sockopt::set_xdp_tx_ring_size(fd, entries)
}

/// A piece of a frame in the UMEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins, in bytes from the beginning of the UMEM.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Whether more of the same frame follows in the next piece.
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

/// What came of asking the kernel to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kick {
    /// It has taken all that it takes at a time, or all there is.
    Done,
    /// The device has dropped one frame, and the call ended there: its queue is full, or it has no carrier.
    Dropped,
    /// There was no room, of whichever kind; the frames stay in the ring.
    Full,
    /// The netdev is set down; the frames stay in the ring.
    Down,
    /// The netdev is gone.
    Gone,
}

/// A socket on one queue of a netdev.
#[derive(Debug)]
pub struct Socket {
    // A mapped ring keeps the socket alive, and its queue busy: all of it goes together.
    receive: Ring<XdpDesc>,
    transmit: Ring<XdpDesc>,
    fill: Ring<u64>,
    completion: Ring<u64>,
    fd: OwnedFd,
}

impl Socket {
    /// A socket on queue `queue` of the netdev `index` of the calling thread's namespace, with `entries` in each
    /// ring: a power of two. Frames are copied between the UMEM and the driver's own memory.
    pub fn copying(umem: &Umem, index: u32, queue: u32, entries: u32) -> io::Result<Socket> {
        let fd = socket()?;
        rings(&fd, entries)?;
        // Frames count against it until the driver has freed them, and a ring of long ones is more than the default.
        // With the default, fewer leave at a time.
        let _ = sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER);
        let socket = Socket::map(fd, entries)?;
        // A bind that shares carries this flag alone; all others are those of the socket it shares with.
        let addr = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, index, queue);
        bind(&socket.fd, &SocketAddrXdpWithSharedUmem { addr, shared_umem_fd: umem.anchor.as_fd() })?;
        Ok(socket)
    }

    /// The same, where the driver sends from and receives into the UMEM itself. EOPNOTSUPP where it cannot.
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

    /// The next piece that has been received. Its chunk is ours again.
    #[inline(always)]
    pub fn received(&mut self) -> Option<Piece> {
        self.receive.take().map(Piece::from)
    }

    /// Gives the kernel back the entries of the pieces that were taken.
    #[inline(always)]
    pub fn release_received(&mut self) {
        self.receive.publish();
    }

    /// How many chunks fit into the fill ring now.
    #[inline(always)]
    pub fn fill_room(&mut self) -> u32 {
        self.fill.room()
    }

    /// Puts the chunk at `address` into the fill ring, where there is room.
    ///
    /// # Safety
    ///
    /// The chunk is the caller's, who leaves it to the kernel until it comes back by
    /// [`Socket::received`] or the socket is closed.
    #[inline(always)]
    pub unsafe fn fill(&mut self, address: u64) {
        self.fill.put(address);
    }

    /// Lets the kernel see what was put into the fill ring, and wakes the driver if it sleeps for want of it.
    #[inline(always)]
    pub fn publish_fill(&mut self) {
        self.fill.publish();
        self.wake_receive();
    }

    /// Wakes a driver that has stopped receiving for want of chunks, if there are some for it again. It may have
    /// stopped after the fill ring was last published, without having seen what was put there.
    #[inline(always)]
    pub fn wake_receive(&mut self) {
        if self.fill.wants_wakeup() && self.fill.unread() > 0 {
            let mut empty = [0; 0];
            let _ = recv(&self.fd, &mut empty, RecvFlags::DONTWAIT); // all it does is to wake
        }
    }

    /// How many pieces fit into the transmit ring now.
    #[inline(always)]
    pub fn transmit_room(&mut self) -> u32 {
        self.transmit.room()
    }

    /// Puts a piece into the transmit ring, where there is room.
    ///
    /// # Safety
    ///
    /// The chunk is the caller's, the piece lies within it, and nobody writes it until it comes back by
    /// [`Socket::completed`] or the socket is closed.
    #[inline(always)]
    pub unsafe fn transmit(&mut self, piece: Piece) {
        self.transmit.put(piece.into());
    }

    /// Lets the kernel see what was put into the transmit ring.
    #[inline(always)]
    pub fn publish_transmit(&mut self) {
        self.transmit.publish();
    }

    /// How many pieces were ever put into the transmit ring, modulo 2^32.
    #[inline(always)]
    pub fn transmit_position(&self) -> u32 {
        self.transmit.position()
    }

    /// How many of these the kernel says that it has taken out. It says so late: not after a call that ends with the
    /// drop of its first frame.
    #[inline(always)]
    pub fn transmit_taken(&mut self) -> u32 {
        self.transmit.other_position()
    }

    /// The piece that was put at this position, one of the last.
    pub fn transmit_piece(&self, position: u32) -> Piece {
        self.transmit.entry(position).into()
    }

    /// Whether the kernel sends only when it is asked to. Always so where frames are copied.
    #[inline(always)]
    pub fn wants_kick(&self) -> bool {
        self.transmit.wants_wakeup()
    }

    /// Asks the kernel to send. Where frames are copied it sends in this very call, at most 32 of them.
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

    /// The next chunk that has been sent: an address within it. It is ours again.
    #[inline(always)]
    pub fn completed(&mut self) -> Option<u64> {
        self.completion.take()
    }

    /// Gives the kernel back the entries of the chunks that were taken.
    #[inline(always)]
    pub fn release_completed(&mut self) {
        self.completion.publish();
    }

    /// Whether the driver works without a copy.
    pub fn is_zero_copy(&self) -> io::Result<bool> {
        Ok(sockopt::xdp_options(&self.fd)?.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
    }

    /// What the kernel has counted.
    pub fn statistics(&self) -> io::Result<XdpStatistics> {
        Ok(sockopt::xdp_statistics(&self.fd)?)
    }

    /// An error that waits to be told: the netdev is gone or has been set down.
    pub fn error(&self) -> io::Result<()> {
        Ok(sockopt::socket_error(&self.fd)??)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
