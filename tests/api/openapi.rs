//! The OpenAPI document is complete and true: it has every route and no other, and responses match its schemas. Needs
//! nothing of the host.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use vifswitch::control::api::api;
use vifswitch::control::api::handle::Handle;
use vifswitch::control::desired::change::ErrorKind;

use crate::{ask_with, request};
use support::fake::{Fake, FakeBehaviour, Views};

const METHODS: [&str; 6] = ["get", "put", "post", "patch", "delete", "options"];

fn document(fake: &Fake) -> Value {
    let answer = request(fake, "GET", "/v1/openapi.json");
    assert_eq!(answer.0, 200);
    answer.json()
}

/// Methods in the document, by path.
fn described(document: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let methods = |item: &Value| item.as_object().unwrap().keys().cloned().collect();
    document["paths"].as_object().unwrap().iter().map(|(path, item)| (path.clone(), methods(item))).collect()
}

/// Paths of the router, from its debug output.
fn routed() -> BTreeSet<String> {
    let router = format!("{:?}", api(Handle::new().0));
    let paths: BTreeSet<String> = router
        .split('"')
        .filter(|text| text.starts_with("/v1/") || ["/metrics", "/livez", "/readyz"].contains(text))
        .map(str::to_owned)
        .collect();
    assert!(paths.contains("/v1/ports/{id}"), "the router tells its paths: {router}");
    paths
}

#[test]
fn the_document_has_every_route_and_no_other() {
    let fake = Fake::with_views(Views::made_up());
    let described = described(&document(&fake));
    assert_eq!(described.keys().cloned().collect::<BTreeSet<_>>(), routed());
    for (path, methods) in &described {
        let real = path.replace("{id}", "p1");
        for method in METHODS {
            let status = request(&fake, &method.to_uppercase(), &real).0;
            assert_eq!(status != 405, methods.contains(method), "{method} {path}: {status}");
        }
        // A method that no route accepts is answered with the accepted ones.
        let head = request(&fake, "BREW", &real).1;
        let allow = head.lines().find_map(|line| line.strip_prefix("allow: ")).unwrap();
        let allowed: BTreeSet<String> = allow.split(',').filter(|m| *m != "head").map(str::to_owned).collect();
        assert_eq!(&allowed, methods, "{path}");
    }
}

/// Checks a value against a schema. Panics if the schema uses an unsupported keyword.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let Some(schema) = schema.as_object() else { panic!("{at}: no schema: {schema}") };
    for (keyword, says) in schema {
        let right = match keyword.as_str() {
            "description" | "default" | "format" => true,
            "$ref" => {
                let name = says.as_str().unwrap().strip_prefix("#").unwrap();
                let schema = document.pointer(name).unwrap_or_else(|| panic!("{at}: {name} leads nowhere"));
                return check(document, schema, value, at);
            }
            "type" => match says {
                Value::Array(types) => types.iter().any(|says| is_a(value, says)),
                says => is_a(value, says),
            },
            "enum" => says.as_array().unwrap().contains(value),
            "minimum" => value.as_f64().is_none_or(|value| value >= says.as_f64().unwrap()),
            "oneOf" => {
                let fit = |schema: &&Value| check(document, schema, value, at).is_ok();
                says.as_array().unwrap().iter().filter(fit).count() == 1
            }
            "allOf" => {
                return check(document, &together(document, says, at), value, at);
            }
            "required" => {
                let missing = says.as_array().unwrap().iter().find(|key| value.get(key.as_str().unwrap()).is_none());
                if let Some(missing) = missing {
                    return Err(format!("{at} lacks {missing}"));
                }
                true
            }
            "properties" => {
                for (key, value) in value.as_object().unwrap_or(&Map::new()) {
                    let at = format!("{at}.{key}");
                    // A key without a description is an error.
                    let schema = says.get(key).ok_or_else(|| format!("{at} is not described"))?;
                    check(document, schema, value, &at)?;
                }
                true
            }
            "additionalProperties" => {
                if says.is_object() {
                    for (key, value) in value.as_object().unwrap_or(&Map::new()) {
                        check(document, says, value, &format!("{at}.{key}"))?;
                    }
                }
                true
            }
            // The keys of a map are arbitrary.
            "propertyNames" => *says == json!({ "type": "string" }),
            "items" => {
                for (index, value) in value.as_array().unwrap_or(&Vec::new()).iter().enumerate() {
                    check(document, says, value, &format!("{at}[{index}]"))?;
                }
                true
            }
            other => panic!("{at}: this check does not know {other}: {says}"),
        };
        if !right {
            return Err(format!("{at} = {value} is not {keyword} {says}"));
        }
    }
    Ok(())
}

