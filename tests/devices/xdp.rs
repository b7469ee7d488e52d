//! AF_XDP ports on foreign netdevs. Needs root; makes its own namespaces.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use support::host::nic::{Nic, experiment};
use support::host::{Namespace, await_that, readable};
use tun_tap::{Iface, Mode as Layer};
use vifswitch::device::xdp::{self, Mode, Settings, program};
use vifswitch::device::{Device, GroupClass, OpenError, Opened, XdpDropped};
use vifswitch::frame::{Batch, Magazine, Pool, TxBatch, TxStats};
use vifswitch::sys::link::XdpMode;
use vifswitch::sys::tun::{self, Flags};
use vifswitch::time::MonoTime;
use vifswitch::wire::{Mac, Offload};

const SLOTS: u32 = 4096;

/// Namespace helpers of these tests.
trait NamespaceExt {
    fn veth(&self, name: &str, mtu: u32);

    fn xdp(&self, name: &str) -> Settings;
}

impl NamespaceExt for Namespace {
    fn veth(&self, name: &str, mtu: u32) {
        self.ip(&format!("link add {name} mtu {mtu} type veth peer name {name}p mtu {mtu}"));
        self.ip(&format!("link set dev {name} up"));
        self.ip(&format!("link set dev {name}p up"));
    }

    fn xdp(&self, name: &str) -> Settings {
        Settings {
            name: name.into(),
            netns: self.netns(),
            queues: None,
            mode: Mode::Auto,
            replace_xdp_program: false,
            mtu: 1500,
            fill: 256,
            owner: "port-1".into(),
            vlan_demux: false,
        }
    }
}

/// Pool, batch and magazine of a worker.
struct WorkerParts {
    pool: &'static Pool,
    cache: Magazine,
    batch: Batch,
    tx: TxBatch,
}

impl WorkerParts {
    fn new() -> WorkerParts {
        let pool = Pool::new(SLOTS).unwrap();
        WorkerParts { pool, cache: Magazine::new(pool), batch: Batch::new(), tx: TxBatch::with_capacity(192) }
    }

    fn open(&self, settings: &Settings) -> Opened {
        // The kernel frees a queue shortly after its socket is closed.
        await_that("the netdev is free", || match xdp::open(settings, self.pool) {
            Err(OpenError::Busy { .. }) => None,
            opened => Some(opened.unwrap()),
        })
    }

    fn only(&self, settings: &Settings) -> Box<dyn Device> {
        let mut opened = self.open(settings);
        assert_eq!(opened.queues.len(), 1);
        opened.queues.remove(0)
    }

    /// Moves received frames from one device to another, whole frames at a time.
    fn forward(&mut self, from: &mut dyn Device, to: &mut dyn Device) -> TxStats {
        from.receive(&mut self.batch, &mut self.cache).unwrap();
        for index in 0..self.batch.len() {
            self.tx.push(self.batch.take(index).expect("the device owns its slots"));
        }
        let sent = to.transmit(&mut self.tx, &self.batch, &mut self.cache);
        self.batch.clear(&mut self.cache);
        sent
    }

    /// Moves one frame from one device to another.
    fn transfer(&mut self, from: &mut dyn Device, to: &mut dyn Device) {
        readable(from.fd().unwrap());
        let sent = self.forward(from, to);
        assert_eq!(sent, TxStats { frames: 1, bytes: sent.bytes, ..TxStats::default() });
    }

    fn send(&mut self, device: &mut dyn Device, frame: &[u8]) -> TxStats {
        self.tx.push(self.cache.frame(frame, Offload::NONE).unwrap());
        device.transmit(&mut self.tx, &self.batch, &mut self.cache)
    }
}

/// A bridge in `guest` with the netdev `outside` and i0, whose peer is i1.
fn bridge(guest: &Namespace, outside: &str) {
    guest.ip("link add br0 mtu 9100 type bridge mcast_snooping 0");
    guest.ip("link add i0 mtu 9100 type veth peer name i1 mtu 9100");
    for name in [outside, "i0"] {
        guest.ip(&format!("link set dev {name} master br0"));
    }
    for name in ["br0", "i0", "i1", outside] {
        guest.ip(&format!("link set dev {name} up"));
    }
}

