//! Taps: created, persistent, foreign, multi-queue, deleted. Needs root; makes its own namespaces.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use support::host::relay::relay;
use support::host::{EXPERIMENT, Namespace, TEST_TIMEOUT, readable};
use vifswitch::device::tap::{self, Settings};
use vifswitch::device::{self, Device, DeviceLocation, OpenError, Opened, Removal};
use vifswitch::frame::{Batch, Magazine, Pool, TxBatch, TxStats};
use vifswitch::sys::link::{self, Link};
use vifswitch::sys::netns::{Netns, within};
use vifswitch::wire::{Mac, Offload};

/// Namespace helpers of these tests.
trait NamespaceExt {
    /// Settings of a tap in this namespace, as most tests need it.
    fn tap(&self, name: &str) -> Settings;
}

impl NamespaceExt for Namespace {
    fn tap(&self, name: &str) -> Settings {
        Settings {
            name: name.into(),
            netns: self.netns(),
            queues: 1,
            offloads: true,
            persist: false,
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: 1500,
            owner: "port-1".into(),
        }
    }
}

/// Pool, batch and magazine of a worker.
struct WorkerParts {
    cache: Magazine,
    batch: Batch,
    tx: TxBatch,
}

impl WorkerParts {
    fn new() -> WorkerParts {
        WorkerParts {
            cache: Magazine::new(Pool::new(1024).unwrap()),
            batch: Batch::new(),
            tx: TxBatch::with_capacity(64),
        }
    }

    fn send(&mut self, device: &mut dyn Device, frame: &[u8]) -> TxStats {
        self.tx.push(self.cache.frame(frame, Offload::NONE).unwrap());
        device.transmit(&mut self.tx, &self.batch, &mut self.cache)
    }

    /// Waits for the next frame that `wanted` accepts.
    fn take(&mut self, device: &mut dyn Device, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        loop {
            self.batch.clear(&mut self.cache);
            device.receive(&mut self.batch, &mut self.cache).unwrap();
            if let Some(index) = (0..self.batch.len()).find(|&index| wanted(self.batch.head(index))) {
                return self.batch.frame_ref(index).to_vec();
            }
            readable(device.fd().unwrap());
        }
    }
}

/// A socket that receives every frame of type [`EXPERIMENT`] in the namespace.
fn listener(namespace: &Namespace) -> OwnedFd {
    let protocol = NonZeroU32::new(u32::from(EXPERIMENT.to_be())).map(Protocol::from_raw);
    namespace.run_in(|| socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, protocol)).unwrap()
}

fn received(listener: &OwnedFd) -> Vec<u8> {
    let mut frame = vec![0; 65_536];
    readable(listener);
    let (len, _) = recv(listener, &mut frame[..], RecvFlags::empty()).unwrap();
    frame.truncate(len);
    frame
}

fn experiment(len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(EXPERIMENT.to_be_bytes());
    frame.extend((frame.len()..len).map(|i| i.to_le_bytes()[0]));
    frame
}

fn only(mut opened: Opened) -> Box<dyn Device> {
    assert_eq!(opened.queues.len(), 1);
    opened.queues.remove(0)
}

#[test]
fn a_tap_is_created_as_configured_and_removed_on_close() {
    let Some(namespace) = Namespace::new() else { return };
    let settings = Settings { mtu: 9000, ..namespace.tap("tap0") };
    let opened = tap::open(&settings, true).unwrap();
    assert!(opened.made && opened.warnings.is_empty(), "{opened:?}");
    assert!(opened.queues[0].caps().offloads);
    let link = namespace.link("tap0").unwrap();
    assert_eq!((link.mac, link.mtu, link.up), (settings.mac, 9000, true));
    assert_eq!((link.alias.as_str(), link.gso_max_segs, link.queue_len), ("vifswitch:port-1", 65_535, 4096));
    let info = link.tap.unwrap();
    assert!(info.vnet_header && !info.persist && !info.multi_queue);
    assert_eq!(
        within(&Netns::Host, || link::find("tap0")).unwrap().unwrap(),
        None,
        "the tap is not in the host namespace"
    );
    drop(opened);
    assert_eq!(namespace.link("tap0"), None);
}

