//! Random ports, frames and `virtio_net_hdr`, as guests may send them.

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::device::loopback::RxMemory;
use vifswitch::switch::{AtLimit, Binding, MacLimit, ReservedMask, Security};
use vifswitch::wire::{Mac, Offload, Prefix};

use support::lab::stream::open_frame;
use support::lab::{PortSpec, UplinkSpec, mac};

/// Addresses that no port has as its own. Few, so that frames often share them.
pub fn wild(number: usize) -> Mac {
    Mac::from_bits(0x0a_00_00_00_00_00 | number as u64)
}

pub const WILD: usize = 8;

/// An address binding: the MAC of a port or a foreign one, with one of few IP addresses.
fn binding() -> impl Strategy<Value = Binding> {
    let mac = prop_oneof![3 => (0..9usize).prop_map(mac), 1 => (0..WILD).prop_map(wild)];
    let ip =
        prop::sample::select(vec!["10.0.0.1", "10.0.0.2/31", "10.0.0.0/29", "fd::1", "fd::4/126", "0.0.0.0/0", ""]);
    (mac, ip).prop_map(|(mac, ip)| Binding { mac, ip: ip.parse::<Prefix>().ok() })
}

/// The same ports, some quarantined, some with sibling split horizon, some with MAC sharing.
pub fn measured(port_specs: impl Strategy<Value = Vec<PortSpec>>) -> impl Strategy<Value = Vec<PortSpec>> {
    let mitigation = (prop::bool::weighted(0.1), prop::bool::weighted(0.3), prop::bool::weighted(0.2));
    (port_specs, vec(mitigation, 24)).prop_map(|(port_specs, mitigation)| {
        let with = |(spec, (quarantined, split_horizon, mac_sharing)): (PortSpec, _)| PortSpec {
            quarantined,
            split_horizon,
            mac_sharing,
            ..spec
        };
        port_specs.into_iter().zip(mitigation).map(with).collect()
    })
}

pub fn port_specs(networks: u16) -> impl Strategy<Value = Vec<PortSpec>> {
    let security = prop_oneof![
        3 => Just(Security::Off),
        1 => vec((0..WILD).prop_map(wild), 0..3).prop_map(|also| Security::Mac(also.into())),
        2 => vec(binding(), 0..8).prop_map(|bindings| Security::MacIp(bindings.into())),
    ];
    let policy = prop::sample::select(vec![AtLimit::Drop, AtLimit::ForwardUnlearned]);
    let limit = (0..4u32, policy).prop_map(|(stations, policy)| MacLimit { stations, policy });
    let delivery = (prop::bool::weighted(0.8), prop::bool::weighted(0.15), prop::option::weighted(0.3, limit));
    let spec = (0..networks, 0..4u32, security, prop::bool::weighted(0.9), delivery).prop_map(
        |(network, owner, security, admin_up, (unknown_unicast, promiscuous, mac_limit))| PortSpec {
            network,
            owner,
            security,
            admin_up,
            unknown_unicast,
            promiscuous,
            mac_limit,
            mac_sharing: false,
            quarantined: false,
            split_horizon: false,
            trunk: None,
        },
    );
    vec(spec, 2..10).prop_map(|mut port_specs| {
        // Some ports have their own address bound, as is usual.
        for (index, spec) in port_specs.iter_mut().enumerate() {
            if let Security::MacIp(bindings) = &mut spec.security
                && let Some(first) = bindings.first_mut()
            {
                first.mac = mac(index);
            }
        }
        port_specs
    })
}

pub fn reserved() -> impl Strategy<Value = ReservedMask> {
    prop_oneof![2 => Just(ReservedMask::VM_DEFAULT), 1 => any::<u16>().prop_map(ReservedMask)]
}

/// ARP, ND or IP content. IP addresses by number: 0 is none, 9 is the link-local address of the MAC address
/// concerned.
#[derive(Debug, Clone)]
enum Said {
    Arp { mac: Address, ip: u8 },
    V4 { ip: u8, ports: (u16, u16) },
    V6 { ip: u8 },
    Neighbor { kind: u8, ip: u8, target: u8, link: Option<Address> },
}

