//! Port security parses what hosts parse, and reports what it refuses. Needs root; makes its own namespaces.

use std::net::Ipv6Addr;
use std::time::Duration;

use serde_json::Value;
use vifswitch::time;
use vifswitch::wire::Mac;

use support::host::Namespace;
use support::host::await_that;
use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment, frame};
use support::host::setup::{DeviceKind, guests};

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

const OWN4: [u8; 4] = [10, 5, 0, 1];
const WRONG4: [u8; 4] = [10, 5, 0, 9];
const OWN6: &str = "fd00::1";
/// An opaque link-local address of the guest (RFC 7217).
const LOCAL: &str = "fe80::a1b2:c3d4:e5f6:789";

/// A guest with `mac+ip` and a peer that receives what passes.
struct Scenario {
    spaces: Vec<Namespace>,
    vifs: Vec<Vif>,
    daemon: Daemon,
}

impl Scenario {
    fn new(on: DeviceKind) -> Option<Scenario> {
        let (spaces, mut vifs) = guests(&["fw", "peer"], &[on, DeviceKind::Tap], 1500)?;
        vifs[0].more = format!("port_security = \"mac+ip\"\nfixed_ips = [\"10.5.0.1\", \"{OWN6}\"]");
        let daemon = Daemon::over(&vifs);
        Some(Scenario { spaces, vifs, daemon })
    }

    /// The same guest, whose frames are tagged 101 on the device of another port of its VM.
    fn behind_a_trunk() -> Option<Scenario> {
        let (spaces, mut vifs) = guests(&["fw", "peer"], &[DeviceKind::Tap], 1500)?;
        let parent = vifs[0].clone().on("net2");
        let mut subport = Vif { port: "subport".into(), ..vifs[0].clone() }.subport_of(&parent, 101);
        subport.more = format!("port_security = \"mac+ip\"\nfixed_ips = [\"10.5.0.1\", \"{OWN6}\"]");
        vifs = vec![subport, vifs[1].clone(), parent];
        let daemon = Daemon::with("", &[("net1", 1500), ("net2", 1500)], &vifs);
        Some(Scenario { spaces, vifs, daemon })
    }

    fn nic(&self, at: usize) -> Nic {
        Nic::new(&self.spaces[at], &self.vifs[at].name)
    }

    /// Frames of the guest dropped for their IP sender.
    fn refused(&self) -> u64 {
        let ports: Value = self.daemon.get("/v1/ports");
        let ports = ports.as_array().unwrap();
        let port = ports.iter().find(|port| port["port_id"] == self.vifs[0].port.as_str()).unwrap();
        port["drops"]["spoofed_ip"].as_u64().unwrap_or_default()
    }

    /// Sends each frame from the guest: it passes, or is dropped as `spoofed_ip`.
    fn check(&self, frames: &[(String, Vec<u8>, bool)]) {
        let (here, there) = (self.nic(0), self.nic(1));
        let is_subport = self.vifs[0].trunk.is_some();
        let mut refused = self.refused();
        for (what, sent, passes) in frames {
            let tagged = [&sent[..12], &[0x81, 0, 0, 101], &sent[12..]].concat();
            here.send(if is_subport { &tagged } else { sent });
            if *passes {
                let came = await_that(what, || {
                    assert_eq!(self.refused(), refused, "refused: {what}");
                    there.try_take()
                });
                assert!(came == *sent, "{what}, but received {came:02x?}");
            } else {
                refused += 1;
                await_that(&format!("a refusal: {what}"), || {
                    let came = there.rest();
                    assert!(came.is_empty(), "passed: {what}: {came:02x?}");
                    (self.refused() == refused).then_some(())
                });
            }
        }
    }
}

fn arp(operation: u8, source: Mac, who: [u8; 4], whom: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &source.octets(), &who, &[0; 6], &whom].concat()
}

fn ipv4(source: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let head = [0x45, 0, 0, 20 + payload.len() as u8, 0, 1, 0, 0, 1, protocol, 0, 0];
    [&head[..], &source, &to, payload].concat()
}

fn ipv6(source: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let [source, to] = [source, "ff02::1"].map(|address| address.parse::<Ipv6Addr>().unwrap().octets());
    [&[0x60, 0, 0, 0, 0, payload.len() as u8, next, 255][..], &source, &to, payload].concat()
}

/// An ICMPv6 message: type, bytes after the first eight, and an option with a MAC address.
fn icmpv6(kind: u8, fixed: &[u8], option: Option<(u8, Mac)>) -> Vec<u8> {
    let option = option.map(|(kind, mac)| [&[kind, 1][..], &mac.octets()].concat()).unwrap_or_default();
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], fixed, &option].concat()
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 12, 0, 0], b"data"].concat()
}

