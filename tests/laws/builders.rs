//! Helpers of the hand-written cases: labs, frames byte by byte, and received frames by port.

use vifswitch::device::loopback::RxMemory;
use vifswitch::wire::Mac;

use support::lab::{Lab, frame};

/// One and three workers, each with owned and borrowed RX buffers.
pub const KINDS: [(u16, RxMemory); 4] =
    [(1, RxMemory::Owned), (1, RxMemory::Lent), (3, RxMemory::Owned), (3, RxMemory::Lent)];

/// A frame of EtherType 0x88b5 with these bytes after its VLAN tags (TPID, TCI).
pub fn tagged(to: Mac, from: Mac, tags: &[(u16, u16)], payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(to, from, 0x88b5, payload);
    for &(kind, control) in tags.iter().rev() {
        let [a, b] = kind.to_be_bytes();
        let [c, d] = control.to_be_bytes();
        bytes.splice(12..12, [a, b, c, d]);
    }
    bytes
}

/// Bytes that all differ from their neighbours, so that a misplaced byte is detected.
pub fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// Sends bytes unmodified on a loopback device. Returns each received frame in order, with the loopback device that
/// received it.
pub fn sent(lab: &mut Lab, loopback: usize, bytes: &[u8]) -> Vec<(usize, Vec<u8>)> {
    assert!(lab.send(loopback, bytes));
    lab.settle();
    let arrived = lab.all_received().into_iter().enumerate();
    arrived.flat_map(|(port, frames)| frames.into_iter().map(move |frame| (port, frame))).collect()
}

/// Ends a lab and checks its counters.
pub fn done(lab: Lab) {
    lab.check_counters();
    lab.end();
}