fn said() -> impl Strategy<Value = Said> {
    let port = prop::sample::select(vec![67u16, 68, 53]);
    let ip = || prop_oneof![1 => Just(0u8), 6 => 1..9u8, 2 => Just(9u8)];
    let who = || prop_oneof![3 => Just(Address::Sender), 1 => (0..9usize).prop_map(Address::Port)];
    prop_oneof![
        (who(), 0..9u8).prop_map(|(mac, ip)| Said::Arp { mac, ip }),
        (0..9u8, (port.clone(), port)).prop_map(|(ip, ports)| Said::V4 { ip, ports }),
        ip().prop_map(|ip| Said::V6 { ip }),
        (133..=137u8, ip(), ip(), prop::option::of(who())).prop_map(|(kind, ip, target, link)| Said::Neighbor {
            kind,
            ip,
            target,
            link
        }),
    ]
}

fn v6(number: u8, of: Mac) -> [u8; 16] {
    let [a, b, c, d, e, f] = of.octets();
    match number {
        0 => [0; 16],
        9 => [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f],
        n => [0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n],
    }
}

impl Said {
    /// EtherType and payload, sent from `source`; `resolve` maps [`Address`] to MAC addresses.
    fn bytes(&self, source: Mac, resolve: impl Fn(Address) -> Mac) -> Vec<u8> {
        let v4 = |number: u8| if number == 0 { [0; 4] } else { [10, 0, 0, number] };
        let six = |ip: u8, next: u8, payload: &[u8]| {
            let front = [0x86, 0xdd, 0x60, 0, 0, 0, 0, payload.len() as u8, next, 255];
            [&front[..], &v6(ip, source), &[0xff; 16], payload].concat()
        };
        match self {
            Said::Arp { mac, ip } => {
                [&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1][..], &resolve(*mac).octets(), &v4(*ip), &[0; 10]].concat()
            }
            Said::V4 { ip, ports } => {
                let front = [8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
                let (from, to) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
                [&front[..], &v4(*ip), &[10, 0, 0, 99], &from, &to, &[0, 8, 0, 0]].concat()
            }
            Said::V6 { ip } => six(*ip, 17, &[0; 8]),
            Said::Neighbor { kind, ip, target, link } => {
                let mut message = vec![*kind, 0, 0, 0, 0, 0, 0, 0];
                match kind {
                    133 => {}
                    134 => message.extend([0; 8]),
                    137 => message.extend([v6(*target, source), [0xfd; 16]].concat()),
                    _ => message.extend(v6(*target, link.map_or(source, &resolve))),
                }
                if let Some(link) = link {
                    message.extend([if *kind >= 136 { 2 } else { 1 }, 1]);
                    message.extend(resolve(*link).octets());
                }
                six(*ip, 58, &message)
            }
        }
    }
}

/// The same, some of them subports of others.
pub fn trunks(networks: u16) -> impl Strategy<Value = Vec<PortSpec>> {
    let trunk = prop::option::weighted(0.5, (any::<prop::sample::Index>(), prop::sample::select(VIDS[1..].to_vec())));
    (port_specs(networks), vec(trunk, 10)).prop_map(|(mut port_specs, trunks)| {
        for (at, trunk) in trunks.into_iter().enumerate().take(port_specs.len()) {
            let Some((parent, vid)) = trunk.map(|(parent, vid)| (parent.index(port_specs.len()), vid)) else {
                continue;
            };
            let is_parent = |port: usize| port_specs.iter().any(|spec| spec.trunk.is_some_and(|of| of.0 == port));
            let is_taken = port_specs.iter().any(|spec| spec.trunk == Some((parent, vid)));
            if parent != at && !is_taken && !is_parent(at) && port_specs[parent].trunk.is_none() {
                let owner = port_specs[parent].owner;
                port_specs[at] = PortSpec { owner, ..port_specs[at].clone().subport_of(parent, vid) };
            }
        }
        port_specs
    })
}

/// VLAN ids, which frames of guests and of external networks use too.
const VIDS: [u16; 4] = [0, 3, 5, 4094];

/// No uplink, one, two independent ones, or active and backup; each carries some of the networks.
pub fn uplink_specs(networks: u16) -> impl Strategy<Value = Vec<UplinkSpec>> {
    let wire = move || {
        let networks = prop::sample::subsequence((0..networks).collect::<Vec<_>>(), 0..=usize::from(networks));
        (Just(VIDS.to_vec()).prop_shuffle(), networks)
            .prop_map(|(vids, networks)| UplinkSpec::new(&vids.into_iter().zip(networks).collect::<Vec<_>>()))
    };
    prop_oneof![
        2 => Just(Vec::new()),
        1 => wire().prop_map(|wire| vec![wire]),
        1 => (wire(), wire()).prop_map(|(one, other)| vec![one, other]),
        1 => wire().prop_map(|wire| vec![wire.clone(), UplinkSpec { backup_of: Some(0), ..wire }]),
    ]
}

