//! The documentation is true: code blocks, keys, commands and links of README.md, the other root pages and docs/*.md are
//! checked by the parsers of the program. Needs nothing of the host.
//!
//! | code block | is |
//! |---|---|
//! | `toml`, `json` | a whole configuration |
//! | `toml,fragment` | tables of a configuration; missing networks, VM and device are added |
//! | `toml,port` | one port with its `device_id`, as `vifswitch attach` reads it |
//! | `json,cni` | a network configuration of the CNI plugin |
//! | `json request METHOD PATH`, `json response METHOD PATH` | a body of the API, with its type in OpenAPI |
//! | `console`, `sh` | commands: after `# ` in `console`, where other lines are output |
#![allow(clippy::unwrap_used)]

mod cni;
mod described;
mod monitoring;
mod old_words;
mod reference;
mod requirements;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};
use vifswitch::cli;
use vifswitch::control::api;
use vifswitch::control::config::{Source, kind, parse_json, parse_toml};
use vifswitch::control::health::Health;
use vifswitch::control::reason::ReasonCode;
use vifswitch::switch::DropReason;
use vifswitch::telemetry::exposition::{self, Mitigation};

/// The root of the source tree.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A page of the documentation.
struct Page {
    /// From the root, as in `docs/api.md`.
    name: String,
    lines: Vec<String>,
}

/// A code block.
struct Block {
    /// Page and line of its first line.
    at: String,
    /// Text after the opening fence.
    info: String,
    text: String,
}

impl Page {
    fn read(path: &Path) -> Page {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{name}: {e}"));
        Page { name, lines: text.lines().map(str::to_owned).collect() }
    }

    fn named(name: &str) -> Page {
        Page::read(&root().join(name))
    }

