//! Lists: filters, fields, pages. Needs nothing of the host.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use vifswitch::control::api::client::Client;
use vifswitch::control::api::responses::{PortView, StationKind, StationView, Status};

use crate::{Answer, request};
use support::fake::{Fake, FakeBehaviour, Views, runtime};

/// Path of the next page, from `Link`.
fn next(answer: &Answer) -> Option<String> {
    let link = answer.1.lines().find_map(|line| line.strip_prefix("link: "))?;
    let (path, rest) = link.strip_prefix('<')?.split_once('>')?;
    assert_eq!(rest, "; rel=\"next\"");
    // The head is lower case in these tests.
    Some(path.to_owned())
}

fn rows(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.0, 200, "{answer:?}");
    answer.json().as_array().unwrap().clone()
}

/// A switch with so many ports, every third of another VM and down, in no order.
fn crowded(count: usize) -> (Fake, Views) {
    let mut views = Views::made_up();
    let model = views.ports[0].clone();
    let port = |n: usize| PortView {
        port_id: format!("p{}", n * 37 % count),
        device_id: if n.is_multiple_of(3) { "a vm" } else { "other" }.into(),
        status: if n.is_multiple_of(3) { Status::Down } else { Status::Active },
        ..model.clone()
    };
    views.ports = (0..count).map(port).collect();
    let station = |n: usize| StationView {
        network_id: format!("net/{}", n % 2),
        mac_address: format!("02:00:00:00:00:{:02x}", n * 37 % count),
        kind: if n.is_multiple_of(5) { StationKind::Pinned } else { StationKind::Learned },
        ..views.fdb[0].clone()
    };
    views.fdb = (0..count).map(station).collect();
    (Fake::with_views(views.clone()), views)
}

#[test]
fn pages_together_are_the_list() {
    let (fake, views) = crowded(100);
    for (list, key) in [("/v1/ports", "port_id"), ("/v1/fdb", "mac_address")] {
        for limit in [1, 33, 99, 100, 101] {
            let (mut path, mut all) = (Some(format!("{list}?limit={limit}")), Vec::new());
            let mut pages = 0;
            while let Some(page) = path {
                let answer = request(&fake, "GET", &page);
                let found = rows(&answer);
                assert!(found.len() <= limit && (found.len() == limit || next(&answer).is_none()), "{page}");
                all.extend(found.into_iter().map(|row| row[key].as_str().unwrap().to_owned()));
                path = next(&answer);
                pages += 1;
            }
            assert_eq!(pages, 100usize.div_ceil(limit), "{list}: {limit}");
            assert_eq!(all.len(), 100, "{list}: {limit}");
            all.sort();
            all.dedup();
            assert_eq!(all.len(), 100, "{list}: each once");
        }
    }
    // Without a page, as before.
    let listed: Vec<_> =
        rows(&request(&fake, "GET", "/v1/ports")).into_iter().map(|row| row["port_id"].clone()).collect();
    assert_eq!(listed, views.ports.iter().map(|port| json!(port.port_id)).collect::<Vec<_>>());
}

/// One port is asked for by its id, and a page by its bounds: the views of all ports are built for neither.
#[test]
fn one_port_and_a_page_do_not_ask_for_all() {
    let behaviour = FakeBehaviour::willing().0;
    let all_ports = behaviour.all_ports.clone();
    let fake = Fake::with_behaviour(Views::made_up(), behaviour);
    for path in ["/v1/ports/p1", "/v1/ports/p1?fields=status", "/v1/ports?limit=1", "/v1/ports?device_id=fw-3"] {
        assert_eq!(request(&fake, "GET", path).0, 200, "{path}");
        assert_eq!(all_ports.load(Ordering::Relaxed), 0, "{path}");
    }
    // A name that does not exist is compared with all.
    assert_eq!(request(&fake, "GET", "/v1/ports/p2").0, 404);
    assert_eq!(all_ports.load(Ordering::Relaxed), 1);
}

