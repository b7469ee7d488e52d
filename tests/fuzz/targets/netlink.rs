//! Messages of netlink, as the kernel sends them and as it does not: link events and notifications of ethtool.

use std::collections::HashSet;

use vifswitch::sys::ethtool_events::name_in;
use vifswitch::sys::link_events::LinkTable;

use super::Input;

const IFLA_EVENT: u8 = 44;

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() {
        0 => drop(name_in(input.0, 16)),
        _ => {
            let mut table = LinkTable::default();
            // In datagrams of these lengths.
            while !input.0.is_empty() {
                let len = usize::from(input.word());
                let datagram = input.bytes(len);
                let (mut changed, mut again) = (HashSet::new(), HashSet::new());
                let _ = table.take(datagram, &mut changed);
                let _ = table.take(datagram, &mut again);
                assert!(again.is_subset(&changed), "{again:?}, before {changed:?}");
                if is_one_message(datagram) && !names_event(datagram) {
                    assert!(again.is_empty(), "a message that comes again reports {again:?}");
                }
            }
        }
    }
}

/// Whether a datagram is a single message, by its length.
fn is_one_message(datagram: &[u8]) -> bool {
    datagram.first_chunk().is_some_and(|&len| (u32::from_le_bytes(len) as usize).next_multiple_of(4) >= datagram.len())
}

/// Whether it may have the attribute IFLA_EVENT: a change of features is reported each time, as its message does not say which.
fn names_event(datagram: &[u8]) -> bool {
    datagram.windows(2).any(|kind| kind[0] == IFLA_EVENT && kind[1] & 0x3f == 0)
}
