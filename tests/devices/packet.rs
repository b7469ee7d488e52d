//! Packet sockets on foreign netdevs: veths, and taps held by another process. Needs root; makes its own namespaces.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use support::host::nic::Nic;
use support::host::relay::relay;
use support::host::{EXPERIMENT, Finally, Namespace, TEST_TIMEOUT, await_that, readable};
use vifswitch::device::packet::{self, Settings};
use vifswitch::device::{self, Device, Keep, KeptDescriptors, OpenError, tap};
use vifswitch::frame::{Batch, Magazine, Pool, TxBatch, TxStats};
use vifswitch::sys::packet::{EVERYTHING, Ring, Socket};
use vifswitch::sys::tun::{self, Flags};
use vifswitch::wire::Offload;

/// Pool, batch and magazine of a worker.
struct WorkerParts {
    cache: Magazine,
    batch: Batch,
    tx: TxBatch,
}

/// A received frame: pending offload work, and bytes.
type Came = (Offload, Vec<u8>);

impl WorkerParts {
    fn new() -> WorkerParts {
        WorkerParts {
            cache: Magazine::new(Pool::new(1024).unwrap()),
            batch: Batch::new(),
            tx: TxBatch::with_capacity(192),
        }
    }

    fn add(&mut self, frame: &[u8], offload: Offload) {
        self.tx.push(self.cache.frame(frame, offload).unwrap());
    }

    fn transmit(&mut self, device: &mut dyn Device) -> TxStats {
        device.transmit(&mut self.tx, &self.batch, &mut self.cache)
    }

    fn send(&mut self, device: &mut dyn Device, frame: &[u8]) -> TxStats {
        self.add(frame, Offload::NONE);
        self.transmit(device)
    }

    /// Receives all pending frames, up to a burst.
    fn rest(&mut self, device: &mut dyn Device) -> Vec<Came> {
        device.receive(&mut self.batch, &mut self.cache).unwrap();
        let came =
            (0..self.batch.len()).map(|i| (self.batch.frame(i).offload(), self.batch.frame_ref(i).to_vec())).collect();
        self.batch.clear(&mut self.cache);
        device.release();
        came
    }

    /// Receives until a frame has arrived.
    fn take_some(&mut self, device: &mut dyn Device) {
        while self.rest(device).is_empty() {
            readable(device.fd().unwrap());
        }
    }

    /// Waits for the next test frame, which must be the only one.
    fn take(&mut self, device: &mut dyn Device) -> Came {
        loop {
            let mut came = self.rest(device);
            came.retain(|(_, frame)| frame.starts_with(&THERE));
            match came.pop() {
                Some(frame) if came.is_empty() => return frame,
                Some(_) => panic!("more than one frame arrived"),
                None => readable(device.fd().unwrap()),
            }
        }
    }
}

/// Destination of all test frames.
const THERE: [u8; 6] = [2, 0xbb, 0, 0, 0, 1];
const HERE: [u8; 6] = [2, 0xaa, 0, 0, 0, 1];

/// A frame with these bytes after its addresses, padded with bytes that all differ.
fn frame(kind: &[u8], len: usize) -> Vec<u8> {
    let mut frame = [&THERE, &HERE, kind].concat();
    frame.extend((frame.len()..len).map(|at| (at * 31 + at / 251) as u8));
    frame
}

fn experiment(len: usize) -> Vec<u8> {
    frame(&EXPERIMENT.to_be_bytes(), len)
}

