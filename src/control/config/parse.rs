//! Parses TOML and JSON to the same tree of values with line numbers.
//!
//! Neither crate's tree has both the keys of a table in file order and their lines. JSON has no lines. A duplicate key
//! is an error in both.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{SyntaxError, quoted};

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// Line, from 1; of its key, if it has one.
    pub line: Option<usize>,
    /// The value.
    pub value: Value,
}

/// Types of values.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// JSON's `null`: equals a missing key.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Integer(i64),
    /// A string.
    Text(String),
    /// A value that no key accepts, as text: fraction, date, number out of range.
    Other(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values in file order.
    Table(Vec<(String, Node)>),
}

impl Node {
    /// Value of `key`, if this is a table that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Value::Table(entries) = &self.value else { return None };
        let (_, node) = entries.iter().find(|(name, _)| name == key)?;
        (node.value != Value::Null).then_some(node)
    }

    /// Value at `index`, if this is a long enough list.
    pub fn item(&self, index: usize) -> Option<&Node> {
        let Value::List(items) = &self.value else { return None };
        items.get(index)
    }
}

impl From<Node> for serde_json::Value {
    fn from(node: Node) -> serde_json::Value {
        match node.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(yes) => yes.into(),
            Value::Integer(number) => number.into(),
            // no key accepts it
            Value::Text(text) | Value::Other(text) => text.into(),
            Value::List(items) => items.into_iter().map(serde_json::Value::from).collect(),
            Value::Table(entries) => {
                entries.into_iter().map(|(key, node)| (key, serde_json::Value::from(node))).collect()
            }
        }
    }
}

/// Parses TOML.
pub(super) fn from_toml(text: &str) -> Result<Node, SyntaxError> {
    let lines = Lines::of(text);
    let table = DeTable::parse(text).map_err(|error| SyntaxError {
        line_and_column: error.span().map(|span| lines.line_and_column(text, span.start)),
        message: error.message().trim().replace('\n', "; "),
    })?;
    Ok(Node { line: None, value: lines.table(table.get_ref()) })
}

/// Parses JSON.
pub(super) fn from_json(text: &str) -> Result<Node, SyntaxError> {
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        SyntaxError {
            line_and_column: (error.line() > 0).then(|| (error.line(), error.column())),
            // location in the same form for both languages
            message: message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what).to_string(),
        }
    })
}

/// Start offsets of lines.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Lines {
        Lines(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset)
    }

    fn line_and_column(&self, text: &str, offset: usize) -> (usize, usize) {
        let group = self.line(offset);
        let start = self.0.get(group.saturating_sub(1)).copied().unwrap_or(0);
        let column = text.get(start..offset).map_or(0, |before| before.chars().count());
        (group, column + 1)
    }

    fn table(&self, table: &DeTable<'_>) -> Value {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let node = |key: &Spanned<_>, value: &Spanned<DeValue<'_>>| Node {
            line: Some(self.line(key.span().start)),
            value: self.value(value.get_ref()),
        };
        Value::Table(entries.into_iter().map(|(key, value)| (key.get_ref().to_string(), node(key, value))).collect())
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(integer) => Value::Integer(integer),
                Err(_) => Value::Other(number.to_string()),
            },
            DeValue::Float(number) => Value::Other(number.to_string()),
            DeValue::Boolean(yes) => Value::Bool(*yes),
            DeValue::Datetime(time) => Value::Other(time.to_string()),
            DeValue::Array(items) => Value::List(
                items
                    .iter()
                    .map(|item| Node { line: Some(self.line(item.span().start)), value: self.value(item.get_ref()) })
                    .collect(),
            ),
            DeValue::Table(table) => self.table(table),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(AnyValue).map(|value| Node { line: None, value })
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, yes: bool) -> Result<Value, E> {
        Ok(Value::Bool(yes))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Integer(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(i64::try_from(number).map_or_else(|_| Value::Other(number.to_string()), Value::Integer))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Other(number.to_string()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut table = Vec::new();
        let mut seen = HashSet::new();
        while let Some((key, node)) = entries.next_entry::<String, Node>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("duplicate key {}", quoted(&key))));
            }
            table.push((key, node));
        }
        Ok(Value::Table(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_line() {
        let text = "a = 1\n\n[[vms]]\nid = \"x\"\n  [[vms.ports]]\n  n = [1,\n   2]\n  [[vms.ports]]\n[[vms]]\n";
        let root = from_toml(text).unwrap();
        let vms = root.get("vms").unwrap();
        let ports = vms.item(0).unwrap().get("ports").unwrap();
        assert_eq!(root.get("a").unwrap().line, Some(1));
        assert_eq!(vms.item(0).unwrap().line, Some(3));
        assert_eq!(ports.item(0).unwrap().line, Some(5));
        assert_eq!(ports.item(0).unwrap().get("n").unwrap().item(1).unwrap().line, Some(7));
        assert_eq!(ports.item(1).unwrap().line, Some(8));
        assert_eq!(vms.item(1).unwrap().line, Some(9));
    }

    #[test]
    fn toml_and_json_give_the_same_tree() {
        fn without_lines(node: Node) -> Node {
            let value = match node.value {
                Value::List(items) => Value::List(items.into_iter().map(without_lines).collect()),
                Value::Table(entries) => {
                    Value::Table(entries.into_iter().map(|(key, node)| (key, without_lines(node))).collect())
                }
                other => other,
            };
            Node { line: None, value }
        }
        let toml = from_toml("z = true\na = [-1, 2.5, \"x\"]\nt = { b = 99999999999999999999 }").unwrap();
        let json = from_json(r#"{"z": true, "a": [-1, 2.5, "x"], "t": {"b": 99999999999999999999}}"#).unwrap();
        let (toml, json) = (without_lines(toml), without_lines(json));
        assert_eq!((toml.get("z"), toml.get("a")), (json.get("z"), json.get("a")));
        // one keeps the digits, the other rounds; neither is a number here
        assert!(matches!(json.get("t").unwrap().get("b").unwrap().value, Value::Other(_)));
        assert!(matches!(toml.get("t").unwrap().get("b").unwrap().value, Value::Other(_)));
    }

    #[test]
    fn syntax_errors_have_a_position() {
        let error = from_toml("a = 1\nb = = 2\n").unwrap_err();
        assert_eq!(error.line_and_column, Some((2, 5)), "{error:?}");
        let error = from_json("{\n  \"a\": 1,\n  \"a\": 2\n}").unwrap_err();
        // reported once the table has been parsed past that key
        assert!(error.line_and_column.unwrap().0 >= 3, "{error:?}");
        assert_eq!(error.message, "duplicate key \"a\"");
    }
}