/// Merges object schemas into one. No key may be described twice.
fn together(document: &Value, parts: &Value, at: &str) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for part in parts.as_array().unwrap() {
        let leads = part.get("$ref").map(|name| name.as_str().unwrap().strip_prefix('#').unwrap());
        let part = leads.map_or(part, |name| document.pointer(name).unwrap());
        for (keyword, says) in part.as_object().unwrap() {
            match keyword.as_str() {
                "description" => {}
                "type" => assert_eq!(says, "object", "{at}"),
                "properties" => {
                    for (key, schema) in says.as_object().unwrap() {
                        let before = properties.insert(key.clone(), schema.clone());
                        assert!(before.is_none(), "{at}: {key} is described twice");
                    }
                }
                "required" => required.extend(says.as_array().unwrap().iter().cloned()),
                other => panic!("{at}: this check does not know {other} of a part: {says}"),
            }
        }
    }
    json!({ "type": "object", "properties": properties, "required": required })
}

fn is_a(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type: {other}"),
    }
}

/// Schema of an operation's response with this status.
fn answers<'d>(document: &'d Value, method: &str, path: &str, status: u16, kind: &str) -> &'d Value {
    let responses = &document["paths"][path][method]["responses"];
    let family = format!("{}XX", status / 100);
    let response = responses.get(status.to_string()).or_else(|| responses.get(&family));
    let response = response.unwrap_or_else(|| panic!("{method} {path} does not say that it answers {status}"));
    response.pointer(&format!("/content/{}/schema", kind.replace('/', "~1"))).unwrap()
}

#[test]
fn every_page_matches_its_schema() {
    let fake = Fake::with_views(Views::made_up());
    let document = document(&fake);
    let mut looked_at = 0;
    for (path, methods) in described(&document) {
        // Their answers are texts.
        if !methods.contains("get") || ["/metrics", "/livez", "/readyz"].contains(&path.as_str()) {
            continue;
        }
        let id = match path.as_str() {
            "/v1/networks/{id}" => "net1",
            "/v1/uplinks/{id}" => "up0",
            "/v1/vms/{id}" => "fw-3",
            "/v1/history/{id}" => "4",
            _ => "p1",
        };
        let answer = request(&fake, "GET", &path.replace("{id}", id));
        assert_eq!(answer.0, 200, "{path}");
        let (kind, values) = match path.as_str() {
            "/v1/events" => {
                let lines: Vec<Value> =
                    answer.2.lines().filter(|line| line.starts_with('{')).map(|line| line.parse().unwrap()).collect();
                assert_eq!(lines.len(), Views::made_up().events.len());
                ("application/x-ndjson", lines)
            }
            _ => ("application/json", vec![answer.json()]),
        };
        let schema = answers(&document, "get", &path, 200, kind);
        for value in values {
            check(&document, schema, &value, &path).unwrap();
        }
        looked_at += 1;
    }
    assert!(looked_at >= 10, "pages have been looked at: {looked_at}");
}

