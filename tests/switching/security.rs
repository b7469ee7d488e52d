//! Port security, delivery and limits, changed on the running switch by its commands, on taps and foreign netdevs: no
//! device is reopened and no frame lost. Needs root; makes its own namespaces.

use std::net::{Ipv4Addr, Ipv6Addr};

use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::{Nic, experiment, frame};
use support::host::setup::{DeviceKind, guests, ping};
use support::host::streams::{Gaps, Stream, Streams};
use support::host::{Namespace, await_that};
use vifswitch::control::api::responses::{NetworkView, PortView};
use vifswitch::control::state::events::{Event, EventKind};
use vifswitch::sys::link;
use vifswitch::sys::netns::{Netns, within};
use vifswitch::wire::Mac;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// An address that is no port's own.
const OTHER: Mac = Mac::from_bits(0x0a00_0000_0001);

/// A port under change, and ports on taps that receive its frames, all on net1.
struct Scenario {
    spaces: Vec<Namespace>,
    vifs: Vec<Vif>,
    daemon: Daemon,
    /// Interface index of the first port's netdev.
    index: u32,
}

impl Scenario {
    /// The first port has these keys and the device kind `on`.
    fn new(on: DeviceKind, vms: &[&str], keys: &str) -> Option<Scenario> {
        let kinds: Vec<DeviceKind> =
            vms.iter().enumerate().map(|(at, _)| if at == 0 { on } else { DeviceKind::Tap }).collect();
        let (spaces, mut vifs) = guests(vms, &kinds, 1500)?;
        vifs[0].more = keys.into();
        let daemon = Daemon::over(&vifs);
        let mut scene = Scenario { spaces, vifs, daemon, index: 0 };
        scene.index = scene.netdev();
        Some(scene)
    }

    fn nic(&self, at: usize) -> Nic {
        Nic::new(&self.spaces[at], &self.vifs[at].name)
    }

    /// Interface index of the first port's netdev.
    fn netdev(&self) -> u32 {
        let Vif { netns, name, .. } = &self.vifs[0];
        within(&Netns::Named(netns.clone()), || link::find(name)).unwrap().unwrap().unwrap().index
    }

    /// Sets keys of the first port. Its device stays open and unchanged.
    fn set(&self, keys: &[&str]) {
        let before = self.daemon.events().len();
        self.daemon.done(&[&["set", &self.vifs[0].port], keys].concat(), "");
        let since = self.daemon.events().split_off(before);
        // Events of earlier guest traffic may be emitted at any time.
        let is_of_guest = |event: &&Event| matches!(event.kind, EventKind::MacLimit | EventKind::NetdevChanged);
        let events: Vec<&Event> = since.iter().filter(|event| !is_of_guest(event)).collect();
        assert!(events.len() == 1 && events[0].kind == EventKind::Config, "{since:?}");
        assert_eq!(self.netdev(), self.index);
    }

    fn port(&self, at: usize) -> PortView {
        self.daemon.port(&self.vifs[at])
    }

    /// Sends a frame that must arrive at the other guest, as the only one since the last call.
    fn passes(&self, from: &Nic, to: &Nic, frame: &[u8], what: &str) {
        from.send(frame);
        let came = to.take();
        assert!(came == frame, "{what}, but first received {came:02x?}");
    }

    /// Sends a frame that must be dropped for this reason.
    fn is_refused(&self, from: &Nic, frame: &[u8], reason: &str, what: &str) {
        let before = self.daemon.drops(&self.vifs[0], reason);
        from.send(frame);
        await_that(&format!("{reason}: {what}"), || {
            let drops = self.port(0).counts.drops;
            let now = drops.get(reason).copied().unwrap_or_default();
            assert!(now <= before + 1, "{what}: {drops:?}");
            (now == before + 1).then_some(())
        });
    }
}

/// An ARP request of `who` at `mac` for 10.5.0.2.
fn arp(source: Mac, mac: Mac, who: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let payload = [&head[..], &mac.octets(), &who, &[0; 6], &[10, 5, 0, 2], &[0; 18]].concat();
    frame(Mac::BROADCAST, source, ARP, &payload)
}

/// A UDP datagram with these ports, between fixed addresses.
fn udp(ports: [u16; 2]) -> Vec<u8> {
    let [from, to] = ports.map(u16::to_be_bytes);
    [&from[..], &to, &[0, 12, 0, 0], b"data"].concat()
}

