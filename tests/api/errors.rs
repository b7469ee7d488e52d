//! Errors are problem details, each problem with its entity, key, value and remedy. Needs nothing of the host.

use std::io::Write;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use vifswitch::control::desired::change::{Change, ErrorKind};

use crate::{Answer, answer_on, ask_with, request};
use support::fake::{Fake, FakeBehaviour, Views};

/// The error in an answer, which has all that every error has.
fn error(answer: &Answer, status: u16, kind: &str) -> Value {
    assert_eq!(answer.0, status, "{answer:?}");
    assert!(answer.1.contains("content-type: application/problem+json"), "{}", answer.1);
    let body = answer.json();
    assert_eq!((&body["status"], &body["kind"]), (&json!(status), &json!(kind)), "{body}");
    assert_eq!(body["type"], format!("urn:vifswitch:error:{kind}"));
    assert_eq!(body["title"], kind.replace('_', " "));
    let problems = body["problems"].as_array().unwrap();
    assert!(!problems.is_empty(), "{body}");
    for problem in problems {
        for key in ["kind", "key", "message", "remedy"] {
            assert!(problem[key].is_string(), "{key} of {body}");
        }
        assert!(!problem["remedy"].as_str().unwrap().is_empty(), "{body}");
        assert!(problem["message"].as_str().unwrap().ends_with(problem["remedy"].as_str().unwrap()), "{body}");
    }
    // As before there were problem details.
    assert_eq!((&body["error"]["kind"], &body["error"]["message"]), (&body["kind"], &body["detail"]));
    assert_eq!(body["error"]["problems"], body["problems"]);
    body
}