/// Unusual frames for an MTU of 9000.
fn odd_frames() -> Vec<Vec<u8>> {
    let mut frames = vec![
        frame(&[0, 3, 0xe0, 0xe0, 3], 60), // LLC, NetWare
        frame(&[0, 38, 0x42, 0x42, 3], 60),
        frame(&[0x08, 0x00, 0x4f, 0, 0xff, 0xff], 60), // IPv4, total length beyond the frame
        frame(&[0x81, 0x00, 0x00, 0x05, 0x08, 0x00], 64),
        frame(&[0x81, 0x00, 0xef, 0xff, 0x88, 0xb5], 20), // all bits except DEI; the kernel drops shorter ones
        frame(&[0x81, 0x00, 0x00, 0x00, 0x88, 0xb5], 1518), // a priority tag, and a full frame
        frame(&[0x88, 0xa8, 0x10, 0x07, 0x88, 0xb5], 64),
        frame(&[0x88, 0xa8, 0x00, 0x07, 0x81, 0x00, 0x00, 0x05, 0x88, 0xb5], 64),
        frame(&[0x88, 0xa8, 0x00, 0x07, 0x81, 0x00, 0x00, 0x05, 0x81, 0x00, 0x00, 0x06, 0x88, 0xb5], 86),
        frame(&[0x91, 0x00, 0x00, 0x07, 0x81, 0x00, 0x00, 0x05, 0x88, 0xb5], 64), // TPID 0x9100 is no tag to the kernel
        frame(&[0x81, 0x00, 0x00, 0x07, 0x88, 0xb5], 9018),
    ];
    // Lengths around a ring slot, among others.
    frames.extend([14, 15, 17, 59, 60, 61, 1514].into_iter().chain(1950..2060).chain([4096, 9014]).map(experiment));
    frames.extend((1950..2060).map(|len| frame(&[0x81, 0x00, 0x00, 0x05, 0x88, 0xb5], len)));
    frames
}

/// A namespace with the netdev `port`, whose peer `guest` is in another namespace.
struct VethPair {
    port: Namespace,
    guest: Namespace,
}

impl VethPair {
    fn new(mtu: u32) -> Option<VethPair> {
        let loopback = VethPair { port: Namespace::new()?, guest: Namespace::new()? };
        loopback.lay(mtu);
        Some(loopback)
    }

    fn lay(&self, mtu: u32) {
        self.port
            .ip(&format!("link add dev port mtu {mtu} type veth peer name guest mtu {mtu} netns {}", self.guest.0));
        self.guest.ip("link set dev guest up");
        self.port.ip("link set dev port up");
    }

    fn settings(&self) -> Settings {
        settings(&self.port, "port")
    }

    fn open(&self) -> Box<dyn Device> {
        open(&self.settings())
    }
}

fn settings(namespace: &Namespace, name: &str) -> Settings {
    Settings {
        name: name.into(),
        netns: namespace.netns(),
        offloads: true,
        isolate: false,
        mtu: 1500,
        owner: "port-1".into(),
    }
}

fn open(settings: &Settings) -> Box<dyn Device> {
    let mut opened = packet::open(settings).unwrap();
    assert!(!opened.made && opened.queues.len() == 1);
    opened.queues.remove(0)
}

/// A tap whose file another process holds, as QEMU does, and its netdev.
fn held_tap(namespace: &Namespace) -> tun::Queue {
    let flags = Flags { vnet_header: true, multi_queue: false, exclusive: true };
    let queue = namespace.run_in(|| tun::Queue::open("port", flags)).unwrap();
    let _ = queue.set_offloads().unwrap();
    namespace.ip("link set dev port mtu 9000 up");
    queue
}

#[test]
fn unusual_frames_pass_unmodified() {
    let Some(loopback) = VethPair::new(9000) else { return };
    for offloads in [true, false] {
        let mut device = open(&Settings { offloads, ..loopback.settings() });
        assert_eq!(device.caps().offloads, offloads);
        let (nic, mut parts) = (Nic::new(&loopback.guest, "guest"), WorkerParts::new());
        for frame in odd_frames() {
            nic.send(&frame);
            assert_eq!(parts.take(&mut *device), (Offload::NONE, frame.clone()));
            let sent = parts.send(&mut *device, &frame);
            assert_eq!((sent.frames, sent.bytes), (1, frame.len() as u64), "{frame:02x?}");
            assert_eq!(nic.take(), frame);
        }
        assert_eq!(device.rx_missed(), 0);
        assert!(parts.rest(&mut *device).is_empty(), "sent frames are not received");
    }
}

