//! Host probe: a loop probe that other hosts recognise, because they have the same key (`probe_key`).
//!
//! It is a [`Probe`] of version 2, which says in addition who sent it, by names that operators know, and when by the wall
//! clock, as hosts have no other clock in common.
//!
//! ```text
//! 14  version 2, flags                  56  wall-clock time, milliseconds since 1970
//! 16  as version 1, to 47               64  digest of the network's id, under the key
//! 48  random number of the start        72  lengths of the names of host, VM and port, then the names
//!                                           tag (SipHash-2-4, 128 bits, of all from 14 on)
//! ```
//!
//! Flags: 1 the port is quarantined; 2 frames circulate: stations flap between the port and an uplink, or the port exceeds
//! its storm limits.

use super::{Forged, HEADER_LEN, Probe, ProbeKey, take, verified};

/// Version of the format.
pub(super) const VERSION: u8 = 2;

/// Bytes before the names, without the Ethernet header.
const FIXED_LEN: usize = 61;

/// Maximum length of the name of a host in bytes; a longer one is truncated.
pub const MAX_HOST_NAME: usize = 32;

/// The same of the name of a VM or port. A UUID has 36.
pub const MAX_PORT_NAME: usize = 64;

const QUARANTINED: u8 = 1;
const SUSPECT: u8 = 2;

/// A name of at most `MAX` bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ProbeName<const MAX: usize> {
    len: u8,
    bytes: [u8; MAX],
}

impl<const MAX: usize> ProbeName<MAX> {
    /// The name, truncated to `MAX` bytes.
    #[allow(clippy::cast_possible_truncation)] // at most MAX
    pub fn new(name: &str) -> ProbeName<MAX> {
        const { assert!(MAX < 256) };
        let mut end = name.len().min(MAX);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let name = &name[..end];
        let mut bytes = [0; MAX];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        ProbeName { len: name.len() as u8, bytes }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        str::from_utf8(self.octets()).unwrap_or_default()
    }

    fn octets(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Parses a name: text without control characters.
    fn read(octets: &[u8]) -> Option<ProbeName<MAX>> {
        let text = str::from_utf8(octets).ok()?;
        (text.len() <= MAX && !text.chars().any(char::is_control)).then(|| ProbeName::new(text))
    }
}

impl<const MAX: usize> std::fmt::Debug for ProbeName<MAX> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// Key that hosts share, and a random number that distinguishes this start of the switch from other hosts and starts.
#[derive(Debug, Clone, Copy)]
pub struct HostKey {
    key: ProbeKey,
    start: u64,
}

impl HostKey {
    /// From the shared key, and a random number.
    pub const fn new(shared: [u8; 16], start: u64) -> HostKey {
        HostKey { key: ProbeKey::new(shared), start }
    }

    /// Digest of the id of a network, by which hosts compare networks.
    pub fn digest(&self, network_id: &str) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.key.tag(network_id.as_bytes());
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Keys that authenticate loop probes.
#[derive(Debug, Clone, Copy)]
pub struct ProbeKeys {
    /// Of this start of the switch.
    pub own: ProbeKey,
    /// Shared with other hosts.
    pub shared: Option<HostKey>,
}

impl From<ProbeKey> for ProbeKeys {
    fn from(own: ProbeKey) -> ProbeKeys {
        ProbeKeys { own, shared: None }
    }
}

/// A genuine probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadProbe {
    /// Of this switch.
    Own(Probe),
    /// Of another host, or of an earlier start of the switch.
    Host(HostProbe),
}

impl ProbeKeys {
    /// Parses a whole frame with up to two VLAN tags.
    pub fn read(&self, frame: &[u8]) -> Result<ReadProbe, Forged> {
        let body = super::body(frame)?;
        match (body.first(), &self.shared) {
            (Some(&VERSION), Some(shared)) => {
                let host = HostProbe::parse(verified(body, &shared.key)?).ok_or(Forged)?;
                Ok(if host.start == shared.start { ReadProbe::Own(host.probe) } else { ReadProbe::Host(host) })
            }
            _ => Probe::read(frame, &self.own).map(ReadProbe::Own),
        }
    }
}

/// Contents of a host probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostProbe {
    /// As of any probe. Its numbers have a meaning for the sender only.
    pub probe: Probe,
    /// Random number of the start of the sender.
    pub start: u64,
    /// When it was sent: milliseconds since 1970, by the clock of the sender.
    pub wall_millis: u64,
    /// Digest of the id of the port's network: [`HostKey::digest`].
    pub network: u64,
    /// The port is quarantined.
    pub is_quarantined: bool,
    /// Frames seem to circulate through the port.
    pub is_suspect: bool,
    /// The host.
    pub host: ProbeName<MAX_HOST_NAME>,
    /// The VM.
    pub vm: ProbeName<MAX_PORT_NAME>,
    /// The port.
    pub port: ProbeName<MAX_PORT_NAME>,
}

