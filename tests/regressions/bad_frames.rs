//! A frame that a device refuses, or that no device can send, costs only itself: whatever the kernel returns for it,
//! other frames follow in order, and the device continues to receive. Needs root; makes its own namespaces; some
//! tests need strace.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::nanosleep;
use serde_json::Value;
use tempfile::NamedTempFile;
use vifswitch::control::state::events::EventKind;
use vifswitch::sys::tun::{Flags, Queue};
use vifswitch::time::{self, MonoTime};
use vifswitch::wire::Mac;

use support::host::core_waits::{CoreWaits, longer};
use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, lay, two_workers};
use support::host::{Namespace, await_that};

/// `virtio_net_hdr` without num_buffers.
pub type Header = [u8; 10];

pub fn header(flags: u8, gso_type: u8, len: u16, size: u16, start: u16, offset: u16) -> Header {
    let [[a, b], [c, d], [e, f], [g, h]] = [len, size, start, offset].map(u16::to_le_bytes);
    [flags, gso_type, a, b, c, d, e, f, g, h]
}

/// An Ethernet frame of a type.
pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    support::host::nic::frame(to, from, kind, payload)
}

/// Ones' complement sum of 16-bit words.
pub fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// An IPv4 packet between 10.5.0.1 and 10.5.0.2.
pub fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [a, b] = (20 + payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, a, b, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 5, 0, 1, 10, 5, 0, 2];
    let checksum = !sum(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// Pseudo-header sum for such a packet.
pub fn pseudo(protocol: u8, len: usize) -> u16 {
    let [a, b] = (len as u16).to_be_bytes();
    sum(&[10, 5, 0, 1, 10, 5, 0, 2, 0, protocol, a, b])
}

/// A TCP segment with a partial checksum.
pub fn tcp(flags: u8, payload: &[u8]) -> Vec<u8> {
    let seed = pseudo(6, 20 + payload.len()).to_be_bytes();
    let mut segment =
        vec![0x0f, 0xa0, 0x13, 0x88, 0, 0, 3, 0xe8, 0, 0, 0, 1, 0x50, flags, 1, 0xf4, seed[0], seed[1], 0, 0];
    segment.extend(payload);
    segment
}

/// A UDP datagram with a partial checksum.
pub fn udp(payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len() as u16).to_be_bytes();
    let seed = pseudo(17, 8 + payload.len()).to_be_bytes();
    let mut datagram = vec![0x0f, 0xa0, 0x13, 0x88, len[0], len[1], seed[0], seed[1]];
    datagram.extend(payload);
    datagram
}

