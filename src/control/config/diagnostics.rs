//! Paths in a document, and the errors collected while it is validated.
//!
//! A check gives path and message; line, value and owner are looked up in the document.

use std::fmt;

use super::error::{ConfigError, ConfigErrors, MAX_VALUE_LEN, kind, quoted, shortened};
use super::lowering::LONGEST_ID;
use super::parse::{Node, Value};
use super::probe_key::KEY_FILE;
use crate::control::problem::Subject;

/// Maximum errors reported in full: each takes a look-up.
const MAX_ERRORS: usize = 1000;

/// Path from the root to a value, existing or missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Path(Vec<Step>);

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Key of a table.
    Key(String),
    /// Item of a list.
    Item(usize),
}

impl Path {
    /// Path of a key of this table.
    pub fn key(&self, key: &str) -> Path {
        self.then(Step::Key(key.to_string()))
    }

    /// Path of an item of this list.
    pub fn item(&self, index: usize) -> Path {
        self.then(Step::Item(index))
    }

    /// Steps from the root.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    fn then(&self, step: Step) -> Path {
        Path(self.0.iter().cloned().chain([step]).collect())
    }
}

/// `vms[1].ports[0].mac_address`
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Item(item) => write!(f, "[{item}]")?,
                Step::Key(key) => {
                    let dot = if index == 0 { "" } else { "." };
                    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
                    let name = if bare { shortened(key) } else { quoted(key) };
                    write!(f, "{dot}{name}")?;
                }
            }
        }
        Ok(())
    }
}

/// Whether the value may be a secret, which belongs into no error: of `probe_key`, also misspelt, unless it names a file.
fn is_secret(path: &Path, node: &Node) -> bool {
    let is_file = matches!(&node.value, Value::Text(text) if text.starts_with(KEY_FILE));
    matches!(path.0.last(), Some(Step::Key(key)) if key.contains("key")) && !is_file
}

/// Errors of one document.
pub(super) struct Diagnostics<'d> {
    file: &'d str,
    root: &'d Node,
    errors: Vec<ConfigError>,
    paths: Vec<Path>,
    suppressed: usize,
}

impl<'d> Diagnostics<'d> {
    /// No errors.
    pub fn new(file: &'d str, root: &'d Node) -> Diagnostics<'d> {
        Diagnostics { file, root, errors: Vec::new(), paths: Vec::new(), suppressed: 0 }
    }

    /// Adds an error at `path`.
    pub fn push(&mut self, path: &Path, kind: &'static str, message: impl Into<String>) {
        if self.errors.len() >= MAX_ERRORS {
            self.suppressed += 1;
            return;
        }
        let found = self.walk(path);
        self.paths.push(path.clone());
        self.errors.push(ConfigError {
            file: self.file.to_string(),
            line: found.line,
            column: None,
            key: path.to_string(),
            owner: (!found.owner.is_empty()).then(|| found.owner.join(", ")),
            subject: found.subject,
            value: found.node.filter(|node| !is_secret(path, node)).map(|node| shortened(&shown(node))),
            message: message.into(),
            kind,
        });
    }

    /// Whether the table exists and lacks this key. A missing table is an error of its own.
    pub fn is_missing(&self, path: &Path) -> bool {
        let Some((Step::Key(key), parents)) = path.0.split_last() else { return false };
        let parent = self.walk(&Path(parents.to_vec())).node;
        parent.is_some_and(|node| matches!(node.value, Value::Table(_)) && node.get(key).is_none())
    }

    /// Location as text, for an error with two locations.
    pub fn location(&self, path: &Path) -> String {
        match self.walk(path).line {
            Some(group) => format!("{path} (line {group})"),
            None => path.to_string(),
        }
    }

    /// Removes and returns all errors: path, kind, message, in order.
    pub fn take_paths(&mut self) -> Vec<(Path, &'static str, String)> {
        let of = std::mem::take(&mut self.paths).into_iter().zip(&self.errors);
        of.map(|(path, problem)| (path, problem.kind, problem.without_location())).collect()
    }

    /// All errors; `None` without any.
    pub fn finish(self) -> Option<ConfigErrors> {
        let rest = format!("{} more problems are not shown", self.suppressed);
        let rest = (self.suppressed > 0).then(|| ConfigError::of_file(self.file, kind::BAD_VALUE, rest));
        ConfigErrors::of(self.errors, rest)
    }

    fn walk(&self, path: &Path) -> FoundValue<'d> {
        let mut found =
            FoundValue { node: Some(self.root), line: self.root.line, owner: Vec::new(), subject: Subject::default() };
        // a list at the root is one of ports
        let mut list = if matches!(self.root.value, Value::List(_)) { "ports" } else { "" };
        for (index, step) in path.0.iter().enumerate() {
            found.node = found.node.and_then(|node| match step {
                Step::Key(key) => node.get(key),
                Step::Item(item) => node.item(*item),
            });
            // a missing value is at the line of its table
            found.line = found.node.and_then(|node| node.line).or(found.line);
            match step {
                Step::Key(key) => list = key,
                Step::Item(_) => {
                    let subject = &mut found.subject;
                    let (word, id, named) = match list {
                        "vms" => ("VM", "id", &mut subject.vm),
                        "networks" => ("network", "id", &mut subject.network),
                        "ports" => ("port", "port_id", &mut subject.port),
                        "uplinks" => ("uplink", "id", &mut subject.uplink),
                        _ => continue,
                    };
                    *named = found.node.and_then(|node| node.get(id)).and_then(id_of);
                    // an error of the id itself needs no owner
                    let is_the_value = path.0.get(index + 1) == Some(&Step::Key(id.to_string()));
                    let id = found.node.and_then(|node| node.get(id)).filter(|_| !is_the_value);
                    found.owner.extend(id.map(|id| format!("{word} {}", shortened(&shown(id)))));
                }
            }
        }
        found
    }
}

/// The value at the end of a path.
struct FoundValue<'d> {
    node: Option<&'d Node>,
    line: Option<usize>,
    owner: Vec<String>,
    subject: Subject,
}

/// An id, cut if it is too long for one.
fn id_of(node: &Node) -> Option<String> {
    let Value::Text(text) = &node.value else { return None };
    Some(if text.len() > LONGEST_ID { shortened(text) } else { text.clone() })
}

/// A value on one line.
fn shown(node: &Node) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match &node.value {
        Value::Null => "null".to_string(),
        Value::Bool(yes) => yes.to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Other(text) => text.clone(),
        Value::Text(text) => quoted(text),
        Value::Table(entries) if entries.is_empty() => "{}".to_string(),
        // further items would be cut anyway
        Value::List(items) => format!("[{}]", joined(items.iter().take(MAX_VALUE_LEN).map(shown).collect())),
        Value::Table(entries) => {
            let entry = |(key, node): &(String, Node)| format!("{} = {}", Path::default().key(key), shown(node));
            format!("{{ {} }}", joined(entries.iter().take(MAX_VALUE_LEN).map(entry).collect()))
        }
    }
}
