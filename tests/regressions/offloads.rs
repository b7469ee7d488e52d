//! Offloads pass where the netdev takes them, and are completed by the switch elsewhere; no frame is lost silently or
//! has a wrong checksum. Needs root; makes its own namespaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::LinkAttribute;
use serde_json::Value;
use vifswitch::wire::Mac;

use super::bad_frames::{ethernet, header, ipv4, owned_taps, pseudo, sum, tcp, udp};
use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions, lay, tcp_both_ways};
use support::host::{Namespace, await_that, run};

/// A guest on `packet`, at the peer of a veth.
fn packet(vm: &str, number: u8, host: &Namespace) -> Option<(Namespace, Vif)> {
    let namespace = Namespace::new()?;
    let mut vif = Vif::new(vm, number, &namespace);
    (vif.kind, vif.netns) = ("packet", host.0.clone());
    lay(&vif, &namespace, 1500);
    Some((namespace, vif))
}

fn turn_off(namespace: &Namespace, name: &str, features: &[&str]) {
    for feature in features {
        namespace.run_in(|| run("ethtool", &["-K", name, feature, "off"]));
    }
}

/// The next IPv4 frames.
fn take(nic: &Nic, count: usize, header: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while frames.len() < count {
        let frame = nic.take();
        if frame[header + 12..header + 14] == [8, 0] {
            frames.push(frame);
        }
    }
    frames
}

/// Asserts that the frames are TCP segments with right checksums that carry the payload in order.
fn assert_segments(frames: &[Vec<u8>], size: usize, payload: &[u8]) {
    let mut all: Vec<u8> = Vec::new();
    for frame in frames {
        let ip = &frame[14..];
        assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len(), "the length of IP");
        assert_eq!(sum(&ip[..20]), 0xffff, "the checksum of IP");
        assert_eq!(sum(&[&pseudo(6, ip.len() - 20).to_be_bytes(), &ip[20..]].concat()), 0xffff, "the checksum of TCP");
        assert_eq!(u32::from_be_bytes([ip[24], ip[25], ip[26], ip[27]]), 1000 + all.len() as u32, "the sequence");
        assert!(ip.len() <= 40 + size, "{} bytes", ip.len());
        all.extend(&ip[40..]);
    }
    assert!(all == payload, "{} of {} bytes", all.len(), payload.len());
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn counter(daemon: &Daemon, vif: &Vif, name: &str) -> u64 {
    let ports = daemon.get::<Vec<Value>>("/v1/ports");
    let port = ports.iter().find(|port| port["port_id"] == vif.port.as_str()).unwrap();
    port[name].as_u64().unwrap_or_default()
}

/// A GSO packet of more than 128 segments: virtio sets no limit, so it passes where the egress port takes it, and is
/// segmented elsewhere.
#[test]
fn gso_packets_with_a_small_mss_pass_unmodified_or_segmented() {
    let Some(host) = Namespace::new() else { return };
    let (Some((from_space, from)), Some((to_space, to))) = (packet("from", 1, &host), packet("to", 2, &host)) else {
        return;
    };
    let plain_space = Namespace::new().unwrap();
    let plain = Vif::new("plain", 3, &plain_space).device(", offloads = false");
    let daemon = Daemon::over(&[from.clone(), to.clone(), plain.clone()]);
    [&from, &to, &plain].iter().for_each(|vif| drop(daemon.await_active(vif)));
    let sender = Nic::with_header(&from_space, &from.name);
    let (whole, parts) = (Nic::with_header(&to_space, &to.name), Nic::new(&plain_space, &plain.name));
    for (size, len) in [(200usize, 60_000usize), (88, 60_000), (500, 65_000), (48, 20_000)] {
        let payload = bytes(len);
        let packet = |to: Mac| ethernet(to, from.mac, 0x0800, &ipv4(6, &tcp(0x10, &payload)));
        let header = header(1, 1, 54, size as u16, 34, 16);
        sender.send(&[&header[..], &packet(to.mac)].concat());
        let came = take(&whole, 1, 10).remove(0);
        assert!(came[10..] == packet(to.mac), "forwarded unmodified, {} bytes", came.len());
        assert_eq!(&came[1..2], &header[1..2], "the type");
        assert_eq!(&came[4..6], &header[4..6], "the size of a segment");
        sender.send(&[&header[..], &packet(plain.mac)].concat());
        assert_segments(&take(&parts, len.div_ceil(size), 0), size, &payload);
    }
    let ports = daemon.await_idle();
    assert!(ports.iter().all(|port| port.counts.drops.is_empty()), "{ports:?}");
}