impl HostProbe {
    /// Maximum length of a host probe without VLAN tags, in bytes.
    pub const MAX_LEN: usize = HEADER_LEN + FIXED_LEN + MAX_HOST_NAME + 2 * MAX_PORT_NAME + 16;

    /// Writes the frame. `start` is that of the key.
    pub fn write(&self, key: &HostKey) -> ProbeFrame {
        let HostProbe { probe, start: _, wall_millis, network, is_quarantined, is_suspect, host, vm, port } = self;
        let mut frame = ProbeFrame::new();
        frame.put(&Probe::DESTINATION.octets());
        frame.put(&Probe::SOURCE.octets());
        frame.put(&Probe::KIND.to_be_bytes());
        let flags = if *is_quarantined { QUARANTINED } else { 0 } | if *is_suspect { SUSPECT } else { 0 };
        frame.put(&[VERSION, flags]);
        probe.say(|bytes| frame.put(bytes));
        frame.put(&key.start.to_be_bytes());
        frame.put(&wall_millis.to_be_bytes());
        frame.put(&network.to_be_bytes());
        frame.put(&[host.len, vm.len, port.len]);
        frame.put(host.octets());
        frame.put(vm.octets());
        frame.put(port.octets());
        let tag = key.key.tag(&frame.as_ref()[HEADER_LEN..]);
        frame.put(&tag);
        frame
    }

    /// Parses authenticated content.
    fn parse(said: &[u8]) -> Option<HostProbe> {
        let (mut fixed, names) = said.split_at_checked(FIXED_LEN)?;
        let rest = &mut fixed;
        let [version, flags] = take(rest)?;
        (version == VERSION && flags & !(QUARANTINED | SUSPECT) == 0).then_some(())?;
        let probe = Probe::parse(rest)?;
        let start = u64::from_be_bytes(take(rest)?);
        let wall_millis = u64::from_be_bytes(take(rest)?);
        let network = u64::from_be_bytes(take(rest)?);
        let [host, vm, port] = take(rest)?.map(usize::from);
        (names.len() == host + vm + port).then_some(())?;
        let (host, others) = names.split_at(host);
        let (vm, port) = others.split_at(vm);
        Some(HostProbe {
            probe,
            start,
            wall_millis,
            network,
            is_quarantined: flags & QUARANTINED != 0,
            is_suspect: flags & SUSPECT != 0,
            host: ProbeName::read(host)?,
            vm: ProbeName::read(vm)?,
            port: ProbeName::read(port)?,
        })
    }
}

/// The frame of a probe of any version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeFrame {
    len: usize,
    bytes: [u8; HostProbe::MAX_LEN],
}