#[test]
fn frames_pass_unmodified() {
    let Some(namespace) = Namespace::new() else { return };
    for (name, offloads) in [("with", true), ("without", false)] {
        let settings = Settings { offloads, mtu: 9000, ..namespace.tap(name) };
        let mut device = only(tap::open(&settings, true).unwrap());
        assert_eq!(device.caps().offloads, offloads);
        let (listener, mut parts) = (listener(&namespace), WorkerParts::new());
        for len in [60, 1514, 4096, 9014] {
            let sent = parts.send(&mut *device, &experiment(len));
            assert_eq!((sent.frames, sent.bytes), (1, len as u64));
            assert_eq!(received(&listener), experiment(len));
        }
        assert_eq!(parts.send(&mut *device, &[1; 9]).refused, 1, "no Ethernet header");
        namespace.ip(&format!("addr add 10.0.0.1/24 dev {name}"));
        let text = b"a text that is easily found";
        let socket = namespace.run_in(|| UdpSocket::bind("10.0.0.1:0")).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(text, "10.0.0.255:9").unwrap();
        let frame = parts.take(&mut *device, |frame| frame.ends_with(text));
        assert_eq!((frame.len(), &frame[..6]), (42 + text.len(), &[0xff; 6][..]));
        assert_eq!(frame[6..12], settings.mac.octets());
        namespace.ip(&format!("link set dev {name} down"));
        assert_eq!(parts.send(&mut *device, &experiment(60)).link_down, 1);
        device.receive(&mut parts.batch, &mut parts.cache).unwrap();
    }
}

#[test]
fn tcp_passes_as_gso_packets() {
    let (Some(left), Some(right)) = (Namespace::new(), Namespace::new()) else { return };
    let other = Mac::from_bits(0x0200_0000_0002);
    let taps = [left.tap("tap0"), Settings { mac: other, ..right.tap("tap0") }];
    let taps = taps.map(|settings| only(tap::open(&settings, true).unwrap()));
    left.ip("addr add 10.0.0.1/24 dev tap0");
    right.ip("addr add 10.0.0.2/24 dev tap0");
    relay(&left, &right, taps);
}

#[test]
fn a_persistent_tap_keeps_its_addresses() {
    let Some(namespace) = Namespace::new() else { return };
    let settings = Settings { persist: true, ..namespace.tap("tap0") };
    drop(tap::open(&settings, true).unwrap());
    namespace.ip("addr add 10.0.0.1/24 dev tap0");
    let before = namespace.link("tap0").unwrap();
    assert!(before.tap.unwrap().persist);
    let again = tap::open(&settings, false).unwrap();
    assert!(again.made && again.warnings.is_empty(), "{again:?}");
    assert!(!before.carrier, "the tap has no carrier");
    assert_eq!(namespace.link("tap0").unwrap(), Link { carrier: true, ..before });
    namespace.run_in(|| UdpSocket::bind("10.0.0.1:0")).expect("the address is still there");
    drop(again);
    let other = Settings { owner: "port-2".into(), ..settings.clone() };
    let theirs = device::open(&device::Settings::Tap(other.clone()), true, Pool::new(64).unwrap()).unwrap();
    assert!(!theirs.made, "another port made it");
    let settings = device::Settings::Tap(settings);
    let remove = |settings: &device::Settings| {
        let removed = device::remove(&namespace.netns(), std::slice::from_ref(settings));
        removed.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(remove(&device::Settings::Tap(other)), [false]);
    drop(theirs);
    assert_eq!(remove(&settings), [true]);
    assert_eq!(namespace.link("tap0"), None);
    assert_eq!(remove(&settings), [false]);
}

/// More taps than one batch, held and free, and foreign ones, which are kept.
#[test]
fn only_taps_of_the_switch_are_removed() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip("tuntap add dev theirs mode tap");
    let named = |name: &str| Settings { persist: true, owner: format!("port {name}"), ..namespace.tap(name) };
    let names: Vec<String> = (0..150).map(|number| format!("tap{number}")).collect();
    let mut open: Vec<_> = names.iter().map(|name| tap::open(&named(name), true).unwrap()).collect();
    open.truncate(75);
    let other = Settings { owner: "another port".into(), ..named("tap7") };
    let mut requests = vec![named("theirs"), named("nobody"), other];
    requests.extend(names.iter().skip(10).map(|name| named(name)));
    let requests: Vec<_> = requests.into_iter().map(device::Settings::Tap).collect();
    let removed: Vec<bool> = device::remove(&namespace.netns(), &requests).into_iter().map(Result::unwrap).collect();
    assert_eq!(removed[..3], [false; 3]);
    assert!(removed.len() == 143 && removed[3..].iter().all(|removed| *removed));
    let mut left: Vec<&str> = names[..10].iter().map(String::as_str).chain(["lo", "theirs"]).collect();
    left.sort_unstable();
    assert_eq!(namespace.links(), left);
}