#[test]
fn a_page_goes_on_behind_an_item_that_is_gone() {
    let (fake, _) = crowded(10);
    let after = rows(&request(&fake, "GET", "/v1/ports?limit=2&after=p55"));
    assert_eq!(after.iter().map(|row| &row["port_id"]).collect::<Vec<_>>(), ["p6", "p7"]);
    let after = rows(&request(&fake, "GET", "/v1/fdb?limit=1&after=learned%2Fnet%2F0%2F02:00:00:00:00:00"));
    assert_eq!(after[0]["kind"], "learned");
    assert!(rows(&request(&fake, "GET", "/v1/ports?after=p9")).is_empty());
}

#[test]
fn filters_are_kept_by_the_next_page() {
    let (fake, views) = crowded(30);
    let first = request(&fake, "GET", "/v1/ports?device_id=a%20vm&status=DOWN&network_id=net1&fields=port_id&limit=7");
    let link = next(&first).unwrap();
    for part in ["device_id=a%20vm", "network_id=net1", "fields=port_id", "limit=7", "after=p"] {
        assert!(link.contains(part), "{link}");
    }
    let count = views.ports.iter().filter(|port| port.device_id == "a vm").count();
    let second = rows(&request(&fake, "GET", &link.replace("status=down", "status=DOWN")));
    assert_eq!((rows(&first).len() + second.len(), count), (10, 10));
    assert_eq!(second[0].as_object().unwrap().keys().collect::<Vec<_>>(), ["port_id"]);
    for (path, count) in [
        ("/v1/ports?status=ACTIVE", 20),
        ("/v1/ports?network_id=other", 0),
        ("/v1/ports?owner=nobody", 0),
        ("/v1/fdb?kind=pinned", 6),
        ("/v1/fdb?network_id=net%2F1", 15),
        ("/v1/fdb?mac_address=02-00-00-00-00-07", 1),
        ("/v1/fdb?port_id=none", 0),
        ("/v1/vms?limit=1", 1),
        ("/v1/uplinks?limit=1&after=up0", 1),
        ("/v1/networks?limit=5", 1),
    ] {
        assert_eq!(rows(&request(&fake, "GET", path)).len(), count, "{path}");
    }
}

#[test]
fn only_the_fields_wanted_are_sent() {
    let (fake, _) = crowded(600);
    let client = Client::new(fake.socket());
    let long: Vec<Value> = runtime().block_on(client.get("/v1/ports?fields=port_id")).unwrap();
    assert!(long.len() == 600 && long.iter().all(|row| row.as_object().unwrap().len() == 1), "sent in chunks");
    let (fake, _) = crowded(500);
    for (path, fields) in [
        ("/v1/ports?fields=port_id,status_code,rx_frames", &["port_id", "rx_frames", "status_code"][..]),
        ("/v1/fdb?fields=mac_address", &["mac_address"]),
        ("/v1/uplinks?fields=uplink_id,active", &["active", "uplink_id"]),
        ("/v1/vms?fields=device_id", &["device_id"]),
        ("/v1/networks?fields=mtu", &["mtu"]),
    ] {
        for row in rows(&request(&fake, "GET", path)) {
            assert_eq!(row.as_object().unwrap().keys().collect::<Vec<_>>(), fields, "{path}");
        }
    }
    let one = request(&fake, "GET", "/v1/ports/p7?fields=port_id").json();
    assert_eq!(one, json!({ "port_id": "p7" }));
    for (path, said) in [
        ("/v1/ports?fields=port_id,colour", "status_code"),
        ("/v1/fdb?fields=", "age_seconds"),
        ("/v1/ports?limit=0", "1 to 10000"),
        ("/v1/ports?limit=10001", "1 to 10000"),
        ("/v1/ports?status=UP", "QUARANTINED"),
        ("/v1/fdb?kind=static", "dampened"),
        ("/v1/fdb?mac_address=x", "02:00:00:00:01:0a"),
        ("/v1/fdb?after=x", "Link"),
    ] {
        let refused = request(&fake, "GET", path);
        assert_eq!(refused.0, 400, "{path}");
        assert!(refused.json()["problems"][0]["remedy"].as_str().unwrap().contains(said), "{refused:?}");
    }
}