fn ipv4(to: Mac, from: Mac, source: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
    let udp = udp(ports);
    let head = [0x45, 0, 0, 20 + udp.len() as u8, 0, 1, 0, 0, 64, 17, 0, 0];
    frame(to, from, IPV4, &[&head[..], &source, &[10, 5, 0, 2], &udp].concat())
}

fn ipv6(to: Mac, from: Mac, source: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let head = [0x60, 0, 0, 0, 0, payload.len() as u8, next, 255];
    let destination: Ipv6Addr = "ff02::1".parse().unwrap();
    frame(to, from, IPV6, &[&head[..], &source.octets(), &destination.octets(), payload].concat())
}

/// An ND message of a kind, about `target`, with a link-layer address option.
fn nd(from: Mac, source: &str, kind: u8, target: &str, link: Option<Mac>) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    // Source link-layer address in a solicitation, target link-layer address in an advertisement.
    let option = if kind == 135 { 1 } else { 2 };
    let option = link.map(|mac| [&[option, 1][..], &mac.octets()].concat()).unwrap_or_default();
    let message = [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), &option].concat();
    ipv6(Mac::from_bits(0x3333_0000_0001), from, source.parse().unwrap(), 58, &message)
}

/// Sends through the guest's own network stack, without waiting for a reply.
fn attempt(namespace: &Namespace, to: Ipv4Addr) {
    let socket = namespace.run_in(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.send_to(b"hello", (to, 9)).unwrap();
}

/// A guest changes its MAC address, with the network stacks of two guests.
///
/// Shows: REQ-14, AT-10
#[test]
fn a_changed_mac_address_is_blocked_until_allowed() {
    for on in DeviceKind::ALL {
        let Some(scene) = Scenario::new(on, &["fw", "peer"], "") else { return };
        let Scenario { spaces, vifs, daemon, .. } = &scene;
        for (at, host) in [(0, 1), (1, 2)] {
            spaces[at].ip(&format!("addr add 10.5.0.{host}/24 dev {}", vifs[at].name));
        }
        let peer = Ipv4Addr::new(10, 5, 0, 2);
        let become_ = |mac: Mac| {
            spaces[0].ip(&format!("link set dev {} address {mac}", vifs[0].name));
            // The other guest resolves the address again.
            spaces[1].ip(&format!("neigh flush dev {}", vifs[1].name));
        };
        let is_blocked = || {
            let before = daemon.drops(&vifs[0], "spoofed_source");
            attempt(&spaces[0], peer);
            let blocked = |port: &PortView| port.counts.drops.get("spoofed_source").is_some_and(|now| *now > before);
            daemon.await_port("the changed address is blocked", &vifs[0], blocked);
        };
        ping(&spaces[0], peer, 3);
        assert!(scene.port(0).counts.drops.is_empty(), "{:?}", scene.port(0).counts.drops);
        become_(OTHER);
        is_blocked();
        scene.set(&["port_security=off"]);
        become_(OTHER);
        ping(&spaces[0], peer, 3);
        scene.set(&["port_security=mac"]);
        is_blocked();
        scene.set(&[&format!("allowed_address_pairs=[{{ mac_address = \"{OTHER}\" }}]")]);
        become_(OTHER);
        ping(&spaces[0], peer, 3);
        // A port's own address is always allowed.
        become_(vifs[0].mac);
        ping(&spaces[0], peer, 3);
        assert_eq!(scene.netdev(), scene.index, "{on:?}");
    }
}

/// Port security `mac` ignores everything above Ethernet.
///
/// Shows: REQ-14
#[test]
fn mac_checks_the_source_mac_only() {
    for on in DeviceKind::ALL {
        let Some(scene) = Scenario::new(on, &["fw", "peer"], "fixed_ips = [\"10.5.0.1\"]") else { return };
        let (here, there) = (scene.nic(0), scene.nic(1));
        let (me, peer) = (scene.vifs[0].mac, scene.vifs[1].mac);
        for (what, frame) in [
            ("ARP for any address", arp(me, me, [192, 0, 2, 7])),
            ("ARP with another hardware address", arp(me, OTHER, [192, 0, 2, 7])),
            ("IPv4 from any address", ipv4(peer, me, [192, 0, 2, 7], [9, 9])),
            ("IPv6 from any address", ipv6(peer, me, "2001:db8::7".parse().unwrap(), 17, &udp([9, 9]))),
            ("ND for any address", nd(me, "fe80::1", 136, "2001:db8::7", Some(OTHER))),
            ("no IP header", frame(peer, me, IPV4, b"nonsense")),
            ("an unassigned ethertype", experiment(peer, me, b"hello")),
        ] {
            scene.passes(&here, &there, &frame, what);
        }
        scene.is_refused(&here, &experiment(peer, OTHER, b"x"), "spoofed_source", "another's");
        scene.passes(&here, &there, &experiment(peer, me, b"end"), "the last");
        let port = scene.port(0);
        assert_eq!((port.counts.drops.values().sum::<u64>(), port.port_security.as_str()), (1, "mac"));
    }
}

/// Port security `mac+ip` passes the configured addresses, and addresses allowed later.
///
/// Shows: REQ-14
#[test]
fn mac_ip_checks_ip_arp_and_nd_senders() {
    const OWN4: [u8; 4] = [10, 5, 0, 1];
    const WRONG4: [u8; 4] = [10, 5, 0, 9];
    const OWN6: &str = "2001:db8::1";
    const WRONG6: &str = "2001:db8::9";
    for on in DeviceKind::ALL {
        let Some(scene) = Scenario::new(on, &["fw", "peer"], "") else { return };
        let (here, there) = (scene.nic(0), scene.nic(1));
        let (me, peer) = (scene.vifs[0].mac, scene.vifs[1].mac);
        // 02:00:00:00:01:01 (RFC 4291, appendix A)
        assert_eq!(me, Mac::from_bits(0x0200_0000_0101));
        let local = "fe80::ff:fe00:101";
        let v6 = |source: &str| ipv6(peer, me, source.parse().unwrap(), 17, &udp([9, 9]));
        let own = [
            ("ARP", arp(me, me, OWN4)),
            ("IPv4", ipv4(peer, me, OWN4, [9, 9])),
            ("IPv6", v6(OWN6)),
            ("a solicitation", nd(me, OWN6, 135, "2001:db8::2", Some(me))),
            ("an advertisement", nd(me, OWN6, 136, OWN6, Some(me))),
        ];
        let always =
            [("an ARP probe", arp(me, me, [0; 4])), ("an unassigned ethertype", experiment(peer, me, b"hello"))];
        // Frames that pass whatever addresses are configured.
        let besides = [
            ("DHCP", ipv4(Mac::BROADCAST, me, [0; 4], [68, 67])),
            ("its own link-local address", v6(local)),
            ("its solicitation", nd(me, local, 135, "2001:db8::2", Some(me))),
            ("duplicate address detection", nd(me, "::", 135, local, None)),
        ];
        let never = [
            ("ARP for another address", arp(me, me, WRONG4)),
            ("ARP with another hardware address", arp(me, peer, OWN4)),
            ("a probe with another hardware address", arp(me, peer, [0; 4])),
            ("IPv4 from another address", ipv4(peer, me, WRONG4, [9, 9])),
            ("nobody's IPv4", ipv4(peer, me, [0; 4], [9, 9])),
            ("IPv6 from another address", v6(WRONG6)),
            ("the link-local address of another port", v6("fe80::ff:fe00:102")),
            ("an advertisement for another address", nd(me, OWN6, 136, WRONG6, Some(me))),
            ("another's advertisement", nd(me, WRONG6, 136, WRONG6, Some(me))),
            ("an advertisement with another link-layer address", nd(me, OWN6, 136, OWN6, Some(peer))),
            ("a solicitation with another link-layer address", nd(me, OWN6, 135, WRONG6, Some(peer))),
            ("no IP header", frame(peer, me, IPV4, b"nonsense")),
            ("a truncated ARP", frame(Mac::BROADCAST, me, ARP, &[0, 1, 8, 0, 6, 4])),
        ];
        let all_pass = |frames: &[(&str, Vec<u8>)]| {
            frames.iter().for_each(|(what, frame)| scene.passes(&here, &there, frame, what));
        };
        let none_passes = |frames: &[(&str, Vec<u8>)]| {
            frames.iter().for_each(|(what, frame)| scene.is_refused(&here, frame, "spoofed_ip", what));
        };
        all_pass(&[&own[..], &besides, &always, &never].concat());

        // Without a configured address, IP is dropped.
        scene.set(&["port_security=mac+ip"]);
        none_passes(&own);
        none_passes(&besides);
        none_passes(&never);
        all_pass(&always);
        scene.set(&[&format!("fixed_ips=[\"10.5.0.1\", \"{OWN6}\"]")]);
        none_passes(&never);
        all_pass(&[&own[..], &besides, &always].concat());

        // Other addresses of its own subnet, and of another port.
        scene.is_refused(&here, &ipv4(peer, OTHER, WRONG4, [9, 9]), "spoofed_source", "another's");
        let pairs =
            "[{ ip_address = \"2001:db8::/64\" }, { mac_address = \"0a:00:00:00:00:01\", ip_address = \"10.5.0.9\" }]";
        scene.set(&[&format!("allowed_address_pairs={pairs}")]);
        all_pass(&[
            ("IPv6 from the allowed prefix", v6(WRONG6)),
            ("the pair's IPv4", ipv4(peer, OTHER, WRONG4, [9, 9])),
            ("the pair's ARP", arp(OTHER, OTHER, WRONG4)),
            ("its own IPv4 still", ipv4(peer, me, OWN4, [9, 9])),
        ]);
        none_passes(&[
            ("its own IP, with the pair's MAC address", ipv4(peer, OTHER, OWN4, [9, 9])),
            ("the pair's IP, with its own MAC address", ipv4(peer, me, WRONG4, [9, 9])),
        ]);
        // After VLAN tags too.
        let tagged = |frame: &[u8]| [&frame[..12], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 7], &frame[12..]].concat();
        all_pass(&[("tags", tagged(&ipv4(peer, me, OWN4, [9, 9])))]);
        none_passes(&[("tags", tagged(&ipv4(peer, me, WRONG4, [9, 9])))]);

        scene.set(&["port_security=mac"]);
        all_pass(&never);
        let port = scene.port(0);
        assert_eq!(port.port_security, "mac");
        assert_eq!(port.counts.drops.keys().collect::<Vec<_>>(), ["spoofed_ip", "spoofed_source"]);
        println!("{on:?}: {:?}", port.counts.drops);
    }
}