fn six(address: &str) -> [u8; 16] {
    address.parse::<Ipv6Addr>().unwrap().octets()
}

/// The same frame with these layers inserted before its EtherType, outermost first.
fn within(frame: &[u8], layers: &[&[u8]]) -> Vec<u8> {
    let layers: Vec<u8> = layers.concat();
    [&frame[..12], &layers, &frame[12..]].concat()
}

/// LLC/SNAP after a length field, as in RFC 1042 and IEEE 802.1H.
const SNAP: &[u8] = &[0, 50, 0xaa, 0xaa, 3, 0, 0, 0];
const BRIDGE_MEMBER: &[u8] = &[0, 50, 0xaa, 0xaa, 3, 0, 0, 0xf8];
const WRONG_LENGTH: &[u8] = &[0, 1, 0xaa, 0xaa, 3, 0, 0, 0];
const LONG_LLC: &[u8] = &[0x88, 0x70, 0xaa, 0xaa, 3, 0, 0, 0];
const PRIORITY: &[u8] = &[0x81, 0, 0xc0, 0];
const SERVICE: &[u8] = &[0x88, 0xa8, 0, 5];

/// Hosts and access points accept IP and ARP after LLC/SNAP headers and tags in any order (CVE-2021-27853).
#[test]
fn llc_and_snap_hide_no_sender() {
    for scene in [Scenario::new(DeviceKind::Tap), Scenario::new(DeviceKind::Packet), Scenario::behind_a_trunk()] {
        let Some(scene) = scene else { return };
        let (me, peer) = (scene.vifs[0].mac, scene.vifs[1].mac);
        let router = icmpv6(134, &[0; 8], Some((1, me)));
        let packets = [
            ("ARP", frame(Mac::BROADCAST, me, ARP, &arp(2, me, OWN4, WRONG4)), true),
            ("spoofed ARP", frame(Mac::BROADCAST, me, ARP, &arp(2, me, WRONG4, OWN4)), false),
            ("IPv4", frame(peer, me, IPV4, &ipv4(OWN4, WRONG4, 17, &udp(9, 9))), true),
            ("spoofed IPv4", frame(peer, me, IPV4, &ipv4(WRONG4, OWN4, 17, &udp(9, 9))), false),
            ("IPv6", frame(peer, me, IPV6, &ipv6(OWN6, 17, &udp(9, 9))), true),
            ("spoofed RA", frame(peer, me, IPV6, &ipv6("fe80::1", 58, &router)), false),
        ];
        let layers: [(&str, &[&[u8]]); 9] = [
            ("nothing", &[]),
            ("SNAP", &[SNAP]),
            ("SNAP of IEEE 802.1H", &[BRIDGE_MEMBER]),
            ("a priority tag and SNAP", &[PRIORITY, BRIDGE_MEMBER]),
            ("stacked tags and SNAP", &[PRIORITY, SERVICE, PRIORITY, SNAP]),
            ("SNAP with a wrong length", &[WRONG_LENGTH]),
            ("long LLC", &[LONG_LLC]),
            ("a tag in SNAP", &[SNAP, PRIORITY]),
            ("SNAP in a tag in SNAP", &[SNAP, PRIORITY, SNAP]),
        ];
        let mut frames = Vec::new();
        for (where_, layers) in layers {
            for (what, plain, passes) in &packets {
                frames.push((format!("{what} after {where_}"), within(plain, layers), *passes));
            }
        }
        scene.check(&frames);
    }
}

/// Frames that are not IP pass, after any encapsulation.
#[test]
fn other_llc_protocols_pass() {
    let Some(scene) = Scenario::new(DeviceKind::Tap) else { return };
    let me = scene.vifs[0].mac;
    let mut frames = Vec::new();
    for (what, group, llc) in [
        ("IS-IS", 0x0180_c200_0014, &[0xfe, 0xfe, 3, 0x83, 27, 1][..]),
        ("spanning tree", 0x0180_c200_0000, &[0x42, 0x42, 3, 0, 0, 0, 0, 0]),
        ("PVST+", 0x0100_0ccc_cccd, &[0xaa, 0xaa, 3, 0, 0, 0x0c, 1, 0x0b, 0]),
        ("IPX, raw", 0xffff_ffff_ffff, &[0xff, 0xff, 0, 40]),
        ("IPX in LLC", 0xffff_ffff_ffff, &[0xe0, 0xe0, 3, 0xff, 0xff]),
        ("IPX in SNAP", 0xffff_ffff_ffff, &[0xaa, 0xaa, 3, 0, 0, 0, 0x81, 0x37, 0xff, 0xff]),
        ("AppleTalk", 0x0900_07ff_ffff, &[0xaa, 0xaa, 3, 8, 0, 7, 0x80, 0x9b, 0]),
        ("NetBIOS", 0x0300_0000_0001, &[0xf0, 0xf0, 3, 0x2c, 0, 0xff, 0xef]),
    ] {
        let payload = [llc, &[0x45; 40]].concat();
        for kind in [payload.len() as u16, 3, 0x8870] {
            frames.push((format!("{what}, {kind:x}"), frame(Mac::from_bits(group), me, kind, &payload), true));
        }
    }
    scene.check(&frames);
}

