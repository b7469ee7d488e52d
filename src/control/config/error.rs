//! What is wrong with a configuration, in a form that an operator can act on.

use std::fmt;

/// The longest value or key that is repeated in full; what is longer is cut.
pub(super) const MAX_VALUE_LEN: usize = 60;

/// The kinds of [`ConfigError`], as they appear in the errors of the API.
pub mod kind {
    /// The file cannot be read.
    pub const UNREADABLE: &str = "unreadable";
    /// The text is neither TOML nor JSON.
    pub const SYNTAX: &str = "syntax";
    /// A key that nobody knows.
    pub const UNKNOWN_KEY: &str = "unknown_key";
    /// A key or value that is known, but that this version cannot honour.
    pub const NOT_YET: &str = "not_in_this_version";
    /// A text where a number is wanted, and the like.
    pub const WRONG_TYPE: &str = "wrong_type";
    /// A key that must be given, and is not.
    pub const MISSING: &str = "missing";
    /// A value that means nothing here, or lies outside what is allowed.
    pub const BAD_VALUE: &str = "bad_value";
    /// Two keys that cannot both be meant.
    pub const CONTRADICTION: &str = "contradiction";
    /// A network of this id stands there already.
    pub const DUPLICATE_NETWORK: &str = "duplicate_network";
    /// A VM of this id stands there already.
    pub const DUPLICATE_VM: &str = "duplicate_vm";
    /// A port of this id stands there already.
    pub const DUPLICATE_PORT: &str = "duplicate_port";
    /// An uplink or a port of this id stands there already.
    pub const DUPLICATE_UPLINK: &str = "duplicate_uplink";
    /// Another port of the same network has this MAC address.
    pub const DUPLICATE_MAC: &str = "duplicate_mac";
    /// An allowed address pair of the same port allows the same.
    pub const DUPLICATE_PAIR: &str = "duplicate_pair";
    /// Another port or uplink uses this netdev.
    pub const DUPLICATE_DEVICE: &str = "duplicate_device";
    /// A port or uplink names a network that is not there.
    pub const UNKNOWN_NETWORK: &str = "unknown_network";
    /// A subport names a parent that is not there.
    pub const UNKNOWN_PARENT: &str = "unknown_parent";
    /// Another subport of the same parent has this VLAN id.
    pub const DUPLICATE_VLAN: &str = "duplicate_vlan";
}

/// Why a text is not a document.
#[derive(Debug)]
pub(super) struct SyntaxError {
    /// Where it stopped making sense, both counted from 1.
    pub line_and_column: Option<(usize, usize)>,
    /// What was found there, and what could have been.
    pub message: String,
}

/// One thing that is wrong, where it stands, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, or whatever the caller calls the text.
    pub file: String,
    /// Counted from 1. Absent in JSON, and where the whole file is meant.
    pub line: Option<usize>,
    /// Counted from 1. Only for syntax errors.
    pub column: Option<usize>,
    /// Like `vms[1].ports[0].mac_address`; empty where the whole file is meant.
    pub key: String,
    /// The VM, port, network or uplink in which the key stands, in words.
    pub owner: Option<String>,
    /// The value as it is written, shortened if it is long. Absent where nothing is written.
    pub value: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
    /// One of [`kind`], for programs.
    pub kind: &'static str,
}

impl ConfigError {
    /// A problem of the file as a whole.
    pub(super) fn of_file(file: &str, kind: &'static str, message: String) -> ConfigError {
        let file = file.to_string();
        ConfigError { file, line: None, column: None, key: String::new(), owner: None, value: None, message, kind }
    }

    /// The problem without the file and line where it stands: for tables that came from elsewhere.
    pub fn without_location(&self) -> String {
        ConfigError { file: String::new(), line: None, column: None, ..self.clone() }.to_string()
    }

    /// A text that does not parse.
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

/// All that is wrong with a text: at least one problem, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// `None` if nothing is wrong. `last` stands at the end, whatever its line.
    pub(super) fn of(mut problems: Vec<ConfigError>, last: Option<ConfigError>) -> Option<ConfigErrors> {
        problems.sort_by_key(|problem| problem.line);
        problems.extend(last);
        (!problems.is_empty()).then_some(ConfigErrors(problems))
    }

    /// The problems, never none.
    pub fn errors(&self) -> &[ConfigError] {
        &self.0
    }

    /// What a program should be told if it is told one thing: the kind of the first problem.
    pub fn kind(&self) -> &'static str {
        self.0.first().map_or(kind::BAD_VALUE, |problem| problem.kind)
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(problem: ConfigError) -> ConfigErrors {
        ConfigErrors(vec![problem])
    }
}

/// One problem per line, without a line break at the end.
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

/// A text in quotes, cut if it is long, with nothing in it that could upset a terminal.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

/// A text, cut if it is long.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_VALUE_LEN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}
