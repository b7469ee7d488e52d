//! `docs/api-reference.md` is made of the description of the API: `VIFSWITCH_WRITE=1 cargo test --test docs` writes it.

use std::fmt::Write;

use serde_json::Value;

use crate::described::{read_or_write, sorted};
use crate::{openapi, resolved};

const HEAD: &str = "\
# API reference

Made of [openapi.json](openapi.json) by a test; do not edit it. [API](api.md) explains what is said here in short: writes and their
conditions, lists and their pages, errors, events.

";

/// Text of a description in a cell or paragraph.
fn text(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace('|', "\\|").replace('<', "&lt;")
}

/// Name of a schema's type, with links to types of their own.
fn type_of(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(choices) = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array()) {
        let choices = choices.iter().filter(|choice| choice["type"] != "null").map(type_of);
        return choices.collect::<Vec<_>>().join(" or ");
    }
    let name = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect(),
        one => one.as_str().into_iter().collect::<Vec<_>>(),
    };
    match name.join(" or ").as_str() {
        "array" => format!("list of {}", type_of(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("map to {}", type_of(&schema["additionalProperties"]))
        }
        "" => "any".to_owned(),
        name => name.to_owned(),
    }
}

/// A command line of curl for an operation.
fn curl(method: &str, path: &str, operation: &Value) -> String {
    let id = match path {
        path if path.starts_with("/v1/networks") => "net1",
        path if path.starts_with("/v1/uplinks") => "up0",
        path if path.starts_with("/v1/vms") => "fw-3",
        _ => "fw-3-c",
    };
    let method = if method == "get" { String::new() } else { format!(" -X {}", method.to_uppercase()) };
    let example = operation["requestBody"]["content"]["application/json"].get("example");
    let body = example.map(|body| format!(" --json '{body}'")).unwrap_or_default();
    format!("curl --unix-socket /run/vifswitch/api.sock{method}{body} http://vifswitch{}", path.replace("{id}", id))
}

fn operation_text(out: &mut String, method: &str, path: &str, operation: &Value) {
    let id = operation["operationId"].as_str().unwrap();
    writeln!(out, "### {id}\n\n`{} {path}`: {}.\n", method.to_uppercase(), text(&operation["summary"])).unwrap();
    if operation["description"].is_string() {
        writeln!(out, "{}\n", text(&operation["description"])).unwrap();
    }
    if let Some(parameters) = operation["parameters"].as_array().filter(|all| !all.is_empty()) {
        writeln!(out, "| parameter | in | type | meaning |\n|---|---|---|---|").unwrap();
        for parameter in parameters {
            let (name, place) = (parameter["name"].as_str().unwrap(), parameter["in"].as_str().unwrap());
            let (kind, meaning) = (type_of(&parameter["schema"]), text(&parameter["description"]));
            writeln!(out, "| `{name}` | {place} | {kind} | {meaning} |").unwrap();
        }
        out.push('\n');
    }
    let body = |of: &Value| {
        let (media, content) = of["content"].as_object()?.iter().next()?;
        Some(format!("{} (`{media}`)", type_of(&content["schema"])))
    };
    if let Some(body) = body(&operation["requestBody"]) {
        writeln!(out, "* Body: {body}").unwrap();
    }
    for (status, response) in operation["responses"].as_object().unwrap() {
        let status = if status == "default" { "Others" } else { status };
        match body(response) {
            Some(body) => writeln!(out, "* {status}: {body}").unwrap(),
            None => writeln!(out, "* {status}: {}", text(&response["description"])).unwrap(),
        }
    }
    writeln!(out, "\n```sh\n{}\n```\n", curl(method, path, operation)).unwrap();
}

fn type_text(out: &mut String, document: &Value, name: &str, schema: &Value) {
    writeln!(out, "### {name}\n").unwrap();
    if schema["description"].is_string() {
        writeln!(out, "{}\n", text(&schema["description"])).unwrap();
    }
    let parts: Vec<&Value> = match schema["allOf"].as_array() {
        Some(parts) => parts.iter().collect(),
        None => vec![schema],
    };
    let words = |of: &Value| of["enum"].as_array().cloned().unwrap_or_default();
    let choices = schema["oneOf"].as_array().into_iter().flatten();
    let with_words: Vec<&Value> = choices.filter(|choice| !words(choice).is_empty()).collect();
    if !with_words.is_empty() || schema["enum"].is_array() {
        writeln!(out, "| word | meaning |\n|---|---|").unwrap();
        for choice in with_words.into_iter().chain(schema["enum"].is_array().then_some(schema)) {
            let meaning = if choice["enum"] == schema["enum"] { String::new() } else { text(&choice["description"]) };
            for word in words(choice) {
                writeln!(out, "| `{}` | {meaning} |", word.as_str().unwrap_or_default()).unwrap();
            }
        }
        out.push('\n');
        return;
    }
    if schema["oneOf"].is_array() {
        writeln!(out, "{}\n", type_of(schema)).unwrap();
        return;
    }
    for part in parts.iter().filter(|part| part["$ref"].is_string()) {
        writeln!(out, "Has all fields of {}.\n", type_of(part)).unwrap();
        assert!(resolved(document, part)["properties"].is_object(), "{name}");
    }
    let has_fields = |part: &&&Value| part["properties"].is_object();
    if parts.iter().any(|part| has_fields(&part)) {
        writeln!(out, "| field | type | meaning |\n|---|---|---|").unwrap();
        for part in parts.iter().filter(has_fields) {
            let required = part["required"].as_array();
            for (field, schema) in part["properties"].as_object().unwrap() {
                let is_required = required.is_some_and(|all| all.iter().any(|name| name == field.as_str()));
                let optional = if is_required { "" } else { ", optional" };
                let meaning = text(&schema["description"]);
                writeln!(out, "| `{field}` | {}{optional} | {meaning} |", type_of(schema)).unwrap();
            }
        }
        out.push('\n');
    }
}

fn reference() -> String {
    let document = sorted(&openapi());
    let mut out = HEAD.to_owned();
    for tag in document["tags"].as_array().unwrap() {
        writeln!(out, "## {}\n", text(&tag["description"])).unwrap();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if operation["tags"][0] == tag["name"] {
                    operation_text(&mut out, method, path, operation);
                }
            }
        }
    }
    out.push_str("## Types\n\n");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        type_text(&mut out, &document, name, schema);
    }
    out.trim_end().to_owned() + "\n"
}

#[test]
fn the_reference_is_made_of_the_description() {
    let made = reference();
    let committed = read_or_write("docs/api-reference.md", &made);
    assert!(
        committed == made,
        "the API has changed: write its reference with `VIFSWITCH_WRITE=1 cargo test --test docs`, and commit it"
    );
    for operation in
        openapi()["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values())
    {
        let heading = format!("### {}\n", operation["operationId"].as_str().unwrap());
        assert!(made.contains(&heading), "{heading}");
    }
}
