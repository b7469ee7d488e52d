//! Frame generator: valid, invalid and corrupted frames of every kind that the switch parses.

use std::net::IpAddr;
use std::time::Duration;

use etherparse::checksum::Sum16BitWords;
use vifswitch::time::MonoTime;
use vifswitch::wire::{Mac, Offload, Probe};

use crate::oracle::NEAR;
use crate::rng::Rng;
use crate::topology::{Address, SecurityMode, Topology, private, v4, v6, wild};
use support::lab::PROBE_KEY;

pub const CLASSES: [&str; 21] = [
    "noise",
    "ethertypes",
    "lengths",
    "llc",
    "arp",
    "rarp",
    "ipv4 udp",
    "ipv4 tcp",
    "dhcp",
    "ipv6 udp",
    "ipv6 extensions",
    "nd solicitation",
    "nd advertisement",
    "nd router",
    "mld",
    "reserved groups",
    "runts",
    "open checksums",
    "super-frames",
    "false offloads",
    "loop probes",
];

/// Maximum length without GSO: MTU, Ethernet header, two tags.
pub const MAX_LEN: usize = 9216 + 14 + 8;

/// A frame sent by a guest.
#[derive(Debug, Clone)]
pub struct SentFrame {
    /// Device by which it is sent.
    pub base: usize,
    pub bytes: Vec<u8>,
    pub offload: [u8; Offload::LEN],
    pub class: usize,
    /// Not corrupted.
    pub honest: bool,
}

/// Generates numbered frames.
pub struct FrameGenerator {
    pub rng: Rng,
    /// Clock of the switch.
    pub now: MonoTime,
    number: u64,
    kinds: usize,
    lengths: usize,
    /// The frame is invalid from the beginning.
    odd: bool,
}

impl FrameGenerator {
    /// Lengths and EtherTypes are enumerated, starting at an offset that depends on `world`.
    pub fn new(rng: Rng, world: u64) -> FrameGenerator {
        let start = world as usize;
        FrameGenerator {
            rng,
            now: MonoTime::default(),
            number: 0,
            kinds: start.wrapping_mul(2503),
            lengths: start.wrapping_mul(2503),
            odd: false,
        }
    }

