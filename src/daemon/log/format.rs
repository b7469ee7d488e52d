//! Lines of the log: text for people, logfmt, JSON.

use std::fmt::Write;

use serde_json::{Map, json};
use tracing::Level;

use super::record::{Record, Value};
use crate::control::log_settings::LogFormat;
use crate::time;

/// Field with the kind of an event.
const EVENT: &str = "event";

/// How records are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// The format.
    pub format: LogFormat,
    /// Levels of text have colours.
    pub has_colours: bool,
}

impl Style {
    /// The line of a record, with its end.
    pub fn line(self, record: &Record) -> Vec<u8> {
        let mut line = match self.format {
            LogFormat::Text => self.text(record),
            LogFormat::Logfmt => logfmt(record),
            LogFormat::Json => json(record),
        };
        line.push('\n');
        line.into_bytes()
    }

    /// The line of a message of the process that is no event.
    pub fn plain(self, message: &str) -> Vec<u8> {
        let record = Record::new(Level::ERROR, "vifswitch", message.to_owned());
        match self.format {
            LogFormat::Text => (record.message + "\n").into_bytes(),
            _ => self.line(&record),
        }
    }

    fn text(self, record: &Record) -> String {
        let Record { time, level, message, fields, .. } = record;
        let (begin, end) = if self.has_colours { (colour(*level), "\x1b[0m") } else { ("", "") };
        let mut line = format!("{} {begin}{:>5}{end} ", time::rfc3339(*time), level.as_str());
        // The kind of an event is written before its text.
        let kind = fields.iter().find_map(|(name, value)| match value {
            Value::Text(kind) if *name == EVENT => Some(kind),
            _ => None,
        });
        if let Some(kind) = kind {
            line += &format!("{kind}: ");
        }
        line += &printable(message);
        for (name, value) in fields.iter().filter(|(name, _)| *name != EVENT) {
            // Writing to a string cannot fail.
            let _ = match value {
                Value::Text(text) => write!(line, " {name}={text:?}"),
                Value::Shown(text) => write!(line, " {name}={}", printable(text)),
                Value::Number(number) => write!(line, " {name}={number}"),
                Value::Bool(yes) => write!(line, " {name}={yes}"),
            };
        }
        line
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[34m",
    }
}

/// Text without control characters but line ends, so that no name can control a terminal.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

fn level(record: &Record) -> String {
    record.level.as_str().to_ascii_lowercase()
}

fn logfmt(record: &Record) -> String {
    let mut line = format!("time={} level={} module={}", time::rfc3339(record.time), level(record), record.module);
    let mut add = |name: &str, value: &str| {
        let is_bare = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\');
        let value = match !value.is_empty() && value.chars().all(is_bare) {
            true => value.to_owned(),
            // A JSON string has the escapes that logfmt's readers know.
            false => json!(value).to_string(),
        };
        // Writing to a string cannot fail.
        let _ = write!(line, " {name}={value}");
    };
    add("message", &record.message);
    for (name, value) in &record.fields {
        match value {
            Value::Text(text) | Value::Shown(text) => add(name, text),
            Value::Number(number) => add(name, &number.to_string()),
            Value::Bool(yes) => add(name, &yes.to_string()),
        }
    }
    line
}

fn json(record: &Record) -> String {
    let mut line = Map::new();
    line.insert("time".into(), time::rfc3339(record.time).into());
    line.insert("level".into(), level(record).into());
    line.insert("module".into(), record.module.into());
    line.insert("message".into(), record.message.clone().into());
    for (name, value) in &record.fields {
        let value = match value {
            Value::Text(text) | Value::Shown(text) => json!(text),
            Value::Number(number) => json!(number),
            Value::Bool(yes) => json!(yes),
        };
        line.entry(*name).or_insert(value);
    }
    serde_json::Value::from(line).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn record(message: &str) -> Record {
        let mut record = Record::new(Level::WARN, "vifswitch::control", message.to_owned());
        record.time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_762_160_400_007);
        record.add("port", Value::Text("a \"b\"\u{1b}".into()));
        record.add("queues", Value::Number(2.into()));
        record.add("cores", Value::Shown("[1, 2]".into()));
        record.add("is_up", Value::Bool(true));
        record
    }

    fn line(format: LogFormat, message: &str) -> String {
        String::from_utf8(Style { format, has_colours: false }.line(&record(message))).unwrap()
    }

    #[test]
    fn a_record_has_one_line_in_each_format() {
        let text = line(LogFormat::Text, "port_up: it is\u{1b}[2J up");
        let start = "2025-11-03T09:00:00.007Z  WARN port_up: it is\\u{1b}[2J up";
        assert_eq!(text, format!("{start} port=\"a \\\"b\\\"\\u{{1b}}\" queues=2 cores=[1, 2] is_up=true\n"));
        assert_eq!(
            line(LogFormat::Logfmt, "two\nlines = 1"),
            "time=2025-11-03T09:00:00.007Z level=warn module=vifswitch::control message=\"two\\nlines = 1\" \
             port=\"a \\\"b\\\"\\u001b\" queues=2 cores=\"[1, 2]\" is_up=true\n"
        );
        let shown = line(LogFormat::Json, "two\nlines");
        assert_eq!(shown.matches('\n').count(), 1, "{shown}");
        assert_eq!(
            shown.parse::<serde_json::Value>().unwrap(),
            json!({ "time": "2025-11-03T09:00:00.007Z", "level": "warn", "module": "vifswitch::control",
                "message": "two\nlines", "port": "a \"b\"\u{1b}", "queues": 2, "cores": "[1, 2]", "is_up": true })
        );
    }

    #[test]
    fn messages_that_are_no_events_have_the_format_too() {
        let style = |format| Style { format, has_colours: false };
        assert_eq!(style(LogFormat::Text).plain("vifswitch run: x"), b"vifswitch run: x\n");
        let json: serde_json::Value = serde_json::from_slice(&style(LogFormat::Json).plain("a\nb")).unwrap();
        assert_eq!((&json["message"], &json["level"]), (&json!("a\nb"), &json!("error")));
        let logfmt = String::from_utf8(style(LogFormat::Logfmt).plain("")).unwrap();
        assert!(logfmt.ends_with(" message=\"\"\n"), "{logfmt}");
    }

    #[test]
    fn the_kind_of_an_event_is_before_its_text() {
        let mut of_event = Record::new(Level::INFO, "vifswitch", "network \"n\" is new".to_owned());
        of_event.add(EVENT, Value::Text("config".into()));
        let line = |format| String::from_utf8(Style { format, has_colours: false }.line(&of_event)).unwrap();
        assert!(line(LogFormat::Text).ends_with(" INFO config: network \"n\" is new\n"));
        assert!(line(LogFormat::Logfmt).ends_with(" event=config\n"));
        assert!(line(LogFormat::Json).contains("\"event\":\"config\""));
    }

    #[test]
    fn levels_have_colours_on_a_terminal() {
        let style = Style { format: LogFormat::Text, has_colours: true };
        let text = String::from_utf8(style.line(&record("x"))).unwrap();
        assert!(text.contains(" \x1b[33m WARN\x1b[0m x "), "{text:?}");
    }
}
