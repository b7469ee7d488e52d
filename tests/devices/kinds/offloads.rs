//! TCP between guests whose network stacks use offloads, on every pair of device kinds. Needs root; makes its own
//! namespaces.

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use support::host::nic::Nic;
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions, offloads, tcp_both_ways};
use support::host::{Namespace, await_that};

/// Guests on taps and packet ports send partial checksums and GSO packets; guests on `xdp` do not, as documented. All
/// receive both from each other.
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
                // For AF_XDP the switch completes the work.
                if to_kind == DeviceKind::Xdp && from_kind != DeviceKind::Xdp {
                    assert!(
                        divided > 0 && completed > 0,
                        "{from_kind:?} to {to_kind:?}: {divided} segmented, {completed} completed"
                    );
                }
            }
        }
    }
    let ports = setup.daemon.await_idle();
    for (index, port) in ports.iter().enumerate().filter(|(index, _)| DeviceKind::ALL[index % 3] != DeviceKind::Xdp) {
        let worked = (port.counts.segmented, port.counts.checksummed);
        assert_eq!(worked, (0, 0), "{:?} takes offloads and receives them", DeviceKind::ALL[index % 3]);
    }
    assert!(ports.iter().all(|port| !port.counts.drops.contains_key("offload_unsupported")), "{ports:?}");
}

/// TCP or UDP checksum over IPv4: whether it is right, and whether it is partial (pseudo-header only).
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

/// TCP or UDP packets that a stack has dropped for wrong checksums.
fn refused(namespace: &Namespace) -> u64 {
    let table = namespace.run_in(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = table.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "InCsumErrors").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// A guest on `xdp` with checksum offload: the kernel passes the frame with its partial checksum to the XDP program,
/// also in veth's native mode. AF_XDP does not tell that the checksum is partial, so the frame looks like one with a
/// wrong checksum. The switch forwards it unmodified, and the receiver drops it: no TCP connection is established
/// until the guest's offloads are off. Frames that it receives are always right.
#[test]
fn partial_checksums_of_xdp_guests_are_dropped_by_receivers() {
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
            // No socket is bound there: a host that accepts the checksum replies at once.
            let port = SocketAddrV4::new(*address, 9);
            let connecting = guest.run_in(|| TcpStream::connect_timeout(&port.into(), Duration::from_millis(200)));
            assert!(connecting.is_err());
            let syn = await_tcp(&there);
            assert_eq!(checksum(&syn), (!open, open), "{:?}: TCP", on[to]);
            if open {
                await_that("the dropped checksum", || (refused(&setup.spaces[to]) > before).then_some(()));
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

/// Next frame of TCP over IPv4.
fn await_tcp(nic: &Nic) -> Vec<u8> {
    loop {
        let frame = nic.take();
        if frame[12..14] == [8, 0] && frame[23] == 6 {
            return frame;
        }
    }
}