    /// Next frame; a GSO packet only if `may_be_super`.
    pub fn next(&mut self, topology: &Topology, may_be_super: bool) -> SentFrame {
        let mut class = self.rng.below(CLASSES.len());
        if !may_be_super && class >= 18 {
            class = self.rng.below(18);
        }
        let place = self.rng.below(topology.places.len());
        let source = self.source(topology, place);
        let to = self.destination(topology);
        let mut bytes = [to, source].concat();
        let mut leave = [0; 12];
        self.odd = false;
        let mut honest = true;
        let mut start = 0;
        match class {
            0 => {
                let len = self.rng.below(300);
                bytes.extend(self.rng.some(len));
            }
            1 => {
                self.kinds += 1;
                bytes.extend((self.kinds as u16).to_be_bytes());
                let len = self.rng.below(100);
                bytes.extend(self.rng.some(len));
            }
            2 => {
                self.lengths += 1;
                let kind = self.rng.pick(&[0x88b5u16, 0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8]);
                bytes.extend(kind.to_be_bytes());
                let body = if self.rng.percent(50) { self.ip(topology, place, source, 17) } else { Vec::new() };
                bytes.extend(body);
                let byte = self.rng.byte();
                bytes.resize(self.lengths % (MAX_LEN + 20), byte);
            }
            3 => {
                let head = self.rng.pick(&[[0x42, 0x42, 3], [0xaa, 0xaa, 3], [0xff, 0xff, 0], [0xe0, 0xe0, 3]]);
                let len = self.rng.within(0, 200);
                bytes.extend((len as u16 + 3).to_be_bytes());
                bytes.extend(head);
                bytes.extend(self.rng.some(len));
            }
            4 => {
                bytes.extend([0x08, 0x06]);
                bytes.extend(self.arp(topology, place, source));
            }
            5 => {
                bytes.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
                bytes.extend(source);
                bytes.extend(self.rng.some(14));
            }
            6..=8 | 17..=19 if class < 9 || self.rng.percent(50) => {
                bytes.extend([0x08, 0x00]);
                let protocol = match class {
                    6 | 8 => 17,
                    7 => 6,
                    _ => self.rng.pick(&[6, 17]),
                };
                let mut packet = self.ip(topology, place, source, protocol);
                if class == 8 {
                    packet[12..16].copy_from_slice(&self.rng.pick(&[[0; 4], [10, 0, 0, 1]]));
                    packet[20..24].copy_from_slice(&self.rng.pick(&[[0, 68, 0, 67], [0, 67, 0, 68], [0, 68, 0, 53]]));
                }
                if class >= 17 {
                    start = 34;
                    leave = self.leave(&mut packet, 20, protocol, class);
                }
                bytes.extend(packet);
            }
            9 | 17..=19 => {
                bytes.extend([0x86, 0xdd]);
                let protocol = if class == 9 { 17 } else { self.rng.pick(&[6, 17]) };
                let body = self.transport(protocol);
                let mut packet = self.v6(topology, place, source, protocol, &body);
                if class >= 17 {
                    start = 54;
                    leave = self.leave(&mut packet, 40, protocol, class);
                }
                bytes.extend(packet);
            }
            10..=14 => {
                bytes.extend([0x86, 0xdd]);
                bytes.extend(self.icmp(topology, place, source, class));
            }
            15 => {
                let group = self.rng.below(18);
                let to = match group {
                    16 => [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd],
                    17 => [0x01, 0x80, 0xc2, 0, 0, 0x10],
                    n => [0x01, 0x80, 0xc2, 0, 0, n as u8],
                };
                bytes[..6].copy_from_slice(&to);
                bytes.extend(self.rng.pick(&[[0x88, 0x08], [0x88, 0xcc], [0x88, 0x09], [0, 38], [0x88, 0x8e]]));
                bytes.extend(self.rng.some(46));
            }
            20 => {
                let at = self.rng.below(topology.places.len());
                let age = Duration::from_millis(self.rng.pick(&[0, 0, 10, 2999, 3001, 60_000]));
                let probe = Probe {
                    sent: self.now - age,
                    sequence: self.number / 3,
                    port: topology.places[at].id.bits(),
                    network: 0,
                    vm: 0,
                    mac: Mac::new(topology.places[at].mac),
                };
                bytes = probe.write(&PROBE_KEY).to_vec();
                if self.rng.percent(30) {
                    bytes[6..12].copy_from_slice(&source);
                }
            }
            _ => {
                let len = self.rng.below(22);
                bytes.extend(self.rng.some(12));
                bytes.truncate(len);
            }
        }
        let mut tags = 0;
        if bytes.len() >= 12 && self.rng.percent(35) {
            tags = match self.rng.below(20) {
                0..10 => 1,
                10..15 => 2,
                15..19 => self.rng.within(3, 8),
                _ => self.rng.within(9, 600),
            };
            if start > 0 {
                tags = tags.min(8);
            }
            let mut all = Vec::new();
            for _ in 0..tags {
                all.extend(self.rng.pick(&[[0x81, 0x00], [0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]]));
                let id = self.rng.pick(&[0u16, 5, 7, 101, 120, 4094, 4095, 0xe000, 300]);
                all.extend(id.to_be_bytes());
            }
            bytes.splice(12..12, all);
            start += 4 * tags;
        }
        if self.rng.percent(45) && class < 17 {
            honest = false;
            for _ in 0..self.rng.within(1, 3) {
                self.spoil(&mut bytes);
            }
        } else if class >= 17 && self.rng.percent(20) {
            honest = false;
            let at = self.rng.below(bytes.len().min(100));
            bytes[at] ^= 1 << self.rng.below(8);
        }
        // Deeper than the switch parses.
        honest &= tags < 400;
        self.number += 1;
        // Writes source and number into the padding, if there is any.
        if !matches!(class, 2 | 16 | 20) && bytes.len() >= 22 && bytes.len() + 8 <= MAX_LEN && start == 4 * tags {
            bytes.extend(self.number.to_be_bytes());
        } else if class != 20 && bytes.len() >= 60 && (class < 17 || bytes.len() >= start + 28) {
            let at = bytes.len() - 8;
            bytes[at..].copy_from_slice(&self.number.to_be_bytes());
        }
        if (17..20).contains(&class) {
            leave[6..8].copy_from_slice(&(start as u16).to_le_bytes());
        }
        if class == 19 {
            honest = false;
            for _ in 0..self.rng.within(1, 3) {
                let at = self.rng.below(10);
                leave[at] = self.rng.byte();
            }
            // Untagging shifts it; whether headers are within the parsed range would depend on when that is checked.
            let start = usize::from(u16::from_le_bytes([leave[6], leave[7]]));
            if (NEAR - 24..NEAR).contains(&start) {
                leave[7] = 0;
            }
        }
        let place = &topology.places[place];
        let mut base = place.base;
        if place.vid > 0 && self.rng.percent(95) {
            let id = place.vid | self.rng.pick(&[0, 0, 0, 0x2000, 0xf000]);
            let at = bytes.len().min(12);
            bytes.splice(at..at, [0x81, 0x00, (id >> 8) as u8, id as u8]);
            let start = u16::from_le_bytes([leave[6], leave[7]]);
            if leave[0] & 1 == 1 && (honest || self.rng.percent(80)) {
                leave[6..8].copy_from_slice(&start.wrapping_add(4).to_le_bytes());
            }
        }
        if self.rng.percent(1) {
            // By another device: a backup uplink, or another VM's port.
            base = self.rng.below(topology.bases.len());
            while topology.port_at(base, 0).is_none() && !topology.bases[base].trunk {
                base = self.rng.below(topology.bases.len());
            }
        }
        SentFrame { base, bytes, offload: leave, class, honest: honest && !self.odd }
    }

