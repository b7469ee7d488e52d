//! A guest's network card without a guest: a packet socket on a netdev, or the file of a tap. Sends what the switch
//! receives, and receives what it sends.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::time::Duration;

use tun_tap::{Iface, Mode};
use vifswitch::sys::packet::{EVERYTHING, HEADER, Socket, Tag};
use vifswitch::time;
use vifswitch::wire::{Mac, Probe};

use super::{EXPERIMENT, Namespace, TEST_TIMEOUT, await_that, readable};

/// Receive buffer: more than any test sends at once.
const ROOM: usize = 64 << 20;

thread_local! {
    /// Where frames are received: longer than any, and made once, as zeroing it takes longer than receiving.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 70_000]);
}

pub struct Nic {
    end: End,
    /// Header bytes before each frame.
    header: usize,
}

enum End {
    Netdev(Socket),
    /// The file of a tap, as QEMU holds it.
    OwnedTap(Iface),
}

impl Nic {
    /// The netdev `name` of a namespace. Receives all frames, whatever their destination.
    pub fn new(namespace: &Namespace, name: &str) -> Nic {
        Nic::open(namespace, name, false)
    }

    /// The same, with a `virtio_net_hdr` of 10 bytes in both directions.
    pub fn with_header(namespace: &Namespace, name: &str) -> Nic {
        Nic::open(namespace, name, true)
    }

    fn open(namespace: &Namespace, name: &str, header: bool) -> Nic {
        let index = namespace.link(name).unwrap_or_else(|| panic!("no {name}")).index;
        let socket = namespace.run_in(Socket::new).unwrap();
        socket.set_room(ROOM, ROOM).unwrap();
        socket.ignore_outgoing().unwrap();
        socket.tell_tags().unwrap();
        if header {
            socket.set_header().unwrap();
        }
        socket.bind(index, EVERYTHING).unwrap();
        Nic { end: End::Netdev(socket), header: if header { HEADER } else { 0 } }
    }

    /// A new tap whose netdev the switch uses and whose file the guest holds, without `virtio_net_hdr`.
    pub fn owned_tap(namespace: &Namespace, name: &str) -> Nic {
        let tap = namespace.run_in(|| Iface::without_packet_info(name, Mode::Tap)).unwrap();
        tap.set_non_blocking().unwrap();
        Nic { end: End::OwnedTap(tap), header: 0 }
    }

    pub fn try_send(&self, frame: &[u8]) -> io::Result<()> {
        match &self.end {
            End::Netdev(socket) => socket.send(frame),
            End::OwnedTap(tap) => tap.send(frame).map(drop),
        }
    }

    pub fn send(&self, frame: &[u8]) {
        self.try_send(frame).unwrap_or_else(|e| panic!("{} bytes: {e}", frame.len()));
    }

    /// Next pending frame, without loop probes and announcements of the switch.
    pub fn try_take(&self) -> Option<Vec<u8>> {
        let is_own = |frame: &[u8]| {
            let frame = &frame[self.header..];
            frame.starts_with(&Probe::DESTINATION.octets()) || is_announcement(frame)
        };
        std::iter::from_fn(|| self.try_take_any()).find(|frame| !is_own(frame))
    }

    /// Next pending frame of any kind. Restores a tag stripped by the kernel.
    pub fn try_take_any(&self) -> Option<Vec<u8>> {
        BUFFER.with_borrow_mut(|buffer| {
            let (len, tag) = match &self.end {
                End::Netdev(socket) => {
                    let received = socket.receive(buffer).unwrap_or_else(|e| {
                        // A deleted netdev causes one error, and no further frames.
                        assert_eq!(e.kind(), ErrorKind::NetworkDown, "{e}");
                        None
                    })?;
                    (received.len, received.tag)
                }
                End::OwnedTap(tap) => match tap.recv(buffer) {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                    done => (done.unwrap(), None),
                },
            };
            let mut frame = buffer[..len].to_vec();
            if let Some(tag) = tag {
                let at = self.header + Tag::AT;
                frame.splice(at..at, tag.bytes());
            }
            Some(frame)
        })
    }

    /// Waits for the next frame.
    pub fn take(&self) -> Vec<u8> {
        let begun = time::now();
        loop {
            if let Some(frame) = self.try_take() {
                return frame;
            }
            // Loop probes, which are left out, may come without end.
            let timeout = Duration::from_secs(TEST_TIMEOUT.tv_sec.unsigned_abs());
            assert!(time::now().since(begun) < timeout, "no frame came");
            match &self.end {
                End::Netdev(socket) => readable(socket),
                // Its file is available as a raw descriptor only, which safe code cannot poll.
                End::OwnedTap(_) => return await_that("a frame", || self.try_take()),
            }
        }
    }

    /// All pending frames.
    pub fn rest(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.try_take()).collect()
    }

    /// Frames up to `last`, which is awaited.
    pub fn take_until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| Some(self.take()).filter(|frame| frame != last)).collect()
    }
}

/// Whether a frame is an announcement of the switch: a RARP request with data in its padding.
fn is_announcement(frame: &[u8]) -> bool {
    let start = if frame.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
    let (begin, padding) = (frame.get(start - 2..start + 8), frame.get(start + 28..));
    begin == Some(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3])
        && padding.is_some_and(|padding| padding.iter().any(|&byte| byte != 0))
}

/// A frame of the experimental EtherType, which no stack answers.
pub fn experiment(to: Mac, from: Mac, payload: &[u8]) -> Vec<u8> {
    frame(to, from, EXPERIMENT, payload)
}

pub fn frame(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to.octets(), &from.octets(), &kind.to_be_bytes()[..], payload].concat()
}

/// Adds an outer tag.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &vlan.to_be_bytes(), &frame[12..]].concat()
}