/// All settings of a port are changed repeatedly under traffic, without frame loss.
#[test]
fn a_port_is_changed_under_traffic_without_frame_loss() {
    for on in DeviceKind::ALL {
        let Some(scene) = Scenario::new(on, &["fw", "peer"], "") else { return };
        let at = |index: usize| (&scene.spaces[index], &scene.vifs[index]);
        let both_ways = vec![Stream::between(at(0), at(1)), Stream::between(at(1), at(0))];
        let Some(mut streams) = Streams::through(&scene.daemon, 5_000, both_ways) else { return };
        let gaps: Vec<Gaps> = (0..5)
            .map(|number| {
                streams.gaps_during(|| {
                    for keys in [
                        &["port_security=mac+ip"][..],
                        &[&format!("fixed_ips=[\"10.5.0.{number}\"]")],
                        &[
                            "allowed_address_pairs=[{ mac_address = \"00:00:5e:00:01:01\", ip_address = \"10.0.0.0/8\" }]",
                        ],
                        &["unknown_unicast=suppress"],
                        &["unknown_unicast=", "promiscuous=true"],
                        &["allowed_address_pairs=", "port_security=off", "mac_limit=4", "mac_limit_policy=drop"],
                        &["mac_limit=", "promiscuous=false"],
                        &["port_security=", "fixed_ips="],
                    ] {
                        scene.set(keys);
                    }
                })
            })
            .collect();
        Gaps::assert_all_smooth(&gaps, &format!("{on:?}: a port changed"));
        let frames = gaps.iter().map(|gaps| gaps.sent).sum::<u64>();
        let ports = scene.daemon.await_idle();
        assert!(ports.iter().all(|port| port.counts.drops.is_empty()), "{ports:?}");
        assert_eq!(ports[0].counts.rx_frames, frames, "no frame was lost before the switch");
    }
}