/// A packet from the unspecified address names no sender. Those that RFCs require of hosts pass, others do not.
#[test]
fn hosts_without_an_address_may_join_groups_and_acquire_one() {
    for scene in [Scenario::new(DeviceKind::Tap), Scenario::behind_a_trunk()] {
        let Some(scene) = scene else { return };
        let (me, peer) = (scene.vifs[0].mac, scene.vifs[1].mac);
        const NONE: [u8; 4] = [0; 4];
        let groups = [224, 0, 0, 22];
        let four = |to, protocol, payload: &[u8]| frame(Mac::BROADCAST, me, IPV4, &ipv4(NONE, to, protocol, payload));
        let none6 = |next, payload: &[u8]| frame(Mac::BROADCAST, me, IPV6, &ipv6("::", next, payload));
        let igmp = |kind| four(groups, 2, &[kind, 0, 0, 0, 239, 1, 1, 1]);
        // Router alert option first.
        let mld = |kind| [&[58, 0, 5, 2, 0, 0, 1, 0][..], &icmpv6(kind, &[0; 16], None)].concat();
        let mut frames = vec![
            ("IGMPv1 report", igmp(0x12), true),
            ("IGMPv2 report", igmp(0x16), true),
            ("IGMPv2 leave", igmp(0x17), true),
            ("IGMPv3 report", igmp(0x22), true),
            ("IGMP query of a proxy", igmp(0x11), true),
            ("DHCP", four([255; 4], 17, &udp(68, 67)), true),
            ("an ARP probe", frame(Mac::BROADCAST, me, ARP, &arp(1, me, NONE, OWN4)), true),
            ("MLDv1 report", none6(0, &mld(131)), true),
            ("MLDv1 done", none6(0, &mld(132)), true),
            ("MLDv2 report", none6(0, &mld(143)), true),
            ("duplicate address detection", none6(58, &icmpv6(135, &six(LOCAL), None)), true),
            ("a router solicitation", none6(58, &icmpv6(133, &[], None)), true),
            ("a solicitation of certificates", none6(58, &icmpv6(148, &[], None)), true),
            ("UDP", four(OWN4, 17, &udp(9, 9)), false),
            ("DNS to a group", four([224, 0, 0, 251], 17, &udp(5353, 5353)), false),
            ("OSPF", four([224, 0, 0, 5], 89, &[0; 24]), false),
            ("a router advertisement", none6(58, &icmpv6(134, &[0; 8], None)), false),
            ("a neighbor advertisement", none6(58, &icmpv6(136, &six(LOCAL), None)), false),
            ("DHCPv6", none6(17, &udp(546, 547)), false),
        ];
        // A host without any address sends no other IP.
        frames.push(("the last", experiment(peer, me, b"end"), true));
        let frames: Vec<_> = frames.into_iter().map(|(what, frame, passes)| (what.to_owned(), frame, passes)).collect();
        scene.check(&frames);
    }
}

/// Hosts use link-local addresses that do not depend on their MAC address (RFC 7217, RFC 8064): from these they may
/// resolve neighbours and acquire addresses. Addresses of others stay refused, and so do router messages.
#[test]
fn an_opaque_link_local_address_may_acquire_addresses() {
    for scene in [Scenario::new(DeviceKind::Tap), Scenario::behind_a_trunk()] {
        let Some(scene) = scene else { return };
        let (me, peer) = (scene.vifs[0].mac, scene.vifs[1].mac);
        let from = |source: &str, next, payload: &[u8]| frame(peer, me, IPV6, &ipv6(source, next, payload));
        let nd = |source: &str, kind, target: &str, link: Mac| {
            let option = if kind == 136 { 2 } else { 1 };
            from(source, 58, &icmpv6(kind, &six(target), Some((option, link))))
        };
        // The peer's, made of its MAC address; the one of VRRP router 1; one of a router, set by hand.
        let others = ["fe80::ff:fe00:102", "fe80::200:5eff:fe00:201", "fe80::1"];
        let mut frames = vec![
            ("a solicitation".to_owned(), nd(LOCAL, 135, "fe80::1", me), true),
            ("an advertisement".to_owned(), nd(LOCAL, 136, LOCAL, me), true),
            ("an advertisement for its address".to_owned(), nd(LOCAL, 136, OWN6, me), true),
            ("an advertisement from its address".to_owned(), nd(OWN6, 136, LOCAL, me), true),
            ("a router solicitation".to_owned(), from(LOCAL, 58, &icmpv6(133, &[], Some((1, me)))), true),
            ("MLDv2".to_owned(), from(LOCAL, 58, &icmpv6(143, &[], None)), true),
            ("DHCPv6".to_owned(), from(LOCAL, 17, &udp(546, 547)), true),
            ("with another link-layer address".to_owned(), nd(LOCAL, 136, LOCAL, peer), false),
            ("for the address of another host".to_owned(), nd(LOCAL, 136, "fd00::2", me), false),
            ("a router advertisement".to_owned(), from(LOCAL, 58, &icmpv6(134, &[0; 8], None)), false),
            ("a redirect".to_owned(), from(LOCAL, 58, &icmpv6(137, &[0; 32], None)), false),
            ("a DHCPv6 reply".to_owned(), from(LOCAL, 17, &udp(547, 546)), false),
            ("an echo".to_owned(), from(LOCAL, 58, &icmpv6(128, &[], None)), false),
        ];
        for other in others {
            frames.push((format!("a solicitation from {other}"), nd(other, 135, OWN6, me), false));
            frames.push((format!("an advertisement for {other}"), nd(OWN6, 136, other, me), false));
        }
        scene.check(&frames);
    }
}