    /// Numbered lines outside of code blocks.
    fn prose(&self) -> Vec<(usize, &str)> {
        let mut is_code = false;
        let lines = self.lines.iter().enumerate().filter(|(_, line)| {
            let is_fence = line.trim_start().starts_with("```");
            is_code ^= is_fence;
            !is_code && !is_fence
        });
        lines.map(|(index, line)| (index + 1, line.as_str())).collect()
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        for (index, line) in self.lines.iter().enumerate() {
            match (line.trim_start().strip_prefix("```"), &mut open) {
                (Some(info), None) => {
                    let at = format!("{}:{}", self.name, index + 2);
                    open = Some(Block { at, info: info.trim().to_owned(), text: String::new() });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => block.text += &format!("{line}\n"),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a code block is not closed", self.name);
        blocks
    }

    /// The text of each heading.
    fn headings(&self) -> Vec<&str> {
        let heading = |line: &'_ str| line.starts_with('#').then(|| line.trim_start_matches('#').len());
        let prose = self.prose().into_iter();
        prose.filter_map(|(_, line)| heading(line).map(|length| line[line.len() - length..].trim())).collect()
    }

    /// Cells of the first table below a heading, without its header row.
    fn table(&self, heading: &str) -> Vec<Vec<String>> {
        let lines = self.prose().into_iter().map(|(_, line)| line);
        let below = lines.skip_while(|line| line.trim_start_matches('#').trim() != heading).skip(1);
        let table = below.skip_while(|line| !line.starts_with('|') && !line.starts_with('#'));
        let rows: Vec<_> = table.take_while(|line| line.starts_with('|')).map(cells).collect();
        assert!(rows.len() > 2, "{}: there is no table below {heading:?}", self.name);
        rows[2..].to_vec()
    }
}

fn cells(row: &str) -> Vec<String> {
    let row = row.trim().trim_start_matches('|').trim_end_matches('|').replace("\\|", "\u{0}");
    row.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

/// All pages.
fn pages() -> Vec<Page> {
    let markdown = |folder: PathBuf| {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|ending| ending == "md"))
    };
    let folders = ["", "docs", "docs/integrations"].map(|folder| root().join(folder));
    let mut paths: Vec<_> = folders.into_iter().flat_map(markdown).collect();
    paths.sort();
    paths.iter().map(|path| Page::read(path)).collect()
}

/// Texts in backquotes.
fn codes(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Collects errors, so that one run reports all of them.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn add(&mut self, at: impl std::fmt::Display, what: impl std::fmt::Display) {
        self.0.push(format!("{at}: {what}"));
    }

    fn end(self) {
        assert!(self.0.is_empty(), "{} are wrong:\n{}", self.0.len(), self.0.join("\n"));
    }
}

// ---- Configuration ----

/// A configuration around tables that are not complete.
fn framed(fragment: &str) -> String {
    let mut text = String::new();
    let declares = |table: &str, id: &str| {
        fragment.split("[[").any(|part| {
            let is_id = |line: &str| line.replace(' ', "").starts_with(&format!("id=\"{id}\""));
            part.starts_with(table) && part.lines().any(is_id)
        })
    };
    let networks = fragment.split("network_id").skip(1).filter_map(|rest| rest.split('"').nth(1));
    for id in networks.collect::<BTreeSet<_>>() {
        if !declares("networks]]", id) {
            text += &format!("[[networks]]\nid = \"{id}\"\n");
        }
    }
    if fragment.contains("[[vms.ports]]") && !fragment.contains("[[vms]]") {
        text += "[[vms]]\nid = \"vm\"\n";
    }
    // a port with only some of its keys
    let mut parts = fragment.split("[[vms.ports]]");
    text += parts.next().unwrap_or_default();
    for (index, part) in parts.enumerate() {
        text += "[[vms.ports]]";
        if !part.contains("port_id") {
            if !text.contains("id = \"shown\"") {
                text = format!("[[networks]]\nid = \"shown\"\n{text}");
            }
            let mac = format!("02:00:00:ff:ff:{index:02x}");
            text += &format!("\nport_id = \"shown-{index}\"\nnetwork_id = \"shown\"\nmac_address = \"{mac}\"\n");
            text += "device = { kind = \"tap\" }";
        }
        text += part;
    }
    text
}

#[test]
fn configurations_are_valid() {
    let mut wrong = Wrong::default();
    let mut seen = 0;
    for block in pages().iter().flat_map(Page::blocks) {
        let read = match block.info.as_str() {
            "toml" => parse_toml(&block.text, &block.at).map(|_| ()),
            "toml,fragment" => parse_toml(&framed(&block.text), &block.at).map(|_| ()),
            "toml,port" => Source::of(&*block.at, block.text.clone().into_bytes()).and_then(|it| it.port()).map(|_| ()),
            "json" => parse_json(&block.text, &block.at).map(|_| ()),
            other => {
                if other.starts_with("toml") {
                    wrong.add(&block.at, format!("unknown kind of block: {other}"));
                }
                continue;
            }
        };
        seen += 1;
        if let Err(errors) = read {
            wrong.add(&block.at, errors);
        }
    }
    assert!(seen > 5, "only {seen} blocks are configurations");
    wrong.end();
}

/// The OpenAPI document, whose configuration types are those of the parser.
fn openapi() -> Value {
    api::description().clone()
}

/// The schema that a reference stands for.
fn resolved<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    match schema["$ref"].as_str() {
        Some(path) => resolved(document, document.pointer(path.trim_start_matches('#')).unwrap()),
        None => schema,
    }
}

/// Tables that a configuration can have: path, as in `networks[].storm`, and keys.
fn tables(document: &Value) -> BTreeMap<String, BTreeSet<String>> {
    fn walk(document: &Value, schema: &Value, path: &str, found: &mut BTreeMap<String, BTreeSet<String>>) {
        let schema = resolved(document, schema);
        if let Some(properties) = schema["properties"].as_object() {
            found.insert(path.to_owned(), properties.keys().cloned().collect());
            for (key, schema) in properties {
                walk(document, schema, format!("{path}.{key}").trim_start_matches('.'), found);
            }
        }
        if schema["items"].is_object() {
            walk(document, &schema["items"], &format!("{path}[]"), found);
        }
        for choice in ["oneOf", "anyOf", "allOf"].iter().filter_map(|word| schema[*word].as_array()).flatten() {
            walk(document, choice, path, found);
        }
    }
    let mut found = BTreeMap::new();
    walk(document, body(document, "request", "PUT", "/v1/config").unwrap(), "", &mut found);
    found
}

/// Heading in docs/configuration.md of each table, by the end of its path.
const HEADINGS: [(&str, &str); 13] = [
    ("switch", "`[switch]`"),
    ("switch.api_writers", "`api_writers`"),
    ("uplinks[].networks[]", "Networks of an uplink"),
    ("networks[]", "`[[networks]]`"),
    ("vms[]", "`[[vms]]`"),
    ("ports[]", "`[[vms.ports]]`"),
    ("allowed_address_pairs[]", "`allowed_address_pairs`"),
    ("device", "`device`"),
    ("uplinks[]", "`[[uplinks]]`"),
    ("storm", "`storm`"),
    ("storm.copies", "Limit of copies"),
    ("storm.broadcast", "A storm limit"),
    ("storm.multicast", "A storm limit"),
];

fn heading(path: &str) -> &'static str {
    let found = HEADINGS.iter().find(|(end, _)| path.ends_with(end)).map(|(_, heading)| *heading);
    found.or(path.ends_with("storm.unknown_unicast").then_some("A storm limit")).unwrap_or_else(|| {
        panic!("the table {path} of the configuration has no section in docs/configuration.md; name it in HEADINGS")
    })
}