/// Stations that port security no longer allows are flushed.
#[test]
fn stations_no_longer_allowed_are_flushed() {
    let Some(scene) = Scenario::new(DeviceKind::Tap, &["fw", "peer", "third"], "port_security = \"off\"") else {
        return;
    };
    let nics = [0, 1, 2].map(|at| scene.nic(at));
    let peer = scene.vifs[1].mac;
    scene.passes(&nics[0], &nics[1], &experiment(peer, OTHER, b"here I am"), "the first");
    let request = |what: &str| experiment(OTHER, peer, what.as_bytes());
    scene.passes(&nics[1], &nics[0], &request("learned"), "the station is known");
    assert_eq!(nics[2].rest().len(), 0);
    scene.set(&["port_security=mac"]);
    scene.passes(&nics[1], &nics[0], &request("where are you"), "the station is flushed");
    assert_eq!(nics[2].take(), request("where are you"));
}

/// Unknown unicast, and mirror copies.
#[test]
fn delivery_settings_are_changed_live_and_counted() {
    for on in DeviceKind::ALL {
        let Some(scene) = Scenario::new(on, &["fw", "peer", "third"], "") else { return };
        let nics = [0, 1, 2].map(|at| scene.nic(at));
        let [me, peer, third] = [0, 1, 2].map(|at| scene.vifs[at].mac);
        let nobody = |tale: &str| experiment(OTHER, peer, tale.as_bytes());
        scene.passes(&nics[1], &nics[0], &nobody("deliver"), "unknown unicast arrives");
        assert_eq!(nics[2].take(), nobody("deliver"));

        scene.set(&["unknown_unicast=suppress"]);
        nics[1].send(&nobody("suppress"));
        assert_eq!(nics[2].take(), nobody("suppress"));
        // The port still receives its own unicast and broadcasts.
        scene.passes(
            &nics[1],
            &nics[0],
            &experiment(me, peer, b"for you"),
            "own unicast arrives, and no unknown unicast before it",
        );
        let all = experiment(Mac::BROADCAST, peer, b"for all");
        scene.passes(&nics[1], &nics[0], &all, "broadcast arrives");
        assert_eq!(nics[2].take(), all);
        let port = scene.daemon.await_port("the drop is counted", &scene.vifs[0], |port| port.counts.not_flooded > 0);
        assert_eq!(
            (port.counts.not_flooded, port.unknown_unicast.as_str(), port.counts.mirror_copies),
            (1, "suppress", 0)
        );

        scene.set(&["unknown_unicast=", "promiscuous=true"]);
        let theirs = experiment(third, peer, b"between us");
        scene.passes(&nics[1], &nics[0], &theirs, "a copy of unicast to another port");
        assert_eq!(nics[2].take(), theirs);
        let port = scene.daemon.await_port("the drop is counted", &scene.vifs[0], |port| port.counts.mirror_copies > 0);
        assert_eq!((port.counts.mirror_copies, port.promiscuous), (1, true));
        scene.passes(&nics[1], &nics[0], &experiment(me, peer, b"once"), "one copy of its own unicast");
        scene.set(&["promiscuous=false"]);
        nics[1].send(&theirs);
        assert_eq!(nics[2].take(), theirs);
        scene.passes(&nics[1], &nics[0], &experiment(me, peer, b"end"), "no further copy");
        let ports = scene.daemon.await_idle();
        assert!(ports.iter().all(|port| port.counts.drops.is_empty()), "{ports:?}");
        let metrics = scene.daemon.page("/metrics");
        for line in [
            r#"vifswitch_port_not_flooded_frames_total{port="port-1",vm="fw",network="net1"} 1"#,
            r#"vifswitch_port_mirror_copies_total{port="port-1",vm="fw",network="net1"} 1"#,
        ] {
            assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
        }
    }
}

