//! XSKMAP: maps receive queues to AF_XDP sockets.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{address, call, map, number};

// enum bpf_cmd
const MAP_UPDATE_ELEM: c_long = 2;
const MAP_DELETE_ELEM: c_long = 3;

/// BPF_MAP_TYPE_XSKMAP
const TYPE_XSKMAP: u32 = 17;

/// Size of a value, a descriptor, in bytes.
const WORD: u32 = 4;

/// Socket of each receive queue.
#[derive(Debug)]
pub struct XskMap(OwnedFd);

/// Attributes of MAP_UPDATE_ELEM and MAP_DELETE_ELEM.
#[repr(C)]
struct EntryAttributes {
    map: u32,
    unused: u32,
    key: u64,
    value: u64,
    flags: u64,
}
const _: () = assert!(size_of::<EntryAttributes>() == 32);

impl XskMap {
    /// Creates a map for the queues 0 to `queues` - 1, without sockets.
    ///
    /// Needs the same capabilities as a program.
    pub fn new(queues: u32) -> io::Result<XskMap> {
        map::create(TYPE_XSKMAP, WORD, queues, 0).map(XskMap)
    }

    /// Redirects frames of `queue` to `socket`, an AF_XDP socket bound to that queue. Closing the socket removes the
    /// entry.
    pub fn set(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let socket = number(&socket);
        self.entry(MAP_UPDATE_ELEM, queue, Some(&socket))
    }

    /// Removes the socket of `queue`.
    pub fn clear(&self, queue: u32) -> io::Result<()> {
        self.entry(MAP_DELETE_ELEM, queue, None)
    }

    fn entry(&self, command: c_long, queue: u32, value: Option<&u32>) -> io::Result<()> {
        let (key, value) = (address(&queue), value.map_or(0, |value| address(value)));
        let mut attributes = EntryAttributes { map: number(&self.0), unused: 0, key, value, flags: 0 };
        // SAFETY: the kernel reads a 4-byte key and, for an update, a 4-byte value; both outlive the call.
        unsafe { call(command, &mut attributes) }.map(drop)
    }
}

impl AsFd for XskMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
