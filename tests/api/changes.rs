//! Changes over the API: what the controller receives, and what the client is answered. Runs the API server over a
//! fake controller; needs nothing of the host.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use vifswitch::control::api::handle::Flush;
use vifswitch::control::config::{Config, parse_json, parse_port_keys_json, parse_ports_json};
use vifswitch::control::desired::change::{Change, ErrorKind};

use crate::{Answer, ask_with, request};
use support::fake::{Fake, FakeBehaviour, ODD, Received, Views};

/// A configuration without the table `switch`.
fn configuration() -> Value {
    json!({ "networks": [{ "id": "net1" }], "vms": [{ "id": "fw-3", "ports": [port("p1"), port("p2")] }] })
}

fn port(id: &str) -> Value {
    let last = id.bytes().map(u32::from).sum::<u32>() % 256;
    json!({
        "port_id": id, "network_id": "net1", "mac_address": format!("02:00:00:00:01:{last:02x}"),
        "device": { "kind": "tap", "name": format!("t-{id}") }
    })
}

fn willing() -> (Fake, UnboundedReceiver<Received>) {
    let (mind, requests) = FakeBehaviour::willing();
    (Fake::with_behaviour(Views::made_up(), mind), requests)
}

/// The parsed configuration, with the fake switch's settings of the process.
fn expected() -> Config {
    let mut config = configuration();
    config["switch"] = json!({ "cores": [1] });
    parse_json(&config.to_string(), "x").unwrap()
}

fn changed(answer: &Answer) {
    assert_eq!(answer.0, 200, "{answer:?}");
    assert_eq!(answer.json(), json!({ "changes": ["port p9 is new"], "warnings": ["no namespace"] }));
}

#[test]
fn a_configuration_is_applied() {
    let (fake, mut requests) = willing();
    let body = configuration().to_string();
    changed(&ask_with(&fake, "PUT", "/v1/config", &body));
    assert_eq!(requests.try_recv().unwrap(), Received::Change(Change::Apply(expected()), None));
    changed(&ask_with(&fake, "PUT", "/v1/config?confirm=30", &body));
    assert_eq!(
        requests.try_recv().unwrap(),
        Received::Change(Change::Apply(expected()), Some(Duration::from_secs(30)))
    );
    changed(&ask_with(&fake, "POST", "/v1/config/diff", &body));
    assert_eq!(requests.try_recv().unwrap(), Received::Diff(Change::Apply(expected())));
    changed(&request(&fake, "POST", "/v1/confirm"));
    assert_eq!(requests.try_recv().unwrap(), Received::Confirm);

    // Settings of the process are passed on; the controller checks them.
    let mut other = configuration();
    other["switch"] = json!({ "cores": [2] });
    changed(&ask_with(&fake, "PUT", "/v1/config", &other.to_string()));
    let Received::Change(Change::Apply(config), None) = requests.try_recv().unwrap() else { panic!() };
    assert_eq!(config.switch.cores, [2]);
}

#[test]
fn ports_are_attached() {
    let (fake, mut requests) = willing();
    let (one, two) = (port("p1"), json!([port("p1"), port("p8")]));
    for (vm, path) in [("fw-3", "/v1/vms/fw-3/ports"), (ODD, "/v1/vms/a%22b%5Cc/ports")] {
        for body in [&one, &two] {
            let answer = ask_with(&fake, "POST", path, &body.to_string());
            assert_eq!(answer.0, 201, "{answer:?}");
            let said = answer.json();
            assert_eq!(said["changes"], json!(["port p9 is new"]));
            assert_eq!(said["warnings"], json!(["no namespace"]));
            let views: Vec<_> = said["ports"].as_array().unwrap().iter().map(|port| &port["port_id"]).collect();
            assert_eq!(views, ["p1"], "those that are there");
            let ports = parse_ports_json(&body.to_string(), "x", vm).unwrap();
            assert_eq!(requests.try_recv().unwrap(), Received::Change(Change::Attach { vm: vm.into(), ports }, None));
        }
    }
    // A duplicate port is passed on: the controller refuses the request as a whole.
    ask_with(&fake, "POST", "/v1/vms/fw-3/ports", &json!([port("p1"), port("p1")]).to_string());
    let Received::Change(Change::Attach { ports, .. }, None) = requests.try_recv().unwrap() else { panic!() };
    assert_eq!(ports.len(), 2);
}