#[test]
fn each_kind_of_error_is_problem_details() {
    let fake = Fake::with_views(Views::made_up());
    let missing = error(&request(&fake, "GET", "/v1/ports/p1x"), 404, "unknown_port");
    assert_eq!(missing["problems"][0]["port_id"], "p1x", "{missing}");
    assert_eq!(missing["problems"][0]["remedy"], "did you mean \"p1\"?");
    for (path, key) in [("networks", "network_id"), ("uplinks", "uplink_id"), ("vms", "device_id")] {
        let missing = request(&fake, "GET", &format!("/v1/{path}/none"));
        let kind = format!("unknown_{}", path.trim_end_matches('s'));
        assert_eq!(error(&missing, 404, &kind)["problems"][0][key], "none");
    }
    error(&request(&fake, "GET", "/v1/nothing"), 404, "unknown_path");
    let method = request(&fake, "POST", "/v1/ports");
    assert!(method.1.contains("allow: "), "{method:?}");
    error(&method, 405, "method_not_allowed");
    let query = error(&request(&fake, "GET", "/v1/ports?netwrk=1"), 400, "bad_query");
    let problem = &query["problems"][0];
    assert_eq!(problem["key"], "netwrk", "{query}");
    assert!(problem["remedy"].as_str().unwrap().contains("network_id"), "{query}");
    let wait = error(&ask_with(&fake, "PUT", "/v1/ports/p1?wait=x", "{}"), 400, "bad_query");
    assert_eq!((&wait["problems"][0]["key"], &wait["problems"][0]["value"]), (&json!("wait"), &json!("\"x\"")));
    let word = error(&ask_with(&fake, "PUT", "/v1/ports/p1?dry_run=perhaps", "{}"), 400, "bad_query");
    assert_eq!(word["problems"][0]["key"], "dry_run", "{word}");
    error(&ask_with(&fake, "PUT", "/v1/config", "{"), 400, "syntax");
    let flush = error(&ask_with(&fake, "POST", "/v1/fdb/flush", r#"{"mac_address":"x"}"#), 400, "bad_value");
    assert_eq!(flush["problems"][0]["key"], "mac_address");
    error(&ask_with(&fake, "POST", "/v1/fdb/flush", r#"{"mac":"x"}"#), 400, "bad_value");
    for (head, status, kind) in [
        ("PUT /v1/config HTTP/1.1\r\nhost: v\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}", 415, "not_json"),
        (
            "PUT /v1/ports/p HTTP/1.1\r\nhost: v\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n",
            413,
            "too_large",
        ),
        ("DELETE /v1/ports/p HTTP/1.1\r\nhost: v\r\nconnection: close\r\nif-match: 7\r\n\r\n", 400, "bad_header"),
        ("GET /v1/ports/%ff HTTP/1.1\r\nhost: v\r\nconnection: close\r\n\r\n", 404, "unknown_port"),
        ("PUT /v1/ports/%ff HTTP/1.1\r\nhost: v\r\nconnection: close\r\n\r\n", 400, "bad_value"),
    ] {
        let mut stream = UnixStream::connect(fake.socket()).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        error(&answer_on(stream), status, kind);
    }
    error(&request(&Fake::closing(), "GET", "/v1/ports"), 503, "shutting_down");
    for (category, status) in [
        (ErrorKind::Request, 400),
        (ErrorKind::Unknown, 404),
        (ErrorKind::Conflict, 409),
        (ErrorKind::Outdated, 412),
        (ErrorKind::Switch, 503),
    ] {
        let refusing = FakeBehaviour::refusing(category, "some_kind", "it is so; do that");
        let fake = Fake::with_behaviour(Views::made_up(), refusing);
        let refused = error(&request(&fake, "DELETE", "/v1/ports/p1"), status, "some_kind");
        assert_eq!(refused["problems"][0]["port_id"], "p1", "{refused}");
        assert_eq!(refused["problems"][0]["remedy"], "do that");
    }
}

#[test]
fn each_wrong_port_of_a_body_names_itself() {
    let fake = Fake::with_views(Views::made_up());
    let port = |id: &str, mac: &str| json!({ "port_id": id, "network_id": "net1", "mac_address": mac, "device": { "kind": "tap" } });
    let right = port("p1", "02:00:00:00:00:01");
    let ports = json!([right, port("p2", "x"), port("p3", "02:00:00:00:00:03"), port("p4", "03:00:00:00:00:04")]);
    let config = json!({ "networks": [{ "id": "net1", "mtu": 7 }], "vms": [{ "id": "fw", "ports": ports }] });
    let whole = error(&ask_with(&fake, "PUT", "/v1/config", &config.to_string()), 400, "bad_value");
    let found: Vec<_> = whole["problems"].as_array().unwrap().iter().collect();
    assert_eq!(found.len(), 3, "{whole}");
    assert_eq!(
        *found[0],
        json!({ "kind": "bad_value", "network_id": "net1", "key": "networks[0].mtu", "value": "7",
            "message": "out of bounds; use 68 to 9216", "remedy": "use 68 to 9216" })
    );
    assert_eq!((&found[1]["device_id"], &found[1]["port_id"]), (&json!("fw"), &json!("p2")));
    assert_eq!((&found[1]["key"], &found[1]["value"]), (&json!("vms[0].ports[1].mac_address"), &json!("\"x\"")));
    assert_eq!(found[2]["port_id"], "p4");
    let list = error(&ask_with(&fake, "POST", "/v1/vms/fw/ports", &ports.to_string()), 400, "bad_value");
    let named: Vec<_> = list["problems"].as_array().unwrap().iter().map(|of| (&of["port_id"], &of["key"])).collect();
    assert_eq!(named, [(&json!("p2"), &json!("[1].mac_address")), (&json!("p4"), &json!("[3].mac_address"))]);
    // The path names the entity that the body need not name.
    for (path, body, key, id) in [
        ("/v1/ports/p9", r#"{"device_id":"v"}"#, "port_id", "p9"),
        ("/v1/networks/n9", r#"{"mtu":7}"#, "network_id", "n9"),
        ("/v1/uplinks/u9", "{}", "uplink_id", "u9"),
        ("/v1/vms/v9", r#"{"share_mac":7}"#, "device_id", "v9"),
    ] {
        let answer = ask_with(&fake, "PUT", path, body);
        assert_eq!(answer.0, 400, "{answer:?}");
        for problem in answer.json()["problems"].as_array().unwrap() {
            assert_eq!(problem[key], id, "{problem}");
        }
    }
    let patch = error(&ask_with(&fake, "PATCH", "/v1/ports/p9", r#"{"mtu":7}"#), 400, "unknown_key");
    assert_eq!((&patch["problems"][0]["port_id"], &patch["problems"][0]["key"]), (&json!("p9"), &json!("mtu")));
}

/// What a change is refused for by the desired state keeps entity, key and value too.
#[test]
fn conflicts_name_the_port_the_key_and_the_value() {
    let config = r#"
        [[networks]]
        id = "net1"
        [[vms]]
        id = "a"
        [[vms.ports]]
        port_id = "p1"
        network_id = "net1"
        mac_address = "02:00:00:00:00:01"
        device = { kind = "tap", name = "tap1" }
    "#;
    let now = vifswitch::control::config::parse_toml(config, "x").unwrap();
    let new = |id: &str, keys: Value| {
        let mut port = json!({ "network_id": "net1", "mac_address": "02:00:00:00:00:02", "device": { "kind": "tap" } });
        port.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let text = json!([{ "port_id": id }]).to_string();
        port["port_id"] = id.into();
        let ports = vifswitch::control::config::parse_ports_json(&port.to_string(), &text, "b").unwrap();
        Change::Attach { vm: "b".into(), ports }
    };
    for (change, kind, key, value) in [
        (
            new("p2", json!({ "mac_address": "02:00:00:00:00:01" })),
            "mac_in_use",
            "mac_address",
            Some("\"02:00:00:00:00:01\""),
        ),
        (
            new("p2", json!({ "device": { "kind": "tap", "name": "tap1" } })),
            "device_in_use",
            "device.name",
            Some("\"tap1\""),
        ),
        (new("p2", json!({ "network_id": "net2" })), "unknown_network", "ports[0].network_id", Some("\"net2\"")),
        (new("p2", json!({ "device": null, "parent": "p7", "vlan": 7 })), "unknown_parent", "parent", None),
    ] {
        let error = change.to(&now).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        let [problem] = error.problems.as_slice() else { panic!("{error:?}") };
        assert_eq!(problem.subject.port.as_deref(), Some("p2"), "{problem:?}");
        assert_eq!((problem.key.as_str(), problem.value.as_deref()), (key, value), "{problem:?}");
    }
    let error = new("p1", json!({})).to(&now).unwrap_err();
    assert_eq!((error.kind, error.problems[0].subject.port.as_deref()), ("port_in_use", Some("p1")));
    let error = Change::Set { port: "p7".into(), keys: Default::default() }.to(&now).unwrap_err();
    assert_eq!((error.kind, error.problems[0].subject.port.as_deref()), ("unknown_port", Some("p7")));
    let error = Change::DeleteNetwork("net1".into()).to(&now).unwrap_err();
    assert_eq!((error.kind, error.problems[0].subject.network.as_deref()), ("network_in_use", Some("net1")));
}