#[test]
fn each_key_of_the_configuration_is_documented_and_no_other() {
    let page = Page::named("docs/configuration.md");
    let mut wrong = Wrong::default();
    for (path, keys) in tables(&openapi()) {
        if path.is_empty() {
            continue;
        }
        let rows = page.table(heading(&path));
        let documented: BTreeSet<String> = rows.iter().map(|row| codes(&row[0]).concat()).collect();
        for key in keys.difference(&documented) {
            wrong.add(&path, format!("the key {key} is not documented below {:?}", heading(&path)));
        }
        for key in documented.difference(&keys) {
            wrong.add(&path, format!("the key {key} is documented and does not exist"));
        }
        for row in rows {
            let is_whole = row.len() == 5 && row[..4].iter().all(|cell| !cell.is_empty());
            if !is_whole {
                wrong.add(&path, format!("{} lacks a type, default or effect", row[0]));
            }
        }
    }
    wrong.end();
}

/// A configuration with one of everything, and all defaults filled in.
fn everything() -> Value {
    let text = r#"
        [switch]
        api_writers = {}
        [[networks]]
        id = "n"
        [[networks]]
        id = "disabling"
        storm = { broadcast = { pps = 10, bps = 80000, action = "disable" }, multicast = { pps = 10, action = "disable" },
                  unknown_unicast = { pps = 10, action = "disable" } }
        [[vms]]
        id = "vm"
        storm = { broadcast = { pps = 10 }, multicast = { pps = 10 }, unknown_unicast = { pps = 10 }, copies = { pps = 10 } }
        [[vms.ports]]
        port_id = "tap"
        network_id = "n"
        mac_address = "02:00:00:00:00:01"
        storm = { broadcast = { pps = 10 }, multicast = { pps = 10 }, unknown_unicast = { pps = 10 } }
        device = { kind = "tap" }
        [[vms.ports]]
        port_id = "xdp"
        network_id = "n"
        mac_address = "02:00:00:00:00:02"
        mac_limit = 5
        device = { kind = "xdp", name = "x" }
        [[vms.ports]]
        port_id = "packet"
        network_id = "n"
        mac_address = "02:00:00:00:00:03"
        allowed_address_pairs = [{ mac_address = "02:00:00:00:00:05", ip_address = "10.0.0.1" }]
        device = { kind = "packet", name = "y" }
        [[vms.ports]]
        port_id = "subport"
        network_id = "disabling"
        mac_address = "02:00:00:00:00:04"
        parent = "xdp"
        vlan = 7
        [[uplinks]]
        id = "up"
        networks = [{ network_id = "n", vlan = 7 }]
        storm = { broadcast = { pps = 10 }, multicast = { pps = 10 }, unknown_unicast = { pps = 10 }, copies = { pps = 10 } }
        device = { kind = "xdp", name = "z" }
    "#;
    serde_json::to_value(parse_toml(text, "everything").unwrap_or_else(|e| panic!("{e}"))).unwrap()
}

/// JSON pointers of a table in a configuration, by its path: `/vms/0/ports/1` for `vms[].ports[]`.
fn places(config: &Value, path: &str) -> Vec<String> {
    let mut places = vec![String::new()];
    for step in path.split('.') {
        let key = step.trim_end_matches("[]");
        let below = places.iter().map(|place| format!("{place}/{key}"));
        places = match step.ends_with("[]") {
            false => below.collect(),
            true => below
                .flat_map(|place| {
                    let items = config.pointer(&place).and_then(Value::as_array).map_or(0, Vec::len);
                    (0..items).map(move |index| format!("{place}/{index}"))
                })
                .collect(),
        };
        places.retain(|place| config.pointer(place).is_some_and(Value::is_object));
    }
    places
}