#[test]
fn frames_of_any_length_stay_in_order() {
    let Some(loopback) = VethPair::new(9000) else { return };
    let mut device = loopback.open();
    let (nic, mut parts) = (Nic::new(&loopback.guest, "guest"), WorkerParts::new());
    let frames: Vec<_> =
        (0..300usize).map(|number| frame(&[0x88, 0xb5, number as u8], 60 + number * 7919 % 8900)).collect();
    frames.iter().for_each(|frame| nic.send(frame));
    let mut came = Vec::new();
    while came.len() < frames.len() {
        readable(device.fd().unwrap());
        came.extend(parts.rest(&mut *device).into_iter().map(|(_, frame)| frame));
    }
    assert!(came == frames);
    for some in frames.chunks(150) {
        some.iter().for_each(|frame| parts.add(frame, Offload::NONE));
        assert_eq!(parts.transmit(&mut *device).frames, some.len() as u64);
    }
    assert!(frames.iter().all(|frame| nic.take() == *frame));
}

/// A process that is killed may have released the slots of long frames without having read the frames, which are queued at the
/// socket: the next process counts them as missed, and takes none for a later one.
#[test]
fn long_frames_that_a_killed_process_has_not_read_are_missed() {
    let Some(loopback) = VethPair::new(9000) else { return };
    let open = |inherited: Vec<OwnedFd>| {
        let mut opened =
            packet::open_kept(&loopback.settings(), KeptDescriptors { inherited, is_wanted: true }).unwrap();
        (opened.queues.remove(0), opened.keep)
    };
    let (device, keep) = open(Vec::new());
    let Keep::New(kept) = keep else { panic!("{keep:?}") };
    // The ring outlives it, as after a kill.
    drop(device);
    let (nic, mut parts) = (Nic::new(&loopback.guest, "guest"), WorkerParts::new());
    (0..3).for_each(|_| nic.send(&frame(&[0x88, 0xb5, 1], 5000)));
    let index = loopback.port.link("port").unwrap().index;
    let copy = kept[0].try_clone().unwrap();
    loopback.port.run_in(move || {
        let socket = Socket::from_file(copy, index, EVERYTHING).unwrap().unwrap();
        let mut ring = Ring::resume(&socket, 1024).unwrap();
        for _ in 0..3 {
            await_that("a long frame", || ring.has_arrival().then_some(()));
            let arrival = ring.arrival().unwrap();
            assert!(arrival.is_queued() && !arrival.is_whole());
        }
    });
    let (mut device, keep) = open(kept);
    assert!(matches!(keep, Keep::Same), "{keep:?}");
    let later = frame(&[0x88, 0xb5, 2], 5000);
    nic.send(&later);
    let (_, came) = parts.take(&mut *device);
    assert!(came == later, "{:?}", &came[..20]);
    assert_eq!(device.rx_missed(), 3);
}

#[test]
fn a_refused_frame_delays_no_other() {
    let Some(loopback) = VethPair::new(1500) else { return };
    let (nic, mut parts) = (Nic::new(&loopback.guest, "guest"), WorkerParts::new());
    let double = frame(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 5, 0x88, 0xb5], 1522);
    for offloads in [true, false] {
        let mut device = open(&Settings { offloads, ..loopback.settings() });
        let open_checksum = Offload::read(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
        parts.add(&experiment(60), Offload::NONE);
        parts.add(&experiment(1600), Offload::NONE);
        parts.add(&experiment(61), Offload::NONE);
        parts.add(&double, Offload::NONE);
        parts.add(&experiment(99), open_checksum);
        parts.add(&experiment(62), Offload::NONE);
        let sent = parts.transmit(&mut *device);
        let more = u64::from(offloads);
        assert_eq!((sent.frames, sent.refused, sent.full + sent.link_down), (3 + more, 3 - more, 0));
        let mut lengths = vec![60, 61, 99, 62];
        lengths.retain(|&len| offloads || len != 99);
        assert!(lengths.into_iter().all(|len| nic.take().len() == len));
    }
}