#[test]
fn ports_are_set_and_released_and_detached() {
    let (fake, mut requests) = willing();
    let keys =
        json!({ "admin_state_up": false, "fixed_ips": null, "device": { "queues": 2, "netns": null } }).to_string();
    changed(&ask_with(&fake, "PATCH", "/v1/ports/a%22b%5Cc", &keys));
    let keys = parse_port_keys_json(&keys, "x").unwrap();
    assert_eq!(keys.cleared, ["fixed_ips", "device.netns"]);
    assert_eq!(requests.try_recv().unwrap(), Received::Change(Change::Set { port: ODD.into(), keys }, None));
    changed(&request(&fake, "POST", "/v1/ports/p1/release"));
    assert_eq!(requests.try_recv().unwrap(), Received::Release("p1".into()));
    changed(&request(&fake, "DELETE", "/v1/ports/p1"));
    assert_eq!(requests.try_recv().unwrap(), Received::Change(Change::Detach { port: "p1".into() }, None));
}

#[test]
fn stations_are_flushed() {
    let (fake, mut requests) = willing();
    let all = Flush::default();
    let one = Flush {
        network: Some("net1".into()),
        port: Some("p1".into()),
        mac: Some("02:00:00:00:01:0a".parse().unwrap()),
    };
    let body = json!({ "network_id": "net1", "port_id": "p1", "mac_address": "02:00:00:00:01:0A" });
    for (body, flush) in [("", &all), ("{}", &all), (&body.to_string(), &one)] {
        let answer = ask_with(&fake, "POST", "/v1/fdb/flush", body);
        assert_eq!((answer.0, answer.json()), (200, json!({ "flushed": 7 })));
        assert_eq!(requests.try_recv().unwrap(), Received::Flush(flush.clone()));
    }
}

/// Every request that changes something, with a valid body.
fn every_change() -> Vec<(&'static str, &'static str, String)> {
    vec![
        ("PUT", "/v1/config", configuration().to_string()),
        ("POST", "/v1/config/diff", configuration().to_string()),
        ("POST", "/v1/confirm", String::new()),
        ("POST", "/v1/vms/fw-3/ports", port("p1").to_string()),
        ("PATCH", "/v1/ports/p1", "{}".into()),
        ("DELETE", "/v1/ports/p1", String::new()),
        ("POST", "/v1/ports/p1/release", String::new()),
        ("POST", "/v1/fdb/flush", "{}".into()),
    ]
}

#[test]
fn a_refusal_names_its_cause() {
    for (category, status) in
        [(ErrorKind::Request, 400), (ErrorKind::Unknown, 404), (ErrorKind::Conflict, 409), (ErrorKind::Switch, 503)]
    {
        let fake =
            Fake::with_behaviour(Views::made_up(), FakeBehaviour::refusing(category, "some_kind", "so it is\nand so"));
        for (method, path, body) in every_change() {
            let answer = ask_with(&fake, method, path, &body);
            assert_eq!((answer.0, answer.kind().as_str()), (status, "some_kind"), "{method} {path}");
            assert_eq!(answer.json(), json!({ "error": { "kind": "some_kind", "message": "so it is\nand so" } }));
        }
        let answer = request(&fake, "GET", "/v1/events");
        assert_eq!((answer.0, answer.kind().as_str()), (status, "some_kind"));
    }
}

#[test]
fn a_switch_that_is_shutting_down_takes_no_changes() {
    let fake = Fake::closing();
    for (method, path, body) in every_change() {
        let answer = ask_with(&fake, method, path, &body);
        assert_eq!((answer.0, answer.kind().as_str()), (503, "shutting_down"), "{method} {path}");
    }
}