/// Errors of a table in which `key` has this value or is absent: kinds, and whether each is about the key itself or
/// below it.
fn faults(config: &Value, place: &str, key: &str, value: Option<Value>) -> Vec<(&'static str, bool)> {
    let mut config = config.clone();
    let table = config.pointer_mut(place).and_then(Value::as_object_mut).unwrap();
    match value {
        Some(value) => table.insert(key.to_owned(), value),
        None => table.remove(key),
    };
    // in the notation of errors: `vms[0].ports[1]`
    let named = place.split('/').skip(1).fold(String::new(), |name, step| match step.parse::<usize>() {
        Ok(index) => format!("{name}[{index}]"),
        Err(_) if name.is_empty() => step.to_owned(),
        Err(_) => format!("{name}.{step}"),
    });
    let Err(errors) = parse_json(&config.to_string(), "x") else { return Vec::new() };
    let of_table = errors.errors().iter().filter(|problem| problem.key.starts_with(&named));
    of_table.map(|problem| (problem.kind, problem.key.starts_with(&format!("{named}.{key}")))).collect()
}

#[test]
fn defaults_bounds_and_words_are_those_of_the_parser() {
    let page = Page::named("docs/configuration.md");
    let config = everything();
    // the same table can be in several places, and not each of them has a default in it
    let mut sections: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for path in tables(&openapi()).into_keys().filter(|path| !path.is_empty()) {
        sections.entry(heading(&path)).or_default().extend(places(&config, &path));
    }
    let mut wrong = Wrong::default();
    let (mut defaults, mut bounds, mut words) = (0, 0, 0);
    for (section, places) in sections {
        assert!(!places.is_empty(), "the configuration of this test has no {section}");
        for row in page.table(section) {
            let (key, is, default) = (codes(&row[0]).concat(), &row[1], &row[2]);
            let at = format!("{section} {key}");
            let with = places.iter().find(|place| config.pointer(&format!("{place}/{key}")).is_some());
            let place = with.unwrap_or(&places[0]);
            if default == "required" {
                if faults(&config, place, &key, None).is_empty() {
                    wrong.add(&at, "documented as required, and is not");
                }
                defaults += 1;
            } else if default.starts_with('`') {
                let documented = format!("it = {}", codes(default)[0]).parse::<toml::Table>();
                let documented = documented.ok().map(|table| serde_json::to_value(&table["it"]).unwrap());
                let is_default = |place: &String| config.pointer(&format!("{place}/{key}")) == documented.as_ref();
                if documented.is_none() || !places.iter().any(is_default) {
                    wrong.add(&at, format!("the default is not {default}"));
                }
                defaults += 1;
            }
            let is_refused =
                |value: Value| faults(&config, place, &key, Some(value)).contains(&(kind::BAD_VALUE, true));
            if let Some((least, most)) = range(is) {
                for (number, expected) in [(least - 1, true), (least, false), (most, false), (most + 1, true)] {
                    if is_refused(json!(number)) != expected {
                        wrong.add(&at, format!("documented as {is}; {number} is refused: {}", !expected));
                    }
                }
                bounds += 1;
            }
            if is.starts_with("`\"") {
                for word in codes(is) {
                    if is_refused(json!(word.trim_matches('"'))) {
                        wrong.add(&at, format!("{word} is documented and refused"));
                    }
                }
                if !is_refused(json!("no-such-word")) {
                    wrong.add(&at, "any word is accepted");
                }
                words += 1;
            }
        }
    }
    assert!(defaults > 40 && bounds > 15 && words > 8, "{defaults} defaults, {bounds} bounds, {words} words");
    wrong.end();
}

/// The bounds in `integer, 68 to 9216, bytes`.
fn range(text: &str) -> Option<(i64, i64)> {
    let (least, most) = text.strip_prefix("integer, ")?.split(',').next()?.split_once(" to ")?;
    Some((least.parse().unwrap(), most.parse().unwrap()))
}

// ---- API ----

