//! Reserved group addresses: 01:80:c2:00:00:00 to 0f, which a standard bridge does not forward (IEEE 802.1Q-2018,
//! table 8-1). Between VMs most of them pass, because the guests' LLDP, LACP, EAPOL and spanning tree are not the
//! switch's. Each network has a policy; dropped frames are counted by group.

use std::fmt;

use crate::wire::Mac;

/// Whether an address is link-local: spanning tree, PAUSE, LACP, EAPOL, LLDP and the like (IEEE 802.1Q-2018, table
/// 8-1), and PVST+. Computed without a branch.
#[inline(always)]
pub(super) const fn is_link_local_group(mac: Mac) -> bool {
    mac.is_reserved_group() | (mac.bits() == Mac::PVST.bits())
}

/// Reserved groups that pass between the VMs of a network: bit n is 01:80:c2:00:00:0n. To and from uplinks none
/// passes, regardless of the mask.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReservedMask(pub u16);

impl ReservedMask {
    /// All but PAUSE (IEEE 802.3, 31B), which is flow control on one link.
    pub const VM_DEFAULT: ReservedMask = ReservedMask(0xfffd);
    /// All.
    pub const ALL: ReservedMask = ReservedMask(0xffff);
    /// None, as an IEEE 802.1Q bridge.
    pub const NONE: ReservedMask = ReservedMask(0);

    /// Whether a frame to this address, of any kind, is dropped.
    #[inline]
    pub const fn refuses(self, mac: Mac) -> bool {
        mac.is_reserved_group() && self.0 >> (mac.bits() & 0xf) & 1 == 0
    }
}

impl Default for ReservedMask {
    fn default() -> ReservedMask {
        ReservedMask::VM_DEFAULT
    }
}

impl fmt::Debug for ReservedMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReservedMask({:#06x})", self.0)
    }
}

/// A link-local group, by the name under which its dropped frames are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReservedGroup(u8);

impl ReservedGroup {
    /// Number of groups.
    pub const COUNT: usize = 17;

    /// The group with this address, if any.
    pub const fn new(mac: Mac) -> Option<ReservedGroup> {
        if mac.bits() == Mac::PVST.bits() {
            return Some(ReservedGroup(16));
        }
        #[allow(clippy::cast_possible_truncation)] // four bits
        if mac.is_reserved_group() { Some(ReservedGroup((mac.bits() & 0xf) as u8)) } else { None }
    }

    /// All groups, in the order of their counters.
    pub fn all() -> impl Iterator<Item = ReservedGroup> {
        (0..17).map(ReservedGroup)
    }

    /// Index of its counter.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its name in the API and in the metrics.
    pub const fn name(self) -> &'static str {
        match self.0 {
            0x0 => "bpdu",
            0x1 => "pause",
            0x2 => "slow_protocols",
            0x3 => "eapol",
            0x4 => "reserved_04",
            0x5 => "reserved_05",
            0x6 => "reserved_06",
            0x7 => "reserved_07",
            0x8 => "reserved_08",
            0x9 => "reserved_09",
            0xa => "reserved_0a",
            0xb => "reserved_0b",
            0xc => "reserved_0c",
            0xd => "reserved_0d",
            0xe => "lldp",
            0xf => "reserved_0f",
            _ => "pvst",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mask_covers_sixteen_addresses(mask: u16, near in 0x0180_c1ff_fff0..0x0180_c200_0020u64, far in 0..1u64 << 48) {
            for bits in [near, far] {
                let mac = Mac::from_bits(bits);
                let text = mac.to_string();
                let place = text.strip_prefix("01:80:c2:00:00:0").map(|n| u16::from_str_radix(n, 16).unwrap());
                prop_assert_eq!(ReservedMask(mask).refuses(mac), place.is_some_and(|n| mask & 1 << n == 0));
                let group = ReservedGroup::new(mac).filter(|group| group.name() != "pvst");
                prop_assert_eq!(group.map(ReservedGroup::index), place.map(usize::from));
                prop_assert_eq!(is_link_local_group(mac), ReservedGroup::new(mac).is_some());
            }
        }
    }

    #[test]
    fn each_address_has_its_index_and_name() {
        let mut names = std::collections::HashSet::new();
        for (place, group) in ReservedGroup::all().enumerate() {
            assert_eq!(group.index(), place);
            assert!(names.insert(group.name()));
        }
        assert_eq!(names.len(), ReservedGroup::COUNT);
        let name = |mac: &str| ReservedGroup::new(mac.parse().unwrap()).unwrap().name();
        assert_eq!(
            ["01:80:c2:00:00:00", "01:80:c2:00:00:01", "01:80:c2:00:00:0e", "01:00:0c:cc:cc:cd"].map(name),
            ["bpdu", "pause", "lldp", "pvst"]
        );
    }
}