/// Frames that are too long, whose headers are inconsistent, or that the ring's header cannot express. None may cost
/// another frame.
pub fn bad_frames(to: Mac, from: Mac) -> Vec<(&'static str, Header, Vec<u8>)> {
    const PLAIN: Header = [0; 10];
    let body = vec![0x5a; 4000];
    let frame = |packet: &[u8]| ethernet(to, from, 0x0800, packet);
    let tcp4 = frame(&ipv4(6, &tcp(0x10, &body)));
    let edit = |at: usize, bytes: &[u8]| {
        let mut frame = tcp4.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let gso = header(1, 1, 54, 1400, 34, 16);
    let short = tcp4[..200].to_vec();
    let llc = ethernet(to, from, 32, &tcp4[14..]);
    let tunnel = frame(&ipv4(17, &udp(&tcp4)));
    let stacked = [&tcp4[..12], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6], &tcp4[12..]].concat();
    vec![
        ("longer than the receiver's MTU", PLAIN, ethernet(to, from, 0x1800, &[1; 1486])),
        ("longer than any MTU", PLAIN, ethernet(to, from, 0x1800, &[1; 3000])),
        ("TCP in LLC", gso, llc),
        ("UDP fragmentation", header(1, 3, 42, 1480, 34, 6), frame(&ipv4(17, &udp(&body)))),
        ("a runt", PLAIN, ethernet(to, from, 0x1800, &[])),
        ("less than a header", PLAIN, to.octets().to_vec()),
        ("nothing at all", PLAIN, Vec::new()),
        ("segments of no length", header(1, 1, 54, 0, 34, 16), tcp4.clone()),
        ("segments longer than the packet", header(1, 1, 54, 65_535, 34, 16), tcp4.clone()),
        ("segments longer than the MTU", header(1, 1, 54, 3000, 34, 16), tcp4.clone()),
        ("4000 segments", header(1, 1, 54, 1, 34, 16), tcp4.clone()),
        ("a checksum behind the end", header(1, 0, 0, 0, 2000, 16), short.clone()),
        ("a checksum of which half is behind the end", header(1, 0, 0, 0, 34, 165), short.clone()),
        ("a checksum that begins in the addresses", header(1, 0, 0, 0, 4, 2), short.clone()),
        ("a checksum without an end", header(1, 0, 0, 0, 65_535, 65_535), short.clone()),
        ("a checksum of SCTP for TCP", header(1, 0, 0, 0, 34, 8), short.clone()),
        ("segments without a checksum", header(0, 1, 54, 1400, 0, 0), tcp4.clone()),
        ("TCP for UDP", header(1, 5, 42, 1400, 34, 6), tcp4.clone()),
        ("UDP for TCP", gso, frame(&ipv4(17, &udp(&body)))),
        ("IPv6 for IPv4", header(1, 4, 54, 1400, 34, 16), tcp4.clone()),
        ("an unknown type", header(1, 0x7f, 54, 1400, 34, 16), tcp4.clone()),
        ("the ECN bit alone", header(1, 0x80, 54, 1400, 34, 16), short.clone()),
        ("UDP with the ECN bit", header(1, 0x85, 42, 1400, 34, 6), frame(&ipv4(17, &udp(&body)))),
        ("headers longer than the packet", header(1, 1, 65_000, 1400, 34, 16), tcp4.clone()),
        ("a TCP header without a length", gso, edit(46, &[0])),
        ("a TCP header of 60 bytes", gso, edit(46, &[0xf0])),
        ("an IP header without a length", gso, edit(14, &[0x40])),
        ("a length that is another one", gso, edit(16, &[1, 0])),
        ("a fragment", gso, edit(20, &[0x20, 7])),
        ("a SYN", gso, edit(47, &[0x02])),
        ("a tunnel of nothing known", header(1, 1, 96, 1400, 76, 16), tunnel),
        ("two tags", header(1, 1, 62, 1400, 42, 16), stacked),
        ("nothing but headers", header(1, 1, 54, 1400, 34, 16), tcp4[..54].to_vec()),
    ]
}

/// A guest that can send any bytes.
pub enum Hostile {
    /// By a packet socket with `virtio_net_hdr` on its own netdev.
    Socket(Nic),
    /// By the file of a tap whose netdev the switch uses, as a VMM does.
    File(Queue),
}

impl Hostile {
    /// Sends a frame, unless the guest's own kernel refuses it.
    pub fn send(&self, header: Header, frame: &[u8]) {
        match self {
            Hostile::Socket(nic) => drop(nic.try_send(&[&header[..], frame].concat())),
            Hostile::File(file) => drop(file.write(&[&header[..], &[0, 0], frame].concat())),
        }
    }
}

/// The file of a new tap, up, with `virtio_net_hdr`.
pub fn owned_taps(namespace: &Namespace, name: &str) -> Queue {
    let flags = Flags { vnet_header: true, multi_queue: false, exclusive: true };
    let file = namespace.run_in(|| Queue::open(name, flags)).unwrap();
    file.set_offloads().unwrap();
    namespace.ip(&format!("link set dev {name} up"));
    file
}

/// A port of kind `on`; with its own MTU at the guest's end, where the switch does not set it.
pub fn guest(vm: &str, number: u8, on: DeviceKind, host: &Namespace, mtu: u16) -> (Namespace, Vif) {
    let namespace = Namespace::new().unwrap();
    let mut vif = Vif::new(vm, number, &namespace);
    if on != DeviceKind::Tap {
        (vif.kind, vif.netns) = (on.kind(), host.0.clone());
        lay(&vif, &namespace, 1500);
        namespace.ip(&format!("link set dev {} mtu {mtu}", vif.name));
    }
    (namespace, vif)
}

pub fn pause(microseconds: i64) {
    let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: microseconds * 1000 });
}