    fn source(&mut self, topology: &Topology, place: usize) -> Address {
        let at = &topology.places[place];
        match self.rng.below(20) {
            0..9 if !at.uplink => match &at.guarding {
                SecurityMode::Mac(also) if !also.is_empty() && self.rng.percent(40) => self.rng.pick(also),
                SecurityMode::MacIp(bound) if !bound.is_empty() && self.rng.percent(60) => self.rng.pick(bound).0,
                _ => at.mac,
            },
            0..13 => wild(self.rng.below(8)),
            13..17 => private(place, self.rng.below(20)),
            17 => topology.places[self.rng.below(topology.vifs())].mac,
            18 => self.rng.pick(&[[0; 6], [1, 0, 0x5e, 0, 0, 1], [0xff; 6]]),
            _ => self.rng.bits().to_be_bytes()[..6].try_into().unwrap(),
        }
    }

    fn destination(&mut self, topology: &Topology) -> Address {
        match self.rng.below(20) {
            0..3 => [0xff; 6],
            3..10 => topology.places[self.rng.below(topology.vifs())].mac,
            10..13 => wild(self.rng.below(8)),
            13..16 => private(self.rng.below(topology.places.len()), self.rng.below(20)),
            16 => self.rng.pick(&[[0x01, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]]),
            17 => [0x01, 0x80, 0xc2, 0, 0, self.rng.below(16) as u8],
            _ => self.rng.bits().to_be_bytes()[..6].try_into().unwrap(),
        }
    }

