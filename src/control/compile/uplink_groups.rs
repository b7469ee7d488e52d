//! Uplink groups: a single uplink, or two of which one is active.
//!
//! External stations are learned at the group's port on each network, not at one of its uplinks: no station moves when
//! the other one takes over.

use serde::{Deserialize, Serialize};

use crate::control::compile::failover::Groups;
use crate::control::config::{Config, Uplink, UplinkNetwork};

/// Key of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum UplinkGroupName {
    /// A single uplink with this id.
    Uplink(String),
    /// The uplinks of this group.
    Group(String),
}

impl Uplink {
    /// Key of an uplink's group.
    pub fn group_name(&self) -> UplinkGroupName {
        match &self.group {
            Some(group) => UplinkGroupName::Group(group.clone()),
            None => UplinkGroupName::Uplink(self.id.clone()),
        }
    }
}

/// A group of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkGroup {
    /// Key.
    pub name: UplinkGroupName,
    /// Indices of its uplinks, at least one, the preferred one first.
    pub members: Vec<usize>,
}

impl UplinkGroup {
    /// Networks of the group: equal for all of its uplinks.
    pub fn networks<'c>(&self, config: &'c Config) -> &'c [UplinkNetwork] {
        self.members.first().map_or(&[], |&first| &config.uplinks[first].networks)
    }

    /// Index of the active uplink.
    pub fn active(&self, groups: &Groups) -> usize {
        let place = match &self.name {
            UplinkGroupName::Uplink(_) => 0,
            UplinkGroupName::Group(group) => groups.active(group),
        };
        self.members.get(place).or(self.members.first()).copied().unwrap_or_default()
    }
}

/// All groups of a configuration, in order.
pub fn uplink_groups(config: &Config) -> Vec<UplinkGroup> {
    let mut lines: Vec<UplinkGroup> = Vec::new();
    for (index, uplink) in config.uplinks.iter().enumerate() {
        let name = uplink.group_name();
        match lines.iter_mut().find(|group| group.name == name) {
            Some(group) => group.members.push(index),
            None => lines.push(UplinkGroup { name, members: vec![index] }),
        }
    }
    lines
}