/// Numbered frames of one sender to one receiver.
#[derive(Debug, Default)]
pub struct Stream {
    pub sent: u32,
    pub came: u32,
    /// Received frames.
    pub count: u64,
    /// Frames received out of order.
    pub wrong: Vec<u32>,
    last: Option<MonoTime>,
    /// Longest pause between two received frames, without the time for which workers waited for a core.
    max_gap: Duration,
}

impl Stream {
    /// Next frame to send.
    fn next(&mut self, to: Mac, from: Mac) -> Vec<u8> {
        let mut payload = [0; 46];
        payload[..4].copy_from_slice(&self.sent.to_be_bytes());
        self.sent += 1;
        experiment(to, from, &payload)
    }

    fn came(&mut self, number: u32, waits: Option<&CoreWaits>) {
        if number != self.came {
            self.wrong.push(number);
        }
        self.came = number + 1;
        self.count += 1;
        let now = time::now();
        if let Some(last) = self.last.replace(now) {
            self.max_gap = longer(self.max_gap, (last, now), waits);
        }
    }
}

/// Frames of one receiver, by sender.
pub struct Receiver {
    mac: Mac,
    nic: Nic,
    /// Of the switch between.
    waits: Option<CoreWaits>,
    pub streams: BTreeMap<Mac, Stream>,
}

impl Receiver {
    pub fn new(mac: Mac, nic: Nic) -> Receiver {
        Receiver { mac, nic, waits: None, streams: BTreeMap::new() }
    }

    /// The same, behind a switch.
    fn behind(daemon: &Daemon, mac: Mac, nic: Nic) -> Receiver {
        Receiver { waits: Some(CoreWaits::of(daemon.pid())), ..Receiver::new(mac, nic) }
    }

    /// Next frame from a sender.
    pub fn next(&mut self, from: Mac) -> Vec<u8> {
        self.streams.entry(from).or_default().next(self.mac, from)
    }

    /// Receives pending frames. Whether there were any.
    pub fn read(&mut self) -> bool {
        let mut any = false;
        if let Some(waits) = &mut self.waits {
            waits.sample();
        }
        while let Some(frame) = self.nic.try_take_any() {
            let number = frame.get(14..18).filter(|_| frame[12..14] == [0x88, 0xb5]);
            let Some(&[a, b, c, d]) = number else { continue };
            let from = Mac::new(frame[6..12].try_into().unwrap());
            if let Some(stream) = self.streams.get_mut(&from) {
                stream.came(u32::from_be_bytes([a, b, c, d]), self.waits.as_ref());
                any = true;
            }
        }
        any
    }

    fn has_all(&self) -> bool {
        self.streams.values().all(|stream| stream.came == stream.sent)
    }
}

/// Receives until all sent frames have arrived, or nothing has arrived for a second.
pub fn settle(receivers: &mut [Receiver]) {
    let mut last = time::now();
    while !receivers.iter().all(Receiver::has_all) && time::now().since(last) < Duration::from_secs(1) {
        if receivers.iter_mut().fold(false, |any, receiver| receiver.read() | any) {
            last = time::now();
        }
        pause(500);
    }
}

/// Drops of all ports, by device kind and reason.
fn drops(daemon: &Daemon) -> BTreeMap<(String, String), u64> {
    let mut all = BTreeMap::<_, u64>::new();
    for port in daemon.get::<Vec<Value>>("/v1/ports") {
        for (reason, count) in port["drops"].as_object().unwrap() {
            let kind = port["device"]["kind"].as_str().unwrap().to_owned();
            *all.entry((kind, reason.clone())).or_default() += count.as_u64().unwrap();
        }
    }
    all
}

/// Receivers, bystanders and hostile guests of each device kind on one network, and a veth outside the switch.
struct Pairs {
    daemon: Daemon,
    vifs: Vec<Vif>,
    /// A tap, `xdp`, `packet`; and the far end of the veth.
    receivers: Vec<Receiver>,
    bystanders: Vec<(Mac, Nic)>,
    /// One of each kind, and one that holds the file of a tap.
    hostile: Vec<(Mac, Hostile)>,
    /// The near end of the veth.
    cable: Nic,
    _spaces: Vec<Namespace>,
}