/// Schema of a body: of the request, or of the successful response.
fn body<'d>(document: &'d Value, of: &str, method: &str, path: &str) -> Option<&'d Value> {
    let operation = &document["paths"][path][method.to_lowercase()];
    let content = match of {
        "request" => &operation["requestBody"]["content"],
        "error" => &operation["responses"]["default"]["content"],
        _ => ["200", "201"].iter().map(|code| &operation["responses"][code]["content"]).find(|it| it.is_object())?,
    };
    Some(&content.as_object()?.values().next()?["schema"])
}

/// Difference between a value and its schema, if any.
fn mismatch(document: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    let schema = resolved(document, schema);
    for word in ["oneOf", "anyOf"] {
        if let Some(choices) = schema[word].as_array() {
            let misfits: Vec<_> = choices.iter().map(|choice| mismatch(document, choice, value, at)).collect();
            return if misfits.contains(&None) { None } else { misfits.into_iter().flatten().last() };
        }
    }
    let parts: Vec<&Value> = match schema["allOf"].as_array() {
        Some(parts) => parts.iter().map(|part| resolved(document, part)).collect(),
        None => vec![schema],
    };
    let properties: Map<String, Value> = parts
        .iter()
        .filter_map(|part| part["properties"].as_object())
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let types = &schema["type"];
    if types.is_null() && properties.is_empty() && schema["oneOf"].is_null() {
        // A value of any form.
        return None;
    }
    let is_a = |name: &str| types == name || types.as_array().is_some_and(|types| types.contains(&json!(name)));
    let is_typed = match value {
        Value::Null => is_a("null"),
        Value::Bool(_) => is_a("boolean"),
        Value::Number(_) => is_a("integer") || is_a("number"),
        Value::String(word) => {
            let words = schema["enum"].as_array();
            is_a("string") && words.is_none_or(|words| words.contains(&json!(word)))
        }
        Value::Array(_) => is_a("array"),
        Value::Object(_) => is_a("object") || !properties.is_empty(),
    };
    if !is_typed {
        return Some(format!("{at} = {value} is no {types}"));
    }
    if let Value::Array(items) = value {
        return items.iter().find_map(|item| mismatch(document, &schema["items"], item, &format!("{at}[]")));
    }
    let Value::Object(keys) = value else { return None };
    let required = parts.iter().filter_map(|part| part["required"].as_array()).flatten().filter_map(Value::as_str);
    if let Some(missing) = required.into_iter().find(|key| !keys.contains_key(*key)) {
        return Some(format!("{at} lacks {missing}"));
    }
    keys.iter().find_map(|(key, value)| match (properties.get(key), &schema["additionalProperties"]) {
        (Some(schema), _) => mismatch(document, schema, value, &format!("{at}.{key}")),
        (None, Value::Object(_)) => None,
        (None, _) => Some(format!("{at} has no key {key}")),
    })
}

#[test]
fn bodies_of_the_api_have_the_types_of_their_requests() {
    let document = openapi();
    let mut wrong = Wrong::default();
    let mut seen = 0;
    for block in pages().iter().flat_map(Page::blocks).filter(|block| block.info.starts_with("json ")) {
        seen += 1;
        let [_, of, method, path] = block.info.split(' ').collect::<Vec<_>>()[..] else {
            wrong.add(&block.at, format!("{:?}: `json request|response|error METHOD PATH` is expected", block.info));
            continue;
        };
        let Some(schema) = body(&document, of, method, path) else {
            wrong.add(&block.at, format!("the API has no {of} body of {method} {path}"));
            continue;
        };
        match serde_json::from_str::<Value>(&block.text) {
            Err(e) => wrong.add(&block.at, e),
            Ok(value) => {
                if let Some(mismatch) = mismatch(&document, schema, &value, of) {
                    wrong.add(&block.at, mismatch);
                }
            }
        }
    }
    assert!(seen > 4, "only {seen} blocks are bodies of the API");
    wrong.end();
}

