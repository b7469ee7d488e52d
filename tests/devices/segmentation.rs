//! The kernel's segmentation as oracle: frames with an offload header enter a bridge by a tap and leave it by two others,
//! one that takes no offloads and one that takes partial checksums. What leaves has to equal what the switch's segmenter
//! makes of the same frame, byte by byte. Needs root; makes its own namespace.
//!
//! [`Difference`] lists all permitted differences.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;

use etherparse::checksum::Sum16BitWords;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use support::host::{EXPERIMENT, Namespace, readable, run};
use vifswitch::sys::tun::{Flags, NoFrame, Offloads, Queue, Unsent};
use vifswitch::wire::{BadOffload, GsoError, MAX_FALLBACK_SEGMENTS, Offload, Segmenter};

/// Frames of the short run. `PROPTEST_CASES` sets another number.
const CASES: u32 = 3000;

/// The longest headers that the segmenter takes.
const MAX_HEADERS: usize = 256;

/// Segments of a UDP GSO packet that the kernel accepts of a tap (UDP_MAX_SEGMENTS).
const MAX_DATAGRAMS: usize = 128;

const TCP_CSUM: usize = 16;
const UDP_CSUM: usize = 6;
const SCTP_CSUM: usize = 8;

/// Length of an Ethernet header without tags.
const ETHERNET_LEN: usize = 14;

/// Length of an IPv4 header without options.
const IPV4_LEN: usize = 20;

/// EtherType of a tag from before IEEE 802.1ad.
const OLD_TAG: u16 = 0x9100;

const SYN_OR_RST: u8 = 0x06;
const URG: u8 = 0x20;

/// What may differ between the kernel and the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// Only the switch: a UDP GSO packet of more than 128 datagrams.
    ManyDatagrams,
    /// Only the switch: a TCP GSO packet with options whose payload fits one segment. The kernel takes the options for payload
    /// when it accepts the packet, and later not.
    OneSegment,
    /// Only the switch: a tag with the EtherType 0x9100, which the kernel knows as no tag.
    OldTag,
    /// Only the switch: a header length, which is a hint, that is longer than the frame or shorter than an Ethernet header.
    HeaderLen,
    /// Only the switch: the flag for ECN without segmentation.
    EcnAlone,
    /// Only the switch: a checksum that begins in the first 20 bytes of the frame.
    EarlyStart,
    /// Only the kernel: SYN and RST, which no sender puts into a GSO packet.
    SynOrRst,
    /// Only the kernel: headers of more than 256 bytes.
    LongHeaders,
    /// Only the kernel: a packet whose length in a header is not its own.
    WrongLength,
    /// Only the kernel: a fragment.
    Fragment,
    /// Only the kernel: a GSO packet with a complete checksum, which virtio does not allow.
    NoChecksum,
    /// Only the kernel: UDP to be fragmented, which no tap of the switch offers.
    OldUdp,
    /// Only the kernel: an invalid packet with the payload of one segment, of which the kernel only completes the checksum.
    OneChecksum,
    /// Only the kernel: a version of IP that contradicts the EtherType.
    Version,
    /// Urgent data: the switch's pointers count from each segment's begin, the kernel's are those of the first.
    Urgent,
    /// A wrong initial sum: the switch computes the right one, the kernel a wrong checksum.
    InitialSum,
    /// A wrong IPv4 checksum of a packet that is one segment: the switch corrects it.
    Ipv4Checksum,
    /// A TCP checksum that is zero: the kernel may write ffff, as it is necessary for UDP.
    Zero,
    /// A checksum at the offset of SCTP's: the switch computes a CRC32c, or refuses what is not SCTP.
    Crc,
    /// A packet or datagram that is shorter or longer than its frame: the switch sums what the length says, the kernel all.
    Length,
}