impl ProbeFrame {
    fn new() -> ProbeFrame {
        ProbeFrame { len: 0, bytes: [0; HostProbe::MAX_LEN] }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

impl AsRef<[u8]> for ProbeFrame {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl From<[u8; Probe::LEN]> for ProbeFrame {
    fn from(bytes: [u8; Probe::LEN]) -> ProbeFrame {
        let mut frame = ProbeFrame::new();
        frame.put(&bytes);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::MonoTime;
    use crate::wire::Mac;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const SHARED: [u8; 16] = [9; 16];
    const KEY: HostKey = HostKey::new(SHARED, 7);

    fn keys(shared: [u8; 16], start: u64) -> ProbeKeys {
        ProbeKeys { own: ProbeKey::new([1; 16]), shared: Some(HostKey::new(shared, start)) }
    }

    fn host_probe() -> impl Strategy<Value = HostProbe> {
        let numbers = any::<(u64, u64, u32, u16, u32)>();
        let names = ("[^\\p{Cc}]{0,40}", "[^\\p{Cc}]{0,80}", "[a-z0-9-]{0,80}");
        (numbers, 0..1u64 << 48, any::<(u64, u64, bool, bool)>(), names).prop_map(
            |((sent, sequence, port, network, vm), mac, (wall_millis, digest, is_quarantined, is_suspect), names)| {
                HostProbe {
                    probe: Probe {
                        sent: MonoTime::from_nanos(sent),
                        sequence,
                        port,
                        network,
                        vm,
                        mac: Mac::from_bits(mac),
                    },
                    start: 7,
                    wall_millis,
                    network: digest,
                    is_quarantined,
                    is_suspect,
                    host: ProbeName::new(&names.0),
                    vm: ProbeName::new(&names.1),
                    port: ProbeName::new(&names.2),
                }
            },
        )
    }

    /// The frame behind VLAN tags.
    fn tagged(frame: &[u8], tags: usize) -> Vec<u8> {
        [&frame[..12], &[0x81, 0, 0x20, 5].repeat(tags), &frame[12..]].concat()
    }

    proptest! {
        /// Also behind up to two tags, and with another source.
        #[test]
        fn a_host_probe_is_parsed_back(probe in host_probe(), tags in 0..4usize, source: [u8; 6], start: u64) {
            let mut frame = tagged(probe.write(&KEY).as_ref(), tags);
            frame[6..12].copy_from_slice(&source);
            let expected = match (tags, start) {
                (3.., _) => Err(Forged),
                (_, 7) => Ok(ReadProbe::Own(probe.probe)),
                _ => Ok(ReadProbe::Host(probe)),
            };
            prop_assert_eq!(keys(SHARED, start).read(&frame), expected);
            if tags <= 2 {
                prop_assert_eq!(keys(SHARED, 7).read(&frame), Ok(ReadProbe::Own(probe.probe)));
            }
        }

        /// Any change except of the source, any truncation or extension, any other key; and without a key.
        #[test]
        fn a_forged_host_probe_is_not_read(probe in host_probe(), bit: prop::sample::Index, cut: prop::sample::Index, extra in vec(any::<u8>(), 1..50), other: [u8; 16]) {
            let frame = probe.write(&KEY);
            let (frame, keys) = (frame.as_ref(), |shared| keys(shared, 0));
            let bit = bit.index(8 * frame.len());
            if !(48..96).contains(&bit) {
                let mut bent = frame.to_vec();
                bent[bit / 8] ^= 1 << (bit % 8);
                prop_assert_eq!(keys(SHARED).read(&bent), Err(Forged));
            }
            prop_assert_eq!(keys(SHARED).read(&frame[..cut.index(frame.len())]), Err(Forged));
            prop_assert_eq!(keys(SHARED).read(&[frame, &extra[..]].concat()), Err(Forged));
            prop_assert_eq!(keys(other).read(frame).is_ok(), other == SHARED);
            prop_assert_eq!(ProbeKeys::from(ProbeKey::new(SHARED)).read(frame), Err(Forged));
        }

        /// Own probes of version 1 are read with a shared key, too; those under the shared key are not.
        #[test]
        fn version_1_is_for_the_own_key_only(probe in host_probe()) {
            let keys = keys(SHARED, 7);
            prop_assert_eq!(keys.read(&probe.probe.write(&keys.own)), Ok(ReadProbe::Own(probe.probe)));
            prop_assert_eq!(keys.read(&probe.probe.write(&ProbeKey::new(SHARED))), Err(Forged));
        }

        #[test]
        fn authenticated_content_of_any_kind_is_parsed_or_refused(said in vec(any::<u8>(), 0..200)) {
            let mut said = said;
            if said.len() > 1 {
                (said[0], said[1]) = (VERSION, said[1] & 7);
            }
            if let Some(probe) = HostProbe::parse(&said) {
                let frame = probe.write(&HostKey::new(SHARED, probe.start));
                prop_assert_eq!(&frame.as_ref()[HEADER_LEN..][..said.len()], &said[..]);
            }
        }
    }

    #[test]
    fn names_are_truncated_between_characters() {
        let long = "ä".repeat(50);
        assert_eq!(ProbeName::<64>::new(&long).as_str(), "ä".repeat(32));
        assert_eq!(ProbeName::<32>::new(&format!("a{long}")).as_str(), format!("a{}", "ä".repeat(15)));
        assert_eq!(ProbeName::<64>::read(b"a\nb"), None);
    }

    #[test]
    fn the_wire_format_is_as_documented() {
        let probe = HostProbe {
            probe: Probe {
                sent: MonoTime::from_nanos(1),
                sequence: 2,
                port: 3,
                network: 4,
                vm: 5,
                mac: Mac::from_bits(6),
            },
            start: 7,
            wall_millis: 0x0102_0304_0506_0708,
            network: 0x1112_1314_1516_1718,
            is_quarantined: true,
            is_suspect: true,
            host: ProbeName::new("h"),
            vm: ProbeName::new("vm"),
            port: ProbeName::new("p-1"),
        };
        let frame = probe.write(&KEY);
        let frame = frame.as_ref();
        assert_eq!(frame[14..16], [2, 3]);
        assert_eq!(frame[16..48], probe.probe.write(&ProbeKey::new([0; 16]))[16..48]);
        assert_eq!(frame[48..56], 7u64.to_be_bytes());
        assert_eq!(frame[56..72], [1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
        assert_eq!(&frame[72..81], b"\x01\x02\x03hvmp-1");
        assert_eq!(frame.len(), 81 + 16);
        assert_eq!(keys(SHARED, 8).read(frame), Ok(ReadProbe::Host(probe)));
    }
}
