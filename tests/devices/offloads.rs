//! Offloads over taps: guests with offloads and guests without exchange TCP and UDP through the switch; their network
//! stacks verify the result. Needs root; makes its own namespaces.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use rustix::net::{RecvFlags, recv};
use support::host::daemon::{Daemon, Vif};
use support::host::nic::Nic;
use support::host::setup::{Setup, ping, tcp_both_ways};
use support::host::{Namespace, await_that, readable};

/// A VM with offloads, and one without. `None` if the host cannot run the test.
fn with_and_without() -> Option<Setup> {
    let spaces = (0..2).map(|_| Namespace::new()).collect::<Option<Vec<_>>>()?;
    let vifs = vec![Vif::new("with", 1, &spaces[0]), Vif::new("without", 2, &spaces[1]).device(", offloads = false")];
    Some(Setup { daemon: Daemon::over(&vifs), vifs, spaces })
}

/// Adds an IPv6 address to the port at `index`. Prints the reason and returns `None` without IPv6.
fn address_v6(setup: &Setup, index: usize) -> Option<Ipv6Addr> {
    let allowed = setup.spaces[index].run_in(|| {
        let set = |who: &str| std::fs::write(format!("/proc/sys/net/ipv6/conf/{who}/disable_ipv6"), "0");
        set("all").and_then(|()| set(&setup.vifs[index].name))
    });
    if allowed.is_err() {
        eprintln!("skipped: needs IPv6");
        return None;
    }
    let address = Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, index as u16 + 1);
    setup.spaces[index].ip(&format!("-6 addr add {address}/64 dev {} nodad", setup.vifs[index].name));
    Some(address)
}

/// Packets with wrong checksums at a namespace's stack: TCP and UDP over IPv4 (TCP includes IPv6).
fn wrong_checksums(namespace: &Namespace) -> u64 {
    let table = namespace.run_in(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let columns = lines.chunks(2).filter(|pair| matches!(pair[0][0], "Tcp:" | "Udp:"));
    let wrong = columns.map(|pair| {
        let column = pair[0].iter().position(|&name| name == "InCsumErrors").unwrap();
        pair[1][column].parse::<u64>().unwrap()
    });
    wrong.sum()
}

/// Of the port without offloads: segmented GSO packets, and completed checksums.
fn counts_of_offloads(setup: &Setup) -> (u64, u64) {
    let done = setup.daemon.await_idle().into_iter().map(|port| (port.counts.segmented, port.counts.checksummed));
    let done: Vec<(u64, u64)> = done.collect();
    assert_eq!(done[0], (0, 0), "no work for a port with offloads");
    done[1]
}

#[test]
fn tcp_is_segmented_for_a_tap_without_offloads() {
    let Some(setup) = with_and_without() else { return };
    let nic = setup.nic(1);
    let addresses = [setup.address(0), setup.address(1)];
    ping(&setup.spaces[0], addresses[1], 2);
    tcp_both_ways(&setup.spaces[0], &setup.spaces[1], addresses[1], 5_000_000);
    let (segmented, checksummed) = counts_of_offloads(&setup);
    assert!(segmented > 10 && checksummed > 0, "{segmented} {checksummed}");
    assert_eq!(setup.daemon.drops(&setup.vifs[1], "offload_unsupported"), 0);
    assert_eq!(wrong_checksums(&setup.spaces[1]), 0);
    // Received frames, unmodified.
    let frames = nic.rest();
    let stream: Vec<_> = frames.iter().filter(|frame| frame[12..14] == [8, 0] && frame[23] == 6).collect();
    assert!(stream.len() > 1000);
    assert!(frames.iter().all(|frame| frame.len() <= 1514));
    assert!(stream.iter().all(|frame| support::lab::stream::is_whole(frame)));
}

#[test]
fn tcp_over_ipv6_is_segmented() {
    let Some(setup) = with_and_without() else { return };
    let (Some(_), Some(address)) = (address_v6(&setup, 0), address_v6(&setup, 1)) else { return };
    tcp_both_ways(&setup.spaces[0], &setup.spaces[1], address, 5_000_000);
    let (segmented, checksummed) = counts_of_offloads(&setup);
    assert!(segmented > 10 && checksummed > 0, "{segmented} {checksummed}");
    assert_eq!(wrong_checksums(&setup.spaces[1]), 0);
    assert_eq!(setup.daemon.drops(&setup.vifs[1], "offload_unsupported"), 0);
}

/// UDP datagrams that the sender's stack sends as GSO packets.
fn udp_is_segmented(setup: &Setup, from: IpAddr, to: IpAddr) {
    let receiver = setup.spaces[1].run_in(|| UdpSocket::bind((to, 0))).unwrap();
    let sender = setup.spaces[0].run_in(|| UdpSocket::bind((from, 0))).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    setsockopt(&sender, UdpGsoSegment, &1000).unwrap();
    let content = support::lab::stream::content(0, 9400);
    let before = counts_of_offloads(setup).0;
    sender.send(&content).unwrap();
    for part in content.chunks(1000) {
        let mut datagram = [0; 2000];
        readable(&receiver);
        let (len, _) = recv(&receiver, &mut datagram[..], RecvFlags::empty()).unwrap();
        assert!(datagram[..len] == *part);
    }
    // A kernel without this GSO type on taps has segmented them itself.
    let all = setup.daemon.ports()[0].status_reason.is_empty();
    assert_eq!(counts_of_offloads(setup).0 - before, u64::from(all));
    assert_eq!(wrong_checksums(&setup.spaces[1]), 0);
}

#[test]
fn udp_is_segmented_for_a_tap_without_offloads() {
    let Some(setup) = with_and_without() else { return };
    let addresses = [setup.address(0), setup.address(1)];
    ping(&setup.spaces[0], addresses[1], 1);
    udp_is_segmented(&setup, addresses[0].into(), addresses[1].into());
    let (Some(from), Some(to)) = (address_v6(&setup, 0), address_v6(&setup, 1)) else { return };
    udp_is_segmented(&setup, from.into(), to.into());
}

/// A GSO packet that is an IP fragment cannot be segmented. It is counted at the egress port.
#[test]
fn gso_packets_that_cannot_be_segmented_are_counted() {
    let Some(setup) = with_and_without() else { return };
    let nics = [Nic::with_header(&setup.spaces[0], "tap1"), setup.nic(1)];
    // TCP over IPv4, segments of 1000, partial checksum at 34 + 16.
    let header = [1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0];
    let whole = support::lab::stream::open_frame(setup.vifs[1].mac, setup.vifs[0].mac, 0, 3500);
    let mut fragment = whole.clone();
    fragment[20] |= 0x20;
    nics[0].send(&[&header, &fragment[..]].concat());
    await_that("the drops", || (setup.daemon.drops(&setup.vifs[1], "offload_unsupported") == 4).then_some(()));
    assert_eq!(setup.daemon.drops(&setup.vifs[0], "offload_unsupported"), 0);
    assert_eq!(counts_of_offloads(&setup), (0, 0));
    nics[0].send(&[&header, &whole[..]].concat());
    let frames: Vec<_> = (0..4).map(|_| nics[1].take()).collect();
    assert!(frames.iter().all(|frame| support::lab::stream::is_whole(frame)));
    let came: Vec<_> = frames.iter().map(|frame| support::lab::stream::payload(frame)).collect();
    assert!(came == [0, 1000, 2000, 3000].map(|at| (at, &whole[54..][at as usize..][..1000.min(3500 - at as usize)])));
}