#[test]
fn a_tap_no_longer_persistent_is_removed_on_close() {
    let Some(namespace) = Namespace::new() else { return };
    let settings = Settings { persist: true, ..namespace.tap("tap0") };
    drop(tap::open(&settings, true).unwrap());
    let opened = tap::open(&Settings { persist: false, ..settings }, true).unwrap();
    drop(opened);
    assert_eq!(namespace.link("tap0"), None);
}

#[test]
fn a_foreign_tap_is_used_and_kept() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip("tuntap add dev tap0 mode tap");
    let opened = tap::open(&namespace.tap("tap0"), false).unwrap();
    assert!(!opened.made);
    assert!(opened.warnings.iter().any(|note| note.contains("MAC address")), "{:?}", opened.warnings);
    let link = namespace.link("tap0").unwrap();
    assert_eq!((link.mac, link.up, link.alias.as_str()), (namespace.tap("tap0").mac, true, ""));
    drop(opened);
    assert!(namespace.link("tap0").is_some());
    let refused = tap::open(&Settings { queues: 2, ..namespace.tap("tap0") }, true).unwrap_err();
    assert!(matches!(refused, OpenError::Refused { .. }), "{refused}");
    namespace.ip("tuntap add dev tap1 mode tap multi_queue");
    let followed = tap::open(&namespace.tap("tap1"), false).unwrap();
    assert!(followed.warnings[0].contains("multi-queue"), "{:?}", followed.warnings);
    assert_eq!(namespace.link("tap1").unwrap().tap.unwrap().queues, 1);
}

/// A tap cannot be changed from single to multi-queue. A free tap of the switch is removed and created again.
#[test]
fn a_tap_is_created_again_for_another_queue_mode() {
    let Some(namespace) = Namespace::new() else { return };
    let mut before = 0;
    for queues in [1, 2, 1] {
        let settings = Settings { queues, persist: true, ..namespace.tap("tap0") };
        let opened = tap::open(&settings, true).unwrap();
        let link = namespace.link("tap0").unwrap();
        assert_eq!((opened.made, opened.queues.len()), (true, usize::from(queues)));
        assert_eq!((link.tap.unwrap().multi_queue, link.index != before), (queues > 1, true));
        before = link.index;
        let other = Settings { queues: 3 - queues, ..settings };
        assert!(matches!(tap::preflight(&other), Err(OpenError::Busy { .. })));
        drop(opened);
        let notes = tap::preflight(&other).unwrap();
        assert!(notes[0].contains("recreated"), "{notes:?}");
    }
}

#[test]
fn orphaned_taps_are_removed_if_free() {
    let Some(namespace) = Namespace::new() else { return };
    let at = DeviceLocation { device: "tap0".into(), netns: namespace.netns() };
    let remove = |port: &str| device::remove_left(&at, port, Vec::new()).unwrap();
    assert_eq!(remove("port-1"), Removal::Gone);
    for queues in [1, 2] {
        let opened = tap::open(&Settings { queues, persist: true, ..namespace.tap("tap0") }, true).unwrap();
        assert_eq!(remove("port-1"), Removal::InUse);
        drop(opened);
        assert_eq!(remove("port-2"), Removal::Gone);
        assert!(namespace.link("tap0").is_some());
        assert_eq!(remove("port-1"), Removal::Done);
        assert_eq!(namespace.link("tap0"), None);
    }
    namespace.ip("tuntap add dev tap0 mode tap");
    assert_eq!(remove("port-1"), Removal::Gone);
    let absent = DeviceLocation { netns: Netns::Named("vift-nowhere".into()), ..at.clone() };
    assert_eq!(device::remove_left(&absent, "port-1", Vec::new()).unwrap(), Removal::Gone);
}

#[test]
fn other_netdevs_are_refused() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip("tuntap add dev tun0 mode tun");
    for name in ["tun0", "lo", "a-name-of-16-byt"] {
        let refused = tap::open(&namespace.tap(name), true).unwrap_err();
        assert!(matches!(refused, OpenError::Refused { .. }), "{refused}");
        assert!(refused.to_string().contains(name) && refused.to_string().contains(&namespace.0), "{refused}");
    }
}