impl Pairs {
    fn new(switch: &str) -> Option<Pairs> {
        let host = Namespace::new()?;
        // The receivers have a smaller MTU, where the switch does not set it.
        let (mut spaces, mut vifs) = (Vec::new(), Vec::new());
        for (number, on) in
            (1..).zip([DeviceKind::Tap, DeviceKind::Xdp, DeviceKind::Packet].into_iter().cycle().take(9))
        {
            let vm = ["receiver", "bystander", "hostile"][usize::from(number - 1) / 3];
            let (namespace, vif) =
                guest(&format!("{vm}-{number}"), number, on, &host, if number <= 3 { 1400 } else { 1500 });
            spaces.push(namespace);
            vifs.push(vif);
        }
        let file = owned_taps(&host, "tap10");
        lay_cable(&host);
        vifs.push(Vif { kind: "packet", ..Vif::new("hostile-10", 10, &host) });
        let daemon = Daemon::with(switch, &[("net1", 1500)], &vifs);
        vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
        let nic = |index: usize| Nic::new(&spaces[index], &vifs[index].name);
        let mut receivers: Vec<Receiver> =
            (0..3).map(|index| Receiver::behind(&daemon, vifs[index].mac, nic(index))).collect();
        receivers.push(Receiver::new(Mac::from_bits(0x0200_0000_0ca1), Nic::new(&host, "cable1")));
        let bystanders = (3..6).map(|index| (vifs[index].mac, nic(index))).collect();
        let socket = |index: usize| Hostile::Socket(Nic::with_header(&spaces[index], &vifs[index].name));
        let mut hostile: Vec<(Mac, Hostile)> = (6..9).map(|index| (vifs[index].mac, socket(index))).collect();
        hostile.push((vifs[9].mac, Hostile::File(file)));
        let cable = Nic::new(&host, "cable0");
        spaces.push(host);
        Some(Pairs { daemon, vifs, receivers, bystanders, hostile, cable, _spaces: spaces })
    }

    /// Whether this bad frame halts the receive ring of its port, which costs some frames: tested separately.
    fn halts_ring(&self, source: usize, kind: usize) -> bool {
        bad_frames(Mac::BROADCAST, Mac::BROADCAST)[kind].0 == UNKNOWN_TO_THE_RING
            && matches!(self.hostile[source].1, Hostile::File(_))
    }

    /// Asserts that every good frame has arrived, in order.
    fn all_came(&self, what: &str) {
        for (receiver, vif) in self.receivers.iter().zip(&self.vifs) {
            for (from, stream) in &receiver.streams {
                let Stream { sent, came, wrong, .. } = stream;
                let who = format!("{from} to {}, {what}", vif.kind);
                let drops = drops(&self.daemon);
                assert!(
                    wrong.is_empty() && came == sent,
                    "{who}: {came} of {sent}, out of order: {wrong:?}; {drops:?}"
                );
            }
        }
    }

    /// Bystanders and one hostile guest send to each receiver for some milliseconds; in between the hostile guest
    /// sends each a bad frame. Returns the longest pause at a receiver, without the time for which workers waited for a
    /// core, which receiver it was, and the longest pause on the veth, which carries the same load at the same time.
    fn silence(&mut self, source: usize, kind: usize) -> (Duration, String, Duration) {
        let streams = self.receivers.iter_mut().flat_map(|receiver| receiver.streams.values_mut());
        streams.for_each(|stream| (stream.last, stream.max_gap) = (None, Duration::ZERO));
        let (receivers, cable) = self.receivers.split_at_mut(3);
        let (from, guest) = &self.hostile[source];
        for tick in 0..16 {
            for receiver in &mut *receivers {
                self.bystanders.iter().for_each(|(mac, nic)| nic.send(&receiver.next(*mac)));
                guest.send([0; 10], &receiver.next(*from));
                if tick == 4 {
                    let (_, header, frame) = bad_frames(receiver.mac, *from).swap_remove(kind);
                    guest.send(header, &frame);
                }
                receiver.read();
            }
            self.cable.send(&cable[0].next(Mac::from_bits(0x0200_0000_0ca0)));
            cable[0].read();
            pause(500);
        }
        settle(&mut self.receivers);
        let (receivers, cable) = self.receivers.split_at(3);
        let heard = receivers.iter().zip(&self.vifs).flat_map(|(receiver, vif)| {
            receiver.streams.iter().map(|(from, stream)| (stream.max_gap, format!("{from} to {}", vif.kind)))
        });
        let (max_gap, who) = heard.max().unwrap();
        (max_gap, who, cable[0].streams.values().map(|stream| stream.max_gap).max().unwrap())
    }
}