fn frame(len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len - 14).map(|i| (i * 31 + len) as u8).collect();
    experiment(Mac::BROADCAST, Mac::from_bits(0x0200_0000_0001), &payload)
}

#[test]
fn a_veth_is_bound_in_native_mode_with_the_reason() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.veth("v0", 1500);
    let parts = WorkerParts::new();
    let opened = parts.open(&namespace.xdp("v0"));
    assert_eq!(opened.mode.as_deref(), Some("native copy"));
    assert!(!opened.made && opened.warnings.len() == 1, "{opened:?}");
    assert_eq!(opened.warnings[0], "native copy, as veth has no zero-copy");
    assert_eq!(namespace.link("v0").unwrap().xdp.unwrap().mode, XdpMode::Native);
    drop(opened);
    assert_eq!(namespace.link("v0").unwrap().xdp, None);
    let generic = parts.open(&Settings { mode: Mode::Generic, ..namespace.xdp("v0") });
    assert_eq!((generic.mode.as_deref(), generic.warnings.len()), (Some("generic copy"), 1));
    assert!(generic.warnings[0].contains("VLAN tag of a frame may be lost"), "{:?}", generic.warnings);
    assert_eq!(namespace.link("v0").unwrap().xdp.unwrap().mode, XdpMode::Generic);
    drop(generic);
    let refused = xdp::open(&Settings { mode: Mode::ZeroCopy, ..namespace.xdp("v0") }, parts.pool).unwrap_err();
    assert!(refused.to_string().contains("veth has no zero-copy"), "{refused}");
    assert!(matches!(refused, OpenError::Refused { .. }));
    drop(parts.cache);
    assert_eq!(parts.pool.free(), SLOTS);
}