/// Offloads of a netdev are read at opening: GSO packets that it does not take are segmented before.
#[test]
fn a_netdev_without_tso_gets_segments() {
    for off in ["tso", "tx-tcp-segmentation", "gso_max_size", "gso_max_segs"] {
        let Some(host) = Namespace::new() else { return };
        let (Some((from_space, from)), Some((to_space, to))) = (packet("from", 1, &host), packet("to", 2, &host))
        else {
            return;
        };
        match off {
            "gso_max_size" => host.ip(&format!("link set dev {} gso_max_size 20000", to.name)),
            "gso_max_segs" => host.ip(&format!("link set dev {} gso_max_segs 10", to.name)),
            feature => turn_off(&host, &to.name, &[feature]),
        }
        let daemon = Daemon::over(&[from.clone(), to.clone()]);
        daemon.await_active(&from);
        daemon.await_active(&to);
        let (sender, there) = (Nic::with_header(&from_space, &from.name), Nic::with_header(&to_space, &to.name));
        let payload = bytes(30_000);
        let packet = ethernet(to.mac, from.mac, 0x0800, &ipv4(6, &tcp(0x10, &payload)));
        sender.send(&[&header(1, 1, 54, 1448, 34, 16)[..], &packet].concat());
        let count = payload.len().div_ceil(1448);
        let segments: Vec<Vec<u8>> = take(&there, count, 10).iter().map(|frame| completed(frame)).collect();
        assert_segments(&segments, 1448, &payload);
        assert_eq!(counter(&daemon, &to, "segmented"), 1, "{off}");
        // TCP streams as well.
        from_space.ip(&format!("addr add 10.5.0.1/24 dev {}", from.name));
        to_space.ip(&format!("addr add 10.5.0.2/24 dev {}", to.name));
        tcp_both_ways(&from_space, &to_space, Ipv4Addr::new(10, 5, 0, 2), 2_000_000);
        assert!(daemon.await_idle().iter().all(|port| port.counts.drops.is_empty()), "{off}");
    }
}

/// Sets a limit of GSO packets, which an old `ip` does not know.
fn set_limit(namespace: &Namespace, name: &str, limit: LinkAttribute) {
    let index = namespace.link(name).unwrap().index;
    namespace.run_in(|| {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            let message = LinkUnspec::new_with_index(index).append_extra_attribute(limit).build();
            handle.link().set(message).execute().await.unwrap();
        });
    });
}

/// GSO packets beyond 64 KiB (BIG TCP) do not fit a receive buffer. They are counted, the port names the limit that
/// the sender exceeds, and streams complete; with the recommended limit none is lost.
#[test]
fn gso_packets_beyond_64_kib_are_reported_and_streams_complete() {
    const ADDRESSES: [[IpAddr; 2]; 2] = [
        [IpAddr::V4(Ipv4Addr::new(10, 5, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 5, 0, 2))],
        [
            IpAddr::V6(Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 1)),
            IpAddr::V6(Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 2)),
        ],
    ];
    type Limit = fn(u32) -> LinkAttribute;
    let limits: [(&str, Limit); 2] =
        [("gso_ipv4_max_size", LinkAttribute::GsoIpv4MaxSize), ("gso_max_size", LinkAttribute::GsoMaxSize)];
    for ((name, limit), [from_address, to_address]) in limits.into_iter().zip(ADDRESSES) {
        let Some(host) = Namespace::new() else { return };
        let (Some((from_space, from)), Some((to_space, to))) = (packet("from", 1, &host), packet("to", 2, &host))
        else {
            return;
        };
        let prefix = if from_address.is_ipv6() { "64 nodad" } else { "24" };
        for (space, vif, address) in [(&from_space, &from, from_address), (&to_space, &to, to_address)] {
            let setting = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", vif.name);
            space.run_in(|| std::fs::write(setting, "0")).unwrap();
            space.ip(&format!("addr add {address}/{prefix} dev {}", vif.name));
        }
        let daemon = Daemon::over(&[from.clone(), to.clone()]);
        daemon.await_active(&from);
        daemon.await_active(&to);
        tcp_both_ways(&from_space, &to_space, to_address, 1_000_000);
        assert_eq!(counter(&daemon, &from, "rx_missed"), 0, "{name}: up to 64 KiB nothing is lost");
        set_limit(&from_space, &from.name, limit(185_000));
        await_that("a GSO packet beyond 64 KiB", || {
            tcp_both_ways(&from_space, &to_space, to_address, 1_000_000);
            (counter(&daemon, &from, "rx_missed") > 0).then_some(())
        });
        let remedy = format!("`ip link set dev NETDEV {name} 65536`");
        await_oversize(&daemon, &from, &remedy);
        // The remedy works.
        set_limit(&from_space, &from.name, limit(65_536));
        await_that("streams of which none is lost", || {
            // Earlier losses may still have to be counted.
            let before = counter(&daemon, &from, "rx_missed");
            (0..4).for_each(|_| tcp_both_ways(&from_space, &to_space, to_address, 1_000_000));
            (counter(&daemon, &from, "rx_missed") == before).then_some(())
        });
        let ports = daemon.await_idle();
        assert!(ports.iter().all(|port| port.counts.drops.is_empty()), "{name}: {ports:?}");
    }
}

