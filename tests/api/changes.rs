//! Changes over the API: what the controller receives, and what the client is answered. Runs the API server over a
//! fake controller; needs nothing of the host.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use vifswitch::control::api::handle::{ChangeOptions, Flush};
use vifswitch::control::config::{
    Config, Network, parse_json, parse_port_json, parse_port_keys_json, parse_ports_json, parse_uplink_json,
    parse_vm_json,
};
use vifswitch::control::desired::change::{Change, ChangeResult, ErrorKind};
use vifswitch::control::desired::diff::{Difference, Entity};

use crate::{Answer, ask_with, converse, request};
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
    let (changes, differences) = (["port p9 is new"], json!([]));
    let expected =
        json!({ "changes": changes, "differences": differences, "warnings": ["no namespace"], "generation": 0 });
    assert_eq!(answer.json(), expected);
}

#[test]
fn a_configuration_is_applied() {
    let (fake, mut requests) = willing();
    let body = configuration().to_string();
    changed(&ask_with(&fake, "PUT", "/v1/config", &body));
    assert_eq!(requests.try_recv().unwrap(), Received::Change(Change::Apply(expected()), ChangeOptions::default()));
    changed(&ask_with(&fake, "PUT", "/v1/config?confirm=30", &body));
    assert_eq!(
        requests.try_recv().unwrap(),
        Received::Change(Change::Apply(expected()), Some(Duration::from_secs(30)).into())
    );
    changed(&ask_with(&fake, "POST", "/v1/config/diff", &body));
    assert_eq!(requests.try_recv().unwrap(), Received::Diff(Change::Apply(expected())));
    changed(&request(&fake, "POST", "/v1/confirm"));
    assert_eq!(requests.try_recv().unwrap(), Received::Confirm);
    changed(&request(&fake, "DELETE", "/v1/confirm"));
    assert_eq!(requests.try_recv().unwrap(), Received::Cancel);
    assert_eq!(request(&fake, "GET", "/v1/confirm").json(), json!({ "pending": false }));

    // Settings of the process are passed on; the controller checks them.
    let mut other = configuration();
    other["switch"] = json!({ "cores": [2] });
    changed(&ask_with(&fake, "PUT", "/v1/config", &other.to_string()));
    let Received::Change(Change::Apply(config), _) = requests.try_recv().unwrap() else { panic!() };
    assert_eq!(config.switch.cores, [2]);
}

/// The answer to a repeated request, which changes nothing.
#[test]
fn ports_that_are_attached_already_are_no_conflict() {
    let unchanging = FakeBehaviour { answer: Ok(ChangeResult::default()), ..FakeBehaviour::willing().0 };
    let fake = Fake::with_behaviour(Views::made_up(), unchanging);
    let answer = ask_with(&fake, "POST", "/v1/vms/fw-3/ports", &port("p1").to_string());
    assert_eq!((answer.0, &answer.json()["changes"]), (200, &json!([])), "{answer:?}");
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
            assert_eq!(
                requests.try_recv().unwrap(),
                Received::Change(Change::Attach { vm: vm.into(), ports }, ChangeOptions::default())
            );
        }
    }
    // A duplicate port is passed on: the controller refuses the request as a whole.
    ask_with(&fake, "POST", "/v1/vms/fw-3/ports", &json!([port("p1"), port("p1")]).to_string());
    let Received::Change(Change::Attach { ports, .. }, _) = requests.try_recv().unwrap() else { panic!() };
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
    assert_eq!(
        requests.try_recv().unwrap(),
        Received::Change(Change::Set { port: ODD.into(), keys }, ChangeOptions::default())
    );
    changed(&request(&fake, "POST", "/v1/ports/p1/release"));
    assert_eq!(requests.try_recv().unwrap(), Received::Release("p1".into()));
    changed(&request(&fake, "DELETE", "/v1/ports/p1"));
    assert_eq!(
        requests.try_recv().unwrap(),
        Received::Change(Change::Detach { port: "p1".into() }, ChangeOptions::default())
    );
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

/// A port as it is put.
fn put_port() -> Value {
    let mut port = port("p1");
    port["device_id"] = json!("fw-3");
    port
}

fn uplink() -> Value {
    json!({ "networks": [{ "network_id": "net1" }], "device": { "kind": "packet", "name": "eth1" } })
}