/// A valid frame of one packet.
#[derive(Debug, Clone)]
struct Packet {
    tags: Vec<(u16, u16)>,
    v6: bool,
    /// Option words (IPv4), or kinds and lengths of extension headers (IPv6).
    options: Vec<(u8, u8)>,
    /// Traffic class, with ECN.
    class: u8,
    id: u16,
    /// Option words and flags; none for UDP.
    tcp: Option<(usize, u8)>,
    sequence: u32,
    /// Whether the length of a UDP header is that of one segment.
    is_segment_len: bool,
    urgent: u16,
    seed: u64,
    payload: Payload,
}

#[derive(Debug, Clone)]
struct Payload {
    /// Segment size; without it only a checksum is requested.
    size: Option<u16>,
    len: usize,
    fill: Option<u8>,
    /// Whether the checksum of the first datagram is zero, which UDP writes as ffff.
    is_zero_sum: bool,
    ecn: bool,
}

/// What makes a frame invalid.
#[derive(Debug, Clone)]
enum Damage {
    /// Changes a byte of its headers.
    Byte(Index, u8),
    /// Sets a byte of its offload header.
    Offload(usize, u8),
    Cut(Index),
    Pad(u8, u8),
}

/// A frame with its offload header.
#[derive(Debug, Clone)]
struct Sent {
    header: [u8; Offload::LEN],
    bytes: Vec<u8>,
    /// Offset of the IP header.
    network: usize,
    is_damaged: bool,
}

fn payloads() -> impl Strategy<Value = Payload> {
    let size = prop_oneof![1..60u16, 400..1500u16, Just(1448), 1500..9000u16];
    // Whole segments, and a rest.
    let len = (0..60usize, -2..3isize, any::<Index>());
    let fill = proptest::option::weighted(0.2, select(vec![0, 0xff]));
    let flags = (prop::bool::weighted(0.1), any::<bool>());
    (proptest::option::weighted(0.85, size), len, fill, flags).prop_map(
        |(size, (whole, more, rest), fill, (is_zero_sum, ecn))| {
            let each = usize::from(size.unwrap_or(100));
            let whole = whole % (60_000 / each).min(150);
            let rest = rest.index(each + 1);
            let len = (whole * each + if rest % 2 == 0 { rest } else { 0 }).saturating_add_signed(more);
            Payload { size, len, fill, is_zero_sum, ecn }
        },
    )
}

