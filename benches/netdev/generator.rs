//! Generator: sends numbered frames on a netdev by AF_XDP in copy mode, which is the fastest way that any netdev takes.

use std::thread;
use std::time::{Duration, Instant};

use rustix::net::netdevice::name_to_index;
use vifswitch::sys::memory::Mapping;
use vifswitch::sys::netns::within;
use vifswitch::sys::packet::Socket as PacketSocket;
use vifswitch::sys::xsk::{CHUNK, Kick, Piece, Socket, Umem};

use super::Place;

/// Entries of each ring, and frames in flight.
const ENTRIES: u32 = 8192;
/// Maximum frames per system call: as many as the kernel sends in one.
pub const BURST: u64 = 32;
/// Offset of the number in a frame.
const NUMBER: usize = 14;
/// System calls for one burst before the rest waits for the next one.
const TRIES: usize = 64;
/// Maximum time until the queue of an earlier socket is free: the kernel frees it after the socket is closed.
const REBIND: Duration = Duration::from_secs(5);

/// A sender of one frame again and again, each with a number.
pub struct Generator {
    socket: Socket,
    memory: &'static Mapping,
    /// Chunks that the kernel does not use.
    free: Vec<u64>,
    len: u32,
    /// Frames sent so far.
    sent: u64,
    // the socket shares its memory
    _umem: Umem,
}

impl Generator {
    pub fn new(place: &Place, frame: &[u8]) -> Generator {
        // Used by the kernel until the process ends.
        let memory: &'static Mapping = Box::leak(Box::new(Mapping::new((ENTRIES * CHUNK) as usize).unwrap()));
        let umem = Umem::register(memory, memory.len()).unwrap();
        let socket = within(&place.netns, || {
            let index = name_to_index(PacketSocket::new().unwrap(), &place.device).unwrap();
            let since = Instant::now();
            loop {
                match Socket::copying(&umem, index, 0, ENTRIES) {
                    Ok(socket) => return socket,
                    Err(e) => assert!(since.elapsed() < REBIND, "{}: {e}", place.device),
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        let free = (0..ENTRIES).map(|chunk| u64::from(chunk * CHUNK)).collect();
        let mut generator =
            Generator { socket: socket.unwrap(), memory, free, len: frame.len() as u32, sent: 0, _umem: umem };
        for chunk in 0..ENTRIES {
            generator.chunk(u64::from(chunk * CHUNK))[..frame.len()].copy_from_slice(frame);
        }
        generator
    }

    /// A chunk of ours.
    fn chunk(&mut self, address: u64) -> &mut [u8] {
        assert!(address.is_multiple_of(CHUNK.into()) && address < (ENTRIES * CHUNK).into());
        // SAFETY: the chunk is within the mapping.
        let first = unsafe { self.memory.base().add(address as usize) };
        // SAFETY: the kernel does not use the chunk: it is in `free`, or was just taken from there. Only this generator
        // has references into the mapping, and this one borrows it.
        unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), CHUNK as usize) }
    }

    /// Sends up to `count` frames, at most [`BURST`], and numbers them on. Returns how many it has sent: fewer if too
    /// many are in flight.
    pub fn send(&mut self, count: u64) -> u64 {
        while let Some(address) = self.socket.completed() {
            self.free.push(address / u64::from(CHUNK) * u64::from(CHUNK));
        }
        self.socket.release_completed();
        let count = count.min(BURST).min(self.free.len() as u64).min(self.socket.transmit_room().into());
        for _ in 0..count {
            let address = self.free.pop().unwrap();
            let number = self.sent.to_be_bytes();
            self.chunk(address)[NUMBER..NUMBER + number.len()].copy_from_slice(&number);
            // SAFETY: the chunk was ours and is not accessed before it is completed; the frame is within it.
            unsafe { self.socket.transmit(Piece { address, len: self.len, more: false }) };
            self.sent += 1;
        }
        self.socket.publish_transmit();
        for _ in 0..TRIES {
            assert!(!matches!(self.socket.kick(), Kick::Down | Kick::Gone), "the netdev is down or gone");
            if self.socket.transmit_taken() == self.socket.transmit_position() {
                break;
            }
        }
        count
    }

    /// Frames sent so far, and the number of the next one.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

/// The number of a frame.
pub fn number_of(frame: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(frame.get(NUMBER..NUMBER + 8)?.try_into().unwrap()))
}
