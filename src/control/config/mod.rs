//! The configuration: from a text to validated values.
//!
//! ```text
//!   TOML ┐  document       raw             model
//!        ├─► a tree, ────► the tables, ──► values checked, ───────► conflicts between tables
//!   JSON ┘  with lines     by their keys   defaults filled in
//!           (parse)        (raw)           (lower, into model)      (validate; lint: warnings)
//! ```
//!
//! Both languages have the same structure and pass the same checks. No step stops at the first error: all
//! [`ConfigError`]s of a file are reported together, each with location, value and remedy. Only a syntax error is
//! reported alone.
//!
//! [`Config::to_raw`] is the inverse: parsing its result gives an equal [`Config`].

mod device;
mod diagnostics;
mod error;
mod lint;
mod listeners;
mod lower;
mod lowering;
mod model;
mod named;
mod parse;
mod patch;
mod policy;
mod probe_key;
pub mod raw;
mod security;
mod serialize;
mod shared;
mod source;
mod sparse;
mod stored;
mod storm;
pub(super) mod trunk;
mod uplink;
mod validate;

#[cfg(test)]
pub(crate) mod testgen;

use std::path::Path;

use error::SyntaxError;
pub use error::{ConfigError, ConfigErrors, kind};
pub use lint::Warning;
pub use lowering::wrong_id;
pub use model::{
    Config, Device, IpAllocation, Network, Packet, Poll, Port, PortAttachment, Subport, SwitchSettings, Tap, Uplink,
    UplinkNetwork, Vm, VmSettings, Writers, Xdp,
};
pub use named::Named;
pub use patch::{
    PortKeys, parse_json_over, parse_json_part, parse_network_json, parse_port_json, parse_port_keys_json,
    parse_ports_json, parse_uplink_json, parse_vm_json,
};
pub use policy::{Activation, AddressPair, Lifetime, PortSecurity, UnknownUnicast, WrongReservedGroups};
pub use shared::{Shared, differing};
pub use source::{ConfigFile, Source};
pub use stored::{StoredConfig, UnknownParts, read_stored};
pub use storm::{BitRate, CopiesPolicy, Storm, StormAction, StormLimit, StormPolicy};

use diagnostics::Diagnostics;
use parse::Node;
use raw::Read;

pub(crate) use raw::nearest;

/// Parses and validates the file at `path`, and keeps its raw content: JSON if its name ends in `.json`, else
/// TOML.
pub fn load_file(path: impl AsRef<Path>) -> Result<ConfigFile, ConfigErrors> {
    Source::read(path.as_ref())?.config_file()
}

/// Parses and validates a TOML text. Errors refer to `file_name`.
pub fn parse_toml(text: &str, file_name: &str) -> Result<Config, ConfigErrors> {
    check(parse::from_toml(text), file_name)
}

/// Parses and validates a JSON text of the same structure. Errors refer to `file_name`.
pub fn parse_json(text: &str, file_name: &str) -> Result<Config, ConfigErrors> {
    check(parse::from_json(text), file_name)
}

/// Validates tables that come from no text. Errors name no file.
pub fn check_raw(raw: &raw::Config) -> Result<Config, ConfigErrors> {
    // Serialising fails only for maps with keys that are no strings.
    parse_json(&serde_json::to_string(raw).unwrap_or_default(), "")
}

/// The same for a part of a configuration, in which parents of subports may be missing.
pub(super) fn check_part(raw: &raw::Config) -> Result<Config, ConfigErrors> {
    let text = serde_json::to_string(raw).unwrap_or_default();
    check_with(parse::from_json(&text), "", SwitchSettings::default(), |_, _| {})
}

fn check(document: Result<Node, SyntaxError>, file_name: &str) -> Result<Config, ConfigErrors> {
    check_over(document, file_name, SwitchSettings::default())
}

/// Validates a document; without `[switch]`, it gets these settings.
fn check_over(
    document: Result<Node, SyntaxError>,
    file_name: &str,
    switch: SwitchSettings,
) -> Result<Config, ConfigErrors> {
    check_with(document, file_name, switch, trunk::check)
}

/// The same, with a further check `also`.
fn check_with(
    document: Result<Node, SyntaxError>,
    file_name: &str,
    switch: SwitchSettings,
    also: impl FnOnce(&Config, &mut Diagnostics<'_>),
) -> Result<Config, ConfigErrors> {
    let root = document.map_err(|error| ConfigErrors::from(ConfigError::of_syntax(file_name, error)))?;
    let mut diagnostics = Diagnostics::new(file_name, &root);
    let raw = raw::Config::read(&root, &diagnostics::Path::default(), &mut diagnostics).unwrap_or_default();
    let mut config = lower::lower(&raw, &mut diagnostics);
    if raw.switch.is_none() {
        config.switch = switch;
    }
    validate::check(&config, &mut diagnostics);
    also(&config, &mut diagnostics);
    // Last: errors name ports by their places in the text.
    config.order_ports();
    diagnostics.finish().map_or(Ok(config), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_written_configuration_is_read_back(config in testgen::config()) {
            let toml = toml::to_string(&config).unwrap();
            prop_assert_eq!(parse_toml(&toml, "x"), Ok(config.clone()), "{}", toml);
            let json = serde_json::to_string(&config).unwrap();
            prop_assert_eq!(parse_json(&json, "x"), Ok(config), "{}", json);
        }
    }

    #[test]
    fn an_empty_configuration_has_the_defaults() {
        assert_eq!(parse_toml("", "x"), Ok(Config::default()));
        assert_eq!(parse_json("{}", "x"), Ok(Config::default()));
    }

    #[test]
    fn the_defaults_are_written_in_full() {
        let raw = Config { networks: vec![Network::new("net1")], ..Config::default() }.to_raw();
        let json = serde_json::to_value(&raw).unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let all = |known: &[&str], but: &[&str]| {
            let mut known: Vec<_> = known.iter().filter(|key| !but.contains(key)).map(ToString::to_string).collect();
            known.sort();
            known
        };
        assert_eq!(keys(&json["networks"][0]), all(raw::Network::KEYS, &["owner"]));
        // a disabled setting has no value
        let off = ["api_read", "api_writers", "metrics", "pages", "probe_key"];
        assert_eq!(keys(&json["switch"]), all(raw::Switch::KEYS, &off));
    }
}