#[test]
fn each_request_of_the_api_is_documented_and_no_other() {
    let document = openapi();
    let paths = document["paths"].as_object().unwrap();
    let of = |(path, item): (&String, &Value)| {
        let methods: Vec<String> = item.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        methods.into_iter().map(|method| format!("{method} {path}")).collect::<Vec<_>>()
    };
    let requests: BTreeSet<String> = paths.iter().flat_map(of).collect();
    let page = Page::named("docs/api.md");
    let rows = page.table("Reads").into_iter().chain(page.table("Changes"));
    // the query follows the path
    let plain = |code: &str| code.split(['?', '[']).next().unwrap().to_owned();
    let documented: BTreeSet<String> = rows.map(|row| plain(&codes(&row[0]).concat())).collect();
    assert_eq!(documented, requests);
}

#[test]
fn each_kind_of_event_is_documented_and_no_other() {
    let document = openapi();
    let event = resolved(&document, body(&document, "response", "GET", "/v1/events").unwrap());
    let kinds = resolved(&document, &event["properties"]["kind"]);
    let choices = kinds["enum"].as_array().cloned().or_else(|| {
        let each = kinds["oneOf"].as_array()?.iter();
        Some(each.flat_map(|kind| kind["enum"].as_array().cloned().unwrap_or_default()).collect())
    });
    let kinds: BTreeSet<String> =
        choices.expect("kinds of events are words").iter().map(|kind| kind.as_str().unwrap().to_owned()).collect();
    let rows = Page::named("docs/api.md").table("Events");
    assert_eq!(rows.iter().map(|row| codes(&row[0]).concat()).collect::<BTreeSet<_>>(), kinds);
}

#[test]
fn each_status_code_is_documented_and_no_other() {
    let rows = Page::named("docs/operating.md").table("Status codes");
    let documented: Vec<String> = rows.iter().map(|row| codes(&row[0]).concat()).collect();
    assert_eq!(documented, ReasonCode::ALL.map(ReasonCode::name));
    let described = openapi()["components"]["schemas"]["ReasonCode"].to_string();
    for code in documented {
        assert!(described.contains(&format!("\"{code}\"")), "{code} is not in {described}");
    }
}

#[test]
fn each_drop_reason_is_documented_and_no_other() {
    let rows = Page::named("docs/operating.md").table("Drop reasons");
    let documented: BTreeSet<String> = rows.iter().map(|row| codes(&row[0]).concat()).collect();
    let reasons: BTreeSet<String> = DropReason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    assert_eq!(documented, reasons);
}

/// Names of all metrics, with their suffixes.
fn metrics() -> BTreeSet<String> {
    let worker = json!({
        "worker": 0, "core": 0, "poll": "busy", "queues": 0, "stations": 0, "stations_limit": 0, "stations_refused": 0,
        "polls": 0, "busy_polls": 0, "busy_seconds": 0.0, "sleeps": 0, "updates_lost": 0, "since": "2025-11-03T09:00:00Z"
    });
    let workers = vec![serde_json::from_value(worker).unwrap()];
    let text = exposition::render(
        vec![],
        vec![],
        vec![],
        workers,
        vec![],
        vec![],
        (Mitigation::default(), &Health::default()),
    );
    text.lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect()
}

#[test]
fn each_metric_is_documented_and_no_other() {
    let rows = Page::named("docs/api.md").table("Metrics");
    let documented: BTreeSet<String> = rows.iter().flat_map(|row| codes(&row[0])).map(str::to_owned).collect();
    assert_eq!(documented, metrics());
}

#[test]
fn each_crate_has_its_reason_and_no_other() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let names = |section: &str| {
        manifest[section]
            .as_table()
            .unwrap()
            .iter()
            .filter(|(_, of)| of.get("path").is_none())
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
    };
    let crates: BTreeSet<String> = names("dependencies").into_iter().chain(names("dev-dependencies")).collect();
    let rows = Page::named("README.md").table("The crates, and why each is here");
    let listed: BTreeSet<String> = rows.iter().flat_map(|row| codes(&row[0])).map(str::to_owned).collect();
    assert_eq!(listed, crates);
}

// ---- Commands ----

/// Words of the commands in a shell line, without comments and redirections.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    let end = |word: &mut Option<String>, commands: &mut Vec<Vec<String>>| {
        commands.last_mut().unwrap().extend(word.take());
    };
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ' | '\t') => end(&mut word, &mut commands),
            (None, ';' | '&' | '|' | '(' | ')') => {
                end(&mut word, &mut commands);
                commands.push(Vec::new());
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    end(&mut word, &mut commands);
    for command in &mut commands {
        if let Some(redirection) = command.iter().position(|word| word.starts_with(['<', '>'])) {
            command.truncate(redirection);
        }
        while command.first().is_some_and(|word| word == "sudo" || word.contains('=')) {
            command.remove(0);
        }
    }
    commands.retain(|command| !command.is_empty());
    commands
}