#[test]
fn entities_are_put_and_deleted() {
    let (fake, mut requests) = willing();
    let mut received = || match requests.try_recv().unwrap() {
        Received::Change(change, _) => change,
        other => panic!("{other:?}"),
    };
    let (vm, parsed) = parse_port_json(&put_port().to_string(), "x", "p1").unwrap();
    changed(&ask_with(&fake, "PUT", "/v1/ports/p1", &put_port().to_string()));
    assert_eq!(received(), Change::PutPort { vm, port: parsed });
    changed(&ask_with(&fake, "PUT", "/v1/networks/a%22b%5Cc", r#"{ "mtu": 9000 }"#));
    assert_eq!(received(), Change::PutNetwork(Network { mtu: 9000, ..Network::new(ODD) }));
    changed(&ask_with(&fake, "PUT", "/v1/uplinks/up0", &uplink().to_string()));
    assert_eq!(received(), Change::PutUplink(parse_uplink_json(&uplink().to_string(), "x", "up0").unwrap()));
    let ports = json!({ "share_mac": true, "ports": [port("p1"), port("p2")] });
    for body in [json!({}), json!({ "ports": [] }), ports] {
        changed(&ask_with(&fake, "PUT", "/v1/vms/fw-3", &body.to_string()));
        let (settings, ports) = parse_vm_json(&body.to_string(), "x", "fw-3").unwrap();
        assert_eq!(received(), Change::PutVm { vm: "fw-3".into(), settings, ports });
    }
    for (path, change) in [
        ("/v1/networks/net1", Change::DeleteNetwork("net1".into())),
        ("/v1/uplinks/up0", Change::DeleteUplink("up0".into())),
        ("/v1/vms/fw-3", Change::DeleteVm("fw-3".into())),
    ] {
        changed(&request(&fake, "DELETE", path));
        assert_eq!(received(), change);
    }
    let owned = ask_with(&fake, "PUT", "/v1/config?owner=cni", &configuration().to_string());
    changed(&owned);
    assert_eq!(received(), Change::ApplyOwned { owner: "cni".into(), config: expected() });
    // What names another entity, or no VM, is refused.
    for (path, body) in [
        ("/v1/ports/p2", put_port()),
        ("/v1/ports/p1", port("p1")),
        ("/v1/networks/net1", json!({ "id": "net2" })),
        ("/v1/vms/fw-3", json!({ "id": 7 })),
        ("/v1/config?owner=", json!({})),
        ("/v1/config?wait=0", json!({})),
        ("/v1/ports/p1?confirm=30", put_port()),
    ] {
        let answer = ask_with(&fake, "PUT", path, &body.to_string());
        assert_eq!(answer.0, 400, "{path}: {answer:?}");
    }
}

#[test]
fn a_change_says_whether_it_made_or_deleted_anything() {
    let answer_to = |differences: Vec<Difference>, method: &str, path: &str, body: &str| {
        let (mut mind, _requests) = FakeBehaviour::willing();
        let changes = differences.iter().map(ToString::to_string).collect();
        mind.answer = Ok(ChangeResult { changes, differences, generation: 18, ..ChangeResult::default() });
        ask_with(&Fake::with_behaviour(Views::made_up(), mind), method, path, body)
    };
    let new = |id: &str, key: Option<&str>| Difference {
        kind: Entity::Network,
        id: id.into(),
        key: key.map(str::to_owned),
        before: json!(null),
        after: json!({}),
    };
    for (differences, status) in
        [(vec![new("n", None)], 201), (vec![new("m", None)], 200), (vec![new("n", Some("mtu"))], 200), (vec![], 200)]
    {
        let answer = answer_to(differences, "PUT", "/v1/networks/n", "{}");
        assert_eq!(answer.0, status, "{answer:?}");
        assert!(answer.1.to_lowercase().contains("etag: \"18\""), "{answer:?}");
    }
    let tried = answer_to(vec![new("n", None)], "PUT", "/v1/networks/n?dry_run=true", "{}");
    assert_eq!(tried.0, 200, "a dry run makes nothing");
    for path in ["/v1/networks/n", "/v1/uplinks/n", "/v1/vms/n", "/v1/ports/n"] {
        let gone = answer_to(vec![], "DELETE", path, "");
        assert_eq!((gone.0, gone.2.as_str()), (204, ""), "{path}");
        assert_eq!(answer_to(vec![new("n", None)], "DELETE", path, "").0, 200, "{path}");
    }
}

#[test]
fn a_change_is_limited_to_a_generation() {
    let (fake, mut requests) = willing();
    let mut limited_to = |head: &str| {
        let stream = UnixStream::connect(fake.socket()).unwrap();
        let head = format!("Content-Type: application/json\r\n{head}");
        let answer = converse(stream, "PUT", "/v1/networks/n", &head, "{}");
        let received = requests.try_recv().ok().map(|received| match received {
            Received::Change(_, options) => options.generations,
            other => panic!("{other:?}"),
        });
        (answer.0, received)
    };
    assert_eq!(limited_to(""), (200, Some(None)));
    assert_eq!(limited_to("If-Match: *\r\n"), (200, Some(None)));
    assert_eq!(limited_to("If-Match: \"7\"\r\n"), (200, Some(Some(vec![7]))));
    assert_eq!(limited_to("If-Match: \"7\", \"8\"\r\n"), (200, Some(Some(vec![7, 8]))));
    for wrong in ["7", "\"x\"", "\"7", "", "W/\"7\"", "\"-1\""] {
        assert_eq!(limited_to(&format!("If-Match: {wrong}\r\n")), (400, None), "{wrong}");
    }
}

#[test]
fn a_dry_run_changes_nothing() {
    let (fake, mut requests) = willing();
    let is_write = |method: &str, path: &str| (method != "POST" || path.ends_with("/ports")) && path != "/v1/confirm";
    for (method, path, body) in every_change().into_iter().filter(|(method, path, _)| is_write(method, path)) {
        let answer = ask_with(&fake, method, &format!("{path}?dry_run=true"), &body);
        assert!(answer.0 == 200, "{method} {path}: {answer:?}");
        assert!(matches!(requests.try_recv(), Ok(Received::Diff(_))), "{method} {path}");
    }
}

#[test]
fn a_change_waits_for_its_ports() {
    let (fake, _requests) = willing();
    // ACTIVE in the views of the fake switch.
    let answer = ask_with(&fake, "PUT", "/v1/ports/p1?wait=300", &put_port().to_string());
    assert_eq!((answer.0, &answer.json()["not_active"]), (200, &json!([])));
    let mut down = put_port();
    down["port_id"] = json!(ODD);
    let answer = ask_with(&fake, "PUT", "/v1/ports/a%22b%5Cc?wait=1", &down.to_string());
    let left = &answer.json()["not_active"];
    assert_eq!((answer.0, &left[0]["port_id"]), (200, &json!(ODD)), "{left}");
    assert!(left[0]["status_reason"].as_str().is_some_and(|why| !why.is_empty()), "{left}");
    // One that is not there was removed since the change: it is not waited for.
    let mut gone = put_port();
    gone["port_id"] = json!("gone");
    let answer = ask_with(&fake, "PUT", "/v1/ports/gone?wait=300", &gone.to_string());
    let left = &answer.json()["not_active"];
    let shown = (&left[0]["port_id"], &left[0]["status"], &left[0]["status_code"]);
    assert_eq!((answer.0, shown), (200, (&json!("gone"), &json!("DOWN"), &json!("removed"))), "{left}");
}

/// Every request that changes something, with a valid body.
fn every_change() -> Vec<(&'static str, &'static str, String)> {
    vec![
        ("PUT", "/v1/config", configuration().to_string()),
        ("POST", "/v1/config/diff", configuration().to_string()),
        ("POST", "/v1/confirm", String::new()),
        ("DELETE", "/v1/confirm", String::new()),
        ("POST", "/v1/vms/fw-3/ports", port("p1").to_string()),
        ("PATCH", "/v1/ports/p1", "{}".into()),
        ("DELETE", "/v1/ports/p1", String::new()),
        ("PUT", "/v1/ports/p1", put_port().to_string()),
        ("PUT", "/v1/networks/net1", "{}".into()),
        ("DELETE", "/v1/networks/net1", String::new()),
        ("PUT", "/v1/uplinks/up0", uplink().to_string()),
        ("DELETE", "/v1/uplinks/up0", String::new()),
        ("PUT", "/v1/vms/fw-3", "{}".into()),
        ("DELETE", "/v1/vms/fw-3", String::new()),
        ("POST", "/v1/ports/p1/release", String::new()),
        ("POST", "/v1/fdb/flush", "{}".into()),
    ]
}

#[test]
fn a_refusal_names_its_cause() {
    for (category, status) in [
        (ErrorKind::Request, 400),
        (ErrorKind::Unknown, 404),
        (ErrorKind::Conflict, 409),
        (ErrorKind::Outdated, 412),
        (ErrorKind::Switch, 503),
    ] {
        let fake =
            Fake::with_behaviour(Views::made_up(), FakeBehaviour::refusing(category, "some_kind", "so it is\nand so"));
        for (method, path, body) in every_change() {
            let answer = ask_with(&fake, method, path, &body);
            assert_eq!((answer.0, answer.kind().as_str()), (status, "some_kind"), "{method} {path}");
            assert_eq!(answer.json()["detail"], "so it is\nand so");
        }
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
        ("GET", "/v1/events?kind=port_up,storm", "", "bad_query"),
        ("GET", "/v1/events?after=x", "", "bad_query"),
        ("GET", "/v1/events?since=yesterday", "", "bad_value"),
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
        ("POST", "/v1/fdb/flush", "[\"net1\", \"p1\", null]", "bad_value"),
        ("POST", "/v1/rollback", " [17]", "bad_value"),
        ("PUT", "/v1/log", "[\"debug\"]", "bad_value"),
    ] {
        let answer = ask_with(&fake, method, path, body);
        assert_eq!((answer.0, answer.kind().as_str()), (400, kind), "{method} {path} {answer:?}");
    }
    for path in ["/v1/ports/%ff", "/v1/networks/%ff", "/v1/vms/a%0Ab"] {
        let answer = request(&fake, "DELETE", path);
        assert_eq!((answer.0, answer.kind().as_str()), (400, "bad_value"), "{path}");
    }
    let answer = request(&fake, "POST", "/v1/ports/%ff/release");
    assert_eq!((answer.0, answer.kind().as_str()), (404, "unknown_port"));
    assert!(requests.try_recv().is_err(), "the controller has received nothing");
}
