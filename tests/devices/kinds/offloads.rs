//! Streams between guests whose stacks leave work to their network cards.

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use support::host::nic::Nic;
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions, offloads, tcp_both_ways};
use support::host::{Namespace, await_that};

/// Guests on taps and packet ports leave checksums open and send super-frames; those behind `xdp` do not, as
/// their owners are told. All of them receive both from each other.
#[test]
fn tcp_passes_between_all_kinds_with_offloads() {
    let Some(setup) = Setup::new(SetupOptions { on: &DeviceKind::ALL, ..PLAIN }, &["a", "b", "c", "d", "e", "f"])
    else {
        return;
    };
    let addresses: Vec<Ipv4Addr> = (0..6).map(|index| setup.address(index)).collect();
    for left in 0..6 {
        for (right, &address) in addresses.iter().enumerate().skip(left + 1) {
            let before = setup.daemon.await_idle();
            tcp_both_ways(&setup.spaces[left], &setup.spaces[right], address, 2_000_000);
            let after = setup.daemon.await_idle();
            for (from, to) in [(left, right), (right, left)] {
                let (from_kind, to_kind) = (DeviceKind::ALL[from % 3], DeviceKind::ALL[to % 3]);
                let divided = after[to].counts.segmented - before[to].counts.segmented;
                let completed = after[to].counts.checksummed - before[to].counts.checksummed;
                // For AF_XDP the switch does what is left to do.
                if to_kind == DeviceKind::Xdp && from_kind != DeviceKind::Xdp {
                    assert!(divided > 0 && completed > 0, "{from_kind:?} to {to_kind:?}: {divided}, {completed}");
                }
            }
        }
    }
    let ports = setup.daemon.await_idle();
    for (index, port) in ports.iter().enumerate().filter(|(index, _)| DeviceKind::ALL[index % 3] != DeviceKind::Xdp) {
        let worked = (port.counts.segmented, port.counts.checksummed);
        assert_eq!(worked, (0, 0), "{:?} takes the header, and gets it", DeviceKind::ALL[index % 3]);
    }
    assert!(ports.iter().all(|port| !port.counts.drops.contains_key("offload_unsupported")), "{ports:?}");
}

/// The checksum of TCP or UDP over IPv4 in a frame: whether it is right, and whether it is open, which is to
/// say that only the pseudo-header has been summed up.
fn checksum(frame: &[u8]) -> (bool, bool) {
    let fold = |sum: u32| (0..2).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16));
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]))).sum()
    };
    let ip = &frame[14..14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))];
    let (header, segment) = ip.split_at(usize::from(ip[0] & 15) * 4);
    let pseudo = fold(words(&header[12..20]) + u32::from(header[9]) + segment.len() as u32);
    let field = if header[9] == 6 { 16 } else { 6 };
    (fold(pseudo + words(segment)) == 0xffff, words(&segment[field..field + 2]) == pseudo)
}

/// Packets of TCP or UDP with wrong checksums that a stack has refused.
fn refused(namespace: &Namespace) -> u64 {
    let table = namespace.run_in(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = table.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "InCsumErrors").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// A stack behind an `xdp` port that leaves its checksums open: the kernel hands the frame to the XDP program
/// as it is, also in the driver of a veth, which converts it but completes nothing. That the checksum is open
/// stands nowhere in what AF_XDP delivers, and the frame looks like one whose checksum is wrong. The switch
/// passes it on untouched, as every frame with a wrong checksum, and the receiver refuses it. So no TCP
/// connection comes about, until the guest's offloads are off. What it receives is right at any time.
#[test]
fn checksums_left_open_behind_xdp_are_lost_and_refused_by_who_receives() {
    let on = &[DeviceKind::Xdp, DeviceKind::Tap, DeviceKind::Packet, DeviceKind::Xdp];
    let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b", "c", "d"]) else { return };
    let addresses = [0, 1, 2, 3].map(|index| setup.address(index));
    let guest = &setup.spaces[0];
    for (to, address) in addresses.iter().enumerate().skip(1) {
        guest.ip(&format!("neigh add {address} lladdr {} dev tap1", setup.vifs[to].mac));
        setup.spaces[to]
            .ip(&format!("neigh add {} lladdr {} dev {}", addresses[0], setup.vifs[0].mac, setup.vifs[to].name));
        let there = setup.nic(to);
        for open in [true, false] {
            offloads(guest, "tap1", open);
            let before = refused(&setup.spaces[to]);
            let datagram = || UdpSocket::bind((addresses[0], 0))?.send_to(b"a datagram", (*address, 9));
            guest.run_in(datagram).unwrap();
            assert_eq!(checksum(&there.take()), (!open, open), "{:?}: UDP", on[to]);
            // Nobody listens there: who takes the checksum for right says so at once.
            let port = SocketAddrV4::new(*address, 9);
            let connecting = guest.run_in(|| TcpStream::connect_timeout(&port.into(), Duration::from_millis(200)));
            assert!(connecting.is_err());
            let syn = await_tcp(&there);
            assert_eq!(checksum(&syn), (!open, open), "{:?}: TCP", on[to]);
            if open {
                await_that("the checksum is refused", || (refused(&setup.spaces[to]) > before).then_some(()));
            } else {
                assert_eq!(refused(&setup.spaces[to]), before);
            }
            let _ = there.rest();
        }
        offloads(guest, "tap1", false);
        tcp_both_ways(guest, &setup.spaces[to], *address, 200_000);
        let _ = there.rest();
    }
}

/// The next frame of TCP over IPv4.
fn await_tcp(nic: &Nic) -> Vec<u8> {
    loop {
        let frame = nic.take();
        if frame[12..14] == [8, 0] && frame[23] == 6 {
            return frame;
        }
    }
}
