//! Sink: a receive ring at a netdev, into which the kernel writes each frame with the time at which the netdev received it.
//! So it does not matter when the sink is read.

use std::time::Duration;

use rustix::net::netdevice::name_to_index;
use vifswitch::sys::netns::within;
use vifswitch::sys::packet::{Ring, Socket};

use super::{EXPERIMENT, Place, generator};

/// Frames that may wait to be read.
const SLOTS: usize = 16_384;

pub struct Sink {
    socket: Socket,
    ring: Ring,
}

impl Sink {
    pub fn new(place: &Place) -> Sink {
        within(&place.netns, || {
            let socket = Socket::new().unwrap();
            socket.ignore_outgoing().unwrap();
            let index = name_to_index(&socket, &place.device).unwrap();
            let ring = Ring::new(&socket, SLOTS).unwrap();
            socket.bind(index, EXPERIMENT).unwrap();
            Sink { socket, ring }
        })
        .unwrap()
    }

    /// The next frame: its number, and the time since 1970 at which the netdev received it.
    pub fn take(&mut self) -> Option<(u64, Duration)> {
        loop {
            let arrival = self.ring.arrival()?;
            if let Some(number) = generator::number_of(arrival.bytes()) {
                return Some((number, arrival.time()));
            }
        }
    }

    /// Frames that arrived and found the ring full, since the last call.
    pub fn missed(&self) -> u32 {
        self.socket.statistics().unwrap().lost
    }
}
