//! Errors of a configuration.

use std::fmt;

use crate::control::problem::{Problem, Subject};

/// Maximum length of a value or key in a message; longer ones are cut.
pub(super) const MAX_VALUE_LEN: usize = 60;

/// Kinds of [`ConfigError`], also in API errors.
pub mod kind {
    /// The file cannot be read.
    pub const UNREADABLE: &str = "unreadable";
    /// The text is neither TOML nor JSON.
    pub const SYNTAX: &str = "syntax";
    /// Unknown key.
    pub const UNKNOWN_KEY: &str = "unknown_key";
    /// Key or value that this version does not support.
    pub const NOT_YET: &str = "not_in_this_version";
    /// Value of another type than expected.
    pub const WRONG_TYPE: &str = "wrong_type";
    /// Required key is missing.
    pub const MISSING: &str = "missing";
    /// Unknown word, or value out of range.
    pub const BAD_VALUE: &str = "bad_value";
    /// Two keys that contradict each other.
    pub const CONTRADICTION: &str = "contradiction";
    /// Another network has this id.
    pub const DUPLICATE_NETWORK: &str = "duplicate_network";
    /// Another VM has this id.
    pub const DUPLICATE_VM: &str = "duplicate_vm";
    /// Another port has this id.
    pub const DUPLICATE_PORT: &str = "duplicate_port";
    /// Another uplink or port has this id.
    pub const DUPLICATE_UPLINK: &str = "duplicate_uplink";
    /// Another port of the same network has this MAC address.
    pub const DUPLICATE_MAC: &str = "duplicate_mac";
    /// Another allowed address pair of the same port is equal.
    pub const DUPLICATE_PAIR: &str = "duplicate_pair";
    /// Another port or uplink uses this netdev.
    pub const DUPLICATE_DEVICE: &str = "duplicate_device";
    /// Unknown network.
    pub const UNKNOWN_NETWORK: &str = "unknown_network";
    /// Unknown parent.
    pub const UNKNOWN_PARENT: &str = "unknown_parent";
    /// Another subport of the same parent has this VLAN id.
    pub const DUPLICATE_VLAN: &str = "duplicate_vlan";
}

/// A syntax error.
#[derive(Debug)]
pub(super) struct SyntaxError {
    /// Line and column, counted from 1.
    pub line_and_column: Option<(usize, usize)>,
    /// Found and expected tokens.
    pub message: String,
}

/// An error with location and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// File name, or the caller's name of the text.
    pub file: String,
    /// Line, from 1. Absent in JSON and for the whole file.
    pub line: Option<usize>,
    /// Column, from 1; syntax errors only.
    pub column: Option<usize>,
    /// Path, such as `vms[1].ports[0].mac_address`; empty for the whole file.
    pub key: String,
    /// VM, port, network or uplink of the key, as text.
    pub owner: Option<String>,
    /// The same, for programs.
    pub subject: Subject,
    /// The value, shortened if long. Absent for a missing one.
    pub value: Option<String>,
    /// Message with remedy.
    pub message: String,
    /// One of [`kind`], for programs.
    pub kind: &'static str,
}

impl ConfigError {
    /// Error of the whole file.
    pub(super) fn of_file(file: &str, kind: &'static str, message: String) -> ConfigError {
        let file = file.to_string();
        ConfigError {
            file,
            line: None,
            column: None,
            key: String::new(),
            owner: None,
            subject: Subject::default(),
            value: None,
            message,
            kind,
        }
    }

    /// The error without file and line, for tables from another source.
    pub fn without_location(&self) -> String {
        ConfigError { file: String::new(), line: None, column: None, ..self.clone() }.to_string()
    }

    /// The error of a request whose keys are below `prefix`.
    pub fn problem(&self, prefix: &str) -> Problem {
        let key = self.key.strip_prefix(prefix).unwrap_or(&self.key);
        let problem = Problem::new(self.kind, self.message.clone()).of(self.subject.clone());
        problem.at(key, self.value.clone())
    }

    /// Syntax error of a text.
    pub(super) fn of_syntax(file: &str, error: SyntaxError) -> ConfigError {
        let (group, column) = error.line_and_column.unzip();
        ConfigError { line: group, column, ..ConfigError::of_file(file, kind::SYNTAX, error.message) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        let then = |before: bool| if before { ": " } else { "" };
        if !self.key.is_empty() {
            write!(f, "{}{}", then(!self.file.is_empty()), self.key)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
        }
        write!(f, "{}{}", then(!self.file.is_empty() || !self.key.is_empty()), self.message)?;
        self.owner.as_ref().map_or(Ok(()), |owner| write!(f, " ({owner})"))
    }
}

/// All errors of a text, at least one, in order of lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// `None` without errors. `last` comes last, whatever its line.
    pub(super) fn of(mut problems: Vec<ConfigError>, last: Option<ConfigError>) -> Option<ConfigErrors> {
        problems.sort_by_key(|problem| problem.line);
        problems.extend(last);
        (!problems.is_empty()).then_some(ConfigErrors(problems))
    }

    /// The errors; never empty.
    pub fn errors(&self) -> &[ConfigError] {
        &self.0
    }

    /// Kind of the first error, for programs.
    pub fn kind(&self) -> &'static str {
        self.0.first().map_or(kind::BAD_VALUE, |problem| problem.kind)
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(problem: ConfigError) -> ConfigErrors {
        ConfigErrors(vec![problem])
    }
}

/// One error per line, without final line break.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A quoted text, cut if long, with control characters escaped.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

/// A text, cut if long.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_VALUE_LEN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}