/// A bridge of the guest strips the outer tag into metadata and sends the frame by a veth. The port receives it with
/// its tag.
#[test]
fn a_stripped_tag_is_restored() {
    let (Some(namespace), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    namespace.ip(&format!("link add v0 mtu 9100 type veth peer name eth0 mtu 9100 netns {}", guest.0));
    namespace.ip("link set dev v0 up");
    bridge(&guest, "eth0");
    tags_come_in((&namespace, "v0"), &guest, &[16, 46, 60, 1500, 3836, 3840, 8000]);
}

/// A frame from a VXLAN tunnel keeps its inner tag, also in generic mode.
#[test]
fn a_tag_inside_a_tunnel_is_kept() {
    let (Some(namespace), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    namespace.ip(&format!("link add under mtu 9100 type veth peer name under mtu 9100 netns {}", guest.0));
    for (end, own, other) in [(&namespace, 1, 2), (&guest, 2, 1)] {
        end.ip(&format!("addr add 10.5.0.{own}/24 dev under"));
        end.ip("link set dev under up");
        let tunnel = format!("type vxlan id 5 dstport 4789 local 10.5.0.{own} remote 10.5.0.{other} dev under");
        end.ip(&format!("link add vx0 mtu 9000 {tunnel}"));
    }
    namespace.ip("link set dev vx0 up");
    bridge(&guest, "vx0");
    tags_come_in((&namespace, "vx0"), &guest, &[60, 1500]);
}

/// A port receives frames of the guest's bridge unmodified, with tags of every kind.
fn tags_come_in((namespace, name): (&Namespace, &str), guest: &Namespace, lens: &[usize]) {
    let inside = Nic::new(guest, "i1");
    let mut parts = WorkerParts::new();
    for vlan_demux in [false, true] {
        let mut device = parts.only(&Settings { vlan_demux, ..namespace.xdp(name) });
        // The bridge sends frames of its own, and forwards only some time after its ports are up.
        let mut take = |send: Option<&[u8]>, written: &[u8]| {
            await_that(&format!("{} bytes: {:?}", written.len(), &written[12..]), || {
                send.into_iter().for_each(|again| inside.send(again));
                device.receive(&mut parts.batch, &mut parts.cache).unwrap();
                let came: Vec<_> = (0..parts.batch.len()).map(|index| parts.batch.frame_ref(index).to_vec()).collect();
                parts.batch.clear(&mut parts.cache);
                came.into_iter().find(|came| came[..12] == written[..12])
            })
        };
        let hello = experiment(Mac::BROADCAST, Mac::from_bits(0x0200_0000_0002), b"hello");
        take(Some(&hello), &hello);
        for &len in lens {
            for tags in
                [&[][..], &[[0x81, 0, 0, 101]], &[[0x81, 0, 0xb0, 5]], &[[0x88, 0xa8, 0xe0, 7], [0x81, 0, 0, 9]]]
            {
                let plain = frame(len);
                let written = [&plain[..12], &tags.concat(), &plain[12..]].concat();
                inside.send(&written);
                assert_eq!(take(None, &written), written, "{len}, {tags:?}");
            }
        }
        assert_eq!(device.rx_missed(), 0);
    }
}

/// Where a program cannot read stripped tags, trunks are refused.
#[test]
fn trunks_are_refused_where_tags_may_be_lost() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.veth("v0", 1500);
    let parts = WorkerParts::new();
    let settings = Settings { mode: Mode::Generic, vlan_demux: true, ..namespace.xdp("v0") };
    for refused in [xdp::open(&settings, parts.pool).unwrap_err(), xdp::preflight(&settings).unwrap_err()] {
        assert!(matches!(refused, OpenError::Refused { .. }) && refused.to_string().contains("packet"), "{refused}");
    }
    assert_eq!(namespace.link("v0").unwrap().xdp, None, "no slot is held");
    let alone = Settings { vlan_demux: false, ..settings.clone() };
    assert!(parts.open(&alone).may_lose_tags);
    assert!(xdp::preflight(&alone).unwrap().iter().any(|note| note.contains("VLAN tag")));
    let native = Settings { mode: Mode::Auto, ..settings };
    assert!(!parts.open(&native).may_lose_tags);
    assert_eq!(xdp::preflight(&native).unwrap(), [""; 0]);
}

#[test]
fn every_length_passes_from_veth_to_veth_unmodified() {
    let (Some(here), Some(there)) = (Namespace::new(), Namespace::new()) else { return };
    here.veth("v0", 9100);
    there.veth("v0", 9100);
    let mut parts = WorkerParts::new();
    let (mut a, mut b) = (parts.only(&here.xdp("v0")), parts.only(&there.xdp("v0")));
    let (left, right) = (Nic::new(&here, "v0p"), Nic::new(&there, "v0p"));
    // A chunk holds 3840 bytes: frames of two and three chunks.
    for len in [14, 15, 59, 60, 64, 1500, 1514, 1518, 3840, 3841, 4096, 7680, 7681, 9014] {
        let written = frame(len);
        left.send(&written);
        parts.transfer(&mut *a, &mut *b);
        assert_eq!(right.take(), written, "{len}");
        right.send(&written);
        parts.transfer(&mut *b, &mut *a);
        assert_eq!(left.take(), written, "{len}");
    }
    // Tags are part of the frame.
    for types in [&[0x8100u16][..], &[0x88a8, 0x8100], &[0x8100, 0x8100, 0x8100]] {
        let mut written = frame(60);
        types.iter().for_each(|tag| drop(written.splice(12..12, [tag.to_be_bytes(), 77u16.to_be_bytes()].concat())));
        left.send(&written);
        parts.transfer(&mut *a, &mut *b);
        assert_eq!(right.take(), written, "{types:x?}");
    }
    drop((a, b));
    drop(parts.cache);
    assert_eq!(parts.pool.free(), SLOTS);
}

/// The guest's end of a tap, as QEMU holds it, without `virtio_net_hdr`.
fn guest(namespace: &Namespace, name: &str) -> Iface {
    let tap = namespace.run_in(|| Iface::without_packet_info(name, Layer::Tap)).unwrap();
    tap.set_non_blocking().unwrap();
    namespace.ip(&format!("link set dev {name} up"));
    tap
}

fn guest_takes(tap: &Iface) -> Vec<u8> {
    let mut frame = vec![0; 10_000];
    let len = await_that("a frame at the guest", || tap.recv(&mut frame).ok());
    frame.truncate(len);
    frame
}

#[test]
fn frames_pass_between_foreign_taps() {
    let Some(namespace) = Namespace::new() else { return };
    let (left, right) = (guest(&namespace, "t0"), guest(&namespace, "t1"));
    ["t0", "t1"].iter().for_each(|tap| namespace.ip(&format!("link set dev {tap} mtu 9000")));
    let mut parts = WorkerParts::new();
    let (mut a, mut b) = (parts.only(&namespace.xdp("t0")), parts.only(&namespace.xdp("t1")));
    for len in [14, 60, 1514, 3841, 9014] {
        let written = frame(len);
        left.send(&written).unwrap();
        parts.transfer(&mut *a, &mut *b);
        assert_eq!(guest_takes(&right), written, "{len}");
    }
}

#[test]
fn a_large_burst_is_sent_completely_and_in_order() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.veth("v0", 1500);
    let mut parts = WorkerParts::new();
    let mut device = parts.only(&namespace.xdp("v0"));
    let peer = Nic::new(&namespace, "v0p");
    for round in 0..20u32 {
        for number in 0..150u32 {
            let written = experiment(Mac::BROADCAST, Mac::from_bits(2 << 40), &(round * 150 + number).to_be_bytes());
            parts.tx.push(parts.cache.frame(&written, Offload::NONE).unwrap());
        }
        let sent = device.transmit(&mut parts.tx, &parts.batch, &mut parts.cache);
        assert_eq!((sent.frames, sent.full), (150, 0));
    }
    for number in 0..3000u32 {
        assert_eq!(peer.take()[14..18], number.to_be_bytes());
    }
}