/// A veth outside the switch.
fn lay_cable(host: &Namespace) {
    host.ip("link add cable0 type veth peer name cable1");
    ["cable0", "cable1"].iter().for_each(|name| host.ip(&format!("link set dev {name} up")));
}

/// Maximum difference between the pause at a port and on the veth.
const SILENCE: Duration = Duration::from_millis(10);

/// Number of attempts with a longer pause. The veth does not show all stalls of the switch's threads, which other load on
/// the machine causes now and then; a pause caused by a frame recurs with each such frame.
const TRIES: usize = 8;

/// From every device kind to every kind, with one worker and with two: guests send all kinds of bad frames, and good
/// ones in between, which all arrive in order, as do those of others.
#[test]
fn bad_frames_cost_no_other_frame_on_any_pair_of_kinds() {
    for switch in [Some(""), two_workers()].into_iter().flatten() {
        let Some(mut pairs) = Pairs::new(switch) else { return };
        let kinds = bad_frames(Mac::BROADCAST, Mac::BROADCAST).len();
        for kind in (0..4 * kinds).map(|round| round % kinds) {
            for to in 0..3 {
                for source in 0..pairs.hostile.len() {
                    let halts_ring = pairs.halts_ring(source, kind);
                    let (receiver, (from, guest)) = (&mut pairs.receivers[to], &pairs.hostile[source]);
                    pairs.bystanders.iter().for_each(|(mac, nic)| nic.send(&receiver.next(*mac)));
                    guest.send([0; 10], &receiver.next(*from));
                    if !halts_ring {
                        let (_, header, frame) = bad_frames(receiver.mac, *from).swap_remove(kind);
                        guest.send(header, &frame);
                    }
                    guest.send([0; 10], &receiver.next(*from));
                    pairs.bystanders.iter().for_each(|(mac, nic)| nic.send(&receiver.next(*mac)));
                }
                pairs.receivers[to].read();
            }
            pause(1000);
        }
        settle(&mut pairs.receivers);
        pairs.all_came(&format!("with {switch:?}"));
        let drops = drops(&pairs.daemon);
        let count = |kind: &str, reason: &str| drops.get(&(kind.into(), reason.into())).copied().unwrap_or_default();
        for kind in ["packet", "xdp"] {
            assert!(count(kind, "device_refused") > 0, "{kind}, frames that are too long: {drops:?}");
        }
        for kind in ["tap", "packet", "xdp"] {
            assert_eq!(count(kind, "device_full"), 0, "{kind}: {drops:?}");
        }
        pairs.daemon.await_idle();
    }
}

/// After a bad frame, receivers wait for good ones at most 10 ms longer than on a veth: from every device kind to
/// every kind, with every kind of bad frame, with one worker and with two.
#[test]
fn no_bad_frame_interrupts_a_port_on_any_pair_of_kinds() {
    for switch in [Some(""), two_workers()].into_iter().flatten() {
        let Some(mut pairs) = Pairs::new(switch) else { return };
        for kind in 0..bad_frames(Mac::BROADCAST, Mac::BROADCAST).len() {
            let name = bad_frames(Mac::BROADCAST, Mac::BROADCAST)[kind].0;
            for source in (0..pairs.hostile.len()).filter(|&source| !pairs.halts_ring(source, kind)).collect::<Vec<_>>()
            {
                let mut tried = Vec::new();
                while tried.len() < TRIES {
                    let (max_gap, who, cable) = pairs.silence(source, kind);
                    if max_gap <= cable + SILENCE {
                        break;
                    }
                    tried.push((max_gap, who, cable));
                }
                let from = pairs.hostile[source].0;
                assert!(tried.len() < TRIES, "{name} from {from} with {switch:?}; pauses of port and veth: {tried:?}");
            }
            pairs.all_came(&format!("{name} with {switch:?}"));
        }
    }
}

/// Frames that were lost before a port could receive them.
pub fn rx_missed(daemon: &Daemon, vif: &Vif) -> u64 {
    let ports = daemon.get::<Vec<Value>>("/v1/ports");
    let port = ports.iter().find(|port| port["port_id"] == vif.port.as_str()).unwrap();
    port["rx_missed"].as_u64().unwrap_or_default()
}