/// Commands in the documentation, each with its position.
fn shown() -> Vec<(String, Vec<String>)> {
    let mut shown = Vec::new();
    for block in pages().iter().flat_map(Page::blocks) {
        let prompt = match block.info.as_str() {
            "console" => "# ",
            "sh" => "",
            _ => continue,
        };
        // a backslash at the end continues the line
        for line in block.text.replace("\\\n", " ").lines().filter_map(|line| line.strip_prefix(prompt)) {
            shown.extend(commands(line).into_iter().map(|command| (block.at.clone(), command)));
        }
    }
    shown
}

fn is_ours(command: &[String]) -> bool {
    command[0] == "vifswitch" || command[0].ends_with("/vifswitch")
}

/// Whether a request of `/v1/ports/p1` goes to `/v1/ports/{id}`.
fn is_at(known: &str, path: &str) -> bool {
    let (known, path) = (known.split('/'), path.split('?').next().unwrap_or_default().split('/'));
    known.clone().count() == path.clone().count() && known.zip(path).all(|(a, b)| a == b || a.starts_with('{'))
}

#[test]
fn command_lines_are_accepted() {
    let mut wrong = Wrong::default();
    let document = openapi();
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    let mut seen = 0;
    for (at, command) in shown() {
        let script = root().join(command[0].trim_start_matches("./"));
        if is_ours(&command) {
            seen += 1;
            match cli::command().try_get_matches_from(&command) {
                Err(e) if e.use_stderr() => wrong.add(&at, format!("{}: {e}", command.join(" "))),
                _ => {}
            }
        } else if command[0].starts_with("scripts/") {
            // with --help at the end a script reads its arguments, and does nothing
            match Command::new(&script).args(&command[1..]).arg("--help").output() {
                Err(e) => wrong.add(&at, format!("{}: {e}", command[0])),
                Ok(output) if !output.status.success() => {
                    wrong.add(&at, String::from_utf8_lossy(&output.stderr));
                }
                Ok(_) => {}
            }
        } else if command[0] == "curl" {
            let path = command.iter().find_map(|word| word.strip_prefix("http://vifswitch"));
            if !path.is_some_and(|path| paths.iter().any(|known| is_at(known, path))) {
                wrong.add(&at, format!("the API has nothing at {path:?}"));
            }
        }
    }
    assert!(seen > 10, "only {seen} command lines are ours");
    wrong.end();
}

#[test]
fn the_ci_runs_the_test_command_of_the_readme() {
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    let runs = ci.lines().find_map(|line| line.strip_prefix("exec \"$(dirname \"$0\")/../")).unwrap().replace('"', "");
    let is_documented =
        |(at, command): &(String, Vec<String>)| at.starts_with("README.md") && command.join(" ") == runs;
    assert!(shown().iter().any(is_documented), "README.md does not show `{runs}`");
}

#[test]
fn help_and_check_run() {
    let run = |arguments: &[String], directory: &Path| {
        Command::new(env!("CARGO_BIN_EXE_vifswitch")).args(arguments).current_dir(directory).output().unwrap()
    };
    let directory = tempfile::tempdir().unwrap();
    for (at, command) in shown() {
        if is_ours(&command) && command.contains(&"--help".to_owned()) {
            let output = run(&command[1..], directory.path());
            assert!(output.status.success() && !output.stdout.is_empty(), "{at}: {command:?}: {output:?}");
        }
    }
    // the README's example: its file, its check, and the printed output
    let readme = Page::named("README.md");
    let blocks = readme.blocks();
    let file = blocks.iter().find(|block| block.info == "toml").expect("README.md shows a configuration");
    fs::write(directory.path().join("first.toml"), &file.text).unwrap();
    let example = blocks.iter().find(|block| block.text.contains("# vifswitch check first.toml\n"));
    let example = &example.expect("README.md checks its example").text;
    let output = run(&["check".to_owned(), "first.toml".to_owned()], directory.path());
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // 1: the host lacks something; warnings depend on the host too
    assert!(matches!(output.status.code(), Some(0 | 1)), "{printed}");
    let first = printed.lines().next().unwrap_or_default();
    assert!(example.lines().any(|line| line == first), "README.md does not show {first:?}");
}