/// One event when a port reaches its MAC limit, and one when it leaves it.
///
/// Shows: REQ-51
#[test]
fn a_port_at_its_mac_limit_is_reported_once() {
    for (policy, reason) in [("drop", Some("mac_limit")), ("forward-unlearned", None)] {
        let keys = format!("port_security = \"off\"\nmac_limit = 2\nmac_limit_policy = \"{policy}\"");
        let Some(scene) = Scenario::new(DeviceKind::Tap, &["fw", "peer"], &keys) else { return };
        let (here, there) = (scene.nic(0), scene.nic(1));
        let from = |number: u64| experiment(scene.vifs[1].mac, Mac::from_bits(0x0a00_0000_0000 + number), b"hello");
        let events = || -> Vec<Event> {
            let limit = |event: &Event| event.kind == EventKind::MacLimit;
            scene.daemon.events().into_iter().filter(limit).collect()
        };
        for number in [1, 2, 1, 2] {
            scene.passes(&here, &there, &from(number), "within the limit");
        }
        assert_eq!(events(), []);
        let excess = |number| match reason {
            Some(reason) => scene.is_refused(&here, &from(number), reason, "beyond the limit"),
            None => scene.passes(&here, &there, &from(number), "beyond the limit"),
        };
        (3..8).for_each(excess);
        scene.passes(&here, &there, &from(1), "from a known station");
        let event = await_that("the event", || events().pop());
        assert_eq!(
            (event.vm.as_deref(), event.network.as_deref(), &event.ports[..]),
            (Some("fw"), Some("net1"), &["port-1".to_owned()][..])
        );
        assert!(event.text.contains("limit of 2 learned stations"), "{}", event.text);
        scene.daemon.await_idle();
        let port = scene.port(0);
        assert_eq!(port.counts.not_learned, if reason.is_none() { 5 } else { 0 });
        assert_eq!((port.mac_limit, port.mac_limit_policy.as_deref()), (Some(2), Some(policy)));
        // Further excess emits no event.
        excess(9);
        scene.set(&["mac_limit="]);
        await_that("the end of the excess", || (events().len() == 2).then_some(()));
        assert!(events()[1].text.contains("no limit of its own"), "{:?}", events());
        let port = scene.port(0);
        assert_eq!((port.mac_limit, port.mac_limit_policy), (None, None));
        scene.passes(&here, &there, &from(10), "the group passes by the network's policy");
    }
}

