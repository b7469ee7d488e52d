//! The least that a switch over two taps does: reads a frame from one and writes it to the other.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vifswitch::sys::tun::{Flags, Queue};

use super::generator::BURST;

/// Interval at which one that sleeps looks whether it is to end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

pub struct Forwarder {
    taps: [Queue; 2],
}

/// Creates two taps in the namespace of this thread; `header`: with `virtio_net_hdr` and offloads.
pub fn open(names: [&str; 2], header: bool) -> Forwarder {
    let taps = names.map(|name| {
        let queue = Queue::open(name, Flags { vnet_header: header, multi_queue: false, exclusive: true }).unwrap();
        if header {
            let _ = queue.set_offloads().unwrap();
        } else {
            queue.clear_offloads().unwrap()
        }
        queue
    });
    Forwarder { taps }
}

impl Forwarder {
    /// Forwards both ways until it is to end; `sleeps`: waits for frames when idle, instead of polling.
    pub fn run(&self, sleeps: bool, ends: impl Fn() -> bool) {
        let mut room = vec![0; 70_000];
        while !ends() {
            let mut idle = true;
            for (from, to) in [(&self.taps[0], &self.taps[1]), (&self.taps[1], &self.taps[0])] {
                for _ in 0..BURST {
                    let Ok(len) = from.read(&mut room) else { break };
                    idle = false;
                    // Frames that do not fit are lost, as in any switch.
                    let _ = to.write(&room[..len]);
                }
            }
            if idle && sleeps {
                let mut watched = self.taps.each_ref().map(|tap| PollFd::new(tap, PollFlags::IN));
                let _ = poll(&mut watched, Some(&LOOK));
            }
        }
    }
}