/// The ring's header cannot express it, and the kernel halts the ring.
pub const UNKNOWN_TO_THE_RING: &str = "UDP fragmentation";

/// A halted ring is replaced at once: its port pauses at most 10 ms longer than a veth with the same load at the same
/// time.
#[test]
fn a_frame_that_halts_a_ring_does_not_interrupt_its_port() {
    let switches = [Some(""), two_workers()].into_iter().flatten();
    for (switch, on) in switches.flat_map(|switch| DeviceKind::ALL.map(|on| (switch, on))) {
        let Some(host) = Namespace::new() else { return };
        let (namespace, receiver) = guest("receiver", 1, on, &host, 1500);
        lay_cable(&host);
        // The machine may be busy: one attempt within the bound suffices.
        let mut tried = Vec::new();
        for number in (2..).take(TRIES) {
            let name = format!("tap{number}");
            let guest = Hostile::File(owned_taps(&host, &name));
            let vif = Vif { kind: "packet", ..Vif::new("old", number, &host) };
            let daemon = Daemon::with(switch, &[("net1", 1500)], &[receiver.clone(), vif.clone()]);
            daemon.await_active(&receiver);
            daemon.await_active(&vif);
            let mut ports = [Receiver::behind(&daemon, receiver.mac, Nic::new(&namespace, &receiver.name))];
            let cable = Nic::new(&host, "cable0");
            let mut cables = [Receiver::new(receiver.mac, Nic::new(&host, "cable1"))];
            let (_, header, fragments) =
                bad_frames(receiver.mac, vif.mac).into_iter().find(|(name, ..)| *name == UNKNOWN_TO_THE_RING).unwrap();
            for round in 0..1000 {
                if round == 300 {
                    guest.send(header, &fragments);
                }
                let frame = ports[0].next(vif.mac);
                guest.send([0; 10], &frame);
                cable.send(&cables[0].next(vif.mac));
                ports[0].read();
                cables[0].read();
                pause(200);
            }
            settle(&mut ports);
            settle(&mut cables);
            let [port, cable] = [&ports, &cables].map(|receivers| &receivers[0].streams[&vif.mac]);
            assert_eq!((cable.came, port.came), (1000, 1000), "the last frame arrived: {port:?}");
            // Including the frame that halted the ring.
            let lost = 1000 - port.count + 1;
            let counted = await_that("all lost frames to be counted", || {
                Some(rx_missed(&daemon, &vif)).filter(|&missed| missed >= lost)
            });
            await_reason(&daemon, &vif, "halted the receive ring");
            // Both rings may have received a frame during the switch-over.
            assert!(counted <= lost + 2, "{counted} for {lost}");
            daemon.await_idle();
            if port.max_gap <= cable.max_gap + SILENCE {
                break;
            }
            tried.push((port.max_gap, cable.max_gap));
            assert!(tried.len() < TRIES, "{on:?}, pauses of port and veth: {tried:?}");
            host.ip(&format!("link del dev {name}"));
        }
    }
}

/// An uplink receives frames for a guest with a smaller MTU, some of them too long for it.
#[test]
fn a_frame_too_long_for_one_receiver_costs_no_other_frame() {
    let Some(host) = Namespace::new() else { return };
    let (namespace, vif) = guest("small", 1, DeviceKind::Packet, &host, 1400);
    host.ip("link add wire0 type veth peer name far0");
    ["wire0", "far0"].iter().for_each(|name| host.ip(&format!("link set dev {name} up")));
    let daemon = {
        let mut daemon = Daemon::new();
        let text = support::host::daemon::config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&vif));
        let device = format!("{{ kind = \"packet\", name = \"wire0\", netns = \"{}\" }}", host.0);
        let uplink = format!("[[uplinks]]\nid = \"up\"\ndevice = {device}\nnetworks = [{{ network_id = \"net1\" }}]\n");
        daemon.configure(&format!("{text}\n{uplink}"));
        daemon.start();
        daemon
    };
    daemon.await_active(&vif);
    let far = Nic::new(&host, "far0");
    let from = Mac::from_bits(0x0200_0000_0f01);
    let mut receivers = [Receiver::new(vif.mac, Nic::new(&namespace, &vif.name))];
    let mut too_long = 0;
    for _ in 0..100 {
        for index in 0..20 {
            far.send(&receivers[0].next(from));
            if index % 2 == 1 {
                far.send(&ethernet(vif.mac, from, 0x1800, &[0; 1486]));
                too_long += 1;
            }
        }
        receivers[0].read();
        pause(1000);
    }
    settle(&mut receivers);
    let stream = &receivers[0].streams[&from];
    assert!(stream.wrong.is_empty() && stream.came == stream.sent, "{stream:?}");
    await_that("the refused ones are counted", || (daemon.drops(&vif, "device_refused") == too_long).then_some(()));
    assert_eq!(daemon.drops(&vif, "device_full"), 0);
}