/// The network's policy on reserved groups, set by `apply`; drops are counted per group.
///
/// Shows: REQ-17
#[test]
fn reserved_groups_pass_by_the_policy_of_the_network() {
    let group = |last: u64| Mac::from_bits(0x0180_c200_0000 + last);
    for on in DeviceKind::ALL {
        let Some(scene) = Scenario::new(on, &["fw", "peer"], "") else { return };
        let (here, there) = (scene.nic(0), scene.nic(1));
        let me = scene.vifs[0].mac;
        let text = config(&scene.daemon.socket(), "", &[("net1", 1500)], &scene.vifs);
        let mut refused = std::collections::BTreeMap::new();
        for (policy, mask) in [(None, 0xfffdu16), (Some("all"), 0xffff), (Some("none"), 0), (Some("0x4001"), 0x4001)] {
            if let Some(policy) = policy {
                let text = text.replace("mtu = 1500", &format!("mtu = 1500\nreserved_groups = \"{policy}\""));
                scene.daemon.done(&["apply", "-"], &text);
            }
            let networks: Vec<NetworkView> = scene.daemon.get("/v1/networks");
            assert_eq!(networks[0].reserved_groups, policy.unwrap_or("vm-default"));
            for last in 0..16 {
                let frame = experiment(group(last), me, format!("{policy:?} {last}").as_bytes());
                if mask >> last & 1 == 1 {
                    scene.passes(&here, &there, &frame, "it passes");
                } else {
                    scene.is_refused(&here, &frame, "reserved_group", "the group is dropped");
                    let name = match last {
                        0 => "bpdu".to_owned(),
                        1 => "pause".to_owned(),
                        2 => "slow_protocols".to_owned(),
                        3 => "eapol".to_owned(),
                        14 => "lldp".to_owned(),
                        _ => format!("reserved_{last:02x}"),
                    };
                    *refused.entry(name).or_insert(0u64) += 1;
                }
            }
            // The groups above the reserved range pass.
            scene.passes(&here, &there, &experiment(group(0x10), me, b"x"), "a group that is not reserved passes");
        }
        scene.daemon.await_port("each group has its own counter", &scene.vifs[0], |port| {
            port.counts.reserved_groups == refused
        });
        assert_eq!(scene.netdev(), scene.index);
        let metrics = scene.daemon.page("/metrics");
        let pause =
            r#"vifswitch_port_reserved_group_frames_total{port="port-1",vm="fw",network="net1",group="pause"} 3"#;
        assert!(metrics.lines().any(|line| line == pause), "{metrics}");
    }
}

/// Conflicting settings of two ports are refused, and nothing changes.
#[test]
fn conflicting_settings_of_two_ports_are_refused() {
    let Some(scene) = Scenario::new(DeviceKind::Tap, &["fw", "peer"], "unknown_unicast = \"suppress\"") else { return };
    let Scenario { vifs, daemon, .. } = &scene;
    let pair = format!("allowed_address_pairs=[{{ mac_address = \"{}\" }}]", vifs[0].mac);
    let refused = daemon.run_command(&["set", &vifs[1].port, &pair], "");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && said.contains("port \"port-1\" of VM \"fw\""), "{said}");
    scene.set(&["unknown_unicast=deliver"]);
    daemon.done(&["set", &vifs[1].port, &pair], "");
    let refused = daemon.run_command(&["set", &vifs[0].port, "unknown_unicast=suppress"], "");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && said.contains("port \"port-2\" of VM \"peer\""), "{said}");
    assert_eq!(scene.port(0).unknown_unicast, "deliver");
}
