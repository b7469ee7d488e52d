//! Loop probe: a frame that the switch transmits by one port and that must not return at another.
//!
//! It is plain Ethernet with the type for local experiments (IEEE 802-2014, 9.2), to a locally administered group
//! address, which bridges forward, unlike 01:80:c2:00:00:00 to 0f. Guests may bridge it into a VLAN; the parser
//! skips such tags.
//!
//! ```text
//!  0  destination 03:76:69:66:73:77    16  network        26  MAC address of the port
//!  6  source      02:76:69:66:73:77    18  port           32  when it was sent, in nanoseconds
//! 12  type 0x88b5                      22  owner          40  sequence number
//! 14  version 1, then a zero                              48  tag (SipHash-2-4, 128 bits, of 14 to 47)
//! ```
//!
//! All fields are in network byte order. Guests see probes and can send any frame, so each probe has a tag under a
//! key that is random at each start and secret. The tag does not cover the destination and source of the frame.
//!
//! Hosts that share a key send version 2 instead, see [`host`].

mod host;

pub use host::{HostKey, HostProbe, MAX_HOST_NAME, MAX_PORT_NAME, ProbeFrame, ProbeKeys, ProbeName, ReadProbe};

use std::fmt;

use siphasher::sip128::SipHasher24;

use super::{HEADER_LEN, Mac, TAG_LEN, tags};
use crate::time::MonoTime;

/// Version of the format.
const VERSION: u8 = 1;

/// Length of the authenticated content in bytes, including the version.
const CONTENT_LEN: usize = 34;

/// Key that authenticates this switch's probes.
#[derive(Clone, Copy)]
pub struct ProbeKey([u8; 16]);

impl ProbeKey {
    /// Creates the key from 16 random bytes.
    pub const fn new(random: [u8; 16]) -> ProbeKey {
        ProbeKey(random)
    }

    fn tag(&self, said: &[u8]) -> [u8; 16] {
        SipHasher24::new_with_key(&self.0).hash(said).as_bytes()
    }
}

impl fmt::Debug for ProbeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProbeKey") // keeps the key out of logs
    }
}

/// Contents of a probe: egress port, time and sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Time of transmission.
    pub sent: MonoTime,
    /// Sequence number among all probes.
    pub sequence: u64,
    /// The port id as a number.
    pub port: u32,
    /// The network of the port.
    pub network: u16,
    /// The VM of the port.
    pub vm: u32,
    /// The address of the port.
    pub mac: Mac,
}

/// The frame is no probe of this switch: wrong length, type, version or tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a probe of this switch")]
pub struct Forged;

impl Probe {
    /// Destination: a group address that no standard uses; its octets spell "vifsw".
    pub const DESTINATION: Mac = Mac::from_bits(0x0376_6966_7377);

    /// Source address, which this switch never learns.
    pub const SOURCE: Mac = Mac::from_bits(0x0276_6966_7377);

    /// The Ethernet type: Local Experimental 1.
    pub const KIND: u16 = 0x88b5;

    /// Length of a probe without VLAN tags, in bytes. No device has to pad it.
    pub const LEN: usize = HEADER_LEN + CONTENT_LEN + 16;

    /// Writes the frame.
    pub fn write(&self, key: &ProbeKey) -> [u8; Probe::LEN] {
        let mut frame = [0; Probe::LEN];
        let mut rest = &mut frame[..];
        let mut put = |bytes: &[u8]| {
            let (here, after) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            here.copy_from_slice(bytes);
            rest = after;
        };
        put(&Probe::DESTINATION.octets());
        put(&Probe::SOURCE.octets());
        put(&Probe::KIND.to_be_bytes());
        put(&[VERSION, 0]);
        self.say(put);
        let (said, tag) = frame.split_at_mut(HEADER_LEN + CONTENT_LEN);
        tag.copy_from_slice(&key.tag(&said[HEADER_LEN..]));
        frame
    }

    /// Passes the content after version and flags to `put`, piece by piece.
    fn say(&self, mut put: impl FnMut(&[u8])) {
        put(&self.network.to_be_bytes());
        put(&self.port.to_be_bytes());
        put(&self.vm.to_be_bytes());
        put(&self.mac.octets());
        put(&self.sent.nanos().to_be_bytes());
        put(&self.sequence.to_be_bytes());
    }

    /// Parses a whole frame with up to two VLAN tags.
    pub fn read(frame: &[u8], key: &ProbeKey) -> Result<Probe, Forged> {
        let body = body(frame)?;
        if body.len() != Probe::LEN - HEADER_LEN {
            return Err(Forged);
        }
        let mut said = verified(body, key)?;
        if take(&mut said) != Some([VERSION, 0]) {
            return Err(Forged);
        }
        Probe::parse(&mut said).ok_or(Forged)
    }

    /// Parses the content after version and flags.
    fn parse(rest: &mut &[u8]) -> Option<Probe> {
        Some(Probe {
            network: u16::from_be_bytes(take(rest)?),
            port: u32::from_be_bytes(take(rest)?),
            vm: u32::from_be_bytes(take(rest)?),
            mac: Mac::new(take(rest)?),
            sent: MonoTime::from_nanos(u64::from_be_bytes(take(rest)?)),
            sequence: u64::from_be_bytes(take(rest)?),
        })
    }
}

