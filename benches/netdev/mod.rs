//! A netdev in a namespace, and a generator and a sink at two of them, for `scripts/bench` and `scripts/storm-lab`.
#![forbid(unsafe_code)]
#![allow(dead_code)] // each of them uses a part
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

pub mod forward;
pub mod generator;
pub mod sink;
pub mod trial;

use std::fs::File;
use std::io::{Read, Seek};

use rustix::net::netdevice::name_to_index;
use vifswitch::sys::netns::{Netns, within};
use vifswitch::sys::packet::{NOTHING, Socket};
use vifswitch::sys::{cores, link};
use vifswitch::wire::Mac;

/// Ethertype for local experiments (IEEE 802-2014, 9.2.3), which no stack answers.
pub const EXPERIMENT: u16 = 0x88b5;

/// A netdev in a namespace.
pub struct Place {
    pub netns: Netns,
    pub device: String,
}

impl Place {
    pub fn written(text: &str) -> Place {
        let (netns, device) = text.split_once(':').expect("NETNS:DEVICE");
        Place { netns: Netns::written(netns), device: device.into() }
    }

    pub fn mac(&self) -> Mac {
        within(&self.netns, || link::find(&self.device)).unwrap().unwrap().expect("the netdev").mac
    }

    /// A packet socket that receives frames of `ethertype`.
    pub fn socket(&self, ethertype: u16) -> Socket {
        within(&self.netns, || {
            let socket = Socket::new().unwrap();
            if ethertype != NOTHING {
                socket.set_room(64 << 20, 8 << 20).unwrap();
                socket.ignore_outgoing().unwrap();
            }
            let index = name_to_index(&socket, &self.device).unwrap();
            socket.bind(index, ethertype).unwrap();
            socket
        })
        .unwrap()
    }

    /// Counters of the netdev, readable from any namespace.
    pub fn counters(&self) -> Counters {
        // The thread's table: the process is in another namespace.
        let table = within(&self.netns, || File::open("/proc/thread-self/net/dev").unwrap()).unwrap();
        Counters { table, device: self.device.clone(), text: String::new() }
    }
}

/// Receive counters of a netdev.
pub struct Counters {
    table: File,
    device: String,
    text: String,
}

impl Counters {
    /// Frames that the netdev has received.
    pub fn received(&mut self) -> u64 {
        self.text.clear();
        self.table.rewind().unwrap();
        self.table.read_to_string(&mut self.text).unwrap();
        let lines = self.text.lines().filter_map(|line| line.trim().split_once(':'));
        let counters = lines.filter(|(name, _)| *name == self.device).map(|(_, counters)| counters).next();
        counters.expect("the netdev").split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// Pins this thread to a core.
pub fn stay_on(core: usize) {
    assert!(cores::pin(core), "core {core} is not available");
}
