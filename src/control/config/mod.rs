//! The configuration: from a text to what it means.
//!
//! ```text
//!   TOML ┐  document       written         meant
//!        ├─► a tree, ────► the tables, ──► every value checked, ──► admission: the values
//!   JSON ┘  with lines     by their keys   every default filled     do not contradict each other
//! ```
//!
//! Both languages have the same shape and go through the same checks. No step stops at the first
//! mistake: all [`Problem`]s of a file are reported at once, each with its place, its value and
//! what would be right. Only a text that does not parse is alone with its first syntax error.
//!
//! The way back is [`Config::to_written`]; reading what it writes gives an equal [`Config`].

mod admission;
mod device;
mod document;
mod fragment;
mod meaning;
mod meant;
mod notes;
mod policy;
mod problem;
mod remarks;
mod security;
mod source;
mod sparse;
mod stored;
mod storm;
pub(super) mod trunk;
mod uplink;
mod way_back;
pub mod written;

#[cfg(test)]
pub(crate) mod strategy;

use std::path::Path;

pub use fragment::{PortKeys, parse_json_over, parse_port_keys_json, parse_ports_json};
pub use meaning::wrong_id;
pub use meant::{
    Base, Carried, Config, Device, IpAllocation, Named, Network, Packet, Poll, Port, Subport, SwitchSettings, Tap,
    Uplink, Vm, VmSettings, Xdp,
};
pub use policy::{Activation, AddressPair, PortSecurity, UnknownUnicast, WrongReservedGroups};
pub use problem::{Errors, Problem, kind};
pub use remarks::Remark;
pub use source::{ConfigFile, Source};
pub use stored::{Stored, Unread, read_stored};
pub use storm::{BitRate, CopiesPolicy, Storm, StormAction, StormLimit, StormPolicy};

use document::{Node, SyntaxError};
use notes::Notes;
use written::Read;

pub(super) use written::nearest;

/// Reads and judges the file at `path`: JSON if its name ends in `.json`, TOML otherwise.
pub fn load(path: impl AsRef<Path>) -> Result<Config, Errors> {
    Source::read(path.as_ref())?.config()
}

/// The same, with what is written in it.
pub fn load_file(path: impl AsRef<Path>) -> Result<ConfigFile, Errors> {
    Source::read(path.as_ref())?.config_file()
}

/// Reads and judges a TOML text. `file_name` is what its problems call it.
pub fn parse_toml(text: &str, file_name: &str) -> Result<Config, Errors> {
    judge(document::from_toml(text), file_name)
}

/// Reads and judges a JSON text of the same shape. `file_name` is what its problems call it.
pub fn parse_json(text: &str, file_name: &str) -> Result<Config, Errors> {
    judge(document::from_json(text), file_name)
}

/// Judges tables that did not come from a text, as if they had. Its problems name no file.
pub fn judge_written(written: &written::Config) -> Result<Config, Errors> {
    // It has no map with other keys than texts, which is all that could fail.
    parse_json(&serde_json::to_string(written).unwrap_or_default(), "")
}

/// The same, of tables that stand for a part of a configuration: the parents of its subports may be in another.
pub(super) fn judge_part(written: &written::Config) -> Result<Config, Errors> {
    let text = serde_json::to_string(written).unwrap_or_default();
    judge_some(document::from_json(&text), "", SwitchSettings::default(), |_, _| {})
}

fn judge(document: Result<Node, SyntaxError>, file_name: &str) -> Result<Config, Errors> {
    judge_over(document, file_name, SwitchSettings::default())
}

/// What the document means beside these settings of the process, which stay as they are if it has no
/// `[switch]`.
fn judge_over(document: Result<Node, SyntaxError>, file_name: &str, switch: SwitchSettings) -> Result<Config, Errors> {
    judge_some(document, file_name, switch, trunk::check)
}

/// The same; `also` has a look at all of it.
fn judge_some(
    document: Result<Node, SyntaxError>,
    file_name: &str,
    switch: SwitchSettings,
    also: impl FnOnce(&Config, &mut Notes<'_>),
) -> Result<Config, Errors> {
    let root = document.map_err(|error| Errors::from(Problem::of_syntax(file_name, error)))?;
    let mut notes = Notes::new(file_name, &root);
    let written = written::Config::read(&root, &notes::Path::default(), &mut notes).unwrap_or_default();
    let mut config = meaning::config(&written, &mut notes);
    if written.switch.is_none() {
        config.switch = switch;
    }
    admission::check(&config, &mut notes);
    also(&config, &mut notes);
    notes.finish().map_or(Ok(config), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(config in strategy::config()) {
            let toml = toml::to_string(&config).unwrap();
            prop_assert_eq!(parse_toml(&toml, "x"), Ok(config.clone()), "{}", toml);
            let json = serde_json::to_string(&config).unwrap();
            prop_assert_eq!(parse_json(&json, "x"), Ok(config), "{}", json);
        }
    }

    #[test]
    fn nothing_written_means_the_defaults() {
        assert_eq!(parse_toml("", "x"), Ok(Config::default()));
        assert_eq!(parse_json("{}", "x"), Ok(Config::default()));
    }

    #[test]
    fn the_defaults_are_written_in_full() {
        let written = Config { networks: vec![Network::new("net1")], ..Config::default() }.to_written();
        let json = serde_json::to_value(&written).unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let all = |known: &[&str], but: &str| {
            let mut known: Vec<_> = known.iter().filter(|key| **key != but).map(ToString::to_string).collect();
            known.sort();
            known
        };
        assert_eq!(keys(&json["networks"][0]), all(written::Network::KEYS, ""));
        // what is off has no value to be written
        assert_eq!(keys(&json["switch"]), all(written::Switch::KEYS, "metrics"));
    }
}
