//! Any IP address reaches any other through an unaddressed port. Payload and checksums are forwarded unmodified,
//! valid or not. Needs root; makes its own namespaces.

use support::host::nic::frame;
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions};
use vifswitch::wire::Mac;

/// Deterministic random bytes (splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

/// A packet between two random addresses, alternately IPv4 and IPv6, with a random checksum.
fn packet(to: Mac, from: Mac, number: u32, noise: &mut Noise) -> Vec<u8> {
    let data = noise.bytes::<24>();
    if number.is_multiple_of(2) {
        let head = [0x45, 0, 0, 44, 0, 1, 0, 0, 64, 17];
        let addresses = [noise.bytes::<4>(), noise.bytes()];
        return frame(to, from, 0x0800, &[&head, &noise.bytes::<2>()[..], addresses.as_flattened(), &data].concat());
    }
    let head = [0x60, 0, 0, 0, 0, 24, 17, 64];
    let addresses = [noise.bytes::<16>(), noise.bytes()];
    frame(to, from, 0x86dd, &[&head, addresses.as_flattened(), &data].concat())
}

/// Shows: REQ-12
#[test]
fn any_address_reaches_any_other_through_an_unaddressed_port() {
    const PAIRS: u32 = 100_000;
    const WINDOW: u32 = 50;
    for on in [&[DeviceKind::Tap][..], &[DeviceKind::Xdp], &[DeviceKind::Packet]] {
        let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b", "c"]) else { return };
        let [a, b, c] = [0, 1, 2].map(|at| setup.nic(at));
        let [from, to] = [0, 1].map(|at| setup.vifs[at].mac);
        let mut noise = Noise(7);
        for first in (0..PAIRS).step_by(WINDOW as usize) {
            let sent: Vec<_> = (first..first + WINDOW).map(|number| packet(to, from, number, &mut noise)).collect();
            sent.iter().for_each(|packet| a.send(packet));
            for packet in &sent {
                let came = b.take();
                assert!(came == *packet, "{on:?}, after {first}: sent {packet:02x?}, received {came:02x?}");
            }
        }
        let ports = setup.daemon.await_idle();
        let [here, there, third] = [0, 1, 2].map(|at| &ports[at].counts);
        assert_eq!((here.rx_frames, here.forwarded), (PAIRS.into(), PAIRS.into()));
        assert_eq!((there.tx_frames, third.tx_frames), (PAIRS.into(), 0));
        assert!(ports.iter().all(|port| port.counts.drops.is_empty()), "{ports:?}");
        assert!([a, b, c].iter().all(|nic| nic.rest().is_empty()));
    }
}