/// A TCP GSO packet with its header, optionally tagged.
fn gso_packet(tag: &[u8]) -> Came {
    let mut ip = vec![0x45, 0, 0x4e, 0x48, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let sum: u32 = ip.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    let tcp = [0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    let headers = 54 + tag.len() as u8;
    let offload = Offload::read(&[1, 1, headers, 0, 0xa8, 5, headers - 20, 0, 16, 0, 0, 0]);
    (offload, frame(&[tag, &[8, 0], &ip, &tcp].concat(), 20_054 + tag.len()))
}

#[test]
fn gso_packets_pass_with_header_and_tag() {
    let Some(loopback) = VethPair::new(1500) else { return };
    let Some(namespace) = Namespace::new() else { return };
    let guest = held_tap(&namespace);
    let (mut ours, mut theirs) = (loopback.open(), open(&settings(&namespace, "port")));
    let (nic, mut parts) = (Nic::with_header(&loopback.guest, "guest"), WorkerParts::new());
    for tag in [&[][..], &[0x81, 0, 0x20, 5], &[0x88, 0xa8, 0, 7]] {
        let (offload, frame) = gso_packet(tag);
        let written = [&offload.write()[..10], &frame].concat();
        // received and sent by a veth
        nic.send(&written);
        let came = parts.take(&mut *ours);
        assert_eq!((came.0.segment_size(), &came.1), (1448, &frame));
        assert_eq!(
            came.0.segmentation(&frame, 20_054 + tag.len() as u32),
            offload.segmentation(&frame, frame.len() as u32)
        );
        assert_eq!(came.0, offload);
        parts.add(&came.1, came.0);
        assert_eq!(parts.transmit(&mut *ours).frames, 14);
        // To a socket, header offsets do not include the stripped tag.
        assert!(nic.take() == [&gso_packet(&[]).0.write()[..10], &frame].concat(), "{tag:02x?}");
        // received by a tap, as from a guest of QEMU; sent by the tap, to the guest
        guest.write(&[&offload.write(), &frame[..]].concat()).unwrap();
        assert!(parts.take(&mut *theirs) == (offload, frame.clone()));
        parts.add(&frame, offload);
        assert_eq!(parts.transmit(&mut *theirs).frames, 14);
        let mut room = vec![0; 70_000];
        readable(&guest);
        let len = guest.read(&mut room).unwrap();
        assert!(room[..len] == [&offload.write(), &frame[..]].concat(), "{tag:02x?}");
    }
}

#[test]
fn tcp_passes_from_veth_to_veth_as_gso_packets() {
    let (Some(left), Some(right)) = (VethPair::new(1500), VethPair::new(1500)) else { return };
    left.guest.ip("addr add 10.0.0.1/24 dev guest");
    right.guest.ip("addr add 10.0.0.2/24 dev guest");
    relay(&left.guest, &right.guest, [left.open(), right.open()]);
}

#[test]
fn tcp_passes_from_veth_to_tap_as_gso_packets() {
    let (Some(left), Some(right)) = (VethPair::new(1500), Namespace::new()) else { return };
    let mac = "02:00:00:00:00:02".parse().unwrap();
    let mut opened = tap::open(
        &tap::Settings {
            name: "tap0".into(),
            netns: right.netns(),
            queues: 1,
            offloads: true,
            persist: false,
            mac,
            mtu: 1500,
            owner: "port-2".into(),
        },
        true,
    )
    .unwrap();
    left.guest.ip("addr add 10.0.0.1/24 dev guest");
    right.ip("addr add 10.0.0.2/24 dev tap0");
    relay(&left.guest, &right, [left.open(), opened.queues.remove(0)]);
}

/// Received partial checksums are marked, also if sent frames must have none.
#[test]
fn a_partial_checksum_is_always_marked() {
    let Some(loopback) = VethPair::new(1500) else { return };
    for offloads in [true, false] {
        let mut device = open(&Settings { offloads, ..loopback.settings() });
        let (nic, mut parts) = (Nic::with_header(&loopback.guest, "guest"), WorkerParts::new());
        let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0];
        nic.send(&[&header[..], &experiment(100)].concat());
        let (offload, frame) = parts.take(&mut *device);
        assert!(offload.needs_offload());
        assert_eq!((offload.write()[..10].to_vec(), frame), (header.to_vec(), experiment(100)));
    }
}

#[test]
fn frames_that_find_the_ring_full_are_counted() {
    let Some(loopback) = VethPair::new(1500) else { return };
    let mut device = loopback.open();
    let (nic, mut parts) = (Nic::new(&loopback.guest, "guest"), WorkerParts::new());
    const MANY: u64 = 3000;
    for round in 0..3u8 {
        (0..MANY).for_each(|number| nic.send(&frame(&[0x88, 0xb5, round, number as u8, (number >> 8) as u8], 60)));
        // The last frames pass through a per-CPU queue, which is empty once nothing changes.
        let mut numbers = Vec::new();
        let mut rx_missed = 0;
        await_that("all frames, received or lost", || {
            for (_, frame) in parts.rest(&mut *device) {
                assert_eq!(frame[14], round);
                numbers.push(u64::from(u16::from_le_bytes([frame[15], frame[16]])));
            }
            rx_missed += device.rx_missed();
            (numbers.len() as u64 + rx_missed == MANY).then_some(())
        });
        assert!(numbers.is_sorted() && numbers[..512].iter().copied().eq(0..512));
        assert!(rx_missed >= MANY - 2048, "{rx_missed} of {MANY} did not fit");
    }
}

/// Transmits and receives until the device reports that it is gone.
fn until_gone(device: &mut dyn Device, parts: &mut WorkerParts) -> std::io::Error {
    await_that("an error", || {
        parts.send(device, &experiment(60));
        let gone = device.receive(&mut parts.batch, &mut parts.cache).err();
        parts.batch.clear(&mut parts.cache);
        device.release();
        gone
    })
}

#[test]
fn a_netdev_deleted_under_traffic_is_reported_gone() {
    let Some(loopback) = VethPair::new(1500) else { return };
    let mut parts = WorkerParts::new();
    for silent in [false, true] {
        let mut device = loopback.open();
        let nic = Nic::new(&loopback.guest, "guest");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _finally = Finally(&done);
            if silent {
                parts.rest(&mut *device);
            } else {
                let send = || nic.try_send(&experiment(60)).ok().filter(|()| !done.load(Ordering::Relaxed));
                scope.spawn(move || std::iter::from_fn(send).for_each(drop));
                parts.take_some(&mut *device);
            }
            loopback.port.ip("link del dev port");
            if silent {
                let mut polled = [PollFd::from_borrowed_fd(device.fd().unwrap(), PollFlags::IN)];
                assert!(poll(&mut polled, Some(&TEST_TIMEOUT)).unwrap() > 0, "the descriptor becomes readable");
                // A worker polls an idle port this often before it is watched.
                let gone = (0..64).find_map(|_| device.receive(&mut parts.batch, &mut parts.cache).err());
                assert!(gone.is_some());
            } else {
                until_gone(&mut *device, &mut parts);
            }
        });
        assert_eq!(parts.send(&mut *device, &experiment(60)).link_down, 1);
        assert!(matches!(packet::open(&loopback.settings()), Err(OpenError::NoDevice { .. })));
        drop(device);
        loopback.lay(1500);
    }
}

