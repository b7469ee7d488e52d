//! Messages of netlink, as the kernel sends them and as it does not: link events and notifications of ethtool.

use std::collections::HashSet;

use vifswitch::sys::ethtool_events::name_in;
use vifswitch::sys::link_events::LinkTable;

use super::Input;

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
            }
        }
    }
}
