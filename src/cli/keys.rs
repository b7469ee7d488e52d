//! Parses `KEY=VALUE` arguments to the JSON of a table.

use serde_json::{Map, Value};

/// Parses `KEY=VALUE` arguments to a JSON object. Dots in a key separate nested tables. A value is a TOML literal, or
/// else a string. `KEY=` is `null`: the key takes its default.
pub fn parse(pairs: &[String]) -> Result<Value, String> {
    let mut root = Map::new();
    for pair in pairs {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("{pair:?}: expected KEY=VALUE, such as admin_state_up=false"))?;
        let steps: Vec<&str> = key.split('.').collect();
        if steps.iter().any(|step| step.is_empty()) {
            return Err(format!("{pair:?}: empty name in a dotted key; write it as device.queues=2"));
        }
        insert(&mut root, &steps, literal(value)).map_err(|()| format!("{key} is given twice; give it once"))?;
    }
    Ok(Value::Object(root))
}

fn insert(table: &mut Map<String, Value>, steps: &[&str], value: Value) -> Result<(), ()> {
    let Some((step, rest)) = steps.split_first() else { return Err(()) };
    if rest.is_empty() {
        return table.insert((*step).to_owned(), value).map_or(Ok(()), |_| Err(()));
    }
    match table.entry(*step).or_insert_with(|| Value::Object(Map::new())) {
        Value::Object(inner) => insert(inner, rest, value),
        _ => Err(()),
    }
}

/// Parses a value.
fn literal(text: &str) -> Value {
    if text.is_empty() {
        return Value::Null;
    }
    let read = toml::from_str::<toml::Table>(&format!("value = {text}")).ok();
    let only = read.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    only.and_then(plain).unwrap_or_else(|| text.into())
}

/// Converts a value to JSON. `None` for kinds that no key has: fractions and dates.
fn plain(value: toml::Value) -> Option<Value> {
    Some(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Boolean(yes) => yes.into(),
        toml::Value::Array(items) => Value::Array(items.into_iter().map(plain).collect::<Option<_>>()?),
        toml::Value::Table(table) => {
            Value::Object(table.into_iter().map(|(key, value)| Some((key, plain(value)?))).collect::<Option<_>>()?)
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parsed(pairs: &[&str]) -> Result<Value, String> {
        parse(&pairs.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn values_have_the_type_that_they_look_like() {
        for (pair, value) in [
            ("a=true", json!(true)),
            ("a=2", json!(2)),
            ("a=\"2\"", json!("2")),
            ("a=net1", json!("net1")),
            ("a=02:00:00:00:01:0a", json!("02:00:00:00:01:0a")),
            ("a=10.5", json!("10.5")),
            ("a=2025-11-03", json!("2025-11-03")),
            ("a=", json!(null)),
            ("a=\"\"", json!("")),
            ("a=b=c", json!("b=c")),
            ("a=[\"10.5.0.1\"]", json!(["10.5.0.1"])),
            ("a=[{ mac_address = \"00:00:5e:00:01:01\" }]", json!([{ "mac_address": "00:00:5e:00:01:01" }])),
            ("a=1\nb = 2", json!("1\nb = 2")),
        ] {
            assert_eq!(parsed(&[pair]), Ok(json!({ "a": value })), "{pair}");
        }
    }

    #[test]
    fn dots_separate_tables() {
        let keys = parsed(&["device.queues=2", "admin_state_up=false", "device.kind=tap"]);
        assert_eq!(keys, Ok(json!({ "admin_state_up": false, "device": { "kind": "tap", "queues": 2 } })));
    }

    #[test]
    fn an_argument_that_is_no_pair_is_refused() {
        for pairs in [
            &["a"][..],
            &["=1"],
            &["a.=1"],
            &[".a=1"],
            &["a=1", "a=1"],
            &["a=1", "a.b=2"],
            &["a=", "a.b=2"],
            &["a.b=1", "a=2"],
        ] {
            assert!(parsed(pairs).is_err(), "{pairs:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_can_be_quoted(text: String) {
            let quoted = toml::Value::from(text.clone()).to_string();
            prop_assert_eq!(parse(&[format!("a={quoted}")]), Ok(json!({ "a": text })));
        }

        #[test]
        fn any_arguments_are_parsed_or_refused(pairs: Vec<String>) {
            let _ = parse(&pairs);
        }
    }
}