#[test]
fn a_tap_in_use_is_busy() {
    let Some(namespace) = Namespace::new() else { return };
    for queues in [1, 2] {
        let settings = Settings { queues, ..namespace.tap("tap0") };
        let held = tap::open(&settings, true).unwrap();
        for second in [1, queues] {
            let busy = tap::open(&Settings { queues: second, ..settings.clone() }, true).unwrap_err();
            assert!(matches!(busy, OpenError::Busy { .. }), "{busy}");
        }
        assert_eq!(held.queues.len(), usize::from(queues));
    }
}

#[test]
fn two_queues_share_flows() {
    let Some(namespace) = Namespace::new() else { return };
    let mut opened = tap::open(&Settings { queues: 2, ..namespace.tap("tap0") }, true).unwrap();
    assert_eq!(namespace.link("tap0").unwrap().tap.unwrap().queues, 2);
    namespace.ip("addr add 10.0.0.1/24 dev tap0");
    let mut parts = WorkerParts::new();
    let listener = listener(&namespace);
    for queue in &mut opened.queues {
        assert_eq!(parts.send(&mut **queue, &experiment(60)).frames, 1);
        assert_eq!(received(&listener), experiment(60));
    }
    // Flows are distributed by their ports: with 64 flows, each queue receives some.
    let mut expected = HashSet::new();
    namespace.run_in(|| {
        for stream in 0..64u8 {
            let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
            socket.set_broadcast(true).unwrap();
            socket.send_to(&[stream; 100], "10.0.0.255:9").unwrap();
            expected.insert(stream);
        }
    });
    let mut shares = [0, 0];
    while !expected.is_empty() {
        let mut polled: Vec<_> =
            opened.queues.iter().map(|q| PollFd::from_borrowed_fd(q.fd().unwrap(), PollFlags::IN)).collect();
        assert!(poll(&mut polled, Some(&TEST_TIMEOUT)).unwrap() > 0, "{expected:?} did not arrive");
        for (queue, share) in opened.queues.iter_mut().zip(&mut shares) {
            queue.receive(&mut parts.batch, &mut parts.cache).unwrap();
            for index in 0..parts.batch.len() {
                let frame = parts.batch.head(index);
                if frame.len() == 142 && expected.remove(&frame[141]) {
                    *share += 1;
                }
            }
            parts.batch.clear(&mut parts.cache);
        }
    }
    assert!(shares[0] > 0 && shares[1] > 0, "{shares:?}");
}

#[test]
fn a_deleted_netdev_is_reported_gone() {
    let Some(namespace) = Namespace::new() else { return };
    let mut device = only(tap::open(&namespace.tap("tap0"), true).unwrap());
    let mut parts = WorkerParts::new();
    namespace.ip("link del dev tap0");
    let mut polled = [PollFd::from_borrowed_fd(device.fd().unwrap(), PollFlags::IN)];
    assert!(poll(&mut polled, Some(&TEST_TIMEOUT)).unwrap() > 0, "the descriptor becomes readable");
    assert!(device.receive(&mut parts.batch, &mut parts.cache).is_err());
    assert_eq!(parts.send(&mut *device, &experiment(60)).link_down, 1);
}

#[test]
fn missing_namespace_and_netdev_have_different_errors() {
    let Some(namespace) = Namespace::new() else { return };
    let missing = tap::open(&namespace.tap("tap0"), false).unwrap_err();
    assert!(matches!(missing, OpenError::NoDevice { .. }), "{missing}");
    assert_eq!(namespace.link("tap0"), None, "a query creates nothing");
    let absent = Settings { netns: Netns::Named(format!("{}-not", namespace.0)), ..namespace.tap("tap0") };
    for may_create in [false, true] {
        let missing = tap::open(&absent, may_create).unwrap_err();
        assert!(matches!(missing, OpenError::NoNamespace { .. }), "{missing}");
    }
}

#[test]
fn a_tap_without_offloads_resets_those_of_its_previous_owner() {
    let Some(namespace) = Namespace::new() else { return };
    let settings = Settings { persist: true, ..namespace.tap("tap0") };
    drop(tap::open(&settings, true).unwrap());
    let mut device = only(tap::open(&Settings { offloads: false, ..settings }, true).unwrap());
    namespace.ip("addr add 10.0.0.1/24 dev tap0");
    let socket = namespace.run_in(|| UdpSocket::bind("10.0.0.1:0")).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.send_to(&[7; 100], "10.0.0.255:9").unwrap();
    let frame = WorkerParts::new().take(&mut *device, |frame| frame.len() == 142);
    // Checksum over pseudo-header and datagram (RFC 768): a complete one sums to all ones.
    let words = [&frame[26..34], &[0, 17, 0, 108], &frame[34..]].concat();
    let sum: u32 = words.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
}