#[test]
fn frames_for_a_guest_that_has_set_its_interface_down_are_dropped_as_link_down() {
    let Some(loopback) = VethPair::new(1500) else { return };
    let mut parts = WorkerParts::new();
    let mut device = loopback.open();
    loopback.guest.ip("link set dev guest down");
    // The kernel reports the loss of the carrier asynchronously.
    await_that("the loss of the carrier", || {
        let sent = parts.send(&mut *device, &experiment(60));
        assert_eq!((sent.frames, sent.refused), (0, 0), "{sent:?}");
        (sent.link_down == 1).then_some(())
    });
    for len in [60, 1514, 60] {
        parts.add(&experiment(len), Offload::NONE);
    }
    assert_eq!(parts.transmit(&mut *device), TxStats { link_down: 3, ..TxStats::default() });
    loopback.guest.ip("link set dev guest up");
    await_that("the carrier", || (parts.send(&mut *device, &experiment(60)).frames == 1).then_some(()));
}

#[test]
fn a_netdev_set_down_is_reopened_when_up() {
    let Some(loopback) = VethPair::new(1500) else { return };
    let mut parts = WorkerParts::new();
    for sends in [false, true] {
        let mut device = loopback.open();
        loopback.port.ip("link set dev port down");
        if sends {
            // The pending socket error is returned once, to either call.
            assert_eq!(parts.send(&mut *device, &experiment(60)).link_down, 1);
            parts.add(&experiment(60), Offload::NONE);
            parts.add(&experiment(60), Offload::NONE);
            assert_eq!(parts.transmit(&mut *device).link_down, 2);
        }
        let gone = (0..64).find_map(|_| device.receive(&mut parts.batch, &mut parts.cache).err());
        assert!(gone.unwrap().to_string().contains("down"));
        for down in [
            packet::open(&loopback.settings()).unwrap_err(),
            packet::preflight(&loopback.settings(), false).unwrap_err(),
        ] {
            assert!(matches!(down, OpenError::Down { .. }), "{down}");
            assert!(down.to_string().contains("ip link set dev port up"), "{down}");
        }
        loopback.port.ip("link set dev port up");
        let mut device = loopback.open();
        Nic::new(&loopback.guest, "guest").send(&experiment(60));
        assert_eq!(parts.take(&mut *device).1, experiment(60));
    }
}

