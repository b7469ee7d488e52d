//! Versions of the CNI specification, and its commands.

use std::fmt;

/// A version of the specification that the plugin implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: with CHECK.
    V0_4_0,
    /// 1.0.0: addresses without `version`.
    V1_0_0,
    /// 1.1.0: with GC and STATUS, `mtu` and `socketPath`.
    V1_1_0,
}

impl SpecVersion {
    /// All, the oldest first.
    pub const ALL: [SpecVersion; 4] =
        [SpecVersion::V0_3_1, SpecVersion::V0_4_0, SpecVersion::V1_0_0, SpecVersion::V1_1_0];

    /// The newest one.
    pub const NEWEST: SpecVersion = SpecVersion::V1_1_0;

    /// As in `cniVersion`.
    pub const fn name(self) -> &'static str {
        match self {
            SpecVersion::V0_3_1 => "0.3.1",
            SpecVersion::V0_4_0 => "0.4.0",
            SpecVersion::V1_0_0 => "1.0.0",
            SpecVersion::V1_1_0 => "1.1.0",
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<SpecVersion> {
        SpecVersion::ALL.into_iter().find(|version| version.name() == name)
    }

    /// All names, for messages.
    pub fn names() -> String {
        SpecVersion::ALL.map(SpecVersion::name).join(", ")
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a runtime asks for: `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Verify that it is attached.
    Check,
    /// Detach all that are not listed.
    Gc,
    /// Whether containers can be attached.
    Status,
    /// Print the versions.
    Version,
}

impl Command {
    /// All.
    pub const ALL: [Command; 6] =
        [Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status, Command::Version];

    /// As in `CNI_COMMAND`.
    pub const fn name(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Command> {
        Command::ALL.into_iter().find(|command| command.name() == name)
    }

    /// The first version of the specification that has it.
    pub const fn since(self) -> SpecVersion {
        match self {
            Command::Add | Command::Del | Command::Version => SpecVersion::V0_3_1,
            Command::Check => SpecVersion::V0_4_0,
            Command::Gc | Command::Status => SpecVersion::V1_1_0,
        }
    }

    /// Variables that the runtime has to set for it.
    pub const fn required(self) -> &'static [&'static str] {
        match self {
            Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Command::Gc | Command::Status | Command::Version => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_age() {
        assert!(SpecVersion::ALL.is_sorted());
        assert_eq!(SpecVersion::ALL.last(), Some(&SpecVersion::NEWEST));
        assert_eq!(SpecVersion::named("1.0.0"), Some(SpecVersion::V1_0_0));
        assert_eq!(SpecVersion::named("2.0.0"), None);
        assert_eq!(SpecVersion::names(), "0.3.1, 0.4.0, 1.0.0, 1.1.0");
    }

    #[test]
    fn commands_have_the_names_of_the_specification() {
        for command in Command::ALL {
            assert_eq!(Command::named(command.name()), Some(command));
        }
        assert_eq!(Command::named("add"), None);
    }
}