/// What follows the type of a frame to the probe address: content and tag.
fn body(frame: &[u8]) -> Result<&[u8], Forged> {
    let start = HEADER_LEN + tags(frame) * TAG_LEN;
    let (body, kind) = (frame.get(start..).ok_or(Forged)?, frame.get(start - 2..start).ok_or(Forged)?);
    let is_probe = frame[..6] == Probe::DESTINATION.octets() && kind == Probe::KIND.to_be_bytes();
    if is_probe { Ok(body) } else { Err(Forged) }
}

/// The content, if the tag behind it is that of the key.
fn verified<'b>(body: &'b [u8], key: &ProbeKey) -> Result<&'b [u8], Forged> {
    let (said, tag) = body.split_last_chunk::<16>().ok_or(Forged)?;
    // Compares as integers, for constant time.
    if u128::from_ne_bytes(key.tag(said)) == u128::from_ne_bytes(*tag) { Ok(said) } else { Err(Forged) }
}

/// Splits the next bytes off.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (here, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*here)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const KEY: ProbeKey = ProbeKey::new([9; 16]);

    fn probe() -> impl Strategy<Value = Probe> {
        (any::<(u64, u64, u32, u16, u32)>(), 0..1u64 << 48).prop_map(|((sent, sequence, port, network, vm), mac)| {
            Probe { sent: MonoTime::from_nanos(sent), sequence, port, network, vm, mac: Mac::from_bits(mac) }
        })
    }

    fn tagged(frame: &[u8], kinds: &[usize]) -> Vec<u8> {
        let mut bytes = frame.to_vec();
        for (number, kind) in kinds.iter().enumerate() {
            let [a, b] = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]][*kind];
            let at = 12 + number * TAG_LEN;
            bytes.splice(at..at, [a, b, 0x20, 0x05]);
        }
        bytes
    }

    proptest! {
        #[test]
        fn a_probe_is_parsed_back(probe in probe(), kinds in vec(0..3usize, 0..4), source in any::<[u8; 6]>()) {
            let mut frame = tagged(&probe.write(&KEY), &kinds);
            frame[6..12].copy_from_slice(&source);
            let expected = if kinds.len() <= 2 { Ok(probe) } else { Err(Forged) };
            prop_assert_eq!(Probe::read(&frame, &KEY), expected);
        }

        /// Any change except of the source, any truncation or extension.
        #[test]
        fn a_modified_probe_is_forged(probe in probe(), kinds in vec(0..3usize, 0..3), bit in 0..8 * Probe::LEN, extra in vec(any::<u8>(), 1..100), cut in 0..Probe::LEN) {
            let frame = probe.write(&KEY);
            if !(48..96).contains(&bit) {
                let mut bent = frame;
                bent[bit / 8] ^= 1 << (bit % 8);
                prop_assert_eq!(Probe::read(&bent, &KEY), Err(Forged));
                prop_assert_eq!(Probe::read(&tagged(&bent, &kinds), &KEY), Err(Forged));
            }
            let whole = tagged(&frame, &kinds);
            prop_assert_eq!(Probe::read(&whole[..cut + kinds.len() * TAG_LEN], &KEY), Err(Forged));
            prop_assert_eq!(Probe::read(&[whole, extra].concat(), &KEY), Err(Forged));
        }

        #[test]
        fn random_bytes_are_forged(bytes in vec(any::<u8>(), 0..120), to_us: bool, kind: bool) {
            let mut bytes = bytes;
            if to_us && bytes.len() >= 14 {
                bytes[..6].copy_from_slice(&Probe::DESTINATION.octets());
                if kind {
                    bytes[12..14].copy_from_slice(&Probe::KIND.to_be_bytes());
                }
            }
            prop_assert_eq!(Probe::read(&bytes, &KEY), Err(Forged));
        }

        #[test]
        fn a_probe_with_another_key_is_forged(probe in probe(), random: [u8; 16]) {
            let key = ProbeKey::new(random);
            prop_assert_eq!(Probe::read(&probe.write(&key), &KEY).is_ok(), random == [9; 16]);
        }
    }

    /// The wire format is documented for packet captures. The authentication tag is that of the reference
    /// implementation, whose first vectors the next test uses.
    #[test]
    fn the_wire_format_is_as_documented() {
        let probe = Probe {
            sent: MonoTime::from_nanos(0x0102_0304_0506_0708),
            sequence: 0x1112_1314_1516_1718,
            port: 0x2122_2324,
            network: 0x3132,
            vm: 0x4142_4344,
            mac: Mac::from_bits(0x0200_0000_0001),
        };
        let frame = probe.write(&KEY);
        assert_eq!(Probe::LEN, 64);
        let said = [
            &[3, 0x76, 0x69, 0x66, 0x73, 0x77, 2, 0x76, 0x69, 0x66, 0x73, 0x77, 0x88, 0xb5, 1, 0][..],
            &[0x31, 0x32, 0x21, 0x22, 0x23, 0x24, 0x41, 0x42, 0x43, 0x44, 2, 0, 0, 0, 0, 1],
            &[1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18],
        ];
        assert_eq!(frame[..48], said.concat());
        assert!(Probe::DESTINATION.is_group() && !Probe::DESTINATION.is_reserved_group());
        assert!(Probe::SOURCE.is_station());
    }

    /// First vector of the reference implementation (`vectors_sip128`): no input, key 00 to 0f.
    #[test]
    fn the_tag_is_siphash_2_4_of_128_bits() {
        let key = ProbeKey::new(std::array::from_fn(|at| u8::try_from(at).unwrap()));
        let expected = [0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93];
        assert_eq!(key.tag(&[]), expected);
    }
}