#[test]
fn borrowed_frames_are_copied_and_frames_without_a_slot_counted() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.veth("v0", 1500);
    let mut parts = WorkerParts::new();
    let mut device = parts.only(&namespace.xdp("v0"));
    let peer = Nic::new(&namespace, "v0p");
    let lent = |batch: &mut Batch, bytes: &[u8]| {
        let read = |room: &mut [u8]| {
            room[..bytes.len()].copy_from_slice(bytes);
            Ok::<_, ()>(bytes.len())
        };
        batch.receive(false, read).unwrap();
    };
    lent(&mut parts.batch, &frame(100));
    (0..3).for_each(|_| parts.tx.borrow(0));
    let sent = device.transmit(&mut parts.tx, &parts.batch, &mut parts.cache);
    assert_eq!((sent.frames, sent.bytes), (3, 300));
    (0..3).for_each(|_| assert_eq!(peer.take(), frame(100)));
    let hoard: Vec<_> = std::iter::from_fn(|| parts.cache.frame(&frame(60), Offload::NONE)).collect();
    parts.tx.borrow(0);
    let sent = device.transmit(&mut parts.tx, &parts.batch, &mut parts.cache);
    assert_eq!((sent.frames, sent.no_buffer), (0, 1));
    drop(hoard);
}

#[test]
fn full_rings_lose_frames_only() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.veth("v0", 1500);
    let mut parts = WorkerParts::new();
    let mut device = parts.only(&Settings { fill: 64, ..namespace.xdp("v0") });
    let peer = Nic::new(&namespace, "v0p");
    // Nobody receives in between: the rings hold 64.
    (0..500u32).for_each(|number| peer.send(&experiment(Mac::BROADCAST, Mac::from_bits(2), &number.to_be_bytes())));
    let mut came = 0;
    for _ in 0..10 {
        device.receive(&mut parts.batch, &mut parts.cache).unwrap();
        came += parts.batch.len();
        parts.batch.clear(&mut parts.cache);
    }
    assert_eq!(came, 64);
    assert_eq!((device.rx_missed(), device.rx_missed()), (436, 0));
    peer.send(&frame(60));
    readable(device.fd().unwrap());
    device.receive(&mut parts.batch, &mut parts.cache).unwrap();
    assert_eq!(parts.batch.head(0), frame(60), "the device continues");
}