pub fn has_strace() -> bool {
    let found = Command::new("strace").arg("--version").stdout(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        eprintln!("skipped: needs strace");
    }
    found
}

/// Whatever a receive call returns, later frames arrive in order, and the port stays open. A call that fails here has
/// taken no frame: none is missing.
#[test]
fn a_receive_error_costs_no_other_frame() {
    if !has_strace() {
        return;
    }
    let Some(host) = Namespace::new() else { return };
    // A tap; frames that do not fit the slots of a ring.
    for (number, call, len) in [(1, "read", 60), (3, "readv", 2500)] {
        let (namespace, receiver) = guest("receiver", number, DeviceKind::Tap, &host, 1500);
        let number = number + 1;
        let on = if call == "read" { DeviceKind::Tap } else { DeviceKind::Packet };
        let (sender_space, sender) = guest("sender", number, on, &host, 3000);
        if call == "readv" {
            host.ip(&format!("link set dev {} mtu 3000", sender.name));
        }
        let daemon = Daemon::with("", &[("net1", 3000)], &[sender.clone(), receiver.clone()]);
        daemon.await_active(&sender);
        daemon.await_active(&receiver);
        let guest = Hostile::Socket(Nic::with_header(&sender_space, &sender.name));
        let opened = || daemon.events().iter().filter(|event| event.kind == EventKind::PortUp).count();
        let before = opened();
        let errors = [
            "EINVAL", "EMSGSIZE", "ENOBUFS", "ENOMEM", "EFAULT", "EAGAIN", "EIO", "ENXIO", "ENETDOWN", "EBUSY",
            "ENODEV",
        ];
        for error in errors {
            let missed_before = rx_missed(&daemon, &sender);
            let mut receivers = [Receiver::new(receiver.mac, Nic::new(&namespace, &receiver.name))];
            let send = |receivers: &mut [Receiver; 1], frames: u32| {
                for _ in 0..frames {
                    let mut frame = receivers[0].next(sender.mac);
                    frame.resize(len, 0);
                    guest.send([0; 10], &frame);
                }
            };
            // Every fifth call fails.
            let trace = Trace::of(&daemon, &format!("inject={call}:error={error}:when=5+5"));
            for _ in 0..20 {
                send(&mut receivers, 5);
                receivers[0].read();
                pause(2000);
            }
            settle(&mut receivers);
            drop(trace);
            let stream = &receivers[0].streams[&sender.mac];
            assert!(stream.wrong.is_empty() && stream.came == 100, "{error} by {call}: {stream:?}");
            // A tap drops the frame whose read fails.
            let is_loss = match call {
                "read" => ["EINVAL", "EMSGSIZE", "ENOBUFS", "ENOMEM", "EFAULT"].contains(&error),
                _ => false,
            };
            if is_loss {
                let counted = || (rx_missed(&daemon, &sender) > missed_before).then_some(());
                await_that(&format!("the cost of {error} by {call} is counted"), counted);
            }
        }
        assert_eq!(opened(), before, "{call}: no device was opened again");
    }
}

/// Waits until the status reason of a port contains this.
pub fn await_reason(daemon: &Daemon, vif: &Vif, said: &str) {
    daemon.await_port(said, vif, |port| port.status_reason.contains(said));
}

