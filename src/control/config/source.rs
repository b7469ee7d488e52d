//! A text in either language, and what it can be parsed to.

use std::fs;
use std::path::Path;

use super::check;
use super::error::{ConfigError, ConfigErrors, SyntaxError, kind};
use super::model::{Config, Port, SwitchSettings};
use super::parse::{self, Node};
use super::patch;

/// A text, and its name in errors.
#[derive(Debug, Clone)]
pub struct Source {
    name: String,
    text: String,
    is_json: bool,
}

/// A configuration file: validated and raw.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigFile {
    /// Validated configuration.
    pub config: Config,
    /// Raw content as JSON.
    pub raw: serde_json::Value,
}

/// A file that has all values that are not defaults.
impl From<Config> for ConfigFile {
    fn from(config: Config) -> ConfigFile {
        let raw = config.to_sparse();
        ConfigFile { config, raw }
    }
}

impl Source {
    /// Reads the file at `path`: JSON if its name ends in `.json`, else by content.
    pub fn read(path: &Path) -> Result<Source, ConfigErrors> {
        let name = path.display().to_string();
        let bytes = fs::read(path).map_err(|error| unreadable(&name, format!("cannot be read: {error}")))?;
        let mut source = Source::of(name, bytes)?;
        source.is_json |= path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        Ok(source)
    }

    /// A text from another source. No TOML begins with a brace: a text that does is JSON.
    pub fn of(name: impl Into<String>, bytes: Vec<u8>) -> Result<Source, ConfigErrors> {
        let name = name.into();
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            unreadable(&name, format!("not a text; the byte at {at} is not UTF-8"))
        })?;
        let is_json = text.trim_start().starts_with('{');
        Ok(Source { name, text, is_json })
    }

    /// Parses a configuration.
    pub fn config(&self) -> Result<Config, ConfigErrors> {
        check(self.document(), &self.name)
    }

    /// Parses a part of a configuration, whose networks may be those of others.
    pub fn part(&self) -> Result<Config, ConfigErrors> {
        patch::part(self.document(), &self.name, SwitchSettings::default())
    }

    /// Parses a configuration, and keeps the raw content.
    pub fn config_file(&self) -> Result<ConfigFile, ConfigErrors> {
        let config = self.config()?;
        Ok(ConfigFile { config, raw: self.to_json()? })
    }

    /// Parses one port, and the VM named by its `device_id`.
    pub fn port(&self) -> Result<(String, Port), ConfigErrors> {
        patch::port(self.document(), &self.name)
    }

    /// The raw content as JSON, without defaults.
    pub fn to_json(&self) -> Result<serde_json::Value, ConfigErrors> {
        let node = self.document().map_err(|error| ConfigErrors::from(ConfigError::of_syntax(&self.name, error)))?;
        Ok(node.into())
    }

    fn document(&self) -> Result<Node, SyntaxError> {
        if self.is_json { parse::from_json(&self.text) } else { parse::from_toml(&self.text) }
    }
}

fn unreadable(name: &str, message: String) -> ConfigErrors {
    ConfigErrors::from(ConfigError::of_file(name, kind::UNREADABLE, message))
}

#[cfg(test)]
mod tests {
    use super::super::testgen;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn toml_converted_to_json_has_the_same_meaning(config in testgen::config()) {
            let toml = Source::of("x", toml::to_string(&config).unwrap().into_bytes()).unwrap();
            let json = Source::of("x", toml.to_json().unwrap().to_string().into_bytes()).unwrap();
            prop_assert_eq!(json.config(), Ok(config));
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes: Vec<u8>) {
            if let Ok(source) = Source::of("x", bytes) {
                let _ = (source.config(), source.port(), patch::port_keys(source.document(), "x"), source.to_json());
            }
        }
    }

    #[test]
    fn the_format_follows_from_extension_or_first_character() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("a.toml", "switch = {}"), ("b.json", "{}"), ("c", " \n{}"), ("d.JSON", "{}"), ("e", "")] {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            assert_eq!(Source::read(&path).unwrap().config(), Ok(Config::default()), "{name}");
        }
    }
}