#[test]
fn deleted_and_down_netdevs_are_distinguished() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.veth("v0", 1500);
    let mut parts = WorkerParts::new();
    let down = |settings: &Settings| xdp::open(settings, parts.pool).unwrap_err();
    assert!(matches!(down(&namespace.xdp("none")), OpenError::NoDevice { .. }));
    namespace.ip("link set dev v0p down");
    let why = down(&namespace.xdp("v0"));
    assert!(matches!(why, OpenError::Down { .. }) && why.to_string().contains("no carrier"), "{why}");
    namespace.ip("link set dev v0 down");
    let why = down(&namespace.xdp("v0"));
    assert!(matches!(why, OpenError::Down { .. }) && why.to_string().contains("link is down"), "{why}");
    namespace.ip("link set dev v0 up");
    namespace.ip("link set dev v0p up");

    let mut device = parts.only(&namespace.xdp("v0"));
    namespace.ip("link set dev v0 down");
    parts.send(&mut *device, &frame(60));
    assert_eq!(parts.send(&mut *device, &frame(60)), TxStats { link_down: 1, ..TxStats::default() });
    namespace.ip("link set dev v0 up");
    assert_eq!(parts.send(&mut *device, &frame(60)).frames + parts.send(&mut *device, &frame(60)).frames, 2);
    namespace.ip("link del dev v0");
    parts.send(&mut *device, &frame(60));
    assert!(device.receive(&mut parts.batch, &mut parts.cache).is_err());
    drop((device, parts.cache));
    assert_eq!(parts.pool.free(), SLOTS);
}

#[test]
fn every_queue_is_bound_or_the_error_has_a_remedy() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip("link add v0 numrxqueues 2 numtxqueues 2 type veth peer name v0p numrxqueues 2 numtxqueues 2");
    namespace.ip("link set dev v0 up");
    namespace.ip("link set dev v0p up");
    let parts = WorkerParts::new();
    assert_eq!(parts.open(&namespace.xdp("v0")).queues.len(), 2);
    let refused = xdp::open(&Settings { queues: Some(1), ..namespace.xdp("v0") }, parts.pool).unwrap_err();
    assert!(refused.to_string().contains("the netdev has 2 receive queues, but queues = 1"), "{refused}");
    assert_eq!(parts.open(&Settings { queues: Some(2), ..namespace.xdp("v0") }).queues.len(), 2);
}

#[test]
fn a_bound_netdev_is_in_use() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.veth("v0", 1500);
    let (ours, theirs) = (WorkerParts::new(), WorkerParts::new());
    let opened = ours.open(&namespace.xdp("v0"));
    let busy = xdp::open(&namespace.xdp("v0"), theirs.pool).unwrap_err();
    assert!(matches!(busy, OpenError::Busy { .. }), "{busy}");
    drop(opened);
    theirs.open(&namespace.xdp("v0"));
}

/// Never reached.
const NEVER: MonoTime = MonoTime::from_nanos(u64::MAX);

fn to(mac: Mac, len: usize) -> Vec<u8> {
    experiment(mac, Mac::from_bits(0x0200_0000_0001), &vec![7; len - 14])
}

/// On a veth in each mode, and on a tap: frames dropped early are not received and are counted to the byte, in one or
/// several chunks.
#[test]
fn frames_dropped_early_are_counted() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.veth("v0", 9100);
    let tap = guest(&namespace, "t0");
    namespace.ip("link set dev t0 mtu 9000");
    let peer = Nic::new(&namespace, "v0p");
    let write = |name: &str, bytes: &[u8]| match name {
        "t0" => assert_eq!(tap.send(bytes).unwrap(), bytes.len()),
        _ => peer.send(bytes),
    };
    let (multicast, station) = (Mac::from_bits(0x0100_5e00_0001), Mac::from_bits(0x0200_0000_0002));
    for (name, mode) in [("v0", Mode::Copy), ("v0", Mode::Generic), ("t0", Mode::Copy)] {
        let mut parts = WorkerParts::new();
        let mut device = parts.only(&Settings { mode, ..namespace.xdp(name) });
        let mut expect = |device: &mut Box<dyn Device>, expected: &[Vec<u8>]| {
            let mut came = Vec::new();
            while came.len() < expected.len() {
                readable(device.fd().unwrap());
                device.receive(&mut parts.batch, &mut parts.cache).unwrap();
                came.extend((0..parts.batch.len()).map(|index| parts.batch.frame_ref(index).to_vec()));
                parts.batch.clear(&mut parts.cache);
            }
            assert_eq!(came, expected, "{name}, {mode:?}");
        };
        // The last frame is unicast and follows the dropped ones.
        let last = to(station, 60);
        for (dropped, other) in [(GroupClass::Broadcast, multicast), (GroupClass::Multicast, Mac::BROADCAST)] {
            device.xdp_drop(dropped, NEVER);
            let dying = if dropped == GroupClass::Broadcast { Mac::BROADCAST } else { multicast };
            let exempt = program::NEVER_DROP.map(|mac| to(mac, 64));
            let mut expected = XdpDropped::default();
            for len in [60, 64, 1514, 3841, 9014] {
                write(name, &to(dying, len));
                expected[dropped].frames += 1;
                expected[dropped].bytes += len as u64;
            }
            write(name, &to(other, 100));
            exempt.iter().chain([&last]).for_each(|bytes| write(name, bytes));
            expect(&mut device, &[&[to(other, 100)], &exempt[..], std::slice::from_ref(&last)].concat());
            assert_eq!(device.take_xdp_dropped(), expected, "{name}, {mode:?}");
            assert_eq!(device.take_xdp_dropped(), XdpDropped::default(), "counts are returned once");
            device.xdp_drop(dropped, MonoTime::default());
            write(name, &to(dying, 9014));
            expect(&mut device, &[to(dying, 9014)]);
            assert_eq!(device.take_xdp_dropped(), XdpDropped::default());
        }
        drop((device, parts.cache));
        assert_eq!(parts.pool.free(), SLOTS);
    }
}

