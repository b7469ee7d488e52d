//! VLAN tags of transmitted frames: one tag, with the frame's priority, in a frame of minimum length. Needs root;
//! makes its own namespaces.

use etherparse::PacketBuilder;
use etherparse::checksum::Sum16BitWords;
use serde_json::Value;
use vifswitch::wire::Mac;

use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::Nic;
use support::host::setup::{DeviceKind, lay, two_workers};
use support::host::{Namespace, await_that};

/// A trunk of VM a with the subport 101 on net1, VM b on net1, an uplink with net1 tagged 120 and net2 untagged, and
/// another uplink with net1 untagged.
struct Scenario {
    daemon: Daemon,
    a: Nic,
    b: Nic,
    /// The same as `b`, with `virtio_net_hdr`.
    offloading: Nic,
    /// The peers of the uplinks.
    tagged: Nic,
    native: Nic,
    _spaces: Vec<Namespace>,
}

const A: Mac = Mac::from_bits(0x0200_0000_0101);
const B: Mac = Mac::from_bits(0x0200_0000_0102);
/// An external station.
const H: Mac = Mac::from_bits(0x0200_0000_0f01);
const KIND: [u8; 2] = [0x88, 0xb5];

impl Scenario {
    fn new(on: DeviceKind, switch: &str) -> Option<Scenario> {
        let spaces: Vec<Namespace> = (0..4).map(|_| Namespace::new()).collect::<Option<_>>()?;
        let [guest_a, guest_b, host, wire] = &spaces[..] else { unreachable!() };
        let parent = Vif { more: "port_security = \"off\"".into(), ..Vif::new("a", 1, guest_a).on("net2") };
        let subport = Vif { port: "subport".into(), ..Vif::new("a", 1, guest_a) }.subport_of(&parent, 101);
        let vifs = [parent, subport, Vif::new("b", 2, guest_b)];
        let mut daemon = Daemon::new();
        let mut text = config(&daemon.socket(), switch, &[("net1", 1500), ("net2", 1500)], &vifs);
        text = text.replace("frames = 2048", "frames = 16384");
        let uplink_network = [
            ("up0", r#"[{ network_id = "net1", vlan = 120 }, { network_id = "net2" }]"#),
            ("up1", r#"[{ network_id = "net1" }]"#),
        ];
        for (number, (name, networks)) in (8..).zip(uplink_network) {
            // The switch creates taps itself.
            if on != DeviceKind::Tap {
                let vif =
                    Vif { name: name.into(), netns: host.0.clone(), kind: on.kind(), ..Vif::new("up", number, wire) };
                lay(&vif, wire, 1500);
                // A veth strips tags into metadata, which AF_XDP does not read.
                for namespace in [wire, host] {
                    namespace.run_in(|| support::host::run("ethtool", &["-K", name, "txvlan", "off", "rxvlan", "off"]));
                }
            }
            text += &format!(
                "[[uplinks]]\nid = \"{name}\"\nnetworks = {networks}\n\
                 device = {{ kind = \"{}\", name = \"{name}\", netns = \"{}\" }}\n",
                on.kind(),
                host.0
            );
        }
        daemon.configure(&text);
        daemon.start();
        await_that("the uplinks", || {
            let uplinks: Value = daemon.get("/v1/uplinks");
            uplinks.as_array()?.iter().all(|uplink| uplink["status"] == "ACTIVE").then_some(())
        });
        let nic = |namespace: &Namespace, name: &str| Nic::new(namespace, name);
        let (a, b) = (nic(guest_a, "tap1"), nic(guest_b, "tap2"));
        let outside = if on == DeviceKind::Tap { host } else { wire };
        let (tagged, native) = (nic(outside, "up0"), nic(outside, "up1"));
        let offloading = Nic::with_header(guest_b, "tap2");
        Some(Scenario { daemon, a, b, offloading, tagged, native, _spaces: spaces })
    }

    /// Asserts that no frame was lost and counters balance.
    fn assert_balanced(&self) {
        await_that("the counters balance", || {
            let audit: Value = self.daemon.get("/v1/audit");
            (audit["balanced"] == true && audit["idle"] == true).then_some(())
        });
    }

    /// With uplinks of each device kind, with one worker and with two.
    fn each(test: impl Fn(&str, &Scenario)) {
        for on in DeviceKind::ALL {
            for switch in std::iter::once("").chain(two_workers()) {
                let Some(scene) = Scenario::new(on, switch) else { return };
                test(&format!("{on:?} {switch}"), &scene);
            }
        }
    }
}

/// A frame of `len` bytes with these tags.
fn frame(to: Mac, from: Mac, tags: &[u8], tale: u8, len: usize) -> Vec<u8> {
    let mut frame = [&to.octets()[..], &from.octets(), tags, &KIND].concat();
    frame.resize(len.max(frame.len()), tale);
    frame
}

/// Next frame from this station.
#[track_caller]
fn take(nic: &Nic, from: Mac) -> Vec<u8> {
    let is_meant = |frame: &Vec<u8>| frame[6..12] == from.octets();
    let line = std::panic::Location::caller().line();
    await_that(&format!("a frame from {from}, line {line}"), || nic.try_take().filter(is_meant))
}

fn tag(tci: u16) -> Vec<u8> {
    [&[0x81, 0x00][..], &tci.to_be_bytes()].concat()
}

/// IEEE 802.1Q, 6.9: the VLAN's tag replaces the frame's, and keeps PCP and DEI.
#[test]
fn pcp_and_dei_are_kept_when_tags_change() {
    Scenario::each(|on, scene| {
        let Scenario { a, b, tagged, .. } = scene;
        let mut tale = 0;
        // Unknown and known destination: flooded, and forwarded.
        for to in [Mac::BROADCAST, H] {
            for priority in [0xc000, 0xd000, 0x1000, 0x0000] {
                tale += 1;
                a.send(&frame(to, A, &tag(priority | 101), tale, 100));
                assert_eq!(take(tagged, A), frame(to, A, &tag(priority | 120), tale, 100), "{on}: from a subport");
                b.send(&frame(to, B, &tag(priority), tale, 100));
                assert_eq!(take(tagged, B), frame(to, B, &tag(priority | 120), tale, 100), "{on}: from a port");
                // The subport's tag belongs to its device; tags after it are not parsed.
                let inner = [tag(priority | 101), tag(0xe000)].concat();
                a.send(&frame(to, A, &inner, tale, 100));
                let inner = [tag(priority | 120), tag(0xe000)].concat();
                assert_eq!(take(tagged, A), frame(to, A, &inner, tale, 100), "{on}: double-tagged");
            }
            b.send(&frame(to, B, &[], tale, 100));
            assert_eq!(take(tagged, B), frame(to, B, &tag(120), tale, 104), "{on}: without a tag");
            // Now the station's port is known, and those of the others.
            tagged.send(&frame(Mac::BROADCAST, H, &tag(120), tale, 100));
            take(a, H);
            take(b, H);
        }
        for to in [Mac::BROADCAST, A] {
            for priority in [0xc000, 0xd000, 0x1000, 0x0000] {
                tale += 1;
                tagged.send(&frame(to, H, &tag(priority | 120), tale, 100));
                assert_eq!(take(a, H), frame(to, H, &tag(priority | 101), tale, 100), "{on}: to a subport");
                b.send(&frame(to, B, &tag(priority), tale, 100));
                assert_eq!(take(a, B), frame(to, B, &tag(priority | 101), tale, 100), "{on}: from a port to a subport");
            }
        }
        scene.assert_balanced();
    });
}

/// IEEE 802.3, 4.2.3.3: a frame has at least 64 bytes with its FCS. A frame that is shorter, on receive or after
/// untagging, is padded with zeros.
#[test]
fn uplinks_send_no_frame_below_the_minimum_length() {
    Scenario::each(|on, scene| {
        let Scenario { a, b, tagged, native, .. } = scene;
        let filled = |mut frame: Vec<u8>| {
            frame.resize(frame.len().max(60), 0);
            frame
        };
        let mut tale = 0;
        for to in [Mac::BROADCAST, H] {
            // The kernel accepts no tagged frame that ends within two bytes of its tag.
            for len in [16, 30, 59, 60, 61] {
                tale += 1;
                // From a subport, by both uplinks, and to the port of another VM, where no padding is needed.
                let untagged = frame(to, A, &[], tale, len);
                a.send(&frame(to, A, &tag(101), tale, len + 4));
                if to == Mac::BROADCAST {
                    let expected = filled(frame(to, A, &tag(120), tale, len + 4));
                    assert_eq!(take(tagged, A), expected, "{on}: tagged, {len}");
                    assert_eq!(take(b, A), untagged, "{on}: at a tap, {len}");
                }
                assert_eq!(take(native, A), filled(untagged), "{on}: untagged, {len}");
                b.send(&frame(to, B, &[], tale, len));
                assert_eq!(take(native, B), filled(frame(to, B, &[], tale, len)), "{on}: from a port, {len}");
                if to == Mac::BROADCAST {
                    take(tagged, B);
                    take(a, B);
                }
            }
            // From one uplink to a guest's tap, unmodified; the station is known then.
            native.send(&frame(Mac::BROADCAST, H, &[], tale, 60));
            assert_eq!(take(b, H), frame(Mac::BROADCAST, H, &[], tale, 60), "{on}");
        }
        scene.assert_balanced();
    });
}

/// Offload work is completed first: padding does not change a checksum, and the last segment of a GSO packet may be
/// short.
#[test]
fn completed_frames_have_the_minimum_length() {
    for switch in std::iter::once("").chain(two_workers()) {
        // Other device kinds leave it to the kernel.
        let Some(scene) = Scenario::new(DeviceKind::Xdp, switch) else { return };
        let Scenario { offloading, native, .. } = &scene;
        let builder = || PacketBuilder::ethernet2(B.octets(), H.octets()).ipv4([10, 5, 0, 2], [10, 5, 0, 9], 64);
        let open = |frame: &mut Vec<u8>, protocol: u8, at: usize| {
            let len = ((frame.len() - 34) as u16).to_be_bytes();
            let sum = Sum16BitWords::new().add_slice(&frame[26..34]).add_2bytes([0, protocol]).add_2bytes(len);
            frame[at..at + 2].copy_from_slice(&(!sum.ones_complement().to_be()).to_be_bytes());
        };
        let mut datagram = vec![0; 43];
        builder().udp(9, 9).write_to_slice(&mut datagram, b"x").unwrap();
        let mut expected = datagram.clone();
        expected.resize(60, 0);
        open(&mut datagram, 17, 40);
        offloading.send(&[&[1, 0, 0, 0, 0, 0, 34, 0, 6, 0][..], &datagram].concat());
        assert_eq!(take(native, B), expected);

        let mut stream = vec![0; 54 + 101];
        builder().tcp(9, 9, 1, 1024).write_to_slice(&mut stream, &[7; 101]).unwrap();
        open(&mut stream, 6, 50);
        offloading.send(&[&[1, 1, 54, 0, 100, 0, 34, 0, 16, 0][..], &stream].concat());
        let chunks = [take(native, B), take(native, B)];
        assert_eq!(chunks.each_ref().map(Vec::len), [154, 60]);
        assert_eq!(chunks[1][54..], [7, 0, 0, 0, 0, 0]);
        scene.assert_balanced();
    }
}
