//! Lines to the outside: an uplink, or the two of a group, of which one carries the frames.
//!
//! What is learned outside is learned behind the line, network by network, and not behind one of
//! its uplinks: so it stays where it is when the other one takes over.

use super::config::{Carried, Config, Uplink};
use super::failover::Groups;

/// What a line is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LineName {
    /// The uplink of this id, alone.
    Uplink(String),
    /// The uplinks of this group.
    Group(String),
}

impl Uplink {
    /// The line that it is, or is one of.
    pub fn line(&self) -> LineName {
        match &self.group {
            Some(group) => LineName::Group(group.clone()),
            None => LineName::Uplink(self.id.clone()),
        }
    }
}

/// A line of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What it is known by.
    pub name: LineName,
    /// Its uplinks, as indices into the configuration; the preferred one first. There is one at least.
    pub members: Vec<usize>,
}

impl Line {
    /// The networks that it carries: all of its uplinks carry the same.
    pub fn networks<'c>(&self, config: &'c Config) -> &'c [Carried] {
        self.members.first().map_or(&[], |&first| &config.uplinks[first].networks)
    }

    /// The uplink that carries the frames, as an index into the configuration.
    pub fn active(&self, groups: &Groups) -> usize {
        let place = match &self.name {
            LineName::Uplink(_) => 0,
            LineName::Group(group) => groups.active(group),
        };
        self.members.get(place).or(self.members.first()).copied().unwrap_or_default()
    }
}

/// All lines of a configuration, in its order.
pub fn lines(config: &Config) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (index, uplink) in config.uplinks.iter().enumerate() {
        let name = uplink.line();
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.members.push(index),
            None => lines.push(Line { name, members: vec![index] }),
        }
    }
    lines
}