#[test]
fn every_error_in_a_body_is_reported() {
    let (fake, mut requests) = willing();
    let mut config = configuration();
    config["vms"][0]["ports"][1] = json!({ "port_id": "p1", "network_id": "net1", "mac": 7 });
    for (method, path) in [("PUT", "/v1/config"), ("POST", "/v1/config/diff")] {
        let answer = ask_with(&fake, method, path, &config.to_string());
        assert_eq!(answer.0, 400, "{answer:?}");
        let error = &answer.json()["error"];
        let problems = error["problems"].as_array().unwrap();
        let events: Vec<_> =
            problems.iter().map(|p| (p["key"].as_str().unwrap(), p["kind"].as_str().unwrap())).collect();
        for problem in [
            ("vms[0].ports[1].mac", "unknown_key"),
            ("vms[0].ports[1].mac_address", "missing"),
            ("vms[0].ports[1].device", "missing"),
            ("vms[0].ports[1].port_id", "duplicate_port"),
        ] {
            assert!(events.contains(&problem), "{problem:?}: {events:?}");
        }
        assert_eq!(error["kind"], problems[0]["kind"]);
        let message = error["message"].as_str().unwrap();
        assert_eq!(message.lines().count(), problems.len(), "{message}");
        let value = |key: &str| problems.iter().find(|p| p["key"] == key).unwrap().get("value").cloned();
        assert_eq!(value("vms[0].ports[1].mac"), Some(json!("7")));
        assert_eq!(value("vms[0].ports[1].device"), None);
    }
    assert!(requests.try_recv().is_err(), "the controller has received nothing");
}

#[test]
fn invalid_requests_are_400() {
    let (fake, mut requests) = willing();
    let config = configuration().to_string();
    let long = format!("/v1/vms/{}/ports", "x".repeat(256));
    let one = port("p1").to_string();
    let other_vm = {
        let mut port = port("p1");
        port["device_id"] = "web".into();
        port.to_string()
    };
    let deep = "[".repeat(100_000);
    for (method, path, body, kind) in [
        ("PUT", "/v1/config?confirm=0", config.as_str(), "bad_query"),
        ("PUT", "/v1/config?confirm=86401", &config, "bad_query"),
        ("PUT", "/v1/config?confirm=soon", &config, "bad_query"),
        ("PUT", "/v1/config?confrim=30", &config, "bad_query"),
        ("POST", "/v1/config/diff?confirm=30", &config, "bad_query"),
        ("GET", "/v1/events?follow=perhaps", "", "bad_query"),
        ("GET", "/v1/events?from=x", "", "bad_query"),
        ("PUT", "/v1/config", "", "syntax"),
        ("PUT", "/v1/config", "[networks]", "syntax"),
        ("PUT", "/v1/config", "{\"vms\": [], \"vms\": []}", "syntax"),
        ("PUT", "/v1/config", &deep, "syntax"),
        ("PUT", "/v1/config", "7", "wrong_type"),
        ("POST", "/v1/vms/fw-3/ports", "", "syntax"),
        ("POST", "/v1/vms/fw-3/ports", "7", "wrong_type"),
        ("POST", "/v1/vms/fw-3/ports", &other_vm, "contradiction"),
        ("POST", "/v1/vms/a%0Ab/ports", &one, "bad_value"),
        ("POST", "/v1/vms/%ff/ports", &one, "bad_value"),
        ("POST", &long, &one, "bad_value"),
        ("PATCH", "/v1/ports/p1", "[]", "wrong_type"),
        ("PATCH", "/v1/ports/p1", "{\"admin_state\": true}", "unknown_key"),
        ("PATCH", "/v1/ports/p1", "{\"admin_state_up\": \"yes\"}", "wrong_type"),
        ("POST", "/v1/fdb/flush", "{", "syntax"),
        ("POST", "/v1/fdb/flush", "{\"mac\": \"x\"}", "bad_value"),
        ("POST", "/v1/fdb/flush", "{\"mac_address\": \"x\"}", "bad_value"),
    ] {
        let answer = ask_with(&fake, method, path, body);
        assert_eq!((answer.0, answer.kind().as_str()), (400, kind), "{method} {path} {answer:?}");
    }
    for (method, path) in [("DELETE", "/v1/ports/%ff"), ("POST", "/v1/ports/%ff/release")] {
        let answer = request(&fake, method, path);
        assert_eq!((answer.0, answer.kind().as_str()), (404, "unknown_port"), "{method} {path}");
    }
    assert!(requests.try_recv().is_err(), "the controller has received nothing");
}