/// Whatever a send call returns, its frame is counted as lost, and no other.
#[test]
fn a_send_error_costs_one_frame() {
    if !has_strace() {
        return;
    }
    let Some(host) = Namespace::new() else { return };
    let errors = ["EINVAL", "EMSGSIZE", "ENOBUFS", "ENOMEM", "EAGAIN", "ENXIO", "EIO", "ENETDOWN", "EBUSY", "ENODEV"];
    // A frame of AF_XDP has no room for the header of a tap in front.
    let kinds = [
        (1, DeviceKind::Packet, DeviceKind::Packet, "sendmmsg"),
        (3, DeviceKind::Packet, DeviceKind::Tap, "write"),
        (5, DeviceKind::Xdp, DeviceKind::Tap, "writev"),
    ];
    for (numbers, source, on, call) in kinds {
        let (from_space, from) = guest("sender", numbers, source, &host, 1500);
        let (namespace, vif) = guest("receiver", numbers + 1, on, &host, 1500);
        let daemon = Daemon::over(&[from.clone(), vif.clone()]);
        daemon.await_active(&from);
        daemon.await_active(&vif);
        let sender = Nic::new(&from_space, &from.name);
        for error in errors {
            let before = daemon.await_idle();
            let lost =
                |ports: &[vifswitch::control::api::responses::PortView]| ports[1].counts.drops.values().sum::<u64>();
            let mut receivers = [Receiver::new(vif.mac, Nic::new(&namespace, &vif.name))];
            // Every fifth call fails: with single sends, the middle one of a burst.
            let trace = Trace::of(&daemon, &format!("inject={call}:error={error}:when=3+5"));
            for _ in 0..20 {
                (0..5).for_each(|_| sender.send(&receivers[0].next(from.mac)));
                receivers[0].read();
                pause(2000);
            }
            settle(&mut receivers);
            let failed = trace.injected();
            // A failure is noticed only with the next frame.
            sender.send(&receivers[0].next(from.mac));
            settle(&mut receivers);
            let stream = &receivers[0].streams[&from.mac];
            let missing = u64::from(stream.sent) - stream.count;
            let counted = await_that("all frames to be counted", || Some(lost(&daemon.await_idle()) - lost(&before)));
            assert_eq!(missing, counted, "{error} by {call}: {:?}", daemon.port(&vif).counts.drops);
            assert_eq!(missing, failed, "{error} by {call}: one frame for each call that failed");
            assert!(stream.came == stream.sent, "{error} by {call}: {missing} of {}", stream.sent);
            assert!(missing > 0, "{error} by {call} has been met");
        }
    }
}

/// A worker of a switch under strace.
pub struct Trace {
    strace: Child,
    /// Its log.
    calls: NamedTempFile,
}

impl Trace {
    pub fn of(daemon: &Daemon, inject: &str) -> Trace {
        Trace::with(daemon, &["-e", inject])
    }

    /// The same, with the arguments of strace.
    pub fn with(daemon: &Daemon, arguments: &[&str]) -> Trace {
        let tasks = format!("/proc/{}/task", daemon.pid());
        let is_worker =
            |task: &Path| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("vifswitch-w"));
        let task =
            std::fs::read_dir(tasks).unwrap().map(|task| task.unwrap().path()).find(|task| is_worker(task)).unwrap();
        let id = task.file_name().unwrap().to_str().unwrap().to_owned();
        let calls = NamedTempFile::new().unwrap();
        let strace = Command::new("strace")
            .args(["-qq", "-p", &id])
            .args(arguments)
            .arg("-o")
            .arg(calls.path())
            .spawn()
            .unwrap();
        await_that("strace to attach", || {
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            (!status.contains("TracerPid:\t0\n")).then_some(())
        });
        Trace { strace, calls }
    }

    /// Number of failed calls so far.
    pub fn failed(&self) -> usize {
        std::fs::read_to_string(self.calls.path()).unwrap().matches("(INJECTED)").count()
    }

    /// Detaches from the worker. Returns the number of failed calls that were to send a frame.
    fn injected(mut self) -> u64 {
        self.let_go();
        let calls = std::fs::read_to_string(self.calls.path()).unwrap();
        // A worker also writes eight bytes to the notifiers of others.
        calls.lines().filter(|call| call.ends_with("(INJECTED)") && !call.contains(", 8) = ")).count() as u64
    }

    fn let_go(&mut self) {
        // strace detaches on SIGINT.
        let _ = kill_process(Pid::from_child(&self.strace), Signal::INT);
        let _ = self.strace.wait();
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.let_go();
    }
}