/// Waits until the port and an event warn of a GSO packet beyond 64 KiB, with this remedy.
fn await_oversize(daemon: &Daemon, vif: &Vif, remedy: &str) {
    let is_told = |text: &str| {
        let pieces = [&vif.name, "a GSO packet of ", "rx_missed", remedy];
        pieces.iter().all(|piece| text.contains(piece)) && text.matches("bytes was lost on receive").count() == 1
    };
    await_that("the warning", || is_told(&daemon.port(vif).status_reason).then_some(()));
    await_that("the event", || {
        let events = daemon.page("/v1/events");
        events.lines().any(|line| line.contains("netdev_changed") && is_told(line)).then_some(())
    });
}

/// A GSO packet beyond 64 KiB costs only itself, received by the ring or by the socket.
#[test]
fn a_gso_packet_beyond_64_kib_costs_itself_only() {
    let Some(host) = Namespace::new() else { return };
    let file = owned_taps(&host, "tap1");
    let from = Vif { kind: "packet", ..Vif::new("from", 1, &host) };
    let Some((to_space, to)) = packet("to", 2, &host) else { return };
    let there = Nic::new(&to_space, &to.name);
    let daemon = Daemon::over(&[from.clone(), to.clone()]);
    daemon.await_active(&from);
    daemon.await_active(&to);
    let send = |header: [u8; 10], packet: &[u8]| {
        let frame = ethernet(to.mac, from.mac, 0x0800, packet);
        file.write(&[&header[..], &[0, 0], &frame].concat()).unwrap();
    };
    for has_ring in [true, false] {
        let what = if has_ring { "ring" } else { "a call for each frame" };
        if !has_ring {
            send(header(1, 3, 42, 1480, 34, 6), &ipv4(17, &udp(&[0x5a; 4000])));
            await_that("the end of the ring", || {
                let is_told = daemon.port(&from).status_reason.contains("halted the receive ring");
                (is_told && counter(&daemon, &from, "rx_missed") == 2).then_some(())
            });
        }
        let before = counter(&daemon, &from, "rx_missed");
        let mut packet = ipv4(6, &tcp(0x10, &bytes(70_000)));
        packet[2..4].fill(0);
        send(header(1, 1, 54, 1448, 34, 16), &packet);
        let after = experiment(to.mac, from.mac, what.as_bytes());
        file.write(&[&[0; 12], &after[..]].concat()).unwrap();
        there.take_until(&after);
        await_that("one frame", || (counter(&daemon, &from, "rx_missed") == before + 1).then_some(()));
        assert_eq!(daemon.port(&to).counts.tx_frames, 1 + u64::from(!has_ring), "{what}");
    }
    await_oversize(&daemon, &from, "`ip link set dev NETDEV gso_ipv4_max_size 65536`");
    assert!(daemon.port(&from).status_reason.contains("a GSO packet of 70054 bytes"));
}

/// A frame after its `virtio_net_hdr`, with its checksum completed if partial.
fn completed(frame: &[u8]) -> Vec<u8> {
    let (header, frame) = frame.split_at(10);
    let mut frame = frame.to_vec();
    assert_eq!(header[1], 0, "no GSO packet");
    if header[0] & 1 != 0 {
        let [start, offset] = [6, 8].map(|at| usize::from(u16::from_le_bytes([header[at], header[at + 1]])));
        let checksum = !sum(&frame[start..]);
        frame[start + offset..][..2].copy_from_slice(&checksum.to_be_bytes());
    }
    frame
}