pub fn memory() -> impl Strategy<Value = RxMemory> {
    prop_oneof![Just(RxMemory::Owned), Just(RxMemory::Lent)]
}

/// A MAC address of a frame. Ports by number, of which there may be fewer.
#[derive(Debug, Clone, Copy)]
pub enum Address {
    Port(usize),
    Sender,
    Wild(usize),
    These(u64),
}

impl Address {
    fn resolve(self, sender: usize, ports: usize) -> Mac {
        match self {
            Address::Port(index) => mac(index % ports),
            Address::Sender => mac(sender),
            Address::Wild(number) => wild(number),
            Address::These(bits) => Mac::from_bits(bits),
        }
    }
}

/// A frame, resolved once the number of ports is known.
#[derive(Debug, Clone)]
pub struct Sketch {
    pub port: usize,
    to: Address,
    from: Address,
    tags: usize,
    /// Length after header and tags; below 14, length of the whole frame.
    len: usize,
    runt: bool,
    value: u8,
    /// Payload is TCP over IPv4.
    stream: bool,
    /// ARP, ND or IP content, and the number of bytes truncated at its end.
    said: Option<(Said, usize)>,
    /// TCI of the outer tag, if the frame arrives tagged on an uplink.
    vlan: Option<u16>,
    pub offload: Offload,
}

impl Sketch {
    pub fn port(&self, ports: usize) -> usize {
        self.port % ports
    }

    /// Frame and `virtio_net_hdr` as received: with outer tag, if on an uplink.
    pub fn offer(&self, ports: usize, uplinks: usize) -> (Vec<u8>, Offload) {
        let mut bytes = self.bytes(ports + uplinks);
        let Some([a, b]) = self.vlan.filter(|_| self.port(ports + uplinks) >= ports).map(u16::to_be_bytes) else {
            return (bytes, self.offload);
        };
        let at = bytes.len().min(12);
        bytes.splice(at..at, [0x81, 0x00, a, b]);
        // Some headers keep offsets that ignore the tag and are thus wrong.
        let offload = self.offload.with_tag().filter(|_| !self.value.is_multiple_of(8));
        (bytes, offload.unwrap_or(self.offload))
    }

    pub fn bytes(&self, ports: usize) -> Vec<u8> {
        let sender = self.port(ports);
        if self.stream {
            let (to, from) = (self.to.resolve(sender, ports), self.from.resolve(sender, ports));
            let mut bytes = open_frame(to, from, 0, self.len);
            let tag = [0x81, 0x00, 0x00, self.value];
            bytes.splice(12..12, tag.repeat(self.tags));
            return bytes;
        }
        let mut bytes = Vec::with_capacity(self.len + 22);
        bytes.extend(self.to.resolve(sender, ports).octets());
        bytes.extend(self.from.resolve(sender, ports).octets());
        for tag in 0..self.tags {
            bytes.extend([[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]][tag % 3]);
            bytes.extend([0x00, self.value]);
        }
        if let Some((said, cut)) = self.said.as_ref().filter(|_| !self.runt) {
            let source = self.from.resolve(sender, ports);
            let says = said.bytes(source, |address| match address {
                // Source of the frame.
                Address::Sender => source,
                address => address.resolve(sender, ports),
            });
            bytes.extend(&says[..says.len().saturating_sub(*cut).max(2)]);
            return bytes;
        }
        bytes.extend([0x88, 0xb5]);
        bytes.resize(bytes.len() + self.len, self.value);
        if self.runt {
            bytes.truncate(self.len % 14);
        }
        // TCP data offset of five words, if the TCP header begins at 34.
        if let Some(byte) = bytes.get_mut(46) {
            *byte = 0x50;
        }
        bytes
    }
}

fn destination() -> impl Strategy<Value = Address> {
    prop_oneof![
        4 => (0..9usize).prop_map(Address::Port),
        4 => (0..WILD).prop_map(Address::Wild),
        2 => Just(Address::These(0xffff_ffff_ffff)),
        1 => Just(Address::These(0x0100_5e00_0001)),
        1 => (0..17u64).prop_map(|n| Address::These(0x0180_c200_0000 + n)),
        1 => Just(Address::These(0x0100_0ccc_cccd)),
        1 => Just(Address::These(0x0180_c200_0001)),
    ]
}

