//! The committed description of the API is that of this build, and has all that clients of the baseline use.
//!
//! `VIFSWITCH_WRITE=1 cargo test --test docs described` writes `docs/openapi.json`. The baseline, `tests/golden/openapi.json`, is the
//! description of the release before; it is replaced by `docs/openapi.json` at a release, and at no other time.

use std::fs;

use serde_json::Value;

use crate::{Wrong, openapi, root};

/// Whether the generated files are to be written.
pub fn is_writing() -> bool {
    std::env::var_os("VIFSWITCH_WRITE").is_some()
}

/// A file, which is written first if that is asked for. `made` is what it has to be.
pub fn read_or_write(name: &str, made: &str) -> String {
    let path = root().join(name);
    if is_writing() {
        fs::write(&path, made).unwrap();
    }
    fs::read_to_string(&path).unwrap_or_default()
}

/// A value with the keys of all objects in order, whatever the features of serde_json.
pub fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(entries) => {
            let mut entries: Vec<_> = entries.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        value => value.clone(),
    }
}

#[test]
fn the_committed_description_is_that_of_this_build() {
    let text = serde_json::to_string_pretty(&sorted(&openapi())).unwrap() + "\n";
    let committed: Value = read_or_write("docs/openapi.json", &text).parse().unwrap_or_default();
    assert!(
        committed == openapi(),
        "the API has changed: write its description with `VIFSWITCH_WRITE=1 cargo test --test docs`, and commit it"
    );
}

/// A schema that references are followed from.
#[derive(Clone, Copy)]
struct Schema<'d> {
    document: &'d Value,
    value: &'d Value,
}

impl<'d> Schema<'d> {
    fn at(self, value: &'d Value) -> Schema<'d> {
        Schema { value, ..self }
    }

    /// Follows references.
    fn resolved(self) -> Schema<'d> {
        match self.value["$ref"].as_str() {
            Some(path) => self.at(self.document.pointer(path.trim_start_matches('#')).unwrap()).resolved(),
            None => self,
        }
    }

    /// It, and its parts and choices.
    fn parts(self) -> Vec<Schema<'d>> {
        let this = self.resolved();
        let words = ["allOf", "oneOf", "anyOf"].into_iter().filter_map(|word| this.value[word].as_array());
        let parts = words.flatten().flat_map(|part| this.at(part).parts());
        std::iter::once(this).chain(parts.collect::<Vec<_>>()).collect()
    }

    fn property(self, name: &str) -> Option<Schema<'d>> {
        self.parts().into_iter().find_map(|part| Some(part.at(part.value["properties"].get(name)?)))
    }

    fn properties(self) -> Vec<&'d str> {
        let of = |part: Schema<'d>| part.value["properties"].as_object().into_iter().flatten();
        self.parts().into_iter().flat_map(of).map(|(name, _)| name.as_str()).collect()
    }

    /// Names that are required, in a response or request.
    fn required(self) -> Vec<&'d str> {
        let of = |part: Schema<'d>| part.value["required"].as_array().into_iter().flatten();
        self.parts().into_iter().flat_map(of).filter_map(Value::as_str).collect()
    }

    /// The words of a text.
    fn words(self) -> Vec<&'d Value> {
        let of = |part: Schema<'d>| part.value["enum"].as_array().into_iter().flatten();
        self.parts().into_iter().flat_map(of).collect()
    }

    /// All types that a value may have.
    fn types(self) -> Vec<&'d str> {
        let of = |part: Schema<'d>| match &part.value["type"] {
            Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect::<Vec<_>>(),
        };
        self.parts().into_iter().flat_map(of).collect()
    }

    fn items(self) -> Option<Schema<'d>> {
        self.parts().into_iter().find_map(|part| Some(part.at(part.value.get("items")?)))
    }
}

/// Who sends a body.
#[derive(Clone, Copy, PartialEq)]
enum Sender {
    Client,
    Switch,
}

/// What a client of `before` that sends or reads this body misses or fails at in `now`.
fn compare(before: Schema<'_>, now: Schema<'_>, sender: Sender, depth: usize, at: &str, wrong: &mut Wrong) {
    // Types may contain themselves.
    if depth == 0 {
        return;
    }
    let (was, is) = (before.types(), now.types());
    let (some, all) = if sender == Sender::Client { (&was, &is) } else { (&is, &was) };
    if let Some(lost) = some.iter().find(|of| !all.is_empty() && !all.contains(of)) {
        wrong.add(at, format!("{lost} is not one of the types {all:?}"));
    }
    for name in before.properties() {
        let at = format!("{at}.{name}");
        match (before.property(name), now.property(name)) {
            (Some(before), Some(now)) => compare(before, now, sender, depth - 1, &at, wrong),
            _ => wrong.add(&at, "is gone"),
        }
    }
    let (was, is) = (before.required(), now.required());
    match sender {
        Sender::Client => {
            for name in is.iter().filter(|name| !was.contains(name)) {
                wrong.add(at, format!("{name} is required now"));
            }
            for word in before.words().iter().filter(|word| !now.words().is_empty() && !now.words().contains(word)) {
                wrong.add(at, format!("{word} is not accepted any more"));
            }
        }
        Sender::Switch => {
            for name in was.iter().filter(|name| !is.contains(name)) {
                wrong.add(at, format!("{name} may be absent now"));
            }
        }
    }
    if let Some(before) = before.items() {
        match now.items() {
            Some(now) => compare(before, now, sender, depth - 1, &format!("{at}[]"), wrong),
            None => wrong.add(at, "is no list any more"),
        }
    }
}

