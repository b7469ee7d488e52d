//! TCP through two devices without a switch.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vifswitch::device::Device;
use vifswitch::frame::{Batch, Magazine, Pool, TxBatch};

use super::setup::tcp_both_ways;
use super::{Finally, Namespace};

/// Destination of the stream.
const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// TCP in both directions between a namespace and 10.0.0.2 in another, over two devices that pass GSO packets.
pub fn relay(left: &Namespace, right: &Namespace, devices: [Box<dyn Device>; 2]) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let finally = Finally(&done);
        let forwarder = scope.spawn(|| forward(devices, &done));
        tcp_both_ways(left, right, THERE, 8_000_000);
        drop(finally);
        let max_len = forwarder.join().unwrap();
        assert!(max_len > 32_000, "the longest frame had only {max_len} bytes");
    });
}

/// Forwards between two devices until stopped. Returns the length of the longest frame.
fn forward(mut devices: [Box<dyn Device>; 2], done: &AtomicBool) -> u32 {
    let mut magazine = Magazine::new(Pool::new(1024).unwrap());
    let (mut batch, mut tx) = (Batch::new(), TxBatch::with_capacity(64));
    let mut max_len = 0;
    while !done.load(Ordering::Relaxed) {
        for (from, to) in [(0, 1), (1, 0)] {
            devices[from].receive(&mut batch, &mut magazine).unwrap();
            for index in 0..batch.len() {
                let frame = batch.frame(index);
                assert!(frame.is_valid());
                max_len = max_len.max(frame.len());
                tx.borrow(u8::try_from(index).unwrap());
            }
            devices[to].transmit(&mut tx, &batch, &mut magazine);
            batch.clear(&mut magazine);
            devices[from].release();
        }
        let mut polled = [0, 1].map(|i| PollFd::from_borrowed_fd(devices[i].fd().unwrap(), PollFlags::IN));
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 })).unwrap();
    }
    max_len
}