fn source() -> impl Strategy<Value = Address> {
    prop_oneof![
        6 => (0..WILD).prop_map(Address::Wild),
        4 => Just(Address::Sender),
        2 => (0..9usize).prop_map(Address::Port),
        1 => Just(Address::These(0)),
        1 => Just(Address::These(0x0300_0000_0001)),
    ]
}

/// Frames without offload work.
pub fn plain() -> impl Strategy<Value = Sketch> {
    let len = prop_oneof![6 => 0..100usize, 2 => 1490..1510usize, 1 => 1510..3000usize];
    let value = prop_oneof![any::<u8>(), Just(3), Just(5)];
    let vlan = prop::option::weighted(0.8, prop_oneof![8 => prop::sample::select(VIDS.to_vec()), 1 => any::<u16>()]);
    let said = prop::option::weighted(0.4, (said(), prop_oneof![9 => Just(0usize), 1 => 0..60usize]));
    (0..11usize, destination(), source(), 0..4usize, len, prop::bool::weighted(0.05), value, vlan, said).prop_map(
        |(port, to, from, tags, len, runt, value, vlan, said)| Sketch {
            port,
            to,
            from,
            tags,
            len,
            runt,
            value,
            stream: false,
            said,
            vlan,
            offload: Offload::NONE,
        },
    )
}

/// `virtio_net_hdr` with these fields: flags, gso_type, gso_size, csum_start, csum_offset.
pub fn header(flags: u8, gso_type: u8, size: u16, start: u16, offset: u16) -> Offload {
    let mut bytes = [0; Offload::LEN];
    (bytes[0], bytes[1]) = (flags, gso_type);
    bytes[4..6].copy_from_slice(&size.to_le_bytes());
    bytes[6..8].copy_from_slice(&start.to_le_bytes());
    bytes[8..10].copy_from_slice(&offset.to_le_bytes());
    Offload::read(&bytes)
}

/// TCP GSO packet over IPv4 with partial checksum.
pub fn tcp(size: u16) -> Offload {
    header(1, 1, size, 34, 16)
}

/// All frames, with any `virtio_net_hdr`: none, partial checksum, GSO, invalid.
pub fn any_frame() -> impl Strategy<Value = Sketch> {
    let kind = prop_oneof![
        12 => Just(None),
        2 => any::<[u8; 12]>().prop_map(|bytes| Some((Offload::read(&bytes), None))),
        1 => Just(Some((header(1, 0, 0, 34, 16), None))),
        // At most 46 segments; with small ones 164, which is above the limit.
        3 => (400..1500u16, 0..65_500usize).prop_map(|(size, len)| Some((tcp(size), Some(len)))),
        1 => (500..1500u16, 0..65_500usize).prop_map(|(size, len)| Some((header(1, 5, size, 34, 6), Some(len)))),
        // Headers begin anywhere in a long frame.
        2 => (prop::sample::select(vec![1u8, 4, 5, 0]), 0..9000u16, 500..3000u16, 0..20_000usize)
            .prop_map(|(kind, start, size, len)| Some((header(1, kind, size, start, 16), Some(len)))),
    ];
    let sketch = (plain(), kind).prop_map(|(sketch, kind)| match kind {
        None => sketch,
        Some((offload, len)) => Sketch { offload, len: len.unwrap_or(sketch.len), ..sketch },
    });
    // GSO packets that software can segment, and others.
    let divided = prop_oneof![2 => Just(1u8), 1 => Just(0)];
    let stream = (plain(), divided, 400..1500u16, 0..50_000usize).prop_map(|(sketch, kind, size, len)| {
        let start = 34 + 4 * sketch.tags as u16;
        Sketch { stream: true, runt: false, said: None, len, offload: header(1, kind, size, start, 16), ..sketch }
    });
    prop_oneof![18 => sketch, 2 => stream]
}

/// One step of a test.
#[derive(Debug, Clone)]
pub enum Act {
    /// A guest or an external station sends a frame.
    Send(Sketch),
    /// Advances the clock, in seconds.
    Advance(u64),
}

/// Up to `most` steps, `sends` frames per time step. Workers refresh a busy station every quarter of the ageing time
/// and therefore agree on its age within that quarter. Time steps are shorter than that, or much longer.
pub fn acts(sends: u32, most: usize) -> impl Strategy<Value = Vec<Act>> {
    let pass = prop_oneof![4 => 0..2u64, 1 => Just(400u64)];
    vec(prop_oneof![sends => any_frame().prop_map(Act::Send), 1 => pass.prop_map(Act::Advance)], 1..most)
}