#[test]
fn each_command_is_documented_with_all_its_arguments() {
    let page = Page::named("docs/commands.md");
    let mut wrong = Wrong::default();
    let command = cli::command();
    let sections: Vec<(&str, String)> = page
        .headings()
        .into_iter()
        .filter(|heading| heading.starts_with("`vifswitch "))
        .map(|heading| {
            let lines = page.lines.iter().skip_while(|line| line.trim_start_matches('#').trim() != heading).skip(1);
            (heading, lines.take_while(|line| !line.starts_with("## ")).cloned().collect::<Vec<_>>().join("\n"))
        })
        .collect();
    for sub in command.get_subcommands() {
        let is_its = |heading: &str| {
            codes(heading).concat().split_whitespace().nth(1).is_some_and(|name| name == sub.get_name())
        };
        let Some((_, section)) = sections.iter().find(|(heading, _)| is_its(heading)) else {
            wrong.add(sub.get_name(), "docs/commands.md has no section of this command");
            continue;
        };
        for argument in sub.get_arguments().filter_map(|argument| argument.get_long()) {
            // options of many commands are documented once, above them
            let is_common = ["json", "socket", "help"].contains(&argument);
            if !is_common && !section.contains(&format!("--{argument}")) {
                wrong.add(sub.get_name(), format!("--{argument} is not documented"));
            }
        }
        for option in codes(section).iter().flat_map(|code| code.split_whitespace()).filter(|w| w.starts_with("--")) {
            let name = option.trim_start_matches("--").split('=').next().unwrap();
            let is_known = |sub: &clap::Command| sub.get_arguments().any(|argument| argument.get_long() == Some(name));
            if !["json", "socket", "help"].contains(&name) && !command.get_subcommands().any(is_known) {
                wrong.add(sub.get_name(), format!("{option} is documented and does not exist"));
            }
        }
    }
    for (heading, _) in &sections {
        let name = codes(heading).concat().split_whitespace().nth(1).unwrap_or_default().to_owned();
        if command.find_subcommand(&name).is_none() {
            wrong.add("docs/commands.md", format!("there is no command {name}"));
        }
    }
    wrong.end();
}

// ---- Links ----

/// The anchor that GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let host = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    host.replace(' ', "-")
}

#[test]
fn links_resolve() {
    let pages = pages();
    let mut wrong = Wrong::default();
    let mut seen = 0;
    for page in &pages {
        let folder = Path::new(&page.name).parent().unwrap();
        for (line, text) in page.prose() {
            let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            for target in targets.filter(|target| !target.contains("://")) {
                seen += 1;
                let at = format!("{}:{line}", page.name);
                let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
                let path = if file.is_empty() { root().join(&page.name) } else { root().join(folder).join(file) };
                if !path.exists() {
                    wrong.add(&at, format!("there is no {file}"));
                    continue;
                }
                let is_there = |page: Page| page.headings().iter().any(|heading| anchor(heading) == fragment);
                if !fragment.is_empty() && !is_there(Page::read(&path.canonicalize().unwrap())) {
                    wrong.add(&at, format!("{target}: no heading has this anchor"));
                }
            }
        }
    }
    assert!(seen > 30, "only {seen} links");
    wrong.end();
}

#[test]
fn files_that_are_named_exist() {
    let folders = ["src/", "tests/", "scripts/", "docs/", "benches/", ".ci/"];
    let mut wrong = Wrong::default();
    for page in &pages() {
        for (line, text) in page.prose() {
            // a command line names its script first
            let words = codes(text).into_iter().filter_map(|code| code.split_whitespace().next());
            for path in words.filter(|word| folders.iter().any(|folder| word.starts_with(folder))) {
                let is_pattern = path.contains(['*', '{', '<']) || path.chars().any(char::is_uppercase);
                if !is_pattern && !root().join(path).exists() {
                    wrong.add(format!("{}:{line}", page.name), format!("there is no {path}"));
                }
            }
        }
    }
    wrong.end();
}

#[test]
fn the_readme_is_short() {
    let lines = Page::named("README.md").lines.len();
    assert!(lines <= 250, "README.md has {lines} lines; at most 250, the rest belongs below docs/");
}
