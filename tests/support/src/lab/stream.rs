//! TCP over IPv4 frames: GSO packets as guests send them, and checks of their segments with checksum code that is not
//! the switch's.

use std::sync::LazyLock;

use etherparse::checksum::Sum16BitWords;
use vifswitch::wire::Mac;

/// Header bytes: Ethernet, IPv4, TCP.
pub const HEADERS: usize = 54;

const ADDRESSES: [u8; 8] = [10, 5, 0, 1, 10, 5, 0, 2];

/// Bytes after which the stream repeats itself.
const PERIOD: usize = 1 << 16;

/// Two periods, computed once: tests that are not optimised spend most of their time here if not.
static PERIODS: LazyLock<Vec<u8>> = LazyLock::new(|| (0..2 * PERIOD).map(|i| (i * 7 + (i >> 8)) as u8).collect());

/// Bytes of the stream from `from` on, one period at most.
pub fn content(from: u32, len: usize) -> Vec<u8> {
    assert!(len <= PERIOD, "one period at most: {len}");
    PERIODS[from as usize % PERIOD..][..len].to_vec()
}

/// Pseudo-header sum for `len` bytes of TCP.
fn pseudo(addresses: &[u8], len: usize) -> Sum16BitWords {
    Sum16BitWords::new().add_slice(addresses).add_2bytes([0, 6]).add_2bytes((len as u16).to_be_bytes())
}

/// A frame with bytes `at` to `at + len` of the stream, and a partial TCP checksum.
pub fn open_frame(to: Mac, from: Mac, at: u32, len: usize) -> Vec<u8> {
    let mut frame = [&to.octets()[..], &from.octets(), &[8, 0, 0x45, 0]].concat();
    frame.extend((40 + len as u16).to_be_bytes());
    frame.extend([0, 7, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(ADDRESSES);
    let sum = Sum16BitWords::new().add_slice(&frame[14..34]).ones_complement().to_be();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x12, 0x34, 0, 9]);
    frame.extend(at.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    let open = !pseudo(&ADDRESSES, 20 + len).ones_complement().to_be();
    frame[50..52].copy_from_slice(&open.to_be_bytes());
    frame.extend(content(at, len));
    frame
}

/// Whether length and checksums of a TCP over IPv4 frame without options are right.
pub fn is_whole(frame: &[u8]) -> bool {
    let Some((ip, segment)) = frame.get(14..).and_then(|ip| ip.split_at_checked(20)) else { return false };
    ip[2..4] == (20 + segment.len() as u16).to_be_bytes()
        && Sum16BitWords::new().add_slice(ip).ones_complement() == 0
        && pseudo(&ip[12..20], segment.len()).add_slice(segment).ones_complement() == 0
}

/// Position in the stream, and payload.
pub fn payload(frame: &[u8]) -> (u32, &[u8]) {
    (u32::from_be_bytes(*frame[38..].first_chunk().unwrap()), &frame[HEADERS..])
}