/// Each queue has its own early drop: its worker sets it and counts.
#[test]
fn each_queue_has_its_own_early_drop() {
    let Some(namespace) = Namespace::new() else { return };
    let flags = Flags { vnet_header: false, multi_queue: true, exclusive: false };
    let held = [(); 2].map(|()| namespace.run_in(|| tun::Queue::open("t0", flags)).unwrap());
    namespace.ip("link set dev t0 up");
    let mut parts = WorkerParts::new();
    let mut devices = parts.open(&namespace.xdp("t0")).queues;
    devices[1].xdp_drop(GroupClass::Broadcast, NEVER);
    held.iter().for_each(|queue| queue.write(&to(Mac::BROADCAST, 60)).unwrap());
    readable(devices[0].fd().unwrap());
    for (number, device) in devices.iter_mut().enumerate() {
        device.receive(&mut parts.batch, &mut parts.cache).unwrap();
        assert_eq!(parts.batch.len(), 1 - number);
        parts.batch.clear(&mut parts.cache);
        let mut expected = XdpDropped::default();
        expected[GroupClass::Broadcast].frames = number as u64;
        expected[GroupClass::Broadcast].bytes = number as u64 * 60;
        assert_eq!(device.take_xdp_dropped(), expected);
    }
}

#[test]
fn tcp_passes_between_stacks_whose_offloads_are_off() {
    let (Some(here), Some(there)) = (Namespace::new(), Namespace::new()) else { return };
    let mut parts = WorkerParts::new();
    for (number, namespace) in (1..).zip([&here, &there]) {
        namespace.veth("v0", 1500);
        namespace.ip(&format!("addr add 10.5.0.{number}/24 dev v0p"));
        namespace.run_in(|| support::host::run("ethtool", &["-K", "v0p", "tx", "off", "tso", "off", "gso", "off"]));
    }
    let (mut a, mut b) = (parts.only(&here.xdp("v0")), parts.only(&there.xdp("v0")));
    let content: Vec<u8> = (0..2_000_000u32).map(|i| (i * 7 + (i >> 9)) as u8).collect();
    let listener = there.run_in(|| TcpListener::bind((Ipv4Addr::new(10, 5, 0, 2), 0))).unwrap();
    let address = listener.local_addr().unwrap();
    let (here, content) = (&here, &content);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let mut came = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut came).unwrap();
            came
        });
        let sender = scope.spawn(move || {
            let mut stream = here.run_in(|| TcpStream::connect(address)).unwrap();
            stream.write_all(content).unwrap();
        });
        await_that("the stream is through", || {
            for _ in 0..1000 {
                parts.forward(&mut *a, &mut *b);
                parts.forward(&mut *b, &mut *a);
            }
            (sender.is_finished() && receiver.is_finished()).then_some(())
        });
        assert!(receiver.join().unwrap() == *content);
    });
}
