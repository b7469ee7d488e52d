//! Generator: sends numbered frames on a netdev by AF_XDP in copy mode, which is the fastest way that any netdev takes.

use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::netdevice::name_to_index;
use vifswitch::frame::{CopyMode, Magazine, Pool, XskQueue};
use vifswitch::sys::netns::within;
use vifswitch::sys::packet::Socket;
use vifswitch::sys::xsk::Kick;
use vifswitch::wire::Offload;

use super::Place;

/// Entries of each ring, and slots: as many frames are in flight.
const ENTRIES: u32 = 8192;
/// Slots in the fill ring, into which the kernel receives nothing: the socket has no program.
const FILL: u32 = 64;
/// Maximum frames per system call: as many as the kernel sends in one.
pub const BURST: u64 = 32;
/// Offset of the number in a frame.
const NUMBER: usize = 14;
/// System calls for one burst before the rest waits for the next one.
const TRIES: usize = 64;
/// Maximum time until the queue of an earlier socket is free: the kernel frees it after the socket is closed.
const REBIND: Duration = Duration::from_secs(5);

/// Memory of the frames of all generators: the kernel uses it until the process ends.
static POOL: LazyLock<&Pool> = LazyLock::new(|| Pool::new(ENTRIES + FILL).unwrap());

/// A sender of one frame again and again, each with a number.
pub struct Generator {
    queue: XskQueue,
    magazine: Magazine,
    frame: Vec<u8>,
    /// Frames sent so far.
    sent: u64,
}

impl Generator {
    pub fn new(place: &Place, frame: &[u8]) -> Generator {
        let queue = within(&place.netns, || {
            let index = name_to_index(Socket::new().unwrap(), &place.device).unwrap();
            let since = Instant::now();
            loop {
                match XskQueue::open(*POOL, (index, 0), CopyMode::Copy, ENTRIES, FILL) {
                    Ok(queue) => return queue,
                    Err(e) => assert!(since.elapsed() < REBIND, "{}: {e}", place.device),
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        Generator { queue: queue.unwrap(), magazine: Magazine::new(*POOL), frame: frame.to_vec(), sent: 0 }
    }

    /// Sends up to `count` frames, at most [`BURST`], and numbers them on. Returns how many it has sent: fewer if too
    /// many are in flight.
    pub fn send(&mut self, count: u64) -> u64 {
        self.queue.reap(&mut self.magazine);
        let before = self.sent;
        while self.sent - before < count.min(BURST) {
            let number = self.sent.to_be_bytes();
            self.frame[NUMBER..NUMBER + number.len()].copy_from_slice(&number);
            let Some(mut frame) = self.magazine.frame(&self.frame, Offload::NONE) else { break };
            if !self.queue.send(&mut frame) {
                self.magazine.recycle(frame);
                break;
            }
            self.sent += 1;
        }
        self.queue.flush();
        for _ in 0..TRIES {
            assert!(!matches!(self.queue.kick(), Kick::Down | Kick::Gone), "the netdev is down or gone");
            if self.queue.unsent() == 0 {
                break;
            }
        }
        self.sent - before
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