/// Events that name a refused address.
fn spoofed(daemon: &Daemon) -> Vec<Value> {
    let events = daemon.page("/v1/events");
    let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["kind"] == "spoofed_ip").collect()
}

/// An event names the refused address and the key that allows it; the remedy works.
#[test]
fn a_refused_address_is_reported_once_with_the_key_that_allows_it() {
    for scene in [Scenario::new(DeviceKind::Tap), Scenario::behind_a_trunk()] {
        let Some(scene) = scene else { return };
        let (me, peer) = (scene.vifs[0].mac, scene.vifs[1].mac);
        let port = scene.vifs[0].port.as_str();
        let echo = |source: &str| frame(peer, me, IPV6, &ipv6(source, 58, &icmpv6(128, &[], None)));
        let refused = |what: &str, frame: Vec<u8>| scene.check(&[(what.to_owned(), frame, false)]);
        refused("an echo", echo(LOCAL));
        let event = await_that("the event", || spoofed(&scene.daemon).pop());
        assert_eq!((&event["vm"], &event["network"]), (&"fw".into(), &"net1".into()), "{event}");
        assert_eq!((&event["ports"][0], &event["ip"]), (&port.into(), &LOCAL.into()), "{event}");
        assert_eq!(event["mac"], me.to_string(), "{event}");
        let text = event["text"].as_str().unwrap();
        let key = format!("{{ ip_address = \"{LOCAL}\" }}");
        assert!(text.contains(&key) && text.contains("allowed_address_pairs") && text.contains("spoofed_ip"), "{text}");

        // Another address is reported too; this one is not reported again.
        (0..20).for_each(|_| refused("an echo", echo(LOCAL)));
        let arp = frame(Mac::BROADCAST, me, ARP, &arp(2, me, WRONG4, OWN4));
        let event = await_that("the second event", || {
            // A second report too soon is not emitted.
            refused("ARP", arp.clone());
            spoofed(&scene.daemon).into_iter().nth(1)
        });
        assert_eq!(event["ip"], "10.5.0.9", "{event}");
        assert_eq!(spoofed(&scene.daemon).len(), 2);

        scene.daemon.done(&["set", port, &format!("allowed_address_pairs=[{key}]")], "");
        scene.check(&[("an echo".to_owned(), echo(LOCAL), true)]);
    }
}

/// A guest with very many sender addresses floods neither log nor events.
#[test]
fn a_guest_with_many_senders_causes_few_events() {
    let Some(scene) = Scenario::new(DeviceKind::Tap) else { return };
    let (me, peer) = (scene.vifs[0].mac, scene.vifs[1].mac);
    let here = scene.nic(0);
    let mut number = 0u32;
    let mut name_others = || {
        for _ in 0..50 {
            number += 1;
            let [_, b, c, d] = number.to_be_bytes();
            here.send(&frame(peer, me, IPV4, &ipv4([11, b, c, d], OWN4, 17, &udp(9, 9))));
        }
    };
    await_that("the last event for a while", || {
        name_others();
        let events = spoofed(&scene.daemon);
        let text = events.last()?["text"].as_str()?.to_owned();
        text.contains("once in 60 seconds").then_some(())
    });
    let (before, last) = (spoofed(&scene.daemon).len(), time::now());
    assert!(before <= 9, "{before} events");
    await_that("two more seconds", || {
        name_others();
        (time::now().since(last) > Duration::from_secs(2)).then_some(())
    });
    let after = spoofed(&scene.daemon).len();
    assert!(after <= before + 1, "{} more events", after - before);
}