/// `virtio_net_hdr` cannot express tunnels. A TCP GSO packet in VXLAN is segmented by the switch, each segment with
/// its own outer headers.
#[test]
fn a_gso_packet_in_a_tunnel_is_segmented() {
    let Some(host) = Namespace::new() else { return };
    let file = owned_taps(&host, "tap1");
    let from = Vif { kind: "packet", ..Vif::new("from", 1, &host) };
    let Some((to_space, to)) = packet("to", 2, &host) else { return };
    let tap_space = Namespace::new().unwrap();
    let taps = [
        Vif::new("tap", 3, &tap_space),
        Vif { name: "tap4".into(), ..Vif::new("tap", 4, &tap_space) }.device(", offloads = false"),
    ];
    let daemon = Daemon::over(&[&[from.clone(), to.clone()][..], &taps].concat());
    [&from, &to, &taps[0], &taps[1]].iter().for_each(|vif| drop(daemon.await_active(vif)));
    let payload = bytes(20_000);
    let inner = ethernet(Mac::from_bits(0x02_0000_0077), from.mac, 0x0800, &ipv4(6, &tcp(0x18, &payload)));
    for (namespace, vif) in [(&to_space, &to), (&tap_space, &taps[0]), (&tap_space, &taps[1])] {
        let there = Nic::with_header(namespace, &vif.name);
        let mut vxlan = udp(&[&[8, 0, 0, 0, 0, 0, 7, 0], &inner[..]].concat());
        vxlan[6..8].fill(0);
        let packet = ethernet(vif.mac, from.mac, 0x0800, &ipv4(17, &vxlan));
        let start = (14 + 20 + 8 + 8 + 34) as u16;
        let header = header(1, 1, start + 20, 1400, start, 16);
        file.write(&[&header[..], &[0, 0], &packet].concat()).unwrap();
        let segments: Vec<Vec<u8>> = take(&there, payload.len().div_ceil(1400), 10)
            .iter()
            .map(|frame| {
                let frame = completed(frame);
                let outer = &frame[14..];
                assert_eq!(usize::from(u16::from_be_bytes([outer[2], outer[3]])), outer.len());
                assert_eq!(sum(&outer[..20]), 0xffff);
                assert_eq!(usize::from(u16::from_be_bytes([outer[24], outer[25]])), outer.len() - 20);
                frame[50..].to_vec()
            })
            .collect();
        assert_segments(&segments, 1400, &payload);
    }
    assert!(daemon.await_idle().iter().all(|port| port.counts.drops.is_empty()));
}

/// Two guests with VXLAN between them, over ports that take all offloads except tunnels.
#[test]
fn streams_in_vxlan_pass_between_packet_ports() {
    let Some(setup) = Setup::new(SetupOptions { on: &[DeviceKind::Packet], ..PLAIN }, &["a", "b"]) else { return };
    for (index, namespace) in setup.spaces[..2].iter().enumerate() {
        setup.address(index);
        let (local, remote, device) = (index + 1, 2 - index, &setup.vifs[index].name);
        let tunnel = format!("type vxlan id 7 dstport 4789 local 10.5.0.{local} remote 10.5.0.{remote} dev {device}");
        namespace.ip(&format!("link add vx0 {tunnel}"));
        namespace.ip(&format!("addr add 10.9.0.{local}/24 dev vx0"));
        namespace.ip("link set dev vx0 up");
    }
    tcp_both_ways(&setup.spaces[0], &setup.spaces[1], Ipv4Addr::new(10, 9, 0, 2), 4_000_000);
    let ports = setup.daemon.await_idle();
    assert!(ports.iter().all(|port| port.counts.drops.is_empty()), "{ports:?}");
    assert!(ports.iter().all(|port| port.counts.segmented > 0), "{ports:?}");
}

