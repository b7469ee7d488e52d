//! 802.1Q VLAN tags of uplinks and trunks, by which several networks share a device.
//!
//! Only the outermost tag with TPID 0x8100 is read. Tags with other TPIDs, and inner tags, belong to the network's
//! users.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use etherparse::SingleVlanHeaderSlice;

use super::{HEADER_LEN, Header, TAG_LEN};

/// TPID of an 802.1Q tag (IEEE 802.1Q-2018, table 9-1).
const TAGGED: u16 = 0x8100;

/// A VLAN id: 1 to 4094. 0 marks a priority tag, and 4095 is reserved (IEEE 802.1Q-2018, table 9-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vid(NonZeroU16);

impl Vid {
    /// Maximum VLAN id.
    pub const MAX: u16 = 4094;
    /// Minimum VLAN id.
    pub const ONE: Vid = Vid(NonZeroU16::MIN);

    /// Checks the range.
    pub const fn new(id: u16) -> Option<Vid> {
        match NonZeroU16::new(id) {
            Some(id) if id.get() <= Vid::MAX => Some(Vid(id)),
            _ => None,
        }
    }

    /// The number, 1 to 4094.
    pub const fn get(self) -> u16 {
        self.0.get()
    }

    /// The tag with this VLAN id, in wire format, priority 0.
    pub const fn tag(self) -> [u8; TAG_LEN] {
        self.tag_with(Priority(0))
    }

    /// The same with a priority.
    pub const fn tag_with(self, priority: Priority) -> [u8; TAG_LEN] {
        let [a, b] = TAGGED.to_be_bytes();
        let [c, d] = self.0.get().to_be_bytes();
        [a, b, c | priority.0 << 4, d]
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Why a text or number is not a VLAN id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a VLAN id; these are 1 to 4094")]
pub struct NotAVid;

impl TryFrom<u16> for Vid {
    type Error = NotAVid;

    fn try_from(id: u16) -> Result<Vid, NotAVid> {
        Vid::new(id).ok_or(NotAVid)
    }
}

impl FromStr for Vid {
    type Err = NotAVid;

    /// Parses a decimal number without surrounding characters.
    fn from_str(text: &str) -> Result<Vid, NotAVid> {
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NotAVid);
        }
        text.parse().ok().and_then(Vid::new).ok_or(NotAVid)
    }
}

/// Priority and drop eligibility of a frame: PCP and DEI, the upper four bits of its tag (IEEE 802.1Q-2018, 9.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Priority(u8);

impl Priority {
    /// Priority of the 802.1Q tag after the MAC addresses, for any VLAN id.
    pub fn of_tag(frame: &[u8]) -> Option<Priority> {
        match frame.get(HEADER_LEN - 2..HEADER_LEN + TAG_LEN)? {
            &[0x81, 0x00, high, _, _, _] => Some(Priority(high >> 4)),
            _ => None,
        }
    }

    /// Priority of a frame with a priority tag (VLAN id 0). On an uplink VLAN, the VLAN's tag replaces it (IEEE
    /// 802.1Q-2018, 6.9).
    pub fn of_priority_tag(frame: &[u8]) -> Option<Priority> {
        let tag = frame.get(HEADER_LEN..HEADER_LEN + 2)?;
        Priority::of_tag(frame).filter(|_| tag[0] & 0x0f == 0 && tag[1] == 0)
    }
}

/// Outermost tag of a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tagging {
    /// No 802.1Q tag.
    Untagged,
    /// VLAN id, 0 to 4095; 0 is a priority tag.
    Tagged(u16),
    /// The frame ends within the tag, or before the ethertype after it.
    CutOff,
}

impl Tagging {
    /// Parses the outermost tag of a frame with this header.
    #[inline]
    pub fn read(header: &Header, frame: &[u8]) -> Tagging {
        if header.kind != TAGGED {
            return Tagging::Untagged;
        }
        match frame.get(HEADER_LEN..).map(SingleVlanHeaderSlice::from_slice) {
            Some(Ok(tag)) => Tagging::Tagged(tag.vlan_identifier().value()),
            _ => Tagging::CutOff,
        }
    }
}