/// Schema of the first content.
fn content<'d>(document: &'d Value, body: &'d Value) -> Option<Schema<'d>> {
    let value = body["content"].as_object()?.values().next()?.get("schema")?;
    Some(Schema { document, value })
}

/// What clients of the description `before` miss in `now`.
fn missing(before: &Value, now: &Value) -> Wrong {
    const DEPTH: usize = 12;
    let mut wrong = Wrong::default();
    for (path, item) in before["paths"].as_object().unwrap() {
        for (method, was) in item.as_object().unwrap() {
            let (at, is) = (format!("{method} {path}"), &now["paths"][path][method]);
            if is.is_null() {
                wrong.add(&at, "is gone");
                continue;
            }
            let parameters = |of: &Value| of["parameters"].as_array().cloned().unwrap_or_default();
            let find = |all: &[Value], one: &Value| {
                all.iter().find(|of| of["name"] == one["name"] && of["in"] == one["in"]).cloned()
            };
            let (were, are) = (parameters(was), parameters(is));
            for parameter in &were {
                let Some(found) = find(&are, parameter) else {
                    wrong.add(&at, format!("the parameter {} is gone", parameter["name"]));
                    continue;
                };
                let schema = |document, of: &'_ Value| Schema { document, value: &of["schema"] }.types().concat();
                if schema(before, parameter) != schema(now, &found) {
                    wrong.add(&at, format!("the parameter {} has another type", parameter["name"]));
                }
            }
            for parameter in are.iter().filter(|of| of["required"] == true) {
                if find(&were, parameter).is_none_or(|before| before["required"] != true) {
                    wrong.add(&at, format!("the parameter {} is required now", parameter["name"]));
                }
            }
            let is_required = |of: &Value| of["requestBody"]["required"] == true;
            if is_required(is) && !is_required(was) {
                wrong.add(&at, "the body is required now");
            }
            if let Some(schema) = content(before, &was["requestBody"]) {
                match content(now, &is["requestBody"]) {
                    Some(now) => compare(schema, now, Sender::Client, DEPTH, &format!("{at}: body"), &mut wrong),
                    None => wrong.add(&at, "takes no body any more"),
                }
            }
            for (status, response) in was["responses"].as_object().unwrap() {
                let at = format!("{at}: {status}");
                let Some(found) = is["responses"].get(status) else {
                    wrong.add(&at, "is gone");
                    continue;
                };
                if let Some(schema) = content(before, response) {
                    match content(now, found) {
                        Some(now) => compare(schema, now, Sender::Switch, DEPTH, &at, &mut wrong),
                        None => wrong.add(&at, "has no body any more"),
                    }
                }
            }
        }
    }
    wrong
}

fn baseline() -> Value {
    fs::read_to_string(root().join("tests/golden/openapi.json")).unwrap().parse().unwrap()
}

#[test]
fn the_api_only_grows() {
    missing(&baseline(), &openapi()).end();
}

/// Each way to break a client is found.
#[test]
fn what_breaks_a_client_is_found() {
    let whole = openapi();
    let paths = |document: &mut Value| document["paths"].as_object_mut().unwrap().remove("/v1/ports");
    let schema = |document: &mut Value, name: &str, key: &str| {
        document["components"]["schemas"][name]["properties"].as_object_mut().unwrap().remove(key)
    };
    let operation = |document: &'_ mut Value, path: &str, method: &str, change: &dyn Fn(&mut Value)| {
        change(&mut document["paths"][path][method]);
    };
    type Breakage<'a> = (&'a str, &'a dyn Fn(&mut Value));
    let breakages: [Breakage; 10] = [
        ("get /v1/ports: is gone", &|d| drop(paths(d))),
        ("status_text: is gone", &|d| drop(schema(d, "StationView", "age_seconds"))),
        ("the parameter \"limit\" is gone", &|d| {
            operation(d, "/v1/fdb", "get", &|of| {
                of["parameters"].as_array_mut().unwrap().retain(|p| p["name"] != "limit")
            });
        }),
        ("is required now", &|d| operation(d, "/v1/fdb", "get", &|of| of["parameters"][0]["required"] = true.into())),
        ("has another type", &|d| {
            operation(d, "/v1/fdb", "get", &|of| {
                of["parameters"][0]["schema"] = serde_json::json!({ "type": "integer" })
            });
        }),
        ("mtu: is gone", &|d| drop(schema(d, "Network", "mtu"))),
        ("id is required now", &|d| d["components"]["schemas"]["Network"]["required"] = serde_json::json!(["id"])),
        ("may be absent now", &|d| d["components"]["schemas"]["StationView"]["required"] = serde_json::json!([])),
        ("not one of the types", &|d| {
            d["components"]["schemas"]["StationView"]["properties"]["age_seconds"]["type"] = "string".into();
        }),
        ("200: is gone", &|d| {
            operation(d, "/v1/fdb", "get", &|of| drop(of["responses"].as_object_mut().unwrap().remove("200")));
        }),
    ];
    assert_eq!(missing(&whole, &whole).0, [""; 0]);
    for (what, change) in breakages {
        let mut broken = whole.clone();
        change(&mut broken);
        let found = missing(&whole, &broken).0;
        let expected = what.replace("status_text", "age_seconds");
        assert!(found.iter().any(|line| line.contains(&expected)), "{expected} is not in {found:?}");
    }
}