/// SCTP has a CRC32c (RFC 9260, 6.8) instead of a ones' complement sum. `virtio_net_hdr` cannot express that, so that
/// no egress device computes it.
#[test]
fn a_partial_checksum_of_sctp_becomes_a_crc() {
    let Some(host) = Namespace::new() else { return };
    let Some((from_space, from)) = packet("from", 1, &host) else { return };
    let Some((to_space, to)) = packet("to", 2, &host) else { return };
    let tap_space = Namespace::new().unwrap();
    let taps = [Vif::new("tap", 3, &tap_space), Vif::new("tap", 4, &tap_space).device(", offloads = false")];
    let daemon = Daemon::over(&[&[from.clone(), to.clone()][..], &taps].concat());
    [&from, &to, &taps[0], &taps[1]].iter().for_each(|vif| drop(daemon.await_active(vif)));
    let sender = Nic::with_header(&from_space, &from.name);
    let chunk = [
        0x13, 0x88, 0x13, 0x89, 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0, 1, 0, 0, 0x14, 0xaa, 0xbb, 0xcc, 0xdd, 0, 1, 0, 0,
        0, 10, 0, 10, 0, 0, 0, 1,
    ];
    for (namespace, vif) in [(&to_space, &to), (&tap_space, &taps[0]), (&tap_space, &taps[1])] {
        let there = Nic::with_header(namespace, &vif.name);
        let frame = ethernet(vif.mac, from.mac, 0x0800, &ipv4(132, &chunk));
        sender.send(&[&header(1, 0, 0, 0, 34, 8)[..], &frame].concat());
        let came = take(&there, 1, 10).remove(0);
        assert_eq!(came[0] & 1, 0, "{}: no offload work is left", vif.kind);
        assert_eq!(came[10 + 42..10 + 46], [0x8e, 0xb1, 0x55, 0x9a], "{}", vif.kind);
        // For other protocols at this offset the checksum is unknown.
        let other = ethernet(vif.mac, from.mac, 0x0800, &ipv4(6, &tcp(0x10, &[7; 100])));
        sender.send(&[&header(1, 0, 0, 0, 34, 8)[..], &other].concat());
        await_that("the frame is dropped", || (daemon.drops(vif, "offload_unsupported") == 1).then_some(()));
    }
}

/// Lengths and pseudo-header sums that senders leave empty are filled in. No checksum is wrong.
#[test]
fn empty_lengths_and_pseudo_header_sums_are_filled_in() {
    let Some(namespace) = Namespace::new() else { return };
    let host = Namespace::new().unwrap();
    let file = owned_taps(&host, "tap1");
    let from = Vif { kind: "packet", ..Vif::new("from", 1, &host) };
    let to = Vif::new("to", 2, &namespace).device(", offloads = false");
    let daemon = Daemon::over(&[from.clone(), to.clone()]);
    daemon.await_active(&from);
    daemon.await_active(&to);
    let there = Nic::new(&namespace, &to.name);
    let payload = bytes(5000);
    let packet = ethernet(to.mac, from.mac, 0x0800, &ipv4(6, &tcp(0x10, &payload)));
    let edit = |edits: &[(usize, u16)]| {
        let mut packet = packet.clone();
        edits.iter().for_each(|&(at, value)| packet[at..at + 2].copy_from_slice(&value.to_be_bytes()));
        packet
    };
    let (length, seed) = (16, 50);
    for (name, edits) in [
        ("all fields are set", &[][..]),
        ("no IP length", &[(length, 0)]),
        ("a pseudo-header sum without a length", &[(seed, pseudo(6, 0))]),
        ("no seed", &[(seed, 0)]),
        ("any seed", &[(seed, 0x1234)]),
        ("neither", &[(length, 0), (seed, 0), (24, 0)]),
    ] {
        file.write(&[&header(1, 1, 54, 1000, 34, 16)[..], &[0, 0], &edit(edits)].concat()).unwrap();
        let frames = take(&there, 5, 0);
        eprintln!("{name}");
        assert_segments(&frames, 1000, &payload);
    }
    // Single frames and UDP too.
    let mut single = ethernet(to.mac, from.mac, 0x0800, &ipv4(6, &tcp(0x10, &payload[..1000])));
    single[seed..seed + 2].fill(0);
    file.write(&[&header(1, 0, 0, 0, 34, 16)[..], &[0, 0], &single].concat()).unwrap();
    assert_segments(&take(&there, 1, 0), 1000, &payload[..1000]);
    for said in [0u16, 1008, 5008] {
        let mut datagrams = ethernet(to.mac, from.mac, 0x0800, &ipv4(17, &udp(&payload)));
        datagrams[38..40].copy_from_slice(&said.to_be_bytes());
        file.write(&[&header(1, 5, 42, 1000, 34, 6)[..], &[0, 0], &datagrams].concat()).unwrap();
        for (frame, part) in take(&there, 5, 0).iter().zip(payload.chunks(1000)) {
            assert_eq!((&frame[38..40], &frame[42..]), (&1008u16.to_be_bytes()[..], part));
            assert_eq!(sum(&[&pseudo(17, 1008).to_be_bytes(), &frame[34..]].concat()), 0xffff);
        }
    }
    // An inconsistent length is an error.
    file.write(&[&header(1, 1, 54, 1000, 34, 16)[..], &[0, 0], &edit(&[(length, 1500)])].concat()).unwrap();
    await_that("the frame is dropped", || (daemon.drops(&to, "offload_unsupported") == 5).then_some(()));
}