    /// An IP address, mostly one that this sender may use.
    fn address(&mut self, topology: &Topology, place: usize, source: Address, is_v6: bool) -> IpAddr {
        if let SecurityMode::MacIp(bound) = &topology.places[place].guarding
            && self.rng.percent(70)
        {
            let these = bound.iter().filter(|(mac, _)| *mac == source).filter_map(|(_, ip)| Some(ip.as_ref()?.0));
            let these: Vec<_> = these.filter(|ip| ip.is_ipv6() == is_v6).collect();
            if !these.is_empty() {
                return self.rng.pick(&these);
            }
        }
        match is_v6 {
            false => v4(self.rng.below(20)),
            true => self.rng.pick(&[v6(3), v6(9), v6(17), "::".parse().unwrap(), eui(source), eui(source)]),
        }
    }

    fn arp(&mut self, topology: &Topology, place: usize, source: Address) -> Vec<u8> {
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0];
        bytes.push(self.rng.pick(&[1, 2]));
        let mac = if self.rng.percent(80) { source } else { self.source(topology, place) };
        bytes.extend(mac);
        let probe: IpAddr = v4(0);
        let ip = if self.rng.percent(20) { [0; 4] } else { four(self.address(topology, place, mac, false)) };
        bytes.extend(ip);
        bytes.extend([0; 6]);
        bytes.extend(four(probe));
        bytes
    }

    /// An IPv4 packet with UDP or TCP header.
    fn ip(&mut self, topology: &Topology, place: usize, source: Address, protocol: u8) -> Vec<u8> {
        let body = self.transport(protocol);
        let mut bytes = vec![0x45, 0];
        bytes.extend((20 + body.len() as u16).to_be_bytes());
        bytes.extend([0, 7, 0x40, 0, 64, protocol, 0, 0]);
        bytes.extend(four(self.address(topology, place, source, false)));
        bytes.extend([10, 0, 0, 99]);
        bytes.extend(body);
        bytes
    }

    fn transport(&mut self, protocol: u8) -> Vec<u8> {
        let payload = self.rng.below(120);
        let mut bytes = vec![0x12, 0x34, 0, 9];
        if protocol == 6 {
            bytes.extend([0, 0, 1, 0, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
        } else {
            bytes.extend((8 + payload as u16).to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend(self.rng.some(payload));
        bytes
    }

    fn v6(&mut self, topology: &Topology, place: usize, source: Address, next: u8, body: &[u8]) -> Vec<u8> {
        let IpAddr::V6(ip) = self.address(topology, place, source, true) else { unreachable!() };
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend([next, 255]);
        bytes.extend(ip.octets());
        bytes.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend(body);
        bytes
    }

    /// IPv6 with extension headers, neighbor discovery, MLD.
    fn icmp(&mut self, topology: &Topology, place: usize, source: Address, class: usize) -> Vec<u8> {
        let kind = match class {
            11 => 135,
            12 => 136,
            13 => self.rng.pick(&[133, 134]),
            14 => self.rng.pick(&[130, 131, 132, 143]),
            _ => self.rng.pick(&[128, 135, 136, 137, 133, 143, 1]),
        };
        let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        let option = match kind {
            133 => Some(1),
            134 => {
                body.extend([0; 8]);
                Some(1)
            }
            135 => Some(1),
            136 => Some(2),
            _ => None,
        };
        let link = if self.rng.percent(80) { source } else { self.source(topology, place) };
        if matches!(kind, 135..=136) {
            let IpAddr::V6(target) = self.address(topology, place, link, true) else { unreachable!() };
            body.extend(target.octets());
        }
        for _ in 0..self.rng.pick(&[0, 1, 1, 1, 2]) {
            let Some(option) = option else { break };
            // Other types have other lengths.
            let is_odd = self.rng.percent(15);
            self.odd |= is_odd;
            body.extend([if is_odd { self.rng.byte() } else { option }, 1]);
            body.extend(if self.rng.percent(95) { link } else { self.source(topology, place) });
        }
        let mut next = 58;
        let extensions = if class == 10 { self.rng.within(1, 4) } else { usize::from(self.rng.percent(10)) };
        for _ in 0..extensions {
            let kind = self.rng.pick(&[0, 43, 60, 60, 44, 51]);
            let mut extension = vec![next, 0, 0, 0, 0, 0, 0, 0];
            match kind {
                44 => extension[2..4].copy_from_slice(&self.rng.pick(&[[0, 0], [0, 1], [0, 8], [1, 1]])),
                51 => {
                    extension[1] = 2;
                    extension.extend([0; 8]);
                }
                _ => {
                    extension[1] = self.rng.pick(&[0, 0, 1, 3]);
                    extension.resize((usize::from(extension[1]) + 1) * 8, 0);
                }
            }
            body.splice(0..0, extension);
            next = kind;
        }
        self.v6(topology, place, source, next, &body)
    }

    /// Makes the checksum partial, and the packet long if it becomes a GSO packet. Returns `virtio_net_hdr` without
    /// csum_start.
    fn leave(&mut self, packet: &mut Vec<u8>, header: usize, protocol: u8, class: usize) -> [u8; 12] {
        let mut leave = [0; 12];
        leave[0] = 1;
        leave[8] = if protocol == 6 { 16 } else { 6 };
        open(packet, header, protocol);
        if class == 17 || class == 19 && self.rng.percent(30) {
            return leave;
        }
        leave[1] = match (protocol, header) {
            (17, _) => 5,
            (_, 20) => 1,
            _ => 4,
        };
        let size = self.rng.within(200, 1450);
        let parts = if self.rng.percent(5) { 140 } else { self.rng.within(1, 40) };
        leave[4..6].copy_from_slice(&(size as u16).to_le_bytes());
        let transport = if protocol == 6 { 20 } else { 8 };
        let payload = (size * parts - self.rng.below(size)).min(65_000);
        packet.truncate(header + transport);
        packet.extend(self.rng.some(payload));
        let len = (packet.len() - header) as u16;
        if header == 20 {
            packet[2..4].copy_from_slice(&(len + 20).to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&len.to_be_bytes());
        }
        if protocol == 17 {
            packet[header + 4..header + 6].copy_from_slice(&len.to_be_bytes());
        }
        open(packet, header, protocol);
        leave
    }

    /// Corrupts a frame.
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        if len == 0 {
            return;
        }
        let near = self.rng.below(len.min(110));
        match self.rng.below(8) {
            0 => bytes.truncate(near),
            1 => {
                let all = self.rng.below(len);
                bytes.truncate(all);
            }
            2 => bytes[near] ^= 1 << self.rng.below(8),
            3 => bytes[near] = self.rng.pick(&[0, 1, 0x7f, 0x80, 0xff, 4, 0x45, 0x60]),
            4 => {
                for byte in &mut bytes[near..(near + 2).min(len)] {
                    *byte = self.rng.byte();
                }
            }
            5 => {
                let end = (near + self.rng.within(1, 40)).min(len);
                let part = bytes[near..end].to_vec();
                let at = self.rng.below(len);
                bytes.splice(at..at, part);
            }
            6 => {
                let end = (near + self.rng.within(1, 20)).min(len);
                bytes.drain(near..end);
            }
            _ => {
                let more = self.rng.pick(&[1, 8, 100, 1400, 3000]);
                bytes.resize(len + self.rng.below(more), 0);
            }
        }
        bytes.truncate(MAX_LEN);
    }
}

/// Writes the pseudo-header sum into the checksum field, as for checksum offload.
fn open(packet: &mut [u8], header: usize, protocol: u8) {
    let addresses = if header == 20 { 12..20 } else { 8..40 };
    let len = (packet.len() - header) as u16;
    let sum = Sum16BitWords::new().add_slice(&packet[addresses]).add_2bytes([0, protocol]);
    let sum = !sum.add_2bytes(len.to_be_bytes()).ones_complement().to_be();
    let field = header + if protocol == 6 { 16 } else { 6 };
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

fn four(ip: IpAddr) -> [u8; 4] {
    match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => [0; 4],
    }
}

fn eui([a, b, c, d, e, f]: Address) -> IpAddr {
    IpAddr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
