//! Lines to the outside: an uplink, or the two of a group, of which one carries the frames.
//!
//! What is learned outside is learned behind the line, network by network, and not behind one of
//! its uplinks: so it stays where it is when the other one takes over.

use crate::control::compile::failover::Groups;
use crate::control::config::{Config, Uplink, UplinkNetwork};

/// What a line is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UplinkGroupName {
    /// The uplink of this id, alone.
    Uplink(String),
    /// The uplinks of this group.
    Group(String),
}

impl Uplink {
    /// The line that it is, or is one of.
    pub fn group_name(&self) -> UplinkGroupName {
        match &self.group {
            Some(group) => UplinkGroupName::Group(group.clone()),
            None => UplinkGroupName::Uplink(self.id.clone()),
        }
    }
}

/// A line of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkGroup {
    /// What it is known by.
    pub name: UplinkGroupName,
    /// Its uplinks, as indices into the configuration; the preferred one first. There is one at least.
    pub members: Vec<usize>,
}

impl UplinkGroup {
    /// The networks that it carries: all of its uplinks carry the same.
    pub fn networks<'c>(&self, config: &'c Config) -> &'c [UplinkNetwork] {
        self.members.first().map_or(&[], |&first| &config.uplinks[first].networks)
    }

    /// The uplink that carries the frames, as an index into the configuration.
    pub fn active(&self, groups: &Groups) -> usize {
        let place = match &self.name {
            UplinkGroupName::Uplink(_) => 0,
            UplinkGroupName::Group(group) => groups.active(group),
        };
        self.members.get(place).or(self.members.first()).copied().unwrap_or_default()
    }
}

/// All lines of a configuration, in its order.
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
