//! Sender of a frame in ARP, IP and neighbor discovery. Bytes behind the first 2048 do not matter, nor does the VLAN tag
//! that a trunk adds.

use vifswitch::wire::{HEADER_LEN, SenderInfo, is_partial_checksum};

/// Bytes that are read.
const FIRST: usize = HEADER_LEN + 2048;

pub fn run(data: &[u8]) {
    let sender = SenderInfo::read(data);
    let _ = is_partial_checksum(data);
    if data.len() > FIRST {
        assert_eq!(SenderInfo::read(&data[..FIRST]), sender, "bytes far behind are read");
    }
    if data.len() >= HEADER_LEN && data.len() + 4 <= FIRST {
        let mut tagged = data.to_vec();
        tagged.splice(12..12, [0x81, 0x00, 0x20, 0x65]);
        assert_eq!(SenderInfo::read(&tagged), sender, "a tag changes the sender");
    }
    if sender != SenderInfo::Unreadable && data.len() < FIRST {
        let mut longer = data.to_vec();
        longer.extend([0; 46]);
        assert_eq!(SenderInfo::read(&longer), sender, "padding changes the sender");
    }
}