/// Keys that programs depend on: keys may be added, not removed.
#[test]
fn ports_and_uplinks_keep_their_keys() {
    let counts = "rx_frames rx_bytes tx_frames tx_bytes forwarded flooded copies probes announcements rx_missed segmented checksummed \
                  not_learned not_flooded mirror_copies reserved_groups drops";
    let alike = "status status_reason admin_state_up device worker";
    let port = "port_id device_id network_id mac_address position port_security unknown_unicast promiscuous mac_learning \
                activation lifetime pinned mac_limit mac_limit_policy";
    let uplink = "uplink_id group active networks";
    let fake = Fake::with_views(Views::made_up());
    let document = document(&fake);
    for (path, own) in [("/v1/ports", port), ("/v1/uplinks", uplink)] {
        let schema = answers(&document, "get", path, 200, "application/json");
        let named = schema["items"]["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
        let described = together(&document, &document.pointer(named).unwrap()["allOf"], path);
        let shown = request(&fake, "GET", path).json();
        for key in [own, alike, counts].iter().flat_map(|keys| keys.split(' ')) {
            assert!(shown[0].get(key).is_some(), "{path} shows no {key}: {shown}");
            assert!(described["properties"].get(key).is_some(), "{path}: {key} is not described: {described}");
            let optional = matches!(key, "group" | "worker" | "mac_limit" | "mac_limit_policy");
            let is_required = described["required"].as_array().unwrap().contains(&json!(key));
            assert_eq!(is_required, !optional, "{path}: {key}");
        }
    }
}

#[test]
fn responses_to_changes_match_their_schemas() {
    let (yes, no) = (
        Fake::with_views(Views::made_up()),
        Fake::with_behaviour(
            Views::made_up(),
            FakeBehaviour::refusing(ErrorKind::Conflict, "in_the_way", "something is in the way"),
        ),
    );
    let document = document(&yes);
    let port = r#"{"port_id":"p1","network_id":"n","mac_address":"02:00:00:00:00:01","device":{"kind":"tap"}}"#;
    let put_port = port.replace("{\"port_id\"", "{\"device_id\":\"v\",\"port_id\"");
    let uplink = r#"{"networks":[{"network_id":"n"}],"device":{"kind":"packet","name":"e"}}"#;
    for (path, methods) in described(&document) {
        for method in methods.iter().filter(|method| *method != "get") {
            let body = match (method.as_str(), path.as_str()) {
                (_, "/v1/vms/{id}/ports") => port,
                ("put", "/v1/ports/{id}") => &put_port,
                ("put", "/v1/uplinks/{id}") => uplink,
                (_, "/v1/log") => r#"{"level":"info"}"#,
                _ => "{}",
            };
            // The log is no part of the controller, which refuses here.
            let refused = if path == "/v1/log" { 200..300 } else { 409..410 };
            for (fake, wanted) in [(&yes, 200..300), (&no, refused)] {
                let answer = ask_with(fake, &method.to_uppercase(), &path.replace("{id}", "p1"), body);
                assert!(wanted.contains(&answer.0), "{method} {path}: {answer:?}");
                let media = if answer.0 < 400 { "application/json" } else { "application/problem+json" };
                let schema = answers(&document, method, &path, answer.0, media);
                check(&document, schema, &answer.json(), &path).unwrap();
            }
        }
    }
    // Errors match their schema too.
    let wrong = ask_with(&yes, "PUT", "/v1/config", r#"{"networks": [{"id": ""}, {}]}"#);
    let schema = answers(&document, "put", "/v1/config", wrong.0, "application/problem+json");
    check(&document, schema, &wrong.json(), "problems").unwrap();
}

#[test]
fn request_bodies_match_their_schemas() {
    let fake = Fake::with_views(Views::default());
    let document = document(&fake);
    let body = |path: &str, method: &str| {
        document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"].clone()
    };
    let port = json!({ "port_id": "p1", "network_id": "n", "mac_address": "02:00:00:00:00:01", "fixed_ips": ["10.0.0.1"],
        "allowed_address_pairs": [{ "mac_address": "02:00:00:00:00:02" }, { "ip_address": "10.0.0.0/8" }],
        "unknown_unicast": "deliver", "promiscuous": true, "mac_learning": false, "activation": "first-frame", "lifetime": "netns", "mac_limit": 4, "mac_limit_policy": "drop", "device": { "kind": "tap", "queues": 2 } });
    let config = json!({ "switch": { "cores": [1] }, "networks": [{ "id": "n", "mtu": 1500 }],
        "vms": [{ "id": "v", "ports": [port] }],
        "uplinks": [{ "id": "up0", "group": "g", "networks": [{ "network_id": "n", "vlan": 120 }, { "network_id": "m" }],
            "admin_state_up": true, "device": { "kind": "xdp", "name": "eth1", "mode": "copy", "replace_xdp_program": true } }] });
    for (path, method, right, wrong) in [
        ("/v1/config", "put", config.clone(), json!({ "vms": [{ "id": 7 }] })),
        ("/v1/config/diff", "post", config, json!({ "vms": 7 })),
        ("/v1/config", "put", json!({}), json!({ "uplinks": [{ "networks": [{ "vlan": "x" }] }] })),
        ("/v1/vms/{id}/ports", "post", port.clone(), json!({ "port": "p1" })),
        ("/v1/vms/{id}/ports", "post", json!([port]), json!(7)),
        ("/v1/ports/{id}", "patch", json!({ "admin_state_up": false }), json!({ "admin_state_up": 1 })),
        ("/v1/fdb/flush", "post", json!({ "network_id": "n" }), json!({ "network": "n" })),
        ("/v1/log", "put", json!({ "level": "debug" }), json!({ "levels": "debug" })),
        ("/v1/ports/{id}", "put", json!({ "position": 1, "owner": "cni" }), json!({ "position": "1" })),
        ("/v1/networks/{id}", "put", json!({ "mtu": 9000 }), json!({ "mtu": "9000" })),
        ("/v1/uplinks/{id}", "put", json!({ "group": "g" }), json!({ "networks": 7 })),
        ("/v1/vms/{id}", "put", json!({ "ports": [] }), json!({ "ports": 7 })),
    ] {
        check(&document, &body(path, method), &right, path).unwrap();
        assert!(check(&document, &body(path, method), &wrong, path).is_err(), "{method} {path}");
    }
}

/// Examples are what the API takes and answers.
#[test]
fn examples_match_their_schemas() {
    let document = document(&Fake::with_views(Views::default()));
    let mut seen = 0;
    for item in document["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            let bodies = operation["responses"].as_object().unwrap().values().chain([&operation["requestBody"]]);
            for content in bodies.filter_map(|body| body["content"].as_object()).flat_map(Map::values) {
                if let Some(example) = content.get("example") {
                    check(&document, &content["schema"], example, operation["operationId"].as_str().unwrap()).unwrap();
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 12, "{seen}");
}

#[test]
fn every_reference_resolves() {
    fn walk(document: &Value, value: &Value, found: &mut usize) {
        match value {
            Value::Object(entries) => {
                for (key, value) in entries {
                    if key == "$ref" {
                        let name = value.as_str().unwrap().strip_prefix('#').unwrap();
                        assert!(document.pointer(name).is_some(), "{name}");
                        *found += 1;
                    }
                    walk(document, value, found);
                }
            }
            Value::Array(items) => items.iter().for_each(|value| walk(document, value, found)),
            _ => {}
        }
    }
    let document = document(&Fake::with_views(Views::default()));
    let mut found = 0;
    walk(&document, &document, &mut found);
    assert!(found > 20, "{found}");
}
