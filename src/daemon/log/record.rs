//! One message of the log with its fields, each cut to a bounded length.

use std::fmt::{self, Write};
use std::hash::{BuildHasher, Hash, Hasher};
use std::time::SystemTime;

use serde_json::Number;
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use crate::time;

/// Maximum length of a message in bytes.
pub const MESSAGE: usize = 16 * 1024;

/// Maximum length of a field in bytes.
const FIELD: usize = 1024;

/// Maximum fields.
const FIELDS: usize = 32;

/// Fields that name the source of a message, beside the place in the program.
const OF_SOURCE: &[&str] = &["event", "vm", "network", "port", "uplink", "worker", "uid"];

/// A message.
#[derive(Debug, Clone)]
pub struct Record {
    /// When.
    pub time: SystemTime,
    /// How important.
    pub level: Level,
    /// The module.
    pub module: &'static str,
    /// The text.
    pub message: String,
    /// Name and value of each field.
    pub fields: Vec<(&'static str, Value)>,
}

/// Value of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string.
    Text(String),
    /// Any other value, as text.
    Shown(String),
    /// A number.
    Number(Number),
    /// `true` or `false`.
    Bool(bool),
}

impl Record {
    /// The record of an event, with the current time.
    pub fn of(event: &Event<'_>) -> Record {
        let of = event.metadata();
        let mut record = Record::new(*of.level(), of.target(), String::new());
        event.record(&mut record);
        record
    }

    /// A message without fields, with the current time.
    pub fn new(level: Level, module: &'static str, message: String) -> Record {
        Record { time: time::wall(), level, module, message: cut(MESSAGE, &message), fields: Vec::new() }
    }

    /// Hash of the fields that name its source. `None` if there are none.
    pub fn source(&self, hasher: &impl BuildHasher) -> Option<u64> {
        let mut hash = hasher.build_hasher();
        let mut any = false;
        for (name, value) in self.fields.iter().filter(|(name, _)| OF_SOURCE.contains(name)) {
            any = true;
            name.hash(&mut hash);
            match value {
                Value::Text(text) | Value::Shown(text) => text.hash(&mut hash),
                Value::Number(number) => number.hash(&mut hash),
                Value::Bool(yes) => yes.hash(&mut hash),
            }
        }
        any.then(|| hash.finish())
    }

    /// Adds a field.
    pub fn add(&mut self, name: &'static str, value: Value) {
        if self.fields.len() < FIELDS {
            self.fields.push((name, value));
        }
    }

    fn add_number(&mut self, field: &Field, number: Option<Number>, shown: impl fmt::Display) {
        let value = number.map_or_else(|| Value::Shown(cut(FIELD, &shown)), Value::Number);
        self.add(field.name(), value);
    }
}

impl Visit for Record {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = cut(MESSAGE, &value),
            name => self.add(name, Value::Text(cut(FIELD, &value))),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = cut(MESSAGE, &format_args!("{value:?}")),
            name => self.add(name, Value::Shown(cut(FIELD, &format_args!("{value:?}")))),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), Value::Bool(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add_number(field, Some(value.into()), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add_number(field, Some(value.into()), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add_number(field, Number::from_f64(value), value);
    }
}

/// Writes up to a length, and reports then that it is full.
struct Bounded {
    text: String,
    most: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = self.most.saturating_sub(self.text.len());
        if more.len() <= room {
            self.text.push_str(more);
            return Ok(());
        }
        let end = (0..=room).rev().find(|&end| more.is_char_boundary(end)).unwrap_or(0);
        self.text.push_str(&more[..end]);
        self.text.push('…');
        Err(fmt::Error)
    }
}

/// A value as text of at most `most` bytes, and an ellipsis if it is cut.
fn cut(most: usize, value: &impl fmt::Display) -> String {
    let mut bounded = Bounded { text: String::new(), most };
    // The error is that it is full.
    let _ = write!(bounded, "{value}");
    bounded.text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut(3, &"abc"), "abc");
        assert_eq!(cut(3, &"abcd"), "abc…");
        assert_eq!(cut(4, &format_args!("{}{}", "abc", "é")), "abc…");
        assert_eq!(cut(0, &"é"), "…");
    }
}