#[test]
fn a_netdev_that_is_down_for_a_moment_is_kept() {
    let Some(loopback) = VethPair::new(1500) else { return };
    let (mut device, mut parts) = (loopback.open(), WorkerParts::new());
    for _ in 0..3 {
        loopback.port.ip("link set dev port down");
        loopback.port.ip("link set dev port up");
        (0..200).for_each(|_| assert!(parts.rest(&mut *device).is_empty()));
        let mut polled = [PollFd::from_borrowed_fd(device.fd().unwrap(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(poll(&mut polled, Some(&now)).unwrap(), 0, "a worker could not sleep");
        let nic = Nic::new(&loopback.guest, "guest");
        nic.send(&experiment(60));
        assert_eq!(parts.take(&mut *device).1, experiment(60));
        assert_eq!(parts.send(&mut *device, &experiment(61)).frames, 1);
        assert_eq!(nic.take(), experiment(61));
    }
}

/// UDP fragmentation offload is a GSO type that the ring's header cannot express. Old or malicious guests send it.
#[test]
fn a_stuck_ring_is_recovered() {
    let Some(namespace) = Namespace::new() else { return };
    let guest = held_tap(&namespace);
    let settings = settings(&namespace, "port");
    let mut device = open(&settings);
    let mut parts = WorkerParts::new();
    let mut fragments = frame(&[8, 0, 0x45, 0, 0x13, 0x9c, 0, 0, 0, 0, 64, 17], 42 + 5000);
    fragments[38..40].copy_from_slice(&5008u16.to_be_bytes());
    let fragments = [&[1, 3, 42, 0, 0xc8, 5, 34, 0, 6, 0, 0, 0], &fragments[..]].concat();
    let plain = |len| [&[0; 12], &experiment(len)[..]].concat();
    guest.write(&plain(60)).unwrap();
    assert_eq!(parts.take(&mut *device).1, experiment(60));
    guest.write(&fragments).unwrap();
    // Frames that arrive in between are lost. Then all are received, by another descriptor.
    await_that("frames that arrive", || {
        guest.write(&plain(60)).unwrap();
        let woken =
            poll(&mut [PollFd::from_borrowed_fd(device.fd().unwrap(), PollFlags::IN)], Some(&Timespec::default()));
        if woken.unwrap() == 0 && device.needs_inspection() {
            device.inspect();
        }
        parts.rest(&mut *device).pop()
    });
    assert!(device.rx_missed() > 0);
    for frame in odd_frames() {
        guest.write(&fragments).unwrap();
        guest.write(&[&[0; 12], &frame[..]].concat()).unwrap();
        assert_eq!(parts.take(&mut *device), (Offload::NONE, frame));
    }
    drop(device);
    let mut opened = packet::open(&settings).unwrap();
    assert!(opened.warnings[0].contains("without a ring"), "{:?}", opened.warnings);
    let mut device = opened.queues.remove(0);
    for frame in odd_frames() {
        guest.write(&fragments).unwrap();
        guest.write(&[&[0; 12], &frame[..]].concat()).unwrap();
        assert_eq!(parts.take(&mut *device), (Offload::NONE, frame));
    }
    assert_eq!(device.rx_missed(), odd_frames().len() as u64);
    (0..100).for_each(|_| guest.write(&fragments).unwrap());
    let lost = [64, 36].map(|_| {
        assert!(parts.rest(&mut *device).is_empty());
        device.rx_missed()
    });
    assert_eq!(lost, [64, 36], "one receive is bounded");
    for tag in [&[][..], &[0x81, 0, 0x20, 5]] {
        let (offload, frame) = gso_packet(tag);
        guest.write(&[&offload.write(), &frame[..]].concat()).unwrap();
        assert!(parts.take(&mut *device) == (offload, frame));
    }
    namespace.ip("link del dev port");
    until_gone(&mut *device, &mut parts);
}

#[test]
fn a_foreign_netdev_is_not_changed() {
    let Some(loopback) = VethPair::new(1500) else { return };
    let before = loopback.port.link("port").unwrap();
    let settings = Settings { mtu: 9000, ..loopback.settings() };
    let opened = packet::open(&settings).unwrap();
    assert!(opened.warnings.len() == 1 && opened.warnings[0].contains("has MTU 1500"), "{:?}", opened.warnings);
    assert_eq!(packet::preflight(&settings, false).unwrap(), opened.warnings);
    let settings = device::Settings::Packet(settings);
    device::adjust(&settings).unwrap();
    assert_eq!(loopback.port.link("port").unwrap(), before);
    drop(opened);
    assert!(matches!(*device::remove(&loopback.port.netns(), &[settings]), [Ok(false)]));
    assert_eq!(loopback.port.link("port").unwrap(), before);
}

#[test]
fn a_netdev_without_ethernet_is_refused() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip("tuntap add dev tun0 mode tun");
    namespace.ip("link set dev tun0 up");
    for name in ["tun0", "lo"] {
        let refused = packet::open(&settings(&namespace, name)).unwrap_err();
        assert!(matches!(refused, OpenError::Refused { .. }), "{refused}");
    }
}

/// Removes the taps of the switch and nothing else; results are in order.
#[test]
fn only_taps_of_the_switch_are_removed() {
    let Some(loopback) = VethPair::new(1500) else { return };
    let tap = |name: &str| {
        device::Settings::Tap(tap::Settings {
            name: name.into(),
            netns: loopback.port.netns(),
            queues: 1,
            offloads: true,
            persist: true,
            mac: "02:00:00:00:00:02".parse().unwrap(),
            mtu: 1500,
            owner: "port-1".into(),
        })
    };
    let requests = [device::Settings::Packet(loopback.settings()), tap("tap0"), tap("none"), tap("tap1")];
    let _held = [
        device::open(&requests[1], true, Pool::new(64).unwrap()).unwrap(),
        device::open(&requests[3], true, Pool::new(64).unwrap()).unwrap(),
    ];
    let removed: Vec<bool> =
        device::remove(&loopback.port.netns(), &requests).into_iter().map(Result::unwrap).collect();
    assert_eq!(removed, [false, true, false, true]);
    assert_eq!(loopback.port.links(), ["lo", "port"]);
}
