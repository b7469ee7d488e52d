//! What the rows that are written by hand have in common: the laboratories in which they are tried, frames byte by
//! byte, and who gets what.

use vifswitch::device::loopback::RxMemory;
use vifswitch::wire::Mac;

use support::lab::{Lab, frame};

/// One worker and three, frames in slots and lent.
pub const KINDS: [(u16, RxMemory); 4] =
    [(1, RxMemory::Owned), (1, RxMemory::Lent), (3, RxMemory::Owned), (3, RxMemory::Lent)];

/// A frame of type 0x88b5 with these bytes behind its tags, each of them a type and what follows.
pub fn tagged(to: Mac, from: Mac, tags: &[(u16, u16)], payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(to, from, 0x88b5, payload);
    for &(kind, control) in tags.iter().rev() {
        let [a, b] = kind.to_be_bytes();
        let [c, d] = control.to_be_bytes();
        bytes.splice(12..12, [a, b, c, d]);
    }
    bytes
}

/// Bytes that differ from each other, so that one out of place is seen.
pub fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// Sends bytes as they are by a cable; what then arrives at which, and at each in order.
pub fn sent(lab: &mut Lab, loopback: usize, bytes: &[u8]) -> Vec<(usize, Vec<u8>)> {
    assert!(lab.send(loopback, bytes));
    lab.settle();
    let arrived = lab.all_received().into_iter().enumerate();
    arrived.flat_map(|(port, frames)| frames.into_iter().map(move |frame| (port, frame))).collect()
}

/// Ends a laboratory in which everything has to add up.
pub fn done(lab: Lab) {
    lab.check_counters();
    lab.end();
}