fn packets() -> impl Strategy<Value = Packet> {
    let tags = vec((prop_oneof![20 => Just(0x8100), 20 => Just(0x88a8), 1 => Just(OLD_TAG)], any::<u16>()), 0..4);
    let units = prop_oneof![8 => 0..3u8, 1 => 3..20u8];
    let ip = (tags, any::<bool>(), vec((select(vec![0u8, 43, 60]), units), 0..4), any::<u8>());
    // Few with SYN or RST.
    let flags = (any::<u8>(), 0..8u8).prop_map(|(flags, some)| if some == 0 { flags } else { flags & !SYN_OR_RST });
    let transport = (proptest::option::weighted(0.7, (0..=10usize, flags)), any::<bool>(), any::<u16>());
    let numbers = (prop_oneof![any::<u32>(), 0xffff_0000u32..], prop_oneof![any::<u16>(), 0xffc0u16..], any::<u64>());
    (ip, transport, numbers, payloads()).prop_map(
        |((tags, v6, options, class), (tcp, is_segment_len, urgent), (sequence, id, seed), payload)| Packet {
            tags,
            v6,
            options,
            class,
            id,
            tcp,
            sequence,
            is_segment_len,
            urgent,
            seed,
            payload,
        },
    )
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let damage = prop_oneof![
        6 => (any::<Index>(), 1..=255u8).prop_map(|(at, change)| Damage::Byte(at, change)),
        3 => (0..10usize, prop_oneof![0..6u8, 0x80..0x86u8, any::<u8>()]).prop_map(|(at, value)| Damage::Offload(at, value)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (1..80u8, select(vec![0, 0x55])).prop_map(|(len, byte)| Damage::Pad(len, byte)),
    ];
    prop_oneof![2 => Just(Vec::new()), 1 => vec(damage, 1..4)]
}

fn sum_of(parts: &[&[u8]]) -> u16 {
    let mut bytes = parts.concat();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    !Sum16BitWords::new().add_slice(&bytes).ones_complement().to_be()
}

impl Packet {
    fn build(&self) -> Sent {
        let random = |at: usize| (self.seed.wrapping_mul(at as u64 | 1) >> 24) as u8;
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for (kind, tci) in &self.tags {
            frame.extend([kind.to_be_bytes(), tci.to_be_bytes()].concat());
        }
        let mut payload: Vec<u8> =
            (0..self.payload.len).map(|at| self.payload.fill.unwrap_or_else(|| random(at))).collect();
        let (protocol, field) = if self.tcp.is_some() { (6, TCP_CSUM) } else { (17, UDP_CSUM) };
        let mut segment = vec![0x12, 0x34, 0, 80];
        match self.tcp {
            Some((words, flags)) => {
                segment.extend(self.sequence.to_be_bytes());
                segment.extend([9, 9, 9, 9, (5 + words as u8) << 4 | random(5) & 1, flags, 1, 2, 0, 0]);
                segment.extend(if flags & URG != 0 { self.urgent } else { 0 }.to_be_bytes());
                segment.extend((0..4 * words).map(random));
            }
            None => segment.extend([0; 4]),
        }
        let len = segment.len() + payload.len();
        let is_routed =
            self.v6 && self.options.iter().enumerate().any(|(at, option)| option.0 == 43 && random(at) & 1 == 1);
        // The length in the initial sum of UDP is that of its header.
        let said = match self.payload.size {
            Some(size) if self.tcp.is_none() && self.is_segment_len => (8 + usize::from(size)).min(len),
            _ => len,
        } as u16;
        if self.tcp.is_none() {
            segment[4..6].copy_from_slice(&said.to_be_bytes());
        }
        let addresses: Vec<u8> = (0..if self.v6 { 32 } else { 8 }).map(|at| random(at + 100)).collect();
        let mut last_address = addresses.clone();
        if is_routed {
            last_address[16..].iter_mut().enumerate().for_each(|(at, byte)| *byte = random(at + 200));
        }
        let first = self.payload.size.map_or(payload.len(), |size| payload.len().min(size.into()));
        if self.payload.is_zero_sum && self.tcp.is_none() && first >= 2 {
            payload[..2].fill(0);
            let len = ((8 + first) as u16).to_be_bytes();
            let sum = !sum_of(&[&last_address, &[0, protocol], &len, &segment[..4], &len, &payload[..first]]);
            payload[..2].copy_from_slice(&sum.to_be_bytes());
        }
        let sum = sum_of(&[&last_address, &[0, protocol], &said.to_be_bytes()]);
        segment[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        let network = frame.len() + 2;
        if self.v6 {
            let mut kinds: Vec<u8> = self.options.iter().map(|option| option.0).collect();
            kinds.push(protocol);
            let mut extensions = Vec::new();
            for (at, (&(kind, units), &next)) in self.options.iter().zip(&kinds[1..]).enumerate() {
                let mut header: Vec<u8> = (0..8 * (usize::from(units) + 1)).map(random).collect();
                (header[0], header[1]) = (next, units);
                if kind == 43 {
                    header[3] = if is_routed { random(at) & 1 } else { 0 };
                }
                extensions.extend(header);
            }
            frame.extend([0x86, 0xdd, 0x60 | self.class >> 4, self.class << 4 | 1, 2, 3]);
            frame.extend(((extensions.len() + len) as u16).to_be_bytes());
            frame.extend([kinds[0], 64]);
            frame.extend(addresses);
            frame.extend(extensions);
        } else {
            let words = self.options.len();
            frame.extend([8, 0, 0x45 + words as u8, self.class]);
            frame.extend(((20 + 4 * words + len) as u16).to_be_bytes());
            frame.extend(self.id.to_be_bytes());
            frame.extend([random(1) & 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(addresses);
            frame.extend((0..4 * words).map(random));
            let sum = !sum_of(&[&frame[network..]]);
            frame[network + 10..network + 12].copy_from_slice(&sum.to_be_bytes());
        }
        let start = frame.len() as u16;
        let headers = start + segment.len() as u16;
        frame.extend(segment);
        frame.extend(payload);
        let kind = match (self.payload.size, self.tcp) {
            (None, _) => 0,
            (_, None) => 5,
            (_, Some(_)) => 1 + 3 * u8::from(self.v6) + 0x80 * u8::from(self.payload.ecn),
        };
        let mut header = [0; Offload::LEN];
        (header[0], header[1]) = (1, kind);
        let hint = if self.seed.is_multiple_of(3) { 0 } else { headers };
        for (at, word) in [(2, hint), (4, self.payload.size.unwrap_or(0)), (6, start), (8, field as u16)] {
            header[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
        Sent { header, bytes: frame, network, is_damaged: false }
    }
}

impl Sent {
    fn damage(&mut self, damage: &Damage) {
        self.is_damaged = true;
        match damage {
            Damage::Byte(at, change) => {
                let at = 12 + at.index(self.bytes.len().min(150) - 12);
                self.bytes[at] ^= change;
            }
            Damage::Offload(at, value) => self.header[*at] = *value,
            Damage::Cut(at) => self.bytes.truncate(15 + at.index(self.bytes.len() - 14)),
            Damage::Pad(len, byte) => self.bytes.resize(self.bytes.len() + usize::from(*len), *byte),
        }
    }

    fn word(&self, at: usize) -> usize {
        u16::from_le_bytes([self.header[at], self.header[at + 1]]).into()
    }

    fn size(&self) -> usize {
        self.word(4)
    }

    /// Offset of the transport header.
    fn start(&self) -> usize {
        self.word(6)
    }

    /// Offset of the transport checksum.
    fn field(&self) -> usize {
        self.start() + self.word(8)
    }

    fn kind(&self) -> u8 {
        self.header[1] & 0x7f
    }

    fn number(&self, at: usize) -> u16 {
        number(&self.bytes, at)
    }

    fn is_tcp(&self) -> bool {
        matches!(self.kind(), 1 | 4)
    }

    fn flags(&self) -> u8 {
        self.bytes.get(self.start() + 13).copied().unwrap_or_default()
    }

    /// Length of the headers that each segment repeats.
    fn headers(&self) -> usize {
        let words = usize::from(self.bytes.get(self.start() + 12).copied().unwrap_or_default() >> 4);
        self.start() + if self.kind() == 5 { 8 } else { 4 * words.max(5) }
    }

    fn payload(&self) -> usize {
        self.bytes.len().saturating_sub(self.headers())
    }

    fn segments(&self) -> usize {
        self.payload().div_ceil(self.size().max(1)).max(1)
    }

    fn version(&self) -> u8 {
        self.bytes.get(self.network).map_or(0, |byte| byte >> 4)
    }

    /// Whether the lengths in the IP and UDP header are those of the frame.
    fn has_right_lengths(&self) -> bool {
        let said = match self.version() {
            4 => self.number(self.network + 2).into(),
            _ => usize::from(self.number(self.network + 4)) + 40,
        };
        let datagram = usize::from(self.number(self.start() + 4));
        self.network + said == self.bytes.len()
            && (self.word(8) != UDP_CSUM || self.start() + datagram == self.bytes.len())
    }

    /// Whether the initial sum is that of the pseudo-header, with the length that the kernel replaces.
    fn has_initial_sum(&self) -> bool {
        let (at, is_udp) = (self.network, self.word(8) == UDP_CSUM);
        let addresses = if self.version() == 4 { at + 12..at + 20 } else { at + 8..at + 40 };
        let len = if is_udp { self.number(self.start() + 4) } else { (self.bytes.len() - self.start()) as u16 };
        let protocol = if is_udp { 17 } else { 6 };
        let sum = sum_of(&[self.bytes.get(addresses).unwrap_or_default(), &[0, protocol], &len.to_be_bytes()]);
        same_sum(sum, self.number(self.field()))
    }
}

fn number(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Ones' complement has two zeros.
fn same_sum(one: u16, other: u16) -> bool {
    one == other || one.min(other) == 0 && one.max(other) == 0xffff
}

/// A frame behind its offload header.
type Frame = ([u8; Offload::LEN], Vec<u8>);

/// What leaves one of the two taps.
type Left = Vec<Frame>;

/// What the switch makes of a frame, with complete and with partial checksums.
fn switch(sent: &Sent) -> Result<[Left; 2], GsoError> {
    let offload = Offload::read(&sent.header);
    let len = sent.bytes.len() as u32;
    if !offload.needs_offload() {
        let whole = vec![(Offload::NONE.write(), sent.bytes.clone())];
        return Ok([whole.clone(), whole]);
    }
    let segments = |is_partial: bool| -> Result<Left, GsoError> {
        let mut work = Segmenter::new(&sent.bytes, [].into_iter(), len, offload)?;
        if is_partial && !work.is_segmentation() {
            // A port that takes partial checksums takes the frame as it is.
            return Ok(vec![(sent.header, sent.bytes.clone())]);
        }
        let left = if is_partial { work.keep_partial_checksums() } else { Offload::NONE };
        let mut frames = Left::new();
        while let Some(mut segment) = work.next_segment() {
            let mut bytes = vec![0xaa; segment.len() as usize];
            segment.fill(&mut bytes);
            frames.push((left.write(), bytes));
        }
        Ok(frames)
    };
    Ok([segments(false)?, segments(true)?])
}

/// A bridge of three taps.
struct Bridge {
    _namespace: Namespace,
    taps: [Queue; 3],
    offloads: Offloads,
}

impl Bridge {
    fn new() -> Option<Bridge> {
        let namespace = Namespace::new()?;
        namespace.ip("link add bridge type bridge stp_state 0 mcast_snooping 0");
        namespace.ip("link set dev bridge up");
        namespace.run_in(|| {
            // Firewalls would check IP headers.
            for of in ["iptables", "ip6tables"] {
                let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{of}"), "0");
            }
        });
        let flags = Flags { vnet_header: true, multi_queue: false, exclusive: true };
        let mut offloads = Offloads::All;
        let taps = ["sender", "whole", "partial"].map(|name| {
            let tap = namespace.run_in(|| Queue::open(name, flags)).unwrap();
            offloads = tap.set_offloads().unwrap();
            // More frames than a GSO packet has segments.
            namespace.ip(&format!("link set dev {name} mtu 65000 txqueuelen 4000 master bridge up"));
            tap
        });
        taps[1].clear_offloads().unwrap();
        let segmentation = if offloads == Offloads::All { &["tso", "tx-udp-segmentation"][..] } else { &["tso"] };
        for what in segmentation {
            namespace.run_in(|| run("ethtool", &["-K", "partial", what, "off"]));
        }
        Some(Bridge { _namespace: namespace, taps, offloads })
    }

    /// What the kernel makes of a frame, with complete and with partial checksums. `None` if it does not accept it.
    fn send(&self, sent: &Sent) -> Option<[Left; 2]> {
        let [sender, whole, partial] = &self.taps;
        match sender.write_pieces(&[IoSlice::new(&sent.header), IoSlice::new(&sent.bytes)]) {
            Ok(()) => {}
            Err(Unsent::Refused) => return None,
            Err(why) => panic!("{why:?}"),
        }
        let mut last = [0; Offload::LEN + 60];
        last[Offload::LEN..][..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        last[Offload::LEN + 12..][..2].copy_from_slice(&EXPERIMENT.to_be_bytes());
        sender.write(&last).unwrap();
        Some([whole, partial].map(|tap| take_until(tap, &last[Offload::LEN..])))
    }
}

/// Frames of a tap up to `last`.
fn take_until(tap: &Queue, last: &[u8]) -> Left {
    let mut room = vec![0; 70_000];
    let mut frames = Left::new();
    loop {
        match tap.read(&mut room) {
            Ok(len) => {
                let (header, bytes) = room[..len].split_first_chunk().unwrap();
                if bytes == last {
                    return frames;
                }
                frames.push((*header, bytes.to_vec()));
            }
            Err(NoFrame::Empty) => readable(tap),
            Err(why) => panic!("{why:?}"),
        }
    }
}

/// Completes a partial checksum.
fn complete((header, bytes): &Frame) -> Vec<u8> {
    let mut bytes = bytes.clone();
    if header[0] & 1 == 0 {
        return bytes;
    }
    let [start, offset] = [6, 8].map(|at| usize::from(u16::from_le_bytes([header[at], header[at + 1]])));
    let sum = match !sum_of(&[&bytes[start..]]) {
        0 if offset == UDP_CSUM => 0xffff,
        sum => sum,
    };
    bytes[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Compares what the kernel and the switch make of a frame. Returns the permitted differences between the two.
fn compare(sent: &Sent, kernel: Option<[Left; 2]>) -> Result<BTreeSet<Difference>, String> {
    let [whole, partial] = kernel.unwrap_or_default();
    let ours = match switch(sent) {
        Ok(_) if whole.is_empty() => return only_switch(sent).map(|difference| BTreeSet::from([difference])),
        Err(_) if whole.is_empty() => return Ok(BTreeSet::new()),
        Err(why) => return only_kernel(sent, why, whole.len()).map(|difference| BTreeSet::from([difference])),
        Ok(ours) => ours,
    };
    let counts = [whole.len(), partial.len(), ours[0].len(), ours[1].len()];
    if counts != [whole.len(); 4] {
        return Err(format!("{counts:?} segments: kernel, kernel with partial checksums, switch, the same"));
    }
    let mut differences = BTreeSet::new();
    for number in 0..whole.len() {
        let at_segment = |what: String| format!("segment {number}: {what}");
        let kernel = (&whole[number].1[..], &partial[number]);
        let ours = (&ours[0][number].1[..], &ours[1][number]);
        compare_segment(sent, kernel, ours, &mut differences).map_err(at_segment)?;
    }
    Ok(differences)
}

/// Compares one resulting frame: with a complete checksum, and with a partial one.
fn compare_segment(
    sent: &Sent,
    (whole, partial): (&[u8], &Frame),
    (ours, our_partial): (&[u8], &Frame),
    differences: &mut BTreeSet<Difference>,
) -> Result<(), String> {
    if !Offload::read(&sent.header).needs_offload() {
        return if ours == whole { Ok(()) } else { Err("a frame without offload work differs".into()) };
    }
    if sent.kind() == 0 && sent.word(8) == SCTP_CSUM {
        differences.insert(Difference::Crc);
        return Ok(());
    }
    let (start, field) = (sent.start(), sent.field());
    let completed = complete(our_partial);
    if sent.kind() != 0 && !same_frame(&completed, ours, field) {
        return Err("completing the partial checksum makes another frame".into());
    }
    if partial.0[0] & 1 != 0 && (our_partial.0[0] & 1, &our_partial.0[6..10]) != (1, &partial.0[6..10]) {
        return Err("its partial checksum is elsewhere".into());
    }
    if !sent.is_damaged && !same_frame(&complete(partial), whole, field) {
        return Err("the kernel differs between the two ports".into());
    }
    let mut changed = ours.to_vec();
    if sent.is_tcp() && sent.flags() & URG != 0 {
        changed[start + 13] = changed[start + 13] & !URG | whole[start + 13] & URG;
        changed[start + 18..start + 20].copy_from_slice(&whole[start + 18..start + 20]);
        if changed != ours {
            differences.insert(Difference::Urgent);
        }
        // The checksum changes with the words that it covers (RFC 1624).
        let mut sum = !number(ours, field);
        for at in [start + 12, start + 18] {
            sum = sum_of(&[&sum.to_be_bytes(), &(!number(ours, at)).to_be_bytes(), &changed[at..at + 2]]);
        }
        changed[field..field + 2].copy_from_slice(&(!sum).to_be_bytes());
    }
    for at in (0..whole.len()).filter(|&at| changed[at] != whole[at]) {
        let difference = if (field..field + 2).contains(&at) {
            if sent.word(8) != UDP_CSUM && same_sum(number(&changed, field), number(whole, field)) {
                Difference::Zero
            } else if !sent.has_initial_sum() && has_right_sum(ours, sent) {
                Difference::InitialSum
            } else if sent.kind() == 0 && !sent.has_right_lengths() && has_right_sum(ours, sent) {
                Difference::Length
            } else {
                return Err(format!(
                    "checksum {:04x}, and {:04x} by the kernel",
                    number(ours, field),
                    number(whole, field)
                ));
            }
        } else if (sent.network + 10..sent.network + 12).contains(&at)
            && whole[at] == sent.bytes[at]
            && sent.segments() == 1
        {
            Difference::Ipv4Checksum
        } else {
            return Err(format!("byte {at} is {:02x}, and {:02x} by the kernel", ours[at], whole[at]));
        };
        if !sent.is_damaged && difference != Difference::Zero {
            return Err(format!("{difference:?} of a valid frame"));
        }
        differences.insert(difference);
    }
    Ok(())
}

/// Whether frames are equal but for the zero in their transport checksums.
fn same_frame(one: &[u8], other: &[u8], field: usize) -> bool {
    one.len() == other.len()
        && (0..one.len()).all(|at| one[at] == other[at] || (field..field + 2).contains(&at))
        && same_sum(number(one, field), number(other, field))
}

/// Whether the TCP or UDP checksum of a frame is right.
fn has_right_sum(frame: &[u8], sent: &Sent) -> bool {
    let (at, start) = (sent.network, sent.start());
    let (addresses, end) = match frame[at] >> 4 {
        4 => (at + 12..at + 20, at + usize::from(number(frame, at + 2))),
        _ => (at + 8..at + 40, at + 40 + usize::from(number(frame, at + 4))),
    };
    let is_udp = sent.word(8) == UDP_CSUM;
    let ends = [end, start + usize::from(number(frame, start + 4)), frame.len()];
    ends.into_iter().filter(|end| (start + 8..=frame.len()).contains(end)).any(|end| {
        let len = ((end - start) as u16).to_be_bytes();
        let protocol = if is_udp { 17 } else { 6 };
        sum_of(&[&frame[addresses.clone()], &[0, protocol], &len, &frame[start..end]]) == 0xffff
    })
}

/// Why only the switch makes something of a frame.
fn only_switch(sent: &Sent) -> Result<Difference, String> {
    let mut tags = (12..sent.network.saturating_sub(2)).step_by(4);
    Ok(match sent.kind() {
        5 if sent.segments() > MAX_DATAGRAMS => Difference::ManyDatagrams,
        1 | 4 if sent.payload() <= sent.size() => Difference::OneSegment,
        1 | 4 | 5 if tags.any(|at| sent.number(at) == OLD_TAG) => Difference::OldTag,
        _ if sent.is_damaged && (sent.word(2) > sent.bytes.len() || (1..ETHERNET_LEN).contains(&sent.word(2))) => {
            Difference::HeaderLen
        }
        0 if sent.is_damaged && sent.header[1] != 0 => Difference::EcnAlone,
        0 if sent.is_damaged && sent.start() < IPV4_LEN => Difference::EarlyStart,
        _ => return Err("the kernel makes nothing of it".into()),
    })
}

/// Why only the kernel makes something of a frame: `made` frames.
fn only_kernel(sent: &Sent, why: GsoError, made: usize) -> Result<Difference, String> {
    let is_fragment = sent.number(sent.network + 6) & 0x3fff != 0;
    let version = match sent.number(sent.network - 2) {
        0x0800 => Some(4),
        0x86dd => Some(6),
        _ => None,
    };
    Ok(match why {
        GsoError::Inconsistent if sent.is_tcp() && sent.flags() & SYN_OR_RST != 0 => Difference::SynOrRst,
        GsoError::TooManyHeaders if sent.headers() > MAX_HEADERS => Difference::LongHeaders,
        _ if !sent.is_damaged => return Err(format!("the switch refuses it: {why}")),
        GsoError::Lengths if !sent.has_right_lengths() => Difference::WrongLength,
        GsoError::Fragment if is_fragment => Difference::Fragment,
        GsoError::BadOffload(BadOffload::OutOfFrame) if sent.header[0] & 1 == 0 => Difference::NoChecksum,
        GsoError::UnknownChecksum if sent.kind() == 0 && sent.word(8) == SCTP_CSUM => Difference::Crc,
        GsoError::BadOffload(BadOffload::UnknownType) if sent.kind() == 3 => Difference::OldUdp,
        // Too short for a GSO packet, whatever its headers are.
        _ if made == 1 && sent.payload() <= sent.size() => Difference::OneChecksum,
        GsoError::Inconsistent if version != Some(sent.version()) => Difference::Version,
        _ => return Err(format!("the switch refuses it: {why}; the kernel makes {made} frames")),
    })
}

/// Frames that a GSO packet becomes, and single frames whose checksum is completed: valid ones of every form that Linux guests
/// send, and damaged ones.
#[test]
fn segments_are_those_of_the_kernel() {
    let Some(bridge) = Bridge::new() else { return };
    let cases = std::env::var("PROPTEST_CASES").map_or(CASES, |_| Config::default().cases);
    let config = Config { cases, ..Config::with_source_file(file!()) };
    let counts = RefCell::new(BTreeMap::new());
    let count = |what: String, many: usize| *counts.borrow_mut().entry(what).or_insert(0) += many;
    let result = TestRunner::new(config).run(&(packets(), damages()), |(packet, damages)| {
        let mut sent = packet.build();
        damages.iter().for_each(|damage| sent.damage(damage));
        // The kernel has no limit, and before Linux 6.2 no segmentation of UDP.
        if sent.segments() > MAX_FALLBACK_SEGMENTS as usize || sent.kind() == 5 && bridge.offloads == Offloads::TcpOnly
        {
            return Ok(());
        }
        let kernel = bridge.send(&sent);
        if let Some([whole, partial]) = &kernel {
            count("segments".to_owned(), whole.len());
            count("partial checksums".to_owned(), partial.iter().filter(|frame| frame.0[0] & 1 != 0).count());
        }
        let differences = compare(&sent, kernel).map_err(|why| TestCaseError::fail(format!("{why}: {sent:02x?}")))?;
        count("frames".to_owned(), 1);
        differences.iter().for_each(|difference| count(format!("{difference:?}"), 1));
        Ok(())
    });
    result.unwrap_or_else(|why| panic!("{why}"));
    let counts = counts.into_inner();
    println!("{counts:?}");
    for what in ["frames", "segments", "partial checksums"] {
        assert!(counts[what] > cases as usize / 2, "few {what}");
    }
}