/// Whether a receiver on an untagged port assigns the frame to no VLAN: it has no 802.1Q tag, or a priority tag and
/// none after it, which a switch on the way might expose.
pub fn is_without_vlan(frame: &[u8]) -> bool {
    const BEHIND: usize = HEADER_LEN + TAG_LEN - 2;
    let Some(header) = Header::read(frame) else { return true };
    match Tagging::read(&header, frame) {
        Tagging::Untagged => true,
        Tagging::Tagged(0) => frame.get(BEHIND..BEHIND + 2) != Some(&TAGGED.to_be_bytes()),
        // A truncated tag may be completed by padding on the way.
        Tagging::Tagged(_) | Tagging::CutOff => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_number_and_tag_are_parsed_back(id: u16) {
            let vid = Vid::new(id);
            prop_assert_eq!(vid.is_some(), (1..=4094).contains(&id));
            prop_assert_eq!(Vid::try_from(id).ok(), vid);
            prop_assert_eq!(id.to_string().parse::<Vid>().ok(), vid);
            if let Some(vid) = vid {
                prop_assert_eq!((vid.get(), vid.to_string()), (id, id.to_string()));
                let mut frame = vec![0; 12];
                frame.extend(vid.tag());
                frame.extend([0x08, 0x00]);
                let header = Header::read(&frame).unwrap();
                prop_assert_eq!(Tagging::read(&header, &frame), Tagging::Tagged(id));
            }
        }

        #[test]
        fn any_bytes_are_parsed(mut bytes in vec(any::<u8>(), 14..40), tagged: bool) {
            if tagged {
                bytes[12..14].copy_from_slice(&[0x81, 0x00]);
            }
            let header = Header::read(&bytes).unwrap();
            match Tagging::read(&header, &bytes) {
                Tagging::Untagged => prop_assert_ne!(&bytes[12..14], &[0x81, 0x00]),
                Tagging::Tagged(id) => {
                    prop_assert!(bytes.len() >= HEADER_LEN + TAG_LEN);
                    prop_assert_eq!(id, u16::from_be_bytes([bytes[14] & 0x0f, bytes[15]]));
                }
                Tagging::CutOff => prop_assert!(bytes.len() < HEADER_LEN + TAG_LEN),
            }
        }
    }

    #[test]
    fn a_priority_is_kept_in_another_tag() {
        let frame = |tag: &[u8]| [&[0; 12], tag, &[0x88, 0xb5]].concat();
        for (tag, of_tag, of_priority_tag) in [
            (&[0x81, 0x00, 0xd0, 0x00][..], Some(0xd), Some(0xd)),
            (&[0x81, 0x00, 0x00, 0x00], Some(0), Some(0)),
            (&[0x81, 0x00, 0xd0, 0x65], Some(0xd), None),
            (&[0x81, 0x00, 0x01, 0x00], Some(0), None),
            (&[0x88, 0xa8, 0xd0, 0x00], None, None),
            (&[0x81, 0x00], None, None),
            (&[], None, None),
        ] {
            let frame = frame(tag);
            assert_eq!(Priority::of_tag(&frame).map(|it| it.0), of_tag, "{tag:x?}");
            assert_eq!(Priority::of_priority_tag(&frame).map(|it| it.0), of_priority_tag, "{tag:x?}");
        }
        let vid = Vid::new(0x123).unwrap();
        assert_eq!(vid.tag_with(Priority(0xd)), [0x81, 0x00, 0xd1, 0x23]);
        assert_eq!(vid.tag(), [0x81, 0x00, 0x01, 0x23]);
    }

    #[test]
    fn near_misses_are_refused() {
        for text in ["", "0", "4095", "+5", " 5", "5 ", "0x5", "65536", "99999999999", "-1", "native"] {
            assert_eq!(text.parse::<Vid>(), Err(NotAVid), "{text}");
        }
        assert_eq!("0120".parse::<Vid>(), Ok(Vid::new(120).unwrap()));
    }

    #[test]
    fn other_tpids_are_no_tags() {
        for kind in [0x88a8u16, 0x9100, 0x0800, 0x0026] {
            let mut frame = vec![0; 12];
            frame.extend(kind.to_be_bytes());
            frame.extend([0, 5, 8, 0]);
            assert_eq!(Tagging::read(&Header::read(&frame).unwrap(), &frame), Tagging::Untagged, "{kind:x}");
        }
    }

    #[test]
    fn a_priority_tag_is_no_vlan() {
        let frame = |after: &[u8]| [&[0; 12], after].concat();
        for (after, expected) in [
            (&[][..], true),
            (&[0x08, 0x00], true),
            (&[0x88, 0xa8, 0, 5, 0x08, 0x00], true),
            (&[0x81, 0x00, 0xe0, 0, 0x88, 0x92], true),
            (&[0x81, 0x00, 0xe0, 0, 0x81, 0x00], false),
            (&[0x81, 0x00, 0xe0, 0, 0x81, 0x00, 0, 5, 0x08, 0x00], false),
            (&[0x81, 0x00, 0xe0, 5, 0x08, 0x00], false),
            (&[0x81, 0x00, 0x0f, 0xff, 0x08, 0x00], false),
            (&[0x81, 0x00, 0, 0, 0x08], false),
            (&[0x81, 0x00], false),
        ] {
            assert_eq!(is_without_vlan(&frame(after)), expected, "{after:x?}");
        }
    }
}
